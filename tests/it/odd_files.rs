//! Files that are not what they should be: pipes, devices, and what never ends. Nothing hangs on them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use autoheal_pa::emulator::{ClusterConfig, Config};

use super::support::{Lab, Running};

/// A pipe that nobody writes, and something that never ends.
fn odd(lab: &Lab) -> [PathBuf; 3] {
    let pipe = lab.path("pipe");
    if !pipe.exists() {
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        fs::create_dir(lab.path("folder")).unwrap();
    }
    [pipe, PathBuf::from("/dev/zero"), lab.path("folder")]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_that_is_read_or_written_has_to_be_a_regular_one() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    for file in odd(&lab) {
        let path = file.to_str().unwrap();
        for option in ["--config", "--kubeconfig", "--env-file", "--ca-bundle", "--web-identity-token-file"] {
            let ended = lab.run(&["up", "--base-port", "0", option, path]).await;
            assert!(matches!(ended.code(), Some(2 | 3)), "{option} {path}: {ended:#?}");
            let said = format!("`{path}` is not a regular file");
            let or_said = "it is not a regular file";
            assert!(
                ended.stderr.contains(&said) || ended.stderr.contains(or_said),
                "{option} {path}: {}",
                ended.stderr
            );
            assert!(ended.stderr.contains(path), "{option} {path}: {}", ended.stderr);
        }
        for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"] {
            let mut command = lab.program(&["clusters"]);
            let ended = Running::start(command.env(variable, path)).ended().await;
            assert!(matches!(ended.code(), Some(2 | 3)), "{variable} {path}: {ended:#?}");
            assert!(
                ended.stderr.contains(path) && ended.stderr.contains("regular file"),
                "{variable}: {}",
                ended.stderr
            );
        }
        let mut command = lab.program(&["env", "--github-env"]);
        let ended = Running::start(command.env("GITHUB_ENV", path)).ended().await;
        assert_eq!(ended.code(), Some(2), "GITHUB_ENV {path}: {ended:#?}");
        for args in [["config", "check", path], ["man", "--out", path]] {
            let ended = lab.run(&args).await;
            assert!(args[0] == "man" && path.ends_with("folder") || ended.code() == Some(2), "{args:?}: {ended:#?}");
        }
    }
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipes_in_the_manager_s_own_folder_hang_nobody() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    let dir = lab.path("autoheal-pa/default");
    for path in [lab.path("autoheal-pa"), dir.clone()] {
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    for name in ["lock", "log", "sessions", "kubeconfig"] {
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.join(name), rustix::fs::Mode::RWXU).unwrap();
    }
    for args in [&["up", "--base-port", "0"][..], &["up", "--detach", "--base-port", "0"], &["down"]] {
        let ended = lab.run(args).await;
        assert_eq!(ended.code(), Some(2), "{args:?}: {ended:#?}");
        assert!(ended.stderr.contains("lock` is not a regular file"), "{args:?}: {}", ended.stderr);
    }
    let mut logs = lab.program(&["logs"]);
    let ended = Running::start(logs.env_remove("HOME")).ended().await;
    assert!(ended.stderr.contains("log` is not a regular file"), "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_s_folders_are_for_their_owner_only() {
    let lab = Lab::start(Config { clusters: vec![], ..Config::default() }).await;
    let tmp = lab.path("tmp");
    fs::create_dir(&tmp).unwrap();
    let mut command = lab.program(&["demo", "--base-port", "0"]);
    let mut demo = Running::start(
        command
            .env("TMPDIR", &tmp)
            .args(["--", "sh", "-c", "echo ready; read -r line"])
            .stdin(std::process::Stdio::piped()),
    );
    assert!(demo.prints("ready").await);
    let modes = |dir: &Path| -> Vec<u32> {
        fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().permissions().mode() & 0o777)
            .collect()
    };
    assert_eq!(modes(&tmp), [0o700, 0o700]);
    drop(demo.stdin());
    demo.ended().await;
    assert!(modes(&tmp).is_empty());
}
