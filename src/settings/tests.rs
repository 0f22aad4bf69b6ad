//! Tests of what flags, variables and the configuration file make of the settings.

use super::{flags::typed, *};

fn environment<const N: usize>(variables: [(&str, &str); N]) -> Environment {
    Environment {
        current_dir: "/work".into(),
        home: Some("/home/alice".into()),
        temp_dir: "/tmp".into(),
        uid: 1000,
        ..Environment::default()
    }
    .with(variables)
}

fn up(args: &UpArgs, environment: &Environment) -> Result<UpSettings, String> {
    UpSettings::load(&GlobalArgs::default(), args, environment).map_err(|error| error.to_string())
}

fn bastion(id: &str) -> UpArgs {
    typed(&["--bastion", id])
}

#[test]
fn defaults() {
    let settings = up(&bastion("i-0abcdef1"), &environment([])).unwrap();
    assert_eq!(settings.base_port, 10100);
    assert_eq!((settings.timeout, settings.probe_interval), (Duration::from_secs(60), Duration::from_secs(30)));
    assert_eq!(settings.reconnect_timeout, Duration::from_secs(90));
    assert_eq!((settings.sessions, settings.payload_size, settings.no_rate_limit), (Sessions::Auto, None, false));
    assert_eq!(settings.context_prefix, "pa-");
    assert_eq!(settings.common.name, "default");
    assert_eq!(settings.common.kubeconfig, Path::new("/home/alice/.kube/autoheal-pa.yaml"));
    assert_eq!(settings.common.control_dir, Path::new("/tmp/autoheal-pa-1000/default"));
    assert!(
        settings.access[0].clusters.is_empty() && settings.access[0].reason.is_none() && settings.env_file.is_none()
    );
}

#[test]
fn takes_every_flag() {
    let args = UpArgs {
        github_env: true,
        ..typed(&[
            "--bastion",
            "i-0abcdef1, i-0abcdef2",
            "--bastion",
            "ecs:tools_a_b",
            "--bastion",
            "i-0abcdef1",
            "--cluster",
            "no",
            "--cluster",
            "1_000",
            "--cluster",
            "no",
            "--base-port",
            "0",
            "--strict-ports",
            "--allow-other-users",
            "--kubeconfig",
            "kube/config",
            "--set-current",
            "--context-prefix",
            "",
            "--timeout",
            "5m",
            "--probe-interval",
            "0",
            "--reconnect-timeout",
            "10m",
            "--sessions",
            "4",
            "--payload-size",
            "8192",
            "--no-rate-limit",
            "--reason",
            "INC-42: smoke test",
            "--env-file",
            "~/env",
        ])
    };
    let settings = up(&args, &environment([("AUTOHEAL_PA_BASTION", "not read"), ("GITHUB_ENV", "/gh/env")])).unwrap();
    let bastions: Vec<_> = settings.access[0].bastion.iter().map(ToString::to_string).collect();
    assert_eq!(bastions, ["i-0abcdef1", "i-0abcdef2", "ecs:tools_a_b"]);
    assert_eq!(settings.access[0].clusters, ["no", "1_000"]);
    assert_eq!(settings.base_port, 0);
    assert!(settings.strict_ports && settings.allow_other_users && settings.set_current);
    assert_eq!(settings.common.kubeconfig, Path::new("/work/kube/config"));
    assert_eq!(settings.context_prefix, "");
    assert_eq!((settings.timeout, settings.probe_interval), (Duration::from_secs(300), Duration::ZERO));
    assert_eq!(settings.reconnect_timeout, Duration::from_secs(600));
    assert_eq!(
        (settings.sessions, settings.payload_size, settings.no_rate_limit),
        (Sessions::UpTo(4), Some(8192), true)
    );
    assert_eq!(settings.access[0].reason.as_deref(), Some("INC-42: smoke test"));
    assert_eq!(settings.env_file.as_deref(), Some(Path::new("/home/alice/env")));
    assert_eq!(settings.github_env.as_deref(), Some(Path::new("/gh/env")));
}

#[test]
fn takes_bastions_from_the_environment() {
    let environment = environment([("AUTOHEAL_PA_BASTION", "i-0abcdef1,mi-0dc03fbcae2a87472")]);
    assert_eq!(up(&UpArgs::default(), &environment).unwrap().access[0].bastion.len(), 2);
}

#[test]
fn a_name_has_files_of_its_own() {
    let flags = GlobalArgs { name: Some("ci.2".into()), ..GlobalArgs::default() };
    let settings = Settings::load(&flags, None, &environment([])).unwrap();
    assert_eq!(settings.kubeconfig, Path::new("/home/alice/.kube/autoheal-pa-ci.2.yaml"));
    assert_eq!(settings.control_dir, Path::new("/tmp/autoheal-pa-1000/ci.2"));
}

#[test]
fn a_name_stays_in_its_directory() {
    for name in ["", ".", "..", "../x", "a/b", "-x", "a b", "ä", "a\0", &"x".repeat(33)] {
        let flags = GlobalArgs { name: Some(name.to_owned()), ..GlobalArgs::default() };
        let error = Settings::load(&flags, None, &environment([])).unwrap_err().to_string();
        assert!(error.starts_with("`--name`: `") && error.contains("is not a name"), "{error}");
    }
}

#[test]
fn nothing_needs_a_home() {
    let surroundings = Environment { home: None, ..environment([]) };
    let settings = Settings::load(&GlobalArgs::default(), None, &surroundings).unwrap();
    assert_eq!(settings.kubeconfig, Path::new("/tmp/autoheal-pa-1000/default/kubeconfig"));
    assert_eq!(settings.log_file, None, "it is in that directory, too");
}

#[test]
fn one_problem_is_one_line() {
    assert_eq!(
        up(&UpArgs::default(), &environment([])).unwrap_err(),
        "no bastion is given: add `--bastion` or set `AUTOHEAL_PA_BASTION`"
    );
    let args = typed(&["--timeout", "60", "--bastion", "i-0abcdef1"]);
    assert_eq!(
        up(&args, &environment([])).unwrap_err(),
        "`--timeout`: `60` is not a duration: it has no unit: write `60s`, `5m`, `1h` or `500ms`"
    );
}

#[test]
fn says_everything_that_is_wrong_at_once() {
    let args = typed(&[
        "--bastion",
        "bastion",
        "--bastion",
        "i-0abcdef1",
        "--cluster",
        "a b",
        "--base-port",
        "65536",
        "--context-prefix",
        "a b",
        "--timeout",
        "0s",
        "--probe-interval",
        "2h",
        "--reconnect-timeout",
        "0s",
        "--sessions",
        "17",
        "--payload-size",
        "64k",
        "--reason",
        "two\nlines",
    ]);
    let flags = GlobalArgs { name: Some("/".into()), ..typed(&["--duration", "1h"]) };
    let error = UpSettings::load(&flags, &args, &environment([])).unwrap_err();
    assert_eq!(error.problems.len(), 12);
    let text = error.to_string();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "there are 12 problems with the settings");
    assert!(lines[1..].iter().all(|line| line.starts_with("  ")), "{text}");
    assert!(text.contains("\n  `--bastion`: `bastion` is not a bastion: expected"), "{text}");
}

#[test]
fn a_reason_has_at_most_256_characters() {
    let with = |reason: String| up(&typed(&["--reason", &reason, "--bastion", "i-0abcdef1"]), &environment([]));
    assert!(with("ä".repeat(256)).is_ok());
    assert!(with("ä".repeat(257)).is_err());
    assert!(with(String::new()).is_err());
}

#[test]
fn an_unreadable_variable_is_named() {
    let mut surroundings = environment([]);
    surroundings.undecodable = vec!["AWS_PROFILE".into(), "LESSOPEN".into()];
    let error = Settings::load(&GlobalArgs::default(), None, &surroundings).unwrap_err();
    assert_eq!(error.to_string(), "the value of `AWS_PROFILE` is not UTF-8");
}

const ROLE: &str = "arn:aws:iam::123456789012:role/ReadOnly";
const OTHER_ROLE: &str = "arn:aws:iam::210987654321:role/ReadOnly";

/// A folder with a configuration file.
fn folder(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.yaml"), text).unwrap();
    dir
}

/// Reads settings of `up` with a configuration file, which says that it is in `/work/conf`.
fn with_file(text: &str, flags: &GlobalArgs, args: &UpArgs, environment: &Environment) -> Result<UpSettings, String> {
    let dir = folder(text);
    let flags = GlobalArgs { config: Some(dir.path().join("config.yaml")), ..flags.clone() };
    UpSettings::load(&flags, args, environment)
        .map_err(|error| error.to_string().replace(&dir.path().display().to_string(), "/work/conf"))
}

const SEVERAL: &str = "
role_session_name: top
duration: 2h
reason: top
access:
- region: us-east-1
  bastion: [i-0abcdef1, i-0abcdef2]
  role_arn: arn:aws:iam::123456789012:role/ReadOnly
  clusters: [payments, search]
- region: eu-west-1
  profile: dev
  bastion: i-0abcdef3
  reason: entry
";

#[test]
fn entries_win_over_the_environment_and_take_from_it_what_they_leave_out() {
    let environment = environment([
        ("AWS_REGION", "ap-south-1"),
        ("AWS_PROFILE", "shell"),
        ("AWS_ROLE_ARN", OTHER_ROLE),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/shell/token"),
        ("AUTOHEAL_PA_BASTION", "i-0abcdef9"),
    ]);
    let settings = with_file(SEVERAL, &GlobalArgs::default(), &UpArgs::default(), &environment).unwrap();
    let [first, second] = &settings.access[..] else { panic!("{settings:?}") };
    let aws = &first.aws;
    assert_eq!((aws.region.as_deref(), aws.role_arn.as_deref()), (Some("us-east-1"), Some(ROLE)));
    assert_eq!((aws.profile.as_deref(), aws.profile_is_chosen, aws.role_is_chosen), (Some("shell"), false, true));
    assert_eq!(aws.web_identity_token_file.as_deref(), Some(Path::new("/shell/token")));
    assert_eq!((aws.role_session_name.as_deref(), aws.duration), (Some("top"), Some(Duration::from_secs(7200))));
    assert_eq!(first.bastion.iter().map(ToString::to_string).collect::<Vec<_>>(), ["i-0abcdef1", "i-0abcdef2"]);
    assert_eq!((first.clusters.len(), first.reason.as_deref()), (2, Some("top")));
    assert_eq!(
        first.identity.args,
        [
            "--profile=shell",
            &format!("--role-arn={ROLE}"),
            "--role-session-name=top",
            "--web-identity-token-file=/shell/token",
            "--duration=7200s"
        ]
    );

    // A profile in the entry is nearer than a role with its token in the shell.
    let aws = &second.aws;
    assert_eq!((aws.region.as_deref(), aws.role_arn.as_deref()), (Some("eu-west-1"), None));
    assert_eq!((aws.profile.as_deref(), aws.profile_is_chosen), (Some("dev"), true));
    assert_eq!((second.clusters.len(), second.reason.as_deref()), (0, Some("entry")));
    assert_eq!(second.bastion.iter().map(ToString::to_string).collect::<Vec<_>>(), ["i-0abcdef3"]);
    assert_eq!(second.identity.args, ["--profile=dev"]);
    assert_eq!(settings.common.aws.region.as_deref(), Some("us-east-1"));
}

#[test]
fn contexts_are_imported_from_where_kubectl_finds_them() {
    let from = |args: &[&str], variables: &[(&str, &str)]| {
        let args = typed(&[&["--bastion", "i-0abcdef1"], args].concat());
        up(&args, &environment([]).with(variables.iter().copied())).map(|settings| settings.common.imported_from)
    };
    let paths = |paths: &[&str]| Ok(paths.iter().map(PathBuf::from).collect::<Vec<_>>());
    let list = [("KUBECONFIG", "a::/b")];
    assert_eq!(from(&[], &list), paths(&[]), "nothing is imported");
    assert_eq!(from(&["--import-context", "kops"], &[]), paths(&["/home/alice/.kube/config"]));
    assert_eq!(from(&["--import-context", "kops"], &list), paths(&["/work/a", "/b"]));
    let given = ["--import-context", "kops", "--import-kubeconfig", "~/x"];
    assert_eq!(from(&given, &list), paths(&["/home/alice/x"]));
    let error = from(&["--import-context", "kops", "--import-kubeconfig", "a:b"], &[]).unwrap_err();
    assert_eq!(error, "`--import-kubeconfig`: `a:b` is not a path that `KUBECONFIG` can name: it has a `:`");
    for name in ["", "a\tb"] {
        assert!(from(&["--import-context", name], &[]).unwrap_err().contains("is not the name of a context"));
    }
}

#[test]
fn a_context_is_imported_by_one_entry() {
    let text = "import_contexts: [a, b]\naccess:\n- {region: us-east-1, bastion: i-0abcdef1}\n\
                - {region: eu-west-1, bastion: i-0abcdef2, import_contexts: [c]}\n";
    let load = |text: &str| with_file(text, &GlobalArgs::default(), &UpArgs::default(), &environment([]));
    let settings = load(text).unwrap();
    let contexts: Vec<_> = settings.access.iter().map(|access| access.import_contexts.join(" ")).collect();
    assert_eq!(contexts, ["a b", "c"]);
    let error = load(&text.replace("[c]", "[c, b]")).unwrap_err();
    assert!(
        error.ends_with(
            "4:3: the context `b` would be imported twice, as by the entry on line 3: name it in one entry alone"
        ),
        "{error}"
    );
    let wanted = Wanted::load(&typed(&["--cluster", "x", "--import-context", "y"])).unwrap();
    assert_eq!((wanted.clusters, wanted.contexts), (vec!["x".to_owned()], vec!["y".to_owned()]));
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_top_level() {
    let text = format!(
        "region: eu-west-1\nprofile: top\nbastion: i-0abcdef1\nbase_port: 1\nrole_arn: {ROLE}\nclusters: [top]\n\
         ca_bundle: ca.pem\nkubeconfig: ~/config\nenv_file: ../env\ntimeout: 5m\nprobe_interval: 0\nstrict_ports: true\n\
         allow_other_users: true\nset_current: false\ncontext_prefix: ''\nreconnect_timeout: 1m\nsessions: 3\nweb_identity_token_file: /token\nreason: why"
    );
    let load = |flags: &GlobalArgs, args: &UpArgs, environment: &Environment| {
        let dir = folder(&text);
        let environment = Environment { current_dir: dir.path().to_owned(), ..environment.clone() };
        let flags = GlobalArgs { config: Some("config.yaml".into()), ..flags.clone() };
        (UpSettings::load(&flags, args, &environment).unwrap(), dir)
    };
    let (settings, dir) = load(&GlobalArgs::default(), &UpArgs::default(), &environment([]));
    let access = &settings.access[0];
    assert_eq!(settings.access.len(), 1);
    assert_eq!((access.aws.region.as_deref(), access.aws.profile.as_deref()), (Some("eu-west-1"), Some("top")));
    assert!(access.aws.role_is_chosen && access.aws.profile_is_chosen);
    assert_eq!((access.aws.role_arn.as_deref(), access.clusters[0].as_str()), (Some(ROLE), "top"));
    assert_eq!(access.aws.ca_bundle, Some(dir.path().join("ca.pem")));
    assert_eq!(access.aws.web_identity_token_file.as_deref(), Some(Path::new("/token")));
    assert_eq!(access.reason.as_deref(), Some("why"));
    assert_eq!(settings.common.kubeconfig, Path::new("/home/alice/config"));
    assert_eq!(settings.env_file, Some(dir.path().join("../env")));
    assert!(settings.strict_ports && settings.allow_other_users && !settings.set_current);
    assert!(settings.context_prefix.is_empty());
    assert_eq!((settings.base_port, settings.probe_interval), (1, Duration::ZERO));
    assert_eq!(
        (settings.timeout.as_secs(), settings.reconnect_timeout.as_secs(), settings.sessions),
        (300, 60, Sessions::UpTo(3))
    );

    let shell = environment([
        ("AWS_DEFAULT_REGION", "us-west-1"),
        ("AWS_PROFILE", "shell"),
        ("AWS_ROLE_ARN", OTHER_ROLE),
        ("AUTOHEAL_PA_BASTION", "i-0abcdef2"),
        ("AWS_CA_BUNDLE", "shell.pem"),
    ]);
    let (settings, dir) = load(&GlobalArgs::default(), &UpArgs::default(), &shell);
    let access = &settings.access[0];
    assert_eq!((access.aws.region.as_deref(), access.aws.profile.as_deref()), (Some("us-west-1"), Some("shell")));
    assert_eq!(
        (access.aws.role_arn.as_deref(), access.bastion[0].to_string().as_str()),
        (Some(OTHER_ROLE), "i-0abcdef2")
    );
    assert_eq!(access.aws.ca_bundle, Some(dir.path().join("shell.pem")));
    assert!(!access.aws.profile_is_chosen);

    let flags = typed(&["--region", "us-west-2", "--profile", "flag"]);
    let args = typed(&["--cluster", "flag", "--base-port", "2", "--kubeconfig", "kube", "--bastion", "i-0abcdef3"]);
    let (settings, dir) = load(&flags, &args, &shell);
    let access = &settings.access[0];
    assert_eq!((access.aws.region.as_deref(), access.aws.profile.as_deref()), (Some("us-west-2"), Some("flag")));
    assert_eq!(
        (access.bastion[0].to_string().as_str(), &access.clusters[..]),
        ("i-0abcdef3", &["flag".to_owned()][..])
    );
    assert_eq!((settings.base_port, settings.common.kubeconfig), (2, dir.path().join("kube")));
}

#[test]
fn a_flag_wins_over_one_entry_and_contradicts_several() {
    let one = "access:\n- {region: us-east-1, bastion: i-0abcdef1}";
    let flags = typed(&["--region", "eu-west-1"]);
    let settings = with_file(one, &flags, &bastion("i-0abcdef2"), &environment([])).unwrap();
    assert_eq!(settings.access[0].aws.region.as_deref(), Some("eu-west-1"));
    assert_eq!(settings.access[0].bastion[0].to_string(), "i-0abcdef2");

    let error = with_file(SEVERAL, &flags, &bastion("i-0abcdef2"), &environment([])).unwrap_err();
    assert_eq!(
        error,
        "there are 2 problems with the settings\n  `--region` and /work/conf/config.yaml:6:11: `region` contradict each \
         other, as there are 2 entries of `access`: remove one of them\n  `--bastion` and /work/conf/config.yaml:7:13: \
         `bastion` contradict each other, as there are 2 entries of `access`: remove one of them"
    );
    // What no entry says is for all of them.
    let flags = typed(&["--duration", "1h", "--ca-bundle", "ca"]);
    let text = SEVERAL.replace("profile: dev", &format!("role_arn: {OTHER_ROLE}"));
    let settings = with_file(&text, &flags, &UpArgs::default(), &environment([])).unwrap();
    assert!(settings.access.iter().all(|access| access.aws.duration == Some(Duration::from_secs(3600))));
}

#[test]
fn a_role_in_the_file_is_taken_with_the_keys_of_the_shell() {
    let keys = environment([("AWS_ACCESS_KEY_ID", "AKIA")]);
    let text = format!("role_arn: {ROLE}\nbastion: i-0abcdef1\nweb_identity_token_file: /token");
    let settings = with_file(&text, &GlobalArgs::default(), &UpArgs::default(), &keys).unwrap();
    let aws = &settings.access[0].aws;
    assert!(aws.role_is_chosen && aws.static_keys_in_environment);
    assert_eq!(aws.web_identity_token_file.as_deref(), Some(Path::new("/token")));

    // Keys overrule a role with its token that are beside them, and nothing else.
    let both = keys.with([("AWS_ROLE_ARN", OTHER_ROLE), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/shell")]);
    let settings = with_file(&text, &GlobalArgs::default(), &UpArgs::default(), &both).unwrap();
    let aws = &settings.access[0].aws;
    assert_eq!(
        (aws.role_arn.as_deref(), aws.web_identity_token_file.as_deref()),
        (Some(ROLE), Some(Path::new("/token")))
    );
}

#[test]
fn what_talks_to_a_manager_or_for_kubectl_does_not_read_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(".config/autoheal-pa/config.yaml");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "region: [").unwrap();
    let surroundings = Environment { home: Some(dir.path().to_owned()), ..environment([]) };
    let flags = GlobalArgs::default();
    assert!(Settings::without_file(&flags, &surroundings).is_ok());
    assert!(Settings::load(&flags, None, &surroundings).is_err());
    std::fs::write(&path, "region: eu-west-1\nkubeconfig: config\n").unwrap();
    assert_eq!(Settings::without_file(&flags, &surroundings).unwrap().aws.region, None);
    let settings = Settings::load(&flags, None, &surroundings).unwrap();
    assert_eq!(settings.aws.region.as_deref(), Some("eu-west-1"));
    assert_eq!(settings.kubeconfig, path.with_file_name("config"));
    let access = Access::load(&flags, &UpArgs::default(), &surroundings).unwrap();
    assert_eq!((access.len(), access[0].bastion.len()), (1, 0));
    let without = GlobalArgs { config: Some("/dev/null".into()), ..flags };
    assert_eq!(Settings::load(&without, None, &surroundings).unwrap().aws.region, None);
}

#[test]
fn the_proxy_is_before_the_tunnels() {
    let proxy = |more: &[&str]| {
        let words = [&["--bastion", "i-0abcdef1"], more].concat();
        up(&typed(&words), &environment([])).map(|settings| settings.proxy())
    };
    let on = |address| Ok(Some(ProxySettings { address, others: ProxyOthers::Refuse }));
    let port = |port, strict| on(ProxyAddress::Port { port, strict });
    let at = |address: &str| on(ProxyAddress::At(address.parse().unwrap()));
    assert_eq!(proxy(&[]), Ok(None));
    assert_eq!(proxy(&["--proxy", "false"]), Ok(None));
    for asked in [&["--proxy"][..], &["--kubeconfig-mode", "proxy"], &["--proxy", "--kubeconfig-mode", "proxy"]] {
        assert_eq!(proxy(asked), port(10099, false));
    }
    assert_eq!(proxy(&["--proxy", "--base-port", "20000", "--strict-ports"]), port(19999, true));
    assert_eq!(proxy(&["--proxy", "--base-port", "0"]), port(0, false));
    assert_eq!(proxy(&["--proxy", "3128"]), port(3128, true));
    assert_eq!(proxy(&["--proxy", "127.0.0.1:3128"]), at("127.0.0.1:3128"));
    assert_eq!(proxy(&["--proxy", "0.0.0.0:3128", "--allow-other-users"]), at("0.0.0.0:3128"));
    let direct = proxy(&["--kubeconfig-mode", "proxy", "--proxy-others", "direct"]).unwrap().unwrap();
    assert_eq!(direct.others, ProxyOthers::Direct);

    let local = typed(&["--kubeconfig-mode", "local-tls", "--bastion", "i-0abcdef1"]);
    assert_eq!(up(&local, &environment([])).unwrap().proxy(), None);

    let error = |more: &[&str]| proxy(more).unwrap_err();
    assert_eq!(error(&["--proxy-others", "direct"]), "`--proxy-others`: `direct` is not of use without `--proxy`");
    let open = error(&["--proxy", "0.0.0.0:3128"]);
    assert!(
        open.contains("`0.0.0.0:3128` is not an address of loopback") && open.contains("`--allow-other-users`"),
        "{open}"
    );
    assert_eq!(
        error(&["--proxy", "x"]),
        "`--proxy`: `x` is not a place for the proxy: a port, or an IP address and a port, such as `3128` or `127.0.0.1:3128`"
    );
}

#[test]
fn a_file_may_ask_for_the_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    let flags = GlobalArgs { config: Some(config.clone()), ..GlobalArgs::default() };
    let proxy = |text: &str| {
        std::fs::write(&config, format!("bastion: i-0abcdef1\n{text}")).unwrap();
        let settings = UpSettings::load(&flags, &UpArgs::default(), &environment([]));
        settings.map(|settings| settings.proxy()).map_err(|error| error.to_string())
    };
    let on = |port, strict, others| Some(ProxySettings { address: ProxyAddress::Port { port, strict }, others });
    assert_eq!(proxy("kubeconfig_mode: proxy\nproxy: 3128\n"), Ok(on(3128, true, ProxyOthers::Refuse)));
    assert_eq!(proxy("proxy: true\nproxy_others: direct\n"), Ok(on(10099, false, ProxyOthers::Direct)));
    assert_eq!(proxy("proxy: false\n"), Ok(None));
    assert_eq!(proxy("kubeconfig_mode: direct\n"), Ok(None));
    let error = proxy("kubeconfig_mode: proxies\n").unwrap_err();
    assert!(error.ends_with("`kubeconfig_mode`: `proxies` is not `direct` or `proxy` or `local-tls`"), "{error}");
}

#[test]
fn variables_of_calls_stop_no_command_that_calls_nobody() {
    let mut surroundings = environment([("AWS_MAX_ATTEMPTS", "0"), ("HTTPS_PROXY", "socks5://127.0.0.1:1080")]);
    surroundings.undecodable = vec!["AWS_PROFILE".into()];
    let flags = GlobalArgs::default();
    let (_, fit_for_calls) = Settings::with_problems_of_calls(&flags, &surroundings).unwrap();
    assert_eq!(fit_for_calls.unwrap_err().problems.len(), 3);
    assert!(Settings::without_file(&flags, &surroundings).is_ok());
    assert!(Settings::load(&flags, None, &surroundings).is_err());
    // What is this program's own is said at once, and the rest with it.
    surroundings.undecodable.push("AUTOHEAL_PA_CONFIG".into());
    assert_eq!(Settings::without_file(&flags, &surroundings).unwrap_err().problems.len(), 4);
}
