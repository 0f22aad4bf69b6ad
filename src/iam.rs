//! The IAM policy that an identity needs, as values: who, where, through what and to which clusters in, a document out.
//!
//! Invariants:
//!
//! * Every action that this program calls is allowed on what it is called on, and nothing else is. The test
//!   `tests/it/policy.rs` reads the actions off the sources and evaluates the document with them.
//! * ARNs are of the partition that is given; nothing here takes `aws` for granted.
//!
//! Leaves out what the ways in take, which each [route](crate::route) says itself, where the values come from, and where
//! the text goes; [`access_entry_commands`] and [`terraform()`] write the same for a shell and for Terraform.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

pub use access_entry::{ACCESS_POLICY, access_entry_commands, access_policy_arn};
pub use excess::{Excess, HeldPolicy, Over, POWERS, Power, too_much};
pub use held::not_allowed;
pub use principal::Principal;
pub use terraform::terraform;

use crate::bastion::Bastion;

mod access_entry;
mod excess;
mod held;
mod principal;
mod terraform;

/// The name that the policy is given, and that its Terraform resources have with an underscore.
pub const POLICY_NAME: &str = "autoheal-pa";

/// The version of the language of policies.
const VERSION: &str = "2012-10-17";

/// What is to be allowed, and to whom.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The region of bastions and clusters, which tells the partition.
    pub region: String,
    /// The account of bastions and clusters, twelve digits.
    pub account: String,
    /// Whose policy it is; `None`: not known, so that it has to do for any.
    pub principal: Option<Principal>,
    /// Bastions that sessions may be started on.
    pub bastions: Vec<Bastion>,
    /// The clusters of EKS.
    pub clusters: Clusters,
    /// The session documents of the account that may be used, by name or pattern; empty: that of AWS, for any host and port.
    pub documents: Vec<String>,
    /// Access to bastions is requested, instead of having leave for sessions.
    pub requests_access: bool,
}

/// Which clusters of EKS an identity may look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clusters {
    /// All of the account and region.
    All,
    Named(Vec<String>),
    /// None: others are to be reached.
    None,
}

impl Clusters {
    /// Takes a list of names as settings have it: empty for all.
    #[must_use]
    pub fn of(names: Vec<String>) -> Self {
        if names.is_empty() { Self::All } else { Self::Named(names) }
    }
}

/// An IAM policy document, which serialises to the JSON that IAM takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Document {
    version: &'static str,
    statement: Vec<Statement>,
}

/// A role that a service of AWS acts as, which the ways in need and this program never makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRole {
    pub name: String,
    /// The service that may assume it, such as `ecs-tasks.amazonaws.com`.
    pub service: String,
    pub document: Document,
}

/// One statement of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Statement {
    sid: String,
    effect: &'static str,
    action: Vec<&'static str>,
    resource: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    condition: BTreeMap<&'static str, BTreeMap<String, Values>>,
}

/// Values of a condition, of which one has to match.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Values(Vec<String>);

impl Serialize for Values {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl Statement {
    /// Allows actions on resources.
    pub(crate) fn allow<const N: usize>(sid: &'static str, action: [&'static str; N], resource: Vec<String>) -> Self {
        Self { sid: sid.to_owned(), effect: "Allow", action: action.into(), resource, condition: BTreeMap::new() }
    }

    /// Whether it allows the same, whatever it is called.
    fn is_same(&self, other: &Self) -> bool {
        (&self.action, &self.resource, &self.condition) == (&other.action, &other.resource, &other.condition)
    }

    /// Adds a condition.
    pub(crate) fn when(mut self, operator: &'static str, key: impl Into<String>, value: impl Into<String>) -> Self {
        let values = self.condition.entry(operator).or_default().entry(key.into()).or_default();
        values.0.push(value.into());
        self
    }
}

impl Grant {
    /// Returns the partition.
    #[must_use]
    pub fn partition(&self) -> &'static str {
        partition(&self.region)
    }

    /// Returns the policy: what the clusters take, and what the routes do.
    #[must_use]
    pub fn document(&self, routes: Vec<Statement>) -> Document {
        let clusters = self.cluster_arns().map(|arns| {
            [
                Statement::allow("ListClusters", ["eks:ListClusters"], every()),
                Statement::allow("DescribeClusters", ["eks:DescribeCluster"], arns),
            ]
        });
        let clusters = clusters.into_iter().flatten();
        Self::document_of(clusters.chain(routes).collect())
    }

    /// Returns a policy of these statements alone, each of them once.
    #[must_use]
    pub(crate) fn document_of(statements: Vec<Statement>) -> Document {
        let mut statement: Vec<Statement> = Vec::new();
        // IAM takes no two with one name.
        for mut new in statements {
            let namesakes = statement.iter().filter(|known| known.sid.trim_end_matches(char::is_numeric) == new.sid);
            match namesakes.count() {
                _ if statement.iter().any(|known| known.is_same(&new)) => continue,
                0 => {}
                count => new.sid = format!("{}{}", new.sid, count + 1),
            }
            statement.push(new);
        }
        Document { version: VERSION, statement }
    }

    /// Returns the ARN of something of this account in this region.
    #[must_use]
    pub fn arn(&self, service: &str, resource: &str) -> String {
        format!("arn:{}:{service}:{}:{}:{resource}", self.partition(), self.region, self.account)
    }

    fn cluster_arns(&self) -> Option<Vec<String>> {
        let arn = |name: &str| self.arn("eks", &format!("cluster/{name}"));
        match &self.clusters {
            Clusters::All => Some(vec![arn("*")]),
            Clusters::Named(names) => Some(names.iter().map(|name| arn(name)).collect()),
            Clusters::None => None,
        }
    }
}

impl ServiceRole {
    /// Returns the trust policy.
    #[must_use]
    pub fn trust_policy(&self) -> Value {
        trust(json!({ "Service": self.service }))
    }

    /// Returns the trust policy as JSON on one line.
    #[must_use]
    pub fn trust(&self) -> String {
        self.trust_policy().to_string()
    }
}

impl Document {
    /// Returns the document as a value of JSON.
    #[must_use]
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("strings are always JSON")
    }

    /// Returns the document as JSON on one line.
    #[must_use]
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("strings are always JSON")
    }

    /// Returns the document as JSON, ready for IAM.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings are always JSON")
    }
}

/// Returns the trust policy of a role that is assumed by this principal.
#[must_use]
pub fn trust(principal: Value) -> Value {
    let statement = json!({ "Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole" });
    json!({ "Version": VERSION, "Statement": [statement] })
}

/// Returns the resource of actions that are on nothing in particular.
pub(crate) fn every() -> Vec<String> {
    vec!["*".to_owned()]
}

/// Returns the partition of a region.
#[must_use]
pub fn partition(region: &str) -> &'static str {
    match region.split('-').next().unwrap_or_default() {
        "cn" => "aws-cn",
        "eusc" => "aws-eusc",
        "us" if region.starts_with("us-gov-") => "aws-us-gov",
        "us" if region.starts_with("us-isob-") => "aws-iso-b",
        "us" if region.starts_with("us-isof-") => "aws-iso-f",
        "us" if region.starts_with("us-iso-") => "aws-iso",
        "eu" if region.starts_with("eu-isoe-") => "aws-iso-e",
        _ => "aws",
    }
}
