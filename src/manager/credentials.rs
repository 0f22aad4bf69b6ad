//! Credentials that cannot be renewed: what the user of a running `up` is told, and when.
//!
//! Said at the first failure, at each of [`REMINDERS`] before the end, and at the end; and when it is over. What is
//! said and when is a function of the status and the wall clock, so that a laptop may sleep through any of it.

use std::time::{Duration, SystemTime};

use tokio::{sync::watch, time::timeout};

use super::{Event, Listener};
use crate::{
    aws::{CredentialStatus, SignInEnd},
    clock,
};

/// Times before the end at which it is said again.
const REMINDERS: [Duration; 3] = [Duration::from_secs(300), Duration::from_secs(120), Duration::from_secs(60)];

/// How long before its end a sign-in is foretold that cannot be renewed: time for a person to find the browser.
const SIGN_IN_NOTICE: Duration = Duration::from_secs(900);

/// Longest time between two looks at the wall clock while there is something to say.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// Tells what the user has to know of credentials, and calls `renewed` when there are some again. Never ends.
pub(super) async fn watch(mut status: watch::Receiver<CredentialStatus>, listener: &Listener, renewed: impl Fn()) {
    let mut notices = Notices::default();
    loop {
        let now = SystemTime::UNIX_EPOCH + clock::wall();
        let (notice, next) = notices.look(&status.borrow_and_update(), now);
        let (sign_in, later) = notices.look_at_sign_in(&status.borrow(), now);
        let next = [next, later].into_iter().flatten().min();
        if let Some(event) = sign_in {
            listener.tell(event);
        }
        if let Some(event) = notice {
            let are_renewed = matches!(event, Event::CredentialsRenewed { .. });
            listener.tell(event);
            if are_renewed {
                renewed();
            }
        }
        let changed = match next {
            Some(next) => timeout(next.min(LOOK_INTERVAL), status.changed()).await.unwrap_or(Ok(())),
            None => status.changed().await,
        };
        if changed.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// How far it has come: the number of reminders that are due, or the end. Nothing is said twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Expiring(usize),
    Expired,
}

/// Remembers what has been said.
#[derive(Debug, Default)]
struct Notices {
    said: Option<Stage>,
    /// The end of a sign-in that has been foretold.
    foretold: Option<SystemTime>,
}

impl Notices {
    /// Returns what is to be said of the end of a sign-in, and how long there is nothing to say.
    fn look_at_sign_in(&mut self, status: &CredentialStatus, now: SystemTime) -> (Option<Event>, Option<Duration>) {
        let Some(SignInEnd { profile, at }) = &status.sign_in else { return (None, None) };
        let left = at.duration_since(now).unwrap_or_default();
        if left > SIGN_IN_NOTICE {
            return (None, Some(left - SIGN_IN_NOTICE));
        }
        if left.is_zero() || self.foretold.replace(*at) == Some(*at) {
            return (None, None);
        }
        (Some(Event::SignInEnds { left, profile: profile.clone() }), None)
    }

    /// Returns what is to be said now, and how long there is nothing more to say unless the status changes;
    /// `None`: for ever.
    fn look(&mut self, status: &CredentialStatus, now: SystemTime) -> (Option<Event>, Option<Duration>) {
        // Keys without an end are used on, whether their source can be read again or not.
        let (Some(failure), Some(end)) = (&status.failure, status.expires) else {
            let renewed = self.said.take().map(|_| Event::CredentialsRenewed { until: status.expires });
            return (renewed, None);
        };
        let left = end.duration_since(now).unwrap_or_default();
        let stage = match REMINDERS.iter().filter(|reminder| left <= **reminder).count() {
            _ if left.is_zero() => Stage::Expired,
            due => Stage::Expiring(due),
        };
        let next = match stage {
            Stage::Expiring(due) => Some(left - REMINDERS.get(due).copied().unwrap_or_default()),
            Stage::Expired => None,
        };
        if self.said.is_some_and(|said| stage <= said) {
            return (None, next);
        }
        self.said = Some(stage);
        let error = failure.error.clone();
        let notice = match stage {
            Stage::Expiring(_) => Event::CredentialsExpire { left, error },
            Stage::Expired => Event::CredentialsExpired { error },
        };
        (Some(notice), next)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::aws::{AwsError, RenewalFailure};

    fn time(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn status(expires: Option<u64>, fails: bool) -> CredentialStatus {
        let failure = || RenewalFailure { since: time(0), error: AwsError::NotRenewed { origin: "x".to_owned() } };
        CredentialStatus { expires: expires.map(time), failure: fails.then(failure), sign_in: None }
    }

    /// What is said at a time, in short, and after how many seconds to look again.
    fn look(notices: &mut Notices, status: &CredentialStatus, now: u64) -> (Option<String>, Option<u64>) {
        let (notice, next) = notices.look(status, time(now));
        let said = notice.map(|notice| {
            if let Event::CredentialsExpire { left, .. } = notice {
                return format!("expire in {} s", left.as_secs());
            }
            if matches!(notice, Event::CredentialsExpired { .. }) {
                return "have expired".to_owned();
            }
            let Event::CredentialsRenewed { until: Some(until) } = notice else { panic!("{notice:?}") };
            format!("until {}", until.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
        });
        (said, next.map(|next| next.as_secs()))
    }

    fn expires_in(seconds: u64) -> Option<String> {
        Some(format!("expire in {seconds} s"))
    }

    #[test]
    fn is_said_at_the_first_failure_and_before_the_end() {
        let mut notices = Notices::default();
        assert_eq!(look(&mut notices, &status(Some(10_000), false), 0), (None, None));
        let failing = status(Some(10_000), true);
        assert_eq!(look(&mut notices, &failing, 2_800), (expires_in(7200), Some(6_900)));
        assert_eq!(look(&mut notices, &failing, 9_699), (None, Some(1)));
        assert_eq!(look(&mut notices, &failing, 9_730), (expires_in(270), Some(150)));
        assert_eq!(look(&mut notices, &failing, 9_800), (None, Some(80)));
        assert_eq!(look(&mut notices, &failing, 9_880), (expires_in(120), Some(60)));
        assert_eq!(look(&mut notices, &failing, 9_940), (expires_in(60), Some(60)));
        assert_eq!(look(&mut notices, &failing, 9_999), (None, Some(1)));
        let expired = Some("have expired".to_owned());
        assert_eq!(look(&mut notices, &failing, 10_000), (expired, None));
        assert_eq!(look(&mut notices, &failing, 20_000), (None, None));
        let again = Some("until 30000".to_owned());
        assert_eq!(look(&mut notices, &status(Some(30_000), false), 20_001), (again, None));
        assert_eq!(look(&mut notices, &status(Some(30_000), false), 20_002), (None, None));
        assert_eq!(look(&mut notices, &status(Some(30_000), true), 29_990).0, expires_in(10));
    }

    #[test]
    fn reminders_that_were_slept_through_are_not_made_up_for() {
        let mut notices = Notices::default();
        let failing = status(Some(10_000), true);
        assert_eq!(look(&mut notices, &failing, 9_701), (expires_in(299), Some(179)));
        assert!(look(&mut notices, &failing, 50_000).0.unwrap() == "have expired");
    }

    #[test]
    fn the_end_of_a_sign_in_is_foretold_once() {
        let mut notices = Notices::default();
        let until = |end| CredentialStatus {
            sign_in: Some(SignInEnd { profile: "dev".to_owned(), at: time(end) }),
            ..status(Some(50_000), false)
        };
        let mut look = |end, now| {
            let (said, next) = notices.look_at_sign_in(&until(end), time(now));
            let left = said.map(|event| {
                let Event::SignInEnds { left, .. } = event else { panic!("{event:?}") };
                left.as_secs()
            });
            (left, next.map(|next| next.as_secs()))
        };
        assert_eq!(look(10_000, 1_000), (None, Some(8_100)));
        assert_eq!(look(10_000, 9_100), (Some(900), None));
        assert_eq!(look(10_000, 9_200), (None, None));
        assert_eq!(look(18_000, 9_300), (None, Some(7_800)), "somebody has signed in again");
        assert_eq!(look(18_000, 17_990), (Some(10), None));
        assert_eq!(look(18_000, 18_000), (None, None));
    }

    #[test]
    fn keys_that_do_not_expire_are_no_matter() {
        let mut notices = Notices::default();
        assert_eq!(look(&mut notices, &status(None, true), 9_000), (None, None));
    }

    #[tokio::test]
    async fn who_waits_for_credentials_is_called_when_there_are_some_again() {
        let (listener, told) = Listener::kept();
        let now = clock::wall().as_secs();
        let sender = watch::Sender::new(status(Some(now + 3600), true));
        let renewals = Cell::new(0);
        let watched = watch(sender.subscribe(), &listener, || renewals.set(renewals.get() + 1));
        let change = async {
            tokio::task::yield_now().await;
            sender.send_replace(status(Some(now), true));
            tokio::task::yield_now().await;
            assert_eq!(renewals.get(), 0);
            sender.send_replace(status(Some(now + 3600), false));
            tokio::task::yield_now().await;
            assert_eq!(renewals.get(), 1);
            let told = told.lock().unwrap();
            let [Event::CredentialsExpire { .. }, Event::CredentialsExpired { .. }, Event::CredentialsRenewed { .. }] =
                told[..]
            else {
                panic!("{told:?}")
            };
        };
        tokio::select! {
            biased;
            () = watched => panic!("it never ends"),
            () = change => {}
        }
    }
}
