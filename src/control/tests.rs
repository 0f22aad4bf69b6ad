//! Tests of both ends on real sockets.

use super::*;

/// Knows one cluster.
struct OneCluster;

impl Handler for OneCluster {
    fn token<'a>(&'a self, request: &'a TokenRequest) -> BoxFuture<'a, Result<TokenAnswer, Refusal>> {
        Box::pin(async move {
            if request.cluster != "no" {
                return Err(Refusal::new("unknown-cluster", format!("there is no tunnel to `{}`", request.cluster)));
            }
            let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_317_508);
            Ok(TokenAnswer { token: Secret::new(format!("token for {}", request.region)), expires })
        })
    }
}

/// Never answers.
struct Silent;

impl Handler for Silent {
    fn token<'a>(&'a self, _: &'a TokenRequest) -> BoxFuture<'a, Result<TokenAnswer, Refusal>> {
        Box::pin(std::future::pending())
    }
}

const DEADLINE: Duration = Duration::from_secs(10);

fn request(cluster: &str) -> TokenRequest {
    TokenRequest { cluster: cluster.to_owned(), region: "us-east-1".to_owned() }
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
    read_line(&mut BufReader::new(stream)).await.unwrap().unwrap().expose().clone()
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
            "{\"version\":1,\"answer\":\"token\",\"token\":\"token for r\",\"expires\":1795317508}\n"
        );
        for (line, code) in [
            (r#"{"version":1,"request":"status"}"#, "unknown-request"),
            (r#"{"version":2,"request":"token"}"#, "unknown-version"),
            (r#"{"version":1,"request":"token","cluster":"no"}"#, "malformed-request"),
            (r#"{"version":1,"request":"token","cluster":"yes","region":"r"}"#, "unknown-cluster"),
            ("[]", "malformed-request"),
            ("", "malformed-request"),
            ("GET / HTTP/1.1", "malformed-request"),
        ] {
            let answer = exchange(dir, line).await;
            assert!(
                answer.starts_with(&format!(r#"{{"version":1,"answer":"error","code":"{code}","message":""#)),
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
        for line in ["{}\n".to_owned(), wire::encode_token_request(&request("no"))] {
            stream.write_all(line.as_bytes()).await.unwrap();
            assert!(read_line(&mut stream).await.unwrap().is_some());
        }
    })
    .await;
}

#[tokio::test]
async fn an_endless_line_ends_the_connection() {
    with_server(OneCluster, async |dir: &Path| {
        let mut stream = UnixStream::connect(dir.join("control.sock")).await.unwrap();
        let line = vec![b'x'; 2 * MAX_LINE_LEN.try_into().unwrap_or(0)];
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
    let dir = root.path().join("default");
    let error = request_token(&dir, &request("no"), DEADLINE).await.unwrap_err();
    assert!(matches!(error, ControlError::NotRunning { .. }), "{error}");
    // A socket that nobody serves any more.
    fs::create_dir(&dir).unwrap();
    drop(UnixListener::bind(dir.join("control.sock")).unwrap());
    let error = request_token(&dir, &request("no"), DEADLINE).await.unwrap_err();
    assert!(matches!(error, ControlError::NotRunning { .. }), "{error}");
}

#[test]
fn nonsense_from_a_manager_is_an_error() {
    for line in [
        "",
        "{}",
        "[1]",
        r#"{"version":1,"answer":"token"}"#,
        r#"{"version":2,"answer":"token","token":"t","expires":1}"#,
        r#"{"version":1,"answer":"token","token":"t","expires":-1}"#,
        r#"{"version":1,"answer":"song"}"#,
    ] {
        let error = wire::decode_token(line).unwrap_err();
        assert!(matches!(error, ControlError::Malformed { .. }), "{line}: {error}");
    }
    // Whatever the number, it does not panic.
    let _far = wire::decode_token(r#"{"version":1,"answer":"token","token":"t","expires":18446744073709551615}"#);
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
    assert!(matches!(error, ControlError::NotPrivate { reason: "it is not a directory", .. }), "{error}");
}

#[tokio::test]
async fn a_path_may_be_too_long() {
    let root = tempfile::tempdir().unwrap();
    let error = Server::bind(&root.path().join("x".repeat(100))).unwrap_err();
    assert!(matches!(error, ControlError::PathTooLong { .. }), "{error}");
}
