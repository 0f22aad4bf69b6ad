//! An emulated AWS with a home of its own, and the program in a process of its own.

use std::{
    ffi::OsStr,
    future::Future,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use autoheal_pa::emulator::{Config, Emulator, Event, SessionInfo, SessionState};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, ChildStdin, Command},
    sync::watch,
};

/// Longest wait for anything. Machines are shared, so it says nothing about speed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(300);

/// Awaits something that has to come.
#[track_caller]
pub(crate) fn within<F: Future>(what: &str, future: F) -> impl Future<Output = F::Output> {
    let place = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(DEADLINE, future).await {
            Ok(output) => output,
            Err(_) => panic!("{place}: waited in vain for {what}"),
        }
    }
}

/// The emulated AWS, and a home for the program.
pub(crate) struct Lab {
    pub(crate) emulator: Emulator,
    pub(crate) home: TempDir,
}

impl Lab {
    pub(crate) async fn start(config: Config) -> Self {
        let emulator = Emulator::start(config).await.expect("the emulator starts");
        Self { emulator, home: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A lab whose emulator can still be reached from a test that has moved on.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.path(".kube/autoheal-pa.yaml")
    }

    /// A command with the lab's variables and no other.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.bare_command(program);
        command.envs(self.emulator.environment());
        command
    }

    /// A command with a home and a path, and nothing that leads to the emulator.
    pub(crate) fn bare_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", path_variable())
            .env("HOME", self.home.path())
            .env("XDG_RUNTIME_DIR", self.home.path())
            // Without a home kubectl writes into the folder that it is started in.
            .env("KUBECACHEDIR", self.home.path().join("kubectl-cache"))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// The program with arguments.
    pub(crate) fn program(&self, args: &[&str]) -> Command {
        let mut command = self.command(PROGRAM);
        command.args(args);
        command
    }

    /// Runs the program to its end.
    pub(crate) async fn run(&self, args: &[&str]) -> Ended {
        Running::start(&mut self.program(args)).ended().await
    }

    /// Starts `up` on free ports and waits until its tunnels are ready.
    pub(crate) async fn up(&self, args: &[&str]) -> Running {
        let mut up = self.start_up(args);
        up.ready().await;
        up
    }

    /// Starts `up` on free ports.
    pub(crate) fn start_up(&self, args: &[&str]) -> Running {
        Running::start(self.program(&["up", "--base-port", "0"]).args(args))
    }

    /// Runs `up --detach` on free ports until it returns, and sees to the manager that it has left in the background.
    pub(crate) async fn detach(&self, args: &[&str]) -> (Ended, Background) {
        let ended = Running::start(self.program(&["up", "--detach", "--base-port", "0"]).args(args)).ended().await;
        let name = args.iter().position(|arg| *arg == "--name").map_or("default", |at| args[at + 1]);
        (ended, self.background(name))
    }

    /// The manager of a name that is in the background, or has been.
    pub(crate) fn background(&self, name: &str) -> Background {
        Background { lock: self.path("autoheal-pa").join(name).join("lock") }
    }

    /// What `status --json` says.
    pub(crate) async fn status(&self, args: &[&str]) -> serde_json::Value {
        let ended = Running::start(self.program(&["status", "--json"]).args(args)).ended().await;
        serde_json::from_str(ended.assert_success()).expect("it is JSON")
    }

    /// Starts the example `forward` to a destination that the agent knows as `name`, `host:port`. Returns its
    /// local port as well.
    pub(crate) async fn forward(&self, name: &str, destination: SocketAddr, args: &[&str]) -> (Running, u16) {
        self.emulator.route(name, destination);
        let (host, port) = name.rsplit_once(':').expect("host and port");
        let mut command = self.command(example("forward"));
        command.args(["--target", "i-0dc03fbcae2a87472", "--host", host, "--port", port]).args(args);
        let mut forward = Running::start(&mut command);
        forward.ready().await;
        let stderr = forward.stderr_so_far();
        let local = stderr.lines().find_map(|line| line.strip_prefix("listening on 127.0.0.1:"));
        let local = local.and_then(|port| port.parse().ok()).expect("it says where it listens");
        (forward, local)
    }

    /// Awaits a condition on the emulator.
    #[track_caller]
    pub(crate) fn wait_until<'a>(
        &'a self,
        what: &'a str,
        condition: impl FnMut(&Emulator) -> bool + 'a,
    ) -> impl Future<Output = ()> + 'a {
        within(what, self.emulator.wait_until(condition))
    }

    /// How many events are of a kind.
    pub(crate) fn count(&self, matches: impl Fn(&Event) -> bool) -> usize {
        self.emulator.events().iter().filter(|event| matches(event)).count()
    }

    /// Every session has ended, or is about to, as the service answers before it has ended one; and no rule of the
    /// protocol was broken.
    pub(crate) async fn assert_clean(&self) {
        self.wait_until("the sessions to end", |emulator| emulator.sessions().iter().all(has_ended)).await;
        assert_eq!(self.emulator.violations(), Vec::<String>::new());
    }
}

/// Whether a session is over.
pub(crate) fn has_ended(session: &SessionInfo) -> bool {
    session.state == SessionState::Ended
}

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_autoheal-pa");

/// Path of an example that cargo has built beside the program.
pub(crate) fn example(name: &str) -> PathBuf {
    let path = Path::new(PROGRAM).parent().expect("a folder").join("examples").join(name);
    assert!(path.exists(), "`cargo test` without `--test` builds the examples, and so does `cargo build --examples`");
    path
}

#[expect(clippy::disallowed_methods, reason = "programs of the system are found by it")]
pub(crate) fn path_variable() -> std::ffi::OsString {
    std::env::var_os("PATH").unwrap_or_default()
}

/// Finds a program as a shell does.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&path_variable()).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// The real kubectl, if there is one. In the gate there has to be.
#[expect(clippy::disallowed_methods, reason = "the gate asks for it by a variable")]
pub(crate) fn kubectl() -> Option<PathBuf> {
    let found = on_path("kubectl");
    let required = std::env::var_os("AUTOHEAL_PA_TEST_REQUIRES_KUBECTL").is_some();
    assert!(found.is_some() || !required, "kubectl is not on the PATH");
    found
}

/// The real AWS CLI of the version that the expectations are of, if there is one. In the gate there has to be.
#[expect(clippy::disallowed_methods, reason = "the gate asks for it by a variable")]
pub(crate) async fn aws_cli(version: &str) -> Option<PathBuf> {
    let required = std::env::var_os("AUTOHEAL_PA_TEST_REQUIRES_AWSCLI").is_some();
    for dir in std::env::split_paths(&path_variable()) {
        let path = dir.join("aws");
        let output = Command::new(&path).arg("--version").output().await;
        if output
            .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).starts_with(&format!("aws-cli/{version} ")))
        {
            return Some(path);
        }
    }
    assert!(!required, "awscli {version} is not on the PATH");
    None
}

/// The server of moto of the version that the expectations are of, as the gate installs it. In the gate there has to be one.
#[expect(clippy::disallowed_methods, reason = "the gate asks for it by a variable")]
pub(crate) async fn moto_server(version: &str) -> Option<PathBuf> {
    let mut found = None;
    for path in std::env::split_paths(&path_variable()).map(|dir| dir.join("moto_server")) {
        let output = Command::new(&path).arg("--version").stdin(Stdio::null()).output().await;
        if output.is_ok_and(|output| output.stdout == format!("moto/{version}\n").as_bytes()) {
            found = Some(path);
            break;
        }
    }
    let required = std::env::var_os("AUTOHEAL_PA_TEST_REQUIRES_MOTO").is_some();
    assert!(found.is_some() || !required, "moto {version} is not on the PATH");
    if found.is_none() {
        // Past the test runner, which keeps back what passing tests print.
        let _written = writeln!(std::io::stderr(), "SKIPPED: there is no moto {version} to call EC2 and ECS of");
    }
    found
}

/// Whether this can make programs of other users. In the gate it has to be.
#[expect(clippy::disallowed_methods, reason = "the gate asks for it by a variable")]
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    let required = std::env::var_os("AUTOHEAL_PA_TEST_REQUIRES_ROOT").is_some();
    assert!(root || !required, "these tests need root");
    if !root {
        // Past the test runner, which keeps back what passing tests print.
        let _written = writeln!(std::io::stderr(), "SKIPPED: tests with programs of other users need root");
    }
    root
}

/// A manager that is nobody's child. It is killed if a test ends before it.
pub(crate) struct Background {
    lock: PathBuf,
}

impl Background {
    /// Its process id, if it is running.
    pub(crate) fn pid(&self) -> Option<Pid> {
        let file = std::fs::File::open(&self.lock).ok()?;
        if file.try_lock_shared().is_ok() {
            return None;
        }
        let text = std::fs::read_to_string(&self.lock).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    /// Waits until it has given up its lock.
    pub(crate) async fn ended(&self) {
        let file = std::fs::File::open(&self.lock).expect("there has been one");
        let locked = tokio::task::spawn_blocking(move || file.lock_shared());
        within("the manager's end", locked).await.expect("no panic").expect("a lock");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid().expect("it is running"), signal).expect("the process can be signalled");
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _gone = kill_process(pid, Signal::KILL);
        }
    }
}

/// Replaces what differs from run to run: times, ports, ids, paths and round trips.
pub(crate) fn steady(lab: &Lab, text: &str) -> String {
    let text = text.replace(&lab.home.path().display().to_string(), "[HOME]");
    let mut steady = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let mut words = Vec::new();
        for word in line.split(' ') {
            words.push(steady_word(word));
        }
        steady.push_str(&words.join(" "));
    }
    steady
}

fn steady_word(word: &str) -> String {
    if let Some((before, rest)) = word.split_once("127.0.0.1:") {
        let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        return format!("{before}127.0.0.1:[PORT]{after}");
    }
    let core = word.trim_matches(|c: char| matches!(c, ',' | '`' | '\n' | ':'));
    let is_time = core.len() == 20 && core.ends_with('Z') && core.as_bytes()[10] == b'T';
    if is_time { word.replace(core, "[TIME]") } else { word.to_owned() }
}

/// A process that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    #[track_caller]
    pub(crate) fn assert_success(&self) -> &str {
        assert!(self.status.success(), "{self:#?}");
        &self.stdout
    }
}

/// A process under way, whose output is collected.
pub(crate) struct Running {
    pub(crate) child: Child,
    stdout: Collected,
    stderr: Collected,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = Collected::start(child.stdout.take().expect("stdout is piped"));
        let stderr = Collected::start(child.stderr.take().expect("stderr is piped"));
        Self { child, stdout, stderr }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("the process is running")
    }

    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("stdin is piped")
    }

    /// Waits for the line that says that every tunnel works.
    pub(crate) async fn ready(&mut self) {
        if !self.stdout.has_line("tunnel ready").await {
            let Ended { status, stdout, stderr } = self.wait().await;
            panic!("ended with {status} before it was ready\n{stdout}\n{stderr}");
        }
    }

    /// Waits for text on stderr; false if the process closes it first.
    pub(crate) async fn says(&mut self, text: &str) -> bool {
        self.stderr.has_line_with(text).await
    }

    /// Waits for text on stdout; false if the process closes it first.
    pub(crate) async fn prints(&mut self, text: &str) -> bool {
        self.stdout.has_line_with(text).await
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("the process can be signalled");
    }

    pub(crate) async fn ended(mut self) -> Ended {
        self.wait().await
    }

    /// Asks for an end in good order and waits for it.
    pub(crate) async fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        self.ended().await
    }

    async fn wait(&mut self) -> Ended {
        let status = within("the process to end", self.child.wait()).await.expect("the process can be awaited");
        Ended { status, stdout: self.stdout.all().await, stderr: self.stderr.all().await }
    }

    pub(crate) fn stdout_so_far(&self) -> String {
        self.stdout.text.lock().expect("no test panics with it").clone()
    }

    pub(crate) fn stderr_so_far(&self) -> String {
        self.stderr.text.lock().expect("no test panics with it").clone()
    }
}

/// Lines of a pipe, as they come.
struct Collected {
    text: Arc<Mutex<String>>,
    /// Bytes so far, and whether that is all.
    seen: watch::Receiver<(usize, bool)>,
    _reader: tokio::task::JoinSet<()>,
}

impl Collected {
    fn start(pipe: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let (sender, seen) = watch::channel((0, false));
        let mut reader = tokio::task::JoinSet::new();
        let collected = Arc::clone(&text);
        reader.spawn(async move {
            let mut lines = BufReader::new(pipe).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let len = {
                    let mut text = collected.lock().expect("no test panics with it");
                    text.push_str(&line);
                    text.push('\n');
                    text.len()
                };
                // Not under the lock, which those who wait take while they hold the channel's.
                sender.send_replace((len, false));
            }
            sender.send_modify(|seen| seen.1 = true);
        });
        Self { text, seen, _reader: reader }
    }

    async fn has_line(&mut self, line: &str) -> bool {
        self.has(line, |text| text.lines().any(|other| other == line)).await
    }

    async fn has_line_with(&mut self, part: &str) -> bool {
        self.has(part, |text| text.contains(part)).await
    }

    async fn has(&mut self, what: &str, condition: impl Fn(&str) -> bool) -> bool {
        let text = Arc::clone(&self.text);
        let holds = || condition(&text.lock().expect("no test panics with it"));
        let found = within(what, self.seen.wait_for(|seen| seen.1 || holds())).await.is_ok();
        found && holds()
    }

    async fn all(&mut self) -> String {
        // The sender is gone when everything has been read.
        let _all = within("the pipe to close", self.seen.wait_for(|seen| seen.1)).await;
        self.text.lock().expect("no test panics with it").clone()
    }
}
