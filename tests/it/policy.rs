//! `policy`: what it prints allows exactly what the program calls.

use std::{collections::BTreeSet, fs, path::Path};

use autoheal_pa::{
    bastion::Bastion,
    bastion::Target,
    emulator::{Config, Event, Identity},
    iam::{Clusters, Grant, Principal},
    route::list,
};
use serde_json::Value;

use super::{
    support::{Lab, PROGRAM, Running},
    tidy::rust_files,
};

/// A session of each kind of identity: the ARN, its tag that names the owner, and the identity's policy variables.
struct Session {
    arn: String,
    owner: String,
    variables: [(&'static str, Option<&'static str>); 2],
}

impl Session {
    fn of_role() -> Self {
        Self {
            arn: "arn:aws:ssm:us-east-1:123456789012:session/ann@corp-0a1b2c3d4e5f60718".to_owned(),
            owner: "AROAEXAMPLE:ann@corp".to_owned(),
            variables: [("aws:userid", Some("AROAEXAMPLE:ann@corp")), ("aws:username", None)],
        }
    }

    fn of_user() -> Self {
        Self {
            arn: "arn:aws:ssm:us-east-1:123456789012:session/ann-0a1b2c3d4e5f60718".to_owned(),
            owner: "AIDAEXAMPLE".to_owned(),
            variables: [("aws:userid", Some("AIDAEXAMPLE")), ("aws:username", Some("ann"))],
        }
    }

    /// Puts the variables in; `None` if one has no value, and then nothing matches.
    fn filled_in(&self, pattern: &str) -> Option<String> {
        let mut text = pattern.to_owned();
        for (name, value) in self.variables {
            let variable = format!("${{{name}}}");
            if text.contains(&variable) {
                text = text.replace(&variable, value?);
            }
        }
        Some(text)
    }
}

/// `*` stands for any characters, as in IAM.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            (0..=text.len()).filter(|at| text.is_char_boundary(*at)).any(|at| matches(rest, &text[at..]))
        }),
    }
}

/// Evaluates a policy as IAM does, as far as ours go: allowed by any statement whose action, resource and conditions match.
fn is_allowed(policy: &Value, action: &str, resource: &str, owner: Option<&str>, caller: &Session) -> bool {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    policy["Statement"].as_array().unwrap().iter().any(|statement| {
        assert_eq!(statement["Effect"], "Allow");
        let condition = statement.get("Condition").and_then(Value::as_object).into_iter().flatten();
        texts(&statement["Action"]).iter().any(|pattern| matches(pattern, action))
            && texts(&statement["Resource"])
                .iter()
                .any(|pattern| caller.filled_in(pattern).is_some_and(|pattern| matches(&pattern, resource)))
            && condition
                .flat_map(|(operator, keys)| keys.as_object().unwrap().iter().map(move |key| (operator, key)))
                .all(|(operator, (key, value))| match (operator.as_str(), key.as_str()) {
                    ("StringLike", "ssm:resourceTag/aws:ssmmessages:session-id") => {
                        let pattern = caller.filled_in(value.as_str().unwrap());
                        pattern.zip(owner).is_some_and(|(pattern, owner)| matches(&pattern, owner))
                    }
                    // StartSession with a document that the policy allows.
                    ("BoolIfExists", "ssm:SessionDocumentAccessCheck") => value == "true",
                    other => panic!("{other:?} is not known here"),
                })
    })
}

/// Actions that bastions of other kinds need, and a target that is named does not: to find one, or to make one. Each with one
/// that needs it.
const OF_OTHER_KINDS: [(&str, &str); 12] = [
    ("ec2-instance-connect:OpenTunnel", "ssh://i-0dc03fbcae2a87472"),
    ("ec2-instance-connect:SendSSHPublicKey", "ssh://i-0dc03fbcae2a87472"),
    ("ec2:DescribeInstanceConnectEndpoints", "ssh://i-0dc03fbcae2a87472"),
    ("ec2:DescribeInstances", "auto"),
    ("ec2:GetConsoleOutput", "ssh://i-0dc03fbcae2a87472"),
    ("ecs:CreateCluster", "fargate"),
    ("ecs:DescribeTaskDefinition", "fargate"),
    ("ecs:DescribeTasks", "ecs:tools/bastion"),
    ("ecs:ListTasks", "ecs:tools/bastion"),
    ("ecs:RegisterTaskDefinition", "fargate"),
    ("ecs:RunTask", "fargate"),
    ("ecs:StopTask", "fargate"),
];

/// The actions that the sources name: every call has a constant or a `Call` with its name.
fn actions_called() -> BTreeSet<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut actions = BTreeSet::new();
    for file in ["aws", "route"].iter().flat_map(|module| rust_files(&src.join(module))) {
        let text = fs::read_to_string(&file).unwrap();
        let code =
            text.lines().take_while(|line| *line != "#[cfg(test)]").filter(|line| !line.trim_start().starts_with("//"));
        // What is allowed there is no call, and what `setup` looks at is an administrator's business.
        if file.ends_with("tests.rs") || file.ends_with("statements.rs") || file.ends_with("aws/inventory.rs") {
            continue;
        }
        for word in code.flat_map(|line| line.split('"').skip(1).step_by(2)) {
            let name = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphabetic());
            if let Some((service, operation)) = word.split_once(':')
                && matches!(
                    service,
                    "ssm" | "ssmmessages" | "eks" | "sts" | "ec2" | "ec2-instance-connect" | "ecs" | "iam"
                )
                && name(operation)
            {
                actions.insert(word.to_owned());
            }
        }
    }
    actions
}

fn is_of_other_kinds(action: &str) -> bool {
    OF_OTHER_KINDS.iter().any(|(known, _)| *known == action)
}

/// The actions that a policy allows.
fn named(policy: &Value) -> BTreeSet<String> {
    let actions =
        policy["Statement"].as_array().unwrap().iter().flat_map(|statement| statement["Action"].as_array().unwrap());
    actions.map(|action| action.as_str().unwrap().to_owned()).collect()
}

/// What AWS checks an action of ours against, and whether it is the caller's session; `None`: it is no matter of this policy.
fn resources_of(action: &str, bastion: &str, session: &Session) -> Option<Vec<String>> {
    let arn = |text: &str| vec![format!("arn:aws:{text}")];
    match action {
        // Needs no permission.
        "sts:GetCallerIdentity" => None,
        // Asked of the identity that assumes the role, and of the role's trust policy.
        "sts:AssumeRole" | "sts:AssumeRoleWithWebIdentity" | "sts:TagSession" => None,
        // Of those who request access, with a policy of its own.
        "ssm:StartAccessRequest" | "ssm:GetAccessToken" => None,
        // Asked where it happens to be allowed, and of no use but then: the policy is none the wider for it.
        "ssm:DescribeSessions" => None,
        action if is_of_other_kinds(action) => None,
        "eks:ListClusters" | "ssm:DescribeInstanceInformation" => Some(vec!["*".to_owned()]),
        "eks:DescribeCluster" => Some(arn("eks:us-east-1:123456789012:cluster/payments")),
        "ssm:StartSession" => Some(vec![
            bastion.to_owned(),
            "arn:aws:ssm:us-east-1::document/AWS-StartPortForwardingSessionToRemoteHost".to_owned(),
        ]),
        "ssm:ResumeSession" | "ssm:TerminateSession" | "ssmmessages:OpenDataChannel" => Some(vec![session.arn.clone()]),
        _ => panic!("`{action}` is called: say here what AWS checks it against, and allow it in its route"),
    }
}

fn grant(bastion: &Target, principal: Option<&str>, clusters: &[&str]) -> Value {
    grant_for(Bastion::Target(bastion.clone()), principal, clusters)
}

fn grant_for(bastion: Bastion, principal: Option<&str>, clusters: &[&str]) -> Value {
    let grant = Grant {
        documents: Vec::new(),
        requests_access: false,
        region: "us-east-1".to_owned(),
        account: "123456789012".to_owned(),
        principal: principal.map(|arn| Principal::from_arn(arn).unwrap()),
        bastions: vec![bastion],
        clusters: Clusters::of(clusters.iter().map(|&name| name.to_owned()).collect()),
    };
    serde_json::from_str(&list::policy(&grant).to_json()).unwrap()
}

const ROLE: Option<&str> = Some("arn:aws:iam::123456789012:role/ReadOnly");
const USER: Option<&str> = Some("arn:aws:iam::123456789012:user/ann");

#[test]
fn everything_that_is_called_is_allowed_and_no_more() {
    let actions = actions_called();
    assert!(actions.len() >= 8, "{actions:?}");
    for (bastion, arn) in [
        ("i-0dc03fbcae2a87472", "arn:aws:ec2:us-east-1:123456789012:instance/i-0dc03fbcae2a87472"),
        ("mi-0dc03fbcae2a87472", "arn:aws:ssm:us-east-1:123456789012:managed-instance/mi-0dc03fbcae2a87472"),
        ("ecs:my_tools_0f9d_0f9d-1234", "arn:aws:ecs:us-east-1:123456789012:task/my_tools/0f9d"),
    ] {
        for (principal, session) in [
            (ROLE, Session::of_role()),
            (USER, Session::of_user()),
            (None, Session::of_role()),
            (None, Session::of_user()),
        ] {
            let policy = grant(&bastion.parse().unwrap(), principal, &["payments"]);
            let mut allowed = BTreeSet::new();
            for action in &actions {
                // Containers are not listed, so nobody asks.
                if bastion.starts_with("ecs:") && action == "ssm:DescribeInstanceInformation" {
                    continue;
                }
                for resource in resources_of(action, arn, &session).into_iter().flatten() {
                    let owner = Some(session.owner.as_str());
                    assert!(
                        is_allowed(&policy, action, &resource, owner, &session),
                        "{principal:?} may not {action} on {resource}: {policy:#}"
                    );
                    allowed.insert(action.clone());
                }
            }
            assert_eq!(named(&policy), allowed);
        }
    }
}

#[test]
fn other_kinds_of_bastions_are_allowed_what_they_call() {
    let actions = actions_called();
    for (action, bastion) in OF_OTHER_KINDS {
        assert!(actions.contains(action), "{action} is called nowhere");
        let allowed = named(&grant_for(bastion.parse().unwrap(), ROLE, &["payments"]));
        assert!(allowed.contains(action), "{bastion} may not {action}: {allowed:?}");
        assert!(!named(&grant_for(Bastion::Direct, ROLE, &["payments"])).contains(action));
    }
    // What RunTask and RegisterTaskDefinition are checked for besides.
    let allowed = named(&grant_for("fargate".parse().unwrap(), ROLE, &[]));
    assert!(["iam:PassRole", "ecs:TagResource", "ssm:StartSession"].iter().all(|action| allowed.contains(*action)));
}

#[test]
fn what_belongs_to_others_is_not_allowed() {
    let bastion: Target = "i-0dc03fbcae2a87472".parse().unwrap();
    for (principal, session) in [(ROLE, Session::of_role()), (USER, Session::of_user())] {
        let policy = grant(&bastion, principal, &["payments"]);
        let others = "arn:aws:ssm:us-east-1:123456789012:session/bob-0a1b2c3d4e5f60718";
        for (action, resource) in [
            ("ssm:StartSession", "arn:aws:ec2:us-east-1:123456789012:instance/i-0fedcba9876543210"),
            ("ssm:StartSession", "arn:aws:ec2:us-east-2:123456789012:instance/i-0dc03fbcae2a87472"),
            ("ssm:StartSession", "arn:aws:ssm:us-east-1:123456789012:document/SSM-SessionManagerRunShell"),
            ("ssm:ResumeSession", others),
            ("ssm:TerminateSession", others),
            ("eks:DescribeCluster", "arn:aws:eks:us-east-1:123456789012:cluster/search"),
            ("eks:CreateAccessEntry", "arn:aws:eks:us-east-1:123456789012:cluster/payments"),
        ] {
            let owner = Some("AROAEXAMPLE:bob");
            assert!(
                !is_allowed(&policy, action, resource, owner, &session),
                "{principal:?} may {action} on {resource}"
            );
        }
        let all = grant(&bastion, principal, &[]);
        let search = "arn:aws:eks:us-east-1:123456789012:cluster/search";
        assert!(is_allowed(&all, "eks:DescribeCluster", search, None, &session));
    }
}

#[test]
fn the_evaluator_can_say_no() {
    let role = Session::of_role();
    let text = format!(
        r#"{{"Statement": [{{"Effect": "Allow", "Action": ["ssm:ResumeSession"], "Resource": ["{}"]}}]}}"#,
        "arn:aws:ssm:*:*:session/${aws:userid}-*"
    );
    let quick_start: Value = serde_json::from_str(&text).unwrap();
    assert!(!is_allowed(&quick_start, "ssm:ResumeSession", &role.arn, Some(&role.owner), &role));
    assert!(matches("a*c*", "abcd") && matches("*", "") && !matches("a*c", "abcd") && !matches("", "a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn prints_a_policy_without_credentials() {
    let lab = Lab::start(Config::default()).await;
    let mut command = lab.bare_command(PROGRAM);
    command.args([
        "policy",
        "--bastion",
        "i-0dc03fbcae2a87472",
        "--region",
        "us-east-1",
        "--account-id",
        "123456789012",
    ]);
    let ended = Running::start(&mut command).ended().await;
    let policy: Value = serde_json::from_str(ended.assert_success()).unwrap();
    assert_eq!(policy["Version"], "2012-10-17");
    insta::assert_snapshot!(ended.stderr);

    command.args(["--access-entry", "--role-arn", "arn:aws:iam::123456789012:role/ReadOnly", "--cluster", "payments"]);
    let ended = Running::start(&mut command).ended().await;
    assert!(ended.assert_success().starts_with("aws eks create-access-entry"), "{ended:#?}");
    assert_eq!(ended.stderr, "");

    for (args, hint) in [
        (&["policy", "--terraform", "--account-id", "123456789012"][..], "give the role with `--role-arn ARN`"),
        (&["policy"], "give the account with `--account-id`"),
    ] {
        let mut command = lab.bare_command(PROGRAM);
        command.args(args).args(["--bastion", "i-0dc03fbcae2a87472", "--region", "us-east-1"]);
        let ended = Running::start(&mut command).ended().await;
        assert_eq!(ended.code(), Some(3), "{ended:#?}");
        assert!(ended.stderr.contains(hint), "{ended:#?}");
    }
    assert_eq!(lab.emulator.events().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn asks_aws_for_what_is_missing() {
    let lab = Lab::start(Config { identity: Identity::StaticKeys, ..Config::default() }).await;
    let ended = lab.run(&["policy"]).await;
    let policy: Value = serde_json::from_str(ended.assert_success()).unwrap();
    assert_eq!(policy["Statement"][1]["Resource"][0], "arn:aws:eks:us-east-1:123456789012:cluster/*");
    let asked =
        |action: &str| lab.count(|event| matches!(event, Event::Api { action: called, .. } if called == action));
    assert_eq!(asked("sts:GetCallerIdentity"), 1);
    let hint = ended.stderr;

    let ended = lab.run(&["policy", "--terraform"]).await;
    let text = ended.assert_success();
    assert!(text.contains("resource \"aws_iam_role_policy\"") && text.contains("data \"aws_eks_clusters\""), "{text}");
    assert_eq!(lab.emulator.events().len(), asked("sts:GetCallerIdentity"));
    insta::assert_snapshot!(format!("{hint}{}", ended.stderr));
}

/// The manual shows what its command prints.
#[tokio::test(flavor = "multi_thread")]
async fn the_manual_has_the_policy_that_is_printed() {
    let lab = Lab::start(Config::default()).await;
    let chapter = include_str!("../../src/manual/iam.md");
    let args = chapter
        .lines()
        .find_map(|line| line.trim().strip_prefix("$ autoheal-pa policy ")?.split_once(" > "))
        .unwrap()
        .0;
    let block = chapter.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let mut command = lab.bare_command(PROGRAM);
    command.arg("policy").args(args.split_whitespace());
    let ended = Running::start(&mut command).ended().await;
    let printed: Value = serde_json::from_str(ended.assert_success()).unwrap();
    let shown: Value = serde_json::from_str(block).unwrap();
    assert_eq!(printed, shown);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_file_says_what_it_is_for() {
    let lab = Lab::start(Config::default()).await;
    let file = lab.path("config.yaml");
    let one = "role_arn: arn:aws:iam::210987654321:role/Other\nbastion: mi-0dc03fbcae2a87472\nclusters: [payments]\n";
    fs::write(&file, format!("region: eu-west-1\n{one}")).unwrap();
    let mut command = lab.bare_command(PROGRAM);
    command.args(["policy", "--config", file.to_str().unwrap()]);
    let ended = Running::start(&mut command).ended().await;
    let policy: Value = serde_json::from_str(ended.assert_success()).unwrap();
    let resources = policy["Statement"][2]["Resource"].as_array().unwrap();
    assert_eq!(resources[0], "arn:aws:ssm:eu-west-1:210987654321:managed-instance/mi-0dc03fbcae2a87472");

    fs::write(&file, format!("{one}access:\n- region: eu-west-1\n- region: us-east-1\n")).unwrap();
    let ended = Running::start(&mut command).ended().await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(
        ended.stderr.contains("the configuration file has 2 entries of `access`, but a policy is for one"),
        "{ended:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_of_the_role_s_session_need_more_than_a_policy() {
    let lab = Lab::start(Config::default()).await;
    let arguments = ["policy", "--bastion", "i-0dc03fbcae2a87472", "--region", "us-east-1"];
    let role = ["--role-arn", "arn:aws:iam::123456789012:role/ReadOnly"];
    for (tags, is_said) in [(&["--tag", "team=a", "--transitive-tag", "team"][..], true), (&[], false)] {
        let mut command = lab.bare_command(PROGRAM);
        let ended = Running::start(command.args(arguments).args(role).args(tags)).ended().await;
        let policy: Value = serde_json::from_str(ended.assert_success()).unwrap();
        assert_eq!(policy["Version"], "2012-10-17");
        assert_eq!(ended.stderr.contains("must allow `sts:TagSession`"), is_said, "{ended:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn says_what_it_cannot_do() {
    let lab = Lab::start(Config::default()).await;
    for (args, code, text) in [
        (&["policy", "--bastion", "i-1"][..], 2, "is not a bastion"),
        (&["policy", "--account-id", "1"], 2, "is not an account id: twelve digits"),
        (&["policy", "--access-entry", "--terraform"], 2, "cannot be used with"),
        (&["policy", "--role-arn", "arn:aws-cn:iam::123456789012:role/R"], 2, "us-east-1 is in the partition `aws`"),
    ] {
        let ended = lab.run(args).await;
        assert_eq!(ended.code(), Some(code), "{ended:#?}");
        assert!(ended.stderr.contains(text), "{ended:#?}");
    }
}
