//! Bytes in WebSocket messages.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::util::{connection::Connection, peer_text::PeerText};

/// Bytes in one message at most; awscli, `websocket.py`.
const MAX_SENT: usize = 65_000;

/// Largest message that is taken.
const MAX_TAKEN: usize = 4 << 20;

/// A WebSocket as what it carries.
pub(super) struct ByteStream {
    websocket: WebSocketStream<Box<dyn Connection>>,
    /// What has come and has not been read.
    rest: Bytes,
    is_over: bool,
}

impl ByteStream {
    /// The settings that the WebSocket has to be opened with.
    pub(super) fn config() -> WebSocketConfig {
        WebSocketConfig::default()
            .read_buffer_size(64 << 10)
            .write_buffer_size(128 << 10)
            .max_write_buffer_size(1 << 20)
            .max_message_size(Some(MAX_TAKEN))
            .max_frame_size(Some(MAX_TAKEN))
    }

    pub(super) fn new(websocket: WebSocketStream<Box<dyn Connection>>) -> Self {
        Self { websocket, rest: Bytes::new(), is_over: false }
    }
}

fn broken(error: tungstenite::Error) -> io::Error {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others say themselves what they are")]
    match error {
        tungstenite::Error::Io(error) => error,
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => io::ErrorKind::UnexpectedEof.into(),
        error => io::Error::other(error),
    }
}

/// What the endpoint says with the end of a tunnel; nothing if it is as it should be.
fn end(frame: Option<CloseFrame>) -> io::Result<()> {
    match frame {
        Some(frame) if frame.code != CloseCode::Normal => {
            let reason = PeerText::new(&frame.reason);
            let code = u16::from(frame.code);
            Err(io::Error::other(format!("the endpoint has closed the tunnel with code {code}: {reason}")))
        }
        Some(_) | None => Ok(()),
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() && !self.is_over {
            match ready!(Pin::new(&mut self.websocket).poll_next(cx)) {
                Some(Ok(Message::Binary(data))) => self.rest = data,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => return Poll::Ready(Err(io::Error::other("the endpoint has sent text"))),
                Some(Ok(Message::Close(frame))) => {
                    self.is_over = true;
                    end(frame)?;
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => self.is_over = true,
            }
        }
        let len = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..len]);
        self.rest.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.websocket).poll_ready(cx)).map_err(broken)?;
        let len = buf.len().min(MAX_SENT);
        let message = Message::Binary(Bytes::copy_from_slice(&buf[..len]));
        Pin::new(&mut self.websocket).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.websocket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.websocket).poll_close(cx)) {
            Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) | Ok(()) => {
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(broken(error))),
        }
    }
}
