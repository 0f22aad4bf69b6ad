//! The cache on paused time.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::time::{advance, sleep};

use super::*;
use crate::clock::Clock;

const START: Duration = Duration::from_secs(1_000_000);

fn credentials(key: u32, end: Option<Duration>) -> Credentials {
    let mut builder = Credentials::builder().access_key_id(key.to_string()).secret_access_key("s").provider_name("t");
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
            if load >= fail { Err(AwsError::NoRegion) } else { Ok(credentials(load, life.map(|life| wall() + life))) }
        }
    };
    (CredentialCache::with_clock(load, wall, ClockOffset::default()), loads)
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
    cache.discard(&AwsError::NoRegion);
    assert!(tokio::time::timeout(Duration::from_millis(10), cache.get()).await.is_err());
    assert_eq!(cache.get().await.unwrap().access_key_id(), "3");
    assert_eq!(loads.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn a_load_cannot_hang() {
    let cache = CredentialCache::new(std::future::pending::<Outcome>, ClockOffset::default());
    assert!(matches!(cache.get().await, Err(AwsError::CredentialTimeout { seconds: 60 })));
}

/// A source whose mind can be changed, with a wall clock that can be set.
#[derive(Clone)]
struct Source {
    clock: Clock,
    inner: Arc<Mutex<Script>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Next {
    /// Other credentials, for an hour.
    Renew,
    /// The same as the last time.
    Repeat,
    Fail,
}

struct Script {
    next: Next,
    fixed: bool,
    /// How far the wall clock is ahead of the monotonic one.
    ahead: Duration,
    /// When each load began, by the monotonic clock.
    loads: Vec<Duration>,
    key: u32,
    end: Duration,
}

impl Source {
    fn start() -> (Self, CredentialCache) {
        let script = Script {
            next: Next::Renew,
            fixed: false,
            ahead: Duration::ZERO,
            loads: Vec::new(),
            key: 0,
            end: Duration::ZERO,
        };
        let source = Self { clock: Clock::start(), inner: Arc::new(Mutex::new(script)) };
        let (loads, wall) = (source.clone(), source.clone());
        let load = move || {
            let outcome = loads.load();
            async move { outcome }
        };
        (source, CredentialCache::with_clock(load, move || wall.wall(), ClockOffset::default()))
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.inner.lock().unwrap()
    }

    fn wall(&self) -> Duration {
        START + self.clock.now().mono + self.script().ahead
    }

    fn load(&self) -> Outcome {
        let wall = self.wall();
        let mut script = self.script();
        script.loads.push(self.clock.now().mono);
        match script.next {
            Next::Renew => (script.key, script.end) = (script.key + 1, wall + Duration::from_secs(3600)),
            Next::Repeat => {}
            Next::Fail => return Err(AwsError::NoRegion),
        }
        let mut credentials = credentials(script.key, Some(script.end));
        credentials.set_property(Origin { text: "a test".to_owned(), fixed: script.fixed });
        Ok(credentials)
    }

    fn set(&self, next: Next) {
        self.script().next = next;
    }

    fn loads(&self) -> Vec<Duration> {
        self.script().loads.clone()
    }
}

/// Lets time pass with a keeper at work.
async fn keep_for(cache: &CredentialCache, seconds: u64) {
    let kept = tokio::time::timeout(Duration::from_secs(seconds), cache.keep()).await;
    assert!(kept.is_err(), "a keeper does not end");
}

fn failure(cache: &CredentialCache) -> Option<String> {
    cache.status().borrow().failure.as_ref().map(|failure| failure.error.to_string())
}

#[tokio::test(start_paused = true)]
async fn a_keeper_renews_what_nobody_asks_for() {
    let (source, cache) = Source::start();
    keep_for(&cache, 3599).await;
    let loads: Vec<_> = source.loads().iter().map(Duration::as_secs).collect();
    assert_eq!(loads, [0, 3300]);
    assert!(failure(&cache).is_none());
    let expires = cache.status().borrow().expires.unwrap();
    assert_eq!(expires, SystemTime::UNIX_EPOCH + START + Duration::from_secs(6900));
    keep_for(&cache, 7200).await;
    assert_eq!(source.loads().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_keeper_notices_that_the_machine_has_slept() {
    let (source, cache) = Source::start();
    keep_for(&cache, 100).await;
    let keep = cache.keep();
    tokio::pin!(keep);
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut keep).await.is_err());
    source.script().ahead = Duration::from_secs(8 * 3600);
    assert!(tokio::time::timeout(Duration::from_secs(61), &mut keep).await.is_err());
    assert_eq!(source.loads().len(), 2);
    assert_eq!(key(&cache).await, "2");
}

#[tokio::test(start_paused = true)]
async fn a_keeper_retries_until_it_works_again() {
    let (source, cache) = Source::start();
    let keep = cache.keep();
    tokio::pin!(keep);
    let mut pass = async |seconds| {
        let kept = tokio::time::timeout(Duration::from_secs(seconds), &mut keep).await;
        assert!(kept.is_err(), "a keeper does not end");
    };
    pass(3000).await;
    source.set(Next::Fail);
    pass(450).await;
    let status = cache.status().borrow().clone();
    assert_eq!(status.expires, Some(SystemTime::UNIX_EPOCH + START + Duration::from_secs(3600)));
    let failed = status.failure.expect("it fails");
    assert!(matches!(failed.error, AwsError::NoRegion));
    assert_eq!(failed.since, SystemTime::UNIX_EPOCH + START + Duration::from_secs(3300));

    pass(600).await;
    let pauses: Vec<_> = source.loads().windows(2).skip(1).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert!(pauses.len() > 10 && pauses.iter().all(|pause| (30_000..=45_000).contains(pause)), "{pauses:?}");
    assert!(pauses.iter().any(|pause| *pause != pauses[0]), "they are left to chance: {pauses:?}");
    assert!(matches!(cache.get().await, Err(AwsError::NoRegion)), "they have expired");
    assert_eq!(cache.status().borrow().failure.as_ref().unwrap().since, failed.since);

    source.set(Next::Renew);
    pass(46).await;
    assert!(failure(&cache).is_none());
    assert_eq!(key(&cache).await, "2");
}

#[tokio::test(start_paused = true)]
async fn the_same_credentials_again_are_no_renewal() {
    let (source, cache) = Source::start();
    keep_for(&cache, 100).await;
    source.set(Next::Repeat);
    keep_for(&cache, 3255).await;
    assert!(source.loads().len() > 1 && failure(&cache).is_none(), "there is time for newer ones");
    keep_for(&cache, 60).await;
    assert_eq!(failure(&cache).unwrap(), "got no newer AWS credentials from a test");
    assert_eq!(key(&cache).await, "1");
    let loads = source.loads().len();
    assert_eq!(key(&cache).await, "1");
    assert_eq!(source.loads().len(), loads, "not at every call");
    keep_for(&cache, 300).await;
    assert!(matches!(cache.get().await, Err(AwsError::NotRenewed { .. })));
    source.set(Next::Renew);
    assert_eq!(key(&cache).await, "2");
    assert!(failure(&cache).is_none());
}

#[tokio::test(start_paused = true)]
async fn that_keys_cannot_be_renewed_is_known_from_the_start() {
    let (source, cache) = Source::start();
    source.script().fixed = true;
    assert_eq!(key(&cache).await, "1");
    assert_eq!(failure(&cache).unwrap(), "got no newer AWS credentials from a test");
}

#[tokio::test(start_paused = true)]
async fn what_a_service_calls_expired_is_not_used_again() {
    let (source, cache) = Source::start();
    let refusal = AwsError::NotRenewed { origin: "the service".to_owned() };
    assert_eq!(key(&cache).await, "1");
    source.set(Next::Repeat);
    // The refusal may be meant for those before.
    cache.discard(&refusal);
    assert_eq!(key(&cache).await, "1");
    assert_eq!((source.loads().len(), failure(&cache)), (2, None));

    advance(IN_FLIGHT).await;
    cache.discard(&refusal);
    assert!(failure(&cache).is_some(), "it is known at once");
    let outcome = cache.get().await;
    assert!(matches!(outcome, Err(AwsError::NotRenewed { origin }) if origin == "the service"));
    let status = cache.status().borrow().clone();
    assert_eq!(status.expires, Some(SystemTime::UNIX_EPOCH + START + IN_FLIGHT));
    source.set(Next::Renew);
    assert_eq!(key(&cache).await, "2");
    assert!(failure(&cache).is_none());
}
