//! Which hosts there are: the one that a bearer token names, and those that a session's WebSocket may go to.
//!
//! A stream URL carries a token that opens the session, so it is dialled only if it leads to the message
//! gateway of the session's own region and partition, or, where the user has pointed SSM somewhere else, to
//! that same place; to this machine only if SSM is on it. Domains come from the SDK's rules, which know every partition.
//! The URL is dialled byte for byte as it was given: its `cell-number` may hold a bare `+`.

use std::net::Ipv6Addr;

use http::{
    Uri,
    uri::{Authority, PathAndQuery},
};

use super::{error::AwsError, routes::is_loopback};
use crate::settings::inputs::shown;

/// Query parameters of which any shows that a URL is signed already; the list of session-manager-plugin,
/// `websocketutil.go`.
const PRESIGNED: [&str; 7] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
];

/// Decides which stream URLs may be dialled.
#[derive(Debug, Clone)]
pub(crate) struct GatewayPolicy {
    region: String,
    /// Domains of the region's partition, without a dot in front.
    domains: Vec<String>,
    /// Whether the user has pointed SSM somewhere else, and to which host.
    moved: Option<Option<String>>,
    /// Where all streams are, whatever the service says.
    through: Option<Gateway>,
}

/// A stream URL that may be dialled.
#[derive(Clone)]
pub(crate) struct StreamUrl {
    uri: Uri,
    gateway: Gateway,
}

/// Where a stream URL leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gateway {
    authority: Authority,
    /// Host without brackets, in lower case.
    host: String,
    port: u16,
    secure: bool,
}

impl std::fmt::Debug for StreamUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamUrl").field("host", &self.gateway.host).finish_non_exhaustive()
    }
}

/// A stream URL that leads to somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// Its host, or what stands for one.
    pub(crate) host: String,
}

impl StreamUrl {
    /// Returns the URL as it was given.
    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Returns where it leads.
    pub(crate) fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Says whether the URL carries a signature of its own.
    pub(crate) fn is_presigned(&self) -> bool {
        let query = self.uri.query().unwrap_or_default();
        query.split('&').any(|pair| {
            let name = pair.split('=').next().unwrap_or_default();
            PRESIGNED.iter().any(|presigned| presigned.eq_ignore_ascii_case(name))
        })
    }
}

impl Gateway {
    /// Returns host and, if it is in the URL, port: what the `Host` header says.
    pub(crate) fn authority(&self) -> &str {
        self.authority.as_str()
    }

    /// Returns the host, without brackets.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Returns the TCP port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Says whether the connection is to be TLS.
    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }
}

impl GatewayPolicy {
    /// Makes the policy of a region.
    ///
    /// # Errors
    /// [`AwsError::InvalidRegion`].
    pub(crate) async fn new(region: &str, moved: bool, endpoint: Option<&str>) -> Result<Self, AwsError> {
        let mut domains = Vec::new();
        for dual_stack in [false, true] {
            // Not every partition has dual-stack names.
            if let Some(host) = ssm_host(region, dual_stack).await
                && let Some(domain) = host.strip_prefix(&format!("ssm.{region}."))
            {
                domains.push(domain.to_owned());
            }
        }
        if domains.is_empty() {
            return Err(AwsError::InvalidRegion { region: region.to_owned() });
        }
        let moved = moved.then(|| {
            let endpoint: Uri = endpoint?.parse().ok()?;
            endpoint.host().and_then(bare)
        });
        Ok(Self { region: region.to_owned(), domains, moved, through: None })
    }

    /// Has all streams dialled at one gateway, which is given as a URL or a host: an interface endpoint that has no private DNS
    /// is reached by its own name only, and the service does not know it.
    ///
    /// # Errors
    /// [`AwsError::NoGateway`] for every host that a stream URL may not lead to either.
    pub(crate) fn through(self, gateway: &str) -> Result<Self, AwsError> {
        let gateway = gateway.trim();
        let url = match gateway.split_once("://") {
            Some(("https" | "wss", rest)) => format!("wss://{rest}"),
            Some(("http" | "ws", rest)) => format!("ws://{rest}"),
            Some(_) => gateway.to_owned(),
            None => format!("wss://{gateway}"),
        };
        let is_bare = |url: &StreamUrl| url.uri.path_and_query().is_none_or(|path| path.as_str() == "/");
        match self.check(&url) {
            Ok(url) if is_bare(&url) => Ok(Self { through: Some(url.gateway), ..self }),
            _ => Err(AwsError::NoGateway { given: shown(gateway), region: self.region }),
        }
    }

    /// Checks a stream URL.
    ///
    /// # Errors
    /// [`Foreign`] for every URL that may not be dialled.
    pub(crate) fn check(&self, url: &str) -> Result<StreamUrl, Foreign> {
        let Ok(uri) = url.parse::<Uri>() else {
            return Err(Foreign { host: "(not a URL)".to_owned() });
        };
        let given = uri.host().unwrap_or_default();
        let foreign = || Err(Foreign { host: bare(given).unwrap_or_else(|| given.to_owned()) });
        let secure = match uri.scheme_str() {
            Some("wss") => true,
            Some("ws") => false,
            _ => return foreign(),
        };
        let Some(authority) = uri.authority() else {
            return foreign();
        };
        let Some(host) = bare(given) else {
            return foreign();
        };
        // A user name in front of the host only serves to deceive.
        if host.is_empty() || authority.as_str().contains('@') {
            return foreign();
        }
        let Some(port) = port(authority, if secure { 443 } else { 80 }) else {
            return foreign();
        };
        let allowed = if self.is_gateway(&host) { secure && port == 443 } else { self.is_moved_to(&host, secure) };
        if !allowed {
            return foreign();
        }
        let gateway = Gateway { authority: authority.clone(), host, port, secure };
        self.redirected(StreamUrl { uri, gateway })
    }

    /// Checks the name of an EC2 Instance Connect Endpoint, which EC2 has told: it is below
    /// `ec2-instance-connect-endpoint.<region>.<domain>`. Where the user has pointed EC2 to this machine, it may be on it too,
    /// with a port, and then without TLS.
    ///
    /// # Errors
    /// [`Foreign`] for every name that may not be dialled.
    pub(crate) fn check_tunnel(&self, name: &str, ec2: Option<&str>) -> Result<Gateway, Foreign> {
        let foreign = || Foreign { host: name.to_owned() };
        let authority: Authority = name.parse().map_err(|_| foreign())?;
        let host = bare(authority.host()).filter(|host| !host.is_empty() && !name.contains('@')).ok_or_else(foreign)?;
        let is_endpoint = self.domains.iter().any(|domain| {
            let end = format!(".ec2-instance-connect-endpoint.{}.{domain}", self.region);
            host.strip_suffix(&end).is_some_and(|start| start.split('.').all(|label| !label.is_empty()))
        });
        if is_endpoint {
            return match port(&authority, 443) {
                Some(port @ 443) => Ok(Gateway { authority, host, port, secure: true }),
                _ => Err(foreign()),
            };
        }
        let ec2 = ec2.and_then(|url| url.parse::<Uri>().ok()).and_then(|url| url.host().and_then(bare));
        match port(&authority, 80) {
            Some(port) if ec2.is_some_and(|ec2| is_loopback(&ec2)) && is_loopback(&host) => {
                Ok(Gateway { authority, host, port, secure: false })
            }
            _ => Err(foreign()),
        }
    }

    /// Puts the gateway that is to be used into a URL, and leaves the rest as it is to the byte.
    fn redirected(&self, url: StreamUrl) -> Result<StreamUrl, Foreign> {
        let Some(gateway) = self.through.clone() else { return Ok(url) };
        let path = url.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let uri = Uri::builder()
            .scheme(if gateway.secure { "wss" } else { "ws" })
            .authority(gateway.authority.clone())
            .path_and_query(path)
            .build()
            .map_err(|_| Foreign { host: gateway.host.clone() })?;
        Ok(StreamUrl { uri, gateway })
    }

    /// Returns the gateway that sessions of the region have, as far as that can be known beforehand.
    pub(crate) fn usual(&self) -> Option<Gateway> {
        if let Some(gateway) = &self.through {
            return Some(gateway.clone());
        }
        let domain = self.domains.first().filter(|_| self.moved.is_none())?;
        let url = self.check(&format!("wss://ssmmessages.{}.{domain}/", self.region));
        url.ok().map(|url| url.gateway)
    }

    /// Says whether a host is the region's message gateway: `ssmmessages.<region>.<domain>`, one of its
    /// variants (`ssmmessages-fips`), or a name that leads to it, such as that of a VPC endpoint
    /// (`vpce-0….ssmmessages.<region>.vpce.<domain>`).
    fn is_gateway(&self, host: &str) -> bool {
        self.domains.iter().any(|domain| {
            let Some(name) = host.strip_suffix(domain).and_then(|name| name.strip_suffix('.')) else {
                return false;
            };
            let mut labels: Vec<_> = name.split('.').collect();
            if labels.iter().any(|label| label.is_empty()) {
                return false;
            }
            labels.pop_if(|label| *label == "vpce");
            let region = labels.pop();
            let service = labels.pop().unwrap_or_default();
            region == Some(&self.region) && (service == "ssmmessages" || service.starts_with("ssmmessages-"))
        })
    }

    /// Says whether the user has pointed SSM to this host, or to somewhere that this host may stand for.
    fn is_moved_to(&self, host: &str, secure: bool) -> bool {
        let Some(moved) = &self.moved else {
            return false;
        };
        let moved = moved.as_deref().unwrap_or_default();
        if is_loopback(moved) { is_loopback(host) } else { secure && moved == host }
    }
}

/// Reads the port of an authority without a user name; `None` if what follows the host is no port.
///
/// `Authority::port` takes a number that is out of range for no port at all.
pub(crate) fn port(authority: &Authority, default: u16) -> Option<u16> {
    let rest = authority.as_str().strip_prefix(authority.host())?;
    if rest.is_empty() {
        return Some(default);
    }
    let digits = rest.strip_prefix(':').filter(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|port| *port != 0)
}

/// Brings a host to the form in which hosts are compared: without brackets, in lower case. `None` if it is
/// neither a name nor an address; the parser of URLs takes brackets around and within anything.
fn bare(host: &str) -> Option<String> {
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    };
    is_host.then(|| host.trim_matches(['[', ']']).to_ascii_lowercase())
}

async fn ssm_host(region: &str, dual_stack: bool) -> Option<String> {
    use aws_sdk_ssm::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
    let params = Params::builder().region(region).use_fips(false).use_dual_stack(dual_stack).build().ok()?;
    let endpoint = DefaultResolver::new().resolve_endpoint(&params).await.ok()?;
    Some(endpoint.url().strip_prefix("https://")?.trim_end_matches('/').to_owned())
}

/// Returns the host of the region's STS.
///
/// An endpoint override has no say: it is the API server that calls this host, and it takes no other.
///
/// # Errors
/// [`AwsError::InvalidRegion`].
pub(crate) async fn sts_host(region: &str) -> Result<String, AwsError> {
    use aws_sdk_sts::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
    let invalid = || AwsError::InvalidRegion { region: region.to_owned() };
    let params = Params::builder()
        .region(region)
        .use_fips(false)
        .use_dual_stack(false)
        .use_global_endpoint(false)
        .build()
        .map_err(|_| invalid())?;
    let endpoint = DefaultResolver::new().resolve_endpoint(&params).await.map_err(|_| invalid())?;
    let host = endpoint.url().strip_prefix("https://").ok_or_else(invalid)?;
    Ok(host.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now<F: Future>(future: F) -> F::Output {
        futures_util::future::FutureExt::now_or_never(future).unwrap()
    }

    fn policy(region: &str, moved: Option<&str>) -> GatewayPolicy {
        now(GatewayPolicy::new(region, moved.is_some(), moved)).unwrap()
    }

    #[test]
    fn takes_endpoints_of_the_region_and_what_stands_for_them() {
        let id = "eice-0123456789abcdef0.abcd1234.ec2-instance-connect-endpoint";
        let policy = policy("us-east-1", None);
        let own = format!("{id}.us-east-1.amazonaws.com");
        let gateway = policy.check_tunnel(&own, None).unwrap();
        assert_eq!((gateway.authority(), gateway.port(), gateway.is_secure()), (own.as_str(), 443, true));
        let local = policy.check_tunnel("127.0.0.1:4022", Some("http://127.0.0.1:4000")).unwrap();
        assert_eq!((local.host(), local.port(), local.is_secure()), ("127.0.0.1", 4022, false));
        for (name, ec2) in [
            (format!("{id}.us-east-2.amazonaws.com"), None),
            (format!("{id}.us-east-1.amazonaws.com.evil.example"), None),
            (format!("{id}.us-east-1.amazonaws.com:22"), None),
            (format!("ann@{own}"), None),
            ("ec2-instance-connect-endpoint.us-east-1.amazonaws.com".to_owned(), None),
            (".ec2-instance-connect-endpoint.us-east-1.amazonaws.com".to_owned(), None),
            (String::new(), None),
            ("127.0.0.1:4022".to_owned(), None),
            ("127.0.0.1:4022".to_owned(), Some("https://ec2.internal")),
            ("10.0.0.1:4022".to_owned(), Some("http://127.0.0.1:4000")),
        ] {
            assert!(policy.check_tunnel(&name, ec2).is_err(), "{name} {ec2:?}");
        }
    }

    #[test]
    fn takes_the_gateway_of_the_region() {
        for (region, host) in [
            ("us-east-1", "ssmmessages.us-east-1.amazonaws.com"),
            ("us-east-1", "SSMMessages.us-east-1.AmazonAWS.com"),
            ("us-east-1", "ssmmessages.us-east-1.api.aws"),
            ("us-east-1", "ssmmessages-fips.us-east-1.amazonaws.com"),
            ("us-east-1", "vpce-0a1b2c3d4e5f60718-abcdefgh.ssmmessages.us-east-1.vpce.amazonaws.com"),
            ("us-east-1", "vpce-0a1b-abcd-us-east-1a.ssmmessages.us-east-1.vpce.amazonaws.com"),
            ("us-gov-west-1", "ssmmessages.us-gov-west-1.amazonaws.com"),
            ("cn-north-1", "ssmmessages.cn-north-1.amazonaws.com.cn"),
            ("cn-north-1", "ssmmessages.cn-north-1.api.amazonwebservices.com.cn"),
            ("us-iso-east-1", "ssmmessages.us-iso-east-1.c2s.ic.gov"),
            ("us-isob-east-1", "ssmmessages.us-isob-east-1.sc2s.sgov.gov"),
            ("eusc-de-east-1", "ssmmessages.eusc-de-east-1.amazonaws.eu"),
        ] {
            let url = format!("wss://{host}/v1/data-channel/s-1?role=publish_subscribe");
            let checked = policy(region, None).check(&url).unwrap();
            let gateway = checked.gateway();
            assert_eq!(gateway.host(), host.to_lowercase());
            assert_eq!((gateway.port(), gateway.is_secure(), checked.is_presigned()), (443, true, false));
        }
        let explicit = policy("us-east-1", None).check("wss://ssmmessages.us-east-1.amazonaws.com:443/x").unwrap();
        assert_eq!(explicit.gateway().authority(), "ssmmessages.us-east-1.amazonaws.com:443");
    }

    #[test]
    fn knows_the_usual_gateway_unless_the_user_has_moved_it() {
        for (region, host) in [
            ("us-east-1", "ssmmessages.us-east-1.amazonaws.com"),
            ("cn-north-1", "ssmmessages.cn-north-1.amazonaws.com.cn"),
            ("eusc-de-east-1", "ssmmessages.eusc-de-east-1.amazonaws.eu"),
        ] {
            let url = policy(region, None).check(&format!("wss://{host}/v1/data-channel/s-1")).unwrap();
            assert_eq!(policy(region, None).usual().as_ref(), Some(url.gateway()));
        }
        assert_eq!(policy("us-east-1", Some("https://ssm.example")).usual(), None);
    }

    #[test]
    fn refuses_everything_else() {
        for (url, host) in [
            ("wss://ssmmessages.us-east-1.amazonaws.com.evil.com/", "ssmmessages.us-east-1.amazonaws.com.evil.com"),
            ("wss://evil.com/ssmmessages.us-east-1.amazonaws.com", "evil.com"),
            ("wss://evil.com#ssmmessages.us-east-1.amazonaws.com", "evil.com"),
            ("wss://evil.com?ssmmessages.us-east-1.amazonaws.com", "evil.com"),
            ("wss://ssmmessages.us-east-1.amazonaws.com@evil.com/", "evil.com"),
            ("wss://user@ssmmessages.us-east-1.amazonaws.com/", "ssmmessages.us-east-1.amazonaws.com"),
            ("wss://user:pw@ssmmessages.us-east-1.amazonaws.com/", "ssmmessages.us-east-1.amazonaws.com"),
            ("wss://ssmmessages.us-east-1.amazonaws.com./", "ssmmessages.us-east-1.amazonaws.com."),
            ("wss://ssmmessages.us-east-1.amazonaws.com:8443/", "ssmmessages.us-east-1.amazonaws.com"),
            ("wss://ssmmessages.us-east-1.amazonaws.com:/", "ssmmessages.us-east-1.amazonaws.com"),
            ("wss://ssmmessages.us-east-1.amazonaws.com:0/", "ssmmessages.us-east-1.amazonaws.com"),
            ("wss://ssmmessages.us-east-1.amazonaws.com:65979/", "ssmmessages.us-east-1.amazonaws.com"),
            ("wss://ssmmessages.us-east-1.amazonaws.com:+443/", "ssmmessages.us-east-1.amazonaws.com"),
            ("ws://ssmmessages.us-east-1.amazonaws.com/", "ssmmessages.us-east-1.amazonaws.com"),
            ("https://ssmmessages.us-east-1.amazonaws.com/", "ssmmessages.us-east-1.amazonaws.com"),
            ("wss://ssmmessages.us-east-2.amazonaws.com/", "ssmmessages.us-east-2.amazonaws.com"),
            ("wss://ssmmessages.us-east-1.amazonaws.com.cn/", "ssmmessages.us-east-1.amazonaws.com.cn"),
            (
                "wss://ssmmessages.us-east-1.amazonaws.com.us-east-1.amazonaws.com/",
                "ssmmessages.us-east-1.amazonaws.com.us-east-1.amazonaws.com",
            ),
            ("wss://ssmmessages.us-east-1.evilamazonaws.com/", "ssmmessages.us-east-1.evilamazonaws.com"),
            ("wss://xssmmessages.us-east-1.amazonaws.com/", "xssmmessages.us-east-1.amazonaws.com"),
            ("wss://ssmmessagesx.us-east-1.amazonaws.com/", "ssmmessagesx.us-east-1.amazonaws.com"),
            ("wss://ssmmessages.evil.us-east-1.amazonaws.com/", "ssmmessages.evil.us-east-1.amazonaws.com"),
            ("wss://ssmmessages.us-east-1.elb.amazonaws.com/", "ssmmessages.us-east-1.elb.amazonaws.com"),
            ("wss://ssmmessages..us-east-1.amazonaws.com/", "ssmmessages..us-east-1.amazonaws.com"),
            ("wss://.ssmmessages.us-east-1.amazonaws.com/", ".ssmmessages.us-east-1.amazonaws.com"),
            ("wss://us-east-1.amazonaws.com/", "us-east-1.amazonaws.com"),
            ("wss://amazonaws.com/", "amazonaws.com"),
            ("wss://127.0.0.1/", "127.0.0.1"),
            ("wss://[::1]/", "::1"),
            ("ws://localhost:8080/", "localhost"),
            ("ssmmessages.us-east-1.amazonaws.com", "ssmmessages.us-east-1.amazonaws.com"),
            ("/v1/data-channel", ""),
            ("", "(not a URL)"),
            ("wss://ssmmessages.us-east-1.amazonaws.com/ x", "(not a URL)"),
            ("wss://ssmmessages.us-east-1.amazonaws.com\\@evil.com/", "(not a URL)"),
        ] {
            assert_eq!(policy("us-east-1", None).check(url).unwrap_err().host, host, "{url}");
        }
    }

    #[test]
    fn an_override_admits_its_own_host_and_this_machine_only_if_it_is_on_it() {
        for endpoint in
            ["http://127.0.0.1:4566", "http://localhost:4566", "http://[::1]:4566", "http://user:pw@127.0.0.9"]
        {
            let here = policy("us-east-1", Some(endpoint));
            for url in ["ws://127.0.0.1:4000/v1", "ws://127.8.9.1/v1", "wss://[::1]:4000/v1", "ws://localhost:1/v1"] {
                here.check(url).unwrap();
            }
            assert!(here.check("wss://ssm.corp.example/v1").is_err());
        }
        let moved = policy("us-east-1", Some("https://SSM.corp.example:8443/x"));
        for url in ["wss://ssm.corp.example:9000/v1", "wss://ssmmessages.us-east-1.amazonaws.com/v1"] {
            moved.check(url).unwrap();
        }
        for url in ["ws://127.0.0.1:4000/v1", "wss://127.0.0.1/v1", "wss://[::1]:4000/v1", "ws://localhost:1/v1"] {
            assert!(moved.check(url).is_err(), "{url}");
        }
        for url in [
            "ws://ssm.corp.example/v1",
            "ws://user@127.0.0.1/v1",
            "ws://127.0.0.1.evil.com/v1",
            "ws://127.1/v1",
            "ws://0x7f000001/v1",
            "ws://2130706433/v1",
            "ws://0.0.0.0/v1",
            "ws://[::]/v1",
            "ws://[::ffff:127.0.0.1]/v1",
            "ws://[localhost]/v1",
            "ws://[127.0.0.1]/v1",
            "wss://[ssm.corp.example]/v1",
            "wss://[ssmmessages.us-east-1.amazonaws.com]/v1",
            "wss://[x].ssmmessages.us-east-1.amazonaws.com/v1",
            "wss://x*.ssmmessages.us-east-1.amazonaws.com/v1",
            "ws://169.254.169.254/v1",
            "ws://localhost.evil.com/v1",
            "wss://messages.corp.example/v1",
            "http://127.0.0.1/v1",
            "ws://ssmmessages.us-east-1.amazonaws.com/v1",
        ] {
            assert!(moved.check(url).is_err(), "{url}");
        }
        assert!(policy("us-east-1", Some("not a url")).check("ws://127.0.0.1:1/").is_err());
        let unnamed = now(GatewayPolicy::new("us-east-1", true, None)).unwrap();
        assert!(unnamed.check("ws://127.0.0.1:1/").is_err());
        assert!(unnamed.check("wss:///v1").is_err());
    }

    #[test]
    fn streams_go_through_the_gateway_that_was_named_if_it_is_one() {
        let own = "vpce-0a1b2c3d4e5f60718-abcdefgh.ssmmessages.us-east-1.vpce.amazonaws.com";
        let given =
            "wss://ssmmessages.us-east-1.amazonaws.com/v1/data-channel/s-1?role=publish_subscribe&cell-number=A+B/=";
        for gateway in [own.to_owned(), format!("https://{own}"), format!("wss://{own}/"), format!(" {own}:443")] {
            let policy = policy("us-east-1", None).through(&gateway).unwrap();
            let url = policy.check(given).unwrap();
            let port = if gateway.ends_with(":443") { ":443" } else { "" };
            assert_eq!(
                url.uri().to_string(),
                format!("wss://{own}{port}/v1/data-channel/s-1?role=publish_subscribe&cell-number=A+B/=")
            );
            assert_eq!((url.gateway().host(), url.gateway().port()), (own, 443));
            assert_eq!(policy.usual().as_ref(), Some(url.gateway()));
            assert!(policy.check("wss://evil.com/x").is_err());
        }
        for gateway in [
            "https://evil.com",
            "https://ann:hunter2@ssmmessages.us-east-1.amazonaws.com",
            "https://ssmmessages.us-east-2.amazonaws.com",
            "https://ssmmessages.us-east-1.amazonaws.com/path",
            "http://ssmmessages.us-east-1.amazonaws.com",
            "ftp://ssmmessages.us-east-1.amazonaws.com",
            "http://127.0.0.1:1",
            "",
        ] {
            let error = policy("us-east-1", None).through(gateway).unwrap_err();
            assert!(matches!(&error, AwsError::NoGateway { .. }), "{gateway}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        policy("us-east-1", Some("http://127.0.0.1:1")).through("http://127.0.0.1:2").unwrap();
    }

    #[test]
    fn sees_signatures_in_the_url() {
        let presigned = |query: &str| {
            let url = format!("wss://ssmmessages.us-east-1.amazonaws.com/v1?{query}");
            policy("us-east-1", None).check(&url).unwrap().is_presigned()
        };
        assert!(!presigned("role=publish_subscribe&cell-number=AAEA+X-Amz-Date="));
        assert!(presigned("role=publish_subscribe&X-Amz-Signature=00"));
        assert!(presigned("x-amz-date=1"));
        assert!(presigned("X-Amz-Security-Token"));
    }

    #[test]
    fn knows_the_sts_host_of_every_partition() {
        for (region, host) in [
            ("us-east-1", "sts.us-east-1.amazonaws.com"),
            ("eu-central-2", "sts.eu-central-2.amazonaws.com"),
            ("us-gov-east-1", "sts.us-gov-east-1.amazonaws.com"),
            ("cn-north-1", "sts.cn-north-1.amazonaws.com.cn"),
            ("us-iso-east-1", "sts.us-iso-east-1.c2s.ic.gov"),
            ("us-isob-east-1", "sts.us-isob-east-1.sc2s.sgov.gov"),
            ("eusc-de-east-1", "sts.eusc-de-east-1.amazonaws.eu"),
        ] {
            assert_eq!(now(sts_host(region)).unwrap(), host);
        }
        for region in ["", "us east", "us-east-1.evil.com/", "a/b"] {
            assert!(matches!(now(sts_host(region)), Err(AwsError::InvalidRegion { .. })), "{region}");
            assert!(now(GatewayPolicy::new(region, false, None)).is_err(), "{region}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(url in ".{0,80}") {
            let _outcome = policy("us-east-1", Some("https://h")).check(&url);
        }

        /// However the parts of a good URL are put together, the host that is dialled ends as it must.
        #[test]
        fn only_admits_hosts_of_the_domain(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("ssmmessages"), Just("us-east-1"), Just("amazonaws.com"), Just("api.aws"), Just("vpce"), Just("."),
                    Just("."), Just("@"), Just(":"), Just("/"), Just("?"), Just("#"), Just("evil.com"), Just("443"), Just("%2e"), Just("-"),
                ],
                1..9,
            )
        ) {
            let url = format!("wss://{}", parts.concat());
            if let Ok(checked) = policy("us-east-1", None).check(&url) {
                let host = checked.uri().host().unwrap();
                prop_assert!(
                    [".us-east-1.amazonaws.com", ".us-east-1.vpce.amazonaws.com", ".us-east-1.api.aws", ".us-east-1.vpce.api.aws"]
                        .iter().any(|end| host.ends_with(end)), "{}", url);
                prop_assert_eq!(checked.gateway().port(), 443);
            }
        }
    }
}
