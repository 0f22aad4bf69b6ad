//! What there is of networks, roles and groups, as far as `setup` looks at it. Nobody else does: none of these calls is made by
//! `up`, and none is in the policy that it needs.
//!
//! Invariants:
//!
//! * What goes into commands and documents is plain; what does not is no answer.
//! * What is not there is no error.

use serde_json::Value;

use super::{
    Aws,
    ec2::{Filter, List, plain, tags},
    error::{AwsError, Call, Refusal},
    query::{Listed, Parameters},
    values::is_plain,
    xml::Element,
};
use crate::{iam::HeldPolicy, util::peer_text::PeerText};

const SUBNETS: List = List { action: "ec2:DescribeSubnets", path: &["subnetSet"], page_len: None };
const ROUTE_TABLES: List = List { action: "ec2:DescribeRouteTables", path: &["routeTableSet"], page_len: None };
const GROUPS: List = List { action: "ec2:DescribeSecurityGroups", path: &["securityGroupInfo"], page_len: None };
const ENDPOINTS: List = List { action: "ec2:DescribeVpcEndpoints", path: &["vpcEndpointSet"], page_len: None };
const TEMPLATES: List = List { action: "ec2:DescribeLaunchTemplates", path: &["launchTemplates"], page_len: None };
const SCALING: Listed = Listed { action: "autoscaling:DescribeAutoScalingGroups", path: &["AutoScalingGroups"] };

const GET_ROLE: &str = "iam:GetRole";
const GET_PROFILE: &str = "iam:GetInstanceProfile";
const GET_INLINE: &str = "iam:GetRolePolicy";
const GET_POLICY: &str = "iam:GetPolicy";
const GET_VERSION: &str = "iam:GetPolicyVersion";
const INLINE: Listed = Listed { action: "iam:ListRolePolicies", path: &["PolicyNames"] };
const ATTACHED: Listed = Listed { action: "iam:ListAttachedRolePolicies", path: &["AttachedPolicies"] };

const DESCRIBE_ECS_CLUSTERS: &str = "ecs:DescribeClusters";
const DESCRIBE_ECS_SERVICES: &str = "ecs:DescribeServices";
const DESCRIBE_ENTRY: &str = "eks:DescribeAccessEntry";
const ENTRY_POLICIES: &str = "eks:ListAssociatedAccessPolicies";

/// Most policies of an entry that are read: an entry has 20 at most.
const MAX_ENTRY_POLICIES: i32 = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    pub id: String,
    pub zone: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteTable {
    pub id: String,
    /// It is for all subnets of the VPC that have none of their own.
    pub is_main: bool,
    /// The subnets that it is for.
    pub subnets: Vec<String>,
    /// What its route to everywhere leads to, such as `igw-…` or `nat-…`, if it has one that works.
    pub default: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroup {
    pub id: String,
    pub name: PeerText,
    pub vpc: Option<String>,
    pub inward: Vec<Inward>,
}

/// What a security group lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inward {
    /// Such as `tcp`, or `-1` for all.
    protocol: String,
    ports: Option<(u16, u16)>,
    /// Ids of the groups that may come in.
    from: Vec<String>,
    /// Some addresses may come in.
    from_addresses: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VpcEndpoint {
    pub id: String,
    pub service: String,
    pub state: PeerText,
    pub private_dns: bool,
    pub groups: Vec<String>,
    /// The tag `Name`.
    pub name: Option<PeerText>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalingGroup {
    /// How many instances there are to be.
    pub wanted: u32,
    /// Ids of the instances that are in service.
    pub in_service: Vec<String>,
}

/// A service of ECS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcsService {
    /// How many tasks there are to be, and how many run.
    pub wanted: u32,
    pub running: u32,
    /// Its new tasks have the agent for sessions.
    pub exec_enabled: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Role {
    pub arn: String,
    /// Who may assume it.
    pub trust: Value,
}

/// An access policy of an entry, and where it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPolicy {
    pub arn: String,
    /// Empty for the whole cluster.
    pub namespaces: Vec<String>,
}

impl SecurityGroup {
    /// Tells whether what is in another group gets in on a port.
    #[must_use]
    pub fn admits(&self, group: &str, port: u16) -> bool {
        self.inward.iter().any(|inward| {
            let of_port = inward.protocol == "-1"
                || (inward.protocol == "tcp" && inward.ports.is_none_or(|(from, to)| (from..=to).contains(&port)));
            of_port && inward.from.iter().any(|from| from == group)
        })
    }

    /// Tells whether anything at all gets in from elsewhere.
    #[must_use]
    pub fn lets_in(&self) -> bool {
        self.inward.iter().any(|inward| inward.from_addresses || inward.from.iter().any(|from| *from != self.id))
    }
}

impl Aws {
    /// Lists subnets, by id. Those that are not there are left out.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn subnets(&self, ids: &[String]) -> Result<Vec<Subnet>, AwsError> {
        self.ec2_list(&SUBNETS, &[Filter::new("subnet-id", ids)], |item| {
            Some(Subnet { id: plain(item, "subnetId")??, zone: plain(item, "availabilityZone")?.unwrap_or_default() })
        })
        .await
    }

    /// Lists the route tables of a VPC.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn route_tables(&self, vpc: &str) -> Result<Vec<RouteTable>, AwsError> {
        self.ec2_list(&ROUTE_TABLES, &[Filter::new("vpc-id", [vpc])], route_table).await
    }

    /// Lists the security groups of a VPC that have one of these names.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn groups_by_name(&self, vpc: &str, names: &[String]) -> Result<Vec<SecurityGroup>, AwsError> {
        let filters = [Filter::new("vpc-id", [vpc]), Filter::new("group-name", names)];
        self.ec2_list(&GROUPS, &filters, security_group).await
    }

    /// Lists security groups, by id.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn groups_by_id(&self, ids: &[String]) -> Result<Vec<SecurityGroup>, AwsError> {
        self.ec2_list(&GROUPS, &[Filter::new("group-id", ids)], security_group).await
    }

    /// Lists the endpoints of a VPC.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn vpc_endpoints(&self, vpc: &str) -> Result<Vec<VpcEndpoint>, AwsError> {
        self.ec2_list(&ENDPOINTS, &[Filter::new("vpc-id", [vpc])], |item| {
            let groups = item.items(&["groupSet"]).into_iter().map(|group| plain(group, "groupId")?);
            Some(VpcEndpoint {
                id: plain(item, "vpcEndpointId")??,
                service: plain(item, "serviceName")??,
                state: item.text("state").map(PeerText::new).unwrap_or_default(),
                private_dns: item.text("privateDnsEnabled") == Some("true"),
                groups: groups.collect::<Option<_>>()?,
                name: tags(item).remove("Name"),
            })
        })
        .await
    }

    /// Tells whether there is a launch template of a name.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn has_launch_template(&self, name: &str) -> Result<bool, AwsError> {
        let filters = [Filter::new("launch-template-name", [name])];
        Ok(!self.ec2_list(&TEMPLATES, &filters, |item| plain(item, "launchTemplateId")?).await?.is_empty())
    }

    /// Describes an Auto Scaling group; `None` if there is none of this name.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn scaling_group(&self, name: &str) -> Result<Option<ScalingGroup>, AwsError> {
        let parameters = vec![("AutoScalingGroupNames.member.1".to_owned(), name.to_owned())];
        let read = |item: &Element| {
            let instances = item.items(&["Instances"]).into_iter();
            let in_service = instances.filter(|instance| instance.text("LifecycleState") == Some("InService"));
            Some(ScalingGroup {
                wanted: item.text("DesiredCapacity").and_then(|count| count.parse().ok()).unwrap_or_default(),
                in_service: in_service.map(|instance| plain(instance, "InstanceId")?).collect::<Option<_>>()?,
            })
        };
        let found = self.query_list(&self.inner.auto_scaling, SCALING, name, parameters, read).await?;
        Ok(found.into_iter().next())
    }

    /// Describes a role; `None` if there is none of this name.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn role(&self, name: &str) -> Result<Option<Role>, AwsError> {
        let answer = self.query(&self.inner.iam, GET_ROLE, name, &named("RoleName", name)).await;
        let Some(answer) = absent(answer)? else { return Ok(None) };
        let role = answer.child("Role");
        let arn = role.and_then(|role| role.text("Arn")).filter(|arn| arn.starts_with("arn:"));
        let trust = role.and_then(|role| document(role.text("AssumeRolePolicyDocument")?));
        match (arn, trust) {
            (Some(arn), Some(trust)) => Ok(Some(Role { arn: arn.to_owned(), trust })),
            _ => Err(AwsError::malformed(GET_ROLE, "description that a role can have")),
        }
    }

    /// Returns all policies of a role, each with its name: its own, and those that are attached to it.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn policies_of_role(&self, name: &str) -> Result<Vec<HeldPolicy>, AwsError> {
        let iam = &self.inner.iam;
        let of_role = || named("RoleName", name);
        let odd = |action| AwsError::malformed(action, "policy that a role can have");
        let mut policies = Vec::new();
        let inline = |item: &Element| item.own_text().map(str::to_owned);
        for policy in self.query_list(iam, INLINE, name, of_role(), inline).await? {
            let mut parameters = of_role();
            parameters.push(("PolicyName".to_owned(), policy.clone()));
            if let Some(answer) = absent(self.query(iam, GET_INLINE, name, &parameters).await)? {
                let document = answer.text("PolicyDocument").and_then(document).ok_or_else(|| odd(GET_INLINE))?;
                policies.push(HeldPolicy { name: policy, document });
            }
        }
        let attached = |item: &Element| item.text("PolicyArn").map(str::to_owned);
        for arn in self.query_list(iam, ATTACHED, name, of_role(), attached).await? {
            let Some(answer) = absent(self.query(iam, GET_POLICY, &arn, &named("PolicyArn", &arn)).await)? else {
                continue;
            };
            let version = answer.child("Policy").and_then(|policy| policy.text("DefaultVersionId"));
            let mut parameters = named("PolicyArn", &arn);
            parameters.push(("VersionId".to_owned(), version.ok_or_else(|| odd(GET_POLICY))?.to_owned()));
            if let Some(answer) = absent(self.query(iam, GET_VERSION, &arn, &parameters).await)? {
                let text = answer.child("PolicyVersion").and_then(|version| version.text("Document"));
                let document = text.and_then(document).ok_or_else(|| odd(GET_VERSION))?;
                let name = arn.rsplit('/').next().unwrap_or_default().to_owned();
                policies.push(HeldPolicy { name, document });
            }
        }
        Ok(policies)
    }

    /// Returns the names of the roles in an instance profile; `None` if there is none of this name.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn instance_profile(&self, name: &str) -> Result<Option<Vec<String>>, AwsError> {
        let answer = self.query(&self.inner.iam, GET_PROFILE, name, &named("InstanceProfileName", name)).await;
        let Some(answer) = absent(answer)? else { return Ok(None) };
        let roles = answer.child("InstanceProfile").map(|profile| profile.items(&["Roles"])).unwrap_or_default();
        Ok(Some(roles.into_iter().filter_map(|role| role.text("RoleName").map(str::to_owned)).collect()))
    }

    /// Tells whether there is an ECS cluster of a name that takes tasks.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn has_ecs_cluster(&self, name: &str) -> Result<bool, AwsError> {
        let ecs = self.ecs();
        let call = Call { action: DESCRIBE_ECS_CLUSTERS, resource: name, region: self.region(), host: &ecs.host };
        let answer = ecs.client.describe_clusters().clusters(name).send().await;
        let answer = answer.map_err(|error| self.failed(call, error))?;
        // One that is not there is among the failures.
        let clusters = answer.clusters.unwrap_or_default();
        Ok(clusters.iter().any(|cluster| cluster.status.as_deref() == Some("ACTIVE")))
    }

    /// Returns a service of ECS; `None` if there is none of this name, or no such ECS cluster.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn ecs_service(&self, cluster: &str, name: &str) -> Result<Option<EcsService>, AwsError> {
        let ecs = self.ecs();
        let call = Call { action: DESCRIBE_ECS_SERVICES, resource: name, region: self.region(), host: &ecs.host };
        let answer = ecs.client.describe_services().cluster(cluster).services(name).send().await;
        let answer = match answer.map_err(|error| self.failed(call, error)) {
            Ok(answer) => answer,
            Err(AwsError::Refused { refusal: Refusal::EcsCluster, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        // One that was deleted is told of for a while.
        let mut services = answer.services.unwrap_or_default().into_iter();
        let service = services.find(|service| service.status.as_deref() == Some("ACTIVE"));
        Ok(service.map(|service| EcsService {
            wanted: service.desired_count.try_into().unwrap_or_default(),
            running: service.running_count.try_into().unwrap_or_default(),
            exec_enabled: service.enable_execute_command,
        }))
    }

    /// Returns the access policies of an identity's access entry in a cluster; `None` if it has no entry.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn access_entry(&self, cluster: &str, principal: &str) -> Result<Option<Vec<EntryPolicy>>, AwsError> {
        let eks = self.eks();
        let call = |action| Call { action, resource: cluster, region: self.region(), host: &eks.host };
        let entry = eks.client.describe_access_entry().cluster_name(cluster).principal_arn(principal).send().await;
        let entry = absent(entry.map_err(|error| self.failed(call(DESCRIBE_ENTRY), error)))?;
        if entry.is_none() {
            return Ok(None);
        }
        let policies = eks.client.list_associated_access_policies().cluster_name(cluster).principal_arn(principal);
        let answer = policies.max_results(MAX_ENTRY_POLICIES).send().await;
        let Some(answer) = absent(answer.map_err(|error| self.failed(call(ENTRY_POLICIES), error)))? else {
            return Ok(None);
        };
        let policies = answer.associated_access_policies.unwrap_or_default().into_iter().filter_map(|policy| {
            let arn = policy.policy_arn.filter(|arn| is_plain(arn))?;
            let namespaces = policy.access_scope.and_then(|scope| scope.namespaces).unwrap_or_default();
            Some(EntryPolicy { arn, namespaces })
        });
        Ok(Some(policies.collect()))
    }
}

fn named(parameter: &str, value: &str) -> Parameters {
    vec![(parameter.to_owned(), value.to_owned())]
}

/// Takes the answer that there is no such thing for one.
fn absent<T>(answer: Result<T, AwsError>) -> Result<Option<T>, AwsError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(AwsError::Refused { refusal: Refusal::Absent, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a policy, which IAM writes as part of a URL.
fn document(text: &str) -> Option<Value> {
    serde_json::from_str(&decoded(text)?).ok()
}

fn route_table(item: &Element) -> Option<RouteTable> {
    let associations = item.items(&["associationSet"]);
    let is_default = |route: &&Element| {
        ["destinationCidrBlock", "destinationIpv6CidrBlock"]
            .into_iter()
            .any(|name| route.text(name).is_some_and(|block| matches!(block, "0.0.0.0/0" | "::/0")))
            && route.text("state") != Some("blackhole")
    };
    let target = |route: &Element| {
        const TARGETS: [&str; 7] = [
            "natGatewayId",
            "gatewayId",
            "transitGatewayId",
            "networkInterfaceId",
            "instanceId",
            "vpcPeeringConnectionId",
            "egressOnlyInternetGatewayId",
        ];
        TARGETS.iter().find_map(|name| route.text(name)).filter(|id| is_plain(id)).map(str::to_owned)
    };
    let mut defaults: Vec<_> = item.items(&["routeSet"]).into_iter().filter(is_default).filter_map(target).collect();
    // That for IPv4 is what counts, and it is there if both are.
    defaults.sort_by_key(|target| target.starts_with("eigw-"));
    Some(RouteTable {
        id: plain(item, "routeTableId")??,
        is_main: associations.iter().any(|association| association.text("main") == Some("true")),
        subnets: associations.iter().filter_map(|association| plain(association, "subnetId")?).collect(),
        default: defaults.into_iter().next(),
    })
}

fn security_group(item: &Element) -> Option<SecurityGroup> {
    let inward = item.items(&["ipPermissions"]).into_iter().map(|rule| {
        let port = |name: &str| rule.text(name).and_then(|port| port.parse::<u16>().ok());
        let from = rule.items(&["groups"]).into_iter().filter_map(|group| plain(group, "groupId")?);
        Inward {
            protocol: rule.text("ipProtocol").unwrap_or_default().to_owned(),
            ports: port("fromPort").zip(port("toPort")),
            from: from.collect(),
            from_addresses: ["ipRanges", "ipv6Ranges", "prefixListIds"]
                .into_iter()
                .any(|list| !rule.items(&[list]).is_empty()),
        }
    });
    Some(SecurityGroup {
        id: plain(item, "groupId")??,
        name: item.text("groupName").map(PeerText::new).unwrap_or_default(),
        vpc: plain(item, "vpcId")?,
        inward: inward.collect(),
    })
}

/// Decodes a part of a URL; `None` if it is none.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            u8::try_from(digit()? * 16 + digit()?).ok()?
        } else {
            byte
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
