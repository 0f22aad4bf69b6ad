//! What is run, and whether its script does what it is for.

use std::{
    os::unix::fs::symlink,
    process::{Command, Stdio},
};

use super::*;
use crate::{clock::Clock, cluster::Vpc};

fn options() -> FargateOptions {
    FargateOptions::default()
}

fn network(options: &FargateOptions) -> Network {
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    let (subnets, security_groups) = (texts(&["subnet-a", "subnet-b"]), texts(&["sg-1"]));
    Network::of(options, &Vpc { id: "vpc-1".to_owned(), subnets, security_groups })
}

const ROLE: &str = "arn:aws:iam::123456789012:role/autoheal-pa-bastion";

#[test]
fn a_definition_is_known_by_what_is_in_it() {
    let digest = |options: &FargateOptions, role| definition(options, role).tags[0].1.clone();
    let first = digest(&options(), ROLE);
    assert_eq!((first.len(), &first), (16, &digest(&options(), ROLE)));
    let others = [
        FargateOptions { image: "busybox".to_owned(), ..options() },
        FargateOptions { ttl: Duration::from_secs(3600), ..options() },
    ];
    for other in others {
        assert_ne!(digest(&other, ROLE), first);
    }
    assert_ne!(digest(&options(), "arn:aws:iam::123456789012:role/other"), first);
    // How it is connected is no part of it.
    assert_eq!(digest(&FargateOptions { public_ip: true, ..options() }, ROLE), first);
}

#[test]
fn a_task_is_known_by_what_the_user_says_of_it() {
    let digest = |options: &FargateOptions| Spec::new("tools", options, network(options), ROLE).digest;
    let first = digest(&options());
    let others = [
        FargateOptions { public_ip: true, ..options() },
        FargateOptions { subnets: vec!["subnet-c".to_owned()], ..options() },
        FargateOptions { security_groups: vec!["sg-2".to_owned()], ..options() },
        FargateOptions { task_definition: Some("ours:3".to_owned()), ..options() },
    ];
    for other in others {
        assert_ne!(digest(&other), first, "{other:?}");
    }
}

#[test]
fn roles_have_names_and_arns() {
    assert_eq!(role_arn("autoheal-pa-bastion", "us-east-1", "123456789012"), ROLE);
    assert_eq!(role_arn("x", "cn-north-1", "123456789012"), "arn:aws-cn:iam::123456789012:role/x");
    assert_eq!(role_arn("arn:aws:iam::1:role/team/x", "us-east-1", "2"), "arn:aws:iam::1:role/team/x");
}

#[test]
fn tags_take_few_characters() {
    assert_eq!(tag_value("arn:aws:sts::1:assumed-role/R/ann@corp"), "arn:aws:sts::1:assumed-role/R/ann@corp");
    assert_eq!(tag_value("a,b\"c\u{1b}"), "a_b_c_");
    assert_eq!(tag_value(&"x".repeat(300)).len(), 256);
}

/// Runs the script with these times in seconds; returns how long it ran. `used`: a worker of the agent is there.
fn run(life: u64, disuse: u64, used: bool) -> Duration {
    let secs = Duration::from_secs;
    let dir = tempfile::tempdir().unwrap();
    let worker = dir.path().join("ssm-session-worker");
    symlink("/bin/sleep", &worker).unwrap();
    let mut worker = used.then(|| Command::new(&worker).arg("60").stdout(Stdio::null()).spawn().unwrap());
    let clock = Clock::start();
    let status = Command::new("sh").args(["-c", &script(secs(life), secs(disuse), secs(1))]).status().unwrap();
    let took = clock.now().mono;
    if let Some(worker) = &mut worker {
        worker.kill().unwrap();
        worker.wait().unwrap();
    }
    assert_eq!(status.code(), Some(0));
    took
}

#[test]
#[cfg(target_os = "linux")]
fn a_container_ends_after_its_life_and_without_use() {
    let secs = Duration::from_secs;
    std::thread::scope(|scope| {
        // Not while a worker of another run is there.
        let unused = run(60, 2, false);
        assert!((secs(2)..secs(30)).contains(&unused), "{unused:?}");
        let used = scope.spawn(|| run(4, 2, true));
        assert!(used.join().unwrap() >= secs(3));
    });
}
