//! Which source of credentials is taken, of all that flags, variables and files offer, and which are passed over and why.
//!
//! Invariant: what the user names wins; else the order is that of the AWS CLI, which does not know the OIDC tokens of CI jobs:
//! these come last, since a job has one for other purposes as well. It is never a matter of trying what works.

use std::path::PathBuf;

use super::AwsSettings;

/// Where credentials come from, or those that a role is assumed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A web identity token in a file.
    TokenFile(PathBuf),
    /// The OIDC token of the CI job.
    CiJob,
    /// Keys in the environment.
    Keys,
    /// A profile that was named.
    Profile(String),
    /// Whatever the rest of the SDK's default chain finds: the default profile, the container's or the machine's credentials.
    Chain,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The role to assume; `None`: the source's own credentials will do.
    pub role: Option<String>,
    pub source: Source,
    /// What else there was.
    pub passed_over: Vec<PassedOver>,
}

/// A source that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    /// In words.
    pub source: String,
    /// Why, and what would take it.
    pub why: String,
}

impl std::fmt::Display for PassedOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.source, self.why)
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TokenFile(path) => write!(f, "web identity token `{}`", path.display()),
            Self::CiJob => f.write_str("OIDC token of the CI job"),
            Self::Keys => f.write_str("keys in the environment"),
            Self::Profile(name) => write!(f, "profile `{name}`"),
            Self::Chain => f.write_str("default credential chain"),
        }
    }
}

impl AwsSettings {
    /// Chooses the source. `profile_assumes_role`: the profile that is named assumes a role by itself, from another profile
    /// or source; such a profile comes before a web identity of the environment, as for the AWS CLI.
    #[must_use]
    pub fn choose(&self, profile_assumes_role: bool) -> Chosen {
        let profile = self.profile.clone().filter(|profile| !profile.is_empty());
        // A role and its token file that are in the environment alone: what EKS puts into every pod.
        let is_pair = self.web_identity_token_file.is_some() && !self.role_is_chosen;
        let gives_way = is_pair && (self.static_keys_in_environment || (profile_assumes_role && profile.is_some()));
        let role = self.role_arn.clone().filter(|_| !gives_way);
        let has_ci = self.ci_oidc.is_some() && role.is_some();
        let source = match (&self.web_identity_token_file, profile.clone()) {
            _ if has_ci && self.oidc.is_some() => Source::CiJob,
            (Some(path), _) if role.is_some() => Source::TokenFile(path.clone()),
            (_, Some(profile)) if self.profile_is_chosen => Source::Profile(profile),
            _ if self.static_keys_in_environment => Source::Keys,
            (_, Some(profile)) => Source::Profile(profile),
            (_, None) if has_ci => Source::CiJob,
            (_, None) => Source::Chain,
        };
        let passed_over = self.passed_over(&source, profile, has_ci);
        Chosen { role, source, passed_over }
    }

    fn passed_over(&self, taken: &Source, profile: Option<String>, has_ci: bool) -> Vec<PassedOver> {
        let reason = match taken {
            Source::TokenFile(_) => "a web identity token file comes first",
            Source::CiJob if self.oidc.is_some() => "`--oidc` was given",
            Source::CiJob => "the token of the CI job comes first",
            Source::Keys => "keys in the environment come first",
            Source::Profile(_) if self.profile_is_chosen => "a profile was named",
            Source::Profile(_) => "`AWS_PROFILE` names a profile",
            // Nothing else was there.
            Source::Chain => return Vec::new(),
        };
        let mut passed_over = Vec::new();
        let mut add = |is_there: bool, source: String, remedy: String| {
            if is_there {
                passed_over.push(PassedOver { source, why: format!("{reason}{remedy}") });
            }
        };
        let is = |source: &Source| taken == source;
        add(self.static_keys_in_environment && !is(&Source::Keys), Source::Keys.to_string(), String::new());
        if let Some(name) = profile.filter(|name| !is(&Source::Profile(name.clone()))) {
            let remedy = if matches!(taken, Source::TokenFile(_)) && self.role_is_chosen {
                String::new()
            } else {
                format!("; `--profile {name}` takes it")
            };
            add(true, Source::Profile(name).to_string(), remedy);
        }
        let has_token_file = self.token_file_in_environment && !matches!(taken, Source::TokenFile(_));
        if let Some(path) = self.web_identity_token_file.clone().filter(|_| is(&Source::CiJob)) {
            add(!has_token_file, Source::TokenFile(path).to_string(), String::new());
        }
        add(has_token_file, "web identity token of `AWS_WEB_IDENTITY_TOKEN_FILE`".to_owned(), String::new());
        let remedy = match taken {
            Source::Keys => "; without `AWS_ACCESS_KEY_ID` it is taken",
            Source::Profile(_) => "; without the profile it is taken",
            Source::TokenFile(_) | Source::CiJob | Source::Chain => "",
        };
        add(has_ci && !is(&Source::CiJob), Source::CiJob.to_string(), remedy.to_owned());
        add(self.in_container, "container credentials endpoint".to_owned(), String::new());
        passed_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        secret::Secret,
        settings::{CiOidc, CiSystem, Oidc, TokenFrom},
    };

    const ROLE: &str = "arn:aws:iam::123456789012:role/R";

    /// Settings in which everything is there that is named.
    fn settings(what: &[&str]) -> AwsSettings {
        let has = |word| what.contains(&word);
        AwsSettings {
            role_arn: (has("role") || has("pair")).then(|| ROLE.to_owned()),
            role_is_chosen: has("role"),
            web_identity_token_file: (has("file") || has("pair")).then(|| "/token".into()),
            token_file_in_environment: has("pair") || has("other file"),
            profile: (has("profile") || has("AWS_PROFILE")).then(|| "dev".to_owned()),
            profile_is_chosen: has("profile"),
            static_keys_in_environment: has("keys"),
            ci_oidc: has("ci").then(|| CiOidc {
                system: CiSystem::GitHub,
                from: TokenFrom::Endpoint { url: "http://x".into(), token: Secret::new("t".into()) },
            }),
            oidc: has("--oidc").then_some(Oidc::Of(CiSystem::GitHub)),
            in_container: has("container"),
            ..AwsSettings::default()
        }
    }

    /// What is taken, what for, and what is passed over.
    fn chosen(what: &[&str], profile_assumes_role: bool) -> (String, bool, Vec<String>) {
        let Chosen { role, source, passed_over } = settings(what).choose(profile_assumes_role);
        (source.to_string(), role.is_some(), passed_over.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_the_user_names_wins_over_the_token_of_the_ci_job() {
        for (what, taken) in [
            (&["role", "ci"][..], "OIDC token of the CI job"),
            (&["role", "ci", "container"], "OIDC token of the CI job"),
            (&["role", "ci", "profile"], "profile `dev`"),
            (&["role", "ci", "AWS_PROFILE"], "profile `dev`"),
            (&["role", "ci", "keys"], "keys in the environment"),
            (&["role", "ci", "keys", "profile"], "profile `dev`"),
            (&["role", "ci", "file", "keys", "profile"], "web identity token `/token`"),
            (&["role"], "default credential chain"),
            (&["role", "ci", "--oidc", "file", "keys", "profile"], "OIDC token of the CI job"),
        ] {
            let (source, has_role, _) = chosen(what, false);
            assert_eq!((source.as_str(), has_role), (taken, true), "{what:?}");
        }
        let passed_over = chosen(&["role", "ci", "--oidc", "file"], false).2;
        assert_eq!(passed_over, ["web identity token `/token`: `--oidc` was given"]);
        // Without a role that token is good for nothing.
        assert_eq!(chosen(&["ci", "keys"], false).2, Vec::<String>::new());
    }

    #[test]
    fn a_web_identity_of_the_environment_has_the_place_that_the_aws_cli_gives_it() {
        let token = "web identity token `/token`".to_owned();
        assert_eq!(chosen(&["pair"], false), (token.clone(), true, Vec::new()));
        assert_eq!(chosen(&["pair", "keys"], false).0, "keys in the environment");
        assert!(!chosen(&["pair", "keys"], false).1, "their own credentials are taken");
        // A profile that assumes a role comes before it, one with keys behind it.
        let (source, has_role, passed_over) = chosen(&["pair", "AWS_PROFILE"], true);
        assert_eq!((source.as_str(), has_role), ("profile `dev`", false));
        assert_eq!(passed_over, ["web identity token of `AWS_WEB_IDENTITY_TOKEN_FILE`: `AWS_PROFILE` names a profile"]);
        let (source, has_role, passed_over) = chosen(&["pair", "AWS_PROFILE"], false);
        assert_eq!((source, has_role), (token, true));
        assert_eq!(passed_over, ["profile `dev`: a web identity token file comes first; `--profile dev` takes it"]);
    }

    #[test]
    fn what_is_passed_over_is_named_with_what_would_take_it() {
        assert_eq!(
            chosen(&["role", "keys", "AWS_PROFILE", "other file", "ci", "container"], false).2,
            [
                "profile `dev`: keys in the environment come first; `--profile dev` takes it",
                "web identity token of `AWS_WEB_IDENTITY_TOKEN_FILE`: keys in the environment come first",
                "OIDC token of the CI job: keys in the environment come first; without `AWS_ACCESS_KEY_ID` it is taken",
                "container credentials endpoint: keys in the environment come first",
            ]
        );
        assert_eq!(
            chosen(&["role", "keys", "profile", "ci"], false).2,
            [
                "keys in the environment: a profile was named",
                "OIDC token of the CI job: a profile was named; without the profile it is taken",
            ]
        );
        assert_eq!(chosen(&["keys"], false).2, Vec::<String>::new());
    }
}
