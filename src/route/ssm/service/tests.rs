//! Sessions against a fake Systems Manager and a gateway of raw bytes.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

mod ends;

use super::*;
use crate::{
    aws::{
        Caller,
        testing::{Answer, Fake, Request, aws, in_time},
    },
    closed_port::ClosedPort,
    route::ssm::proto::handshake::CLIENT_VERSION,
    util::folder::Folder,
};

const QUERY: &str = "role=publish_subscribe&cell-number=AAEAAb+c/d==";

/// What the gateway does with the next connection.
#[derive(Clone)]
enum Step {
    Refuse(&'static str),
    Accept,
    /// Accepts when the gate has a permit.
    Hold(Arc<Semaphore>),
    /// Closes the connection.
    Close,
}

/// What the gateway has seen of a connection.
#[derive(Debug)]
enum Seen {
    Head(String),
    Opening(serde_json::Value),
}

struct Gateway {
    port: u16,
    seen: mpsc::UnboundedReceiver<Seen>,
    /// How many connections there have been.
    connections: watch::Receiver<usize>,
    _tasks: JoinSet<()>,
}

impl Gateway {
    async fn start(steps: impl IntoIterator<Item = Step>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (report, seen) = mpsc::unbounded_channel();
        let (count, connections) = watch::channel(0);
        let mut steps: VecDeque<_> = steps.into_iter().collect();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, steps.pop_front().unwrap_or(Step::Accept), report.clone()));
                count.send_modify(|count| *count += 1);
            }
        });
        Self { port, seen, connections, _tasks: tasks }
    }

    fn url(&self, session: &str) -> String {
        format!("ws://127.0.0.1:{}/v1/data-channel/{session}?{QUERY}", self.port)
    }

    /// Opens the gate when there have been so many connections.
    fn opens(&self, gate: &Arc<Semaphore>, count: usize) -> impl Future<Output = ()> + use<> {
        let (mut connections, gate) = (self.connections.clone(), Arc::clone(gate));
        async move {
            in_time(connections.wait_for(|connections| *connections == count)).await.unwrap();
            gate.add_permits(1);
        }
    }

    async fn head(&mut self) -> String {
        match in_time(self.seen.recv()).await.unwrap() {
            Seen::Head(head) => head,
            Seen::Opening(frame) => panic!("unexpected {frame}"),
        }
    }

    async fn opening(&mut self) -> serde_json::Value {
        match in_time(self.seen.recv()).await.unwrap() {
            Seen::Opening(frame) => frame,
            Seen::Head(head) => panic!("unexpected {head}"),
        }
    }
}

async fn serve(mut stream: TcpStream, step: Step, report: mpsc::UnboundedSender<Seen>) {
    if matches!(step, Step::Close) {
        return;
    }
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let key = header(&head, "sec-websocket-key").unwrap().to_owned();
    report.send(Seen::Head(head)).unwrap();
    match step {
        Step::Refuse(status) => {
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 9\r\n\r\nforbidden");
            stream.write_all(answer.as_bytes()).await.unwrap();
            return;
        }
        Step::Accept | Step::Close => {}
        Step::Hold(gate) => gate.acquire().await.unwrap().forget(),
    }
    let accept = derive_accept_key(key.as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
    let mut websocket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    if let Some(Ok(Message::Text(text))) = websocket.next().await {
        report.send(Seen::Opening(serde_json::from_str(&text).unwrap())).unwrap();
        while websocket.next().await.is_some_and(|message| message.is_ok()) {}
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|line| line.0.eq_ignore_ascii_case(name)).map(|line| line.1)
}

fn target() -> Target {
    "i-0dc03fbcae2a87472".parse().unwrap()
}

fn destination() -> Destination {
    Destination { host: "abc.eks.amazonaws.com".into(), port: 443 }
}

fn session(gateway_url: &str) -> SessionHandle {
    SessionHandle {
        id: SessionId("me-0123".into()),
        target: target(),
        client_id: Uuid::from_u128(7),
        stream_url: gateway_url.to_owned(),
    }
}

fn started(url: &str, token: &str) -> Answer {
    Answer::json(200, &serde_json::json!({ "SessionId": "me-0123", "TokenValue": token, "StreamUrl": url }).to_string())
}

/// A Systems Manager whose sessions are at `url`.
async fn manager(url: String) -> Fake {
    Fake::start(move |request: &Request| match request.operation() {
        "StartSession" => started(&url, "T-1"),
        "ResumeSession" => started("", "T-2"),
        _ => Answer::json(200, r#"{"SessionId":"me-0123"}"#),
    })
    .await
}

async fn start(service: &Service) -> Result<(SessionHandle, Transport), DialError> {
    in_time(service.start(&target(), &destination(), None)).await
}

async fn start_error(answer: Answer) -> DialError {
    let fake = Fake::start(move |_| answer.clone()).await;
    start(&Service::new(aws(&fake).await, None)).await.unwrap_err()
}

async fn resume_outcome(answer: Answer) -> Result<Transport, DialError> {
    let fake = Fake::start(move |_| answer.clone()).await;
    let handle = session("wss://elsewhere.example/");
    in_time(Service::new(aws(&fake).await, None).resume(&handle)).await
}

#[tokio::test]
async fn starts_and_resumes_a_session() {
    let mut gateway = Gateway::start([]).await;
    let fake = manager(gateway.url("me-0123")).await;
    let aws = aws(&fake).await;
    let service = Service::new(aws.clone(), Some(" audit:\n#42 "));
    let (handle, _transport) = start(&service).await.unwrap();
    assert_eq!((handle.id.0.as_str(), handle.target.clone()), ("me-0123", target()));

    let request: serde_json::Value = serde_json::from_str(&fake.requests()[0].body).unwrap();
    assert_eq!(
        request,
        serde_json::json!({
            "Target": "i-0dc03fbcae2a87472",
            "DocumentName": "AWS-StartPortForwardingSessionToRemoteHost",
            "Reason": "audit: #42",
            "Parameters": { "host": ["abc.eks.amazonaws.com"], "portNumber": ["443"], "localPortNumber": ["0"] },
        })
    );
    let head = gateway.head().await;
    // Byte for byte as it was given.
    assert_eq!(head.lines().next(), Some(&*format!("GET /v1/data-channel/me-0123?{QUERY} HTTP/1.1")));
    assert_eq!(header(&head, "host"), Some(&*format!("127.0.0.1:{}", gateway.port)));
    assert_eq!(header(&head, "x-amz-security-token"), Some("session"));
    assert!(header(&head, "x-amz-date").is_some());
    let authorization = header(&head, "authorization").unwrap();
    assert!(
        authorization
            .contains("/us-east-1/ssmmessages/aws4_request, SignedHeaders=host;x-amz-date;x-amz-security-token, ")
    );
    for absent in ["origin", "sec-websocket-protocol", "sec-websocket-extensions", "x-amz-content-sha256"] {
        assert_eq!(header(&head, absent), None);
    }
    let first = gateway.opening().await;
    assert_eq!(first["MessageSchemaVersion"], "1.0");
    assert_eq!(first["TokenValue"], "T-1");
    assert_eq!(first["ClientVersion"], CLIENT_VERSION);
    assert_eq!(first["ClientId"], handle.client_id.to_string());
    assert_eq!(first.as_object().unwrap().len(), 5);

    // No StreamUrl in the answer: the old one is used.
    let _transport = in_time(Service::new(aws.clone(), None).resume(&handle)).await.unwrap();
    assert!(gateway.head().await.starts_with(&format!("GET /v1/data-channel/me-0123?{QUERY} HTTP/1.1\r\n")));
    let second = gateway.opening().await;
    assert_eq!((&second["TokenValue"], &second["ClientId"]), (&"T-2".into(), &first["ClientId"]));
    assert_ne!(second["RequestId"], first["RequestId"]);

    in_time(Service::new(aws.clone(), None).terminate(&handle)).await.unwrap();
    assert_eq!(fake.operations(), ["StartSession", "ResumeSession", "TerminateSession"]);
    assert_eq!(fake.requests()[2].body, r#"{"SessionId":"me-0123"}"#);
}

#[tokio::test]
async fn an_empty_reason_is_not_sent() {
    let gateway = Gateway::start([]).await;
    let fake = manager(gateway.url("me-0123")).await;
    let aws = aws(&fake).await;
    for (reason, sent) in [(None, None), (Some(" \n"), None), (Some(&*"é".repeat(300)), Some("é".repeat(256)))] {
        let _session = start(&Service::new(aws.clone(), reason)).await.unwrap();
        let request: serde_json::Value = serde_json::from_str(&fake.requests().last().unwrap().body).unwrap();
        assert_eq!(request.get("Reason").and_then(|reason| reason.as_str()), sent.as_deref());
    }
}

#[tokio::test]
async fn a_resume_takes_the_new_url() {
    let mut gateway = Gateway::start([]).await;
    let url = gateway.url("new");
    let fake = Fake::start(move |_| started(&url, "T-3")).await;
    // Nobody listens at the old one.
    let closed = ClosedPort::new();
    let handle = session(&format!("ws://{}/old", closed.address()));
    let _transport = in_time(Service::new(aws(&fake).await, None).resume(&handle)).await.unwrap();
    assert!(gateway.head().await.starts_with("GET /v1/data-channel/new?"));
    assert_eq!(gateway.opening().await["ClientId"], handle.client_id.to_string());
}

/// A Systems Manager whose sessions are at the URLs, one after the other. Its answers from the second on wait for the gate.
async fn held_manager(urls: Vec<String>, gate: &Arc<Semaphore>) -> Fake {
    let answers: Vec<_> = urls.iter().map(|url| started(url, "T")).collect();
    let held = answers.iter().skip(1).map(|answer| answer.clone().held_by(gate));
    let answers = Mutex::new(answers.iter().take(1).cloned().chain(held).collect::<VecDeque<_>>());
    Fake::start(move |_| answers.lock().unwrap().pop_front().unwrap()).await
}

#[tokio::test]
async fn the_gateway_is_connected_to_before_it_is_known_what_to_ask_for() {
    let mut gateway = Gateway::start([]).await;
    let gate = Arc::new(Semaphore::new(0));
    let fake = held_manager(["a", "b", "c"].map(|session| gateway.url(session)).into(), &gate).await;
    let aws = aws(&fake).await;
    let service = Service::new(aws.clone(), None);
    let (handle, _first) = start(&service).await.unwrap();
    let (second, ()) = tokio::join!(start(&service), gateway.opens(&gate, 2));
    let dialer = Service::new(aws.clone(), None);
    let (third, ()) = tokio::join!(in_time(dialer.resume(&handle)), gateway.opens(&gate, 3));
    let _transports = (second.unwrap(), third.unwrap());
    for session in ["a", "b", "c"] {
        assert!(gateway.head().await.starts_with(&format!("GET /v1/data-channel/{session}?")));
        gateway.opening().await;
    }
    assert_eq!(*gateway.connections.borrow(), 3);
}

#[tokio::test]
async fn a_connection_that_has_not_lasted_until_it_is_needed_is_opened_again() {
    let mut gateway = Gateway::start([Step::Accept, Step::Close]).await;
    let gate = Arc::new(Semaphore::new(0));
    let fake = held_manager(["a", "b"].map(|session| gateway.url(session)).into(), &gate).await;
    let aws = aws(&fake).await;
    let service = Service::new(aws.clone(), None);
    let _first = start(&service).await.unwrap();
    let (second, ()) = tokio::join!(start(&service), gateway.opens(&gate, 2));
    let _second = second.unwrap();
    for session in ["a", "b"] {
        assert!(gateway.head().await.starts_with(&format!("GET /v1/data-channel/{session}?")));
        gateway.opening().await;
    }
    assert_eq!(*gateway.connections.borrow(), 3);
}

#[tokio::test]
async fn nothing_is_said_to_a_gateway_that_the_session_is_not_at() {
    let (mut old, mut new) = (Gateway::start([]).await, Gateway::start([]).await);
    let gate = Arc::new(Semaphore::new(0));
    let fake = held_manager(vec![old.url("a"), new.url("b")], &gate).await;
    let aws = aws(&fake).await;
    let service = Service::new(aws.clone(), None);
    let _first = start(&service).await.unwrap();
    assert!(old.head().await.starts_with("GET /v1/data-channel/a?"));
    old.opening().await;
    let (second, ()) = tokio::join!(start(&service), old.opens(&gate, 2));
    let _second = second.unwrap();
    assert!(new.head().await.starts_with("GET /v1/data-channel/b?"));
    assert!(old.seen.try_recv().is_err());
    assert_eq!(service.likely_gateway().map(|gateway| gateway.port()), Some(new.port));
}

#[tokio::test]
async fn no_connection_is_opened_ahead_after_a_start_has_failed() {
    let gateway = Gateway::start([]).await;
    let mut answers =
        [started(&gateway.url("a"), "T"), Answer::json_error(400, "TargetNotConnected", "away")].into_iter();
    let answers = Mutex::new(move || answers.next().unwrap_or_else(|| Answer::json(200, "{}")));
    let fake = Fake::start(move |_| answers.lock().unwrap()()).await;
    let aws = aws(&fake).await;
    let service = Service::new(aws.clone(), None);
    let _first = start(&service).await.unwrap();
    assert!(service.likely_gateway().is_some());
    start(&service).await.unwrap_err();
    assert_eq!(service.likely_gateway(), None);
}

#[tokio::test]
async fn a_refused_signature_is_left_out_once() {
    let mut gateway = Gateway::start([Step::Refuse("403 Forbidden"), Step::Accept]).await;
    let fake = manager(gateway.url("s")).await;
    let _session = start(&Service::new(aws(&fake).await, None)).await.unwrap();
    assert!(header(&gateway.head().await, "authorization").is_some());
    let second = gateway.head().await;
    for absent in ["authorization", "x-amz-date", "x-amz-security-token"] {
        assert_eq!(header(&second, absent), None);
    }
    assert_eq!(gateway.opening().await["TokenValue"], "T-1");
    assert_eq!(fake.operations(), ["StartSession"]);
}

#[tokio::test]
async fn an_upgrade_is_signed_again_with_the_time_that_the_gateway_tells() {
    // Sun, 06 Nov 1994: whatever this machine's clock shows, it is another time.
    let refuse = Step::Refuse("403 Forbidden\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT");
    let mut gateway = Gateway::start([refuse, Step::Accept]).await;
    let fake = manager(gateway.url("s")).await;
    let aws = aws(&fake).await;
    let service = Service::new(aws.clone(), None);
    let _session = start(&service).await.unwrap();
    let date = |head: &str| header(head, "x-amz-date").map(|date| date[..8].to_owned());
    assert_ne!(date(&gateway.head().await).as_deref(), Some("19941106"));
    assert_eq!(date(&gateway.head().await).as_deref(), Some("19941106"));
    assert_eq!(service.take_signature_refusal(), None);
}

#[tokio::test]
async fn what_the_gateway_said_first_is_what_is_told() {
    let refuse = Step::Refuse("403 Forbidden");
    let gateway = Gateway::start([refuse.clone(), refuse]).await;
    let fake = manager(gateway.url("s")).await;
    let aws = aws(&fake).await;
    let service = Service::new(aws.clone(), None);
    let error = start(&service).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the message gateway `127.0.0.1` refused the WebSocket upgrade with status 403: forbidden"
    );
    assert_eq!(service.take_signature_refusal().as_deref(), Some("forbidden"));
}

#[tokio::test]
async fn a_session_that_cannot_be_opened_is_ended() {
    for (steps, dials, expected) in [
        (vec![Step::Refuse("403 Forbidden"), Step::Refuse("403 Forbidden")], 2, 403),
        (vec![Step::Refuse("500 Oh")], 1, 500),
        (vec![Step::Refuse("302 Found")], 1, 302),
    ] {
        let mut gateway = Gateway::start(steps).await;
        let fake = manager(gateway.url("s")).await;
        let aws = aws(&fake).await;
        let service = Service::new(aws.clone(), None);
        let error = start(&service).await.unwrap_err();
        assert!(
            matches!(&error, DialError::UpgradeRefused { host, status, .. } if host == "127.0.0.1" && *status == expected),
            "{error:?}"
        );
        for _ in 0..dials {
            gateway.head().await;
        }
        in_time(aws.settle()).await;
        assert_eq!(fake.operations(), ["StartSession", "TerminateSession"]);
    }
}

#[tokio::test]
async fn a_presigned_url_is_dialled_without_a_signature() {
    let mut gateway = Gateway::start([]).await;
    let url = format!("{}&X-Amz-Signature=00&X-Amz-Date=1", gateway.url("s"));
    let fake = manager(url).await;
    let _session = start(&Service::new(aws(&fake).await, None)).await.unwrap();
    let head = gateway.head().await;
    assert!(head.starts_with(&format!("GET /v1/data-channel/s?{QUERY}&X-Amz-Signature=00&X-Amz-Date=1 HTTP/1.1\r\n")));
    assert_eq!(header(&head, "authorization"), None);
    assert_eq!(header(&head, "x-amz-security-token"), None);
}

#[tokio::test]
async fn nothing_is_sent_to_a_foreign_host() {
    let fake = manager("wss://ssmmessages.us-east-1.amazonaws.com.evil.example/v1".to_owned()).await;
    let aws = aws(&fake).await;
    let service = Service::new(aws.clone(), None);
    let error = start(&service).await.unwrap_err();
    assert!(
        matches!(&error, DialError::ForeignStreamUrl { host } if host == "ssmmessages.us-east-1.amazonaws.com.evil.example"),
        "{error:?}"
    );
    in_time(aws.settle()).await;
    assert_eq!(fake.operations(), ["StartSession", "TerminateSession"]);
    let foreign = resume_outcome(started("wss://evil.example/", "T")).await;
    assert!(matches!(foreign, Err(DialError::ForeignStreamUrl { host }) if host == "evil.example"));
    let old = resume_outcome(started("", "T")).await;
    assert!(matches!(old, Err(DialError::ForeignStreamUrl { host }) if host == "elsewhere.example"));
}

#[tokio::test]
async fn says_why_a_session_cannot_be_started() {
    let error = |code, message| start_error(Answer::json_error(400, code, message));
    let offline = error("TargetNotConnected", "i-0dc03fbcae2a87472 is not connected.").await;
    assert!(matches!(&offline, DialError::TargetNotConnected { target: named, .. } if *named == target()));
    assert_eq!(
        sentence(&offline),
        "target `i-0dc03fbcae2a87472` is not connected to Systems Manager: TargetNotConnected: i-0dc03fbcae2a87472 is not \
         connected. (HTTP status 400)"
    );
    let document = "arn:aws:ssm:us-east-1::document/AWS-StartPortForwardingSessionToRemoteHost";
    let message = format!("User: u is not authorized to perform: ssm:StartSession on resource: {document}");
    let denied = error("AccessDeniedException", &message).await;
    assert!(
        matches!(&denied, DialError::AccessDenied { action: "ssm:StartSession", resource, .. } if resource == document)
    );
    assert!(matches!(error("InvalidDocument", "").await, DialError::DocumentRefused { .. }));
    assert!(matches!(error("ThrottlingException", "").await, DialError::Throttled { action: "ssm:StartSession", .. }));
    assert!(matches!(
        error("UnrecognizedClientException", "").await,
        DialError::Credentials { action: "ssm:StartSession", .. }
    ));
    assert!(matches!(error("InternalServerError", "").await, DialError::Service { action: "ssm:StartSession", .. }));
    for code in ["BadRequest", "ValidationException", "UnsupportedOperationException", "SomethingNewException"] {
        let refused = error(code, "Enable it").await;
        assert!(matches!(&refused, DialError::Refused { action: "ssm:StartSession", .. }), "{refused:?}");
        assert_eq!(
            sentence(&refused),
            format!("`ssm:StartSession` on `i-0dc03fbcae2a87472` was refused: {code}: Enable it (HTTP status 400)")
        );
    }
    // What concerns the region or the credentials does not pass by itself either.
    assert!(matches!(error("OptInRequired", "").await, DialError::Refused { .. }));
    let incomplete = start_error(Answer::json(200, r#"{"SessionId":"s"}"#)).await;
    assert_eq!(sentence(&incomplete), "`ssm:StartSession` failed: the answer has no StreamUrl");
    let odd = start_error(Answer::json(200, r#"{"SessionId":"s;$(id)"}"#)).await;
    assert_eq!(sentence(&odd), "`ssm:StartSession` failed: the answer has no SessionId that can be one");
    // One may start with anything that the name of the role's session may start with.
    let incomplete = start_error(Answer::json(200, r#"{"SessionId":"@ann-0123"}"#)).await;
    assert_eq!(sentence(&incomplete), "`ssm:StartSession` failed: the answer has no StreamUrl");
    let empty = start_error(Answer::json(200, "{}")).await;
    assert_eq!(sentence(&empty), "`ssm:StartSession` failed: the answer has no SessionId");
}

/// Starts a session where StartSession fails with a code, and the list of nodes is as given.
async fn start_error_with(code: &'static str, nodes: Answer) -> DialError {
    let fake = Fake::start(move |request: &Request| match request.operation() {
        "StartSession" => Answer::json_error(400, code, "i-0dc03fbcae2a87472 is not there."),
        _ => nodes.clone(),
    })
    .await;
    start(&Service::new(aws(&fake).await, None)).await.unwrap_err()
}

#[tokio::test]
async fn tells_a_target_that_is_away_from_one_that_is_not_there() {
    let none = Answer::json(200, r#"{"InstanceInformationList":[]}"#);
    let node = format!(r#"{{"InstanceId":"{}","PingStatus":"ConnectionLost","AgentVersion":"3.2.0.0"}}"#, target());
    let seen = Answer::json(200, &format!(r#"{{"InstanceInformationList":[{node}]}}"#));
    let denied = Answer::json_error(400, "AccessDeniedException", "no");
    for code in ["TargetNotConnected", "InvalidInstanceId"] {
        let error = start_error_with(code, none.clone()).await;
        assert!(
            matches!(&error, DialError::TargetNotFound { target: named, region, .. } if *named == target() && region == "us-east-1"),
            "{error:?}"
        );
        let said = "target `i-0dc03fbcae2a87472` does not exist, is terminated, or has never registered with Systems Manager in \
                    us-east-1 of this account: ";
        assert!(sentence(&error).starts_with(&format!("{said}{code}: ")), "{}", sentence(&error));

        let error = start_error_with(code, seen.clone()).await;
        assert!(matches!(&error, DialError::TargetNotConnected { .. }), "{error:?}");
        let said = "target `i-0dc03fbcae2a87472` is not connected to Systems Manager: its agent, version 3.2.0.0, has lost contact: ";
        assert!(sentence(&error).starts_with(&format!("{said}{code}: ")), "{}", sentence(&error));

        let error = start_error_with(code, denied.clone()).await;
        let said = format!("target `i-0dc03fbcae2a87472` is not connected to Systems Manager: {code}: ");
        assert!(sentence(&error).starts_with(&said), "{}", sentence(&error));
    }
    // What has nothing to do with the target is not looked into.
    let error = start_error_with("InternalServerError", none).await;
    assert!(matches!(error, DialError::Service { .. }));
}

#[tokio::test]
async fn knows_when_there_is_nothing_to_resume() {
    for answer in [
        Answer::json_error(400, "DoesNotExistException", "no such session"),
        Answer::json(200, r#"{"SessionId":"me-0123","TokenValue":"","StreamUrl":""}"#),
        Answer::json(200, r#"{"SessionId":"me-0123"}"#),
    ] {
        let outcome = resume_outcome(answer).await;
        assert!(matches!(outcome, Err(DialError::SessionEnded { id }) if id.0 == "me-0123"));
    }
    let denied = resume_outcome(Answer::json_error(400, "AccessDeniedException", "no")).await;
    assert!(
        matches!(denied, Err(DialError::AccessDenied { action: "ssm:ResumeSession", resource, .. }) if resource == "me-0123")
    );
}
