//! What is emulated: clusters, bastions, identities and limits, fixed when the emulator starts.
//!
//! What may change while it runs is in [`Settings`].

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::{ConnectEndpointConfig, EcsConfig, Settings, SshServerConfig, SsoConfig, VpcConfig, vpc::DEFAULT_VPC};

/// Everything that an emulator is started with. The default is one account in `us-east-1` with two
/// private clusters and one bastion.
#[derive(Debug, Clone)]
pub struct Config {
    /// TCP port of the API on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// The region that the environment names.
    pub region: String,
    /// The account id, twelve digits.
    pub account: String,
    /// The EKS clusters.
    pub clusters: Vec<ClusterConfig>,
    /// What Systems Manager can connect to; the first is the one that the environment names.
    pub bastions: Vec<BastionConfig>,
    /// What the environment names as the bastion; `None`: the first of the bastions.
    pub named_bastion: Option<String>,
    pub ecs: EcsConfig,
    /// How long an instance that Auto Scaling starts takes until its agent is connected.
    pub instance_start: Duration,
    /// The endpoints of EC2 Instance Connect.
    pub connect_endpoints: Vec<ConnectEndpointConfig>,
    /// The networks; services run in the first.
    pub vpcs: Vec<VpcConfig>,
    /// Which credentials the environment names.
    pub identity: Identity,
    /// Names of the roles that can be assumed; the first is the one that the environment names.
    pub roles: Vec<String>,
    /// Longest session that a role allows.
    pub role_max_duration: Duration,
    /// Lifetime of every session credential, whatever the caller asks for; `None`: what the caller
    /// asks for, one hour if nothing.
    pub credential_lifetime: Option<Duration>,
    /// Lifetime of the OIDC tokens in the token file and from the CI endpoint. The file is written
    /// again before its token expires.
    pub oidc_token_lifetime: Duration,
    /// IAM Identity Center.
    pub sso: SsoConfig,
    /// How long a session's token opens a transport.
    pub stream_token_lifetime: Duration,
    /// Scheme of the stream URLs.
    pub stream_scheme: StreamScheme,
    /// Most names in one answer of `ListClusters`.
    pub list_page_len: usize,
    /// The agents on all bastions.
    pub agent: AgentConfig,
    /// What the service does with an agent's messages while no client is connected.
    pub absent_client: AbsentClient,
    /// Ends a session whose client sends no data for so long.
    pub idle_timeout: Duration,
    /// Ends a session of this age; `None`: never.
    pub max_session_duration: Option<Duration>,
    /// Destinations besides the clusters, as the agents see them: `name:port`, and where on this
    /// machine it leads.
    pub hosts: Vec<(String, SocketAddr)>,
    /// How often one pod of each cluster changes its state; `None`: never.
    pub pod_churn: Option<Duration>,
    /// Seed of everything that happens by chance on the links.
    pub seed: u64,
    /// API servers take callers without a token, so that a client needs no credentials.
    pub anonymous_access: bool,
    /// What the emulator takes for the true time, since the Unix epoch; `None`: the system's clock.
    pub wall: Option<fn() -> Duration>,
    /// What is in force at the start.
    pub settings: Settings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 0,
            region: "us-east-1".to_owned(),
            account: "123456789012".to_owned(),
            clusters: vec![ClusterConfig::new("payments"), ClusterConfig::new("search")],
            bastions: vec![BastionConfig::new("i-0dc03fbcae2a87472")],
            named_bastion: None,
            ecs: EcsConfig::default(),
            instance_start: Duration::from_secs(1),
            connect_endpoints: Vec::new(),
            vpcs: vec![VpcConfig::default()],
            identity: Identity::WebIdentity,
            roles: vec!["AutohealReadOnlyRole".to_owned(), "AutohealAdminRole".to_owned()],
            role_max_duration: Duration::from_secs(43_200),
            credential_lifetime: None,
            oidc_token_lifetime: Duration::from_secs(3600),
            sso: SsoConfig::default(),
            stream_token_lifetime: Duration::from_secs(60),
            stream_scheme: StreamScheme::Ws,
            list_page_len: 100,
            agent: AgentConfig::default(),
            absent_client: AbsentClient::Pause,
            idle_timeout: Duration::from_secs(20 * 60),
            max_session_duration: None,
            hosts: Vec::new(),
            pod_churn: Some(Duration::from_secs(2)),
            seed: 1,
            anonymous_access: false,
            wall: None,
            settings: Settings::default(),
        }
    }
}

impl Config {
    /// The default with so many clusters, called `demo-1`, `demo-2` and so on.
    #[must_use]
    pub fn with_clusters(count: usize) -> Self {
        Self { clusters: (1..=count).map(|n| ClusterConfig::new(format!("demo-{n}"))).collect(), ..Self::default() }
    }
}

/// Which credentials [`Emulator::environment`](super::Emulator::environment) names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// A role and a file with an OIDC token.
    WebIdentity,
    /// Access key, secret key and session token.
    StaticKeys,
}

/// Scheme of the stream URLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamScheme {
    /// Plain WebSocket, which a client should accept on loopback only.
    Ws,
    /// WebSocket over TLS, with a certificate for 127.0.0.1 of an authority of the emulator's own.
    Wss,
}

/// One EKS cluster.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// The name.
    pub name: String,
    /// The region; `None`: that of the [`Config`].
    pub region: Option<String>,
    /// The Kubernetes version, `1.33` and the like.
    pub version: String,
    /// The status that EKS reports.
    pub status: String,
    /// Whether the API server is reachable from the internet, as far as EKS says.
    pub public_access: bool,
    /// Whether the API server is reachable from its network, as far as EKS says.
    pub private_access: bool,
    /// `API`, `API_AND_CONFIG_MAP` or `CONFIG_MAP`; `None` leaves the field out.
    pub authentication_mode: Option<String>,
    /// Whether EKS reports an endpoint and a certificate authority; a cluster being created has none.
    pub has_endpoint: bool,
    /// Whether the cluster is a registered external one, which `ListClusters` does not list unasked.
    pub connected: bool,
    /// Whether the cluster is a local one on an Outpost, whose tokens name its id.
    pub outpost: bool,
    /// Whether the cluster is one with IPv6, whose endpoint is below `api.aws`.
    pub ipv6: bool,
    /// Whether its endpoint is where its API server is, so that everybody on this machine reaches it.
    pub local: bool,
    /// What stands before the API server of a local one and is its endpoint then.
    pub front: Option<SocketAddr>,
    /// Whether its certificates have the keys that those of EKS have: RSA with 2048 bits. They take long to make.
    pub rsa: bool,
    /// Whether the roles of the account have an access entry; without it the API server answers 401.
    pub access_entry: bool,
    /// Id of its VPC; empty: EKS does not say.
    pub vpc: String,
    /// Id of the security group of its own, which admits none but its members of the tasks that are run by themselves; `None`:
    /// the first of its VPC.
    pub security_group: Option<String>,
}

impl ClusterConfig {
    /// An active private cluster.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            region: None,
            version: "1.33".to_owned(),
            status: "ACTIVE".to_owned(),
            public_access: false,
            private_access: true,
            authentication_mode: Some("API_AND_CONFIG_MAP".to_owned()),
            has_endpoint: true,
            connected: false,
            outpost: false,
            ipv6: false,
            local: false,
            front: None,
            rsa: false,
            access_entry: true,
            vpc: DEFAULT_VPC.to_owned(),
            security_group: None,
        }
    }

    /// A cluster that is being created and has no endpoint yet.
    #[must_use]
    pub fn creating(name: impl Into<String>) -> Self {
        Self { status: "CREATING".to_owned(), has_endpoint: false, ..Self::new(name) }
    }

    /// Returns the id of its security group.
    pub(super) fn group<'a>(&'a self, vpcs: &'a [VpcConfig]) -> Option<&'a String> {
        let of_vpc = || vpcs.iter().find(|vpc| vpc.id == self.vpc)?.security_groups.first();
        self.security_group.as_ref().or_else(of_vpc)
    }

    /// A registered external cluster.
    #[must_use]
    pub fn connected(name: impl Into<String>) -> Self {
        Self { connected: true, has_endpoint: false, ..Self::new(name) }
    }
}

/// One target of Systems Manager.
#[derive(Debug, Clone)]
pub struct BastionConfig {
    /// `i-…`, `mi-…` or `ecs:…`.
    pub id: String,
    /// Whether its agent is connected at the start.
    pub online: bool,
    /// The version that its agent reports.
    pub agent_version: String,
    /// Session documents that may be used with it.
    pub documents: Vec<String>,
    /// Its tags, `Name` among them.
    pub tags: BTreeMap<String, String>,
    /// Id of its VPC.
    pub vpc: String,
    /// Its private IPv4 address; `None`: one that is free; empty: it has none.
    pub private_address: Option<String>,
    /// Its public IPv4 address, if it has one.
    pub public_address: Option<String>,
    /// Its operating system, `Amazon Linux` and the like; Windows is known by its name.
    pub platform: String,
    /// Whether Systems Manager knows it at all; other instances are EC2's only.
    pub managed: bool,
    /// What it has written to its console.
    pub console: Option<String>,
    /// Its SSH server, if it has one.
    pub ssh: Option<SshServerConfig>,
}

/// What Auto Scaling tags its instances with.
pub(super) const GROUP_TAG: &str = "aws:autoscaling:groupName";

impl BastionConfig {
    /// A bastion that is online, with a recent agent and both port forwarding documents.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            online: true,
            agent_version: "3.3.1142.0".to_owned(),
            documents: vec![REMOTE_HOST_DOCUMENT.to_owned(), PORT_DOCUMENT.to_owned()],
            tags: BTreeMap::new(),
            vpc: DEFAULT_VPC.to_owned(),
            private_address: None,
            public_address: None,
            platform: "Amazon Linux".to_owned(),
            managed: true,
            console: None,
            ssh: None,
        }
    }

    /// The same with a tag more.
    #[must_use]
    pub fn tagged(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.insert(key.into(), value.into());
        self
    }

    /// The same as a member of an Auto Scaling group.
    #[must_use]
    pub fn in_group(self, group: impl Into<String>) -> Self {
        self.tagged(GROUP_TAG, group)
    }
}

/// The document that forwards to a host behind the target.
pub(super) const REMOTE_HOST_DOCUMENT: &str = "AWS-StartPortForwardingSessionToRemoteHost";

/// The document that forwards to the target itself.
pub(super) const PORT_DOCUMENT: &str = "AWS-StartPortForwardingSession";

/// How the agents behave, as far as it is a matter of pace. Defaults are those of amazon-ssm-agent
/// 3.3.1142.0, but for the pace, which is off.
#[derive(Debug, Clone, Copy)]
pub struct AgentConfig {
    /// Least pause after each data message; real agents ask for a sleep of 1 ms.
    pub pace: Option<Duration>,
    /// How much longer than that a pause takes on average, by chance from the session's seed: a sleep of Go ends when the
    /// scheduler gets to it, and the message has to be written.
    pub oversleep: Duration,
    /// Most data messages that wait for an acknowledgement before the agent stops reading from
    /// destinations. Real agents have no such limit, but their pace keeps no more than this in flight at
    /// usual round trip times; without both, a cut loses whatever the sockets hold.
    pub window: Option<usize>,
    /// Bytes that are on their way within the agent before it stops reading from destinations: what the socket between
    /// its connections and its messages holds. No frame is longer.
    pub pipe: usize,
    /// How often the agent looks whether its oldest unacknowledged message is overdue; 100 ms.
    pub tick: Duration,
    /// How long after the end of the handshake data is dropped without acknowledgement, while the
    /// agent resolves the host.
    pub not_ready: Duration,
    /// When the agent begins.
    pub start: AgentStart,
    /// How long the agent waits for the handshake response; 15 s.
    pub handshake_timeout: Duration,
    /// How long the agent waits for acknowledgements before it ends; 2 s.
    pub drain: Duration,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            pace: None,
            oversleep: Duration::ZERO,
            window: Some(256),
            pipe: 256 << 10,
            tick: Duration::from_millis(100),
            not_ready: Duration::from_millis(20),
            start: AgentStart::WithClient,
            handshake_timeout: Duration::from_secs(15),
            drain: Duration::from_secs(2),
        }
    }
}

impl AgentConfig {
    /// An agent with the pace of a real one, and without a window. Real sessions were measured to bring 0.6 to 0.8 MB/s:
    /// it sends about 700 messages a second, and never more than 1000.
    #[must_use]
    pub fn paced() -> Self {
        let (pace, oversleep) = (Some(Duration::from_millis(1)), Duration::from_micros(430));
        Self { pace, oversleep, window: None, ..Self::default() }
    }
}

/// When an agent sends its handshake request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentStart {
    /// As soon as the client's first transport is open.
    WithClient,
    /// So long after `StartSession`, whether a client is there or not.
    After(Duration),
}

/// What the service does with an agent's messages while no client is connected. How the real one
/// behaves is not known; clients must get along with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbsentClient {
    /// Drops the message and tells the agent to pause until the client is back.
    Pause,
    /// Drops every message; the agent goes on.
    Drop,
    /// Keeps the messages, up to a limit, and delivers them to the next transport.
    Hold,
}
