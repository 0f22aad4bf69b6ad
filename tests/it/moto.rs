//! Calls of EC2 and ECS against moto, which nobody here wrote: whether it takes what is sent, and what it answers is read.
//!
//! What moto 5.2.5 lacks is looked at against the fake services of the unit tests only:
//!
//! * EC2: DescribeInstanceConnectEndpoints, which is a 500; host keys in GetConsoleOutput; escaped wildcards in filters.
//! * ECS: `runtimeId`, `managedAgents`, `enableExecuteCommand`, `stopCode` and `connectivity` of tasks; failures for tasks that
//!   are not there, and an error for services that are not; the client token; tags in the answer of RegisterTaskDefinition.
//!   RunTask is a 500 unless the container has `cpu` and `memory`. A task moves on with each DescribeTasks.
//! * Systems Manager: DescribeInstanceInformation, which is a 500.

use std::{fs, process::Stdio};

use autoheal_pa::{
    aws::{
        Aws, AwsError,
        ec2::Filter,
        ecs::{Architecture, NewContainer, NewTask, NewTaskDefinition, TaskFilter},
        error::Refusal,
    },
    settings::AwsSettings,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    task::JoinSet,
};

use super::support::{moto_server, within};

/// A server of moto, gone when it is dropped.
pub(super) struct Moto {
    pub(super) address: String,
    folder: TempDir,
    _child: Child,
    _log: JoinSet<()>,
}

impl Moto {
    pub(super) async fn start() -> Option<Self> {
        let mut command = Command::new(moto_server("5.2.5").await?);
        command.args(["-H", "127.0.0.1", "-p", "0"]).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = within("moto to listen", async {
            loop {
                let line = lines.next_line().await.unwrap().expect("moto runs");
                if let Some((_, address)) = line.split_once("Running on http://") {
                    return address.trim().to_owned();
                }
            }
        })
        .await;
        // A pipe that nobody reads would stop it.
        let mut log = JoinSet::new();
        log.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Some(Self { address, folder: tempfile::tempdir().unwrap(), _child: child, _log: log })
    }

    async fn aws(&self) -> Aws {
        let path = self.folder.path().join("config");
        let keys = "aws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = secret\nmax_attempts = 1";
        fs::write(&path, format!("[profile moto]\n{keys}\nendpoint_url = http://{}\n", self.address)).unwrap();
        let settings = AwsSettings {
            profile: Some("moto".to_owned()),
            region: Some("us-east-1".to_owned()),
            profile_files: [Some(path), None],
            ..AwsSettings::default()
        };
        Aws::new(&settings).await.unwrap()
    }

    /// Makes a call of EC2 that this program has no use for.
    async fn ec2(&self, parameters: &str) -> String {
        let body = format!("{parameters}&Version=2016-11-15");
        let scope = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/us-east-1/ec2/aws4_request";
        let head = format!(
            "POST / HTTP/1.0\r\nhost: {}\r\nauthorization: {scope}, SignedHeaders=host, Signature=0\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        let mut answer = String::new();
        within("an answer of moto", stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.split_whitespace().nth(1) == Some("200"), "{answer}");
        answer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_found_by_what_moto_says() {
    let Some(moto) = Moto::start().await else { return };
    for (name, count) in [("bastion", 1), ("worker", 120)] {
        let tag =
            "TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=Name&TagSpecification.1.Tag.1.Value";
        let what = format!("ImageId=ami-12c6146b&MinCount={count}&MaxCount={count}&{tag}={name}");
        moto.ec2(&format!("Action=RunInstances&{what}")).await;
    }
    let aws = moto.aws().await;
    let running = Filter::new("instance-state-name", ["running"]);
    let bastions = aws.describe_instances(&[running.clone(), Filter::new("tag:Name", ["bastion"])]).await.unwrap();
    let [bastion] = &bastions[..] else { panic!("{bastions:?}") };
    assert!(bastion.id.starts_with("i-") && bastion.state == "running", "{bastion:?}");
    assert_eq!(bastion.name.as_deref(), Some("bastion"));
    assert_eq!(bastion.tags["Name"], "bastion");
    let (vpc, private_ip) = (bastion.vpc_id.clone().unwrap(), bastion.private_ip.clone().unwrap());
    assert!(vpc.starts_with("vpc-") && private_ip.parse::<std::net::Ipv4Addr>().is_ok(), "{bastion:?}");
    assert!(bastion.subnet_id.is_some() && bastion.availability_zone.is_some() && bastion.launch_time.is_some());

    let all = aws.describe_instances(&[running, Filter::new("vpc-id", [vpc])]).await.unwrap();
    assert_eq!(all.len(), 121);
    assert_eq!(aws.describe_instances(&[Filter::new("vpc-id", ["vpc-0abc"])]).await.unwrap(), []);

    assert!(aws.console_output(&bastion.id).await.unwrap().is_some_and(|text| text.contains("Linux version")));
    let error = aws.console_output("i-0dc03fbcae2a87472").await.unwrap_err();
    assert!(matches!(error, AwsError::Refused { refusal: Refusal::Absent, .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_lives_and_ends_as_moto_says() {
    let Some(moto) = Moto::start().await else { return };
    let subnets = moto.ec2("Action=DescribeSubnets").await;
    let subnet = subnets.split("<subnetId>").nth(1).and_then(|rest| rest.split('<').next()).unwrap();
    let aws = moto.aws().await;
    let by = TaskFilter::StartedBy("autoheal-pa/default/0f".to_owned());

    let error = aws.list_tasks("tools", &by).await.unwrap_err();
    assert!(matches!(error, AwsError::Refused { refusal: Refusal::EcsCluster, .. }), "{error:?}");
    let cluster = aws.create_ecs_cluster("tools").await.unwrap();
    assert_eq!((cluster.name.as_str(), &*cluster.status), ("tools", "ACTIVE"));

    assert_eq!(aws.task_definition("bastion").await.unwrap(), None);
    let new = NewTaskDefinition {
        family: "bastion".to_owned(),
        cpu: 256,
        memory: 512,
        architecture: Architecture::X86_64,
        task_role: Some("arn:aws:iam::123456789012:role/bastion".to_owned()),
        execution_role: None,
        container: NewContainer {
            name: "bastion".to_owned(),
            image: "busybox".to_owned(),
            command: vec!["sleep".to_owned(), "1".to_owned()],
            cpu: Some(256),
            memory: Some(512),
            ..NewContainer::default()
        },
        tags: vec![("autoheal-pa:spec".to_owned(), "0f".to_owned())],
    };
    let definition = aws.register_task_definition(&new).await.unwrap();
    assert_eq!((definition.revision, definition.cpu.as_deref()), (1, Some("256")));
    let found = aws.task_definition("bastion").await.unwrap().unwrap();
    assert_eq!((&found.arn, &found.task_role), (&definition.arn, &new.task_role));
    assert_eq!(found.tags["autoheal-pa:spec"], "0f");

    let task = NewTask {
        cluster: "tools".to_owned(),
        task_definition: "bastion".to_owned(),
        subnets: vec![subnet.to_owned()],
        security_groups: Vec::new(),
        public_ip: false,
        started_by: "autoheal-pa/default/0f".to_owned(),
        client_token: "0f0f".to_owned(),
        tags: vec![("autoheal-pa:host".to_owned(), "h".to_owned())],
    };
    let made = aws.run_task(&task).await.unwrap();
    assert_eq!((&made.cluster_arn, &made.definition_arn), (&cluster.arn, &definition.arn));
    assert_eq!(aws.list_tasks("tools", &by).await.unwrap(), std::slice::from_ref(&made.arn));
    assert!(aws.list_tasks("tools", &TaskFilter::StartedBy("other".to_owned())).await.unwrap().is_empty());

    let known = aws.describe_tasks("tools", std::slice::from_ref(&made.arn)).await.unwrap();
    let [known] = &known.tasks[..] else { panic!("{known:?}") };
    assert_eq!((&known.arn, known.started_by.as_deref()), (&made.arn, Some("autoheal-pa/default/0f")));
    assert_eq!(known.tags["autoheal-pa:host"], "h");
    aws.stop_task("tools", &made.arn, "no longer needed").await.unwrap();
    let stopped = aws.describe_tasks("tools", std::slice::from_ref(&made.arn)).await.unwrap();
    assert_eq!(stopped.tasks[0].desired_status, "STOPPED");
    assert_eq!(stopped.tasks[0].stopped_reason.as_deref(), Some("no longer needed"));
}
