//! What to do about trouble: commands of the AWS CLI with the user's own names in them, ready to be pasted.
//!
//! What other commands say as hints is taken from there. A command is one line; where its pieces are not known it
//! finds them itself.

use super::{excess, names::Names, words::is_explicit_deny};
use crate::{
    aws::{
        AwsError, ClusterDescription, SkipReason,
        advice::{SET_CLOCK, assess, network, of_blame},
        error::{Blame, blame},
    },
    bastion::Target,
    doctor::{Check, Place, Trouble},
    iam::Principal,
    route::ssm::proto::CloseReason,
    route::{
        ProbeError,
        ssm::{
            DialError, SessionFault,
            hints::{not_connected, not_found, refused},
            statements::{DOCUMENT, session_statement},
        },
    },
    util::{
        arn::Arn,
        peer_text::PeerText,
        quote::{Word, command},
    },
};

/// Finds fixes for one place.
pub(super) struct Fixes<'a> {
    place: &'a Place,
    names: Names,
    description: Option<&'a ClusterDescription>,
}

impl<'a> Fixes<'a> {
    pub(super) fn of(place: &'a Place) -> Self {
        Self { place, names: Names::of(place), description: place.description.as_deref() }
    }

    /// Returns what to do about trouble, the likeliest first.
    pub(super) fn trouble(&self, check: Check, trouble: &Trouble) -> Vec<String> {
        let Names { region, cluster, .. } = &self.names;
        match trouble {
            Trouble::Aws(error) => self.aws(error),
            Trouble::Expiring { .. } => assess(&AwsError::NotRenewed { origin: String::new() }).1,
            Trouble::TooMuch { excess, narrower, .. } => excess::fixes(self.place, excess, narrower),
            Trouble::NoClusters | Trouble::NoSuchCluster => vec![command!("aws eks list-clusters --region {}", region)],
            Trouble::Unusable(reason) => self.unusable(reason),
            Trouble::PublicOnly => vec![
                command!("aws eks update-kubeconfig --name {} --region {}", cluster, region),
                command!(
                    "aws eks update-cluster-config --name {} --region {} --resources-vpc-config \
                     endpointPrivateAccess=true",
                    cluster,
                    region
                ),
            ],
            Trouble::Port(_) => vec!["autoheal-pa up".to_owned()],
            Trouble::NoBastion => vec![command!(
                "add `--bastion i-0123456789abcdef0` or set `AUTOHEAL_PA_BASTION`; list what it accepts with `aws ssm \
                 describe-instance-information --region {} --query \
                 'InstanceInformationList[].[InstanceId,PingStatus,ComputerName]' --output table`",
                region
            )],
            Trouble::NotManaged => self.of_target(|target| not_found(target, region)),
            Trouble::Offline(sighting) => self.of_target(|target| not_connected(target, region, Some(sighting))),
            Trouble::AgentTooOld { .. } => self.update_agent(),
            Trouble::Dial(error) => self.dial(error),
            Trouble::Unsigned { said } => self.upgrade(said),
            Trouble::Clock(_) => vec![SET_CLOCK.to_owned()],
            Trouble::Fault(fault) => self.fault(check, fault),
            Trouble::Unresolvable { .. } => self.unresolvable(),
            Trouble::Refused { .. } => self.refused(),
            Trouble::NotReached(fault) | Trouble::NotFound(fault) => fault.hints.clone(),
            Trouble::Doubt { hints, .. } => hints.clone(),
            Trouble::Api(_) | Trouble::Status(_) if self.place.imported.is_some() => Vec::new(),
            Trouble::Api(_) | Trouble::Status(_) => {
                vec![command!("aws eks describe-cluster --name {} --region {} --query cluster.health", cluster, region)]
            }
            Trouble::Unauthorized => self.access_entry(),
            Trouble::MayNotListPods { user } => self.view_policy(user.as_ref()),
            Trouble::Incomplete(made) => vec![made.check.clone()],
        }
    }

    fn aws(&self, error: &AwsError) -> Vec<String> {
        let AwsError::AccessDenied { action, resource, .. } = error else { return assess(error).1 };
        if is_explicit_deny(error).is_some() {
            return assess(error).1;
        }
        let resource = match action.as_str() {
            "eks:DescribeCluster" => self.cluster_arn(),
            // The service names a pattern, which is a narrower one than the action takes.
            "eks:ListClusters" => "*".to_owned(),
            _ => resource.clone(),
        };
        vec![grant(self.place, &[action], &[resource])]
    }

    /// Returns what to do about an upgrade that is refused with these words.
    fn upgrade(&self, words: &str) -> Vec<String> {
        match blame(words) {
            Some(blame @ (Blame::Clock | Blame::Expired | Blame::Keys)) => of_blame(blame),
            Some(Blame::Permission) | None => vec![self.grant_session("ssmmessages:OpenDataChannel")],
        }
    }

    fn dial(&self, error: &DialError) -> Vec<String> {
        let region = &self.names.region;
        match error {
            DialError::TargetNotConnected { .. } => self.of_target(|target| not_connected(target, region, None)),
            DialError::TargetNotFound { .. } => self.of_target(|target| not_found(target, region)),
            DialError::AccessDenied { .. } if is_explicit_deny(error).is_some() => Vec::new(),
            DialError::AccessDenied { action: "ssm:StartSession", .. } => {
                let partition = self.partition();
                let account = self.place.caller.as_ref().map_or("ACCOUNT", |caller| caller.account.as_str());
                let document = match &self.place.document {
                    Some(document) => format!("arn:{partition}:ssm:{region}:{account}:document/{document}"),
                    None => format!("arn:{partition}:ssm:{region}::document/{DOCUMENT}"),
                };
                vec![grant(self.place, &["ssm:StartSession"], &[self.target_arn(), document])]
            }
            DialError::AccessDenied { action, .. } => vec![self.grant_session(action)],
            // The step before knows what to do about it.
            DialError::Unapproved(_) => Vec::new(),
            DialError::DocumentRefused { document, .. } => {
                vec![command!("aws ssm describe-document --name {} --region {}", &**document, region)]
            }
            DialError::Refused { source, .. } => {
                let account = self.place.caller.as_ref().map_or("ACCOUNT", |caller| caller.account.as_str());
                self.of_target(|target| refused(target, region, account, &**source))
            }
            DialError::UpgradeRefused { status: 401 | 403, detail, .. } => self.upgrade(detail),
            DialError::Unreachable { host, .. } | DialError::UpgradeRefused { host, .. } => network(host, error),
            DialError::ForeignStreamUrl { .. } => vec![
                "if this is an endpoint of your own, set `AWS_ENDPOINT_URL_SSM` to it: its host is then trusted"
                    .to_owned(),
            ],
            DialError::Throttled { .. } | DialError::Service { .. } | DialError::Timeout { .. } => {
                vec!["autoheal-pa doctor -vv".to_owned()]
            }
            DialError::SessionEnded { .. } | DialError::Credentials { .. } => Vec::new(),
        }
    }

    fn fault(&self, check: Check, fault: &SessionFault) -> Vec<String> {
        let Names { region, cluster, host, endpoint, url, .. } = &self.names;
        match fault {
            SessionFault::Start(error) | SessionFault::Resume(error) => self.dial(error),
            SessionFault::Closed(CloseReason::Handshake(_)) => self.update_agent(),
            SessionFault::Closed(CloseReason::ChannelClosed { .. }) if check == Check::Endpoint => {
                self.on_bastion(&command!("getent hosts {}; cat /etc/resolv.conf", host))
            }
            SessionFault::Closed(
                CloseReason::HandshakeTimeout { .. }
                | CloseReason::ChannelClosed { .. }
                | CloseReason::Unacknowledged { .. }
                | CloseReason::Smux(_)
                | CloseReason::Misbehaved { .. }
                | CloseReason::Paused { .. },
            ) => self.agent(),
            SessionFault::Probe(_) if check == Check::LocalPort => vec!["autoheal-pa up -v".to_owned()],
            SessionFault::Probe(ProbeError::NoAnswer { .. }) => {
                let mut fixes = self.security_group();
                fixes.extend(self.on_bastion(&command!("getent hosts {}; curl -skm 5 {}/livez", host, url)));
                fixes
            }
            SessionFault::Probe(
                ProbeError::Refused | ProbeError::Ended | ProbeError::Tls { .. } | ProbeError::NotHttp,
            ) => {
                let mut fixes = self.on_bastion(&command!("getent hosts {}; curl -skm 5 {}/livez", host, url));
                fixes.extend(self.security_group());
                fixes
            }
            SessionFault::Probe(ProbeError::Certificate { .. }) => {
                let show = Word::raw("openssl x509 -noout -issuer -subject");
                let mut fixes = self.on_bastion(&command!(
                    "getent hosts {}; openssl s_client -connect {} -servername {} </dev/null | {}",
                    host,
                    endpoint,
                    host,
                    show
                ));
                if self.place.imported.is_some() {
                    return fixes;
                }
                fixes.push(command!("aws eks describe-cluster --name {} --region {} --query cluster.certificateAuthority.data --output text \
                     | base64 -d | {}", cluster, region, show));
                fixes
            }
            SessionFault::Probe(ProbeError::Authority { .. }) if self.place.imported.is_some() => {
                vec![format!("check the certificate authority of the context `{cluster}` in its kubeconfig")]
            }
            SessionFault::Probe(ProbeError::Authority { .. }) => {
                vec![command!(
                    "aws eks describe-cluster --name {} --region {} --query cluster.certificateAuthority",
                    cluster,
                    region
                )]
            }
            SessionFault::Probe(ProbeError::LinkLost)
            | SessionFault::Transport(_)
            | SessionFault::Silent { .. }
            | SessionFault::Mute { .. }
            | SessionFault::Unanswered { .. }
            | SessionFault::TargetGone { .. }
            | SessionFault::Dropped { .. }
            | SessionFault::Exhausted
            | SessionFault::Abandoned(_) => vec!["autoheal-pa doctor -vv".to_owned()],
        }
    }

    fn unusable(&self, reason: &SkipReason) -> Vec<String> {
        let Names { region, cluster, .. } = &self.names;
        match reason {
            SkipReason::Status(status) if status == "CREATING" => {
                vec![command!("aws eks wait cluster-active --name {} --region {}", cluster, region)]
            }
            SkipReason::AccessDenied { .. } => vec![grant(self.place, &["eks:DescribeCluster"], &[self.cluster_arn()])],
            SkipReason::Status(_)
            | SkipReason::Connected
            | SkipReason::NoEndpoint
            | SkipReason::Endpoint
            | SkipReason::NoCertificateAuthority => vec![command!(
                "aws eks describe-cluster --name {} --region {} --query 'cluster.[status,endpoint,health.issues]'",
                cluster,
                region
            )],
        }
    }

    /// Finds out who leads the name to an address that agents refuse.
    fn refused(&self) -> Vec<String> {
        let Names { region, host, .. } = &self.names;
        let mut fixes = self.on_bastion(&command!("getent ahosts {}; cat /etc/hosts /etc/resolv.conf", host));
        if let Some(vpc) = self.description.and_then(|description| description.vpc_id.as_deref()) {
            fixes.push(command!("aws route53 list-hosted-zones-by-vpc --vpc-id {} --vpc-region {}", vpc, region));
        }
        fixes
    }

    fn unresolvable(&self) -> Vec<String> {
        let Names { region, host, .. } = &self.names;
        let mut fixes = self.on_bastion(&command!("getent hosts {}; cat /etc/resolv.conf", host));
        if let Some(vpc) = self.description.and_then(|description| description.vpc_id.as_deref()) {
            fixes.extend(["support", "hostnames"].map(|what| {
                command!("aws ec2 modify-vpc-attribute --vpc-id {} --region {} --enable-dns-{}", vpc, region, what)
            }));
        }
        fixes
    }

    /// Lets the cluster's security group admit the bastion.
    fn security_group(&self) -> Vec<String> {
        if self.place.imported.is_some() {
            return vec![
                "let whatever guards the API server, such as its load balancer's security group, admit the bastion"
                    .to_owned(),
            ];
        }
        let Names { region, cluster, .. } = &self.names;
        let group = match self.description.and_then(|description| description.security_group.as_deref()) {
            Some(group) => Word::from(group),
            None => Word::raw(command!(
                "\"$(aws eks describe-cluster --name {} --region {} --query \
                 cluster.resourcesVpcConfig.clusterSecurityGroupId --output text)\"",
                cluster,
                region
            )),
        };
        let source = match &self.place.target {
            Some(Target::Instance(id)) => Word::raw(command!(
                "--source-group \"$(aws ec2 describe-instances --instance-ids {} --region {} --query \
                 'Reservations[0].Instances[0].SecurityGroups[0].GroupId' --output text)\"",
                id,
                region
            )),
            Some(Target::EcsTask(_)) => Word::raw("--source-group SECURITY_GROUP_OF_THE_TASK"),
            Some(Target::ManagedNode(_)) | None => Word::raw("--cidr ADDRESS_OF_THE_BASTION/32"),
        };
        vec![command!(
            "aws ec2 authorize-security-group-ingress --region {} --group-id {} --protocol tcp --port 443 {}",
            region,
            group,
            source
        )]
    }

    /// Runs a command on the bastion, to see what it sees.
    fn on_bastion(&self, command: &str) -> Vec<String> {
        let region = &self.names.region;
        let Some(target) = &self.place.target else { return Vec::new() };
        vec![match target {
            Target::Instance(id) | Target::ManagedNode(id) => command!(
                "aws ssm start-session --target {} --region {} --document-name AWS-StartInteractiveCommand --parameters {}",
                id,
                region,
                format!("command=[{}]", json(command))
            ),
            Target::EcsTask(_) => {
                let (cluster, task) = target.ecs_task().unwrap_or_default();
                command!(
                    "aws ecs execute-command --cluster {} --task {} --region {} --interactive --command {}",
                    cluster,
                    task,
                    region,
                    format!("sh -c \"{command}\"")
                )
            }
        }]
    }

    fn update_agent(&self) -> Vec<String> {
        let region = &self.names.region;
        self.of_target(|target| {
            vec![match target {
                Target::Instance(id) | Target::ManagedNode(id) => command!("aws ssm send-command --document-name AWS-UpdateSSMAgent --targets Key=InstanceIds,Values={} --region {}", id, region),
                Target::EcsTask(_) => {
                    let (cluster, task) = target.ecs_task().unwrap_or_default();
                    command!("aws ecs stop-task --cluster {} --task {} --region {}", cluster, task, region)
                }
            }]
        })
    }

    /// Lets the agent work again.
    fn agent(&self) -> Vec<String> {
        let region = &self.names.region;
        self.of_target(|target| match target {
            Target::Instance(id) => vec![
                command!("aws ec2 describe-instances --instance-ids {} --region {} --query \
                     'Reservations[].Instances[].[State.Name,VpcId,SubnetId,IamInstanceProfile.Arn]'", id, region),
                command!("aws ec2 reboot-instances --instance-ids {} --region {}", id, region),
            ],
            Target::ManagedNode(id) => vec![command!("`sudo systemctl restart amazon-ssm-agent` on that node; `aws ssm describe-instance-information --filters \
                 Key=InstanceIds,Values={} --region {}` shows when it is back", id, region)],
            Target::EcsTask(_) => {
                let (cluster, task) = target.ecs_task().unwrap_or_default();
                vec![command!("aws ecs describe-tasks --cluster {} --tasks {} --region {}", cluster, task, region)]
            }
        })
    }

    /// Lets the cluster know the caller.
    fn access_entry(&self) -> Vec<String> {
        let Names { region, cluster, .. } = &self.names;
        let principal = principal(self.place);
        let role = without_path(&principal_arn(self.place));
        match self.mode() {
            "API" | "API_AND_CONFIG_MAP" => vec![
                command!(
                    "aws eks create-access-entry --cluster-name {} --region {} --principal-arn {}",
                    cluster,
                    region,
                    principal
                ),
                self.associate_view(),
            ],
            _ => vec![
                command!(
                    "add to `mapRoles` of `kubectl -n kube-system edit configmap aws-auth`: `- {{rolearn: {}, username: autoheal-pa, \
                     groups: [autoheal-pa]}}`",
                    role
                ),
                "kubectl create clusterrolebinding autoheal-pa --clusterrole=view --group=autoheal-pa".to_owned(),
                command!(
                    "or switch to access entries: `aws eks update-cluster-config --name {} --region {} \
                     --access-config authenticationMode=API_AND_CONFIG_MAP`",
                    cluster,
                    region
                ),
            ],
        }
    }

    /// Lets the caller see what is in the cluster.
    fn view_policy(&self, user: Option<&PeerText>) -> Vec<String> {
        match self.mode() {
            "API" | "API_AND_CONFIG_MAP" => vec![self.associate_view()],
            _ => vec![command!(
                "kubectl create clusterrolebinding autoheal-pa-view --clusterrole=view --user={}",
                user.map_or_else(|| Word::raw("USER"), Word::from)
            )],
        }
    }

    fn associate_view(&self) -> String {
        let Names { region, cluster, .. } = &self.names;
        command!(
            "aws eks associate-access-policy --cluster-name {} --region {} --principal-arn {} --policy-arn \
             arn:{}:eks::aws:cluster-access-policy/AmazonEKSViewPolicy --access-scope type=cluster",
            cluster,
            region,
            principal(self.place),
            self.partition()
        )
    }

    fn mode(&self) -> &str {
        self.description.and_then(|description| description.authentication_mode.as_deref()).unwrap_or("CONFIG_MAP")
    }

    fn grant_session(&self, action: &str) -> String {
        let statement = session_statement(action, caller(self.place).as_ref(), &self.names.region);
        grant_by(self.place, action, &statement)
    }

    fn of_target(&self, fixes: impl FnOnce(&Target) -> Vec<String>) -> Vec<String> {
        self.place.target.as_ref().map(fixes).unwrap_or_default()
    }

    fn partition(&self) -> &str {
        partition(self.place)
    }

    fn cluster_arn(&self) -> String {
        let Names { region, cluster, .. } = &self.names;
        format!("arn:{}:eks:{region}:{}:cluster/{cluster}", self.partition(), account(self.place))
    }

    fn target_arn(&self) -> String {
        let (partition, region, account) = (self.partition(), &self.names.region, account(self.place));
        match &self.place.target {
            Some(Target::ManagedNode(id)) => format!("arn:{partition}:ssm:{region}:{account}:managed-instance/{id}"),
            Some(target @ Target::EcsTask(_)) => {
                let (cluster, task) = target.ecs_task().unwrap_or_default();
                format!("arn:{partition}:ecs:{region}:{account}:task/{cluster}/{task}")
            }
            Some(Target::Instance(id)) => format!("arn:{partition}:ec2:{region}:{account}:instance/{id}"),
            None => "*".to_owned(),
        }
    }
}

/// Returns the command that allows the caller something.
pub(super) fn grant(place: &Place, actions: &[&str], resources: &[String]) -> String {
    let one_or_all = |list: &[String]| match list {
        [one] => json(one),
        list => format!("[{}]", list.iter().map(|item| json(item)).collect::<Vec<_>>().join(",")),
    };
    let action_list: Vec<String> = actions.iter().map(|action| (*action).to_owned()).collect();
    let statement =
        format!(r#"{{"Effect":"Allow","Action":{},"Resource":{}}}"#, one_or_all(&action_list), one_or_all(resources));
    grant_by(place, actions.first().copied().unwrap_or_default(), &statement)
}

/// Returns the command that gives the caller a statement, which is about this action.
fn grant_by(place: &Place, action: &str, statement: &str) -> String {
    let policy = format!(r#"{{"Version":"2012-10-17","Statement":[{statement}]}}"#);
    let name = format!("autoheal-pa-{}", action.split(':').nth(1).unwrap_or("all"));
    if sso_role(place).is_some() {
        return format!("allow it in the permission set of IAM Identity Center: {statement}");
    }
    let kind = match caller(place) {
        Some(Principal::Role { .. }) => "role",
        Some(Principal::User { .. }) => "user",
        None => return format!("allow it in a policy of this identity: {statement}"),
    };
    let principal = caller(place);
    let principal = principal.as_ref().map(Principal::name).unwrap_or_default();
    command!(
        "aws iam put-{}-policy --{}-name {} --policy-name {} --policy-document {}",
        kind,
        kind,
        principal,
        name,
        policy
    )
}

/// Returns the caller as IAM knows it.
fn caller(place: &Place) -> Option<Principal> {
    Principal::from_arn(&place.caller.as_ref()?.arn)
}

/// Returns what IAM and access entries know the caller by: of a role's session, the role.
fn principal(place: &Place) -> Word {
    match (sso_role(place), given_role(place)) {
        (Some(name), None) => {
            Word::raw(command!("\"$(aws iam get-role --role-name {} --query Role.Arn --output text)\"", name))
        }
        (Some(_) | None, _) => Word::from(&principal_arn(place)),
    }
}

/// Returns the ARN of the caller or, of a role's session, of the role as far as it is known.
pub(super) fn principal_arn(place: &Place) -> String {
    let Some(caller) = &place.caller else { return "ARN_OF_THE_ROLE".to_owned() };
    match (given_role(place), assumed_role(&caller.arn)) {
        (Some(role), _) => role.to_owned(),
        (None, Some(name)) => format!("arn:{}:iam::{}:role/{name}", partition(place), caller.account),
        (None, None) => caller.arn.clone(),
    }
}

/// Returns the ARN of the role that was asked for, if it is the caller's: that of a session lacks the role's path.
fn given_role(place: &Place) -> Option<&str> {
    let name = assumed_role(&place.caller.as_ref()?.arn)?;
    place.role_arn.as_deref().filter(|role| role.rsplit('/').next() == Some(name))
}

/// Returns the name of the role in the ARN of one of its sessions.
fn assumed_role(arn: &str) -> Option<&str> {
    arn.split_once(":assumed-role/")?.1.split('/').next()
}

/// Returns the name of a role that IAM Identity Center has made, which is under a path of its own.
fn sso_role(place: &Place) -> Option<&str> {
    assumed_role(&place.caller.as_ref()?.arn).filter(|name| name.starts_with("AWSReservedSSO_"))
}

/// Strips the path of a role's ARN, which `aws-auth` does not take.
fn without_path(arn: &str) -> String {
    match (arn.split_once(":role/"), arn.rsplit('/').next()) {
        (Some((before, _)), Some(name)) => format!("{before}:role/{name}"),
        _ => arn.to_owned(),
    }
}

/// Writes a string of JSON.
fn json(text: &str) -> String {
    serde_json::to_string(text).expect("a string is always JSON")
}

fn partition(place: &Place) -> &str {
    place.caller.as_ref().and_then(|caller| Arn::parse(&caller.arn)).map_or("aws", |arn| arn.partition)
}

fn account(place: &Place) -> &str {
    place.caller.as_ref().map_or("*", |caller| caller.account.as_str())
}
