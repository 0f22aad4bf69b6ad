//! Containers as targets of Systems Manager.

use super::{
    super::world::{World, lock},
    task::{AgentStatus, Status},
};

/// Whether sessions with a target, `ecs:<cluster>_<task>_<runtime id>`, can be started: its container's agent runs and has
/// been connected.
pub(in crate::emulator) fn connected(world: &World, target: &str) -> bool {
    let Some(named) = target.strip_prefix("ecs:") else { return false };
    // Clusters' names may have underscores, ids do not.
    let mut parts = named.rsplitn(3, '_');
    let (Some(runtime_id), Some(id), Some(cluster)) = (parts.next(), parts.next(), parts.next()) else { return false };
    let (now, no_exec) = (world.clock.instant(), world.settings().tasks.no_exec);
    if world.settings().offline_bastions.contains(target) {
        return false;
    }
    let store = lock(&world.ecs.store);
    let Some(task) = store.tasks.get(id).filter(|task| task.making.cluster == cluster) else { return false };
    let since = match task.agent {
        AgentStatus::Running { since } => since + world.config.ecs.times.connection,
        AgentStatus::Pending | AgentStatus::Stopped => return false,
    };
    task.making.exec
        && !no_exec
        && (Status::Running..=Status::Deactivating).contains(&task.status)
        && task.containers.iter().any(|container| container.runtime_id == runtime_id)
        && (task.making.plan.is_running || since <= now)
}
