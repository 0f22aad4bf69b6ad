//! Tunnels to hosts that nobody probes.

use std::time::Duration;

use super::{
    agent::{Destination, Order},
    support::{Call, Stopwatch, World, config, target},
};
use crate::{
    route::{Class, ProbeError},
    tunnel::{Config, Readiness, State},
};

/// How long an agent may be gone before it is found.
const FOUND_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_gone_is_found_within_20_seconds_though_nothing_is_sent() {
    for rest in [0, 5, 60, 3601] {
        let mut world = World::to_host(Destination::Echo, config(), 2);
        world.until_state(State::Active).await;
        world.until_call(&Call::Start(target(0).to_string())).await;
        tokio::time::sleep(Duration::from_secs(rest)).await;
        assert_eq!(world.calls(), [], "one that is there is left alone");
        world.network.order(Order::Dead);
        world.network.state(|state| state.set_absent(&[target(0)]));
        let clock = Stopwatch::start();
        world.until_call(&Call::Start(target(0).to_string())).await;
        assert!(clock.elapsed() <= FOUND_WITHIN, "{:?} after {rest} s", clock.elapsed());
        // Its successor is the next bastion.
        let status = world.until(|status| status.restarts == 1 && status.state == State::Active).await;
        assert_eq!(status.links[0].route, target(1).to_string());
        let mut new = world.connect();
        new.write(b"new").await;
        new.expect(b"new").await;
        world.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_gone_with_a_connection_open_is_found_as_soon() {
    let mut world = World::to_host(Destination::Echo, config(), 1);
    world.until_state(State::Active).await;
    let mut open = world.connect();
    open.write(b"a").await;
    open.expect(b"a").await;
    world.network.order(Order::Dead);
    let clock = Stopwatch::start();
    // Unanswered as well.
    open.write(b"b").await;
    let status = world.until(|status| status.restarts == 1).await;
    assert!(clock.elapsed() <= FOUND_WITHIN, "{:?}", clock.elapsed());
    let said = status.last_error.unwrap().to_string();
    assert!(said.starts_with("the agent has acknowledged nothing for"), "{said}");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_says_nothing_is_no_agent_that_is_gone() {
    let mut world = World::to_host(Destination::Silent, config(), 1);
    world.until_state(State::Active).await;
    let mut open = world.connect();
    open.write(b"a").await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let status = world.until_state(State::Active).await;
    assert_eq!((status.restarts, status.resumes, status.open_connections), (0, 0, 1));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn connections_survive_a_cut_transport_in_quiet_times() {
    let mut world = World::to_host(Destination::Echo, config(), 1);
    world.until_state(State::Active).await;
    let mut open = world.connect();
    for round in 1..20 {
        open.write(b"a").await;
        open.expect(b"a").await;
        tokio::time::sleep(Duration::from_secs(3 * round)).await;
        world.network.order(Order::Cut);
        world.until(|status| status.resumes == round && status.state == State::Active).await;
    }
    assert_eq!(world.status.borrow().restarts, 0);
    world.stop().await;
}

fn reached() -> Config {
    Config { readiness: Readiness::Reached, ..config() }
}

#[tokio::test(start_paused = true)]
async fn a_host_is_reached_when_it_has_accepted_a_connection() {
    let mut world = World::to_host(Destination::Echo, reached(), 1);
    let status = world.until_state(State::Active).await;
    assert!(status.last_probe.is_some() && status.connections_total == 0, "{status:?}");
    // Once, and not again and again.
    let first = status.last_probe.map(|probe| probe.at);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.status.borrow().last_probe.map(|probe| probe.at), first);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_refuses_is_not_reached_until_it_accepts() {
    let mut world = World::to_host(Destination::Refuse, reached(), 1);
    let status = world.until(|status| status.last_error.is_some()).await;
    let fault = &status.last_error.as_ref().unwrap().fault;
    let said = status.last_error.as_ref().unwrap().to_string();
    assert_eq!(said, "`db.internal:5432` did not accept a connection through the tunnel: it could not be connected to");
    assert!(fault.hints[0].contains("must resolve `db.internal` and reach it on port 5432"), "{:?}", fault.hints);
    assert_eq!((fault.class, status.state), (Class::Useless, State::Degraded));
    assert!(matches!(ProbeError::Refused.class(), Class::Useless));
    world.network.state(|state| state.set_destination(Destination::Echo));
    world.until_state(State::Active).await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_is_told_of_where_nobody_has_looked() {
    let mut world = World::to_host(Destination::Refuse, config(), 1);
    world.until_state(State::Active).await;
    let _open = world.connect();
    let status = world.until(|status| status.last_error.is_some()).await;
    let said = status.last_error.unwrap().to_string();
    assert!(said.contains("`db.internal:5432` did not accept a connection"), "{said}");
    world.stop().await;
}
