//! The client's certificate, which TLS has verified, or the bearer token, checked as aws-iam-authenticator does.
//!
//! Source: `pkg/token/token.go` of kubernetes-sigs/aws-iam-authenticator; the presigned request is verified
//! here instead of being sent to STS.

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper::{HeaderMap, Uri};

use super::{
    super::{
        clock::parse_basic_date,
        credentials::Caller,
        sigv4::{Signed, claim_of_query, parse_query},
        world::lock,
    },
    Api,
};

const PREFIX: &str = "k8s-aws-v1.";

/// Longest token, in bytes.
const MAX_LEN: usize = 4096;

/// How long a presigned request counts, from its date.
const LIFETIME: Duration = Duration::from_secs(15 * 60);

const PARAMETERS: [&str; 9] = [
    "action",
    "version",
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
];

/// Finds out who sent a request; the error says why nobody did. As in Kubernetes a client's certificate is looked at first.
pub(super) fn authenticate(api: &Api, client: Option<&str>, authorization: &str) -> Result<Caller, String> {
    if let Some(user) = client {
        return Ok(named(api, user));
    }
    if authorization.is_empty() && api.world.config.anonymous_access {
        return Ok(named(api, "system:anonymous"));
    }
    let token = authorization.strip_prefix("Bearer ").ok_or("there is no bearer token")?;
    let caller = verify(api, token)?;
    if !api.cluster.config.access_entry || api.world.settings().no_access_entry {
        return Err(format!("{} has no access entry", caller.arn));
    }
    Ok(caller)
}

fn named(api: &Api, name: &str) -> Caller {
    let name = name.to_owned();
    let account = api.cluster.account.clone();
    Caller {
        account,
        arn: name.clone(),
        user_id: name.clone(),
        session_name: name,
        assumed_role: false,
        access_request: None,
    }
}

fn verify(api: &Api, token: &str) -> Result<Caller, String> {
    if token.len() > MAX_LEN {
        return Err(format!("the token is longer than {MAX_LEN} bytes"));
    }
    let encoded = token.strip_prefix(PREFIX).ok_or("the token does not begin with k8s-aws-v1.")?;
    let url = URL_SAFE_NO_PAD
        .decode(encoded)
        .map_err(|error| format!("the token is not base64url without padding: {error}"))?;
    let url = String::from_utf8(url).map_err(|_| "the token holds no URL")?;
    let uri: Uri = url.parse().map_err(|error| format!("the token holds no URL: {error}"))?;
    if uri.scheme_str() != Some("https") || uri.path() != "/" {
        return Err("the URL is not https or has a path".to_owned());
    }
    let host = uri.host().unwrap_or_default();
    let region = &api.cluster.region;
    let hosts = [
        format!("sts.{region}.amazonaws.com"),
        format!("sts-fips.{region}.amazonaws.com"),
        format!("sts.{region}.api.aws"),
    ];
    if !hosts.iter().any(|known| known == host) || uri.port().is_some() {
        return Err(format!("{host} is not the STS host of {region}"));
    }
    let query = uri.query().unwrap_or_default();
    check_parameters(query)?;
    let claim = claim_of_query(query).map_err(|error| error.to_string())?;
    if claim.service != "sts" || claim.region != *region {
        return Err(format!("the URL is signed for {} in {}", claim.service, claim.region));
    }
    if claim.signed_headers != ["host", "x-k8s-aws-id"] {
        return Err(format!("the URL signs {}", claim.signed_headers.join(";")));
    }
    let now = api.world.clock.wall();
    let date = parse_basic_date(&claim.date).ok_or("the URL has no date")?;
    if date + LIFETIME <= now || date > now + LIFETIME {
        return Err(format!("the URL of {} is out of date", claim.date));
    }
    let name = if api.cluster.config.outpost { &api.cluster.id } else { &api.cluster.config.name };
    let mut headers = HeaderMap::new();
    for (header, value) in [("host", host), ("x-k8s-aws-id", name)] {
        headers.insert(header, value.parse().map_err(|_| "a header is not text")?);
    }
    let signed = Signed { method: "GET", path: "/", query, headers: &headers, body: b"" };
    let credentials = lock(&api.world.credentials);
    credentials.verify_presigned(&claim, &signed, now).map_err(|error| error.to_string())
}

fn check_parameters(query: &str) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for (name, value) in parse_query(query) {
        let name = name.to_ascii_lowercase();
        if !PARAMETERS.contains(&name.as_str()) {
            return Err(format!("the URL has the parameter {name}"));
        }
        let good = match name.as_str() {
            "action" => value == "GetCallerIdentity",
            "version" => value == "2011-06-15",
            "x-amz-expires" => value.parse::<u32>().is_ok_and(|seconds| seconds <= 900),
            _ => true,
        };
        if !good {
            return Err(format!("the URL has {name} {value}"));
        }
        if !seen.insert(name) {
            return Err("the URL has a parameter twice".to_owned());
        }
    }
    for name in ["action", "version", "x-amz-expires"] {
        if !seen.contains(name) {
            return Err(format!("the URL has no {name}"));
        }
    }
    Ok(())
}
