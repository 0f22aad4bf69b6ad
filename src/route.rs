//! The ways in: what carries connections from here to a cluster.
//!
//! A [`Route`] is one way: a bastion, or none. It runs links, each of which is one live carrier: it connects, takes
//! connections of local programs from its [`Mailbox`], carries them, recovers what it can, and reports. Whoever runs the
//! links ([`tunnel`](crate::tunnel)) knows faults by their [`Class`] only, and nothing of what is behind a route.
//!
//! Invariants: a link that has begun tells of its end, with [`Report::Ended`], unless its stop was asked for; what it was
//! given and could not carry comes back; its future returns when nothing of it is left.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

pub mod backlog;
pub mod budget;
mod direct;
pub mod list;
pub mod local;
pub mod mailbox;
pub mod meter;
pub mod near;
pub mod proof;
pub mod ssh;
pub mod ssm;
pub mod step;

pub use self::{
    budget::{Budget, RECEIVE_BUDGET, Share},
    list::Routes,
    local::{Carried, CarriedBy, Ends, Held, Io, PipeEnd},
    mailbox::{Caution, Command, End, Mailbox, Report, Reporter, RetryNow, Terms},
    meter::{LinkState, Meter},
    proof::{Answer, ProbeError, Unproved},
};
pub use crate::fault::{BoxError, Class, Fault};
use crate::{remote::Remote, util::connection::Connection};

/// A connection that is being opened.
pub type Connecting = BoxFuture<'static, Result<Box<dyn Connection>, Arc<Fault>>>;

/// One way to carry connections to clusters.
pub trait Route: fmt::Debug + Send + Sync + 'static {
    /// Returns what status and errors call it. It names the route among others of the same identity.
    fn label(&self) -> String;

    /// Runs one link to the endpoint of a cluster, until it is over and whatever had come for local programs has been
    /// taken, or until a stop is asked for. See the module's documentation.
    fn run(self: Arc<Self>, to: Arc<Remote>, mailbox: Mailbox) -> BoxFuture<'static, ()>;

    /// Returns what to do about a link that did not lead to the API server of a cluster.
    fn advise(&self, to: &Remote, error: &ProbeError) -> Vec<String>;

    /// Opens one connection to the endpoint of a cluster by itself, within `limit`, where that takes nothing that could fail
    /// before it; `None`: there is no such thing on this route. For whoever looks at a route step by step.
    fn connect(&self, _to: &Arc<Remote>, _limit: Duration) -> Option<Connecting> {
        None
    }

    /// Whether a second link beside a busy one carries more than one does, and takes a place from nobody.
    fn has_room(&self) -> bool {
        false
    }

    /// Returns what to do about a link that has been started and is not [established](Report::Established) yet.
    fn advise_silence(&self) -> Vec<String>;
}
