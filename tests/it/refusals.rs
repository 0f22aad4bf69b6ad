//! What is refused, or goes wrong on the way to AWS, and who is blamed for it.

use autoheal_pa::emulator::{ClusterConfig, Config, Event, Identity};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
};

use super::support::{Lab, Running};

fn one_cluster() -> Config {
    Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }
}

/// Answers every request on a port of this machine with one JSON document, and reports the heads of the requests.
async fn serve(tasks: &mut JoinSet<()>, status: u16, body: String) -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (report, heads) = mpsc::unbounded_channel();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            let _gone = report.send(String::from_utf8_lossy(&head).into_owned());
            let answer = format!(
                "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _gone = stream.write_all(answer.as_bytes()).await;
        }
    });
    (port, heads)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_is_said_and_nothing_else_is_blamed() {
    for (skew_ms, off) in [(430_000, " is 7 min "), (-7_290_000, " is 2 h 1 min ahead")] {
        let lab = Lab::start(one_cluster()).await;
        lab.emulator.update(|settings| settings.clock_skew_ms = skew_ms);
        let doctor = lab.run(&["doctor"]).await;
        assert_eq!(doctor.code(), Some(0), "{doctor:#?}");
        assert!(doctor.stdout.contains(&format!("this machine's clock{off}")), "{doctor:#?}");
        assert!(doctor.stdout.contains("timedatectl"), "{doctor:#?}");
        assert!(!doctor.stdout.contains("policy"), "{doctor:#?}");

        let ended = lab.up(&[]).await.stop().await;
        assert!(ended.stderr.contains(&format!("this machine's clock{off}")), "{ended:#?}");
        let unsigned = lab.count(|event| matches!(event, Event::TransportOpened { signed: false, .. }));
        assert_eq!(unsigned, 0, "{ended:#?}");
        lab.assert_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_of_the_container_credentials_goes_to_no_proxy() {
    let lab = Lab::start(Config { identity: Identity::StaticKeys, ..one_cluster() }).await;
    let keys: Vec<String> = lab.emulator.static_environment().into_iter().map(|(_, value)| value).collect();
    let body = format!(
        r#"{{"AccessKeyId":"{}","SecretAccessKey":"{}","Token":"{}","Expiration":"2100-01-01T00:00:00Z"}}"#,
        keys[0], keys[1], keys[2]
    );
    let mut tasks = JoinSet::new();
    let (container, mut asked) = serve(&mut tasks, 200, body).await;
    let (proxy, mut proxied) = serve(&mut tasks, 403, "{}".to_owned()).await;
    let mut command = lab.program(&["clusters"]);
    for (name, _) in lab.emulator.static_environment() {
        command.env_remove(name);
    }
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env(name, format!("http://127.0.0.1:{proxy}"));
    }
    command
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://127.0.0.1:{container}/creds"))
        .env("AWS_CONTAINER_AUTHORIZATION_TOKEN", "hunter2");
    let ended = Running::start(&mut command).ended().await;
    assert!(ended.assert_success().contains("payments"), "{ended:#?}");
    let head = asked.recv().await.unwrap();
    assert!(
        head.starts_with("GET /creds HTTP/1.1\r\n") && head.to_lowercase().contains("authorization: hunter2"),
        "{head}"
    );
    assert!(proxied.try_recv().is_err(), "nothing goes to the proxy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_variable_that_cannot_be_used_is_named_and_its_password_is_not_shown() {
    let lab = Lab::start(one_cluster()).await;
    for (value, said) in [
        ("socks5://ann:hunter2@proxy:1080", "`HTTPS_PROXY` cannot be used: it names a SOCKS proxy"),
        ("http://ann:hunter2@pro xy", "`HTTPS_PROXY` cannot be used: it has no host"),
    ] {
        let ended = Running::start(lab.program(&["clusters", "-vv"]).env("HTTPS_PROXY", value)).ended().await;
        assert_eq!(ended.code(), Some(2), "{ended:#?}");
        assert!(ended.stderr.contains(said) && !ended.stderr.contains("hunter2"), "{ended:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_is_blamed_and_no_permission() {
    let lab = Lab::start(one_cluster()).await;
    let mut tasks = JoinSet::new();
    let (proxy, _heads) = serve(&mut tasks, 407, "{}".to_owned()).await;
    let mut command = lab.program(&["clusters"]);
    command.env("AWS_ENDPOINT_URL_STS", "https://sts.example").env("HTTPS_PROXY", format!("http://127.0.0.1:{proxy}"));
    let ended = Running::start(&mut command).ended().await;
    let said = format!("the proxy `127.0.0.1:{proxy}` requires a user name and password, but `HTTPS_PROXY` has none");
    assert!(ended.stderr.contains(&said), "{ended:#?}");
    assert!(ended.stderr.contains("hint: set `HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT`"), "{ended:#?}");
    assert!(ended.stderr.contains("NTLM"), "{ended:#?}");
    assert!(!ended.stderr.contains("policy"), "{ended:#?}");
}

/// The calls of STS that gave credentials.
fn assumed(lab: &Lab) -> Vec<String> {
    let mut actions = Vec::new();
    for event in lab.emulator.events() {
        if let Event::Api { action, error: None } = event
            && action.starts_with("sts:Assume")
        {
            actions.push(action);
        }
    }
    actions
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_an_earlier_step_come_before_the_token_of_the_ci_job() {
    let lab = Lab::start(Config { identity: Identity::StaticKeys, ..one_cluster() }).await;
    let role = lab.emulator.role_arn();
    let run = async |args: &[&str]| {
        let mut command = lab.program(args);
        command.args(["--role-arn", &role]).envs(lab.emulator.ci_environment());
        Running::start(&mut command).ended().await
    };
    let clusters = run(&["clusters", "-v"]).await;
    assert!(clusters.assert_success().contains("payments"), "{clusters:#?}");
    assert_eq!(assumed(&lab), ["sts:AssumeRole"], "{clusters:#?}");
    let taken = format!("role `{role}` assumed from keys in the environment");
    let why = "keys in the environment come first; without `AWS_ACCESS_KEY_ID` it is taken";
    assert!(clusters.stderr.contains(&taken), "{clusters:#?}");
    assert!(clusters.stderr.contains("OIDC token of the CI job") && clusters.stderr.contains(why), "{clusters:#?}");

    let doctor = run(&["doctor"]).await;
    assert!(doctor.stdout.contains(&format!("{taken}; passed over OIDC token of the CI job: {why}")), "{doctor:#?}");

    let mut command = lab.program(&["up", "--base-port", "0", "--role-arn", &role]);
    let mut up = Running::start(command.envs(lab.emulator.ci_environment()));
    up.ready().await;
    let status = lab.run(&["status"]).await;
    assert!(status.stdout.contains(&format!("\nsource      {taken}\n")), "{status:#?}");
    assert!(status.stdout.contains(&format!("\npassed over OIDC token of the CI job: {why}\n")), "{status:#?}");
    assert_eq!(up.stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_is_named_comes_before_the_tokens_of_pods_and_jobs() {
    let lab = Lab::start(one_cluster()).await;
    let keys: Vec<String> = lab.emulator.static_environment().into_iter().map(|(_, value)| value).collect();
    let role = lab.emulator.role_arn().replace("AutohealReadOnlyRole", "AutohealAdminRole");
    let config = format!(
        "[profile keys]\naws_access_key_id = {}\naws_secret_access_key = {}\naws_session_token = {}\n\
         [profile admin]\nrole_arn = {role}\nsource_profile = keys\n",
        keys[0], keys[1], keys[2]
    );
    std::fs::create_dir(lab.path(".aws")).unwrap();
    std::fs::write(lab.path(".aws/config"), config).unwrap();
    // What EKS puts into a pod, and a job of GitHub Actions.
    for (variables, args, calls, who) in [
        (vec![("AWS_PROFILE", "admin")], vec![], vec!["sts:AssumeRole"], "AutohealAdminRole"),
        (vec![("AWS_PROFILE", "keys")], vec![], vec!["sts:AssumeRoleWithWebIdentity"], "AutohealReadOnlyRole"),
        (vec![], vec!["--profile", "keys"], vec![], "AutohealReadOnlyRole"),
        (vec![], vec!["--profile", "keys", "--role-arn", &role], vec!["sts:AssumeRole"], "AutohealAdminRole"),
    ] {
        let before = assumed(&lab).len();
        let mut command = lab.program(&["doctor"]);
        command.args(&args).envs(lab.emulator.ci_environment()).envs(variables.clone());
        let ended = Running::start(&mut command).ended().await;
        assert_eq!(assumed(&lab)[before..], calls, "{variables:?} {args:?}: {ended:#?}");
        assert!(ended.stdout.contains(&format!(":assumed-role/{who}/")), "{variables:?} {args:?}: {ended:#?}");
    }
}
