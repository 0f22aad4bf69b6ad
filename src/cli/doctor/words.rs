//! What findings mean, in words.
//!
//! Says of each check what was tried, what came back and what that means, in the terms of whoever set things up.
//! Nothing is guessed: where the wire does not tell two causes apart both are named.

use super::{
    excess,
    fixes::{Fixes, grant},
    names::Names,
    skipped::skipped,
};
use crate::{
    aws::{
        AwsError, SkipReason,
        advice::is_foreign,
        error::{Blame, blame},
    },
    doctor::{Check, Entry, Fact, Finding, Outcome, Place, Reason, Status, Trouble},
    route::ssm::proto::{CloseReason, Version, handshake::HandshakeError},
    route::{
        ProbeError,
        ssm::{DialError, SessionFault},
    },
    util::{
        peer_text::{PeerText, sentence, with_causes},
        quote::command,
        written::{in_words, rfc3339},
    },
};

/// Most names of clusters that are listed.
const MAX_NAMES: usize = 10;

/// Puts a finding into words.
#[must_use]
pub fn entry(finding: &Finding) -> Entry {
    let Finding { check, place, tried: step, outcome, took } = finding;
    let (status, answer, meaning, fixes) = match outcome {
        Outcome::Passed(fact) => (Status::Ok, Some(told(fact, place)), None, Vec::new()),
        Outcome::Doubtful(trouble) => troubled(Status::Warning, *check, place, trouble),
        Outcome::Failed(trouble) => troubled(Status::Failed, *check, place, trouble),
        Outcome::Skipped(reason) => {
            let fixes = match reason {
                Reason::Unasked(AwsError::AccessDenied { .. }) => {
                    vec![grant(place, &["ssm:DescribeInstanceInformation"], &["*".to_owned()])]
                }
                Reason::Untold { hints, .. } => hints.clone(),
                Reason::Unasked(_)
                | Reason::Unread(_)
                | Reason::Unseen(_)
                | Reason::Needs(_)
                | Reason::NotListed
                | Reason::NotServed
                | Reason::SessionOver
                | Reason::NotNeeded
                | Reason::Imported
                | Reason::NotAnApiServer
                | Reason::TheirUser => Vec::new(),
            };
            (Status::Skipped, None, Some(skipped(reason, place)), fixes)
        }
    };
    Entry {
        id: check.id().to_owned(),
        title: title(*check).to_owned(),
        status,
        region: place.region.clone(),
        cluster: place.cluster.clone(),
        target: place.route.clone(),
        tried: step.clone().unwrap_or_else(|| tried(*check, place)),
        answer,
        meaning,
        fixes,
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    }
}

type Words = (Status, Option<String>, Option<String>, Vec<String>);

fn troubled(status: Status, check: Check, place: &Place, trouble: &Trouble) -> Words {
    let meaning = meaning(check, place, trouble);
    (status, Some(answer(trouble, place)), Some(meaning), Fixes::of(place).trouble(check, trouble))
}

/// Returns the name of a check for people.
pub(super) fn title(check: Check) -> &'static str {
    match check {
        Check::Region => "region and profile",
        Check::Credentials => "credentials",
        Check::Identity => "identity",
        Check::Privilege => "least privilege",
        Check::ListClusters => "list clusters",
        Check::DescribeCluster => "describe cluster",
        Check::ClusterStatus => "cluster status",
        Check::EndpointAccess => "endpoint access",
        Check::LocalPort => "manager's tunnel",
        Check::BastionKnown => "bastion known",
        Check::BastionOnline => "bastion online",
        Check::AgentVersion => "agent version",
        Check::Step(name) => name.title,
        Check::StartSession => "start session",
        Check::DataChannel => "data channel",
        Check::Handshake => "agent handshake",
        Check::Endpoint => "bastion reaches API",
        Check::Certificate => "certificate",
        Check::Api => "API answers",
        Check::WhoAmI => "who am I",
        Check::ListPods => "may list pods",
        Check::ResumeSession => "resume session",
        Check::TerminateSession => "end session",
        Check::Setup => "what setup made",
    }
}

fn tried(check: Check, place: &Place) -> String {
    let names = Names::of(place);
    let Names { region, cluster, target, endpoint, .. } = &names;
    match check {
        Check::Region => "a region from `--region`, `AWS_REGION`, `AWS_DEFAULT_REGION` and the profile; the profile and the CA bundle that are named"
            .to_owned(),
        Check::Credentials => "to load AWS credentials".to_owned(),
        Check::Identity => "`sts:GetCallerIdentity`, which needs no permission".to_owned(),
        Check::Privilege => "the role's policies, by `iam:ListRolePolicies` and `iam:ListAttachedRolePolicies`".to_owned(),
        Check::ListClusters => format!("`eks:ListClusters` in {region}"),
        Check::DescribeCluster => format!("`eks:DescribeCluster` of `{cluster}` in {region}"),
        Check::ClusterStatus => format!("the status, endpoint and certificate authority of `{cluster}`"),
        Check::EndpointAccess => format!("the endpoint access of `{cluster}`"),
        Check::LocalPort => format!("`GET /livez` of `{cluster}` through the manager's local port"),
        Check::BastionKnown if place.route.is_none() => "to find a bastion in the settings".to_owned(),
        Check::BastionKnown => format!("`ssm:DescribeInstanceInformation` of `{target}` in {region}"),
        Check::BastionOnline => format!("the ping status of `{target}`"),
        Check::AgentVersion => format!(
            "the version of the SSM agent on `{target}`; remote hosts need {}",
            Version::FIRST_AGENT_WITH_REMOTE_HOST
        ),
        Check::Step(name) => name.title.to_owned(),
        Check::StartSession => format!("`ssm:StartSession` on `{target}` to `{endpoint}`"),
        Check::DataChannel => "a WebSocket to the message gateway, signed for `ssmmessages:OpenDataChannel`".to_owned(),
        Check::Handshake => format!("the session's handshake with the agent on `{target}`"),
        Check::Endpoint => format!("a connection from `{target}` to `{endpoint}`"),
        Check::Certificate => format!("a TLS handshake with `{endpoint}`, verified by the authority of `{cluster}`"),
        Check::Api if place.imported.is_some() => format!("`GET /livez` of `{cluster}` without credentials"),
        Check::Api => format!("`GET /livez` of `{cluster}` with a token for this identity"),
        Check::WhoAmI => format!("a `SelfSubjectReview` in `{cluster}`"),
        Check::ListPods => format!("a `SelfSubjectAccessReview` in `{cluster}`: list pods in all namespaces"),
        Check::ResumeSession => "to drop the WebSocket, `ssm:ResumeSession`, and to hear the agent again".to_owned(),
        Check::TerminateSession => "`ssm:TerminateSession` on the session of this check".to_owned(),
        Check::Setup => "each piece of a bastion that `autoheal-pa setup` makes".to_owned(),
    }
}

/// What came back, where all is well.
fn told(fact: &Fact, place: &Place) -> String {
    match fact {
        Fact::Region(region) => region.clone(),
        Fact::Credentials { source, passed_over } => {
            let others = passed_over.iter().map(|other| format!("; passed over {other}"));
            std::iter::once(source.clone()).chain(others).collect()
        }
        Fact::Identity { expires } => {
            let arn = place.caller.as_ref().map(|caller| caller.arn.as_str()).unwrap_or_default();
            match expires {
                Some(end) => format!("{arn}, credentials until {}", rfc3339(*end)),
                None => format!("{arn}, credentials that do not expire"),
            }
        }
        Fact::NoMore { role } => format!("`{role}` may no more than tunnels need, as far as its policies say"),
        Fact::Clusters(names) => list(names),
        Fact::Described => {
            let description = place.description.as_deref();
            let version = description.and_then(|description| description.version.as_deref()).unwrap_or("unknown");
            let mode = description.and_then(|description| description.authentication_mode.as_deref());
            format!("Kubernetes {version}, authentication mode {}", mode.unwrap_or("not given"))
        }
        Fact::Usable => {
            place.description.as_ref().map(|description| description.status.to_string()).unwrap_or_default()
        }
        Fact::PrivateEndpoint if place.description.as_ref().is_some_and(|description| description.endpoint_public) => {
            "private and public".to_owned()
        }
        Fact::PrivateEndpoint => "private".to_owned(),
        Fact::PublicEndpoint => "public".to_owned(),
        Fact::LocalPort { port, status } => format!("127.0.0.1:{port} leads to the API server, which answers {status}"),
        Fact::Told(text) => text.clone(),
        Fact::Managed => "a managed node of this account".to_owned(),
        Fact::Online => "in contact with Systems Manager".to_owned(),
        Fact::AgentVersion(version) => version.to_string(),
        Fact::Session(id) => id.to_string(),
        Fact::Started => "a session was started".to_owned(),
        Fact::DataChannel => "the message gateway accepts the signature".to_owned(),
        Fact::Handshake(version) => format!("agent {version}"),
        Fact::Reached => format!("`{}` answers", Names::of(place).endpoint),
        Fact::Verified => "verifies against the cluster's authority".to_owned(),
        Fact::Answered(status) if place.imported.is_some() => {
            format!("{status}, to a request without credentials, of which any answer will do")
        }
        Fact::Answered(403) => "403: it accepts the token, but may not report its health".to_owned(),
        Fact::Answered(status) => status.to_string(),
        Fact::User(user) if user.groups.is_empty() => user.name.to_string(),
        Fact::User(user) => format!("{}, in {}", user.name, groups(&user.groups)),
        Fact::MayListPods => "in all namespaces".to_owned(),
        Fact::Resumed => "resumed, and the agent answers through the new WebSocket".to_owned(),
        Fact::Terminated => "no session is left behind".to_owned(),
        Fact::Whole { pieces, unseen: 0 } => format!("all {pieces} pieces are there"),
        Fact::Whole { pieces, unseen } => {
            format!("{} of {pieces} pieces are there, and {unseen} may not be looked at", pieces - unseen)
        }
    }
}

fn groups(groups: &[PeerText]) -> String {
    let shown = groups.iter().take(MAX_NAMES).map(|group| &**group).collect::<Vec<_>>().join(", ");
    if groups.len() > MAX_NAMES { format!("{shown} and {} more", groups.len() - MAX_NAMES) } else { shown }
}

fn list(names: &[String]) -> String {
    let shown = names.iter().take(MAX_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => "none".to_owned(),
        1 => format!("1: {shown}"),
        count if count <= MAX_NAMES => format!("{count}: {shown}"),
        count => format!("{count}: {shown} and {} more", count - MAX_NAMES),
    }
}

/// What came back, where something is wrong.
fn answer(trouble: &Trouble, place: &Place) -> String {
    let Names { region, target, .. } = Names::of(place);
    match trouble {
        Trouble::Aws(error) => sentence(error),
        Trouble::Expiring { left } => match &place.caller {
            Some(caller) => format!("{}, credentials for {}", caller.arn, in_words(*left)),
            None => format!("credentials for {}", in_words(*left)),
        },
        Trouble::TooMuch { role, excess, .. } => excess::answer(role, excess),
        Trouble::NoClusters => format!("there are no EKS clusters in {region}"),
        Trouble::NoSuchCluster => format!("there is no cluster of this name in {region}"),
        Trouble::Unusable(reason) => reason.to_string(),
        Trouble::PublicOnly => "public only".to_owned(),
        Trouble::Port(error) => with_causes("cannot connect to the local port".to_owned(), error),
        Trouble::NoBastion => "no bastion is given".to_owned(),
        Trouble::NotManaged => format!("Systems Manager in {region} does not know `{target}`"),
        Trouble::Offline(sighting) => sighting.to_string(),
        Trouble::AgentTooOld { version } => version.to_string(),
        Trouble::Dial(error) => sentence(error),
        Trouble::Unsigned { said } => {
            let said = if said.is_empty() { String::new() } else { format!(": {said}") };
            format!("the message gateway rejects the signature, but accepts the WebSocket without one{said}")
        }
        Trouble::Clock(off) => match &place.caller {
            Some(caller) => format!("{}; this machine's clock is {off}", caller.arn),
            None => format!("this machine's clock is {off}"),
        },
        // That it was not reached is what the check is about.
        Trouble::Fault(SessionFault::Probe(error)) => sentence(error),
        Trouble::Fault(SessionFault::Closed(reason)) => sentence(reason),
        Trouble::Fault(SessionFault::Resume(error)) => sentence(error),
        Trouble::Fault(fault) => sentence(fault),
        Trouble::Unresolvable { said } => format!("the agent ended the session: {said}"),
        Trouble::Refused { said } => format!("the agent refuses this destination: {said}"),
        Trouble::NotReached(fault) | Trouble::NotFound(fault) => sentence(&**fault),
        Trouble::Doubt { said, .. } => said.clone(),
        Trouble::Api(error) => sentence(error),
        Trouble::Unauthorized => "401 Unauthorized".to_owned(),
        Trouble::Status(status) => status.to_string(),
        Trouble::MayNotListPods { user: Some(user) } => format!("403 Forbidden for `{user}`"),
        Trouble::MayNotListPods { user: None } => "403 Forbidden".to_owned(),
        Trouble::Incomplete(made) => made.to_string(),
    }
}

fn meaning(check: Check, place: &Place, trouble: &Trouble) -> String {
    let names = Names::of(place);
    let Names { cluster, target, host, .. } = &names;
    match trouble {
        Trouble::Aws(error @ AwsError::AccessDenied { .. }) if check == Check::ListClusters => {
            format!("{}; not needed if clusters are given with `--cluster`", denied(error))
        }
        Trouble::Aws(error) => aws_meaning(error),
        Trouble::Expiring { .. } => {
            "they expire soon and may not be renewed: after that open connections go on, but lost sessions cannot be \
             resumed"
                .to_owned()
        }
        Trouble::TooMuch { excess, .. } => excess::meaning(excess),
        Trouble::NoClusters => {
            "the region or account may be the wrong one, or there is nothing to open a tunnel to".to_owned()
        }
        Trouble::NoSuchCluster => {
            "names are case-sensitive and unique per region and account: check all three".to_owned()
        }
        Trouble::Unusable(reason) => unusable(reason).to_owned(),
        Trouble::PublicOnly => format!(
            "`{cluster}` can usually be reached without a tunnel; through one the bastion needs a way to the internet, with an \
             address that the public access CIDRs admit"
        ),
        Trouble::Port(_) => "the manager's tunnel does not listen there any more".to_owned(),
        Trouble::NoBastion => {
            "clusters are reached through a bastion: without one nothing more can be checked".to_owned()
        }
        Trouble::NotManaged => format!(
            "`{target}` does not exist, is terminated, is in another region or account, or its agent has never registered"
        ),
        Trouble::Offline(_) => format!(
            "`{target}` is stopped, its agent does not run, or it cannot reach Systems Manager: NAT or interface endpoints for `ssm` \
             and `ssmmessages`"
        ),
        Trouble::AgentTooOld { .. } => too_old(),
        Trouble::Dial(error) => dial_meaning(error, place),
        Trouble::Unsigned { said } => format!(
            "{}: tunnels work only as long as AWS accepts WebSockets without a signature",
            refused_upgrade(said)
        ),
        Trouble::Clock(_) => {
            "signatures are valid for minutes only; this program uses AWS's time, other programs here do not".to_owned()
        }
        Trouble::Fault(SessionFault::Resume(error)) => dial_meaning(error, place),
        Trouble::Fault(SessionFault::Closed(CloseReason::ChannelClosed { .. })) if check == Check::Endpoint => format!(
            "the agent on `{target}` has ended the session before it connected: its message, and \
             what `{host}` resolves to there, say why"
        ),
        Trouble::Fault(SessionFault::Closed(reason)) => closed_meaning(reason, target),
        Trouble::Fault(SessionFault::Probe(error)) => probe_meaning(check, error, &names, place),
        Trouble::Fault(
            SessionFault::Start(_)
            | SessionFault::Transport(_)
            | SessionFault::Silent { .. }
            | SessionFault::Mute { .. }
            | SessionFault::Unanswered { .. }
            | SessionFault::TargetGone { .. }
            | SessionFault::Dropped { .. }
            | SessionFault::Exhausted
            | SessionFault::Abandoned(_),
        ) => "the session was lost on the way to the message gateway: something between this machine and AWS cuts or \
              swallows WebSockets"
            .to_owned(),
        Trouble::Unresolvable { .. } => format!(
            "the resolver of `{target}` does not know `{host}`: its VPC has no DNS support or no DNS host names, or it asks \
             another resolver than the VPC's"
        ),
        Trouble::Refused { .. } => format!(
            "on `{target}`, `{host}` resolves to an address that its agent does not forward to: loopback, AWS's addresses for \
             metadata, credentials, DNS or time, or one that the VPC keeps for itself; the endpoint of an API server has no such address"
        ),
        Trouble::NotReached(_) if check == Check::Certificate => {
            format!("what answers cannot be verified as the API server of `{cluster}`")
        }
        Trouble::NotFound(_) => "there is nothing to start a session on".to_owned(),
        Trouble::Doubt { means, .. } => means.clone(),
        Trouble::NotReached(_) => format!("this machine cannot reach `{host}`"),
        Trouble::Api(_) => format!("something answers for `{cluster}`, but not as an API server"),
        Trouble::Unauthorized => unauthorized(place),
        Trouble::Status(_) => format!("the API server of `{cluster}` is not healthy"),
        Trouble::MayNotListPods { .. } => command!(
            "`{}` knows this identity and lets it see no pods; an access policy that is limited to namespaces looks the \
             same here, and then `kubectl get pods -n NAMESPACE` works",
            cluster
        ),
        Trouble::Incomplete(_) => "without them sessions fail, or the bastion is not replaced once it ends".to_owned(),
    }
}

fn unauthorized(place: &Place) -> String {
    let mode = place.description.as_ref().and_then(|description| description.authentication_mode.as_deref());
    match mode {
        Some(mode @ ("API" | "API_AND_CONFIG_MAP")) => {
            format!("the token is valid, but the cluster does not know this identity: its authentication mode is {mode}, and this \
                     identity has no access entry")
        }
        Some(mode) => format!(
            "the token is valid, but the cluster does not know this identity: its authentication mode is {mode}, and this identity \
             is not in the config map `aws-auth`"
        ),
        None => "the token is valid, but the cluster does not know this identity: EKS names no authentication mode, which is \
                 CONFIG_MAP, and this identity is not in the config map `aws-auth`"
            .to_owned(),
    }
}

fn unusable(reason: &SkipReason) -> &'static str {
    match reason {
        SkipReason::Status(status) if status == "CREATING" => {
            "the cluster is being created, which takes some ten minutes; there is nothing to connect to before"
        }
        SkipReason::Status(_) => {
            "the cluster is being created or deleted, or has failed; only ACTIVE and UPDATING ones can be used"
        }
        SkipReason::Connected => "the cluster runs elsewhere, and EKS has no endpoint for it",
        SkipReason::NoEndpoint | SkipReason::NoCertificateAuthority => "EKS has not made it yet; try again in a minute",
        SkipReason::Endpoint => "EKS gives an endpoint that cannot be connected to",
        SkipReason::AccessDenied { .. } => "no policy of this identity allows it",
    }
}

fn too_old() -> String {
    format!(
        "such an agent ignores the host and connects to itself; forwarding to remote hosts needs {} or newer",
        Version::FIRST_AGENT_WITH_REMOTE_HOST
    )
}

/// Says by what a call is denied explicitly, if the answer tells: granting it does not help then.
pub(super) fn is_explicit_deny(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let text = sentence(error);
    let of = |what: &str| text.contains(&format!("explicit deny in a {what}")) || text.contains(&format!("no {what}"));
    if of("service control policy") {
        Some("a service control policy of the organization")
    } else if of("permissions boundary") {
        Some("the permissions boundary of this identity")
    } else if of("session policy") {
        Some("the session policy that this role was assumed with")
    } else if text.contains("with an explicit deny") {
        Some("an explicit deny, which overrides whatever allows it")
    } else {
        None
    }
}

fn denied(error: &(dyn std::error::Error + 'static)) -> String {
    match is_explicit_deny(error) {
        Some(by) => format!("it is denied by {by}: another policy does not help"),
        None => "no policy of this identity allows it".to_owned(),
    }
}

fn aws_meaning(error: &AwsError) -> String {
    match error {
        AwsError::NoRegion => "no region is set",
        AwsError::InvalidRegion { .. } => "there is no AWS endpoint of this name",
        AwsError::UnknownProfile { .. } | AwsError::ProfileFiles { .. } | AwsError::Profile { .. } => {
            "the profile cannot be used"
        }
        AwsError::NoGateway { .. } => "sessions would be opened to somebody else",
        AwsError::CaBundle { .. } => "TLS connections cannot be verified as was asked for",
        AwsError::HalfKeys => "keys work in pairs only",
        AwsError::NoCredentials { .. } => "no source of AWS credentials has any",
        AwsError::CredentialSource { .. } | AwsError::CredentialTimeout { .. } | AwsError::ContainerToken { .. } => {
            "a source of credentials is configured, but gives none"
        }
        AwsError::TokenFile { .. } | AwsError::TokenEndpoint { .. } | AwsError::TokenMalformed { .. } => {
            "there is no OIDC token to assume the role with"
        }
        AwsError::TokenExpired { .. } => "whoever issues the OIDC token has not renewed it",
        AwsError::InvalidIdentityToken { .. } => {
            "the token was made for another audience, or by an issuer that the account has no IAM OIDC provider for"
        }
        AwsError::RoleDenied { .. } => {
            "the role does not exist, or its trust policy does not admit the token's subject or this identity"
        }
        AwsError::TagsOfToken { .. } => "with a web identity the tags are a part of the token",
        AwsError::DurationTooLong { .. } => "the role's longest session is shorter",
        AwsError::NotRenewed { .. } | AwsError::ExpiredCredentials { .. } => {
            "everything that is signed with them is refused"
        }
        AwsError::BadKeys { .. } => "AWS does not know these keys: deleted, mistyped, or of another partition",
        AwsError::ClockSkew { .. } => "signatures are valid for minutes only, by AWS's time",
        AwsError::AccessDenied { .. } => return denied(error),
        AwsError::Throttled { .. } => "too many calls are made in this account just now",
        AwsError::RegionDisabled { .. } => "the account does not use this region",
        AwsError::Unreachable { .. } => "this machine cannot reach the service: name, route, proxy or certificate",
        AwsError::ClusterNotFound { .. } => "another name, region or account was meant",
        AwsError::Signing { .. } | AwsError::BearerTokenTooLong { .. } => "these credentials make no token",
        AwsError::Refused { .. } => "AWS rejects the request; its message says why",
        AwsError::Malformed { .. } => "the answer may not come from AWS",
        AwsError::Service { source, .. } if is_foreign(&**source) => "the answer does not come from AWS",
        AwsError::Service { .. } => "AWS has a problem of its own",
    }
    .to_owned()
}

fn dial_meaning(error: &DialError, place: &Place) -> String {
    let Names { region, target, .. } = Names::of(place);
    match error {
        DialError::TargetNotConnected { .. } => {
            format!("Systems Manager has no connection to an agent on `{target}` to start a session with")
        }
        DialError::TargetNotFound { .. } => format!("no such managed node in {region} of this account"),
        DialError::AccessDenied { resource, .. } if resource.contains("document/") => {
            "the bastion is allowed, but the session document is not; a condition on instance tags never holds for a document"
                .to_owned()
        }
        DialError::AccessDenied { action: "ssm:ResumeSession", .. } => format!(
            "open connections are cut whenever AWS closes a WebSocket, about hourly; {}",
            denied(error)
        ),
        DialError::AccessDenied { action: "ssm:TerminateSession", .. } => format!(
            "sessions stay behind until they have been idle for 20 minutes, unless their agent can be told; {}",
            denied(error)
        ),
        DialError::AccessDenied { .. } => denied(error),
        DialError::Unapproved(_) => "what has been approved does not go as far as this session".to_owned(),
        DialError::DocumentRefused { .. } => format!("the session document does not exist in {region}, or is a different one"),
        DialError::SessionEnded { .. } => {
            "the service has ended the session as soon as its WebSocket was gone: open connections do not survive".to_owned()
        }
        DialError::Throttled { .. } => "too many sessions are started in this account just now".to_owned(),
        DialError::Credentials { .. } => "the credentials have expired in the meantime".to_owned(),
        DialError::Unreachable { host, .. } => format!("this machine cannot reach `{host}`: name, route, proxy or certificate"),
        DialError::ForeignStreamUrl { .. } => {
            "whoever answered in the place of Systems Manager sends the WebSocket elsewhere; nothing was sent there".to_owned()
        }
        DialError::UpgradeRefused { status: 401 | 403, detail, .. } => {
            format!("the session was started, but its data channel was not: {}", refused_upgrade(detail))
        }
        DialError::UpgradeRefused { .. } => "the message gateway, or a proxy before it, does not take the WebSocket".to_owned(),
        DialError::Refused { .. } => {
            format!("Systems Manager cannot start a session on `{target}` as configured; its message says why")
        }
        DialError::Service { .. } => "Systems Manager has a problem of its own".to_owned(),
        DialError::Timeout { .. } => "something between this machine and AWS swallows what is sent".to_owned(),
    }
}

/// What it is that the message gateway refuses an upgrade for.
fn refused_upgrade(words: &str) -> &'static str {
    match blame(words) {
        Some(Blame::Clock) => "the gateway finds the time of the signature wrong",
        Some(Blame::Expired) => "the credentials have expired",
        Some(Blame::Keys) => "the gateway does not know the credentials, or something has changed the request",
        Some(Blame::Permission) => "`ssmmessages:OpenDataChannel` is not allowed",
        None => "the gateway does not say why; `ssmmessages:OpenDataChannel` may not be allowed",
    }
}

fn closed_meaning(reason: &CloseReason, target: &str) -> String {
    match reason {
        CloseReason::Handshake(HandshakeError::AgentTooOld { .. }) => too_old(),
        CloseReason::Handshake(_) => format!("the agent on `{target}` does not do what the document asks of it"),
        CloseReason::HandshakeTimeout { requested: false, .. } => format!(
            "the session was opened and the agent on `{target}` has not answered: it does not reach `ssmmessages`, its instance \
             profile does not allow it there, or it hangs (if it is only slow, `up` waits for it until `--timeout`)"
        ),
        CloseReason::HandshakeTimeout { requested: true, .. } => {
            format!("the agent on `{target}` has begun the handshake and not ended it: it hangs, or messages get lost")
        }
        CloseReason::ChannelClosed { .. } => {
            format!("the service or the agent on `{target}` has ended the session; its message says why")
        }
        CloseReason::Unacknowledged { .. } => {
            format!("the agent on `{target}` does not answer through the new WebSocket")
        }
        CloseReason::Smux(_) | CloseReason::Misbehaved { .. } | CloseReason::Paused { .. } => {
            format!("the agent on `{target}` or the message gateway is broken")
        }
    }
}

fn probe_meaning(check: Check, error: &ProbeError, names: &Names, place: &Place) -> String {
    let Names { cluster, target, endpoint, host, .. } = names;
    if check == Check::LocalPort {
        return "the manager's tunnel does not reach the API server; the checks below use another session and show why"
            .to_owned();
    }
    match error {
        ProbeError::NoAnswer { .. } if place.imported.is_some() => format!(
            "the bastion sends and nothing comes back, which is what a security group does: that of the API server or of its \
             load balancer does not admit `{target}`, or there is no route between their networks"
        ),
        ProbeError::Authority { .. } if place.imported.is_some() => {
            format!("what the kubeconfig gives as the authority of `{cluster}` cannot be read")
        }
        ProbeError::NoAnswer { .. } => format!(
            "the bastion sends and nothing comes back, which is what a security group does: that of `{cluster}` does not admit \
             `{target}` on port 443, or there is no route between their networks"
        ),
        ProbeError::Refused => format!(
            "the agent could not connect to `{endpoint}` and knew it at once: on `{target}`, `{host}` resolves to an address where \
             nothing listens, there is no route, or the agent is older than 3.2.1041.0 and cannot resolve the name; security \
             groups are silent instead"
        ),
        ProbeError::Ended => format!("something took the connection to `{endpoint}` and closed it: not an API server"),
        ProbeError::Certificate { .. } => format!(
            "what answers is not the API server of `{cluster}`: `{host}` resolves elsewhere on `{target}`, or something \
             in between intercepts TLS"
        ),
        ProbeError::Authority { .. } => format!("what EKS gives as the authority of `{cluster}` cannot be read"),
        ProbeError::Tls { .. } | ProbeError::NotHttp => format!("what answers at `{endpoint}` is not an API server"),
        ProbeError::LinkLost => "the session was lost meanwhile: this says nothing".to_owned(),
    }
}
