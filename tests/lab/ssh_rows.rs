//! What is tried on a bastion that is an SSH server, what is expected of each, and one run of one of them.
//!
//! Bounds are for machines that others use as well: what is slower than they are is broken. The page has what it took.

use std::{path::Path, time::Duration};

use autoheal_pa::{emulator::Failure, route::ssh};
use futures_util::future::BoxFuture;

use super::{
    matrix::{Expected, From, Run, follow},
    process::on_real_time,
    ssh::{BASTION, Setup, SshLab, Way},
    time,
    workload::{Ledger, Load, Outcome, Workload},
};

/// How long the workload runs before most faults.
const WARM_UP: Duration = Duration::from_millis(500);

/// When a connection has proved to be of use: `USE_PROOF` of the pool, and a little more.
const IN_USE: Duration = Duration::from_secs(11);

/// How long it runs after the mark at least.
const WATCH: Duration = Duration::from_millis(1500);

/// Nothing may wait for so long when a run is over: the fault is survived.
const SETTLED: Duration = Duration::from_secs(1);

/// How long something may take that is waited for: the workload's beginning, the end of a connection and the like.
const LIMIT: Duration = Duration::from_secs(60);

/// How soon those are told whose connections are cut, and how soon new ones are answered, at the latest.
const BOUND: Duration = Duration::from_secs(60);

/// How long a server may say nothing, in the rows that say so, before it is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_millis(500);

/// After how many bytes keys are exchanged anew, in the row that says so.
const REKEY_AFTER: usize = 1 << 20;

/// How long a tunnel of an endpoint is used before another takes what is new, in the row that says so.
const LEAVE_AFTER: Duration = Duration::from_secs(3);

/// That of the matrix, but for the bulk transfers: the SSH way carries what there is, and processors have other things to do.
pub(crate) const LOAD: Load =
    Load { bulk_pause: Duration::from_millis(20), visit_pause: Duration::from_millis(200), ..Load::FULL };

type Happen = for<'a> fn(&'a SshLab) -> BoxFuture<'a, Result<(), String>>;

/// A row of the page's table of SSH servers.
#[derive(Clone, Copy)]
pub(crate) struct SshRow {
    /// The test's name, with hyphens.
    pub(crate) name: &'static str,
    /// What happens, as the page says it.
    pub(crate) what: &'static str,
    pub(crate) from: From,
    pub(crate) expected: Expected,
    way: Way,
    change: fn(&mut ssh::Config),
    /// How long the workload runs before the fault.
    warm_up: Duration,
    /// Not even a new connection is refused.
    refuses_none: bool,
    happen: Happen,
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl SshRow {
    /// Something that happens at once and is survived.
    const fn new(name: &'static str, what: &'static str, happen: Happen) -> Self {
        let (from, expected, way) = (From::Injection, Expected::Kept, Way::Address);
        let change: fn(&mut ssh::Config) = |_| ();
        Self { name, what, from, expected, way, change, warm_up: WARM_UP, refuses_none: false, happen }
    }

    /// It lasts.
    const fn lasts(self) -> Self {
        Self { from: From::End, ..self }
    }

    /// Open connections end: SSH resumes nothing.
    const fn cuts(self) -> Self {
        Self { expected: Expected::Reset(BOUND), ..self }
    }

    const fn by(self, way: Way) -> Self {
        Self { way, ..self }
    }

    const fn with(self, change: fn(&mut ssh::Config)) -> Self {
        Self { change, ..self }
    }

    /// The connection has proved to be of use: for one that has not, what is away is waited for more slowly.
    const fn in_use(self) -> Self {
        Self { warm_up: IN_USE, ..self }
    }

    const fn refuses_none(self) -> Self {
        Self { refuses_none: true, ..self }
    }
}

/// Makes something happen.
macro_rules! happens {
    (|$lab:ident| $body:expr) => {
        |$lab| Box::pin(async move { $body })
    };
}

/// The rows.
pub(crate) const SSH_ROWS: &[SshRow] = &[
    SshRow::new("ssh-nothing", "nothing: the base line", happens!(|_lab| Ok(()))).refuses_none(),
    SshRow::new(
        "ssh-rekey",
        "keys are exchanged anew after each MiB, in the middle of all that",
        happens!(|lab| {
            let before = lab.ledger.bytes_of("download");
            let through = |ledger: &Ledger| ledger.bytes_of("download") >= before + 4 * REKEY_AFTER as u64;
            within("4 MiB have come", lab.ledger.wait_until(through)).await
        }),
    )
    .with(|config| config.rekey_after = REKEY_AFTER)
    .refuses_none(),
    SshRow::new(
        "ssh-restart",
        "the server is restarted as `systemctl restart ssh` does it: connections that are open go on",
        happens!(|lab| lab.server(|sshd| sshd.restart()).await),
    )
    .refuses_none(),
    SshRow::new(
        "ssh-killed",
        "the server is killed with all its connections, and is back after 1 s",
        happens!(|lab| {
            lab.server(|sshd| sshd.kill()).await?;
            tokio::time::sleep(millis(1000)).await;
            lab.server(|sshd| sshd.start_again()).await
        }),
    )
    .lasts()
    .cuts(),
    SshRow::new(
        "ssh-stopped-short",
        "the server is stopped (SIGSTOP), and goes on after 2 s",
        happens!(|lab| {
            lab.server(|sshd| sshd.suspend()).await?;
            tokio::time::sleep(millis(2000)).await;
            lab.server(|sshd| sshd.resume()).await
        }),
    )
    .lasts(),
    SshRow::new(
        "ssh-stopped",
        "the server is stopped (SIGSTOP) until it is given up, and goes on",
        happens!(|lab| {
            lab.server(|sshd| sshd.suspend()).await?;
            within("the server is given up", lab.given_up()).await?;
            lab.server(|sshd| sshd.resume()).await
        }),
    )
    .with(|config| config.keepalive = KEEPALIVE)
    .lasts()
    .cuts(),
    SshRow::new(
        "ssh-silence-short",
        "the network carries nothing for 2 s, either way",
        happens!(|lab| {
            lab.relay().silence(true);
            tokio::time::sleep(millis(2000)).await;
            lab.relay().silence(false);
            Ok(())
        }),
    )
    .lasts(),
    SshRow::new(
        "ssh-silence",
        "the network carries nothing until the connection is given up, and then works again",
        happens!(|lab| {
            lab.relay().silence(true);
            within("the connection is given up", lab.given_up()).await?;
            lab.relay().silence(false);
            Ok(())
        }),
    )
    .with(|config| config.keepalive = KEEPALIVE)
    .lasts()
    .cuts(),
    SshRow::new(
        "ssh-reset",
        "the connection is reset",
        happens!(|lab| {
            lab.relay().cut();
            Ok(())
        }),
    )
    .cuts(),
    SshRow::new(
        "ssh-reset-twice",
        "the connection is reset, and the next one a second later",
        happens!(|lab| {
            lab.relay().cut();
            tokio::time::sleep(millis(1000)).await;
            lab.relay().cut();
            Ok(())
        }),
    )
    .lasts()
    .cuts(),
    SshRow::new(
        "ssh-address",
        "the instance is stopped, and started after 1 s with another address",
        happens!(|lab| lab.move_server(millis(1000)).await),
    )
    .in_use()
    .lasts()
    .cuts(),
    SshRow::new(
        "ssh-replaced",
        "Auto Scaling replaces the only instance of a group, and the new one runs after 0.5 s",
        happens!(|lab| {
            let new = lab.emulator.replace_instance(BASTION).ok_or("there is no instance to replace")?;
            lab.relay().cut();
            within("the new instance runs", lab.emulator.wait_until(|emulator| emulator.is_online(&new))).await
        }),
    )
    .by(Way::Group)
    .in_use()
    .lasts()
    .cuts(),
    SshRow::new(
        "ssh-endpoint-cut",
        "an EC2 Instance Connect Endpoint closes the connection, as it does after an hour, and nobody has foreseen it",
        happens!(|lab| {
            let next = lab.relay().next_connection();
            lab.emulator.update(|settings| settings.tunnel_lifetime = Some(millis(500)));
            // The next one is no older than that yet.
            within("there is another tunnel", next).await?;
            lab.emulator.update(|settings| settings.tunnel_lifetime = None);
            Ok(())
        }),
    )
    .by(Way::Endpoint)
    .cuts(),
    SshRow::new(
        "ssh-endpoint-left",
        "the same, foreseen: another connection takes what is new, and the first is closed 0.5 s later with what is still open on it",
        happens!(|lab| {
            let next = lab.relay().next_connection();
            within("there is another tunnel", next).await?;
            // Long enough for what was asked on the first one, and too short for a third one to be made.
            tokio::time::sleep(millis(500)).await;
            lab.ledger.inject();
            lab.emulator.update(|settings| settings.tunnel_lifetime = Some(millis(1500)));
            let all = LOAD.connections() as usize;
            within("open connections are told", lab.ledger.wait_until(|ledger| ledger.outcome().reset == all)).await?;
            lab.emulator.update(|settings| settings.tunnel_lifetime = None);
            Ok(())
        }),
    )
    .by(Way::Endpoint)
    .with(|config| config.leave_after = LEAVE_AFTER)
    .cuts(),
    SshRow::new(
        "ssh-push-throttled",
        "the connection is reset, and three pushes of a key are throttled",
        happens!(|lab| {
            let failure = Failure::throttled(3);
            lab.emulator.update(|settings| {
                settings.failing_actions.insert("ec2-instance-connect:SendSSHPublicKey".to_owned(), failure);
            });
            lab.relay().cut();
            Ok(())
        }),
    )
    .cuts(),
    SshRow::new(
        "ssh-credentials-expired",
        "the credentials expire, and then the connection is reset",
        happens!(|lab| {
            lab.emulator.expire_credentials();
            lab.relay().cut();
            Ok(())
        }),
    )
    .cuts(),
    SshRow::new(
        "ssh-api-restart",
        "the API server closes all connections and is back after 1 s",
        happens!(|lab| lab.restart_destination(millis(1000)).await),
    )
    .lasts()
    .cuts(),
];

/// Waits, and says for what if it takes too long.
pub(super) async fn within(what: &str, waited: impl Future<Output = ()>) -> Result<(), String> {
    let late = |_| format!("it took more than {} s until {what}", LIMIT.as_secs());
    tokio::time::timeout(LIMIT, waited).await.map_err(late)
}

impl SshRow {
    /// Runs the fault once with this server.
    ///
    /// # Errors
    /// What was not as expected.
    pub(crate) fn run(&self, sshd: &Path, seed: u64) -> Result<Run, String> {
        on_real_time(self.run_within(sshd, seed)).map_err(|wrong| format!("{} with seed {seed}: {wrong}", self.name))
    }

    async fn run_within(&self, sshd: &Path, seed: u64) -> Result<Run, String> {
        let mut config = ssh::Config::default();
        (self.change)(&mut config);
        let setup =
            Setup { sshd: sshd.to_owned(), seed, way: self.way, ssh: config, churn: Some(Duration::from_millis(250)) };
        let lab = SshLab::start(&setup).await?;
        let workload = Workload::start(&lab.site(), LOAD, seed);
        within("everything gets something", lab.ledger.wait_until(Ledger::has_begun)).await?;
        tokio::time::sleep(self.warm_up).await;
        let error_before = lab.status().last_error.map(|error| error.to_string());
        lab.ledger.inject();
        let injected = time::now();
        let mut states = Vec::new();
        let happened = tokio::select! {
            biased;
            () = follow(lab.board(), injected, &mut states) => Ok(()),
            happened = self.happen(&lab) => happened,
        };
        let waiting = lab.ledger.stuck(SETTLED);
        let outcome = lab.ledger.outcome();
        let last_error = lab.status().last_error.map(|error| error.to_string());
        let last_error = last_error.filter(|error| Some(error) != error_before.as_ref());
        let last_error = last_error.map(|error| lab.steady(&error));
        let is_active = lab.is_active();
        workload.end().await;
        let mut wrong = lab.ledger.outcome().wrong;
        wrong.extend(happened.err());
        wrong.extend(waiting.into_iter().map(|name| format!("{name} is still waiting")));
        if !is_active {
            wrong.push(format!("the tunnel is not active again: {states:?}, {last_error:?}"));
        }
        let refused = lab.ledger.visits().refused;
        if self.refuses_none && refused > 0 {
            wrong.push(format!("{refused} new connections were refused"));
        }
        wrong.extend(lab.stop().await);
        wrong.extend(self.unexpected(&outcome));
        if wrong.is_empty() {
            return Ok(Run { outcome, states, last_error, found: None, rate_back: None, behind: 0 });
        }
        wrong.truncate(5);
        Err(format!("{wrong:#?} {states:?} {last_error:?} {outcome:?}"))
    }

    /// Makes it happen and waits until it is survived, or should be.
    async fn happen(&self, lab: &SshLab) -> Result<(), String> {
        (self.happen)(lab).await?;
        if self.from == From::End {
            lab.ledger.mark();
        }
        let marked = time::now();
        tokio::time::sleep(WATCH).await;
        while time::now() < marked + WATCH + BOUND + SETTLED {
            let is_told = self.expected == Expected::Kept || lab.ledger.outcome().kept == 0;
            if is_told && lab.is_active() && lab.ledger.stuck(SETTLED).is_empty() {
                break;
            }
            tokio::time::sleep(millis(50)).await;
        }
        Ok(())
    }

    fn unexpected(&self, outcome: &Outcome) -> Option<String> {
        match self.expected {
            Expected::Kept if outcome.reset > 0 => Some(format!("{} connections were cut", outcome.reset)),
            Expected::Kept if outcome.open_wait > Some(BOUND) => Some("open connections waited too long".to_owned()),
            Expected::Reset(_) if outcome.kept > 0 => Some(format!("{} connections were not cut", outcome.kept)),
            Expected::Reset(limit) if outcome.told_after > Some(limit) => {
                Some("connections were cut too late".to_owned())
            }
            _ if outcome.new_wait.is_none_or(|wait| wait > BOUND) => Some("new connections waited too long".to_owned()),
            Expected::Kept | Expected::Reset(_) => None,
        }
    }
}
