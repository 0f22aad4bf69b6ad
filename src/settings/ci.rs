//! Where jobs of CI systems get OIDC tokens, which STS exchanges for credentials of a role.
//!
//! Invariant: without being asked to, only a token that the job's author has asked for is taken. Systems that give one to every
//! job, as CircleCI and Buildkite do, would otherwise take the place of what a job has used so far, such as its machine's role.
//!
//! Sources, besides what each row says: "About security hardening with OpenID Connect" of GitHub, "OpenID Connect (OIDC)
//! Authentication Using ID Tokens" of GitLab, "Using OpenID Connect tokens in jobs" of CircleCI, "buildkite-agent oidc" of
//! Buildkite, "Integrate Pipelines with resource servers using OIDC" of Bitbucket, "Oidctoken - Create" of Azure DevOps.

use std::{fmt, str::FromStr};

use super::Environment;
use crate::secret::Secret;

/// A CI system whose jobs can have OIDC tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CiSystem {
    GitHub,
    GitLab,
    CircleCi,
    Buildkite,
    Bitbucket,
    AzureDevOps,
    /// A variable was named.
    Other,
}

/// Where the token of the job is to come from, as the user says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Oidc {
    Of(CiSystem),
    /// The variable of this name has it.
    Variable(String),
}

/// Where a job gets its OIDC tokens.
#[derive(Debug, Clone)]
pub struct CiOidc {
    pub system: CiSystem,
    pub from: TokenFrom,
}

/// How a token is had.
#[derive(Debug, Clone)]
pub enum TokenFrom {
    /// An endpoint of the system gives one for each request that has this bearer token.
    Endpoint { url: String, token: Secret<String> },
    /// A variable has one for the whole job.
    Variable { name: String, token: Secret<String> },
    /// A program that the system provides in its jobs prints one.
    Program(&'static str),
    /// It was named, and is not to be had, for this reason. Whoever needs no credentials does not mind.
    Nowhere(String),
}

const SYSTEMS: [CiSystem; 6] = [
    CiSystem::GitHub,
    CiSystem::GitLab,
    CiSystem::CircleCi,
    CiSystem::Buildkite,
    CiSystem::Bitbucket,
    CiSystem::AzureDevOps,
];

impl CiSystem {
    /// What settings call it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GitHub => "github",
            Self::GitLab => "gitlab",
            Self::CircleCi => "circleci",
            Self::Buildkite => "buildkite",
            Self::Bitbucket => "bitbucket",
            Self::AzureDevOps => "azure-devops",
            Self::Other => "env",
        }
    }

    /// What it takes for a job to have a token.
    #[must_use]
    pub fn takes(self) -> &'static str {
        match self {
            Self::GitHub => "the job needs `permissions: id-token: write`",
            Self::GitLab => {
                "the job needs `id_tokens: {GITLAB_OIDC_TOKEN: {aud: sts.amazonaws.com}}`; for a variable of another name: `--oidc env:NAME`"
            }
            Self::CircleCi => "CircleCI sets `CIRCLE_OIDC_TOKEN_V2` in its jobs",
            Self::Buildkite => "Buildkite's agent has to be there, as `buildkite-agent`, in a job of its",
            Self::Bitbucket => "the step needs `oidc: true`",
            Self::AzureDevOps => {
                "the step needs `env: {SYSTEM_ACCESSTOKEN: $(System.AccessToken)}`, and Azure DevOps sets `SYSTEM_OIDCREQUESTURI`"
            }
            Self::Other => "set that variable to a JSON Web Token",
        }
    }
}

impl fmt::Display for CiSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GitHub => "GitHub Actions",
            Self::GitLab => "GitLab",
            Self::CircleCi => "CircleCI",
            Self::Buildkite => "Buildkite",
            Self::Bitbucket => "Bitbucket",
            Self::AzureDevOps => "Azure DevOps",
            Self::Other => "the CI system",
        })
    }
}

impl Oidc {
    /// What a text has to be to be one.
    pub const EXPECTED: &str = "`github`, `gitlab`, `circleci`, `buildkite`, `bitbucket`, `azure-devops`, or `env:` and the name of a variable";
}

impl fmt::Display for Oidc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(system) => f.write_str(system.as_str()),
            Self::Variable(name) => write!(f, "env:{name}"),
        }
    }
}

impl FromStr for Oidc {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(name) = text.strip_prefix("env:") {
            let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            return if is_name { Ok(Self::Variable(name.to_owned())) } else { Err(()) };
        }
        SYSTEMS.into_iter().find(|system| system.as_str() == text).map(Self::Of).ok_or(())
    }
}

pub(super) fn is_oidc(text: &str) -> bool {
    text.parse::<Oidc>().is_ok()
}

impl CiOidc {
    /// Finds what the job's author has asked for.
    pub(super) fn found(environment: &Environment, has_audience: bool) -> Option<Self> {
        let systems = [CiSystem::GitHub, CiSystem::GitLab, CiSystem::Bitbucket];
        let found = systems.into_iter().find_map(|system| Self::of(system, environment, false));
        found.map(|found| found.for_audience(has_audience))
    }

    /// Finds where the token is that was named; `has_audience`: it is to be for an audience that was named.
    pub(super) fn asked(asked: &Oidc, environment: &Environment, has_audience: bool) -> Self {
        let (system, found, missing) = match asked {
            Oidc::Of(system) => (
                *system,
                Self::of(*system, environment, has_audience),
                "this process is in no job that has one".to_owned(),
            ),
            Oidc::Variable(name) => {
                let system = CiSystem::Other;
                (system, variable(system, name, environment), format!("there is no variable `{name}`"))
            }
        };
        match found {
            Some(found) => found.for_audience(has_audience),
            None => Self { system, from: TokenFrom::Nowhere(missing) },
        }
    }

    /// Returns the same, unless it is to be for an audience and cannot.
    fn for_audience(self, has_audience: bool) -> Self {
        if !has_audience || self.takes_audience() {
            return self;
        }
        let reason = format!(
            "the audience of the {self} is not chosen here, so leave out `--oidc-audience`, and have the IAM OIDC provider take \
             the token's own"
        );
        Self { from: TokenFrom::Nowhere(reason), ..self }
    }

    fn of(system: CiSystem, environment: &Environment, has_audience: bool) -> Option<Self> {
        let endpoint = |url: &str, token: &str| {
            let url = environment.get(url)?.to_owned();
            let token = Secret::new(environment.get(token)?.to_owned());
            Some(Self { system, from: TokenFrom::Endpoint { url, token } })
        };
        let of_variable = |name: &str| variable(system, name, environment);
        let program = |name| Some(Self { system, from: TokenFrom::Program(name) });
        match system {
            CiSystem::GitHub => endpoint("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"),
            CiSystem::AzureDevOps => endpoint("SYSTEM_OIDCREQUESTURI", "SYSTEM_ACCESSTOKEN"),
            // A name that GitLab's pages use; each job names its variables itself.
            CiSystem::GitLab => of_variable("GITLAB_OIDC_TOKEN"),
            CiSystem::Bitbucket => of_variable("BITBUCKET_STEP_OIDC_TOKEN"),
            CiSystem::CircleCi if has_audience => {
                environment.get("CIRCLECI")?;
                program("circleci")
            }
            CiSystem::CircleCi => of_variable("CIRCLE_OIDC_TOKEN_V2").or_else(|| of_variable("CIRCLE_OIDC_TOKEN")),
            CiSystem::Buildkite => {
                environment.get("BUILDKITE_JOB_ID")?;
                program("buildkite-agent")
            }
            CiSystem::Other => None,
        }
    }

    /// Whether the token is for whom it is asked for.
    #[must_use]
    pub fn takes_audience(&self) -> bool {
        match self.from {
            TokenFrom::Program(_) => true,
            TokenFrom::Endpoint { .. } => self.system == CiSystem::GitHub,
            TokenFrom::Variable { .. } | TokenFrom::Nowhere(_) => false,
        }
    }

    /// Whether there is another token at each renewal.
    #[must_use]
    pub fn renews(&self) -> bool {
        !matches!(self.from, TokenFrom::Variable { .. })
    }
}

impl fmt::Display for CiOidc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.from, self.system) {
            (TokenFrom::Variable { name, .. }, _) => write!(f, "OIDC token in `{name}`"),
            (_, system) => write!(f, "OIDC token of {system}"),
        }
    }
}

fn variable(system: CiSystem, name: &str, environment: &Environment) -> Option<CiOidc> {
    let token = Secret::new(environment.get(name)?.to_owned());
    Some(CiOidc { system, from: TokenFrom::Variable { name: name.to_owned(), token } })
}
