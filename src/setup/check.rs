//! Whether each piece of a plan is there.
//!
//! Invariants:
//!
//! * A piece is there if it does what it is for, whoever has made it, as far as that can be read.
//! * What may not be looked at is said to be unknown, and is not missing.

use std::{collections::BTreeSet, sync::OnceLock};

use serde_json::Value;

use super::{
    Endpoint, EndpointKind, Entry, Group, GroupOf, GroupRef, Item, Piece, Plan, Rule, Scaling, Service,
    survey::trust_of_users,
};
use crate::{
    aws::{
        Aws, AwsError,
        ec2::Filter,
        inventory::{SecurityGroup, VpcEndpoint},
    },
    iam::{Document, ServiceRole, not_allowed},
    route::list,
    util::quote::{Word, command},
};

/// How a piece is found.
#[derive(Debug)]
pub enum State {
    /// As it has to be, in words.
    There(String),
    /// Not at all.
    Missing,
    /// Otherwise than it has to be, in words.
    Differs { how: String, mend: Mend },
    /// It may not be looked at, or cannot be.
    Unknown(AwsError),
}

/// What makes a piece as it has to be.
#[derive(Debug)]
pub enum Mend {
    /// The last of the commands that make it.
    Last,
    /// This command, or what it shows.
    By(String),
}

/// What was looked at, and how.
#[derive(Debug)]
pub struct Looked<'a> {
    pub item: &'a Item,
    /// The calls, in words.
    pub tried: String,
    pub state: State,
}

/// Looks at each piece, in their order.
pub async fn look<'a>(aws: &Aws, plan: &'a Plan, mut report: impl FnMut(Looked<'a>)) {
    let look = Look { aws, plan, groups: OnceLock::new(), endpoints: OnceLock::new() };
    for item in &plan.items {
        let (tried, state) = match Box::pin(look.at(&item.piece)).await {
            (tried, Ok(state)) => (tried, state),
            (tried, Err(error)) => (tried, State::Unknown(error)),
        };
        report(Looked { item, tried, state });
    }
}

struct Look<'a> {
    aws: &'a Aws,
    plan: &'a Plan,
    /// The groups of the plan that there are.
    groups: OnceLock<Vec<SecurityGroup>>,
    endpoints: OnceLock<Vec<VpcEndpoint>>,
}

fn there(what: impl Into<String>) -> State {
    State::There(what.into())
}

/// What the last of the commands that make a piece mends.
fn differs(how: impl Into<String>) -> State {
    State::Differs { how: how.into(), mend: Mend::Last }
}

/// What another command mends.
fn is_another(how: impl Into<String>, mend: String) -> State {
    State::Differs { how: how.into(), mend: Mend::By(mend) }
}

impl Look<'_> {
    async fn at(&self, piece: &Piece) -> (String, Result<State, AwsError>) {
        let tried = |calls: &str, of: &str| format!("{calls} of `{of}`");
        match piece {
            Piece::ServiceRole(role) => {
                (tried("`iam:GetRole` and the policies", &role.name), self.service_role(role).await)
            }
            Piece::InstanceProfile { name, role } => {
                (tried("`iam:GetInstanceProfile`", name), self.profile(name, role).await)
            }
            Piece::Group(group) => (tried("`ec2:DescribeSecurityGroups`", &group.name), self.group(group).await),
            Piece::Rule(rule) => {
                let into = self.shown(&rule.into);
                (tried("`ec2:DescribeSecurityGroups`", &into), self.rule(rule).await)
            }
            Piece::Template(template) => {
                (tried("`ec2:DescribeLaunchTemplates`", &template.name), self.template(&template.name).await)
            }
            Piece::Scaling(scaling) => {
                let calls = "`autoscaling:DescribeAutoScalingGroups` and `ec2:DescribeInstances`";
                (tried(calls, &scaling.name), self.scaling(scaling).await)
            }
            Piece::Endpoint(endpoint) => {
                (tried("`ec2:DescribeVpcEndpoints`", &self.plan.vpc), self.endpoint(endpoint).await)
            }
            Piece::ConnectEndpoint { .. } => {
                (tried("`ec2:DescribeInstanceConnectEndpoints`", &self.plan.vpc), self.connect_endpoint().await)
            }
            Piece::EcsCluster { name } => {
                let state = self.aws.has_ecs_cluster(name).await;
                let state = state.map(|is_there| if is_there { there(name.as_str()) } else { State::Missing });
                (tried("`ecs:DescribeClusters`", name), state)
            }
            Piece::TaskDefinition(definition) => {
                let found = self.aws.task_definition(&definition.family).await;
                let state = found.map(|found| match found {
                    None => State::Missing,
                    Some(found) if found.task_role != definition.task_role => differs("it has another role"),
                    Some(found) => there(format!("revision {}", found.revision)),
                });
                (tried("`ecs:DescribeTaskDefinition`", &definition.family), state)
            }
            Piece::Service(service) => {
                (tried("`ecs:DescribeServices`", &service.name), self.ecs_service(service).await)
            }
            Piece::UserRole { name } => (tried("`iam:GetRole`", name), self.user_role(name).await),
            Piece::Policy { role, document } => (tried("the policies", role), self.policy(role, document, false).await),
            Piece::Entry(entry) => (tried("`eks:DescribeAccessEntry`", &entry.principal), self.entry(entry).await),
        }
    }

    async fn service_role(&self, role: &ServiceRole) -> Result<State, AwsError> {
        let Some(found) = self.aws.role(&role.name).await? else { return Ok(State::Missing) };
        let trusted = &found.trust["Statement"];
        if !trust_names(trusted, "Service", &role.service) {
            let how = format!("`{}` may not assume it", role.service);
            let mend = command!(
                "aws iam update-assume-role-policy --role-name {} --policy-document {}",
                role.name,
                role.trust_policy().to_string()
            );
            return Ok(is_another(how, mend));
        }
        self.policy(&role.name, &role.document, true).await
    }

    async fn user_role(&self, name: &str) -> Result<State, AwsError> {
        let Some(found) = self.aws.role(name).await? else { return Ok(State::Missing) };
        let wanted = trust_of_users(self.plan);
        let root = wanted["Statement"][0]["Principal"]["AWS"].as_str().unwrap_or_default();
        Ok(if trust_names(&found.trust["Statement"], "AWS", root) {
            there(found.arn)
        } else {
            // Somebody has narrowed it, or it is somebody's own.
            there(format!("{}, which others may assume than everybody in the account", found.arn))
        })
    }

    async fn policy(&self, role: &str, document: &Document, is_known: bool) -> Result<State, AwsError> {
        if !is_known && self.aws.role(role).await?.is_none() {
            return Ok(State::Missing);
        }
        let held = self.aws.policies_of_role(role).await?;
        let held: Vec<_> = held.into_iter().map(|policy| policy.document).collect();
        let missing = not_allowed(document, &held);
        if missing.is_empty() {
            return Ok(there(format!("`{role}` is allowed all of it")));
        }
        let told: Vec<_> = missing.iter().map(|(name, actions)| format!("{} (`{name}`)", actions.join(", "))).collect();
        Ok(differs(format!("`{role}` is not allowed {}", told.join("; "))))
    }

    async fn profile(&self, name: &str, role: &str) -> Result<State, AwsError> {
        Ok(match self.aws.instance_profile(name).await? {
            None => State::Missing,
            Some(roles) if roles.iter().any(|known| known == role) => there(format!("with the role `{role}`")),
            Some(roles) if roles.is_empty() => differs("it has no role"),
            Some(roles) => {
                let other = roles.first().map(String::as_str).unwrap_or_default();
                let mend = command!(
                    "aws iam remove-role-from-instance-profile --instance-profile-name {} --role-name {}; aws iam \
                     add-role-to-instance-profile --instance-profile-name {} --role-name {}",
                    name,
                    other,
                    name,
                    role
                );
                is_another(format!("it has the role `{}`", roles.join("`, `")), mend)
            }
        })
    }

    /// Returns the groups of the plan that there are.
    async fn groups(&self) -> Result<&[SecurityGroup], AwsError> {
        if self.groups.get().is_none() {
            let names = [GroupOf::Bastion, GroupOf::Endpoints, GroupOf::ConnectEndpoint];
            let names: Vec<String> = names.iter().map(|of| self.plan.group_name(*of).to_owned()).collect();
            let names: Vec<String> = names.into_iter().filter(|name| !name.is_empty()).collect();
            let found =
                if names.is_empty() { Vec::new() } else { self.aws.groups_by_name(&self.plan.vpc, &names).await? };
            let _first = self.groups.set(found);
        }
        Ok(self.groups.get().map(Vec::as_slice).unwrap_or_default())
    }

    async fn endpoints(&self) -> Result<&[VpcEndpoint], AwsError> {
        if self.endpoints.get().is_none() {
            let found = self.aws.vpc_endpoints(&self.plan.vpc).await?;
            let _first = self.endpoints.set(found);
        }
        Ok(self.endpoints.get().map(Vec::as_slice).unwrap_or_default())
    }

    /// Returns the id of a group, if there is one.
    async fn id_of(&self, group: &GroupRef) -> Result<Option<String>, AwsError> {
        Ok(match group {
            GroupRef::There(id) => Some(id.clone()),
            GroupRef::Made(of) => {
                let name = self.plan.group_name(*of);
                self.groups().await?.iter().find(|group| *group.name == *name).map(|group| group.id.clone())
            }
        })
    }

    fn shown(&self, group: &GroupRef) -> String {
        match group {
            GroupRef::There(id) => id.clone(),
            GroupRef::Made(of) => self.plan.group_name(*of).to_owned(),
        }
    }

    async fn group(&self, group: &Group) -> Result<State, AwsError> {
        Ok(match self.id_of(&GroupRef::Made(group.of)).await? {
            Some(id) => there(id),
            None => State::Missing,
        })
    }

    async fn rule(&self, rule: &Rule) -> Result<State, AwsError> {
        let (Some(into), Some(from)) = (self.id_of(&rule.into).await?, self.id_of(&rule.from).await?) else {
            return Ok(State::Missing);
        };
        let found = self.aws.groups_by_id(std::slice::from_ref(&into)).await?;
        let admits = found.iter().any(|group| group.admits(&from, rule.port));
        Ok(if admits { there(format!("{into} admits {from} on port {}", rule.port)) } else { State::Missing })
    }

    async fn template(&self, name: &str) -> Result<State, AwsError> {
        Ok(if self.aws.has_launch_template(name).await? { there(name) } else { State::Missing })
    }

    async fn scaling(&self, scaling: &Scaling) -> Result<State, AwsError> {
        let Some(group) = self.aws.scaling_group(&scaling.name).await? else { return Ok(State::Missing) };
        if group.wanted == 0 {
            let mend = command!(
                "aws autoscaling update-auto-scaling-group --region {} --auto-scaling-group-name {} --min-size 1 --max-size 1 \
                 --desired-capacity 1",
                self.plan.region,
                scaling.name
            );
            return Ok(is_another("it is to have no instance", mend));
        }
        if group.in_service.is_empty() {
            let mend = command!(
                "aws autoscaling describe-scaling-activities --region {} --auto-scaling-group-name {} --max-items 3",
                self.plan.region,
                scaling.name
            );
            return Ok(is_another("it has no instance in service, or not yet", mend));
        }
        let (tag, _) = list::bastion_tag();
        let wanted = scaling.tags.iter().find(|(key, _)| *key == tag);
        let instances = self.aws.describe_instances(&[Filter::new("instance-id", &group.in_service)]).await?;
        let is_tagged = |instance: &crate::aws::ec2::Instance| {
            wanted.is_none_or(|(key, value)| instance.tags.get(*key).is_some_and(|known| **known == **value))
        };
        match instances.iter().find(|instance| !is_tagged(instance)) {
            Some(instance) => {
                let (key, value) = wanted.map(|(key, value)| (*key, value.as_str())).unwrap_or_default();
                let mend = command!(
                    "aws ec2 create-tags --region {} --resources {} --tags {}",
                    self.plan.region,
                    &*instance.id,
                    format!("Key={key},Value={value}")
                );
                Ok(is_another(format!("its instance {} has lost its tag `{tag}`", instance.id), mend))
            }
            None => Ok(there(group.in_service.join(", "))),
        }
    }

    async fn ecs_service(&self, service: &Service) -> Result<State, AwsError> {
        let Service { cluster, name, .. } = service;
        let Some(found) = self.aws.ecs_service(cluster, name).await? else { return Ok(State::Missing) };
        let update = |options: &str| {
            let region = &self.plan.region;
            command!(
                "aws ecs update-service --region {} --cluster {} --service {}{}",
                region,
                cluster,
                name,
                Word::raw(options)
            )
        };
        Ok(if found.wanted == 0 {
            is_another("it is to have no task", update(" --desired-count 1"))
        } else if !found.exec_enabled {
            is_another("its tasks are without ECS Exec", update(" --enable-execute-command --force-new-deployment"))
        } else if found.running == 0 {
            let mend = command!(
                "aws ecs describe-services --region {} --cluster {} --services {} --query 'services[].events[:3].message'",
                self.plan.region,
                cluster,
                name
            );
            is_another("it has no task that runs, or not yet", mend)
        } else {
            let tasks = if found.running == 1 { "task" } else { "tasks" };
            there(format!("{} {tasks}", found.running))
        })
    }

    async fn endpoint(&self, endpoint: &Endpoint) -> Result<State, AwsError> {
        let found = self.endpoints().await?;
        let of_service = found.iter().filter(|found| found.service == endpoint.service_name);
        let needs_name = match endpoint.kind {
            EndpointKind::Interface { .. } => true,
            EndpointKind::Gateway { .. } => false,
        };
        let of_service: Vec<_> = of_service.collect();
        let Some(first) = of_service.first() else { return Ok(State::Missing) };
        let right = of_service.iter().find(|found| found.private_dns || !needs_name);
        Ok(match right {
            Some(found) if found.state == "available" => there(found.id.as_str()),
            Some(found) => {
                let mend = command!(
                    "aws ec2 describe-vpc-endpoints --region {} --vpc-endpoint-ids {}",
                    self.plan.region,
                    &*found.id
                );
                is_another(format!("{} is {}", found.id, found.state), mend)
            }
            None => {
                let mend = command!(
                    "aws ec2 modify-vpc-endpoint --region {} --vpc-endpoint-id {} --private-dns-enabled",
                    self.plan.region,
                    &*first.id
                );
                is_another(format!("{} does not have the service's own name", first.id), mend)
            }
        })
    }

    async fn connect_endpoint(&self) -> Result<State, AwsError> {
        let found = self.aws.describe_instance_connect_endpoints(&self.plan.vpc).await?;
        let is_ready = |state: &str| matches!(state, "create-complete" | "update-complete" | "update-in-progress");
        Ok(match (found.iter().find(|endpoint| is_ready(&endpoint.state)), found.first()) {
            (Some(endpoint), _) => there(endpoint.id.as_str()),
            (None, Some(endpoint)) => {
                let mend = command!(
                    "aws ec2 describe-instance-connect-endpoints --region {} --instance-connect-endpoint-ids {}",
                    self.plan.region,
                    &*endpoint.id
                );
                is_another(format!("{} is {}", endpoint.id, endpoint.state), mend)
            }
            (None, None) => State::Missing,
        })
    }

    async fn entry(&self, entry: &Entry) -> Result<State, AwsError> {
        let Some(policies) = self.aws.access_entry(&entry.cluster, &entry.principal).await? else {
            return Ok(State::Missing);
        };
        let scope = |namespaces: &[String]| namespaces.iter().cloned().collect::<BTreeSet<_>>();
        let wanted = scope(&entry.namespaces);
        // What is wider will do.
        let covers = |namespaces: &[String]| {
            namespaces.is_empty() || (!wanted.is_empty() && wanted.is_subset(&scope(namespaces)))
        };
        let enough = |arn: &str| arn == entry.policy || VIEWS.iter().any(|name| arn.ends_with(&format!("/{name}")));
        let of_policy: Vec<_> = policies.iter().filter(|policy| enough(&policy.arn)).collect();
        Ok(match (of_policy.iter().find(|policy| covers(&policy.namespaces)), of_policy.first()) {
            (Some(policy), _) => there(crate::util::arn::Arn::parse(&policy.arn).map_or("", |arn| arn.name())),
            (None, Some(policy)) => differs(format!("its policy is for {} only", policy.namespaces.join(", "))),
            (None, None) if policies.is_empty() => differs("it has no access policy"),
            (None, None) => differs("it has no access policy to view"),
        })
    }
}

/// Access policies that allow at least as much as that to view (EKS user guide, "Review access policy permissions").
const VIEWS: [&str; 4] =
    ["AmazonEKSClusterAdminPolicy", "AmazonEKSAdminPolicy", "AmazonEKSEditPolicy", "AmazonEKSAdminViewPolicy"];

/// Whether a trust policy has a statement that allows a principal.
fn trust_names(statements: &Value, kind: &str, principal: &str) -> bool {
    let several = |value: &Value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    let allowing = several(statements).into_iter().filter(|statement| statement["Effect"] == "Allow");
    allowing.into_iter().any(|statement| several(&statement["Principal"][kind]).iter().any(|name| name == principal))
}
