//! Bastions that are replaced again and again while the whole workload runs: the real binary, in real time.
//!
//! The bastion is a service of ECS that is deployed anew, or an Auto Scaling group of one instance. What counts is how long
//! new connections wait, and that none is refused. Connections that are open when their bastion goes are cut, as nothing
//! can keep them.

use std::{path::Path, sync::Arc, time::Duration};

use autoheal_pa::emulator::{AgentConfig, BastionConfig, ClusterConfig, Config, EcsConfig, Place, TaskInfo, TaskTimes};
use kube::config::Kubeconfig;
use tokio::{
    task::JoinSet,
    time::{interval, timeout},
};

use super::{
    destination::Grounds,
    process::{Scene, all_of, on_real_time},
    time,
    workload::{Ledger, Load, Port, Site, Visits, Workload},
};

/// How long the workload may take to begin, beyond what machines are slow.
const BEGIN_LIMIT: Duration = Duration::from_secs(60);

/// How long old tasks may take to go after the last deployment.
const GONE_LIMIT: Duration = Duration::from_secs(180);

/// How long a new bastion may take at most until connections are answered again.
const BACK_LIMIT: Duration = Duration::from_secs(60);

const INSTANCE: &str = "i-0dc03fbcae2a87472";

/// What replaces the bastion.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A deployment, whose old task is there until the new one takes sessions.
    Deployment(TaskTimes),
    /// Auto Scaling: there is no bastion until the new one's agent is connected, which takes so long.
    Instance(Duration),
}

/// What is to happen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trial {
    kind: Kind,
    every: Duration,
    times: u32,
    /// The longest wait that is allowed: of new connections at any time, or from when the new bastion is there.
    bound: Duration,
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What came of it.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) visits: Visits,
    pub(crate) cuts: u64,
    /// The longest wait that counts.
    pub(crate) longest: Duration,
    /// Sessions that were started.
    pub(crate) sessions: usize,
    /// Bytes that were compared.
    pub(crate) checked: u64,
    /// What the program said meanwhile.
    pub(crate) said: String,
}

impl Trial {
    /// Three deployments, in less than a minute.
    pub(crate) fn deployments() -> Self {
        let times = TaskTimes {
            provisioning: secs(2),
            pending: secs(3),
            activating: secs(2),
            agent: secs(1),
            deactivating: secs(6),
            ..TaskTimes::default()
        };
        // Machines are shared: the wait is on the page, and the long trial is strict about it.
        Self { kind: Kind::Deployment(times), every: secs(15), times: 3, bound: secs(10) }
    }

    /// One deployment every 30 s. Tasks take as long as on Fargate, and old ones have 12 s for their end.
    pub(crate) fn long_deployments(minutes: u32) -> Self {
        let times = TaskTimes { deactivating: secs(12), ..TaskTimes::real() };
        Self { kind: Kind::Deployment(times), every: secs(30), times: 2 * minutes, bound: secs(3) }
    }

    /// One instance that is replaced.
    pub(crate) fn replacement() -> Self {
        Self { kind: Kind::Instance(secs(20)), every: secs(30), times: 1, bound: secs(15) }
    }

    /// One a minute; the new instance takes 40 s.
    pub(crate) fn long_replacements(minutes: u32) -> Self {
        Self { kind: Kind::Instance(secs(40)), every: secs(60), times: minutes, bound: secs(5) }
    }

    pub(crate) fn config(&self) -> Config {
        let config = Config {
            clusters: vec![ClusterConfig::new("payments")],
            agent: AgentConfig::paced(),
            anonymous_access: true,
            pod_churn: Some(Duration::from_millis(250)),
            ..Config::default()
        };
        match self.kind {
            Kind::Deployment(times) => {
                let ecs = EcsConfig { times, ..EcsConfig::with_service("tools", "bastion", 1) };
                Config { ecs, named_bastion: Some("ecs:tools/bastion".to_owned()), ..config }
            }
            Kind::Instance(instance_start) => Config {
                bastions: vec![BastionConfig::new(INSTANCE).in_group("bastions")],
                named_bastion: Some("asg:bastions".to_owned()),
                instance_start,
                ..config
            },
        }
    }

    /// Runs it with this program.
    ///
    /// # Errors
    /// What was not as expected.
    pub(crate) fn run(&self, program: &Path) -> Result<Report, String> {
        on_real_time(async {
            let scene = Scene::start(program, self.config()).await?;
            let report = self.run_in(&scene).await?;
            match scene.emulator.violations().as_slice() {
                [] => Ok(report),
                violations => Err(format!("{violations:?}")),
            }
        })
    }

    pub(super) async fn run_in(&self, scene: &Scene) -> Result<Report, String> {
        time::start();
        let server = scene.emulator.api_servers().swap_remove(0);
        let ledger = Arc::new(Ledger::default());
        let (place, listener) = Place::in_memory();
        scene.emulator.route(format!("{}:443", server.host), place);
        let mut tasks = JoinSet::new();
        tasks.spawn(Grounds::new(server.place.clone(), Arc::clone(&ledger)).serve(listener));

        let (mut up, _) = scene.up_ready().await?;
        let site = Site {
            port: Port::Tcp(local_port(&scene.kubeconfig())?),
            host: server.host.clone(),
            certificate_authority: server.certificate_authority.clone(),
            ledger: Arc::clone(&ledger),
        };
        let workload = Workload::start(&site, Load::FULL, 1);
        within(BEGIN_LIMIT, "everything gets something", ledger.wait_until(Ledger::has_begun)).await?;
        ledger.inject();
        // The pace of the trial, whatever comes of it.
        let mut beat = interval(self.every);
        beat.tick().await;
        let mut instance = INSTANCE.to_owned();
        let mut back = Duration::ZERO;
        for _ in 0..self.times {
            match self.kind {
                Kind::Deployment(_) => drop(scene.emulator.deploy(None)),
                Kind::Instance(start) => {
                    let new = scene.emulator.replace_instance(&instance).ok_or("there is no instance to replace")?;
                    instance = new;
                    let online = scene.emulator.wait_until(|emulator| emulator.is_online(&instance));
                    within(start + BACK_LIMIT, "the new agent is online", online).await?;
                    back = back.max(answered(&ledger).await?);
                }
            }
            beat.tick().await;
        }
        if matches!(self.kind, Kind::Deployment(_)) {
            let is_there = |task: &&TaskInfo| task.status != "STOPPED";
            let gone = scene.emulator.wait_until(|emulator| emulator.tasks().iter().filter(is_there).count() == 1);
            within(GONE_LIMIT, "the last of the old tasks is gone", gone).await?;
        }
        let (visits, cuts, outcome) = (ledger.visits(), ledger.cuts(), ledger.outcome());
        let longest = if matches!(self.kind, Kind::Deployment(_)) { visits.longest } else { back };
        workload.end().await;
        tasks.shutdown().await;
        let sessions = scene.emulator.sessions().len();
        Scene::ask_to_stop(&up)?;
        let said = steady(&all_of(&mut up).await);
        let report = Report { visits, cuts, longest, sessions, checked: outcome.checked, said };
        let mut wrong = ledger.outcome().wrong;
        if longest > self.bound {
            wrong.push(format!("new connections waited for {longest:?}"));
        }
        // While there is no bastion at all, nobody can wait for ever.
        if visits.refused > 0 && matches!(self.kind, Kind::Deployment(_)) {
            wrong.push(format!("{} new connections were refused", visits.refused));
        }
        if cuts < u64::from(Load::FULL.connections()) {
            wrong.push(format!("only {cuts} connections were cut"));
        }
        if wrong.is_empty() { Ok(report) } else { Err(format!("{wrong:#?} {report:#?}")) }
    }
}

/// How long it takes from now until a new connection is answered.
async fn answered(ledger: &Ledger) -> Result<Duration, String> {
    ledger.mark();
    let wait = |ledger: &Ledger| ledger.outcome().new_wait;
    within(BACK_LIMIT, "a new connection is answered", ledger.wait_until(|ledger| wait(ledger).is_some())).await?;
    wait(ledger).ok_or_else(|| "the wait was forgotten".to_owned())
}

/// Waits, and says for what if it takes too long.
async fn within(limit: Duration, what: &str, waited: impl Future<Output = ()>) -> Result<(), String> {
    timeout(limit, waited).await.map_err(|_| format!("it took more than {} s until {what}", limit.as_secs()))
}

/// The port of the only tunnel.
fn local_port(kubeconfig: &Path) -> Result<u16, String> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).map_err(|error| error.to_string())?;
    let cluster = kubeconfig.clusters.first().and_then(|named| named.cluster.as_ref());
    let server = cluster.and_then(|cluster| cluster.server.as_ref()).ok_or("there is no server")?;
    server.rsplit(':').next().and_then(|port| port.parse().ok()).ok_or_else(|| format!("no port in {server}"))
}

/// Puts one id in the place of those that differ from run to run.
fn steady(text: &str) -> String {
    let word = |word: &str| {
        let core = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        if core.starts_with("ecs:tools_") {
            word.replace(core, "ecs:tools_0f9d…")
        } else if core.starts_with("i-0") {
            word.replace(core, INSTANCE)
        } else {
            word.to_owned()
        }
    };
    text.split_inclusive(char::is_whitespace).map(word).collect()
}
