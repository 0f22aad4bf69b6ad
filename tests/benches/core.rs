//! What the core costs for each message, without sockets, tasks and clocks.
//!
//! ```text
//! cargo bench --profile dist
//! ```
//!
//! Each group has its reference beside it: the digests that the protocol asks for and no implementation can do without.
//! So `session::download` against `reference::download` is what headers, order, acknowledgements, frames and copies for
//! repeats cost on top. Figures are per message; whole tunnels are measured by `cargo run --release --example bench`.

use autoheal_pa::route::ssm::proto::{
    Config, Event, MessageIds, Now, PortSession, StreamId,
    message::{Acknowledgement, Flags, Header, Message, MessageId, MessageIds as Ids, MessageType, PayloadType},
    smux::frame::{self, FrameDecoder},
};
use bytes::{Bytes, BytesMut};
use divan::{Bencher, black_box, counter::BytesCount};
use sha2::{Digest, Sha256};

/// Payload of one message of an agent, in bytes.
const PAYLOAD_LEN: usize = 1024;

/// Messages that one iteration of a session's benchmark moves, and bytes of payload in them.
const MESSAGES: usize = 64;
const BATCH_LEN: usize = MESSAGES * PAYLOAD_LEN;

const STREAM: StreamId = StreamId(3);

fn main() {
    divan::main();
}

fn now() -> Now {
    Now { mono: std::time::Duration::ZERO, wall: std::time::Duration::from_secs(1_800_000_000) }
}

/// A header as agents write it.
fn header(sequence_number: i64, payload_type: PayloadType) -> Header {
    Header {
        message_type: MessageType::OutputStreamData,
        created_ms: 1_800_000_000_000,
        sequence_number,
        flags: Flags::NONE,
        id: MessageId([7; 16]),
        payload_type,
    }
}

/// Digests alone, of as many bytes as the messages have.
mod reference {
    use super::*;

    /// One payload.
    #[divan::bench(counters = [BytesCount::new(PAYLOAD_LEN)])]
    fn digest() -> impl Sized {
        Sha256::digest(black_box(&[7; PAYLOAD_LEN]))
    }

    /// The payloads of a download, and those of its acknowledgements.
    #[divan::bench(counters = [BytesCount::new(BATCH_LEN)])]
    fn download() {
        for _ in 0..MESSAGES {
            black_box(Sha256::digest(black_box(&[7; PAYLOAD_LEN])));
            black_box(Sha256::digest(black_box(&[7; 180])));
        }
    }

    /// The payloads of an upload, and those of its acknowledgements.
    #[divan::bench(counters = [BytesCount::new(BATCH_LEN)])]
    fn upload() {
        download();
    }
}

/// One message.
mod message {
    use super::*;

    #[divan::bench(counters = [BytesCount::new(PAYLOAD_LEN)])]
    fn decode(bencher: Bencher) {
        let message = header(5, PayloadType::Output).encode(&[7; PAYLOAD_LEN]);
        bencher.bench(|| Message::decode(black_box(message.clone())));
    }

    #[divan::bench(counters = [BytesCount::new(PAYLOAD_LEN)])]
    fn encode(bencher: Bencher) {
        let header = header(5, PayloadType::Output);
        bencher.bench(|| black_box(&header).encode(black_box(&[7; PAYLOAD_LEN])));
    }

    #[divan::bench]
    fn encode_acknowledgement(bencher: Bencher) {
        let header = header(123_456, PayloadType::Output);
        bencher.bench(|| Acknowledgement::encode(black_box(&header), MessageId([9; 16]), 1_800_000_000_000));
    }

    #[divan::bench]
    fn decode_acknowledgement(bencher: Bencher) {
        let message = Acknowledgement::encode(&header(123_456, PayloadType::Output), MessageId([9; 16]), 1);
        let payload = Message::decode(message).expect("it has just been made").payload;
        bencher.bench(|| Acknowledgement::decode(black_box(&payload)));
    }
}

/// The byte stream of the multiplexer.
mod smux {
    use super::*;

    #[divan::bench(counters = [BytesCount::new(BATCH_LEN)])]
    fn decode(bencher: Bencher) {
        let pieces = frames(BATCH_LEN);
        bencher.bench(|| {
            let mut decoder = FrameDecoder::default();
            let mut len = 0;
            for piece in &pieces {
                decoder.push(piece.clone());
                while let Ok(Some(frame)) = decoder.next_frame() {
                    len += frame.encoded_len();
                }
            }
            len
        });
    }
}

/// The payloads of messages with `len` bytes for [`STREAM`], in frames of 16 KiB.
fn frames(len: usize) -> Vec<Bytes> {
    let mut stream = BytesMut::new();
    let mut left = len;
    while left > 0 {
        let data = left.min(16 << 10);
        frame::put_psh_header(&mut stream, STREAM, data);
        stream.resize(stream.len() + data, 7);
        left -= data;
    }
    let mut stream = stream.freeze();
    let mut pieces = Vec::new();
    while !stream.is_empty() {
        pieces.push(stream.split_to(stream.len().min(PAYLOAD_LEN)));
    }
    pieces
}

/// One session with an agent that is as cheap as can be.
struct Pair {
    session: PortSession,
    /// Numbers of the agent's messages.
    next_number: i64,
    ids: Ids,
}

impl Pair {
    /// A session with one open stream.
    fn new() -> Self {
        let config = Config { messages_per_second: None, ..Config::default() };
        let mut pair =
            Self { session: PortSession::new(config, MessageIds::new(1), now()), next_number: 0, ids: Ids::new(2) };
        pair.send(
            PayloadType::HandshakeRequest,
            br#"{"AgentVersion":"3.3.1142.0","RequestedClientActions":[{"ActionType":"SessionType","ActionParameters":{"SessionType":"Port","Properties":{"portNumber":"443","type":"LocalPortForwarding"}}}]}"#,
        );
        pair.acknowledge_all();
        pair.send(PayloadType::HandshakeComplete, br#"{"HandshakeTimeToComplete":1,"CustomerMessage":""}"#);
        let id = pair.session.open_stream(now()).expect("the handshake is complete");
        assert_eq!(id, STREAM);
        pair.acknowledge_all();
        pair
    }

    /// Makes the next message of the agent.
    fn next(&mut self, payload_type: PayloadType, payload: &[u8]) -> Bytes {
        let header = Header { id: self.ids.next_id(), ..header(self.next_number, payload_type) };
        self.next_number += 1;
        header.encode(payload)
    }

    fn send(&mut self, payload_type: PayloadType, payload: &[u8]) {
        let message = self.next(payload_type, payload);
        self.session.handle_message(now(), message);
    }

    /// Takes everything that the session sends and acknowledges what is in sequence.
    fn acknowledge_all(&mut self) {
        while let Some(message) = self.session.poll_transmit(now()) {
            let header = Message::decode(message).expect("the session writes good messages").header;
            if header.message_type == MessageType::InputStreamData {
                let acknowledgement = Acknowledgement::encode(&header, self.ids.next_id(), 1_800_000_000_000);
                self.session.handle_message(now(), acknowledgement);
            }
        }
    }
}

/// The whole core: what the driver calls for each batch of messages.
mod session {
    use super::*;

    /// Messages come in, their data goes out, and acknowledgements are made.
    #[divan::bench(counters = [BytesCount::new(BATCH_LEN)])]
    fn download(bencher: Bencher) {
        let pair = std::cell::RefCell::new(Pair::new());
        let payloads = frames(BATCH_LEN - 4 * frame::FRAME_HEADER_LEN);
        assert_eq!(payloads.len(), MESSAGES);
        bencher
            .with_inputs(|| {
                let mut pair = pair.borrow_mut();
                payloads.iter().map(|payload| pair.next(PayloadType::Output, payload)).collect::<Vec<_>>()
            })
            .bench_local_values(|messages| {
                let session = &mut pair.borrow_mut().session;
                for message in messages {
                    session.handle_message(now(), message);
                }
                let mut received = 0;
                while let Some(event) = session.poll_event() {
                    if let Event::Data { data, .. } = event {
                        received += data.len();
                    }
                }
                assert_eq!(received, BATCH_LEN - 4 * frame::FRAME_HEADER_LEN);
                let acknowledgements = std::iter::from_fn(|| session.poll_transmit(now())).map(black_box).count();
                assert_eq!(acknowledgements, MESSAGES);
            });
    }

    /// Data is taken, goes out in messages, and is acknowledged. The agent's side is part of the figure.
    #[divan::bench(counters = [BytesCount::new(BATCH_LEN)])]
    fn upload(bencher: Bencher) {
        let mut pair = Pair::new();
        let data = Bytes::from(vec![7; 16 << 10]);
        bencher.bench_local(|| {
            let mut left = BATCH_LEN;
            while left > 0 {
                let len = pair.session.writable_len(STREAM).min(data.len()).min(left);
                pair.session.write(now(), STREAM, data.slice(..len));
                left -= len;
                pair.acknowledge_all();
                while pair.session.poll_event().is_some() {}
            }
        });
    }
}
