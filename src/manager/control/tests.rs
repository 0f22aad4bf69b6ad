//! Tests of both ends on real sockets.

use std::{
    fs::{self, DirBuilder, Permissions},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use futures_util::{StreamExt, stream};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::*;

/// Knows one cluster, and follows itself for ever.
struct OneCluster;

impl Handler for OneCluster {
    fn answer(&self, request: Request) -> BoxStream<'static, Result<Answer, Refusal>> {
        match request {
            Request::Token(TokenRequest { cluster, region, .. }) if cluster == "no" => {
                let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_317_508);
                let token = Secret::new(format!("token for {region}"));
                stream::iter([Ok(Answer::Token(TokenAnswer { token, expires, port: None }))]).boxed()
            }
            Request::Token(TokenRequest { cluster, .. }) => {
                stream::iter([Err(Refusal::new("unknown-cluster", format!("there is no tunnel to `{cluster}`")))])
                    .boxed()
            }
            Request::Status { follow } => {
                let status = || Ok(Answer::Status(Box::new(status())));
                let more = stream::pending();
                if follow {
                    stream::iter([status(), status()]).chain(more).boxed()
                } else {
                    stream::iter([status()]).boxed()
                }
            }
            Request::Reload => {
                let reloaded = Reloaded { added: vec!["pa-new".into()], kept: 2, ..Reloaded::default() };
                stream::iter([Ok(Answer::Reloaded(reloaded))]).boxed()
            }
            Request::Stop => stream::iter([Ok(Answer::Stopping)]).chain(stream::pending()).boxed(),
            Request::Doctor { clusters } => {
                let finding = Answer::Finding(serde_json::json!({ "id": clusters }));
                stream::iter([Ok(finding), Ok(Answer::Done)]).boxed()
            }
        }
    }
}

fn status() -> ManagerStatus {
    ManagerStatus {
        version: 1,
        program: None,
        name: "default".into(),
        state: "active".into(),
        pid: 1,
        since: SystemTime::UNIX_EPOCH.into(),
        started_at: SystemTime::UNIX_EPOCH.into(),
        identity: None,
        credentials_expire: None,
        opened: true,
        kubeconfig: None,
        imported_from: Vec::new(),
        proxy: None,
        metrics: None,
        audit: None,
        log: None,
        access: vec![],
        tunnels: vec![],
    }
}

/// Never answers.
struct Silent;

impl Handler for Silent {
    fn answer(&self, _: Request) -> BoxStream<'static, Result<Answer, Refusal>> {
        stream::pending().boxed()
    }
}

const DEADLINE: Duration = Duration::from_secs(10);

/// How every line of this program begins.
fn head() -> String {
    format!(r#"{{"version":1,"program":"{}","#, version::short())
}

fn decode(line: &str) -> Result<Answer, ControlError> {
    wire::decode_answer(line, Path::new("/run/default"))
}

fn request(cluster: &str) -> TokenRequest {
    TokenRequest { cluster: cluster.to_owned(), region: "us-east-1".to_owned(), account: None, starts: None }
}

/// Runs a client against a server in a directory of its own.
async fn with_server<F: AsyncFnOnce(&Path)>(handler: impl Handler, client: F) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run/default");
    let server = Server::bind(&dir).unwrap();
    let stop = CancellationToken::new();
    let serving = server.serve(Arc::new(handler), stop.clone());
    timeout(DEADLINE, async {
        tokio::join!(serving, async {
            client(&dir).await;
            stop.cancel()
        })
    })
    .await
    .unwrap();
}

/// Sends a line and returns the line that comes back.
async fn exchange(dir: &Path, line: &str) -> String {
    let mut stream = UnixStream::connect(dir.join("control.sock")).await.unwrap();
    stream.write_all(line.as_bytes()).await.unwrap();
    stream.write_all(b"\n").await.unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn gives_tokens_and_refusals() {
    with_server(OneCluster, async |dir: &Path| {
        let answer = request_token(dir, &request("no"), DEADLINE).await.unwrap();
        assert_eq!(answer.token.expose(), "token for us-east-1");
        assert_eq!(answer.expires, SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_317_508));
        let error = request_token(dir, &request("yes"), DEADLINE).await.unwrap_err();
        let ControlError::Refused { source } = error else { panic!("{error}") };
        assert_eq!(source, Refusal::new("unknown-cluster", "there is no tunnel to `yes`"));
    })
    .await;
}

#[tokio::test]
async fn the_protocol_is_what_the_documentation_says() {
    with_server(OneCluster, async |dir: &Path| {
        assert_eq!(
            exchange(dir, r#"{"version":1,"request":"token","cluster":"no","region":"r","more":[]}"#).await,
            head() + "\"answer\":\"token\",\"token\":\"token for r\",\"expires\":1795317508}\n"
        );
        for (line, code) in [
            (r#"{"version":1,"request":"song"}"#, "unknown-request"),
            (r#"{"version":2,"request":"token"}"#, "unknown-version"),
            (r#"{"version":1,"request":"token","cluster":"no"}"#, "malformed-request"),
            (r#"{"version":1,"request":"token","cluster":"yes","region":"r"}"#, "unknown-cluster"),
            ("[]", "malformed-request"),
            ("", "malformed-request"),
            ("GET / HTTP/1.1", "malformed-request"),
        ] {
            let answer = exchange(dir, line).await;
            assert!(
                answer.starts_with(&format!(r#"{}"answer":"error","code":"{code}","message":""#, head())),
                "{answer}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn one_connection_takes_many_requests() {
    with_server(OneCluster, async |dir: &Path| {
        let mut stream = BufReader::new(UnixStream::connect(dir.join("control.sock")).await.unwrap());
        for line in ["{}\n".to_owned(), wire::encode_request(&Request::Token(request("no")))] {
            stream.write_all(line.as_bytes()).await.unwrap();
            let mut answer = String::new();
            assert!(stream.read_line(&mut answer).await.unwrap() > 0);
        }
    })
    .await;
}

#[tokio::test]
async fn every_request_has_its_answers() {
    with_server(OneCluster, async |dir: &Path| {
        for (line, answer) in [
            (
                r#"{"version":1,"request":"reload"}"#,
                r#""answer":"reloaded","added":["pa-new"],"removed":[],"kept":2,"problems":[],"later":null}"#,
            ),
            (r#"{"version":1,"request":"stop"}"#, r#""answer":"stopping"}"#),
            (r#"{"version":1,"request":"doctor"}"#, r#""answer":"finding","finding":{"id":[]}}"#),
            (
                r#"{"version":1,"request":"status"}"#,
                r#""answer":"status","status":{"version":1,"program":null,"name":"default","state":"active","#,
            ),
        ] {
            assert!(exchange(dir, line).await.starts_with(&format!("{}{answer}", head())), "{line}");
        }
        let mut client = Client::connect(dir).await.unwrap();
        client.send(&Request::Doctor { clusters: vec!["a".into()] }).await.unwrap();
        assert!(matches!(client.next().await.unwrap(), Some(Answer::Finding(_))));
        assert!(matches!(client.next().await.unwrap(), Some(Answer::Done)));
        client.send(&Request::Status { follow: true }).await.unwrap();
        for _ in 0..2 {
            let Some(Answer::Status(told)) = client.next().await.unwrap() else { panic!("no status") };
            assert_eq!(*told, status());
        }
        // It may ask for something else meanwhile.
        client.send(&Request::Reload).await.unwrap();
        assert!(matches!(client.next().await.unwrap(), Some(Answer::Reloaded(_))));
    })
    .await;
}

#[tokio::test]
async fn a_client_may_end_its_side_after_asking() {
    with_server(OneCluster, async |dir: &Path| {
        let mut stream = UnixStream::connect(dir.join("control.sock")).await.unwrap();
        stream.write_all(b"{\"version\":1,\"request\":\"status\"}\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.contains("active"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn a_client_that_looks_away_loses_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run/default");
    DirBuilder::new().mode(0o700).recursive(true).create(&dir).unwrap();
    let listener = UnixListener::bind(dir.join("control.sock")).unwrap();
    let mut client = Client::connect(&dir).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    for part in ["{\"version\":1,", "\"answer\":\"sto", "pping\"}"] {
        stream.write_all(part.as_bytes()).await.unwrap();
        assert!(timeout(Duration::from_millis(20), client.next()).await.is_err());
    }
    stream.write_all(b"\n{\"vers").await.unwrap();
    assert!(matches!(client.next().await, Ok(Some(Answer::Stopping))));
    drop(stream);
    assert!(matches!(client.next().await, Err(ControlError::Connection { .. })), "an answer that is cut off is none");
}

#[tokio::test]
async fn followers_that_are_gone_make_room() {
    with_server(OneCluster, async |dir: &Path| {
        for _ in 0..200 {
            let mut client = Client::connect(dir).await.unwrap();
            client.send(&Request::Status { follow: true }).await.unwrap();
            client.next().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn whoever_waits_for_an_end_learns_of_it() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run/default");
    assert_eq!(until_free(&dir, DEADLINE).await.unwrap(), None, "there has never been one");
    let server = Server::bind(&dir).unwrap();
    let held = until_free(&dir, Duration::from_millis(10)).await.unwrap();
    assert_eq!(held, Some(Holder { pid: Some(std::process::id()) }));
    assert_eq!(holder(&dir).unwrap(), held);
    let (free, ()) = tokio::join!(until_free(&dir, DEADLINE), async { drop(server) });
    assert_eq!(free.unwrap(), None);
    assert_eq!(holder(&dir).unwrap(), None);
}

#[tokio::test]
async fn an_endless_line_ends_the_connection() {
    with_server(OneCluster, async |dir: &Path| {
        let mut stream = UnixStream::connect(dir.join("control.sock")).await.unwrap();
        let line = vec![b'x'; 2 * MAX_REQUEST_LEN.try_into().unwrap_or(0)];
        // The server may close before it has read it all.
        let _sent = stream.write_all(&line).await;
        let mut rest = Vec::new();
        let _outcome = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
        assert!(request_token(dir, &request("no"), DEADLINE).await.is_ok());
    })
    .await;
}

#[tokio::test]
async fn does_not_wait_for_a_silent_manager() {
    with_server(Silent, async |dir: &Path| {
        let error = request_token(dir, &request("no"), Duration::from_millis(10)).await.unwrap_err();
        assert!(matches!(error, ControlError::Timeout { .. }), "{error}");
    })
    .await;
}

#[tokio::test]
async fn nobody_is_there() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run/default");
    let error = request_token(&dir, &request("no"), DEADLINE).await.unwrap_err();
    assert!(matches!(error, ControlError::NotRunning { .. }), "{error}");
    // A socket that nobody serves any more.
    DirBuilder::new().mode(0o700).recursive(true).create(&dir).unwrap();
    drop(UnixListener::bind(dir.join("control.sock")).unwrap());
    let error = request_token(&dir, &request("no"), DEADLINE).await.unwrap_err();
    assert!(matches!(error, ControlError::NotRunning { .. }), "{error}");
}

#[test]
fn nonsense_from_a_manager_is_an_error() {
    for line in ["".to_owned(), "{}".to_owned(), "[1]".to_owned()].into_iter().chain(
        [r#""answer":"token"}"#, r#""answer":"token","token":"t","expires":-1}"#, r#""answer":"song"}"#]
            .map(|rest| head() + rest),
    ) {
        let error = decode(&line).unwrap_err();
        assert!(matches!(error, ControlError::Malformed { .. }), "{line}: {error}");
    }
    // Whatever the number, it does not panic.
    let _far = decode(&(head() + r#""answer":"token","token":"t","expires":18446744073709551615}"#));
}

#[test]
fn a_manager_of_another_version_is_told_where_it_is_not_understood() {
    let told = |line: &str| {
        let Err(ControlError::OtherVersion { program, .. }) = decode(line) else { panic!("{line}") };
        program
    };
    for rest in [
        r#""answer":"song"}"#,
        r#""answer":"token","token":7}"#,
        r#""answer":"error","code":"unknown-request","message":"no"}"#,
        r#""answer":"error","code":"unknown-version","message":"no"}"#,
        r#""answer":"error","code":"malformed-request","message":"no"}"#,
    ] {
        assert_eq!(told(&format!(r#"{{"version":1,{rest}"#)), None);
        assert_eq!(told(&format!(r#"{{"version":1,"program":"0.0.9",{rest}"#)), Some("0.0.9".to_owned()));
    }
    // Whatever it has meant to say.
    let next = r#"{"version":2,"program":"9.0.0","answer":"token","token":"t","expires":1}"#;
    assert_eq!(told(next), Some("9.0.0".to_owned()));
    let error = decode(next).unwrap_err();
    let expected = format!(
        "the manager in `/run/default` is version 9.0.0, which does not understand this one, {}",
        version::short()
    );
    assert_eq!(error.to_string(), expected);

    // What is understood is taken, whoever says it.
    for program in ["", r#""program":"0.0.9","#] {
        let answer = format!(r#"{{"version":1,{program}"answer":"token","token":"t","expires":1}}"#);
        assert!(matches!(decode(&answer).unwrap(), Answer::Token(_)));
        let refusal = format!(r#"{{"version":1,{program}"answer":"error","code":"unknown-cluster","message":"no"}}"#);
        assert!(matches!(decode(&refusal).unwrap_err(), ControlError::Refused { .. }));
    }
    // Nor does a manager hide from commands what it is.
    let refused = |line: &str| wire::decode_request(line).unwrap_err().message;
    let own = version::short();
    assert_eq!(
        refused(r#"{"version":1,"program":"9.0.0","request":"song"}"#),
        format!("this manager, version {own}, does not know the request `song` of a command of version 9.0.0")
    );
    assert_eq!(
        refused(r#"{"version":2,"request":"status"}"#),
        format!(
            "this manager, version {own}, speaks version 1 of the protocol, and a command of an older version speaks 2"
        )
    );
    // Of the same version it is no question of versions.
    let error = decode(&(head() + r#""answer":"error","code":"unknown-request","message":"no"}"#)).unwrap_err();
    assert!(matches!(error, ControlError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_second_manager_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run/default");
    let first = Server::bind(&dir).unwrap();
    let error = Server::bind(&dir).unwrap_err();
    let expected = format!("a manager is already running as process {} in `{}`", std::process::id(), dir.display());
    assert_eq!(error.to_string(), expected);
    let _other = Server::bind(&root.path().join("run/other")).unwrap();
    drop(first);
    assert!(!dir.join("control.sock").exists());
    drop(Server::bind(&dir).unwrap());
}

#[tokio::test]
async fn takes_over_what_a_killed_manager_left() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run/default");
    DirBuilder::new().mode(0o700).recursive(true).create(&dir).unwrap();
    drop(UnixListener::bind(dir.join("control.sock")).unwrap());
    fs::write(dir.join("lock"), "4294967295 and some more\n").unwrap();
    let server = Server::bind(&dir).unwrap();
    assert_eq!(fs::metadata(dir.join("control.sock")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(dir.join("lock")).unwrap(), format!("{}\n", std::process::id()));
    drop(server);
}

#[tokio::test]
async fn the_directory_has_to_be_private() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run/default");
    drop(Server::bind(&dir).unwrap());
    for (open, mode) in [(&dir, 0o755), (&dir, 0o710), (&root.path().join("run"), 0o777)] {
        fs::set_permissions(open, Permissions::from_mode(mode)).unwrap();
        let error = Server::bind(&dir).unwrap_err();
        assert!(matches!(error, ControlError::NotPrivate { reason: "other users have access to it", .. }), "{error}");
        fs::set_permissions(open, Permissions::from_mode(0o700)).unwrap();
    }
    let link = root.path().join("run/link");
    std::os::unix::fs::symlink(&dir, &link).unwrap();
    let error = Server::bind(&link).unwrap_err();
    assert!(matches!(error, ControlError::NotPrivate { reason: "it is a symbolic link", .. }), "{error}");
}

#[tokio::test]
async fn a_path_may_be_too_long() {
    let root = tempfile::tempdir().unwrap();
    let error = Server::bind(&root.path().join("x".repeat(100))).unwrap_err();
    assert!(matches!(error, ControlError::PathTooLong { .. }), "{error}");
}
