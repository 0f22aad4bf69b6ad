//! Requests for access to nodes, what is decided about them, and credentials for the node alone.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    super::{AccessStatus, Config, Emulator, Fault, JustInTime},
    support::{quick, start},
};

const NODE: &str = "i-0dc03fbcae2a87472";

async fn with(just_in_time: JustInTime) -> Emulator {
    let emulator = start(Config { bastions: two(), ..quick() }).await;
    emulator.update(|settings| settings.just_in_time = just_in_time);
    emulator
}

fn two() -> Vec<super::super::BastionConfig> {
    [NODE, "i-0fedcba9876543210"].map(super::super::BastionConfig::new).to_vec()
}

fn request_for(node: &str) -> Value {
    json!({ "Reason": "why", "Targets": [{ "Key": "InstanceIds", "Values": [node] }] })
}

/// The answer of a call, or the error's code and message.
async fn call(emulator: &Emulator, key: &str, operation: &str, input: Value) -> Result<Value, (String, String)> {
    emulator.call(key, operation, &input).await.map_err(|error| (error.code, error.message))
}

/// Requests access, and returns the access key of the requester with what comes of the request.
async fn requested(emulator: &Emulator) -> (String, String, Value) {
    let own = emulator.new_access_key();
    let request = call(emulator, &own, "StartAccessRequest", request_for(NODE)).await.unwrap();
    let id = request["AccessRequestId"].as_str().unwrap().to_owned();
    let token = call(emulator, &own, "GetAccessToken", json!({ "AccessRequestId": id })).await.unwrap();
    (own, id, token)
}

/// Starts a session to a host, and returns what it is denied on.
async fn denied_on(emulator: &Emulator, key: &str, node: &str) -> Option<String> {
    let input = json!({
        "Target": node, "DocumentName": "AWS-StartPortForwardingSessionToRemoteHost",
        "Parameters": { "host": ["10.0.9.9"], "portNumber": ["443"] },
    });
    let (code, message) = call(emulator, key, "StartSession", input).await.err()?;
    assert_eq!(code, "AccessDeniedException", "{message}");
    let (_, rest) = message.split_once("ssm:StartSession on resource: ").unwrap();
    Some(rest.split(' ').next().unwrap().to_owned())
}

#[tokio::test]
async fn approved_credentials_are_for_sessions_with_the_node() {
    let emulator = with(JustInTime::deciding(AccessStatus::Approved)).await;
    let (own, id, token) = requested(&emulator).await;
    assert_eq!(token["AccessRequestStatus"], "Approved");
    let key = token["Credentials"]["AccessKeyId"].as_str().unwrap().to_owned();
    let instance = |id: &str| Some(format!("arn:aws:ec2:us-east-1:123456789012:instance/{id}"));
    assert_eq!(denied_on(&emulator, &own, NODE).await, instance(NODE), "nobody may without an approval");
    assert_eq!(denied_on(&emulator, &key, NODE).await, None);
    assert_eq!(denied_on(&emulator, &key, "i-0fedcba9876543210").await, instance("i-0fedcba9876543210"));
    let session = emulator.sessions()[0].id.clone();
    let other = call(&emulator, &own, "ResumeSession", json!({ "SessionId": session })).await;
    assert_eq!(other.unwrap_err().0, "AccessDeniedException", "it is another one's session");
    call(&emulator, &key, "ResumeSession", json!({ "SessionId": session })).await.unwrap();
    let nodes = call(&emulator, &key, "DescribeInstanceInformation", json!({})).await;
    assert_eq!(nodes.unwrap_err().0, "AccessDeniedException", "they are for sessions alone");
    let requests = emulator.access_requests();
    assert_eq!((requests[0].id.as_str(), requests[0].reason.as_str()), (id.as_str(), "why"));

    // What was given before is denied as well.
    emulator.decide_access(AccessStatus::Revoked);
    assert_eq!(denied_on(&emulator, &key, NODE).await, instance(NODE));
    let token = call(&emulator, &own, "GetAccessToken", json!({ "AccessRequestId": id })).await.unwrap();
    assert_eq!(token, json!({ "AccessRequestStatus": "Revoked" }));
    call(&emulator, &key, "ResumeSession", json!({ "SessionId": session })).await.unwrap();
    emulator.stop().await;
}

#[tokio::test]
async fn shells_are_all_that_the_published_policies_allow() {
    let emulator = with(JustInTime { shells_only: true, ..JustInTime::deciding(AccessStatus::Approved) }).await;
    let (_, _, token) = requested(&emulator).await;
    let key = token["Credentials"]["AccessKeyId"].as_str().unwrap();
    let document = "arn:aws:ssm:us-east-1::document/AWS-StartPortForwardingSessionToRemoteHost";
    assert_eq!(denied_on(&emulator, key, NODE).await.as_deref(), Some(document));
    emulator.stop().await;
}

#[tokio::test]
async fn every_decision_comes_in_its_time() {
    for (fault, status) in [
        ("just-in-time=pending", "Pending"),
        ("just-in-time=rejected", "Rejected"),
        ("just-in-time=expired", "Expired"),
        ("just-in-time=revoked", "Revoked"),
        ("decide-after=1h", "Pending"),
    ] {
        let emulator = with(JustInTime::deciding(AccessStatus::Approved)).await;
        emulator.inject_once(&fault.parse::<Fault>().unwrap());
        let (.., token) = requested(&emulator).await;
        assert_eq!(token, json!({ "AccessRequestStatus": status }), "{fault}");
        emulator.stop().await;
    }
    // The window of an approval that is over.
    let emulator = with(JustInTime { window: Duration::ZERO, ..JustInTime::deciding(AccessStatus::Approved) }).await;
    let (.., token) = requested(&emulator).await;
    assert_eq!(token, json!({ "AccessRequestStatus": "Expired" }));
    emulator.stop().await;
}

#[tokio::test]
async fn requests_are_for_one_node_that_is_there_in_an_account_that_has_it() {
    let emulator = with(JustInTime::default()).await;
    let key = emulator.new_access_key();
    let refused = async |input: Value| call(&emulator, &key, "StartAccessRequest", input).await.unwrap_err();
    let (code, message) = refused(request_for(NODE)).await;
    assert_eq!(code, "ValidationException");
    assert_eq!(message, "Just-In-Time Node Access service is not enabled in this account.");
    emulator.update(|settings| settings.just_in_time = JustInTime::deciding(AccessStatus::Approved));
    assert_eq!(refused(request_for("i-0000000000000000")).await.0, "ResourceNotFoundException");
    let several = json!({ "Key": "InstanceIds", "Values": [NODE, NODE] });
    for (name, value) in [
        ("Reason", json!("")),
        ("Reason", json!("x".repeat(257))),
        ("Targets", json!([])),
        ("Targets", json!([several])),
        ("Targets", json!([{ "Key": "tag:Name", "Values": ["bastion"] }])),
    ] {
        let mut input = request_for(NODE);
        input[name] = value;
        assert_eq!(refused(input).await.0, "ValidationException", "{name}");
    }
    emulator.update(|settings| {
        settings.denied_actions.insert("ssm:StartAccessRequest".to_owned());
    });
    let (_, message) = refused(request_for(NODE)).await;
    assert!(message.contains(&format!(":instance/{NODE} because")), "{message}");
    let unknown = call(&emulator, &key, "GetAccessToken", json!({ "AccessRequestId": "oi-0123456789ab" })).await;
    assert_eq!(unknown.unwrap_err().0, "ResourceNotFoundException");
    emulator.stop().await;
}
