//! Signing in to IAM Identity Center, against the emulated one, with the AWS CLI beside.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Stdio, time::Duration};

use autoheal_pa::emulator::{ClusterConfig, Config, Failure, SsoConfig, Verdict};
use futures_util::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::LogParams};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};

use super::credentials::client;
use super::support::{Lab, PROGRAM, Running, aws_cli, path_variable, within};

const AWS_CLI: &str = "1.45.11";

const START_URL: &str = "https://corp.awsapps.com/start";

/// What botocore calls the file of a session of this name.
const OF_CORP: &str = "ee0bfd2552fbd840c02cc48b6e823320543c450f.json";

/// A profile of a session, one of the old kind, one that assumes a role with the first, and some that sign in nowhere.
const PROFILES: &str = "[profile dev]\nregion = us-east-1\nsso_session = corp\nsso_account_id = 123456789012\n\
    sso_role_name = AutohealReadOnlyRole\n\
    [sso-session corp]\nsso_region = us-east-1\nsso_start_url = https://corp.awsapps.com/start\n\
    [profile old]\nregion = us-east-1\nsso_region = us-east-1\nsso_start_url = https://corp.awsapps.com/start\n\
    sso_account_id = 123456789012\nsso_role_name = AutohealReadOnlyRole\n\
    [profile admin]\nregion = us-east-1\nrole_arn = arn:aws:iam::123456789012:role/AutohealAdminRole\nsource_profile = dev\n\
    [profile lost]\nregion = us-east-1\nsso_session = gone\nsso_account_id = 123456789012\nsso_role_name = R\n\
    [profile half]\nregion = us-east-1\nsso_session = empty\nsso_account_id = 123456789012\nsso_role_name = R\n\
    [sso-session empty]\nsso_region = us-east-1\n\
    [profile keys]\naws_access_key_id = AKIAKEYS\naws_secret_access_key = s\n\
    [profile program]\ncredential_process = true\n\
    [profile console]\nlogin_session = arn:aws:iam::123456789012:user/ann\n\
    [profile bare]\nregion = us-east-1\n\
    [profile elsewhere]\nsso_region = us-east-1\nsso_start_url = https://other.awsapps.com/start\n\
    sso_account_id = 123456789012\nsso_role_name = R\n";

async fn lab_with(config: Config) -> Lab {
    let clusters = vec![ClusterConfig::new("payments")];
    let lab = Lab::start(Config { clusters, ..config }).await;
    fs::create_dir_all(lab.path(".aws")).unwrap();
    fs::write(lab.path(".aws/config"), PROFILES).unwrap();
    lab
}

async fn lab() -> Lab {
    lab_with(Config::default()).await
}

/// A command that finds the emulator, and no credentials but in its profiles.
fn command(lab: &Lab, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = lab.bare_command(program);
    let keys = ["AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"];
    command.envs(lab.emulator.environment().into_iter().filter(|(name, _)| !keys.contains(&name.as_str())));
    command
}

fn program(lab: &Lab, args: &[&str]) -> Command {
    let mut command = command(lab, PROGRAM);
    command.args(args);
    command
}

fn login(lab: &Lab, profile: &str) -> Running {
    Running::start(&mut program(lab, &["login", "--profile", profile]))
}

/// Lets the person behind a sign-in say something about it.
async fn judge(lab: &Lab, verdict: Verdict) {
    lab.wait_until("a sign-in", |emulator| emulator.waiting_sign_in().is_some()).await;
    let code = lab.emulator.waiting_sign_in().unwrap();
    assert!(lab.emulator.judge_sign_in(&code, verdict));
}

async fn sign_in(lab: &Lab, profile: &str) {
    let running = login(lab, profile);
    judge(lab, Verdict::Approved).await;
    running.ended().await.assert_success();
}

/// Opens a page as a browser does.
async fn open_page(url: &str) -> String {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).await.unwrap();
    stream.write_all(format!("GET /{path} HTTP/1.0\r\nhost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("the page", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

fn token_file(lab: &Lab, name: &str) -> PathBuf {
    lab.path(".aws/sso/cache").join(name)
}

fn token(lab: &Lab, name: &str) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(token_file(lab, name)).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_is_one_that_the_aws_cli_takes_and_nothing_secret_is_shown() {
    let lab = lab().await;
    let mut running = login(&lab, "dev");
    assert!(running.says("waiting for that").await, "{}", running.stderr_so_far());
    let stderr = running.stderr_so_far();
    let page = stderr.lines().find_map(|line| line.trim().strip_prefix("http://")).unwrap();
    let page = format!("http://{page}");
    let code = lab.emulator.waiting_sign_in().unwrap();
    assert!(page.ends_with(&format!("/device?user_code={code}")) && stderr.contains(&format!("if it shows {code}")));
    assert!(open_page(&page).await.contains("Request approved"));
    let ended = running.ended().await;
    let said = ended.assert_success();
    assert_eq!(
        said,
        format!(
            "profile `dev` is signed in to {START_URL} and is renewed without asking until IAM Identity Center ends the \
             session\n"
        )
    );
    let token = token(&lab, OF_CORP);
    for secret in ["accessToken", "refreshToken", "clientSecret"] {
        let secret = token[secret].as_str().unwrap();
        assert!(!ended.stdout.contains(secret) && !ended.stderr.contains(secret), "{ended:#?}");
    }
    assert_eq!((token["startUrl"].as_str(), token["region"].as_str()), (Some(START_URL), Some("us-east-1")));
    assert!(token["expiresAt"].as_str().unwrap().ends_with('Z') && token["registrationExpiresAt"].is_string());
    assert_eq!(fs::metadata(token_file(&lab, OF_CORP)).unwrap().permissions().mode() & 0o777, 0o600);

    let ended = Running::start(&mut program(&lab, &["clusters", "--profile", "dev"])).ended().await;
    assert!(ended.assert_success().contains("payments"));
    let ended = Running::start(&mut program(&lab, &["doctor", "--profile", "admin", "--json"])).ended().await;
    assert!(ended.stdout.contains("assumed-role/AutohealAdminRole/"), "{ended:#?}");

    sign_in(&lab, "old").await;
    if let Some(cli) = aws_cli(AWS_CLI).await {
        for profile in ["dev", "old"] {
            let mut command = command(&lab, &cli);
            command.args(["sts", "get-caller-identity", "--query", "Arn", "--output", "text", "--profile", profile]);
            let ended = Running::start(&mut command).ended().await;
            let arn = "arn:aws:sts::123456789012:assumed-role/AutohealReadOnlyRole/ann\n";
            assert_eq!(ended.assert_success(), arn, "{profile}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_renewed_without_asking_ours_by_the_aws_cli_and_its_by_us() {
    let lab = lab().await;
    sign_in(&lab, "dev").await;
    let age = || {
        let mut aged = token(&lab, OF_CORP);
        aged["expiresAt"] = "2026-01-01T00:00:00Z".into();
        // As `json.dumps` of Python writes it, with something that only another version knows.
        aged["ofAnotherVersion"] = true.into();
        fs::write(token_file(&lab, OF_CORP), aged.to_string().replace(',', ", ").replace("\":", "\": ")).unwrap();
        aged["accessToken"].clone()
    };
    let old = age();
    fs::set_permissions(token_file(&lab, OF_CORP), fs::Permissions::from_mode(0o644)).unwrap();
    let ended = Running::start(&mut program(&lab, &["clusters", "--profile", "dev"])).ended().await;
    assert!(ended.assert_success().contains("payments"));
    let renewed = token(&lab, OF_CORP);
    assert!(renewed["accessToken"] != old && renewed["ofAnotherVersion"] == true, "{renewed}");
    assert_eq!(fs::metadata(token_file(&lab, OF_CORP)).unwrap().permissions().mode() & 0o777, 0o600);

    let Some(cli) = aws_cli(AWS_CLI).await else { return };
    let old = age();
    let mut by_cli = command(&lab, &cli);
    by_cli.args(["sts", "get-caller-identity", "--profile", "dev"]);
    Running::start(&mut by_cli).ended().await.assert_success();
    let by_cli = token(&lab, OF_CORP);
    assert!(by_cli["accessToken"] != old, "{by_cli}");
    let ended = Running::start(&mut program(&lab, &["clusters", "--profile", "dev"])).ended().await;
    assert!(ended.assert_success().contains("payments"));
    assert_eq!(token(&lab, OF_CORP), by_cli, "it is good for an hour");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_is_not_signed_in_names_the_command_and_others_say_what_they_are() {
    let lab = lab().await;
    let refused = async |args: &[&str]| {
        let ended = Running::start(&mut program(&lab, args)).ended().await;
        (ended.code(), ended.stderr)
    };
    let (code, said) = refused(&["clusters", "--profile", "dev"]).await;
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("it is not signed in to IAM Identity Center"), "{said}");
    assert!(said.contains("hint: sign in: `autoheal-pa login --profile dev`"), "{said}");
    // The profile that a role is assumed with is the one to sign in.
    let (_, said) = refused(&["clusters", "--profile", "admin"]).await;
    assert!(said.contains("hint: sign in: `autoheal-pa login --profile dev`"), "{said}");
    for (profile, code, words) in [
        ("lost", 2, "its `sso_session` names `gone`, and no file has a section `[sso-session gone]`"),
        ("half", 2, "`half` has `sso_account_id` but lacks `sso_start_url`"),
        ("keys", 2, "it does not sign in to IAM Identity Center: it has keys of its own"),
        ("program", 2, "it does not sign in to IAM Identity Center: it has a `credential_process`"),
        ("console", 3, "it is signed in with `aws login`"),
        ("bare", 2, "it has no credentials, only `region`"),
        ("nobody", 2, "there is no AWS profile `nobody`"),
        ("elsewhere", 2, "IAM Identity Center in `us-east-1` refuses a sign-in at `https://other.awsapps.com/start`"),
    ] {
        let (found, said) = refused(&["login", "--profile", profile]).await;
        assert!(found == Some(code) && said.contains(words), "{profile}: {found:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_sign_in_from_being_approved_is_said() {
    let lab = lab().await;
    for (verdict, words) in [
        (Verdict::Denied, "its sign-in was denied in the browser"),
        (Verdict::Expired, "nobody has approved of its sign-in in time"),
    ] {
        let running = login(&lab, "dev");
        judge(&lab, verdict).await;
        let ended = running.ended().await;
        assert_eq!(ended.code(), Some(3), "{ended:#?}");
        assert!(ended.stderr.contains(words) && ended.stdout.is_empty(), "{ended:#?}");
        assert!(!token_file(&lab, OF_CORP).exists());
    }
    // A service that is in trouble, or in a hurry, is asked again.
    lab.emulator.update(|settings| {
        settings.failing_actions.insert("sso-oidc:CreateToken".to_owned(), Failure::internal(4));
    });
    sign_in(&lab, "dev").await;
    fs::remove_file(token_file(&lab, OF_CORP)).unwrap();
    let slow = Failure { calls: 1, ..Failure::refused("SlowDownException", "asked too often") };
    lab.emulator.update(|settings| {
        settings.failing_actions.insert("sso-oidc:CreateToken".to_owned(), slow);
    });
    sign_in(&lab, "dev").await;
    // What cannot be kept is no sign-in.
    fs::remove_dir_all(lab.path(".aws/sso")).unwrap();
    fs::write(lab.path(".aws/sso"), "").unwrap();
    let running = login(&lab, "dev");
    judge(&lab, Verdict::Approved).await;
    let ended = running.ended().await;
    assert!(ended.stderr.contains("the token of its sign-in cannot be kept in `"), "{ended:#?}");
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_is_opened_where_there_is_one() {
    let lab = lab().await;
    let (opened, folder) = (lab.path("opened"), lab.path("bin"));
    fs::create_dir(&folder).unwrap();
    let browser = folder.join("xdg-open");
    fs::write(
        &browser,
        format!(
            "#!/bin/sh\necho noise; echo noise >&2\nprintf %s \"$1\" > '{0}.part'; mv '{0}.part' '{0}'\n",
            opened.display()
        ),
    )
    .unwrap();
    fs::set_permissions(&browser, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::join_paths([folder].into_iter().chain(std::env::split_paths(&path_variable()))).unwrap();
    for (args, variables, is_opened) in [
        (&["login", "--profile", "dev"][..], &[("DISPLAY", ":99")][..], true),
        (&["login", "--profile", "dev", "--no-browser"], &[("DISPLAY", ":99")], false),
        (
            &["login", "--profile", "dev"],
            &[("DISPLAY", "localhost:10.0"), ("SSH_CONNECTION", "192.0.2.1 1 192.0.2.2 22")],
            false,
        ),
        (&["login", "--profile", "dev"], &[], false),
    ] {
        let mut command = program(&lab, args);
        command.env("PATH", &path).envs(variables.iter().copied());
        let mut running = Running::start(&mut command);
        assert!(running.says("waiting for that").await);
        assert_eq!(
            running.stderr_so_far().contains("in the browser that was opened"),
            is_opened,
            "{args:?} {variables:?}"
        );
        let code = lab.emulator.waiting_sign_in().unwrap();
        if is_opened {
            let page = async {
                loop {
                    if let Ok(page) = fs::read_to_string(&opened) {
                        return page;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            assert!(within("the browser", page).await.ends_with(&code));
        }
        assert!(lab.emulator.judge_sign_in(&code, Verdict::Approved));
        let ended = running.ended().await;
        ended.assert_success();
        assert!(!ended.stderr.contains("noise"), "{ended:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_runs_out_while_tunnels_are_open_is_foretold_and_mended_from_another_terminal() {
    let lifetime = Duration::from_secs(12);
    let sso = SsoConfig { token_lifetime: lifetime, ..SsoConfig::default() };
    let lab = lab_with(Config { sso, credential_lifetime: Some(lifetime), ..Config::default() }).await;
    // Of the old kind: its token cannot be renewed.
    sign_in(&lab, "old").await;
    let mut command = program(&lab, &["up", "--base-port", "0", "--profile", "old"]);
    let mut up = Running::start(&mut command);
    up.ready().await;
    assert!(up.says("warning: the sign-in of profile `old` to IAM Identity Center ends in ").await);
    assert!(up.says("hint: sign in again, in any shell: `autoheal-pa login --profile old`").await);
    let status = async |args: &[&str]| {
        let ended = Running::start(&mut program(&lab, args)).ended().await;
        ended.assert_success().to_owned()
    };
    assert!(status(&["status"]).await.contains("autoheal-pa login --profile old"));

    // A connection that is open all the time.
    let pods: Api<Pod> = Api::namespaced(client(&lab).await.unwrap(), "demo");
    let params = LogParams { follow: true, ..LogParams::default() };
    let mut lines = within("the log", pods.log_stream("chatty", &params)).await.unwrap().lines();

    assert!(up.says("and cannot be renewed: the AWS profile `old` cannot be used: its sign-in to IAM Identity Center has expired").await, "{}", up.stderr_so_far());
    let said = status(&["status"]).await;
    assert!(said.contains("cannot be renewed") && said.contains("`autoheal-pa login --profile old`"), "{said}");
    assert!(up.says("warning: the AWS credentials have expired: ").await, "{}", up.stderr_so_far());

    sign_in(&lab, "old").await;
    assert!(up.says("the AWS credentials are valid again, until ").await, "{}", up.stderr_so_far());
    for _ in 0..3 {
        assert!(within("a line", lines.try_next()).await.unwrap().is_some());
    }
    drop(lines);
    assert_eq!(lab.emulator.sessions().len(), 1, "it is the session of before");
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_identity_center_ends_is_seen_long_before_the_credentials_end() {
    let sso = SsoConfig { token_lifetime: Duration::from_secs(5), ..SsoConfig::default() };
    let lab = lab_with(Config { sso, ..Config::default() }).await;
    sign_in(&lab, "dev").await;
    let mut up = Running::start(&mut program(&lab, &["up", "--base-port", "0", "--profile", "dev"]));
    up.ready().await;
    lab.emulator.sign_out();
    let said = "the AWS credentials expire in 59 min";
    assert!(up.says(said).await, "{}", up.stderr_so_far());
    assert!(up.says("hint: sign in: `autoheal-pa login --profile dev`").await, "{}", up.stderr_so_far());
    sign_in(&lab, "dev").await;
    assert!(up.says("the AWS credentials are valid again, until ").await, "{}", up.stderr_so_far());
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

/// Runs the program on a terminal, which is what `script` makes.
fn on_terminal(lab: &Lab, line: &str) -> Running {
    let mut command = command(lab, "script");
    command.args(["-q", "-e", "-c", &format!("exec '{PROGRAM}' {line}"), "/dev/null"]).env("SHELL", "/bin/sh");
    command.env("TERM", "dumb").stdin(Stdio::piped());
    Running::start(&mut command)
}

#[tokio::test(flavor = "multi_thread")]
async fn up_on_a_terminal_offers_to_sign_in() {
    let lab = lab().await;
    let mut up = on_terminal(&lab, "up --base-port 0 --profile dev");
    let mut keyboard = up.stdin();
    assert!(up.prints("profile `dev` is not signed in to IAM Identity Center").await, "{}", up.stdout_so_far());
    // What is typed before the question does not count, and the question is no line.
    let typed = async {
        while lab.emulator.waiting_sign_in().is_none() {
            keyboard.write_all(b"yes\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    within("the sign-in", typed).await;
    judge(&lab, Verdict::Approved).await;
    assert!(up.prints("tunnel ready").await, "{}", up.stdout_so_far());
    // Ctrl-C, as the terminal has it.
    keyboard.write_all(&[3]).await.unwrap();
    let ended = up.ended().await;
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    lab.assert_clean().await;

    fs::remove_file(token_file(&lab, OF_CORP)).unwrap();
    let mut up = on_terminal(&lab, "up --base-port 0 --profile dev");
    let mut keyboard = up.stdin();
    assert!(up.prints("is not signed in").await);
    let mut ended = Box::pin(up.ended());
    let ended = loop {
        tokio::select! {
            ended = &mut ended => break ended,
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                // It may have ended meanwhile.
                let _typed = keyboard.write_all(b"no\n").await;
            }
        }
    };
    assert_eq!(ended.code(), Some(3), "{ended:#?}");
    assert!(ended.stdout.contains("`autoheal-pa login --profile dev`"), "{ended:#?}");
}
