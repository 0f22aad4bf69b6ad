//! The way to the emulated service, without HTTP, DNS or TLS: otherwise as `route::ssm::service` goes it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use autoheal_pa::{
    bastion::Target,
    cluster::Destination,
    emulator::{ApiError, Emulator},
    route::ssm::{Dial, DialError, SessionHandle, SessionId, Transport, proto::handshake::CLIENT_VERSION},
    util::connection::Connection,
};
use futures_util::{SinkExt, future::BoxFuture};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::{
    client_async_with_config,
    tungstenite::{self, Message, client::IntoClientRequest},
};
use uuid::Uuid;

use super::DELAY;

const DOCUMENT: &str = "AWS-StartPortForwardingSessionToRemoteHost";
const HOST: &str = "ssmmessages.us-east-1.amazonaws.com";

/// Round trips that TCP and TLS take before the upgrade.
const CONNECT_ROUND_TRIPS: u32 = 2;

/// Limit of the upgrade and the opening frame, as the real one has it.
const UPGRADE_LIMIT: Duration = Duration::from_secs(15);

/// Dials the emulated service.
pub(crate) struct MemoryDial {
    emulator: Arc<Emulator>,
    /// Of the credentials at hand; they are replaced when they have expired.
    access_key: Mutex<String>,
}

impl MemoryDial {
    pub(crate) fn new(emulator: Arc<Emulator>) -> Self {
        let access_key = Mutex::new(emulator.new_access_key());
        Self { emulator, access_key }
    }

    fn access_key(&self) -> String {
        self.access_key.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Calls an operation, once more if the credentials turn out to have expired.
    async fn call(&self, operation: &str, input: &Value) -> Result<Value, ApiError> {
        match self.emulator.call(&self.access_key(), operation, input).await {
            Err(error) if error.code == "ExpiredTokenException" => {
                let renewed = self.emulator.new_access_key();
                self.access_key.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&renewed);
                self.emulator.call(&renewed, operation, input).await
            }
            outcome => outcome,
        }
    }

    async fn open(&self, target: Target, destination: Destination) -> Result<(SessionHandle, Transport), DialError> {
        let input = json!({
            "Target": target.as_str(), "DocumentName": DOCUMENT,
            "Parameters": {
                "host": [destination.host], "portNumber": [destination.port.to_string()], "localPortNumber": ["0"],
            },
        });
        let answer = self.call("StartSession", &input).await;
        let answer = answer.map_err(|error| dial_error("ssm:StartSession", Some(&target), error))?;
        let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
        let handle = SessionHandle {
            id: SessionId(text("SessionId")),
            target,
            client_id: Uuid::new_v4(),
            stream_url: text("StreamUrl"),
        };
        match self.transport(&handle, &text("TokenValue")).await {
            Ok(transport) => Ok((handle, transport)),
            Err(error) => {
                self.end(&handle.id).await?;
                Err(error)
            }
        }
    }

    async fn reopen(&self, session: &SessionHandle) -> Result<Transport, DialError> {
        let ended = || DialError::SessionEnded { id: session.id.clone() };
        let answer = match self.call("ResumeSession", &json!({ "SessionId": session.id.0 })).await {
            Ok(answer) => answer,
            Err(error) if error.code == "DoesNotExistException" => return Err(ended()),
            Err(error) => return Err(dial_error("ssm:ResumeSession", Some(&session.target), error)),
        };
        let token = answer["TokenValue"].as_str().ok_or_else(ended)?;
        self.transport(session, token).await
    }

    async fn end(&self, id: &SessionId) -> Result<(), DialError> {
        match self.call("TerminateSession", &json!({ "SessionId": id.0 })).await {
            Ok(_) => Ok(()),
            Err(error) if error.code == "DoesNotExistException" => Ok(()),
            Err(error) => Err(dial_error("ssm:TerminateSession", None, error)),
        }
    }

    async fn transport(&self, session: &SessionHandle, token: &str) -> Result<Transport, DialError> {
        let unreachable =
            |error: tungstenite::Error| DialError::Unreachable { host: HOST.into(), source: error.into() };
        tokio::time::sleep(2 * CONNECT_ROUND_TRIPS * DELAY).await;
        let connection = self.emulator.gateway().connect().await;
        let connection: Box<dyn Connection> =
            Box::new(connection.map_err(|error| unreachable(tungstenite::Error::Io(error)))?);
        let request = session.stream_url.as_str().into_client_request().map_err(unreachable)?;
        let upgrade = client_async_with_config(request, connection, Some(Transport::websocket_config()));
        let late = |step| DialError::Timeout { step, seconds: UPGRADE_LIMIT.as_secs() };
        let (mut websocket, _) = match timeout(UPGRADE_LIMIT, upgrade).await {
            Ok(Ok(upgraded)) => upgraded,
            Ok(Err(tungstenite::Error::Http(answer))) => {
                let detail = String::from_utf8_lossy(answer.body().as_deref().unwrap_or_default()).into_owned();
                return Err(DialError::UpgradeRefused {
                    host: HOST.into(),
                    status: answer.status().as_u16(),
                    detail: detail.into(),
                });
            }
            Ok(Err(error)) => return Err(unreachable(error)),
            Err(_) => return Err(late("upgrading to a WebSocket")),
        };
        tokio::time::sleep(2 * DELAY).await;
        let opening = json!({
            "MessageSchemaVersion": "1.0", "RequestId": Uuid::new_v4().to_string(), "TokenValue": token,
            "ClientId": session.client_id.to_string(), "ClientVersion": CLIENT_VERSION,
        });
        match timeout(UPGRADE_LIMIT, websocket.send(Message::text(opening.to_string()))).await {
            Ok(Ok(())) => Ok(Transport::new(websocket)),
            Ok(Err(error)) => Err(unreachable(error)),
            Err(_) => Err(late("sending the opening frame")),
        }
    }
}

impl Dial for MemoryDial {
    fn start<'a>(
        &'a self,
        target: &'a Target,
        destination: &'a Destination,
        _document: Option<String>,
    ) -> BoxFuture<'a, Result<(SessionHandle, Transport), DialError>> {
        Box::pin(self.open(target.clone(), destination.clone()))
    }

    fn resume<'a>(&'a self, session: &'a SessionHandle) -> BoxFuture<'a, Result<Transport, DialError>> {
        Box::pin(self.reopen(session))
    }

    fn terminate<'a>(&'a self, session: &'a SessionHandle) -> BoxFuture<'a, Result<(), DialError>> {
        Box::pin(self.end(&session.id))
    }
}

/// Says what an error means to a tunnel, as `route::ssm::service` does.
fn dial_error(action: &'static str, target: Option<&Target>, error: ApiError) -> DialError {
    match (error.code.as_str(), target) {
        ("TargetNotConnected", Some(target)) => {
            DialError::TargetNotConnected { target: target.clone(), source: error.into() }
        }
        ("AccessDeniedException", _) => {
            DialError::AccessDenied { action, resource: "*".to_owned(), source: error.into() }
        }
        ("ThrottlingException", _) => DialError::Throttled { action, source: error.into() },
        ("ExpiredTokenException", _) => DialError::Credentials { action, source: error.into() },
        ("InvalidDocument" | "InvalidParameters", _) => {
            DialError::DocumentRefused { document: DOCUMENT.to_owned(), source: error.into() }
        }
        _ => DialError::Service { action, source: error.into() },
    }
}
