//! The last link, which is not between here and AWS: what kubectl runs for a token has to be there and to give one.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{process::Command, task::spawn_blocking, time::timeout};

use crate::{
    clock::Clock,
    doctor::{Entry, Status},
    kubeconfig::{self, Exec, KubeconfigError},
    util::{
        peer_text::{PeerText, sentence, with_causes},
        quote::{Word, command},
        read::read_pipe,
    },
};

/// Time for a token. The plugin itself waits for the manager and for AWS.
const LIMIT: Duration = Duration::from_secs(30);

/// Most that is read of what a plugin prints, in bytes: many times a credential.
const MAX_OUTPUT_LEN: u64 = 256 << 10;

/// Runs what the contexts of a manager in a kubeconfig have kubectl run, each program once. Without any, or without
/// the file, there is nothing to say.
///
/// # Cancel safety
/// When it is dropped the program that runs is ended.
pub(super) async fn check(kubeconfig: &Path, manager: &str) -> Vec<Entry> {
    let (path, manager) = (kubeconfig.to_owned(), manager.to_owned());
    let plugins = match spawn_blocking(move || kubeconfig::plugins_of(&path, &manager)).await {
        Ok(Ok(plugins)) => plugins,
        Ok(Err(error)) => return vec![unreadable(kubeconfig, &error)],
        // It does not panic, and is not cancelled.
        Err(_) => return Vec::new(),
    };
    let mut entries = Vec::new();
    for plugin in plugins.into_iter().map(Exec::starting_nothing) {
        let clock = Clock::start();
        let outcome = run(&plugin).await;
        let took = clock.now().mono;
        entries.push(entry(kubeconfig, &plugin, outcome, took));
    }
    entries
}

/// Runs a plugin as kubectl does. Returns what is wrong.
async fn run(plugin: &Exec) -> Result<(), String> {
    let mut command = Command::new(&plugin.command);
    command.args(&plugin.args).envs(plugin.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let failed = |error| with_causes("it cannot be run".to_owned(), &error);
    let mut child = command.spawn().map_err(failed)?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let ended = async { tokio::join!(read_pipe(out, MAX_OUTPUT_LEN), read_pipe(err, MAX_OUTPUT_LEN), child.wait()) };
    let Ok((out, err, status)) = timeout(LIMIT, ended).await else {
        return Err(format!("it did not answer within {} s", LIMIT.as_secs()));
    };
    let status = status.map_err(failed)?;
    if !status.success() {
        return Err(format!("{status}: {}", PeerText::from_bytes(err.expose())));
    }
    let answer: Value = serde_json::from_slice(out.expose()).unwrap_or_default();
    let has_token = answer["kind"] == "ExecCredential" && answer["status"]["token"].is_string();
    if has_token { Ok(()) } else { Err("its output is not an ExecCredential".to_owned()) }
}

fn unreadable(kubeconfig: &Path, error: &KubeconfigError) -> Entry {
    Entry {
        id: "plugin".to_owned(),
        title: "kubectl's plugin".to_owned(),
        status: Status::Failed,
        region: None,
        cluster: None,
        target: None,
        tried: format!("to read `{}`", kubeconfig.display()),
        answer: Some(sentence(error)),
        meaning: Some("the contexts in it cannot be used, and `up` will not write to it".to_owned()),
        fixes: vec!["fix or move the file, or give another with `--kubeconfig`".to_owned()],
        duration_ms: 0,
    }
}

fn entry(kubeconfig: &Path, plugin: &Exec, outcome: Result<(), String>, took: Duration) -> Entry {
    let words: Vec<_> =
        std::iter::once(&plugin.command).chain(&plugin.args).map(|word| Word::from(word).to_string()).collect();
    let (status, answer, meaning, fixes) = match outcome {
        Ok(()) => (Status::Ok, "it gives a token".to_owned(), None, Vec::new()),
        Err(wrong) => {
            let meaning = format!(
                "kubectl runs this for each context in `{}` and gets no token; the path is the one that `up` was started with",
                kubeconfig.display()
            );
            let fixes = vec![
                command!("ls -l {}", plugin.command),
                "start `up` again from a permanent path: it then writes that path".to_owned(),
            ];
            (Status::Failed, wrong, Some(meaning), fixes)
        }
    };
    Entry {
        id: "plugin".to_owned(),
        title: "kubectl's plugin".to_owned(),
        status,
        region: None,
        cluster: None,
        target: None,
        tried: format!("to run `{}`", words.join(" ")),
        answer: Some(answer),
        meaning,
        fixes,
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::{
        cluster::{Cluster, Destination, Origin},
        kubeconfig::{ContextEntry, Server, Update, User},
    };

    #[tokio::test]
    async fn the_command_that_kubectl_runs_is_run() {
        let dir = tempfile::tempdir().unwrap();
        let (path, program) = (dir.path().join("config"), dir.path().join("autoheal-pa"));
        assert!(check(&path, "default").await.is_empty());
        let exec = Exec {
            command: program.to_str().unwrap().to_owned(),
            args: ["token", "--cluster-name=a", "--manager=/run/default"].map(str::to_owned).into(),
            env: vec![("TOKEN".to_owned(), "t".to_owned())],
        };
        let cluster = Cluster {
            name: "a".to_owned(),
            region: "us-east-1".to_owned(),
            account: "123456789012".to_owned(),
            id: String::new(),
            endpoint: Destination { host: "a.example".to_owned(), port: 443 },
            certificate_authority: Some("Q0E=".to_owned()),
            origin: Origin::Eks { token_name: "a".to_owned() },
            vpc: None,
        };
        let context =
            ContextEntry { name: "pa-a".to_owned(), cluster, server: Server::Tunnel(1), user: User::Own(exec) };
        let update =
            Update { manager: "default", contexts: &[context], keeps_others: false, set_current: false, beside: &[] };
        kubeconfig::write(&path, &update).unwrap();
        let examine = async |script: Option<&str>| {
            if let Some(script) = script {
                // Written elsewhere, so that no other thread of the tests holds it open while it is run.
                fs::write(dir.path().join("new"), format!("#!/bin/sh\n{script}\n")).unwrap();
                fs::set_permissions(dir.path().join("new"), fs::Permissions::from_mode(0o700)).unwrap();
                fs::rename(dir.path().join("new"), &program).unwrap();
            }
            check(&path, "default").await.swap_remove(0)
        };
        // As after an upgrade that has removed the file.
        let gone = examine(None).await;
        assert_eq!(gone.status, Status::Failed);
        assert!(gone.answer.unwrap().starts_with("it cannot be run: "), "{:?}", gone.tried);
        let script = r#"printf '{"kind":"ExecCredential","status":{"token":"%s"}}' "$TOKEN""#;
        assert_eq!(examine(Some(script)).await.status, Status::Ok);
        let refused = examine(Some("printf 'error: no \\033[1mcredentials\\n' >&2; exit 3")).await;
        assert_eq!(refused.answer.as_deref(), Some("exit status: 3: error: no [1mcredentials"));
        assert_eq!(examine(Some("echo hello")).await.answer.as_deref(), Some("its output is not an ExecCredential"));
        // One that never stops to print is not waited for.
        let endless = examine(Some("exec cat /dev/zero")).await;
        assert!(endless.answer.as_deref().unwrap().starts_with("signal: 13"), "{endless:?}");
        fs::write(&path, "kind: Config\nusers: [\n").unwrap();
        let unreadable = check(&path, "default").await.swap_remove(0);
        assert_eq!(unreadable.status, Status::Failed);
        assert_eq!(unreadable.tried, format!("to read `{}`", path.display()));
        assert!(unreadable.answer.as_deref().unwrap().contains("line 2, column 8"), "{unreadable:?}");
    }
}
