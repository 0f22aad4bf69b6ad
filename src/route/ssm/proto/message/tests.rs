//! Messages as bytes.

use super::*;
use proptest::prelude::*;

fn header(message_type: MessageType) -> Header {
    Header {
        message_type,
        created_ms: 1_700_000_000_000,
        sequence_number: 5,
        flags: Flags::NONE,
        id: id("812ef34f-87bd-449e-a3de-282f478ba6e6"),
        payload_type: PayloadType::Output,
    }
}

fn id(text: &str) -> MessageId {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    }
    MessageId(bytes)
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// The worked example of two smux frames in one `input_stream_data`.
const INPUT_EXAMPLE: &str = "
    00 00 00 74 69 6e 70 75 74 5f 73 74 72 65 61 6d 5f 64 61 74 61 20 20 20 20 20 20 20 20 20 20 20
    20 20 20 20 00 00 00 01 00 00 01 8b cf e5 68 00 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00 00
    a3 de 28 2f 47 8b a6 e6 81 2e f3 4f 87 bd 44 9e 1e d2 97 48 2f a9 78 20 d9 7b 1d 7e 7e c1 f4 f5
    7a 62 9a 35 c4 3f 32 51 61 85 e3 b7 d8 b5 e4 4d 00 00 00 01 00 00 00 15 01 00 00 00 03 00 00 00
    01 02 05 00 03 00 00 00 68 65 6c 6c 6f";

#[test]
fn encodes_the_worked_example_of_input_stream_data() {
    let payload = unhex("01 00 00 00 03 00 00 00 01 02 05 00 03 00 00 00 68 65 6c 6c 6f");
    let message = header(MessageType::InputStreamData).encode(&payload);
    assert_eq!(message.as_ref(), unhex(INPUT_EXAMPLE));
    let decoded = Message::decode(message).unwrap();
    assert_eq!(decoded.header, header(MessageType::InputStreamData));
    assert_eq!(decoded.payload, payload);
}

#[test]
fn encodes_the_worked_example_of_acknowledge() {
    let acknowledged = Header {
        message_type: MessageType::OutputStreamData,
        sequence_number: 42,
        id: id("0f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f0"),
        ..header(MessageType::OutputStreamData)
    };
    let message = Acknowledgement::encode(&acknowledged, id("11223344-5566-4788-99aa-bbccddeeff00"), 1_700_000_000_123);
    let head = unhex(
        "00 00 00 74 61 63 6b 6e 6f 77 6c 65 64 67 65 20 20 20 20 20 20 20 20 20 20 20 20 20 20 20 20 20
         20 20 20 20 00 00 00 01 00 00 01 8b cf e5 68 7b 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 03
         99 aa bb cc dd ee ff 00 11 22 33 44 55 66 47 88 7e c6 c5 8d 2b 1b f4 4f d0 a3 43 a4 58 14 52 3b
         77 16 71 60 a1 a8 53 50 52 af 57 5b 8e 39 2f 8c 00 00 00 00 00 00 00 b1",
    );
    assert_eq!(message.len(), 297);
    assert_eq!(&message[..HEADER_LEN], head);
    let ack = Acknowledgement::decode(&Message::decode(message).unwrap().payload).unwrap();
    assert_eq!(ack.acknowledged_message_id, "0f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f0");
    assert_eq!(ack.acknowledged_message_sequence_number, 42);
    assert_eq!(ack.acknowledged_message_type, "output_stream_data");
}

/// Builds a message as the service does: NUL padding and no payload type.
fn service_message(name: &str, payload: &[u8], digest: &[u8]) -> Bytes {
    let mut message = vec![0; 116];
    message[..4].copy_from_slice(&SERVICE_HEADER_LENGTH_FIELD.to_be_bytes());
    message[4..4 + name.len()].copy_from_slice(name.as_bytes());
    message[36..40].copy_from_slice(&1_u32.to_be_bytes());
    message[40..48].copy_from_slice(&1_700_000_000_000_u64.to_be_bytes());
    message[80..112].copy_from_slice(digest);
    message[112..116].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    message.extend_from_slice(payload);
    message.into()
}

#[test]
fn reads_channel_closed_with_a_short_header() {
    let json = br#"{"MessageType":"channel_closed","SchemaVersion":1,"SessionId":"s-1","Output":"idle"}"#;
    let message = Message::decode(service_message("channel_closed", json, &Sha256::digest(json))).unwrap();
    assert_eq!(message.header.message_type, MessageType::ChannelClosed);
    assert_eq!(message.header.payload_type, PayloadType::None);
    assert_eq!(
        ChannelClosed::decode(&message.payload),
        ChannelClosed { session_id: "s-1".into(), output: "idle".into() }
    );
    assert_eq!(ChannelClosed::decode(b"not json"), ChannelClosed::default());
    assert_eq!(ChannelClosed::decode(br#"{"Output":7}"#), ChannelClosed::default());
}

#[test]
fn accepts_publication_messages_with_any_digest_and_length() {
    for name in ["start_publication", "pause_publication"] {
        let message = Message::decode(service_message(name, b"junk", &[9; 32])).unwrap();
        assert_eq!(message.header.message_type.as_str(), name);
    }
}

#[test]
fn takes_everything_behind_the_header_as_payload() {
    let mut message = header(MessageType::OutputStreamData).encode(b"hello").to_vec();
    message[116..120].copy_from_slice(&2_u32.to_be_bytes());
    assert_eq!(Message::decode(message.into()).unwrap().payload, "hello");
}

#[test]
fn refuses_what_a_peer_would_refuse() {
    let good = header(MessageType::OutputStreamData).encode(b"hello");
    assert_eq!(Message::decode(Bytes::new()), Err(DecodeError::Truncated { len: 0 }));
    assert_eq!(Message::decode(good.slice(..115)), Err(DecodeError::Truncated { len: 115 }));
    let patched = |offset: usize, bytes: &[u8]| {
        let mut message = good.to_vec();
        message[offset..offset + bytes.len()].copy_from_slice(bytes);
        Message::decode(message.into())
    };
    for length in [0_u32, 111, 122, u32::MAX] {
        assert_eq!(
            patched(0, &length.to_be_bytes()),
            Err(DecodeError::HeaderLength { header_length: length, len: 125 })
        );
    }
    assert_eq!(patched(4, &[b' '; 32]), Err(DecodeError::NoType));
    assert_eq!(patched(40, &[0; 8]), Err(DecodeError::NoCreatedDate));
    assert_eq!(patched(124, b"O"), Err(DecodeError::Digest));
    assert_eq!(patched(80, &[0; 32]), Err(DecodeError::Digest));
}

#[test]
fn ids_are_version_4_and_differ() {
    let mut ids = MessageIds::new(7);
    let (first, second) = (ids.next_id(), ids.next_id());
    assert_ne!(first, second);
    assert_eq!(first.to_string().as_bytes()[14], b'4');
    assert_eq!(MessageIds::new(7).next_id(), first);
}

fn any_type() -> impl Strategy<Value = MessageType> {
    prop_oneof![
        Just(MessageType::InputStreamData),
        Just(MessageType::OutputStreamData),
        Just(MessageType::Acknowledge),
        Just(MessageType::ChannelClosed),
        "[a-z_]{1,32}".prop_map(|name| MessageType::parse(name.as_bytes())),
    ]
}

proptest! {
    #[test]
    fn decodes_what_it_encodes(
        message_type in any_type(),
        created_ms in 1..u64::MAX,
        sequence_number in any::<i64>(),
        flags in any::<u64>(),
        id in any::<[u8; 16]>(),
        code in any::<u32>(),
        payload in proptest::collection::vec(any::<u8>(), 0..3000),
    ) {
        let header = Header {
            message_type,
            created_ms,
            sequence_number,
            flags: Flags(flags),
            id: MessageId(id),
            payload_type: PayloadType::from_code(code),
        };
        let message = Message::decode(header.encode(&payload)).unwrap();
        prop_assert_eq!(message.header, header);
        prop_assert_eq!(message.payload, payload);
    }

    #[test]
    fn never_panics_on_garbage(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _outcome = Message::decode(bytes.into());
    }

    #[test]
    fn never_panics_on_a_damaged_message(position in 0_usize..200, value in any::<u8>(), cut in 0_usize..220) {
        let mut bytes = header(MessageType::OutputStreamData).encode(&[7; 100]).to_vec();
        if let Some(byte) = bytes.get_mut(position) {
            *byte = value;
        }
        bytes.truncate(cut);
        let _outcome = Message::decode(bytes.into());
    }
}
