//! Who this program is to AWS: from flags and variables to one answer, and what it takes to give the
//! same answer elsewhere.
//!
//! Flags win over variables. The SDK reads the rest (keys, profile files, containers, metadata) by itself.
//! Whether any of it works is found out by `aws`; here it is only read.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use aws_smithy_types::date_time::{DateTime, Format};

use super::{Environment, GlobalArgs, Problem, within};
use crate::secret::Secret;

/// How long STS lets a role's credentials last.
const ROLE_DURATIONS: RangeInclusive<Duration> = Duration::from_secs(900)..=Duration::from_secs(43_200);

/// All that `aws` is told. The SDK reads the rest of the environment and the profile files by itself.
#[derive(Debug, Clone, Default)]
pub struct AwsSettings {
    /// The region; `None`: the profile's.
    pub region: Option<String>,
    /// The profile; `None`: the SDK's default.
    pub profile: Option<String>,
    /// The profile was named by a flag, so that it wins over keys in the environment.
    pub profile_from_flags: bool,
    /// The role to assume.
    pub role_arn: Option<String>,
    /// The name of the role's session, as the user wrote it.
    pub role_session_name: Option<String>,
    /// The file with the OIDC token to assume the role with; absolute.
    pub web_identity_token_file: Option<PathBuf>,
    /// Where a CI job gets its OIDC tokens.
    pub ci_oidc: Option<CiOidc>,
    /// There are access keys in the environment.
    pub static_keys_in_environment: bool,
    /// When these keys expire, if whoever set them has said so.
    pub keys_expire: Option<SystemTime>,
    /// The role or its token file was named by a flag, not by the environment.
    pub role_from_flags: bool,
    /// How long the role's credentials last, 900 s to 43200 s; `None`: STS's default of an hour.
    pub duration: Option<Duration>,
    /// PEM file with certificate authorities to trust besides the system's; absolute.
    pub ca_bundle: Option<PathBuf>,
    /// An endpoint of our own choice stands in for Systems Manager, so its stream URLs may point at that host
    /// and at loopback.
    pub ssm_endpoint_override: bool,
    /// That endpoint.
    pub ssm_endpoint: Option<String>,
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
    /// Reads the identity from flags and environment; adds what is wrong with it to `problems`.
    pub(super) fn load(flags: &GlobalArgs, environment: &Environment, problems: &mut Vec<Problem>) -> Self {
        let role = Role::load(flags, environment, problems);
        let region = flags
            .region
            .as_deref()
            .map(|value| ("--region", value))
            .or_else(|| environment.get("AWS_REGION").map(|value| ("AWS_REGION", value)))
            .or_else(|| environment.get("AWS_DEFAULT_REGION").map(|value| ("AWS_DEFAULT_REGION", value)));
        if let Some((origin, value)) = region.filter(|(_, value)| !is_region(value)) {
            problems.push(Problem::malformed(origin, value, "a region, such as `us-east-1`"));
        }
        if flags.profile.as_deref() == Some("") {
            problems.push(Problem::malformed("--profile", "", "the name of a profile"));
        }
        let ssm_endpoint = ["AWS_ENDPOINT_URL_SSM", "AWS_ENDPOINT_URL"]
            .into_iter()
            .find_map(|name| environment.get(name))
            .filter(|_| !environment.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"))
            .map(ToOwned::to_owned);
        let ca_bundle = flags.ca_bundle.as_deref().or_else(|| environment.get("AWS_CA_BUNDLE").map(Path::new));
        Self {
            region: region.map(|(_, value)| value.to_owned()),
            profile_from_flags: flags.profile.is_some(),
            profile: flags.profile.clone().or_else(|| environment.get("AWS_PROFILE").map(ToOwned::to_owned)),
            role_arn: role.arn,
            role_session_name: role.session_name,
            web_identity_token_file: role.token_file,
            ci_oidc: CiOidc::load(environment),
            static_keys_in_environment: has_static_keys(environment),
            keys_expire: keys_expire(environment),
            role_from_flags: flags.role_arn.is_some() || flags.web_identity_token_file.is_some(),
            duration: role.duration,
            ca_bundle: ca_bundle.map(|path| environment.absolute(path)),
            ssm_endpoint_override: ssm_endpoint.is_some(),
            ssm_endpoint,
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
struct Role {
    arn: Option<String>,
    session_name: Option<String>,
    token_file: Option<PathBuf>,
    duration: Option<Duration>,
}

impl Role {
    fn load(flags: &GlobalArgs, environment: &Environment, problems: &mut Vec<Problem>) -> Self {
        let variable_arn = environment.get("AWS_ROLE_ARN");
        let variable_file = environment.get("AWS_WEB_IDENTITY_TOKEN_FILE");
        // A role with its web identity that is only in the environment gives way to whatever is nearer to the
        // user: keys, as in every AWS SDK, or a profile that a flag names.
        let pair = variable_arn.is_some() && (variable_file.is_some() || CiOidc::load(environment).is_some());
        let role_flags = flags.role_arn.is_some() || flags.web_identity_token_file.is_some();
        let overruled = pair && !role_flags && (has_static_keys(environment) || flags.profile.is_some());
        let variables = if overruled { (None, None) } else { (variable_arn, variable_file) };

        let arn = flags.role_arn.as_deref().map(|arn| ("--role-arn", arn));
        let arn = arn.or(variables.0.map(|arn| ("AWS_ROLE_ARN", arn)));
        if let Some((origin, arn)) = arn.filter(|(_, arn)| !is_role_arn(arn)) {
            let expected = "the ARN of a role, such as `arn:aws:iam::123456789012:role/ReadOnly`";
            problems.push(Problem::malformed(origin, arn, expected));
        }
        // The file means nothing without a role; the SDK says so where it finds only that in the environment.
        let file = flags.web_identity_token_file.as_deref();
        let file = file.or(variables.1.map(Path::new)).filter(|_| arn.is_some());
        let duration = flags.duration.as_deref().and_then(|text| {
            within("--duration", text, ROLE_DURATIONS, "between `15m` and `12h`, which is what STS allows", problems)
        });
        let session_name =
            flags.role_session_name.as_deref().or_else(|| environment.get("AWS_ROLE_SESSION_NAME")).map(str::trim);
        if session_name == Some("") {
            problems.push(Problem::malformed("--role-session-name", "", "a name or an e-mail address"));
        }
        if arn.is_none() {
            let given = [
                ("--web-identity-token-file", flags.web_identity_token_file.is_some()),
                ("--role-session-name", flags.role_session_name.is_some()),
                ("--duration", flags.duration.is_some()),
            ];
            problems.extend(given.iter().filter(|(_, given)| *given).map(|(option, _)| Problem::NeedsRole { option }));
        }
        Self {
            arn: arn.map(|(_, arn)| arn.to_owned()),
            session_name: session_name.map(ToOwned::to_owned),
            token_file: file.map(|file| environment.absolute(file)),
            duration,
        }
    }
}

impl ExecIdentity {
    /// Collects what leads to the same identity.
    pub(super) fn of(aws: &AwsSettings, environment: &Environment) -> Self {
        let mut args = Vec::new();
        let mut option = |name: &str, value: Option<&str>| args.extend(value.map(|value| format!("--{name}={value}")));
        option("profile", aws.profile.as_deref());
        option("role-arn", aws.role_arn.as_deref());
        option("role-session-name", aws.role_session_name.as_deref());
        option("web-identity-token-file", aws.web_identity_token_file.as_deref().and_then(Path::to_str));
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
        // The default session name is made of it, and the role's trust policy may look at that.
        if aws.role_arn.is_some() && aws.role_session_name.is_none() {
            variable("USER", aws.user_name.as_deref());
        }
        Self { args, env }
    }
}

fn has_static_keys(environment: &Environment) -> bool {
    environment.get("AWS_ACCESS_KEY_ID").is_some()
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
