//! The data channel message: a fixed header and a payload, one per WebSocket message.
//!
//! Invariants: decoding never panics and never allocates more than the type name of an unknown
//! message; a decoded payload is a slice of the bytes that were handed in. What is in a payload is
//! not this module's business.
//!
//! Source of every offset and value: `messageparser.go` and `clientmessage.go` of
//! session-manager-plugin 1.2.677.0, and `agentmessage.go` of amazon-ssm-agent 3.3.1142.0.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{random::SplitMix64, util::peer_text::PeerText};

/// Bytes of a message before its payload, as clients and agents write it.
pub const HEADER_LEN: usize = 120;

/// `HeaderLength` as clients and agents write it: the offset of `PayloadLength`.
pub const HEADER_LENGTH_FIELD: u32 = 116;

/// `HeaderLength` of messages that the service makes itself: they have no `PayloadType`.
///
/// Observed on the service by cyberax/gimlet.
pub const SERVICE_HEADER_LENGTH_FIELD: u32 = 112;

const TYPE_OFFSET: usize = 4;
const TYPE_LEN: usize = 32;
const SCHEMA_OFFSET: usize = 36;
const CREATED_OFFSET: usize = 40;
const SEQUENCE_OFFSET: usize = 48;
const FLAGS_OFFSET: usize = 56;
const ID_OFFSET: usize = 64;
const DIGEST_OFFSET: usize = 80;
const DIGEST_LEN: usize = 32;
const PAYLOAD_TYPE_OFFSET: usize = 112;
const PAYLOAD_LENGTH_OFFSET: usize = 116;
const SCHEMA_VERSION: u32 = 1;

/// What a message is, from its `MessageType` field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageType {
    /// `input_stream_data`: sequenced, from the client to the agent.
    InputStreamData,
    /// `output_stream_data`: sequenced, from the agent to the client.
    OutputStreamData,
    /// `acknowledge`: acknowledges one sequenced message; not sequenced itself.
    Acknowledge,
    /// `channel_closed`: the service says that the session is over.
    ChannelClosed,
    /// `start_publication`: the service says that the other side listens.
    StartPublication,
    /// `pause_publication`: the service asks for a pause.
    PausePublication,
    /// Any other name: logged and ignored.
    Other(Box<str>),
}

impl MessageType {
    /// Returns the name on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::InputStreamData => "input_stream_data",
            Self::OutputStreamData => "output_stream_data",
            Self::Acknowledge => "acknowledge",
            Self::ChannelClosed => "channel_closed",
            Self::StartPublication => "start_publication",
            Self::PausePublication => "pause_publication",
            Self::Other(name) => name,
        }
    }

    /// Reads the padded field: NUL, then white space, is cut at both ends, as both peers do.
    fn parse(field: &[u8]) -> Self {
        // Nearly every message is one of these two, padded as agents pad.
        match field {
            b"output_stream_data              " => return Self::OutputStreamData,
            b"acknowledge                     " => return Self::Acknowledge,
            _ => {}
        }
        let text = String::from_utf8_lossy(field);
        let name = text.trim_matches('\0').trim();
        match name {
            "input_stream_data" => Self::InputStreamData,
            "output_stream_data" => Self::OutputStreamData,
            "acknowledge" => Self::Acknowledge,
            "channel_closed" => Self::ChannelClosed,
            "start_publication" => Self::StartPublication,
            "pause_publication" => Self::PausePublication,
            other => Self::Other(other.into()),
        }
    }

    /// Whether the service makes messages of this type with unreliable digests and lengths.
    fn is_publication(&self) -> bool {
        matches!(self, Self::StartPublication | Self::PausePublication)
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        PeerText::new(self.as_str()).fmt(f)
    }
}

/// What the payload of a sequenced message is: `PayloadType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadType {
    /// 0: no payload type; acknowledgements.
    None,
    /// 1: forwarded bytes.
    Output,
    /// 5: the agent's handshake request.
    HandshakeRequest,
    /// 6: the client's handshake response.
    HandshakeResponse,
    /// 7: the agent's end of the handshake.
    HandshakeComplete,
    /// 8: the agent's encryption challenge (KMS sessions only).
    EncChallengeRequest,
    /// 9: the answer to an encryption challenge (KMS sessions only).
    EncChallengeResponse,
    /// 10: a flag, see [`Flag`](super::handshake::Flag).
    Flag,
    /// Any other number: acknowledged and ignored.
    Other(u32),
}

impl PayloadType {
    /// Returns the number on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Output => 1,
            Self::HandshakeRequest => 5,
            Self::HandshakeResponse => 6,
            Self::HandshakeComplete => 7,
            Self::EncChallengeRequest => 8,
            Self::EncChallengeResponse => 9,
            Self::Flag => 10,
            Self::Other(code) => code,
        }
    }

    /// Reads a number from the wire.
    #[must_use]
    pub fn from_code(code: u32) -> Self {
        match code {
            0 => Self::None,
            1 => Self::Output,
            5 => Self::HandshakeRequest,
            6 => Self::HandshakeResponse,
            7 => Self::HandshakeComplete,
            8 => Self::EncChallengeRequest,
            9 => Self::EncChallengeResponse,
            10 => Self::Flag,
            other => Self::Other(other),
        }
    }
}

/// A message's UUID, in logical byte order (the order in which it is printed).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId(pub [u8; 16]);

impl MessageId {
    /// Reads the field of the header, whose halves are swapped.
    fn from_wire(field: [u8; 16]) -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&field[8..]);
        id[8..].copy_from_slice(&field[..8]);
        Self(id)
    }

    /// Returns the field of the header: logical bytes 8 to 16, then 0 to 8.
    fn to_wire(self) -> [u8; 16] {
        // Swapping halves is its own inverse.
        Self::from_wire(self.0).0
    }
}

/// Writes the hyphenated, lower-case form that acknowledgements carry.
impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Uuid::from_bytes(self.0).hyphenated().encode_lower(&mut Uuid::encode_buffer()))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Makes message ids: version 4 UUIDs from a seeded generator.
///
/// The ids only have to be unique within a session; the seed comes from outside, which lets a test
/// replay a session byte for byte.
#[derive(Debug, Clone)]
pub struct MessageIds {
    random: SplitMix64,
}

impl MessageIds {
    /// Creates a generator. Two generators with one seed make the same ids.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { random: SplitMix64::new(seed) }
    }

    /// Returns the next id.
    pub fn next_id(&mut self) -> MessageId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.random.next_u64().to_be_bytes());
        id[8..].copy_from_slice(&self.random.next_u64().to_be_bytes());
        id[6] = (id[6] & 0x0f) | 0x40;
        id[8] = (id[8] & 0x3f) | 0x80;
        MessageId(id)
    }
}

/// Flags of a message: bit 0 is SYN, bit 1 is FIN. Nobody reads them; they are written as the
/// official programs write them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u64);

impl Flags {
    /// No flag: data messages.
    pub const NONE: Self = Self(0);
    /// SYN: the agent's first sequenced message.
    pub const SYN: Self = Self(1);
    /// SYN and FIN: acknowledgements and state messages.
    pub const SYN_FIN: Self = Self(3);
}

/// The fields of a message but its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the message is.
    pub message_type: MessageType,
    /// Milliseconds since the Unix epoch at which the message was made; never 0.
    pub created_ms: u64,
    /// Position in the sender's sequence, from 0; 0 in acknowledgements.
    pub sequence_number: i64,
    /// SYN and FIN.
    pub flags: Flags,
    /// The message's id, repeated by its acknowledgement.
    pub id: MessageId,
    /// What the payload is; [`PayloadType::None`] when a short header has no such field.
    pub payload_type: PayloadType,
}

impl Header {
    /// Makes a message of the header and a payload, in one allocation.
    ///
    /// # Panics
    /// If the payload is longer than `u32::MAX` bytes.
    #[must_use]
    pub fn encode(&self, payload: &[u8]) -> Bytes {
        let mut message = BytesMut::with_capacity(HEADER_LEN + payload.len());
        message.resize(HEADER_LEN, 0);
        message.extend_from_slice(payload);
        self.seal(message)
    }

    /// Writes the header over the first [`HEADER_LEN`] bytes of `message`, whose rest is the
    /// payload: no byte of it is copied.
    ///
    /// # Panics
    /// If `message` is shorter than [`HEADER_LEN`] or its payload longer than `u32::MAX` bytes.
    #[must_use]
    pub fn seal(&self, mut message: BytesMut) -> Bytes {
        let (header, payload) = message.split_at_mut(HEADER_LEN);
        let payload_len = u32::try_from(payload.len()).expect("a payload is at most a few MiB");
        let name = self.message_type.as_str().as_bytes();
        let name = &name[..name.len().min(TYPE_LEN)];
        header[..TYPE_OFFSET].copy_from_slice(&HEADER_LENGTH_FIELD.to_be_bytes());
        header[TYPE_OFFSET..SCHEMA_OFFSET].fill(b' ');
        header[TYPE_OFFSET..TYPE_OFFSET + name.len()].copy_from_slice(name);
        header[SCHEMA_OFFSET..CREATED_OFFSET].copy_from_slice(&SCHEMA_VERSION.to_be_bytes());
        header[CREATED_OFFSET..SEQUENCE_OFFSET].copy_from_slice(&self.created_ms.to_be_bytes());
        header[SEQUENCE_OFFSET..FLAGS_OFFSET].copy_from_slice(&self.sequence_number.to_be_bytes());
        header[FLAGS_OFFSET..ID_OFFSET].copy_from_slice(&self.flags.0.to_be_bytes());
        header[ID_OFFSET..DIGEST_OFFSET].copy_from_slice(&self.id.to_wire());
        header[DIGEST_OFFSET..PAYLOAD_TYPE_OFFSET].copy_from_slice(&Sha256::digest(payload));
        header[PAYLOAD_TYPE_OFFSET..PAYLOAD_LENGTH_OFFSET].copy_from_slice(&self.payload_type.code().to_be_bytes());
        header[PAYLOAD_LENGTH_OFFSET..].copy_from_slice(&payload_len.to_be_bytes());
        message.freeze()
    }
}

/// Why bytes are not an acceptable message. Such a message is dropped and not acknowledged, so that
/// its sender repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends inside its header.
    #[error("message of {len} bytes is shorter than its header")]
    Truncated {
        /// Bytes of the message.
        len: usize,
    },
    /// `HeaderLength` is too small for the fields before it, or points behind the message.
    #[error("header length {header_length} does not fit a message of {len} bytes")]
    HeaderLength {
        /// The field's value.
        header_length: u32,
        /// Bytes of the message.
        len: usize,
    },
    /// `MessageType` is empty.
    #[error("message has no type")]
    NoType,
    /// `CreatedDate` is 0.
    #[error("message has no creation date")]
    NoCreatedDate,
    /// The payload does not have the digest that the header states.
    #[error("payload digest does not match")]
    Digest,
}

/// A decoded message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The header's fields.
    pub header: Header,
    /// The payload: everything behind the header, whatever `PayloadLength` says.
    pub payload: Bytes,
}

impl Message {
    /// Reads one message: any `HeaderLength` from 112 that fits is accepted, both paddings of the
    /// type, and publication messages whatever their digest and date.
    ///
    /// # Errors
    /// See [`DecodeError`]; every variant means: drop the message and do not acknowledge it.
    pub fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let len = bytes.len();
        let header_length = u32::from_be_bytes(field(&bytes, 0).ok_or(DecodeError::Truncated { len })?);
        let payload_offset = usize::try_from(header_length)
            .ok()
            .and_then(|length| length.checked_add(4))
            .filter(|_| header_length >= SERVICE_HEADER_LENGTH_FIELD)
            .ok_or(DecodeError::HeaderLength { header_length, len })?;
        if payload_offset > len {
            return Err(if len < HEADER_LEN - 4 {
                DecodeError::Truncated { len }
            } else {
                DecodeError::HeaderLength { header_length, len }
            });
        }
        let truncated = DecodeError::Truncated { len };
        let message_type = MessageType::parse(&bytes[TYPE_OFFSET..TYPE_OFFSET + TYPE_LEN]);
        let created_ms = u64::from_be_bytes(field(&bytes, CREATED_OFFSET).ok_or(truncated)?);
        let sequence_number = i64::from_be_bytes(field(&bytes, SEQUENCE_OFFSET).ok_or(truncated)?);
        let flags = Flags(u64::from_be_bytes(field(&bytes, FLAGS_OFFSET).ok_or(truncated)?));
        let id = MessageId::from_wire(field(&bytes, ID_OFFSET).ok_or(truncated)?);
        let digest: [u8; DIGEST_LEN] = field(&bytes, DIGEST_OFFSET).ok_or(truncated)?;
        let payload_type = if header_length >= HEADER_LENGTH_FIELD {
            PayloadType::from_code(u32::from_be_bytes(field(&bytes, PAYLOAD_TYPE_OFFSET).ok_or(truncated)?))
        } else {
            PayloadType::None
        };
        bytes.advance(payload_offset);
        let message = Self {
            header: Header { message_type, created_ms, sequence_number, flags, id, payload_type },
            payload: bytes,
        };
        message.check(&digest)?;
        Ok(message)
    }

    fn check(&self, digest: &[u8; DIGEST_LEN]) -> Result<(), DecodeError> {
        if self.header.message_type.is_publication() {
            return Ok(());
        }
        if self.header.message_type.as_str().is_empty() {
            return Err(DecodeError::NoType);
        }
        if self.header.created_ms == 0 {
            return Err(DecodeError::NoCreatedDate);
        }
        if !self.payload.is_empty() && Sha256::digest(&self.payload).as_slice() != digest {
            return Err(DecodeError::Digest);
        }
        Ok(())
    }
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset + N)?.try_into().ok()
}

/// Room for the payload of an acknowledgement, whatever it says, in bytes.
const ACKNOWLEDGEMENT_LEN: usize = 224;

/// The payload of an `acknowledge` message.
///
/// Source: `AcknowledgeContent` in `clientmessage.go` of session-manager-plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Acknowledgement {
    /// `MessageType` of the acknowledged message.
    pub acknowledged_message_type: String,
    /// Id of the acknowledged message, hyphenated and in lower case.
    pub acknowledged_message_id: String,
    /// Sequence number of the acknowledged message.
    pub acknowledged_message_sequence_number: i64,
    /// Always true.
    pub is_sequential_message: bool,
}

impl Acknowledgement {
    /// Makes the message that acknowledges `acknowledged`.
    #[must_use]
    pub fn encode(acknowledged: &Header, id: MessageId, created_ms: u64) -> Bytes {
        // There is one for each message of a download: it is written in place.
        let mut message = BytesMut::with_capacity(HEADER_LEN + ACKNOWLEDGEMENT_LEN);
        message.resize(HEADER_LEN, 0);
        message.extend_from_slice(br#"{"AcknowledgedMessageType":""#);
        message.extend_from_slice(acknowledged.message_type.as_str().as_bytes());
        message.extend_from_slice(br#"","AcknowledgedMessageId":""#);
        let mut id_text = Uuid::encode_buffer();
        message
            .extend_from_slice(Uuid::from_bytes(acknowledged.id.0).hyphenated().encode_lower(&mut id_text).as_bytes());
        message.extend_from_slice(br#"","AcknowledgedMessageSequenceNumber":"#);
        message.extend_from_slice(itoa::Buffer::new().format(acknowledged.sequence_number).as_bytes());
        message.extend_from_slice(br#","IsSequentialMessage":true}"#);
        let header = Header {
            message_type: MessageType::Acknowledge,
            created_ms,
            sequence_number: 0,
            flags: Flags::SYN_FIN,
            id,
            payload_type: PayloadType::None,
        };
        header.seal(message)
    }

    /// Reads the payload of an `acknowledge` message.
    ///
    /// # Errors
    /// If the payload is not the JSON object described by this type.
    pub fn decode(payload: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(payload)
    }
}

/// The payload of a `channel_closed` message, read leniently: whatever it holds, the session is over.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ChannelClosed {
    /// The session that ended.
    pub session_id: PeerText,
    /// Why it ended, as text for people; often empty.
    pub output: PeerText,
}

impl ChannelClosed {
    /// Reads the payload of a `channel_closed` message; what cannot be read is empty.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Self {
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(payload) else {
            return Self::default();
        };
        let text = |key: &str| value.get(key).and_then(|v| v.as_str()).map(PeerText::new).unwrap_or_default();
        Self { session_id: text("SessionId"), output: text("Output") }
    }
}

#[cfg(test)]
mod tests;
