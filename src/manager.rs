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
//! * What the manager has is in the `ManagerState`, and nowhere else; the control socket answers from it.
//! * A tunnel that stays is not touched by a reload.
//! * The lock is given up last, so that whoever waits for it finds nothing left.
//!
//! Leaves out how long a command waits for the tunnels and what it does then: `up` and `exec` differ in that.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::{join_all, try_join_all};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use accesses::shared;
use answers::{Answers, Examinations};
use audit::AuditFile;
use clusters::{Found, Wanted, clusters, hosts, imports, known_imports, named, no_clusters, of_access, search, usable};
use control::Reloaded;
use life::Life;
use local_tls::LocalTls;
use proxy::Proxy;
use standing::Standing;
use supervisor::{Board, Supervisor};
use tried::Tried;

pub(crate) use answers::{Asked, Requests};
pub(crate) use error::ManagerError;
pub(crate) use events::{Event, Listener};
pub(crate) use hope::Hope;
pub(crate) use state::{ManagerState, OpenAccess, TunnelEntry};

use crate::{
    aws::Aws,
    doctor::{self, Finding},
    journal::{Entry, Journal},
    kubeconfig,
    overlap::overlap,
    remote::Remote,
    route::ssm,
    settings::{ForwardCheck, MetricsAddress, Sessions, UpSettings},
    tunnel::{self, Admission, Listeners, Ports, Readiness, Sharing, Tunnel},
    util::folder::Folder,
};

mod accesses;
mod answers;
mod audit;
pub mod background;
mod clusters;
pub(crate) mod contexts;
pub mod control;
mod credentials;
pub mod env_file;
mod error;
mod events;
mod files;
mod fixed;
mod hope;
mod life;
mod local_tls;
pub mod metrics;
pub(crate) mod orphans;
pub(crate) mod proxy;
mod standing;
mod state;
pub mod supervisor;
mod tried;

/// How long calls that end sessions may take after the tunnels have stopped.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);

/// Everything that runs while tunnels are open.
pub(crate) struct Manager {
    settings: UpSettings,
    listener: Listener,
    /// Where the contexts are or will be written: what the settings say, unless that cannot be.
    kubeconfig: PathBuf,
    state: Arc<watch::Sender<ManagerState>>,
    supervisor: Supervisor,
    journal: Option<Journal>,
    left_behind: Vec<Entry>,
    /// Tells the managers here from those of other hosts.
    place: String,
    /// Tells this run from others.
    run: String,
    /// What has been made for the tunnels.
    made: ssm::Made,
    tried: Tried,
    standing: Standing,
    life: Arc<Life>,
    proxy: Option<Proxy>,
    audit: Option<AuditFile>,
    local_tls: Option<LocalTls>,
    /// Who gets through the local ports.
    admission: Admission,
    /// All that goes on beside the tunnels.
    tasks: JoinSet<()>,
    examinations: Examinations,
    stop: CancellationToken,
    control: Arc<control::Server>,
}

impl Manager {
    /// Takes the manager's lock, and answers at its control socket from now on, with findings put into `words`.
    ///
    /// # Errors
    /// A manager of this name is running already, or its directory cannot be used.
    pub(crate) fn bind(
        settings: UpSettings,
        log: Option<PathBuf>,
        listener: Listener,
        words: fn(&Finding) -> doctor::Entry,
    ) -> Result<(Self, Requests), ManagerError> {
        let dir = &settings.common.control_dir;
        let control = Arc::new(control::Server::bind(dir)?);
        let (journal, left_behind) = open_journal(control.folder(), &listener);
        let place = control::place(dir);
        let run = uuid::Uuid::new_v4().simple().to_string();
        let supervisor = Supervisor::new();
        let state = Arc::new(watch::Sender::new(ManagerState::default()));
        let (asked, requests) = mpsc::channel(4);
        let examinations = Examinations::new(words);
        let life = Life::new(supervisor.clock(), settings.ends_unused.then_some(settings.idle));
        let life = Arc::new(if settings.contexts_only { life.over() } else { life });
        let answers = Answers::new(&settings, log, &supervisor, &state, asked, examinations.clone(), Arc::clone(&life));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        if let Some(MetricsAddress(address)) = settings.metrics {
            let address = metrics::start(address, answers.status(), &mut tasks, &stop)?;
            state.send_modify(|state| state.metrics = Some(address));
            listener.tell(Event::MetricsServed { address });
        }
        let audit = settings.audit.as_ref();
        let audit = audit.map(|path| AuditFile::begin(path, &settings.common.name, &run, &listener)).transpose()?;
        if let Some(audit) = &audit {
            state.send_modify(|state| state.audit = Some(audit.path().to_owned()));
        }
        tasks.spawn({
            let (control, stop) = (Arc::clone(&control), stop.clone());
            async move { control.serve(Arc::new(answers), stop).await }
        });
        let kubeconfig = settings.common.kubeconfig.clone();
        let admission = if settings.allow_other_users { Admission::everyone() } else { Admission::owner() };
        Ok((
            Self {
                settings,
                listener,
                kubeconfig,
                state,
                supervisor,
                journal,
                left_behind,
                place,
                run,
                made: ssm::Made::default(),
                tried: Tried::default(),
                standing: Standing::default(),
                life,
                proxy: None,
                audit,
                local_tls: None,
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
    pub(crate) async fn open(&mut self) -> Result<(), ManagerError> {
        let imports = imports(&self.settings).await?;
        self.check_files(&imports).await?;
        self.read_standing().await?;
        self.local_tls = LocalTls::start(&self.settings, self.state.borrow().stands, &self.listener)?;
        let fixed = self.bind_fixed()?;
        let wanted = self.settings.access.clone();
        let clients = try_join_all(wanted.iter().map(|settings| Aws::new(&settings.aws))).await?;
        let (senders, found): (Vec<_>, Vec<_>) = wanted.iter().map(|_| mpsc::unbounded_channel()).unzip();
        let searches = wanted
            .iter()
            .zip(&clients)
            .zip(senders)
            .map(|((settings, aws), sender)| search(aws, settings, of_access(&imports, settings), sender));
        let entered = wanted.iter().zip(&clients).map(|(settings, aws)| self.enter(settings.clone(), aws.clone()));
        // Clusters are looked for at once, and nothing is made of them before it is said whose they are.
        let (accesses, searches) = overlap(try_join_all(entered), try_join_all(searches)).await?;
        let accesses = shared(accesses.into_iter().map(Arc::new));
        self.state.send_modify(|state| state.accesses.clone_from(&accesses));
        self.welcome(&accesses, &[]);
        self.end_left_behind(&accesses).await;
        let (_all, tunnels) = tokio::try_join!(searches, self.open_each(&accesses, found, fixed))?;
        if tunnels.is_empty() {
            return Err(no_clusters(&accesses));
        }
        let tunnels = named(&self.settings, tunnels.into_iter())?;
        self.open_proxy(&accesses)?;
        self.publish(&tunnels).await?;
        self.write_environment()?;
        self.state.send_modify(|state| (state.tunnels, state.opened) = (tunnels, true));
        Ok(())
    }

    /// Binds the local ports that forwards name.
    fn bind_fixed(&self) -> Result<BTreeMap<u16, Listeners>, ManagerError> {
        let forwards = self.settings.access.iter().flat_map(|access| &access.forwards);
        let ports = forwards.filter_map(|forward| Some((forward.local_port?, forward.to_string())));
        ports.map(|(port, forward)| Ok((port, self.bind_on(port, forward)?))).collect()
    }

    fn bind_on(&self, port: u16, forward: String) -> Result<Listeners, ManagerError> {
        Listeners::on(port, self.admission.clone()).map_err(|source| ManagerError::ForwardPort { forward, source })
    }

    /// Opens a tunnel to each cluster as soon as it is found, in the order of accesses and of clusters in them; where bastions
    /// are made, once all are found, so that what is made serves all. Returns their ports and what they lead to.
    async fn open_each(
        &mut self,
        accesses: &[Arc<OpenAccess>],
        found: Vec<mpsc::UnboundedReceiver<Found>>,
        mut fixed: BTreeMap<u16, Listeners>,
    ) -> Result<Vec<Wanted>, ManagerError> {
        let ports = Ports::new(self.settings.base_port, self.settings.strict_ports, self.admission.clone());
        let mut ports = ports.without(fixed.keys().copied().chain(self.standing.ports()));
        let (mut tunnels, mut waiting) = (Vec::new(), Vec::new());
        let waits =
            accesses.iter().any(|access| access.settings.bastion.iter().any(|bastion| bastion.fargate().is_some()));
        for (access, mut found) in accesses.iter().zip(found) {
            while let Some(found) = found.recv().await {
                let Some(cluster) = usable(found, access, &self.listener) else { continue };
                let (listeners, to) = (self.bind_for(&cluster, &mut ports)?, Remote::from(cluster));
                tunnels.push((listeners.port(), (Arc::clone(access), to.clone())));
                if waits {
                    waiting.push((access, to, listeners));
                } else {
                    self.start(access, to, listeners);
                }
            }
        }
        for access in accesses {
            let of_access = tunnels.iter().filter(|(_, (other, _))| Arc::ptr_eq(other, access));
            for (local_port, host) in hosts(access, of_access.filter_map(|(_, (_, to))| to.cluster())) {
                let listeners = match local_port.and_then(|port| fixed.remove(&port)) {
                    Some(listeners) => listeners,
                    None => self.bind_next(&mut ports)?,
                };
                waiting.push((access, host, listeners));
            }
        }
        let of_hosts = waiting.iter().filter(|(_, to, _)| to.cluster().is_none());
        tunnels.extend(of_hosts.map(|(access, to, listeners)| (listeners.port(), (Arc::clone(access), to.clone()))));
        self.made.expect(tunnels.iter().flat_map(|(_, (access, to))| access.uses(to)).collect());
        for (access, to, listeners) in waiting {
            self.start(access, to, listeners);
        }
        Ok(tunnels)
    }

    fn bind_next(&self, ports: &mut Ports) -> Result<Listeners, ManagerError> {
        let listeners = ports.bind_next()?;
        for taken in ports.skipped() {
            self.listener.tell(Event::PortSkipped(taken));
        }
        Ok(listeners)
    }

    /// Looks for clusters again, by settings that may have changed. Tunnels to clusters that are as they were go on
    /// untouched, and so do those of an access that cannot be looked at now.
    ///
    /// # Errors
    /// Ports cannot be bound, or the kubeconfig cannot be written; then nothing has changed.
    pub(crate) async fn reload(&mut self, mut settings: UpSettings) -> Result<Reloaded, ManagerError> {
        let later = fixed::told(&fixed::keep(&self.settings, &mut settings));
        let mut outcome = Reloaded { later, ..Reloaded::default() };
        let old = self.state.borrow().clone();
        self.settings = settings;

        let entered = join_all(
            self.settings.access.clone().into_iter().map(|settings| self.enter_again(settings, &old.accesses)),
        )
        .await;
        let mut accesses = Vec::new();
        for access in entered {
            match access {
                Ok(access) => accesses.push(access),
                Err(error) => outcome.problems.push(error.sentence()),
            }
        }
        let accesses = shared(accesses.into_iter());
        let imports = imports(&self.settings).await.unwrap_or_else(|error| {
            outcome.problems.push(error.sentence());
            known_imports(&old)
        });
        let found = join_all(accesses.iter().map(|access| {
            let imports = of_access(&imports, &access.settings);
            clusters(access, imports, &self.listener)
        }))
        .await;
        let mut wanted = Vec::new();
        let mut of_hosts = Vec::new();
        for (access, found) in accesses.iter().zip(found) {
            let found = found.unwrap_or_else(|error| {
                outcome.problems.push(error.sentence());
                let known = old.tunnels.iter().filter(|tunnel| access.is_same(&tunnel.access.settings));
                known.filter_map(|tunnel| tunnel.to.cluster().cloned()).collect()
            });
            let hosts = hosts(access, found.iter()).into_iter();
            of_hosts.extend(hosts.map(|(local_port, host)| (Arc::clone(access), host, local_port)));
            wanted.extend(found.into_iter().map(|cluster| (Arc::clone(access), Remote::from(cluster), None)));
        }
        wanted.extend(of_hosts);

        let mut free: Vec<&TunnelEntry> = old.tunnels.iter().collect();
        let is_as_it_was = |tunnel: &TunnelEntry, access: &OpenAccess, to: &Remote, local_port: Option<u16>| {
            tunnel.to.is_reached_as(to)
                && local_port.is_none_or(|port| port == tunnel.port)
                && tunnel.access.is_same(&access.settings)
                && tunnel.access.settings.bastion == access.settings.bastion
                && tunnel.access.settings.document == access.settings.document
        };
        // Those that stay with their ports, the others without.
        let tunnels: Vec<_> = wanted
            .into_iter()
            .map(|(access, to, local_port)| {
                let known = free.iter().position(|tunnel| is_as_it_was(tunnel, &access, &to, local_port));
                (known.map(|at| free.remove(at).port), access, to, local_port)
            })
            .collect();
        let gone: Vec<u16> = free.iter().map(|tunnel| tunnel.port).collect();
        outcome.removed = free.iter().map(|tunnel| tunnel.name.clone()).collect();
        outcome.kept = tunnels.iter().filter(|(port, ..)| port.is_some()).count();

        let unbound =
            tunnels.iter().map(|(port, access, to, _)| (port.unwrap_or_default(), (Arc::clone(access), to.clone())));
        named(&self.settings, unbound)?;
        // A forward may have the port of one that goes, as when it gets another name.
        let wanted_ports: Vec<u16> =
            tunnels.iter().filter(|(port, ..)| port.is_none()).filter_map(|wanted| wanted.3).collect();
        let in_the_way: Vec<u16> = gone.iter().copied().filter(|port| wanted_ports.contains(port)).collect();
        let mut bound = Vec::new();
        // What can fail comes before anything ends.
        let (later, first): (Vec<u16>, Vec<u16>) = wanted_ports.iter().partition(|port| in_the_way.contains(port));
        for port in first.into_iter().chain(later) {
            if in_the_way.contains(&port) {
                self.supervisor.end(&in_the_way).await;
            }
            let forward = tunnels.iter().find(|wanted| wanted.3 == Some(port)).map(|wanted| wanted.2.name().to_owned());
            bound.push(self.bind_on(port, forward.unwrap_or_default())?);
        }
        let gone: Vec<u16> = gone.into_iter().filter(|port| !in_the_way.contains(port)).collect();
        let mut ports = Ports::new(self.settings.base_port, false, self.admission.clone())
            .without(old.tunnels.iter().map(|tunnel| tunnel.port).chain(wanted_ports).chain(self.standing.ports()));
        let mut all = Vec::new();
        for (port, access, to, local_port) in tunnels {
            let port = match port.or(local_port) {
                Some(port) => port,
                None => {
                    let listeners = match to.cluster() {
                        Some(cluster) => self.bind_for(cluster, &mut ports)?,
                        None => self.bind_next(&mut ports)?,
                    };
                    let port = listeners.port();
                    bound.push(listeners);
                    port
                }
            };
            all.push((port, (access, to)));
        }
        let tunnels = named(&self.settings, all.into_iter())?;
        self.publish(&tunnels).await?;
        if self.state.borrow().imported_from != old.imported_from {
            self.write_environment_again(&mut outcome.problems);
        }
        let started: Vec<(&TunnelEntry, Listeners)> = bound
            .into_iter()
            .filter_map(|listeners| Some((tunnels.iter().find(|tunnel| tunnel.port == listeners.port())?, listeners)))
            .collect();
        outcome.added = started.iter().map(|(tunnel, _)| tunnel.name.clone()).collect();

        self.welcome(&accesses, &old.accesses);
        for access in old.accesses.iter().filter(|access| !accesses.iter().any(|new| new.is_same(&access.settings))) {
            access.stop.cancel();
        }
        self.made.expect(tunnels.iter().flat_map(|tunnel| tunnel.access.uses(&tunnel.to)).collect());
        // Those that are gone have their names until they have ended.
        let ending = free.into_iter().cloned();
        let both = tunnels.iter().cloned().chain(ending).collect();
        self.state.send_modify(|state| (state.accesses, state.tunnels) = (accesses, both));
        for (tunnel, listeners) in started {
            self.start(&tunnel.access, tunnel.to.clone(), listeners);
        }
        self.supervisor.end(&gone).await;
        let closed = self.made.close_unused().await;
        closed.into_iter().for_each(|notice| self.listener.tell(Event::Notice(notice)));
        self.state.send_modify(|state| state.tunnels = tunnels);
        Ok(outcome)
    }

    /// Returns the tunnels, now and later. Figures such as bytes and round trips are no change.
    pub(crate) fn board(&self) -> watch::Receiver<Board> {
        self.supervisor.board()
    }

    /// Returns what judges whether there is still hope.
    pub(crate) fn hope(&self) -> Hope {
        Hope::new(self.state.subscribe())
    }

    /// Waits until kubectl, which has started the manager, has not used it for a while; else for ever.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub(crate) fn unused(&self) -> impl Future<Output = ()> + use<> {
        let (life, board) = (Arc::clone(&self.life), self.board());
        async move { life.end(board).await }
    }

    pub(crate) fn settings(&self) -> &UpSettings {
        &self.settings
    }

    /// Returns the kubeconfig that is written, with those that contexts were imported from.
    pub(crate) fn kubeconfigs(&self) -> kubeconfig::Files {
        kubeconfig::Files::new(self.kubeconfig.clone(), &self.settings.common.imported_from)
    }

    /// Returns them where there are any contexts.
    pub(crate) fn written_kubeconfigs(&self) -> Option<kubeconfig::Files> {
        self.state.borrow().kubeconfig.is_some().then(|| self.kubeconfigs())
    }

    /// Ends everything in good order; with `forget`, the contexts leave the kubeconfig as well.
    pub(crate) async fn stop(self, forget: bool) {
        let state = self.state.borrow().clone();
        let closing = async {
            self.supervisor.stop().await;
            self.made.close().await
        };
        let (closed, ()) = tokio::join!(closing, self.examinations.end());
        if let Some(audit) = self.audit {
            audit.end().await;
        }
        closed.into_iter().for_each(|notice| self.listener.tell(Event::Notice(notice)));
        let settled = join_all(state.accesses.iter().map(|access| access.aws.settle()));
        if timeout(SETTLE_LIMIT, settled).await.is_err() {
            tracing::warn!("calls that end sessions did not return in time");
        }
        if let Some(path) = state.kubeconfig.filter(|_| forget && !state.stands) {
            remove_contexts(path.clone(), self.settings.common.name.clone(), &self.listener).await;
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

    async fn end_left_behind(&mut self, accesses: &[Arc<OpenAccess>]) {
        let Some(journal) = self.journal.clone() else { return };
        let identities =
            accesses.iter().map(|access| orphans::Identity::new(access.aws.clone(), &access.caller)).collect();
        let (sessions, listener) = (std::mem::take(&mut self.left_behind), self.listener.clone());
        let left_behind = orphans::LeftBehind { sessions, identities, journal, listener };
        left_behind.end(&self.stop, &mut self.tasks).await;
    }

    fn start(&mut self, access: &OpenAccess, to: Remote, listeners: Listeners) {
        let readiness = match (&to, self.settings.check) {
            (Remote::Cluster(_), _) => Readiness::Proved,
            (Remote::Host(_), ForwardCheck::Agent) => Readiness::Established,
            (Remote::Host(_), ForwardCheck::Tcp) => Readiness::Reached,
        };
        let config = tunnel::Config {
            readiness,
            presence: self.tried.presence(&self.settings, access, &to),
            probe_interval: self.settings.probe_interval,
            up_within: self.settings.timeout,
            links: self.settings.sessions.most(),
            sharing: match self.settings.sessions {
                Sessions::Auto => Sharing::WhileBusy,
                Sessions::UpTo(_) => Sharing::ForConnections,
            },
            ..tunnel::Config::default()
        };
        let mut sessions = ssm::Config { resume_budget: self.settings.reconnect_timeout, ..ssm::Config::default() };
        let session = &mut sessions.session;
        session.payload_len = self.settings.payload_size.unwrap_or(session.payload_len);
        session.messages_per_second = session.messages_per_second.filter(|_| !self.settings.no_rate_limit);
        sessions.document.clone_from(&access.settings.document);
        let routes = access.routes.with_sessions(sessions);
        let routes = access.settings.bastion.iter().map(|bastion| routes.route(bastion)).collect();
        let listeners = match &self.local_tls {
            Some(local_tls) => local_tls.on(listeners, &to),
            None => listeners,
        };
        self.supervisor.start(Tunnel::new(to, routes, listeners, config, Arc::clone(&access.common)));
    }
}

/// Runs what blocks in a thread of its own.
async fn in_thread<T: Send + 'static>(blocking: impl FnOnce() -> T + Send + 'static) -> Result<T, ManagerError> {
    Ok(tokio::task::spawn_blocking(blocking).await?)
}

/// Opens the journal of live sessions, and returns those that an earlier manager left behind. Everything works without.
fn open_journal(folder: &Folder, listener: &Listener) -> (Option<Journal>, Vec<Entry>) {
    match Journal::open(folder) {
        Ok((journal, left_behind)) => (Some(journal), left_behind),
        Err(source) => {
            listener.tell(Event::NoJournal { folder: folder.path().to_owned(), source });
            (None, Vec::new())
        }
    }
}

/// Takes a manager's contexts out of a kubeconfig. What goes wrong is told, and nothing else comes of it.
pub(crate) async fn remove_contexts(path: PathBuf, manager: String, listener: &Listener) {
    let removed = tokio::task::spawn_blocking(move || kubeconfig::remove(&path, &manager)).await;
    if let Ok(Err(error)) = removed {
        listener.tell(Event::ContextsLeft(error));
    }
}
