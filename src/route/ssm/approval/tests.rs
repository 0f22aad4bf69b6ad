//! Requests against a fake Systems Manager: how many are made, by whom, and what everybody hears of them.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::*;
use crate::aws::testing::{Answer as Response, Fake, aws, in_time};

const NODE: &str = "i-0dc03fbcae2a87472";
const ID: &str = "oi-0123456789ab";

fn approved() -> Response {
    let keys = json!({
        "AccessKeyId": "ASIAEXAMPLEEXAMPLE00", "SecretAccessKey": "secret", "SessionToken": "token",
        "ExpirationTime": 4_000_000_000_u64,
    });
    Response::json(200, &json!({ "AccessRequestStatus": "Approved", "Credentials": keys }).to_string())
}

fn made() -> Response {
    Response::json(200, &json!({ "AccessRequestId": ID }).to_string())
}

fn node() -> Target {
    NODE.parse().unwrap()
}

fn operations(fake: &Fake) -> Vec<String> {
    fake.requests().iter().map(|request| request.operation().to_owned()).collect()
}

#[tokio::test]
async fn one_request_is_made_for_everybody() {
    let fake =
        Fake::start(|request| if request.operation() == "StartAccessRequest" { made() } else { approved() }).await;
    let approvals = Approvals::new(aws(&fake).await, "why");
    let target = node();
    let all = (0..20).map(|_| approvals.ask(&target, &|_| ()));
    in_time(futures_util::future::join_all(all)).await.into_iter().for_each(|outcome| outcome.unwrap());
    assert_eq!(operations(&fake), ["StartAccessRequest", "GetAccessToken"]);
    let body: Value = serde_json::from_str(&fake.requests()[0].body).unwrap();
    assert_eq!(body, json!({ "Reason": "why", "Targets": [{ "Key": "InstanceIds", "Values": [NODE] }] }));
    let keys = approvals.keys(&target).unwrap();
    assert_eq!((keys.access_key_id(), keys.session_token()), ("ASIAEXAMPLEEXAMPLE00", Some("token")));
    assert!(approvals.keys(&"i-00000001".parse().unwrap()).is_none(), "they are for that node alone");
    let approval = &approvals.approvals()[0];
    assert_eq!((approval.stage, approval.request.as_deref()), (Stage::Approved, Some(ID)));
    assert!(!format!("{approvals:?}{approval:?}").contains("secret"));
}

#[tokio::test]
async fn a_request_is_not_lost_with_whoever_made_it() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let fake = Fake::start(move |request| match request.operation() {
        "StartAccessRequest" => made().held_by(&held),
        _ => approved(),
    })
    .await;
    let approvals = Approvals::new(aws(&fake).await, "why");
    let target = node();
    {
        let mut asking = pin!(approvals.ask(&target, &|_| ()));
        while fake.requests().is_empty() {
            let _not_yet = timeout(Duration::from_millis(10), asking.as_mut()).await.unwrap_err();
        }
    }
    gate.add_permits(1);
    in_time(approvals.ask(&target, &|_| ())).await.unwrap();
    assert_eq!(operations(&fake), ["StartAccessRequest", "GetAccessToken"]);
}

#[tokio::test]
async fn whoever_waits_is_told_what_for() {
    let is_approved = Arc::new(AtomicBool::new(false));
    let decision = Arc::clone(&is_approved);
    let fake = Fake::start(move |request| match request.operation() {
        "StartAccessRequest" => made(),
        _ if decision.load(Ordering::Relaxed) => approved(),
        _ => Response::json(200, r#"{"AccessRequestStatus":"Pending"}"#),
    })
    .await;
    let approvals = Approvals::new(aws(&fake).await, "why");
    let target = node();
    let told: Mutex<Vec<String>> = Mutex::default();
    let tell = |report| {
        if let Report::Asked(text) | Report::Notice(text) = report {
            told.lock().unwrap().push(text);
        }
    };
    let decide = async {
        while told.lock().unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        is_approved.store(true, Ordering::Relaxed);
    };
    let both = async { tokio::join!(approvals.ask(&target, &tell), approvals.ask(&target, &tell), decide) };
    let (first, second, ()) = Box::pin(in_time(both)).await;
    first.and(second).unwrap();
    let told = told.into_inner().unwrap();
    let waits = format!("access request `{ID}` for `{NODE}` waits for approval: ");
    assert!(told[0].starts_with(&waits) && told[1].starts_with(&waits), "{told:?}");
    assert!(told.last().unwrap().contains("is approved, until 2096-"), "{told:?}");
    assert_eq!(operations(&fake).iter().filter(|operation| *operation == "StartAccessRequest").count(), 1);
}

#[tokio::test]
async fn what_cannot_be_asked_is_the_same_for_everybody() {
    for (code, class) in [
        ("AccessDeniedException", Class::Denied),
        ("ServiceQuotaExceededException", Class::Refused),
        ("ResourceNotFoundException", Class::Refused),
        ("ValidationException", Class::Refused),
        ("ThrottlingException", Class::Throttled),
        ("InternalServerError", Class::Transient),
    ] {
        let fake = Fake::start(move |_| Response::json_error(400, code, "no")).await;
        let approvals = Approvals::new(aws(&fake).await, "why");
        let target = node();
        for _ in 0..3 {
            let error = in_time(approvals.ask(&target, &|_| ())).await.unwrap_err();
            assert_eq!(SessionFault::Start(error).class(), class, "{code}");
        }
        assert_eq!(operations(&fake), ["StartAccessRequest"], "{code}: another attempt would be another request");
    }
    let fake = Fake::start(|_| made()).await;
    let container = "ecs:tools_0123_4567".parse().unwrap();
    let approvals = Approvals::new(aws(&fake).await, "why");
    let error = in_time(approvals.ask(&container, &|_| ())).await.unwrap_err();
    assert!(matches!(error, DialError::Unapproved(Unapproved::NoNode { .. })), "{error}");
    assert!(fake.requests().is_empty());
}

#[tokio::test]
async fn a_denial_is_judged_by_what_has_become_of_the_request() {
    let status = Arc::new(Mutex::new("Approved"));
    let now = Arc::clone(&status);
    let fake = Fake::start(move |request| match (request.operation(), *now.lock().unwrap()) {
        ("StartAccessRequest", _) => made(),
        (_, "Approved") => approved(),
        (_, status) => Response::json(200, &json!({ "AccessRequestStatus": status }).to_string()),
    })
    .await;
    for (decision, said) in [
        (
            "Approved",
            "the approval of access request `oi-0123456789ab` does not allow `ssm:StartSession` on `the document`",
        ),
        ("Revoked", "access request `oi-0123456789ab` for `i-0dc03fbcae2a87472` has been revoked"),
        ("Expired", "the approval of access to `i-0dc03fbcae2a87472` is over"),
    ] {
        *status.lock().unwrap() = "Approved";
        let approvals = Approvals::new(aws(&fake).await, "why");
        let target = node();
        in_time(approvals.ask(&target, &|_| ())).await.unwrap();
        *status.lock().unwrap() = decision;
        let source = crate::aws::error::ServiceAnswer { code: None, message: None, status: None, request_id: None };
        let (action, resource) = (START_SESSION.to_owned(), "the document".to_owned());
        let denied = AwsError::AccessDenied { action, resource, source: Arc::new(source) };
        let error = in_time(approvals.judge(START_SESSION, &target, denied)).await;
        assert_eq!(error.to_string(), said);
        assert_eq!(approvals.keys(&target).is_some(), decision == "Approved");
    }
}
