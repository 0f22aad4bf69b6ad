//! What all parts of the emulator share: configuration, settings in force, credentials, sessions,
//! the journal, and the owner of every task.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    approval::AccessRequest,
    clock::Clock,
    config::{ClusterConfig, Config},
    credentials::{Caller, Credentials, Oidc, upper_alphanumeric},
    ecs::Ecs,
    fleet::Fleet,
    journal::Journal,
    pki::Authority,
    place::Place,
    script::{Command, Failure, Settings},
    session::{Control, Session, SessionState},
    sso::Sso,
    stack::{Resource, Stack},
    vpc::ConnectEndpointConfig,
};

/// A lock whose holder panicked is still good: every holder changes it in one step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An emulated cluster with its server.
pub(super) struct Cluster {
    pub(super) config: ClusterConfig,
    pub(super) region: String,
    pub(super) account: String,
    /// Id of the endpoint: 32 hexadecimal digits.
    pub(super) id: String,
    /// PEM of the authority, in base64.
    pub(super) authority: String,
    pub(super) pki: Authority,
    /// Users by the certificates that the authority has made for them.
    pub(super) clients: Mutex<BTreeMap<Vec<u8>, String>>,
    /// Where the API server listens.
    pub(super) place: Place,
}

impl Cluster {
    /// The endpoint's host, in the forms of the EKS user guide, "Cluster API server endpoint".
    pub(super) fn endpoint_host(&self) -> String {
        if self.config.local {
            return "127.0.0.1".to_owned();
        }
        let domain = match (self.config.ipv6, self.region.starts_with("cn-")) {
            (false, false) => "eks.amazonaws.com",
            (false, true) => "eks.amazonaws.com.cn",
            (true, false) => "api.aws",
            (true, true) => "api.amazonwebservices.com.cn",
        };
        format!("{}.gr7.{}.{domain}", self.id, self.region)
    }

    /// The endpoint's URL.
    pub(super) fn endpoint(&self) -> String {
        match &self.place {
            Place::Socket(address) if self.config.local => {
                format!("https://{}", self.config.front.as_ref().unwrap_or(address))
            }
            Place::Socket(_) | Place::Memory(_) => format!("https://{}", self.endpoint_host()),
        }
    }

    pub(super) fn arn(&self) -> String {
        format!("arn:aws:eks:{}:{}:cluster/{}", self.region, self.account, self.config.name)
    }
}

/// See the module.
pub(super) struct World {
    pub(super) config: Config,
    pub(super) clock: Clock,
    pub(super) journal: Journal,
    pub(super) settings: Mutex<Settings>,
    /// Changes with the settings.
    pub(super) settings_version: watch::Sender<u64>,
    pub(super) credentials: Mutex<Credentials>,
    pub(super) oidc: Oidc,
    pub(super) sso: Mutex<Sso>,
    /// What the CI endpoint wants as its bearer token.
    pub(super) ci_request_token: String,
    /// Part of the user id of each role, by name.
    role_ids: BTreeMap<String, String>,
    pub(super) clusters: Vec<Arc<Cluster>>,
    pub(super) ecs: Ecs,
    pub(super) fleet: Fleet,
    /// What a template has created.
    pub(super) stack: Mutex<Stack>,
    /// Where the message gateway listens.
    pub(super) gateway: Place,
    /// The same as a URL: scheme, host and port.
    pub(super) gateway_url: String,
    /// Where endpoints of EC2 Instance Connect are, unless they say otherwise: host and port.
    pub(super) tunnels: String,
    /// Held by who changes the keys that a server lets in.
    pub(super) pushing: Mutex<()>,
    pub(super) sessions: Mutex<BTreeMap<String, Arc<Session>>>,
    /// Requests for access to nodes, in their order.
    pub(super) access_requests: Mutex<Vec<AccessRequest>>,
    /// How many sessions were started.
    pub(super) sessions_started: AtomicU64,
    /// How many connections to the gateway there have been.
    pub(super) transports: AtomicU64,
    /// `host:port` as agents see it, and where it leads.
    pub(super) routes: Mutex<BTreeMap<String, Place>>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// What [`World::new`] takes besides the configuration.
pub(super) struct Places {
    pub(super) clusters: Vec<Arc<Cluster>>,
    pub(super) gateway: Place,
    pub(super) gateway_url: String,
    pub(super) tunnels: String,
}

impl World {
    pub(super) fn new(config: Config, places: Places, stop: CancellationToken, tasks: TaskTracker) -> Self {
        let mut settings = config.settings.clone();
        settings.offline_bastions.extend(config.bastions.iter().filter(|b| !b.online).map(|b| b.id.clone()));
        let clock = config.wall.map_or_else(Clock::default, Clock::new);
        clock.set_skew_ms(settings.clock_skew_ms);
        let hosts = config.hosts.iter().map(|(name, address)| (name.clone(), Place::from(*address)));
        let mut routes: BTreeMap<String, Place> = hosts.collect();
        for cluster in &places.clusters {
            routes.insert(format!("{}:443", cluster.endpoint_host()), cluster.place.clone());
        }
        Self {
            journal: Journal::new(),
            settings: Mutex::new(settings),
            settings_version: watch::Sender::new(0),
            credentials: Mutex::default(),
            oidc: Oidc::new(),
            sso: Mutex::default(),
            ci_request_token: upper_alphanumeric(32),
            role_ids: config
                .roles
                .iter()
                .map(|role| (role.clone(), format!("AROA{}", upper_alphanumeric(17))))
                .collect(),
            clusters: places.clusters,
            ecs: Ecs::new(&config, clock.instant()),
            fleet: Fleet::new(&config, clock.wall()),
            stack: Mutex::default(),
            gateway: places.gateway,
            gateway_url: places.gateway_url,
            tunnels: places.tunnels,
            pushing: Mutex::default(),
            sessions: Mutex::default(),
            access_requests: Mutex::default(),
            sessions_started: AtomicU64::new(0),
            transports: AtomicU64::new(0),
            routes: Mutex::new(routes),
            clock,
            stop,
            tasks,
            config,
        }
    }

    pub(super) fn settings(&self) -> MutexGuard<'_, Settings> {
        lock(&self.settings)
    }

    /// Changes the settings and tells all sessions.
    pub(super) fn update(&self, change: impl FnOnce(&mut Settings)) {
        let skew = {
            let mut settings = self.settings();
            change(&mut settings);
            settings.clock_skew_ms
        };
        self.clock.set_skew_ms(skew);
        self.settings_version.send_modify(|version| *version = version.wrapping_add(1));
        for session in lock(&self.sessions).values() {
            session.control(Control::Settings);
        }
        self.journal.touch();
    }

    /// Does something to all sessions that are not over; returns how many they are.
    pub(super) fn command(&self, command: &Command) -> usize {
        let sessions = lock(&self.sessions);
        let live = sessions.values().filter(|session| session.state() != SessionState::Ended);
        live.map(|session| session.control(Control::Command(command.clone()))).count()
    }

    pub(super) fn session(&self, id: &str) -> Option<Arc<Session>> {
        lock(&self.sessions).get(id).cloned()
    }

    /// All endpoints of EC2 Instance Connect: those of the configuration, and those that a template has made.
    pub(super) fn connect_endpoints(&self) -> Vec<ConnectEndpointConfig> {
        let made = |resource: &Resource| {
            let subnet = resource.text("SubnetId");
            let vpc = self.config.vpcs.iter().find(|vpc| vpc.subnets.iter().any(|known| known.id == subnet));
            ConnectEndpointConfig {
                id: resource.physical.clone(),
                vpc: vpc.map(|vpc| vpc.id.clone()).unwrap_or_default(),
                subnet: subnet.to_owned(),
                dns_name: None,
                state: "create-complete".to_owned(),
            }
        };
        let stack = lock(&self.stack);
        let made = stack.of_kind("AWS::EC2::InstanceConnectEndpoint").map(made);
        self.config.connect_endpoints.iter().cloned().chain(made).collect()
    }

    /// The caller that assuming a role makes; `None` if there is no such role.
    pub(super) fn role_caller(&self, role_arn: &str, session_name: &str) -> Option<Caller> {
        let account = &self.config.account;
        let role = role_arn.strip_prefix(&format!("arn:aws:iam::{account}:role/"))?;
        let is_made = || lock(&self.stack).find("AWS::IAM::Role", role).is_some();
        let role_id = match self.role_ids.get(role) {
            Some(id) => id.clone(),
            None if is_made() => "AROAMADEBYATEMPLATE00".to_owned(),
            None => return None,
        };
        Some(Caller {
            account: account.clone(),
            arn: format!("arn:aws:sts::{account}:assumed-role/{role}/{session_name}"),
            user_id: format!("{role_id}:{session_name}"),
            session_name: session_name.to_owned(),
            assumed_role: true,
            access_request: None,
        })
    }

    /// The next scripted failure of an action, if there is one.
    pub(super) fn take_failure(&self, action: &str) -> Option<Failure> {
        let mut settings = self.settings();
        if settings.call_rates.get_mut(action).is_some_and(|rate| !rate.admits(self.clock.instant())) {
            return Some(Failure::throttled(1));
        }
        let failure = settings.failing_actions.get_mut(action)?;
        failure.calls = failure.calls.saturating_sub(1);
        let taken = failure.clone();
        if failure.calls == 0 {
            settings.failing_actions.remove(action);
        }
        Some(taken)
    }
}
