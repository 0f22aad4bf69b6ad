//! What AWS must have for clusters to be reached: found out from what it says of them, written as a document that creates it, and
//! compared with what is there.
//!
//! ```text
//! Order ─ survey ─► Plan of pieces ─┬─ cloudformation, terraform, commands    one document, in one of three languages
//!                                   └─ check                                  each piece, against what is there
//! ```
//!
//! Invariants:
//!
//! * A [`Piece`] is written in every language and can be looked for: all four match on it without a wildcard.
//! * What an identity is allowed comes from [`list::policy`], and what the roles of services are from the routes.
//! * Nothing is created here.
//!
//! Leaves out the words around it, which are the command line's.

use serde_json::{Value, json};

use crate::{
    aws::ecs::NewTaskDefinition,
    bastion::Bastion,
    iam::{Document, Grant, Principal, ServiceRole},
    route::list,
    settings::{BastionKind, SetupFormat},
    util::quote::{Word, command},
};

mod check;
mod cloudformation;
mod commands;
mod hcl;
mod made;
pub mod names;
pub mod survey;
mod terraform;

pub use check::{Looked, Mend, State, look};
pub use made::{Lack, Made, kind_of, made};
pub use survey::{SurveyError, survey};

/// Most characters of a policy within a role, without blanks (IAM user guide, "IAM and AWS STS quotas"): those of all together.
pub const MAX_ROLE_POLICY_LEN: usize = 10_240;

/// Longest template that is taken without a bucket, in bytes (CloudFormation user guide, "Understand CloudFormation quotas").
const MAX_TEMPLATE_LEN: usize = 51_200;

/// What is to be reached, for whom and through what.
#[derive(Debug, Clone)]
pub struct Order {
    /// At least one, each once.
    pub clusters: Vec<String>,
    pub kind: BastionKind,
    /// The bastion is to have no way to the internet.
    pub private: bool,
    /// What may be looked at; empty for all.
    pub namespaces: Vec<String>,
    /// Whom it is for; `None`: a role that is to be made.
    pub principal: Option<Principal>,
    /// The image of tasks on Fargate; `None`: the usual one.
    pub fargate_image: Option<String>,
}

/// All that is needed, in an order in which it can be created.
#[derive(Debug, Clone)]
pub struct Plan {
    pub region: String,
    pub account: String,
    pub partition: &'static str,
    pub vpc: String,
    pub kind: BastionKind,
    pub private: bool,
    /// What the whole is called.
    pub name: String,
    pub clusters: Vec<String>,
    /// Whom it is for.
    pub principal: Principal,
    /// What `up` has to be given.
    pub bastion: Bastion,
    /// What `up` has to be given besides, such as the task definition.
    pub options: Vec<(&'static str, String)>,
    pub items: Vec<Item>,
    /// What the document cannot do, and what to do about it.
    pub notes: Vec<String>,
    /// What could not be looked at, so that the plan may not suit.
    pub unseen: Vec<String>,
}

/// A piece, with the name that it has in documents: letters and digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub id: String,
    pub piece: Piece,
}

/// One thing that AWS must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A role that a service acts as.
    ServiceRole(ServiceRole),
    /// What gives an instance its role.
    InstanceProfile {
        name: String,
        role: String,
    },
    /// A security group without inbound rules of its own.
    Group(Group),
    /// What lets a group into another.
    Rule(Rule),
    /// What instances are started from.
    Template(Template),
    /// What keeps one instance running.
    Scaling(Scaling),
    /// A way to a service of AWS without the internet.
    Endpoint(Endpoint),
    /// A way to instances by SSH without the internet.
    ConnectEndpoint {
        subnet: String,
    },
    EcsCluster {
        name: String,
    },
    /// With the role that it has for its image, if it needs one.
    TaskDefinition(NewTaskDefinition),
    /// What keeps one task running.
    Service(Service),
    /// The role of whoever uses all this.
    UserRole {
        name: String,
    },
    /// What they may do in AWS.
    Policy {
        role: String,
        document: Document,
    },
    /// What they may do in Kubernetes.
    Entry(Entry),
}

/// A security group that is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub of: GroupOf,
    pub name: String,
    /// Of the characters that EC2 takes.
    pub about: &'static str,
}

/// What a security group is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupOf {
    Bastion,
    Endpoints,
    ConnectEndpoint,
}

impl GroupOf {
    /// Returns the name that it has in documents.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::Bastion => "BastionGroup",
            Self::Endpoints => "EndpointGroup",
            Self::ConnectEndpoint => "ConnectGroup",
        }
    }
}

/// A security group, wherever it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupRef {
    /// One of those that are made.
    Made(GroupOf),
    /// One that is there, by its id.
    There(String),
}

/// A way from one security group into another, by TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub into: GroupRef,
    pub from: GroupRef,
    pub port: u16,
    /// Of the characters that EC2 takes.
    pub about: String,
    /// The cluster that is reached by it, if it is one.
    pub cluster: Option<String>,
}

/// The smallest instance of Graviton with the newest Amazon Linux 2023, which EC2 looks up at each start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pub name: String,
    /// The instance profile, if the instance needs one.
    pub profile: Option<String>,
}

impl Template {
    /// As EC2 takes it in place of an image, so that each instance has the newest (Amazon EC2 Auto Scaling user guide, "Use AWS
    /// Systems Manager parameters instead of AMI IDs in launch templates").
    pub const IMAGE: &str = "resolve:ssm:/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-arm64";
    pub const INSTANCE_TYPE: &str = "t4g.nano";
    /// The volume of the system, as that image names it.
    pub const DEVICE: &str = "/dev/xvda";
    /// In GiB: as much as the image has.
    pub const VOLUME: u8 = 8;

    /// Returns what instances are started from, as EC2 takes it, in this group.
    fn data(group: Value) -> Value {
        json!({
            "ImageId": Self::IMAGE,
            "InstanceType": Self::INSTANCE_TYPE,
            "MetadataOptions": { "HttpTokens": "required", "HttpEndpoint": "enabled", "HttpPutResponseHopLimit": 1 },
            "BlockDeviceMappings": [{
                "DeviceName": Self::DEVICE,
                "Ebs": { "Encrypted": true, "VolumeType": "gp3", "VolumeSize": Self::VOLUME, "DeleteOnTermination": true },
            }],
            "NetworkInterfaces": [{
                "DeviceIndex": 0,
                "AssociatePublicIpAddress": false,
                "DeleteOnTermination": true,
                "Groups": [group],
            }],
        })
    }
}

/// Returns the containers of a task definition, as ECS takes them.
fn containers(definition: &NewTaskDefinition) -> Value {
    let container = &definition.container;
    let mut value = json!({
        "name": container.name,
        "image": container.image,
        "command": container.command,
        "essential": true,
        "linuxParameters": { "initProcessEnabled": true },
        "cpu": definition.cpu,
        "memory": definition.memory,
    });
    if let Some(limit) = container.stop_timeout {
        value["stopTimeout"] = limit.as_secs().into();
    }
    json!([value])
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scaling {
    pub name: String,
    pub template: String,
    pub subnets: Vec<String>,
    /// Of the group and of its instance.
    pub tags: Vec<(&'static str, String)>,
}

/// A service of ECS with one task on Fargate, in the group of the bastion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The name of the ECS cluster.
    pub cluster: String,
    pub name: String,
    /// Of its task definition.
    pub family: String,
    pub subnets: Vec<String>,
}

impl Service {
    /// Returns where its tasks are, as ECS takes it, in this group.
    fn network(&self, group: Value) -> Value {
        json!({
            "awsvpcConfiguration": { "subnets": self.subnets, "securityGroups": [group], "assignPublicIp": "DISABLED" },
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Such as `ssmmessages`.
    pub service: &'static str,
    /// As EC2 names it.
    pub service_name: String,
    pub kind: EndpointKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointKind {
    /// With an address in each of these subnets, of which no two are in one zone.
    Interface { subnets: Vec<String> },
    /// A route in each of these tables.
    Gateway { tables: Vec<String> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub cluster: String,
    pub principal: String,
    /// The principal is the role that is made.
    pub is_made: bool,
    /// The access policy's ARN.
    pub policy: String,
    /// Empty for the whole cluster.
    pub namespaces: Vec<String>,
}

impl Piece {
    /// Returns what kind of thing it is, in words.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ServiceRole(_) => "role of the bastion",
            Self::InstanceProfile { .. } => "instance profile",
            Self::Group(_) => "security group",
            Self::Rule(_) => "security group rule",
            Self::Template(_) => "launch template",
            Self::Scaling(_) => "Auto Scaling group",
            Self::Endpoint(_) => "VPC endpoint",
            Self::ConnectEndpoint { .. } => "Instance Connect Endpoint",
            Self::EcsCluster { .. } => "ECS cluster",
            Self::TaskDefinition(_) => "task definition",
            Self::Service(_) => "ECS service",
            Self::UserRole { .. } => "role",
            Self::Policy { .. } => "policy",
            Self::Entry(_) => "access entry",
        }
    }
}

impl Piece {
    /// Returns what it is called, if it has a name.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::ServiceRole(role) => Some(&role.name),
            Self::InstanceProfile { name, .. } | Self::EcsCluster { name } | Self::UserRole { name } => Some(name),
            Self::Group(group) => Some(&group.name),
            Self::Template(template) => Some(&template.name),
            Self::Scaling(scaling) => Some(&scaling.name),
            Self::Endpoint(endpoint) => Some(&endpoint.service_name),
            Self::TaskDefinition(definition) => Some(&definition.family),
            Self::Service(service) => Some(&service.name),
            Self::Policy { role, .. } => Some(role),
            Self::Entry(entry) => Some(&entry.principal),
            Self::Rule(_) | Self::ConnectEndpoint { .. } => None,
        }
    }

    /// Tells whether IAM has it.
    fn is_of_iam(&self) -> bool {
        match self {
            Self::ServiceRole(_) | Self::InstanceProfile { .. } | Self::UserRole { .. } | Self::Policy { .. } => true,
            Self::Group(_)
            | Self::Rule(_)
            | Self::Template(_)
            | Self::Scaling(_)
            | Self::Endpoint(_)
            | Self::ConnectEndpoint { .. }
            | Self::EcsCluster { .. }
            | Self::TaskDefinition(_)
            | Self::Service(_)
            | Self::Entry(_) => false,
        }
    }
}

impl Plan {
    /// Returns the item of a name.
    fn item(&self, id: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.id == id)
    }

    /// Returns the name that a role has in documents, if it is made.
    fn id_of_role(&self, role: &str) -> Option<&str> {
        let is_it = |item: &&Item| match &item.piece {
            Piece::ServiceRole(made) => made.name == role,
            Piece::UserRole { name } => name == role,
            Piece::InstanceProfile { .. }
            | Piece::Group(_)
            | Piece::Rule(_)
            | Piece::Template(_)
            | Piece::Scaling(_)
            | Piece::Endpoint(_)
            | Piece::ConnectEndpoint { .. }
            | Piece::EcsCluster { .. }
            | Piece::TaskDefinition(_)
            | Piece::Service(_)
            | Piece::Policy { .. }
            | Piece::Entry(_) => false,
        };
        self.items.iter().find(is_it).map(|item| item.id.as_str())
    }

    /// Returns what has to be there before a task starts: without a way to its image it fails, and its service is given up.
    fn ways(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| matches!(item.piece, Piece::Endpoint(_) | Piece::Rule(_)))
    }

    /// Returns what a group that is made is called.
    fn group_name(&self, of: GroupOf) -> &str {
        match self.item(of.id()).map(|item| &item.piece) {
            Some(Piece::Group(group)) => &group.name,
            _ => "",
        }
    }

    /// Returns the document.
    #[must_use]
    pub fn document(&self, format: SetupFormat) -> String {
        match format {
            SetupFormat::Cloudformation => cloudformation::write(self),
            SetupFormat::Terraform => terraform::write(self),
            SetupFormat::Cli => commands::script(self),
        }
    }

    /// Returns the commands that make a piece, one a line.
    #[must_use]
    pub fn commands(&self, item: &Item) -> Vec<String> {
        commands::of(self, item)
    }

    /// Returns how a document is saved and deployed: one sentence with commands.
    #[must_use]
    pub fn how_to_deploy(&self, format: SetupFormat, document: &str) -> String {
        match format {
            SetupFormat::Cloudformation => {
                let bucket = if document.len() > MAX_TEMPLATE_LEN { " --s3-bucket BUCKET" } else { "" };
                command!(
                    "save it as `{}`, then `aws cloudformation deploy --region {} --stack-name {} --template-file {} --capabilities \
                     CAPABILITY_NAMED_IAM{}`",
                    TEMPLATE_FILE,
                    self.region,
                    self.name,
                    TEMPLATE_FILE,
                    Word::raw(bucket)
                )
            }
            SetupFormat::Terraform => {
                "save it as `autoheal-pa.tf` in a folder of its own, then `terraform init && terraform apply`"
                    .to_owned()
            }
            SetupFormat::Cli => "save it as `autoheal-pa.sh`, then `bash autoheal-pa.sh`".to_owned(),
        }
    }

    /// Returns the `up` that works when everything is there.
    #[must_use]
    pub fn up(&self) -> String {
        let mut up = command!("autoheal-pa up --region {} --bastion {}", self.region, self.bastion.to_string());
        for (option, value) in &self.options {
            up.push_str(&command!(" {} {}", *option, value));
        }
        for cluster in &self.clusters {
            up.push_str(&command!(" --cluster {}", cluster));
        }
        up.push_str(&command!(" --role-arn {}", self.principal.arn()));
        up
    }

    /// Returns the `setup --check` that looks for it.
    #[must_use]
    pub fn check(&self, order: &Order) -> String {
        let mut check = command!("autoheal-pa setup --check --region {}", self.region);
        for cluster in &self.clusters {
            check.push_str(&command!(" --cluster {}", cluster));
        }
        if self.kind != BastionKind::default() {
            check.push_str(&command!(" --bastion-kind {}", self.kind.as_str()));
        }
        if self.private {
            check.push_str(" --private");
        }
        for namespace in &order.namespaces {
            check.push_str(&command!(" --namespace {}", namespace));
        }
        if let Some(image) = &order.fargate_image {
            check.push_str(&command!(" --fargate-image {}", image));
        }
        if let Some(principal) = &order.principal {
            check.push_str(&command!(" --role-arn {}", principal.arn()));
        }
        check
    }

    /// Returns what the identity is granted: the same as `policy` prints for it.
    #[must_use]
    pub fn grant(&self) -> Grant {
        Grant {
            region: self.region.clone(),
            account: self.account.clone(),
            principal: Some(self.principal.clone()),
            bastions: vec![self.bastion.clone()],
            clusters: crate::iam::Clusters::Named(self.clusters.clone()),
            documents: Vec::new(),
            requests_access: false,
        }
    }

    /// Returns the policy of the identity.
    #[must_use]
    pub fn policy(&self) -> Document {
        list::policy(&self.grant())
    }
}

/// The file that a template is saved as.
const TEMPLATE_FILE: &str = "autoheal-pa.json";
