//! The load: transfers and requests through an address, and how long they take.

use std::{future::Future, io, net::SocketAddr, time::Duration};

use autoheal_pa::clock::Clock;
use futures_util::future::try_join_all;
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    BoxError,
    destination::{Exchange, connect, say_goodbye, take},
};

/// A small request and its answer: what is asked of an API server all day, without its headers.
pub(crate) const REQUEST: Exchange = Exchange { there: 128, back: 512 };

/// Longest wait for anything. It says nothing about speed: what takes longer does not work.
const DEADLINE: Duration = Duration::from_secs(300);

/// Which way the bytes of a transfer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Down,
    Up,
}

impl Direction {
    fn exchange(self, len: u64) -> Exchange {
        match self {
            Self::Down => Exchange { there: 0, back: len },
            // The answer says that all has arrived.
            Self::Up => Exchange { there: len, back: 1 },
        }
    }
}

/// Awaits something that has to come.
pub(crate) async fn within<T, E: Into<BoxError>>(
    what: &str,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, BoxError> {
    match timeout(DEADLINE, future).await {
        Ok(outcome) => outcome.map_err(|error| format!("{what}: {}", error.into()).into()),
        Err(_) => Err(format!("{what} took longer than {} s", DEADLINE.as_secs()).into()),
    }
}

async fn exchange(mut stream: TcpStream, exchange: Exchange) -> io::Result<TcpStream> {
    exchange.send(&mut stream).await?;
    exchange.receive(&mut stream).await?;
    Ok(stream)
}

/// Opens so many connections at once, to their ends: each has answered.
async fn open(address: SocketAddr, connections: usize) -> Result<Vec<TcpStream>, BoxError> {
    let opening = (0..connections).map(|_| async { exchange(connect(address).await?, REQUEST).await });
    within("the first answers of connections", try_join_all(opening)).await
}

async fn close(streams: Vec<TcpStream>) -> Result<(), BoxError> {
    within("the ends of connections", try_join_all(streams.into_iter().map(say_goodbye))).await.map(drop)
}

/// Lets something be done on each stream at the same time. Returns the streams, and how many seconds it took.
async fn at_once<F>(streams: Vec<TcpStream>, load: impl Fn(TcpStream) -> F) -> Result<(Vec<TcpStream>, f64), BoxError>
where
    F: Future<Output = io::Result<TcpStream>> + Send + 'static,
{
    let clock = Clock::start();
    let mut clients: JoinSet<_> = streams.into_iter().map(load).collect();
    let all = async {
        let mut streams = Vec::with_capacity(clients.len());
        while let Some(ended) = clients.join_next().await {
            streams.push(ended??);
        }
        Ok::<_, io::Error>(streams)
    };
    let streams = within("the load", all).await?;
    Ok((streams, clock.now().mono.as_secs_f64()))
}

/// Opens one connection to its end, with an exchange.
pub(crate) async fn open_one(address: SocketAddr, first: Exchange) -> io::Result<TcpStream> {
    exchange(connect(address).await?, first).await
}

/// Moves `total` bytes through so many connections that are open already. Returns bytes a second.
pub(crate) async fn transfer(
    address: SocketAddr,
    direction: Direction,
    connections: usize,
    total: u64,
) -> Result<f64, BoxError> {
    let share = direction.exchange(total / connections as u64);
    let streams = open(address, connections).await?;
    let (streams, seconds) = at_once(streams, move |stream| exchange(stream, share)).await?;
    close(streams).await?;
    Ok(total as f64 / seconds)
}

/// Sends so many requests, one after the other, on a connection that is open, each a `pause` after the answer to the one
/// before. Returns how long each took, in seconds.
pub(crate) async fn requests(address: SocketAddr, count: usize, pause: Duration) -> Result<Vec<f64>, BoxError> {
    let mut stream = open(address, 1).await?.remove(0);
    let mut times = Vec::with_capacity(count);
    let clock = Clock::start();
    for _ in 0..count {
        if !pause.is_zero() {
            sleep(pause).await;
        }
        let before = clock.now().mono;
        stream = within("a request", exchange(stream, REQUEST)).await?;
        times.push((clock.now().mono - before).as_secs_f64());
    }
    close(vec![stream]).await?;
    Ok(times)
}

/// Sends requests on a connection, one after the other, for so long; the last one is waited for. Returns the connection, and how
/// long each took, in seconds.
pub(crate) async fn requests_for(mut stream: TcpStream, duration: Duration) -> Result<(TcpStream, Vec<f64>), BoxError> {
    let mut times = Vec::new();
    let clock = Clock::start();
    loop {
        let before = clock.now().mono;
        stream = within("a request", exchange(stream, REQUEST)).await?;
        let after = clock.now().mono;
        times.push((after - before).as_secs_f64());
        if after >= duration {
            return Ok((stream, times));
        }
    }
}

/// Connects so many times, one after the other, each time up to the first byte of an answer. Returns how long each
/// took, in seconds.
pub(crate) async fn connects(address: SocketAddr, count: usize) -> Result<Vec<f64>, BoxError> {
    let mut times = Vec::with_capacity(count);
    let clock = Clock::start();
    for _ in 0..count {
        let before = clock.now().mono;
        let first = async {
            let mut stream = connect(address).await?;
            REQUEST.send(&mut stream).await?;
            stream.read_u8().await?;
            let after = clock.now().mono;
            take(&mut stream, REQUEST.back - 1).await?;
            say_goodbye(stream).await?;
            Ok::<_, io::Error>(after)
        };
        let after = within("the first byte", first).await?;
        times.push((after - before).as_secs_f64());
    }
    Ok(times)
}

/// Connects `count` times in all, so many at a time. Returns how long each took up to the first byte of an answer, in seconds.
pub(crate) async fn connects_at_once(
    address: SocketAddr,
    connections: usize,
    count: usize,
) -> Result<Vec<f64>, BoxError> {
    let share = count.div_ceil(connections);
    let times = try_join_all((0..connections).map(|_| connects(address, share))).await?;
    Ok(times.concat())
}

/// Sends `count` requests in all through so many connections, on each one after the other. Returns requests a second.
pub(crate) async fn request_rate(address: SocketAddr, connections: usize, count: usize) -> Result<f64, BoxError> {
    let share = count.div_ceil(connections);
    let streams = open(address, connections).await?;
    let (streams, seconds) = at_once(streams, move |mut stream| async move {
        for _ in 0..share {
            stream = exchange(stream, REQUEST).await?;
        }
        Ok(stream)
    })
    .await?;
    close(streams).await?;
    Ok((share * connections) as f64 / seconds)
}

/// A download that does not end until it is dropped.
pub(crate) struct Bulk {
    _task: JoinSet<io::Result<()>>,
}

impl Bulk {
    /// Starts it and waits until `len` bytes have come, so that every queue on the way is full.
    pub(crate) async fn start(address: SocketAddr, len: u64) -> Result<Self, BoxError> {
        let endless = Exchange { there: 0, back: u64::MAX };
        let first = async {
            let mut stream = connect(address).await?;
            endless.send(&mut stream).await?;
            take(&mut stream, len).await?;
            Ok::<_, io::Error>(stream)
        };
        let mut stream = within("the first bytes of a download", first).await?;
        let mut task = JoinSet::new();
        task.spawn(async move { take(&mut stream, u64::MAX).await });
        Ok(Self { _task: task })
    }
}

/// Bytes that a slow program reads at once.
const SLOW_BLOCK: u64 = 16 << 10;

/// A download whose program reads so many bytes a second, or stops to read at all, until it is dropped.
pub(crate) struct Slow {
    task: JoinSet<io::Result<()>>,
}

impl Slow {
    /// Starts it. Without a pace it reads no more than the first bytes.
    pub(crate) async fn start(address: SocketAddr, pace: Option<u64>) -> Result<Self, BoxError> {
        let endless = Exchange { there: 0, back: u64::MAX };
        let first = async {
            let mut stream = connect(address).await?;
            endless.send(&mut stream).await?;
            take(&mut stream, SLOW_BLOCK).await?;
            Ok::<_, io::Error>(stream)
        };
        let mut stream = within("the first bytes of a download", first).await?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            let Some(pace) = pace else { return std::future::pending().await };
            let pause = Duration::from_secs_f64(SLOW_BLOCK as f64 / pace as f64);
            loop {
                take(&mut stream, SLOW_BLOCK).await?;
                sleep(pause).await;
            }
        });
        Ok(Self { task })
    }

    /// Whether it has been cut off, as far as it can tell.
    pub(crate) fn is_cut(&mut self) -> bool {
        self.task.try_join_next().is_some()
    }
}
