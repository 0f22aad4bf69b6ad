//! What `--bastion` takes: the grammar of the ways in.
//!
//! Plain data, which settings read and status shows; [`list`](super::list) makes routes of it.

use std::{fmt, str::FromStr};

use super::direct;
use crate::cluster::Target;

/// A way in as a user names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Bastion {
    /// A target of Systems Manager as it is.
    Target(Target),
    /// None: straight to the endpoint.
    Direct,
}

impl Bastion {
    /// What a text has to be to be one.
    pub const EXPECTED: &str = "a bastion: expected an instance (`i-` and 8 or 17 hexadecimal digits), a managed node (`mi-` \
                                and 17), an ECS container (`ecs:<cluster>_<task id>_<container runtime id>`), or `direct`";

    /// Returns what Systems Manager connects to, if it is that.
    #[must_use]
    pub fn target(&self) -> Option<&Target> {
        match self {
            Self::Target(target) => Some(target),
            Self::Direct => None,
        }
    }
}

impl fmt::Display for Bastion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(target) => target.fmt(f),
            Self::Direct => f.write_str(direct::NAME),
        }
    }
}

/// A bastion of none of the known forms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not {expected}", expected = Bastion::EXPECTED)]
pub struct BastionError(String);

impl FromStr for Bastion {
    type Err = BastionError;

    fn from_str(text: &str) -> Result<Self, BastionError> {
        if text == direct::NAME {
            return Ok(Self::Direct);
        }
        text.parse().map(Self::Target).map_err(|_| BastionError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in ["i-0dc03fbcae2a87472", "mi-0dc03fbcae2a87472", "ecs:tools_a_b", "direct"] {
            assert_eq!(text.parse::<Bastion>().unwrap().to_string(), text);
        }
        for text in ["", "Direct", "direct ", "straight", "i-"] {
            let error = text.parse::<Bastion>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{text}` is not a bastion: expected an instance")), "{error}");
        }
    }
}
