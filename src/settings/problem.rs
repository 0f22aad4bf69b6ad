//! What may be wrong with the settings, in one sentence each.
//!
//! Values are shown as they were given, unless they may be secrets ([`shown`]).

use std::{borrow::Cow, collections::BTreeSet};

use super::{
    duration::DurationError,
    file::FileProblem,
    inputs::{self, Wrong, shown},
    source::{Origin, Place},
};

/// One thing that is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A value is not of the form that it must have.
    #[error("{origin}: `{value}` is not {expected}")]
    Malformed {
        origin: Origin,
        value: String,
        /// What is expected, with an article.
        expected: Cow<'static, str>,
    },
    /// A value cannot be used, whatever it was to be.
    #[error("{origin}: the value {reason}")]
    Unusable { origin: Origin, reason: &'static str },
    /// A value is not a duration.
    #[error("{origin}: `{value}` is not a duration")]
    Duration {
        origin: Origin,
        value: String,
        #[source]
        source: DurationError,
    },
    /// There is no bastion to connect through.
    #[error("no bastion is given: add `--bastion` or set `AUTOHEAL_PA_BASTION`")]
    NoBastion,
    /// An entry of the configuration file has no bastion.
    #[error("{entry}: the entry has no bastion: add `bastion` to it or to the top level")]
    NoBastionInEntry { entry: Place },
    /// A setting means nothing without a role.
    #[error("{origin} needs a role: {}", match origin {
        Origin::Flag(_) | Origin::Variable(_) => "add `--role-arn` or set `AWS_ROLE_ARN`",
        Origin::File(..) => "add `role_arn`",
    })]
    NeedsRole { origin: Origin },
    /// A flag would be for all entries, and one of them says something else.
    #[error(
        "{origin} and {entry} contradict each other, as there are {entries} entries of `access`: remove one of them"
    )]
    ForOneEntry {
        origin: Origin,
        entries: usize,
        /// The key of an entry that says something else.
        entry: Origin,
    },
    /// Two entries lead to the same clusters.
    #[error("{entry}: {what} would be reached twice: the entry on line {other} has the same region and identity")]
    Overlap {
        /// The second entry.
        entry: Place,
        /// What they have in common.
        what: String,
        /// The line of the first.
        other: usize,
    },
    /// Two entries import the same context.
    #[error(
        "{entry}: the context `{context}` would be imported twice, as by the entry on line {other}: name it in one entry alone"
    )]
    ContextTwice {
        /// The second entry.
        entry: Place,
        context: String,
        /// The line of the first.
        other: usize,
    },
    /// There are not enough ports.
    #[error("{origin}: {clusters} clusters need {clusters} ports, but from `{port}` to 65535 there is room for {left}")]
    BasePortTooHigh {
        origin: Origin,
        /// The first port.
        port: u16,
        /// How many ports are needed.
        clusters: usize,
        left: usize,
    },
    /// A command is about one access, and there are several.
    #[error(
        "the configuration file has {entries} entries of `access`, but this is for one: choose it with `--config /dev/null` and \
         `--region`"
    )]
    OneAccessOnly { entries: usize },
    /// `--github-env` is given outside of GitHub Actions.
    #[error("`--github-env` needs the variable `GITHUB_ENV`, which a step of a GitHub Actions job has")]
    NoGithubEnv,
    /// A variable's value cannot be read.
    #[error("the value of `{variable}` is not UTF-8")]
    NotUtf8 { variable: String },
    /// A variable names a proxy that cannot be used. Its value may hold a password.
    #[error("`{variable}` cannot be used: {reason}")]
    Proxy { variable: &'static str, reason: &'static str },
    /// The configuration file is not of the form that it must have.
    #[error(transparent)]
    File(#[from] FileProblem),
}

impl Problem {
    pub(super) fn malformed(origin: &Origin, value: &str, expected: impl Into<Cow<'static, str>>) -> Self {
        Self::Malformed { origin: origin.clone(), value: shown(value), expected: expected.into() }
    }

    /// Says what is wrong with a value of [`INPUTS`](super::INPUTS).
    pub(super) fn wrong(origin: &Origin, value: &str, wrong: Wrong) -> Self {
        match wrong {
            Wrong::Not(expected) => Self::malformed(origin, value, expected),
            Wrong::Is(reason) => Self::Unusable { origin: origin.clone(), reason },
        }
    }

    /// Where in the configuration file it is.
    pub(super) fn place(&self) -> Option<&Place> {
        match self {
            Self::Malformed { origin, .. }
            | Self::Unusable { origin, .. }
            | Self::Duration { origin, .. }
            | Self::NeedsRole { origin }
            | Self::BasePortTooHigh { origin, .. } => match origin {
                Origin::File(place, _) => Some(place),
                Origin::Flag(_) | Origin::Variable(_) => None,
            },
            Self::NoBastionInEntry { entry } | Self::Overlap { entry, .. } | Self::ContextTwice { entry, .. } => {
                Some(entry)
            }
            Self::File(problem) => problem.place(),
            Self::NoBastion
            | Self::ForOneEntry { .. }
            | Self::OneAccessOnly { .. }
            | Self::NoGithubEnv
            | Self::NotUtf8 { .. }
            | Self::Proxy { .. } => None,
        }
    }

    /// Tells whether it is about a variable that nothing needs but calls of AWS. Shells have many of those, for other programs.
    pub(super) fn is_of_calls(&self) -> bool {
        let is_of_others = |name: &str| inputs::is_aws(name) && !name.starts_with("AUTOHEAL_PA_");
        match self {
            Self::Proxy { .. } => true,
            Self::NotUtf8 { variable } => is_of_others(variable),
            Self::Malformed { origin, .. }
            | Self::Unusable { origin, .. }
            | Self::Duration { origin, .. }
            | Self::NeedsRole { origin } => matches!(origin, Origin::Variable(name) if is_of_others(name)),
            Self::NoBastion
            | Self::NoBastionInEntry { .. }
            | Self::ForOneEntry { .. }
            | Self::OneAccessOnly { .. }
            | Self::Overlap { .. }
            | Self::ContextTwice { .. }
            | Self::BasePortTooHigh { .. }
            | Self::NoGithubEnv
            | Self::File(_) => false,
        }
    }

    /// Says it in one line, with its source.
    fn line(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

/// Everything that is wrong with the settings; at least one problem.
#[derive(Debug)]
pub struct SettingsError {
    /// The problems, each once: those of flags and environment first, then those of the file in the order of their places.
    pub problems: Vec<Problem>,
}

impl SettingsError {
    pub(super) fn unless_empty(mut problems: Vec<Problem>) -> Result<(), Self> {
        problems.sort_by_key(|problem| problem.place().map(|place| (place.line, place.column)));
        // A value that several accesses share is wrong once.
        let mut said = BTreeSet::new();
        problems.retain(|problem| said.insert(problem.line()));
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }
}

impl From<FileProblem> for SettingsError {
    /// For a file that cannot be read at all: it may say anything about the rest.
    fn from(problem: FileProblem) -> Self {
        Self { problems: vec![problem.into()] }
    }
}

impl std::fmt::Display for SettingsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let [problem] = &self.problems[..] {
            return f.write_str(&problem.line());
        }
        write!(f, "there are {} problems with the settings", self.problems.len())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {}", problem.line()))
    }
}

impl std::error::Error for SettingsError {}
