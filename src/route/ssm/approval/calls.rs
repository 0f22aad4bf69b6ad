//! The two calls of just-in-time node access.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sdk_ssm::{
    config::{Builder, retry::RetryConfig},
    types,
};

use super::{Answer, GET_ACCESS_TOKEN, START_ACCESS_REQUEST};
use crate::{
    aws::{
        Aws,
        error::{AwsError, Call, Refusal},
        values::is_access_request_id,
    },
    bastion::Target,
};

/// What credentials of an approval are called where credentials name their source.
const SOURCE: &str = "GetAccessToken";

/// Requests access to a node, and returns the id of the request.
///
/// # Errors
/// See [`AwsError`].
pub(super) async fn start(aws: &Aws, target: &Target, reason: &str) -> Result<String, AwsError> {
    let ssm = aws.ssm();
    let call = Call { action: START_ACCESS_REQUEST, resource: target.as_str(), region: aws.region(), host: &ssm.host };
    aws.credentials().await?;
    let node = types::Target::builder().key("InstanceIds").values(target.as_str()).build();
    let request = ssm.client.start_access_request().reason(reason).targets(node);
    // An answer that was lost may have made a request: another attempt would make another.
    let once = Builder::new().retry_config(RetryConfig::disabled());
    let answer = request.customize().config_override(once).send().await.map_err(|error| aws.failed(call, error))?;
    let id = answer.access_request_id.filter(|id| is_access_request_id(id));
    id.ok_or_else(|| AwsError::malformed(START_ACCESS_REQUEST, "AccessRequestId"))
}

/// Asks what has become of a request.
///
/// # Errors
/// See [`AwsError`].
pub(super) async fn look(aws: &Aws, id: &str) -> Result<Answer, AwsError> {
    let ssm = aws.ssm();
    let call = Call { action: GET_ACCESS_TOKEN, resource: id, region: aws.region(), host: &ssm.host };
    aws.credentials().await?;
    let request = ssm.client.get_access_token().access_request_id(id);
    let answer = match request.send().await.map_err(|error| aws.failed(call, error)) {
        Ok(answer) => answer,
        Err(AwsError::Refused { refusal: Refusal::Absent, .. }) => return Ok(Answer::Absent),
        Err(error) => return Err(error),
    };
    let status = answer.access_request_status.as_ref().map(types::AccessRequestStatus::as_str);
    Ok(match (status, answer.credentials) {
        (Some("Approved"), Some(keys)) => Answer::Approved(credentials(keys)?),
        (Some("Approved"), None) => return Err(AwsError::malformed(GET_ACCESS_TOKEN, "Credentials")),
        (Some("Rejected"), _) => Answer::Rejected,
        (Some("Revoked"), _) => Answer::Revoked,
        (Some("Expired"), _) => Answer::Expired,
        (Some("Pending"), _) => Answer::Pending,
        (other, _) => {
            tracing::debug!(
                request = id,
                status = other.unwrap_or_default(),
                "the access request has an unknown status"
            );
            Answer::Other
        }
    })
}

fn credentials(keys: types::Credentials) -> Result<Credentials, AwsError> {
    let end = SystemTime::try_from(keys.expiration_time);
    let end = end.map_err(|_| AwsError::malformed(GET_ACCESS_TOKEN, "usable ExpirationTime"))?;
    Ok(Credentials::new(keys.access_key_id, keys.secret_access_key, Some(keys.session_token), Some(end), SOURCE))
}
