//! What `--bastion` takes: the grammar of the ways in.
//!
//! Plain data, which settings read and status shows; [`list`](super::list) makes routes of it.

use std::{fmt, str::FromStr};

use crate::cluster::Target;

/// A way in as a user names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Bastion {
    /// A target of Systems Manager as it is.
    Target(Target),
}

impl Bastion {
    /// What a text has to be to be one.
    pub const EXPECTED: &str = Target::EXPECTED;

    /// Returns what Systems Manager connects to, if it is that.
    #[must_use]
    pub fn target(&self) -> Option<&Target> {
        match self {
            Self::Target(target) => Some(target),
        }
    }
}

impl fmt::Display for Bastion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(target) => target.fmt(f),
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
        text.parse().map(Self::Target).map_err(|_| BastionError(text.to_owned()))
    }
}
