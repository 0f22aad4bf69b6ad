//! A local port without a socket: connections within the process, which go with paused time where
//! sockets do not. Tests, the fault matrix and the soak connect through it.
//!
//! Invariant: a program at this end sees what one at a socket would: bytes, an end of file, or a reset.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::{mpsc, oneshot},
};

use crate::route::{Ends, Io, PipeEnd};

/// Bytes that one direction of a connection holds, about what a loopback socket does.
const PIPE_LEN: usize = 64 << 10;

/// The way to a tunnel that listens in memory.
#[derive(Debug, Clone)]
pub struct MemoryPort {
    accepted: mpsc::UnboundedSender<Io>,
}

impl MemoryPort {
    /// Creates a port, and what the tunnel accepts from.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Io>) {
        let (accepted, connections) = mpsc::unbounded_channel();
        (Self { accepted }, connections)
    }

    /// Connects as a local program does.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionRefused`] when the tunnel no longer listens.
    pub fn connect(&self) -> io::Result<MemoryConnection> {
        self.connect_for(None)
    }

    /// As [`connect`](Self::connect), for a program that has connected by a socket with these ends.
    pub(super) fn connect_for(&self, ends: Option<Ends>) -> io::Result<MemoryConnection> {
        let (ours, theirs) = tokio::io::duplex(PIPE_LEN);
        let (end, ended) = oneshot::channel();
        let io = Io::pipe(theirs, end, ends);
        self.accepted.send(io).map_err(|_closed| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(MemoryConnection { stream: ours, ended: Some(ended), reset: None })
    }
}

/// A local program's end of a connection.
#[derive(Debug)]
pub struct MemoryConnection {
    stream: DuplexStream,
    ended: Option<oneshot::Receiver<PipeEnd>>,
    reset: Option<PipeEnd>,
}

impl MemoryConnection {
    /// Returns whether the connection has been reset, and if so whether the destination had refused it.
    fn reset(&mut self) -> Option<PipeEnd> {
        if let Some(ended) = &mut self.ended
            && let Ok(why) = ended.try_recv()
        {
            self.reset = Some(why);
            self.ended = None;
        }
        self.reset
    }

    /// Waits until the connection is reset, and returns why; `None` if it ends well.
    #[cfg(test)]
    pub(crate) async fn until_reset(mut self) -> Option<PipeEnd> {
        match self.ended.take() {
            Some(ended) => ended.await.ok(),
            None => self.reset,
        }
    }
}

impl AsyncRead for MemoryConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if buf.filled().len() == before && buf.remaining() > 0 && self.reset().is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(outcome)
    }
}

impl AsyncWrite for MemoryConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
