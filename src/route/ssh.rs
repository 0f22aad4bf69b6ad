//! The way through an SSH server: one connection to a bastion for all clusters behind it, a channel for each local connection.
//!
//! ```text
//! SshRoute ── link (one for each tunnel) ── carry (one for each local connection) ── channel
//!                ├ congestion: when another connection is made beside the one that there is
//!                └ dial: place, stream, host_keys, key, login ── client: the protocol
//! ```
//!
//! Invariants: a server is spoken to only if its key is known, or somebody has said that it need not be; keys of this program
//! are in memory only; nobody but `client` knows the library that speaks SSH.

mod ask;
mod carry;
mod client;
mod congestion;
mod dial;
mod fault;
mod host_keys;
mod link;
mod place;
pub mod statements;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod untaken;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::timeout;

pub use self::{
    ask::{Ask, Question},
    dial::Config,
};
use self::{dial::Bastion, fault::SshFault};
use crate::{
    aws::Aws,
    bastion::SshBastion,
    clock::Clock,
    remote::Remote,
    route::{Connecting, Mailbox, ProbeError, Route, proof::behind_bastion, step::Step},
};

/// Makes routes through the SSH servers of one identity. Clones share connections.
#[derive(Clone)]
pub struct Servers {
    aws: Aws,
    config: Config,
    bastions: Arc<Mutex<BTreeMap<String, Arc<Bastion>>>>,
}

impl Servers {
    #[must_use]
    pub fn new(aws: &Aws, config: Config) -> Self {
        Self { aws: aws.clone(), config, bastions: Arc::default() }
    }

    /// Returns the route through a server.
    #[must_use]
    pub fn route(&self, spec: &SshBastion) -> Arc<dyn Route> {
        Arc::new(SshRoute { bastion: self.bastion(spec) })
    }

    /// Connects to a server, for its route to use, and tells how it went, step by step.
    pub async fn walk(&self, spec: &SshBastion) -> Vec<Step> {
        self.bastion(spec).walk(Clock::start()).await
    }

    fn bastion(&self, spec: &SshBastion) -> Arc<Bastion> {
        let mut bastions = self.bastions.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || Arc::new(Bastion::new(spec.clone(), self.aws.clone(), self.config.clone()));
        Arc::clone(bastions.entry(spec.to_string()).or_insert_with(make))
    }
}

/// The way through one server.
struct SshRoute {
    bastion: Arc<Bastion>,
}

impl fmt::Debug for SshRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SshRoute").field("bastion", self.bastion.spec()).finish()
    }
}

impl Route for SshRoute {
    fn label(&self) -> String {
        self.bastion.spec().to_string()
    }

    fn run(self: Arc<Self>, to: Arc<Remote>, mailbox: Mailbox) -> BoxFuture<'static, ()> {
        Box::pin(link::run(Arc::clone(&self.bastion), to, mailbox))
    }

    fn advise(&self, to: &Remote, error: &ProbeError) -> Vec<String> {
        behind_bastion(to, error)
    }

    fn connect(&self, to: &Arc<Remote>, limit: Duration) -> Option<Connecting> {
        let (bastion, to) = (Arc::clone(&self.bastion), Arc::clone(to));
        Some(Box::pin(async move {
            let connection = bastion.connection(Clock::start()).await?;
            let destination = to.endpoint().to_string();
            match timeout(limit, connection.stream(to.endpoint())).await {
                Ok(opened) => opened.map_err(|source| bastion.fault(SshFault::NotForwarded { destination, source })),
                Err(_) => {
                    Err(bastion
                        .fault(SshFault::Timeout { step: "the way to the API server", seconds: limit.as_secs() }))
                }
            }
        }))
    }

    fn advise_silence(&self) -> Vec<String> {
        vec!["`--timeout` sets how long to wait for a bastion that is slow to let anybody in".to_owned()]
    }
}
