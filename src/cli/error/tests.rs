//! Tests of what users are told, and of exit codes.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use super::*;
use crate::{
    aws::{
        AwsError, ProfileFault,
        error::{Cause, ServiceAnswer, TokenOrigin},
    },
    bastion::Target,
    cluster::{Cluster, Destination, Origin},
    route::{
        ProbeError,
        ssm::{
            DialError, SessionFault,
            proto::CloseReason,
            targets::{NotConnected, Sighting},
        },
    },
    settings::{Environment, GlobalArgs, UpArgs, UpSettings},
    tunnel::PortTaken,
};

const ROLE: &str = "arn:aws:iam::123456789012:role/team/ReadOnly";

fn cause(text: &str) -> Cause {
    Arc::new(io::Error::other(text.to_owned()))
}

fn cluster() -> Cluster {
    Cluster {
        name: "prod-eu".to_owned(),
        region: "eu-west-1".to_owned(),
        account: "123456789012".to_owned(),
        id: "arn:aws:eks:eu-west-1:123456789012:cluster/prod-eu".to_owned(),
        endpoint: Destination { host: "x.eks.amazonaws.com".to_owned(), port: 443 },
        certificate_authority: Some(String::new()),
        origin: Origin::Eks { token_name: "prod-eu".to_owned() },
        vpc: None,
    }
}

fn target() -> Target {
    "i-0abcdef1".parse().unwrap()
}

/// All that a user sees.
fn shown(error: impl Into<CommandError>) -> (Kind, String) {
    let error = error.into();
    let mut text = error.sentence();
    for hint in error.next_steps() {
        text.push_str("\nhint: ");
        text.push_str(hint);
    }
    (error.kind, text)
}

fn tunnel(fault: SessionFault) -> (Kind, String) {
    shown(CommandError::tunnel(&cluster().into(), &fault.into_fault(&cluster().into())))
}

#[test]
fn exit_codes_are_an_interface() {
    for (kind, code) in [
        (Kind::Unexpected, 1),
        (Kind::Usage, 2),
        (Kind::Credentials, 3),
        (Kind::NotFound, 4),
        (Kind::Tunnel, 5),
        (Kind::Doctor, 6),
        (Kind::Interrupted, 130),
        (Kind::Terminated, 143),
    ] {
        assert_eq!(format!("{:?}", kind.exit_code()), format!("{:?}", ExitCode::from(code)));
    }
}

#[test]
fn says_each_cause_once() {
    let inner = io::Error::other("it rains");
    let error = CommandError::new(Kind::Unexpected, "cannot go out").with_source(inner);
    assert_eq!(error.sentence(), "cannot go out: it rains");
    let repeated =
        CommandError::new(Kind::Unexpected, "cannot go out: it rains").with_source(io::Error::other("it rains"));
    assert_eq!(repeated.sentence(), "cannot go out: it rains");
    assert_eq!(repeated.to_string(), repeated.sentence());
}

#[test]
fn a_bastion_that_is_not_connected() {
    let source = io::Error::other("TargetNotConnected: i-0abcdef1 is not connected.").into();
    let (kind, text) = tunnel(SessionFault::Start(DialError::TargetNotConnected { target: target(), source }));
    assert_eq!(kind, Kind::NotFound);
    assert!(
        text.starts_with(
            "cannot open a tunnel to `prod-eu`: target `i-0abcdef1` is not connected to Systems Manager: TargetNotConnected: "
        ),
        "{text}"
    );
    assert!(
        text.contains(
            "`aws ssm describe-instance-information --filters Key=InstanceIds,Values=i-0abcdef1 --region eu-west-1`"
        ),
        "{text}"
    );

    let lost = |in_contact| {
        let sighting = Sighting { in_contact, last_contact: None, agent_version: None };
        let source = NotConnected { sighting, source: io::Error::other("TargetNotConnected").into() }.into();
        tunnel(SessionFault::Start(DialError::TargetNotConnected { target: target(), source }))
    };
    let (kind, text) = lost(false);
    assert_eq!(kind, Kind::NotFound);
    assert!(
        text.contains("is not connected to Systems Manager: its agent has lost contact: TargetNotConnected"),
        "{text}"
    );
    assert!(text.contains("`aws ec2 start-instances --instance-ids i-0abcdef1 --region eu-west-1`"), "{text}");
    let (_, text) = lost(true);
    assert!(text.contains("must reach `ssmmessages` of eu-west-1"), "{text}");

    let target: Target = "ecs:my_tools_0123_4567".parse().unwrap();
    let source = io::Error::other("no").into();
    let (_, text) = tunnel(SessionFault::Start(DialError::TargetNotConnected { target, source }));
    assert!(text.contains("`aws ecs describe-tasks --cluster my_tools --tasks 0123 --region eu-west-1`"), "{text}");
}

#[test]
fn bastions_that_do_not_exist() {
    let source = io::Error::other("TargetNotConnected: no").into();
    let region = "eu-west-1".to_owned();
    let (kind, text) = tunnel(SessionFault::Start(DialError::TargetNotFound { target: target(), region, source }));
    assert_eq!(kind, Kind::NotFound);
    assert!(
        text.starts_with(
            "cannot open a tunnel to `prod-eu`: target `i-0abcdef1` does not exist, is terminated, or has never registered with \
             Systems Manager in eu-west-1 of this account: TargetNotConnected: no\nhint: `aws ssm describe-instance-information \
             --region eu-west-1 "
        ),
        "{text}"
    );
    assert!(text.contains("`aws ec2 describe-instances --instance-ids i-0abcdef1 --region eu-west-1 "), "{text}");
}

#[test]
fn what_is_not_allowed() {
    let denied = |resource: &str| {
        let source = io::Error::other("AccessDeniedException").into();
        tunnel(SessionFault::Start(DialError::AccessDenied {
            action: "ssm:StartSession",
            resource: resource.to_owned(),
            source,
        }))
    };
    let document = "arn:aws:ssm:eu-west-1::document/AWS-StartPortForwardingSessionToRemoteHost";
    let (kind, text) = denied(document);
    assert_eq!(kind, Kind::Credentials);
    assert!(text.contains("hint: it is the document that is not allowed, not the bastion"), "{text}");
    let (_, text) = denied("arn:aws:ec2:eu-west-1:123456789012:instance/i-0abcdef1");
    assert!(
        text.contains("must allow `ssm:StartSession` on `arn:aws:ec2:eu-west-1:123456789012:instance/i-0abcdef1`"),
        "{text}"
    );
    assert!(text.contains("nor on one that does not exist"), "{text}");

    let refused = DialError::UpgradeRefused {
        host: "ssmmessages.eu-west-1.amazonaws.com".into(),
        status: 403,
        detail: "".into(),
    };
    let (kind, text) = tunnel(SessionFault::Start(refused));
    assert_eq!(kind, Kind::Credentials);
    assert!(text.contains("`ssmmessages:OpenDataChannel` on `arn:aws:ssm:*:*:session/*`"), "{text}");

    let list = AwsError::AccessDenied { action: "eks:ListClusters".into(), resource: "*".into(), source: cause("no") };
    let (kind, text) = shown(list);
    assert_eq!(kind, Kind::Credentials);
    assert!(text.ends_with("hint: this identity's IAM policy must allow `eks:ListClusters` on `*`"), "{text}");
}

#[test]
fn what_is_refused() {
    let refused = |target: &str, said: &str| {
        tunnel(SessionFault::Start(DialError::Refused {
            action: "ssm:StartSession",
            resource: target.to_owned(),
            source: io::Error::other(said.to_owned()).into(),
        }))
    };
    let tier = "aws ssm update-service-setting --setting-id \
                arn:aws:ssm:eu-west-1:123456789012:servicesetting/ssm/managed-instance/activation-tier --setting-value advanced \
                --region eu-west-1`";
    for said in ["BadRequest: Enable advanced-instances tier to use Session Manager", "BadRequest (HTTP status 400)"] {
        let (kind, text) = refused("mi-0123456789abcdef0", said);
        assert_eq!(kind, Kind::Tunnel);
        assert!(text.starts_with(&format!(
            "cannot open a tunnel to `prod-eu`: `ssm:StartSession` on `mi-0123456789abcdef0` was refused: {said}\nhint: "
        )));
        assert!(text.contains(tier), "{text}");
    }
    for (target, said) in
        [("mi-0123456789abcdef0", "ValidationException: no"), ("i-0abcdef1", "BadRequest (HTTP status 400)")]
    {
        let (_, text) = refused(target, said);
        assert!(text.contains(&format!("`autoheal-pa doctor --bastion {target} --region eu-west-1`")), "{text}");
        assert!(!text.contains("activation-tier"), "{text}");
    }
}

#[test]
fn credentials_that_end_while_a_session_starts() {
    let path = PathBuf::from("/var/run/token");
    let expired = AwsError::TokenExpired { origin: TokenOrigin::File(path), source: cause("at noon") };
    let (kind, text) =
        tunnel(SessionFault::Start(DialError::Credentials { action: "ssm:StartSession", source: expired.into() }));
    assert_eq!(kind, Kind::Credentials);
    assert_eq!(
        text,
        "cannot open a tunnel to `prod-eu`: there are no valid credentials for `ssm:StartSession`: the web identity token in \
         `/var/run/token` has expired: at noon\nhint: have whatever writes `/var/run/token` renew it; the file is read again at each \
         renewal"
    );
}

#[test]
fn what_is_behind_the_tunnel() {
    let (kind, text) = tunnel(SessionFault::Probe(ProbeError::Refused));
    assert_eq!(kind, Kind::Tunnel);
    assert!(
        text.starts_with(
            "cannot open a tunnel to `prod-eu`: the API server was not reached through the session: no connection to the API server \
             could be made\nhint: the bastion must resolve `x.eks.amazonaws.com`"
        ),
        "{text}"
    );
    assert!(text.contains("aws eks describe-cluster --name prod-eu --region eu-west-1 --query"), "{text}");
    let source = rustls::Error::General("wrong".into());
    let (kind, text) =
        tunnel(SessionFault::Probe(ProbeError::Certificate { host: "x.eks.amazonaws.com".into(), source }));
    assert_eq!(kind, Kind::Tunnel);
    assert!(text.contains("is not the API server of `prod-eu`"), "{text}");
}

#[test]
fn other_faults() {
    let (kind, text) = tunnel(SessionFault::Start(DialError::ForeignStreamUrl { host: "evil.example".into() }));
    assert_eq!(kind, Kind::Tunnel);
    assert!(text.contains("`AWS_ENDPOINT_URL_SSM`"), "{text}");
    let reason = CloseReason::HandshakeTimeout { seconds: 30, requested: false };
    let (kind, text) = tunnel(SessionFault::Closed(reason));
    assert_eq!(kind, Kind::Tunnel);
    assert!(text.starts_with("cannot open a tunnel to `prod-eu`: the session is over: the agent did not"), "{text}");
    assert!(text.contains("`--timeout` sets how long to wait for an agent"), "{text}");
    let output = "Forwarding to IP address x.eks.amazonaws.com is forbidden.".to_owned();
    let (kind, text) = tunnel(SessionFault::Closed(CloseReason::ChannelClosed { output: output.into() }));
    assert_eq!(kind, Kind::Tunnel);
    let sentence = "cannot open a tunnel to `prod-eu`: the session is over: the agent refuses this destination: Forwarding to IP \
                    address x.eks.amazonaws.com is forbidden.\nhint: on the bastion `";
    assert!(text.starts_with(sentence) && text.contains("`autoheal-pa doctor --cluster prod-eu`"), "{text}");
    let (_, text) = tunnel(SessionFault::Closed(CloseReason::ChannelClosed { output: "Bye.".into() }));
    assert!(text.ends_with("the service ended the session: Bye."), "{text}");
    let (kind, text) = tunnel(SessionFault::Silent { seconds: 30 });
    assert_eq!((kind, text.lines().count()), (Kind::Tunnel, 1));
}

#[test]
fn kinds_of_aws_errors() {
    let origin = || TokenOrigin::File("/token".into());
    let role = || ROLE.to_owned();
    let profile = |fault| AwsError::Profile { name: "dev".into(), fault: Arc::new(fault) };
    let page = Arc::new(ServiceAnswer { code: None, message: None, status: Some(302), request_id: None });
    for (error, kind, hint) in [
        (AwsError::NoRegion, Kind::Usage, "`--region us-east-1`"),
        (AwsError::UnknownProfile { name: "dev".into(), files: vec!["/c".into()] }, Kind::Usage, "`AWS_PROFILE`"),
        (
            profile(ProfileFault::Login { profile: "signed in".into() }),
            Kind::Credentials,
            "`credential_process = aws configure export-credentials --profile 'signed in' --format process`",
        ),
        (
            profile(ProfileFault::Mfa { serial: "arn".into(), asked: false, source: cause("") }),
            Kind::Credentials,
            "`eval \"$(aws configure export-credentials --profile dev --format env)\"`",
        ),
        (profile(ProfileFault::NoCredentials { keys: Vec::new() }), Kind::Credentials, "`aws configure --profile dev`"),
        (
            profile(ProfileFault::Lacks { profile: "dev".into(), has: "sso_session", lacks: vec!["sso_role_name"] }),
            Kind::Usage,
            "`aws configure sso --profile dev`",
        ),
        (AwsError::NoCredentials { attempted: String::new() }, Kind::Credentials, "--web-identity-token-file PATH"),
        (AwsError::TokenExpired { origin: origin(), source: cause("") }, Kind::Credentials, "`/token` renew it"),
        (AwsError::TokenMalformed { origin: origin(), reason: "it is empty" }, Kind::Credentials, "JSON Web Token"),
        (
            AwsError::InvalidIdentityToken { origin: origin(), role: role(), source: cause("") },
            Kind::Credentials,
            "account 123456789012 needs an IAM OIDC provider",
        ),
        (
            AwsError::RoleDenied { role: role(), passed_over: Vec::new(), source: cause("") },
            Kind::Credentials,
            "--role-name ReadOnly --query",
        ),
        (
            AwsError::DurationTooLong { role: role(), seconds: 43_200, source: cause("") },
            Kind::Credentials,
            "--role-name ReadOnly --max-session-duration 43200",
        ),
        (AwsError::ExpiredCredentials { source: cause("") }, Kind::Credentials, "get new credentials"),
        (
            AwsError::Service { action: "eks:ListClusters", source: page },
            Kind::Unexpected,
            "the network wants you to sign in",
        ),
        (
            AwsError::Unreachable { host: "sts.example".into(), source: cause("") },
            Kind::Unexpected,
            "on port 443; set a pro",
        ),
        (
            AwsError::Unreachable { host: "localhost:8443".into(), source: cause("") },
            Kind::Unexpected,
            "to `localhost:8443`; set a proxy with `HTTPS_PROXY`",
        ),
        (
            AwsError::Unreachable {
                host: "sts.example".into(),
                source: cause("TLS handshake failed: invalid peer certificate: UnknownIssuer"),
            },
            Kind::Unexpected,
            "package `ca-certificates`",
        ),
        (
            AwsError::Unreachable {
                host: "sts.example".into(),
                source: cause("invalid peer certificate: certificate expired: verification time 1 (UNIX)"),
            },
            Kind::Unexpected,
            "set this machine's clock",
        ),
        (
            AwsError::Unreachable {
                host: "sts.example".into(),
                source: cause("tunnel error: failed to create underlying connection: unsupported scheme socks5"),
            },
            Kind::Unexpected,
            "the proxy in `HTTPS_PROXY` is an HTTP proxy",
        ),
        (
            AwsError::ClusterNotFound {
                name: "Prod".into(),
                region: "r".into(),
                known: vec!["prod".into(), "no".into()],
            },
            Kind::NotFound,
            "r has `prod`, `no`; names are case-sensitive",
        ),
        (
            AwsError::ClusterNotFound { name: "Prod".into(), region: "r".into(), known: Vec::new() },
            Kind::NotFound,
            "`autoheal-pa clusters --region r`",
        ),
    ] {
        let name = error.to_string();
        let (actual, text) = shown(error);
        assert_eq!(actual, kind, "{name}");
        assert!(text.split_once("\nhint: ").unwrap().1.contains(hint), "{text}");
    }
}

#[test]
fn settings_ports_files_and_managers() {
    let error = UpSettings::load(&GlobalArgs::default(), &UpArgs::default(), &Environment::default()).unwrap_err();
    let (kind, text) = shown(error);
    assert_eq!(kind, Kind::Usage);
    assert!(text.starts_with("no bastion is given: add `--bastion`"), "{text}");
    assert!(text.contains("\nhint: give a machine"), "{text}");

    let (kind, text) = shown(BindError::Taken(PortTaken { port: 10100, owner: None }));
    assert_eq!(kind, Kind::Tunnel);
    assert!(text.contains("port 10100") && text.contains("`--strict-ports`"), "{text}");

    let path = PathBuf::from("/k");
    let locked = |age| KubeconfigError::Locked { path: "/k".into(), lock: "/k.lock".into(), holder: None, age };
    let (kind, text) = shown(locked(None));
    assert_eq!(kind, Kind::Unexpected);
    assert_eq!(
        text,
        "the kubeconfig `/k` is locked by `/k.lock`\nhint: if no kubectl is running, it was left behind: remove it with \
         `rm /k.lock`"
    );
    let (_, text) = shown(locked(Some(Duration::from_secs(190))));
    assert!(
        text.contains("\nhint: it was made 3 min 10 s ago; if no kubectl is running, it was left behind"),
        "{text}"
    );
    let source = io::ErrorKind::StorageFull.into();
    let (kind, text) = shown(KubeconfigError::Unwritable { path: "/a/k".into(), source });
    assert_eq!(kind, Kind::Usage);
    assert_eq!(
        text,
        "cannot write the kubeconfig `/a/k`: no storage space\nhint: free some space for `/a`, or give another file with \
         `--kubeconfig`; nothing was changed"
    );
    let (kind, text) = shown(KubeconfigError::Unwritable { path, source: io::ErrorKind::PermissionDenied.into() });
    assert_eq!(
        (kind, text.as_str()),
        (
            Kind::Usage,
            "cannot write the kubeconfig `/k`: permission denied\nhint: give another file with `--kubeconfig`"
        )
    );

    let (kind, text) = shown(ControlError::Running { dir: "/run/x".into(), pid: Some(17) });
    assert_eq!(kind, Kind::Usage);
    assert_eq!(
        text,
        "a manager is already running as process 17 in `/run/x`\nhint: stop it with `autoheal-pa down --name x`, or give this \
         one another `--name`"
    );
}

#[test]
fn the_table_of_exit_codes_is_complete() {
    // A new kind has to be named here, and then in `ALL`.
    let place = |kind: Kind| match kind {
        Kind::Unexpected => 0,
        Kind::Usage => 1,
        Kind::Credentials => 2,
        Kind::NotFound => 3,
        Kind::Tunnel => 4,
        Kind::Doctor => 5,
        Kind::Interrupted => 6,
        Kind::Terminated => 7,
    };
    assert!(Kind::ALL.iter().enumerate().all(|(index, kind)| place(*kind) == index));
    let codes: Vec<u8> = exit_codes().map(|(code, _)| code).collect();
    assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 130, 143]);
}

#[test]
fn the_manual_has_the_table_of_exit_codes() {
    let rows: String = exit_codes().map(|(code, meaning)| format!("| {code} | {meaning} |\n")).collect();
    let chapter = include_str!("../../manual/operations.md");
    assert!(chapter.contains(&format!("| code | means |\n|---:|---|\n{rows}\n")), "it should have\n{rows}");
}
