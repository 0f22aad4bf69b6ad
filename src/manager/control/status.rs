//! What a manager says of itself: the form in which it travels and in which `status --json` shows it.
//!
//! Times are RFC 3339 in UTC with whole seconds, or `null` where there is none. Fields are only added, never removed
//! or given another meaning, as long as `version` stays the same.

use serde::{Deserialize, Serialize};

use crate::util::written::Timestamp;

/// A manager at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerStatus {
    /// The version of this form: 1.
    pub version: u32,
    /// The version of the program that the manager is; `null`: one that did not say so yet.
    #[serde(default)]
    pub program: Option<String>,
    /// The manager's name.
    pub name: String,
    /// `starting`, `active` (all tunnels), `degraded` (some), `failed` (none) or `stopping`.
    pub state: String,
    /// The manager's process id.
    pub pid: u32,
    /// Since when it has been in this state.
    pub since: Timestamp,
    pub started_at: Timestamp,
    /// The ARN of the user or assumed role; with several accesses, of the first; `null` until it is known.
    pub identity: Option<String>,
    /// When the credentials expire, the first of them if there are several; `null`: never, or not known yet.
    pub credentials_expire: Option<Timestamp>,
    /// Every tunnel is listed.
    #[serde(default)]
    pub opened: bool,
    /// The path of the kubeconfig; `null` until it has been written and every tunnel is listed, and where there are forwards
    /// alone.
    pub kubeconfig: Option<String>,
    /// The paths of the kubeconfigs that have the users of imported contexts: `KUBECONFIG` has to name these as well.
    #[serde(default)]
    pub imported_from: Vec<String>,
    /// The proxy; `null`: there is none.
    #[serde(default)]
    pub proxy: Option<ProxyStatus>,
    /// Where the metrics are, as a URL; `null`: nowhere.
    #[serde(default)]
    pub metrics: Option<String>,
    /// The audit file; `null`: there is none.
    pub audit: Option<String>,
    /// The path of the log; `null`: it goes to the manager's stderr.
    pub log: Option<String>,
    /// The accesses, in their order.
    pub access: Vec<AccessStatus>,
    /// The tunnels, in the order in which they were started.
    pub tunnels: Vec<TunnelReport>,
}

/// The proxy of a manager. It leads to the `endpoint` of each tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// The address and the port where programs of this machine find it, for HTTP and for SOCKS5.
    pub address: String,
    /// What it does with all other names: `refuse` or `direct`.
    pub others: String,
    /// Clients that are connected.
    pub open_connections: usize,
    /// Clients that have connected since the start.
    pub connections_total: u64,
    /// Requests that it has refused since the start.
    pub refused_total: u64,
}

/// An access: an identity in a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessStatus {
    pub region: String,
    pub account: String,
    /// The ARN of the user or assumed role.
    pub identity: String,
    /// Where the credentials come from, in words.
    pub source: String,
    /// Other sources of credentials that were there, with the reason why they were not taken.
    #[serde(default)]
    pub passed_over: Vec<String>,
    /// How far the clock of this machine is off, in words; `null`: not known, or not far.
    #[serde(default)]
    pub clock: Option<String>,
    /// When the credentials expire; `null`: never.
    pub credentials_expire: Option<Timestamp>,
    /// Why they cannot be renewed; `null`: they can, or it is not time yet.
    pub credentials_error: Option<String>,
    /// What to do about that.
    #[serde(default)]
    pub credentials_hint: Option<String>,
    /// When somebody has to sign in to IAM Identity Center again; `null`: nobody, as far as is known.
    #[serde(default)]
    pub sign_in_ends: Option<Timestamp>,
    /// The profile that has to be signed in then.
    #[serde(default)]
    pub sign_in_profile: Option<String>,
    /// The bastions in order of preference.
    pub bastions: Vec<String>,
    /// The requests for access to bastions; empty without `--request-access`.
    #[serde(default)]
    pub approvals: Vec<ApprovalStatus>,
}

/// A request for access to a bastion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalStatus {
    /// The instance or managed node.
    pub target: String,
    /// The id of the request; `null`: there is none at present.
    pub request: Option<String>,
    /// `waiting`, `approved`, `over` (it was approved), `rejected`, `revoked`, `expired` (nobody approved it) or `withdrawn`.
    pub state: String,
    /// Until when sessions can be started for certain; `null`: not now.
    pub until: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelReport {
    /// The context, or the name of a forward.
    pub context: String,
    /// The cluster's name, or that of a forward.
    pub cluster: String,
    /// The host and port that it leads to, as seen from the bastion; the proxy knows it by them.
    #[serde(default)]
    pub endpoint: String,
    /// The host and port that a forward leads to; `null` for a cluster.
    #[serde(default)]
    pub forward: Option<String>,
    /// It was imported from the context of this name, and is not one of EKS.
    #[serde(default)]
    pub imported: bool,
    /// The cluster's region.
    pub region: String,
    /// The cluster's account id.
    pub account: String,
    /// The local port, on 127.0.0.1.
    pub port: u16,
    /// `starting`, `active`, `idle`, `reconnecting`, `degraded`, `failed` or `stopped`.
    pub state: String,
    /// Since when it has been in this state.
    pub since: Timestamp,
    /// The id of the session that is always there, by which CloudTrail knows it; `null` while there is none.
    pub session_id: Option<String>,
    /// The bastion that was asked for, of those that were named.
    #[serde(default)]
    pub bastion: Option<String>,
    /// The target that this session runs on, or is being started on.
    pub target: Option<String>,
    /// What it waits for before there is a session, in words.
    #[serde(default)]
    pub progress: Option<String>,
    /// The version of the agent there, once it has spoken.
    pub agent_version: Option<String>,
    /// Local connections that are open, waiting ones included.
    pub open_connections: usize,
    /// Local connections that have been served since the start.
    pub connections_total: u64,
    /// Bytes from local programs since the start.
    pub bytes_sent: u64,
    /// Bytes for local programs since the start.
    pub bytes_received: u64,
    /// How often a session got another WebSocket.
    pub resumes: u64,
    /// How often a session was replaced by a new one.
    pub restarts: u64,
    /// Round trip of the last successful probe, in milliseconds: a stream opened and a TLS handshake.
    pub probe_rtt_ms: Option<u64>,
    /// When that probe ended.
    pub probed_at: Option<Timestamp>,
    /// The last thing that went wrong, in one sentence. It stays when it is over.
    pub last_error: Option<String>,
    /// When it went wrong.
    pub last_error_at: Option<Timestamp>,
    /// What to do about it.
    pub hint: Option<String>,
    /// All sessions: the one that is always there, then others in the order of their starts. Connections that are open,
    /// bytes and resumes of the tunnel are those of all of them, and of some that have ended.
    // A manager of an earlier version does not say.
    #[serde(default)]
    pub sessions: Vec<SessionReport>,
}

impl TunnelReport {
    /// One of which nothing is known.
    #[cfg(test)]
    pub(crate) fn unused(since: Timestamp) -> Self {
        Self {
            context: String::new(),
            cluster: String::new(),
            endpoint: String::new(),
            forward: None,
            imported: false,
            region: String::new(),
            account: String::new(),
            port: 0,
            state: String::new(),
            since,
            session_id: None,
            bastion: None,
            target: None,
            progress: None,
            agent_version: None,
            open_connections: 0,
            connections_total: 0,
            bytes_sent: 0,
            bytes_received: 0,
            resumes: 0,
            restarts: 0,
            probe_rtt_ms: None,
            probed_at: None,
            last_error: None,
            last_error_at: None,
            hint: None,
            sessions: Vec::new(),
        }
    }

    /// Whether it can be used: it works, or a session is started for the first connection.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.state.as_str(), "active" | "idle")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionReport {
    /// The session's id, by which CloudTrail knows it; `null` while there is none.
    pub session_id: Option<String>,
    /// The bastion that was asked for, of those that were named.
    #[serde(default)]
    pub bastion: Option<String>,
    /// The target that it runs on, or is being started on.
    pub target: String,
    /// The version of the agent there, once it has spoken.
    pub agent_version: Option<String>,
    /// `starting`, `active`, `reconnecting`, `degraded` or `failed`.
    pub state: String,
    /// Since when it has been in this state.
    pub since: Timestamp,
    /// Local connections that it carries.
    pub open_connections: usize,
    /// Bytes from local programs, through this session and those that it has replaced.
    pub bytes_sent: u64,
    /// Bytes for local programs, through this session and those that it has replaced.
    pub bytes_received: u64,
    /// Round trip of its last successful probe, in milliseconds.
    pub probe_rtt_ms: Option<u64>,
    /// Messages that were lost with a WebSocket and that the agent repeats, ten a second, before open connections go on;
    /// 0 where that takes no longer than a new session would.
    #[serde(default)]
    pub messages_behind: usize,
    /// A local program does not take what has come, so the session is read more slowly.
    #[serde(default)]
    pub held_back: bool,
}
