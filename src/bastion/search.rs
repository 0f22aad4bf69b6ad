//! Targets that are looked for, since what carries them is replaced now and then.

use std::fmt;

/// Longest key of a tag, in characters (AWS General Reference, "Tagging your AWS resources").
const MAX_KEY_LEN: usize = 128;

/// Longest value of a tag, in characters.
const MAX_VALUE_LEN: usize = 256;

/// Longest name of an ECS cluster, service or container, in characters.
const MAX_NAME_LEN: usize = 255;

/// How targets are found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Search {
    /// Running containers of ECS: `ecs:<cluster>/<service or task>[/<container>]`, or the ARN of a service or task.
    Ecs(EcsSearch),
    /// Managed nodes with a tag: `tag:<key>=<value>`.
    Tag {
        /// 1 to 128 characters.
        key: String,
        /// Up to 256 characters.
        value: String,
    },
    /// Managed nodes with this value of the tag `Name`: `name:<value>`.
    Name(String),
    /// Instances of an Auto Scaling group: `asg:<group>`.
    Group(String),
    /// A bastion in the cluster's VPC: `auto`, and `auto:nodes` for worker nodes as well.
    Auto {
        /// Worker nodes will do.
        nodes: bool,
    },
}

/// A service or a task of ECS, and a container in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EcsSearch {
    /// The name of the ECS cluster.
    pub cluster: String,
    /// What runs there.
    pub what: EcsWhat,
    /// The container; `None`: the only one that can be used.
    pub container: Option<String>,
    /// Partition, region and account, if it was named by its ARN.
    pub of: Option<[String; 3]>,
}

/// What has the containers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EcsWhat {
    /// The running tasks of a service, by its name.
    Service(String),
    /// One task, by its id.
    Task(String),
}

impl EcsWhat {
    /// Returns the name of the service or the id of the task.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Service(name) | Self::Task(name) => name,
        }
    }
}

impl Search {
    /// Reads one of the forms.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let Some((kind, rest)) = text.split_once(':') else {
            return (text == "auto").then_some(Self::Auto { nodes: false });
        };
        match kind {
            "ecs" => ecs(rest).map(Self::Ecs),
            "arn" => arn(rest).map(Self::Ecs),
            "tag" => {
                let (key, value) = rest.split_once('=')?;
                (is_tag(key, 1, MAX_KEY_LEN) && is_tag(value, 0, MAX_VALUE_LEN))
                    .then(|| Self::Tag { key: key.to_owned(), value: value.to_owned() })
            }
            "name" => is_tag(rest, 1, MAX_VALUE_LEN).then(|| Self::Name(rest.to_owned())),
            "asg" => is_tag(rest, 1, MAX_VALUE_LEN).then(|| Self::Group(rest.to_owned())),
            "auto" => (rest == "nodes").then_some(Self::Auto { nodes: true }),
            _ => None,
        }
    }
}

impl fmt::Display for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ecs(search) => search.fmt(f),
            Self::Tag { key, value } => write!(f, "tag:{key}={value}"),
            Self::Name(value) => write!(f, "name:{value}"),
            Self::Group(name) => write!(f, "asg:{name}"),
            Self::Auto { nodes: false } => f.write_str("auto"),
            Self::Auto { nodes: true } => f.write_str("auto:nodes"),
        }
    }
}

impl fmt::Display for EcsSearch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, what, container, of } = self;
        if let Some([partition, region, account]) = of {
            let kind = match what {
                EcsWhat::Service(_) => "service",
                EcsWhat::Task(_) => "task",
            };
            return write!(f, "arn:{partition}:ecs:{region}:{account}:{kind}/{cluster}/{}", what.name());
        }
        write!(f, "ecs:{cluster}/{}", what.name())?;
        container.iter().try_for_each(|container| write!(f, "/{container}"))
    }
}

/// Reads `<cluster>/<service or task>[/<container>]`.
fn ecs(text: &str) -> Option<EcsSearch> {
    let parts: Vec<&str> = text.split('/').collect();
    let (cluster, name, container) = match parts[..] {
        [cluster, name] => (cluster, name, None),
        [cluster, name, container] => (cluster, name, Some(container)),
        _ => return None,
    };
    let are_names = [cluster, name].into_iter().chain(container).all(is_name);
    let what = if is_task_id(name) { EcsWhat::Task(name.to_owned()) } else { EcsWhat::Service(name.to_owned()) };
    are_names.then(|| EcsSearch {
        cluster: cluster.to_owned(),
        what,
        container: container.map(str::to_owned),
        of: None,
    })
}

/// Reads the ARN of a service or a task, behind `arn:`.
fn arn(text: &str) -> Option<EcsSearch> {
    let parts: Vec<&str> = text.split(':').collect();
    let [partition, "ecs", region, account, resource] = parts[..] else { return None };
    let parts: Vec<&str> = resource.split('/').collect();
    let [kind, cluster, name] = parts[..] else { return None };
    let what = match kind {
        "service" => EcsWhat::Service(name.to_owned()),
        "task" if is_task_id(name) => EcsWhat::Task(name.to_owned()),
        _ => return None,
    };
    let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    let is_right = is_account && [partition, region, cluster, name].into_iter().all(is_name);
    let of = Some([partition, region, account].map(str::to_owned));
    is_right.then(|| EcsSearch { cluster: cluster.to_owned(), what, container: None, of })
}

pub(super) fn is_name(text: &str) -> bool {
    let is_of_names = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=MAX_NAME_LEN).contains(&text.len()) && text.bytes().all(is_of_names)
}

/// 32 hexadecimal digits; in ARNs of the old format a UUID with its hyphens.
fn is_task_id(text: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let hyphens: Vec<usize> = text.match_indices('-').map(|(at, _)| at).collect();
    (text.len() == 32 && is_hex(text))
        || (text.len() == 36 && hyphens == [8, 13, 18, 23] && is_hex(&text.replace('-', "")))
}

/// Keys and values of tags have letters, digits, spaces and a few signs. A comma would end a bastion in a list of them.
fn is_tag(text: &str, least: usize, most: usize) -> bool {
    let is_of_tags = |char: char| char.is_alphanumeric() || " +-=._:/@".contains(char);
    (least..=most).contains(&text.chars().count()) && text.chars().all(is_of_tags)
}
