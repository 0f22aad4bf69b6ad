//! One local connection: what a program on this machine has opened, or the probe's pipe.
//!
//! Holds the socket, what it has not taken yet, and how far it is from its end. Knows nothing of
//! streams: the driver moves the bytes between the two.
//!
//! Invariants: bytes leave in the order in which they came; nothing is dropped before the end of the
//! connection is decided; a connection that ends well is shut down after its last byte and then read
//! until the program closes it, so that no reset overtakes that byte.

use std::{
    collections::VecDeque,
    future::Future,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::ready::Ready;
use crate::route::{Io, PipeEnd};

/// Pieces that go into one vectored write.
const MAX_SLICES: usize = 64;

/// Bytes in a backlog from which on its pieces are copied together.
///
/// A piece is a slice of what was read from the transport, which it keeps in memory whole. That is
/// well for the moment that a healthy program takes, but not for what a slow one leaves lying.
const COPY_THRESHOLD: usize = 64 << 10;

/// Size of the blocks that a long backlog is copied into, in bytes.
const COPY_BLOCK: usize = 64 << 10;

/// Bytes read at once from a connection whose input is discarded.
const DISCARD_LEN: usize = 4 << 10;

/// How far a connection is from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its stream is open. `input_ended`: the program has stopped writing.
    Open {
        /// The end of file has been read.
        input_ended: bool,
    },
    /// Its stream has ended: what is left goes out, then the write side is shut down.
    Draining,
    /// Everything is out; waits for the program to close.
    Lingering,
}

#[derive(Debug)]
pub(super) struct Connection<K> {
    io: Io,
    backlog: Backlog,
    /// When the program last took something, or had nothing to take.
    moved_at: Duration,
    pub(super) stage: Stage,
    pub(super) ready: Ready<K>,
}

impl<K: Copy + Send + Sync + 'static> Connection<K> {
    /// Takes a connection whose stream has just been opened.
    pub(super) fn new(io: Io, ready: Ready<K>) -> Self {
        Self {
            io,
            backlog: Backlog::default(),
            moved_at: Duration::ZERO,
            stage: Stage::Open { input_ended: false },
            ready,
        }
    }

    /// Whether a local program is behind it, as opposed to the probe.
    pub(super) fn is_counted(&self) -> bool {
        self.io.is_counted()
    }

    /// Returns the bytes that the program has not taken.
    pub(super) fn backlog_len(&self) -> usize {
        self.backlog.len
    }

    /// Returns since when the program has taken nothing of what there is for it.
    pub(super) fn stalled_since(&self) -> Option<Duration> {
        (self.backlog.len > 0).then_some(self.moved_at)
    }

    /// Queues bytes for the program.
    pub(super) fn push(&mut self, data: Bytes, now: Duration) {
        if self.backlog.len == 0 {
            self.moved_at = now;
        }
        self.backlog.push(data);
    }

    /// Takes note that the stream has ended, after its last byte.
    pub(super) fn drain(&mut self) {
        self.stage = Stage::Draining;
    }

    /// Writes what is queued, as far as the program takes it. Returns how many bytes that were.
    ///
    /// # Errors
    /// The program has gone, or the socket is broken.
    pub(super) fn write_backlog(&mut self, now: Duration) -> io::Result<usize> {
        let mut written = 0;
        let mut cx = Context::from_waker(self.ready.waker());
        while self.backlog.len > 0 {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = self.backlog.slices(&mut slices);
            match Pin::new(&mut self.io).poll_write_vectored(&mut cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(len)) => {
                    self.backlog.advance(len);
                    self.moved_at = now;
                    written += len;
                }
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        Ok(written)
    }

    /// Reads at most `limit` bytes of the program into `buf`; 0 is its end of file.
    pub(super) fn poll_read(&mut self, buf: &mut BytesMut, limit: usize) -> Poll<io::Result<usize>> {
        let mut cx = Context::from_waker(self.ready.waker());
        pin!(self.io.read_buf(&mut buf.limit(limit))).poll(&mut cx)
    }

    /// Goes on with the end of a connection whose stream has ended: shuts the write side down once
    /// nothing is left to write, then reads and discards until the program closes. Ready when the
    /// connection may be dropped.
    pub(super) fn poll_close(&mut self, scratch: &mut BytesMut) -> Poll<()> {
        let mut cx = Context::from_waker(self.ready.waker());
        if self.stage == Stage::Draining {
            if self.backlog.len > 0 {
                return Poll::Pending;
            }
            if ready!(Pin::new(&mut self.io).poll_shutdown(&mut cx)).is_err() {
                return Poll::Ready(());
            }
            self.stage = Stage::Lingering;
        }
        loop {
            scratch.reserve(DISCARD_LEN);
            let outcome = ready!(pin!(self.io.read_buf(&mut (&mut *scratch).limit(DISCARD_LEN))).poll(&mut cx));
            scratch.clear();
            if !matches!(outcome, Ok(1..)) {
                return Poll::Ready(());
            }
        }
    }

    /// Ends the connection so that the program sees a reset.
    pub(super) fn abort(self, why: PipeEnd) {
        self.io.abort(why);
    }
}

/// Bytes that a program has not taken yet, in order.
#[derive(Debug, Default)]
struct Backlog {
    pieces: VecDeque<Bytes>,
    /// What comes after the pieces, being copied together.
    tail: BytesMut,
    len: usize,
}

impl Backlog {
    fn push(&mut self, data: Bytes) {
        self.len += data.len();
        let long = self.len > COPY_THRESHOLD;
        if !long && self.tail.is_empty() {
            self.pieces.push_back(data);
            return;
        }
        if self.tail.len() + data.len() > COPY_BLOCK {
            self.seal();
        }
        if data.len() >= COPY_BLOCK {
            self.pieces.push_back(data);
            return;
        }
        if self.tail.capacity() == 0 {
            self.tail.reserve(COPY_BLOCK);
        }
        self.tail.extend_from_slice(&data);
    }

    /// Turns the copy under way into a piece.
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// Fills `slices` with the first pieces and returns how many there are.
    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(self.pieces.iter().map(|piece| &piece[..]).chain(tail)) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut len: usize) {
        self.len -= len;
        while len > 0 {
            let Some(front) = self.pieces.front_mut() else {
                self.tail.advance(len);
                break;
            };
            if front.len() > len {
                front.advance(len);
                break;
            }
            len -= front.len();
            self.pieces.pop_front();
        }
        if self.len == 0 {
            // A program that has caught up does not need the block any more.
            self.tail = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_backlog_keeps_every_byte_in_order(
            steps in proptest::collection::vec((1_usize..90_000, 0_usize..120_000), 1..40),
        ) {
            let mut backlog = Backlog::default();
            let (mut pushed, mut taken) = (0_u64, 0_u64);
            for (push, take) in steps {
                backlog.push((0..push as u64).map(|i| (pushed + i) as u8).collect::<Vec<_>>().into());
                pushed += push as u64;
                let mut take = take.min(backlog.len);
                while take > 0 {
                    let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                    let count = backlog.slices(&mut slices);
                    let mut len = 0;
                    for byte in slices[..count].iter().flat_map(|slice| slice.iter()).take(take) {
                        prop_assert_eq!(*byte, taken as u8);
                        taken += 1;
                        len += 1;
                    }
                    prop_assert!(len > 0);
                    backlog.advance(len);
                    take -= len;
                }
                prop_assert_eq!(backlog.len as u64, pushed - taken);
            }
        }
    }

    #[test]
    fn a_long_backlog_of_small_pieces_is_copied_into_few_blocks() {
        let mut backlog = Backlog::default();
        for _ in 0..1024 {
            backlog.push(Bytes::from_static(&[7; 1024]));
        }
        assert_eq!(backlog.len, 1 << 20);
        assert!(backlog.pieces.len() < 64 + 20, "{}", backlog.pieces.len());
    }
}
