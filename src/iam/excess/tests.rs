//! What is too much, of statements as people write them.

use serde_json::json;

use super::*;
use crate::iam::Grant;

const INSTANCE: &str = "arn:aws:ec2:us-east-1:123456789012:instance/i-1";
const FORWARDS: &str = "arn:aws:ssm:us-east-1::document/AWS-StartPortForwardingSessionToRemoteHost";

fn needed() -> Document {
    let start = Statement::allow("Start", ["ssm:StartSession"], vec![INSTANCE.to_owned(), FORWARDS.to_owned()]);
    let own = Statement::allow("Own", ["ssm:ResumeSession", "ssm:TerminateSession"], vec!["*".to_owned()]);
    Grant::document_of(vec![
        Statement::allow("List", ["eks:ListClusters"], vec!["*".to_owned()]),
        Statement::allow(
            "Describe",
            ["eks:DescribeCluster"],
            vec!["arn:aws:eks:us-east-1:123456789012:cluster/*".to_owned()],
        ),
        start.when("BoolIfExists", "ssm:SessionDocumentAccessCheck", "true"),
        own.when("StringLike", "ssm:resourceTag/aws:ssmmessages:session-id", "${aws:userid}"),
    ])
}

fn found(statements: Value) -> Vec<Excess> {
    let document = json!({ "Version": "2012-10-17", "Statement": statements });
    too_much(&needed(), "us-east-1", &[HeldPolicy { name: "p".to_owned(), document }])
}

/// What is too much, on a line each.
fn told(statements: Value) -> Vec<String> {
    let over = found(statements).into_iter().flat_map(|excess| excess.over);
    over.map(|over| match over {
        Over::Actions { pattern, powers } => {
            let powers: Vec<_> = powers.iter().map(|Power(power)| *power).collect();
            format!("{pattern}: {}", powers.join(" "))
        }
        Over::Resource { action, resource } => format!("{action} on {resource}"),
        Over::Condition { action, resource, keys } => format!("{action} on {resource} if {}", keys.join(" ")),
    })
    .collect()
}

#[test]
fn no_more_is_nothing() {
    assert_eq!(found(needed().to_value()["Statement"].clone()), []);
    let narrower = json!([
        // One statement for two services, in other letters, and more conditions than are needed.
        { "Effect": "Allow", "Action": ["EKS:listclusters", "eks:DescribeCluster", "ssm:StartSession"],
          "Resource": [INSTANCE, FORWARDS, "arn:aws:eks:us-east-1:123456789012:cluster/pay*"],
          "Condition": { "Bool": { "ssm:sessiondocumentaccesscheck": true },
                         "IpAddress": { "aws:SourceIp": "192.0.2.0/24" } } },
        // One's own sessions, as guides have it.
        { "Effect": "Allow", "Action": "ssm:TerminateSession", "Resource": "arn:aws:ssm:*:*:session/${aws:username}-*" },
        // What another access needs in another region, and what has nothing to do with tunnels.
        { "Effect": "Allow", "Action": "ssm:StartSession", "Resource": "arn:aws:ec2:eu-west-1:123456789012:instance/*" },
        { "Effect": "Allow", "Action": ["s3:*", "ec2:Describe*"], "Resource": "*" },
        { "Effect": "Deny", "Action": "*", "Resource": "*", "Condition": { "Bool": { "aws:ViaAWSService": "true" } } },
    ]);
    assert_eq!(found(narrower), []);
}

#[test]
fn more_is_named_by_its_statement() {
    let wide = json!([
        { "Effect": "Allow", "Action": "eks:ListClusters", "Resource": "*" },
        { "Effect": "Allow", "Action": "ssm:StartSession", "Resource": "*" },
        { "Sid": "Wide", "Effect": "Allow", "Action": "ssm:SendCommand", "Resource": "*" },
    ]);
    let found = found(wide);
    let names: Vec<_> = found.iter().map(|excess| (excess.policy.as_str(), excess.statement.clone())).collect();
    assert_eq!(names, [("p", Err(2)), ("p", Ok("Wide".to_owned()))]);
}

#[test]
fn each_way_of_being_too_wide() {
    let check = json!({ "BoolIfExists": { "ssm:SessionDocumentAccessCheck": "true" } });
    for (statement, wanted) in [
        (json!({ "Action": "ssm:StartSession", "Resource": "*" }), "ssm:StartSession on *"),
        (
            json!({ "Action": "ssm:StartSession", "Resource": INSTANCE }),
            "ssm:StartSession on arn:aws:ec2:us-east-1:123456789012:instance/i-1 if ssm:SessionDocumentAccessCheck",
        ),
        (
            json!({ "Action": "ssm:StartSession", "Resource": "arn:aws:ssm:*:*:document/AWS-StartSSHSession", "Condition": check }),
            "ssm:StartSession on arn:aws:ssm:*:*:document/AWS-StartSSHSession",
        ),
        (
            json!({ "Action": "ssm:StartSession", "Resource": "arn:aws:ec2:us-east-1:123456789012:instance/i-?", "Condition": check }),
            "ssm:StartSession on arn:aws:ec2:us-east-1:123456789012:instance/i-?",
        ),
        (
            json!({ "Action": "ssm:ResumeSession", "Resource": "*" }),
            "ssm:ResumeSession on * if ssm:resourceTag/aws:ssmmessages:session-id",
        ),
        (
            json!({ "Action": "ssm:ResumeSession", "Resource": "*",
                "Condition": { "StringLike": { "ssm:resourceTag/aws:ssmmessages:session-id": ["${aws:userid}", "*"] } } }),
            "ssm:ResumeSession on * if ssm:resourceTag/aws:ssmmessages:session-id",
        ),
        (
            json!({ "Action": "ssm:Start*", "Resource": "*" }),
            "ssm:Start*: ssm:StartSession ssm:StartAutomationExecution",
        ),
        (json!({ "Action": "eks:Describe*", "Resource": "*" }), "eks:Describe*: "),
        (json!({ "Action": "ecs:ExecuteCommand", "Resource": "*" }), "ecs:ExecuteCommand: ecs:ExecuteCommand"),
        (
            json!({ "NotAction": ["iam:*", "ec2*", "ecs:*", "eks:*", "ssm:[A-R]*", "ssm:Start*", "ssm:Create*", "ssm:Update*", "ssm:R*"], "Resource": "*" }),
            "*: ssm:SendCommand ssm:TerminateSession",
        ),
        (
            json!({ "Action": "ssm:StartSession", "NotResource": "arn:aws:ec2:*:*:instance/i-2" }),
            "ssm:StartSession on *",
        ),
    ] {
        let mut statement = statement;
        statement["Effect"] = "Allow".into();
        assert_eq!(told(json!(statement)), [wanted], "{statement}");
    }
    let all: Vec<String> = POWERS.iter().map(|power| (*power).to_owned()).collect();
    let everything = json!({ "Effect": "Allow", "Action": "*", "Resource": "*" });
    assert_eq!(told(everything), [format!("*: {}", all.join(" "))]);
}

#[test]
fn what_is_denied_is_not_too_much() {
    let deny = |mut denial: Value| {
        denial["Effect"] = "Deny".into();
        told(json!([{ "Effect": "Allow", "Action": "ssm:*", "Resource": "*" }, denial]))
    };
    let is_allowed = |told: &[String], action: &str| told.iter().any(|line| line.contains(action));
    let commands = deny(json!({ "Action": "ssm:SendCommand", "Resource": "*" }));
    assert!(is_allowed(&commands, "ssm:StartSession") && !is_allowed(&commands, "SendCommand"), "{commands:?}");
    // In part, or under a condition, is not enough.
    let in_part = deny(json!({ "Action": "ssm:SendCommand", "Resource": INSTANCE }));
    assert!(is_allowed(&in_part, "SendCommand"), "{in_part:?}");
    let bounded =
        json!({ "Action": "ssm:*", "Resource": "*", "Condition": { "Null": { "aws:MultiFactorAuthAge": "true" } } });
    assert!(is_allowed(&deny(bounded), "SendCommand"));
    assert_eq!(deny(json!({ "Action": "ssm:*", "Resource": "*" })), [""; 0]);
    // What all others are denied is left alone.
    assert_eq!(deny(json!({ "NotAction": "eks:*", "Resource": "*" })), [""; 0]);
    let spared = deny(json!({ "NotAction": ["ssm:ResumeSession", "eks:*"], "Resource": "*" }));
    assert_eq!(spared, ["ssm:ResumeSession on * if ssm:resourceTag/aws:ssmmessages:session-id"]);
    let start = json!({ "Effect": "Allow", "Action": "ssm:StartSession", "Resource": "*",
        "Condition": { "BoolIfExists": { "ssm:SessionDocumentAccessCheck": "true" } } });
    let but = |spared: &[&str]| {
        told(json!([start, { "Effect": "Deny", "Action": "ssm:StartSession", "NotResource": spared }]))
    };
    assert_eq!(but(&[INSTANCE, FORWARDS]), [""; 0]);
    assert_eq!(but(&[INSTANCE, "arn:aws:ssm:*:*:document/*"]), ["ssm:StartSession on arn:aws:ssm:*:*:document/*"]);
}

#[test]
fn patterns_overlap() {
    for (one, other, is) in [
        ("", "", true),
        ("*", "", true),
        ("a*", "*b", true),
        ("a*", "b*", false),
        ("a?c", "ab*", true),
        ("a?c", "ac", false),
        ("arn:*:instance/*", "arn:aws:ec2:*:1:instance/i-1", true),
        ("ssm:start*", "ssm:send*", false),
    ] {
        assert_eq!((overlap(one, other), overlap(other, one)), (is, is), "{one} {other}");
    }
}
