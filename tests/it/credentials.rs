//! Credentials that expire while tunnels are open, and the plugin by which kubectl gets its own.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use autoheal_pa::emulator::{ClusterConfig, Command, Config, Event, Identity};
use futures_util::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::LogParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustix::{
    fs::{CWD, Mode, mkfifoat},
    process::Signal,
};

use super::support::{Lab, Running, within};

/// How long credentials of these tests last. They are renewed at half of it, so this is all the time that has to pass.
const LIFETIME: Duration = Duration::from_secs(8);

/// A client that has got its token from the kubeconfig's exec plugin.
pub(super) async fn client(lab: &Lab) -> Result<Client, Box<dyn std::error::Error>> {
    let kubeconfig = Kubeconfig::read_from(lab.kubeconfig())?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn count_pods(lab: &Lab) -> Result<usize, Box<dyn std::error::Error>> {
    let pods: Api<Pod> = Api::all(client(lab).await?);
    Ok(within("the pods", pods.list(&Default::default())).await?.items.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn open_connections_outlive_credentials_and_everything_works_when_there_are_new_ones() {
    let config = Config {
        clusters: vec![ClusterConfig::new("payments")],
        credential_lifetime: Some(LIFETIME),
        ..Config::default()
    };
    let lab = Lab::start(config).await;
    let mut up = lab.up(&[]).await;
    let pods: Api<Pod> = Api::namespaced(client(&lab).await.unwrap(), "demo");
    let params = LogParams { follow: true, ..LogParams::default() };
    let mut lines = within("the log", pods.log_stream("chatty", &params)).await.unwrap().lines();

    let token_file = lab.emulator.token_file();
    fs::remove_file(&token_file).unwrap();
    assert!(up.says("warning: the AWS credentials expire in ").await, "{}", up.stderr_so_far());
    assert!(up.says("\nhint: check `--web-identity-token-file`").await, "{}", up.stderr_so_far());
    let stderr = up.stderr_so_far();
    let (_, said) = stderr.split_once("and cannot be renewed: ").expect("it says why");
    assert!(
        said.starts_with(&format!("the web identity token file `{}` cannot be read", token_file.display())),
        "{said}"
    );
    assert!(up.says("warning: the AWS credentials have expired: ").await, "{}", up.stderr_so_far());
    assert!(up.says("open connections go on").await, "{}", up.stderr_so_far());
    assert!(count_pods(&lab).await.is_err(), "there is no token for kubectl");
    for _ in 0..3 {
        assert!(within("a line", lines.try_next()).await.unwrap().is_some());
    }

    let claims = lab.emulator.oidc_claims(Duration::from_secs(3600));
    fs::write(&token_file, lab.emulator.mint_oidc_token(&claims)).unwrap();
    assert!(count_pods(&lab).await.unwrap() > 0);
    assert!(up.says("the AWS credentials are valid again, until ").await, "{}", up.stderr_so_far());
    lab.emulator.command(&Command::CutTransport);
    lab.wait_until("the session to be resumed", |emulator| {
        emulator.events().iter().any(|event| matches!(event, Event::SessionResumed { .. }))
    })
    .await;
    for _ in 0..3 {
        assert!(within("a line", lines.try_next()).await.unwrap().is_some());
    }
    assert_eq!(lab.emulator.sessions().len(), 1);
    drop(lines);
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_renewed_though_nobody_asks_for_them() {
    let clusters = vec![ClusterConfig::new("payments")];
    let lab = Lab::start(Config { clusters, credential_lifetime: Some(LIFETIME), ..Config::default() }).await;
    let up = lab.up(&["--probe-interval", "0"]).await;
    lab.wait_until("three renewals", |emulator| {
        let assumed =
            |event: &&Event| matches!(event, Event::Api { action, .. } if action == "sts:AssumeRoleWithWebIdentity");
        emulator.events().iter().filter(assumed).count() >= 4
    })
    .await;
    let ended = up.stop().await;
    assert_eq!(ended.code(), Some(0));
    assert!(!ended.stderr.contains("warning"), "{}", ended.stderr);
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_the_environment_are_said_to_be_of_no_duration() {
    let lab = Lab::start(Config { identity: Identity::StaticKeys, ..Config::default() }).await;
    let mut command = lab.program(&["up", "--base-port", "0"]);
    command.env("AWS_CREDENTIAL_EXPIRATION", "2100-01-01T00:00:00+00:00");
    let mut up = Running::start(&mut command);
    up.ready().await;
    assert!(up.says("cannot be renewed: got no newer AWS credentials from keys in the environment").await);
    let ended = up.stop().await;
    assert!(
        ended.stderr.contains("from keys in the environment, credentials until 2100-01-01T00:00:00Z"),
        "{ended:#?}"
    );
    assert!(ended.stderr.contains("--web-identity-token-file PATH"), "{ended:#?}");
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_of_a_role_session_are_taken_or_what_they_want_is_said() {
    let clusters = vec![ClusterConfig::new("payments")];
    let lab = Lab::start(Config { clusters, identity: Identity::StaticKeys, ..Config::default() }).await;
    let role = lab.emulator.role_arn();
    let args =
        ["clusters", "--role-arn", &role, "--tag", "team=payments", "--tag", "cost=1", "--transitive-tag", "team"];
    assert!(lab.run(&args).await.assert_success().contains("payments"));
    lab.emulator.update(|settings| {
        settings.denied_actions.insert("sts:TagSession".to_owned());
    });
    let ended = lab.run(&args).await;
    assert_eq!(ended.code(), Some(3), "{ended:#?}");
    assert!(ended.stderr.contains("hint: for `--tag` the role's trust policy"), "{ended:#?}");
    assert!(lab.run(&args[..3]).await.assert_success().contains("payments"));

    let token_file = lab.emulator.token_file();
    let of_token = [&args[..5], &["--web-identity-token-file", token_file.to_str().unwrap()]].concat();
    let ended = lab.run(&of_token).await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.contains("session tags cannot be given beside the web identity token in `"), "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_kubectls_plugin() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    let (pipe, program) = (lab.home.path().join("pipe"), lab.home.path().join("plugin"));
    mkfifoat(CWD, &pipe, Mode::RWXU).unwrap();
    fs::write(&program, format!("#!/bin/sh\necho runs > '{}'\nexec sleep 1000\n", pipe.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    let kubeconfig = lab.home.path().join("config");
    let users = format!(
        "kind: Config\nusers: [{{name: a, user: {{exec: {{command: '{}', args: [token]}}, extensions: [{{name: autoheal-pa, \
         extension: {{manager: default}}}}]}}}}]\n",
        program.display()
    );
    fs::write(&kubeconfig, users).unwrap();
    let file = lab.home.path().join("config.yaml");
    fs::write(&file, format!("kubeconfig: {}\n", kubeconfig.display())).unwrap();
    let running = Running::start(&mut lab.program(&["doctor", "--config", file.to_str().unwrap()]));
    let runs = tokio::task::spawn_blocking(move || fs::read_to_string(pipe).unwrap());
    assert_eq!(within("the plugin to run", runs).await.unwrap(), "runs\n");
    running.signal(Signal::INT);
    let ended = running.ended().await;
    assert_eq!(ended.code(), Some(130), "{ended:#?}");
}
