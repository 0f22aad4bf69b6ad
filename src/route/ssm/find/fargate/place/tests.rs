//! What is done about tasks in every state, by made-up time.

use super::{
    super::{failure::tests::stopped, network::Network},
    *,
};
use crate::{
    aws::ecs::{ExecAgent, TaskContainer},
    bastion::{Fargate, FargateOptions},
    cluster::Vpc,
    util::{peer_text::sentence, written::rfc3339},
};

const ROLE: &str = "arn:aws:iam::123456789012:role/autoheal-pa-bastion";
const START: Duration = Duration::from_secs(1_795_317_508);

/// A place, and what ECS says of its tasks.
struct World {
    place: Place,
    spec: Spec,
    fargate: Fargate,
    now: Duration,
    tasks: Vec<Task>,
    in_use: Vec<Target>,
}

impl World {
    fn new() -> Self {
        let fargate = Fargate::parse("fargate").unwrap();
        let vpc = Vpc {
            id: "vpc-1".to_owned(),
            subnets: ["subnet-a", "subnet-b", "subnet-c"].map(ToOwned::to_owned).into(),
            security_groups: vec!["sg-1".to_owned()],
        };
        let spec = {
            let options = FargateOptions::default();
            Spec::new(&fargate.cluster, &options, Network::of(&options, &vpc), ROLE)
        };
        Self { place: Place::default(), spec, fargate, now: Duration::ZERO, tasks: Vec::new(), in_use: Vec::new() }
    }

    fn moment(&self) -> Moment {
        Moment { mono: self.now, wall: SystemTime::UNIX_EPOCH + START + self.now }
    }

    fn judge(&mut self, at_least: usize) -> Verdict {
        let about = About { fargate: &self.fargate, role: ROLE, region: "us-east-1", vpc: "vpc-1" };
        let now = self.moment();
        let wanted = Wanted { in_use: &self.in_use, at_least };
        let verdict = self.place.judge(&self.tasks, wanted, &self.spec, about, now);
        for arn in &verdict.stop {
            self.place.note_stopped(arn);
        }
        verdict
    }

    /// Starts a task, as a verdict wants.
    fn start(&mut self, id: &str) {
        let mut task = stopped("", "", None);
        task.arn = format!("arn:aws:ecs:us-east-1:123456789012:task/autoheal-pa/{id}");
        (task.stop_code, task.last_status, task.desired_status) = (None, "PROVISIONING".into(), "RUNNING".into());
        task.created_at = Some(self.moment().wall);
        task.containers[0].last_status = "PENDING".into();
        self.place.add(task.arn.clone(), self.now);
        self.tasks.push(task);
    }

    fn task(&mut self, id: &str) -> &mut Task {
        self.tasks.iter_mut().find(|task| task.arn.ends_with(id)).unwrap()
    }

    fn runs(&mut self, id: &str, agent: &str) -> Target {
        let wall = self.moment().wall;
        let task = self.task(id);
        (task.last_status, task.started_at) = ("RUNNING".into(), Some(wall));
        task.containers[0] = TaskContainer {
            runtime_id: Some(format!("{id}-1234")),
            last_status: "RUNNING".into(),
            agent: Some(ExecAgent { status: agent.into(), reason: None }),
            ..task.containers[0].clone()
        };
        Target::of_container("autoheal-pa", id, &format!("{id}-1234")).unwrap()
    }

    fn stops(&mut self, id: &str, code: &str, reason: &str, exit: Option<i32>) {
        let started_at = self.task(id).started_at;
        let arn = self.task(id).arn.clone();
        *self.task(id) = Task { arn, started_at, ..stopped(code, reason, exit) };
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    /// Has a task that runs and is used.
    fn used(&mut self, id: &str) -> Target {
        assert!(self.judge(1).run);
        self.start(id);
        let target = self.runs(id, "RUNNING");
        self.in_use = vec![target.clone()];
        assert_eq!(usable(&self.judge(1)), std::slice::from_ref(&target));
        target
    }
}

fn usable(verdict: &Verdict) -> Vec<Target> {
    verdict.sight.usable.iter().map(|candidate| candidate.target.clone()).collect()
}

fn why(verdict: &Verdict) -> String {
    verdict.sight.nothing.as_ref().map(|fault| sentence(&**fault)).unwrap_or_default()
}

#[test]
fn a_task_is_started_when_it_is_wanted_and_waited_for() {
    let mut world = World::new();
    let seen = world.judge(0);
    assert!(!seen.run);
    assert_eq!(why(&seen), "no Fargate task of this manager runs in vpc-1");
    assert!(world.judge(1).run);
    world.start("1");
    for (state, told) in
        [("PROVISIONING", "is PROVISIONING"), ("PENDING", "is PENDING"), ("ACTIVATING", "is ACTIVATING")]
    {
        world.task("1").last_status = state.into();
        world.pass(5);
        let verdict = world.judge(1);
        assert!(!verdict.run && verdict.sight.usable.is_empty());
        let seconds = world.now.as_secs();
        assert_eq!(verdict.sight.awaited.unwrap(), format!("the Fargate task 1 {told}, {seconds} s"));
    }
    world.runs("1", "PENDING");
    assert_eq!(world.judge(1).sight.awaited.unwrap(), "the Fargate task 1 waits for its agent, 15 s");
    let target = world.runs("1", "RUNNING");
    let verdict = world.judge(1);
    assert_eq!((usable(&verdict), verdict.sight.awaited, verdict.run), (vec![target], None, false));
    assert!(verdict.sight.nothing.is_none() && verdict.sight.usable[0].fresh && verdict.sight.usable[0].capped);
}

#[test]
fn another_takes_the_place_of_one_that_is_about_to_end() {
    let mut world = World::new();
    let old = world.used("1");
    world.pass(8 * 3600 * 9 / 10 - 1);
    assert!(!world.judge(0).run, "it has a tenth left");
    world.pass(2);
    let verdict = world.judge(0);
    assert_eq!((verdict.run, usable(&verdict)), (true, vec![old.clone()]), "it is of use until another is there");
    world.start("2");
    let verdict = world.judge(0);
    assert!(!verdict.run && verdict.sight.leaving.is_empty());
    let new = world.runs("2", "RUNNING");
    let verdict = world.judge(1);
    assert_eq!((usable(&verdict), verdict.sight.leaving, verdict.stop), (vec![new.clone()], vec![old], vec![]));
    // Once nothing goes through it any more, it is stopped, once.
    world.in_use = vec![new];
    assert_eq!(world.judge(0).stop.len(), 1);
    assert_eq!(world.judge(0).stop.len(), 0);
}

#[test]
fn one_that_nobody_uses_is_not_followed_at_its_end() {
    let mut world = World::new();
    world.used("1");
    world.in_use.clear();
    world.pass(8 * 3600);
    assert!(!world.judge(0).run);
    world.stops("1", "EssentialContainerExited", "Essential container in task exited", Some(0));
    let verdict = world.judge(0);
    assert!(!verdict.run && verdict.sight.notices.is_empty());
    assert!(world.judge(1).run, "a task that has ended as it is to is no reason to wait");
}

#[test]
fn one_that_others_have_stopped_is_followed_three_times_an_hour() {
    let mut world = World::new();
    for number in 1..=4 {
        let id = number.to_string();
        let target = world.used(&id);
        world.task(&id).desired_status = "STOPPED".into();
        let verdict = world.judge(0);
        assert_eq!((&verdict.sight.leaving[..], verdict.run), (&[target.clone()][..], false));
        world.stops(&id, "UserInitiated", "stopped by ann", Some(143));
        let verdict = world.judge(0);
        assert_eq!(verdict.sight.gone, [target]);
        let notice = format!("the Fargate task {number} has ended: somebody stopped it (stopped by ann)");
        assert_eq!(verdict.sight.notices.last(), Some(&notice));
        world.in_use.clear();
        world.pass(300);
    }
    let verdict = world.judge(1);
    assert!(!verdict.run);
    assert_eq!(
        why(&verdict),
        "4 Fargate tasks were stopped within the hour, the last one as somebody stopped it (stopped by ann), so no other is \
         started for now"
    );
    world.pass(3600);
    assert!(world.judge(1).run);
}

#[test]
fn what_did_not_start_is_tried_in_other_subnets_then_seldom() {
    let mut world = World::new();
    let all = world.spec.network.subnets.clone();
    let mut tried = Vec::new();
    for number in 1..=4 {
        let verdict = world.judge(1);
        assert!(verdict.run, "{number}: {}", why(&verdict));
        tried.push(world.place.subnets(&world.spec));
        let id = number.to_string();
        world.start(&id);
        world.stops(&id, "TaskFailedToStart", "Unexpected EC2 error: InsufficientFreeAddressesInSubnet", None);
        let verdict = world.judge(1);
        assert!(!verdict.run && why(&verdict).contains("its subnet has no free address"), "{}", why(&verdict));
        assert_eq!(verdict.sight.awaited.is_some(), number < 4, "{:?}", verdict.sight.awaited);
        world.pass(if number < 4 { 10 } else { 59 });
    }
    let one = |at: usize| vec![all[at].clone()];
    assert_eq!(tried, [all.clone(), one(0), one(1), one(2)]);
    assert!(!world.judge(1).run);
    world.pass(1);
    assert!(world.judge(1).run);
    assert_eq!(world.place.subnets(&world.spec), all);
}

#[test]
fn what_only_a_human_can_change_is_tried_ever_more_seldom() {
    let mut world = World::new();
    for (number, pause) in [(1, 60), (2, 120), (3, 240), (4, 480), (5, 900), (6, 900)] {
        assert!(world.judge(1).run, "{number}");
        let id = number.to_string();
        world.start(&id);
        world.stops(&id, "TaskFailedToStart", "CannotPullContainerError: busybox:nope: not found", None);
        let verdict = world.judge(1);
        let class = verdict.sight.nothing.as_ref().unwrap().class;
        assert_eq!((class, verdict.sight.awaited, verdict.run), (Class::Refused, None, false));
        world.pass(pause - 1);
        assert!(!world.judge(1).run, "{number}");
        world.pass(1);
    }
}

#[test]
fn an_agent_that_does_not_come_up_costs_no_more_than_a_minute() {
    for (agent, seconds, words) in [
        ("PENDING", 61, "its agent for sessions has not come up within a minute"),
        ("STOPPED", 1, "it has no running agent for sessions"),
    ] {
        let mut world = World::new();
        assert!(world.judge(1).run);
        world.start("1");
        world.runs("1", agent);
        let mut stopped = world.judge(1).stop;
        world.pass(seconds);
        let verdict = world.judge(1);
        stopped.extend(verdict.stop.clone());
        assert_eq!((stopped.len(), verdict.run), (1, false));
        assert_eq!(why(&verdict), format!("the Fargate task 1 is of no use: {words}"));
    }
    // One that is used is not stopped for what is told of its agent.
    let mut world = World::new();
    world.used("1");
    world.runs("1", "STOPPED");
    assert_eq!(world.judge(0).stop.len(), 0);
}

#[test]
fn a_start_does_not_take_for_ever() {
    let mut world = World::new();
    assert!(world.judge(1).run);
    world.start("1");
    world.pass(179);
    assert!(world.judge(1).sight.awaited.is_some());
    world.pass(1);
    let verdict = world.judge(1);
    assert_eq!(why(&verdict), "the Fargate task 1 is of no use: it is PROVISIONING after 180 s");
    assert_eq!(verdict.stop.len(), 1);
}

#[test]
fn one_that_nobody_has_heard_of_yet_is_waited_for() {
    let mut world = World::new();
    assert!(world.judge(1).run);
    world.start("1");
    let task = world.tasks.remove(0);
    world.pass(59);
    assert_eq!(world.judge(1).sight.awaited.unwrap(), "the Fargate task 1 has been asked for, 59 s");
    world.pass(1);
    assert!(world.judge(1).run, "it has never been");
    drop(task);
}

#[test]
fn one_that_an_answer_leaves_out_is_not_forgotten() {
    let mut world = World::new();
    let target = world.used("1");
    world.pass(600);
    world.judge(0);
    let task = world.tasks.remove(0);
    world.pass(10);
    let verdict = world.judge(1);
    assert_eq!((verdict.run, verdict.sight.gone), (false, vec![]));
    world.tasks.push(task);
    assert_eq!(usable(&world.judge(1)), std::slice::from_ref(&target));
    world.tasks.clear();
    world.pass(60);
    assert_eq!(world.judge(0).sight.gone, [target]);
}

#[test]
fn one_that_ends_at_once_has_not_started() {
    let mut world = World::new();
    world.used("1");
    world.in_use.clear();
    world.pass(20);
    world.stops("1", "EssentialContainerExited", "Essential container in task exited", Some(0));
    let verdict = world.judge(1);
    assert!(!verdict.run, "another would end as soon");
    assert!(why(&verdict).contains("the Fargate task 1 did not start"), "{}", why(&verdict));
    assert_eq!(verdict.sight.awaited.unwrap(), "no Fargate task yet, trying again in 10 s");
}

#[test]
fn what_a_second_one_failed_of_is_not_forgotten_while_the_first_works() {
    let mut world = World::new();
    let first = world.used("1");
    assert!(world.judge(2).run);
    world.start("2");
    assert_eq!(world.judge(2).sight.awaited.unwrap(), "the Fargate task 2 is PROVISIONING, 0 s");
    world.stops("2", "TaskFailedToStart", "CannotPullContainerError: busybox:nope: not found", None);
    for _ in 0..3 {
        let verdict = world.judge(2);
        assert_eq!((verdict.run, usable(&verdict)), (false, vec![first.clone()]));
        let trouble = verdict.sight.trouble.map(|fault| sentence(&*fault)).unwrap();
        assert!(trouble.contains("does not exist for x86_64"), "{trouble}");
        world.pass(10);
    }
    world.pass(30);
    assert!(world.judge(2).run);
}

#[test]
fn what_is_being_stopped_takes_no_sessions() {
    let mut world = World::new();
    let used = world.used("1");
    assert!(world.judge(2).run);
    world.start("2");
    world.runs("2", "RUNNING");
    world.judge(2);
    world.pass(600);
    let verdict = world.judge(1);
    assert_eq!((verdict.stop.len(), usable(&verdict)), (1, vec![used.clone()]));
    // ECS may tell of it as running for a while.
    assert_eq!(usable(&world.judge(1)), [used]);
}

#[test]
fn a_task_of_no_use_that_cannot_be_stopped_is_noted_once() {
    let mut world = World::new();
    assert!(world.judge(1).run);
    world.start("1");
    world.runs("1", "STOPPED");
    let about = About { fargate: &world.fargate, role: ROLE, region: "us-east-1", vpc: "vpc-1" };
    for _ in 0..5 {
        let now = Moment { mono: world.now, wall: SystemTime::UNIX_EPOCH + START + world.now };
        let wanted = Wanted { in_use: &[], at_least: 1 };
        // Nobody stops it.
        assert_eq!(world.place.judge(&world.tasks, wanted, &world.spec, about, now).stop.len(), 1);
        world.now += Duration::from_secs(1);
    }
    assert_eq!(world.place.failures, 1);
}

#[test]
fn what_is_idle_beside_another_is_stopped() {
    let mut world = World::new();
    let used = world.used("1");
    // A tunnel that has nothing asks for another, since the first is full.
    assert!(world.judge(2).run);
    world.start("2");
    let second = world.runs("2", "RUNNING");
    world.in_use = vec![used.clone(), second];
    assert_eq!(usable(&world.judge(2)).len(), 2);
    world.pass(600);
    assert_eq!(world.judge(1).stop.len(), 0);
    world.in_use = vec![used.clone()];
    assert_eq!(world.judge(1).stop.len(), 1);
    assert_eq!(world.in_use, [used]);
}

#[test]
fn what_is_left_of_a_life_is_as_its_tag_says_at_most() {
    let world = World::new();
    let wall = world.moment().wall;
    let mut task = stopped("", "", None);
    (task.desired_status, task.created_at) = ("RUNNING".into(), Some(wall));
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    assert_eq!(left(&task, &world.spec, wall + hours(1)), hours(7));
    task.tags.insert(EXPIRES_TAG.to_owned(), rfc3339(wall + hours(2)).as_str().into());
    assert_eq!(left(&task, &world.spec, wall + hours(1)), hours(1));
    assert_eq!(left(&task, &world.spec, wall + hours(3)), Duration::ZERO);
    assert!(is_worth_taking(&task, &world.spec, wall + hours(1)));
    assert!(!is_worth_taking(&task, &world.spec, wall + hours(1) + Duration::from_secs(1801)));
    task.tags.insert(EXPIRES_TAG.to_owned(), "soon".into());
    assert_eq!(left(&task, &world.spec, wall + hours(1)), hours(7));
}
