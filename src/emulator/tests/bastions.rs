//! Bastions that are found or made: containers as targets, what Systems Manager and EC2 know of instances, and bastions that
//! are replaced.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    super::{BastionConfig, Config, ConnectEndpointConfig, EcsConfig, Emulator, SessionState, TaskEnd, VpcConfig},
    ecs::{agent_runs, describe, is_stopped, prepared, run, until},
    support::{Answer, Client, Granted, TestKeys, call, ec2, ecs, quick, ssm, start, start_session_with, within},
};

/// Starts a session to an address, which needs no resolver.
async fn session_with(emulator: &Emulator, target: &str) -> Granted {
    let answer = start_session_with(emulator, target, "10.0.9.9", 443).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    (&answer).into()
}

fn error(answer: &Answer) -> (u16, String, String) {
    let value = answer.json();
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    (answer.status, text("__type"), text("Message"))
}

/// Whether nothing comes for a while.
async fn is_silent(client: &mut Client) -> bool {
    tokio::time::timeout(Duration::from_millis(150), client.receive()).await.is_err()
}

fn with_service(count: usize) -> Config {
    Config { ecs: EcsConfig::with_service("tools_x", "bastion", count), ..quick() }
}

#[tokio::test]
async fn a_container_is_a_target_while_its_agent_runs() {
    let emulator = prepared(quick()).await;
    let task = run(&emulator).await;
    let target = emulator.tasks()[0].targets[0].clone();
    let early = error(&start_session_with(&emulator, &target, "h", 443).await);
    assert_eq!(early, (400, "TargetNotConnected".into(), format!("{target} is not connected.")));
    let running = until(&emulator, &task, agent_runs).await;
    let runtime_id = running["containers"][0]["runtimeId"].as_str().unwrap();
    assert_eq!(target, format!("ecs:autoheal-pa_{}_{runtime_id}", task.rsplit('/').next().unwrap()));
    let granted = session_with(&emulator, &target).await;
    let mut client = Client::open(&emulator, &granted).await;
    assert_eq!(client.handshake().await.agent_version, "3.3.4108.0");
    let status = ssm(&emulator, "GetConnectionStatus", json!({"Target": target})).await.json();
    assert_eq!(status["Status"], "connected");
    // Containers are no managed nodes.
    let nodes = ssm(&emulator, "DescribeInstanceInformation", json!({})).await.json();
    assert_eq!(nodes["InstanceInformationList"].as_array().unwrap().len(), 1);
    emulator.update(|settings| settings.denied_actions.extend(["ssm:StartSession".to_owned()]));
    let (_, code, message) = error(&start_session_with(&emulator, &target, "h", 443).await);
    assert_eq!(code, "AccessDeniedException");
    assert!(message.contains(&format!("ssm:StartSession on resource: {task} because")), "{message}");
    emulator.stop().await;
}

#[tokio::test]
async fn tasks_of_services_run_when_the_emulator_has_started() {
    let emulator = start(with_service(2)).await;
    // Nothing is awaited in between.
    let tasks = emulator.tasks();
    assert_eq!(tasks.iter().map(|task| task.status).collect::<Vec<_>>(), ["RUNNING", "RUNNING"]);
    session_with(&emulator, &tasks[1].targets[0]).await;
    emulator.stop().await;
}

#[tokio::test]
async fn a_container_has_few_sessions_and_says_nothing_to_more() {
    let emulator = start(with_service(1)).await;
    let target = emulator.tasks()[0].targets[0].clone();
    within(emulator.wait_until(|emulator| emulator.tasks()[0].status == "RUNNING")).await;
    let mut clients = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..4 {
        let granted = session_with(&emulator, &target).await;
        clients.push(Client::open(&emulator, &granted).await);
        ids.push(granted.id);
    }
    clients[0].handshake().await;
    clients[1].handshake().await;
    assert!(is_silent(&mut clients[2]).await);
    assert!(is_silent(&mut clients[3]).await);
    // One that ends makes room for the one that waits; the other is lost for good.
    let ended = ssm(&emulator, "TerminateSession", json!({"SessionId": ids[0]})).await;
    assert_eq!(ended.status, 200);
    clients[2].handshake().await;
    assert_eq!(ssm(&emulator, "TerminateSession", json!({"SessionId": ids[1]})).await.status, 200);
    assert!(is_silent(&mut clients[3]).await);
    let granted = session_with(&emulator, &target).await;
    Client::open(&emulator, &granted).await.handshake().await;
    emulator.stop().await;
}

#[tokio::test]
async fn sessions_go_with_their_task() {
    for (task_end, closed) in [(TaskEnd::Silent, false), (TaskEnd::Closed, true)] {
        let mut config = with_service(1);
        config.ecs.task_end = task_end;
        let emulator = start(config).await;
        within(emulator.wait_until(|emulator| emulator.tasks()[0].status == "RUNNING")).await;
        let (arn, target) = (emulator.tasks()[0].arn.clone(), emulator.tasks()[0].targets[0].clone());
        let granted = session_with(&emulator, &target).await;
        let mut client = Client::open(&emulator, &granted).await;
        client.handshake().await;
        assert!(emulator.stop_task(&arn, "TerminationNotice", "maintenance"));
        if closed {
            assert_eq!(client.receive_closed().await, "");
        }
        let stopped = until(&emulator, &arn, is_stopped).await;
        assert_eq!(stopped["stopCode"], "TerminationNotice");
        assert!(closed || is_silent(&mut client).await);
        assert_eq!(error(&start_session_with(&emulator, &target, "h", 443).await).1, "TargetNotConnected");
        // The service has started another one.
        within(
            emulator
                .wait_until(|emulator| emulator.tasks().iter().filter(|task| task.status == "RUNNING").count() == 1),
        )
        .await;
        emulator.stop().await;
    }
}

#[tokio::test]
async fn a_used_task_goes_on() {
    let mut config = quick();
    config.ecs.disuse = Some(Duration::from_millis(200));
    let emulator = prepared(config).await;
    let task = run(&emulator).await;
    until(&emulator, &task, agent_runs).await;
    let granted = session_with(&emulator, &emulator.tasks()[0].targets[0]).await;
    let mut client = Client::open(&emulator, &granted).await;
    client.handshake().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(describe(&emulator, &task).await["lastStatus"], "RUNNING");
    ssm(&emulator, "TerminateSession", json!({"SessionId": granted.id})).await;
    until(&emulator, &task, is_stopped).await;
    emulator.stop().await;
}

#[tokio::test]
async fn a_deployment_replaces_tasks_by_others() {
    let emulator = start(with_service(2)).await;
    within(emulator.wait_until(|emulator| emulator.tasks().iter().all(|task| task.status == "RUNNING"))).await;
    let old: Vec<String> = emulator.tasks().into_iter().map(|task| task.arn).collect();
    assert_eq!(old.len(), 2);
    let service = async || {
        let input = json!({"cluster": "tools_x", "services": ["bastion", "other"]});
        ecs(&emulator, "DescribeServices", input).await.json()
    };
    let before = service().await;
    assert_eq!(before["failures"][0]["reason"], "MISSING");
    let before = &before["services"][0];
    assert_eq!((&before["desiredCount"], &before["runningCount"]), (&json!(2), &json!(2)));
    assert_eq!(
        (&before["enableExecuteCommand"], &before["deployments"][0]["status"]),
        (&json!(true), &json!("PRIMARY"))
    );
    let update = json!({"cluster": "tools_x", "service": "bastion", "forceNewDeployment": true});
    let updated = ecs(&emulator, "UpdateService", update).await.json();
    assert_eq!(updated["service"]["deployments"].as_array().unwrap().len(), 2);
    let gone = |emulator: &Emulator| {
        let tasks = emulator.tasks();
        old.iter().all(|arn| tasks.iter().any(|task| task.arn == *arn && task.status == "STOPPED"))
    };
    within(emulator.wait_until(gone)).await;
    let tasks = emulator.tasks();
    let new: Vec<_> = tasks.iter().filter(|task| !old.contains(&task.arn)).collect();
    assert_eq!(new.iter().map(|task| task.status).collect::<Vec<_>>(), ["RUNNING", "RUNNING"]);
    let stopped = tasks.iter().find(|task| task.arn == old[0]).unwrap();
    assert_eq!(stopped.stop_code.as_deref(), Some("ServiceSchedulerInitiated"));
    let after = service().await;
    assert_eq!(after["services"][0]["deployments"].as_array().unwrap().len(), 1);
    assert!(!after["services"][0]["events"].as_array().unwrap().is_empty());
    // None are left when none are wanted.
    ecs(&emulator, "UpdateService", json!({"cluster": "tools_x", "service": "bastion", "desiredCount": 0})).await;
    within(emulator.wait_until(|emulator| emulator.tasks().iter().all(|task| task.status == "STOPPED"))).await;
    emulator.stop().await;
}

fn fleet() -> Vec<BastionConfig> {
    let id = |n: usize| format!("i-0dc03fbcae2a8{n:04}");
    vec![
        BastionConfig::new(id(1)).tagged("Name", "bastion").tagged("autoheal-pa:bastion", "true"),
        BastionConfig { online: false, ..BastionConfig::new(id(2)).tagged("Name", "bastion") },
        BastionConfig::new(id(3)).tagged("Name", "jump").in_group("jumpers"),
        BastionConfig { managed: false, ..BastionConfig::new(id(4)).tagged("Name", "plain") },
        BastionConfig { vpc: "vpc-other".into(), platform: "Windows Server 2022".into(), ..BastionConfig::new(id(5)) },
        BastionConfig::new("mi-0dc03fbcae2a87472"),
    ]
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|node| node["InstanceId"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn systems_manager_finds_nodes_by_their_tags() {
    let mut bastions = fleet();
    bastions.extend((10..20).map(|n| BastionConfig::new(format!("i-0dc03fbcae2a8{n:04}")).tagged("kind", "many")));
    let emulator = start(Config { bastions, ..quick() }).await;
    let list = async |input: Value| ssm(&emulator, "DescribeInstanceInformation", input).await;
    let by = async |key: &str, value: &str| {
        let filters = json!({"Filters": [{"Key": key, "Values": [value]}]});
        list(filters).await.json()["InstanceInformationList"].clone()
    };
    let named = by("tag:Name", "bastion").await;
    assert_eq!(ids(&named), ["i-0dc03fbcae2a80001", "i-0dc03fbcae2a80002"]);
    assert_eq!((&named[0]["PingStatus"], &named[1]["PingStatus"]), (&json!("Online"), &json!("ConnectionLost")));
    assert_eq!(named[0]["ComputerName"], "bastion");
    assert!(named[0]["IPAddress"].as_str().unwrap().starts_with("10.0."));
    assert_eq!(ids(&by("tag:aws:autoscaling:groupName", "jumpers").await), ["i-0dc03fbcae2a80003"]);
    assert_eq!(by("tag:Name", "plain").await, json!([]));
    assert_eq!(ids(&by("PlatformTypes", "Windows").await), ["i-0dc03fbcae2a80005"]);
    assert_eq!(ids(&by("PingStatus", "ConnectionLost").await), ["i-0dc03fbcae2a80002"]);
    // A page has ten nodes unless something is said.
    let first = list(json!({})).await.json();
    assert_eq!(first["InstanceInformationList"].as_array().unwrap().len(), 10);
    let second = list(json!({"NextToken": first["NextToken"], "MaxResults": 50})).await.json();
    assert_eq!(second["InstanceInformationList"].as_array().unwrap().len(), 5);
    assert!(second.get("NextToken").is_none());
    for (input, code) in [
        (
            json!({"Filters": [{"Key": "tag:Name", "Values": ["x"]}, {"Key": "PingStatus", "Values": ["Online"]}]}),
            "InvalidInstanceInformationFilterValue",
        ),
        (
            json!({
                "Filters": [{"Key": "tag:Name", "Values": ["x"]}],
                "InstanceInformationFilterList": [{"key": "PingStatus", "valueSet": ["Online"]}],
            }),
            "ValidationException",
        ),
    ] {
        assert_eq!(error(&list(input).await).1, code);
    }
    emulator.stop().await;
}

#[tokio::test]
async fn ec2_finds_instances_by_filters() {
    let other = VpcConfig { id: "vpc-other".into(), ..VpcConfig::default() };
    let mut bastions = fleet();
    bastions[0].public_address = Some("198.51.100.7".into());
    let emulator = start(Config { bastions, vpcs: vec![VpcConfig::default(), other], ..quick() }).await;
    let found = async |parameters: &[(&str, &str)]| {
        let answer = ec2(&emulator, "DescribeInstances", parameters).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let ids = answer.body.split("<instanceId>").skip(1).map(|rest| rest[..19].to_owned()).collect::<Vec<_>>();
        (ids, answer)
    };
    let (here, answer) = found(&[
        ("Filter.1.Name", "vpc-id"),
        ("Filter.1.Value.1", "vpc-0a0b0c0d0e0f01020"),
        ("Filter.2.Name", "instance-state-name"),
        ("Filter.2.Value.1", "running"),
    ])
    .await;
    assert_eq!(here, ["1", "2", "3", "4"].map(|n| format!("i-0dc03fbcae2a8000{n}")));
    assert!(answer.body.contains("<key>autoheal-pa:bastion</key><value>true</value>"), "{}", answer.body);
    assert!(answer.body.contains("<ipAddress>198.51.100.7</ipAddress>"), "{}", answer.body);
    let tag = [("Filter.1.Name", "tag:Name"), ("Filter.1.Value.1", "*bast*"), ("Filter.1.Value.2", "jump")];
    assert_eq!(found(&tag).await.0.len(), 3);
    let address = [("Filter.1.Name", "ip-address"), ("Filter.1.Value.1", "198.51.100.7")];
    assert_eq!(found(&address).await.0, ["i-0dc03fbcae2a80001"]);
    assert_eq!(found(&[("InstanceId.1", "i-0dc03fbcae2a80005")]).await.0.len(), 1);
    let (page, answer) = found(&[("MaxResults", "5")]).await;
    assert_eq!(page.len(), 5);
    assert!(!answer.body.contains("nextToken"), "{}", answer.body);

    for (parameters, status, code, message) in [
        (
            vec![("InstanceId.1", "i-0123456789abcdef0")],
            400,
            "InvalidInstanceID.NotFound",
            "The instance ID 'i-0123456789abcdef0' does not exist",
        ),
        (vec![("InstanceId.1", "i-x")], 400, "InvalidInstanceID.Malformed", "Invalid id: \"i-x\""),
        (
            vec![("Filter.1.Name", "colour"), ("Filter.1.Value.1", "red")],
            400,
            "InvalidParameterValue",
            "The filter 'colour' is invalid",
        ),
    ] {
        let answer = ec2(&emulator, "DescribeInstances", &parameters).await;
        assert_eq!(
            (answer.status, answer.element("Code"), answer.element("Message")),
            (status, code.into(), message.into())
        );
    }
    emulator.update(|settings| settings.denied_actions.extend(["ec2:DescribeInstances".to_owned()]));
    let denied = ec2(&emulator, "DescribeInstances", &[]).await;
    assert_eq!((denied.status, denied.element("Code")), (403, "UnauthorizedOperation".to_owned()));
    let keys = TestKeys { access_key: "ASIAUNKNOWNUNKNOWN00".into(), ..TestKeys::of(&emulator) };
    let form = "Action=DescribeInstances&Version=2016-11-15";
    let unknown = call(&emulator, &keys.signer("ec2"), "POST", "/", &[], form).await;
    assert_eq!((unknown.status, unknown.element("Code")), (401, "AuthFailure".to_owned()));
    emulator.stop().await;
}

#[tokio::test]
async fn ec2_tells_of_networks_and_consoles() {
    let mut config = quick();
    config.bastions[0].console = Some("host key".into());
    config.vpcs[0].endpoints = vec!["ssmmessages".into(), "s3".into()];
    config.connect_endpoints = vec![ConnectEndpointConfig {
        id: "eice-0123456789abcdef0".into(),
        vpc: "vpc-0a0b0c0d0e0f01020".into(),
        subnet: "subnet-0a1b2c3d4e5f60718".into(),
        dns_name: Some("eice-0123456789abcdef0.example".into()),
        state: "create-complete".into(),
    }];
    let emulator = start(config).await;
    let vpc = |id: &'static str| [("Filter.1.Name", "vpc-id"), ("Filter.1.Value.1", id)];
    let here = vpc("vpc-0a0b0c0d0e0f01020");
    let endpoint = ec2(&emulator, "DescribeInstanceConnectEndpoints", &here).await;
    assert_eq!(endpoint.element("dnsName"), "eice-0123456789abcdef0.example");
    assert!(!ec2(&emulator, "DescribeInstanceConnectEndpoints", &vpc("vpc-other")).await.body.contains("<item>"));
    let console = ec2(&emulator, "GetConsoleOutput", &[("InstanceId", "i-0dc03fbcae2a87472")]).await;
    assert_eq!(console.element("output"), "aG9zdCBrZXk=");
    let subnets = ec2(&emulator, "DescribeSubnets", &here).await.body;
    assert_eq!(subnets.matches("<subnetId>").count(), 2);
    let endpoints = ec2(&emulator, "DescribeVpcEndpoints", &here).await;
    assert_eq!(endpoints.element("serviceName"), "com.amazonaws.us-east-1.ssmmessages");
    let groups = ec2(&emulator, "DescribeSecurityGroups", &[("GroupId.1", "sg-0c0ffee0c0ffee0c0")]).await;
    assert_eq!(groups.element("vpcId"), "vpc-0a0b0c0d0e0f01020");
    let unknown = ec2(&emulator, "DescribeDreams", &[]).await;
    assert_eq!((unknown.status, unknown.element("Code")), (400, "InvalidAction".to_owned()));
    emulator.stop().await;
}

#[tokio::test]
async fn auto_scaling_replaces_an_instance_by_another() {
    let config = Config {
        bastions: vec![BastionConfig::new("i-0dc03fbcae2a80001").in_group("jumpers")],
        instance_start: Duration::from_millis(200),
        ..quick()
    };
    let emulator = start(config).await;
    let granted = session_with(&emulator, "i-0dc03fbcae2a80001").await;
    let mut client = Client::open(&emulator, &granted).await;
    client.handshake().await;
    let new = emulator.replace_instance("i-0dc03fbcae2a80001").unwrap();
    assert_eq!(emulator.replace_instance("i-0dc03fbcae2a80001"), None);
    assert!(is_silent(&mut client).await);
    assert_eq!(emulator.sessions()[0].state, SessionState::Connected);
    let old = error(&start_session_with(&emulator, "i-0dc03fbcae2a80001", "h", 443).await);
    assert_eq!(old.1, "TargetNotConnected");
    let of_group = json!({"Filters": [{"Key": "tag:aws:autoscaling:groupName", "Values": ["jumpers"]}]});
    within(async {
        loop {
            let nodes = ssm(&emulator, "DescribeInstanceInformation", of_group.clone()).await.json();
            let nodes = nodes["InstanceInformationList"].as_array().unwrap();
            if nodes.len() == 1 && nodes[0]["InstanceId"] == new.as_str() && nodes[0]["PingStatus"] == "Online" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    session_with(&emulator, &new).await;
    let state = ec2(&emulator, "DescribeInstances", &[("InstanceId.1", "i-0dc03fbcae2a80001")]).await;
    assert!(state.body.contains("<name>terminated</name>"), "{}", state.body);
    emulator.stop().await;
}
