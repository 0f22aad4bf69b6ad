//! All ways in: makes the route that a [`Bastion`] names.

use std::sync::Arc;

use super::{Route, direct, ssm};
use crate::{
    aws::{Aws, AwsError, Caller},
    bastion::{Bastion, Target},
    iam::{Document, Grant},
    journal::{Entry, Journal},
};

/// Returns the IAM policy for clusters and the routes to them; without a bastion, one for sessions on none yet.
#[must_use]
pub fn policy(grant: &Grant) -> Document {
    let mut statements = Vec::new();
    if grant.bastions.is_empty() || targets(grant).next().is_some() {
        statements.extend(ssm::statements::statements(grant, targets(grant)));
    }
    grant.document(statements)
}

/// Returns what to know of the policy.
#[must_use]
pub fn notes(grant: &Grant) -> Vec<String> {
    targets(grant).find_map(ssm::statements::note).into_iter().collect()
}

fn targets(grant: &Grant) -> impl Iterator<Item = &Target> + Clone {
    grant.bastions.iter().filter_map(Bastion::target)
}

/// Ends what a route has left behind when its process was killed.
///
/// # Errors
/// See [`AwsError`].
pub async fn end(aws: &Aws, left: &Entry) -> Result<(), AwsError> {
    ssm::service::end_session(aws, &left.session, &left.region).await
}

/// Makes the routes of one identity in one region. Cheap to clone; all clones share what is found out about it.
#[derive(Clone)]
pub struct Routes {
    aws: Aws,
    sessions: ssm::Targets,
}

impl Routes {
    /// Makes the routes of an identity; `reason` is for audit trails. With a journal, what may be left behind if this
    /// process is killed is written down.
    #[must_use]
    pub fn new(aws: &Aws, reason: Option<&str>, journal: Option<(Journal, &Caller)>) -> Self {
        let service = match journal {
            Some((journal, caller)) => ssm::Service::with_journal(aws.clone(), reason, journal, caller),
            None => ssm::Service::new(aws.clone(), reason),
        };
        Self { aws: aws.clone(), sessions: ssm::Targets::new(Arc::new(service), ssm::Config::default()) }
    }

    /// Returns the same with other settings of sessions.
    #[must_use]
    pub fn with_sessions(&self, config: ssm::Config) -> Self {
        Self { aws: self.aws.clone(), sessions: self.sessions.with_config(config) }
    }

    /// Returns the route that a bastion names.
    #[must_use]
    pub fn route(&self, bastion: &Bastion) -> Arc<dyn Route> {
        match bastion {
            Bastion::Target(target) => self.sessions.route(target.clone()),
            Bastion::Direct => direct::route(&self.aws),
        }
    }
}

#[cfg(test)]
mod tests;
