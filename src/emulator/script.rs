//! What is wrong with the emulated AWS, and when.
//!
//! [`Settings`] are in force until they are changed; a [`Command`] happens once, to the sessions that
//! are live. The module `faults` has those of them that have names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    str::FromStr,
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;

use super::{approval::JustInTime, ecs::TaskTrouble};

/// What is wrong at the moment; the default is nothing.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// IAM actions that are denied, such as `ssm:ResumeSession`.
    pub denied_actions: BTreeSet<String>,
    /// The policies of the roles that can be assumed, by name: what they say decides nothing, but can be read.
    pub role_policies: Vec<(String, Value)>,
    /// Bastions that `ssm:StartSession` is denied on.
    pub denied_bastions: BTreeSet<String>,
    /// The account is in the standard tier, in which no session can be started on a managed node, `mi-…`.
    pub standard_tier: bool,
    /// The policy of the identity goes by sessions' tags: what is about a session that has ended, and has lost its tags, is
    /// denied, as is what is about one that has never been.
    pub tag_policy: bool,
    /// Session documents of the account's own, by name, with the host and port that are fixed in each.
    pub session_documents: BTreeMap<String, (String, u16)>,
    /// Session documents that `ssm:StartSession` is denied on.
    pub denied_documents: BTreeSet<String>,
    /// IAM actions whose next calls fail.
    pub failing_actions: BTreeMap<String, Failure>,
    /// IAM actions of which only so many calls a second are answered.
    pub call_rates: BTreeMap<String, CallRate>,
    /// IAM actions whose calls are answered only after a call of another action has been.
    pub held_actions: BTreeMap<String, String>,
    /// What `ResumeSession` does.
    pub resume: Resume,
    /// Names of clusters that EKS does not know, as if they were not there yet or no more.
    pub hidden_clusters: BTreeSet<String>,
    /// Answers every API call so much later.
    pub api_delay: Duration,
    /// So many tokens are not taken at the opening frame, as if they had expired.
    pub rejected_tokens: u32,
    /// Bastions whose agent is not connected.
    pub offline_bastions: BTreeSet<String>,
    /// Systems Manager tells of every node as online, whatever its agent is: it learns of a loss minutes later.
    pub stale_pings: bool,
    /// Which WebSocket upgrades are accepted.
    pub upgrade: Upgrade,
    /// Host that stream URLs name instead of the emulator's.
    pub foreign_stream_host: Option<String>,
    /// The link from client to agent.
    pub upstream: Link,
    /// The link from agent to client.
    pub downstream: Link,
    /// The line from client to gateway, for connections made from now on; `None`: one that nothing is known of.
    pub line_up: Option<Line>,
    /// The line from gateway to client, likewise.
    pub line_down: Option<Line>,
    /// Cuts each tunnel of EC2 Instance Connect at this age, those that are open as well; `None`: when it wants to be, after an hour at most.
    pub tunnel_lifetime: Option<Duration>,
    /// Sends data channel messages in text frames.
    pub text_frames: bool,
    /// Cuts each WebSocket message into frames of so many bytes.
    pub fragment_len: Option<usize>,
    /// Sends a `start_publication` as the first message on each transport.
    pub start_publication: bool,
    /// Closes each transport at this age with code 1000 and `Bye`; the real service does after about 60 minutes.
    pub transport_lifetime: Option<Duration>,
    /// How connections to destinations go, by `host:port`, or `*` for all others.
    pub destinations: BTreeMap<String, Destination>,
    /// What hosts lead to as the bastions' resolvers see it, by host, or `*` for all others: agents refuse some addresses.
    /// Where connections go is a matter of the routes.
    pub addresses: BTreeMap<String, IpAddr>,
    /// Peculiarities of agents.
    pub agent: AgentQuirks,
    /// API servers show a certificate of another authority.
    pub wrong_certificate: bool,
    /// No cluster has an access entry for anybody: API servers answer 401 to every token.
    pub no_access_entry: bool,
    /// Access entries come without an access policy: API servers answer 403 to whoever wants to see anything.
    pub no_view_policy: bool,
    /// How far the wall clock is ahead of the true time, in milliseconds; may be negative.
    pub clock_skew_ms: i64,
    /// Most messages a second that a client may send, acknowledgements included, for 2 s in a row;
    /// above it the service pauses and then closes the channel. `None`: no limit.
    pub max_message_rate: Option<u32>,
    /// What is wrong with tasks of Elastic Container Service.
    pub tasks: TaskTrouble,
    /// Just-in-time access to nodes.
    pub just_in_time: JustInTime,
}

impl Settings {
    /// Stands for all destinations, or hosts, that have no entry of their own.
    pub const ALL: &str = "*";
}

/// How calls fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// HTTP status.
    pub status: u16,
    /// Error code.
    pub code: String,
    /// Message.
    pub message: String,
    /// How many calls fail.
    pub calls: u32,
}

impl Failure {
    /// An answer that refuses the request itself, each time.
    #[must_use]
    pub fn refused(code: &str, message: &str) -> Self {
        Self { status: 400, code: code.to_owned(), message: message.to_owned(), calls: u32::MAX }
    }

    /// The service's own error, for so many calls.
    #[must_use]
    pub fn internal(calls: u32) -> Self {
        let message = "An error occurred on the server side.".to_owned();
        Self { status: 500, code: "InternalServerError".to_owned(), message, calls }
    }

    /// Throttling, for so many calls.
    #[must_use]
    pub fn throttled(calls: u32) -> Self {
        Self { status: 400, code: "ThrottlingException".to_owned(), message: "Rate exceeded".to_owned(), calls }
    }
}

/// How many calls a second are answered, with as many saved up at most; all others are throttled.
///
/// AWS publishes no rates for sessions and clusters; that of ECS is described so, at
/// <https://docs.aws.amazon.com/AmazonECS/latest/APIReference/request-throttling.html>.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CallRate {
    per_second: f64,
    saved: f64,
    /// When that was.
    at: Option<Instant>,
}

impl CallRate {
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        Self { per_second: per_second.into(), saved: per_second.into(), at: None }
    }

    /// Whether a call is answered now.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        let passed = self.at.map_or(0.0, |at| now.duration_since(at).as_secs_f64());
        self.saved = (self.saved + passed * self.per_second).min(self.per_second);
        self.at = Some(now);
        let admits = self.saved >= 1.0;
        if admits {
            self.saved -= 1.0;
        }
        admits
    }
}

/// What `ResumeSession` does for a session that could be resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resume {
    /// Gives a new token.
    #[default]
    Granted,
    /// Answers `DoesNotExistException`.
    Refused,
    /// Answers success without a token: the session has timed out.
    WithoutToken,
}

/// Which WebSocket upgrades are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Upgrade {
    /// Those with a good signature.
    #[default]
    Signed,
    /// Those with a good signature and those without any.
    SignedOrNot,
    /// Those without any; a signed one gets status 403.
    Unsigned,
}

/// What a link does to messages. Fractions are between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Link {
    /// Delay of every message.
    pub delay: Duration,
    /// Fraction of messages that are lost.
    pub loss: f64,
    /// Fraction of messages that arrive twice.
    pub duplicate: f64,
    /// Fraction of messages that are overtaken by later ones.
    pub reorder: f64,
}

impl Link {
    pub(super) fn is_lossy(&self) -> bool {
        self.loss > 0.0 || self.duplicate > 0.0 || self.reorder > 0.0
    }
}

/// One direction of the line that carries a WebSocket's connection. While it is in use, what changes counts at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// Bytes a second; 0: it stands still.
    pub rate: u64,
    /// Bytes that wait before the bottleneck; a sender waits with more.
    pub buffer: usize,
    /// How long a byte takes from the bottleneck to the other end.
    pub delay: Duration,
    /// Fraction of segments that are lost and sent again.
    pub loss: f64,
}

impl Line {
    /// A line that holds nothing up.
    pub const UNLIMITED: Self = Self { rate: 1 << 40, buffer: 256 << 10, delay: Duration::ZERO, loss: 0.0 };
}

/// Reads `125kB/s,1MB` or `125kB/s,1MB,20ms`: rate, buffer, delay.
impl FromStr for Line {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(',');
        let rate = parts.next().and_then(|rate| parse_size(rate.strip_suffix("/s")?)).ok_or(())?;
        let buffer = parts.next().and_then(parse_size).and_then(|buffer| usize::try_from(buffer).ok()).ok_or(())?;
        let delay = parts.next().map_or(Some(Duration::ZERO), parse_duration).ok_or(())?;
        if parts.next().is_some() { Err(()) } else { Ok(Self { rate, buffer, delay, loss: 0.0 }) }
    }
}

/// Writes the form that [`FromStr`] reads.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}B/s,{}B", self.rate, self.buffer)?;
        if self.delay.is_zero() { Ok(()) } else { write!(f, ",{}ms", self.delay.as_millis()) }
    }
}

/// How a connection of the agent to a destination goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Destination {
    /// As the operating system does it.
    #[default]
    Reachable,
    /// Refused.
    Refused,
    /// Its name is not known where the agent is: each session to it ends with a text that says so.
    Unresolvable,
    /// No answer: the dial fails after two minutes, and until then no later one of the session begins.
    BlackHole,
    /// Made after this time.
    Slow(Duration),
    /// Made, but nothing that is sent is ever read.
    NeverReads,
    /// Made, and the destination closes its sending side at once.
    HalfCloses,
}

/// Peculiarities of the agents of sessions that start from now on, and what they do to messages from now on.
#[derive(Debug, Clone, Default)]
pub struct AgentQuirks {
    /// Version in the handshake request instead of the bastion's.
    pub version: Option<String>,
    /// Session type instead of `Port`.
    pub session_type: Option<String>,
    /// Property `type` instead of `LocalPortForwarding`; empty leaves it out.
    pub port_type: Option<String>,
    /// A further action that is asked for in the handshake.
    pub extra_action: Option<ExtraAction>,
    /// How much later the handshake request is sent.
    pub handshake_delay: Duration,
    /// Sends the handshake request again after the handshake, with its old number.
    pub repeat_handshake: bool,
    /// Text for the user in the handshake's end.
    pub customer_message: String,
    /// So many data messages have a wrong digest when they are first sent.
    pub wrong_digests: u32,
    /// Sends a message with a `HeaderLength` that points behind it before each data message.
    pub bad_headers: bool,
    /// Sends messages of unknown type and payload type among the data.
    pub unknown_messages: bool,
    /// Sends NOP frames, and data for streams that do not exist, among the frames.
    pub stray_frames: bool,
    /// Cuts the smux stream into payloads of so many bytes instead of 1024.
    pub payload_len: Option<usize>,
    /// Whether duplicates are dropped without an acknowledgement; `None`: as agents of the version do, which is before
    /// 3.2.1041.0.
    pub ignore_duplicates: Option<bool>,
    /// What is told to the client when a dial fails.
    pub dial_failure: DialFailure,
}

/// A further action in the handshake request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtraAction {
    /// Encryption with this KMS key.
    Kms(String),
    /// An action that no client knows.
    Unknown(String),
}

/// What is told to the client when a dial fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DialFailure {
    /// Flag 3, then FIN, as real agents do.
    #[default]
    FlagAndFin,
    /// Flag 3 only.
    FlagOnly,
    /// FIN only.
    FinOnly,
}

/// Something that happens once to a live session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Breaks the client's TCP connection with a reset.
    CutTransport,
    /// Closes the client's WebSocket.
    CloseTransport {
        /// Close code.
        code: u16,
        /// Reason.
        reason: String,
    },
    /// Keeps the client's connection open and does nothing on it any more, not even answer pings.
    SilenceTransport,
    /// Loses everything that the client sends on its connection, pings included. What the agent sends arrives.
    SilenceUpstream,
    /// Loses everything that is sent to the client on its connection, pongs included. What it sends arrives.
    SilenceDownstream,
    /// The service has lost the client's connection, and the client is not told: for the service the session is
    /// disconnected, for the client its connection is open and silent.
    HalfOpen,
    /// Sends `pause_publication` to the client.
    Pause {
        /// How many.
        messages: u32,
        /// Sends a `start_publication` after this time; `None`: never.
        start_after: Option<Duration>,
    },
    /// Ends the session with a `channel_closed`.
    CloseChannel {
        /// The text in it; `None` leaves the field out.
        output: Option<String>,
    },
    /// The agent is gone for good: silence.
    KillAgent,
    /// The agent loses its transport for this time: the service answers each of the client's
    /// messages with a `pause_publication` and drops it.
    DetachAgent(Duration),
    /// Destinations close all connections of the agent.
    CloseDestinations,
    /// Sends these bytes to the client as one message.
    Inject(Vec<u8>),
}

/// Reads `500ms`, `30s`, `5m` or `1h`; a bare number is seconds. Zero is refused.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let digits_len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(digits_len);
    let number: u64 = digits.parse().ok().filter(|number| *number > 0 && *number <= 1_000_000_000)?;
    Some(match unit {
        "ms" => Duration::from_millis(number),
        "" | "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number * 60),
        "h" => Duration::from_secs(number * 3600),
        _ => return None,
    })
}

/// Reads `64kB`, `1MB` or `1500B`; zero is refused.
fn parse_size(text: &str) -> Option<u64> {
    let digits_len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(digits_len);
    let number: u64 = digits.parse().ok().filter(|number| *number > 0 && *number <= 1_000_000_000)?;
    match unit {
        "B" => Some(number),
        "kB" => Some(number * 1000),
        "MB" => Some(number * 1_000_000),
        _ => None,
    }
}

/// Reads `0.01` or `1%`.
pub(super) fn parse_fraction(text: &str) -> Option<f64> {
    let fraction = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().ok()? / 100.0,
        None => text.parse::<f64>().ok()?,
    };
    (fraction > 0.0 && fraction <= 1.0).then_some(fraction)
}
