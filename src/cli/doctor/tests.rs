//! What is printed, and commands for identities and bastions of every kind.

use std::{io, sync::Arc};

use super::*;
use crate::{
    aws::{AwsError, Caller, ClusterDescription, SkipReason, error::Cause},
    cli::output::Captured,
    cluster::{Cluster, Destination, Origin},
    doctor::{Fact, Finding, Outcome, Place, Reason, Trouble},
    iam::Principal,
    route::ssm::proto::CloseReason,
    route::{
        ProbeError,
        ssm::{DialError, SessionFault, SessionId, statements::session_statement},
    },
};

fn caller(arn: &str) -> Caller {
    Caller {
        account: arn.split(':').nth(4).unwrap().to_owned(),
        arn: arn.to_owned(),
        user_id: "AROA:alice".to_owned(),
        source: "keys in the environment".to_owned(),
        expires: None,
    }
}

/// A place in GovCloud, so that nothing can be right by chance.
fn place(arn: &str, target: &str) -> Place {
    let cluster = Cluster {
        name: "payments".to_owned(),
        region: "us-gov-west-1".to_owned(),
        account: "123456789012".to_owned(),
        id: "arn:aws-us-gov:eks:us-gov-west-1:123456789012:cluster/payments".to_owned(),
        endpoint: Destination { host: "x.eks.amazonaws.com".to_owned(), port: 443 },
        certificate_authority: Some(String::new()),
        origin: Origin::Eks { token_name: "payments".to_owned() },
        vpc: None,
    };
    let description = ClusterDescription {
        name: cluster.name.clone(),
        region: cluster.region.clone(),
        arn: cluster.id.clone(),
        status: "ACTIVE".into(),
        version: None,
        endpoint_public: false,
        endpoint_private: true,
        authentication_mode: Some("API".into()),
        vpc_id: None,
        security_group: None,
        access: Ok(cluster),
    };
    Place {
        imported: None,
        region: Some("us-gov-west-1".to_owned()),
        caller: Some(Arc::new(caller(arn))),
        role_arn: None,
        cluster: Some("payments".to_owned()),
        description: Some(Arc::new(description)),
        route: Some(target.to_owned()),
        target: Some(target.parse().unwrap()),
        document: None,
    }
}

const ROLE: &str = "arn:aws-us-gov:sts::123456789012:assumed-role/Reader/alice";
const BASTION: &str = "i-0abcdef1";

fn failed(check: Check, place: Place, trouble: Trouble) -> Entry {
    entry(&Finding { check, place, tried: None, outcome: Outcome::Failed(trouble), took: Duration::from_millis(7) })
}

fn denied(text: &str) -> Trouble {
    let source = io::Error::other(text.to_owned()).into();
    let resource = "arn:aws-us-gov:ssm:us-gov-west-1:123456789012:session/alice-1".to_owned();
    Trouble::Dial(DialError::AccessDenied { action: "ssm:TerminateSession", resource, source })
}

#[test]
fn a_principal_is_what_iam_knows() {
    let unauthorized = |place| failed(Check::Api, place, Trouble::Unauthorized).fixes.swap_remove(0);
    let with = |arn| unauthorized(place(arn, BASTION));
    assert_eq!(
        with(ROLE),
        "aws eks create-access-entry --cluster-name payments --region us-gov-west-1 --principal-arn \
         arn:aws-us-gov:iam::123456789012:role/Reader"
    );
    let user = "arn:aws-us-gov:iam::123456789012:user/ops/alice";
    assert!(with(user).ends_with(&format!("--principal-arn {user}")));
    // Roles of IAM Identity Center are under a path that the session's ARN lacks.
    let sso = with("arn:aws-us-gov:sts::123456789012:assumed-role/AWSReservedSSO_Admin_0123456789abcdef/alice");
    let look_up =
        "\"$(aws iam get-role --role-name AWSReservedSSO_Admin_0123456789abcdef --query Role.Arn --output text)\"";
    assert!(sso.ends_with(&format!("--principal-arn {look_up}")), "{sso}");
    // So is that of a role that was named with its path.
    let role = "arn:aws-us-gov:iam::123456789012:role/team/Reader";
    let named = unauthorized(Place { role_arn: Some(role.to_owned()), ..place(ROLE, BASTION) });
    assert!(named.ends_with(&format!("--principal-arn {role}")), "{named}");
    let another = Place { role_arn: Some("arn:aws-us-gov:iam::1:role/Other".to_owned()), ..place(ROLE, BASTION) };
    assert!(unauthorized(another).ends_with(":role/Reader"));
}

#[test]
fn aws_auth_takes_roles_without_their_path() {
    let mut place = place(ROLE, BASTION);
    place.role_arn = Some("arn:aws-us-gov:iam::123456789012:role/team/Reader".to_owned());
    Arc::get_mut(place.description.as_mut().unwrap()).unwrap().authentication_mode = None;
    let entry = failed(Check::Api, place, Trouble::Unauthorized);
    assert!(entry.fixes[0].contains("{rolearn: arn:aws-us-gov:iam::123456789012:role/Reader, "), "{entry:#?}");
    assert!(entry.meaning.unwrap().contains("CONFIG_MAP"));
}

#[test]
fn a_permission_is_given_where_it_is_kept() {
    let fix = |arn| failed(Check::TerminateSession, place(arn, BASTION), denied("no")).fixes.swap_remove(0);
    let of = |arn| session_statement("ssm:TerminateSession", Principal::from_arn(arn).as_ref(), "us-gov-west-1");
    let statement = of(ROLE);
    let policy = |statement: &str| {
        format!(
            r#"--policy-name autoheal-pa-TerminateSession --policy-document '{{"Version":"2012-10-17","Statement":[{statement}]}}'"#
        )
    };
    assert_eq!(fix(ROLE), format!("aws iam put-role-policy --role-name Reader {}", policy(&statement)));
    let user = "arn:aws-us-gov:iam::123456789012:user/ops/alice";
    assert_eq!(fix(user), format!("aws iam put-user-policy --user-name alice {}", policy(&of(user))));
    assert!(of(user).contains("session/${aws:username}-*") && !statement.contains("username"));
    let sso = "arn:aws-us-gov:sts::123456789012:assumed-role/AWSReservedSSO_Admin_0123456789abcdef/alice";
    assert_eq!(fix(sso), format!("allow it in the permission set of IAM Identity Center: {statement}"));
    let root = "arn:aws-us-gov:iam::123456789012:root";
    assert_eq!(fix(root), format!("allow it in a policy of this identity: {statement}"));
}

#[test]
fn what_is_forbidden_explicitly_is_not_granted() {
    for (text, by) in [
        ("not authorized with an explicit deny in a service control policy", "service control policy"),
        ("because no permissions boundary allows the action", "permissions boundary"),
        ("because no session policy allows the action", "session policy"),
        ("with an explicit deny in an identity-based policy", "explicit deny"),
    ] {
        let entry = failed(Check::TerminateSession, place(ROLE, BASTION), denied(text));
        assert!(entry.meaning.as_ref().unwrap().contains(by), "{entry:#?}");
        assert!(entry.fixes.iter().all(|fix| !fix.contains("put-role-policy")), "{entry:#?}");
    }
    let source: Cause = Arc::new(io::Error::other("with an explicit deny in a service control policy"));
    let error = AwsError::AccessDenied { action: "eks:ListClusters".into(), resource: "*".into(), source };
    let entry = failed(Check::ListClusters, place(ROLE, BASTION), Trouble::Aws(error));
    assert!(entry.meaning.as_ref().unwrap().contains("service control policy"), "{entry:#?}");
    assert!(entry.fixes.iter().all(|fix| !fix.contains("put-role-policy")), "{entry:#?}");
}

#[test]
fn every_kind_of_bastion_has_commands_of_its_own() {
    let fixes = |target| {
        let silent = Trouble::Fault(SessionFault::Probe(ProbeError::NoAnswer { seconds: 12 }));
        failed(Check::Endpoint, place(ROLE, target), silent).fixes.join("\n")
    };
    let instance = fixes(BASTION);
    assert!(
        instance.contains("--source-group \"$(aws ec2 describe-instances --instance-ids i-0abcdef1 "),
        "{instance}"
    );
    // Its security group is not known, so the command finds it.
    assert!(
        instance.contains("--group-id \"$(aws eks describe-cluster --name payments --region us-gov-west-1 "),
        "{instance}"
    );
    let node = fixes("mi-0dc03fbcae2a87472");
    assert!(
        node.contains("--cidr ") && node.contains("aws ssm start-session --target mi-0dc03fbcae2a87472 "),
        "{node}"
    );
    let task = fixes("ecs:my_tools_0123_4567");
    assert!(task.contains("aws ecs execute-command --cluster my_tools --task 0123 --region us-gov-west-1 "), "{task}");

    let source = io::Error::other("no").into();
    let denied = DialError::AccessDenied { action: "ssm:StartSession", resource: "*".to_owned(), source };
    let entry = failed(Check::StartSession, place(ROLE, "ecs:my_tools_0123_4567"), Trouble::Dial(denied));
    assert!(
        entry.fixes[0].contains(
            r#"["arn:aws-us-gov:ecs:us-gov-west-1:123456789012:task/my_tools/0123","arn:aws-us-gov:ssm:us-gov-west-1::document/AWS-StartPortForwardingSessionToRemoteHost"]"#
        ),
        "{entry:#?}"
    );
}

#[test]
fn an_agent_that_ends_the_session_may_have_any_reason() {
    let output = "Unable to start the session.".to_owned();
    let closed = Trouble::Fault(SessionFault::Closed(CloseReason::ChannelClosed { output: output.as_str().into() }));
    let entry = failed(Check::Endpoint, place(ROLE, BASTION), closed);
    assert!(entry.answer.unwrap().ends_with(&output));
    let meaning = entry.meaning.unwrap();
    assert!(meaning.ends_with("what `x.eks.amazonaws.com` resolves to there, say why"), "{meaning}");
    assert!(entry.fixes[0].contains("getent hosts x.eks.amazonaws.com"), "{:?}", entry.fixes);
}

fn sample() -> Vec<Entry> {
    let finding =
        |check, place: Place, outcome| entry(&Finding { check, place, tried: None, outcome, took: Duration::ZERO });
    let region = Place { region: Some("us-gov-west-1".to_owned()), ..Place::default() };
    let place = place(ROLE, BASTION);
    let skipped = |check| finding(check, place.clone(), Outcome::Skipped(Reason::Needs(Check::Handshake)));
    vec![
        finding(Check::Region, region, Outcome::Passed(Fact::Region("us-gov-west-1".to_owned()))),
        finding(
            Check::EndpointAccess,
            Place { route: None, target: None, ..place.clone() },
            Outcome::Doubtful(Trouble::PublicOnly),
        ),
        finding(Check::StartSession, place.clone(), Outcome::Passed(Fact::Session(SessionId("alice-1".to_owned())))),
        failed(
            Check::Handshake,
            place.clone(),
            Trouble::Fault(SessionFault::Closed(CloseReason::HandshakeTimeout { seconds: 15, requested: false })),
        ),
        skipped(Check::Endpoint),
        skipped(Check::Certificate),
        skipped(Check::Api),
        finding(Check::ResumeSession, place.clone(), Outcome::Skipped(Reason::SessionOver)),
        finding(Check::TerminateSession, place, Outcome::Passed(Fact::Terminated)),
    ]
}

fn printed(json: bool, entries: Vec<Entry>) -> (String, Result<ExitCode, CommandError>) {
    let (printer, out, _) = Captured::printer();
    let mut sheet = Sheet::new(json, &printer);
    for entry in entries {
        sheet.add(entry);
    }
    let outcome = sheet.finish();
    (out.text(), outcome)
}

#[test]
fn prints_lines_with_what_matters_below() {
    let (text, outcome) = printed(false, sample());
    insta::assert_snapshot!(text);
    let error = outcome.unwrap_err();
    assert_eq!((error.kind, error.sentence().as_str()), (Kind::Doctor, "1 check has failed"));
}

#[test]
fn colours_say_no_more_than_words() {
    let paint = Paint::coloured();
    for entry in sample() {
        let coloured = text(&entry, paint);
        let plain = ["32", "31", "33", "2", "36;1", "0"]
            .iter()
            .fold(coloured.clone(), |text, code| text.replace(&format!("\x1b[{code}m"), ""));
        assert_eq!(plain, text(&entry, Paint::plain()));
        assert_ne!(coloured, plain);
    }
}

#[test]
fn what_is_skipped_at_the_end_is_printed_as_well() {
    let mut entries = sample();
    entries.truncate(7);
    let (text, _) = printed(false, entries);
    assert!(
        text.ends_with(
            "skipped  3 checks             payments through i-0abcdef1: `bastion reaches API` to `API answers`: not tried without \
             `agent handshake`\n"
        ),
        "{text}"
    );
}

#[test]
fn prints_one_object() {
    let (text, outcome) = printed(true, sample());
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["version"], &json["ok"]), (&1.into(), &false.into()));
    assert_eq!(json["checks"].as_array().unwrap().len(), sample().len(), "nothing is put together");
    assert_eq!(
        json["checks"][2],
        serde_json::json!({
            "id": "start-session",
            "title": "start session",
            "status": "ok",
            "region": "us-gov-west-1",
            "cluster": "payments",
            "target": "i-0abcdef1",
            "tried": "`ssm:StartSession` on `i-0abcdef1` to `x.eks.amazonaws.com:443`",
            "answer": "alice-1",
            "meaning": null,
            "fixes": [],
            "duration_ms": 0,
        })
    );
    assert_eq!(outcome.unwrap_err().kind, Kind::Doctor);

    let (text, outcome) = printed(true, sample().into_iter().take(3).collect());
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["ok"], true, "warnings are not failures");
    assert!(outcome.is_ok());
}

/// What a peer may say to have a command run, or another shown. Quoted, none of them is as it was.
const HOSTILE: [&str; 5] =
    ["x'; touch z; echo '", "'$(touch z)`touch z`", "-x '--y touch", "x'\ntouch z", "x'\u{202e}touch"];

/// The rest of a command without what is quoted as it should be, by itself and in JSON.
fn unquoted(fix: &str, value: &str) -> String {
    let within_quotes = |text: &str| text.replace('\'', r"'\''");
    let json = serde_json::to_string(value).unwrap();
    fix.replace(&within_quotes(value), "").replace(&within_quotes(json.trim_matches('"')), "")
}

#[test]
fn whatever_peers_call_things_no_command_runs_another() {
    for value in HOSTILE {
        let mut place = place(&format!("arn:aws:sts::{value}:assumed-role/{value}/x"), BASTION);
        place.cluster = Some(value.to_owned());
        let description = Arc::get_mut(place.description.as_mut().unwrap()).unwrap();
        description.name = value.to_owned();
        description.vpc_id = Some(value.to_owned());
        description.security_group = Some(value.to_owned());
        let source = || -> crate::fault::BoxError { io::Error::other(value).into() };
        for mode in [None, Some("API")] {
            let description = Arc::get_mut(place.description.as_mut().unwrap()).unwrap();
            description.authentication_mode = mode.map(Into::into);
            let troubles = [
                Trouble::NoClusters,
                Trouble::PublicOnly,
                Trouble::NotManaged,
                Trouble::NoBastion,
                Trouble::Unauthorized,
                Trouble::Unsigned { said: value.into() },
                Trouble::Unresolvable { said: value.into() },
                Trouble::Refused { said: value.into() },
                Trouble::Status(500),
                Trouble::MayNotListPods { user: Some(value.into()) },
                Trouble::Unusable(SkipReason::Status("CREATING".into())),
                Trouble::Unusable(SkipReason::Endpoint),
                Trouble::Dial(DialError::TargetNotConnected { target: BASTION.parse().unwrap(), source: source() }),
                Trouble::Dial(DialError::TargetNotFound {
                    target: BASTION.parse().unwrap(),
                    region: "us-gov-west-1".to_owned(),
                    source: source(),
                }),
                Trouble::Fault(SessionFault::Probe(ProbeError::NoAnswer { seconds: 1 })),
                Trouble::Fault(SessionFault::Closed(CloseReason::ChannelClosed { output: value.into() })),
            ];
            for trouble in troubles {
                let entry = failed(Check::Api, place.clone(), trouble);
                for fix in &entry.fixes {
                    let rest = unquoted(fix, value);
                    assert!(!rest.contains("touch") && !rest.contains("--y"), "{value:?}: {fix}");
                    assert!(!fix.contains(char::is_control), "{value:?}: {fix}");
                }
            }
        }
    }
}
