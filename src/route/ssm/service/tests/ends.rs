//! How sessions end, who starts how many, and what is written down and logged of them.

use super::*;

#[tokio::test]
async fn ending_what_has_ended_is_no_error() {
    let fake = Fake::start(|_| Answer::json_error(400, "DoesNotExistException", "no such session")).await;
    in_time(Service::new(aws(&fake).await, None).terminate(&session(""))).await.unwrap();
}

#[tokio::test]
async fn says_that_the_gateway_cannot_be_reached() {
    let closed = ClosedPort::new();
    let fake = manager(format!("ws://{}/s", closed.address())).await;
    let error = start(&Service::new(aws(&fake).await, None)).await.unwrap_err();
    assert!(matches!(&error, DialError::Unreachable { host, .. } if host == "127.0.0.1"), "{error:?}");
    assert!(sentence(&error).contains("Connection refused"));
}

#[tokio::test]
async fn a_caller_that_leaves_leaves_no_session() {
    let gate = Arc::new(Semaphore::new(0));
    let mut gateway = Gateway::start([Step::Hold(Arc::clone(&gate))]).await;
    let fake = manager(gateway.url("s")).await;
    let aws = aws(&fake).await;
    let dialer = Service::new(aws.clone(), None);
    let (target, destination) = (target(), destination());
    let start = dialer.start(&target, &destination, None);
    tokio::select! {
        biased;
        _ = start => panic!("started"),
        _head = gateway.head() => {}
    }
    gate.add_permits(1);
    in_time(aws.settle()).await;
    assert_eq!(fake.operations(), ["StartSession", "TerminateSession"]);
}

#[tokio::test]
async fn few_sessions_are_started_at_a_time() {
    let gateway = Gateway::start([]).await;
    let url = gateway.url("s");
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let fake = Fake::start(move |_| started(&url, "T").held_by(&held)).await;
    let aws = aws(&fake).await;
    let service = Service::new(aws.clone(), None);
    let all = futures_util::future::join_all((0..9).map(|_| start(&service)));
    let release = async {
        fake.until_pending(4).await;
        gate.add_permits(9);
    };
    let (sessions, ()) = tokio::join!(all, release);
    assert!(sessions.iter().all(Result::is_ok));
    assert_eq!((fake.most_pending(), fake.requests().len()), (4, 9));
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn warns_once_and_logs_no_secrets() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let refuse = Step::Refuse("403 Forbidden");
    let gateway = Gateway::start([refuse.clone(), Step::Accept, refuse, Step::Accept]).await;
    let fake = manager(gateway.url("s")).await;
    let aws = aws(&fake).await;
    let service = Service::new(aws.clone(), None);
    for _ in 0..2 {
        let (handle, transport) = start(&service).await.unwrap();
        assert!(!format!("{transport:?}").contains("T-1"));
        assert_eq!(handle.id.0, "me-0123");
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let own: Vec<_> = log.lines().filter(|line| line.contains(" autoheal_pa::")).collect();
    assert_eq!(own.iter().filter(|line| line.contains("WARN")).count(), 1);
    let warning = own.iter().find(|line| line.contains("WARN")).unwrap();
    assert!(warning.contains("the message gateway refused a signed WebSocket"), "{warning}");
    for line in own {
        for secret in ["T-1", "data-channel", "cell-number", "AWS4-HMAC", "session\""] {
            assert!(!line.contains(secret), "{line}");
        }
    }
}

fn caller() -> Caller {
    Caller {
        account: "123456789012".into(),
        arn: "arn:aws:iam::123456789012:user/ann".into(),
        user_id: "AIDAEXAMPLE".into(),
        source: String::new(),
        expires: None,
    }
}

/// The sessions that a journal would leave to the next manager.
fn left(dir: &std::path::Path) -> Vec<String> {
    // Opening it would write it anew.
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(dir.join("sessions"), copy.path().join("sessions")).unwrap();
    let (_, left) = Journal::open(&Folder::open(copy.path()).unwrap()).unwrap();
    left.into_iter().map(|entry| entry.session).collect()
}

#[tokio::test]
async fn a_session_is_in_the_journal_from_before_it_is_dialled_until_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(&Folder::open(dir.path()).unwrap()).unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let hold = || Step::Hold(Arc::clone(&gate));
    let mut gateway = Gateway::start([hold(), hold(), Step::Refuse("500 Oh")]).await;
    let fake = manager(gateway.url("s")).await;
    let aws = aws(&fake).await;
    let dialer = Service::with_journal(aws.clone(), None, journal, &caller());
    let (target, destination) = (target(), destination());
    let begin = dialer.start(&target, &destination, None);
    let look = async {
        gateway.head().await;
        assert_eq!(left(dir.path()), ["me-0123"], "it is being dialled");
        gate.add_permits(1);
    };
    let (session, ()) = in_time(async { tokio::join!(begin, look) }).await;
    let (session, _transport) = session.unwrap();
    assert_eq!(left(dir.path()), ["me-0123"]);
    in_time(dialer.terminate(&session)).await.unwrap();
    assert_eq!(left(dir.path()), [""; 0]);

    // The service has said so through the transport.
    gate.add_permits(1);
    let (session, _transport) = in_time(dialer.start(&target, &destination, None)).await.unwrap();
    assert_eq!(left(dir.path()), ["me-0123"]);
    dialer.ended(&session);
    in_time(aws.settle()).await;
    assert_eq!(left(dir.path()), [""; 0]);

    // It was started, could not be dialled, and was ended again.
    assert!(in_time(dialer.start(&target, &destination, None)).await.is_err());
    in_time(aws.settle()).await;
    assert_eq!(fake.operations().last().unwrap(), "TerminateSession");
    assert_eq!(left(dir.path()), [""; 0]);
}

#[tokio::test]
async fn the_journal_keeps_what_could_not_be_ended() {
    for (resumed, ended, expected) in [
        (
            Answer::json_error(400, "AccessDeniedException", "no"),
            Answer::json_error(400, "AccessDeniedException", "no"),
            1,
        ),
        (
            Answer::json_error(400, "ThrottlingException", "no"),
            Answer::json_error(400, "DoesNotExistException", "no"),
            0,
        ),
        (
            Answer::json_error(400, "DoesNotExistException", "no"),
            Answer::json_error(500, "InternalServerError", "no"),
            0,
        ),
        (Answer::json(200, r#"{"SessionId":"me-0123"}"#), Answer::json_error(500, "InternalServerError", "no"), 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(&Folder::open(dir.path()).unwrap()).unwrap();
        let gateway = Gateway::start([]).await;
        let url = gateway.url("s");
        let fake = Fake::start(move |request: &Request| match request.operation() {
            "StartSession" => started(&url, "T-1"),
            "ResumeSession" => resumed.clone(),
            _ => ended.clone(),
        })
        .await;
        let dialer = Service::with_journal(aws(&fake).await, None, journal, &caller());
        let (session, _transport) = in_time(dialer.start(&target(), &destination(), None)).await.unwrap();
        assert!(in_time(dialer.resume(&session)).await.is_err());
        let _outcome = in_time(dialer.terminate(&session)).await;
        assert_eq!(left(dir.path()).len(), expected);
    }
}

#[tokio::test]
async fn asks_what_a_denial_is_about() {
    let denied = || Answer::json_error(400, "AccessDeniedException", "no");
    let there = r#"{"Sessions":[{"SessionId":"me-0123","Status":"Disconnected"}]}"#;
    for (listed, is_active, is_ended) in [
        (Answer::json(200, there), Some(true), false),
        (Answer::json(200, r#"{"Sessions":[]}"#), Some(false), true),
        (denied(), None, false),
        (Answer::json_error(500, "InternalServerError", "no"), None, false),
    ] {
        let fake = Fake::start(move |request: &Request| match request.operation() {
            "DescribeSessions" => listed.clone(),
            _ => denied(),
        })
        .await;
        let aws = aws(&fake).await;
        assert_eq!(in_time(super::is_active(&aws, "me-0123", "us-east-1")).await, is_active);
        let request = fake.requests().into_iter().find(|request| request.operation() == "DescribeSessions").unwrap();
        let asked: serde_json::Value = serde_json::from_str(&request.body).unwrap();
        let filter = serde_json::json!([{"key": "SessionId", "value": "me-0123"}]);
        assert_eq!((&asked["State"], &asked["Filters"]), (&"Active".into(), &filter));
        assert_eq!(in_time(end_session(&aws, "me-0123", "us-east-1")).await.is_ok(), is_ended);
    }
}

#[tokio::test]
async fn ends_sessions_of_other_regions() {
    let fake = Fake::start(|_| Answer::json(200, "{}")).await;
    let aws = aws(&fake).await;
    for region in ["us-east-1", "eu-west-1"] {
        in_time(end_session(&aws, "me-0123", region)).await.unwrap();
        let request = fake.requests().pop().unwrap();
        assert!(request.header("authorization").unwrap().contains(&format!("/{region}/ssm/aws4_request")));
    }
}
