//! Tunnels through targets that are found, and that are replaced.

use std::{sync::Arc, time::Duration};

use super::{
    agent::Order,
    support::{Call, Stopwatch, World, target},
};
use crate::{
    route::{
        Class, PipeEnd,
        ssm::find::{
            Look, Sight,
            tests::{Shown, nothing, sight},
        },
    },
    tunnel::State,
};

fn world(sights: impl IntoIterator<Item = Result<Sight, Class>>) -> (World, Arc<Shown>) {
    let shown = Arc::new(Shown::default());
    shown.show(sights);
    (World::finding(Arc::clone(&shown) as Arc<dyn Look>, |_| {}), shown)
}

/// What is shown while a task is replaced by the next.
fn leaving(old: usize, new: usize) -> Sight {
    Sight { leaving: vec![target(old)], changing: true, ..sight(&[new], true) }
}

fn gone(old: usize, new: usize) -> Sight {
    Sight { gone: vec![target(old)], ..sight(&[new], true) }
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_and_what_is_in_use_are_shown() {
    let (mut world, _) = world([Ok(sight(&[3, 4], true))]);
    let status = world.until_state(State::Active).await;
    let link = status.link().unwrap();
    assert_eq!((link.route.as_str(), link.place()), ("ecs:tools/bastion", "i-00000003"));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn connections_move_before_their_task_goes() {
    let (mut world, shown) = world([Ok(sight(&[1], true))]);
    world.until_state(State::Active).await;
    let mut open = world.connect();
    open.write(b"old").await;
    open.expect(b"old").await;
    shown.show([Ok(leaving(1, 2))]);
    world.until(|status| status.link().is_some_and(|link| link.place() == target(2).as_str())).await;
    let mut new = world.connect();
    new.write(b"new").await;
    new.expect(b"new").await;
    // The old one has what it had, until its task has gone.
    open.write(b"still here").await;
    open.expect(b"still here").await;
    assert_eq!(world.status.borrow().restarts, 0);
    shown.show([Ok(gone(1, 2))]);
    assert_eq!(open.reset().await, PipeEnd::Lost);
    new.write(b"still new").await;
    new.expect(b"still new").await;
    let status = world.until(|status| status.links.len() == 1).await;
    assert_eq!((status.state, status.open_connections), (State::Active, 1));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn deployments_one_after_the_other_cost_no_connection_a_wait() {
    let (mut world, shown) = world([Ok(sight(&[0], true))]);
    world.until_state(State::Active).await;
    for round in 0..20 {
        let (old, new) = (round % 9, (round + 1) % 9);
        shown.show([Ok(leaving(old, new))]);
        for _ in 0..30 {
            let clock = Stopwatch::start();
            let mut local = world.connect();
            local.write(b"x").await;
            local.expect(b"x").await;
            assert!(clock.elapsed() < Duration::from_secs(3), "{:?}", clock.elapsed());
            tokio::time::sleep(Duration::from_secs(1)).await;
            if world.status.borrow().link().is_some_and(|link| link.place() == target(new).as_str()) {
                break;
            }
        }
        shown.show([Ok(gone(old, new))]);
        world.until(|status| status.link().is_some_and(|link| link.place() == target(new).as_str())).await;
    }
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_gone_is_not_resumed_for_long() {
    let (mut world, shown) = world([Ok(sight(&[1], true))]);
    world.until_state(State::Active).await;
    shown.show([Ok(gone(1, 2))]);
    world.network.state(|state| state.refuse_resumes(99, super::support::unreachable));
    let clock = Stopwatch::start();
    world.network.order(Order::Cut);
    world.until(|status| status.link().is_some_and(|link| link.place() == target(2).as_str())).await;
    assert!(clock.elapsed() < Duration::from_secs(3), "{:?}", clock.elapsed());
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_task_without_a_successor_is_not_resumed_either() {
    let (mut world, shown) = world([Ok(sight(&[1], true))]);
    world.until_state(State::Active).await;
    let mut open = world.connect();
    open.write(b"x").await;
    open.expect(b"x").await;
    shown.show([Ok(Sight { gone: vec![target(1)], ..nothing(Class::Away) })]);
    let clock = Stopwatch::start();
    assert_eq!(open.reset().await, PipeEnd::Lost);
    assert!(clock.elapsed() < Duration::from_secs(12), "{:?}", clock.elapsed());
    world.until(|status| status.last_error.as_ref().is_some_and(|error| error.fault.class == Class::Replaced)).await;
    shown.show([Ok(sight(&[2], true))]);
    let clock = Stopwatch::start();
    world.until_state(State::Active).await;
    assert!(clock.elapsed() < Duration::from_secs(5), "{:?}", clock.elapsed());
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_is_resumed_at_once_whether_its_target_can_be_looked_for_or_not() {
    let (mut world, shown) = world([Ok(sight(&[1], true))]);
    world.until_state(State::Active).await;
    shown.hold();
    let clock = Stopwatch::start();
    world.network.order(Order::Cut);
    world.until(|status| status.resumes == 1).await;
    assert!(clock.elapsed() < Duration::from_secs(1), "{:?}", clock.elapsed());
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_group_that_replaces_its_bastion_is_back_within_seconds_of_it() {
    let (mut world, shown) = world([Ok(sight(&[1], false))]);
    world.until_state(State::Active).await;
    // Without one the next link would wait for it.
    let mut open = world.connect();
    open.write(b"x").await;
    open.expect(b"x").await;
    shown.show([Err(Class::Away)]);
    world.network.state(|state| state.set_absent(&[target(1)]));
    world.network.order(Order::CloseChannel(""));
    world.until(|status| status.state == State::Reconnecting).await;
    tokio::time::sleep(Duration::from_secs(240)).await;
    let clock = Stopwatch::start();
    shown.show([Ok(sight(&[2], false))]);
    world.until_state(State::Active).await;
    assert!(clock.elapsed() < Duration::from_secs(5), "{:?}", clock.elapsed());
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_next_candidate_is_tried_before_the_link_ends() {
    let shown = Arc::new(Shown::default());
    shown.show([Ok(sight(&[1, 2, 3], false))]);
    let mut world = World::finding(Arc::clone(&shown) as Arc<dyn Look>, |state| {
        state.set_absent(&[target(1), target(2)]);
    });
    let status = world.until_state(State::Active).await;
    assert_eq!(status.link().unwrap().place(), target(3).as_str());
    assert_eq!(world.calls(), [1, 2, 3].map(|number| Call::Start(target(number).to_string())));
    assert_eq!(shown.looks(), 1);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_has_just_come_up_is_waited_for() {
    let shown = Arc::new(Shown::default());
    let mut fresh = sight(&[1], true);
    fresh.usable[0].fresh = true;
    shown.show([Ok(fresh)]);
    let mut world = World::finding(Arc::clone(&shown) as Arc<dyn Look>, |state| state.set_absent(&[target(1)]));
    let status = world.until(|status| status.link().is_some_and(|link| link.progress.is_some())).await;
    assert_eq!(
        status.link().unwrap().progress.as_deref(),
        Some("waiting for the agent on `i-00000001`, which has just been started")
    );
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.network.state(|state| state.set_absent(&[]));
    let status = world.until_state(State::Active).await;
    assert_eq!((status.link().unwrap().progress.as_ref(), shown.looks()), (None, 1));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_has_been_up_for_longer_is_taken_meanwhile() {
    let shown = Arc::new(Shown::default());
    let mut fresh = sight(&[1, 2], true);
    fresh.usable[0].fresh = true;
    shown.show([Ok(fresh)]);
    let clock = Stopwatch::start();
    let mut world = World::finding(Arc::clone(&shown) as Arc<dyn Look>, |state| state.set_absent(&[target(1)]));
    let status = world.until_state(State::Active).await;
    assert_eq!(status.link().unwrap().place(), target(2).as_str());
    assert!(clock.elapsed() < Duration::from_secs(1), "{:?}", clock.elapsed());
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_dropped_in_silence_is_told_as_that_and_not_tried_in_a_loop() {
    let shown = Arc::new(Shown::default());
    shown.show([Ok(sight(&[1], true))]);
    shown.open(20);
    let mut world = World::finding(Arc::clone(&shown) as Arc<dyn Look>, |state| state.silence_agents());
    let status = world.until(|status| status.last_error.is_some()).await;
    let error = status.last_error.unwrap();
    assert!(
        error.to_string().starts_with("the agent on `i-00000001`, which has 0 other sessions of this program, has not"),
        "{error}"
    );
    assert_eq!(error.fault.hints[0], "20 sessions are open on it, 1 of them of this program");
    assert!(error.fault.hints[1].contains("aws ssm describe-sessions"), "{:?}", error.fault.hints);
    tokio::time::sleep(Duration::from_secs(300)).await;
    let starts = world.calls().iter().filter(|call| matches!(call, Call::Start(_))).count();
    assert!(starts <= 9, "{starts} starts in five minutes");
    assert!(shown.counts() <= 6, "{} counts in five minutes", shown.counts());
    world.stop().await;
}
