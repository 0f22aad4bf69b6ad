//! Bastions that are looked for and cannot be used: a sentence that says why, what to do, and the right exit code.

use autoheal_pa::emulator::{AgentOutcome, BastionConfig, ClusterConfig, Config, EcsConfig, ServiceConfig};

use super::support::Lab;

/// What is looked for in vain.
struct Case {
    bastion: &'static str,
    /// What is different from the usual.
    change: fn(&mut Config),
    code: i32,
    /// Parts of what is said.
    texts: &'static [&'static str],
}

fn config() -> Config {
    let mut node = BastionConfig::new("i-0dc03fbcae2a87472").tagged("role", "bastion");
    node.online = false;
    let ecs = EcsConfig::with_service("tools", "bastion", 1);
    Config { ecs, clusters: vec![ClusterConfig::new("payments")], bastions: vec![node], ..Config::default() }
}

fn deny(config: &mut Config, action: &str) {
    config.settings.denied_actions.insert(action.to_owned());
}

fn service(config: &mut Config, change: impl FnOnce(&mut ServiceConfig)) {
    change(&mut config.ecs.services[0]);
}

const NOTHING: fn(&mut Config) = |_| {};

const CASES: &[Case] = &[
    Case {
        bastion: "ecs:toolz/bastion",
        change: NOTHING,
        code: 4,
        texts: &["there is no ECS cluster `toolz` in us-east-1", "aws ecs list-clusters"],
    },
    Case {
        bastion: "ecs:tools/bastions",
        change: NOTHING,
        code: 4,
        texts: &["there is no service `bastions` in the ECS cluster `tools`", "aws ecs list-services"],
    },
    Case {
        bastion: "ecs:tools/bastion",
        change: |config| service(config, |service| service.desired_count = 0),
        code: 4,
        texts: &["the service `bastion` has no running task", "--desired-count 1"],
    },
    Case {
        bastion: "ecs:tools/0f9de17a6465404e8b1b2356dc13c2f8",
        change: NOTHING,
        code: 4,
        texts: &["there is no task `0f9de17a6465404e8b1b2356dc13c2f8`", "aws ecs list-tasks"],
    },
    Case {
        bastion: "ecs:tools/bastion/sidecar",
        change: NOTHING,
        code: 5,
        texts: &["has no such container, only", "name one of its containers"],
    },
    Case {
        bastion: "ecs:tools/bastion",
        change: |config| service(config, |service| service.containers.push("sidecar".to_owned())),
        code: 5,
        texts: &["has several containers (bastion, sidecar)", "name one of its containers"],
    },
    Case {
        bastion: "ecs:tools/bastion",
        change: |config| service(config, |service| service.exec = false),
        code: 4,
        texts: &["was started without ECS Exec", "--enable-execute-command --force-new-deployment"],
    },
    Case {
        bastion: "ecs:tools/bastion",
        change: |config| config.settings.tasks.agent = AgentOutcome::Stopped,
        code: 4,
        texts: &["has no running agent for sessions", "the task role has to allow `ssmmessages:CreateControlChannel`"],
    },
    Case {
        bastion: "ecs:tools/bastion",
        change: |config| config.settings.tasks.agent = AgentOutcome::Pending,
        code: 4,
        texts: &["waits for its agent", "aws ecs describe-tasks"],
    },
    Case {
        bastion: "ecs:tools/bastion",
        change: |config| config.settings.tasks.sessions_denied = true,
        code: 3,
        texts: &["not authorized to perform `ssm:StartSession`", "hint: "],
    },
    Case {
        bastion: "arn:aws:ecs:us-east-1:999999999999:service/tools/bastion",
        change: NOTHING,
        code: 5,
        texts: &["is in another region or account", "use credentials and `--region`"],
    },
    Case {
        bastion: "arn:aws:ecs:eu-west-1:123456789012:service/tools/bastion",
        change: NOTHING,
        code: 5,
        texts: &["is in another region or account", "use credentials and `--region`"],
    },
    Case {
        bastion: "ecs:tools/bastion",
        change: |config| deny(config, "ecs:ListTasks"),
        code: 3,
        texts: &["`ecs:ListTasks`", "hint: "],
    },
    Case {
        bastion: "ecs:tools/bastion",
        change: |config| deny(config, "ecs:DescribeTasks"),
        code: 3,
        texts: &["`ecs:DescribeTasks`", "hint: "],
    },
    Case {
        bastion: "tag:role=bastions",
        change: NOTHING,
        code: 4,
        texts: &[
            "no managed node in us-east-1 of this account has the tag `role=bastions`",
            "aws ec2 describe-instances",
        ],
    },
    Case {
        bastion: "tag:role=bastion",
        change: NOTHING,
        code: 4,
        texts: &["none of the 1 nodes with the tag `role=bastion` is in contact", "ConnectionLost", "hint: "],
    },
    Case {
        bastion: "tag:role=bastion",
        change: |config| {
            config.bastions[0].online = true;
            config.bastions[0].agent_version = "3.0.1390.0".to_owned();
        },
        code: 4,
        texts: &["the agents of all 1 nodes with the tag `role=bastion` are older than", "AWS-UpdateSSMAgent"],
    },
    Case {
        bastion: "tag:role=bastion",
        change: |config| deny(config, "ssm:DescribeInstanceInformation"),
        code: 3,
        texts: &["`ssm:DescribeInstanceInformation`", "hint: "],
    },
    Case {
        bastion: "asg:bastions",
        change: NOTHING,
        code: 4,
        texts: &["no managed node in us-east-1 of this account has the Auto Scaling group `bastions`", "hint: "],
    },
    Case { bastion: "auto", change: NOTHING, code: 4, texts: &["is a bastion for `auto`", "aws ec2 create-tags"] },
    Case {
        bastion: "auto",
        change: |config| deny(config, "ec2:DescribeInstances"),
        code: 3,
        texts: &["`ec2:DescribeInstances`", "hint: "],
    },
    Case {
        bastion: "auto",
        change: |config| config.clusters[0].vpc.clear(),
        code: 4,
        texts: &["EKS does not say in which network `payments` is", "name a `--bastion` by its id"],
    },
    Case { bastion: "auto:everything", change: NOTHING, code: 2, texts: &["is not a bastion"] },
    Case { bastion: "ecs:tools/", change: NOTHING, code: 2, texts: &["is not a bastion"] },
];

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_said_with_what_to_do() {
    let mut wrong = Vec::new();
    for (number, Case { bastion, change, code, texts }) in CASES.iter().enumerate() {
        let mut config = config();
        change(&mut config);
        let lab = Lab::start(config).await;
        let ended = lab.run(&["exec", "--base-port", "0", "--timeout", "5s", "--bastion", bastion, "--", "true"]).await;
        let missing: Vec<_> = texts.iter().filter(|text| !ended.stderr.contains(**text)).collect();
        if ended.code() != Some(*code) || !missing.is_empty() {
            wrong.push(format!("{number}, {bastion}: {:?}, not in it is {missing:?}\n{}", ended.code(), ended.stderr));
        }
        lab.assert_clean().await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
