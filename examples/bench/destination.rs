//! What stands behind the tunnels, in a process of its own: a server with one command. And relays to it.
//!
//! A connection carries any number of exchanges. Each begins with a [`Exchange`] in 17 bytes: so many bytes follow, so
//! many come back when they have arrived. A download, an upload and a request are exchanges of different shapes. After one
//! of nothing the server closes, as servers do when TLS says goodbye: that a client has closed does not go through a
//! tunnel, as it may have closed its half only.

use std::{io, net::SocketAddr, time::Duration};

use autoheal_pa::clock::Clock;
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::sleep_until,
};

/// The first byte of an exchange.
const MAGIC: u8 = b'x';

/// The first byte of a TLS handshake, by which the program proves that a tunnel leads to an API server.
const TLS_HANDSHAKE: u8 = 0x16;

/// Bytes that are written or read at once.
const BLOCK_LEN: usize = 128 << 10;

/// Bytes that a relay reads at once: what an agent does.
const RELAY_BLOCK_LEN: usize = 32 << 10;

/// Blocks that are on their way in one direction of a relay with a delay: more than any link here holds.
const MAX_BLOCKS_IN_FLIGHT: usize = 4096;

static ZEROS: [u8; BLOCK_LEN] = [0; BLOCK_LEN];

/// So many bytes there, then so many back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exchange {
    /// Bytes to the destination.
    pub(crate) there: u64,
    /// Bytes back.
    pub(crate) back: u64,
}

impl Exchange {
    const LEN: usize = 17;

    /// Ends a connection.
    const GOODBYE: Self = Self { there: 0, back: 0 };

    fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [MAGIC; Self::LEN];
        bytes[1..9].copy_from_slice(&self.there.to_be_bytes());
        bytes[9..].copy_from_slice(&self.back.to_be_bytes());
        bytes
    }

    async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        if stream.read_u8().await? != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no exchange"));
        }
        Ok(Self { there: stream.read_u64().await?, back: stream.read_u64().await? })
    }

    /// Asks for it and sends what goes there, all in one piece if that is small.
    pub(crate) async fn send(self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let first = usize::try_from(self.there).unwrap_or(BLOCK_LEN).min(BLOCK_LEN);
        let mut block = Vec::with_capacity(Self::LEN + first);
        block.extend_from_slice(&self.encode());
        block.extend_from_slice(&ZEROS[..first]);
        stream.write_all(&block).await?;
        send_zeros(stream, self.there - first as u64).await
    }

    /// Takes what comes back.
    pub(crate) async fn receive(self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        take(stream, self.back).await
    }
}

/// Ends a connection, and waits until its other end has closed it.
pub(crate) async fn say_goodbye(mut stream: TcpStream) -> io::Result<()> {
    Exchange::GOODBYE.send(&mut stream).await?;
    match stream.read(&mut [0]).await? {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "more came than was asked for")),
    }
}

async fn send_zeros(stream: &mut (impl AsyncWrite + Unpin), mut len: u64) -> io::Result<()> {
    while len > 0 {
        let block = usize::try_from(len).unwrap_or(BLOCK_LEN).min(BLOCK_LEN);
        stream.write_all(&ZEROS[..block]).await?;
        len -= block as u64;
    }
    Ok(())
}

/// Reads so many bytes and forgets them.
pub(crate) async fn take(stream: &mut (impl AsyncRead + Unpin), mut len: u64) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(usize::try_from(len).unwrap_or(BLOCK_LEN).min(BLOCK_LEN));
    while len > 0 {
        let mut limited = (&mut *stream).take(len);
        let count = limited.read_buf(&mut buffer).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        len -= count as u64;
        buffer.clear();
    }
    Ok(())
}

/// Connects without delay of small writes.
pub(crate) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Binds a free port.
pub(crate) async fn bind() -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Gives each connection that is accepted a task, until it is dropped.
pub(crate) async fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        if stream.set_nodelay(true).is_ok() {
            connections.spawn(serve(stream));
        }
    }
}

/// What the process says when it is there.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

/// Serves exchanges on every connection; those that speak TLS go on to the API server. Listens at `at`, if it is given.
///
/// # Errors
/// If the port cannot be bound.
pub(crate) async fn run(
    api_server: SocketAddr,
    at: Option<SocketAddr>,
    ready: impl FnOnce(Hello) -> io::Result<()>,
) -> io::Result<()> {
    let (listener, address) = match at {
        Some(at) => (TcpListener::bind(at).await?, at),
        None => bind().await?,
    };
    ready(Hello { address })?;
    accept(listener, move |stream| serve(stream, api_server)).await;
    Ok(())
}

async fn serve(mut stream: TcpStream, api_server: SocketAddr) -> io::Result<()> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] == TLS_HANDSHAKE {
        copy_bidirectional(&mut stream, &mut connect(api_server).await?).await?;
        return Ok(());
    }
    let mut stream = BufReader::new(stream);
    loop {
        let exchange = Exchange::read(&mut stream).await?;
        if exchange == Exchange::GOODBYE {
            return Ok(());
        }
        take(&mut stream, exchange.there).await?;
        send_zeros(&mut stream, exchange.back).await?;
    }
}

/// Relays a connection as an agent does: a task for each direction, 32 KiB at once, each block later by `delay`.
pub(crate) async fn relay(stream: TcpStream, to: SocketAddr, delay: Duration) -> io::Result<()> {
    let (near_read, near_write) = stream.into_split();
    let (far_read, far_write) = connect(to).await?.into_split();
    let mut directions = JoinSet::new();
    directions.spawn(carry(near_read, far_write, delay));
    directions.spawn(carry(far_read, near_write, delay));
    while let Some(ended) = directions.join_next().await {
        ended??;
    }
    Ok(())
}

async fn carry(
    mut from: impl AsyncRead + Unpin + Send + 'static,
    mut to: impl AsyncWrite + Unpin + Send + 'static,
    delay: Duration,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    if delay.is_zero() {
        loop {
            buffer.clear();
            buffer.reserve(RELAY_BLOCK_LEN);
            if (&mut from).take(RELAY_BLOCK_LEN as u64).read_buf(&mut buffer).await? == 0 {
                return to.shutdown().await;
            }
            to.write_all(&buffer).await?;
        }
    }
    let clock = Clock::start();
    let (sender, mut blocks) = mpsc::channel::<(Duration, Bytes)>(MAX_BLOCKS_IN_FLIGHT);
    let reader = async move {
        loop {
            buffer.reserve(RELAY_BLOCK_LEN);
            if (&mut from).take(RELAY_BLOCK_LEN as u64).read_buf(&mut buffer).await? == 0 {
                return Ok::<_, io::Error>(());
            }
            if sender.send((clock.now().mono + delay, buffer.split().freeze())).await.is_err() {
                return Ok(());
            }
        }
    };
    let writer = async move {
        while let Some((at, block)) = blocks.recv().await {
            sleep_until(clock.instant(at)).await;
            to.write_all(&block).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(reader, writer)?;
    Ok(())
}
