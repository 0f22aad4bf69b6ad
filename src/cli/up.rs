//! `up`: opens the tunnels and keeps them open in the foreground.
//!
//! Order matters: what can fail without AWS fails first, ports are bound and the kubeconfig is written
//! before any session is started, and what has been started is ended on every way out.

use std::{
    collections::BTreeMap,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    credentials, env,
    error::{CommandError, Kind, resume_denied},
    limits, orphans,
    output::{Line, Mark, Printer},
    signals::{Signal, Signals},
    token,
};
use crate::{
    aws::{Aws, Caller, Discovery, SkipReason},
    cluster::Cluster,
    control::{self, Refusal, TokenAnswer, TokenRequest},
    journal::{Entry, Journal},
    kubeconfig::{self, ContextEntry},
    settings::UpSettings,
    supervisor::{Board, Supervisor},
    tunnel::{self, DialError, Fault, Listeners, State, Tunnel, TunnelStatus},
};

/// What `up` prints on stdout when every tunnel is proved to work. Callers wait for this line.
pub(super) const READY_LINE: &str = "tunnel ready";

/// How long calls that end sessions may take after the tunnels have stopped.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);

/// Opens the tunnels and keeps them open until a signal.
///
/// # Errors
/// Whatever keeps every tunnel from being opened; a signal before the tunnels were ready.
pub async fn run(settings: UpSettings, printer: &Printer) -> Result<ExitCode, CommandError> {
    let mut signals = Signals::listen()?;
    limits::raise_open_files();
    let manager = tokio::select! {
        biased;
        signal = signals.next() => return Err(signal.into()),
        manager = Manager::start(settings, printer) => manager?,
    };
    let outcome = manager.watch(&mut signals, printer).await;
    printer.progress("stopping: ending the sessions");
    tokio::select! {
        biased;
        () = signals.interrupt() => Err(Signal::Interrupt.into()),
        () = manager.stop() => outcome.map(|()| ExitCode::SUCCESS),
    }
}

/// Everything that runs while tunnels are open.
struct Manager {
    settings: UpSettings,
    aws: Aws,
    supervisor: Supervisor,
    /// All that goes on beside the tunnels.
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Manager {
    async fn start(settings: UpSettings, printer: &Printer) -> Result<Self, CommandError> {
        let control = control::Server::bind(&settings.common.control_dir)?;
        let (journal, left_behind) = open_journal(&settings.common.control_dir, printer);
        let aws = Aws::new(&settings.common.aws).await?;
        let caller = aws.caller().await?;
        printer.progress(&format!("identity {}", describe(&caller)));

        let clusters = clusters(&settings, &aws, &caller, printer).await?;
        let bound = Listeners::bind(settings.base_port, clusters.len(), settings.strict_ports)?;
        for taken in &bound.skipped {
            printer.progress(&format!("{taken}: skipped"));
        }
        let ports: Vec<u16> = bound.listeners.iter().map(Listeners::port).collect();
        write_kubeconfig(&settings, &clusters, &ports, printer).await?;
        if let Some(path) = &settings.env_file {
            env::write(path, &settings.common)?;
            printer.progress(&format!("wrote `{}`", path.display()));
        }

        let mut supervisor = Supervisor::new();
        let stop = CancellationToken::new();
        let handler = Arc::new(Tokens { aws: aws.clone(), names: token_names(&clusters) });
        let mut tasks = JoinSet::new();
        let serving = stop.clone();
        tasks.spawn(async move { control.serve(handler, serving).await });
        tasks.spawn({
            let (aws, stop) = (aws.clone(), stop.clone());
            async move { stop.run_until_cancelled(aws.keep_credentials()).await.unwrap_or_default() }
        });
        tasks.spawn({
            let (status, printer, stop) = (aws.credential_status(), printer.clone(), stop.clone());
            let common = supervisor.common();
            async move {
                let announce = credentials::announce(status, &printer, || common.hurry());
                stop.run_until_cancelled(announce).await.unwrap_or_default();
            }
        });
        if let Some(denial) = clusters.first().map(resume_denied) {
            let (common, printer, stop) = (supervisor.common(), printer.clone(), stop.clone());
            tasks.spawn(async move {
                if stop.run_until_cancelled(common.until_resume_denied()).await.is_some() {
                    printer.caution(&denial);
                }
            });
        }

        if let Some(journal) = journal.clone() {
            let (aws, printer, stop) = (aws.clone(), printer.clone(), stop.clone());
            let end = move |session: Entry| {
                let aws = aws.clone();
                async move { aws.end_session(&session.session, &session.region).await }
            };
            tasks.spawn(async move {
                let ending = orphans::end(left_behind, &journal, &printer, end);
                stop.run_until_cancelled(ending).await.unwrap_or_default();
            });
        }

        let dial = aws.dialer_with_journal(settings.reason.clone(), journal);
        for (cluster, listeners) in clusters.into_iter().zip(bound.listeners) {
            let tunnel = Tunnel::new(
                cluster,
                settings.access[0].bastions.clone(),
                Arc::clone(&dial),
                listeners,
                tunnel::Config {
                    probe_interval: settings.probe_interval,
                    resume_budget: settings.reconnect_timeout,
                    ..tunnel::Config::default()
                },
                supervisor.common(),
            );
            supervisor.start(tunnel);
        }
        Ok(Self { settings, aws, supervisor, tasks, stop })
    }

    /// Shows what happens until a signal. Fails if the tunnels cannot be had.
    async fn watch(&self, signals: &mut Signals, printer: &Printer) -> Result<(), CommandError> {
        let board = self.supervisor.board();
        let limit = self.settings.timeout;
        let bastions = self.settings.access[0].bastions.len();
        let ready = tokio::select! {
            biased;
            signal = signals.next() => return Err(signal.into()),
            outcome = timeout(limit, become_ready(board.clone(), bastions, printer)) => outcome,
        };
        match ready {
            Ok(Ok(())) => printer.result(READY_LINE)?,
            Ok(Err(hopeless)) => return Err(failure(&hopeless, printer)),
            Err(_) => {
                let now = board.borrow().clone();
                if is_hopeless(&now, bastions, true) {
                    return Err(failure(&now, printer));
                }
                report_unready(&now, limit.as_secs(), printer);
                tokio::select! {
                    biased;
                    signal = signals.next() => return Err(signal.into()),
                    () = wait_ready(board.clone()) => printer.result(READY_LINE)?,
                    () = show_changes(board.clone(), printer) => {}
                }
            }
        }
        tokio::select! {
            biased;
            _signal = signals.next() => Ok(()),
            () = show_changes(board, printer) => Ok(()),
        }
    }

    async fn stop(self) {
        self.supervisor.stop().await;
        self.stop.cancel();
        self.tasks.join_all().await;
        if timeout(SETTLE_LIMIT, self.aws.settle()).await.is_err() {
            tracing::warn!("calls that end sessions did not return in time");
        }
    }
}

/// Opens the journal of live sessions, and returns those that an earlier manager left behind. Everything works without.
fn open_journal(dir: &Path, printer: &Printer) -> (Option<Journal>, Vec<Entry>) {
    match Journal::open(dir) {
        Ok((journal, left_behind)) => (Some(journal), left_behind),
        Err(error) => {
            let message = format!("cannot keep a journal of sessions in `{}`", dir.display());
            let hint = "if this process is killed, its sessions end when they have been idle";
            printer.caution(&CommandError::new(Kind::Unexpected, message).with_source(error).hint(hint));
            (None, Vec::new())
        }
    }
}

/// Says whose credentials are used, where they come from, and until when they last.
fn describe(caller: &Caller) -> String {
    let until = caller.expires.map(|at| format!(", credentials until {}", rfc3339(at))).unwrap_or_default();
    format!("{}, from {}{until}", caller.arn, caller.source)
}

pub(super) fn rfc3339(at: SystemTime) -> String {
    use aws_smithy_types::date_time::{DateTime, Format};
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = DateTime::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    time.fmt(Format::DateTime).unwrap_or_else(|_| format!("{seconds} s after the Unix epoch"))
}

/// Finds the clusters to open tunnels to; says which are skipped and why.
async fn clusters(
    settings: &UpSettings,
    aws: &Aws,
    caller: &Caller,
    printer: &Printer,
) -> Result<Vec<Cluster>, CommandError> {
    let Discovery { clusters } = aws.discover(&settings.access[0].clusters).await?;
    let mut usable = Vec::with_capacity(clusters.len());
    for description in clusters {
        match description.access {
            Ok(cluster) => usable.push(cluster),
            Err(reason) if settings.access[0].clusters.is_empty() => {
                printer.progress(&format!("skipped `{}`: {reason}", description.name));
            }
            Err(reason) => return Err(not_usable(&description.name, &description.region, reason)),
        }
    }
    if usable.is_empty() {
        let message =
            format!("there is no cluster to open a tunnel to in {} of account {}", aws.region(), caller.account);
        return Err(CommandError::new(Kind::NotFound, message).hint(
            "`autoheal-pa clusters` shows what these credentials can see; choose another region with `--region`",
        ));
    }
    Ok(usable)
}

/// A cluster that was asked for by name and cannot be had.
fn not_usable(name: &str, region: &str, reason: SkipReason) -> CommandError {
    let kind = match reason {
        SkipReason::AccessDenied { .. } => Kind::Credentials,
        SkipReason::Connected
        | SkipReason::Status(_)
        | SkipReason::NoEndpoint
        | SkipReason::Endpoint(_)
        | SkipReason::NoCertificateAuthority => Kind::NotFound,
    };
    CommandError::new(kind, format!("cannot open a tunnel to `{name}`"))
        .with_source(reason)
        .hint(format!("`aws eks describe-cluster --name {name} --region {region}` shows its status"))
}

async fn write_kubeconfig(
    settings: &UpSettings,
    clusters: &[Cluster],
    ports: &[u16],
    printer: &Printer,
) -> Result<(), CommandError> {
    let contexts = contexts(settings, clusters, ports)?;
    let path = settings.common.kubeconfig.clone();
    let manager = settings.common.name.clone();
    let set_current = settings.set_current;
    let written = tokio::task::spawn_blocking(move || {
        let update = kubeconfig::Update { manager: &manager, contexts: &contexts, set_current };
        kubeconfig::write(&path, &update)
    });
    let current = written.await.map_err(|error| CommandError::new(Kind::Unexpected, error.to_string()))??;
    let current = current.map(|name| format!(", current context `{name}`")).unwrap_or_default();
    printer.progress(&format!("wrote `{}`{current}", settings.common.kubeconfig.display()));
    Ok(())
}

fn contexts(settings: &UpSettings, clusters: &[Cluster], ports: &[u16]) -> Result<Vec<ContextEntry>, CommandError> {
    let names = kubeconfig::context_names(&settings.context_prefix, clusters);
    let entries = clusters.iter().zip(ports).zip(names).map(|((cluster, &port), name)| {
        let exec = token::exec_entry(&settings.common, cluster)?;
        Ok(ContextEntry { name, cluster: cluster.clone(), port, exec })
    });
    entries.collect()
}

/// Gives kubectl its tokens over the control socket.
struct Tokens {
    aws: Aws,
    /// Names and regions of the clusters that this manager has tunnels to.
    names: Vec<TokenRequest>,
}

fn token_names(clusters: &[Cluster]) -> Vec<TokenRequest> {
    let request =
        |cluster: &Cluster| TokenRequest { cluster: cluster.token_name.clone(), region: cluster.region.clone() };
    clusters.iter().map(request).collect()
}

impl control::Handler for Tokens {
    fn token<'a>(&'a self, request: &'a TokenRequest) -> BoxFuture<'a, Result<TokenAnswer, Refusal>> {
        Box::pin(async move {
            if !self.names.contains(request) {
                let message = format!("the manager has no tunnel to `{}` in {}", request.cluster, request.region);
                return Err(Refusal::new("unknown-cluster", message));
            }
            match self.aws.bearer_token(&request.cluster).await {
                Ok(answer) => Ok(TokenAnswer { token: answer.token, expires: answer.expires }),
                Err(error) => Err(Refusal::new("credentials", CommandError::from(error).sentence())),
            }
        })
    }
}

/// Shows the tunnels until all are ready. Fails with the board when only a human can help any of them.
async fn become_ready(mut board: watch::Receiver<Board>, bastions: usize, printer: &Printer) -> Result<(), Board> {
    let mut lines: BTreeMap<u16, Line> = BTreeMap::new();
    let mut shown: BTreeMap<u16, bool> = BTreeMap::new();
    loop {
        let now = board.borrow_and_update().clone();
        for tunnel in &now.tunnels {
            if shown.get(&tunnel.port).copied().unwrap_or_default() {
                continue;
            }
            let text = progress_text(tunnel);
            let label = &tunnel.cluster.name;
            let line = lines.remove(&tunnel.port).unwrap_or_else(|| printer.line(label, &text));
            if tunnel.is_ready() {
                shown.insert(tunnel.port, true);
                line.finish(Mark::Done, &text);
            } else {
                let mut line = line;
                line.set(&text);
                lines.insert(tunnel.port, line);
            }
        }
        if now.is_ready() {
            return Ok(());
        }
        if is_hopeless(&now, bastions, false) {
            for (_, line) in lines {
                line.finish(Mark::Failed, "failed");
            }
            return Err(now);
        }
        if board.changed().await.is_err() {
            return Err(board.borrow().clone());
        }
    }
}

fn progress_text(tunnel: &TunnelStatus) -> String {
    let place = format!("127.0.0.1:{}", tunnel.port);
    match tunnel.state {
        State::Active => {
            let through = tunnel.session().map(|session| format!(" through {}", session.target)).unwrap_or_default();
            let probe =
                tunnel.last_probe.map(|probe| format!(", {} ms", probe.round_trip.as_millis())).unwrap_or_default();
            format!("{place} active{through}{probe}")
        }
        State::Starting => format!("{place} starting"),
        State::Reconnecting | State::Degraded | State::Failed | State::Stopped => {
            let error = tunnel.last_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            format!("{place} {}{error}", tunnel.state)
        }
    }
}

/// Whether no tunnel works and none will without a human. A bastion that is away may come back by
/// itself, so it counts only when the `time_is_up`; of one that does not exist, only another may.
fn is_hopeless(board: &Board, bastions: usize, time_is_up: bool) -> bool {
    let may_return = |tunnel: &TunnelStatus| {
        tunnel.last_error.as_ref().is_some_and(|error| match &*error.fault {
            Fault::Start(DialError::TargetNotConnected { .. }) => true,
            Fault::Start(DialError::TargetNotFound { .. }) => bastions > 1,
            Fault::Start(_)
            | Fault::Transport(_)
            | Fault::Silent { .. }
            | Fault::Mute { .. }
            | Fault::Resume(_)
            | Fault::Closed(_)
            | Fault::Probe(_)
            | Fault::Exhausted
            | Fault::Panicked { .. } => false,
        })
    };
    board.tunnels.iter().all(|tunnel| {
        tunnel.state == State::Stopped
            || (tunnel.state == State::Failed && tunnel.ready_at.is_none() && (time_is_up || !may_return(tunnel)))
    })
}

/// Says what is wrong with each tunnel; the first one's error is what `up` ends with.
fn failure(board: &Board, printer: &Printer) -> CommandError {
    let mut errors = board.tunnels.iter().filter_map(|tunnel| {
        tunnel.last_error.as_ref().map(|error| CommandError::tunnel(&tunnel.cluster, &error.fault))
    });
    let Some(first) = errors.next() else {
        return CommandError::new(Kind::Tunnel, "no tunnel could be opened");
    };
    for error in errors {
        printer.warning(&error.sentence());
    }
    first
}

fn report_unready(board: &Board, seconds: u64, printer: &Printer) {
    for tunnel in board.tunnels.iter().filter(|tunnel| !tunnel.is_ready()) {
        match &tunnel.last_error {
            Some(error) => printer.error(&CommandError::tunnel(&tunnel.cluster, &error.fault)),
            None => printer.warning(&format!("`{}` is not ready after {seconds} s", tunnel.cluster.name)),
        }
    }
    printer.progress("trying on: Ctrl-C stops");
}

async fn wait_ready(mut board: watch::Receiver<Board>) {
    if board.wait_for(Board::is_ready).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Says what happens to tunnels that have been ready.
async fn show_changes(mut board: watch::Receiver<Board>, printer: &Printer) {
    let states = |board: &Board| board.tunnels.iter().map(|tunnel| tunnel.state).collect::<Vec<_>>();
    let mut known = states(&board.borrow_and_update());
    while board.changed().await.is_ok() {
        let now = board.borrow_and_update().clone();
        for (tunnel, before) in now.tunnels.iter().zip(&known) {
            if tunnel.state != *before {
                printer.progress(&format!("{} {}", tunnel.cluster.name, progress_text(tunnel)));
            }
        }
        known = states(&now);
    }
}
