//! What a link shows of itself while it runs: counters to read at any time, and a state to wait for.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

/// What others may read of a link at any time. Every value is the latest, and all are written by the link alone.
#[derive(Debug, Default)]
pub struct Meter {
    /// Bytes read from local programs.
    pub bytes_sent: AtomicU64,
    /// Bytes that came for local programs.
    pub bytes_received: AtomicU64,
    /// Connections that it has carried.
    pub connections_total: AtomicU64,
    /// Connections of local programs that it has and has not ended.
    pub open: AtomicUsize,
    /// What has come from the other end, by some measure that grows.
    pub news: AtomicU64,
    /// The other end has asked for a pause.
    pub paused: AtomicBool,
    /// It is held back: a local program does not take what comes.
    pub held_back: AtomicBool,
    /// Bytes that local programs have not taken.
    pub held: AtomicUsize,
    /// How much longer than usual answers take at present, in milliseconds.
    pub lateness_ms: AtomicU64,
    /// Messages of the other end that are missing before the latest that has come.
    pub missing: AtomicUsize,
    /// Connections of local programs that it has taken from its mailbox since its start, whatever became of them.
    pub taken: AtomicU64,
    /// When bytes were last sent, in milliseconds of the tunnel's clock.
    pub sent_at_ms: AtomicU64,
    /// When bytes last came, in milliseconds of the tunnel's clock.
    pub received_at_ms: AtomicU64,
}

/// Whether a link takes connections to the destination, for those who want to use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Not now.
    Down,
    /// It does.
    Up {
        /// Counts what has carried it, so that each resumption is another state.
        carrier: u32,
    },
    /// Not any more.
    Over,
}
