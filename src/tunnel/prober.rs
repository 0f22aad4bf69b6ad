//! When to probe a link, and what to make of the outcome.
//!
//! One prober per link. A new one is probed at once, a resumed one too; then the path is
//! probed whenever it has not been proved for an interval, by a probe or by bytes both ways. Bytes
//! both ways are asked for because a link that only receives may count as idle at its other end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::{debug, info};

use super::{
    probe::{self, Probe},
    recovery::{self, AfterProbe},
};
use crate::{
    clock::Clock,
    remote::Remote,
    route::{Answer, Command, Held, Io, LinkState, Meter, ProbeError, Report, Reporter, Route},
    util::{backoff::Jitter, peer_text::sentence},
};

/// How long a probe may take. Two in a row and the interval before them make less than 45 s.
const PROBE_LIMIT: Duration = Duration::from_secs(7);

/// Answers that a probe waits for: two of TLS 1.2, and that to the request.
const ROUND_TRIPS: u32 = 3;

/// How often it is looked, after a failed probe, whether the destination has sent something meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait before a link that has been paused is probed again.
const PAUSED_AGAIN: Duration = Duration::from_secs(1);

/// Size of the pipe between the probe and the link, in bytes.
const PIPE_LEN: usize = 16 << 10;

/// Probes one link.
pub(super) struct Prober {
    /// `None`: it is only seen whether the destination accepts a connection.
    pub(super) probe: Option<Probe>,
    /// How long the path may go unproved; zero: only a new link is probed.
    pub(super) interval: Duration,
    pub(super) clock: Clock,
    pub(super) link: watch::Receiver<LinkState>,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) reports: Reporter,
    pub(super) meter: Arc<Meter>,
    /// The tunnel has been proved with a request before: a handshake is enough.
    pub(super) requested: Arc<AtomicBool>,
    /// Asks for a probe: a connection has been refused.
    pub(super) suspicion: Arc<Notify>,
    pub(super) jitter: Jitter,
    pub(super) route: Arc<dyn Route>,
    pub(super) to: Arc<Remote>,
}

impl Prober {
    /// Probes until the link is over.
    pub(super) async fn run(mut self) {
        let mut failures = 0;
        let mut is_proved = false;
        let mut due = Due::At(Duration::ZERO);
        let mut last = LinkState::Down;
        let mut up_since = None;
        loop {
            let Ok(state) = self.link.wait_for(|state| *state != LinkState::Down).await.map(|state| *state) else {
                return;
            };
            if state == LinkState::Over {
                return;
            }
            let up_since = *up_since.get_or_insert_with(|| self.clock.now().mono);
            if state != last {
                if !is_proved || self.is_periodic() {
                    due = Due::At(Duration::ZERO);
                }
                last = state;
            }
            tokio::select! {
                biased;
                changed = self.link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    continue;
                }
                // While probes fail anyway there is nothing to find out.
                () = self.suspicion.notified(), if failures == 0 => {}
                () = wait_until(due, &self.clock) => {
                    let now = self.clock.now().mono;
                    match due {
                        Due::Unless(_) if self.proved_until() > now => {
                            due = Due::Unless(self.proved_until());
                            continue;
                        }
                        Due::Retry { at, since } if at > now && self.received_at() <= since => continue,
                        Due::At(_) | Due::Unless(_) | Due::Retry { .. } | Due::Never => {}
                    }
                }
            }
            if self.meter.held_back.load(Ordering::Relaxed) {
                // Answers wait behind what a local program does not take.
                due = Due::At(self.clock.now().mono + PAUSED_AGAIN);
                continue;
            }
            let heard = self.meter.news.load(Ordering::Relaxed);
            let outcome = self.probe_once(state).await;
            let now = self.clock.now().mono;
            match outcome {
                Ok(answer) => {
                    failures = 0;
                    is_proved = true;
                    due = if self.is_periodic() { Due::Unless(now + self.interval) } else { Due::Never };
                    self.reports.send(Report::Probed(Ok(answer)));
                }
                Err(ProbeError::LinkLost) => due = Due::At(now),
                Err(error) => {
                    failures += 1;
                    // What still sends is slow or busy with repeats, and not wedged.
                    let speaks = self.meter.news.load(Ordering::Relaxed) != heard;
                    if speaks && matches!(error, ProbeError::NoAnswer { .. }) {
                        failures = 1;
                    }
                    // A pause has a limit of its own, and so has a program that does not take what is there.
                    let paused =
                        self.meter.paused.load(Ordering::Relaxed) || self.meter.held_back.load(Ordering::Relaxed);
                    if paused && matches!(error, ProbeError::NoAnswer { .. }) {
                        debug!("a probe got no answer as the link is paused or held back");
                        failures = 0;
                        due = Due::At(now + PAUSED_AGAIN);
                        continue;
                    }
                    debug!(%error, failures, "probe failed");
                    let in_use = self.meter.open.load(Ordering::Relaxed) > 0;
                    let age = now.saturating_sub(up_since);
                    match recovery::after_probe(&error, failures, age, in_use, &mut self.jitter) {
                        AfterProbe::Again { after } => {
                            due = Due::Retry { at: now + after, since: now };
                            self.reports.send(Report::Probed(Err(error)));
                        }
                        AfterProbe::Replace => {
                            due = Due::Never;
                            self.abandon(error);
                        }
                    }
                }
            }
        }
    }

    async fn probe_once(&mut self, state: LinkState) -> Result<Answer, ProbeError> {
        if self.probe.is_none()
            && let Some(connecting) = self.route.connect(&self.to, PROBE_LIMIT)
        {
            // Such a route says itself whether there is a connection, which the end of a pipe may not.
            let (started, clock) = (self.clock.now().mono, self.clock);
            return tokio::select! {
                biased;
                _ = self.link.wait_for(|now| *now != state) => Err(ProbeError::LinkLost),
                outcome = connecting => match outcome {
                    Ok(_connection) => {
                        Ok(Answer { round_trip: clock.now().mono.saturating_sub(started), status: None })
                    }
                    Err(fault) => {
                        debug!(error = sentence(&*fault), "the host accepts no connection");
                        Err(ProbeError::Refused)
                    }
                },
            };
        }
        let (near, far) = tokio::io::duplex(PIPE_LEN);
        let (end, ended) = oneshot::channel();
        let io = Io::probe(far, end);
        let limit = self.limit();
        let deadline = self.clock.now().mono + 2 * limit();
        if self.commands.send(Command::Connect(Held { io, deadline })).is_err() {
            return Err(ProbeError::LinkLost);
        }
        let request = !self.requested.load(Ordering::Relaxed);
        let (asked, clock, link) = (&self.probe, &self.clock, &mut self.link);
        let outcome = async {
            match asked {
                Some(probe) => probe.run(near, ended, request, limit, clock).await,
                None => probe::accepts(near, ended, limit, clock).await,
            }
        };
        let outcome = tokio::select! {
            biased;
            _ = link.wait_for(|now| *now != state) => Err(ProbeError::LinkLost),
            outcome = outcome => outcome,
        };
        if let (Ok(answer), Some(_)) = (&outcome, &self.probe)
            && !self.requested.swap(true, Ordering::Relaxed)
        {
            info!(status = answer.status, round_trip_ms = answer.round_trip.as_millis(), "the API server answers");
        }
        outcome
    }

    /// Returns how long a probe may take, which depends on how late answers are while it waits.
    fn limit(&self) -> impl Fn() -> Duration + use<> {
        let meter = Arc::clone(&self.meter);
        move || {
            let lateness = Duration::from_millis(meter.lateness_ms.load(Ordering::Relaxed));
            PROBE_LIMIT + ROUND_TRIPS * lateness
        }
    }

    /// Returns until when bytes both ways prove the path.
    fn proved_until(&self) -> Duration {
        let sent_at = Duration::from_millis(self.meter.sent_at_ms.load(Ordering::Relaxed));
        sent_at.min(self.received_at()) + self.interval
    }

    fn received_at(&self) -> Duration {
        Duration::from_millis(self.meter.received_at_ms.load(Ordering::Relaxed))
    }

    fn is_periodic(&self) -> bool {
        !self.interval.is_zero()
    }

    fn abandon(&self, error: ProbeError) {
        let fault = error.into_fault(&*self.route, &self.to);
        // One that is over has nothing to give up.
        let _outcome = self.commands.send(Command::Abandon(Arc::new(fault)));
    }
}

/// When the next probe is due.
#[derive(Debug, Clone, Copy)]
enum Due {
    /// At this time, whatever happens before.
    At(Duration),
    /// At this time, unless bytes of connections prove the path before.
    Unless(Duration),
    /// At this time, or soon after the destination has sent something to a connection.
    Retry {
        at: Duration,
        /// From when on what the destination sends counts.
        since: Duration,
    },
    /// Only when the link changes or a connection is refused.
    Never,
}

async fn wait_until(due: Due, clock: &Clock) {
    match due {
        Due::At(at) | Due::Unless(at) => tokio::time::sleep_until(clock.instant(at)).await,
        Due::Retry { at, .. } => {
            let look = clock.now().mono + LOOK_INTERVAL;
            tokio::time::sleep_until(clock.instant(at.min(look))).await;
        }
        Due::Never => std::future::pending().await,
    }
}
