//! The task of a session, which drives its agent.
//!
//! It owns the agent, its connections to destinations, and the way to the client's transport, which comes and goes; the
//! session outlives it.

use std::{
    collections::VecDeque,
    future::pending,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    super::{
        agent::{Agent, AgentEvent, AgentSetup},
        clock::Now,
        config::{AbsentClient, AgentStart},
        journal::Event,
        script::Command,
        world::World,
    },
    Control, Parameters, QUEUE_LEN, Session, SessionStart, SessionState, TransportCommand, TransportHandle,
    destination::{Destinations, FromDestination},
    give_turn,
};
use crate::route::ssm::proto::message::{MessageType, SERVICE_HEADER_LENGTH_FIELD};

/// Most messages that are kept for an absent client.
const MAX_HELD: usize = 20_000;

/// How long an ended session waits for its last messages to leave.
const LINGER: Duration = Duration::from_secs(5);

/// Counts the client's messages by seconds.
struct Rate {
    until: Instant,
    count: u64,
    seconds_above: u32,
}

/// The task of a session.
pub(super) struct Driver {
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
    /// The agent has no worker for the session, and may never have.
    is_held: bool,
    agent_dead: bool,
    agent_away_until: Option<Instant>,
    start_publication_at: Option<Instant>,
    ended: bool,
}

impl Driver {
    pub(super) fn new(world: Arc<World>, session: Arc<Session>, control: mpsc::UnboundedReceiver<Control>) -> Self {
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
            is_held: !session.is_running(),
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

    pub(super) async fn run(mut self, mut messages: mpsc::Receiver<Bytes>) {
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
            Control::Begin => self.begin(now),
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
        if self.world.config.agent.start == AgentStart::WithClient && !self.is_held {
            self.agent.start(now);
        }
        self.world.journal.touch();
    }

    /// The session has got its worker.
    fn begin(&mut self, now: Now) {
        self.is_held = false;
        if self.world.config.agent.start == AgentStart::WithClient && self.transport.is_some() {
            self.agent.start(now);
        }
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
        } else if !self.agent_dead && !self.is_held {
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
            && !self.is_held
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
            AgentStart::After(delay) if !self.agent.has_started() && !self.is_held => Some(self.started + delay),
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
        give_turn(&self.world, &self.session.start.target);
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
