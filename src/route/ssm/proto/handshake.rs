//! The handshake that opens a data channel: its payloads, the agent's version, and the flags.
//!
//! Source: `handshakemessage.go`, `versionvalidator.go` and `streaming.go` of session-manager-plugin
//! 1.2.677.0; `model.go`, `datachannel.go` and `port.go` of amazon-ssm-agent 3.3.1142.0.

use serde::{Deserialize, Serialize};

use crate::util::peer_text::PeerText;

/// The version of session-manager-plugin that this program reports, to the service in each opening frame and to the agent
/// in the handshake.
///
/// Version history of the plugin, Systems Manager user guide: 1.2.764.0 is the least that the service takes; nothing that
/// later ones, up to 1.2.896.0, have in addition is used here. Agents from 3.1.1575.0 turn the smux keepalive on, which ends
/// idle sessions, for clients at or below 1.2.331.0. The chapter on troubleshooting names it for those who meet it in the agent's log.
pub const CLIENT_VERSION: &str = "1.2.764.0";

/// The agent's first message: `HandshakeRequest`, payload type 5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeRequest {
    /// The agent's version, four numbers with dots.
    #[serde(default)]
    pub agent_version: String,
    /// What the client is asked to do, the session type first.
    #[serde(default)]
    pub requested_client_actions: Vec<RequestedAction>,
}

/// Longest request that is read, in bytes. Those of agents have a few hundred.
const MAX_REQUEST_LEN: usize = 8 << 10;

/// Most actions of a request. Agents ask for two at most, and the response has an entry for each.
const MAX_ACTIONS: usize = 16;

/// One action that the agent asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RequestedAction {
    /// `SessionType` or `KMSEncryption`.
    #[serde(default)]
    pub action_type: String,
    /// The action's own fields.
    #[serde(default)]
    pub action_parameters: serde_json::Value,
}

/// Action type of the session's kind and properties.
pub const ACTION_SESSION_TYPE: &str = "SessionType";
/// Action type of encryption with a KMS key; not used on Port sessions.
pub const ACTION_KMS_ENCRYPTION: &str = "KMSEncryption";
/// Session type of port forwarding.
pub const SESSION_TYPE_PORT: &str = "Port";
/// Property `type` of sessions that multiplex connections.
pub const PORT_TYPE_LOCAL_FORWARDING: &str = "LocalPortForwarding";

/// The client's only answer: `HandshakeResponse`, payload type 6.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeResponse {
    /// The client's version, see [`CLIENT_VERSION`].
    pub client_version: String,
    /// One entry for each requested action, in order.
    pub processed_client_actions: Vec<ProcessedAction>,
    /// Errors outside any action; null in practice.
    pub errors: Option<Vec<String>>,
}

/// What became of one requested action. Agents take what is missing for nothing, as `encoding/json` of Go does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProcessedAction {
    /// The type of the requested action.
    pub action_type: String,
    /// 1 success, 2 failed, 3 unsupported.
    pub action_status: u32,
    /// The action's result; null but for encryption.
    #[serde(default)]
    pub action_result: serde_json::Value,
    /// Why the action did not succeed.
    #[serde(default)]
    pub error: String,
}

/// `ActionStatus` of an action that was carried out.
pub const ACTION_SUCCESS: u32 = 1;
/// `ActionStatus` of an action that failed.
pub const ACTION_FAILED: u32 = 2;
/// `ActionStatus` of an action that the client does not know.
pub const ACTION_UNSUPPORTED: u32 = 3;

/// The end of the handshake: `HandshakeComplete`, payload type 7.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HandshakeComplete {
    /// Nanoseconds that the handshake took, as the agent measured it.
    pub handshake_time_to_complete: i64,
    /// A text for the user, often empty.
    pub customer_message: PeerText,
}

/// The payload of a message of type 10: four bytes, big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// 1: the local connection of a basic session ended. Ignored by agents in multiplexed sessions.
    DisconnectToPort,
    /// 2: end the session. To be sent once: a second one blocks the agent's reader.
    TerminateSession,
    /// 3: the agent could not connect to the destination for some stream.
    ConnectToPortError,
    /// Any other value: ignored by both sides.
    Other(u32),
}

impl Flag {
    /// Returns the payload.
    #[must_use]
    pub fn encode(self) -> [u8; 4] {
        match self {
            Self::DisconnectToPort => 1,
            Self::TerminateSession => 2,
            Self::ConnectToPortError => 3,
            Self::Other(value) => value,
        }
        .to_be_bytes()
    }

    /// Reads a payload; `None` if it is not four bytes long.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        Some(match u32::from_be_bytes(payload.try_into().ok()?) {
            1 => Self::DisconnectToPort,
            2 => Self::TerminateSession,
            3 => Self::ConnectToPortError,
            other => Self::Other(other),
        })
    }
}

/// A version of the official programs: four numbers with dots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub [u32; 4]);

impl Version {
    /// Agents above this version multiplex connections with smux.
    pub const LAST_AGENT_WITHOUT_MUX: Self = Self([3, 0, 196, 0]);
    /// Agents above this version do not run a smux keepalive with this client.
    pub const LAST_AGENT_WITH_KEEPALIVE: Self = Self([3, 1, 1511, 0]);
    /// The first agent that forwards to remote hosts, as AWS documents it. An older one would ignore
    /// the host and dial itself.
    pub const FIRST_AGENT_WITH_REMOTE_HOST: Self = Self([3, 1, 1374, 0]);

    /// The first agent that acknowledges repeats of what it has processed (`datachannel.go` of amazon-ssm-agent). Older
    /// ones drop them without a word.
    pub const FIRST_AGENT_THAT_ACKNOWLEDGES_REPEATS: Self = Self([3, 2, 1041, 0]);

    /// Whether an agent of this version drops repeats of what it has processed without acknowledging them.
    #[must_use]
    pub fn drops_repeats(self) -> bool {
        self < Self::FIRST_AGENT_THAT_ACKNOWLEDGES_REPEATS
    }

    /// Reads four numbers with dots; `None` for anything else, as the official client does.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let mut numbers = [0; 4];
        for number in &mut numbers {
            let part = parts.next()?;
            if !part.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            *number = part.parse().ok()?;
        }
        parts.next().is_none().then_some(Self(numbers))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "{a}.{b}.{c}.{d}")
    }
}

/// Why a session cannot be used after its handshake request has been read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The request is not the JSON that agents send.
    #[error("the agent's handshake request cannot be read: {0}")]
    Malformed(PeerText),
    /// The agent's version is not four numbers, so nothing is known of what it can do.
    #[error("the agent reports version `{0}`, which is not a version number")]
    UnknownVersion(PeerText),
    /// The agent has no multiplexed port forwarding.
    #[error(
        "agent {version} is too old: port forwarding to remote hosts needs {} or newer",
        Version::FIRST_AGENT_WITH_REMOTE_HOST
    )]
    AgentTooOld {
        /// The agent's version.
        version: Version,
    },
    /// The session is of another kind than port forwarding.
    #[error("the document opens a session of type `{0}`, not `Port`")]
    SessionType(PeerText),
    /// The session forwards one connection at a time: another document than the one asked for.
    #[error("the document opens a port session without multiplexing (type `{0}`, not `LocalPortForwarding`)")]
    PortType(PeerText),
    /// The agent asks for encryption with a KMS key, which no known agent does on Port sessions.
    #[error("the agent asks for encryption with KMS key `{0}`, which port sessions do not support")]
    KmsEncryption(PeerText),
    /// The agent asks for something that this client does not know.
    #[error("the agent asks for the unknown action `{0}`")]
    UnknownAction(PeerText),
}

/// What the client has agreed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreement {
    /// The agent's version.
    pub agent_version: Version,
    /// Whether the agent's smux keepalive may be on, so that the client must send frames too.
    pub keepalive: bool,
}

/// Reads a handshake request and makes the response to it.
///
/// There is always a response: one that refuses an action makes the agent end the session at once
/// instead of after its 15 s timeout. The second value says whether the session can be used.
pub fn respond(payload: &[u8]) -> (HandshakeResponse, Result<Agreement, HandshakeError>) {
    let mut response = HandshakeResponse {
        client_version: CLIENT_VERSION.to_owned(),
        processed_client_actions: Vec::new(),
        errors: None,
    };
    let request = match read_request(payload) {
        Ok(request) => request,
        Err(error) => {
            response.errors = Some(vec![error.to_string()]);
            return (response, Err(error));
        }
    };
    let mut agreement = agree(&request.agent_version);
    let mut session_type_seen = false;
    for action in &request.requested_client_actions {
        let (status, outcome) = match action.action_type.as_str() {
            ACTION_SESSION_TYPE => {
                session_type_seen = true;
                (ACTION_FAILED, check_session_type(&action.action_parameters, agreement.as_ref().ok()))
            }
            ACTION_KMS_ENCRYPTION => {
                let key = text_at(&action.action_parameters, "KMSKeyId");
                (ACTION_UNSUPPORTED, Err(HandshakeError::KmsEncryption(key)))
            }
            other => (ACTION_UNSUPPORTED, Err(HandshakeError::UnknownAction(other.into()))),
        };
        response.processed_client_actions.push(ProcessedAction {
            action_type: action.action_type.clone(),
            action_status: if outcome.is_ok() { ACTION_SUCCESS } else { status },
            action_result: serde_json::Value::Null,
            error: outcome.as_ref().err().map(ToString::to_string).unwrap_or_default(),
        });
        if let (Ok(_), Err(error)) = (&agreement, outcome) {
            agreement = Err(error);
        }
    }
    if agreement.is_ok() && !session_type_seen {
        agreement = Err(HandshakeError::SessionType(PeerText::default()));
    }
    (response, agreement)
}

fn read_request(payload: &[u8]) -> Result<HandshakeRequest, HandshakeError> {
    if payload.len() > MAX_REQUEST_LEN {
        return Err(HandshakeError::Malformed(format!("it has {} bytes", payload.len()).into()));
    }
    let request: HandshakeRequest =
        serde_json::from_slice(payload).map_err(|error| HandshakeError::Malformed(error.to_string().into()))?;
    let actions = request.requested_client_actions.len();
    if actions > MAX_ACTIONS {
        return Err(HandshakeError::Malformed(format!("it asks for {actions} actions").into()));
    }
    Ok(request)
}

fn agree(agent_version: &str) -> Result<Agreement, HandshakeError> {
    let version = Version::parse(agent_version).ok_or_else(|| HandshakeError::UnknownVersion(agent_version.into()))?;
    if version <= Version::LAST_AGENT_WITHOUT_MUX {
        return Err(HandshakeError::AgentTooOld { version });
    }
    Ok(Agreement { agent_version: version, keepalive: version <= Version::LAST_AGENT_WITH_KEEPALIVE })
}

fn check_session_type(parameters: &serde_json::Value, agreement: Option<&Agreement>) -> Result<(), HandshakeError> {
    let session_type = text_at(parameters, "SessionType");
    if session_type != SESSION_TYPE_PORT {
        return Err(HandshakeError::SessionType(session_type));
    }
    let property = |key| parameters.get("Properties").map(|properties| text_at(properties, key)).unwrap_or_default();
    let port_type = property("type");
    if port_type != PORT_TYPE_LOCAL_FORWARDING {
        return Err(HandshakeError::PortType(port_type));
    }
    match agreement {
        Some(Agreement { agent_version, .. })
            if *agent_version < Version::FIRST_AGENT_WITH_REMOTE_HOST && !property("host").is_empty() =>
        {
            Err(HandshakeError::AgentTooOld { version: *agent_version })
        }
        _ => Ok(()),
    }
}

fn text_at(value: &serde_json::Value, key: &str) -> PeerText {
    value.get(key).and_then(serde_json::Value::as_str).map(PeerText::new).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(version: &str, actions: &str) -> Vec<u8> {
        format!(r#"{{"AgentVersion":"{version}","RequestedClientActions":[{actions}]}}"#).into_bytes()
    }

    const PORT: &str = r#"{"ActionType":"SessionType","ActionParameters":{"SessionType":"Port","Properties":{"host":"h",
        "portNumber":"443","type":"LocalPortForwarding","unknown":1}}}"#;

    #[test]
    fn agrees_to_a_port_session() {
        let (response, agreement) = respond(&request("3.3.1142.0", PORT));
        assert_eq!(agreement.unwrap(), Agreement { agent_version: Version([3, 3, 1142, 0]), keepalive: false });
        assert_eq!(
            serde_json::to_string(&response).unwrap(),
            r#"{"ClientVersion":"1.2.764.0","ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":1,"ActionResult":null,"Error":""}],"Errors":null}"#
        );
    }

    #[test]
    fn gates_agents_by_version() {
        let agreement = |version| respond(&request(version, PORT)).1;
        assert_eq!(agreement("3.0.196.0"), Err(HandshakeError::AgentTooOld { version: Version([3, 0, 196, 0]) }));
        assert_eq!(agreement("3.1.1373.9"), Err(HandshakeError::AgentTooOld { version: Version([3, 1, 1373, 9]) }));
        assert!(agreement("3.1.1374.0").unwrap().keepalive);
        let local = PORT.replace(r#""host":"h","#, "");
        assert!(respond(&request("3.0.197.0", &local)).1.unwrap().keepalive);
        assert!(agreement("3.1.1511.0").unwrap().keepalive);
        assert!(!agreement("3.1.1511.1").unwrap().keepalive);
        let drops_repeats = |version| agreement(version).unwrap().agent_version.drops_repeats();
        assert!(drops_repeats("3.1.1374.0") && drops_repeats("3.2.1040.0"));
        assert!(!drops_repeats("3.2.1041.0") && !drops_repeats("3.3.1142.0"));
        for odd in ["", "3.3", "3.3.1142", "3.3.1142.0.1", "3.3.x.0", "3.3.+1.0", "3.3.99999999999.0", " 3.3.1.0"] {
            assert_eq!(agreement(odd), Err(HandshakeError::UnknownVersion(odd.into())), "{odd}");
        }
    }

    #[test]
    fn refuses_encryption_with_status_unsupported() {
        let actions = format!(r#"{PORT},{{"ActionType":"KMSEncryption","ActionParameters":{{"KMSKeyId":"arn:k"}}}}"#);
        let (response, agreement) = respond(&request("3.3.1142.0", &actions));
        assert_eq!(agreement, Err(HandshakeError::KmsEncryption("arn:k".into())));
        let statuses: Vec<_> = response.processed_client_actions.iter().map(|action| action.action_status).collect();
        assert_eq!(statuses, [ACTION_SUCCESS, ACTION_UNSUPPORTED]);
        assert!(!response.processed_client_actions[1].error.is_empty());
    }

    #[test]
    fn refuses_unknown_actions_and_other_sessions() {
        let outcome = |actions: &str| {
            let (response, agreement) = respond(&request("3.3.1142.0", actions));
            (response.processed_client_actions.first().map(|action| action.action_status), agreement.unwrap_err())
        };
        assert_eq!(
            outcome(r#"{"ActionType":"Dance"}"#),
            (Some(ACTION_UNSUPPORTED), HandshakeError::UnknownAction("Dance".into()))
        );
        assert_eq!(
            outcome(r#"{"ActionType":"SessionType","ActionParameters":{"SessionType":"Standard_Stream"}}"#),
            (Some(ACTION_FAILED), HandshakeError::SessionType("Standard_Stream".into()))
        );
        assert_eq!(
            outcome(
                r#"{"ActionType":"SessionType","ActionParameters":{"SessionType":"Port","Properties":{"portNumber":"22"}}}"#
            ),
            (Some(ACTION_FAILED), HandshakeError::PortType(PeerText::default()))
        );
        assert_eq!(outcome(""), (None, HandshakeError::SessionType(PeerText::default())));
    }

    #[test]
    fn a_request_that_cannot_be_read_still_gets_a_response() {
        let (response, agreement) = respond(b"[1,");
        assert!(matches!(agreement, Err(HandshakeError::Malformed(_))));
        assert_eq!(response.errors.unwrap().len(), 1);
    }

    #[test]
    fn a_request_without_end_gets_a_short_response() {
        let many = vec!["{}"; 100_000].join(",");
        let long = format!(r#"{{"ActionType":"{}"}}"#, "x".repeat(100_000));
        let wrong = format!(r#"{{"ActionType":["{}"]}}"#, "\u{200b}".repeat(2_000));
        for actions in [many, vec!["{}"; MAX_ACTIONS + 1].join(","), long, wrong] {
            let (response, agreement) = respond(&request("3.3.1142.0", &actions));
            assert!(matches!(agreement, Err(HandshakeError::Malformed(_))), "{agreement:?}");
            assert!(serde_json::to_vec(&response).unwrap().len() < 64 << 10);
        }
        let (response, _) = respond(&request("3.3.1142.0", &["{}"; MAX_ACTIONS].join(",")));
        assert_eq!(response.processed_client_actions.len(), MAX_ACTIONS);
    }

    #[test]
    fn flags_are_four_bytes_big_endian() {
        assert_eq!(Flag::TerminateSession.encode(), [0, 0, 0, 2]);
        assert_eq!(Flag::decode(&[0, 0, 0, 3]), Some(Flag::ConnectToPortError));
        assert_eq!(Flag::decode(&[0, 0, 3]), None);
    }

    proptest! {
        #[test]
        fn any_flag_survives(value in any::<u32>()) {
            prop_assert_eq!(Flag::decode(&value.to_be_bytes()).unwrap().encode(), value.to_be_bytes());
        }

        #[test]
        fn versions_compare_by_number(a in any::<[u16; 4]>(), b in any::<[u16; 4]>()) {
            let text = |v: [u16; 4]| format!("{}.{}.{}.{}", v[0], v[1], v[2], v[3]);
            prop_assert_eq!(Version::parse(&text(a)).cmp(&Version::parse(&text(b))), a.cmp(&b));
        }

        #[test]
        fn never_panics_on_garbage(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _outcome = respond(&payload);
        }
    }
}
