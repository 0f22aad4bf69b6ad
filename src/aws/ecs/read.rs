//! Takes what ECS answers apart. What has a value that cannot be, where values are worked with, is not taken at all.

use std::time::SystemTime;

use aws_sdk_ecs::types::{self, ManagedAgentName};
use aws_smithy_types::DateTime;

use super::{
    is_arn,
    types::{EcsCluster, ExecAgent, Tags, Task, TaskContainer, TaskDefinition, TaskNetwork},
};
use crate::{aws::values::is_plain, util::peer_text::PeerText};

pub(super) fn task(task: types::Task) -> Option<Task> {
    let network = network(task.attachments.as_deref().unwrap_or_default())?;
    Some(Task {
        arn: task.task_arn.filter(|arn| is_arn(arn))?,
        cluster_arn: task.cluster_arn.filter(|arn| is_arn(arn))?,
        definition_arn: task.task_definition_arn.filter(|arn| is_arn(arn))?,
        last_status: text(task.last_status).unwrap_or_default(),
        desired_status: text(task.desired_status).unwrap_or_default(),
        created_at: time(task.created_at),
        started_at: time(task.started_at),
        exec_enabled: task.enable_execute_command,
        stop_code: task.stop_code.map(|code| code.as_str().into()),
        stopped_reason: text(task.stopped_reason),
        containers: task.containers.unwrap_or_default().into_iter().map(container).collect::<Option<_>>()?,
        tags: tags(task.tags),
        started_by: text(task.started_by),
        group: text(task.group),
        launch_type: task.launch_type.map(|kind| kind.as_str().into()),
        platform_version: text(task.platform_version),
        network,
    })
}

fn container(container: types::Container) -> Option<TaskContainer> {
    let agents = container.managed_agents.unwrap_or_default();
    let agent = agents.into_iter().find(|agent| agent.name == Some(ManagedAgentName::ExecuteCommandAgent));
    Some(TaskContainer {
        name: container.name.filter(|name| is_plain(name))?,
        runtime_id: plain(container.runtime_id)?,
        last_status: text(container.last_status).unwrap_or_default(),
        exit_code: container.exit_code,
        reason: text(container.reason),
        agent: agent
            .map(|agent| ExecAgent { status: text(agent.last_status).unwrap_or_default(), reason: text(agent.reason) }),
    })
}

fn network(attachments: &[types::Attachment]) -> Option<Option<TaskNetwork>> {
    let is_interface =
        |attachment: &&types::Attachment| attachment.r#type.as_deref() == Some("ElasticNetworkInterface");
    let Some(interface) = attachments.iter().find(is_interface) else { return Some(None) };
    let detail = |name: &str| {
        let details = interface.details.as_deref().unwrap_or_default();
        plain(details.iter().find(|pair| pair.name.as_deref() == Some(name)).and_then(|pair| pair.value.clone()))
    };
    Some(Some(TaskNetwork {
        subnet_id: detail("subnetId")?,
        interface_id: detail("networkInterfaceId")?,
        private_ip: detail("privateIPv4Address")?,
    }))
}

pub(super) fn cluster(cluster: types::Cluster) -> Option<EcsCluster> {
    Some(EcsCluster {
        arn: cluster.cluster_arn.filter(|arn| is_arn(arn))?,
        name: cluster.cluster_name.filter(|name| is_plain(name))?,
        status: text(cluster.status).unwrap_or_default(),
    })
}

pub(super) fn definition(definition: types::TaskDefinition, of_it: Option<Vec<types::Tag>>) -> Option<TaskDefinition> {
    Some(TaskDefinition {
        arn: definition.task_definition_arn.filter(|arn| is_arn(arn))?,
        revision: definition.revision,
        tags: tags(of_it),
        task_role: plain(definition.task_role_arn)?,
        execution_role: plain(definition.execution_role_arn)?,
        image: definition.container_definitions.and_then(|containers| text(containers.into_iter().next()?.image)),
        cpu: text(definition.cpu),
        memory: text(definition.memory),
        network_mode: definition.network_mode.map(|mode| mode.as_str().into()),
    })
}

/// Takes a value that goes into commands; `None` if it is not one of those.
fn plain(text: Option<String>) -> Option<Option<String>> {
    match text.filter(|text| !text.is_empty()) {
        Some(text) => is_plain(&text).then_some(Some(text)),
        None => Some(None),
    }
}

fn text(text: Option<String>) -> Option<PeerText> {
    text.filter(|text| !text.is_empty()).map(PeerText::from)
}

/// Takes tags. One whose key is not what it looks like is as good as none.
fn tags(tags: Option<Vec<types::Tag>>) -> Tags {
    let tags = tags.unwrap_or_default().into_iter().filter_map(|tag| Some((PeerText::from(tag.key?), tag.value)));
    let tags = tags.filter(|(key, _)| !key.is_altered());
    tags.map(|(key, value)| (key.into(), PeerText::from(value.unwrap_or_default()))).collect()
}

fn time(time: Option<DateTime>) -> Option<SystemTime> {
    time?.try_into().ok()
}
