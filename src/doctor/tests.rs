//! The examination as a library, against an emulated AWS.

#![cfg(feature = "demo")]

use tokio::{io::copy_bidirectional, net::TcpListener, sync::mpsc, task::JoinSet};

use super::*;
use crate::{
    aws::testing::aws_at,
    bastion::SshFiles,
    closed_port::ClosedPort,
    emulator::{ClusterConfig, Config, Destination, Emulator, Place as Address, SessionState, Settings},
    route::ssm::proto::CloseReason,
};

const SHORT: Limits = Limits {
    handshake: Duration::from_millis(300),
    reach: Duration::from_millis(300),
    request: Duration::from_secs(10),
    approval: Duration::from_secs(1),
};

async fn emulator() -> Emulator {
    Emulator::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await.unwrap()
}

async fn subject(emulator: &Emulator, ports: BTreeMap<String, u16>) -> Subject {
    let keys: Vec<String> = emulator.static_environment().into_iter().map(|(_, value)| value).collect();
    Subject {
        aws: Ok(aws_at(emulator.endpoint(), keys.try_into().unwrap()).await),
        bastions: vec!["i-0dc03fbcae2a87472".parse().unwrap()],
        clusters: Wanted::All,
        imported: Vec::new(),
        hosts: Vec::new(),
        tasks_of: None,
        document: None,
        approvals: None,
        ssh: SshFiles::default(),
        ports,
    }
}

fn assert_send<T: Send>(value: T) -> T {
    value
}

async fn findings(subject: &Subject, limits: Limits) -> Vec<Finding> {
    let mut findings = Vec::new();
    let stop = CancellationToken::new();
    let examination = examine(subject, limits, &stop, |finding| findings.push(finding));
    // A manager examines in a task.
    timeout(Duration::from_secs(60), assert_send(Box::pin(examination))).await.expect("it ends");
    findings
}

/// What came of one check.
fn outcome(findings: &[Finding], check: Check) -> &Outcome {
    &findings.iter().find(|finding| finding.check == check).unwrap_or_else(|| panic!("{check:?}")).outcome
}

fn failed(findings: &[Finding]) -> Vec<Check> {
    let failed = findings.iter().filter(|finding| matches!(finding.outcome, Outcome::Failed(_)));
    failed.map(|finding| finding.check).collect()
}

/// The emulated service answers a call before it has ended the session.
async fn assert_nothing_left(emulator: &Emulator) {
    let all_ended =
        |emulator: &Emulator| emulator.sessions().iter().all(|session| session.state == SessionState::Ended);
    timeout(Duration::from_secs(60), emulator.wait_until(all_ended)).await.expect("the sessions end");
    assert_eq!(emulator.violations(), Vec::<String>::new());
}

/// A local port that leads somewhere, as a manager's tunnel does.
async fn forward(tasks: &mut JoinSet<()>, address: Address) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = address.connect().await.unwrap();
            let _ended = copy_bidirectional(&mut near, &mut far).await;
        }
    });
    port
}

#[tokio::test]
async fn a_managers_tunnel_is_asked_as_well() {
    let emulator = emulator().await;
    let mut tasks = JoinSet::new();
    let with = |port| BTreeMap::from([("payments".to_owned(), port)]);
    let good = forward(&mut tasks, emulator.api_servers()[0].place.clone()).await;
    let found = findings(&subject(&emulator, with(good)).await, Limits::default()).await;
    assert_eq!(failed(&found), []);
    let Outcome::Passed(Fact::LocalPort { port, status: 200 }) = outcome(&found, Check::LocalPort) else {
        panic!("{found:#?}")
    };
    assert_eq!(*port, good);
    let checks: Vec<Check> = found.iter().map(|finding| finding.check).collect();
    assert_eq!(checks, Check::ALL, "there is one finding for each check, in their order");

    let gateway = forward(&mut tasks, emulator.gateway()).await;
    let closed = ClosedPort::new();
    let elsewhere = findings(&subject(&emulator, with(gateway)).await, Limits::default()).await;
    let nowhere = findings(&subject(&emulator, with(closed.port())).await, Limits::default()).await;
    // The tunnel is broken, and all that it rests on is not.
    assert_eq!((failed(&elsewhere), failed(&nowhere)), (vec![Check::LocalPort], vec![Check::LocalPort]));
    let Outcome::Failed(Trouble::Fault(SessionFault::Probe(ProbeError::Tls { .. } | ProbeError::Ended))) =
        outcome(&elsewhere, Check::LocalPort)
    else {
        panic!("{elsewhere:#?}")
    };
    assert!(matches!(outcome(&nowhere, Check::LocalPort), Outcome::Failed(Trouble::Port(_))), "{nowhere:#?}");

    // The token is part of the question: whoever is unknown is told so here, too.
    emulator.update(|settings| settings.no_access_entry = true);
    let unknown = findings(&subject(&emulator, with(good)).await, Limits::default()).await;
    let Outcome::Passed(Fact::LocalPort { status: 401, .. }) = outcome(&unknown, Check::LocalPort) else {
        panic!("{unknown:#?}")
    };
    assert_nothing_left(&emulator).await;
}

#[tokio::test]
async fn what_never_comes_is_found_in_time() {
    let emulator = emulator().await;
    let everywhere =
        |destination| move |settings: &mut Settings| settings.destinations.extend([("*".to_owned(), destination)]);
    emulator.update(everywhere(Destination::BlackHole));
    let found = findings(&subject(&emulator, BTreeMap::new()).await, SHORT).await;
    assert_eq!(failed(&found), [Check::Endpoint], "{found:#?}");
    let silent = Outcome::Failed(Trouble::Fault(SessionFault::Probe(ProbeError::NoAnswer { seconds: 0 })));
    assert_eq!(format!("{:?}", outcome(&found, Check::Endpoint)), format!("{silent:?}"));
    // The agent is heard through the new WebSocket although the destination is not.
    assert!(matches!(outcome(&found, Check::ResumeSession), Outcome::Passed(Fact::Resumed)), "{found:#?}");

    emulator.update(everywhere(Destination::Refused));
    let found = findings(&subject(&emulator, BTreeMap::new()).await, Limits::default()).await;
    assert_eq!(failed(&found), [Check::Endpoint]);
    let Outcome::Failed(Trouble::Fault(SessionFault::Probe(ProbeError::Refused))) = outcome(&found, Check::Endpoint)
    else {
        panic!("{found:#?}")
    };

    emulator.update(everywhere(Destination::Reachable));
    emulator.update(|settings| settings.agent.handshake_delay = Duration::from_secs(3600));
    let found = findings(&subject(&emulator, BTreeMap::new()).await, SHORT).await;
    assert_eq!(failed(&found), [Check::Handshake]);
    let Outcome::Failed(Trouble::Fault(SessionFault::Closed(CloseReason::HandshakeTimeout {
        requested: false, ..
    }))) = outcome(&found, Check::Handshake)
    else {
        panic!("{found:#?}")
    };
    assert!(matches!(outcome(&found, Check::TerminateSession), Outcome::Passed(_)), "{found:#?}");
    assert_nothing_left(&emulator).await;
}

#[tokio::test]
async fn a_bastion_whose_agent_is_silent_gives_way_to_the_next() {
    let silent = "i-0fedcba9876543210";
    let config = Config {
        clusters: vec![ClusterConfig::new("payments")],
        bastions: [silent, "i-0dc03fbcae2a87472"].map(crate::emulator::BastionConfig::new).into(),
        ..Config::default()
    };
    let emulator = Emulator::start(config).await.unwrap();
    emulator.update(|settings| settings.agent.handshake_delay = Duration::from_secs(3600));
    let mut subject = subject(&emulator, BTreeMap::new()).await;
    subject.bastions.insert(0, silent.parse().unwrap());
    let stop = CancellationToken::new();
    let mut found = Vec::new();
    let report = |finding: Finding| {
        if finding.check == Check::Handshake {
            emulator.update(|settings| settings.agent.handshake_delay = Duration::ZERO);
        }
        found.push(finding);
    };
    Box::pin(examine(&subject, Limits { handshake: Duration::from_secs(2), ..Limits::default() }, &stop, report)).await;
    let handshakes: Vec<_> = found
        .iter()
        .filter(|finding| finding.check == Check::Handshake)
        .map(|finding| {
            (finding.place.target.clone().unwrap().to_string(), matches!(finding.outcome, Outcome::Passed(_)))
        })
        .collect();
    assert_eq!(handshakes, [(silent.to_owned(), false), ("i-0dc03fbcae2a87472".to_owned(), true)]);
    assert_eq!(failed(&found), [Check::Handshake], "{found:#?}");
    assert_eq!(emulator.sessions().len(), 2, "one on each");
    assert_nothing_left(&emulator).await;
}

#[tokio::test]
async fn a_stop_ends_the_session_and_says_no_more() {
    let emulator = emulator().await;
    emulator.update(|settings| settings.destinations.extend([("*".to_owned(), Destination::BlackHole)]));
    let subject = subject(&emulator, BTreeMap::new()).await;
    let stop = CancellationToken::new();
    let (sender, mut found) = mpsc::unbounded_channel();
    let examination = Box::pin(examine(&subject, Limits::default(), &stop, move |finding| {
        let _outcome = sender.send(finding);
    }));
    let when_established = async {
        while let Some(finding) = found.recv().await {
            if finding.check == Check::Handshake {
                stop.cancel();
            }
            assert!(finding.check <= Check::Handshake, "{finding:?}");
        }
    };
    let both = async { tokio::join!(examination, when_established) };
    timeout(Duration::from_secs(30), both).await.expect("it ends");
    assert_eq!(emulator.sessions().len(), 1);
    assert_nothing_left(&emulator).await;
}

#[tokio::test]
async fn nothing_is_tried_without_clients() {
    let subject = Subject {
        aws: Err(AwsError::NoRegion),
        bastions: Vec::new(),
        clusters: Wanted::All,
        imported: Vec::new(),
        hosts: Vec::new(),
        tasks_of: None,
        document: None,
        approvals: None,
        ssh: SshFiles::default(),
        ports: BTreeMap::from([("payments".to_owned(), 1)]),
    };
    let found = findings(&subject, Limits::default()).await;
    assert_eq!(failed(&found), [Check::Region]);
    let needs_region = |finding: &Finding| matches!(finding.outcome, Outcome::Skipped(Reason::Needs(Check::Region)));
    assert!(found[1..].iter().all(needs_region), "{found:#?}");
    assert_eq!(found.len(), Check::ALL.len() - 1, "all but that of a tunnel, which there may not be");
}

#[test]
fn checks_have_names_of_their_own() {
    let ids: std::collections::BTreeSet<&str> = Check::ALL.iter().map(|check| check.id()).collect();
    assert_eq!(ids.len(), Check::ALL.len());
    assert!(Check::ALL.is_sorted());
}
