//! A plan as a template of CloudFormation, in JSON.

use serde_json::{Map, Value, json};

use super::{
    Endpoint, EndpointKind, Entry, Group, GroupRef, Item, Piece, Plan, Rule, Scaling, Service, Template, containers,
    survey::{endpoint_name, trust_of_users},
};
use crate::iam::POLICY_NAME;

/// Returns the template.
pub(super) fn write(plan: &Plan) -> String {
    let resources: Map<String, Value> = plan.items.iter().map(|item| (item.id.clone(), resource(plan, item))).collect();
    let template = json!({
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": format!("What autoheal-pa needs to reach the EKS clusters of {}", plan.vpc),
        "Resources": resources,
        "Outputs": {
            "Role": { "Description": "Who uses it", "Value": plan.principal.arn() },
            "Up": { "Description": "How it is used", "Value": plan.up() },
        },
    });
    let mut text = serde_json::to_string_pretty(&template).expect("strings are always JSON");
    text.push('\n');
    text
}

fn resource(plan: &Plan, item: &Item) -> Value {
    let named = |name: &str| json!([{ "Key": "Name", "Value": name }]);
    match &item.piece {
        Piece::ServiceRole(role) => json!({
            "Type": "AWS::IAM::Role",
            "Properties": {
                "RoleName": role.name,
                "AssumeRolePolicyDocument": role.trust_policy(),
                "Policies": [{ "PolicyName": POLICY_NAME, "PolicyDocument": role.document }],
            },
        }),
        Piece::InstanceProfile { name, role } => json!({
            "Type": "AWS::IAM::InstanceProfile",
            "Properties": { "InstanceProfileName": name, "Roles": [name_of_role(plan, role)] },
        }),
        Piece::Group(Group { name, about, .. }) => json!({
            "Type": "AWS::EC2::SecurityGroup",
            "Properties": { "GroupName": name, "GroupDescription": about, "VpcId": plan.vpc, "Tags": named(name) },
        }),
        Piece::Rule(Rule { into, from, port, about, .. }) => json!({
            "Type": "AWS::EC2::SecurityGroupIngress",
            "Properties": {
                "GroupId": group(into),
                "IpProtocol": "tcp",
                "FromPort": port,
                "ToPort": port,
                "SourceSecurityGroupId": group(from),
                "Description": about,
            },
        }),
        Piece::Template(template) => json!({
            "Type": "AWS::EC2::LaunchTemplate",
            "Properties": { "LaunchTemplateName": template.name, "LaunchTemplateData": launch_data(plan, template) },
        }),
        Piece::Scaling(Scaling { name, subnets, tags, .. }) => {
            let tags: Vec<_> = tags
                .iter()
                .map(|(key, value)| json!({ "Key": key, "Value": value, "PropagateAtLaunch": true }))
                .collect();
            let template = "BastionTemplate";
            json!({
                "Type": "AWS::AutoScaling::AutoScalingGroup",
                "Properties": {
                    "AutoScalingGroupName": name,
                    "MinSize": "1",
                    "MaxSize": "1",
                    "DesiredCapacity": "1",
                    "VPCZoneIdentifier": subnets,
                    "LaunchTemplate": {
                        "LaunchTemplateId": { "Ref": template },
                        "Version": { "Fn::GetAtt": [template, "LatestVersionNumber"] },
                    },
                    "Tags": tags,
                },
            })
        }
        Piece::Endpoint(Endpoint { service, service_name, kind }) => {
            let tags = named(&endpoint_name(&plan.name, service));
            let properties = match kind {
                EndpointKind::Interface { subnets } => json!({
                    "VpcEndpointType": "Interface",
                    "ServiceName": service_name,
                    "VpcId": plan.vpc,
                    "PrivateDnsEnabled": true,
                    "SubnetIds": subnets,
                    "SecurityGroupIds": [{ "Ref": super::GroupOf::Endpoints.id() }],
                    "Tags": tags,
                }),
                EndpointKind::Gateway { tables } => json!({
                    "VpcEndpointType": "Gateway",
                    "ServiceName": service_name,
                    "VpcId": plan.vpc,
                    "RouteTableIds": tables,
                    "Tags": tags,
                }),
            };
            json!({ "Type": "AWS::EC2::VPCEndpoint", "Properties": properties })
        }
        Piece::ConnectEndpoint { subnet } => json!({
            "Type": "AWS::EC2::InstanceConnectEndpoint",
            "Properties": {
                "SubnetId": subnet,
                "SecurityGroupIds": [{ "Ref": super::GroupOf::ConnectEndpoint.id() }],
                "PreserveClientIp": false,
                "Tags": named(&plan.name),
            },
        }),
        Piece::EcsCluster { name } => json!({ "Type": "AWS::ECS::Cluster", "Properties": { "ClusterName": name } }),
        Piece::TaskDefinition(definition) => {
            let role = |arn: &Option<String>| arn.as_deref().map(|arn| arn_of_role(plan, arn));
            let mut properties = json!({
                "Family": definition.family,
                "RequiresCompatibilities": ["FARGATE"],
                "NetworkMode": "awsvpc",
                "Cpu": definition.cpu.to_string(),
                "Memory": definition.memory.to_string(),
                "RuntimePlatform": {
                    "CpuArchitecture": definition.architecture.as_str(),
                    "OperatingSystemFamily": "LINUX",
                },
                "TaskRoleArn": role(&definition.task_role),
                "ContainerDefinitions": in_pascal_case(containers(definition)),
            });
            if let Some(role) = role(&definition.execution_role) {
                properties["ExecutionRoleArn"] = role;
            }
            json!({ "Type": "AWS::ECS::TaskDefinition", "Properties": properties })
        }
        Piece::Service(service) => {
            let Service { name, .. } = service;
            let mut network = in_pascal_case(service.network(Value::Null));
            network["AwsvpcConfiguration"]["SecurityGroups"] = json!([group(&GroupRef::Made(super::GroupOf::Bastion))]);
            let ways: Vec<&str> = plan.ways().map(|item| item.id.as_str()).collect();
            json!({
                "Type": "AWS::ECS::Service",
                "DependsOn": ways,
                "Properties": {
                    "ServiceName": name,
                    "Cluster": { "Ref": "Cluster" },
                    "TaskDefinition": { "Ref": "TaskDefinition" },
                    "DesiredCount": 1,
                    "LaunchType": "FARGATE",
                    "EnableExecuteCommand": true,
                    "NetworkConfiguration": network,
                    "DeploymentConfiguration": { "DeploymentCircuitBreaker": { "Enable": true, "Rollback": true } },
                },
            })
        }
        Piece::UserRole { name } => json!({
            "Type": "AWS::IAM::Role",
            "Properties": { "RoleName": name, "AssumeRolePolicyDocument": trust_of_users(plan) },
        }),
        Piece::Policy { role, document } => json!({
            "Type": "AWS::IAM::Policy",
            "Properties": {
                "PolicyName": POLICY_NAME,
                "PolicyDocument": document,
                "Roles": [name_of_role(plan, role)],
            },
        }),
        Piece::Entry(Entry { cluster, principal, policy, namespaces, .. }) => {
            let scope = if namespaces.is_empty() {
                json!({ "Type": "cluster" })
            } else {
                json!({ "Type": "namespace", "Namespaces": namespaces })
            };
            json!({
                "Type": "AWS::EKS::AccessEntry",
                "Properties": {
                    "ClusterName": cluster,
                    "PrincipalArn": arn_of_role(plan, principal),
                    "AccessPolicies": [{ "PolicyArn": policy, "AccessScope": scope }],
                },
            })
        }
    }
}

/// Names what the API of ECS has as templates have it.
fn in_pascal_case(value: Value) -> Value {
    match value {
        Value::Array(values) => values.into_iter().map(in_pascal_case).collect(),
        Value::Object(fields) => {
            let named = fields.into_iter().map(|(name, value)| {
                let (first, rest) = name.split_at(1.min(name.len()));
                (format!("{}{rest}", first.to_uppercase()), in_pascal_case(value))
            });
            Value::Object(named.collect())
        }
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => other,
    }
}

fn launch_data(plan: &Plan, template: &Template) -> Value {
    let mut data = Template::data(json!({ "Ref": super::GroupOf::Bastion.id() }));
    if template.profile.is_some() {
        data["IamInstanceProfile"] = json!({ "Arn": { "Fn::GetAtt": ["BastionProfile", "Arn"] } });
    }
    debug_assert!(template.profile.is_none() || plan.item("BastionProfile").is_some());
    data
}

fn group(group: &GroupRef) -> Value {
    match group {
        // Of a group in a VPC this is its id.
        GroupRef::Made(of) => json!({ "Fn::GetAtt": [of.id(), "GroupId"] }),
        GroupRef::There(id) => json!(id),
    }
}

/// Returns the name of a role; of one that is made in a way that tells what has to be made first.
fn name_of_role(plan: &Plan, role: &str) -> Value {
    plan.id_of_role(role).map_or_else(|| json!(role), |id| json!({ "Ref": id }))
}

/// Returns the ARN of a role, likewise.
fn arn_of_role(plan: &Plan, arn: &str) -> Value {
    let name = crate::util::arn::Arn::parse(arn).map_or("", |arn| arn.name());
    plan.id_of_role(name).map_or_else(|| json!(arn), |id| json!({ "Fn::GetAtt": [id, "Arn"] }))
}
