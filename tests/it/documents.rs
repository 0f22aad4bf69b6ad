//! What the README, the manual, the help and the files in `examples/` say, checked against the program without running it.

use std::{fs, path::Path, process::Command};

use autoheal_pa::{cli::Cli, emulator::Config};
use clap::{CommandFactory, Parser};
use k8s_openapi::api::core::v1::{Pod, Probe, ServiceAccount};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::support::{Lab, PROGRAM, Running};

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The chapters of the manual, by their paths.
fn chapters() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manual");
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut chapters: Vec<_> = names.map(|name| format!("src/manual/{name}")).collect();
    chapters.sort();
    chapters
}

/// Splits a script into its simple commands, each into its words, as a shell would, as far as our examples go. Variables
/// stay as they are; redirections and comments are left out; a command that is substituted is one of its own.
fn commands(script: &str) -> Vec<Vec<String>> {
    let script = script.replace("\\\n", " ").replace("\"$(", "$(").replace(")\"", ")").replace("$(", " ( ");
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut redirected = false;
    let mut chars = script.chars().peekable();
    while let Some(c) = chars.next() {
        let ends_word = c.is_whitespace() || "|&;()<>".contains(c);
        if ends_word && let Some(word) = word.take() {
            let is_descriptor = matches!(c, '<' | '>') && word.bytes().all(|byte| byte.is_ascii_digit());
            if !std::mem::take(&mut redirected) && !is_descriptor {
                commands.last_mut().unwrap().push(word);
            }
        }
        match c {
            '\n' | '|' | ';' | '(' | ')' => commands.push(Vec::new()),
            // `>&2` and `&>` are about the same file.
            '&' if redirected || chars.peek() == Some(&'>') => {}
            '&' => commands.push(Vec::new()),
            '<' | '>' => redirected = true,
            '\'' | '"' => {
                let quoted: String = chars.by_ref().take_while(|other| *other != c).collect();
                word.get_or_insert_default().push_str(&quoted);
            }
            '#' if word.is_none() => while chars.next_if(|other| *other != '\n').is_some() {},
            c if c.is_whitespace() => {}
            c => word.get_or_insert_default().push(c),
        }
    }
    commands.last_mut().unwrap().extend(word.filter(|_| !redirected));
    commands.retain(|words| !words.is_empty());
    commands
}

/// The arguments of every call of this program in a script, with the program's name.
fn calls(script: &str) -> Vec<Vec<String>> {
    // What may stand before a program: words of the shell, and programs that run another.
    const BEFORE: [&str; 11] = ["$", "if", "!", "then", "else", "do", "exec", "eval", "nohup", "sudo", "{"];
    let is_before = |word: &str| BEFORE.contains(&word) || word.split_once('=').is_some_and(|(name, _)| is_name(name));
    let is_program = |word: &str| word == "$program" || word.rsplit('/').next() == Some("autoheal-pa");
    let calls = commands(script).into_iter().filter_map(|words| {
        let start = words.iter().position(|word| !is_before(word))?;
        // What a script hands on is not known.
        let call = words[start..].iter().filter(|word| *word != "$@").cloned();
        is_program(&words[start]).then(|| call.collect())
    });
    calls.collect()
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Code blocks that show commands, and code spans that are commands of this program.
fn scripts_of_page(page: &str) -> Vec<String> {
    let mut scripts = Vec::new();
    for (index, part) in page.split("```").enumerate() {
        if index % 2 == 1 {
            let (language, code) = part.split_once('\n').unwrap_or_default();
            match language.trim() {
                // Of a session at a terminal only what was typed, with the lines it goes on for.
                "console" => {
                    let mut typed = false;
                    let lines = code.lines().filter(|line| {
                        let shown = typed || line.trim_start().starts_with("$ ");
                        typed = shown && line.ends_with('\\');
                        shown
                    });
                    scripts.push(lines.map(|line| format!("{line}\n")).collect());
                }
                "sh" | "bash" => scripts.push(code.to_owned()),
                _ => {}
            }
        } else {
            scripts.extend(spans(part));
        }
    }
    scripts
}

fn spans(text: &str) -> impl Iterator<Item = String> {
    let spans = text.split('`').skip(1).step_by(2);
    spans.filter(|span| span.starts_with("autoheal-pa ")).map(str::to_owned)
}

/// The steps of a workflow that are scripts.
fn scripts_of_workflow(workflow: &serde_yaml::Value) -> Vec<String> {
    let jobs = workflow["jobs"].as_mapping().unwrap().values();
    let steps = jobs.flat_map(|job| job["steps"].as_sequence().unwrap());
    steps.filter_map(|step| step["run"].as_str().map(str::to_owned)).collect()
}

/// The files in a folder and those in it, by their paths.
fn files_below(folder: &str) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// All scripts that are shown anywhere, with where they are.
fn scripts() -> Vec<(String, String)> {
    let mut scripts = Vec::new();
    let mut add =
        |origin: &str, found: Vec<String>| scripts.extend(found.into_iter().map(|text| (origin.to_owned(), text)));
    for page in ["README.md", "tests/benches/README.md"].map(str::to_owned).into_iter().chain(chapters()) {
        add(&page, scripts_of_page(&file(&page)));
    }
    add("sandbox-start.sh", vec![file("examples/sandbox-start.sh")]);
    let workflow = serde_yaml::from_str(&file("examples/github-actions.yml")).unwrap();
    add("github-actions.yml", scripts_of_workflow(&workflow));
    let jobs: serde_yaml::Value = serde_yaml::from_str(&file("examples/gitlab-ci.yml")).unwrap();
    for job in jobs.as_mapping().unwrap().values() {
        for lines in ["before_script", "script", "after_script"].iter().filter_map(|key| job[*key].as_sequence()) {
            add("gitlab-ci.yml", lines.iter().map(|line| line.as_str().unwrap().to_owned()).collect());
        }
    }
    let service = file("examples/autoheal-pa.service");
    let starts = service.lines().filter_map(|line| line.strip_prefix("ExecStart="));
    add("autoheal-pa.service", starts.map(str::to_owned).collect());
    let mut examples = vec!["tests/fuzz/README.md".to_owned()];
    examples.extend(files_below("examples"));
    for name in examples {
        // Comments wrap.
        let text = file(&name).replace("\n# ", " ").replace("\n//! ", " ");
        add(&name, spans(&text).collect());
    }
    let mut program = Cli::command();
    program.build();
    for command in std::iter::once(&program).chain(program.get_subcommands()) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        add(
            &format!("help of {}", command.get_name()),
            vec![help.lines().skip(1).map(|line| format!("{line}\n")).collect()],
        );
    }
    scripts
}

#[test]
fn every_command_line_that_is_shown_is_one() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for (origin, script) in scripts() {
        for call in calls(&script) {
            count += 1;
            if call.iter().any(|word| word.contains('…')) {
                continue;
            }
            if let Err(error) = Cli::try_parse_from(&call)
                && error.exit_code() != 0
            {
                wrong.push(format!("{origin}: {}\n{error}", call.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 60, "{count}: they are not found any more");
}

#[test]
fn scripts_are_read_as_a_shell_does() {
    let found = |script: &str| calls(script).iter().map(|words| words[1..].join(" ")).collect::<Vec<_>>();
    assert_eq!(found("$ autoheal-pa up --detach 2> log > \"$x/y\" &\necho autoheal-pa"), ["up --detach"]);
    assert_eq!(
        found("eval \"$(autoheal-pa env)\" && kubectl get nodes | autoheal-pa status --json | jq ."),
        ["env", "status --json"]
    );
    assert_eq!(
        found("if ! \"$program\" status > /dev/null 2>&1; then\n  A=b /x/autoheal-pa down # autoheal-pa up\nfi"),
        ["status", "down"]
    );
    assert_eq!(found("autoheal-pa exec \\\n  -- sh -c 'a && b; c'"), ["exec -- sh -c a && b; c"]);
    assert_eq!(found("cargo install autoheal-pa; cp /usr/local/bin/autoheal-pa /shared/"), [""; 0]);
    let page =
        "a `autoheal-pa reload` b\n```console\n$ autoheal-pa policy \\\n    --access-entry\nautoheal-pa says\n```\n";
    let scripts = scripts_of_page(page);
    assert_eq!(
        scripts.iter().flat_map(|script| found(script)).collect::<Vec<_>>(),
        ["reload", "policy --access-entry"]
    );
}

#[test]
fn the_manual_names_the_client_version_that_is_announced() {
    let version = autoheal_pa::route::ssm::proto::handshake::CLIENT_VERSION;
    let page = file("src/manual/troubleshooting.md");
    assert!(page.contains(&format!("| client version {version} in the agent's log | ")), "{version}");
}

#[test]
fn the_readme_takes_two_minutes() {
    let page = file("README.md");
    let lines = page.lines().count();
    assert!(lines <= 200, "{lines} lines: what is not for everybody belongs into a chapter of src/manual");
    // The first things that are typed.
    for command in ["$ cargo run --release -- demo -- kubectl ", "$ cargo test --locked\n"] {
        assert!(page.contains(command), "{command}");
    }
    for chapter in chapters() {
        let name = chapter.rsplit('/').next().unwrap().trim_end_matches(".md");
        assert!(page.contains(&format!("| [{name}]({chapter}) | ")), "{chapter} is in no row");
        Cli::try_parse_from(["autoheal-pa", "man", name]).unwrap();
    }
}

/// What a heading can be linked by.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

#[test]
fn links_of_the_pages_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for page in ["README.md", "tests/benches/README.md", "tests/interop/README.md", "tests/fuzz/README.md"] {
        let text = file(page);
        let links = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        for link in links.filter(|link| !link.starts_with("https://")) {
            let (path, wanted) = link.split_once('#').unwrap_or((link, ""));
            let path = if path.is_empty() { root.join(page) } else { root.join(page).parent().unwrap().join(path) };
            assert!(path.exists(), "{page}: {link}");
            if !wanted.is_empty() {
                let text = fs::read_to_string(path).unwrap();
                let mut headings = text.lines().filter_map(|line| line.strip_prefix('#'));
                let found = headings.any(|heading| anchor(heading.trim_start_matches('#').trim()) == wanted);
                assert!(found, "{page}: {link}");
            }
        }
    }
}

#[test]
fn the_readme_shows_five_of_the_figures() {
    let (readme, figures) = (file("README.md"), file("tests/benches/README.md"));
    let speed = readme.split("\n## Speed\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<_> = speed.lines().filter(|line| line.starts_with("| ")).skip(2).collect();
    assert_eq!(rows.len(), 5, "{rows:#?}");
    for row in rows {
        assert!(figures.lines().any(|line| line == row), "it is not in tests/benches/README.md: {row}");
    }
}

#[test]
fn every_profile_that_is_named_is_there() {
    let manifest = file("Cargo.toml");
    for (origin, script) in scripts() {
        for (profile, _) in script.match_indices("--profile ").filter(|(at, _)| script[..*at].contains("cargo ")) {
            let name = script[profile..].split_whitespace().nth(1).unwrap();
            assert!(manifest.contains(&format!("\n[profile.{name}]\n")), "{origin}: {name}");
        }
    }
}

#[test]
fn the_scripts_of_the_workflow_are_bash() {
    let workflow: serde_yaml::Value = serde_yaml::from_str(&file("examples/github-actions.yml")).unwrap();
    for script in scripts_of_workflow(&workflow) {
        assert_is_bash(&script);
    }
}

/// The image that everything is built in.
const TOOLCHAIN: &str =
    "rust:1.95-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082";

#[test]
fn what_the_examples_take_from_others_is_named_by_digest() {
    let is_digest = |text: &str, len: usize| text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let container =
        file("examples/devcontainer/devcontainer.json").replace("\"image\": \"", "image: ").replace("\",", "");
    let workflows = ["ci", "release"].map(|name| file(&format!(".github/workflows/{name}.yml"))).concat();
    let images = [file("examples/Dockerfile"), file("examples/sidecar.yaml"), container, workflows].join("\n");
    let images = images
        .lines()
        .filter_map(|line| line.trim().strip_prefix("FROM ").or_else(|| line.trim().strip_prefix("image: ")));
    // The one that is made here has none before it is pushed.
    for image in images.filter(|image| *image != "autoheal-pa") {
        let digest = image.split_once("@sha256:").map_or("", |(_, rest)| rest.split(' ').next().unwrap());
        assert!(is_digest(digest, 64), "{image}");
        // What builds here is what builds there.
        assert!(!image.starts_with("rust:") || image.starts_with(TOOLCHAIN), "{image}");
    }
}

#[test]
fn the_script_is_bash() {
    assert_is_bash(&file("examples/sandbox-start.sh"));
}

#[track_caller]
fn assert_is_bash(script: &str) {
    let output = Command::new("bash").args(["-n", "-c", script]).output().expect("the gate has bash");
    assert!(output.status.success(), "{}\n{script}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_unit_is_one() {
    let unit = file("examples/autoheal-pa.service");
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
    assert_eq!((value("Type"), value("KillSignal")), ("notify", "SIGTERM"));
    assert_eq!(value("ExecReload"), "/bin/kill -HUP $MAINPID");
    // The bound of a stop, and of a start by default with what comes before it.
    assert!(value("TimeoutStopSec").parse::<u64>().unwrap() > 20);
    assert!(value("TimeoutStartSec").parse::<u64>().unwrap() > 60);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("autoheal-pa.service");
    fs::write(&path, unit.replace("/usr/local/bin/autoheal-pa", PROGRAM)).unwrap();
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--user", "--man=no"])
        .arg(&path)
        .env("XDG_RUNTIME_DIR", dir.path())
        .output();
    // Where there is no systemd, there are no units either.
    if let Ok(output) = verify {
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}

#[test]
fn the_agent_is_one() {
    const AS_JSON: &str = "import json, plistlib, sys; print(json.dumps(plistlib.load(open(sys.argv[1], 'rb'))))";
    let output = Command::new("python3").args(["-c", AS_JSON, "examples/autoheal-pa.plist"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let agent: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&agent["Label"], &agent["RunAtLoad"]), (&"autoheal-pa".into(), &true.into()));
    assert_eq!(agent["KeepAlive"], serde_json::json!({ "SuccessfulExit": false }));
    assert_eq!(agent["Umask"], 0o077);
    // The bound of a stop.
    assert!(agent["ExitTimeOut"].as_u64().unwrap() > 20);
    let arguments: Vec<&str> =
        agent["ProgramArguments"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(arguments, ["/usr/local/bin/autoheal-pa", "up"]);
    for log in ["StandardOutPath", "StandardErrorPath"] {
        assert!(agent[log].as_str().unwrap().starts_with("/Users/you/"), "what is replaced: {log}");
    }
    // What has a meaning for launchd: see launchd.plist(5).
    let known = [
        "Label",
        "ProgramArguments",
        "EnvironmentVariables",
        "RunAtLoad",
        "KeepAlive",
        "ThrottleInterval",
        "ExitTimeOut",
        "Umask",
        "StandardOutPath",
        "StandardErrorPath",
    ];
    for key in agent.as_object().unwrap().keys() {
        assert!(known.contains(&key.as_str()), "{key}");
    }
}

/// The lines of a Dockerfile, continued ones joined, without comments.
fn instructions(dockerfile: &str) -> Vec<(String, String)> {
    let lines = dockerfile.replace("\\\n", " ");
    let lines = lines.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, rest)| (name.to_owned(), rest.trim().to_owned()))
        .collect()
}

#[test]
fn the_image_runs_without_root_and_home() {
    let instructions = instructions(&file("examples/Dockerfile"));
    let known = ["FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD"];
    assert!(instructions.iter().all(|(name, _)| known.contains(&name.as_str())), "{instructions:?}");
    let last = |wanted: &str| &instructions.iter().rev().find(|(name, _)| name == wanted).unwrap().1;
    let stages: Vec<_> = instructions.iter().filter(|(name, _)| name == "FROM").collect();
    assert!(stages.len() == 2 && stages[0].1.ends_with(" AS build"), "{stages:?}");
    // The toolchain can build this, and what is built is what runs.
    let toolchain = stages[0].1.strip_prefix("rust:").unwrap().split('-').next().unwrap();
    let version = |text: &str| text.split('.').map(|part| part.parse().unwrap()).collect::<Vec<u32>>();
    assert!(version(toolchain) >= version(env!("CARGO_PKG_RUST_VERSION")), "{toolchain}");
    assert!(stages.iter().all(|(_, image)| image.contains("bookworm")), "both have the same C library");
    assert!(instructions.iter().all(|(_, rest)| rest != ". ."), "what is in the folder is not all for the image");
    assert!(
        instructions
            .iter()
            .any(|(name, rest)| name == "RUN" && rest.contains("cargo build") && rest.contains("--locked"))
    );

    let user = last("USER").split(':').next().unwrap();
    assert!(user.parse::<u32>().is_ok_and(|uid| uid > 0), "Kubernetes can tell only a number from root");
    let words = |text: &str| serde_json::from_str::<Vec<String>>(text).unwrap();
    let call = [words(last("ENTRYPOINT")), words(last("CMD"))].concat();
    Cli::try_parse_from(&call).unwrap();
    let runtime = last("ENV").strip_prefix("XDG_RUNTIME_DIR=").unwrap();
    assert!(call.iter().any(|word| word.starts_with(runtime)), "the kubeconfig needs a place");
}

/// Reads a manifest, and makes sure that Kubernetes knows everything that is in it.
fn known<T: DeserializeOwned + Serialize>(manifest: &serde_yaml::Value) -> T {
    let given = serde_json::to_value(manifest).unwrap();
    let read: T = serde_json::from_value(given.clone()).unwrap();
    assert_kept(&given, &serde_json::to_value(&read).unwrap(), "");
    read
}

#[track_caller]
fn assert_kept(given: &Value, kept: &Value, place: &str) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, value) in given {
                let kept = kept.get(key).unwrap_or_else(|| panic!("`{place}.{key}` is not known"));
                assert_kept(value, kept, &format!("{place}.{key}"));
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            assert_eq!(given.len(), kept.len(), "{place}");
            for (index, (given, kept)) in given.iter().zip(kept).enumerate() {
                assert_kept(given, kept, &format!("{place}[{index}]"));
            }
        }
        (given, kept) => assert_eq!(given, kept, "{place}"),
    }
}

#[test]
fn the_sidecar_shares_what_both_containers_need() {
    let text = file("examples/sidecar.yaml");
    let documents: Vec<serde_yaml::Value> = serde_yaml::Deserializer::from_str(&text)
        .map(|document| serde_yaml::Value::deserialize(document).unwrap())
        .map(|mut document| {
            document.apply_merge().unwrap();
            document
        })
        .collect();
    let account: ServiceAccount = known(&documents[0]);
    let pod: Pod = known(&documents[1]);
    let spec = pod.spec.unwrap();
    assert_eq!(spec.service_account_name, account.metadata.name);
    assert_eq!(spec.security_context.as_ref().unwrap().run_as_non_root, Some(true));

    let init = spec.init_containers.as_ref().unwrap();
    let sidecar = init.iter().find(|container| container.name == "autoheal-pa").unwrap();
    assert_eq!(sidecar.restart_policy.as_deref(), Some("Always"));
    assert!(sidecar.readiness_probe.is_some() && sidecar.startup_probe.is_some());
    let volumes: Vec<_> = spec.volumes.as_ref().unwrap().iter().map(|volume| volume.name.as_str()).collect();
    for container in init.iter().chain(&spec.containers) {
        let security = container.security_context.as_ref().unwrap();
        assert_eq!(
            (security.read_only_root_filesystem, security.allow_privilege_escalation),
            (Some(true), Some(false))
        );
        let mounts = container.volume_mounts.as_ref().unwrap();
        assert!(mounts.iter().all(|mount| volumes.contains(&mount.name.as_str())), "{mounts:?}");
        assert!(mounts.iter().any(|mount| mount.mount_path == "/shared"), "{}", container.name);
    }
    // `token` has to find the same manager, and else the same identity.
    assert_eq!(spec.containers[0].env, sidecar.env);
    let env = sidecar.env.as_ref().unwrap();
    let value =
        |name: &str| env.iter().find(|variable| variable.name == name).and_then(|variable| variable.value.clone());
    assert_eq!(value("XDG_RUNTIME_DIR").as_deref(), Some("/shared/run"));
    let token = value("AWS_WEB_IDENTITY_TOKEN_FILE").unwrap();
    let mounts = sidecar.volume_mounts.as_ref().unwrap();
    assert!(mounts.iter().any(|mount| Path::new(&token).parent() == Some(Path::new(&mount.mount_path))), "{token}");

    let probe = |probe: &Option<Probe>| probe.as_ref().unwrap().exec.as_ref().unwrap().command.clone().unwrap();
    let up = [sidecar.command.clone().unwrap(), sidecar.args.clone().unwrap()].concat();
    let calls = [up.clone(), probe(&sidecar.startup_probe), probe(&sidecar.readiness_probe)];
    for call in calls {
        Cli::try_parse_from(&call).unwrap_or_else(|error| panic!("{}: {error}", call.join(" ")));
        assert_eq!(call[0], up[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_files_are_right() {
    let lab = Lab::start(Config::default()).await;
    for name in ["config.yaml", "config-several-regions.yaml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        let mut check = lab.bare_command(PROGRAM);
        check.args(["config", "check"]).arg(&path);
        Running::start(&mut check).ended().await.assert_success();
    }
}
