//! Credentials that cannot be renewed: what the user of a running `up` is told, and when.
//!
//! Said at the first failure, at each of [`REMINDERS`] before the end, and at the end; and when it is over. What is
//! said and when is a function of the status and the wall clock, so that a laptop may sleep through any of it.

use std::time::{Duration, SystemTime};

use tokio::{sync::watch, time::timeout};

use crate::{
    aws::CredentialStatus,
    cli::{
        error::CommandError,
        output::{Printer, in_words, rfc3339},
    },
    clock,
};

/// Times before the end at which it is said again.
const REMINDERS: [Duration; 3] = [Duration::from_secs(300), Duration::from_secs(120), Duration::from_secs(60)];

/// Longest time between two looks at the wall clock while there is something to say.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// What expired credentials mean to whoever uses the tunnels.
const CONSEQUENCES: &str = "open connections go on; until there are credentials, lost sessions cannot be resumed, new \
                            ones cannot be started, and kubectl gets no tokens";

/// Says what becomes of the credentials, and calls `renewed` when there are good ones again. Never ends.
///
/// # Cancel safety
/// Can be dropped at any time.
pub(super) async fn announce(mut status: watch::Receiver<CredentialStatus>, printer: &Printer, renewed: impl Fn()) {
    let mut notices = Notices::default();
    loop {
        let now = SystemTime::UNIX_EPOCH + clock::wall();
        let (notice, next) = notices.look(&status.borrow_and_update(), now);
        match notice {
            None => {}
            Some(Notice::Expiring(error)) => printer.caution(&error),
            Some(Notice::Expired(error)) => {
                printer.caution(&error);
                printer.progress(CONSEQUENCES);
            }
            Some(Notice::Renewed(text)) => {
                printer.progress(&text);
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

/// Something to say.
#[derive(Debug)]
enum Notice {
    Expiring(CommandError),
    Expired(CommandError),
    Renewed(String),
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
}

impl Notices {
    /// Returns what is to be said now, and how long there is nothing more to say unless the status changes;
    /// `None`: for ever.
    fn look(&mut self, status: &CredentialStatus, now: SystemTime) -> (Option<Notice>, Option<Duration>) {
        // Keys without an end are used on, whether their source can be read again or not.
        let (Some(failure), Some(end)) = (&status.failure, status.expires) else {
            let renewed = self.said.take().map(|_| match status.expires {
                Some(end) => format!("there are AWS credentials again, until {}", rfc3339(end)),
                None => "there are AWS credentials again".to_owned(),
            });
            return (renewed.map(Notice::Renewed), None);
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
        let notice = match stage {
            Stage::Expiring(_) => {
                let message = format!("the AWS credentials expire in {} and cannot be renewed", in_words(left));
                Notice::Expiring(CommandError::credentials(message, &failure.error))
            }
            Stage::Expired => {
                Notice::Expired(CommandError::credentials("the AWS credentials have expired", &failure.error))
            }
        };
        (Some(notice), next)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::{
        aws::{AwsError, RenewalFailure},
        cli::output::Captured,
    };

    fn time(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn status(expires: Option<u64>, fails: bool) -> CredentialStatus {
        let failure = || RenewalFailure { since: time(0), error: AwsError::NotRenewed { origin: "x".to_owned() } };
        CredentialStatus { expires: expires.map(time), failure: fails.then(failure) }
    }

    /// What is said at a time, in short, and after how many seconds to look again.
    fn look(notices: &mut Notices, status: &CredentialStatus, now: u64) -> (Option<String>, Option<u64>) {
        let (notice, next) = notices.look(status, time(now));
        let said = notice.map(|notice| match notice {
            Notice::Expiring(error) | Notice::Expired(error) => error.sentence(),
            Notice::Renewed(text) => text,
        });
        (said, next.map(|next| next.as_secs()))
    }

    fn expires_in(text: &str) -> Option<String> {
        Some(format!(
            "the AWS credentials expire in {text} and cannot be renewed: no newer AWS credentials come from x"
        ))
    }

    #[test]
    fn is_said_at_the_first_failure_and_before_the_end() {
        let mut notices = Notices::default();
        assert_eq!(look(&mut notices, &status(Some(10_000), false), 0), (None, None));
        let failing = status(Some(10_000), true);
        assert_eq!(look(&mut notices, &failing, 2_800), (expires_in("2 h"), Some(6_900)));
        assert_eq!(look(&mut notices, &failing, 9_699), (None, Some(1)));
        assert_eq!(look(&mut notices, &failing, 9_730), (expires_in("4 min 30 s"), Some(150)));
        assert_eq!(look(&mut notices, &failing, 9_800), (None, Some(80)));
        assert_eq!(look(&mut notices, &failing, 9_880), (expires_in("2 min"), Some(60)));
        assert_eq!(look(&mut notices, &failing, 9_940), (expires_in("1 min"), Some(60)));
        assert_eq!(look(&mut notices, &failing, 9_999), (None, Some(1)));
        let expired = Some("the AWS credentials have expired: no newer AWS credentials come from x".to_owned());
        assert_eq!(look(&mut notices, &failing, 10_000), (expired, None));
        assert_eq!(look(&mut notices, &failing, 20_000), (None, None));
        let again = Some("there are AWS credentials again, until 1970-01-01T08:20:00Z".to_owned());
        assert_eq!(look(&mut notices, &status(Some(30_000), false), 20_001), (again, None));
        assert_eq!(look(&mut notices, &status(Some(30_000), false), 20_002), (None, None));
        assert_eq!(look(&mut notices, &status(Some(30_000), true), 29_990).0, expires_in("10 s"));
    }

    #[test]
    fn reminders_that_were_slept_through_are_not_made_up_for() {
        let mut notices = Notices::default();
        let failing = status(Some(10_000), true);
        assert_eq!(look(&mut notices, &failing, 9_701), (expires_in("4 min 59 s"), Some(179)));
        assert!(look(&mut notices, &failing, 50_000).0.unwrap().starts_with("the AWS credentials have expired"));
    }

    #[test]
    fn keys_that_do_not_expire_are_no_matter() {
        let mut notices = Notices::default();
        assert_eq!(look(&mut notices, &status(None, true), 9_000), (None, None));
    }

    #[tokio::test]
    async fn a_warning_has_its_hint_and_the_end_its_consequences() {
        let (printer, _, err) = Captured::printer();
        let now = clock::wall().as_secs();
        let sender = watch::Sender::new(status(Some(now + 3600), true));
        let renewals = Cell::new(0);
        let announce = announce(sender.subscribe(), &printer, || renewals.set(renewals.get() + 1));
        let change = async {
            tokio::task::yield_now().await;
            assert!(err.text().starts_with("warning: the AWS credentials expire in "), "{}", err.text());
            assert!(err.text().contains("\nhint: start again with new ones"), "{}", err.text());
            sender.send_replace(status(Some(now), true));
            tokio::task::yield_now().await;
            assert!(err.text().contains("\nwarning: the AWS credentials have expired: "), "{}", err.text());
            assert!(err.text().ends_with(&format!("{CONSEQUENCES}\n")), "{}", err.text());
            assert_eq!(renewals.get(), 0);
            sender.send_replace(status(Some(now + 3600), false));
            tokio::task::yield_now().await;
            assert!(err.text().contains("\nthere are AWS credentials again, until "), "{}", err.text());
            assert_eq!(renewals.get(), 1);
        };
        tokio::select! {
            biased;
            () = announce => panic!("it never ends"),
            () = change => {}
        }
    }
}
