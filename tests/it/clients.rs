//! Which Kubernetes client works with the contexts of which `--kubeconfig-mode`: tried with each, and compared with the table
//! in the manual. With `AUTOHEAL_PA_TEST_WRITES_CLIENTS` set the table is written anew.

use std::{io::Write as _, path::PathBuf, process::Stdio, time::Duration};

use autoheal_pa::emulator::{ClusterConfig, Config};
use futures_util::{StreamExt, future::join_all};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, WatchEvent, WatchParams},
};
use tokio::{process::Command, time::timeout};

use super::{
    kubernetes::client,
    support::{Lab, on_path},
};

const MODES: [&str; 3] = ["direct", "proxy", "local-tls"];

/// What is tried.
const STEPS: [&str; 3] = ["list", "watch", "apply"];

/// Time for one step. A client that is led nowhere may try again and again.
const LIMIT: Duration = Duration::from_secs(90);

/// The chapter with the table.
const CHAPTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/manual/configuration.md");

/// The table's first line.
const HEAD: &str = "| client | `direct` | `proxy` | `local-tls` |";

/// A client, by how it is run.
enum Kind {
    Kubectl(PathBuf),
    Script {
        program: PathBuf,
        script: &'static str,
    },
    /// The one of this process.
    Kube,
}

/// All clients, with what they are called in the table. `None`: there are not all of them here.
async fn clients() -> Option<Vec<(String, Kind)>> {
    let mut clients = Vec::new();
    for minor in ["1.32", "1.37"] {
        let program = found(&format!("kubectl-{minor}"))?;
        let version = output(&program, &["version", "--client", "-o", "json"]).await;
        let version: serde_json::Value = serde_json::from_str(&version).unwrap();
        let version = version["clientVersion"]["gitVersion"].as_str().unwrap().to_owned();
        assert!(version.starts_with(&format!("v{minor}.")), "{version}");
        clients.push((format!("`kubectl` {}", version.trim_start_matches('v')), Kind::Kubectl(program)));
    }
    let python = found("kube-clients-python")?;
    for (package, script) in [
        ("kubernetes", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/clients/by_kubernetes.py")),
        ("kr8s", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/clients/by_kr8s.py")),
        ("lightkube", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/clients/by_lightkube.py")),
    ] {
        let ask = format!("import importlib.metadata as m; print(m.version({package:?}))");
        let version = output(&python, &["-c", &ask]).await;
        clients
            .push((format!("Python `{package}` {}", version.trim()), Kind::Script { program: python.clone(), script }));
    }
    let node = found("kube-clients-node")?;
    let ask = "console.log(JSON.parse(require('fs').readFileSync(process.env.CLIENTS + \
               '/node_modules/@kubernetes/client-node/package.json')).version)";
    let version = output(&node, &["-e", ask]).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/clients/by_client_node.mjs");
    clients.push((
        format!("JavaScript `@kubernetes/client-node` {}", version.trim()),
        Kind::Script { program: node, script },
    ));
    clients.push((format!("Rust `kube` {}", locked("kube")), Kind::Kube));
    Some(clients)
}

/// A program that the gate installs. In the gate it has to be there.
#[expect(clippy::disallowed_methods, reason = "the gate asks for it by a variable")]
fn found(program: &str) -> Option<PathBuf> {
    let found = on_path(program);
    let required = std::env::var_os("AUTOHEAL_PA_TEST_REQUIRES_CLIENTS").is_some();
    assert!(found.is_some() || !required, "{program} is not on the PATH");
    if found.is_none() {
        // Past the test runner, which keeps back what passing tests print.
        let _written = writeln!(std::io::stderr(), "SKIPPED: there is no {program} to try Kubernetes clients with");
    }
    found
}

async fn output(program: &PathBuf, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().await.unwrap();
    assert!(output.status.success(), "{program:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The version of a crate that this is built with.
fn locked(name: &str) -> String {
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
    let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \"")).unwrap();
    rest.split('"').next().unwrap().to_owned()
}

/// Tries one step, and says what went wrong.
async fn try_step(lab: &Lab, kind: &Kind, step: &str) -> Result<(), String> {
    match timeout(LIMIT, attempt(lab, kind, step)).await {
        Ok(outcome) => outcome,
        Err(_) => Err("it took too long".to_owned()),
    }
}

async fn attempt(lab: &Lab, kind: &Kind, step: &str) -> Result<(), String> {
    let kubeconfig = lab.kubeconfig();
    match kind {
        Kind::Kubectl(program) => {
            // A map of its own for each kubectl.
            let name = format!("by-{}", program.file_name().unwrap().to_str().unwrap());
            let manifest = lab.path(&name);
            let kubectl = |args: String| {
                let mut command = lab.bare_command(program);
                command.arg("--kubeconfig").arg(&kubeconfig).args(["--context", "pa-payments"]).args(args.split(' '));
                command
            };
            match step {
                "list" => run(kubectl("get pods -A".to_owned())).await.map(drop),
                "watch" => {
                    // What is there comes first, and then what changes.
                    let mut command = kubectl("get pods -A --watch-only -o name".to_owned());
                    let mut child = command.spawn().map_err(|error| error.to_string())?;
                    let mut line = String::new();
                    let mut stdout = tokio::io::BufReader::new(child.stdout.take().unwrap());
                    tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut line).await.unwrap();
                    if line.starts_with("pod/") { Ok(()) } else { Err(format!("it printed {line:?}")) }
                }
                _ => {
                    for value in ["one", "two"] {
                        let map = format!(
                            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  key: {value}\n"
                        );
                        std::fs::write(&manifest, map).unwrap();
                        run(kubectl(format!("apply -f {}", manifest.display()))).await?;
                    }
                    let stored = run(kubectl(format!("get configmap {name} -o jsonpath={{.data.key}}"))).await?;
                    if stored == "two" { Ok(()) } else { Err(format!("{stored:?} is stored")) }
                }
            }
        }
        Kind::Script { program, script } => {
            let mut command = lab.bare_command(program);
            command.arg(script).arg(kubeconfig).args(["pa-payments", step]);
            run(command).await.map(drop)
        }
        Kind::Kube => {
            let client = client(lab, "pa-payments").await;
            let pods: Api<Pod> = Api::all(client.clone());
            match step {
                "list" => {
                    let list = pods.list(&Default::default()).await.map_err(|error| error.to_string())?;
                    if list.items.is_empty() { Err("nothing is listed".to_owned()) } else { Ok(()) }
                }
                "watch" => {
                    let watch = pods.watch(&WatchParams::default(), "0").await.map_err(|error| error.to_string())?;
                    let mut changes = watch.boxed();
                    while let Some(event) = changes.next().await {
                        if let WatchEvent::Modified(_) = event.map_err(|error| error.to_string())? {
                            return Ok(());
                        }
                    }
                    Err("no change was seen".to_owned())
                }
                _ => {
                    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
                    let map = serde_json::json!({
                        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "by-kube" }, "data": { "key": "one" },
                    });
                    let params = PatchParams::apply("test").force();
                    let patched = maps.patch("by-kube", &params, &Patch::Apply(map)).await;
                    patched.map_err(|error| error.to_string())?;
                    let deleted = maps.delete("by-kube", &DeleteParams::default()).await;
                    deleted.map(drop).map_err(|error| error.to_string())
                }
            }
        }
    }
}

/// Runs a program to its end and returns what it has printed, or what went wrong.
async fn run(mut command: Command) -> Result<String, String> {
    let output = command.output().await.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Says what works.
fn cell(outcomes: &[Result<(), String>]) -> String {
    let works: Vec<_> =
        STEPS.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok()).map(|(step, _)| *step).collect();
    match works.len() {
        0 => "no".to_owned(),
        3 => "yes".to_owned(),
        _ => format!("only {}", works.join(" and ")),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "who runs it asks for it by a variable")]
async fn the_table_of_clients_is_what_they_do() {
    let Some(clients) = clients().await else { return };
    let mut rows: Vec<Vec<String>> = clients.iter().map(|(name, _)| vec![name.clone()]).collect();
    let mut said = String::new();
    for mode in MODES {
        let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
        let up = match mode {
            "proxy" => lab.up(&["--kubeconfig-mode", mode, "--proxy", "0"]).await,
            _ => lab.up(&["--kubeconfig-mode", mode]).await,
        };
        let tried = clients.iter().map(async |(name, kind)| {
            let mut outcomes = Vec::new();
            for step in STEPS {
                outcomes.push(try_step(&lab, kind, step).await);
            }
            (name, outcomes)
        });
        for (row, (name, outcomes)) in rows.iter_mut().zip(join_all(tried).await) {
            row.push(cell(&outcomes));
            for (step, outcome) in STEPS.iter().zip(outcomes) {
                if let Err(error) = outcome {
                    let last: Vec<_> = error.lines().rev().take(3).collect();
                    said.push_str(&format!("{mode}: {name}: {step}: {}\n", last.join(" | ")));
                }
            }
        }
        up.stop().await.assert_success();
    }
    for row in &rows {
        assert!(row[1..].iter().any(|cell| cell == "yes"), "no mode is for {}:\n{said}", row[0]);
    }
    let rows = rows.iter().map(|row| format!("| {} |\n", row.join(" | ")));
    let table = format!("{HEAD}\n|---|---|---|---|\n{}", rows.collect::<String>());
    let chapter = std::fs::read_to_string(CHAPTER).unwrap();
    let (before, rest) = chapter.split_once(HEAD).expect("the chapter has the table");
    let (_, after) = rest.split_once("\n\n").expect("something follows it");
    let found = format!("{before}{table}\n{after}");
    if std::env::var_os("AUTOHEAL_PA_TEST_WRITES_CLIENTS").is_some() {
        std::fs::write(CHAPTER, found).unwrap();
        return;
    }
    let same = found == chapter;
    assert!(
        same,
        "the manual's table is another; with AUTOHEAL_PA_TEST_WRITES_CLIENTS=1 it is written anew:\n{table}\n{said}"
    );
}
