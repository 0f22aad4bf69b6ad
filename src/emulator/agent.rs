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
pub(super) mod habits;
mod handshake;
mod outbound;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::time::Instant;

use self::{audit::Audit, handshake::Verdict, outbound::Outbound};
use super::{
    clock::Now,
    config::AgentConfig,
    script::{AgentQuirks, DialFailure},
};
use crate::route::ssm::proto::{
    handshake::{Flag, HandshakeComplete},
    message::{Acknowledgement, Message, MessageType, PayloadType},
    smux::frame::{Frame, FrameDecoder, StreamId},
};

/// Most messages that are kept because an earlier one is missing.
const MAX_EARLY: usize = 100_000;

/// How often a smux keepalive is sent, and how long silence may last, where it is on.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(30);

/// What an agent is started with.
pub(super) struct AgentSetup {
    pub(super) config: AgentConfig,
    pub(super) quirks: AgentQuirks,
    pub(super) version: String,
    /// Properties of the handshake request but the type.
    pub(super) properties: Map<String, Value>,
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
    outbound: Outbound,
    expected: i64,
    early: BTreeMap<i64, Message>,
    decoder: FrameDecoder,
    streams: BTreeMap<StreamId, StreamEnds>,
    keepalive: Option<Keepalive>,
    events: VecDeque<AgentEvent>,
    now: Now,
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
            outbound: Outbound::new(setup.config, setup.seed),
            setup,
            audit: Audit::default(),
            phase: Phase::Idle,
            expected: 0,
            early: BTreeMap::new(),
            decoder: FrameDecoder::default(),
            streams: BTreeMap::new(),
            keepalive: None,
            events: VecDeque::new(),
            now,
        }
    }

    // Getters.

    /// Bytes of smux frames that are not yet in messages.
    pub(super) fn pipe_len(&self) -> usize {
        self.outbound.pipe_len()
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
        self.outbound.retransmissions()
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
        self.outbound.pause();
    }

    /// The service, or a sign of the client, ends the pause.
    pub(super) fn unpause(&mut self, now: Now) {
        self.now = now;
        self.outbound.unpause();
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
                self.outbound.unpause();
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
        if self.phase != Phase::Done {
            self.outbound.tick(now);
        }
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
            self.outbound.push_frame(&Frame::Nop);
            self.outbound.push_frame(&Frame::Psh(StreamId(id.0.wrapping_add(1)), Bytes::from_static(b"stray")));
        }
        self.outbound.push_frame(&Frame::Psh(id, data));
        self.cut();
    }

    /// The destination has closed its connection, or it was closed because the client finished.
    pub(super) fn finish(&mut self, now: Now, id: StreamId) {
        self.now = now;
        let Some(ends) = self.streams.get_mut(&id) else { return };
        if !ends.agent_finished {
            ends.agent_finished = true;
            self.outbound.push_frame(&Frame::Fin(id));
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
        let message = self.outbound.poll_transmit();
        if self.outbound.is_drained() {
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
        let cut = self.outbound.next_cut().filter(|_| self.phase == Phase::Ready);
        let keepalive = self.keepalive.map(|keepalive| keepalive.next_nop.min(keepalive.deadline));
        [phase, self.outbound.next_tick(), cut, keepalive].into_iter().flatten().min()
    }

    // The handshake.

    fn send_handshake_request(&mut self) {
        let AgentSetup { quirks, properties, .. } = &self.setup;
        self.send_json(PayloadType::HandshakeRequest, &handshake::request(quirks, self.version(), properties));
    }

    fn version(&self) -> &str {
        self.setup.quirks.version.as_deref().unwrap_or(&self.setup.version)
    }

    fn ignores_duplicates(&self) -> bool {
        self.setup.quirks.ignore_duplicates.unwrap_or_else(|| habits::are_old(self.version()))
    }

    fn handle_handshake_response(&mut self, payload: &[u8]) {
        let Phase::Requested { at, sent: true } = self.phase else {
            self.violation("sent a handshake response that nobody waits for");
            self.phase = Phase::Hung;
            return;
        };
        let Verdict { faults, outcome } = match handshake::check(payload) {
            Ok(verdict) => verdict,
            Err(error) => return self.violation(format!("sent a handshake response that cannot be read: {error}")),
        };
        for fault in faults {
            self.violation(fault);
        }
        let client = match outcome {
            Ok(version) => version,
            Err(output) => return self.fail(output),
        };
        let now = self.now.instant;
        if handshake::keeps_alive(self.version(), client) {
            let keepalive =
                Keepalive { next_nop: now + KEEPALIVE_INTERVAL, deadline: now + KEEPALIVE_TIMEOUT, heard: false };
            self.keepalive = Some(keepalive);
        }
        let took = i64::try_from((now - at).as_nanos()).unwrap_or(i64::MAX);
        let complete = HandshakeComplete {
            handshake_time_to_complete: took,
            customer_message: self.setup.quirks.customer_message.clone().into(),
        };
        self.send_json(PayloadType::HandshakeComplete, &complete);
        self.phase = Phase::Resolving { until: now + self.setup.config.not_ready };
        self.events.push_back(AgentEvent::HandshakeComplete);
        if self.setup.quirks.repeat_handshake {
            self.outbound.repeat_first();
        }
    }

    // Sending.

    fn send_json(&mut self, payload_type: PayloadType, value: &impl serde::Serialize) {
        // These payloads are structs of strings and numbers, which always serialize.
        let payload = serde_json::to_vec(value).unwrap_or_default();
        self.send(payload_type, &payload);
    }

    fn send(&mut self, payload_type: PayloadType, payload: &[u8]) {
        self.outbound.send(self.now, &mut self.setup.quirks, payload_type, payload);
    }

    /// Cuts data messages from the pipe, once data flows.
    fn cut(&mut self) {
        if self.phase == Phase::Ready {
            self.outbound.cut(self.now, &mut self.setup.quirks);
        }
    }

    fn keep_alive(&mut self) {
        let Some(keepalive) = &mut self.keepalive else { return };
        if keepalive.next_nop <= self.now.instant {
            keepalive.next_nop = self.now.instant + KEEPALIVE_INTERVAL;
            self.outbound.push_frame(&Frame::Nop);
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
        self.outbound.unpause();
        let acknowledgement = match Acknowledgement::decode(&message.payload) {
            Ok(acknowledgement) => acknowledgement,
            Err(error) => return self.violation(format!("sent an acknowledgement that cannot be read: {error}")),
        };
        let number = acknowledgement.acknowledged_message_sequence_number;
        let (next, id) = (self.outbound.next_number(), self.outbound.id_of(number));
        if let Some(fault) = audit::acknowledgement(&message.header, &acknowledgement, next, id) {
            self.violation(fault);
        }
        self.outbound.acknowledged(self.now, number);
    }

    fn handle_input(&mut self, message: Message) {
        let number = message.header.sequence_number;
        if number < self.expected {
            if !self.ignores_duplicates() {
                self.outbound.acknowledge(self.now, &message.header);
            }
            return;
        }
        if number > self.expected {
            if self.early.len() < MAX_EARLY {
                self.outbound.acknowledge(self.now, &message.header);
                self.early.insert(number, message);
            }
            return;
        }
        if matches!(self.process(&message), Processed::Refused) {
            return;
        }
        self.outbound.acknowledge(self.now, &message.header);
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
                self.outbound.clear_pipe();
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
        if matches!(self.phase, Phase::Draining { .. }) && self.outbound.is_acknowledged() {
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
