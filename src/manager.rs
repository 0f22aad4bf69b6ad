//! The manager: everything that runs while tunnels are open, whoever has asked for them.
//!
//! ```text
//! bind ── lock, control socket, journal    open ── credentials, clusters, ports, kubeconfig, tunnels
//!   └── answers from the first moment on     └── reload: the same again, for what has changed
//! ```
//!
//! Order matters: what can fail without AWS fails first, so files are tried before they are written; a session is started
//! as soon as its cluster is known, while others are still looked for, and what has been started is ended on every way
//! out.
//!
//! Invariants:
//!
//! * What the manager has is in the [`Roster`], and nowhere else; the control socket answers from it.
//! * A tunnel that stays is not touched by a reload.
//! * The lock is given up last, so that whoever waits for it finds nothing left.
//!
//! Leaves out how long a command waits for the tunnels and what it does then: `up` and `exec` differ in that.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{join_all, try_join_all};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    aws::{Aws, Caller, ClusterDescription, SkipReason},
    cli::{
        env,
        error::{CommandError, Kind},
        output::{Printer, rfc3339},
        progress::Hopeless,
        token::exec_entry,
    },
    cluster::Cluster,
    journal::{Entry, Journal},
    kubeconfig::{self, ContextEntry, KubeconfigError, Server},
    overlap::overlap,
    route::ssm,
    settings::{Access, Environment, UpSettings},
    tunnel::{self, Admission, Common, Listeners, Ports, Tunnel},
    util::{folder::Folder, quote::command},
};

use answers::{Answers, Examinations, Route};
pub(crate) use answers::{Asked, Requests, Roster};
use control::Reloaded;
use proxy::Proxy;
use supervisor::{Board, Supervisor};

mod answers;
pub mod control;
mod credentials;
pub(crate) mod orphans;
mod proxy;
pub mod supervisor;

/// How long calls that end sessions may take after the tunnels have stopped.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);

/// Everything that runs while tunnels are open.
pub(crate) struct Manager {
    settings: UpSettings,
    printer: Printer,
    /// Where the contexts are or will be written: what the settings say, unless that cannot be.
    kubeconfig: PathBuf,
    roster: Arc<watch::Sender<Roster>>,
    supervisor: Supervisor,
    journal: Option<Journal>,
    left_behind: Vec<Entry>,
    proxy: Option<Proxy>,
    /// Who gets through the local ports.
    admission: Admission,
    /// All that goes on beside the tunnels.
    tasks: JoinSet<()>,
    examinations: Examinations,
    stop: CancellationToken,
    control: Arc<control::Server>,
}

/// A way in that is in use: an identity in a region.
pub(crate) struct Way {
    pub(crate) access: Access,
    pub(crate) aws: Aws,
    pub(crate) caller: Caller,
    sessions: ssm::Targets,
    pub(crate) common: Arc<Common>,
    stop: CancellationToken,
}

impl Manager {
    /// Takes the manager's lock, and answers at its control socket from now on.
    ///
    /// # Errors
    /// A manager of this name is running already, or its directory cannot be used.
    pub(crate) fn bind(
        settings: UpSettings,
        log: Option<PathBuf>,
        printer: &Printer,
    ) -> Result<(Self, Requests), CommandError> {
        let dir = &settings.common.control_dir;
        let control = Arc::new(control::Server::bind(dir)?);
        let (journal, left_behind) = open_journal(control.folder(), printer);
        let supervisor = Supervisor::new();
        let roster = Arc::new(watch::Sender::new(Roster::default()));
        let (asked, requests) = mpsc::channel(4);
        let examinations = Examinations::default();
        let answers =
            Answers::new(settings.common.name.clone(), log, &supervisor, &roster, asked, examinations.clone());
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let (control, stop) = (Arc::clone(&control), stop.clone());
            async move { control.serve(Arc::new(answers), stop).await }
        });
        let printer = printer.clone();
        let kubeconfig = settings.common.kubeconfig.clone();
        let admission = if settings.allow_other_users { Admission::everyone() } else { Admission::owner() };
        Ok((
            Self {
                settings,
                printer,
                kubeconfig,
                roster,
                supervisor,
                journal,
                left_behind,
                proxy: None,
                admission,
                tasks,
                examinations,
                stop,
                control,
            },
            requests,
        ))
    }

    /// Finds clusters and opens tunnels to them. Returns when the tunnels are under way.
    ///
    /// # Errors
    /// Whatever keeps every tunnel from being opened.
    pub(crate) async fn open(&mut self) -> Result<(), CommandError> {
        self.check_files().await?;
        let accesses = self.settings.access.clone();
        let clients = try_join_all(accesses.iter().map(|access| Aws::new(&access.aws))).await?;
        let (senders, found): (Vec<_>, Vec<_>) = accesses.iter().map(|_| mpsc::unbounded_channel()).unzip();
        let searches = accesses
            .iter()
            .zip(&clients)
            .zip(senders)
            .map(|((access, aws), sender)| search(aws, &access.clusters, sender));
        let entered = accesses.iter().zip(&clients).map(|(access, aws)| self.enter(access.clone(), aws.clone()));
        // Clusters are looked for at once, and nothing is made of them before it is said whose they are.
        let (ways, searches) = overlap(try_join_all(entered), try_join_all(searches)).await?;
        let ways: Vec<Arc<Way>> = ways.into_iter().map(Arc::new).collect();
        self.roster.send_modify(|roster| roster.ways.clone_from(&ways));
        for way in &ways {
            self.printer.progress(&format!("identity {}", describe(&way.caller)));
            self.look_after(way);
        }
        let (_all, tunnels) = tokio::try_join!(searches, self.open_each(&ways, found))?;
        if tunnels.is_empty() {
            return Err(no_clusters(&ways));
        }
        let routes = named(&self.settings, tunnels.into_iter());
        if let Some(proxy) = self.settings.proxy() {
            self.proxy = Some(Proxy::start(proxy, self.admission.clone(), &mut self.tasks, &self.stop, &self.printer)?);
        }
        self.write_kubeconfig(&routes).await?;
        self.write_environment()?;
        self.end_left_behind(ways);
        self.roster.send_modify(|roster| (roster.routes, roster.opened) = (routes, true));
        Ok(())
    }

    /// Opens a tunnel to each cluster as soon as it is found, in the order of ways and of clusters in them. Returns
    /// their ports and what they lead to.
    async fn open_each(
        &mut self,
        ways: &[Arc<Way>],
        found: Vec<mpsc::UnboundedReceiver<ClusterDescription>>,
    ) -> Result<Vec<(u16, (Arc<Way>, Cluster))>, CommandError> {
        let mut ports = Ports::new(self.settings.base_port, self.settings.strict_ports, self.admission.clone());
        let mut tunnels = Vec::new();
        for (way, mut found) in ways.iter().zip(found) {
            while let Some(description) = found.recv().await {
                let Some(cluster) = usable(description, &self.printer) else { continue };
                let listeners = ports.bind_next()?;
                for taken in ports.skipped() {
                    self.printer.progress(&format!("{taken}: skipped"));
                }
                tunnels.push((listeners.port(), (Arc::clone(way), cluster.clone())));
                self.start(way, cluster, listeners);
            }
        }
        Ok(tunnels)
    }

    /// Looks for clusters again, by settings that may have changed. Tunnels to clusters that are as they were go on
    /// untouched, and so do those of a way in that cannot be looked at now.
    ///
    /// # Errors
    /// Ports cannot be bound, or the kubeconfig cannot be written; then nothing has changed.
    pub(crate) async fn reload(&mut self, settings: UpSettings) -> Result<Reloaded, CommandError> {
        let mut outcome = Reloaded::default();
        let old = self.roster.borrow().clone();
        self.settings = settings;

        let entered =
            join_all(self.settings.access.clone().into_iter().map(|access| self.enter_again(access, &old.ways))).await;
        let mut ways = Vec::new();
        for way in entered {
            match way {
                Ok(way) => ways.push(way),
                Err(error) => outcome.problems.push(error.sentence()),
            }
        }
        let found = join_all(ways.iter().map(|way| clusters(way, &self.printer))).await;
        let mut wanted = Vec::new();
        for (way, found) in ways.iter().zip(found) {
            match found {
                Ok(found) => wanted.extend(found.into_iter().map(|cluster| (Arc::clone(way), cluster))),
                Err(error) => {
                    outcome.problems.push(error.sentence());
                    let known = old.routes.iter().filter(|route| way.is_same(&route.way.access));
                    wanted.extend(known.map(|route| (Arc::clone(way), route.cluster.clone())));
                }
            }
        }

        let mut free: Vec<&Route> = old.routes.iter().collect();
        let is_as_it_was = |route: &Route, way: &Way, cluster: &Cluster| {
            route.cluster == *cluster
                && route.way.is_same(&way.access)
                && route.way.access.bastion == way.access.bastion
        };
        // Those that stay with their ports, the others without.
        let tunnels: Vec<_> = wanted
            .into_iter()
            .map(|(way, cluster)| match free.iter().position(|route| is_as_it_was(route, &way, &cluster)) {
                Some(at) => (Some(free.remove(at).port), way, cluster),
                None => (None, way, cluster),
            })
            .collect();
        let gone: Vec<u16> = free.iter().map(|route| route.port).collect();
        outcome.removed = free.iter().map(|route| route.context.clone()).collect();
        let new = tunnels.iter().filter(|(port, ..)| port.is_none()).count();
        outcome.kept = tunnels.len() - new;

        let bound = Listeners::bind(self.settings.base_port, new, false, self.admission.clone())?;
        for taken in bound.skipped.iter().filter(|taken| old.route(taken.port).is_none()) {
            self.printer.progress(&format!("{taken}: skipped"));
        }
        let mut new_ports = bound.listeners.iter().map(Listeners::port);
        let all = tunnels.into_iter().map(|(port, way, cluster)| {
            let port = port.or_else(|| new_ports.next()).expect("there are as many ports as new tunnels");
            (port, (way, cluster))
        });
        let routes = named(&self.settings, all);
        self.write_kubeconfig(&routes).await?;
        let started: Vec<&Route> = bound
            .listeners
            .iter()
            .filter_map(|listeners| routes.iter().find(|route| route.port == listeners.port()))
            .collect();
        outcome.added = started.iter().map(|route| route.context.clone()).collect();

        for way in ways.iter().filter(|way| !old.ways.iter().any(|known| known.is_same(&way.access))) {
            self.printer.progress(&format!("identity {}", describe(&way.caller)));
            self.look_after(way);
        }
        for way in old.ways.iter().filter(|way| !ways.iter().any(|new| new.is_same(&way.access))) {
            way.stop.cancel();
        }
        // Those that are gone have their names until they have ended.
        let ending = free.into_iter().cloned();
        let both = routes.iter().cloned().chain(ending).collect();
        self.roster.send_modify(|roster| (roster.ways, roster.routes) = (ways, both));
        for (route, listeners) in started.into_iter().zip(bound.listeners) {
            self.start(&route.way, route.cluster.clone(), listeners);
        }
        self.supervisor.end(&gone).await;
        self.roster.send_modify(|roster| roster.routes = routes);
        Ok(outcome)
    }

    /// Returns the tunnels, now and later.
    pub(crate) fn board(&self) -> watch::Receiver<Board> {
        self.supervisor.board()
    }

    /// Returns what judges whether there is still hope, see [`is_hopeless`].
    pub(crate) fn hope(&self) -> Hopeless {
        Hopeless::new(self.roster.subscribe())
    }

    /// Returns the settings.
    pub(crate) fn settings(&self) -> &UpSettings {
        &self.settings
    }

    /// Returns the path of the kubeconfig.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Ends everything in good order; with `forget`, the contexts leave the kubeconfig as well.
    pub(crate) async fn stop(self, forget: bool) {
        tokio::join!(self.supervisor.stop(), self.examinations.end());
        let roster = self.roster.borrow().clone();
        let settled = join_all(roster.ways.iter().map(|way| way.aws.settle()));
        if timeout(SETTLE_LIMIT, settled).await.is_err() {
            tracing::warn!("calls that end sessions did not return in time");
        }
        if let Some(path) = roster.kubeconfig.filter(|_| forget) {
            remove_contexts(path.clone(), self.settings.common.name.clone(), &self.printer).await;
            let common = &self.settings.common;
            if path == common.own_kubeconfig() {
                // It is of no use to anybody else.
                let _outcome = self.control.folder().place(path.file_name().unwrap_or_default()).remove();
            }
        }
        self.stop.cancel();
        self.tasks.join_all().await;
        drop(self.control);
    }

    /// Finds out who a way in leads in as.
    async fn enter(&self, access: Access, aws: Aws) -> Result<Way, CommandError> {
        let caller = aws.caller().await?;
        let reason = access.reason.as_deref();
        let service = match &self.journal {
            Some(journal) => ssm::Service::with_journal(aws.clone(), reason, journal.clone(), &caller),
            None => ssm::Service::new(aws.clone(), reason),
        };
        let sessions = ssm::Targets::new(Arc::new(service), ssm::Config::default());
        let common = Common::new(self.supervisor.clock());
        Ok(Way { access, aws, caller, sessions, common, stop: self.stop.child_token() })
    }

    /// As [`enter`](Self::enter), with the credentials and clients of a known way if there is one like it.
    async fn enter_again(&self, access: Access, known: &[Arc<Way>]) -> Result<Arc<Way>, CommandError> {
        match known.iter().find(|way| way.is_same(&access)) {
            Some(way) if way.access.bastion == access.bastion && way.access.clusters == access.clusters => {
                Ok(Arc::clone(way))
            }
            Some(way) => Ok(Arc::new(way.with(access))),
            None => {
                let aws = Aws::new(&access.aws).await?;
                self.enter(access, aws).await.map(Arc::new)
            }
        }
    }

    /// Keeps the credentials of a way fresh, and says what the user has to know of them.
    fn look_after(&mut self, way: &Arc<Way>) {
        self.tasks.spawn({
            let (aws, stop) = (way.aws.clone(), way.stop.clone());
            async move { stop.run_until_cancelled(aws.keep_credentials()).await.unwrap_or_default() }
        });
        self.tasks.spawn({
            let (status, printer, way) = (way.aws.credential_status(), self.printer.clone(), Arc::clone(way));
            async move {
                let announce = credentials::announce(status, &printer, || way.common.retry_now());
                way.stop.run_until_cancelled(announce).await.unwrap_or_default();
            }
        });
        let (printer, way) = (self.printer.clone(), Arc::clone(way));
        self.tasks.spawn(async move {
            way.stop.run_until_cancelled(show_cautions(&way.common, &printer)).await.unwrap_or_default();
        });
    }

    fn end_left_behind(&mut self, ways: Vec<Arc<Way>>) {
        let Some(journal) = self.journal.clone() else { return };
        let left_behind = std::mem::take(&mut self.left_behind);
        let (printer, stop) = (self.printer.clone(), self.stop.clone());
        let identities: Vec<_> = ways.iter().map(|way| orphans::Identity::new(way.aws.clone(), &way.caller)).collect();
        self.tasks.spawn(async move {
            let ending = orphans::end(left_behind, &journal, &printer, async |orphan| {
                orphans::end_as_any(&identities, &orphan).await
            });
            stop.run_until_cancelled(ending).await.unwrap_or_default();
        });
    }

    fn start(&mut self, way: &Way, cluster: Cluster, listeners: Listeners) {
        let config = tunnel::Config {
            probe_interval: self.settings.probe_interval,
            up_within: self.settings.timeout,
            links: self.settings.sessions,
            ..tunnel::Config::default()
        };
        let mut sessions = ssm::Config { resume_budget: self.settings.reconnect_timeout, ..ssm::Config::default() };
        let session = &mut sessions.session;
        session.payload_len = self.settings.payload_size.unwrap_or(session.payload_len);
        session.messages_per_second = session.messages_per_second.filter(|_| !self.settings.no_rate_limit);
        let sessions = way.sessions.with_config(sessions);
        let routes = way.access.bastion.iter().map(|bastion| sessions.route(bastion.clone())).collect();
        self.supervisor.start(Tunnel::new(cluster, routes, listeners, config, Arc::clone(&way.common)));
    }

    /// Finds out whether all files can be written that will have to be. Where the default kubeconfig cannot, one in the
    /// manager's own directory will do: there are machines whose home is missing or read-only.
    async fn check_files(&mut self) -> Result<(), CommandError> {
        let common = &self.settings.common;
        match self.check_kubeconfig(&self.kubeconfig).await? {
            Err(error @ (KubeconfigError::Unreadable { .. } | KubeconfigError::Unwritable { .. }))
                if !common.kubeconfig_given =>
            {
                let own = common.own_kubeconfig();
                let error = CommandError::from(error);
                if self.check_kubeconfig(&own).await?.is_err() {
                    return Err(error);
                }
                self.printer.progress(&error.sentence());
                self.kubeconfig = own;
            }
            checked => checked?,
        }
        if let Some(path) = &self.settings.env_file {
            env::check(path, &self.kubeconfig, &Environment::read())?;
        }
        if let Some(path) = &self.settings.github_env {
            env::check_github(path, &self.kubeconfig, &Environment::read())?;
        }
        Ok(())
    }

    async fn check_kubeconfig(&self, path: &Path) -> Result<Result<(), KubeconfigError>, CommandError> {
        let (path, manager) = (path.to_owned(), self.settings.common.name.clone());
        in_thread(move || kubeconfig::check(&path, &manager)).await
    }

    /// Writes the contexts, in the order of the clusters, and leads the proxy to these.
    async fn write_kubeconfig(&self, routes: &[Route]) -> Result<(), CommandError> {
        let common = &self.settings.common;
        let contexts = routes
            .iter()
            .map(|Route { port, context, cluster, way }| {
                let exec = exec_entry(common, &way.access.identity, cluster)?;
                let server = self.proxy.as_ref().map_or(Server::Tunnel(*port), Proxy::server);
                Ok(ContextEntry { name: context.clone(), cluster: cluster.clone(), server, exec })
            })
            .collect::<Result<Vec<_>, CommandError>>()?;
        let path = self.kubeconfig.clone();
        let (manager, set_current) = (common.name.clone(), self.settings.set_current);
        let written = in_thread({
            let path = path.clone();
            move || {
                kubeconfig::write(&path, &kubeconfig::Update { manager: &manager, contexts: &contexts, set_current })
            }
        });
        let current = written.await??.map(|name| format!(", current context `{name}`")).unwrap_or_default();
        if let Some(proxy) = &self.proxy {
            proxy.lead(routes.iter().map(|route| (&route.cluster, route.port)));
        }
        self.printer.progress(&format!("wrote `{}`{current}", path.display()));
        self.roster.send_modify(|roster| roster.kubeconfig = Some(path));
        Ok(())
    }

    /// Writes the files by which others find the kubeconfig.
    fn write_environment(&self) -> Result<(), CommandError> {
        if let Some(path) = &self.settings.env_file {
            env::write(path, &self.kubeconfig, &Environment::read())?;
            self.printer.progress(&format!("wrote `{}`", path.display()));
        }
        if let Some(path) = &self.settings.github_env {
            env::write_github(path, &self.kubeconfig, &Environment::read())?;
            self.printer.progress("later steps of the job have `KUBECONFIG` set");
        }
        Ok(())
    }
}

impl Way {
    /// Tells whether it leads in as the same identity, in the same region.
    fn is_same(&self, access: &Access) -> bool {
        self.access.aws.region == access.aws.region && self.access.identity == access.identity
    }

    /// Returns one with the same identity for other bastions and clusters.
    fn with(&self, access: Access) -> Self {
        Self {
            access,
            aws: self.aws.clone(),
            caller: self.caller.clone(),
            sessions: self.sessions.clone(),
            common: Arc::clone(&self.common),
            stop: self.stop.clone(),
        }
    }
}

/// Says what tunnels have found that the user has to know. Never ends.
async fn show_cautions(common: &Common, printer: &Printer) {
    let mut cautions = common.cautions();
    let mut said = 0;
    loop {
        let all = cautions.borrow_and_update().clone();
        for caution in all.into_iter().skip(said) {
            printer.caution(&CommandError::from(caution));
            said += 1;
        }
        if cautions.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Runs what blocks in a thread of its own.
async fn in_thread<T: Send + 'static>(blocking: impl FnOnce() -> T + Send + 'static) -> Result<T, CommandError> {
    let done = tokio::task::spawn_blocking(blocking).await;
    done.map_err(|error| CommandError::new(Kind::Unexpected, error.to_string()))
}

/// Opens the journal of live sessions, and returns those that an earlier manager left behind. Everything works without.
fn open_journal(folder: &Folder, printer: &Printer) -> (Option<Journal>, Vec<Entry>) {
    match Journal::open(folder) {
        Ok((journal, left_behind)) => (Some(journal), left_behind),
        Err(error) => {
            let message = format!("cannot keep a journal of sessions in `{}`", folder.path().display());
            let hint = "if this process is killed, its sessions end when they have been idle";
            printer.caution(&CommandError::new(Kind::Unexpected, message).with_source(error).hint(hint));
            (None, Vec::new())
        }
    }
}

/// Takes a manager's contexts out of a kubeconfig. A failure is a warning.
pub(crate) async fn remove_contexts(path: PathBuf, manager: String, printer: &Printer) {
    let removed = tokio::task::spawn_blocking(move || kubeconfig::remove(&path, &manager)).await;
    if let Ok(Err(error)) = removed {
        printer.caution(&CommandError::from(error));
    }
}

/// Says whose credentials are used, where they come from, and until when they last.
fn describe(caller: &Caller) -> String {
    let until = caller.expires.map(|at| format!(", credentials until {}", rfc3339(at))).unwrap_or_default();
    format!("{}, from {}{until}", caller.arn, caller.source)
}

/// Finds the clusters to open tunnels to; says which are skipped and why.
async fn clusters(way: &Way, printer: &Printer) -> Result<Vec<Cluster>, CommandError> {
    let (sender, mut found) = mpsc::unbounded_channel();
    search(&way.aws, &way.access.clusters, sender).await?;
    Ok(std::iter::from_fn(|| found.try_recv().ok()).filter_map(|description| usable(description, printer)).collect())
}

/// Finds clusters, and sends each as soon as it and those before it are known. Those that were asked for by name are only
/// sent when there can be a tunnel to each.
async fn search(
    aws: &Aws,
    wanted: &[String],
    found: mpsc::UnboundedSender<ClusterDescription>,
) -> Result<(), CommandError> {
    // Whoever does not take them any more has failed, and says so.
    let send = |description: &ClusterDescription| drop(found.send(description.clone()));
    if wanted.is_empty() {
        aws.discover_each(wanted, send).await?;
        return Ok(());
    }
    let clusters = aws.discover(wanted).await?.clusters;
    for description in &clusters {
        if let Err(reason) = &description.access {
            return Err(not_usable(&description.name, &description.region, reason.clone()));
        }
    }
    clusters.iter().for_each(send);
    Ok(())
}

/// Returns the cluster if there can be a tunnel to it; else says that it is skipped and why.
fn usable(description: ClusterDescription, printer: &Printer) -> Option<Cluster> {
    let skip = |reason| printer.progress(&format!("skipped `{}`: {reason}", description.name));
    description.access.map_err(skip).ok()
}

fn no_clusters(ways: &[Arc<Way>]) -> CommandError {
    let places: Vec<_> =
        ways.iter().map(|way| format!("{} of account {}", way.aws.region(), way.caller.account)).collect();
    let message = format!("there is no cluster to open a tunnel to in {}", places.join(" and "));
    CommandError::new(Kind::NotFound, message)
        .hint("`autoheal-pa clusters` shows what these credentials can see; choose another region with `--region`")
}

/// A cluster that was asked for by name and cannot be had.
fn not_usable(name: &str, region: &str, reason: SkipReason) -> CommandError {
    let kind = match reason {
        SkipReason::AccessDenied { .. } => Kind::Credentials,
        SkipReason::Connected
        | SkipReason::Status(_)
        | SkipReason::NoEndpoint
        | SkipReason::Endpoint
        | SkipReason::NoCertificateAuthority => Kind::NotFound,
    };
    CommandError::new(kind, format!("cannot open a tunnel to `{name}`")).with_source(reason).hint(command!(
        "`aws eks describe-cluster --name {} --region {}` shows its status",
        name,
        region
    ))
}

/// Gives the tunnels the names of their contexts.
fn named(settings: &UpSettings, tunnels: impl Iterator<Item = (u16, (Arc<Way>, Cluster))>) -> Vec<Route> {
    let tunnels: Vec<_> = tunnels.collect();
    let clusters: Vec<Cluster> = tunnels.iter().map(|(_, (_, cluster))| cluster.clone()).collect();
    let names = kubeconfig::context_names(&settings.context_prefix, &clusters);
    let routes = tunnels.into_iter().zip(names);
    routes.map(|((port, (way, cluster)), context)| Route { port, context, cluster, way }).collect()
}
