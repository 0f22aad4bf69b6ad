//! Templates deployed by moto, as far as it goes, read back with boto3, and found by `setup --check`.
//!
//! EKS is the emulator's, as moto knows neither access entries nor the network of a cluster. Moto 5.2.5 passes over
//! `AWS::EKS::AccessEntry` and `AWS::EC2::InstanceConnectEndpoint`.

use autoheal_pa::emulator::{Config, SubnetConfig, VpcConfig};
use serde_json::{Value, json};

use super::{
    super::{
        moto::Moto,
        support::{Lab, Running},
    },
    lab, script, tool,
};

/// What moto has of its own accord: the default VPC with its subnets, and a security group for the clusters.
async fn network(lab: &Lab, moto: &Moto, python: &std::path::Path) -> Value {
    read(lab, moto, python, &["network"]).await
}

async fn read(lab: &Lab, moto: &Moto, python: &std::path::Path, args: &[&str]) -> Value {
    let mut command = lab.bare_command(python);
    command.arg(script("moto.py")).arg(format!("http://{}", moto.address)).args(args).envs([
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
    ]);
    let ended = Running::start(&mut command).ended().await;
    serde_json::from_str(ended.assert_success()).unwrap()
}

/// An emulated EKS whose clusters are in moto's network.
async fn in_network(network: &Value) -> Lab {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let subnets = network["subnets"].as_array().unwrap().iter();
    let vpc = VpcConfig {
        id: text(&network["vpc"]),
        subnets: subnets.map(|subnet| SubnetConfig::new(text(subnet), "a")).collect(),
        security_groups: vec![text(&network["group"])],
        ..VpcConfig::default()
    };
    let mut config = Config { vpcs: vec![vpc], account: "123456789012".to_owned(), ..Config::default() };
    for cluster in &mut config.clusters {
        cluster.vpc = text(&network["vpc"]);
    }
    lab(config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deployed_is_what_policy_prints_and_is_found() {
    let Some(python) = tool("moto-python") else { return };
    let Some(moto) = Moto::start().await else { return };
    let plain = lab(Config::default()).await;
    let network = network(&plain, &moto, &python).await;
    let lab = in_network(&network).await;
    // What `--check` makes of moto's faults: policies within a role are not written as JSON and so cannot be read, a task
    // definition of a template has no role, and a service no tasks and no ECS Exec.
    for (name, args, unreadable, wrong) in [
        ("ec2", &["--private"][..], &["BastionRole"][..], &[][..]),
        ("ecs", &["--bastion-kind", "ecs"], &["TaskRole"], &["TaskDefinition", "BastionService"]),
        ("fargate", &["--bastion-kind", "fargate"], &["TaskRole"], &["TaskDefinition"]),
        ("direct", &["--bastion-kind", "direct"], &[], &[]),
    ] {
        let setup = |more: &[&str]| {
            let mut command = lab.program(&["setup", "--cluster", "payments", "--cluster", "search"]);
            command.args(args).args(more);
            for service in ["EC2", "IAM", "AUTO_SCALING", "ECS"] {
                command.env(format!("AWS_ENDPOINT_URL_{service}"), format!("http://{}", moto.address));
            }
            command
        };
        let ended = Running::start(&mut setup(&["--region", "us-east-1"])).ended().await;
        let template: Value = serde_json::from_str(ended.assert_success()).unwrap();
        let file = lab.path(&format!("{name}.json"));
        std::fs::write(&file, ended.stdout).unwrap();
        let role = template["Outputs"]["Role"]["Value"].as_str().unwrap().rsplit('/').next().unwrap();
        let deployed = read(&lab, &moto, &python, &["deploy", name, file.to_str().unwrap(), role]).await;
        assert_eq!(deployed["policy"], template["Resources"]["UserPolicy"]["Properties"]["PolicyDocument"], "{name}");
        if name == "ec2" {
            let instance = &deployed["instances"][0];
            assert_eq!(instance["tags"]["autoheal-pa:bastion"], "true", "{deployed:#}");
            assert_eq!(instance["type"], "t4g.nano");
            // All that is let in from elsewhere is from the bastion, on one port.
            let rules = deployed["rules"].as_array().unwrap();
            assert!(rules.iter().any(|rule| rule["into"] == network["group"] && rule["port"] == 443), "{deployed:#}");
            assert!(rules.iter().all(|rule| rule["addresses"] == json!([])), "{deployed:#}");
        }

        // The emulator has what moto passes over.
        let entries = json!({ "Resources": template["Resources"].as_object().unwrap().iter()
            .filter(|(_, resource)| resource["Type"] == "AWS::EKS::AccessEntry" || resource["Type"] == "AWS::IAM::Role")
            .map(|(name, resource)| (name.clone(), resource.clone())).collect::<serde_json::Map<_, _>>() });
        lab.emulator.create_stack(&entries);
        let ended = Running::start(&mut setup(&["--check", "--json"])).ended().await;
        let said: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:#?}"));
        let of_status = |status: &str| -> Vec<&str> {
            let checks = said["checks"].as_array().unwrap().iter().filter(|check| check["status"] == status);
            checks.map(|check| check["id"].as_str().unwrap().strip_prefix("setup.").unwrap()).collect()
        };
        assert_eq!(
            (of_status("warning"), of_status("failed")),
            (unreadable.to_vec(), wrong.to_vec()),
            "{name}: {said:#}"
        );
        assert_eq!(ended.code(), Some(if wrong.is_empty() { 0 } else { 6 }));
    }
}
