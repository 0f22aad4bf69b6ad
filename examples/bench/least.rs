//! The reference for what the protocol itself costs: a client that does what an agent demands, and nothing else.
//!
//! It answers the handshake, numbers and hashes what it sends, and acknowledges what comes. It keeps
//! no copy, repeats nothing, has no window and no pace, and all of it is one task. Local connections are streams of one
//! session. Up to 64 messages that are ready go out in one write.

use std::{collections::HashMap, io, net::SocketAddr, time::Duration};

use autoheal_pa::{
    clock,
    emulator::Emulator,
    route::ssm::proto::{
        handshake::{self, CLIENT_VERSION},
        message::{Acknowledgement, Flags, HEADER_LEN, Header, Message, MessageIds, MessageType, PayloadType},
        smux::frame::{FRAME_HEADER_LEN, Frame, FrameDecoder, StreamId, put_psh_header},
    },
};
use bytes::{Bytes, BytesMut};
use futures_util::{
    FutureExt as _, SinkExt as _, StreamExt as _,
    stream::{self, BoxStream, SelectAll},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message as Frames, protocol::WebSocketConfig},
};

use super::{
    BoxError,
    destination::{bind, connect},
};

/// Payload of a message, in bytes.
const PAYLOAD_LEN: usize = 1024;

/// Messages that go out at once.
const BATCH: usize = 64;

/// Between two repeats of the first data.
const REPEAT: Duration = Duration::from_millis(10);

/// A session that nobody has opened yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) url: String,
    pub(crate) token: String,
}

impl Start {
    /// Starts a session to a host.
    pub(crate) async fn new(emulator: &Emulator, bastion: &str, host: &str) -> Result<Self, BoxError> {
        let input = json!({
            "Target": bastion,
            "DocumentName": "AWS-StartPortForwardingSessionToRemoteHost",
            "Parameters": { "host": [host], "portNumber": ["443"], "localPortNumber": ["0"] },
        });
        let answer = emulator.call(&emulator.new_access_key(), "StartSession", &input).await;
        let answer = answer.map_err(|error| format!("{error:?}"))?;
        let text = |name: &str| answer[name].as_str().map(str::to_owned).ok_or("there is no session");
        Ok(Self { url: text("StreamUrl")?, token: text("TokenValue")? })
    }
}

/// What the client says when it is there: where it listens.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) address: SocketAddr,
}

/// Opens a session, and carries local connections.
///
/// # Errors
/// If the session cannot be opened, or is over.
pub(crate) async fn run(
    url: String,
    token: String,
    ready: impl FnOnce(Hello) -> io::Result<()>,
) -> Result<(), BoxError> {
    let (listener, address) = bind().await?;
    let config = WebSocketConfig::default()
        .read_buffer_size(64 << 10)
        .write_buffer_size(BATCH * (HEADER_LEN + PAYLOAD_LEN))
        .max_write_buffer_size(4 << 20);
    let authority = url.strip_prefix("ws://").and_then(|rest| rest.split('/').next()).ok_or("the stream URL is odd")?;
    let tcp = connect(authority.parse()?).await?;
    let (mut websocket, _) = client_async_with_config(&url, tcp, Some(config)).await?;
    let opening = json!({
        "MessageSchemaVersion": "1.0", "RequestId": "0f9de17a-6465-404e-8b1b-2356dc13c2f8", "TokenValue": token,
        "ClientId": "0f9de17a-6465-404e-8b1b-2356dc13c2f8", "ClientVersion": CLIENT_VERSION,
    });
    websocket.send(Frames::text(opening.to_string())).await?;
    let mut session = Session { ids: MessageIds::new(1), sequence: 0 };
    loop {
        let message = next(&mut websocket).await?;
        let acknowledgement = session.acknowledge(&message.header);
        websocket.send(Frames::Binary(acknowledgement)).await?;
        if message.header.payload_type == PayloadType::HandshakeComplete {
            break;
        }
        if message.header.payload_type == PayloadType::HandshakeRequest {
            let (response, _) = handshake::respond(&message.payload);
            let response = serde_json::to_vec(&response)?;
            let response = session.header(PayloadType::HandshakeResponse).encode(&response);
            websocket.send(Frames::Binary(response)).await?;
        }
    }
    until_it_takes_data(&mut websocket, &mut session).await?;
    ready(Hello { address })?;
    carry(websocket, session, listener).await
}

/// An agent drops data until its port session is up, which takes a moment: sends something without meaning until it is
/// acknowledged.
async fn until_it_takes_data(websocket: &mut Socket, session: &mut Session) -> Result<(), BoxError> {
    let message = session.frame(&Frame::Nop);
    loop {
        websocket.send(message.clone()).await?;
        while let Ok(frames) = timeout(REPEAT, websocket.next()).await {
            if let Frames::Binary(bytes) = frames.ok_or("the session is over")??
                && let message = Message::decode(bytes)?
                && message.header.message_type == MessageType::Acknowledge
                && Acknowledgement::decode(&message.payload)?.acknowledged_message_sequence_number + 1
                    == session.sequence
            {
                return Ok(());
            }
        }
    }
}

type Socket = WebSocketStream<TcpStream>;

async fn next(websocket: &mut Socket) -> Result<Message, BoxError> {
    loop {
        if let Frames::Binary(bytes) = websocket.next().await.ok_or("the session is over")?? {
            let message = Message::decode(bytes)?;
            if message.header.message_type == MessageType::OutputStreamData {
                return Ok(message);
            }
        }
    }
}

/// Numbers of a session.
struct Session {
    ids: MessageIds,
    sequence: i64,
}

impl Session {
    fn header(&mut self, payload_type: PayloadType) -> Header {
        self.sequence += 1;
        Header {
            message_type: MessageType::InputStreamData,
            created_ms: now_ms(),
            sequence_number: self.sequence - 1,
            flags: Flags::NONE,
            id: self.ids.next_id(),
            payload_type,
        }
    }

    fn frame(&mut self, frame: &Frame) -> Frames {
        let mut payload = BytesMut::new();
        frame.encode(&mut payload);
        Frames::Binary(self.header(PayloadType::Output).encode(&payload))
    }

    fn acknowledge(&mut self, header: &Header) -> Bytes {
        Acknowledgement::encode(header, self.ids.next_id(), now_ms())
    }
}

fn now_ms() -> u64 {
    u64::try_from(clock::wall().as_millis()).unwrap_or(u64::MAX)
}

/// Carries local connections, each as a stream of the session.
async fn carry(websocket: Socket, mut session: Session, listener: TcpListener) -> Result<(), BoxError> {
    let (mut sink, mut stream) = websocket.split();
    let mut decoder = FrameDecoder::default();
    let mut ids = (3..).step_by(2).map(StreamId);
    let (mut writers, mut readers) = (HashMap::new(), SelectAll::new());
    loop {
        tokio::select! {
            biased;
            next = stream.next() => {
                let mut next = Some(next);
                let mut received = HashMap::<_, BytesMut>::new();
                let (mut messages, mut ended) = (0, Vec::new());
                while let Some(frames) = next {
                    if let Frames::Binary(bytes) = frames.ok_or("the session is over")??
                        && bytes.starts_with(&DATA)
                    {
                        let message = Message::decode(bytes)?;
                        let acknowledgement = session.acknowledge(&message.header);
                        sink.feed(Frames::Binary(acknowledgement)).await?;
                        decoder.push(message.payload);
                        while let Some(frame) = decoder.next_frame()? {
                            match frame {
                                Frame::Psh(id, data) => received.entry(id).or_default().extend_from_slice(&data),
                                Frame::Fin(id) => ended.push(id),
                                Frame::Syn(_) | Frame::Nop => {}
                            }
                        }
                        messages += 1;
                    }
                    next = (messages < BATCH).then(|| stream.next().now_or_never()).flatten();
                }
                sink.flush().await?;
                for (id, data) in received {
                    if let Some(writer) = writers.get_mut(&id) {
                        OwnedWriteHalf::write_all(writer, &data).await?;
                    }
                }
                ended.iter().for_each(|id| drop(writers.remove(id)));
            }
            Some(first) = readers.next(), if !readers.is_empty() => {
                let (mut next, mut messages) = (Some(first), 0);
                while let Some((id, block)) = next {
                    messages += 1;
                    let block: Bytes = block;
                    for piece in block.chunks(PAYLOAD_LEN - FRAME_HEADER_LEN) {
                        let mut message = BytesMut::with_capacity(HEADER_LEN + FRAME_HEADER_LEN + piece.len());
                        message.resize(HEADER_LEN, 0);
                        put_psh_header(&mut message, id, piece.len());
                        message.extend_from_slice(piece);
                        let message = session.header(PayloadType::Output).seal(message);
                        sink.feed(Frames::Binary(message)).await?;
                    }
                    if block.is_empty() {
                        sink.feed(session.frame(&Frame::Fin(id))).await?;
                        writers.remove(&id);
                    }
                    next = (messages < BATCH).then(|| readers.next().now_or_never()).flatten().flatten();
                }
                sink.flush().await?;
            }
            accepted = listener.accept() => {
                let (local, _) = accepted?;
                local.set_nodelay(true)?;
                let id = ids.next().ok_or("there is no number left")?;
                let (reader, writer) = local.into_split();
                sink.send(session.frame(&Frame::Syn(id))).await?;
                writers.insert(id, writer);
                readers.push(blocks(id, reader));
            }
        }
    }
}

/// What comes from a local program, and nothing at its end.
fn blocks(id: StreamId, reader: OwnedReadHalf) -> BoxStream<'static, (StreamId, Bytes)> {
    let read = move |state: Option<(OwnedReadHalf, BytesMut)>| async move {
        let (mut reader, mut buffer) = state?;
        buffer.reserve(BATCH * PAYLOAD_LEN);
        let more = matches!(reader.read_buf(&mut buffer).await, Ok(1..));
        let block = buffer.split().freeze();
        Some(((id, block), more.then_some((reader, buffer))))
    };
    stream::unfold(Some((reader, BytesMut::new())), read).boxed()
}

/// What messages with data begin with: the length of their header, and their type.
const DATA: [u8; 16] = *b"\0\0\0\x74output_strea";
