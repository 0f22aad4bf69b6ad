//! What to do about errors of AWS.

use std::error::Error;

use super::{
    AwsError, ProfileFault, ProxyError,
    error::{Blame, Cause, ServiceAnswer, TokenOrigin},
};
use crate::{
    fault::{Class, Fault},
    util::{arn::Arn, peer_text::sentence, quote::command},
};

/// What an error of AWS is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concern {
    /// Flags, variables or files of the user.
    Settings,
    /// Credentials, or what they allow.
    Identity,
    /// Something that does not exist.
    Missing,
    /// The service, or the way to it.
    Service,
}

/// Most names of clusters in a hint.
const MAX_NAMES: usize = 10;

impl Concern {
    /// Returns what an error means for a route that cannot go on for it.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::Settings => Class::Refused,
            Self::Identity => Class::Identity,
            Self::Missing => Class::Gone,
            Self::Service => Class::Transient,
        }
    }
}

/// Makes a fault of an error that keeps a route from being taken.
pub(crate) fn fault(error: AwsError) -> Fault {
    let (concern, hints) = assess(&error);
    let class = if matches!(error, AwsError::AccessDenied { .. }) {
        // Another bastion may need no such permission.
        Class::Denied
    } else if matches!(error, AwsError::Throttled { .. }) {
        Class::Throttled
    } else {
        concern.class()
    };
    Fault::new(class, error).with_hints(hints)
}

/// Finds what an error is about, and what to do about it.
pub(crate) fn assess(error: &AwsError) -> (Concern, Vec<String>) {
    let one = |concern, hint: &str| (concern, vec![hint.to_owned()]);
    match error {
        AwsError::NoRegion => {
            one(Concern::Settings, "add `--region us-east-1`, set `AWS_REGION`, or set a `region` in the profile")
        }
        AwsError::InvalidRegion { .. } => one(Concern::Settings, "regions look like `us-east-1`"),
        AwsError::UnknownProfile { .. } => one(
            Concern::Settings,
            "check `--profile` and `AWS_PROFILE`: in these files a profile starts with its name in brackets",
        ),
        AwsError::HalfKeys => one(Concern::Identity, "set both, or neither"),
        AwsError::Profile { name, fault } => {
            let (concern, hint) = profile(name, fault);
            (concern, vec![hint])
        }
        AwsError::ProfileFiles { .. } => {
            one(Concern::Settings, "fix the file, or set `AWS_CONFIG_FILE` to another one")
        }
        AwsError::NoGateway { region, .. } => (
            Concern::Settings,
            vec![command!(
                "set `--endpoint-ssmmessages` or `AWS_ENDPOINT_URL_SSMMESSAGES` to the host of a VPC endpoint, such as \
                 `https://vpce-0123456789abcdef0-abcdefgh.ssmmessages.{}.vpce.amazonaws.com`; list them with `aws ec2 \
                 describe-vpc-endpoints --region {} --query 'VpcEndpoints[].DnsEntries[].DnsName'`",
                region,
                region
            )],
        ),
        AwsError::CaBundle { .. } => {
            one(Concern::Settings, "set `--ca-bundle` or `AWS_CA_BUNDLE` to a file of PEM certificates")
        }
        AwsError::NoCredentials { attempted } => {
            tracing::debug!(attempted, "no source has credentials");
            (
                Concern::Identity,
                vec![
                    "add `--role-arn ARN --web-identity-token-file PATH` to use an OIDC token".to_owned(),
                    "add `--profile NAME` to use a profile, or set `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and \
                     `AWS_SESSION_TOKEN`"
                        .to_owned(),
                    "in GitHub Actions add `--role-arn ARN`, and `permissions: id-token: write` to the job".to_owned(),
                ],
            )
        }
        AwsError::CredentialSource { .. } => {
            one(Concern::Identity, "run with `-vv` to see which sources of credentials were tried")
        }
        AwsError::CredentialTimeout { .. } => one(
            Concern::Identity,
            "set `AWS_EC2_METADATA_DISABLED=true` if this machine has no instance metadata, and check the credential process of \
             the profile",
        ),
        AwsError::TokenFile { .. } => one(
            Concern::Identity,
            "check `--web-identity-token-file` and `AWS_WEB_IDENTITY_TOKEN_FILE`, and whatever writes that file",
        ),
        AwsError::ContainerToken { .. } => one(
            Concern::Identity,
            "in a pod, EKS Pod Identity mounts that file: the pod has to be newer than its association; elsewhere check \
             `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`",
        ),
        AwsError::TokenEndpoint { system, .. } => {
            (Concern::Identity, vec![format!("{}, and network access to its CI system", system.takes())])
        }
        AwsError::TokenMalformed { .. } => {
            one(Concern::Identity, "the token must be a JSON Web Token: three parts separated by dots")
        }
        AwsError::TokenExpired { origin, .. } => match origin {
            TokenOrigin::File(path) => (
                Concern::Identity,
                vec![format!(
                    "have whatever writes `{}` renew it; the file is read again at each renewal",
                    path.display()
                )],
            ),
            TokenOrigin::CiJob { renews: true, .. } => {
                one(Concern::Identity, "check this machine's clock: the token was issued a moment ago")
            }
            TokenOrigin::CiJob { renews: false, .. } => one(
                Concern::Identity,
                "the job has no other: open tunnels in a step that begins soon after the job does, or have the credentials last \
                 longer with `--duration`",
            ),
        },
        AwsError::InvalidIdentityToken { role, .. } => (
            Concern::Identity,
            vec![
                command!(
                    "account {} needs an IAM OIDC provider for the token's issuer, with the token's audience: \
                     `aws iam list-open-id-connect-providers`",
                    account(role)
                ),
                "the audience is usually `sts.amazonaws.com`".to_owned(),
            ],
        ),
        AwsError::RoleDenied { role, passed_over, source } => {
            let trust = command!(
                "the role must exist, and its trust policy must match this identity: check with `aws iam get-role \
                 --role-name {} --query Role.AssumeRolePolicyDocument`",
                role_name(role)
            );
            let others = passed_over.iter().map(|other| format!("passed over {other}"));
            let of_tags = source.to_string().contains("sts:TagSession").then(|| {
                "for `--tag` the role's trust policy and this identity's policy must allow `sts:TagSession`".to_owned()
            });
            (Concern::Identity, of_tags.into_iter().chain([trust]).chain(others).collect())
        }
        AwsError::TagsOfToken { .. } => one(
            Concern::Settings,
            "leave `--tag` out: whoever issues the token puts tags into its claim `https://aws.amazon.com/tags`",
        ),
        AwsError::DurationTooLong { role, seconds, .. } => (
            Concern::Identity,
            vec![
                "use a shorter `--duration`; `1h` is the longest for a role that is assumed by another role".to_owned(),
                command!(
                    "or raise the role's limit: `aws iam update-role --role-name {} --max-session-duration {}`",
                    role_name(role),
                    seconds
                ),
            ],
        ),
        AwsError::NotRenewed { .. } => one(
            Concern::Identity,
            "start again with new credentials, or use a source that can be renewed: `--role-arn ARN \
             --web-identity-token-file PATH`, or `--profile NAME` of a profile with `role_arn`, `sso_session` or \
             `credential_process`",
        ),
        AwsError::ExpiredCredentials { .. } => one(Concern::Identity, NEW_CREDENTIALS),
        AwsError::BadKeys { .. } => one(Concern::Identity, MATCHING_KEYS),
        AwsError::ClockSkew { .. } => one(Concern::Identity, SET_CLOCK),
        AwsError::AccessDenied { action, resource, .. } => (Concern::Identity, vec![allow(action, resource)]),
        AwsError::Throttled { .. } => one(Concern::Service, "try again in a minute"),
        AwsError::RegionDisabled { region, .. } => (
            Concern::Identity,
            vec![command!(
                "choose another `--region`, or enable this one: `aws account enable-region --region-name {}`",
                region
            )],
        ),
        AwsError::Unreachable { host, .. } => (Concern::Service, network(host, error)),
        AwsError::ClusterNotFound { region, known, .. } => (Concern::Missing, vec![clusters_there(region, known)]),
        AwsError::Signing { .. } => one(Concern::Identity, "check the keys for stray characters, such as a line break"),
        AwsError::BearerTokenTooLong { .. } => {
            one(Concern::Identity, "use fewer or shorter session tags, or give the session policy by its ARN")
        }
        AwsError::Refused { .. } => one(Concern::Service, "trying again will not help: fix what AWS reports first"),
        AwsError::Malformed { .. } => one(
            Concern::Service,
            "the answer may not come from AWS: check `AWS_ENDPOINT_URL` and similar variables, and the proxy",
        ),
        AwsError::Service { source, .. } if is_foreign(&**source) => one(Concern::Service, NOT_AWS),
        AwsError::Service { .. } => one(Concern::Service, "run with `-vv` to see the calls"),
    }
}

/// Tells whether something else has answered in place of AWS.
pub(crate) fn is_foreign(source: &(dyn Error + 'static)) -> bool {
    find::<ServiceAnswer>(source).is_some_and(ServiceAnswer::is_foreign)
}

/// What to do where something else answers in place of AWS.
const NOT_AWS: &str = "the answer does not come from AWS: open any web page in a browser to see whether the network wants \
                       you to sign in first, and check the proxy, `AWS_ENDPOINT_URL` and similar variables";

/// What to do about a wrong clock.
pub(crate) const SET_CLOCK: &str = "set this machine's clock, for example with NTP: `timedatectl set-ntp true`";

const NEW_CREDENTIALS: &str = "get new credentials: keys in the environment cannot be renewed, but a profile, or `--role-arn` with a token file, can";

const MATCHING_KEYS: &str = "access key, secret key and session token must belong together, and to this AWS partition";

/// What to do about a refusal that is known by its words.
pub(crate) fn of_blame(blame: Blame) -> Vec<String> {
    let hint = match blame {
        Blame::Clock => SET_CLOCK,
        Blame::Expired => NEW_CREDENTIALS,
        Blame::Keys => MATCHING_KEYS,
        Blame::Permission => return Vec::new(),
    };
    vec![hint.to_owned()]
}

/// What to do about a profile that cannot be used.
fn profile(name: &str, fault: &ProfileFault) -> (Concern, String) {
    let usage = |hint: &str| (Concern::Settings, hint.to_owned());
    let login = || (Concern::Identity, command!("give the profile credentials: `aws configure --profile {}`", name));
    match fault {
        ProfileFault::Line { .. } => usage("fix that line, or comment it out with `#`"),
        ProfileFault::Value { .. } => usage("fix that line: write the value after `=` as it is, without quotes"),
        ProfileFault::NoSuchSection { key: "source_profile", name } => (
            Concern::Settings,
            command!("add it, for example with `aws configure --profile {}`, or use another `source_profile`", name),
        ),
        ProfileFault::NoSuchSection { key: "sso_session", .. } => {
            usage("add it, for example with `aws configure sso-session`, or use another `sso_session`")
        }
        ProfileFault::NoSuchSection { .. } => usage("add that section, or use another"),
        ProfileFault::Circle { .. } => usage("give one of them credentials of its own"),
        ProfileFault::Lacks {
            has: "sso_account_id" | "sso_role_name" | "sso_session" | "sso_start_url",
            profile,
            ..
        } => (Concern::Settings, command!("run `aws configure sso --profile {}`, which asks for all of them", profile)),
        ProfileFault::Lacks { .. } => usage("add what is missing to that section"),
        ProfileFault::Contradiction { .. } => usage("leave one of them out"),
        ProfileFault::SessionDiffers { .. } => usage("remove the key from the profile: the session's is used"),
        ProfileFault::UnknownSource { .. } => usage("use one of these, spelled exactly like this"),
        ProfileFault::NoKeysInEnvironment => (Concern::Identity, "set both, or use another source".to_owned()),
        ProfileFault::EmptySource { source_profile } => {
            (Concern::Identity, command!("add them: `aws configure --profile {}`", source_profile))
        }
        ProfileFault::Login { profile } => (
            Concern::Identity,
            command!(
                "let the AWS CLI give the credentials: add a profile with `credential_process = aws configure \
                 export-credentials --profile {} --format process`, and use that one",
                profile
            ),
        ),
        ProfileFault::Mfa { asked: true, .. } => (
            Concern::Identity,
            "a code is good once: wait for the next one; else check `mfa_serial`, and who may assume the role"
                .to_owned(),
        ),
        ProfileFault::Mfa { .. } => (
            Concern::Identity,
            command!(
                "run it on a terminal, which is where it asks for the code, or let the AWS CLI ask: `eval \"$(aws configure export-credentials --profile {} --format \
                 env)\"`, then run this again without the profile",
                name
            ),
        ),
        ProfileFault::SignedOut { profile, .. } => {
            (Concern::Identity, command!("sign in: `autoheal-pa login --profile {}`", profile))
        }
        ProfileFault::NoSignIn { .. } => (
            Concern::Settings,
            command!("name another profile, or make one with `aws configure sso --profile {}`", name),
        ),
        ProfileFault::SignInDenied => {
            (Concern::Identity, "run it again, and allow the request in the browser".to_owned())
        }
        ProfileFault::SignInLate => {
            (Concern::Identity, "run it again, and open the page with any browser, on any machine".to_owned())
        }
        ProfileFault::SignInRefused { .. } => {
            usage("check `sso_start_url` and `sso_region`: the region is the one that IAM Identity Center is set up in")
        }
        ProfileFault::TokenNotKept { .. } => usage("the AWS CLI keeps it there as well: make that folder writable"),
        ProfileFault::Process { .. } => (
            Concern::Identity,
            command!(
                "run the program by hand, or as the AWS CLI does: `aws configure export-credentials --profile {}`",
                name
            ),
        ),
        ProfileFault::TokenFile { .. } => {
            (Concern::Identity, "have whatever issues the token write it there, or use another profile".to_owned())
        }
        ProfileFault::NoCredentials { .. } => login(),
    }
}

/// What to do when an action is denied.
pub(crate) fn allow(action: &str, resource: &str) -> String {
    if resource.contains(":document/") || resource.starts_with("document/") {
        format!(
            "it is the document that is not allowed, not the bastion: the IAM policy must allow `{action}` on \
             `{resource}` in a statement without conditions on instance tags"
        )
    } else {
        format!("this identity's IAM policy must allow `{action}` on `{resource}`")
    }
}

/// What to do when a host cannot be reached.
pub(crate) fn network(host: &str, error: &(dyn Error + 'static)) -> Vec<String> {
    let proxy = find(error);
    if let Some(ProxyError::Asks { variable, .. } | ProxyError::Refuses { variable, .. }) = proxy {
        return vec![
            format!(
                "set `{variable}=http://USER:PASSWORD@HOST:PORT`, percent-encoding `@`, `:`, `/` and `%` in the user name \
                 and password"
            ),
            "a proxy that accepts only NTLM or Kerberos needs a local helper that speaks it, such as `cntlm` or `px`: set \
             the variable to the helper's address"
                .to_owned(),
        ];
    }
    let text = sentence(error);
    // Words of rustls about certificates, and of hyper about proxies.
    let hint = if text.contains("UnknownIssuer") {
        format!(
            "this machine does not trust the certificate of `{host}`: install the system's certificate authorities \
             (package `ca-certificates`), or if a proxy intercepts TLS, give its authority with `--ca-bundle`"
        )
    } else if text.contains("certificate expired") || text.contains("certificate not valid yet") {
        format!("set this machine's clock if it is wrong; otherwise whoever runs `{host}` must renew its certificate")
    } else if text.contains("tunnel error") {
        format!(
            "check that the proxy in `HTTPS_PROXY` is an HTTP proxy, is up, and may connect to `{host}`; list hosts that \
             need no proxy in `NO_PROXY`"
        )
    } else {
        let port = if host.contains(':') { "" } else { " on port 443" };
        format!(
            "check that this machine can connect to `{host}`{port}; set a proxy with `HTTPS_PROXY` and `NO_PROXY`, and \
             extra certificate authorities with `--ca-bundle`"
        )
    };
    vec![hint]
}

fn clusters_there(region: &str, known: &[String]) -> String {
    if known.is_empty() {
        return command!("`autoheal-pa clusters --region {}` lists what is there", region);
    }
    let names: Vec<_> = known.iter().take(MAX_NAMES).map(|name| format!("`{name}`")).collect();
    let more = if known.len() > MAX_NAMES { format!(" and {} more", known.len() - MAX_NAMES) } else { String::new() };
    format!("{region} has {}{more}; names are case-sensitive", names.join(", "))
}

/// Returns the account in a role's ARN.
fn account(role: &str) -> &str {
    Arn::parse(role).map_or(role, |arn| arn.account)
}

/// Returns the name in a role's ARN, which is behind its path.
fn role_name(role: &str) -> &str {
    Arn::parse(role).map_or(role, |arn| arn.name())
}

/// Looks for an error of one type among an error and its sources. Where a source is shared, what is shared is looked at.
pub(crate) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let of_type = |error: &'a (dyn Error + 'static)| {
        error.downcast_ref().or_else(|| error.downcast_ref::<Cause>()?.downcast_ref())
    };
    super::error::chain(error).find_map(of_type)
}
