//! A tunnel over a slow line: how much of what the line carries gets through, on how many transports, and how long a
//! small request takes beside it.
//!
//! What the line carries is measured on the same line without a tunnel, and less what messages have around their
//! payload and what acknowledgements of the other direction take; where an agent's pace or the service's message rate
//! is less than that, it is that which counts.

use std::{sync::Mutex, thread, time::Duration};

use autoheal_pa::{
    emulator::{Line, bare_line},
    route::ssm::proto::message::{
        Acknowledgement, Flags, HEADER_LEN, Header as MessageHeader, MessageId, MessageType, PayloadType,
    },
    tunnel::MemoryPort,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use super::{
    Lab, Setup,
    destination::{Ask, CHUNK, Header, content, send},
    on_virtual_time, time,
};

/// How long bytes take over the line itself, each way.
const DELAY: Duration = Duration::from_millis(20);

/// How long a cell runs before it counts, and for how long it does.
const WARM_UP: Duration = Duration::from_secs(10);
const MEASURED: Duration = Duration::from_secs(300);

/// Pause between two small requests, and their length in bytes.
const REQUEST_PAUSE: Duration = Duration::from_secs(2);
const REQUEST_LEN: u64 = 100;

/// Bytes of a payload, and of WebSocket framing from a client and to it: a message has 126 to 65535 bytes.
const PAYLOAD_LEN: f64 = 1024.0;
const FRAME_UP: f64 = 8.0;
const FRAME_DOWN: f64 = 4.0;

/// Messages a second that an agent's pace comes to, and that this client allows itself in the long run.
const AGENT_RATE: f64 = 699.0;
const CLIENT_RATE: f64 = 850.0;

/// Messages that the emulated service and agent keep for a transport that takes no more.
const SERVICE_QUEUE: f64 = 545.0;

/// Which bulk transfers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bulk {
    Down,
    Up,
    Both,
}

impl Bulk {
    pub(crate) const ALL: [Self; 3] = [Self::Down, Self::Up, Self::Both];

    fn is_down(self) -> bool {
        self != Self::Up
    }

    fn is_up(self) -> bool {
        self != Self::Down
    }
}

impl std::fmt::Display for Bulk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Down => "download",
            Self::Up => "upload",
            Self::Both => "both",
        })
    }
}

/// One cell of the grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cell {
    pub(crate) up: Line,
    pub(crate) down: Line,
    pub(crate) bulk: Bulk,
}

impl Cell {
    /// A cell whose line is the same both ways; kB/s, kB, fraction.
    pub(crate) fn even(rate: u64, buffer: usize, loss: f64, bulk: Bulk) -> Self {
        let line = Line { rate: rate * 1000, buffer: buffer * 1000, delay: DELAY, loss };
        Self { up: line, down: line, bulk }
    }

    /// The grid: rate, buffer and load; then loss; then lines that are slower one way.
    pub(crate) fn grid() -> Vec<Self> {
        let even = [64, 125, 250, 500, 1000].into_iter().flat_map(|rate| {
            let buffers = [250, 1000, 4000].into_iter();
            buffers.flat_map(move |buffer| Bulk::ALL.map(|bulk| Self::even(rate, buffer, 0.0, bulk)))
        });
        let lossy =
            [0.01, 0.05, 0.2].into_iter().flat_map(|loss| Bulk::ALL.map(|bulk| Self::even(500, 1000, loss, bulk)));
        // With both, the way up is shared by acknowledgements and data, and no share is the right one.
        let uneven = [Bulk::Down, Bulk::Up].map(|bulk| {
            let cell = Self::even(1000, 1000, 0.0, bulk);
            Self { up: Line { rate: 125_000, ..cell.up }, ..cell }
        });
        even.chain(lossy).chain(uneven).collect()
    }

    /// What the cell is called.
    pub(crate) fn name(&self) -> String {
        let rate = if self.up.rate == self.down.rate {
            format!("{} kB/s", self.down.rate / 1000)
        } else {
            format!("{} kB/s down, {} up", self.down.rate / 1000, self.up.rate / 1000)
        };
        let loss = if self.down.loss > 0.0 { format!(", {} % loss", self.down.loss * 100.0) } else { String::new() };
        format!("{rate}, {} kB buffer{loss}, {}", self.down.buffer / 1000, self.bulk)
    }
}

/// What a cell came to.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// Bytes a second of payload, down and up.
    pub(crate) down: f64,
    pub(crate) up: f64,
    /// What the line, the agent and the service would carry of it.
    pub(crate) down_possible: f64,
    pub(crate) up_possible: f64,
    /// The median of the small requests, and the least that the queue before them allows.
    pub(crate) request: Duration,
    pub(crate) request_least: Duration,
    pub(crate) transports: u64,
    pub(crate) sessions: usize,
    /// The tunnel's states were all `active`, and what `status` says went wrong.
    pub(crate) last_error: Option<String>,
}

impl Outcome {
    /// How much of what is possible got through, in the worse direction.
    pub(crate) fn share(&self) -> f64 {
        let share = |got: f64, possible: f64| if possible > 0.0 { got / possible } else { 1.0 };
        share(self.down, self.down_possible).min(share(self.up, self.up_possible))
    }
}

impl Cell {
    /// Runs a tunnel over the line.
    ///
    /// # Errors
    /// What went wrong beside the speed.
    pub(crate) fn run(&self, seed: u64) -> Result<Outcome, String> {
        let bare = on_virtual_time(self.bare(seed));
        on_virtual_time(self.tunnel(seed, bare)).map_err(|wrong| format!("{} with seed {seed}: {wrong}", self.name()))
    }

    /// What the line carries without a tunnel, in bytes a second down and up, when all that is loaded is loaded.
    async fn bare(&self, seed: u64) -> (f64, f64) {
        time::start();
        let (client, service, carrier) = bare_line(self.up, self.down, seed);
        let (mut client_reader, client_writer) = tokio::io::split(client);
        let (mut service_reader, service_writer) = tokio::io::split(service);
        let seconds = 60_u32;
        let end = async { tokio::time::sleep(Duration::from_secs(seconds.into())).await };
        let (mut down, mut up) = (0_u64, 0_u64);
        tokio::select! {
            biased;
            _ = fill(client_writer) => {}
            _ = fill(service_writer) => {}
            () = drain(&mut client_reader, &mut down) => {}
            () = drain(&mut service_reader, &mut up) => {}
            () = carrier => {}
            () = end => {}
        }
        (down as f64 / f64::from(seconds), up as f64 / f64::from(seconds))
    }

    /// How many bytes a second of payload can get through of so many bytes on the line, down and up.
    fn possible(&self, (down, up): (f64, f64)) -> (f64, f64) {
        let header = MessageHeader {
            message_type: MessageType::OutputStreamData,
            created_ms: 1_700_000_000_000,
            sequence_number: 10_000,
            flags: Flags::NONE,
            id: MessageId([7; 16]),
            payload_type: PayloadType::Output,
        };
        let acknowledgement = Acknowledgement::encode(&header, MessageId([7; 16]), 1_700_000_000_000).len() as f64;
        let message = HEADER_LEN as f64 + PAYLOAD_LEN;
        let (message_down, message_up) = (message + FRAME_DOWN, message + FRAME_UP);
        let (ack_down, ack_up) = (acknowledgement + FRAME_DOWN, acknowledgement + FRAME_UP);
        let (is_down, is_up) = (f64::from(u8::from(self.bulk.is_down())), f64::from(u8::from(self.bulk.is_up())));
        // Each direction carries its data and the acknowledgements of the other's: both fill up together, then what is
        // left of the line goes to whoever is not held back otherwise.
        let determinant = message_down * message_up - ack_down * ack_up * is_down * is_up;
        let mut messages_down = is_down * (down * message_up - ack_down * up * is_up) / determinant;
        let mut messages_up = is_up * (up * message_down - ack_up * down * is_down) / determinant;
        if messages_down > AGENT_RATE {
            messages_down = AGENT_RATE;
            messages_up = is_up * (up - ack_up * messages_down) / message_up;
        }
        // Every message has to be acknowledged, and the way up has to carry that.
        messages_down = messages_down.min(up / ack_up);
        // The client's acknowledgements count against the rate that the service takes.
        if messages_up > CLIENT_RATE - messages_down {
            messages_up = is_up * (CLIENT_RATE - messages_down);
            messages_down = is_down * ((down - ack_down * messages_up) / message_down).min(AGENT_RATE);
            messages_up = is_up * (CLIENT_RATE - messages_down);
        }
        (messages_down * PAYLOAD_LEN, messages_up * PAYLOAD_LEN)
    }

    async fn tunnel(&self, seed: u64, bare: (f64, f64)) -> Result<Outcome, String> {
        let lab = Lab::start(&Setup {
            seed,
            probe_interval: Duration::from_secs(30),
            sessions: 1,
            churn: None,
            line: Some((self.up, self.down)),
        })
        .await?;
        let mut tasks = JoinSet::new();
        let [down, up, request] = ["download", "upload", "request"].map(|name| lab.ledger.add(name, false));
        if self.bulk.is_down() {
            tasks.spawn(download(lab.port.clone(), lab.ledger.clone(), down));
        }
        if self.bulk.is_up() {
            tasks.spawn(upload(lab.port.clone(), up));
        }
        tokio::time::sleep(WARM_UP).await;
        let before = [down, up].map(|activity| lab.ledger.bytes(activity));
        let (times, mut answered) = tokio::sync::mpsc::unbounded_channel();
        tasks.spawn(requests(lab.port.clone(), lab.ledger.clone(), request, u64::MAX, times));
        let start = time::now();
        tokio::time::sleep(MEASURED).await;
        let seconds = (time::now() - start).as_secs_f64();
        let after = [down, up].map(|activity| lab.ledger.bytes(activity));
        let mut waits: Vec<Duration> = std::iter::from_fn(|| answered.try_recv().ok()).collect();
        waits.sort();
        let request = waits.get(waits.len() / 2).copied().ok_or("no request was answered")?;
        let sessions = lab.emulator.sessions();
        let transports = sessions.iter().map(|session| u64::from(session.transports)).sum();
        let last_error = lab.status().last_error.map(|error| error.to_string());
        let wrong = lab.ledger.outcome().wrong;
        if !wrong.is_empty() || tasks.try_join_next().is_some() {
            return Err(format!("a transfer ended: {wrong:?} {last_error:?}"));
        }
        tasks.shutdown().await;
        let (down_possible, up_possible) = self.possible(bare);
        let queued = if self.bulk.is_down() && down_possible < AGENT_RATE * PAYLOAD_LEN {
            let service = SERVICE_QUEUE * (HEADER_LEN as f64 + PAYLOAD_LEN + FRAME_DOWN);
            Duration::from_secs_f64((self.down.buffer as f64 + service) / self.down.rate as f64)
        } else {
            Duration::ZERO
        };
        let [down, up] = [0, 1].map(|i| (after[i] - before[i]) as f64 / seconds);
        drop(lab);
        Ok(Outcome {
            down,
            up,
            down_possible,
            up_possible,
            request,
            request_least: queued + 2 * DELAY,
            transports,
            sessions: sessions.len(),
            last_error,
        })
    }
}

/// What every cell should reach of what is possible, on one transport.
const TARGET: f64 = 0.9;

/// What stands above the table of cells.
pub(crate) const CAPTION: &str = "Slow lines, on virtual time, five minutes each with seed 1: bulk transfers, and a request of 100 bytes every 2 s on an open\n\
     connection. Wanted: 0.9 of what the line carries beside headers and acknowledgements, on one transport.";

/// The head of the table of cells.
pub(crate) const HEADER: [&str; 9] =
    ["line", "down", "of possible", "up", "of possible", "request, p50", "the queue takes", "transports", "met"];

/// Runs cells on as many threads as there are processors; returns them in their order.
///
/// # Errors
/// What went wrong first.
pub(crate) fn run_all(cells: &[Cell], say: impl Fn(&Cell, &Outcome) + Sync) -> Result<Vec<(Cell, Outcome)>, String> {
    run_each(cells, say).into_iter().map(|(cell, outcome)| Ok((cell, outcome?))).collect()
}

fn run_each(cells: &[Cell], say: impl Fn(&Cell, &Outcome) + Sync) -> Vec<(Cell, Result<Outcome, String>)> {
    let next = Mutex::new(cells.iter().enumerate());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some((at, cell)) = next.lock().expect("no cell panics with it").next() else { return };
                    let outcome = cell.run(1);
                    if let Ok(outcome) = &outcome {
                        say(cell, outcome);
                    }
                    done.lock().expect("no cell panics with it").push((at, *cell, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no cell panics with it");
    done.sort_by_key(|(at, ..)| *at);
    done.into_iter().map(|(_, cell, outcome)| (cell, outcome)).collect()
}

/// The row of a cell.
pub(crate) fn row(cell: &Cell, outcome: &Outcome) -> [String; 9] {
    let rate = |got: f64, possible: f64| {
        let is_used = possible > 0.0;
        let rate = if is_used { format!("{:.0} kB/s", got / 1e3) } else { String::new() };
        [rate, if is_used { format!("{:.2}", got / possible) } else { String::new() }]
    };
    let time = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    let [down, down_share] = rate(outcome.down, outcome.down_possible);
    let [up, up_share] = rate(outcome.up, outcome.up_possible);
    let met = if outcome.share() >= TARGET && outcome.transports == 1 { "yes" } else { "no" };
    let (request, least) = (time(outcome.request), time(outcome.request_least));
    [cell.name(), down, down_share, up, up_share, request, least, outcome.transports.to_string(), met.to_owned()]
}

async fn fill(mut writer: impl tokio::io::AsyncWrite + Unpin) -> std::io::Result<()> {
    let block = vec![0; CHUNK];
    loop {
        writer.write_all(&block).await?;
    }
}

async fn drain(reader: &mut (impl tokio::io::AsyncRead + Unpin), count: &mut u64) {
    let mut block = vec![0; CHUNK];
    while let Ok(len @ 1..) = reader.read(&mut block).await {
        *count += len as u64;
    }
}

/// More than any cell carries.
const ENDLESS: u64 = 1 << 40;

async fn download(port: MemoryPort, ledger: std::sync::Arc<super::workload::Ledger>, activity: u32) {
    let Ok(mut connection) = port.connect() else { return };
    let header = Header { ask: Ask::Download, activity, seed: 5, len: ENDLESS };
    if connection.write_all(&header.encode()).await.is_err() {
        return;
    }
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Ok(len @ 1..) = connection.read(&mut buffer).await {
        ledger.check(activity, 5, at, &buffer[..len]);
        at += len as u64;
    }
}

async fn upload(port: MemoryPort, activity: u32) {
    let Ok(mut connection) = port.connect() else { return };
    let header = Header { ask: Ask::Upload, activity, seed: 6, len: ENDLESS };
    if connection.write_all(&header.encode()).await.is_ok() {
        // The destination checks and counts what arrives.
        let _outcome = send(&mut connection, 6, ENDLESS).await;
    }
}

/// Asks so many small questions, one every now and then, and tells how long each answer took.
pub(super) async fn requests(
    port: MemoryPort,
    ledger: std::sync::Arc<super::workload::Ledger>,
    activity: u32,
    count: u64,
    times: tokio::sync::mpsc::UnboundedSender<Duration>,
) {
    let Ok(mut connection) = port.connect() else { return };
    for seed in 0..count {
        let asked = time::now();
        let header = Header { ask: Ask::Question, activity, seed, len: REQUEST_LEN };
        let mut question = vec![0; REQUEST_LEN as usize];
        content(seed, 0, &mut question);
        let sent = async {
            connection.write_all(&header.encode()).await?;
            connection.write_all(&question).await?;
            let mut answer = vec![0; REQUEST_LEN as usize];
            connection.read_exact(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let Ok(answer) = sent.await else { return };
        ledger.check(activity, !seed, 0, &answer);
        // Nobody counts any more when the cell has ended.
        let _outcome = times.send(time::now() - asked);
        tokio::time::sleep(REQUEST_PAUSE).await;
    }
}
