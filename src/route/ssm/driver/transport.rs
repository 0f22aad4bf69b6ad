//! What a driver does with its transport: reads as far as there is room, writes, and looks whether it is alive.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use tracing::info;

use super::{Attachment, Driver, Due, HELD_BACK_FOR, Incoming, PortSession, Report, SessionFault, Signs};
use crate::{route::ssm::vigil, util::time::Now};

/// Messages that are read in one turn, so that a flood leaves the rest of the turn its time.
const READ_BATCH: usize = 64;

/// Messages that are written before they are flushed.
const WRITE_BATCH: usize = 64;

/// How often something is sent in a session that is held back, where no probe would get an answer: the shortest idle timeout
/// of the service is a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(45);

impl Driver {
    /// Reads a batch of messages. Returns whether there may be more at once.
    pub(super) fn read_transport(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        link: &mut Attachment,
    ) -> Result<bool, SessionFault> {
        for _ in 0..READ_BATCH {
            // What goes out wakes the task.
            if self.owes_acknowledgements() || !self.may_read(now, link) {
                return Ok(false);
            }
            let incoming = match link.transport.poll_next(cx) {
                Poll::Ready(Ok(incoming)) => incoming,
                Poll::Ready(Err(error)) => {
                    // What came before the end may say that it is the session's end as well.
                    self.handle_events(now)?;
                    return Err(SessionFault::Transport(error));
                }
                Poll::Pending => return Ok(false),
            };
            link.heard_at = now;
            match incoming {
                Incoming::Message(message) => {
                    self.vigil.iter_mut().for_each(|vigil| vigil.heard(now));
                    link.liveness.heard_message(now);
                    if let Some(session) = &mut self.session {
                        session.handle_message(now, message);
                    }
                    // What has come counts before the next is read.
                    self.handle_events(now)?;
                }
                Incoming::Ping => link.liveness.heard(now),
                Incoming::Pong => link.liveness.answered(now, self.signs().lag),
            }
        }
        Ok(true)
    }

    /// Whether the way up is too slow for the acknowledgements of what comes.
    pub(super) fn owes_acknowledgements(&self) -> bool {
        self.session.as_ref().is_some_and(PortSession::owes_acknowledgements)
    }

    /// Whether there is room for another message. While there is none, nothing that does not come means anything.
    fn may_read(&mut self, now: Now, link: &mut Attachment) -> bool {
        if !self.share.has_room() {
            self.drop_stalled(now);
        }
        let may_read = self.share.has_room();
        if !may_read {
            link.liveness.deafened(now);
            if !self.is_held_back(now) {
                info!(
                    held = self.share.held(),
                    "a local program reads more slowly than its data arrives: its session is held back, and new \
                     connections use another"
                );
            }
            self.held_back_at = Some(now.mono);
            if self.kept_alive_at + KEEP_ALIVE <= now.mono {
                self.kept_alive_at = now.mono;
                if let Some(session) = &mut self.session {
                    session.keep_alive();
                }
            }
        }
        if may_read != link.reading {
            link.reading = may_read;
            if let Some(session) = &mut self.session {
                session.set_reading(now, may_read);
            }
        }
        may_read
    }

    /// Whether the session has been held back lately.
    pub(super) fn is_held_back(&self, now: Now) -> bool {
        self.held_back_at.is_some_and(|at| now.mono < at + HELD_BACK_FOR)
    }

    pub(super) fn check_liveness(&mut self, now: Now, link: &mut Attachment) -> Result<(), SessionFault> {
        self.watch_agent(now, link)?;
        let signs = self.signs();
        self.gauge.lateness = link.liveness.lateness(signs.lag);
        match link.liveness.poll(now, signs) {
            Due::Nothing => return Ok(()),
            Due::Ping => {}
            Due::Suspect if self.session.as_ref().is_some_and(PortSession::is_paused) => {}
            Due::Suspect => self.reports.send(Report::Suspect),
            Due::Slept => {
                info!("the machine was asleep: checking whether the link still works");
                self.reports.send(Report::Slept);
            }
            Due::Silent(time) => return Err(SessionFault::Silent { seconds: time.as_secs() }),
            Due::Mute(time) => return Err(SessionFault::Mute { seconds: time.as_secs() }),
        }
        // It goes into the transport's own queue, in front of what is written in this turn.
        link.transport.ping().map_err(SessionFault::Transport)
    }

    /// Looks whether the agent is still there, if nobody else does.
    fn watch_agent(&mut self, now: Now, link: &Attachment) -> Result<(), SessionFault> {
        self.see_proof();
        let (signs, can_answer) = self.vigil_signs(link);
        let (Some(vigil), Some(session)) = (&mut self.vigil, &mut self.session) else { return Ok(()) };
        if !can_answer {
            vigil.heard(now);
            return Ok(());
        }
        match vigil.poll(now, signs) {
            vigil::Due::Nothing => {}
            vigil::Due::Ask => session.keep_alive(),
            vigil::Due::Gone(time) => return Err(SessionFault::Unanswered { seconds: time.as_secs() }),
        }
        Ok(())
    }

    /// Says that the session is established, once the agent has shown that it takes data.
    fn see_proof(&mut self) {
        let (Some((sent, _)), Some(session)) = (&self.awaits_proof, &self.session) else { return };
        if session.waiting_since().is_none()
            && session.stats().messages_sent > *sent
            && let Some((_, established)) = self.awaits_proof.take()
        {
            self.reports.send(established);
        }
    }

    /// Returns when that is due again.
    pub(super) fn vigil_deadline(&self, link: &Attachment) -> Option<Duration> {
        let (signs, can_answer) = self.vigil_signs(link);
        self.vigil.as_ref().filter(|_| can_answer).map(|vigil| vigil.deadline(signs))
    }

    /// Returns what is known of the agent, and whether it could answer at all.
    fn vigil_signs(&self, link: &Attachment) -> (vigil::Signs, bool) {
        let Some(session) = &self.session else { return (vigil::Signs::default(), false) };
        let signs = vigil::Signs {
            waiting_since: session.waiting_since(),
            sent: session.bytes_sent(),
            lateness: link.liveness.lateness(session.lag()),
        };
        (signs, session.is_established() && !session.is_paused() && link.reading)
    }

    /// What the session knows of its transport.
    pub(super) fn signs(&self) -> Signs {
        let session = self.session.as_ref();
        session
            .map_or_else(Signs::default, |session| Signs { waiting_since: session.waiting_since(), lag: session.lag() })
    }

    /// Writes what the session has to say, as far as the transport takes it.
    pub(super) fn write_transport(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        link: &mut Attachment,
    ) -> Result<(), SessionFault> {
        loop {
            // What is queued goes first: until it has left, the session keeps what follows.
            if link.blocked && link.transport.poll_flush(cx).map_err(SessionFault::Transport)?.is_pending() {
                return Ok(());
            }
            let owed = self.owes_acknowledgements();
            let Some(session) = &mut self.session else { return Ok(()) };
            let mut written = 0;
            while written < WRITE_BATCH && link.transport.poll_ready(cx).map_err(SessionFault::Transport)?.is_ready() {
                let Some(message) = session.poll_transmit(now) else { break };
                link.transport.write(message).map_err(SessionFault::Transport)?;
                written += 1;
            }
            if owed && written > 0 {
                // Nothing is read meanwhile, and what goes out shows that the transport is alive.
                link.liveness.deafened(now);
            }
            link.blocked = link.transport.poll_flush(cx).map_err(SessionFault::Transport)?.is_pending();
            if link.blocked || written < WRITE_BATCH {
                return Ok(());
            }
        }
    }
}
