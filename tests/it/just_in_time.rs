//! `--request-access`: accounts that take `ssm:StartSession` away, and give credentials for one node after an approval.

use std::time::Duration;

use autoheal_pa::emulator::{AccessStatus, Command, Config, Event, JustInTime, Settings};
use rustix::process::Signal;
use serde_json::Value;

use super::support::{Lab, within};

const NODE: &str = "i-0dc03fbcae2a87472";

const ASK: [&str; 3] = ["--request-access", "--reason", "INC-1: payments are down"];

async fn lab(just_in_time: JustInTime) -> Lab {
    Lab::start(Config { settings: Settings { just_in_time, ..Settings::default() }, ..Config::default() }).await
}

fn calls(lab: &Lab, operation: &str) -> usize {
    let wanted = format!("ssm:{operation}");
    lab.count(|event| matches!(event, Event::Api { action, .. } if *action == wanted))
}

/// Waits until `status --json` is so.
async fn until_status(lab: &Lab, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    within(what, async {
        loop {
            let status = lab.status(&[]).await;
            if is_so(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_approves_at_once() {
    let lab = lab(JustInTime::deciding(AccessStatus::Approved)).await;
    let up = lab.up(&ASK).await;
    let requests = lab.emulator.access_requests();
    assert_eq!(requests.len(), 1, "one for all tunnels: {requests:?}");
    assert_eq!((requests[0].target.as_str(), requests[0].reason.as_str()), (NODE, ASK[2]));
    assert_eq!(lab.emulator.sessions().len(), 2);
    let id = &requests[0].id;
    assert!(up.stderr_so_far().contains(&format!("access request `{id}` for `{NODE}` is approved, until ")));
    let status = lab.run(&["status"]).await;
    let said = format!("approval    `{NODE}`, request `{id}`: approved until ");
    assert!(status.assert_success().contains(&said), "{}", status.stdout);
    let status = lab.status(&[]).await;
    let approval = &status["access"][0]["approvals"][0];
    assert_eq!((approval["state"].as_str(), approval["request"].as_str()), (Some("approved"), Some(id.as_str())));

    // A WebSocket that is lost is replaced with the same credentials: nobody else may do that with these sessions.
    lab.emulator.command(&Command::CutTransport);
    lab.wait_until("both sessions to be resumed", |emulator| {
        emulator.events().iter().filter(|event| matches!(event, Event::SessionResumed { .. })).count() >= 2
    })
    .await;
    // Doctor goes by the approval that there is.
    let doctor = lab.run(&["doctor"]).await;
    assert!(doctor.assert_success().contains("access approved"), "{}", doctor.stdout);
    assert_eq!(calls(&lab, "StartAccessRequest"), 1);
    up.stop().await.assert_success();
    lab.assert_clean().await;
    assert!(calls(&lab, "GetAccessToken") < 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_approves_late() {
    let lab = lab(JustInTime::deciding(AccessStatus::Pending)).await;
    let mut up = lab.start_up(&ASK);
    assert!(up.says("waits for approval: approvers find it in the console of Systems Manager").await);
    let id = lab.emulator.access_requests()[0].id.clone();
    let status = until_status(&lab, "both to wait", |status| {
        let waits =
            |tunnel: &Value| tunnel["progress"].as_str().is_some_and(|text| text.contains("waits for approval"));
        status["tunnels"].as_array().is_some_and(|tunnels| tunnels.len() == 2 && tunnels.iter().all(waits))
    })
    .await;
    assert_eq!(status["tunnels"][0]["state"], "starting");
    assert_eq!(status["access"][0]["approvals"][0]["state"], "waiting");
    let text = lab.run(&["status"]).await;
    assert!(text.assert_success().contains(&format!("`{NODE}`, request `{id}`: waiting for approval")), "{text:?}");
    lab.emulator.decide_access(AccessStatus::Approved);
    up.ready().await;
    assert_eq!(lab.emulator.access_requests().len(), 1);
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_stops_waiting_is_gone_at_once() {
    let lab = lab(JustInTime::deciding(AccessStatus::Pending)).await;
    let mut up = lab.start_up(&ASK);
    assert!(up.says("waits for approval").await);
    up.signal(Signal::INT);
    assert_eq!(up.ended().await.code(), Some(130));
    // And `--timeout` is an end where it is given.
    let args = [&["exec", "--base-port", "0", "--timeout", "4s"][..], &ASK, &["--", "true"]].concat();
    let ended = lab.run(&args).await;
    assert_eq!(ended.code(), Some(5), "{ended:#?}");
    assert!(ended.stderr.contains("waits for approval"), "{ended:#?}");
    assert!(calls(&lab, "GetAccessToken") < 10, "the service is not asked all the time");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_said_and_not_asked_again() {
    for (decision, said) in [
        (AccessStatus::Rejected, "was rejected"),
        (AccessStatus::Revoked, "has been revoked"),
        (AccessStatus::Expired, "has expired before it was approved"),
    ] {
        let lab = lab(JustInTime::deciding(decision)).await;
        let ended = lab.start_up(&ASK).ended().await;
        assert_eq!(ended.code(), Some(3), "{ended:#?}");
        let id = lab.emulator.access_requests()[0].id.clone();
        assert!(ended.stderr.contains(&format!("access request `{id}` for `{NODE}` {said}")), "{ended:#?}");
        assert!(ended.stderr.contains("end the manager with `autoheal-pa down` and start it again"), "{ended:#?}");
        assert_eq!((calls(&lab, "StartAccessRequest"), calls(&lab, "StartSession")), (1, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_is_revoked_in_the_middle() {
    let lab = lab(JustInTime::deciding(AccessStatus::Approved)).await;
    let up = lab.up(&ASK).await;
    lab.emulator.decide_access(AccessStatus::Revoked);
    // What runs goes on, as on AWS.
    assert_eq!(lab.status(&[]).await["state"], "active");
    lab.emulator.command(&Command::CloseChannel { output: Some("ended".to_owned()) });
    let status = until_status(&lab, "both to fail", |status| {
        let is_revoked = |tunnel: &Value| {
            let error = tunnel["last_error"].as_str().unwrap_or_default();
            tunnel["state"] == "failed" && error.contains("has been revoked")
        };
        status["tunnels"].as_array().unwrap().iter().all(is_revoked)
    })
    .await;
    assert_eq!(status["access"][0]["approvals"][0]["state"], "revoked");
    assert_eq!(lab.emulator.access_requests().len(), 1);
    up.stop().await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_approval_is_asked_for_when_one_is_over() {
    let window = Duration::from_secs(5);
    let lab = lab(JustInTime { window, ..JustInTime::deciding(AccessStatus::Approved) }).await;
    let mut up = lab.up(&ASK).await;
    let status = lab.run(&["status"]).await;
    assert!(
        status
            .stdout
            .contains("after that open connections go on, and a session that is lost waits for another approval"),
        "{}",
        status.stdout
    );
    lab.emulator.update(|settings| settings.just_in_time.decision = AccessStatus::Pending);
    lab.wait_until("the approval to end", |emulator| emulator.access_requests()[0].status == AccessStatus::Expired)
        .await;
    lab.emulator.command(&Command::CloseChannel { output: Some("ended".to_owned()) });
    lab.wait_until("another request", |emulator| emulator.access_requests().len() == 2).await;
    let status =
        until_status(&lab, "both to wait again", |status| status["access"][0]["approvals"][0]["state"] == "waiting")
            .await;
    assert_eq!(status["tunnels"][0]["state"], "reconnecting");
    assert_eq!(lab.emulator.access_requests()[1].reason, ASK[2]);
    lab.emulator.update(|settings| settings.just_in_time.window = Duration::from_secs(3600));
    lab.emulator.decide_access(AccessStatus::Approved);
    until_status(&lab, "both to work again", |status| status["state"] == "active").await;
    assert_eq!(lab.emulator.access_requests().len(), 2);
    assert!(up.says("is approved, until ").await);
    up.stop().await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_access_cannot_be_requested_with_is_refused_before_any_call() {
    let lab = lab(JustInTime::deciding(AccessStatus::Approved)).await;
    for (args, said) in [
        (
            &["--request-access"][..],
            "`--request-access`: `true` is not of use without `--reason`, which approvers read",
        ),
        (&[&ASK[..], &["--bastion", "direct"]].concat(), "`direct` is not a bastion that access can be requested to"),
        (&[&ASK[..], &["--bastion", "fargate"]].concat(), "`fargate` is not a bastion that access can be"),
        (&[&ASK[..], &["--bastion", "ssh://ec2-user@host"]].concat(), "for instances and managed nodes alone"),
        (&[&ASK[..], &["--bastion", "ecs:tools/bastion"]].concat(), "for instances and managed nodes alone"),
    ] {
        let ended = lab.start_up(args).ended().await;
        assert_eq!(ended.code(), Some(2), "{ended:#?}");
        assert!(ended.stderr.contains(said), "{ended:#?}");
    }
    let policy = lab.run(&["policy", "--request-access", "--bastion", "ecs:tools/bastion"]).await;
    assert_eq!(policy.code(), Some(2), "{policy:#?}");
    assert_eq!(lab.emulator.events().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_is_told_with_what_to_do() {
    let lab = lab(JustInTime::deciding(AccessStatus::Approved)).await;
    // Without the option it may be that.
    let plain = lab.start_up(&[]).ended().await;
    assert_eq!(plain.code(), Some(3), "{plain:#?}");
    assert!(plain.stderr.contains("`--request-access --reason TEXT` asks for an approval"), "{plain:#?}");

    lab.emulator.update(|settings| settings.just_in_time.shells_only = true);
    let shells = lab.start_up(&ASK).ended().await;
    assert_eq!(shells.code(), Some(3), "{shells:#?}");
    let document = "does not allow `ssm:StartSession` on \
                    `arn:aws:ssm:us-east-1::document/AWS-StartPortForwardingSessionToRemoteHost`";
    assert!(shells.stderr.contains(document), "{shells:#?}");
    assert!(
        shells.stderr.contains("allow shells alone, the session document `SSM-SessionManagerRunShell`"),
        "{shells:#?}"
    );

    lab.emulator.update(|settings| {
        settings.denied_actions.insert("ssm:GetAccessToken".to_owned());
    });
    let denied = lab.start_up(&ASK).ended().await;
    assert_eq!(denied.code(), Some(3), "{denied:#?}");
    assert!(
        denied.stderr.contains("IAM policy must allow `ssm:GetAccessToken`: `autoheal-pa policy --request-access"),
        "{denied:#?}"
    );

    lab.emulator.update(|settings| settings.just_in_time = JustInTime::default());
    let disabled = lab.start_up(&ASK).ended().await;
    assert!(!disabled.status.success(), "{disabled:#?}");
    assert!(disabled.stderr.contains("service is not enabled in this account"), "{disabled:#?}");
    assert!(disabled.stderr.contains("has to be turned on for this account and region"), "{disabled:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_how_far_a_request_is() {
    let lab = lab(JustInTime::deciding(AccessStatus::Approved)).await;
    let doctor = ["doctor", "--bastion", NODE, "--cluster", "payments", "--request-access"];
    let approved = lab.run(&doctor).await;
    assert!(approved.assert_success().contains("access approved"), "{approved:#?}");
    assert_eq!(lab.emulator.access_requests()[0].reason, "autoheal-pa doctor");
    lab.emulator.update(|settings| settings.just_in_time.decision = AccessStatus::Pending);
    let pending = lab.run(&[&doctor[..], &["--reason", "INC-1"]].concat()).await;
    assert_eq!(pending.code(), Some(6), "{pending:#?}");
    assert!(
        pending.stdout.contains("is not approved yet") && pending.stdout.contains("aws ssm get-ops-item"),
        "{pending:#?}"
    );
    assert_eq!(lab.emulator.access_requests()[1].reason, "INC-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_that_is_printed_allows_requests_and_no_sessions() {
    let lab = lab(JustInTime::deciding(AccessStatus::Approved)).await;
    let printed = lab.run(&["policy", "--request-access", "--bastion", NODE]).await;
    let policy: Value = serde_json::from_str(printed.assert_success()).unwrap();
    let statement = |action: &str| {
        let statements = policy["Statement"].as_array().unwrap();
        statements.iter().find(|statement| statement["Action"][0] == action).map(|found| found["Resource"][0].clone())
    };
    let node = format!("arn:aws:ec2:us-east-1:123456789012:instance/{NODE}");
    assert_eq!(statement("ssm:StartAccessRequest").unwrap(), node);
    assert_eq!(statement("ssm:GetAccessToken").unwrap(), "*");
    assert_eq!(statement("ssm:StartSession"), None);
    assert!(printed.stderr.contains("allow shells alone"), "{}", printed.stderr);
    let tagged = lab.run(&["policy", "--request-access", "--bastion", "tag:role=bastion"]).await;
    let policy: Value = serde_json::from_str(tagged.assert_success()).unwrap();
    let condition = &policy["Statement"][2]["Condition"]["StringEquals"]["ssm:resourceTag/role"];
    assert_eq!(condition, "bastion", "{policy:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_open_tunnels_takes_it() {
    let lab = lab(JustInTime::deciding(AccessStatus::Approved)).await;
    let exec = [&["exec", "--base-port", "0"][..], &ASK, &["--", "true"]].concat();
    lab.run(&exec).await.assert_success();
    let demand = lab.up(&[&ASK[..], &["--on-demand"]].concat()).await;
    demand.stop().await.assert_success();
    let file = lab.path("config.yaml");
    let text = format!(
        "base_port: 0\naccess:\n  - region: us-east-1\n    bastion: {NODE}\n    request_access: true\n    reason: from a file\n"
    );
    std::fs::write(&file, text).unwrap();
    let mut up = super::support::Running::start(&mut lab.program(&["up", "--config", file.to_str().unwrap()]));
    up.ready().await;
    assert_eq!(lab.emulator.access_requests().last().unwrap().reason, "from a file");
    up.stop().await.assert_success();
    lab.assert_clean().await;
}
