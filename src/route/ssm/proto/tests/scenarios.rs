//! One behaviour each: handshake, refusals, half-close, limits, pauses, timeouts.

use std::time::Duration;

use bytes::Bytes;

use super::{
    super::{
        CloseReason, Config, Event, MessageIds, Now, OpenError, PortSession, StreamId,
        handshake::{Flag, HandshakeError},
        message::{Flags, Header, Message, MessageId, MessageType, PayloadType, SERVICE_HEADER_LENGTH_FIELD},
        smux::frame::{Frame, FrameError},
    },
    agent::{AgentConfig, Destination},
    world::{End, World},
};

pub(super) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A message of the service itself: NUL padding, short header, any digest.
pub(super) fn service_message(name: &str, payload: &[u8]) -> Bytes {
    use sha2::Digest;
    let mut message = vec![0; 116];
    message[..4].copy_from_slice(&SERVICE_HEADER_LENGTH_FIELD.to_be_bytes());
    message[4..4 + name.len()].copy_from_slice(name.as_bytes());
    message[40..48].copy_from_slice(&1_u64.to_be_bytes());
    message[80..112].copy_from_slice(&sha2::Sha256::digest(payload));
    message[112..116].copy_from_slice(&(payload.len() as u32).to_be_bytes());
    message.extend_from_slice(payload);
    message.into()
}

pub(super) fn agent_message(number: i64, payload_type: PayloadType, payload: &[u8]) -> Bytes {
    Header {
        message_type: MessageType::OutputStreamData,
        created_ms: 1,
        sequence_number: number,
        flags: Flags::NONE,
        id: MessageId([7; 16]),
        payload_type,
    }
    .encode(payload)
}

pub(super) fn answer(request_len: usize, answer: &'static [u8]) -> Destination {
    Destination::Answer { request_len, answer: Bytes::from_static(answer) }
}

#[test]
fn a_request_and_its_answer() {
    let mut world = World::established(1, vec![answer(4, b"pong")]);
    let id = world.open(Bytes::from_static(b"ping"), false);
    world.run_until(World::all_ended);
    assert_eq!(world.programs[&id].received, "pong");
    assert_eq!(world.programs[&id].end, Some(End::Closed));
    assert_eq!(world.agent.streams[&id].received, "ping");
    world.run_for(secs(2));
    assert!(world.agent.streams[&id].client_fin, "the client closes its side too");
    assert_eq!(world.client.open_streams(), 0);
    assert_eq!(world.agent.responses, 1);
    assert_eq!(world.alive, 1);
}

#[test]
fn the_first_data_is_sent_again_early_while_the_agent_is_not_ready() {
    let agent = AgentConfig { not_ready: Duration::from_millis(150), ..AgentConfig::default() };
    let mut world = World::new(1, Config::default(), agent, vec![answer(4, b"pong")]);
    world.run_until(|world| world.established);
    let start = world.elapsed();
    world.open(Bytes::from_static(b"ping"), false);
    world.run_until(World::all_ended);
    // The agent is ready for what leaves after 110 ms. The repeat of 120 ms and the answer take 40 ms; full time-outs
    // would take more than 200.
    assert_eq!(world.elapsed() - start, Duration::from_millis(160));
}

#[test]
fn a_refused_destination_is_told_from_a_close_without_an_answer() {
    let mut world = World::established(1, vec![answer(0, b""), Destination::Refuse, answer(1, b"x")]);
    let closed = world.open(Bytes::new(), false);
    let refused = world.open(Bytes::from_static(b"hello"), false);
    let answered = world.open(Bytes::from_static(b"y"), false);
    world.run_until(World::all_ended);
    assert_eq!(world.programs[&closed].end, Some(End::Closed));
    assert_eq!(world.programs[&refused].end, Some(End::Refused));
    assert_eq!(world.programs[&answered].end, Some(End::Closed));
    assert_eq!(world.closed, None, "the session goes on");
}

#[test]
fn a_refusal_of_a_stream_that_is_already_closed_hits_no_other() {
    let mut world = World::established(1, vec![Destination::Refuse, answer(1, b"")]);
    let gone = world.client.open_stream(world.now).unwrap();
    world.client.reset(world.now, gone);
    let other = world.open(Bytes::from_static(b"x"), false);
    world.run_until(World::all_ended);
    assert_eq!(world.programs[&other].end, Some(End::Closed));
}

#[test]
fn half_close_does_not_cut_off_the_answer() {
    let mut world = World::established(1, vec![answer(3, b"late answer")]);
    world.network.delay = secs(2);
    let id = world.open(Bytes::from_static(b"req"), true);
    world.run_until(World::all_ended);
    assert_eq!(world.programs[&id].received, "late answer");
}

#[test]
fn a_half_closed_stream_without_an_answer_is_closed_in_the_end() {
    let mut world = World::established(1, vec![Destination::Sink]);
    let id = world.open(Bytes::from_static(b"bye"), true);
    world.run_for(secs(29));
    assert_eq!(world.programs[&id].end, None);
    world.run_for(secs(3));
    assert_eq!(world.programs[&id].end, Some(End::Closed));
    assert_eq!(world.agent.streams[&id].received, "bye");
}

#[test]
fn of_too_many_half_closed_streams_the_one_without_an_answer_for_longest_is_closed() {
    let config = Config { half_closed_streams: 2, ..Config::default() };
    let mut world = World::new(1, config, AgentConfig::default(), vec![Destination::Sink]);
    world.run_until(|world| world.established);
    let [first, second] = [(); 2].map(|()| {
        let id = world.open(Bytes::from_static(b"x"), true);
        world.run_for(secs(1));
        id
    });
    // Now the second is the one without.
    world.agent.send_frame(&Frame::Psh(first, Bytes::from_static(b"still here")));
    world.run_for(secs(1));
    let third = world.open(Bytes::from_static(b"x"), true);
    world.run_for(secs(1));
    assert_eq!([first, second, third].map(|id| world.programs[&id].end), [None, Some(End::Closed), None]);
    assert_eq!(world.programs[&first].received, "still here");
    world.run_for(secs(30));
    assert_eq!(world.client.open_streams(), 0, "all have their time");
}

#[test]
fn what_a_program_wrote_before_it_left_is_delivered() {
    let mut world = World::established(1, vec![Destination::Sink]);
    let id = world.client.open_stream(world.now).unwrap();
    world.client.write(world.now, id, Bytes::from(vec![5; 60_000]));
    world.client.reset(world.now, id);
    world.run_for(secs(3));
    assert_eq!(world.agent.streams[&id].received.len(), 60_000);
    assert!(world.agent.streams[&id].client_fin);
}

#[test]
fn terminate_is_sent_once_and_acknowledged() {
    let mut world = World::established(1, vec![]);
    world.client.terminate(world.now);
    assert!(!world.client.terminate_acknowledged());
    world.client.terminate(world.now);
    world.run_for(secs(1));
    assert!(world.agent.terminated);
    assert!(world.client.terminate_acknowledged());
}

#[test]
fn channel_closed_ends_the_session_with_its_text() {
    for (payload, output) in [(br#"{"Output":"idle for too long"}"#.as_slice(), "idle for too long"), (b"", "")] {
        let mut world = World::established(1, vec![Destination::Echo]);
        world.open(Bytes::from_static(b"x"), false);
        world.client.handle_message(world.now, service_message("channel_closed", payload));
        world.settle();
        assert_eq!(world.closed, Some(CloseReason::ChannelClosed { output: output.into() }));
        assert_eq!(world.client.open_stream(world.now), Err(OpenError::Closed));
        assert_eq!(world.client.poll_timeout(), None);
    }
}

#[test]
fn kms_encryption_is_refused_in_words() {
    let config = AgentConfig { kms: true, ..AgentConfig::default() };
    let mut world = World::new(1, Config::default(), config, vec![]);
    world.run_until(|world| world.closed.is_some());
    let reason = world.closed.clone().unwrap();
    assert_eq!(reason, CloseReason::Handshake(HandshakeError::KmsEncryption("arn:aws:kms:k".into())));
    world.run_for(secs(1));
    assert_eq!(world.agent.responses, 1, "the agent gets its refusal all the same");
}

#[test]
fn an_agent_that_is_too_old_is_named() {
    let config = AgentConfig { version: "3.0.0.0", ..AgentConfig::default() };
    let mut world = World::new(1, Config::default(), config, vec![]);
    world.run_until(|world| world.closed.is_some());
    assert!(world.closed.unwrap().to_string().contains("3.0.0.0 is too old"));
}

#[test]
fn a_silent_agent_is_given_up() {
    let config = AgentConfig { mute: true, ..AgentConfig::default() };
    let mut world = World::new(1, Config::default(), config, vec![]);
    assert_eq!(world.client.open_stream(world.now), Err(OpenError::NotEstablished));
    world.run_until(|world| world.closed.is_some());
    assert_eq!(world.elapsed(), secs(30));
    assert_eq!(world.closed, Some(CloseReason::HandshakeTimeout { seconds: 30, requested: false }));
}

#[test]
fn repeated_handshake_requests_are_acknowledged_and_answered_once() {
    let mut world = World::established(1, vec![]);
    let number = 2;
    let request = br#"{"AgentVersion":"3.3.1142.0","RequestedClientActions":[]}"#;
    world.agent.send(world.now, PayloadType::HandshakeRequest, request);
    world.agent.send(world.now, PayloadType::HandshakeComplete, b"{}");
    world.run_for(secs(2));
    assert_eq!((world.agent.responses, world.closed.is_some()), (1, false));
    assert!(world.agent.acks_in[&number] >= 1);
}

#[test]
fn unknown_messages_and_payloads_are_ignored_and_the_latter_acknowledged() {
    let mut world = World::established(1, vec![answer(1, b"ok")]);
    for name in ["agent_job", "interactive_shell", "input_stream_data", "data_channel_ready"] {
        world.client.handle_message(world.now, service_message(name, b"{}"));
    }
    for kind in [PayloadType::None, PayloadType::EncChallengeRequest, PayloadType::Other(12), PayloadType::Flag] {
        world.agent.send(world.now, kind, b"{}");
    }
    world.agent.send(world.now, PayloadType::Flag, &Flag::Other(77).encode());
    let id = world.open(Bytes::from_static(b"x"), false);
    world.run_until(World::all_ended);
    assert_eq!(world.programs[&id].received, "ok");
    world.run_for(secs(1));
    assert_eq!(world.agent.unacknowledged(), 0);
}

#[test]
fn nops_and_frames_of_unknown_streams_are_tolerated() {
    let mut world = World::established(1, vec![answer(1, b"ok")]);
    for frame in [
        Frame::Nop,
        Frame::Psh(StreamId(3), "early".into()),
        Frame::Psh(StreamId(99), "who".into()),
        Frame::Fin(StreamId(99)),
        Frame::Syn(StreamId(4)),
        Frame::Psh(StreamId(5), Bytes::new()),
    ] {
        world.agent.send_frame(&frame);
    }
    world.run_for(secs(1));
    let id = world.open(Bytes::from_static(b"x"), false);
    world.run_until(World::all_ended);
    assert_eq!(world.programs[&id].received, "ok");
}

#[test]
fn bytes_that_are_not_smux_end_the_session() {
    let mut world = World::established(1, vec![]);
    world.agent.send(world.now, PayloadType::Output, &[2, 0, 0, 0, 3, 0, 0, 0]);
    world.run_until(|world| world.closed.is_some());
    assert_eq!(world.closed, Some(CloseReason::Smux(FrameError::Version(2))));
}

#[test]
fn damaged_messages_are_neither_used_nor_acknowledged() {
    let mut world = World::established(1, vec![]);
    let before = world.client_sent.len();
    let mut damaged = agent_message(2, PayloadType::Output, b"12345678").to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    for garbage in [damaged, vec![], vec![0; 200], vec![0xff; 3000]] {
        world.client.handle_message(world.now, garbage.into());
        world.settle();
    }
    assert_eq!((world.client_sent.len(), world.closed.is_some()), (before, false));
}

#[test]
fn an_old_agent_gets_keepalives_and_a_new_one_does_not() {
    for (version, expected) in [("3.1.1511.0", 6), ("3.3.1142.0", 0)] {
        let config = AgentConfig { version, ..AgentConfig::default() };
        let mut world = World::new(1, Config::default(), config, vec![]);
        world.run_until(|world| world.established);
        world.run_for(secs(65));
        assert_eq!(world.agent.nops, expected, "{version}");
    }
}

/// A half-closed stream is kept for its answer for half a minute, and for as long on top as answers wait in a queue.
#[test]
fn an_answer_that_is_behind_a_queue_is_waited_for() {
    let mut world = World::established(1, vec![Destination::Sink, answer(1, b"late")]);
    let busy = world.open(Bytes::from_static(b"x"), false);
    for second in 0..100 {
        world.downstream_queue = Duration::from_millis(900 * second).min(secs(40));
        world.programs.get_mut(&busy).unwrap().upload = Bytes::from_static(b"more");
        world.run_for(secs(1));
    }
    assert!((38..=41).contains(&world.client.lag().behind.as_secs()), "{:?}", world.client.lag());
    let resent = world.client.stats().messages_resent;
    let id = world.open(Bytes::from_static(b"q"), true);
    world.run_for(secs(39));
    assert_eq!(world.programs[&id].end, None, "nothing has come yet");
    world.run_until(|world| world.programs[&id].end.is_some());
    assert_eq!(world.programs[&id].received, &b"late"[..]);
    assert!(world.client.stats().messages_resent <= resent + 2, "late is not lost: {:?}", world.client.stats());
}

/// Nothing is late that nobody reads: no repeats, and no end of the session.
#[test]
fn a_transport_that_is_not_read_for_long_costs_nothing() {
    let big = Bytes::from(vec![9; 300_000]);
    let answer = Destination::Answer { request_len: 1, answer: big.clone() };
    let mut world = World::new(1, Config::default(), AgentConfig::default(), vec![answer]);
    world.run_until(|world| world.established);
    let id = world.open(Bytes::from_static(b"x"), false);
    world.read_transport(false);
    world.run_for(secs(1000));
    assert_eq!(world.closed, None);
    assert!(world.client.stats().messages_resent < 5, "{:?}", world.client.stats());
    world.read_transport(true);
    world.run_until(World::all_ended);
    assert_eq!(world.programs[&id].received, big);
}

#[test]
fn streams_that_wait_for_the_destination_are_limited() {
    let config = Config { silent_streams: 3, ..Config::default() };
    let mut world = World::new(1, config, AgentConfig::default(), vec![answer(1, b"1"), Destination::Sink]);
    world.run_until(|world| world.established);
    for _ in 0..3 {
        world.open(Bytes::from_static(b"x"), false);
    }
    assert_eq!(world.client.open_stream(world.now), Err(OpenError::Busy));
    world.run_for(secs(1));
    assert_eq!(world.client.can_open_stream(), Ok(()), "two of the three have been answered");
}

#[test]
fn a_writer_waits_when_the_destination_is_slow_and_goes_on_later() {
    let mut world = World::established(1, vec![Destination::Sink]);
    world.connected = false;
    let upload = world.rng.bytes(1 << 20);
    let id = world.open(upload.clone(), false);
    world.run_for(secs(1));
    assert_eq!(world.client.writable_len(id), 0);
    let config = Config::default();
    let taken = upload.len() - world.programs[&id].upload.len();
    let most = config.window + config.payload_len + config.stream_outbox + (16 << 10);
    assert!(taken <= most, "{taken} bytes are held of at most {most}");
    world.connected = true;
    world.run_until(|world| world.agent.streams.get(&id).is_some_and(|stream| stream.received.len() == 1 << 20));
    assert_eq!(world.agent.streams[&id].received, upload);
}

#[test]
fn a_small_request_does_not_wait_for_a_bulk_upload() {
    let mut world = World::established(1, vec![Destination::Sink, answer(10, b"quick")]);
    let upload = world.rng.bytes(8 << 20);
    let bulk = world.open(upload, false);
    world.run_for(secs(2));
    let start = world.elapsed();
    let small = world.open(Bytes::from_static(b"0123456789"), false);
    world.run_until(|world| world.programs[&small].end.is_some());
    assert!(world.elapsed() - start < Duration::from_millis(60), "{:?}", world.elapsed() - start);
    assert!(!world.programs[&bulk].upload.is_empty(), "the upload is still under way");
}

/// Most messages of the client in any second.
pub(super) fn most_in_a_second(world: &World) -> usize {
    let times = &world.client_sent;
    let in_second = |start: Duration| times.iter().filter(|at| (start..start + secs(1)).contains(*at)).count();
    times.iter().map(|start| in_second(*start)).max().unwrap_or_default()
}

#[test]
fn after_a_burst_no_second_has_more_messages_than_the_limit() {
    // An echo has an acknowledgement for each message; data may always take 100 a second.
    for (destination, limit) in [(Destination::Sink, 900), (Destination::Echo, 1000)] {
        let mut world = World::established(1, vec![destination]);
        let upload = world.rng.bytes(16 << 20);
        world.open(upload, false);
        // By then what a quiet session has saved is used up.
        world.run_for(secs(6));
        let most = most_in_a_second(&world);
        assert!(most <= 1550, "{most} in a burst");
        world.client_sent.clear();
        world.run_for(secs(4));
        let most = most_in_a_second(&world);
        assert!(most <= limit, "{most} of {limit}");
        assert!(world.client_sent.len() > 3390, "uses what it may: {}", world.client_sent.len());
    }
}

#[test]
fn an_agent_that_acknowledges_nothing_is_given_up_after_five_minutes() {
    let mut world = World::established(1, vec![Destination::Sink]);
    world.run_for(secs(1));
    world.network.loss_percent = 100.0;
    let start = world.elapsed();
    world.open(Bytes::from_static(b"x"), false);
    world.run_until(|world| world.closed.is_some());
    assert_eq!(world.closed, Some(CloseReason::Unacknowledged { seconds: 300 }));
    assert_eq!(world.elapsed() - start, secs(300));
    assert!(world.client_sent.len() < 400, "about one repeat a second: {}", world.client_sent.len());
}

#[test]
fn while_detached_nothing_is_transmitted_and_no_deadline_counts() {
    let mut world = World::established(1, vec![Destination::Sink]);
    world.open(Bytes::from(vec![1; 400_000]), false);
    world.cut();
    let sent = world.client_sent.len();
    world.run_for(secs(1000));
    assert_eq!((world.client_sent.len(), world.closed.is_some()), (sent, false));
    world.reattach();
    world.run_until(|world| world.agent.streams.values().any(|stream| stream.received.len() == 400_000));
    assert_eq!(world.alive, 2);
}

#[test]
fn repeats_after_a_new_transport_are_paced() {
    let mut world = World::established(1, vec![Destination::Sink]);
    world.run_for(secs(1));
    world.network.loss_percent = 100.0;
    let upload = world.rng.bytes(64 << 10);
    world.open(upload, false);
    world.run_for(secs(5));
    world.network.loss_percent = 0.0;
    world.cut();
    world.client_sent.clear();
    world.reattach();
    world.run_for(Duration::from_millis(100));
    let count = world.client_sent.len();
    assert!((35..=45).contains(&count), "{count} of 64 repeats in a tenth of a second");
}

#[test]
fn a_session_cut_inside_the_handshake_completes_it_on_the_next_transport() {
    for cut_after in [0, 10, 25, 35, 45, 55] {
        let mut world = World::new(1, Config::default(), AgentConfig::default(), vec![answer(1, b"ok")]);
        world.run_for(Duration::from_millis(cut_after));
        world.cut();
        world.run_for(secs(40));
        world.reattach();
        world.run_until(|world| world.established);
        world.open(Bytes::from_static(b"x"), false);
        world.run_until(World::all_ended);
        assert_eq!(world.agent.responses, 1, "cut after {cut_after} ms");
    }
}

#[test]
fn a_flood_without_reading_is_bounded() {
    let now = Now { mono: secs(1), wall: secs(1) };
    let mut session =
        PortSession::new(Config { reorder_budget: 1 << 20, ..Config::default() }, MessageIds::new(1), now);
    for number in (1..60_000).rev() {
        session.handle_message(now, agent_message(number, PayloadType::Output, &[0; 500]));
    }
    let stats = session.stats();
    assert!(stats.messages_early * 500 <= 1 << 20);
    assert!(stats.messages_refused > 50_000);
    let acks = std::iter::from_fn(|| session.poll_transmit(now)).count();
    assert_eq!(acks, stats.messages_early);
}

#[test]
fn the_backlog_is_what_the_agent_needs_to_repeat_what_was_lost() {
    let mut world = World::established(1, vec![Destination::Sink]);
    assert_eq!(world.client.backlog(world.now), Duration::ZERO);
    let nop = |number| agent_message(number, PayloadType::Output, &[1, 3, 0, 0, 0, 0, 0, 0]);
    world.client.handle_message(world.now, nop(42));
    assert_eq!(world.client.backlog(world.now), secs(4), "numbers 2 to 41, ten a second");
    for number in 2..42 {
        world.client.handle_message(world.now, nop(number));
    }
    assert_eq!(world.client.backlog(world.now), Duration::ZERO);
}

#[test]
fn what_stands_still_is_taken_to_do_so_for_as_long_again() {
    let mut world = World::established(1, vec![answer(4, b"pong")]);
    let paused = world.now.mono;
    world.upstream_lost = true;
    world.client.handle_message(world.now, service_message("pause_publication", b""));
    world.run_for(secs(7));
    assert_eq!(world.client.backlog(world.now), world.now.mono - paused);
    world.upstream_lost = false;
    world.client.handle_message(world.now, service_message("start_publication", b""));
    world.run_for(secs(1));
    assert_eq!(world.client.backlog(world.now), Duration::ZERO);

    world.network.loss_percent = 100.0;
    world.open(Bytes::from_static(b"ping"), false);
    world.run_for(secs(4));
    let backlog = world.client.backlog(world.now);
    assert!((secs(3)..=secs(4)).contains(&backlog), "{backlog:?}");
    world.network.loss_percent = 0.0;
    world.run_until(World::all_ended);
    assert_eq!(world.client.backlog(world.now), Duration::ZERO);
}

#[test]
fn messages_have_the_agreed_size_and_share_frames() {
    let mut world = World::established(1, vec![Destination::Sink, Destination::Sink]);
    let now = world.now;
    let (a, b) = (world.client.open_stream(now).unwrap(), world.client.open_stream(now).unwrap());
    world.client.write(now, a, Bytes::from_static(b"aa"));
    world.client.write(now, b, Bytes::from(vec![1; 5000]));
    let sizes: Vec<_> = std::iter::from_fn(|| world.client.poll_transmit(now))
        .map(|message| Message::decode(message).unwrap().payload.len())
        .collect();
    // The first message holds two SYN, "aa" and the first 990 of 5000 bytes; full ones hold 1016.
    assert_eq!(sizes, [1024, 1024, 1024, 1024, 5000 - 990 - 3 * 1016 + 8]);
    assert!(matches!(world.client.poll_event(), None | Some(Event::Writable { .. })));
}

#[test]
fn acknowledgements_that_were_lost_with_a_transport_do_not_hold_up_what_was_lost_with_it() {
    let answer_len = 2 << 20;
    let agent = AgentConfig { pace: Duration::from_millis(1), ..AgentConfig::default() };
    let big = Bytes::from(vec![7; answer_len]);
    let mut world = World::new(1, Config::default(), agent, vec![Destination::Answer { request_len: 1, answer: big }]);
    world.run_until(|world| world.established);
    let id = world.open(Bytes::from_static(b"x"), false);
    world.run_for(Duration::from_millis(500));
    // Nothing gets out for half a second, so 500 acknowledgements are lost; then 40 messages are lost as well.
    world.upstream_lost = true;
    world.run_for(Duration::from_millis(500));
    world.cut();
    world.upstream_lost = false;
    world.reattach();
    let start = world.elapsed();
    world.run_until(|world| world.client.backlog(world.now) > Duration::ZERO);
    world.run_until(|world| world.client.backlog(world.now).is_zero());
    // The agent repeats one message every 100 ms: with the 500 first, the 20 or so that are missing would take 50 s.
    assert!(world.elapsed() - start < secs(8), "{:?}", world.elapsed() - start);
    world.run_until(World::all_ended);
    assert_eq!(world.programs[&id].received.len(), answer_len);
}
