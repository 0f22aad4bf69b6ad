//! What a tunnel shows of itself.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Fault, SessionId, fault::display_chain};
use crate::{
    cluster::{Cluster, Target},
    route::ssm::proto::{Now, Version},
};

/// The state of a tunnel, or of one of its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It has not worked yet.
    Starting,
    /// It works, as far as the last proof goes.
    Active,
    /// It worked, and is being resumed or started again.
    Reconnecting,
    /// The session is there and the API server is not, or not always.
    Degraded,
    /// Only a human can help; it is tried again all the same, slowly.
    Failed,
    /// It has been stopped.
    Stopped,
}

impl State {
    /// Returns the state's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Reconnecting => "reconnecting",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }

    /// Returns the state of a tunnel whose sessions have these: the best of them, as that is the one
    /// which new connections get.
    pub(super) fn of(sessions: impl Iterator<Item = Self>) -> Self {
        let rank = |state: &Self| match state {
            Self::Active => 0,
            Self::Degraded => 1,
            Self::Reconnecting => 2,
            Self::Starting => 3,
            Self::Failed => 4,
            Self::Stopped => 5,
        };
        sessions.min_by_key(rank).unwrap_or(Self::Stopped)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A tunnel at one moment. The tunnel is the only source of it.
#[derive(Debug, Clone)]
pub struct TunnelStatus {
    /// The cluster that the tunnel leads to.
    pub cluster: Arc<Cluster>,
    /// The local port.
    pub port: u16,
    /// Its state.
    pub state: State,
    /// Since when it has been in this state.
    pub since: SystemTime,
    /// When it was first proved to work.
    pub ready_at: Option<SystemTime>,
    /// Its sessions: the one that is always there, then others in the order of their starts. Those without a target yet
    /// are left out.
    pub sessions: Vec<SessionStatus>,
    /// Local connections that are open, held ones included.
    pub open_connections: usize,
    /// Local connections that wait for a session.
    pub held_connections: usize,
    /// Local connections that were given a stream since the start.
    pub connections_total: u64,
    /// Bytes from local programs since the start.
    pub bytes_sent: u64,
    /// Bytes for local programs since the start.
    pub bytes_received: u64,
    /// How often a session got another transport.
    pub resumes: u64,
    /// How often a session was replaced by a new one.
    pub restarts: u64,
    /// The last thing that went wrong. It stays when it is over.
    pub last_error: Option<LastError>,
    /// The last successful probe.
    pub last_probe: Option<ProbeStatus>,
}

impl TunnelStatus {
    /// Returns the session that is always there.
    #[must_use]
    pub fn session(&self) -> Option<&SessionStatus> {
        self.sessions.first()
    }

    /// Takes note, in place of the tunnel, that its task has panicked with this message.
    pub fn set_panicked(&mut self, message: String, now: Now) {
        let at = system_time(now.wall);
        self.state = State::Failed;
        self.since = at;
        self.sessions.clear();
        self.last_error = Some(LastError { at, fault: Arc::new(Fault::Panicked { message }) });
    }

    /// Whether the tunnel is proved to work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state == State::Active
    }
}

/// One session of a tunnel.
#[derive(Debug, Clone)]
pub struct SessionStatus {
    /// Its id, by which CloudTrail knows it; `None` while there is none.
    pub id: Option<SessionId>,
    /// When it was started.
    pub started_at: Option<SystemTime>,
    /// The target that it runs on, or is being started on.
    pub target: Target,
    /// The agent's version, once the agent has spoken.
    pub agent_version: Option<Version>,
    /// Its state.
    pub state: State,
    /// Since when it has been in this state.
    pub since: SystemTime,
    /// Local connections that it carries.
    pub open_connections: usize,
    /// Bytes from local programs, through this session and those that it has replaced.
    pub bytes_sent: u64,
    /// Bytes for local programs, through this session and those that it has replaced.
    pub bytes_received: u64,
    /// Round trip of its last probe that succeeded.
    pub probe_round_trip: Option<Duration>,
    /// Messages of the agent that were lost with a transport, and that the agent has to repeat before what came after
    /// them can be used, if that takes longer than starting another session; else 0.
    pub messages_behind: usize,
    /// It is read more slowly than data comes, as a local program does not take it.
    pub held_back: bool,
    /// Bytes that have come and that local programs have not taken.
    pub bytes_held: usize,
}

impl SessionStatus {
    /// Whether the session has been started and its agent has not spoken yet, for at least `silence`.
    #[must_use]
    pub fn awaits_agent(&self, silence: Duration, now: SystemTime) -> bool {
        let is_late = |at| now.duration_since(at).is_ok_and(|time| time >= silence);
        self.id.is_some() && self.agent_version.is_none() && self.started_at.is_some_and(is_late)
    }
}

/// Something that went wrong, and when.
#[derive(Debug, Clone)]
pub struct LastError {
    /// When.
    pub at: SystemTime,
    /// What, with its sources.
    pub fault: Arc<Fault>,
}

impl fmt::Display for LastError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&display_chain(&*self.fault))
    }
}

/// A successful probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeStatus {
    /// When it ended.
    pub at: SystemTime,
    /// Time from opening the stream to the end of the TLS handshake.
    pub round_trip: Duration,
    /// The HTTP status, if a request was sent.
    pub http_status: Option<u16>,
}

/// Converts a time since the Unix epoch.
pub(super) fn system_time(wall: Duration) -> SystemTime {
    SystemTime::UNIX_EPOCH + wall
}
