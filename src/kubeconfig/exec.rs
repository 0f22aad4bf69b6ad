//! What kubectl wants of the program that its exec entry names: an `ExecCredential` on stdout.
//!
//! Follows the Kubernetes API `client.authentication.k8s.io`, versions v1 and v1beta1, and what
//! `aws eks get-token` prints.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// How long kubectl may use a token: the API server takes it for 15 minutes from its signature on.
const LIFETIME: Duration = Duration::from_secs(14 * 60);

/// A version of the API. It has to be the one that the kubeconfig names, or client-go refuses the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ApiVersion {
    /// Known to kubectl 1.22 and later.
    V1,
    /// Known to every kubectl; what our kubeconfigs name.
    #[default]
    V1Beta1,
}

impl ApiVersion {
    /// Returns the version that the client asks for in the variable `KUBERNETES_EXEC_INFO`. Some clients do
    /// not set it; for them, and for anything strange in it, the answer is the version of our kubeconfigs.
    #[must_use]
    pub fn asked_for(exec_info: Option<&str>) -> Self {
        #[derive(Deserialize)]
        struct ExecInfo {
            #[serde(rename = "apiVersion")]
            api_version: String,
        }
        let asked: Option<ExecInfo> = exec_info.and_then(|json| serde_json::from_str(json).ok());
        match asked.as_ref().map(|info| info.api_version.as_str()) {
            Some("client.authentication.k8s.io/v1") => Self::V1,
            _ => Self::V1Beta1,
        }
    }

    /// Returns the version as kubeconfigs name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "client.authentication.k8s.io/v1",
            Self::V1Beta1 => "client.authentication.k8s.io/v1beta1",
        }
    }
}

/// Writes an `ExecCredential` as one line of JSON. The client may use the token for 14 minutes from `now`,
/// but not beyond `expires`.
#[must_use]
pub fn credential(version: ApiVersion, token: &Secret<String>, expires: SystemTime, now: SystemTime) -> Secret<String> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct ExecCredential<'a> {
        kind: &'static str,
        api_version: &'static str,
        spec: Spec,
        status: Status<'a>,
    }
    #[derive(Serialize)]
    struct Spec {}
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Status<'a> {
        expiration_timestamp: String,
        token: &'a str,
    }

    let expires = expires.min(now + LIFETIME).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let whole_seconds = aws_smithy_types::DateTime::from_secs(expires.as_secs().try_into().unwrap_or(i64::MAX));
    let credential = ExecCredential {
        kind: "ExecCredential",
        api_version: version.as_str(),
        spec: Spec {},
        status: Status { expiration_timestamp: whole_seconds.to_string(), token: token.expose() },
    };
    Secret::new(serde_json::to_string(&credential).expect("strings are always JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn is_what_kubectl_expects() {
        let token = Secret::new("k8s-aws-v1.abc".to_owned());
        // 2026-11-22T03:04:28Z, and a fraction of a second that must not show.
        let now = at(1_795_316_668) + Duration::from_millis(999);
        let line = credential(ApiVersion::V1Beta1, &token, now + Duration::from_secs(3600), now);
        assert_eq!(
            line.expose(),
            r#"{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1beta1","spec":{},"status":{"expirationTimestamp":"2026-11-22T03:18:28Z","token":"k8s-aws-v1.abc"}}"#
        );
        assert!(!format!("{line:?}").contains("abc"));
    }

    #[test]
    fn ends_with_the_credentials() {
        let token = Secret::new("t".to_owned());
        let now = at(1_795_316_668);
        let line = credential(ApiVersion::V1, &token, now + Duration::from_secs(60), now);
        assert!(line.expose().contains(r#""expirationTimestamp":"2026-11-22T03:05:28Z""#), "{}", line.expose());
        assert!(line.expose().contains(r#""apiVersion":"client.authentication.k8s.io/v1""#), "{}", line.expose());
    }

    #[test]
    fn answers_in_the_version_that_is_asked_for() {
        let info = |version: &str| {
            format!(
                r#"{{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/{version}","spec":{{"interactive":false}}}}"#
            )
        };
        assert_eq!(ApiVersion::asked_for(Some(&info("v1"))), ApiVersion::V1);
        assert_eq!(ApiVersion::asked_for(Some(&info("v1beta1"))), ApiVersion::V1Beta1);
        for strange in [None, Some(""), Some("{}"), Some("[]"), Some("{\"apiVersion\":1}"), Some(info("v2").as_str())] {
            assert_eq!(ApiVersion::asked_for(strange), ApiVersion::V1Beta1);
        }
    }
}
