//! The other processes: this program in its other roles, and `autoheal-pa`. Each ends when it is dropped.
//!
//! A role also ends when its stdin does, so that none is left behind whatever becomes of this process.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use autoheal_pa::clock::Clock;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Serialize, de::DeserializeOwned};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::oneshot,
};

use super::{BoxError, emulator::World, load::within, measure::Usage};
use super::{bare, destination, emulator, least};

/// What `up` prints when every tunnel works.
const READY_LINE: &str = "tunnel ready";

/// Where the processes come from, and where they may write.
pub(crate) struct Workshop {
    this: PathBuf,
    program: PathBuf,
    folder: TempDir,
}

impl Workshop {
    /// Finds the program, which cargo puts beside the folder of the examples.
    ///
    /// # Errors
    /// If it is not there.
    pub(crate) fn new() -> Result<Self, BoxError> {
        let this = std::env::current_exe()?;
        let folder = this.parent().and_then(Path::parent).ok_or("the example is in no folder of cargo's")?;
        let program = folder.join("autoheal-pa");
        if !program.is_file() {
            let program = program.display();
            return Err(format!("there is no `{program}`: run `cargo build` in the same profile first").into());
        }
        Ok(Self { this, program, folder: tempfile::Builder::new().prefix("bench-").tempdir()? })
    }

    /// Makes an empty home.
    pub(crate) fn home(&self) -> io::Result<PathBuf> {
        Ok(tempfile::Builder::new().tempdir_in(self.folder.path())?.keep())
    }

    /// Starts this program in another role, with a home of its own.
    async fn role<T: DeserializeOwned>(&self, args: &[String]) -> Result<Role<T>, BoxError> {
        start(&self.this, &self.home()?, args).await
    }

    /// Starts an emulated AWS.
    pub(crate) async fn emulator(&self, world: &World) -> Result<Role<emulator::Hello>, BoxError> {
        let mut args = vec!["emulator".to_owned()];
        args.extend(world.to_args());
        if world.sshd.is_none() {
            return self.role(&args).await;
        }
        // A server that is somebody else's has to come to its files, which it does not in a folder of ours.
        let mut command = command(&self.this, &self.home()?);
        command.env_remove("TMPDIR");
        start_command(command, &args).await
    }

    /// Starts both halves of the bare WebSocket; returns the server and the client.
    pub(crate) async fn bare(
        &self,
        aws: &emulator::Hello,
        delay: Duration,
    ) -> Result<(Role<bare::ServerHello>, Role<bare::ClientHello>), BoxError> {
        let delay = delay.as_millis().to_string();
        let server = ["bare-server".to_owned(), aws.destination.to_string(), delay];
        let server: Role<bare::ServerHello> = self.role(&server).await?;
        let client = ["bare-client".to_owned(), server.hello.address.to_string(), aws.relay.to_string()];
        let client = self.role(&client).await?;
        Ok((server, client))
    }

    /// Starts the least client, for which the emulated AWS has a session.
    pub(crate) async fn least(&self, aws: &emulator::Hello) -> Result<Role<least::Hello>, BoxError> {
        let least::Start { url, token } = aws.least.clone().ok_or("there is no session for it")?;
        self.role(&["least-client".to_owned(), url, token]).await
    }

    /// Runs the program to its end. Returns how long that took.
    pub(crate) async fn run(
        &self,
        home: &Path,
        variables: &[(String, String)],
        args: &[&str],
    ) -> Result<Duration, BoxError> {
        let mut command = command(&self.program, home);
        command.envs(variables.iter().map(|(name, value)| (name, value))).args(args).stdin(Stdio::null());
        let clock = Clock::start();
        let output = within(args[0], command.output()).await?;
        let took = clock.now().mono;
        if output.status.success() {
            Ok(took)
        } else {
            Err(format!("`{}` failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)).into())
        }
    }

    /// Starts `autoheal-pa up` in a home of its own, and waits for its line.
    pub(crate) async fn up(&self, aws: &emulator::Hello, args: &[&str]) -> Result<Up, BoxError> {
        let home = self.home()?;
        let log = home.join("log");
        let mut command = command(&self.program, &home);
        command.envs(aws.environment.iter().map(|(name, value)| (name, value)));
        command.args(["up", "--base-port", "0"]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let clock = Clock::start();
        let mut child = command.spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().ok_or("there is no pipe")?);
        let mut line = String::new();
        within("`up`", stdout.read_line(&mut line)).await?;
        let ready_after = clock.now().mono;
        if line.trim_end() != READY_LINE {
            return Err(format!("`up` failed: {}", std::fs::read_to_string(log)?).into());
        }
        let address = address_in(&std::fs::read_to_string(home.join(".kube/autoheal-pa.yaml"))?, &aws.cluster);
        let address = address.ok_or_else(|| format!("the kubeconfig does not name `{}`", aws.cluster))?;
        Ok(Up { child, home, log, address, ready_after })
    }
}

/// A program that gets no variables but those of its home.
pub(crate) fn command(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", home).env("XDG_RUNTIME_DIR", home).env("TMPDIR", home).kill_on_drop(true);
    command
}

/// Starts this program in another role, and waits until it says that it is there.
async fn start<T: DeserializeOwned>(this: &Path, home: &Path, args: &[String]) -> Result<Role<T>, BoxError> {
    start_command(command(this, home), args).await
}

async fn start_command<T: DeserializeOwned>(mut command: Command, args: &[String]) -> Result<Role<T>, BoxError> {
    // It ends when its stdin does, and what it has started with it: that would stay if it were killed.
    let mut child = command.args(args).kill_on_drop(false).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().ok_or("there is no pipe")?);
    within(&args[0], stdout.read_line(&mut line)).await?;
    let hello = serde_json::from_str(&line).map_err(|_| format!("`{}` ended at once", args.join(" ")))?;
    Ok(Role { child, hello })
}

/// Starts the destination, which hands connections that speak TLS on to the API server.
pub(crate) async fn start_destination(
    api_server: SocketAddr,
    at: Option<SocketAddr>,
) -> Result<Role<destination::Hello>, BoxError> {
    let args: Vec<_> = std::iter::once("destination".to_owned())
        .chain([api_server].into_iter().chain(at).map(|a| a.to_string()))
        .collect();
    start(&std::env::current_exe()?, &std::env::temp_dir(), &args).await
}

/// Where the tunnel of a cluster listens, by the kubeconfig.
fn address_in(kubeconfig: &str, cluster: &str) -> Option<SocketAddr> {
    let kubeconfig: serde_json::Value = serde_yaml::from_str(kubeconfig).ok()?;
    let named = |entry: &&serde_json::Value| {
        entry["name"]
            .as_str()
            .is_some_and(|name| name.strip_prefix("pa-") == Some(cluster) || name.ends_with(&format!("/{cluster}")))
    };
    let server = kubeconfig["clusters"].as_array()?.iter().find(named)?["cluster"]["server"].as_str()?;
    let port = server.rsplit(':').next()?.trim_end_matches('/').parse().ok()?;
    Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

/// A process that plays another role of this program.
pub(crate) struct Role<T> {
    child: Child,
    /// What it has said.
    pub(crate) hello: T,
}

impl<T> Role<T> {
    /// What it has used so far.
    pub(crate) fn usage(&self) -> Result<Usage, BoxError> {
        usage(&self.child)
    }
}

pub(crate) fn usage(child: &Child) -> Result<Usage, BoxError> {
    Ok(Usage::of(child.id().ok_or("the process has ended")?)?)
}

/// A running `autoheal-pa up`.
pub(crate) struct Up {
    child: Child,
    /// Its home, by which other commands find it.
    pub(crate) home: PathBuf,
    /// The file of its stderr.
    pub(crate) log: PathBuf,
    /// Where the tunnel of the first cluster listens.
    pub(crate) address: SocketAddr,
    /// From the start of the process to the line that says that the tunnels are ready.
    pub(crate) ready_after: Duration,
}

impl Up {
    /// What it has used so far.
    pub(crate) fn usage(&self) -> Result<Usage, BoxError> {
        usage(&self.child)
    }

    /// Ends it in good order.
    pub(crate) async fn stop(mut self) -> Result<(), BoxError> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).ok_or("`up` has ended")?;
        kill_process(pid, Signal::TERM)?;
        within("the end of `up`", self.child.wait()).await?;
        Ok(())
    }
}

/// What a role says to whoever has started it.
pub(crate) fn say(hello: &impl Serialize) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(hello)?)?;
    stdout.flush()
}

/// Waits until whoever has started this role lets go of it.
pub(crate) async fn released() {
    let (sender, ended) = oneshot::channel();
    // A thread, as a read from stdin cannot be taken back.
    std::thread::spawn(move || {
        let _read = io::stdin().read_to_end(&mut Vec::new());
        let _unheard = sender.send(());
    });
    let _ended = ended.await;
}
