//! The local connections of a driver: bytes both ways, and their ends.

use std::{task::Poll, time::Duration};

use tracing::{debug, warn};

use super::{Connection, Driver, OpenError, Report, SessionFault, Source, Stage, StreamId};
use crate::{route::PipeEnd, util::time::Now};

/// Connections that are served in one turn.
const SERVE_BATCH: usize = 256;

/// Bytes read from a local program at once: one frame's worth for the multiplexer to interleave.
const READ_LEN: usize = 16 << 10;

/// Size of the blocks that local programs are read into, in bytes.
const READ_BLOCK: usize = 64 << 10;

/// How long a program has for closing its side after the last byte has been written to it.
const LINGER: Duration = Duration::from_secs(5);

/// How long a program may take nothing of what there is for it while the budget is spent. Somebody who reads page by page
/// is to have time for it, and a transfer that goes on through a network of its own time to come back.
const STALLED: Duration = Duration::from_secs(300);

impl Driver {
    /// Opens streams for the connections that wait, as far as the session lets them.
    pub(super) fn open_waiting(&mut self, now: Now, attached: bool) -> Result<(), SessionFault> {
        if !attached {
            return Ok(());
        }
        let Some(session) = &mut self.session else { return Ok(()) };
        while let Some(held) = self.waiting.pop_front() {
            let stream = match session.open_stream(now) {
                Ok(stream) => stream,
                Err(OpenError::NotEstablished | OpenError::Busy | OpenError::Closed) => {
                    self.waiting.push_front(held);
                    return Ok(());
                }
                Err(OpenError::Exhausted) => {
                    self.waiting.push_front(held);
                    return Err(SessionFault::Exhausted);
                }
            };
            if held.io.is_counted() {
                self.gauge.connected();
            }
            self.connections.insert(stream, Connection::new(held.io, self.ready.insert(Source::Connection(stream))));
        }
        Ok(())
    }

    /// Serves what is ready. Returns whether the future that ends the drive is among it.
    pub(super) fn serve_ready(&mut self, now: Now, more: &mut bool) -> bool {
        let mut until = false;
        for _ in 0..SERVE_BATCH {
            match self.ready.next() {
                Some(Source::Until) => until = true,
                Some(Source::Connection(stream)) => *more |= self.serve(now, stream),
                None => return until,
            }
        }
        *more = true;
        until
    }

    /// Moves bytes of one connection both ways. Returns whether it has more to do at once.
    fn serve(&mut self, now: Now, stream: StreamId) -> bool {
        let Some(connection) = self.connections.get_mut(&stream) else { return false };
        connection.ready.begin();
        let session = self.session.as_mut();
        match connection.write_backlog(now.mono) {
            Ok(written) => self.share.give_back(written),
            Err(error) => {
                debug!(%stream, %error, "the local program is gone");
                self.abort(stream, PipeEnd::Lost);
                return false;
            }
        }
        match connection.stage {
            Stage::Open { input_ended: true } => return false,
            Stage::Open { input_ended: false } => {}
            before @ (Stage::Draining | Stage::Lingering) => {
                let closed = connection.poll_close(&mut self.scratch).is_ready();
                if before != connection.stage {
                    self.gauge.with_stream -= usize::from(connection.is_counted());
                    self.lingering.push_back((now.mono + LINGER, stream));
                }
                if closed {
                    self.forget(stream);
                }
                return false;
            }
        }
        let Some(session) = session else { return false };
        let limit = session.writable_len(stream).min(READ_LEN);
        if limit == 0 {
            return false;
        }
        if self.scratch.capacity() < limit {
            self.scratch.reserve(READ_BLOCK);
        }
        match connection.poll_read(&mut self.scratch, limit) {
            Poll::Ready(Ok(0)) => {
                connection.stage = Stage::Open { input_ended: true };
                if connection.is_counted() || connection.has_written {
                    session.finish(now, stream);
                } else {
                    // A probe that says nothing waits for nothing but the end.
                    session.close_stream(stream);
                }
                false
            }
            Poll::Ready(Ok(len)) => {
                connection.has_written = true;
                if connection.is_counted() {
                    self.gauge.sent(len, now);
                }
                session.write(now, stream, self.scratch.split().freeze());
                connection.ready.mark();
                true
            }
            Poll::Ready(Err(error)) => {
                debug!(%stream, %error, "the local program is gone");
                self.abort(stream, PipeEnd::Lost);
                false
            }
            Poll::Pending => false,
        }
    }

    /// Ends a connection at once, and its stream if it has one.
    pub(super) fn abort(&mut self, stream: StreamId, why: PipeEnd) {
        let Some(connection) = self.forget(stream) else { return };
        if let Some(session) = &mut self.session
            && matches!(connection.stage, Stage::Open { .. })
        {
            session.reset(self.clock.now(), stream);
        }
        connection.abort(why);
    }

    /// Takes a connection out of the table.
    pub(super) fn forget(&mut self, stream: StreamId) -> Option<Connection<Source>> {
        let connection = self.connections.remove(&stream)?;
        self.share.give_back(connection.backlog_len());
        if connection.is_counted() && connection.stage != Stage::Lingering {
            self.gauge.with_stream -= 1;
        }
        Some(connection)
    }

    /// Resets the connection that holds most of those whose programs take nothing.
    pub(super) fn drop_stalled(&mut self, now: Now) {
        let is_stalled = |connection: &Connection<Source>| {
            connection.stalled_since().is_some_and(|since| since + STALLED <= now.mono)
        };
        let stalled = self.connections.iter().filter(|(_, connection)| is_stalled(connection));
        if let Some((&stream, connection)) = stalled.max_by_key(|(_, connection)| connection.backlog_len()) {
            let held = connection.backlog_len();
            warn!(
                %stream, held,
                "reset a connection whose program has read nothing for {} s: there is no room for more", STALLED.as_secs()
            );
            self.abort(stream, PipeEnd::Lost);
        }
    }

    pub(super) fn handle_refused(&mut self, id: StreamId) {
        let Some(connection) = self.forget(id) else { return };
        if connection.is_counted() {
            debug!(stream = %id, "the destination refused a connection");
            self.reports.send(Report::Refused);
        }
        connection.abort(PipeEnd::Refused);
    }
}
