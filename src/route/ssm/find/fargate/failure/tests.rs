//! What ECS says, and what is said of it.

use std::sync::Arc;

use super::*;
use crate::{
    aws::{
        ecs::{Tags, TaskContainer},
        error::ServiceAnswer,
    },
    util::peer_text::sentence,
};

const ROLE: &str = "arn:aws:iam::123456789012:role/autoheal-pa-bastion";

fn fargate() -> Fargate {
    Fargate::parse("fargate").unwrap()
}

fn about(fargate: &Fargate) -> About<'_> {
    About { fargate, role: ROLE, region: "us-east-1", vpc: "vpc-1" }
}

fn refused(message: &str) -> AwsError {
    let answer =
        ServiceAnswer { code: None, message: Some(PeerText::new(message)), status: Some(400), request_id: None };
    AwsError::Refused {
        action: "ecs:RunTask",
        resource: "autoheal-pa-bastion:1".to_owned(),
        refusal: Refusal::Request,
        source: Arc::new(answer),
    }
}

pub(in super::super) fn stopped(code: &str, reason: &str, exit: Option<i32>) -> Task {
    let container = TaskContainer {
        name: "bastion".to_owned(),
        runtime_id: None,
        last_status: "STOPPED".into(),
        exit_code: exit,
        reason: None,
        agent: None,
    };
    Task {
        arn: "arn:aws:ecs:us-east-1:123456789012:task/autoheal-pa/0f9d".to_owned(),
        cluster_arn: "arn:aws:ecs:us-east-1:123456789012:cluster/autoheal-pa".to_owned(),
        definition_arn: "arn:aws:ecs:us-east-1:123456789012:task-definition/autoheal-pa-bastion:1".to_owned(),
        last_status: "STOPPED".into(),
        desired_status: "STOPPED".into(),
        created_at: None,
        started_at: None,
        exec_enabled: true,
        stop_code: Some(code.into()),
        stopped_reason: (!reason.is_empty()).then(|| reason.into()),
        containers: vec![container],
        tags: Tags::new(),
        started_by: None,
        group: None,
        launch_type: None,
        platform_version: None,
        network: None,
    }
}

/// What is said, its class, its hints, and what may help.
fn told((fault, remedy): (Fault, Remedy)) -> String {
    format!("{:?} {remedy:?}: {}\n  {}\n", fault.class, sentence(&fault), fault.hints.join("\n  "))
}

#[test]
fn every_refusal_to_run_has_its_sentence() {
    let fargate = fargate();
    let texts = [
        "Capacity is unavailable at this time. Please try again later or in a different availability zone",
        "Unable to assume the service linked role. Please verify that the ECS service linked role exists.",
        "ECS was unable to assume the role 'arn:aws:iam::123456789012:role/x' that was provided for this task.",
        "The execute command failed because a valid task role is not being used. Specify a valid task role.",
        "You've reached the limit on the number of vCPUs you can run concurrently",
        "TaskDefinition not found.",
        "Subnets must be in the same VPC.",
    ];
    let all: String = texts.into_iter().map(|text| told(not_run(refused(text), about(&fargate)))).collect();
    insta::assert_snapshot!(all);
}

#[test]
fn every_task_that_did_not_start_has_its_sentence() {
    let fargate = fargate();
    let texts = [
        "CannotPullContainerError: pull image manifest has been retried 5 time(s): failed to do request: dial tcp: i/o timeout",
        "CannotPullContainerError: context deadline exceeded",
        "CannotPullContainerError: inspect image has been retried 1 time(s): busybox:nope: not found",
        "CannotPullContainerError: image manifest does not contain descriptor: no match for platform in manifest",
        "CannotPullContainerError: httpReadSeeker: 429 Too Many Requests - Server message: toomanyrequests: Rate exceeded",
        "CannotPullContainerError: something else",
        "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval failed",
        "Timeout waiting for network interface provisioning to complete.",
        "Unexpected EC2 error while attempting to Create Network Interface in subnet 'subnet-a': InsufficientFreeAddressesInSubnet",
        "CannotStartContainerError: ResourceInitializationError: exec: \"sh\": executable file not found in $PATH",
        "ContainerRuntimeTimeoutError: Could not transition to started; timed out after waiting 3m0s",
        "Something new",
        "",
    ];
    let all: String = texts
        .into_iter()
        .map(|text| told(not_started(&stopped("TaskFailedToStart", text, None), "0f9d", about(&fargate))))
        .collect();
    insta::assert_snapshot!(all);
}

#[test]
fn an_end_is_told_by_who_has_brought_it() {
    let said = |code: &str, reason: &str, exit| end(&stopped(code, reason, exit));
    let essential = "Essential container in task exited";
    assert_eq!(said("EssentialContainerExited", essential, Some(0)), None);
    for (code, reason, exit, words) in [
        ("EssentialContainerExited", essential, Some(137), "it ran out of memory (Essential container in task exited)"),
        ("EssentialContainerExited", "", Some(1), "its container ended with status 1"),
        ("UserInitiated", "Task stopped by user", Some(143), "somebody stopped it (Task stopped by user)"),
        ("TerminationNotice", "", None, "AWS stopped it"),
        ("InfrastructureHealth", "", None, "AWS stopped it"),
        ("SpotInterruption", "", None, "AWS stopped it"),
        ("", "", None, "it was stopped"),
    ] {
        assert_eq!(said(code, reason, exit).as_deref(), Some(words));
    }
}

#[test]
fn an_agent_that_does_not_come_up_is_a_matter_of_role_or_network() {
    let fault = no_agent("0f9d", "its agent for sessions has not come up within a minute", about(&fargate()));
    insta::assert_snapshot!(told((fault, Remedy::None)));
}
