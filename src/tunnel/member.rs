//! One place among the links of a tunnel: what it is for, the link that it has, and how much that has to do.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{LinkStatus, State, load::Load, slot::Slot};
use crate::route::{Command, Held, Meter};

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It is always there: it is replaced when it ends.
    Base,
    /// It takes a share of the connections while there is something to share.
    Extra,
    /// It takes connections while the others are behind.
    Relief,
    /// It finds out whether a better route is back, and takes no connections yet.
    Candidate,
    /// It keeps the connections that it has, and ends with the last of them.
    Retiring,
}

/// A link that is being started or is there.
pub(super) struct Link {
    /// By which its reports are known.
    pub(super) number: u64,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) meter: Arc<Meter>,
    /// Asks its prober for a probe.
    pub(super) suspicion: Arc<Notify>,
    /// Connections that it was given.
    pub(super) given: u64,
    /// When its start began; `None` once it is established.
    pub(super) starting_since: Option<Duration>,
    /// When it was there.
    pub(super) started_at: Option<Duration>,
}

impl Link {
    /// Returns the connections that it carries, those included that it has not seen yet.
    fn open(&self) -> usize {
        let unseen = self.given.saturating_sub(self.meter.taken.load(Ordering::Relaxed));
        self.meter.open.load(Ordering::Relaxed) + usize::try_from(unseen).unwrap_or(usize::MAX)
    }
}

/// A link that is over and still delivers what had come.
struct Leftover {
    number: u64,
    meter: Arc<Meter>,
}

/// One place among the links of a tunnel. See the module's documentation.
pub(super) struct Member {
    pub(super) role: Role,
    pub(super) slot: Slot,
    pub(super) load: Load,
    /// The link; `None`: another one is waited for, or none follows.
    pub(super) link: Option<Link>,
    /// Links that are over and still deliver what had come.
    leftovers: Vec<Leftover>,
    /// Ends all of it.
    pub(super) stop: CancellationToken,
    /// The route, by its place in the list.
    pub(super) route: usize,
    /// How many routes of the list it may take, unless it is [replaced](Self::is_replaced).
    pub(super) routes: usize,
    /// See [`History`](super::recovery::History).
    pub(super) starts: u32,
    pub(super) useful_at: Option<Duration>,
    /// The user has been told that only a human can help.
    pub(super) needs_human: bool,
    pub(super) opened_at: Duration,
    /// When it was last seen with connections, or on its way.
    pub(super) used_at: Duration,
    /// What links that are gone have counted.
    past: Totals,
}

impl Member {
    /// Creates a place without a link.
    pub(super) fn new(
        role: Role,
        slot: Slot,
        route: usize,
        routes: usize,
        stop: CancellationToken,
        now: Duration,
    ) -> Self {
        Self {
            role,
            slot,
            load: Load::default(),
            link: None,
            leftovers: Vec::new(),
            stop,
            route,
            routes,
            starts: 0,
            useful_at: None,
            needs_human: false,
            opened_at: now,
            used_at: now,
            past: Totals::default(),
        }
    }

    // Getters.

    /// Returns the connections that it carries.
    pub(super) fn open(&self) -> usize {
        let delivering = self.leftovers.iter().map(|leftover| leftover.meter.open.load(Ordering::Relaxed));
        self.link.iter().map(Link::open).chain(delivering).sum()
    }

    /// Whether another link follows, on any route, when one ends. Otherwise only one on a later route may.
    pub(super) fn is_replaced(&self) -> bool {
        self.role == Role::Base
    }

    /// Whether it may be given connections, as far as its role goes. An extra link whose proof fails is left alone
    /// until one succeeds: there are others.
    pub(super) fn serves(&self) -> bool {
        match self.role {
            Role::Base | Role::Relief => true,
            Role::Extra => !matches!(self.slot.state(), State::Degraded | State::Failed),
            Role::Candidate | Role::Retiring => false,
        }
    }

    /// Whether it counts towards the links that a tunnel may have.
    pub(super) fn is_counted(&self) -> bool {
        matches!(self.role, Role::Base | Role::Extra)
    }

    /// Whether its state says something about the tunnel's: new connections get the best one, and what is not the base
    /// counts for nothing until it works.
    pub(super) fn speaks_for_tunnel(&self) -> bool {
        match self.role {
            Role::Base | Role::Relief => true,
            Role::Retiring => self.open() > 0,
            Role::Extra => self.slot.state() == State::Active,
            Role::Candidate => false,
        }
    }

    /// Whether it is an extra link that has not come up yet.
    pub(super) fn is_coming(&self) -> bool {
        self.role == Role::Extra && !self.slot.is_established()
    }

    /// Whether nothing is left of it and nothing follows.
    pub(super) fn is_gone(&self) -> bool {
        self.link.is_none() && self.leftovers.is_empty() && !self.slot.dormant
    }

    /// Returns what it has counted since its start.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = self.past;
        let leftovers = self.leftovers.iter().map(|leftover| &leftover.meter);
        for meter in self.link.iter().map(|link| &link.meter).chain(leftovers) {
            totals.add(meter);
        }
        totals.resumes = self.slot.resumes;
        totals.restarts = if self.role == Role::Base { self.slot.restarts } else { 0 };
        totals
    }

    /// Returns what to show of it, once a route has been chosen.
    pub(super) fn status(&self) -> Option<LinkStatus> {
        let none = Meter::default();
        let meter = self.link.as_ref().map_or(&none, |link| &*link.meter);
        self.slot.status(meter, self.open(), &self.totals())
    }

    // Commands.

    /// Looks at what it does.
    pub(super) fn observe(&mut self, now: Duration) {
        let open = self.open();
        let Totals { bytes_sent, bytes_received, .. } = self.totals();
        self.load.observe(now, open, bytes_sent + bytes_received);
        if open > 0 || self.is_coming() {
            self.used_at = now;
        }
    }

    /// Gives it a connection, which comes back if its link has just ended.
    pub(super) fn give(&mut self, mut held: Held, now: Duration) -> Result<(), Held> {
        let Some(link) = &mut self.link else { return Err(held) };
        held.io.note_link(|| self.slot.carries_as());
        let sent = link.commands.send(Command::Connect(held));
        sent.map_err(|error| match error.0 {
            Command::Connect(held) => held,
            Command::Abandon(_) => unreachable!("a connection was sent"),
        })?;
        link.given += 1;
        self.load.given(now);
        self.used_at = now;
        Ok(())
    }

    /// Takes note that its link is over, and returns it. What it still delivers is counted on.
    pub(super) fn unlink(&mut self) -> Option<Link> {
        let link = self.link.take()?;
        self.leftovers.push(Leftover { number: link.number, meter: Arc::clone(&link.meter) });
        Some(link)
    }

    /// Whether a link with this number is its own, or was.
    pub(super) fn has(&self, number: u64) -> bool {
        self.link.as_ref().is_some_and(|link| link.number == number)
            || self.leftovers.iter().any(|leftover| leftover.number == number)
    }

    /// Forgets a link of which nothing is left.
    pub(super) fn forget(&mut self, number: u64) {
        self.unlink_if(number);
        if let Some(at) = self.leftovers.iter().position(|leftover| leftover.number == number) {
            let gone = self.leftovers.swap_remove(at);
            self.past.add(&gone.meter);
        }
    }

    /// One that has ended without a word, as after a stop.
    fn unlink_if(&mut self, number: u64) {
        if self.link.as_ref().is_some_and(|link| link.number == number) {
            self.unlink();
        }
    }

    /// Takes no more connections, and ends with the last one. No link is started for it any more.
    pub(super) fn retire(&mut self) {
        self.role = Role::Retiring;
        self.slot.dormant = false;
    }
}

/// What links have counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Totals {
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) connections: u64,
    pub(super) resumes: u64,
    pub(super) restarts: u64,
}

impl Totals {
    /// Adds what a link has carried.
    fn add(&mut self, meter: &Meter) {
        self.bytes_sent += meter.bytes_sent.load(Ordering::Relaxed);
        self.bytes_received += meter.bytes_received.load(Ordering::Relaxed);
        self.connections += meter.connections_total.load(Ordering::Relaxed);
    }
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.connections += other.connections;
        self.resumes += other.resumes;
        self.restarts += other.restarts;
    }
}
