//! Pauses of publication, the client's and the agent's.

use std::time::Duration;

use bytes::Bytes;

use super::{
    super::{CloseReason, Config, message::PayloadType, smux::frame::Frame},
    agent::{AgentConfig, Destination},
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
    let before = world.client_sent.len();
    let id = world.open(Bytes::from(vec![1; 5000]), false);
    world.run_for(Duration::from_millis(900));
    assert_eq!(world.client_sent.len(), before, "nothing is sent in a pause before it is time to ask");
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
    world.upstream_lost = true;
    world.client.handle_message(world.now, service_message("pause_publication", b"x"));
    world.open(Bytes::from_static(b"x"), false);
    world.run_for(secs(30));
    assert!(!world.all_ended());
    world.upstream_lost = false;
    world.client.handle_message(world.now, service_message("start_publication", b""));
    let start = world.elapsed();
    world.run_until(World::all_ended);
    assert_eq!(world.elapsed() - start, Duration::from_millis(40));
}

#[test]
fn a_pause_that_nobody_ends_is_over_when_a_question_is_answered() {
    for opens_stream in [false, true] {
        let mut world = World::established(1, vec![answer(1, b"ok")]);
        world.run_for(secs(5));
        assert_eq!(world.client.stats().bytes_in_flight, 0, "nothing is outstanding");
        world.client.handle_message(world.now, service_message("pause_publication", b""));
        world.client_sent.clear();
        if opens_stream {
            world.open(Bytes::from_static(b"x"), false);
        }
        world.run_for(Duration::from_millis(1010));
        assert_eq!((world.client_sent.len(), world.client.is_paused()), (1, true));
        world.run_for(Duration::from_millis(100));
        assert_eq!((world.client.is_paused(), world.agent.nops), (false, 1));
        assert!(world.all_ended(), "the stream has its answer");
        world.run_for(secs(300));
        assert_eq!((world.closed.is_some(), world.agent.nops), (false, 1), "one question is enough");
    }
}

#[test]
fn a_pause_of_a_session_that_nobody_uses_is_the_end_of_it_if_no_question_is_answered() {
    let mut world = World::established(1, vec![]);
    world.run_for(secs(5));
    world.upstream_lost = true;
    world.client.handle_message(world.now, service_message("pause_publication", b""));
    world.client_sent.clear();
    let start = world.elapsed();
    world.run_for(secs(89));
    assert_eq!((world.client_sent.len(), world.closed.is_some()), (89, false), "one question, asked once a second");
    assert_eq!(world.client.stats().messages_sent, 2, "the response and the question");
    world.run_until(|world| world.closed.is_some());
    assert_eq!(world.closed, Some(CloseReason::Paused { seconds: 90 }));
    assert_eq!(world.elapsed() - start, secs(90));
}

#[test]
fn a_pause_in_which_nothing_may_be_asked_is_not_the_end() {
    let agent = AgentConfig { mute: true, ..AgentConfig::default() };
    let config = Config { handshake_timeout: secs(200), ..Config::default() };
    let mut world = World::new(1, config, agent, vec![]);
    world.client.handle_message(world.now, service_message("pause_publication", b""));
    world.run_until(|world| world.closed.is_some());
    assert_eq!(world.closed, Some(CloseReason::HandshakeTimeout { seconds: 200, requested: false }));
    assert!(world.client_sent.is_empty(), "an agent loses data before the end of the handshake");

    let mut world = World::established(1, vec![]);
    world.client.terminate(world.now);
    world.run_for(secs(1));
    assert!(world.client.terminate_acknowledged());
    world.client.handle_message(world.now, service_message("pause_publication", b""));
    world.client_sent.clear();
    world.run_for(secs(100));
    assert_eq!((world.client_sent.len(), world.closed), (0, None), "nothing follows the flag that ends the session");
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

#[test]
fn a_watch_goes_on_after_a_resume_although_the_client_has_nothing_to_say() {
    let mut world = World::established(1, vec![Destination::Echo]);
    let watch = world.open(Bytes::from_static(b"watch"), false);
    world.run_for(secs(2));
    assert_eq!((world.programs[&watch].received.len(), world.client.stats().bytes_in_flight), (5, 0));
    // The client is away when there is something new, so the service pauses the agent.
    world.cut();
    world.agent.pause_until_heard();
    world.agent.send_frame(&Frame::Psh(watch, Bytes::from_static(b", event")));
    world.run_for(secs(3));
    let acknowledged: u32 = world.agent.acks_in.values().sum();
    world.reattach();
    world.run_for(secs(2));
    assert!(!world.agent.is_paused());
    assert_eq!(world.programs[&watch].received, "watch, event");
    // One repeat, and the acknowledgement of the event.
    assert_eq!(world.agent.acks_in.values().sum::<u32>(), acknowledged + 2);
}

#[test]
fn each_resume_brings_one_sign_of_life() {
    let mut world = World::established(1, vec![]);
    world.run_for(secs(2));
    for _ in 0..3 {
        world.cut();
        world.run_for(secs(1));
        world.client_sent.clear();
        world.reattach();
        world.run_for(secs(60));
        assert_eq!(world.client_sent.len(), 1, "the acknowledgement of the latest message");
    }
    let latest = *world.agent.acks_in.keys().last().unwrap();
    assert_eq!(world.agent.acks_in[&latest], 4);
}

#[test]
fn a_resume_before_anything_has_come_brings_no_sign_of_life() {
    let agent = AgentConfig { mute: true, ..AgentConfig::default() };
    let mut world = World::new(1, Config::default(), agent, vec![]);
    world.cut();
    world.reattach();
    world.run_for(secs(10));
    assert!(world.client_sent.is_empty());
}
