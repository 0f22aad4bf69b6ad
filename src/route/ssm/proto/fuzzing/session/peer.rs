//! What the peer of a fuzzed session does: the messages that it makes, and the account that is kept of them.

use bytes::Bytes;

use super::{Acknowledgement, Flag, Flags, Frame, Header, Input, MAX_AHEAD, Message, MessageType, PayloadType, World};

impl World {
    pub(super) fn header(&mut self, message_type: MessageType, number: i64, payload_type: PayloadType) -> Header {
        Header {
            message_type,
            created_ms: self.created_ms,
            sequence_number: number,
            flags: Flags::NONE,
            id: self.ids.next_id(),
            payload_type,
        }
    }

    pub(super) fn message(
        &mut self,
        message_type: MessageType,
        number: i64,
        payload_type: PayloadType,
        payload: &[u8],
    ) -> Bytes {
        let message = self.header(message_type, number, payload_type).encode(payload);
        self.sent.push(message.clone());
        message
    }

    pub(super) fn next_message(&mut self, payload_type: PayloadType, payload: &[u8]) -> Bytes {
        let number = self.next_number;
        self.next_number += 1;
        self.message(MessageType::OutputStreamData, number, payload_type, payload)
    }

    /// The next message with bytes of the frames that are due.
    pub(super) fn next_output(&mut self, input: &mut Input<'_>) -> Bytes {
        let len = match input.number() {
            255 => self.frames.len(),
            len => (len * 8).min(self.frames.len()),
        };
        let payload = self.frames.split_to(len);
        self.next_message(PayloadType::Output, &payload)
    }

    pub(super) fn send_handshake_request(&mut self) {
        let request = format!(
            r#"{{"AgentVersion":"{}","RequestedClientActions":[{{"ActionType":"SessionType","ActionParameters":{{"SessionType":"Port","Properties":{{"host":"h","portNumber":"443","type":"LocalPortForwarding"}}}}}}]}}"#,
            self.agent_version
        );
        let message = self.next_message(PayloadType::HandshakeRequest, request.as_bytes());
        self.deliver(&message);
    }

    pub(super) fn send_handshake_complete(&mut self) {
        let complete = br#"{"HandshakeTimeToComplete":1,"CustomerMessage":"hi"}"#;
        let message = self.next_message(PayloadType::HandshakeComplete, complete);
        self.deliver(&message);
    }

    pub(super) fn send_service_message(&mut self, input: &mut Input<'_>) {
        let message_type = match input.byte() % 8 {
            0..=2 => MessageType::PausePublication,
            3..=5 => MessageType::StartPublication,
            6 => MessageType::InputStreamData,
            _ => MessageType::ChannelClosed,
        };
        let message = self.message(message_type, 0, PayloadType::None, input.bytes());
        self.deliver(&message);
    }

    /// Hands a message to the session, and takes note of what it has to become of it.
    pub(super) fn deliver(&mut self, message: &Bytes) {
        if !self.attached || self.is_over() {
            return;
        }
        let before = self.session.stats();
        self.session.handle_message(self.now, self.pinned.lend(message));
        let after = self.session.stats();
        let withheld = self.session.withheld();
        self.withheld.extend(withheld);
        let is_refused = after.messages_refused > before.messages_refused;
        let is_repeat = after.repeats_received > before.repeats_received;
        match Message::decode(message.clone()) {
            Ok(message) if message.header.message_type == MessageType::OutputStreamData => {
                let number = message.header.sequence_number;
                let is_known = (0..self.expected).contains(&number) || self.kept.contains_key(&number);
                let is_absurd = !(0..=self.expected + MAX_AHEAD).contains(&number);
                assert_eq!(after.messages_received, before.messages_received + 1);
                assert_eq!(is_repeat, is_known, "number {number}");
                let is_kept_back = is_repeat && withheld == Some(number);
                if !is_refused && !is_absurd && !is_kept_back {
                    self.owed.push_back(message.header.clone());
                }
                if !is_repeat && !is_refused && !is_absurd {
                    self.kept.insert(number, message);
                    self.process_kept();
                }
                assert!(!is_refused || number != self.expected, "the message that is waited for is taken");
            }
            Ok(message) if message.header.message_type == MessageType::ChannelClosed => self.must_close = true,
            Ok(_) | Err(_) => assert_eq!(after.messages_received, before.messages_received),
        }
        self.drain();
        let early = self.kept.len();
        assert!(self.is_over() || self.session.stats().messages_early == early);
    }

    /// Reads the messages that are in order, as the session has just done.
    pub(super) fn process_kept(&mut self) {
        while let Some(message) = self.kept.remove(&self.expected) {
            self.expected += 1;
            match message.header.payload_type {
                PayloadType::Output => self.process_frames(message.payload),
                PayloadType::Flag if Flag::decode(&message.payload) == Some(Flag::ConnectToPortError) => {
                    self.refusals += 1;
                }
                PayloadType::None
                | PayloadType::HandshakeRequest
                | PayloadType::HandshakeResponse
                | PayloadType::HandshakeComplete
                | PayloadType::EncChallengeRequest
                | PayloadType::EncChallengeResponse
                | PayloadType::Flag
                | PayloadType::Other(_) => {}
            }
        }
    }

    pub(super) fn process_frames(&mut self, data: Bytes) {
        self.decoder.push(data);
        loop {
            match self.decoder.next_frame() {
                Ok(Some(Frame::Psh(id, data))) => {
                    if let Some(stream) = self.streams.get_mut(&id)
                        && !stream.peer_closed
                        && !stream.dropped
                    {
                        stream.incoming.extend_from_slice(&data);
                    }
                }
                Ok(Some(Frame::Fin(id))) => {
                    if let Some(stream) = self.streams.get_mut(&id) {
                        stream.peer_closed = true;
                    }
                }
                Ok(Some(Frame::Syn(_) | Frame::Nop)) => {}
                Ok(None) => return,
                Err(_) => {
                    self.must_close = true;
                    return;
                }
            }
        }
    }

    pub(super) fn unacknowledged(&self) -> impl Iterator<Item = usize> {
        (0..self.transmitted.len()).filter(|number| !self.acknowledged.contains(number))
    }

    pub(super) fn acknowledge(&mut self, number: usize) {
        let id = self.ids.next_id();
        let acknowledgement = Acknowledgement::encode(&self.transmitted[number].header, id, 1);
        self.deliver_acknowledgement(acknowledgement);
    }

    pub(super) fn acknowledge_all(&mut self) {
        let numbers: Vec<_> = self.unacknowledged().collect();
        for number in numbers {
            self.acknowledge(number);
        }
    }

    pub(super) fn deliver_acknowledgement(&mut self, message: Bytes) {
        if !self.attached || self.is_over() {
            return;
        }
        let content = Message::decode(message.clone()).ok().and_then(|m| Acknowledgement::decode(&m.payload).ok());
        let number = content.map(|content| content.acknowledged_message_sequence_number);
        if let Some(number) = number.and_then(|number| usize::try_from(number).ok())
            && number < self.transmitted.len()
            && self.acknowledged.insert(number)
        {
            self.presumed.acknowledged(number, &self.transmitted[number]);
        }
        self.deliver(&message);
    }
}
