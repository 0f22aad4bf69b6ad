//! Local connections as links get them: what a program on this machine has opened, or the pipe of a probe.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    net::TcpStream,
    sync::oneshot,
};

/// A local connection that waits to be carried.
#[derive(Debug)]
pub struct Held {
    pub io: Io,
    /// When it is reset if it still waits, as [`Now::mono`](crate::util::time::Now::mono).
    pub deadline: Duration,
}

/// Why the link's end of a pipe was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PipeEnd {
    /// The destination could not be connected to from the other end of the link.
    Refused,
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
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Pipe { stream, .. } => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Pipe { stream, .. } => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Pipe { stream, .. } => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Pipe { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Pipe { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
