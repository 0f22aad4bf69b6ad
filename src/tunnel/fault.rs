//! Everything that can go wrong with a tunnel once it has its port, in one type.
//!
//! [`policy`](super::policy) decides what follows from a fault; the command line maps it to a hint.

use super::{DialError, ProbeError, TransportError};
use crate::route::ssm::proto::CloseReason;
pub use crate::util::peer_text::with_causes;

/// Something that went wrong with a session of a tunnel.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A session could not be started.
    #[error("cannot start a session")]
    Start(#[source] DialError),
    /// The session's transport broke or was closed. The session itself may still be there.
    #[error("lost the connection to the message gateway")]
    Transport(#[source] TransportError),
    /// Nothing came through the transport, not even the answer to a ping.
    #[error("the message gateway has been silent for {seconds} s")]
    Silent {
        /// How long, in seconds.
        seconds: u64,
    },
    /// A ping has gone unanswered, though other things came through the transport: nothing gets out.
    #[error("the message gateway has not answered a ping for {seconds} s, though it still sends")]
    Mute {
        /// How long, in seconds.
        seconds: u64,
    },
    /// A new transport for the session could not be had.
    #[error("cannot resume the session")]
    Resume(#[source] DialError),
    /// The session is over.
    #[error("the session is over")]
    Closed(#[source] CloseReason),
    /// The API server was not reached through the session.
    #[error("the API server was not reached through the tunnel")]
    Probe(#[source] ProbeError),
    /// The session has used up its stream ids.
    #[error("the session has carried as many connections as it can")]
    Exhausted,
    /// A bug in this program.
    #[error("the tunnel's task panicked: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
}

/// Writes an error and its sources in one sentence.
#[must_use]
pub(super) fn display_chain(error: &(dyn std::error::Error + 'static)) -> String {
    with_causes(String::new(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_its_error_has_said_already_is_not_repeated() {
        let io = std::io::Error::other("reset by peer");
        let fault = Fault::Transport(TransportError::Broken(tokio_tungstenite::tungstenite::Error::Io(io)));
        assert_eq!(
            display_chain(&fault),
            "lost the connection to the message gateway: the WebSocket connection broke: IO error: reset by peer"
        );
    }
}
