//! EC2 against a fake one.

use std::time::Duration;

use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};

use super::*;
use crate::{
    aws::{
        Ambient, Surroundings,
        error::Refusal,
        query,
        testing::{Answer, Fake, Request, aws, aws_with_shifted_clock, in_time, shifted},
    },
    settings::{AwsSettings, SdkVariables},
};

const NONE: &str = "<DescribeInstancesResponse><reservationSet/></DescribeInstancesResponse>";

fn error(status: u16, code: &str, message: &str) -> Answer {
    Answer::xml(
        status,
        &format!(
            "<?xml version=\"1.0\"?><Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
             <RequestID>r-2</RequestID></Response>"
        ),
    )
}

/// An instance as EC2 describes it, without most of it.
fn described(id: &str, more: &str) -> String {
    format!(
        "<item><reservationId>r-0abc</reservationId><groupSet/><instancesSet><item><instanceId>{id}</instanceId>\
         <instanceState><code>16</code><name>running</name></instanceState><privateIpAddress>10.0.1.5</privateIpAddress>\
         <subnetId>subnet-1</subnetId><vpcId>vpc-1</vpcId><launchTime>2026-11-22T03:18:28.000Z</launchTime>\
         <placement><availabilityZone>us-east-1a</availabilityZone><tenancy>default</tenancy></placement>\
         <tagSet><item><key>Name</key><value>the jump&#27;[2J &amp; box</value></item><item><key>empty</key><value/></item></tagSet>\
         <networkInterfaceSet><item><ipv6AddressesSet><item><ipv6Address>2001:db8::5</ipv6Address></item></ipv6AddressesSet></item>\
         </networkInterfaceSet>{more}</item></instancesSet></item>"
    )
}

fn page(instances: &[String], token: &str) -> Answer {
    Answer::xml(
        200,
        &format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\n \
             <requestId>r-1</requestId><reservationSet>{}</reservationSet>{token}</DescribeInstancesResponse>",
            instances.concat()
        ),
    )
}

#[tokio::test]
async fn all_pages_of_instances_are_read() {
    let fake = Fake::start(|request| match request.parameter("NextToken") {
        "" => page(&[described("i-1", "<ipAddress>192.0.2.7</ipAddress>")], "<nextToken>a/b=</nextToken>"),
        _ => page(&[described("i-2", "<platform>windows</platform>"), described("i-3", "")], ""),
    })
    .await;
    let filters = [Filter::new("vpc-id", ["vpc-1"]), Filter::new("tag:Name", ["jump*", "a?b\\c"])];
    let found = in_time(aws(&fake).await.describe_instances(&filters)).await.unwrap();
    assert_eq!(found.iter().map(|instance| instance.id.as_str()).collect::<Vec<_>>(), ["i-1", "i-2", "i-3"]);
    let some = |text: &str| Some(text.to_owned());
    let name = PeerText::new("the jump\u{1b}[2J & box");
    assert_eq!(
        found[0],
        Instance {
            id: "i-1".into(),
            state: "running".into(),
            name: Some(name.clone()),
            tags: [("Name".to_owned(), name), ("empty".to_owned(), PeerText::default())].into(),
            vpc_id: some("vpc-1"),
            subnet_id: some("subnet-1"),
            private_ip: some("10.0.1.5"),
            public_ip: some("192.0.2.7"),
            ipv6: some("2001:db8::5"),
            platform: None,
            availability_zone: some("us-east-1a"),
            launch_time: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_317_508)),
        }
    );
    assert_eq!(found[1].platform.as_deref(), Some("windows"));
    let first = "Action=DescribeInstances&Version=2016-11-15&MaxResults=100&Filter.1.Name=vpc-id&Filter.1.Value.1=vpc-1\
                 &Filter.2.Name=tag%3AName&Filter.2.Value.1=jump%5C%2A&Filter.2.Value.2=a%5C%3Fb%5C%5Cc";
    let requests = fake.requests();
    assert_eq!(requests[0].body, first);
    assert_eq!(requests[1].body, format!("{first}&NextToken=a%2Fb%3D"));
    assert_eq!(requests.len(), 2);
    let request = &requests[0];
    assert_eq!(request.target, "/");
    assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded; charset=utf-8"));
    let authorization = request.header("authorization").unwrap();
    assert!(authorization.contains("/us-east-1/ec2/aws4_request, "), "{authorization}");
    let signed = "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token";
    assert!(authorization.contains(signed), "{authorization}");
}

#[tokio::test]
async fn endpoints_of_instance_connect_are_read() {
    let fake = Fake::start(|_| {
        Answer::xml(
            200,
            "<DescribeInstanceConnectEndpointsResponse><instanceConnectEndpointSet><item>\
             <instanceConnectEndpointId>eice-1</instanceConnectEndpointId><state>create-complete</state>\
             <dnsName>eice-1.b.ec2-instance-connect-endpoint.us-east-1.amazonaws.com</dnsName>\
             <fipsDnsName>eice-1.b.fips.ec2-instance-connect-endpoint.us-east-1.amazonaws.com</fipsDnsName>\
             <vpcId>vpc-1</vpcId><subnetId>subnet-1</subnetId><preserveClientIp>true</preserveClientIp></item>\
             </instanceConnectEndpointSet></DescribeInstanceConnectEndpointsResponse>",
        )
    })
    .await;
    let found = in_time(aws(&fake).await.describe_instance_connect_endpoints("vpc-1")).await.unwrap();
    let [endpoint] = &found[..] else { panic!("{found:?}") };
    assert_eq!((endpoint.id.as_str(), &*endpoint.state), ("eice-1", "create-complete"));
    assert!(endpoint.preserve_client_ip && endpoint.dns_name.is_some() && endpoint.fips_dns_name.is_some());
    assert_eq!(
        fake.requests()[0].body,
        "Action=DescribeInstanceConnectEndpoints&Version=2016-11-15&MaxResults=50&Filter.1.Name=vpc-id&Filter.1.Value.1=vpc-1"
    );
}

#[tokio::test]
async fn console_output_is_decoded() {
    let answer = |output: &str| {
        let text = format!("<GetConsoleOutputResponse><instanceId>i-1</instanceId>{output}</GetConsoleOutputResponse>");
        Fake::start(move |_| Answer::xml(200, &text))
    };
    let fake = answer("<output>c3NoLWVk\r\nMjU1MTkg/wo=</output>").await;
    let aws_of = async |fake: &Fake| in_time(aws(fake).await.console_output("i-1")).await;
    assert_eq!(aws_of(&fake).await.unwrap().unwrap(), "ssh-ed25519 \n");
    assert_eq!(fake.requests()[0].body, "Action=GetConsoleOutput&Version=2016-11-15&InstanceId=i-1");
    assert_eq!(aws_of(&answer("").await).await.unwrap(), None);
    for odd in ["!".to_owned(), "A".repeat(MAX_CONSOLE_LEN + 4)] {
        let error = aws_of(&answer(&format!("<output>{odd}</output>")).await).await.unwrap_err();
        assert!(matches!(error, AwsError::Malformed { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn errors_have_their_causes() {
    let failing = async |answer: Answer| {
        let fake = Fake::start(move |_| answer.clone()).await;
        in_time(aws(&fake).await.console_output("i-0abc")).await.unwrap_err()
    };
    let absent = failing(error(400, "InvalidInstanceID.NotFound", "The instance ID 'i-0abc' does not exist")).await;
    assert!(
        matches!(&absent, AwsError::Refused { refusal: Refusal::Absent, resource, .. } if resource == "i-0abc"),
        "{absent:?}"
    );
    assert_eq!(
        absent.answer().unwrap().to_string(),
        "InvalidInstanceID.NotFound: The instance ID 'i-0abc' does not exist (HTTP status 400, request r-2)"
    );
    let message = "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/ann is not authorized \
                   to perform: ec2:GetConsoleOutput on resource: arn:aws:ec2:us-east-1:123456789012:instance/i-0abc";
    let denied = failing(error(403, "UnauthorizedOperation", message).with("x-amzn-requestid", "r-9")).await;
    assert_eq!(
        denied.to_string(),
        "not authorized to perform `ec2:GetConsoleOutput` on `arn:aws:ec2:us-east-1:123456789012:instance/i-0abc`"
    );
    assert_eq!(denied.answer().unwrap().request_id.as_deref(), Some("r-9"));
    let throttled = failing(error(503, "RequestLimitExceeded", "Request limit exceeded.")).await;
    assert!(matches!(throttled, AwsError::Throttled { action: "ec2:GetConsoleOutput", .. }), "{throttled:?}");
    let keys = failing(error(401, "AuthFailure", "AWS was not able to validate the provided access credentials")).await;
    assert!(matches!(keys, AwsError::BadKeys { .. }), "{keys:?}");
    for answer in [Answer::html("<html><body>Sign in</body></html>"), Answer::xml(200, "<R/>"), Answer::xml(200, "")] {
        let foreign = failing(answer).await;
        assert!(matches!(foreign, AwsError::Service { .. }), "{foreign:?}");
        assert!(foreign.answer().unwrap().is_foreign(), "{foreign:?}");
    }
    let broken = failing(Answer::html("<title>500 Internal Server Error</title>").status(500)).await;
    assert!(matches!(broken, AwsError::Service { .. }), "{broken:?}");
}

#[tokio::test]
async fn what_cannot_be_is_an_error() {
    for answer in [
        page(&[described("i-1;id", "")], ""),
        page(&["<item><instancesSet><item/></instancesSet></item>".to_owned()], ""),
        page(&[described("i-1", "<ipAddress>$(id)</ipAddress>")], ""),
        page(&[], "<nextToken>again</nextToken>"),
    ] {
        let fake = Fake::start(move |_| answer.clone()).await;
        let error = in_time(aws(&fake).await.describe_instances(&[])).await.unwrap_err();
        assert!(matches!(error, AwsError::Malformed { .. }), "{error:?}");
    }
}

fn surroundings() -> Surroundings {
    let keys = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
    Surroundings {
        ambient: Some(Ambient::of("us-east-1", SharedCredentialsProvider::new(keys))),
        ..Surroundings::default()
    }
}

/// Clients of the region that have these variables of the SDK.
async fn with_variables(variables: &[(&'static str, String)]) -> Aws {
    let mut sdk = SdkVariables::default();
    for (name, value) in variables {
        sdk.add(name, value);
    }
    let settings = AwsSettings { region: Some("us-east-1".into()), sdk_variables: sdk, ..AwsSettings::default() };
    Box::pin(Aws::build(&settings, surroundings())).await.unwrap()
}

#[tokio::test]
async fn an_endpoint_of_ones_own_is_called() {
    let (own, all) = (Fake::start(|_| page(&[], "")).await, Fake::start(|_| page(&[], "")).await);
    let of_all = ("AWS_ENDPOINT_URL", all.url());
    let aws = with_variables(&[of_all.clone(), ("AWS_ENDPOINT_URL_EC2", own.url())]).await;
    assert_eq!(in_time(aws.describe_instances(&[])).await.unwrap(), []);
    assert_eq!((own.requests().len(), all.requests().len()), (1, 0));
    let aws = with_variables(&[of_all]).await;
    assert_eq!(in_time(aws.describe_instances(&[])).await.unwrap(), []);
    assert_eq!((own.requests().len(), all.requests().len()), (1, 1));
}

#[tokio::test]
async fn throttled_calls_are_made_again_and_signed_anew() {
    for trouble in
        [error(503, "RequestLimitExceeded", "no"), error(400, "Throttling", "no"), Answer::html("").status(500)]
    {
        let count = std::sync::atomic::AtomicUsize::new(0);
        let fake = Fake::start(move |_: &Request| {
            let is_first = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
            if is_first { trouble.clone() } else { Answer::xml(200, NONE) }
        })
        .await;
        let aws = with_variables(&[("AWS_ENDPOINT_URL_EC2", fake.url())]).await;
        assert_eq!(in_time(aws.describe_instances(&[])).await.unwrap(), []);
        assert_eq!(fake.operations(), ["DescribeInstances", "DescribeInstances"]);
        assert!(fake.requests().iter().all(|request| request.header("authorization").is_some()));
    }
    let fake = Fake::start(|_| error(400, "InvalidParameterValue", "no")).await;
    let aws = with_variables(&[("AWS_ENDPOINT_URL_EC2", fake.url())]).await;
    in_time(aws.describe_instances(&[])).await.unwrap_err();
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn a_clock_that_is_off_is_found_out() {
    shifted::set(-7200);
    let fake = Fake::start(|request| {
        let now = DateTime::from(SystemTime::UNIX_EPOCH + crate::clock::wall());
        let date = now.fmt(Format::HttpDate).unwrap();
        let hour = &now.fmt(Format::DateTime).unwrap().replace(['-', ':'], "")[..11];
        let answer = if request.header("x-amz-date").unwrap().starts_with(hour) {
            Answer::xml(200, NONE)
        } else {
            error(400, "RequestExpired", "Request has expired.")
        };
        answer.with("date", &date).with("x-amzn-requestid", "r-1")
    })
    .await;
    let settings = AwsSettings { region: Some("us-east-1".into()), ..AwsSettings::default() };
    let aws = aws_with_shifted_clock(&fake, &settings).await;
    assert_eq!(in_time(aws.describe_instances(&[])).await.unwrap(), []);
    assert_eq!(in_time(aws.describe_instances(&[])).await.unwrap(), []);
    assert_eq!(fake.requests().len(), 3);
}

#[tokio::test]
async fn by_a_clock_that_is_right_it_is_the_credentials_that_have_expired() {
    let fake = Fake::start(|_| {
        let now = DateTime::from(SystemTime::UNIX_EPOCH + crate::clock::wall());
        let answer = error(400, "RequestExpired", "Request has expired.");
        answer.with("date", &now.fmt(Format::HttpDate).unwrap()).with("x-amzn-requestid", "r-1")
    })
    .await;
    let answer = in_time(aws(&fake).await.describe_instances(&[])).await;
    assert!(matches!(answer, Err(AwsError::ExpiredCredentials { .. })), "{answer:?}");
}

#[tokio::test]
async fn derives_the_endpoints_that_botocore_has() {
    let table = include_str!("../../../tests/fixtures/ec2-endpoints.txt");
    let mut count = 0;
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let (region, hosts) = line.split_once(' ').unwrap();
        let kinds = [(false, false), (false, true), (true, false), (true, true)];
        for ((fips, dual_stack), host) in kinds.into_iter().zip(hosts.split(' ')) {
            let ours = query::endpoint("ec2", region, fips, dual_stack).await.unwrap();
            assert_eq!(ours, format!("https://{host}"), "{region} {fips} {dual_stack}");
            count += 1;
        }
    }
    assert_eq!(count, 192);
}

#[test]
fn tags_with_deceptive_keys_are_left_out() {
    let text = "<i><tagSet><item><key>a</key><value>1</value></item><item><key>b\u{200b}</key><value>2</value></item></tagSet></i>";
    let tags = tags(&Element::read(text.as_bytes()).unwrap());
    assert_eq!(tags.into_keys().collect::<Vec<_>>(), ["a"]);
}
