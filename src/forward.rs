//! What `--forward` takes: a host and port behind the bastion, as plain data.
//!
//! Leaves out whether there is such a host: its name is looked up at the other end.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::cluster::Destination;

/// Longest name, in bytes: it is a row of a table.
const MAX_NAME_LEN: usize = 63;

/// Longest DNS name, in bytes.
const MAX_HOST_LEN: usize = 253;

/// A host and port that get a local port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// What its tunnel is called: the host and port where no name is given.
    pub name: String,
    pub to: Destination,
    /// The local port; `None`: the next that is free.
    pub local_port: Option<u16>,
}

impl Forward {
    /// What a text has to be to be one.
    pub const EXPECTED: &str = "a forward: expected `[NAME=]HOST:PORT[@LOCAL]`, such as `db=db.internal:5432@15432`";

    /// Returns what is wrong with a text, to follow "is not".
    #[must_use]
    pub fn fault(text: &str) -> Option<String> {
        text.parse::<Self>().err().map(|ForwardError(why)| format!("a forward: {why}"))
    }

    /// Returns what no agent of Systems Manager connects to, if it leads there, by what is at that address.
    ///
    /// Of `DefaultDeniedPortForwardingRemoteIPs` in amazon-ssm-agent, `agent/appconfig/constants.go`, those that all versions
    /// have which forward to other hosts.
    #[must_use]
    pub fn refused_by_agents(&self) -> Option<&'static str> {
        let v4 = |fourth| IpAddr::V4(Ipv4Addr::new(169, 254, 169, fourth));
        let v6 = |last| IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, last));
        let address = self.to.host.parse::<IpAddr>().ok()?.to_canonical();
        let at = |addresses: &[IpAddr]| addresses.contains(&address);
        match () {
            () if at(&[v4(254), v6(0x254)]) => Some("the instance metadata service"),
            () if at(&[v4(253), v6(0x253)]) => Some("the resolver of the VPC"),
            () if at(&[v4(123)]) => Some("Amazon's time service"),
            () if at(&[v4(250)]) => Some("a service of EC2"),
            () => None,
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name != self.to.to_string() {
            write!(f, "{}=", self.name)?;
        }
        write!(f, "{}", self.to)?;
        self.local_port.map_or(Ok(()), |port| write!(f, "@{port}"))
    }
}

/// Why a text is no forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ForwardError(String);

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let wrong = |why: &str| Err(ForwardError(why.to_owned()));
        let (name, rest) = text.split_once('=').map_or((None, text), |(name, rest)| (Some(name), rest));
        if name.is_some_and(|name| !is_name(name)) {
            return wrong(
                "its name must be at most 63 letters, digits, `.`, `_` and `-`, the first a letter or a digit",
            );
        }
        let (to, local) = rest.rsplit_once('@').map_or((rest, None), |(to, local)| (to, Some(local)));
        let local_port = match local.map(port) {
            Some(None) => return wrong("what follows the `@` must be a local port from 1 to 65535"),
            Some(Some(local)) => Some(local),
            None => None,
        };
        let (host, to_port) = match to.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port),
            _ => return wrong("its port is missing, as in `db.internal:5432`"),
        };
        let Some(to_port) = port(to_port) else {
            return wrong("its port must be a number from 1 to 65535, as in `db.internal:5432`");
        };
        let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
            Some(Some(address)) if address.parse::<Ipv6Addr>().is_ok() => address,
            Some(_) => return wrong("what is in brackets must be an IPv6 address, as in `[fd00::5]:5432`"),
            None if host.parse::<Ipv6Addr>().is_ok() || host.matches(':').count() > 1 => {
                return wrong("an IPv6 address must be in brackets, as in `[fd00::5]:5432`");
            }
            None if is_host(host) => host,
            None => return wrong("its host must be a DNS name or an IP address, as in `db.internal:5432`"),
        };
        let to = Destination { host: host.to_owned(), port: to_port };
        Ok(Self { name: name.map_or_else(|| to.to_string(), ToOwned::to_owned), to, local_port })
    }
}

fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten().filter(|port| *port > 0)
}

fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME_LEN
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
            && !label.starts_with('-')
    };
    text.len() <= MAX_HOST_LEN && text.strip_suffix('.').unwrap_or(text).split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for (text, name, to, local) in [
            ("db.internal:5432", "db.internal:5432", "db.internal:5432", None),
            ("db=db.internal:5432", "db", "db.internal:5432", None),
            ("db=10.0.0.7:5432@15432", "db", "10.0.0.7:5432", Some(15432)),
            ("[fd00::5]:6379@6379", "[fd00::5]:6379", "[fd00::5]:6379", Some(6379)),
            ("my_db-1.x=a_b.internal.:1", "my_db-1.x", "a_b.internal.:1", None),
        ] {
            let forward: Forward = text.parse().unwrap();
            assert_eq!((forward.name.as_str(), forward.to.to_string().as_str(), forward.local_port), (name, to, local));
            assert_eq!(forward.to_string(), text);
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, why) in [
            ("db", "its port is missing"),
            ("[::1]", "its port is missing"),
            ("db:", "its port must be a number"),
            ("db:0", "its port must be a number"),
            ("db:65536", "its port must be a number"),
            ("db:+5", "its port must be a number"),
            ("db:postgres", "its port must be a number"),
            (":5432", "its host must be"),
            ("a b:5432", "its host must be"),
            ("http://db:5432", "its host must be"),
            ("a..b:5432", "its host must be"),
            ("::1:5432", "an IPv6 address must be in brackets"),
            ("[db]:5432", "what is in brackets"),
            ("[::1:5432", "what is in brackets"),
            ("[fe80::1%eth0]:5432", "what is in brackets"),
            ("db:5432@", "what follows the `@`"),
            ("db:5432@0", "what follows the `@`"),
            ("db:5432@x", "what follows the `@`"),
            ("=db:5432", "its name must be"),
            ("a b=db:5432", "its name must be"),
            ("\u{1b}[2J=db:5432", "its name must be"),
        ] {
            let fault = Forward::fault(text).unwrap_or_default();
            assert!(fault.contains(why), "{text}: {fault}");
        }
    }

    #[test]
    fn knows_what_no_agent_connects_to() {
        for (host, is_refused) in [
            ("169.254.169.254", true),
            ("[fd00:ec2::254]", true),
            ("[::ffff:169.254.169.254]", true),
            ("169.254.169.253", true),
            ("169.254.169.1", false),
            ("10.0.0.1", false),
            ("db", false),
        ] {
            let forward: Forward = format!("{host}:80").parse().unwrap();
            assert_eq!(forward.refused_by_agents().is_some(), is_refused, "{host}");
        }
    }
}
