//! `demo`: the whole system on this machine, with an emulated AWS.
//!
//! Nothing is special about the `up` that runs here: it is this program in a process of its own, led to
//! the emulator by endpoint variables only, with a home and a kubeconfig of its own.

use std::{
    ffi::OsString,
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus, Stdio},
    time::Duration,
};

use clap::{Args, ValueEnum};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::{
    GlobalArgs, LogFormat,
    background::exit_code,
    env::shell_of,
    error::{CommandError, Kind},
    exec::{not_run, run_child},
    output::Printer,
    signals::Signals,
};
use crate::{
    emulator::{
        AgentConfig, BastionConfig, ClusterConfig, Config, ConnectEndpointConfig, EcsConfig, Emulator, FAULTS, Fault,
        SshServerConfig, Sshd, SshdConfig, TaskTimes,
    },
    kubeconfig::Files,
    manager::{background::READY_LINE, env_file::Shell},
    settings::Environment,
};

/// How long `up` may take to end its sessions.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// Sessions that a container of the demo takes: what AWS allows unless it is asked for more.
const SESSION_LIMIT: usize = 20;

/// The instance before OpenSSH's server.
const SSH_INSTANCE: &str = "i-0dc03fbcae2a87472";

/// By how much the life of the demo's tasks is faster.
const SHORTENED: u32 = 4;

#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Number of clusters; the first two are called `payments` and `search` [1 to 100]
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub clusters: u8,
    /// Kind of the bastion
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    pub bastion: DemoBastion,
    /// First local port; taken ones are skipped
    #[arg(long, value_name = "PORT", default_value_t = 10100)]
    pub base_port: u16,
    /// Fault of the emulated AWS, such as `drop-websocket=30s`; repeat it for more
    #[arg(long, value_name = "FAULT", long_help = fault_help())]
    pub fault: Vec<Fault>,
    /// A command to run with the tunnels open and KUBECONFIG set; the demo ends with its status
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// What leads to the clusters of the demo.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DemoBastion {
    /// An instance.
    #[default]
    Instance,
    /// The tasks of an ECS service.
    Ecs,
    /// A Fargate task that `up` starts; what takes about a minute takes about ten seconds.
    Fargate,
    /// An instance with OpenSSH's server, which must be installed, behind an EC2 Instance Connect Endpoint.
    Ssh,
}

fn fault_help() -> String {
    let faults = FAULTS.iter().map(|row| format!("  {:<26} {}\n", row.form, row.help));
    std::iter::once("Fault of the emulated AWS; repeat it for more:\n\n".to_owned()).chain(faults).collect()
}

/// Runs the demo until its command ends, or until a signal.
///
/// # Errors
/// The emulator cannot start, `up` fails, or the command cannot be run.
pub async fn run(args: DemoArgs, global: &GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    refuse_aws(global)?;
    let mut signals = Signals::listen()?;
    let unexpected = |what: &str| CommandError::new(Kind::Unexpected, format!("cannot {what}"));
    let dir = tempfile::Builder::new()
        .prefix("autoheal-pa-demo-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .map_err(|error| unexpected("make a temporary folder").with_source(error))?;
    let mut config = config(&args);
    // It is stopped last, so that `up` does not see it go.
    let _sshd = match args.bastion {
        DemoBastion::Ssh => Some(ssh_bastion(&mut config)?),
        DemoBastion::Instance | DemoBastion::Ecs | DemoBastion::Fargate => None,
    };
    let emulator =
        Emulator::start(config).await.map_err(|error| unexpected("start the emulated AWS").with_source(error))?;
    for fault in &args.fault {
        emulator.inject(fault);
    }
    printer.progress(&format!("the emulated AWS listens at {}", emulator.endpoint()));

    let mut up = start_up(&args, global, &emulator, &dir)?;
    let outcome = tokio::select! {
        biased;
        signal = signals.next() => Err(signal.into()),
        ended = until_ready(&mut up, printer) => ended,
    };
    let outcome = match outcome {
        Ok(None) if args.command.is_empty() => match show_what_to_do(&kubeconfig(&dir), printer) {
            Ok(()) => tokio::select! {
                biased;
                _signal = signals.next() => Ok(ExitCode::SUCCESS),
                status = up.wait() => status.map(exit_code).map_err(|error| unexpected("wait for `up`").with_source(error)),
            },
            Err(error) => Err(error),
        },
        Ok(None) => run_child(&args.command, Some(&Files::new(kubeconfig(&dir), &[])), None).await,
        Ok(Some(status)) => Ok(exit_code(status)),
        Err(error) => Err(error),
    };
    stop(up).await;
    emulator.stop().await;
    outcome
}

/// The demo's AWS is its own: options that lead to another would be ignored.
fn refuse_aws(global: &GlobalArgs) -> Result<(), CommandError> {
    let own = [("--config", global.config.is_some()), ("--name", global.name.is_some())];
    let own = own.into_iter().find_map(|(flag, given)| given.then(|| flag.to_owned()));
    match global.aws.first().or(own) {
        Some(flag) => {
            let message = format!("`{flag}` cannot be used with `demo`, which brings an AWS of its own");
            Err(CommandError::new(Kind::Usage, message).hint("use it with `autoheal-pa up`"))
        }
        None => Ok(()),
    }
}

fn config(args: &DemoArgs) -> Config {
    let name = |n: u8| match n {
        0 => "payments".to_owned(),
        1 => "search".to_owned(),
        _ => format!("demo-{}", n + 1),
    };
    let mut config =
        Config { clusters: (0..args.clusters).map(|n| ClusterConfig::new(name(n))).collect(), ..Config::default() };
    let AgentConfig { pace, oversleep, .. } = AgentConfig::paced();
    (config.agent.pace, config.agent.oversleep) = (pace, oversleep);
    match args.bastion {
        DemoBastion::Instance | DemoBastion::Ssh => {}
        DemoBastion::Ecs => {
            config.ecs = EcsConfig::with_service("tools", "bastion", 2);
            config.named_bastion = Some("ecs:tools/bastion".to_owned());
        }
        DemoBastion::Fargate => {
            config.ecs.times = short_times();
            config.named_bastion = Some("fargate".to_owned());
        }
    }
    config.ecs.session_limit = SESSION_LIMIT;
    config
}

/// Starts OpenSSH's server, and puts an instance before it that is reached as those without a public address are.
fn ssh_bastion(config: &mut Config) -> Result<Sshd, CommandError> {
    let folders = std::env::vars_os().find_map(|(name, value)| (name == "PATH").then_some(value)).unwrap_or_default();
    let program = Sshd::find(std::env::split_paths(&folders)).ok_or_else(no_sshd)?;
    let not_started =
        |error| CommandError::new(Kind::Unexpected, format!("cannot start `{}`", program.display())).with_source(error);
    let sshd =
        Sshd::start(&program, SshdConfig { out_of_reach: true, ..SshdConfig::default() }).map_err(not_started)?;
    let mut bastion = BastionConfig::new(SSH_INSTANCE);
    bastion.ssh = Some(SshServerConfig::new(sshd.address(), sshd.user(), sshd.keys_of(sshd.user())));
    bastion.console = Some(sshd.console().map_err(not_started)?);
    config.connect_endpoints = vec![ConnectEndpointConfig {
        id: "eice-0123456789abcdef0".to_owned(),
        vpc: bastion.vpc.clone(),
        subnet: "subnet-0a1b2c3d4e5f60718".to_owned(),
        dns_name: None,
        state: "create-complete".to_owned(),
    }];
    config.bastions = vec![bastion];
    config.named_bastion = Some(format!("ssh://{}@{SSH_INSTANCE}", sshd.user()));
    // The server connects to where an API server says that it is.
    for cluster in &mut config.clusters {
        cluster.local = true;
    }
    Ok(sshd)
}

fn no_sshd() -> CommandError {
    let message = "`--bastion ssh` needs `sshd`, which is neither in `PATH` nor in `/usr/sbin` or `/usr/local/sbin`";
    CommandError::new(Kind::Usage, message)
        .hint("install OpenSSH's server, which need not run: `apt install openssh-server`, or `dnf install openssh-server`")
        .hint("the other kinds need nothing: `autoheal-pa demo --bastion instance`")
}

/// About what tasks take, shortened.
fn short_times() -> TaskTimes {
    let TaskTimes { unseen, provisioning, pending, activating, agent, connection, deactivating, stopping, .. } =
        TaskTimes::real();
    TaskTimes {
        unseen: unseen / SHORTENED,
        provisioning: provisioning / SHORTENED,
        pending: pending / SHORTENED,
        activating: activating / SHORTENED,
        agent: agent / SHORTENED,
        connection: connection / SHORTENED,
        deactivating: deactivating / SHORTENED,
        stopping: stopping / SHORTENED,
        ..TaskTimes::real()
    }
}

fn kubeconfig(dir: &TempDir) -> PathBuf {
    dir.path().join("kubeconfig")
}

/// Starts this program's `up` with nothing but the emulator in its environment, and out of reach of the
/// terminal's Ctrl-C, which is for the command.
fn start_up(args: &DemoArgs, global: &GlobalArgs, emulator: &Emulator, dir: &TempDir) -> Result<Child, CommandError> {
    let program = Environment::read()
        .executable
        .ok_or_else(|| CommandError::new(Kind::Unexpected, "cannot find the path of this program"))?;
    let kept = std::env::vars_os()
        .filter(|(name, _)| ["PATH", "TERM", "NO_COLOR", "LANG", "LC_ALL"].iter().any(|kept| name == kept));
    Command::new(&program)
        .args(std::iter::repeat_n("-v", usize::from(global.verbose)))
        .args(["--log-format", if global.log_format == LogFormat::Json { "json" } else { "text" }])
        .args(["up", "--name", "demo", "--base-port"])
        .arg(args.base_port.to_string())
        .arg("--kubeconfig")
        .arg(kubeconfig(dir))
        .env_clear()
        .envs(kept)
        .env("HOME", dir.path())
        .env("XDG_RUNTIME_DIR", dir.path())
        .envs(emulator.environment())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| not_run(program.as_os_str(), error))
}

/// Waits until the tunnels are ready, or `up` has ended with a status.
async fn until_ready(up: &mut Child, printer: &Printer) -> Result<Option<ExitStatus>, CommandError> {
    let out = up.stdout.take().expect("stdout is piped");
    let mut lines = BufReader::new(out).lines();
    loop {
        match lines.next_line().await {
            Ok(Some(line)) if line == READY_LINE => return Ok(None),
            Ok(Some(line)) => printer.progress(&line),
            Ok(None) | Err(_) => {
                let failed = |error| CommandError::new(Kind::Unexpected, "cannot wait for `up`").with_source(error);
                return up.wait().await.map(Some).map_err(failed);
            }
        }
    }
}

fn show_what_to_do(kubeconfig: &Path, printer: &Printer) -> Result<(), CommandError> {
    printer.result(READY_LINE)?;
    printer.progress("in another shell:");
    let export =
        shell_of(&Environment::read()).unwrap_or(Shell::Bash).export("KUBECONFIG", &kubeconfig.display().to_string());
    printer.progress(&format!("  {}", export.trim_end()));
    printer.progress("  kubectl --context pa-payments get pods -A");
    printer.progress("Ctrl-C stops");
    Ok(())
}

async fn stop(mut up: Child) {
    terminate(&up);
    if timeout(STOP_LIMIT, up.wait()).await.is_err() {
        // It is killed when it is dropped.
        tracing::warn!("`up` did not stop in time");
    }
}

fn terminate(child: &Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended by itself.
        let _outcome = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}
