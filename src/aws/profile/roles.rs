//! Roles that a profile assumes, each with the credentials of the one before it. Not left to the SDK, which knows neither
//! `mfa_serial` nor `duration_seconds`.

use aws_config::SdkConfig;
use aws_credential_types::{
    Credentials, credential_feature::AwsCredentialFeature, provider::SharedCredentialsProvider,
};

use super::fault::ProfileFault;
use crate::{
    aws::{
        Api,
        error::{AwsError, Call, Refusal, classify},
        identity::assumed,
        mfa, sts, with_credentials,
    },
    secret::Secret,
    settings::inputs::shown,
};

/// Session that every role allows, in seconds: the least that its limit can be, and the most for a role that is assumed with
/// the credentials of another.
const EVERY_ROLE_SECONDS: i32 = 3600;

/// How often a code may be wrong.
const MAX_WRONG_CODES: u32 = 2;

/// What STS says of a code that is wrong.
const WRONG_CODE: &str = "MultiFactorAuthentication failed";

/// A role, with what it is assumed with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) arn: String,
    pub(super) session_name: Option<String>,
    pub(super) external_id: Option<String>,
    /// In seconds.
    pub(super) duration: Option<i32>,
    /// The device whose code it may want.
    pub(super) mfa_serial: Option<String>,
}

/// What is the matter with a role.
pub(super) enum Failed {
    Profile(ProfileFault),
    Other(AwsError),
}

impl Role {
    /// Assumes it. `usual_name` is that of sessions which the profile does not name.
    pub(super) async fn assume(
        &self,
        with: Credentials,
        sdk: &SdkConfig,
        region: &str,
        usual_name: &str,
    ) -> Result<Credentials, Failed> {
        let features = with.get_property::<Vec<AwsCredentialFeature>>().cloned().unwrap_or_default();
        let sts = sts(&with_credentials(sdk, Some(SharedCredentialsProvider::new(with))));
        let (mut duration, mut wrong_codes) = (self.duration, 0);
        let mut code = self.ask(false).await;
        loop {
            let error = match self.call(&sts, region, usual_name, duration, code.as_ref()).await {
                Ok(mut credentials) => {
                    let own = [AwsCredentialFeature::CredentialsProfileSourceProfile];
                    credentials.set_property(features.into_iter().chain(own).collect::<Vec<_>>());
                    return Ok(credentials);
                }
                Err(error) => error,
            };
            let says = |words: &str| error.answer().is_some_and(|answer| answer.to_string().contains(words));
            if let AwsError::Refused { refusal: Refusal::Request, .. } = error
                && says("DurationSeconds")
                && let Some(seconds) = duration.filter(|seconds| *seconds > EVERY_ROLE_SECONDS)
            {
                let role = shown(&self.arn);
                tracing::warn!(
                    "`duration_seconds` is {seconds}, but sessions of `{role}` may not last so long: this one lasts an hour"
                );
                duration = None;
                continue;
            }
            let AwsError::AccessDenied { ref source, .. } = error else { return Err(Failed::Other(error)) };
            if code.is_some() && wrong_codes < MAX_WRONG_CODES && says(WRONG_CODE) {
                wrong_codes += 1;
                code = self.ask(true).await;
                if code.is_some() {
                    continue;
                }
            }
            return Err(match &self.mfa_serial {
                Some(serial) => {
                    let (serial, source) = (shown(serial), std::sync::Arc::clone(source));
                    Failed::Profile(ProfileFault::Mfa { serial, asked: code.is_some(), source })
                }
                None => {
                    let (role, source) = (shown(&self.arn), std::sync::Arc::clone(source));
                    Failed::Other(AwsError::RoleDenied { role, passed_over: Vec::new(), source })
                }
            });
        }
    }

    /// Asks for a code if one may be wanted, and somebody is there.
    async fn ask(&self, again: bool) -> Option<Secret<String>> {
        let serial = self.mfa_serial.as_ref()?;
        mfa::ask(mfa::Wanted { serial: shown(serial), role: shown(&self.arn), again }).await
    }

    async fn call(
        &self,
        sts: &Api<aws_sdk_sts::Client>,
        region: &str,
        usual_name: &str,
        duration: Option<i32>,
        code: Option<&Secret<String>>,
    ) -> Result<Credentials, AwsError> {
        let call = Call { action: "sts:AssumeRole", resource: &self.arn, region, host: &sts.host };
        let answer = sts
            .client
            .assume_role()
            .role_arn(&self.arn)
            .role_session_name(self.session_name.as_deref().unwrap_or(usual_name))
            .set_external_id(self.external_id.clone())
            .set_duration_seconds(duration)
            // One without the other is refused.
            .set_serial_number(code.and(self.mfa_serial.clone()))
            .set_token_code(code.map(|code| code.expose().clone()))
            .send()
            .await
            .map_err(|error| classify(call, error))?;
        assumed(call, answer.credentials, answer.assumed_role_user)
    }
}
