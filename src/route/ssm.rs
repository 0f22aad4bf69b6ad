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

mod connection;
pub mod dial;
mod driver;
mod fault;
mod find;
mod gauge;
pub(crate) mod hints;
mod liveness;
pub mod proto;
mod ready;
mod recovery;
pub mod service;
mod session;
mod solo;
pub mod statements;
pub mod targets;
#[cfg(test)]
mod tests;
pub mod transport;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use futures_util::future::BoxFuture;

use self::find::{Finder, Look, ecs::EcsLook, nodes::NodesLook};
pub use self::{
    dial::{Dial, DialError, SessionHandle, SessionId},
    fault::SessionFault,
    find::Found,
    service::Service,
    solo::SoloSession,
    transport::{Incoming, Transport, TransportError},
};
use crate::{
    aws::Aws,
    bastion::{Search, Target},
    cluster::Cluster,
    route::{Fault, Mailbox, ProbeError, Route},
};

/// Settings of the sessions of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Settings of each session. How long a handshake may take is part of a link's terms, and not taken from here.
    pub session: proto::Config,
    /// How long a lost transport is tried to be replaced before the session is given up, which resets open connections.
    pub resume_budget: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { session: proto::Config::default(), resume_budget: Duration::from_secs(90) }
    }
}

/// Makes routes to the targets of one identity.
#[derive(Clone)]
pub struct Targets {
    dial: Arc<dyn Dial>,
    config: Config,
    resumes: Arc<AtomicBool>,
    /// What looks for targets, by what was asked for: all tunnels share it.
    finders: Arc<Mutex<BTreeMap<String, Arc<Finder>>>>,
}

impl Targets {
    /// Has sessions dialled by `dial`.
    #[must_use]
    pub fn new(dial: Arc<dyn Dial>, config: Config) -> Self {
        Self { dial, config, resumes: Arc::default(), finders: Arc::default() }
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
        self.finding(search.to_string(), || look(search, aws))
    }

    /// Looks for the targets that lead to a cluster, the best first.
    ///
    /// # Errors
    /// There are none that take sessions, or it cannot be looked.
    pub async fn find(&self, search: &Search, aws: &Aws, to: &Cluster) -> Result<Found, Arc<Fault>> {
        self.finder(search.to_string(), || look(search, aws)).find(to).await
    }

    fn finding(&self, asked: String, look: impl FnOnce() -> Arc<dyn Look>) -> Arc<dyn Route> {
        let finder = self.finder(asked.clone(), look);
        self.to(Goal::Found { asked, finder })
    }

    fn finder(&self, asked: String, look: impl FnOnce() -> Arc<dyn Look>) -> Arc<Finder> {
        let mut finders = self.finders.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(finders.entry(asked.clone()).or_insert_with(|| Finder::new(asked, look())))
    }

    fn to(&self, goal: Goal) -> Arc<dyn Route> {
        let Self { dial, config, resumes, finders: _ } = self.clone();
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

    fn run(self: Arc<Self>, to: Arc<Cluster>, mailbox: Mailbox) -> BoxFuture<'static, ()> {
        Box::pin(session::run(self, to, mailbox))
    }

    fn advise(&self, to: &Cluster, error: &ProbeError) -> Vec<String> {
        hints::probe(to, error)
    }

    fn advise_silence(&self) -> Vec<String> {
        hints::silent_agent()
    }
}
