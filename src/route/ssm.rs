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
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use futures_util::future::BoxFuture;

pub use self::{
    dial::{Dial, DialError, SessionHandle, SessionId},
    fault::SessionFault,
    service::Service,
    solo::SoloSession,
    transport::{Incoming, Transport, TransportError},
};
use crate::{
    bastion::Target,
    cluster::Cluster,
    route::{Mailbox, ProbeError, Route},
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
}

impl Targets {
    /// Has sessions dialled by `dial`.
    #[must_use]
    pub fn new(dial: Arc<dyn Dial>, config: Config) -> Self {
        Self { dial, config, resumes: Arc::default() }
    }

    /// Returns the same with other settings.
    #[must_use]
    pub fn with_config(&self, config: Config) -> Self {
        Self { config, ..self.clone() }
    }

    #[must_use]
    pub fn route(&self, target: Target) -> Arc<dyn Route> {
        let Self { dial, config, resumes } = self.clone();
        Arc::new(SsmRoute { target, dial, config, resumes })
    }
}

/// The way through one target.
struct SsmRoute {
    target: Target,
    dial: Arc<dyn Dial>,
    config: Config,
    /// A session of this identity has been resumed, so the identity may.
    resumes: Arc<AtomicBool>,
}

impl fmt::Debug for SsmRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SsmRoute").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Route for SsmRoute {
    fn label(&self) -> String {
        self.target.to_string()
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
