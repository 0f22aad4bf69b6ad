//! Peers that are wrong about the time, that never end, or that are proxies, and answers that cannot be.

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Uri;

use super::*;
use crate::{
    aws::clusters::SkipReason,
    settings::{Proxies, Proxy},
};

/// How far the time of AWS is from that of this machine in these tests.
const OFF: Duration = Duration::from_secs(3600);

/// Writes a time as answers have it.
fn http_date(time: Duration) -> String {
    let time = aws_smithy_types::DateTime::from(SystemTime::UNIX_EPOCH + time);
    time.fmt(aws_smithy_types::date_time::Format::HttpDate).unwrap()
}

/// An answer with the time of AWS, which is behind that of this machine.
fn dated(answer: Answer) -> Answer {
    answer.with("x-amzn-requestid", "r-1").with("date", &http_date(clock::wall() - OFF))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn plain_settings() -> AwsSettings {
    AwsSettings { region: Some("us-east-1".into()), ..AwsSettings::default() }
}

#[tokio::test]
async fn bearer_tokens_are_signed_with_the_time_of_aws_and_end_by_this_machines() {
    let fake = Fake::start(|request| {
        dated(match request.operation() {
            "GetCallerIdentity" => identity(),
            _ => assumed(request, 600),
        })
    })
    .await;
    let (settings, _folder) = with_token(&jwt("{}"));
    let aws = aws_with(&fake, &settings).await;
    assert_eq!(aws.clock_off(), None);
    let caller = in_time(aws.caller()).await.unwrap();
    let off = aws.clock_off().unwrap().to_string();
    assert!(["1 h 0 min ahead of AWS's", "59 min 59 s ahead of AWS's"].contains(&off.as_str()), "{off}");

    let token = in_time(aws.bearer_token("prod")).await.unwrap();
    let url = token.token.expose().strip_prefix("k8s-aws-v1.").unwrap();
    let url = String::from_utf8(URL_SAFE_NO_PAD.decode(url).unwrap()).unwrap();
    let date = url.split("X-Amz-Date=").nth(1).unwrap().split('&').next().unwrap();
    let date =
        format!("{}-{}-{}T{}:{}:{}Z", &date[..4], &date[4..6], &date[6..8], &date[9..11], &date[11..13], &date[13..15]);
    let date = aws_smithy_types::DateTime::from_str(&date, aws_smithy_types::date_time::Format::DateTime).unwrap();
    let now = clock::wall().as_secs();
    let signed = u64::try_from(date.secs()).unwrap();
    assert!((now - OFF.as_secs() - 30..=now - OFF.as_secs() + 2).contains(&signed), "{signed} {now}");
    // The credentials end ten minutes from now by this machine's clock, as that answer meant, whatever it was cached by.
    let ends = seconds(caller.expires.unwrap());
    assert!((now + 4190..=now + 4202).contains(&ends), "{ends} {now}");
    assert!((now + 800..=now + 840).contains(&seconds(token.expires)), "{} {now}", seconds(token.expires));
}

#[tokio::test]
async fn only_answers_of_aws_tell_the_time() {
    let date = http_date(clock::wall() - OFF);
    for (headers, is_told) in [
        (vec![("date", date.as_str())], false),
        (vec![("date", &date), ("x-amzn-requestid", "r"), ("age", "3600")], false),
        (vec![("x-amzn-requestid", "r")], false),
        (vec![("date", "yesterday"), ("x-amzn-requestid", "r")], false),
        (vec![("date", &date), ("x-amzn-requestid", "r")], true),
    ] {
        let answer = headers.iter().fold(identity(), |answer, (name, value)| answer.with(name, value));
        let fake = Fake::start(move |_| answer.clone()).await;
        let aws = aws_with(&fake, &plain_settings()).await;
        in_time(aws.caller()).await.unwrap();
        assert_eq!(aws.clock_off().is_some(), is_told, "{headers:?}");
    }
}

#[tokio::test]
async fn a_token_is_not_called_expired_by_a_clock_that_may_be_wrong() {
    let expired = jwt(&format!(r#"{{"exp":{}}}"#, (clock::wall() - OFF).as_secs() + 60));
    let (settings, _folder) = with_token(&expired);
    let fake = Fake::start(|request| dated(sts(request))).await;
    in_time(aws_with(&fake, &settings).await.caller()).await.unwrap();
    // Where STS says so it is so.
    let fake = Fake::start(|_| Answer::query_error(400, "ExpiredTokenException", "Token expired")).await;
    let error = in_time(aws_with(&fake, &settings).await.caller()).await.unwrap_err();
    assert!(matches!(error, AwsError::TokenExpired { .. }), "{error:?}");
}

#[tokio::test]
async fn a_clock_that_is_set_makes_the_offset_unknown_and_bearer_tokens_anew() {
    // AWS has the time of this machine before the clock was moved.
    let fake = Fake::start(|request| {
        let answer = if request.operation() == "GetCallerIdentity" { identity() } else { assumed(request, 600) };
        answer.with("x-amzn-requestid", "r-1").with("date", &http_date(clock::wall()))
    })
    .await;
    let hour = i64::try_from(OFF.as_secs()).unwrap();
    for wrong in [-hour, hour] {
        shifted::set(wrong);
        let (settings, _folder) = with_token(&jwt(&format!(r#"{{"exp":{}}}"#, clock::wall().as_secs() + 300)));
        let aws = aws_with_shifted_clock(&fake, &settings).await;
        in_time(aws.caller()).await.unwrap();
        assert!(aws.clock_off().is_some());
        let before = in_time(aws.bearer_token("prod")).await.unwrap();
        shifted::set(0);
        assert_eq!(aws.clock_off(), None);
        let after = in_time(aws.bearer_token("prod")).await.unwrap();
        let left = seconds(after.expires) - clock::wall().as_secs();
        assert!(left <= BEARER_TOKEN_LIFE.as_secs() && before.expires != after.expires, "{left}");
        // The web identity token is not expired, whatever the offset was.
        in_time(aws.inner.identity.load()).await.unwrap();
    }
}

/// Gives other keys each time, or the same.
#[derive(Debug, Clone)]
struct Counting {
    loads: Arc<AtomicUsize>,
    changes: bool,
}

impl aws_credential_types::provider::ProvideCredentials for Counting {
    fn provide_credentials<'a>(&'a self) -> aws_credential_types::provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let load = self.loads.fetch_add(1, Ordering::Relaxed);
        let key = format!("AKID{}", if self.changes { load } else { 0 });
        let keys = Credentials::new(key, "secret", None, None, "test");
        aws_credential_types::provider::future::ProvideCredentials::ready(Ok(keys))
    }
}

#[tokio::test]
async fn keys_that_aws_does_not_know_are_asked_for_again_once() {
    for (changes, wanted) in [(true, 3), (false, 2)] {
        let fake =
            Fake::start(|_| Answer::query_error(403, "InvalidClientTokenId", "The security token is invalid")).await;
        let provider = Counting { loads: Arc::default(), changes };
        let surroundings = Surroundings {
            ambient: Some(Ambient::of("us-east-1", provider.clone())),
            endpoint: Some(fake.url()),
            plain: true,
            ..Surroundings::default()
        };
        let aws = Box::pin(Aws::build(&plain_settings(), surroundings)).await.unwrap();
        for _ in 0..3 {
            assert!(matches!(in_time(aws.caller()).await, Err(AwsError::BadKeys { .. })));
        }
        assert_eq!(provider.loads.load(Ordering::Relaxed), wanted, "changes: {changes}");
    }
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let long = format!("<x>{}</x>", "a".repeat(3 << 20));
    for status in [200, 500] {
        let long = long.clone();
        let fake = Fake::start(move |_| Answer::xml(status, &long)).await;
        let error = in_time(aws_with(&fake, &plain_settings()).await.caller()).await.unwrap_err();
        assert!(sentence(&error).contains("the answer is longer than 2097152 bytes"), "{}", sentence(&error));
    }
}

#[tokio::test]
async fn pages_without_end_are_not_read_to_their_end() {
    let count = AtomicUsize::new(0);
    let fake = Fake::start(move |_| {
        let page = count.fetch_add(1, Ordering::Relaxed);
        let names: Vec<_> = (0..100).map(|name| format!("\"c{name}\"")).collect();
        Answer::json(200, &format!(r#"{{"clusters":[{}],"nextToken":"{page}"}}"#, names.join(",")))
    })
    .await;
    let error = in_time(aws(&fake).await.list_clusters()).await.unwrap_err();
    assert_eq!(error.to_string(), "the answer to `eks:ListClusters` has no last page");
    assert_eq!(fake.requests().len(), 201);
}

#[tokio::test]
async fn values_that_cannot_be_are_refused_where_they_are_read_and_not_shown() {
    let evil = "x';touch$IFS$9P;'$(id)";
    let described = |field: &str, value: &str| {
        let mut cluster = serde_json::json!({
            "name": "c", "arn": "arn:aws:eks:us-east-1:123456789012:cluster/c", "status": "ACTIVE", "version": "1.33",
            "endpoint": "https://ABC.gr7.us-east-1.eks.amazonaws.com", "certificateAuthority": { "data": "Q0E=" },
            "resourcesVpcConfig": { "vpcId": "vpc-1", "clusterSecurityGroupId": "sg-1" },
            "accessConfig": { "authenticationMode": "API" }, "id": "i",
        });
        *cluster.pointer_mut(field).unwrap() = value.into();
        Answer::json(200, &serde_json::json!({ "cluster": cluster }).to_string())
    };
    let look = async |answer: Answer| {
        let fake = Fake::start(move |_| answer.clone()).await;
        in_time(aws(&fake).await.describe_cluster("c")).await
    };
    look(described("/version", "1.34")).await.unwrap().unwrap().access.unwrap();
    for field in [
        "/arn",
        "/status",
        "/version",
        "/certificateAuthority/data",
        "/resourcesVpcConfig/vpcId",
        "/resourcesVpcConfig/clusterSecurityGroupId",
        "/accessConfig/authenticationMode",
        "/id",
    ] {
        let error = look(described(field, evil)).await.unwrap_err();
        assert!(matches!(error, AwsError::Malformed { .. }), "{field}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("touch"), "{error:?}");
    }
    let odd = look(described("/endpoint", &format!("https://{evil}.eks.amazonaws.com"))).await.unwrap().unwrap();
    assert_eq!(odd.access.unwrap_err(), SkipReason::Endpoint);

    let names = Answer::json(200, &serde_json::json!({ "clusters": ["good", evil] }).to_string());
    let fake = Fake::start(move |_| names.clone()).await;
    assert!(matches!(in_time(aws(&fake).await.list_clusters()).await, Err(AwsError::Malformed { .. })));
    let caller = Answer::xml(
        200,
        "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>arn:aws:iam::1:user/x\u{1b}[2J</Arn>\
         <UserId>A</UserId><Account>1</Account></GetCallerIdentityResult></GetCallerIdentityResponse>",
    );
    let fake = Fake::start(move |_| caller.clone()).await;
    let error = in_time(aws(&fake).await.caller()).await.unwrap_err();
    assert!(!sentence(&error).contains('\u{1b}'), "{error:?}");
}

#[tokio::test]
async fn a_sign_in_page_of_the_network_is_not_taken_for_aws() {
    let page = Answer::html("<html><body>Welcome to the guest network</body></html>");
    for (status, answer) in [
        (200, page.clone()),
        (302, page.clone().status(302).with("location", "http://portal.example/login")),
        (511, page.clone().status(511)),
    ] {
        let fake = Fake::start(move |_| answer.clone()).await;
        let aws = aws(&fake).await;
        for error in [in_time(aws.list_clusters()).await.unwrap_err(), in_time(aws.caller()).await.unwrap_err()] {
            let text = sentence(&error);
            let end = format!(" failed: an answer that no AWS service gives (HTTP status {status})");
            assert!(text.ends_with(&end), "{text}");
        }
    }
    // AWS fails without a code as well.
    let fake = Fake::start(move |_| page.clone().status(503)).await;
    let text = sentence(&in_time(aws(&fake).await.list_clusters()).await.unwrap_err());
    assert!(text.ends_with("an answer without an error code (HTTP status 503)"), "{text}");
}

#[tokio::test]
async fn a_caller_may_have_any_path_that_iam_takes() {
    for arn in ["arn:aws:iam::123456789012:user/it's/$x/ann+1=2,@-", "arn:aws:iam::123456789012:user/a;b/=ann"] {
        let caller = Answer::xml(
            200,
            &format!(
                "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>{arn}</Arn><UserId>AIDAX</UserId>\
                 <Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"
            ),
        );
        let fake = Fake::start(move |_| caller.clone()).await;
        assert_eq!(in_time(aws(&fake).await.caller()).await.unwrap().arn, arn);
    }
}

/// Settings with a proxy for `http` URLs.
fn proxied(fake: &Fake, user: &str) -> AwsSettings {
    let url = Secret::new(fake.url().replace("http://", &format!("http://{user}")));
    let proxy = Proxy { url, has_user: !user.is_empty(), variable: "HTTP_PROXY" };
    AwsSettings { proxies: Proxies { http: Some(proxy), ..Proxies::default() }, ..plain_settings() }
}

async fn calling(endpoint: &str, settings: &AwsSettings) -> Aws {
    let keys = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
    let surroundings = Surroundings {
        ambient: Some(Ambient::of("us-east-1", SharedCredentialsProvider::new(keys))),
        endpoint: Some(endpoint.to_owned()),
        plain: true,
        ..Surroundings::default()
    };
    Box::pin(Aws::build(settings, surroundings)).await.unwrap()
}

#[tokio::test]
async fn a_proxy_that_asks_for_a_password_is_not_taken_for_aws() {
    for (user, said) in [
        ("", "requires a user name and password, but `HTTP_PROXY` has none (it accepts NTLM, Basic)"),
        ("ann:hunter2@", "rejects the user name and password in `HTTP_PROXY` (it accepts NTLM, Basic)"),
    ] {
        let fake = Fake::start(|_| {
            let answer = Answer::json(407, "{}").with("proxy-authenticate", "NTLM");
            answer.with("proxy-authenticate", "Basic realm=\"x\"")
        })
        .await;
        let aws = calling("http://sts.example", &proxied(&fake, user)).await;
        let error = in_time(aws.caller()).await.unwrap_err();
        assert!(matches!(&error, AwsError::Unreachable { host, .. } if host == "sts.example"), "{error:?}");
        let text = sentence(&error);
        let proxy = fake.url().replace("http://", "");
        assert!(text.contains(&format!("the proxy `{proxy}` {said}")), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        let given = fake.requests()[0].header("proxy-authorization").map(str::to_owned);
        assert_eq!(given.as_deref(), (!user.is_empty()).then_some("Basic YW5uOmh1bnRlcjI="));
    }
}

#[tokio::test]
async fn calls_go_through_the_proxy_and_those_to_this_machine_do_not() {
    let (proxy, here) = (Fake::start(|_| identity()).await, Fake::start(|_| identity()).await);
    in_time(calling("http://sts.example", &proxied(&proxy, "")).await.caller()).await.unwrap();
    assert_eq!(proxy.requests().len(), 1);
    let target = proxy.requests()[0].target.parse::<Uri>().unwrap();
    assert_eq!(target.host(), Some("sts.example"));
    in_time(calling(&here.url(), &proxied(&proxy, "")).await.caller()).await.unwrap();
    assert_eq!((proxy.requests().len(), here.requests().len()), (1, 1));
}

#[tokio::test]
async fn a_password_in_an_endpoint_is_in_no_error() {
    let closed = ClosedPort::new();
    let endpoint = format!("http://ann:hunter2@{}", closed.address());
    let error = in_time(calling(&endpoint, &plain_settings()).await.caller()).await.unwrap_err();
    let text = format!("{} {error:?}", sentence(&error));
    assert!(text.starts_with(&format!("cannot reach `{}`", closed.address())), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}
