//! Jobs of CI systems, in environments as those systems make them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use autoheal_pa::emulator::{ClusterConfig, Config, Identity};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinSet,
};

use super::support::{Ended, Lab, PROGRAM, Running};

const BASTION: &str = "i-0dc03fbcae2a87472";

/// Prints what is in a file beside it, and writes down how it was called.
const PROGRAM_OF_CI: &str = "#!/bin/sh\necho \"$(basename \"$0\") $*\" >> calls\ncat token\n";

async fn lab() -> Lab {
    Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await
}

/// The program in a job with these variables and a role, and no other way to be anybody.
fn job(lab: &Lab, args: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = lab.bare_command(PROGRAM);
    command.envs(lab.emulator.environment());
    command.env_remove("AWS_WEB_IDENTITY_TOKEN_FILE").env("AWS_ROLE_ARN", lab.emulator.role_arn());
    command.args(args).envs(variables.iter().copied()).current_dir(lab.home.path());
    command
}

async fn clusters(lab: &Lab, args: &[&str], variables: &[(&str, &str)]) -> Ended {
    Running::start(job(lab, &["clusters"], variables).args(args)).ended().await
}

fn token(lab: &Lab) -> String {
    lab.emulator.mint_oidc_token(&lab.emulator.oidc_claims(Duration::from_secs(600)))
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_in_variables_are_taken_where_the_job_has_asked_for_them() {
    let lab = lab().await;
    let token = token(&lab);
    for (variable, args) in [
        ("GITLAB_OIDC_TOKEN", &[][..]),
        ("BITBUCKET_STEP_OIDC_TOKEN", &[]),
        ("CIRCLE_OIDC_TOKEN_V2", &["--oidc", "circleci"]),
        ("MY_TOKEN", &["--oidc", "env:MY_TOKEN"]),
    ] {
        let ended = clusters(&lab, args, &[(variable, &token)]).await;
        assert!(ended.assert_success().contains("payments"), "{variable}");
    }
    // CircleCI gives one to every job, and the job may be somebody else.
    let ended = clusters(&lab, &[], &[("CIRCLE_OIDC_TOKEN_V2", &token)]).await;
    assert_eq!(ended.code(), Some(3), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_of_ci_systems_are_asked_for_a_token_with_its_audience() {
    let lab = lab().await;
    fs::write(lab.path("token"), token(&lab)).unwrap();
    for name in ["buildkite-agent", "circleci"] {
        fs::write(lab.path(name), PROGRAM_OF_CI).unwrap();
        fs::set_permissions(lab.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:/usr/bin:/bin", lab.home.path().display());
    let of_buildkite = [("PATH", path.as_str()), ("BUILDKITE_JOB_ID", "0189")];
    clusters(&lab, &["--oidc", "buildkite"], &of_buildkite).await.assert_success();
    let of_circleci = [("PATH", path.as_str()), ("CIRCLECI", "true")];
    let args = ["--oidc", "circleci", "--oidc-audience", "sts.amazonaws.com"];
    clusters(&lab, &args, &of_circleci).await.assert_success();
    let calls = fs::read_to_string(lab.path("calls")).unwrap();
    assert_eq!(
        calls,
        "buildkite-agent oidc request-token --audience sts.amazonaws.com\n\
         circleci run oidc get --claims {\"aud\":\"sts.amazonaws.com\"}\n"
    );

    let ended = clusters(&lab, &["--oidc", "buildkite"], &[]).await;
    assert_eq!(ended.code(), Some(3), "{ended:?}");
    assert!(
        ended.stderr.contains("Buildkite gave no OIDC token: this process is in no job that has one"),
        "{}",
        ended.stderr
    );

    fs::write(lab.path("buildkite-agent"), "#!/bin/sh\necho 'no OIDC for you' >&2\nexit 1\n").unwrap();
    let ended = clusters(&lab, &["--oidc", "buildkite"], &of_buildkite).await;
    assert_eq!(ended.code(), Some(3), "{ended:?}");
    assert!(ended.stderr.contains("Buildkite gave no OIDC token: `buildkite-agent` ended with"), "{}", ended.stderr);
    assert!(ended.stderr.contains("no OIDC for you"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_has_run_out_says_that_the_job_has_no_other() {
    let lab = lab().await;
    let mut claims = lab.emulator.oidc_claims(Duration::from_secs(600));
    claims.expires = Duration::from_secs(1_000_000_000);
    let token = lab.emulator.mint_oidc_token(&claims);
    let variables = [("GITLAB_OIDC_TOKEN", token.as_str())];
    let ended = Running::start(&mut job(&lab, &["up", "--bastion", BASTION], &variables)).ended().await;
    assert_eq!(ended.code(), Some(3), "{ended:?}");
    assert!(ended.stderr.contains("the OIDC token in `GITLAB_OIDC_TOKEN` has expired"), "{}", ended.stderr);
    assert!(ended.stderr.contains("the job has no other"), "{}", ended.stderr);
    assert!(!ended.stderr.contains(&token[..20]), "{}", ended.stderr);
}

/// The agent of EKS Pod Identity: whoever shows the token of the pod gets credentials. Returns where it is, and its task.
async fn pod_identity_agent(token: PathBuf, credentials: String) -> (String, JoinSet<()>) {
    async fn answer(stream: TcpStream, token: &Path, credentials: &str) -> Option<()> {
        let mut stream = BufReader::new(stream);
        let (mut line, mut shown) = (String::new(), String::new());
        while stream.read_line(&mut line).await.ok()? > 2 {
            if let Some((name, value)) = line.trim_end().split_once(": ")
                && name.eq_ignore_ascii_case("authorization")
            {
                value.clone_into(&mut shown);
            }
            line.clear();
        }
        let is_right = shown == fs::read_to_string(token).ok()?;
        let (status, body) = if is_right { ("200 OK", credentials) } else { ("401 Unauthorized", "") };
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all([&head, body].concat().as_bytes()).await.ok()
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/credentials", listener.local_addr().unwrap());
    let mut agent = JoinSet::new();
    agent.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _answered = answer(stream, &token, &credentials).await;
        }
    });
    (url, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_an_association_asks_its_agent_with_the_token_of_the_moment() {
    let config = Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() };
    let lab = Lab::start(Config { identity: Identity::StaticKeys, ..config }).await;
    let key = |name: &str| lab.emulator.environment().into_iter().find(|(key, _)| key == name).unwrap().1;
    let credentials = serde_json::json!({
        "AccessKeyId": key("AWS_ACCESS_KEY_ID"), "SecretAccessKey": key("AWS_SECRET_ACCESS_KEY"),
        "Token": key("AWS_SESSION_TOKEN"),
        "AccountId": "123456789012", "Expiration": "2100-01-01T00:00:00Z",
    });
    let token = lab.path("eks-pod-identity-token");
    let (url, _agent) = pod_identity_agent(token.clone(), credentials.to_string()).await;
    // As the webhook of the add-on sets them.
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &*url),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap()),
    ];
    let clusters = async || {
        let mut command = job(&lab, &["clusters"], &variables);
        for name in ["AWS_ROLE_ARN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
            command.env_remove(name);
        }
        Running::start(&mut command).ended().await
    };
    // The kubelet puts another token into the file before the old one runs out.
    for content in ["first", "second"] {
        fs::write(&token, content).unwrap();
        assert!(clusters().await.assert_success().contains("payments"));
    }
    fs::remove_file(&token).unwrap();
    let ended = clusters().await;
    assert_eq!(ended.code(), Some(3), "{ended:?}");
    let said = format!("the token file of this container, `{}`, cannot be read: No such file", token.display());
    assert!(ended.stderr.contains(&said), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_a_role_of_its_service_account_needs_nothing_else() {
    let lab = lab().await;
    fs::write(lab.path("token"), token(&lab)).unwrap();
    let path = lab.path("token");
    let variables = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", path.to_str().unwrap()),
        ("AWS_STS_REGIONAL_ENDPOINTS", "regional"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ];
    assert!(clusters(&lab, &[], &variables).await.assert_success().contains("payments"));
}
