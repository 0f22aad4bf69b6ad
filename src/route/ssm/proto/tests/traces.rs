//! Recorded exchanges of the official client and agent, replayed against codecs and session.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::{
    Config, Event, MessageIds, Now, PortSession, StreamId,
    handshake::{Flag, HandshakeComplete, HandshakeRequest, HandshakeResponse, Version},
    message::{Acknowledgement, Flags, Message, MessageType, PayloadType},
    smux::frame::{Frame, FrameDecoder},
};

macro_rules! trace {
    ($name:literal) => {
        ($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/traces/", $name, ".jsonl")))
    };
}

const TRACES: [(&str, &str); 9] = [
    trace!("first-packet-early"),
    trace!("open-request-close-all-legs"),
    trace!("open-request-close"),
    trace!("refused"),
    trace!("resume-mid-transfer"),
    trace!("resume"),
    trace!("service-closes"),
    trace!("terminate"),
    trace!("three-streams"),
];

/// One WebSocket message or event of a recording.
#[derive(Debug)]
struct Entry {
    direction: String,
    kind: String,
    bytes: Bytes,
    what: String,
}

fn entries(text: &str) -> Vec<Entry> {
    text.lines()
        .map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
            let hex = text("hex");
            let bytes = hex
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
            Entry { direction: text("dir"), kind: text("kind"), bytes: bytes.collect(), what: text("what") }
        })
        .collect()
}

/// Messages from the client and from the service to it, decoded.
fn messages<'a>(entries: &'a [Entry], direction: &'a str) -> impl Iterator<Item = Message> + 'a {
    let wanted = move |entry: &&Entry| entry.direction == direction && entry.kind == "binary";
    entries.iter().filter(wanted).map(|entry| Message::decode(entry.bytes.clone()).unwrap())
}

/// The bytes of a direction's smux stream, in order and without repeats.
fn byte_stream(entries: &[Entry], direction: &str, kind: &MessageType) -> Vec<Bytes> {
    let mut by_number = BTreeMap::new();
    for message in messages(entries, direction) {
        if message.header.message_type == *kind && message.header.payload_type == PayloadType::Output {
            by_number.entry(message.header.sequence_number).or_insert(message.payload);
        }
    }
    by_number.into_values().collect()
}

fn frames(pieces: Vec<Bytes>) -> Vec<Frame> {
    let mut decoder = FrameDecoder::default();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        while let Some(frame) = decoder.next_frame().unwrap() {
            frames.push(frame);
        }
    }
    frames
}

#[test]
fn every_recorded_message_is_read_and_written_back_to_the_byte() {
    let mut seen = 0;
    for (name, text) in TRACES {
        for entry in entries(text).iter().filter(|entry| entry.kind == "binary") {
            let message = Message::decode(entry.bytes.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
            if message.header.message_type == MessageType::ChannelClosed {
                continue; // The relay made it, with the short header.
            }
            assert_eq!(message.header.encode(&message.payload), entry.bytes, "{name}: {:?}", message.header);
            seen += 1;
        }
    }
    assert!(seen > 300, "{seen}");
}

#[test]
fn acknowledgements_have_the_bytes_of_the_official_programs() {
    for (name, text) in TRACES {
        let entries = entries(text);
        let mut known = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.kind == "binary") {
            let message = Message::decode(entry.bytes.clone()).unwrap();
            if message.header.message_type != MessageType::Acknowledge {
                known.insert(message.header.id.to_string(), message.header);
                continue;
            }
            let ack = Acknowledgement::decode(&message.payload).unwrap();
            let acknowledged = &known[&ack.acknowledged_message_id];
            let ours = Acknowledgement::encode(acknowledged, message.header.id, message.header.created_ms);
            assert_eq!(ours, entry.bytes, "{name}");
        }
    }
}

#[test]
fn flags_and_payloads_are_as_described() {
    for (name, text) in TRACES {
        let entries = entries(text);
        for message in messages(&entries, "service->client").chain(messages(&entries, "client->service")) {
            let first = message.header.sequence_number == 0;
            let flags = match message.header.message_type {
                MessageType::Acknowledge => Flags::SYN_FIN,
                MessageType::OutputStreamData if first => Flags::SYN,
                MessageType::ChannelClosed => continue,
                _ => Flags::NONE,
            };
            assert_eq!(message.header.flags, flags, "{name}");
            match message.header.payload_type {
                PayloadType::HandshakeRequest => {
                    let request: HandshakeRequest = serde_json::from_slice(&message.payload).unwrap();
                    assert!(Version::parse(&request.agent_version).is_some());
                    assert_eq!(request.requested_client_actions[0].action_type, "SessionType");
                }
                PayloadType::HandshakeResponse => {
                    let response: HandshakeResponse = serde_json::from_slice(&message.payload).unwrap();
                    assert_eq!(
                        serde_json::to_vec(&response).unwrap(),
                        message.payload,
                        "{name}: same JSON to the byte"
                    );
                }
                PayloadType::HandshakeComplete => {
                    let complete: HandshakeComplete = serde_json::from_slice(&message.payload).unwrap();
                    assert!(complete.handshake_time_to_complete > 0);
                }
                PayloadType::Flag => assert!(Flag::decode(&message.payload).is_some()),
                _ => {}
            }
        }
    }
}

#[test]
fn three_streams_share_messages_and_come_apart_again() {
    let entries = entries(TRACES[8].1);
    let mut lens: BTreeMap<StreamId, usize> = BTreeMap::new();
    let mut fins = 0;
    for frame in frames(byte_stream(&entries, "service->client", &MessageType::OutputStreamData)) {
        match frame {
            Frame::Psh(id, data) => *lens.entry(id).or_default() += data.len(),
            Frame::Fin(_) => fins += 1,
            Frame::Syn(_) | Frame::Nop => panic!("agents open no streams"),
        }
    }
    assert_eq!(lens.keys().map(|id| id.0).collect::<Vec<_>>(), [3, 5, 7]);
    let mut bodies: Vec<_> = lens.into_values().collect();
    bodies.sort_unstable();
    for (len, body) in bodies.iter().zip([3000, 5000, 7000]) {
        assert!((body..body + 500).contains(len), "{len} is {body} and the head of an HTTP answer");
    }
    assert_eq!(fins, 3);
}

/// What a replayed session saw.
struct Replay {
    session: PortSession,
    now: Now,
    sent: Vec<Message>,
    data: BTreeMap<StreamId, Vec<u8>>,
    ends: Vec<String>,
    ids: Vec<StreamId>,
    /// How often the transport was replaced.
    resumes: i32,
}

/// Feeds the service's side of a recording to a session, and the local program's side whenever the
/// official client sent data.
fn replay(entries: &[Entry]) -> Replay {
    let now = Now { mono: std::time::Duration::from_secs(1), wall: std::time::Duration::from_secs(1_700_000_000) };
    let session = PortSession::new(Config::default(), MessageIds::new(1), now);
    let mut replay =
        Replay { session, now, sent: Vec::new(), data: BTreeMap::new(), ends: Vec::new(), ids: Vec::new(), resumes: 0 };
    let mut client_frames = FrameDecoder::default();
    let mut next_client_number = 1;
    for entry in entries {
        match (entry.direction.as_str(), entry.kind.as_str()) {
            ("service->client", "binary") => replay.session.handle_message(replay.now, entry.bytes.clone()),
            ("client->service", "event") if entry.what == "closed" => replay.session.detached(replay.now),
            ("client->service", "event") if entry.what == "open" && replay.session.is_established() => {
                replay.session.reattached(replay.now);
                replay.resumes += 1;
            }
            ("client->service", "binary") => {
                let message = Message::decode(entry.bytes.clone()).unwrap();
                if message.header.payload_type == PayloadType::Output
                    && message.header.sequence_number == next_client_number
                {
                    next_client_number += 1;
                    client_frames.push(message.payload);
                    while let Some(frame) = client_frames.next_frame().unwrap() {
                        replay.local(frame);
                    }
                }
            }
            _ => {}
        }
        replay.drain();
    }
    replay
}

impl Replay {
    fn local(&mut self, frame: Frame) {
        match frame {
            Frame::Syn(id) => {
                assert_eq!(self.session.open_stream(self.now), Ok(id), "streams are numbered as officially");
                self.ids.push(id);
            }
            Frame::Psh(id, data) => self.session.write(self.now, id, data),
            Frame::Fin(id) => self.session.finish(self.now, id),
            Frame::Nop => {}
        }
    }

    fn drain(&mut self) {
        while let Some(message) = self.session.poll_transmit(self.now) {
            self.sent.push(Message::decode(message).unwrap());
        }
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Data { id, data } => {
                    self.data.entry(id).or_default().extend_from_slice(&data);
                }
                Event::Established { agent_version, .. } => {
                    assert_eq!(agent_version.to_string(), "3.3.0.0");
                    self.ends.push("established".to_owned());
                }
                Event::Finished { id } => self.ends.push(format!("finished {id}")),
                Event::Refused { id } => self.ends.push(format!("refused {id}")),
                Event::Closed(reason) => self.ends.push(reason.to_string()),
                Event::Alive | Event::Writable { .. } => {}
            }
        }
    }

    /// Every sequenced message that came was acknowledged, each time, and one more often for each new transport.
    fn assert_all_acknowledged(&self, entries: &[Entry]) {
        let mut came: BTreeMap<i64, i32> = BTreeMap::new();
        for message in messages(entries, "service->client") {
            if message.header.message_type == MessageType::OutputStreamData {
                *came.entry(message.header.sequence_number).or_default() += 1;
            }
        }
        for message in &self.sent {
            if message.header.message_type == MessageType::Acknowledge {
                let ack = Acknowledgement::decode(&message.payload).unwrap();
                *came.entry(ack.acknowledged_message_sequence_number).or_default() -= 1;
            }
        }
        came.retain(|_, count| *count != 0);
        assert_eq!(came.values().sum::<i32>(), -self.resumes, "{came:?}");
        assert!(came.values().all(|count| *count < 0), "{came:?}");
    }
}

#[test]
fn replayed_sessions_end_as_recorded() {
    let cases: [(usize, &[&str]); 7] = [
        (0, &["established"]),
        (2, &["established", "finished 3"]),
        (3, &["established", "refused 3"]),
        (5, &["established", "finished 3", "finished 5"]),
        (6, &["established", "finished 3"]),
        (7, &["established", "finished 3"]),
        (8, &["established"]),
    ];
    for (index, expected) in cases {
        let (name, text) = TRACES[index];
        let entries = entries(text);
        let replay = replay(&entries);
        assert_eq!(replay.ends[..expected.len().min(replay.ends.len())], *expected, "{name}: {:?}", replay.ends);
        let closed = text.contains("channel_closed")
            || entries.iter().any(|entry| {
                entry.kind == "binary"
                    && Message::decode(entry.bytes.clone()).unwrap().header.message_type == MessageType::ChannelClosed
            });
        assert_eq!(replay.ends.last().unwrap().contains("ended the session"), closed, "{name}: {:?}", replay.ends);
        if !closed {
            replay.assert_all_acknowledged(&entries);
        }
        assert!(!replay.ids.is_empty(), "{name} opens a stream");
    }
}

#[test]
fn a_transfer_across_a_resume_comes_out_whole() {
    let entries = entries(TRACES[4].1);
    let replay = replay(&entries);
    let expected: Vec<u8> = frames(byte_stream(&entries, "service->client", &MessageType::OutputStreamData))
        .into_iter()
        .filter_map(|frame| match frame {
            Frame::Psh(StreamId(3), data) => Some(data),
            _ => None,
        })
        .flatten()
        .collect();
    assert!(expected.len() > 40_000);
    assert_eq!(replay.data[&StreamId(3)], expected);
    assert!(replay.session.stats().repeats_received + replay.session.stats().messages_received > 40);
    replay.assert_all_acknowledged(&entries);
}
