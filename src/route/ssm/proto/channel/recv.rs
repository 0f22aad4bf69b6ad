//! The receiving half: puts the peer's messages in order and tells repeats from news.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::message::Message;

/// How far ahead of the next expected number a message may be.
///
/// The agent keeps at most 100 000 unacknowledged messages (`OutgoingMessageBuffer` capacity in
/// amazon-ssm-agent, `config.go`), so a number further ahead is not honest.
const MAX_AHEAD: i64 = 100_000;

/// What became of a sequenced message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receipt {
    /// It is kept or was the next in order: acknowledge it.
    New,
    /// It has come before: acknowledge it again, since the first acknowledgement may be lost.
    Repeat,
    /// There is no room for it: do not acknowledge it, so that it comes again.
    Refused,
    /// No honest peer numbers a message so: do not acknowledge it.
    Absurd,
}

/// Messages that came early, and the number that is waited for.
#[derive(Debug)]
pub(super) struct Receiver {
    expected: i64,
    /// The message that is waited for, when it has come: the usual case, which should not cost a place in a tree.
    next: Option<Message>,
    early: BTreeMap<i64, Message>,
    early_bytes: usize,
    budget: usize,
}

impl Receiver {
    pub(super) fn new(budget: usize) -> Self {
        Self { expected: 0, next: None, early: BTreeMap::new(), early_bytes: 0, budget }
    }

    /// Takes a sequenced message; [`next_in_order`](Self::next_in_order) hands out what can be used.
    pub(super) fn insert(&mut self, mut message: Message) -> Receipt {
        let number = message.header.sequence_number;
        let known = (0..self.expected).contains(&number)
            || (number == self.expected && self.next.is_some())
            || self.early.contains_key(&number);
        if known {
            return Receipt::Repeat;
        }
        if number < 0 || number - self.expected > MAX_AHEAD {
            return Receipt::Absurd;
        }
        // The message that everything waits for is always taken: it frees room.
        if number == self.expected {
            self.next = Some(message);
            return Receipt::New;
        }
        let cost = cost(&message);
        if self.early_bytes + cost > self.budget {
            return Receipt::Refused;
        }
        // A slice would keep the whole buffer that it is cut from: a header may be as long as its sender
        // likes, and the transport reads several messages into one buffer.
        message.payload = Bytes::copy_from_slice(&message.payload);
        self.early_bytes += cost;
        self.early.insert(number, message);
        Receipt::New
    }

    /// Hands out the next message in order, if it is there.
    pub(super) fn next_in_order(&mut self) -> Option<Message> {
        let message = match self.next.take() {
            Some(next) => next,
            None if self.early.is_empty() => return None,
            None => {
                let early = self.early.remove(&self.expected)?;
                self.early_bytes -= cost(&early);
                early
            }
        };
        self.expected += 1;
        Some(message)
    }

    /// Returns the number that comes next in order.
    pub(super) fn expected(&self) -> i64 {
        self.expected
    }

    /// Returns how many messages wait for an earlier one.
    pub(super) fn early_len(&self) -> usize {
        self.early.len()
    }

    /// Returns how many messages are missing before the latest that has come.
    pub(super) fn missing(&self) -> usize {
        let Some((latest, _)) = self.early.last_key_value() else { return 0 };
        let span = usize::try_from(latest + 1 - self.expected).unwrap_or_default();
        span - self.early.len() - usize::from(self.next.is_some())
    }
}

/// Bytes that keeping a message takes.
fn cost(message: &Message) -> usize {
    message.payload.len() + size_of::<Message>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::ssm::proto::message::{Flags, Header, MessageId, MessageType, PayloadType};
    use proptest::prelude::*;

    fn message(sequence_number: i64, payload_len: usize) -> Message {
        Message {
            header: Header {
                message_type: MessageType::OutputStreamData,
                created_ms: 1,
                sequence_number,
                flags: Flags::NONE,
                id: MessageId([0; 16]),
                payload_type: PayloadType::Output,
            },
            payload: Bytes::from(vec![0; payload_len]),
        }
    }

    #[test]
    fn refuses_absurd_numbers() {
        let mut receiver = Receiver::new(1 << 20);
        for number in [-1, i64::MIN, i64::MAX, MAX_AHEAD + 1] {
            assert_eq!(receiver.insert(message(number, 1)), Receipt::Absurd, "{number}");
        }
        assert_eq!(receiver.insert(message(MAX_AHEAD, 1)), Receipt::New);
    }

    #[test]
    fn counts_what_is_missing() {
        let mut receiver = Receiver::new(1 << 20);
        assert_eq!(receiver.missing(), 0);
        for (number, missing) in [(3, 3), (5, 4), (0, 3), (4, 2)] {
            receiver.insert(message(number, 1));
            assert_eq!(receiver.missing(), missing, "after {number}");
        }
        while receiver.next_in_order().is_some() {}
        assert_eq!(receiver.missing(), 2);
        receiver.insert(message(1, 1));
        receiver.insert(message(2, 1));
        while receiver.next_in_order().is_some() {}
        assert_eq!(receiver.missing(), 0);
    }

    #[test]
    fn is_bounded_in_bytes_and_still_takes_the_missing_one() {
        let mut receiver = Receiver::new(10_000);
        let kept = (1..100).filter(|&n| receiver.insert(message(n, 1000)) == Receipt::New).count();
        assert!((5..10).contains(&kept), "{kept}");
        assert!(receiver.early_bytes <= 10_000);
        assert_eq!(receiver.insert(message(0, 1000)), Receipt::New);
        let delivered = std::iter::from_fn(|| receiver.next_in_order()).count();
        assert_eq!(delivered, kept + 1);
        assert_eq!(receiver.early_bytes, 0);
    }

    #[test]
    fn an_early_message_does_not_keep_the_buffer_that_it_came_in() {
        let mut receiver = Receiver::new(1 << 20);
        let buffer = Bytes::from(vec![0; 4 << 20]);
        let early = Message { payload: buffer.slice(..1), ..message(1, 0) };
        assert_eq!(receiver.insert(early), Receipt::New);
        assert!(buffer.is_unique(), "one byte keeps 4 MiB");
    }

    proptest! {
        #[test]
        fn any_order_with_repeats_comes_out_once_and_in_order(mut order in proptest::collection::vec(0_i64..60, 0..300)) {
            let mut receiver = Receiver::new(1 << 20);
            order.extend(0..60);
            let mut seen = std::collections::BTreeSet::new();
            let mut out = Vec::new();
            for number in order {
                let receipt = receiver.insert(message(number, 3));
                prop_assert_eq!(receipt, if seen.insert(number) { Receipt::New } else { Receipt::Repeat });
                out.extend(std::iter::from_fn(|| receiver.next_in_order()).map(|m| m.header.sequence_number));
            }
            prop_assert_eq!(out, (0..60).collect::<Vec<_>>());
            prop_assert_eq!(receiver.early_len(), 0);
        }
    }
}
