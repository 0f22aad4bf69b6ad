//! The sending half: numbers messages, keeps a copy of each until it is acknowledged, and decides
//! which to send again.
//!
//! There are two signs of a lost message. One is that messages sent well after it are acknowledged
//! (every message has an acknowledgement of its own), see [`Reordering`]; the other is that the oldest one is not
//! acknowledged in time. The official programs only know the second, at a tick of 100 ms.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use tracing::debug;

use super::{
    old_agent::OldAgent,
    reorder::Reordering,
    rtt::{MAX_TIMEOUT, Rtt},
    window::QUEUE_SHARE,
};

/// A message is not taken for lost before one that was sent this many messages later is acknowledged.
const REORDER_THRESHOLD: u64 = 3;

/// Shortest time between two transmissions of one message, whatever is acknowledged meanwhile.
const MIN_RESEND_INTERVAL: Duration = Duration::from_millis(5);

/// First wait for the acknowledgement of the first data message.
///
/// The agent drops data unacknowledged until its port session is up, which takes some time after
/// `HandshakeComplete` (`port.go` and `datachannel.go` of amazon-ssm-agent): until the host's name is resolved. A full
/// time-out would cost the first request 200 ms and more.
const EARLY_TIMEOUT: Duration = Duration::from_millis(10);

/// The wait doubles with every fourth repeat: an agent is found ready at most 10 ms, or half of what it took, after it is,
/// by few messages: 8 in 120 ms, 20 in 1.2 s.
const EARLY_REPEATS: u32 = 4;

/// A message that has not been acknowledged.
#[derive(Debug)]
struct Outstanding {
    /// The whole message; a repeat has identical bytes.
    message: Bytes,
    payload_len: usize,
    last_sent: Duration,
    /// Position of its last transmission among all transmissions.
    order: u64,
    /// How often it has been sent.
    transmissions: u32,
    /// How often of it on this transport.
    transmissions_here: u32,
}

/// What an acknowledgement says of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrived {
    pub(super) payload_len: usize,
    /// How long it took; `None` when it was sent more than once, as it is not known which arrived.
    pub(super) round_trip: Option<Duration>,
}

/// Numbers, copies and timers of sent messages.
#[derive(Debug)]
pub(super) struct Sender {
    /// Messages from `first_number` on; `None` where one has been acknowledged.
    outstanding: VecDeque<Option<Outstanding>>,
    /// The number of the first entry of `outstanding`.
    first_number: i64,
    /// Sum of the payloads in `outstanding`.
    in_flight: usize,
    next_order: u64,
    newest_arrived: Newest,
    reordering: Reordering,
    /// When the next message that has been overtaken counts as lost.
    lost_at: Option<Duration>,
    /// Numbers to be sent again.
    resend: BTreeSet<i64>,
    /// When the oldest message became the oldest, or the transport was attached.
    oldest_since: Duration,
    rtt: Rtt,
    /// How long acknowledgements wait in queues on their way.
    lag: Duration,
    /// Number of the first data message, until it is acknowledged; then nothing is early any more.
    early: Early,
    old_agent: OldAgent,
}

/// The latest transmission that is known to have arrived.
#[derive(Debug, Clone, Copy, Default)]
struct Newest {
    order: u64,
    round_trip: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Early {
    Handshake,
    FirstData(i64),
    Over,
}

impl Sender {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            outstanding: VecDeque::new(),
            first_number: 0,
            in_flight: 0,
            next_order: 1,
            newest_arrived: Newest::default(),
            reordering: Reordering::default(),
            lost_at: None,
            resend: BTreeSet::new(),
            oldest_since: now,
            rtt: Rtt::new(),
            lag: Duration::ZERO,
            early: Early::Handshake,
            old_agent: OldAgent::default(),
        }
    }

    /// Returns the number of the next new message.
    pub(super) fn next_number(&self) -> i64 {
        self.first_number + i64::try_from(self.outstanding.len()).expect("the window bounds what is outstanding")
    }

    /// Takes note of how long acknowledgements wait in queues on their way: no message is late before that.
    pub(super) fn set_lag(&mut self, lag: Duration) {
        self.lag = lag;
    }

    /// Keeps a message that is about to be sent for the first time; it has the next number.
    pub(super) fn sent(&mut self, message: Bytes, payload_len: usize, is_data: bool, now: Duration) {
        if self.outstanding.is_empty() {
            self.oldest_since = now;
        }
        if is_data && self.early == Early::Handshake {
            self.early = Early::FirstData(self.next_number());
        }
        self.in_flight += payload_len;
        self.outstanding.push_back(Some(Outstanding {
            message,
            payload_len,
            last_sent: now,
            order: self.next_order,
            transmissions: 1,
            transmissions_here: 1,
        }));
        self.old_agent.sent(self.next_order, now);
        self.next_order += 1;
    }

    /// Takes an acknowledgement; returns what it says of a message that was outstanding.
    pub(super) fn acknowledged(&mut self, number: i64, now: Duration) -> Option<Arrived> {
        let Some(acknowledged) = self.slot(number).and_then(Option::take) else {
            self.reordering.acknowledged_again(number, self.rtt.smoothed(), now);
            return None;
        };
        self.in_flight -= acknowledged.payload_len;
        self.resend.remove(&number);
        let since_sent = now.saturating_sub(acknowledged.last_sent);
        let round_trip = (acknowledged.transmissions == 1).then_some(since_sent);
        // Which of several transmissions has arrived is not known: the first may only have been held up.
        let last_has_arrived = acknowledged.transmissions_here == 1;
        match round_trip {
            Some(round_trip) => self.rtt.sample(round_trip.saturating_sub(self.lag)),
            None => self.reordering.acknowledged(number),
        }
        if last_has_arrived && acknowledged.order > self.newest_arrived.order {
            self.newest_arrived = Newest { order: acknowledged.order, round_trip: since_sent };
        }
        if self.early == Early::FirstData(number) {
            self.early = Early::Over;
            self.old_agent.takes_data();
        }
        if number == self.first_number {
            self.forget_acknowledged(now);
        }
        self.narrow_doubt();
        let is_proof = round_trip.is_some() && self.old_agent.acknowledged(acknowledged.order);
        if let Some(suspect) = self.old_agent.suspect(self.first_number).filter(|_| is_proof) {
            debug!(
                from = self.first_number,
                to = suspect,
                "messages count as delivered: the agent drops their repeats"
            );
            self.deliver_to(suspect, now);
        }
        self.mark_lost(now);
        Some(Arrived { payload_len: acknowledged.payload_len, round_trip })
    }

    /// Drops what is acknowledged from the front.
    fn forget_acknowledged(&mut self, now: Duration) {
        while let Some(None) = self.outstanding.front() {
            self.outstanding.pop_front();
            self.first_number += 1;
        }
        self.oldest_since = now;
    }

    /// Takes everything up to and with `last` as delivered, without an acknowledgement.
    fn deliver_to(&mut self, last: i64, now: Duration) {
        for number in self.first_number..=last {
            if let Some(delivered) = self.slot(number).and_then(Option::take) {
                self.in_flight -= delivered.payload_len;
                self.resend.remove(&number);
            }
            if self.early == Early::FirstData(number) {
                self.early = Early::Over;
            }
        }
        self.forget_acknowledged(now);
        self.narrow_doubt();
    }

    /// Sees to it that the latest message in doubt is an outstanding one, if any is.
    fn narrow_doubt(&mut self) {
        while let Some(suspect) = self.old_agent.suspect(self.first_number)
            && !matches!(self.slot(suspect), Some(Some(_)))
        {
            self.old_agent.cleared_from(suspect);
        }
    }

    /// Takes note that acknowledgements of all that is outstanding may have been lost.
    pub(super) fn disturbed(&mut self) {
        self.old_agent.disturbed(self.next_number(), self.next_order);
        self.narrow_doubt();
    }

    /// Takes note that the agent's port session is up.
    pub(super) fn agent_takes_data(&mut self) {
        self.old_agent.takes_data();
        self.narrow_doubt();
    }

    /// Sets whether the agent drops repeats, and may be sent fillers. It has completed the handshake, so it has
    /// processed message 0, the response to its request.
    pub(super) fn set_drops_repeats(&mut self, drops_repeats: bool, now: Duration) {
        self.old_agent.set_drops_repeats(drops_repeats);
        let is_repeated =
            self.slot(0).and_then(|slot| slot.as_ref()).is_some_and(|response| response.transmissions > 1);
        if drops_repeats && is_repeated {
            self.deliver_to(0, now);
            self.handle_timeout(now);
        }
        self.narrow_doubt();
    }

    /// Whether a message without meaning is to be sent, to find out what has arrived before it.
    pub(super) fn wants_filler(&self, now: Duration) -> bool {
        self.filler_at().is_some_and(|at| at <= now)
    }

    fn filler_at(&self) -> Option<Duration> {
        self.old_agent.suspect(self.first_number)?;
        // What waits to be sent again comes first, and may be the next suspect.
        self.old_agent.filler_at().filter(|_| self.resend.is_empty())
    }

    /// Returns when the latest message in doubt is to be sent again, unless it waits for that already.
    fn suspect_due_at(&self) -> Option<Duration> {
        let number = self.old_agent.suspect(self.first_number).filter(|number| !self.resend.contains(number))?;
        let index = usize::try_from(number - self.first_number).ok()?;
        self.old_agent.repeat_at(self.outstanding.get(index)?.as_ref()?.last_sent)
    }

    /// Returns when the oldest message comes to be in doubt, with all others.
    fn doubt_at(&self) -> Option<Duration> {
        let is_in_doubt = self.outstanding.is_empty() || self.old_agent.suspect(self.first_number).is_some();
        self.old_agent.doubt_at(self.oldest_since).filter(|_| !is_in_doubt)
    }

    /// Marks every message that was sent well before one that has arrived, and has had its time.
    fn mark_lost(&mut self, now: Duration) {
        let time = (self.newest_arrived.round_trip + self.reordering.tolerance(now)).max(MIN_RESEND_INTERVAL);
        self.lost_at = None;
        for (number, entry) in (self.first_number..).zip(&self.outstanding) {
            let Some(entry) = entry else { continue };
            if self.old_agent.is_on_trial(number, entry.order) {
                continue;
            }
            if entry.order + REORDER_THRESHOLD <= self.newest_arrived.order {
                let at = entry.last_sent + time;
                if at <= now {
                    self.resend.insert(number);
                } else {
                    self.lost_at = Some(self.lost_at.map_or(at, |other| other.min(at)));
                }
            } else if entry.transmissions == 1 {
                // What follows was sent later still.
                break;
            }
        }
    }

    /// Marks all that is outstanding: the transport that carried it is gone.
    pub(super) fn mark_all(&mut self, now: Duration) {
        self.outstanding.iter_mut().flatten().for_each(|entry| entry.transmissions_here = 0);
        let numbers = (self.first_number..).zip(&self.outstanding);
        self.resend = numbers.filter(|(_, entry)| entry.is_some()).map(|(number, _)| number).collect();
        self.oldest_since = now;
        self.lost_at = None;
        self.reordering.reattached();
        self.disturbed();
    }

    /// Marks the oldest message, if there is one.
    pub(super) fn mark_oldest(&mut self) {
        if !self.outstanding.is_empty() {
            self.resend.insert(self.first_number);
        }
    }

    /// Marks what has not been acknowledged in time.
    pub(super) fn handle_timeout(&mut self, now: Duration) {
        if self.lost_at.is_some_and(|at| at <= now) {
            self.mark_lost(now);
        }
        if self.oldest_late_at().is_some_and(|at| at <= now) {
            self.resend.insert(self.first_number);
        }
        if self.doubt_at().is_some_and(|at| at <= now) {
            self.disturbed();
        }
        if let Some(suspect) = self.old_agent.suspect(self.first_number)
            && self.suspect_due_at().is_some_and(|at| at <= now)
        {
            self.resend.insert(suspect);
        }
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) or another drain is due.
    pub(super) fn timeout_at(&self) -> Option<Duration> {
        let times = [self.lost_at, self.oldest_late_at(), self.doubt_at(), self.suspect_due_at(), self.filler_at()];
        times.into_iter().flatten().min()
    }

    /// Returns when the oldest message is to be sent again, unless it waits for that already.
    fn oldest_late_at(&self) -> Option<Duration> {
        let oldest = self.outstanding.front()?.as_ref()?;
        if self.resend.contains(&self.first_number) {
            return None;
        }
        let (timeout, repeats) = (self.rtt.timeout(), oldest.transmissions - 1);
        let (base, doublings) = if self.early == Early::FirstData(self.first_number) {
            (timeout.min(EARLY_TIMEOUT), repeats / EARLY_REPEATS)
        } else {
            (timeout, repeats)
        };
        let queues = self.lag + self.lag / QUEUE_SHARE;
        Some(oldest.last_sent + queues + (base * (1 << doublings.min(10))).min(MAX_TIMEOUT.max(base)))
    }

    /// Returns how many messages wait to be sent again.
    pub(super) fn resend_len(&self) -> usize {
        self.resend.len()
    }

    /// Whether [`next_resend`](Self::next_resend) has something.
    pub(super) fn has_resend(&self) -> bool {
        !self.resend.is_empty()
    }

    /// Returns the oldest message that is to be sent again.
    pub(super) fn next_resend(&mut self, now: Duration) -> Option<Bytes> {
        let number = self.resend.pop_first()?;
        let order = self.next_order;
        self.next_order += 1;
        let entry = self.slot(number)?.as_mut()?;
        entry.last_sent = now;
        entry.order = order;
        entry.transmissions = entry.transmissions.saturating_add(1);
        entry.transmissions_here = entry.transmissions_here.saturating_add(1);
        let message = entry.message.clone();
        if self.old_agent.suspect(self.first_number) == Some(number) {
            self.old_agent.repeated(order + REORDER_THRESHOLD);
        }
        if number == 0 && self.old_agent.drops_repeats() {
            self.deliver_to(0, now);
            // What is the oldest now may be due.
            self.handle_timeout(now);
        }
        Some(message)
    }

    /// Sends the oldest message again now, unless one goes out anyway: a sign of life in a pause.
    pub(super) fn probe_oldest(&mut self, now: Duration) -> Option<Bytes> {
        self.mark_oldest();
        if self.outstanding.is_empty() { None } else { self.next_resend(now) }
    }

    /// Returns the payload bytes that are not acknowledged.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Returns how many messages lie between the oldest unacknowledged one and the newest.
    pub(super) fn span(&self) -> usize {
        self.outstanding.len()
    }

    /// Returns since when the oldest unacknowledged message has been waited for.
    pub(super) fn oldest_since(&self) -> Option<Duration> {
        (!self.outstanding.is_empty()).then_some(self.oldest_since)
    }

    pub(super) fn smoothed_rtt(&self) -> Duration {
        self.rtt.smoothed()
    }

    fn slot(&mut self, number: i64) -> Option<&mut Option<Outstanding>> {
        let index = usize::try_from(number.checked_sub(self.first_number)?).ok()?;
        self.outstanding.get_mut(index)
    }
}

#[cfg(test)]
mod tests;
