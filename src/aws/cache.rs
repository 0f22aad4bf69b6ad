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
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::{advance, sleep};

    use super::*;
    use crate::clock::Clock;

    const START: Duration = Duration::from_secs(1_000_000);

    fn credentials(key: u32, end: Option<Duration>) -> Credentials {
        let mut builder =
            Credentials::builder().access_key_id(key.to_string()).secret_access_key("s").provider_name("t");
        builder.set_expiry(end.map(|end| SystemTime::UNIX_EPOCH + end));
        builder.build()
    }

    /// A source that numbers what it gives, takes a second, and fails from the `fail`th load on.
    fn source(life: Option<Duration>, fail: u32) -> (CredentialCache, Arc<AtomicU32>) {
        let loads = Arc::new(AtomicU32::new(0));
        let clock = Clock::start();
        let wall = move || START + clock.now().mono;
        let count = Arc::clone(&loads);
        let load = move || {
            let load = count.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                sleep(Duration::from_secs(1)).await;
                if load >= fail {
                    Err(AwsError::NoRegion)
                } else {
                    Ok(credentials(load, life.map(|life| wall() + life)))
                }
            }
        };
        (CredentialCache::with_clock(load, wall), loads)
    }

    async fn key(cache: &CredentialCache) -> String {
        cache.get().await.unwrap().access_key_id().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn many_callers_share_one_load() {
        let (cache, loads) = source(Some(Duration::from_secs(3600)), u32::MAX);
        let keys = futures_util::future::join_all((0..50).map(|_| key(&cache))).await;
        assert_eq!(keys, vec!["1"; 50]);
        assert_eq!(key(&cache).await, "1");
        assert_eq!(loads.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn renews_five_minutes_early() {
        let (cache, loads) = source(Some(Duration::from_secs(3600)), u32::MAX);
        assert_eq!(key(&cache).await, "1");
        advance(Duration::from_secs(3299)).await;
        assert_eq!(key(&cache).await, "1");
        advance(Duration::from_secs(1)).await;
        // One caller renews, the others take the old ones without waiting.
        let keys = futures_util::future::join_all((0..3).map(|_| key(&cache))).await;
        assert_eq!(keys, ["2", "1", "1"]);
        assert_eq!(loads.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_old_credentials_while_they_last() {
        let (cache, loads) = source(Some(Duration::from_secs(3600)), 2);
        assert_eq!(key(&cache).await, "1");
        advance(Duration::from_secs(3300)).await;
        assert_eq!(key(&cache).await, "1");
        assert_eq!(loads.load(Ordering::SeqCst), 2);
        // Not again at once.
        assert_eq!(key(&cache).await, "1");
        assert_eq!(loads.load(Ordering::SeqCst), 2);
        advance(Duration::from_secs(31)).await;
        assert_eq!(key(&cache).await, "1");
        assert_eq!(loads.load(Ordering::SeqCst), 3);
        advance(Duration::from_secs(300)).await;
        assert!(matches!(cache.get().await, Err(AwsError::NoRegion)));
        assert!(matches!(cache.get().await, Err(AwsError::NoRegion)));
        assert_eq!(loads.load(Ordering::SeqCst), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn asks_again_for_credentials_without_end() {
        let (cache, _) = source(None, 3);
        assert_eq!(key(&cache).await, "1");
        advance(WITHOUT_END - Duration::from_secs(1)).await;
        assert_eq!(key(&cache).await, "1");
        advance(Duration::from_secs(1)).await;
        assert_eq!(key(&cache).await, "2");
        advance(WITHOUT_END).await;
        assert_eq!(key(&cache).await, "2");
    }

    #[tokio::test(start_paused = true)]
    async fn short_lived_credentials_are_used_for_half_their_life() {
        let (cache, loads) = source(Some(Duration::from_secs(60)), u32::MAX);
        assert_eq!(key(&cache).await, "1");
        assert_eq!(key(&cache).await, "1");
        advance(Duration::from_secs(30)).await;
        assert_eq!(key(&cache).await, "2");
        assert_eq!(loads.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn all_waiters_get_the_same_failure() {
        let (cache, loads) = source(None, 1);
        let outcomes = futures_util::future::join_all((0..9).map(|_| cache.get())).await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(AwsError::NoRegion))));
        assert_eq!(loads.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_leaves_does_not_stop_the_others() {
        let (cache, loads) = source(None, u32::MAX);
        let short = tokio::time::timeout(Duration::from_millis(10), cache.get());
        let (short, key) = tokio::join!(short, key(&cache));
        assert!(short.is_err());
        assert_eq!(key, "1");
        // A load that nobody waits for is given up, and the next caller starts another.
        cache.discard();
        assert!(tokio::time::timeout(Duration::from_millis(10), cache.get()).await.is_err());
        assert_eq!(cache.get().await.unwrap().access_key_id(), "3");
        assert_eq!(loads.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_cannot_hang() {
        let cache = CredentialCache::new(std::future::pending::<Outcome>);
        assert!(matches!(cache.get().await, Err(AwsError::CredentialTimeout { seconds: 60 })));
    }
}
