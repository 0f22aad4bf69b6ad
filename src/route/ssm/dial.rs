//! What a link asks of the outside: sessions, and transports that carry them.
//!
//! This is the seam between sessions and AWS. Tests put a virtual network behind it.

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::{Transport, Unapproved};
use crate::{bastion::Target, cluster::Destination, fault::BoxError, route::Report, util::peer_text::PeerText};

/// The id of a session, from `StartSession` to `TerminateSession`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionId(pub String);

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A session that has been started, with what it takes to resume it.
#[derive(Debug, Clone)]
pub struct SessionHandle {
    /// The session's id, by which CloudTrail knows it.
    pub id: SessionId,
    pub target: Target,
    /// Chosen once per session, and kept over resumes.
    pub client_id: Uuid,
    /// The WebSocket URL that `StartSession` gave; a resume uses it when it is given no other.
    pub stream_url: String,
}

/// Opens sessions and the transports that carry them. A transport that is returned has been
/// upgraded and opened with the session's token, which never leaves the implementation.
pub trait Dial: Send + Sync + 'static {
    /// Gets leave to start sessions on a target, where somebody has to be asked for it; else there is nothing to do. `tell` gets
    /// what is waited for, and what has come of it.
    ///
    /// # Errors
    /// [`DialError::Unapproved`], and whatever keeps it from being asked for.
    ///
    /// # Cancel safety
    /// Safe: what has been asked for is waited for the next time.
    fn ask_leave<'a>(
        &'a self,
        _target: &'a Target,
        _tell: &'a (dyn Fn(Report) + Send + Sync),
    ) -> BoxFuture<'a, Result<(), DialError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Starts a session that forwards to `destination` as the target sees it, and opens its first
    /// transport. With a `document` that is used, in which the destination is fixed, and else the one of AWS. When the transport cannot be opened the session is ended again.
    ///
    /// # Errors
    /// See [`DialError`].
    fn start<'a>(
        &'a self,
        target: &'a Target,
        destination: &'a Destination,
        document: Option<String>,
    ) -> BoxFuture<'a, Result<(SessionHandle, Transport), DialError>>;

    /// Opens another transport for a session whose last one is lost.
    ///
    /// # Errors
    /// See [`DialError`]; [`DialError::SessionEnded`] means that there is nothing left to resume.
    fn resume<'a>(&'a self, session: &'a SessionHandle) -> BoxFuture<'a, Result<Transport, DialError>>;

    /// Ends a session for good; harmless if it has ended already.
    ///
    /// # Errors
    /// See [`DialError`].
    fn terminate<'a>(&'a self, session: &'a SessionHandle) -> BoxFuture<'a, Result<(), DialError>>;

    /// Asks whether there still is such a session; `None` if that cannot be found out.
    fn is_active<'a>(&'a self, _session: &'a SessionHandle) -> BoxFuture<'a, Option<bool>> {
        Box::pin(std::future::ready(None))
    }

    /// Takes note that a session is over, as the service has said through its transport: nobody will
    /// [`terminate`](Self::terminate) it.
    fn ended(&self, _session: &SessionHandle) {}
}

/// Why a session could not be started or resumed, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The target's agent is not connected; whether there is such a target may not be known.
    #[error("target `{target}` is not connected to Systems Manager")]
    TargetNotConnected {
        target: Target,
        /// What the service answered.
        #[source]
        source: BoxError,
    },
    /// The target is not known in this account and region.
    #[error(
        "target `{target}` does not exist, is terminated, or has never registered with Systems Manager in {region} of this account"
    )]
    TargetNotFound {
        target: Target,
        /// Where it was looked for.
        region: String,
        /// What the service answered.
        #[source]
        source: BoxError,
    },
    /// The identity may not do this; the source's text names the resource.
    #[error("not authorized to perform `{action}` on `{resource}`")]
    AccessDenied {
        /// The IAM action, such as `ssm:StartSession`.
        action: &'static str,
        /// The resource that the service named, or the one that was asked for.
        resource: String,
        /// What the service answered.
        #[source]
        source: BoxError,
    },
    /// There is no approval, or it does not go so far.
    #[error(transparent)]
    Unapproved(Unapproved),
    /// The service does not take the session document or a parameter of it.
    #[error("the session document `{document}` was refused")]
    DocumentRefused {
        /// The document's name.
        document: String,
        /// What the service answered.
        #[source]
        source: BoxError,
    },
    /// There is no session to resume: it has timed out or been terminated.
    #[error("session `{id}` has ended")]
    SessionEnded { id: SessionId },
    /// The service asks for fewer calls.
    #[error("the service throttles `{action}`")]
    Throttled {
        action: &'static str,
        /// What the service answered.
        #[source]
        source: BoxError,
    },
    /// There are no credentials, or they have expired and cannot be refreshed.
    #[error("there are no valid credentials for `{action}`")]
    Credentials {
        /// The IAM action that needs them.
        action: &'static str,
        /// Why there are none.
        #[source]
        source: BoxError,
    },
    /// The endpoint could not be reached: name, route, proxy or TLS.
    #[error("cannot reach `{host}`")]
    Unreachable {
        host: String,
        /// What went wrong.
        #[source]
        source: BoxError,
    },
    /// The service names a WebSocket host that is not its own. Nothing was sent to it.
    #[error("the stream URL points at `{host}`, which is not the message gateway of this region")]
    ForeignStreamUrl { host: PeerText },
    /// The gateway answered the upgrade with another status than 101.
    #[error(
        "the message gateway `{host}` refused the WebSocket upgrade with status {status}{}",
        if detail.is_empty() { String::new() } else { format!(": {detail}") }
    )]
    UpgradeRefused {
        host: String,
        status: u16,
        /// The start of the answer's body, or the reason that the gateway gave.
        detail: PeerText,
    },
    /// The service refuses the request itself, and would refuse the same one again.
    #[error("`{action}` on `{resource}` was refused")]
    Refused {
        action: &'static str,
        /// The target or the session.
        resource: String,
        /// What the service answered.
        #[source]
        source: BoxError,
    },
    /// Trouble of the service, which may pass.
    #[error("`{action}` failed")]
    Service {
        action: &'static str,
        /// What the service answered.
        #[source]
        source: BoxError,
    },
    /// The peer did not answer within the time that such a step may take.
    #[error("`{step}` took longer than {seconds} s")]
    Timeout {
        /// What was being done.
        step: &'static str,
        /// The limit, in seconds.
        seconds: u64,
    },
}
