//! Programs that read slowly, for twenty minutes, beside others that do not.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    task::JoinSet,
};

use super::{
    Lab, Setup,
    destination::{Ask, Header},
    line::requests,
    on_virtual_time, time,
};

/// What the slow ones take, in kB a second.
const READERS: [u64; 4] = [10, 100, 500, 800];

/// How long it goes on.
const TIME: Duration = Duration::from_secs(20 * 60);

/// What a tunnel may hold for all of them, and what may come on top of it at once.
const BUDGET: usize = 64 << 20;
const SLACK: usize = 1 << 20;

/// Bytes that a slow program takes at a time.
const BITE: u64 = 5000;

/// What came of it.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// Bytes that each reader got, in kB a second.
    pub(crate) rates: Vec<f64>,
    /// Most bytes that the tunnel held.
    pub(crate) held: usize,
    /// The median of small requests on new connections before, and beside the slow programs.
    pub(crate) before: Duration,
    pub(crate) beside: Duration,
    pub(crate) worst: Duration,
}

/// Runs slow readers in a tunnel with so many sessions.
///
/// # Errors
/// What was lost, cut, or held beyond the budget.
pub(crate) fn run(sessions: usize, seed: u64) -> Result<Outcome, String> {
    on_virtual_time(run_within(sessions, seed)).map_err(|wrong| format!("{sessions} sessions, seed {seed}: {wrong}"))
}

async fn run_within(sessions: usize, seed: u64) -> Result<Outcome, String> {
    let probe_interval = Duration::from_secs(30);
    let lab = Lab::start(&Setup { seed, probe_interval, sessions, churn: None, line: None }).await?;
    let before = visits(&lab, Duration::from_secs(20)).await?;
    let mut readers = JoinSet::new();
    let activities = READERS.map(|rate| lab.ledger.add(format!("reader of {rate} kB/s"), false));
    for (rate, activity) in READERS.into_iter().zip(activities) {
        readers.spawn(read(lab.port.clone(), lab.ledger.clone(), activity, rate * 1000));
        // One after the other, so that each finds the sessions that are there.
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let mut board = lab.board();
    let mut held = 0;
    let watch = async {
        while board.changed().await.is_ok() {
            let now = board.borrow_and_update().tunnels[0].links.iter().map(|link| link.bytes_held).sum();
            held = held.max(now);
        }
    };
    let start = time::now();
    let beside = tokio::select! {
        biased;
        () = watch => Err("the tunnel is gone".to_owned()),
        ended = readers.join_next() => Err(format!("a slow program was cut: {ended:?}")),
        beside = visits(&lab, TIME) => beside,
    }?;
    let seconds = (time::now() - start).as_secs_f64();
    let rates = activities.map(|activity| lab.ledger.bytes(activity) as f64 / 1000.0 / seconds).to_vec();
    let outcome = lab.ledger.outcome();
    let status = lab.status();
    readers.shutdown().await;
    if !outcome.wrong.is_empty() || outcome.reset > 0 || status.restarts > 0 {
        return Err(format!("{:?}, {} cut, {} restarts", outcome.wrong, outcome.reset, status.restarts));
    }
    if held > BUDGET + SLACK {
        return Err(format!("{held} bytes were held"));
    }
    let median = |waits: &[Duration]| waits[waits.len() / 2];
    Ok(Outcome {
        rates,
        held,
        before: median(&before),
        beside: median(&beside),
        worst: beside.last().copied().unwrap_or_default(),
    })
}

/// Makes a new connection every two seconds, with one small request; returns how long each took, in order of size.
async fn visits(lab: &Lab, during: Duration) -> Result<Vec<Duration>, String> {
    let activity = lab.ledger.add("visits", true);
    let (times, mut answered) = mpsc::unbounded_channel();
    let end = time::now() + during;
    let mut visitors = JoinSet::new();
    while time::now() < end {
        visitors.spawn(requests(lab.port.clone(), lab.ledger.clone(), activity, 1, times.clone()));
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let asked = visitors.len();
    let all = async { while visitors.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_secs(60), all).await.is_err() {
        return Err("a small request was not answered within a minute".to_owned());
    }
    let mut waits: Vec<Duration> = std::iter::from_fn(|| answered.try_recv().ok()).collect();
    waits.sort();
    if waits.len() == asked { Ok(waits) } else { Err(format!("{} of {asked} requests were answered", waits.len())) }
}

/// Downloads without end, so many bytes a second. Ends if the connection does.
async fn read(
    port: autoheal_pa::tunnel::MemoryPort,
    ledger: std::sync::Arc<super::workload::Ledger>,
    activity: u32,
    rate: u64,
) {
    let Ok(mut connection) = port.connect() else { return };
    let header = Header { ask: Ask::Download, activity, seed: activity.into(), len: 1 << 40 };
    if connection.write_all(&header.encode()).await.is_err() {
        return;
    }
    let mut bite = vec![0; BITE as usize];
    let start = time::now();
    let mut at = 0;
    while connection.read_exact(&mut bite).await.is_ok() {
        ledger.check(activity, activity.into(), at, &bite);
        at += BITE;
        // What it takes at most; when there is nothing it is behind, and does not make up for that.
        let due = Duration::from_secs_f64(at as f64 / rate as f64);
        let pause = due.saturating_sub(time::now() - start).min(Duration::from_secs_f64(BITE as f64 / rate as f64));
        tokio::time::sleep(pause).await;
    }
}
