//! Why a client of the proxy gets nowhere, and how it is told: in HTTP by a status and a sentence, in SOCKS by a number.

use std::{fmt, io};

use super::opening::{Form, MAX_HEAD_LEN, MAX_HEADERS};
use crate::{cluster::Destination, util::peer_text::sentence};

/// Most bytes of a sentence in the first line of an answer, which is all that many clients show.
const MAX_REASON_LEN: usize = 300;

/// Replies of SOCKS5. Source: RFC 1928, section 6.
mod reply {
    pub(super) const FAILURE: u8 = 0x01;
    pub(super) const NOT_ALLOWED: u8 = 0x02;
    pub(super) const NETWORK_UNREACHABLE: u8 = 0x03;
    pub(super) const HOST_UNREACHABLE: u8 = 0x04;
    pub(super) const CONNECTION_REFUSED: u8 = 0x05;
    pub(super) const COMMAND: u8 = 0x07;
    pub(super) const ADDRESS_TYPE: u8 = 0x08;
}

/// Why a request leads nowhere.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is neither HTTP/1.1 nor SOCKS5.
    NotUnderstood,
    /// It is SOCKS4, whose clients look names up themselves.
    Socks4,
    /// It wants to log in.
    Login,
    /// It wants something else of SOCKS5 than a connection.
    Command(u8),
    /// It names its host in a way that SOCKS5 does not have.
    AddressType(u8),
    /// It does not say a host and a port.
    Target,
    /// It is a request of plain HTTP that is for this proxy itself, as a page in a browser could send it.
    NotForProxy,
    /// It is a request of plain HTTP for a URL that is not of plain HTTP.
    Scheme,
    /// No tunnel leads there.
    Foreign {
        endpoint: Destination,
        /// Where they lead, in words.
        known: String,
    },
    /// The head has too many bytes.
    TooLong,
    /// The head took too long.
    Late {
        seconds: u64,
    },
    /// Too many connections are open.
    TooMany {
        limit: usize,
    },
    /// The tunnel's port takes no connection.
    NoTunnel {
        endpoint: Destination,
        source: io::Error,
    },
    /// A host that no tunnel leads to cannot be connected to.
    Elsewhere {
        endpoint: Destination,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    Gone,
}

impl Refusal {
    /// Returns the answer in a form; there is none for a client that has gone.
    pub(super) fn answer(&self, form: Form) -> Option<Vec<u8>> {
        if matches!(self, Self::Gone) {
            return None;
        }
        Some(match form {
            Form::Http => self.http().into_bytes(),
            Form::SocksMethods => vec![5, 0xff],
            Form::Socks => [&[5, self.reply(), 0, 1][..], &[0; 6]].concat(),
            Form::Socks4 => vec![0, 91, 0, 0, 0, 0, 0, 0],
        })
    }

    /// The status of HTTP and its name.
    pub(super) fn status(&self) -> (u16, &'static str) {
        match self {
            Self::NotForProxy
            | Self::NotUnderstood
            | Self::Target
            | Self::Scheme
            | Self::Socks4
            | Self::Login
            | Self::Command(_)
            | Self::AddressType(_) => (400, "Bad Request"),
            Self::Foreign { .. } => (403, "Forbidden"),
            Self::TooLong => (431, "Request Header Fields Too Large"),
            Self::Late { .. } => (408, "Request Timeout"),
            Self::TooMany { .. } => (503, "Service Unavailable"),
            Self::NoTunnel { .. } | Self::Elsewhere { .. } => (502, "Bad Gateway"),
            Self::Gone => (499, "Client Closed Request"),
        }
    }

    fn http(&self) -> String {
        let (status, name) = self.status();
        let body = format!("{self}\n");
        // Clients show this line of an answer to CONNECT, and seldom the rest.
        let reason: String =
            self.to_string().chars().filter(|c| *c == ' ' || c.is_ascii_graphic()).take(MAX_REASON_LEN).collect();
        format!(
            "HTTP/1.1 {status} {name}: {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        )
    }

    fn reply(&self) -> u8 {
        match self {
            Self::Command(_) => reply::COMMAND,
            Self::AddressType(_) => reply::ADDRESS_TYPE,
            Self::Foreign { .. } => reply::NOT_ALLOWED,
            Self::NoTunnel { source, .. } => of_io(source.kind()),
            Self::Elsewhere { source, .. } => {
                let first: &(dyn std::error::Error + 'static) = &**source;
                let mut chain = std::iter::successors(Some(first), |error| error.source());
                let kind = chain.find_map(|error| Some(error.downcast_ref::<io::Error>()?.kind()));
                kind.map_or(reply::HOST_UNREACHABLE, of_io)
            }
            Self::NotUnderstood
            | Self::Socks4
            | Self::Login
            | Self::Target
            | Self::NotForProxy
            | Self::Scheme
            | Self::TooLong
            | Self::Late { .. }
            | Self::TooMany { .. }
            | Self::Gone => reply::FAILURE,
        }
    }
}

fn of_io(kind: io::ErrorKind) -> u8 {
    let is = |wanted| kind == wanted;
    match () {
        () if is(io::ErrorKind::ConnectionRefused) => reply::CONNECTION_REFUSED,
        () if is(io::ErrorKind::NetworkUnreachable) => reply::NETWORK_UNREACHABLE,
        () => reply::HOST_UNREACHABLE,
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUnderstood => f.write_str(
                "this is a proxy: it takes `CONNECT host:port HTTP/1.1`, requests of plain HTTP, and SOCKS5",
            ),
            Self::Socks4 => f.write_str("this proxy takes SOCKS5 and not SOCKS4: write `socks5h://`"),
            Self::Login => f.write_str("this proxy takes SOCKS5 without a user name: leave it out of the URL"),
            Self::Command(command) => {
                write!(f, "this proxy takes the command CONNECT of SOCKS5, which is 1, and not {command}")
            }
            Self::AddressType(kind) => write!(f, "SOCKS5 has no address of type {kind}"),
            Self::Target => f.write_str("what is to be connected to has to be a host and a port"),
            Self::NotForProxy => f.write_str(
                "this is a proxy and has no pages of its own: ask it for whole URLs, such as `http://wiki.internal/`",
            ),
            Self::Scheme => f.write_str("this proxy takes requests for `http://` alone: `https://` comes by CONNECT"),
            Self::Foreign { endpoint, known } => write!(
                f,
                "no tunnel of autoheal-pa leads to `{endpoint}`, {known}: add it with `--forward {endpoint}`, or let \
                 `--proxy-others direct` connect to everything else"
            ),
            Self::TooLong => {
                write!(f, "the head of the request has more than {MAX_HEAD_LEN} bytes or {MAX_HEADERS} headers")
            }
            Self::Late { seconds } => write!(f, "the head of the request was not complete within {seconds} s"),
            Self::TooMany { limit } => write!(f, "this proxy has {limit} connections already"),
            Self::NoTunnel { endpoint, source } => {
                write!(f, "the tunnel to `{endpoint}` accepts no connections: {source}")
            }
            Self::Elsewhere { endpoint, source } => {
                write!(f, "cannot connect to `{endpoint}`: {}", sentence(&**source))
            }
            Self::Gone => f.write_str("the client has gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_has_its_answer() {
        let endpoint = Destination { host: "h".to_owned(), port: 1 };
        let refused = Refusal::NoTunnel { endpoint: endpoint.clone(), source: io::ErrorKind::ConnectionRefused.into() };
        assert_eq!(refused.answer(Form::Socks).unwrap(), [5, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
        let source = Box::new(io::Error::from(io::ErrorKind::NetworkUnreachable));
        let unreachable = Refusal::Elsewhere { endpoint: endpoint.clone(), source };
        assert_eq!(unreachable.answer(Form::Socks).unwrap()[1], 3);
        let foreign = Refusal::Foreign { endpoint, known: "there is none yet".to_owned() };
        assert_eq!(foreign.answer(Form::Socks).unwrap()[1], 2);
        assert_eq!(foreign.answer(Form::SocksMethods).unwrap(), [5, 0xff]);
        assert_eq!(Refusal::Command(2).answer(Form::Socks).unwrap()[1], 7);
        assert_eq!(Refusal::AddressType(2).answer(Form::Socks).unwrap()[1], 8);
        assert_eq!(Refusal::Socks4.answer(Form::Socks4).unwrap()[..2], [0, 91]);
        for form in [Form::Http, Form::Socks, Form::SocksMethods, Form::Socks4] {
            assert_eq!(Refusal::Gone.answer(form), None);
        }
    }

    #[test]
    fn the_first_line_says_it_all_and_is_one_line() {
        let endpoint = Destination { host: "h".to_owned(), port: 1 };
        let source = io::Error::other(format!("nein\r\nInjected: ä {}", "x".repeat(500)));
        let answer = Refusal::NoTunnel { endpoint, source }.answer(Form::Http).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let first = head.lines().next().unwrap();
        assert!(
            first
                .starts_with("HTTP/1.1 502 Bad Gateway: the tunnel to `h:1` accepts no connections: neinInjected:  xx"),
            "{first}"
        );
        assert_eq!((first.is_ascii(), head.lines().count()), (true, 4));
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
    }
}
