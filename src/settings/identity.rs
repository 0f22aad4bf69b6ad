//! Who this program is to AWS: from flags, variables and the file to one answer, and what it takes to give the
//! same answer elsewhere.
//!
//! The sources are those of all settings. What the SDK needs besides (keys, containers, metadata) is checked here and handed
//! over as [`SdkVariables`]; it reads no environment and no profile file by itself.
//! Whether any of it works is found out by `aws`; here it is only read.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use aws_smithy_types::date_time::{DateTime, Format};

use super::{
    AWS, AwsSettings, Environment, PROXY_VARIABLES, Problem, Proxies, Row, SdkVariables,
    ci::CiOidc,
    inputs::Takes,
    row::Table,
    source::{Given, Stack},
};

/// What means nothing without a role.
pub(super) fn need_role() -> impl Iterator<Item = &'static Row> {
    AwsSettings::rows().into_iter().filter(|row| row.needs_role)
}

/// What `token` has to be given to find the same identity from a shell without any of these variables.
///
/// Never holds keys, tokens or passwords: an identity that rests on those alone is given by the running
/// manager only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecIdentity {
    /// Arguments, each flag joined to its value.
    pub args: Vec<String>,
    /// Environment variables, name and value.
    pub env: Vec<(String, String)>,
}

/// Variables that are handed on as they are.
const PASSED: [&str; 15] = [
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_STS",
    "AWS_ENDPOINT_URL_SSO",
    "AWS_ENDPOINT_URL_SSO_OIDC",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_DIR",
];

/// Variables that a manager needs besides these, which does more than to give tokens.
const PASSED_TO_MANAGERS: [&str; 7] = [
    "AWS_ENDPOINT_URL_EC2",
    "AWS_ENDPOINT_URL_EC2_INSTANCE_CONNECT",
    "AWS_ENDPOINT_URL_ECS",
    "AWS_ENDPOINT_URL_EKS",
    "AWS_ENDPOINT_URL_SSM",
    "AWS_RETRY_MODE",
    "AWS_MAX_ATTEMPTS",
];

/// Variables that hold the path of a file.
const FILES: [&str; 4] =
    ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "SSL_CERT_FILE"];

/// Most tags of a session.
const MAX_TAGS: usize = 50;

impl AwsSettings {
    /// Reads the identity; adds what is wrong with it to `problems`.
    pub(super) fn load(stack: &Stack<'_>, environment: &Environment, problems: &mut Vec<Problem>) -> Self {
        let counts = Counts::new(stack, environment);
        let settings = Self::read(|row| counts.find(row), environment, problems);
        let role = counts.role.first();
        let token_file = counts.find(&AWS.web_identity_token_file).first();
        // That of the environment is checked with all variables.
        if let Some(given) = token_file.filter(|given| given.is_chosen())
            && let Err(wrong) = Takes::TokenFile.read(&given.text())
        {
            problems.push(Problem::wrong(&given.origin, &given.text(), wrong));
        }
        if role.is_none() {
            let useless = need_role().filter_map(|row| stack.near(row));
            problems.extend(useless.map(|given| Problem::NeedsRole { origin: given.origin.clone() }));
        }
        let ci_oidc = match &settings.oidc {
            None => CiOidc::found(environment, settings.oidc_audience.is_some()),
            Some(asked) => Some(CiOidc::asked(asked, environment, settings.oidc_audience.is_some())),
        };
        refuse_odd_tags(&settings, &counts, problems);
        let ssm_endpoint = ["AWS_ENDPOINT_URL_SSM", "AWS_ENDPOINT_URL"]
            .into_iter()
            .find_map(|name| environment.get(name))
            .filter(|_| !environment.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"))
            .map(ToOwned::to_owned);
        Self {
            profile_is_chosen: stack.one(&AWS.profile).is_some_and(Given::is_chosen),
            token_file_in_environment: environment.get("AWS_WEB_IDENTITY_TOKEN_FILE").is_some(),
            ci_oidc,
            in_container: ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]
                .iter()
                .any(|name| environment.get(name).is_some()),
            static_keys_in_environment: has_static_keys(environment),
            keys_expire: keys_expire(environment),
            role_is_chosen: role.is_some_and(|role| role.is_chosen() || token_file.is_some_and(Given::is_chosen)),
            proxies: Proxies::load(environment, problems),
            ssm_endpoint_override: ssm_endpoint.is_some(),
            ssm_endpoint,
            profile_files: profile_files(environment),
            root_certificates: environment.get("SSL_CERT_FILE").map(|path| environment.absolute(Path::new(path))),
            sdk_variables: sdk_variables(environment, problems),
            host_name: environment.host_name.clone(),
            user_name: ["USER", "LOGNAME"].into_iter().find_map(|name| environment.get(name)).map(ToOwned::to_owned),
            ..settings
        }
    }
}

/// Which of the values count.
struct Counts<'a> {
    stack: &'a Stack<'a>,
    role: &'a [Given],
    /// A role with its web identity that is only in the environment gives way to whatever is nearer to the user: keys, as in
    /// every AWS SDK, or a profile that a flag or an entry names.
    role_is_overruled: bool,
    /// A role is to be assumed from a profile that is named, so that a token file of the environment does not count.
    is_of_profile: bool,
    /// Endpoints of the environment do not count.
    ignores_endpoints: bool,
}

impl<'a> Counts<'a> {
    fn new(stack: &'a Stack<'a>, environment: &Environment) -> Self {
        let set = |row| !stack.environment.get(row).is_empty();
        let near = |row| stack.near(row).is_some();
        let token = set(&AWS.web_identity_token_file) || CiOidc::found(environment, false).is_some();
        let near_role = near(&AWS.role_arn) || near(&AWS.web_identity_token_file) || near(&AWS.oidc);
        let nearer = has_static_keys(environment) || near(&AWS.profile);
        let role_is_overruled = set(&AWS.role_arn) && token && !near_role && nearer;
        Self {
            stack,
            role: if role_is_overruled { stack.past_environment(&AWS.role_arn) } else { stack.all(&AWS.role_arn) },
            role_is_overruled,
            is_of_profile: near(&AWS.profile) && !near(&AWS.web_identity_token_file),
            ignores_endpoints: environment.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"),
        }
    }

    fn find(&self, row: &'static Row) -> &'a [Given] {
        let is = |other: &'static Row| std::ptr::eq(row, other);
        // `token` would not take it either. The SDK says so where it finds a token file in the environment and no role.
        if row.needs_role && self.role.is_empty() {
            return &[];
        }
        if is(&AWS.role_arn) {
            return self.role;
        }
        let is_token_file = is(&AWS.web_identity_token_file);
        let found = if is_token_file && self.role_is_overruled {
            self.stack.past_environment(row)
        } else {
            self.stack.all(row)
        };
        let must_be_chosen =
            (is_token_file && self.is_of_profile) || (is(&AWS.endpoint_ssmmessages) && self.ignores_endpoints);
        if must_be_chosen && !found.iter().all(Given::is_chosen) { &[] } else { found }
    }
}

impl ExecIdentity {
    /// Collects what leads to the same identity.
    pub(super) fn of(aws: &AwsSettings, environment: &Environment) -> Self {
        let token_file = aws.web_identity_token_file.as_deref().and_then(Path::to_str);
        // Which of the two comes first depends on the profile: it is chosen anew where they are handed on to.
        let as_variables =
            token_file.is_some() && !aws.role_is_chosen && aws.profile.is_some() && !aws.profile_is_chosen;
        // Each cluster has its region, and a token needs no sessions.
        let mut left_out = vec![&AWS.region, &AWS.endpoint_ssmmessages];
        if as_variables {
            left_out.extend([&AWS.profile, &AWS.role_arn, &AWS.web_identity_token_file]);
        }
        let wanted =
            aws.values().into_iter().filter(|(row, _)| !left_out.iter().any(|other| std::ptr::eq(*row, *other)));
        let args = wanted.flat_map(|(row, values)| values.into_iter().map(|value| format!("{}={value}", row.flag())));
        let args = args.collect();

        let mut env = Vec::new();
        let mut variable = |name: &str, value: Option<&str>| {
            env.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        };
        for name in PASSED {
            variable(name, passed(environment, name));
        }
        for name in PROXY_VARIABLES {
            variable(name, environment.get(name).filter(|value| !value.contains('@')));
        }
        for name in FILES {
            let path = environment.get(name).map(|value| environment.absolute(Path::new(value)));
            variable(name, path.as_deref().and_then(Path::to_str));
        }
        if as_variables {
            // Of its two names the one that wins over what the shell may have.
            variable("AWS_DEFAULT_PROFILE", aws.profile.as_deref());
            variable("AWS_ROLE_ARN", aws.role_arn.as_deref());
            variable("AWS_WEB_IDENTITY_TOKEN_FILE", token_file);
        }
        // The default session name is made of it, and the role's trust policy may look at that.
        if aws.role_arn.is_some() && aws.role_session_name.is_none() {
            variable("USER", aws.user_name.as_deref());
        }
        Self { args, env }
    }
}

/// Returns the value of a variable that is handed on, unless it is an address with a password.
fn passed<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
    environment.get(name).filter(|value| !value.contains("://") || !value.contains('@'))
}

/// Returns the variables that a manager needs besides those of its identity.
pub(super) fn of_managers(environment: &Environment) -> impl Iterator<Item = (&'static str, &str)> {
    PASSED_TO_MANAGERS.into_iter().filter_map(|name| Some((name, passed(environment, name)?)))
}

/// Refuses tags that STS would refuse together.
fn refuse_odd_tags(settings: &AwsSettings, counts: &Counts<'_>, problems: &mut Vec<Problem>) {
    let key = |tag: &str| tag.split_once('=').map_or(tag, |(key, _)| key).to_lowercase();
    let keys: Vec<_> = settings.tags.iter().map(|tag| key(tag)).collect();
    let mut refuse = |row: &'static Row, reason| {
        let origins = counts.find(row).first().map(|given| given.origin.clone());
        problems.extend(origins.map(|origin| Problem::Unusable { origin, reason }));
    };
    if keys.len() > MAX_TAGS {
        refuse(&AWS.tags, "is one of more than 50 tags");
    }
    if keys.iter().enumerate().any(|(at, key)| keys[..at].contains(key)) {
        refuse(&AWS.tags, "has a key that is there twice, as STS does not tell capitals from small letters");
    }
    if !settings.transitive_tags.iter().all(|tag| keys.contains(&key(tag))) {
        refuse(&AWS.transitive_tags, "is the key of none of the tags that are given");
    }
}

fn has_static_keys(environment: &Environment) -> bool {
    environment.get("AWS_ACCESS_KEY_ID").is_some()
}

/// Finds the files that profiles are in: that of settings, and that of keys.
fn profile_files(environment: &Environment) -> [Option<PathBuf>; 2] {
    let file = |variable, name| match (environment.get(variable), &environment.home) {
        (Some(path), _) => Some(environment.absolute(Path::new(path))),
        (None, home) => home.as_ref().map(|home| home.join(".aws").join(name)),
    };
    [file("AWS_CONFIG_FILE", "config"), file("AWS_SHARED_CREDENTIALS_FILE", "credentials")]
}

/// Collects what the SDK finds in its environment.
fn sdk_variables(environment: &Environment, problems: &mut Vec<Problem>) -> SdkVariables {
    let mut variables = SdkVariables::load(environment, problems);
    // By it the SDK finds the tokens of IAM Identity Center.
    if let Some(home) = environment.home.as_deref().and_then(Path::to_str) {
        variables.add("HOME", home);
    }
    // As botocore does, which reads the old name first.
    if let Some(token) = environment.get("AWS_SECURITY_TOKEN") {
        variables = variables.without(|name| name == "AWS_SESSION_TOKEN");
        variables.add("AWS_SESSION_TOKEN", token);
    }
    variables
}

/// Reads when the keys expire, as `aws configure export-credentials --format env` and others say it. It is only for
/// warnings, so what cannot be read is as good as nothing.
fn keys_expire(environment: &Environment) -> Option<SystemTime> {
    let text = environment.get("AWS_CREDENTIAL_EXPIRATION")?;
    DateTime::from_str(text, Format::DateTimeWithOffset).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests;
