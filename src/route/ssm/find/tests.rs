//! A finder that looks at what the tests say, on paused time.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
};

use super::*;
use crate::route::ssm::tests::support::{cluster, target};

/// Shows what it is told to, the last for ever.
#[derive(Debug, Default)]
pub(in crate::route::ssm) struct Shown {
    sights: Mutex<VecDeque<Result<Sight, Class>>>,
    looks: Mutex<Vec<Vec<Target>>>,
    /// Nobody answers any more.
    held: AtomicBool,
    /// How many targets were to be made, look by look; `None`: none can be.
    made: Mutex<Option<Vec<usize>>>,
    /// How many sessions each target has, and how often that was asked for.
    open: Mutex<(Option<usize>, usize)>,
}

#[derive(Debug, thiserror::Error)]
#[error("nothing is there")]
struct Nothing;

impl Shown {
    pub(in crate::route::ssm) fn show(&self, sights: impl IntoIterator<Item = Result<Sight, Class>>) {
        *self.sights.lock().unwrap() = sights.into_iter().collect();
    }

    pub(in crate::route::ssm) fn open(&self, count: usize) {
        self.open.lock().unwrap().0 = Some(count);
    }

    /// How often it was asked how many sessions a target has.
    pub(in crate::route::ssm) fn counts(&self) -> usize {
        self.open.lock().unwrap().1
    }

    pub(in crate::route::ssm) fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    pub(in crate::route::ssm) fn looks(&self) -> usize {
        self.looks.lock().unwrap().len()
    }
}

impl Look for Shown {
    fn look<'a>(&'a self, _to: &'a Remote, in_use: &'a [Target]) -> BoxFuture<'a, Result<Sight, Fault>> {
        self.looks.lock().unwrap().push(in_use.to_vec());
        if self.held.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        let mut sights = self.sights.lock().unwrap();
        let sight = if sights.len() > 1 { sights.pop_front() } else { sights.front().cloned() };
        let sight = sight.unwrap().map_err(|class| Fault::new(class, Nothing));
        Box::pin(std::future::ready(sight))
    }

    fn can_make(&self) -> bool {
        self.made.lock().unwrap().is_some()
    }

    fn make<'a>(
        &'a self,
        to: &'a Remote,
        in_use: &'a [Target],
        at_least: usize,
    ) -> BoxFuture<'a, Result<Sight, Fault>> {
        self.made.lock().unwrap().iter_mut().for_each(|made| made.push(at_least));
        self.look(to, in_use)
    }

    fn plan(&self) -> Vec<(StepName, String)> {
        vec![(StepName::KNOWN, "to be shown it".to_owned())]
    }

    fn open_sessions<'a>(&'a self, _target: &'a Target) -> BoxFuture<'a, Result<Option<OpenSessions>, AwsError>> {
        let mut open = self.open.lock().unwrap();
        open.1 += 1;
        match open.0 {
            Some(usize::MAX) => Box::pin(std::future::pending()),
            count => Box::pin(std::future::ready(Ok(count.map(OpenSessions::of)))),
        }
    }
}

/// Nothing takes sessions.
pub(in crate::route::ssm) fn nothing(class: Class) -> Sight {
    Sight { nothing: Some(Arc::new(Fault::new(class, Nothing))), ..Sight::default() }
}

pub(in crate::route::ssm) fn sight(targets: &[usize], capped: bool) -> Sight {
    let usable = targets.iter().map(|number| Candidate { target: target(*number), fresh: false, capped });
    Sight { usable: usable.collect(), found: targets.len(), ..Sight::default() }
}

fn finder(sights: impl IntoIterator<Item = Result<Sight, Class>>) -> (Arc<Finder>, Arc<Shown>) {
    let shown = Arc::new(Shown::default());
    shown.show(sights);
    (Finder::new("tag:a=b".to_owned(), Arc::clone(&shown) as Arc<dyn Look>), shown)
}

fn to(name: &str) -> Remote {
    crate::cluster::Cluster { id: name.to_owned(), ..cluster("") }.into()
}

async fn choose(finder: &Arc<Finder>, name: &str) -> Result<Seat, Arc<Fault>> {
    finder.choose(&to(name), drop).await
}

async fn wait(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_good_for_a_minute_for_everybody() {
    let (finder, shown) = finder([Ok(sight(&[1, 2], false))]);
    let all: Vec<_> = (0..50).map(|number| to(&number.to_string())).collect();
    let seats = futures_util::future::join_all(all.iter().map(|to| finder.choose(to, drop))).await;
    assert!(seats.iter().all(|seat| *seat.as_ref().unwrap().target() == target(1)));
    assert_eq!(shown.looks(), 1);
    assert_eq!(seats[0].as_ref().unwrap().notice(), "`tag:a=b` is `i-00000001`, one of 2");
    wait(GOOD_FOR).await;
    choose(&finder, "a").await.unwrap();
    assert_eq!(shown.looks(), 2);
    assert_eq!(shown.looks.lock().unwrap()[1], [target(1)], "what is in use is asked for");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_take_a_session_is_passed_over_for_a_while() {
    let (finder, shown) = finder([Ok(sight(&[1, 2], false))]);
    let first = choose(&finder, "a").await.unwrap();
    first.failed();
    let second = choose(&finder, "a").await.unwrap();
    assert_eq!((second.target(), shown.looks()), (&target(2), 1));
    second.failed();
    let fault = choose(&finder, "a").await.unwrap_err();
    assert_eq!(fault.class, Class::Away);
    assert!(fault.to_string().contains("none of the 2 targets of `tag:a=b`"), "{fault}");
    wait(AGAIN).await;
    choose(&finder, "a").await.unwrap_err();
    assert_eq!(shown.looks(), 2, "it is looked again");
    wait(SPOILED_FOR).await;
    assert_eq!(*choose(&finder, "a").await.unwrap().target(), target(2), "the one that was chosen before");
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_successor_finds_it_within_seconds() {
    let (finder, shown) = finder([Ok(sight(&[1], false))]);
    let seat = choose(&finder, "a").await.unwrap();
    seat.established();
    shown.show([Err(Class::Away)]);
    seat.failed();
    drop(seat);
    // The old one is still shown for a while.
    wait(AGAIN).await;
    for _ in 0..60 {
        let fault = choose(&finder, "a").await.unwrap_err();
        assert_eq!(fault.class, Class::Replaced, "it has worked a while ago");
        wait(Duration::from_secs(1)).await;
    }
    assert!((20..=40).contains(&shown.looks()), "{}", shown.looks());
    shown.show([Ok(sight(&[7], false))]);
    wait(AGAIN).await;
    assert_eq!(*choose(&finder, "a").await.unwrap().target(), target(7));
}

#[tokio::test(start_paused = true)]
async fn what_has_been_gone_for_long_is_looked_for_slowly() {
    let (finder, shown) = finder([Ok(sight(&[1], false))]);
    choose(&finder, "a").await.unwrap().established();
    shown.show([Err(Class::Away)]);
    wait(GOOD_FOR + HOPE).await;
    let before = shown.looks();
    for _ in 0..60 {
        let fault = choose(&finder, "a").await.unwrap_err();
        assert_eq!(fault.class, Class::Away);
        wait(Duration::from_secs(1)).await;
    }
    assert!(shown.looks() - before <= 5, "{}", shown.looks() - before);
}

#[tokio::test(start_paused = true)]
async fn sessions_spread_over_capped_targets_and_stop_at_their_cap() {
    let (finder, _) = finder([Ok(sight(&[1, 2], true))]);
    let mut seats = Vec::new();
    for expected in [1, 2, 1, 2] {
        let seat = choose(&finder, &seats.len().to_string()).await.unwrap();
        assert_eq!(*seat.target(), target(expected));
        seats.push(seat);
    }
    let fault = choose(&finder, "more").await.unwrap_err();
    assert_eq!(
        fault.to_string(),
        "`tag:a=b` has no room for another session: each of its 2 tasks carries up to 2, as many as it is known to take"
    );
    assert!(fault.hints[0].contains("--desired-count"), "{:?}", fault.hints);
    // Whoever waits learns at once that those have come up, so that there may be room for one more each.
    let clock = Clock::start();
    let third = async {
        let third = choose(&finder, "third").await.unwrap();
        (third, clock.now().mono)
    };
    let come_up = async {
        wait(Duration::from_secs(1)).await;
        seats.iter().for_each(Seat::established);
    };
    let ((third, waited), ()) = tokio::join!(third, come_up);
    assert_eq!(waited, Duration::from_secs(1));
    let other = choose(&finder, "other").await.unwrap();
    assert_ne!(third.target(), other.target());
    choose(&finder, "more").await.unwrap_err();
    // One of them was dropped in silence: that is its limit, though it works.
    assert_eq!(third.dropped(), 2);
    let full = third.target().clone();
    drop(third);
    other.established();
    wait(SPOILED_FOR).await;
    let next = choose(&finder, "next").await.unwrap();
    assert_ne!(*next.target(), full);
    choose(&finder, "more").await.unwrap_err();
    wait(LIMIT_HOLDS).await;
    assert_eq!(*choose(&finder, "more").await.unwrap().target(), full, "limits are changed, too");
}

#[tokio::test(start_paused = true)]
async fn what_drops_sessions_in_silence_is_said_to_be_full_perhaps() {
    let (finder, _) = finder([Ok(sight(&[1], true))]);
    let why = async |trouble: fn(&Seat)| {
        trouble(&choose(&finder, "first").await.unwrap());
        let fault = choose(&finder, "second").await.unwrap_err();
        wait(SPOILED_FOR).await;
        (fault.to_string(), fault.hints.len())
    };
    let (silent, hints) = why(|seat| assert_eq!(seat.dropped(), 0)).await;
    assert!(silent.ends_with("takes a session at present: perhaps each has as many as it takes"), "{silent}");
    assert_eq!(hints, 1);
    let (away, hints) = why(Seat::failed).await;
    assert!(away.ends_with("takes a session at present"), "{away}");
    assert_eq!(hints, 0);
}

#[tokio::test(start_paused = true)]
async fn one_session_at_a_time_tries_whether_there_is_room_for_more() {
    let (finder, _) = finder([Ok(sight(&[1], true))]);
    let (one, two) = (choose(&finder, "1").await.unwrap(), choose(&finder, "2").await.unwrap());
    one.established();
    choose(&finder, "3").await.unwrap_err();
    two.established();
    let three = choose(&finder, "3").await.unwrap();
    choose(&finder, "4").await.unwrap_err();
    three.established();
    three.established();
    drop((one, two, three));
    assert_eq!(finder.state().seats["i-00000001"].up, 0);
}

#[tokio::test(start_paused = true)]
async fn targets_that_are_gone_are_forgotten() {
    let (finder, shown) = finder([Ok(sight(&[0], true))]);
    for number in 0..9 {
        shown.show([Ok(sight(&[number], true))]);
        wait(GOOD_FOR).await;
        choose(&finder, "a").await.unwrap().established();
    }
    assert_eq!(finder.state().seats.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_place_is_free_when_its_session_is_over() {
    let (finder, _) = finder([Ok(sight(&[1], true))]);
    let (one, two) = (choose(&finder, "1").await.unwrap(), choose(&finder, "2").await.unwrap());
    choose(&finder, "3").await.unwrap_err();
    drop(one);
    drop(choose(&finder, "3").await.unwrap());
    drop(two);
}

#[tokio::test(start_paused = true)]
async fn the_fate_of_a_target_is_told_once_it_gets_worse() {
    let (finder, shown) = finder([Ok(sight(&[1], true))]);
    let seat = choose(&finder, "a").await.unwrap();
    let cluster = to("a");
    let leaving = Sight { leaving: vec![target(1)], ..sight(&[2], true) };
    let gone = Sight { gone: vec![target(1)], ..sight(&[2], true) };
    shown.show([Ok(sight(&[1], true)), Err(Class::Transient), Ok(leaving.clone())]);
    let clock = Clock::start();
    assert_eq!(seat.fate_after(&cluster, Fate::Stays).await, Fate::Leaving);
    assert!(clock.now().mono <= WATCH * 3, "{:?}", clock.now().mono);
    assert!(!seat.has_gone(&cluster).await);
    shown.show([Ok(leaving), Ok(gone)]);
    let clock = Clock::start();
    assert_eq!(seat.fate_after(&cluster, Fate::Leaving).await, Fate::Gone);
    assert!(clock.now().mono <= WATCH + AGAIN * 2, "{:?}", clock.now().mono);
    assert!(seat.has_gone(&cluster).await);
}

#[tokio::test(start_paused = true)]
async fn errors_of_a_full_task_say_how_many_sessions_it_has_by_one_call_a_minute() {
    let (finder, shown) = finder([Ok(sight(&[1], true))]);
    let seats = [choose(&finder, "1").await.unwrap(), choose(&finder, "2").await.unwrap()];
    seats.iter().for_each(Seat::established);
    seats[0].dropped();
    wait(SPOILED_FOR).await;
    shown.open(20);
    let told = async || choose(&finder, "3").await.unwrap_err().hints[0].clone();
    for _ in 0..20 {
        assert_eq!(told().await, "20 sessions are open on it, 2 of them of this program: `i-00000001`");
        wait(AGAIN).await;
    }
    assert_eq!(seats[0].crowd().await, Some(Crowd { open: 20, own: 2 }));
    assert_eq!(shown.counts(), 1);
    // Where nobody answers, nobody waits for long, nor again at once.
    shown.open(usize::MAX);
    wait(GOOD_FOR).await;
    let clock = Clock::start();
    assert!(told().await.contains("--desired-count"));
    told().await;
    assert!(clock.now().mono <= Duration::from_secs(2), "{:?}", clock.now().mono);
    assert_eq!(shown.counts(), 2);
}

#[tokio::test(start_paused = true)]
async fn one_that_has_just_come_up_is_waited_for_rather_than_followed_by_another() {
    let mut fresh = sight(&[1], true);
    fresh.usable[0].fresh = true;
    let (finder, shown) = finder([Ok(fresh)]);
    *shown.made.lock().unwrap() = Some(Vec::new());
    let seat = choose(&finder, "a").await.unwrap();
    // It says that it is not connected.
    seat.failed();
    let told = Mutex::new(Vec::new());
    let second = finder.choose(&to("b"), |report| told.lock().unwrap().push(format!("{report:?}"))).await.unwrap();
    assert_eq!(*second.target(), target(1));
    assert!(shown.made.lock().unwrap().iter().flatten().all(|at_least| *at_least == 1), "{:?}", shown.made);
    let told = told.into_inner().unwrap();
    assert!(told.iter().all(|report| report.contains("an agent that has just been started")), "{told:?}");
    assert!(!told.is_empty());
}

#[tokio::test(start_paused = true)]
async fn another_is_made_and_waited_for_when_a_tunnel_has_nothing() {
    let (finder, shown) = finder([Ok(sight(&[1], true))]);
    *shown.made.lock().unwrap() = Some(Vec::new());
    let (one, two) = (choose(&finder, "1").await.unwrap(), choose(&finder, "2").await.unwrap());
    one.established();
    two.dropped();
    drop(two);
    tokio::time::sleep(SPOILED_FOR).await;
    let awaited = Sight { awaited: Some("the second one is coming".to_owned()), ..sight(&[1], true) };
    let full = || Ok(sight(&[1], true));
    // It is asked for only when it is known that there is no room.
    shown.show([full(), Ok(awaited), Ok(sight(&[1, 2], true))]);
    let told = Mutex::new(Vec::new());
    let second = finder.choose(&to("2"), |report| told.lock().unwrap().push(format!("{report:?}"))).await.unwrap();
    assert_eq!(*second.target(), target(2));
    assert!(told.into_inner().unwrap().iter().any(|report| report.contains("the second one is coming")));
    assert_eq!(shown.made.lock().unwrap().as_ref().unwrap().last(), Some(&2));
    // One more session of a tunnel that has some is no reason to make another.
    let third = choose(&finder, "1").await.unwrap();
    let made = shown.made.lock().unwrap().as_ref().unwrap().len();
    let more = choose(&finder, "1").await;
    assert!(more.is_err(), "{more:?}");
    assert!(shown.made.lock().unwrap().as_ref().unwrap()[made..].iter().all(|at_least| *at_least == 1));
    drop(third);
}
