//! What has to hold for any stream URL: the body of the fuzz target `stream_url`.
//!
//! Built for the fuzzer and for unit tests only.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::LazyLock,
};

use futures_util::future::FutureExt;
use http::Uri;

use super::endpoint::GatewayPolicy;

/// Regions, one of each partition, with the domains that message gateways have there. Written out, so that the
/// policy is not compared with the rules that it is made of.
const REGIONS: [(&str, &[&str]); 5] = [
    ("us-east-1", &["amazonaws.com", "api.aws"]),
    ("cn-north-1", &["amazonaws.com.cn", "api.amazonwebservices.com.cn"]),
    ("us-gov-west-1", &["amazonaws.com", "api.aws"]),
    ("us-iso-east-1", &["c2s.ic.gov", "api.aws.ic.gov"]),
    ("eusc-de-east-1", &["amazonaws.eu", "api.amazonwebservices.eu"]),
];

/// Where the user may have pointed SSM.
const ENDPOINTS: [Option<&str>; 4] =
    [None, Some("https://ssm.corp.example:8443/x"), Some("http://127.0.0.1:4000"), Some("not a url")];

/// A policy, the domains of its region, and the endpoint that replaces them, if any.
type Case = (GatewayPolicy, &'static str, &'static [&'static str], Option<&'static str>);

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let mut cases = Vec::new();
    for endpoint in ENDPOINTS {
        for (region, domains) in REGIONS {
            let policy = GatewayPolicy::new(region, endpoint.is_some(), endpoint).now_or_never();
            let policy = policy.and_then(Result::ok).expect("the region has endpoints, and finding them never waits");
            cases.push((policy, region, domains, endpoint));
        }
    }
    cases
});

/// Checks a URL, whose policy the first byte chooses. One that is admitted leads where it may, by every reading
/// of it.
pub fn stream_url(data: &[u8]) {
    let Some((&choice, url)) = data.split_first() else { return };
    let Ok(url) = std::str::from_utf8(url) else { return };
    let (policy, region, domains, endpoint) = &CASES[usize::from(choice) % CASES.len()];
    let Ok(checked) = policy.check(url) else { return };

    // One host for name resolution, certificate, request and signature.
    let gateway = checked.gateway();
    let host = gateway.host();
    let uri = checked.uri();
    assert_eq!(uri.host().map(|host| host.trim_matches(['[', ']']).to_ascii_lowercase()).as_deref(), Some(host));
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let is_name = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    assert!(is_name || host.parse::<Ipv6Addr>().is_ok(), "{host}");
    let port = uri.port_u16();
    assert_eq!(port.unwrap_or(if gateway.is_secure() { 443 } else { 80 }), gateway.port());
    let with_port = format!("{bracketed}:{}", gateway.port());
    let authority = gateway.authority().to_ascii_lowercase();
    assert!(
        if port.is_none() { authority == bracketed } else { is_same_authority(&authority, &with_port) },
        "{authority}"
    );
    assert_eq!(uri.authority().map(|authority| authority.as_str()), Some(gateway.authority()));
    assert_eq!(uri.scheme_str(), Some(if gateway.is_secure() { "wss" } else { "ws" }));
    // Nothing that ends a line of a request, or a name.
    assert!(gateway.authority().bytes().all(|byte| byte.is_ascii_graphic() && !b"@/\\?#%".contains(&byte)));
    assert!(uri.path_and_query().is_none_or(|path| path.as_str().bytes().all(|byte| byte > b' ' && byte != 0x7f)));

    // What is dialled reads the same once more.
    let again = policy.check(&uri.to_string()).expect("an admitted URL stays admitted");
    assert_eq!(again.gateway(), gateway);
    assert_eq!(again.is_presigned(), checked.is_presigned());

    let is_gateway = domains.iter().any(|domain| is_gateway(host, region, domain));
    if is_gateway {
        assert!(gateway.is_secure() && gateway.port() == 443);
        return;
    }
    let endpoint = endpoint.expect("without an override, only the gateway is admitted");
    let is_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let is_endpoint = endpoint.parse::<Uri>().is_ok_and(|uri| uri.host() == Some(host));
    let is_here = is_loopback && endpoint.starts_with("http://127.0.0.1");
    assert!(
        is_here || (gateway.is_secure() && is_endpoint),
        "{host} is neither the endpoint nor beside it on this machine"
    );
}

/// Leading zeros are allowed in a port.
fn is_same_authority(authority: &str, with_port: &str) -> bool {
    let parts = |text: &str| text.rsplit_once(':').map(|(host, port)| (host.to_owned(), port.parse::<u16>().ok()));
    parts(authority) == parts(with_port)
}

fn is_gateway(host: &str, region: &str, domain: &str) -> bool {
    let Some(labels) = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.')) else { return false };
    let labels = labels.strip_suffix(".vpce").unwrap_or(labels);
    let Some(labels) = labels.strip_suffix(region).and_then(|rest| rest.strip_suffix('.')) else { return false };
    let service = labels.rsplit('.').next().unwrap_or_default();
    service.split('-').next() == Some("ssmmessages") && labels.split('.').all(|label| !label.is_empty())
}
