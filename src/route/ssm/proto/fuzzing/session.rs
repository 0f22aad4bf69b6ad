//! A whole session whose peer, local programs and clock do what the fuzzer's bytes say.
//!
//! The bytes are a list of steps: one for what happens, the following for its details. A step is an honest
//! message, a damaged, repeated, early or invented one, an acknowledgement, a passing of time, the loss of the
//! transport or its return, or something that a local program does.
//!
//! A second model keeps account of what the peer has sent and the programs have written. After every step the
//! session has to agree with it: nothing is sent while there is no transport; every sequenced message that is
//! kept is acknowledged once each time it comes, and once more at most on a later transport; each transport carries
//! an acknowledgement if there is anything to acknowledge; what is not acknowledged is let go only where agents drop
//! repeats, and for good reason; bytes of a stream come out in order, once, and not after its
//! end; what is held stays within the limits; no deadline stays in the past. At the end the peer turns honest,
//! and the session has to deliver everything.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};

use super::{
    super::{
        CloseReason, Config, Event, MessageIds, Now, PortSession, StreamId,
        channel::MAX_RETURNING,
        handshake::{Flag, HandshakeResponse},
        message::{Acknowledgement, Flags, HEADER_LEN, Header, Message, MessageType, PayloadType},
        smux::frame::{Frame, FrameDecoder},
    },
    Pinned,
};

mod end;
mod input;
mod peer;
mod presumed;

use input::{Input, damaged, pattern};
use presumed::Presumed;

/// Most streams that are opened in one run.
const MAX_STREAMS: usize = 12;

/// Most turns that an honest peer takes for all that is outstanding.
const MAX_TURNS: u32 = 20_000;

/// How far ahead of the next number a message is taken: what an agent keeps.
const MAX_AHEAD: i64 = 100_000;

/// Drives a session as the bytes say.
pub fn session(data: &[u8]) {
    let mut input = Input(data);
    let mut world = World::new(input.byte());
    while !input.0.is_empty() && !world.is_over() {
        world.step(&mut input);
    }
    world.settle_honestly();
}

/// How a stream has ended for its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    Refused,
}

/// What is known of one stream.
#[derive(Debug, Default)]
struct Stream {
    /// What the peer has sent, and how much of it has come out.
    incoming: Vec<u8>,
    delivered: usize,
    /// The peer's FIN has been processed.
    peer_closed: bool,
    end: Option<End>,
    /// The program is gone.
    dropped: bool,
    /// Bytes that the program has written, and those of them that the peer has got.
    written: usize,
    arrived: usize,
    syn: bool,
    fin: bool,
}

struct World {
    now: Now,
    config: Config,
    session: PortSession,
    pinned: Pinned,
    attached: bool,
    /// The transport takes nothing at present.
    blocked: bool,
    closed: Option<CloseReason>,
    established: bool,
    agent_version: &'static str,
    streams: BTreeMap<StreamId, Stream>,

    // The peer's messages.
    ids: MessageIds,
    /// The date of its messages, in milliseconds of its clock.
    created_ms: u64,
    next_number: i64,
    frames: BytesMut,
    sent: Vec<Bytes>,
    /// Messages that the session has kept, from the number that it waits for on.
    kept: BTreeMap<i64, Message>,
    expected: i64,
    decoder: FrameDecoder,
    refusals: usize,
    /// Acknowledgements that the session owes, those that it has sent, and those that it has sent again on the
    /// present transport: they may have been lost with the last one.
    owed: VecDeque<Header>,
    /// Messages whose acknowledgements the session has kept back for a while.
    withheld: BTreeSet<i64>,
    settled: BTreeSet<(i64, String)>,
    settled_again: BTreeSet<i64>,
    /// The present transport has carried an acknowledgement, or it is the first.
    greeted: bool,
    must_close: bool,

    // The session's messages.
    transmitted: Vec<Message>,
    acknowledged: BTreeSet<usize>,
    presumed: Presumed,
    client_decoder: FrameDecoder,
    terminated: bool,
}

impl World {
    fn new(choice: u8) -> Self {
        let chosen = |bit: u8, set: usize, clear: usize| if choice >> bit & 1 == 1 { set } else { clear };
        let config = Config {
            payload_len: chosen(0, 64, 1024),
            window: chosen(1, 256, 8 << 10),
            stream_outbox: 2 << 10,
            reorder_budget: chosen(2, 4 << 10, 64 << 10),
            messages_per_second: (choice >> 3 & 1 == 1).then_some(40),
            silent_streams: 4,
            half_closed_streams: 2,
            ..Config::default()
        };
        let now = Now { mono: Duration::from_secs(1000), wall: Duration::from_secs(1_700_000_000) };
        let mut world = Self {
            now,
            session: PortSession::new(config.clone(), MessageIds::new(1), now),
            config,
            pinned: Pinned::default(),
            attached: true,
            blocked: false,
            closed: None,
            established: false,
            agent_version: match (choice >> 4 & 1, choice >> 6 & 1) {
                (1, 0) => "3.1.1400.0",
                (1, _) => "3.2.1040.0",
                _ => "3.3.1142.0",
            },
            streams: BTreeMap::new(),
            ids: MessageIds::new(2),
            created_ms: 1,
            next_number: 0,
            frames: BytesMut::new(),
            sent: Vec::new(),
            kept: BTreeMap::new(),
            expected: 0,
            decoder: FrameDecoder::default(),
            refusals: 0,
            owed: VecDeque::new(),
            withheld: BTreeSet::new(),
            settled: BTreeSet::new(),
            settled_again: BTreeSet::new(),
            greeted: true,
            must_close: false,
            transmitted: Vec::new(),
            acknowledged: BTreeSet::new(),
            presumed: Presumed::default(),
            client_decoder: FrameDecoder::default(),
            terminated: false,
        };
        world.drain();
        if choice >> 5 & 1 == 0 {
            world.send_handshake_request();
            world.send_handshake_complete();
            assert!(world.established, "an honest handshake succeeds");
        }
        world
    }

    fn is_over(&self) -> bool {
        self.closed.is_some()
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 32 {
            0 => self.pass(Duration::from_millis(u64::from(input.byte()).pow(2))),
            1 => self.pass_to_deadline(),
            // Time passes, and something else happens first.
            2 => self.advance(Duration::from_millis(input.byte().into())),
            3 => self.open(),
            4 => {
                let id = self.stream(input);
                self.write(id, input.number() * 16);
            }
            5 => {
                let id = self.stream(input);
                self.session.finish(self.now, id);
                self.drain();
            }
            6 => {
                let id = self.stream(input);
                self.session.reset(self.now, id);
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.dropped = true;
                }
                self.drain();
            }
            // The transport is read, or not.
            7 => {
                self.session.set_reading(self.now, input.byte().is_multiple_of(2));
                self.drain();
            }
            8 => {
                self.terminated |= self.session.is_established();
                self.session.terminate(self.now);
                self.drain();
            }
            9 => {
                self.attached = false;
                self.session.detached(self.now);
                self.drain();
            }
            10 => self.reattach(),
            11 => {
                self.blocked = !self.blocked;
                self.drain();
            }
            12 => {
                let id = self.stream(input);
                let data = vec![input.byte(); input.number() * 8];
                Frame::Psh(id, data.into()).encode(&mut self.frames);
            }
            13 => {
                let id = self.stream(input);
                Frame::Fin(id).encode(&mut self.frames);
            }
            14 => {
                let id = self.stream(input);
                let frame = if input.byte().is_multiple_of(2) { Frame::Nop } else { Frame::Syn(id) };
                frame.encode(&mut self.frames);
            }
            15 => self.frames.extend_from_slice(input.bytes()),
            16 => {
                let message = self.next_output(input);
                self.deliver(&message);
            }
            // Lost on its way; a later step may repeat it.
            17 => drop(self.next_output(input)),
            18 => {
                if let Some(message) = self.pick(input) {
                    self.deliver(&message);
                }
            }
            19 => {
                if let Some(message) = self.pick(input) {
                    self.deliver(&damaged(&message, input));
                }
            }
            20 => {
                let number = self.next_number + i64::from(input.byte().cast_signed());
                let payload_type = PayloadType::from_code(u32::from(input.byte()));
                let message = self.message(MessageType::OutputStreamData, number, payload_type, input.bytes());
                self.deliver(&message);
            }
            21 => {
                let number = i64::from_be_bytes(input.array());
                let message = self.message(MessageType::OutputStreamData, number, PayloadType::Output, b"");
                self.deliver(&message);
            }
            22 => {
                let message = Bytes::copy_from_slice(input.bytes());
                self.deliver(&message);
            }
            23 => {
                let unacknowledged: Vec<_> = self.unacknowledged().collect();
                if let Some(number) = unacknowledged.get(input.number() % unacknowledged.len().max(1)) {
                    self.acknowledge(*number);
                }
            }
            24 => self.acknowledge_all(),
            25 => {
                let acknowledgement = Header {
                    sequence_number: i64::from_be_bytes(input.array()),
                    ..self.header(MessageType::InputStreamData, 0, PayloadType::Output)
                };
                let id = self.ids.next_id();
                self.deliver_acknowledgement(Acknowledgement::encode(&acknowledgement, id, 1));
            }
            26 => self.send_service_message(input),
            27 => {
                let flag = Flag::Other(u32::from(input.byte()));
                let message = self.next_message(PayloadType::Flag, &flag.encode());
                self.deliver(&message);
            }
            28 => self.send_handshake_request(),
            29 => self.send_handshake_complete(),
            30 => {
                let message = self.next_message(PayloadType::HandshakeRequest, input.bytes());
                self.deliver(&message);
            }
            // The peer's clock goes on, by more or less than ours.
            31 if input.byte().is_multiple_of(2) => self.created_ms += u64::from(input.byte()).pow(2),
            _ => self.next_number += i64::from(input.byte() % 8),
        }
    }

    /// One of the streams, or one that has never been opened.
    fn stream(&self, input: &mut Input<'_>) -> StreamId {
        let index = input.number() % (self.streams.len() + 1);
        self.streams.keys().nth(index).copied().unwrap_or(StreamId(u32::from(input.byte())))
    }

    /// One of the messages that the peer has sent, the latest first.
    fn pick(&self, input: &mut Input<'_>) -> Option<Bytes> {
        let index = input.number() % self.sent.len().max(1);
        self.sent.iter().rev().nth(index).cloned()
    }

    // Time.

    fn advance(&mut self, time: Duration) {
        self.now.mono += time;
        self.now.wall += time;
    }

    fn pass(&mut self, time: Duration) {
        self.advance(time);
        self.handle_timeout();
    }

    fn pass_to_deadline(&mut self) {
        if let Some(at) = self.session.poll_timeout() {
            self.pass(at.saturating_sub(self.now.mono).min(Duration::from_secs(400)));
        }
    }

    fn handle_timeout(&mut self) {
        self.session.handle_timeout(self.now);
        self.drain();
        if !self.blocked {
            let timeout = self.session.poll_timeout();
            assert!(timeout.is_none_or(|at| at > self.now.mono), "a deadline stays in the past: {timeout:?}");
        }
    }

    // Local programs.

    fn open(&mut self) {
        if self.streams.len() == MAX_STREAMS {
            return;
        }
        let can_open = self.session.can_open_stream();
        let opened = self.session.open_stream(self.now);
        assert_eq!(can_open.err(), opened.err());
        if let Ok(id) = opened {
            assert!(self.established && !self.is_over());
            assert!(self.streams.insert(id, Stream::default()).is_none(), "an id is used once");
        }
        self.drain();
    }

    fn write(&mut self, id: StreamId, len: usize) {
        let len = len.min(self.session.writable_len(id));
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let data: Vec<u8> = (stream.written..stream.written + len).map(|at| pattern(id, at)).collect();
        stream.written += len;
        self.session.write(self.now, id, data.into());
        self.drain();
    }

    // The transport.

    fn reattach(&mut self) {
        if !self.attached {
            self.attached = true;
            self.blocked = false;
            self.settled_again.clear();
            self.greeted = false;
            self.presumed.reattached(self.transmitted.len());
            self.session.reattached(self.now);
            self.drain();
        }
    }

    // What comes out.

    fn drain(&mut self) {
        if !self.blocked {
            for count in 0.. {
                assert!(count < MAX_TURNS, "the session has ever more to send");
                let Some(message) = self.session.poll_transmit(self.now) else { break };
                assert!(self.attached, "nothing is sent without a transport");
                self.handle_transmitted(&message);
            }
            let withheld = self.session.withheld();
            let waits = self.owed.iter().any(|owed| withheld != Some(owed.sequence_number));
            assert!(!self.attached || !waits, "acknowledgements do not wait");
        }
        while let Some(event) = self.session.poll_event() {
            self.handle_event(event);
        }
        self.presumed.check(&self.session);
        self.check();
    }

    fn handle_transmitted(&mut self, bytes: &Bytes) {
        let message = Message::decode(bytes.clone()).expect("the session's messages can be read");
        if message.header.message_type == MessageType::Acknowledge {
            self.greeted = true;
            let content = Acknowledgement::decode(&message.payload).expect("acknowledgements can be read");
            let number = content.acknowledged_message_sequence_number;
            let acknowledged = (number, content.acknowledged_message_id);
            let is_it = |owed: &Header| acknowledged == (owed.sequence_number, owed.id.to_string());
            if let Some(at) = self.owed.iter().position(is_it) {
                let late = self.owed.iter().take(at).all(|owed| self.withheld.contains(&owed.sequence_number));
                assert!(late, "acknowledgements go in order, but for one that was kept back");
                self.owed.remove(at);
                self.settled.insert(acknowledged);
            } else {
                assert!(self.settled.contains(&acknowledged), "number {number} has not come");
                assert!(self.settled_again.insert(number), "number {number} is acknowledged once more at most");
            }
            return;
        }
        assert_eq!(message.header.message_type, MessageType::InputStreamData);
        assert!(!message.payload.is_empty(), "peers drop messages without a payload");
        let number = usize::try_from(message.header.sequence_number).expect("numbers start at 0");
        if let Some(first) = self.transmitted.get(number) {
            assert_eq!(*first, message, "a repeat is the same message");
            assert!(!self.acknowledged.contains(&number), "what is acknowledged is not sent again");
            self.presumed.repeated(number);
            return;
        }
        assert_eq!(number, self.transmitted.len(), "numbers have no gaps");
        match message.header.payload_type {
            PayloadType::HandshakeResponse => {
                assert_eq!(number, 0, "the response is the first message");
                serde_json::from_slice::<HandshakeResponse>(&message.payload).expect("the response can be read");
            }
            PayloadType::Flag => {
                assert_eq!(Flag::decode(&message.payload), Some(Flag::TerminateSession));
                assert!(self.terminated);
                assert!(self.transmitted.iter().all(|m| m.header.payload_type != PayloadType::Flag), "one flag only");
            }
            PayloadType::Output => {
                assert!(self.session.is_established() && number > 0);
                assert!(message.payload.len() <= self.config.payload_len);
                self.handle_frames(message.payload.clone());
            }
            PayloadType::None
            | PayloadType::HandshakeRequest
            | PayloadType::HandshakeComplete
            | PayloadType::EncChallengeRequest
            | PayloadType::EncChallengeResponse
            | PayloadType::Other(_) => panic!("the session sent {:?}", message.header),
        }
        self.presumed.transmitted(&message);
        self.transmitted.push(message);
    }

    fn handle_frames(&mut self, data: Bytes) {
        self.client_decoder.push(data);
        while let Some(frame) = self.client_decoder.next_frame().expect("the session speaks smux") {
            match frame {
                Frame::Syn(id) => {
                    let stream = self.streams.get_mut(&id).expect("the stream has been opened");
                    assert!(!std::mem::replace(&mut stream.syn, true), "one SYN per stream");
                }
                Frame::Psh(id, data) => {
                    let stream = self.streams.get_mut(&id).expect("the stream has been opened");
                    assert!(stream.syn && !stream.fin, "data comes between SYN and FIN");
                    for (at, byte) in (stream.arrived..).zip(&data) {
                        assert_eq!(*byte, pattern(id, at), "stream {id}, byte {at}");
                    }
                    stream.arrived += data.len();
                    assert!(stream.arrived <= stream.written);
                }
                Frame::Fin(id) => {
                    let stream = self.streams.get_mut(&id).expect("the stream has been opened");
                    assert!(stream.syn && !std::mem::replace(&mut stream.fin, true), "one FIN per stream");
                    assert!(stream.peer_closed || stream.arrived == stream.written, "FIN follows all data");
                }
                Frame::Nop => {}
            }
        }
    }

    fn handle_event(&mut self, event: Event) {
        assert_eq!(self.closed, None, "nothing follows the end: {event:?}");
        match event {
            Event::Established { .. } => assert!(!std::mem::replace(&mut self.established, true)),
            Event::Alive => assert!(self.attached),
            Event::Data { id, data } => {
                let stream = self.streams.get_mut(&id).expect("the stream has been opened");
                assert!(!data.is_empty() && !stream.dropped);
                assert_eq!(stream.end, None, "no data after the end of stream {id}");
                let end = stream.delivered + data.len();
                assert_eq!(stream.incoming.get(stream.delivered..end), Some(data.as_ref()), "stream {id}");
                stream.delivered = end;
            }
            Event::Finished { id } => self.end(id, End::Finished),
            Event::Refused { id } => {
                self.refusals = self.refusals.checked_sub(1).expect("a flag comes before");
                assert_eq!(self.streams[&id].delivered, 0);
                self.end(id, End::Refused);
            }
            Event::Writable { id } => assert!(self.session.writable_len(id) > 0),
            Event::Closed(reason) => {
                let is_told = matches!(reason, CloseReason::ChannelClosed { .. } | CloseReason::Smux(_));
                assert!(self.must_close || !is_told, "{reason}");
                self.closed = Some(reason);
            }
        }
    }

    fn end(&mut self, id: StreamId, end: End) {
        let stream = self.streams.get_mut(&id).expect("the stream has been opened");
        assert!(!stream.dropped);
        match end {
            End::Finished => {
                assert!(stream.peer_closed && stream.delivered == stream.incoming.len(), "the end follows all data");
                assert_eq!(stream.end.replace(end), None, "one end of stream {id}");
            }
            End::Refused => assert_eq!(stream.end.replace(end), None, "one end of stream {id}"),
        }
    }

    fn check(&self) {
        self.session.assert_invariants();
        assert_eq!(self.pinned.total(), 0, "the session keeps no buffer of the transport");
        let stats = self.session.stats();
        assert!(stats.bytes_in_flight <= self.config.window + MAX_RETURNING + self.config.payload_len);
        assert!(self.session.backlog(self.now) < Duration::from_secs(20_000));
        if self.is_over() {
            assert_eq!(self.session.poll_timeout(), None);
            return;
        }
        assert!(!self.must_close);
        assert_eq!(self.session.is_established(), self.established);
        for (id, stream) in &self.streams {
            assert!(self.session.writable_len(*id) <= self.config.stream_outbox);
            if stream.end.is_none() && !stream.dropped {
                assert_eq!(stream.delivered, stream.incoming.len(), "stream {id} gets what has come for it");
                assert!(!stream.peer_closed);
            }
        }
    }
}
