//! What a driver counts and shows to others while it runs.
//!
//! The driver counts in a [`Gauge`], which is its own, and shows it at the end of each series of turns: nothing is
//! shared in between.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::watch;

use super::proto::{Now, PortSession};
use crate::route::{Meter, Report, Reporter};

/// How much a backlog has to change to be worth a report.
const BACKLOG_STEP: Duration = Duration::from_millis(250);

/// What the owner of a driver waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Progress {
    /// Connections of local programs that have a stream or wait for one, or have not got all bytes.
    pub(super) open: usize,
    /// The agent has acknowledged everything, the end of the session included.
    pub(super) terminated: bool,
    /// Connections that are there in any way, those included that only wait to be closed.
    pub(super) left: usize,
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
    /// Connections of local programs that were taken from the mailbox.
    pub(super) taken: u64,
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
            taken: 0,
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

    /// Shows what has changed. `waiting` counts the connections that wait for a stream, `left` all that have one, or had.
    pub(super) fn show(&mut self, session: Option<&PortSession>, waiting: usize, left: usize) {
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
        self.meter.open.store(self.totals.open, Ordering::Relaxed);
        self.meter.taken.store(self.taken, Ordering::Relaxed);
        let progress = Progress {
            open: self.totals.open,
            terminated: session.is_some_and(PortSession::terminate_acknowledged),
            left,
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
