//! What has come for a local program and it has not taken yet.
//!
//! Invariant: bytes leave in the order in which they came.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes, BytesMut};

/// Pieces that go into one vectored write.
pub const MAX_SLICES: usize = 64;

/// Bytes in a backlog from which on its pieces are copied together.
///
/// A piece is a slice of what was read from the transport, which it keeps in memory whole. That is
/// well for the moment that a healthy program takes, but not for what a slow one leaves lying.
const COPY_THRESHOLD: usize = 64 << 10;

/// Size of the blocks that a long backlog is copied into, in bytes.
const COPY_BLOCK: usize = 64 << 10;

/// Bytes that a program has not taken yet, in order.
#[derive(Debug, Default)]
pub struct Backlog {
    pieces: VecDeque<Bytes>,
    /// What comes after the pieces, being copied together.
    tail: BytesMut,
    len: usize,
}

impl Backlog {
    /// Returns how many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds what has come.
    pub fn push(&mut self, data: Bytes) {
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
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(self.pieces.iter().map(|piece| &piece[..]).chain(tail)) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// Takes note that so many bytes have gone.
    pub fn advance(&mut self, mut len: usize) {
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
