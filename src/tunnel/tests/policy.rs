//! The policy as a table.

use std::time::Duration;

use crate::{
    route::ssm::proto::{CloseReason, Version, Violation, handshake::HandshakeError, smux::frame::FrameError},
    tunnel::{
        BoxError, DialError, Fault, ProbeError, SessionId, TransportError,
        policy::{
            AfterProbe, Denial, History, Jitter, Step, after_probe, decide, denial, failback, handshake_limit,
            is_behind,
        },
        tests::support::{denied, target},
    },
};

const NOW: Duration = Duration::ZERO;

fn history() -> History {
    History {
        resumes: 1,
        down_for: NOW,
        resume_budget: Duration::from_secs(90),
        starts: 0,
        useful_before: Some(NOW),
        target: 1,
        targets: 3,
        idle: false,
    }
}

/// A step in short: what, the bounds of its delay in milliseconds, and which target.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Expected {
    Resume(u64, u64),
    Restart(u64, u64, usize),
    Slow(u64, u64, usize),
    OnDemand(usize),
}

fn check(name: &str, fault: &Fault, history: &History, expected: Expected) {
    for seed in 0..200 {
        let step = decide(fault, history, &mut Jitter::new(seed));
        let within =
            |after: Duration, low: u64, high: u64| (u128::from(low)..=u128::from(high)).contains(&after.as_millis());
        let fits = match (step, expected) {
            (Step::Resume { after }, Expected::Resume(low, high)) => within(after, low, high),
            (Step::Restart { after, target }, Expected::Restart(low, high, wanted))
            | (Step::SlowRetry { after, target }, Expected::Slow(low, high, wanted)) => {
                within(after, low, high) && target == wanted
            }
            (Step::OnDemand { target }, Expected::OnDemand(wanted)) => target == wanted,
            _ => false,
        };
        assert!(fits, "{name}: {step:?} is not {expected:?}");
    }
}

fn source() -> BoxError {
    "because".into()
}

fn broken() -> Fault {
    Fault::Transport(TransportError::Closed { code: 1000, reason: "Bye".into() })
}

fn not_connected() -> Fault {
    Fault::Start(DialError::TargetNotConnected { target: target(0), source: source() })
}

fn not_found() -> Fault {
    Fault::Start(DialError::TargetNotFound { target: target(0), region: "r".into(), source: source() })
}

fn closed() -> Fault {
    Fault::Closed(CloseReason::ChannelClosed { output: "".into() })
}

#[test]
fn a_lost_transport() {
    let h = history();
    check("the first attempt is made at once", &broken(), &h, Expected::Resume(0, 0));
    check("silence is no different", &Fault::Silent { seconds: 44 }, &h, Expected::Resume(0, 0));
    check("nor is a way out that is closed", &Fault::Mute { seconds: 10 }, &h, Expected::Resume(0, 0));
    let again = History { resumes: 2, ..h };
    check("the second after the first pause", &broken(), &again, Expected::Resume(50, 100));
    check("pauses double", &broken(), &History { resumes: 4, ..h }, Expected::Resume(200, 400));
    check("up to five seconds", &broken(), &History { resumes: 40, ..h }, Expected::Resume(2500, 5000));
    let late = History { down_for: Duration::from_secs(90), resumes: 30, starts: 1, ..h };
    check("not beyond the budget", &broken(), &late, Expected::Restart(250, 500, 1));
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
        (None, NOW, true, Denial::Unproven),
        // What the service says counts more.
        (Some(true), minute, false, Denial::Proven),
        (Some(true), minute, true, Denial::Proven),
        (Some(false), NOW, false, Denial::Ended),
        (Some(false), minute, true, Denial::Ended),
    ] {
        assert_eq!(denial(is_active, unheard, has_resumed), expected, "{is_active:?} {unheard:?} {has_resumed}");
    }
}

#[test]
fn the_time_for_the_handshake_is_shared_until_all_targets_have_been_tried() {
    let limit = |limit, starts, targets| handshake_limit(Duration::from_secs(limit), starts, targets).as_secs();
    assert_eq!(limit(60, 0, 1), 60, "an agent that takes 35 s");
    assert_eq!(limit(300, 7, 1), 300);
    assert_eq!(limit(3, 0, 1), 30, "whoever is impatient still gets a tunnel");
    assert_eq!(limit(24 * 3600, 0, 1), 600, "an agent that never comes is not waited for all day");
    assert_eq!([0, 1, 2].map(|starts| limit(60, starts, 2)), [30, 30, 60], "both are tried in time");
    assert_eq!([0, 9, 10].map(|starts| limit(60, starts, 10)), [15, 15, 60], "agents that are awake take a second");
    assert_eq!([0, 1, 2].map(|starts| limit(2, starts, 2)), [2, 2, 30]);
}

#[test]
fn a_resume_that_fails() {
    let h = History { resumes: 3, starts: 1, ..history() };
    let id = SessionId("s".into());
    let action = "ssm:ResumeSession";
    let again = Expected::Resume(100, 200);
    let restart = Expected::Restart(250, 500, 1);
    for (error, expected) in [
        (DialError::SessionEnded { id }, restart),
        (denied(action), restart),
        (DialError::DocumentRefused { document: "d", source: source() }, restart),
        (DialError::Refused { action, resource: "s".into(), source: source() }, restart),
        (DialError::ForeignStreamUrl { host: "h".into() }, restart),
        (DialError::TargetNotConnected { target: target(1), source: source() }, restart),
        (DialError::TargetNotFound { target: target(1), region: "r".into(), source: source() }, restart),
        (DialError::Throttled { action, source: source() }, Expected::Resume(1000, 2000)),
        (DialError::UpgradeRefused { host: "h".into(), status: 403, detail: "token".into() }, again),
        (DialError::Credentials { action, source: source() }, again),
        (DialError::Unreachable { host: "h".into(), source: source() }, again),
        (DialError::Service { action, source: source() }, again),
        (DialError::Timeout { step: "resume", seconds: 20 }, again),
    ] {
        check(&error.to_string(), &Fault::Resume(error), &h, expected);
    }
}

#[test]
fn a_start_that_fails() {
    let h = History { starts: 2, ..history() };
    let action = "ssm:StartSession";
    let again = Expected::Restart(500, 1000, 1);
    let slow = Expected::Slow(10_000, 20_000, 2);
    for (error, expected) in [
        (DialError::SessionEnded { id: SessionId("s".into()) }, again),
        (denied(action), Expected::Restart(0, 0, 2)),
        (DialError::DocumentRefused { document: "d", source: source() }, Expected::Restart(0, 0, 2)),
        (DialError::Refused { action, resource: "mi-1".into(), source: source() }, Expected::Restart(0, 0, 2)),
        (DialError::ForeignStreamUrl { host: "h".into() }, slow),
        (DialError::Throttled { action, source: source() }, Expected::Restart(2000, 4000, 1)),
        (DialError::UpgradeRefused { host: "h".into(), status: 403, detail: "".into() }, slow),
        (DialError::UpgradeRefused { host: "h".into(), status: 410, detail: "".into() }, again),
        (DialError::Credentials { action, source: source() }, slow),
        (DialError::Unreachable { host: "h".into(), source: source() }, again),
        (DialError::Service { action, source: source() }, again),
        (DialError::Timeout { step: "start", seconds: 60 }, again),
    ] {
        check(&error.to_string(), &Fault::Start(error), &h, expected);
    }
    let last = History { target: 2, ..h };
    for (name, error) in [
        ("the last that is denied", denied(action)),
        ("the last that is refused", DialError::Refused { action, resource: "mi-1".into(), source: source() }),
        ("the last without the document", DialError::DocumentRefused { document: "d", source: source() }),
    ] {
        check(name, &Fault::Start(error), &last, Expected::Slow(10_000, 20_000, 0));
    }
    let lasting = History { starts: 3, ..h };
    let service = || Fault::Start(DialError::Service { action, source: source() });
    check("trouble that lasts may be of this target", &service(), &lasting, Expected::Restart(1000, 2000, 2));
    let last = History { target: 2, ..lasting };
    check("and leads back to the first", &service(), &last, Expected::Restart(1000, 2000, 0));
}

#[test]
fn a_target_that_is_away() {
    let h = History { starts: 3, ..history() };
    check("the next is tried at once", &not_connected(), &h, Expected::Restart(0, 0, 2));
    let last = History { target: 2, ..h };
    check("the last leads back to the first", &not_connected(), &last, Expected::Restart(1000, 2000, 0));
    let never = History { useful_before: None, ..last };
    check("one that never worked", &not_connected(), &never, Expected::Slow(20_000, 40_000, 0));
    let long = History { useful_before: Some(Duration::from_secs(181)), ..last };
    check("one that is away for long", &not_connected(), &long, Expected::Slow(20_000, 40_000, 0));
}

#[test]
fn a_target_that_is_gone() {
    let h = History { starts: 3, ..history() };
    check("the next is tried at once", &not_found(), &h, Expected::Restart(0, 0, 2));
    let last = History { target: 2, ..h };
    check("the others may return", &not_found(), &last, Expected::Restart(1000, 2000, 0));
    let only = History { target: 0, targets: 1, ..h };
    check("the only one does not", &not_found(), &only, Expected::Slow(20_000, 40_000, 0));
    check("unlike one that is away", &not_connected(), &only, Expected::Restart(1000, 2000, 0));
    let never = History { useful_before: None, ..last };
    check("none ever worked", &not_found(), &never, Expected::Slow(20_000, 40_000, 0));
}

#[test]
fn a_session_that_ends() {
    let h = history();
    let useless = History { starts: 1, ..h };
    check("after use: at once, the first target first", &closed(), &h, Expected::Restart(0, 0, 0));
    check("that was of no use", &closed(), &useless, Expected::Restart(250, 500, 1));
    check("three times", &closed(), &History { starts: 3, ..h }, Expected::Slow(20_000, 40_000, 2));
    check("and for ever", &closed(), &History { starts: 99, ..h }, Expected::Slow(30_000, 60_000, 2));
    check("when nobody needs it", &closed(), &History { idle: true, ..h }, Expected::OnDemand(1));
    check("idle but never of use", &closed(), &History { idle: true, ..useless }, Expected::Restart(250, 500, 1));
    let refused = |host: &str| {
        let output = format!("Forwarding to IP address {host} is forbidden.");
        Fault::Closed(CloseReason::ChannelClosed { output: output.into() })
    };
    check("the destination is refused: another agent may not", &refused("x"), &useless, Expected::Restart(0, 0, 2));
    let last = History { target: 2, ..useless };
    check("all refuse it", &refused("127.0.0.1"), &last, Expected::Slow(5_000, 10_000, 0));
    let version = Version([3, 0, 0, 0]);
    let next = Expected::Slow(5_000, 10_000, 2);
    for (reason, expected) in [
        (CloseReason::Unacknowledged { seconds: 300 }, Expected::Restart(250, 500, 1)),
        (CloseReason::Paused { seconds: 90 }, Expected::Restart(250, 500, 1)),
        (CloseReason::Smux(FrameError::Version(2)), Expected::Restart(250, 500, 1)),
        (
            CloseReason::Misbehaved { count: 257, last: Violation::UnreadableAcknowledgement },
            Expected::Restart(250, 500, 1),
        ),
        (CloseReason::HandshakeTimeout { seconds: 30, requested: false }, Expected::Restart(250, 500, 2)),
        (HandshakeError::AgentTooOld { version }.into(), next),
        (HandshakeError::Malformed("".into()).into(), next),
        (HandshakeError::UnknownVersion("".into()).into(), next),
        (HandshakeError::SessionType("".into()).into(), next),
        (HandshakeError::PortType("".into()).into(), next),
        (HandshakeError::KmsEncryption("".into()).into(), next),
        (HandshakeError::UnknownAction("".into()).into(), next),
    ] {
        check(&reason.to_string(), &Fault::Closed(reason), &useless, expected);
    }
    check("stream ids", &Fault::Exhausted, &useless, Expected::Restart(0, 0, 1));
}

#[test]
fn a_session_that_leads_nowhere() {
    let h = history();
    check("wedged", &Fault::Probe(ProbeError::NoAnswer { seconds: 7 }), &h, Expected::Restart(0, 0, 1));
    let again = History { starts: 2, ..h };
    check("again", &Fault::Probe(ProbeError::NoAnswer { seconds: 7 }), &again, Expected::Restart(500, 1000, 1));
    let always = History { starts: 3, ..h };
    check("always", &Fault::Probe(ProbeError::NoAnswer { seconds: 7 }), &always, Expected::Slow(20_000, 40_000, 2));
    check("refused", &Fault::Probe(ProbeError::Refused), &always, Expected::Restart(1000, 2000, 2));
    let certificate = ProbeError::Certificate { host: "h".into(), source: rustls::Error::General("no".into()) };
    check("somewhere else", &Fault::Probe(certificate), &h, Expected::Slow(5_000, 10_000, 1));
}

#[test]
fn probes_that_fail() {
    let mut jitter = Jitter::new(1);
    let mut of_age = |age, error: ProbeError, failures, in_use| match after_probe(
        &error,
        failures,
        Duration::from_secs(age),
        in_use,
        &mut jitter,
    ) {
        AfterProbe::Again { after } => Some(after.as_millis()),
        AfterProbe::Replace => None,
    };
    assert!(of_age(119, ProbeError::Refused, 50, false).is_some(), "an API server may take its time to restart");
    let mut after = |error, failures, in_use| of_age(120, error, failures, in_use);
    let silent = || ProbeError::NoAnswer { seconds: 7 };
    assert_eq!(after(silent(), 1, true), Some(0));
    assert_eq!(after(silent(), 2, true), None);
    assert!(matches!(after(ProbeError::Refused, 1, true), Some(250..=500)));
    assert!(matches!(after(ProbeError::Refused, 50, true), Some(7_500..=15_000)), "open connections are not cut");
    assert!(after(ProbeError::Refused, 3, false).is_some());
    assert_eq!(after(ProbeError::Refused, 4, false), None, "the name may lead elsewhere by now");
    let certificate = || ProbeError::Certificate { host: "h".into(), source: rustls::Error::General("no".into()) };
    assert!(matches!(after(certificate(), 1, false), Some(5_000..=10_000)));
    assert_eq!(after(certificate(), 2, false), None);
    assert!(after(certificate(), 2, true).is_some());
    assert_eq!(after(ProbeError::SessionLost, 9, true), Some(0));
    assert!(after(ProbeError::Authority { source: source() }, 9, false).is_some());
}

#[test]
fn a_better_target_is_looked_for_less_and_less_often() {
    let mut jitter = Jitter::new(1);
    let mut delays = (1..=8).map(|attempt| failback(attempt, &mut jitter).as_secs());
    for (low, high) in [(15, 30), (30, 60), (60, 120), (120, 240), (240, 480), (300, 600), (300, 600), (300, 600)] {
        let delay = delays.next().unwrap();
        assert!((low..=high).contains(&delay), "{delay} is not between {low} and {high}");
    }
}

#[test]
fn a_session_is_behind_when_another_would_be_quicker() {
    let ms = Duration::from_millis;
    let start_time = ms(1200);
    assert!(!is_behind(ms(0), false, start_time));
    assert!(!is_behind(ms(1600), false, start_time));
    assert!(is_behind(ms(1800), false, start_time));
    assert!(is_behind(ms(600), true, start_time), "until it has all but caught up");
    assert!(!is_behind(ms(400), true, start_time));
    assert!(!is_behind(ms(900), false, ms(1)), "a hiccup is not worth a call, however fast sessions start");
}
