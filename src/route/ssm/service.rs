//! Sessions: StartSession, ResumeSession, TerminateSession, and the WebSockets that carry them.
//!
//! Invariants:
//!
//! * The session's `TokenValue` stays here: a transport that is given away has been opened with it. Neither it
//!   nor the stream URL is logged.
//! * A session whose transport cannot be opened is ended again, and so is one whose caller has gone away
//!   while it was being started.
//! * Every wait for a peer has a limit.
//! * The connection for a WebSocket is opened while the call that gives its URL is under way, to where the URL is likely to
//!   lead. Nothing is said on it before the URL is known to lead there.
//! * With a journal: a session is in it before its WebSocket is dialled, and until it is known to be over.

mod errors;

use std::{
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use aws_config::Region;
use aws_credential_types::Credentials;
use aws_sdk_ssm::types::{SessionFilter, SessionFilterKey, SessionState};
use futures_util::{SinkExt, future::BoxFuture};
use http::{HeaderMap, header};
use serde::Serialize;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, SemaphorePermit, oneshot},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, Message, client::IntoClientRequest},
};
use tracing::Instrument;
use uuid::Uuid;

use self::errors::{dial_error, foreign, lacking, late, refused_document, unreachable};
use super::{
    Dial, DialError, SessionHandle, SessionId, Transport,
    proto::handshake::CLIENT_VERSION,
    statements::DOCUMENT,
    targets::{Knowledge, NotConnected, Targets},
};
use crate::{
    aws::{
        Aws, Caller, Off,
        endpoint::{Gateway, StreamUrl},
        error::{AwsError, Call, Refusal},
        sign,
        values::is_session_id,
    },
    bastion::Target,
    clock,
    cluster::Destination,
    journal::{Entry, Journal},
    overlap::overlap,
    secret::Secret,
    util::{
        connection::Connection,
        peer_text::{PeerText, sentence},
    },
};

const START_SESSION: &str = "ssm:StartSession";
const RESUME_SESSION: &str = "ssm:ResumeSession";
const TERMINATE_SESSION: &str = "ssm:TerminateSession";
const DESCRIBE_SESSIONS: &str = "ssm:DescribeSessions";
const OPEN_DATA_CHANNEL: &str = "ssmmessages:OpenDataChannel";

/// Limit of connecting to the message gateway: name, TCP, proxy and TLS.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// Limit of the WebSocket upgrade and the opening frame.
const UPGRADE_LIMIT: Duration = Duration::from_secs(15);

/// Longest reason that StartSession takes, in characters.
const MAX_REASON_LEN: usize = 256;

/// Sessions that are started or resumed at a time, over all tunnels; the rates that AWS allows are not published.
const CONCURRENT_CALLS: usize = 4;

/// Sessions of one identity in one region. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Service {
    aws: Aws,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Said to CloudTrail with each session; never empty.
    reason: Option<String>,
    /// With the account of the sessions, if that is known.
    journal: Option<(Journal, Option<String>)>,
    calls: Semaphore,
    /// Where the next session is likely to be.
    likely_gateway: Mutex<Option<Gateway>>,
    targets: Targets,
    /// What the gateway said when it refused a signature.
    refused_signature: Mutex<Option<String>>,
}

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
    /// Makes what starts, resumes and ends sessions; `reason` is for the audit trail.
    #[must_use]
    pub fn new(aws: Aws, reason: Option<&str>) -> Self {
        Self::build(aws, reason, None)
    }

    /// As [`new`](Self::new); each session is in the journal as long as it may be live, with the account of the caller.
    #[must_use]
    pub fn with_journal(aws: Aws, reason: Option<&str>, journal: Journal, caller: &Caller) -> Self {
        let account = Some(caller.account.clone()).filter(|account| !account.is_empty());
        Self::build(aws, reason, Some((journal, account)))
    }

    fn build(aws: Aws, reason: Option<&str>, journal: Option<(Journal, Option<String>)>) -> Self {
        let reason: Option<String> = reason.map(|reason| {
            let printable = reason.chars().map(|c| if c.is_control() { ' ' } else { c });
            printable.collect::<String>().trim().chars().take(MAX_REASON_LEN).collect()
        });
        let shared = Shared {
            reason: reason.filter(|reason| !reason.is_empty()),
            journal,
            calls: Semaphore::new(CONCURRENT_CALLS),
            likely_gateway: Mutex::new(aws.gateway_policy().usual()),
            targets: Targets::new(),
            refused_signature: Mutex::default(),
        };
        Self { aws, shared: Arc::new(shared) }
    }

    /// Returns the words with which the gateway has refused a signature since this was last asked.
    #[must_use]
    pub fn take_signature_refusal(&self) -> Option<String> {
        self.refused_signature().take()
    }

    fn note_refused_signature(&self, words: &str) {
        self.aws.note_refused_signature(words);
        if self.refused_signature().replace(words.to_owned()).is_none() {
            tracing::warn!(
                answer = words,
                "the message gateway refused a signed WebSocket: trying without a signature, which AWS may not take in future"
            );
        }
    }

    fn refused_signature(&self) -> MutexGuard<'_, Option<String>> {
        self.shared.refused_signature.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn likely_gateway(&self) -> Option<Gateway> {
        self.shared.likely_gateway.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_likely_gateway(&self, gateway: Option<Gateway>) {
        *self.shared.likely_gateway.lock().unwrap_or_else(PoisonError::into_inner) = gateway;
    }

    async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.shared.calls.acquire().await.ok()
    }

    /// Starts a session and opens its first transport.
    async fn open(
        &self,
        target: Target,
        destination: Destination,
        document: Option<String>,
    ) -> Result<(SessionHandle, Transport), DialError> {
        let ssm = self.aws.ssm();
        let call =
            Call { action: START_SESSION, resource: target.as_str(), region: self.aws.region(), host: &ssm.host };
        let failed = |error| refused_document(document.as_deref(), dial_error(START_SESSION, Some(&target), error));
        self.aws.credentials().await.map_err(failed)?;
        let gateway;
        let answer = {
            let _permit = self.permit().await;
            // Only now, as others may have been refused while this one waited.
            gateway = self.likely_gateway();
            let request = ssm
                .client
                .start_session()
                .target(target.as_str())
                .document_name(document.as_deref().unwrap_or(DOCUMENT))
                .set_reason(self.shared.reason.as_deref().map(str::to_owned));
            let request = match document {
                // All of that is fixed in it.
                Some(_) => request,
                None => request
                    .parameters("host", vec![destination.host.clone()])
                    .parameters("portNumber", vec![destination.port.to_string()])
                    .parameters("localPortNumber", vec!["0".to_owned()]),
            };
            let answer = async { request.send().await.map_err(|error| failed(self.aws.failed(call, error))) };
            overlap(answer, self.connect_ahead(gateway.clone())).await
        };
        let (answer, ahead) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // Until a session has been started, connections to the gateway would be for nothing.
                self.set_likely_gateway(None);
                return Err(self.look_closer(error).await);
            }
        };
        let token = answer.token_value.map(Secret::new);
        let id = answer.session_id.filter(|id| !id.is_empty()).ok_or_else(|| lacking(START_SESSION, "SessionId"))?;
        if !is_session_id(&id) {
            return Err(lacking(START_SESSION, "SessionId that can be one"));
        }
        let id = SessionId(id);
        tracing::debug!(%id, %target, "session started");
        self.write_down(&id, &target).await;
        let client_id = Uuid::new_v4();
        let opened = async {
            let stream_url = answer.stream_url.ok_or_else(|| lacking(START_SESSION, "StreamUrl"))?;
            let token = token.ok_or_else(|| lacking(START_SESSION, "TokenValue"))?;
            let url = self.aws.gateway_policy().check(&stream_url).map_err(foreign)?;
            self.set_likely_gateway(Some(url.gateway().clone()));
            let ahead = gateway.filter(|gateway| gateway == url.gateway()).map(|_| ahead);
            Ok((self.transport(&url, client_id, &token, ahead).await?, stream_url))
        };
        match opened.await {
            Ok((transport, stream_url)) => Ok((SessionHandle { id, target, client_id, stream_url }, transport)),
            Err(error) => {
                self.abandon(id, &Handle::current());
                Err(error)
            }
        }
    }

    /// Finds out what else is known of a target that is not connected.
    async fn look_closer(&self, error: DialError) -> DialError {
        let DialError::TargetNotConnected { target, source } = error else { return error };
        match self.shared.targets.look_up(&self.aws, &target).await {
            Knowledge::Unknown => DialError::TargetNotConnected { target, source },
            Knowledge::Absent => DialError::TargetNotFound { target, region: self.aws.region().to_owned(), source },
            Knowledge::Seen(sighting) => {
                DialError::TargetNotConnected { target, source: NotConnected { sighting, source }.into() }
            }
        }
    }

    async fn reopen(&self, session: &SessionHandle) -> Result<Transport, DialError> {
        let ssm = self.aws.ssm();
        let call = Call { action: RESUME_SESSION, resource: &session.id.0, region: self.aws.region(), host: &ssm.host };
        let failed = |error| dial_error(RESUME_SESSION, Some(&session.target), error);
        let ended = || DialError::SessionEnded { id: session.id.clone() };
        self.aws.credentials().await.map_err(failed)?;
        let gateway = self.aws.gateway_policy().check(&session.stream_url).ok().map(|url| url.gateway().clone());
        let answer = {
            let _permit = self.permit().await;
            let request = ssm.client.resume_session().session_id(&session.id.0);
            overlap(request.send(), self.connect_ahead(gateway.clone())).await
        };
        let (answer, ahead) = match answer.map_err(|error| self.aws.failed(call, error)) {
            Ok(answer) => answer,
            Err(AwsError::Refused { refusal: Refusal::Absent, .. }) => {
                self.strike_off(&session.id).await;
                return Err(ended());
            }
            Err(error) => return Err(failed(error)),
        };
        // The service says so as well, by giving nothing to resume with.
        let Some(token) = answer.token_value.filter(|token| !token.is_empty()).map(Secret::new) else {
            self.strike_off(&session.id).await;
            return Err(ended());
        };
        let stream_url = answer.stream_url.filter(|url| !url.is_empty());
        let url = stream_url.as_deref().unwrap_or(&session.stream_url);
        let url = self.aws.gateway_policy().check(url).map_err(foreign)?;
        let ahead = gateway.filter(|gateway| gateway == url.gateway()).map(|_| ahead);
        self.transport(&url, session.client_id, &token, ahead).await
    }

    async fn end(&self, id: &SessionId) -> Result<(), DialError> {
        let outcome = end_session(&self.aws, &id.0, self.aws.region()).await;
        outcome.map_err(|error| dial_error(TERMINATE_SESSION, None, error))?;
        self.strike_off(id).await;
        Ok(())
    }

    async fn write_down(&self, id: &SessionId, target: &Target) {
        if let Some((journal, account)) = &self.shared.journal {
            let entry = Entry {
                session: id.0.clone(),
                account: account.clone(),
                region: self.aws.region().to_owned(),
                target: target.as_str().to_owned(),
                started: clock::wall().as_secs(),
            };
            journal.started(entry).await;
        }
    }

    async fn strike_off(&self, id: &SessionId) {
        if let Some((journal, _)) = &self.shared.journal {
            journal.ended(&id.0).await;
        }
    }

    /// Ends a session that nobody will use, without anybody waiting for it.
    fn abandon(&self, id: SessionId, runtime: &Handle) {
        let dialer = self.clone();
        let end = async move {
            if let Err(error) = dialer.end(&id).await {
                tracing::debug!(%id, error = %sentence(&error), "abandoned session could not be ended");
            }
        };
        self.aws.tasks().spawn_on(end.in_current_span(), runtime);
    }

    /// Opens a WebSocket and sends the opening frame. The connection may be on its way already: `ahead`.
    async fn transport(
        &self,
        url: &StreamUrl,
        client_id: Uuid,
        token: &Secret<String>,
        ahead: Option<impl Future<Output = Result<Box<dyn Connection>, DialError>>>,
    ) -> Result<Transport, DialError> {
        let credentials = if url.is_presigned() {
            None
        } else {
            let credentials = self.aws.credentials().await;
            Some(credentials.map_err(|error| dial_error(OPEN_DATA_CHANNEL, None, error))?)
        };
        let off = self.aws.clock_off();
        let mut websocket = match self.upgrade_ahead(ahead, url, credentials.as_ref()).await {
            // Nothing has been sent with the token yet, so it can still be used.
            Err(refused @ DialError::UpgradeRefused { status: 403, .. }) if credentials.is_some() => {
                self.upgrade_again(url, credentials.as_ref(), off, refused).await?
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
            self.note_refused_signature(detail);
        }
        match self.upgrade(url, None).await {
            Err(DialError::UpgradeRefused { .. }) => Err(refused),
            outcome => outcome,
        }
    }

    /// Opens a connection to where a session is likely to be, if that is known; else this never ends.
    async fn connect_ahead(&self, gateway: Option<Gateway>) -> Result<Box<dyn Connection>, DialError> {
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

impl Dial for Service {
    fn start<'a>(
        &'a self,
        target: &'a Target,
        destination: &'a Destination,
        document: Option<String>,
    ) -> BoxFuture<'a, Result<(SessionHandle, Transport), DialError>> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let dialer = self.clone();
            let (target, destination) = (target.clone(), destination.clone());
            // On a task of its own, so that a caller that goes away leaves no session behind.
            let open = async move {
                let session = Box::pin(dialer.open(target, destination, document)).await;
                let session =
                    session.map(|session| Unclaimed { session: Some(session), dialer, runtime: Handle::current() });
                let _unclaimed = answer.send(session);
            };
            self.aws.tasks().spawn(open.in_current_span());
            match answered.await {
                Ok(session) => session?.claim(),
                Err(error) => Err(DialError::Service { action: START_SESSION, source: error.into() }),
            }
        })
    }

    fn resume<'a>(&'a self, session: &'a SessionHandle) -> BoxFuture<'a, Result<Transport, DialError>> {
        Box::pin(self.reopen(session))
    }

    fn terminate<'a>(&'a self, session: &'a SessionHandle) -> BoxFuture<'a, Result<(), DialError>> {
        Box::pin(self.end(&session.id))
    }

    fn is_active<'a>(&'a self, session: &'a SessionHandle) -> BoxFuture<'a, Option<bool>> {
        Box::pin(is_active(&self.aws, &session.id.0, self.aws.region()))
    }

    fn ended(&self, session: &SessionHandle) {
        let (dialer, id) = (self.clone(), session.id.clone());
        self.aws.tasks().spawn(async move { dialer.strike_off(&id).await });
    }
}

/// Ends a session of an identity, in whatever region it is. One that has ended already is as good.
///
/// # Errors
/// See [`AwsError`].
pub async fn end_session(aws: &Aws, id: &str, region: &str) -> Result<(), AwsError> {
    let ssm = aws.ssm();
    let call = Call { action: TERMINATE_SESSION, resource: id, region, host: &ssm.host };
    aws.credentials().await?;
    let request = ssm.client.terminate_session().session_id(id).customize().config_override(there(region));
    match request.send().await.map_err(|error| aws.failed(call, error)) {
        Ok(_) => Ok(()),
        Err(AwsError::Refused { refusal: Refusal::Absent, .. }) => Ok(()),
        // A policy that goes by a session's tag denies this as well about one that has ended.
        Err(AwsError::AccessDenied { .. }) if is_active(aws, id, region).await == Some(false) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Asks whether the service has a session that has not ended; `None` if it does not say, as when the identity may not
/// list sessions.
async fn is_active(aws: &Aws, id: &str, region: &str) -> Option<bool> {
    let ssm = aws.ssm();
    let call = Call { action: DESCRIBE_SESSIONS, resource: "*", region, host: &ssm.host };
    let filter = SessionFilter::builder().key(SessionFilterKey::SessionId).value(id).build().ok()?;
    let request = ssm.client.describe_sessions().state(SessionState::Active).filters(filter);
    match request.customize().config_override(there(region)).send().await.map_err(|error| aws.failed(call, error)) {
        Ok(answer) => Some(answer.sessions().iter().any(|session| session.session_id() == Some(id))),
        Err(error) => {
            tracing::debug!(id, error = %sentence(&error), "cannot find out whether the session has ended");
            None
        }
    }
}

/// Sends a request to another region than the client's own.
fn there(region: &str) -> aws_sdk_ssm::config::Builder {
    aws_sdk_ssm::config::Builder::new().region(Region::new(region.to_owned()))
}

/// A session on its way to whoever asked for it; it is ended if it does not get there.
struct Unclaimed {
    session: Option<(SessionHandle, Transport)>,
    dialer: Service,
    runtime: Handle,
}

impl Unclaimed {
    fn claim(mut self) -> Result<(SessionHandle, Transport), DialError> {
        self.session.take().ok_or_else(|| lacking(START_SESSION, "session"))
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some((session, _transport)) = self.session.take() {
            tracing::debug!(id = %session.id, "nobody waits for the session any more");
            self.dialer.abandon(session.id, &self.runtime);
        }
    }
}

#[cfg(test)]
mod tests;
