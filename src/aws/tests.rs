//! Identity and tokens against a fake STS.

use aws_credential_types::provider::error::CredentialsError;
use tempfile::TempDir;

use super::{
    error::{Refusal, TokenOrigin},
    testing::{Answer, Fake, Request, aws, aws_with, aws_with_shifted_clock, in_time, shifted},
    token::tests::jwt,
    *,
};
use crate::{
    closed_port::ClosedPort,
    settings::{CiOidc, CiSystem, TokenFrom},
    util::peer_text::sentence,
};

mod peers;

const ROLE: &str = "arn:aws:iam::123456789012:role/ReadOnly";

fn assumed(request: &Request, seconds: u64) -> Answer {
    let operation = request.operation();
    let end = SystemTime::UNIX_EPOCH + clock::wall() + Duration::from_secs(seconds);
    let end = aws_smithy_types::DateTime::from(whole_seconds(end));
    let end = end.fmt(aws_smithy_types::date_time::Format::DateTime).unwrap();
    Answer::xml(
        200,
        &format!(
            "<{operation}Response><{operation}Result><Credentials><AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>s</SecretAccessKey>\
             <SessionToken>t</SessionToken><Expiration>{end}</Expiration></Credentials><AssumedRoleUser>\
             <AssumedRoleId>AROA:me</AssumedRoleId><Arn>arn:aws:sts::123456789012:assumed-role/ReadOnly/me</Arn></AssumedRoleUser>\
             </{operation}Result></{operation}Response>"
        ),
    )
}

fn identity() -> Answer {
    Answer::xml(
        200,
        "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>arn:aws:sts::123456789012:assumed-role/ReadOnly/me</Arn>\
         <UserId>AROA:me</UserId><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>",
    )
}

fn sts(request: &Request) -> Answer {
    if request.operation() == "GetCallerIdentity" { identity() } else { assumed(request, 3600) }
}

/// Settings with a role and a token file that holds `token`.
fn with_token(token: &str) -> (AwsSettings, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, token).unwrap();
    let settings = AwsSettings {
        region: Some("us-east-1".into()),
        role_arn: Some(ROLE.into()),
        role_session_name: Some("me@example.com".into()),
        web_identity_token_file: Some(path),
        ..AwsSettings::default()
    };
    (settings, folder)
}

async fn failure(settings: &AwsSettings, answer: Answer) -> AwsError {
    let fake = Fake::start(move |_| answer.clone()).await;
    in_time(aws_with(&fake, settings).await.caller()).await.unwrap_err()
}

#[tokio::test]
async fn assumes_the_role_with_the_token() {
    let fake = Fake::start(sts).await;
    let token = jwt("{}");
    let (mut settings, folder) = with_token(&format!("{token}\n"));
    settings.duration = Some(Duration::from_secs(7200));
    let aws = aws_with(&fake, &settings).await;
    let caller = in_time(aws.caller()).await.unwrap();
    assert_eq!(caller.account, "123456789012");
    assert_eq!(caller.arn, "arn:aws:sts::123456789012:assumed-role/ReadOnly/me");
    assert_eq!(caller.user_id, "AROA:me");
    let path = folder.path().join("token");
    assert_eq!(caller.source, format!("web identity token `{}` for role `{ROLE}`", path.display()));
    assert!(caller.expires.is_some());
    assert_eq!(fake.operations(), ["AssumeRoleWithWebIdentity", "GetCallerIdentity"]);
    let request = &fake.requests()[0];
    assert_eq!(request.parameter("RoleArn"), "arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2FReadOnly");
    assert_eq!(request.parameter("RoleSessionName"), "me%40example.com");
    assert_eq!(request.parameter("DurationSeconds"), "7200");
    assert_eq!(request.parameter("WebIdentityToken"), token);
    assert_eq!(request.header("authorization"), None);
    assert!(fake.requests()[1].header("authorization").unwrap().contains("Credential=ASIAROLE/"));
}

#[tokio::test]
async fn everybody_shares_one_cache() {
    let fake = Fake::start(|request| match request.header("x-amz-target") {
        Some(_) => Answer::json(200, "{}"),
        None if request.target.starts_with("/clusters") => Answer::json(200, r#"{"clusters":[]}"#),
        None => sts(request),
    })
    .await;
    let (settings, _folder) = with_token(&jwt("{}"));
    let aws = aws_with(&fake, &settings).await;
    let callers = (0..8).map(|_| async {
        let (caller, token, found) = tokio::join!(aws.caller(), aws.bearer_token("c"), aws.discover(&[]));
        (caller.unwrap(), token.unwrap(), found.unwrap())
    });
    let _all = in_time(futures_util::future::join_all(callers)).await;
    let assumed = fake.operations().iter().filter(|operation| *operation == "AssumeRoleWithWebIdentity").count();
    assert_eq!(assumed, 1);
}

#[tokio::test]
async fn asks_the_ci_system_again_for_each_exchange() {
    let fake = Fake::start(|request| {
        if request.target.starts_with("/oidc") {
            Answer::json(200, &format!(r#"{{"value":"{}"}}"#, jwt("{}")))
        } else {
            sts(request)
        }
    })
    .await;
    let settings = AwsSettings {
        region: Some("us-east-1".into()),
        role_arn: Some(ROLE.into()),
        ci_oidc: Some(CiOidc {
            system: CiSystem::GitHub,
            from: TokenFrom::Endpoint { url: format!("{}/oidc?a=b", fake.url()), token: Secret::new("t".into()) },
        }),
        ..AwsSettings::default()
    };
    let aws = aws_with(&fake, &settings).await;
    assert_eq!(in_time(aws.caller()).await.unwrap().source, format!("OIDC token of GitHub Actions for role `{ROLE}`"));
    aws.inner.credentials.discard(&AwsError::NoRegion);
    in_time(aws.caller()).await.unwrap();
    let asked = fake.requests().iter().filter(|request| request.target.starts_with("/oidc")).count();
    assert_eq!(asked, 2);
}

#[tokio::test]
async fn assumes_a_role_from_ambient_credentials() {
    let fake = Fake::start(sts).await;
    let settings =
        AwsSettings { region: Some("us-east-1".into()), role_arn: Some(ROLE.into()), ..AwsSettings::default() };
    let caller = in_time(aws_with(&fake, &settings).await.caller()).await.unwrap();
    assert_eq!(caller.source, format!("role `{ROLE}` assumed from the default credential chain"));
    assert_eq!(fake.operations(), ["AssumeRole", "GetCallerIdentity"]);
    assert!(fake.requests()[0].header("authorization").unwrap().contains("Credential=AKIDEXAMPLE/"));
    assert_eq!(fake.requests()[0].parameter("DurationSeconds"), "");
    assert_eq!(fake.requests()[0].parameter("ExternalId"), "");
    assert!(fake.requests()[1].header("authorization").unwrap().contains("Credential=ASIAROLE/"));
}

#[tokio::test]
async fn an_external_id_goes_with_a_role_that_is_assumed() {
    let fake = Fake::start(sts).await;
    let settings = AwsSettings {
        region: Some("us-east-1".into()),
        role_arn: Some(ROLE.into()),
        external_id: Some("tenant-42".into()),
        ..AwsSettings::default()
    };
    in_time(aws_with(&fake, &settings).await.caller()).await.unwrap();
    assert_eq!(fake.requests()[0].parameter("ExternalId"), "tenant-42");
}

#[tokio::test]
async fn tags_go_with_a_role_that_is_assumed_and_with_no_token() {
    let fake = Fake::start(sts).await;
    let tags = vec!["team=payments".to_owned(), "mail=a=b".to_owned()];
    let tagged = |settings| AwsSettings { tags: tags.clone(), transitive_tags: vec!["team".to_owned()], ..settings };
    let region = Some("us-east-1".to_owned());
    let settings = tagged(AwsSettings { region, role_arn: Some(ROLE.into()), ..AwsSettings::default() });
    in_time(aws_with(&fake, &settings).await.caller()).await.unwrap();
    let request = &fake.requests()[0];
    let tag = |at: u32| ["Key", "Value"].map(|part| request.parameter(&format!("Tags.member.{at}.{part}")));
    assert_eq!([tag(1), tag(2)], [["team", "payments"], ["mail", "a%3Db"]]);
    assert_eq!(request.parameter("TransitiveTagKeys.member.1"), "team");

    let (settings, _folder) = with_token(&jwt("{}"));
    let error = Aws::new(&tagged(settings)).await.unwrap_err();
    assert!(
        error.to_string().starts_with("session tags cannot be given beside the web identity token in `"),
        "{error}"
    );
}

#[tokio::test]
async fn tells_what_sts_holds_against_a_token() {
    let (settings, _folder) = with_token(&jwt("{}"));
    let path = settings.web_identity_token_file.clone().unwrap();
    let origin = format!("the web identity token in `{}`", path.display());
    let answer = |status, code, message| failure(&settings, Answer::query_error(status, code, message));

    let error = answer(400, "ExpiredTokenException", "Token expired: current date/time 1 must be before 0").await;
    assert_eq!(error.to_string(), format!("{origin} has expired"));
    assert!(matches!(error, AwsError::TokenExpired { origin: TokenOrigin::File(file), .. } if file == path));

    let error = answer(400, "InvalidIdentityToken", "No OpenIDConnect provider found in your account").await;
    assert_eq!(
        sentence(&error),
        format!(
            "STS does not accept {origin} for `{ROLE}`: InvalidIdentityToken: No OpenIDConnect provider found in your account \
             (HTTP status 400, request r-1)"
        )
    );
    let error = answer(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity").await;
    assert_eq!(error.to_string(), format!("not authorized to assume `{ROLE}`"));
    let error = answer(403, "IDPRejectedClaim", "The web identity token was rejected").await;
    assert!(matches!(error, AwsError::InvalidIdentityToken { .. }));
    let error = answer(403, "RegionDisabledException", "STS is not activated in this region for account").await;
    assert!(matches!(error, AwsError::RegionDisabled { .. }));
    let error = answer(400, "Throttling", "Rate exceeded").await;
    assert!(matches!(error, AwsError::Throttled { action: "sts:AssumeRoleWithWebIdentity", .. }));
    let error = answer(400, "ValidationError", "1 validation error detected").await;
    assert!(matches!(error, AwsError::Refused { refusal: Refusal::Request, .. }), "{error:?}");
}

#[tokio::test]
async fn tells_that_a_session_may_not_last_so_long() {
    let (mut settings, _folder) = with_token(&jwt("{}"));
    settings.duration = Some(Duration::from_secs(43_200));
    let message = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
    let error = failure(&settings, Answer::query_error(400, "ValidationError", message)).await;
    assert_eq!(error.to_string(), format!("`{ROLE}` cannot be assumed for 43200 s"));
    assert!(error.source().unwrap().to_string().contains(message));
}

#[tokio::test]
async fn a_token_that_is_no_token_costs_no_call() {
    let fake = Fake::start(sts).await;
    for token in ["", "nonsense", &jwt(r#"{"exp":1000}"#)] {
        let (settings, _folder) = with_token(token);
        let error = in_time(aws_with(&fake, &settings).await.caller()).await.unwrap_err();
        assert!(matches!(error, AwsError::TokenMalformed { .. } | AwsError::TokenExpired { .. }), "{error}");
    }
    let (mut settings, folder) = with_token("");
    let missing = folder.path().join("missing");
    settings.web_identity_token_file = Some(missing.clone());
    let error = in_time(aws_with(&fake, &settings).await.caller()).await.unwrap_err();
    assert!(matches!(error, AwsError::TokenFile { path, .. } if path == missing));
    assert!(fake.requests().is_empty());
}

#[tokio::test]
async fn tells_what_is_wrong_with_credentials() {
    let settings = AwsSettings { region: Some("us-east-1".into()), ..AwsSettings::default() };
    let answer = |code, message| failure(&settings, Answer::query_error(403, code, message));
    assert!(matches!(answer("ExpiredToken", "").await, AwsError::ExpiredCredentials { .. }));
    assert!(matches!(answer("InvalidClientTokenId", "").await, AwsError::BadKeys { .. }));
    assert!(matches!(answer("SignatureDoesNotMatch", "The request signature").await, AwsError::BadKeys { .. }));
    assert!(matches!(answer("SignatureDoesNotMatch", "Signature expired: 1").await, AwsError::ClockSkew { .. }));
    // Something that is not STS.
    let error = failure(&settings, Answer::xml(500, "<html>no</html>")).await;
    assert!(matches!(error, AwsError::Service { action: "sts:GetCallerIdentity", .. }), "{error:?}");
}

async fn with_ambient(error: fn() -> CredentialsError, endpoint: &str, settings: &AwsSettings) -> AwsError {
    let surroundings = Surroundings {
        ambient: Some(Ambient::of("us-east-1", Failing(error))),
        endpoint: Some(endpoint.to_owned()),
        plain: true,
        ..Surroundings::default()
    };
    let aws = Box::pin(Aws::build(settings, surroundings)).await.unwrap();
    in_time(aws.caller()).await.unwrap_err()
}

#[derive(Debug, Clone)]
struct Failing(fn() -> CredentialsError);

impl aws_credential_types::provider::ProvideCredentials for Failing {
    fn provide_credentials<'a>(&'a self) -> aws_credential_types::provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        aws_credential_types::provider::future::ProvideCredentials::ready(Err((self.0)()))
    }
}

#[tokio::test]
async fn tells_missing_credentials_from_a_missing_network() {
    let missing = || CredentialsError::not_loaded("no credentials found in chain. Attempted: Environment, Profile");
    let mut settings = AwsSettings { region: Some("us-east-1".into()), ..AwsSettings::default() };
    let closed = ClosedPort::new();
    let nobody = format!("http://{}", closed.address());
    for _ in 0..2 {
        let error = with_ambient(missing, &nobody, &settings).await;
        assert!(
            matches!(&error, AwsError::NoCredentials { attempted } if attempted.ends_with("Environment, Profile")),
            "{error:?}"
        );
        // The same where they were to assume a role.
        settings.role_arn = Some(ROLE.into());
    }
    let error = with_ambient(|| CredentialsError::provider_error("request forbidden"), &nobody, &settings).await;
    assert_eq!(
        sentence(&error),
        "AWS credentials could not be loaded: an error occurred while loading credentials: request forbidden"
    );

    let (settings, _folder) = with_token(&jwt("{}"));
    let error = with_ambient(missing, &nobody, &settings).await;
    let host = nobody.strip_prefix("http://").unwrap();
    assert!(matches!(&error, AwsError::Unreachable { host: seen, .. } if seen == host), "{error:?}");
    assert!(sentence(&error).contains("Connection refused"), "{}", sentence(&error));
}

#[tokio::test]
async fn needs_a_region_and_an_existing_profile() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let build = async |settings: &AwsSettings, config: &str| {
        std::fs::write(&path, config).unwrap();
        let settings = AwsSettings { profile_files: [Some(path.clone()), None], ..settings.clone() };
        let surroundings = Surroundings { plain: true, ..Surroundings::default() };
        Box::pin(Aws::build(&settings, surroundings)).await
    };
    let mut settings = AwsSettings::default();
    assert!(matches!(build(&settings, "").await, Err(AwsError::NoRegion)));
    assert!(matches!(build(&settings, "[default]\noutput = json\n").await, Err(AwsError::NoRegion)));
    let config = "[default]\nregion = eu-west-1\n[profile dev]\nregion = eu-north-1\n";
    assert_eq!(build(&settings, config).await.unwrap().region(), "eu-west-1");
    settings.profile = Some("dev".into());
    assert_eq!(build(&settings, config).await.unwrap().region(), "eu-north-1");
    settings.region = Some("us-west-2".into());
    assert_eq!(build(&settings, config).await.unwrap().region(), "us-west-2");
    settings.profile = Some("prod".into());
    assert!(matches!(build(&settings, config).await, Err(AwsError::UnknownProfile { name, .. }) if name == "prod"));
    settings.profile = None;
    settings.region = Some("us east".into());
    assert!(matches!(build(&settings, config).await, Err(AwsError::InvalidRegion { .. })));
    settings.ca_bundle = Some("/nowhere/ca.pem".into());
    assert!(matches!(build(&settings, config).await, Err(AwsError::CaBundle { .. })));
}

#[tokio::test]
async fn bearer_tokens_do_not_outlive_their_credentials() {
    for (life, expected) in [(3600, 840), (600, 600)] {
        let fake = Fake::start(move |request| assumed(request, life)).await;
        let (settings, _folder) = with_token(&jwt("{}"));
        let aws = aws_with(&fake, &settings).await;
        let before = clock::wall().as_secs();
        let token = in_time(aws.bearer_token("prod")).await.unwrap();
        let expires = token.expires.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(expires.subsec_nanos(), 0);
        assert!((before + expected..=before + expected + 20).contains(&expires.as_secs()));
        assert!(token.token.expose().starts_with("k8s-aws-v1.aHR0cHM6Ly9zdHMudXMtZWFzdC0xLmFtYXpvbmF3cy5jb20v"));
        assert!(!format!("{token:?}").contains("k8s-aws"));
    }
}

#[tokio::test]
async fn a_bearer_token_is_given_again_for_half_its_life_and_with_the_same_credentials() {
    let fake = Fake::start(sts).await;
    let aws = aws(&fake).await;
    let key = aws.credentials().await.unwrap().access_key_id().to_owned();
    let known = |key: &str, left: Duration| {
        let expires = SystemTime::UNIX_EPOCH + clock::wall() + left;
        let token = BearerToken { token: Secret::new("known".to_owned()), expires };
        let signed = Signed { key: key.to_owned(), token, at: aws.inner.offset.clocks() };
        aws.inner.tokens.lock().unwrap().insert("prod".to_owned(), signed);
    };
    let given = async || aws.bearer_token("prod").await.unwrap().token.expose().clone();
    known(&key, BEARER_TOKEN_LIFE / 2 + Duration::from_secs(60));
    assert_eq!(given().await, "known");
    known(&key, BEARER_TOKEN_LIFE / 2 - Duration::from_secs(60));
    let fresh = given().await;
    assert_ne!(fresh, "known");
    assert_eq!(aws.inner.tokens.lock().unwrap()["prod"].token.token.expose(), &fresh);
    known("of other credentials", BEARER_TOKEN_LIFE);
    assert_ne!(given().await, "known");
}

#[tokio::test]
async fn refuses_to_make_a_token_that_api_servers_refuse() {
    let fake = Fake::start(sts).await;
    let aws = aws(&fake).await;
    let _token = in_time(aws.bearer_token("prod")).await.unwrap();
    let error = in_time(aws.bearer_token("a\nb")).await.unwrap_err();
    assert!(matches!(error, AwsError::Signing { .. }), "{error:?}");
    let keys = Credentials::new("AKIDEXAMPLE", "s", Some("t".repeat(3500)), None, "test");
    let surroundings = Surroundings {
        ambient: Some(Ambient::of("us-east-1", SharedCredentialsProvider::new(keys))),
        endpoint: Some(fake.url()),
        plain: true,
        ..Surroundings::default()
    };
    let settings = AwsSettings { region: Some("us-east-1".into()), ..AwsSettings::default() };
    let aws = Box::pin(Aws::build(&settings, surroundings)).await.unwrap();
    assert!(matches!(aws.bearer_token("prod").await, Err(AwsError::BearerTokenTooLong { len }) if len > 4096));
}

#[tokio::test]
async fn credentials_that_a_service_calls_expired_are_loaded_again() {
    let fake = Fake::start(|request| match request.header("authorization") {
        Some(_) => Answer::query_error(403, "ExpiredToken", "The security token included in the request is expired"),
        None => assumed(request, 3600),
    })
    .await;
    let (settings, _folder) = with_token(&jwt("{}"));
    let aws = aws_with(&fake, &settings).await;
    for _ in 0..2 {
        assert!(matches!(in_time(aws.caller()).await, Err(AwsError::ExpiredCredentials { .. })));
    }
    let assumed = fake.operations().iter().filter(|operation| *operation == "AssumeRoleWithWebIdentity").count();
    assert_eq!(assumed, 2);
}

#[cfg(feature = "demo")]
#[tokio::test]
async fn the_sdk_trusts_the_bundle_and_nobody_else() {
    let (fake, authority) = Fake::start_with_tls(sts).await;
    let (mut settings, folder) = with_token(&jwt("{}"));
    let error = in_time(aws_with(&fake, &settings).await.caller()).await.unwrap_err();
    assert!(matches!(&error, AwsError::Unreachable { .. }), "{error:?}");
    assert!(sentence(&error).contains("invalid peer certificate"), "{}", sentence(&error));
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, authority).unwrap();
    settings.ca_bundle = Some(path);
    assert_eq!(in_time(aws_with(&fake, &settings).await.caller()).await.unwrap().account, "123456789012");
}
