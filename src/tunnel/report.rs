//! What a session's task and its prober tell the tunnel, and what the tunnel makes of it.
//!
//! Invariant: a slot's state is a function of the reports that came, in their order.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    Fault, ProbeError, SessionHandle, SessionStatus, State,
    held::Held,
    meter::Meter,
    policy::{self, Step},
    probe::Answer,
    status::system_time,
};
use crate::{
    cluster::Target,
    route::ssm::proto::{Now, Version},
    util::peer_text::PeerText,
};

/// Something that happened to a session.
#[derive(Debug)]
pub(super) enum Report {
    /// A session is being started.
    Dialing {
        /// On this target.
        target: Target,
    },
    /// A session has been started and has its first transport.
    Started(SessionHandle),
    /// The handshake is complete.
    Established {
        /// The agent's version.
        agent_version: Version,
        /// The agent's words for the user, perhaps empty.
        customer_message: PeerText,
    },
    /// The session has proved itself on its transport.
    Alive,
    /// About how long lost messages hold up a new connection, when that has changed.
    Backlog(Duration),
    /// The transport answers, and the agent's acknowledgement stays away.
    Suspect,
    /// The machine has slept.
    Slept,
    /// The transport is lost; the session will be resumed.
    Lost(Arc<Fault>),
    /// The session has another transport.
    Resumed,
    /// The session is over, or could not be had.
    Ended {
        /// Why.
        fault: Arc<Fault>,
        /// What follows.
        step: Step,
    },
    /// The destination refused a connection of a local program.
    Refused,
    /// A probe has ended.
    Probed(Result<Answer, ProbeError>),
    /// A connection did not get its stream: it has to wait for a session again.
    Returned(Held),
}

/// Sends reports of one slot.
#[derive(Debug, Clone)]
pub(super) struct Reporter {
    slot: usize,
    sender: mpsc::UnboundedSender<(usize, Report)>,
}

impl Reporter {
    /// Creates the sender of the slot with this number.
    pub(super) fn new(slot: usize, sender: mpsc::UnboundedSender<(usize, Report)>) -> Self {
        Self { slot, sender }
    }

    /// Sends one report.
    pub(super) fn send(&self, report: Report) {
        // A tunnel that is gone does not need it.
        let _outcome = self.sender.send((self.slot, report));
    }
}

/// What it takes for a session to count as active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// The handshake with the agent.
    Handshake,
    /// A probe of each new session.
    FirstProbe,
    /// A probe of each new session, of each resumed one, and others in between.
    Probes,
}

/// How long a session with open connections that has been resumed is given to show how much it has lost, before it
/// is given new ones: a round trip, and a message of the agent.
const SETTLE_TIME: Duration = Duration::from_millis(250);

/// What the tunnel knows of one of its sessions.
#[derive(Debug)]
pub(super) struct Slot {
    state: State,
    since: Duration,
    /// The state to come back to when a lost transport has been replaced.
    before: State,
    /// Whether the slot has been active yet.
    was_active: bool,
    /// Who says that the slot is active.
    proof: Proof,
    session: Option<(SessionHandle, Duration)>,
    target: Option<Target>,
    agent_version: Option<Version>,
    /// Of the last probe of this session that succeeded.
    probe_round_trip: Option<Duration>,
    attached: bool,
    /// When a session that has been resumed takes connections again, as [`Now::mono`].
    settles_at: Option<Duration>,
    backlog: Duration,
    behind: bool,
    /// No session, until a connection needs one.
    pub(super) dormant: bool,
    pub(super) resumes: u64,
    pub(super) restarts: u64,
    pub(super) meter: Arc<Meter>,
}

impl Slot {
    /// Creates the slot of a session that is not there yet.
    pub(super) fn new(now: Now, meter: Arc<Meter>, proof: Proof) -> Self {
        Self {
            state: State::Starting,
            since: now.wall,
            before: State::Starting,
            was_active: false,
            proof,
            session: None,
            target: None,
            agent_version: None,
            probe_round_trip: None,
            attached: false,
            settles_at: None,
            backlog: Duration::ZERO,
            behind: false,
            dormant: false,
            resumes: 0,
            restarts: 0,
            meter,
        }
    }

    /// Returns the slot's state.
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Returns the target that it is on, or being started on.
    pub(super) fn target(&self) -> Option<&Target> {
        self.target.as_ref()
    }

    /// Whether streams can be opened.
    pub(super) fn takes_connections(&self, now: Duration) -> bool {
        self.attached && self.agent_version.is_some() && self.settles_at.is_none_or(|at| at <= now)
    }

    /// Whether the agent has completed its handshake, in a session that goes on.
    pub(super) fn is_established(&self) -> bool {
        self.agent_version.is_some()
    }

    /// Whether there is a session that has lost its transport.
    pub(super) fn is_lost(&self) -> bool {
        self.session.is_some() && !self.attached
    }

    /// Whether it has been proved to work at any time.
    pub(super) fn was_active(&self) -> bool {
        self.was_active
    }

    /// Returns when it takes connections again, if it is only that.
    pub(super) fn settles_at(&self) -> Option<Duration> {
        self.settles_at.filter(|_| self.attached)
    }

    /// Returns about how long lost messages hold up a new connection.
    pub(super) fn backlog(&self) -> Duration {
        self.backlog
    }

    /// Whether lost messages hold up new connections for longer than another session would take.
    pub(super) fn is_behind(&self) -> bool {
        self.behind
    }

    /// Decides whether it is behind, given what starting a session costs.
    pub(super) fn judge_backlog(&mut self, start_time: Duration) {
        self.behind = policy::is_behind(self.backlog, self.behind, start_time);
    }

    /// Takes note of a report, but for those that concern the tunnel only. Returns the error that it
    /// brought, if any.
    pub(super) fn apply(&mut self, report: Report, now: Now) -> Option<Arc<Fault>> {
        match report {
            Report::Dialing { target } => {
                self.dormant = false;
                self.target = Some(target);
                if self.state != State::Failed {
                    self.set(self.connecting(), now);
                }
            }
            Report::Started(session) => {
                self.session = Some((session, now.wall));
                self.attached = true;
            }
            Report::Established { agent_version, .. } => {
                self.agent_version = Some(agent_version);
                if self.proof == Proof::Handshake {
                    self.set(State::Active, now);
                }
            }
            Report::Alive => {
                if self.attached && self.state == State::Reconnecting && self.before == State::Active {
                    self.set(State::Active, now);
                }
            }
            Report::Backlog(backlog) => self.backlog = backlog,
            Report::Lost(fault) => {
                self.attached = false;
                if self.state != self.connecting() {
                    self.before = self.state;
                }
                self.set(self.connecting(), now);
                return Some(fault);
            }
            Report::Resumed => {
                self.attached = true;
                let in_use = self.meter.open.load(Ordering::Relaxed) > 0;
                self.settles_at = in_use.then(|| now.mono + SETTLE_TIME);
                self.resumes += 1;
                if self.proof != Proof::Probes {
                    self.set(self.before, now);
                }
            }
            Report::Ended { fault, step } => {
                self.attached = false;
                self.agent_version = None;
                self.probe_round_trip = None;
                self.backlog = Duration::ZERO;
                self.behind = false;
                self.restarts += u64::from(self.session.take().is_some());
                self.before = State::Starting;
                self.dormant = matches!(step, Step::OnDemand { .. });
                let state = match step {
                    Step::Resume { .. } | Step::Restart { .. } => self.connecting(),
                    Step::SlowRetry { .. } => State::Failed,
                    Step::OnDemand { .. } => State::Active,
                };
                // Another target is tried in between without a sign that it is any better.
                if !(self.state == State::Failed && matches!(*fault, Fault::Start(_))) || self.dormant {
                    self.set(state, now);
                }
                return Some(fault);
            }
            Report::Refused => {
                if self.state == State::Active && self.proof != Proof::Handshake {
                    self.set(State::Degraded, now);
                }
                return Some(Arc::new(Fault::Probe(ProbeError::Refused)));
            }
            Report::Probed(Ok(answer)) => {
                self.probe_round_trip = Some(answer.round_trip);
                if self.attached {
                    self.set(State::Active, now);
                }
            }
            Report::Probed(Err(error)) => return self.apply_probe_error(error, now),
            Report::Suspect | Report::Slept | Report::Returned(_) => {}
        }
        None
    }

    fn apply_probe_error(&mut self, error: ProbeError, now: Now) -> Option<Arc<Fault>> {
        let state = match &error {
            ProbeError::SessionLost => return None,
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
        Some(Arc::new(Fault::Probe(error)))
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

    /// Returns what to show of the session, once a target has been chosen.
    pub(super) fn status(&self) -> Option<SessionStatus> {
        Some(SessionStatus {
            id: self.session.as_ref().map(|(session, _)| session.id.clone()),
            started_at: self.session.as_ref().map(|(_, started)| system_time(*started)),
            target: self.target.clone()?,
            agent_version: self.agent_version,
            state: self.state,
            since: system_time(self.since),
            open_connections: self.meter.open.load(Ordering::Relaxed),
            bytes_sent: self.meter.bytes_sent.load(Ordering::Relaxed),
            bytes_received: self.meter.bytes_received.load(Ordering::Relaxed),
            probe_round_trip: self.probe_round_trip,
            messages_behind: if self.behind { self.meter.missing.load(Ordering::Relaxed) } else { 0 },
            held_back: self.meter.held_back.load(Ordering::Relaxed),
            bytes_held: self.meter.held.load(Ordering::Relaxed),
        })
    }
}
