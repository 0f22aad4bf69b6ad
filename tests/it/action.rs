//! The action in `.github/actions`, run as the runner of GitHub Actions runs it, with the Node.js that it has.

mod checks;
mod host;
mod install;
mod runner;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use autoheal_pa::emulator::{Config, SessionState};
use rustix::process::{Pid, Signal, kill_process};

use super::support::{Lab, PROGRAM, Running, kubectl, on_path};
pub(crate) use host::{Answer, Host};
pub(crate) use install::release;
use runner::{Job, Step};

const BASTION: &str = "i-0dc03fbcae2a87472";

/// A program that the gate installs for these tests, if there is one. In the gate there has to be.
#[expect(clippy::disallowed_methods, reason = "the gate asks for it by a variable")]
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let found = on_path(name);
    let required = std::env::var_os("AUTOHEAL_PA_TEST_REQUIRES_ACTIONS").is_some();
    assert!(found.is_some() || !required, "{name} is not on the PATH");
    found
}

/// A program in the place of this one, whose commands end as told.
const STAND_IN: &str = "#!/bin/sh
case $1 in
    --version) echo autoheal-pa 0.1.0 ;;
    up) UP ;;
    status) STATUS ;;
    logs) echo 'what the manager said' ;;
    down) DOWN ;;
esac
";

const UP: &str = "echo KUBECONFIG=/of/up >> \"$GITHUB_ENV\"";
const STATUS: &str = "echo '{\"log\":null,\"tunnels\":[{\"context\":\"pa-a\",\"forward\":null,\"port\":1}]}'";

/// Writes a program whose `up` and `down` are these commands of a shell.
fn stand_in(folder: &Path, up: &str, down: &str) -> PathBuf {
    let path = folder.join("stand-in");
    let script = STAND_IN.replace("UP", up).replace("STATUS", STATUS).replace("DOWN", down);
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// What every use of the real program needs: itself, who to be, and where to go, on ports that nobody has.
fn real(lab: &Lab) -> Vec<(&'static str, String)> {
    vec![
        ("path", PROGRAM.to_owned()),
        ("role-arn", lab.emulator.role_arn()),
        ("bastion", BASTION.to_owned()),
        ("args", "--base-port=0".to_owned()),
    ]
}

fn with<'a>(inputs: &'a [(&'static str, String)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let inputs = inputs.iter().map(|(name, value)| (*name, value.as_str()));
    let kept = inputs.filter(|(name, _)| more.iter().all(|(other, _)| other != name));
    kept.chain(more.iter().copied()).collect()
}

/// The manager of a step.
fn background(lab: &Lab, step: &Step) -> super::support::Background {
    lab.background(&step.outputs["name"])
}

#[tokio::test(flavor = "multi_thread")]
async fn opens_tunnels_for_the_steps_that_follow_and_closes_them() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    lab.emulator.route("db.internal:5432", Host::start(|_, _| Answer::Status(404)).await.address);
    let inputs = real(&lab);
    let more = [("clusters", "search, payments"), ("forwards", "db=db.internal:5432"), ("region", "us-east-1")];
    let step = job.uses(&with(&inputs, &more)).await;
    step.assert_success();
    let manager = background(&lab, &step);
    assert_eq!(step.outputs["contexts"], "pa-search\npa-payments");
    let forwards = &step.outputs["forwards"];
    assert!(forwards.starts_with("db=127.0.0.1:") && forwards.lines().count() == 1, "{forwards}");
    assert_eq!(job.variables["KUBECONFIG"], step.outputs["kubeconfig"]);
    for session in lab.emulator.sessions() {
        assert_eq!(session.reason.as_deref(), Some("example/shop run 6120349"));
    }

    // It has what a step has, and no more.
    let pid = manager.pid().unwrap().as_raw_nonzero();
    let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    assert!(environment.contains("ACTIONS_ID_TOKEN_REQUEST_TOKEN="), "{environment}");
    for secret in ["INPUT_", "of-the-runtime"] {
        assert!(!environment.contains(secret), "{environment}");
    }

    // Later steps find program and contexts, and one of them fails.
    let status = job.run(&format!("autoheal-pa status --name '{}'", step.outputs["name"])).await;
    assert!(status.ended.assert_success().contains("pa-payments"), "{status:#?}");
    if kubectl().is_some() {
        let pods = job.run("kubectl get pods -A --context pa-payments").await;
        assert!(pods.ended.assert_success().contains("kube-system"), "{pods:#?}");
    }
    let failed = job
        .run("echo HOME=/nowhere >> \"$GITHUB_ENV\"; echo XDG_RUNTIME_DIR=/nowhere >> \"$GITHUB_ENV\"; exit 3")
        .await;
    assert_eq!(failed.ended.code(), Some(3));

    let temp = job.folder.join("temp/autoheal-pa");
    let log = lab.path(&format!(".local/state/autoheal-pa/{}.log", step.outputs["name"]));
    assert!(log.exists(), "{}", log.display());
    let steps = job.end().await;
    steps[0].assert_success();
    assert!(steps[0].ended.stdout.contains("session established"), "the log is shown: {steps:#?}");
    manager.ended().await;
    lab.assert_clean().await;
    assert_eq!(fs::read_dir(temp).unwrap().count(), 0, "nothing is left for another job");
    assert!(!log.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_uses_in_a_job_do_not_meet() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let inputs = real(&lab);
    let first = job.uses(&with(&inputs, &[("clusters", "payments")])).await;
    first.assert_success();
    let second = job.uses(&with(&inputs, &[("clusters", "search")])).await;
    second.assert_success();
    let managers = [background(&lab, &first), background(&lab, &second)];
    let both = [&second, &first].map(|step| step.outputs["kubeconfig"].as_str()).join(":");
    assert_eq!(job.variables["KUBECONFIG"], both);
    if kubectl().is_some() {
        let contexts = job.run("kubectl config current-context; kubectl config get-contexts --output=name").await;
        assert_eq!(contexts.ended.assert_success(), "pa-search\npa-payments\npa-search\n");
    }
    for step in job.end().await {
        step.assert_success();
    }
    for manager in managers {
        manager.ended().await;
    }
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn says_why_there_are_no_tunnels() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let inputs = real(&lab);
    let step = job.uses(&with(&inputs, &[("bastion", "i-0aaaaaaaaaaaaaaaa")])).await;
    let error = step.error();
    assert!(error.starts_with("the tunnels cannot be opened: "), "{error}");
    assert!(error.contains("i-0aaaaaaaaaaaaaaaa") && error.contains("\nhint: "), "{error}");
    let (_, log) = step.ended.stdout.split_once("::group::log of the manager\n").unwrap();
    assert!(log.contains("TargetNotConnected") && log.contains("::endgroup::"), "{log}");
    assert!(!job.variables.contains_key("KUBECONFIG"), "{:?}", job.variables);

    // What is wrong with the settings is said by the program too.
    let step = job.uses(&with(&inputs, &[("timeout", "soon")])).await;
    assert!(step.error().contains("--timeout") && step.error().contains("soon"), "{}", step.error());
    for step in job.end().await {
        step.assert_success();
    }
    assert!(lab.emulator.sessions().iter().all(|session| session.state == SessionState::Ended));
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_wrong_with_the_inputs_is_said_at_once() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let step = job
        .uses(&[
            ("path", "bin/autoheal-pa"),
            ("version", "0.1.0"),
            ("token", "of-a-secret"),
            ("region", "us-east-1\neu-west-1"),
            ("args", "--name=x\n--detach"),
        ])
        .await;
    assert_eq!(
        step.error().lines().collect::<Vec<_>>(),
        [
            "the inputs `path` and `version` exclude each other: a path is not a release",
            "the inputs `path` and `token` exclude each other: a path is not a release",
            "the input `region` has several lines",
            "the input `args` has `--detach`, which this action sets itself",
            "the input `args` has `--name`, which this action sets itself",
        ]
    );
    assert_eq!(step.masks, ["of-a-secret"]);
    let step = job.uses(&[("version", "../../evil"), ("sha256", "abc"), ("repository", "https://x")]).await;
    assert_eq!(
        step.error().lines().collect::<Vec<_>>(),
        [
            "the input `version` is not a version, such as `0.1.0`: `../../evil`",
            "the input `sha256` is to have 64 hexadecimal digits: `abc`",
            "the input `repository` is to be `OWNER/NAME`: `https://x`",
        ]
    );
    // A commit does not tell which release is meant.
    let missing = "the input `version` is missing: this action, ";
    for (reference, said) in [
        (None, "which is of the workflow's own repository, "),
        (Some("v1"), "used as `v1`, "),
        (Some("5f93c3a0"), "used as `5f93c3a0`, "),
    ] {
        if let Some(reference) = reference {
            job.set("GITHUB_ACTION_REF", reference);
        }
        let step = job.uses(&[]).await;
        assert_eq!(step.error(), format!("{missing}{said}does not tell which release is meant"));
    }
    // No program was run, so that there is nothing to close.
    for step in job.end().await {
        step.assert_success();
        assert_eq!(step.ended.stdout, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_reach_the_program_as_they_are() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let program = stand_in(&job.folder, "printf '<%s>' \"$@\" >&2; echo KUBECONFIG=/of/up >> \"$GITHUB_ENV\"", "true");
    fs::write(job.folder.join("workspace/program"), fs::read(program).unwrap()).unwrap();
    let step = job
        .uses(&[
            // As from an artifact: relative, and not executable.
            ("path", "program"),
            ("bastion", "tag:Name=a b\n$(touch x), `id`"),
            ("reason", "it's; \"me\""),
            ("args", "--tag\nteam=a, b\n  --on-demand  "),
        ])
        .await;
    step.assert_success();
    let (_, given) = step.ended.stdout.split_once("<up>").unwrap();
    let (own, given) = given.split_once("<--bastion").unwrap();
    assert!(own.starts_with("<--detach><--github-env><--name=gh-"), "{own}");
    assert!(own.ends_with("/kubeconfig.yaml>"), "{own}");
    let given = given.lines().next().unwrap();
    assert_eq!(
        given,
        "=tag:Name=a b><--bastion=$(touch x)><--bastion=`id`><--reason=it's; \"me\"><--tag><team=a, b><--on-demand>"
    );

    // A reason among the arguments is the only one.
    let step = job.uses(&[("path", "program"), ("args", "--reason\nother")]).await;
    assert!(step.ended.assert_success().contains("kubeconfig.yaml><--reason><other>"), "{step:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_program_prints_is_no_command() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let up = "echo '::error::of a peer'; echo '::add-mask::a' >&2; echo '##[error]x'; echo 'error: no\n::warning::b' >&2; exit 5";
    let program = stand_in(&job.folder, up, "true");
    let step = job.uses(&[("path", program.to_str().unwrap())]).await;
    assert_eq!(step.error(), "the tunnels cannot be opened: no\n::warning::b");
    assert!(step.ended.stdout.contains("::error::of a peer"), "it is shown all the same: {step:#?}");
    assert_eq!(step.masks, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_run_is_named() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let step = job.uses(&[("path", "nowhere")]).await;
    assert!(step.error().starts_with("the program of the input `path` cannot be copied: ENOENT"), "{}", step.error());
    fs::write(job.folder.join("workspace/program"), "\u{7f}ELF of another machine").unwrap();
    let step = job.uses(&[("path", "program")]).await;
    assert!(step.error().contains("does not run on this machine: "), "{}", step.error());
    fs::write(job.folder.join("workspace/program"), "#!/bin/sh\nexit 127\n").unwrap();
    let step = job.uses(&[("path", "program")]).await;
    assert!(step.error().ends_with("does not run on this machine: it ended with status 127"), "{}", step.error());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_cannot_be_stopped_fails_no_job() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let down = "printf 'error: it is stuck\\nhint: kill it\\n' >&2; exit 1";
    let program = stand_in(&job.folder, UP, down);
    job.uses(&[("path", program.to_str().unwrap())]).await.assert_success();
    let steps = job.end().await;
    assert_eq!(steps[0].ended.code(), Some(0));
    let warning = ("warning".to_owned(), "the tunnels cannot be closed: it is stuck\nhint: kill it".to_owned());
    assert_eq!(steps[0].annotations, [warning]);

    let mut job = Job::start(&lab).unwrap();
    job.uses(&[("path", program.to_str().unwrap())]).await.assert_success();
    job.run("rm -r \"$RUNNER_TEMP\"/autoheal-pa/*/bin").await.assert_success();
    let steps = job.end().await;
    assert_eq!(steps[0].ended.code(), Some(0));
    let [(kind, text)] = &steps[0].annotations[..] else { panic!("{steps:#?}") };
    assert!(kind == "warning" && text.starts_with("the tunnels cannot be closed: cannot run `/"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_leaves_nothing() {
    let lab = Lab::start(Config::default()).await;
    let Some(job) = Job::start(&lab) else { return };
    // No session comes up, so that `up` waits.
    let inputs = real(&lab);
    let mut command = job.start_action(&with(&inputs, &[("bastion", "ssh://127.0.0.1:9"), ("timeout", "10m")]));
    for name in ["GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_STATE"] {
        fs::write(job.folder.join(name), "").unwrap();
        command.env(name, job.folder.join(name));
    }
    let mut step = Running::start(&mut command);
    assert!(step.prints("starting").await, "{}", step.stdout_so_far());
    // As the runner does: the process of the action alone.
    kill_process(Pid::from_raw(i32::try_from(step.pid()).unwrap()).unwrap(), Signal::INT).unwrap();
    let ended = step.ended().await;
    assert_eq!(ended.code(), Some(1), "{ended:#?}");
    assert!(ended.stdout.contains("::error title=autoheal-pa::the tunnels cannot be opened: "), "{ended:#?}");
    lab.assert_clean().await;
}

/// The jobs of the example, one after the other as GitHub runs them.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_has_its_tunnels_and_closes_them() {
    if kubectl().is_none() {
        return;
    }
    let workflow: serde_yaml::Value = serde_yaml::from_str(include_str!("../../examples/github-actions.yml")).unwrap();
    let mut uses = 0;
    for (name, steps) in workflow["jobs"].as_mapping().unwrap() {
        let lab = Lab::start(Config::default()).await;
        let Some(mut job) = Job::start(&lab) else { return };
        let mut contexts = String::new();
        for step in steps["steps"].as_sequence().unwrap() {
            if step["uses"].as_str().is_some_and(|action| action.contains("/.github/actions/autoheal-pa@")) {
                let given = step["with"].as_mapping().unwrap().iter();
                let given = given.map(|(name, value)| (name.as_str().unwrap(), value.as_str().unwrap()));
                // There is no such release.
                let mut inputs: Vec<_> =
                    given.filter(|(name, _)| !["version", "sha256", "path"].contains(name)).collect();
                inputs.extend([("path", PROGRAM), ("args", "--base-port=0")]);
                let step = job.uses(&inputs).await;
                step.assert_success();
                contexts.clone_from(&step.outputs["contexts"]);
                uses += 1;
            } else if let Some(script) = step["run"].as_str().filter(|script| !script.starts_with("cargo ")) {
                for (variable, value) in step["env"].as_mapping().into_iter().flatten() {
                    assert_eq!(value, "${{ steps.tunnels.outputs.contexts }}");
                    job.set(variable.as_str().unwrap(), &contexts);
                }
                let step = job.run(script).await;
                assert!(step.ended.assert_success().contains("STATUS"), "{name:?}: {step:#?}");
            }
        }
        for step in job.end().await {
            step.assert_success();
        }
        lab.assert_clean().await;
    }
    assert_eq!(uses, 2);
}
