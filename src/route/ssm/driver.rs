//! The event loop of one session: its transport, its state, and its local connections, in one task.
//!
//! There is no task and no channel hop per connection, and no lock around the session: whatever wakes
//! the task, it makes turns until there is nothing to do. A turn reads a bounded number of messages,
//! hands their data to local programs, reads from the programs that have some and may send it, and
//! writes what the session has to say, with one flush. Each connection has a waker of its own, so a
//! turn costs what is ready.
//!
//! The driver outlives transports and its session. Without a transport it goes on delivering what has
//! come; when the session is over it still delivers the last bytes of streams that had ended.
//!
//! A program that reads more slowly than its destination sends is never cut: what it has not taken is kept, and when the
//! tunnel's [budget](crate::route::budget) is spent the transport is read only as fast as that, which holds back the session, as
//! smux cannot hold back a stream. New connections go to other sessions then. Only a program that has taken nothing for
//! five minutes meanwhile is taken for dead.
//!
//! Invariants: the transport is read while there is room, whatever local programs do; a program is read only while
//! its stream takes data; bytes are neither lost nor reordered between a stream and its connection.
//!
//! Leaves out who dials and when ([`session`](super::session)) and which connections come here.

mod serve;
mod transport;

use std::{
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    sync::{mpsc, watch},
    time::Sleep,
};
use tracing::debug;

use super::{
    Incoming, SessionFault, Transport,
    connection::{Connection, Stage},
    gauge::{Gauge, Progress},
    liveness::{Due, Liveness, Signs},
    proto::{Event, Now, OpenError, PortSession, StreamId},
    ready::{Ready, ReadySet},
    vigil::Vigil,
};
use crate::{
    clock::Clock,
    route::{Command, Held, LinkState, Meter, PipeEnd, Report, Reporter, Share},
};

/// Turns that are made before other tasks of this thread get theirs.
const MAX_TURNS: usize = 16;

/// How long new connections avoid a session after it has been held back.
const HELD_BACK_FOR: Duration = Duration::from_secs(5);

/// How long a new connection is said to wait in a session that is held back: longer than another session takes.
const HELD_BACK_BACKLOG: Duration = Duration::from_secs(60);

/// Least time between two looks at a deadline that has passed and nothing can be done about.
const RETRY: Duration = Duration::from_millis(1);

/// The same while the transport takes nothing: it wakes the task when it does.
const RETRY_BLOCKED: Duration = Duration::from_millis(20);

/// A transport that is in use.
#[derive(Debug)]
pub(super) struct Attachment {
    transport: Transport,
    liveness: Liveness,
    heard_at: Now,
    /// What is queued in the transport has not left it: the session keeps the rest to itself, where
    /// acknowledgements overtake data.
    blocked: bool,
    /// There is room for what comes.
    reading: bool,
}

impl Attachment {
    /// Starts using a transport.
    pub(super) fn new(transport: Transport, now: Now) -> Self {
        Self { transport, liveness: Liveness::new(now), heard_at: now, blocked: false, reading: true }
    }

    /// Returns when anything last came through it; at first when it was opened.
    pub(super) fn heard_at(&self) -> Now {
        self.heard_at
    }

    /// Returns the transport to close it.
    pub(super) fn into_transport(self) -> Transport {
        self.transport
    }
}

/// What may be ready.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// The future that ends [`Driver::drive`].
    Until,
    Connection(StreamId),
}

/// Why a series of turns ended.
enum Turned {
    /// The future that ends [`Driver::drive`] wants to be polled.
    Until,
    Fault(SessionFault),
}

/// What a driver takes of its link's mailbox.
pub(super) struct DriverParts {
    pub(super) clock: Clock,
    pub(super) inbox: mpsc::UnboundedReceiver<Command>,
    pub(super) reports: Reporter,
    pub(super) meter: Arc<Meter>,
    pub(super) state: watch::Sender<LinkState>,
    pub(super) share: Share,
    /// See [`Terms`](crate::route::Terms).
    pub(super) is_unprobed: bool,
    pub(super) keeps_warm: bool,
}

/// The state of the loop. See the module's documentation.
pub(super) struct Driver {
    clock: Clock,
    /// `None` when it is over.
    session: Option<PortSession>,
    connections: BTreeMap<StreamId, Connection<Source>>,
    ready: ReadySet<Source>,
    waiting: VecDeque<Held>,
    lingering: VecDeque<(Duration, StreamId)>,
    inbox: mpsc::UnboundedReceiver<Command>,
    reports: Reporter,
    scratch: BytesMut,
    timer: Pin<Box<Sleep>>,
    /// What the timer is set to; `None` when it has fired.
    armed: Option<Duration>,
    /// The session has proved itself on the present transport.
    alive: bool,
    /// Data has come from the destination.
    served: bool,
    gauge: Gauge,
    state: watch::Sender<LinkState>,
    transports: u32,
    /// What local programs have not taken.
    share: Share,
    /// When the transport was last not read for want of room.
    held_back_at: Option<Duration>,
    /// When something was last sent for want of probes.
    kept_alive_at: Duration,
    is_unprobed: bool,
    /// What is to be said once the agent has acknowledged a message more than this number, which it does when it has looked
    /// its destination up, and does not refuse it.
    awaits_proof: Option<(u64, Report)>,
    /// Watches over the agent where nobody probes.
    vigil: Option<Vigil>,
}

impl Driver {
    /// Creates a driver of a session that is attached to its first transport.
    pub(super) fn new(mailbox: DriverParts, session: PortSession) -> Self {
        let DriverParts { clock, inbox, reports, meter, state, share, is_unprobed, keeps_warm } = mailbox;
        Self {
            clock,
            session: Some(session),
            connections: BTreeMap::new(),
            ready: ReadySet::new(),
            waiting: VecDeque::new(),
            lingering: VecDeque::new(),
            inbox,
            reports,
            scratch: BytesMut::new(),
            timer: Box::pin(tokio::time::sleep_until(clock.instant(Duration::ZERO))),
            armed: Some(Duration::ZERO),
            alive: false,
            served: false,
            gauge: Gauge::new(meter),
            state,
            transports: 1,
            share,
            held_back_at: None,
            kept_alive_at: Duration::ZERO,
            is_unprobed,
            awaits_proof: None,
            vigil: (is_unprobed && keeps_warm).then(|| Vigil::new(clock.now())),
        }
    }

    // Getters.

    /// Whether the session has proved itself on the present transport.
    pub(super) fn is_alive(&self) -> bool {
        self.alive
    }

    /// Whether data has come from the destination.
    pub(super) fn has_served(&self) -> bool {
        self.served
    }

    /// Returns the number of connections that a new session would cut.
    pub(super) fn open_connections(&self) -> usize {
        self.gauge.open()
    }

    /// Returns what its owner may wait for while driving.
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.gauge.progress()
    }

    // Commands.

    /// Drops the session. Its streams are reset; what had ended well before is still delivered.
    pub(super) fn end(&mut self) {
        self.session = None;
        self.alive = false;
        self.state.send_replace(LinkState::Over);
        let is_open = |connection: &Connection<Source>| matches!(connection.stage, Stage::Open { .. });
        let cut: Vec<_> = self.connections.iter().filter(|(_, c)| is_open(c)).map(|(id, _)| *id).collect();
        for id in cut {
            self.abort(id, PipeEnd::Lost);
        }
        self.publish();
    }

    /// Takes note that the transport is lost.
    pub(super) fn detach(&mut self) {
        let now = self.clock.now();
        self.alive = false;
        self.state.send_replace(LinkState::Down);
        if let Some(session) = &mut self.session {
            session.detached(now);
        }
    }

    /// Goes on with another transport.
    pub(super) fn reattach(&mut self) {
        let now = self.clock.now();
        self.transports += 1;
        if let Some(session) = &mut self.session {
            session.reattached(now);
            if session.is_established() {
                self.link_is_up();
            }
        }
    }

    /// Gives the connections that wait for a stream back to the tunnel.
    pub(super) fn return_waiting(&mut self) {
        while let Some(held) = self.waiting.pop_front() {
            self.give_back(held);
        }
        self.publish();
    }

    fn give_back(&self, held: Held) {
        if held.io.is_counted() {
            self.reports.send(Report::Returned(held));
        } else {
            held.io.abort(PipeEnd::Lost);
        }
    }

    /// Takes no further commands, and gives back the connections that wait or have just been sent.
    pub(super) fn close(&mut self) {
        self.inbox.close();
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Connect(held) => {
                    self.gauge.taken += u64::from(held.io.is_counted());
                    self.give_back(held);
                }
                Command::Abandon(_) => {}
            }
        }
        self.return_waiting();
    }

    /// Tells the agent to end the session.
    pub(super) fn terminate(&mut self) {
        let now = self.clock.now();
        if let Some(session) = &mut self.session {
            session.terminate(now);
        }
    }

    /// Keeps everything going until `until` is ready.
    ///
    /// # Errors
    /// The fault that ends the transport or the session. Without a session there is none.
    pub(super) async fn drive<F: Future>(
        &mut self,
        mut link: Option<&mut Attachment>,
        until: F,
    ) -> Result<F::Output, SessionFault> {
        let mut until = pin!(until);
        let signal: Ready<Source> = self.ready.insert(Source::Until);
        poll_fn(|cx| {
            self.ready.register(cx);
            loop {
                match ready!(self.poll_turns(cx, link.as_deref_mut())) {
                    Turned::Fault(fault) => {
                        self.publish();
                        return Poll::Ready(Err(fault));
                    }
                    Turned::Until => {
                        signal.begin();
                        let mut cx = Context::from_waker(signal.waker());
                        if let Poll::Ready(output) = until.as_mut().poll(&mut cx) {
                            return Poll::Ready(Ok(output));
                        }
                    }
                }
            }
        })
        .await
    }

    fn poll_turns(&mut self, cx: &mut Context<'_>, mut link: Option<&mut Attachment>) -> Poll<Turned> {
        for _ in 0..MAX_TURNS {
            let now = self.clock.now();
            let (more, until) = match self.turn(cx, now, link.as_deref_mut()) {
                Ok(turn) => turn,
                Err(fault) => return Poll::Ready(Turned::Fault(fault)),
            };
            if until {
                return Poll::Ready(Turned::Until);
            }
            if !more && self.poll_timer(cx, now, link.as_deref()).is_pending() {
                self.publish();
                return Poll::Pending;
            }
        }
        self.publish();
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Makes one turn. Returns whether there is more to do at once, and whether the future that ends
    /// the drive has been woken.
    fn turn(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        mut link: Option<&mut Attachment>,
    ) -> Result<(bool, bool), SessionFault> {
        self.take_commands(cx, link.is_some())?;
        let mut more = false;
        match self.take_input(cx, now, link.as_deref_mut()) {
            Ok(read_more) => more |= read_more,
            Err(fault) => {
                // The session's last words, such as the refusal of a handshake, as far as the transport takes
                // them at once. What is wrong with the transport does not matter any more.
                let _outcome = link.map(|link| self.write_transport(cx, now, link));
                return Err(fault);
            }
        }
        self.open_waiting(now, link.is_some())?;
        let until = self.serve_ready(now, &mut more);
        if let Some(link) = link {
            let owed = self.owes_acknowledgements();
            self.write_transport(cx, now, link)?;
            // Sending makes room: writers that waited for it go on in the next turn, and so does reading.
            more |= self.handle_events(now)? || (owed && !self.owes_acknowledgements());
        }
        Ok((more, until))
    }

    /// Takes what has come and what is due. Returns whether there may be more at once.
    fn take_input(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        link: Option<&mut Attachment>,
    ) -> Result<bool, SessionFault> {
        let mut more = false;
        if let Some(link) = link {
            more = self.read_transport(cx, now, link)?;
            self.check_liveness(now, link)?;
        }
        self.handle_timeouts(now);
        self.handle_events(now)?;
        Ok(more)
    }

    fn take_commands(&mut self, cx: &mut Context<'_>, attached: bool) -> Result<(), SessionFault> {
        while let Poll::Ready(Some(command)) = self.inbox.poll_recv(cx) {
            match command {
                Command::Connect(held) => {
                    self.gauge.taken += u64::from(held.io.is_counted());
                    if attached {
                        self.waiting.push_back(held);
                    } else {
                        // It was sent before the sender knew. Another link may take it sooner.
                        self.give_back(held);
                    }
                }
                Command::Abandon(fault) if self.session.is_some() => return Err(SessionFault::Abandoned(fault)),
                Command::Abandon(_) => {}
            }
        }
        Ok(())
    }

    fn handle_timeouts(&mut self, now: Now) {
        if let Some(session) = &mut self.session
            && session.poll_timeout().is_some_and(|at| at <= now.mono)
        {
            session.handle_timeout(now);
        }
        while self.waiting.front().is_some_and(|held| held.deadline <= now.mono) {
            if let Some(held) = self.waiting.pop_front() {
                debug!("reset a connection that had waited too long for a stream");
                held.io.abort(PipeEnd::Lost);
            }
        }
        while let Some((_, stream)) = self.lingering.pop_front_if(|(at, _)| *at <= now.mono) {
            self.forget(stream);
        }
    }

    /// Passes on what the session has to say. Returns whether there was anything.
    fn handle_events(&mut self, now: Now) -> Result<bool, SessionFault> {
        let mut any = false;
        while let Some(event) = self.session.as_mut().and_then(PortSession::poll_event) {
            any = true;
            match event {
                Event::Established { agent_version, customer_message } => {
                    self.link_is_up();
                    let established = Report::Established {
                        peer_version: Some(agent_version.to_string()),
                        message: customer_message,
                    };
                    match &mut self.session {
                        Some(session) if self.is_unprobed => {
                            session.keep_alive();
                            self.awaits_proof = Some((session.stats().messages_sent, established));
                        }
                        Some(_) | None => self.reports.send(established),
                    }
                }
                Event::Alive => {
                    self.alive = true;
                    // First, so that no connection is given to a session that turns out to be behind.
                    self.show_backlog(now);
                    self.reports.send(Report::Alive);
                }
                Event::Data { id, data } => {
                    self.served = true;
                    if let Some(connection) = self.connections.get_mut(&id) {
                        if connection.is_counted() {
                            self.gauge.received(data.len(), now);
                        }
                        self.share.take(data.len());
                        connection.push(data, now.mono);
                        connection.ready.mark();
                    }
                }
                Event::Finished { id } => {
                    if let Some(connection) = self.connections.get_mut(&id) {
                        connection.drain();
                        connection.ready.mark();
                    }
                }
                Event::Refused { id } => self.handle_refused(id),
                Event::Writable { id } => {
                    if let Some(connection) = self.connections.get(&id) {
                        connection.ready.mark();
                    }
                }
                Event::Closed(reason) => return Err(SessionFault::Closed(reason)),
            }
        }
        Ok(any)
    }

    /// Sets the timer to the next deadline. Ready when that has passed and another turn is due.
    fn poll_timer(&mut self, cx: &mut Context<'_>, now: Now, link: Option<&Attachment>) -> Poll<()> {
        let blocked = link.is_some_and(|link| link.blocked);
        let session = self.session.as_ref().and_then(PortSession::poll_timeout);
        // A session may say that it has something to send which the transport does not take.
        let session = session.map(|at| at.max(now.mono + if blocked { RETRY_BLOCKED } else { RETRY }));
        let deadlines = [
            session,
            link.map(|link| link.liveness.deadline(self.signs())),
            link.and_then(|link| self.vigil_deadline(link)),
            // What others give back of the budget wakes nobody.
            link.filter(|link| !link.reading).map(|_| now.mono + RETRY_BLOCKED),
            self.held_back_at.map(|at| at + HELD_BACK_FOR).filter(|at| *at > now.mono),
            self.waiting.front().map(|held| held.deadline),
            self.lingering.front().map(|(at, _)| *at),
        ];
        let Some(deadline) = deadlines.into_iter().flatten().min() else { return Poll::Pending };
        // A timer that is set too early costs one needless turn; setting it costs more, each time.
        if self.armed.is_none_or(|armed| armed > deadline || armed <= now.mono) {
            self.timer.as_mut().reset(self.clock.instant(deadline));
            self.armed = Some(deadline);
        }
        let fired = self.timer.as_mut().poll(cx);
        if fired.is_ready() {
            self.armed = None;
        }
        fired
    }

    fn link_is_up(&self) {
        let up = LinkState::Up { carrier: self.transports };
        self.state.send_replace(up);
    }

    /// Publishes what others may read, if it has changed.
    fn publish(&mut self) {
        let session = self.session.as_ref();
        let waiting = self.waiting.iter().filter(|held| held.io.is_counted()).count();
        self.gauge.held = self.share.held();
        self.gauge.show(session, waiting, self.connections.len());
        self.show_backlog(self.clock.now());
    }

    /// Reports how long a new connection would wait.
    fn show_backlog(&mut self, now: Now) {
        let session = self.session.as_ref();
        self.gauge.held_back = session.is_some() && self.is_held_back(now);
        let backlog = session.map_or(Duration::ZERO, |session| session.backlog(now));
        self.gauge
            .show_backlog(if self.gauge.held_back { backlog.max(HELD_BACK_BACKLOG) } else { backlog }, &self.reports);
    }
}
