//! Tasks on Fargate that are started when they are needed: one for all clusters of a VPC, as far as one can be in all their groups.
//!
//! ```text
//! FargateLook ── list, describe ──► Place (what is known, what to do) ──► run, stop
//!                                     └─ failure: what ECS says, and what to do about it
//! ```
//!
//! Tasks are known by what they were started with: the manager's name and place, and tags. A task of an earlier run of the same
//! manager is taken over while it is of use, and stopped otherwise; so are those of other managers of this place that are not
//! running any more. Those of other places end themselves.
//!
//! Invariants:
//!
//! * A look is carried out to its end, whoever waits for it: a task that was started is known.
//! * A call that may have started a task is repeated with its token until it is known what came of it.
//! * Nothing is made without a notice, and nothing at all once the look is closed.

mod failure;
mod network;
mod place;
pub(in crate::route::ssm) mod survey;
pub(in crate::route::ssm) mod task;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::future::{BoxFuture, join_all};
use tokio::{sync::oneshot, task::JoinSet, time::timeout};
use tracing::debug;
use uuid::Uuid;

use self::{
    failure::About,
    network::Network,
    place::{Moment, Place, Wanted},
    task::{FAMILY, Run, Spec},
};
use super::{Look, Sight, ecs::id_of};
use crate::{
    aws::{
        Aws, AwsError, advice,
        ecs::{NewTask, NewTaskDefinition, Task, TaskDefinition, TaskFilter},
        error::Refusal,
    },
    bastion::{Bastion, Fargate, Target},
    clock::Clock,
    cluster::Vpc,
    fault::{Class, Fault},
    remote::Remote,
    route::ssm::{
        Owner,
        made::UsedAt,
        open_sessions::{self, OpenSessions},
    },
    util::{peer_text::sentence, written::in_words},
};

/// Time between two lists of tasks, by which those are found that nobody here has started.
const LIST: Duration = Duration::from_secs(60);

/// How long a look that is under way may hold up a stop, and how long the calls that stop tasks may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

/// What ECS is told of why a task is stopped.
const DOWN: &str = "autoheal-pa: nobody needs it any more";
const REPLACED: &str = "autoheal-pa: another task takes its place";
const ORPHAN: &str = "autoheal-pa: its manager is gone";

/// Looks for tasks on Fargate, and starts them. Cheap to clone; all clones look for the same.
#[derive(Debug, Clone)]
pub(in crate::route::ssm) struct FargateLook {
    maker: Arc<Maker>,
    /// Looks that are under way.
    looks: Arc<Mutex<JoinSet<()>>>,
}

#[derive(Debug)]
struct Maker {
    aws: Aws,
    fargate: Fargate,
    owner: Owner,
    clock: Clock,
    shares: Mutex<Vec<Share>>,
    closed: AtomicBool,
    /// What managers that are gone have left has been looked for.
    swept: AtomicBool,
}

/// A network whose clusters share tasks.
#[derive(Debug, Clone)]
struct Share {
    network: Network,
    /// Whoever has the lock looks.
    site: Arc<tokio::sync::Mutex<Site>>,
    /// Nothing is made there any more.
    closed: Arc<AtomicBool>,
}

/// What is under way in a network.
#[derive(Debug, Default)]
struct Site {
    place: Place,
    /// Tasks were last listed at this time.
    listed_at: Option<Duration>,
    /// The task definition to run.
    definition: Option<String>,
    /// A task that was asked for, as long as it is not known what came of that.
    intent: Option<NewTask>,
}

impl FargateLook {
    pub(in crate::route::ssm) fn new(aws: Aws, fargate: Fargate, owner: Owner) -> Self {
        let maker = Maker {
            aws,
            fargate,
            owner,
            clock: Clock::start(),
            shares: Mutex::default(),
            closed: AtomicBool::new(false),
            swept: AtomicBool::new(false),
        };
        Self { maker: Arc::new(maker), looks: Arc::default() }
    }

    /// Looks apart from whoever waits for it: what was begun is carried out.
    async fn find(&self, to: &Remote, in_use: &[Target], at_least: usize) -> Result<Sight, Fault> {
        let (maker, to, in_use) = (Arc::clone(&self.maker), to.clone(), in_use.to_vec());
        let (sender, outcome) = oneshot::channel();
        {
            let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
            while looks.try_join_next().is_some() {}
            looks.spawn(async move {
                // Nobody may be waiting any more.
                let _unsent = sender.send(maker.find(&to, &in_use, at_least).await);
            });
        }
        outcome.await.unwrap_or_else(|error| Err(Fault::new(Class::Bug, error)))
    }

    /// Returns where it is used.
    pub(in crate::route::ssm) fn place(&self) -> UsedAt {
        self.maker.place()
    }

    /// Stops the tasks that no cluster needs any more. Returns what was done, in words.
    pub(in crate::route::ssm) async fn close_unused(&self) -> Vec<String> {
        self.maker.close_unused().await
    }

    /// Stops the tasks that there are, and starts no others. Returns what was done, in words.
    pub(in crate::route::ssm) async fn close(&self) -> Vec<String> {
        self.maker.close().await
    }
}

impl Maker {
    async fn find(&self, to: &Remote, in_use: &[Target], at_least: usize) -> Result<Sight, Fault> {
        let Some(vpc) = to.vpc() else { return Err(failure::no_vpc(to)) };
        let Share { network, site, closed } = self.share(vpc);
        let mut site = site.lock().await;
        let role = task::role_arn(&self.fargate.options.task_role, self.aws.region(), to.account());
        let spec = Spec::new(&self.fargate.cluster, &self.fargate.options, network, &role);
        let about = About { fargate: &self.fargate, role: &role, region: self.aws.region(), vpc: &vpc.id };
        let wanted = Wanted { in_use, at_least };

        self.sweep(&mut site.place).await;
        let mut tasks = self.tasks(&mut site, &spec).await?;
        let mut verdict = site.place.judge(&tasks, wanted, &spec, about, self.now());
        for arn in &verdict.stop {
            self.stop(&mut site.place, arn, REPLACED).await;
        }
        let is_closed = || self.closed.load(Ordering::Relaxed) || closed.load(Ordering::Relaxed);
        if verdict.run && !is_closed() {
            match self.run(&mut site, &spec, to, about).await {
                Ok(task) => {
                    let id = id_of(&task.arn).to_owned();
                    let mono = self.now().mono;
                    let notice = format!(
                        "started the Fargate task {id} in {}: it ends itself when it has not been used for {}, and after {}",
                        vpc.id,
                        in_words(task::DISUSE),
                        in_words(spec.ttl)
                    );
                    site.place.add(task.arn.clone(), mono);
                    site.place.tell(notice, mono);
                    if is_closed() {
                        self.stop(&mut site.place, &task.arn, DOWN).await;
                    }
                    tasks.push(task);
                }
                Err(failure) => site.place.note_failure(failure, self.now().mono),
            }
            let wanted = Wanted { in_use, at_least };
            verdict = site.place.judge(&tasks, wanted, &spec, about, self.now());
        }
        Ok(verdict.sight)
    }

    /// Asks what has become of the tasks of a place, and every now and then for those that are not known.
    async fn tasks(&self, site: &mut Site, spec: &Spec) -> Result<Vec<Task>, Fault> {
        let cluster = &self.fargate.cluster;
        let mut ids: Vec<String> = site.place.arns().cloned().collect();
        let now = self.now().mono;
        let mut listed_at = site.listed_at;
        if site.listed_at.is_none_or(|at| now.saturating_sub(at) >= LIST) {
            let filter = TaskFilter::StartedBy(task::started_by(&self.owner));
            match self.aws.list_tasks(cluster, &filter).await {
                Ok(arns) => ids.extend(arns.into_iter().filter(|arn| !site.place.knows(arn))),
                Err(AwsError::Refused { refusal: Refusal::EcsCluster, .. }) => {}
                Err(error) => return Err(advice::fault(error)),
            }
            listed_at = Some(now);
        }
        if ids.is_empty() {
            site.listed_at = listed_at;
            return Ok(Vec::new());
        }
        let tasks = match self.aws.describe_tasks(cluster, &ids).await {
            Ok(found) => found.tasks,
            Err(AwsError::Refused { refusal: Refusal::EcsCluster, .. }) => Vec::new(),
            Err(error) => return Err(advice::fault(error)),
        };
        site.listed_at = listed_at;
        for task in &tasks {
            self.take_over(site, spec, task).await;
        }
        Ok(tasks)
    }

    /// Takes a task over that an earlier run of this manager has started in this place, or stops it.
    async fn take_over(&self, site: &mut Site, spec: &Spec, task: &Task) {
        // Another part of this run looks after its own.
        if site.place.knows(&task.arn) || !network::is_in(task, &spec.network.vpc) || self.is_of_run(task) {
            return;
        }
        let first =
            self.shares().iter().find(|share| share.network.is_served_by(task)).map(|share| share.network.clone());
        if first.as_ref().is_some_and(|first| *first != spec.network) {
            return;
        }
        let now = self.now();
        let id = id_of(&task.arn);
        if first.is_some()
            && spec.is_like(task)
            && place::is_worth_taking(task, spec, now.wall)
            && site.place.arns().next().is_none()
        {
            let left = in_words(place::left(task, spec, now.wall));
            self.owner.made.adopt(&task.arn);
            site.place.add(task.arn.clone(), now.mono);
            site.place.tell(format!("took over the Fargate task {id}, which goes on for {left}"), now.mono);
        } else if task.desired_status != "STOPPED" && self.stop(&mut site.place, &task.arn, ORPHAN).await {
            site.place.tell(format!("stopped the Fargate task {id}, which an earlier run has left"), now.mono);
        }
    }

    /// Whether this run has started a task or taken it over, in whatever part of it.
    fn is_of_run(&self, task: &Task) -> bool {
        task::is_of_run(task, &self.owner) || self.owner.made.has_adopted(&task.arn)
    }

    /// Returns whether that went well. If not, it is tried again at a later look, and the task ends itself in the end.
    async fn stop(&self, place: &mut Place, arn: &str, reason: &str) -> bool {
        let stopped = self.aws.stop_task(&self.fargate.cluster, arn, reason).await;
        match &stopped {
            Ok(()) => place.note_stopped(arn),
            Err(error) => debug!(arn, error = sentence(error), "cannot stop a task"),
        }
        stopped.is_ok()
    }

    /// Starts a task, and makes what that takes.
    async fn run(
        &self,
        site: &mut Site,
        spec: &Spec,
        to: &Remote,
        about: About<'_>,
    ) -> Result<Task, (Fault, failure::Remedy)> {
        if site.definition.is_none() {
            site.definition = Some(self.definition(&mut site.place, about).await.map_err(failure::of_call)?);
        }
        let definition = site.definition.as_deref().unwrap_or(FAMILY);
        let subnets = site.place.subnets(spec);
        let token = Uuid::new_v4().to_string();
        let now = self.now().wall;
        let owner = &self.owner;
        let new = site.intent.take().unwrap_or_else(|| spec.task(Run { definition, subnets, owner, to, token, now }));
        let mut outcome = self.aws.run_task(&new).await;
        let is_without_cluster = |outcome: &Result<Task, AwsError>| {
            matches!(outcome, Err(AwsError::Refused { refusal: Refusal::EcsCluster, .. }))
        };
        if is_without_cluster(&outcome) && about.makes_cluster() {
            let made = self.aws.create_ecs_cluster(&self.fargate.cluster).await.map_err(failure::of_call)?;
            site.place.tell(format!("made the ECS cluster `{}`, which costs nothing", made.name), self.now().mono);
            outcome = self.aws.run_task(&new).await;
        }
        outcome.map_err(|error| {
            let is_answered = matches!(error, AwsError::Refused { .. } | AwsError::AccessDenied { .. });
            if !is_answered {
                site.intent = Some(new);
            }
            // It may have been taken away meanwhile.
            site.definition = None;
            failure::not_run(error, about)
        })
    }

    /// Returns the task definition to run: the user's, else the newest of our family if it is what would be made now, else one
    /// that is made.
    async fn definition(&self, place: &mut Place, about: About<'_>) -> Result<String, AwsError> {
        if let Some(definition) = &self.fargate.options.task_definition {
            return Ok(definition.clone());
        }
        let new = task::definition(&self.fargate.options, about.role);
        let known = self.aws.task_definition(FAMILY).await?;
        if let Some(known) = known.filter(|known| Self::is_current(known, &new)) {
            return Ok(known.arn);
        }
        let made = self.aws.register_task_definition(&new).await?;
        let name = format!("{FAMILY}:{}", made.revision);
        place.tell(format!("registered the task definition `{name}`, which costs nothing"), self.now().mono);
        Ok(made.arn)
    }

    /// Whether a task definition is what would be registered now.
    fn is_current(known: &TaskDefinition, new: &NewTaskDefinition) -> bool {
        new.tags.iter().all(|(key, value)| known.tags.get(key).is_some_and(|known| **known == **value))
    }

    /// Stops, once, what other managers of this place have left that are not running any more.
    async fn sweep(&self, place: &mut Place) {
        let owner = &self.owner;
        if self.swept.load(Ordering::Relaxed) {
            return;
        }
        let cluster = &self.fargate.cluster;
        let filter = TaskFilter::Family(task::family(&self.fargate).to_owned());
        let found = async {
            let arns = match self.aws.list_tasks(cluster, &filter).await {
                Err(AwsError::Refused { refusal: Refusal::EcsCluster, .. }) => Vec::new(),
                listed => listed?,
            };
            if arns.is_empty() { Ok(Vec::new()) } else { Ok(self.aws.describe_tasks(cluster, &arns).await?.tasks) }
        };
        let found: Result<Vec<Task>, AwsError> = found.await;
        let Ok(tasks) = found.inspect_err(|error| debug!(error = sentence(error), "cannot look for orphans")) else {
            return;
        };
        self.swept.store(true, Ordering::Relaxed);
        let orphans = tasks.iter().filter(|task| {
            task::manager_of(task, &owner.place)
                .is_some_and(|manager| manager != owner.name && !(owner.is_running)(&manager))
        });
        for task in orphans {
            if self.stop(place, &task.arn, ORPHAN).await {
                let id = id_of(&task.arn);
                place.tell(
                    format!("stopped the Fargate task {id}, whose manager on this host is gone"),
                    self.now().mono,
                );
            }
        }
    }

    async fn close(&self) -> Vec<String> {
        self.closed.store(true, Ordering::Relaxed);
        let shares = self.shares().clone();
        self.end(&shares).await
    }

    /// Stops the tasks of places where they are not needed any more.
    async fn close_unused(&self) -> Vec<String> {
        let needed = self.needed();
        let is_used = |share: &Share| needed.iter().any(|needed| share.network.covers(needed));
        let unused: Vec<_> = self.shares().iter().filter(|share| !is_used(share)).cloned().collect();
        let ended = self.end(&unused).await;
        // They are known until they have ended, should somebody stop everything meanwhile.
        self.shares().retain(is_used);
        ended
    }

    async fn end(&self, shares: &[Share]) -> Vec<String> {
        let ended = join_all(shares.iter().map(|Share { network, site, closed }| async {
            closed.store(true, Ordering::Relaxed);
            let late = |_| {
                vec!["AWS took too long: a Fargate task may go on, which ends itself when it is not used".to_owned()]
            };
            // What is being started is known when its look is over.
            match timeout(CLOSE_LIMIT, site.lock()).await {
                Ok(mut site) => timeout(CLOSE_LIMIT, self.clear(network, &mut site)).await.unwrap_or_else(late),
                Err(elapsed) => late(elapsed),
            }
        }))
        .await;
        ended.into_iter().flatten().collect()
    }

    /// Returns what a task for a cluster is shared with.
    fn share(&self, vpc: &Vpc) -> Share {
        let mut network = Network::of(&self.fargate.options, vpc);
        let mut shares = self.shares();
        if let Some(share) = shares.iter().find(|share| share.network.covers(&network)) {
            return share.clone();
        }
        let mut needed = self.needed();
        needed.retain(|needed| !shares.iter().any(|share| share.network.covers(needed)));
        network.grow(&needed);
        let share = Share { network, site: Arc::default(), closed: Arc::default() };
        shares.push(share.clone());
        share
    }

    /// Returns the networks of all clusters that this is used for.
    fn needed(&self) -> Vec<Network> {
        self.owner.made.vpcs(&self.place()).iter().map(|vpc| Network::of(&self.fargate.options, vpc)).collect()
    }

    fn shares(&self) -> MutexGuard<'_, Vec<Share>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> UsedAt {
        UsedAt {
            region: self.aws.region().to_owned(),
            account: self.owner.caller.account.clone(),
            bastion: Bastion::Fargate(self.fargate.clone()),
        }
    }

    /// Stops the tasks of a place, those included that may have been started, which nobody has told.
    async fn clear(&self, network: &Network, site: &mut Site) -> Vec<String> {
        let known: Vec<String> = site.place.arns().cloned().collect();
        let is_uncertain = site.intent.take().is_some();
        let lost = async {
            let lost = if is_uncertain { self.lost(network, &known).await.unwrap_or_default() } else { Vec::new() };
            self.stop_all(&lost).await
        };
        let (mut stopped, lost) = tokio::join!(self.stop_all(&known), lost);
        stopped.extend(lost);
        stopped
    }

    /// Finds tasks of this run in a place that are not known there.
    async fn lost(&self, network: &Network, known: &[String]) -> Result<Vec<String>, AwsError> {
        let filter = TaskFilter::StartedBy(task::started_by(&self.owner));
        let listed = self.aws.list_tasks(&self.fargate.cluster, &filter).await?;
        if listed.is_empty() {
            return Ok(Vec::new());
        }
        let tasks = self.aws.describe_tasks(&self.fargate.cluster, &listed).await?.tasks;
        let is_lost =
            |task: &Task| task::is_of_run(task, &self.owner) && network.is_of(task) && !known.contains(&task.arn);
        Ok(tasks.into_iter().filter(is_lost).map(|task| task.arn).collect())
    }

    async fn stop_all(&self, arns: &[String]) -> Vec<String> {
        join_all(arns.iter().map(|arn| async move {
            let id = id_of(arn);
            match self.aws.stop_task(&self.fargate.cluster, arn, DOWN).await {
                Ok(()) => format!("stopped the Fargate task {id}"),
                Err(error) => {
                    let error = sentence(&error);
                    format!("cannot stop the Fargate task {id}, which ends itself when it is not used: {error}")
                }
            }
        }))
        .await
    }

    fn now(&self) -> Moment {
        let wall = SystemTime::UNIX_EPOCH + self.aws.offset().now();
        Moment { mono: self.clock.now().mono, wall }
    }
}

impl Look for FargateLook {
    fn finds_capped(&self) -> bool {
        true
    }

    fn look<'a>(&'a self, to: &'a Remote, in_use: &'a [Target]) -> BoxFuture<'a, Result<Sight, Fault>> {
        Box::pin(self.find(to, in_use, 0))
    }

    fn make<'a>(
        &'a self,
        to: &'a Remote,
        in_use: &'a [Target],
        at_least: usize,
    ) -> BoxFuture<'a, Result<Sight, Fault>> {
        Box::pin(self.find(to, in_use, at_least))
    }

    fn can_make(&self) -> bool {
        true
    }

    fn is_over(&self) -> bool {
        self.maker.closed.load(Ordering::Relaxed)
    }

    fn open_sessions<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Option<OpenSessions>, AwsError>> {
        Box::pin(async { open_sessions::on(&self.maker.aws, target).await.map(Some) })
    }

    fn place(&self, to: &Remote) -> String {
        to.vpc().map(|vpc| self.maker.share(vpc).network.key()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
