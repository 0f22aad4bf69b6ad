//! Faults that concern the program as a process, its files and the whole of its AWS stack: the real binary, in real
//! time, against the emulated AWS on sockets.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use autoheal_pa::{
    clock::Clock,
    emulator::{Command as Order, Config, Emulator, SessionState},
};
use futures_util::future::BoxFuture;
use kube::{
    Api, Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::replaced::Trial;

/// Longest wait for anything. Machines are shared, so it says nothing about speed.
const LIMIT: Duration = Duration::from_secs(120);

/// How many events there are at the emulated AWS from the first call of `up` until it is ready, at least.
const MOMENTS: u64 = 16;

/// What one run came to.
#[derive(Debug, Clone)]
pub(crate) struct ProcessRun {
    /// How long it took until everything worked again.
    pub(crate) wait: Duration,
    /// What the user sees.
    pub(crate) seen: String,
}

type Happen = for<'a> fn(&'a Scene, u64) -> BoxFuture<'a, Result<ProcessRun, String>>;

/// A row of the page's second table.
#[derive(Clone, Copy)]
pub(crate) struct ProcessRow {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// What the wait is for.
    pub(crate) wait_for: &'static str,
    /// Each run takes about a minute, so that few are run.
    pub(crate) is_long: bool,
    config: fn() -> Config,
    happen: Happen,
}

/// The rows.
pub(crate) const PROCESS_ROWS: &[ProcessRow] = &[
    ProcessRow {
        name: "disk-full",
        what: "the disk is full when the kubeconfig is written; the old one stays as it was and no session is started",
        wait_for: "`tunnel ready` of the next start, with room on the disk",
        is_long: false,
        config: Config::default,
        happen: |scene, _| Box::pin(disk_full(scene)),
    },
    ProcessRow {
        name: "manager-killed",
        what: "the manager is killed with SIGKILL, each time at another moment from its first call on; its kubeconfig is missing or parses",
        wait_for: "`tunnel ready` of the next start; its sessions are ended by then or soon after",
        is_long: false,
        config: Config::default,
        happen: |scene, seed| Box::pin(killed(scene, seed)),
    },
    ProcessRow {
        name: "credentials-of-the-process",
        what: "all credentials expire and the WebSocket is reset, with the real AWS SDK and an OIDC token",
        wait_for: "the answer of the API server to a client that asks just then, with a new token",
        is_long: false,
        config: Config::default,
        happen: |scene, _| Box::pin(credentials(scene)),
    },
    ProcessRow {
        name: "redeploy",
        what: "the bastion is a service of ECS that is deployed anew three times, 15 s apart; no new connection is refused",
        wait_for: "the longest wait of a new connection at any time",
        is_long: true,
        config: || Trial::deployments().config(),
        happen: |scene, _| Box::pin(replaced(scene, Trial::deployments())),
    },
    ProcessRow {
        name: "replace-instance",
        what: "Auto Scaling replaces the only bastion of a group; the agent of the new one is connected 20 s later",
        wait_for: "the answer to a new connection, from when the new agent is connected",
        is_long: true,
        config: || Trial::replacement().config(),
        happen: |scene, _| Box::pin(replaced(scene, Trial::replacement())),
    },
];

impl ProcessRow {
    /// Runs the fault once with this program.
    ///
    /// # Errors
    /// What was not as expected.
    pub(crate) fn run(&self, program: &Path, seed: u64) -> Result<ProcessRun, String> {
        let outcome = on_real_time(async {
            let scene = Scene::start(program, (self.config)()).await?;
            let run = timeout(LIMIT, (self.happen)(&scene, seed)).await.map_err(|_| "it does not end".to_owned())??;
            match scene.emulator.violations().as_slice() {
                [] => Ok(run),
                violations => Err(format!("{violations:?}")),
            }
        });
        outcome.map_err(|wrong| format!("{} with seed {seed}: {wrong}", self.name))
    }
}

/// Runs a future with sockets and processes. On one thread, whose clocks are the workload's.
pub(super) fn on_real_time<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(future)
}

/// An emulated AWS, and a home for the program.
pub(super) struct Scene {
    pub(super) emulator: Emulator,
    home: TempDir,
    program: PathBuf,
    clock: Clock,
}

impl Scene {
    pub(super) async fn start(program: &Path, config: Config) -> Result<Self, String> {
        let emulator = Emulator::start(config).await.map_err(|error| error.to_string())?;
        let home = tempfile::tempdir().map_err(|error| error.to_string())?;
        Ok(Self { emulator, home, program: program.to_owned(), clock: Clock::start() })
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.home.path().join(".kube/autoheal-pa.yaml")
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.home.path());
        command.env("XDG_RUNTIME_DIR", self.home.path()).envs(self.emulator.environment());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    fn up(&self) -> Result<Child, String> {
        let mut command = self.command(&self.program);
        command.args(["up", "--base-port", "0"]).spawn().map_err(|error| error.to_string())
    }

    /// Starts `up` and waits until it is ready; returns how long that took.
    pub(super) async fn up_ready(&self) -> Result<(Child, Duration), String> {
        let started = self.clock.now().mono;
        let mut up = self.up()?;
        let stdout = up.stdout.take().ok_or("no stdout")?;
        let line = BufReader::new(stdout).lines().next_line().await.map_err(|error| error.to_string())?;
        match line.as_deref() {
            Some("tunnel ready") => Ok((up, self.clock.now().mono - started)),
            other => Err(format!("instead of being ready it says {other:?}: {}", all_of(&mut up).await)),
        }
    }

    pub(super) fn ask_to_stop(up: &Child) -> Result<(), String> {
        let pid =
            up.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?)).ok_or("it has ended")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).map_err(|error| error.to_string())
    }

    fn live_sessions(&self) -> Vec<String> {
        let live = self.emulator.sessions().into_iter().filter(|session| session.state != SessionState::Ended);
        live.map(|session| session.id).collect()
    }
}

/// Everything that a process writes to stderr until it ends.
pub(super) async fn all_of(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        // What has come is good enough.
        let _outcome = stderr.read_to_string(&mut text).await;
    }
    text
}

/// The first line that begins with one of the words that start what matters to the user.
fn first_of(text: &str, starts: &[&str]) -> String {
    let line = text.lines().find(|line| starts.iter().any(|start| line.starts_with(start)));
    line.unwrap_or_default().to_owned()
}

async fn disk_full(scene: &Scene) -> Result<ProcessRun, String> {
    let old = "apiVersion: v1\nkind: Config\nclusters: []\n";
    let path = scene.kubeconfig();
    let folder = path.parent().ok_or("a folder")?;
    fs::create_dir_all(folder).and_then(|()| fs::write(&path, old)).map_err(|error| error.to_string())?;
    // A limit on the size of files makes writes fail as a full disk does, and needs no disk.
    let mut limited = scene.command("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" up --base-port 0"]).arg(&scene.program);
    let ended = limited.output().await.map_err(|error| error.to_string())?;
    let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
    let there = fs::read_to_string(&path).map_err(|error| error.to_string())?;
    let files = fs::read_dir(folder).map_err(|error| error.to_string())?.count();
    if ended.status.code() != Some(2) || there != old || files != 1 || !scene.emulator.sessions().is_empty() {
        return Err(format!("{:?}, {files} files, {there:?}: {stderr}", ended.status));
    }
    let seen = first_of(&stderr, &["error:"]).replace(&path.display().to_string(), "/home/ann/.kube/autoheal-pa.yaml");
    let (_up, wait) = scene.up_ready().await?;
    Ok(ProcessRun { wait, seen })
}

async fn killed(scene: &Scene, seed: u64) -> Result<ProcessRun, String> {
    let events = usize::try_from(1 + seed % MOMENTS).unwrap_or(1);
    let mut killed = scene.up()?;
    scene.emulator.wait_until(|emulator| emulator.events().len() >= events).await;
    killed.kill().await.map_err(|error| error.to_string())?;
    if scene.kubeconfig().exists() {
        Kubeconfig::read_from(scene.kubeconfig()).map_err(|error| error.to_string())?;
    }
    // A session whose start had not been answered yet is known to nobody, and nobody is connected to it.
    let known = fs::read_to_string(scene.home.path().join("autoheal-pa/default/sessions")).unwrap_or_default();
    let orphans: Vec<String> = scene.live_sessions().into_iter().filter(|id| known.contains(id.as_str())).collect();
    let (mut up, wait) = scene.up_ready().await?;
    scene.emulator.wait_until(|_| scene.live_sessions().iter().all(|id| !orphans.contains(id))).await;
    Scene::ask_to_stop(&up)?;
    let stderr = all_of(&mut up).await;
    let said = first_of(&stderr, &["ended "]);
    if said.is_empty() != orphans.is_empty() {
        return Err(format!("{} orphans, and it says: {stderr}", orphans.len()));
    }
    Ok(ProcessRun { wait, seen: said })
}

async fn credentials(scene: &Scene) -> Result<ProcessRun, String> {
    let (mut up, _) = scene.up_ready().await?;
    let kubeconfig = Kubeconfig::read_from(scene.kubeconfig()).map_err(|error| error.to_string())?;
    let client = || async {
        let config = kube::Config::from_custom_kubeconfig(kubeconfig.clone(), &KubeConfigOptions::default()).await;
        let client = Client::try_from(config.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
        let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::all(client);
        pods.list(&Default::default()).await.map(|list| list.items.len()).map_err(|error| error.to_string())
    };
    client().await?;
    scene.emulator.expire_credentials();
    scene.emulator.command(&Order::CutTransport);
    let started = scene.clock.now().mono;
    // The first bearer token after the end may have been signed before the program knew.
    while client().await.is_err() {}
    let wait = scene.clock.now().mono - started;
    Scene::ask_to_stop(&up)?;
    let stderr = all_of(&mut up).await;
    let cluster = stderr.lines().find(|line| line.contains(" reconnecting")).unwrap_or_default();
    let seen = cluster.split_once(" reconnecting").map_or(String::new(), |(_, rest)| format!("reconnecting{rest}"));
    Ok(ProcessRun { wait, seen })
}

async fn replaced(scene: &Scene, trial: Trial) -> Result<ProcessRun, String> {
    let report = trial.run_in(scene).await?;
    let line = report.said.lines().find_map(|line| line.split_once(" reconnecting"));
    let seen = line.map_or("nothing", |(_, rest)| rest.trim_start_matches([':', ' '])).to_owned();
    Ok(ProcessRun { wait: report.longest, seen })
}

/// The program, which cargo puts beside the folder of the examples.
pub(crate) fn program() -> Result<PathBuf, Box<dyn std::error::Error>> {
    let example = std::env::current_exe()?;
    let folder = example.parent().and_then(Path::parent).ok_or("the example is in no folder of cargo's")?;
    let program = folder.join("autoheal-pa");
    if program.is_file() {
        Ok(program)
    } else {
        Err(format!("there is no `{}`: run `cargo build` in the same profile first", program.display()).into())
    }
}
