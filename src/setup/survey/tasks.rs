//! Bastions on Fargate: what `up` runs tasks from when it needs one, and a service that keeps one running.

use std::collections::BTreeSet;

use super::{
    Endpoint, EndpointKind, GroupOf, GroupRef, IMAGE_ROLE, Items, Options, Piece, RouteTable, Site, SurveyError,
    VpcEndpoint, endpoint_name, id_of_service, names, service_name,
};
use crate::{
    aws::ecs::NewTaskDefinition,
    bastion::{Bastion, EcsSearch, EcsWhat, Fargate, FargateOptions, Search},
    iam,
    route::list,
    setup::Service,
};

/// What the agent in a task calls, and what its image is taken from.
const TASK_SERVICES: [&str; 3] = ["ssmmessages", "ecr.api", "ecr.dkr"];
/// Layers of images are there; a gateway endpoint for it costs nothing.
const LAYERS: &str = "s3";

/// The name of the service, in an ECS cluster that is for one VPC.
const SERVICE: &str = "bastion";

/// What the container of a service runs: it does nothing for as long as it can, as the service would start one that ends again.
/// Not every `sleep` takes `infinity`.
pub(super) const STAYS: [&str; 2] = ["sleep", "2147483647"];

impl Site<'_> {
    /// Returns what `up` is to be given for tasks that it starts.
    pub(super) fn task_bastion(&self) -> Result<(Bastion, Options), SurveyError> {
        self.has_image()?;
        let own = self.clusters.iter().flat_map(|found| &found.vpc.subnets).collect::<BTreeSet<_>>();
        let chosen = self.subnet_ids();
        // Those of the clusters go without saying.
        let subnets = if chosen.len() == own.len() { Vec::new() } else { chosen };
        let (family, task_role) = (self.ecs_cluster(), self.task_role());
        let mut options =
            vec![("--fargate-task-definition", family.clone()), ("--fargate-task-role", task_role.clone())];
        options.extend(subnets.iter().map(|subnet| ("--fargate-subnet", subnet.clone())));
        let fargate =
            FargateOptions { task_definition: Some(family.clone()), task_role, subnets, ..FargateOptions::default() };
        Ok((Bastion::Fargate(Fargate { cluster: family, options: fargate }), options))
    }

    /// Returns what `up` is to be given for the task of the service.
    pub(super) fn service_bastion(&self) -> Result<Bastion, SurveyError> {
        self.has_image()?;
        let what = EcsWhat::Service(SERVICE.to_owned());
        Ok(Bastion::Found(Search::Ecs(EcsSearch { cluster: self.ecs_cluster(), what, container: None, of: None })))
    }

    /// What tasks are run from. They are in the security groups of the clusters, so that those let them in.
    pub(super) fn task(&self, items: &mut Items) {
        items.add("Cluster", Piece::EcsCluster { name: self.ecs_cluster() });
        let groups: Vec<_> = self.groups().into_iter().map(|(_, group)| GroupRef::There(group)).collect();
        let definition = self.definition(items, self.ecs_cluster(), &groups);
        items.add("TaskDefinition", Piece::TaskDefinition(definition));
    }

    /// A service that keeps a task running. Its security group is its own: a task can be in five, and clusters may be more.
    pub(super) fn service(&self, items: &mut Items) {
        // With the first one of an account ECS makes the role that its services need, which takes some seconds.
        items.add("Cluster", Piece::EcsCluster { name: self.ecs_cluster() });
        self.group(items, GroupOf::Bastion, "Bastion of autoheal-pa: nothing comes in unasked");
        self.cluster_rules(items);
        // A family of its own: what `--bastion fargate` runs ends by itself.
        let family = self.name("bastion", names::ECS);
        let mut definition = self.definition(items, family.clone(), &[GroupRef::Made(GroupOf::Bastion)]);
        definition.container.command = STAYS.map(ToOwned::to_owned).into();
        items.add("TaskDefinition", Piece::TaskDefinition(definition));
        let (cluster, name, subnets) = (self.ecs_cluster(), SERVICE.to_owned(), self.subnet_ids());
        items.add("BastionService", Piece::Service(Service { cluster, name, family, subnets }));
    }

    /// Returns a task definition of a family; the roles of its tasks are added, and ways from these groups to services.
    fn definition(&self, items: &mut Items, family: String, from: &[GroupRef]) -> NewTaskDefinition {
        let mut options = FargateOptions { task_role: self.task_role(), ..FargateOptions::default() };
        if let Some(image) = &self.order.fargate_image {
            options.image.clone_from(image);
        }
        let fargate = Fargate { cluster: self.ecs_cluster(), options };
        items.add("TaskRole", Piece::ServiceRole(list::task_role(&fargate)));
        let mut definition = list::task_definition(&fargate, &self.region, &self.account);
        definition.family = family;
        definition.tags.clear();
        if self.order.fargate_image.is_some() {
            let role = self.name("image", names::ROLE);
            definition.execution_role =
                Some(format!("arn:{}:iam::{}:role/{role}", iam::partition(&self.region), self.account));
            items.add(IMAGE_ROLE, Piece::ServiceRole(list::image_role(&role)));
        }
        if self.order.private {
            self.endpoints(items, &TASK_SERVICES, from);
            self.layers(items);
        }
        definition
    }

    /// The usual image comes from the internet.
    fn has_image(&self) -> Result<(), SurveyError> {
        let needs_one = self.order.private && self.order.fargate_image.is_none();
        if needs_one { Err(SurveyError::NoImage) } else { Ok(()) }
    }

    fn ecs_cluster(&self) -> String {
        self.name("", names::ECS)
    }

    fn task_role(&self) -> String {
        self.name("task", names::ROLE)
    }

    fn subnet_ids(&self) -> Vec<String> {
        self.subnets.iter().map(|subnet| subnet.id.clone()).collect()
    }

    /// The way to the layers of images.
    fn layers(&self, items: &mut Items) {
        let is_of =
            |table: &&RouteTable| table.is_main || self.subnets.iter().any(|subnet| table.subnets.contains(&subnet.id));
        let tables = self.tables.iter().filter(is_of).map(|table| table.id.clone()).collect();
        let service_name = service_name(LAYERS, &self.region);
        let own_name = endpoint_name(&self.name("", names::STACK), LAYERS);
        let is_own = |endpoint: &VpcEndpoint| endpoint.name.as_ref().is_some_and(|name| **name == *own_name);
        if !self.endpoints.iter().any(|endpoint| endpoint.service == service_name && !is_own(endpoint)) {
            let kind = EndpointKind::Gateway { tables };
            items.add(&id_of_service(LAYERS), Piece::Endpoint(Endpoint { service: LAYERS, service_name, kind }));
        }
    }
}
