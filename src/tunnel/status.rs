//! What a tunnel shows of itself.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    remote::Remote,
    route::{Class, Fault},
    util::{peer_text::sentence, time::Now},
};

/// The state of a tunnel, or of one of its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It has not worked yet.
    Starting,
    /// It works, as far as the last proof goes.
    Active,
    /// It worked, and is being resumed or started again.
    Reconnecting,
    /// The link is there and the API server is not, or not always.
    Degraded,
    /// It has no link until a connection comes.
    Idle,
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
            Self::Idle => "idle",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }

    /// Returns the state of a tunnel whose links have these: the best of them, as that is the one
    /// which new connections get.
    pub(super) fn of(links: impl Iterator<Item = Self>) -> Self {
        let rank = |state: &Self| match state {
            Self::Active => 0,
            Self::Idle => 1,
            Self::Degraded => 2,
            Self::Reconnecting => 3,
            Self::Starting => 4,
            Self::Failed => 5,
            Self::Stopped => 6,
        };
        links.min_by_key(rank).unwrap_or(Self::Stopped)
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
    /// What the tunnel leads to.
    pub to: Arc<Remote>,
    /// The local port.
    pub port: u16,
    /// Its state.
    pub state: State,
    /// Since when it has been in this state.
    pub since: SystemTime,
    /// When it was first ready: proved to work, or left idle because another is.
    pub ready_at: Option<SystemTime>,
    /// Its links: the one that is always there, then others in the order of their starts. Those without a route yet
    /// are left out.
    pub links: Vec<LinkStatus>,
    /// Local connections that are open, held ones included.
    pub open_connections: usize,
    /// Local connections that wait for a link.
    pub held_connections: usize,
    /// Local connections that a link has carried since the start.
    pub connections_total: u64,
    /// Bytes from local programs since the start.
    pub bytes_sent: u64,
    /// Bytes for local programs since the start.
    pub bytes_received: u64,
    /// How often a link was resumed.
    pub resumes: u64,
    /// How often a link was replaced by a new one.
    pub restarts: u64,
    /// The last thing that went wrong. It stays when it is over.
    pub last_error: Option<LastError>,
    /// The last successful probe.
    pub last_probe: Option<ProbeStatus>,
}

impl TunnelStatus {
    /// A tunnel that has just been made: it is starting, and nothing has come of it yet.
    pub(crate) fn new(to: Arc<Remote>, port: u16, since: SystemTime) -> Self {
        Self {
            to,
            port,
            state: State::Starting,
            since,
            ready_at: None,
            links: Vec::new(),
            open_connections: 0,
            held_connections: 0,
            connections_total: 0,
            bytes_sent: 0,
            bytes_received: 0,
            resumes: 0,
            restarts: 0,
            last_error: None,
            last_probe: None,
        }
    }

    /// Returns the link that is always there.
    #[must_use]
    pub fn link(&self) -> Option<&LinkStatus> {
        self.links.first()
    }

    /// Takes note, in place of the tunnel, that its task has panicked with this message.
    pub fn set_panicked(&mut self, message: String, now: Now) {
        let at = system_time(now.wall);
        self.state = State::Failed;
        self.since = at;
        self.links.clear();
        self.last_error = Some(LastError { at, fault: Arc::new(Fault::new(Class::Bug, Panicked { message })) });
    }

    /// Whether more than figures has changed since: what was carried, how many use it, how late answers are.
    pub(crate) fn is_news(&self, before: &Self) -> bool {
        let marks = |status: &Self| {
            let error = status.last_error.as_ref().map(|error| error.at);
            (status.state, status.since, status.ready_at, status.resumes, status.restarts, error)
        };
        let words = |status: &Self| status.links.iter().map(LinkStatus::without_figures).collect::<Vec<_>>();
        marks(self) != marks(before) || words(self) != words(before)
    }

    /// Returns how many connections there are, and how many there have been.
    pub(crate) fn connections(&self) -> (usize, usize, u64) {
        (self.open_connections, self.held_connections, self.connections_total)
    }

    /// Whether it can be used: the tunnel is proved to work, is idle, or is being started from there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match self.state {
            State::Active | State::Idle => true,
            // One that has worked is not starting but reconnecting.
            State::Starting => self.ready_at.is_some(),
            State::Reconnecting | State::Degraded | State::Failed | State::Stopped => false,
        }
    }
}

/// One link of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    /// What audit trails call it; `None`: nothing, or there is none yet.
    pub id: Option<String>,
    /// When it was started.
    pub started_at: Option<SystemTime>,
    /// The label of the route that it is on, or is being started on.
    pub route: String,
    /// What it leads through, where the route has a choice and has made it.
    pub through: Option<String>,
    /// What it waits for before it is there, in words.
    pub progress: Option<String>,
    /// That is a person, who may take any time.
    pub awaits_person: bool,
    /// It takes connections, or has done so.
    pub is_established: bool,
    /// What to do if its other end does not answer; empty once it has.
    pub silence_hints: Vec<String>,
    /// The version of what answers at its other end, once that has spoken.
    pub peer_version: Option<String>,
    /// Its state.
    pub state: State,
    /// Since when it has been in this state.
    pub since: SystemTime,
    /// Local connections that it carries.
    pub open_connections: usize,
    /// Bytes from local programs, through this link and those that it has replaced.
    pub bytes_sent: u64,
    /// Bytes for local programs, through this link and those that it has replaced.
    pub bytes_received: u64,
    /// Round trip of its last probe that succeeded.
    pub probe_round_trip: Option<Duration>,
    /// Messages of the other end that were lost, and that have to be repeated before what came after
    /// them can be used, if that takes longer than starting another link; else 0.
    pub messages_behind: usize,
    /// It is read more slowly than data comes, as a local program does not take it.
    pub held_back: bool,
    /// Bytes that have come and that local programs have not taken.
    pub bytes_held: usize,
}

impl LinkStatus {
    /// Returns what it leads through: what the route has chosen, or the route itself.
    #[must_use]
    pub fn place(&self) -> &str {
        self.through.as_ref().unwrap_or(&self.route)
    }

    /// Returns the same with nothing carried and never probed.
    fn without_figures(&self) -> Self {
        Self {
            open_connections: 0,
            bytes_sent: 0,
            bytes_received: 0,
            probe_round_trip: None,
            messages_behind: 0,
            bytes_held: 0,
            ..self.clone()
        }
    }

    /// Whether the link has been started and its other end has not answered yet, for at least `silence`.
    #[must_use]
    pub fn awaits_peer(&self, silence: Duration, now: SystemTime) -> bool {
        let is_late = |at| now.duration_since(at).is_ok_and(|time| time >= silence);
        !self.is_established && self.started_at.is_some_and(is_late)
    }
}

/// A bug of this program.
#[derive(Debug, thiserror::Error)]
#[error("the tunnel's task panicked: {message}")]
struct Panicked {
    /// What the panic said.
    message: String,
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
        f.write_str(&sentence(&*self.fault))
    }
}

/// A successful probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeStatus {
    /// When it ended.
    pub at: SystemTime,
    /// Time from opening the connection to the end of the TLS handshake.
    pub round_trip: Duration,
    /// The HTTP status, if a request was sent.
    pub http_status: Option<u16>,
}

/// Converts a time since the Unix epoch.
pub(super) fn system_time(wall: Duration) -> SystemTime {
    SystemTime::UNIX_EPOCH + wall
}

#[cfg(test)]
impl TunnelStatus {
    /// A tunnel to a host, with one link that has been there from the beginning of time.
    pub(crate) fn of_a_host(state: State) -> Self {
        let endpoint = crate::cluster::Destination { host: "db".to_owned(), port: 5432 };
        let [name, region, account] = ["db", "us-east-1", "123456789012"].map(str::to_owned);
        let to: Remote = crate::remote::Host { name, region, account, endpoint, vpc: None }.into();
        let since = SystemTime::UNIX_EPOCH;
        let link = LinkStatus {
            id: None,
            started_at: None,
            route: "i-0".to_owned(),
            through: None,
            progress: None,
            awaits_person: false,
            is_established: false,
            silence_hints: Vec::new(),
            peer_version: None,
            state,
            since,
            open_connections: 0,
            bytes_sent: 0,
            bytes_received: 0,
            probe_round_trip: None,
            messages_behind: 0,
            held_back: false,
            bytes_held: 0,
        };
        Self { state, links: vec![link], ..Self::new(Arc::new(to), 10100, since) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_no_news() {
        let before = TunnelStatus::of_a_host(State::Starting);
        type Change = fn(&mut TunnelStatus);
        let changes: [(Change, bool); 8] = [
            (|_| {}, false),
            (
                |now| {
                    now.last_probe = Some(ProbeStatus { at: now.since, round_trip: Duration::ZERO, http_status: None })
                },
                false,
            ),
            (|now| now.bytes_received += 1, false),
            (|now| now.links[0].probe_round_trip = Some(Duration::ZERO), false),
            (|now| now.state = State::Active, true),
            (|now| now.links[0].progress = Some("waiting".into()), true),
            (|now| now.links.clear(), true),
            (|now| now.set_panicked("a bug".into(), Now { mono: Duration::ZERO, wall: Duration::ZERO }), true),
        ];
        for (number, (change, is_news)) in changes.into_iter().enumerate() {
            let mut now = before.clone();
            change(&mut now);
            assert_eq!(now.is_news(&before), is_news, "change {number}");
        }
    }
}
