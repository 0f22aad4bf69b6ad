//! What is tried, what is expected of each, and one run of one of them.
//!
//! The rows are the trials of the emulator's faults, and a few things besides that are no fault of its own.

use std::time::Duration;

use autoheal_pa::{
    emulator::{self, Command, FAULTS, Fault, Matrix, SessionInfo, SessionState, Trial},
    manager::supervisor::Board,
};
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{
    Lab, Setup, on_virtual_time, time,
    workload::{Load, Outcome, Workload},
};

/// How long the workload runs before the fault.
const WARM_UP: Duration = Duration::from_secs(3);

/// How long it runs after the mark at least: as long as it takes for a fault that is not noticed at once to bite.
const LEAST_WATCH: Duration = Duration::from_secs(5);

/// Nothing may wait for so long when a run is over: the fault is survived.
const SETTLED: Duration = Duration::from_secs(1);

/// From where waits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// The injection.
    Injection,
    /// The end of the fault, which lasts.
    End,
}

/// What is to become of open connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// All are kept.
    Kept,
    /// All end, and at the latest so long after the injection.
    Reset(Duration),
}

type Inject = for<'a> fn(&'a Lab) -> BoxFuture<'a, ()>;

/// How it is made to happen.
#[derive(Clone, Copy)]
enum Happening {
    Own(Inject),
    /// A fault of the emulator's.
    Fault(&'static emulator::Row, &'static Trial),
}

/// A row of the matrix.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    /// The test's name, with hyphens.
    pub(crate) name: &'static str,
    /// What happens, as the page says it.
    pub(crate) what: &'static str,
    pub(crate) from: From,
    pub(crate) expected: Expected,
    /// The longest wait that is allowed, of open and of new connections.
    pub(crate) bound: Duration,
    /// For how long the workload is watched after the mark at least.
    watch: Duration,
    /// The transport falls silent, and it counts how soon that is found.
    pub(crate) is_silence: bool,
    happening: Happening,
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Row {
    const fn new(name: &'static str, what: &'static str, bound: u64, inject: Inject) -> Self {
        let (from, expected) = (From::Injection, Expected::Kept);
        let happening = Happening::Own(inject);
        Self { name, what, from, expected, bound: secs(bound), watch: LEAST_WATCH, is_silence: false, happening }
    }

    fn of(fault: &'static emulator::Row, trial: &'static Trial) -> Self {
        // After a silence it takes a while until what was lost has been repeated.
        let noticed = if trial.is_silence { secs(90) } else { LEAST_WATCH };
        Self {
            name: trial.name,
            what: trial.what,
            from: if trial.lasts.is_some() { From::End } else { From::Injection },
            expected: trial.resets.map_or(Expected::Kept, Expected::Reset),
            bound: trial.bound,
            watch: trial.noticed.unwrap_or(noticed),
            is_silence: trial.is_silence,
            happening: Happening::Fault(fault, trial),
        }
    }

    /// Open connections end.
    const fn resets(self, within: u64) -> Self {
        Self { expected: Expected::Reset(secs(within)), ..self }
    }

    /// It takes so long until the fault can have been noticed.
    const fn slow(self, seconds: u64) -> Self {
        Self { watch: secs(seconds), ..self }
    }
}

fn cut(lab: &Lab) {
    lab.emulator.command(&Command::CutTransport);
}

/// Makes an injection of something that happens at once.
macro_rules! at_once {
    (|$lab:ident| $body:expr) => {
        |$lab| {
            $body;
            Box::pin(std::future::ready(()))
        }
    };
}

/// Makes an injection of something that lasts.
macro_rules! lasting {
    (|$lab:ident| $body:expr) => {
        |$lab| Box::pin(async move { $body })
    };
}

/// Lets a fault happen, and undoes it when it has lasted as long as it is to.
async fn happen(lab: &Lab, fault: &emulator::Row, trial: &Trial) {
    let mut before = None;
    lab.emulator.update(|settings| before = Some(settings.clone()));
    for text in trial.faults(fault) {
        let fault: Fault = text.parse().expect("trials are of faults that can be read");
        lab.emulator.inject_once(&fault);
    }
    if let Some(time) = trial.lasts {
        // On virtual time: nothing is waited for.
        tokio::time::sleep(time).await;
        lab.emulator.update(|settings| *settings = before.unwrap_or_default());
    }
}

/// What is no fault of the emulator's, or more than one.
const OWN: [Row; 7] = [
    Row::new("nothing", "nothing: the base line", 2, |_lab| Box::pin(std::future::ready(()))),
    Row::new(
        "close-1000",
        "the service closes the WebSocket with code 1000, as it does hourly",
        5,
        at_once!(|lab| lab.emulator.command(&Command::CloseTransport { code: 1000, reason: "Bye".to_owned() })),
    ),
    Row::new(
        "resume-refused",
        "the WebSocket is reset, and the session cannot be resumed",
        10,
        lasting!(|lab| {
            cut(lab);
            let is_gone = |session: &SessionInfo| session.state == SessionState::Disconnected;
            lab.emulator.wait_until(|emulator| emulator.sessions().iter().any(is_gone)).await;
            lab.emulator.command(&Command::CloseChannel { output: Some("ended".to_owned()) });
        }),
    )
    .resets(5),
    Row::new(
        "credentials-expired",
        "the credentials expire, and then the WebSocket is reset",
        5,
        at_once!(|lab| {
            lab.emulator.expire_credentials();
            cut(lab);
        }),
    ),
    Row::new("clock-jump", "the wall clock jumps by 8 hours", 5, at_once!(|_lab| time::jump(secs(8 * 3600)))),
    Row::new(
        "nap",
        "the machine sleeps for 5 minutes; its connection to the gateway does not survive",
        15,
        at_once!(|lab| lab.sleep(secs(300), secs(1200))),
    )
    .slow(15),
    Row::new(
        "night",
        "the machine sleeps for 8 hours; neither connection nor session survive",
        20,
        at_once!(|lab| lab.sleep(secs(8 * 3600), secs(1200))),
    )
    .resets(15)
    .slow(20),
];

/// The matrix.
pub(crate) fn rows() -> Vec<Row> {
    let trials = FAULTS.iter().flat_map(|fault| match fault.matrix {
        Matrix::Trials(trials) => trials.iter().map(|trial| Row::of(fault, trial)).collect(),
        Matrix::Elsewhere(_) => Vec::new(),
    });
    OWN.into_iter().chain(trials).collect()
}

/// What came of one run.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) outcome: Outcome,
    /// States of the tunnel from the injection on, and how long after it they came.
    pub(crate) states: Vec<(String, Duration)>,
    /// The error that `status` shows afterwards, if the fault made it.
    pub(crate) last_error: Option<String>,
    /// How long after the injection the transport was given up.
    pub(crate) found: Option<Duration>,
    /// When the download had its old rate again.
    pub(crate) rate_back: Option<Duration>,
    /// Most messages that `status` said were missing.
    pub(crate) behind: usize,
}

/// Writes down the states of the only tunnel and how long after the injection they come, for ever.
pub(super) async fn follow(
    mut board: watch::Receiver<Board>,
    injected: Duration,
    states: &mut Vec<(String, Duration)>,
) {
    loop {
        let state = board.borrow_and_update().tunnels[0].state.to_string();
        if states.last().is_none_or(|(last, _)| *last != state) {
            states.push((state, time::now() - injected));
        }
        if board.changed().await.is_err() {
            return;
        }
    }
}

/// How the download gets on after an injection.
struct Progress {
    injected: Duration,
    resumes: u64,
    /// Bytes that had come by the end of each second; the injection is between two.
    bytes: Vec<u64>,
    before: f64,
    found: Option<Duration>,
    rate_back: Option<Duration>,
    behind: usize,
}

/// Over how many seconds a rate is taken.
const RATE_SECONDS: usize = 3;

/// The part of the old rate that counts as the old rate.
const OLD_RATE: f64 = 0.9;

impl Progress {
    fn new(lab: &Lab, injected: Duration) -> Self {
        let before = lab.ledger.bytes_of("download") as f64 / WARM_UP.as_secs_f64();
        let (resumes, bytes) = (lab.status().resumes, Vec::new());
        Self { injected, resumes, bytes, before, found: None, rate_back: None, behind: 0 }
    }

    /// Looks ten times a second, for ever.
    async fn follow(&mut self, lab: &Lab) {
        for tenth in 0_u32.. {
            let passed = time::now() - self.injected;
            let status = lab.status();
            self.behind = status.links.iter().map(|session| session.messages_behind).fold(self.behind, usize::max);
            let lost = status.last_error.is_some_and(|error| error.at >= lab.wall_at(self.injected));
            if lost || status.resumes > self.resumes {
                self.found.get_or_insert(passed);
            }
            if tenth.is_multiple_of(10) {
                self.bytes.push(lab.ledger.bytes_of("download"));
                if let [.., then, _, _, now] = self.bytes[..]
                    && (now - then) as f64 >= OLD_RATE * self.before * RATE_SECONDS as f64
                    && self.found.is_some()
                {
                    self.rate_back.get_or_insert(passed);
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Row {
    /// Runs the fault once.
    ///
    /// # Errors
    /// What was not as expected.
    pub(crate) fn run(&self, seed: u64) -> Result<Run, String> {
        on_virtual_time(self.run_within(seed)).map_err(|wrong| format!("{} with seed {seed}: {wrong}", self.name))
    }

    async fn run_within(&self, seed: u64) -> Result<Run, String> {
        let probe_interval = secs(30);
        let lab = Lab::start(&Setup {
            seed,
            probe_interval,
            sessions: 1,
            churn: Some(Duration::from_millis(250)),
            line: None,
        })
        .await?;
        let workload = Workload::start(&lab.site(), Load::FULL, seed);
        tokio::time::sleep(WARM_UP).await;
        if !lab.ledger.has_begun() {
            return Err(format!("not all activities have begun: {:?}", lab.ledger.stuck(Duration::ZERO)));
        }
        let error_before = lab.status().last_error.map(|error| error.to_string());
        lab.ledger.inject();
        let injected = time::now();
        let mut states = Vec::new();
        let mut progress = Progress::new(&lab, injected);
        tokio::select! {
            biased;
            () = follow(lab.board(), injected, &mut states) => {}
            () = progress.follow(&lab) => {}
            () = self.happen(&lab) => {}
        }
        let wrong = lab.ledger.stuck(SETTLED);
        let outcome = lab.ledger.outcome();
        let error_after = lab.status().last_error.map(|error| error.to_string());
        let is_active = lab.is_active();
        let ids: Vec<String> = lab.emulator.sessions().into_iter().map(|session| session.id).collect();
        let last_error = error_after
            .filter(|error| Some(error) != error_before.as_ref())
            .map(|error| ids.iter().fold(error, |error, id| error.replace(id.as_str(), "ann-0a1b2c3d4e5f60718")));
        lab.ledger.inject();
        workload.end().await;
        let mut all_wrong = lab.ledger.outcome().wrong;
        all_wrong.extend(wrong.into_iter().map(|name| format!("{name} is still waiting")));
        if !is_active {
            all_wrong.push(format!("the tunnel is not active again: {states:?}, {last_error:?}"));
        }
        all_wrong.extend(lab.stop().await);
        all_wrong.extend(self.unexpected(&outcome));
        if all_wrong.is_empty() {
            let Progress { found, rate_back, behind, .. } = progress;
            return Ok(Run { outcome, states, last_error, found, rate_back, behind });
        }
        all_wrong.truncate(5);
        Err(format!("{all_wrong:#?} {states:?} {last_error:?} {outcome:?}"))
    }

    /// Injects the fault and waits until it is survived, or should be.
    async fn happen(&self, lab: &Lab) {
        match self.happening {
            Happening::Own(inject) => inject(lab).await,
            Happening::Fault(fault, trial) => happen(lab, fault, trial).await,
        }
        if self.from == From::End {
            lab.ledger.mark();
        }
        let marked = time::now();
        tokio::time::sleep(self.watch).await;
        while time::now() < marked + self.watch + self.bound + SETTLED {
            if lab.is_active() && lab.ledger.stuck(SETTLED).is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn unexpected(&self, outcome: &Outcome) -> Option<String> {
        let all = Load::FULL.connections() as usize;
        match self.expected {
            Expected::Kept if outcome.kept < all => Some(format!("{} connections were cut", outcome.reset)),
            Expected::Kept if outcome.open_wait > Some(self.bound) => {
                Some("open connections waited too long".to_owned())
            }
            Expected::Reset(_) if outcome.reset < all => Some(format!("{} connections were not cut", outcome.kept)),
            Expected::Reset(limit) if outcome.told_after > Some(limit) => {
                Some("connections were cut too late".to_owned())
            }
            _ if outcome.new_wait.is_none_or(|wait| wait > self.bound) => {
                Some("new connections waited too long".to_owned())
            }
            Expected::Kept | Expected::Reset(_) => None,
        }
    }
}
