//! `exec -- CMD`: runs one command under the tunnels, and ends with its status.
//!
//! A manager of the same name that is running is used, and left running. Otherwise this process is the manager, under
//! a name of its own: commands side by side do not end each other's tunnels. Its kubeconfig is in its own directory,
//! so nothing is left of it anywhere else.
//!
//! Invariants: whatever becomes of the command, the sessions are ended before this process ends; signals that ask for
//! an end go to the command, which decides.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use rustix::process::{Pid, getpgrp, kill_process};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

use super::{
    background::exit_code,
    doctor, env,
    error::{CommandError, Kind, name_option},
    events::shown,
    limits,
    output::Printer,
    progress::{failure, in_time, until_ready},
    signals::{Signal, Signals},
};
use crate::{
    kubeconfig::Files,
    manager::{
        Manager, Requests,
        control::{Answer, Client, ControlError, ManagerStatus, Request, TunnelReport},
        env_file::{no_proxy, own_proxy},
    },
    settings::{Environment, GlobalArgs, ProxyPlace, Settings, UpArgs, UpSettings, Wanted},
    util::quote::command,
};

/// How many commands run side by side under tunnels of their own.
const MAX_SLOTS: u32 = 1000;

#[derive(Debug, Clone, Default, Args)]
pub struct ExecArgs {
    /// Options of the tunnels.
    #[command(flatten)]
    pub up: UpArgs,
    /// The command to run, with KUBECONFIG set, and with `--proxy` the variables of `autoheal-pa env --proxy`
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Runs the command.
///
/// # Errors
/// The tunnels cannot be had in time, or the command cannot be run.
pub(super) async fn run(args: ExecArgs, global: GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    refuse(&args.up)?;
    let environment = Environment::read();
    let mut signals = Signals::listen()?;
    let common = Settings::without_file(&global, &environment)?;
    match Client::connect_if_it_answers(&common.control_dir).await {
        Ok(client) => {
            let wanted = Wanted::load(&args.up)?;
            let found = tokio::select! {
                biased;
                signal = signals.next() => return Err(signal.into()),
                ready = running(client, &wanted, printer) => ready?,
            };
            drop(signals);
            let proxy = match args.up.wants_proxy() {
                true => Some(env::proxy_of(Some(&found.status), &common.name)?.address.as_str()),
                false => None,
            };
            run_child(&args.command, found.kubeconfigs.as_ref(), proxy).await
        }
        Err(ControlError::NotRunning { .. }) => {
            let mut settings = UpSettings::load(&global, &args.up, &environment)?;
            // That of the configuration file is for a manager that stays.
            settings.common.kubeconfig_given = args.up.has_kubeconfig();
            // Nobody is told of this manager, so nobody asks anything of it.
            let (manager, _requests) = bind(settings, printer)?;
            under(manager, signals, &args.command, printer).await
        }
        Err(error) => Err(error.into()),
    }
}

/// Options of `up` that mean nothing here would be ignored.
fn refuse(up: &UpArgs) -> Result<(), CommandError> {
    let given = [("--detach", up.detach), ("--github-env", up.github_env), ("--env-file", up.has_env_file())];
    match given.iter().find(|(_, given)| *given) {
        Some((option, _)) => {
            let message = format!("`{option}` cannot be used with `exec`, whose tunnels close with the command");
            Err(CommandError::new(Kind::Usage, message).hint("use it with `autoheal-pa up`"))
        }
        None => Ok(()),
    }
}

/// A running manager whose tunnels work.
struct Found {
    status: Box<ManagerStatus>,
    /// `None`: it has forwards alone.
    kubeconfigs: Option<Files>,
}

/// Waits until the tunnels of a running manager that are wanted work.
async fn running(mut client: Client, wanted: &Wanted, printer: &Printer) -> Result<Found, CommandError> {
    client.send(&Request::Status { follow: true }).await?;
    let mut last: Option<Box<ManagerStatus>> = None;
    let ready = async {
        while let Some(answer) = client.next().await? {
            let Answer::Status(status) = answer else { continue };
            if last.is_none() {
                printer.progress(&format!("using the running manager `{}`, process {}", status.name, status.pid));
            }
            if status.state == "stopping" {
                break;
            }
            if status.opened || status.kubeconfig.is_some() {
                if let Some(unknown) = unknown(&status, wanted) {
                    let message = format!("the running manager `{}` has no tunnel to {unknown}", status.name);
                    return Err(CommandError::new(Kind::NotFound, message)
                        .hint("make it look for clusters again with `autoheal-pa reload`, or give another `--name`"));
                }
                if waiting(&status, wanted).next().is_none() {
                    let own = status.kubeconfig.as_ref().map(PathBuf::from);
                    let kubeconfigs = own.map(|own| env::files(own, &status));
                    return Ok(Found { status, kubeconfigs });
                }
            }
            last = Some(status);
        }
        Err(CommandError::new(Kind::Tunnel, "the running manager is stopping").hint("run it again"))
    };
    match timeout(wanted.timeout, ready).await {
        Ok(found) => found,
        Err(_) => Err(not_active(last.as_deref(), wanted)),
    }
}

/// Says which of those that are wanted the manager does not have.
fn unknown(status: &ManagerStatus, Wanted { clusters, contexts, forwards, .. }: &Wanted) -> Option<String> {
    let knows = |name: &String, imported: bool| {
        let is_it = |tunnel: &TunnelReport| tunnel.cluster == *name && tunnel.imported == imported;
        status.tunnels.iter().filter(|tunnel| tunnel.forward.is_none()).any(is_it)
    };
    let forwards_to =
        |name: &String| status.tunnels.iter().any(|tunnel| tunnel.forward.is_some() && tunnel.cluster == *name);
    let cluster = clusters.iter().find(|name| !knows(name, false)).map(|name| format!("`{name}`"));
    let context = || contexts.iter().find(|name| !knows(name, true));
    let forward = || forwards.iter().find(|name| !forwards_to(name)).map(|name| format!("`{name}`"));
    cluster.or_else(|| context().map(|name| format!("the cluster of the context `{name}`"))).or_else(forward)
}

/// The tunnels that are wanted and do not work.
fn waiting<'a>(status: &'a ManagerStatus, wanted: &'a Wanted) -> impl Iterator<Item = &'a TunnelReport> {
    let Wanted { clusters, contexts, forwards, .. } = wanted;
    let is_wanted = move |tunnel: &&TunnelReport| {
        let names = match tunnel.forward {
            Some(_) => forwards,
            None if tunnel.imported => contexts,
            None => clusters,
        };
        (clusters.is_empty() && contexts.is_empty() && forwards.is_empty()) || names.contains(&tunnel.cluster)
    };
    status.tunnels.iter().filter(is_wanted).filter(|tunnel| !tunnel.is_ready())
}

/// Says which tunnels of a running manager do not work.
fn not_active(status: Option<&ManagerStatus>, wanted: &Wanted) -> CommandError {
    let Some(status) = status else {
        return CommandError::new(Kind::Unexpected, "the running manager does not answer");
    };
    let name = &status.name;
    let first = waiting(status, wanted).find_map(|tunnel| Some((tunnel, tunnel.last_error.as_ref()?)));
    let message = match first {
        Some((tunnel, error)) => {
            format!("the tunnel to `{}` of the running manager is {}: {error}", tunnel.cluster, tunnel.state)
        }
        None => {
            // A session without a version has an agent that has not spoken yet.
            let mut silent = waiting(status, wanted).filter(|tunnel| tunnel.agent_version.is_none());
            let target = silent.find_map(|tunnel| tunnel.session_id.as_ref().and(tunnel.target.as_ref()));
            let what = target.map(|target| format!(": it is waiting for the agent on `{target}`")).unwrap_or_default();
            format!("the running manager `{name}` is {} and not ready in time{what}", status.state)
        }
    };
    let option = name_option(name);
    CommandError::new(Kind::Tunnel, message).hint(command!(
        "`autoheal-pa status{}` shows every tunnel, `autoheal-pa doctor{}` says why",
        option,
        option
    ))
}

/// Takes the first name that no other command has, so that it also inherits what one that was killed has left behind.
fn bind(mut settings: UpSettings, printer: &Printer) -> Result<(Manager, Requests), CommandError> {
    for slot in 1..=MAX_SLOTS {
        settings.common.rename(format!("exec-{slot}"));
        match Manager::bind(settings.clone(), None, shown(printer), doctor::entry) {
            Err(error) if error.is_taken() => {}
            outcome => return Ok(outcome?),
        }
    }
    Err(CommandError::new(
        Kind::Unexpected,
        format!("{MAX_SLOTS} commands with tunnels of their own are already running"),
    ))
}

/// Runs the command under tunnels of its own.
async fn under(
    mut manager: Manager,
    mut signals: Signals,
    command: &[OsString],
    printer: &Printer,
) -> Result<ExitCode, CommandError> {
    limits::raise_open_files();
    let ready = tokio::select! {
        biased;
        signal = signals.next() => Err(CommandError::from(signal)),
        ready = ready(&mut manager, printer) => ready,
    };
    let outcome = match ready {
        Ok(()) => {
            drop(signals);
            let proxy = manager.proxy_address().filter(|_| manager.settings().proxy != ProxyPlace::Nowhere);
            let proxy = proxy.map(|address| address.to_string());
            run_child(command, manager.written_kubeconfigs().as_ref(), proxy.as_deref()).await
        }
        Err(error) => Err(error),
    };
    let mut signals = Signals::listen()?;
    tokio::select! {
        biased;
        () = signals.interrupt() => Err(Signal::Interrupt.into()),
        () = manager.stop(true) => outcome,
    }
}

async fn ready(manager: &mut Manager, printer: &Printer) -> Result<(), CommandError> {
    manager.open().await?;
    let (board, hope) = (manager.board(), manager.hope());
    match in_time(manager.settings(), &board, until_ready(board.clone(), &hope, printer)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(hopeless)) => Err(failure(&hopeless, printer)),
        Err(_) => Err(failure(&board.borrow().clone(), printer)),
    }
}

/// Runs a command to its end, and passes on to it what it does not get by itself.
pub(super) async fn run_child(
    command: &[OsString],
    kubeconfigs: Option<&Files>,
    proxy: Option<&str>,
) -> Result<ExitCode, CommandError> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(CommandError::new(Kind::Usage, "there is no command to run"));
    };
    let (mut forwarded, _listening) = forwarded()?;
    let mut child = Command::new(program)
        .args(arguments)
        .envs(kubeconfigs.map(|kubeconfigs| ("KUBECONFIG", kubeconfigs.variable())))
        .envs(proxy.map_or_else(|| no_proxy(&Environment::read()), own_proxy))
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| not_run(program, error))?;
    loop {
        tokio::select! {
            biased;
            status = child.wait() => {
                let failed = |error| CommandError::new(Kind::Unexpected, "cannot wait for the command").with_source(error);
                return Ok(exit_code(status.map_err(failed)?));
            }
            Some(kind) = forwarded.recv() => pass_on(kind, &child),
        }
    }
}

/// Listens for all signals that a command may have a use for.
fn forwarded() -> Result<(mpsc::Receiver<SignalKind>, JoinSet<()>), CommandError> {
    let (sender, receiver) = mpsc::channel(16);
    let mut listening = JoinSet::new();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ] {
        let mut signals = signal(kind)
            .map_err(|error| CommandError::new(Kind::Unexpected, "cannot listen for signals").with_source(error))?;
        let sender = sender.clone();
        listening.spawn(async move {
            while signals.recv().await.is_some() {
                if sender.send(kind).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok((receiver, listening))
}

/// Passes a signal on. What a terminal sends reaches the command by itself, as it is of the same group of processes.
fn pass_on(kind: SignalKind, child: &Child) {
    let of_keyboard = kind == SignalKind::interrupt() || kind == SignalKind::quit() || kind == SignalKind::hangup();
    if of_keyboard && is_in_foreground() {
        return;
    }
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let signal = rustix::process::Signal::from_named_raw(kind.as_raw_value());
    if let (Some(pid), Some(signal)) = (pid, signal) {
        // It may have ended by itself.
        let _outcome = kill_process(pid, signal);
    }
}

/// Tells whether a terminal's keys reach this process and its children.
fn is_in_foreground() -> bool {
    let terminal = std::fs::File::open("/dev/tty");
    terminal.is_ok_and(|terminal| rustix::termios::tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp()))
}

/// Says why a command cannot be run.
pub(super) fn not_run(program: &OsStr, error: std::io::Error) -> CommandError {
    let found = error.kind() != std::io::ErrorKind::NotFound;
    let error = CommandError::new(Kind::Usage, format!("cannot run `{}`", program.display())).with_source(error);
    if found { error } else { error.hint("no such program on the `PATH`") }
}
