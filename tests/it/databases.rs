//! A real PostgreSQL and a real Redis behind a bastion, with their own clients, while the WebSocket is cut over and over.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use autoheal_pa::emulator::{ClusterConfig, Config, Event};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    process::Command,
};

use super::support::{DEADLINE, Lab, Running, path_variable, within};

const BASTION: &str = "i-0dc03fbcae2a87472";

/// Whom databases run as where tests run as root, which they refuse to.
const NOBODY: u32 = 65534;

/// How long a WebSocket lives here. AWS closes each after an hour.
pub(super) const LIFETIME: Duration = Duration::from_millis(700);

/// How many cuts connections have to survive.
pub(super) const CUTS: usize = 5;

/// Programs of a package, if they are there. In the gate they have to be.
#[expect(clippy::disallowed_methods, reason = "the gate asks for them by a variable")]
pub(super) fn programs<const N: usize>(variable: &str, names: [&str; N]) -> Option<[PathBuf; N]> {
    let find =
        |name: &str| std::env::split_paths(&path_variable()).map(|dir| dir.join(name)).find(|path| path.is_file());
    let found: Option<Vec<_>> = names.iter().map(|name| find(name)).collect();
    let required = std::env::var_os(variable).is_some();
    assert!(found.is_some() || !required, "{names:?} are not on the PATH");
    if found.is_none() {
        // Past the test runner, which keeps back what passing tests print.
        let _written = writeln!(std::io::stderr(), "SKIPPED: there are no {names:?}");
    }
    found?.try_into().ok()
}

/// A port that was free a moment ago.
pub(super) async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// A command that does not run as root.
pub(super) fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("HOME", "/").current_dir("/").kill_on_drop(true);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// A folder of theirs.
pub(super) fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    folder
}

pub(super) async fn until_it_answers(server: &Running, port: u16) {
    let answers = async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(DEADLINE, answers).await.is_err() {
        panic!("{}{}", server.stdout_so_far(), server.stderr_so_far());
    }
}

/// A manager that forwards to a server, whose WebSockets are closed over and over. Returns the local port as well.
async fn forwarding(name: &str, server: u16) -> (Lab, Running, u16) {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    lab.emulator.route(name, SocketAddr::from(([127, 0, 0, 1], server)));
    let to = format!("db={name}");
    let args = ["forward", "--base-port", "0", "--bastion", BASTION, "--check", "tcp", &to];
    let mut forward = Running::start(&mut lab.program(&args));
    forward.ready().await;
    let port = lab.status(&[]).await["tunnels"][0]["port"].as_u64().unwrap();
    lab.emulator.update(|settings| settings.transport_lifetime = Some(LIFETIME));
    (lab, forward, u16::try_from(port).unwrap())
}

/// Waits for more cuts, each of which was followed by a resume.
pub(super) async fn cuts(lab: &Lab, more: usize) {
    let resumes =
        |events: &[Event]| events.iter().filter(|event| matches!(event, Event::SessionResumed { .. })).count();
    let wanted = resumes(&lab.emulator.events()) + more;
    lab.wait_until("more cuts", |emulator| resumes(&emulator.events()) >= wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_keeps_its_connection_while_the_websocket_is_cut() {
    let Some([postgres, initdb, psql]) = programs("AUTOHEAL_PA_TEST_REQUIRES_POSTGRES", ["postgres", "initdb", "psql"])
    else {
        return;
    };
    let folder = folder();
    let data = folder.path().join("data");
    let made = as_nobody(&initdb)
        .args(["--auth=trust", "--username=ann", "--no-sync", "--locale=C", "--encoding=UTF8", "-D"])
        .arg(&data)
        .output();
    let made = within("initdb", made).await.unwrap();
    assert!(made.status.success(), "{made:?}");
    let server_port = free_port().await;
    let server = Running::start(
        as_nobody(&postgres)
            .args(["-h", "127.0.0.1", "-p", &server_port.to_string(), "-c", "fsync=off", "-k", "", "-D"])
            .arg(&data),
    );
    until_it_answers(&server, server_port).await;
    let (lab, forward, port) = forwarding("db.internal:5432", server_port).await;

    let mut client = lab.bare_command(&psql);
    client.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "ann", "-d", "postgres", "-X", "-A", "-t"]);
    let mut client = Running::start(client.args(["-v", "ON_ERROR_STOP=1"]).stdin(std::process::Stdio::piped()));
    let mut stdin = client.stdin();
    // What a session has is gone with its connection.
    stdin
        .write_all(b"create temp table kept (n int); select 'backend ' || pg_backend_pid() from pg_sleep(0);\n")
        .await
        .unwrap();
    assert!(client.prints("backend ").await, "{}", client.stderr_so_far());
    for round in 0..CUTS {
        cuts(&lab, 1).await;
        let rows = 20_000 * (round + 1);
        let query = format!(
            "insert into kept select generate_series(1, 10); \
             select 'round {round}: ' || count(*) || ' ' || sum(length(s)) from (select repeat('x', 100) s from generate_series(1, {rows})) t;\n\
             select repeat('y', 1000) from generate_series(1, 300);\n\
             select 'kept ' || count(*) from kept;\n"
        );
        stdin.write_all(query.as_bytes()).await.unwrap();
        assert!(client.prints(&format!("round {round}: {rows} {}", rows * 100)).await, "{}", client.stderr_so_far());
        assert!(client.prints(&format!("kept {}", 10 * (round + 1))).await, "{}", client.stderr_so_far());
    }
    stdin.write_all(b"select 'backend ' || pg_backend_pid();\n\\q\n").await.unwrap();
    drop(stdin);
    let ended = client.ended().await;
    let output = ended.assert_success();
    let backends: Vec<_> = output.lines().filter(|line| line.starts_with("backend ")).collect();
    assert_eq!((backends.len(), backends[0]), (2, backends[1]), "one connection from first to last");
    assert_eq!(output.lines().filter(|line| line.len() == 1000 && line.bytes().all(|b| b == b'y')).count(), 300 * CUTS);
    assert_eq!(ended.stderr, "");
    lab.emulator.update(|settings| settings.transport_lifetime = None);
    let status = lab.status(&[]).await;
    assert_eq!(status["tunnels"][0]["restarts"], 0, "{status:#}");
    forward.stop().await.assert_success();
    lab.assert_clean().await;
    drop(server);
    fs::remove_dir_all(folder.path()).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_cli_keeps_its_connection_while_the_websocket_is_cut() {
    let Some([redis_server, redis_cli]) = programs("AUTOHEAL_PA_TEST_REQUIRES_REDIS", ["redis-server", "redis-cli"])
    else {
        return;
    };
    let folder = folder();
    let server_port = free_port().await;
    let server = Running::start(
        as_nobody(&redis_server)
            .args(["--bind", "127.0.0.1", "--port", &server_port.to_string(), "--save", "", "--dir"])
            .arg(folder.path()),
    );
    until_it_answers(&server, server_port).await;
    let (lab, forward, port) = forwarding("cache.internal:6379", server_port).await;

    let mut client = lab.bare_command(&redis_cli);
    client.args(["-h", "127.0.0.1", "-p", &port.to_string()]).stdin(std::process::Stdio::piped());
    let mut client = Running::start(&mut client);
    let mut stdin = client.stdin();
    // A client that connects anew has another id, and has lost its name.
    stdin.write_all(b"CLIENT SETNAME kept\nCLIENT ID\n").await.unwrap();
    for round in 1..=CUTS {
        cuts(&lab, 1).await;
        let value = "z".repeat(20_000);
        stdin
            .write_all(format!("SET key {value}\nSTRLEN key\nINCRBY rounds 111\nCLIENT GETNAME\n").as_bytes())
            .await
            .unwrap();
        assert!(client.prints(&format!("\n{}\nkept", 111 * round)).await, "{}", client.stdout_so_far());
    }
    stdin.write_all(b"CLIENT ID\n").await.unwrap();
    drop(stdin);
    let ended = client.ended().await;
    let output = ended.assert_success();
    let lines: Vec<_> = output.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.iter().filter(|line| **line == "20000").count(), CUTS, "{output}");
    let id = lines[1];
    assert_eq!(lines.last(), Some(&id), "one connection from first to last: {output}");
    lab.emulator.update(|settings| settings.transport_lifetime = None);
    assert_eq!(lab.status(&[]).await["tunnels"][0]["restarts"], 0);
    forward.stop().await.assert_success();
    lab.assert_clean().await;
    drop(server);
}
