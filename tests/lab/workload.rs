//! What runs while a fault happens: a download, an upload, small questions on open connections, a Kubernetes watch,
//! and new connections; and the ledger that says how long each had to wait and whether every byte was right.
//!
//! A wait begins when an activity has asked for something, or has got a part of it, and ends when the next part is
//! there. Waits count from the [mark](Ledger::mark): the injection of the fault or its end.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use autoheal_pa::{random::SplitMix64, tunnel::MemoryPort, util::connection::Connection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    destination::{Ask, CHUNK, Header, content, send, wrong_bytes},
    time,
};

#[path = "watch.rs"]
mod watch;

/// Bytes of one download or upload. The next follows at once, or after [`Load::bulk_pause`].
const BULK_LEN: u64 = 512 << 10;

/// Pause before a client whose connection has ended connects again.
const RETRY: Duration = Duration::from_millis(200);

/// New connections that may wait at once.
const MAX_VISITS: usize = 100;

/// How long activities have for ending what they are at.
const END_LIMIT: Duration = Duration::from_secs(600);

/// What is to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Connections that ask small questions.
    pub(crate) questions: u32,
    /// Pause between two questions, at most; at least a quarter of it.
    pub(crate) question_pause: Duration,
    /// Pause between two bulk transfers.
    pub(crate) bulk_pause: Duration,
    /// Pause between two new connections.
    pub(crate) visit_pause: Duration,
    /// Whether pods are watched.
    pub(crate) watch: bool,
}

impl Load {
    /// What the matrix runs: the whole.
    pub(crate) const FULL: Self = Self {
        questions: 32,
        question_pause: Duration::from_millis(400),
        bulk_pause: Duration::ZERO,
        visit_pause: Duration::from_millis(500),
        watch: true,
    };

    /// Connections that are open all the time.
    pub(crate) fn connections(&self) -> u32 {
        self.questions + 2 + u32::from(self.watch)
    }
}

/// The local end of a tunnel.
#[derive(Clone)]
pub(crate) enum Port {
    Memory(MemoryPort),
    /// On 127.0.0.1.
    Tcp(u16),
}

impl Port {
    pub(crate) async fn connect(&self) -> io::Result<Box<dyn Connection>> {
        Ok(match self {
            Self::Memory(port) => Box::new(port.connect()?),
            Self::Tcp(port) => {
                let connection = TcpStream::connect(("127.0.0.1", *port)).await?;
                connection.set_nodelay(true)?;
                Box::new(connection)
            }
        })
    }
}

/// A tunnel to put to use, and what is behind it.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) port: Port,
    pub(crate) host: String,
    pub(crate) certificate_authority: String,
    pub(crate) ledger: Arc<Ledger>,
}

/// What became of new connections.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Visits {
    pub(crate) answered: u64,
    /// Connections that ended without an answer.
    pub(crate) refused: u64,
    /// From the beginning of one until its answer.
    pub(crate) longest: Duration,
}

/// One activity in the ledger.
#[derive(Debug, Clone, Default)]
struct Activity {
    name: String,
    /// It is made of new connections only.
    visits: bool,
    /// Since when something is awaited.
    waiting: Option<Duration>,
    longest: Duration,
    /// When its connection ended after the injection.
    reset: Option<Duration>,
    arrivals: u64,
    /// Bytes that were compared.
    bytes: u64,
    /// When a new connection that was made after the mark was first answered.
    visited: Option<Duration>,
}

#[derive(Debug, Default)]
struct Inner {
    activities: Vec<Activity>,
    visits: Visits,
    /// How often a connection of those that are open all the time has ended.
    cuts: u64,
    injected: Option<Duration>,
    mark: Option<Duration>,
    checked: u64,
    wrong_bytes: u64,
    wrong: Vec<String>,
}

/// Who waited for how long, and what was wrong.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    inner: Mutex<Inner>,
    /// Something has come, or a new connection has been answered.
    changed: Notify,
}

/// What the ledger comes to.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) kept: usize,
    pub(crate) reset: usize,
    /// The longest wait on a connection that was kept.
    pub(crate) open_wait: Option<Duration>,
    /// The longest time from the injection until a connection that was not kept ended.
    pub(crate) told_after: Option<Duration>,
    /// The time from the mark until a new connection was answered.
    pub(crate) new_wait: Option<Duration>,
    pub(crate) checked: u64,
    pub(crate) wrong_bytes: u64,
    pub(crate) wrong: Vec<String>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, name: impl Into<String>, visits: bool) -> u32 {
        let mut inner = self.lock();
        inner.activities.push(Activity { name: name.into(), visits, ..Activity::default() });
        inner.activities.len() as u32 - 1
    }

    /// Takes note that an activity waits from now on, unless it does already.
    fn asked(&self, activity: u32) {
        let now = time::now();
        self.lock().activities[activity as usize].waiting.get_or_insert(now);
    }

    /// Takes note that a part has come, and whether there is more to wait for.
    pub(crate) fn arrived(&self, activity: u32, more: bool) {
        let now = time::now();
        let mut inner = self.lock();
        let mark = inner.mark;
        let activity = &mut inner.activities[activity as usize];
        activity.arrivals += 1;
        if let (Some(since), Some(mark)) = (activity.waiting, mark) {
            activity.longest = activity.longest.max(now.saturating_sub(since.max(mark)));
        }
        activity.waiting = more.then_some(now);
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Takes note that an activity's connection has ended, and that it starts afresh.
    fn was_reset(&self, activity: u32) {
        let now = time::now();
        let mut inner = self.lock();
        let injected = inner.injected;
        inner.cuts += 1;
        let activity = &mut inner.activities[activity as usize];
        activity.waiting = None;
        match injected {
            Some(_) => drop(activity.reset.get_or_insert(now)),
            None => {
                let name = activity.name.clone();
                inner.wrong.push(format!("the connection of {name} ended before anything had happened"));
            }
        }
    }

    /// Takes note that a new connection, made at `started`, has been answered.
    fn visited(&self, activity: u32, started: Duration) {
        let now = time::now();
        let mut inner = self.lock();
        inner.visits.answered += 1;
        inner.visits.longest = inner.visits.longest.max(now.saturating_sub(started));
        if inner.mark.is_some_and(|mark| started >= mark) {
            inner.activities[activity as usize].visited.get_or_insert(now);
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Waits until a condition holds. It is looked at whenever something has come.
    pub(crate) async fn wait_until(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            if condition(self) {
                return;
            }
            changed.await;
        }
    }

    /// Takes note that a new connection has ended without an answer.
    fn refused(&self) {
        self.lock().visits.refused += 1;
    }

    /// What has become of new connections.
    pub(crate) fn visits(&self) -> Visits {
        self.lock().visits
    }

    /// How often a connection of those that are open all the time has ended.
    pub(crate) fn cuts(&self) -> u64 {
        self.lock().cuts
    }

    /// Compares content; returns how many bytes are wrong.
    pub(crate) fn check(&self, activity: u32, seed: u64, start: u64, bytes: &[u8]) -> u64 {
        let wrong = wrong_bytes(seed, start, bytes);
        let mut inner = self.lock();
        inner.checked += bytes.len() as u64;
        inner.activities[activity as usize].bytes += bytes.len() as u64;
        inner.wrong_bytes += wrong;
        if wrong > 0 {
            let name = inner.activities[activity as usize].name.clone();
            inner.wrong.push(format!("{wrong} of {} bytes at {start} are wrong: {name}", bytes.len()));
        }
        wrong
    }

    /// How many bytes of an activity have been compared.
    pub(crate) fn bytes(&self, activity: u32) -> u64 {
        self.lock().activities[activity as usize].bytes
    }

    /// How many bytes of the activity of this name have been compared.
    pub(crate) fn bytes_of(&self, name: &str) -> u64 {
        self.lock().activities.iter().find(|activity| activity.name == name).map_or(0, |activity| activity.bytes)
    }

    fn complain(&self, what: String) {
        self.lock().wrong.push(what);
    }

    /// Waits and ends of connections count from now on.
    pub(crate) fn inject(&self) {
        let now = time::now();
        let mut inner = self.lock();
        inner.injected = Some(now);
        inner.mark = Some(now);
    }

    /// Forgets the waits so far: the fault is over, and they count from now on.
    pub(crate) fn mark(&self) {
        let now = time::now();
        let mut inner = self.lock();
        inner.mark = Some(now);
        for activity in &mut inner.activities {
            (activity.longest, activity.visited) = (Duration::ZERO, None);
        }
    }

    /// Forgets everything: another workload begins.
    pub(crate) fn start_over(&self) {
        *self.lock() = Inner::default();
    }

    /// Whether every activity has got something.
    pub(crate) fn has_begun(&self) -> bool {
        self.lock().activities.iter().all(|activity| activity.arrivals > 0)
    }

    /// Who has waited for longer than `limit`.
    pub(crate) fn stuck(&self, limit: Duration) -> Vec<String> {
        let now = time::now();
        let inner = self.lock();
        let is_marked = inner.mark.is_some();
        let waits = |activity: &&Activity| {
            if activity.visits {
                return is_marked && activity.visited.is_none();
            }
            activity.waiting.is_some_and(|since| now.saturating_sub(since) > limit)
        };
        inner.activities.iter().filter(waits).map(|activity| activity.name.clone()).collect()
    }

    /// Sums up.
    pub(crate) fn outcome(&self) -> Outcome {
        let inner = self.lock();
        let (injected, mark) = (inner.injected.unwrap_or_default(), inner.mark.unwrap_or_default());
        let (visits, open): (Vec<_>, Vec<_>) = inner.activities.iter().partition(|activity| activity.visits);
        let kept = open.iter().filter(|activity| activity.reset.is_none());
        let told = open.iter().filter_map(|activity| activity.reset).max();
        Outcome {
            kept: kept.clone().count(),
            reset: open.iter().filter(|activity| activity.reset.is_some()).count(),
            open_wait: kept.map(|activity| activity.longest).max(),
            told_after: told.map(|at| at.saturating_sub(injected)),
            new_wait: visits.iter().filter_map(|activity| activity.visited).max().map(|at| at.saturating_sub(mark)),
            checked: inner.checked,
            wrong_bytes: inner.wrong_bytes,
            wrong: inner.wrong.clone(),
        }
    }
}

/// Activities under way.
pub(crate) struct Workload {
    ledger: Arc<Ledger>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Workload {
    /// Starts activities.
    pub(crate) fn start(site: &Site, load: Load, seed: u64) -> Self {
        let mut workload =
            Self { ledger: Arc::clone(&site.ledger), stop: CancellationToken::new(), tasks: JoinSet::new() };
        let mut random = SplitMix64::new(seed);
        let mut client = |name: String, visits: bool| Client {
            port: site.port.clone(),
            activity: site.ledger.add(name, visits),
            ledger: Arc::clone(&site.ledger),
            stop: workload.stop.clone(),
            random: SplitMix64::new(random.next_u64()),
        };
        for number in 0..load.questions {
            workload.tasks.spawn(
                client(format!("question {number}"), false).run(Habit::Questions { pause: load.question_pause }),
            );
        }
        workload.tasks.spawn(client("download".to_owned(), false).run(Habit::Download { pause: load.bulk_pause }));
        workload.tasks.spawn(client("upload".to_owned(), false).run(Habit::Upload { pause: load.bulk_pause }));
        workload.tasks.spawn(client("new connection".to_owned(), true).visits(load.visit_pause));
        if load.watch {
            let watch = watch::Watch::new(client("watch".to_owned(), false), site);
            workload.tasks.spawn(watch.run());
        }
        workload
    }

    /// Lets all activities end what they are at.
    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(END_LIMIT, all).await.is_err() {
            for name in self.ledger.stuck(Duration::ZERO) {
                self.ledger.complain(format!("{name} does not end"));
            }
        }
        self.tasks.shutdown().await;
    }
}

/// What a program does on its connection, again and again.
#[derive(Debug, Clone, Copy)]
enum Habit {
    Questions { pause: Duration },
    Download { pause: Duration },
    Upload { pause: Duration },
}

/// A local program.
#[derive(Clone)]
struct Client {
    port: Port,
    ledger: Arc<Ledger>,
    activity: u32,
    stop: CancellationToken,
    random: SplitMix64,
}

impl Client {
    /// Does one thing on one connection after the other until the stop.
    async fn run(mut self, habit: Habit) {
        while !self.stop.is_cancelled() {
            let outcome = match self.port.connect().await {
                Ok(mut connection) => self.use_connection(&mut connection, habit).await,
                Err(error) => Err(error),
            };
            if outcome.is_err() {
                self.ledger.was_reset(self.activity);
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Uses a connection until it ends or the stop comes.
    async fn use_connection(&mut self, connection: &mut Box<dyn Connection>, habit: Habit) -> io::Result<()> {
        while !self.stop.is_cancelled() {
            match habit {
                Habit::Questions { pause } => {
                    self.ask(connection).await?;
                    let most = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                    let pause = most / 4 + self.random.next_u64() % (most * 3 / 4);
                    self.pause(Duration::from_millis(pause)).await;
                }
                Habit::Download { pause } => {
                    self.download(connection).await?;
                    self.pause(pause).await;
                }
                Habit::Upload { pause } => {
                    self.upload(connection).await?;
                    self.pause(pause).await;
                }
            }
        }
        Ok(())
    }

    /// Pauses until the stop at the latest.
    async fn pause(&self, pause: Duration) {
        // Which of the two came does not matter.
        let _outcome = tokio::time::timeout(pause, self.stop.cancelled()).await;
    }

    /// Asks one question, and checks the answer.
    async fn ask(&mut self, connection: &mut Box<dyn Connection>) -> io::Result<()> {
        let (seed, len) = (self.random.next_u64(), 64 + self.random.next_u64() % 512);
        let header = Header { ask: Ask::Question, activity: self.activity, seed, len };
        let mut message = header.encode().to_vec();
        let at = message.len();
        message.resize(at + len as usize, 0);
        content(seed, 0, &mut message[at..]);
        self.ledger.asked(self.activity);
        connection.write_all(&message).await?;
        let mut answer = vec![0; len as usize];
        connection.read_exact(&mut answer).await?;
        self.ledger.check(self.activity, !seed, 0, &answer);
        self.ledger.arrived(self.activity, false);
        Ok(())
    }

    /// Sends the header of a bulk transfer, and returns its seed.
    async fn begin(&mut self, connection: &mut Box<dyn Connection>, ask: Ask) -> io::Result<u64> {
        let seed = self.random.next_u64();
        let header = Header { ask, activity: self.activity, seed, len: BULK_LEN };
        self.ledger.asked(self.activity);
        connection.write_all(&header.encode()).await?;
        Ok(seed)
    }

    async fn download(&mut self, connection: &mut Box<dyn Connection>) -> io::Result<()> {
        let seed = self.begin(connection, Ask::Download).await?;
        let mut buffer = vec![0; CHUNK];
        let mut at = 0;
        while at < BULK_LEN {
            let most = usize::try_from(BULK_LEN - at).unwrap_or(CHUNK).min(CHUNK);
            let len = connection.read(&mut buffer[..most]).await?;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.ledger.check(self.activity, seed, at, &buffer[..len]);
            at += len as u64;
            self.ledger.arrived(self.activity, at < BULK_LEN);
        }
        Ok(())
    }

    async fn upload(&mut self, connection: &mut Box<dyn Connection>) -> io::Result<()> {
        let seed = self.begin(connection, Ask::Upload).await?;
        send(connection, seed, BULK_LEN).await?;
        let mut good = [0; 8];
        connection.read_exact(&mut good).await?;
        self.ledger.arrived(self.activity, false);
        let good = u64::from_be_bytes(good);
        if good != BULK_LEN {
            self.ledger.complain(format!("{} bytes of an upload were wrong", BULK_LEN - good));
        }
        Ok(())
    }

    /// Makes a new connection every now and then, each with one question, whatever becomes of the others.
    async fn visits(mut self, pause: Duration) {
        let mut visits = JoinSet::new();
        while !self.stop.is_cancelled() {
            while visits.try_join_next().is_some() {}
            if visits.len() < MAX_VISITS {
                let mut visitor = Self { random: SplitMix64::new(self.random.next_u64()), ..self.clone() };
                visits.spawn(async move {
                    let started = time::now();
                    // One that ends early has found out that nobody is there; another will come.
                    let answered = match visitor.port.connect().await {
                        Ok(mut connection) => visitor.ask(&mut connection).await.is_ok(),
                        Err(_) => false,
                    };
                    match answered {
                        true => visitor.ledger.visited(visitor.activity, started),
                        false => visitor.ledger.refused(),
                    }
                });
            }
            self.pause(pause).await;
        }
        while visits.join_next().await.is_some() {}
    }
}
