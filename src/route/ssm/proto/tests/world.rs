//! The virtual network between client and agent, and the local programs on the client's side.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};

use super::{
    super::{CloseReason, Config, Event, MessageIds, Now, PortSession, StreamId},
    agent::{Agent, AgentConfig, Destination},
};
use crate::random::SplitMix64;

/// Chance from a seed.
#[derive(Debug, Clone)]
pub(super) struct Rng(SplitMix64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn chance(&mut self, percent: f64) -> bool {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64 * 100.0 < percent
    }

    pub(super) fn bytes(&mut self, len: usize) -> Bytes {
        let mut bytes = BytesMut::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes.freeze()
    }
}

/// What the network does to messages, in each direction.
#[derive(Debug, Clone)]
pub(super) struct Network {
    pub(super) delay: Duration,
    /// Additional delay of up to this much, which reorders.
    pub(super) jitter: Duration,
    pub(super) loss_percent: f64,
    pub(super) duplicate_percent: f64,
}

impl Default for Network {
    fn default() -> Self {
        Self { delay: Duration::from_millis(20), jitter: Duration::ZERO, loss_percent: 0.0, duplicate_percent: 0.0 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Client,
    Agent,
}

/// A local program on one connection.
#[derive(Debug)]
pub(super) struct Program {
    /// What it still has to send, and whether it stops writing then.
    pub(super) upload: Bytes,
    pub(super) finish_after_upload: bool,
    finish_sent: bool,
    pub(super) received: BytesMut,
    pub(super) end: Option<End>,
}

/// How a connection ended for the local program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Closed,
    Refused,
}

/// Everything of one run.
pub(super) struct World {
    pub(super) now: Now,
    pub(super) client: PortSession,
    pub(super) agent: Agent,
    pub(super) network: Network,
    pub(super) rng: Rng,
    in_flight: BTreeMap<(Duration, u64, Side), Bytes>,
    next_message: u64,
    pub(super) connected: bool,
    /// How long what the agent sends waits on its way. It must not shrink by more than time passes.
    pub(super) downstream_queue: Duration,
    /// What has come and is not read; `None`: everything is.
    unread: Option<VecDeque<Bytes>>,
    /// What the client sends is lost.
    pub(super) upstream_lost: bool,
    /// What the agent sends is lost.
    pub(super) downstream_lost: bool,
    pub(super) programs: BTreeMap<StreamId, Program>,
    pub(super) established: bool,
    pub(super) alive: u32,
    pub(super) closed: Option<CloseReason>,
    /// Times of all messages that the client sent.
    pub(super) client_sent: Vec<Duration>,
}

impl World {
    pub(super) fn new(seed: u64, config: Config, agent: AgentConfig, destinations: Vec<Destination>) -> Self {
        let now = Now { mono: Duration::from_secs(1000), wall: Duration::from_secs(1_700_000_000) };
        Self {
            now,
            client: PortSession::new(config, MessageIds::new(seed), now),
            agent: Agent::new(agent, destinations, now),
            network: Network::default(),
            rng: Rng::new(seed),
            in_flight: BTreeMap::new(),
            next_message: 0,
            connected: true,
            downstream_queue: Duration::ZERO,
            unread: None,
            upstream_lost: false,
            downstream_lost: false,
            programs: BTreeMap::new(),
            established: false,
            alive: 0,
            closed: None,
            client_sent: Vec::new(),
        }
    }

    /// A session whose handshake is done, with a fast network.
    pub(super) fn established(seed: u64, destinations: Vec<Destination>) -> Self {
        let mut world = Self::new(seed, Config::default(), AgentConfig::default(), destinations);
        world.run_until(|world| world.established);
        world
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.now.mono - Duration::from_secs(1000)
    }

    /// Opens a connection whose program sends `upload`.
    pub(super) fn open(&mut self, upload: Bytes, finish_after_upload: bool) -> StreamId {
        let id = self.client.open_stream(self.now).expect("a stream can be opened");
        self.programs.insert(
            id,
            Program { upload, finish_after_upload, finish_sent: false, received: BytesMut::new(), end: None },
        );
        self.settle();
        id
    }

    /// Loses everything in flight.
    pub(super) fn cut(&mut self) {
        self.connected = false;
        self.in_flight.clear();
        self.agent.cut();
        self.client.detached(self.now);
        self.settle();
    }

    pub(super) fn reattach(&mut self) {
        self.connected = true;
        self.client.reattached(self.now);
        self.settle();
    }

    /// Reads the transport from now on, or does not.
    pub(super) fn read_transport(&mut self, reading: bool) {
        self.client.set_reading(self.now, reading);
        if !reading {
            self.unread.get_or_insert_default();
            return;
        }
        for message in self.unread.take().unwrap_or_default() {
            self.client.handle_message(self.now, message);
        }
        self.settle();
    }

    /// Runs until the condition holds.
    #[track_caller]
    pub(super) fn run_until(&mut self, condition: impl Fn(&Self) -> bool) {
        let limit = self.now.mono + Duration::from_secs(3600);
        self.settle();
        while !condition(self) {
            assert!(self.step(), "nothing more will happen");
            assert!(self.now.mono < limit, "still not after an hour");
        }
    }

    /// Runs for a time, whatever happens.
    pub(super) fn run_for(&mut self, time: Duration) {
        let end = self.now.mono + time;
        self.settle();
        while self.next_time().is_some_and(|next| next <= end) {
            self.step();
        }
        self.advance(end);
        self.settle();
    }

    fn next_time(&self) -> Option<Duration> {
        let network = self.in_flight.keys().next().map(|(at, _, _)| *at);
        [network, self.client.poll_timeout(), self.agent.poll_timeout()].into_iter().flatten().min()
    }

    fn advance(&mut self, to: Duration) {
        let step = to.saturating_sub(self.now.mono);
        self.now.mono += step;
        self.now.wall += step;
    }

    /// Goes on to the next thing that happens; false if there is none.
    fn step(&mut self) -> bool {
        let Some(next) = self.next_time() else { return false };
        // A timer in the past must do something, or time would stand still.
        self.advance(next.max(self.now.mono + Duration::from_nanos(1)));
        while let Some(entry) = self.in_flight.first_entry() {
            let (at, _, side) = *entry.key();
            if at > self.now.mono {
                break;
            }
            let message = entry.remove();
            match side {
                Side::Client if self.unread.is_some() => {
                    self.unread.iter_mut().for_each(|all| all.push_back(message.clone()))
                }
                Side::Client => self.client.handle_message(self.now, message),
                Side::Agent => self.agent.handle_message(self.now, message),
            }
            self.settle();
        }
        self.client.handle_timeout(self.now);
        self.agent.handle_timeout(self.now);
        self.settle();
        true
    }

    /// Drains both ends and feeds the programs until nothing moves.
    pub(super) fn settle(&mut self) {
        loop {
            let mut moved = false;
            while let Some(message) = self.client.poll_transmit(self.now) {
                moved = true;
                self.client_sent.push(self.now.mono);
                self.transmit(Side::Agent, message);
            }
            while let Some(event) = self.client.poll_event() {
                moved = true;
                self.handle_event(event);
            }
            self.agent.handle_timeout(self.now);
            while let Some(message) = self.agent.poll_transmit() {
                moved = true;
                self.transmit(Side::Client, message);
            }
            moved |= self.run_programs();
            self.client.assert_invariants();
            if !moved {
                return;
            }
        }
    }

    fn transmit(&mut self, to: Side, message: Bytes) {
        let lost = match to {
            Side::Agent => self.upstream_lost,
            Side::Client => self.downstream_lost,
        };
        if !self.connected || lost || self.rng.chance(self.network.loss_percent) {
            return;
        }
        let copies = 1 + u32::from(self.rng.chance(self.network.duplicate_percent));
        for _ in 0..copies {
            let jitter = self.network.jitter.as_nanos() as u64;
            let jitter = if jitter == 0 { 0 } else { self.rng.below(jitter) };
            let queue = if to == Side::Client { self.downstream_queue } else { Duration::ZERO };
            let at = self.now.mono + self.network.delay + queue + Duration::from_nanos(jitter);
            self.in_flight.insert((at, self.next_message, to), message.clone());
            self.next_message += 1;
        }
    }

    fn run_programs(&mut self) -> bool {
        let mut moved = false;
        for (&id, program) in &mut self.programs {
            if program.end.is_some() {
                continue;
            }
            let room = self.client.writable_len(id).min(16 << 10);
            if room > 0 && !program.upload.is_empty() {
                let len = (1 + self.rng.below(room as u64) as usize).min(program.upload.len());
                self.client.write(self.now, id, program.upload.split_to(len));
                moved = true;
            }
            if program.upload.is_empty() && program.finish_after_upload && !program.finish_sent {
                program.finish_sent = true;
                self.client.finish(self.now, id);
                moved = true;
            }
        }
        moved
    }

    fn handle_event(&mut self, event: Event) {
        assert!(self.closed.is_none(), "nothing follows the end: {event:?}");
        match event {
            Event::Established { customer_message, .. } => {
                assert_eq!(customer_message, "hi");
                assert!(!std::mem::replace(&mut self.established, true));
            }
            Event::Alive => self.alive += 1,
            Event::Data { id, data } => {
                assert!(!data.is_empty());
                let program = self.programs.get_mut(&id).expect("data for a connection that was opened");
                assert_eq!(program.end, None, "no data after the end");
                program.received.extend_from_slice(&data);
            }
            Event::Finished { id } => self.end(id, End::Closed),
            Event::Refused { id } => self.end(id, End::Refused),
            Event::Writable { .. } => {}
            Event::Closed(reason) => self.closed = Some(reason),
        }
    }

    fn end(&mut self, id: StreamId, end: End) {
        let program = self.programs.get_mut(&id).expect("a connection that was opened");
        assert_eq!(program.end.replace(end), None, "one end per connection");
    }

    pub(super) fn all_ended(&self) -> bool {
        self.programs.values().all(|program| program.end.is_some())
    }
}
