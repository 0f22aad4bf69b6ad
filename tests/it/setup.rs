//! `setup`: what it prints is taken by whoever reads such documents, and creates what `up` needs; `--check` names what is gone.

mod check;
mod deployed;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use autoheal_pa::{
    emulator::{ClusterConfig, Config, Identity, SubnetConfig, VpcConfig},
    iam::{Clusters, Grant, Principal},
    route::list,
};
use serde_json::Value;

use super::support::{Ended, Lab, Running, on_path};

/// An image in a private repository.
const IMAGE: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com/busybox:stable";

/// What is asked for, with a name for its files.
const ORDERS: &[(&str, &[&str])] = &[
    ("ec2", &[]),
    ("ec2-private", &["--private"]),
    (
        "given",
        &[
            "--role-arn",
            "arn:aws:iam::123456789012:role/team/ReadOnly",
            "--namespace",
            "team-a",
            "--namespace",
            "dev-*",
        ],
    ),
    ("ssh", &["--bastion-kind", "ssh"]),
    ("ecs", &["--bastion-kind", "ecs"]),
    ("ecs-private", &["--bastion-kind", "ecs", "--private", "--fargate-image", IMAGE]),
    ("fargate", &["--bastion-kind", "fargate"]),
    ("fargate-private", &["--bastion-kind", "fargate", "--private", "--fargate-image", IMAGE]),
    ("direct", &["--bastion-kind", "direct"]),
];

const FORMATS: [(&str, &str); 3] = [("cloudformation", "json"), ("terraform", "tf"), ("cli", "sh")];

/// The program of a tool that the gate installs, if there is one. In the gate there has to be.
#[expect(clippy::disallowed_methods, reason = "the gate asks for it by a variable")]
fn tool(name: &str) -> Option<PathBuf> {
    let found = on_path(name);
    let required = std::env::var_os("AUTOHEAL_PA_TEST_REQUIRES_SETUP").is_some();
    assert!(found.is_some() || !required, "{name} is not on the PATH");
    found
}

/// An emulated AWS whose credentials are those of an administrator.
async fn lab(config: Config) -> Lab {
    Lab::start(Config { identity: Identity::StaticKeys, bastions: Vec::new(), ..config }).await
}

/// A lab with clusters of names that are as long as they can be, and odd ones.
async fn with_long_names() -> (Lab, Vec<String>) {
    let names = vec!["payments".to_owned(), "a_".repeat(50), "0".to_owned()];
    let clusters = names.iter().map(ClusterConfig::new).collect();
    (lab(Config { clusters, ..Config::default() }).await, names)
}

async fn run(lab: &Lab, clusters: &[String], args: &[&str]) -> Ended {
    let mut command = lab.program(&["setup"]);
    for cluster in clusters {
        command.args(["--cluster", cluster]);
    }
    Running::start(command.args(args)).ended().await
}

/// Writes the documents of all orders in one format. Returns the files by the orders' names.
async fn documents(lab: &Lab, clusters: &[String], format: &str) -> BTreeMap<&'static str, PathBuf> {
    let (_, extension) = FORMATS.into_iter().find(|(name, _)| *name == format).unwrap();
    let mut files = BTreeMap::new();
    for (name, args) in ORDERS {
        let ended = run(lab, clusters, &[&["--format", format], *args].concat()).await;
        let file = lab.path(&format!("{name}.{extension}"));
        fs::write(&file, ended.assert_success()).unwrap();
        files.insert(*name, file);
    }
    files
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/setup").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn says_what_it_prints_and_what_to_do_with_it() {
    let lab = lab(Config::default()).await;
    for (format, _) in FORMATS {
        for (name, args) in [("ec2", &[][..]), ("ecs", &["--bastion-kind", "ecs"])] {
            let ended = run(&lab, &["payments".to_owned()], &[&["--format", format], args].concat()).await;
            insta::assert_snapshot!(
                format!("{name}_as_{format}"),
                format!("{}\n---\n{}", ended.assert_success(), ended.stderr)
            );
        }
    }
    // Whoever asks again gets the same.
    let again = async || run(&lab, &["payments".to_owned()], &[]).await.stdout;
    assert_eq!(again().await, again().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_are_taken_by_cfn_lint() {
    let Some(linter) = tool("cfn-lint") else { return };
    let (lab, clusters) = with_long_names().await;
    let files = documents(&lab, &clusters, "cloudformation").await;
    let mut command = lab.command(linter);
    command.args(["--regions", "us-east-1", "--"]).args(files.values());
    let ended = Running::start(&mut command).ended().await;
    assert!(ended.status.success(), "{}{}", ended.stdout, ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_are_as_terraform_formats_them() {
    let Some(node) = tool("hcl-node") else { return };
    let (lab, clusters) = with_long_names().await;
    let files = documents(&lab, &clusters, "terraform").await;
    let mut command = lab.command(node);
    command.arg(script("hcl.mjs")).args(files.values());
    let ended = Running::start(&mut command).ended().await;
    let read: Value = serde_json::from_str(ended.assert_success()).unwrap();
    for file in files.values() {
        let read = &read[file.to_str().unwrap()];
        let provider = &read["provider"]["aws"][0];
        assert_eq!(
            (&provider["region"], &provider["allowed_account_ids"][0]),
            (&"us-east-1".into(), &"123456789012".into())
        );
        let entries = read["resource"]["aws_eks_access_entry"].as_object().unwrap();
        assert_eq!(entries.len(), clusters.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_are_taken_by_shellcheck() {
    let Some(shellcheck) = tool("shellcheck") else { return };
    let (lab, clusters) = with_long_names().await;
    let files = documents(&lab, &clusters, "cli").await;
    let ended = Running::start(lab.command(shellcheck).args(files.values())).ended().await;
    assert!(ended.status.success(), "{}{}", ended.stdout, ended.stderr);
}

/// Stands for `aws` in a script: writes down its words, and answers what scripts ask.
const AWS: &str = r#"#!/bin/sh
printf '%s\0' "$@" >>"$CALLS"
printf '\0' >>"$CALLS"
case "$1 $2" in
    "sts get-caller-identity") echo 123456789012 ;;
    "ec2 describe-security-groups") echo sg-0a1b2c3d4e5f60718 ;;
esac
"#;

/// Runs a script with a folder of such programs before all others. The calls are added to a file.
async fn run_script(lab: &Lab, file: &Path, calls: &Path) {
    let folder = lab.path("bin");
    fs::create_dir_all(&folder).unwrap();
    // What waits for IAM has nothing to wait for here.
    for (program, text) in [("aws", AWS), ("sleep", "#!/bin/sh\n")] {
        fs::write(folder.join(program), text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder.join(program), mode).unwrap();
    }
    let mut command = lab.bare_command("bash");
    let path = format!("{}:{}", folder.display(), super::support::path_variable().display());
    command.arg(file).env("PATH", path).env("CALLS", calls);
    let ended = Running::start(&mut command).ended().await;
    assert!(ended.status.success(), "{}: {ended:#?}", file.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_a_script_is_one_that_aws_has() {
    let Some(python) = tool("awscli-python") else { return };
    let lab = lab(Config::default()).await;
    let files = documents(&lab, &["payments".to_owned()], "cli").await;
    let mut operations = BTreeMap::new();
    for (name, file) in &files {
        let words = lab.path(&format!("{name}.calls"));
        run_script(&lab, file, &words).await;
        let mut command = lab.bare_command(&python);
        command.arg(script("aws.py")).arg(words).envs([
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "us-east-1"),
        ]);
        let ended = Running::start(&mut command).ended().await;
        for line in ended.assert_success().lines() {
            let call: Value = serde_json::from_str(line).unwrap();
            let operation = call["operation"].as_str().unwrap().to_owned();
            operations.entry(operation).or_insert_with(Vec::new).push((*name, call["parameters"].clone()));
        }
    }
    for operation in [
        "AssociateAccessPolicy",
        "AuthorizeSecurityGroupIngress",
        "CreateAccessEntry",
        "CreateAutoScalingGroup",
        "CreateCluster",
        "CreateInstanceConnectEndpoint",
        "CreateInstanceProfile",
        "CreateLaunchTemplate",
        "CreateRole",
        "CreateSecurityGroup",
        "CreateService",
        "CreateVpcEndpoint",
        "PutRolePolicy",
        "RegisterTaskDefinition",
    ] {
        assert!(operations.contains_key(operation), "{operation}: {:?}", operations.keys());
    }
    // Quotes within quotes come out as they went in.
    let (_, template) = operations["CreateLaunchTemplate"].iter().find(|(name, _)| *name == "ec2-private").unwrap();
    let data = &template["LaunchTemplateData"];
    assert_eq!(data["NetworkInterfaces"][0]["Groups"][0], "sg-0a1b2c3d4e5f60718");
    assert_eq!(data["MetadataOptions"]["HttpTokens"], "required");
    let (_, service) = operations["CreateService"].iter().find(|(name, _)| *name == "ecs").unwrap();
    let network = &service["networkConfiguration"]["awsvpcConfiguration"];
    assert_eq!(network["securityGroups"], serde_json::json!(["sg-0a1b2c3d4e5f60718"]));
    assert_eq!(service["deploymentConfiguration"]["deploymentCircuitBreaker"]["enable"], true);
    let (_, scope) = operations["AssociateAccessPolicy"].iter().find(|(name, _)| *name == "given").unwrap();
    assert_eq!(scope["accessScope"], serde_json::json!({ "type": "namespace", "namespaces": ["team-a", "dev-*"] }));
}

/// The policy that each format gives the identity.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_granted_is_what_policy_prints() {
    let (lab, clusters) = with_long_names().await;
    for (_, args) in ORDERS {
        let template: Value = serde_json::from_str(run(&lab, &clusters, args).await.assert_success()).unwrap();
        let printed = &template["Resources"]["UserPolicy"]["Properties"]["PolicyDocument"];
        let up = template["Outputs"]["Up"]["Value"].as_str().unwrap();
        // What `up` is given is what `policy` is asked for.
        let words = split(up);
        let of = |option: &str| words.iter().position(|word| word == option).map(|at| words[at + 1].clone());
        let mut bastion: autoheal_pa::bastion::Bastion = of("--bastion").unwrap().parse().unwrap();
        if let autoheal_pa::bastion::Bastion::Fargate(fargate) = &mut bastion {
            fargate.options.task_definition = of("--fargate-task-definition");
            fargate.options.task_role = of("--fargate-task-role").unwrap();
        }
        let grant = Grant {
            region: "us-east-1".to_owned(),
            account: "123456789012".to_owned(),
            principal: Principal::from_arn(&of("--role-arn").unwrap()),
            bastions: vec![bastion],
            clusters: Clusters::Named(clusters.clone()),
            documents: Vec::new(),
            requests_access: false,
        };
        let wanted: Value = serde_json::from_str(&list::policy(&grant).to_json()).unwrap();
        assert_eq!(*printed, wanted, "{args:?}");
    }
}

/// Splits a command that has no quotes but those around whole words.
fn split(command: &str) -> Vec<String> {
    command.split(' ').map(|word| word.trim_matches('\'').to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn says_what_cannot_be() {
    let other = VpcConfig {
        id: "vpc-0b0c0d0e0f0102030".to_owned(),
        subnets: vec![SubnetConfig::new("subnet-0b2c3d4e5f6071829", "a")],
        security_groups: vec!["sg-0d0ffee0d0ffee0d0".to_owned()],
        ..VpcConfig::closed()
    };
    let mut far = ClusterConfig::new("far");
    far.vpc.clone_from(&other.id);
    let mut old = ClusterConfig::new("old");
    old.authentication_mode = Some("CONFIG_MAP".to_owned());
    let clusters = vec![ClusterConfig::new("payments"), far, old, ClusterConfig::creating("new")];
    let config = Config { clusters, vpcs: vec![VpcConfig::default(), other], ..Config::default() };
    let lab = lab(config).await;
    for (clusters, args, code, text) in [
        (
            &["payments", "far"][..],
            &[][..],
            2,
            "the clusters are in several VPCs: `payments` in `vpc-0a0b0c0d0e0f01020`, `far` in",
        ),
        (&["far"], &[], 2, "none of the subnets of `far` in `vpc-0b0c0d0e0f0102030` has a way to Systems Manager"),
        (&["none"], &[], 4, "there is no cluster `none` in us-east-1"),
        (&["new"], &[], 4, "`new` cannot be reached: its status is CREATING"),
        (&["far"], &["--bastion-kind", "fargate", "--private"], 2, "give it with `--fargate-image`"),
        (&["far"], &["--bastion-kind", "ecs", "--private"], 2, "give it with `--fargate-image`"),
        (&["far"], &["--bastion-kind", "ecs"], 2, "has a way to Systems Manager"),
        (
            &["payments"],
            &["--role-arn", "arn:aws:iam::999999999999:role/R"],
            2,
            "is in the account 999999999999, but `payments` in 123456789012",
        ),
        (
            &["payments"],
            &["--role-arn", "arn:aws-cn:iam::123456789012:role/R"],
            2,
            "is in the partition `aws-cn`, but us-east-1",
        ),
        (&["payments"], &["--json"], 2, "--check"),
    ] {
        let clusters: Vec<String> = clusters.iter().map(|&name| name.to_owned()).collect();
        let ended = run(&lab, &clusters, args).await;
        assert_eq!(ended.code(), Some(code), "{ended:#?}");
        assert!(ended.stderr.contains(text), "{ended:#?}");
        assert_eq!(ended.stdout, "");
    }
    let ended = run(&lab, &["old".to_owned()], &[]).await;
    assert!(!ended.assert_success().contains("AccessEntry"), "{ended:#?}");
    assert!(ended.stderr.contains("warning: `old` knows no access entries"), "{ended:#?}");
    let ended = run(&lab, &["far".to_owned()], &["--private"]).await;
    assert!(ended.assert_success().contains("com.amazonaws.us-east-1.ssmmessages"), "{ended:#?}");
}
