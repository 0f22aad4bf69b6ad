//! `doctor` against an emulated AWS in which one link is broken, and what it says of each.

use std::{fs, time::Duration};

use autoheal_pa::emulator::{
    BastionConfig, ClusterConfig, Config, Destination, ExtraAction, Identity, Resume, Settings, Upgrade,
};
use rustix::process::Signal;
use serde_json::Value;

use super::support::{Ended, Lab, PROGRAM, Running, has_ended};

const BASTION: &str = "i-0dc03fbcae2a87472";
const OTHER_BASTION: &str = "i-0fedcba9876543210";

/// One cluster, as little as there can be.
fn config() -> Config {
    Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }
}

async fn lab() -> Lab {
    Lab::start(config()).await
}

/// A lab with something wrong in it.
async fn broken(change: impl FnOnce(&mut Settings)) -> Lab {
    let lab = lab().await;
    lab.emulator.update(change);
    lab
}

/// A lab in which an action is denied.
async fn denying(action: &str) -> Lab {
    broken(|settings| settings.denied_actions.extend([action.to_owned()])).await
}

fn command(lab: &Lab, args: &[&str]) -> tokio::process::Command {
    let mut command = lab.program(&["doctor"]);
    command.args(args).env("AWS_ROLE_SESSION_NAME", "alice");
    command
}

async fn doctor(lab: &Lab, args: &[&str]) -> Ended {
    Running::start(&mut command(lab, args)).ended().await
}

/// Everything that the user sees, without what differs from run to run.
fn shown(lab: &Lab, ended: &Ended) -> String {
    let mut text = format!("{}---\n{}exit code {}", ended.stdout, ended.stderr, ended.code().unwrap_or(-1));
    for server in lab.emulator.api_servers() {
        let id = server.host.split('.').next().unwrap();
        text = text.replace(id, "<ID>");
    }
    for session in lab.emulator.sessions() {
        text = text.replace(&session.id, "<SESSION>");
    }
    text = text.replace(&lab.emulator.token_file().display().to_string(), "<TOKEN FILE>");
    text = text.replace(&lab.home.path().display().to_string(), "<HOME>");
    normalised(&text)
}

/// Replaces times, durations in milliseconds and UUIDs.
fn normalised(text: &str) -> String {
    let shape = |word: &str| -> String {
        word.chars()
            .map(|c| {
                if c.is_ascii_digit() {
                    '0'
                } else if c.is_ascii_hexdigit() {
                    'a'
                } else {
                    c
                }
            })
            .collect()
    };
    let is_uuid = |word: &str| {
        let parts: Vec<usize> = word.split('-').map(str::len).collect();
        parts == [8, 4, 4, 4, 12] && word.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
    };
    let mut out = String::new();
    for piece in text.split_inclusive(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | ':'))) {
        let word = piece.trim_end_matches(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | ':')));
        let rest = &piece[word.len()..];
        let word = if shape(word) == "0000-00-00T00:00:00Z" {
            "<TIME>"
        } else if is_uuid(word) {
            "<UUID>"
        } else {
            word
        };
        out.push_str(word);
        out.push_str(rest);
    }
    out
}

macro_rules! assert_shown {
    ($lab:expr, $ended:expr, $code:literal) => {{
        let (lab, ended) = (&$lab, &$ended);
        assert_eq!(ended.code(), Some($code), "{ended:#?}");
        lab.assert_clean().await;
        insta::assert_snapshot!(shown(lab, ended));
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn all_is_well() {
    let lab = lab().await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 0);
    let session = &lab.emulator.sessions()[0];
    assert_eq!((lab.emulator.sessions().len(), session.resumes, session.transports), (1, 1, 2));
    assert_eq!(session.reason.as_deref(), Some("autoheal-pa doctor"));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_clusters_and_bastions() {
    let bastions =
        vec![BastionConfig { online: false, ..BastionConfig::new(BASTION) }, BastionConfig::new(OTHER_BASTION)];
    let lab = Lab::start(Config { bastions, ..Config::default() }).await;
    let ended = doctor(&lab, &["--bastion", BASTION, "--bastion", OTHER_BASTION]).await;
    assert_shown!(lab, ended, 6);
    assert_eq!(lab.emulator.sessions().len(), 2, "one for each cluster");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_bastion_is_given() {
    let lab = lab().await;
    let ended = Running::start(command(&lab, &[]).env_remove("AUTOHEAL_PA_BASTION")).ended().await;
    assert_shown!(lab, ended, 0);
}

// Region, credentials, identity.

#[tokio::test(flavor = "multi_thread")]
async fn no_region() {
    let lab = lab().await;
    let ended = Running::start(command(&lab, &[]).env_remove("AWS_REGION")).ended().await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_credentials() {
    let lab = lab().await;
    let mut command = command(&lab, &[]);
    for name in ["AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_SESSION_NAME"] {
        command.env_remove(name);
    }
    let ended = Running::start(&mut command).ended().await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_credentials() {
    let lab = Lab::start(Config { identity: Identity::StaticKeys, ..config() }).await;
    let mut command = command(&lab, &[]);
    lab.emulator.expire_credentials();
    let ended = Running::start(&mut command).ended().await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_audience() {
    let lab = lab().await;
    let file = lab.path("token");
    let mut claims = lab.emulator.oidc_claims(Duration::from_secs(600));
    claims.audience = "somebody-else".to_owned();
    fs::write(&file, lab.emulator.mint_oidc_token(&claims)).unwrap();
    let ended = doctor(&lab, &["--web-identity-token-file", file.to_str().unwrap()]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn role_denied() {
    let lab = lab().await;
    let ended = doctor(&lab, &["--role-arn", "arn:aws:iam::123456789012:role/Nobody"]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_about_to_end() {
    let lab = Lab::start(Config { credential_lifetime: Some(Duration::from_secs(200)), ..config() }).await;
    let ended = doctor(&lab, &["--cluster", "nosuch"]).await;
    let line = ended.stdout.lines().find(|line| line.starts_with("warning  identity")).unwrap();
    assert!(line.contains("credentials for 3 min"), "{}", ended.stdout);
}

// EKS.

#[tokio::test(flavor = "multi_thread")]
async fn list_denied() {
    let lab = denying("eks:ListClusters").await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);
    let named = doctor(&lab, &["--cluster", "payments"]).await;
    assert_eq!(named.code(), Some(0), "{named:#?}");
    assert!(named.stdout.contains("\nwarning  list clusters"), "{named:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn describe_denied() {
    let lab = denying("eks:DescribeCluster").await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_such_cluster() {
    let lab = lab().await;
    let ended = doctor(&lab, &["--cluster", "payment"]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_creating() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::creating("payments")], ..Config::default() }).await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn public_only() {
    let cluster = ClusterConfig { public_access: true, private_access: false, ..ClusterConfig::new("payments") };
    let lab = Lab::start(Config { clusters: vec![cluster], ..Config::default() }).await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 0);
}

// The bastion.

#[tokio::test(flavor = "multi_thread")]
async fn bastion_unknown() {
    let lab = lab().await;
    let ended = doctor(&lab, &["--bastion", "i-0123456789abcdef0"]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn bastion_offline() {
    let lab = broken(|settings| settings.offline_bastions.extend([BASTION.to_owned()])).await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_too_old() {
    let lab = broken(|settings| settings.agent.version = Some("3.1.1188.0".to_owned())).await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_managed_nodes_is_optional() {
    let lab = denying("ssm:DescribeInstanceInformation").await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 0);

    // What it would have said comes out later.
    lab.emulator.update(|settings| settings.agent.version = Some("3.1.1188.0".to_owned()));
    let ended = doctor(&lab, &[]).await;
    assert!(ended.stdout.contains("\nfailed   agent handshake"), "{ended:#?}");
    assert!(ended.stdout.contains("fix:   aws ssm send-command --document-name AWS-UpdateSSMAgent"), "{ended:#?}");
    lab.emulator.update(|settings| {
        settings.agent.version = None;
        settings.offline_bastions.insert(BASTION.to_owned());
    });
    let ended = doctor(&lab, &[]).await;
    assert!(ended.stdout.contains("\nfailed   start session"), "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_are_not_in_the_list() {
    let id = "ecs:tools_0123_4567";
    let lab = Lab::start(Config { bastions: vec![BastionConfig::new(id)], ..config() }).await;
    let ended = doctor(&lab, &[]).await;
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    assert!(
        ended.stdout.contains(
            "skipped  3 checks             ecs:tools_0123_4567: `bastion known` to `agent version`: ECS containers"
        ),
        "{ended:#?}"
    );
    lab.assert_clean().await;
}

// The session.

#[tokio::test(flavor = "multi_thread")]
async fn start_denied() {
    let lab = denying("ssm:StartSession").await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn document_denied() {
    let document = "AWS-StartPortForwardingSessionToRemoteHost".to_owned();
    let lab = broken(|settings| settings.denied_documents.extend([document])).await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_channel_denied() {
    let lab = denying("ssmmessages:OpenDataChannel").await;
    let ended = doctor(&lab, &[]).await;
    lab.assert_clean().await;
    let shown = without_log(&shown(&lab, &ended));
    insta::assert_snapshot!(shown);

    // As long as the service takes unsigned ones, there is a way.
    lab.emulator.update(|settings| settings.upgrade = Upgrade::SignedOrNot);
    let ended = doctor(&lab, &[]).await;
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    assert!(ended.stdout.contains("\nwarning  data channel"), "{ended:#?}");
}

/// Leaves out lines of the log, which have times in them.
fn without_log(text: &str) -> String {
    text.lines().filter(|line| !line.contains(" WARN ")).map(|line| format!("{line}\n")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn handshake_silent() {
    let lab = broken(|settings| settings.agent.handshake_delay = Duration::from_secs(3600)).await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn handshake_that_asks_too_much() {
    let lab = broken(|settings| settings.agent.extra_action = Some(ExtraAction::Kms("key".to_owned()))).await;
    let ended = doctor(&lab, &[]).await;
    assert_eq!(ended.code(), Some(6), "{ended:#?}");
    assert!(ended.stdout.contains("\nfailed   agent handshake      payments through"), "{ended:#?}");
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resume_denied() {
    let lab = denying("ssm:ResumeSession").await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn resume_refused() {
    let lab = broken(|settings| settings.resume = Resume::Refused).await;
    let ended = doctor(&lab, &[]).await;
    assert_eq!(ended.code(), Some(6), "{ended:#?}");
    assert!(ended.stdout.contains("\nfailed   resume session"), "{ended:#?}");
    assert!(ended.stdout.contains("open connections do not survive"), "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn terminate_denied() {
    let lab = denying("ssm:TerminateSession").await;
    let ended = doctor(&lab, &[]).await;
    // It has been ended all the same: the agent was told.
    assert_shown!(lab, ended, 6);
}

// What is behind the bastion.

fn destination(settings: &mut Settings, destination: Destination) {
    settings.destinations.insert("*".to_owned(), destination);
}

#[tokio::test(flavor = "multi_thread")]
async fn destination_refused() {
    let lab = broken(|settings| destination(settings, Destination::Refused)).await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn destination_black_holed() {
    let lab = broken(|settings| destination(settings, Destination::BlackHole)).await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn name_not_resolvable() {
    let lab = broken(|settings| destination(settings, Destination::Unresolvable)).await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);
}

/// Leads every name to an address that agents refuse.
fn forbidden(settings: &mut Settings) {
    settings.addresses.insert("*".to_owned(), [127, 0, 0, 1].into());
    settings.agent.version = Some("3.3.5068.0".to_owned());
}

#[tokio::test(flavor = "multi_thread")]
async fn destination_forbidden() {
    let lab = broken(forbidden).await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);

    // Not so for an agent that does not mind.
    lab.emulator.update(|settings| settings.agent.version = Some("3.3.1142.0".to_owned()));
    assert_eq!(doctor(&lab, &[]).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_destination_fails_the_tunnel_with_the_words_of_the_agent() {
    let lab = broken(forbidden).await;
    let mut up = lab.start_up(&["--timeout", "2s"]);
    let line = "the agent refuses this destination: Forwarding to IP address";
    assert!(up.says(line).await, "{}", up.stderr_so_far());
    assert!(up.says("hint: on the bastion `").await, "{}", up.stderr_so_far());
    lab.emulator.update(|settings| settings.addresses.clear());
    let ended = up.ended().await;
    assert_eq!(ended.code(), Some(5), "{ended:#?}");
    assert_eq!(lab.emulator.sessions().len(), 1, "what only a human can mend is not tried again and again");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_certificate() {
    let lab = broken(|settings| settings.wrong_certificate = true).await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);
}

async fn without_access_entry(mode: Option<&str>) -> (Lab, Ended) {
    let cluster = ClusterConfig {
        access_entry: false,
        authentication_mode: mode.map(ToOwned::to_owned),
        ..ClusterConfig::new("payments")
    };
    let lab = Lab::start(Config { clusters: vec![cluster], ..Config::default() }).await;
    let ended = doctor(&lab, &[]).await;
    (lab, ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_access_entry() {
    let (lab, ended) = without_access_entry(Some("API_AND_CONFIG_MAP")).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn not_in_the_config_map() {
    let (lab, ended) = without_access_entry(Some("CONFIG_MAP")).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_view_policy() {
    let lab = broken(|settings| settings.no_view_policy = true).await;
    let ended = doctor(&lab, &[]).await;
    assert_shown!(lab, ended, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_api_server_is_not_asked_who_i_am() {
    let cluster = ClusterConfig { version: "1.27".to_owned(), ..ClusterConfig::new("payments") };
    let lab = Lab::start(Config { clusters: vec![cluster], ..Config::default() }).await;
    let ended = doctor(&lab, &[]).await;
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    assert!(ended.stdout.contains("\nskipped  who am I"), "{ended:#?}");
    assert!(ended.stdout.contains("\nok       may list pods"), "{ended:#?}");
}

// The form.

#[tokio::test(flavor = "multi_thread")]
async fn json_has_the_documented_keys_and_types() {
    let lab = broken(|settings| settings.no_view_policy = true).await;
    let ended = doctor(&lab, &["--json"]).await;
    assert_eq!(ended.code(), Some(6), "{ended:#?}");
    let document: Value = serde_json::from_str(&ended.stdout).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&document), ["checks", "ok", "version"]);
    assert_eq!((&document["version"], &document["ok"]), (&1.into(), &false.into()));
    let checks = document["checks"].as_array().unwrap();
    let wanted =
        ["answer", "cluster", "duration_ms", "fixes", "id", "meaning", "region", "status", "target", "title", "tried"];
    let text_or_null = |value: &Value| value.is_string() || value.is_null();
    for check in checks {
        assert_eq!(keys(check), wanted, "{check}");
        for key in ["id", "title", "tried"] {
            assert!(check[key].as_str().is_some_and(|text| !text.is_empty()), "{check}");
        }
        for key in ["answer", "meaning", "region", "cluster", "target"] {
            assert!(text_or_null(&check[key]), "{check}");
        }
        assert!(check["fixes"].as_array().unwrap().iter().all(Value::is_string), "{check}");
        assert!(check["duration_ms"].is_u64(), "{check}");
        assert!(["ok", "warning", "failed", "skipped"].contains(&check["status"].as_str().unwrap()), "{check}");
    }
    let ids: Vec<&str> = checks.iter().map(|check| check["id"].as_str().unwrap()).collect();
    assert_eq!(
        ids,
        [
            "region",
            "credentials",
            "identity",
            "least-privilege",
            "list-clusters",
            "describe-cluster",
            "cluster-status",
            "endpoint-access",
            "bastion-known",
            "bastion-online",
            "agent-version",
            "start-session",
            "data-channel",
            "handshake",
            "endpoint",
            "certificate",
            "api",
            "who-am-i",
            "list-pods",
            "resume-session",
            "terminate-session",
        ]
    );
    let failed: Vec<&Value> = checks.iter().filter(|check| check["status"] == "failed").collect();
    assert_eq!(failed.len(), 1);
    assert_eq!((&failed[0]["id"], &failed[0]["cluster"]), (&"list-pods".into(), &"payments".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_are_said_before_any_call() {
    let lab = lab().await;
    let args = ["doctor", "--bastion", "bastion", "--cluster", "a b"];
    let ended = Running::start(lab.bare_command(PROGRAM).args(args)).ended().await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.contains("`bastion`") && ended.stderr.contains("`a b`"), "{ended:#?}");
    assert!(lab.emulator.events().is_empty(), "no call has left the machine");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_the_session() {
    let lab = broken(|settings| destination(settings, Destination::BlackHole)).await;
    let mut running = Running::start(&mut command(&lab, &[]));
    assert!(running.prints("agent handshake").await, "{}", running.stderr_so_far());
    running.signal(Signal::INT);
    let ended = running.ended().await;
    assert_eq!(ended.code(), Some(130), "{ended:#?}");
    assert_eq!(lab.emulator.sessions().len(), 1);
    lab.assert_clean().await;
}

/// The entries of a JSON report, without what differs from run to run.
fn ids(ended: &Ended) -> Vec<(String, String)> {
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let entries = report["checks"].as_array().unwrap().iter();
    let word = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
    entries.map(|entry| (word(entry, "id"), word(entry, "status"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_manager_examines_itself_with_its_own_credentials_and_ports() {
    let lab = Lab::start(Config::default()).await;
    let up = lab.up(&[]).await;
    // A shell that knows nothing of AWS.
    let mut bare = lab.bare_command(PROGRAM);
    let ended = Running::start(bare.args(["doctor", "--json", "--cluster", "payments"])).ended().await;
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    let found = ids(&ended);
    assert!(found.iter().all(|(_, status)| status == "ok"), "{found:?}");
    assert!(found.iter().any(|(id, _)| id == "local-port"), "{found:?}");
    assert_eq!(found.iter().filter(|(id, _)| id == "start-session").count(), 1, "only the cluster that was named");

    lab.emulator.update(|settings| settings.no_access_entry = true);
    let ended = Running::start(lab.bare_command(PROGRAM).args(["doctor"])).ended().await;
    assert_eq!(ended.code(), Some(6), "{ended:#?}");
    assert!(ended.stdout.contains("fix:   aws eks create-access-entry --cluster-name search"), "{}", ended.stdout);

    let unknown = Running::start(lab.bare_command(PROGRAM).args(["doctor", "--cluster", "no"])).ended().await;
    assert!(unknown.stderr.contains("the manager has no tunnel to `no`"), "{unknown:#?}");
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_examination_that_nobody_listens_to_leaves_no_session() {
    let lab = lab().await;
    let up = lab.up(&[]).await;
    let before = lab.emulator.sessions().len();
    lab.emulator.update(|settings| settings.agent.handshake_delay = Duration::from_secs(3600));
    let doctor = Running::start(lab.bare_command(PROGRAM).args(["doctor"]));
    lab.wait_until("its session", |emulator| emulator.sessions().len() > before).await;
    doctor.signal(Signal::KILL);
    let _killed = doctor.ended().await;
    lab.wait_until("its end", |emulator| emulator.sessions().iter().filter(|session| !has_ended(session)).count() == 1)
        .await;
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}
