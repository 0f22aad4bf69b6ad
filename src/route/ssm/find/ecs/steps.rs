//! What is told of a look at ECS, step by step.

use super::{EcsLook, Lack, id_of};
use crate::{
    aws::ecs::{Task, TaskContainer},
    bastion::{EcsSearch, EcsWhat},
    route::{
        ssm::proto::Version,
        step::{StepName, Told},
    },
};

/// Tasks of the service, or the one task, run.
const TASKS: StepName = StepName { id: "ecs-tasks", title: "tasks run" };

/// They were started with what takes sessions.
const EXEC: StepName = StepName { id: "ecs-exec", title: "ECS Exec" };

/// It is clear which container is meant.
const CONTAINER: StepName = StepName { id: "ecs-container", title: "container" };

/// How many steps come before the one that a lack is about.
fn before(lack: &Lack) -> usize {
    match lack {
        Lack::Stopped(_) | Lack::Starting(_) => 1,
        Lack::NoExec => 2,
        Lack::Several(_) | Lack::NoContainer(_) => 3,
        Lack::AgentPending | Lack::AgentStopped(_) => 4,
    }
}

impl EcsLook {
    pub(super) fn steps(&self) -> Vec<(StepName, String)> {
        let EcsSearch { cluster, what, container, .. } = &self.search;
        let known = match what {
            EcsWhat::Service(name) => {
                format!("`ecs:ListTasks` of the service `{name}` in the ECS cluster `{cluster}`")
            }
            EcsWhat::Task(id) => format!("`ecs:DescribeTasks` of the task `{id}` in the ECS cluster `{cluster}`"),
        };
        let container = match container {
            Some(name) => format!("to find the container `{name}`"),
            None => "to choose a container, none being named".to_owned(),
        };
        vec![
            (StepName::KNOWN, known),
            (TASKS, "the status of its tasks, by `ecs:DescribeTasks`".to_owned()),
            (EXEC, "whether they were started with ECS Exec".to_owned()),
            (CONTAINER, container),
            (StepName::ONLINE, "the status of the agent for sessions in it, as ECS tells".to_owned()),
            (
                StepName::AGENT_VERSION,
                format!("the version of that agent; remote hosts need {}", Version::FIRST_AGENT_WITH_REMOTE_HOST),
            ),
        ]
    }

    /// Tells of all steps up to the one that has failed: that which the worst lack is about, if no task takes sessions.
    pub(super) fn told(&self, tasks: &[&Task], usable: &[(&Task, &TaskContainer)], worst: Option<&Lack>) -> Vec<Told> {
        let EcsSearch { cluster, what, container, .. } = &self.search;
        let known = match what {
            EcsWhat::Service(name) => format!("the service `{name}` in the ECS cluster `{cluster}`"),
            EcsWhat::Task(id) => format!("the task `{id}` in the ECS cluster `{cluster}`"),
        };
        let going: Vec<&&Task> = tasks.iter().filter(|task| !is_ending(task)).collect();
        let running = going.iter().filter(|task| task.last_status == "RUNNING").count();
        let (starting, ending) = (going.len() - running, tasks.len() - going.len());
        let with_exec = going.iter().filter(|task| task.exec_enabled).count();
        let counts = [(running, "running"), (starting, "starting"), (ending, "stopping or stopped")];
        let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, state)| format!("{count} {state}"));
        let container = match (container, usable.first()) {
            (Some(name), _) => format!("`{name}`, as asked for"),
            (None, Some((task, container))) => match task.containers.len() {
                1 => format!("`{}`, the only one", container.name),
                all => format!("`{}`, of {all} the only one whose agent runs", container.name),
            },
            (None, None) => "none has to be named".to_owned(),
        };
        let told = [
            known,
            counts.collect::<Vec<_>>().join(", "),
            format!("on for {}", of(with_exec, going.len())),
            container,
            format!("runs in {}", of(usable.len(), running)),
        ];
        let told = told.into_iter().map(Told::Passed).chain([Told::Unknown]);
        let made = match (usable.is_empty(), worst, what) {
            (false, _, _) => usize::MAX,
            (true, Some(lack), _) => before(lack),
            // Nothing is known of any task.
            (true, None, EcsWhat::Service(_)) => 1,
            (true, None, EcsWhat::Task(_)) => 0,
        };
        told.take(made).collect()
    }
}

/// Says why the first is chosen.
pub(super) fn why(usable: &[(&Task, &TaskContainer)]) -> String {
    match usable {
        [(task, _)] => format!("in task {}, the only one that takes sessions", id_of(&task.arn)),
        _ => format!("in the newest of {} tasks; sessions spread over all", usable.len()),
    }
}

fn is_ending(task: &Task) -> bool {
    task.desired_status == "STOPPED" || task.last_status == "STOPPED"
}

fn of(some: usize, all: usize) -> String {
    match all {
        1 if some == 1 => "its task".to_owned(),
        _ if some == all => format!("all {all} tasks"),
        _ => format!("{some} of {all} tasks"),
    }
}
