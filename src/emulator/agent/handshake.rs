//! What an agent asks for in the handshake, and what it makes of the answer.

use serde_json::{Map, Value, json};

use super::super::script::{AgentQuirks, ExtraAction};
use crate::route::ssm::proto::handshake::{
    ACTION_KMS_ENCRYPTION, ACTION_SESSION_TYPE, ACTION_SUCCESS, HandshakeRequest, HandshakeResponse,
    PORT_TYPE_LOCAL_FORWARDING, RequestedAction, SESSION_TYPE_PORT, Version,
};

/// The first client for which an agent multiplexes: 1.1.70, in four numbers.
const FIRST_CLIENT_WITH_MUX: Version = Version([1, 1, 70, 0]);

/// The last client for which a recent agent turns the smux keepalive on.
const LAST_CLIENT_WITH_KEEPALIVE: Version = Version([1, 2, 331, 0]);

/// The first agent that decides on the keepalive by the client's version.
const FIRST_AGENT_THAT_ASKS_FOR_KEEPALIVE: Version = Version([3, 1, 1575, 0]);

/// The one agent whose keepalive is off for every client.
const AGENT_WITHOUT_KEEPALIVE: Version = Version([3, 1, 1446, 0]);

/// The request of an agent of this version, for a session with these properties.
pub(super) fn request(quirks: &AgentQuirks, version: &str, properties: &Map<String, Value>) -> HandshakeRequest {
    let mut properties = properties.clone();
    let port_type = quirks.port_type.as_deref().unwrap_or(PORT_TYPE_LOCAL_FORWARDING);
    if !port_type.is_empty() {
        properties.insert("type".to_owned(), port_type.into());
    }
    let session_type = quirks.session_type.as_deref().unwrap_or(SESSION_TYPE_PORT);
    let mut actions = vec![RequestedAction {
        action_type: ACTION_SESSION_TYPE.to_owned(),
        action_parameters: json!({"SessionType": session_type, "Properties": properties}),
    }];
    match &quirks.extra_action {
        None => {}
        Some(ExtraAction::Kms(key)) => actions.push(RequestedAction {
            action_type: ACTION_KMS_ENCRYPTION.to_owned(),
            action_parameters: json!({"KMSKeyId": key, "Challenge": "AAECAwQFBgcICQoLDA0ODw=="}),
        }),
        Some(ExtraAction::Unknown(name)) => {
            actions.push(RequestedAction { action_type: name.clone(), action_parameters: json!({}) });
        }
    }
    HandshakeRequest { agent_version: version.to_owned(), requested_client_actions: actions }
}

/// What an answer comes to.
pub(super) struct Verdict {
    /// What no client should do.
    pub(super) faults: Vec<String>,
    /// The client's version; the error is the text with which the session ends.
    pub(super) outcome: Result<Version, String>,
}

/// Looks at the client's answer.
///
/// # Errors
/// If it cannot be read, which an agent leaves at that.
pub(super) fn check(payload: &[u8]) -> Result<Verdict, serde_json::Error> {
    let response: HandshakeResponse = serde_json::from_slice(payload)?;
    let failed = response.processed_client_actions.iter().find(|action| action.action_status != ACTION_SUCCESS);
    if let Some(action) = failed {
        let output = format!(
            "Encountered error while initiating handshake. {} failed on client with status {} error: {}",
            action.action_type, action.action_status, action.error
        );
        return Ok(Verdict { faults: Vec::new(), outcome: Err(output) });
    }
    let mut faults = Vec::new();
    if response.processed_client_actions.first().is_none_or(|action| action.action_type != ACTION_SESSION_TYPE) {
        faults.push("answered the handshake without the session type".to_owned());
    }
    let client = &response.client_version;
    let version = Version::parse(client).filter(|version| *version >= FIRST_CLIENT_WITH_MUX);
    if version.is_none() {
        faults.push(format!("reports version `{client}`, for which agents do not multiplex"));
    }
    Ok(Verdict { faults, outcome: version.ok_or_else(|| "the emulated agent has no basic mode".to_owned()) })
}

/// Whether the smux keepalive of an agent is on for a client of this version.
pub(super) fn keeps_alive(agent: &str, client: Version) -> bool {
    match Version::parse(agent) {
        Some(agent) if agent >= FIRST_AGENT_THAT_ASKS_FOR_KEEPALIVE => client <= LAST_CLIENT_WITH_KEEPALIVE,
        Some(agent) => agent != AGENT_WITHOUT_KEEPALIVE,
        None => false,
    }
}
