//! What happens to a task from its making to its end, on the emulator's own clock.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    super::{
        script::Command,
        session::{Control, Session, SessionState},
        world::{World, lock},
    },
    config::{AgentOutcome, StartFailure, TaskEnd},
    task::{AgentStatus, Plan, Status, StopCause, Task},
};

/// Parts of the time that a task runs without sessions after which it looks for some.
const LOOKS: u32 = 20;

/// Exit status of a container that was told to end.
const TERMINATED: i32 = 143;

/// Exit status of a container that ran out of memory.
const KILLED: i32 = 137;

/// Runs a task's life to its end.
pub(super) async fn live(world: Arc<World>, id: String) {
    let Some((plan, stop)) = world.ecs.with(&id, |task| (task.making.plan.clone(), task.stop.clone())) else { return };
    let life = Life { world, id, plan, stop };
    if life.start().await {
        life.run().await;
    }
    life.end().await;
}

struct Life {
    world: Arc<World>,
    id: String,
    plan: Plan,
    stop: CancellationToken,
}

impl Life {
    /// Waits; returns whether the task is to go on.
    async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.world.stop.cancelled() => false,
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(time) => true,
        }
    }

    fn change(&self, change: impl FnOnce(&mut Task)) {
        self.world.ecs.with(&self.id, change);
        self.world.ecs.changed();
        self.world.journal.touch();
    }

    fn set(&self, status: Status) {
        self.change(|task| task.set(status));
    }

    fn ask_to_stop(&self, cause: StopCause) {
        let wall = self.world.clock.wall();
        self.change(|task| task.ask_to_stop(cause, wall));
    }

    /// Whether the task gets to RUNNING.
    async fn start(&self) -> bool {
        let times = self.world.config.ecs.times;
        if self.plan.is_running {
            return true;
        }
        let stages = [
            (Status::Provisioning, times.provisioning + self.plan.delay),
            (Status::Pending, times.pending),
            (Status::Activating, times.activating),
        ];
        for (status, time) in stages {
            self.set(status);
            if !self.pause(time).await {
                return false;
            }
            if let Some((failure, reason)) = &self.plan.failure
                && stage_of(*failure) == status
            {
                let cause = StopCause::new("TaskFailedToStart", reason);
                self.ask_to_stop(StopCause { before_start: true, ..cause });
                return false;
            }
        }
        let wall = self.world.clock.wall();
        self.change(|task| {
            task.set(Status::Running);
            task.started = Some(wall);
        });
        true
    }

    /// Waits until something stops the task.
    async fn run(&self) {
        let started = self.time();
        if !self.plan.is_running {
            if !self.pause(self.world.config.ecs.times.agent).await {
                return;
            }
            let since = self.world.clock.instant();
            self.change(|task| {
                task.agent = match self.plan.agent {
                    AgentOutcome::Running => AgentStatus::Running { since },
                    AgentOutcome::Pending => AgentStatus::Pending,
                    AgentOutcome::Stopped => AgentStatus::Stopped,
                }
            });
        }
        let (life, memory) = (self.plan.life, self.plan.out_of_memory);
        let cause = tokio::select! {
            biased;
            () = self.world.stop.cancelled() => return,
            () = self.stop.cancelled() => return,
            () = self.until(memory.map(|time| started + time)) => StopCause::exited(KILLED),
            () = self.until(life.map(|time| started + time)) => StopCause::exited(0),
            () = self.disuse() => StopCause::exited(0),
        };
        self.ask_to_stop(cause);
    }

    /// The time in the task's own life: since the emulator's start, and as much more as it has been made older.
    fn time(&self) -> Duration {
        let age = self.world.ecs.with(&self.id, |task| task.age).unwrap_or_default();
        self.world.ecs.uptime(&self.world.clock) + age
    }

    /// Waits for a time in the task's life.
    async fn until(&self, time: Option<Duration>) {
        let Some(time) = time else { return std::future::pending().await };
        let mut changes = self.world.ecs.version.subscribe();
        loop {
            let rest = time.saturating_sub(self.time());
            if rest.is_zero() {
                return;
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(rest) => {}
                // It may be older now.
                _ = changes.changed() => {}
            }
        }
    }

    /// Waits until the task has been without sessions for as long as it goes on without.
    async fn disuse(&self) {
        let Some(time) = self.plan.disuse else { return std::future::pending().await };
        let mut used = self.time();
        while self.time() < used + time {
            let look = self.time() + (time / LOOKS).max(Duration::from_millis(1));
            self.until(Some(look.min(used + time))).await;
            if self.sessions().iter().any(|session| session.is_running()) {
                used = self.time();
            }
        }
    }

    /// The sessions with the task that are not over.
    fn sessions(&self) -> Vec<Arc<Session>> {
        let targets: Vec<String> = self.world.ecs.with(&self.id, |task| task.targets().collect()).unwrap_or_default();
        let sessions = lock(&self.world.sessions);
        let live = sessions
            .values()
            .filter(|session| session.state() != SessionState::Ended && targets.contains(&session.start.target));
        live.cloned().collect()
    }

    async fn end(&self) {
        let times = self.world.config.ecs.times;
        let cause = self.world.ecs.with(&self.id, |task| task.cause.clone()).flatten();
        let Some(cause) = cause else { return };
        let was_started = self.world.ecs.with(&self.id, |task| task.started.is_some()).unwrap_or_default();
        if cause.exit.is_none() && was_started {
            for (status, time) in [(Status::Deactivating, times.deactivating), (Status::Stopping, times.stopping)] {
                self.set(status);
                if status == Status::Stopping {
                    self.end_sessions();
                }
                if !self.wait(time).await {
                    return;
                }
            }
        } else {
            self.end_sessions();
        }
        self.change(|task| {
            task.agent = AgentStatus::Stopped;
            task.exit = cause.exit.or(was_started.then_some(TERMINATED));
            task.set(Status::Deprovisioning);
        });
        if !self.wait(times.deprovisioning).await {
            return;
        }
        let (wall, now) = (self.world.clock.wall(), self.world.clock.instant());
        self.change(|task| {
            task.set(Status::Stopped);
            task.stopped = Some(wall);
            task.forgotten_at = Some(now + times.kept);
        });
    }

    fn end_sessions(&self) {
        self.change(|task| task.agent = AgentStatus::Stopped);
        for session in self.sessions() {
            session.control(Control::Command(match self.world.config.ecs.task_end {
                TaskEnd::Silent => Command::KillAgent,
                TaskEnd::Closed => Command::CloseChannel { output: Some(String::new()) },
            }));
        }
    }

    /// Waits, whoever wants the task to stop; returns whether the emulator goes on.
    async fn wait(&self, time: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.world.stop.cancelled() => false,
            () = tokio::time::sleep(time) => true,
        }
    }
}

/// The part of a task's life at whose end it fails.
fn stage_of(failure: StartFailure) -> Status {
    match failure {
        StartFailure::InterfaceTimeout | StartFailure::SubnetFull => Status::Provisioning,
        StartFailure::ImageTimeout
        | StartFailure::ImageMissing
        | StartFailure::ImageLimited
        | StartFailure::RegistryAuth => Status::Pending,
        StartFailure::NoShell => Status::Activating,
    }
}
