//! The agent as a value, under a clock that the test moves.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::{Map, json};
use tokio::time::Instant;

use super::super::{
    agent::{Agent, AgentEvent, AgentSetup},
    clock::{Clock, Now},
    config::AgentConfig,
    script::{AgentQuirks, DialFailure, ExtraAction},
};
use crate::route::ssm::proto::{
    handshake::{self, Flag, HandshakeError},
    message::{Acknowledgement, Flags, Header, Message, MessageId, MessageIds, MessageType, PayloadType},
    smux::frame::{Frame, StreamId},
};

const STREAM: StreamId = StreamId(3);

/// An agent and the client's side of its channel.
struct Bench {
    agent: Agent,
    start: Instant,
    now: Now,
    ids: MessageIds,
    next_number: i64,
    sent: Vec<Message>,
    acknowledged: Vec<i64>,
    events: Vec<AgentEvent>,
}

impl Bench {
    fn new(quirks: AgentQuirks) -> Self {
        Self::with_config(AgentConfig::default(), quirks)
    }

    fn with_config(config: AgentConfig, quirks: AgentQuirks) -> Self {
        let now = Now { instant: Clock::default().instant(), wall_ms: 1_700_000_000_000 };
        let setup = AgentSetup {
            config: AgentConfig { not_ready: Duration::from_millis(50), ..config },
            quirks,
            version: "3.3.1142.0".to_owned(),
            properties: Map::from_iter([("host".to_owned(), json!("h")), ("portNumber".to_owned(), json!("443"))]),
            seed: 5,
        };
        let mut bench = Self {
            agent: Agent::new(setup, now),
            start: now.instant,
            now,
            ids: MessageIds::new(6),
            next_number: 0,
            sent: Vec::new(),
            acknowledged: Vec::new(),
            events: Vec::new(),
        };
        bench.agent.start(now);
        bench.drain();
        bench
    }

    /// An agent that is ready for data.
    fn ready() -> Self {
        Self::new(AgentQuirks::default()).made_ready()
    }

    fn made_ready(self) -> Self {
        let mut bench = self;
        bench.handshake();
        bench.advance(50);
        assert_eq!(bench.take_events(), [AgentEvent::HandshakeComplete, AgentEvent::Resolve]);
        bench.agent.ready(bench.now);
        bench
    }

    /// Acknowledges the request, answers it, and acknowledges the handshake's end.
    fn handshake(&mut self) {
        let request = self.take_sent().remove(0);
        self.acknowledge(&request.header);
        let (response, _) = handshake::respond(&request.payload);
        self.input(PayloadType::HandshakeResponse, &serde_json::to_vec(&response).unwrap());
        let complete = self.take_sent().pop().unwrap();
        assert_eq!(complete.header.payload_type, PayloadType::HandshakeComplete);
        self.acknowledge(&complete.header);
        assert_eq!(self.take_acknowledged(), [0]);
    }

    fn advance(&mut self, ms: u64) {
        let until = self.now.instant + Duration::from_millis(ms);
        while let Some(at) = self.agent.poll_timeout().filter(|at| *at <= until) {
            self.now.instant = self.now.instant.max(at);
            self.agent.handle_timeout(self.now);
            self.drain();
        }
        self.now.instant = until;
    }

    fn elapsed_ms(&self) -> u128 {
        (self.now.instant - self.start).as_millis()
    }

    fn drain(&mut self) {
        while let Some(message) = self.agent.poll_transmit() {
            let Ok(message) = Message::decode(message) else { continue };
            if message.header.message_type == MessageType::Acknowledge {
                let acknowledgement = Acknowledgement::decode(&message.payload).unwrap();
                self.acknowledged.push(acknowledgement.acknowledged_message_sequence_number);
            } else {
                self.sent.push(message);
            }
        }
        self.events.extend(std::iter::from_fn(|| self.agent.poll_event()));
    }

    fn take_sent(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.sent)
    }

    fn take_acknowledged(&mut self) -> Vec<i64> {
        std::mem::take(&mut self.acknowledged)
    }

    fn take_events(&mut self) -> Vec<AgentEvent> {
        std::mem::take(&mut self.events)
    }

    fn violations(&mut self) -> Vec<String> {
        let violations = self.take_events().into_iter().filter_map(|event| match event {
            AgentEvent::Violation(what) => Some(what),
            AgentEvent::HandshakeComplete
            | AgentEvent::Resolve
            | AgentEvent::Open(_)
            | AgentEvent::Data(..)
            | AgentEvent::Fin(_)
            | AgentEvent::Terminate
            | AgentEvent::Closed { .. } => None,
        });
        violations.collect()
    }

    fn header(&mut self, payload_type: PayloadType) -> Header {
        let number = self.next_number;
        self.next_number += 1;
        Header {
            message_type: MessageType::InputStreamData,
            created_ms: 1_700_000_000_000,
            sequence_number: number,
            flags: Flags::NONE,
            id: self.ids.next_id(),
            payload_type,
        }
    }

    fn give(&mut self, message: Bytes) {
        self.agent.handle_message(self.now, message);
        self.drain();
    }

    fn input(&mut self, payload_type: PayloadType, payload: &[u8]) -> Bytes {
        let message = self.header(payload_type).encode(payload);
        self.give(message.clone());
        message
    }

    fn frames(&mut self, frames: &[Frame]) -> Bytes {
        let mut bytes = BytesMut::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        self.input(PayloadType::Output, &bytes)
    }

    fn acknowledge(&mut self, header: &Header) {
        let id = self.ids.next_id();
        self.give(Acknowledgement::encode(header, id, 1_700_000_000_000));
    }
}

#[test]
fn sends_only_the_oldest_message_again() {
    let mut bench = Bench::ready();
    bench.take_sent();
    bench.frames(&[Frame::Syn(STREAM)]);
    for _ in 0..3 {
        bench.agent.send_data(bench.now, STREAM, Bytes::from(vec![1; 500]));
        bench.drain();
    }
    let first = bench.take_sent();
    assert_eq!(first.iter().map(|message| message.header.sequence_number).collect::<Vec<_>>(), [2, 3, 4]);
    bench.advance(1000);
    let again = bench.take_sent();
    assert!(again.len() >= 3 && again.iter().all(|message| *message == first[0]), "{again:?}");
    bench.acknowledge(&first[0].header);
    bench.acknowledge(&first[2].header);
    bench.advance(1000);
    assert!(bench.take_sent().iter().all(|message| *message == first[1]));
    bench.acknowledge(&first[1].header);
    bench.advance(1000);
    assert_eq!(bench.take_sent(), []);
    assert_eq!(bench.violations(), Vec::<String>::new());
}

#[test]
fn cuts_the_stream_at_the_payload_length() {
    let mut bench = Bench::ready();
    bench.frames(&[Frame::Syn(STREAM)]);
    bench.take_sent();
    bench.agent.send_data(bench.now, STREAM, Bytes::from(vec![1; 3000]));
    bench.drain();
    let lens: Vec<usize> = bench.take_sent().iter().map(|message| message.payload.len()).collect();
    assert_eq!(lens, [1024, 1024, 960]);
}

#[test]
fn paced_as_real_ones_it_sends_700_messages_a_second() {
    let mut bench = Bench::with_config(AgentConfig::paced(), AgentQuirks::default()).made_ready();
    bench.frames(&[Frame::Syn(STREAM)]);
    bench.take_sent();
    for _ in 0..1000 {
        bench.agent.send_data(bench.now, STREAM, Bytes::from(vec![1; 32 << 10]));
    }
    bench.drain();
    let mut times = vec![bench.now.instant];
    let seconds = 20;
    let until = bench.now.instant + Duration::from_secs(seconds);
    bench.take_sent();
    while let Some(at) = bench.agent.poll_timeout().filter(|at| *at <= until) {
        bench.now.instant = at;
        bench.agent.handle_timeout(bench.now);
        bench.drain();
        for message in bench.take_sent() {
            if usize::try_from(message.header.sequence_number).unwrap() == times.len() + 2 {
                times.push(at);
            }
            bench.acknowledge(&message.header);
        }
    }
    let rate = u64::try_from(times.len()).unwrap() / seconds;
    assert!((650..=750).contains(&rate), "{rate} messages a second");
    let pauses: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().all(|pause| *pause >= Duration::from_millis(1)), "never more than 1000 messages a second");
    assert!(pauses.iter().any(|pause| *pause > Duration::from_millis(2)), "now and then a sleep takes far too long");
}

#[test]
fn keeps_its_pace_however_late_timers_are() {
    let config = AgentConfig { oversleep: Duration::ZERO, ..AgentConfig::paced() };
    let mut bench = Bench::with_config(config, AgentQuirks::default()).made_ready();
    bench.frames(&[Frame::Syn(STREAM)]);
    bench.take_sent();
    bench.agent.send_data(bench.now, STREAM, Bytes::from(vec![1; 20 << 10]));
    bench.drain();
    for later in 0..5 {
        assert_eq!(bench.take_sent().len(), if later == 0 { 1 } else { 2 });
        bench.now.instant += Duration::from_millis(2);
        bench.agent.handle_timeout(bench.now);
        bench.drain();
    }
    bench.advance(100);
    bench.take_sent();
    // What was not sent while there was nothing to send is not made up for.
    bench.agent.send_data(bench.now, STREAM, Bytes::from(vec![1; 20 << 10]));
    bench.drain();
    assert_eq!(bench.take_sent().len(), 1);
}

#[test]
fn acknowledges_duplicates_and_early_messages() {
    let mut bench = Bench::ready();
    let first = bench.frames(&[Frame::Syn(STREAM)]);
    bench.give(first);
    assert_eq!(bench.take_acknowledged(), [1, 1]);
    let (second, third) = (bench.header(PayloadType::Output), bench.header(PayloadType::Output));
    let data = |text: &'static str| {
        let mut bytes = BytesMut::new();
        Frame::Psh(STREAM, text.into()).encode(&mut bytes);
        bytes
    };
    bench.agent.expect_gaps();
    bench.give(third.encode(&data("b")));
    bench.give(second.encode(&data("a")));
    assert_eq!(bench.take_acknowledged(), [3, 2]);
    let expected =
        [AgentEvent::Open(STREAM), AgentEvent::Data(STREAM, "a".into()), AgentEvent::Data(STREAM, "b".into())];
    assert_eq!(bench.take_events(), expected);
}

#[test]
fn old_agents_do_not_acknowledge_duplicates() {
    for (version, setting, acknowledges) in [
        ("3.1.1374.0", None, false),
        ("3.2.1040.0", None, false),
        ("3.2.1041.0", None, true),
        ("3.3.1142.0", None, true),
        ("odd", None, true),
        ("3.2.1040.0", Some(false), true),
        ("3.3.1142.0", Some(true), false),
    ] {
        let version = Some(version.to_owned());
        let quirks = AgentQuirks { version: version.clone(), ignore_duplicates: setting, ..AgentQuirks::default() };
        let mut bench = Bench::new(quirks).made_ready();
        let first = bench.frames(&[Frame::Syn(STREAM)]);
        assert_eq!(bench.take_acknowledged(), [1]);
        bench.give(first);
        assert_eq!(bench.take_acknowledged().len(), usize::from(acknowledges), "{version:?}, {setting:?}");
        // It goes on in any case.
        bench.frames(&[Frame::Psh(STREAM, "a".into())]);
        assert_eq!(bench.take_acknowledged(), [2]);
        assert_eq!(bench.take_events(), [AgentEvent::Open(STREAM), AgentEvent::Data(STREAM, "a".into())]);
    }
}

#[test]
fn refuses_data_until_the_destination_is_resolved() {
    let mut bench = Bench::new(AgentQuirks::default());
    bench.handshake();
    let message = bench.frames(&[Frame::Syn(STREAM)]);
    assert_eq!(bench.take_acknowledged(), Vec::<i64>::new());
    bench.advance(50);
    bench.agent.ready(bench.now);
    bench.give(message);
    assert_eq!(bench.take_acknowledged(), [1]);
    assert_eq!(bench.violations(), Vec::<String>::new());
}

#[test]
fn acknowledges_and_loses_data_before_the_handshake() {
    let mut bench = Bench::new(AgentQuirks::default());
    bench.frames(&[Frame::Syn(STREAM)]);
    assert_eq!(bench.take_acknowledged(), [0]);
    assert_eq!(
        bench.violations(),
        ["sent data before the end of the handshake, which an agent acknowledges and loses"]
    );
}

#[test]
fn gives_up_without_a_handshake_response() {
    let mut bench = Bench::new(AgentQuirks::default());
    bench.advance(14_000);
    assert_eq!(bench.take_events(), []);
    bench.advance(1100);
    assert!(
        matches!(&bench.take_events()[..], [AgentEvent::Closed { output }] if output.contains("Handshake timed out"))
    );
    assert!(bench.elapsed_ms() >= 15_000);
}

#[test]
fn a_second_handshake_response_hangs_it() {
    let mut bench = Bench::ready();
    bench.input(PayloadType::HandshakeResponse, b"{}");
    assert_eq!(bench.violations(), ["sent a handshake response that nobody waits for"]);
    bench.take_acknowledged();
    bench.frames(&[Frame::Syn(STREAM)]);
    assert_eq!(bench.take_acknowledged(), Vec::<i64>::new());
}

#[test]
fn a_client_that_refuses_an_action_ends_the_session() {
    for (quirks, expected) in [
        (
            AgentQuirks { extra_action: Some(ExtraAction::Kms("arn:k".into())), ..AgentQuirks::default() },
            HandshakeError::KmsEncryption("arn:k".into()),
        ),
        (
            AgentQuirks { extra_action: Some(ExtraAction::Unknown("Dance".into())), ..AgentQuirks::default() },
            HandshakeError::UnknownAction("Dance".into()),
        ),
        (
            AgentQuirks { session_type: Some("Standard_Stream".into()), ..AgentQuirks::default() },
            HandshakeError::SessionType("Standard_Stream".into()),
        ),
        (AgentQuirks { port_type: Some(String::new()), ..AgentQuirks::default() }, HandshakeError::PortType("".into())),
    ] {
        let mut bench = Bench::new(quirks);
        let request = bench.take_sent().remove(0);
        let (response, agreement) = handshake::respond(&request.payload);
        assert_eq!(agreement, Err(expected));
        bench.input(PayloadType::HandshakeResponse, &serde_json::to_vec(&response).unwrap());
        assert!(
            matches!(&bench.take_events()[..], [AgentEvent::Closed { output }] if output.contains("failed on client"))
        );
    }
}

#[test]
fn reports_acknowledgements_that_do_not_match() {
    let mut bench = Bench::new(AgentQuirks::default());
    let request = bench.take_sent().remove(0).header;
    for (header, what) in [
        (Header { id: MessageId([7; 16]), ..request.clone() }, "acknowledged number 0 with id"),
        (Header { sequence_number: 9, ..request.clone() }, "acknowledged number 9, which was never sent"),
        (
            Header { message_type: MessageType::InputStreamData, ..request.clone() },
            "acknowledged number 0 as `input_stream_data`",
        ),
    ] {
        bench.acknowledge(&header);
        let violations = bench.violations();
        assert!(violations.len() == 1 && violations[0].starts_with(what), "{violations:?}");
    }
    bench.acknowledge(&request);
    bench.acknowledge(&request);
    assert_eq!(bench.violations(), Vec::<String>::new());
}

#[test]
fn reports_what_a_real_agent_would_let_pass() {
    let mut bench = Bench::ready();
    let report = |bench: &mut Bench, message: Bytes, what: &str| {
        bench.give(message);
        let violations = bench.violations();
        assert!(violations.iter().any(|violation| violation.contains(what)), "{what}: {violations:?}");
    };
    let header = bench.header(PayloadType::Output);
    let good = header.encode(b"\x01\x03\0\0\0\0\0\0");
    let mut damaged = good.to_vec();
    damaged[124] ^= 1;
    report(&mut bench, damaged.into(), "digest");
    bench.give(good);
    assert_eq!(bench.violations(), Vec::<String>::new());
    let other = Header { id: MessageId([1; 16]), ..header.clone() }.encode(b"\x01\x03\0\0\0\0\0\0");
    report(&mut bench, other, "two different messages with number 1");
    let gap = Header { sequence_number: 7, ..header.clone() }.encode(b"x");
    report(&mut bench, gap, "sent number 7 where 2 is due");
    let flagged = Header { sequence_number: 8, flags: Flags::SYN, ..header.clone() }.encode(b"x");
    report(&mut bench, flagged, "with flags 1");
    let empty = Header { sequence_number: 2, ..header }.encode(b"");
    report(&mut bench, empty, "without payload");
}

#[test]
fn reports_misuse_of_streams() {
    for (frames, what) in [
        (vec![Frame::Psh(STREAM, "x".into())], "used stream 3 without opening it"),
        (vec![Frame::Syn(STREAM), Frame::Syn(STREAM)], "opened stream 3 twice"),
        (
            vec![Frame::Syn(STREAM), Frame::Fin(STREAM), Frame::Psh(STREAM, "x".into())],
            "sent data on stream 3 after closing it",
        ),
        (vec![Frame::Syn(STREAM), Frame::Fin(STREAM), Frame::Fin(STREAM)], "closed stream 3 twice"),
    ] {
        let mut bench = Bench::ready();
        bench.frames(&frames);
        assert_eq!(bench.violations(), [what]);
    }
    let mut bench = Bench::ready();
    bench.input(PayloadType::Output, &[9; 8]);
    let events = bench.take_events();
    assert!(matches!(&events[..], [AgentEvent::Violation(_), AgentEvent::Closed { .. }]), "{events:?}");
}

#[test]
fn drains_before_it_ends() {
    let mut bench = Bench::ready();
    bench.frames(&[Frame::Syn(STREAM)]);
    bench.agent.send_data(bench.now, STREAM, "bye".into());
    bench.drain();
    let unacknowledged = bench.take_sent().pop().unwrap();
    bench.take_events();
    bench.input(PayloadType::Flag, &Flag::TerminateSession.encode());
    assert_eq!(bench.take_events(), [AgentEvent::Terminate]);
    bench.acknowledge(&unacknowledged.header);
    assert_eq!(bench.take_events(), [AgentEvent::Closed { output: String::new() }]);

    let mut bench = Bench::ready();
    bench.frames(&[Frame::Syn(STREAM)]);
    bench.agent.send_data(bench.now, STREAM, "bye".into());
    bench.input(PayloadType::Flag, &Flag::TerminateSession.encode());
    bench.take_events();
    bench.input(PayloadType::Flag, &Flag::TerminateSession.encode());
    assert_eq!(bench.violations(), ["sent the flag that ends the session twice"]);
}

#[test]
fn a_pause_stops_data_and_repeats_until_the_client_speaks() {
    let mut bench = Bench::ready();
    let stream = bench.frames(&[Frame::Syn(STREAM)]);
    bench.agent.pause();
    bench.agent.send_data(bench.now, STREAM, "later".into());
    bench.drain();
    bench.advance(2000);
    assert_eq!(bench.take_sent(), []);
    bench.give(stream);
    assert_eq!(bench.take_sent().len(), 1);
}

#[test]
fn says_how_a_dial_failed_as_told() {
    for (dial_failure, kinds) in [
        (DialFailure::FlagAndFin, vec![PayloadType::Flag, PayloadType::Output]),
        (DialFailure::FlagOnly, vec![PayloadType::Flag]),
        (DialFailure::FinOnly, vec![PayloadType::Output]),
    ] {
        let mut bench = Bench::ready();
        bench.agent.set_quirks(AgentQuirks { dial_failure, ..AgentQuirks::default() });
        bench.frames(&[Frame::Syn(STREAM)]);
        bench.take_sent();
        bench.agent.dial_failed(bench.now, STREAM);
        bench.drain();
        assert_eq!(bench.take_sent().iter().map(|message| message.header.payload_type).collect::<Vec<_>>(), kinds);
    }
}

#[test]
fn old_clients_get_a_keepalive_that_kills_idle_sessions() {
    let mut bench = Bench::new(AgentQuirks::default());
    let request = bench.take_sent().remove(0);
    bench.acknowledge(&request.header);
    let (mut response, _) = handshake::respond(&request.payload);
    response.client_version = "1.2.331.0".to_owned();
    bench.input(PayloadType::HandshakeResponse, &serde_json::to_vec(&response).unwrap());
    let complete = bench.take_sent().pop().unwrap();
    bench.acknowledge(&complete.header);
    bench.advance(50);
    bench.agent.ready(bench.now);
    bench.take_events();
    bench.advance(29_000);
    assert_eq!(bench.take_events(), []);
    bench.advance(2000);
    assert_eq!(bench.take_events(), [AgentEvent::Closed { output: String::new() }]);
}
