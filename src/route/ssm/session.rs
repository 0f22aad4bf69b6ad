//! The life of one session: started, driven, resumed, ended.
//!
//! One task, which owns the [`Driver`] and keeps it turning in whatever it does, so that local programs get what has come
//! for them even while nothing more can come.
//!
//! Invariants: whether a session is resumed is decided by [`recovery`] alone; every session that was started is
//! ended by its flag, by the service, or by a call, and the call is made unless the service has said
//! that the session is over.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::maybe_done;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use super::{
    Dial, DialError, SessionFault, SessionHandle, SsmRoute, Transport,
    driver::{Attachment, Driver, DriverParts},
    find::{Fate, Seat},
    hints,
    proto::{CloseReason, MessageIds, Now, PortSession},
    recovery::{self, Denial, History},
    start::find_and_start,
};
use crate::{
    remote::Remote,
    route::{End, LinkState, Mailbox, Report, Reporter, RetryNow, Terms},
    util::{backoff::Jitter, peer_text::sentence},
};

/// How long one attempt to resume may take.
pub(super) const RESUME_LIMIT: Duration = Duration::from_secs(20);

/// How long the agent has for acknowledging the end of a session.
pub(super) const FLAG_LIMIT: Duration = Duration::from_millis(1500);

/// How long a call that ends a session may take while the user waits.
const STOP_CALL_LIMIT: Duration = Duration::from_millis(2500);

/// How long saying goodbye to the gateway may take.
const CLOSE_LIMIT: Duration = Duration::from_millis(300);

/// How long a call that ends a session which nobody uses any more may take.
pub(super) const TERMINATE_LIMIT: Duration = Duration::from_secs(10);

/// How often ending such a session is tried, and the pause between.
const TERMINATE_ATTEMPTS: u32 = 4;
const TERMINATE_PAUSE: Duration = Duration::from_secs(15);

/// How long a transport has to live to count as one that worked, if nothing was said on it.
const IDLE_PROOF: Duration = Duration::from_secs(60);

/// How long a transport on which the agent has been heard has to live to count as one that worked. One that is closed
/// as soon as it has carried a message must not be replaced over and over without a pause.
const TRANSPORT_PROOF: Duration = Duration::from_secs(3);

/// What becomes of a session next.
enum Stage {
    Drive(Box<Transport>),
    Resume { after: Duration },
    Ended(SessionFault),
    Stopped,
}

pub(super) struct SessionTask {
    route: Arc<SsmRoute>,
    to: Arc<Remote>,
    handle: SessionHandle,
    /// Its place on a target that was found, and what is known to become of that.
    seat: Option<Seat>,
    fate: Fate,
    /// Tells when the session comes up; `None` once it has.
    link: Option<watch::Receiver<LinkState>>,
    driver: Driver,
    reports: Reporter,
    retry_now: RetryNow,
    stop: CancellationToken,
    terms: Terms,
    jitter: Jitter,
    /// See [`History`].
    resumes: u32,
    down_since: Option<Duration>,
    /// When something last came through a transport of the session.
    heard_at: Option<Now>,
}

/// How long it may take to find out whether a target has gone, before a lost session is tried to be resumed again.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// How long the agent on a capped target has to speak. It does so at once, or never: what is over the cap is dropped.
const CAPPED_HANDSHAKE: Duration = Duration::from_secs(15);

/// Starts a session, and keeps it going until it is over or a stop is asked for.
pub(super) async fn run(route: Arc<SsmRoute>, to: Arc<Remote>, mut mailbox: Mailbox) {
    let mut permit = mailbox.permit.take();
    let Some(outcome) = find_and_start(&route, &to, &mailbox, &mut permit).await else { return };
    drop(permit);
    match outcome {
        Ok(started) => {
            let span = info_span!("session", id = %started.handle.id);
            let task = SessionTask::new(route, to, started.handle, started.seat, mailbox);
            Box::pin(task.run(started.transport)).instrument(span).await;
        }
        Err(fault) => mailbox.reports.send(Report::Ended(End { fault, served: false, open: 0 })),
    }
}

/// What ends the time that a session is driven, other than a fault.
enum Event {
    Stop,
    Established,
    Fate(Fate),
}

impl SessionTask {
    /// Takes a session that has just been started.
    fn new(route: Arc<SsmRoute>, to: Arc<Remote>, handle: SessionHandle, seat: Option<Seat>, mailbox: Mailbox) -> Self {
        let Mailbox { commands, reports, meter, state, share, stop, retry_now, terms, permit: _ } = mailbox;
        info!(session = %handle.id, target = %handle.target, "session started");
        let mut jitter = Jitter::new(terms.seed);
        let ids = MessageIds::new(jitter.next_u64());
        let mut config = route.config.session.clone();
        config.handshake_timeout = terms.up_within;
        if seat.as_ref().is_some_and(Seat::is_capped) {
            config.handshake_timeout = config.handshake_timeout.min(CAPPED_HANDSHAKE);
        }
        let session = PortSession::new(config, ids, terms.clock.now());
        let link = state.subscribe();
        let parts = DriverParts {
            clock: terms.clock,
            inbox: commands,
            reports: reports.clone(),
            meter,
            state,
            share,
            is_unprobed: terms.is_unprobed,
            keeps_warm: terms.keeps_warm,
        };
        let driver = Driver::new(parts, session);
        let through = seat.as_ref().map(|seat| seat.target().to_string());
        reports.send(Report::Started { id: Some(handle.id.to_string()), through });
        Self {
            route,
            to,
            handle,
            seat,
            fate: Fate::Stays,
            link: Some(link),
            driver,
            reports,
            retry_now,
            stop,
            terms,
            jitter,
            resumes: 0,
            down_since: None,
            heard_at: None,
        }
    }

    async fn run(mut self, transport: Transport) {
        let mut stage = Stage::Drive(Box::new(transport));
        loop {
            stage = match stage {
                Stage::Drive(transport) => self.drive(*transport).await,
                Stage::Resume { after } => self.resume(after).await,
                Stage::Ended(fault) => return self.finish(fault).await,
                Stage::Stopped => {
                    self.driver.end();
                    self.driver.close();
                    return;
                }
            };
        }
    }

    async fn drive(&mut self, transport: Transport) -> Stage {
        let stop = self.stop.clone();
        let attached_at = self.terms.clock.now();
        let mut attachment = Attachment::new(transport, attached_at);
        loop {
            let (link, seat, to, fate) = (&mut self.link, &self.seat, &*self.to, self.fate);
            let event = async {
                let established = async {
                    let Some(link) = link else { return std::future::pending().await };
                    // Without a sender the session is over, which is seen elsewhere.
                    let _outcome = link.wait_for(|state| matches!(state, LinkState::Up { .. })).await;
                };
                let worse = async {
                    match seat {
                        Some(seat) if fate < Fate::Gone => seat.fate_after(to, fate).await,
                        Some(_) | None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Event::Stop,
                    () = established => Event::Established,
                    fate = worse => Event::Fate(fate),
                }
            };
            match self.driver.drive(Some(&mut attachment), event).await {
                Ok(Event::Stop) => {
                    self.stop_session(attachment).await;
                    return Stage::Stopped;
                }
                Ok(Event::Established) => {
                    self.link = None;
                    self.seat.iter().for_each(Seat::established);
                }
                Ok(Event::Fate(Fate::Gone)) => {
                    self.driver.detach();
                    return Stage::Ended(SessionFault::TargetGone { target: self.handle.target.clone() });
                }
                Ok(Event::Fate(fate)) => {
                    info!(target = %self.handle.target, "the target is about to go: new connections are to go elsewhere");
                    self.fate = fate;
                    self.reports.send(Report::Leaving);
                }
                Err(fault) => return self.lose(&attachment, attached_at, fault),
            }
        }
    }

    /// Takes note that the transport is lost.
    fn lose(&mut self, attachment: &Attachment, attached_at: Now, fault: SessionFault) -> Stage {
        self.heard_at = Some(attachment.heard_at());
        let lived = self.terms.clock.now().mono.saturating_sub(attached_at.mono);
        if self.driver.is_alive() || lived >= IDLE_PROOF {
            self.down_since = None;
        }
        if lived >= if self.driver.is_alive() { TRANSPORT_PROOF } else { IDLE_PROOF } {
            self.resumes = 0;
        }
        self.driver.detach();
        self.after_fault(fault)
    }

    async fn resume(&mut self, after: Duration) -> Stage {
        let stop = self.stop.clone();
        let (route, retry_now, handle) = (Arc::clone(&self.route), self.retry_now.clone(), self.handle.clone());
        let (seat, to) = (&self.seat, &*self.to);
        let attempt = async {
            retry_now.pause(after).await;
            let outcome = timeout(RESUME_LIMIT, route.dial.resume(&handle)).await;
            // Most losses are no news of the target, and where AWS is not reached it cannot be asked either.
            if let (Some(seat), Ok(Err(_)) | Err(_)) = (seat, &outcome)
                && timeout(LOOK_LIMIT, seat.has_gone(to)).await.is_ok_and(|gone| gone)
            {
                return None;
            }
            let is_active = match &outcome {
                Ok(Err(DialError::AccessDenied { .. })) => {
                    timeout(RESUME_LIMIT, route.dial.is_active(&handle)).await.ok().flatten()
                }
                Ok(_) | Err(_) => None,
            };
            Some((outcome, is_active))
        };
        let error = match self.driver.drive(None, stop.run_until_cancelled(attempt)).await {
            Ok(None) => {
                self.driver.end();
                call_terminate(&*self.route.dial, &self.handle).await;
                return Stage::Stopped;
            }
            Ok(Some(Some((Ok(Ok(transport)), _)))) => {
                info!("session resumed");
                self.route.resumes.store(true, Ordering::Relaxed);
                self.driver.reattach();
                self.reports.send(Report::Resumed);
                return Stage::Drive(Box::new(transport));
            }
            Ok(Some(Some((Ok(Err(error @ DialError::AccessDenied { .. })), is_active)))) => {
                self.judge_denial(error, is_active)
            }
            Ok(Some(Some((Ok(Err(error)), _)))) => error,
            Ok(Some(None)) => {
                return Stage::Ended(SessionFault::TargetGone { target: self.handle.target.clone() });
            }
            Ok(Some(Some((Err(_), _)))) => {
                DialError::Timeout { step: "resume a session", seconds: RESUME_LIMIT.as_secs() }
            }
            Err(fault) => return self.after_fault(fault),
        };
        self.after_fault(SessionFault::Resume(error))
    }

    /// Finds out what it says that resuming a session was denied.
    fn judge_denial(&self, error: DialError, is_active: Option<bool>) -> DialError {
        let now = self.terms.clock.now();
        // Only one of the clocks goes on while the machine sleeps.
        let since = |at: Now| now.mono.saturating_sub(at.mono).max(now.wall.abs_diff(at.wall));
        let unheard = self.heard_at.map_or(Duration::MAX, since);
        match recovery::denial(is_active, unheard, self.route.resumes.load(Ordering::Relaxed)) {
            Denial::Proven => {
                // The next is tried all the same: policies change, and a call costs little.
                self.reports.send(Report::Caution(hints::resume_denied(self.to.region())));
                error
            }
            Denial::Ended => DialError::SessionEnded { id: self.handle.id.clone() },
            Denial::Unproven => {
                debug!("resuming was denied, perhaps because the session has ended");
                error
            }
        }
    }

    /// Decides what follows a fault. The transport, if there was one, is gone.
    fn after_fault(&mut self, fault: SessionFault) -> Stage {
        let fault = self.judge_silence(fault);
        let now = self.terms.clock.now().mono;
        if fault.is_of_transport() {
            self.resumes += 1;
            self.down_since.get_or_insert(now);
        }
        let history = History {
            resumes: self.resumes,
            down_for: self.down_since.map_or(Duration::ZERO, |since| now.saturating_sub(since)),
            budget: self.route.config.resume_budget,
        };
        let Some(after) = recovery::resume_after(&fault, &history, &mut self.jitter) else {
            return Stage::Ended(fault);
        };
        let error = sentence(&fault);
        // An attempt that failed is no news; the loss was.
        if matches!(fault, SessionFault::Resume(_)) {
            debug!(error, ?after, "cannot resume the session yet");
        } else {
            info!(error, "transport lost, resuming the session");
        }
        self.reports.send(Report::Lost(fault.into_fault(&self.to)));
        self.driver.return_waiting();
        Stage::Resume { after }
    }

    /// Finds out what it says that the agent has not spoken.
    fn judge_silence(&self, fault: SessionFault) -> SessionFault {
        match (fault, &self.seat) {
            (SessionFault::Closed(CloseReason::HandshakeTimeout { seconds, .. }), Some(seat)) if seat.is_capped() => {
                let (target, sessions) = (self.handle.target.clone(), seat.dropped());
                SessionFault::Dropped { target, sessions, seconds, crowd: None }
            }
            (fault, _) => fault,
        }
    }

    /// Finds out how many sessions a target has that has dropped one.
    async fn count_crowd(&mut self, mut fault: SessionFault) -> SessionFault {
        if let (SessionFault::Dropped { crowd, .. }, Some(seat)) = (&mut fault, &self.seat) {
            let counted = self.stop.run_until_cancelled(seat.crowd());
            // Without a session there is no fault.
            *crowd = self.driver.drive(None, counted).await.ok().flatten().flatten();
        }
        fault
    }

    /// Ends a session in good order: streams get a grace period, then the agent is told, and the
    /// service in any case.
    async fn stop_session(&mut self, mut attachment: Attachment) {
        self.driver.return_waiting();
        let mut progress = self.driver.progress();
        let quiet = async { progress.wait_for(|progress| progress.open == 0).await.is_ok() };
        let grace = timeout(self.terms.grace, quiet);
        let mut fault = self.driver.drive(Some(&mut attachment), grace).await.err();
        let (route, handle) = (Arc::clone(&self.route), self.handle.clone());
        // The session may end while the call is under way or after it: its outcome is kept for both.
        let mut call = pin!(maybe_done(timeout(STOP_CALL_LIMIT, route.dial.terminate(&handle))));
        if fault.is_none() {
            self.driver.terminate();
            let mut progress = self.driver.progress();
            let acknowledged = async { progress.wait_for(|progress| progress.terminated).await.is_ok() };
            let flag = timeout(FLAG_LIMIT, acknowledged);
            // Together, so that a slow answer to one does not add to the other.
            let both = async { futures_util::join!(flag, call.as_mut()) };
            fault = self.driver.drive(Some(&mut attachment), both).await.err();
        }
        if let Some(fault) = fault {
            debug!(error = sentence(&fault), "session ended while it was being stopped");
        }
        call.as_mut().await;
        if let Some(outcome) = call.as_mut().take_output() {
            note_terminated(outcome);
        }
        close(attachment.into_transport()).await;
    }

    /// Tells of the end, delivers what has come, and sees to it that the session is over for AWS as well.
    async fn finish(mut self, fault: SessionFault) {
        let (open, served, is_over) = (self.driver.open_connections(), self.driver.has_served(), fault.is_over());
        self.driver.end();
        let fault = self.count_crowd(fault).await.into_fault(&self.to);
        self.reports.send(Report::Ended(End { fault, served, open }));
        self.driver.close();
        let (route, handle, stop) = (Arc::clone(&self.route), self.handle.clone(), self.stop.clone());
        let ending = async {
            if is_over {
                return route.dial.ended(&handle);
            }
            // A call that is under way when a stop is asked for has less time than it was given.
            let limit = async {
                stop.cancelled().await;
                tokio::time::sleep(STOP_CALL_LIMIT).await;
            };
            tokio::select! {
                () = terminate(&*route.dial, &handle, &stop) => {}
                () = limit => warn!("ending a session took too long"),
            }
        };
        let mut progress = self.driver.progress();
        let (grace, stopped) = (self.terms.grace, self.stop.clone());
        let delivered = async {
            let delivered = progress.wait_for(|progress| progress.left == 0);
            let limit = async {
                stopped.cancelled().await;
                tokio::time::sleep(grace).await;
            };
            tokio::select! {
                _ = delivered => {}
                () = limit => {}
            }
        };
        let both = async { futures_util::join!(ending, delivered) };
        // Without a session there is no fault.
        let _outcome = self.driver.drive(None, both).await;
    }
}

/// Ends a session that has been given up, beside everything else.
async fn terminate(dial: &dyn Dial, handle: &SessionHandle, stop: &CancellationToken) {
    for _ in 0..TERMINATE_ATTEMPTS {
        let limit = if stop.is_cancelled() { STOP_CALL_LIMIT } else { TERMINATE_LIMIT };
        match timeout(limit, dial.terminate(handle)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => debug!(error = sentence(&error), "cannot end a session"),
            Err(_) => debug!("ending a session took too long"),
        }
        if stop.is_cancelled() {
            break;
        }
        // A stop is the last chance, and no reason to wait.
        let _outcome = timeout(TERMINATE_PAUSE, stop.cancelled()).await;
    }
    warn!("a session could not be ended: the service will end it when it has been idle");
}

pub(super) async fn call_terminate(dial: &dyn Dial, handle: &SessionHandle) {
    note_terminated(timeout(STOP_CALL_LIMIT, dial.terminate(handle)).await);
}

/// Says goodbye to the gateway.
pub(super) async fn close(transport: Transport) {
    if timeout(CLOSE_LIMIT, transport.close()).await.is_err() {
        debug!("the message gateway did not take the close frame in time");
    }
}

fn note_terminated(outcome: Result<Result<(), DialError>, tokio::time::error::Elapsed>) {
    match outcome {
        Ok(Ok(())) => info!("session ended"),
        Ok(Err(error)) => warn!(error = sentence(&error), "cannot end the session"),
        Err(_) => warn!("ending the session took too long"),
    }
}
