//! One session: what the service knows of it.
//!
//! API calls and the gateway reach it through [`Session`]; a task of its own drives its agent, see `driver`.

mod denied;
mod destination;
mod driver;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::mpsc, time::Instant};

use self::driver::Driver;
use super::{
    credentials::Caller,
    script::Command,
    world::{World, lock},
};

/// Messages between a transport and the session's task, each way.
pub(super) const QUEUE_LEN: usize = 256;

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
    /// How many sessions run with the target at a time; `None`: no matter.
    pub(super) limit: Option<usize>,
}

/// Starts that wait for their turn on a target with a limit: amazon-ssm-agent's pool of session workers has a buffer of one.
const WAITING_STARTS: usize = 1;

/// What a target's agent makes of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// A worker runs for it.
    Running,
    /// It is the next to get one.
    Waiting,
    /// The agent has dropped it without a word.
    Dropped,
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
    /// The session document.
    pub document: String,
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
    /// Its turn has come.
    Begin,
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
    slot: Slot,
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
                slot: slot_for(&sessions, &start),
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

    /// Whether the agent has a worker for it.
    pub(super) fn is_running(&self) -> bool {
        lock(&self.state).slot == Slot::Running
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
            document: self.start.document.clone(),
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

/// The sessions with a target that are not over, with what the agent makes of them.
fn slots<'a>(
    sessions: &'a BTreeMap<String, Arc<Session>>,
    target: &'a str,
) -> impl Iterator<Item = (&'a Arc<Session>, Slot)> {
    sessions.values().filter(move |session| session.start.target == target).filter_map(|session| {
        let state = lock(&session.state);
        (state.phase != SessionState::Ended).then_some((session, state.slot))
    })
}

fn slot_for(sessions: &BTreeMap<String, Arc<Session>>, start: &SessionStart) -> Slot {
    let Some(limit) = start.limit else { return Slot::Running };
    let count = |wanted: Slot| slots(sessions, &start.target).filter(|(_, slot)| *slot == wanted).count();
    if count(Slot::Running) < limit {
        Slot::Running
    } else if count(Slot::Waiting) < WAITING_STARTS {
        Slot::Waiting
    } else {
        Slot::Dropped
    }
}

/// Gives the worker of a session that has ended to the one that waits.
fn give_turn(world: &World, target: &str) {
    let sessions = lock(&world.sessions);
    let running = slots(&sessions, target).filter(|(_, slot)| *slot == Slot::Running).count();
    let waiting = slots(&sessions, target).filter(|(_, slot)| *slot == Slot::Waiting);
    // They are counted in the order of their starts.
    let Some((next, _)) = waiting.min_by_key(|(session, _)| session.seed) else { return };
    if next.start.limit.is_none_or(|limit| running < limit) {
        lock(&next.state).slot = Slot::Running;
        next.control(Control::Begin);
    }
}

/// Streams of a session, see [`destination`].
type Streams<T> = BTreeMap<crate::route::ssm::proto::smux::frame::StreamId, T>;
