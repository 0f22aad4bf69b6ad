//! The core: the Session Manager protocol without sockets, clocks, tasks or randomness.
//!
//! [`PortSession`] is the only type that outsiders drive. It is a value: bytes and times go in,
//! bytes, events and the next deadline come out, so the same session can be carried by one WebSocket
//! after another, and a test can run months of it in a second.
//!
//! # Contract
//!
//! Make one change (a `handle_*` call or a command), then drain [`PortSession::poll_transmit`],
//! [`PortSession::poll_event`] and [`PortSession::poll_timeout`], in this order. Times never go back.
//!
//! # Invariants
//!
//! * No input of a peer panics, and none makes a session hold more than its [`Config`] allows. What has come in order is
//!   handed out at once: how much of that is kept is up to whoever reads the transport, or does not.
//! * Every sequenced message of the peer is acknowledged each time it comes, unless it cannot be kept.
//! * Bytes of a stream come out in order, once, and without gaps, however often the transport changes.
//!
//! Layers, from the wire up: [`message`] (one message), [`channel`] (numbers, acknowledgements,
//! retransmission, order), [`smux`] (streams), [`handshake`] and [`session`] (all of it together).

#![warn(missing_docs)]

pub mod channel;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
pub mod handshake;
pub mod message;
pub mod session;
pub mod smux;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use channel::{Lag, Violation};
pub use handshake::Version;
pub use message::MessageIds;
pub use session::{CloseReason, Event, PortSession, Stats};
pub use smux::{OpenError, frame::StreamId};

pub use crate::util::time::Now;

/// Settings of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Largest payload of a data message, in bytes, at least 64.
    ///
    /// The default, 1024, is `StreamDataPayloadSize` of session-manager-plugin, `config.go`. Agents
    /// were measured to be slower with larger ones.
    pub payload_len: usize,
    /// Largest number of unacknowledged payload bytes. How many there are depends on the path: what it carries, and hardly any
    /// queue. The default, 8 MiB, is what a line of 100 MB/s holds at a round trip of 80 ms, and a little less than the 10 000
    /// messages at which the official client stops (`OutgoingMessageBuffer` of session-manager-plugin, `streaming.go`).
    pub window: usize,
    /// Largest number of bytes that are queued for sending on one stream before its writer waits.
    pub stream_outbox: usize,
    /// Largest number of bytes that are held because an earlier message is missing. What does not fit
    /// is dropped unacknowledged, so that the agent repeats it.
    pub reorder_budget: usize,
    /// Messages per second in the long run, acknowledgements included; what a quiet session has not used may be sent
    /// later, two thirds of a second's worth at most and at twice this rate. The service answers more than about 1000 for more than two
    /// seconds with a pause, and then closes. `None`: no limit.
    pub messages_per_second: Option<u32>,
    /// Largest number of streams from which nothing has come back yet. The agent connects to the
    /// destination for one stream at a time and stops reading at 1024 that wait.
    pub silent_streams: usize,
    /// How long the agent may take from the first transport to the end of the handshake.
    pub handshake_timeout: Duration,
    /// How long the oldest message may go unacknowledged on a transport that is there.
    pub unacknowledged_timeout: Duration,
    /// How long a `pause_publication` may last in which the agent answers no question.
    pub pause_timeout: Duration,
    /// How long a stream is kept open for the agent's answer after the local program has stopped
    /// writing, counted from the last byte that came.
    pub half_close_timeout: Duration,
    /// Largest number of streams that are kept open so. A program that closes its connection looks just like one that
    /// has stopped writing, and some open hundreds of connections a second; the one without an answer for longest goes.
    pub half_closed_streams: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            payload_len: 1024,
            window: 8 << 20,
            stream_outbox: 64 << 10,
            reorder_budget: 64 << 20,
            messages_per_second: Some(900),
            silent_streams: 512,
            handshake_timeout: Duration::from_secs(30),
            unacknowledged_timeout: Duration::from_secs(300),
            pause_timeout: Duration::from_secs(90),
            half_close_timeout: Duration::from_secs(30),
            half_closed_streams: 256,
        }
    }
}
