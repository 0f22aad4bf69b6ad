//! Tests of what flags and variables make of the identity.

use std::time::Duration;

use super::*;
use crate::settings::{GlobalArgs, TokenFrom, flags::typed, source::Layer, values::is_role_arn};

const ROLE: &str = "arn:aws:iam::123456789012:role/ReadOnly";
const OTHER_ROLE: &str = "arn:aws-cn:iam::210987654321:role/team/Admin";

fn environment<const N: usize>(variables: [(&str, &str); N]) -> Environment {
    Environment { current_dir: "/work".into(), home: Some("/home/alice".into()), ..Environment::default() }
        .with(variables)
}

fn read(flags: &GlobalArgs, environment: &Environment, problems: &mut Vec<Problem>) -> AwsSettings {
    let (flags, variables, top) = (flags.aws.layer.clone(), Layer::of_environment(environment), Layer::default());
    let stack = Stack { flags: &flags, entry: None, environment: &variables, top: &top };
    AwsSettings::load(&stack, environment, problems)
}

fn load(flags: &GlobalArgs, environment: &Environment) -> (AwsSettings, ExecIdentity) {
    let mut problems = Vec::new();
    let aws = read(flags, environment, &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    let identity = ExecIdentity::of(&aws, environment);
    (aws, identity)
}

fn problems(flags: &GlobalArgs, environment: &Environment) -> Vec<String> {
    let mut problems = Vec::new();
    drop(read(flags, environment, &mut problems));
    problems.iter().map(ToString::to_string).collect()
}

fn role(arn: &str) -> GlobalArgs {
    typed(&["--role-arn", arn])
}

#[test]
fn flags_win_over_variables() {
    let environment = environment([
        ("AWS_REGION", "eu-west-1"),
        ("AWS_DEFAULT_REGION", "eu-west-2"),
        ("AWS_PROFILE", "dev"),
        ("AWS_ROLE_ARN", OTHER_ROLE),
        ("AWS_ROLE_SESSION_NAME", "ci"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "tokens/aws"),
        ("AWS_CA_BUNDLE", "ca.pem"),
    ]);
    let (aws, _) = load(&GlobalArgs::default(), &environment);
    assert_eq!(aws.region.as_deref(), Some("eu-west-1"));
    assert_eq!(aws.profile.as_deref(), Some("dev"));
    assert_eq!(aws.role_arn.as_deref(), Some(OTHER_ROLE));
    assert_eq!(aws.role_session_name.as_deref(), Some("ci"));
    assert_eq!(aws.web_identity_token_file.as_deref(), Some(Path::new("/work/tokens/aws")));
    assert_eq!(aws.ca_bundle.as_deref(), Some(Path::new("/work/ca.pem")));
    assert!(!aws.role_is_chosen);

    let flags = typed(&[
        "--region",
        "us-east-1",
        "--role-session-name",
        "alice@example.com",
        "--web-identity-token-file",
        "~/token",
        "--duration",
        "15m",
        "--ca-bundle",
        "/etc/ca.pem",
        "--role-arn",
        ROLE,
    ]);
    let (aws, _) = load(&flags, &environment);
    assert_eq!(aws.region.as_deref(), Some("us-east-1"));
    assert_eq!(aws.role_arn.as_deref(), Some(ROLE));
    assert_eq!(aws.role_session_name.as_deref(), Some("alice@example.com"));
    assert_eq!(aws.web_identity_token_file.as_deref(), Some(Path::new("/home/alice/token")));
    assert_eq!(aws.ca_bundle.as_deref(), Some(Path::new("/etc/ca.pem")));
    assert_eq!(aws.duration, Some(Duration::from_secs(900)));
    assert!(aws.role_is_chosen);
}

#[test]
fn keys_and_a_profile_flag_overrule_a_pair_that_is_only_in_the_environment() {
    let pair = [("AWS_ROLE_ARN", ROLE), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")];
    let with_keys = environment(pair).with([("AWS_ACCESS_KEY_ID", "AKIA")]);
    let (aws, identity) = load(&GlobalArgs::default(), &with_keys);
    assert!(aws.static_keys_in_environment && aws.role_arn.is_none() && aws.web_identity_token_file.is_none());
    assert_eq!(identity, ExecIdentity::default());

    let profile = typed(&["--profile", "dev"]);
    let (aws, identity) = load(&profile, &environment(pair));
    assert!(aws.role_arn.is_none() && aws.web_identity_token_file.is_none());
    assert_eq!(identity.args, ["--profile=dev"]);

    let (aws, _) = load(&role(OTHER_ROLE), &with_keys);
    assert_eq!(aws.role_arn.as_deref(), Some(OTHER_ROLE));
    assert_eq!(aws.web_identity_token_file.as_deref(), Some(Path::new("/token")));

    // A role alone is no pair: it is assumed with the keys.
    let (aws, _) = load(&GlobalArgs::default(), &environment([("AWS_ROLE_ARN", ROLE), ("AWS_ACCESS_KEY_ID", "AKIA")]));
    assert_eq!(aws.role_arn.as_deref(), Some(ROLE));
}

#[test]
fn a_role_is_assumed_from_a_profile_that_is_named_and_not_with_a_token_that_is_only_there() {
    let pair = [("AWS_ROLE_ARN", OTHER_ROLE), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")];
    let flags = typed(&["--profile", "dev", "--role-arn", ROLE]);
    let (aws, identity) = load(&flags, &environment(pair));
    assert!(aws.web_identity_token_file.is_none() && aws.token_file_in_environment);
    assert_eq!(identity.args, ["--profile=dev", &format!("--role-arn={ROLE}")]);
    let named = typed(&["--web-identity-token-file", "/mine", "--profile", "dev", "--role-arn", ROLE]);
    let (aws, _) = load(&named, &environment(pair));
    assert_eq!(aws.web_identity_token_file.as_deref(), Some(Path::new("/mine")));
}

#[test]
fn a_profile_and_a_web_identity_of_the_environment_are_handed_on_to_be_chosen_from() {
    let pair = [("AWS_ROLE_ARN", ROLE), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"), ("AWS_PROFILE", "dev")];
    let (aws, identity) = load(&GlobalArgs::default(), &environment(pair));
    assert_eq!(identity.args, Vec::<String>::new());
    let shell =
        [("AWS_PROFILE".to_owned(), "other".to_owned()), ("AWS_DEFAULT_PROFILE".to_owned(), "other".to_owned())];
    let (again, _) = load(&GlobalArgs::default(), &Environment::default().with(shell).with(identity.env));
    assert_eq!(again.profile, aws.profile);
    assert_eq!(again.choose(true), aws.choose(true));
    assert_eq!(again.choose(false), aws.choose(false));
}

#[test]
fn the_audience_of_the_job_s_token_can_be_set() {
    let flags = typed(&["--oidc-audience", "sts.amazonaws.com.cn", "--role-arn", ROLE]);
    let (aws, identity) = load(&flags, &environment([("AUTOHEAL_PA_OIDC_AUDIENCE", "x")]));
    assert_eq!(aws.oidc_audience.as_deref(), Some("sts.amazonaws.com.cn"));
    assert!(identity.args.contains(&"--oidc-audience=sts.amazonaws.com.cn".to_owned()));
    let (aws, _) = load(&role(ROLE), &environment([("AUTOHEAL_PA_OIDC_AUDIENCE", "x")]));
    assert_eq!(aws.oidc_audience.as_deref(), Some("x"));
    let problems = problems(&role(ROLE), &environment([("AUTOHEAL_PA_OIDC_AUDIENCE", "a b")]));
    assert_eq!(problems, ["`AUTOHEAL_PA_OIDC_AUDIENCE`: `a b` is not an audience, such as `sts.amazonaws.com`"]);
}

#[test]
fn a_token_file_without_a_role_is_left_to_the_sdk() {
    let (aws, _) = load(&GlobalArgs::default(), &environment([("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")]));
    assert!(aws.web_identity_token_file.is_none());
}

#[test]
fn reads_the_ci_endpoint_only_whole() {
    let url = ("ACTIONS_ID_TOKEN_REQUEST_URL", "https://ci.example/token?x=1");
    let (aws, _) = load(&role(ROLE), &environment([url]));
    assert!(aws.ci_oidc.is_none());
    let (aws, identity) = load(&role(ROLE), &environment([url, ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "hunter2")]));
    let TokenFrom::Endpoint { token, .. } = &aws.ci_oidc.as_ref().unwrap().from else { panic!("an endpoint") };
    assert_eq!(token.expose(), "hunter2");
    assert!(!format!("{aws:?}{identity:?}").contains("hunter2"));
}

/// What is found of a job's token with these variables, or what is wrong.
fn token_of_job(oidc: Option<&str>, audience: Option<&str>, variables: &[(&str, &str)]) -> String {
    let mut flags = vec!["--role-arn", ROLE];
    flags.extend(oidc.iter().flat_map(|oidc| ["--oidc", oidc]));
    flags.extend(audience.iter().flat_map(|audience| ["--oidc-audience", audience]));
    let mut environment = environment([]);
    environment.variables.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let mut problems = Vec::new();
    let aws = read(&typed(&flags), &environment, &mut problems);
    let shown = format!("{aws:?}{problems:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    match (aws.ci_oidc, &problems[..]) {
        (Some(CiOidc { from: TokenFrom::Nowhere(reason), .. }), []) => reason,
        (Some(oidc), []) => format!("{oidc}, {}", if oidc.renews() { "renewed" } else { "once" }),
        (None, [problem]) => problem.to_string(),
        (None, []) => "none".to_owned(),
        (oidc, problems) => panic!("{oidc:?} {problems:?}"),
    }
}

#[test]
fn each_ci_system_has_its_token_in_its_own_place() {
    let github = [("ACTIONS_ID_TOKEN_REQUEST_URL", "https://x"), ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "hunter2")];
    let gitlab = [("GITLAB_CI", "true"), ("GITLAB_OIDC_TOKEN", "hunter2")];
    let circleci = [("CIRCLECI", "true"), ("CIRCLE_OIDC_TOKEN", "hunter2"), ("CIRCLE_OIDC_TOKEN_V2", "hunter2")];
    let buildkite = [("BUILDKITE", "true"), ("BUILDKITE_JOB_ID", "0189"), ("BUILDKITE_AGENT_ACCESS_TOKEN", "hunter2")];
    let bitbucket = [("BITBUCKET_STEP_OIDC_TOKEN", "hunter2")];
    let azure = [("SYSTEM_OIDCREQUESTURI", "https://x"), ("SYSTEM_ACCESSTOKEN", "hunter2")];
    let once = |variable: &str| format!("OIDC token in `{variable}`, once");
    let renewed = |system: &str| format!("OIDC token of {system}, renewed");
    let none = || "none".to_owned();
    let (in_gitlab, in_bitbucket) = (once("GITLAB_OIDC_TOKEN"), once("BITBUCKET_STEP_OIDC_TOKEN"));
    let rows = [
        ("github", &github[..], renewed("GitHub Actions"), renewed("GitHub Actions")),
        ("gitlab", &gitlab, in_gitlab.clone(), in_gitlab),
        ("circleci", &circleci, none(), once("CIRCLE_OIDC_TOKEN_V2")),
        ("buildkite", &buildkite, none(), renewed("Buildkite")),
        ("bitbucket", &bitbucket, in_bitbucket.clone(), in_bitbucket),
        ("azure-devops", &azure, none(), renewed("Azure DevOps")),
    ];
    for (name, variables, found, asked) in rows {
        assert_eq!(token_of_job(None, None, variables), found, "{name}");
        assert_eq!(token_of_job(Some(name), None, variables), asked, "{name}");
        let missing = token_of_job(Some(name), None, &[]);
        assert_eq!(missing, "this process is in no job that has one");
    }
    assert_eq!(token_of_job(Some("env:MY_TOKEN"), None, &[("MY_TOKEN", "hunter2")]), "OIDC token in `MY_TOKEN`, once");
    let missing = token_of_job(Some("env:MY_TOKEN"), None, &[]);
    assert_eq!(missing, "there is no variable `MY_TOKEN`");
    for wrong in ["env:", "env:a b", "env:1x", "jenkins", "GitHub"] {
        assert!(token_of_job(Some(wrong), None, &[]).contains("is not `github`"), "{wrong}");
    }
}

#[test]
fn an_audience_is_chosen_only_where_that_can_be() {
    let circleci = [("CIRCLECI", "true"), ("CIRCLE_OIDC_TOKEN", "hunter2")];
    assert_eq!(token_of_job(Some("circleci"), Some("mine"), &circleci), "OIDC token of CircleCI, renewed");
    for (name, variables) in [
        ("gitlab", &[("GITLAB_OIDC_TOKEN", "hunter2")][..]),
        ("azure-devops", &[("SYSTEM_OIDCREQUESTURI", "https://x"), ("SYSTEM_ACCESSTOKEN", "hunter2")]),
    ] {
        let said = token_of_job(Some(name), Some("mine"), variables);
        assert!(said.contains("is not chosen here, so leave out `--oidc-audience`"), "{said}");
    }
    let found = token_of_job(None, Some("mine"), &[("BITBUCKET_STEP_OIDC_TOKEN", "hunter2")]);
    assert!(found.contains("is not chosen here, so leave out `--oidc-audience`"), "{found}");
}

#[test]
fn knows_an_override_of_the_ssm_endpoint() {
    let all = ("AWS_ENDPOINT_URL", "http://localhost:4566");
    let (aws, _) = load(&GlobalArgs::default(), &environment([all]));
    assert!(aws.ssm_endpoint_override);
    let (aws, _) = load(&GlobalArgs::default(), &environment([all, ("AWS_ENDPOINT_URL_SSM", "http://localhost:1")]));
    assert_eq!(aws.ssm_endpoint.as_deref(), Some("http://localhost:1"));
    let ignored = environment([all, ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")]);
    let (aws, _) = load(&GlobalArgs::default(), &ignored);
    assert!(!aws.ssm_endpoint_override && aws.ssm_endpoint.is_none());
}

#[test]
fn hands_on_everything_but_secrets() {
    let environment = environment([
        ("AWS_ACCESS_KEY_ID", "AKIASECRET"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_SESSION_TOKEN", "secret"),
        ("ACTIONS_ID_TOKEN_REQUEST_URL", "https://secret"),
        ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "secret"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "secret"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/var/run/token"),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials"),
        ("AWS_CONFIG_FILE", "aws/config"),
        ("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:5000"),
        ("AWS_ENDPOINT_URL_EKS", "http://127.0.0.1:5000"),
        ("HTTPS_PROXY", "http://alice:secret@proxy:3128"),
        ("http_proxy", "http://proxy:3128"),
        ("NO_PROXY", "localhost,127.0.0.1"),
        ("USER", "alice"),
    ]);
    let flags =
        typed(&["--web-identity-token-file", "token", "--duration", "1h", "--ca-bundle", "ca.pem", "--role-arn", ROLE]);
    let (_, identity) = load(&flags, &environment);
    assert_eq!(
        identity.args,
        [
            format!("--role-arn={ROLE}"),
            "--web-identity-token-file=/work/token".to_owned(),
            "--duration=3600s".to_owned(),
            "--ca-bundle=/work/ca.pem".to_owned(),
        ]
    );
    let env: Vec<_> = identity.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        env,
        [
            "AWS_ENDPOINT_URL_STS=http://127.0.0.1:5000",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://169.254.170.23/v1/credentials",
            "NO_PROXY=localhost,127.0.0.1",
            "http_proxy=http://proxy:3128",
            "AWS_CONFIG_FILE=/work/aws/config",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=/var/run/token",
            "USER=alice",
        ]
    );
    assert!(!format!("{identity:?}").to_lowercase().contains("secret"));
}

#[test]
fn what_is_handed_on_leads_to_the_same_identity() {
    let environment = environment([("AWS_PROFILE", "no"), ("AWS_ROLE_ARN", ROLE), ("AWS_ROLE_SESSION_NAME", "a b")]);
    let (aws, identity) = load(&GlobalArgs::default(), &environment);
    assert_eq!(identity.args, ["--profile=no", &format!("--role-arn={ROLE}"), "--role-session-name=a b"]);
    let flags = typed(&["--profile", "no", "--role-session-name", "a b", "--role-arn", ROLE]);
    let (again, _) = load(&flags, &Environment::default());
    assert_eq!(
        (again.profile, again.role_arn, again.role_session_name),
        (aws.profile, aws.role_arn, aws.role_session_name)
    );
}

#[test]
fn tags_are_judged_as_sts_does() {
    let role = ["--role-arn", ROLE];
    let with = |args: &[&str]| typed(&[&role[..], args].concat());
    let tags =
        ["--tag", "team=payments", "--tag", "mail=ann+b@example.com", "--tag", "empty=", "--transitive-tag", "Team"];
    let (aws, identity) = load(&with(&tags), &environment([]));
    assert_eq!(aws.tags, ["team=payments", "mail=ann+b@example.com", "empty="]);
    assert_eq!(identity.args[1..3], ["--tag=team=payments", "--tag=mail=ann+b@example.com"]);
    assert_eq!(identity.args.last().unwrap(), "--transitive-tag=Team");
    for (args, said) in [
        (&["--tag", "team"][..], "is not a session tag"),
        (&["--tag", "=payments"], "is not a session tag"),
        (&["--tag", "aws:team=payments"], "is not a session tag"),
        (&["--tag", "team=a*b"], "is not a session tag"),
        (&["--tag", "team=a", "--tag", "Team=b"], "has a key that is there twice"),
        (&["--tag", "team=a", "--transitive-tag", "mail"], "is the key of none of the tags"),
    ] {
        let found = problems(&with(args), &environment([]));
        assert!(found.len() == 1 && found[0].contains(said), "{args:?}: {found:?}");
    }
    let alone = problems(&typed(&["--tag", "team=a"]), &environment([]));
    assert_eq!(alone, ["`--tag` needs a role: add `--role-arn` or set `AWS_ROLE_ARN`"]);
}

#[test]
fn an_external_id_belongs_to_a_role() {
    let (aws, identity) = load(&typed(&["--role-arn", ROLE, "--external-id", "tenant-42"]), &environment([]));
    assert_eq!(aws.external_id.as_deref(), Some("tenant-42"));
    assert_eq!(identity.args, [format!("--role-arn={ROLE}"), "--external-id=tenant-42".to_owned()]);
    let alone = problems(&typed(&["--external-id", "tenant-42"]), &environment([]));
    assert_eq!(alone, ["`--external-id` needs a role: add `--role-arn` or set `AWS_ROLE_ARN`"]);
    let short = problems(&typed(&["--role-arn", ROLE, "--external-id", "x"]), &environment([]));
    assert!(short[0].starts_with("`--external-id`: `x` is not an external id: 2 to 1224 letters"), "{short:?}");
}

#[test]
fn what_needs_a_role_is_not_handed_on_without_one() {
    let (_, identity) = load(&GlobalArgs::default(), &environment([("AWS_ROLE_SESSION_NAME", "ci")]));
    assert_eq!(identity, ExecIdentity::default());
}

#[test]
fn names_everything_that_is_wrong() {
    let flags =
        typed(&["--region", "US East", "--profile", "", "--duration", "13h", "--role-arn", "arn:aws:iam::12:role/x"]);
    assert_eq!(
        problems(&flags, &environment([])),
        [
            "`--region`: `US East` is not a region, such as `us-east-1`",
            "`--profile`: `` is not the name of a profile",
            "`--role-arn`: `arn:aws:iam::12:role/x` is not the ARN of a role, such as `arn:aws:iam::123456789012:role/ReadOnly`",
            "`--duration`: `13h` is not between `15m` and `12h`",
        ]
    );
    let flags = typed(&["--web-identity-token-file", "token", "--role-session-name", "x", "--duration", "1h"]);
    assert_eq!(
        problems(&flags, &environment([("AWS_REGION", "nowhere")])),
        [
            "`AWS_REGION`: `nowhere` is not a region, such as `us-east-1`",
            "`--role-session-name` needs a role: add `--role-arn` or set `AWS_ROLE_ARN`",
            "`--web-identity-token-file` needs a role: add `--role-arn` or set `AWS_ROLE_ARN`",
            "`--duration` needs a role: add `--role-arn` or set `AWS_ROLE_ARN`",
        ]
    );
    for (region, problem) in [
        ("us east 1", "`AWS_REGION`: `us east 1` is not a region, such as `us-east-1`"),
        ("us\u{7}east-1", "`AWS_REGION`: `us\\u{7}east-1` is not a region, such as `us-east-1`"),
        (
            "AKIAIOSFODNN7EXAMPLE",
            "`AWS_REGION`: `(not shown, as it may be a secret)` is not a region, such as `us-east-1`",
        ),
    ] {
        assert_eq!(problems(&GlobalArgs::default(), &environment([("AWS_REGION", region)])), [problem]);
    }
}

#[test]
fn knows_role_arns() {
    for arn in [ROLE, OTHER_ROLE, "arn:aws-us-gov:iam::123456789012:role/aws-reserved/sso.amazonaws.com/X_1a+=,.@-"] {
        assert!(is_role_arn(arn), "{arn}");
    }
    for arn in [
        "",
        "ReadOnly",
        "arn:aws:iam::123456789012:user/x",
        "arn:aws:iam::123456789012:role/",
        "arn:aws:sts::123456789012:assumed-role/x/y",
    ] {
        assert!(!is_role_arn(arn), "{arn}");
    }
}

#[test]
fn reads_when_the_keys_expire() {
    let expire = |text| load(&GlobalArgs::default(), &environment([("AWS_CREDENTIAL_EXPIRATION", text)])).0.keys_expire;
    let at = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_317_508));
    assert_eq!(expire("2026-11-22T03:18:28Z"), at);
    assert_eq!(expire("2026-11-22T05:18:28+02:00"), at);
    assert_eq!(expire("tomorrow"), None);
}

#[test]
fn a_token_where_the_path_of_its_file_belongs_is_recognised_and_not_shown() {
    let token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl";
    let reason = "the value is a token, not the path of a file with one";
    let variables = environment([("AWS_WEB_IDENTITY_TOKEN_FILE", token)]);
    assert_eq!(problems(&GlobalArgs::default(), &variables), [format!("`AWS_WEB_IDENTITY_TOKEN_FILE`: {reason}")]);
    let flags = typed(&["--web-identity-token-file", token, "--role-arn", ROLE]);
    assert_eq!(problems(&flags, &environment([])), [format!("`--web-identity-token-file`: {reason}")]);
}

#[test]
fn no_problem_shows_a_value_that_may_be_a_secret() {
    let secrets = [
        "AKIAIOSFODNN7EXAMPLE x",
        "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY x",
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl x",
        "http://ann:hunter2hunter2@localhost",
    ];
    for secret in secrets {
        for (name, _) in crate::settings::variables() {
            let said = problems(&GlobalArgs::default(), &environment([(name, secret)])).join("\n");
            assert!(!said.contains(&secret[..12]) && !said.contains("hunter2"), "{said}");
        }
        let flags = ["--region", "--role-arn", "--duration", "--role-session-name"].map(|flag| [flag, secret]).concat();
        let said = problems(&typed(&flags), &environment([])).join("\n");
        assert!(said.contains("--region") && !said.contains(&secret[..12]) && !said.contains("hunter2"), "{said}");
    }
}

#[test]
fn what_the_sdk_would_panic_on_is_read_first() {
    let variables = environment([
        ("AWS_RETRY_MODE", "legacy"),
        ("AWS_MAX_ATTEMPTS", "3\r"),
        ("AWS_ENDPOINT_URL", " "),
        ("AWS_ENDPOINT_URL_STS", ""),
        ("AWS_ACCESS_KEY_ID", "AKIA\r"),
        ("AWS_SECURITY_TOKEN", "old"),
        ("AWS_SESSION_TOKEN", "new"),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1/"),
    ]);
    let (aws, _) = load(&GlobalArgs::default(), &variables);
    let get = |name| aws.sdk_variables.get(name);
    assert_eq!((get("AWS_RETRY_MODE"), get("AWS_MAX_ATTEMPTS")), (Some("standard"), Some("3")));
    assert_eq!((get("AWS_ENDPOINT_URL"), get("AWS_ENDPOINT_URL_STS")), (None, None));
    assert_eq!((get("AWS_ACCESS_KEY_ID"), get("AWS_SESSION_TOKEN")), (Some("AKIA"), Some("old")));
    assert_eq!((get("HOME"), get("PATH"), get("AWS_PROFILE")), (Some("/home/alice"), None, None));
    assert_eq!(aws.profile_files[0].as_deref(), Some(Path::new("/home/alice/.aws/config")));

    let wrong = [
        ("AWS_RETRY_MODE", "no", "`AWS_RETRY_MODE`: `no` is not `legacy`, `standard` or `adaptive`"),
        ("AWS_MAX_ATTEMPTS", "0", "`AWS_MAX_ATTEMPTS`: `0` is not a whole number of at least 1"),
        (
            "AWS_ENDPOINT_URL",
            "localhost",
            "`AWS_ENDPOINT_URL`: `localhost` is not a URL, such as `https://localhost:4566`",
        ),
        ("AWS_SECRET_ACCESS_KEY", "'a'", "`AWS_SECRET_ACCESS_KEY`: the value is in quotes: remove them"),
        ("AWS_SESSION_TOKEN", "a\nb", "`AWS_SESSION_TOKEN`: the value has line breaks or other control characters"),
    ];
    for (name, value, expected) in wrong {
        assert_eq!(problems(&GlobalArgs::default(), &environment([(name, value)])), [expected]);
    }
}

#[test]
fn what_the_sdk_takes_of_the_environment_is_handed_on_to_managers_but_for_secrets() {
    let rows: Vec<_> = crate::settings::rows::all().iter().flat_map(|row| row.variables).copied().collect();
    for input in crate::settings::INPUTS.iter().filter(|input| input.takes != Takes::Secret && input.is_for_sdk()) {
        let Some(name) = input.variable else { continue };
        // Nobody but `setup` calls these.
        const OF_SETUP: [&str; 2] = ["AWS_ENDPOINT_URL_AUTO_SCALING", "AWS_ENDPOINT_URL_IAM"];
        let is_passed =
            [&PASSED[..], &PASSED_TO_MANAGERS, &FILES, &rows, &OF_SETUP].iter().any(|names| names.contains(&name));
        assert!(is_passed, "{name}");
    }
}
