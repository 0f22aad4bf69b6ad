//! `--proxy`: whether there is a proxy for programs of this machine, where it listens, and what it does with the names of others.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use clap::ValueEnum;

use super::{Environment, Given, KubeconfigMode, Problem, UpSettings, row::Value, rows::UP, source::Stack};

/// Where a proxy is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ProxyPlace {
    /// There is none, unless something else needs one.
    #[default]
    Nowhere,
    /// Before the first local port.
    BeforeTunnels,
    /// On this port of loopback; 0: any free one.
    Port(u16),
    /// At this address and no other.
    At(SocketAddr),
}

impl ProxyPlace {
    /// What a text has to be to be one.
    pub const EXPECTED: &str =
        "a place for the proxy: a port, or an IP address and a port, such as `3128` or `127.0.0.1:3128`";
    /// What stands for one without a place.
    pub const ANYWHERE: &str = "true";
}

impl fmt::Display for ProxyPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("false"),
            Self::BeforeTunnels => f.write_str(Self::ANYWHERE),
            Self::Port(port) => write!(f, "{port}"),
            Self::At(address) => write!(f, "{address}"),
        }
    }
}

/// A text is no place for a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not {}", ProxyPlace::EXPECTED)]
pub struct NoProxyPlace;

impl FromStr for ProxyPlace {
    type Err = NoProxyPlace;

    fn from_str(text: &str) -> Result<Self, NoProxyPlace> {
        let port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        match text {
            "false" => Ok(Self::Nowhere),
            Self::ANYWHERE => Ok(Self::BeforeTunnels),
            _ => match text.strip_prefix("localhost:").or(Some(text)).and_then(port) {
                Some(port) => Ok(Self::Port(port)),
                None => text.parse().map(Self::At).map_err(|_| NoProxyPlace),
            },
        }
    }
}

pub(super) fn is_proxy_place(text: &str) -> bool {
    text.parse::<ProxyPlace>().is_ok()
}

/// Where metrics are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsAddress(pub SocketAddr);

impl MetricsAddress {
    /// What a text has to be to be one.
    pub const EXPECTED: &str = "a port, or an IP address and a port, such as `9464` or `127.0.0.1:9464`";
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for MetricsAddress {
    type Err = NoProxyPlace;

    fn from_str(text: &str) -> Result<Self, NoProxyPlace> {
        match text.parse()? {
            ProxyPlace::Port(port) => Ok(Self((Ipv4Addr::LOCALHOST, port).into())),
            ProxyPlace::At(address) => Ok(Self(address)),
            ProxyPlace::Nowhere | ProxyPlace::BeforeTunnels => Err(NoProxyPlace),
        }
    }
}

pub(super) fn is_metrics_address(text: &str) -> bool {
    text.parse::<MetricsAddress>().is_ok()
}

/// What the proxy does with names that no tunnel leads to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ProxyOthers {
    /// They are refused.
    #[default]
    Refuse,
    /// They are connected to from here, or through the proxy that the environment has.
    Direct,
}

impl ProxyOthers {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Direct => "direct",
        }
    }
}

impl Value for ProxyOthers {
    fn read(text: &str, _given: &Given, _environment: &Environment) -> Option<Self> {
        Self::from_str(text, false).ok()
    }

    fn to_text(&self) -> Option<String> {
        Some(self.as_str().to_owned())
    }
}

/// The proxy that there is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxySettings {
    pub address: ProxyAddress,
    pub others: ProxyOthers,
}

/// Where it listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyAddress {
    /// On loopback.
    Port {
        /// 0: any free one.
        port: u16,
        /// If it is taken, that is an error; else the next free one will do.
        strict: bool,
    },
    At(SocketAddr),
}

impl UpSettings {
    /// Returns the proxy that there is to be: by default on the port before the first tunnel, so that it is the same at every
    /// start.
    #[must_use]
    pub fn proxy(&self) -> Option<ProxySettings> {
        let before = ProxyAddress::Port { port: self.base_port.saturating_sub(1), strict: self.strict_ports };
        let address = match (self.proxy, self.kubeconfig_mode) {
            (ProxyPlace::Nowhere, KubeconfigMode::Direct | KubeconfigMode::LocalTls) => return None,
            (ProxyPlace::Nowhere, KubeconfigMode::Proxy) | (ProxyPlace::BeforeTunnels, _) => before,
            (ProxyPlace::Port(port), _) => ProxyAddress::Port { port, strict: true },
            (ProxyPlace::At(address), _) => ProxyAddress::At(address),
        };
        Some(ProxySettings { address, others: self.proxy_others })
    }

    /// Says what contradicts the other settings.
    pub(super) fn problems_of_proxy(&self, stack: &Stack<'_>) -> impl Iterator<Item = Problem> {
        let useless = stack.one(&UP.proxy_others).filter(|_| self.proxy().is_none());
        let useless = useless.map(|given| given.malformed("of use without `--proxy`"));
        let is_open = matches!(self.proxy, ProxyPlace::At(address) if !address.ip().is_loopback());
        let open = stack.one(&UP.proxy).filter(|_| is_open && !self.allow_other_users);
        let open = open.map(|given| {
            given.malformed(
                "an address of loopback: whoever reaches it could use the tunnels, which takes `--allow-other-users`",
            )
        });
        useless.into_iter().chain(open)
    }
}

impl ProxyAddress {
    /// Returns by which address programs of this machine reach what listens at one.
    #[must_use]
    pub fn reached_at(address: SocketAddr) -> SocketAddr {
        let ip = match address.ip() {
            ip if !ip.is_unspecified() => ip,
            std::net::IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            std::net::IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        SocketAddr::new(ip, address.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let at = |text: &str| ProxyPlace::At(text.parse().unwrap());
        for (text, place) in [
            ("true", ProxyPlace::BeforeTunnels),
            ("false", ProxyPlace::Nowhere),
            ("0", ProxyPlace::Port(0)),
            ("3128", ProxyPlace::Port(3128)),
            ("127.0.0.1:3128", at("127.0.0.1:3128")),
            ("[::1]:3128", at("[::1]:3128")),
            ("0.0.0.0:0", at("0.0.0.0:0")),
        ] {
            assert_eq!(text.parse(), Ok(place));
            assert_eq!(place.to_string(), text);
        }
        assert_eq!("localhost:3128".parse(), Ok(ProxyPlace::Port(3128)));
        for text in ["", "x", "-1", "+1", "65536", "127.0.0.1", "::1:3128", "http://127.0.0.1:1", "db=db:5432", "db:1"]
        {
            assert_eq!(text.parse::<ProxyPlace>(), Err(NoProxyPlace), "{text}");
        }
    }

    #[test]
    fn metrics_are_on_loopback_unless_asked_otherwise() {
        let read = |text: &str| text.parse().map(|MetricsAddress(address)| address.to_string());
        assert_eq!(read("9464").as_deref(), Ok("127.0.0.1:9464"));
        assert_eq!(read("0.0.0.0:9464").as_deref(), Ok("0.0.0.0:9464"));
        assert_eq!(read("localhost:1").as_deref(), Ok("127.0.0.1:1"));
        assert!(["true", "false", "x", ""].iter().all(|text| read(text).is_err()));
    }

    #[test]
    fn what_listens_everywhere_is_reached_on_loopback() {
        let reached = |text: &str| ProxyAddress::reached_at(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:1"), "127.0.0.1:1");
        assert_eq!(reached("[::]:1"), "[::1]:1");
        assert_eq!(reached("10.0.0.1:1"), "10.0.0.1:1");
    }
}
