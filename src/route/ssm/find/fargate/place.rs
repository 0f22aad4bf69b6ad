//! What is known of the tasks in one network, and what to do about them: no calls, no clocks.
//!
//! Invariants:
//!
//! * There is one task, but for the time in which another takes its place, and for those that sessions ask for beyond what one
//!   takes.
//! * A task that did not start, or was stopped by others, is followed by another only after a while, and only a few times.
//! * A task that sessions run on is never stopped here.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    super::{Candidate, Sight, ecs},
    failure::{self, About, NoTask, Remedy},
    task::{DISUSE, EXPIRES_TAG, Spec},
};
use crate::{
    aws::ecs::Task,
    bastion::Target,
    fault::{Class, Fault},
    util::written,
};

/// How long a task may take until it takes sessions. Fargate takes 25 to 90 s.
const START_LIMIT: Duration = Duration::from_secs(180);

/// How long the agent may take once the task is running.
const AGENT_LIMIT: Duration = Duration::from_secs(60);

/// How long a task may be unknown to those who list and describe it: it was just made, or answers have left it out.
const UNSEEN_LIMIT: Duration = Duration::from_secs(60);

/// Least time before a task's end at which another is started.
const LEAD: Duration = Duration::from_secs(180);

/// Least time that a task has left to be taken over from an earlier run.
const WORTH_TAKING: Duration = Duration::from_secs(1800);

/// How long after it has come up a task may not take sessions yet, and is not stopped for not being used.
const FRESH: Duration = Duration::from_secs(120);

/// How often a start is tried again where that may help, and the pause between.
const RETRIES: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// Pause after a start that failed, the first time and at most; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(900);

/// How many tasks that others have stopped are followed by another within [`ENDS_WITHIN`].
const MAX_ENDS: usize = 3;
const ENDS_WITHIN: Duration = Duration::from_secs(3600);

/// How long what has been done is told to whoever comes.
const TOLD_FOR: Duration = Duration::from_secs(120);

/// A moment by both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) mono: Duration,
    /// By AWS's clock.
    pub(super) wall: SystemTime,
}

/// The tasks of one network.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Those that are not known to have ended, by ARN.
    tasks: BTreeMap<String, Known>,
    /// Starts in a row that came to nothing.
    failures: u32,
    failed: Option<Failed>,
    /// When tasks were stopped that were of use, by others than us.
    ends: VecDeque<Duration>,
    last_end: String,
    notices: VecDeque<(Duration, String)>,
}

#[derive(Debug)]
struct Known {
    /// When it was started or taken over.
    since: Duration,
    /// When it was first seen running.
    running_since: Option<Duration>,
    /// When ECS last told of it; at first when it was started or taken over.
    told_at: Duration,
    /// ECS has told of it.
    was_told: bool,
    /// Since when it has taken sessions, or could have.
    up_since: Option<Duration>,
    /// We have stopped it.
    stopped: bool,
    /// That it is of no use has been noted.
    is_noted: bool,
}

#[derive(Debug)]
struct Failed {
    fault: Arc<Fault>,
    until: Duration,
    /// Another try may help.
    is_retried: bool,
}

/// What is wanted of a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Targets that sessions run on.
    pub(super) in_use: &'a [Target],
    /// How many tasks there are to be; 0: none is to be started, but in the place of one that is used.
    pub(super) at_least: usize,
}

/// What to do, and what there is.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) sight: Sight,
    /// A task is to be started.
    pub(super) run: bool,
    /// Tasks to stop, by ARN.
    pub(super) stop: Vec<String>,
}

impl Place {
    /// Returns the ARNs of the tasks that are not known to have ended.
    pub(super) fn arns(&self) -> impl Iterator<Item = &String> {
        self.tasks.keys()
    }

    pub(super) fn knows(&self, arn: &str) -> bool {
        self.tasks.contains_key(arn)
    }

    /// Takes note of a task that was started, or taken over.
    pub(super) fn add(&mut self, arn: String, now: Duration) {
        self.tasks.entry(arn).or_insert(Known {
            since: now,
            running_since: None,
            told_at: now,
            was_told: false,
            up_since: None,
            stopped: false,
            is_noted: false,
        });
    }

    /// Takes note that we have stopped a task.
    pub(super) fn note_stopped(&mut self, arn: &str) {
        if let Some(known) = self.tasks.get_mut(arn) {
            known.stopped = true;
        }
    }

    /// Takes note of what has been done on the user's behalf.
    pub(super) fn tell(&mut self, notice: String, now: Duration) {
        self.notices.push_back((now, notice));
    }

    /// Takes note that no task could be started.
    pub(super) fn note_failure(&mut self, (fault, remedy): (Fault, Remedy), now: Duration) {
        self.failures += 1;
        let is_retried = remedy != Remedy::None && self.failures <= RETRIES;
        let pause = if is_retried {
            RETRY_PAUSE
        } else {
            let times = self.failures.saturating_sub(if remedy == Remedy::None { 1 } else { RETRIES + 1 });
            (FIRST_PAUSE * 2_u32.saturating_pow(times.min(8))).min(LONGEST_PAUSE)
        };
        self.failed = Some(Failed { fault: Arc::new(fault), until: now + pause, is_retried });
    }

    /// Returns the subnets to start a task in: all at first, then one after the other, as capacity is a matter of the zone and
    /// addresses are one of the subnet.
    pub(super) fn subnets(&self, spec: &Spec) -> Vec<String> {
        let turn = usize::try_from(self.failures).unwrap_or_default();
        let is_retry = self.failed.as_ref().is_some_and(|failed| failed.is_retried);
        let all = &spec.network.subnets;
        match all.len() {
            count if count > 1 && is_retry && turn > 0 => {
                all.iter().skip((turn - 1) % count).take(1).cloned().collect()
            }
            _ => all.clone(),
        }
    }

    /// Judges what ECS says of the tasks of this place.
    pub(super) fn judge(
        &mut self,
        tasks: &[Task],
        wanted: Wanted<'_>,
        spec: &Spec,
        about: About<'_>,
        now: Moment,
    ) -> Verdict {
        let mut sight = Sight::default();
        let (mut starting, mut ending, mut idle) = (Vec::new(), Vec::new(), Vec::new());
        let mut stop = Vec::new();
        let mut has_come_up = false;
        for (target, id) in wanted.in_use.iter().filter_map(|target| Some((target, target.ecs_task()?.1))) {
            let is_here = |arn: &String| ecs::id_of(arn) == id;
            if !self.tasks.keys().any(is_here) {
                sight.gone.push(target.clone());
            }
        }
        let in_use =
            |id: &str| wanted.in_use.iter().find(|target| target.ecs_task().is_some_and(|(_, task)| task == id));
        let arns: Vec<String> = self.tasks.keys().cloned().collect();
        for arn in arns {
            let id = ecs::id_of(&arn);
            let Some(known) = self.tasks.get_mut(&arn) else { continue };
            let Some(task) = tasks.iter().find(|task| task.arn == arn) else {
                if now.mono.saturating_sub(known.told_at) < UNSEEN_LIMIT {
                    let state = if known.was_told { "is not told of at present" } else { "has been asked for" };
                    starting.push((known.since, id.to_owned(), state.to_owned()));
                } else {
                    sight.gone.extend(in_use(id).cloned());
                    self.tasks.remove(&arn);
                }
                continue;
            };
            (known.told_at, known.was_told) = (now.mono, true);
            if task.last_status == "RUNNING" {
                known.running_since.get_or_insert(now.mono);
            }
            match ecs::container(task, None) {
                // It is about to end, as we have asked it to.
                Ok(_) if known.stopped => sight.leaving.extend(in_use(id).cloned()),
                Ok((_, runtime_id)) => {
                    has_come_up |= known.up_since.is_none();
                    let up_since = *known.up_since.get_or_insert(now.mono);
                    let Some(target) = Target::of_container(ecs::id_of(&task.cluster_arn), id, runtime_id) else {
                        continue;
                    };
                    let age = now.mono.saturating_sub(up_since);
                    let left = left(task, spec, now.wall);
                    let candidate = Candidate { target, fresh: age < FRESH, capped: true };
                    if left < LEAD.max(spec.ttl / 10) {
                        ending.push(candidate);
                    } else {
                        if in_use(id).is_none() && age >= FRESH {
                            idle.push(arn.clone());
                        }
                        sight.usable.push(candidate);
                    }
                }
                Err(ecs::Lack::Stopped(_)) => {
                    let is_over = task.last_status == "STOPPED";
                    let used = in_use(id).cloned();
                    if is_over { &mut sight.gone } else { &mut sight.leaving }.extend(used);
                    if is_over {
                        self.note_end(&arn, task, about, now.mono);
                    } else {
                        sight.changing = true;
                    }
                }
                Err(ecs::Lack::Starting(_) | ecs::Lack::AgentPending)
                    if now.mono.saturating_sub(known.since) < START_LIMIT
                        && known.running_since.is_none_or(|at| now.mono.saturating_sub(at) < AGENT_LIMIT) =>
                {
                    let state = match &*task.last_status {
                        "RUNNING" => "waits for its agent".to_owned(),
                        state => format!("is {state}"),
                    };
                    starting.push((known.since, id.to_owned(), state));
                }
                // Sessions that go on show that it serves, whatever is told of its agent.
                Err(_) if in_use(id).is_some() => {}
                Err(lack) => {
                    if known.stopped {
                        continue;
                    }
                    // It would go on for hours, at the user's cost.
                    stop.push(arn.clone());
                    if known.up_since.is_none() && !std::mem::replace(&mut known.is_noted, true) {
                        let seconds = now.mono.saturating_sub(known.since).as_secs();
                        let why = match lack {
                            ecs::Lack::AgentPending => {
                                "its agent for sessions has not come up within a minute".to_owned()
                            }
                            ecs::Lack::Starting(state) => format!("it is {state} after {seconds} s"),
                            ecs::Lack::Stopped(_)
                            | ecs::Lack::AgentStopped(_)
                            | ecs::Lack::NoExec
                            | ecs::Lack::Several(_)
                            | ecs::Lack::NoContainer(_) => format!("it {lack}"),
                        };
                        self.note_failure((failure::no_agent(id, &why, about), Remedy::None), now.mono);
                    }
                }
            }
        }
        if has_come_up {
            (self.failures, self.failed) = (0, None);
        }
        // One that is about to end is left as soon as there is another.
        let has_next = !sight.usable.is_empty();
        for candidate in ending {
            let id = candidate.target.ecs_task().map(|(_, id)| id.to_owned()).unwrap_or_default();
            let used = in_use(&id).cloned();
            match (has_next, used) {
                (true, Some(target)) => sight.leaving.push(target),
                (true, None) => stop.extend(self.tasks.keys().find(|arn| ecs::id_of(arn) == id).cloned()),
                (false, used) => {
                    sight.usable.push(candidate);
                    // Others take over while it lasts.
                    sight.changing |= used.is_some();
                }
            }
        }
        let is_used = |candidate: &Candidate| wanted.in_use.contains(&candidate.target);
        if wanted.at_least <= 1 && sight.usable.iter().any(is_used) {
            stop.extend(idle);
        }
        stop.retain(|arn| self.tasks.get(arn).is_some_and(|known| !known.stopped));
        let is_stopped = |candidate: &Candidate| {
            candidate.target.ecs_task().is_some_and(|(_, id)| stop.iter().any(|arn| ecs::id_of(arn) == id))
        };
        sight.usable.retain(|candidate| !is_stopped(candidate));
        let needs_next = !has_next && sight.usable.iter().any(is_used);
        let lasting = if has_next { sight.usable.len() } else { 0 };
        let is_wanted = lasting < wanted.at_least || needs_next;
        let mut run = false;
        if is_wanted && starting.is_empty() {
            match self.refusal(now.mono) {
                Some((fault, awaited)) => {
                    sight.trouble = Some(Arc::clone(&fault));
                    sight.awaited = awaited;
                    sight.nothing = Some(fault);
                }
                None => run = true,
            }
        }
        sight.changing |= !sight.leaving.is_empty() || !starting.is_empty();
        sight.found = sight.usable.len();
        if lasting < wanted.at_least.max(1)
            && let Some((since, id, state)) = starting.iter().min()
        {
            let seconds = now.mono.saturating_sub(*since).as_secs();
            sight.awaited = Some(format!("the Fargate task {id} {state}, {seconds} s"));
        }
        if sight.usable.is_empty() {
            let none = || Arc::new(Fault::new(Class::Away, NoTask::None { vpc: about.vpc.to_owned() }));
            sight.nothing = sight.nothing.or_else(|| Some(none()));
        } else {
            sight.nothing = None;
        }
        while self.notices.front().is_some_and(|(at, _)| now.mono.saturating_sub(*at) > TOLD_FOR) {
            self.notices.pop_front();
        }
        sight.notices = self.notices.iter().map(|(_, notice)| notice.clone()).collect();
        Verdict { sight, run, stop }
    }

    /// Returns why no task is started now, and what is waited for if one is soon.
    fn refusal(&mut self, now: Duration) -> Option<(Arc<Fault>, Option<String>)> {
        if let Some(failed) = self.failed.as_ref().filter(|failed| now < failed.until) {
            let seconds = (failed.until - now).as_millis().div_ceil(1000);
            let again = failed.is_retried.then(|| format!("no Fargate task yet, trying again in {seconds} s"));
            return Some((Arc::clone(&failed.fault), again));
        }
        while self.ends.front().is_some_and(|at| now.saturating_sub(*at) > ENDS_WITHIN) {
            self.ends.pop_front();
        }
        (self.ends.len() > MAX_ENDS).then(|| {
            let error = NoTask::TooMany { count: self.ends.len(), why: self.last_end.clone() };
            let hint = "find out who stops them, in CloudTrail or in the events of the ECS cluster; `autoheal-pa down` and `up` \
                        start another at once"
                .to_owned();
            (Arc::new(Fault::new(Class::Away, error).with_hints([hint])), None)
        })
    }

    /// Takes note that a task has ended.
    fn note_end(&mut self, arn: &str, task: &Task, about: About<'_>, now: Duration) {
        let Some(known) = self.tasks.remove(arn) else { return };
        if known.stopped {
            return;
        }
        let id = ecs::id_of(arn);
        let lived = now.saturating_sub(known.since);
        let is_early = failure::end(task).is_none() && lived < DISUSE / 2;
        if is_early || (known.up_since.is_none() && task.started_at.is_none()) {
            self.note_failure(failure::not_started(task, id, about), now);
            return;
        }
        if let Some(why) = failure::end(task) {
            self.tell(format!("the Fargate task {id} has ended: {why}"), now);
            self.ends.push_back(now);
            self.last_end = why;
        }
    }
}

/// How long a task of an earlier run has to go on to be worth taking over.
pub(super) fn is_worth_taking(task: &Task, spec: &Spec, now: SystemTime) -> bool {
    task.desired_status != "STOPPED" && left(task, spec, now) >= WORTH_TAKING.min(spec.ttl / 2)
}

/// How long a task has until it ends itself.
pub(super) fn left(task: &Task, spec: &Spec, now: SystemTime) -> Duration {
    let by_tag = task.tags.get(EXPIRES_TAG).and_then(|text| written::read_rfc3339(text));
    let by_age = || task.created_at.map(|at| at + spec.ttl);
    let ends_at = by_age().into_iter().chain(by_tag).min();
    ends_at.map_or(spec.ttl, |at| at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests;
