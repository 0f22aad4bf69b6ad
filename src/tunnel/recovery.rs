//! What to do when a link is over: a pure function of the class of its fault and of what went before.
//!
//! Invariants: every class is matched by name, none by a wildcard; nothing here gives up, it only gets slower; no delay that
//! anybody waits for is longer than [`SLOWEST`]; a delay other than none is jittered, so that many tunnels which lose their
//! links together do not come back together.

use std::time::Duration;

use crate::{
    route::{Class, ProbeError},
    util::backoff::{Backoff, Jitter},
};

/// Back-off between attempts to start a link, each of which may cost a call that shows in an audit trail.
const RESTART: Backoff = Backoff { first: Duration::from_millis(500), cap: Duration::from_secs(15) };

/// Back-off before a route that worked a short while ago: what it leads through is most likely being started again.
const RETURN: Backoff = Backoff { first: Duration::from_millis(500), cap: Duration::from_secs(5) };

/// Back-off between looks for what replaces a route's other end. A look costs a call now and then only.
const REPLACED: Backoff = Backoff { first: Duration::from_millis(500), cap: Duration::from_secs(2) };

/// Back-off when the other side asks for fewer calls. The calls themselves have been tried several times by then.
const THROTTLED: Backoff = Backoff { first: Duration::from_secs(2), cap: Duration::from_secs(30) };

/// Back-off when only a human can help: permissions, names, versions.
const SLOW: Backoff = Backoff { first: Duration::from_secs(10), cap: SLOWEST };

/// Back-off between looks whether a route that comes earlier in the list is back. Each may cost a call that shows in an
/// audit trail, and nobody is waiting.
const FAILBACK: Backoff = Backoff { first: Duration::from_secs(30), cap: Duration::from_secs(600) };

/// Back-off between attempts to start an extra link, which nobody needs to be served.
const SHARE: Backoff = Backoff { first: Duration::from_secs(5), cap: Duration::from_secs(300) };

/// The longest delay there is while a tunnel does not work.
const SLOWEST: Duration = Duration::from_secs(60);

/// How long a route that worked before may be away before it counts as a matter for a human. A machine takes a minute or
/// two to stop and start.
const ROUTE_RETURN: Duration = Duration::from_secs(180);

/// What was lost and holds a new connection up for less than this is not worth another link.
const CAUGHT_UP: Duration = Duration::from_millis(500);

/// How many links in a row may end without having been of use before it counts as a matter for a
/// human: the destination's name cannot be resolved, say.
const USELESS_LINKS: u32 = 3;

/// Least time that a link gets to come up where other routes are still to be tried. What is awake takes a second at most;
/// what has just been switched on, or is busy, has been seen to take 35 s.
const FIRST_UP: Duration = Duration::from_secs(15);

/// Bounds of the time that a link gets once there is no other route to turn to. One that never comes must not be waited
/// for all day.
const LAST_UP: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

/// Probes without an answer, one after the other, after which whatever is at the other end counts as wedged.
const UNANSWERED_PROBES: u32 = 2;

/// Age of a link from which on refused or broken probes are reason to replace it: the destination's name may be resolved
/// only once, when a link starts. An API server that is only restarted is back before that.
const STALE_NAME: Duration = Duration::from_secs(120);

/// Refused or broken probes in a row that it takes as well.
const FAILED_PROBES: u32 = 4;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Start another link.
    Restart {
        /// How long to wait first.
        after: Duration,
        /// Which route to take, by its place in the list.
        route: usize,
    },
    /// Start another, but hardly before a human has done something.
    SlowRetry {
        /// How long to wait first.
        after: Duration,
        route: usize,
    },
    /// Start another when the next local connection comes.
    OnDemand { route: usize },
}

/// What went before the end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct History {
    /// Links in a row that could not be had or were of no use; 0 if this one was.
    pub(super) starts: u32,
    /// How long ago a link was last of use; `None` if none has been yet.
    pub(super) useful_before: Option<Duration>,
    /// The route of this link, by its place in the list.
    pub(super) route: usize,
    pub(super) routes: usize,
    /// Nobody misses a link that ends now: no connection is open, and nothing is to keep it warm.
    pub(super) idle: bool,
}

impl History {
    /// The next route of the list, the first after the last.
    fn next(&self) -> usize {
        (self.route + 1) % self.routes.max(1)
    }
}

/// Decides what to do when a link has ended with a fault of this class.
pub(super) fn decide(class: Class, history: &History, jitter: &mut Jitter) -> Step {
    let lasts = history.starts >= USELESS_LINKS;
    match class {
        // Another route may be there, and what is not allowed or not taken on one may be on another.
        Class::Away | Class::Replaced | Class::Gone | Class::Denied | Class::Refused
            if history.route + 1 < history.routes =>
        {
            Step::Restart { after: Duration::ZERO, route: history.route + 1 }
        }
        Class::Away | Class::Gone | Class::Denied | Class::Refused => {
            // What only a human can change stays; others of the list may only be away.
            let may_return = class == Class::Away || history.routes > 1;
            if may_return && history.useful_before.is_some_and(|before| before < ROUTE_RETURN) {
                Step::Restart { after: RETURN.delay(history.starts, jitter), route: 0 }
            } else {
                slow(history, 0, jitter)
            }
        }
        Class::Replaced => restart(REPLACED, history, 0, jitter),
        Class::Throttled => restart(THROTTLED, history, history.route, jitter),
        // Of trouble that does not pass, this route may be the reason, whatever it is called.
        Class::Transient if lasts => restart(RESTART, history, history.next(), jitter),
        Class::Transient | Class::Bug => restart(RESTART, history, history.route, jitter),
        Class::Useless => restart(RESTART, history, history.next(), jitter),
        Class::Unfit | Class::Identity => slow(history, history.next(), jitter),
        Class::Over if history.starts == 0 && history.idle => Step::OnDemand { route: history.route },
        // One after the other leads nowhere.
        Class::Over if lasts => slow(history, history.next(), jitter),
        // After a link that worked, the first route has precedence again.
        Class::Over if history.starts == 0 => Step::Restart { after: Duration::ZERO, route: 0 },
        Class::Over => restart(RESTART, history, history.route, jitter),
    }
}

fn restart(backoff: Backoff, history: &History, route: usize, jitter: &mut Jitter) -> Step {
    Step::Restart { after: backoff.delay(history.starts, jitter), route }
}

fn slow(history: &History, route: usize, jitter: &mut Jitter) -> Step {
    Step::SlowRetry { after: SLOW.delay(history.starts.max(1), jitter), route }
}

/// Says how long a link that is started now has to come up. `limit` is how long the tunnel may take to come up, `starts` how
/// many links in a row have come to nothing.
///
/// While there are routes that have not been tried, they share the time; then each has all of it.
pub(super) fn up_within(limit: Duration, starts: u32, routes: usize) -> Duration {
    let routes = u32::try_from(routes).unwrap_or(u32::MAX).max(1);
    if routes == 1 || starts >= routes {
        let (least, most) = LAST_UP;
        return limit.clamp(least, most);
    }
    (limit / routes).max(FIRST_UP.min(limit))
}

/// Returns how long to wait before the `attempt`-th look, counted from 1, for a better link; `is_urgent`: what the present one
/// leads through is about to go.
pub(super) fn failback(attempt: u32, is_urgent: bool, jitter: &mut Jitter) -> Duration {
    if is_urgent { REPLACED } else { FAILBACK }.delay(attempt, jitter)
}

/// Returns how long to wait before another extra link after so many in a row have never worked.
pub(super) fn share(failures: u32, jitter: &mut Jitter) -> Duration {
    SHARE.delay(failures, jitter)
}

/// When a link counts as behind, and when as caught up again: a new connection would wait longer for the
/// repeats of what was lost than for a link of its own.
pub(super) fn is_behind(backlog: Duration, was_behind: bool, start_time: Duration) -> bool {
    if was_behind { backlog > CAUGHT_UP } else { backlog > start_time.max(CAUGHT_UP) + CAUGHT_UP }
}

/// What to do after a probe that has not succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterProbe {
    Again {
        /// How long to wait first.
        after: Duration,
    },
    /// The link is of no use: replace it.
    Replace,
}

/// Decides what to do after the `failures`-th probe in a row has failed, in a link of this age. `in_use` says
/// whether local connections are open, which a new link would cut.
pub(super) fn after_probe(
    error: &ProbeError,
    failures: u32,
    age: Duration,
    in_use: bool,
    jitter: &mut Jitter,
) -> AfterProbe {
    let again = |backoff: Backoff, jitter: &mut Jitter| AfterProbe::Again { after: backoff.delay(failures, jitter) };
    match error {
        ProbeError::NoAnswer { .. } if failures >= UNANSWERED_PROBES => AfterProbe::Replace,
        // Twice in a row, without a pause: connections are waiting to be told.
        ProbeError::NoAnswer { .. } | ProbeError::LinkLost => AfterProbe::Again { after: Duration::ZERO },
        ProbeError::Refused | ProbeError::Ended | ProbeError::Tls { .. } | ProbeError::NotHttp => {
            let is_stale = failures >= FAILED_PROBES && age >= STALE_NAME;
            if is_stale && !in_use { AfterProbe::Replace } else { again(RESTART, jitter) }
        }
        // The name may lead elsewhere by now; only a new link would find out.
        ProbeError::Certificate { .. } if failures >= UNANSWERED_PROBES && !in_use => AfterProbe::Replace,
        ProbeError::Certificate { .. } | ProbeError::Authority { .. } => again(SLOW, jitter),
    }
}

#[cfg(test)]
mod tests;
