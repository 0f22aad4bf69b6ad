//! Checks on what a client sends that a real agent would let pass, or would punish without a word.
//!
//! Every finding is a sentence without its subject: "sent an empty message".

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use crate::route::ssm::proto::{
    message::{Acknowledgement, Flags, HEADER_LEN, HEADER_LENGTH_FIELD, Header, MessageId, MessageType, PayloadType},
    smux::frame::Frame,
};

/// Messages whose headers are remembered, to compare them with later copies.
const MAX_REMEMBERED: usize = 16_384;

/// Memory of what a client has sent.
#[derive(Debug, Default)]
pub(super) struct Audit {
    /// Hash of the header, which holds the payload's digest, by sequence number.
    seen: BTreeMap<i64, u64>,
    next_new: i64,
    gaps_expected: bool,
    opened: BTreeSet<u32>,
    finished: BTreeSet<u32>,
}

impl Audit {
    /// Gaps in the sequence are no longer the client's fault.
    pub(super) fn expect_gaps(&mut self) {
        self.gaps_expected = true;
    }

    /// Checks a sequenced message.
    pub(super) fn input(&mut self, header: &Header, bytes: &[u8]) -> Option<String> {
        let number = header.sequence_number;
        let mut hasher = DefaultHasher::new();
        bytes.get(..HEADER_LEN).unwrap_or(bytes).hash(&mut hasher);
        let hash = hasher.finish();
        if let Some(first) = self.seen.get(&number) {
            return (*first != hash).then(|| format!("sent two different messages with number {number}"));
        }
        self.seen.insert(number, hash);
        if self.seen.len() > MAX_REMEMBERED {
            self.seen.pop_first();
        }
        if header.flags != Flags::NONE {
            return Some(format!("sent message {number} with flags {}", header.flags.0));
        }
        let expected = self.next_new;
        self.next_new = expected.max(number.saturating_add(1));
        (number > expected && !self.gaps_expected).then(|| format!("sent number {number} where {expected} is due"))
    }

    /// Checks a smux frame.
    pub(super) fn frame(&mut self, frame: &Frame) -> Option<String> {
        match frame {
            Frame::Nop => None,
            Frame::Syn(id) if !self.opened.insert(id.0) => Some(format!("opened stream {id} twice")),
            Frame::Syn(_) => None,
            Frame::Fin(id) | Frame::Psh(id, _) if !self.opened.contains(&id.0) => {
                Some(format!("used stream {id} without opening it"))
            }
            Frame::Fin(id) if !self.finished.insert(id.0) => Some(format!("closed stream {id} twice")),
            Frame::Psh(id, _) if self.finished.contains(&id.0) => {
                Some(format!("sent data on stream {id} after closing it"))
            }
            Frame::Fin(_) | Frame::Psh(..) => None,
        }
    }
}

/// Checks the fields that decoding does not look at.
pub(super) fn raw_header(bytes: &[u8]) -> Vec<String> {
    let u32_at =
        |offset: usize| -> Option<u32> { Some(u32::from_be_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?)) };
    let mut faults = Vec::new();
    if u32_at(0) != Some(HEADER_LENGTH_FIELD) {
        faults.push(format!("sent a message with header length {:?}, not {HEADER_LENGTH_FIELD}", u32_at(0)));
    }
    if u32_at(36) != Some(1) {
        faults.push(format!("sent a message of schema version {:?}", u32_at(36)));
    }
    if bytes.len() <= HEADER_LEN {
        faults.push("sent a message without payload".to_owned());
    } else if u32_at(116).map(|len| len as usize) != Some(bytes.len() - HEADER_LEN) {
        faults.push(format!("stated a payload of {:?} bytes, which has {}", u32_at(116), bytes.len() - HEADER_LEN));
    }
    if bytes.get(4..36).is_some_and(|name| name.contains(&0)) {
        faults.push("padded a message type with NUL".to_owned());
    }
    faults
}

/// Checks an acknowledgement of the message whose id is `id`, if there is one.
pub(super) fn acknowledgement(header: &Header, ack: &Acknowledgement, sent: i64, id: MessageId) -> Option<String> {
    let number = ack.acknowledged_message_sequence_number;
    let id = id.to_string();
    if header.flags != Flags::SYN_FIN || header.sequence_number != 0 || header.payload_type != PayloadType::None {
        return Some(format!(
            "sent an acknowledgement with flags {}, number {} and payload type {}",
            header.flags.0,
            header.sequence_number,
            header.payload_type.code()
        ));
    }
    if !(0..sent).contains(&number) {
        return Some(format!("acknowledged number {number}, which was never sent"));
    }
    if ack.acknowledged_message_id != id {
        return Some(format!("acknowledged number {number} with id {}, which is {id}", ack.acknowledged_message_id));
    }
    if ack.acknowledged_message_type != MessageType::OutputStreamData.as_str() {
        return Some(format!("acknowledged number {number} as `{}`", ack.acknowledged_message_type));
    }
    (!ack.is_sequential_message).then(|| format!("acknowledged number {number} as not sequential"))
}
