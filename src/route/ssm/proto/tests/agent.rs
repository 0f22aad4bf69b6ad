//! A model of the SSM agent and of what is behind it, written from the protocol description and
//! sharing nothing with the client but the codecs.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};

use super::super::{
    Now,
    handshake::Flag,
    message::{Acknowledgement, Flags, Header, Message, MessageIds, MessageType, PayloadType},
    smux::frame::{Frame, FrameDecoder, StreamId},
};

/// What answers a stream.
#[derive(Debug, Clone)]
pub(super) enum Destination {
    /// Sends `answer` once `request_len` bytes have come, then closes; keeps what came.
    Answer { request_len: usize, answer: Bytes },
    /// Sends back what comes.
    Echo,
    /// Takes what comes and stays silent.
    Sink,
    /// Cannot be connected to.
    Refuse,
}

#[derive(Debug)]
pub(super) struct AgentStream {
    pub(super) received: BytesMut,
    pub(super) client_fin: bool,
    sent_fin: bool,
    destination: Destination,
}

/// Settings of the model.
#[derive(Debug, Clone)]
pub(super) struct AgentConfig {
    pub(super) version: &'static str,
    /// How long after `HandshakeComplete` data is dropped unacknowledged.
    pub(super) not_ready: Duration,
    /// Time between two messages of the data path; the real agent sleeps 1 ms.
    pub(super) pace: Duration,
    pub(super) kms: bool,
    /// Sends nothing at all.
    pub(super) mute: bool,
    /// Does not acknowledge repeats of what it has processed, as agents before 3.2.1041.0.
    pub(super) drops_repeats: bool,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            version: "3.3.1142.0",
            not_ready: Duration::from_millis(30),
            pace: Duration::ZERO,
            kms: false,
            mute: false,
            drops_repeats: false,
        }
    }
}

#[derive(Debug)]
struct Unacknowledged {
    message: Bytes,
    sent_at: Duration,
}

/// The agent's end of the session. It outlives transports too.
pub(super) struct Agent {
    config: AgentConfig,
    destinations: VecDeque<Destination>,
    ids: MessageIds,
    next_number: i64,
    unacknowledged: BTreeMap<i64, Unacknowledged>,
    expected: i64,
    early: BTreeMap<i64, Message>,
    transmit: VecDeque<Bytes>,
    complete_at: Option<Duration>,
    decoder: FrameDecoder,
    pub(super) streams: BTreeMap<StreamId, AgentStream>,
    out: BytesMut,
    next_data_at: Duration,
    next_tick: Duration,
    pub(super) terminated: bool,
    pub(super) responses: u32,
    pub(super) nops: u32,
    /// Every input message that came, repeats too, for tests that count.
    pub(super) messages_in: u64,
    pub(super) acks_in: BTreeMap<i64, u32>,
    paused: bool,
    /// Anything that comes from the client ends the pause, as with the real agent.
    wakes: bool,
}

const TICK: Duration = Duration::from_millis(100);
const RTO: Duration = Duration::from_millis(200);
const CHUNK: usize = 1024;

impl Agent {
    pub(super) fn new(config: AgentConfig, destinations: Vec<Destination>, now: Now) -> Self {
        let mut agent = Self {
            config,
            destinations: destinations.into(),
            ids: MessageIds::new(99),
            next_number: 0,
            unacknowledged: BTreeMap::new(),
            expected: 0,
            early: BTreeMap::new(),
            transmit: VecDeque::new(),
            complete_at: None,
            decoder: FrameDecoder::default(),
            streams: BTreeMap::new(),
            out: BytesMut::new(),
            next_data_at: Duration::ZERO,
            next_tick: now.mono + TICK,
            terminated: false,
            responses: 0,
            nops: 0,
            messages_in: 0,
            acks_in: BTreeMap::new(),
            paused: false,
            wakes: false,
        };
        let kms = if agent.config.kms {
            r#",{"ActionType":"KMSEncryption","ActionParameters":{"KMSKeyId":"arn:aws:kms:k"}}"#
        } else {
            ""
        };
        let request = format!(
            r#"{{"AgentVersion":"{}","RequestedClientActions":[{{"ActionType":"SessionType","ActionParameters":{{"SessionType":"Port","Properties":{{"host":"h","portNumber":"443","type":"LocalPortForwarding"}}}}}}{kms}]}}"#,
            agent.config.version
        );
        if !agent.config.mute {
            agent.send(now, PayloadType::HandshakeRequest, request.as_bytes());
        }
        agent
    }

    /// Sends a sequenced message of any kind.
    pub(super) fn send(&mut self, now: Now, payload_type: PayloadType, payload: &[u8]) {
        let number = self.next_number;
        self.next_number += 1;
        let message = Header {
            message_type: MessageType::OutputStreamData,
            created_ms: 1 + now.wall.as_millis() as u64,
            sequence_number: number,
            flags: if number == 0 { Flags::SYN } else { Flags::NONE },
            id: self.ids.next_id(),
            payload_type,
        }
        .encode(payload);
        self.unacknowledged.insert(number, Unacknowledged { message: message.clone(), sent_at: now.mono });
        if !self.paused {
            self.transmit.push_back(message);
        }
    }

    pub(super) fn send_frame(&mut self, frame: &Frame) {
        frame.encode(&mut self.out);
    }

    pub(super) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
        self.wakes = false;
    }

    /// The service pauses the agent; it goes on when it hears of the client.
    pub(super) fn pause_until_heard(&mut self) {
        self.paused = true;
        self.wakes = true;
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn unacknowledged(&self) -> usize {
        self.unacknowledged.len()
    }

    /// The transport is gone: what it had not taken is lost, to be repeated by the tick.
    pub(super) fn cut(&mut self) {
        self.transmit.clear();
    }

    pub(super) fn handle_message(&mut self, now: Now, bytes: Bytes) {
        let message = Message::decode(bytes).expect("the client's messages can be read");
        self.paused &= !self.wakes;
        match message.header.message_type {
            MessageType::Acknowledge => {
                assert_eq!(message.header.flags, Flags::SYN_FIN);
                let ack = Acknowledgement::decode(&message.payload).unwrap();
                let number = ack.acknowledged_message_sequence_number;
                assert!(number < self.next_number, "an acknowledgement of what was never sent");
                assert_eq!(ack.acknowledged_message_type, "output_stream_data");
                *self.acks_in.entry(number).or_default() += 1;
                self.unacknowledged.remove(&number);
            }
            MessageType::InputStreamData => self.handle_input(now, message),
            ref other => panic!("the client sent {other:?}"),
        }
    }

    fn handle_input(&mut self, now: Now, message: Message) {
        assert_eq!(message.header.flags, Flags::NONE);
        assert!(!message.payload.is_empty(), "an empty payload is never sent");
        self.messages_in += 1;
        let number = message.header.sequence_number;
        if number < self.expected {
            if !self.config.drops_repeats {
                self.acknowledge(now, &message.header);
            }
        } else if number > self.expected {
            self.acknowledge(now, &message.header);
            self.early.insert(number, message);
        } else if self.process(now, &message) {
            self.acknowledge(now, &message.header);
            self.expected += 1;
            while let Some(next) = self.early.remove(&self.expected) {
                assert!(self.process(now, &next));
                self.expected += 1;
            }
        }
    }

    fn acknowledge(&mut self, now: Now, header: &Header) {
        let id = self.ids.next_id();
        self.transmit.push_back(Acknowledgement::encode(header, id, 1 + now.wall.as_millis() as u64));
    }

    fn process(&mut self, now: Now, message: &Message) -> bool {
        match message.header.payload_type {
            PayloadType::HandshakeResponse => {
                assert_eq!(message.header.sequence_number, 0, "the response has number 0");
                self.responses += 1;
                self.complete_at = Some(now.mono);
                self.send(
                    now,
                    PayloadType::HandshakeComplete,
                    br#"{"HandshakeTimeToComplete":1,"CustomerMessage":"hi"}"#,
                );
                true
            }
            PayloadType::Output => {
                let complete_at = self.complete_at.expect("no data before the handshake is complete");
                if now.mono < complete_at + self.config.not_ready {
                    return false;
                }
                self.decoder.push(message.payload.clone());
                while let Some(frame) = self.decoder.next_frame().expect("the client speaks smux") {
                    self.handle_frame(now, frame);
                }
                true
            }
            PayloadType::Flag => {
                assert_eq!(Flag::decode(&message.payload), Some(Flag::TerminateSession));
                assert!(!self.terminated, "a second flag would block the agent");
                self.terminated = true;
                true
            }
            other => panic!("the client sent {other:?}"),
        }
    }

    fn handle_frame(&mut self, now: Now, frame: Frame) {
        match frame {
            Frame::Syn(id) => {
                let destination = self.destinations.pop_front().unwrap_or(Destination::Echo);
                let refused = matches!(destination, Destination::Refuse);
                let stream =
                    AgentStream { received: BytesMut::new(), client_fin: false, sent_fin: refused, destination };
                assert!(self.streams.insert(id, stream).is_none(), "stream ids are not used twice");
                if refused {
                    self.send(now, PayloadType::Flag, &Flag::ConnectToPortError.encode());
                    Frame::Fin(id).encode(&mut self.out);
                } else {
                    self.answer(id);
                }
            }
            Frame::Psh(id, data) => {
                let stream = self.streams.get_mut(&id).expect("data follows SYN");
                assert!(!stream.client_fin, "no data after FIN");
                stream.received.extend_from_slice(&data);
                if matches!(stream.destination, Destination::Echo) && !stream.sent_fin {
                    Frame::Psh(id, data).encode(&mut self.out);
                }
                self.answer(id);
            }
            Frame::Fin(id) => {
                let stream = self.streams.get_mut(&id).expect("FIN follows SYN");
                assert!(!std::mem::replace(&mut stream.client_fin, true), "one FIN per stream");
                if !std::mem::replace(&mut stream.sent_fin, true) {
                    Frame::Fin(id).encode(&mut self.out);
                }
            }
            Frame::Nop => self.nops += 1,
        }
    }

    fn answer(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Destination::Answer { request_len, answer } = &stream.destination else { return };
        if stream.received.len() < *request_len || stream.sent_fin {
            return;
        }
        for chunk in answer.chunks(32768) {
            Frame::Psh(id, Bytes::copy_from_slice(chunk)).encode(&mut self.out);
        }
        stream.sent_fin = true;
        Frame::Fin(id).encode(&mut self.out);
    }

    pub(super) fn handle_timeout(&mut self, now: Now) {
        while !self.out.is_empty() && self.next_data_at <= now.mono && !self.paused {
            let chunk = self.out.split_to(self.out.len().min(CHUNK)).freeze();
            self.send(now, PayloadType::Output, &chunk);
            self.next_data_at = now.mono + self.config.pace;
        }
        if self.next_tick <= now.mono {
            self.next_tick = now.mono + TICK;
            if let Some(head) = self.unacknowledged.values_mut().next()
                && head.sent_at + RTO <= now.mono
                && !self.paused
            {
                head.sent_at = now.mono;
                self.transmit.push_back(head.message.clone());
            }
        }
    }

    pub(super) fn poll_transmit(&mut self) -> Option<Bytes> {
        self.transmit.pop_front()
    }

    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        let tick = (!self.unacknowledged.is_empty() && !self.paused).then_some(self.next_tick);
        let data = (!self.out.is_empty() && !self.paused).then_some(self.next_data_at);
        [tick, data].into_iter().flatten().min()
    }
}
