//! What a driver shows to others while it runs: counters to read at any time, and states to wait for.
//!
//! The driver counts in a [`Gauge`], which is its own, and shows it at the end of each series of turns: nothing is
//! shared in between.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::report::{Report, Reporter};
use crate::route::ssm::proto::{Now, PortSession};

/// How much a backlog has to change to be worth a report.
const BACKLOG_STEP: Duration = Duration::from_millis(250);

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
    /// The session is held back: a local program does not take what comes.
    pub(super) held_back: AtomicBool,
    /// Bytes that local programs have not taken.
    pub(super) held: AtomicUsize,
    /// How much longer than usual answers take at present, in milliseconds.
    pub(super) lateness_ms: AtomicU64,
    /// Messages of the agent that are missing before the latest that has come.
    pub(super) missing: AtomicUsize,
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

/// What a driver counts. Only connections of local programs count, not the probe's.
pub(super) struct Gauge {
    /// Connections that have a stream, or bytes to get.
    pub(super) with_stream: usize,
    /// The session is held back.
    pub(super) held_back: bool,
    /// Bytes that local programs have not taken.
    pub(super) held: usize,
    /// How much longer than usual answers take.
    pub(super) lateness: Duration,
    totals: Totals,
    shown: Totals,
    meter: Arc<Meter>,
    progress: watch::Sender<Progress>,
    shown_progress: Progress,
    shown_backlog: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Totals {
    sent: u64,
    received: u64,
    connections: u64,
    open: usize,
    sent_at: Duration,
    received_at: Duration,
}

impl Gauge {
    /// Creates a gauge that shows itself on `meter`.
    pub(super) fn new(meter: Arc<Meter>) -> Self {
        Self {
            with_stream: 0,
            held_back: false,
            held: 0,
            lateness: Duration::ZERO,
            totals: Totals::default(),
            shown: Totals::default(),
            meter,
            progress: watch::Sender::new(Progress::default()),
            shown_progress: Progress::default(),
            shown_backlog: Duration::ZERO,
        }
    }

    /// Returns the connections that had a stream or waited for one when they were last shown.
    pub(super) fn open(&self) -> usize {
        self.totals.open
    }

    /// Returns what may be waited for.
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Counts a connection that has got its stream.
    pub(super) fn connected(&mut self) {
        self.totals.connections += 1;
        self.with_stream += 1;
    }

    /// Counts bytes that a local program has sent.
    pub(super) fn sent(&mut self, len: usize, now: Now) {
        self.totals.sent += len as u64;
        self.totals.sent_at = now.mono;
    }

    /// Counts bytes that have come for a local program.
    pub(super) fn received(&mut self, len: usize, now: Now) {
        self.totals.received += len as u64;
        self.totals.received_at = now.mono;
    }

    /// Shows what has changed. `waiting` counts the connections that wait for a stream.
    pub(super) fn show(&mut self, session: Option<&PortSession>, waiting: usize, wanted: bool) {
        self.totals.open = self.with_stream + waiting;
        if self.totals != self.shown {
            self.shown = self.totals;
            let Totals { sent, received, connections, open: _, sent_at, received_at } = self.totals;
            self.meter.bytes_sent.store(sent, Ordering::Relaxed);
            self.meter.bytes_received.store(received, Ordering::Relaxed);
            self.meter.connections_total.store(connections, Ordering::Relaxed);
            self.meter.sent_at_ms.store(millis(sent_at), Ordering::Relaxed);
            self.meter.received_at_ms.store(millis(received_at), Ordering::Relaxed);
        }
        if let Some(session) = session {
            let stats = session.stats();
            self.meter.news.store(stats.messages_received - stats.repeats_received, Ordering::Relaxed);
            self.meter.paused.store(session.is_paused(), Ordering::Relaxed);
            self.meter.missing.store(stats.messages_missing, Ordering::Relaxed);
        }
        self.meter.held.store(self.held, Ordering::Relaxed);
        self.meter.held_back.store(self.held_back, Ordering::Relaxed);
        self.meter.lateness_ms.store(millis(self.lateness), Ordering::Relaxed);
        // The tunnel counts up in advance when it gives a connection: this is the truth, each time.
        self.meter.open.store(self.totals.open, Ordering::Relaxed);
        let progress = Progress {
            open: self.totals.open,
            terminated: session.is_some_and(PortSession::terminate_acknowledged),
            wanted,
        };
        if progress != self.shown_progress {
            self.shown_progress = progress;
            self.progress.send_replace(progress);
        }
    }

    /// Reports how long a new connection would wait in the session, if that is worth another look.
    pub(super) fn show_backlog(&mut self, backlog: Duration, reports: &Reporter) {
        let far = backlog.abs_diff(self.shown_backlog) >= BACKLOG_STEP;
        if far || (backlog.is_zero() && !self.shown_backlog.is_zero()) {
            self.shown_backlog = backlog;
            reports.send(Report::Backlog(backlog));
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
