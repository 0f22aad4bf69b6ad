//! Who this program is to AWS: from flags, variables and the file to one answer, and what it takes to give the
//! same answer elsewhere.
//!
//! The sources are those of all settings. What the SDK needs besides (keys, containers, metadata) is checked here and handed
//! over as [`SdkVariables`]; it reads no environment and no profile file by itself.
//! Whether any of it works is found out by `aws`; here it is only read.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use aws_smithy_types::date_time::{DateTime, Format};

use super::{
    Environment, Problem, Proxies, SdkVariables,
    inputs::Takes,
    source::{self, Given, Setting, Stack},
    values::within,
};
use crate::secret::Secret;

/// How long STS lets a role's credentials last.
const ROLE_DURATIONS: RangeInclusive<Duration> = Duration::from_secs(900)..=Duration::from_secs(43_200);

/// What means nothing without a role.
pub(super) static NEED_ROLE: [&Setting; 3] =
    [&source::WEB_IDENTITY_TOKEN_FILE, &source::ROLE_SESSION_NAME, &source::DURATION];

/// All that `aws` is told.
#[derive(Debug, Clone, Default)]
pub struct AwsSettings {
    /// The region; `None`: the profile's.
    pub region: Option<String>,
    /// The profile; `None`: the SDK's default.
    pub profile: Option<String>,
    /// The profile was named for this program, by a flag or in its file, so that it wins over keys in the environment.
    pub profile_is_chosen: bool,
    /// The role to assume.
    pub role_arn: Option<String>,
    /// The name of the role's session, as the user wrote it.
    pub role_session_name: Option<String>,
    /// The file with the OIDC token to assume the role with; absolute.
    pub web_identity_token_file: Option<PathBuf>,
    /// The environment names a token file, whether it is used or not.
    pub token_file_in_environment: bool,
    /// Where a CI job gets its OIDC tokens.
    pub ci_oidc: Option<CiOidc>,
    /// The audience that the CI job's token is asked for; `None`: that of the partition.
    pub oidc_audience: Option<String>,
    /// The environment names the endpoint of a container's credentials.
    pub in_container: bool,
    /// There are access keys in the environment.
    pub static_keys_in_environment: bool,
    /// When these keys expire, if whoever set them has said so.
    pub keys_expire: Option<SystemTime>,
    /// The role or its token file was named for this program, not by the environment.
    pub role_is_chosen: bool,
    /// How long the role's credentials last, 900 s to 43200 s; `None`: STS's default of an hour.
    pub duration: Option<Duration>,
    /// PEM file with certificate authorities to trust besides the system's; absolute.
    pub ca_bundle: Option<PathBuf>,
    /// What calls and WebSockets go through.
    pub proxies: Proxies,
    /// An endpoint of our own choice stands in for Systems Manager, so its stream URLs may point at that host
    /// and at loopback.
    pub ssm_endpoint_override: bool,
    /// That endpoint.
    pub ssm_endpoint: Option<String>,
    /// Where the message gateway is: a URL or a host.
    pub ssmmessages_endpoint: Option<String>,
    /// The files that AWS profiles are in, those of the AWS CLI; `None` where there is no home directory to look in.
    pub profile_files: [Option<PathBuf>; 2],
    /// The file of the system's certificate authorities, if there is one in the environment.
    pub root_certificates: Option<PathBuf>,
    /// What the SDK finds in its environment.
    pub sdk_variables: SdkVariables,
    /// The name of this machine, for the default session name.
    pub host_name: Option<String>,
    /// The name of the user, for the default session name.
    pub user_name: Option<String>,
}

/// Where a GitHub Actions job with `id-token: write` gets its OIDC tokens.
#[derive(Debug, Clone)]
pub struct CiOidc {
    /// `ACTIONS_ID_TOKEN_REQUEST_URL`.
    pub url: String,
    /// `ACTIONS_ID_TOKEN_REQUEST_TOKEN`.
    pub token: Secret<String>,
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

/// Variables that hold the address of a proxy, perhaps with a password in it.
const PROXIES: [&str; 6] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// Variables that hold the path of a file.
const FILES: [&str; 4] =
    ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "SSL_CERT_FILE"];

impl AwsSettings {
    /// Reads the identity; adds what is wrong with it to `problems`.
    pub(super) fn load(stack: &Stack<'_>, environment: &Environment, problems: &mut Vec<Problem>) -> Self {
        let role = Role::load(stack, environment, problems);
        let region = stack.one(&source::REGION);
        if let Some(given) = region.filter(|given| !is_region(&given.text())) {
            problems.push(given.malformed("a region, such as `us-east-1`"));
        }
        let profile = stack.one(&source::PROFILE);
        if let Some(given) = profile.filter(|given| given.value.is_empty()) {
            problems.push(given.malformed("the name of a profile"));
        }
        let ssm_endpoint = ["AWS_ENDPOINT_URL_SSM", "AWS_ENDPOINT_URL"]
            .into_iter()
            .find_map(|name| environment.get(name))
            .filter(|_| !environment.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"))
            .map(ToOwned::to_owned);
        Self {
            region: region.map(|given| given.text().into_owned()),
            profile_is_chosen: profile.is_some_and(Given::is_chosen),
            profile: profile.map(|given| given.text().into_owned()),
            role_arn: role.arn,
            role_session_name: role.session_name,
            web_identity_token_file: role.token_file,
            token_file_in_environment: environment.get("AWS_WEB_IDENTITY_TOKEN_FILE").is_some(),
            ci_oidc: CiOidc::load(environment),
            oidc_audience: audience(stack, problems),
            in_container: ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]
                .iter()
                .any(|name| environment.get(name).is_some()),
            static_keys_in_environment: has_static_keys(environment),
            keys_expire: keys_expire(environment),
            role_is_chosen: role.is_chosen,
            duration: role.duration,
            ca_bundle: stack.one(&source::CA_BUNDLE).map(|given| given.path(environment)),
            proxies: Proxies::load(environment, problems),
            ssm_endpoint_override: ssm_endpoint.is_some(),
            ssm_endpoint,
            ssmmessages_endpoint: ssmmessages_endpoint(stack, environment),
            profile_files: profile_files(environment),
            root_certificates: environment.get("SSL_CERT_FILE").map(|path| environment.absolute(Path::new(path))),
            sdk_variables: sdk_variables(environment, problems),
            host_name: environment.host_name.clone(),
            user_name: ["USER", "LOGNAME"].into_iter().find_map(|name| environment.get(name)).map(ToOwned::to_owned),
        }
    }
}

impl CiOidc {
    fn load(environment: &Environment) -> Option<Self> {
        let url = environment.get("ACTIONS_ID_TOKEN_REQUEST_URL")?.to_owned();
        let token = Secret::new(environment.get("ACTIONS_ID_TOKEN_REQUEST_TOKEN")?.to_owned());
        Some(Self { url, token })
    }
}

/// The role to assume and what belongs to it.
#[derive(Default)]
struct Role {
    arn: Option<String>,
    session_name: Option<String>,
    token_file: Option<PathBuf>,
    duration: Option<Duration>,
    is_chosen: bool,
}

impl Role {
    fn load(stack: &Stack<'_>, environment: &Environment, problems: &mut Vec<Problem>) -> Self {
        // A role with its web identity that is only in the environment gives way to whatever is nearer to the
        // user: keys, as in every AWS SDK, or a profile that a flag or an entry names.
        let set = |setting| !stack.environment.get(setting).is_empty();
        let token = set(&source::WEB_IDENTITY_TOKEN_FILE) || CiOidc::load(environment).is_some();
        let near = |setting| stack.near(setting).is_some();
        let near_role = near(&source::ROLE_ARN) || near(&source::WEB_IDENTITY_TOKEN_FILE);
        let overruled =
            set(&source::ROLE_ARN) && token && !near_role && (has_static_keys(environment) || near(&source::PROFILE));
        let find = |setting| if overruled { stack.past_environment(setting) } else { stack.one(setting) };
        // Nor does a token file of the environment count where a role is to be assumed from a profile that is named.
        let is_of_profile = near(&source::PROFILE) && !near(&source::WEB_IDENTITY_TOKEN_FILE);

        let arn = find(&source::ROLE_ARN);
        if let Some(given) = arn.filter(|given| !is_role_arn(&given.text())) {
            problems.push(given.malformed("the ARN of a role, such as `arn:aws:iam::123456789012:role/ReadOnly`"));
        }
        // The SDK says so where it finds a token file in the environment and no role.
        let file = find(&source::WEB_IDENTITY_TOKEN_FILE).filter(|file| !is_of_profile || file.is_chosen());
        // That of the environment is checked with all variables.
        if let Some(given) = file.filter(|given| given.is_chosen())
            && let Err(wrong) = Takes::TokenFile.read(&given.text())
        {
            problems.push(Problem::wrong(&given.origin, &given.text(), wrong));
        }
        let expected = "between `15m` and `12h`, which is what STS allows";
        let duration = stack.one(&source::DURATION).and_then(|given| within(given, ROLE_DURATIONS, expected, problems));
        let session_name = stack.one(&source::ROLE_SESSION_NAME);
        if let Some(given) = session_name.filter(|given| given.text().trim().is_empty()) {
            problems.push(given.malformed("a name or an e-mail address"));
        }
        if arn.is_none() {
            let useless = NEED_ROLE.iter().filter_map(|setting| stack.near(setting));
            problems.extend(useless.map(|given| Problem::NeedsRole { origin: given.origin.clone() }));
        }
        // Nothing of all that means anything without a role, and `token` would not take it.
        let Some(arn) = arn else { return Self::default() };
        Self {
            arn: Some(arn.text().into_owned()),
            session_name: session_name.map(|given| given.text().trim().to_owned()),
            token_file: file.map(|given| given.path(environment)),
            duration,
            is_chosen: arn.is_chosen() || file.is_some_and(Given::is_chosen),
        }
    }
}

impl ExecIdentity {
    /// Collects what leads to the same identity.
    pub(super) fn of(aws: &AwsSettings, environment: &Environment) -> Self {
        let mut args = Vec::new();
        let mut option = |name: &str, value: Option<&str>| args.extend(value.map(|value| format!("--{name}={value}")));
        let token_file = aws.web_identity_token_file.as_deref().and_then(Path::to_str);
        // Which of the two comes first depends on the profile: it is chosen anew where they are handed on to.
        let as_variables =
            token_file.is_some() && !aws.role_is_chosen && aws.profile.is_some() && !aws.profile_is_chosen;
        if !as_variables {
            option("profile", aws.profile.as_deref());
            option("role-arn", aws.role_arn.as_deref());
        }
        option("role-session-name", aws.role_session_name.as_deref());
        if !as_variables {
            option("web-identity-token-file", token_file);
        }
        option("oidc-audience", aws.oidc_audience.as_deref());
        option("duration", aws.duration.map(|duration| format!("{}s", duration.as_secs())).as_deref());
        option("ca-bundle", aws.ca_bundle.as_deref().and_then(Path::to_str));

        let mut env = Vec::new();
        let mut variable = |name: &str, value: Option<&str>| {
            env.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        };
        for name in PASSED {
            variable(name, environment.get(name).filter(|value| !value.contains("://") || !value.contains('@')));
        }
        for name in PROXIES {
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

/// Reads the audience of the CI job's token.
fn audience(stack: &Stack<'_>, problems: &mut Vec<Problem>) -> Option<String> {
    let given = stack.one(&source::OIDC_AUDIENCE)?;
    let text = given.text().trim().to_owned();
    if text.is_empty() || text.len() > 255 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        problems.push(given.malformed("an audience, such as `sts.amazonaws.com`"));
    }
    Some(text)
}

fn has_static_keys(environment: &Environment) -> bool {
    environment.get("AWS_ACCESS_KEY_ID").is_some()
}

/// Finds where the message gateway is. One of the environment counts as little as the others there.
fn ssmmessages_endpoint(stack: &Stack<'_>, environment: &Environment) -> Option<String> {
    let ignored = environment.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
    let given = stack.one(&source::ENDPOINT_SSMMESSAGES)?;
    (given.is_chosen() || !ignored).then(|| given.text().into_owned())
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

fn is_region(text: &str) -> bool {
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.len() <= 32 && text.contains('-') && text.split('-').all(word)
}

fn is_role_arn(text: &str) -> bool {
    let mut parts = text.splitn(6, ':');
    let mut next = || parts.next().unwrap_or_default();
    let (arn, partition, service, region, account, resource) = (next(), next(), next(), next(), next(), next());
    arn == "arn"
        && !partition.is_empty()
        && partition.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
        && service == "iam"
        && region.is_empty()
        && account.len() == 12
        && account.bytes().all(|b| b.is_ascii_digit())
        && resource
            .strip_prefix("role/")
            .is_some_and(|name| !name.is_empty() && !name.ends_with('/') && name.bytes().all(|b| b.is_ascii_graphic()))
}

#[cfg(test)]
mod tests;
