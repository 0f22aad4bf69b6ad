//! Everything that can go wrong with a session and its transports, and what it means for the link.
//!
//! [`recovery`](super::recovery) decides which of it a session survives. For what it does not, the class says what whoever
//! wants another link may expect.

use std::sync::Arc;

use super::{Crowd, DialError, TransportError, Unapproved, hints, proto::CloseReason};
use crate::{
    bastion::Target,
    remote::Remote,
    route::{Class, Fault, ProbeError},
};

/// Something that went wrong with a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionFault {
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
    /// The agent has acknowledged nothing, though it was sent something, and the gateway answers.
    #[error("the agent has acknowledged nothing for {seconds} s")]
    Unanswered {
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
    #[error("the API server was not reached through the session")]
    Probe(#[source] ProbeError),
    /// The target that the session ran on has gone.
    #[error("`{target}` has stopped")]
    TargetGone {
        /// The target.
        target: Target,
    },
    /// The agent has not taken up the session, on a target that takes a few only.
    #[error(
        "the agent on `{target}`, which has {sessions} other sessions of this program, has not taken up another within \
         {seconds} s: perhaps it has as many as it takes"
    )]
    Dropped {
        /// The target.
        target: Target,
        /// Sessions of this program that the target carries besides.
        sessions: usize,
        /// How long was waited, in seconds.
        seconds: u64,
        /// All sessions that it has, if that is known.
        crowd: Option<Crowd>,
    },
    /// The session has used up its stream ids.
    #[error("the session has carried as many connections as it can")]
    Exhausted,
    /// Whoever has run the link has given it up.
    #[error(transparent)]
    Abandoned(Arc<Fault>),
}

impl SessionFault {
    /// Whether only the transport is lost, so that the session may be resumed.
    pub(super) fn is_of_transport(&self) -> bool {
        match self {
            Self::Transport(_) | Self::Silent { .. } | Self::Mute { .. } | Self::Resume(_) => true,
            Self::Start(_)
            | Self::Closed(_)
            | Self::Probe(_)
            | Self::Unanswered { .. }
            | Self::TargetGone { .. }
            | Self::Dropped { .. }
            | Self::Exhausted
            | Self::Abandoned(_) => false,
        }
    }

    /// Whether the session is known to be over on the other side.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Closed(reason) => matches!(reason, CloseReason::ChannelClosed { .. }),
            Self::Resume(error) => matches!(error, DialError::SessionEnded { .. }),
            Self::Start(_) => true,
            Self::Transport(_)
            | Self::Silent { .. }
            | Self::Mute { .. }
            | Self::Probe(_)
            | Self::Unanswered { .. }
            | Self::TargetGone { .. }
            | Self::Dropped { .. }
            | Self::Exhausted
            | Self::Abandoned(_) => false,
        }
    }

    /// Returns what it means for the link that ends with it.
    pub(super) fn class(&self) -> Class {
        match self {
            Self::Start(error) => of_start(error),
            Self::Closed(reason) => of_end(reason),
            Self::Probe(error) => error.class(),
            Self::Abandoned(fault) => fault.class,
            // Another target may have room, and this one again later.
            Self::Dropped { .. } => Class::Transient,
            // What would keep another session from being started is said by its start.
            Self::Transport(_)
            | Self::Silent { .. }
            | Self::Mute { .. }
            | Self::Resume(_)
            | Self::Unanswered { .. }
            | Self::TargetGone { .. }
            | Self::Exhausted => Class::Over,
        }
    }

    /// Makes a fault of it, with what to do about it.
    #[must_use]
    pub fn into_fault(self, to: &Remote) -> Arc<Fault> {
        let (class, hints) = (self.class(), hints::of(&self, to));
        Arc::new(match self {
            Self::Abandoned(fault) => return fault,
            // That no session could be started is what whoever shows it says already.
            Self::Start(error) => Fault::new(class, error).with_hints(hints),
            Self::Transport(_)
            | Self::Silent { .. }
            | Self::Mute { .. }
            | Self::Resume(_)
            | Self::Closed(_)
            | Self::Probe(_)
            | Self::Unanswered { .. }
            | Self::TargetGone { .. }
            | Self::Dropped { .. }
            | Self::Exhausted => Fault::new(class, self).with_hints(hints),
        })
    }
}

fn of_start(error: &DialError) -> Class {
    match error {
        DialError::TargetNotConnected { .. } => Class::Away,
        DialError::TargetNotFound { .. } => Class::Gone,
        DialError::AccessDenied { .. } => Class::Denied,
        DialError::Unapproved(unapproved) => of_approval(unapproved),
        DialError::DocumentRefused { .. } | DialError::Refused { .. } => Class::Refused,
        DialError::ForeignStreamUrl { .. } => Class::Unfit,
        DialError::Credentials { .. } | DialError::UpgradeRefused { status: 401 | 403, .. } => Class::Identity,
        DialError::Throttled { .. } => Class::Throttled,
        DialError::SessionEnded { .. }
        | DialError::UpgradeRefused { .. }
        | DialError::Unreachable { .. }
        | DialError::Service { .. }
        | DialError::Timeout { .. } => Class::Transient,
    }
}

fn of_approval(unapproved: &Unapproved) -> Class {
    match unapproved {
        Unapproved::Rejected { .. }
        | Unapproved::Revoked { .. }
        | Unapproved::Unanswered { .. }
        | Unapproved::Withdrawn { .. }
        | Unapproved::Pending { .. }
        | Unapproved::Beyond { .. } => Class::Denied,
        Unapproved::NoNode { .. } => Class::Refused,
        // The next session asks for another.
        Unapproved::Over { .. } => Class::Transient,
    }
}

fn of_end(reason: &CloseReason) -> Class {
    match reason {
        // The same agent will say the same. The name may lead elsewhere where another target is.
        CloseReason::ChannelClosed { .. } if reason.is_refused_destination() => Class::Refused,
        CloseReason::ChannelClosed { .. } => Class::Over,
        // An agent that is registered and does not speak.
        CloseReason::HandshakeTimeout { .. } => Class::Useless,
        CloseReason::Handshake(_) => Class::Unfit,
        CloseReason::Unacknowledged { .. }
        | CloseReason::Paused { .. }
        | CloseReason::Misbehaved { .. }
        | CloseReason::Smux(_) => Class::Transient,
    }
}

#[cfg(test)]
mod tests;
