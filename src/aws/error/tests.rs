//! Answers of AWS and what they are taken for.

use super::*;

fn answered(code: &str, message: &str) -> AwsError {
    let answer = ServiceAnswer {
        code: Some(code.into()),
        message: Some(message.into()),
        status: Some(400),
        request_id: Some("r-1".into()),
    };
    classify_answer("ssm:StartSession", "i-0abcdef1", "us-east-1", answer)
}

#[test]
fn names_what_is_denied() {
    let message = "User: arn:aws:sts::123456789012:assumed-role/r/s is not authorized to perform: ssm:StartSession on \
                   resource: arn:aws:ssm:us-east-1::document/AWS-StartPortForwardingSessionToRemoteHost because no \
                   identity-based policy allows the ssm:StartSession action";
    let error = answered("AccessDeniedException", message);
    assert_eq!(
        error.to_string(),
        "not authorized to perform `ssm:StartSession` on \
         `arn:aws:ssm:us-east-1::document/AWS-StartPortForwardingSessionToRemoteHost`"
    );
    assert_eq!(
        error.source().unwrap().to_string(),
        format!("AccessDeniedException: {message} (HTTP status 400, request r-1)")
    );
    assert!(matches!(
        answered("AccessDenied", "no"),
        AwsError::AccessDenied { action, resource, .. } if action == "ssm:StartSession" && resource == "i-0abcdef1"
    ));
    assert_eq!(
        denied("is not authorized to perform: eks:ListClusters on resource: *."),
        (Some("eks:ListClusters"), Some("*"))
    );
    assert_eq!(denied("not authorized to perform: sts:AssumeRole"), (Some("sts:AssumeRole"), None));
    assert_eq!(denied("not authorized to perform:"), (None, None));
}

#[test]
fn sorts_answers_by_code() {
    assert!(matches!(answered("ExpiredToken", ""), AwsError::ExpiredCredentials { .. }));
    assert!(matches!(answered("ExpiredTokenException", ""), AwsError::ExpiredCredentials { .. }));
    assert!(matches!(answered("UnrecognizedClientException", ""), AwsError::BadKeys { .. }));
    assert!(matches!(answered("InvalidClientTokenId", ""), AwsError::BadKeys { .. }));
    assert!(matches!(
        answered("InvalidSignatureException", "The request signature we calculated …"),
        AwsError::BadKeys { .. }
    ));
    assert!(matches!(
        answered("InvalidSignatureException", "Signature expired: 2026 is now earlier"),
        AwsError::ClockSkew { .. }
    ));
    assert!(matches!(answered("SignatureDoesNotMatch", "Signature not yet current: …"), AwsError::ClockSkew { .. }));
    assert!(matches!(answered("ThrottlingException", ""), AwsError::Throttled { action: "ssm:StartSession", .. }));
    assert!(
        matches!(answered("RegionDisabledException", ""), AwsError::RegionDisabled { region, .. } if region == "us-east-1")
    );
    assert!(matches!(
        answered("TargetNotConnected", "i-0abcdef1 is not connected."),
        AwsError::Refused { refusal: Refusal::Target, resource, .. } if resource == "i-0abcdef1"
    ));
}

#[test]
fn tells_missing_credentials_from_other_failures() {
    let missing = CredentialsError::not_loaded("no credentials found in chain. Attempted:\n  A: off\n  B: off");
    assert!(matches!(
        classify_credentials("us-east-1", missing),
        AwsError::NoCredentials { attempted } if attempted == "no credentials found in chain. Attempted: A: off; B: off"
    ));
    let forbidden = CredentialsError::provider_error("failed to load IMDS session token");
    let error = classify_credentials("us-east-1", forbidden);
    assert!(matches!(error, AwsError::CredentialSource { .. }));
    assert!(sentence(&error).ends_with("failed to load IMDS session token"));
    let ours = CredentialsError::provider_error(AwsError::NoRegion);
    assert!(matches!(classify_credentials("us-east-1", ours), AwsError::NoRegion));
}

#[test]
fn names_the_profile_files() {
    let error =
        AwsError::UnknownProfile { name: "dev".into(), files: vec!["/a/config".into(), "/a/credentials".into()] };
    assert_eq!(error.to_string(), "there is no AWS profile `dev` in `/a/config` or `/a/credentials`");
}
