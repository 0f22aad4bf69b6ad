//! What a driver shows to others while it runs: counters to read at any time, and states to wait for.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

/// What others may read of a driver at any time. Totals run on over sessions.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// Bytes read from local programs.
    pub(super) bytes_sent: AtomicU64,
    /// Bytes that came for local programs.
    pub(super) bytes_received: AtomicU64,
    /// Connections that were given a stream.
    pub(super) connections_total: AtomicU64,
    /// Connections that have one now, or wait for it.
    pub(super) open: AtomicUsize,
    /// Messages of the agent, repeats aside, that have come in the present session.
    pub(super) news: AtomicU64,
    /// The service has paused the session.
    pub(super) paused: AtomicBool,
    /// When bytes were last sent, in milliseconds of the tunnel's clock.
    pub(super) sent_at_ms: AtomicU64,
    /// When bytes last came, in milliseconds of the tunnel's clock.
    pub(super) received_at_ms: AtomicU64,
}

/// What the owner of a driver waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Progress {
    /// Connections of local programs that have a stream or wait for one, or have not got all bytes.
    pub(super) open: usize,
    /// The agent has acknowledged everything, the end of the session included.
    pub(super) terminated: bool,
    /// A connection waits, and there is no session.
    pub(super) wanted: bool,
}

/// Whether streams can be opened, for those who want to use the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkState {
    /// There is no transport, or the handshake is not complete.
    Down,
    /// The session is established on a transport.
    Up {
        /// Counts sessions: to be named when one is [given up](super::driver::Command::Abandon).
        generation: u32,
        /// Counts transports.
        transport: u32,
    },
}
