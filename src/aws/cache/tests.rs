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
