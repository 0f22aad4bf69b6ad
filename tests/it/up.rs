//! `up`, `clusters`, `env` and `token`: the main job from outside.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use autoheal_pa::emulator::{BastionConfig, CallRate, ClusterConfig, Config, Event, Identity, StreamScheme};
use rustix::process::Signal;

use super::support::{Lab, PROGRAM, Running};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_slow_to_speak_is_waited_for_and_named() {
    let [slow, other] = ["i-0dc03fbcae2a87472", "i-0fedcba9876543210"];
    let bastions = vec![BastionConfig::new(slow), BastionConfig::new(other)];
    let clusters = vec![ClusterConfig::new("payments")];
    let lab = Lab::start(Config { clusters, bastions, ..Config::default() }).await;
    lab.emulator.inject(&"slow-agent=6s".parse().unwrap());
    let mut up = lab.start_up(&["--bastion", slow, "--timeout", "4s"]);
    assert!(up.says(&format!("starting: waiting for the agent on `{slow}`")).await, "{}", up.stderr_so_far());
    let status = Running::start(lab.bare_command(PROGRAM).args(["status"])).ended().await;
    assert!(status.assert_success().contains(&format!("\n  waiting for the agent on `{slow}`\n")), "{}", status.stdout);
    let message = format!("error: the tunnel to `payments` is still waiting for the agent on `{slow}`");
    assert!(up.says(&message).await, "{}", up.stderr_so_far());
    assert!(up.says("`--timeout` sets how long to wait for an agent").await, "{}", up.stderr_so_far());
    up.ready().await;
    let ended = up.stop().await;
    assert!(!ended.stderr.contains("did not complete the handshake"), "{}", ended.stderr);

    // A time that is too short for it: each gives way to the other, and then it is waited for all the same.
    let mut up = lab.start_up(&["--bastion", slow, "--bastion", other, "--timeout", "3s"]);
    assert!(up.says("`--timeout` sets how long to wait for an agent").await, "{}", up.stderr_so_far());
    up.ready().await;
    assert_eq!(up.stop().await.code(), Some(0));
    let on = |target: &str| lab.emulator.sessions().iter().filter(|session| session.target == target).count();
    assert_eq!((on(slow), on(other)), (3, 1), "one of the first run, then each in turn");
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opens_tunnels_and_ends_its_sessions() {
    let lab = Lab::start(Config::default()).await;
    let up = lab.up(&["--reason", "INC-42"]).await;
    let mode = std::fs::metadata(lab.kubeconfig()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(lab.emulator.sessions().len(), 2);

    let ended = up.stop().await;
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    assert_eq!(ended.stdout, "tunnel ready\n");
    assert!(ended.stderr.contains("identity arn:aws:sts::123456789012:assumed-role/AutohealReadOnlyRole/autoheal-pa-"));
    assert!(lab.count(|event| matches!(event, Event::TransportOpened { signed: true, .. })) >= 2);
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn works_over_tls_with_a_ca_bundle() {
    let lab = Lab::start(Config { stream_scheme: StreamScheme::Wss, ..Config::default() }).await;
    let ended = lab.up(&[]).await.stop().await;
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_clusters_come_up_together() {
    let lab = Lab::start(Config::with_clusters(10)).await;
    let up = lab.up(&[]).await;
    assert_eq!(lab.emulator.sessions().len(), 10);
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

/// Nobody knows how many calls AWS answers.
#[tokio::test(flavor = "multi_thread")]
async fn many_clusters_come_up_where_few_calls_a_second_are_answered() {
    const CLUSTERS: usize = 40;
    let lab = Lab::start(Config::with_clusters(CLUSTERS)).await;
    lab.emulator.update(|settings| {
        for (action, rate) in [("eks:DescribeCluster", 10), ("ssm:StartSession", 5), ("ssm:TerminateSession", 5)] {
            settings.call_rates.insert(action.to_owned(), CallRate::new(rate));
        }
    });
    let up = lab.up(&[]).await;
    assert_eq!(lab.emulator.sessions().len(), CLUSTERS);
    let ended = up.stop().await;
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    for action in ["eks:DescribeCluster", "ssm:StartSession"] {
        let calls = |throttled| {
            lab.count(
                |event| matches!(event, Event::Api { action: a, error } if a == action && error.is_some() == throttled),
            )
        };
        assert_eq!(calls(false), CLUSTERS, "{action}");
        assert!((1..3 * CLUSTERS).contains(&calls(true)), "{action}: {}", calls(true));
    }
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_started_while_clusters_are_still_looked_for() {
    let lab = Lab::start(Config::with_clusters(40)).await;
    // Each call takes longer than anything else here, and some six clusters are described at a time.
    lab.emulator.update(|settings| settings.api_delay = Duration::from_millis(100));
    let up = lab.up(&[]).await;
    let events = lab.emulator.events();
    let started = events.iter().position(|event| matches!(event, Event::SessionStarted { .. })).unwrap();
    let is_description = |event: &Event| matches!(event, Event::Api { action, .. } if action == "eks:DescribeCluster");
    let described = events.iter().rposition(is_description).unwrap();
    assert!(started < described, "the first session is event {started}, the last description event {described}");
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_are_looked_for_while_the_identity_is_asked_for_and_said_later() {
    let held = ["sts:GetCallerIdentity", "eks:ListClusters"].map(str::to_owned);
    for (denied, last) in [(None, "there is no cluster to open a tunnel to"), (Some("eks:ListClusters"), "error: ")] {
        let lab = Lab::start(Config { clusters: vec![ClusterConfig::creating("fresh")], ..Config::default() }).await;
        lab.emulator.update(|settings| {
            settings.held_actions.extend([held.clone().into()]);
            settings.denied_actions.extend(denied.map(str::to_owned));
        });
        let ended = lab.start_up(&[]).ended().await;
        let place = |text| ended.stderr.find(text).unwrap_or_else(|| panic!("no `{text}` in\n{}", ended.stderr));
        let identity = place("identity arn:aws:sts::");
        assert!(identity < place(last), "{}", ended.stderr);
        assert!(denied.is_some() || identity < place("skipped `fresh`"), "{}", ended.stderr);
        lab.assert_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_pages_of_the_list_are_read_and_what_cannot_be_reached_is_skipped() {
    let mut config = Config { list_page_len: 2, ..Config::with_clusters(5) };
    config.clusters.push(ClusterConfig::creating("fresh"));
    config.clusters.push(ClusterConfig::connected("elsewhere"));
    let lab = Lab::start(config).await;
    let ended = lab.up(&[]).await.stop().await;
    assert!(ended.stderr.contains("skipped `fresh`: its status is CREATING"), "{}", ended.stderr);
    assert_eq!(lab.emulator.sessions().len(), 5);
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failing_cluster_does_not_stop_the_others() {
    let lab = Lab::start(Config::default()).await;
    let refused = lab.emulator.cluster_names()[1].clone();
    lab.emulator.update(|settings| {
        settings.destinations.insert("*".to_owned(), autoheal_pa::emulator::Destination::Refused);
    });
    let mut up = lab.start_up(&["--timeout", "2s", "--cluster", "payments", "--cluster", &refused]);
    assert!(up.says("still trying").await, "{}", up.stderr_so_far());
    lab.emulator.update(|settings| settings.destinations.clear());
    up.ready().await;
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_before_the_tunnels_are_ready_is_told_from_one_after() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let lab = Lab::start(Config::default()).await;
        lab.emulator.update(|settings| {
            settings.destinations.insert("*".to_owned(), autoheal_pa::emulator::Destination::BlackHole);
        });
        let up = lab.start_up(&[]);
        lab.wait_until("both sessions", |emulator| {
            let connects = |event: &Event| matches!(event, Event::HandshakeComplete { .. });
            emulator.events().iter().filter(|event| connects(event)).count() == 2
        })
        .await;
        up.signal(signal);
        let ended = up.ended().await;
        assert_eq!(ended.code(), Some(code), "{ended:#?}");
        assert_eq!(ended.stdout, "");
        lab.assert_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_interrupt_exits_at_once() {
    let lab = Lab::start(Config::default()).await;
    let mut up = lab.up(&[]).await;
    lab.emulator.update(|settings| settings.api_delay = Duration::from_secs(60));
    up.signal(Signal::INT);
    assert!(up.says("stopping").await, "{}", up.stderr_so_far());
    up.signal(Signal::INT);
    assert_eq!(up.ended().await.code(), Some(130));
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_open_files_is_raised_to_what_is_allowed() {
    let lab = Lab::start(Config::default()).await;
    let mut command = lab.command("sh");
    let script = "ulimit -Sn 256 && ulimit -Hn 3000 && exec \"$@\"";
    let mut up = Running::start(command.args(["-c", script, "sh", PROGRAM, "up", "--base-port", "0"]));
    up.ready().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", up.pid())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<_> = files.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).collect();
    assert_eq!(numbers, [3000, 3000]);
    assert_eq!(up.stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_up_has_left_is_taken_over() {
    let lab = Lab::start(Config::default()).await;
    let killed = lab.up(&[]).await;
    killed.signal(Signal::KILL);
    assert_eq!(killed.ended().await.code(), None);
    let up = lab.up(&[]).await;
    assert_eq!(up.stop().await.code(), Some(0));
    assert_eq!(lab.emulator.violations(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_source_of_credentials_leads_to_tunnels() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("one")], ..Config::default() }).await;
    let role = lab.emulator.role_arn();
    let base: Vec<_> = lab.emulator.environment();
    let without_role =
        || base.iter().filter(|(name, _)| !name.contains("ROLE") && !name.contains("TOKEN_FILE")).cloned();

    let ci = without_role().chain(lab.emulator.ci_environment());
    let chained = without_role().chain(lab.emulator.static_environment());
    let keys = without_role().chain(lab.emulator.static_environment());
    let cases = [
        ("CI token", ci.collect::<Vec<_>>(), vec!["--role-arn", &role]),
        ("role chaining", chained.collect(), vec!["--role-arn", &role, "--role-session-name", "ann@example.com"]),
        ("keys", keys.collect(), vec![]),
    ];
    for (name, variables, args) in cases {
        let mut command = lab.bare_command(PROGRAM);
        command.args(["up", "--base-port", "0"]).args(args).envs(variables);
        let mut up = Running::start(&mut command);
        up.ready().await;
        let ended = up.stop().await;
        assert_eq!(ended.code(), Some(0), "{name}: {ended:#?}");
        if name == "role chaining" {
            assert!(ended.stderr.contains("/AutohealReadOnlyRole/ann@example.com"), "{}", ended.stderr);
        }
    }
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_is_named_by_a_flag_wins_over_keys_in_the_environment() {
    let lab = Lab::start(Config { identity: Identity::StaticKeys, ..Config::default() }).await;
    let key = |wanted: &str| {
        let variables = lab.emulator.static_environment();
        variables.into_iter().find(|(name, _)| name == wanted).expect("a key").1
    };
    let credentials = format!(
        "[ci]\naws_access_key_id = {}\naws_secret_access_key = {}\naws_session_token = {}\n",
        key("AWS_ACCESS_KEY_ID"),
        key("AWS_SECRET_ACCESS_KEY"),
        key("AWS_SESSION_TOKEN")
    );
    std::fs::create_dir(lab.path(".aws")).unwrap();
    std::fs::write(lab.path(".aws/credentials"), credentials).unwrap();
    let mut command = lab.program(&["clusters", "--profile", "ci"]);
    command.env("AWS_ACCESS_KEY_ID", "AKIAWRONG").env("AWS_SECRET_ACCESS_KEY", "wrong").env_remove("AWS_SESSION_TOKEN");
    assert!(Running::start(&mut command).ended().await.assert_success().contains("payments"));

    command = lab.program(&["clusters"]);
    command.env("AWS_PROFILE", "ci").env("AWS_ACCESS_KEY_ID", "AKIAWRONG").env_remove("AWS_SESSION_TOKEN");
    assert_eq!(Running::start(&mut command).ended().await.code(), Some(3), "the variable does not");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_sequential_and_taken_ones_are_skipped() {
    let lab = Lab::start(Config::with_clusters(3)).await;
    // Some port that is taken, with free ones behind it as far as anybody can tell.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut up = Running::start(&mut lab.program(&["up", "--base-port", &port.to_string()]));
    up.ready().await;
    let ended = up.stop().await;
    assert!(ended.stderr.contains(&format!("port {port} is taken by `")), "{}", ended.stderr);
    let kubeconfig = std::fs::read_to_string(lab.kubeconfig()).unwrap();
    let servers = kubeconfig.lines().filter_map(|line| line.split("https://127.0.0.1:").nth(1));
    let ports: Vec<u16> = servers.map(|rest| rest.trim_matches('"').parse().unwrap()).collect();
    assert_eq!(ports.len(), 3);
    assert!(ports[0] > port && ports.is_sorted(), "{ports:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_up_of_the_same_name_is_refused_and_of_another_is_not() {
    let lab = Lab::start(Config::default()).await;
    let first = lab.up(&[]).await;
    let refused = lab.start_up(&[]).ended().await;
    assert_eq!(refused.code(), Some(2), "{refused:#?}");
    assert!(refused.stderr.contains(&format!("as process {}", first.pid())), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: stop it with `autoheal-pa down`"), "{}", refused.stderr);
    let second = lab.up(&["--name", "other"]).await;
    assert!(lab.path(".kube/autoheal-pa-other.yaml").exists());
    assert_eq!(second.stop().await.code(), Some(0));
    assert_eq!(first.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn token_asks_the_manager_and_falls_back_on_its_own() {
    let lab = Lab::start(Config { identity: Identity::WebIdentity, ..Config::default() }).await;
    let up = lab.up(&[]).await;
    let calls = || lab.count(|event| matches!(event, Event::Api { .. }));
    let before = calls();
    let directory = lab.path("autoheal-pa/default");
    let args = ["token", "--cluster-name=payments", "--region=us-east-1", "--manager", directory.to_str().unwrap()];
    let mut bare = lab.bare_command(PROGRAM);
    let ended = Running::start(bare.args(args)).ended().await;
    let credential: serde_json::Value = serde_json::from_str(ended.assert_success()).unwrap();
    assert_eq!(credential["kind"], "ExecCredential");
    assert!(credential["status"]["token"].as_str().unwrap().starts_with("k8s-aws-v1."));
    assert_eq!(calls(), before, "the manager needs no call for it");
    assert_eq!(up.stop().await.code(), Some(0));

    let ended = lab.run(&args).await;
    let credential: serde_json::Value = serde_json::from_str(ended.assert_success()).unwrap();
    assert!(credential["status"]["token"].as_str().unwrap().starts_with("k8s-aws-v1."));
    assert!(calls() > before, "without a manager it finds credentials itself");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg(target_os = "linux")]
async fn a_token_that_needs_no_call_loads_no_certificates() {
    use rustix::fs::inotify;

    let lab = Lab::start(Config::default()).await;
    let roots = lab.path("roots.pem");
    std::fs::write(&roots, "").unwrap();
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, &roots, inotify::WatchFlags::OPEN).unwrap();
    let is_opened = || rustix::io::read(&watch, &mut [0; 64]).is_ok();
    let mut token = lab.bare_command(PROGRAM);
    token.args(["token", "--cluster-name=payments", "--region=us-east-1"]);
    token.envs(lab.emulator.static_environment()).env("SSL_CERT_FILE", &roots);
    let ended = Running::start(&mut token).ended().await;
    assert!(ended.assert_success().contains("k8s-aws-v1."));
    assert!(!is_opened());
    drop(std::fs::File::open(&roots).unwrap());
    assert!(is_opened(), "it would have been seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_are_shown_as_a_table_and_as_json() {
    let mut config = Config::default();
    config.clusters.push(ClusterConfig::creating("fresh"));
    let lab = Lab::start(config).await;
    let table = lab.run(&["clusters"]).await;
    assert!(table.assert_success().contains("payments"), "{}", table.stdout);
    let json = lab.run(&["clusters", "--json"]).await;
    let value: serde_json::Value = serde_json::from_str(json.assert_success()).unwrap();
    assert_eq!(value["version"], 1);
    let names: Vec<_> = value["clusters"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["payments", "search", "fresh"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_can_source_what_it_writes() {
    let lab = Lab::start(Config::default()).await;
    let file = lab.path("tunnels' env");
    let up = lab.up(&["--env-file", file.to_str().unwrap()]).await;
    let script = format!(". \"{}\" && echo \"$KUBECONFIG\"", file.display());
    let sourced = Running::start(lab.bare_command("sh").args(["-c", &script])).ended().await;
    assert_eq!(sourced.assert_success().trim_end(), lab.kubeconfig().to_str().unwrap());
    let evaluated = Running::start(
        lab.bare_command("sh").args(["-c", &format!("eval \"$('{PROGRAM}' env)\" && echo \"$KUBECONFIG\"")]),
    );
    assert_eq!(evaluated.ended().await.assert_success().trim_end(), lab.kubeconfig().to_str().unwrap());
    assert_eq!(up.stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsigned_upgrade_is_tried_when_the_signed_one_is_refused() {
    let lab = Lab::start(Config::default()).await;
    lab.emulator.update(|settings| settings.upgrade = autoheal_pa::emulator::Upgrade::Unsigned);
    let ended = lab.up(&[]).await.stop().await;
    assert!(ended.stderr.contains("refused a signed WebSocket"), "{}", ended.stderr);
    assert!(ended.stderr.contains("not authorized to perform: ssmmessages:OpenDataChannel"), "{}", ended.stderr);
    assert!(lab.count(|event| matches!(event, Event::TransportOpened { signed: false, .. })) >= 2);
}
