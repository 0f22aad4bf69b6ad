//! One connected WebSocket that carries a data channel.
//!
//! Knows frames and nothing of what is in them: a binary or text frame is one data channel message.
//! Who opened the WebSocket, and how, is not its business.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::util::{connection::Connection, peer_text::PeerText};

/// Largest WebSocket message that is accepted, in bytes. Messages of agents hold 1 KiB, those of the
/// service a few KiB; the limit keeps a hostile peer from filling the memory.
const MAX_MESSAGE_LEN: usize = 4 << 20;

/// Bytes that a WebSocket reads from its connection at once.
const READ_BUFFER_LEN: usize = 16 << 10;

/// Bytes of written messages that are kept back for one write to the connection, unless flushed.
const WRITE_BUFFER_LEN: usize = 64 << 10;

/// One connected WebSocket.
pub struct Transport {
    websocket: WebSocketStream<Box<dyn Connection>>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

/// What comes out of a transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// One data channel message.
    Message(Bytes),
    /// A ping of the peer, which is being answered: a sign of life.
    Ping,
    /// The answer to a ping.
    Pong,
}

/// Why a transport is at its end. The session behind it is not: it can be resumed.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The peer closed the WebSocket.
    #[error("the message gateway closed the WebSocket with code {code} ({reason})")]
    Closed {
        /// The close code; 1005 when the peer gave none.
        code: u16,
        /// The peer's words, perhaps empty.
        reason: PeerText,
    },
    /// The connection ended or broke without a close frame.
    #[error("the WebSocket connection broke")]
    Broken(#[source] tungstenite::Error),
    /// The peer sent something that is not WebSocket, or a message over the size limit.
    #[error("the message gateway broke the WebSocket protocol")]
    Protocol(#[source] tungstenite::Error),
}

impl Transport {
    /// The settings that a WebSocket has to be opened with.
    #[must_use]
    pub fn websocket_config() -> WebSocketConfig {
        WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_LEN)
            .write_buffer_size(WRITE_BUFFER_LEN)
            .max_write_buffer_size(16 * WRITE_BUFFER_LEN)
            .max_message_size(Some(MAX_MESSAGE_LEN))
            .max_frame_size(Some(MAX_MESSAGE_LEN))
    }

    /// Takes a WebSocket whose upgrade is done and whose opening frame has been sent.
    #[must_use]
    pub fn new(websocket: WebSocketStream<Box<dyn Connection>>) -> Self {
        Self { websocket }
    }

    /// Waits for the next message or sign of life.
    ///
    /// # Errors
    /// See [`TransportError`]; every error is final.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming, TransportError>> {
        loop {
            let Some(frame) = std::task::ready!(Pin::new(&mut self.websocket).poll_next(cx)) else {
                return Poll::Ready(Err(TransportError::Broken(tungstenite::Error::ConnectionClosed)));
            };
            return Poll::Ready(match frame {
                Ok(Message::Binary(bytes)) => Ok(Incoming::Message(bytes)),
                Ok(Message::Text(text)) => Ok(Incoming::Message(text.into())),
                Ok(Message::Ping(_)) => Ok(Incoming::Ping),
                Ok(Message::Pong(_)) => Ok(Incoming::Pong),
                Ok(Message::Close(frame)) => Err(closed(frame)),
                Ok(Message::Frame(_)) => continue,
                Err(error) => Err(TransportError::from(error)),
            });
        }
    }

    /// Waits until [`write`](Self::write) will take a message.
    ///
    /// # Errors
    /// See [`TransportError`].
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Pin::new(&mut self.websocket).poll_ready(cx).map_err(TransportError::from)
    }

    /// Queues one message as a binary frame; [`poll_flush`](Self::poll_flush) sends it.
    ///
    /// # Errors
    /// See [`TransportError`].
    pub fn write(&mut self, message: Bytes) -> Result<(), TransportError> {
        Ok(Pin::new(&mut self.websocket).start_send(Message::Binary(message))?)
    }

    /// Queues a ping. Its payload is the one that the official programs send.
    ///
    /// # Errors
    /// See [`TransportError`].
    pub fn ping(&mut self) -> Result<(), TransportError> {
        Ok(Pin::new(&mut self.websocket).start_send(Message::Ping(Bytes::from_static(b"keepalive")))?)
    }

    /// Sends everything that is queued.
    ///
    /// # Errors
    /// See [`TransportError`].
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Pin::new(&mut self.websocket).poll_flush(cx).map_err(TransportError::from)
    }

    /// Says goodbye with a close frame and does not wait for its echo.
    pub async fn close(mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // A peer that is gone already needs no goodbye.
        let _outcome = self.websocket.close(Some(frame)).await;
    }
}

fn closed(frame: Option<CloseFrame>) -> TransportError {
    match frame {
        Some(frame) => TransportError::Closed { code: frame.code.into(), reason: PeerText::new(&frame.reason) },
        None => TransportError::Closed { code: CloseCode::Status.into(), reason: PeerText::default() },
    }
}

impl From<tungstenite::Error> for TransportError {
    fn from(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)
            | tungstenite::Error::Io(_)
            | tungstenite::Error::ConnectionClosed
            | tungstenite::Error::AlreadyClosed
            | tungstenite::Error::Tls(_)
            | tungstenite::Error::WriteBufferFull(_) => Self::Broken(error),
            tungstenite::Error::Protocol(_)
            | tungstenite::Error::Capacity(_)
            | tungstenite::Error::Utf8(_)
            | tungstenite::Error::AttackAttempt
            | tungstenite::Error::Url(_)
            | tungstenite::Error::Http(_)
            | tungstenite::Error::HttpFormat(_) => Self::Protocol(error),
        }
    }
}
