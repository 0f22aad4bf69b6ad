//! What a session's task and its prober tell the tunnel, and what the tunnel makes of it.
//!
//! Invariant: a slot's state is a function of the reports that came, in their order.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::{
    Fault, ProbeError, SessionHandle, SessionStatus, State, held::Held, meter::Meter, policy::Step, probe::Answer,
    status::system_time,
};
use crate::{
    cluster::Target,
    proto::{Now, Version},
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
        customer_message: String,
    },
    /// The session has proved itself on its transport.
    Alive,
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
    attached: bool,
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
            attached: false,
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

    /// Whether streams can be opened.
    pub(super) fn takes_connections(&self) -> bool {
        self.attached && self.agent_version.is_some()
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
                self.resumes += 1;
                if self.proof != Proof::Probes {
                    self.set(self.before, now);
                }
            }
            Report::Ended { fault, step } => {
                self.attached = false;
                self.agent_version = None;
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
            Report::Probed(Ok(_)) => {
                if self.attached {
                    self.set(State::Active, now);
                }
            }
            Report::Probed(Err(error)) => return self.apply_probe_error(error, now),
            Report::Returned(_) => {}
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
            open_connections: self.meter.open.load(std::sync::atomic::Ordering::Relaxed),
        })
    }
}
