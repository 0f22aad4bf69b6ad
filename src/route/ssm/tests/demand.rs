//! Tunnels that have a session only while somebody uses them.

use std::time::Duration;

use super::{
    agent::{Destination, Order},
    support::{Call, Stopwatch, World, config, pattern, target},
};
use crate::tunnel::{Config, Presence, State};

const IDLE: Duration = Duration::from_secs(120);

fn on_demand(proved: bool) -> Config {
    Config { presence: Presence::OnDemand { idle: IDLE, proved }, ..config() }
}

fn world(proved: bool, routes: usize) -> World {
    World::with(Destination::Echo, on_demand(proved), routes, "", |_| {})
}

/// How many sessions have been asked for.
fn starts(world: &mut World) -> usize {
    world.calls().iter().filter(|call| matches!(call, Call::Start(_))).count()
}

#[tokio::test(start_paused = true)]
async fn the_first_connection_has_a_session_started_and_waits_for_it() {
    let mut world = world(false, 1);
    let status = world.until_state(State::Idle).await;
    assert!(status.is_ready() && status.ready_at.is_some() && status.links.is_empty());
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(starts(&mut world), 0, "nobody has asked for one");

    let clock = Stopwatch::start();
    let mut first = world.connect();
    first.write(b"first").await;
    first.expect(b"first").await;
    assert!(clock.elapsed() < Duration::from_secs(1), "{:?}", clock.elapsed());
    world.until_state(State::Active).await;
    // It is kept however long it says nothing.
    tokio::time::sleep(3 * IDLE).await;
    first.write(b"still there").await;
    first.expect(b"still there").await;
    let status = world.status.borrow().clone();
    assert_eq!((status.state, status.restarts, status.open_connections), (State::Active, 0, 1));
    assert_eq!(starts(&mut world), 1);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_when_nobody_has_used_it_for_a_while_and_not_before() {
    let mut world = world(true, 1);
    world.until_state(State::Active).await;
    // Commands in a loop, with pauses that are a little shorter than the time.
    for _ in 0..5 {
        tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
        let mut command = world.connect();
        command.write(b"get pods").await;
        command.expect(b"get pods").await;
    }
    assert_eq!(starts(&mut world), 1, "nothing has flapped");
    let clock = Stopwatch::start();
    let status = world.until_state(State::Idle).await;
    // A destination that has more to say has half a minute for it, see `half_close_timeout`.
    assert!((IDLE.as_secs()..IDLE.as_secs() + 35).contains(&clock.elapsed().as_secs()), "{:?}", clock.elapsed());
    world.until_call(&Call::Terminate("0".into())).await;
    assert_eq!((status.restarts, status.connections_total), (0, 5));

    let mut next = world.connect();
    next.write(b"again").await;
    next.expect(b"again").await;
    let status = world.until_state(State::Active).await;
    assert_eq!((status.restarts, status.open_connections), (0, 1));
    assert_eq!(status.links.len(), 1, "{:?}", status.links);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn many_that_find_it_idle_share_one_session() {
    let mut world = world(false, 1);
    world.until_state(State::Idle).await;
    let mut all: Vec<_> = (0..50).map(|_| world.connect()).collect();
    let data = pattern(1000);
    for local in &mut all {
        local.write(&data).await;
    }
    for local in &mut all {
        local.expect(&data).await;
    }
    assert_eq!(starts(&mut world), 1);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_is_proved_goes_on_until_it_works() {
    let refuse = |network: &mut super::support::NetworkState| network.set_absent(&[target(0)]);
    let mut world = World::with(Destination::Echo, on_demand(true), 1, "", refuse);
    world.until(|status| status.last_error.is_some()).await;
    tokio::time::sleep(2 * IDLE).await;
    assert!(!world.status.borrow().is_ready(), "{:?}", world.status.borrow().state);
    world.network.state(|state| state.set_absent(&[]));
    world.until_state(State::Active).await;
    world.until_state(State::Idle).await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_had_when_it_is_needed_is_told_and_given_up_when_nobody_waits() {
    let mut world = world(false, 1);
    world.until_state(State::Idle).await;
    world.network.state(|state| state.set_absent(&[target(0)]));
    let waiting = world.connect();
    let status = world.until(|status| status.last_error.is_some() && !status.is_ready()).await;
    assert!(matches!(status.state, State::Reconnecting | State::Failed), "{}", status.state);
    // It is held as long as any other connection, and then reset.
    waiting.reset().await;
    world.until_state(State::Idle).await;
    let before = starts(&mut world);
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(starts(&mut world), 0, "after {before} in all");

    world.network.state(|state| state.set_absent(&[]));
    let mut next = world.connect();
    next.write(b"works").await;
    next.expect(b"works").await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_lost_with_its_session_does_not_keep_the_next_from_coming() {
    let mut world = world(false, 1);
    world.until_state(State::Idle).await;
    let mut first = world.connect();
    first.write(b"a").await;
    first.expect(b"a").await;
    world.network.order(Order::Cut);
    world.until(|status| status.resumes == 1).await;
    first.write(b"b").await;
    first.expect(b"b").await;
    drop(first);
    let status = world.until_state(State::Idle).await;
    assert_eq!((status.resumes, status.open_connections), (1, 0));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_finds_nothing_to_end_where_nothing_was_started() {
    let mut world = world(false, 2);
    world.until_state(State::Idle).await;
    let clock = Stopwatch::start();
    world.stop().await;
    assert!(clock.elapsed() < Duration::from_secs(1), "{:?}", clock.elapsed());
    assert!(world.calls().is_empty());
}
