//! The agent's side of one data channel: a value without sockets, clocks or tasks.
//!
//! It reproduces amazon-ssm-agent 3.3.1142.0 (`agent/session/datachannel/datachannel.go` and
//! `agent/session/plugins/port/port_mux.go`), peculiarities included: only the oldest unacknowledged
//! message is sent again, data before the end of the handshake is acknowledged and lost, data right
//! after it is refused, a second handshake response hangs it. What a real agent would let pass but no
//! client should do is handed out as [`AgentEvent::Violation`], see [`audit`].
//!
//! It shares the codecs with the client and nothing else. Basic mode (one connection at a time) is
//! left out: a session that would need it fails.
//!
//! After every call, drain [`Agent::poll_transmit`] and [`Agent::poll_event`].

mod audit;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use self::audit::Audit;
use super::{
    clock::Now,
    config::AgentConfig,
    script::{AgentQuirks, DialFailure, ExtraAction},
};
use crate::proto::{
    handshake::{
        ACTION_KMS_ENCRYPTION, ACTION_SESSION_TYPE, ACTION_SUCCESS, Flag, HandshakeComplete, HandshakeRequest,
        HandshakeResponse, PORT_TYPE_LOCAL_FORWARDING, RequestedAction, SESSION_TYPE_PORT, Version,
    },
    message::{Acknowledgement, Flags, Header, Message, MessageId, MessageIds, MessageType, PayloadType},
    smux::frame::{Frame, FrameDecoder, StreamId},
};

/// Bytes that the agent reads for one message: `StreamDataPayloadSize`.
const PAYLOAD_LEN: usize = 1024;

/// Most messages that wait for an acknowledgement; further ones are sent once and forgotten.
const MAX_UNACKNOWLEDGED: usize = 100_000;

/// Most messages that are kept because an earlier one is missing.
const MAX_EARLY: usize = 100_000;

/// Messages that are cut from the pipe before the caller takes them.
const MAX_READY: usize = 32;

/// How late a timer may come; after more than that the agent had nothing to do.
const MAX_LATENESS: Duration = Duration::from_millis(4);

/// How often a smux keepalive is sent, and how long silence may last, where it is on.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(30);

/// What an agent is started with.
pub(super) struct AgentSetup {
    pub(super) config: AgentConfig,
    pub(super) quirks: AgentQuirks,
    /// The bastion's agent version.
    pub(super) version: String,
    /// Properties of the handshake request but the type.
    pub(super) properties: Map<String, Value>,
    /// Seed of the message ids.
    pub(super) seed: u64,
}

/// What comes out of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AgentEvent {
    /// The handshake is complete.
    HandshakeComplete,
    /// It is time to resolve the destination; answered by [`Agent::ready`] or [`Agent::fail`].
    Resolve,
    /// The client opened a stream.
    Open(StreamId),
    /// Data for the destination of a stream.
    Data(StreamId, Bytes),
    /// The client closed a stream.
    Fin(StreamId),
    /// The client asked for the session's end: all connections have to be closed.
    Terminate,
    /// The agent has ended, with a text for the client.
    Closed { output: String },
    /// The client did what no client should do.
    Violation(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not started.
    Idle,
    /// The handshake request is sent, or will be at this time.
    Requested { at: Instant, sent: bool },
    /// The handshake is complete; data is refused until this time.
    Resolving { until: Instant },
    /// The caller looks the destination up.
    AwaitingRoute,
    /// Data flows.
    Ready,
    /// The client asked for the end; the agent waits for acknowledgements until this time.
    Draining { until: Instant },
    /// The reader is blocked for good.
    Hung,
    /// Ended.
    Done,
}

struct Unacknowledged {
    message: Bytes,
    /// `None` until it is sent: it was produced during a pause.
    sent: Option<Instant>,
}

/// Estimate of the round trip time, by the agent's constants.
struct Rtt {
    smoothed: f64,
    variation: f64,
}

impl Rtt {
    const GRANULARITY: f64 = 0.01;

    fn sample(&mut self, rtt: Duration) {
        let rtt = rtt.as_secs_f64();
        self.variation = 0.75 * self.variation + 0.25 * (self.smoothed - rtt).abs();
        self.smoothed = 0.875 * self.smoothed + 0.125 * rtt;
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs_f64((self.smoothed + Self::GRANULARITY.max(4.0 * self.variation)).min(1.0))
    }
}

/// What became of a message that was next in sequence.
enum Processed {
    Yes,
    /// Not now: it has to be sent again.
    Refused,
}

/// State of a smux stream as the agent knows it.
#[derive(Debug, Default, Clone, Copy)]
struct StreamEnds {
    client_finished: bool,
    agent_finished: bool,
}

/// See the module.
pub(super) struct Agent {
    setup: AgentSetup,
    audit: Audit,
    phase: Phase,
    next_number: i64,
    unacknowledged: BTreeMap<i64, Unacknowledged>,
    rtt: Rtt,
    next_tick: Option<Instant>,
    paused: bool,
    expected: i64,
    early: BTreeMap<i64, Message>,
    /// smux bytes that are to be cut into messages.
    pipe: BytesMut,
    next_cut: Option<Instant>,
    decoder: FrameDecoder,
    streams: BTreeMap<StreamId, StreamEnds>,
    keepalive: Option<Keepalive>,
    retransmissions: u64,
    transmit: VecDeque<Bytes>,
    events: VecDeque<AgentEvent>,
    now: Now,
    ack_ids: MessageIds,
}

#[derive(Debug, Clone, Copy)]
struct Keepalive {
    next_nop: Instant,
    deadline: Instant,
    heard: bool,
}

impl Agent {
    pub(super) fn new(setup: AgentSetup, now: Now) -> Self {
        Self {
            ack_ids: MessageIds::new(!setup.seed),
            setup,
            audit: Audit::default(),
            phase: Phase::Idle,
            next_number: 0,
            unacknowledged: BTreeMap::new(),
            rtt: Rtt { smoothed: 0.1, variation: 0.0 },
            next_tick: None,
            paused: false,
            expected: 0,
            early: BTreeMap::new(),
            pipe: BytesMut::new(),
            next_cut: None,
            decoder: FrameDecoder::default(),
            streams: BTreeMap::new(),
            keepalive: None,
            retransmissions: 0,
            transmit: VecDeque::new(),
            events: VecDeque::new(),
            now,
        }
    }

    // Getters.

    /// Bytes of smux frames that are not yet in messages.
    pub(super) fn pipe_len(&self) -> usize {
        self.pipe.len()
    }

    pub(super) fn has_started(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// Streams that not both sides have finished.
    pub(super) fn open_streams(&self) -> u64 {
        u64::try_from(self.streams.len()).unwrap_or(u64::MAX)
    }

    /// Messages that were sent again.
    pub(super) fn retransmissions(&self) -> u64 {
        self.retransmissions
    }

    // Input.

    /// Starts the handshake.
    pub(super) fn start(&mut self, now: Now) {
        self.now = now;
        if self.phase == Phase::Idle {
            self.phase = Phase::Requested { at: now.instant + self.setup.quirks.handshake_delay, sent: false };
            self.handle_timeout(now);
        }
    }

    /// Changes peculiarities of a running agent.
    pub(super) fn set_quirks(&mut self, quirks: AgentQuirks) {
        self.setup.quirks = quirks;
    }

    /// Takes note that messages of the client may be missing or out of order through no fault of its.
    pub(super) fn expect_gaps(&mut self) {
        self.audit.expect_gaps();
    }

    /// The service asks the agent to pause.
    pub(super) fn pause(&mut self) {
        self.paused = true;
    }

    /// The service, or a sign of the client, ends the pause.
    pub(super) fn unpause(&mut self, now: Now) {
        self.now = now;
        self.paused = false;
        self.cut();
    }

    /// The destination's name is resolved: data flows from now on.
    pub(super) fn ready(&mut self, now: Now) {
        self.now = now;
        if self.phase == Phase::AwaitingRoute {
            self.phase = Phase::Ready;
            self.cut();
        }
    }

    /// Ends the session with a text for the client.
    pub(super) fn fail(&mut self, output: impl Into<String>) {
        if self.phase != Phase::Done {
            self.phase = Phase::Done;
            self.events.push_back(AgentEvent::Closed { output: output.into() });
        }
    }

    /// Takes one WebSocket message.
    pub(super) fn handle_message(&mut self, now: Now, bytes: Bytes) {
        self.now = now;
        if matches!(self.phase, Phase::Hung | Phase::Done) {
            return;
        }
        for fault in audit::raw_header(&bytes) {
            self.violation(fault);
        }
        let message = match Message::decode(bytes.clone()) {
            Ok(message) => message,
            Err(error) => return self.violation(format!("sent a message that cannot be read: {error}")),
        };
        match &message.header.message_type {
            MessageType::Acknowledge => self.handle_acknowledgement(&message),
            MessageType::InputStreamData => {
                self.paused = false;
                if let Some(fault) = self.audit.input(&message.header, &bytes) {
                    self.violation(fault);
                }
                self.handle_input(message);
            }
            other @ (MessageType::OutputStreamData
            | MessageType::ChannelClosed
            | MessageType::StartPublication
            | MessageType::PausePublication
            | MessageType::Other(_)) => {
                let name = other.to_string();
                self.violation(format!("sent a message of type `{name}`"));
            }
        }
        self.cut();
        self.end_drain();
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Now) {
        self.now = now;
        match self.phase {
            Phase::Requested { at, sent: false } if at <= now.instant => {
                self.phase = Phase::Requested { at: now.instant, sent: true };
                self.send_handshake_request();
            }
            Phase::Requested { at, sent: true } if at + self.setup.config.handshake_timeout <= now.instant => {
                self.fail(
                    "Encountered error while initiating handshake. Handshake timed out. Please ensure that you have the \
                     latest version of the session manager plugin.",
                );
            }
            Phase::Resolving { until } if until <= now.instant => {
                self.phase = Phase::AwaitingRoute;
                self.events.push_back(AgentEvent::Resolve);
            }
            Phase::Draining { until } if until <= now.instant => self.fail(""),
            Phase::Idle
            | Phase::Requested { .. }
            | Phase::Resolving { .. }
            | Phase::AwaitingRoute
            | Phase::Ready
            | Phase::Draining { .. }
            | Phase::Hung
            | Phase::Done => {}
        }
        self.tick();
        self.keep_alive();
        self.cut();
    }

    /// Sends frames to the client. Frames of streams that both sides have finished are dropped.
    pub(super) fn send_data(&mut self, now: Now, id: StreamId, data: Bytes) {
        self.now = now;
        if !self.streams.contains_key(&id) {
            return;
        }
        if self.setup.quirks.stray_frames {
            Frame::Nop.encode(&mut self.pipe);
            Frame::Psh(StreamId(id.0.wrapping_add(1)), Bytes::from_static(b"stray")).encode(&mut self.pipe);
        }
        Frame::Psh(id, data).encode(&mut self.pipe);
        self.cut();
    }

    /// The destination has closed its connection, or it was closed because the client finished.
    pub(super) fn finish(&mut self, now: Now, id: StreamId) {
        self.now = now;
        let Some(ends) = self.streams.get_mut(&id) else { return };
        if !ends.agent_finished {
            ends.agent_finished = true;
            Frame::Fin(id).encode(&mut self.pipe);
        }
        if ends.client_finished {
            self.streams.remove(&id);
        }
        self.cut();
    }

    /// The destination of a stream could not be reached.
    pub(super) fn dial_failed(&mut self, now: Now, id: StreamId) {
        self.now = now;
        let (flag, fin) = match self.setup.quirks.dial_failure {
            DialFailure::FlagAndFin => (true, true),
            DialFailure::FlagOnly => (true, false),
            DialFailure::FinOnly => (false, true),
        };
        if flag {
            self.send(PayloadType::Flag, &Flag::ConnectToPortError.encode());
        }
        if fin {
            self.finish(now, id);
        }
    }

    // Output.

    pub(super) fn poll_transmit(&mut self) -> Option<Bytes> {
        let message = self.transmit.pop_front();
        if self.transmit.is_empty() {
            self.cut();
        }
        message
    }

    pub(super) fn poll_event(&mut self) -> Option<AgentEvent> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Requested { at, sent: false } => Some(at),
            Phase::Requested { at, sent: true } => Some(at + self.setup.config.handshake_timeout),
            Phase::Resolving { until } | Phase::Draining { until } => Some(until),
            Phase::Idle | Phase::AwaitingRoute | Phase::Ready | Phase::Hung => None,
            Phase::Done => return None,
        };
        let tick = self.next_tick.filter(|_| !self.paused && !self.unacknowledged.is_empty());
        let cut = self.next_cut.filter(|_| self.may_cut());
        let keepalive = self.keepalive.map(|keepalive| keepalive.next_nop.min(keepalive.deadline));
        [phase, tick, cut, keepalive].into_iter().flatten().min()
    }

    // The handshake.

    fn send_handshake_request(&mut self) {
        let quirks = &self.setup.quirks;
        let mut properties = self.setup.properties.clone();
        let port_type = quirks.port_type.clone().unwrap_or_else(|| PORT_TYPE_LOCAL_FORWARDING.to_owned());
        if !port_type.is_empty() {
            properties.insert("type".to_owned(), port_type.into());
        }
        let session_type = quirks.session_type.clone().unwrap_or_else(|| SESSION_TYPE_PORT.to_owned());
        let mut actions = vec![RequestedAction {
            action_type: ACTION_SESSION_TYPE.to_owned(),
            action_parameters: json!({"SessionType": session_type, "Properties": properties}),
        }];
        match &quirks.extra_action {
            None => {}
            Some(ExtraAction::Kms(key)) => actions.push(RequestedAction {
                action_type: ACTION_KMS_ENCRYPTION.to_owned(),
                action_parameters: json!({"KMSKeyId": key, "Challenge": "AAECAwQFBgcICQoLDA0ODw=="}),
            }),
            Some(ExtraAction::Unknown(name)) => {
                actions.push(RequestedAction { action_type: name.clone(), action_parameters: json!({}) });
            }
        }
        let agent_version = quirks.version.clone().unwrap_or_else(|| self.setup.version.clone());
        let request = HandshakeRequest { agent_version, requested_client_actions: actions };
        self.send_json(PayloadType::HandshakeRequest, &request);
    }

    fn handle_handshake_response(&mut self, payload: &[u8]) {
        let Phase::Requested { at, sent: true } = self.phase else {
            self.violation("sent a handshake response that nobody waits for");
            self.phase = Phase::Hung;
            return;
        };
        let response: HandshakeResponse = match serde_json::from_slice(payload) {
            Ok(response) => response,
            Err(error) => return self.violation(format!("sent a handshake response that cannot be read: {error}")),
        };
        let failed = response.processed_client_actions.iter().find(|action| action.action_status != ACTION_SUCCESS);
        if let Some(action) = failed {
            let output = format!(
                "Encountered error while initiating handshake. {} failed on client with status {} error: {}",
                action.action_type, action.action_status, action.error
            );
            return self.fail(output);
        }
        if response.processed_client_actions.first().is_none_or(|action| action.action_type != ACTION_SESSION_TYPE) {
            self.violation("answered the handshake without the session type");
        }
        let client = Version::parse(&response.client_version);
        if client.is_none_or(|version| version < FIRST_CLIENT_WITH_MUX) {
            self.violation(format!("reports version `{}`, for which agents do not multiplex", response.client_version));
            return self.fail("the emulated agent has no basic mode");
        }
        if self.keeps_alive(client) {
            let now = self.now.instant;
            let keepalive =
                Keepalive { next_nop: now + KEEPALIVE_INTERVAL, deadline: now + KEEPALIVE_TIMEOUT, heard: false };
            self.keepalive = Some(keepalive);
        }
        let took = i64::try_from((self.now.instant - at).as_nanos()).unwrap_or(i64::MAX);
        let complete = HandshakeComplete {
            handshake_time_to_complete: took,
            customer_message: self.setup.quirks.customer_message.clone(),
        };
        self.send_json(PayloadType::HandshakeComplete, &complete);
        self.phase = Phase::Resolving { until: self.now.instant + self.setup.config.not_ready };
        self.events.push_back(AgentEvent::HandshakeComplete);
        if self.setup.quirks.repeat_handshake
            && let Some(request) = self.unacknowledged.get(&0).map(|request| request.message.clone())
        {
            self.transmit.push_back(request);
        }
    }

    /// Whether the agent's smux keepalive is on for a client of this version.
    fn keeps_alive(&self, client: Option<Version>) -> bool {
        let version = self.setup.quirks.version.as_ref().unwrap_or(&self.setup.version);
        match Version::parse(version) {
            Some(version) if version >= FIRST_AGENT_THAT_ASKS_FOR_KEEPALIVE => {
                client.is_none_or(|client| client <= LAST_CLIENT_WITH_KEEPALIVE)
            }
            Some(version) => version != AGENT_WITHOUT_KEEPALIVE,
            None => false,
        }
    }

    // Sending.

    fn send_json(&mut self, payload_type: PayloadType, value: &impl serde::Serialize) {
        // These payloads are structs of strings and numbers, which always serialize.
        let payload = serde_json::to_vec(value).unwrap_or_default();
        self.send(payload_type, &payload);
    }

    fn send(&mut self, payload_type: PayloadType, payload: &[u8]) {
        if self.setup.quirks.unknown_messages && payload_type == PayloadType::Output {
            self.transmit.push_back(
                self.header(MessageType::Other("agent_weather_report".into()), -1, payload_type).encode(b"rain"),
            );
            self.send_sequenced(PayloadType::Other(99), b"unknown payload type");
        }
        self.send_sequenced(payload_type, payload);
    }

    fn send_sequenced(&mut self, payload_type: PayloadType, payload: &[u8]) {
        let number = self.next_number;
        self.next_number += 1;
        let message = self.header(MessageType::OutputStreamData, number, payload_type).encode(payload);
        let sent = (!self.paused).then_some(self.now.instant);
        if self.unacknowledged.len() < MAX_UNACKNOWLEDGED {
            self.unacknowledged.insert(number, Unacknowledged { message: message.clone(), sent });
        }
        self.next_tick.get_or_insert(self.now.instant + self.setup.config.tick);
        if sent.is_none() {
            return;
        }
        if self.setup.quirks.bad_headers && payload_type == PayloadType::Output {
            let mut bad = message.to_vec();
            bad[..4].copy_from_slice(&0x7fff_ffff_u32.to_be_bytes());
            self.transmit.push_back(bad.into());
        }
        if self.setup.quirks.wrong_digests > 0 && payload_type == PayloadType::Output {
            self.setup.quirks.wrong_digests -= 1;
            let mut bad = message.to_vec();
            bad[80] ^= 0xff;
            self.transmit.push_back(bad.into());
        } else {
            self.transmit.push_back(message);
        }
    }

    fn header(&self, message_type: MessageType, number: i64, payload_type: PayloadType) -> Header {
        Header {
            message_type,
            created_ms: self.now.wall_ms,
            sequence_number: number,
            flags: if number == 0 { Flags::SYN } else { Flags::NONE },
            id: self.id_of(number),
            payload_type,
        }
    }

    /// The id of a message follows from its number, so that every acknowledgement can be checked
    /// without a list of what was sent.
    fn id_of(&self, number: i64) -> MessageId {
        let number = u64::from_ne_bytes(number.to_ne_bytes());
        MessageIds::new(self.setup.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next_id()
    }

    /// Cuts messages from the pipe as far as pace, pause and the caller's readiness allow.
    fn cut(&mut self) {
        while self.may_cut() {
            if self.next_cut.is_some_and(|at| at > self.now.instant) {
                return;
            }
            let payload_len = self.setup.quirks.payload_len.unwrap_or(PAYLOAD_LEN).max(1);
            let payload = self.pipe.split_to(self.pipe.len().min(payload_len));
            self.send(PayloadType::Output, &payload);
            self.next_cut = self.setup.config.pace.map(|pace| self.after_last_cut(pace));
        }
    }

    /// When the next message may be cut. A timer that came late is made up for, so that the pace does not depend on how
    /// fine timers are.
    fn after_last_cut(&self, pace: Duration) -> Instant {
        let now = self.now.instant;
        let due = self.next_cut.filter(|due| now.duration_since(*due) <= MAX_LATENESS);
        due.unwrap_or(now) + pace
    }

    /// Whether there is a message to cut, pace aside.
    fn may_cut(&self) -> bool {
        let within_window = self.setup.config.window.is_none_or(|window| self.unacknowledged.len() < window);
        let ready = self.phase == Phase::Ready && !self.paused;
        ready && within_window && !self.pipe.is_empty() && self.transmit.len() < MAX_READY
    }

    /// Looks at the oldest unacknowledged message only, as the agent's resend scheduler does.
    fn tick(&mut self) {
        let Some(due) = self.next_tick.filter(|due| *due <= self.now.instant) else { return };
        let tick = self.setup.config.tick.max(Duration::from_millis(1));
        // Ticks that were missed are not made up for.
        self.next_tick = Some(if due + tick > self.now.instant { due + tick } else { self.now.instant + tick });
        if self.paused || matches!(self.phase, Phase::Done) {
            return;
        }
        let timeout = self.rtt.timeout();
        if let Some(mut oldest) = self.unacknowledged.first_entry() {
            let oldest = oldest.get_mut();
            if oldest.sent.is_none_or(|sent| self.now.instant - sent > timeout) {
                self.retransmissions += u64::from(oldest.sent.is_some());
                oldest.sent = Some(self.now.instant);
                self.transmit.push_back(oldest.message.clone());
            }
        }
    }

    fn keep_alive(&mut self) {
        let Some(keepalive) = &mut self.keepalive else { return };
        if keepalive.next_nop <= self.now.instant {
            keepalive.next_nop = self.now.instant + KEEPALIVE_INTERVAL;
            Frame::Nop.encode(&mut self.pipe);
        }
        if keepalive.deadline <= self.now.instant {
            keepalive.deadline = self.now.instant + KEEPALIVE_TIMEOUT;
            if !std::mem::take(&mut keepalive.heard) {
                self.fail("");
            }
        }
    }

    // Receiving.

    fn handle_acknowledgement(&mut self, message: &Message) {
        self.paused = false;
        let acknowledgement = match Acknowledgement::decode(&message.payload) {
            Ok(acknowledgement) => acknowledgement,
            Err(error) => return self.violation(format!("sent an acknowledgement that cannot be read: {error}")),
        };
        let number = acknowledgement.acknowledged_message_sequence_number;
        if let Some(fault) =
            audit::acknowledgement(&message.header, &acknowledgement, self.next_number, self.id_of(number))
        {
            self.violation(fault);
        }
        if let Some(acknowledged) = self.unacknowledged.remove(&number)
            && let Some(sent) = acknowledged.sent
        {
            self.rtt.sample(self.now.instant - sent);
        }
    }

    fn handle_input(&mut self, message: Message) {
        let number = message.header.sequence_number;
        if number < self.expected {
            if !self.setup.quirks.ignore_duplicates {
                self.acknowledge(&message.header);
            }
            return;
        }
        if number > self.expected {
            if self.early.len() < MAX_EARLY {
                self.acknowledge(&message.header);
                self.early.insert(number, message);
            }
            return;
        }
        if matches!(self.process(&message), Processed::Refused) {
            return;
        }
        self.acknowledge(&message.header);
        self.expected += 1;
        // A message that is refused here has been acknowledged already: it stays, and waits for the
        // next message to be looked at again.
        while let Some(next) = self.early.get(&self.expected).cloned() {
            if matches!(self.process(&next), Processed::Refused) {
                return;
            }
            self.early.remove(&self.expected);
            self.expected += 1;
        }
    }

    fn acknowledge(&mut self, header: &Header) {
        let id = self.ack_ids.next_id();
        self.transmit.push_back(Acknowledgement::encode(header, id, self.now.wall_ms));
    }

    fn process(&mut self, message: &Message) -> Processed {
        match (message.header.payload_type, self.phase) {
            (_, Phase::Hung | Phase::Done) => return Processed::Refused,
            (PayloadType::HandshakeResponse, _) => self.handle_handshake_response(&message.payload),
            (PayloadType::Output | PayloadType::Flag, Phase::Idle | Phase::Requested { .. }) => {
                self.violation("sent data before the end of the handshake, which an agent acknowledges and loses");
            }
            (PayloadType::Output | PayloadType::Flag, Phase::Resolving { .. } | Phase::AwaitingRoute) => {
                return Processed::Refused;
            }
            (PayloadType::Output, Phase::Ready) => self.handle_data(message.payload.clone()),
            (PayloadType::Output, Phase::Draining { .. }) => {}
            (PayloadType::Flag, Phase::Ready | Phase::Draining { .. }) => self.handle_flag(&message.payload),
            (
                other @ (PayloadType::None
                | PayloadType::HandshakeRequest
                | PayloadType::HandshakeComplete
                | PayloadType::EncChallengeRequest
                | PayloadType::EncChallengeResponse
                | PayloadType::Other(_)),
                _,
            ) => self.violation(format!("sent payload type {}", other.code())),
        }
        Processed::Yes
    }

    fn handle_flag(&mut self, payload: &[u8]) {
        match (Flag::decode(payload), self.phase) {
            (Some(Flag::TerminateSession), Phase::Draining { .. }) => {
                self.violation("sent the flag that ends the session twice");
                self.phase = Phase::Hung;
            }
            (Some(Flag::TerminateSession), _) => {
                self.pipe.clear();
                self.streams.clear();
                self.keepalive = None;
                self.phase = Phase::Draining { until: self.now.instant + self.setup.config.drain };
                self.events.push_back(AgentEvent::Terminate);
            }
            (Some(Flag::DisconnectToPort), _) => {}
            (Some(flag @ (Flag::ConnectToPortError | Flag::Other(_))), _) => {
                self.violation(format!("sent flag {flag:?}"))
            }
            (None, _) => self.violation("sent a flag that is not four bytes long"),
        }
    }

    /// Ends the agent as soon as everything is acknowledged.
    fn end_drain(&mut self) {
        if matches!(self.phase, Phase::Draining { .. }) && self.unacknowledged.is_empty() {
            self.fail("");
        }
    }

    fn handle_data(&mut self, payload: Bytes) {
        self.decoder.push(payload);
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => self.handle_frame(frame),
                Ok(None) => return,
                Err(error) => {
                    self.violation(format!("broke the smux stream: {error}"));
                    return self.fail("smux protocol error");
                }
            }
        }
    }

    fn handle_frame(&mut self, frame: Frame) {
        if let Some(keepalive) = &mut self.keepalive {
            keepalive.heard = true;
        }
        if let Some(fault) = self.audit.frame(&frame) {
            self.violation(fault);
        }
        match frame {
            Frame::Nop => {}
            Frame::Syn(id) => {
                if let std::collections::btree_map::Entry::Vacant(entry) = self.streams.entry(id) {
                    entry.insert(StreamEnds::default());
                    self.events.push_back(AgentEvent::Open(id));
                }
            }
            Frame::Psh(id, data) => {
                if self.streams.get(&id).is_some_and(|ends| !ends.client_finished && !ends.agent_finished)
                    && !data.is_empty()
                {
                    self.events.push_back(AgentEvent::Data(id, data));
                }
            }
            Frame::Fin(id) => {
                let Some(ends) = self.streams.get_mut(&id) else { return };
                ends.client_finished = true;
                if ends.agent_finished {
                    self.streams.remove(&id);
                } else {
                    self.events.push_back(AgentEvent::Fin(id));
                }
            }
        }
    }

    fn violation(&mut self, what: impl Into<String>) {
        self.events.push_back(AgentEvent::Violation(what.into()));
    }
}

/// The first client for which an agent multiplexes: 1.1.70, in four numbers.
const FIRST_CLIENT_WITH_MUX: Version = Version([1, 1, 70, 0]);

/// The last client for which a recent agent turns the smux keepalive on.
const LAST_CLIENT_WITH_KEEPALIVE: Version = Version([1, 2, 331, 0]);

/// The first agent that decides on the keepalive by the client's version.
const FIRST_AGENT_THAT_ASKS_FOR_KEEPALIVE: Version = Version([3, 1, 1575, 0]);

/// The one agent whose keepalive is off for every client.
const AGENT_WITHOUT_KEEPALIVE: Version = Version([3, 1, 1446, 0]);
