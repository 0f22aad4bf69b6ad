//! Whose policy it is: a role or a user, from any ARN that names one.

use crate::util::arn::Arn;

/// An IAM identity that a policy can be put on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A role.
    Role {
        /// The ARN of the role itself, not of a session.
        arn: String,
        /// The ARN was made from that of a session, which does not tell the role's path.
        path_unknown: bool,
    },
    /// A user.
    User {
        /// The ARN.
        arn: String,
    },
}

impl Principal {
    /// Reads an ARN of a role, of a role's session, or of a user. `None` for all else, such as the root user.
    #[must_use]
    pub fn from_arn(arn: &str) -> Option<Self> {
        let Arn { partition, service, account, resource, .. } = Arn::parse(arn)?;
        match (service, resource.split_once('/')?) {
            ("iam", ("role", _)) => Some(Self::Role { arn: arn.to_owned(), path_unknown: false }),
            ("iam", ("user", _)) => Some(Self::User { arn: arn.to_owned() }),
            ("sts", ("assumed-role", session)) => {
                let role = session.split('/').next().filter(|role| !role.is_empty())?;
                let arn = format!("arn:{partition}:iam::{account}:role/{role}");
                Some(Self::Role { arn, path_unknown: true })
            }
            _ => None,
        }
    }

    /// Returns the ARN, as IAM and EKS know it.
    #[must_use]
    pub fn arn(&self) -> &str {
        match self {
            Self::Role { arn, .. } | Self::User { arn } => arn,
        }
    }

    /// Returns the account id.
    #[must_use]
    pub fn account(&self) -> &str {
        Arn::parse(self.arn()).map_or("", |arn| arn.account)
    }

    /// Returns the partition.
    #[must_use]
    pub fn partition(&self) -> &str {
        Arn::parse(self.arn()).map_or("", |arn| arn.partition)
    }

    /// Returns the name, without a path.
    #[must_use]
    pub fn name(&self) -> &str {
        Arn::parse(self.arn()).map_or("", |arn| arn.name())
    }

    /// Tells whether IAM Identity Center owns the role, so that its policies come from a permission set.
    #[must_use]
    pub fn is_of_identity_center(&self) -> bool {
        matches!(self, Self::Role { .. }) && self.name().starts_with("AWSReservedSSO_")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_kind_of_arn() {
        let role = Principal::from_arn("arn:aws-cn:iam::123456789012:role/team/a/ReadOnly").unwrap();
        assert_eq!((role.name(), role.account(), role.partition()), ("ReadOnly", "123456789012", "aws-cn"));
        assert!(matches!(role, Principal::Role { path_unknown: false, .. }));

        let session = Principal::from_arn("arn:aws:sts::123456789012:assumed-role/ReadOnly/ann@corp").unwrap();
        let arn = "arn:aws:iam::123456789012:role/ReadOnly".to_owned();
        assert_eq!(session, Principal::Role { arn, path_unknown: true });
        assert!(!session.is_of_identity_center());

        let sso = Principal::from_arn("arn:aws:sts::123456789012:assumed-role/AWSReservedSSO_Dev_0123456789abcdef/ann");
        assert!(sso.unwrap().is_of_identity_center());

        let user = Principal::from_arn("arn:aws:iam::123456789012:user/path/ann").unwrap();
        assert_eq!((user.name(), user.arn()), ("ann", "arn:aws:iam::123456789012:user/path/ann"));
        assert!(matches!(user, Principal::User { .. }));
    }

    #[test]
    fn knows_what_has_no_policy() {
        for arn in [
            "",
            "ann",
            "arn:aws:iam::123456789012:root",
            "arn:aws:sts::123456789012:federated-user/ann",
            "arn:aws:sts::123456789012:assumed-role/",
            "arn:aws:iam::123456789012:group/devs",
        ] {
            assert_eq!(Principal::from_arn(arn), None, "{arn}");
        }
    }
}
