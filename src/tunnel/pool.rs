//! The links of one tunnel: which there are, which takes the next connection, what follows when one ends.
//!
//! What carries a link may be slow, 0.6 to 0.8 MB/s, and whatever comes next queues behind that: with a bulk
//! transfer under way, a small request takes a quarter of a second more per round trip. So a tunnel may have several:
//!
//! * the **base** is always there, and is replaced when it ends;
//! * **extra** links, up to the configured number together with the base, while there is something to share;
//! * a **relief**, while every other link has lost so much that a new connection would wait longer for the
//!   repeats than for a link of its own;
//! * a **candidate**, on a route that comes before the present one in the list, to find out whether it is back, or on the
//!   present one when what the base leads through is about to go. Once proved it takes the place of the base, whose
//!   connections stay where they are until they end: then it is **retired**.
//!
//! A connection gets the link with the least [load](super::load). If it has rivals even there and there may be more
//! links, more are started, one for each connection that waits, and the connections wait for them, [`SHARE_PATIENCE`]
//! at most: a connection cannot move later, so the ones that come in a burst have to be spread before they begin. That is
//! the price of several links: about a second, once, for a connection that comes while others carry data and extra
//! links are not there yet. Connections that come one after the other, or beside idle watches, never wait and start
//! nothing. An extra link without connections is kept for [`SHARE_IDLE`], so a loop of commands starts none anew.
//!
//! That is what it takes to spread a burst ([`Sharing::ForConnections`](super::Sharing)). Without being asked for that, a tunnel
//! starts its one extra link when it has been [busy](super::load) for a while, before anybody waits, and keeps it for as long.
//!
//! Extra links are probed as all are, which also keeps those that carry idle watches from being ended by the service.
//! What becomes of them is no matter for the tunnel: one that cannot be had is tried again with a growing pause, while
//! connections take what there is; one that is lost is resumed for its connections' sake, and closed if it has none.
//!
//! A tunnel [on demand](Presence::OnDemand) **rests** when no connection has come for a while: all of its links end, and its
//! base is a place without one until a connection waits.
//!
//! Invariants: a link that may take connections is never stopped while it has some; what is not the base is not
//! replaced when it ends; base and extra links are never more than the configured number; there is one relief and one
//! candidate at most.

mod assign;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, warn};

use super::{
    LinkStatus, Presence, Readiness, Shared, State,
    member::{Link, Member, Role, Totals},
    probe::Probe,
    prober::Prober,
    recovery::{self, History, Step},
    slot::{Proof, Slot, Wrong},
};
use crate::{
    route::{Budget, Class, End, Fault, Held, LinkState, Mailbox, Meter, Report, Reporter, Share, Terms},
    util::{backoff::Jitter, peer_text::sentence, time::Now},
};

/// How long a connection waits for a relief before it takes its place behind the repeats.
const RELIEF_PATIENCE: Duration = Duration::from_secs(10);

/// How long no relief is tried after one that could not be had.
const RELIEF_PAUSE: Duration = Duration::from_secs(30);

/// How long a connection waits for an extra link before it takes the least loaded one, and for how long an extra
/// link is waited for. Starting one takes about a second; waiting for longer than two costs more than a busy link.
const SHARE_PATIENCE: Duration = Duration::from_secs(2);

/// How long an extra link is kept without connections: a while for whoever types commands or runs them in a loop.
const SHARE_IDLE: Duration = Duration::from_secs(60);

/// What starting a link is taken to cost before one has been measured.
const USUAL_START_TIME: Duration = Duration::from_secs(1);

/// Links besides the configured number that may be there: a relief, a candidate, and one that is retiring.
const OTHER_LINKS: usize = 3;

/// How long a link has to live to count as one that was of use, if nothing has come through it.
const IDLE_PROOF: Duration = Duration::from_secs(60);

/// How long a link that has carried data has to live to count as one that was of use.
const USE_PROOF: Duration = Duration::from_secs(10);

/// A link ended without saying why.
#[derive(Debug, thiserror::Error)]
#[error("the link ended without a word")]
struct Silent;

/// All links of a tunnel. See the module's documentation.
pub(super) struct Pool {
    shared: Arc<Shared>,
    stop: CancellationToken,
    reports: mpsc::UnboundedSender<(u64, Report)>,
    jitter: Jitter,
    proof: Proof,
    /// The tunnel has been proved with a request before.
    requested: Arc<AtomicBool>,
    members: BTreeMap<usize, Member>,
    next_member: usize,
    next_link: u64,
    tasks: JoinSet<u64>,
    probers: JoinSet<()>,
    past: Totals,
    budget: Arc<Budget>,
    /// What starting a link cost the last time.
    start_time: Duration,
    /// When a relief may be tried again.
    relief_at: Duration,
    /// When a better route is tried again; `None`: there is none.
    failback_at: Option<Duration>,
    failbacks: u32,
    /// When an extra link may be tried again.
    share_at: Duration,
    /// Extra links in a row that never worked.
    share_failures: u32,
    /// When a connection was last seen, waiting or open.
    used_at: Duration,
    /// Whether the base had worked when it was last looked at.
    was_up: bool,
}

impl Pool {
    /// Starts the base, or lets it rest to begin with.
    pub(super) fn start(
        shared: Arc<Shared>,
        seed: u64,
        reports: mpsc::UnboundedSender<(u64, Report)>,
        stop: CancellationToken,
    ) -> Self {
        let config = &shared.config;
        let proof = match config.readiness {
            Readiness::Established => Proof::Established,
            Readiness::Reached => Proof::FirstProbe,
            Readiness::Proved if config.probe_interval.is_zero() => Proof::FirstProbe,
            Readiness::Proved => Proof::Probes,
        };
        let budget = Budget::new(config.receive_budget, config.links + OTHER_LINKS);
        let mut pool = Self {
            shared,
            stop,
            reports,
            jitter: Jitter::new(seed),
            proof,
            requested: Arc::new(AtomicBool::new(false)),
            members: BTreeMap::new(),
            next_member: 0,
            next_link: 0,
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
            used_at: Duration::ZERO,
            was_up: false,
        };
        let now = pool.shared.common.clock().now();
        pool.used_at = now.mono;
        match pool.shared.config.presence {
            Presence::OnDemand { proved: false, .. } => pool.open_resting(now),
            Presence::OnDemand { proved: true, .. } | Presence::Always => {
                pool.open(Role::Base, 0, pool.shared.routes.len());
            }
        }
        pool
    }

    /// Makes a place, with a link on one of the first `routes` routes, `first` to begin with.
    fn open(&mut self, role: Role, first: usize, routes: usize) {
        let slot = Slot::new(self.shared.common.clock().now(), self.proof);
        let place = self.add(role, slot, first, routes);
        self.link(place, first, Duration::ZERO);
    }

    /// Makes a base that has no link until a connection waits.
    fn open_resting(&mut self, now: Now) {
        let mut slot = Slot::new(now, self.proof);
        slot.rest(now);
        self.add(Role::Base, slot, 0, self.shared.routes.len());
    }

    fn add(&mut self, role: Role, slot: Slot, first: usize, routes: usize) -> usize {
        let place = self.next_member;
        self.next_member += 1;
        let now = self.shared.common.clock().now().mono;
        self.members.insert(place, Member::new(role, slot, first, routes, self.stop.child_token(), now));
        place
    }

    /// Starts a link for a place, after a pause.
    fn link(&mut self, place: usize, route: usize, after: Duration) {
        let Some(member) = self.members.get_mut(&place) else { return };
        let number = self.next_link;
        self.next_link += 1;
        member.route = route;
        member.slot.dormant = false;
        let (commands, inbox) = mpsc::unbounded_channel();
        let reports = Reporter::new(number, self.reports.clone());
        let meter = Arc::new(Meter::default());
        let state = watch::Sender::new(LinkState::Down);
        let suspicion = Arc::new(Notify::new());
        member.link = Some(Link {
            number,
            commands: commands.clone(),
            meter: Arc::clone(&meter),
            suspicion: Arc::clone(&suspicion),
            given: 0,
            starting_since: None,
            started_at: None,
        });
        let (common, config) = (Arc::clone(&self.shared.common), &self.shared.config);
        let routes = if member.is_replaced() { self.shared.routes.len() } else { member.routes };
        let terms = Terms {
            clock: common.clock(),
            seed: self.jitter.next_u64(),
            up_within: recovery::up_within(config.up_within, member.starts, routes),
            grace: config.grace,
            is_unprobed: self.shared.to.cluster().is_none(),
            keeps_warm: config.keeps_warm(),
        };
        if self.proof != Proof::Established {
            match self.shared.to.cluster().map(Probe::new).transpose() {
                Ok(probe) => {
                    let prober = Prober {
                        probe,
                        // A host is asked no more often than it has to be.
                        interval: self.shared.to.cluster().map_or(Duration::ZERO, |_| config.probe_interval),
                        clock: common.clock(),
                        link: state.subscribe(),
                        commands,
                        reports: reports.clone(),
                        meter: Arc::clone(&meter),
                        requested: Arc::clone(&self.requested),
                        suspicion,
                        jitter: Jitter::new(self.jitter.next_u64()),
                        route: Arc::clone(&self.shared.routes[route]),
                        to: Arc::clone(&self.shared.to),
                    };
                    self.probers.spawn(prober.run().in_current_span());
                }
                Err(error) => reports.send(Report::Probed(Err(error))),
            }
        }
        let mut mailbox = Mailbox {
            commands: inbox,
            reports: reports.clone(),
            meter,
            state,
            share: Share::new(Arc::clone(&self.budget)),
            stop: member.stop.clone(),
            retry_now: common.pauses(),
            terms,
            permit: None,
        };
        let (route, to) = (Arc::clone(&self.shared.routes[route]), Arc::clone(&self.shared.to));
        let task = async move {
            let stop = mailbox.stop.clone();
            let leave = async {
                mailbox.retry_now.pause(after).await;
                common.start_permit().await
            };
            if let Some(permit) = stop.run_until_cancelled(leave).await {
                mailbox.permit = Some(permit);
                reports.send(Report::Connecting);
                route.run(to, mailbox).await;
            }
            number
        };
        self.tasks.spawn(task.in_current_span());
    }

    // Getters.

    /// Returns the tunnel's state: that of the best link in service, as new connections get that one.
    pub(super) fn state(&self) -> State {
        let in_service = self.members.values().filter(|member| member.speaks_for_tunnel());
        State::of(in_service.map(|member| member.slot.state()))
    }

    /// Returns what to show of each link, the base first.
    pub(super) fn statuses(&self) -> Vec<LinkStatus> {
        let (base, others): (Vec<_>, Vec<_>) = self.members.values().partition(|member| member.role == Role::Base);
        base.into_iter().chain(others).filter_map(Member::status).collect()
    }

    /// Returns the number of connections that have a link.
    pub(super) fn open_connections(&self) -> usize {
        self.members.values().map(Member::open).sum()
    }

    /// Returns what has been counted since the start.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = self.past;
        for member in self.members.values() {
            totals += member.totals();
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
        let deadlines =
            settling.chain(relieved).chain(given_up).chain(shared).chain(idle).chain(failback).chain(self.rests_at());
        deadlines.filter(|at| *at > now).min()
    }

    /// Returns when the links end unless a connection comes; `None`: they do not. What has never worked goes on until it
    /// does, as nobody would learn that it cannot be had.
    fn rests_at(&self) -> Option<Duration> {
        let Presence::OnDemand { idle, .. } = self.shared.config.presence else { return None };
        let (_, base) = self.base()?;
        (base.slot.was_active() && base.slot.state() != State::Idle).then(|| self.used_at + idle)
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

    /// Takes note of a report of the link with this number. Returns the fault that it brought, if it says
    /// something about the tunnel.
    pub(super) fn apply(&mut self, number: u64, report: Report, now: Now) -> Option<Arc<Fault>> {
        let (&place, member) = self.members.iter_mut().find(|(_, member)| member.has(number))?;
        // One that is over has nothing more to say.
        let link = member.link.as_mut().filter(|link| link.number == number)?;
        match report {
            Report::Connecting => {
                link.starting_since = Some(now.mono);
                member.slot.connect(&*self.shared.routes[member.route], now);
                return None;
            }
            Report::Started { .. } => {
                link.started_at = Some(now.mono);
                self.shared.common.note_started(&self.shared.routes[member.route].label());
            }
            Report::Established { .. } => {
                if let Some(since) = link.starting_since.take() {
                    self.start_time = now.mono.saturating_sub(since);
                }
            }
            Report::Leaving if member.role == Role::Base => {
                (self.failbacks, self.failback_at) = (0, Some(now.mono));
            }
            Report::Refused | Report::Suspect => link.suspicion.notify_one(),
            Report::Slept => self.shared.common.retry_now(),
            Report::Probed(Err(_)) if member.role == Role::Candidate => member.stop.cancel(),
            Report::Ended(end) => return self.end(place, end, now),
            Report::Alive
            | Report::Backlog(_)
            | Report::Leaving
            | Report::Lost(_)
            | Report::Resumed
            | Report::Probed(_)
            | Report::Progress(_)
            | Report::Asked(_)
            | Report::Caution(_)
            | Report::Notice(_)
            | Report::Returned(_) => {}
        }
        let (in_use, is_coming) = (member.open() > 0, member.is_coming());
        let fault = match member.slot.apply(report, in_use, now)? {
            Wrong::Fault(fault) => fault,
            Wrong::Probe(error) => Arc::new(error.into_fault(&*self.shared.routes[member.route], &self.shared.to)),
        };
        self.news_of(place, is_coming, fault)
    }

    /// Says what went wrong with a link that nobody misses; of any other, returns it.
    fn news_of(&self, place: usize, is_coming: bool, fault: Arc<Fault>) -> Option<Arc<Fault>> {
        let member = self.members.get(&place)?;
        let error = sentence(&*fault);
        match member.role {
            Role::Candidate => debug!(error, "a better route cannot be used yet"),
            Role::Extra if is_coming && self.share_failures == 0 => {
                warn!(error, "cannot start another link: connections share those that there are");
            }
            Role::Extra if is_coming => debug!(error, "cannot start another link yet"),
            Role::Base | Role::Extra | Role::Relief | Role::Retiring => return Some(fault),
        }
        None
    }

    /// Decides what follows the end of a link.
    fn end(&mut self, place: usize, end: End, now: Now) -> Option<Arc<Fault>> {
        let End { fault, served, open } = end;
        let member = self.members.get_mut(&place)?;
        let was_coming = member.is_coming();
        let link = member.unlink()?;
        let lived = link.started_at.map(|at| now.mono.saturating_sub(at));
        let is_useful = lived.is_some_and(|lived| lived >= if served { USE_PROOF } else { IDLE_PROOF });
        if is_useful {
            member.useful_at = Some(now.mono);
        }
        let is_replaced = member.is_replaced();
        let history = History {
            starts: if is_useful { 0 } else { member.starts + 1 },
            useful_before: member.useful_at.map(|at| now.mono.saturating_sub(at)),
            route: member.route,
            routes: if is_replaced { self.shared.routes.len() } else { member.routes },
            idle: !self.shared.config.keeps_warm() && open == 0,
        };
        let step = recovery::decide(fault.class, &history, &mut self.jitter);
        let turns_to_next = matches!(step, Step::Restart { route, .. } if route > member.route);
        let goes_on = (is_replaced || turns_to_next) && !member.stop.is_cancelled();
        let is_of_route = lived.is_none() && fault.class.is_of_route();
        let label = self.shared.routes[member.route].label();
        let is_news = is_of_route && self.shared.common.note_trouble(&label, fault.class);
        let error = sentence(&*fault);
        match step {
            _ if is_news && turns_to_next => warn!(error, "no link on this route, turning to the next"),
            _ if !goes_on => debug!(error, "no link, and no other is started in its place"),
            // What stays as it was is no news.
            Step::SlowRetry { after, .. } if member.needs_human => debug!(error, ?after, "no link yet"),
            Step::SlowRetry { after, .. } => warn!(error, ?after, "no link, trying again slowly"),
            Step::OnDemand { .. } => info!(error, "link over, another will be started when it is needed"),
            Step::Restart { after, .. } if history.starts > 1 => debug!(error, ?after, "no link yet"),
            Step::Restart { after, .. } => info!(error, ?after, "no link, starting another"),
        }
        member.needs_human = matches!(step, Step::SlowRetry { .. }) || (member.needs_human && history.starts > 1);
        member.starts = history.starts;
        member.slot.end(step, goes_on, now);
        if goes_on {
            match step {
                Step::OnDemand { route } => member.route = route,
                Step::Restart { after, route } | Step::SlowRetry { after, route } => self.link(place, route, after),
            }
        }
        self.news_of(place, was_coming, fault)
    }

    /// Waits until a task has ended, and forgets it. Returns `None` when there is none.
    ///
    /// # Panics
    /// If the task did.
    ///
    /// # Cancel safety
    /// No end is lost.
    pub(super) async fn join_next(&mut self) -> Option<u64> {
        loop {
            tokio::select! {
                biased;
                ended = self.tasks.join_next() => return ended.map(propagate),
                Some(ended) = self.probers.join_next() => propagate(ended),
            }
        }
    }

    /// Takes note that nothing is left of the link with this number, after its last report.
    pub(super) fn forget(&mut self, number: u64, now: Now) {
        let Some((&place, member)) = self.members.iter_mut().find(|(_, member)| member.has(number)) else { return };
        let is_present = member.link.as_ref().is_some_and(|link| link.number == number);
        if is_present && !member.stop.is_cancelled() {
            let fault = Arc::new(Fault::new(Class::Bug, Silent));
            self.end(place, End { fault, served: false, open: 0 }, now);
        }
        if let Some(member) = self.members.get_mut(&place) {
            member.forget(number);
        }
        self.remove_gone(place, now);
    }

    /// Forgets a place of which nothing is left.
    fn remove_gone(&mut self, place: usize, now: Now) {
        if !self.members.get(&place).is_some_and(Member::is_gone) {
            return;
        }
        let Some(member) = self.members.remove(&place) else { return };
        self.past += member.totals();
        match member.role {
            Role::Candidate => {
                self.failbacks += 1;
                let is_urgent = self.base().is_some_and(|(_, base)| base.slot.is_leaving());
                let pause = recovery::failback(self.failbacks, is_urgent, &mut self.jitter);
                self.failback_at = Some(now.mono + pause);
            }
            Role::Relief => self.relief_at = now.mono + RELIEF_PAUSE,
            // Several that fail together are one failure.
            Role::Extra if now.mono >= self.share_at => {
                self.share_failures = if member.slot.was_active() { 1 } else { self.share_failures + 1 };
                self.share_at = now.mono + recovery::share(self.share_failures, &mut self.jitter);
            }
            Role::Base | Role::Extra | Role::Retiring => {}
        }
    }

    /// Gives a connection to the link of a place. It comes back if that has just ended.
    pub(super) fn give(&mut self, place: usize, held: Held, now: Now) -> Result<(), Held> {
        match self.members.get_mut(&place) {
            Some(member) => member.give(held, now.mono),
            None => Err(held),
        }
    }

    /// Starts the links that were put off until a connection needs one.
    pub(super) fn wake(&mut self) {
        let dormant = |member: &Member| member.slot.dormant && !member.stop.is_cancelled();
        let dormant: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| dormant(member))
            .map(|(&place, member)| (place, member.route))
            .collect();
        for (place, route) in dormant {
            debug!("a connection waits for a link");
            self.link(place, route, Duration::ZERO);
        }
    }

    /// Ends the probers; the links have their own token.
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
