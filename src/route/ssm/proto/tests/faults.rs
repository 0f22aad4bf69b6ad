//! Loss, duplication, reordering, delay and cuts, in seeded mixtures, against the reference: what
//! each program sent and what each destination answered.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    super::{Config, StreamId},
    agent::{AgentConfig, Destination},
    world::{End, Network, Rng, World},
};

/// What one connection must carry, whatever the network does.
struct Expected {
    id: StreamId,
    upload: Bytes,
    answer: Bytes,
}

/// Requests and answers of random lengths up to `size`.
pub(super) fn random_plan(seed: u64, connections: usize, size: u64) -> Vec<(Bytes, Bytes)> {
    let mut rng = Rng::new(seed ^ 0x91a);
    let mut bytes = |len: u64| rng.bytes(len as usize);
    let mut lens = Rng::new(seed);
    (0..connections).map(|_| (bytes(lens.below(size) + 1), bytes(lens.below(size)))).collect()
}

/// Runs request-and-answer exchanges side by side, cutting the transport `cuts` times.
pub(super) fn exchange(
    seed: u64,
    network: Network,
    agent: AgentConfig,
    plan: Vec<(Bytes, Bytes)>,
    cuts: usize,
) -> World {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let destinations = plan
        .iter()
        .map(|(upload, answer)| Destination::Answer { request_len: upload.len(), answer: answer.clone() })
        .collect();
    let mut world = World::new(seed, Config::default(), agent, destinations);
    world.network = network;
    world.run_until(|world| world.established);
    let mut expected = Vec::new();
    for (upload, answer) in plan {
        let id = world.open(upload.clone(), rng.below(2) == 0);
        expected.push(Expected { id, upload, answer });
        let pause = rng.below(30);
        world.run_for(Duration::from_millis(pause));
    }
    for _ in 0..cuts {
        let wait = rng.below(700);
        world.run_for(Duration::from_millis(wait));
        world.cut();
        let outage = rng.below(3000);
        world.run_for(Duration::from_millis(outage));
        world.reattach();
    }
    world.run_until(World::all_ended);
    for Expected { id, upload, answer } in &expected {
        let program = &world.programs[id];
        assert_eq!(program.end, Some(End::Closed), "seed {seed}, stream {id}");
        assert!(program.received == answer, "seed {seed}, stream {id}: the answer differs");
        assert!(world.agent.streams[id].received == upload, "seed {seed}, stream {id}: the request differs");
    }
    world.network = Network::default();
    world.run_for(Duration::from_secs(120));
    assert_eq!(world.closed, None, "seed {seed}");
    assert_eq!(world.agent.unacknowledged(), 0, "seed {seed}: every message of the agent is acknowledged");
    let stats = world.client.stats();
    assert_eq!((stats.bytes_in_flight, stats.messages_early), (0, 0), "seed {seed}");
    assert_eq!(world.client.open_streams(), 0, "seed {seed}");
    world
}

fn lossy(percent: f64) -> Network {
    Network { loss_percent: percent, ..Network::default() }
}

#[test]
fn survives_loss_of_every_severity() {
    for (percent, size) in [(1.0, 200_000), (5.0, 60_000), (20.0, 20_000)] {
        exchange(1, lossy(percent), AgentConfig::default(), random_plan(percent as u64, 6, size), 0);
    }
}

#[test]
fn survives_duplication_and_reordering() {
    let network = Network { duplicate_percent: 30.0, jitter: Duration::from_millis(150), ..Network::default() };
    let world = exchange(3, network, AgentConfig::default(), random_plan(3, 8, 200_000), 0);
    assert!(world.client.stats().repeats_received > 100);
}

#[test]
fn sixty_four_downloads_of_a_mebibyte_survive_ten_cuts() {
    let network = Network { delay: Duration::from_millis(40), ..Network::default() };
    let agent = AgentConfig { pace: Duration::from_millis(1), ..AgentConfig::default() };
    let mut rng = Rng::new(64);
    let plan = (0..64).map(|_| (Bytes::from_static(b"GET"), rng.bytes(1 << 20))).collect();
    exchange(64, network, agent, plan, 10);
}

#[test]
fn keeps_the_agents_pace() {
    let agent = AgentConfig { pace: Duration::from_millis(1), ..AgentConfig::default() };
    exchange(9, lossy(1.0), agent, random_plan(9, 4, 100_000), 2);
}

#[test]
fn an_upload_recovers_from_loss_without_waiting_for_timeouts() {
    let mut world = World::established(5, vec![Destination::Sink]);
    world.network.loss_percent = 2.0;
    let upload = world.rng.bytes(1 << 20);
    let id = world.open(upload, false);
    world.run_until(|world| world.agent.streams.get(&id).is_some_and(|stream| stream.received.len() == 1 << 20));
    // 1040 messages at about 850 a second. With only the oldest sent again after its time-out, the
    // 20 lost ones alone would take seconds.
    assert!(world.elapsed() < Duration::from_millis(2500), "{:?}", world.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_mixture_of_faults_delivers_every_byte_once_and_in_order(
        seed in any::<u64>(),
        delay in 0_u64..120,
        jitter in 0_u64..200,
        loss in 0.0_f64..10.0,
        duplicate in 0.0_f64..20.0,
        connections in 1_usize..12,
        cuts in 0_usize..6,
    ) {
        let network = Network {
            delay: Duration::from_millis(delay),
            jitter: Duration::from_millis(jitter),
            loss_percent: loss,
            duplicate_percent: duplicate,
        };
        exchange(seed, network, AgentConfig::default(), random_plan(seed, connections, 30_000), cuts);
    }
}
