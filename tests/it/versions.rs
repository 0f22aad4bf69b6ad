//! What it is that runs, and managers of other versions: one of tomorrow, which nobody can know yet, and one of the commit
//! before.
//!
//! The commit before is built by the gate, as `AUTOHEAL_PA_TEST_PREVIOUS` says; without it those tests say that they were
//! skipped.

use std::{fs, io::Write as _, os::unix::fs::DirBuilderExt, path::PathBuf};

use autoheal_pa::{emulator::Config, version};
use serde_json::Value;

use super::support::{Lab, PROGRAM, Running, kubectl};

#[tokio::test]
async fn it_says_what_it_is() {
    let lab = Lab::start(Config::default()).await;
    let line = lab.run(&["--version"]).await;
    let expected = format!("autoheal-pa {}\n", version::long());
    assert_eq!((line.assert_success(), line.stderr.as_str()), (expected.as_str(), ""));

    let text = lab.run(&["version"]).await;
    for part in [version::VERSION, version::TARGET, version::PROFILE] {
        assert!(text.assert_success().contains(part), "{text:#?}");
    }
    let json = lab.run(&["version", "--json"]).await;
    let json: Value = serde_json::from_str(json.assert_success()).unwrap();
    let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["commit", "demo", "profile", "target", "version"]);
    assert_eq!((&json["version"], &json["target"]), (&version::VERSION.into(), &version::TARGET.into()));
    // Builds for development have none, and tests are such.
    assert_eq!((&json["commit"], &json["demo"]), (&version::COMMIT.into(), &true.into()));
}

/// A manager of a version to come: what it says is new, and so is what it wants to be asked.
const TOMORROW: &str = r#"
import fcntl, json, os, signal, socket, sys
folder = sys.argv[1]
lock = open(os.path.join(folder, "lock"), "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.truncate(0)
lock.write(f"{os.getpid()}\n")
lock.flush()
socket_path = os.path.join(folder, "control.sock")
listener = socket.socket(socket.AF_UNIX)
listener.bind(socket_path)
os.chmod(socket_path, 0o600)
listener.listen()
signal.signal(signal.SIGTERM, lambda *_: (os.remove(socket_path), sys.exit(0)))
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    for line in connection.makefile():
        assert json.loads(line)["version"] == 1 and json.loads(line)["program"], line
        connection.sendall(b'{"version":2,"program":"9.0.0 (feedc0ffee12)","song":[]}\n')
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_is_not_understood_is_named_and_can_be_stopped() {
    let lab = Lab::start(Config::default()).await;
    let folder = lab.path("autoheal-pa/default");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).unwrap();
    let mut manager = Running::start(lab.bare_command("python3").args(["-c", TOMORROW]).arg(&folder));
    assert!(manager.prints("listening").await, "{}", manager.stderr_so_far());

    let said = format!(
        "the manager in `{}` is version 9.0.0 (feedc0ffee12), which does not understand this one, {}",
        folder.display(),
        version::short()
    );
    let hint = "`autoheal-pa down` stops it whatever its version, then start it again";
    for args in [&["status"][..], &["status", "--json", "--watch"], &["status", "--ready"], &["reload"]] {
        let ended = lab.run(args).await;
        assert_eq!(ended.code(), Some(1), "{args:?}: {ended:#?}");
        assert!(ended.stderr.contains(&said) && ended.stderr.contains(hint), "{args:?}: {ended:#?}");
    }
    // Another is not started beside it.
    let ended = lab.start_up(&[]).ended().await;
    assert!(ended.stderr.contains("a manager is already running as process"), "{ended:#?}");

    let ended = lab.run(&["down"]).await;
    assert_eq!(ended.assert_success(), "", "{ended:#?}");
    assert!(ended.stderr.contains("stopped"), "{ended:#?}");
    manager.ended().await.assert_success();
}

/// The program of the commit before this one, if the gate has built it.
#[expect(clippy::disallowed_methods, reason = "the gate says so by a variable")]
fn previous() -> Option<PathBuf> {
    let path = std::env::var_os("AUTOHEAL_PA_TEST_PREVIOUS").map(PathBuf::from);
    if path.is_none() {
        // Past the test runner, which keeps back what passing tests print.
        let _written =
            writeln!(std::io::stderr(), "SKIPPED: AUTOHEAL_PA_TEST_PREVIOUS names no program of another commit");
    }
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn this_program_and_the_one_before_understand_each_other() {
    let (Some(previous), Some(kubectl)) = (previous(), kubectl()) else { return };
    let this = PathBuf::from(PROGRAM);
    for (manager, command) in [(&previous, &this), (&this, &previous)] {
        let lab = Lab::start(Config::default()).await;
        let _guard = lab.background("default");
        let run =
            async |program: &PathBuf, args: &[&str]| Running::start(lab.command(program).args(args)).ended().await;
        run(manager, &["up", "--detach", "--base-port", "0"]).await.assert_success();

        let status = run(command, &["status", "--json"]).await;
        let status: Value = serde_json::from_str(status.assert_success()).unwrap();
        assert_eq!(status["state"], "active");
        run(command, &["status"]).await.assert_success();
        assert!(run(command, &["status", "--metrics"]).await.assert_success().contains("autoheal_pa_"));
        assert!(run(command, &["reload"]).await.assert_success().contains("kept 2"));
        assert!(run(command, &["env", "--shell", "bash"]).await.assert_success().contains("KUBECONFIG"));

        // Its contexts ask the manager by the program that has written them; another one is asked here.
        let token = ["token", "--cluster-name", "payments", "--region", "us-east-1", "--manager"];
        let folder = lab.path("autoheal-pa/default").display().to_string();
        let token = run(command, &[&token[..], &[folder.as_str()]].concat()).await;
        assert!(token.assert_success().contains("k8s-aws-v1."), "{token:#?}");
        let pods = Running::start(lab.command(&kubectl).env("KUBECONFIG", lab.kubeconfig()).args([
            "--context",
            "pa-payments",
            "get",
            "pods",
            "-A",
        ]));
        assert!(pods.ended().await.assert_success().contains("NAMESPACE"));

        run(command, &["down"]).await.assert_success();
        lab.assert_clean().await;
    }
}
