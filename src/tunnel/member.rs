//! One session's task as its tunnel sees it: what it is for, how it is, and how much it has to do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{State, driver::Command, load::Load, report::Slot};

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It is always there: it is replaced when it ends.
    Base,
    /// It takes a share of the connections while there is something to share.
    Extra,
    /// It takes connections while the others are behind.
    Relief,
    /// It finds out whether a better target is back, and takes no connections yet.
    Candidate,
    /// It keeps the connections that it has, and ends with the last of them.
    Retiring,
}

/// One session's task, seen from the tunnel.
pub(super) struct Member {
    pub(super) role: Role,
    pub(super) slot: Slot,
    pub(super) load: Load,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) suspicion: Arc<Notify>,
    pub(super) stop: CancellationToken,
    /// Shared with the task: another session follows when this one ends.
    pub(super) replaced: Arc<AtomicBool>,
    pub(super) opened_at: Duration,
    /// When the present start began.
    pub(super) dialing_since: Option<Duration>,
    /// When it was last seen with connections, or on its way.
    pub(super) used_at: Duration,
}

impl Member {
    /// Returns the connections that it carries.
    pub(super) fn open(&self) -> usize {
        self.slot.meter.open.load(Ordering::Relaxed)
    }

    /// Whether it may be given connections, as far as its role goes. An extra session whose proof fails is left alone
    /// until one succeeds: there are others.
    pub(super) fn serves(&self) -> bool {
        match self.role {
            Role::Base | Role::Relief => true,
            Role::Extra => !matches!(self.slot.state(), State::Degraded | State::Failed),
            Role::Candidate | Role::Retiring => false,
        }
    }

    /// Whether it counts towards the sessions that a tunnel may have.
    pub(super) fn is_counted(&self) -> bool {
        matches!(self.role, Role::Base | Role::Extra)
    }

    /// Whether its state says something about the tunnel's: new connections get the best one, and what is not the base
    /// counts for nothing until it works.
    pub(super) fn speaks_for_tunnel(&self) -> bool {
        match self.role {
            Role::Base | Role::Relief | Role::Retiring => true,
            Role::Extra => self.slot.state() == State::Active,
            Role::Candidate => false,
        }
    }

    /// Whether it is an extra session that has not come up yet.
    pub(super) fn is_coming(&self) -> bool {
        self.role == Role::Extra && !self.slot.is_established()
    }

    /// Looks at what it does.
    pub(super) fn observe(&mut self, now: Duration) {
        let open = self.open();
        let meter = &self.slot.meter;
        let moved = meter.bytes_sent.load(Ordering::Relaxed) + meter.bytes_received.load(Ordering::Relaxed);
        self.load.observe(now, open, moved);
        if open > 0 || self.is_coming() {
            self.used_at = now;
        }
    }

    /// Takes no more connections, and ends with the last one.
    pub(super) fn retire(&mut self) {
        self.role = Role::Retiring;
        self.replaced.store(false, Ordering::Relaxed);
    }
}

/// What members that have ended had counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Totals {
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) connections: u64,
    pub(super) resumes: u64,
    pub(super) restarts: u64,
}

impl Totals {
    /// Adds what a member has counted.
    pub(super) fn add(&mut self, member: &Member) {
        let Slot { meter, resumes, restarts, .. } = &member.slot;
        self.bytes_sent += meter.bytes_sent.load(Ordering::Relaxed);
        self.bytes_received += meter.bytes_received.load(Ordering::Relaxed);
        self.connections += meter.connections_total.load(Ordering::Relaxed);
        self.resumes += resumes;
        if member.role == Role::Base {
            self.restarts += restarts;
        }
    }
}
