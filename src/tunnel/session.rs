//! The succession of sessions in one slot of a tunnel: started, driven, resumed, replaced, ended.
//!
//! One task per slot. It owns the [`Driver`], which it keeps turning in whatever it does, so that
//! local programs get what has come for them even while nothing more can come.
//!
//! Invariants: what follows a fault is decided by [`policy`] alone; every session that was started is
//! ended by its flag, by the service, or by a call, and the call is made unless the service has said
//! that the session is over.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::maybe_done;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use super::{
    Common, Config, Dial, DialError, Fault, SessionHandle, Transport,
    common::Trouble,
    driver::{Driver, Link},
    fault::display_chain,
    policy::{self, Denial, History, Jitter, Step},
    report::{Report, Reporter},
};
use crate::{
    cluster::{Cluster, Target},
    route::ssm::proto::{CloseReason, MessageIds, Now, PortSession},
};

/// How long a start may take. [`Dial`] has limits of its own for its steps.
pub(super) const START_LIMIT: Duration = Duration::from_secs(60);

/// How long one attempt to resume may take.
pub(super) const RESUME_LIMIT: Duration = Duration::from_secs(20);

/// How long a session that is being started has for coming up, to be ended, after a stop.
const STOP_START_LIMIT: Duration = Duration::from_secs(2);

/// How long the agent has for acknowledging the end of a session.
pub(super) const FLAG_LIMIT: Duration = Duration::from_millis(1500);

/// How long a call that ends a session may take while the user waits.
const STOP_CALL_LIMIT: Duration = Duration::from_millis(2500);

/// How long saying goodbye to the gateway may take.
const CLOSE_LIMIT: Duration = Duration::from_millis(300);

/// How long a call that ends a replaced session may take.
pub(super) const TERMINATE_LIMIT: Duration = Duration::from_secs(10);

/// How often ending a replaced session is tried, and the pause between.
const TERMINATE_ATTEMPTS: u32 = 4;
const TERMINATE_PAUSE: Duration = Duration::from_secs(15);

/// How long a transport has to live to count as one that worked, if nothing was said on it.
const IDLE_PROOF: Duration = Duration::from_secs(60);

/// How long a transport on which the agent has been heard has to live to count as one that worked. One that is closed
/// as soon as it has carried a message must not be replaced over and over without a pause.
const TRANSPORT_PROOF: Duration = Duration::from_secs(3);

/// How long a session that has carried data has to live to count as one that was of use.
const USE_PROOF: Duration = Duration::from_secs(10);

/// What all sessions of a tunnel share.
pub(super) struct Shared {
    pub(super) cluster: Arc<Cluster>,
    pub(super) targets: Vec<Target>,
    pub(super) dial: Arc<dyn Dial>,
    pub(super) config: Config,
    pub(super) common: Arc<Common>,
}

/// What the task does next.
enum Stage {
    Start {
        after: Duration,
        target: usize,
    },
    /// Wait for a connection, then start.
    OnDemand {
        target: usize,
    },
    Drive {
        session: Live,
        transport: Box<Transport>,
    },
    Resume {
        session: Live,
        after: Duration,
    },
    Stopped,
}

/// A session that has been started.
#[derive(Debug, Clone)]
struct Live {
    handle: SessionHandle,
    started_at: Duration,
}

/// Where a session's task looks for a target, and what it does when a session ends.
#[derive(Debug, Clone)]
pub(super) struct Assignment {
    /// The first target, by its place in the list.
    pub(super) first: usize,
    /// How many targets of the list there are, as long as the session is not [replaced](Self::replaced).
    pub(super) targets: usize,
    /// Another session follows, on any target, when one ends. Otherwise the task ends with its session, or
    /// when none can be had on the targets from the first on. May change at any time.
    pub(super) replaced: Arc<AtomicBool>,
}

/// One slot's task.
pub(super) struct SessionTask {
    shared: Arc<Shared>,
    driver: Driver,
    reports: Reporter,
    jitter: Jitter,
    /// Calls that end replaced sessions.
    endings: JoinSet<()>,
    stop: CancellationToken,
    assignment: Assignment,
    /// See [`History`].
    target: usize,
    resumes: u32,
    down_since: Option<Duration>,
    /// When something last came through a transport of the session.
    heard_at: Option<Now>,
    starts: u32,
    useful_at: Option<Duration>,
    /// The user has been told that only a human can help.
    needs_human: bool,
}

impl SessionTask {
    /// Creates the task of one slot; `seed` is for delays and message ids.
    pub(super) fn new(
        shared: Arc<Shared>,
        driver: Driver,
        reports: Reporter,
        seed: u64,
        assignment: Assignment,
        stop: CancellationToken,
    ) -> Self {
        Self {
            shared,
            driver,
            reports,
            jitter: Jitter::new(seed),
            endings: JoinSet::new(),
            stop,
            target: assignment.first,
            assignment,
            resumes: 0,
            down_since: None,
            heard_at: None,
            starts: 0,
            useful_at: None,
            needs_human: false,
        }
    }

    /// Keeps a session going until the stop is asked for, then ends it.
    pub(super) async fn run(mut self) {
        let mut stage = Stage::Start { after: Duration::ZERO, target: self.target };
        loop {
            stage = match stage {
                Stage::Start { after, target } => self.start(after, target).await,
                Stage::OnDemand { target } => self.wait_for_demand(target).await,
                Stage::Drive { session, transport } => {
                    let span = info_span!("session", id = %session.handle.id);
                    self.drive(session, transport).instrument(span).await
                }
                Stage::Resume { session, after } => {
                    let span = info_span!("session", id = %session.handle.id);
                    self.resume(session, after).instrument(span).await
                }
                Stage::Stopped => break,
            };
        }
        self.driver.end();
        self.driver.close();
        let endings = async { while self.endings.join_next().await.is_some() {} };
        if timeout(STOP_CALL_LIMIT, endings).await.is_err() {
            warn!("ending replaced sessions took too long");
        }
    }

    async fn start(&mut self, after: Duration, target: usize) -> Stage {
        let shared = Arc::clone(&self.shared);
        let stop = self.stop.clone();
        let pause = async {
            shared.common.pause(after).await;
            shared.common.start_permit().await
        };
        let permit = match self.driver.drive(None, or_stop(&stop, pause)).await {
            Ok(Some(permit)) => permit,
            Ok(None) => return Stage::Stopped,
            Err(fault) => return self.after_fault(fault, None),
        };
        self.target = target;
        let target = &shared.targets[target];
        self.reports.send(Report::Dialing { target: target.clone() });
        debug!(%target, "starting a session");
        let mut dial = Box::pin(timeout(START_LIMIT, shared.dial.start(target, &shared.cluster.endpoint)));
        let outcome = match self.driver.drive(None, or_stop(&stop, &mut dial)).await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => {
                // The session may exist already: it has to be known to be ended.
                if let Ok(Ok(Ok((handle, transport)))) = timeout(STOP_START_LIMIT, dial).await {
                    call_terminate(&shared, &handle).await;
                    close(transport).await;
                }
                return Stage::Stopped;
            }
            Err(fault) => return self.after_fault(fault, None),
        };
        drop(permit);
        let (handle, transport) = match outcome {
            Ok(Ok(started)) => started,
            Ok(Err(error)) => return self.after_fault(Fault::Start(error), None),
            Err(_) => {
                let error = DialError::Timeout { step: "start a session", seconds: START_LIMIT.as_secs() };
                return self.after_fault(Fault::Start(error), None);
            }
        };
        info!(session = %handle.id, target = %handle.target, "session started");
        shared.common.note_started(&handle.target);
        let now = shared.common.clock().now();
        let ids = MessageIds::new(self.jitter.next_u64());
        let mut config = shared.config.session.clone();
        config.handshake_timeout = policy::handshake_limit(config.handshake_timeout, self.starts, self.targets());
        self.driver.begin(PortSession::new(config, ids, now));
        self.resumes = 0;
        self.down_since = None;
        self.reports.send(Report::Started(handle.clone()));
        Stage::Drive { session: Live { handle, started_at: now.mono }, transport: Box::new(transport) }
    }

    async fn wait_for_demand(&mut self, target: usize) -> Stage {
        let stop = self.stop.clone();
        let mut progress = self.driver.progress();
        let demand = async { progress.wait_for(|progress| progress.wanted).await.is_ok() };
        match self.driver.drive(None, or_stop(&stop, demand)).await {
            Ok(Some(_)) => Stage::Start { after: Duration::ZERO, target },
            Ok(None) => Stage::Stopped,
            Err(fault) => self.after_fault(fault, None),
        }
    }

    async fn drive(&mut self, session: Live, transport: Box<Transport>) -> Stage {
        let stop = self.stop.clone();
        let attached_at = self.shared.common.clock().now();
        let mut link = Link::new(*transport, attached_at);
        match self.driver.drive(Some(&mut link), stop.cancelled()).await {
            Ok(()) => {
                self.stop_session(&session.handle, link).await;
                Stage::Stopped
            }
            Err(fault) => {
                self.heard_at = Some(link.heard_at());
                let lived = self.shared.common.clock().now().mono.saturating_sub(attached_at.mono);
                if self.driver.is_alive() || lived >= IDLE_PROOF {
                    self.down_since = None;
                }
                if lived >= if self.driver.is_alive() { TRANSPORT_PROOF } else { IDLE_PROOF } {
                    self.resumes = 0;
                }
                self.driver.detach();
                self.after_fault(fault, Some(session))
            }
        }
    }

    async fn resume(&mut self, session: Live, after: Duration) -> Stage {
        let stop = self.stop.clone();
        let shared = Arc::clone(&self.shared);
        let attempt = async {
            shared.common.pause(after).await;
            let outcome = timeout(RESUME_LIMIT, shared.dial.resume(&session.handle)).await;
            let is_active = match &outcome {
                Ok(Err(DialError::AccessDenied { .. })) => {
                    timeout(RESUME_LIMIT, shared.dial.is_active(&session.handle)).await.ok().flatten()
                }
                Ok(_) | Err(_) => None,
            };
            (outcome, is_active)
        };
        let error = match self.driver.drive(None, or_stop(&stop, attempt)).await {
            Ok(None) => {
                self.driver.end();
                call_terminate(&shared, &session.handle).await;
                return Stage::Stopped;
            }
            Ok(Some((Ok(Ok(transport)), _))) => {
                info!("session resumed");
                shared.common.note_resumed();
                self.driver.reattach();
                self.reports.send(Report::Resumed);
                return Stage::Drive { session, transport: Box::new(transport) };
            }
            Ok(Some((Ok(Err(error @ DialError::AccessDenied { .. })), is_active))) => {
                self.judge_denial(error, is_active, &session)
            }
            Ok(Some((Ok(Err(error)), _))) => error,
            Ok(Some((Err(_), _))) => DialError::Timeout { step: "resume a session", seconds: RESUME_LIMIT.as_secs() },
            Err(fault) => return self.after_fault(fault, Some(session)),
        };
        self.after_fault(Fault::Resume(error), Some(session))
    }

    /// Finds out what it says that resuming a session was denied.
    fn judge_denial(&self, error: DialError, is_active: Option<bool>, session: &Live) -> DialError {
        let common = &self.shared.common;
        let now = common.clock().now();
        // Only one of the clocks goes on while the machine sleeps.
        let since = |at: Now| now.mono.saturating_sub(at.mono).max(now.wall.abs_diff(at.wall));
        let unheard = self.heard_at.map_or(Duration::MAX, since);
        match policy::denial(is_active, unheard, common.has_resumed()) {
            Denial::Proven => {
                common.note_resume_denied();
                error
            }
            Denial::Ended => DialError::SessionEnded { id: session.handle.id.clone() },
            Denial::Unproven => {
                debug!("resuming was denied, perhaps because the session has ended");
                error
            }
        }
    }

    fn is_replaced(&self) -> bool {
        self.assignment.replaced.load(Ordering::Relaxed)
    }

    /// Returns how many targets there are to turn to.
    fn targets(&self) -> usize {
        if self.is_replaced() { self.shared.targets.len() } else { self.assignment.targets }
    }

    /// Decides what follows a fault. The transport, if there was one, is gone.
    fn after_fault(&mut self, fault: Fault, session: Option<Live>) -> Stage {
        let now = self.shared.common.clock().now().mono;
        let lived = session.as_ref().map(|session| now.saturating_sub(session.started_at));
        let useful = lived.is_some_and(|lived| lived >= if self.driver.has_served() { USE_PROOF } else { IDLE_PROOF });
        if useful {
            self.useful_at = Some(now);
        }
        if matches!(fault, Fault::Transport(_) | Fault::Silent { .. } | Fault::Mute { .. } | Fault::Resume(_)) {
            self.resumes += 1;
            self.down_since.get_or_insert(now);
        }
        let replaced = self.is_replaced();
        let history = History {
            resumes: self.resumes,
            down_for: self.down_since.map_or(Duration::ZERO, |since| now.saturating_sub(since)),
            resume_budget: self.shared.config.resume_budget,
            starts: if useful { 0 } else { self.starts + 1 },
            useful_before: self.useful_at.map(|at| now.saturating_sub(at)),
            target: self.target,
            targets: self.targets(),
            idle: !self.shared.config.keeps_warm() && self.driver.open_connections() == 0,
        };
        let step = policy::decide(&fault, &history, &mut self.jitter);
        let error = display_chain(&fault);
        let (after, target) = match step {
            Step::Resume { after } => {
                // An attempt that failed is no news; the loss was.
                if matches!(fault, Fault::Resume(_)) {
                    debug!(error, ?after, "cannot resume the session yet");
                } else {
                    info!(error, "transport lost, resuming the session");
                }
                let Some(session) = session else { return Stage::Start { after, target: self.target } };
                self.reports.send(Report::Lost(Arc::new(fault)));
                self.driver.return_waiting();
                return Stage::Resume { session, after };
            }
            Step::Restart { after, target } | Step::SlowRetry { after, target } => (after, target),
            Step::OnDemand { target } => (Duration::ZERO, target),
        };
        let goes_on = replaced || matches!(step, Step::Restart { target, .. } if target > self.target);
        let trouble = trouble(&fault);
        let is_news =
            trouble.is_some_and(|trouble| self.shared.common.note_trouble(&self.shared.targets[self.target], trouble));
        let turns_to_next = matches!(step, Step::Restart { target, .. } if target > self.target);
        match step {
            _ if is_news && turns_to_next => warn!(error, "no session on this target, turning to the next"),
            _ if !goes_on => debug!(error, "no session, and no other is started in its place"),
            // What stays as it was is no news.
            Step::SlowRetry { .. } if self.needs_human => debug!(error, ?after, "no session yet"),
            Step::SlowRetry { .. } => warn!(error, ?after, "no session, trying again slowly"),
            Step::OnDemand { .. } => info!(error, "session over, another will be started when it is needed"),
            Step::Resume { .. } | Step::Restart { .. } if history.starts > 1 => debug!(error, ?after, "no session yet"),
            Step::Resume { .. } | Step::Restart { .. } => info!(error, ?after, "no session, starting another"),
        }
        self.needs_human = matches!(step, Step::SlowRetry { .. }) || (self.needs_human && history.starts > 1);
        self.starts = history.starts;
        self.driver.end();
        if let Some(session) = session {
            if is_over(&fault) {
                self.shared.dial.ended(&session.handle);
            } else {
                self.terminate_later(session.handle);
            }
        }
        self.reports.send(Report::Ended { fault: Arc::new(fault), step });
        self.driver.return_waiting();
        if !goes_on {
            return Stage::Stopped;
        }
        match step {
            Step::OnDemand { target } => Stage::OnDemand { target },
            Step::Resume { .. } | Step::Restart { .. } | Step::SlowRetry { .. } => Stage::Start { after, target },
        }
    }

    /// Ends a session in good order: streams get a grace period, then the agent is told, and the
    /// service in any case.
    async fn stop_session(&mut self, handle: &SessionHandle, mut link: Link) {
        self.driver.return_waiting();
        let mut progress = self.driver.progress();
        let quiet = async { progress.wait_for(|progress| progress.open == 0).await.is_ok() };
        let grace = timeout(self.shared.config.grace, quiet);
        let mut fault = self.driver.drive(Some(&mut link), grace).await.err();
        let shared = Arc::clone(&self.shared);
        // The session may end while the call is under way or after it: its outcome is kept for both.
        let mut call = pin!(maybe_done(timeout(STOP_CALL_LIMIT, shared.dial.terminate(handle))));
        if fault.is_none() {
            self.driver.terminate();
            let mut progress = self.driver.progress();
            let acknowledged = async { progress.wait_for(|progress| progress.terminated).await.is_ok() };
            let flag = timeout(FLAG_LIMIT, acknowledged);
            // Together, so that a slow answer to one does not add to the other.
            let both = async { futures_util::join!(flag, call.as_mut()) };
            fault = self.driver.drive(Some(&mut link), both).await.err();
        }
        if let Some(fault) = fault {
            debug!(error = display_chain(&fault), "session ended while it was being stopped");
        }
        call.as_mut().await;
        if let Some(outcome) = call.as_mut().take_output() {
            note_terminated(outcome);
        }
        close(link.into_transport()).await;
    }

    /// Ends a session that has been replaced, beside everything else.
    fn terminate_later(&mut self, handle: SessionHandle) {
        while self.endings.try_join_next().is_some() {}
        let shared = Arc::clone(&self.shared);
        let stop = self.stop.clone();
        let span = info_span!("session", id = %handle.id);
        let task = async move {
            for _ in 0..TERMINATE_ATTEMPTS {
                let limit = if stop.is_cancelled() { STOP_CALL_LIMIT } else { TERMINATE_LIMIT };
                match timeout(limit, shared.dial.terminate(&handle)).await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => debug!(error = display_chain(&error), "cannot end a replaced session"),
                    Err(_) => debug!("ending a replaced session took too long"),
                }
                if stop.is_cancelled() {
                    break;
                }
                // A stop is the last chance, and no reason to wait.
                let _outcome = timeout(TERMINATE_PAUSE, stop.cancelled()).await;
            }
            warn!("a replaced session could not be ended: the service will end it when it has been idle");
        };
        self.endings.spawn(task.instrument(span));
    }
}

/// Waits for `future`, or returns `None` when the stop is asked for.
async fn or_stop<F: Future>(stop: &CancellationToken, future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        output = future => Some(output),
    }
}

/// What a fault says of the target.
fn trouble(fault: &Fault) -> Option<Trouble> {
    let Fault::Start(error) = fault else { return None };
    match error {
        DialError::TargetNotConnected { .. } => Some(Trouble::Away),
        DialError::TargetNotFound { .. }
        | DialError::AccessDenied { .. }
        | DialError::DocumentRefused { .. }
        | DialError::Refused { .. } => Some(Trouble::Unusable),
        DialError::Credentials { .. }
        | DialError::ForeignStreamUrl { .. }
        | DialError::SessionEnded { .. }
        | DialError::Service { .. }
        | DialError::Throttled { .. }
        | DialError::Timeout { .. }
        | DialError::Unreachable { .. }
        | DialError::UpgradeRefused { .. } => None,
    }
}

/// Whether the session is known to be over on the other side.
fn is_over(fault: &Fault) -> bool {
    match fault {
        Fault::Closed(reason) => matches!(reason, CloseReason::ChannelClosed { .. }),
        Fault::Resume(error) => matches!(error, DialError::SessionEnded { .. }),
        Fault::Start(_) => true,
        Fault::Transport(_)
        | Fault::Silent { .. }
        | Fault::Mute { .. }
        | Fault::Probe(_)
        | Fault::Exhausted
        | Fault::Panicked { .. } => false,
    }
}

async fn call_terminate(shared: &Shared, handle: &SessionHandle) {
    note_terminated(timeout(STOP_CALL_LIMIT, shared.dial.terminate(handle)).await);
}

/// Says goodbye to the gateway.
pub(super) async fn close(transport: Transport) {
    if timeout(CLOSE_LIMIT, transport.close()).await.is_err() {
        debug!("the message gateway did not take the goodbye in time");
    }
}

fn note_terminated(outcome: Result<Result<(), DialError>, tokio::time::error::Elapsed>) {
    match outcome {
        Ok(Ok(())) => info!("session ended"),
        Ok(Err(error)) => warn!(error = display_chain(&error), "cannot end the session"),
        Err(_) => warn!("ending the session took too long"),
    }
}
