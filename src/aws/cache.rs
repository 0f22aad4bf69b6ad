//! The one cache of credentials: the SDK's clients and whatever signs by itself all ask it.
//!
//! Invariants:
//!
//! * However many callers need credentials, one load is under way at a time, and all get its outcome.
//! * Credentials are renewed [`EARLY`] before they expire. While the old ones last, nobody is refused because
//!   a renewal failed, and only the caller that set it off waits for it.
//! * A load lives as long as somebody waits for it: there is no task behind the cache.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError, future},
};
use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared};

use super::error::AwsError;
use crate::clock;

/// How long before their end credentials are renewed: time for several attempts.
const EARLY: Duration = Duration::from_secs(300);

/// How long credentials that name no end are used before their source is asked again, as somebody may have
/// rewritten it. The default of the SDK's own cache.
const WITHOUT_END: Duration = Duration::from_secs(15 * 60);

/// Pause after a renewal that failed while the old credentials last.
const RETRY_PAUSE: Duration = Duration::from_secs(30);

/// Limit of a load that somebody cannot do without. Sources that ask the user, such as a credential process,
/// need this much.
const LOAD_LIMIT: Duration = Duration::from_secs(60);

/// Limit of a load while the old credentials last.
const RENEWAL_LIMIT: Duration = Duration::from_secs(20);

type Outcome = Result<Credentials, AwsError>;
type Loading = BoxFuture<'static, Outcome>;

/// Shares credentials between everybody who signs.
#[derive(Clone)]
pub(super) struct CredentialCache {
    inner: Arc<Inner>,
}

struct Inner {
    load: Box<dyn Fn() -> Loading + Send + Sync>,
    /// Reads the time since the Unix epoch.
    wall: Box<dyn Fn() -> Duration + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    current: Option<Current>,
    /// The load that is under way, as long as somebody waits for it.
    loading: Option<WeakShared<Loading>>,
    /// When the last renewal failed.
    failed: Option<Duration>,
}

#[derive(Clone)]
struct Current {
    credentials: Credentials,
    loaded: Duration,
}

impl Current {
    fn end(&self) -> Option<Duration> {
        let end = self.credentials.expiry()?;
        Some(end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    fn is_valid(&self, now: Duration) -> bool {
        self.end().is_none_or(|end| now < end)
    }

    fn is_due(&self, now: Duration) -> bool {
        // Credentials with less than the early time to live from the start are not renewed at every call.
        self.end().map_or(now.abs_diff(self.loaded) >= WITHOUT_END, |end| {
            let early = EARLY.min(end.saturating_sub(self.loaded) / 2);
            now + early >= end
        })
    }
}

impl std::fmt::Debug for CredentialCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CredentialCache").finish_non_exhaustive()
    }
}

impl CredentialCache {
    /// Makes an empty cache around a source of credentials.
    pub(super) fn new<F>(load: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        Self::with_clock(load, clock::wall)
    }

    fn with_clock<F>(
        load: impl Fn() -> F + Send + Sync + 'static,
        wall: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let inner = Inner { load: Box::new(move || load().boxed()), wall: Box::new(wall), state: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Returns credentials that are valid now, and for some minutes more if their source allows.
    ///
    /// # Errors
    /// What the source says, if there are none that are still valid.
    ///
    /// # Cancel safety
    /// Dropping the future stops the load, unless somebody else waits for it.
    pub(super) async fn get(&self) -> Outcome {
        let (loading, old) = {
            let mut state = self.inner.state();
            let now = (self.inner.wall)();
            let old = state.current.clone().filter(|current| current.is_valid(now));
            let under_way = state.loading.as_ref().and_then(WeakShared::upgrade);
            match (old, under_way) {
                (Some(old), _) if !old.is_due(now) => return Ok(old.credentials),
                (Some(old), Some(_)) => return Ok(old.credentials),
                (Some(old), None) if state.failed.is_some_and(|failed| now.abs_diff(failed) < RETRY_PAUSE) => {
                    return Ok(old.credentials);
                }
                (Some(old), None) => (self.start(&mut state, RENEWAL_LIMIT), Some(old)),
                (None, Some(loading)) => (loading, None),
                (None, None) => (self.start(&mut state, LOAD_LIMIT), None),
            }
        };
        match (loading.await, old) {
            (Err(error), Some(old)) if old.is_valid((self.inner.wall)()) => {
                let left = old.end().map(|end| end.saturating_sub((self.inner.wall)()).as_secs());
                tracing::warn!(
                    error = %super::error::chain_text(&error),
                    left_seconds = left,
                    "AWS credentials could not be renewed: the old ones are used while they last"
                );
                Ok(old.credentials)
            }
            (outcome, _) => outcome,
        }
    }

    /// Forgets the credentials: a service has said that they are no longer valid.
    pub(super) fn discard(&self) {
        self.inner.state().current = None;
    }

    fn start(&self, state: &mut State, limit: Duration) -> Shared<Loading> {
        let inner = Arc::clone(&self.inner);
        let loading = async move {
            let outcome = match tokio::time::timeout(limit, (inner.load)()).await {
                Ok(outcome) => outcome,
                Err(_) => Err(AwsError::CredentialTimeout { seconds: limit.as_secs() }),
            };
            let now = (inner.wall)();
            let mut state = inner.state();
            state.loading = None;
            match &outcome {
                Ok(credentials) => {
                    state.current = Some(Current { credentials: credentials.clone(), loaded: now });
                    state.failed = None;
                }
                Err(_) => state.failed = Some(now),
            }
            drop(state);
            outcome
        };
        let loading = loading.boxed().shared();
        state.loading = loading.downgrade();
        loading
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProvideCredentials for CredentialCache {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async move { self.get().await.map_err(CredentialsError::provider_error) })
    }
}

#[cfg(test)]
mod tests;
