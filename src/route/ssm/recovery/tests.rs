//! Resuming as a table.

use super::*;
use crate::route::{
    BoxError, ProbeError,
    ssm::{
        SessionId, TransportError,
        proto::CloseReason,
        tests::support::{denied, target},
    },
};

fn history() -> History {
    History { resumes: 1, down_for: Duration::ZERO, budget: Duration::from_secs(90) }
}

/// Bounds of the pause in milliseconds; `None`: no attempt.
type Expected = Option<(u64, u64)>;

fn check(name: &str, fault: &SessionFault, history: &History, expected: Expected) {
    for seed in 0..200 {
        let after = resume_after(fault, history, &mut Jitter::new(seed));
        let fits = match (after, expected) {
            (Some(after), Some((low, high))) => (u128::from(low)..=u128::from(high)).contains(&after.as_millis()),
            (None, None) => true,
            _ => false,
        };
        assert!(fits, "{name}: {after:?} is not {expected:?}");
    }
}

fn source() -> BoxError {
    "because".into()
}

fn broken() -> SessionFault {
    SessionFault::Transport(TransportError::Closed { code: 1000, reason: "Bye".into() })
}

#[test]
fn a_lost_transport() {
    let h = history();
    check("the first attempt is made at once", &broken(), &h, Some((0, 0)));
    check("silence is no different", &SessionFault::Silent { seconds: 44 }, &h, Some((0, 0)));
    check("nor is a way out that is closed", &SessionFault::Mute { seconds: 10 }, &h, Some((0, 0)));
    let again = History { resumes: 2, ..h };
    check("the second after the first pause", &broken(), &again, Some((50, 100)));
    check("pauses double", &broken(), &History { resumes: 4, ..h }, Some((200, 400)));
    check("up to five seconds", &broken(), &History { resumes: 40, ..h }, Some((2500, 5000)));
    let late = History { down_for: Duration::from_secs(90), resumes: 30, ..h };
    check("not beyond the budget", &broken(), &late, None);
}

#[test]
fn a_session_that_is_over_is_not_resumed() {
    let ended = CloseReason::ChannelClosed { output: "".into() };
    for fault in [
        SessionFault::Closed(ended),
        SessionFault::Exhausted,
        SessionFault::Probe(ProbeError::NoAnswer { seconds: 7 }),
        SessionFault::Start(denied("ssm:StartSession")),
    ] {
        check(&fault.to_string(), &fault, &history(), None);
    }
}

#[test]
fn what_a_denied_resume_proves() {
    let [moments, minute] = [Duration::from_secs(59), Duration::from_secs(60)];
    for (is_active, unheard, has_resumed, expected) in [
        // One that was heard a moment ago cannot have ended by itself; one that was not may have, as overnight.
        (None, moments, false, Denial::Proven),
        (None, minute, false, Denial::Unproven),
        (None, Duration::MAX, false, Denial::Unproven),
        // An identity that has resumed sessions may: it is this one.
        (None, Duration::ZERO, true, Denial::Unproven),
        // What the service says counts more.
        (Some(true), minute, false, Denial::Proven),
        (Some(true), minute, true, Denial::Proven),
        (Some(false), Duration::ZERO, false, Denial::Ended),
        (Some(false), minute, true, Denial::Ended),
    ] {
        assert_eq!(denial(is_active, unheard, has_resumed), expected, "{is_active:?} {unheard:?} {has_resumed}");
    }
}

#[test]
fn a_resume_that_fails() {
    let h = History { resumes: 3, ..history() };
    let id = SessionId("s".into());
    let action = "ssm:ResumeSession";
    let again = Some((100, 200));
    for (error, expected) in [
        (DialError::SessionEnded { id }, None),
        (denied(action), None),
        (DialError::DocumentRefused { document: "d".to_owned(), source: source() }, None),
        (DialError::Refused { action, resource: "s".into(), source: source() }, None),
        (DialError::ForeignStreamUrl { host: "h".into() }, None),
        (DialError::TargetNotConnected { target: target(1), source: source() }, None),
        (DialError::TargetNotFound { target: target(1), region: "r".into(), source: source() }, None),
        (DialError::Throttled { action, source: source() }, Some((1000, 2000))),
        (DialError::UpgradeRefused { host: "h".into(), status: 403, detail: "token".into() }, again),
        (DialError::Credentials { action, source: source() }, again),
        (DialError::Unreachable { host: "h".into(), source: source() }, again),
        (DialError::Service { action, source: source() }, again),
        (DialError::Timeout { step: "resume", seconds: 20 }, again),
    ] {
        check(&error.to_string(), &SessionFault::Resume(error), &h, expected);
    }
}
