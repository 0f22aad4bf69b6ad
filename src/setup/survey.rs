//! What AWS says of the clusters and their network, made into a plan.
//!
//! Invariants:
//!
//! * A plan is about one VPC, account and region.
//! * The same again after it has been deployed: what it has made itself counts as not there.

use std::collections::BTreeSet;

use serde_json::json;

use super::{
    Endpoint, EndpointKind, Entry, Group, GroupOf, GroupRef, Item, MAX_ROLE_POLICY_LEN, Order, Piece, Plan, Rule,
    Scaling, Template,
    names::{self, within},
};
use crate::{
    aws::{
        Aws, AwsError, ClusterDescription, SkipReason,
        inventory::{RouteTable, Subnet, VpcEndpoint},
    },
    bastion::{Bastion, KeySource, Search, SshBastion, SshHost, SshInstance, Via},
    cluster::Vpc,
    iam::{self, Principal, access_policy_arn},
    route::list,
    settings::BastionKind,
    util::{arn::Arn, peer_text::sentence, quote::command},
};

mod tasks;

/// The first word of all names.
const NAME: &str = "autoheal-pa";

pub(super) const HTTPS: u16 = 443;
const SSH: u16 = 22;

/// The name in documents of the role that takes images out of ECR.
pub(super) const IMAGE_ROLE: &str = "ImageRole";

/// What Amazon Linux lets in.
const SSH_USER: &str = "ec2-user";

/// What an agent on an instance calls.
const AGENT_SERVICES: [&str; 2] = ["ssm", "ssmmessages"];

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    #[error(transparent)]
    Aws(#[from] AwsError),
    #[error("`{cluster}` cannot be reached: {reason}")]
    Unusable { cluster: String, reason: SkipReason },
    #[error("EKS does not say in which network `{cluster}` is")]
    NoNetwork { cluster: String },
    /// Each VPC with one of its clusters.
    #[error("the clusters are in several VPCs: {}", told(vpcs))]
    SeveralVpcs { vpcs: Vec<(String, String)> },
    #[error(
        "none of the subnets of {} in `{vpc}` has a way to Systems Manager for an instance without a public address: {}",
        names_of(clusters), subnets.join(", ")
    )]
    NoWayOut { clusters: Vec<String>, vpc: String, subnets: Vec<String> },
    #[error("without a way to the internet a task on Fargate needs an image in a private repository of ECR")]
    NoImage,
    #[error(
        "the policy for {count} clusters would have {len} characters, and a role's policies may have {MAX_ROLE_POLICY_LEN}"
    )]
    PolicyTooLong { count: usize, len: usize },
    #[error("`{arn}` is in the account {account}, but {} in {own}", names_of(clusters))]
    OtherAccount { arn: String, account: String, clusters: Vec<String>, own: String },
    #[error("`{arn}` is in the partition `{partition}`, but {region} is in another")]
    OtherPartition { arn: String, partition: String, region: String },
}

fn told(vpcs: &[(String, String)]) -> String {
    let told: Vec<_> = vpcs.iter().map(|(vpc, cluster)| format!("`{cluster}` in `{vpc}`")).collect();
    told.join(", ")
}

fn names_of(clusters: &[String]) -> String {
    let names: Vec<_> = clusters.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// Options of `up`, with their values.
type Options = Vec<(&'static str, String)>;

/// Asks AWS about the clusters, and plans what they need.
///
/// # Errors
/// See [`SurveyError`].
pub async fn survey(aws: &Aws, order: &Order) -> Result<Plan, SurveyError> {
    let clusters = clusters(aws, order).await?;
    let site = Site::new(aws, order, clusters).await?;
    site.plan()
}

/// A cluster with its network.
struct Found {
    description: ClusterDescription,
    group: String,
    vpc: Vpc,
}

async fn clusters(aws: &Aws, order: &Order) -> Result<Vec<Found>, SurveyError> {
    let discovery = aws.discover(&order.clusters).await?;
    discovery
        .clusters
        .into_iter()
        .map(|description| {
            let cluster = description.name.clone();
            let access = match &description.access {
                Ok(access) => access.clone(),
                Err(reason) => return Err(SurveyError::Unusable { cluster, reason: reason.clone() }),
            };
            match (access.vpc, description.security_group.clone()) {
                (Some(vpc), Some(group)) => Ok(Found { description, group, vpc }),
                _ => Err(SurveyError::NoNetwork { cluster }),
            }
        })
        .collect()
}

/// All that is known when a plan is made.
struct Site<'a> {
    order: &'a Order,
    region: String,
    account: String,
    vpc: String,
    clusters: Vec<Found>,
    /// Where the bastion may be.
    subnets: Vec<Subnet>,
    tables: Vec<RouteTable>,
    endpoints: Vec<VpcEndpoint>,
    notes: Vec<String>,
    unseen: Vec<String>,
}

impl<'a> Site<'a> {
    async fn new(aws: &Aws, order: &'a Order, clusters: Vec<Found>) -> Result<Self, SurveyError> {
        let mut vpcs: Vec<(String, String)> = Vec::new();
        for Found { description, vpc, .. } in &clusters {
            if !vpcs.iter().any(|(known, _)| *known == vpc.id) {
                vpcs.push((vpc.id.clone(), description.name.clone()));
            }
        }
        let [(vpc, _)] = &vpcs[..] else { return Err(SurveyError::SeveralVpcs { vpcs }) };
        let account = clusters.iter().find_map(|found| Some(Arn::parse(&found.description.arn)?.account.to_owned()));
        let mut site = Self {
            order,
            region: aws.region().to_owned(),
            account: account.unwrap_or_default(),
            vpc: vpc.clone(),
            clusters,
            subnets: Vec::new(),
            tables: Vec::new(),
            endpoints: Vec::new(),
            notes: Vec::new(),
            unseen: Vec::new(),
        };
        match order.kind {
            BastionKind::Direct => {}
            BastionKind::Ec2 | BastionKind::Ssh | BastionKind::Ecs | BastionKind::Fargate => {
                site.look_at_network(aws).await?;
            }
        }
        Ok(site)
    }

    async fn look_at_network(&mut self, aws: &Aws) -> Result<(), SurveyError> {
        let ids: BTreeSet<&String> = self.clusters.iter().flat_map(|found| &found.vpc.subnets).collect();
        let ids: Vec<String> = ids.into_iter().cloned().collect();
        let subnets = aws.subnets(&ids).await?;
        // Who may not look is not stopped: the subnets are then as good as any.
        let tables = match aws.route_tables(&self.vpc).await {
            Ok(tables) => tables,
            Err(AwsError::AccessDenied { source, .. }) => {
                let told = sentence(&*source);
                self.unseen
                    .push(format!("whether the subnets have a way to Systems Manager could not be seen: {told}"));
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        };
        if self.order.private {
            self.endpoints = aws.vpc_endpoints(&self.vpc).await?;
        }
        self.subnets = self.choose(subnets, &tables)?;
        self.tables = tables;
        Ok(())
    }

    /// Chooses the subnets for a bastion, which has no public address.
    fn choose(&self, subnets: Vec<Subnet>, tables: &[RouteTable]) -> Result<Vec<Subnet>, SurveyError> {
        if tables.is_empty() {
            return Ok(subnets);
        }
        let leads_to = |subnet: &Subnet| {
            let own = tables.iter().find(|table| table.subnets.contains(&subnet.id));
            own.or_else(|| tables.iter().find(|table| table.is_main)).and_then(|table| table.default.as_deref())
        };
        let is_public = |subnet: &Subnet| leads_to(subnet).is_some_and(|target| target.starts_with("igw-"));
        let has_way_out = |subnet: &Subnet| leads_to(subnet).is_some() && !is_public(subnet);
        // SSH needs no way out: it comes in by the endpoint.
        let needs_none = self.order.private || self.order.kind == BastionKind::Ssh;
        let right = |subnet: &&Subnet| if needs_none { !is_public(subnet) } else { has_way_out(subnet) };
        let chosen: Vec<Subnet> = subnets.iter().filter(right).cloned().collect();
        match (chosen.is_empty(), needs_none) {
            (false, _) => Ok(chosen),
            // Without an address of its own an instance is as private there.
            (true, true) => Ok(subnets),
            (true, false) => Err(SurveyError::NoWayOut {
                clusters: self.names(),
                vpc: self.vpc.clone(),
                subnets: subnets.into_iter().map(|subnet| subnet.id).collect(),
            }),
        }
    }

    fn names(&self) -> Vec<String> {
        self.clusters.iter().map(|found| found.description.name.clone()).collect()
    }

    /// Returns a name that no other VPC has, in any region.
    fn name(&self, what: &str, limit: usize) -> String {
        let what = if what.is_empty() { String::new() } else { format!("-{what}") };
        within(&format!("{NAME}{what}-{}", self.vpc), limit)
    }

    fn group_name(&self, of: GroupOf) -> String {
        let what = match of {
            GroupOf::Bastion => "bastion",
            GroupOf::Endpoints => "endpoints",
            GroupOf::ConnectEndpoint => "connect",
        };
        self.name(what, names::SECURITY_GROUP)
    }

    fn plan(mut self) -> Result<Plan, SurveyError> {
        let principal = self.principal()?;
        let (bastion, options) = self.bastion()?;
        let mut items = Items::default();
        match self.order.kind {
            BastionKind::Ec2 => self.instance(&mut items, true),
            BastionKind::Ssh => self.instance(&mut items, false),
            BastionKind::Ecs => self.service(&mut items),
            BastionKind::Fargate => self.task(&mut items),
            BastionKind::Direct => {}
        }
        let partition = iam::partition(&self.region);
        let mut plan = Plan {
            region: self.region.clone(),
            account: self.account.clone(),
            partition,
            vpc: self.vpc.clone(),
            kind: self.order.kind,
            private: self.order.private,
            name: self.name("", names::STACK),
            clusters: self.names(),
            principal,
            bastion,
            options,
            items: Vec::new(),
            notes: Vec::new(),
            unseen: Vec::new(),
        };
        self.identity(&plan, &mut items)?;
        plan.items = items.0;
        // Other services learn of what is new in IAM some seconds later, so that comes first.
        plan.items.sort_by_key(|item| !item.piece.is_of_iam());
        (plan.notes, plan.unseen) = (self.notes, self.unseen);
        Ok(plan)
    }

    /// Returns whom it is for.
    fn principal(&self) -> Result<Principal, SurveyError> {
        let partition = iam::partition(&self.region);
        let Some(principal) = &self.order.principal else {
            let arn = format!("arn:{partition}:iam::{}:role/{}", self.account, self.name("", names::ROLE));
            return Ok(Principal::Role { arn, path_unknown: false });
        };
        let arn = principal.arn().to_owned();
        if principal.partition() != partition {
            let (partition, region) = (principal.partition().to_owned(), self.region.clone());
            return Err(SurveyError::OtherPartition { arn, partition, region });
        }
        if principal.account() != self.account {
            let (account, clusters, own) = (principal.account().to_owned(), self.names(), self.account.clone());
            return Err(SurveyError::OtherAccount { arn, account, clusters, own });
        }
        Ok(principal.clone())
    }

    /// Returns what `up` is to be given.
    fn bastion(&self) -> Result<(Bastion, Options), SurveyError> {
        Ok(match self.order.kind {
            BastionKind::Ec2 => (Bastion::Found(Search::Auto { nodes: false }), Vec::new()),
            BastionKind::Direct => (Bastion::Direct, Vec::new()),
            BastionKind::Ssh => {
                let group = Search::Group(self.name("bastion", names::SCALING_GROUP));
                let server = SshBastion {
                    user: Some(SSH_USER.to_owned()),
                    host: SshHost::Instance(SshInstance::Found(group)),
                    port: SSH,
                    instance: None,
                    via: Via::Endpoint,
                    key: KeySource::Pushed,
                    host_key: None,
                };
                (Bastion::Ssh(Box::new(server)), Vec::new())
            }
            BastionKind::Ecs => (self.service_bastion()?, Vec::new()),
            BastionKind::Fargate => self.task_bastion()?,
        })
    }

    /// An instance that is kept running, with or without an agent for sessions.
    fn instance(&self, items: &mut Items, has_agent: bool) {
        let profile = has_agent.then(|| {
            let role = self.name("bastion", names::ROLE);
            let profile = self.name("bastion", names::INSTANCE_PROFILE);
            items.add("BastionRole", Piece::ServiceRole(list::instance_role(&role, &self.region)));
            items.add("BastionProfile", Piece::InstanceProfile { name: profile.clone(), role });
            profile
        });
        self.group(items, GroupOf::Bastion, "Bastion of autoheal-pa: nothing comes in unasked");
        if !has_agent {
            self.group(items, GroupOf::ConnectEndpoint, "EC2 Instance Connect Endpoint of autoheal-pa");
            let (into, from) = (GroupRef::Made(GroupOf::Bastion), GroupRef::Made(GroupOf::ConnectEndpoint));
            let about = "SSH from the EC2 Instance Connect Endpoint of autoheal-pa".to_owned();
            items.add("ConnectRule", Piece::Rule(Rule { into, from, port: SSH, about, cluster: None }));
            let subnet = self.subnets.first().map(|subnet| subnet.id.clone()).unwrap_or_default();
            items.add("ConnectEndpoint", Piece::ConnectEndpoint { subnet });
        }
        self.cluster_rules(items);
        if self.order.private && has_agent {
            self.endpoints(items, &AGENT_SERVICES, &[GroupRef::Made(GroupOf::Bastion)]);
        }
        let template = self.name("bastion", names::LAUNCH_TEMPLATE);
        items.add("BastionTemplate", Piece::Template(Template { name: template.clone(), profile }));
        let (key, value) = list::bastion_tag();
        let name = self.name("bastion", names::SCALING_GROUP);
        // `auto` is about instances with an agent.
        let mark = if has_agent { value } else { "false" };
        let tags = vec![("Name", name.clone()), (key, mark.to_owned())];
        let subnets = self.subnets.iter().map(|subnet| subnet.id.clone()).collect();
        items.add("Bastion", Piece::Scaling(Scaling { name, template, subnets, tags }));
    }

    fn group(&self, items: &mut Items, of: GroupOf, about: &'static str) {
        items.add(of.id(), Piece::Group(Group { of, name: self.group_name(of), about }));
    }

    /// The clusters with their security groups, each group once.
    fn groups(&self) -> Vec<(String, String)> {
        let mut groups: Vec<(String, String)> = Vec::new();
        for Found { description, group, .. } in &self.clusters {
            if !groups.iter().any(|(_, known)| known == group) {
                groups.push((description.name.clone(), group.clone()));
            }
        }
        groups
    }

    /// What lets the bastion into the clusters.
    fn cluster_rules(&self, items: &mut Items) {
        for (number, (cluster, group)) in (1..).zip(self.groups()) {
            let about =
                within(&format!("The API server of {cluster} for the bastion of autoheal-pa"), names::RULE_ABOUT);
            let (into, from) = (GroupRef::There(group), GroupRef::Made(GroupOf::Bastion));
            let rule = Rule { into, from, port: HTTPS, about, cluster: Some(cluster) };
            items.add(&format!("ClusterRule{number}"), Piece::Rule(rule));
        }
    }

    /// Ways to these services from these groups. One that is there already is used, if it has the service's own name.
    fn endpoints(&self, items: &mut Items, services: &[&'static str], from: &[GroupRef]) {
        let own_name = |service: &str| endpoint_name(&self.name("", names::STACK), service);
        let is_own = |endpoint: &VpcEndpoint| {
            services.iter().any(|service| endpoint.name.as_ref().is_some_and(|name| **name == *own_name(service)))
        };
        let there = |service: &str| {
            let name = service_name(service, &self.region);
            self.endpoints.iter().find(|endpoint| endpoint.service == name && endpoint.private_dns && !is_own(endpoint))
        };
        let missing: Vec<&'static str> = services.iter().copied().filter(|service| there(service).is_none()).collect();
        let mut into: Vec<GroupRef> = Vec::new();
        if !missing.is_empty() {
            self.group(items, GroupOf::Endpoints, "VPC endpoints of autoheal-pa");
            into.push(GroupRef::Made(GroupOf::Endpoints));
        }
        for group in services.iter().filter_map(|service| there(service)).flat_map(|endpoint| &endpoint.groups) {
            let group = GroupRef::There(group.clone());
            if !into.contains(&group) {
                into.push(group);
            }
        }
        let mut number = 0;
        for into in into {
            for from in from {
                number += 1;
                let about = "HTTPS from the bastion of autoheal-pa to services of AWS".to_owned();
                let rule = Rule { into: into.clone(), from: from.clone(), port: HTTPS, about, cluster: None };
                items.add(&format!("EndpointRule{number}"), Piece::Rule(rule));
            }
        }
        let mut zones = BTreeSet::new();
        let in_zones = self.subnets.iter().filter(|subnet| zones.insert(subnet.zone.clone()));
        let subnets: Vec<String> = in_zones.map(|subnet| subnet.id.clone()).collect();
        for service in missing {
            let kind = EndpointKind::Interface { subnets: subnets.clone() };
            let service_name = service_name(service, &self.region);
            items.add(&id_of_service(service), Piece::Endpoint(Endpoint { service, service_name, kind }));
        }
    }

    /// Who uses it, and what they may do.
    fn identity(&mut self, plan: &Plan, items: &mut Items) -> Result<(), SurveyError> {
        let is_made = self.order.principal.is_none();
        let role = plan.principal.name().to_owned();
        if is_made {
            items.add("UserRole", Piece::UserRole { name: role.clone() });
        }
        let document = plan.policy();
        let len = document.to_line().chars().filter(|char| !char.is_whitespace()).count();
        if len > MAX_ROLE_POLICY_LEN {
            return Err(SurveyError::PolicyTooLong { count: self.clusters.len(), len });
        }
        if plan.principal.is_of_identity_center() {
            let mut policy =
                command!("autoheal-pa policy --region {} --bastion {}", plan.region, plan.bastion.to_string());
            let of_policy = plan.options.iter().filter(|(option, _)| *option != "--fargate-subnet");
            of_policy.for_each(|(option, value)| policy.push_str(&command!(" {} {}", *option, value)));
            plan.clusters.iter().for_each(|cluster| policy.push_str(&command!(" --cluster {}", cluster)));
            policy.push_str(&command!(" --role-arn {}", plan.principal.arn()));
            self.notes.push(format!(
                "the role is of IAM Identity Center, which lets nobody else change it: `{policy}` prints the policy for its \
                 permission set"
            ));
        } else {
            items.add("UserPolicy", Piece::Policy { role, document });
        }
        let mut number = 0;
        for Found { description, .. } in &self.clusters {
            let ClusterDescription { name: cluster, authentication_mode, endpoint_private, .. } = description;
            if !endpoint_private && self.order.kind != BastionKind::Direct {
                self.notes.push(command!(
                    "`{}` has no endpoint in its network, so that the rule of its security group is of no use: `aws eks \
                     update-cluster-config --region {} --name {} --resources-vpc-config endpointPrivateAccess=true`",
                    cluster,
                    plan.region,
                    cluster
                ));
            }
            if authentication_mode.as_ref().is_some_and(|mode| *mode == "CONFIG_MAP") {
                self.notes.push(command!(
                    "`{}` knows no access entries, as its authentication mode is CONFIG_MAP: `aws eks update-cluster-config --region {} \
                     --name {} --access-config authenticationMode=API_AND_CONFIG_MAP`, then run this again; or map the role in its \
                     ConfigMap `aws-auth`",
                    cluster,
                    plan.region,
                    cluster
                ));
                continue;
            }
            number += 1;
            let entry = Entry {
                cluster: cluster.clone(),
                principal: plan.principal.arn().to_owned(),
                is_made,
                policy: access_policy_arn(plan.partition),
                namespaces: self.order.namespaces.clone(),
            };
            items.add(&format!("AccessEntry{number}"), Piece::Entry(entry));
        }
        Ok(())
    }
}

/// Items, in the order in which they are added.
#[derive(Default)]
struct Items(Vec<Item>);

impl Items {
    fn add(&mut self, id: &str, piece: Piece) {
        self.0.push(Item { id: id.to_owned(), piece });
    }
}

/// Returns the name of a service as EC2 has it for endpoints. In China some of them have another beginning (AWS PrivateLink,
/// `DescribeVpcEndpointServices` there).
fn service_name(service: &str, region: &str) -> String {
    let is_other = iam::partition(region) == "aws-cn" && matches!(service, "ecr.api" | "ecr.dkr" | "s3");
    let start = if is_other { "cn.com.amazonaws" } else { "com.amazonaws" };
    format!("{start}.{region}.{service}")
}

/// Returns the tag `Name` of an endpoint that is made, by which it is known again.
#[must_use]
pub(super) fn endpoint_name(name: &str, service: &str) -> String {
    format!("{name}-{service}")
}

fn id_of_service(service: &str) -> String {
    let words = service.split('.').map(|word| {
        let (first, rest) = word.split_at(1.min(word.len()));
        format!("{}{rest}", first.to_uppercase())
    });
    format!("Endpoint{}", words.collect::<String>())
}

/// Returns the trust policy of a role for everybody in the account who may assume roles.
#[must_use]
pub(super) fn trust_of_users(plan: &Plan) -> serde_json::Value {
    iam::trust(json!({ "AWS": format!("arn:{}:iam::{}:root", plan.partition, plan.account) }))
}

#[cfg(test)]
mod tests;
