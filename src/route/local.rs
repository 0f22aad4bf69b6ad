//! Local connections as links get them: what a program on this machine has opened, or the pipe of a probe.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::BufMut;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, DuplexStream},
    net::TcpStream,
    sync::oneshot,
};

/// A local connection that waits to be carried.
#[derive(Debug)]
pub struct Held {
    /// The connection.
    pub io: Io,
    /// When it is reset if it still waits, as [`Now::mono`](crate::util::time::Now::mono).
    pub deadline: Duration,
}

/// Why the link's end of a pipe was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PipeEnd {
    /// The destination could not be connected to from the other end of the link.
    Refused,
    /// The link was lost.
    Lost,
}

/// What a connection consists of.
#[derive(Debug)]
pub enum Io {
    /// An accepted TCP connection.
    Tcp(TcpStream),
    /// A pipe within the process.
    Pipe {
        /// The link's end.
        stream: DuplexStream,
        /// Where to say that it was aborted.
        end: oneshot::Sender<PipeEnd>,
        /// The probe has the other end, not a program that anybody waits for.
        probe: bool,
    },
}

impl Io {
    /// Whether a local program is behind it, as opposed to the probe.
    pub fn is_counted(&self) -> bool {
        match self {
            Self::Tcp(_) => true,
            Self::Pipe { probe, .. } => !probe,
        }
    }

    /// Ends the connection so that the program sees a reset.
    pub fn abort(self, why: PipeEnd) {
        match self {
            Self::Tcp(stream) => {
                // Without lingering, closing sends RST. If it cannot be set the program sees an
                // early end, which is the next best.
                let _outcome = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            Self::Pipe { end, .. } => {
                // The other end may have been dropped already.
                let _outcome = end.send(why);
            }
        }
    }

    /// Reads what the program has sent.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut impl BufMut) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => pin!(stream.read_buf(buf)).poll(cx),
            Self::Pipe { stream, .. } => pin!(stream.read_buf(buf)).poll(cx),
        }
    }

    /// Writes for the program.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Pipe { stream, .. } => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    /// Shuts the write side down.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Pipe { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
