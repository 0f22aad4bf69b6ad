//! Why a session ends.

use super::super::{channel::Violation, handshake::HandshakeError, smux::frame::FrameError};
use crate::util::peer_text::PeerText;

/// Why a session has ended, as far as the session itself can tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The service has ended the session.
    #[error("{}", closed_text(.output))]
    ChannelClosed {
        /// Why, in the service's or the agent's words; often empty.
        output: PeerText,
    },
    /// The agent cannot do what is asked of it.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The agent has not been heard of, or has not completed the handshake.
    #[error("the agent did not complete the handshake within {seconds} s")]
    HandshakeTimeout {
        /// The limit, in seconds.
        seconds: u64,
        /// Whether the agent has sent its request.
        requested: bool,
    },
    /// What the agent sends is not smux.
    #[error("the agent sent bytes that are not smux")]
    Smux(#[from] FrameError),
    /// The service or the agent keeps sending what no honest one does.
    #[error("the message gateway or the agent broke the protocol {count} times")]
    Misbehaved {
        /// How often.
        count: u64,
        /// What it did last.
        #[source]
        last: Violation,
    },
    /// The agent has not acknowledged the oldest message for too long.
    #[error("the agent has not acknowledged a message for {seconds} s")]
    Unacknowledged {
        /// The limit, in seconds.
        seconds: u64,
    },
    /// The service has kept the session paused for too long, and the agent has answered no question meanwhile.
    #[error("the service has paused the session for {seconds} s")]
    Paused {
        /// The limit, in seconds.
        seconds: u64,
    },
}

impl CloseReason {
    /// Whether the agent does not forward to the destination, whoever asks: it has said so in the words of
    /// `validateParameters`, amazon-ssm-agent, `port.go`.
    #[must_use]
    pub fn is_refused_destination(&self) -> bool {
        matches!(self, Self::ChannelClosed { output } if says_refused_destination(output))
    }
}

fn says_refused_destination(output: &str) -> bool {
    output.contains("Forwarding to IP address ") && output.contains(" is forbidden")
}

fn closed_text(output: &str) -> String {
    if output.is_empty() {
        "the service ended the session".to_owned()
    } else if says_refused_destination(output) {
        format!("the agent refuses this destination: {output}")
    } else {
        format!("the service ended the session: {output}")
    }
}
