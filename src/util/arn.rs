//! Amazon Resource Names: `arn:partition:service:region:account:resource`.

/// The parts of an ARN. None of them is checked but for being there; the region and the account may be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arn<'a> {
    /// The partition, such as `aws`.
    pub partition: &'a str,
    /// The service, such as `iam`.
    pub service: &'a str,
    /// The region; empty for global services.
    pub region: &'a str,
    /// The account id; empty for what is AWS's own.
    pub account: &'a str,
    /// What is named, as the service writes it: it may have colons and slashes.
    pub resource: &'a str,
}

impl<'a> Arn<'a> {
    /// Takes an ARN apart. `None`: it is none.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.strip_prefix("arn:")?.splitn(5, ':');
        let mut next = || parts.next();
        Some(Self { partition: next()?, service: next()?, region: next()?, account: next()?, resource: next()? })
    }

    /// Returns the name of the resource, without its kind and its path.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.resource.rsplit('/').next().unwrap_or(self.resource)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_arns_apart() {
        let role = Arn::parse("arn:aws-us-gov:iam::123456789012:role/team/ReadOnly").unwrap();
        assert_eq!(
            (role.partition, role.service, role.region, role.account),
            ("aws-us-gov", "iam", "", "123456789012")
        );
        assert_eq!((role.resource, role.name()), ("role/team/ReadOnly", "ReadOnly"));
        let log = Arn::parse("arn:aws:logs:eu-west-1:1:log-group:a:b").unwrap();
        assert_eq!((log.resource, log.name()), ("log-group:a:b", "log-group:a:b"));
        for text in ["", "arn", "arn:aws:iam::1", "urn:aws:iam::1:role/x", "ARN:aws:iam::1:role/x"] {
            assert_eq!(Arn::parse(text), None, "{text}");
        }
    }
}
