//! All ways in: makes the route that a [`Bastion`] names.

use std::sync::Arc;

use super::{Fault, Route, direct, ssm};
use crate::{
    aws::{Aws, AwsError, Caller},
    bastion::{Bastion, Search, Target},
    cluster::Cluster,
    iam::{Document, Grant},
    journal::{Entry, Journal},
};

/// Returns the IAM policy for clusters and the routes to them; without a bastion, one for sessions on none yet.
#[must_use]
pub fn policy(grant: &Grant) -> Document {
    let mut statements = Vec::new();
    let is_by_session = |bastion: &Bastion| !matches!(bastion, Bastion::Direct);
    if grant.bastions.is_empty() || grant.bastions.iter().any(is_by_session) {
        statements.extend(ssm::statements::statements(grant, targets(grant), searches(grant)));
    }
    grant.document(statements)
}

/// Returns what to know of the policy.
#[must_use]
pub fn notes(grant: &Grant) -> Vec<String> {
    let of_targets = targets(grant).find_map(ssm::statements::note);
    let is_of_service = |search: &Search| matches!(search, Search::Ecs(_));
    let of_tasks = searches(grant).any(is_of_service).then(|| ssm::statements::TASKS_NOTE.to_owned());
    of_targets.into_iter().chain(of_tasks).collect()
}

fn searches(grant: &Grant) -> impl Iterator<Item = &Search> + Clone {
    grant.bastions.iter().filter_map(|bastion| match bastion {
        Bastion::Found(search) => Some(search),
        Bastion::Target(_) | Bastion::Direct => None,
    })
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

    /// Looks for the targets that lead to a cluster, the best first.
    ///
    /// # Errors
    /// There are none that take sessions, or it cannot be looked.
    pub async fn find(&self, search: &Search, to: &Cluster) -> Result<ssm::Found, Arc<Fault>> {
        self.sessions.find(search, &self.aws, to).await
    }

    /// Returns the route that a bastion names.
    #[must_use]
    pub fn route(&self, bastion: &Bastion) -> Arc<dyn Route> {
        match bastion {
            Bastion::Target(target) => self.sessions.route(target.clone()),
            Bastion::Found(search) => self.sessions.found(search, &self.aws),
            Bastion::Direct => direct::route(&self.aws),
        }
    }
}

#[cfg(test)]
mod tests;
