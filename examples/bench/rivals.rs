//! Other programs that forward a port through a session, each in a process of its own.

use std::{
    fs::File,
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use autoheal_pa::clock::Clock;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};

use super::{
    BoxError,
    destination::bind,
    emulator::{self, BASTION},
    load::{REQUEST, open_one, within},
    measure::Usage,
    processes::{Workshop, command},
};

/// How often one is started, and how long it may take to lead anywhere but for the last time.
const STARTS: usize = 3;
const START_LIMIT: Duration = Duration::from_secs(15);

/// Where they are, as far as somebody has them.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Programs {
    /// Tunnel of the library aws-ssm-bridge, built from `tests/peers/aws-ssm-bridge`
    #[arg(long, value_name = "PATH")]
    pub(crate) bridge: Option<PathBuf>,
    /// The official session-manager-plugin, which the AWS CLI on the PATH starts
    #[arg(long, value_name = "PATH")]
    pub(crate) plugin: Option<PathBuf>,
}

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct Rival {
    /// With its version.
    pub(crate) name: String,
    how: How,
}

#[derive(Debug, Clone)]
enum How {
    Bridge(PathBuf),
    AwsCli { plugin: PathBuf },
}

impl Programs {
    /// Finds out which there are, and their versions.
    ///
    /// # Errors
    /// If one that was named does not run.
    pub(crate) async fn find(&self, workshop: &Workshop) -> Result<Vec<Rival>, BoxError> {
        let home = workshop.home()?;
        let mut rivals = Vec::new();
        if let Some(path) = &self.bridge {
            let name = first_line(command(path, &home).arg("--version")).await?;
            rivals.push(Rival { name, how: How::Bridge(path.clone()) });
        }
        if let Some(plugin) = &self.plugin {
            let version = first_line(command(plugin, &home).arg("--version")).await?;
            let cli = first_line(aws_cli(plugin, &home)?.arg("--version")).await?;
            let cli = cli.split_whitespace().next().unwrap_or_default().replace('/', " ");
            let name = format!("session-manager-plugin {version} ({cli})");
            rivals.push(Rival { name, how: How::AwsCli { plugin: plugin.clone() } });
        }
        if rivals.is_empty() {
            writeln!(io::stderr(), "no rival was named: see `--bridge` and `--plugin`")?;
        }
        Ok(rivals)
    }
}

async fn first_line(command: &mut Command) -> Result<String, BoxError> {
    let output = within("a version", command.stdin(Stdio::null()).output()).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next().map(str::trim).filter(|line| output.status.success() && !line.is_empty());
    line.map(str::to_owned).ok_or_else(|| "a rival does not say its version".into())
}

/// The AWS CLI with a plugin on its path.
#[expect(clippy::disallowed_methods, reason = "programs are found by it")]
fn aws_cli(plugin: &std::path::Path, home: &std::path::Path) -> Result<Command, BoxError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folder = plugin.parent().ok_or("the plugin is in no folder")?.to_owned();
    let folders: Vec<PathBuf> = std::iter::once(folder).chain(std::env::split_paths(&path)).collect();
    let cli = folders.iter().map(|folder| folder.join("aws")).find(|program| program.is_file());
    let mut command = command(&cli.ok_or("there is no `aws` on the PATH")?, home);
    command.env("PATH", std::env::join_paths(folders)?);
    Ok(command)
}

/// A process with all that it has started. They end when it is dropped.
struct Group(Child);

impl Drop for Group {
    /// The AWS CLI has the plugin as its child.
    fn drop(&mut self) {
        let group = self.0.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        let _gone = group.map(|group| kill_process_group(group, Signal::KILL));
    }
}

/// A running one. It ends when it is dropped.
pub(crate) struct Running {
    group: Group,
    /// Read no more, and not closed: whoever writes to it goes on.
    _stdout: Lines<BufReader<ChildStdout>>,
    pub(crate) address: SocketAddr,
    /// From the start of the process to the first answer through it.
    pub(crate) ready_after: Duration,
}

impl Running {
    /// What it has used so far, with what it has started.
    pub(crate) fn usage(&self) -> Result<Usage, BoxError> {
        Ok(Usage::of_group(self.group.0.id().ok_or("the process has ended")?)?)
    }
}

impl Rival {
    /// Starts one to a cluster, and waits until it leads there. One that does not is started again: somebody may have taken
    /// its port meanwhile.
    ///
    /// # Errors
    /// If it does not.
    pub(crate) async fn start(
        &self,
        workshop: &Workshop,
        aws: &emulator::Hello,
        host: &str,
    ) -> Result<Running, BoxError> {
        for _ in 1..STARTS {
            if let Ok(started) = timeout(START_LIMIT, self.start_once(workshop, aws, host)).await {
                return started;
            }
        }
        self.start_once(workshop, aws, host).await
    }

    async fn start_once(&self, workshop: &Workshop, aws: &emulator::Hello, host: &str) -> Result<Running, BoxError> {
        let home = workshop.home()?;
        let log = home.join("log");
        let (mut program, port) = match &self.how {
            How::Bridge(path) => {
                let mut program = command(path, &home);
                program.args([BASTION, host, "443"]);
                (program, None)
            }
            How::AwsCli { plugin } => {
                let mut program = aws_cli(plugin, &home)?;
                // It says only that it listens, on the port that it was given.
                let (_, address) = bind().await?;
                let parameters = format!("host={host},portNumber=443,localPortNumber={}", address.port());
                program.args(["ssm", "start-session", "--target", BASTION, "--document-name"]);
                program.args(["AWS-StartPortForwardingSessionToRemoteHost", "--parameters", &parameters]);
                (program, Some(address))
            }
        };
        program.envs(aws.environment.iter().map(|(name, value)| (name, value)));
        // The first version of the AWS CLI knows its region by another name.
        let region = aws.environment.iter().find(|(name, _)| name == "AWS_REGION");
        program.envs(region.map(|(_, region)| ("AWS_DEFAULT_REGION", region)));
        // What it starts has to end with it.
        program.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let clock = Clock::start();
        let mut group = Group(program.spawn()?);
        let mut lines = BufReader::new(group.0.stdout.take().ok_or("there is no pipe")?).lines();
        let address = match port {
            Some(address) => address,
            None => {
                let line = within(&self.name, lines.next_line()).await?;
                let line = line.ok_or_else(|| std::fs::read_to_string(&log).unwrap_or_default())?;
                line.trim().parse()?
            }
        };
        let leads = async {
            while open_one(address, REQUEST).await.is_err() {
                if group.0.try_wait()?.is_some() {
                    return Err(BoxError::from(std::fs::read_to_string(&log)?));
                }
                sleep(Duration::from_millis(1)).await;
            }
            Ok(clock.now().mono)
        };
        let ready_after = within(&self.name, leads).await?;
        Ok(Running { group, _stdout: lines, address, ready_after })
    }
}
