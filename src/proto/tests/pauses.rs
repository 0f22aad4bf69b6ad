//! Pauses of publication, the client's and the agent's.

use std::time::Duration;

use bytes::Bytes;

use super::{
    super::{CloseReason, message::PayloadType},
    agent::Destination,
    scenarios::{answer, most_in_a_second, secs, service_message},
    world::World,
};

#[test]
fn after_a_pause_less_is_sent() {
    let mut world = World::established(1, vec![Destination::Sink]);
    let upload = world.rng.bytes(64 << 20);
    world.open(upload, false);
    world.run_for(secs(2));
    world.client.handle_message(world.now, service_message("pause_publication", b""));
    world.client.handle_message(world.now, service_message("start_publication", b""));
    world.client_sent.clear();
    world.run_for(secs(2));
    let most = most_in_a_second(&world);
    assert!((600..=690).contains(&most), "three quarters of the rate: {most}");
    world.run_for(secs(60));
    world.client_sent.clear();
    world.run_for(secs(2));
    assert!(most_in_a_second(&world) > 840, "it comes back");
}

#[test]
fn a_pause_stops_data_and_not_acknowledgements() {
    let mut world = World::established(1, vec![Destination::Sink, Destination::Sink]);
    world.run_for(secs(1));
    world.client.handle_message(world.now, service_message("pause_publication", b""));
    let id = world.open(Bytes::from(vec![1; 5000]), false);
    world.run_for(secs(3));
    assert!(!world.agent.streams.contains_key(&id), "nothing is sent in a pause");
    let before = world.client_sent.len();
    world.agent.send(world.now, PayloadType::None, b"{}");
    world.run_for(Duration::from_millis(21));
    assert!(world.client_sent.len() > before, "acknowledgements go out, and the agent's message ends the pause");
    world.run_for(secs(1));
    assert_eq!(world.agent.streams[&id].received.len(), 5000);
}

#[test]
fn an_agent_that_the_service_has_paused_goes_on_where_it_stopped() {
    let body = Bytes::from(vec![7; 50_000]);
    let mut world = World::established(1, vec![Destination::Answer { request_len: 1, answer: body.clone() }]);
    let id = world.open(Bytes::from_static(b"x"), false);
    world.agent.set_paused(true);
    world.run_for(secs(30));
    assert_eq!((world.programs[&id].received.len(), world.closed.is_some()), (0, false));
    world.agent.set_paused(false);
    world.run_until(World::all_ended);
    assert_eq!(world.programs[&id].received, body);
}

#[test]
fn start_publication_ends_a_pause() {
    let mut world = World::established(1, vec![answer(1, b"ok")]);
    world.client.handle_message(world.now, service_message("pause_publication", b"x"));
    world.open(Bytes::from_static(b"x"), false);
    world.run_for(secs(30));
    assert!(!world.all_ended());
    world.client.handle_message(world.now, service_message("start_publication", b""));
    world.run_until(World::all_ended);
}

#[test]
fn in_a_pause_the_oldest_message_is_tried_once_a_second_and_given_up_after_90() {
    let mut world = World::established(1, vec![Destination::Sink]);
    world.run_for(secs(1));
    world.network.loss_percent = 100.0;
    world.open(Bytes::from(vec![1; 5000]), false);
    world.client.handle_message(world.now, service_message("pause_publication", b""));
    world.client_sent.clear();
    let start = world.elapsed();
    world.run_for(secs(20));
    assert!((19..=21).contains(&world.client_sent.len()), "{}", world.client_sent.len());
    world.run_until(|world| world.closed.is_some());
    assert_eq!(world.closed, Some(CloseReason::Paused { seconds: 90 }));
    assert_eq!(world.elapsed() - start, secs(90));
}
