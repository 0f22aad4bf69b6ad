//! One acknowledgement that is kept back on a slow line, so that the agent repeats one message and not ten a second.
//!
//! Every 100 ms an agent looks at its oldest unacknowledged message, and sends it again if that is older than a second at
//! most. On a line that is further behind than that, the oldest is always another one that is on its way: ten needless
//! repeats a second, which is a seventh of what 64 kB/s carry. While the oldest stays the same, it is repeated once in a
//! second. So one message that has come is not acknowledged for a while; those after it are, and leave the agent's list.
//!
//! Whatever is lost waits behind the oldest, so this is only done while nothing is missing, and over as soon as something
//! is, the transport is another, or the line has caught up. An agent ends only when all is acknowledged, so it is over
//! then as well.
//!
//! Source: `ResendStreamDataMessageScheduler` of amazon-ssm-agent 3.3.1142.0, `datachannel.go`; it repeats without limit.

use std::time::Duration;

use super::super::message::Header;

/// From which lag on agents repeat what is only late: the ceiling of their time-outs, `MaxTransmissionTimeout` in
/// amazon-ssm-agent, `config.go`.
const WORTH_IT: Duration = Duration::from_secs(1);

/// For how long one acknowledgement is kept back at most: another takes its place then.
const MAX_TIME: Duration = Duration::from_secs(30);

/// The acknowledgement that is kept back.
#[derive(Debug, Default)]
pub(super) struct Withheld {
    kept: Option<(Header, Duration)>,
}

impl Withheld {
    /// Takes the acknowledgement of a message that is new, or gives it back to be sent. `behind` is how far what arrives is
    /// behind.
    pub(super) fn acknowledge_new(&mut self, header: Header, behind: Duration, now: Duration) -> Option<Header> {
        if self.kept.is_some() || behind < WORTH_IT {
            return Some(header);
        }
        self.kept = Some((header, now));
        None
    }

    /// Returns the number of the message whose acknowledgement is kept back.
    pub(super) fn number(&self) -> Option<i64> {
        self.kept.as_ref().map(|(header, _)| header.sequence_number)
    }

    /// Gives the acknowledgement back if it is time: something is missing, the line has caught up, or it has been kept for
    /// long.
    pub(super) fn review(&mut self, missing: bool, behind: Duration, now: Duration) -> Option<Header> {
        let since = self.kept.as_ref()?.1;
        if missing || behind < WORTH_IT / 2 || since + MAX_TIME <= now { self.release() } else { None }
    }

    /// Gives the acknowledgement back.
    pub(super) fn release(&mut self) -> Option<Header> {
        self.kept.take().map(|(header, _)| header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::ssm::proto::message::{Flags, MessageId, MessageType, PayloadType};

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn header(sequence_number: i64) -> Header {
        Header {
            message_type: MessageType::OutputStreamData,
            created_ms: 1,
            sequence_number,
            flags: Flags::NONE,
            id: MessageId([0; 16]),
            payload_type: PayloadType::Output,
        }
    }

    #[test]
    fn one_is_kept_back_while_the_line_is_behind_and_nothing_is_missing() {
        let mut withheld = Withheld::default();
        assert!(withheld.acknowledge_new(header(1), Duration::from_millis(999), secs(0)).is_some());
        assert!(withheld.acknowledge_new(header(2), secs(5), secs(0)).is_none());
        assert!(withheld.acknowledge_new(header(3), secs(5), secs(0)).is_some(), "one only");
        assert_eq!(withheld.number(), Some(2));
        assert!(withheld.review(false, secs(5), secs(29)).is_none());
        assert_eq!(withheld.review(false, secs(5), secs(30)), Some(header(2)));
        for (missing, behind) in [(true, secs(5)), (false, Duration::from_millis(400))] {
            assert!(withheld.acknowledge_new(header(4), secs(5), secs(40)).is_none());
            assert_eq!(withheld.review(missing, behind, secs(41)), Some(header(4)));
        }
        assert!(withheld.acknowledge_new(header(5), secs(5), secs(50)).is_none());
        assert_eq!((withheld.release(), withheld.release()), (Some(header(5)), None));
    }
}
