//! What to do about errors of AWS.

use std::error::Error;

use super::{
    AwsError, ProfileFault, ProxyError,
    error::{Blame, Cause, ServiceAnswer, TokenOrigin},
};
use crate::util::{arn::Arn, peer_text::sentence, quote::command};

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
            "check `--profile` and `AWS_PROFILE`: a profile starts with its name in brackets in these files",
        ),
        AwsError::HalfKeys => one(Concern::Identity, "set both, or neither"),
        AwsError::Profile { name, fault } => {
            let (concern, hint) = profile(name, fault);
            (concern, vec![hint])
        }
        AwsError::ProfileFiles { .. } => {
            one(Concern::Settings, "mend the file, or name another with `AWS_CONFIG_FILE`")
        }
        AwsError::NoGateway { region, .. } => (
            Concern::Settings,
            vec![command!(
                "`--endpoint-ssmmessages` and `AWS_ENDPOINT_URL_SSMMESSAGES` name the host of a VPC endpoint, such as \
                 `https://vpce-0123456789abcdef0-abcdefgh.ssmmessages.{}.vpce.amazonaws.com`; it lists with `aws ec2 \
                 describe-vpc-endpoints --region {} --query 'VpcEndpoints[].DnsEntries[].DnsName'`",
                region,
                region
            )],
        ),
        AwsError::CaBundle { .. } => {
            one(Concern::Settings, "`--ca-bundle` and `AWS_CA_BUNDLE` name a file with certificates in PEM")
        }
        AwsError::NoCredentials { attempted } => {
            tracing::debug!(attempted, "no source of credentials has any");
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
            "check `--web-identity-token-file` and `AWS_WEB_IDENTITY_TOKEN_FILE`, and who writes that file",
        ),
        AwsError::TokenEndpoint { .. } => {
            one(Concern::Identity, "the job needs `permissions: id-token: write`, and network access to its CI system")
        }
        AwsError::TokenMalformed { .. } => {
            one(Concern::Identity, "the token has to be a JSON Web Token: three parts with dots between them")
        }
        AwsError::TokenExpired { origin, .. } => match origin {
            TokenOrigin::File(path) => (
                Concern::Identity,
                vec![format!("whoever writes `{}` has to renew it; it is read again at each renewal", path.display())],
            ),
            TokenOrigin::CiJob => {
                one(Concern::Identity, "check the clock of this machine: the token was made a moment ago")
            }
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
        AwsError::RoleDenied { role, passed_over, .. } => {
            let trust = command!(
                "the role has to exist and its trust policy has to match this identity: `aws iam get-role --role-name {} --query \
                 Role.AssumeRolePolicyDocument`",
                role_name(role)
            );
            let others = passed_over.iter().map(|other| format!("passed over {other}"));
            (Concern::Identity, [trust].into_iter().chain(others).collect())
        }
        AwsError::DurationTooLong { role, seconds, .. } => (
            Concern::Identity,
            vec![
                "ask for less with `--duration 1h`, which is also all that a role gets that is assumed by another role"
                    .to_owned(),
                command!(
                    "or allow the role more: `aws iam update-role --role-name {} --max-session-duration {}`",
                    role_name(role),
                    seconds
                ),
            ],
        ),
        AwsError::NotRenewed { .. } => one(
            Concern::Identity,
            "start again with new ones, or with a source that can be renewed: `--role-arn ARN --web-identity-token-file PATH`, or \
             `--profile NAME` of a profile with `role_arn`, `sso_session` or `credential_process`",
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
        AwsError::Signing { .. } => {
            one(Concern::Identity, "look for stray characters in the keys, such as a line feed")
        }
        AwsError::BearerTokenTooLong { .. } => {
            one(Concern::Identity, "use fewer or shorter session tags, or a session policy by ARN")
        }
        AwsError::Refused { .. } => {
            one(Concern::Service, "the same would be answered again: what AWS says of it has to be mended first")
        }
        AwsError::Malformed { .. } => one(
            Concern::Service,
            "what has answered may not be AWS: look at `AWS_ENDPOINT_URL` and its like, and at the proxy",
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
const NOT_AWS: &str = "what has answered is not AWS: open any web page in a browser to see whether the network wants a \
    sign-in first, and look at the proxy, and at `AWS_ENDPOINT_URL` and its like";

/// What to do about a wrong clock.
pub(crate) const SET_CLOCK: &str = "set the clock of this machine, for instance with NTP: `timedatectl set-ntp true`";

const NEW_CREDENTIALS: &str =
    "get new ones: keys in the environment cannot be renewed, `--role-arn` with a token file or a profile can";

const MATCHING_KEYS: &str =
    "access key, secret key and session token have to be of one set and of this partition of AWS";

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
        ProfileFault::Line { .. } => usage("mend that line, or put a `#` before it"),
        ProfileFault::Value { .. } => usage("mend that line: a value stands behind `=` as it is, without quotes"),
        ProfileFault::NoSuchSection { key: "source_profile", name } => (
            Concern::Settings,
            command!("add it, as with `aws configure --profile {}`, or name another `source_profile`", name),
        ),
        ProfileFault::NoSuchSection { key: "sso_session", .. } => {
            usage("add it, as with `aws configure sso-session`, or name another `sso_session`")
        }
        ProfileFault::NoSuchSection { .. } => usage("add that section, or name another"),
        ProfileFault::Circle { .. } => usage("one of them has to have credentials of its own"),
        ProfileFault::Lacks {
            has: "sso_account_id" | "sso_role_name" | "sso_session" | "sso_start_url",
            profile,
            ..
        } => (Concern::Settings, command!("`aws configure sso --profile {}` asks for all of it", profile)),
        ProfileFault::Lacks { .. } => usage("add what is missing to that section"),
        ProfileFault::Contradiction { .. } => usage("leave one of them out"),
        ProfileFault::SessionDiffers { .. } => usage("leave the key out of the profile: that of the session counts"),
        ProfileFault::UnknownSource { .. } => usage("name one of them, in this spelling"),
        ProfileFault::NoKeysInEnvironment => (Concern::Identity, "set both, or name another source".to_owned()),
        ProfileFault::EmptySource { source_profile } => {
            (Concern::Identity, command!("give it some: `aws configure --profile {}`", source_profile))
        }
        ProfileFault::Login { profile } => (
            Concern::Identity,
            command!(
                "let the AWS CLI give the credentials: add a profile with `credential_process = aws configure \
                 export-credentials --profile {} --format process`, and use that one",
                profile
            ),
        ),
        ProfileFault::Mfa { .. } => (
            Concern::Identity,
            command!(
                "let the AWS CLI ask for the code: `eval \"$(aws configure export-credentials --profile {} --format env)\"`, \
                 then start this without the profile",
                name
            ),
        ),
        ProfileFault::SignedOut { profile, .. } => {
            (Concern::Identity, command!("sign in: `aws sso login --profile {}`", profile))
        }
        ProfileFault::Process { .. } => (
            Concern::Identity,
            command!(
                "try the program by hand, or as the AWS CLI does: `aws configure export-credentials --profile {}`",
                name
            ),
        ),
        ProfileFault::TokenFile { .. } => {
            (Concern::Identity, "let whatever makes the token write it there, or name another profile".to_owned())
        }
        ProfileFault::NoCredentials { .. } => login(),
    }
}

/// What to do when an action is denied.
pub(crate) fn allow(action: &str, resource: &str) -> String {
    if resource.contains(":document/") || resource.starts_with("document/") {
        format!(
            "what is not allowed is the document, not the bastion: the policy has to allow `{action}` on `{resource}` in a \
             statement without conditions on instance tags"
        )
    } else {
        format!("the policy of this identity has to allow `{action}` on `{resource}`")
    }
}

/// What to do when a host cannot be reached.
pub(crate) fn network(host: &str, error: &(dyn Error + 'static)) -> Vec<String> {
    let proxy = find(error);
    if let Some(ProxyError::Asks { variable, .. } | ProxyError::Refuses { variable, .. }) = proxy {
        return vec![
            format!(
                "set `{variable}=http://USER:PASSWORD@HOST:PORT`, with percent-encoding for `@`, `:`, `/` and `%` in user name and \
                 password"
            ),
            "a proxy that takes only NTLM or Kerberos needs a helper on this machine that speaks it, such as `cntlm` or `px`, whose \
             address then goes into the variable"
                .to_owned(),
        ];
    }
    let text = sentence(error);
    // Words of rustls about certificates, and of hyper about proxies.
    let hint = if text.contains("UnknownIssuer") {
        format!(
            "this machine does not trust the certificate that `{host}` shows: install the certificate authorities of the system \
             (package `ca-certificates`), or name that of a proxy that opens TLS connections with `--ca-bundle`"
        )
    } else if text.contains("certificate expired") || text.contains("certificate not valid yet") {
        format!("set the clock of this machine if it is wrong; else whoever runs `{host}` has to renew its certificate")
    } else if text.contains("tunnel error") {
        format!(
            "the proxy that `HTTPS_PROXY` names has to be an HTTP proxy that answers and may connect to `{host}`; `NO_PROXY` names \
             hosts that need none"
        )
    } else {
        let port = if host.contains(':') { "" } else { " on port 443" };
        format!(
            "check that this machine may connect to `{host}`{port}; proxies are taken from `HTTPS_PROXY` and `NO_PROXY`, \
             additional certificate authorities from `--ca-bundle`"
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
