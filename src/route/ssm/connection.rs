//! One local connection: what a program on this machine has opened, or the probe's pipe.
//!
//! Holds the socket, what it has not taken yet, and how far it is from its end. Knows nothing of
//! streams: the driver moves the bytes between the two.
//!
//! Invariants: bytes leave in the order in which they came; nothing is dropped before the end of the
//! connection is decided; a connection that ends well is shut down after its last byte and then read
//! until the program closes it, so that no reset overtakes that byte.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::ready::Ready;
use crate::route::{
    Io, PipeEnd,
    backlog::{Backlog, MAX_SLICES},
};

/// Bytes read at once from a connection whose input is discarded.
const DISCARD_LEN: usize = 4 << 10;

/// How far a connection is from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its stream is open. `input_ended`: the program has stopped writing.
    Open {
        /// The end of file has been read.
        input_ended: bool,
    },
    /// Its stream has ended: what is left goes out, then the write side is shut down.
    Draining,
    /// Everything is out; waits for the program to close.
    Lingering,
}

#[derive(Debug)]
pub(super) struct Connection<K> {
    io: Io,
    backlog: Backlog,
    /// When the program last took something, or had nothing to take.
    moved_at: Duration,
    pub(super) stage: Stage,
    /// The program has written something.
    pub(super) has_written: bool,
    pub(super) ready: Ready<K>,
}

impl<K: Copy + Send + Sync + 'static> Connection<K> {
    /// Takes a connection whose stream has just been opened.
    pub(super) fn new(io: Io, ready: Ready<K>) -> Self {
        Self {
            io,
            backlog: Backlog::default(),
            moved_at: Duration::ZERO,
            stage: Stage::Open { input_ended: false },
            has_written: false,
            ready,
        }
    }

    /// Whether a local program is behind it, as opposed to the probe.
    pub(super) fn is_counted(&self) -> bool {
        self.io.is_counted()
    }

    /// Returns the bytes that the program has not taken.
    pub(super) fn backlog_len(&self) -> usize {
        self.backlog.len()
    }

    /// Returns since when the program has taken nothing of what there is for it.
    pub(super) fn stalled_since(&self) -> Option<Duration> {
        (!self.backlog.is_empty()).then_some(self.moved_at)
    }

    /// Queues bytes for the program.
    pub(super) fn push(&mut self, data: Bytes, now: Duration) {
        if self.backlog.is_empty() {
            self.moved_at = now;
        }
        self.backlog.push(data);
    }

    /// Takes note that the stream has ended, after its last byte.
    pub(super) fn drain(&mut self) {
        self.stage = Stage::Draining;
    }

    /// Writes what is queued, as far as the program takes it. Returns how many bytes that were.
    ///
    /// # Errors
    /// The program has gone, or the socket is broken.
    pub(super) fn write_backlog(&mut self, now: Duration) -> io::Result<usize> {
        let mut written = 0;
        let mut cx = Context::from_waker(self.ready.waker());
        while !self.backlog.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = self.backlog.slices(&mut slices);
            match Pin::new(&mut self.io).poll_write_vectored(&mut cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(len)) => {
                    self.backlog.advance(len);
                    self.moved_at = now;
                    written += len;
                }
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        Ok(written)
    }

    /// Reads at most `limit` bytes of the program into `buf`; 0 is its end of file.
    pub(super) fn poll_read(&mut self, buf: &mut BytesMut, limit: usize) -> Poll<io::Result<usize>> {
        let mut cx = Context::from_waker(self.ready.waker());
        pin!(self.io.read_buf(&mut buf.limit(limit))).poll(&mut cx)
    }

    /// Goes on with the end of a connection whose stream has ended: shuts the write side down once
    /// nothing is left to write, then reads and discards until the program closes. Ready when the
    /// connection may be dropped.
    pub(super) fn poll_close(&mut self, scratch: &mut BytesMut) -> Poll<()> {
        let mut cx = Context::from_waker(self.ready.waker());
        if self.stage == Stage::Draining {
            if !self.backlog.is_empty() {
                return Poll::Pending;
            }
            if ready!(Pin::new(&mut self.io).poll_shutdown(&mut cx)).is_err() {
                return Poll::Ready(());
            }
            self.stage = Stage::Lingering;
        }
        loop {
            scratch.reserve(DISCARD_LEN);
            let outcome = ready!(pin!(self.io.read_buf(&mut (&mut *scratch).limit(DISCARD_LEN))).poll(&mut cx));
            scratch.clear();
            if !matches!(outcome, Ok(1..)) {
                return Poll::Ready(());
            }
        }
    }

    /// Ends the connection so that the program sees a reset.
    pub(super) fn abort(self, why: PipeEnd) {
        self.io.abort(why);
    }
}
