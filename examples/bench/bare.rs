//! The reference for throughput and for the cost of a byte: a WebSocket relay that does what cannot be left out.
//!
//! Local TCP, client, WebSocket, server, TCP to the destination. The payload travels in messages of the same size as
//! those of Session Manager, a header of 120 bytes before at most 1024, and an acknowledgement of the usual size goes
//! back for each. There is no numbering, no digest, no copy kept for a repetition, and each connection has a WebSocket
//! of its own.
//!
//! It comes in two kinds. One is what the library's own examples do: a message is sent, acknowledged and passed on by
//! itself. The other does what costs least: up to 64 messages that are ready go out in one write.

use std::{io, net::SocketAddr, time::Duration};

use autoheal_pa::route::ssm::proto::message::{
    Acknowledgement, Flags, HEADER_LEN, Header, MessageIds, MessageType, PayloadType,
};
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream, accept_async_with_config, client_async_with_config,
    tungstenite::{self, Message, protocol::WebSocketConfig},
};

use super::destination::{accept, bind, connect, relay};

/// Payload of a message, in bytes.
const PAYLOAD_LEN: usize = 1024;

/// Bytes that are read from a TCP connection at once.
const BLOCK_LEN: usize = 64 << 10;

/// Messages that go out at once in batches.
const BATCH: usize = 64;

/// What the server says when it is there.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServerHello {
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

/// What the client says when it is there: where it listens.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClientHello {
    /// For connections whose messages travel one by one.
    pub(crate) one_by_one: SocketAddr,
    /// For connections whose messages travel in batches.
    pub(crate) in_batches: SocketAddr,
    /// For connections that it relays as they are, without a WebSocket.
    pub(crate) relay: SocketAddr,
}

/// Serves WebSockets, each of which leads to a connection to the destination. With a delay, every byte of a WebSocket
/// takes so long, each way.
///
/// # Errors
/// If no port can be bound.
pub(crate) async fn serve(
    destination: SocketAddr,
    delay: Duration,
    ready: impl FnOnce(ServerHello) -> io::Result<()>,
) -> io::Result<()> {
    let (listener, address) = bind().await?;
    let (front, front_address) = bind().await?;
    ready(ServerHello { address: if delay.is_zero() { address } else { front_address } })?;
    tokio::join!(
        accept(listener, move |stream| async move {
            let mut websocket = accept_async_with_config(stream, Some(config())).await.map_err(into_io)?;
            // The first message says how many go out at once.
            let batch = match websocket.next().await {
                Some(Ok(Message::Text(batch))) => batch.parse().map_err(io::Error::other)?,
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            };
            carry(websocket, connect(destination).await?, batch).await
        }),
        accept(front, move |stream| relay(stream, address, delay)),
    );
    Ok(())
}

/// Opens a WebSocket to the server for each local connection; relays connections to the other address to `relayed`.
///
/// # Errors
/// If no port can be bound.
pub(crate) async fn run_client(
    server: SocketAddr,
    relayed: SocketAddr,
    ready: impl FnOnce(ClientHello) -> io::Result<()>,
) -> io::Result<()> {
    let (one_by_one, one_by_one_address) = bind().await?;
    let (in_batches, in_batches_address) = bind().await?;
    let (relay_listener, relay_address) = bind().await?;
    ready(ClientHello { one_by_one: one_by_one_address, in_batches: in_batches_address, relay: relay_address })?;
    let open = move |stream, batch: usize| async move {
        let tcp = connect(server).await?;
        let upgrade = client_async_with_config(format!("ws://{server}/"), tcp, Some(config()));
        let (mut websocket, _) = upgrade.await.map_err(into_io)?;
        websocket.send(Message::text(batch.to_string())).await.map_err(into_io)?;
        carry(websocket, stream, batch).await
    };
    tokio::join!(
        accept(one_by_one, move |stream| open(stream, 1)),
        accept(in_batches, move |stream| open(stream, BATCH)),
        accept(relay_listener, move |stream| relay(stream, relayed, Duration::ZERO)),
    );
    Ok(())
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(BLOCK_LEN)
        .max_write_buffer_size(16 * BLOCK_LEN)
}

fn into_io(error: tungstenite::Error) -> io::Error {
    io::Error::other(error)
}

/// A message header of the usual size, and a whole acknowledgement.
fn samples() -> (Bytes, Bytes) {
    let header = Header {
        message_type: MessageType::OutputStreamData,
        created_ms: 0,
        sequence_number: 1_000_000,
        flags: Flags::NONE,
        id: MessageIds::new(1).next_id(),
        payload_type: PayloadType::Output,
    };
    let acknowledgement = Acknowledgement::encode(&header, header.id, 0);
    (header.encode(b""), acknowledgement)
}

/// Carries bytes between a WebSocket and a TCP connection until one of them ends; up to `batch` messages that are ready
/// go out together, either way.
async fn carry(websocket: WebSocketStream<TcpStream>, tcp: TcpStream, batch: usize) -> io::Result<()> {
    let (header, acknowledgement) = samples();
    let (mut sink, mut stream) = websocket.split();
    let (mut reader, mut writer) = tcp.into_split();
    let (received, mut to_acknowledge) = mpsc::unbounded_channel();

    let outgoing = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(BLOCK_LEN);
            tokio::select! {
                biased;
                Some(count) = to_acknowledge.recv() => {
                    for _ in 0..count {
                        sink.feed(Message::Binary(acknowledgement.clone())).await.map_err(into_io)?;
                    }
                    sink.flush().await.map_err(into_io)?;
                }
                count = reader.read_buf(&mut buffer) => {
                    if count? == 0 {
                        return sink.close().await.map_err(into_io);
                    }
                    for block in buffer.chunks(batch * PAYLOAD_LEN) {
                        for payload in block.chunks(PAYLOAD_LEN) {
                            let mut message = BytesMut::with_capacity(HEADER_LEN + payload.len());
                            message.extend_from_slice(&header);
                            message.extend_from_slice(payload);
                            sink.feed(Message::Binary(message.freeze())).await.map_err(into_io)?;
                        }
                        sink.flush().await.map_err(into_io)?;
                    }
                    buffer.clear();
                }
            }
        }
    };

    let incoming = async {
        let mut buffer = BytesMut::new();
        while let Some(mut next) = stream.next().await {
            let mut count = 0_usize;
            loop {
                if let Message::Binary(message) = next.map_err(into_io)?
                    && message.starts_with(&header[..32])
                {
                    buffer.extend_from_slice(&message[HEADER_LEN..]);
                    count += 1;
                }
                if count >= batch {
                    break;
                }
                match stream.next().now_or_never() {
                    Some(Some(ready)) => next = ready,
                    Some(None) | None => break,
                }
            }
            if count > 0 {
                let _ended = received.send(count);
                writer.write_all(&buffer).await?;
                buffer.clear();
            }
        }
        writer.shutdown().await
    };

    // Either end ends both, as it does in a tunnel.
    tokio::select! {
        ended = outgoing => ended,
        ended = incoming => ended,
    }
}
