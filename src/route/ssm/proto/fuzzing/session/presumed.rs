//! An account of what a session takes as delivered although it was not acknowledged.
//!
//! Only agents of versions that drop repeats allow it, and only when three messages show that repeats must have
//! arrived. The account knows messages by their numbers and lengths alone, not how the session concludes it.

use std::collections::BTreeSet;

use super::{
    super::super::{PortSession, handshake::Version},
    Message, PayloadType,
};

/// A lone NOP frame: a question, which does not count as in flight, or a keepalive, which does.
const NOP: [u8; 8] = [1, 3, 0, 0, 0, 0, 0, 0];

#[derive(Debug, Default)]
pub(super) struct Presumed {
    /// Payload bytes of data that the peer has not acknowledged, and those of them that the session has let go.
    unacknowledged: usize,
    presumed: usize,
    nops: usize,
    /// Numbers that have been sent more than once.
    repeated: BTreeSet<usize>,
    /// The first number on the present transport, and how many from it on were sent once and acknowledged.
    first_on_transport: usize,
    proofs: usize,
}

impl Presumed {
    fn len(message: &Message) -> usize {
        let is_counted = message.header.payload_type == PayloadType::Output && message.payload.as_ref() != NOP;
        if is_counted { message.payload.len() } else { 0 }
    }

    pub(super) fn transmitted(&mut self, message: &Message) {
        self.unacknowledged += Self::len(message);
        self.nops += usize::from(message.payload.as_ref() == NOP);
    }

    pub(super) fn repeated(&mut self, number: usize) {
        self.repeated.insert(number);
    }

    pub(super) fn reattached(&mut self, next_number: usize) {
        self.first_on_transport = next_number;
        self.proofs = 0;
    }

    /// Takes note of the first acknowledgement of a message.
    pub(super) fn acknowledged(&mut self, number: usize, message: &Message) {
        self.unacknowledged -= Self::len(message);
        self.proofs += usize::from(number >= self.first_on_transport && !self.repeated.contains(&number));
    }

    /// Checks what the session has in flight after each step.
    pub(super) fn check(&mut self, session: &PortSession) {
        let version = session.agent_version();
        let has_keepalive = version.is_none_or(|version| version <= Version::LAST_AGENT_WITH_KEEPALIVE);
        let tolerance = if has_keepalive { NOP.len() * self.nops } else { 0 };
        let in_flight = session.stats().bytes_in_flight;
        assert!(in_flight <= self.unacknowledged + tolerance, "what is acknowledged is not in flight");
        let presumed = self.unacknowledged.saturating_sub(in_flight);
        if presumed > self.presumed + tolerance {
            assert!(version.is_none_or(Version::drops_repeats), "{presumed} bytes are presumed to have arrived");
            assert!(self.proofs >= 3, "{} messages show that {presumed} bytes have arrived", self.proofs);
        }
        self.presumed = presumed;
    }
}
