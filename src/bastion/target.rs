//! What Systems Manager connects to, as `StartSession` takes it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What Systems Manager connects to: the bastion.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// An EC2 instance, `i-` and 8 or 17 hexadecimal digits.
    Instance(String),
    /// A hybrid managed node, `mi-` and 17 hexadecimal digits.
    ManagedNode(String),
    /// A container of an ECS task: `ecs:<cluster>_<task id>_<container runtime id>`.
    EcsTask(String),
}

impl Target {
    /// What a text has to be to be one.
    pub const EXPECTED: &str = "a bastion id: expected an instance (`i-` and 8 or 17 hexadecimal digits), a managed node \
                                (`mi-` and 17), or an ECS container (`ecs:<cluster>_<task id>_<container runtime id>`)";

    /// Returns the target as `StartSession` takes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Instance(id) | Self::ManagedNode(id) | Self::EcsTask(id) => id,
        }
    }

    /// Returns the target that an ECS container is: the names are those of its ARNs.
    #[must_use]
    pub fn of_container(cluster: &str, task: &str, runtime_id: &str) -> Option<Self> {
        format!("ecs:{cluster}_{task}_{runtime_id}").parse().ok()
    }

    /// Returns the ECS cluster and the id of the task, if the target is one's container.
    #[must_use]
    pub fn ecs_task(&self) -> Option<(&str, &str)> {
        let Self::EcsTask(id) = self else { return None };
        // The cluster's name may itself hold underscores; the two ids never do.
        let mut parts = id.strip_prefix("ecs:")?.rsplitn(3, '_').skip(1);
        let task = parts.next()?;
        Some((parts.next()?, task))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.as_str().to_owned()
    }
}

impl TryFrom<String> for Target {
    type Error = TargetError;

    fn try_from(text: String) -> Result<Self, TargetError> {
        text.parse()
    }
}

/// A bastion id of none of the known forms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not {expected}", expected = Target::EXPECTED)]
pub struct TargetError(String);

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let hex = |digits: &str| digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if let Some(digits) = text.strip_prefix("mi-") {
            if digits.len() == 17 && hex(digits) {
                return Ok(Self::ManagedNode(text.to_owned()));
            }
        } else if let Some(digits) = text.strip_prefix("i-") {
            if matches!(digits.len(), 8 | 17) && hex(digits) {
                return Ok(Self::Instance(text.to_owned()));
            }
        } else if let Some(path) = text.strip_prefix("ecs:") {
            // The cluster's name may itself hold underscores; the two ids never do.
            let mut parts = path.rsplitn(3, '_');
            let word = |part: Option<&str>| {
                part.is_some_and(|p| {
                    !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                })
            };
            if word(parts.next()) && word(parts.next()) && word(parts.next()) && text.len() <= 400 {
                return Ok(Self::EcsTask(text.to_owned()));
            }
        }
        Err(TargetError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_kind_of_target() {
        assert_eq!("i-0abcdef1".parse(), Ok(Target::Instance("i-0abcdef1".into())));
        assert!("i-0dc03fbcae2a87472".parse::<Target>().is_ok());
        assert!(matches!("mi-0dc03fbcae2a87472".parse(), Ok(Target::ManagedNode(_))));
        assert!(matches!(
            "ecs:my_tools_0f9de17a6465404e8b1b2356dc13c2f8_0f9de17a6465404e8b1b2356dc13c2f8-1234".parse(),
            Ok(Target::EcsTask(_))
        ));
        let text = "ecs:tools_a_b";
        assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        assert_eq!(text.parse::<Target>().unwrap().ecs_task(), Some(("tools", "a")));
        assert_eq!("ecs:my_tools_a_b".parse::<Target>().unwrap().ecs_task(), Some(("my_tools", "a")));
        assert_eq!(Target::Instance("i-0abcdef1".into()).ecs_task(), None);
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "i-",
            "i-123",
            "i-0DC03FBCAE2A87472",
            "i-0dc03fbcae2a8747g",
            "mi-1",
            "bastion",
            "ecs:",
            "ecs:a_b",
            "ecs:a__b",
            " i-0abcdef1",
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("`{text}` is not a bastion id")), "{error}");
        }
    }
}
