//! Bytes between local programs and the destination, while nothing fails.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::{
    agent::{Destination, Note, Order, handshake_request},
    support::{Call, Stopwatch, World, config, pattern, within},
};
use crate::{
    route::PipeEnd,
    tunnel::{Config, State},
};

#[tokio::test(start_paused = true)]
async fn bytes_go_both_ways_and_are_counted() {
    let mut world = World::new(Destination::Echo);
    let status = world.until_state(State::Active).await;
    assert_eq!(status.link().unwrap().peer_version.as_deref().unwrap(), "3.3.1142.0");
    let mut local = world.connect();
    let data = pattern(300_000);
    let (mut read, mut write) = tokio::io::split(&mut local.stream);
    let mut echoed = vec![0; data.len()];
    let (written, got) = within(async { tokio::join!(write.write_all(&data), read.read_exact(&mut echoed)) }).await;
    written.unwrap();
    got.unwrap();
    assert!(echoed == data);
    let status = world.until(|status| status.bytes_received == 300_000).await;
    assert_eq!((status.bytes_sent, status.connections_total, status.open_connections), (300_000, 1, 1));
    drop(local);
    world.until(|status| status.open_connections == 0).await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_wait_for_nothing_but_room() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let stopwatch = Stopwatch::start();
    // The agent reads nothing while it sends these; what acknowledges them fills the transport several times.
    world.network.order(Order::Flood(handshake_request(), 5000));
    world.network.order(Order::SayAcknowledged(5000));
    world.until_note(&Note::Acknowledged).await;
    assert_eq!(stopwatch.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn many_connections_at_once() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let mut locals: Vec<_> = (0..64).map(|_| world.connect()).collect();
    for (i, local) in locals.iter_mut().enumerate() {
        local.write(&pattern(1000 + i)).await;
    }
    for (i, local) in locals.iter_mut().enumerate().rev() {
        local.expect(&pattern(1000 + i)).await;
    }
    world.until(|status| status.connections_total == 64).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_outlives_the_end_of_the_request() {
    let (sender, mut destination) = mpsc::unbounded_channel();
    let mut world = World::new(Destination::Manual(sender));
    world.until_state(State::Active).await;
    let mut local = world.connect();
    local.write(b"request").await;
    local.stream.shutdown().await.unwrap();
    let mut remote = within(destination.recv()).await.unwrap();
    let mut request = [0; 7];
    remote.read_exact(&mut request).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let answer = pattern(200_000);
    let (written, got) = tokio::join!(
        async {
            remote.write_all(&answer).await.unwrap();
            drop(remote);
        },
        local.read_all()
    );
    let () = written;
    assert!(got == answer);
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_is_reset() {
    let mut world = World::new(Destination::Refuse);
    world.until_state(State::Active).await;
    let local = world.connect();
    assert_eq!(local.reset().await, PipeEnd::Refused);
    let status = world.until(|status| status.last_error.is_some()).await;
    assert_eq!(
        status.last_error.unwrap().to_string(),
        "the API server was not reached through the tunnel: no connection to the API server could be made"
    );
}

#[tokio::test(start_paused = true)]
async fn a_program_that_does_not_read_stalls_nobody() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let mut slow = world.connect();
    let data = pattern(2 << 20);
    let mut quick = world.connect();
    let (mut slow_read, mut slow_write) = tokio::io::split(&mut slow.stream);
    let both = async {
        tokio::join!(slow_write.write_all(&data), async {
            for i in 0..50 {
                quick.write(&pattern(100 + i)).await;
                quick.expect(&pattern(100 + i)).await;
            }
        })
    };
    within(both).await.0.unwrap();
    let mut got = vec![0; data.len()];
    within(slow_read.read_exact(&mut got)).await.unwrap();
    assert!(got == data, "nothing was lost meanwhile");
}

/// It is cut after five minutes, and not before; what else is open goes on then. New connections do not wait for that.
#[tokio::test(start_paused = true)]
async fn a_program_that_takes_nothing_for_long_is_reset_when_the_budget_is_spent() {
    let settings = Config { receive_budget: 1 << 20, ..config() };
    let mut world = World::with(Destination::Echo, settings, 1, "", |_| {});
    world.until_state(State::Active).await;
    let mut dead = world.connect();
    let mut other = world.connect();
    other.write(b"here").await;
    other.expect(b"here").await;
    let start = Stopwatch::start();
    let data = pattern(4 << 20);
    let write = dead.stream.write_all(&data);
    let visit = async {
        let status = world.until(|status| status.links.iter().any(|session| session.held_back)).await;
        assert_eq!(status.state, State::Active);
        let mut new = world.connect();
        new.write(b"a new one").await;
        new.expect(b"a new one").await;
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
        assert_eq!(world.until(|status| status.links.len() == 2).await.resumes, 0);
        other.write(b"still here").await;
        other.expect(b"still here").await;
        assert!((290..320).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    };
    // It ends with an error when the connection is reset.
    let (_outcome, ()) = tokio::join!(write, visit);
    assert_eq!(dead.reset().await, PipeEnd::Lost);
}

/// Slow is not dead: every byte arrives, however small the budget is.
#[tokio::test(start_paused = true)]
async fn a_program_that_reads_slowly_is_never_cut() {
    let settings = Config { receive_budget: 1 << 20, ..config() };
    let mut world = World::with(Destination::Echo, settings, 1, "", |_| {});
    world.until_state(State::Active).await;
    let mut slow = world.connect();
    let data = pattern(4 << 20);
    let (mut read, mut write) = tokio::io::split(&mut slow.stream);
    let reader = async {
        let mut got = vec![0; data.len()];
        for chunk in got.chunks_mut(4 << 10) {
            tokio::time::sleep(Duration::from_secs(2)).await;
            read.read_exact(chunk).await.unwrap();
        }
        got
    };
    let (outcome, got) = tokio::join!(write.write_all(&data), reader);
    outcome.unwrap();
    assert!(got == data, "nothing was lost");
    let status = world.until(|status| status.bytes_received == 4 << 20).await;
    assert_eq!(status.resumes + status.restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn connections_wait_for_the_first_session_in_order() {
    let mut world = World::with(Destination::Echo, config(), 1, "", |network| {
        network.refuse_starts(3, super::support::unreachable);
    });
    let mut locals: Vec<_> = (0..3).map(|_| world.connect()).collect();
    for (i, local) in locals.iter_mut().enumerate() {
        local.write(&[i as u8; 10]).await;
    }
    let status = world.until(|status| status.held_connections == 3).await;
    assert_eq!((status.state, status.open_connections), (State::Starting, 3));
    for (i, local) in locals.iter_mut().enumerate() {
        local.expect(&[i as u8; 10]).await;
    }
    assert_eq!(world.until_state(State::Active).await.held_connections, 0);
}

#[tokio::test(start_paused = true)]
async fn held_connections_are_bounded_in_number_and_time() {
    let settings = Config { held_connections: 2, ..config() };
    let mut world = World::with(Destination::Echo, settings, 1, "", |network| {
        network.refuse_starts(1000, super::support::unreachable);
    });
    let started = Stopwatch::start();
    let (first, _second, third) = (world.connect(), world.connect(), world.connect());
    assert_eq!(third.reset().await, PipeEnd::Lost);
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(first.reset().await, PipeEnd::Lost);
    assert_eq!(started.elapsed().as_secs(), 30);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_session_in_good_order() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let started = Stopwatch::start();
    world.stop().await;
    assert!(started.elapsed() < Duration::from_millis(100), "nothing was open: {:?}", started.elapsed());
    world.until_note(&Note::Terminated).await;
    world.until_note(&Note::Goodbye).await;
    world.until_call(&Call::Terminate("0".into())).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_takes_the_end_of_the_session_for_an_acknowledgement() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    world.network.order(Order::CloseOnFlag);
    world.stop().await;
    world.until_note(&Note::Terminated).await;
    world.until_call(&Call::Terminate("0".into())).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_gives_open_connections_a_second() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let mut local = world.connect();
    local.write(b"hello").await;
    local.expect(b"hello").await;
    let started = Stopwatch::start();
    world.stop().await;
    assert_eq!(started.elapsed().as_millis() / 100, 10);
    assert_eq!(local.reset().await, PipeEnd::Lost);
    world.until_call(&Call::Terminate("0".into())).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_bounded_when_the_agent_hangs() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    world.network.order(Order::Freeze);
    let local = world.connect();
    world.until(|status| status.open_connections == 1).await;
    let started = Stopwatch::start();
    world.stop().await;
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert_eq!(local.reset().await, PipeEnd::Lost);
    world.until_call(&Call::Terminate("0".into())).await;
}
