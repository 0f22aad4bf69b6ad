//! An emulated AWS on loopback, or in memory: STS, EKS, Systems Manager, ECS and EC2 behind one port, the message gateway with
//! an agent for each session, endpoints of EC2 Instance Connect, what a template of CloudFormation creates, and a small Kubernetes
//! API for each cluster.
//!
//! It is what the `demo` command, the tests and the `emulator` example run against. The program reaches it through endpoint
//! settings only. It checks what AWS checks (signatures, tokens, digests) and some things that AWS lets pass (sequence numbers,
//! acknowledgements), and it misbehaves as AWS does when a script tells it to.
//!
//! Invariants:
//! - everything listens on 127.0.0.1, or on nothing at all;
//! - it shares the codecs of [`proto`](crate::route::ssm::proto) with the program and nothing else: signatures are
//!   verified, and agents behave, by code of its own, so that a mistake in the program cannot hide;
//! - every task belongs to the [`Emulator`] and ends with it;
//! - what a client does wrong is recorded, see [`Emulator::violations`], and logged as an error.
//!
//! Left out: everything that `up` does not need, KMS encryption, and agents' basic mode.

mod agent;
mod api;
mod approval;
mod clock;
mod config;
mod credentials;
mod ec2;
mod ecs;
mod eks;
mod faults;
mod fleet;
mod gateway;
mod http;
mod iam;
mod inject;
mod instance_connect;
mod journal;
mod kube;
mod line;
mod link;
mod pki;
mod place;
mod script;
mod session;
mod sigv4;
mod silence;
mod sshd;
mod ssm;
mod sso;
mod stack;
mod sts;
#[cfg(test)]
mod tests;
mod vpc;
mod world;

use std::{
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    api::ApiError,
    approval::{AccessRequest, AccessStatus, JustInTime},
    config::{AbsentClient, AgentConfig, AgentStart, BastionConfig, ClusterConfig, Config, Identity, StreamScheme},
    credentials::{OIDC_AUDIENCE, OIDC_ISSUER, OidcClaims},
    ecs::{
        AgentOutcome, EcsConfig, LaunchType, ServiceConfig, StartFailure, TaskEnd, TaskInfo, TaskTimes, TaskTrouble,
    },
    faults::{FAULTS, Fault, FaultError, Matrix, Row, Trial},
    instance_connect::SshServerConfig,
    journal::Event,
    kube::ApiServer,
    line::bare_line,
    pki::ClientCertificate,
    place::{MemoryListener, MemoryPlace, Place, Wire},
    script::{
        AgentQuirks, CallRate, Command, Destination, DialFailure, ExtraAction, Failure, Line, Link, Resume, Settings,
        Upgrade,
    },
    session::{SessionInfo, SessionState},
    sshd::{Sshd, SshdConfig},
    sso::{SsoConfig, Verdict},
    vpc::{ConnectEndpointConfig, SubnetConfig, VpcConfig},
};
use self::{
    credentials::{Caller, Keys},
    pki::{Authority, KeyKind},
    place::{Listener, Medium},
    session::Control,
    world::{Places, World, lock},
};

/// How long [`Emulator::stop`] waits for tasks.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What part of a token's lifetime passes before the token file is written again.
const ROTATION: f64 = 0.5;

/// Why an emulator does not start.
#[derive(Debug, thiserror::Error)]
pub enum EmulatorError {
    /// No port could be bound.
    #[error("cannot listen on 127.0.0.1, port {port}")]
    Bind {
        /// The port that was asked for; 0 is any.
        port: u16,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The folder for the token file could not be made or written.
    #[error("cannot write to a temporary folder")]
    Folder(#[source] io::Error),
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// TLS could not be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
}

/// An emulated AWS that runs until it is stopped or dropped.
pub struct Emulator {
    world: Arc<World>,
    api: Place,
    /// Holds the token file and the gateway's authority.
    folder: TempDir,
    static_keys: Keys,
}

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Emulator").field("api", &self.api).finish_non_exhaustive()
    }
}

/// Asks every task to end.
impl Drop for Emulator {
    fn drop(&mut self) {
        self.world.stop.cancel();
    }
}

impl Emulator {
    /// Binds all ports and starts to serve.
    ///
    /// # Errors
    /// See [`EmulatorError`].
    pub async fn start(config: Config) -> Result<Self, EmulatorError> {
        Self::start_on(Medium::Sockets, config).await
    }

    /// Starts to serve within this process, without sockets, so that it goes with tokio's paused time. The API port
    /// is reached by [`call`](Self::call), everything else by its [`Place`].
    ///
    /// # Errors
    /// See [`EmulatorError`].
    pub async fn in_memory(config: Config) -> Result<Self, EmulatorError> {
        Self::start_on(Medium::Memory, config).await
    }

    async fn start_on(medium: Medium, config: Config) -> Result<Self, EmulatorError> {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let mut servers = Vec::with_capacity(config.clusters.len());
        for cluster in &config.clusters {
            servers.push(kube::Server::bind(medium, &config, cluster).await?);
        }

        let (api_listener, api) = Listener::bind(medium, config.port).await?;
        let (gateway_listener, gateway) = Listener::bind(medium, 0).await?;
        let (tunnel_listener, tunnels) = Listener::bind(medium, 0).await?;
        // The token in it is good for nothing but this emulator.
        let folder =
            tempfile::Builder::new().prefix("emulated-aws-").permissions(Permissions::from_mode(0o700)).tempdir();
        let folder = folder.map_err(EmulatorError::Folder)?;
        let (scheme, acceptor) = match config.stream_scheme {
            StreamScheme::Ws => ("ws", None),
            StreamScheme::Wss => {
                let authority = Authority::new("emulated message gateway", KeyKind::Curve)?;
                std::fs::write(folder.path().join(AUTHORITY_FILE), authority.pem()).map_err(EmulatorError::Folder)?;
                ("wss", Some(authority.acceptor(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?))
            }
        };
        let places = Places {
            clusters: servers.iter().map(|server| server.cluster.clone()).collect(),
            gateway_url: format!("{scheme}://{}", host_of(&gateway)),
            gateway,
            tunnels: host_of(&tunnels),
        };
        let world = Arc::new(World::new(config, places, stop, tasks));
        let emulator = Self { static_keys: issue_static_keys(&world), api, folder, world };
        emulator.write_token().map_err(EmulatorError::Folder)?;
        for server in servers {
            emulator.world.tasks.spawn(server.serve(emulator.world.clone()));
        }
        ecs::begin(&emulator.world);
        emulator.world.tasks.spawn(serve_api(emulator.world.clone(), api_listener));
        emulator.world.tasks.spawn(serve_gateway(emulator.world.clone(), gateway_listener, acceptor));
        emulator.world.tasks.spawn(serve_tunnels(emulator.world.clone(), tunnel_listener));
        emulator.world.tasks.spawn(rotate_token(emulator.world.clone(), emulator.token_file()));
        Ok(emulator)
    }

    /// Ends everything and waits for it.
    pub async fn stop(self) {
        self.world.stop.cancel();
        self.world.tasks.close();
        if tokio::time::timeout(STOP_TIMEOUT, self.world.tasks.wait()).await.is_err() {
            tracing::warn!("the emulator did not end in time");
        }
    }

    // Where things are.

    /// URL of STS, EKS, Systems Manager, ECS, EC2 and EC2 Instance Connect.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", host_of(&self.api))
    }

    /// The variables that the program needs to use this emulator, in the order in which they are best
    /// read.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut variables = self.base_environment();
        variables.extend(match self.world.config.identity {
            Identity::WebIdentity => self.web_identity_environment(),
            Identity::StaticKeys => self.static_environment(),
        });
        let config = &self.world.config;
        let bastion = config.named_bastion.as_ref().or_else(|| config.bastions.first().map(|bastion| &bastion.id));
        if let Some(bastion) = bastion {
            variables.push(("AUTOHEAL_PA_BASTION".to_owned(), bastion.clone()));
        }
        variables
    }

    /// Endpoints and region.
    fn base_environment(&self) -> Vec<(String, String)> {
        let mut variables: Vec<(String, String)> =
            SERVICES.map(|service| (format!("AWS_ENDPOINT_URL_{service}"), self.endpoint())).into();
        variables.push(("AWS_REGION".to_owned(), self.world.config.region.clone()));
        variables.push(("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned()));
        if let Some(path) = self.gateway_authority() {
            variables.push(("AWS_CA_BUNDLE".to_owned(), path.display().to_string()));
        }
        variables
    }

    /// Role and token file.
    #[must_use]
    pub fn web_identity_environment(&self) -> Vec<(String, String)> {
        vec![
            ("AWS_ROLE_ARN".to_owned(), self.role_arn()),
            ("AWS_WEB_IDENTITY_TOKEN_FILE".to_owned(), self.token_file().display().to_string()),
        ]
    }

    /// Keys of a session that does not expire.
    #[must_use]
    pub fn static_environment(&self) -> Vec<(String, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID".to_owned(), self.static_keys.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), self.static_keys.secret.clone()),
            ("AWS_SESSION_TOKEN".to_owned(), self.static_keys.session_token.clone()),
        ]
    }

    /// What a CI job has to ask for an OIDC token with.
    #[must_use]
    pub fn ci_environment(&self) -> Vec<(String, String)> {
        vec![
            ("ACTIONS_ID_TOKEN_REQUEST_URL".to_owned(), format!("{}/oidc?api-version=2.0", self.endpoint())),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN".to_owned(), self.world.ci_request_token.clone()),
        ]
    }

    /// ARN of the first role.
    #[must_use]
    pub fn role_arn(&self) -> String {
        let config = &self.world.config;
        let role = config.roles.first().map_or("none", String::as_str);
        format!("arn:aws:iam::{}:role/{role}", config.account)
    }

    /// The file with an OIDC token, which is written again before the token expires.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.folder.path().join(TOKEN_FILE)
    }

    /// PEM file of the gateway's authority, if stream URLs are `wss`.
    #[must_use]
    pub fn gateway_authority(&self) -> Option<PathBuf> {
        let wss = self.world.config.stream_scheme == StreamScheme::Wss;
        wss.then(|| self.folder.path().join(AUTHORITY_FILE))
    }

    /// Names of the clusters, in the order of the configuration.
    #[must_use]
    pub fn cluster_names(&self) -> Vec<String> {
        self.world.clusters.iter().map(|cluster| cluster.config.name.clone()).collect()
    }

    /// The clusters' API servers: a shortcut past the tunnel.
    #[must_use]
    pub fn api_servers(&self) -> Vec<ApiServer> {
        kube::servers(&self.world)
    }

    /// A certificate by which a client logs in to a cluster's API server as a user; `None` if there is no such cluster.
    #[must_use]
    pub fn client_certificate(&self, cluster: &str, user: &str) -> Option<ClientCertificate> {
        kube::client_certificate(&self.world, cluster, user)
    }

    /// Where the message gateway listens.
    #[must_use]
    pub fn gateway(&self) -> Place {
        self.world.gateway.clone()
    }

    /// The access key of credentials that have just been made and last until [`Self::expire_credentials`], for
    /// [`Self::call`].
    #[must_use]
    pub fn new_access_key(&self) -> String {
        issue_static_keys(&self.world).access_key
    }

    /// Calls an operation of Systems Manager, `StartSession` and the like, without HTTP: its input in, its output
    /// out. Everything else is as on the API port: delays, failures and denials of the script, expired credentials.
    ///
    /// # Errors
    /// What the service answers instead.
    pub async fn call(&self, access_key: &str, operation: &str, input: &Value) -> Result<Value, ApiError> {
        api::call_ssm(&self.world, access_key, operation, input).await
    }

    /// Calls an operation of Elastic Container Service, as [`call`](Self::call) does one of Systems Manager.
    ///
    /// # Errors
    /// What the service answers instead.
    pub async fn call_ecs(&self, access_key: &str, operation: &str, input: &Value) -> Result<Value, ApiError> {
        api::call_ecs(&self.world, access_key, operation, input).await
    }

    /// Makes an OIDC token.
    #[must_use]
    pub fn mint_oidc_token(&self, claims: &OidcClaims) -> String {
        self.world.oidc.mint(claims, self.world.clock.wall())
    }

    /// Claims of a good OIDC token that lives so long.
    #[must_use]
    pub fn oidc_claims(&self, lifetime: Duration) -> OidcClaims {
        OidcClaims {
            issuer: OIDC_ISSUER.to_owned(),
            audience: OIDC_AUDIENCE.to_owned(),
            subject: "system:serviceaccount:default:autoheal".to_owned(),
            expires: self.world.clock.wall() + lifetime,
        }
    }

    fn write_token(&self) -> io::Result<()> {
        write_token(&self.world, &self.token_file())
    }

    // What has happened.

    /// All events, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.world.journal.events()
    }

    /// What clients did wrong; empty is good.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.world.journal.violations()
    }

    /// All sessions, ended ones too, by id.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionInfo> {
        lock(&self.world.sessions).values().map(|session| session.info()).collect()
    }

    /// Forgets the sessions that have ended, which are kept for those who ask for what has happened.
    pub fn forget_ended_sessions(&self) {
        lock(&self.world.sessions).retain(|_, session| session.state() != SessionState::Ended);
    }

    /// Waits until a condition on this emulator holds. It is looked at after every event and message.
    ///
    /// # Cancel safety
    /// Safe: put it under a deadline.
    pub async fn wait_until(&self, mut condition: impl FnMut(&Self) -> bool) {
        let mut changes = self.world.journal.subscribe();
        while !condition(self) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// All tasks of Elastic Container Service that are told of, oldest first.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskInfo> {
        ecs::infos(&self.world)
    }

    /// Deploys a service anew, or all of them: other tasks start, and when they run the old ones stop. Returns how many
    /// services it is.
    pub fn deploy(&self, service: Option<&str>) -> usize {
        ecs::deploy(&self.world, service)
    }

    /// Stops a task, by its ARN or id, with a code such as `UserInitiated` or `TerminationNotice`; returns whether there is
    /// one.
    pub fn stop_task(&self, task: &str, code: &str, reason: &str) -> bool {
        ecs::stop_one(&self.world, task, code, reason)
    }

    /// Makes a task that much older, by its ARN or id: it says so itself, and ends so much earlier by its life and by
    /// disuse, at once if that is due. Its tags stay as they are. Returns whether there is one.
    pub fn age_task(&self, task: &str, by: Duration) -> bool {
        ecs::age(&self.world, task, by)
    }

    /// Has an instance write something to its console, in the place of what was there.
    pub fn write_to_console(&self, instance: &str, text: &str) {
        self.world.fleet.write_to_console(instance, text);
    }

    /// Gives an instance another public address, as a stop and a start do, or none.
    pub fn change_public_address(&self, instance: &str, address: Option<&str>) {
        self.world.fleet.change_public_address(instance, address);
    }

    /// Lets Auto Scaling replace an instance; returns the id of the new one, or `None` if there is no such instance.
    pub fn replace_instance(&self, id: &str) -> Option<String> {
        fleet::replace(&self.world, id)
    }

    /// Whether an instance's agent is connected.
    #[must_use]
    pub fn is_online(&self, instance: &str) -> bool {
        self.world.fleet.find(instance).is_some_and(|instance| fleet::is_online(&self.world, &instance))
    }

    // What goes wrong.

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.world.settings().clone()
    }

    /// Changes the settings, for sessions that are live as well as for new ones.
    pub fn update(&self, change: impl FnOnce(&mut Settings)) {
        self.world.update(change);
    }

    /// Does something to all sessions that are not over; returns how many they are.
    pub fn command(&self, command: &Command) -> usize {
        self.world.command(command)
    }

    /// Does something to one session.
    pub fn command_session(&self, id: &str, command: Command) {
        if let Some(session) = self.world.session(id) {
            session.control(Control::Command(command));
        }
    }

    /// Lets all credentials that were handed out expire, those of the environment too.
    pub fn expire_credentials(&self) {
        lock(&self.world.credentials).expire_all(self.world.clock.wall());
    }

    /// Adds a destination as agents see it, `host:port`, or leads a known one elsewhere.
    pub fn route(&self, destination: impl Into<String>, place: impl Into<Place>) {
        lock(&self.world.routes).insert(destination.into(), place.into());
    }
}

/// The services that the environment names an endpoint of, as the variables call them.
const SERVICES: [&str; 10] =
    ["STS", "EKS", "SSM", "ECS", "EC2", "EC2_INSTANCE_CONNECT", "SSO", "SSO_OIDC", "IAM", "AUTO_SCALING"];

const TOKEN_FILE: &str = "oidc-token";

const AUTHORITY_FILE: &str = "gateway-ca.pem";

fn issue_static_keys(world: &World) -> Keys {
    let account = &world.config.account;
    let caller = match world.config.roles.first() {
        Some(role) => world.role_caller(&format!("arn:aws:iam::{account}:role/{role}"), "emulator"),
        None => None,
    };
    let caller = caller.unwrap_or_else(|| Caller {
        account: account.clone(),
        arn: format!("arn:aws:iam::{account}:user/emulator"),
        user_id: "AIDAEMULATEDUSER00000".to_owned(),
        session_name: "emulator".to_owned(),
        assumed_role: false,
        access_request: None,
    });
    lock(&world.credentials).issue(caller, None)
}

/// Writes the token file in one step, so that nobody reads half a token.
fn write_token(world: &World, path: &Path) -> io::Result<()> {
    let now = world.clock.wall();
    let claims = OidcClaims {
        issuer: OIDC_ISSUER.to_owned(),
        audience: OIDC_AUDIENCE.to_owned(),
        subject: "system:serviceaccount:default:autoheal".to_owned(),
        expires: now + world.config.oidc_token_lifetime,
    };
    let next = path.with_extension("next");
    std::fs::write(&next, format!("{}\n", world.oidc.mint(&claims, now)))?;
    std::fs::rename(&next, path)
}

async fn rotate_token(world: Arc<World>, path: PathBuf) {
    let pause = world.config.oidc_token_lifetime.mul_f64(ROTATION).max(Duration::from_millis(100));
    loop {
        tokio::select! {
            biased;
            () = world.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        if let Err(error) = write_token(&world, &path) {
            tracing::warn!(%error, "the token file could not be written");
        }
    }
}

async fn serve_api(world: Arc<World>, mut listener: Listener) {
    while let Some(wire) = listener.accept(&world.stop).await {
        let (owner, world) = (world.clone(), world.clone());
        owner.tasks.spawn(async move {
            let stop = world.stop.clone();
            http::serve(wire, stop, &world.clock, |request| api::answer(&world, request)).await;
        });
    }
}

async fn serve_gateway(world: Arc<World>, mut listener: Listener, acceptor: Option<TlsAcceptor>) {
    while let Some(wire) = listener.accept(&world.stop).await {
        let (owner, world, acceptor) = (world.clone(), world.clone(), acceptor.clone());
        let stop = world.stop.clone();
        let connection = async move {
            match acceptor {
                None => gateway::serve(world, wire).await,
                Some(acceptor) => match acceptor.accept(wire).await {
                    Ok(tls) => gateway::serve(world, tls).await,
                    Err(error) => tracing::debug!(%error, "a TLS handshake failed"),
                },
            }
        };
        owner.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = connection => {}
            }
        });
    }
}

async fn serve_tunnels(world: Arc<World>, mut listener: Listener) {
    while let Some(wire) = listener.accept(&world.stop).await {
        let (owner, world) = (world.clone(), world.clone());
        owner.tasks.spawn(async move {
            let stop = world.stop.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = instance_connect::serve(world, wire) => {}
            }
        });
    }
}

/// The host of a URL that leads to a place.
fn host_of(place: &Place) -> String {
    match place {
        Place::Socket(address) => address.to_string(),
        Place::Memory(_) => "memory".to_owned(),
    }
}
