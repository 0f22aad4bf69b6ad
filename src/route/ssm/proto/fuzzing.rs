//! What has to hold whatever a peer sends: the bodies of the fuzz targets `message`, `smux` and `handshake`,
//! and of `session` in its own file.
//!
//! Each function takes the fuzzer's bytes and panics if something does not hold. They are built for the
//! fuzzer and for unit tests only.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use super::{
    handshake::{
        self, ACTION_FAILED, ACTION_SUCCESS, ACTION_UNSUPPORTED, Flag, HandshakeComplete, HandshakeError,
        HandshakeRequest, HandshakeResponse, Version,
    },
    message::{Acknowledgement, ChannelClosed, DecodeError, HEADER_LENGTH_FIELD, Message, MessageId, MessageType},
    smux::frame::{FRAME_HEADER_LEN, Frame, FrameDecoder, FrameError, MAX_FRAME_DATA_LEN, StreamId},
};

mod session;

pub use session::session;

/// Counts the bytes of handed-in buffers that somebody still holds, be it by a slice of one byte.
#[derive(Debug, Clone, Default)]
struct Pinned(Arc<AtomicUsize>);

struct Lease {
    data: Vec<u8>,
    total: Arc<AtomicUsize>,
}

impl Pinned {
    fn lend(&self, data: &[u8]) -> Bytes {
        self.0.fetch_add(data.len(), Ordering::Relaxed);
        Bytes::from_owner(Lease { data: data.to_vec(), total: Arc::clone(&self.0) })
    }

    fn total(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.total.fetch_sub(self.data.len(), Ordering::Relaxed);
    }
}

/// Decodes the bytes as one message, as they are and once more with the digest that their payload has: no
/// fuzzer finds a digest.
pub fn message(data: &[u8]) {
    let _outcome = decode_message(data);
    let header_length = data.first_chunk().map_or(0, |field| u32::from_be_bytes(*field));
    let payload = data.get((header_length as usize).saturating_add(4)..);
    if let Some(payload) = payload.filter(|_| header_length >= 112) {
        let mut bytes = data.to_vec();
        bytes[80..112].copy_from_slice(&Sha256::digest(payload));
        assert_ne!(decode_message(&bytes), Err(DecodeError::Digest));
    }
}

#[expect(clippy::unwrap_in_result, reason = "a panic is how a target says that something does not hold")]
fn decode_message(data: &[u8]) -> Result<(), DecodeError> {
    let bytes = Bytes::copy_from_slice(data);
    let message = Message::decode(bytes.clone())?;
    let header_length = u32::from_be_bytes(*data.first_chunk().expect("a message has a header"));
    let behind_header = &bytes[header_length as usize + 4..];
    assert_eq!(message.payload, behind_header);
    assert_eq!(message.payload.as_ptr(), behind_header.as_ptr(), "the payload is not copied");
    assert!(header_length >= HEADER_LENGTH_FIELD || message.header.payload_type.code() == 0);
    // A name that is not ASCII or has NUL within is not written back as it was; such types are ignored anyway.
    let plain_name = data[4..36].is_ascii() && !message.header.message_type.as_str().contains('\0');
    if plain_name && message.header.created_ms != 0 {
        let encoded = message.header.encode(&message.payload);
        let again = Message::decode(encoded.clone()).expect("what this program writes can be read");
        assert_eq!(again, message);
        assert_eq!(again.header.encode(&again.payload), encoded);
    }
    if matches!(message.header.message_type, MessageType::OutputStreamData) {
        let acknowledgement = Acknowledgement::encode(&message.header, MessageId([7; 16]), 1);
        let decoded = Message::decode(acknowledgement).expect("acknowledgements can be read");
        let content = Acknowledgement::decode(&decoded.payload).expect("acknowledgements can be read");
        assert_eq!(content.acknowledged_message_sequence_number, message.header.sequence_number);
        assert_eq!(content.acknowledged_message_id, message.header.id.to_string());
        assert_eq!(content.acknowledged_message_type, "output_stream_data");
    }
    read_service_payload(&message.payload);
    Ok(())
}

/// Reads the payloads that are no sequenced messages' and no longer when read than on the wire.
fn read_service_payload(payload: &[u8]) {
    let ChannelClosed { session_id, output } = ChannelClosed::decode(payload);
    assert!(session_id.len() + output.len() <= payload.len());
    if let Ok(content) = Acknowledgement::decode(payload) {
        assert!(content.acknowledged_message_type.len() + content.acknowledged_message_id.len() <= payload.len());
    }
}

/// Cuts a byte stream into frames: in one piece, byte by byte, and at the places that the first bytes say. All
/// have to give what a reader of the whole gives.
pub fn smux(data: &[u8]) {
    let Some((&count, rest)) = data.split_first() else { return };
    let (cuts, stream) = rest.split_at(rest.len().min(usize::from(count % 32)));
    let expected = read_whole(stream);
    let cuts: Vec<usize> = cuts.iter().map(|cut| usize::from(*cut)).collect();
    for cuts in [cuts, Vec::new(), vec![1; stream.len()]] {
        assert_eq!(read_pieces(stream, &cuts), expected, "cut at {cuts:?}");
    }
    let is_long = |frame: &&Frame| frame.encoded_len() - FRAME_HEADER_LEN > MAX_FRAME_DATA_LEN;
    for frame in expected.0.iter().filter(|frame| !is_long(frame)) {
        let mut encoded = BytesMut::new();
        frame.encode(&mut encoded);
        assert_eq!(encoded.len(), frame.encoded_len());
        assert_eq!(read_whole(&encoded), (vec![frame.clone()], Ok(0)));
    }
}

/// Frames, with the data of neighbours of one stream joined, and what follows them: so many bytes of the next
/// header, or an error.
type Frames = (Vec<Frame>, Result<usize, FrameError>);

/// A second reader, which has the whole stream at hand.
fn read_whole(stream: &[u8]) -> Frames {
    let mut frames = Vec::new();
    let mut rest = stream;
    while let Some((header, behind)) = rest.split_at_checked(FRAME_HEADER_LEN) {
        let [version, command, len_low, len_high, id @ ..] = header else { break };
        let len = u16::from_le_bytes([*len_low, *len_high]);
        let id = StreamId(id.iter().rev().fold(0, |id, byte| id << 8 | u32::from(*byte)));
        rest = behind;
        let error = match (version, command) {
            (1, 2) => {
                let (data, behind) = rest.split_at(rest.len().min(usize::from(len)));
                rest = behind;
                if !data.is_empty() || len == 0 {
                    join(&mut frames, Frame::Psh(id, Bytes::copy_from_slice(data)));
                }
                continue;
            }
            (1, command @ (0 | 1 | 3)) if len != 0 => FrameError::UnexpectedData { command: *command, len },
            (1, 0) => {
                frames.push(Frame::Syn(id));
                continue;
            }
            (1, 1) => {
                frames.push(Frame::Fin(id));
                continue;
            }
            (1, 3) => {
                frames.push(Frame::Nop);
                continue;
            }
            (1, command) => FrameError::Command(*command),
            (version, _) => FrameError::Version(*version),
        };
        return (frames, Err(error));
    }
    (frames, Ok(rest.len()))
}

fn read_pieces(stream: &[u8], cuts: &[usize]) -> Frames {
    let pinned = Pinned::default();
    let mut decoder = FrameDecoder::default();
    let mut frames = Vec::new();
    let mut rest = stream;
    let mut cuts = cuts.iter();
    let end = loop {
        let cut = cuts.next().map_or(rest.len(), |cut| rest.len().min(*cut));
        let (piece, behind) = rest.split_at(cut);
        rest = behind;
        decoder.push(pinned.lend(piece));
        let outcome = loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    let Frame::Psh(id, data) = frame else {
                        frames.push(frame);
                        continue;
                    };
                    join(&mut frames, Frame::Psh(id, Bytes::copy_from_slice(&data)));
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        assert_eq!(pinned.total(), 0, "the decoder keeps no piece");
        assert!(decoder.held() < FRAME_HEADER_LEN);
        if let Some(error) = outcome {
            decoder.push(pinned.lend(&[1, 3, 0, 0, 0, 0, 0, 0]));
            assert_eq!(decoder.next_frame(), Err(error), "an error is final");
            break Err(error);
        }
        if rest.is_empty() {
            break Ok(decoder.held());
        }
    };
    (frames, end)
}

fn join(frames: &mut Vec<Frame>, frame: Frame) {
    match (frames.last_mut(), frame) {
        (Some(Frame::Psh(last, head)), Frame::Psh(id, tail)) if *last == id && !head.is_empty() && !tail.is_empty() => {
            *head = [head.as_ref(), tail.as_ref()].concat().into();
        }
        (_, frame) => frames.push(frame),
    }
}

/// Reads the bytes as every payload that a handshake or the end of a session has.
pub fn handshake(data: &[u8]) {
    read_service_payload(data);
    if let Some(flag) = Flag::decode(data) {
        assert_eq!(flag.encode(), data);
    }
    if let Ok(complete) = serde_json::from_slice::<HandshakeComplete>(data) {
        assert!(complete.customer_message.len() <= data.len());
    }
    if let Some(version) = std::str::from_utf8(data).ok().and_then(Version::parse) {
        assert_eq!(Version::parse(&version.to_string()), Some(version));
    }
    respond(data);
}

/// Longest response to any request, in bytes.
const MAX_RESPONSE_LEN: usize = 64 << 10;

fn respond(payload: &[u8]) {
    let (response, agreement) = handshake::respond(payload);
    let json = serde_json::to_vec(&response).expect("a response can be written");
    assert_eq!(serde_json::from_slice::<HandshakeResponse>(&json).ok().as_ref(), Some(&response));
    assert!(json.len() <= MAX_RESPONSE_LEN, "{} bytes for {}", json.len(), payload.len());
    assert!(agreement.as_ref().err().is_none_or(|error| error.to_string().len() <= MAX_RESPONSE_LEN));
    for action in &response.processed_client_actions {
        assert!(matches!(action.action_status, ACTION_SUCCESS | ACTION_FAILED | ACTION_UNSUPPORTED));
        assert_eq!(action.error.is_empty(), action.action_status == ACTION_SUCCESS);
    }
    if matches!(agreement, Err(HandshakeError::Malformed(_))) {
        assert!(response.errors.is_some() && response.processed_client_actions.is_empty());
        return;
    }
    assert_eq!(response.errors, None);
    let request: HandshakeRequest = serde_json::from_slice(payload).expect("the request has been read");
    let requested = request.requested_client_actions.iter().map(|action| &action.action_type);
    assert!(response.processed_client_actions.iter().map(|action| &action.action_type).eq(requested));
    let all_done = response.processed_client_actions.iter().all(|action| action.action_status == ACTION_SUCCESS);
    if let Ok(agreement) = agreement {
        assert!(all_done && !response.processed_client_actions.is_empty());
        assert_eq!(Some(agreement.agent_version), Version::parse(&request.agent_version));
        assert!(agreement.agent_version > Version::LAST_AGENT_WITHOUT_MUX);
        assert_eq!(agreement.keepalive, agreement.agent_version <= Version::LAST_AGENT_WITH_KEEPALIVE);
    }
}
