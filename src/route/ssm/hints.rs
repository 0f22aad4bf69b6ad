//! What to do about faults of sessions: hints for people, beside the errors that they are about.

use super::{
    DialError, SessionFault, Unapproved,
    proto::CloseReason,
    statements::data_channels,
    targets::{NotConnected, Sighting},
};
use crate::{
    aws::{
        AwsError,
        advice::{self, find},
        error::{Blame, blame},
    },
    bastion::Target,
    iam,
    remote::Remote,
    route::{Caution, Class, proof::behind_bastion},
    util::{peer_text::sentence, quote::command},
};

/// What to do about a fault of a session to a cluster.
pub(super) fn of(fault: &SessionFault, to: &Remote) -> Vec<String> {
    match fault {
        SessionFault::Start(error) | SessionFault::Resume(error) => dial(to, error),
        SessionFault::Probe(error) => behind_bastion(to, error),
        SessionFault::Closed(reason) => closed(to, reason),
        SessionFault::Abandoned(fault) => fault.hints.clone(),
        SessionFault::Dropped { target, crowd, .. } => {
            let crowd = crowd.map(|crowd| crowd.to_string());
            let rest = [
                command!(
                    "`aws ssm describe-sessions --state Active --filters key=Target,value={} --region {}` shows all that it carries",
                    target.as_str(),
                    to.region()
                ),
                "end those that nobody needs, let the service have more tasks, or use fewer `--sessions`".to_owned(),
            ];
            crowd.into_iter().chain(rest).collect()
        }
        SessionFault::TargetGone { .. }
        | SessionFault::Transport(_)
        | SessionFault::Silent { .. }
        | SessionFault::Mute { .. }
        | SessionFault::Unanswered { .. }
        | SessionFault::Exhausted => Vec::new(),
    }
}

/// Says what follows from not being allowed to resume sessions, and what would change it.
pub(super) fn resume_denied(region: &str) -> Caution {
    Caution {
        class: Class::Denied,
        message:
            "not allowed to resume sessions: open connections are cut whenever AWS closes a WebSocket, about hourly"
                .to_owned(),
        hints: vec![allow_on_own_sessions("ssm:ResumeSession", region)],
    }
}

/// What to do when an action is denied on a session: what the policy has to name is not the id of this one.
fn allow_on_own_sessions(action: &str, region: &str) -> String {
    command!(
        "this identity's IAM policy must allow `{}` on its own sessions: `autoheal-pa policy --bastion TARGET --region \
         {}` prints one that does",
        action,
        region
    )
}

fn dial(to: &Remote, error: &DialError) -> Vec<String> {
    let region = to.region();
    match error {
        DialError::TargetNotConnected { target, source } => {
            let sighting = find(&**source).map(|found: &NotConnected| &found.sighting);
            not_connected(target, region, sighting)
        }
        DialError::TargetNotFound { target, .. } => not_found(target, region),
        // The resource is one session, and the policy has to name them all.
        DialError::AccessDenied { action: action @ ("ssm:ResumeSession" | "ssm:TerminateSession"), .. } => {
            vec![allow_on_own_sessions(action, region)]
        }
        DialError::AccessDenied { action: action @ ("ssm:StartAccessRequest" | "ssm:GetAccessToken"), .. } => {
            vec![allow_requests(action, region)]
        }
        DialError::AccessDenied { action, resource, .. } => denied(action, resource),
        DialError::Unapproved(unapproved) => self::unapproved(unapproved, region),
        DialError::Refused { action: "ssm:StartAccessRequest", source, .. } => not_requested(&**source),
        DialError::DocumentRefused { document, .. } => vec![command!(
            "check that the document exists: `aws ssm describe-document --name {} --region {}`",
            document,
            region
        )],
        DialError::Refused { action: "ssm:StartSession", resource, source } => {
            let hints = resource.parse().map(|target| refused(&target, region, to.account(), &**source));
            hints.unwrap_or_default()
        }
        DialError::Credentials { source, .. } => {
            // What the credentials lack is said by the error behind.
            let hints = find(&**source).map(|error: &AwsError| advice::assess(error).1);
            hints.unwrap_or_default()
        }
        DialError::Unreachable { host, .. } => advice::network(host, error),
        DialError::ForeignStreamUrl { .. } => vec![
            "if this is an endpoint of your own, set `AWS_ENDPOINT_URL_SSM` to it: its host is then trusted".to_owned(),
        ],
        DialError::UpgradeRefused { status: 401 | 403, detail, .. } => {
            let sessions = data_channels(iam::partition(region));
            match blame(detail) {
                Some(blame @ (Blame::Clock | Blame::Expired | Blame::Keys)) => advice::of_blame(blame),
                Some(Blame::Permission) => vec![advice::allow("ssmmessages:OpenDataChannel", &sessions)],
                None => vec![format!(
                    "if a permission is missing: {}",
                    advice::allow("ssmmessages:OpenDataChannel", &sessions)
                )],
            }
        }
        DialError::Throttled { .. } => vec!["it is tried again, at growing intervals".to_owned()],
        DialError::UpgradeRefused { .. }
        | DialError::SessionEnded { .. }
        | DialError::Refused { .. }
        | DialError::Service { .. }
        | DialError::Timeout { .. } => Vec::new(),
    }
}

/// What to do when access may not be requested.
fn allow_requests(action: &str, region: &str) -> String {
    command!(
        "this identity's IAM policy must allow `{}`: `autoheal-pa policy --request-access --bastion TARGET --region {}` prints one \
         that does",
        action,
        region
    )
}

/// What to do when a request for access is refused.
fn not_requested(source: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let text = sentence(source);
    if text.contains("not enabled") {
        return vec![
            "just-in-time node access has to be turned on for this account and region, in the console of Systems Manager".to_owned(),
            "without `--request-access` sessions are started by permission alone, `ssm:StartSession`".to_owned(),
        ];
    }
    vec![
        "access can be requested where exactly one approval policy applies to the node, with credentials of a role, in the node's own \
         account and region"
            .to_owned(),
    ]
}

/// What to do when there is no approval, or it does not go so far.
fn unapproved(unapproved: &Unapproved, region: &str) -> Vec<String> {
    let again = "to request access again, end the manager with `autoheal-pa down` and start it again".to_owned();
    let shown = |request: &str| {
        command!("`aws ssm get-ops-item --ops-item-id {} --region {}` shows who has decided", request, region)
    };
    match unapproved {
        Unapproved::Rejected { request, .. } | Unapproved::Revoked { request, .. } => vec![shown(request), again],
        Unapproved::Unanswered { .. } | Unapproved::Withdrawn { .. } => vec![again],
        Unapproved::Pending { .. } | Unapproved::Over { .. } | Unapproved::NoNode { .. } => Vec::new(),
        Unapproved::Beyond { resource, .. } if resource.contains(":document/") => vec![
            "the policies that AWS publishes for just-in-time access (`AWSSystemsManagerJustInTimeAccessTokenPolicy`, version 6) allow \
             shells alone, the session document `SSM-SessionManagerRunShell`: ask whoever administers Systems Manager whether \
             forwarding can be allowed"
                .to_owned(),
            "a bastion that is no node takes no approval: `--bastion ssh://`, or tasks of ECS (`ecs:`, `fargate`), whose sessions take a \
             permission of yours"
                .to_owned(),
        ],
        Unapproved::Beyond { .. } => vec![again],
    }
}

/// What to do about a target that does not take sessions.
pub(crate) fn not_connected(target: &Target, region: &str, sighting: Option<&Sighting>) -> Vec<String> {
    let reasons = match sighting {
        None => format!(
            "`{target}` must be running, in this account and in {region}, and its agent must reach Systems Manager with \
             the permissions of `AmazonSSMManagedInstanceCore`"
        ),
        Some(Sighting { in_contact: true, .. }) => format!(
            "the agent on `{target}` must reach `ssmmessages` of {region} on port 443, and its instance profile must \
             allow `ssmmessages:CreateControlChannel`, `ssmmessages:OpenControlChannel`, `ssmmessages:CreateDataChannel` \
             and `ssmmessages:OpenDataChannel`, as `AmazonSSMManagedInstanceCore` does"
        ),
        Some(Sighting { in_contact: false, .. }) => {
            format!(
                "`{target}` must be running, and its agent must reach `ssm` and `ssmmessages` of {region} on port 443"
            )
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
pub(crate) fn not_found(target: &Target, region: &str) -> Vec<String> {
    let mut hints = vec![command!(
        "`aws ssm describe-instance-information --region {} --query \
         'InstanceInformationList[].[InstanceId,PingStatus,ComputerName]' --output table` lists what `--bastion` accepts; \
         also check `--region` and whose credentials these are",
        region
    )];
    if let Target::Instance(id) = target {
        hints.push(command!(
            "if it exists, it needs an instance profile with `AmazonSSMManagedInstanceCore`, and a minute \
                             or two after its first start: `aws ec2 describe-instances --instance-ids {} --region {} \
                             --query 'Reservations[].Instances[].[State.Name,IamInstanceProfile.Arn]'`",
            id,
            region
        ));
    }
    hints
}

/// What to do about a target that Systems Manager refuses to start a session on.
pub(crate) fn refused(
    target: &Target,
    region: &str,
    account: &str,
    source: &(dyn std::error::Error + 'static),
) -> Vec<String> {
    if let Some(AwsError::RegionDisabled { .. }) = find(source) {
        return find(source).map(|error| advice::assess(error).1).unwrap_or_default();
    }
    let text = sentence(source);
    // The service does not always say a word beside this code.
    let names_tier = text.contains("advanced-instances") || text.starts_with("BadRequest (");
    if names_tier && matches!(target, Target::ManagedNode(_)) {
        let partition = iam::partition(region);
        return vec![
            command!(
                "managed nodes need the advanced tier for sessions, which AWS charges for by the hour: turn it on with \
                 `aws ssm update-service-setting --setting-id \
                 arn:{}:ssm:{}:{}:servicesetting/ssm/managed-instance/activation-tier --setting-value advanced --region \
                 {}`",
                partition,
                region,
                account,
                region
            ),
            "or give another `--bastion`: EC2 instances and ECS tasks do not need it".to_owned(),
        ];
    }
    vec![
        "trying again will not help: fix what AWS reports first, or use another `--bastion`".to_owned(),
        command!(
            "`autoheal-pa doctor --bastion {} --region {}` checks the bastion step by step",
            target.as_str(),
            region
        ),
    ]
}

/// What to do when a call is denied; for a target that may not be the identity's fault.
fn denied(action: &str, resource: &str) -> Vec<String> {
    let mut hints = vec![advice::allow(action, resource)];
    if [":instance/", ":managed-instance/", ":task/"].iter().any(|kind| resource.contains(kind)) {
        hints.push(
            "a statement with a condition on tags allows nothing on a target without these tags, nor on one that does not exist"
                .to_owned(),
        );
    }
    if action == "ssm:StartSession" && [":instance/", ":managed-instance/"].iter().any(|kind| resource.contains(kind)) {
        hints.push(
            "where the account has just-in-time node access instead, `--request-access --reason TEXT` asks for an approval".to_owned(),
        );
    }
    if resource.contains(":task/") {
        hints.push(
            "AWS's guide on ECS Exec recommends to deny `ssm:StartSession` on tasks, so it may be meant: except these tasks from the \
             denial, or give `--bastion fargate` an ECS cluster of its own that is not denied"
                .to_owned(),
        );
    }
    hints
}

/// What to do about an agent that does not complete the handshake.
pub(super) fn silent_agent() -> Vec<String> {
    vec![
        "the agent on the bastion must reach `ssmmessages` of this region; restarting it may help".to_owned(),
        "`--timeout` sets how long to wait for an agent that is slow to start its worker".to_owned(),
    ]
}

fn closed(to: &Remote, reason: &CloseReason) -> Vec<String> {
    match reason {
        CloseReason::ChannelClosed { .. } if reason.is_refused_destination() => {
            let host = &to.endpoint().host;
            vec![
                command!(
                    "on the bastion `{}` resolves to an address that its agent does not forward to, such as loopback or \
                     AWS's address for metadata or credentials: run `getent ahosts {}` there to see it",
                    host,
                    host
                ),
                match to.cluster() {
                    Some(cluster) => command!(
                        "it must resolve to the API server: check `/etc/hosts`, the resolver, and the private hosted zones of \
                     the VPC; `autoheal-pa doctor --cluster {}` prints the commands",
                        cluster.name
                    ),
                    None => "name another host, or another kind of `--bastion`: an SSH server forwards wherever it may"
                        .to_owned(),
                },
            ]
        }
        CloseReason::ChannelClosed { output } if to.cluster().is_none() && output.contains("lookup ") => {
            let host = &to.endpoint().host;
            vec![command!(
                "the bastion must resolve `{}`: run `getent ahosts {}` there to see whether it does",
                host,
                host
            )]
        }
        CloseReason::Handshake(_) => {
            vec!["update the SSM agent on the bastion; 3.1.1374.0 is the oldest that works".to_owned()]
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
