//! Sessions that a manager left behind when it was killed: the next one of its name ends them.
//!
//! Beside everything else, a few at a time; only those that keep a place on a task of ECS are waited for. What cannot be ended stays in the journal for the next start, unless the
//! identity may not end it or is of another account: then the user is told, once.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::{sync::oneshot, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Event, Listener};
use crate::{
    aws::{Aws, AwsError, Caller},
    bastion::Target,
    journal::{Entry, Journal},
    route::list,
};

/// Calls at a time; the tunnels start their sessions meanwhile.
const CONCURRENT_CALLS: usize = 4;

/// How often ending a session is tried.
const ATTEMPTS: u32 = 4;

/// Pause after the first attempt that fails; each other is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// How long the tunnels wait until sessions have ended whose places they need.
const PLACES_LIMIT: Duration = Duration::from_secs(5);

/// Why a session was not ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotEnded {
    /// The call failed.
    #[error(transparent)]
    Call(#[from] AwsError),
    /// AWS would say that there is no such session, as if it were over.
    #[error("it belongs to the account {account}, and no identity of this run does")]
    OtherAccount { account: String },
}

impl NotEnded {
    /// Whether another attempt would end the same.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Call(AwsError::AccessDenied { .. } | AwsError::Refused { .. }) | Self::OtherAccount { .. })
    }
}

/// One who may have started a session.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) aws: Aws,
    pub(crate) account: String,
}

impl Identity {
    pub(crate) fn new(aws: Aws, caller: &Caller) -> Self {
        Self { aws, account: caller.account.clone() }
    }
}

/// Ends a session as whoever of these may have started it: that has not been written down, but for the account.
pub(crate) async fn end_as_any(identities: &[Identity], orphan: &Entry) -> Result<(), NotEnded> {
    let is_of_account =
        |identity: &&Identity| orphan.account.as_ref().is_none_or(|account| *account == identity.account);
    let (near, far): (Vec<_>, Vec<_>) =
        identities.iter().filter(is_of_account).partition(|identity| identity.aws.region() == orphan.region);
    let mut outcome = Err(NotEnded::OtherAccount { account: orphan.account.clone().unwrap_or_default() });
    for identity in near.into_iter().chain(far) {
        match list::end(&identity.aws, orphan).await {
            Ok(()) => return Ok(()),
            // One who could not ask may be the one who is allowed to.
            Err(error) if outcome.as_ref().is_err_and(NotEnded::is_final) => outcome = Err(error.into()),
            Err(_) => {}
        }
    }
    outcome
}

/// What an earlier run has left behind.
pub(crate) struct LeftBehind {
    pub(crate) sessions: Vec<Entry>,
    /// Who may have started them.
    pub(crate) identities: Vec<Identity>,
    pub(crate) journal: Journal,
    pub(crate) listener: Listener,
}

impl LeftBehind {
    /// Ends it beside everything else, until the stop. Returns at once, unless sessions are left on tasks of ECS: these take
    /// few and drop others in silence, so that places have to be free before sessions are started.
    pub(crate) async fn end(self, stop: &CancellationToken, tasks: &mut JoinSet<()>) {
        let Self { sessions, identities, journal, listener } = self;
        let has_places = sessions.iter().any(|session| matches!(session.target.parse(), Ok(Target::EcsTask(_))));
        let (held, freed) = oneshot::channel::<()>();
        let stop = stop.clone();
        tasks.spawn(async move {
            let ending = end(sessions, &journal, &listener, async |orphan| end_as_any(&identities, &orphan).await);
            stop.run_until_cancelled(ending).await.unwrap_or_default();
            drop(held);
        });
        if has_places {
            // Whether they are free or it takes too long: now others are tried.
            let _outcome = timeout(PLACES_LIMIT, freed).await;
        }
    }
}

/// Ends sessions with `end`, and says how many.
///
/// # Cancel safety
/// Can be dropped at any time: what has not been ended is still in the journal.
pub(crate) async fn end<F>(orphans: Vec<Entry>, journal: &Journal, listener: &Listener, end: impl Fn(Entry) -> F)
where
    F: Future<Output = Result<(), NotEnded>>,
{
    let outcomes = stream::iter(orphans.into_iter().map(async |orphan| match persist(&orphan, &end).await {
        Ok(()) => {
            journal.ended(&orphan.session).await;
            true
        }
        Err(error) => {
            let is_final = error.is_final();
            if is_final {
                journal.ended(&orphan.session).await;
            }
            listener.tell(Event::SessionLeft { session: orphan, error });
            false
        }
    }));
    let ended = outcomes.buffer_unordered(CONCURRENT_CALLS).filter(|ended| std::future::ready(*ended)).count().await;
    if ended > 0 {
        listener.tell(Event::SessionsEnded(ended));
    }
}

async fn persist<F>(orphan: &Entry, end: impl Fn(Entry) -> F) -> Result<(), NotEnded>
where
    F: Future<Output = Result<(), NotEnded>>,
{
    let mut attempt = 1;
    loop {
        match end(orphan.clone()).await {
            Err(error) if attempt < ATTEMPTS && !error.is_final() => {
                tracing::debug!(session = orphan.session, %error, "cannot end the session yet");
                tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(attempt - 1)).await;
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::util::folder::Folder;

    fn entry(session: &str) -> Entry {
        Entry {
            session: session.into(),
            account: Some("123456789012".into()),
            region: "us-east-1".into(),
            target: "i-0abcdef1".into(),
            started: 0,
        }
    }

    /// Ends sessions of which some may not be ended, some never can be, and some only the third time. Returns what
    /// is said, what is left, and the attempts at each.
    async fn ending(sessions: &[&str]) -> (Vec<String>, Vec<String>, BTreeMap<String, u32>) {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(&Folder::open(dir.path()).unwrap()).unwrap();
        for session in sessions {
            journal.started(entry(session)).await;
        }
        let (listener, told) = Listener::kept();
        let attempts = Mutex::new(BTreeMap::new());
        let (journal, orphans) = Journal::open(&Folder::open(dir.path()).unwrap()).unwrap();
        end(orphans, &journal, &listener, |orphan| {
            let mut attempts = attempts.lock().unwrap();
            let attempt = attempts.entry(orphan.session.clone()).or_insert(0);
            *attempt += 1;
            let source = || Arc::new(std::io::Error::other("because"));
            std::future::ready(match orphan.session.split('-').next() {
                Some("denied") => Err(NotEnded::Call(AwsError::AccessDenied {
                    action: "ssm:TerminateSession".into(),
                    resource: orphan.session,
                    source: source(),
                })),
                Some("late") if *attempt == 3 => Ok(()),
                Some("never" | "late") => {
                    Err(NotEnded::Call(AwsError::Unreachable { host: "ssm".into(), source: source() }))
                }
                _ => Ok(()),
            })
        })
        .await;
        let left = Journal::open(&Folder::open(dir.path()).unwrap())
            .unwrap()
            .1
            .into_iter()
            .map(|entry| entry.session)
            .collect();
        let told = std::mem::take(&mut *told.lock().unwrap()).into_iter().map(|event| {
            if let Event::SessionsEnded(number) = event {
                return format!("{number} ended");
            }
            let Event::SessionLeft { session, error } = event else { panic!("{event:?}") };
            format!("{} left: {}", session.session, error.is_final())
        });
        (told.collect(), left, attempts.into_inner().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn tells_how_many_it_has_ended() {
        assert_eq!(ending(&[]).await.0, Vec::<String>::new());
        assert_eq!(ending(&["a"]).await.0, ["1 ended"]);
        let (told, left, _) = ending(&["a", "b", "c", "d", "e", "late-1"]).await;
        assert_eq!((told, left), (vec!["6 ended".to_owned()], vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_ended_is_left_and_what_may_not_be_is_forgotten() {
        let (told, left, attempts) = ending(&["denied-1", "never-1", "good"]).await;
        assert_eq!(left, ["never-1"]);
        assert_eq!((attempts["denied-1"], attempts["never-1"], attempts["good"]), (1, ATTEMPTS, 1));
        assert_eq!(told, ["denied-1 left: true", "never-1 left: false", "1 ended"]);
    }
}
