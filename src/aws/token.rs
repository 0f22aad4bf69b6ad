//! Web identity tokens: JSON Web Tokens that STS exchanges for credentials.
//!
//! A source is asked afresh for every exchange: files are rewritten in place, and tokens of CI jobs live for
//! five minutes. The token is checked as far as its form tells, so that a wrong file is named before STS
//! answers in riddles; its signature is the business of STS.

use std::{path::PathBuf, sync::Arc, time::Duration};

use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_types::{body::SdkBody, byte_stream::ByteStream};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderValue, Method, Request, header};
use tokio::{process::Command, time::timeout};

use super::{
    error::{AwsError, Cause, TokenOrigin},
    program,
};
use crate::{
    secret::Secret,
    settings::{CiOidc, CiSystem, TokenFrom},
    util::{peer_text::sentence, read::read_text},
};

/// Returns the audience that AWS identity providers are set up with in a partition.
pub(super) fn usual_audience(partition: &str) -> &'static str {
    if partition == "aws-cn" { "sts.amazonaws.com.cn" } else { "sts.amazonaws.com" }
}

/// How long a token may have been expired before it is not even tried, in seconds: by a time that AWS has told, and by
/// that of this machine alone, whose clock may be wrong. What is tried is judged by STS.
const CLOCK_LEEWAY: u64 = 60;
const BLIND_LEEWAY: u64 = 24 * 3600;

/// Largest token that STS takes, in characters.
const MAX_TOKEN_LEN: usize = 20_000;

/// Largest file that is read for a token, in bytes.
const MAX_FILE_LEN: u64 = 64 << 10;

/// Largest answer that is read from a token endpoint, in bytes.
const MAX_ANSWER_LEN: usize = 64 << 10;

/// Attempts at a token endpoint, and the pause between two.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// How long a program of a CI system may take. It asks its system for the token.
const PROGRAM_LIMIT: Duration = Duration::from_secs(30);

/// Where web identity tokens come from.
#[derive(Debug)]
pub(super) enum TokenSource {
    /// A file that somebody else keeps up to date.
    File(PathBuf),
    /// What the CI system offers its jobs.
    CiJob {
        /// Where the job gets it.
        oidc: CiOidc,
        /// Whom the token is to be for.
        audience: String,
        http: Arc<dyn HttpConnector>,
    },
}

/// Why a CI system's endpoint gave no token.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndpointError {
    #[error("the URL or the token of the endpoint cannot be used")]
    Request(#[source] Cause),
    #[error("the endpoint cannot be reached")]
    Unreachable(#[source] Cause),
    #[error("the endpoint answered with HTTP status {0}")]
    Status(u16),
    #[error("the endpoint's answer has no `{0}`")]
    NoValue(&'static str),
    #[error("{0}")]
    Nowhere(String),
    #[error("`{program}` {what}")]
    Program { program: &'static str, what: String },
}

impl TokenSource {
    pub(super) fn origin(&self) -> TokenOrigin {
        match self {
            Self::File(path) => TokenOrigin::File(path.clone()),
            Self::CiJob { oidc, .. } => TokenOrigin::CiJob { name: oidc.to_string(), renews: oidc.renews() },
        }
    }

    /// Asks for a token, and checks its form and its end against `now`, the time since the Unix epoch. `is_certain`: that is
    /// the time of AWS.
    pub(super) async fn token(&self, now: Duration, is_certain: bool) -> Result<Secret<String>, AwsError> {
        let token = match self {
            Self::File(path) => {
                let text = read_file(path.clone())
                    .await
                    .map_err(|source| AwsError::TokenFile { path: path.clone(), source })?;
                Secret::new(text.expose().trim().to_owned())
            }
            Self::CiJob { oidc, audience, http } => of_job(oidc, audience, http)
                .await
                .map_err(|error| AwsError::TokenEndpoint { system: oidc.system, source: Arc::new(error) })?,
        };
        let leeway = if is_certain { CLOCK_LEEWAY } else { BLIND_LEEWAY };
        check(self.origin(), token.expose(), now, leeway)?;
        Ok(token)
    }
}

/// Reads a file that a token is in, and blanks. Anything may be there, and must not keep the others waiting.
async fn read_file(path: PathBuf) -> Result<Secret<String>, Cause> {
    let text = tokio::task::spawn_blocking(move || read_text(&path, MAX_FILE_LEN)).await;
    let text = text.map_err(|error| -> Cause { Arc::new(error) })?;
    text.map(Secret::new).map_err(|error| -> Cause { Arc::new(error) })
}

/// A token whose own words say that it is over.
#[derive(Debug, thiserror::Error)]
#[error("its `exp` was {seconds} s ago")]
struct PastExp {
    seconds: u64,
}

fn check(origin: TokenOrigin, token: &str, now: Duration, leeway: u64) -> Result<(), AwsError> {
    let malformed = |reason| AwsError::TokenMalformed { origin: origin.clone(), reason };
    if token.is_empty() {
        return Err(malformed("it is empty"));
    }
    let parts: Vec<_> = token.split('.').collect();
    let [_, claims, _] = parts[..] else {
        return Err(malformed("it does not have three parts separated by dots"));
    };
    let base64url = |part: &&str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'='))
    };
    if !parts.iter().all(base64url) {
        return Err(malformed("its parts are not all base64url"));
    }
    if token.len() > MAX_TOKEN_LEN {
        return Err(malformed("it is longer than STS takes (20000 characters)"));
    }
    match end(claims) {
        Some(end) if end.saturating_add(leeway) < now.as_secs() => {
            let source = Arc::new(PastExp { seconds: now.as_secs() - end });
            Err(AwsError::TokenExpired { origin, source })
        }
        _ => Ok(()),
    }
}

/// Reads the `exp` claim, in seconds since the Unix epoch; `None` if it cannot be read.
fn end(claims: &str) -> Option<u64> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let claims = GeneralPurpose::new(&alphabet::URL_SAFE, config).decode(claims).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let end = claims.get("exp")?;
    // JSON has one kind of number: some issuers write a fraction.
    end.as_u64().or_else(|| end.as_f64().filter(|end| *end >= 0.0).map(|end| end as u64))
}

/// Gets the token of a CI job, for an audience where that can be chosen.
async fn of_job(oidc: &CiOidc, audience: &str, http: &Arc<dyn HttpConnector>) -> Result<Secret<String>, EndpointError> {
    match &oidc.from {
        TokenFrom::Variable { token, .. } => Ok(token.clone()),
        TokenFrom::Nowhere(reason) => Err(EndpointError::Nowhere(reason.clone())),
        TokenFrom::Program(program) => {
            let mut command = Command::new(program);
            match oidc.system {
                CiSystem::CircleCi => {
                    let claims = serde_json::json!({ "aud": audience }).to_string();
                    command.args(["run", "oidc", "get", "--claims", &claims]);
                }
                CiSystem::Buildkite
                | CiSystem::GitHub
                | CiSystem::GitLab
                | CiSystem::Bitbucket
                | CiSystem::AzureDevOps
                | CiSystem::Other => {
                    command.args(["oidc", "request-token", "--audience", audience]);
                }
            }
            let output = timeout(PROGRAM_LIMIT, program::output(command)).await;
            let late = || format!("gave no token within {} s", PROGRAM_LIMIT.as_secs());
            let output = output.unwrap_or_else(|_| Err(late()));
            let failed = |what| EndpointError::Program { program, what };
            let output = output.map_err(failed)?;
            let token = std::str::from_utf8(output.expose()).map_err(|_| failed("gave no text".to_owned()))?;
            Ok(Secret::new(token.trim().to_owned()))
        }
        TokenFrom::Endpoint { url, token } => {
            let (method, query, key) = match oidc.system {
                // Its audience is always `api://AzureADTokenExchange`.
                CiSystem::AzureDevOps => (Method::POST, "api-version=7.1".to_owned(), "oidcToken"),
                CiSystem::GitHub
                | CiSystem::GitLab
                | CiSystem::CircleCi
                | CiSystem::Buildkite
                | CiSystem::Bitbucket
                | CiSystem::Other => (Method::GET, format!("audience={}", escaped(audience)), "value"),
            };
            let mut attempt = 1;
            loop {
                let asked = request(method.clone(), url, &query, token, key, http);
                let transient = match asked.await {
                    Err(error @ (EndpointError::Unreachable(_) | EndpointError::Status(429 | 500..))) => error,
                    outcome => return outcome,
                };
                if attempt == ATTEMPTS {
                    return Err(transient);
                }
                tracing::debug!(error = %sentence(&transient), "asking for an OIDC token again");
                tokio::time::sleep(PAUSE * attempt).await;
                attempt += 1;
            }
        }
    }
}

/// Asks an endpoint once for the value that its answer has under a key.
async fn request(
    method: Method,
    url: &str,
    query: &str,
    token: &Secret<String>,
    key: &'static str,
    http: &Arc<dyn HttpConnector>,
) -> Result<Secret<String>, EndpointError> {
    let unusable = |source: Cause| EndpointError::Request(source);
    let joint = if url.contains('?') { '&' } else { '?' };
    let mut authorization =
        HeaderValue::try_from(format!("Bearer {}", token.expose())).map_err(|error| unusable(Arc::new(error)))?;
    authorization.set_sensitive(true);
    let request = Request::builder()
        .method(method)
        .uri(format!("{url}{joint}{query}"))
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, authorization)
        .body(SdkBody::empty())
        .map_err(|error| unusable(Arc::new(error)))?;
    let request = request.try_into().map_err(|error| unusable(Arc::new(error)))?;
    let response = http.call(request).await.map_err(|error| EndpointError::Unreachable(error.into_source().into()))?;
    let status = response.status();
    if !status.is_success() {
        return Err(EndpointError::Status(status.as_u16()));
    }
    let mut body = ByteStream::new(response.into_body());
    let mut answer = Secret::new(Vec::new());
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| EndpointError::Unreachable(Arc::new(error)))?;
        if answer.expose().len() + chunk.len() > MAX_ANSWER_LEN {
            return Err(EndpointError::NoValue(key));
        }
        answer = Secret::new([answer.expose(), &chunk[..]].concat());
    }
    let mut answer: serde_json::Value =
        serde_json::from_slice(answer.expose()).map_err(|_| EndpointError::NoValue(key))?;
    match answer.get_mut(key).map(serde_json::Value::take) {
        Some(serde_json::Value::String(token)) => Ok(Secret::new(token)),
        _ => Err(EndpointError::NoValue(key)),
    }
}

/// Writes a text so that it can stand in a query.
fn escaped(text: &str) -> String {
    let escape = |byte: u8| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(escape).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;
    use crate::aws::testing::{Answer, Fake, http};

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    pub(in crate::aws) fn jwt(claims: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part(r#"{"alg":"RS256"}"#), part(claims), part("signature"))
    }

    fn endpoint(system: CiSystem, url: String) -> CiOidc {
        CiOidc { system, from: TokenFrom::Endpoint { url, token: Secret::new("t0k".into()) } }
    }

    fn outcome(token: &str) -> Result<(), AwsError> {
        check(TokenOrigin::File("/run/token".into()), token, NOW, CLOCK_LEEWAY)
    }

    #[test]
    fn takes_tokens_of_the_right_form() {
        for claims in [r#"{"exp":1700000001}"#, r#"{"exp":1700000000.5}"#, r#"{"exp":"soon"}"#, "{}", "junk"] {
            outcome(&jwt(claims)).unwrap();
        }
        outcome("header.payload.signature").unwrap();
        // STS judges where clocks may differ.
        outcome(&jwt(r#"{"exp":1699999950}"#)).unwrap();
    }

    #[test]
    fn names_the_file_of_a_malformed_token() {
        for (token, reason) in [
            ("", "it is empty"),
            ("token", "three parts"),
            ("a.b", "three parts"),
            ("a.b.c.d", "three parts"),
            ("a..c", "base64url"),
            ("a.b c.d", "base64url"),
            ("a.b+.d", "base64url"),
            ("{\"a\".\"b\".\"c\"}", "base64url"),
            ("\u{feff}a.b.c", "base64url"),
        ] {
            let error = outcome(token).unwrap_err().to_string();
            assert!(error.starts_with("the web identity token in `/run/token` is not a JSON Web Token"), "{error}");
            assert!(error.contains(reason), "{token}: {error}");
        }
        assert!(outcome(&format!("a.{}.c", "b".repeat(20_000))).unwrap_err().to_string().contains("20000"));
    }

    #[test]
    fn sees_that_a_token_has_expired() {
        let error = outcome(&jwt(r#"{"exp":1699999000}"#)).unwrap_err();
        assert_eq!(sentence(&error), "the web identity token in `/run/token` has expired: its `exp` was 1000 s ago");
    }

    #[tokio::test]
    async fn reads_the_file_at_every_call_and_trims_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let source = TokenSource::File(path.clone());
        let error = source.token(NOW, true).await.unwrap_err();
        assert_eq!(error.to_string(), format!("the web identity token file `{}` cannot be read", path.display()));
        for claims in [r#"{"sub":"a"}"#, r#"{"sub":"b"}"#] {
            std::fs::write(&path, format!("  {}\r\n", jwt(claims))).unwrap();
            assert_eq!(*source.token(NOW, true).await.unwrap().expose(), jwt(claims));
        }
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(source.token(NOW, true).await, Err(AwsError::TokenFile { .. })));
    }

    #[tokio::test]
    async fn asks_the_ci_system_with_the_audience() {
        let fake = Fake::start(|_| Answer::json(200, &format!(r#"{{"count":1,"value":"{}"}}"#, jwt("{}")))).await;
        let oidc = endpoint(CiSystem::GitHub, format!("{}/token?api-version=2.0", fake.url()));
        let source = TokenSource::CiJob { oidc, audience: "https://a b".to_owned(), http: http() };
        assert_eq!(*source.token(NOW, true).await.unwrap().expose(), jwt("{}"));
        let requests = fake.requests();
        assert_eq!(requests[0].target, "/token?api-version=2.0&audience=https%3A%2F%2Fa%20b");
        assert_eq!(requests[0].header("authorization"), Some("Bearer t0k"));
    }

    #[tokio::test]
    async fn asks_azure_devops_in_its_own_way() {
        let fake = Fake::start(|_| Answer::json(200, &format!(r#"{{"oidcToken":"{}"}}"#, jwt("{}")))).await;
        let oidc = endpoint(CiSystem::AzureDevOps, format!("{}/oidctoken", fake.url()));
        let source = TokenSource::CiJob { oidc, audience: "not asked for".to_owned(), http: http() };
        assert_eq!(*source.token(NOW, true).await.unwrap().expose(), jwt("{}"));
        let requests = fake.requests();
        assert_eq!((&*requests[0].method, &*requests[0].target), ("POST", "/oidctoken?api-version=7.1"));
    }

    #[tokio::test]
    async fn a_variable_is_taken_as_it_is() {
        let of = |token: &str| {
            let from = TokenFrom::Variable { name: "MY_TOKEN".into(), token: Secret::new(token.to_owned()) };
            TokenSource::CiJob {
                oidc: CiOidc { system: CiSystem::Other, from },
                audience: "a".to_owned(),
                http: http(),
            }
        };
        assert_eq!(*of(&jwt("{}")).token(NOW, true).await.unwrap().expose(), jwt("{}"));
        let error = of(&jwt(r#"{"exp":1699999000}"#)).token(NOW, true).await.unwrap_err();
        assert_eq!(sentence(&error), "the OIDC token in `MY_TOKEN` has expired: its `exp` was 1000 s ago");
    }

    #[test]
    fn the_usual_audience_is_that_of_the_partition() {
        assert_eq!(usual_audience("aws"), "sts.amazonaws.com");
        assert_eq!(usual_audience("aws-cn"), "sts.amazonaws.com.cn");
    }

    #[tokio::test]
    async fn says_what_the_ci_system_answered() {
        for (status, body, expected) in [
            (401, "", "GitHub Actions gave no OIDC token: the endpoint answered with HTTP status 401"),
            (200, "{}", "GitHub Actions gave no OIDC token: the endpoint's answer has no `value`"),
            (200, "<html>", "GitHub Actions gave no OIDC token: the endpoint's answer has no `value`"),
            (
                200,
                r#"{"value":"x"}"#,
                "the OIDC token of GitHub Actions is not a JSON Web Token: it does not have three parts separated by dots",
            ),
        ] {
            let fake = Fake::start(move |_| Answer::json(status, body)).await;
            let oidc = endpoint(CiSystem::GitHub, fake.url());
            let error =
                TokenSource::CiJob { oidc, audience: "a".to_owned(), http: http() }.token(NOW, true).await.unwrap_err();
            assert_eq!(sentence(&error), expected);
            assert_eq!(fake.requests().len(), 1);
        }
    }
}
