//! SSH servers: `ssh://[user@]<instance or host>[:port][?instance=…&via=…&key=…&host_key=…]`.

use std::{fmt, path::PathBuf};

use super::{Search, Target};

/// What the address of an SSH server starts with.
const SCHEME: &str = "ssh://";

/// The usual port, which is left out.
const PORT: u16 = 22;

/// Longest name of a user; EC2 Instance Connect takes no longer one.
const MAX_USER_LEN: usize = 32;

/// An SSH server, and how to come in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SshBastion {
    /// `None`: the usual one of images.
    pub user: Option<String>,
    pub host: SshHost,
    pub port: u16,
    /// The instance behind a host that is named otherwise.
    pub instance: Option<SshInstance>,
    pub via: Via,
    pub key: KeySource,
    /// What is known of the server's key beforehand.
    pub host_key: Option<HostKeyRule>,
}

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SshHost {
    /// Wherever the instance is.
    Instance(SshInstance),
    /// A name or an address, without brackets.
    Name(String),
}

/// Which instance it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SshInstance {
    /// `i-` and its digits.
    Id(String),
    /// One with a tag, a name, or of an Auto Scaling group.
    Found(Search),
}

/// The way to the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Via {
    /// By its public address, else, or if that does not answer, through an endpoint of EC2 Instance Connect, else by its
    /// private address.
    #[default]
    Auto,
    /// By an address of its own.
    Direct,
    /// Through an endpoint of EC2 Instance Connect.
    Endpoint,
}

/// Whose key opens the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// One of this program's own, pushed by EC2 Instance Connect.
    #[default]
    Pushed,
    /// One of the SSH agent.
    Agent,
}

/// What is said of the server's key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostKeyRule {
    /// It has this fingerprint, in OpenSSH's form: `SHA256:` and 43 characters.
    Pin(String),
    /// If nothing is known of it, it is taken as it comes, and known from then on.
    New,
}

/// Files and sockets that have to do with all SSH servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SshFiles {
    /// OpenSSH's files of known servers, as far as there are any.
    pub known_hosts: Vec<PathBuf>,
    /// Our own, for those that are known by their instances.
    pub own_known_hosts: Option<PathBuf>,
    /// The socket of the SSH agent.
    pub agent: Option<PathBuf>,
}

impl SshBastion {
    /// Reads an address.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(SCHEME)?;
        let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
        let (user, place) = place.split_once('@').map_or((None, place), |(user, place)| (Some(user), place));
        if !user.is_none_or(is_user) {
            return None;
        }
        let (host, port) = host_and_port(place.strip_suffix('/').unwrap_or(place))?;
        let mut options = Options::default();
        for option in query.into_iter().flat_map(|query| query.split('&')) {
            options.read(option)?;
        }
        let Options { instance, via, key, host_key } = options;
        let (host, instance) = match (host, instance) {
            ("", Some(instance)) => (SshHost::Instance(instance), None),
            ("", None) => return None,
            (host, instance) => match (SshInstance::id(host), instance) {
                (Some(of_host), None) => (SshHost::Instance(of_host), None),
                // One instance has one id.
                (Some(_), Some(_)) => return None,
                (None, instance) if is_host(host) => (SshHost::Name(host.to_ascii_lowercase()), instance),
                (None, _) => return None,
            },
        };
        let is_name = matches!(host, SshHost::Name(_));
        if is_name && via == Some(Via::Endpoint) && instance.is_none() {
            return None;
        }
        Some(Self {
            user: user.map(str::to_owned),
            host,
            port,
            instance,
            via: via.unwrap_or_default(),
            key: key.unwrap_or_default(),
            host_key,
        })
    }
}

/// What stands behind the question mark.
#[derive(Default)]
struct Options {
    instance: Option<SshInstance>,
    via: Option<Via>,
    key: Option<KeySource>,
    host_key: Option<HostKeyRule>,
}

impl Options {
    /// Reads one of them, which may stand there once.
    fn read(&mut self, option: &str) -> Option<()> {
        fn set<T>(place: &mut Option<T>, value: T) -> Option<()> {
            place.replace(value).is_none().then_some(())
        }
        let (name, value) = option.split_once('=')?;
        match (name, value) {
            ("instance", _) => set(&mut self.instance, SshInstance::parse(value)?),
            ("via", "auto") => set(&mut self.via, Via::Auto),
            ("via", "direct") => set(&mut self.via, Via::Direct),
            ("via", "eice") => set(&mut self.via, Via::Endpoint),
            ("key", "agent") => set(&mut self.key, KeySource::Agent),
            ("host_key", "new") => set(&mut self.host_key, HostKeyRule::New),
            ("host_key", _) if is_fingerprint(value) => {
                set(&mut self.host_key, HostKeyRule::Pin(value.trim_end_matches('=').to_owned()))
            }
            _ => None,
        }
    }
}

impl SshInstance {
    fn id(text: &str) -> Option<Self> {
        match text.parse() {
            Ok(Target::Instance(id)) => Some(Self::Id(id)),
            Ok(Target::ManagedNode(_) | Target::EcsTask(_)) | Err(_) => None,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        // It stands between other options.
        let search = Search::parse(text).filter(|_| !text.contains(['&', '?', '#']));
        let found = search.filter(|search| matches!(search, Search::Tag { .. } | Search::Name(_) | Search::Group(_)));
        Self::id(text).or_else(|| found.map(Self::Found))
    }
}

impl fmt::Display for SshInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => f.write_str(id),
            Self::Found(search) => search.fmt(f),
        }
    }
}

impl fmt::Display for SshBastion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        let mut instance = self.instance.as_ref();
        match &self.host {
            SshHost::Instance(SshInstance::Id(id)) => f.write_str(id)?,
            SshHost::Instance(found) => instance = Some(found),
            SshHost::Name(name) if name.contains(':') => write!(f, "[{name}]")?,
            SshHost::Name(name) => f.write_str(name)?,
        }
        if self.port != PORT {
            write!(f, ":{}", self.port)?;
        }
        let via = match self.via {
            Via::Auto => None,
            Via::Direct => Some("direct"),
            Via::Endpoint => Some("eice"),
        };
        let options = [
            instance.map(|instance| format!("instance={instance}")),
            via.map(|via| format!("via={via}")),
            (self.key == KeySource::Agent).then(|| "key=agent".to_owned()),
            self.host_key.as_ref().map(|rule| match rule {
                HostKeyRule::Pin(fingerprint) => format!("host_key={fingerprint}"),
                HostKeyRule::New => "host_key=new".to_owned(),
            }),
        ];
        for (option, mark) in options.into_iter().flatten().zip(std::iter::once('?').chain(std::iter::repeat('&'))) {
            write!(f, "{mark}{option}")?;
        }
        Ok(())
    }
}

/// Takes a port off a host, which is in brackets if it is an IPv6 address.
fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, rest)
        }
        None => {
            let at = text.find(':').unwrap_or(text.len());
            text.split_at(at)
        }
    };
    if port.is_empty() {
        return Some((host, PORT));
    }
    let digits = port.strip_prefix(':').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    Some((host, digits.parse().ok().filter(|port| *port != 0)?))
}

fn is_user(text: &str) -> bool {
    let is_of_users = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_USER_LEN).contains(&text.len()) && text.bytes().all(is_of_users) && !text.starts_with('-')
}

/// A name, an IPv4 address, or an IPv6 address without brackets.
fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_of_labels = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..=63).contains(&label.len()) && label.bytes().all(is_of_labels) && !label.starts_with('-')
    };
    // What looks like an id and is none is a slip.
    let is_slip = ["i-", "mi-"].iter().any(|start| text.starts_with(start)) && !text.contains('.');
    let is_name = text.len() <= 253 && text.split('.').all(is_label) && !is_slip;
    is_name || text.parse::<std::net::Ipv6Addr>().is_ok()
}

/// `SHA256:` and the base64 of 32 bytes.
fn is_fingerprint(text: &str) -> bool {
    let Some(hash) = text.strip_prefix("SHA256:").map(|hash| hash.trim_end_matches('=')) else { return false };
    hash.len() == 43 && hash.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: &str = "SHA256:abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNO+/";

    #[test]
    fn reads_what_it_writes() {
        for text in [
            "ssh://i-0dc03fbcae2a87472".to_owned(),
            "ssh://ubuntu@i-0dc03fbcae2a87472:2222?via=direct".to_owned(),
            "ssh://ubuntu@?instance=tag:k8s.io/role/bastion=1".to_owned(),
            "ssh://?instance=asg:bastions&via=eice".to_owned(),
            "ssh://:2222?instance=name:bastion host".to_owned(),
            "ssh://bastion.example.com?key=agent".to_owned(),
            "ssh://admin@bastion.example.com:22022?instance=i-0dc03fbcae2a87472&via=eice&host_key=new".to_owned(),
            "ssh://10.0.0.5?instance=name:bastion".to_owned(),
            "ssh://[2001:db8::1]:2222".to_owned(),
            format!("ssh://10.0.0.5?key=agent&host_key={PIN}"),
        ] {
            assert_eq!(SshBastion::parse(&text).unwrap_or_else(|| panic!("{text}")).to_string(), text);
        }
        for (text, same) in [
            ("ssh://Bastion.Example.com:22/", "ssh://bastion.example.com"),
            ("ssh://a.b?via=auto", "ssh://a.b"),
            ("ssh://a.b?key=agent&via=direct", "ssh://a.b?via=direct&key=agent"),
        ] {
            assert_eq!(SshBastion::parse(text).unwrap().to_string(), same);
        }
        assert_eq!(
            SshBastion::parse(&format!("ssh://a.b?host_key={PIN}=")).unwrap().host_key,
            Some(HostKeyRule::Pin(PIN.to_owned()))
        );
    }

    #[test]
    fn takes_nothing_else() {
        for text in [
            "ssh:",
            "ssh://",
            "ssh://user@",
            "ssh://@host",
            "ssh://us er@host",
            "ssh://-oProxyCommand=x@host",
            "ssh://-host",
            "ssh://host:0",
            "ssh://host:65536",
            "ssh://host:ssh",
            "ssh://host:",
            "ssh://2001:db8::1",
            "ssh://[host]",
            "ssh://host/path",
            "ssh://i-0dc0",
            "ssh://mi-0dc03fbcae2a87472",
            "ssh://i-0dc03fbcae2a87472?instance=i-0dc03fbcae2a87472",
            "ssh://?instance=auto",
            "ssh://?instance=ecs:tools/bastion",
            "ssh://?instance=mi-0dc03fbcae2a87472",
            "ssh://host?via=eice",
            "ssh://host?via=proxy",
            "ssh://host?via=direct&via=direct",
            "ssh://host?key=~/.ssh/id_rsa",
            "ssh://host?key",
            "ssh://host?host_key=abc",
            "ssh://host?host_key=MD5:00:11",
            "ssh://host?password=x",
            "ssh://host?",
            "ssh://user:password@host",
            "SSH://host",
        ] {
            assert_eq!(SshBastion::parse(text), None, "{text}");
        }
    }
}
