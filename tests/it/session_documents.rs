//! `--document`: session documents in which host and port are fixed.

use autoheal_pa::emulator::{ClusterConfig, Config, SessionInfo};
use serde_json::Value;

use super::support::{Lab, Running, has_ended};

const BASTION: &str = "i-0dc03fbcae2a87472";
const OF_AWS: &str = "AWS-StartPortForwardingSessionToRemoteHost";

/// Two clusters, with a document for each as `policy` has them made, and the one of AWS denied.
async fn lab() -> Lab {
    let clusters = ["payments", "search"].map(ClusterConfig::new).to_vec();
    let lab = Lab::start(Config { clusters, ..Config::default() }).await;
    let ended = lab.run(&["policy", "--bastion", BASTION, "--document", "pa-{cluster}"]).await;
    let policy: Value = serde_json::from_str(ended.assert_success()).unwrap();
    let start =
        policy["Statement"].as_array().unwrap().iter().find(|statement| statement["Action"][0] == "ssm:StartSession");
    assert_eq!(start.unwrap()["Resource"][1], "arn:aws:ssm:us-east-1:123456789012:document/pa-*");
    let mut documents = Vec::new();
    for line in ended.stderr.lines().filter(|line| line.contains("aws ssm create-document")) {
        let word = |name: &str| line.split_once(&format!("{name} ")).unwrap().1;
        let name = word("--name").split(' ').next().unwrap().to_owned();
        let content = word("--content").split('\'').nth(1).unwrap();
        let content: Value = serde_json::from_str(content).unwrap();
        let properties = &content["properties"];
        assert_eq!(content["sessionType"], "Port");
        let port = properties["portNumber"].as_str().unwrap().parse().unwrap();
        documents.push((name, (properties["host"].as_str().unwrap().to_owned(), port)));
    }
    assert_eq!(documents.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["pa-payments", "pa-search"]);
    lab.emulator.update(|settings| {
        settings.session_documents.extend(documents);
        settings.denied_documents.insert(OF_AWS.to_owned());
    });
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cluster_is_reached_by_the_document_that_leads_to_it() {
    let lab = lab().await;
    let up = lab.up(&["--document", "pa-{cluster}"]).await;
    let mut documents: Vec<_> = lab.emulator.sessions().into_iter().map(|session| session.document).collect();
    documents.sort();
    assert_eq!(documents, ["pa-payments", "pa-search"]);
    let doctor = lab.run(&["doctor"]).await;
    doctor.assert_success();
    up.stop().await.assert_success();
    // And without a manager.
    lab.run(&["doctor", "--bastion", BASTION, "--document", "pa-{cluster}"]).await.assert_success();
    lab.wait_until("the sessions to end", |emulator| emulator.sessions().iter().all(has_ended)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_another_document() {
    let lab = lab().await;
    lab.emulator.update(|settings| {
        let payments = settings.session_documents["pa-payments"].clone();
        settings.session_documents.insert("new-payments".to_owned(), payments);
    });
    let file = lab.path("config.yaml");
    let write = |document: &str, more: &str| {
        let text = format!("bastion: {BASTION}\nbase_port: 0\nclusters: [payments]\ndocument: '{document}'\n{more}");
        std::fs::write(&file, text).unwrap();
    };
    write("pa-{cluster}", "");
    let mut up = Running::start(&mut lab.program(&["up", "--config", file.to_str().unwrap()]));
    up.ready().await;
    write("new-{cluster}", "audit: audit.jsonl\n");
    lab.run(&["reload"]).await.assert_success();
    let is_new = |session: &SessionInfo| !has_ended(session) && session.document == "new-payments";
    lab.wait_until("a session with the new document", |emulator| emulator.sessions().iter().any(is_new)).await;
    assert!(up.says("changes of `--audit` count from the next start on").await);
    up.stop().await.assert_success();
    assert!(!lab.path("audit.jsonl").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_is_told_with_the_document() {
    let lab = lab().await;
    let denied = lab.run(&["up", "--base-port", "0", "--timeout", "20s"]).await;
    assert_eq!(denied.code(), Some(3), "{denied:#?}");
    let missing = lab.run(&["up", "--base-port", "0", "--timeout", "20s", "--document", "other-{cluster}"]).await;
    assert!(missing.stderr.contains("the session document `other-payments` was refused"), "{missing:#?}");
    assert!(missing.stderr.contains("aws ssm describe-document --name other-payments"), "{missing:#?}");
    let one = lab.run(&["up", "--base-port", "0", "--document", "payments-only"]).await;
    assert_eq!(one.code(), Some(2));
    assert!(one.stderr.contains("`payments-only` leads to one host, and there are 2 to reach"), "{}", one.stderr);
    let both = ["up", "--cluster", "payments", "--cluster", "search", "--document", "payments-only"];
    let both = lab.run(&both).await;
    assert_eq!(both.code(), Some(2));
    assert!(both.stderr.contains("is not of use to several hosts"), "{}", both.stderr);
    let elsewhere = lab.run(&["up", "--bastion", "direct", "--document", "pa-{cluster}"]).await;
    assert_eq!(elsewhere.code(), Some(2));
    assert!(elsewhere.stderr.contains("is not of use without a bastion of Systems Manager"), "{}", elsewhere.stderr);
    // A document that leads elsewhere is found out by the certificate.
    lab.emulator.update(|settings| {
        let search = settings.session_documents["pa-search"].clone();
        settings.session_documents.insert("pa-payments".to_owned(), search);
    });
    let wrong = ["up", "--base-port", "0", "--timeout", "20s", "--cluster", "payments", "--document", "pa-{cluster}"];
    let wrong = lab.run(&wrong).await;
    assert!(!wrong.status.success() && wrong.stderr.contains("certificate"), "{wrong:#?}");
}
