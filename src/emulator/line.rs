//! A slow line between the client and the gateway: rate, delay, and the buffer before the bottleneck, each way apart.
//!
//! It is below TLS and WebSocket, where a real one is: acknowledgements and pongs wait behind the data that is in the
//! buffer, and what does not fit in waits at its sender, as TCP lets it. A segment that the line loses is sent again, and
//! what came after it waits at the receiver. A sender does not slow down for losses (BBR does so; Reno and CUBIC would
//! carry less), but keeps no more on its way on a lossy line than such a sender does, so that no queue builds up there.
//!
//! Left out: slow start, headers below TCP, acknowledgements of TCP, which are small and come in time here.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf},
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{gateway::Breakable, link::Random, script::Line, world::World};

/// Largest segment, in bytes: what an Ethernet frame holds of a TCP connection with timestamps.
const SEGMENT_LEN: usize = 1448;

/// Least that a sender keeps on its way on a lossy line, in bytes.
const LEAST_IN_FLIGHT: usize = 32 * SEGMENT_LEN;

/// Most bytes that a receiver keeps because an earlier segment is missing: `tcp_rmem` of Linux, more or less.
const RECEIVE_BUFFER: usize = 6 << 20;

/// How long a sender waits for the acknowledgement of what nothing follows, beyond the round trip: `TCP_RTO_MIN` of Linux.
const LEAST_TIMEOUT: Duration = Duration::from_millis(200);

/// Bytes of a direction that are between the line and whoever reads from it.
const PIPE_LEN: usize = 16 << 10;

/// A piece of what is sent, with how often the line has lost it.
#[derive(Debug)]
struct Segment {
    number: u64,
    bytes: Bytes,
    losses: u32,
}

/// A segment that the line has lost.
#[derive(Debug)]
struct Lost {
    segment: Segment,
    /// Segments that have been sent since.
    later: u32,
    /// When its sender notices.
    noticed_at: Instant,
}

/// How many later segments show that one is missing.
const SHOWN_BY: u32 = 3;

/// One direction of a line.
#[derive(Debug)]
struct Lane {
    line: Line,
    random: Random,
    /// What waits before the bottleneck.
    queue: VecDeque<Segment>,
    queued: usize,
    /// When the bottleneck can take the next segment.
    free_at: Instant,
    /// What is behind the bottleneck, by when it gets there.
    flying: BTreeMap<(Instant, u64), Bytes>,
    /// What is behind the bottleneck, lost or not.
    flying_len: usize,
    lost: Vec<Lost>,
    next_number: u64,
    /// What has arrived before its turn.
    early: BTreeMap<u64, Bytes>,
    early_len: usize,
    next_out: u64,
}

impl Lane {
    fn new(line: Line, seed: u64, now: Instant) -> Self {
        Self {
            line,
            random: Random::new(seed),
            queue: VecDeque::new(),
            queued: 0,
            free_at: now,
            flying: BTreeMap::new(),
            flying_len: 0,
            lost: Vec::new(),
            next_number: 0,
            early: BTreeMap::new(),
            early_len: 0,
            next_out: 0,
        }
    }

    /// How many bytes the sender may put in.
    fn room(&self) -> usize {
        let in_flight = self.queued + self.flying_len;
        let limit = if self.line.loss > 0.0 {
            let round_trip = (2 * self.line.delay).as_secs_f64();
            let product = (self.line.rate as f64 * round_trip) as usize;
            (2 * product).max(LEAST_IN_FLIGHT).min(self.line.buffer + product)
        } else {
            // What has left the bottleneck does not count: it is not in the buffer.
            self.line.buffer + self.flying_len
        };
        let received = RECEIVE_BUFFER.saturating_sub(self.early_len + in_flight);
        limit.saturating_sub(in_flight).min(received)
    }

    fn send(&mut self, now: Instant, mut bytes: Bytes) {
        if self.queue.is_empty() {
            self.free_at = self.free_at.max(now);
        }
        while !bytes.is_empty() {
            let bytes = bytes.split_to(bytes.len().min(SEGMENT_LEN));
            self.queued += bytes.len();
            self.queue.push_back(Segment { number: self.next_number, bytes, losses: 0 });
            self.next_number += 1;
        }
    }

    /// When something happens next.
    fn next_event(&self) -> Option<Instant> {
        let departure = (!self.queue.is_empty() && self.line.rate > 0).then_some(self.free_at);
        let arrival = self.flying.first_key_value().map(|((at, _), _)| *at);
        let noticed = self.lost.iter().map(|lost| lost.noticed_at).min();
        [departure, arrival, noticed].into_iter().flatten().min()
    }

    /// Lets everything happen that is due.
    fn advance(&mut self, now: Instant) {
        while let Some(at) = self.next_event().filter(|at| *at <= now) {
            if let Some(index) = self.lost.iter().position(|lost| lost.noticed_at <= at) {
                let Lost { segment, .. } = self.lost.swap_remove(index);
                self.flying_len -= segment.bytes.len();
                self.queued += segment.bytes.len();
                if self.queue.is_empty() {
                    self.free_at = self.free_at.max(at);
                }
                self.queue.push_back(segment);
            } else if let Some(entry) = self.flying.first_entry()
                && entry.key().0 <= at
            {
                let ((_, number), bytes) = entry.remove_entry();
                self.flying_len -= bytes.len();
                self.early_len += bytes.len();
                self.early.insert(number, bytes);
            } else {
                self.depart();
            }
        }
    }

    /// Lets the first segment through the bottleneck. It may be lost behind that.
    fn depart(&mut self) {
        let Some(mut segment) = self.queue.pop_front() else { return };
        let len = segment.bytes.len();
        self.queued -= len;
        self.flying_len += len;
        self.free_at += Duration::from_secs_f64(len as f64 / self.line.rate as f64);
        let round_trip = 2 * self.line.delay;
        for lost in &mut self.lost {
            lost.later += 1;
            if lost.later == SHOWN_BY {
                lost.noticed_at = lost.noticed_at.min(self.free_at + round_trip);
            }
        }
        if self.random.happens(self.line.loss) {
            // If nothing shows it a timer does, which doubles.
            let noticed_at = self.free_at + round_trip + LEAST_TIMEOUT * (1 << segment.losses.min(6));
            segment.losses += 1;
            self.lost.push(Lost { segment, later: 0, noticed_at });
        } else {
            self.flying.insert((self.free_at + self.line.delay, segment.number), segment.bytes);
        }
    }

    /// Moves what has arrived and is next in order.
    fn deliver(&mut self, out: &mut BytesMut) {
        while out.len() < PIPE_LEN
            && let Some(bytes) = self.early.remove(&self.next_out)
        {
            self.next_out += 1;
            self.early_len -= bytes.len();
            out.extend_from_slice(&bytes);
        }
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.flying.is_empty() && self.lost.is_empty() && self.early.is_empty()
    }
}

/// Where a line's settings come from: they may change while it is in use.
pub(super) trait Lines {
    fn line(&self) -> Line;
    /// Waits until they have changed.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// A line that stays as it is.
struct Fixed(Line);

impl Lines for Fixed {
    fn line(&self) -> Line {
        self.0
    }

    async fn changed(&mut self) {
        std::future::pending().await
    }
}

/// The line of the settings, in one direction.
struct OfWorld {
    world: Arc<World>,
    version: watch::Receiver<u64>,
    upstream: bool,
}

impl OfWorld {
    fn new(world: &Arc<World>, upstream: bool) -> Self {
        Self { world: Arc::clone(world), version: world.settings_version.subscribe(), upstream }
    }
}

impl Lines for OfWorld {
    fn line(&self) -> Line {
        let settings = self.world.settings();
        (if self.upstream { settings.line_up } else { settings.line_down }).unwrap_or(Line::UNLIMITED)
    }

    async fn changed(&mut self) {
        if self.version.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Carries one direction until its sender has ended it and everything has arrived. When the sender has broken the
/// connection, which `broken` says, everything on its way is lost.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut lines: impl Lines,
    seed: u64,
    broken: &AtomicBool,
) -> io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "the emulator keeps its own clock")]
    let now = Instant::now;
    let mut lane = Lane::new(lines.line(), seed, now());
    let mut buffer = BytesMut::new();
    let mut out = BytesMut::new();
    let mut ended = false;
    loop {
        lane.line = lines.line();
        lane.advance(now());
        if out.is_empty() {
            lane.deliver(&mut out);
        }
        if ended && broken.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if ended && out.is_empty() && lane.is_empty() {
            return to.shutdown().await;
        }
        let room = lane.room().min(PIPE_LEN);
        let due = lane.next_event();
        tokio::select! {
            biased;
            written = to.write(&out), if !out.is_empty() => out.advance(written?),
            read = async { (&mut from).take(room as u64).read_buf(&mut buffer).await }, if room > 0 && !ended => {
                ended = read? == 0;
                lane.send(now(), buffer.split().freeze());
            }
            () = async { sleep_until(due.unwrap_or_else(now)).await }, if due.is_some() => {}
            () = lines.changed() => {}
        }
    }
}

/// Makes a line by itself, for comparisons: the client's end, the service's end, and what carries between them.
pub fn bare_line(up: Line, down: Line, seed: u64) -> (DuplexStream, DuplexStream, impl Future<Output = ()>) {
    let (client, far) = tokio::io::duplex(PIPE_LEN);
    let (near, service) = tokio::io::duplex(PIPE_LEN);
    let carrier = async move {
        let (far_reader, far_writer) = tokio::io::split(far);
        let (near_reader, near_writer) = tokio::io::split(near);
        let broken = AtomicBool::new(false);
        let up = carry(far_reader, near_writer, Fixed(up), seed, &broken);
        let down = carry(near_reader, far_writer, Fixed(down), !seed, &broken);
        // An end that is gone ends it.
        let _outcome = futures_util::future::try_join(up, down).await;
    };
    (client, service, carrier)
}

/// The service's end of a connection, at the end of a line or not.
#[derive(Debug)]
pub(super) enum Lined<S> {
    Straight(S),
    Line { stream: DuplexStream, broken: Arc<AtomicBool> },
}

impl<S> Lined<S>
where
    S: AsyncRead + AsyncWrite + Breakable + Unpin + Send + 'static,
{
    /// Puts a line before a connection if the settings say so.
    pub(super) fn new(connection: S, world: &Arc<World>, seed: u64) -> Self {
        {
            let settings = world.settings();
            if settings.line_up.is_none() && settings.line_down.is_none() {
                return Self::Straight(connection);
            }
        }
        let (stream, near) = tokio::io::duplex(PIPE_LEN);
        let broken = Arc::new(AtomicBool::new(false));
        let (up, down) = (OfWorld::new(world, true), OfWorld::new(world, false));
        let (stop, is_broken) = (world.stop.clone(), Arc::clone(&broken));
        world.tasks.spawn(async move {
            let (mut far_reader, mut far_writer) = tokio::io::split(connection);
            let (near_reader, near_writer) = tokio::io::split(near);
            let both = async {
                let up = carry(&mut far_reader, near_writer, up, seed, &is_broken);
                let down = carry(near_reader, &mut far_writer, down, !seed, &is_broken);
                futures_util::future::try_join(up, down).await
            };
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                outcome = both => outcome,
            };
            if outcome.is_err() && is_broken.load(Ordering::Relaxed) {
                far_reader.unsplit(far_writer).reset_on_drop();
            }
        });
        Self::Line { stream, broken }
    }
}

impl<S: Breakable> Breakable for Lined<S> {
    fn reset_on_drop(&self) {
        match self {
            Self::Straight(connection) => connection.reset_on_drop(),
            Self::Line { broken, .. } => broken.store(true, Ordering::Relaxed),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lined<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Straight(connection) => Pin::new(connection).poll_read(cx, buf),
            Self::Line { stream, .. } => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lined<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Straight(connection) => Pin::new(connection).poll_write(cx, data),
            Self::Line { stream, .. } => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Straight(connection) => Pin::new(connection).poll_flush(cx),
            Self::Line { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Straight(connection) => Pin::new(connection).poll_shutdown(cx),
            Self::Line { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: Line = Line { rate: 100_000, buffer: 200_000, delay: Duration::from_millis(20), loss: 0.0 };

    /// Sends for so long; returns the bytes that arrived in that time, which have to come in order.
    async fn send(line: Line, seconds: u64) -> u64 {
        let (mut client, mut service, carrier) = bare_line(LINE, line, 1);
        let mut got = 0;
        let receive = async {
            let mut buffer = vec![0; 4096];
            loop {
                let len = client.read(&mut buffer).await.expect("the line is there");
                assert!((got..).zip(&buffer[..len]).all(|(at, byte)| at as u8 == *byte), "in order");
                got += len as u64;
            }
        };
        let fill = async {
            for put in (0_u64..).step_by(1000) {
                let chunk: Vec<u8> = (put..put + 1000).map(|at| at as u8).collect();
                service.write_all(&chunk).await.expect("the line is there");
            }
        };
        tokio::select! {
            biased;
            () = receive => {}
            () = fill => {}
            () = carrier => {}
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
        }
        got
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_carries_its_rate() {
        let got = send(LINE, 20).await;
        assert!((1_980_000..=2_000_000).contains(&got), "{got}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lossy_line_carries_what_it_does_not_lose_and_in_order() {
        for (loss, least) in [(0.01, 0.95), (0.05, 0.85), (0.2, 0.5)] {
            let got = send(Line { loss, ..LINE }, 20).await;
            assert!(got as f64 > 2_000_000.0 * least, "{got} at {loss}");
            assert!(got as f64 <= 2_000_000.0 * (1.0 - loss) * 1.1, "{got} at {loss}");
        }
    }

    #[test]
    fn what_waits_is_the_buffer_and_no_more() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        let start = Instant::now();
        let mut lane = Lane::new(LINE, 1, start);
        assert_eq!(lane.room(), 200_000);
        lane.send(start, Bytes::from(vec![0; 200_000]));
        assert_eq!(lane.room(), 0);
        lane.advance(start + Duration::from_secs(1));
        assert!((99_000..102_000).contains(&lane.room()), "{}", lane.room());
        let mut out = BytesMut::new();
        lane.deliver(&mut out);
        assert!(!out.is_empty());
        // A line that stands still keeps what it has.
        lane.line.rate = 0;
        lane.advance(start + Duration::from_secs(100));
        assert!(!lane.is_empty());
        lane.line.rate = 100_000;
        lane.advance(start + Duration::from_secs(200));
        assert_eq!(lane.room(), 200_000);
    }
}
