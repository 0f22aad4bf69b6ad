//! What to do about a fault: a pure function of the fault and of what went before.
//!
//! Invariants: every kind of fault is matched by name, none by a wildcard; the policy never gives up,
//! it only gets slower; no delay that anybody waits for is longer than [`SLOWEST`]; a delay other than none is jittered, so
//! that many tunnels which lose their sessions together do not come back together.

use std::time::Duration;

use super::{DialError, Fault, ProbeError};
use crate::{
    random::SplitMix64,
    route::ssm::proto::{CloseReason, handshake::HandshakeError},
};

/// Back-off between attempts to resume: quick, since open connections are waiting.
const RESUME: Backoff = Backoff { first: Duration::from_millis(100), cap: Duration::from_secs(5) };

/// Back-off between attempts to start a session, each of which costs a call and shows in CloudTrail.
const RESTART: Backoff = Backoff { first: Duration::from_millis(500), cap: Duration::from_secs(15) };

/// Back-off before a target that worked a short while ago: it is most likely being started again.
const RETURN: Backoff = Backoff { first: Duration::from_millis(500), cap: Duration::from_secs(5) };

/// Back-off when the service asks for fewer calls. The calls themselves have been tried three times by then.
const THROTTLED: Backoff = Backoff { first: Duration::from_secs(2), cap: Duration::from_secs(30) };

/// The same for resuming, on which open connections wait.
const THROTTLED_RESUME: Backoff = Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(15) };

/// Back-off when only a human can help: permissions, names, versions.
const SLOW: Backoff = Backoff { first: Duration::from_secs(10), cap: SLOWEST };

/// Back-off between looks whether a target that comes earlier in the list is back. Each costs a call that shows in
/// CloudTrail, and nobody is waiting.
const FAILBACK: Backoff = Backoff { first: Duration::from_secs(30), cap: Duration::from_secs(600) };

/// Back-off between attempts to start an extra session, which nobody needs to be served.
const SHARE: Backoff = Backoff { first: Duration::from_secs(5), cap: Duration::from_secs(300) };

/// The longest delay there is while a tunnel does not work.
const SLOWEST: Duration = Duration::from_secs(60);

/// How long a target that worked before may be away before it counts as a matter for a human. An
/// instance takes a minute or two to stop and start.
const TARGET_RETURN: Duration = Duration::from_secs(180);

/// Lost messages that hold a new connection up for less than this are not worth another session.
const CAUGHT_UP: Duration = Duration::from_millis(500);

/// How many sessions in a row may end without having been of use before it counts as a matter for a
/// human: the agent cannot resolve the destination, say.
const USELESS_SESSIONS: u32 = 3;

/// Least time that an agent gets for its handshake where other targets are still to be tried. Agents that are awake take a
/// second at most; one whose machine has just started, or is busy, has been seen to take 35 s.
const FIRST_HANDSHAKE: Duration = Duration::from_secs(15);

/// Bounds of the time that an agent gets once there is nobody else to turn to. A session to an agent that never comes
/// must not be waited for all day.
const LAST_HANDSHAKE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

/// The shortest idle timeout that an account can set. A session that was heard a shorter time ago has not been ended by it.
const SHORTEST_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Probes without an answer, one after the other, after which the agent counts as wedged.
const UNANSWERED_PROBES: u32 = 2;

/// Age of a session from which on refused or broken probes are reason to replace it: an agent resolves the
/// destination's name only once, when its session starts. An API server that is only restarted is back before that.
const STALE_NAME: Duration = Duration::from_secs(120);

/// Refused or broken probes in a row that it takes as well.
const FAILED_PROBES: u32 = 4;

/// What to do next about a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Try to resume it. Its streams stay as they are.
    Resume {
        /// How long to wait first.
        after: Duration,
    },
    /// Start a new one. The streams of the old one are reset.
    Restart {
        /// How long to wait first.
        after: Duration,
        /// Which target to try, by its place in the list.
        target: usize,
    },
    /// Start a new one, but hardly before a human has done something.
    SlowRetry {
        /// How long to wait first.
        after: Duration,
        /// Which target to try.
        target: usize,
    },
    /// Start a new one when the next local connection comes.
    OnDemand {
        /// Which target to try.
        target: usize,
    },
}

/// What went before a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct History {
    /// Transports lost or not obtained since one last proved itself; the present loss counts.
    pub(super) resumes: u32,
    /// How long the session has been without a transport that proved itself.
    pub(super) down_for: Duration,
    /// How long to try to resume before a new session is the better choice.
    pub(super) resume_budget: Duration,
    /// Sessions in a row that were not started or were of no use; 0 if this one was.
    pub(super) starts: u32,
    /// How long ago a session was last of use; `None` if none has been yet.
    pub(super) useful_before: Option<Duration>,
    /// The target of this session, by its place in the list.
    pub(super) target: usize,
    /// How many targets there are.
    pub(super) targets: usize,
    /// Nobody misses a session that ends now: no connection is open, and nothing is to keep it warm.
    pub(super) idle: bool,
}

/// Decides what to do about `fault`.
pub(super) fn decide(fault: &Fault, history: &History, jitter: &mut Jitter) -> Step {
    match fault {
        Fault::Transport(_) | Fault::Silent { .. } | Fault::Mute { .. } => resume(RESUME, history, jitter),
        Fault::Resume(error) => after_resume_error(error, history, jitter),
        Fault::Start(error) => after_start_error(error, history, jitter),
        Fault::Closed(reason) => after_close(reason, history, jitter),
        Fault::Probe(error) => match error {
            ProbeError::Certificate { .. } | ProbeError::Authority { .. } => slow(history, history.target, jitter),
            // One new session after the other leads nowhere: it is not the session.
            ProbeError::NoAnswer { .. } if history.starts >= USELESS_SESSIONS => {
                slow(history, (history.target + 1) % history.targets.max(1), jitter)
            }
            ProbeError::NoAnswer { .. } | ProbeError::SessionLost => restart(RESTART, history, jitter),
            // The session works, and the destination does not, as seen from this target.
            ProbeError::Refused | ProbeError::Ended | ProbeError::Tls { .. } | ProbeError::NotHttp => Step::Restart {
                after: RESTART.delay(history.starts, jitter),
                target: (history.target + 1) % history.targets.max(1),
            },
        },
        Fault::Exhausted => Step::Restart { after: Duration::ZERO, target: history.target },
        Fault::Panicked { .. } => restart(RESTART, history, jitter),
    }
}

fn after_resume_error(error: &DialError, history: &History, jitter: &mut Jitter) -> Step {
    match error {
        // There is nothing left to resume, or it may not be resumed: no use in trying again.
        DialError::SessionEnded { .. }
        | DialError::AccessDenied { .. }
        | DialError::DocumentRefused { .. }
        | DialError::Refused { .. }
        | DialError::ForeignStreamUrl { .. }
        | DialError::TargetNotConnected { .. }
        | DialError::TargetNotFound { .. } => restart(RESTART, history, jitter),
        DialError::Throttled { .. } => resume(THROTTLED_RESUME, history, jitter),
        // A token that the gateway does not take is spent; the next attempt gets a new one.
        DialError::UpgradeRefused { .. }
        | DialError::Credentials { .. }
        | DialError::Unreachable { .. }
        | DialError::Service { .. }
        | DialError::Timeout { .. } => resume(RESUME, history, jitter),
    }
}

fn after_start_error(error: &DialError, history: &History, jitter: &mut Jitter) -> Step {
    let next = history.target + 1;
    match error {
        // Another target may be there, and what is not allowed or not taken for one target may be for another.
        DialError::TargetNotConnected { .. }
        | DialError::TargetNotFound { .. }
        | DialError::AccessDenied { .. }
        | DialError::DocumentRefused { .. }
        | DialError::Refused { .. }
            if next < history.targets =>
        {
            Step::Restart { after: Duration::ZERO, target: next }
        }
        DialError::TargetNotConnected { .. } | DialError::TargetNotFound { .. } => {
            // What is gone does not return; others of the list may only be away.
            let all_gone = matches!(error, DialError::TargetNotFound { .. }) && history.targets == 1;
            if !all_gone && history.useful_before.is_some_and(|before| before < TARGET_RETURN) {
                Step::Restart { after: RETURN.delay(history.starts, jitter), target: 0 }
            } else {
                slow(history, 0, jitter)
            }
        }
        DialError::AccessDenied { .. }
        | DialError::DocumentRefused { .. }
        | DialError::Refused { .. }
        | DialError::ForeignStreamUrl { .. }
        | DialError::Credentials { .. }
        | DialError::UpgradeRefused { status: 401 | 403, .. } => slow(history, next % history.targets.max(1), jitter),
        DialError::Throttled { .. } => restart(THROTTLED, history, jitter),
        DialError::SessionEnded { .. }
        | DialError::UpgradeRefused { .. }
        | DialError::Unreachable { .. }
        | DialError::Service { .. }
        | DialError::Timeout { .. } => {
            // Of trouble that does not pass, this target may be the reason, whatever it is called.
            let lasts = history.starts >= USELESS_SESSIONS;
            let target = if lasts { next % history.targets.max(1) } else { history.target };
            Step::Restart { after: RESTART.delay(history.starts, jitter), target }
        }
    }
}

fn after_close(reason: &CloseReason, history: &History, jitter: &mut Jitter) -> Step {
    match reason {
        // The same agent will say the same. The name may lead elsewhere where another target is.
        CloseReason::ChannelClosed { .. } if reason.is_refused_destination() => {
            let next = history.target + 1;
            if next < history.targets {
                Step::Restart { after: Duration::ZERO, target: next }
            } else {
                slow(history, 0, jitter)
            }
        }
        CloseReason::ChannelClosed { .. } if history.starts == 0 && history.idle => {
            Step::OnDemand { target: history.target }
        }
        CloseReason::ChannelClosed { .. } if history.starts >= USELESS_SESSIONS => {
            slow(history, (history.target + 1) % history.targets.max(1), jitter)
        }
        // After a session that worked, the first target has precedence again.
        CloseReason::ChannelClosed { .. } if history.starts == 0 => Step::Restart { after: Duration::ZERO, target: 0 },
        CloseReason::ChannelClosed { .. }
        | CloseReason::Unacknowledged { .. }
        | CloseReason::Paused { .. }
        | CloseReason::Misbehaved { .. }
        | CloseReason::Smux(_) => restart(RESTART, history, jitter),
        // An agent that is registered and does not speak: another target may.
        CloseReason::HandshakeTimeout { .. } => Step::Restart {
            after: RESTART.delay(history.starts, jitter),
            target: (history.target + 1) % history.targets.max(1),
        },
        CloseReason::Handshake(error) => match error {
            HandshakeError::Malformed(_)
            | HandshakeError::UnknownVersion(_)
            | HandshakeError::AgentTooOld { .. }
            | HandshakeError::SessionType(_)
            | HandshakeError::PortType(_)
            | HandshakeError::KmsEncryption(_)
            | HandshakeError::UnknownAction(_) => slow(history, (history.target + 1) % history.targets.max(1), jitter),
        },
    }
}

fn resume(backoff: Backoff, history: &History, jitter: &mut Jitter) -> Step {
    if history.down_for >= history.resume_budget {
        return restart(RESTART, history, jitter);
    }
    // The first attempt after a transport that worked is made at once: most losses are the hourly
    // close, and then the next transport is milliseconds away.
    Step::Resume { after: backoff.delay(history.resumes.saturating_sub(1), jitter) }
}

fn restart(backoff: Backoff, history: &History, jitter: &mut Jitter) -> Step {
    Step::Restart { after: backoff.delay(history.starts, jitter), target: history.target }
}

fn slow(history: &History, target: usize, jitter: &mut Jitter) -> Step {
    Step::SlowRetry { after: SLOW.delay(history.starts.max(1), jitter), target }
}

/// Says how long the agent of a session that is started now has for its handshake. `limit` is how long the tunnel may take
/// to come up, `starts` how many sessions in a row have come to nothing.
///
/// While there are targets that have not been tried, they share the time; then each has all of it.
pub(super) fn handshake_limit(limit: Duration, starts: u32, targets: usize) -> Duration {
    let targets = u32::try_from(targets).unwrap_or(u32::MAX).max(1);
    if targets == 1 || starts >= targets {
        let (least, most) = LAST_HANDSHAKE;
        return limit.clamp(least, most);
    }
    (limit / targets).max(FIRST_HANDSHAKE.min(limit))
}

/// Returns how long to wait before the `attempt`-th look, counted from 1, whether a better target is back.
pub(super) fn failback(attempt: u32, jitter: &mut Jitter) -> Duration {
    FAILBACK.delay(attempt, jitter)
}

/// Returns how long to wait before another extra session after so many in a row have never worked.
pub(super) fn share(failures: u32, jitter: &mut Jitter) -> Duration {
    SHARE.delay(failures, jitter)
}

/// When a session counts as behind, and when as caught up again: a new connection would wait longer for the
/// repeats of lost messages than for a session of its own.
pub(super) fn is_behind(backlog: Duration, was_behind: bool, start_time: Duration) -> bool {
    if was_behind { backlog > CAUGHT_UP } else { backlog > start_time.max(CAUGHT_UP) + CAUGHT_UP }
}

/// What it says that resuming a session was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denial {
    /// The identity may not resume sessions: this one was there.
    Proven,
    /// There is no such session any more.
    Ended,
    /// Nothing: a policy that goes by a session's tag denies all that is about one that has ended.
    Unproven,
}

/// Says what a denial proves. `is_active` is what the service says of the session, if it may be asked; `unheard` how long ago,
/// by either clock, something last came through its transport; `has_resumed` whether this identity has resumed one.
pub(super) fn denial(is_active: Option<bool>, unheard: Duration, has_resumed: bool) -> Denial {
    match is_active {
        Some(true) => Denial::Proven,
        Some(false) => Denial::Ended,
        None if unheard < SHORTEST_IDLE_TIMEOUT && !has_resumed => Denial::Proven,
        None => Denial::Unproven,
    }
}

/// What to do after a probe of a session that has not succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterProbe {
    /// Probe again.
    Again {
        /// How long to wait first.
        after: Duration,
    },
    /// The session is of no use: replace it.
    Replace,
}

/// Decides what to do after the `failures`-th probe in a row has failed, in a session of this age. `in_use` says
/// whether local connections are open, which a new session would cut.
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
        ProbeError::NoAnswer { .. } | ProbeError::SessionLost => AfterProbe::Again { after: Duration::ZERO },
        ProbeError::Refused | ProbeError::Ended | ProbeError::Tls { .. } | ProbeError::NotHttp => {
            let is_stale = failures >= FAILED_PROBES && age >= STALE_NAME;
            if is_stale && !in_use { AfterProbe::Replace } else { again(RESTART, jitter) }
        }
        // The name may lead elsewhere by now; only a new session would find out.
        ProbeError::Certificate { .. } if failures >= UNANSWERED_PROBES && !in_use => AfterProbe::Replace,
        ProbeError::Certificate { .. } | ProbeError::Authority { .. } => again(SLOW, jitter),
    }
}

/// A delay that doubles with each failure.
#[derive(Debug, Clone, Copy)]
struct Backoff {
    first: Duration,
    cap: Duration,
}

impl Backoff {
    /// Returns the delay after `failures` failures in a row: none after none, then between half of
    /// the doubling delay and all of it.
    fn delay(self, failures: u32, jitter: &mut Jitter) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let full = self.first.saturating_mul(1 << doublings.min(16)).min(self.cap);
        full / 2 + jitter.below(full / 2)
    }
}

/// Random delays from a seed.
#[derive(Debug, Clone)]
pub(super) struct Jitter(SplitMix64);

impl Jitter {
    /// Creates a generator. Two with one seed give the same delays.
    pub(super) fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    /// Returns the next random number.
    pub(super) fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn below(&mut self, limit: Duration) -> Duration {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.next_u64() % nanos.max(1))
    }
}
