//! What a tunnel makes of the reports of a link, and of those that follow it.
//!
//! Invariant: a slot's state is a function of the reports that came, in their order.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    LinkStatus, State,
    member::Totals,
    recovery::{self, Step},
    status::system_time,
};
use crate::{
    route::{CarriedBy, Fault, Meter, ProbeError, Report, Route},
    util::time::Now,
};

/// What it takes for a link to count as active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// That it takes connections.
    Established,
    /// A probe of each new link.
    FirstProbe,
    /// A probe of each new link, of each resumed one, and others in between.
    Probes,
}

/// How long a link with open connections that has been resumed is given to show how much it has lost, before it
/// is given new ones: a round trip, and a message of the other end.
const SETTLE_TIME: Duration = Duration::from_millis(250);

/// What the tunnel knows of one of its links, and of those that it has replaced.
#[derive(Debug)]
pub(super) struct Slot {
    state: State,
    since: Duration,
    /// The state to come back to when the link has been resumed.
    before: State,
    /// Whether the slot has been active yet.
    was_active: bool,
    /// Who says that the slot is active.
    proof: Proof,
    /// The link's id, and when it was started; `None`: there is none.
    started: Option<(Option<String>, Duration)>,
    /// The label of the route that it is on, or being started on.
    route: Option<String>,
    /// What the link leads through, where the route has a choice.
    through: Option<String>,
    /// What a link that is being started waits for.
    progress: Option<String>,
    /// That is a person.
    awaits_person: bool,
    /// What the link leads through is about to go.
    leaving: bool,
    established: bool,
    /// What to do if the other end does not answer.
    silence_hints: Vec<String>,
    peer_version: Option<String>,
    /// Of the last probe of this link that succeeded.
    probe_round_trip: Option<Duration>,
    attached: bool,
    /// When a link that has been resumed takes connections again, as [`Now::mono`].
    settles_at: Option<Duration>,
    backlog: Duration,
    behind: bool,
    /// No link, until a connection needs one.
    pub(super) dormant: bool,
    pub(super) resumes: u64,
    pub(super) restarts: u64,
}

impl Slot {
    /// Creates the slot of a link that is not there yet.
    pub(super) fn new(now: Now, proof: Proof) -> Self {
        Self {
            state: State::Starting,
            since: now.wall,
            before: State::Starting,
            was_active: false,
            proof,
            started: None,
            route: None,
            through: None,
            progress: None,
            awaits_person: false,
            leaving: false,
            established: false,
            silence_hints: Vec::new(),
            peer_version: None,
            probe_round_trip: None,
            attached: false,
            settles_at: None,
            backlog: Duration::ZERO,
            behind: false,
            dormant: false,
            resumes: 0,
            restarts: 0,
        }
    }

    /// Returns the slot's state.
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Whether it can be given connections.
    pub(super) fn takes_connections(&self, now: Duration) -> bool {
        self.attached && self.established && self.settles_at.is_none_or(|at| at <= now)
    }

    /// Whether the link has been established and goes on.
    pub(super) fn is_established(&self) -> bool {
        self.established
    }

    /// Returns what the link leads through, where the route has a choice.
    pub(super) fn through(&self) -> Option<&str> {
        self.through.as_deref()
    }

    /// Whether what the link leads through is about to go.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Whether there is a link that carries nothing for now.
    pub(super) fn is_lost(&self) -> bool {
        self.started.is_some() && !self.attached
    }

    /// Whether it has been proved to work at any time.
    pub(super) fn was_active(&self) -> bool {
        self.was_active
    }

    /// Returns when it takes connections again, if it is only that.
    pub(super) fn settles_at(&self) -> Option<Duration> {
        self.settles_at.filter(|_| self.attached)
    }

    /// Returns about how long what was lost holds up a new connection.
    pub(super) fn backlog(&self) -> Duration {
        self.backlog
    }

    /// Whether what was lost holds up new connections for longer than another link would take.
    pub(super) fn is_behind(&self) -> bool {
        self.behind
    }

    /// Decides whether it is behind, given what starting a link costs.
    pub(super) fn judge_backlog(&mut self, start_time: Duration) {
        self.behind = recovery::is_behind(self.backlog, self.behind, start_time);
    }

    /// Waits for a connection that needs a link. If the first one that is started then does not come, what follows is no
    /// beginning any more.
    pub(super) fn rest(&mut self, now: Now) {
        self.dormant = true;
        self.was_active = true;
        self.set(State::Idle, now);
    }

    /// Takes note that a link is being started on a route.
    pub(super) fn connect(&mut self, route: &dyn Route, now: Now) {
        self.dormant = false;
        self.route = Some(route.label());
        self.silence_hints = route.advise_silence();
        match self.state {
            State::Failed => {}
            State::Idle => self.set(State::Starting, now),
            State::Starting | State::Active | State::Reconnecting | State::Degraded | State::Stopped => {
                self.set(self.connecting(), now);
            }
        }
    }

    /// Takes note of the end of a link, and of what follows if anything does.
    pub(super) fn end(&mut self, step: Step, goes_on: bool, now: Now) {
        let had_started = self.started.take().is_some();
        self.attached = false;
        self.established = false;
        self.through = None;
        (self.progress, self.awaits_person) = (None, false);
        self.leaving = false;
        self.peer_version = None;
        self.probe_round_trip = None;
        self.settles_at = None;
        self.backlog = Duration::ZERO;
        self.behind = false;
        self.restarts += u64::from(had_started);
        self.before = State::Starting;
        self.dormant = goes_on && matches!(step, Step::OnDemand { .. });
        let state = match step {
            Step::Restart { .. } => self.connecting(),
            Step::SlowRetry { .. } => State::Failed,
            Step::OnDemand { .. } if goes_on => State::Active,
            Step::OnDemand { .. } => self.connecting(),
        };
        // Another route is tried in between without a sign that it is any better.
        if self.state != State::Failed || had_started || self.dormant {
            self.set(state, now);
        }
    }

    /// Takes note of a report, but for those that concern the tunnel only. Returns what went wrong, if that is what it
    /// tells.
    pub(super) fn apply(&mut self, report: Report, in_use: bool, now: Now) -> Option<Wrong> {
        match report {
            Report::Progress(text) => (self.progress, self.awaits_person) = (Some(text), false),
            Report::Asked(text) => (self.progress, self.awaits_person) = (Some(text), true),
            Report::Started { id, through } => {
                self.started = Some((id, now.wall));
                self.through = through;
                (self.progress, self.awaits_person) = (None, false);
                self.attached = true;
            }
            Report::Established { peer_version, .. } => {
                self.established = true;
                self.silence_hints.clear();
                self.peer_version = peer_version;
                if self.proof == Proof::Established {
                    self.set(State::Active, now);
                }
            }
            Report::Alive => {
                if self.attached && self.state == State::Reconnecting && self.before == State::Active {
                    self.set(State::Active, now);
                }
            }
            Report::Leaving => self.leaving = true,
            Report::Backlog(backlog) => self.backlog = backlog,
            Report::Lost(fault) => {
                self.attached = false;
                if self.state != self.connecting() {
                    self.before = self.state;
                }
                self.set(self.connecting(), now);
                return Some(Wrong::Fault(fault));
            }
            Report::Resumed => {
                self.attached = true;
                self.settles_at = in_use.then(|| now.mono + SETTLE_TIME);
                self.resumes += 1;
                if self.proof != Proof::Probes {
                    self.set(self.before, now);
                }
            }
            Report::Refused => {
                if self.state == State::Active && self.proof != Proof::Established {
                    self.set(State::Degraded, now);
                }
                return Some(Wrong::Probe(ProbeError::Refused));
            }
            Report::Probed(Ok(answer)) => {
                self.probe_round_trip = Some(answer.round_trip);
                if self.attached {
                    self.set(State::Active, now);
                }
            }
            Report::Probed(Err(error)) => return self.apply_probe_error(error, now),
            Report::Connecting
            | Report::Suspect
            | Report::Slept
            | Report::Returned(_)
            | Report::Caution(_)
            | Report::Notice(_)
            | Report::Ended(_) => {}
        }
        None
    }

    fn apply_probe_error(&mut self, error: ProbeError, now: Now) -> Option<Wrong> {
        let state = match &error {
            ProbeError::LinkLost => return None,
            ProbeError::Certificate { .. } | ProbeError::Authority { .. } => State::Failed,
            ProbeError::Refused
            | ProbeError::NoAnswer { .. }
            | ProbeError::Ended
            | ProbeError::Tls { .. }
            | ProbeError::NotHttp => State::Degraded,
        };
        if self.attached {
            self.set(state, now);
        }
        Some(Wrong::Probe(error))
    }

    fn connecting(&self) -> State {
        if self.was_active { State::Reconnecting } else { State::Starting }
    }

    fn set(&mut self, state: State, now: Now) {
        self.was_active |= state == State::Active;
        if self.state != state {
            self.state = state;
            self.since = now.wall;
        }
    }

    /// Returns what evidence calls the link, once a route has been chosen.
    pub(super) fn carries_as(&self) -> Option<CarriedBy> {
        let id = self.started.as_ref().and_then(|(id, _)| id.clone());
        Some(CarriedBy { route: self.through.clone().or_else(|| self.route.clone())?, id })
    }

    /// Returns what to show of the link, once a route has been chosen. `meter` is the link's, `totals` what it and those
    /// that it has replaced have carried.
    pub(super) fn status(&self, meter: &Meter, open: usize, totals: &Totals) -> Option<LinkStatus> {
        Some(LinkStatus {
            id: self.started.as_ref().and_then(|(id, _)| id.clone()),
            started_at: self.started.as_ref().map(|(_, started)| system_time(*started)),
            route: self.route.clone()?,
            through: self.through.clone(),
            progress: self.progress.clone(),
            awaits_person: self.awaits_person,
            is_established: self.established,
            silence_hints: self.silence_hints.clone(),
            peer_version: self.peer_version.clone(),
            state: self.state,
            since: system_time(self.since),
            open_connections: open,
            bytes_sent: totals.bytes_sent,
            bytes_received: totals.bytes_received,
            probe_round_trip: self.probe_round_trip,
            messages_behind: if self.behind { meter.missing.load(Ordering::Relaxed) } else { 0 },
            held_back: meter.held_back.load(Ordering::Relaxed),
            bytes_held: meter.held.load(Ordering::Relaxed),
        })
    }
}

/// What a report says went wrong.
pub(super) enum Wrong {
    /// The link says what.
    Fault(Arc<Fault>),
    /// The API server was not reached.
    Probe(ProbeError),
}
