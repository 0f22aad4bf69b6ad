//! The flags exactly as they were typed: nothing here is checked or given a default.
//!
//! Values stay text, so that [`Settings`](super::Settings) can name everything that is wrong at once
//! instead of stopping at the first. Environment variables are not clap's business either.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

use super::source::{self, Layer};

/// Options that every command takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Common options")]
pub struct GlobalArgs {
    /// AWS region [env: AWS_REGION, AWS_DEFAULT_REGION, else the profile's]
    #[arg(long, global = true, value_name = "REGION")]
    pub region: Option<String>,
    /// Profile of the AWS configuration files [env: AWS_PROFILE]
    #[arg(long, global = true, value_name = "NAME")]
    pub profile: Option<String>,
    /// Role to assume [env: AWS_ROLE_ARN]
    #[arg(long, global = true, value_name = "ARN")]
    pub role_arn: Option<String>,
    /// Name of the role's session, which CloudTrail shows; an e-mail address will do [env: AWS_ROLE_SESSION_NAME]
    #[arg(long, global = true, value_name = "NAME")]
    pub role_session_name: Option<String>,
    /// File with an OIDC token, read again at each renewal [env: AWS_WEB_IDENTITY_TOKEN_FILE]
    #[arg(long, global = true, value_name = "PATH")]
    pub web_identity_token_file: Option<PathBuf>,
    /// Audience of the CI job's OIDC token [env: AUTOHEAL_PA_OIDC_AUDIENCE] [default: sts.amazonaws.com, in China
    /// sts.amazonaws.com.cn]
    #[arg(long, global = true, value_name = "AUDIENCE")]
    pub oidc_audience: Option<String>,
    /// How long the role's credentials last, 15m to 12h [default: 1h]
    #[arg(long, global = true, value_name = "DURATION")]
    pub duration: Option<String>,
    /// PEM file with certificate authorities to trust besides the system's [env: AWS_CA_BUNDLE]
    #[arg(long, global = true, value_name = "PATH")]
    pub ca_bundle: Option<PathBuf>,
    /// Host of the message gateway that sessions are connected to, where only a VPC endpoint's own name leads to it
    /// [env: AWS_ENDPOINT_URL_SSMMESSAGES]
    #[arg(long, global = true, value_name = "URL")]
    pub endpoint_ssmmessages: Option<String>,
    /// Configuration file, for everything that flags say and for several regions or accounts; /dev/null for none
    /// [default: ~/.config/autoheal-pa/config.yaml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of the manager, so that several can run side by side [default: default]
    #[arg(long, global = true, value_name = "NAME")]
    pub name: Option<String>,
    /// Logs more to stderr: -v what happens, -vv why, -vvv every message
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Form of the log
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t)]
    pub log_format: LogFormat,
}

impl GlobalArgs {
    /// Collects what was typed.
    pub(super) fn layer(&self) -> Layer {
        // Whoever adds an option decides here.
        let Self {
            region,
            profile,
            role_arn,
            role_session_name,
            web_identity_token_file,
            oidc_audience,
            duration,
            ca_bundle,
            endpoint_ssmmessages,
            config: _,
            name: _,
            verbose: _,
            log_format: _,
        } = self;
        let mut layer = Layer::default();
        layer.add_flag(&source::REGION, region);
        layer.add_flag(&source::PROFILE, profile);
        layer.add_flag(&source::ROLE_ARN, role_arn);
        layer.add_flag(&source::ROLE_SESSION_NAME, role_session_name);
        layer.add_flag(&source::WEB_IDENTITY_TOKEN_FILE, web_identity_token_file);
        layer.add_flag(&source::OIDC_AUDIENCE, oidc_audience);
        layer.add_flag(&source::DURATION, duration);
        layer.add_flag(&source::CA_BUNDLE, ca_bundle);
        layer.add_flag(&source::ENDPOINT_SSMMESSAGES, endpoint_ssmmessages);
        layer
    }
}

/// Form of the log on stderr.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line per event, for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// How the contexts of a kubeconfig lead to the clusters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum KubeconfigMode {
    /// Each by the local port of its tunnel, with the name for TLS beside it.
    #[default]
    Direct,
    /// By their own addresses, through a CONNECT proxy on this machine, for clients that ignore `tls-server-name`.
    Proxy,
}

impl KubeconfigMode {
    /// Returns the word for it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Proxy => "proxy",
        }
    }
}

/// Options of `up`.
#[derive(Debug, Clone, Default, Args)]
pub struct UpArgs {
    /// Bastion to connect through: an instance, managed node or ECS container; repeat it for others to fall
    /// back to, in this order [env: AUTOHEAL_PA_BASTION, separated by commas]
    #[arg(long, value_name = "TARGET")]
    pub bastion: Vec<String>,
    /// Cluster to open a tunnel to; repeat it for more, in the order of their ports [default: all that are active]
    #[arg(long, value_name = "NAME")]
    pub cluster: Vec<String>,
    /// First local port; clusters take this and the following ones, 0 any free ones [default: 10100]
    #[arg(long, value_name = "PORT")]
    pub base_port: Option<String>,
    /// Fails when a port is taken, instead of skipping it
    #[arg(long)]
    pub strict_ports: bool,
    /// Lets programs of other users of this machine connect to the local ports; on Linux only programs of this user and of root
    /// get through otherwise, elsewhere all do
    #[arg(long)]
    pub allow_other_users: bool,
    /// Kubeconfig to write the contexts to [default: ~/.kube/autoheal-pa.yaml, with --name x autoheal-pa-x.yaml]
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// Makes the first cluster the current context, also in a kubeconfig that has contexts of others
    #[arg(long)]
    pub set_current: bool,
    /// How the contexts lead to the clusters [default: direct]
    #[arg(long, value_enum, value_name = "MODE")]
    pub kubeconfig_mode: Option<KubeconfigMode>,
    /// Port of the CONNECT proxy with `--kubeconfig-mode proxy`; 0: any free one [default: the one before the first local port,
    /// 10099, or the next that is free]
    #[arg(long, value_name = "PORT")]
    pub proxy_port: Option<String>,
    /// What context names start with [default: pa-]
    #[arg(long, value_name = "PREFIX")]
    pub context_prefix: Option<String>,
    /// How long the tunnels may take until all are ready [default: 60s]
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<String>,
    /// How often each tunnel is proved to work, which also keeps its session from idling out; 0: only once [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub probe_interval: Option<String>,
    /// How long a lost session is tried to be resumed, which keeps open connections, before a new one is started [default: 90s]
    #[arg(long, value_name = "DURATION")]
    pub reconnect_timeout: Option<String>,
    /// Most sessions of a cluster, 1 to 16. An agent sends 0.6 to 0.8 MB/s through one, and small requests queue behind large
    /// ones. Further ones are started when connections come while others carry data, which then wait up to 2 s for them, and
    /// end after a minute without connections [default: 1]
    #[arg(long, value_name = "N")]
    pub sessions: Option<String>,
    /// Payload of a message that is sent, in bytes: larger ones carry more, which not every agent takes well [default: 1024]
    #[arg(long, value_name = "BYTES")]
    pub payload_size: Option<String>,
    /// Sends as fast as the agent takes it. AWS pauses, then closes sessions with more than about 1000 messages a second:
    /// for endpoints of your own
    #[arg(long)]
    pub no_rate_limit: bool,
    /// Reason for the sessions, which CloudTrail and Session Manager's history show
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// File to write shell lines to that set KUBECONFIG, to source when the tunnels are ready
    #[arg(long, value_name = "PATH")]
    pub env_file: Option<PathBuf>,
    /// Makes later steps of this GitHub Actions job use the kubeconfig: adds KUBECONFIG to the file of GITHUB_ENV
    #[arg(long)]
    pub github_env: bool,
    /// Runs in the background: returns when the tunnels are ready, or fails; `autoheal-pa down` stops it
    #[arg(long)]
    pub detach: bool,
    /// This is the process in the background that `--detach` has started.
    #[arg(long, hide = true)]
    pub background: bool,
}

impl UpArgs {
    /// Adds what was typed.
    pub(super) fn add_to(&self, layer: &mut Layer) {
        let Self {
            bastion,
            cluster,
            base_port,
            strict_ports,
            allow_other_users,
            kubeconfig,
            set_current,
            kubeconfig_mode,
            proxy_port,
            context_prefix,
            timeout,
            probe_interval,
            reconnect_timeout,
            sessions,
            payload_size,
            no_rate_limit,
            reason,
            env_file,
            github_env: _,
            detach: _,
            background: _,
        } = self;
        layer.add_flag(&source::BASTION, bastion);
        layer.add_flag(&source::CLUSTERS, cluster);
        layer.add_flag(&source::BASE_PORT, base_port);
        layer.add_flag(&source::STRICT_PORTS, strict_ports.then_some("true"));
        layer.add_flag(&source::ALLOW_OTHER_USERS, allow_other_users.then_some("true"));
        layer.add_flag(&source::KUBECONFIG, kubeconfig);
        layer.add_flag(&source::SET_CURRENT, set_current.then_some("true"));
        layer.add_flag(&source::KUBECONFIG_MODE, kubeconfig_mode.map(KubeconfigMode::as_str));
        layer.add_flag(&source::PROXY_PORT, proxy_port);
        layer.add_flag(&source::CONTEXT_PREFIX, context_prefix);
        layer.add_flag(&source::TIMEOUT, timeout);
        layer.add_flag(&source::PROBE_INTERVAL, probe_interval);
        layer.add_flag(&source::RECONNECT_TIMEOUT, reconnect_timeout);
        layer.add_flag(&source::SESSIONS, sessions);
        layer.add_flag(&source::PAYLOAD_SIZE, payload_size);
        layer.add_flag(&source::NO_RATE_LIMIT, no_rate_limit.then_some("true"));
        layer.add_flag(&source::REASON, reason);
        layer.add_flag(&source::ENV_FILE, env_file);
    }
}
