//! Everything that a user, an administrator or a peer can get wrong: one sentence, the next step, the right
//! exit code, and nothing left behind.

use std::time::Duration;

use autoheal_pa::emulator::{
    BastionConfig, ClusterConfig, Config, Destination, Event, ExtraAction, Failure, Identity, StreamScheme,
};

use super::support::{Ended, Lab, PROGRAM, Running};

/// Runs `up` to its end with other variables than the lab's.
async fn up_with(lab: &Lab, args: &[&str], change: impl FnOnce(&mut tokio::process::Command)) -> Ended {
    let mut command = lab.program(&["up", "--base-port", "0"]);
    command.args(args);
    if !args.contains(&"--timeout") {
        command.args(["--timeout", "3s"]);
    }
    change(&mut command);
    Running::start(&mut command).ended().await
}

async fn up(lab: &Lab, args: &[&str]) -> Ended {
    up_with(lab, args, |_| {}).await
}

/// Checks the exit code, that stderr has all of `parts`, that stdout is empty, and that nothing is left.
async fn assert_fails(lab: &Lab, ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code(), Some(code), "{ended:#?}");
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("error: "), "{ended:#?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "`{part}` is missing\n{}", ended.stderr);
    }
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    lab.assert_clean().await;
}

async fn lab() -> Lab {
    Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_region_and_profile() {
    let lab = lab().await;
    let no_identity = |command: &mut tokio::process::Command| {
        command.env_remove("AWS_ROLE_ARN").env_remove("AWS_WEB_IDENTITY_TOKEN_FILE");
    };
    assert_fails(&lab, &up_with(&lab, &[], no_identity).await, 3, &["credentials", "hint: "]).await;

    let no_region = |command: &mut tokio::process::Command| {
        command.env_remove("AWS_REGION");
    };
    assert_fails(&lab, &up_with(&lab, &[], no_region).await, 2, &["region", "--region"]).await;

    let ended = up_with(&lab, &["--profile", "nosuch"], no_identity).await;
    assert_fails(&lab, &ended, 2, &["`nosuch`", "hint: "]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oidc_tokens_and_roles() {
    let lab = lab().await;
    let file = lab.path("token");
    let arg = file.to_str().unwrap();
    let with_token = ["--web-identity-token-file", arg];
    assert_fails(&lab, &up(&lab, &with_token).await, 3, &[arg, "hint: "]).await;

    std::fs::write(&file, "not a token").unwrap();
    assert_fails(&lab, &up(&lab, &with_token).await, 3, &[arg]).await;

    let mut claims = lab.emulator.oidc_claims(Duration::from_secs(600));
    claims.expires = Duration::from_secs(1_000_000);
    std::fs::write(&file, lab.emulator.mint_oidc_token(&claims)).unwrap();
    assert_fails(&lab, &up(&lab, &with_token).await, 3, &["expired"]).await;

    let mut claims = lab.emulator.oidc_claims(Duration::from_secs(600));
    claims.audience = "somebody-else".to_owned();
    std::fs::write(&file, lab.emulator.mint_oidc_token(&claims)).unwrap();
    assert_fails(&lab, &up(&lab, &with_token).await, 3, &["audience"]).await;

    let role = "arn:aws:iam::123456789012:role/Nobody";
    assert_fails(&lab, &up(&lab, &["--role-arn", role]).await, 3, &[role, "hint: "]).await;
    assert_fails(&lab, &up(&lab, &["--duration", "99h"]).await, 2, &["--duration"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters() {
    let lab = lab().await;
    let ended = up(&lab, &["--cluster", "payment"]).await;
    assert_fails(&lab, &ended, 4, &["`payment`", "us-east-1", "payments"]).await;

    let empty = Lab::start(Config { clusters: vec![], ..Config::default() }).await;
    assert_fails(&empty, &up(&empty, &[]).await, 4, &["us-east-1", "123456789012", "--region"]).await;

    let creating = Lab::start(Config { clusters: vec![ClusterConfig::creating("fresh")], ..Config::default() }).await;
    assert_fails(&creating, &up(&creating, &["--cluster", "fresh"]).await, 4, &["`fresh`", "CREATING"]).await;

    let denied = Lab::start(Config::default()).await;
    denied.emulator.update(|settings| {
        settings.denied_actions.insert("eks:ListClusters".to_owned());
    });
    assert_fails(&denied, &up(&denied, &[]).await, 3, &["eks:ListClusters", "hint: "]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bastions() {
    let lab = lab().await;
    assert_fails(&lab, &up(&lab, &["--bastion", "i-12"]).await, 2, &["`i-12` is not a bastion"]).await;

    let unknown = up(&lab, &["--bastion", "i-0fedcba9876543210"]).await;
    assert_fails(&lab, &unknown, 4, &["`payments`", "`i-0fedcba9876543210` does not exist", "us-east-1", "hint: "])
        .await;

    lab.emulator.update(|settings| {
        settings.denied_documents.insert("AWS-StartPortForwardingSessionToRemoteHost".to_owned());
    });
    let denied = up(&lab, &[]).await;
    assert_fails(&lab, &denied, 3, &["ssm:StartSession", "document/AWS-StartPortForwardingSessionToRemoteHost"]).await;

    let old = BastionConfig { agent_version: "3.0.100.0".to_owned(), ..BastionConfig::new("i-0dc03fbcae2a87472") };
    let old = Lab::start(Config { bastions: vec![old], ..Config::default() }).await;
    let ended = up(&old, &["--timeout", "30s"]).await;
    assert_fails(&old, &ended, 5, &["3.0.100.0", "3.1.1374.0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_that_is_away_is_told_from_one_that_does_not_exist() {
    let (away, gone) = ("i-0123456789abcdef0", "i-0fedcba9876543210");
    let bastions = vec![BastionConfig { online: false, ..BastionConfig::new(away) }];
    let lab = Lab::start(Config { bastions, ..Config::with_clusters(10) }).await;
    // A time that would fail the test: what does not exist is not waited for.
    let ended = up(&lab, &["--bastion", gone, "--timeout", "24h"]).await;
    assert_fails(&lab, &ended, 4, &[&format!("`{gone}` does not exist"), &format!("--instance-ids {gone} ")]).await;
    let asked = || {
        lab.count(
            |event| matches!(event, Event::Api { action, .. } if action.ends_with(":DescribeInstanceInformation")),
        )
    };
    assert_eq!(asked(), 1, "ten tunnels ask once");

    let ended = up(&lab, &["--bastion", away]).await;
    let parts =
        [&format!("`{away}` is not connected"), "version 3.3.1142.0, has lost contact", "aws ec2 start-instances"];
    assert_fails(&lab, &ended, 4, &parts).await;
    let both = up(&lab, &["--bastion", away, "--bastion", gone, "--timeout", "3s"]).await;
    assert_fails(&lab, &both, 4, &["i-0"]).await;

    lab.emulator.update(|settings| {
        settings.denied_actions.insert("ssm:DescribeInstanceInformation".to_owned());
    });
    let ended = up(&lab, &["--bastion", gone]).await;
    assert_fails(&lab, &ended, 4, &[&format!("`{gone}` is not connected"), "describe-instance-information"]).await;
    assert!(!ended.stderr.contains("AccessDenied"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_that_does_not_exist_or_may_not_be_used_is_passed_over() {
    let [absent, denied, good] = ["i-0fedcba9876543210", "i-00000000000000bad", "i-0dc03fbcae2a87472"];
    let lab = lab().await;
    lab.emulator.update(|settings| {
        settings.denied_bastions.insert(denied.to_owned());
    });
    let running = lab.up(&["--bastion", absent, "--bastion", denied, "--bastion", good]).await;
    let ended = running.stop().await;
    assert_eq!(ended.code(), Some(0));
    for passed_over in [absent, denied] {
        let word = |line: &&str| line.contains("turning to the next") && line.contains(passed_over);
        assert_eq!(ended.stderr.lines().filter(word).count(), 1, "{}", ended.stderr);
    }
    lab.assert_clean().await;

    // A time that would fail the test: neither is waited for, in whatever order.
    let ended = up(&lab, &["--bastion", absent, "--bastion", denied, "--timeout", "24h"]).await;
    assert_fails(&lab, &ended, 3, &["ssm:StartSession", denied, "hint: "]).await;
    let ended = up(&lab, &["--bastion", denied, "--bastion", absent, "--timeout", "24h"]).await;
    assert_fails(&lab, &ended, 4, &[absent, "hint: "]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_that_the_service_refuses_is_passed_over_or_fails_at_once() {
    let [node, good] = ["mi-0123456789abcdef0", "i-0dc03fbcae2a87472"];
    let bastions = vec![BastionConfig::new(node), BastionConfig::new(good)];
    let clusters = vec![ClusterConfig::new("payments")];
    let lab = Lab::start(Config { clusters, bastions, ..Config::default() }).await;
    lab.emulator.inject(&"standard-tier".parse().unwrap());
    let sentence = "Enable advanced-instances tier to use Session Manager with your on-premises instances";
    let ended = lab.up(&["--bastion", node, "--bastion", good]).await.stop().await;
    assert_eq!(ended.code(), Some(0));
    let word = |line: &&str| line.contains("turning to the next") && line.contains(node) && line.contains(sentence);
    assert_eq!(ended.stderr.lines().filter(word).count(), 1, "{}", ended.stderr);
    lab.assert_clean().await;

    // A time that would fail the test: what is refused is not waited for.
    let ended = up(&lab, &["--bastion", node, "--timeout", "24h"]).await;
    let mends = "aws ssm update-service-setting --setting-id \
                 arn:aws:ssm:us-east-1:123456789012:servicesetting/ssm/managed-instance/activation-tier --setting-value advanced \
                 --region us-east-1";
    let parts = [&format!("`ssm:StartSession` on `{node}` was refused: BadRequest: {sentence}"), mends];
    assert_fails(&lab, &ended, 5, &parts).await;

    for code in ["ValidationException", "UnsupportedOperationException", "SomethingNewException"] {
        let refusal = Failure::refused(code, "The service says why.");
        lab.emulator.update(|settings| {
            settings.failing_actions.insert("ssm:StartSession".to_owned(), refusal);
        });
        let ended = up(&lab, &["--bastion", good, "--timeout", "24h"]).await;
        let said = format!("`ssm:StartSession` on `{good}` was refused: {code}: The service says why.");
        assert_fails(&lab, &ended, 5, &[&said, "hint: "]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sts_refuses_is_said_at_once() {
    let lab = lab().await;
    lab.emulator.update(|settings| {
        let refusal = Failure::refused("PackedPolicyTooLarge", "Packed size of session tags consumes 120%");
        settings.failing_actions.insert("sts:AssumeRoleWithWebIdentity".to_owned(), refusal);
    });
    let ended = up(&lab, &["--timeout", "24h"]).await;
    assert_fails(&lab, &ended, 1, &["PackedPolicyTooLarge: Packed size of session tags", "hint: "]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_that_is_away_is_waited_for_even_if_the_next_may_not_be_used() {
    let [away, denied] = ["i-0dc03fbcae2a87472", "i-00000000000000bad"];
    let lab = lab().await;
    lab.emulator.update(|settings| {
        settings.offline_bastions.insert(away.to_owned());
        settings.denied_bastions.insert(denied.to_owned());
    });
    let mut up = lab.start_up(&["--bastion", away, "--bastion", denied]);
    assert!(up.says(&format!("`{away}` is not connected")).await, "{}", up.stderr_so_far());
    lab.wait_until("the next to be denied", |emulator| {
        emulator.events().iter().any(|event| {
            matches!(event, Event::Api { action, error: Some(error) }
                if action == "ssm:StartSession" && error == "AccessDeniedException")
        })
    })
    .await;
    lab.emulator.update(|settings| settings.offline_bastions.clear());
    up.ready().await;
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn encryption_is_refused_in_words_to_the_user_and_to_the_agent() {
    let lab = lab().await;
    let key = "arn:aws:kms:us-east-1:123456789012:key/1";
    lab.emulator.update(|settings| {
        settings.agent.extra_action = Some(ExtraAction::Kms(key.to_owned()));
        // So that the refusal is there well before the call that ends the session.
        settings.api_delay = Duration::from_millis(300);
    });
    let ended = up(&lab, &["--timeout", "30s"]).await;
    assert_fails(&lab, &ended, 5, &["KMS", key]).await;
    let reasons: Vec<_> = lab
        .emulator
        .events()
        .into_iter()
        .filter_map(|event| if let Event::SessionEnded { reason, .. } = event { Some(reason) } else { None })
        .collect();
    assert!(reasons.iter().any(|reason| reason == "the agent ended"), "the agent has its answer: {reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_and_files() {
    let lab = lab().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut strict = lab.program(&["up", "--strict-ports", "--base-port", &port]);
    let ended = Running::start(&mut strict).ended().await;
    assert_fails(&lab, &ended, 5, &[&format!("port {port} is taken by"), "--base-port"]).await;
    let asked = lab.emulator.events().len();

    // Below a file there can be no folder, whoever runs the test.
    let file = lab.path("file");
    std::fs::write(&file, "x").unwrap();
    let below = file.join("config");
    let ended = up(&lab, &["--kubeconfig", below.to_str().unwrap()]).await;
    assert_fails(&lab, &ended, 2, &[below.to_str().unwrap(), "--kubeconfig"]).await;

    for (text, part) in
        [("a: [1,", "line"), ("just a string\n", "is not a kubeconfig"), ("kind: Pod\n", "is not a kubeconfig")]
    {
        std::fs::write(&file, text).unwrap();
        let ended = up(&lab, &["--kubeconfig", file.to_str().unwrap()]).await;
        assert_fails(&lab, &ended, 2, &[file.to_str().unwrap(), part]).await;
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "nothing is changed");
    }

    let ended = up(&lab, &["--env-file", "/dev/null/env"]).await;
    assert_fails(&lab, &ended, 2, &["/dev/null/env"]).await;
    assert!(!ended.stderr.contains("ending the sessions"), "there are none\n{}", ended.stderr);

    // Nobody can make a file there, whoever runs the test.
    #[cfg(target_os = "linux")]
    {
        let ended = up(&lab, &["--kubeconfig", "/proc/autoheal-pa-config"]).await;
        assert_fails(&lab, &ended, 2, &["/proc/autoheal-pa-config", "--kubeconfig"]).await;
        assert!(!ended.stderr.contains(".tmp"), "nobody has asked for the temporary file\n{}", ended.stderr);
    }
    assert_eq!(lab.emulator.events().len(), asked, "files are tried before AWS is asked for anything");
}

/// All names below a folder.
fn names(folder: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_changes_nothing() {
    let lab = lab().await;
    let others = "apiVersion: v1\nkind: Config\ncontexts:\n- name: mine\n  context: {cluster: mine, user: mine}\n";
    std::fs::create_dir(lab.path(".kube")).unwrap();
    // A limit on the length of files fails a write as a full disk does: at its first byte, or in the middle.
    for blocks in ["0", "1"] {
        for old in [None, Some(others)] {
            match old {
                Some(text) => std::fs::write(lab.kubeconfig(), text).unwrap(),
                None => drop(std::fs::remove_file(lab.kubeconfig())),
            }
            let script = "trap '' XFSZ; ulimit -f $0; exec \"$@\"";
            let mut limited = lab.command("sh");
            limited.args(["-c", script, blocks, PROGRAM, "up", "--base-port", "0"]);
            let ended = Running::start(&mut limited).ended().await;
            let path = lab.kubeconfig().display().to_string();
            let parts = [
                &format!("cannot write the kubeconfig `{path}`: "),
                "too large",
                "\nhint: free some space for ",
                "--kubeconfig",
            ];
            assert_fails(&lab, &ended, 2, &parts).await;
            assert_eq!(std::fs::read_to_string(lab.kubeconfig()).ok().as_deref(), old);
            assert_eq!(names(&lab.path(".kube")).len(), usize::from(old.is_some()), "{:?}", names(&lab.path(".kube")));
        }
    }
    assert!(lab.emulator.events().is_empty(), "the disk is tried first");
    assert_eq!(lab.up(&[]).await.stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_written_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let lab = lab().await;
    let folder = lab.path("fixed");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o555)).unwrap();
    // Nothing is forbidden to root but what the kernel makes up itself.
    let folder = if rustix::process::getuid().is_root() { "/proc/self".into() } else { folder };
    let path = folder.join("config");
    let ended = up(&lab, &["--kubeconfig", path.to_str().unwrap()]).await;
    assert_fails(&lab, &ended, 2, &[&format!("cannot write the kubeconfig `{}`: ", path.display()), "--kubeconfig"])
        .await;
    assert!(lab.emulator.sessions().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_are_not_who_they_should_be() {
    let lab = lab().await;
    lab.emulator.update(|settings| settings.foreign_stream_host = Some("gateway.example.com".to_owned()));
    let foreign = up(&lab, &[]).await;
    assert_eq!(foreign.code(), Some(5), "{foreign:#?}");
    assert!(foreign.stderr.contains("`gateway.example.com`"), "{foreign:#?}");
    lab.emulator.update(|settings| settings.foreign_stream_host = None);

    lab.emulator.update(|settings| settings.wrong_certificate = true);
    let wrong = up(&lab, &["--timeout", "30s"]).await;
    assert_eq!(wrong.code(), Some(5), "{wrong:#?}");
    assert!(wrong.stderr.contains("certificate"), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_certificate_authorities_is_told_what_to_install() {
    let clusters = vec![ClusterConfig::new("payments")];
    let lab = Lab::start(Config { clusters, stream_scheme: StreamScheme::Wss, ..Config::default() }).await;
    let none = lab.path("none");
    let mut command = lab.program(&["up", "--base-port", "0", "--timeout", "1s"]);
    let mut up =
        Running::start(command.env_remove("AWS_CA_BUNDLE").env("SSL_CERT_FILE", &none).env("SSL_CERT_DIR", &none));
    for part in ["invalid peer certificate: UnknownIssuer", "package `ca-certificates`"] {
        assert!(up.says(part).await, "{}", up.stderr_so_far());
    }
    assert_eq!(up.stop().await.code(), Some(143));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_wrong_with_the_settings_is_said_at_once() {
    let lab = Lab::start(Config { identity: Identity::StaticKeys, ..Config::default() }).await;
    let args = ["up", "--bastion", "bastion", "--base-port", "99999", "--timeout", "soon", "--name", "a/b"];
    let ended = Running::start(lab.bare_command(PROGRAM).args(args)).ended().await;
    assert_fails(&lab, &ended, 2, &["`bastion`", "99999", "`soon`", "a/b"]).await;
    assert!(lab.emulator.events().is_empty(), "no call has left the machine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_does_not_answer_is_named() {
    let lab = lab().await;
    lab.emulator.update(|settings| {
        settings.destinations.insert("*".to_owned(), Destination::Refused);
    });
    let mut up = lab.start_up(&["--timeout", "2s"]);
    assert!(up.says("security group").await, "{}", up.stderr_so_far());
    let ended = up.stop().await;
    assert_eq!(ended.code(), Some(143), "{ended:#?}");
}
