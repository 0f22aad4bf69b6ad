//! A port-forwarding session: handshake, data channel and multiplexer as one value.
//!
//! Follows `streaming.go` and `portsession.go` of session-manager-plugin 1.2.677.0 and `port_mux.go`
//! of amazon-ssm-agent 3.3.1142.0 in what is on the wire. See [`proto`](super) for the contract.

mod close;

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use tracing::{debug, info};

pub use self::close::CloseReason;
use crate::util::peer_text::PeerText;

use super::{
    Config, Now, Version,
    channel::{DataChannel, Input, Lag},
    handshake::{self, Agreement, Flag, HandshakeComplete},
    message::{HEADER_LEN, Message, MessageIds, PayloadType},
    smux::{Mux, MuxEvent, OpenError, frame::StreamId},
};

/// How often a keepalive frame goes to an agent whose own keepalive may be on. Such an agent ends the
/// session when no frame comes for 30 s (defaults of `mux.go` in xtaci/smux).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// What a session has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The handshake is complete: streams may be opened.
    Established {
        /// The agent's version.
        agent_version: Version,
        /// A text for the user, often empty.
        customer_message: PeerText,
    },
    /// The session has proved itself on its current transport: the agent has been heard through it.
    Alive,
    /// Bytes for the local program, in order. smux has no window per stream: whoever cannot keep more is to read
    /// nothing from the transport, see [`PortSession::set_reading`].
    Data {
        /// The stream.
        id: StreamId,
        /// Never empty.
        data: Bytes,
    },
    /// The agent has closed the stream, after all its data.
    Finished {
        /// The stream.
        id: StreamId,
    },
    /// The agent could not connect to the destination for this stream.
    Refused {
        /// The stream.
        id: StreamId,
    },
    /// A stream whose [`PortSession::writable_len`] had come to 0 takes data again.
    Writable {
        /// The stream.
        id: StreamId,
    },
    /// The session has ended; nothing follows.
    Closed(CloseReason),
}

/// Totals and present values of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Bytes of streams sent, each counted once.
    pub bytes_sent: u64,
    /// Bytes of streams received, each counted once.
    pub bytes_received: u64,
    /// Sequenced messages sent, repeats not counted.
    pub messages_sent: u64,
    /// Messages sent again.
    pub messages_resent: u64,
    /// Sequenced messages received, repeats counted.
    pub messages_received: u64,
    /// Sequenced messages that had been received before.
    pub repeats_received: u64,
    /// Sequenced messages that there was no room for.
    pub messages_refused: u64,
    /// Messages that wait for an earlier one which is missing.
    pub messages_early: usize,
    /// Messages that are missing before the latest one that has come.
    pub messages_missing: usize,
    /// Payload bytes sent and not acknowledged.
    pub bytes_in_flight: usize,
    /// Smoothed time from a message to its acknowledgement.
    pub smoothed_rtt: Duration,
}

/// How far the handshake has come.
#[derive(Debug)]
enum Phase {
    /// Waiting for the agent's request.
    Opening { deadline: Duration },
    /// The response is out; waiting for the agent to complete the handshake.
    Responded { deadline: Duration, agreement: Agreement },
    /// Streams may be opened.
    Established { agent_version: Version, keepalive_at: Option<Duration> },
    /// Over.
    Closed,
}

/// One session, from its first transport to its end. See [`proto`](super) for how to drive it.
#[derive(Debug)]
pub struct PortSession {
    config: Config,
    phase: Phase,
    channel: DataChannel,
    mux: Mux,
    /// Messages that wait for nothing but the transport: handshake and flags.
    urgent: VecDeque<Bytes>,
    events: VecDeque<Event>,
    attached: bool,
    proved: bool,
    terminate_sent: bool,
}

impl PortSession {
    /// Starts a session on its first transport; the agent speaks first.
    #[must_use]
    pub fn new(config: Config, ids: MessageIds, now: Now) -> Self {
        Self {
            phase: Phase::Opening { deadline: now.mono + config.handshake_timeout },
            channel: DataChannel::new(&config, ids, now),
            mux: Mux::new(&config),
            urgent: VecDeque::new(),
            events: VecDeque::new(),
            attached: true,
            proved: false,
            terminate_sent: false,
            config,
        }
    }

    // Getters.

    /// Whether the handshake is complete and the session has not ended.
    #[must_use]
    pub fn is_established(&self) -> bool {
        matches!(self.phase, Phase::Established { .. })
    }

    /// Returns the agent's version once the handshake is complete.
    #[must_use]
    pub fn agent_version(&self) -> Option<Version> {
        match &self.phase {
            Phase::Established { agent_version, .. } => Some(*agent_version),
            Phase::Opening { .. } | Phase::Responded { .. } | Phase::Closed => None,
        }
    }

    /// Returns the number of streams that have not been closed by either side.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.mux.open_streams()
    }

    /// Returns how many bytes [`write`](Self::write) takes for a stream now, 0 if its writer has to
    /// wait for [`Event::Writable`].
    #[must_use]
    pub fn writable_len(&self, id: StreamId) -> usize {
        self.mux.writable_len(id)
    }

    /// Whether [`open_stream`](Self::open_stream) would succeed.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn can_open_stream(&self) -> Result<(), OpenError> {
        match self.phase {
            Phase::Established { .. } => self.mux.can_open(),
            Phase::Opening { .. } | Phase::Responded { .. } => Err(OpenError::NotEstablished),
            Phase::Closed => Err(OpenError::Closed),
        }
    }

    /// Whether [`terminate`](Self::terminate) has been called and everything sent is acknowledged.
    #[must_use]
    pub fn terminate_acknowledged(&self) -> bool {
        self.terminate_sent && self.urgent.is_empty() && self.channel.all_acknowledged()
    }

    /// Returns about how long a new stream would wait until it gets through.
    ///
    /// An agent repeats ten lost messages a second, whatever else it sends, and nothing overtakes them. A session
    /// that is paused, or whose agent does not acknowledge, is taken to stand still for as long as it has already.
    #[must_use]
    pub fn backlog(&self, now: Now) -> Duration {
        self.channel.backlog(now)
    }

    /// Returns how far what arrives is behind what the agent does.
    #[must_use]
    pub fn lag(&self) -> Lag {
        self.channel.lag()
    }

    /// Whether so many acknowledgements wait for the transport that nothing more should be read from it.
    #[must_use]
    pub fn owes_acknowledgements(&self) -> bool {
        self.channel.owes_acknowledgements()
    }

    /// Whether the service has paused the session.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.channel.paused_since().is_some()
    }

    /// Returns since when an acknowledgement has been waited for on the current transport, as [`Now::mono`].
    #[must_use]
    pub fn waiting_since(&self) -> Option<Duration> {
        self.channel.unacknowledged_since()
    }

    /// Returns the bytes of streams that have been sent, each counted once.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.mux.bytes_sent()
    }

    /// Returns totals and present values.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counts = self.channel.counts();
        Stats {
            bytes_sent: self.mux.bytes_sent(),
            bytes_received: self.mux.bytes_received(),
            messages_sent: counts.sent,
            messages_resent: counts.resent,
            messages_received: counts.received,
            repeats_received: counts.repeats,
            messages_refused: counts.refused,
            messages_early: self.channel.early_messages(),
            messages_missing: self.channel.missing_messages(),
            bytes_in_flight: self.channel.in_flight(),
            smoothed_rtt: self.channel.smoothed_rtt(),
        }
    }

    // Input.

    /// Takes one WebSocket message. What cannot be read is dropped, so that its sender repeats it.
    pub fn handle_message(&mut self, now: Now, message: Bytes) {
        if self.is_closed() {
            return;
        }
        let input = self.channel.handle_message(now, message);
        self.mux.set_lag(self.channel.lag().behind);
        if !self.proved && self.channel.is_proved() {
            self.proved = true;
            self.events.push_back(Event::Alive);
        }
        match input {
            Input::None => {}
            Input::Sequenced => {
                while let Some(message) = self.channel.next_message() {
                    self.handle_sequenced(now, message);
                }
            }
            Input::Closed { output } => self.close(now, CloseReason::ChannelClosed { output }),
        }
        if let Some((count, last)) = self.channel.misconduct() {
            self.close(now, CloseReason::Misbehaved { count, last });
        }
        self.collect_events();
    }

    fn handle_sequenced(&mut self, now: Now, message: Message) {
        match message.header.payload_type {
            PayloadType::Output => {
                if let Err(error) = self.mux.handle_data(message.payload, now.mono) {
                    self.close(now, error.into());
                }
            }
            PayloadType::HandshakeRequest => self.handle_handshake_request(now, &message.payload),
            PayloadType::HandshakeComplete => self.handle_handshake_complete(now, &message.payload),
            PayloadType::Flag => match Flag::decode(&message.payload) {
                Some(Flag::ConnectToPortError) => self.mux.connection_refused(),
                other => debug!(?other, "ignored a flag"),
            },
            PayloadType::None
            | PayloadType::HandshakeResponse
            | PayloadType::EncChallengeRequest
            | PayloadType::EncChallengeResponse
            | PayloadType::Other(_) => {
                debug!(kind = ?message.header.payload_type, "ignored a payload that port sessions do not have");
            }
        }
    }

    fn handle_handshake_request(&mut self, now: Now, payload: &[u8]) {
        let Phase::Opening { deadline } = self.phase else {
            // A second response under a new number would block the agent's reader for good.
            debug!("ignored a repeated handshake request");
            return;
        };
        let (response, agreement) = handshake::respond(payload);
        let payload = serde_json::to_vec(&response).expect("strings and numbers are JSON");
        self.urgent.push_back(self.channel.send_now(now, PayloadType::HandshakeResponse, &payload));
        match agreement {
            Ok(agreement) => self.phase = Phase::Responded { deadline, agreement },
            Err(error) => self.close(now, error.into()),
        }
    }

    fn handle_handshake_complete(&mut self, now: Now, payload: &[u8]) {
        let Phase::Responded { agreement, .. } = &self.phase else {
            debug!("ignored the end of a handshake that is not under way");
            return;
        };
        let complete: HandshakeComplete = serde_json::from_slice(payload).unwrap_or_default();
        let agent_version = agreement.agent_version;
        info!(%agent_version, "session established");
        let keepalive_at = agreement.keepalive.then(|| now.mono + KEEPALIVE_INTERVAL);
        self.phase = Phase::Established { agent_version, keepalive_at };
        self.channel.established(now, Mux::nop(), agent_version.drops_repeats());
        self.events.push_back(Event::Established { agent_version, customer_message: complete.customer_message });
    }

    /// Takes note that a deadline may have passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.channel.handle_timeout(now);
        if self.channel.is_reading() {
            self.mux.handle_timeout(now.mono);
        }
        self.collect_events();
        if let Some(reason) = self.overdue(now) {
            self.close(now, reason);
            return;
        }
        if let Phase::Established { keepalive_at: Some(at), .. } = &mut self.phase
            && *at <= now.mono
        {
            *at = now.mono + KEEPALIVE_INTERVAL;
            self.mux.send_nop();
        }
    }

    /// Returns why the session has to be given up, if a deadline for that has passed.
    fn overdue(&self, now: Now) -> Option<CloseReason> {
        let (at, reason) = self.close_deadline()?;
        (at <= now.mono).then_some(reason)
    }

    /// Returns the first deadline after which the session has to be given up.
    fn close_deadline(&self) -> Option<(Duration, CloseReason)> {
        if !self.attached {
            return None;
        }
        let handshake = match &self.phase {
            Phase::Opening { deadline } => Some((*deadline, false)),
            Phase::Responded { deadline, .. } => Some((*deadline, true)),
            Phase::Established { .. } => None,
            Phase::Closed => return None,
        };
        let handshake = handshake.map(|(at, requested)| {
            let seconds = self.config.handshake_timeout.as_secs();
            (at, CloseReason::HandshakeTimeout { seconds, requested })
        });
        let unacknowledged = self.channel.unacknowledged_since().map(|since| {
            let limit = self.config.unacknowledged_timeout + self.channel.lag().behind;
            (since + limit, CloseReason::Unacknowledged { seconds: limit.as_secs() })
        });
        let paused = self.channel.unanswered_pause_since().map(|since| {
            let limit = self.config.pause_timeout;
            (since + limit, CloseReason::Paused { seconds: limit.as_secs() })
        });
        [handshake, unacknowledged, paused].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Takes note that the transport is lost. Streams stay and take data up to their limits; nothing
    /// is transmitted until [`reattached`](Self::reattached).
    pub fn detached(&mut self, _now: Now) {
        self.attached = false;
        self.channel.detached();
        // They are kept as unacknowledged, and sent again with everything else.
        self.urgent.clear();
    }

    /// Goes on with another transport: what is unacknowledged is sent again, in order.
    pub fn reattached(&mut self, now: Now) {
        self.attached = true;
        self.proved = false;
        self.channel.reattached(now);
        let limit = now.mono + self.config.handshake_timeout;
        match &mut self.phase {
            Phase::Opening { deadline } | Phase::Responded { deadline, .. } => *deadline = limit,
            Phase::Established { .. } | Phase::Closed => {}
        }
    }

    /// Takes note of whether the transport is being read. What does not come because nobody reads is not late, so no
    /// time-out of the agent counts meanwhile.
    pub fn set_reading(&mut self, now: Now, reading: bool) {
        self.channel.set_reading(now, reading);
    }

    // Commands.

    /// Opens a stream. The agent connects to the destination for it, and says so only when it fails.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_stream(&mut self, now: Now) -> Result<StreamId, OpenError> {
        self.can_open_stream()?;
        self.mux.open(now.mono)
    }

    /// Queues data of the local program; at most [`writable_len`](Self::writable_len) bytes.
    pub fn write(&mut self, _now: Now, id: StreamId, data: Bytes) {
        self.mux.write(id, data);
    }

    /// Takes note that the local program has stopped writing. smux has no half-close: the stream is
    /// kept open for the answer until the agent closes it, or nothing comes for
    /// [`Config::half_close_timeout`].
    pub fn finish(&mut self, now: Now, id: StreamId) {
        self.mux.finish(id, now.mono);
    }

    /// Closes a stream for which nothing more is wanted but word of its end, [`Event::Finished`] or [`Event::Refused`].
    pub fn close_stream(&mut self, id: StreamId) {
        self.mux.close(id);
    }

    /// Closes a stream whose local program is gone. What it had written is still delivered; what
    /// comes for it is discarded.
    pub fn reset(&mut self, _now: Now, id: StreamId) {
        self.mux.reset(id);
    }

    /// Sends something that means nothing: the service ends a session whose client has sent no data for its idle timeout.
    pub fn keep_alive(&mut self) {
        self.mux.send_nop();
    }

    /// Tells the agent to end the session. A second call does nothing: a second flag would block the
    /// agent's reader.
    pub fn terminate(&mut self, now: Now) {
        if self.terminate_sent || !self.is_established() {
            return;
        }
        self.terminate_sent = true;
        self.channel.terminated(now);
        let flag = Flag::TerminateSession.encode();
        let message = self.channel.send_now(now, PayloadType::Flag, &flag);
        if self.attached {
            self.urgent.push_back(message);
        }
    }

    // Output.

    /// Returns the next WebSocket message, if one may go now. Acknowledgements come first, but leave room for some data.
    pub fn poll_transmit(&mut self, now: Now) -> Option<Bytes> {
        if !self.attached {
            return None;
        }
        if self.channel.is_turn_of_data()
            && let Some(message) = self.poll_data(now)
        {
            return Some(message);
        }
        if let Some(message) = self.channel.poll_transmit(now) {
            return Some(message);
        }
        if let Some(message) = self.urgent.pop_front() {
            return Some(message);
        }
        self.poll_data(now)
    }

    /// Returns the next message with data, as far as window and pace let it go.
    fn poll_data(&mut self, now: Now) -> Option<Bytes> {
        while self.may_send_data() && self.channel.take_pace(now) {
            let mut buffer = DataChannel::buffer(self.config.payload_len);
            self.mux.fill(&mut buffer, self.config.payload_len);
            self.collect_events();
            // Peers drop messages without a payload, and do not acknowledge them.
            if buffer.len() > HEADER_LEN {
                return Some(self.channel.seal(now, buffer));
            }
        }
        None
    }

    fn may_send_data(&self) -> bool {
        self.is_established() && !self.terminate_sent && self.mux.wants_to_send() && self.channel.has_window()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) is due, as [`Now::mono`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let close = self.close_deadline().map(|(at, _)| at);
        let keepalive = match &self.phase {
            Phase::Established { keepalive_at, .. } if self.attached => *keepalive_at,
            Phase::Established { .. } | Phase::Opening { .. } | Phase::Responded { .. } | Phase::Closed => None,
        };
        let pace = self.may_send_data().then(|| self.channel.pace_ready_at());
        if self.is_closed() {
            return None;
        }
        let half_closed = self.mux.poll_timeout().filter(|_| self.channel.is_reading());
        [close, keepalive, pace, self.channel.poll_timeout(), half_closed].into_iter().flatten().min()
    }

    fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    fn close(&mut self, now: Now, reason: CloseReason) {
        self.collect_events();
        if !self.is_closed() {
            self.phase = Phase::Closed;
            self.channel.terminated(now);
            self.events.push_back(Event::Closed(reason));
        }
    }

    fn collect_events(&mut self) {
        while let Some(event) = self.mux.poll_event() {
            if self.is_closed() {
                continue;
            }
            let event = match event {
                MuxEvent::Data { id, data } => Event::Data { id, data },
                MuxEvent::Finished { id } => Event::Finished { id },
                MuxEvent::Refused { id } => Event::Refused { id },
                MuxEvent::Writable { id } => Event::Writable { id },
            };
            self.events.push_back(event);
        }
    }

    /// Returns the number of the message whose acknowledgement is kept back.
    #[cfg(any(fuzzing, test))]
    pub(super) fn withheld(&self) -> Option<i64> {
        self.channel.withheld()
    }

    /// Checks what has to hold between any two calls.
    #[cfg(any(fuzzing, test))]
    pub(super) fn assert_invariants(&self) {
        self.mux.assert_invariants();
    }
}
