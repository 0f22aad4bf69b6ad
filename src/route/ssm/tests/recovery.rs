//! Transports and sessions that are lost.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::{
    agent::{Destination, Order},
    support::{Call, Stopwatch, World, config, denied, pattern, target, unreachable, within},
};
use crate::{
    route::{
        PipeEnd,
        ssm::{DialError, SessionFault, SessionId},
    },
    tunnel::State,
};

#[tokio::test(start_paused = true)]
async fn a_resume_loses_no_byte_either_way() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let mut local = world.connect();
    let data = pattern(3 << 20);
    let (mut read, mut write) = tokio::io::split(&mut local.stream);
    let network = &world.network;
    let cuts = async {
        for round in 0..20 {
            tokio::time::sleep(Duration::from_millis(7)).await;
            network.order(if round % 2 == 0 { Order::Lose(5) } else { Order::Bye });
            tokio::time::sleep(Duration::from_millis(3)).await;
            network.order(Order::Cut);
        }
    };
    let mut echoed = vec![0; data.len()];
    let all = async { tokio::join!(write.write_all(&data), read.read_exact(&mut echoed), cuts) };
    let (written, got, ()) = within(all).await;
    written.unwrap();
    got.unwrap();
    assert!(echoed == data);
    let status = world.until(|status| status.resumes >= 20).await;
    assert_eq!(status.restarts, 0);
    assert!(matches!(status.last_error.unwrap().fault.cause(), Some(SessionFault::Transport(_))));
}

#[tokio::test(start_paused = true)]
async fn what_has_come_is_delivered_while_the_transport_is_away() {
    let (sender, mut destination) = mpsc::unbounded_channel();
    let mut world = World::new(Destination::Manual(sender));
    world.until_state(State::Active).await;
    let mut local = world.connect();
    let mut remote = within(destination.recv()).await.unwrap();
    let data = pattern(500_000);
    remote.write_all(&data).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.network.state(|state| state.open_gate(false));
    world.network.order(Order::Cut);
    world.until_call(&Call::Resume("0".into())).await;
    assert_eq!(world.status.borrow().state, State::Reconnecting);
    local.expect(&data).await;
    // The program may go on writing up to the window, and no further.
    let mut written = 0;
    while let Ok(outcome) = tokio::time::timeout(Duration::from_millis(10), local.stream.write(&data[..8192])).await {
        written += outcome.unwrap();
    }
    assert!((64 << 10..256 << 10).contains(&written), "{written}");
    world.network.state(|state| state.open_gate(true));
    let mut got = vec![0; written];
    within(remote.read_exact(&mut got)).await.unwrap();
    world.until_state(State::Active).await;
}

#[tokio::test(start_paused = true)]
async fn new_connections_wait_for_the_resume() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let mut open = world.connect();
    open.write(b"a").await;
    open.expect(b"a").await;
    world.network.state(|state| state.open_gate(false));
    world.network.order(Order::Bye);
    world.until_call(&Call::Resume("0".into())).await;
    let mut held = world.connect();
    held.write(b"b").await;
    world.until(|status| status.held_connections == 1).await;
    world.network.state(|state| state.open_gate(true));
    held.expect(b"b").await;
    open.write(b"c").await;
    open.expect(b"c").await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_resume_is_followed_by_a_new_session() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let mut open = world.connect();
    open.write(b"a").await;
    open.expect(b"a").await;
    world.network.state(|state| {
        state.refuse_resumes(1, || DialError::SessionEnded { id: SessionId("0".into()) });
        state.open_gate(false);
    });
    world.network.order(Order::Bye);
    world.until_call(&Call::Resume("0".into())).await;
    let mut held = world.connect();
    held.write(b"held").await;
    world.until(|status| status.held_connections == 1).await;
    world.network.state(|state| state.open_gate(true));
    assert_eq!(open.reset().await, PipeEnd::Lost);
    held.expect(b"held").await;
    let status = world.until_state(State::Active).await;
    assert_eq!((status.restarts, status.resumes), (1, 0));
    assert_eq!(status.link().unwrap().id, Some("1".to_owned()));
    world.until_call(&Call::Start(target(0).to_string())).await;
    world.stop().await;
    assert_eq!(world.calls(), [Call::Terminate("1".into())], "the first session had ended by itself");
}

/// Waits until the user has something to know.
async fn until_cautioned(world: &World) {
    let mut news = world.common.news();
    news.wait_for(|news| news.since(0).0.count() > 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_denied_resume_is_tried_once_for_each_session() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    world.network.state(|state| state.refuse_resumes(9, || denied("ssm:ResumeSession")));
    for restarts in 1..=3 {
        world.network.order(Order::Bye);
        world.until(|status| status.restarts == restarts && status.state == State::Active).await;
    }
    let calls = world.calls();
    assert_eq!(calls.iter().filter(|call| matches!(call, Call::Resume(_))).count(), 3, "{calls:?}");
    within(until_cautioned(&world)).await;
    for session in ["0", "1", "2"] {
        assert!(calls.contains(&Call::Terminate(session.into())), "{session} might still be there: {calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_denial_about_a_session_that_may_have_ended_proves_nothing() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    world.network.state(|state| state.refuse_resumes(1, || denied("ssm:ResumeSession")));
    // The answer comes a night later.
    world.network.state(|state| state.open_gate(false));
    world.network.order(Order::Bye);
    world.until_call(&Call::Resume("0".into())).await;
    tokio::time::sleep(Duration::from_secs(19)).await;
    world.until_call(&Call::Resume("0".into())).await;
    tokio::time::sleep(Duration::from_secs(45)).await;
    world.network.state(|state| state.open_gate(true));
    world.until(|status| status.restarts == 1 && status.state == State::Active).await;
    let proven = tokio::time::timeout(Duration::from_secs(1), until_cautioned(&world)).await;
    assert!(proven.is_err(), "nothing is proven");
    // The hourly close of the next cuts nothing.
    let mut open = world.connect();
    open.write(b"a").await;
    open.expect(b"a").await;
    world.network.order(Order::Bye);
    let status = world.until(|status| status.resumes == 1).await;
    assert_eq!(status.restarts, 1);
    open.write(b"b").await;
    open.expect(b"b").await;
}

#[tokio::test(start_paused = true)]
async fn a_denial_about_a_session_that_the_service_says_is_over_is_its_end() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    world.network.state(|state| {
        state.says_active = Some(false);
        state.refuse_resumes(1, || denied("ssm:ResumeSession"));
    });
    world.network.order(Order::Bye);
    let status = world.until(|status| status.restarts == 1 && status.state == State::Active).await;
    assert_eq!(status.last_error.unwrap().to_string(), "cannot resume the session: session `0` has ended");
    let proven = tokio::time::timeout(Duration::from_secs(1), until_cautioned(&world)).await;
    assert!(proven.is_err(), "nothing is proven");
    world.stop().await;
    assert!(!world.calls().contains(&Call::Terminate("0".into())), "it is over");
}

#[tokio::test(start_paused = true)]
async fn a_resume_is_given_up_after_its_budget() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let mut open = world.connect();
    open.write(b"a").await;
    open.expect(b"a").await;
    world.network.state(|state| state.refuse_resumes(1000, unreachable));
    let started = Stopwatch::start();
    world.network.order(Order::Cut);
    assert_eq!(open.reset().await, PipeEnd::Lost);
    let elapsed = started.elapsed().as_secs();
    assert!((90..97).contains(&elapsed), "{elapsed}");
    let resumes = world.calls().iter().filter(|call| matches!(call, Call::Resume(_))).count();
    assert!((20..40).contains(&resumes), "{resumes} attempts");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_session_is_followed_by_a_new_one() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let mut open = world.connect();
    open.write(b"a").await;
    open.expect(b"a").await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let started = Stopwatch::start();
    world.network.order(Order::CloseChannel("Session terminated by user"));
    assert_eq!(open.reset().await, PipeEnd::Lost);
    let status = world.until(|status| status.restarts == 1 && status.state == State::Active).await;
    assert!(started.elapsed() < Duration::from_millis(50), "a session that worked is replaced at once");
    assert_eq!(
        status.last_error.unwrap().to_string(),
        "the session is over: the service ended the session: Session terminated by user"
    );
}

#[tokio::test(start_paused = true)]
async fn sessions_of_no_use_are_started_less_and_less_often() {
    let mut world = World::new(Destination::Echo);
    let mut starts = Vec::new();
    let clock = Stopwatch::start();
    for restarts in 1..=8 {
        world.until(|status| status.links.first().is_some_and(|link| link.is_established)).await;
        starts.push(clock.elapsed());
        world.network.order(Order::CloseChannel("lookup x on 10.0.0.2:53: no such host"));
        world.until(|status| status.restarts == restarts).await;
    }
    let gaps: Vec<_> = starts.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert!(gaps[0] < 1000 && gaps.windows(2).all(|pair| pair[0] < pair[1] * 2), "{gaps:?}");
    assert!((30_000..=60_000).contains(gaps.last().unwrap()), "{gaps:?}");
    assert_eq!(world.status.borrow().state, State::Failed);
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_the_agent_refuses_is_for_a_human_at_once() {
    let mut world = World::new(Destination::Echo);
    let clock = Stopwatch::start();
    world.until(|status| status.links.first().is_some_and(|link| link.is_established)).await;
    world.network.order(Order::CloseChannel("Forwarding to IP address x is forbidden."));
    let status = world.until_state(State::Failed).await;
    assert!(clock.elapsed() < Duration::from_secs(1), "no second session is needed to know");
    assert_eq!(
        status.last_error.unwrap().to_string(),
        "the session is over: the agent refuses this destination: Forwarding to IP address x is forbidden."
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_link_is_found_within_45_seconds() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let mut open = world.connect();
    open.write(b"a").await;
    open.expect(b"a").await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(world.status.borrow().resumes, 0, "an idle link that answers pings is left alone");
    let started = Stopwatch::start();
    world.network.order(Order::Hang);
    world.until(|status| status.resumes == 1).await;
    assert!(started.elapsed() <= Duration::from_secs(45), "{:?}", started.elapsed());
    open.write(b"b").await;
    open.expect(b"b").await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_link_is_found_within_ten_seconds_when_somebody_uses_it() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let mut open = world.connect();
    open.write(b"a").await;
    open.expect(b"a").await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    world.network.order(Order::Hang);
    let started = Stopwatch::start();
    open.write(b"b").await;
    open.expect(b"b").await;
    assert!(started.elapsed() <= Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(world.until(|status| status.resumes == 1).await.restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_takes_35_seconds_to_speak_is_waited_for() {
    let mut config = config();
    config.up_within = Duration::from_secs(60);
    let slow = |state: &mut super::support::NetworkState| state.delay_agents(Duration::from_secs(35));
    let mut world = World::with(Destination::Echo, config.clone(), 1, "", slow);
    let waiting = world.until(|status| status.link().is_some_and(|session| session.id.is_some())).await;
    assert_eq!(waiting.state, State::Starting);
    let session = waiting.link().unwrap();
    let later = |seconds| session.started_at.unwrap() + Duration::from_secs(seconds);
    assert!(!session.awaits_peer(Duration::from_secs(2), later(1)));
    assert!(session.awaits_peer(Duration::from_secs(2), later(2)), "that is what is waited for");
    let status = world.until_state(State::Active).await;
    assert!(!status.link().unwrap().awaits_peer(Duration::ZERO, later(99)));
    assert_eq!((status.restarts, status.last_error.is_none()), (0, true));

    // Each of two gives way to the other once, and then is waited for as well.
    let mut world = World::with(Destination::Echo, config, 2, "", slow);
    let status = world.until_state(State::Active).await;
    assert_eq!((status.restarts, status.link().unwrap().route.clone()), (2, target(0).to_string()));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_speak_makes_the_next_target_be_tried() {
    let mut world = World::with(Destination::Echo, config(), 2, "", super::support::NetworkState::silence_agents);
    world.until_call(&Call::Start(target(0).to_string())).await;
    world.until_call(&Call::Start(target(1).to_string())).await;
    let status = world.until(|status| status.last_error.is_some()).await;
    assert!(status.last_error.unwrap().to_string().contains("did not complete the handshake"));
}

#[tokio::test(start_paused = true)]
async fn targets_are_tried_in_order_and_the_first_comes_back() {
    let mut world =
        World::with(Destination::Echo, config(), 3, "", |network| network.set_absent(&[target(0), target(1)]));
    let status = world.until_state(State::Active).await;
    assert_eq!(status.link().unwrap().route, target(2).to_string());
    tokio::time::sleep(Duration::from_secs(70)).await;
    world.network.state(|state| state.set_absent(&[target(2)]));
    world.network.order(Order::CloseChannel("gone"));
    let status = world.until(|status| status.restarts == 1 && status.state == State::Active).await;
    assert_eq!(status.link().unwrap().route, target(0).to_string());
}

#[tokio::test(start_paused = true)]
async fn a_missing_target_is_a_matter_for_a_human_and_tried_all_the_same() {
    let mut world = World::with(Destination::Echo, config(), 1, "", |network| network.set_absent(&[target(0)]));
    let status = world.until_state(State::Failed).await;
    assert!(matches!(status.last_error.unwrap().fault.cause(), Some(DialError::TargetNotConnected { .. })));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(world.calls().len() < 25);
    world.network.state(|state| state.set_absent(&[]));
    world.until_state(State::Active).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_resuming_ends_the_session() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    world.network.state(|state| state.open_gate(false));
    world.network.order(Order::Cut);
    world.until_call(&Call::Resume("0".into())).await;
    world.stop().await;
    assert_eq!(world.calls(), [Call::Terminate("0".into())]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_comes_up_after_the_stop_is_ended() {
    let mut world = World::with(Destination::Echo, config(), 1, "", |network| network.open_gate(false));
    world.until_call(&Call::Start(target(0).to_string())).await;
    let network = std::sync::Arc::clone(&world.network);
    let opening = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        network.state(|state| state.open_gate(true));
    };
    tokio::join!(world.stop(), opening);
    assert_eq!(world.calls(), [Call::Terminate("0".into())]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_a_start_that_hangs() {
    let mut world = World::with(Destination::Echo, config(), 1, "", |network| network.open_gate(false));
    world.until_call(&Call::Start(target(0).to_string())).await;
    let clock = Stopwatch::start();
    world.stop().await;
    assert!(clock.elapsed() < Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn many_downloads_survive_many_cuts() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    let network = std::sync::Arc::clone(&world.network);
    let cuts = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            network.order(Order::Lose(3));
            tokio::time::sleep(Duration::from_millis(5)).await;
            network.order(Order::Cut);
        }
    };
    let downloads = futures_util::future::join_all((0..64).map(|i| {
        let mut local = world.connect();
        async move {
            let data = pattern(60_000 + i);
            local.write(&data).await;
            local.expect(&data).await;
        }
    }));
    within(async { tokio::join!(downloads, cuts) }).await;
    let status = world.until(|status| status.resumes == 10).await;
    assert_eq!((status.restarts, status.connections_total), (0, 64));
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_a_call_that_ends_an_earlier_session() {
    let mut world = World::new(Destination::Echo);
    world.until_state(State::Active).await;
    // It cannot be resumed, and so is ended by a call that is never answered.
    world.network.state(|state| {
        state.refuse_resumes(1, || denied("ssm:ResumeSession"));
        state.swallow_terminates = true;
    });
    world.network.order(Order::Bye);
    world.until_call(&Call::Terminate("0".into())).await;
    world.until(|status| status.restarts == 1 && status.state == State::Active).await;
    let stopwatch = Stopwatch::start();
    world.stop().await;
    assert!(stopwatch.elapsed() < Duration::from_secs(5), "{:?}", stopwatch.elapsed());
}
