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
mod upgrade;

use std::{
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aws_config::Region;
use aws_credential_types::Credentials;
use aws_sdk_ssm::types::{SessionFilter, SessionFilterKey, SessionState};
use futures_util::future::BoxFuture;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, SemaphorePermit, oneshot},
};
use tracing::Instrument;
use uuid::Uuid;

pub(super) use self::errors::dial_error;
use self::errors::{foreign, lacking, refused_document};
use super::{
    Approvals, Dial, DialError, SessionHandle, SessionId, Transport, Unapproved,
    statements::DOCUMENT,
    targets::{Knowledge, NotConnected, Targets},
};
use crate::{
    aws::{
        Aws, Caller,
        endpoint::Gateway,
        error::{AwsError, Call, Refusal},
        values::is_session_id,
    },
    bastion::Target,
    clock,
    cluster::Destination,
    journal::{Entry, Journal},
    overlap::overlap,
    route::Report,
    secret::Secret,
    util::peer_text::sentence,
};

pub(super) const START_SESSION: &str = "ssm:StartSession";
const RESUME_SESSION: &str = "ssm:ResumeSession";
const TERMINATE_SESSION: &str = "ssm:TerminateSession";
const DESCRIBE_SESSIONS: &str = "ssm:DescribeSessions";

/// Longest reason that StartSession takes, in characters.
const MAX_REASON_LEN: usize = 256;

/// Sessions that are started or resumed at a time, over all tunnels; the rates that AWS allows are not published.
const CONCURRENT_CALLS: usize = 4;

/// Sessions of one identity in one region. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Service {
    aws: Aws,
    shared: Arc<Shared>,
    /// What gets leave for sessions, where the identity has none of its own.
    approvals: Option<Approvals>,
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
        Self { aws, shared: Arc::new(shared), approvals: None }
    }

    /// Has sessions started with the credentials of approvals.
    #[must_use]
    pub fn approved_by(self, approvals: Option<Approvals>) -> Self {
        Self { approvals, ..self }
    }

    /// Returns the words with which the gateway has refused a signature since this was last asked.
    #[must_use]
    pub fn take_signature_refusal(&self) -> Option<String> {
        self.refused_signature().take()
    }

    /// Takes note of a refused signature: with the credentials of the identity, or with those of an approval.
    fn note_refused_signature(&self, words: &str, is_of_identity: bool) {
        if is_of_identity {
            self.aws.note_refused_signature(words);
        }
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
        let keys = match &self.approvals {
            Some(approvals) => Some(approvals.keys(&target).ok_or_else(|| over(&target))?),
            None => None,
        };
        if keys.is_none() {
            self.aws.credentials().await.map_err(failed)?;
        }
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
            let request = request.customize().config_override(signed_with(keys.as_ref()));
            overlap(request.send(), self.connect_ahead(gateway.clone())).await
        };
        let (answer, ahead) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // Until a session has been started, connections to the gateway would be for nothing.
                self.set_likely_gateway(None);
                let error = match &self.approvals {
                    Some(approvals) => {
                        let error = approvals.judge(call.action, &target, Aws::failed_as_another(call, error)).await;
                        refused_document(document.as_deref(), error)
                    }
                    None => failed(self.aws.failed(call, error)),
                };
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
            Ok((self.transport(&url, client_id, &token, keys, ahead).await?, stream_url))
        };
        match opened.await {
            Ok((transport, stream_url)) => Ok((SessionHandle { id, target, client_id, stream_url }, transport)),
            Err(error) => {
                self.abandon(id, target, &Handle::current());
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
        let keys = self.keys_of(&session.target).await;
        if keys.is_none() {
            self.aws.credentials().await.map_err(failed)?;
        }
        let gateway = self.aws.gateway_policy().check(&session.stream_url).ok().map(|url| url.gateway().clone());
        let answer = {
            let _permit = self.permit().await;
            let request = ssm.client.resume_session().session_id(&session.id.0);
            let request = request.customize().config_override(signed_with(keys.as_ref()));
            overlap(request.send(), self.connect_ahead(gateway.clone())).await
        };
        let of = |error| match keys {
            Some(_) => Aws::failed_as_another(call, error),
            None => self.aws.failed(call, error),
        };
        let (answer, ahead) = match answer.map_err(of) {
            Ok(answer) => answer,
            Err(AwsError::Refused { refusal: Refusal::Absent, .. }) => {
                self.strike_off(&session.id).await;
                return Err(ended());
            }
            Err(error) => {
                return Err(match (&self.approvals, &keys) {
                    (Some(approvals), Some(_)) => approvals.judge(call.action, &session.target, error).await,
                    // The identity's own credentials were a last resort.
                    (Some(_), None) if matches!(error, AwsError::AccessDenied { .. }) => over(&session.target),
                    (Some(_) | None, _) => failed(error),
                });
            }
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
        self.transport(&url, session.client_id, &token, keys, ahead).await
    }

    /// Returns what sessions with a target are resumed and ended with, if that is not the identity's own: nobody may be waited
    /// for then.
    async fn keys_of(&self, target: &Target) -> Option<Credentials> {
        match &self.approvals {
            Some(approvals) => approvals.renewed_keys(target).await,
            None => None,
        }
    }

    async fn end(&self, id: &SessionId, target: &Target) -> Result<(), DialError> {
        let keys = self.keys_of(target).await;
        let outcome = terminate(&self.aws, &id.0, self.aws.region(), keys).await;
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
    fn abandon(&self, id: SessionId, target: Target, runtime: &Handle) {
        let dialer = self.clone();
        let end = async move {
            if let Err(error) = dialer.end(&id, &target).await {
                tracing::debug!(%id, error = %sentence(&error), "abandoned session could not be ended");
            }
        };
        self.aws.tasks().spawn_on(end.in_current_span(), runtime);
    }
}

impl Dial for Service {
    fn ask_leave<'a>(
        &'a self,
        target: &'a Target,
        tell: &'a (dyn Fn(Report) + Send + Sync),
    ) -> BoxFuture<'a, Result<(), DialError>> {
        match &self.approvals {
            Some(approvals) => Box::pin(approvals.ask(target, tell)),
            None => Box::pin(ready(Ok(()))),
        }
    }

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
        Box::pin(self.end(&session.id, &session.target))
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
    terminate(aws, id, region, None).await
}

/// Ends a session with these credentials; without, with the identity's own.
async fn terminate(aws: &Aws, id: &str, region: &str, keys: Option<Credentials>) -> Result<(), AwsError> {
    let ssm = aws.ssm();
    let call = Call { action: TERMINATE_SESSION, resource: id, region, host: &ssm.host };
    if keys.is_none() {
        aws.credentials().await?;
    }
    let settings = signed_with(keys.as_ref()).region(Region::new(region.to_owned()));
    let request = ssm.client.terminate_session().session_id(id).customize().config_override(settings);
    let of = |error| match keys {
        Some(_) => Aws::failed_as_another(call, error),
        None => aws.failed(call, error),
    };
    match request.send().await.map_err(of) {
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

/// Has a request signed with these credentials instead of the identity's own, if there are any.
fn signed_with(keys: Option<&Credentials>) -> aws_sdk_ssm::config::Builder {
    let settings = aws_sdk_ssm::config::Builder::new();
    match keys {
        Some(keys) => settings.credentials_provider(keys.clone()),
        None => settings,
    }
}

fn over(target: &Target) -> DialError {
    DialError::Unapproved(Unapproved::Over { target: target.clone() })
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
            self.dialer.abandon(session.id, session.target, &self.runtime);
        }
    }
}

#[cfg(test)]
mod tests;
