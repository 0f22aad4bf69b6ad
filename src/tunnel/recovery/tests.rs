//! What follows the end of a link, as a table.

use super::*;

const NOW: Duration = Duration::ZERO;

fn history() -> History {
    History { starts: 0, useful_before: Some(NOW), route: 1, routes: 3, idle: false }
}

/// A step in short: what, the bounds of its delay in milliseconds, and which route.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Expected {
    Restart(u64, u64, usize),
    Slow(u64, u64, usize),
    OnDemand(usize),
}
use Expected::{OnDemand, Restart, Slow};

fn check(name: &str, class: Class, history: &History, expected: Expected) {
    for seed in 0..200 {
        let step = decide(class, history, &mut Jitter::new(seed));
        let within =
            |after: Duration, low: u64, high: u64| (u128::from(low)..=u128::from(high)).contains(&after.as_millis());
        let fits = match (step, expected) {
            (Step::Restart { after, route }, Restart(low, high, wanted))
            | (Step::SlowRetry { after, route }, Slow(low, high, wanted)) => {
                within(after, low, high) && route == wanted
            }
            (Step::OnDemand { route }, OnDemand(wanted)) => route == wanted,
            _ => false,
        };
        assert!(fits, "{name}: {step:?} is not {expected:?}");
    }
}

#[test]
fn a_link_that_cannot_be_had() {
    let h = History { starts: 2, ..history() };
    let last = History { route: 2, ..h };
    let only = History { route: 0, routes: 1, ..h };
    let next_at_once = Restart(0, 0, 2);
    let slowly = Slow(10_000, 20_000, 0);
    for (class, middle, at_last, alone) in [
        (Class::Away, next_at_once, Restart(500, 1000, 0), Restart(500, 1000, 0)),
        // The others of the list may only be away.
        (Class::Gone, next_at_once, Restart(500, 1000, 0), slowly),
        (Class::Denied, next_at_once, Restart(500, 1000, 0), slowly),
        (Class::Refused, next_at_once, Restart(500, 1000, 0), slowly),
        (Class::Unfit, Slow(10_000, 20_000, 2), slowly, slowly),
        (Class::Identity, Slow(10_000, 20_000, 2), slowly, slowly),
        (Class::Throttled, Restart(2000, 4000, 1), Restart(2000, 4000, 2), Restart(2000, 4000, 0)),
        (Class::Transient, Restart(500, 1000, 1), Restart(500, 1000, 2), Restart(500, 1000, 0)),
        (Class::Bug, Restart(500, 1000, 1), Restart(500, 1000, 2), Restart(500, 1000, 0)),
        (Class::Useless, Restart(500, 1000, 2), Restart(500, 1000, 0), Restart(500, 1000, 0)),
    ] {
        check(&format!("{class:?} in the middle"), class, &h, middle);
        check(&format!("{class:?} at the end"), class, &last, at_last);
        check(&format!("{class:?} alone"), class, &only, alone);
    }
    let lasting = History { starts: 3, ..h };
    check("trouble that lasts may be of this route", Class::Transient, &lasting, Restart(1000, 2000, 2));
    let last = History { route: 2, ..lasting };
    check("and leads back to the first", Class::Transient, &last, Restart(1000, 2000, 0));
}

#[test]
fn routes_that_are_away_for_long_are_a_matter_for_a_human() {
    let last = History { starts: 3, route: 2, ..history() };
    for class in [Class::Away, Class::Gone, Class::Denied, Class::Refused] {
        check("it worked just now", class, &last, Restart(1000, 2000, 0));
        let never = History { useful_before: None, ..last };
        check("one that never worked", class, &never, Slow(20_000, 40_000, 0));
        let long = History { useful_before: Some(Duration::from_secs(181)), ..last };
        check("one that is away for long", class, &long, Slow(20_000, 40_000, 0));
    }
}

#[test]
fn a_link_that_ends() {
    let h = history();
    let useless = History { starts: 1, ..h };
    check("after use: at once, the first route first", Class::Over, &h, Restart(0, 0, 0));
    check("that was of no use", Class::Over, &useless, Restart(250, 500, 1));
    check("three times", Class::Over, &History { starts: 3, ..h }, Slow(20_000, 40_000, 2));
    check("and for ever", Class::Over, &History { starts: 99, ..h }, Slow(30_000, 60_000, 2));
    check("when nobody needs it", Class::Over, &History { idle: true, ..h }, OnDemand(1));
    check("idle but never of use", Class::Over, &History { idle: true, ..useless }, Restart(250, 500, 1));
}

#[test]
fn nothing_is_ever_given_up_and_no_delay_is_longer_than_a_minute() {
    let mut jitter = Jitter::new(1);
    for class in Class::ALL {
        for (starts, route, routes) in [(0, 0, 1), (1, 0, 1), (50, 0, 1), (u32::MAX, 0, 1), (7, 2, 3), (0, 1, 3)] {
            let history = History { starts, route, routes, ..history() };
            match decide(class, &history, &mut jitter) {
                Step::Restart { after, route } | Step::SlowRetry { after, route } => {
                    assert!(after <= SLOWEST && route < routes, "{class:?} {history:?}: {after:?} {route}");
                }
                Step::OnDemand { .. } => panic!("{class:?}: somebody waits"),
            }
        }
    }
}

#[test]
fn the_time_to_come_up_is_shared_until_all_routes_have_been_tried() {
    let limit = |limit, starts, routes| up_within(Duration::from_secs(limit), starts, routes).as_secs();
    assert_eq!(limit(60, 0, 1), 60, "an agent that takes 35 s");
    assert_eq!(limit(300, 7, 1), 300);
    assert_eq!(limit(3, 0, 1), 30, "whoever is impatient still gets a tunnel");
    assert_eq!(limit(24 * 3600, 0, 1), 600, "one that never comes is not waited for all day");
    assert_eq!([0, 1, 2].map(|starts| limit(60, starts, 2)), [30, 30, 60], "both are tried in time");
    assert_eq!([0, 9, 10].map(|starts| limit(60, starts, 10)), [15, 15, 60], "what is awake takes a second");
    assert_eq!([0, 1, 2].map(|starts| limit(2, starts, 2)), [2, 2, 30]);
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
    assert_eq!(after(ProbeError::LinkLost, 9, true), Some(0));
    assert!(after(ProbeError::Authority { source: "because".into() }, 9, false).is_some());
}

#[test]
fn a_better_route_is_looked_for_less_and_less_often() {
    let mut jitter = Jitter::new(1);
    let mut delays = (1..=8).map(|attempt| failback(attempt, false, &mut jitter).as_secs());
    for (low, high) in [(15, 30), (30, 60), (60, 120), (120, 240), (240, 480), (300, 600), (300, 600), (300, 600)] {
        let delay = delays.next().unwrap();
        assert!((low..=high).contains(&delay), "{delay} is not between {low} and {high}");
    }
}

#[test]
fn a_link_is_behind_when_another_would_be_quicker() {
    let ms = Duration::from_millis;
    let start_time = ms(1200);
    assert!(!is_behind(ms(0), false, start_time));
    assert!(!is_behind(ms(1600), false, start_time));
    assert!(is_behind(ms(1800), false, start_time));
    assert!(is_behind(ms(600), true, start_time), "until it has all but caught up");
    assert!(!is_behind(ms(400), true, start_time));
    assert!(!is_behind(ms(900), false, ms(1)), "a hiccup is not worth a call, however fast links start");
}
