//! All ways in: makes the route that a [`Bastion`] names.

use std::sync::Arc;

use super::{Route, direct, ssh, ssm, step::Step};
use crate::{
    aws::{Aws, AwsError, ecs::NewTaskDefinition},
    bastion::{Bastion, Fargate, Search, SshBastion, SshFiles, Target},
    iam::{Document, Grant, ServiceRole},
    journal::Entry,
    remote::Remote,
};

/// Returns the IAM policy for clusters and the routes to them; without a bastion, one for sessions on none yet.
#[must_use]
pub fn policy(grant: &Grant) -> Document {
    let mut statements = Vec::new();
    let is_by_session =
        |bastion: &Bastion| matches!(bastion, Bastion::Target(_) | Bastion::Found(_) | Bastion::Fargate(_));
    if grant.bastions.is_empty() || grant.bastions.iter().any(is_by_session) {
        statements.extend(ssm::statements::statements(grant, targets(grant), searches(grant), fargates(grant)));
    }
    statements.extend(servers(grant).flat_map(|server| ssh::statements::statements(grant, server)));
    grant.document(statements)
}

/// Returns the roles that services act as for the routes.
#[must_use]
pub fn roles(grant: &Grant) -> Vec<ServiceRole> {
    let mut roles: Vec<_> = fargates(grant)
        // The role of a task definition that the user has is the user's.
        .filter(|fargate| fargate.options.task_definition.is_none())
        .map(ssm::statements::task_role)
        .collect();
    roles.dedup();
    roles
}

/// Returns the role of an instance whose agent takes sessions.
#[must_use]
pub fn instance_role(name: &str, region: &str) -> ServiceRole {
    ssm::statements::instance_role(name, region)
}

/// Returns the role of a task whose agent takes sessions.
#[must_use]
pub fn task_role(fargate: &Fargate) -> ServiceRole {
    ssm::statements::task_role(fargate)
}

/// Returns the role by which ECS fetches the image of a task.
#[must_use]
pub fn image_role(name: &str) -> ServiceRole {
    ssm::statements::image_role(name)
}

/// Returns the task definition that a task on Fargate is run from, in this region and account.
#[must_use]
pub fn task_definition(fargate: &Fargate, region: &str, account: &str) -> NewTaskDefinition {
    ssm::statements::task_definition(fargate, region, account)
}

/// Returns the tag by which an instance is found as a bastion.
#[must_use]
pub fn bastion_tag() -> (&'static str, &'static str) {
    (ssm::statements::BASTION_TAG, "true")
}

/// Returns what to know of the policy.
#[must_use]
pub fn notes(grant: &Grant) -> Vec<String> {
    let of_targets = targets(grant).find_map(ssm::statements::note);
    let is_of_service = |search: &Search| matches!(search, Search::Ecs(_));
    let of_tasks = searches(grant).any(is_of_service).then(|| ssm::statements::TASKS_NOTE.to_owned());
    let of_own = fargates(grant).find_map(|fargate| fargate.options.task_definition.as_deref());
    let of_requests = grant.requests_access.then(|| ssm::statements::REQUESTS_NOTE.to_owned());
    let of_own = of_own.map(ssm::statements::execution_role);
    of_targets.into_iter().chain(of_tasks).chain(of_own).chain(of_requests).collect()
}

fn searches(grant: &Grant) -> impl Iterator<Item = &Search> + Clone {
    grant.bastions.iter().filter_map(|bastion| match bastion {
        Bastion::Found(search) => Some(search),
        Bastion::Target(_) | Bastion::Fargate(_) | Bastion::Ssh(_) | Bastion::Direct => None,
    })
}

fn servers(grant: &Grant) -> impl Iterator<Item = &SshBastion> {
    grant.bastions.iter().filter_map(|bastion| match bastion {
        Bastion::Ssh(server) => Some(&**server),
        Bastion::Target(_) | Bastion::Found(_) | Bastion::Fargate(_) | Bastion::Direct => None,
    })
}

fn fargates(grant: &Grant) -> impl Iterator<Item = &Fargate> + Clone {
    grant.bastions.iter().filter_map(Bastion::fargate)
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
    servers: ssh::Servers,
    approvals: Option<ssm::Approvals>,
}

impl Routes {
    /// Makes the routes of an identity; `reason` is for audit trails. Without an owner, nothing is made that would have to be
    /// ended later. With `approvals`, sessions wait for those.
    #[must_use]
    pub fn new(aws: &Aws, reason: Option<&str>, owner: Option<ssm::Owner>, approvals: Option<ssm::Approvals>) -> Self {
        let service = match owner.as_ref().and_then(|owner| Some((owner.journal.clone()?, &owner.caller))) {
            Some((journal, caller)) => ssm::Service::with_journal(aws.clone(), reason, journal, caller),
            None => ssm::Service::new(aws.clone(), reason),
        };
        let service = service.approved_by(approvals.clone());
        let sessions = ssm::Targets::new(Arc::new(service), ssm::Config::default());
        let sessions = match owner {
            Some(owner) => sessions.owned_by(owner),
            None => sessions,
        };
        Self { aws: aws.clone(), sessions, servers: ssh::Servers::new(aws, ssh::Config::default()), approvals }
    }

    /// Returns what requests access to bastions, where that has to be approved.
    #[must_use]
    pub fn approvals(&self) -> Option<&ssm::Approvals> {
        self.approvals.as_ref()
    }

    /// Returns the same with other settings of sessions.
    #[must_use]
    pub fn with_sessions(&self, config: ssm::Config) -> Self {
        Self { sessions: self.sessions.with_config(config), ..self.clone() }
    }

    /// Returns the same with these files for SSH servers, and with who is asked about those that are not known.
    #[must_use]
    pub fn with_ssh(self, files: &SshFiles, ask: Option<ssh::Ask>) -> Self {
        let config = ssh::Config { files: files.clone(), ask, ..ssh::Config::default() };
        Self { servers: ssh::Servers::new(&self.aws, config), ..self }
    }

    /// Returns the same for looking at what was made for the routes of another, without making anything.
    #[must_use]
    pub fn looking_at(self, tasks_of: Option<String>) -> Self {
        Self { sessions: self.sessions.looking_at(tasks_of), ..self }
    }

    /// Returns by what that is known.
    #[must_use]
    pub fn tasks_of(&self) -> Option<String> {
        self.sessions.tasks_of()
    }

    /// Looks for the targets of a bastion that lead to a cluster, and tells how it went, step by step. Nothing is made.
    pub async fn walk(&self, bastion: &Bastion, to: &Remote) -> ssm::Walk {
        self.sessions.walk(bastion, &self.aws, to).await
    }

    /// Connects to a server, for its route to use, and tells how it went, step by step.
    pub async fn walk_to_server(&self, server: &SshBastion) -> Vec<Step> {
        self.servers.walk(server).await
    }

    /// Returns what that depends on besides the bastion: one walk is for all clusters with the same.
    #[must_use]
    pub fn place(&self, bastion: &Bastion, to: &Remote) -> String {
        self.sessions.place(bastion, &self.aws, to)
    }

    /// Returns the route that a bastion names.
    #[must_use]
    pub fn route(&self, bastion: &Bastion) -> Arc<dyn Route> {
        match bastion {
            Bastion::Target(target) => self.sessions.route(target.clone()),
            Bastion::Found(search) => self.sessions.found(search, &self.aws),
            Bastion::Fargate(fargate) => self.sessions.made(fargate, &self.aws),
            Bastion::Ssh(server) => self.servers.route(server),
            Bastion::Direct => direct::route(&self.aws),
        }
    }
}

#[cfg(test)]
mod tests;
