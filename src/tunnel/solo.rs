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
use tokio_rustls::client::TlsStream;
use tracing::debug;
use uuid::Uuid;

use super::{
    Dial, DialError, Fault, Probe, ProbeError, SessionId,
    budget::{Budget, RECEIVE_BUDGET, Share},
    connection::{Io, PipeEnd},
    driver::{Command, Driver, Link},
    fault::display_chain,
    held::Held,
    meter::{LinkState, Meter},
    probe::after_end,
    prober::PIPE_LEN,
    report::{Report, Reporter},
    session::{self, FLAG_LIMIT, RESUME_LIMIT, START_LIMIT, TERMINATE_LIMIT},
};
use crate::{
    clock::Clock,
    cluster::{Destination, Target},
    route::ssm::proto::{self, CloseReason, MessageIds, PortSession, Version},
};

/// How long the agent may take to be heard through a transport that is new.
const ALIVE_LIMIT: Duration = Duration::from_secs(10);

/// A session that has been started. See the module's documentation.
pub struct SoloSession {
    dial: Arc<dyn Dial>,
    clock: Clock,
    handle: super::SessionHandle,
    driver: Driver,
    link: Option<Link>,
    commands: mpsc::UnboundedSender<Command>,
    reports: mpsc::UnboundedReceiver<(usize, Report)>,
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
        config: proto::Config,
        clock: Clock,
    ) -> Result<Self, DialError> {
        let late = |_| DialError::Timeout { step: "start a session", seconds: START_LIMIT.as_secs() };
        let (handle, transport) = timeout(START_LIMIT, dial.start(target, destination)).await.map_err(late)??;
        let (commands, inbox) = mpsc::unbounded_channel();
        let (report_sender, reports) = mpsc::unbounded_channel();
        let link_state = watch::Sender::new(LinkState::Down);
        let reporter = Reporter::new(0, report_sender);
        let share = Share::new(Budget::new(RECEIVE_BUDGET, 1));
        let mut driver = Driver::new(clock, inbox, reporter, Arc::new(Meter::default()), link_state, share);
        let ids = MessageIds::new(Uuid::new_v4().as_u64_pair().0);
        let now = clock.now();
        driver.begin(PortSession::new(config, ids, now));
        let link = Some(Link::new(transport, now));
        Ok(Self { dial, clock, handle, driver, link, commands, reports, over: false })
    }

    /// Returns the session's id.
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
    /// See [`Fault`]; a handshake that does not come is a [`CloseReason::HandshakeTimeout`].
    ///
    /// # Cancel safety
    /// Safe, but a version that was lost does not come again.
    pub async fn established(&mut self) -> Result<Version, Fault> {
        let reports = &mut self.reports;
        let version = next(reports, |report| {
            let Report::Established { agent_version, .. } = report else { return None };
            Some(agent_version)
        });
        let outcome = self.driver.drive(self.link.as_mut(), version).await;
        outcome.map_err(|fault| self.note(fault))
    }

    /// Makes a TLS connection with the API server through the session, within `limit`.
    ///
    /// # Errors
    /// [`Fault::Probe`], or what has become of the session.
    ///
    /// # Cancel safety
    /// Safe: the connection ends.
    pub async fn open(&mut self, probe: &Probe, limit: Duration) -> Result<TlsStream<DuplexStream>, Fault> {
        let (near, ended) = self.connect(limit);
        match self.run(timeout(limit, probe.connect(near))).await? {
            Ok(Ok(tls)) => Ok(tls),
            Ok(Err(error)) => Err(Fault::Probe(after_end(error, ended))),
            Err(_) => Err(Fault::Probe(ProbeError::NoAnswer { seconds: limit.as_secs() })),
        }
    }

    /// Keeps the session going until `work`, which uses connections through it, is done.
    ///
    /// # Errors
    /// See [`Fault`].
    ///
    /// # Cancel safety
    /// That of `work`.
    pub async fn run<F: Future>(&mut self, work: F) -> Result<F::Output, Fault> {
        let outcome = self.driver.drive(self.link.as_mut(), work).await;
        outcome.map_err(|fault| self.note(fault))
    }

    /// Drops the transport, resumes the session, and waits until the agent is heard through the new one.
    ///
    /// # Errors
    /// [`Fault::Resume`]; [`CloseReason::Unacknowledged`] if nothing is heard; else what has become of the session.
    ///
    /// # Cancel safety
    /// Safe: without a transport the session can still be resumed and ended.
    pub async fn resume(&mut self) -> Result<(), Fault> {
        if let Some(link) = self.link.take() {
            self.driver.detach();
            session::close(link.into_transport()).await;
        }
        let late = |_| DialError::Timeout { step: "resume a session", seconds: RESUME_LIMIT.as_secs() };
        let resumed = timeout(RESUME_LIMIT, self.dial.resume(&self.handle)).await;
        let transport = match resumed.map_err(late).and_then(|outcome| outcome) {
            Ok(transport) => transport,
            Err(error) => {
                self.over |= matches!(error, DialError::SessionEnded { .. });
                return Err(Fault::Resume(error));
            }
        };
        self.driver.reattach();
        self.link = Some(Link::new(transport, self.clock.now()));
        // Old ones would tell of the transport before.
        while self.reports.try_recv().is_ok() {}
        // Something that the agent has to acknowledge, whatever becomes of it.
        let (_near, _ended) = self.connect(ALIVE_LIMIT);
        let alive = next(&mut self.reports, |report| matches!(report, Report::Alive).then_some(()));
        match self.driver.drive(self.link.as_mut(), timeout(ALIVE_LIMIT, alive)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Fault::Closed(CloseReason::Unacknowledged { seconds: ALIVE_LIMIT.as_secs() })),
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
        if outcome.is_err() && self.link.is_some() {
            self.driver.terminate();
            let mut progress = self.driver.progress();
            let told = async { progress.wait_for(|progress| progress.terminated).await.is_ok() };
            let told = self.run(timeout(FLAG_LIMIT, told)).await;
            debug!(told = matches!(told, Ok(Ok(true))), "told the agent to end the session");
        }
        self.driver.end();
        if let Some(link) = self.link.take() {
            session::close(link.into_transport()).await;
        }
        outcome
    }

    /// Asks for a connection to the destination. The receiver tells how it ended, if not well.
    fn connect(&self, limit: Duration) -> (DuplexStream, oneshot::Receiver<PipeEnd>) {
        let (near, far) = tokio::io::duplex(PIPE_LEN);
        let (end, ended) = oneshot::channel();
        let io = Io::Pipe { stream: far, end, probe: true };
        let deadline = self.clock.now().mono + limit;
        // The driver, which has the other end, is part of this value.
        let _outcome = self.commands.send(Command::Connect(Held { io, deadline }));
        (near, ended)
    }

    /// Takes note of what a fault means for the session.
    fn note(&mut self, fault: Fault) -> Fault {
        debug!(error = display_chain(&fault), "the session has a fault");
        self.link = None;
        if let Fault::Closed(reason) = &fault {
            self.over |= matches!(reason, CloseReason::ChannelClosed { .. });
            self.driver.end();
        } else {
            self.driver.detach();
        }
        fault
    }
}

/// Waits for a report that `pick` takes.
async fn next<T>(reports: &mut mpsc::UnboundedReceiver<(usize, Report)>, pick: impl Fn(Report) -> Option<T>) -> T {
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
