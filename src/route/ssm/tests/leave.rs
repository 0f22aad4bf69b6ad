//! Tunnels whose sessions take somebody's leave.

use std::time::Duration;

use super::{
    agent::{Destination, Order},
    support::{Call, Stopwatch, World, config, target},
};
use crate::{
    route::ssm::{DialError, Unapproved},
    tunnel::State,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn starts(world: &mut World) -> usize {
    world.calls().iter().filter(|call| matches!(call, Call::Start(_))).count()
}

#[tokio::test(start_paused = true)]
async fn leave_is_waited_for_as_long_as_it_takes() {
    let mut world = World::with(Destination::Echo, config(), 1, "", |network| network.give_leave(false));
    let is_asked = |status: &crate::tunnel::TunnelStatus| status.link().is_some_and(|link| link.awaits_person);
    let status = world.until(is_asked).await;
    assert_eq!(status.state, State::Starting);
    assert_eq!(status.link().unwrap().progress.as_deref(), Some("waiting for leave on `i-00000000`"));
    tokio::time::sleep(2 * DAY).await;
    assert!(is_asked(&world.status.borrow()));
    assert_eq!(starts(&mut world), 0);
    world.network.state(|network| network.give_leave(true));
    let status = world.until_state(State::Active).await;
    assert!(!is_asked(&status) && status.link().unwrap().progress.is_none());
    assert_eq!((starts(&mut world), status.restarts), (1, 0));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_leave() {
    let mut world = World::with(Destination::Echo, config(), 1, "", |network| network.give_leave(false));
    world.until(|status| status.link().is_some_and(|link| link.awaits_person)).await;
    let clock = Stopwatch::start();
    world.stop().await;
    assert!(clock.elapsed() < Duration::from_millis(10), "{:?}", clock.elapsed());
    assert_eq!(starts(&mut world), 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_lost_waits_for_leave_again() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    world.network.state(|network| network.give_leave(false));
    world.network.order(Order::CloseChannel("ended"));
    let status = world.until(|status| status.link().is_some_and(|link| link.awaits_person)).await;
    assert_eq!(status.state, State::Reconnecting);
    world.network.state(|network| network.give_leave(true));
    world.until_state(State::Active).await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_leave_nothing_is_started_and_a_human_is_told() {
    let rejected = || DialError::Unapproved(Unapproved::Rejected { request: "oi-1".into(), target: target(0) });
    let mut world = World::with(Destination::Echo, config(), 1, "", |network| {
        network.refuse_leave = Some(Box::new(rejected));
    });
    let status = world.until_state(State::Failed).await;
    let error = status.last_error.unwrap();
    assert_eq!(error.to_string(), "access request `oi-1` for `i-00000000` was rejected");
    assert!(error.fault.hints.iter().any(|hint| hint.contains("aws ssm get-ops-item --ops-item-id oi-1")));
    tokio::time::sleep(DAY).await;
    assert_eq!(starts(&mut world), 0);
    // Another bastion may be approved.
    world.network.state(|network| network.refuse_leave = None);
    world.until_state(State::Active).await;
    world.stop().await;
}
