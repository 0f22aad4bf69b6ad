//! What a manager answers at its control socket.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{Stream, StreamExt, stream, stream::BoxStream};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Life, ManagerState, OpenAccess, TunnelEntry,
    control::{
        AccessStatus, Answer, ApprovalStatus, Handler, ManagerStatus, Refusal, Reloaded, Request, SessionReport,
        TunnelReport,
    },
    proxy::ProxyView,
    supervisor::{Board, Supervisor, Wanted},
};
use crate::{
    aws::{CredentialStatus, advice},
    clock,
    doctor::{self, Finding, ImportedCluster, Limits, Subject},
    remote::Remote,
    route::ssm,
    settings::UpSettings,
    tunnel::{LinkStatus, TunnelStatus},
    util::{peer_text::sentence, written::Timestamp},
    version,
};

mod token;

/// Shortest time between two lines to somebody who follows the status.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// How often figures are looked at for them.
const FIGURES_INTERVAL: Duration = Duration::from_secs(1);

/// Something that is asked of a manager at its control socket and that only its command can do.
pub(crate) enum Asked {
    Stop,
    /// To look for clusters again.
    Reload {
        /// Takes the outcome.
        reply: oneshot::Sender<Result<Reloaded, Refusal>>,
    },
}

/// Gives what is asked of a manager to its command.
pub(crate) type Requests = mpsc::Receiver<Asked>;

/// Answers for a manager. Cheap to clone.
#[derive(Clone)]
pub(super) struct Answers {
    view: Arc<View>,
    asked: mpsc::Sender<Asked>,
    examinations: Examinations,
    wanted: Wanted,
    life: Arc<Life>,
}

/// All that a status is made of.
struct View {
    name: String,
    /// How long a tunnel may take to be ready.
    timeout: Duration,
    log: Option<PathBuf>,
    started_at: SystemTime,
    board: watch::Receiver<Board>,
    state: watch::Receiver<ManagerState>,
}

impl Answers {
    pub(super) fn new(
        settings: &UpSettings,
        log: Option<PathBuf>,
        supervisor: &Supervisor,
        state: &watch::Sender<ManagerState>,
        asked: mpsc::Sender<Asked>,
        examinations: Examinations,
        life: Arc<Life>,
    ) -> Self {
        let started_at = SystemTime::UNIX_EPOCH + clock::wall();
        let view = View {
            name: settings.common.name.clone(),
            timeout: settings.timeout,
            log,
            started_at,
            board: supervisor.board(),
            state: state.subscribe(),
        };
        Self { view: Arc::new(view), asked, examinations, wanted: supervisor.wanted(), life }
    }

    /// Returns what says how the manager is, at any time.
    pub(super) fn status(&self) -> impl Fn() -> ManagerStatus + Clone + Send + Sync + 'static {
        let view = Arc::clone(&self.view);
        move || view.status()
    }

    async fn reload(self) -> Result<Answer, Refusal> {
        let (reply, outcome) = oneshot::channel();
        let stopping = || Refusal::new("stopping", "the manager is stopping");
        self.asked.send(Asked::Reload { reply }).await.map_err(|_closed| stopping())?;
        outcome.await.map_err(|_dropped| stopping())?.map(Answer::Reloaded)
    }
}

impl Handler for Answers {
    fn answer(&self, request: Request) -> BoxStream<'static, Result<Answer, Refusal>> {
        let this = self.clone();
        match request {
            Request::Token(request) => stream::once(async move { this.token(&request).await }).boxed(),
            Request::Status { follow: false } => {
                stream::once(async move { Ok(Answer::Status(Box::new(this.view.status()))) }).boxed()
            }
            Request::Status { follow: true } => follow(this.view).boxed(),
            Request::Reload => stream::once(this.reload()).boxed(),
            // Whoever asks learns of the end by the end of the connection.
            Request::Stop => {
                let asked = async move {
                    // A manager that does not listen any more is ending already.
                    let _closed = this.asked.send(Asked::Stop).await;
                    Ok(Answer::Stopping)
                };
                stream::once(asked).chain(stream::pending()).boxed()
            }
            Request::Doctor { clusters } => match this.view.subjects(&clusters) {
                Ok(subjects) => this.examinations.start(subjects).map(Ok).boxed(),
                Err(refusal) => stream::once(async move { Err(refusal) }).boxed(),
            },
        }
    }
}

impl View {
    /// Returns what there is to examine: every access with its tunnels, or only the clusters of these names.
    fn subjects(&self, clusters: &[String]) -> Result<Vec<Subject>, Refusal> {
        let state = self.state.borrow();
        let known = |name: &String| state.tunnels.iter().any(|tunnel| tunnel.to.name() == name);
        if let Some(unknown) = clusters.iter().find(|name| !known(name)) {
            return Err(Refusal::new("unknown-cluster", format!("the manager has no tunnel to `{unknown}`")));
        }
        let subjects = state.accesses.iter().filter_map(|access| {
            let tunnels = state.tunnels.iter().filter(|tunnel| Arc::ptr_eq(&tunnel.access, access));
            let is_wanted = |name: &str| clusters.is_empty() || clusters.iter().any(|wanted| wanted == name);
            let (mut ports, mut imported, mut hosts) = (BTreeMap::new(), Vec::new(), Vec::new());
            for TunnelEntry { port, to, .. } in tunnels {
                match to {
                    Remote::Cluster(cluster) if cluster.imported().is_none() => {
                        ports.insert(cluster.name.clone(), *port);
                    }
                    Remote::Cluster(cluster) if is_wanted(&cluster.name) => {
                        imported.push(ImportedCluster { cluster: cluster.clone(), port: Some(*port) });
                    }
                    Remote::Host(host) if is_wanted(&host.name) => hosts.push(host.clone()),
                    Remote::Cluster(_) | Remote::Host(_) => {}
                }
            }
            let wanted: Vec<_> = clusters.iter().filter(|name| ports.contains_key(*name)).cloned().collect();
            (clusters.is_empty() || !wanted.is_empty() || !imported.is_empty() || !hosts.is_empty()).then(|| Subject {
                aws: Ok(access.aws.clone()),
                bastions: access.settings.bastion.clone(),
                tasks_of: access.routes.tasks_of(),
                document: access.settings.document.clone(),
                approvals: access.routes.approvals().cloned(),
                clusters: match clusters {
                    [] if access.settings.no_clusters => doctor::Wanted::Named(Vec::new()),
                    [] => doctor::Wanted::of(access.settings.clusters.clone()),
                    _ => doctor::Wanted::Named(wanted),
                },
                imported,
                hosts,
                ssh: access.settings.ssh.clone(),
                ports,
            })
        });
        Ok(subjects.collect())
    }

    fn status(&self) -> ManagerStatus {
        let state = self.state.borrow().clone();
        let board = self.board.borrow().clone();
        let access: Vec<_> = state
            .accesses
            .iter()
            .map(|access| access_status(access, &access.aws.credential_status().borrow()))
            .collect();
        let expire = state.accesses.iter().filter_map(|access| access.aws.credential_status().borrow().expires).min();
        let opening = !state.opened && !board.stopping;
        ManagerStatus {
            version: 1,
            program: Some(version::short()),
            name: self.name.clone(),
            state: if opening { "starting" } else { board.overall().as_str() }.to_owned(),
            pid: std::process::id(),
            since: board.since.into(),
            started_at: self.started_at.into(),
            identity: access.first().map(|access| access.identity.clone()),
            credentials_expire: expire.map(Timestamp::from),
            // Whoever sees it sees all tunnels.
            opened: state.opened,
            kubeconfig: state.kubeconfig.as_ref().filter(|_| state.opened).map(|path| path.display().to_string()),
            imported_from: state.imported_from.iter().map(|path| path.display().to_string()).collect(),
            proxy: state.proxy.as_ref().map(ProxyView::status),
            audit: state.audit.as_ref().map(|path| path.display().to_string()),
            metrics: state.metrics.map(|address| format!("http://{address}/metrics")),
            log: self.log.as_ref().map(|path| path.display().to_string()),
            access,
            tunnels: board.tunnels.iter().map(|tunnel| report(tunnel, state.tunnel(tunnel.port))).collect(),
        }
    }

    /// Waits until the status may be another one.
    async fn changed(board: &mut watch::Receiver<Board>, state: &mut watch::Receiver<ManagerState>) -> Option<()> {
        let accesses = state.borrow().accesses.clone();
        let mut credentials: Vec<_> = accesses.iter().map(|access| access.aws.credential_status()).collect();
        let renewed = async {
            let waits = credentials.iter_mut().map(|status| Box::pin(status.changed()));
            let waits: Vec<_> = waits.collect();
            if waits.is_empty() {
                return std::future::pending().await;
            }
            futures_util::future::select_all(waits).await.0
        };
        tokio::select! {
            changed = board.changed() => changed.ok(),
            changed = state.changed() => changed.ok(),
            changed = renewed => changed.ok(),
        }
    }
}

/// Runs examinations. Each has a session of its own at AWS, so it is a task, which ends that session whether
/// anybody listens to the end or not.
#[derive(Clone)]
pub(super) struct Examinations {
    words: fn(&Finding) -> doctor::Entry,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Examinations {
    /// Makes them, with what puts findings into words.
    pub(super) fn new(words: fn(&Finding) -> doctor::Entry) -> Self {
        Self { words, tasks: TaskTracker::new(), stop: CancellationToken::new() }
    }

    /// Starts one, and returns what it finds.
    fn start(&self, subjects: Vec<Subject>) -> impl Stream<Item = Answer> + use<> {
        let (findings, mut found) = mpsc::unbounded_channel();
        let (words, stop) = (self.words, self.stop.child_token());
        let abandoned = stop.clone().drop_guard();
        self.tasks.spawn(async move {
            for subject in subjects {
                let report = |finding: Finding| {
                    let entry = serde_json::to_value(words(&finding));
                    // Nobody may listen any more.
                    let _unheard = findings.send(Answer::Finding(entry.expect("strings and numbers are always JSON")));
                };
                doctor::examine(&subject, Limits::default(), &stop, report).await;
            }
            let _unheard = findings.send(Answer::Done);
        });
        stream::poll_fn(move |context| {
            let _until_dropped = &abandoned;
            found.poll_recv(context)
        })
    }

    /// Ends those under way, and waits until their sessions have ended.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Says the status now and at every change, as long as the manager runs.
fn follow(view: Arc<View>) -> impl Stream<Item = Result<Answer, Refusal>> {
    let (mut board, mut state) = (view.board.clone(), view.state.clone());
    board.mark_changed();
    state.mark_changed();
    stream::unfold((view, board, state, None), |(view, mut board, mut state, mut last)| async move {
        loop {
            if last.is_some() {
                tokio::time::sleep(FOLLOW_INTERVAL).await;
            }
            // Figures change without a word.
            if let Ok(changed) = timeout(FIGURES_INTERVAL, View::changed(&mut board, &mut state)).await {
                changed?;
            }
            board.mark_unchanged();
            state.mark_unchanged();
            let status = view.status();
            if last.replace(status.clone()).is_none_or(|last| last != status) {
                return Some((Ok(Answer::Status(Box::new(status))), (view, board, state, last)));
            }
        }
    })
}

fn access_status(access: &OpenAccess, credentials: &CredentialStatus) -> AccessStatus {
    AccessStatus {
        region: access.aws.region().to_owned(),
        account: access.caller.account.clone(),
        identity: access.caller.arn.clone(),
        source: access.caller.source.clone(),
        passed_over: access.aws.passed_over().iter().map(ToString::to_string).collect(),
        clock: access.aws.clock_off().map(|off| off.to_string()),
        credentials_expire: credentials.expires.map(Timestamp::from),
        credentials_error: credentials.failure.as_ref().map(|failure| sentence(&failure.error)),
        credentials_hint: credentials.failure.as_ref().map(|failure| advice::assess(&failure.error).1.join("; ")),
        sign_in_ends: credentials.sign_in.as_ref().map(|end| Timestamp::from(end.at)),
        sign_in_profile: credentials.sign_in.as_ref().map(|end| end.profile.clone()),
        bastions: access.settings.bastion.iter().map(ToString::to_string).collect(),
        approvals: access.routes.approvals().map(approvals).unwrap_or_default(),
    }
}

fn approvals(approvals: &ssm::Approvals) -> Vec<ApprovalStatus> {
    let status = |approval: ssm::Approval| ApprovalStatus {
        target: approval.target,
        request: approval.request,
        state: approval.stage.as_str().to_owned(),
        until: approval.until.map(Timestamp::from),
    };
    approvals.approvals().into_iter().map(status).collect()
}

fn report(tunnel: &TunnelStatus, entry: Option<&TunnelEntry>) -> TunnelReport {
    let to = &tunnel.to;
    let base = tunnel.link();
    let hints = tunnel.last_error.as_ref().map(|error| error.fault.hints.join("; ")).filter(|hints| !hints.is_empty());
    TunnelReport {
        context: entry.map_or_else(|| to.name().to_owned(), |entry| entry.name.clone()),
        endpoint: to.endpoint().to_string(),
        forward: to.cluster().is_none().then(|| to.endpoint().to_string()),
        cluster: to.name().to_owned(),
        imported: to.cluster().is_some_and(|cluster| cluster.imported().is_some()),
        region: to.region().to_owned(),
        account: to.account().to_owned(),
        port: tunnel.port,
        state: tunnel.state.to_string(),
        since: tunnel.since.into(),
        session_id: base.and_then(|link| link.id.clone()),
        bastion: base.map(|link| link.route.clone()),
        target: base.map(|link| link.place().to_owned()),
        progress: base.and_then(|link| link.progress.clone()),
        agent_version: base.and_then(|link| link.peer_version.clone()),
        open_connections: tunnel.open_connections,
        connections_total: tunnel.connections_total,
        bytes_sent: tunnel.bytes_sent,
        bytes_received: tunnel.bytes_received,
        resumes: tunnel.resumes,
        restarts: tunnel.restarts,
        probe_rtt_ms: tunnel.last_probe.map(|probe| millis(probe.round_trip)),
        probed_at: tunnel.last_probe.map(|probe| probe.at.into()),
        last_error: tunnel.last_error.as_ref().map(ToString::to_string),
        last_error_at: tunnel.last_error.as_ref().map(|error| error.at.into()),
        hint: hints,
        sessions: tunnel.links.iter().map(session_report).collect(),
    }
}

fn session_report(link: &LinkStatus) -> SessionReport {
    SessionReport {
        session_id: link.id.clone(),
        bastion: Some(link.route.clone()),
        target: link.place().to_owned(),
        agent_version: link.peer_version.clone(),
        state: link.state.to_string(),
        since: link.since.into(),
        open_connections: link.open_connections,
        bytes_sent: link.bytes_sent,
        bytes_received: link.bytes_received,
        probe_rtt_ms: link.probe_round_trip.map(millis),
        messages_behind: link.messages_behind,
        held_back: link.held_back,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
