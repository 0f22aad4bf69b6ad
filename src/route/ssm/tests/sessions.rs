//! More than one session behind a port: reliefs, better targets that come back, and the retirement of both.

use std::time::Duration;

use super::{
    agent::{Destination, Order},
    support::{Call, Local, Stopwatch, World, config, pattern, target, unreachable},
};
use crate::{
    route::PipeEnd,
    tunnel::{Config, State},
};

/// A tunnel with an open connection that waits for lost messages, of which the agent repeats ten a second.
async fn behind(lost: usize) -> (World, Local, Vec<u8>) {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let mut open = world.connect();
    open.write(b"a").await;
    open.expect(b"a").await;
    let data = pattern((lost + 10) << 10);
    world.network.order(Order::RepeatSlowly);
    world.network.order(Order::Lose(lost));
    open.write(&data).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.network.order(Order::Cut);
    world.until(|status| status.resumes == 1).await;
    (world, open, data)
}

#[tokio::test(start_paused = true)]
async fn new_connections_do_not_wait_behind_the_repeats_of_a_resumed_session() {
    let (mut world, mut open, data) = behind(50).await;
    let clock = Stopwatch::start();
    let mut new = world.connect();
    new.write(b"quick").await;
    new.expect(b"quick").await;
    assert!(clock.elapsed() < Duration::from_secs(1), "{:?}", clock.elapsed());
    assert_eq!(world.until(|status| status.links.len() == 2).await.state, State::Active);
    open.expect(&data).await;
    assert!(clock.elapsed() > Duration::from_secs(3), "the repeats take their time: {:?}", clock.elapsed());

    // The old session has caught up: it gets the next connections, and the relief ends with its last one.
    let mut next = world.connect();
    next.write(b"next").await;
    next.expect(b"next").await;
    let status = world.until(|status| status.links[0].open_connections == 2).await;
    assert_eq!(status.links[1].open_connections, 1);
    new.write(b"still here").await;
    new.expect(b"still here").await;
    drop(new);
    let status = world.until(|status| status.links.len() == 1).await;
    world.until_call(&Call::Terminate("1".into())).await;
    assert_eq!((status.restarts, status.resumes, status.connections_total), (0, 1, 3));
    assert_eq!((status.open_connections, status.bytes_received), (2, 1 + (60 << 10) + 5 + 4 + 10));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_relief_a_connection_takes_its_place_behind_the_repeats() {
    let (mut world, mut open, data) = behind(50).await;
    world.network.state(|state| state.refuse_starts(9, unreachable));
    let clock = Stopwatch::start();
    let mut new = world.connect();
    new.write(b"patient").await;
    new.expect(b"patient").await;
    assert!((3..10).contains(&clock.elapsed().as_secs()), "{:?}", clock.elapsed());
    open.expect(&data).await;
    let starts = world.calls().iter().filter(|call| matches!(call, Call::Start(_))).count();
    assert_eq!(starts, 2, "one for the session, one try for a relief");
}

#[tokio::test(start_paused = true)]
async fn a_relief_that_does_not_come_up_is_not_waited_for_for_ever() {
    let (world, mut open, data) = behind(300).await;
    world.network.state(|state| state.open_gate(false));
    let clock = Stopwatch::start();
    let mut new = world.connect();
    new.write(b"patient").await;
    new.expect(b"patient").await;
    // It was given to the session after ten seconds, before it would have been reset.
    assert!((20..40).contains(&clock.elapsed().as_secs()), "{:?}", clock.elapsed());
    open.expect(&data).await;
}

#[tokio::test(start_paused = true)]
async fn connections_move_back_to_the_first_target_when_it_returns() {
    let mut world = World::with(Destination::Echo, config(), 2, "", |network| network.set_absent(&[target(0)]));
    let status = world.until_state(State::Active).await;
    assert_eq!(status.link().unwrap().route, target(1).to_string());
    let mut old = world.connect();
    old.write(b"old").await;
    old.expect(b"old").await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let tries = world.calls().iter().filter(|call| **call == Call::Start(target(0).to_string())).count();
    assert!((5..15).contains(&tries), "{tries} looks in an hour");
    let status = world.status.borrow().clone();
    assert_eq!((status.state, status.links.len(), status.restarts), (State::Active, 1, 0));

    world.network.state(|state| state.set_absent(&[]));
    let status = world.until(|status| status.links.iter().any(|session| session.route == target(0).to_string())).await;
    assert_eq!(status.state, State::Active, "it has worked all the time");
    world.until(|status| status.links.iter().all(|session| session.state == State::Active)).await;
    let mut new = world.connect();
    new.write(b"new").await;
    new.expect(b"new").await;
    old.write(b"old").await;
    old.expect(b"old").await;
    let status = world.until(|status| status.open_connections == 2).await;
    let on = |number| {
        status.links.iter().filter(|s| s.route == target(number).to_string()).map(|s| s.open_connections).sum()
    };
    assert_eq!((on(0), on(1)), (1_usize, 1_usize));
    drop(old);
    let status = world.until(|status| status.links.len() == 1).await;
    assert_eq!((status.link().unwrap().route.clone(), status.restarts), (target(0).to_string(), 0));
    world.until_call(&Call::Terminate("0".into())).await;

    // Now that is the regular one: it is replaced when it ends.
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.network.order(Order::CloseChannel("over"));
    assert_eq!(new.reset().await, PipeEnd::Lost);
    let status = world.until(|status| status.restarts == 1 && status.state == State::Active).await;
    assert_eq!(status.link().unwrap().route, target(0).to_string());
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_better_target_that_leads_nowhere_is_not_used() {
    let mut world = World::with(Destination::Echo, config(), 2, "", |network| network.set_absent(&[target(0)]));
    world.until_state(State::Active).await;
    world.network.state(|state| {
        state.set_absent(&[]);
        state.silence_agents();
    });
    world.until_call(&Call::Start(target(0).to_string())).await;
    let mut local = world.connect();
    local.write(b"hello").await;
    local.expect(b"hello").await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let status = world.status.borrow().clone();
    assert_eq!((status.state, status.link().unwrap().route.clone()), (State::Active, target(1).to_string()));
    assert!(status.last_error.is_some_and(|error| !error.to_string().contains("handshake")), "it is no news");
}

#[tokio::test(start_paused = true)]
async fn open_connections_are_bounded() {
    let settings = Config { max_connections: 4, ..config() };
    let mut world = World::with(Destination::Echo, settings, 1, "", |_| {});
    world.until_state(State::Active).await;
    let mut locals: Vec<_> = (0..4).map(|_| world.connect()).collect();
    for local in &mut locals {
        local.write(b"x").await;
        local.expect(b"x").await;
    }
    assert_eq!(world.connect().reset().await, PipeEnd::Lost, "a fifth is one too many");
    drop(locals.pop());
    world.until(|status| status.open_connections == 3).await;
    let mut fifth = world.connect();
    fifth.write(b"y").await;
    fifth.expect(b"y").await;
}

#[tokio::test(start_paused = true)]
async fn nonsense_from_one_peer_costs_that_session_and_no_other_tunnel() {
    let mut bad = World::new(Destination::Echo);
    let mut good = World::new(Destination::Echo);
    bad.until_state(State::Active).await;
    good.until_state(State::Active).await;
    let mut other = good.connect();
    bad.network.order(Order::Flood(bytes::Bytes::from_static(b"\0\0\0\x74 what is this"), 1000));
    let status = bad.until(|status| status.restarts == 1 && status.state == State::Active).await;
    assert_eq!(
        status.last_error.unwrap().to_string(),
        "the session is over: the message gateway or the agent broke the protocol 257 times: it sent a message that \
         cannot be read: message of 17 bytes is shorter than its header"
    );
    bad.until_call(&Call::Terminate("0".into())).await;
    let mut local = bad.connect();
    local.write(b"x").await;
    local.expect(b"x").await;
    other.write(b"y").await;
    other.expect(b"y").await;
    assert_eq!(good.status.borrow().restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_long_costs_the_transport() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let mut open = world.connect();
    open.write(b"a").await;
    open.expect(b"a").await;
    world.network.order(Order::Flood(vec![0; 5 << 20].into(), 1));
    let status = world.until(|status| status.resumes == 1).await;
    let error = status.last_error.unwrap().to_string();
    assert!(error.contains("broke the WebSocket protocol: Space limit exceeded"), "{error}");
    open.write(b"b").await;
    open.expect(b"b").await;
}

#[tokio::test(start_paused = true)]
async fn new_connections_do_not_wait_for_a_paused_session() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let mut open = world.connect();
    open.write(b"a").await;
    open.expect(b"a").await;
    let first = world.network.clone();
    first.order(Order::Away(true));
    open.write(b"b").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let clock = Stopwatch::start();
    let mut new = world.connect();
    new.write(b"quick").await;
    new.expect(b"quick").await;
    assert!(clock.elapsed() < Duration::from_secs(1), "{:?}", clock.elapsed());
    first.order_session(0, Order::Away(false));
    open.expect(b"b").await;
    assert_eq!(world.status.borrow().restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_waits_for_a_human_is_hurried_when_the_machine_wakes_up() {
    let mut world = World::with(Destination::Echo, config(), 1, "", |network| network.set_absent(&[target(0)]));
    world.until_state(State::Failed).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    world.network.state(|state| state.set_absent(&[]));
    let clock = Stopwatch::start();
    world.common.retry_now();
    world.until_state(State::Active).await;
    assert!(clock.elapsed() < Duration::from_secs(1), "{:?}", clock.elapsed());
}
