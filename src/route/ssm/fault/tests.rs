//! What faults of sessions mean for links, as a table.

use super::*;
use crate::{
    fault::BoxError,
    route::ssm::{
        SessionId,
        proto::{Version, Violation, handshake::HandshakeError, smux::frame::FrameError},
        tests::support::{denied, target},
    },
    util::peer_text::sentence,
};

fn source() -> BoxError {
    "because".into()
}

#[test]
fn a_source_that_its_error_has_said_already_is_not_repeated() {
    let io = std::io::Error::other("reset by peer");
    let fault = SessionFault::Transport(TransportError::Broken(tokio_tungstenite::tungstenite::Error::Io(io)));
    assert_eq!(
        sentence(&fault),
        "lost the connection to the message gateway: the WebSocket connection broke: IO error: reset by peer"
    );
}

#[test]
fn a_session_that_cannot_be_started() {
    let action = "ssm:StartSession";
    let refused = |status| DialError::UpgradeRefused { host: "h".into(), status, detail: "".into() };
    for (error, expected) in [
        (DialError::TargetNotConnected { target: target(0), source: source() }, Class::Away),
        (DialError::TargetNotFound { target: target(0), region: "r".into(), source: source() }, Class::Gone),
        (denied(action), Class::Denied),
        (DialError::DocumentRefused { document: "d".to_owned(), source: source() }, Class::Refused),
        (DialError::Refused { action, resource: "mi-1".into(), source: source() }, Class::Refused),
        (DialError::ForeignStreamUrl { host: "h".into() }, Class::Unfit),
        (DialError::Credentials { action, source: source() }, Class::Identity),
        (refused(401), Class::Identity),
        (refused(403), Class::Identity),
        (refused(410), Class::Transient),
        (DialError::Throttled { action, source: source() }, Class::Throttled),
        (DialError::SessionEnded { id: SessionId("s".into()) }, Class::Transient),
        (DialError::Unreachable { host: "h".into(), source: source() }, Class::Transient),
        (DialError::Service { action, source: source() }, Class::Transient),
        (DialError::Timeout { step: "start", seconds: 60 }, Class::Transient),
    ] {
        let text = error.to_string();
        assert_eq!(SessionFault::Start(error).class(), expected, "{text}");
    }
}

#[test]
fn a_session_that_ends() {
    let closed = |output: &str| CloseReason::ChannelClosed { output: output.into() };
    let version = Version([3, 0, 0, 0]);
    for (reason, expected) in [
        (closed(""), Class::Over),
        (closed("Forwarding to IP address 127.0.0.1 is forbidden."), Class::Refused),
        (CloseReason::Unacknowledged { seconds: 300 }, Class::Transient),
        (CloseReason::Paused { seconds: 90 }, Class::Transient),
        (CloseReason::Smux(FrameError::Version(2)), Class::Transient),
        (CloseReason::Misbehaved { count: 257, last: Violation::UnreadableAcknowledgement }, Class::Transient),
        (CloseReason::HandshakeTimeout { seconds: 30, requested: false }, Class::Useless),
        (HandshakeError::AgentTooOld { version }.into(), Class::Unfit),
        (HandshakeError::Malformed("".into()).into(), Class::Unfit),
        (HandshakeError::UnknownVersion("".into()).into(), Class::Unfit),
        (HandshakeError::SessionType("".into()).into(), Class::Unfit),
        (HandshakeError::PortType("".into()).into(), Class::Unfit),
        (HandshakeError::KmsEncryption("".into()).into(), Class::Unfit),
        (HandshakeError::UnknownAction("".into()).into(), Class::Unfit),
    ] {
        let text = reason.to_string();
        assert_eq!(SessionFault::Closed(reason).class(), expected, "{text}");
    }
    // What would keep another session from being started is said by its start.
    assert_eq!(SessionFault::Resume(denied("ssm:ResumeSession")).class(), Class::Over);
    assert_eq!(SessionFault::Silent { seconds: 45 }.class(), Class::Over);
    assert_eq!(SessionFault::Exhausted.class(), Class::Over);
}
