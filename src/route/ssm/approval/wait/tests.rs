//! What follows from what, over hours of time that nobody waits for.

use std::time::SystemTime;

use super::*;

/// When the tests begin, by the clock of AWS.
const BEGIN: Duration = Duration::from_secs(1_795_000_000);

fn at(seconds: u64) -> Now {
    let mono = Duration::from_secs(seconds);
    Now { mono, wall: BEGIN + mono }
}

/// Credentials that end so many seconds after the beginning.
fn keys(end: u64) -> Credentials {
    let end = SystemTime::UNIX_EPOCH + BEGIN + Duration::from_secs(end);
    Credentials::new("ASIAEXAMPLE", "secret", Some("token".to_owned()), Some(end), "test")
}

/// What is next, in short.
fn next(wait: &Wait, seconds: u64) -> String {
    match wait.next(at(seconds)) {
        Next::Use => "use".to_owned(),
        Next::Request { after } => format!("request after {} s", after.as_secs()),
        Next::Look { after, .. } if after.is_zero() => "look".to_owned(),
        Next::Look { .. } => "wait".to_owned(),
        Next::Refuse { verdict, .. } => format!("{verdict:?}"),
    }
}

fn requested() -> (Wait, Jitter) {
    let mut wait = Wait::default();
    assert_eq!(next(&wait, 0), "request after 0 s");
    wait.requested("oi-1".to_owned(), at(0));
    (wait, Jitter::new(7))
}

#[test]
fn an_undecided_request_is_looked_at_more_and_more_seldom() {
    let (mut wait, mut jitter) = requested();
    let (mut looks, mut second) = (Vec::new(), 0);
    while second < 3600 {
        match wait.next(at(second)) {
            Next::Look { after, .. } if after.is_zero() => {
                looks.push(second);
                wait.looked(Answer::Pending, at(second), &mut jitter);
            }
            Next::Look { .. } => second += 1,
            other @ (Next::Use | Next::Request { .. } | Next::Refuse { .. }) => panic!("{other:?}"),
        }
    }
    assert_eq!(looks[0], 0, "a policy may have approved it at once");
    let gaps: Vec<u64> = looks.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!((2..=6).contains(&gaps[0]), "{gaps:?}");
    assert!(gaps.iter().skip(4).all(|gap| (15..=31).contains(gap)), "{gaps:?}");
    wait.looked(Answer::Approved(keys(7200)), at(3600), &mut jitter);
    assert_eq!(next(&wait, 3601), "use", "late is as good");
}

#[test]
fn what_is_refused_stays_so_and_is_asked_no_more() {
    for (answer, verdict) in
        [(Answer::Rejected, "Rejected"), (Answer::Revoked, "Revoked"), (Answer::Expired, "Unanswered")]
    {
        let (mut wait, mut jitter) = requested();
        wait.looked(answer, at(30), &mut jitter);
        assert_eq!((next(&wait, 30).as_str(), next(&wait, 80_000).as_str()), (verdict, verdict));
        assert!(wait.keys(BEGIN).is_none());
    }
}

#[test]
fn a_request_that_is_not_known_yet_is_not_withdrawn() {
    let (mut wait, mut jitter) = requested();
    wait.looked(Answer::Absent, at(1), &mut jitter);
    assert_eq!(next(&wait, 2), "wait");
    wait.looked(Answer::Absent, at(90), &mut jitter);
    assert_eq!(next(&wait, 90), "Withdrawn");
}

#[test]
fn credentials_are_used_until_their_end_and_renewed_before() {
    let (mut wait, mut jitter) = requested();
    wait.looked(Answer::Approved(keys(3600)), at(0), &mut jitter);
    assert_eq!(next(&wait, 3299), "use");
    assert_eq!(next(&wait, 3300), "look", "the approval may last longer than they do");
    // It does not, and the old ones are good until then.
    wait.looked(Answer::Approved(keys(3600)), at(3300), &mut jitter);
    assert_eq!((next(&wait, 3301).as_str(), next(&wait, 3360).as_str()), ("use", "look"));
    // It could not be asked: they still are.
    wait.failed(at(3360), &mut jitter);
    assert_eq!(next(&wait, 3361), "use");
    wait.looked(Answer::Approved(keys(7200)), at(3370), &mut jitter);
    assert_eq!(next(&wait, 6899), "use");
    assert_eq!(
        wait.keys(BEGIN + Duration::from_secs(7199)).map(|keys| keys.1),
        Some(BEGIN + Duration::from_secs(7200))
    );
    assert!(wait.keys(BEGIN + Duration::from_secs(7200)).is_none());
}

#[test]
fn an_approval_that_is_over_leads_to_another_request() {
    let (mut wait, mut jitter) = requested();
    wait.looked(Answer::Approved(keys(3600)), at(0), &mut jitter);
    assert_eq!(next(&wait, 3600), "look");
    wait.looked(Answer::Expired, at(3600), &mut jitter);
    assert_eq!(next(&wait, 3600), "request after 0 s");
    // One that is over at once is not asked for over and over.
    wait.requested("oi-2".to_owned(), at(3600));
    wait.looked(Answer::Approved(keys(3600)), at(3601), &mut jitter);
    assert_eq!(next(&wait, 3602), "wait", "what was given has ended already");
    wait.looked(Answer::Expired, at(3602), &mut jitter);
    assert_eq!(next(&wait, 3602), "request after 28 s");
    assert_eq!(wait.id(), None);
}

#[test]
fn an_approval_that_is_taken_back_is_no_approval() {
    let (mut wait, mut jitter) = requested();
    wait.looked(Answer::Approved(keys(3600)), at(0), &mut jitter);
    assert!(wait.was_approved() && wait.keys(BEGIN).is_some());
    wait.looked(Answer::Revoked, at(60), &mut jitter);
    assert_eq!(next(&wait, 61), "Revoked");
    assert!(wait.keys(BEGIN).is_none());
}

#[test]
fn what_nobody_knew_is_waited_out() {
    let (mut wait, mut jitter) = requested();
    wait.looked(Answer::Other, at(0), &mut jitter);
    assert_eq!((next(&wait, 0).as_str(), next(&wait, 31).as_str()), ("wait", "look"));
}
