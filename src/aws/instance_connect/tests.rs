//! EC2 Instance Connect against a fake one.

use serde_json::{Value, json};

use super::*;
use crate::aws::{
    error::Refusal,
    testing::{Answer, Fake, aws, in_time},
};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";

#[tokio::test]
async fn a_key_is_pushed() {
    let fake = Fake::start(|_| Answer::json(200, r#"{"RequestId":"1","Success":true}"#)).await;
    in_time(aws(&fake).await.send_ssh_public_key("i-0dc03fbcae2a87472", "ec2-user", KEY)).await.unwrap();
    let request = fake.requests().remove(0);
    let body: Value = serde_json::from_str(&request.body).unwrap();
    let expected = json!({ "InstanceId": "i-0dc03fbcae2a87472", "InstanceOSUser": "ec2-user", "SSHPublicKey": KEY });
    assert_eq!((body, KEY.len()), (expected, 80));
}

#[tokio::test]
async fn what_the_service_says_is_told_apart() {
    for (code, is_it) in [
        (
            "EC2InstanceNotFoundException",
            (|e| matches!(e, AwsError::Refused { refusal: Refusal::Absent, .. })) as fn(&AwsError) -> bool,
        ),
        ("EC2InstanceStateInvalidException", |e| matches!(e, AwsError::Refused { refusal: Refusal::Request, .. })),
        ("EC2InstanceUnavailableException", |e| matches!(e, AwsError::Service { .. })),
        ("AuthException", |e| matches!(e, AwsError::AccessDenied { .. })),
        ("ThrottlingException", |e| matches!(e, AwsError::Throttled { .. })),
    ] {
        let fake = Fake::start(move |_| Answer::json_error(400, code, "no")).await;
        let error = in_time(aws(&fake).await.send_ssh_public_key("i-0abcdef1", "admin", KEY)).await.unwrap_err();
        assert!(is_it(&error), "{code}: {error:?}");
        assert!(error.to_string().contains("SendSSHPublicKey"), "{error}");
    }
}
