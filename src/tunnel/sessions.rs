//! The sessions of one tunnel: which there are, which takes the next connection, which has to go.
//!
//! An agent sends 0.6 to 0.8 MB/s through one session, and whatever comes next queues behind that: with a bulk
//! transfer under way, a small request takes a quarter of a second more per round trip. So a tunnel may have several:
//!
//! * the **base** is always there, and is replaced when it ends;
//! * **extra** sessions, up to the configured number together with the base, while there is something to share;
//! * a **relief**, while every other session has lost so much that a new connection would wait longer for the
//!   agent's repeats than for a session of its own;
//! * a **candidate**, on a target that comes before the present one in the list, to find out whether it is back.
//!   Once proved it takes the place of the base, whose connections stay where they are until they end: then it is
//!   **retired**.
//!
//! A connection gets the session with the least [load](super::load). If it has rivals even there and there may be more
//! sessions, more are started, one for each connection that waits, and the connections wait for them, [`SHARE_PATIENCE`]
//! at most: a connection cannot move later, so the ones that come in a burst have to be spread before they begin. That is
//! the price of several sessions: about a second, once, for a connection that comes while others carry data and extra
//! sessions are not there yet. Connections that come one after the other, or beside idle watches, never wait and start
//! nothing. An extra session without connections is kept for [`SHARE_IDLE`], so a loop of commands starts none anew.
//!
//! Extra sessions are probed as all are, which also keeps those that carry idle watches from being ended by the service.
//! What becomes of them is no matter for the tunnel: one that cannot be had is tried again with a growing pause, while
//! connections take what there is; one that is lost is resumed for its connections' sake, and closed if it has none.
//!
//! Invariants: a session that may take connections is never stopped while it has some; what is not the base is not
//! replaced when it ends; base and extra sessions are never more than the configured number; there is one relief and one
//! candidate at most.

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
use tracing::{Instrument, debug, info, warn};

use super::{
    Fault, Readiness, SessionStatus, State,
    budget::{Budget, Share},
    driver::{Command, Driver},
    held::Held,
    load::Load,
    member::{Member, Role, Totals},
    meter::{LinkState, Meter},
    policy::{self, Jitter},
    probe::Probe,
    prober::Prober,
    report::{Proof, Report, Reporter, Slot},
    session::{Assignment, SessionTask, Shared},
};
use crate::route::ssm::proto::Now;

/// How long a connection waits for a relief before it takes its place behind the repeats.
const RELIEF_PATIENCE: Duration = Duration::from_secs(10);

/// How long no relief is tried after one that could not be had.
const RELIEF_PAUSE: Duration = Duration::from_secs(30);

/// How long a connection waits for an extra session before it takes the least loaded one, and for how long an extra
/// session is waited for. Starting one takes about a second; waiting for longer than two costs more than a busy session.
const SHARE_PATIENCE: Duration = Duration::from_secs(2);

/// How long an extra session is kept without connections: a while for whoever types commands or runs them in a loop.
const SHARE_IDLE: Duration = Duration::from_secs(60);

/// What starting a session is taken to cost before one has been measured.
const USUAL_START_TIME: Duration = Duration::from_secs(1);

/// Sessions besides the configured number that may be there: a relief, a candidate, and one that is retiring.
const OTHER_SESSIONS: usize = 3;

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
    budget: Arc<Budget>,
    /// What starting a session cost the last time.
    start_time: Duration,
    /// When a relief may be tried again.
    relief_at: Duration,
    /// When a better target is tried again; `None`: there is none.
    failback_at: Option<Duration>,
    failbacks: u32,
    /// When an extra session may be tried again.
    share_at: Duration,
    /// Extra sessions in a row that never worked.
    share_failures: u32,
}

impl Sessions {
    /// Starts the base.
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
        let budget = Budget::new(config.receive_budget, config.sessions + OTHER_SESSIONS);
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
            budget,
            start_time: USUAL_START_TIME,
            relief_at: Duration::ZERO,
            failback_at: None,
            failbacks: 0,
            share_at: Duration::ZERO,
            share_failures: 0,
        };
        let targets = sessions.shared.targets.len();
        sessions.open(Role::Base, 0, targets);
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
        let replaced = Arc::new(AtomicBool::new(role == Role::Base));
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
        let share = Share::new(Arc::clone(&self.budget));
        let driver = Driver::new(clock, inbox, reporter.clone(), Arc::clone(&meter), link, share);
        let assignment = Assignment { first, targets, replaced: Arc::clone(&replaced) };
        let seed = self.jitter.next_u64();
        let task = SessionTask::new(Arc::clone(&self.shared), driver, reporter, seed, assignment, stop.clone());
        let run = async move {
            task.run().await;
            number
        };
        self.tasks.spawn(run.in_current_span());
        let now = clock.now();
        let member = Member {
            role,
            slot: Slot::new(now, meter, self.proof),
            load: Load::default(),
            commands,
            suspicion,
            stop,
            replaced,
            opened_at: now.mono,
            dialing_since: None,
            used_at: now.mono,
        };
        self.members.insert(number, member);
    }

    // Getters.

    /// Returns the tunnel's state: that of the best session in service, as new connections get that one.
    pub(super) fn state(&self) -> State {
        let in_service = self.members.values().filter(|member| member.speaks_for_tunnel());
        State::of(in_service.map(|member| member.slot.state()))
    }

    /// Returns what to show of each session, the base first.
    pub(super) fn statuses(&self) -> Vec<SessionStatus> {
        let (base, others): (Vec<_>, Vec<_>) = self.members.values().partition(|member| member.role == Role::Base);
        base.into_iter().chain(others).filter_map(|member| member.slot.status()).collect()
    }

    /// Returns the number of connections that have a session.
    pub(super) fn open_connections(&self) -> usize {
        self.members.values().map(Member::open).sum()
    }

    /// Returns what has been counted since the start.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = self.past;
        for member in self.members.values() {
            totals.add(member);
        }
        totals
    }

    /// Returns when, later than now, [`review`](Self::review) or [`assign`](Self::assign) may come to something else,
    /// given since when the first of the held connections has waited.
    pub(super) fn deadline(&self, now: Duration, held_since: Option<Duration>) -> Option<Duration> {
        let settling = self.members.values().filter_map(|member| member.slot.settles_at());
        let relieved = held_since.filter(|_| self.relief().is_some()).map(|since| since + RELIEF_PATIENCE);
        let coming = self.members.values().filter(|member| held_since.is_some() && member.is_coming());
        let given_up = coming.map(|member| member.opened_at + SHARE_PATIENCE);
        let shared = held_since.map(|since| since + SHARE_PATIENCE);
        let idle = self.members.values().filter(|member| member.role == Role::Extra);
        let idle = idle.map(|member| member.used_at + SHARE_IDLE);
        let failback = self.failback_at.filter(|_| self.candidate().is_none());
        let deadlines = settling.chain(relieved).chain(given_up).chain(shared).chain(idle).chain(failback);
        deadlines.filter(|at| *at > now).min()
    }

    fn base(&self) -> Option<(usize, &Member)> {
        self.members.iter().find(|(_, member)| member.role == Role::Base).map(|(&number, member)| (number, member))
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
        // What cannot be had and is not missed is no news.
        let (role, is_coming) = (member.role, member.is_coming());
        let fault = member.slot.apply(report, now)?;
        let error = super::fault::display_chain(&*fault);
        match role {
            Role::Candidate => debug!(error, "a better target cannot be used yet"),
            Role::Extra if is_coming && self.share_failures == 0 => {
                warn!(error, "cannot start another session: connections share those that there are");
            }
            Role::Extra if is_coming => debug!(error, "cannot start another session yet"),
            Role::Base | Role::Extra | Role::Relief | Role::Retiring => return Some(fault),
        }
        None
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
        self.past.add(&member);
        match member.role {
            Role::Candidate => {
                self.failbacks += 1;
                self.failback_at = Some(now.mono + policy::failback(self.failbacks, &mut self.jitter));
            }
            Role::Relief => self.relief_at = now.mono + RELIEF_PAUSE,
            // Several that fail together are one failure.
            Role::Extra if now.mono >= self.share_at => {
                self.share_failures = if member.slot.was_active() { 1 } else { self.share_failures + 1 };
                self.share_at = now.mono + policy::share(self.share_failures, &mut self.jitter);
            }
            Role::Base | Role::Extra | Role::Retiring => {}
        }
    }

    /// Sees to it that there are the sessions that there have to be. To be called after reports.
    pub(super) fn review(&mut self, now: Now) {
        if self.stop.is_cancelled() {
            return;
        }
        self.adopt();
        let start_time = self.start_time;
        let (mut is_ready, mut is_level) = (false, false);
        for member in self.members.values_mut() {
            member.observe(now.mono);
            member.slot.judge_backlog(start_time);
            if member.role == Role::Base {
                is_ready = member.slot.takes_connections(now.mono);
                is_level = is_ready && !member.slot.is_behind();
            }
        }
        for member in self.members.values_mut() {
            match member.role {
                Role::Relief if is_level => {
                    info!("the base session has caught up: the relief takes no more connections");
                    member.retire();
                }
                Role::Extra if member.open() == 0 && member.slot.is_lost() => {
                    debug!("an extra session is lost, and has no connections: closing it");
                    member.retire();
                }
                Role::Extra if is_ready && now.mono >= member.used_at + SHARE_IDLE => {
                    info!("an extra session has had no connections for a while: closing it");
                    self.share_failures = 0;
                    member.retire();
                }
                Role::Base | Role::Extra | Role::Relief | Role::Candidate | Role::Retiring => {}
            }
            if member.role == Role::Retiring && member.open() == 0 {
                member.stop.cancel();
            }
        }
        self.look_for_better_target(now);
    }

    /// Puts a candidate that has proved itself in the place of the base, and of extra sessions on worse targets.
    fn adopt(&mut self) {
        let proved = |member: &Member| member.role == Role::Candidate && member.slot.state() == State::Active;
        let Some((&number, candidate)) = self.members.iter().find(|(_, member)| proved(member)) else { return };
        let better = self.place(candidate);
        if self.base().is_none_or(|(_, base)| self.place(base) <= better) {
            // The base has got there by itself.
            candidate.stop.cancel();
            return;
        }
        let worse = |member: &Member| member.is_counted() && self.place(member) > better;
        let worse: Vec<_> =
            self.members.iter().filter(|(_, member)| worse(member)).map(|(&number, _)| number).collect();
        for number in worse {
            if let Some(old) = self.members.get_mut(&number) {
                self.past.restarts += if old.role == Role::Base { old.slot.restarts } else { 0 };
                old.retire();
            }
        }
        if let Some(candidate) = self.members.get_mut(&number) {
            candidate.role = Role::Base;
            candidate.replaced.store(true, Ordering::Relaxed);
            info!(target = %self.shared.targets[better], "a better target is back: new connections go through it");
        }
        (self.failbacks, self.failback_at) = (0, None);
    }

    /// Returns the place in the list of the target that a session is on.
    fn place(&self, member: &Member) -> usize {
        let target = member.slot.target();
        self.shared.targets.iter().position(|other| Some(other) == target).unwrap_or_default()
    }

    fn look_for_better_target(&mut self, now: Now) {
        let active = self.base().filter(|(_, base)| base.slot.state() == State::Active);
        let place = active.map_or(0, |(_, base)| self.place(base));
        if place == 0 {
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
        if at <= now.mono && self.candidate().is_none() {
            debug!("trying whether a better target is back");
            self.open(Role::Candidate, 0, place);
        }
    }

    /// Chooses the session for the first of so many connections that wait, which has done so for this long; `None`: it
    /// has to wait on.
    pub(super) fn assign(&mut self, now: Now, waiting: usize, waited: Duration) -> Option<usize> {
        let ready = |(_, member): &(&usize, &Member)| member.serves() && member.slot.takes_connections(now.mono);
        let free = self.members.iter().filter(ready).filter(|(_, member)| !member.slot.is_behind());
        let free = free.map(|(&number, member)| (member.load.rank(now.mono), number, self.place(member)));
        if let Some((rank, number, place)) = free.min() {
            if rank.open > 0 && waited < SHARE_PATIENCE {
                if rank.rivals > 0 {
                    self.share(now, place, waiting);
                }
                // Who has begun to wait does so until they are there, or the burst would end up on the first one.
                let comes = |member: &Member| member.is_coming() && now.mono < member.opened_at + SHARE_PATIENCE;
                if self.members.values().any(comes) {
                    return None;
                }
            }
            return Some(number);
        }
        let behind = self.members.iter().filter(ready).min_by_key(|(_, member)| member.slot.backlog());
        let (number, first) = behind.map(|(&number, member)| (number, self.place(member)))?;
        if waited < RELIEF_PATIENCE && self.relieve(now, first) { None } else { Some(number) }
    }

    /// Starts extra sessions for the connections that wait, as far as there may be more.
    fn share(&mut self, now: Now, target: usize, waiting: usize) {
        if now.mono < self.share_at {
            return;
        }
        let counted = self.members.values().filter(|member| member.is_counted()).count();
        let coming = self.members.values().filter(|member| member.is_coming()).count();
        let room = self.shared.config.sessions.saturating_sub(counted);
        for _ in 0..waiting.saturating_sub(coming).min(room) {
            info!("every session is in use: starting another");
            self.open(Role::Extra, target, self.shared.targets.len());
        }
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
    pub(super) fn give(&mut self, number: usize, held: Held, now: Now) -> Result<(), Held> {
        let Some(member) = self.members.get_mut(&number) else { return Err(held) };
        // The driver will count it, but the next of this burst is to see it.
        member.slot.meter.open.fetch_add(1, Ordering::Relaxed);
        member.load.given(now.mono);
        member.used_at = now.mono;
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
