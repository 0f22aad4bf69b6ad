//! Faults of tunnels that users get to see: exit codes and hints.

use std::sync::Arc;

use super::{CommandError, Kind, aws};
use crate::{
    aws::{
        AwsError, NotConnected, Sighting,
        error::{Blame, Cause, blame},
    },
    cluster::{Cluster, Target},
    policy,
    route::ssm::proto::CloseReason,
    tunnel::{DialError, Fault, ProbeError, with_causes},
    util::quote::command,
};

impl CommandError {
    /// Says why there is no tunnel to a cluster.
    #[must_use]
    pub fn tunnel(cluster: &Cluster, fault: &Arc<Fault>) -> Self {
        let (kind, hints) = match &**fault {
            Fault::Start(error) | Fault::Resume(error) => dial(cluster, error),
            Fault::Probe(error) => (Kind::Tunnel, probe(cluster, error)),
            Fault::Closed(reason) => (Kind::Tunnel, closed(cluster, reason)),
            Fault::Transport(_)
            | Fault::Silent { .. }
            | Fault::Mute { .. }
            | Fault::Exhausted
            | Fault::Panicked { .. } => (Kind::Tunnel, Vec::new()),
        };
        let message = format!("cannot open a tunnel to `{}`", cluster.name);
        // That a session could not be started is what the message says already.
        let error = Self::new(kind, message).hints(hints);
        match &**fault {
            Fault::Start(_) => error.with_source(Behind(Arc::clone(fault))),
            Fault::Transport(_)
            | Fault::Silent { .. }
            | Fault::Mute { .. }
            | Fault::Resume(_)
            | Fault::Closed(_)
            | Fault::Probe(_)
            | Fault::Exhausted
            | Fault::Panicked { .. } => error.with_source(Arc::clone(fault)),
        }
    }
}

impl CommandError {
    /// Says that the agent on a target has not spoken yet.
    #[must_use]
    pub fn agent_awaited(cluster: &Cluster, target: &Target) -> Self {
        let message = format!("the tunnel to `{}` still waits for the agent on `{target}`", cluster.name);
        Self::new(Kind::Tunnel, message).hints(silent_agent())
    }
}

/// Says what follows from not being allowed to resume sessions, and what would change it.
pub(in crate::cli) fn resume_denied(region: &str) -> CommandError {
    let message = "sessions may not be resumed: open connections are cut whenever AWS closes a WebSocket, about hourly";
    CommandError::new(Kind::Credentials, message).hint(allow_on_own_sessions("ssm:ResumeSession", region))
}

/// What to do when an action is denied on a session: what the policy has to name is not the id of this one.
fn allow_on_own_sessions(action: &str, region: &str) -> String {
    command!(
        "the policy of this identity has to allow `{}` on its own sessions, as the one does that `autoheal-pa policy --bastion \
         TARGET --region {}` prints",
        action,
        region
    )
}

/// A fault of which only the source is shown.
#[derive(Debug)]
struct Behind(Arc<Fault>);

impl std::fmt::Display for Behind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match std::error::Error::source(&*self.0) {
            Some(source) => write!(f, "{source}"),
            None => write!(f, "{}", self.0),
        }
    }
}

impl std::error::Error for Behind {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&*self.0)?.source()
    }
}

fn dial(cluster: &Cluster, error: &DialError) -> (Kind, Vec<String>) {
    let region = &cluster.region;
    match error {
        DialError::TargetNotConnected { target, source } => {
            let sighting = find(&**source).map(|found: &NotConnected| &found.sighting);
            (Kind::NotFound, not_connected(target, region, sighting))
        }
        DialError::TargetNotFound { target, .. } => (Kind::NotFound, not_found(target, region)),
        // The resource is one session, and the policy has to name them all.
        DialError::AccessDenied { action: action @ ("ssm:ResumeSession" | "ssm:TerminateSession"), .. } => {
            (Kind::Credentials, vec![allow_on_own_sessions(action, region)])
        }
        DialError::AccessDenied { action, resource, .. } => (Kind::Credentials, denied(action, resource)),
        DialError::DocumentRefused { document, .. } => (
            Kind::Tunnel,
            vec![command!(
                "look whether the document is there: `aws ssm describe-document --name {} --region {}`",
                document,
                region
            )],
        ),
        DialError::Refused { action: "ssm:StartSession", resource, source } => {
            let hints = resource.parse().map(|target| refused(&target, region, &cluster.account, &**source));
            (Kind::Tunnel, hints.unwrap_or_default())
        }
        DialError::Credentials { source, .. } => {
            // What the credentials lack is said by the error behind.
            let hints = find(&**source).map(|error: &AwsError| aws::assess(error).1);
            (Kind::Credentials, hints.unwrap_or_default())
        }
        DialError::Unreachable { host, .. } => (Kind::Tunnel, aws::network(host, error)),
        DialError::ForeignStreamUrl { .. } => (
            Kind::Tunnel,
            vec![
                "if this is an endpoint of your own, name it in `AWS_ENDPOINT_URL_SSM`: its host is trusted then"
                    .to_owned(),
            ],
        ),
        DialError::UpgradeRefused { status: 401 | 403, detail, .. } => {
            let sessions = policy::data_channels(policy::partition(region));
            let hints = match blame(detail) {
                Some(blame @ (Blame::Clock | Blame::Expired | Blame::Keys)) => aws::of_blame(blame),
                Some(Blame::Permission) => vec![aws::allow("ssmmessages:OpenDataChannel", &sessions)],
                None => vec![format!(
                    "if it is a matter of permission, {}",
                    aws::allow("ssmmessages:OpenDataChannel", &sessions)
                )],
            };
            (Kind::Credentials, hints)
        }
        DialError::Throttled { .. } => (Kind::Tunnel, vec!["it is tried again, each time later".to_owned()]),
        DialError::UpgradeRefused { .. }
        | DialError::SessionEnded { .. }
        | DialError::Refused { .. }
        | DialError::Service { .. }
        | DialError::Timeout { .. } => (Kind::Tunnel, Vec::new()),
    }
}

/// What to do about a target that does not take sessions.
pub(in crate::cli) fn not_connected(target: &Target, region: &str, sighting: Option<&Sighting>) -> Vec<String> {
    let reasons = match sighting {
        None => format!(
            "`{target}` has to run, to be in this account and in {region}, and its agent has to reach Systems Manager with the \
             permissions of `AmazonSSMManagedInstanceCore`"
        ),
        Some(Sighting { in_contact: true, .. }) => format!(
            "the agent on `{target}` has to reach `ssmmessages` of {region} on port 443, and its instance profile has to allow \
             `ssmmessages:CreateControlChannel`, `ssmmessages:OpenControlChannel`, `ssmmessages:CreateDataChannel` and \
             `ssmmessages:OpenDataChannel`, as `AmazonSSMManagedInstanceCore` does"
        ),
        Some(Sighting { in_contact: false, .. }) => {
            format!("`{target}` has to run, and its agent to reach `ssm` and `ssmmessages` of {region} on port 443")
        }
    };
    let mut hints = vec![reasons];
    match target {
        Target::Instance(id) if sighting.is_some_and(|sighting| !sighting.in_contact) => hints.extend([
            command!("`aws ec2 describe-instance-status --include-all-instances --instance-ids {} --region {}` shows whether it runs", id, region),
            command!("`aws ec2 start-instances --instance-ids {} --region {}` starts it", id, region),
            command!("`aws ec2 reboot-instances --instance-ids {} --region {}` restarts its agent", id, region),
        ]),
        Target::Instance(id) | Target::ManagedNode(id) => hints.push(command!("`aws ssm describe-instance-information --filters Key=InstanceIds,Values={} --region {}` shows it if it is known", id, region)),
        Target::EcsTask(_) => {
            let (cluster, task) = target.ecs_task().unwrap_or_default();
            hints.push(command!("the task needs `enableExecuteCommand`: `aws ecs describe-tasks --cluster {} --tasks {} --region {}`", cluster, task, region));
        }
    }
    hints
}

/// What to do about a target that Systems Manager does not know.
pub(in crate::cli) fn not_found(target: &Target, region: &str) -> Vec<String> {
    let mut hints = vec![command!(
        "`aws ssm describe-instance-information --region {} --query \
         'InstanceInformationList[].[InstanceId,PingStatus,ComputerName]' --output table` lists what can be given to `--bastion`; \
         check `--region` and whose credentials these are, too",
        region
    )];
    if let Target::Instance(id) = target {
        hints.push(command!("if it is there, it needs an instance profile with `AmazonSSMManagedInstanceCore`, and a minute or two after its first \
             start: `aws ec2 describe-instances --instance-ids {} --region {} --query \
             'Reservations[].Instances[].[State.Name,IamInstanceProfile.Arn]'`", id, region));
    }
    hints
}

/// What to do about a target that Systems Manager refuses to start a session on.
pub(in crate::cli) fn refused(
    target: &Target,
    region: &str,
    account: &str,
    source: &(dyn std::error::Error + 'static),
) -> Vec<String> {
    if let Some(AwsError::RegionDisabled { .. }) = find(source) {
        return find(source).map(|error| aws::assess(error).1).unwrap_or_default();
    }
    let text = with_causes(String::new(), source);
    // The service does not always say a word beside this code.
    let names_tier = text.contains("advanced-instances") || text.starts_with("BadRequest (");
    if names_tier && matches!(target, Target::ManagedNode(_)) {
        let partition = policy::partition(region);
        return vec![
            command!(
                "this turns the advanced tier on, which managed nodes need for sessions and AWS charges for by the hour: `aws ssm \
                 update-service-setting --setting-id \
                 arn:{}:ssm:{}:{}:servicesetting/ssm/managed-instance/activation-tier --setting-value \
                 advanced --region {}`",
                partition,
                region,
                account,
                region
            ),
            "or give another `--bastion`: EC2 instances and ECS tasks do not need it".to_owned(),
        ];
    }
    vec![
        "the same would be answered again: what AWS says of it has to be mended first, or another `--bastion` given"
            .to_owned(),
        command!(
            "`autoheal-pa doctor --bastion {} --region {}` checks the bastion step by step",
            target.as_str(),
            region
        ),
    ]
}

/// What to do when a call is denied; for a target that may not be the identity's fault.
fn denied(action: &str, resource: &str) -> Vec<String> {
    let mut hints = vec![aws::allow(action, resource)];
    if [":instance/", ":managed-instance/", ":task/"].iter().any(|kind| resource.contains(kind)) {
        hints.push(
            "a statement with a condition on tags allows nothing on a target without these tags, nor on one that does not exist"
                .to_owned(),
        );
    }
    hints
}

fn probe(cluster: &Cluster, error: &ProbeError) -> Vec<String> {
    let Cluster { name, region, endpoint, .. } = cluster;
    match error {
        ProbeError::Refused | ProbeError::NoAnswer { .. } | ProbeError::Ended => vec![
            format!("the bastion has to resolve `{}` and to reach it on port {}", endpoint.host, endpoint.port),
            command!(
                "the cluster's security group has to admit the bastion: `aws eks describe-cluster --name {} --region {} \
                 --query cluster.resourcesVpcConfig.clusterSecurityGroupId`",
                name,
                region
            ),
        ],
        ProbeError::Certificate { host, .. } => vec![format!(
            "what answers on the bastion's side is not the API server of `{name}`: look at what `{host}` resolves to there"
        )],
        ProbeError::Authority { .. } => vec![command!(
            "look at what EKS says: `aws eks describe-cluster --name {} --region {} --query cluster.certificateAuthority`",
            name,
            region
        )],
        ProbeError::Tls { .. } | ProbeError::NotHttp | ProbeError::SessionLost => Vec::new(),
    }
}

/// What to do about an agent that does not complete the handshake.
fn silent_agent() -> Vec<String> {
    vec![
        "the agent on the bastion has to reach `ssmmessages` of this region; restarting it may help".to_owned(),
        "an agent that is slow to start its worker is waited for as long as `--timeout` says".to_owned(),
    ]
}

fn closed(cluster: &Cluster, reason: &CloseReason) -> Vec<String> {
    match reason {
        CloseReason::ChannelClosed { .. } if reason.is_refused_destination() => {
            let host = &cluster.endpoint.host;
            vec![
                command!(
                    "on the bastion `{}` leads to an address that its agent does not forward to, such as loopback or one where AWS gives \
                     metadata or credentials: `getent ahosts {}` there shows it",
                    host,
                    host
                ),
                command!(
                    "it has to lead to the API server: look at `/etc/hosts`, at the resolver, and at private hosted zones of the VPC; \
                     `autoheal-pa doctor --cluster {}` prints the commands",
                    cluster.name
                ),
            ]
        }
        CloseReason::Handshake(_) => {
            vec!["update the SSM agent on the bastion; 3.1.1374.0 is the oldest that will do".to_owned()]
        }
        CloseReason::HandshakeTimeout { .. } => silent_agent(),
        CloseReason::Misbehaved { .. } | CloseReason::Smux(_) => vec![
            "the agent on the bastion may be broken: `sudo systemctl restart amazon-ssm-agent` there, and update it"
                .to_owned(),
        ],
        CloseReason::ChannelClosed { .. } | CloseReason::Unacknowledged { .. } | CloseReason::Paused { .. } => {
            Vec::new()
        }
    }
}

/// Looks for an error of one type among an error and its sources. Where a source is shared, what is shared is looked at.
pub(super) fn find<'a, T: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    let of_type = |error: &'a (dyn std::error::Error + 'static)| {
        error.downcast_ref().or_else(|| error.downcast_ref::<Cause>()?.downcast_ref())
    };
    std::iter::successors(Some(error), |error| error.source()).find_map(of_type)
}
