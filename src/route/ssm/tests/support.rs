//! A tunnel in a test: its local connections, its status, and what is behind [`Dial`].

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::agent::{Agent, Destination, Note, Order, ServerSocket};
use crate::{
    bastion::Target,
    clock::Clock,
    cluster::{self, Cluster, Origin},
    remote::{Host, Remote},
    route::{
        PipeEnd, Report, Route,
        ssm::{self, Dial, DialError, SessionHandle, SessionId, Transport, find::Look},
    },
    tunnel::{
        Admission, Common, Config, Listeners, MemoryConnection, MemoryPort, Readiness, State, Tunnel, TunnelStatus,
    },
    util::connection::Connection,
};

/// Bytes that an in-memory transport holds.
const PIPE_LEN: usize = 256 << 10;

/// How long anything may take, in virtual time.
const LIMIT: Duration = Duration::from_secs(600);

/// Waits for something that a peer does.
pub(super) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LIMIT, future).await.expect("it comes in time")
}

/// Measures virtual time.
pub(super) struct Stopwatch(Clock);

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self(Clock::start())
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.0.now().mono
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    Start(String),
    Resume(String),
    Terminate(String),
}

pub(super) type MakeError = Box<dyn Fn() -> DialError + Send + Sync>;

/// The outside as a test scripts it.
pub(super) struct Network {
    state: Mutex<NetworkState>,
    notes: mpsc::UnboundedSender<Note>,
    calls: mpsc::UnboundedSender<Call>,
}

pub(super) struct NetworkState {
    destination: Destination,
    agents: JoinSet<()>,
    sessions: Vec<Session>,
    /// What the next starts and resumes answer instead of a transport.
    pub(super) refuse_starts: VecDeque<MakeError>,
    refuse_resumes: VecDeque<MakeError>,
    /// Targets that are not connected.
    absent: Vec<Target>,
    /// Starts and resumes wait while this is down.
    gate: watch::Sender<bool>,
    /// How long agents take to speak; `None`: for ever.
    agents_speak: Option<Duration>,
    /// Calls that end sessions are not answered.
    pub(super) swallow_terminates: bool,
    /// Settings of sessions.
    pub(super) config: ssm::Config,
    /// What is said of whether sessions are active.
    pub(super) says_active: Option<bool>,
    /// There is leave for sessions; else it is waited for.
    leave: watch::Sender<bool>,
    /// What is answered instead of leave.
    pub(super) refuse_leave: Option<MakeError>,
}

struct Session {
    sockets: mpsc::UnboundedSender<ServerSocket>,
    orders: mpsc::UnboundedSender<Order>,
}

impl Network {
    pub(super) fn state<T>(&self, change: impl FnOnce(&mut NetworkState) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    async fn pass_gate(&self) {
        let mut gate = self.state(|state| state.gate.subscribe());
        gate.wait_for(|open| *open).await.unwrap();
    }

    /// Tells the agent of the newest session what to do.
    pub(super) fn order(&self, order: Order) {
        self.state(|state| state.sessions.last().unwrap().orders.send(order).unwrap());
    }

    /// Tells the agent of the session with this number what to do.
    pub(super) fn order_session(&self, number: usize, order: Order) {
        self.state(|state| state.sessions[number].orders.send(order).unwrap());
    }
}

impl NetworkState {
    pub(super) fn refuse_starts(
        &mut self,
        count: usize,
        error: impl Fn() -> DialError + Clone + Send + Sync + 'static,
    ) {
        self.refuse_starts.extend((0..count).map(|_| Box::new(error.clone()) as MakeError));
    }

    pub(super) fn refuse_resumes(
        &mut self,
        count: usize,
        error: impl Fn() -> DialError + Clone + Send + Sync + 'static,
    ) {
        self.refuse_resumes.extend((0..count).map(|_| Box::new(error.clone()) as MakeError));
    }

    pub(super) fn set_absent(&mut self, targets: &[Target]) {
        self.absent = targets.to_vec();
    }

    pub(super) fn set_destination(&mut self, destination: Destination) {
        self.destination = destination;
    }

    /// Gives leave for sessions, or takes it.
    pub(super) fn give_leave(&self, given: bool) {
        self.leave.send_replace(given);
    }

    /// Lets starts and resumes through, or not.
    pub(super) fn open_gate(&self, open: bool) {
        self.gate.send_replace(open);
    }

    pub(super) fn silence_agents(&mut self) {
        self.agents_speak = None;
    }

    pub(super) fn delay_agents(&mut self, time: Duration) {
        self.agents_speak = Some(time);
    }

    fn connect(&mut self, number: usize) -> Transport {
        let (ours, theirs) = tokio::io::duplex(PIPE_LEN);
        let sockets = self.sessions[number].sockets.clone();
        self.agents.spawn(async move {
            let theirs: Box<dyn Connection> = Box::new(theirs);
            // An agent that has ended does not want it.
            let _outcome = sockets.send(WebSocketStream::from_raw_socket(theirs, Role::Server, None).await);
        });
        let ours: Box<dyn Connection> = Box::new(ours);
        let config = Some(Transport::websocket_config());
        let websocket =
            futures_util::FutureExt::now_or_never(WebSocketStream::from_raw_socket(ours, Role::Client, config));
        Transport::new(websocket.expect("a client's socket is there at once"))
    }
}

pub(super) fn unreachable() -> DialError {
    DialError::Unreachable { host: "gateway".into(), source: "no route".into() }
}

pub(in crate::route::ssm) fn denied(action: &'static str) -> DialError {
    DialError::AccessDenied { action, resource: "arn".into(), source: "denied".into() }
}

impl Dial for Network {
    fn ask_leave<'a>(
        &'a self,
        target: &'a Target,
        tell: &'a (dyn Fn(Report) + Send + Sync),
    ) -> BoxFuture<'a, Result<(), DialError>> {
        Box::pin(async move {
            let mut leave = self.state(|state| state.leave.subscribe());
            if !*leave.borrow_and_update() {
                tell(Report::Asked(format!("waiting for leave on `{target}`")));
                leave.wait_for(|granted| *granted).await.unwrap();
            }
            self.state(|state| state.refuse_leave.as_ref().map_or(Ok(()), |error| Err(error())))
        })
    }

    fn start<'a>(
        &'a self,
        target: &'a Target,
        _destination: &'a cluster::Destination,
        _document: Option<String>,
    ) -> BoxFuture<'a, Result<(SessionHandle, Transport), DialError>> {
        Box::pin(async move {
            self.calls.send(Call::Start(target.to_string())).unwrap();
            self.pass_gate().await;
            self.state(|state| {
                if let Some(error) = state.refuse_starts.pop_front() {
                    return Err(error());
                }
                if state.absent.contains(target) {
                    return Err(DialError::TargetNotConnected { target: target.clone(), source: "offline".into() });
                }
                let (sockets, new_sockets) = mpsc::unbounded_channel();
                let (orders, new_orders) = mpsc::unbounded_channel();
                let agent = Agent {
                    sockets: new_sockets,
                    orders: new_orders,
                    notes: self.notes.clone(),
                    destination: state.destination.clone(),
                    speaks: state.agents_speak,
                };
                state.agents.spawn(agent.run());
                state.sessions.push(Session { sockets, orders });
                let number = state.sessions.len() - 1;
                let handle = SessionHandle {
                    id: SessionId(number.to_string()),
                    target: target.clone(),
                    client_id: Uuid::nil(),
                    stream_url: String::new(),
                };
                Ok((handle, state.connect(number)))
            })
        })
    }

    fn resume<'a>(&'a self, session: &'a SessionHandle) -> BoxFuture<'a, Result<Transport, DialError>> {
        Box::pin(async move {
            self.calls.send(Call::Resume(session.id.to_string())).unwrap();
            self.pass_gate().await;
            self.state(|state| match state.refuse_resumes.pop_front() {
                Some(error) => Err(error()),
                None => Ok(state.connect(session.id.0.parse().unwrap())),
            })
        })
    }

    fn is_active<'a>(&'a self, _session: &'a SessionHandle) -> BoxFuture<'a, Option<bool>> {
        Box::pin(std::future::ready(self.state(|state| state.says_active)))
    }

    fn terminate<'a>(&'a self, session: &'a SessionHandle) -> BoxFuture<'a, Result<(), DialError>> {
        Box::pin(async move {
            self.calls.send(Call::Terminate(session.id.to_string())).unwrap();
            if self.state(|state| state.swallow_terminates) {
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    }
}

/// A running tunnel.
pub(super) struct World {
    pub(super) network: Arc<Network>,
    pub(super) common: Arc<Common>,
    pub(super) status: watch::Receiver<TunnelStatus>,
    pub(super) notes: mpsc::UnboundedReceiver<Note>,
    pub(super) calls: mpsc::UnboundedReceiver<Call>,
    local: MemoryPort,
    stop: CancellationToken,
    tunnel: JoinSet<()>,
}

pub(in crate::route::ssm) fn target(number: usize) -> Target {
    Target::Instance(format!("i-0000000{number}"))
}

pub(in crate::route::ssm) fn cluster(authority: &str) -> Cluster {
    Cluster {
        name: "demo".into(),
        region: "eu-west-1".into(),
        account: "123456789012".into(),
        id: "arn:aws:eks:eu-west-1:123456789012:cluster/demo".into(),
        endpoint: cluster::Destination { host: "api.example".into(), port: 443 },
        certificate_authority: Some(authority.into()),
        origin: Origin::Eks { token_name: "demo".into() },
        vpc: None,
    }
}

pub(super) fn config() -> Config {
    Config { readiness: Readiness::Established, seed: Some(1), ..Config::default() }
}

/// The settings of sessions as far as they are not the usual ones.
fn session_config() -> ssm::Config {
    let session = ssm::proto::Config { messages_per_second: None, ..Default::default() };
    ssm::Config { session, ..ssm::Config::default() }
}

impl World {
    pub(super) fn new(destination: Destination) -> Self {
        Self::with(destination, config(), 1, "", |_| {})
    }

    pub(super) fn with(
        destination: Destination,
        config: Config,
        targets: usize,
        authority: &str,
        prepare: impl FnOnce(&mut NetworkState),
    ) -> Self {
        let (listeners, local) = Listeners::in_memory(10100);
        let routes = |routes: &ssm::Targets| (0..targets).map(|number| routes.route(target(number))).collect();
        Self::build(destination, config, routes, cluster(authority).into(), prepare, listeners, local)
    }

    /// A tunnel to a host that is no cluster.
    pub(super) fn to_host(destination: Destination, config: Config, targets: usize) -> Self {
        let host = Host {
            name: "db".into(),
            region: "eu-west-1".into(),
            account: "123456789012".into(),
            endpoint: cluster::Destination { host: "db.internal".into(), port: 5432 },
            vpc: None,
        };
        let (listeners, local) = Listeners::in_memory(10100);
        let routes = |routes: &ssm::Targets| (0..targets).map(|number| routes.route(target(number))).collect();
        Self::build(destination, config, routes, host.into(), |_| {}, listeners, local)
    }

    /// A tunnel by whatever targets are found.
    pub(super) fn finding(look: Arc<dyn Look>, prepare: impl FnOnce(&mut NetworkState)) -> Self {
        let (listeners, local) = Listeners::in_memory(10100);
        let routes = |routes: &ssm::Targets| vec![routes.finding(&"ecs:tools/bastion".parse().unwrap(), || look)];
        Self::build(Destination::Echo, config(), routes, cluster("").into(), prepare, listeners, local)
    }

    /// A tunnel with a real port, for tests in real time.
    pub(super) fn listening(destination: Destination) -> Self {
        let (_unused, local) = Listeners::in_memory(0);
        let listeners = Listeners::bind(0, 1, false, Admission::owner()).unwrap().listeners.remove(0);
        let routes = |routes: &ssm::Targets| vec![routes.route(target(0))];
        Self::build(destination, config(), routes, cluster("").into(), |_| {}, listeners, local)
    }

    fn build(
        destination: Destination,
        config: Config,
        routes: impl FnOnce(&ssm::Targets) -> Vec<Arc<dyn Route>>,
        to: Remote,
        prepare: impl FnOnce(&mut NetworkState),
        listeners: Listeners,
        local: MemoryPort,
    ) -> Self {
        let (note_sender, notes) = mpsc::unbounded_channel();
        let (call_sender, calls) = mpsc::unbounded_channel();
        let mut state = NetworkState {
            destination,
            agents: JoinSet::new(),
            sessions: Vec::new(),
            refuse_starts: VecDeque::new(),
            refuse_resumes: VecDeque::new(),
            absent: Vec::new(),
            gate: watch::Sender::new(true),
            agents_speak: Some(Duration::ZERO),
            swallow_terminates: false,
            config: session_config(),
            says_active: None,
            leave: watch::Sender::new(true),
            refuse_leave: None,
        };
        prepare(&mut state);
        let sessions = state.config.clone();
        let network = Arc::new(Network { state: Mutex::new(state), notes: note_sender, calls: call_sender });
        let targets = ssm::Targets::new(Arc::clone(&network) as Arc<dyn Dial>, sessions);
        let common = Common::new(Clock::start());
        let tunnel = Tunnel::new(to, routes(&targets), listeners, config, Arc::clone(&common));
        let status = tunnel.status();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(tunnel.run(stop.clone()));
        Self { network, common, status, notes, calls, local, stop, tunnel: tasks }
    }

    pub(super) async fn until(&mut self, wanted: impl FnMut(&TunnelStatus) -> bool) -> TunnelStatus {
        within(self.status.wait_for(wanted)).await.unwrap().clone()
    }

    pub(super) async fn until_state(&mut self, state: State) -> TunnelStatus {
        self.until(|status| status.state == state).await
    }

    /// Connects as a local program does.
    pub(super) fn connect(&self) -> Local {
        Local { stream: self.local.connect().unwrap() }
    }

    /// Waits for a call, skipping others.
    pub(super) async fn until_call(&mut self, wanted: &Call) {
        while within(self.calls.recv()).await.as_ref() != Some(wanted) {}
    }

    pub(super) async fn until_note(&mut self, wanted: &Note) {
        while within(self.notes.recv()).await.as_ref() != Some(wanted) {}
    }

    /// Returns the calls that have been made and not looked at.
    pub(super) fn calls(&mut self) -> Vec<Call> {
        std::iter::from_fn(|| self.calls.try_recv().ok()).collect()
    }

    /// Stops the tunnel and waits for its end.
    pub(super) async fn stop(&mut self) {
        self.stop.cancel();
        within(self.tunnel.join_next()).await.unwrap().unwrap();
        assert_eq!(self.status.borrow().state, State::Stopped);
    }
}

/// A local program's connection.
pub(super) struct Local {
    pub(super) stream: MemoryConnection,
}

impl Local {
    pub(super) async fn write(&mut self, data: &[u8]) {
        within(self.stream.write_all(data)).await.unwrap();
    }

    pub(super) async fn expect(&mut self, data: &[u8]) {
        let mut buffer = vec![0; data.len()];
        within(self.stream.read_exact(&mut buffer)).await.unwrap();
        assert!(buffer == data, "the bytes that were sent");
    }

    pub(super) async fn read_all(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        within(self.stream.read_to_end(&mut bytes)).await.unwrap();
        bytes
    }

    /// Waits until the connection is reset, and returns why.
    pub(super) async fn reset(self) -> PipeEnd {
        within(self.stream.until_reset()).await.expect("it is reset, not closed")
    }
}

/// Bytes that differ from place to place.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}
