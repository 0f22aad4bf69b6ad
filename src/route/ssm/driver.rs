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
//! [`STALLED`] meanwhile is taken for dead.
//!
//! Invariants: the transport is read while there is room, whatever local programs do; a program is read only while
//! its stream takes data; bytes are neither lost nor reordered between a stream and its connection.
//!
//! Leaves out who dials and when ([`session`](super::session)) and which connections come here.

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
use tracing::{debug, info, warn};

use super::{
    Incoming, SessionFault, Transport,
    connection::{Connection, Stage},
    gauge::{Gauge, Progress},
    liveness::{Due, Liveness, Signs},
    proto::{Event, Now, OpenError, PortSession, StreamId},
    ready::{Ready, ReadySet},
};
use crate::{
    clock::Clock,
    route::{Command, Held, LinkState, Meter, PipeEnd, Report, Reporter, Share},
};

/// Messages that are read in one turn, so that a flood leaves the rest of the turn its time.
const READ_BATCH: usize = 64;

/// Messages that are written before they are flushed.
const WRITE_BATCH: usize = 64;

/// Connections that are served in one turn.
const SERVE_BATCH: usize = 256;

/// Turns that are made before other tasks of this thread get theirs.
const MAX_TURNS: usize = 16;

/// Bytes read from a local program at once: one frame's worth for the multiplexer to interleave.
const READ_LEN: usize = 16 << 10;

/// Size of the blocks that local programs are read into, in bytes.
const READ_BLOCK: usize = 64 << 10;

/// How long a program has for closing its side after the last byte has been written to it.
const LINGER: Duration = Duration::from_secs(5);

/// How long a program may take nothing of what there is for it while the budget is spent. Somebody who reads page by page
/// is to have time for it, and a transfer that goes on through a network of its own time to come back.
const STALLED: Duration = Duration::from_secs(300);

/// How long new connections avoid a session after it has been held back.
const HELD_BACK_FOR: Duration = Duration::from_secs(5);

/// How often something is sent in a session that is held back, where no probe would get an answer: the shortest idle timeout
/// of the service is a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(45);

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
    /// Counts transports.
    transports: u32,
    /// What local programs have not taken.
    share: Share,
    /// When the transport was last not read for want of room.
    held_back_at: Option<Duration>,
    /// When something was last sent for want of probes.
    kept_alive_at: Duration,
}

impl Driver {
    /// Creates a driver of a session that is attached to its first transport.
    pub(super) fn new(mailbox: DriverParts, session: PortSession) -> Self {
        let DriverParts { clock, inbox, reports, meter, state, share } = mailbox;
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
                    self.gauge.taken += 1;
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
                    self.gauge.taken += 1;
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

    /// Reads a batch of messages. Returns whether there may be more at once.
    fn read_transport(&mut self, cx: &mut Context<'_>, now: Now, link: &mut Attachment) -> Result<bool, SessionFault> {
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
    fn owes_acknowledgements(&self) -> bool {
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
                    "a local program reads more slowly than its data comes: its session is held back, and new connections \
                     go elsewhere"
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
    fn is_held_back(&self, now: Now) -> bool {
        self.held_back_at.is_some_and(|at| now.mono < at + HELD_BACK_FOR)
    }

    /// Resets the connection that holds most of those whose programs take nothing.
    fn drop_stalled(&mut self, now: Now) {
        let is_stalled = |connection: &Connection<Source>| {
            connection.stalled_since().is_some_and(|since| since + STALLED <= now.mono)
        };
        let stalled = self.connections.iter().filter(|(_, connection)| is_stalled(connection));
        if let Some((&stream, connection)) = stalled.max_by_key(|(_, connection)| connection.backlog_len()) {
            let held = connection.backlog_len();
            warn!(
                %stream, held,
                "reset a connection whose program has taken nothing for {} s: there is no room for more", STALLED.as_secs()
            );
            self.abort(stream, PipeEnd::Lost);
        }
    }

    fn check_liveness(&mut self, now: Now, link: &mut Attachment) -> Result<(), SessionFault> {
        let signs = self.signs();
        self.gauge.lateness = link.liveness.lateness(signs.lag);
        match link.liveness.poll(now, signs) {
            Due::Nothing => return Ok(()),
            Due::Ping => {}
            Due::Suspect if self.session.as_ref().is_some_and(PortSession::is_paused) => {}
            Due::Suspect => self.reports.send(Report::Suspect),
            Due::Slept => {
                info!("the machine has slept: looking whether the link is still there");
                self.reports.send(Report::Slept);
            }
            Due::Silent(time) => return Err(SessionFault::Silent { seconds: time.as_secs() }),
            Due::Mute(time) => return Err(SessionFault::Mute { seconds: time.as_secs() }),
        }
        // It goes into the transport's own queue, in front of what is written in this turn.
        link.transport.ping().map_err(SessionFault::Transport)
    }

    /// What the session knows of its transport.
    fn signs(&self) -> Signs {
        let session = self.session.as_ref();
        session
            .map_or_else(Signs::default, |session| Signs { waiting_since: session.waiting_since(), lag: session.lag() })
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
                    self.reports.send(Report::Established {
                        peer_version: Some(agent_version.to_string()),
                        message: customer_message,
                    });
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

    fn handle_refused(&mut self, id: StreamId) {
        let Some(connection) = self.forget(id) else { return };
        if connection.is_counted() {
            debug!(stream = %id, "the destination refused a connection");
            self.reports.send(Report::Refused);
        }
        connection.abort(PipeEnd::Refused);
    }

    /// Opens streams for the connections that wait, as far as the session lets them.
    fn open_waiting(&mut self, now: Now, attached: bool) -> Result<(), SessionFault> {
        if !attached {
            return Ok(());
        }
        let Some(session) = &mut self.session else { return Ok(()) };
        while let Some(held) = self.waiting.pop_front() {
            let stream = match session.open_stream(now) {
                Ok(stream) => stream,
                Err(OpenError::NotEstablished | OpenError::Busy | OpenError::Closed) => {
                    self.waiting.push_front(held);
                    return Ok(());
                }
                Err(OpenError::Exhausted) => {
                    self.waiting.push_front(held);
                    return Err(SessionFault::Exhausted);
                }
            };
            if held.io.is_counted() {
                self.gauge.connected();
            }
            self.connections.insert(stream, Connection::new(held.io, self.ready.insert(Source::Connection(stream))));
        }
        Ok(())
    }

    /// Serves what is ready. Returns whether the future that ends the drive is among it.
    fn serve_ready(&mut self, now: Now, more: &mut bool) -> bool {
        let mut until = false;
        for _ in 0..SERVE_BATCH {
            match self.ready.next() {
                Some(Source::Until) => until = true,
                Some(Source::Connection(stream)) => *more |= self.serve(now, stream),
                None => return until,
            }
        }
        *more = true;
        until
    }

    /// Moves bytes of one connection both ways. Returns whether it has more to do at once.
    fn serve(&mut self, now: Now, stream: StreamId) -> bool {
        let Some(connection) = self.connections.get_mut(&stream) else { return false };
        connection.ready.begin();
        let session = self.session.as_mut();
        match connection.write_backlog(now.mono) {
            Ok(written) => self.share.give_back(written),
            Err(error) => {
                debug!(%stream, %error, "the local program is gone");
                self.abort(stream, PipeEnd::Lost);
                return false;
            }
        }
        match connection.stage {
            Stage::Open { input_ended: true } => return false,
            Stage::Open { input_ended: false } => {}
            before @ (Stage::Draining | Stage::Lingering) => {
                let closed = connection.poll_close(&mut self.scratch).is_ready();
                if before != connection.stage {
                    self.gauge.with_stream -= usize::from(connection.is_counted());
                    self.lingering.push_back((now.mono + LINGER, stream));
                }
                if closed {
                    self.forget(stream);
                }
                return false;
            }
        }
        let Some(session) = session else { return false };
        let limit = session.writable_len(stream).min(READ_LEN);
        if limit == 0 {
            return false;
        }
        if self.scratch.capacity() < limit {
            self.scratch.reserve(READ_BLOCK);
        }
        match connection.poll_read(&mut self.scratch, limit) {
            Poll::Ready(Ok(0)) => {
                connection.stage = Stage::Open { input_ended: true };
                session.finish(now, stream);
                false
            }
            Poll::Ready(Ok(len)) => {
                if connection.is_counted() {
                    self.gauge.sent(len, now);
                }
                session.write(now, stream, self.scratch.split().freeze());
                connection.ready.mark();
                true
            }
            Poll::Ready(Err(error)) => {
                debug!(%stream, %error, "the local program is gone");
                self.abort(stream, PipeEnd::Lost);
                false
            }
            Poll::Pending => false,
        }
    }

    /// Ends a connection at once, and its stream if it has one.
    fn abort(&mut self, stream: StreamId, why: PipeEnd) {
        let Some(connection) = self.forget(stream) else { return };
        if let Some(session) = &mut self.session
            && matches!(connection.stage, Stage::Open { .. })
        {
            session.reset(self.clock.now(), stream);
        }
        connection.abort(why);
    }

    /// Takes a connection out of the table.
    fn forget(&mut self, stream: StreamId) -> Option<Connection<Source>> {
        let connection = self.connections.remove(&stream)?;
        self.share.give_back(connection.backlog_len());
        if connection.is_counted() && connection.stage != Stage::Lingering {
            self.gauge.with_stream -= 1;
        }
        Some(connection)
    }

    /// Writes what the session has to say, as far as the transport takes it.
    fn write_transport(&mut self, cx: &mut Context<'_>, now: Now, link: &mut Attachment) -> Result<(), SessionFault> {
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

    /// Sets the timer to the next deadline. Ready when that has passed and another turn is due.
    fn poll_timer(&mut self, cx: &mut Context<'_>, now: Now, link: Option<&Attachment>) -> Poll<()> {
        let blocked = link.is_some_and(|link| link.blocked);
        let session = self.session.as_ref().and_then(PortSession::poll_timeout);
        // A session may say that it has something to send which the transport does not take.
        let session = session.map(|at| at.max(now.mono + if blocked { RETRY_BLOCKED } else { RETRY }));
        let deadlines = [
            session,
            link.map(|link| link.liveness.deadline(self.signs())),
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
