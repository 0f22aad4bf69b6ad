//! The smux version 1 frame: an 8-byte header and, for data, up to 65535 bytes.
//!
//! Source: `frame.go` of xtaci/smux 1.5.15, as vendored by session-manager-plugin and
//! amazon-ssm-agent. Both write version 1 only. Integers are little-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of a frame before its data.
pub const FRAME_HEADER_LEN: usize = 8;

/// Largest number of data bytes in one frame that a peer accepts: the length field is 16 bits wide.
pub const MAX_FRAME_DATA_LEN: usize = 65535;

const VERSION: u8 = 1;
const SYN: u8 = 0;
const FIN: u8 = 1;
const PSH: u8 = 2;
const NOP: u8 = 3;

/// Number of a stream within its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    Syn(StreamId),
    /// Closes a stream, both directions as far as its sender is concerned.
    Fin(StreamId),
    /// Data of a stream.
    Psh(StreamId, Bytes),
    /// Keepalive.
    Nop,
}

impl Frame {
    /// Appends the frame to `out`.
    ///
    /// # Panics
    /// If the data is longer than [`MAX_FRAME_DATA_LEN`].
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Syn(id) => put_header(out, SYN, 0, *id),
            Self::Fin(id) => put_header(out, FIN, 0, *id),
            Self::Psh(id, data) => {
                put_psh_header(out, *id, data.len());
                out.extend_from_slice(data);
            }
            Self::Nop => put_header(out, NOP, 0, StreamId(0)),
        }
    }

    /// Returns the bytes that the frame takes on the wire.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        match self {
            Self::Psh(_, data) => FRAME_HEADER_LEN + data.len(),
            Self::Syn(_) | Self::Fin(_) | Self::Nop => FRAME_HEADER_LEN,
        }
    }
}

/// Appends the header of a data frame, whose `len` bytes the caller appends next.
///
/// # Panics
/// If `len` is more than [`MAX_FRAME_DATA_LEN`].
pub fn put_psh_header(out: &mut BytesMut, id: StreamId, len: usize) {
    put_header(out, PSH, u16::try_from(len).expect("callers cut data to the frame size"), id);
}

fn put_header(out: &mut BytesMut, command: u8, len: u16, id: StreamId) {
    out.put_u8(VERSION);
    out.put_u8(command);
    out.put_u16_le(len);
    out.put_u32_le(id.0);
}

/// Bytes that are not smux version 1. There is no way to find the next frame after them, so the
/// session cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame of another version than 1.
    #[error("smux frame of version {0}, expected 1")]
    Version(u8),
    /// A command that version 1 does not have.
    #[error("unknown smux command {0}")]
    Command(u8),
    /// A frame without data states a length: peers would not skip it.
    #[error("smux command {command} with a length of {len}")]
    UnexpectedData {
        /// The command's number.
        command: u8,
        /// The stated length in bytes.
        len: u16,
    },
}

/// Cuts a byte stream, which comes in pieces of any size, into frames.
///
/// Data is handed out as slices of the pieces, without waiting for a frame to be complete: a frame
/// whose data comes in several pieces comes out as several [`Frame::Psh`] of the same stream. So the
/// decoder holds at most 7 bytes.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    /// The start of a header whose rest has not come yet.
    header: BytesMut,
    /// The piece that is being read.
    piece: Bytes,
    /// The stream and the bytes still missing of the data frame that is being read.
    data: Option<(StreamId, usize)>,
    error: Option<FrameError>,
}

impl FrameDecoder {
    /// Takes the next piece of the byte stream.
    ///
    /// # Panics
    /// If the last piece has not been drained with [`next_frame`](Self::next_frame).
    pub fn push(&mut self, piece: Bytes) {
        assert!(self.piece.is_empty(), "the last piece has been read to its end");
        // An empty slice keeps its buffer too.
        if self.error.is_none() && !piece.is_empty() {
            self.piece = piece;
        }
    }

    /// Returns the next frame, or `None` when the next piece is needed.
    ///
    /// # Errors
    /// See [`FrameError`]. The error is final: every further call returns it again.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.read_frame().inspect_err(|error| {
            self.error = Some(*error);
            self.piece = Bytes::new();
        })
    }

    /// Returns how many bytes of a frame's header wait for the rest of it.
    #[cfg(any(fuzzing, test))]
    pub(in super::super) fn held(&self) -> usize {
        self.header.len()
    }

    fn read_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some((id, missing)) = self.data {
            return Ok(self.read_data(id, missing));
        }
        let wanted = FRAME_HEADER_LEN - self.header.len();
        let take = wanted.min(self.piece.len());
        self.header.extend_from_slice(&self.piece.split_to(take));
        if self.header.len() < FRAME_HEADER_LEN {
            return Ok(None);
        }
        let version = self.header.get_u8();
        let command = self.header.get_u8();
        let len = self.header.get_u16_le();
        let id = StreamId(self.header.get_u32_le());
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if command != PSH && command <= NOP && len != 0 {
            return Err(FrameError::UnexpectedData { command, len });
        }
        match command {
            SYN => Ok(Some(Frame::Syn(id))),
            FIN => Ok(Some(Frame::Fin(id))),
            NOP => Ok(Some(Frame::Nop)),
            PSH if len == 0 => Ok(Some(Frame::Psh(id, Bytes::new()))),
            PSH => {
                self.data = Some((id, usize::from(len)));
                Ok(self.read_data(id, usize::from(len)))
            }
            other => Err(FrameError::Command(other)),
        }
    }

    fn read_data(&mut self, id: StreamId, missing: usize) -> Option<Frame> {
        if self.piece.is_empty() {
            return None;
        }
        let data = self.piece.split_to(missing.min(self.piece.len()));
        let missing = missing - data.len();
        self.data = (missing > 0).then_some((id, missing));
        Some(Frame::Psh(id, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(frames: &[Frame]) -> Bytes {
        let mut out = BytesMut::new();
        for frame in frames {
            let before = out.len();
            frame.encode(&mut out);
            assert_eq!(out.len() - before, frame.encoded_len());
        }
        out.freeze()
    }

    fn decode(pieces: impl IntoIterator<Item = Bytes>) -> Result<Vec<Frame>, FrameError> {
        let mut decoder = FrameDecoder::default();
        let mut frames = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    /// Joins what the decoder handed out in parts.
    fn joined(frames: Vec<Frame>) -> Vec<Frame> {
        let mut out: Vec<Frame> = Vec::new();
        for frame in frames {
            match (out.last_mut(), frame) {
                (Some(Frame::Psh(last, head)), Frame::Psh(id, tail)) if *last == id => {
                    *head = [head.as_ref(), tail.as_ref()].concat().into();
                }
                (_, frame) => out.push(frame),
            }
        }
        out
    }

    #[test]
    fn frames_have_the_bytes_of_the_reference() {
        let frames =
            [Frame::Syn(StreamId(3)), Frame::Psh(StreamId(3), "hello".into()), Frame::Fin(StreamId(3)), Frame::Nop];
        let expected = [
            1, 0, 0, 0, 3, 0, 0, 0, // SYN
            1, 2, 5, 0, 3, 0, 0, 0, b'h', b'e', b'l', b'l', b'o', // PSH
            1, 1, 0, 0, 3, 0, 0, 0, // FIN
            1, 3, 0, 0, 0, 0, 0, 0, // NOP
        ];
        assert_eq!(encode(&frames).as_ref(), expected);
        assert_eq!(decode([Bytes::copy_from_slice(&expected)]).unwrap(), frames);
    }

    #[test]
    fn refuses_other_versions_commands_and_stray_lengths() {
        let error = |bytes: [u8; 8]| decode([Bytes::copy_from_slice(&bytes)]).unwrap_err();
        assert_eq!(error([2, 0, 0, 0, 3, 0, 0, 0]), FrameError::Version(2));
        assert_eq!(error([1, 4, 8, 0, 3, 0, 0, 0]), FrameError::Command(4));
        assert_eq!(error([1, 1, 9, 0, 3, 0, 0, 0]), FrameError::UnexpectedData { command: 1, len: 9 });
    }

    #[test]
    fn an_error_is_final() {
        let mut decoder = FrameDecoder::default();
        let piece = Bytes::from(vec![9; 20]);
        decoder.push(piece.clone());
        assert_eq!(decoder.next_frame(), Err(FrameError::Version(9)));
        assert!(piece.is_unique(), "what follows an error is not kept");
        decoder.push(encode(&[Frame::Nop]));
        assert_eq!(decoder.next_frame(), Err(FrameError::Version(9)));
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let id = any::<u32>().prop_map(StreamId);
        prop_oneof![
            id.clone().prop_map(Frame::Syn),
            id.clone().prop_map(Frame::Fin),
            (id, proptest::collection::vec(any::<u8>(), 0..2000)).prop_map(|(id, data)| Frame::Psh(id, data.into())),
            Just(Frame::Nop),
        ]
    }

    proptest! {
        #[test]
        fn any_cut_of_the_byte_stream_gives_the_same_frames(
            frames in proptest::collection::vec(any_frame(), 0..12),
            cuts in proptest::collection::vec(1_usize..700, 0..40),
        ) {
            let mut bytes = encode(&frames);
            let mut pieces = Vec::new();
            for cut in cuts {
                pieces.push(bytes.split_to(cut.min(bytes.len())));
            }
            pieces.push(bytes);
            prop_assert_eq!(joined(decode(pieces).unwrap()), joined(frames));
        }

        #[test]
        fn one_byte_pieces_give_the_same_frames(frames in proptest::collection::vec(any_frame(), 0..4)) {
            let bytes = encode(&frames);
            let pieces = (0..bytes.len()).map(|i| bytes.slice(i..=i));
            prop_assert_eq!(joined(decode(pieces).unwrap()), joined(frames));
        }

        #[test]
        fn never_panics_on_garbage(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let _outcome = decode(pieces.into_iter().map(Bytes::from));
        }
    }
}
