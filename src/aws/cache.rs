//! The one cache of credentials: the SDK's clients and whatever signs by itself all ask it.
//!
//! Invariants:
//!
//! * However many callers need credentials, one load is under way at a time, and all get its outcome.
//! * Credentials are renewed [`EARLY`] before they expire. While the old ones last, nobody is refused because
//!   a renewal failed, and only the caller that set it off waits for it.
//! * What a service has called expired is not used again, and what a source gives for the second time is no renewal.
//! * What a service does not know is asked for again, once.
//! * A load lives as long as somebody waits for it: there is no task behind the cache. Whoever wants credentials to
//!   be renewed before somebody needs them polls [`CredentialCache::keep`].
//! * The wall clock decides, set right by what AWS says of the time, and is looked at once a minute: it goes on while a
//!   laptop sleeps, timers do not.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError, future},
};
use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use uuid::Uuid;

use super::{OPERATION_LIMIT, error::AwsError, offset::ClockOffset};
use crate::{random::SplitMix64, util::peer_text::sentence};

/// How long before their end credentials are renewed: time for several attempts.
const EARLY: Duration = Duration::from_secs(300);

/// How long credentials that name no end are used before their source is asked again, as somebody may have
/// rewritten it. The default of the SDK's own cache.
const WITHOUT_END: Duration = Duration::from_secs(15 * 60);

/// Pause after a renewal that failed while the old credentials last.
const RETRY_PAUSE: Duration = Duration::from_secs(30);

/// Longest time between two looks at the wall clock.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// How long a call may be under way that was signed with the credentials before. Only those that have been in
/// use for longer are meant for certain when a service says that credentials have expired.
const IN_FLIGHT: Duration = OPERATION_LIMIT;

/// What chance adds to that pause at most, in milliseconds: programs that lost the same source together are not to
/// ask it together.
const RETRY_JITTER_MS: u64 = 15_000;

/// Limit of a load that somebody cannot do without. Sources that ask the user, such as a credential process,
/// need this much.
const LOAD_LIMIT: Duration = Duration::from_secs(60);

/// Limit of a load while the old credentials last.
const RENEWAL_LIMIT: Duration = Duration::from_secs(20);

/// How long the credentials last, and what keeps them from being renewed.
#[derive(Debug, Clone, Default)]
pub struct CredentialStatus {
    /// When those in hand expire or have expired; `None`: never, or there have not been any.
    pub expires: Option<SystemTime>,
    /// Why they cannot be renewed; `None`: the last attempt was good, or it is not time yet.
    pub failure: Option<RenewalFailure>,
    /// When somebody has to sign in again; `None`: nobody, as far as is known.
    pub sign_in: Option<SignInEnd>,
}

/// The end of a sign-in to IAM Identity Center.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignInEnd {
    /// The profile that is signed in.
    pub profile: String,
    /// By this machine's clock.
    pub at: SystemTime,
}

/// Why credentials cannot be renewed.
#[derive(Debug, Clone)]
pub struct RenewalFailure {
    pub since: SystemTime,
    /// What went wrong the last time.
    pub error: AwsError,
}

/// Where credentials come from; kept with them as a property.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    /// In words.
    pub(super) text: String,
    /// They stay the same as long as the process runs.
    pub(super) fixed: bool,
}

type Outcome = Result<Credentials, AwsError>;
type Loading = BoxFuture<'static, Outcome>;

/// Shares credentials between everybody who signs.
#[derive(Clone)]
pub(super) struct CredentialCache {
    inner: Arc<Inner>,
}

struct Inner {
    load: Box<dyn Fn() -> Loading + Send + Sync>,
    /// Reads the time since the Unix epoch, as AWS has it.
    wall: Box<dyn Fn() -> Duration + Send + Sync>,
    /// What is told of times is by this machine's clock.
    offset: ClockOffset,
    state: Mutex<State>,
    status: watch::Sender<CredentialStatus>,
}

#[derive(Default)]
struct State {
    /// Those that were loaded last.
    current: Option<Current>,
    /// The load that is under way, as long as somebody waits for it.
    loading: Option<WeakShared<Loading>>,
    /// When the last renewal failed.
    failed: Option<Duration>,
    /// The access key that a service has called expired, when, and what it said.
    refused: Option<(String, Duration, AwsError)>,
    /// A digest of the credentials that a service has last said that it does not know.
    doubted: Option<[u8; 32]>,
    /// See [`CredentialStatus`].
    failure: Option<RenewalFailure>,
    /// See [`CredentialStatus`].
    sign_in: Option<SignInEnd>,
}

#[derive(Clone)]
struct Current {
    credentials: Credentials,
    /// When they were loaded; for those with an end, the first time that the source gave them.
    loaded: Duration,
    /// When their access key was loaded first.
    since: Duration,
    /// Nobody is to be given them.
    discarded: bool,
}

impl Current {
    /// Makes it from what has been loaded after `old`.
    fn new(credentials: Credentials, old: Option<&Self>, now: Duration) -> Self {
        let old = old.filter(|old| old.credentials.access_key_id() == credentials.access_key_id());
        let same = old.filter(|old| credentials.expiry().is_some() && old.credentials.expiry() == credentials.expiry());
        Self {
            loaded: same.map_or(now, |old| old.loaded),
            since: old.map_or(now, |old| old.since),
            credentials,
            discarded: false,
        }
    }

    fn origin(&self) -> Option<&Origin> {
        self.credentials.get_property()
    }

    fn end(&self) -> Option<Duration> {
        self.credentials.expiry().map(since_epoch)
    }

    /// How long before the end they are renewed. Those with little to live from the start are not at every call.
    fn early(&self, end: Duration) -> Duration {
        EARLY.min(end.saturating_sub(self.loaded) / 2)
    }

    fn is_valid(&self, now: Duration) -> bool {
        !self.discarded && self.end().is_none_or(|end| now < end)
    }

    fn is_due(&self, now: Duration) -> bool {
        self.end().map_or(now.abs_diff(self.loaded) >= WITHOUT_END, |end| now + self.early(end) >= end)
    }

    /// Whether the source has given the same again where others were due.
    fn is_repeated(&self, now: Duration) -> bool {
        self.loaded != now && self.is_due(now)
    }

    /// Whether it is too late to hope for others: some sources have them only a few minutes before the end.
    fn is_late(&self, now: Duration) -> bool {
        self.end().is_some_and(|end| now + self.early(end) / 5 * 4 >= end)
    }

    /// Whether they have an end and there will never be others.
    fn is_fixed(&self) -> bool {
        self.end().is_some() && self.origin().is_some_and(|origin| origin.fixed)
    }

    /// Time until they are due; zero if they are.
    fn due_in(&self, now: Duration) -> Duration {
        match self.end() {
            Some(end) => end.saturating_sub(self.early(end)).saturating_sub(now),
            None => WITHOUT_END.saturating_sub(now.abs_diff(self.loaded)),
        }
    }
}

impl State {
    /// Takes note of the outcome of a load, and returns what those who wait for it get.
    fn take(&mut self, outcome: Outcome, now: Duration) -> Outcome {
        self.loading = None;
        let credentials = match outcome {
            Ok(credentials) => credentials,
            Err(error) => {
                self.fail(error.clone(), now);
                return Err(error);
            }
        };
        if let Some((key, _, error)) = &self.refused
            && key == credentials.access_key_id()
        {
            let error = error.clone();
            self.fail(error.clone(), now);
            return Err(error);
        }
        self.refused = None;
        let current = Current::new(credentials.clone(), self.current.as_ref(), now);
        let error =
            AwsError::NotRenewed { origin: current.origin().map(|origin| origin.text.clone()).unwrap_or_default() };
        let (is_repeated, is_valid) = (current.is_repeated(now), current.is_valid(now));
        let is_final = current.is_fixed() || (is_repeated && current.is_late(now));
        self.current = Some(current);
        self.failed = is_repeated.then_some(now);
        if is_final {
            self.fail(error.clone(), now);
        } else if !is_repeated {
            self.failure = None;
        }
        if is_repeated && !is_valid { Err(error) } else { Ok(credentials) }
    }

    fn fail(&mut self, error: AwsError, now: Duration) {
        self.failed = Some(now);
        let since = self.failure.as_ref().map_or(system_time(now), |failure| failure.since);
        self.failure = Some(RenewalFailure { since, error });
    }

    fn status(&self) -> CredentialStatus {
        let end = match (&self.refused, &self.current) {
            (Some((_, at, _)), _) => Some(*at),
            (None, Some(current)) => current.end(),
            (None, None) => None,
        };
        let (failure, sign_in) = (self.failure.clone(), self.sign_in.clone());
        CredentialStatus { expires: end.map(system_time), failure, sign_in }
    }
}

impl std::fmt::Debug for CredentialCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CredentialCache").finish_non_exhaustive()
    }
}

impl CredentialCache {
    /// Makes an empty cache around a source of credentials.
    pub(super) fn new<F>(load: impl Fn() -> F + Send + Sync + 'static, offset: ClockOffset) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let wall = offset.clone();
        Self::with_clock(load, move || wall.now(), offset)
    }

    fn with_clock<F>(
        load: impl Fn() -> F + Send + Sync + 'static,
        wall: impl Fn() -> Duration + Send + Sync + 'static,
        offset: ClockOffset,
    ) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let inner = Inner {
            load: Box::new(move || load().boxed()),
            wall: Box::new(wall),
            offset,
            state: Mutex::default(),
            status: watch::Sender::default(),
        };
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
                tracing::info!(
                    error = %sentence(&error),
                    left_seconds = left,
                    "cannot renew the AWS credentials: using the old ones until they expire"
                );
                Ok(old.credentials)
            }
            (outcome, _) => outcome,
        }
    }

    /// Renews credentials ahead of time, whether anybody asks for them or not, and retries what fails. Never ends.
    ///
    /// # Cancel safety
    /// Can be dropped at any time and called again.
    pub(super) async fn keep(&self) {
        let mut random = SplitMix64::new(Uuid::new_v4().as_u64_pair().0);
        loop {
            // The outcome is in the status.
            let _outcome = self.get().await;
            let pause = {
                let now = (self.inner.wall)();
                match &self.inner.state().current {
                    Some(current) if current.is_valid(now) && !current.is_due(now) => {
                        current.due_in(now).min(LOOK_INTERVAL)
                    }
                    Some(_) | None => RETRY_PAUSE + Duration::from_millis(random.next_u64() % RETRY_JITTER_MS),
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Tells how long the credentials last, now and later.
    pub(super) fn status(&self) -> watch::Receiver<CredentialStatus> {
        self.inner.status.subscribe()
    }

    /// Forgets the credentials: a service has said that they have expired.
    pub(super) fn discard(&self, error: &AwsError) {
        let mut state = self.inner.state();
        let now = (self.inner.wall)();
        let Some(current) = state.current.as_mut() else { return };
        current.discarded = true;
        if now.abs_diff(current.since) >= IN_FLIGHT {
            let key = current.credentials.access_key_id().to_owned();
            state.refused = Some((key, now, error.clone()));
            state.fail(error.clone(), now);
            self.inner.tell(&state);
        }
    }

    /// Takes note that somebody is signed in, until `end` if that is known, and asks for credentials that could not be had
    /// before. Returns whether they still cannot be had.
    pub(super) async fn signed_in(&self, end: Option<SignInEnd>) -> bool {
        let is_due = {
            let mut state = self.inner.state();
            let now = (self.inner.wall)();
            let was_out = state.failure.as_ref().is_some_and(|failure| failure.error.wants_sign_in());
            let is_due = state.current.as_ref().is_none_or(|current| !current.is_valid(now) || current.is_due(now));
            if !was_out && state.sign_in == end {
                return false;
            }
            state.sign_in = end;
            if was_out {
                state.failed = None;
                if !is_due {
                    state.failure = None;
                }
            }
            self.inner.tell(&state);
            was_out && is_due
        };
        is_due && self.get().await.is_err_and(|error| error.wants_sign_in())
    }

    /// Takes note that somebody has to sign in before credentials can be renewed.
    pub(super) fn signed_out(&self, error: AwsError) {
        let mut state = self.inner.state();
        state.sign_in = None;
        if state.failure.as_ref().is_none_or(|failure| !failure.error.wants_sign_in()) {
            let since =
                state.failure.as_ref().map_or_else(|| system_time((self.inner.wall)()), |failure| failure.since);
            state.failure = Some(RenewalFailure { since, error });
        }
        self.inner.tell(&state);
    }

    /// Forgets the credentials, once for each set: a service does not know them, and somebody may have put others in their
    /// place. Where the source gives the same again they are used as before.
    pub(super) fn doubt(&self) {
        let mut state = self.inner.state();
        let State { current: Some(current), doubted, .. } = &mut *state else { return };
        let keys = keys(&current.credentials);
        if doubted.as_ref() != Some(&keys) {
            tracing::info!("AWS does not recognise the credentials: asking their source again");
            current.discarded = true;
            *doubted = Some(keys);
        }
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
            let outcome = state.take(outcome, now);
            inner.tell(&state);
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

    /// Tells whoever watches, with times by this machine's clock.
    fn tell(&self, state: &State) {
        let CredentialStatus { expires, failure, sign_in } = state.status();
        let here = |time| self.offset.here(time);
        let failure = failure.map(|failure| RenewalFailure { since: here(failure.since), ..failure });
        self.status.send_replace(CredentialStatus { expires: expires.map(here), failure, sign_in });
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

/// Returns a digest of all that credentials are made of.
fn keys(credentials: &Credentials) -> [u8; 32] {
    let parts =
        [credentials.access_key_id(), credentials.secret_access_key(), credentials.session_token().unwrap_or_default()];
    Sha256::digest(parts.join("\n")).into()
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn system_time(wall: Duration) -> SystemTime {
    SystemTime::UNIX_EPOCH + wall
}

#[cfg(test)]
mod tests;
