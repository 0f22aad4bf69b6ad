//! The WebSockets that carry sessions: connected, upgraded, and opened with a session's token.

use std::{
    future::pending,
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials;
use futures_util::SinkExt;
use http::{HeaderMap, header};
use serde::Serialize;
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, Message, client::IntoClientRequest},
};
use uuid::Uuid;

use super::{
    Service,
    errors::{dial_error, late, unreachable},
};
use crate::{
    aws::{
        Off,
        endpoint::{Gateway, StreamUrl},
        sign,
    },
    route::ssm::{DialError, Transport, proto::handshake::CLIENT_VERSION},
    secret::Secret,
    util::{connection::Connection, peer_text::PeerText},
};

const OPEN_DATA_CHANNEL: &str = "ssmmessages:OpenDataChannel";

/// Limit of connecting to the message gateway: name, TCP, proxy and TLS.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// Limit of the WebSocket upgrade and the opening frame.
const UPGRADE_LIMIT: Duration = Duration::from_secs(15);

/// The first frame on a WebSocket; fields in the order of session-manager-plugin, `service.go`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct OpenDataChannel<'a> {
    message_schema_version: &'static str,
    request_id: String,
    token_value: &'a str,
    client_id: String,
    client_version: &'static str,
}

impl Service {
    /// Opens a WebSocket, signed with `keys` or else by the identity, and sends the opening frame. The connection may be on its
    /// way already: `ahead`.
    pub(super) async fn transport(
        &self,
        url: &StreamUrl,
        client_id: Uuid,
        token: &Secret<String>,
        keys: Option<Credentials>,
        ahead: Option<impl Future<Output = Result<Box<dyn Connection>, DialError>>>,
    ) -> Result<Transport, DialError> {
        let is_of_identity = keys.is_none();
        let credentials = match keys {
            _ if url.is_presigned() => None,
            Some(keys) => Some(keys),
            None => {
                let credentials = self.aws.credentials().await;
                Some(credentials.map_err(|error| dial_error(OPEN_DATA_CHANNEL, None, error))?)
            }
        };
        let off = self.aws.clock_off();
        let mut websocket = match self.upgrade_ahead(ahead, url, credentials.as_ref()).await {
            // Nothing has been sent with the token yet, so it can still be used.
            Err(refused @ DialError::UpgradeRefused { status: 403, .. }) if credentials.is_some() => {
                self.upgrade_again(url, credentials.as_ref(), is_of_identity, off, refused).await?
            }
            outcome => outcome?,
        };
        let frame = OpenDataChannel {
            message_schema_version: "1.0",
            request_id: Uuid::new_v4().to_string(),
            token_value: token.expose(),
            client_id: client_id.to_string(),
            client_version: CLIENT_VERSION,
        };
        let frame = serde_json::to_string(&frame)
            .map_err(|error| DialError::Service { action: OPEN_DATA_CHANNEL, source: error.into() })?;
        match timeout(UPGRADE_LIMIT, websocket.send(Message::text(frame))).await {
            Ok(Ok(())) => Ok(Transport::new(websocket)),
            Ok(Err(error)) => Err(unreachable(url.gateway(), error)),
            Err(_) => Err(late("sending the opening frame", UPGRADE_LIMIT)),
        }
    }

    /// Tries once more what the gateway has refused: with the time that its answer has told, if `off` was another; else
    /// without a signature. If that is refused as well, the first refusal says more.
    async fn upgrade_again(
        &self,
        url: &StreamUrl,
        credentials: Option<&Credentials>,
        is_of_identity: bool,
        off: Option<Off>,
        mut refused: DialError,
    ) -> Result<WebSocketStream<Box<dyn Connection>>, DialError> {
        if self.aws.clock_off() != off {
            match self.upgrade(url, credentials).await {
                Err(error @ DialError::UpgradeRefused { status: 403, .. }) => refused = error,
                outcome => return outcome,
            }
        }
        if let DialError::UpgradeRefused { detail, .. } = &refused {
            self.note_refused_signature(detail, is_of_identity);
        }
        match self.upgrade(url, None).await {
            Err(DialError::UpgradeRefused { .. }) => Err(refused),
            outcome => outcome,
        }
    }

    /// Opens a connection to where a session is likely to be, if that is known; else this never ends.
    pub(super) async fn connect_ahead(&self, gateway: Option<Gateway>) -> Result<Box<dyn Connection>, DialError> {
        match gateway {
            Some(gateway) => self.connect(&gateway).await,
            None => pending().await,
        }
    }

    async fn connect(&self, gateway: &Gateway) -> Result<Box<dyn Connection>, DialError> {
        match timeout(CONNECT_LIMIT, self.aws.connector().connect(gateway)).await {
            Ok(connection) => connection.map_err(|error| unreachable(gateway, error)),
            Err(_) => Err(late("connecting to the message gateway", CONNECT_LIMIT)),
        }
    }

    async fn upgrade_ahead(
        &self,
        ahead: Option<impl Future<Output = Result<Box<dyn Connection>, DialError>>>,
        url: &StreamUrl,
        credentials: Option<&Credentials>,
    ) -> Result<WebSocketStream<Box<dyn Connection>>, DialError> {
        if let Some(connection) = ahead {
            match async { self.upgrade_on(connection.await?, url, credentials).await }.await {
                // That may have been some time ago, or the connection may have been closed for want of use.
                Err(DialError::Unreachable { .. }) => {}
                outcome => return outcome,
            }
        }
        self.upgrade(url, credentials).await
    }

    async fn upgrade(
        &self,
        url: &StreamUrl,
        credentials: Option<&Credentials>,
    ) -> Result<WebSocketStream<Box<dyn Connection>>, DialError> {
        self.upgrade_on(self.connect(url.gateway()).await?, url, credentials).await
    }

    /// Asks for a URL exactly as it is.
    async fn upgrade_on(
        &self,
        connection: Box<dyn Connection>,
        url: &StreamUrl,
        credentials: Option<&Credentials>,
    ) -> Result<WebSocketStream<Box<dyn Connection>>, DialError> {
        let gateway = url.gateway();
        let mut request = url.uri().into_client_request().map_err(|error| unreachable(gateway, error))?;
        // Signed last: a signature is good for minutes only.
        request.headers_mut().extend(self.signature(url, credentials)?);
        let upgrade = client_async_with_config(request, connection, Some(Transport::websocket_config()));
        let sent = self.aws.offset().wall();
        match timeout(UPGRADE_LIMIT, upgrade).await {
            Ok(Ok((websocket, answer))) => {
                self.learn_time(answer.headers(), sent);
                Ok(websocket)
            }
            Ok(Err(tungstenite::Error::Http(answer))) => {
                self.learn_time(answer.headers(), sent);
                let status = answer.status().as_u16();
                let detail = PeerText::from_bytes(answer.body().as_deref().unwrap_or_default());
                tracing::debug!(host = gateway.host(), status, %detail, "WebSocket upgrade refused");
                Err(DialError::UpgradeRefused { host: gateway.host().to_owned(), status, detail })
            }
            Ok(Err(error)) => Err(unreachable(gateway, error)),
            Err(_) => Err(late("upgrading to a WebSocket", UPGRADE_LIMIT)),
        }
    }

    fn learn_time(&self, headers: &HeaderMap, sent: Duration) {
        if let Some(date) = headers.get(header::DATE).and_then(|date| date.to_str().ok()) {
            self.aws.offset().learn(date, sent, self.aws.offset().wall());
        }
    }

    fn signature(&self, url: &StreamUrl, credentials: Option<&Credentials>) -> Result<HeaderMap, DialError> {
        let Some(credentials) = credentials else {
            return Ok(HeaderMap::new());
        };
        let time = SystemTime::UNIX_EPOCH + self.aws.offset().now();
        sign::upgrade_headers(url, self.aws.region(), credentials, time)
            .map_err(|source| DialError::Credentials { action: OPEN_DATA_CHANNEL, source })
    }
}
