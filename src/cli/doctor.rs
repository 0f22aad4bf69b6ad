//! `doctor`: what is broken between the credentials and the API servers, and the commands that mend it.
//!
//! What is found is the module [`doctor`]'s; how it is said is `words`'s; what to do about it is `fixes`'s.
//! Here it is printed: findings as they come, or one JSON object at the end. Both are the result, so they go to
//! stdout.

mod excess;
mod fixes;
mod names;
mod plugin;
mod skipped;
mod words;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    pin::pin,
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde::Serialize;
use tokio::{task::spawn_blocking, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    GlobalArgs, env,
    error::{CommandError, Kind},
    output::{Paint, Printer},
    signals::{Signal, Signals},
};
use crate::{
    aws::Aws,
    doctor::{self, Check, Entry, ImportedCluster, Limits, Status, Subject, Wanted},
    forward::Forward,
    kubeconfig::import::{self, Import},
    manager::control::{Answer, Client, ControlError, Request},
    remote::Host,
    route::ssm::Approvals,
    settings::{Access, Environment, Settings, UpArgs},
};

pub use words::entry;

/// The version of the JSON. Another one means that old fields have changed their meaning.
const JSON_VERSION: u32 = 1;

/// How long calls that end sessions may take at the end.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// Options of `doctor`.
#[derive(Debug, Clone, Default, Args)]
pub struct DoctorArgs {
    /// Bastion to check, by this process and not by the running manager; repeat it for others [default: the running
    /// manager's, else that of AUTOHEAL_PA_BASTION]
    #[arg(long, value_name = "TARGET")]
    pub bastion: Vec<String>,
    /// Session document of your own that sessions are started with, with `{cluster}` for the name of the cluster [default: that of
    /// AUTOHEAL_PA_DOCUMENT, else the one of AWS]
    #[arg(long, value_name = "NAME", requires = "bastion")]
    pub document: Option<String>,
    /// Requests access to the bastion, as `up --request-access` does, and tells whether it is approved
    #[arg(long, requires = "bastion")]
    pub request_access: bool,
    /// Reason of that request [default: autoheal-pa doctor]
    #[arg(long, value_name = "TEXT", requires = "request_access")]
    pub reason: Option<String>,
    /// Task definition that `--bastion fargate` would run
    #[arg(long, value_name = "ARN", requires = "bastion")]
    pub fargate_task_definition: Option<String>,
    /// Role of the task that `--bastion fargate` would run, by name or ARN [default: autoheal-pa-bastion]
    #[arg(long, value_name = "ROLE", requires = "bastion")]
    pub fargate_task_role: Option<String>,
    /// Cluster to check; repeat it for others [default: all]
    #[arg(long, value_name = "NAME")]
    pub cluster: Vec<String>,
    /// Context of a kubeconfig of yours whose cluster is checked as well; repeat it for others
    #[arg(long, value_name = "NAME", requires = "bastion")]
    pub import_context: Vec<String>,
    /// Kubeconfig that these contexts are in [default: the files of KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "PATH", requires = "import_context")]
    pub import_kubeconfig: Option<PathBuf>,
    /// Forward to check, by the name that `status` shows, or with `--bastion` as `[NAME=]HOST:PORT`; repeat it for others
    #[arg(long, value_name = "FORWARD")]
    pub forward: Vec<String>,
    /// Prints JSON
    #[arg(long)]
    pub json: bool,
}

/// Examines everything and says what is wrong.
///
/// # Errors
/// [`CommandError`] if a check has failed, if the settings are wrong, or for a signal.
pub async fn run(args: DoctorArgs, global: GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    let environment = Environment::read();
    let mut signals = Signals::listen()?;
    let Settings { control_dir, name, .. } = Settings::without_file(&global, &environment)?;
    if args.bastion.is_empty() {
        match Client::connect_if_it_answers(&control_dir).await {
            Ok(client) => {
                let mut sheet = Sheet::new(args.json, printer);
                ask(client, [args.cluster, args.forward].concat(), &mut signals, &mut sheet).await?;
                if let Some(kubeconfigs) = env::of_manager(&control_dir).await {
                    try_plugins(kubeconfigs.own(), &name, &mut signals, &mut sheet).await?;
                }
                return sheet.finish();
            }
            Err(ControlError::NotRunning { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let given = UpArgs::of_access(&args.bastion, &args.cluster)
        .with_task(args.fargate_task_definition.as_ref(), args.fargate_task_role.as_ref())
        .with_imports(&args.import_context, args.import_kubeconfig.as_ref())
        .with_forwards(&args.forward)
        .with_document(args.document.as_ref())
        .with_request(args.request_access, args.reason.as_ref());
    let of_hosts_alone = args.cluster.is_empty() && args.import_context.is_empty() && !args.forward.is_empty();
    let given = if of_hosts_alone { given.without_clusters() } else { given };
    let ways = Access::load(&global, &given, &environment)?;
    // Before anything is printed: what it has kubectl run is run here as well.
    let settings = Settings::load_with(&global, &given, &environment)?;
    let kubeconfig = env::of_settings(&settings, printer)?;
    let mut imported = Vec::with_capacity(ways.len());
    for access in &ways {
        imported.push(import(&access.import_contexts, &settings.imported_from).await?);
    }
    let mut sheet = Sheet::new(args.json, printer);
    for (access, imports) in ways.into_iter().zip(imported) {
        let aws = Aws::new(&access.aws).await;
        let region = aws.as_ref().map(|aws| aws.region().to_owned()).unwrap_or_default();
        // Whose account it is will be asked.
        let cluster = |import: Import| ImportedCluster { cluster: import.cluster(&region, ""), port: None };
        let reason = access.reason.as_deref().unwrap_or(doctor::REASON);
        let requesting = aws.as_ref().ok().filter(|_| access.request_access);
        let subject = Subject {
            approvals: requesting.map(|aws| Approvals::new(aws.clone(), reason)),
            aws,
            bastions: access.bastion,
            tasks_of: None,
            document: access.document,
            clusters: if access.no_clusters { Wanted::Named(Vec::new()) } else { Wanted::of(access.clusters) },
            hosts: access.forwards.iter().map(|forward| host(forward, &region)).collect(),
            imported: imports.into_iter().map(cluster).collect(),
            ssh: access.ssh,
            ports: BTreeMap::new(),
        };
        examine(&subject, &mut sheet, &mut signals).await?;
    }
    try_plugins(&kubeconfig, &name, &mut signals, &mut sheet).await?;
    sheet.finish()
}

/// Returns what a forward leads to. Whose account it is will be asked.
fn host(forward: &Forward, region: &str) -> Host {
    Host {
        name: forward.name.clone(),
        region: region.to_owned(),
        account: String::new(),
        endpoint: forward.to.clone(),
        vpc: None,
    }
}

/// Reads contexts.
async fn import(names: &[String], files: &[PathBuf]) -> Result<Vec<Import>, CommandError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let (names, files) = (names.to_owned(), files.to_owned());
    let read = spawn_blocking(move || import::import(&files, &names)).await;
    Ok(read.map_err(|error| CommandError::new(Kind::Unexpected, "cannot read contexts").with_source(error))??)
}

async fn try_plugins(
    kubeconfig: &Path,
    manager: &str,
    signals: &mut Signals,
    sheet: &mut Sheet<'_>,
) -> Result<(), Signal> {
    let entries = tokio::select! {
        biased;
        signal = signals.next() => return Err(signal),
        entries = plugin::check(kubeconfig, manager) => entries,
    };
    entries.into_iter().for_each(|entry| sheet.add(entry));
    Ok(())
}

/// Has the running manager examine its own accesses, with its credentials and through its ports.
async fn ask(
    mut manager: Client,
    clusters: Vec<String>,
    signals: &mut Signals,
    sheet: &mut Sheet<'_>,
) -> Result<(), CommandError> {
    manager.send(&Request::Doctor { clusters }).await?;
    sheet.printer.progress("the running manager checks itself");
    loop {
        let answer = tokio::select! {
            biased;
            // It ends what it has begun when nobody listens any more.
            signal = signals.next() => return Err(signal.into()),
            answer = manager.next() => answer?,
        };
        match answer {
            Some(Answer::Finding(entry)) => sheet.add(serde_json::from_value(entry).map_err(|error| {
                CommandError::new(Kind::Unexpected, "cannot understand the manager's answer").with_source(error)
            })?),
            Some(Answer::Done) => return Ok(()),
            Some(Answer::Token(_) | Answer::Status(_) | Answer::Reloaded(_) | Answer::Stopping) => {
                return Err(CommandError::new(Kind::Unexpected, "the manager gave an unexpected answer"));
            }
            None => return Err(CommandError::new(Kind::Unexpected, "the manager has stopped in the meantime")),
        }
    }
}

/// Examines one access. Fails for a signal, after the session under way has been ended; a second interrupt does not
/// wait for that.
async fn examine(subject: &Subject, sheet: &mut Sheet<'_>, signals: &mut Signals) -> Result<(), Signal> {
    let stop = CancellationToken::new();
    let report = |finding| sheet.add(entry(&finding));
    let mut examination = pin!(doctor::examine(subject, Limits::default(), &stop, report));
    let signal = tokio::select! {
        biased;
        signal = signals.next() => Some(signal),
        () = &mut examination => None,
    };
    stop.cancel();
    let rest = async {
        if signal.is_some() {
            examination.await;
        }
        if let Ok(aws) = &subject.aws
            && timeout(SETTLE_LIMIT, aws.settle()).await.is_err()
        {
            tracing::warn!("calls that end sessions did not return in time");
        }
    };
    tokio::select! {
        biased;
        () = signals.interrupt() => Err(Signal::Interrupt),
        () = rest => signal.map_or(Ok(()), Err),
    }
}

/// What is printed of an examination: one entry after the other, or all at the end.
pub(super) struct Sheet<'a> {
    json: bool,
    printer: &'a Printer,
    entries: Vec<Entry>,
    /// Those at the end of `entries` that are skipped for one reason and have not been printed.
    pending: usize,
    /// The first thing that went wrong with printing.
    error: Option<CommandError>,
}

impl<'a> Sheet<'a> {
    pub(super) fn new(json: bool, printer: &'a Printer) -> Self {
        Self { json, printer, entries: Vec::new(), pending: 0, error: None }
    }

    /// Takes the next entry.
    pub(super) fn add(&mut self, entry: Entry) {
        let goes_on = self.entries.last().is_some_and(|last| is_skipped_with(last, &entry));
        if !goes_on {
            self.print_pending();
        }
        let skipped = entry.status == Status::Skipped;
        if !skipped {
            self.print(&text(&entry, self.printer.paint()));
        }
        self.pending += usize::from(skipped);
        self.entries.push(entry);
    }

    /// Prints what was skipped, in one line: it is the failure before that matters.
    fn print_pending(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if let [first, .., last] = &self.entries[self.entries.len() - pending..] {
            let title = format!("{pending} checks");
            let meaning = first.meaning.as_deref().unwrap_or_default();
            let meaning = format!("`{}` to `{}`: {meaning}", first.title, last.title);
            self.print(&text(&Entry { title, meaning: Some(meaning), ..first.clone() }, self.printer.paint()));
        } else if let (1, Some(one)) = (pending, self.entries.last()) {
            self.print(&text(one, self.printer.paint()));
        }
    }

    fn print(&mut self, text: &str) {
        if !self.json
            && let Err(error) = self.printer.result(text)
        {
            self.error.get_or_insert(error);
        }
    }

    /// Says how it went as a whole.
    ///
    /// # Errors
    /// [`Kind::Doctor`] if a check has failed; else if the result could not be written.
    pub(super) fn finish(mut self) -> Result<ExitCode, CommandError> {
        self.print_pending();
        let failed = self.entries.iter().filter(|entry| entry.status == Status::Failed).count();
        if self.json {
            self.printer.result(&to_json(&self.entries, failed == 0))?;
        }
        if let Some(error) = self.error {
            return Err(error);
        }
        if failed == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        let checks = if failed == 1 { "check has" } else { "checks have" };
        Err(CommandError::new(Kind::Doctor, format!("{failed} {checks} failed")))
    }
}

fn to_json(entries: &[Entry], ok: bool) -> String {
    #[derive(Serialize)]
    struct Root<'a> {
        version: u32,
        ok: bool,
        checks: &'a [Entry],
    }
    let root = Root { version: JSON_VERSION, ok, checks: entries };
    serde_json::to_string_pretty(&root).expect("strings and numbers are always JSON")
}

/// Whether two checks were skipped for the same reason.
fn is_skipped_with(one: &Entry, other: &Entry) -> bool {
    let about = |entry: &Entry| (entry.status, entry.cluster.clone(), entry.target.clone(), entry.meaning.clone());
    one.status == Status::Skipped && about(one) == about(other)
}

/// Writes an entry as an aligned line, with what is to be said of trouble below it.
pub(super) fn text(entry: &Entry, paint: Paint) -> String {
    let status = entry.status.as_str();
    let mark = paint.state(status, &format!("{status:<8}"));
    let place = match (&entry.cluster, &entry.target) {
        (Some(cluster), Some(target)) => format!("{cluster} through {target}"),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => String::new(),
    };
    let told = match entry.status {
        Status::Ok | Status::Warning | Status::Failed => entry.answer.as_deref(),
        Status::Skipped => entry.meaning.as_deref(),
    };
    let parts = [place.as_str(), told.unwrap_or_default()].into_iter().filter(|part| !part.is_empty());
    let width = Check::ALL.iter().map(|check| words::title(*check).len()).max().unwrap_or_default();
    let line = format!("{mark} {:<width$}  {}", entry.title, parts.collect::<Vec<_>>().join(": "));
    let mut text = line.trim_end().to_owned();
    if matches!(entry.status, Status::Warning | Status::Failed) {
        let tried = Some((paint.faint("tried:"), &entry.tried));
        let meaning = entry.meaning.as_ref().map(|meaning| (paint.faint("means:"), meaning));
        let fixes = entry.fixes.iter().map(|fix| (paint.hint("fix:  "), fix));
        for (label, detail) in tried.into_iter().chain(meaning).chain(fixes) {
            text.push_str(&format!("\n         {label} {detail}"));
        }
    }
    text
}

#[cfg(test)]
mod tests;
