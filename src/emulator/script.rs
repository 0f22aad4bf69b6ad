//! Faults: what is wrong with the emulated AWS, and when.
//!
//! [`Settings`] are in force until they are changed; a [`Command`] happens once, to the sessions that
//! are live; a [`Fault`] is either of them in a form that can be written on a command line.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    str::FromStr,
    time::Duration,
};

/// What is wrong at the moment; the default is nothing.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// IAM actions that are denied, such as `ssm:ResumeSession`.
    pub denied_actions: BTreeSet<String>,
    /// Bastions that `ssm:StartSession` is denied on.
    pub denied_bastions: BTreeSet<String>,
    /// The account is in the standard tier, in which no session can be started on a managed node, `mi-…`.
    pub standard_tier: bool,
    /// The policy of the identity goes by sessions' tags: what is about a session that has ended, and has lost its tags, is
    /// denied, as is what is about one that has never been.
    pub tag_policy: bool,
    /// Session documents that `ssm:StartSession` is denied on.
    pub denied_documents: BTreeSet<String>,
    /// IAM actions whose next calls fail.
    pub failing_actions: BTreeMap<String, Failure>,
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

/// A fault in the form of a command line: a name, and for most of them a value after `=`.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// `drop-websocket=30s`: cuts every client's TCP connection, again and again.
    DropWebSocket(Duration),
    /// `close-websocket=30s`: closes every WebSocket of this age with 1000 `Bye`.
    CloseWebSocket(Duration),
    /// `silence=30s`: goes silent on every WebSocket, again and again.
    Silence(Duration),
    /// `silence-upstream=30s`: loses what clients send from now on, again and again.
    SilenceUpstream(Duration),
    /// `silence-downstream=30s`: loses what is sent to clients from now on, again and again.
    SilenceDownstream(Duration),
    /// `half-open=30s`: forgets every WebSocket without a word to the client, again and again.
    HalfOpen(Duration),
    /// `pause=30s`: sends a burst of `pause_publication` and a later start, again and again.
    Pause(Duration),
    /// `end-session=60s`: ends every session, again and again.
    EndSession(Duration),
    /// `kill-agent=60s`: the agents of all sessions die silently, again and again.
    KillAgent(Duration),
    /// `bastion-offline=30s`: the bastions go offline for so long, once.
    BastionOffline(Duration),
    /// `restart-destinations=10s`: every destination closes its connections and refuses others for so long, once.
    RestartDestinations(Duration),
    /// `delay=50ms`: delays every message, each way.
    Delay(Duration),
    /// `loss=1%`: loses messages, each way.
    Loss(f64),
    /// `duplicate=1%`: repeats messages, each way.
    Duplicate(f64),
    /// `reorder=1%`: changes the order of messages, each way.
    Reorder(f64),
    /// `line=125kB/s,1MB`: carries WebSockets over a line of this rate with such a buffer before it, each way.
    Line(Line),
    /// `line-up=125kB/s,1MB`: the same from client to gateway only.
    LineUp(Line),
    /// `line-down=125kB/s,1MB`: the same from gateway to client only.
    LineDown(Line),
    /// `refuse-resume`: no session can be resumed.
    RefuseResume,
    /// `throttle-resume=3`: throttles so many calls of `ResumeSession`.
    ThrottleResume(u32),
    /// `fail-start=3`: fails so many calls of `StartSession`.
    FailStart(u32),
    /// `reject-token=1`: does not take so many tokens.
    RejectToken(u32),
    /// `refuse-signed-upgrade`: answers 403 to signed upgrades.
    RefuseSignedUpgrade,
    /// `standard-tier`: refuses sessions on managed nodes, `mi-…`.
    StandardTier,
    /// `deny=ssm:ResumeSession`: denies an IAM action.
    Deny(String),
    /// `deny-document=NAME`: denies `StartSession` on a session document.
    DenyDocument(String),
    /// `silent-handshake`: agents of new sessions never begin the handshake.
    SilentHandshake,
    /// `slow-agent=35s`: agents of new sessions begin the handshake so much later.
    SlowAgent(Duration),
    /// `agent-version=3.0.222.0`: agents report this version.
    AgentVersion(String),
    /// `unresolvable`: no destination's name is known where the agent is.
    Unresolvable,
    /// `no-access-entry`: API servers answer 401 to every token.
    NoAccessEntry,
    /// `no-view-policy`: API servers answer 403 to whoever wants to see anything.
    NoViewPolicy,
    /// `refuse-destination`: every destination refuses connections.
    RefuseDestination,
    /// `black-hole`: no destination answers.
    BlackHole,
    /// `text-frames`: sends messages in text frames.
    TextFrames,
    /// `fragment=100`: cuts WebSocket messages into frames of so many bytes.
    Fragment(usize),
    /// `wrong-digest=3`: so many messages have a wrong digest.
    WrongDigest(u32),
    /// `wrong-certificate`: API servers show a certificate of another authority.
    WrongCertificate,
    /// `foreign-stream-url=example.com`: stream URLs name this host.
    ForeignStreamUrl(String),
    /// `clock-skew=10m`: the emulator's clock is ahead.
    ClockSkew(Duration),
}

/// Form and meaning of each [`Fault`].
pub const FAULTS: &[(&str, &str)] = &[
    ("drop-websocket=30s", "cut every WebSocket's connection, again and again"),
    ("close-websocket=30s", "close every WebSocket of this age, as the service does after 60 minutes"),
    ("silence=30s", "go silent on every WebSocket, again and again"),
    ("silence-upstream=30s", "lose all that clients send on their WebSockets, again and again"),
    ("silence-downstream=30s", "lose all that is sent to clients on their WebSockets, again and again"),
    ("half-open=30s", "forget every WebSocket without telling the client, again and again"),
    ("pause=30s", "send a burst of pause_publication and then a start, again and again"),
    ("end-session=60s", "end every session, again and again"),
    ("kill-agent=60s", "let every agent die silently, again and again"),
    ("bastion-offline=30s", "take the bastions offline for so long, once"),
    ("restart-destinations=10s", "let destinations close all connections and refuse others for so long, once"),
    ("delay=50ms", "delay every message, each way"),
    ("loss=1%", "lose messages, each way"),
    ("duplicate=1%", "repeat messages, each way"),
    ("reorder=1%", "change the order of messages, each way"),
    ("line=125kB/s,1MB", "carry WebSockets over a line of this rate and buffer, each way; a third value is its delay"),
    ("line-up=125kB/s,1MB", "the same from client to gateway only"),
    ("line-down=125kB/s,1MB", "the same from gateway to client only"),
    ("refuse-resume", "refuse every ResumeSession"),
    ("throttle-resume=3", "throttle so many ResumeSession calls"),
    ("fail-start=3", "fail so many StartSession calls"),
    ("reject-token=1", "do not take so many session tokens"),
    ("refuse-signed-upgrade", "answer 403 to signed WebSocket upgrades, and take unsigned ones"),
    ("standard-tier", "refuse sessions on managed nodes, as without the advanced-instances tier"),
    ("deny=ssm:ResumeSession", "deny an IAM action"),
    ("deny-document=NAME", "deny StartSession on a session document"),
    ("silent-handshake", "let agents of new sessions never begin the handshake"),
    ("slow-agent=35s", "let agents of new sessions begin the handshake so much later"),
    ("agent-version=3.0.222.0", "let agents report another version"),
    ("unresolvable", "let no destination's name be known where the agent is"),
    ("no-access-entry", "let API servers answer 401 to every token"),
    ("no-view-policy", "let API servers answer 403 to whoever wants to see anything"),
    ("refuse-destination", "let every destination refuse connections"),
    ("black-hole", "let no destination answer"),
    ("text-frames", "send messages in text frames"),
    ("fragment=100", "cut WebSocket messages into frames of so many bytes"),
    ("wrong-digest=3", "send so many messages with a wrong digest"),
    ("wrong-certificate", "let API servers show a certificate of another authority"),
    ("foreign-stream-url=HOST", "name another host in stream URLs"),
    ("clock-skew=10m", "set the emulator's clock ahead"),
];

/// A fault that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// There is no fault of this name.
    #[error("there is no fault `{name}`; known are {}", FAULTS.iter().map(|(form, _)| *form).collect::<Vec<_>>().join(", "))]
    Unknown {
        /// The name that was given.
        name: String,
    },
    /// The value is missing, superfluous or of another form.
    #[error("fault `{text}` does not have the form `{form}`")]
    Value {
        /// What was given.
        text: String,
        /// An example of what is right.
        form: &'static str,
    },
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let name_of = |form: &'static str| form.split('=').next().unwrap_or(form);
        let Some((form, _)) = FAULTS.iter().find(|(form, _)| name_of(form) == name) else {
            return Err(FaultError::Unknown { name: name.to_owned() });
        };
        let fault = match value {
            None => Self::without_value(name),
            Some(value) => Self::with_value(name, value),
        };
        fault.ok_or_else(|| FaultError::Value { text: text.to_owned(), form })
    }
}

impl Fault {
    fn without_value(name: &str) -> Option<Self> {
        Some(match name {
            "refuse-resume" => Self::RefuseResume,
            "refuse-signed-upgrade" => Self::RefuseSignedUpgrade,
            "standard-tier" => Self::StandardTier,
            "silent-handshake" => Self::SilentHandshake,
            "unresolvable" => Self::Unresolvable,
            "no-access-entry" => Self::NoAccessEntry,
            "no-view-policy" => Self::NoViewPolicy,
            "refuse-destination" => Self::RefuseDestination,
            "black-hole" => Self::BlackHole,
            "text-frames" => Self::TextFrames,
            "wrong-certificate" => Self::WrongCertificate,
            _ => return None,
        })
    }

    fn with_value(name: &str, value: &str) -> Option<Self> {
        let time = || parse_duration(value);
        let count = || value.parse::<u32>().ok().filter(|count| *count > 0);
        let word = || (!value.is_empty()).then(|| value.to_owned());
        Some(match name {
            "drop-websocket" => Self::DropWebSocket(time()?),
            "close-websocket" => Self::CloseWebSocket(time()?),
            "silence" => Self::Silence(time()?),
            "silence-upstream" => Self::SilenceUpstream(time()?),
            "silence-downstream" => Self::SilenceDownstream(time()?),
            "half-open" => Self::HalfOpen(time()?),
            "pause" => Self::Pause(time()?),
            "end-session" => Self::EndSession(time()?),
            "kill-agent" => Self::KillAgent(time()?),
            "bastion-offline" => Self::BastionOffline(time()?),
            "restart-destinations" => Self::RestartDestinations(time()?),
            "delay" => Self::Delay(time()?),
            "loss" => Self::Loss(parse_fraction(value)?),
            "duplicate" => Self::Duplicate(parse_fraction(value)?),
            "reorder" => Self::Reorder(parse_fraction(value)?),
            "line" => Self::Line(value.parse().ok()?),
            "line-up" => Self::LineUp(value.parse().ok()?),
            "line-down" => Self::LineDown(value.parse().ok()?),
            "throttle-resume" => Self::ThrottleResume(count()?),
            "fail-start" => Self::FailStart(count()?),
            "reject-token" => Self::RejectToken(count()?),
            "deny" => Self::Deny(word().filter(|action| action.contains(':'))?),
            "deny-document" => Self::DenyDocument(word()?),
            "slow-agent" => Self::SlowAgent(time()?),
            "agent-version" => Self::AgentVersion(word()?),
            "fragment" => Self::Fragment(value.parse().ok().filter(|len| *len > 0)?),
            "wrong-digest" => Self::WrongDigest(count()?),
            "foreign-stream-url" => Self::ForeignStreamUrl(word()?),
            "clock-skew" => Self::ClockSkew(time()?),
            _ => return None,
        })
    }
}

/// Writes the form that [`FromStr`] reads.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = Duration::as_millis;
        match self {
            Self::DropWebSocket(every) => write!(f, "drop-websocket={}ms", ms(every)),
            Self::CloseWebSocket(age) => write!(f, "close-websocket={}ms", ms(age)),
            Self::Silence(every) => write!(f, "silence={}ms", ms(every)),
            Self::SilenceUpstream(every) => write!(f, "silence-upstream={}ms", ms(every)),
            Self::SilenceDownstream(every) => write!(f, "silence-downstream={}ms", ms(every)),
            Self::HalfOpen(every) => write!(f, "half-open={}ms", ms(every)),
            Self::Pause(every) => write!(f, "pause={}ms", ms(every)),
            Self::EndSession(every) => write!(f, "end-session={}ms", ms(every)),
            Self::KillAgent(every) => write!(f, "kill-agent={}ms", ms(every)),
            Self::BastionOffline(time) => write!(f, "bastion-offline={}ms", ms(time)),
            Self::RestartDestinations(time) => write!(f, "restart-destinations={}ms", ms(time)),
            Self::Delay(delay) => write!(f, "delay={}ms", ms(delay)),
            Self::Loss(fraction) => write!(f, "loss={fraction}"),
            Self::Duplicate(fraction) => write!(f, "duplicate={fraction}"),
            Self::Reorder(fraction) => write!(f, "reorder={fraction}"),
            Self::Line(line) => write!(f, "line={line}"),
            Self::LineUp(line) => write!(f, "line-up={line}"),
            Self::LineDown(line) => write!(f, "line-down={line}"),
            Self::RefuseResume => f.write_str("refuse-resume"),
            Self::ThrottleResume(calls) => write!(f, "throttle-resume={calls}"),
            Self::FailStart(calls) => write!(f, "fail-start={calls}"),
            Self::RejectToken(tokens) => write!(f, "reject-token={tokens}"),
            Self::RefuseSignedUpgrade => f.write_str("refuse-signed-upgrade"),
            Self::StandardTier => f.write_str("standard-tier"),
            Self::Deny(action) => write!(f, "deny={action}"),
            Self::DenyDocument(name) => write!(f, "deny-document={name}"),
            Self::SilentHandshake => f.write_str("silent-handshake"),
            Self::SlowAgent(time) => write!(f, "slow-agent={}ms", ms(time)),
            Self::AgentVersion(version) => write!(f, "agent-version={version}"),
            Self::Unresolvable => f.write_str("unresolvable"),
            Self::NoAccessEntry => f.write_str("no-access-entry"),
            Self::NoViewPolicy => f.write_str("no-view-policy"),
            Self::RefuseDestination => f.write_str("refuse-destination"),
            Self::BlackHole => f.write_str("black-hole"),
            Self::TextFrames => f.write_str("text-frames"),
            Self::Fragment(len) => write!(f, "fragment={len}"),
            Self::WrongDigest(messages) => write!(f, "wrong-digest={messages}"),
            Self::WrongCertificate => f.write_str("wrong-certificate"),
            Self::ForeignStreamUrl(host) => write!(f, "foreign-stream-url={host}"),
            Self::ClockSkew(time) => write!(f, "clock-skew={}ms", ms(time)),
        }
    }
}

/// Reads `500ms`, `30s`, `5m` or `1h`; a bare number is seconds. Zero is refused.
fn parse_duration(text: &str) -> Option<Duration> {
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
fn parse_fraction(text: &str) -> Option<f64> {
    let fraction = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().ok()? / 100.0,
        None => text.parse::<f64>().ok()?,
    };
    (fraction > 0.0 && fraction <= 1.0).then_some(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_fault_can_be_read_and_written() {
        for (form, _) in FAULTS {
            let fault: Fault = form.parse().unwrap();
            assert_eq!(fault.to_string().parse(), Ok(fault));
        }
        assert_eq!("drop-websocket=30s".parse(), Ok(Fault::DropWebSocket(Duration::from_secs(30))));
        assert_eq!("drop-websocket=5".parse(), Ok(Fault::DropWebSocket(Duration::from_secs(5))));
        assert_eq!("loss=1%".parse(), Ok(Fault::Loss(0.01)));
        assert_eq!("loss=0.5".parse(), Ok(Fault::Loss(0.5)));
    }

    #[test]
    fn errors_say_what_would_be_right() {
        let error = |text: &str| text.parse::<Fault>().unwrap_err().to_string();
        assert!(
            error("drop-websockets=3s")
                .starts_with("there is no fault `drop-websockets`; known are drop-websocket=30s, ")
        );
        assert_eq!(error("drop-websocket"), "fault `drop-websocket` does not have the form `drop-websocket=30s`");
        for text in [
            "line=125",
            "line=125kB,1MB",
            "line=0kB/s,1MB",
            "line-up=1kB/s,1MB,20ms,3",
            "delay=fast",
            "delay=0s",
            "loss=2",
            "loss=-1",
            "loss=NaN",
            "refuse-resume=1",
            "fail-start=0",
            "deny=all",
            "delay=",
        ] {
            assert!(error(text).contains("does not have the form"), "{text}");
        }
    }
}
