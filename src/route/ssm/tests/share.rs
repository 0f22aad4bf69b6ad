//! Connections spread over sessions that come and go with the load.

use std::{sync::Arc, time::Duration};

use super::{
    agent::{Destination, Note, Order},
    support::{Call, Local, NetworkState, Stopwatch, World, config, pattern, target, unreachable},
};
use crate::{
    route::{
        PipeEnd,
        ssm::{self, Dial, Targets},
    },
    tunnel::{Config, Sharing, State, TunnelStatus},
};

/// At most so many sessions.
fn settings(links: usize) -> Config {
    Config { links, ..config() }
}

/// What a program leaves behind that just goes away does not last, to make times plain.
fn forget_soon(network: &mut NetworkState) {
    network.config.session.half_close_timeout = Duration::from_millis(10);
}

/// An active tunnel with at most so many sessions.
async fn world(sessions: usize) -> World {
    let mut world = World::with(Destination::Echo, settings(sessions), 1, "", forget_soon);
    world.until_state(State::Active).await;
    world
}

/// Keeps a session busy, until more than a second after this.
async fn carry(local: &mut Local) {
    for _ in 0..4 {
        local.write(&pattern(200_000)).await;
        local.expect(&pattern(200_000)).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn ask(local: &mut Local) {
    local.write(b"question").await;
    local.expect(b"question").await;
}

/// A tunnel with two sessions, each of which carries one connection.
async fn two_sessions() -> (World, Local, Local) {
    let mut world = world(2).await;
    let mut bulk = world.connect();
    carry(&mut bulk).await;
    let mut other = world.connect();
    ask(&mut other).await;
    let status = world.until(|status| status.open_connections == 2 && status.links.len() == 2).await;
    assert_eq!(spread(&status), [1, 1]);
    (world, bulk, other)
}

fn spread(status: &TunnelStatus) -> Vec<usize> {
    status.links.iter().map(|session| session.open_connections).collect()
}

fn starts(world: &mut World) -> usize {
    world.calls().iter().filter(|call| matches!(call, Call::Start(_))).count()
}

#[tokio::test(start_paused = true)]
async fn commands_one_after_the_other_and_watches_start_no_session() {
    let mut world = world(4).await;
    let mut watches = Vec::new();
    for _ in 0..5 {
        let mut watch = world.connect();
        ask(&mut watch).await;
        watches.push(watch);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    for _ in 0..50 {
        let clock = Stopwatch::start();
        ask(&mut world.connect()).await;
        assert!(clock.elapsed() < Duration::from_millis(50), "nothing to wait for: {:?}", clock.elapsed());
        // The next command is run.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    for watch in &mut watches {
        ask(watch).await;
    }
    assert_eq!(starts(&mut world), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_comes_during_a_bulk_transfer_gets_a_session_of_its_own() {
    let mut world = world(2).await;
    let mut bulk = world.connect();
    carry(&mut bulk).await;
    assert_eq!(starts(&mut world), 1, "one transfer needs one session");
    world.network.state(|state| state.open_gate(false));
    let mut small = world.connect();
    small.write(b"small").await;
    world.until_call(&Call::Start(target(0).to_string())).await;
    let status = world.until(|status| status.held_connections == 1).await;
    assert_eq!((status.state, status.open_connections), (State::Active, 2));
    world.network.state(|state| state.open_gate(true));
    small.expect(b"small").await;
    let status = world.until(|status| status.held_connections == 0 && status.links.len() == 2).await;
    assert_eq!(spread(&status), [1, 1]);
    let status = world.until(|status| status.links[1].bytes_received == 5).await;
    assert_eq!((status.links[0].bytes_sent, status.links[1].bytes_sent), (800_000, 5));

    // While it is there, nothing waits and nothing more is started.
    drop(small);
    world.until(|status| status.open_connections == 1).await;
    for _ in 0..10 {
        carry(&mut bulk).await;
        let clock = Stopwatch::start();
        ask(&mut world.connect()).await;
        assert!(clock.elapsed() < Duration::from_millis(50), "{:?}", clock.elapsed());
    }
    let status = world.until(|status| status.open_connections == 1 && status.connections_total == 12).await;
    assert_eq!(status.links[1].bytes_sent, 5 + 10 * 8, "all went through the second one");
    assert_eq!(starts(&mut world), 0);
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_spread_over_all_sessions_and_never_over_more() {
    for (connections, expected) in [(2, vec![1, 1]), (3, vec![1; 3]), (8, vec![2; 4]), (64, vec![16; 4])] {
        let mut world = world(4).await;
        world.network.state(|state| state.open_gate(false));
        let mut locals: Vec<_> = (0..connections).map(|_| world.connect()).collect();
        world.until(|status| status.open_connections == connections && status.held_connections > 0).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.network.state(|state| state.open_gate(true));
        for (i, local) in locals.iter_mut().enumerate() {
            local.write(&pattern(50_000 + i)).await;
        }
        for (i, local) in locals.iter_mut().enumerate() {
            local.expect(&pattern(50_000 + i)).await;
        }
        let status = world.until(|status| status.open_connections == connections).await;
        assert_eq!(spread(&status), expected);
        assert_eq!(starts(&mut world), expected.len());
        world.stop().await;
        let mut ended: Vec<_> = world.calls();
        ended.retain(|call| matches!(call, Call::Terminate(_)));
        assert_eq!(ended.len(), expected.len(), "a stop ends all: {ended:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_extra_session_is_closed_after_a_minute_without_connections() {
    let (mut world, mut bulk, other) = two_sessions().await;
    drop(other);
    world.until(|status| status.open_connections == 1).await;
    let mut until_used = Stopwatch::start();
    for pause in [50, 50] {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        carry(&mut bulk).await;
        ask(&mut world.connect()).await;
        until_used = Stopwatch::start();
    }
    assert_eq!(world.status.borrow().links.len(), 2, "whoever comes once a minute keeps it");
    let status = world.until(|status| status.links.len() == 1).await;
    assert!((59..63).contains(&until_used.elapsed().as_secs()), "{:?}", until_used.elapsed());
    world.until_note(&Note::Terminated).await;
    world.until_call(&Call::Terminate("1".into())).await;
    assert_eq!((status.link().unwrap().id.as_deref().unwrap(), status.restarts), ("0", 0));
    ask(&mut bulk).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(world.calls().is_empty(), "the base stays");
    assert_eq!(world.status.borrow().bytes_received, 8 * 3 + 8 + 3 * 800_000, "what it had carried still counts");
}

#[tokio::test(start_paused = true)]
async fn an_extra_session_that_ends_takes_only_its_own_connections() {
    let (mut world, mut bulk, other) = two_sessions().await;
    bulk.write(&pattern(300_000)).await;
    world.network.order_session(1, Order::CloseChannel("over"));
    assert_eq!(other.reset().await, PipeEnd::Lost);
    bulk.expect(&pattern(300_000)).await;
    let status = world.until(|status| status.links.len() == 1).await;
    assert_eq!((status.state, status.restarts, status.open_connections), (State::Active, 0, 1));
    assert_eq!(status.last_error.unwrap().to_string(), "the session is over: the service ended the session: over");

    // The next one gets a session again, after a moment.
    tokio::time::sleep(Duration::from_secs(10)).await;
    carry(&mut bulk).await;
    let mut next = world.connect();
    ask(&mut next).await;
    assert_eq!(spread(&world.until(|status| status.links.len() == 2).await), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn the_base_that_ends_takes_only_its_own_connections() {
    let (mut world, bulk, mut other) = two_sessions().await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    world.network.state(|state| state.open_gate(false));
    other.write(&pattern(300_000)).await;
    world.network.order_session(0, Order::CloseChannel("over"));
    assert_eq!(bulk.reset().await, PipeEnd::Lost);
    other.expect(&pattern(300_000)).await;
    // New ones do not have to wait for it, and the other is not closed before it is back.
    let mut new = world.connect();
    ask(&mut new).await;
    drop((other, new));
    let status = world.until(|status| status.open_connections == 0).await;
    assert_eq!((status.state, status.links[0].state), (State::Active, State::Reconnecting));
    tokio::time::sleep(Duration::from_secs(55)).await;
    ask(&mut world.connect()).await;
    world.network.state(|state| state.open_gate(true));
    let status = world.until(|status| status.links[0].state == State::Active).await;
    assert_eq!((status.restarts, status.links.len()), (1, 2));
    world.until(|status| status.links.len() == 1).await;
    world.until_call(&Call::Terminate("1".into())).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_extra_session_is_resumed_for_its_connections_and_else_closed() {
    let (mut world, _bulk, mut other) = two_sessions().await;
    world.network.order_session(1, Order::Lose(3));
    other.write(&pattern(100_000)).await;
    world.network.order_session(1, Order::Cut);
    other.expect(&pattern(100_000)).await;
    let status = world.until(|status| status.resumes == 1).await;
    assert_eq!((status.state, status.restarts), (State::Active, 0));
    world.until_call(&Call::Resume("1".into())).await;
    drop(other);
    world.until(|status| status.open_connections == 1).await;
    world.network.state(|state| state.open_gate(false));
    world.network.order_session(1, Order::Cut);
    world.until_call(&Call::Terminate("1".into())).await;
    assert_eq!(world.until(|status| status.links.len() == 1).await.resumes, 1);
}

#[tokio::test(start_paused = true)]
async fn an_extra_session_that_cannot_be_had_is_no_matter_for_the_tunnel() {
    let mut world = world(2).await;
    world.network.state(|state| state.refuse_starts(1000, unreachable));
    let mut bulk = world.connect();
    let clock = Stopwatch::start();
    for _ in 0..200 {
        carry(&mut bulk).await;
        let asked = Stopwatch::start();
        ask(&mut world.connect()).await;
        assert!(asked.elapsed() < Duration::from_millis(50), "it takes what there is: {:?}", asked.elapsed());
        assert_eq!(world.status.borrow().state, State::Active);
    }
    assert!(clock.elapsed() >= Duration::from_secs(400));
    let status = world.status.borrow().clone();
    assert_eq!((status.links.len(), status.restarts), (1, 0));
    assert!(status.last_error.is_none(), "{:?}", status.last_error);
    let tries = starts(&mut world) - 1;
    assert!((4..12).contains(&tries), "{tries} tries");
    world.network.state(|state| state.refuse_starts.clear());
    tokio::time::sleep(Duration::from_secs(300)).await;
    carry(&mut bulk).await;
    let mut other = world.connect();
    ask(&mut other).await;
    assert_eq!(spread(&world.until(|status| status.links.len() == 2).await), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_extra_session_that_does_not_come_up_is_waited_for_once_and_not_for_long() {
    let mut world = world(2).await;
    let mut bulk = world.connect();
    carry(&mut bulk).await;
    world.network.state(|state| state.open_gate(false));
    let mut waits = Vec::new();
    for _ in 0..3 {
        let clock = Stopwatch::start();
        let mut small = world.connect();
        let asking = async {
            ask(&mut small).await;
            clock.elapsed().as_secs()
        };
        waits.push(tokio::join!(asking, carry(&mut bulk)).0);
    }
    assert_eq!(waits, [2, 0, 0]);
    assert_eq!(starts(&mut world), 2);
    // It is there for the later ones when it has come up after all.
    world.network.state(|state| state.open_gate(true));
    world.until(|status| status.links.iter().filter(|s| s.state == State::Active).count() == 2).await;
    let mut late = world.connect();
    ask(&mut late).await;
    assert_eq!(spread(&world.until(|status| status.connections_total == 5).await), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn extra_sessions_move_to_a_better_target_with_the_base() {
    let mut world = World::with(Destination::Echo, settings(2), 2, "", |network| {
        forget_soon(network);
        network.set_absent(&[target(0)]);
    });
    world.until_state(State::Active).await;
    let mut bulk = world.connect();
    carry(&mut bulk).await;
    let mut other = world.connect();
    ask(&mut other).await;
    let status = world.until(|status| status.links.len() == 2 && status.open_connections == 2).await;
    assert!(status.links.iter().all(|session| session.route == target(1).to_string()), "{:?}", status.links);
    world.network.state(|state| state.set_absent(&[]));
    world.until(|status| status.links[0].route == target(0).to_string()).await;
    // The old ones keep their connections, and new ones go elsewhere.
    ask(&mut bulk).await;
    ask(&mut other).await;
    let mut new = world.connect();
    ask(&mut new).await;
    let status = world.until(|status| status.open_connections == 3).await;
    assert_eq!(spread(&status), [1, 1, 1]);
    drop((bulk, other));
    let status = world.until(|status| status.links.len() == 1).await;
    assert_eq!((status.link().unwrap().route.clone(), status.restarts), (target(0).to_string(), 0));
    ask(&mut new).await;
}

/// An active tunnel that starts a second session by itself.
async fn auto() -> World {
    let config = Config { sharing: Sharing::WhileBusy, ..settings(2) };
    let mut world = World::with(Destination::Echo, config, 1, "", forget_soon);
    world.until_state(State::Active).await;
    world
}

#[tokio::test(start_paused = true)]
async fn a_busy_session_gets_a_second_one_before_anybody_waits() {
    let mut world = auto().await;
    let mut bulk = world.connect();
    // Two seconds of it, and then as much again twice.
    carry(&mut bulk).await;
    assert_eq!(starts(&mut world), 1, "nobody starts another for what may be over");
    carry(&mut bulk).await;
    carry(&mut bulk).await;
    assert_eq!(starts(&mut world), 1, "the second one");
    world.until(|status| status.links.len() == 2 && status.state == State::Active).await;
    let clock = Stopwatch::start();
    let mut small = world.connect();
    ask(&mut small).await;
    assert!(clock.elapsed() < Duration::from_millis(50), "{:?}", clock.elapsed());
    let status = world.until(|status| status.open_connections == 2).await;
    assert_eq!(spread(&status), [1, 1]);

    // It stays for as long as the transfer goes on, with or without connections.
    drop(small);
    for _ in 0..60 {
        carry(&mut bulk).await;
    }
    assert_eq!(starts(&mut world), 0);
    assert_eq!(world.until(|status| status.open_connections == 1).await.links.len(), 2);

    // Then it ends, and both can carry as before.
    drop(bulk);
    tokio::time::sleep(Duration::from_secs(65)).await;
    assert_eq!(world.until(|status| status.open_connections == 0).await.links.len(), 1);
    ask(&mut world.connect()).await;
    assert_eq!(starts(&mut world), 0);
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_connections_starts_no_session_by_itself_and_waits_for_none() {
    let mut world = auto().await;
    for _ in 0..20 {
        let clock = Stopwatch::start();
        let mut burst: Vec<Local> = (0..8).map(|_| world.connect()).collect();
        for local in &mut burst {
            ask(local).await;
        }
        // A list of all pods.
        burst[0].write(&pattern(400_000)).await;
        burst[0].expect(&pattern(400_000)).await;
        assert!(clock.elapsed() < Duration::from_millis(500), "{:?}", clock.elapsed());
        drop(burst);
        tokio::time::sleep(Duration::from_millis(2500)).await;
    }
    assert_eq!(starts(&mut world), 1);
}

#[tokio::test(start_paused = true)]
async fn a_second_session_that_cannot_be_had_keeps_nobody_waiting() {
    let mut world = auto().await;
    let mut bulk = world.connect();
    world.network.state(|state| state.refuse_starts(1000, unreachable));
    for _ in 0..10 {
        carry(&mut bulk).await;
        let clock = Stopwatch::start();
        ask(&mut world.connect()).await;
        assert!(clock.elapsed() < Duration::from_millis(50), "{:?}", clock.elapsed());
    }
    let tries = starts(&mut world);
    assert!((2..=6).contains(&tries), "{tries} in twenty seconds");
    assert_eq!(world.until(|status| status.open_connections == 1).await.state, State::Active);
}

#[tokio::test(start_paused = true)]
async fn tasks_of_ecs_have_no_room_for_a_second_session() {
    let world = auto().await;
    let targets = Targets::new(Arc::clone(&world.network) as Arc<dyn Dial>, ssm::Config::default());
    let has_room = |target: &str| targets.route(target.parse().unwrap()).has_room();
    assert!(has_room("i-0dc03fbcae2a87472") && has_room("mi-0dc03fbcae2a87472"));
    assert!(!has_room("ecs:tools_0f9de17a6465404e8b1b2356dc13c2f8_0f9de17a6465404e8b1b2356dc13c2f8-1234567890"));
}
