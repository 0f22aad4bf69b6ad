//! Joins two TLS connections: what comes out of one goes into the other.
//!
//! Invariant: each direction ends as it was ended. After a `close_notify` there is one; where a peer has stopped sending
//! without, the other only sees that nothing more comes, which TLS takes for what it is.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{client, server};

/// Bytes that are copied at once, each way: what one record of TLS holds.
const COPY_LEN: usize = 16 << 10;

/// A TLS connection of which more can be ended than its TLS.
pub(super) trait Side: AsyncRead + AsyncWrite + Unpin {
    /// Stops sending without a `close_notify`.
    fn poll_stop(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl<S: AsyncRead + AsyncWrite + Unpin> Side for server::TlsStream<S> {
    fn poll_stop(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().0).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Side for client::TlsStream<S> {
    fn poll_stop(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().0).poll_shutdown(cx)
    }
}

/// Copies until both directions have ended.
///
/// # Errors
/// What breaks either connection, a reset among it.
pub(super) async fn relay(one: &mut impl Side, other: &mut impl Side) -> io::Result<()> {
    let (mut there, mut back) = (Direction::default(), Direction::default());
    poll_fn(|cx| {
        let there = there.poll(cx, one, other)?;
        let back = back.poll(cx, other, one)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// How a peer has stopped sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    WithNotice,
    WithoutNotice,
}

/// What goes one way.
#[derive(Debug, Default)]
struct Direction {
    buffer: Vec<u8>,
    written: usize,
    /// Something was written that may not have left yet.
    unflushed: bool,
    end: Option<End>,
    done: bool,
}

impl Direction {
    /// Copies as far as it can; ready when this direction has ended.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut impl Side, to: &mut impl Side) -> Poll<io::Result<()>> {
        while !self.done {
            if let Some(rest) = self.buffer.get(self.written..).filter(|rest| !rest.is_empty()) {
                self.unflushed = true;
                match ready!(Pin::new(&mut *to).poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    len => self.written += len,
                }
                continue;
            }
            match self.end {
                None => match self.poll_fill(cx, from) {
                    Poll::Ready(filled) => filled?,
                    Poll::Pending => {
                        if self.unflushed {
                            ready!(Pin::new(&mut *to).poll_flush(cx))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
                Some(End::WithNotice) => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.done = true;
                }
                Some(End::WithoutNotice) => {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    ready!(to.poll_stop(cx))?;
                    self.done = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, from: &mut impl Side) -> Poll<io::Result<()>> {
        self.buffer.resize(COPY_LEN, 0);
        let mut read = ReadBuf::new(&mut self.buffer);
        let outcome = Pin::new(from).poll_read(cx, &mut read);
        let len = read.filled().len();
        // Between reads an idle connection needs no more than it has.
        self.buffer.truncate(len);
        self.written = 0;
        match ready!(outcome) {
            Ok(()) if len == 0 => self.end = Some(End::WithNotice),
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.end = Some(End::WithoutNotice),
            Err(error) => return Poll::Ready(Err(error)),
        }
        Poll::Ready(Ok(()))
    }
}
