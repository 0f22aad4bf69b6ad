//! Days of EC2 Instance Connect Endpoints, which close each connection after an hour: the other end is OpenSSH's own server, so that
//! it is the hour that is shorter, and not time that is virtual.
//!
//! Another connection takes what is new before the first is closed, so that no new connection is ever refused; what stays open until the
//! close is cut, once each hour. Once a day everything is let go, and what is still there then is a leak.

use std::{path::Path, time::Duration};

use autoheal_pa::route::ssh;
use tokio::runtime::Handle;

use super::{
    process::on_real_time,
    soak::{MEMORY_SLACK, memory},
    ssh::{Setup, SshLab, Way},
    ssh_rows::within,
    workload::{Load, Workload},
};

/// How long an endpoint keeps a connection.
const HOUR: Duration = Duration::from_secs(2);

/// When another takes what is new. The product leaves five minutes, in which even a slow machine makes a connection; so it has to be
/// able to in what is left here.
const LEAVE_AFTER: Duration = Duration::from_millis(1250);

/// Hours of a day.
const HOURS: u32 = 24;

/// Days until memory, tasks and files are what they are to stay.
const SETTLED_DAYS: u32 = 3;

/// Longest wait for a day's end. Machines are shared.
const DAY_LIMIT: Duration = Duration::from_secs(300);

/// Tasks that may come on top: of keys that are still let in, and of connections that are still to be closed.
const TASK_SLACK: usize = 40;

/// Files that may come on top: each connection has some at both ends, and in between.
const FILE_SLACK: usize = 40;

/// A little of everything, all the time.
const LOAD: Load = Load {
    questions: 3,
    question_pause: Duration::from_millis(200),
    bulk_pause: Duration::from_millis(300),
    visit_pause: Duration::from_millis(50),
    watch: false,
};

/// What was there at the end of a day.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rest {
    /// Resident memory, in bytes.
    pub(crate) memory: u64,
    pub(crate) tasks: usize,
    /// Open file descriptors.
    pub(crate) files: usize,
}

/// What a soak came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct SshReport {
    /// Connections that were closed.
    pub(crate) closes: u64,
    /// New connections that were answered.
    pub(crate) answered: u64,
    /// Connections that were open when theirs was closed.
    pub(crate) cuts: u64,
    /// The longest wait of a new connection.
    pub(crate) longest: Duration,
    pub(crate) bytes: u64,
    /// After the first days, and at the end.
    pub(crate) rest: (Rest, Rest),
}

/// Lives through so many closes.
///
/// # Errors
/// What was lost or left behind.
pub(crate) fn ssh_soak(sshd: &Path, closes: u32, seed: u64) -> Result<SshReport, String> {
    on_real_time(soak_within(sshd, closes, seed)).map_err(|wrong| format!("seed {seed}: {wrong}"))
}

async fn soak_within(sshd: &Path, closes: u32, seed: u64) -> Result<SshReport, String> {
    let ssh = ssh::Config { leave_after: LEAVE_AFTER, ..ssh::Config::default() };
    let setup = Setup { sshd: sshd.to_owned(), seed, way: Way::Endpoint, ssh, churn: None };
    let lab = SshLab::start(&setup).await?;
    lab.emulator.update(|settings| settings.tunnel_lifetime = Some(HOUR));
    let first = lab.relay().connections();
    let passed = |lab: &SshLab| lab.relay().connections() - first;
    let mut report = SshReport::default();
    let days = closes.div_ceil(HOURS);
    for day in 1..=days {
        let before = passed(&lab);
        let until = u64::from(day * HOURS).min(u64::from(closes));
        lab.ledger.start_over();
        let workload = Workload::start(&lab.site(), LOAD, seed.wrapping_add(u64::from(day)));
        lab.ledger.inject();
        let hours = lab.ledger.wait_until(|_| passed(&lab) >= until);
        let late = |_| format!("day {day} does not end: {:?}", lab.status());
        tokio::time::timeout(DAY_LIMIT, hours).await.map_err(late)?;
        workload.end().await;
        let (outcome, visits, cuts) = (lab.ledger.outcome(), lab.ledger.visits(), lab.ledger.cuts());
        let mut wrong = outcome.wrong;
        if visits.refused > 0 {
            wrong.push(format!("{} new connections were refused, {} answered", visits.refused, visits.answered));
        }
        // The one that was there when the day began may be closed, too.
        let most = u64::from(LOAD.connections()) * (passed(&lab) - before + 1);
        if cuts > most {
            wrong.push(format!("{cuts} connections were cut, and no more than {most} can have been open at a close"));
        }
        report.closes = passed(&lab);
        report.answered += visits.answered;
        report.cuts += cuts;
        report.longest = report.longest.max(visits.longest);
        report.bytes += outcome.checked;
        let rest = rest(&lab).await?;
        if day <= SETTLED_DAYS {
            report.rest.0 = rest;
        }
        report.rest.1 = rest;
        wrong.extend(grown(&report));
        wrong.extend(lab.emulator.violations());
        if !wrong.is_empty() {
            return Err(format!("day {day}: {wrong:#?} {report:?}"));
        }
    }
    let wrong = lab.stop().await;
    if wrong.is_empty() { Ok(report) } else { Err(format!("{wrong:#?}")) }
}

/// Lets all connections end, and looks at what is there.
async fn rest(lab: &SshLab) -> Result<Rest, String> {
    let mut board = lab.board();
    let at_rest = board.wait_for(|board| {
        let tunnel = &board.tunnels[0];
        tunnel.open_connections + tunnel.held_connections == 0
    });
    within("all connections have ended", async { drop(at_rest.await) }).await?;
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    Ok(Rest { memory: memory(), tasks: Handle::current().metrics().num_alive_tasks(), files })
}

/// Says what there is more of than after the first days.
fn grown(SshReport { rest: (then, now), .. }: &SshReport) -> Option<String> {
    let is_more = now.memory > then.memory + MEMORY_SLACK
        || now.tasks > then.tasks + TASK_SLACK
        || now.files > then.files + FILE_SLACK;
    is_more.then(|| format!("there is more than after the first days: {now:?} after {then:?}"))
}
