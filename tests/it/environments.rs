//! Every variable and profile key that is read, with values that no one means, in every command: nothing panics, hangs, or shows a secret.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
    process::Stdio,
};

use autoheal_pa::settings::{INPUTS, Takes, variables};
use futures_util::StreamExt;
use tokio::process::Command;

use super::support::{PROGRAM, path_variable, within};

/// Runs at a time.
const AT_A_TIME: usize = 4;

/// What may not be shown where a secret has it.
const MARK: &str = "hunter2";

/// A port that nobody listens on: it is for root, and tests are not to reach anything else.
const NOBODY: &str = "http://127.0.0.1:1";

/// What keeps a run on this machine.
const FENCE: [&str; 4] = ["AWS_ENDPOINT_URL", "HTTPS_PROXY", "https_proxy", "AWS_EC2_METADATA_DISABLED"];

/// Values, and what is odd about them.
fn values(long: usize) -> Vec<(&'static str, OsString)> {
    let text = |text: &str| OsString::from(text);
    vec![
        ("empty", text("")),
        ("blank", text(" \t ")),
        ("quoted", text("\"hunter2hunter2\"")),
        ("ended by a carriage return", text("hunter2hunter2\r")),
        ("with a line break", text("hunter2\r\nhunter2: x")),
        ("very long", text(&"hunter2/".repeat(long / 8))),
        ("not UTF-8", OsString::from_vec(b"hunter2\xff\xfe".to_vec())),
        ("absurd", text("hunter2 \u{2603}://[::hunter2]:99999999999999999999/%zz?\u{202e}@'\"`$(x)")),
        ("with a blank", text("hunter2 hunter2")),
        ("negative", text("-1")),
        ("huge", text("340282366920938463463374607431768211456")),
    ]
}

fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(args)
        .env_clear()
        .current_dir(home)
        .env("PATH", path_variable())
        .env("HOME", home)
        .env("TMPDIR", home)
        .env("XDG_RUNTIME_DIR", home)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_ENDPOINT_URL", NOBODY)
        .env("HTTPS_PROXY", NOBODY)
        .env("AWS_MAX_ATTEMPTS", "1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// What no credentials or no region can be had without in these tests.
const NEEDED: [&str; 5] =
    ["AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "aws_access_key_id", "aws_secret_access_key"];

/// As [`wrong`], of one value of one input.
async fn wrong_value(takes: Takes, name: &'static str, kind: &'static str, command: Command) -> Option<String> {
    // As if it were not there.
    let succeeds = matches!(kind, "empty" | "blank") && !NEEDED.contains(&name);
    wrong(format!("{name}, {kind}"), command, takes == Takes::Secret, succeeds).await
}

/// Runs to the end, and says what is wrong with it.
async fn wrong(what: String, mut command: Command, is_secret: bool, succeeds: bool) -> Option<String> {
    let output = within(&what, command.output()).await.unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    let panics = said.contains("panicked") || matches!(output.status.code(), None | Some(101));
    let shows = is_secret && said.contains(MARK);
    let fails = succeeds && !output.status.success();
    (panics || shows || fails).then(|| format!("{what}: {}: {}", output.status, &said[..said.floor_char_boundary(600)]))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_of_a_variable_makes_a_token_panic_hang_or_show_it() {
    let home = tempfile::tempdir().unwrap();
    let values = values(100_000);
    let runs = variables().flat_map(|(name, takes)| {
        let home = home.path();
        values.iter().map(move |(kind, value)| {
            let mut command = command(home, &["token", "--cluster-name", "c"]);
            command.env(name, value);
            Box::pin(wrong_value(takes, name, kind, command))
        })
    });
    let wrong: Vec<_> = futures_util::stream::iter(runs)
        .buffer_unordered(AT_A_TIME)
        .filter_map(|wrong| async { wrong })
        .collect()
        .await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_of_a_profile_key_makes_a_token_panic_hang_or_show_it() {
    let values = values(100_000);
    let keys = INPUTS.iter().filter_map(|input| Some((input, input.key?)));
    let runs = keys.flat_map(|(input, key)| {
        values.iter().map(move |(kind, value)| {
            let home = tempfile::tempdir().unwrap();
            let file = home.path().join("config");
            let others = [("aws_access_key_id", "AKIAIOSFODNN7EXAMPLE"), ("aws_secret_access_key", "s")];
            let mut text = b"[profile x]\n".to_vec();
            for (name, value) in others.iter().filter(|(name, _)| *name != key) {
                text.extend(format!("{name} = {value}\n").as_bytes());
            }
            text.extend([format!("{key} = ").as_bytes(), value.as_bytes(), b"\n"].concat());
            std::fs::write(&file, text).unwrap();
            let mut command = command(home.path(), &["token", "--cluster-name", "c", "--profile", "x"]);
            command.env("AWS_CONFIG_FILE", file);
            Box::pin(async move {
                let _home = home;
                wrong_value(input.takes, key, kind, command).await
            })
        })
    });
    let wrong: Vec<_> = futures_util::stream::iter(runs)
        .buffer_unordered(AT_A_TIME)
        .filter_map(|wrong| async { wrong })
        .collect()
        .await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_values_of_all_variables_make_a_command_panic_or_hang() {
    let bastion = "i-0dc03fbcae2a87472";
    let commands: [&[&str]; 17] = [
        &["up", "--bastion", bastion, "--timeout", "1s"],
        &["up", "--bastion", bastion, "--timeout", "1s", "--detach"],
        &["exec", "--bastion", bastion, "--timeout", "1s", "--", "true"],
        &["doctor", "--bastion", bastion],
        &["clusters"],
        &["status"],
        &["logs"],
        &["env"],
        &["reload"],
        &["down"],
        &["config", "check"],
        &["config", "schema"],
        &["policy", "--bastion", bastion],
        &["token", "--cluster-name", "c"],
        &["completions", "bash"],
        &["man", "up"],
        &["demo", "--", "true"],
    ];
    let home = tempfile::tempdir().unwrap();
    // All together have to fit into one environment.
    let values = values(8_000);
    let runs = commands.iter().flat_map(|args| {
        let home = home.path();
        values.iter().flat_map(move |(kind, value)| {
            // With the surroundings as they are, and with odd ones as well.
            [false, true].map(|all| {
                let mut command = command(home, args);
                for (name, _) in variables() {
                    let is_ours = ["AWS_", "ACTIONS_", "AUTOHEAL_"].iter().any(|start| name.starts_with(start));
                    if !FENCE.contains(&name) && (all || is_ours) {
                        command.env(name, value);
                    }
                }
                Box::pin(wrong(format!("{args:?}, {kind}, {all}"), command, false, false))
            })
        })
    });
    let wrong: Vec<_> = futures_util::stream::iter(runs)
        .buffer_unordered(AT_A_TIME)
        .filter_map(|wrong| async { wrong })
        .collect()
        .await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
