//! What a manager has to be given to be started again from anywhere, as it is now.
//!
//! The plugin that kubectl runs starts a manager from whatever shell, job or program that kubectl was started in, so all that
//! this shell has given is written down: flags as they were typed, with paths made absolute; the configuration file by its
//! path; variables as flags, or as variables where entries of the file come before them.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use super::{
    AWS, AwsSettings, Environment, GlobalArgs, Origin, Row, Sources, UP, UpSettings, identity,
    row::{Kind, Table},
    rows,
    source::Given,
};

/// The flag of the kubeconfig.
pub const KUBECONFIG_FLAG: &str = "--kubeconfig";

/// Options of `up`, and the variables that they need. Never holds keys, tokens or passwords.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launch {
    /// Each flag joined to its value.
    pub args: Vec<OsString>,
    /// Names and values.
    pub env: Vec<(String, OsString)>,
}

impl Launch {
    /// Writes down what these settings were read from.
    pub(super) fn of(flags: &GlobalArgs, sources: &Sources, settings: &UpSettings, environment: &Environment) -> Self {
        let common = &settings.common;
        let file = sources.file.path.as_deref().unwrap_or(Path::new("/dev/null"));
        let mut launch = Self::default();
        launch.add("--name", &common.name);
        launch.add("--config", file);
        launch.add(KUBECONFIG_FLAG, &common.kubeconfig);
        launch.args.push(UP.on_demand.flag().into());
        // These are written down already, or are about one run.
        let left_out = [&UP.on_demand, &UP.kubeconfig, &UP.set_current, &UP.env_file];
        let has_entries = !sources.file.entries.is_empty();
        for row in rows::all() {
            let is = |other: &&Row| std::ptr::eq(*other, row);
            let is_of_identity = AwsSettings::rows().iter().any(is) && !has_entries;
            if left_out.iter().any(is) || is_of_identity {
                continue;
            }
            let typed = sources.flags.get(row);
            let set = sources.environment.get(row);
            if !typed.is_empty() {
                typed.iter().for_each(|given| launch.repeat(row, given, environment));
            } else if has_entries {
                launch.env.extend(set.iter().filter_map(|given| variable(row, given, environment)));
            } else {
                set.iter().for_each(|given| launch.repeat(row, given, environment));
            }
        }
        if let Some(access) = settings.access.first().filter(|_| !has_entries) {
            launch.args.extend(access.identity.args.iter().map(OsString::from));
            for row in [&AWS.region, &AWS.endpoint_ssmmessages] {
                let given = sources.stack().one(row).filter(|given| !matches!(given.origin, Origin::File(..)));
                given.into_iter().for_each(|given| launch.repeat(row, given, environment));
            }
        }
        launch.env.extend(identity::of_managers(environment).map(|(name, value)| (name.to_owned(), value.into())));
        let imports = settings.access.iter().any(|access| !access.import_contexts.is_empty());
        if imports && sources.stack().one(&UP.import_kubeconfig).is_none() {
            let paths = std::env::join_paths(&common.imported_from).unwrap_or_default();
            launch.env.push(("KUBECONFIG".to_owned(), paths));
        }
        launch.args.extend((flags.verbose > 0).then(|| format!("-{}", "v".repeat(flags.verbose.into())).into()));
        launch
    }

    /// Returns the same for another kubeconfig.
    #[must_use]
    pub fn with_kubeconfig(mut self, path: &Path) -> Self {
        let named = joined(KUBECONFIG_FLAG, "=", path.as_os_str());
        let is_named = |arg: &&mut OsString| {
            arg.to_str().and_then(|arg| arg.strip_prefix(KUBECONFIG_FLAG)).is_some_and(|rest| rest.starts_with('='))
        };
        if let Some(arg) = self.args.iter_mut().find(is_named) {
            *arg = named;
        }
        self
    }

    fn add(&mut self, flag: &str, value: impl AsRef<OsStr>) {
        self.args.push(joined(flag, "=", value.as_ref()));
    }

    fn repeat(&mut self, row: &Row, given: &Given, environment: &Environment) {
        match row.kind {
            Kind::Switch => self.args.extend((given.text() == "true").then(|| row.flag().into())),
            Kind::Path => self.add(&row.flag(), given.path(environment)),
            Kind::Number { .. } | Kind::Duration { .. } | Kind::Choice(_) | Kind::Text { .. } => {
                self.add(&row.flag(), &given.value);
            }
        }
    }
}

fn joined(first: &str, between: &str, second: &OsStr) -> OsString {
    let mut joined = OsString::from(format!("{first}{between}"));
    joined.push(second);
    joined
}

/// Returns the variable that a value is of, as it has to be set elsewhere.
fn variable(row: &Row, given: &Given, environment: &Environment) -> Option<(String, OsString)> {
    let Origin::Variable(name) = given.origin else { return None };
    let value = if matches!(row.kind, Kind::Path) { given.path(environment).into() } else { given.value.clone() };
    Some((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::{Args, Command, FromArgMatches};

    use super::*;
    use crate::settings::UpArgs;

    /// Somewhere else, where nothing is as it was here.
    fn elsewhere(env: &[(String, OsString)]) -> Environment {
        let environment =
            Environment { current_dir: "/".into(), temp_dir: "/tmp".into(), uid: 1000, ..Environment::default() };
        environment.with(env.iter().map(|(name, value)| (name.clone(), value.to_str().unwrap())))
    }

    fn here<const N: usize>(variables: [(&str, &str); N]) -> Environment {
        let environment = Environment {
            current_dir: "/work".into(),
            home: Some("/home/alice".into()),
            temp_dir: "/tmp".into(),
            uid: 1000,
            ..Environment::default()
        };
        environment.with(variables)
    }

    fn load(words: &[OsString], environment: &Environment) -> UpSettings {
        let command = UpArgs::augment_args(GlobalArgs::augment_args(Command::new("up").no_binary_name(true)));
        let matches = command.get_matches_from(words);
        let (global, up) =
            (GlobalArgs::from_arg_matches(&matches).unwrap(), UpArgs::from_arg_matches(&matches).unwrap());
        UpSettings::load(&global, &up, environment).unwrap()
    }

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    /// What makes tunnels be what they are.
    fn shown(settings: &UpSettings) -> String {
        let UpSettings { common, access, base_port, sessions, context_prefix, idle, timeout, check, .. } = settings;
        let access: Vec<_> = access
            .iter()
            .map(|access| {
                (
                    (&access.bastion, &access.clusters, &access.forwards, &access.reason, access.request_access),
                    (
                        &access.aws.region,
                        &access.aws.profile,
                        &access.aws.role_arn,
                        &access.aws.web_identity_token_file,
                    ),
                    (&access.aws.role_session_name, &access.aws.endpoint_ssmmessages, &access.aws.ca_bundle),
                )
            })
            .collect();
        format!(
            "{:?} {:?} {access:?} {base_port} {sessions} {context_prefix} {idle:?} {timeout:?} {check:?}",
            common.name, common.kubeconfig
        )
    }

    /// Loads settings here, and again elsewhere with nothing but what was written down.
    fn there_and_back(line: &str, environment: &Environment) -> Launch {
        let first = load(&words(line), environment);
        let env: Vec<_> = first.access.iter().flat_map(|access| access.identity.env.clone()).collect();
        let env = env.into_iter().map(|(name, value)| (name, value.into())).chain(first.launch.env.clone());
        let second = load(&first.launch.args, &elsewhere(&env.collect::<Vec<_>>()));
        assert_eq!(shown(&first), shown(&second), "{:?}", first.launch);
        assert!(second.on_demand, "nobody may use it");
        assert_eq!(first.launch.args, second.launch.args, "once more makes no difference");
        first.launch
    }

    #[test]
    fn flags_and_variables_lead_to_the_same_settings_from_anywhere() {
        let environment = here([
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/ReadOnly"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "token"),
            ("AWS_ENDPOINT_URL_SSMMESSAGES", "https://vpce.example"),
            ("AUTOHEAL_PA_BASTION", "i-0abcdef1,i-0abcdef2"),
            ("USER", "alice"),
        ]);
        there_and_back(
            "--name ci --sessions 3 --cluster a --cluster b,c --base-port 0 --context-prefix= -vv",
            &environment,
        );
        there_and_back(
            "--bastion i-0abcdef3 --region us-east-1 --kubeconfig kube/config --forward db=db:5432 --reason why --request-access --timeout 2m \
             --ca-bundle ca.pem --on-demand --idle 2h --check tcp",
            &environment,
        );
        let profile = here([("AWS_PROFILE", "dev"), ("AWS_DEFAULT_REGION", "eu-west-1"), ("AWS_CONFIG_FILE", "aws")]);
        let launch = there_and_back("--bastion i-0abcdef3", &profile);
        assert!(launch.args.contains(&"--config=/dev/null".into()), "a file that comes later is not read: {launch:?}");
    }

    #[test]
    fn a_file_is_named_and_what_its_entries_leave_out_comes_from_variables_still() {
        let dir = tempfile::tempdir().unwrap();
        let file: PathBuf = dir.path().join("config.yaml");
        let text = "idle: 1h\non_demand: true\naccess:\n  - region: us-east-1\n    bastion: i-0abcdef1\n    profile: one\n  \
                    - region: eu-west-1\n    bastion: i-0abcdef2\n";
        std::fs::write(&file, text).unwrap();
        let line = format!("--config {}", file.display());
        let launch = there_and_back(&line, &here([("AWS_PROFILE", "dev")]));
        assert!(launch.args.contains(&OsString::from(format!("--config={}", file.display()))), "{launch:?}");
        assert_eq!(launch.env, [("AWS_PROFILE".to_owned(), OsString::from("dev"))]);
    }

    #[test]
    fn no_key_is_written_down() {
        let environment = here([
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ACCESS_KEY_ID", "AKIASECRET"),
            ("AWS_SECRET_ACCESS_KEY", "verysecret"),
            ("AWS_SESSION_TOKEN", "sosecret"),
            ("HTTPS_PROXY", "http://user:secret@proxy:3128"),
        ]);
        let launch = load(&words("--bastion i-0abcdef1"), &environment).launch;
        assert!(!format!("{launch:?}").to_lowercase().contains("secret"), "{launch:?}");
    }
}
