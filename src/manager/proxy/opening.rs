//! How a client of the proxy begins: CONNECT, SOCKS5, or a request of plain HTTP. No socket, no clock: bytes in, steps out.
//!
//! Invariants:
//!
//! * The same bytes lead to the same steps, in however many pieces they come.
//! * No opening is longer than [`MAX_HEAD_LEN`] bytes; what follows it is left where it is.
//!
//! Source of SOCKS5: RFC 1928. Its clients need no login here, and it has one command.

use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::{Buf, BytesMut};

use super::refusal::Refusal;
use crate::cluster::Destination;

/// Longest head of CONNECT, in bytes: a client that sends without end fills no more memory than this. Heads of Kubernetes
/// clients have some 200. An opening of SOCKS5 has no more than 519.
pub(super) const MAX_HEAD_LEN: usize = 8 << 10;

/// Most headers of a request. Kubernetes clients send five.
pub(super) const MAX_HEADERS: usize = 64;

/// Longest name of a method. Those that are registered have up to 17 letters.
const MAX_METHOD_LEN: usize = 24;

const CONNECT: &[u8] = b"CONNECT";

const SOCKS5: u8 = 5;
const SOCKS4: u8 = 4;
/// The method of SOCKS5 for clients that do not log in.
const NO_LOGIN: u8 = 0;
/// The command of SOCKS5 for a connection.
const COMMAND_CONNECT: u8 = 1;
/// Types of addresses in SOCKS5.
const ADDRESS_V4: u8 = 1;
const ADDRESS_NAME: u8 = 3;
const ADDRESS_V6: u8 = 4;

/// What a client speaks, and so how it is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Form {
    #[default]
    Http,
    /// SOCKS5 that has not agreed on a method yet.
    SocksMethods,
    Socks,
    Socks4,
}

impl Form {
    /// Returns what tells a client that it is through.
    pub(super) fn granted(self) -> &'static [u8] {
        match self {
            Self::Http => b"HTTP/1.1 200 Connection established\r\n\r\n",
            Self::SocksMethods | Self::Socks | Self::Socks4 => &[SOCKS5, 0, 0, ADDRESS_V4, 0, 0, 0, 0, 0, 0],
        }
    }
}

/// What is next with a client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More has to come.
    Wait,
    /// It has to be told this, before it says more.
    Say([u8; 2]),
    /// It wants to be connected, and what is left in the buffer is for the other end.
    Connect(Destination),
    /// It has a request of plain HTTP, whose head is in the buffer as far as it has come.
    Plain,
}

/// The opening of one client.
#[derive(Debug, Default)]
pub(super) struct Opening {
    form: Form,
}

impl Opening {
    /// What the client speaks, as far as that is known.
    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// Takes what belongs to the opening out of what has come. To be called again after [`Step::Say`], and after
    /// [`Step::Wait`] with more.
    ///
    /// # Errors
    /// Why the client gets nowhere. That is the end of it.
    pub(super) fn handle(&mut self, buffer: &mut BytesMut) -> Result<Step, Refusal> {
        match (self.form, buffer.first()) {
            (_, None) => Ok(Step::Wait),
            (Form::Socks, _) => request(buffer),
            (_, Some(&SOCKS5)) => {
                self.form = Form::SocksMethods;
                let step = methods(buffer)?;
                if step != Step::Wait {
                    self.form = Form::Socks;
                }
                Ok(step)
            }
            (_, Some(&SOCKS4)) => {
                self.form = Form::Socks4;
                Err(Refusal::Socks4)
            }
            _ => http(buffer),
        }
    }
}

/// Reads the methods by which a client would log in.
fn methods(buffer: &mut BytesMut) -> Result<Step, Refusal> {
    let Some(&count) = buffer.get(1) else { return Ok(Step::Wait) };
    let len = 2 + usize::from(count);
    let Some(offered) = buffer.get(2..len) else { return Ok(Step::Wait) };
    if !offered.contains(&NO_LOGIN) {
        return Err(Refusal::Login);
    }
    buffer.advance(len);
    Ok(Step::Say([SOCKS5, NO_LOGIN]))
}

/// Reads what a client of SOCKS5 wants.
fn request(buffer: &mut BytesMut) -> Result<Step, Refusal> {
    let [version, command, _reserved, kind, ..] = buffer[..] else {
        // What is no request need not be waited for.
        return if buffer[0] == SOCKS5 { Ok(Step::Wait) } else { Err(Refusal::NotUnderstood) };
    };
    if version != SOCKS5 {
        return Err(Refusal::NotUnderstood);
    }
    if command != COMMAND_CONNECT {
        return Err(Refusal::Command(command));
    }
    let (start, len) = match kind {
        ADDRESS_V4 => (4, 4),
        ADDRESS_V6 => (4, 16),
        ADDRESS_NAME => match buffer.get(4) {
            Some(len) => (5, usize::from(*len)),
            None => return Ok(Step::Wait),
        },
        _ => return Err(Refusal::AddressType(kind)),
    };
    let end = start + len + 2;
    let Some([host @ .., high, low]) = buffer.get(start..end) else { return Ok(Step::Wait) };
    let host = match kind {
        ADDRESS_V4 => <[u8; 4]>::try_from(host).ok().map(|bytes| Ipv4Addr::from(bytes).to_string()),
        ADDRESS_V6 => <[u8; 16]>::try_from(host).ok().map(|bytes| Ipv6Addr::from(bytes).to_string()),
        // Some put an address here as well, with or without brackets.
        _ => std::str::from_utf8(host)
            .ok()
            .map(|host| host.trim_matches(['[', ']']).to_owned())
            .filter(|host| is_host(host)),
    };
    let port = u16::from_be_bytes([*high, *low]);
    let host = host.filter(|_| port != 0).ok_or(Refusal::Target)?;
    buffer.advance(end);
    Ok(Step::Connect(Destination { host, port }))
}

/// Reads the head of a request, if it is that of CONNECT. What its headers say is of no matter.
fn http(buffer: &mut BytesMut) -> Result<Step, Refusal> {
    let start = buffer.get(..MAX_METHOD_LEN).unwrap_or(buffer);
    let method = start.iter().position(|byte| *byte == b' ');
    let word = &start[..method.unwrap_or(start.len())];
    // Another protocol, TLS for one, would let both sides wait for the end of a head that never comes.
    let is_method = !word.is_empty() && word.iter().all(|byte| byte.is_ascii_alphabetic() || b"-_".contains(byte));
    if !is_method || (method.is_none() && start.len() == MAX_METHOD_LEN) {
        return Err(Refusal::NotUnderstood);
    }
    if method.is_none() {
        return Ok(Step::Wait);
    }
    if word != CONNECT {
        return Ok(Step::Plain);
    }
    let head = buffer.get(..MAX_HEAD_LEN).unwrap_or(buffer);
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(head) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if head.len() == MAX_HEAD_LEN => return Err(Refusal::TooLong),
        Ok(httparse::Status::Partial) => return Ok(Step::Wait),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLong),
        Err(_) => return Err(Refusal::NotUnderstood),
    };
    let to = request.path.and_then(authority).ok_or(Refusal::Target)?;
    buffer.advance(len);
    Ok(Step::Connect(to))
}

/// Reads `host:port`, with brackets around an IPv6 address and only there.
pub(super) fn authority(text: &str) -> Option<Destination> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())??;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().ok()?.to_string(),
        None => host.to_owned(),
    };
    let bare_v6 = host.contains(':') && !text.starts_with('[');
    (port != 0 && is_host(&host) && !bare_v6).then_some(Destination { host, port })
}

/// Tells whether a text may be a host: an address, or a name. It is in logs and answers.
pub(super) fn is_host(text: &str) -> bool {
    match text.contains(':') {
        true => text.parse::<Ipv6Addr>().is_ok(),
        false => {
            (1..=255).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes bytes in one piece.
    fn all(bytes: &[u8]) -> (Vec<u8>, Result<Step, Refusal>, usize) {
        let (mut opening, mut buffer, mut said) = (Opening::default(), BytesMut::from(bytes), Vec::new());
        loop {
            match opening.handle(&mut buffer) {
                Ok(Step::Say(bytes)) => said.extend(bytes),
                outcome => return (said, outcome, buffer.len()),
            }
        }
    }

    fn to(host: &str, port: u16) -> Result<Step, String> {
        Ok(Step::Connect(Destination { host: host.to_owned(), port }))
    }

    #[test]
    fn socks_is_read_with_all_types_of_addresses() {
        for (request, wanted) in [
            (&b"\x05\x01\x00\x01\x0a\x00\x00\x07\x15\x38"[..], to("10.0.0.7", 5432)),
            (b"\x05\x01\x00\x03\x0bdb.internal\x15\x38", to("db.internal", 5432)),
            (b"\x05\x01\x00\x03\x0810.0.0.7\x00\x50", to("10.0.0.7", 80)),
            (b"\x05\x01\x00\x03\x09[fd00::5]\x00\x50", to("fd00::5", 80)),
            (b"\x05\x01\x00\x04\xfd\x00\0\0\0\0\0\0\0\0\0\0\0\0\0\x05\x01\xbb", to("fd00::5", 443)),
            (b"\x05\x02\x00\x01\x0a\x00\x00\x07\x15\x38", Err("CONNECT of SOCKS5, which is 1, and not 2".to_owned())),
            (b"\x05\x01\x00\x02\x0a\x00\x00\x07\x15\x38", Err("no address of type 2".to_owned())),
            (b"\x05\x01\x00\x03\x00\x15\x38", Err("has to be a host and a port".to_owned())),
            (b"\x05\x01\x00\x03\x03a\nb\x15\x38", Err("has to be a host and a port".to_owned())),
            (b"\x05\x01\x00\x03\x02\xc3\xa4\x15\x38", Err("has to be a host and a port".to_owned())),
            (b"\x05\x01\x00\x01\x0a\x00\x00\x07\x00\x00", Err("has to be a host and a port".to_owned())),
            (b"GET / HTTP/1.1\r\n", Err("this is a proxy".to_owned())),
        ] {
            let (said, outcome, left) = all(&[b"\x05\x03\x02\x01\x00", request, b"early"].concat());
            assert_eq!(said, [5, 0]);
            match (outcome, wanted) {
                (Ok(step), wanted) => assert_eq!((Ok(step), left), (wanted, 5)),
                (Err(refusal), Err(why)) => assert!(refusal.to_string().contains(&why), "{refusal}"),
                (Err(refusal), Ok(_)) => panic!("{refusal}"),
            }
        }
    }

    #[test]
    fn a_client_that_wants_to_log_in_is_told_that_it_need_not() {
        for methods in [&b"\x05\x00"[..], b"\x05\x01\x02", b"\x05\x02\x01\x02"] {
            let mut opening = Opening::default();
            let refusal = opening.handle(&mut methods.into()).unwrap_err();
            assert_eq!(refusal.answer(opening.form()), Some(vec![5, 0xff]), "{methods:?}");
        }
        let mut opening = Opening::default();
        let refusal = opening.handle(&mut b"\x04\x01\x00\x50\x0a\0\0\x01\0"[..].into()).unwrap_err();
        assert_eq!(refusal.answer(opening.form()).unwrap()[..2], [0, 91]);
    }

    #[test]
    fn other_methods_are_plain_and_what_is_no_http_is_refused_at_once() {
        for plain in ["GET http://x/ HTTP/1.1\r\n", "PROPFIND ", "connect a:1", "GET / HTTP/1.1\r\n"] {
            assert!(matches!(all(plain.as_bytes()).1, Ok(Step::Plain)), "{plain}");
        }
        for partial in ["", "G", "CONNECT", "CONNECT a:1 HTTP/1.1\r\n"] {
            assert!(matches!(all(partial.as_bytes()).1, Ok(Step::Wait)), "{partial}");
        }
        for other in [&b"\x16\x03\x01"[..], b"\r\n", b" GET", b"HELLOHELLOHELLOHELLOHELLO", b"\0"] {
            assert!(matches!(all(other).1, Err(Refusal::NotUnderstood)), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn an_endpoint_is_read_as_it_is_written(host in "[a-zA-Z0-9._-]{1,40}", port in 1..=u16::MAX) {
            let wanted = Destination { host: host.clone(), port };
            prop_assert_eq!(authority(&format!("{host}:{port}")), Some(wanted.clone()));
            let mut socks = b"\x05\x01\x00\x05\x01\x00\x03".to_vec();
            socks.push(u8::try_from(host.len()).unwrap());
            socks.extend(host.bytes());
            socks.extend(port.to_be_bytes());
            prop_assert_eq!(all(&socks).1.unwrap(), Step::Connect(wanted));
        }

        #[test]
        fn what_is_fuzzed_holds_for_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            crate::manager::proxy::fuzzing::proxy(&bytes);
        }

        #[test]
        fn what_is_fuzzed_holds_for_socks(bytes in proptest::collection::vec(0_u8..6, 0..60)) {
            crate::manager::proxy::fuzzing::proxy(&bytes);
        }
    }
}
