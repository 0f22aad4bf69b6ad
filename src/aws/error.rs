//! What goes wrong with AWS, by cause.
//!
//! Every error of the SDK passes `classify` once, on its way out of this module; nobody else looks at
//! codes. What a [`Refusal`] means to a call is said where the call is made (`identity` for roles, `session` for sessions).
//! Errors can be cloned, as all callers that wait for the same credentials get the same one.
//! Hints and exit codes are the command line's business.

use std::{error::Error, path::PathBuf, sync::Arc};

use aws_config::imds::client::error::ImdsError;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::operation::{
    assume_role::AssumeRoleError, assume_role_with_web_identity::AssumeRoleWithWebIdentityError,
};
use aws_smithy_runtime_api::client::{
    orchestrator::HttpResponse,
    result::{ConnectorError, SdkError},
};
use aws_smithy_types::error::metadata::{ErrorMetadata, ProvideErrorMetadata};

mod codes;
mod host;

use codes::Class;
pub(crate) use host::{HostSeen, place};

use super::profile::fault::ProfileFault;
use crate::{
    settings::{CiSystem, PassedOver, inputs::shown},
    util::peer_text::{PeerText, sentence},
};

/// The error behind an error, shared by everybody who is told of it.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Why something of AWS could not be had, by what can be done about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AwsError {
    /// Neither a flag, the environment nor the profile names a region.
    #[error("no AWS region is set")]
    NoRegion,
    /// The region is not a name that a region can have.
    #[error("`{}` is not an AWS region", shown(region))]
    InvalidRegion { region: String },
    /// The profile that was asked for is in none of the profile files.
    #[error("there is no AWS profile `{name}` in {}", join(files))]
    UnknownProfile {
        /// The profile's name.
        name: String,
        files: Vec<PathBuf>,
    },
    /// A profile file cannot be read or is not in the format of such files.
    #[error("the AWS profile files cannot be used")]
    ProfileFiles {
        /// What is wrong with them.
        #[source]
        source: Cause,
    },
    /// The profile is there, and cannot be used.
    #[error("the AWS profile `{name}` cannot be used")]
    Profile {
        /// The profile's name.
        name: String,
        #[source]
        fault: Arc<ProfileFault>,
    },
    /// The file of additional certificate authorities cannot be read, or holds no certificates.
    #[error("the CA bundle `{}` cannot be used", path.display())]
    CaBundle {
        path: PathBuf,
        #[source]
        source: Cause,
    },
    /// What was given as the message gateway is none of the region, or none that can be dialled.
    #[error("`{given}` is not the message gateway of {region}")]
    NoGateway {
        /// What was given, as far as it may be shown.
        given: String,
        region: String,
    },
    /// No source of credentials has any.
    #[error("no AWS credentials were found")]
    NoCredentials {
        /// The sources that were tried, in the SDK's words; one line.
        attempted: String,
    },
    /// One of two keys in the environment is there. The AWS CLI refuses that as well, whatever other sources there are.
    #[error("`AWS_ACCESS_KEY_ID` is set, but `AWS_SECRET_ACCESS_KEY` is not")]
    HalfKeys,
    /// A source of credentials is there, but does not give any.
    #[error("AWS credentials could not be loaded")]
    CredentialSource {
        #[source]
        source: Cause,
    },
    /// The credentials took too long to load.
    #[error("loading AWS credentials took longer than {seconds} s")]
    CredentialTimeout {
        /// The limit, in seconds.
        seconds: u64,
    },
    /// The web identity token file cannot be read.
    #[error("the web identity token file `{}` cannot be read", path.display())]
    TokenFile {
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: Cause,
    },
    /// The file that `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE` names cannot be read.
    #[error("the token file of this container, `{}`, cannot be read", path.display())]
    ContainerToken {
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: Cause,
    },
    /// The CI system gave no OIDC token.
    #[error("{system} gave no OIDC token")]
    TokenEndpoint {
        system: CiSystem,
        /// What went wrong.
        #[source]
        source: Cause,
    },
    /// What is there is not a JSON Web Token.
    #[error("{origin} is not a JSON Web Token: {reason}")]
    TokenMalformed {
        /// Where the token comes from.
        origin: TokenOrigin,
        reason: &'static str,
    },
    /// The web identity token is no longer valid.
    #[error("{origin} has expired")]
    TokenExpired {
        /// Where the token comes from.
        origin: TokenOrigin,
        /// What tells so: the token itself, or the answer of STS.
        #[source]
        source: Cause,
    },
    /// STS does not take the token: no identity provider for its issuer, another audience, or a bad signature.
    #[error("STS does not accept {origin} for `{role}`")]
    InvalidIdentityToken {
        /// Where the token comes from.
        origin: TokenOrigin,
        role: String,
        /// What STS answered.
        #[source]
        source: Cause,
    },
    /// The role may not be assumed: its trust policy does not match, or it does not exist.
    #[error("not authorized to assume `{role}`")]
    RoleDenied {
        role: String,
        /// What else it might have been assumed with.
        passed_over: Vec<PassedOver>,
        /// What STS answered.
        #[source]
        source: Cause,
    },
    /// Session tags were given for a role that is assumed with a web identity token.
    #[error("session tags cannot be given beside {origin}: they are a part of the token")]
    TagsOfToken {
        /// Where the token comes from.
        origin: TokenOrigin,
    },
    /// The role's sessions may not last as long as was asked for.
    #[error("`{role}` cannot be assumed for {seconds} s")]
    DurationTooLong {
        role: String,
        /// The duration that was asked for, in seconds.
        seconds: u64,
        /// What STS answered, with the limit.
        #[source]
        source: Cause,
    },
    /// The source gives the same credentials again, which are about to expire or have expired.
    #[error("got no newer AWS credentials from {origin}")]
    NotRenewed {
        /// The source, in words.
        origin: String,
    },
    /// A service has called the credentials expired.
    #[error("the AWS credentials have expired")]
    ExpiredCredentials {
        /// What the service answered.
        #[source]
        source: Cause,
    },
    /// The credentials are not known to AWS, or do not belong together.
    #[error("the AWS credentials are not valid")]
    BadKeys {
        /// What the service answered.
        #[source]
        source: Cause,
    },
    /// The clock of this machine is wrong by more than AWS tolerates.
    #[error("this machine's clock differs too much from AWS's")]
    ClockSkew {
        /// What the service answered.
        #[source]
        source: Cause,
    },
    /// The identity may not do this.
    #[error("not authorized to perform `{action}` on `{resource}`")]
    AccessDenied {
        /// The IAM action, as the service named it.
        action: String,
        /// The resource that the service named, or the one that was asked for.
        resource: String,
        /// What the service answered.
        #[source]
        source: Cause,
    },
    /// The service asks for fewer calls.
    #[error("the service throttles `{action}`")]
    Throttled {
        action: &'static str,
        /// What the service answered.
        #[source]
        source: Cause,
    },
    /// The region is not enabled in the account.
    #[error("region `{region}` is not enabled for this account")]
    RegionDisabled {
        region: String,
        /// What the service answered.
        #[source]
        source: Cause,
    },
    /// The endpoint could not be reached: name, route, proxy, TLS, or no answer in time.
    #[error("cannot reach `{host}`")]
    Unreachable {
        host: String,
        /// What went wrong.
        #[source]
        source: Cause,
    },
    /// There is no cluster of this name in the account and region.
    #[error("there is no cluster `{name}` in {region}")]
    ClusterNotFound {
        name: String,
        region: String,
        /// The clusters that are there, as far as they may be listed.
        known: Vec<String>,
    },
    /// A request could not be signed: the credentials hold characters that do not fit into it.
    #[error("the request cannot be signed with these AWS credentials")]
    Signing {
        /// What went wrong.
        #[source]
        source: Cause,
    },
    /// The bearer token would be refused by the API server for its length.
    #[error(
        "the bearer token would be {len} bytes long, more than the {MAX_BEARER_TOKEN_LEN} that API servers accept: the \
         session of the credentials carries too many tags"
    )]
    BearerTokenTooLong {
        /// Its length, in bytes.
        len: usize,
    },
    /// The service refuses the request itself: the same one would be answered the same again.
    #[error("`{action}` on `{resource}` was refused")]
    Refused {
        action: &'static str,
        resource: String,
        /// What it is about the request.
        refusal: Refusal,
        /// What the service answered.
        #[source]
        source: Cause,
    },
    /// What has come is no answer to the question: a value that no such value can be, or no end. It is not shown.
    #[error("the answer to `{action}` has no {wanted}")]
    Malformed {
        action: &'static str,
        /// What was to come.
        wanted: &'static str,
    },
    /// The service has trouble of its own, or what has answered is no service: later it may go well.
    #[error("`{action}` failed")]
    Service {
        action: &'static str,
        /// What the service answered.
        #[source]
        source: Cause,
    },
}

impl AwsError {
    /// Returns what the service answered, if it did: its words tell cases apart that share a code. They are reworded now and
    /// then, so that no more than their beginning is worth a look.
    #[must_use]
    pub fn answer(&self) -> Option<&ServiceAnswer> {
        super::advice::find(self)
    }

    /// Whether somebody has to sign in to IAM Identity Center.
    #[must_use]
    pub fn wants_sign_in(&self) -> bool {
        matches!(self, Self::Profile { fault, .. } if matches!(**fault, ProfileFault::SignedOut { .. }))
    }

    pub(crate) fn malformed(action: &'static str, wanted: &'static str) -> Self {
        Self::Malformed { action, wanted }
    }
}

/// Length over which API servers refuse a bearer token; `maxTokenLenBytes` of aws-iam-authenticator.
pub(crate) const MAX_BEARER_TOKEN_LEN: usize = 4096;

/// Where a web identity token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenOrigin {
    /// A file that somebody else keeps up to date.
    File(PathBuf),
    /// The CI system that runs this job.
    CiJob {
        /// What it is called.
        name: String,
        /// There is another at each renewal.
        renews: bool,
    },
}

impl std::fmt::Display for TokenOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "the web identity token in `{}`", path.display()),
            Self::CiJob { name, .. } => write!(f, "the {name}"),
        }
    }
}

/// What a service said: the end of an error's chain of sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAnswer {
    /// The error code, such as `AccessDeniedException`.
    pub code: Option<PeerText>,
    /// The message, in the service's words.
    pub message: Option<PeerText>,
    /// The HTTP status, if the answer is at hand.
    pub status: Option<u16>,
    /// The id by which AWS finds the request.
    pub request_id: Option<PeerText>,
}

impl ServiceAnswer {
    pub(crate) fn new(meta: &ErrorMetadata, status: Option<u16>) -> Self {
        Self {
            code: meta.code().map(PeerText::new),
            message: meta.message().filter(|message| !message.is_empty()).map(PeerText::new),
            status,
            request_id: meta.extra("aws_request_id").map(PeerText::new),
        }
    }

    /// Tells whether something else has answered in place of AWS, such as the sign-in page of a network: no error has a
    /// status below 400, and AWS numbers its answers.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        let says_nothing = self.code.is_none() && self.message.is_none() && self.request_id.is_none();
        says_nothing && self.status.is_some_and(|status| status < 400 || status == NETWORK_AUTHENTICATION_REQUIRED)
    }
}

/// The status that RFC 6585 has for networks that want a sign-in.
const NETWORK_AUTHENTICATION_REQUIRED: u16 = 511;

impl std::fmt::Display for ServiceAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.code, &self.message) {
            (Some(code), Some(message)) => write!(f, "{code}: {message}")?,
            (Some(text), None) | (None, Some(text)) => f.write_str(text)?,
            (None, None) if self.is_foreign() => f.write_str("an answer that no AWS service gives")?,
            (None, None) => f.write_str("an answer without an error code")?,
        }
        match (self.status, &self.request_id) {
            (Some(status), Some(id)) => write!(f, " (HTTP status {status}, request {id})"),
            (Some(status), None) => write!(f, " (HTTP status {status})"),
            (None, _) => Ok(()),
        }
    }
}

impl Error for ServiceAnswer {}

/// What it is that a service refuses about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Anything else about it: a value, a limit, something that is not switched on.
    Request,
    /// The target: no agent is connected there, or there is no such node.
    Target,
    /// The session document or one of its parameters.
    Document,
    /// What it names is not there.
    Absent,
    /// The ECS cluster that it names is not there.
    EcsCluster,
    /// The ECS service that it names is not there.
    EcsService,
    /// The web identity token that it carries.
    Token,
}

/// What a refusal is about that comes in words alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    Clock,
    Expired,
    /// The credentials, which are not known or do not belong together.
    Keys,
    /// What the identity may do.
    Permission,
}

/// Reads what a refusal is about; `None` if its words do not tell.
#[must_use]
pub fn blame(words: &str) -> Option<Blame> {
    match codes::class_of_text(words)? {
        Class::ClockSkew => Some(Blame::Clock),
        Class::Expired => Some(Blame::Expired),
        Class::BadSignature | Class::BadKeys => Some(Blame::Keys),
        Class::Denied => Some(Blame::Permission),
        Class::Throttled | Class::RegionDisabled | Class::Refused(_) | Class::Transient => None,
    }
}

/// The call that an error belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) action: &'static str,
    /// What it acts on, for when the service does not name it.
    pub(crate) resource: &'a str,
    pub(crate) region: &'a str,
    pub(crate) host: &'a HostSeen,
}

/// Finds the cause of a failed call.
pub(crate) fn classify<E>(call: Call<'_>, error: SdkError<E, HttpResponse>) -> AwsError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    // Credentials that cannot be had surface as failures of the call that needed them.
    if let Some(inner) = find::<AwsError>(&error) {
        return inner.clone();
    }
    #[expect(clippy::wildcard_enum_match_arm, reason = "the SDK may add variants; every other kind made no request")]
    match error {
        SdkError::ServiceError(context) => {
            let answer = ServiceAnswer::new(context.err().meta(), Some(context.raw().status().as_u16()));
            classify_answer(call.action, call.resource, call.region, answer)
        }
        SdkError::TimeoutError(_) => unreachable_host(call, error),
        SdkError::DispatchFailure(ref failure)
            if failure.is_io() || failure.is_timeout() || failure.as_other().is_some() =>
        {
            unreachable_host(call, error)
        }
        SdkError::ResponseError(ref context) => {
            let status = Some(context.raw().status().as_u16());
            let answer = ServiceAnswer { code: None, message: Some(sentence(&error).into()), status, request_id: None };
            classify_answer(call.action, call.resource, call.region, answer)
        }
        // No request was made: settings that the SDK found missing or in conflict.
        other => {
            if sentence(&other).contains("Missing Region") {
                return AwsError::NoRegion;
            }
            if let Some(source) = find::<CredentialsError>(&other) {
                if let CredentialsError::CredentialsNotLoaded(_) = source {
                    return AwsError::NoCredentials { attempted: source.source().map(attempted).unwrap_or_default() };
                }
                return AwsError::CredentialSource { source: cause(other) };
            }
            AwsError::Service { action: call.action, source: cause(other) }
        }
    }
}

fn unreachable_host<E>(call: Call<'_>, error: SdkError<E, HttpResponse>) -> AwsError
where
    E: Error + Send + Sync + 'static,
{
    AwsError::Unreachable { host: call.host.name(), source: cause(error) }
}

/// Strips the layers that say no more than that the SDK failed.
fn cause<E>(error: SdkError<E, HttpResponse>) -> Cause
where
    E: Error + Send + Sync + 'static,
{
    let source = match error.into_source() {
        Ok(source) => source,
        Err(error) => Box::new(error),
    };
    match source.downcast::<ConnectorError>() {
        Ok(error) => error.into_source().into(),
        Err(source) => source.into(),
    }
}

/// Finds the cause of an answer by its [class](codes::class).
fn classify_answer(action: &'static str, resource: &str, region: &str, answer: ServiceAnswer) -> AwsError {
    let message = answer.message.clone().unwrap_or_default();
    let class = codes::class(answer.code.as_deref(), answer.status);
    let source: Cause = Arc::new(answer);
    match class {
        Class::Denied => {
            let (named_action, named_resource) = denied(&message);
            AwsError::AccessDenied {
                action: named_action.unwrap_or(action).to_owned(),
                resource: named_resource.unwrap_or(resource).to_owned(),
                source,
            }
        }
        Class::Expired => AwsError::ExpiredCredentials { source },
        Class::ClockSkew => AwsError::ClockSkew { source },
        Class::BadSignature
            if ["Signature expired", "Signature not yet current"].iter().any(|text| message.contains(text)) =>
        {
            AwsError::ClockSkew { source }
        }
        Class::BadSignature | Class::BadKeys => AwsError::BadKeys { source },
        Class::Throttled => AwsError::Throttled { action, source },
        Class::RegionDisabled => AwsError::RegionDisabled { region: region.to_owned(), source },
        Class::Refused(refusal) => AwsError::Refused { action, resource: resource.to_owned(), refusal, source },
        Class::Transient => AwsError::Service { action, source },
    }
}

/// Finds the cause of credentials that the SDK's own providers cannot give.
pub(crate) fn classify_credentials(region: &str, error: CredentialsError) -> AwsError {
    if let Some(inner) = find::<AwsError>(&error) {
        return inner.clone();
    }
    if let CredentialsError::CredentialsNotLoaded(_) = error {
        return AwsError::NoCredentials { attempted: error.source().map(attempted).unwrap_or_default() };
    }
    // The last link of the chain: nothing else had any, and this machine is no instance or may not ask.
    if let Some(error) = find::<ImdsError>(&error) {
        return AwsError::NoCredentials { attempted: format!("instance metadata: {}", attempted(error)) };
    }
    // Profiles that assume roles make the SDK call STS by itself.
    let meta = find::<AssumeRoleError>(&error).map(|error| ("sts:AssumeRole", error.meta())).or_else(|| {
        find::<AssumeRoleWithWebIdentityError>(&error).map(|e| ("sts:AssumeRoleWithWebIdentity", e.meta()))
    });
    if let Some((action, meta)) = meta {
        let known = classify_answer(action, "the role of the profile", region, ServiceAnswer::new(meta, None));
        if !matches!(known, AwsError::Service { .. } | AwsError::Refused { .. }) {
            return known;
        }
    }
    AwsError::CredentialSource { source: Arc::new(error) }
}

/// Brings the SDK's list of what it tried onto one line.
fn attempted(error: &(dyn Error + 'static)) -> String {
    let texts: Vec<_> = chain(error).map(ToString::to_string).collect();
    let text = texts.join(": ");
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    lines.join("; ").replace("Attempted:; ", "Attempted: ")
}

/// Reads action and resource from the text of a denial.
fn denied(message: &str) -> (Option<&str>, Option<&str>) {
    let word_after = |mark: &str| {
        let rest = message.split_once(mark)?.1.trim_start();
        let word = rest.split_whitespace().next()?.trim_end_matches(['.', ',', ';']);
        (!word.is_empty()).then_some(word)
    };
    (word_after("not authorized to perform:"), word_after("on resource:"))
}

/// Looks for an error of one type among an error and its sources.
pub(crate) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    chain(error).find_map(|error| error.downcast_ref())
}

pub(crate) fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

fn join(files: &[PathBuf]) -> String {
    let names: Vec<_> = files.iter().map(|path| format!("`{}`", path.display())).collect();
    names.join(" or ")
}

#[cfg(test)]
mod tests;
