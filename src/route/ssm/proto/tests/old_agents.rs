//! Agents that drop repeats without acknowledging them, as those before 3.2.1041.0 do.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    super::{CloseReason, Config, StreamId},
    agent::{AgentConfig, Destination},
    faults::{exchange, random_plan},
    scenarios::{answer, secs, service_message},
    world::{Network, World},
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// An agent of such a version; it runs no keepalive.
fn old_agent() -> AgentConfig {
    AgentConfig { version: "3.2.1040.0", drops_repeats: true, ..AgentConfig::default() }
}

/// A session with such an agent, which has answered a first stream.
fn established(agent: AgentConfig, mut destinations: Vec<Destination>) -> World {
    destinations.insert(0, answer(4, b"pong"));
    let mut world = World::new(1, Config::default(), agent, destinations);
    world.run_until(|world| world.established);
    world.open(Bytes::from_static(b"ping"), false);
    world.run_until(World::all_ended);
    world.run_for(secs(3));
    assert_eq!(world.client.stats().bytes_in_flight, 0);
    world
}

/// Loses a transport, and before it for a time all that the agent sends.
fn cut_after_lost_acknowledgements(world: &mut World, time: Duration) {
    world.downstream_lost = true;
    world.run_for(time);
    world.cut();
    world.downstream_lost = false;
    world.run_for(ms(300));
    world.reattach();
}

#[test]
fn an_upload_goes_on_after_acknowledgements_were_lost_with_a_transport() {
    const LEN: usize = 10 << 20;
    let mut world = established(old_agent(), vec![Destination::Sink]);
    let upload = world.rng.bytes(LEN);
    let start = world.elapsed();
    let id = world.open(upload.clone(), false);
    world.run_for(secs(2));
    cut_after_lost_acknowledgements(&mut world, ms(600));
    world.run_until(|world| world.agent.streams[&id].received.len() == LEN);
    // 10,320 messages at about 850 a second take 12.2 s; the outage, the repeats and their proof 3 more. Messages for
    // which nothing were concluded would stop it at 4 MiB.
    let took = world.elapsed() - start;
    assert!(took < ms(15_500), "{took:?}");
    assert!(world.agent.streams[&id].received == upload);
    world.run_for(secs(1));
    assert_eq!(world.client.stats().bytes_in_flight, 0);
}

#[test]
fn an_idle_session_lives_on_after_an_acknowledgement_was_lost_with_a_transport() {
    let mut world = established(old_agent(), vec![Destination::Sink]);
    let id = world.open(Bytes::from_static(b"x"), false);
    cut_after_lost_acknowledgements(&mut world, ms(25));
    assert_eq!(world.agent.streams[&id].received, "x", "it has arrived");
    world.client_sent.clear();
    let start = world.elapsed();
    world.run_until(|world| world.client.waiting_since().is_none());
    assert!(world.elapsed() - start < secs(1), "{:?}", world.elapsed() - start);
    world.run_for(secs(1000));
    assert_eq!(world.closed, None);
    assert!(world.client_sent.len() < 20, "{} messages", world.client_sent.len());
    assert_eq!(world.agent.nops, 9, "three for each of three repeats");
}

#[test]
fn nothing_is_concluded_of_an_agent_that_acknowledges_repeats() {
    let agent = AgentConfig { version: "3.2.1041.0", ..old_agent() };
    let mut world = established(agent, vec![Destination::Sink, Destination::Echo]);
    world.open(Bytes::from_static(b"x"), false);
    cut_after_lost_acknowledgements(&mut world, ms(25));
    let upload = world.rng.bytes(1 << 20);
    world.open(upload, false);
    let start = world.elapsed();
    world.run_until(|world| world.closed.is_some());
    assert_eq!(world.closed, Some(CloseReason::Unacknowledged { seconds: 300 }));
    assert_eq!(world.elapsed() - start, secs(300));
}

#[test]
fn nothing_is_concluded_before_the_agent_takes_data() {
    let agent = AgentConfig { not_ready: secs(20), ..old_agent() };
    let mut world = World::new(1, Config::default(), agent, vec![answer(4, b"pong"), answer(1, b"y")]);
    world.run_until(|world| world.established);
    let first = world.open(Bytes::from_static(b"ping"), false);
    world.run_for(secs(1));
    world.cut();
    world.reattach();
    // What comes next is taken as early, and acknowledged.
    for _ in 0..20 {
        world.open(Bytes::from_static(b"x"), false);
        world.run_for(ms(500));
    }
    world.run_until(|world| world.programs[&first].end.is_some());
    assert_eq!(world.programs[&first].received, "pong");
}

#[test]
fn a_response_whose_acknowledgement_was_lost_is_delivered_when_the_handshake_is_complete() {
    for cut_after in [45, 55] {
        let mut world = World::new(1, Config::default(), old_agent(), vec![answer(4, b"pong")]);
        world.run_for(ms(cut_after));
        world.cut();
        world.run_for(ms(500));
        world.reattach();
        world.run_until(|world| world.established);
        world.run_for(secs(1));
        assert_eq!(world.client.waiting_since(), None, "cut after {cut_after} ms");
        world.run_for(secs(400));
        world.open(Bytes::from_static(b"ping"), false);
        world.run_until(World::all_ended);
        assert_eq!((world.agent.responses, world.closed), (1, None), "cut after {cut_after} ms");
    }
}

#[test]
fn acknowledgements_that_were_lost_with_the_agents_own_transport_are_no_end_either() {
    for is_paused in [true, false] {
        let mut world = established(old_agent(), vec![Destination::Sink]);
        let id = world.open(Bytes::from(vec![1; 20_000]), false);
        world.downstream_lost = true;
        world.run_for(ms(30));
        if is_paused {
            world.client.handle_message(world.now, service_message("pause_publication", b""));
            world.client.handle_message(world.now, service_message("start_publication", b""));
        }
        world.downstream_lost = false;
        let start = world.elapsed();
        world.run_until(|world| world.client.waiting_since().is_none());
        let (took, limit) = (world.elapsed() - start, if is_paused { secs(2) } else { secs(12) });
        assert!(took < limit, "{took:?}, paused: {is_paused}");
        world.run_for(secs(400));
        assert_eq!((world.agent.streams[&id].received.len(), world.closed), (20_000, None));
    }
}

#[test]
fn nothing_is_sent_to_find_out_after_the_flag_that_ends_the_session() {
    let mut world = established(old_agent(), vec![Destination::Sink]);
    world.open(Bytes::from_static(b"x"), false);
    world.run_for(ms(25));
    world.cut();
    world.client.terminate(world.now);
    world.reattach();
    world.run_for(secs(30));
    assert!(world.agent.terminated);
    assert_eq!(world.agent.nops, 0);
}

/// Uploads side by side, cutting the transport after losing so much of what the agent sends; every byte has to come.
fn uploads(seed: u64, network: Network, cuts: &[(u64, u64)]) {
    let mut world = World::new(seed, Config::default(), old_agent(), vec![Destination::Sink; 3]);
    world.run_until(|world| world.established);
    world.network = network;
    let uploads: Vec<(StreamId, Bytes)> = [400_000, 100, 60_000]
        .map(|len| {
            let upload = world.rng.bytes(len);
            (world.open(upload.clone(), false), upload)
        })
        .into();
    world.run_until(|world| world.client.stats().bytes_in_flight == 0 || world.elapsed() > ms(500));
    for (wait, lost) in cuts {
        world.run_for(ms(*wait));
        cut_after_lost_acknowledgements(&mut world, ms(*lost));
    }
    world.network = Network::default();
    world.run_for(secs(100));
    for (id, upload) in &uploads {
        assert!(world.agent.streams[id].received == upload, "seed {seed}, stream {id}");
    }
    assert_eq!((world.closed, world.client.stats().bytes_in_flight), (None, 0), "seed {seed}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_arrives_once_over_random_cuts(
        seed in any::<u64>(),
        delay in 0_u64..120,
        jitter in 0_u64..100,
        duplicate in 0.0_f64..20.0,
        cuts in proptest::collection::vec((0_u64..900, 0_u64..500), 0..6),
    ) {
        let network = Network {
            delay: ms(delay),
            jitter: ms(jitter),
            duplicate_percent: duplicate,
            ..Network::default()
        };
        uploads(seed, network, &cuts);
    }

    #[test]
    fn every_exchange_ends_well_over_random_cuts_and_some_loss(
        seed in any::<u64>(),
        delay in 0_u64..120,
        loss in 0.0_f64..1.0,
        connections in 1_usize..8,
        cuts in 0_usize..6,
    ) {
        let network = Network { delay: ms(delay), loss_percent: loss, ..Network::default() };
        exchange(seed, network, old_agent(), random_plan(seed, connections, 30_000), cuts);
    }
}
