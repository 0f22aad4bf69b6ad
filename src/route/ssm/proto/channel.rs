//! The data channel: an ordered, acknowledged stream of messages that outlives its transports.
//!
//! Knows payloads only by their type. What they mean is up to [`session`](super::session).
//!
//! Invariants: numbers start at 0 in both directions and never repeat; a message is kept until it is
//! acknowledged; acknowledgements never wait for window or pace, and go out before anything else but some data.
//!
//! Source: section by section, `streaming.go` of session-manager-plugin 1.2.677.0 and
//! `datachannel.go` of amazon-ssm-agent 3.3.1142.0; where this client does better than both, the
//! comment says so.

mod conduct;
mod lag;
mod old_agent;
mod pacer;
mod pause;
mod recv;
mod reorder;
mod rtt;
mod send;
mod settle;
mod window;
mod withhold;

use std::{collections::VecDeque, time::Duration};

use bytes::{Bytes, BytesMut};
use tracing::{debug, trace};

use crate::util::peer_text::PeerText;

#[cfg(any(fuzzing, test))]
pub(super) use self::window::MAX_RETURNING;
use self::{
    conduct::Conduct,
    lag::LagMeter,
    pacer::{Bucket, Pacer},
    pause::Pause,
    recv::{Receipt, Receiver},
    send::{Arrived, Sender},
    settle::{Received, Settlement},
    window::{Arrival, Window},
    withhold::Withheld,
};
pub use self::{conduct::Violation, lag::Lag};
use super::{
    Config, Now,
    message::{
        Acknowledgement, ChannelClosed, Flags, HEADER_LEN, Header, Message, MessageIds, MessageType, PayloadType,
    },
};

/// Messages per second that are sent again after the transport was replaced.
///
/// A hundred thousand repeats at once would only be paused by the service.
const REPLAY_RATE: u32 = 200;
const REPLAY_BURST: u32 = 20;

/// Acknowledgements per second that are repeated after the transport was replaced. They leave half of what the service
/// takes to everything else.
const SETTLE_RATE: u32 = 450;
const SETTLE_BURST: u32 = 50;

/// Largest number of acknowledgements that wait for the transport: five seconds' worth at the full message rate. More
/// gather on a line whose way up is too slow for them, and then nothing more should be read, as an agent keeps a hundred
/// thousand unacknowledged messages and forgets others. One that is not sent makes it repeat the message, no more.
const MAX_PENDING_ACKS: usize = 4096;

/// How many acknowledgements go before a message with data that waits as well. On a line whose way up is too slow for the
/// acknowledgements of a download, nothing else would ever go.
const ACKS_BEFORE_DATA: u32 = 4;

/// Largest number of messages from the oldest unacknowledged one on, whatever their size.
const MAX_SPAN: usize = 16_384;

/// How often an agent sends a lost message again: one per tick of its resend scheduler.
///
/// `ResendSleepInterval` in amazon-ssm-agent, `config.go`; it looks at its oldest message only.
const AGENT_RESEND_INTERVAL: Duration = Duration::from_millis(100);

/// What a message meant, beyond what the channel deals with by itself.
#[derive(Debug)]
pub(super) enum Input {
    /// Nothing: not for us, a repeat, damaged, or an acknowledgement.
    None,
    /// Sequenced messages may be taken with [`DataChannel::next_message`].
    Sequenced,
    /// The service ended the session, with a text for people.
    Closed {
        /// Why, in the service's or the agent's words.
        output: PeerText,
    },
}

/// The client's end of a data channel.
#[derive(Debug)]
pub(super) struct DataChannel {
    sender: Sender,
    receiver: Receiver,
    acks: VecDeque<Header>,
    withheld: Withheld,
    /// Acknowledgements that have gone since the last message with data.
    acks_in_row: u32,
    ids: MessageIds,
    pacer: Pacer,
    /// Holds back the repeats that a new transport calls for, until all are sent.
    replay: Option<Bucket>,
    /// Acknowledgements that may have been lost with a transport, and what holds back their repeats.
    settlement: Settlement,
    settling: Bucket,
    pause: Option<Pause>,
    /// Payload of a data message that means nothing to the agent, while one may be sent.
    filler: Option<Bytes>,
    attached: bool,
    attached_at: Duration,
    /// Whether anybody reads what comes.
    reading: bool,
    /// Whether the current transport has brought an acknowledgement or a sequenced message.
    proved: bool,
    window: Window,
    lag: LagMeter,
    counts: Counts,
    conduct: Conduct,
}

/// Totals of messages, for status and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) sent: u64,
    pub(super) resent: u64,
    pub(super) received: u64,
    pub(super) repeats: u64,
    pub(super) refused: u64,
}

impl DataChannel {
    pub(super) fn new(config: &Config, ids: MessageIds, now: Now) -> Self {
        Self {
            sender: Sender::new(now.mono),
            receiver: Receiver::new(config.reorder_budget),
            acks: VecDeque::new(),
            withheld: Withheld::default(),
            acks_in_row: 0,
            ids,
            pacer: Pacer::new(config.messages_per_second, now.mono),
            replay: None,
            settlement: Settlement::default(),
            settling: Bucket::new(SETTLE_RATE, SETTLE_BURST, now.mono),
            pause: None,
            filler: None,
            attached: true,
            attached_at: now.mono,
            reading: true,
            proved: false,
            window: Window::new(config.window),
            lag: LagMeter::new(now.mono),
            counts: Counts::default(),
            conduct: Conduct::default(),
        }
    }

    // Getters.

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) fn smoothed_rtt(&self) -> Duration {
        self.sender.smoothed_rtt()
    }

    /// Returns how far what arrives is behind.
    pub(super) fn lag(&self) -> Lag {
        self.lag.lag()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.sender.in_flight()
    }

    pub(super) fn early_messages(&self) -> usize {
        self.receiver.early_len()
    }

    /// Returns the number of the message whose acknowledgement is kept back.
    #[cfg(any(fuzzing, test))]
    pub(super) fn withheld(&self) -> Option<i64> {
        self.withheld.number()
    }

    pub(super) fn missing_messages(&self) -> usize {
        self.receiver.missing()
    }

    /// Returns about how long it takes until something new gets through: lost messages come again before it, both
    /// ways, and what has stood still for a time is taken to do so for as long again.
    pub(super) fn backlog(&self, now: Now) -> Duration {
        let count = |messages: usize| u32::try_from(messages).unwrap_or(u32::MAX);
        let down = AGENT_RESEND_INTERVAL.saturating_mul(count(self.receiver.missing()));
        let up = Duration::from_secs(1).saturating_mul(count(self.sender.resend_len())) / REPLAY_RATE;
        let stuck = [self.paused_since(), self.unacknowledged_since()].into_iter().flatten().min();
        // What only waits in a queue would do so in another session's as well: it is the same line.
        let stuck = stuck.map_or(Duration::ZERO, |since| now.mono.saturating_sub(since + self.lag.lag().behind));
        down.max(up).max(stuck)
    }

    /// Returns what the peer has done, once it is more than can be lived with.
    pub(super) fn misconduct(&self) -> Option<(u64, Violation)> {
        self.conduct.verdict()
    }

    pub(super) fn is_proved(&self) -> bool {
        self.proved
    }

    /// Returns whether every message up to and without `number` has been acknowledged.
    pub(super) fn all_acknowledged(&self) -> bool {
        self.sender.span() == 0
    }

    /// Returns since when the oldest message has been waited for on the current transport.
    pub(super) fn unacknowledged_since(&self) -> Option<Duration> {
        if !self.attached || !self.reading {
            return None;
        }
        self.sender.oldest_since().map(|since| since.max(self.attached_at))
    }

    /// Returns since when the service has paused the session.
    pub(super) fn paused_since(&self) -> Option<Duration> {
        self.pause.filter(|_| self.attached && self.reading).map(|pause| pause.since())
    }

    /// Returns from when on the pause counts against the session; nothing before the agent has been asked.
    pub(super) fn unanswered_pause_since(&self) -> Option<Duration> {
        self.pause.filter(|_| self.attached && self.reading)?.unanswered_since()
    }

    /// Whether so many acknowledgements wait for the transport that nothing more should come.
    pub(super) fn owes_acknowledgements(&self) -> bool {
        self.acks.len() >= MAX_PENDING_ACKS
    }

    /// Whether it is the turn of a message with data, although acknowledgements wait.
    pub(super) fn is_turn_of_data(&self) -> bool {
        self.acks_in_row >= ACKS_BEFORE_DATA
    }

    /// Whether anybody reads what comes.
    pub(super) fn is_reading(&self) -> bool {
        self.reading
    }

    // Input.

    pub(super) fn handle_message(&mut self, now: Now, bytes: Bytes) -> Input {
        let message = match Message::decode(bytes) {
            Ok(message) => message,
            Err(error) => {
                debug!(%error, "dropped a message that cannot be read");
                self.conduct.bad(error.into());
                return Input::None;
            }
        };
        match message.header.message_type {
            MessageType::OutputStreamData => self.handle_sequenced(now, message),
            MessageType::Acknowledge => {
                self.handle_acknowledgement(now, &message);
                Input::None
            }
            MessageType::ChannelClosed => Input::Closed { output: ChannelClosed::decode(&message.payload).output },
            MessageType::StartPublication => {
                self.unpause("start_publication");
                Input::None
            }
            MessageType::PausePublication => {
                self.pause(now);
                Input::None
            }
            MessageType::InputStreamData | MessageType::Other(_) => {
                debug!(kind = %message.header.message_type, "ignored a message that clients do not get");
                Input::None
            }
        }
    }

    fn handle_sequenced(&mut self, now: Now, message: Message) -> Input {
        let header = message.header.clone();
        trace!(number = header.sequence_number, len = message.payload.len(), "received");
        self.counts.received += 1;
        let receipt = self.receiver.insert(message);
        if receipt != Receipt::Absurd {
            self.unpause("output_stream_data");
            self.proved = true;
            self.settlement.heard(header.sequence_number);
            self.lag.message(header.sequence_number, header.created_ms, now.mono);
            self.sender.set_lag(self.lag.lag().behind);
        }
        match receipt {
            Receipt::New => {
                self.conduct.good();
                if header.payload_type == PayloadType::Output {
                    self.sender.agent_takes_data();
                }
                self.settlement.acknowledged(Received { number: header.sequence_number, id: header.id });
                if let Some(header) = self.withheld.acknowledge_new(header, self.lag.lag().behind, now.mono) {
                    self.acknowledge(header);
                }
                self.review_withheld(now);
                Input::Sequenced
            }
            Receipt::Repeat => {
                self.counts.repeats += 1;
                self.conduct.good();
                self.review_withheld(now);
                if self.withheld.number() != Some(header.sequence_number) {
                    self.acknowledge(header);
                }
                Input::None
            }
            Receipt::Absurd => {
                let (number, expected) = (header.sequence_number, self.receiver.expected());
                debug!(number, expected, "dropped a message with an absurd number");
                self.conduct.bad(Violation::AbsurdNumber { number, expected });
                Input::None
            }
            Receipt::Refused => {
                self.counts.refused += 1;
                debug!(number = header.sequence_number, "no room for a message; the agent has to repeat it");
                Input::None
            }
        }
    }

    /// Sends the acknowledgement that is kept back, if it is time.
    fn review_withheld(&mut self, now: Now) {
        let missing = self.receiver.missing() > 0;
        if let Some(header) = self.withheld.review(missing, self.lag.lag().behind, now.mono) {
            self.acknowledge(header);
        }
    }

    fn acknowledge(&mut self, header: Header) {
        if self.acks.len() < MAX_PENDING_ACKS {
            self.acks.push_back(header);
        }
    }

    fn handle_acknowledgement(&mut self, now: Now, message: &Message) {
        let number = match Acknowledgement::decode(&message.payload) {
            Ok(acknowledgement) => acknowledgement.acknowledged_message_sequence_number,
            Err(error) => {
                debug!(%error, "ignored an acknowledgement that cannot be read");
                self.conduct.bad(Violation::UnreadableAcknowledgement);
                return;
            }
        };
        let last = self.sender.next_number() - 1;
        if !(0..=last).contains(&number) {
            debug!(number, last, "ignored an acknowledgement of what was not sent");
            self.conduct.bad(Violation::FutureAcknowledgement { number, last });
            return;
        }
        self.conduct.good();
        self.unpause("acknowledge");
        self.proved = true;
        let age_ms = self.lag.acknowledgement(message.header.created_ms, now.mono);
        let lag = self.lag.lag().behind;
        self.sender.set_lag(lag);
        let in_flight = self.sender.in_flight();
        match self.sender.acknowledged(number, now.mono) {
            Some(Arrived { payload_len, round_trip: Some(round_trip) }) if payload_len > 0 => {
                let arrival = Arrival { len: payload_len, round_trip, in_flight, age_ms, lag };
                self.window.acknowledged(&arrival, now.mono);
            }
            Some(_) => {}
            None => trace!(number, "ignored an acknowledgement of nothing that is outstanding"),
        }
    }

    fn pause(&mut self, now: Now) {
        if self.pause.is_none() {
            debug!("the service pauses publication");
            self.pacer.paused(now.mono);
            self.pause = Some(Pause::new(now.mono));
        }
    }

    fn unpause(&mut self, sign: &'static str) {
        if self.pause.take().is_some() {
            debug!(sign, "publication goes on");
            // What was sent in the pause has most likely been dropped, and nothing else counts before it.
            self.sender.mark_oldest();
            self.sender.disturbed();
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Now) {
        if self.attached && self.reading && self.pause.is_none() {
            self.sender.handle_timeout(now.mono);
        }
    }

    /// Takes note of whether what comes is read. The time in which it was not does not count.
    pub(super) fn set_reading(&mut self, now: Now, reading: bool) {
        if reading && !self.reading {
            self.attached_at = now.mono;
            if self.pause.is_some() {
                self.pause = Some(Pause::new(now.mono));
            }
        }
        self.reading = reading;
    }

    pub(super) fn detached(&mut self) {
        self.attached = false;
        self.pause = None;
    }

    pub(super) fn reattached(&mut self, now: Now) {
        self.attached = true;
        self.reading = true;
        self.attached_at = now.mono;
        self.proved = false;
        self.pause = None;
        self.settlement.reattached(!self.acks.is_empty());
        if let Some(header) = self.withheld.release() {
            self.acknowledge(header);
        }
        self.window.reattached();
        self.lag.reattached(now.mono);
        self.sender.set_lag(Duration::ZERO);
        self.sender.mark_all(now.mono);
        self.replay = self.sender.has_resend().then(|| Bucket::new(REPLAY_RATE, REPLAY_BURST, now.mono));
    }

    // Output.

    /// Returns the next sequenced message of the agent in order.
    pub(super) fn next_message(&mut self) -> Option<Message> {
        self.receiver.next_in_order()
    }

    /// Numbers a message that must go out at once, whatever the window and the pace, and returns it.
    pub(super) fn send_now(&mut self, now: Now, payload_type: PayloadType, payload: &[u8]) -> Bytes {
        if payload_type == PayloadType::Flag
            && let Some(header) = self.withheld.release()
        {
            // An agent that is told to end waits until all is acknowledged.
            self.acknowledge(header);
        }
        let message = self.header(now, payload_type).encode(payload);
        self.register(message.clone(), 0, false, now);
        message
    }

    /// Returns the next message that needs no new payload: an acknowledgement or a repeat.
    pub(super) fn poll_transmit(&mut self, now: Now) -> Option<Bytes> {
        if !self.attached {
            return None;
        }
        if let Some(acknowledged) = self.acks.pop_front() {
            self.pacer.count(now.mono);
            self.acks_in_row = self.acks_in_row.saturating_add(1);
            let id = self.ids.next_id();
            return Some(Acknowledgement::encode(&acknowledged, id, created_ms(now)));
        }
        if let Some(pause) = &mut self.pause {
            return if pause.take_turn(now.mono) { self.ask(now) } else { None };
        }
        if self.settlement.is_pending()
            && self.settling.ready_at() <= now.mono
            && self.pacer.take(now.mono)
            && self.settling.take(now.mono)
            && let Some(received) = self.settlement.next()
        {
            let id = self.ids.next_id();
            return Some(Acknowledgement::encode(&received.header(), id, created_ms(now)));
        }
        if !self.sender.has_resend() {
            self.replay = None;
            return if self.sender.wants_filler(now.mono) { self.send_filler(now) } else { None };
        }
        if self.replay.as_mut().is_some_and(|replay| !replay.take(now.mono)) || !self.pacer.take(now.mono) {
            return None;
        }
        self.counts.resent += 1;
        self.sender.next_resend(now.mono)
    }

    /// Returns the message that asks the agent in a pause whether it is there.
    fn ask(&mut self, now: Now) -> Option<Bytes> {
        let repeat = self.sender.probe_oldest(now.mono);
        let question = match repeat {
            Some(repeat) => {
                self.counts.resent += 1;
                self.pacer.count(now.mono);
                repeat
            }
            None => self.send_filler(now)?,
        };
        self.pause.as_mut()?.asked(now.mono);
        Some(question)
    }

    /// Numbers a data message that means nothing, if one may be sent, and returns it. It counts against no window.
    fn send_filler(&mut self, now: Now) -> Option<Bytes> {
        let message = self.header(now, PayloadType::Output).encode(&self.filler.clone()?);
        self.pacer.count(now.mono);
        self.register(message.clone(), 0, true, now);
        Some(message)
    }

    /// Takes note that the agent has completed the handshake. From now on data messages with the payload `filler`, which
    /// means nothing to it, may be sent as questions. `drops_repeats`: it is one of those in [`old_agent`].
    pub(super) fn established(&mut self, now: Now, filler: Bytes, drops_repeats: bool) {
        self.filler = Some(filler);
        self.sender.set_drops_repeats(drops_repeats, now.mono);
    }

    /// Takes note that no data may be sent any more.
    pub(super) fn terminated(&mut self, now: Now) {
        self.filler = None;
        self.sender.set_drops_repeats(false, now.mono);
    }

    /// Whether a message with new data may be sent as far as window and pause go.
    pub(super) fn has_window(&self) -> bool {
        self.attached
            && self.pause.is_none()
            && self.sender.in_flight() < self.window.size()
            && self.sender.span() < MAX_SPAN
    }

    /// Takes leave of the pacer to send a message with new data.
    pub(super) fn take_pace(&mut self, now: Now) -> bool {
        self.pacer.take(now.mono)
    }

    /// Returns when the pacer lets the next message with new data go.
    pub(super) fn pace_ready_at(&self) -> Duration {
        self.pacer.ready_at()
    }

    /// Makes a buffer for a data message: the payload is to be appended.
    pub(super) fn buffer(payload_len: usize) -> BytesMut {
        let mut buffer = BytesMut::with_capacity(HEADER_LEN + payload_len);
        buffer.resize(HEADER_LEN, 0);
        buffer
    }

    /// Numbers the message whose payload has been appended to a [`buffer`](Self::buffer).
    pub(super) fn seal(&mut self, now: Now, buffer: BytesMut) -> Bytes {
        let payload_len = buffer.len() - HEADER_LEN;
        self.acks_in_row = 0;
        let message = self.header(now, PayloadType::Output).seal(buffer);
        self.register(message.clone(), payload_len, true, now);
        message
    }

    fn header(&mut self, now: Now, payload_type: PayloadType) -> Header {
        Header {
            message_type: MessageType::InputStreamData,
            created_ms: created_ms(now),
            sequence_number: self.sender.next_number(),
            flags: Flags::NONE,
            id: self.ids.next_id(),
            payload_type,
        }
    }

    fn register(&mut self, message: Bytes, payload_len: usize, is_data: bool, now: Now) {
        self.counts.sent += 1;
        self.sender.sent(message, payload_len, is_data, now.mono);
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) or another drain is due.
    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        if !self.attached {
            return None;
        }
        if let Some(pause) = self.pause {
            return Some(pause.probe_at());
        }
        let resend = self.sender.has_resend().then(|| {
            let replay = self.replay.as_ref().map_or(Duration::ZERO, Bucket::ready_at);
            replay.max(self.pacer.ready_at())
        });
        let settle = self.settlement.is_pending().then(|| self.settling.ready_at().max(self.pacer.ready_at()));
        [self.sender.timeout_at().filter(|_| self.reading), resend, settle].into_iter().flatten().min()
    }
}

/// The message's creation date: milliseconds since the Unix epoch, and never 0, which peers refuse.
fn created_ms(now: Now) -> u64 {
    u64::try_from(now.wall.as_millis()).unwrap_or(u64::MAX).max(1)
}
