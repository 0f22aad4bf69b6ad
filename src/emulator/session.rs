//! One session: what the service knows of it, and the task that drives its agent.
//!
//! The task owns the agent, its connections to destinations, and the way to the client's transport,
//! which comes and goes; the session outlives it. API calls and the gateway reach it through
//! [`Session`].

mod denied;
mod destination;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::pending,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use self::destination::{Destinations, FromDestination};
use super::{
    agent::{Agent, AgentEvent, AgentSetup},
    config::{AbsentClient, AgentStart},
    credentials::Caller,
    journal::Event,
    script::Command,
    world::{World, lock},
};
use crate::route::ssm::proto::message::{MessageType, SERVICE_HEADER_LENGTH_FIELD};

/// Messages between a transport and the session's task, each way.
pub(super) const QUEUE_LEN: usize = 256;

/// Most messages that are kept for an absent client.
const MAX_HELD: usize = 20_000;

/// How long an ended session waits for its last messages to leave.
const LINGER: Duration = Duration::from_secs(5);

/// Parameters of a port forwarding document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parameters {
    pub(super) host: Option<String>,
    pub(super) port: String,
    pub(super) local_port: String,
}

/// What a session is started with.
#[derive(Debug, Clone)]
pub(super) struct SessionStart {
    pub(super) id: String,
    pub(super) target: String,
    pub(super) agent_version: String,
    pub(super) document: String,
    pub(super) region: String,
    pub(super) owner: Caller,
    pub(super) parameters: Parameters,
    pub(super) reason: Option<String>,
    pub(super) stream_url: String,
}

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// No transport has been opened yet.
    Waiting,
    /// A transport is open.
    Connected,
    /// The transport is lost; the session can be resumed.
    Disconnected,
    /// Over.
    Ended,
}

/// What is known of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// The id.
    pub id: String,
    /// The target.
    pub target: String,
    /// `host:port` that it forwards to.
    pub destination: String,
    /// The reason that the client gave.
    pub reason: Option<String>,
    /// Where it is in its life.
    pub state: SessionState,
    /// Calls of `ResumeSession` that were granted.
    pub resumes: u32,
    /// Transports that were opened.
    pub transports: u32,
    /// Version in the client's opening frames.
    pub client_version: String,
    /// Streams that were opened.
    pub streams: u64,
    /// Streams that are open, as the agent sees it.
    pub open_streams: u64,
    /// Bytes that went to destinations.
    pub bytes_to_destination: u64,
    /// Bytes that came from destinations.
    pub bytes_from_destination: u64,
    /// Messages from the client, acknowledgements included.
    pub messages_from_client: u64,
    /// Messages to the client, acknowledgements included.
    pub messages_to_client: u64,
    /// Messages that the agent sent again.
    pub retransmissions: u64,
    /// Most messages from the client in one second.
    pub peak_messages_per_second: u64,
    /// Pings that the client sent.
    pub pings: u64,
}

/// Numbers that change with every message.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) streams: AtomicU64,
    pub(super) open_streams: AtomicU64,
    pub(super) bytes_to_destination: AtomicU64,
    pub(super) bytes_from_destination: AtomicU64,
    pub(super) messages_from_client: AtomicU64,
    pub(super) messages_to_client: AtomicU64,
    pub(super) retransmissions: AtomicU64,
    pub(super) peak_rate: AtomicU64,
    pub(super) pings: AtomicU64,
}

/// What a transport is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TransportCommand {
    Cut,
    Close {
        code: u16,
        reason: String,
    },
    /// Lose what goes these ways.
    Silence {
        upstream: bool,
        downstream: bool,
    },
    /// Lose everything, and never mind the session.
    HalfOpen,
}

/// The session's end of a transport. Dropping it closes the transport when all messages are sent.
pub(super) struct TransportHandle {
    pub(super) number: u32,
    pub(super) messages: mpsc::Sender<Bytes>,
    pub(super) commands: mpsc::UnboundedSender<TransportCommand>,
}

/// What reaches the session's task besides messages.
pub(super) enum Control {
    Attach(TransportHandle),
    Detached {
        number: u32,
    },
    Resumed,
    Terminate,
    Command(Command),
    /// Settings have changed.
    Settings,
    /// Messages of the client may be missing or out of order.
    Gaps,
}

/// A session as the API and the gateway see it.
pub(super) struct Session {
    pub(super) start: SessionStart,
    /// When it was started, since the Unix epoch.
    pub(super) started: Duration,
    pub(super) seed: u64,
    pub(super) counters: Counters,
    state: Mutex<State>,
    control: mpsc::UnboundedSender<Control>,
    pub(super) messages: mpsc::Sender<Bytes>,
}

struct State {
    phase: SessionState,
    /// Tokens that have not been used, and until when they are good.
    tokens: BTreeMap<String, Instant>,
    spent: BTreeSet<String>,
    client_id: Option<String>,
    client_version: String,
    resumes: u32,
    transports: u32,
}

/// The JSON of an opening frame, as far as it counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Opening {
    pub(super) token: String,
    pub(super) client_id: String,
    pub(super) client_version: String,
}

/// Why an opening frame is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OpeningError {
    /// Can happen to a good client.
    Late(&'static str),
    /// Happens to a broken client only.
    Broken(&'static str),
}

impl Session {
    /// Makes a session, lists it and starts its task.
    pub(super) fn start(world: &Arc<World>, start: SessionStart) -> Arc<Self> {
        let (control, control_receiver) = mpsc::unbounded_channel();
        let (messages, message_receiver) = mpsc::channel(QUEUE_LEN);
        let mut sessions = lock(&world.sessions);
        let number = world.sessions_started.fetch_add(1, Ordering::Relaxed);
        let session = Arc::new(Self {
            started: world.clock.wall(),
            seed: world.config.seed.wrapping_mul(0x100_0000).wrapping_add(number),
            counters: Counters::default(),
            state: Mutex::new(State {
                phase: SessionState::Waiting,
                tokens: BTreeMap::new(),
                spent: BTreeSet::new(),
                client_id: None,
                client_version: String::new(),
                resumes: 0,
                transports: 0,
            }),
            control,
            messages,
            start,
        });
        sessions.insert(session.start.id.clone(), session.clone());
        let task = Driver::new(world.clone(), session.clone(), control_receiver).run(message_receiver);
        world.tasks.spawn(task);
        session
    }

    pub(super) fn state(&self) -> SessionState {
        lock(&self.state).phase
    }

    pub(super) fn set_token(&self, token: String, until: Instant) {
        lock(&self.state).tokens.insert(token, until);
    }

    /// Gives the session a new token, as `ResumeSession` does.
    pub(super) fn resume(&self, token: String, until: Instant) {
        {
            let mut state = lock(&self.state);
            state.tokens.insert(token, until);
            state.resumes += 1;
        }
        self.control(Control::Resumed);
    }

    /// Ends the session, as `TerminateSession` does.
    pub(super) fn terminate(&self) {
        self.control(Control::Terminate);
    }

    /// Reaches the session's task, if it is still there.
    pub(super) fn control(&self, control: Control) {
        let _gone = self.control.send(control);
    }

    /// Checks an opening frame, spends its token and counts the transport.
    pub(super) fn open(&self, opening: &Opening, now: Instant) -> Result<u32, OpeningError> {
        let mut state = lock(&self.state);
        if state.phase == SessionState::Ended {
            return Err(OpeningError::Late("the session has ended"));
        }
        if state.spent.contains(&opening.token) {
            return Err(OpeningError::Broken("the token has been used before"));
        }
        let Some(until) = state.tokens.remove(&opening.token) else {
            return Err(OpeningError::Broken("the token is not the session's"));
        };
        state.spent.insert(opening.token.clone());
        if until < now {
            return Err(OpeningError::Late("the token has expired"));
        }
        match &state.client_id {
            Some(first) if *first != opening.client_id => {
                return Err(OpeningError::Broken("the client id differs from that of the first transport"));
            }
            _ => state.client_id = Some(opening.client_id.clone()),
        }
        state.client_version.clone_from(&opening.client_version);
        state.phase = SessionState::Connected;
        state.transports += 1;
        Ok(state.transports)
    }

    /// Spends a token without opening anything.
    pub(super) fn reject_token(&self, token: &str) {
        let mut state = lock(&self.state);
        if state.tokens.remove(token).is_some() {
            state.spent.insert(token.to_owned());
        }
    }

    pub(super) fn info(&self) -> SessionInfo {
        let state = lock(&self.state);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SessionInfo {
            id: self.start.id.clone(),
            target: self.start.target.clone(),
            destination: self.destination(),
            reason: self.start.reason.clone(),
            state: state.phase,
            resumes: state.resumes,
            transports: state.transports,
            client_version: state.client_version.clone(),
            streams: read(&self.counters.streams),
            open_streams: read(&self.counters.open_streams),
            bytes_to_destination: read(&self.counters.bytes_to_destination),
            bytes_from_destination: read(&self.counters.bytes_from_destination),
            messages_from_client: read(&self.counters.messages_from_client),
            messages_to_client: read(&self.counters.messages_to_client),
            retransmissions: read(&self.counters.retransmissions),
            peak_messages_per_second: read(&self.counters.peak_rate),
            pings: read(&self.counters.pings),
        }
    }

    /// `host:port` as the agent sees it.
    pub(super) fn destination(&self) -> String {
        let Parameters { host, port, .. } = &self.start.parameters;
        format!("{}:{port}", host.as_deref().unwrap_or("localhost"))
    }

    fn set_phase(&self, phase: SessionState) {
        let mut state = lock(&self.state);
        if state.phase != SessionState::Ended {
            state.phase = phase;
        }
    }
}

/// Counts the client's messages by seconds.
struct Rate {
    until: Instant,
    count: u64,
    seconds_above: u32,
}

/// The task of a session.
struct Driver {
    world: Arc<World>,
    session: Arc<Session>,
    control: mpsc::UnboundedReceiver<Control>,
    agent: Agent,
    destinations: Destinations,
    transport: Option<TransportHandle>,
    /// Messages for the client that the service has.
    outbox: VecDeque<Bytes>,
    idle_since: Instant,
    started: Instant,
    rate: Rate,
    agent_dead: bool,
    agent_away_until: Option<Instant>,
    start_publication_at: Option<Instant>,
    ended: bool,
}

impl Driver {
    fn new(world: Arc<World>, session: Arc<Session>, control: mpsc::UnboundedReceiver<Control>) -> Self {
        let now = world.clock.now();
        let Parameters { host, port, local_port } = &session.start.parameters;
        let mut properties = Map::new();
        if let Some(host) = host {
            properties.insert("host".to_owned(), host.clone().into());
        }
        properties.insert("portNumber".to_owned(), port.clone().into());
        properties.insert("localPortNumber".to_owned(), local_port.clone().into());
        let (quirks, lossy) = {
            let settings = world.settings();
            (settings.agent.clone(), settings.upstream.is_lossy())
        };
        let setup = AgentSetup {
            config: world.config.agent,
            quirks,
            version: session.start.agent_version.clone(),
            properties,
            seed: session.seed,
        };
        let mut agent = Agent::new(setup, now);
        if lossy {
            agent.expect_gaps();
        }
        Self {
            destinations: Destinations::new(world.clone(), session.clone()),
            world,
            session,
            control,
            agent,
            transport: None,
            outbox: VecDeque::new(),
            idle_since: now.instant,
            started: now.instant,
            rate: Rate { until: now.instant, count: 0, seconds_above: 0 },
            agent_dead: false,
            agent_away_until: None,
            start_publication_at: None,
            ended: false,
        }
    }

    async fn run(mut self, mut messages: mpsc::Receiver<Bytes>) {
        let stop = self.world.stop.clone();
        let mut timer = pin!(sleep_until(self.next_timer()));
        while !self.ended {
            self.drain_agent();
            self.hand_over();
            let next = self.next_timer();
            // To be woken too early does no harm, and to put it off with each message costs more.
            if next < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(next);
            }
            let readable = self.destinations.can_receive();
            let released = self.destinations.released();
            let roomy = self.agent.pipe_len() < self.world.config.agent.pipe && self.outbox.len() < QUEUE_LEN;
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(control) = self.control.recv() => self.handle_control(control),
                sent = send_first(self.transport.as_ref(), &mut self.outbox) => if !sent { self.lose_transport() },
                Some(message) = messages.recv(), if readable => self.handle_messages(message, &mut messages),
                event = self.destinations.next_event(roomy) => self.handle_destination(event),
                () = released, if !readable => {}
                () = timer.as_mut() => self.handle_timers(),
            }
        }
        self.destinations.close_all();
        self.session.counters.open_streams.store(0, Ordering::Relaxed);
        self.flush(&stop).await;
    }

    /// Lets the last messages leave.
    async fn flush(&mut self, stop: &tokio_util::sync::CancellationToken) {
        let deadline = self.world.clock.instant() + LINGER;
        while !self.outbox.is_empty() && self.transport.is_some() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep_until(deadline) => return,
                sent = send_first(self.transport.as_ref(), &mut self.outbox) => if !sent { return },
            }
        }
    }

    // What comes in.

    fn handle_control(&mut self, control: Control) {
        let now = self.world.clock.now();
        match control {
            Control::Attach(handle) => self.attach(handle),
            Control::Detached { number } => {
                if self.transport.as_ref().is_some_and(|transport| transport.number == number) {
                    self.lose_transport();
                }
            }
            Control::Resumed => self.idle_since = now.instant,
            Control::Terminate => self.end("TerminateSession", Some("")),
            Control::Settings => {
                let (quirks, lossy) = {
                    let settings = self.world.settings();
                    (settings.agent.clone(), settings.upstream.is_lossy())
                };
                self.agent.set_quirks(quirks);
                if lossy {
                    self.agent.expect_gaps();
                }
            }
            Control::Gaps => self.agent.expect_gaps(),
            Control::Command(command) => self.handle_command(command),
        }
    }

    fn handle_command(&mut self, command: Command) {
        let now = self.world.clock.instant();
        let tell = |transport: &Option<TransportHandle>, command| {
            if let Some(transport) = transport {
                let _gone = transport.commands.send(command);
            }
        };
        match command {
            Command::CutTransport => tell(&self.transport, TransportCommand::Cut),
            Command::CloseTransport { code, reason } => tell(&self.transport, TransportCommand::Close { code, reason }),
            Command::SilenceTransport => {
                tell(&self.transport, TransportCommand::Silence { upstream: true, downstream: true });
            }
            Command::SilenceUpstream => {
                tell(&self.transport, TransportCommand::Silence { upstream: true, downstream: false });
            }
            Command::SilenceDownstream => {
                tell(&self.transport, TransportCommand::Silence { upstream: false, downstream: true });
            }
            Command::HalfOpen => {
                tell(&self.transport, TransportCommand::HalfOpen);
                if self.transport.is_some() {
                    self.lose_transport();
                }
            }
            Command::Pause { messages, start_after } => {
                for _ in 0..messages {
                    self.outbox.push_back(publication(&MessageType::PausePublication));
                }
                self.start_publication_at = start_after.map(|after| now + after);
            }
            Command::CloseChannel { output } => self.end("channel closed by the script", output.as_deref()),
            Command::KillAgent => {
                self.agent_dead = true;
                self.destinations.close_all();
            }
            Command::DetachAgent(time) => self.agent_away_until = Some(now + time),
            Command::CloseDestinations => self.destinations.close_connections(),
            Command::Inject(bytes) => self.outbox.push_back(bytes.into()),
        }
    }

    fn attach(&mut self, handle: TransportHandle) {
        let now = self.world.clock.now();
        let is_first = !self.agent.has_started() && self.transport.is_none();
        if !is_first {
            self.agent.expect_gaps();
        }
        self.transport = Some(handle);
        if self.world.settings().start_publication {
            self.outbox.push_front(publication(&MessageType::StartPublication));
        }
        self.agent.unpause(now);
        if self.world.config.agent.start == AgentStart::WithClient {
            self.agent.start(now);
        }
        self.world.journal.touch();
    }

    fn lose_transport(&mut self) {
        self.transport = None;
        self.agent.expect_gaps();
        self.session.set_phase(SessionState::Disconnected);
        if self.world.config.absent_client != AbsentClient::Hold {
            self.outbox.clear();
        }
        self.world.journal.touch();
    }

    /// Takes a message, and those that have come with it, as far as there is room for what becomes of them.
    fn handle_messages(&mut self, first: Bytes, further: &mut mpsc::Receiver<Bytes>) {
        self.handle_message(first);
        for _ in 1..QUEUE_LEN {
            self.drain_agent();
            if self.ended || self.outbox.len() >= QUEUE_LEN || !self.destinations.can_receive() {
                break;
            }
            let Ok(message) = further.try_recv() else { break };
            self.handle_message(message);
        }
        self.world.journal.touch();
    }

    fn handle_message(&mut self, message: Bytes) {
        let now = self.world.clock.now();
        self.session.counters.messages_from_client.fetch_add(1, Ordering::Relaxed);
        self.count_rate(now.instant);
        if message.get(4..21).is_some_and(|name| name == b"input_stream_data") {
            self.idle_since = now.instant;
        }
        if self.agent_away_until.is_some() {
            self.agent.expect_gaps();
            self.outbox.push_back(publication(&MessageType::PausePublication));
        } else if !self.agent_dead {
            self.agent.handle_message(now, message);
        }
    }

    fn count_rate(&mut self, now: Instant) {
        if now >= self.rate.until {
            let limit = self.world.settings().max_message_rate;
            let above = limit.is_some_and(|limit| self.rate.count > u64::from(limit));
            self.rate.seconds_above = if above { self.rate.seconds_above + 1 } else { 0 };
            self.rate.count = 0;
            self.rate.until = now + Duration::from_secs(1);
            match self.rate.seconds_above {
                0 => {}
                1 => self.outbox.push_back(publication(&MessageType::PausePublication)),
                _ => {
                    self.world.journal.violation(&self.session.start.id, "sent too many messages a second for 2 s");
                    self.end("too many messages", Some(""));
                }
            }
        }
        self.rate.count += 1;
        self.session.counters.peak_rate.fetch_max(self.rate.count, Ordering::Relaxed);
    }

    fn handle_destination(&mut self, event: FromDestination) {
        let now = self.world.clock.now();
        match event {
            FromDestination::Data(id, data) => {
                let len = u64::try_from(data.len()).unwrap_or_default();
                self.session.counters.bytes_from_destination.fetch_add(len, Ordering::Relaxed);
                self.agent.send_data(now, id, data);
            }
            FromDestination::Closed(id) => self.agent.finish(now, id),
            FromDestination::DialFailed(id) => self.agent.dial_failed(now, id),
        }
        self.world.journal.touch();
    }

    fn handle_timers(&mut self) {
        let now = self.world.clock.now();
        if self.start_publication_at.is_some_and(|at| at <= now.instant) {
            self.start_publication_at = None;
            self.outbox.push_back(publication(&MessageType::StartPublication));
        }
        if self.agent_away_until.is_some_and(|until| until <= now.instant) {
            self.agent_away_until = None;
            self.outbox.push_back(publication(&MessageType::StartPublication));
        }
        if self.idle_since + self.world.config.idle_timeout <= now.instant {
            return self.end("idle timeout", Some("Your session timed out due to inactivity."));
        }
        if self.world.config.max_session_duration.is_some_and(|max| self.started + max <= now.instant) {
            return self.end("maximum duration", Some("Your session has reached its maximum duration."));
        }
        if let AgentStart::After(delay) = self.world.config.agent.start
            && self.started + delay <= now.instant
        {
            self.agent.start(now);
        }
        if !self.agent_dead {
            self.agent.handle_timeout(now);
        }
    }

    fn next_timer(&self) -> Instant {
        let start = match self.world.config.agent.start {
            AgentStart::After(delay) if !self.agent.has_started() => Some(self.started + delay),
            AgentStart::After(_) | AgentStart::WithClient => None,
        };
        let agent = self.agent.poll_timeout().filter(|_| !self.agent_dead);
        let max = self.world.config.max_session_duration.map(|max| self.started + max);
        let timers = [start, agent, max, self.start_publication_at, self.agent_away_until];
        timers.into_iter().flatten().fold(self.idle_since + self.world.config.idle_timeout, Instant::min)
    }

    // What goes out.

    fn drain_agent(&mut self) {
        while !self.ended && self.outbox.len() < QUEUE_LEN {
            let Some(message) = self.agent.poll_transmit() else { break };
            if self.agent_dead || self.agent_away_until.is_some() {
                continue;
            }
            match (self.transport.is_some(), self.world.config.absent_client) {
                (true, _) => self.outbox.push_back(message),
                (false, AbsentClient::Hold) if self.outbox.len() < MAX_HELD => self.outbox.push_back(message),
                (false, AbsentClient::Hold | AbsentClient::Drop) => {}
                (false, AbsentClient::Pause) => self.agent.pause(),
            }
        }
        self.session.counters.retransmissions.store(self.agent.retransmissions(), Ordering::Relaxed);
        self.session.counters.open_streams.store(self.agent.open_streams(), Ordering::Relaxed);
        while let Some(event) = self.agent.poll_event() {
            self.handle_agent(event);
        }
    }

    /// Gives the transport as much as it takes without waiting.
    fn hand_over(&mut self) {
        let Some(transport) = &self.transport else { return };
        while !self.outbox.is_empty() {
            // That it is gone is noticed where it is waited for.
            let Ok(permit) = transport.messages.try_reserve() else { return };
            if let Some(message) = self.outbox.pop_front() {
                permit.send(message);
            }
        }
    }

    fn handle_agent(&mut self, event: AgentEvent) {
        let id = &self.session.start.id;
        match event {
            AgentEvent::HandshakeComplete => {
                self.world.journal.record(Event::HandshakeComplete { session: id.clone() })
            }
            AgentEvent::Resolve => match self.destinations.resolve() {
                Ok(()) => self.agent.ready(self.world.clock.now()),
                Err(output) => self.agent.fail(output),
            },
            AgentEvent::Open(stream) => self.destinations.open(stream),
            AgentEvent::Data(stream, data) => self.destinations.write(stream, data),
            AgentEvent::Fin(stream) => self.destinations.finish(stream),
            AgentEvent::Terminate => self.destinations.close_all(),
            AgentEvent::Closed { output } => self.end("the agent ended", Some(&output)),
            AgentEvent::Violation(what) => self.world.journal.violation(id, what),
        }
    }

    fn end(&mut self, reason: &str, output: Option<&str>) {
        if self.ended {
            return;
        }
        // What the agent has said is said before the end.
        while let Some(message) = self.agent.poll_transmit() {
            self.outbox.push_back(message);
        }
        self.outbox.push_back(channel_closed(&self.session.start, self.world.clock.now().wall_ms, output));
        self.ended = true;
        self.session.set_phase(SessionState::Ended);
        let session = self.session.start.id.clone();
        self.world.journal.record(Event::SessionEnded { session, reason: reason.to_owned() });
    }
}

/// Sends the first message of `outbox`; returns whether the transport took it. Waits for ever when
/// there is no message or no transport.
async fn send_first(transport: Option<&TransportHandle>, outbox: &mut VecDeque<Bytes>) -> bool {
    let Some(transport) = transport.filter(|_| !outbox.is_empty()) else { return pending().await };
    let Ok(permit) = transport.messages.reserve().await else { return false };
    if let Some(message) = outbox.pop_front() {
        permit.send(message);
    }
    true
}

/// A message that the service makes: NUL padding and no payload type. Publication messages of the
/// service have neither a date nor a digest.
fn service_message(message_type: &MessageType, created_ms: u64, payload: &[u8]) -> Bytes {
    let mut message = vec![0; 116];
    let name = message_type.as_str().as_bytes();
    message[..4].copy_from_slice(&SERVICE_HEADER_LENGTH_FIELD.to_be_bytes());
    message[4..4 + name.len()].copy_from_slice(name);
    message[36..40].copy_from_slice(&1_u32.to_be_bytes());
    message[40..48].copy_from_slice(&created_ms.to_be_bytes());
    if !payload.is_empty() {
        message[80..112].copy_from_slice(&Sha256::digest(payload));
    }
    let payload_len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    message[112..116].copy_from_slice(&payload_len.to_be_bytes());
    message.extend_from_slice(payload);
    message.into()
}

fn publication(message_type: &MessageType) -> Bytes {
    service_message(message_type, 0, b"")
}

fn channel_closed(start: &SessionStart, created_ms: u64, output: Option<&str>) -> Bytes {
    let mut body = json!({
        "MessageId": uuid::Uuid::new_v4().to_string(),
        "CreatedDate": created_ms.to_string(),
        "DestinationId": start.owner.user_id,
        "SessionId": start.id,
        "MessageType": "channel_closed",
        "SchemaVersion": 1,
    });
    if let Some(output) = output {
        body["Output"] = Value::from(output);
    }
    service_message(&MessageType::ChannelClosed, created_ms, body.to_string().as_bytes())
}

/// Streams of a session, see [`destination`].
type Streams<T> = BTreeMap<crate::route::ssm::proto::smux::frame::StreamId, T>;
