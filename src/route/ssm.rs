//! The way through Systems Manager: a session with the agent on a bastion, carried by WebSockets to the message gateway.
//!
//! ```text
//! SsmRoute ── session (start, resume, end) ── Driver { PortSession, connections } ── Transport
//!                │ recovery: resume, or tell of the end         └─ proto: the protocol as values
//!                └ Dial ── service: StartSession, ResumeSession, TerminateSession, upgrades
//! ```
//!
//! Invariants: [`proto`] has no sockets, clocks, tasks or randomness; the session's `TokenValue` stays in [`service`];
//! what is known to people of this way only, such as hints, is in `hints`.

mod approval;
mod connection;
pub mod dial;
mod driver;
mod fault;
mod find;
mod gauge;
pub(crate) mod hints;
mod liveness;
pub mod made;
mod open_sessions;
pub mod owner;
pub mod proto;
mod ready;
mod recovery;
pub mod service;
mod session;
mod solo;
mod start;
pub mod statements;
pub mod targets;
#[cfg(test)]
mod tests;
pub mod transport;
mod vigil;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use futures_util::future::BoxFuture;

use self::find::{
    Finder, Look,
    ecs::EcsLook,
    fargate::{FargateLook, survey::Survey, task::started_by},
    nodes::NodesLook,
};
pub use self::{
    approval::{Approval, Approvals, Stage, Unapproved},
    dial::{Dial, DialError, SessionHandle, SessionId},
    fault::SessionFault,
    find::{Crowd, Walk},
    made::{Made, Use, UsedAt},
    owner::Owner,
    service::Service,
    solo::SoloSession,
    transport::{Incoming, Transport, TransportError},
};
use crate::{
    aws::Aws,
    bastion::{Bastion, Fargate, Search, SessionDocument, Target},
    remote::Remote,
    route::{Mailbox, ProbeError, Route, proof::behind_bastion},
};

/// Settings of the sessions of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Settings of each session. How long a handshake may take is part of a link's terms, and not taken from here.
    pub session: proto::Config,
    /// How long a lost transport is tried to be replaced before the session is given up, which resets open connections.
    pub resume_budget: Duration,
    /// The session document; `None`: that of AWS, for any host and port.
    pub document: Option<SessionDocument>,
}

impl Default for Config {
    fn default() -> Self {
        Self { session: proto::Config::default(), resume_budget: Duration::from_secs(90), document: None }
    }
}

/// Makes routes to the targets of one identity.
#[derive(Clone)]
pub struct Targets {
    dial: Arc<dyn Dial>,
    config: Config,
    resumes: Arc<AtomicBool>,
    /// Whom tasks are started for; `None`: none are.
    owner: Option<Owner>,
    /// Whose tasks are looked at where none are started: what they were started with.
    tasks_of: Option<String>,
    /// What looks for targets, by what was asked for: all tunnels share it.
    finders: Arc<Mutex<HashMap<Bastion, Arc<Finder>>>>,
}

impl Targets {
    /// Has sessions dialled by `dial`.
    #[must_use]
    pub fn new(dial: Arc<dyn Dial>, config: Config) -> Self {
        let (resumes, finders) = (Arc::default(), Arc::default());
        Self { dial, config, resumes, owner: None, tasks_of: None, finders }
    }

    /// Has the tasks looked at that were started with `tasks_of`.
    #[must_use]
    pub fn looking_at(self, tasks_of: Option<String>) -> Self {
        Self { tasks_of, ..self }
    }

    /// Returns what tasks are started with, if they are.
    #[must_use]
    pub fn tasks_of(&self) -> Option<String> {
        self.owner.as_ref().map(started_by)
    }

    /// Has tasks started for `owner`.
    #[must_use]
    pub fn owned_by(self, owner: Owner) -> Self {
        Self { owner: Some(owner), ..self }
    }

    /// Returns the same with other settings.
    #[must_use]
    pub fn with_config(&self, config: Config) -> Self {
        Self { config, ..self.clone() }
    }

    #[must_use]
    pub fn route(&self, target: Target) -> Arc<dyn Route> {
        self.to(Goal::Fixed(target))
    }

    /// Returns the route to whatever target is found.
    #[must_use]
    pub fn found(&self, search: &Search, aws: &Aws) -> Arc<dyn Route> {
        self.finding(&Bastion::Found(search.clone()), || look(search, aws))
    }

    /// Returns the route to a task that is started when it is needed.
    #[must_use]
    pub fn made(&self, fargate: &Fargate, aws: &Aws) -> Arc<dyn Route> {
        self.finding(&Bastion::Fargate(fargate.clone()), || self.maker(fargate, aws))
    }

    /// Looks for the targets that lead to a cluster, and tells how it went. Nothing is made.
    pub async fn walk(&self, bastion: &Bastion, aws: &Aws, to: &Remote) -> Walk {
        match self.finder_of(bastion, aws) {
            Some(finder) => finder.walk(to).await,
            None => Walk { steps: Vec::new(), targets: bastion.target().cloned().into_iter().collect() },
        }
    }

    /// Returns what the answer depends on: clusters with the same share it.
    #[must_use]
    pub fn place(&self, bastion: &Bastion, aws: &Aws, to: &Remote) -> String {
        self.finder_of(bastion, aws).map(|finder| finder.place(to)).unwrap_or_default()
    }

    fn finder_of(&self, bastion: &Bastion, aws: &Aws) -> Option<Arc<Finder>> {
        match bastion {
            Bastion::Found(search) => Some(self.finder(bastion, || look(search, aws))),
            Bastion::Fargate(fargate) => Some(self.finder(bastion, || self.maker(fargate, aws))),
            Bastion::Target(_) | Bastion::Ssh(_) | Bastion::Direct => None,
        }
    }

    fn maker(&self, fargate: &Fargate, aws: &Aws) -> Arc<dyn Look> {
        let Some(owner) = self.owner.clone() else {
            return Arc::new(Survey::new(aws.clone(), fargate.clone(), self.tasks_of.clone()));
        };
        let made = owner.made.clone();
        let maker = FargateLook::new(aws.clone(), fargate.clone(), owner);
        made.add(maker.clone());
        Arc::new(maker)
    }

    fn finding(&self, asked: &Bastion, look: impl FnOnce() -> Arc<dyn Look>) -> Arc<dyn Route> {
        let finder = self.finder(asked, look);
        self.to(Goal::Found { asked: asked.to_string(), finder })
    }

    fn finder(&self, asked: &Bastion, look: impl FnOnce() -> Arc<dyn Look>) -> Arc<Finder> {
        let mut finders = self.finders.lock().unwrap_or_else(PoisonError::into_inner);
        finders.retain(|_, finder| !finder.is_over());
        let finder = finders.entry(asked.clone()).or_insert_with(|| Finder::new(asked.to_string(), look()));
        Arc::clone(finder)
    }

    fn to(&self, goal: Goal) -> Arc<dyn Route> {
        let Self { dial, config, resumes, .. } = self.clone();
        Arc::new(SsmRoute { goal, dial, config, resumes })
    }
}

fn look(search: &Search, aws: &Aws) -> Arc<dyn Look> {
    match search {
        Search::Ecs(search) => Arc::new(EcsLook::new(aws.clone(), search.clone())),
        Search::Tag { .. } | Search::Name(_) | Search::Group(_) | Search::Auto { .. } => {
            Arc::new(NodesLook::new(aws.clone(), search.clone()))
        }
    }
}

/// Which target a route leads through.
#[derive(Debug)]
enum Goal {
    Fixed(Target),
    Found { asked: String, finder: Arc<Finder> },
}

/// The way through a target.
struct SsmRoute {
    goal: Goal,
    dial: Arc<dyn Dial>,
    config: Config,
    /// A session of this identity has been resumed, so the identity may.
    resumes: Arc<AtomicBool>,
}

impl fmt::Debug for SsmRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SsmRoute").field("goal", &self.goal).finish_non_exhaustive()
    }
}

impl Route for SsmRoute {
    fn label(&self) -> String {
        match &self.goal {
            Goal::Fixed(target) => target.to_string(),
            Goal::Found { asked, .. } => asked.clone(),
        }
    }

    fn run(self: Arc<Self>, to: Arc<Remote>, mailbox: Mailbox) -> BoxFuture<'static, ()> {
        Box::pin(session::run(self, to, mailbox))
    }

    fn advise(&self, to: &Remote, error: &ProbeError) -> Vec<String> {
        behind_bastion(to, error)
    }

    /// The agents of ECS take a few sessions only, which others need.
    fn has_room(&self) -> bool {
        match &self.goal {
            Goal::Fixed(Target::EcsTask(_)) => false,
            Goal::Fixed(Target::Instance(_) | Target::ManagedNode(_)) => true,
            Goal::Found { finder, .. } => !finder.finds_capped(),
        }
    }

    fn advise_silence(&self) -> Vec<String> {
        hints::silent_agent()
    }
}
