//! After a change of transport: which messages of the agent have to be acknowledged once more.
//!
//! Acknowledgements that were on the way when a transport was lost are lost with it. The agent then sends each of
//! those messages again, oldest first and ten a second, and only then what has really been lost. It does not know that
//! they arrived, and the first message that it repeats says from where on: what came from there on is acknowledged
//! again, without waiting to be asked for each.
//!
//! An agent that the service has paused while the client was away repeats nothing. It goes on when anything comes from
//! the client (`datachannel.go` of amazon-ssm-agent: any `input_stream_data` or `acknowledge` ends its pause), and a client
//! with nothing to send would wait for ever. So the latest acknowledgement is repeated on each new transport.

use std::collections::VecDeque;

use super::super::message::{Flags, Header, MessageId, MessageType, PayloadType};

/// Most messages that are remembered. A full-speed download brings 900 a second, and a link on which nothing gets
/// out is found within 13 seconds.
const MAX_RECENT: usize = 16_384;

/// What identifies a message in its acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) number: i64,
    pub(super) id: MessageId,
}

impl Received {
    /// Returns a header with what an acknowledgement names of a message.
    pub(super) fn header(self) -> Header {
        Header {
            message_type: MessageType::OutputStreamData,
            created_ms: 0,
            sequence_number: self.number,
            flags: Flags::NONE,
            id: self.id,
            payload_type: PayloadType::None,
        }
    }
}

/// Remembers what has come lately, and what of it is in doubt.
#[derive(Debug, Default)]
pub(super) struct Settlement {
    /// What has come on the present transport, in the order in which it came.
    recent: VecDeque<Received>,
    /// What came on earlier ones, as long as the agent has not shown from where on it is in doubt; by number.
    in_doubt: Vec<Received>,
    /// What is to be acknowledged again, by number.
    again: VecDeque<Received>,
    /// The latest message of the agent, by number.
    latest: Option<Received>,
    /// The number of the message that is acknowledged again on the present transport as a sign of life.
    greeted: Option<i64>,
}

impl Settlement {
    /// Takes note of a message that has been acknowledged for the first time.
    pub(super) fn acknowledged(&mut self, received: Received) {
        if self.recent.len() == MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(received);
        if self.latest.is_none_or(|latest| latest.number < received.number) {
            self.latest = Some(received);
        }
    }

    /// Takes note of a change of transport: no acknowledgement on the last one is sure to have arrived. The latest is
    /// repeated, unless an acknowledgement goes out anyway.
    pub(super) fn reattached(&mut self, acknowledges_anyway: bool) {
        self.in_doubt.extend(self.again.drain(..));
        self.in_doubt.extend(self.recent.drain(..));
        self.in_doubt.sort_unstable_by_key(|received| received.number);
        self.in_doubt.dedup_by_key(|received| received.number);
        let excess = self.in_doubt.len().saturating_sub(MAX_RECENT);
        self.in_doubt.drain(..excess);
        let greeting = self.latest.filter(|_| !acknowledges_anyway);
        self.greeted = greeting.map(|latest| latest.number);
        self.again.extend(greeting);
    }

    /// Takes note of the number of a message that comes. Once it is not above all that came on earlier transports it
    /// is the oldest that the agent still has; the agent sends nothing else again.
    pub(super) fn heard(&mut self, number: i64) {
        if self.in_doubt.last().is_none_or(|last| last.number < number) {
            return;
        }
        let known = self.in_doubt.partition_point(|received| received.number <= number);
        let greeted = self.greeted;
        let doubtful = std::mem::take(&mut self.in_doubt).into_iter().skip(known);
        self.again.extend(doubtful.filter(|received| Some(received.number) != greeted));
    }

    /// Whether there is something to acknowledge again.
    pub(super) fn is_pending(&self) -> bool {
        !self.again.is_empty()
    }

    /// Returns the next message to acknowledge again.
    pub(super) fn next(&mut self) -> Option<Received> {
        self.again.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(number: i64) -> Received {
        Received { number, id: MessageId([u8::try_from(number % 251).unwrap(); 16]) }
    }

    fn again(settlement: &mut Settlement) -> Vec<i64> {
        std::iter::from_fn(|| settlement.next()).map(|received| received.number).collect()
    }

    #[test]
    fn the_first_repeat_says_from_where_on() {
        let mut settlement = Settlement::default();
        for number in [0, 1, 2, 4, 3, 5, 7] {
            settlement.acknowledged(received(number));
        }
        settlement.heard(1);
        assert!(!settlement.is_pending(), "repeats on the same transport mean nothing");
        settlement.reattached(true);
        settlement.heard(8);
        assert!(!settlement.is_pending(), "something new says nothing");
        settlement.heard(3);
        assert_eq!(again(&mut settlement), [4, 5, 7], "3 is acknowledged as it comes, and 6 is really lost");
        settlement.heard(4);
        assert!(!settlement.is_pending());
    }

    #[test]
    fn a_lost_message_is_as_good_a_sign_as_a_repeat() {
        let mut settlement = Settlement::default();
        for number in [0, 1, 3, 4] {
            settlement.acknowledged(received(number));
        }
        settlement.reattached(true);
        settlement.heard(2);
        assert_eq!(again(&mut settlement), [3, 4]);
    }

    #[test]
    fn what_is_still_in_doubt_stays_so_over_further_transports() {
        let mut settlement = Settlement::default();
        settlement.acknowledged(received(0));
        settlement.acknowledged(received(1));
        settlement.reattached(true);
        settlement.acknowledged(received(2));
        settlement.reattached(true);
        settlement.heard(0);
        assert_eq!(settlement.next().unwrap().number, 1);
        settlement.acknowledged(received(3));
        settlement.reattached(true);
        settlement.heard(1);
        assert_eq!(again(&mut settlement), [2, 3]);
    }

    #[test]
    fn the_latest_is_acknowledged_again_on_each_transport_and_once_on_each() {
        let mut settlement = Settlement::default();
        settlement.reattached(false);
        assert!(!settlement.is_pending(), "nothing has come");
        for number in [0, 1, 3, 2] {
            settlement.acknowledged(received(number));
        }
        settlement.reattached(false);
        assert_eq!(again(&mut settlement), [3]);
        settlement.heard(0);
        assert_eq!(again(&mut settlement), [1, 2], "3 has been acknowledged again on this transport");
        // The second time nothing has been sent when that transport is lost as well.
        settlement.reattached(false);
        settlement.reattached(false);
        assert_eq!(again(&mut settlement), [3]);
        settlement.reattached(true);
        assert!(!settlement.is_pending(), "another acknowledgement waits, which says as much");
    }

    #[test]
    fn is_bounded() {
        let mut settlement = Settlement::default();
        for number in 0..3 * MAX_RECENT as i64 {
            settlement.acknowledged(received(number));
            if number % 1000 == 0 {
                settlement.reattached(true);
            }
            assert!(settlement.recent.len() <= MAX_RECENT && settlement.in_doubt.len() <= MAX_RECENT);
        }
        settlement.reattached(true);
        settlement.heard(0);
        let again = again(&mut settlement);
        assert_eq!((again.len(), again.last()), (MAX_RECENT, Some(&(3 * MAX_RECENT as i64 - 1))));
    }
}
