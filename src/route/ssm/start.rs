//! The start of a session: finds a target, gets leave for it where that has to be asked for, and starts a session there.
//!
//! Invariants: what has been started and is not wanted any more is ended; nobody who waits for a person, or for something that
//! is being made, keeps others from starting.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use tracing::debug;

use super::{
    DialError, Goal, SessionFault, SessionHandle, SsmRoute, Transport,
    find::Seat,
    session::{call_terminate, close},
};
use crate::{
    bastion::Target,
    remote::Remote,
    route::{Fault, Mailbox, Report},
    util::peer_text::sentence,
};

/// How long a start may take. [`Dial`](super::Dial) has limits of its own for its steps.
pub(super) const START_LIMIT: Duration = Duration::from_secs(60);

/// How long a session that is being started has for coming up, to be ended, after a stop.
const STOP_START_LIMIT: Duration = Duration::from_secs(2);

/// How many targets are tried, of those that were found, before the link ends.
const MAX_TRIES: usize = 5;

/// How long a target that has just come up is tried again before another is, and the pause between.
const FRESH_LIMIT: Duration = Duration::from_secs(30);
const FRESH_PAUSE: Duration = Duration::from_secs(2);

/// A session that has been started.
pub(super) struct Started {
    pub(super) handle: SessionHandle,
    pub(super) transport: Transport,
    /// Its place on a target that was found.
    pub(super) seat: Option<Seat>,
}

/// Finds a target and starts a session on it. `None`: a stop was asked for.
pub(super) async fn find_and_start(
    route: &SsmRoute,
    to: &Remote,
    mailbox: &Mailbox,
    permit: &mut Option<OwnedSemaphorePermit>,
) -> Option<Result<Started, Arc<Fault>>> {
    let finder = match &route.goal {
        Goal::Fixed(target) => {
            let outcome = start(route, target, to, mailbox, permit).await?;
            return Some(match outcome {
                Ok((handle, transport)) => Ok(Started { handle, transport, seat: None }),
                Err(error) => Err(SessionFault::Start(error).into_fault(to)),
            });
        }
        Goal::Found { finder, .. } => finder,
    };
    let mut tries = 0;
    loop {
        let choosing = finder.choose(to, |report| {
            if matches!(report, Report::Progress(_)) {
                // What is waited for takes long: others may start meanwhile.
                drop(permit.take());
            }
            mailbox.reports.send(report);
        });
        let mut seat = match mailbox.stop.run_until_cancelled(choosing).await? {
            Ok(seat) => seat,
            Err(fault) => return Some(Err(fault)),
        };
        tries += 1;
        let mut began = mailbox.terms.clock.now().mono;
        let error = loop {
            match start(route, seat.target(), to, mailbox, permit).await? {
                Ok((handle, transport)) => {
                    mailbox.reports.send(Report::Notice(seat.notice()));
                    return Some(Ok(Started { handle, transport, seat: Some(seat) }));
                }
                Err(DialError::TargetNotConnected { .. })
                    if seat.is_fresh() && mailbox.terms.clock.now().mono < began + FRESH_LIMIT =>
                {
                    // One that has been up for longer does not have to be waited for.
                    seat.failed();
                    if let Some(other) = finder.another(to).await {
                        (seat, began) = (other, mailbox.terms.clock.now().mono);
                        continue;
                    }
                    let waits = format!("waiting for the agent on `{}`, which has just been started", seat.target());
                    mailbox.reports.send(Report::Progress(waits));
                    mailbox.stop.run_until_cancelled(tokio::time::sleep(FRESH_PAUSE)).await?;
                }
                Err(error) => break error,
            }
        };
        let is_away = matches!(error, DialError::TargetNotConnected { .. } | DialError::TargetNotFound { .. });
        if is_away {
            seat.failed();
        }
        if !is_away || tries == MAX_TRIES {
            return Some(Err(SessionFault::Start(error).into_fault(to)));
        }
        debug!(target = %seat.target(), error = sentence(&error), "a target takes no session, trying another");
    }
}

/// Starts a session on a target, once there is leave for it. `None`: a stop was asked for.
async fn start(
    route: &SsmRoute,
    target: &Target,
    to: &Remote,
    mailbox: &Mailbox,
    permit: &mut Option<OwnedSemaphorePermit>,
) -> Option<Result<(SessionHandle, Transport), DialError>> {
    let tell = |report| mailbox.reports.send(report);
    let mut leave = pin!(route.dial.ask_leave(target, &tell));
    // Mostly there is nothing to ask for, or it is there already.
    let at_once = poll_fn(|context| Poll::Ready(leave.as_mut().poll(context))).await;
    let granted = match at_once {
        Poll::Ready(granted) => granted,
        Poll::Pending => {
            // Nobody knows how long a person takes: others may start meanwhile.
            drop(permit.take());
            mailbox.stop.run_until_cancelled(leave).await?
        }
    };
    if let Err(error) = granted {
        return Some(Err(error));
    }
    debug!(%target, "starting a session");
    let document = route.config.document.as_ref().map(|document| document.of(to.name()));
    let mut dial = Box::pin(timeout(START_LIMIT, route.dial.start(target, to.endpoint(), document)));
    let outcome = tokio::select! {
        biased;
        () = mailbox.stop.cancelled() => None,
        outcome = &mut dial => Some(outcome),
    };
    let Some(outcome) = outcome else {
        // The session may exist already: it has to be known to be ended.
        if let Ok(Ok(Ok((handle, transport)))) = timeout(STOP_START_LIMIT, dial).await {
            call_terminate(&*route.dial, &handle).await;
            close(transport).await;
        }
        return None;
    };
    let late = |_| DialError::Timeout { step: "start a session", seconds: START_LIMIT.as_secs() };
    Some(outcome.map_err(late).and_then(|outcome| outcome))
}
