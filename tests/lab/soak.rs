//! Days of a tunnel's life in a moment: hourly closes, sleep at night, faults by chance, and always a little traffic.
//!
//! Looks for what only time shows: streams, sessions, tasks and memory that are left behind. Once a day everything
//! is let go, and what is still there then is a leak. Probes are ten minutes apart instead of 30 s: each is two TLS
//! handshakes of real cryptography, 86 400 of which would be most of the work; in between the steady traffic proves the
//! path, as it does in life.

use std::time::Duration;

use autoheal_pa::{
    emulator::{Command, Destination, Failure, Fault, Link, SessionState},
    random::SplitMix64,
};
use tokio::runtime::Handle;

use super::{
    DELAY, Lab, Setup, on_virtual_time, time,
    workload::{Load, Workload},
};

/// Pause between probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(600);

/// How long a WebSocket lives at the service.
const HOUR: Duration = Duration::from_secs(3600);

/// A day, of which the machine sleeps the last hours.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long it sleeps at night.
const NIGHT: Duration = Duration::from_secs(8 * 3600);

/// How long the service keeps a session whose client is silent.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1200);

/// How long everything may take to come to rest. Connections that the service has forgotten last 15 minutes.
const REST: Duration = Duration::from_secs(20 * 60);

/// Until when the tunnel has to work again after a fault.
const RECOVERY: Duration = Duration::from_secs(300);

/// Memory that may come on top after the third day, in bytes: allocators do not give everything back at once.
pub(super) const MEMORY_SLACK: u64 = 8 << 20;

/// A little of everything, all the time.
const LOAD: Load = Load {
    questions: 3,
    question_pause: Duration::from_secs(60),
    bulk_pause: Duration::from_secs(1800),
    visit_pause: Duration::from_secs(120),
    watch: false,
};

/// What a soak came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) days: u32,
    pub(crate) faults: u32,
    pub(crate) resumes: u64,
    pub(crate) restarts: u64,
    pub(crate) bytes: u64,
    /// Resident memory after the first days and at the end, in bytes.
    pub(crate) memory: (u64, u64),
}

/// Soaks a tunnel for so many days, with so many sessions at most.
///
/// # Errors
/// What was lost or left behind.
pub(crate) fn soak(days: u32, seed: u64, sessions: usize) -> Result<Report, String> {
    on_virtual_time(soak_within(days, seed, sessions)).map_err(|wrong| format!("seed {seed}: {wrong}"))
}

async fn soak_within(days: u32, seed: u64, sessions: usize) -> Result<Report, String> {
    let mut random = SplitMix64::new(seed);
    let lab = Lab::start(&Setup { seed, probe_interval: PROBE_INTERVAL, sessions, churn: None, line: None }).await?;
    lab.emulator.update(|settings| settings.transport_lifetime = Some(HOUR));
    rest(&lab).await;
    let tasks = Handle::current().metrics().num_alive_tasks();
    let mut report = Report { days, ..Report::default() };
    for day in 1..=days {
        let morning = time::now();
        lab.ledger.start_over();
        let workload = Workload::start(&lab.site(), LOAD, random.next_u64());
        lab.ledger.inject();
        while time::now() < morning + DAY - NIGHT {
            let pause = Duration::from_secs(1800 + random.next_u64() % 7200);
            tokio::time::sleep(pause).await;
            let fault = strike(&lab, &mut random).await;
            report.faults += 1;
            recovered(&lab).await.map_err(|wrong| format!("day {day}, after {fault}: {wrong}"))?;
        }
        // The lid is closed with everything running. Naps are shorter than the service's patience, nights are not.
        lab.sleep(if random.next_u64().is_multiple_of(4) { IDLE_TIMEOUT / 4 } else { NIGHT }, IDLE_TIMEOUT);
        recovered(&lab).await.map_err(|wrong| format!("day {day}, after sleep: {wrong}"))?;
        workload.end().await;
        report.bytes += lab.ledger.outcome().checked;
        let wrong = lab.ledger.outcome().wrong;
        if !wrong.is_empty() {
            return Err(format!("day {day}: {wrong:#?}"));
        }
        rest(&lab).await;
        left_behind(&lab, tasks).map_err(|wrong| format!("day {day}: {wrong}"))?;
        lab.emulator.forget_ended_sessions();
        if day == days.min(3) {
            report.memory.0 = memory();
        }
    }
    report.memory.1 = memory();
    if days > 3 && report.memory.1 > report.memory.0 + MEMORY_SLACK {
        return Err(format!("memory grew from {} to {} bytes", report.memory.0, report.memory.1));
    }
    let status = lab.status();
    (report.resumes, report.restarts) = (status.resumes, status.restarts);
    let wrong = lab.stop().await;
    if wrong.is_empty() { Ok(report) } else { Err(format!("{wrong:#?}")) }
}

/// Lets one fault happen, by chance; returns its name.
async fn strike(lab: &Lab, random: &mut SplitMix64) -> &'static str {
    let emulator = &lab.emulator;
    let seconds = Duration::from_secs(5 + random.next_u64() % 40);
    let lossy = |link: Link| async move {
        let set = |link: Link| emulator.update(|settings| (settings.upstream, settings.downstream) = (link, link));
        set(Link { delay: DELAY, ..link });
        tokio::time::sleep(seconds).await;
        set(Link { delay: DELAY, ..Link::default() });
    };
    let failing = |action: &str, failure: Failure| {
        emulator.update(|settings| {
            settings.failing_actions.insert(action.to_owned(), failure);
        });
    };
    match random.next_u64() % 14 {
        0 => {
            emulator.command(&Command::SilenceTransport);
            "silence"
        }
        1 => {
            emulator.command(&Command::SilenceUpstream);
            "silence upstream"
        }
        2 => {
            emulator.command(&Command::SilenceDownstream);
            "silence downstream"
        }
        3 => {
            emulator.command(&Command::HalfOpen);
            "a half-open connection"
        }
        4 => {
            lossy(Link { loss: 0.05, ..Link::default() }).await;
            "loss"
        }
        5 => {
            lossy(Link { duplicate: 0.1, reorder: 0.1, ..Link::default() }).await;
            "repeated and overtaken messages"
        }
        6 => {
            emulator.command(&Command::Pause { messages: 1, start_after: Some(seconds) });
            tokio::time::sleep(seconds).await;
            "a pause"
        }
        7 => {
            failing("ssm:ResumeSession", Failure::throttled(3));
            emulator.command(&Command::CutTransport);
            "throttled resumes"
        }
        8 => {
            emulator.update(|settings| settings.rejected_tokens = 1);
            emulator.command(&Command::CutTransport);
            "a rejected token"
        }
        9 => {
            failing("ssm:StartSession", Failure::internal(3));
            emulator.command(&Command::CloseChannel { output: Some("ended".to_owned()) });
            "an ended session and failing starts"
        }
        10 => {
            emulator.command(&Command::KillAgent);
            "the death of the agent"
        }
        11 => {
            emulator.inject(&lasting("bastion-offline", seconds));
            tokio::time::sleep(seconds).await;
            "a bastion that was offline"
        }
        12 => {
            emulator.inject(&lasting("restart-destinations", seconds));
            tokio::time::sleep(seconds).await;
            "a restart of the API server"
        }
        _ => {
            let refused = Destination::Refused;
            emulator.update(|settings| {
                settings.destinations.insert("*".to_owned(), refused);
            });
            tokio::time::sleep(seconds).await;
            emulator.update(|settings| settings.destinations.clear());
            "refused connections"
        }
    }
}

/// Waits until everything goes on.
async fn recovered(lab: &Lab) -> Result<(), String> {
    lab.ledger.mark();
    let since = time::now();
    tokio::time::sleep(Duration::from_secs(130)).await;
    while !(lab.is_active() && lab.ledger.stuck(Duration::from_secs(30)).is_empty()) {
        if time::now() > since + RECOVERY {
            let stuck = lab.ledger.stuck(Duration::from_secs(30));
            return Err(format!("the tunnel is {}, and {stuck:?} wait", lab.status().state));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// Lets everything come to rest.
async fn rest(lab: &Lab) {
    tokio::time::sleep(REST).await;
    let is_at_rest = || {
        let status = lab.status();
        lab.is_active() && status.open_connections + status.held_connections == 0
    };
    let until = time::now() + REST;
    while !is_at_rest() && time::now() < until {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Looks for what should be gone when nothing is going on.
fn left_behind(lab: &Lab, tasks: usize) -> Result<(), String> {
    let status = lab.status();
    if status.open_connections + status.held_connections > 0 {
        return Err(format!("{} connections are open", status.open_connections + status.held_connections));
    }
    let sessions = lab.emulator.sessions();
    let live: Vec<_> = sessions.iter().filter(|session| session.state != SessionState::Ended).collect();
    // The prober's last stream may be open, and no other.
    if live.len() > 1 || live.iter().any(|session| session.open_streams > 1) {
        return Err(format!("sessions or streams are left: {live:#?}"));
    }
    let violations = lab.emulator.violations();
    if !violations.is_empty() {
        return Err(format!("rules were broken: {violations:#?}"));
    }
    let alive = Handle::current().metrics().num_alive_tasks();
    // A probe under way has tasks of its own at its destination.
    if alive > tasks + 6 {
        return Err(format!("{alive} tasks are alive, {tasks} were at the start"));
    }
    Ok(())
}

/// Resident memory of this process, in bytes; 0 where the system does not tell.
pub(super) fn memory() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or_default() * 4096
}

/// A fault that ends after this time.
fn lasting(name: &str, time: Duration) -> Fault {
    format!("{name}={}ms", time.as_millis()).parse().expect("faults that end take a time")
}
