//! Which proxy a host is called through: one answer for the SDK's calls and for WebSockets.
//!
//! Invariant: metadata and credential services, and this machine itself, are never called through a proxy. What is sent
//! there holds secrets that are good on this machine or network only, and a proxy elsewhere has another of each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aws_smithy_http_client::proxy::ProxyConfig;
use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

use crate::settings::{Proxies, Proxy};

/// Chooses proxies.
#[derive(Debug)]
pub(super) struct Routes {
    matcher: Matcher,
    proxies: Proxies,
    /// Hosts that are called directly, whatever the proxies are for.
    direct: Vec<String>,
}

/// A proxy that has been chosen.
#[derive(Debug)]
pub(super) struct Way<'a> {
    /// What the settings say of it.
    pub(super) proxy: &'a Proxy,
    pub(super) intercept: Intercept,
}

/// Why a proxy does not let anybody through.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// There is no user name in the variable.
    #[error("the proxy `{proxy}` requires a user name and password, but `{variable}` has none{}", offers(schemes))]
    Asks {
        /// Host and port.
        proxy: String,
        variable: &'static str,
        /// What it says it takes, if it does.
        schemes: Vec<String>,
    },
    /// Those in the variable are not taken.
    #[error("the proxy `{proxy}` rejects the user name and password in `{variable}`{}", offers(schemes))]
    Refuses {
        /// Host and port.
        proxy: String,
        variable: &'static str,
        /// What it says it takes, if it does.
        schemes: Vec<String>,
    },
}

fn offers(schemes: &[String]) -> String {
    if schemes.is_empty() { String::new() } else { format!(" (it accepts {})", schemes.join(", ")) }
}

impl Routes {
    /// Makes them from the settings.
    pub(super) fn new(proxies: Proxies) -> Self {
        let url = |proxy: &Option<Proxy>| proxy.as_ref().map(|proxy| proxy.url.expose().clone()).unwrap_or_default();
        let matcher =
            Matcher::builder().http(url(&proxies.http)).https(url(&proxies.https)).no(proxies.except.clone()).build();
        Self { matcher, proxies, direct: Vec::new() }
    }

    /// Has the hosts of URLs called directly.
    pub(super) fn direct<'a>(mut self, urls: impl IntoIterator<Item = Option<&'a str>>) -> Self {
        let host = |url: &str| url.parse::<Uri>().ok()?.host().map(bare);
        self.direct.extend(urls.into_iter().flatten().filter_map(host));
        self
    }

    /// Returns the proxy for a URL of scheme `http` or `https`.
    pub(super) fn of(&self, destination: &Uri) -> Option<Way<'_>> {
        let host = bare(destination.host()?);
        if is_direct(&host) || self.direct.contains(&host) {
            return None;
        }
        let intercept = self.matcher.intercept(destination)?;
        let is_secure = destination.scheme_str() == Some("https");
        let proxy = if is_secure { self.proxies.https.as_ref() } else { self.proxies.http.as_ref() };
        Some(Way { proxy: proxy?, intercept })
    }
}

impl Way<'_> {
    /// Returns host and port of the proxy.
    pub(super) fn name(&self) -> String {
        self.intercept.uri().authority().map(ToString::to_string).unwrap_or_default()
    }

    /// Returns the error of a proxy that wants to know who calls; `schemes` is what it says that it takes.
    pub(super) fn refusal(&self, schemes: Vec<String>) -> ProxyError {
        let (proxy, variable) = (self.name(), self.proxy.variable);
        if self.proxy.has_user {
            ProxyError::Refuses { proxy, variable, schemes }
        } else {
            ProxyError::Asks { proxy, variable, schemes }
        }
    }

    /// Returns what sends everything through this proxy.
    pub(super) fn config(&self) -> ProxyConfig {
        ProxyConfig::all(self.proxy.url.expose().as_str())
            .expect("the settings have written a URL with scheme and host")
    }
}

/// Returns a host in the one way in which it is compared.
fn bare(host: &str) -> String {
    host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase()
}

/// Says whether a bare host is this machine, or where a cloud gives metadata and credentials to the machine.
fn is_direct(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => is_inside(address),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// Says the same of an address.
pub(super) fn is_inside(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_loopback() || address.is_unspecified() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unspecified() || is_metadata(address),
    }
}

/// `fd00:ec2::/32`, where EC2 has its metadata and EKS its credentials, and addresses of the link.
fn is_metadata(address: Ipv6Addr) -> bool {
    address.segments()[..2] == [0xfd00, 0x0ec2] || address.is_unicast_link_local()
}

/// Says whether an address or a name is this machine's own.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| match address {
            IpAddr::V4(address) => Ipv4Addr::is_loopback(&address),
            IpAddr::V6(address) => Ipv6Addr::is_loopback(&address),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    pub(crate) fn proxy(url: &str) -> Proxy {
        let has_user = url.contains('@');
        Proxy { url: Secret::new(url.to_owned()), has_user, variable: "HTTPS_PROXY" }
    }

    #[test]
    fn metadata_and_this_machine_are_never_called_through_a_proxy() {
        let proxies = Proxies {
            http: Some(proxy("http://proxy:1")),
            https: Some(proxy("http://proxy:1")),
            except: String::new(),
        };
        let routes = Routes::new(proxies);
        for host in [
            "127.0.0.1",
            "127.9.9.9:80",
            "localhost:4566",
            "LOCALHOST",
            "x.localhost",
            "[::1]:80",
            "[::ffff:127.0.0.1]",
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "[fd00:ec2::254]",
            "[fd00:ec2::23]",
            "[fe80::1]",
            "0.0.0.0",
        ] {
            for scheme in ["http", "https"] {
                let uri = format!("{scheme}://{host}/").parse().unwrap();
                assert!(routes.of(&uri).is_none(), "{uri}");
            }
        }
        for host in ["sts.us-east-1.amazonaws.com", "10.0.0.1", "localhost.example.com", "[2001:db8::1]", "169.255.0.1"]
        {
            let uri = format!("https://{host}/").parse().unwrap();
            assert_eq!(routes.of(&uri).unwrap().name(), "proxy:1", "{uri}");
        }
    }

    #[test]
    fn a_metadata_service_elsewhere_is_not_called_through_a_proxy() {
        let proxies = Proxies { http: Some(proxy("http://proxy:1")), https: None, except: String::new() };
        let routes = Routes::new(proxies).direct([Some("http://IMDS.internal:8111/x"), None, Some("no URL")]);
        let way = |uri: &str| routes.of(&uri.parse().unwrap()).map(|way| way.name());
        assert_eq!(way("http://imds.internal:8111/latest/api/token"), None);
        assert_eq!(way("http://other.internal:8111/").as_deref(), Some("proxy:1"));
    }

    #[test]
    fn each_kind_of_url_has_its_proxy_and_some_hosts_have_none() {
        let proxies = Proxies {
            http: None,
            https: Some(proxy("https://ann:pw@proxy:1")),
            except: "eks.us-east-1.amazonaws.com,.internal".to_owned(),
        };
        let routes = Routes::new(proxies);
        let way = |uri: &str| routes.of(&uri.parse().unwrap()).map(|way| way.name());
        assert_eq!(way("https://sts.us-east-1.amazonaws.com").as_deref(), Some("proxy:1"));
        for direct in
            ["http://sts.us-east-1.amazonaws.com", "https://eks.us-east-1.amazonaws.com", "https://a.internal"]
        {
            assert_eq!(way(direct), None);
        }
        let uri = "https://sts.us-east-1.amazonaws.com".parse().unwrap();
        let way = routes.of(&uri).unwrap();
        assert!(matches!(way.refusal(Vec::new()), ProxyError::Refuses { .. }));
        assert!(!format!("{way:?}{}", way.refusal(vec!["NTLM".to_owned()])).contains("pw"));
        let _config = way.config();
    }
}
