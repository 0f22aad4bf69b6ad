//! `doctor` about a role that may more than tunnels need, or no more, or whose policies nobody may read.

use autoheal_pa::emulator::{ClusterConfig, Config};
use serde_json::{Value, json};

use super::support::{Ended, Lab, PROGRAM, Running};

async fn lab(policies: &[(&str, Value)]) -> Lab {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    let policies = policies.iter().map(|(name, document)| ((*name).to_owned(), document.clone())).collect();
    lab.emulator.update(|settings| settings.role_policies = policies);
    lab
}

fn allowing(action: &Value, resource: &str) -> Value {
    json!({ "Version": "2012-10-17", "Statement": { "Effect": "Allow", "Action": action, "Resource": resource } })
}

/// What `doctor` says of it.
async fn finding(lab: &Lab, args: &[&str]) -> Value {
    let mut command = lab.program(&["doctor", "--json"]);
    let ended = Running::start(command.args(args)).ended().await;
    assert_eq!(ended.code(), Some(0), "it fails nothing: {ended:#?}");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["ok"], true);
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["id"] == "least-privilege").unwrap().clone()
}

/// The command that a fix has between backticks.
fn command_in(fix: &Value) -> Vec<String> {
    let text = fix.as_str().unwrap().split('`').nth(1).unwrap();
    text.split_whitespace().skip(1).map(|word| word.trim_matches('\'').to_owned()).collect()
}

async fn printed(lab: &Lab, args: &[String]) -> Value {
    let mut command = lab.bare_command(PROGRAM);
    let ended: Ended = Running::start(command.args(args)).ended().await;
    serde_json::from_str(ended.assert_success()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wide_role_is_a_warning_with_the_policy_that_will_do() {
    let lab = lab(&[("Admins", allowing(&json!("*"), "*"))]).await;
    let mut found = finding(&lab, &[]).await;
    assert_eq!(found["status"], "warning");
    found["duration_ms"] = 0.into();
    insta::assert_snapshot!(format!("{found:#}"));

    // What its fixes print is no more than is needed, and with a document of one's own as well.
    for fix in found["fixes"].as_array().unwrap() {
        let args = command_in(fix);
        let policy = printed(&lab, &args).await;
        lab.emulator.update(|settings| settings.role_policies = vec![("autoheal-pa".to_owned(), policy)]);
        let document: Vec<&str> = args.iter().skip_while(|arg| *arg != "--document").map(String::as_str).collect();
        let checked = if document.is_empty() {
            finding(&lab, &[]).await
        } else {
            // There is no such document here: nothing else is asked of the session.
            let bastion = ["--bastion", "i-0dc03fbcae2a87472"];
            let mut command = lab.program(&["doctor", "--json"]);
            let ended = Running::start(command.args(bastion).args(&document)).ended().await;
            let report: Value = serde_json::from_str(&ended.stdout).unwrap();
            let checks = report["checks"].as_array().unwrap();
            checks.iter().find(|check| check["id"] == "least-privilege").unwrap().clone()
        };
        assert_eq!(checked["status"], "ok", "{checked:#}");
    }
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_is_too_wide_is_named_with_what_it_leads_to() {
    for (action, resource, answer, meaning) in [
        (json!("ssm:StartSession"), "*", "`ssm:StartSession` on `*`", "a shell on every instance"),
        (
            json!(["ssm:StartSession"]),
            "arn:aws:ssm:us-east-1:*:document/*",
            "`ssm:StartSession` on `arn:aws:ssm:us-east-1:*:document/*`",
            "sessions of other kinds than forwarding",
        ),
        (json!("ssm:Send*"), "*", "`ssm:Send*`", "commands as root on every instance"),
        (
            json!("ssm:TerminateSession"),
            "*",
            "without the condition on `ssm:resourceTag/aws:ssmmessages:session-id`",
            "the sessions of others",
        ),
        (json!("eks:*"), "*", "`eks:*`", "clusters as their administrator"),
    ] {
        let lab = lab(&[("tools", allowing(&action, resource))]).await;
        let found = finding(&lab, &[]).await;
        assert_eq!(found["status"], "warning", "{found:#}");
        let text = |key: &str| found[key].as_str().unwrap().to_owned();
        assert!(
            text("answer").contains(&format!("statement 1 of `tools`: {answer}")) || text("answer").contains(answer)
        );
        assert!(text("meaning").contains(meaning), "{found:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_no_more_is_well() {
    let lab = lab(&[("logs", allowing(&json!(["logs:*", "s3:GetObject"]), "*"))]).await;
    let found = finding(&lab, &[]).await;
    assert_eq!(found["status"], "ok", "{found:#}");
    let mine: Vec<String> =
        ["policy", "--region", "us-east-1", "--account-id", "123456789012", "--bastion", "i-0dc03fbcae2a87472"]
            .map(str::to_owned)
            .into();
    let policy = printed(&lab, &mine).await;
    lab.emulator.update(|settings| settings.role_policies = vec![("autoheal-pa".to_owned(), policy)]);
    assert_eq!(finding(&lab, &[]).await["status"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_may_not_be_read_are_passed_over() {
    for action in ["iam:ListRolePolicies", "iam:GetRolePolicy", "iam:ListAttachedRolePolicies"] {
        let lab = lab(&[("Admins", allowing(&json!("*"), "*"))]).await;
        lab.emulator.update(|settings| settings.denied_actions.extend([action.to_owned()]));
        let found = finding(&lab, &[]).await;
        assert_eq!(found["status"], "skipped", "{found:#}");
        let wanted =
            format!("`{action}` is optional and not allowed: whether the role may more than it needs is not known");
        assert_eq!(found["meaning"], *wanted);
    }
}
