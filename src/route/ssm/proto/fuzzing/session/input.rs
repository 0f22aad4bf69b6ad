//! What a run is made of: choices and bytes.

use bytes::Bytes;

use super::{HEADER_LEN, StreamId};

/// The fuzzer's bytes, read from the front; behind the end everything is 0.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    pub(super) fn number(&mut self) -> usize {
        usize::from(self.byte())
    }

    /// A length and so many bytes, or what there is.
    pub(super) fn bytes(&mut self) -> &'a [u8] {
        let len = self.number().min(self.0.len());
        self.0.split_off(..len).unwrap_or_default()
    }

    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }
}

/// What a program writes at a place of its stream.
pub(super) fn pattern(id: StreamId, at: usize) -> u8 {
    (at.wrapping_mul(7) ^ at >> 8) as u8 ^ id.0 as u8
}

/// Writes a byte over a message at some place, or puts bytes between header and payload, which is allowed.
pub(super) fn damaged(message: &Bytes, input: &mut Input<'_>) -> Bytes {
    let mut bytes = message.to_vec();
    let (position, value) = (input.number(), input.byte());
    if position < bytes.len() {
        bytes[position] = value;
    } else {
        let header_length = HEADER_LEN + usize::from(value) * 16 - 4;
        bytes[..4].copy_from_slice(&u32::try_from(header_length).unwrap_or_default().to_be_bytes());
        bytes.splice(HEADER_LEN..HEADER_LEN, std::iter::repeat_n(0, usize::from(value) * 16));
    }
    bytes.into()
}
