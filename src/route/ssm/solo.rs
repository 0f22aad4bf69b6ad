//! One session by itself, without a listener: for those who go through its life step by step.
//!
//! It is carried by the same [`Driver`] as the sessions of tunnels, so what is found here holds for them. Nothing
//! is tried twice and nothing is decided: each step ends with its outcome.
//!
//! Invariant: a session that was started is ended by [`SoloSession::end`]; nothing ends it when it is dropped.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    io::DuplexStream,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tracing::debug;
use uuid::Uuid;

use super::{
    Dial, DialError, SessionFault, SessionHandle, SessionId,
    driver::{Attachment, Driver, DriverParts},
    proto::{self, CloseReason, MessageIds, PortSession},
    session::{self, FLAG_LIMIT, RESUME_LIMIT, TERMINATE_LIMIT},
    start::START_LIMIT,
};
use crate::{
    bastion::Target,
    clock::Clock,
    cluster::Destination,
    route::{Budget, Command, Held, Io, LinkState, Meter, PipeEnd, RECEIVE_BUDGET, Report, Reporter, Share},
    util::peer_text::sentence,
};

/// Size of the pipe between a connection and the driver, in bytes.
const PIPE_LEN: usize = 16 << 10;

/// How long the agent may take to be heard through a transport that is new.
const ALIVE_LIMIT: Duration = Duration::from_secs(10);

/// A session that has been started. See the module's documentation.
pub struct SoloSession {
    dial: Arc<dyn Dial>,
    clock: Clock,
    handle: SessionHandle,
    driver: Driver,
    attachment: Option<Attachment>,
    commands: mpsc::UnboundedSender<Command>,
    reports: mpsc::UnboundedReceiver<(u64, Report)>,
    over: bool,
}

impl std::fmt::Debug for SoloSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SoloSession").field("id", &self.handle.id).finish_non_exhaustive()
    }
}

impl SoloSession {
    /// Starts a session that forwards to `destination`, and opens its transport.
    ///
    /// # Errors
    /// See [`DialError`].
    ///
    /// # Cancel safety
    /// That of [`Dial::start`], which ends a session that nobody takes.
    pub async fn start(
        dial: Arc<dyn Dial>,
        target: &Target,
        destination: &Destination,
        document: Option<String>,
        config: proto::Config,
        clock: Clock,
    ) -> Result<Self, DialError> {
        let late = |_| DialError::Timeout { step: "start a session", seconds: START_LIMIT.as_secs() };
        let (handle, transport) =
            timeout(START_LIMIT, dial.start(target, destination, document)).await.map_err(late)??;
        let (commands, inbox) = mpsc::unbounded_channel();
        let (report_sender, reports) = mpsc::unbounded_channel();
        let parts = DriverParts {
            clock,
            inbox,
            reports: Reporter::new(0, report_sender),
            meter: Arc::new(Meter::default()),
            state: watch::Sender::new(LinkState::Down),
            share: Share::new(Budget::new(RECEIVE_BUDGET, 1)),
            is_unprobed: false,
            keeps_warm: false,
        };
        let ids = MessageIds::new(Uuid::new_v4().as_u64_pair().0);
        let now = clock.now();
        let driver = Driver::new(parts, PortSession::new(config, ids, now));
        let attachment = Some(Attachment::new(transport, now));
        Ok(Self { dial, clock, handle, driver, attachment, commands, reports, over: false })
    }

    #[must_use]
    pub fn id(&self) -> &SessionId {
        &self.handle.id
    }

    /// Whether the session has been found to be over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Waits for the end of the agent's handshake, and returns the agent's version.
    ///
    /// # Errors
    /// See [`SessionFault`]; a handshake that does not come is a [`CloseReason::HandshakeTimeout`].
    ///
    /// # Cancel safety
    /// Safe, but a version that was lost does not come again.
    pub async fn established(&mut self) -> Result<String, SessionFault> {
        let reports = &mut self.reports;
        let version = next(reports, |report| {
            let Report::Established { peer_version, .. } = report else { return None };
            peer_version
        });
        let outcome = self.driver.drive(self.attachment.as_mut(), version).await;
        outcome.map_err(|fault| self.note(fault))
    }

    /// Keeps the session going until `work`, which uses connections through it, is done.
    ///
    /// # Errors
    /// See [`SessionFault`].
    ///
    /// # Cancel safety
    /// That of `work`.
    pub async fn run<F: Future>(&mut self, work: F) -> Result<F::Output, SessionFault> {
        let outcome = self.driver.drive(self.attachment.as_mut(), work).await;
        outcome.map_err(|fault| self.note(fault))
    }

    /// Drops the transport, resumes the session, and waits until the agent is heard through the new one.
    ///
    /// # Errors
    /// [`SessionFault::Resume`]; [`CloseReason::Unacknowledged`] if nothing is heard; else what has become of the session.
    ///
    /// # Cancel safety
    /// Safe: without a transport the session can still be resumed and ended.
    pub async fn resume(&mut self) -> Result<(), SessionFault> {
        if let Some(attachment) = self.attachment.take() {
            self.driver.detach();
            session::close(attachment.into_transport()).await;
        }
        let late = |_| DialError::Timeout { step: "resume a session", seconds: RESUME_LIMIT.as_secs() };
        let resumed = timeout(RESUME_LIMIT, self.dial.resume(&self.handle)).await;
        let transport = match resumed.map_err(late).and_then(|outcome| outcome) {
            Ok(transport) => transport,
            Err(error) => {
                self.over |= matches!(error, DialError::SessionEnded { .. });
                return Err(SessionFault::Resume(error));
            }
        };
        self.driver.reattach();
        self.attachment = Some(Attachment::new(transport, self.clock.now()));
        // Old ones would tell of the transport before.
        while self.reports.try_recv().is_ok() {}
        // Something that the agent has to acknowledge, whatever becomes of it.
        let (_near, _ended) = self.connect(ALIVE_LIMIT);
        let alive = next(&mut self.reports, |report| matches!(report, Report::Alive).then_some(()));
        match self.driver.drive(self.attachment.as_mut(), timeout(ALIVE_LIMIT, alive)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(SessionFault::Closed(CloseReason::Unacknowledged { seconds: ALIVE_LIMIT.as_secs() })),
            Err(fault) => Err(self.note(fault)),
        }
    }

    /// Ends the session by a call, and if that does not do, by telling the agent. Returns what came of the call.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn end(mut self) -> Result<(), DialError> {
        let dial = Arc::clone(&self.dial);
        let handle = self.handle.clone();
        let mut call = pin!(timeout(TERMINATE_LIMIT, dial.terminate(&handle)));
        let outcome = match self.run(call.as_mut()).await {
            Ok(outcome) => outcome,
            // The session may be over before the call returns.
            Err(_) => call.await,
        };
        let late = |_| DialError::Timeout { step: "end a session", seconds: TERMINATE_LIMIT.as_secs() };
        let outcome = outcome.map_err(late).and_then(|outcome| outcome);
        if outcome.is_err() && self.attachment.is_some() {
            self.driver.terminate();
            let mut progress = self.driver.progress();
            let told = async { progress.wait_for(|progress| progress.terminated).await.is_ok() };
            let told = self.run(timeout(FLAG_LIMIT, told)).await;
            debug!(told = matches!(told, Ok(Ok(true))), "told the agent to end the session");
        }
        self.driver.end();
        if let Some(attachment) = self.attachment.take() {
            session::close(attachment.into_transport()).await;
        }
        outcome
    }

    /// Asks for a connection to the destination, which has this long to be made. The receiver tells how it ended, if not
    /// well. Bytes move while the session is [run](Self::run).
    #[must_use]
    pub fn connect(&self, limit: Duration) -> (DuplexStream, oneshot::Receiver<PipeEnd>) {
        let (near, far) = tokio::io::duplex(PIPE_LEN);
        let (end, ended) = oneshot::channel();
        let io = Io::probe(far, end);
        let deadline = self.clock.now().mono + limit;
        // The driver, which has the other end, is part of this value.
        let _outcome = self.commands.send(Command::Connect(Held { io, deadline }));
        (near, ended)
    }

    /// Takes note of what a fault means for the session.
    fn note(&mut self, fault: SessionFault) -> SessionFault {
        debug!(error = sentence(&fault), "the session has a fault");
        self.attachment = None;
        if let SessionFault::Closed(reason) = &fault {
            self.over |= matches!(reason, CloseReason::ChannelClosed { .. });
            self.driver.end();
        } else {
            self.driver.detach();
        }
        fault
    }
}

/// Waits for a report that `pick` takes.
async fn next<T>(reports: &mut mpsc::UnboundedReceiver<(u64, Report)>, pick: impl Fn(Report) -> Option<T>) -> T {
    loop {
        match reports.recv().await {
            Some((_, report)) => {
                if let Some(picked) = pick(report) {
                    return picked;
                }
            }
            None => std::future::pending().await,
        }
    }
}
