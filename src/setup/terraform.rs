//! A plan as a configuration of Terraform, for the provider `aws`.

use super::{
    Endpoint, EndpointKind, Entry, Group, GroupOf, GroupRef, Item, Piece, Plan, Rule, Scaling, Service, Template,
    containers,
    hcl::{Block, Value},
    survey::{endpoint_name, trust_of_users},
};
use crate::{iam::POLICY_NAME, util::arn::Arn};

/// The first provider that has all of these resources and arguments.
const PROVIDER: &str = ">= 5.33.0";

/// Returns the configuration.
pub(super) fn write(plan: &Plan) -> String {
    let aws = Value::Map(vec![
        ("source".to_owned(), Value::from("hashicorp/aws")),
        ("version".to_owned(), Value::from(PROVIDER)),
    ]);
    let mut blocks = vec![
        Block::new("terraform", &[]).block(Block::new("required_providers", &[]).set("aws", aws)),
        Block::new("provider", &["aws"])
            .set("region", &plan.region)
            // Nothing is made in another account by mistake.
            .set("allowed_account_ids", &[plan.account.clone()][..]),
    ];
    for item in &plan.items {
        blocks.extend(resources(plan, item));
    }
    let output = |name: &str, value: &str| Block::new("output", &[name]).set("value", value);
    blocks.push(output("role", plan.principal.arn()));
    blocks.push(output("up", &plan.up()));
    let texts = blocks.iter().map(|block| {
        let mut text = String::new();
        block.write(0, &mut text);
        text
    });
    texts.collect::<Vec<_>>().join("\n")
}

fn resources(plan: &Plan, item: &Item) -> Vec<Block> {
    let id = snake(&item.id);
    let resource = |kind: &str| Block::new("resource", &[kind, &id]);
    let tags = |name: &str| Value::Map(vec![("Name".to_owned(), Value::from(name))]);
    match &item.piece {
        Piece::ServiceRole(role) => vec![
            resource("aws_iam_role")
                .set("name", &role.name)
                .gap()
                .set("assume_role_policy", Value::encoded(&role.trust_policy())),
            resource("aws_iam_role_policy")
                .set("name", POLICY_NAME)
                .set("role", Value::raw(format!("aws_iam_role.{id}.name")))
                .gap()
                .set("policy", Value::encoded(&role.document.to_value())),
        ],
        Piece::InstanceProfile { name, role } => {
            vec![resource("aws_iam_instance_profile").set("name", name).set("role", name_of_role(plan, role))]
        }
        Piece::Group(Group { name, about, .. }) => {
            // Without it the provider takes away what EC2 lets out.
            let everywhere = Block::new("egress", &[])
                .set("from_port", 0)
                .set("to_port", 0)
                .set("protocol", "-1")
                .set("cidr_blocks", &["0.0.0.0/0".to_owned()][..]);
            let group = resource("aws_security_group")
                .set("name", name)
                .set("description", *about)
                .set("vpc_id", &plan.vpc)
                .set("tags", tags(name));
            vec![group.block(everywhere)]
        }
        Piece::Rule(Rule { into, from, port, about, .. }) => vec![
            resource("aws_vpc_security_group_ingress_rule")
                .set("security_group_id", group(into))
                .set("referenced_security_group_id", group(from))
                .set("ip_protocol", "tcp")
                .set("from_port", *port)
                .set("to_port", *port)
                .set("description", about),
        ],
        Piece::Template(template) => vec![launch_template(resource("aws_launch_template"), template)],
        Piece::Scaling(Scaling { name, subnets, tags, .. }) => {
            let template = "aws_launch_template.bastion_template";
            let launch = Block::new("launch_template", &[])
                .set("id", Value::raw(format!("{template}.id")))
                .set("version", Value::raw(format!("{template}.latest_version")));
            let scaling = resource("aws_autoscaling_group")
                .set("name", name)
                .set("min_size", 1)
                .set("max_size", 1)
                .set("desired_capacity", 1)
                .set("vpc_zone_identifier", subnets.as_slice())
                .block(launch);
            let tag = |key: &str, value: &String| {
                Block::new("tag", &[]).set("key", key).set("value", value).set("propagate_at_launch", true)
            };
            vec![tags.iter().fold(scaling, |scaling, (key, value)| scaling.block(tag(key, value)))]
        }
        Piece::Endpoint(Endpoint { service, service_name, kind }) => {
            let name = endpoint_name(&plan.name, service);
            let endpoint = resource("aws_vpc_endpoint").set("vpc_id", &plan.vpc).set("service_name", service_name);
            vec![match kind {
                EndpointKind::Interface { subnets } => endpoint
                    .set("vpc_endpoint_type", "Interface")
                    .set("private_dns_enabled", true)
                    .set("subnet_ids", subnets.as_slice())
                    .set("security_group_ids", vec![group(&GroupRef::Made(GroupOf::Endpoints))])
                    .set("tags", tags(&name)),
                EndpointKind::Gateway { tables } => endpoint
                    .set("vpc_endpoint_type", "Gateway")
                    .set("route_table_ids", tables.as_slice())
                    .set("tags", tags(&name)),
            }]
        }
        Piece::ConnectEndpoint { subnet } => vec![
            resource("aws_ec2_instance_connect_endpoint")
                .set("subnet_id", subnet)
                .set("security_group_ids", vec![group(&GroupRef::Made(GroupOf::ConnectEndpoint))])
                .set("preserve_client_ip", false)
                .set("tags", tags(&plan.name)),
        ],
        Piece::EcsCluster { name } => vec![resource("aws_ecs_cluster").set("name", name)],
        Piece::TaskDefinition(definition) => {
            let platform = Block::new("runtime_platform", &[])
                .set("cpu_architecture", definition.architecture.as_str())
                .set("operating_system_family", "LINUX");
            let role = |arn: &Option<String>| arn.as_deref().map(|arn| arn_of_role(plan, arn));
            vec![
                resource("aws_ecs_task_definition")
                    .set("family", &definition.family)
                    .set("requires_compatibilities", &["FARGATE".to_owned()][..])
                    .set("network_mode", "awsvpc")
                    .set("cpu", definition.cpu)
                    .set("memory", definition.memory)
                    .set_some("task_role_arn", role(&definition.task_role))
                    .set_some("execution_role_arn", role(&definition.execution_role))
                    .block(platform)
                    .gap()
                    .set("container_definitions", Value::encoded(&containers(definition))),
            ]
        }
        Piece::Service(made) => vec![service(plan, resource("aws_ecs_service"), made)],
        Piece::UserRole { name } => vec![
            resource("aws_iam_role")
                .set("name", name)
                .gap()
                .set("assume_role_policy", Value::encoded(&trust_of_users(plan))),
        ],
        Piece::Policy { role, document } => vec![
            resource("aws_iam_role_policy")
                .set("name", POLICY_NAME)
                .set("role", name_of_role(plan, role))
                .gap()
                .set("policy", Value::encoded(&document.to_value())),
        ],
        Piece::Entry(Entry { cluster, principal, policy, namespaces, .. }) => {
            let scope = Block::new("access_scope", &[]);
            let scope = if namespaces.is_empty() {
                scope.set("type", "cluster")
            } else {
                scope.set("type", "namespace").set("namespaces", namespaces.as_slice())
            };
            let of_entry = |name: &str| Value::raw(format!("aws_eks_access_entry.{id}.{name}"));
            vec![
                resource("aws_eks_access_entry")
                    .set("cluster_name", cluster)
                    .set("principal_arn", arn_of_role(plan, principal)),
                resource("aws_eks_access_policy_association")
                    .set("cluster_name", of_entry("cluster_name"))
                    .set("principal_arn", of_entry("principal_arn"))
                    .set("policy_arn", policy)
                    .block(scope),
            ]
        }
    }
}

fn service(plan: &Plan, resource: Block, service: &Service) -> Block {
    let Service { name, subnets, .. } = service;
    let network = Block::new("network_configuration", &[])
        .set("subnets", subnets.as_slice())
        .set("security_groups", vec![group(&GroupRef::Made(GroupOf::Bastion))])
        .set("assign_public_ip", false);
    let breaker = Block::new("deployment_circuit_breaker", &[]).set("enable", true).set("rollback", true);
    // An agent that may not connect asks again after ever longer pauses, so its role has its policy first.
    let roles = plan.items.iter().filter(|item| matches!(item.piece, Piece::ServiceRole(_)));
    let roles = roles.map(|item| ("aws_iam_role_policy", item));
    let ways = plan.ways().map(|item| {
        let is_endpoint = matches!(item.piece, Piece::Endpoint(_));
        (if is_endpoint { "aws_vpc_endpoint" } else { "aws_vpc_security_group_ingress_rule" }, item)
    });
    let before = roles.chain(ways).map(|(kind, item)| Value::raw(format!("{kind}.{}", snake(&item.id))));
    resource
        .set("name", name)
        .set("cluster", Value::raw("aws_ecs_cluster.cluster.arn"))
        .set("task_definition", Value::raw("aws_ecs_task_definition.task_definition.arn"))
        .set("desired_count", 1)
        .set("launch_type", "FARGATE")
        .set("enable_execute_command", true)
        .block(network)
        .block(breaker)
        .gap()
        .set("depends_on", before.collect::<Vec<_>>())
}

fn launch_template(resource: Block, template: &Template) -> Block {
    let mut block = resource
        .set("name", &template.name)
        .set("image_id", Template::IMAGE)
        .set("instance_type", Template::INSTANCE_TYPE);
    if template.profile.is_some() {
        let profile = Block::new("iam_instance_profile", &[])
            .set("arn", Value::raw("aws_iam_instance_profile.bastion_profile.arn"));
        block = block.block(profile);
    }
    let metadata = Block::new("metadata_options", &[])
        .set("http_tokens", "required")
        .set("http_endpoint", "enabled")
        .set("http_put_response_hop_limit", 1);
    let volume = Block::new("ebs", &[])
        .set("encrypted", true)
        .set("volume_type", "gp3")
        .set("volume_size", u16::from(Template::VOLUME))
        .set("delete_on_termination", true);
    let device = Block::new("block_device_mappings", &[]).set("device_name", Template::DEVICE).block(volume);
    let interface = Block::new("network_interfaces", &[])
        .set("device_index", 0)
        .set("associate_public_ip_address", false)
        .set("delete_on_termination", true)
        .set("security_groups", vec![group(&GroupRef::Made(GroupOf::Bastion))]);
    block.block(metadata).block(device).block(interface)
}

fn group(group: &GroupRef) -> Value {
    match group {
        GroupRef::Made(of) => Value::raw(format!("aws_security_group.{}.id", snake(of.id()))),
        GroupRef::There(id) => Value::from(id),
    }
}

fn name_of_role(plan: &Plan, role: &str) -> Value {
    let made = plan.id_of_role(role).map(|id| Value::raw(format!("aws_iam_role.{}.name", snake(id))));
    made.unwrap_or_else(|| Value::from(role))
}

fn arn_of_role(plan: &Plan, arn: &str) -> Value {
    let made = plan.id_of_role(Arn::parse(arn).map_or("", |arn| arn.name()));
    made.map_or_else(|| Value::from(arn), |id| Value::raw(format!("aws_iam_role.{}.arn", snake(id))))
}

/// Writes a name as Terraform's usually are: `BastionGroup` as `bastion_group`.
fn snake(id: &str) -> String {
    let mut text = String::new();
    for c in id.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}
