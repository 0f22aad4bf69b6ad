//! Signature Version 4, for what no client of the SDK signs: WebSocket upgrades, the bearer token of EKS clusters, and calls of
//! services that have no client here.
//!
//! Time comes in as a parameter: the same input gives the same signature.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4::SigningParams,
};
use aws_smithy_runtime_api::client::{identity::Identity, orchestrator::HttpRequest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, Request};

use super::endpoint::StreamUrl;
use crate::{fault::BoxError, secret::Secret};

/// What a bearer token starts with; `v1Prefix` of aws-iam-authenticator.
const BEARER_TOKEN_PREFIX: &str = "k8s-aws-v1.";

/// `X-Amz-Expires` of a bearer token. STS ignores it; API servers take 0 to 15 minutes.
const BEARER_URL_EXPIRY: Duration = Duration::from_secs(60);

/// Returns the headers that sign a WebSocket upgrade.
///
/// Only the host, the date and the session token are signed, and there is no body, as in session-manager-plugin
/// 1.2.764.0, `websocketutil.go`. A bare `+` in the query counts as a space, while the URL that is dialled keeps it.
///
/// # Errors
/// When the credentials do not fit into headers.
pub(crate) fn upgrade_headers(
    url: &StreamUrl,
    region: &str,
    credentials: &Credentials,
    time: SystemTime,
) -> Result<HeaderMap, BoxError> {
    let path = url.uri().path_and_query().map_or("/", |path| path.as_str());
    let signable = SignableRequest::new(
        "GET",
        format!("https://{}{path}", url.gateway().authority()),
        [("host", url.gateway().authority())].into_iter(),
        SignableBody::empty(),
    )?;
    let identity = Identity::from(credentials.clone());
    let params = SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("ssmmessages")
        .time(time)
        .settings(SigningSettings::default())
        .build()?;
    let (headers, _) = sign(signable, &params.into())?.into_parts().0.into_parts();
    let mut signed = HeaderMap::new();
    for header in headers {
        let mut value = HeaderValue::from_str(header.value())?;
        value.set_sensitive(header.sensitive() || header.name() == "authorization");
        signed.insert(HeaderName::from_static(header.name()), value);
    }
    Ok(signed)
}

/// Signs a call: its host, its headers, the date and the session token, and the body, which is at hand.
///
/// # Errors
/// When the credentials do not fit into headers, or the URL is none.
pub(crate) fn call(
    request: &mut HttpRequest,
    service: &str,
    region: &str,
    credentials: &Credentials,
    time: SystemTime,
) -> Result<(), BoxError> {
    let identity = Identity::from(credentials.clone());
    let params = SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(service)
        .time(time)
        .settings(SigningSettings::default())
        .build()?;
    let signable = SignableRequest::new(
        request.method(),
        request.uri(),
        request.headers().iter(),
        SignableBody::Bytes(request.body().bytes().unwrap_or_default()),
    )?;
    let (headers, _) = sign(signable, &params.into())?.into_parts().0.into_parts();
    for header in headers {
        let mut value = HeaderValue::from_str(header.value())?;
        value.set_sensitive(header.sensitive() || header.name() == "authorization");
        request.headers_mut().try_insert(header.name(), value)?;
    }
    Ok(())
}

/// Returns the bearer token of a cluster: a presigned call of GetCallerIdentity that the API server makes.
///
/// # Errors
/// When the credentials or the name do not fit into a request.
pub(crate) fn bearer_token(
    sts_host: &str,
    region: &str,
    token_name: &str,
    credentials: &Credentials,
    time: SystemTime,
) -> Result<Secret<String>, BoxError> {
    let url = format!("https://{sts_host}/?Action=GetCallerIdentity&Version=2011-06-15");
    let signed = [("x-k8s-aws-id", token_name)];
    let url = presigned(&url, &signed, "sts", region, credentials, time, BEARER_URL_EXPIRY)?;
    Ok(Secret::new(format!("{BEARER_TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(url.expose()))))
}

/// What a tunnel of an EC2 Instance Connect Endpoint is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tunnel<'a> {
    /// The endpoint's id.
    pub(crate) endpoint: &'a str,
    /// The private address that it is to lead to.
    pub(crate) address: &'a str,
    pub(crate) port: u16,
    /// The longest that it may be, in whole seconds.
    pub(crate) life: Duration,
}

/// `X-Amz-Expires` of a tunnel's URL; awscli, `customizations/ec2instanceconnect/opentunnel.py`.
const TUNNEL_URL_EXPIRY: Duration = Duration::from_secs(60);

/// Returns the URL of a tunnel, with scheme https; `authority` is where it is asked for.
///
/// # Errors
/// When the credentials do not fit into a request.
pub(crate) fn tunnel_url(
    authority: &str,
    tunnel: &Tunnel<'_>,
    region: &str,
    credentials: &Credentials,
    time: SystemTime,
) -> Result<Secret<String>, BoxError> {
    let Tunnel { endpoint, address, port, life } = tunnel;
    // An IPv6 address has colons.
    let (address, life) = (address.replace(':', "%3A"), life.as_secs());
    let url = format!(
        "https://{authority}/openTunnel?instanceConnectEndpointId={endpoint}&remotePort={port}&privateIpAddress={address}\
         &maxTunnelDuration={life}"
    );
    presigned(&url, &[], "ec2-instance-connect", region, credentials, time, TUNNEL_URL_EXPIRY)
}

/// Returns a URL with the signature of a GET in its query; of the headers only the host and these are signed.
fn presigned(
    url: &str,
    headers: &[(&str, &str)],
    service: &str,
    region: &str,
    credentials: &Credentials,
    time: SystemTime,
    expires_in: Duration,
) -> Result<Secret<String>, BoxError> {
    let signable = SignableRequest::new("GET", url, headers.iter().copied(), SignableBody::empty())?;
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(expires_in);
    let identity = Identity::from(credentials.clone());
    let params = SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(service)
        .time(time)
        .settings(settings)
        .build()?;
    let (instructions, _) = sign(signable, &params.into())?.into_parts();
    let mut request = Request::get(url).body(())?;
    instructions.apply_to_request_http1x(&mut request);
    Ok(Secret::new(request.uri().to_string()))
}

#[cfg(test)]
mod tests {
    use futures_util::future::FutureExt;

    use super::*;
    use crate::aws::endpoint::{GatewayPolicy, sts_host};

    const SESSION_TOKEN: &str = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQW+/=";
    const STREAM: &str = "wss://ssmmessages.us-east-1.amazonaws.com/v1/data-channel/ann%40example.com-0123456789abcdef0?role=publish_subscribe";

    /// 2026-11-23T20:15:30Z.
    fn time() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_464_930)
    }

    fn credentials(session_token: Option<&str>) -> Credentials {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        Credentials::new("AKIDEXAMPLE", secret, session_token.map(Into::into), None, "test")
    }

    fn upgrade(url: &str, session_token: Option<&str>) -> HeaderMap {
        let policy = GatewayPolicy::new("us-east-1", true, Some("http://127.0.0.1")).now_or_never().unwrap().unwrap();
        upgrade_headers(&policy.check(url).unwrap(), "us-east-1", &credentials(session_token), time()).unwrap()
    }

    /// The expected values are those of botocore 1.43.11: `SigV4Auth(credentials, "ssmmessages", "us-east-1")`
    /// with `add_auth` on a GET of the URL with scheme https, its clock stopped at the time above.
    #[test]
    fn signs_upgrades_as_botocore_does() {
        let scope = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261123/us-east-1/ssmmessages/aws4_request";
        let headers = upgrade(STREAM, None);
        assert_eq!(headers.len(), 2);
        assert_eq!(headers["x-amz-date"], "20261123T201530Z");
        assert_eq!(
            headers["authorization"],
            format!(
                "{scope}, SignedHeaders=host;x-amz-date, Signature=566f61cf56fc731fefc16409ff0b8556cc272ef810f9c4aeb70bafa7158d0909"
            )
        );
        let with_token = |url: &str, signature: &str| {
            let headers = upgrade(url, Some(SESSION_TOKEN));
            assert_eq!(headers.len(), 3);
            assert_eq!(headers["x-amz-security-token"], SESSION_TOKEN);
            assert_eq!(
                headers["authorization"],
                format!("{scope}, SignedHeaders=host;x-amz-date;x-amz-security-token, Signature={signature}"),
                "{url}"
            );
            assert!(headers["authorization"].is_sensitive() && headers["x-amz-security-token"].is_sensitive());
        };
        with_token(STREAM, "eef0973dfcfa167239cc03cdeb29b378c8558f00445651049b18a4623cc93958");
        with_token(
            &format!("{STREAM}&cell-number=AAEAAb%2Bc%2Fd%3D%3D"),
            "4bc8f1c389c19f3a68c9a158feb7e7ecd075829b41bece4af46ebb28df8b8c7f",
        );
        // Made from `cell-number=AAEAAb%20c%2Fd%3D%3D`, as which session-manager-plugin signs this.
        with_token(
            &format!("{STREAM}&cell-number=AAEAAb+c/d=="),
            "cc84434823569df20d931bbe5c69a66cda022f71fc05cf084408fbdb4cf3843a",
        );
    }

    /// The expected values are those of botocore 1.43.11: `SigV4Auth(credentials, "ec2", "us-east-1")` with `add_auth`, its clock
    /// stopped at the time above.
    #[test]
    fn signs_calls_as_botocore_does() {
        for (token, headers, signature) in [
            (None, "", "3cfeef7aefb7da8ae4517c6f787d963d3bb76920418f9fcf65063049c0fc6feb"),
            (
                Some(SESSION_TOKEN),
                ";x-amz-security-token",
                "43745e56260377754ab793ebfaeaee35fa0a32136b0f7ad431e6a345d5aa7b9b",
            ),
        ] {
            let request = Request::post("https://ec2.us-east-1.amazonaws.com/")
                .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
                .header("user-agent", "x")
                .body("Action=DescribeInstances&Version=2016-11-15&MaxResults=100".into());
            let mut request: HttpRequest = request.unwrap().try_into().unwrap();
            call(&mut request, "ec2", "us-east-1", &credentials(token), time()).unwrap();
            assert_eq!(request.headers().get("x-amz-date"), Some("20261123T201530Z"));
            assert_eq!(request.headers().get("x-amz-security-token"), token);
            let expected = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261123/us-east-1/ec2/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date{headers}, Signature={signature}"
            );
            assert_eq!(request.headers().get("authorization"), Some(expected.as_str()));
        }
    }

    #[test]
    fn signs_the_port_where_the_url_has_one() {
        let with = upgrade("ws://127.0.0.1:4000/v1/data-channel/s-1", None);
        let without = upgrade("ws://127.0.0.1/v1/data-channel/s-1", None);
        assert_ne!(with["authorization"], without["authorization"]);
        assert_eq!(with["authorization"], upgrade("ws://127.0.0.1:4000/v1/data-channel/s-1", None)["authorization"]);
    }

    /// The expected value is that of botocore 1.44.8: `SigV4QueryAuth(credentials, "ec2-instance-connect", "us-east-1", 60)` with
    /// `add_auth` on a GET of the URL, its clock stopped at 2026-11-28T01:02:03Z.
    #[test]
    fn signs_tunnels_as_the_aws_cli_does() {
        let host = "eice-0123456789abcdef0.abcd1234.ec2-instance-connect-endpoint.us-east-1.amazonaws.com";
        let life = Duration::from_secs(3600);
        let tunnel = Tunnel { endpoint: "eice-0123456789abcdef0", address: "10.0.1.23", port: 22, life };
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_827_723);
        let url = tunnel_url(host, &tunnel, "us-east-1", &credentials(Some("TOKEN+/=")), time).unwrap();
        let (base, query) = url.expose().split_once('?').unwrap();
        assert_eq!(base, format!("https://{host}/openTunnel"));
        let mut query: Vec<_> = query.split('&').collect();
        query.sort_unstable();
        let expected = [
            "X-Amz-Algorithm=AWS4-HMAC-SHA256",
            "X-Amz-Credential=AKIDEXAMPLE%2F20261128%2Fus-east-1%2Fec2-instance-connect%2Faws4_request",
            "X-Amz-Date=20261128T010203Z",
            "X-Amz-Expires=60",
            "X-Amz-Security-Token=TOKEN%2B%2F%3D",
            "X-Amz-Signature=e69c7a90faadf25ce6561dbe316f96f12b88ca1e5c605fe88973ba426a86caa5",
            "X-Amz-SignedHeaders=host",
            "instanceConnectEndpointId=eice-0123456789abcdef0",
            "maxTunnelDuration=3600",
            "privateIpAddress=10.0.1.23",
            "remotePort=22",
        ];
        assert_eq!(query, expected);
        let v6 = Tunnel { address: "2001:db8::1", ..tunnel };
        let url = tunnel_url(host, &v6, "us-east-1", &credentials(None), time).unwrap();
        assert!(url.expose().contains("&privateIpAddress=2001%3Adb8%3A%3A1&"));
    }

    #[test]
    fn refuses_credentials_that_do_not_fit_into_headers() {
        let policy = GatewayPolicy::new("us-east-1", false, None).now_or_never().unwrap().unwrap();
        let url = policy.check(STREAM).unwrap();
        assert!(upgrade_headers(&url, "us-east-1", &credentials(Some("a\nb")), time()).is_err());
        assert!(bearer_token("sts.us-east-1.amazonaws.com", "us-east-1", "a\nb", &credentials(None), time()).is_err());
    }

    /// The expected values are those of botocore 1.43.11 with the handlers of awscli 1.45.11,
    /// `customizations/eks/get_token.py`, its clock stopped at the time above.
    #[test]
    fn signs_bearer_tokens_as_the_aws_cli_does() {
        let token = Some((
            SESSION_TOKEN,
            "AQoDYXdzEPT%2F%2F%2F%2F%2F%2F%2F%2F%2F%2FwEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQW%2B%2F%3D",
        ));
        for (name, region, host, token, signature) in [
            (
                "prod-eu",
                "eu-west-1",
                "sts.eu-west-1.amazonaws.com",
                None,
                "98559ebe38b803cb37ac9812e84a5696b55348ec9181eb5cd4465b6e7727b742",
            ),
            (
                "no",
                "us-east-1",
                "sts.us-east-1.amazonaws.com",
                token,
                "5af84a0ae794dc064b98535bc28d3443812eda3081b90aadd7f71a0024d9a8ea",
            ),
            (
                "c1",
                "cn-north-1",
                "sts.cn-north-1.amazonaws.com.cn",
                token,
                "034b26567805edf4fdad1500541ef9ea6bf7ba1cfb6a7a53372451d9027dabf6",
            ),
        ] {
            let sts = sts_host(region).now_or_never().unwrap().unwrap();
            let bearer = bearer_token(&sts, region, name, &credentials(token.map(|t| t.0)), time()).unwrap();
            let url = bearer.expose().strip_prefix("k8s-aws-v1.").unwrap();
            let url = String::from_utf8(URL_SAFE_NO_PAD.decode(url).unwrap()).unwrap();
            let (base, query) = url.split_once('?').unwrap();
            assert_eq!(base, format!("https://{host}/"));
            let mut query: Vec<_> = query.split('&').collect();
            query.sort_unstable();
            let mut expected = vec![
                "Action=GetCallerIdentity".to_owned(),
                "Version=2011-06-15".to_owned(),
                "X-Amz-Algorithm=AWS4-HMAC-SHA256".to_owned(),
                format!("X-Amz-Credential=AKIDEXAMPLE%2F20261123%2F{region}%2Fsts%2Faws4_request"),
                "X-Amz-Date=20261123T201530Z".to_owned(),
                "X-Amz-Expires=60".to_owned(),
                "X-Amz-SignedHeaders=host%3Bx-k8s-aws-id".to_owned(),
                format!("X-Amz-Signature={signature}"),
            ];
            expected.extend(token.map(|(_, encoded)| format!("X-Amz-Security-Token={encoded}")));
            expected.sort_unstable();
            assert_eq!(query, expected);
        }
    }
}
