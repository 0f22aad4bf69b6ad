//! Where the emulator's servers, and the destinations behind its agents, are: at a socket of this machine, or
//! in memory, which goes with tokio's paused time where sockets do not.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use super::{EmulatorError, gateway::Breakable};

/// Bytes that one direction of a connection in memory holds, about what sockets do.
const PIPE_LEN: usize = 128 << 10;

/// Something that one can connect to.
#[derive(Debug, Clone)]
pub enum Place {
    /// A socket of this machine.
    Socket(SocketAddr),
    /// Within this process.
    Memory(MemoryPlace),
}

/// The way to a [`MemoryListener`].
#[derive(Debug, Clone)]
pub struct MemoryPlace {
    connections: mpsc::UnboundedSender<DuplexStream>,
}

/// Takes connections within this process.
#[derive(Debug)]
pub struct MemoryListener {
    connections: mpsc::UnboundedReceiver<DuplexStream>,
}

/// One end of a connection of either kind.
#[derive(Debug)]
pub struct Wire(Kind);

#[derive(Debug)]
enum Kind {
    Tcp(TcpStream),
    Memory(DuplexStream),
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Self {
        Self::Socket(address)
    }
}

impl Place {
    /// Makes a place in memory, and what takes the connections to it.
    #[must_use]
    pub fn in_memory() -> (Self, MemoryListener) {
        let (sender, connections) = mpsc::unbounded_channel();
        (Self::Memory(MemoryPlace { connections: sender }), MemoryListener { connections })
    }

    /// Connects.
    ///
    /// # Errors
    /// What the operating system says; [`io::ErrorKind::ConnectionRefused`] when nobody listens in memory.
    pub async fn connect(&self) -> io::Result<Wire> {
        match self {
            Self::Socket(address) => {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                Ok(Wire(Kind::Tcp(tcp)))
            }
            Self::Memory(MemoryPlace { connections }) => {
                let (near, far) = tokio::io::duplex(PIPE_LEN);
                connections.send(far).map_err(|_closed| io::Error::from(io::ErrorKind::ConnectionRefused))?;
                Ok(Wire(Kind::Memory(near)))
            }
        }
    }
}

impl MemoryListener {
    /// Waits for the next connection; `None` when nobody can connect any more.
    ///
    /// # Cancel safety
    /// No connection is lost.
    pub async fn accept(&mut self) -> Option<Wire> {
        self.connections.recv().await.map(|stream| Wire(Kind::Memory(stream)))
    }
}

/// What a server of the emulator accepts from.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Memory(MemoryListener),
}

/// Where servers are put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Medium {
    Sockets,
    Memory,
}

impl Listener {
    /// Listens: on a port of 127.0.0.1, 0 for a free one, or in memory.
    pub(super) async fn bind(medium: Medium, port: u16) -> Result<(Self, Place), EmulatorError> {
        match medium {
            Medium::Sockets => {
                let failed = |source| EmulatorError::Bind { port, source };
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                Ok((Self::Tcp(listener), Place::Socket(address)))
            }
            Medium::Memory => {
                let (place, listener) = Place::in_memory();
                Ok((Self::Memory(listener), place))
            }
        }
    }

    /// Accepts the next connection; `None` when `stop` is cancelled.
    pub(super) async fn accept(&mut self, stop: &CancellationToken) -> Option<Wire> {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                accepted = self.next() => accepted?,
            };
            if let Ok(wire) = accepted {
                return Some(wire);
            }
        }
    }

    async fn next(&mut self) -> Option<io::Result<Wire>> {
        match self {
            Self::Tcp(listener) => Some(listener.accept().await.map(|(tcp, _)| {
                if let Err(error) = tcp.set_nodelay(true) {
                    tracing::debug!(%error, "no TCP_NODELAY");
                }
                Wire(Kind::Tcp(tcp))
            })),
            Self::Memory(listener) => listener.accept().await.map(Ok),
        }
    }
}

impl Breakable for Wire {
    fn reset_on_drop(&self) {
        match &self.0 {
            Kind::Tcp(tcp) => {
                if let Err(error) = tcp.set_zero_linger() {
                    tracing::debug!(%error, "the connection will end without a reset");
                }
            }
            // Its other end sees an end of file, in the middle of what it was told.
            Kind::Memory(_) => {}
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Kind::Memory(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Kind::Tcp(tcp) => Pin::new(tcp).poll_write(cx, data),
            Kind::Memory(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Kind::Memory(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Kind::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
