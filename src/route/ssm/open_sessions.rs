//! The sessions that a target has, of all identities.
//!
//! To know them is a courtesy, for people: the permission for it is optional.

use std::{collections::BTreeMap, fmt};

use aws_sdk_ssm::types::{SessionFilter, SessionFilterKey, SessionState};

use crate::{
    aws::{
        Aws,
        error::{AwsError, Call},
    },
    bastion::Target,
    util::peer_text::PeerText,
};

const DESCRIBE_SESSIONS: &str = "ssm:DescribeSessions";

/// As many as the service gives at a time; no container takes more.
const MAX_SESSIONS: i32 = 200;

/// Most owners that are named.
const MAX_TOLD: usize = 5;

/// How many sessions are open, by the name of whoever has started them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OpenSessions(BTreeMap<String, usize>);

impl OpenSessions {
    pub(super) fn count(&self) -> usize {
        self.0.values().sum()
    }

    #[cfg(test)]
    pub(super) fn of(count: usize) -> Self {
        Self(BTreeMap::from([(String::new(), count)]))
    }
}

impl fmt::Display for OpenSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} open", self.count())?;
        let told = self.0.iter().filter(|(owner, _)| !owner.is_empty()).take(MAX_TOLD);
        let told: Vec<String> = told.map(|(owner, count)| format!("{count} of `{owner}`")).collect();
        if told.is_empty() { Ok(()) } else { write!(f, " ({})", told.join(", ")) }
    }
}

/// Asks which sessions are open on a target.
///
/// # Errors
/// See [`AwsError`].
pub(super) async fn on(aws: &Aws, target: &Target) -> Result<OpenSessions, AwsError> {
    let ssm = aws.ssm();
    let call = Call { action: DESCRIBE_SESSIONS, resource: "*", region: aws.region(), host: &ssm.host };
    let filter = SessionFilter::builder().key(SessionFilterKey::TargetId).value(target.as_str()).build();
    let filter = filter.map_err(|_| AwsError::malformed(DESCRIBE_SESSIONS, "filter that it can have"))?;
    let request = ssm.client.describe_sessions().state(SessionState::Active).filters(filter).max_results(MAX_SESSIONS);
    let answer = request.send().await.map_err(|error| aws.failed(call, error))?;
    let mut by_owner = BTreeMap::new();
    for session in answer.sessions() {
        *by_owner.entry(name_of(session.owner().unwrap_or_default())).or_default() += 1;
    }
    Ok(OpenSessions(by_owner))
}

/// Returns what people know an owner by: of a role's session its name, which says who it is.
fn name_of(arn: &str) -> String {
    PeerText::new(arn.rsplit('/').next().unwrap_or(arn)).to_string()
}
