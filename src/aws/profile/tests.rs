//! Tests of what profiles say, and of what the SDK makes of what it is given.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::util::peer_text::sentence;

/// A folder with both files, and what is in the environment.
struct Home {
    folder: TempDir,
    variables: SdkVariables,
}

impl Home {
    fn new(config: impl AsRef<[u8]>, credentials: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config"), config).unwrap();
        fs::write(folder.path().join("credentials"), credentials).unwrap();
        Self { folder, variables: SdkVariables::default() }
    }

    fn profiles(&self, name: Option<&str>) -> Profiles {
        let path = |name| Some(self.folder.path().join(name));
        let paths = [path("config"), path("credentials")];
        let session_name = "autoheal-pa".to_owned();
        Profiles { paths, name: name.map(Into::into), variables: self.variables.clone(), session_name }
    }

    async fn settings(&self, name: Option<&str>) -> ProfileSettings {
        self.profiles(name).settings().await.unwrap_or_else(|error| panic!("{}", sentence(&error)))
    }

    /// The file that the SDK is given.
    async fn text(&self, name: &str) -> String {
        let credentials = self.profiles(Some(name)).credentials().await;
        credentials.unwrap_or_else(|error| panic!("{}", sentence(&error))).for_sdk().0
    }

    /// Why a profile cannot be used, with the folder as `~`.
    async fn refusal(&self, name: Option<&str>) -> String {
        let profiles = self.profiles(name);
        let error = match profiles.settings().await {
            Err(error) => error,
            Ok(_) => profiles.credentials().await.unwrap_err(),
        };
        sentence(&error).replace(&self.folder.path().display().to_string(), "~")
    }
}

#[tokio::test]
async fn knows_a_profile_that_assumes_a_role() {
    let home = Home::new(
        "[profile chained]\nrole_arn = r\nsource_profile = x\n[profile keys]\naws_access_key_id = a\n\
         [profile irsa]\nrole_arn = r\nweb_identity_token_file = /t\n",
        "",
    );
    let mut found = Vec::new();
    for name in ["chained", "keys", "irsa"] {
        found.push(home.settings(Some(name)).await.assumes_role);
    }
    assert_eq!(found, [true, false, false]);
}

#[tokio::test]
async fn finds_profiles_by_the_names_that_the_aws_cli_writes() {
    let home = Home::new(
        "[profile 'Foo Bar']\nregion = r-1\n[profile \"quoted\"]\nregion = r-2\n[profile m\u{fc}ller]\n  region = r-3 # home\n\
         [profile dev] # text behind\nregion: r-4\n[default]\nregion = r-5\n",
        "[Foo Baz]\naws_access_key_id = a\n[profile odd]\naws_access_key_id = b\n",
    );
    for (name, region) in [
        (Some("Foo Bar"), Some("r-1")),
        (Some("quoted"), Some("r-2")),
        (Some("m\u{fc}ller"), Some("r-3")),
        (Some("dev"), Some("r-4")),
        (Some("default"), Some("r-5")),
        (None, Some("r-5")),
        (Some("Foo Baz"), None),
        (Some("profile odd"), None),
    ] {
        assert_eq!(home.settings(name).await.region.as_deref(), region, "{name:?}");
    }
    assert_eq!(home.refusal(Some("odd")).await, "there is no AWS profile `odd` in `~/config` or `~/credentials`");
    assert!(Home::new("", "").settings(Some("default")).await.region.is_none());
}

#[tokio::test]
async fn says_what_of_a_profile_is_missing() {
    let home = Home::new(
        "[profile role]\nrole_arn = arn\nsource_profile = gone\n\
         [profile spaced]\nrole_arn = arn\nsource_profile = Foo Bar\n\
         [profile alone]\nrole_arn = arn\n\
         [profile both]\nrole_arn = arn\nsource_profile = role\ncredential_source = Environment\n\
         [profile a]\nrole_arn = arn\nsource_profile = b\n[profile b]\nrole_arn = arn\nsource_profile = a\n\
         [profile empty]\nrole_arn = arn\nsource_profile = bare\n[profile bare]\nregion = r-1\noutput = json\n\
         [profile sso]\nsso_session = corp\nsso_account_id = 1\nsso_role_name = r\n\
         [profile half]\nsso_start_url = https://a\nsso_account_id = 1\n\
         [profile begun]\nsso_session = there\n[sso-session there]\nsso_region = r-1\n\
         [profile differs]\nsso_session = there\nsso_region = r-2\nsso_start_url = https://a\nsso_account_id = 1\nsso_role_name = r\n\
         [profile web]\nweb_identity_token_file = /t\n\
         [profile source]\nrole_arn = arn\ncredential_source = environment\n\
         [profile env]\nrole_arn = arn\ncredential_source = Environment\n\
         [profile half-keys]\naws_access_key_id = a\n[profile other-half]\naws_secret_access_key = s\n\
         [profile signed-in]\nlogin_session = arn:aws:iam::123456789012:user/ann\n\
         [profile services]\nservices = gone\n\
         [profile url]\nendpoint_url = localhost\n[profile region]\nregion = US East\n",
        "[half-keys]\naws_access_key_id = b\n",
    );
    for (name, expected) in [
        ("role", "its `source_profile` names `gone`, and no file has a section `[profile gone]`"),
        ("spaced", "its `source_profile` names `Foo Bar`, and no file has a section `[profile 'Foo Bar']`"),
        ("alone", "`alone` has `role_arn` but lacks `source_profile`, `credential_source`"),
        ("both", "`both` has both `source_profile` and `credential_source`: only one of them is allowed"),
        ("a", "its sources form a circle: `a`, `b`, `a`"),
        ("empty", "its `source_profile` `bare` has no credentials"),
        ("sso", "its `sso_session` names `corp`, and no file has a section `[sso-session corp]`"),
        ("half", "`half` has `sso_account_id` but lacks `sso_role_name`, `sso_region`"),
        ("begun", "`begun` has `sso_session` but lacks `sso_account_id`, `sso_role_name`"),
        ("differs", "its `sso_region` differs from that of `[sso-session there]`"),
        ("web", "`web` has `web_identity_token_file` but lacks `role_arn`"),
        (
            "source",
            "its `credential_source` is `environment`, which is none of `Environment`, `Ec2InstanceMetadata`, `EcsContainer`",
        ),
        (
            "env",
            "its `credential_source` is `Environment`, but `AWS_ACCESS_KEY_ID` or `AWS_SECRET_ACCESS_KEY` is not set",
        ),
        ("half-keys", "`half-keys` has `aws_access_key_id` but lacks `aws_secret_access_key`"),
        ("other-half", "`other-half` has `aws_secret_access_key` but lacks `aws_access_key_id`"),
        ("signed-in", "it is signed in with `aws login`, whose sessions only the AWS CLI can read"),
        ("services", "its `services` names `gone`, and no file has a section `[services gone]`"),
        ("region", "~/config:61: `region` is `US East`, which is not a region, such as `us-east-1`"),
        ("url", "~/config:59: `endpoint_url` is `localhost`, which is not a URL, such as `https://localhost:4566`"),
    ] {
        assert_eq!(home.refusal(Some(name)).await, format!("the AWS profile `{name}` cannot be used: {expected}"));
    }
    let nothing = home.profiles(Some("bare")).credentials().await.unwrap();
    let error = nothing.refine(AwsError::NoCredentials { attempted: String::new() });
    assert_eq!(
        sentence(&error),
        "the AWS profile `bare` cannot be used: it has no credentials: there is only `output`, `region`"
    );
}

#[tokio::test]
async fn a_token_file_that_cannot_be_read_is_named_with_its_profile() {
    let home = Home::new(
        "[profile pipe]\nrole_arn = arn\nweb_identity_token_file = pipe\n\
         [profile endless]\nrole_arn = arn\nweb_identity_token_file = /dev/zero\n\
         [profile gone]\nrole_arn = arn\nweb_identity_token_file = /does/not/exist\n\
         [profile chained]\nrole_arn = arn\nsource_profile = endless\n",
        "",
    );
    // Whatever a relative path is relative to.
    let pipe = home.folder.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let text = fs::read_to_string(home.folder.path().join("config")).unwrap();
    fs::write(home.folder.path().join("config"), text.replace("= pipe", &format!("= {}", pipe.display()))).unwrap();
    let odd = "cannot be read: it is not a regular file";
    for (name, file, why) in [
        ("pipe", "~/pipe", odd),
        ("endless", "/dev/zero", odd),
        ("gone", "/does/not/exist", "cannot be read: No such file or directory (os error 2)"),
        ("chained", "/dev/zero", odd),
    ] {
        let expected = format!("the AWS profile `{name}` cannot be used: its `web_identity_token_file` `{file}` {why}");
        assert_eq!(home.refusal(Some(name)).await, expected);
    }
}

#[tokio::test]
async fn what_looks_like_a_comment_is_a_part_of_a_token_files_path() {
    let home = Home::new("[profile x]\nrole_arn = arn\nweb_identity_token_file = /no/where # of Ann\n", "");
    let refusal = home.refusal(Some("x")).await;
    assert!(refusal.contains("`/no/where # of Ann` cannot be read: No such file"), "{refusal}");
    // The SDK would read the file of the first word.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token # of Ann");
    fs::write(&path, "t").unwrap();
    let text = format!("[profile x]\nrole_arn = arn\nweb_identity_token_file = {}\n", path.display());
    let refusal = Home::new(text, "").refusal(Some("x")).await;
    assert!(refusal.ends_with("~/config:3: `web_identity_token_file` has a space before `#` or `;`"), "{refusal}");
}

#[tokio::test]
async fn no_fault_shows_a_value_that_may_be_a_secret() {
    let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    let token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl";
    for (text, name) in [
        (
            format!("aws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = {secret} x\n"),
            "secret with a blank",
        ),
        (format!("aws_access_key_id = \"AKIAIOSFODNN7EXAMPLE\"\naws_secret_access_key = {secret}\n"), "quoted"),
        (format!("aws_access_key_id = AKIAIOSFODNN7EXAMPLE x\naws_secret_access_key = {secret}\n"), "key with a blank"),
        (format!("{secret}\n"), "no key"),
        (format!("aws_secret_access_key = {secret}\naws_secret_access_key = {secret}x\n"), "twice"),
        (format!("role_arn = arn\nweb_identity_token_file = {token}\n"), "token for a file"),
        (format!("role_arn = arn\nsource_profile = {secret}\n"), "secret for a name"),
        (format!("role_arn = arn\ncredential_source = {secret}\n"), "secret for a source"),
        (format!("endpoint_url = http://ann:{secret}@localhost\n"), "password in a URL"),
        (format!("region = {token}\nmax_attempts = {token}\n"), "token for a number"),
        (format!("services = {secret}\n"), "secret for a section"),
    ] {
        for home in [Home::new(format!("[profile x]\n{text}"), ""), Home::new("", format!("[x]\n{text}"))] {
            let refusal = home.refusal(Some("x")).await;
            assert!(
                !refusal.contains(&secret[..12]) && !refusal.contains("eyJ") && !refusal.contains("AKIA"),
                "{name}: {refusal}"
            );
        }
    }
}

#[tokio::test]
async fn a_fault_in_a_profile_that_is_not_used_is_none() {
    let text = "stray\n[profile good]\nregion = r-1\n[profile bad]\nno equals sign\nregion = r-2\n\
                [profile unclosed 'x]\n[profile good2]\nregion = r-3\n\u{ff}\u{fe}\n[sso-session x\nregion = r-4\n";
    let text: Vec<u8> = text.chars().map(|c| u8::try_from(c).unwrap()).collect();
    let home = Home::new(&text, "[good]\naws_access_key_id = a\naws_secret_access_key = s\n");
    assert_eq!(home.settings(Some("good")).await.region.as_deref(), Some("r-1"));
    assert!(home.text("good").await.contains("aws_access_key_id = a"));
    assert_eq!(
        home.refusal(Some("bad")).await,
        "the AWS profile `bad` cannot be used: ~/config:5 is neither a name in brackets nor a key with a value"
    );
    assert_eq!(home.refusal(Some("good2")).await, "the AWS profile `good2` cannot be used: ~/config:10 is not UTF-8");
    // One that nobody named does no harm until it is needed.
    let home = Home::new("[default]\nregion = r-1\nnonsense\n", "");
    assert_eq!(home.settings(None).await.region.as_deref(), Some("r-1"));
    assert!(
        home.refusal(Some("default"))
            .await
            .ends_with("~/config:3 is neither a name in brackets nor a key with a value")
    );
    assert!(home.profiles(None).credentials().await.is_err());
}

#[tokio::test]
async fn a_header_that_cannot_be_read_adds_nothing_to_the_profile_before_it() {
    let text = b"[profile a]\nregion = r-1\n[profile m\xfcller]\nca_bundle = /tmp/x\nregion = r-2\n[profile b\nretry_mode = no\n";
    let home = Home::new(text, "[a]\naws_access_key_id = a\naws_secret_access_key = s\n[b\nx = 1\n");
    let settings = home.settings(Some("a")).await;
    assert_eq!((settings.region.as_deref(), settings.ca_bundle), (Some("r-1"), None));
    let unknown = home.refusal(Some("m\u{fc}ller")).await;
    assert_eq!(
        unknown,
        "the AWS profile files cannot be used: ~/credentials:4 starts with `[`, but is not a name in brackets"
    );
}

#[tokio::test]
async fn a_fault_in_the_services_of_a_profile_is_one_of_the_profile() {
    let home = Home::new(
        "[profile x]\nservices = s\n[default]\nservices = s\n[services s]\nssm =\n  endpoint_url = http://localhost:2\nnonsense\n",
        "",
    );
    assert_eq!(
        home.refusal(Some("x")).await,
        "the AWS profile `x` cannot be used: ~/config:8 is neither a name in brackets nor a key with a value"
    );
    assert!(home.settings(None).await.ssm.is_some());
}

#[tokio::test]
async fn a_file_with_faults_is_warned_of_once() {
    let home = Home::new("no\nprofile\n[default]\nfile\n[profile x]\nat all\n", "[y]\nno\n");
    let warnings = async |name: Option<&str>| {
        let profiles = home.profiles(name);
        let files = Files::read(&profiles.paths).await;
        let used: Vec<_> = name.iter().map(|name| &files.profiles[*name]).collect();
        let folder = home.folder.path().display().to_string();
        files.passed_over(&used).into_iter().map(|text| text.replace(&folder, "~")).collect::<Vec<_>>()
    };
    let what = "is neither a name in brackets nor a key with a value: ignored";
    let others = [format!("~/config:1 {what}, and 3 more lines"), format!("~/credentials:2 {what}")];
    // One that nobody named is used as far as it can be.
    assert_eq!(warnings(None).await, others);
    assert_eq!(warnings(Some("default")).await[0], format!("~/config:1 {what}, and 2 more lines"));
    assert_eq!(warnings(Some("y")).await, others[..1]);
}

#[tokio::test]
async fn settings_of_the_profile_stand_in_for_variables_that_are_not_set() {
    let config = "[profile x]\nca_bundle = ~/ca.pem\nendpoint_url = http://localhost:1\nservices = local\nretry_mode = legacy\n\
                  max_attempts = 03\nuse_fips_endpoint = FALSE\n\
                  [services local]\nssm =\n  endpoint_url = http://localhost:2\nssmmessages =\n  endpoint_url = http://localhost:3\n\
                  s3 =\n  endpoint_url = \n";
    let mut home = Home::new(config, "");
    home.variables.add("HOME", "/home/ann");
    let settings = home.settings(Some("x")).await;
    assert_eq!(settings.ca_bundle.as_deref(), Some(Path::new("/home/ann/ca.pem")));
    assert_eq!(settings.ssm.as_deref(), Some("http://localhost:2"));
    assert_eq!(settings.ssmmessages.as_deref(), Some("http://localhost:3"));
    let variable = |settings: &ProfileSettings, name: &str| settings.variables.get(name).map(ToOwned::to_owned);
    assert_eq!(variable(&settings, "AWS_ENDPOINT_URL_EKS").as_deref(), Some("http://localhost:1"));
    assert_eq!(variable(&settings, "AWS_RETRY_MODE").as_deref(), Some("standard"));
    assert_eq!(variable(&settings, "AWS_MAX_ATTEMPTS").as_deref(), Some("3"));
    assert_eq!(variable(&settings, "AWS_USE_FIPS_ENDPOINT").as_deref(), Some("false"));

    home.variables.add("AWS_MAX_ATTEMPTS", "7");
    home.variables.add("AWS_ENDPOINT_URL", "http://localhost:4");
    let settings = home.settings(Some("x")).await;
    assert_eq!(variable(&settings, "AWS_MAX_ATTEMPTS").as_deref(), Some("7"));
    assert_eq!((variable(&settings, "AWS_ENDPOINT_URL_EKS"), settings.ssm), (None, None));

    home.variables.add("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true");
    assert!(home.settings(Some("x")).await.ssmmessages.is_none());
}

#[tokio::test]
async fn writes_for_the_sdk_what_botocore_would_take() {
    let home = Home::new(
        "[profile 'top role']\nrole_arn = arn:1\nsource_profile = m\u{fc}ller\nexternal_id = x\nmfa_serial = arn:mfa\n\
         [profile m\u{fc}ller]\nrole_arn = arn:2\nsource_profile = m\u{fc}ller\n\
         [profile process]\ncredential_process = sh -c 'a # b; c'\naws_access_key_id = late\naws_secret_access_key = s\n\
         [profile corp]\nsso_session = my.sso\nsso_account_id = 123456789012\nsso_role_name = r\nsso_region = r-1\n\
         [sso-session my.sso]\nsso_region = r-1\nsso_start_url = https://a/start\n\
         [profile ec2]\nrole_arn = arn:3\ncredential_source = Ec2InstanceMetadata\n\
         [profile env]\nrole_arn = arn:4\ncredential_source = Environment\n",
        "[m\u{fc}ller]\naws_access_key_id = a # of Ann\naws_secret_access_key = b\naws_security_token = c\n\
         [process]\naws_access_key_id = early\naws_secret_access_key = s\n",
    );
    let mut home = home;
    home.variables.add("AWS_ACCESS_KEY_ID", "of-env");
    home.variables.add("AWS_SECRET_ACCESS_KEY", "s");
    for (name, expected) in [
        ("top role", "[profile profile-0]\naws_access_key_id = a\naws_secret_access_key = b\naws_session_token = c\n"),
        (
            "m\u{fc}ller",
            "[profile profile-0]\naws_access_key_id = a\naws_secret_access_key = b\naws_session_token = c\n",
        ),
        ("process", "[profile profile-0]\naws_access_key_id = early\naws_secret_access_key = s\n"),
        (
            "corp",
            "[profile profile-0]\nsso_account_id = 123456789012\nsso_role_name = r\nsso_session = my.sso\n\
             [sso-session my.sso]\nsso_start_url = https://a/start\nsso_region = r-1\n",
        ),
        ("ec2", ""),
        ("env", "[profile profile-0]\naws_access_key_id = of-env\naws_secret_access_key = s\n"),
    ] {
        assert_eq!(home.text(name).await, expected, "{name}");
    }
}

#[tokio::test]
async fn files_that_are_not_there_or_no_files_are_empty_and_others_are_named() {
    let home = Home::new("", "");
    fs::remove_file(home.folder.path().join("config")).unwrap();
    fs::create_dir(home.folder.path().join("config")).unwrap();
    assert!(home.settings(None).await.region.is_none());
    let profiles = Profiles { paths: [Some("/dev/null".into()), Some("/dev/null/x".into())], ..home.profiles(None) };
    assert!(profiles.settings().await.unwrap().region.is_none());
}

#[tokio::test]
async fn reads_what_each_role_is_assumed_with() {
    let home = Home::new(
        "[profile mfa]\nrole_arn = arn:1\nsource_profile = named\nmfa_serial = arn:mfa\nduration_seconds = 43200\n\
         [profile named]\nrole_arn = arn:2\nsource_profile = keys\nexternal_id = x\nrole_session_name = ann # of Ann\n\
         [profile keys]\naws_access_key_id = a\naws_secret_access_key = s\n\
         [profile soon]\nrole_arn = arn:1\nsource_profile = keys\nduration_seconds = soon\n",
        "",
    );
    let chain = home.profiles(Some("mfa")).credentials().await.unwrap().chain.unwrap();
    let [outer, inner] = &chain.roles[..] else { panic!("{:?}", chain.roles) };
    assert_eq!(
        (outer.arn.as_str(), outer.duration, outer.mfa_serial.as_deref()),
        ("arn:1", Some(43_200), Some("arn:mfa"))
    );
    assert_eq!((inner.arn.as_str(), inner.external_id.as_deref()), ("arn:2", Some("x")));
    assert_eq!((inner.duration, inner.session_name.as_deref()), (None, Some("ann # of Ann")));
    let refusal = home.refusal(Some("soon")).await;
    assert!(refusal.ends_with("`duration_seconds` is `soon`, which is not a whole number of at least 1"), "{refusal}");
}

#[tokio::test]
async fn says_who_has_to_sign_in() {
    let home = Home::new(
        "[sso-session corp]\nsso_start_url = https://x\nsso_region = us-east-1\n[profile dev]\nsso_session = corp\n\
         sso_account_id = 123456789012\nsso_role_name = R\n[profile admin]\nrole_arn = r\nsource_profile = dev\n\
         [profile keys]\naws_access_key_id = a\naws_secret_access_key = s\n",
        "",
    );
    let refined = async |name: &str, said: &'static str| {
        let credentials = home.profiles(Some(name)).credentials().await.unwrap();
        credentials.refine(AwsError::CredentialSource { source: Arc::new(io::Error::other(said)) })
    };
    for (said, text) in [
        ("failed to load the cached SSO token", "it is not signed in to IAM Identity Center"),
        ("the SSO token has expired and cannot be refreshed", "its sign-in to IAM Identity Center has expired"),
        ("UnauthorizedException: Session token not found or invalid", "its sign-in to IAM Identity Center has expired"),
    ] {
        for name in ["dev", "admin"] {
            let error = refined(name, said).await;
            let start = format!("the AWS profile `{name}` cannot be used: {text}: ");
            assert!(sentence(&error).starts_with(&start), "{}", sentence(&error));
            let AwsError::Profile { fault, .. } = &error else { panic!("{error:?}") };
            assert!(matches!(&**fault, ProfileFault::SignedOut { profile, .. } if profile == "dev"), "{fault:?}");
        }
    }
    assert!(matches!(refined("dev", "dispatch failure").await, AwsError::CredentialSource { .. }));
    assert!(matches!(refined("keys", "cached SSO token").await, AwsError::CredentialSource { .. }));
}
