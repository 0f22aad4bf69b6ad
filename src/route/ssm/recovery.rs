//! Whether a session that has lost its transport is resumed, and when: a function of the fault and of what went before.
//!
//! Invariants: every kind of fault is matched by name, none by a wildcard; a delay other than none is jittered, so that
//! many sessions which lose their transports together do not come back together.

use std::time::Duration;

use super::{DialError, SessionFault};
use crate::util::backoff::{Backoff, Jitter};

/// Back-off between attempts to resume: quick, since open connections are waiting.
const RESUME: Backoff = Backoff { first: Duration::from_millis(100), cap: Duration::from_secs(5) };

/// The same when the service asks for fewer calls. The calls themselves have been tried three times by then.
const THROTTLED: Backoff = Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(15) };

/// Shortest idle timeout of the service that can be set. A session that was heard a shorter time ago has not been ended by
/// it.
const SHORTEST_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What went before a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct History {
    /// Transports lost or not obtained since one last proved itself; the present loss counts.
    pub(super) resumes: u32,
    /// How long the session has been without a transport that proved itself.
    pub(super) down_for: Duration,
    /// How long to try to resume before a new session is the better choice.
    pub(super) budget: Duration,
}

/// Returns how long to wait before an attempt to resume the session; `None`: it is given up.
pub(super) fn resume_after(fault: &SessionFault, history: &History, jitter: &mut Jitter) -> Option<Duration> {
    let backoff = match fault {
        SessionFault::Transport(_) | SessionFault::Silent { .. } | SessionFault::Mute { .. } => RESUME,
        SessionFault::Resume(error) => after_failed_resume(error)?,
        SessionFault::Start(_)
        | SessionFault::Closed(_)
        | SessionFault::Probe(_)
        | SessionFault::Unanswered { .. }
        | SessionFault::TargetGone { .. }
        | SessionFault::Dropped { .. }
        | SessionFault::Exhausted
        | SessionFault::Abandoned(_) => return None,
    };
    // The first attempt after a transport that worked is made at once: most losses are the hourly
    // close, and then the next transport is milliseconds away.
    (history.down_for < history.budget).then(|| backoff.delay(history.resumes.saturating_sub(1), jitter))
}

fn after_failed_resume(error: &DialError) -> Option<Backoff> {
    match error {
        // There is nothing left to resume, or it may not be resumed: no use in trying again.
        DialError::SessionEnded { .. }
        | DialError::AccessDenied { .. }
        | DialError::Unapproved(_)
        | DialError::DocumentRefused { .. }
        | DialError::Refused { .. }
        | DialError::ForeignStreamUrl { .. }
        | DialError::TargetNotConnected { .. }
        | DialError::TargetNotFound { .. } => None,
        DialError::Throttled { .. } => Some(THROTTLED),
        // A token that the gateway does not take is spent; the next attempt gets a new one.
        DialError::UpgradeRefused { .. }
        | DialError::Credentials { .. }
        | DialError::Unreachable { .. }
        | DialError::Service { .. }
        | DialError::Timeout { .. } => Some(RESUME),
    }
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

#[cfg(test)]
mod tests;
