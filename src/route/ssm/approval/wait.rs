//! How far a request for access to a node is, and what is to be done about it next: a value, a time, an answer.
//!
//! Invariants: there is one request at a time, and no other as long as that is undecided, is in force, or has been refused;
//! looks are [`LOOK`] apart and requests at least [`REQUEST_PAUSE`], whatever the service answers.

use std::time::Duration;

use aws_credential_types::Credentials;

use crate::util::{
    backoff::{Backoff, Jitter},
    time::Now,
};

/// Time between looks at an undecided request. A person takes minutes; a policy that approves by itself does so at once.
const LOOK: Backoff = Backoff { first: Duration::from_secs(5), cap: Duration::from_secs(30) };

/// Least time between two requests for one node, so that approvals which are over at once cost nobody's patience.
const REQUEST_PAUSE: Duration = Duration::from_secs(30);

/// How long before their end other credentials are asked for: an approval may last longer than they do.
pub(super) const EARLY: Duration = Duration::from_secs(300);

/// Least time between two looks for credentials that last longer.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);

/// How long a request may be unknown to the service after it was made.
const UNKNOWN_FOR: Duration = Duration::from_secs(60);

/// What the service says of a request.
#[derive(Debug)]
pub(super) enum Answer {
    Pending,
    Approved(Credentials),
    Rejected,
    Revoked,
    Expired,
    /// There is no such request.
    Absent,
    /// Something that was not known when this was written.
    Other,
}

/// Why there will be no approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Rejected,
    Revoked,
    /// It has expired before anybody approved it.
    Unanswered,
    /// The service does not know it any more.
    Withdrawn,
}

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Next {
    /// Start sessions: there are credentials.
    Use,
    /// Request access.
    Request {
        /// How long to wait first.
        after: Duration,
    },
    /// Ask what has become of the request.
    Look {
        id: String,
        /// How long to wait first.
        after: Duration,
    },
    /// Give up.
    Refuse { id: String, verdict: Verdict },
}

/// How far a request is.
#[derive(Debug, Default)]
pub(super) struct Wait {
    request: Option<Request>,
    /// When the last request was made. Monotonic.
    requested_at: Option<Duration>,
}

#[derive(Debug)]
struct Request {
    id: String,
    /// Monotonic.
    made_at: Duration,
    /// Looks that have not led to a decision, since something was last news.
    looks: u32,
    /// Monotonic.
    next_look: Duration,
    /// Credentials, when they were had by the monotonic clock, and when they end in time since the Unix epoch.
    keys: Option<(Credentials, Duration, Duration)>,
    verdict: Option<Verdict>,
}

impl Wait {
    /// Returns what is to be done. The wall clock is that of AWS.
    pub(super) fn next(&self, now: Now) -> Next {
        let Some(request) = &self.request else {
            let at = self.requested_at.map(|at| at + REQUEST_PAUSE);
            return Next::Request { after: at.unwrap_or_default().saturating_sub(now.mono) };
        };
        let id = request.id.clone();
        if let Some(verdict) = request.verdict {
            return Next::Refuse { id, verdict };
        }
        match &request.keys {
            Some((_, had, end)) if now.wall < *end => {
                let is_due =
                    now.wall + EARLY >= *end && *had + RENEWAL_PAUSE <= now.mono && request.next_look <= now.mono;
                if is_due { Next::Look { id, after: Duration::ZERO } } else { Next::Use }
            }
            Some(_) | None => Next::Look { id, after: request.next_look.saturating_sub(now.mono) },
        }
    }

    /// Takes note of a request that has been made.
    pub(super) fn requested(&mut self, id: String, now: Now) {
        self.requested_at = Some(now.mono);
        self.request =
            Some(Request { id, made_at: now.mono, looks: 0, next_look: now.mono, keys: None, verdict: None });
    }

    /// Takes note of what has become of the request.
    pub(super) fn looked(&mut self, answer: Answer, now: Now, jitter: &mut Jitter) {
        let Some(request) = &mut self.request else { return };
        let is_young = now.mono.saturating_sub(request.made_at) < UNKNOWN_FOR;
        match answer {
            Answer::Approved(keys) => {
                let end = keys.expiry().and_then(|end| end.duration_since(std::time::SystemTime::UNIX_EPOCH).ok());
                request.keys = Some((keys, now.mono, end.unwrap_or(Duration::MAX)));
                request.looks = 0;
                // Those that have ended already are no reason to ask again at once.
                request.next_look = now.mono + LOOK.cap;
            }
            Answer::Pending | Answer::Other => request.put_off(now, jitter),
            Answer::Absent if is_young => request.put_off(now, jitter),
            Answer::Expired if request.keys.is_some() => self.request = None,
            Answer::Rejected => request.refuse(Verdict::Rejected),
            Answer::Revoked => request.refuse(Verdict::Revoked),
            Answer::Expired => request.refuse(Verdict::Unanswered),
            Answer::Absent => request.refuse(Verdict::Withdrawn),
        }
    }

    /// Takes note that it could not be asked.
    pub(super) fn failed(&mut self, now: Now, jitter: &mut Jitter) {
        if let Some(request) = &mut self.request {
            request.put_off(now, jitter);
        }
    }

    /// Returns the request that there is.
    pub(super) fn id(&self) -> Option<&str> {
        self.request.as_ref().map(|request| request.id.as_str())
    }

    /// Returns the credentials that are good at this time of AWS, with their end.
    pub(super) fn keys(&self, wall: Duration) -> Option<(&Credentials, Duration)> {
        let request = self.request.as_ref().filter(|request| request.verdict.is_none())?;
        request.keys.as_ref().filter(|(.., end)| wall < *end).map(|(keys, _, end)| (keys, *end))
    }

    /// Whether it has been approved at some time.
    pub(super) fn was_approved(&self) -> bool {
        self.request.as_ref().is_some_and(|request| request.keys.is_some())
    }
}

impl Request {
    fn put_off(&mut self, now: Now, jitter: &mut Jitter) {
        self.looks = self.looks.saturating_add(1);
        self.next_look = now.mono + LOOK.delay(self.looks, jitter);
    }

    fn refuse(&mut self, verdict: Verdict) {
        self.verdict = Some(verdict);
    }
}

#[cfg(test)]
mod tests;
