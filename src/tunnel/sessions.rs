//! The sessions of one tunnel: which there are, which takes the next connection, which has to go.
//!
//! A tunnel has as many regular sessions as it is told to have, and sometimes one more:
//!
//! * a **relief**, while every other session has lost so much that a new connection would wait longer for the
//!   agent's repeats than for a session of its own;
//! * a **candidate**, on a target that comes before the present one in the list, to find out whether it is back.
//!   Once proved it takes the place of the regular session, whose connections stay where they are until they
//!   end: then it is **retired**.
//!
//! Invariants: a session that may take connections is never stopped while it has some; what is not regular is not
//! replaced when it ends; there is one relief and one candidate at most.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info};

use super::{
    Fault, Readiness, SessionStatus, State,
    driver::{Command, Driver},
    held::Held,
    meter::{LinkState, Meter},
    policy::{self, Jitter},
    probe::Probe,
    prober::Prober,
    report::{Proof, Report, Reporter, Slot},
    session::{Assignment, SessionTask, Shared},
};
use crate::proto::Now;

/// How long a connection waits for a relief before it takes its place behind the repeats.
const RELIEF_PATIENCE: Duration = Duration::from_secs(10);

/// How long no relief is tried after one that could not be had.
const RELIEF_PAUSE: Duration = Duration::from_secs(30);

/// What starting a session is taken to cost before one has been measured.
const USUAL_START_TIME: Duration = Duration::from_secs(1);

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It is replaced when it ends.
    Regular,
    /// It takes connections while the regular ones are behind.
    Relief,
    /// It finds out whether a better target is back, and takes no connections yet.
    Candidate,
    /// It keeps the connections that it has, and ends with the last of them.
    Retiring,
}

/// One session's task, seen from the tunnel.
struct Member {
    role: Role,
    slot: Slot,
    commands: mpsc::UnboundedSender<Command>,
    suspicion: Arc<Notify>,
    stop: CancellationToken,
    /// Shared with the task: another session follows when this one ends.
    replaced: Arc<AtomicBool>,
    /// When the present start began.
    dialing_since: Option<Duration>,
}

impl Member {
    fn open(&self) -> usize {
        self.slot.meter.open.load(Ordering::Relaxed)
    }

    /// Whether it may be given connections, as far as its role goes.
    fn serves(&self) -> bool {
        matches!(self.role, Role::Regular | Role::Relief)
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
    fn add(&mut self, slot: &Slot, role: Role) {
        self.bytes_sent += slot.meter.bytes_sent.load(Ordering::Relaxed);
        self.bytes_received += slot.meter.bytes_received.load(Ordering::Relaxed);
        self.connections += slot.meter.connections_total.load(Ordering::Relaxed);
        self.resumes += slot.resumes;
        if role == Role::Regular {
            self.restarts += slot.restarts;
        }
    }
}

/// All sessions of a tunnel. See the module's documentation.
pub(super) struct Sessions {
    shared: Arc<Shared>,
    stop: CancellationToken,
    reports: mpsc::UnboundedSender<(usize, Report)>,
    jitter: Jitter,
    proof: Proof,
    /// The tunnel has been proved with a request before.
    requested: Arc<AtomicBool>,
    members: BTreeMap<usize, Member>,
    next_number: usize,
    tasks: JoinSet<usize>,
    probers: JoinSet<()>,
    past: Totals,
    /// What starting a session cost the last time.
    start_time: Duration,
    /// When a relief may be tried again.
    relief_at: Duration,
    /// When a better target is tried again; `None`: there is none.
    failback_at: Option<Duration>,
    failbacks: u32,
}

impl Sessions {
    /// Starts the regular sessions.
    pub(super) fn start(
        shared: Arc<Shared>,
        seed: u64,
        reports: mpsc::UnboundedSender<(usize, Report)>,
        stop: CancellationToken,
    ) -> Self {
        let config = &shared.config;
        let proof = match config.readiness {
            Readiness::Established => Proof::Handshake,
            Readiness::Proved if config.probe_interval.is_zero() => Proof::FirstProbe,
            Readiness::Proved => Proof::Probes,
        };
        let regular = config.sessions.max(1);
        let mut sessions = Self {
            shared,
            stop,
            reports,
            jitter: Jitter::new(seed),
            proof,
            requested: Arc::new(AtomicBool::new(false)),
            members: BTreeMap::new(),
            next_number: 0,
            tasks: JoinSet::new(),
            probers: JoinSet::new(),
            past: Totals::default(),
            start_time: USUAL_START_TIME,
            relief_at: Duration::ZERO,
            failback_at: None,
            failbacks: 0,
        };
        let targets = sessions.shared.targets.len();
        for _ in 0..regular {
            sessions.open(Role::Regular, 0, targets);
        }
        sessions
    }

    /// Starts a session on one of the first `targets` targets, `first` to begin with.
    fn open(&mut self, role: Role, first: usize, targets: usize) {
        let number = self.next_number;
        self.next_number += 1;
        let config = &self.shared.config;
        let clock = self.shared.common.clock();
        let (commands, inbox) = mpsc::unbounded_channel();
        let reporter = Reporter::new(number, self.reports.clone());
        let meter = Arc::new(Meter::default());
        let link = watch::Sender::new(LinkState::Down);
        let suspicion = Arc::new(Notify::new());
        let stop = self.stop.child_token();
        let replaced = Arc::new(AtomicBool::new(role == Role::Regular));
        if self.proof != Proof::Handshake {
            match Probe::new(&self.shared.cluster) {
                Ok(probe) => {
                    let prober = Prober {
                        probe,
                        interval: config.probe_interval,
                        clock,
                        link: link.subscribe(),
                        commands: commands.clone(),
                        reports: reporter.clone(),
                        meter: Arc::clone(&meter),
                        requested: Arc::clone(&self.requested),
                        suspicion: Arc::clone(&suspicion),
                        jitter: Jitter::new(self.jitter.next_u64()),
                    };
                    self.probers.spawn(prober.run().in_current_span());
                }
                Err(error) => reporter.send(Report::Probed(Err(error))),
            }
        }
        let driver = Driver::new(clock, inbox, reporter.clone(), Arc::clone(&meter), link);
        let assignment = Assignment { first, targets, replaced: Arc::clone(&replaced) };
        let seed = self.jitter.next_u64();
        let task = SessionTask::new(Arc::clone(&self.shared), driver, reporter, seed, assignment, stop.clone());
        let run = async move {
            task.run().await;
            number
        };
        self.tasks.spawn(run.in_current_span());
        let slot = Slot::new(clock.now(), meter, self.proof);
        let member = Member { role, slot, commands, suspicion, stop, replaced, dialing_since: None };
        self.members.insert(number, member);
    }

    // Getters.

    /// Returns the tunnel's state: that of the best session in service, as new connections get that one.
    pub(super) fn state(&self) -> State {
        let in_service = self.members.values().filter(|member| member.role != Role::Candidate);
        State::of(in_service.map(|member| member.slot.state()))
    }

    /// Returns what to show of each session, regular ones first.
    pub(super) fn statuses(&self) -> Vec<SessionStatus> {
        let (regular, others): (Vec<_>, Vec<_>) =
            self.members.values().partition(|member| member.role == Role::Regular);
        regular.into_iter().chain(others).filter_map(|member| member.slot.status()).collect()
    }

    /// Returns the number of connections that have a session.
    pub(super) fn open_connections(&self) -> usize {
        self.members.values().map(Member::open).sum()
    }

    /// Returns what has been counted since the start.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = self.past;
        for member in self.members.values() {
            totals.add(&member.slot, member.role);
        }
        totals
    }

    /// Returns when [`review`](Self::review) or [`assign`](Self::assign) may come to something else, given since
    /// when the first of the held connections has waited.
    pub(super) fn deadline(&self, held_since: Option<Duration>) -> Option<Duration> {
        let settling = self.members.values().filter_map(|member| member.slot.settles_at());
        let patience = held_since.filter(|_| self.relief().is_some()).map(|since| since + RELIEF_PATIENCE);
        let failback = self.failback_at.filter(|_| self.candidate().is_none());
        settling.chain(patience).chain(failback).min()
    }

    fn relief(&self) -> Option<&Member> {
        self.members.values().find(|member| member.role == Role::Relief)
    }

    fn candidate(&self) -> Option<&Member> {
        self.members.values().find(|member| member.role == Role::Candidate)
    }

    // Input.

    /// Takes note of a report of the session with this number. Returns the error that it brought, if it says
    /// something about the tunnel.
    pub(super) fn apply(&mut self, number: usize, report: Report, now: Now) -> Option<Arc<Fault>> {
        let member = self.members.get_mut(&number)?;
        match &report {
            Report::Dialing { .. } => member.dialing_since = Some(now.mono),
            Report::Established { .. } => {
                if let Some(since) = member.dialing_since.take() {
                    self.start_time = now.mono.saturating_sub(since);
                }
            }
            Report::Refused | Report::Suspect => member.suspicion.notify_one(),
            Report::Slept => self.shared.common.hurry(),
            Report::Probed(Err(_)) if member.role == Role::Candidate => member.stop.cancel(),
            Report::Started(_)
            | Report::Alive
            | Report::Backlog(_)
            | Report::Lost(_)
            | Report::Resumed
            | Report::Ended { .. }
            | Report::Probed(_)
            | Report::Returned(_) => {}
        }
        let fault = member.slot.apply(report, now);
        let is_news = member.role != Role::Candidate;
        if let Some(fault) = fault.as_deref().filter(|_| !is_news) {
            debug!(error = super::fault::display_chain(fault), "a better target cannot be used yet");
        }
        fault.filter(|_| is_news)
    }

    /// Waits until a task has ended, and forgets it. Returns `None` when there is none.
    ///
    /// # Panics
    /// If the task did.
    ///
    /// # Cancel safety
    /// No end is lost.
    pub(super) async fn join_next(&mut self, now: impl Fn() -> Now) -> Option<()> {
        tokio::select! {
            biased;
            ended = self.tasks.join_next() => {
                let number = propagate(ended?);
                self.forget(number, now());
                Some(())
            }
            Some(ended) = self.probers.join_next() => {
                propagate(ended);
                Some(())
            }
        }
    }

    fn forget(&mut self, number: usize, now: Now) {
        let Some(member) = self.members.remove(&number) else { return };
        self.past.add(&member.slot, member.role);
        match member.role {
            Role::Candidate => {
                self.failbacks += 1;
                self.failback_at = Some(now.mono + policy::failback(self.failbacks, &mut self.jitter));
            }
            Role::Relief => self.relief_at = now.mono + RELIEF_PAUSE,
            Role::Regular | Role::Retiring => {}
        }
    }

    /// Sees to it that there are the sessions that there have to be. To be called after reports.
    pub(super) fn review(&mut self, now: Now) {
        if self.stop.is_cancelled() {
            return;
        }
        self.adopt();
        let start_time = self.start_time;
        let mut back = false;
        for member in self.members.values_mut() {
            member.slot.judge_backlog(start_time);
            let ready = member.slot.takes_connections(now.mono) && !member.slot.is_behind();
            back |= member.role == Role::Regular && ready;
        }
        for member in self.members.values_mut() {
            if member.role == Role::Relief && back {
                info!("a regular session has caught up: the relief takes no more connections");
                member.role = Role::Retiring;
            }
            if member.role == Role::Retiring && member.open() == 0 {
                member.stop.cancel();
            }
        }
        self.look_for_better_target(now);
    }

    /// Puts a candidate that has proved itself in the place of the session on the worst target.
    fn adopt(&mut self) {
        let proved = |member: &Member| member.role == Role::Candidate && member.slot.state() == State::Active;
        let Some((&number, candidate)) = self.members.iter().find(|(_, member)| proved(member)) else { return };
        let target = self.place(candidate);
        let worst = self.worst_regular().filter(|(_, place)| *place > target);
        if let Some((worst, _)) = worst {
            if let Some(old) = self.members.get_mut(&worst) {
                old.role = Role::Retiring;
                old.replaced.store(false, Ordering::Relaxed);
            }
            if let Some(candidate) = self.members.get_mut(&number) {
                candidate.role = Role::Regular;
                candidate.replaced.store(true, Ordering::Relaxed);
                info!(target = %self.shared.targets[target], "a better target is back: new connections go through it");
            }
            (self.failbacks, self.failback_at) = (0, None);
        } else if let Some(candidate) = self.members.get(&number) {
            // The regular session has got there by itself.
            candidate.stop.cancel();
        }
    }

    /// Returns the regular session on the target that comes last in the list, with that target's place.
    fn worst_regular(&self) -> Option<(usize, usize)> {
        let regular = self.members.iter().filter(|(_, member)| member.role == Role::Regular);
        regular.map(|(&number, member)| (number, self.place(member))).max_by_key(|(_, place)| *place)
    }

    /// Returns the place in the list of the target that a session is on.
    fn place(&self, member: &Member) -> usize {
        let target = member.slot.target();
        self.shared.targets.iter().position(|other| Some(other) == target).unwrap_or_default()
    }

    fn look_for_better_target(&mut self, now: Now) {
        let on_other = |member: &Member| {
            member.role == Role::Regular && member.slot.state() == State::Active && self.place(member) > 0
        };
        if !self.members.values().any(on_other) {
            if self.candidate().is_none() {
                (self.failbacks, self.failback_at) = (0, None);
            }
            return;
        }
        let at = match self.failback_at {
            Some(at) => at,
            None => {
                let at = now.mono + policy::failback(1, &mut self.jitter);
                *self.failback_at.insert(at)
            }
        };
        if at <= now.mono
            && self.candidate().is_none()
            && let Some((_, place)) = self.worst_regular()
        {
            debug!("trying whether a better target is back");
            self.open(Role::Candidate, 0, place);
        }
    }

    /// Chooses the session for a connection that has waited this long; `None`: it has to wait on.
    pub(super) fn assign(&mut self, now: Now, waited: Duration) -> Option<usize> {
        let ready = |(_, member): &(&usize, &Member)| member.serves() && member.slot.takes_connections(now.mono);
        let free = self.members.iter().filter(ready).filter(|(_, member)| !member.slot.is_behind());
        if let Some((&number, _)) = free.min_by_key(|(_, member)| member.open()) {
            return Some(number);
        }
        let behind = self.members.iter().filter(ready).min_by_key(|(_, member)| member.slot.backlog());
        let (number, first) = behind.map(|(&number, member)| (number, self.place(member)))?;
        if waited < RELIEF_PATIENCE && self.relieve(now, first) { None } else { Some(number) }
    }

    /// Sees to it that a relief is there or on its way. Returns whether it is.
    fn relieve(&mut self, now: Now, target: usize) -> bool {
        if self.relief().is_some() {
            return true;
        }
        let usable = |member: &&mut Member| {
            member.role == Role::Retiring
                && !member.stop.is_cancelled()
                && member.slot.takes_connections(now.mono)
                && !member.slot.is_behind()
        };
        if let Some(member) = self.members.values_mut().find(usable) {
            member.role = Role::Relief;
            return true;
        }
        if now.mono < self.relief_at {
            return false;
        }
        info!("lost messages hold up new connections: starting another session for them");
        self.open(Role::Relief, target, self.shared.targets.len());
        true
    }

    /// Gives a connection to a session. It comes back if the session's task has just ended.
    pub(super) fn give(&self, number: usize, held: Held) -> Result<(), Held> {
        let Some(member) = self.members.get(&number) else { return Err(held) };
        // The driver will count it, but the next of this burst is to see it.
        member.slot.meter.open.fetch_add(1, Ordering::Relaxed);
        member.commands.send(Command::Connect(held)).map_err(|error| match error.0 {
            Command::Connect(held) => held,
            Command::Abandon { .. } | Command::Wake => unreachable!("a connection was sent"),
        })
    }

    /// Wakes the sessions that were put off until a connection needs one.
    pub(super) fn wake(&self) {
        for member in self.members.values().filter(|member| member.slot.dormant) {
            debug!(state = %member.slot.state(), "a connection waits for a session");
            // A task that is gone is about to be joined.
            let _outcome = member.commands.send(Command::Wake);
        }
    }

    /// Ends the probers; the sessions' tasks have their own token.
    pub(super) async fn stop_probers(&mut self) {
        self.probers.shutdown().await;
    }
}

/// Returns what a task has returned, or goes on with its panic: the supervisor sees to it.
fn propagate<T>(ended: Result<T, JoinError>) -> T {
    match ended {
        Ok(output) => output,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
