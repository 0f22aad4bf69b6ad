//! Local connections as links get them: what a program on this machine has opened, or the pipe of a probe.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
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

/// The two addresses of a TCP connection of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The program that has connected.
    pub peer: SocketAddr,
    /// The port that it has connected to.
    pub local: SocketAddr,
}

/// A local connection.
#[derive(Debug)]
pub struct Io {
    kind: Kind,
    /// Of the socket by which it came; `None`: it came within the process.
    ends: Option<Box<Ends>>,
    account: Option<Box<Account>>,
}

/// What a connection consists of.
#[derive(Debug)]
enum Kind {
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

/// Counts what a connection carries, and tells it when that has ended.
struct Account {
    carried: Carried,
    tell: Option<Tell>,
}

type Tell = Box<dyn FnOnce(Carried) + Send + Sync>;

/// What a connection has carried, and by what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes read from the local program.
    pub bytes_sent: u64,
    /// Bytes that the local program has been given.
    pub bytes_received: u64,
    /// The link that had it last; `None`: none ever had.
    pub link: Option<CarriedBy>,
    /// Why it was reset; `None`: it has ended well.
    pub reset: Option<PipeEnd>,
}

/// A link, as evidence names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarriedBy {
    /// The label of its route.
    pub route: String,
    /// What audit trails call it, if they do.
    pub id: Option<String>,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account").field("carried", &self.carried).finish_non_exhaustive()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            tell(std::mem::take(&mut self.carried));
        }
    }
}

impl Io {
    /// Takes a connection of a program.
    #[must_use]
    pub fn tcp(stream: TcpStream, ends: Option<Ends>) -> Self {
        Self { kind: Kind::Tcp(stream), ends: ends.map(Box::new), account: None }
    }

    /// Takes the end of a pipe within the process, which `end` is told of when it is aborted. With `ends`, a program that has
    /// connected there is behind it.
    #[must_use]
    pub fn pipe(stream: DuplexStream, end: oneshot::Sender<PipeEnd>, ends: Option<Ends>) -> Self {
        Self { kind: Kind::Pipe { stream, end, probe: false }, ends: ends.map(Box::new), account: None }
    }

    /// Takes the end of a pipe that a probe has the other end of.
    #[must_use]
    pub fn probe(stream: DuplexStream, end: oneshot::Sender<PipeEnd>) -> Self {
        Self { kind: Kind::Pipe { stream, end, probe: true }, ends: None, account: None }
    }

    /// Returns the socket, if it is one.
    #[must_use]
    pub fn into_tcp(self) -> Option<TcpStream> {
        match self.kind {
            Kind::Tcp(stream) => Some(stream),
            Kind::Pipe { .. } => None,
        }
    }

    /// Returns the pipe, and where to say that it was aborted.
    #[cfg(test)]
    pub(crate) fn into_pipe(self) -> Option<(DuplexStream, oneshot::Sender<PipeEnd>)> {
        match self.kind {
            Kind::Pipe { stream, end, .. } => Some((stream, end)),
            Kind::Tcp(_) => None,
        }
    }

    /// Returns the addresses of the connection of the program behind it.
    #[must_use]
    pub fn ends(&self) -> Option<Ends> {
        self.ends.as_deref().copied()
    }

    /// Has `tell` called with what it has carried when it has ended.
    pub fn account_to(&mut self, tell: impl FnOnce(Carried) + Send + Sync + 'static) {
        self.account = Some(Box::new(Account { carried: Carried::default(), tell: Some(Box::new(tell)) }));
    }

    /// Takes note of the link that it is given to, if that is of interest to anybody.
    pub fn note_link(&mut self, link: impl FnOnce() -> Option<CarriedBy>) {
        if let Some(account) = &mut self.account {
            account.carried.link = link();
        }
    }

    /// Whether a local program is behind it, as opposed to the probe.
    pub fn is_counted(&self) -> bool {
        match self.kind {
            Kind::Tcp(_) => true,
            Kind::Pipe { probe, .. } => !probe,
        }
    }

    /// Ends the connection so that the program sees a reset.
    pub fn abort(mut self, why: PipeEnd) {
        if let Some(account) = &mut self.account {
            account.carried.reset = Some(why);
        }
        match self.kind {
            Kind::Tcp(stream) => {
                // Without lingering, closing sends RST. If it cannot be set the program sees an
                // early end, which is the next best.
                let _outcome = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            Kind::Pipe { end, .. } => {
                // The other end may have been dropped already.
                let _outcome = end.send(why);
            }
        }
    }

    fn count_written(&mut self, written: usize) {
        if let Some(account) = &mut self.account {
            account.carried.bytes_received += written as u64;
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let io = self.get_mut();
        let before = buf.filled().len();
        let outcome = match &mut io.kind {
            Kind::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::Pipe { stream, .. } => Pin::new(stream).poll_read(cx, buf),
        };
        if let Some(account) = &mut io.account {
            account.carried.bytes_sent += (buf.filled().len() - before) as u64;
        }
        outcome
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let io = self.get_mut();
        let written = ready!(match &mut io.kind {
            Kind::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Kind::Pipe { stream, .. } => Pin::new(stream).poll_write(cx, buf),
        })?;
        io.count_written(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let io = self.get_mut();
        let written = ready!(match &mut io.kind {
            Kind::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Kind::Pipe { stream, .. } => Pin::new(stream).poll_write_vectored(cx, slices),
        })?;
        io.count_written(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Kind::Pipe { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Kind::Pipe { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
