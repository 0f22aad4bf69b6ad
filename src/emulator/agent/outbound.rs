//! What an agent sends: numbered messages, which it keeps until they are acknowledged, and the pipe of smux frames that
//! data messages are cut from.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::super::{clock::Now, config::AgentConfig, link::Random, script::AgentQuirks};
use crate::route::ssm::proto::{
    message::{Acknowledgement, Flags, Header, MessageId, MessageIds, MessageType, PayloadType},
    smux::frame::Frame,
};

/// Bytes that the agent reads for one message: `StreamDataPayloadSize`.
const PAYLOAD_LEN: usize = 1024;

/// Most messages that wait for an acknowledgement; further ones are sent once and forgotten.
const MAX_UNACKNOWLEDGED: usize = 100_000;

/// Messages that are cut from the pipe before the caller takes them.
const MAX_READY: usize = 32;

/// How late a timer may come; after more than that the agent had nothing to do.
const MAX_LATENESS: Duration = Duration::from_millis(4);

/// The longest oversleep, in units of the mean.
const MAX_OVERSLEEP: f64 = 8.0;

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

/// See the module.
pub(super) struct Outbound {
    config: AgentConfig,
    seed: u64,
    next_number: i64,
    unacknowledged: BTreeMap<i64, Unacknowledged>,
    rtt: Rtt,
    next_tick: Option<Instant>,
    paused: bool,
    /// smux bytes that are to be cut into messages.
    pipe: BytesMut,
    next_cut: Option<Instant>,
    /// How long pauses take.
    random: Random,
    retransmissions: u64,
    acknowledgement_ids: MessageIds,
    transmit: VecDeque<Bytes>,
}

impl Outbound {
    pub(super) fn new(config: AgentConfig, seed: u64) -> Self {
        Self {
            config,
            seed,
            next_number: 0,
            unacknowledged: BTreeMap::new(),
            rtt: Rtt { smoothed: 0.1, variation: 0.0 },
            next_tick: None,
            paused: false,
            pipe: BytesMut::new(),
            next_cut: None,
            random: Random::new(seed.rotate_left(32)),
            retransmissions: 0,
            acknowledgement_ids: MessageIds::new(!seed),
            transmit: VecDeque::new(),
        }
    }

    // Getters.

    /// Bytes of smux frames that are not yet in messages.
    pub(super) fn pipe_len(&self) -> usize {
        self.pipe.len()
    }

    /// Messages that were sent again.
    pub(super) fn retransmissions(&self) -> u64 {
        self.retransmissions
    }

    /// The number of the next message, and so of all that is not sent yet.
    pub(super) fn next_number(&self) -> i64 {
        self.next_number
    }

    /// Whether everything is acknowledged.
    pub(super) fn is_acknowledged(&self) -> bool {
        self.unacknowledged.is_empty()
    }

    /// The id of a message follows from its number, so that every acknowledgement can be checked without a list of what
    /// was sent.
    pub(super) fn id_of(&self, number: i64) -> MessageId {
        let number = u64::from_ne_bytes(number.to_ne_bytes());
        MessageIds::new(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next_id()
    }

    // Input.

    /// Holds data back until [`unpause`](Self::unpause).
    pub(super) fn pause(&mut self) {
        self.paused = true;
    }

    pub(super) fn unpause(&mut self) {
        self.paused = false;
    }

    /// Queues a frame.
    pub(super) fn push_frame(&mut self, frame: &Frame) {
        frame.encode(&mut self.pipe);
    }

    /// Forgets the frames that are not yet in messages.
    pub(super) fn clear_pipe(&mut self) {
        self.pipe.clear();
    }

    /// Numbers a message and sends it, or holds it back during a pause.
    pub(super) fn send(&mut self, now: Now, quirks: &mut AgentQuirks, payload_type: PayloadType, payload: &[u8]) {
        if quirks.unknown_messages && payload_type == PayloadType::Output {
            let header = self.header(now, MessageType::Other("agent_weather_report".into()), -1, payload_type);
            self.transmit.push_back(header.encode(b"rain"));
            self.send_numbered(now, quirks, PayloadType::Other(99), b"unknown payload type");
        }
        self.send_numbered(now, quirks, payload_type, payload);
    }

    fn send_numbered(&mut self, now: Now, quirks: &mut AgentQuirks, payload_type: PayloadType, payload: &[u8]) {
        let number = self.next_number;
        self.next_number += 1;
        let message = self.header(now, MessageType::OutputStreamData, number, payload_type).encode(payload);
        let sent = (!self.paused).then_some(now.instant);
        if self.unacknowledged.len() < MAX_UNACKNOWLEDGED {
            self.unacknowledged.insert(number, Unacknowledged { message: message.clone(), sent });
        }
        self.next_tick.get_or_insert(now.instant + self.config.tick);
        if sent.is_none() {
            return;
        }
        if quirks.bad_headers && payload_type == PayloadType::Output {
            let mut bad = message.to_vec();
            bad[..4].copy_from_slice(&0x7fff_ffff_u32.to_be_bytes());
            self.transmit.push_back(bad.into());
        }
        if quirks.wrong_digests > 0 && payload_type == PayloadType::Output {
            quirks.wrong_digests -= 1;
            let mut bad = message.to_vec();
            bad[80] ^= 0xff;
            self.transmit.push_back(bad.into());
        } else {
            self.transmit.push_back(message);
        }
    }

    fn header(&self, now: Now, message_type: MessageType, number: i64, payload_type: PayloadType) -> Header {
        Header {
            message_type,
            created_ms: now.wall_ms,
            sequence_number: number,
            flags: if number == 0 { Flags::SYN } else { Flags::NONE },
            id: self.id_of(number),
            payload_type,
        }
    }

    /// Sends the first message once more, with its old number, if it is not acknowledged.
    pub(super) fn repeat_first(&mut self) {
        if let Some(first) = self.unacknowledged.get(&0) {
            self.transmit.push_back(first.message.clone());
        }
    }

    /// Acknowledges a message of the client.
    pub(super) fn acknowledge(&mut self, now: Now, header: &Header) {
        let id = self.acknowledgement_ids.next_id();
        self.transmit.push_back(Acknowledgement::encode(header, id, now.wall_ms));
    }

    /// The client has acknowledged a message.
    pub(super) fn acknowledged(&mut self, now: Now, number: i64) {
        if let Some(acknowledged) = self.unacknowledged.remove(&number)
            && let Some(sent) = acknowledged.sent
        {
            self.rtt.sample(now.instant - sent);
        }
    }

    /// Cuts messages from the pipe as far as pace, pause and the caller's readiness allow.
    pub(super) fn cut(&mut self, now: Now, quirks: &mut AgentQuirks) {
        while self.may_cut() {
            if self.next_cut.is_some_and(|at| at > now.instant) {
                return;
            }
            let payload_len = quirks.payload_len.unwrap_or(PAYLOAD_LEN).max(1);
            let payload = self.pipe.split_to(self.pipe.len().min(payload_len));
            self.send(now, quirks, PayloadType::Output, &payload);
            if let Some(pace) = self.config.pace {
                let pause = pace + self.oversleep();
                self.next_cut = Some(self.after_last_cut(now, pause));
            }
        }
    }

    /// When the next message may be cut. A timer that came late is made up for, so that the pace does not depend on how
    /// fine timers are.
    fn after_last_cut(&self, now: Now, pause: Duration) -> Instant {
        let due = self.next_cut.filter(|due| now.instant.duration_since(*due) <= MAX_LATENESS);
        due.unwrap_or(now.instant) + pause
    }

    /// How much longer than it should a pause takes: mostly a little, now and then a lot.
    fn oversleep(&mut self) -> Duration {
        if self.config.oversleep.is_zero() {
            return Duration::ZERO;
        }
        let means = -(1.0 - self.random.fraction()).ln();
        self.config.oversleep.mul_f64(means.min(MAX_OVERSLEEP))
    }

    /// Whether there is a message to cut, pace aside.
    fn may_cut(&self) -> bool {
        let within_window = self.config.window.is_none_or(|window| self.unacknowledged.len() < window);
        !self.paused && within_window && !self.pipe.is_empty() && self.transmit.len() < MAX_READY
    }

    /// Looks at the oldest unacknowledged message only, as the agent's resend scheduler does.
    pub(super) fn tick(&mut self, now: Now) {
        let Some(due) = self.next_tick.filter(|due| *due <= now.instant) else { return };
        let tick = self.config.tick.max(Duration::from_millis(1));
        // Ticks that were missed are not made up for.
        self.next_tick = Some(if due + tick > now.instant { due + tick } else { now.instant + tick });
        if self.paused {
            return;
        }
        let timeout = self.rtt.timeout();
        if let Some(mut oldest) = self.unacknowledged.first_entry() {
            let oldest = oldest.get_mut();
            if oldest.sent.is_none_or(|sent| now.instant - sent > timeout) {
                self.retransmissions += u64::from(oldest.sent.is_some());
                oldest.sent = Some(now.instant);
                self.transmit.push_back(oldest.message.clone());
            }
        }
    }

    // Output.

    /// The next message for the client.
    pub(super) fn poll_transmit(&mut self) -> Option<Bytes> {
        self.transmit.pop_front()
    }

    /// Whether [`poll_transmit`](Self::poll_transmit) has nothing.
    pub(super) fn is_drained(&self) -> bool {
        self.transmit.is_empty()
    }

    /// When to look for lost messages.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        self.next_tick.filter(|_| !self.paused && !self.unacknowledged.is_empty())
    }

    /// When to [`cut`](Self::cut) again, if there is anything to cut.
    pub(super) fn next_cut(&self) -> Option<Instant> {
        self.next_cut.filter(|_| self.may_cut())
    }
}
