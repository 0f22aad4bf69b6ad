//! Keeps account of what no honest peer sends, so that one that floods is given up by name.

use super::super::message::DecodeError;

/// How far violations may outnumber good messages.
///
/// Networks do not damage messages, as they come through TLS; a few bad ones are a bug of the peer that can be
/// lived with, and each good one makes up for one of them.
const MAX_SCORE: u32 = 256;

/// Something that no honest peer sends. The message was dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Bytes that are not a message.
    #[error("it sent a message that cannot be read")]
    Unreadable(#[from] DecodeError),
    /// An acknowledgement whose payload is not one.
    #[error("it sent an acknowledgement that cannot be read")]
    UnreadableAcknowledgement,
    /// A sequence number that is negative, or further ahead than any agent keeps messages.
    #[error("it sent a message with number {number} when {expected} was the next")]
    AbsurdNumber {
        /// The number.
        number: i64,
        /// The number that was to come next.
        expected: i64,
    },
    /// An acknowledgement of a message that has not been sent.
    #[error("it acknowledged message {number} when the last one sent was {last}")]
    FutureAcknowledgement {
        /// The number that was acknowledged.
        number: i64,
        /// The last number that has been sent; -1 if none has.
        last: i64,
    },
}

/// The account of one peer.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    score: u32,
    count: u64,
    last: Option<Violation>,
}

impl Conduct {
    /// Takes note of a good message.
    pub(super) fn good(&mut self) {
        self.score = self.score.saturating_sub(1);
    }

    /// Takes note of a violation.
    pub(super) fn bad(&mut self, violation: Violation) {
        self.score = self.score.saturating_add(1);
        self.count += 1;
        self.last = Some(violation);
    }

    /// Returns how many violations there were and the last of them, once they are too many.
    pub(super) fn verdict(&self) -> Option<(u64, Violation)> {
        (self.score > MAX_SCORE).then(|| self.last.clone().map(|last| (self.count, last)))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_given_up_and_a_few_among_good_ones_are_not() {
        let mut conduct = Conduct::default();
        for _ in 0..10_000 {
            conduct.bad(Violation::UnreadableAcknowledgement);
            conduct.good();
        }
        assert_eq!(conduct.verdict(), None);
        for number in 0..=i64::from(MAX_SCORE) {
            assert_eq!(conduct.verdict(), None);
            conduct.bad(Violation::FutureAcknowledgement { number, last: -1 });
        }
        let last = Violation::FutureAcknowledgement { number: i64::from(MAX_SCORE), last: -1 };
        assert_eq!(conduct.verdict(), Some((10_000 + u64::from(MAX_SCORE) + 1, last)));
    }
}
