//! Finds targets, and chooses among them: for bastions that are replaced now and then.
//!
//! A [`Finder`] stands for what a user has asked for, such as a service of ECS. It looks through a [`Look`], remembers the
//! answer, and gives out [`Seat`]s: leave to start one session on one target. Whoever has a seat can wait for the target's
//! [`Fate`], so that connections move before it goes.
//!
//! Invariants:
//!
//! * Nobody looks while another does: whoever comes meanwhile gets the same answer.
//! * An answer is good for [`GOOD_FOR`], unless what it names has failed or is full; then it is looked again, every
//!   [`AGAIN`] at most, and every [`SLOWLY`] once nothing has worked for [`HOPE`].
//! * A capped target is never given more sessions than it has taken before, but for one at a time that tries whether it takes
//!   one more; one that was dropped in silence is the last for [`LIMIT_HOLDS`].
//!
//! Leaves out how to look: `ecs` and `nodes` know.

pub(super) mod ecs;
pub(super) mod fargate;
pub(super) mod nodes;
mod seat;
mod walk;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{sync::Notify, time::timeout};
use tracing::debug;

pub(super) use self::seat::Seat;
pub use self::walk::{Crowd, Walk};
use super::open_sessions::OpenSessions;
use crate::{
    aws::AwsError,
    bastion::Target,
    clock::Clock,
    fault::{Class, Fault},
    remote::Remote,
    route::{
        Caution, Report,
        step::{StepName, Told},
    },
    util::peer_text::sentence,
};

/// How long an answer is good for that names what works.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// Least time between two looks while somebody waits for what is not there.
const AGAIN: Duration = Duration::from_secs(2);

/// The same, once nothing has worked for [`HOPE`]: nobody replaces it, as at night.
const SLOWLY: Duration = Duration::from_secs(15);

/// How long something that worked is expected to be replaced soon. An Auto Scaling group takes minutes.
const HOPE: Duration = Duration::from_secs(600);

/// How long a target is passed over that did not take a session.
const SPOILED_FOR: Duration = Duration::from_secs(30);

/// Sessions that a capped target is known to take: what the agent of ECS allows when nobody tells it how many
/// (`Mgs.SessionWorkersLimit` in amazon-ecs-agent, `agent/engine/execcmd/manager_init_task.go`).
const FIRST_CAP: usize = 2;

/// How long a target that has dropped a session in silence is taken to be full at that number.
const LIMIT_HOLDS: Duration = Duration::from_secs(600);

/// How long a session waits for others to come up, which shows whether their target takes one more: as long as those have.
const UNPROVEN_LIMIT: Duration = Duration::from_secs(16);

/// Time between two looks at targets that sessions run on.
const WATCH: Duration = Duration::from_secs(10);

/// How to look for targets.
pub(super) trait Look: fmt::Debug + Send + Sync {
    /// Looks for targets that lead to a cluster. `in_use` are those that sessions run on: what has become of them is part of
    /// the answer.
    /// An error says that it could not be looked.
    fn look<'a>(&'a self, to: &'a Remote, in_use: &'a [Target]) -> BoxFuture<'a, Result<Sight, Fault>>;

    /// Looks, and sees to it that there will be as many targets as this, where what is missing can be made.
    fn make<'a>(
        &'a self,
        to: &'a Remote,
        in_use: &'a [Target],
        _at_least: usize,
    ) -> BoxFuture<'a, Result<Sight, Fault>> {
        self.look(to, in_use)
    }

    /// Whether what is missing can be made.
    fn can_make(&self) -> bool {
        false
    }

    /// Whether the targets take a few sessions only.
    fn finds_capped(&self) -> bool {
        false
    }

    /// Whether nothing is found any more.
    fn is_over(&self) -> bool {
        false
    }

    /// Returns what an answer depends on besides the bastion that was asked for: clusters with the same share it.
    fn place(&self, _to: &Remote) -> String {
        String::new()
    }

    /// Time between two looks at targets that sessions run on.
    fn watch(&self) -> Duration {
        WATCH
    }

    /// Returns the steps of a look, with what each tries.
    fn plan(&self) -> Vec<(StepName, String)> {
        vec![(StepName::KNOWN, "to find it".to_owned())]
    }

    /// Finds out how many sessions a target has, where that matters.
    fn open_sessions<'a>(&'a self, _target: &'a Target) -> BoxFuture<'a, Result<Option<OpenSessions>, AwsError>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub(super) struct Sight {
    /// What takes sessions, the best first.
    pub(super) usable: Vec<Candidate>,
    /// Why nothing does.
    pub(super) nothing: Option<Arc<Fault>>,
    /// How many were found, those included that take no sessions.
    pub(super) found: usize,
    /// What came of the steps of the [plan](Look::plan), in their order; the one after the last has come to nothing.
    pub(super) told: Vec<Told>,
    /// Why the best is the best, if there is more to say than that it comes first.
    pub(super) why: String,
    /// Targets that are about to go.
    pub(super) leaving: Vec<Target>,
    /// Targets that have gone.
    pub(super) gone: Vec<Target>,
    /// Things are changing, so that it is worth to look again soon.
    pub(super) changing: bool,
    /// Something is being made: what, and how far it is.
    pub(super) awaited: Option<String>,
    /// Why what is wanted could not be made.
    pub(super) trouble: Option<Arc<Fault>>,
    /// What has been made or ended lately.
    pub(super) notices: Vec<String>,
}

/// A target that takes sessions, as far as one can see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) target: Target,
    /// It has come up a moment ago, so it may take some seconds more.
    pub(super) fresh: bool,
    /// It takes a few sessions only, and does not say how many.
    pub(super) capped: bool,
}

/// What becomes of a target that a session runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    /// It stays.
    Stays,
    /// It is about to go.
    Leaving,
    /// It has gone.
    Gone,
}

impl Sight {
    fn fate(&self, target: &Target) -> Fate {
        if self.gone.contains(target) {
            Fate::Gone
        } else if self.leaving.contains(target) {
            Fate::Leaving
        } else {
            Fate::Stays
        }
    }
}

/// What worked a while ago is replaced, most likely.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Missed(Arc<Fault>);

/// No target can be chosen of those that were found.
#[derive(Debug, thiserror::Error)]
enum Unavailable {
    #[error("none of the {found} targets of `{asked}` takes a session at present{why}")]
    Spoiled { asked: String, found: usize, why: &'static str },
    #[error(
        "`{asked}` has no room for another session: {} as many as it is known to take",
        if *tasks == 1 { format!("its task carries {most},") } else { format!("each of its {tasks} tasks carries up to {most},") }
    )]
    Full { asked: String, tasks: usize, most: usize },
}

/// Finds targets for all tunnels of an identity.
#[derive(Debug)]
pub(super) struct Finder {
    /// What the user has asked for.
    asked: String,
    look: Arc<dyn Look>,
    clock: Clock,
    /// By [place](Look::place). Whoever finds no good answer looks while the others wait at the lock.
    answers: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Option<Answer>>>>>,
    state: Mutex<State>,
    /// A session has come up, or a seat is free again.
    changed: Notify,
    /// How many sessions targets have, and since when that is known. Whoever wants to know waits while another asks.
    counts: tokio::sync::Mutex<BTreeMap<String, (Duration, Option<usize>)>>,
}

#[derive(Debug)]
struct Answer {
    /// Monotonic.
    at: Duration,
    /// How many targets were to be made.
    made: Option<usize>,
    sight: Result<Arc<Sight>, Arc<Fault>>,
}

#[derive(Debug, Default)]
struct State {
    seats: BTreeMap<String, Seats>,
    /// What was chosen the last time, by cluster.
    chosen: BTreeMap<String, Target>,
    /// How many sessions each cluster has, by its ARN.
    held: BTreeMap<String, usize>,
    /// When a session last came up.
    useful_at: Option<Duration>,
}

/// What is known of a target.
#[derive(Debug)]
struct Seats {
    target: Target,
    /// Sessions that it has, those included that have not come up yet.
    taken: usize,
    /// Sessions that have come up.
    up: usize,
    /// The most that were up at once.
    proven: usize,
    /// A session beyond this number was dropped, and when.
    limit: Option<(usize, Duration)>,
    /// When it did not take a session, and whether it did so without a word.
    spoiled_at: Option<(Duration, bool)>,
}

impl Seats {
    /// How many sessions it may have now.
    fn cap(&self, now: Duration) -> usize {
        self.limit(now).unwrap_or(self.proven.max(FIRST_CAP - 1) + 1)
    }

    fn limit(&self, now: Duration) -> Option<usize> {
        self.limit.filter(|(_, at)| now.saturating_sub(*at) < LIMIT_HOLDS).map(|(limit, _)| limit)
    }

    fn is_spoiled(&self, now: Duration) -> bool {
        self.spoiled_at.is_some_and(|(at, _)| now.saturating_sub(at) < SPOILED_FOR)
    }
}

impl Finder {
    pub(super) fn new(asked: String, look: Arc<dyn Look>) -> Arc<Self> {
        Arc::new(Self {
            asked,
            look,
            clock: Clock::start(),
            answers: Mutex::default(),
            state: Mutex::default(),
            changed: Notify::new(),
            counts: tokio::sync::Mutex::default(),
        })
    }

    /// Whether the targets take a few sessions only.
    pub(super) fn finds_capped(&self) -> bool {
        self.look.finds_capped()
    }

    /// Whether it finds nothing any more.
    pub(super) fn is_over(&self) -> bool {
        self.look.is_over()
    }

    /// Chooses a target for a session to a cluster, and has one made where that can be done. `tell` gets what is waited for, and
    /// what was made.
    ///
    /// # Errors
    /// There is none, none that takes sessions, or it cannot be looked.
    ///
    /// # Cancel safety
    /// Nothing is taken.
    pub(super) async fn choose(
        self: &Arc<Self>,
        to: &Remote,
        mut tell: impl FnMut(Report),
    ) -> Result<Seat, Arc<Fault>> {
        let sight = self.sight(to, GOOD_FOR, Some(1)).await.map_err(|fault| self.judge(fault))?;
        if let Some(seat) = self.take(&sight, to) {
            sight.notices.iter().cloned().map(Report::Notice).for_each(&mut tell);
            return Ok(seat);
        }
        let mut at_least = 1;
        let mut until = None;
        'look: loop {
            // There is nothing, or what the answer names has failed since, or is full.
            let sight = self.sight(to, self.pause(), Some(at_least)).await.map_err(|fault| self.judge(fault))?;
            sight.notices.iter().cloned().map(Report::Notice).for_each(&mut tell);
            loop {
                let changed = self.changed.notified();
                if let Some(seat) = self.take(&sight, to) {
                    return Ok(seat);
                }
                if let Some(awaited) = &sight.awaited {
                    if let Some(trouble) = &sight.trouble {
                        tell(Report::Caution(Caution::of(trouble)));
                    }
                    tell(Report::Progress(awaited.clone()));
                    tokio::time::sleep(AGAIN).await;
                    continue 'look;
                }
                // Sessions that come up show that there is room for more.
                let now = self.clock.now().mono;
                let left = until.get_or_insert(now + UNPROVEN_LIMIT).saturating_sub(now);
                if !self.awaits_proof(&sight) || timeout(left, changed).await.is_err() {
                    break;
                }
            }
            // One that has just come up may not take sessions yet.
            if self.look.can_make()
                && sight.usable.iter().any(|candidate| candidate.fresh && self.is_spoiled(candidate))
            {
                tell(Report::Progress("waiting for an agent that has just been started".to_owned()));
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            // Another is made for a tunnel that has nothing, and for no other.
            if !self.look.can_make() || at_least > sight.usable.len() || self.has_seat(to) {
                let unavailable = self.unavailable(&sight).await;
                return Err(self.judge(unavailable));
            }
            at_least = sight.usable.len() + 1;
        }
    }

    /// Chooses a target among those that were found, if there is one more.
    pub(super) async fn another(self: &Arc<Self>, to: &Remote) -> Option<Seat> {
        let sight = self.sight(to, GOOD_FOR, None).await.ok()?;
        self.take(&sight, to)
    }

    /// Whether a target has not taken a session lately.
    fn is_spoiled(&self, candidate: &Candidate) -> bool {
        let now = self.clock.now().mono;
        self.state().seats.get(candidate.target.as_str()).is_some_and(|seats| seats.is_spoiled(now))
    }

    /// Whether a target is full only as far as one can know before the sessions on it have come up.
    fn awaits_proof(&self, sight: &Sight) -> bool {
        let now = self.clock.now().mono;
        let state = self.state();
        let mut seats = sight.usable.iter().filter_map(|candidate| state.seats.get(candidate.target.as_str()));
        seats.any(|seats| seats.limit(now).is_none() && !seats.is_spoiled(now) && seats.taken > seats.up)
    }

    /// Returns an answer that is not older than `most`, or at least as new as one may ask for. With `at_least`, what is missing
    /// of so many targets is made.
    async fn sight(&self, to: &Remote, most: Duration, at_least: Option<usize>) -> Result<Arc<Sight>, Arc<Fault>> {
        let cell = {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(answers.entry(self.look.place(to)).or_default())
        };
        let mut answer = cell.lock().await;
        if let Some(Answer { at, made, sight }) = &*answer {
            let age = self.clock.now().mono.saturating_sub(*at);
            // An error is no answer to live with, nor is nothing.
            let is_there = sight.as_ref().is_ok_and(|sight| sight.nothing.is_none());
            let is_awaited = sight.as_ref().is_ok_and(|sight| sight.awaited.is_some());
            let most = if is_there { most } else { most.min(if is_awaited { AGAIN } else { self.pause() }) };
            // One that was only looked for may be there.
            let has_made = is_there && at_least == Some(1) || *made >= at_least;
            if age < most && (has_made || !self.look.can_make()) {
                return sight.clone();
            }
        }
        let in_use: Vec<Target> = {
            let state = self.state();
            state.seats.values().filter(|seats| seats.taken > 0).map(|seats| seats.target.clone()).collect()
        };
        let sight = match at_least {
            Some(at_least) => self.look.make(to, &in_use, at_least).await,
            None => self.look.look(to, &in_use).await,
        };
        let sight = sight.map(Arc::new).map_err(Arc::new);
        match &sight {
            Ok(sight) if let Some(fault) = &sight.nothing => {
                debug!(asked = self.asked, error = sentence(&**fault), "found nothing");
            }
            Ok(sight) => debug!(asked = self.asked, usable = sight.usable.len(), found = sight.found, "looked"),
            Err(fault) => debug!(asked = self.asked, error = sentence(&**fault), "looked in vain"),
        }
        if let Ok(sight) = &sight {
            self.forget_others(sight);
        }
        *answer = Some(Answer { at: self.clock.now().mono, made: at_least, sight: sight.clone() });
        sight
    }

    /// Forgets what is known of targets that nobody uses or finds any more: each deployment brings others.
    fn forget_others(&self, sight: &Sight) {
        let now = self.clock.now().mono;
        let is_found = |seats: &Seats| sight.usable.iter().any(|candidate| candidate.target == seats.target);
        let is_known = |seats: &Seats| seats.is_spoiled(now) || seats.limit(now).is_some();
        self.state().seats.retain(|_, seats| seats.taken > 0 || is_known(seats) || is_found(seats));
    }

    /// Says of what worked a while ago that it is replaced, most likely.
    fn judge(&self, fault: Arc<Fault>) -> Arc<Fault> {
        if !matches!(fault.class, Class::Away | Class::Gone) || !self.is_hopeful() {
            return fault;
        }
        let hints = fault.hints.clone();
        Arc::new(Fault::new(Class::Replaced, Missed(fault)).with_hints(hints))
    }

    fn is_hopeful(&self) -> bool {
        let useful_at = self.state().useful_at;
        useful_at.is_some_and(|at| self.clock.now().mono.saturating_sub(at) < HOPE)
    }

    fn pause(&self) -> Duration {
        let has_never_worked = self.state().useful_at.is_none();
        if has_never_worked || self.is_hopeful() { AGAIN } else { SLOWLY }
    }

    /// Takes a seat on the best target that has one.
    fn take(self: &Arc<Self>, sight: &Sight, to: &Remote) -> Option<Seat> {
        let now = self.clock.now().mono;
        let mut state = self.state();
        let before = state.chosen.get(&to.id()).cloned();
        let free = sight.usable.iter().enumerate().filter_map(|(order, candidate)| {
            let seats = state.seats.get(candidate.target.as_str());
            let taken = seats.map_or(0, |seats| seats.taken);
            let is_full = candidate.capped && taken >= seats.map_or(FIRST_CAP, |seats| seats.cap(now));
            let is_free = !is_full && !seats.is_some_and(|seats| seats.is_spoiled(now));
            // Few sessions each where they are counted; else what was used before.
            let crowd = if candidate.capped { taken } else { 0 };
            let is_other = !candidate.capped && before.as_ref() != Some(&candidate.target);
            is_free.then_some(((crowd, is_other, order), candidate))
        });
        let (_, candidate) = free.min_by_key(|(rank, _)| *rank)?;
        let target = candidate.target.clone();
        let seats = state.seats.entry(target.to_string()).or_insert_with(|| Seats {
            target: target.clone(),
            taken: 0,
            up: 0,
            proven: 0,
            limit: None,
            spoiled_at: None,
        });
        seats.taken += 1;
        state.chosen.insert(to.id(), target.clone());
        *state.held.entry(to.id()).or_default() += 1;
        drop(state);
        Some(Seat::new(Arc::clone(self), to, candidate, sight.found))
    }

    /// Whether a cluster has a session.
    fn has_seat(&self, to: &Remote) -> bool {
        self.state().held.get(&to.id()).is_some_and(|held| *held > 0)
    }

    async fn unavailable(&self, sight: &Sight) -> Arc<Fault> {
        if let Some(fault) = sight.nothing.as_ref().or(sight.trouble.as_ref()) {
            return Arc::clone(fault);
        }
        let (unavailable, fullest) = {
            let (now, state, asked) = (self.clock.now().mono, self.state(), self.asked.clone());
            let seats = |candidate: &Candidate| state.seats.get(candidate.target.as_str());
            let spoiled = || sight.usable.iter().filter_map(seats).filter(|seats| seats.is_spoiled(now));
            if spoiled().next().is_some() {
                let silent = spoiled().find(|seats| seats.spoiled_at.is_some_and(|(_, silent)| silent));
                let why = if silent.is_some() { ": perhaps each has as many as it takes" } else { "" };
                (Unavailable::Spoiled { asked, found: sight.usable.len(), why }, silent.map(|one| one.target.clone()))
            } else {
                let fullest = sight.usable.iter().filter_map(seats).max_by_key(|seats| seats.taken);
                let (tasks, most) = (sight.usable.len(), fullest.map_or(0, |seats| seats.taken));
                (Unavailable::Full { asked, tasks, most }, fullest.map(|seats| seats.target.clone()))
            }
        };
        let Some(fullest) = fullest else { return Arc::new(Fault::new(Class::Away, unavailable)) };
        let crowd = self.crowd(&fullest).await.map(|crowd| format!("{crowd}: `{fullest}`"));
        let hint = match self.look.can_make() {
            true => "use fewer `--sessions` or fewer clusters, or name another `--bastion`",
            false => {
                "let the service have more tasks (`aws ecs update-service --desired-count`), use fewer `--sessions` or fewer \
                 clusters, or name another `--bastion`"
            }
        };
        Arc::new(Fault::new(Class::Away, unavailable).with_hints(crowd.into_iter().chain([hint.to_owned()])))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_seats(&self, target: &Target, change: impl FnOnce(&mut Seats, Duration)) {
        let now = self.clock.now().mono;
        if let Some(seats) = self.state().seats.get_mut(target.as_str()) {
            change(seats, now);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
