//! What a template of CloudFormation makes here: clusters, task definitions and services.

use std::sync::Arc;

use serde_json::Value;

use super::{
    super::world::{World, lock},
    Definition,
    config::ServiceConfig,
    services,
};

/// Makes a resource, from properties in which all references are resolved. What it refers to is there.
pub(in crate::emulator) fn create(world: &Arc<World>, kind: &str, properties: &Value) {
    let text = |name: &str| properties[name].as_str().unwrap_or_default();
    let region = &world.config.region;
    match kind {
        "AWS::ECS::Cluster" => {
            lock(&world.ecs.store).clusters.insert((region.clone(), text("ClusterName").to_owned()));
        }
        "AWS::ECS::TaskDefinition" => {
            let definition = Definition::of_template(properties, region, &world.config.account);
            lock(&world.ecs.store).definitions.push(Arc::new(definition));
        }
        "AWS::ECS::Service" => {
            let definition = super::definitions::find(&lock(&world.ecs.store).definitions, text("TaskDefinition"));
            let Some(definition) = definition else { return };
            let count = properties["DesiredCount"].as_u64().and_then(|count| count.try_into().ok());
            let config = ServiceConfig {
                desired_count: count.unwrap_or_default(),
                exec: properties["EnableExecuteCommand"] == true,
                ..ServiceConfig::new(text("Cluster"), text("ServiceName"))
            };
            services::add(world, config, definition);
        }
        _ => {}
    }
}

/// Deletes a resource.
pub(in crate::emulator) fn delete(world: &World, kind: &str, properties: &Value) {
    let text = |name: &str| properties[name].as_str().unwrap_or_default();
    match kind {
        "AWS::ECS::Cluster" => {
            lock(&world.ecs.store).clusters.retain(|(_, name)| name != text("ClusterName"));
        }
        "AWS::ECS::TaskDefinition" => {
            lock(&world.ecs.store).definitions.retain(|known| known.family != text("Family"));
        }
        "AWS::ECS::Service" => services::delete(world, text("Cluster"), text("ServiceName")),
        _ => {}
    }
}
