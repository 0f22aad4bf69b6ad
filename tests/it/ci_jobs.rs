//! Jobs of CI systems, in environments as those systems make them.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use autoheal_pa::emulator::{ClusterConfig, Config};
use tokio::process::Command;

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
