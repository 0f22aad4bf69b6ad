//! `kubeconfig`: contexts for all clusters, by which kubectl starts the tunnels itself. Nothing runs afterwards.
//!
//! It is a manager that finds clusters and binds ports as always, and ends when the contexts are written.

use std::{path::Path, process::ExitCode};

use clap::Args;
use tokio::task::{JoinError, spawn_blocking};

use super::{
    UpArgs, doctor, down, env,
    error::{CommandError, Kind},
    events::shown,
    output::Printer,
    reload,
    signals::Signals,
};
use crate::{
    kubeconfig::{self, Exec, KubeconfigError},
    manager::{Manager, control},
    settings::{Environment, GlobalArgs, Settings, UpSettings},
    util::quote::command,
};

#[derive(Debug, Clone, Default, Args)]
pub struct KubeconfigArgs {
    /// Options of the tunnels, once they are started.
    #[command(flatten)]
    pub up: UpArgs,
    /// Removes the contexts again, and stops the manager that kubectl has started by them
    #[arg(long)]
    pub remove: bool,
}

/// Writes the contexts, or removes them.
///
/// # Errors
/// No cluster can be found, the kubeconfig cannot be written, or a manager with other settings is running.
pub(super) async fn run(args: KubeconfigArgs, global: GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    let environment = Environment::read();
    if args.remove {
        return remove(&args.up, global, &environment, printer).await;
    }
    if args.up.detach {
        let message = "`--detach` cannot be used with `kubeconfig`, which starts nothing";
        return Err(CommandError::new(Kind::Usage, message).hint("use it with `autoheal-pa up`"));
    }
    let settings = UpSettings::load(&global, &args.up.for_contexts(), &environment)?;
    if !settings.wants_clusters() {
        let message = "`kubeconfig` writes contexts of clusters, and `--no-clusters` leaves them all out";
        return Err(CommandError::new(Kind::Usage, message)
            .hint("`autoheal-pa up` opens tunnels to hosts alone; no program of theirs would start them by itself"));
    }
    if let Some(holder) = control::holder(&settings.common.control_dir)? {
        return look_again(&settings, holder.pid, global, printer).await;
    }
    let mut signals = Signals::listen()?;
    let (mut manager, _requests) = Manager::bind(settings, None, shown(printer), doctor::entry)?;
    let outcome = tokio::select! {
        biased;
        signal = signals.next() => Err(CommandError::from(signal)),
        opened = manager.open() => opened.map_err(CommandError::from),
    };
    let (files, contexts) = (manager.written_kubeconfigs(), manager.contexts());
    manager.stop(false).await;
    outcome?;
    for context in &contexts {
        printer.result(&format!("{}\t127.0.0.1:{}", context.name, context.port))?;
    }
    if let Some(context) = contexts.iter().find(|context| !context.starts) {
        printer.warning(&format!(
            "kubectl cannot start the tunnels by `{}`, which has a user of yours: it works while another context has started them",
            context.name
        ));
    }
    if let (Some(files), Some(first)) = (files, contexts.first()) {
        let variable = files.variable();
        printer.progress(&command!(
            "kubectl starts the tunnels: `KUBECONFIG={} kubectl --context {} get pods`",
            variable.to_string_lossy().as_ref(),
            first.name.as_str()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Has the manager that is running look for clusters again, if it has these settings.
async fn look_again(
    settings: &UpSettings,
    pid: Option<u32>,
    global: GlobalArgs,
    printer: &Printer,
) -> Result<ExitCode, CommandError> {
    let common = &settings.common;
    let known = starting(&common.kubeconfig, &common.name).await?;
    let options: Vec<_> = settings.launch.args.iter().map(|option| option.to_string_lossy()).collect();
    let running = env::of_manager(&common.control_dir).await;
    let is_of_file = running.is_some_and(|running| running.own() == common.kubeconfig);
    if is_of_file && known.iter().any(|exec| exec.start().is_some_and(|start| start == options)) {
        printer.progress(&format!("the manager `{}` is running, and looks for clusters again", common.name));
        return reload::run(global, printer).await;
    }
    let process = pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
    let message = format!("the manager `{}`{process} is running, with other settings", common.name);
    Err(CommandError::new(Kind::Usage, message)
        .hint(command!("stop it with `autoheal-pa down --name {}`, and repeat the command", common.name.as_str()))
        .hint("`--name` gives these contexts a manager of their own"))
}

/// Removes what was written, and stops the manager that is there for it.
async fn remove(
    args: &UpArgs,
    global: GlobalArgs,
    environment: &Environment,
    printer: &Printer,
) -> Result<ExitCode, CommandError> {
    let settings = Settings::load_with(&global, args, environment)?;
    // Where the usual one could not be written, it is the manager's own.
    let own = (!settings.kubeconfig_given).then(|| settings.own_kubeconfig());
    let mut removed = 0;
    for path in own.into_iter().chain([settings.kubeconfig.clone()]) {
        match starting(&path, &settings.name).await {
            Ok(contexts) if contexts.is_empty() => continue,
            Ok(_) => {}
            // Then nothing was written there.
            Err(_) if removed > 0 => continue,
            Err(error) => return Err(error),
        }
        let running = env::of_manager(&settings.control_dir).await;
        if running.is_some_and(|running| running.own() == path) {
            let args = down::DownArgs { kubeconfig: Some(path.clone()) };
            down::run(args, global.clone(), printer).await?;
        }
        let name = settings.name.clone();
        let task = spawn_blocking(move || {
            let contexts = kubeconfig::contexts_of(&path, &name)?;
            kubeconfig::remove(&path, &name)?;
            let left = kubeconfig::still_there(&path, &contexts)?.len();
            Ok::<_, KubeconfigError>((contexts.len() - left, path))
        });
        let (count, path) = task.await.map_err(unreadable)??;
        removed += count;
        printer.progress(&format!("removed {count} contexts from `{}`", path.display()));
    }
    if removed == 0 {
        let kubeconfig = settings.kubeconfig.display();
        printer.progress(&format!("there are no contexts in `{kubeconfig}` by which kubectl starts the tunnels"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns what kubectl runs to start a manager.
async fn starting(kubeconfig: &Path, manager: &str) -> Result<Vec<Exec>, CommandError> {
    let (path, manager) = (kubeconfig.to_owned(), manager.to_owned());
    match spawn_blocking(move || kubeconfig::starting(&path, &manager)).await {
        Ok(found) => Ok(found?),
        Err(error) => Err(unreadable(error)),
    }
}

fn unreadable(error: JoinError) -> CommandError {
    CommandError::new(Kind::Unexpected, "cannot read the kubeconfig").with_source(error)
}
