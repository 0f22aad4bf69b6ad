//! The local side of connections, for ways that carry each one by itself: with what passes through counted.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Held, Io, Meter, PipeEnd, Report, Reporter};
use crate::clock::Clock;

/// Gives a connection back to the tunnel; a probe learns that it has come to nothing.
pub fn give_back(reports: &Reporter, held: Held) {
    if held.io.is_counted() {
        reports.send(Report::Returned(held));
    } else {
        held.io.abort(PipeEnd::Lost);
    }
}

/// Counts a connection as open for as long as it lives.
#[derive(Debug)]
pub struct Open {
    meter: Arc<Meter>,
    count: usize,
}

impl Open {
    /// Counts one, if a local program is behind it.
    #[must_use]
    pub fn count(meter: &Arc<Meter>, is_counted: bool) -> Self {
        let count = usize::from(is_counted);
        meter.open.fetch_add(count, Ordering::Relaxed);
        Self { meter: Arc::clone(meter), count }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.meter.open.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// The local side of a connection, with what passes through it counted. It is reset when it is dropped, unless it has
/// ended well.
#[derive(Debug)]
pub struct Near {
    io: Option<Io>,
    meter: Arc<Meter>,
    clock: Clock,
    is_counted: bool,
}

impl Near {
    /// Takes a connection, of which everything counts if a local program is behind it.
    #[must_use]
    pub fn new(io: Io, meter: Arc<Meter>, clock: Clock) -> Self {
        let is_counted = io.is_counted();
        Self { io: Some(io), meter, clock, is_counted }
    }

    /// Ends it well.
    pub fn finish(mut self) {
        self.io = None;
    }

    fn io(&mut self) -> Pin<&mut Io> {
        Pin::new(self.io.as_mut().expect("it is there until the end"))
    }

    fn count_received(&self, len: usize) {
        self.meter.news.fetch_add(1, Ordering::Relaxed);
        if self.is_counted {
            self.meter.bytes_received.fetch_add(len as u64, Ordering::Relaxed);
            self.meter.received_at_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.now().mono.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        if let Some(io) = self.io.take() {
            io.abort(PipeEnd::Lost);
        }
    }
}

impl AsyncRead for Near {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(self.io().poll_read(cx, buf))?;
        if self.is_counted {
            let read = buf.filled().len() - before;
            self.meter.bytes_sent.fetch_add(read as u64, Ordering::Relaxed);
            self.meter.sent_at_ms.store(self.now_ms(), Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Near {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(self.io().poll_write(cx, buf))?;
        self.count_received(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.io().poll_write_vectored(cx, slices))?;
        self.count_received(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}
