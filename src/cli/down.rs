//! `down`: stops the running manager, and leaves nothing of it.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::spawn_blocking;

use super::{
    GlobalArgs, env,
    error::{CommandError, Kind},
    events::shown,
    output::Printer,
    up::STOP_LIMIT,
};
use crate::{
    aws::{Aws, AwsError},
    journal::{Entry, Journal},
    kubeconfig::{self, KubeconfigError},
    manager::{
        control::{self, Client, ControlError, Request},
        orphans, remove_contexts,
    },
    settings::{Access, AwsSettings, Environment, Settings, UpArgs},
    util::{folder::Missing, quote::command},
};

#[derive(Debug, Clone, Default, Args)]
pub struct DownArgs {
    /// Kubeconfig to remove the contexts from, if the manager has been killed [default: ~/.kube/autoheal-pa.yaml]
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
}

/// Stops the manager, waits until it has ended its sessions, and takes its contexts out of the kubeconfig. Where none
/// is running, what one that was killed has left behind is removed.
///
/// # Errors
/// The manager does not stop, or belongs to another user.
pub async fn run(args: DownArgs, global: GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    let environment = Environment::read();
    let settings = Settings::without_file(&global, &environment)?;
    match Client::connect(&settings.control_dir).await {
        Ok(client) => {
            let before = match env::of_manager(&settings.control_dir).await {
                Some(kubeconfigs) => Before::read(kubeconfigs.own().to_owned(), &settings.name).await,
                None => None,
            };
            stop(client, &settings, printer).await?;
            if let Some(before) = before {
                before.say_what_is_left(printer).await;
            }
        }
        Err(ControlError::NotRunning { .. }) => {
            printer.progress(&format!("no manager `{}` is running", settings.name));
            // It cannot be asked any more where its kubeconfig is.
            let settings = Settings::load(&global, args.kubeconfig.as_deref(), &environment)?;
            let access = Access::load(&global, &UpArgs::default(), &environment)?;
            clean_up(&settings, access, printer).await?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}

async fn stop(mut client: Client, settings: &Settings, printer: &Printer) -> Result<(), CommandError> {
    printer.progress(&format!("stopping the manager `{}`", settings.name));
    let dir = &settings.control_dir;
    let pid = client.pid();
    let stopped = async {
        client.send(&Request::Stop).await?;
        // The connection ends with the manager.
        while client.next().await?.is_some() {}
        Ok::<_, ControlError>(())
    };
    match tokio::time::timeout(STOP_LIMIT, stopped).await {
        Ok(Err(error @ ControlError::OtherVersion { .. })) => {
            let pid = pid.and_then(|pid| Pid::from_raw(pid.try_into().ok()?)).ok_or(error)?;
            tracing::debug!(%pid, "the manager does not understand the request: asking it by a signal");
            kill_process(pid, Signal::TERM).map_err(|error| {
                let message = format!("cannot end the manager `{}`, process {pid}, by a signal", settings.name);
                CommandError::new(Kind::Unexpected, message).with_source(error)
            })?;
        }
        Ok(outcome) => outcome?,
        Err(_) => tracing::debug!("the manager did not close the connection"),
    }
    match control::until_free(dir, STOP_LIMIT).await? {
        None => {
            printer.progress("stopped");
            Ok(())
        }
        Some(holder) => {
            let name = &settings.name;
            let message = format!("the manager `{name}` did not stop within {} s", STOP_LIMIT.as_secs());
            let error = CommandError::new(Kind::Unexpected, message);
            Err(match holder.pid {
                Some(pid) => {
                    error.hint(command!("`kill -9 {}` ends it; the next `down` or `up` ends its sessions", pid))
                }
                None => error,
            })
        }
    }
}

/// Ends the sessions of a manager that was killed, and removes its contexts.
async fn clean_up(settings: &Settings, access: Vec<Access>, printer: &Printer) -> Result<(), CommandError> {
    let mut kubeconfigs = vec![settings.kubeconfig.clone()];
    if control::open(&settings.control_dir, Missing::Fail)?.is_some() {
        kubeconfigs.extend(Some(settings.own_kubeconfig()).filter(|own| *own != settings.kubeconfig));
        // As long as it is held, no manager starts.
        let lock = control::Server::bind(&settings.control_dir)?;
        let journal = Journal::open(lock.folder());
        let journal = journal.map_err(|error| {
            let message = format!("cannot read the journal of sessions in `{}`", settings.control_dir.display());
            CommandError::new(Kind::Unexpected, message).with_source(error)
        });
        let (journal, left_behind) = journal?;
        if !left_behind.is_empty() {
            end_sessions(access, &journal, left_behind, printer).await;
        }
    }
    for kubeconfig in kubeconfigs.into_iter().filter(|path| path.exists()) {
        let before = Before::read(kubeconfig.clone(), &settings.name).await;
        if before.as_ref().is_none_or(|before| !before.stay) {
            remove_contexts(kubeconfig, settings.name.clone(), &shown(printer)).await;
        }
        if let Some(before) = before {
            before.say_what_is_left(printer).await;
        }
    }
    Ok(())
}

/// The contexts of a kubeconfig that needed a manager while it was there.
struct Before {
    kubeconfig: PathBuf,
    manager: String,
    contexts: Vec<String>,
    /// kubectl starts the manager by some, so that these stay.
    stay: bool,
}

impl Before {
    /// `None` if the file cannot be read: then nothing will be changed in it, and that is said.
    async fn read(kubeconfig: PathBuf, manager: &str) -> Option<Self> {
        let (path, name) = (kubeconfig.clone(), manager.to_owned());
        let read =
            move || Ok((kubeconfig::contexts_of(&path, &name)?, !kubeconfig::starting(&path, &name)?.is_empty()));
        let (contexts, stay) = spawn_blocking(read).await.ok()?.map_err(|_: KubeconfigError| ()).ok()?;
        Some(Self { kubeconfig, manager: manager.to_owned(), contexts, stay })
    }

    /// Names those that are there still: the user's own, which used what was removed, or all, if that has failed.
    async fn say_what_is_left(self, printer: &Printer) {
        let Self { kubeconfig, manager, contexts, stay } = self;
        if stay {
            printer.progress(&command!(
                "its contexts stay, and kubectl starts it again by them: `autoheal-pa kubeconfig --remove --name {}` removes them",
                manager.as_str()
            ));
            return;
        }
        let path = kubeconfig.clone();
        let left = spawn_blocking(move || kubeconfig::still_there(&path, &contexts)).await;
        let Ok(Ok(left)) = left else { return };
        let Some(first) = left.first() else { return };
        let names = left.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let message = format!("contexts left in `{}` do not work without the manager: {names}", kubeconfig.display());
        let hint =
            command!("remove one with `kubectl --kubeconfig {} config delete-context {}`", kubeconfig.as_path(), first);
        printer.caution(&CommandError::new(Kind::Unexpected, message).hint(hint));
    }
}

/// Ends sessions as whoever the settings say that a manager may have been.
async fn end_sessions(access: Vec<Access>, journal: &Journal, left_behind: Vec<Entry>, printer: &Printer) {
    // The journal knows where each was; the settings need not.
    let somewhere = left_behind.first().map(|session| session.region.clone());
    // All at once, so that one that takes long to fail does not add to the others.
    let found = join_all(access.into_iter().map(async |access| {
        let region = access.aws.region.clone().or_else(|| somewhere.clone());
        identity(&AwsSettings { region, ..access.aws }).await
    }));
    let (mut identities, mut errors) = (Vec::new(), Vec::new());
    for outcome in found.await {
        match outcome {
            Ok(identity) => identities.push(identity),
            Err(error) => errors.push(error),
        }
    }
    if identities.is_empty() {
        if let Some(error) = errors.into_iter().next() {
            printer.caution(&not_ended(left_behind.len(), error));
        }
        return;
    }
    // The others may be all that it takes.
    for error in errors {
        printer.warning(&CommandError::from(error).sentence());
    }
    let end = async |orphan| orphans::end_as_any(&identities, &orphan).await;
    orphans::end(left_behind, journal, &shown(printer), end).await;
}

async fn identity(settings: &AwsSettings) -> Result<orphans::Identity, AwsError> {
    let aws = Aws::new(settings).await?;
    let caller = aws.caller().await?;
    Ok(orphans::Identity::new(aws, &caller))
}

fn not_ended(sessions: usize, error: AwsError) -> CommandError {
    let message = match sessions {
        1 => "cannot end the session left behind by an earlier run".to_owned(),
        number => format!("cannot end {number} sessions left behind by an earlier run"),
    };
    CommandError::new(Kind::Credentials, message)
        .with_source(error)
        .hint("sessions end by themselves once they have been idle long enough, or with the next `autoheal-pa up`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::Captured;

    #[tokio::test]
    async fn a_kubeconfig_in_the_managers_directory_is_looked_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let environment = Environment::read().with([("XDG_RUNTIME_DIR", dir.path().to_str().unwrap())]);
        let mut settings = Settings::load(&GlobalArgs::default(), None, &environment).unwrap();
        control::open(&settings.control_dir, Missing::Make).unwrap();
        settings.kubeconfig = settings.own_kubeconfig();
        std::fs::write(&settings.kubeconfig, "kind: Config\nusers: [\n").unwrap();
        let (printer, _, err) = Captured::printer();
        clean_up(&settings, Vec::new(), &printer).await.unwrap();
        assert_eq!(err.text().matches("cannot parse the kubeconfig").count(), 1, "{}", err.text());
    }
}
