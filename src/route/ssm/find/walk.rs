//! What is told of a look: the steps to what was found, and how many sessions that has.

use std::time::Duration;

use tokio::time::timeout;
use tracing::debug;

use super::{Candidate, FIRST_CAP, Finder, GOOD_FOR, Seat, Sight};
use crate::{
    aws::{AwsError, advice},
    bastion::Target,
    remote::Remote,
    route::{
        ssm::open_sessions::OpenSessions,
        step::{Step, StepName, Told, walked},
    },
    util::{peer_text::sentence, quote::command},
};

/// How long it may take to find out how many sessions a target has: whoever waits has an error to show.
const COUNT_LIMIT: Duration = Duration::from_secs(2);

/// Sessions in one container by the published quota "ECS Exec sessions" (Amazon ECS endpoints and quotas).
const QUOTA: usize = 20;

/// All steps to the targets that lead to a cluster.
#[derive(Debug, Clone)]
pub struct Walk {
    pub steps: Vec<Step>,
    /// Those that take sessions, the best first; none if a step has failed.
    pub targets: Vec<Target>,
}

/// How many sessions a target has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowd {
    /// All that are open.
    pub open: usize,
    /// Those of this program.
    pub own: usize,
}

impl Finder {
    /// Looks for the targets that lead to a cluster, and tells how it went. No look is made for it if there is a good answer.
    pub(in crate::route::ssm) async fn walk(&self, to: &Remote) -> Walk {
        let plan = self.look.plan();
        let sight = match self.sight(to, GOOD_FOR, None).await {
            Ok(sight) => sight,
            Err(fault) => return Walk { steps: walked(plan, Vec::new(), Some(fault)), targets: Vec::new() },
        };
        let told = match (sight.told.is_empty(), &sight.nothing) {
            (true, None) => vec![Told::Passed(format!("found {}", sight.found))],
            _ => sight.told.clone(),
        };
        let mut steps = walked(plan, told, sight.nothing.clone());
        if let Some(best) = sight.usable.first() {
            steps.push(chosen(&sight, best));
            steps.extend(self.sessions(to, best).await);
        }
        Walk { steps, targets: sight.usable.iter().map(|candidate| candidate.target.clone()).collect() }
    }

    /// Returns what an answer depends on besides the bastion: clusters with the same share it.
    pub(in crate::route::ssm) fn place(&self, to: &Remote) -> String {
        self.look.place(to)
    }

    /// Says how many sessions a target has that takes a few only.
    async fn sessions(&self, to: &Remote, best: &Candidate) -> Option<Step> {
        if !best.capped {
            return None;
        }
        let told = match self.look.open_sessions(&best.target).await {
            Ok(open) => load(open?, &best.target, to),
            Err(error) => untold(&error),
        };
        let tried = format!("`ssm:DescribeSessions` of `{}`", best.target);
        Some(Step { name: StepName::SESSIONS, tried, told })
    }

    /// Finds out how many sessions a target has, if AWS tells; by one call a minute at most.
    pub(super) async fn crowd(&self, target: &Target) -> Option<Crowd> {
        let mut counts = self.counts.lock().await;
        let now = self.clock.now().mono;
        counts.retain(|_, (at, _)| now.saturating_sub(*at) < GOOD_FOR);
        let count = match counts.get(target.as_str()) {
            Some((_, count)) => *count,
            None => {
                let count = match timeout(COUNT_LIMIT, self.look.open_sessions(target)).await {
                    Ok(Ok(open)) => open.map(|open| open.count()),
                    Ok(Err(error)) => {
                        debug!(%target, error = sentence(&error), "cannot find out how many sessions the target has");
                        None
                    }
                    Err(_) => None,
                };
                counts.insert(target.to_string(), (now, count));
                count
            }
        };
        let own = self.state().seats.get(target.as_str()).map_or(0, |seats| seats.taken);
        // Of those that have ended the service may not know yet, nor of those that are being started.
        count.filter(|open| *open > 0).map(|open| Crowd { open, own: own.min(open) })
    }
}

impl Seat {
    /// Finds out how many sessions the target has, if AWS tells.
    pub(in crate::route::ssm) async fn crowd(&self) -> Option<Crowd> {
        self.finder.crowd(&self.target).await
    }
}

impl std::fmt::Display for Crowd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { open, own } = self;
        let (sessions, are) = if *open == 1 { ("session", "is") } else { ("sessions", "are") };
        write!(f, "{open} {sessions} {are} open on it, {own} of them of this program")
    }
}

fn chosen(sight: &Sight, best: &Candidate) -> Step {
    let told = match sight.usable.len() {
        _ if !sight.why.is_empty() => format!("`{}`, {}", best.target, sight.why),
        1 => format!("`{}`, the only one that takes sessions", best.target),
        others => format!("`{}`, the first of {others}", best.target),
    };
    Step {
        name: StepName::CHOSEN,
        tried: "to choose among those that take sessions".to_owned(),
        told: Told::Passed(told),
    }
}

fn untold(error: &AwsError) -> Told {
    let denied = if let AwsError::AccessDenied { action, .. } = error { Some(action) } else { None };
    let why = denied.map_or_else(|| sentence(error), |action| format!("`{action}` is optional and not allowed"));
    Told::Untold { why, hints: advice::assess(error).1 }
}

/// What the number of sessions means for one more, on a target that does not say how many it takes.
fn load(open: OpenSessions, target: &Target, to: &Remote) -> Told {
    let said =
        format!("{open}; its agent takes {FIRST_CAP} unless ECS has told it more, {QUOTA} by the published quota");
    if open.count() < FIRST_CAP {
        return Told::Passed(said);
    }
    let list = command!(
        "`aws ssm describe-sessions --state Active --filters key=Target,value={} --region {}` lists them",
        target.as_str(),
        to.region()
    );
    Told::Doubtful {
        said,
        means: "if that is as many as it takes, the next is dropped without a word".to_owned(),
        hints: vec![list, "end those that nobody needs, or let the service have more tasks".to_owned()],
    }
}
