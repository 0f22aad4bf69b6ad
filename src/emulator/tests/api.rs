//! STS, EKS and Systems Manager.

use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;

use super::{
    super::{
        BastionConfig, ClusterConfig, Config, Emulator, Event, Failure, OidcClaims,
        clock::{Clock, parse_basic_date},
        sigv4,
    },
    support::{Answer, TestKeys, call, exchange, quick, ssm, start, start_session, upgrade_head, within},
};

async fn sts(emulator: &Emulator, body: &str) -> Answer {
    call(emulator, &TestKeys::of(emulator).signer("sts"), "POST", "/", &[], body).await
}

async fn web_identity(emulator: &Emulator, parameters: &[(&str, &str)], token: &str) -> Answer {
    let role = emulator.role_arn();
    let mut form =
        vec![("Action", "AssumeRoleWithWebIdentity"), ("Version", "2011-06-15"), ("WebIdentityToken", token)];
    for (name, value) in [("RoleArn", role.as_str()), ("RoleSessionName", "me@example.com")] {
        if !parameters.iter().any(|(given, _)| *given == name) {
            form.push((name, value));
        }
    }
    form.extend(parameters);
    let body: Vec<String> =
        form.iter().map(|(name, value)| format!("{name}={}", sigv4::encode(value.as_bytes()))).collect();
    let host = emulator.endpoint().replace("http://", "");
    let tcp = within(TcpStream::connect(&host)).await.unwrap();
    exchange(tcp, "POST", "/", &[("host".to_owned(), host)], &body.join("&")).await
}

#[tokio::test]
async fn knows_the_caller_by_the_signature() {
    let emulator = start(quick()).await;
    let answer = sts(&emulator, "Action=GetCallerIdentity&Version=2011-06-15").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.element("Arn"), "arn:aws:sts::123456789012:assumed-role/AutohealReadOnlyRole/emulator");
    emulator.stop().await;
}

#[tokio::test]
async fn refuses_bad_signatures_with_the_code_of_each_service() {
    let emulator = start(quick()).await;
    let keys = TestKeys::of(&emulator);
    let identity = "Action=GetCallerIdentity&Version=2011-06-15";
    let sts = async |signer| call(&emulator, &signer, "POST", "/", &[], identity).await.element("Code");
    let ssm = async |signer| {
        let answer = call(&emulator, &signer, "POST", "/", &[("x-amz-target", "AmazonSSM.StartSession")], "{}").await;
        assert_eq!(answer.status, 400);
        answer.json()["__type"].as_str().unwrap().to_owned()
    };
    let eks = async |signer| {
        let answer = call(&emulator, &signer, "GET", "/clusters", &[], "").await;
        assert_eq!(answer.status, 403);
        answer.head.lines().find_map(|line| line.strip_prefix("x-amzn-errortype: ").map(str::to_owned)).unwrap()
    };
    let wrong = TestKeys { secret: "x".into(), ..keys.clone() };
    let unknown = TestKeys { access_key: "ASIAUNKNOWNUNKNOWN00".into(), ..keys.clone() };
    assert_eq!(sts(wrong.signer("sts")).await, "SignatureDoesNotMatch");
    assert_eq!(ssm(wrong.signer("ssm")).await, "InvalidSignatureException");
    assert_eq!(eks(wrong.signer("eks")).await, "invalidsignatureexception");
    assert_eq!(sts(unknown.signer("sts")).await, "InvalidClientTokenId");
    assert_eq!(ssm(unknown.signer("ssm")).await, "UnrecognizedClientException");
    assert_eq!(sts(keys.signer("ssm")).await, "SignatureDoesNotMatch");
    let mut late = keys.signer("eks");
    late.wall -= Duration::from_secs(600);
    let answer = call(&emulator, &late, "GET", "/clusters", &[], "").await;
    assert!(answer.body.contains("Signature expired: "), "{answer:?}");
    emulator.expire_credentials();
    assert_eq!(sts(keys.signer("sts")).await, "ExpiredToken");
    assert_eq!(ssm(keys.signer("ssm")).await, "ExpiredTokenException");
    emulator.stop().await;
}

#[tokio::test]
async fn a_wrong_clock_makes_signatures_expire() {
    let emulator = start(quick()).await;
    emulator.update(|settings| settings.clock_skew_ms = 600_000);
    let answer = sts(&emulator, "Action=GetCallerIdentity&Version=2011-06-15").await;
    assert_eq!((answer.status, answer.element("Code").as_str()), (403, "SignatureDoesNotMatch"));
    assert!(answer.element("Message").starts_with("Signature expired"));
    emulator.stop().await;
}

#[tokio::test]
async fn gives_a_role_for_a_good_oidc_token() {
    let emulator = start(quick()).await;
    let token = std::fs::read_to_string(emulator.token_file()).unwrap();
    let answer = web_identity(&emulator, &[], token.trim()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.element("Arn"), "arn:aws:sts::123456789012:assumed-role/AutohealReadOnlyRole/me@example.com");
    let keys = TestKeys {
        access_key: answer.element("AccessKeyId"),
        secret: answer.element("SecretAccessKey"),
        session_token: answer.element("SessionToken"),
    };
    let answer =
        call(&emulator, &keys.signer("sts"), "POST", "/", &[], "Action=GetCallerIdentity&Version=2011-06-15").await;
    assert!(answer.element("UserId").ends_with(":me@example.com"));
    // The role of a role, for an hour at most.
    let role = sigv4::encode(b"arn:aws:iam::123456789012:role/AutohealAdminRole");
    let body = format!("Action=AssumeRole&Version=2011-06-15&RoleSessionName=chained&RoleArn={role}");
    let answer = call(&emulator, &keys.signer("sts"), "POST", "/", &[], &body).await;
    assert!(answer.element("Arn").ends_with("assumed-role/AutohealAdminRole/chained"));
    let answer = call(&emulator, &keys.signer("sts"), "POST", "/", &[], &format!("{body}&DurationSeconds=7200")).await;
    assert_eq!((answer.status, answer.element("Code").as_str()), (400, "ValidationError"));
    emulator.stop().await;
}

#[tokio::test]
async fn says_what_is_wrong_with_an_oidc_token() {
    let emulator = start(quick()).await;
    let claims = emulator.oidc_claims(Duration::from_secs(600));
    let good = emulator.mint_oidc_token(&claims);
    let expired = OidcClaims { expires: Duration::from_secs(1_700_000_000), ..claims.clone() };
    let audience = OidcClaims { audience: "elsewhere".into(), ..claims.clone() };
    let issuer = OidcClaims { issuer: "https://elsewhere".into(), ..claims };
    let code = async |parameters: &[(&str, &str)], token: &str| {
        let answer = web_identity(&emulator, parameters, token).await;
        (answer.status, answer.element("Code"))
    };
    let is = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(code(&[], &emulator.mint_oidc_token(&expired)).await, is(400, "ExpiredTokenException"));
    assert_eq!(code(&[], &emulator.mint_oidc_token(&audience)).await, is(400, "InvalidIdentityToken"));
    assert_eq!(code(&[], &emulator.mint_oidc_token(&issuer)).await, is(400, "InvalidIdentityToken"));
    assert_eq!(code(&[], "nonsense").await, is(400, "InvalidIdentityToken"));
    assert_eq!(code(&[("DurationSeconds", "60")], &good).await, is(400, "ValidationError"));
    assert_eq!(code(&[("RoleSessionName", "a b")], &good).await, is(400, "ValidationError"));
    assert_eq!(code(&[("RoleArn", "arn:aws:iam::123456789012:role/None")], &good).await, is(403, "AccessDenied"));
    emulator.update(|settings| {
        settings.denied_actions.insert("sts:AssumeRoleWithWebIdentity".to_owned());
    });
    assert_eq!(code(&[], &good).await, is(403, "AccessDenied"));
    emulator.stop().await;
}

#[tokio::test]
async fn serves_tokens_to_ci_jobs() {
    let emulator = start(quick()).await;
    let host = emulator.endpoint().replace("http://", "");
    let request = async |authorization: String| {
        let tcp = within(TcpStream::connect(&host)).await.unwrap();
        let headers = [("host".to_owned(), host.clone()), ("authorization".to_owned(), authorization)];
        exchange(tcp, "GET", "/oidc?api-version=2.0&audience=sts.amazonaws.com", &headers, "").await
    };
    assert_eq!(request("bearer wrong".to_owned()).await.status, 401);
    let variables = emulator.ci_environment();
    assert!(variables[0].1.starts_with(&emulator.endpoint()));
    let answer = request(format!("bearer {}", variables[1].1)).await;
    let token = answer.json()["value"].as_str().unwrap().to_owned();
    assert_eq!(web_identity(&emulator, &[], &token).await.status, 200);
    emulator.stop().await;
}

#[tokio::test]
async fn lists_real_clusters_of_the_region_page_by_page() {
    let mut config = Config { list_page_len: 2, ..quick() };
    config.clusters = ["a", "no", "c"].map(ClusterConfig::new).into();
    config.clusters.push(ClusterConfig::connected("external"));
    config.clusters.push(ClusterConfig { region: Some("eu-west-1".into()), ..ClusterConfig::new("far") });
    config.clusters.push(ClusterConfig::creating("young"));
    let emulator = start(config).await;
    let keys = TestKeys::of(&emulator);
    let get = async |target: &str| call(&emulator, &keys.signer("eks"), "GET", target, &[], "").await;
    let first = get("/clusters").await.json();
    assert_eq!(first["clusters"], json!(["a", "no"]));
    let token = sigv4::encode(first["nextToken"].as_str().unwrap().as_bytes());
    let second = get(&format!("/clusters?nextToken={token}&maxResults=100")).await.json();
    assert_eq!(second, json!({"clusters": ["c", "young"], "nextToken": null}));
    let young = get("/clusters/young").await.json();
    assert_eq!(young["cluster"]["status"], "CREATING");
    assert!(young["cluster"].get("endpoint").is_none());
    assert!(get("/clusters/external").await.json()["cluster"].get("connectorConfig").is_some());
    let missing = get("/clusters/far").await;
    assert_eq!((missing.status, missing.json()["message"].as_str()), (404, Some("No cluster found for name: far.")));
    emulator.stop().await;
}

#[tokio::test]
async fn endpoints_have_the_form_of_the_ip_family_and_the_partition() {
    let cluster = |name: &str, ipv6, region: &str| ClusterConfig {
        ipv6,
        region: Some(region.to_owned()),
        ..ClusterConfig::new(name)
    };
    let clusters = vec![
        cluster("a", false, "us-east-1"),
        cluster("b", true, "us-east-1"),
        cluster("c", false, "cn-north-1"),
        cluster("d", true, "cn-north-1"),
    ];
    let emulator = start(Config { clusters, ..quick() }).await;
    let keys = TestKeys::of(&emulator);
    let ends = [
        ".us-east-1.eks.amazonaws.com",
        ".us-east-1.api.aws",
        ".cn-north-1.eks.amazonaws.com.cn",
        ".cn-north-1.api.amazonwebservices.com.cn",
    ];
    for (server, end) in emulator.api_servers().iter().zip(ends) {
        assert!(server.host.ends_with(end), "{}", server.host);
        let signer = sigv4::tests::Signer { region: end.split('.').nth(1).unwrap(), ..keys.signer("eks") };
        let described = call(&emulator, &signer, "GET", &format!("/clusters/{}", server.cluster), &[], "").await.json();
        let family = if end.contains("api.a") { "ipv6" } else { "ipv4" };
        assert_eq!(described["cluster"]["endpoint"], format!("https://{}", server.host));
        assert_eq!(described["cluster"]["kubernetesNetworkConfig"]["ipFamily"], family);
    }
    emulator.stop().await;
}

/// Status, code, and the members of the body besides it.
fn error_of(answer: &Answer) -> (u16, String, Vec<String>) {
    let value = answer.json();
    let members = value.as_object().unwrap().keys().filter(|name| *name != "__type").cloned().collect();
    assert!(answer.head.contains("content-type: application/x-amz-json-1.1"), "{answer:?}");
    assert!(!answer.head.contains("x-amzn-errortype"), "its place is in the body: {answer:?}");
    (answer.status, value["__type"].as_str().unwrap().to_owned(), members)
}

#[tokio::test]
async fn errors_have_the_shapes_of_the_api_model() {
    let emulator = start(quick()).await;
    let bastion = "i-0dc03fbcae2a87472";
    let document = "AWS-StartPortForwardingSessionToRemoteHost";
    let fail =
        |failure| emulator.update(|s| drop(s.failing_actions.insert("ssm:TerminateSession".to_owned(), failure)));
    let session = json!({"SessionId": "nobody-0"});
    for (operation, input, status, code, members) in [
        (
            "StartSession",
            json!({"Target": "i-00000000", "DocumentName": document}),
            400,
            "TargetNotConnected",
            "Message",
        ),
        ("StartSession", json!({"Target": bastion, "DocumentName": "Mine"}), 400, "InvalidDocument", "Message"),
        ("StartSession", json!({}), 400, "ValidationException", "message"),
        ("ResumeSession", session.clone(), 400, "DoesNotExistException", "Message"),
        ("DescribeInstanceInformation", json!({"NextToken": "x"}), 400, "InvalidNextToken", "Message"),
        ("DescribeInstanceInformation", json!({"MaxResults": 4}), 400, "ValidationException", "message"),
        (
            "DescribeInstanceInformation",
            json!({"Filters": [{"Key": "Colour", "Values": ["red"]}]}),
            400,
            "InvalidFilterKey",
            "",
        ),
        (
            "DescribeSessions",
            json!({"State": "Active", "Filters": [{"key": "x", "value": "y"}]}),
            400,
            "InvalidFilterKey",
            "",
        ),
        ("Unheard", json!({}), 400, "UnknownOperationException", "message"),
    ] {
        let answer = ssm(&emulator, operation, input).await;
        let members: Vec<String> = members.split_whitespace().map(str::to_owned).collect();
        assert_eq!(error_of(&answer), (status, code.to_owned(), members), "{operation}");
    }
    fail(Failure::internal(1));
    let answer = ssm(&emulator, "TerminateSession", session.clone()).await;
    assert_eq!(error_of(&answer), (500, "InternalServerError".to_owned(), vec!["Message".to_owned()]));
    fail(Failure::throttled(1));
    let answer = ssm(&emulator, "TerminateSession", session.clone()).await;
    assert_eq!(error_of(&answer), (400, "ThrottlingException".to_owned(), vec!["message".to_owned()]));
    emulator.update(|settings| settings.denied_actions.extend(["ssm:TerminateSession".to_owned()]));
    let answer = ssm(&emulator, "TerminateSession", session).await;
    assert_eq!(error_of(&answer), (400, "AccessDeniedException".to_owned(), vec!["Message".to_owned()]));
    emulator.stop().await;
}

/// The `Date` of an answer, as the time since the Unix epoch that it is.
fn date_of(head: &str) -> Duration {
    let date = head.lines().find_map(|line| line.strip_prefix("date: ")).unwrap_or_else(|| panic!("no date in {head}"));
    assert_eq!(head.matches("\ndate: ").count(), 1, "{head}");
    let words: Vec<&str> = date.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let [weekday, day, month, year, time, "gmt"] = words[..] else { panic!("{date}") };
    let months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let month = months.iter().position(|name| *name == month).unwrap() + 1;
    let basic = format!("{year}{month:02}{day:0>2}T{}Z", time.replace(':', ""));
    let wall = parse_basic_date(&basic).unwrap_or_else(|| panic!("{basic}"));
    // The Unix epoch was a Thursday.
    let names = ["thu", "fri", "sat", "sun", "mon", "tue", "wed"];
    assert_eq!(names[usize::try_from(wall.as_secs() / 86_400 % 7).unwrap()], weekday);
    wall
}

#[tokio::test]
async fn every_answer_has_a_date_by_the_clock_of_the_emulated_aws() {
    let emulator = start(quick()).await;
    let granted = start_session(&emulator, "h", 443).await;
    for skew in [0, 86_400_000, -7_200_000] {
        emulator.update(|settings| settings.clock_skew_ms = skew);
        let clock = Clock::default();
        clock.set_skew_ms(skew);
        let check = |what: &str, head: &str, status: u16| {
            assert!(head.starts_with(&format!("http/1.1 {status} ")), "{what}: {head}");
            let difference = date_of(head).abs_diff(clock.wall());
            assert!(difference < Duration::from_secs(60), "{what}: off by {difference:?}");
        };
        let keys = TestKeys::of(&emulator);
        let mut ssm = keys.signer("ssm");
        ssm.wall = clock.wall();
        let target = [("x-amz-target", "AmazonSSM.DescribeInstanceInformation")];
        check("an answer", &call(&emulator, &ssm, "POST", "/", &target, "{}").await.head, 200);
        ssm.secret = "wrong";
        check("an error", &call(&emulator, &ssm, "POST", "/", &target, "{}").await.head, 400);
        check("no API", &call(&emulator, &ssm, "GET", "/nothing", &[], "").await.head, 404);

        let (host, path) = granted.url.strip_prefix("ws://").unwrap().split_once('/').unwrap();
        let (path, query) = path.split_once('?').unwrap();
        let mut signer = keys.signer("ssmmessages");
        signer.wall = clock.wall();
        for (signed, path, status) in [(true, path, 101), (false, path, 403), (true, "v1/data-channel/nobody-0", 404)] {
            let mut headers = signer.headers("GET", host, &format!("/{path}"), query, b"");
            headers.retain(|_| signed);
            headers.push(("host".to_owned(), host.to_owned()));
            for (name, value) in [
                ("upgrade", "websocket"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ] {
                headers.push((name.to_owned(), value.to_owned()));
            }
            let head = upgrade_head(host, &format!("/{path}?{query}"), &headers).await;
            check("an upgrade", &head, status);
        }
    }
    emulator.stop().await;
}

#[tokio::test]
async fn refuses_sessions_as_systems_manager_does() {
    let mut config = quick();
    config.bastions.push(BastionConfig { online: false, ..BastionConfig::new("mi-0dc03fbcae2a87472") });
    let emulator = start(config).await;
    let with = |target: &str, document: &str| {
        json!({
            "Target": target, "DocumentName": document,
            "Parameters": {"host": ["h"], "portNumber": ["443"], "localPortNumber": ["0"]},
        })
    };
    let remote = "AWS-StartPortForwardingSessionToRemoteHost";
    let refused = async |input| {
        let answer = ssm(&emulator, "StartSession", input).await;
        let value = answer.json();
        (
            value["__type"].as_str().unwrap_or("none").to_owned(),
            value["Message"].as_str().unwrap_or_default().to_owned(),
        )
    };
    for target in ["mi-0dc03fbcae2a87472", "i-00000000"] {
        let is = ("TargetNotConnected".to_owned(), format!("{target} is not connected."));
        assert_eq!(refused(with(target, remote)).await, is);
    }
    let bastion = "i-0dc03fbcae2a87472";
    assert_eq!(refused(with(bastion, "My-Document")).await.0, "InvalidDocument");
    assert_eq!(refused(json!({"Target": bastion, "DocumentName": remote})).await.0, "InvalidParameters");
    assert_eq!(
        refused(json!({"Target": bastion, "DocumentName": remote, "Reason": ""})).await.0,
        "ValidationException"
    );
    emulator.update(|settings| {
        settings.denied_documents.insert(remote.to_owned());
        settings.failing_actions.insert("ssm:StartSession".to_owned(), Failure::throttled(1));
    });
    assert_eq!(refused(with(bastion, remote)).await.0, "ThrottlingException");
    let (code, message) = refused(with(bastion, remote)).await;
    assert_eq!(code, "AccessDeniedException");
    assert_eq!(
        message,
        "User: arn:aws:sts::123456789012:assumed-role/AutohealReadOnlyRole/emulator is not authorized to perform: \
         ssm:StartSession on resource: arn:aws:ssm:us-east-1::document/AWS-StartPortForwardingSessionToRemoteHost because no \
         identity-based policy allows the ssm:StartSession action"
    );
    assert!(
        emulator
            .events()
            .contains(&Event::Api { action: "ssm:StartSession".into(), error: Some("AccessDeniedException".into()) })
    );
    let resumed = ssm(&emulator, "ResumeSession", json!({"SessionId": "nobody-0"})).await;
    assert_eq!((resumed.status, resumed.json()["__type"].as_str()), (400, Some("DoesNotExistException")));
    assert_eq!(ssm(&emulator, "TerminateSession", json!({"SessionId": "nobody-0"})).await.status, 200);
    let filter = json!({"Filters": [{"Key": "InstanceIds", "Values": [bastion]}]});
    let known = ssm(&emulator, "DescribeInstanceInformation", filter).await.json();
    assert_eq!(known["InstanceInformationList"].as_array().unwrap().len(), 1);
    assert_eq!(known["InstanceInformationList"][0]["PingStatus"], "Online");
    let status = ssm(&emulator, "GetConnectionStatus", json!({"Target": "mi-0dc03fbcae2a87472"})).await.json();
    assert_eq!(status["Status"], "notconnected");
    emulator.stop().await;
}
