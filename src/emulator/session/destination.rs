//! The agent's connections: dials in turn, one task for each stream, and one receive budget.
//!
//! As in the agent, a dial that hangs holds up all later ones, and data that destinations have not
//! taken counts against 4 MiB for all streams together; when they are spent the agent stops reading. The host is looked up
//! once for the session, by old agents for each dial as well.

use std::{
    collections::VecDeque,
    future::{Future, pending},
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{Notify, mpsc},
};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        agent::habits,
        ecs,
        journal::Event,
        place::{Place, Wire},
        script::Destination,
        world::{World, lock},
    },
    Session, Streams,
    denied::{is_denied, lookup},
};
use crate::route::ssm::proto::smux::frame::StreamId;

/// Data that destinations have not taken, in bytes, above which the agent stops reading:
/// `MaxReceiveBuffer` of smux.
const RECEIVE_BUDGET: usize = 4 << 20;

/// Largest frame that the agent makes: `MaxFrameSize` of smux.
const MAX_FRAME_LEN: usize = 32_768;

/// How many SYNs are sent before a dial fails, after 127 s: `tcp_syn_retries` of Linux is 6.
const SYN_ATTEMPTS: u32 = 7;

/// Events of connections that wait for the session's task: as in smux, where a frame waits for the one before it.
const EVENT_QUEUE_LEN: usize = 1;

/// The resolver that agents ask, as their errors name it.
const RESOLVER: &str = "10.0.0.2:53";

/// What a connection reports.
#[derive(Debug)]
pub(super) enum FromDestination {
    /// The destination sent data.
    Data(StreamId, Bytes),
    /// The connection is closed; nothing follows.
    Closed(StreamId),
    /// There is no connection.
    DialFailed(StreamId),
}

#[derive(Debug)]
enum ToDestination {
    Data(Bytes),
    Fin,
}

/// Bytes that wait for destinations.
#[derive(Debug, Default)]
struct Budget {
    held: AtomicUsize,
    released: Notify,
}

impl Budget {
    fn release(&self, len: usize) {
        self.held.fetch_sub(len, Ordering::AcqRel);
        self.released.notify_one();
    }
}

type Dial = Pin<Box<dyn Future<Output = io::Result<Wire>> + Send>>;

struct Waiting {
    id: StreamId,
    commands: mpsc::UnboundedReceiver<ToDestination>,
}

/// All connections of one session.
pub(super) struct Destinations {
    world: Arc<World>,
    session: Arc<Session>,
    name: String,
    /// The version in use.
    agent_version: String,
    place: Option<Place>,
    streams: Streams<mpsc::UnboundedSender<ToDestination>>,
    waiting: VecDeque<Waiting>,
    dial: Option<Dial>,
    events: mpsc::Receiver<FromDestination>,
    event_sender: mpsc::Sender<FromDestination>,
    budget: Arc<Budget>,
    stop: CancellationToken,
    /// Ends the connections that there are, as if destinations did.
    close: CancellationToken,
}

impl Drop for Destinations {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Destinations {
    pub(super) fn new(world: Arc<World>, session: Arc<Session>) -> Self {
        let (event_sender, events) = mpsc::channel(EVENT_QUEUE_LEN);
        Self {
            name: session.destination(),
            agent_version: agent_version(&world, &session),
            stop: world.stop.child_token(),
            close: CancellationToken::new(),
            world,
            session,
            place: None,
            streams: Streams::new(),
            waiting: VecDeque::new(),
            dial: None,
            events,
            event_sender,
            budget: Arc::default(),
        }
    }

    /// Looks the destination up when the session begins; the error is the text for the client.
    pub(super) fn resolve(&mut self) -> Result<(), String> {
        let host = self.name.rsplit_once(':').map_or(self.name.as_str(), |(host, _)| host);
        let addresses = lookup(host, &self.world.settings().addresses);
        // A session without a host is for the target itself.
        let is_remote = self.session.start.parameters.host.is_some();
        if is_remote && addresses.iter().any(|address| is_denied(&self.agent_version, address)) {
            return Err(format!("Forwarding to IP address {host} is forbidden."));
        }
        self.place = self.route();
        // An address needs no resolver, whatever is there.
        if self.place.is_none() && addresses.is_empty() {
            return Err(format!("lookup {host} on {RESOLVER}: no such host"));
        }
        Ok(())
    }

    /// Where the destination's name leads at the moment.
    fn route(&self) -> Option<Place> {
        let is_known = behaviour(&self.world, &self.name) != Destination::Unresolvable;
        lock(&self.world.routes).get(&self.name).filter(|_| is_known).cloned()
    }

    /// Whether the agent reads on.
    pub(super) fn can_receive(&self) -> bool {
        self.budget.held.load(Ordering::Acquire) < RECEIVE_BUDGET
    }

    /// Waits until a destination has taken something.
    pub(super) fn released(&self) -> impl Future<Output = ()> + use<> {
        let budget = self.budget.clone();
        async move { budget.released.notified().await }
    }

    /// Queues a dial for a new stream.
    pub(super) fn open(&mut self, id: StreamId) {
        self.session.counters.streams.fetch_add(1, Ordering::Relaxed);
        let (sender, commands) = mpsc::unbounded_channel();
        self.streams.insert(id, sender);
        self.waiting.push_back(Waiting { id, commands });
        self.dial_next();
    }

    pub(super) fn write(&self, id: StreamId, data: Bytes) {
        let Some(stream) = self.streams.get(&id) else { return };
        let len = data.len();
        self.budget.held.fetch_add(len, Ordering::AcqRel);
        if stream.send(ToDestination::Data(data)).is_err() {
            self.budget.release(len);
        }
    }

    /// The client has closed the stream: what is buffered is written, then the connection is closed.
    pub(super) fn finish(&self, id: StreamId) {
        if let Some(stream) = self.streams.get(&id) {
            // A connection that is gone reports its own end.
            let _gone = stream.send(ToDestination::Fin);
        }
    }

    /// Lets the destinations close all connections.
    pub(super) fn close_connections(&mut self) {
        self.close.cancel();
        self.close = CancellationToken::new();
    }

    /// Closes everything at once; no event follows.
    pub(super) fn close_all(&mut self) {
        self.stop.cancel();
        self.stop = self.world.stop.child_token();
        self.streams.clear();
        self.waiting.clear();
        self.dial = None;
        let (event_sender, events) = mpsc::channel(EVENT_QUEUE_LEN);
        self.event_sender = event_sender;
        self.events = events;
        self.budget = Arc::default();
    }

    /// Waits for the next event. Dials go on in any case; data is taken from the connections if there is `room` for it.
    ///
    /// # Cancel safety
    /// Nothing is lost: a dial that has not ended stays.
    pub(super) async fn next_event(&mut self, room: bool) -> FromDestination {
        loop {
            tokio::select! {
                biased;
                Some(event) = self.events.recv(), if room => {
                    if let FromDestination::Closed(id) = &event {
                        self.streams.remove(id);
                    }
                    return event;
                }
                outcome = dialled(&mut self.dial) => {
                    self.dial = None;
                    let waiting = self.waiting.pop_front();
                    let connected = outcome.is_ok();
                    self.world.journal.record(Event::Dialled {
                        session: self.session.start.id.clone(),
                        destination: self.name.clone(),
                        connected,
                    });
                    self.dial_next();
                    match (waiting, outcome) {
                        (Some(waiting), Ok(wire)) => self.connect(waiting, wire),
                        (Some(mut waiting), Err(_)) => {
                            self.streams.remove(&waiting.id);
                            drain(&mut waiting.commands, &self.budget);
                            return FromDestination::DialFailed(waiting.id);
                        }
                        (None, _) => {}
                    }
                }
            }
        }
    }

    fn dial_next(&mut self) {
        if self.dial.is_some() || self.waiting.is_empty() {
            return;
        }
        let place = if habits::are_old(&self.agent_version) { self.route() } else { self.place.clone() };
        let (world, name, target) = (self.world.clone(), self.name.clone(), self.session.start.target.clone());
        self.dial = Some(Box::pin(async move {
            // Attempts are as far apart as Linux sends SYNs again, so a black hole that ends is not noticed at once.
            for pause in (0..SYN_ATTEMPTS).map(|attempt| Duration::from_secs(1 << attempt)) {
                match behaviour(&world, &name) {
                    _ if !is_admitted(&world, &name, &target) => {
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                    Destination::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
                    Destination::BlackHole => {
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                    Destination::Slow(time) => tokio::time::sleep(time).await,
                    // Who has looked the name up goes on with the addresses that came of it.
                    Destination::Reachable
                    | Destination::Unresolvable
                    | Destination::NeverReads
                    | Destination::HalfCloses => {}
                }
                return place.ok_or(io::ErrorKind::AddrNotAvailable)?.connect().await;
            }
            Err(io::ErrorKind::TimedOut.into())
        }));
    }

    fn connect(&self, waiting: Waiting, wire: Wire) {
        let connection = Connection {
            id: waiting.id,
            frame_len: MAX_FRAME_LEN.min(self.world.config.agent.pipe).max(1),
            behaviour: behaviour(&self.world, &self.name),
            commands: waiting.commands,
            events: self.event_sender.clone(),
            budget: self.budget.clone(),
            session: self.session.clone(),
            close: self.close.clone(),
        };
        let stop = self.stop.clone();
        self.world.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = connection.run(wire) => {}
            }
        });
    }
}

/// The version of the agent of a session that starts now.
fn agent_version(world: &World, session: &Session) -> String {
    world.settings().agent.version.clone().unwrap_or_else(|| session.start.agent_version.clone())
}

/// How connections to a destination go at the moment.
fn behaviour(world: &World, name: &str) -> Destination {
    let settings = world.settings();
    let found = settings.destinations.get(name).or_else(|| settings.destinations.get("*"));
    found.copied().unwrap_or_default()
}

/// Whether the security group of a cluster admits what a target is in.
fn is_admitted(world: &World, name: &str, target: &str) -> bool {
    let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
    let cluster = world.clusters.iter().find(|cluster| cluster.endpoint_host() == host);
    let group = cluster.and_then(|cluster| cluster.config.group(&world.config.vpcs));
    group.is_none_or(|group| ecs::is_admitted(world, target, group))
}

async fn dialled(dial: &mut Option<Dial>) -> io::Result<Wire> {
    match dial {
        Some(dial) => dial.await,
        None => pending().await,
    }
}

/// Gives back what is queued for a connection that will not take it.
fn drain(commands: &mut mpsc::UnboundedReceiver<ToDestination>, budget: &Budget) {
    commands.close();
    while let Ok(command) = commands.try_recv() {
        if let ToDestination::Data(data) = command {
            budget.release(data.len());
        }
    }
}

/// One connection to the destination.
struct Connection {
    id: StreamId,
    /// Bytes that are read from the destination at once, for one frame.
    frame_len: usize,
    behaviour: Destination,
    commands: mpsc::UnboundedReceiver<ToDestination>,
    events: mpsc::Sender<FromDestination>,
    budget: Arc<Budget>,
    session: Arc<Session>,
    close: CancellationToken,
}

impl Connection {
    /// Copies both ways until one side has had enough, then closes the connection, as the agent does.
    async fn run(mut self, wire: Wire) {
        let (mut reader, mut writer) = tokio::io::split(wire);
        let (id, behaviour, frame_len) = (self.id, self.behaviour, self.frame_len);
        let events = self.events.clone();
        let download = async move {
            if behaviour == Destination::HalfCloses {
                return;
            }
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(frame_len);
                match (&mut reader).take(frame_len as u64).read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) if events.send(FromDestination::Data(id, buffer.split().freeze())).await.is_err() => return,
                    Ok(_) => {}
                }
            }
        };
        let (commands, budget, session) = (&mut self.commands, &self.budget, &self.session);
        let upload = async move {
            let mut block = BytesMut::new();
            while let Some(first) = commands.recv().await {
                let mut next = Some(first);
                let mut finished = false;
                // What has come together is written together.
                while let Some(command) = next {
                    match command {
                        // The bytes stay where they are: in the budget.
                        ToDestination::Data(_) if behaviour == Destination::NeverReads => {}
                        ToDestination::Data(data) => block.extend_from_slice(&data),
                        ToDestination::Fin => finished = true,
                    }
                    let more = !finished && block.len() < MAX_FRAME_LEN;
                    next = if more { commands.try_recv().ok() } else { None };
                }
                let outcome = writer.write_all(&block).await;
                budget.release(block.len());
                let len = u64::try_from(block.len()).unwrap_or_default();
                session.counters.bytes_to_destination.fetch_add(len, Ordering::Relaxed);
                block.clear();
                if outcome.is_err() || finished {
                    return;
                }
            }
        };
        tokio::select! {
            () = download => {}
            () = upload => {}
            () = self.close.cancelled() => {}
        }
        drain(&mut self.commands, &self.budget);
        let _session_is_gone = self.events.send(FromDestination::Closed(self.id)).await;
    }
}
