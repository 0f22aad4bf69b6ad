//! Settings: flags over environment over defaults, read once into values that do not change.
//!
//! The only part of the program that reads the environment ([`Environment`]). Everything that is wrong
//! is collected and said at once, before any call leaves the machine. A configuration file, as a third
//! source between environment and defaults, has its place in the `load` functions here.
//!
//! Leaves out whether things work: files are not opened and names are not looked up.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

pub use environment::Environment;
pub use flags::{GlobalArgs, LogFormat, UpArgs};
pub use identity::{AwsSettings, CiOidc, ExecIdentity};

use crate::cluster::{Target, TargetError};

pub mod duration;
mod environment;
mod flags;
mod identity;

/// First local port, unless told otherwise.
const DEFAULT_BASE_PORT: u16 = 10100;

/// What context names start with, unless told otherwise.
const DEFAULT_CONTEXT_PREFIX: &str = "pa-";

/// The manager's name, unless told otherwise.
const DEFAULT_NAME: &str = "default";

/// Time for all tunnels to become ready, unless told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Times to wait for the tunnels that a user may ask for.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// Time between two probes of a tunnel, unless told otherwise: several in each minute in which a session may idle out.
const DEFAULT_PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// Times between two probes that a user may ask for, besides none at all.
const PROBE_INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// How long a lost session is tried to be resumed, unless told otherwise.
const DEFAULT_RECONNECT_TIMEOUT: Duration = Duration::from_secs(90);

/// Times to try to resume a session that a user may ask for.
const RECONNECT_TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// Most characters in a session's reason, which is the limit of `StartSession`.
const MAX_REASON_LEN: usize = 256;

/// Most characters in a manager's name: the path of its socket may have 100 bytes or so.
const MAX_NAME_LEN: usize = 32;

/// Most characters in a context prefix; just a guard against a slip of the hand.
const MAX_PREFIX_LEN: usize = 64;

/// Most characters in a cluster's name, the limit of EKS.
const MAX_CLUSTER_NAME_LEN: usize = 100;

/// What every command works with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The manager's name: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// How to reach AWS, and as whom.
    pub aws: AwsSettings,
    /// How `token` finds the same identity from another shell.
    pub identity: ExecIdentity,
    /// The manager's directory, where its lock and its control socket are; absolute.
    pub control_dir: PathBuf,
    /// The log of this manager in the background; absolute.
    pub log_file: PathBuf,
    /// The kubeconfig with this manager's contexts; absolute.
    pub kubeconfig: PathBuf,
    /// The user has chosen the kubeconfig, so no other will do.
    pub kubeconfig_given: bool,
    /// The absolute path of the running binary, if the system tells.
    pub executable: Option<PathBuf>,
}

impl Settings {
    /// Reads the settings that all commands share.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that is wrong.
    pub fn load(
        flags: &GlobalArgs,
        kubeconfig: Option<&Path>,
        environment: &Environment,
    ) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let settings = Self::collect(flags, kubeconfig, environment, &mut problems);
        SettingsError::unless_empty(problems)?;
        Ok(settings)
    }

    fn collect(
        flags: &GlobalArgs,
        kubeconfig: Option<&Path>,
        environment: &Environment,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let ours = |name: &&String| name.starts_with("AWS_") || name.starts_with("AUTOHEAL_PA_");
        let undecodable = environment.undecodable.iter().filter(ours);
        problems.extend(undecodable.map(|variable| Problem::NotUtf8 { variable: variable.clone() }));

        let name = flags.name.as_deref().unwrap_or(DEFAULT_NAME);
        if !is_manager_name(name) {
            let expected = "a name: at most 32 letters, digits, `.`, `_` and `-`, the first a letter or a digit";
            problems.push(Problem::malformed("--name", name, expected));
        }
        let control_dir = environment.runtime_dir().join(name);
        let kubeconfig_given = kubeconfig.is_some();
        let kubeconfig = match (kubeconfig, &environment.home) {
            (Some(path), _) => environment.absolute(path),
            (None, Some(home)) if name == DEFAULT_NAME => home.join(".kube/autoheal-pa.yaml"),
            (None, Some(home)) => home.join(format!(".kube/autoheal-pa-{name}.yaml")),
            (None, None) => control_dir.join("kubeconfig"),
        };
        let log_file = match environment.state_dir() {
            Some(dir) => dir.join(format!("{name}.log")),
            None => control_dir.join("log"),
        };
        let aws = AwsSettings::load(flags, environment, problems);
        let identity = ExecIdentity::of(&aws, environment);
        Self {
            name: name.to_owned(),
            aws,
            identity,
            control_dir,
            log_file,
            kubeconfig,
            kubeconfig_given,
            executable: environment.executable.clone(),
        }
    }
}

/// One way in: an identity in a region, the bastions there, and the clusters to reach through them.
#[derive(Debug, Clone)]
pub struct Access {
    /// How to reach AWS, and as whom.
    pub aws: AwsSettings,
    /// How `token` finds the same identity from another shell.
    pub identity: ExecIdentity,
    /// Bastions in order of preference; never empty.
    pub bastions: Vec<Target>,
    /// Names of clusters in the order of their ports, each once; empty: all that are active.
    pub clusters: Vec<String>,
}

/// What `up` works with.
#[derive(Debug, Clone)]
pub struct UpSettings {
    /// What all commands share.
    pub common: Settings,
    /// The ways in, in the order of their ports; never empty.
    pub access: Vec<Access>,
    /// The first local port; 0: any free ones.
    pub base_port: u16,
    /// A taken port is an error rather than skipped.
    pub strict_ports: bool,
    /// The current context is set in a kubeconfig of others, too.
    pub set_current: bool,
    /// What context names start with.
    pub context_prefix: String,
    /// Time for all tunnels to become ready, 1 s to 24 h.
    pub timeout: Duration,
    /// Time between two probes of a tunnel, 1 s to 1 h; zero: one for each session, which may then idle out.
    pub probe_interval: Duration,
    /// How long a lost session is tried to be resumed before a new one is started, 1 s to 1 h.
    pub reconnect_timeout: Duration,
    /// The sessions' reason, 1 to 256 characters on one line.
    pub reason: Option<String>,
    /// Where to write shell lines that set `KUBECONFIG`; absolute.
    pub env_file: Option<PathBuf>,
    /// The file by which a step of a GitHub Actions job sets variables of later ones.
    pub github_env: Option<PathBuf>,
}

impl UpSettings {
    /// Reads the settings of `up`.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that is wrong.
    pub fn load(flags: &GlobalArgs, args: &UpArgs, environment: &Environment) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let common = Settings::collect(flags, args.kubeconfig.as_deref(), environment, &mut problems);
        let access = Access {
            aws: common.aws.clone(),
            identity: common.identity.clone(),
            bastions: bastions(&args.bastion, environment, &mut problems),
            clusters: clusters(&args.cluster, &mut problems),
        };
        let base_port = match args.base_port.as_deref().map(str::parse) {
            None => DEFAULT_BASE_PORT,
            Some(Ok(port)) => port,
            Some(Err(_)) => {
                let value = args.base_port.as_deref().unwrap_or_default();
                problems.push(Problem::malformed("--base-port", value, "a port: a number from 0 to 65535"));
                DEFAULT_BASE_PORT
            }
        };
        let context_prefix = args.context_prefix.as_deref().unwrap_or(DEFAULT_CONTEXT_PREFIX);
        if context_prefix.len() > MAX_PREFIX_LEN || context_prefix.chars().any(|c| c.is_control() || c.is_whitespace())
        {
            let expected = "a prefix: at most 64 characters without spaces";
            problems.push(Problem::malformed("--context-prefix", context_prefix, expected));
        }
        if let Some(reason) = &args.reason
            && (reason.trim().is_empty()
                || reason.chars().count() > MAX_REASON_LEN
                || reason.chars().any(char::is_control))
        {
            let expected = "a reason that Session Manager takes: 1 to 256 characters on one line";
            problems.push(Problem::malformed("--reason", reason, expected));
        }
        let settings = Self {
            common,
            access: vec![access],
            base_port,
            strict_ports: args.strict_ports,
            set_current: args.set_current,
            context_prefix: context_prefix.to_owned(),
            timeout: timeout(args).unwrap_or_else(|error| {
                problems.extend(error.problems);
                DEFAULT_TIMEOUT
            }),
            probe_interval: probe_interval(args.probe_interval.as_deref(), &mut problems),
            reconnect_timeout: args
                .reconnect_timeout
                .as_deref()
                .and_then(|text| {
                    within("--reconnect-timeout", text, RECONNECT_TIMEOUTS, "between `1s` and `1h`", &mut problems)
                })
                .unwrap_or(DEFAULT_RECONNECT_TIMEOUT),
            reason: args.reason.clone(),
            github_env: github_env(args.github_env, environment).unwrap_or_else(|error| {
                problems.extend(error.problems);
                None
            }),
            env_file: args.env_file.as_deref().map(|path| environment.absolute(path)),
        };
        SettingsError::unless_empty(problems)?;
        Ok(settings)
    }
}

/// Reads how long the tunnels may take until all are ready.
///
/// # Errors
/// [`SettingsError`] if it is not such a duration.
pub fn timeout(args: &UpArgs) -> Result<Duration, SettingsError> {
    let mut problems = Vec::new();
    let given = args.timeout.as_deref();
    let limit = given.and_then(|text| within("--timeout", text, TIMEOUTS, "between `1s` and `24h`", &mut problems));
    SettingsError::unless_empty(problems)?;
    Ok(limit.unwrap_or(DEFAULT_TIMEOUT))
}

/// Finds the file by which a step of a GitHub Actions job sets variables of later ones, if it is wanted.
///
/// # Errors
/// [`SettingsError`] if this is no such step.
pub fn github_env(wanted: bool, environment: &Environment) -> Result<Option<PathBuf>, SettingsError> {
    if !wanted {
        return Ok(None);
    }
    let path = environment.get("GITHUB_ENV").map(|path| environment.absolute(Path::new(path)));
    path.map(Some).ok_or_else(|| SettingsError { problems: vec![Problem::NoGithubEnv] })
}

/// Reads the bastions, each once.
fn bastions(flags: &[String], environment: &Environment, problems: &mut Vec<Problem>) -> Vec<Target> {
    let variable = environment.get("AUTOHEAL_PA_BASTION");
    let (origin, texts): (_, Vec<&str>) = if flags.is_empty() {
        ("AUTOHEAL_PA_BASTION", variable.into_iter().flat_map(|value| value.split(',')).collect())
    } else {
        ("--bastion", flags.iter().flat_map(|value| value.split(',')).collect())
    };
    if texts.is_empty() {
        problems.push(Problem::NoBastion);
    }
    let mut bastions = Vec::with_capacity(texts.len());
    for text in texts {
        match text.trim().parse() {
            Ok(target) if bastions.contains(&target) => {}
            Ok(target) => bastions.push(target),
            Err(source) => problems.push(Problem::Bastion { origin, source }),
        }
    }
    bastions
}

/// Reads the names of clusters, each once.
fn clusters(flags: &[String], problems: &mut Vec<Problem>) -> Vec<String> {
    let mut clusters: Vec<String> = Vec::with_capacity(flags.len());
    for name in flags {
        if !is_cluster_name(name) {
            let expected = "the name of a cluster: at most 100 letters, digits, `-` and `_`";
            problems.push(Problem::malformed("--cluster", name, expected));
        } else if !clusters.contains(name) {
            clusters.push(name.clone());
        }
    }
    clusters
}

fn probe_interval(text: Option<&str>, problems: &mut Vec<Problem>) -> Duration {
    match text {
        None => DEFAULT_PROBE_INTERVAL,
        // Nothing is nothing in every unit.
        Some("0" | "0s") => Duration::ZERO,
        Some(text) => within("--probe-interval", text, PROBE_INTERVALS, "`0` or between `1s` and `1h`", problems)
            .unwrap_or(DEFAULT_PROBE_INTERVAL),
    }
}

/// Reads a duration that has limits.
fn within(
    option: &'static str,
    text: &str,
    limits: RangeInclusive<Duration>,
    expected: &'static str,
    problems: &mut Vec<Problem>,
) -> Option<Duration> {
    match duration::parse(text) {
        Ok(duration) if limits.contains(&duration) => return Some(duration),
        Ok(_) => problems.push(Problem::malformed(option, text, expected)),
        Err(source) => problems.push(Problem::Duration { option, value: text.to_owned(), source }),
    }
    None
}

fn is_manager_name(text: &str) -> bool {
    text.len() <= MAX_NAME_LEN
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Tells whether EKS would take this as the name of a cluster.
#[must_use]
pub fn is_cluster_name(text: &str) -> bool {
    text.len() <= MAX_CLUSTER_NAME_LEN
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// One thing that is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A value is not of the form that it must have.
    #[error("`{origin}`: `{value}` is not {expected}")]
    Malformed {
        /// The flag or variable that gave it.
        origin: &'static str,
        /// What it gave.
        value: String,
        /// What is expected, with an article.
        expected: &'static str,
    },
    /// A value is not a duration.
    #[error("`{option}`: `{value}` is not a duration")]
    Duration {
        /// The flag that gave it.
        option: &'static str,
        /// What it gave.
        value: String,
        /// What is wrong with it.
        #[source]
        source: duration::DurationError,
    },
    /// A bastion's id is malformed.
    #[error("`{origin}`")]
    Bastion {
        /// The flag or variable that gave it.
        origin: &'static str,
        /// What is wrong with it.
        #[source]
        source: TargetError,
    },
    /// There is no bastion to connect through.
    #[error("no bastion is given: add `--bastion` or set `AUTOHEAL_PA_BASTION`")]
    NoBastion,
    /// An option means nothing without a role.
    #[error("`{option}` needs a role: add `--role-arn` or set `AWS_ROLE_ARN`")]
    NeedsRole {
        /// The option.
        option: &'static str,
    },
    /// `--github-env` is given outside of GitHub Actions.
    #[error("`--github-env` needs the variable `GITHUB_ENV`, which a step of a GitHub Actions job has")]
    NoGithubEnv,
    /// A variable's value cannot be read.
    #[error("the value of `{variable}` is not UTF-8")]
    NotUtf8 {
        /// The variable.
        variable: String,
    },
}

impl Problem {
    fn malformed(origin: &'static str, value: &str, expected: &'static str) -> Self {
        let value = if value.contains(char::is_control) { value.escape_debug().to_string() } else { value.to_owned() };
        Self::Malformed { origin, value, expected }
    }

    /// Says it in one line, with its source.
    fn line(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

/// Everything that is wrong with the settings; at least one problem.
#[derive(Debug)]
pub struct SettingsError {
    /// The problems, in the order in which the settings are read.
    pub problems: Vec<Problem>,
}

impl SettingsError {
    fn unless_empty(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }
}

impl std::fmt::Display for SettingsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let [problem] = &self.problems[..] {
            return f.write_str(&problem.line());
        }
        write!(f, "there are {} problems with the settings", self.problems.len())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {}", problem.line()))
    }
}

impl std::error::Error for SettingsError {}

#[cfg(test)]
mod tests {
    use super::*;

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
        UpArgs { bastion: vec![id.to_owned()], ..UpArgs::default() }
    }

    #[test]
    fn defaults() {
        let settings = up(&bastion("i-0abcdef1"), &environment([])).unwrap();
        assert_eq!(settings.base_port, 10100);
        assert_eq!((settings.timeout, settings.probe_interval), (Duration::from_secs(60), Duration::from_secs(30)));
        assert_eq!(settings.reconnect_timeout, Duration::from_secs(90));
        assert_eq!(settings.context_prefix, "pa-");
        assert_eq!(settings.common.name, "default");
        assert_eq!(settings.common.kubeconfig, Path::new("/home/alice/.kube/autoheal-pa.yaml"));
        assert_eq!(settings.common.control_dir, Path::new("/tmp/autoheal-pa-1000/default"));
        assert_eq!(settings.common.log_file, Path::new("/home/alice/.local/state/autoheal-pa/default.log"));
        assert!(settings.access[0].clusters.is_empty() && settings.reason.is_none() && settings.env_file.is_none());
    }

    #[test]
    fn takes_every_flag() {
        let args = UpArgs {
            bastion: vec!["i-0abcdef1, i-0abcdef2".into(), "ecs:tools_a_b".into(), "i-0abcdef1".into()],
            cluster: vec!["no".into(), "1_000".into(), "no".into()],
            base_port: Some("0".into()),
            strict_ports: true,
            kubeconfig: Some("kube/config".into()),
            set_current: true,
            context_prefix: Some(String::new()),
            timeout: Some("5m".into()),
            probe_interval: Some("0".into()),
            reconnect_timeout: Some("10m".into()),
            reason: Some("INC-42: smoke test".into()),
            env_file: Some("~/env".into()),
            github_env: true,
            ..UpArgs::default()
        };
        let settings =
            up(&args, &environment([("AUTOHEAL_PA_BASTION", "not read"), ("GITHUB_ENV", "/gh/env")])).unwrap();
        let bastions: Vec<_> = settings.access[0].bastions.iter().map(Target::as_str).collect();
        assert_eq!(bastions, ["i-0abcdef1", "i-0abcdef2", "ecs:tools_a_b"]);
        assert_eq!(settings.access[0].clusters, ["no", "1_000"]);
        assert_eq!(settings.base_port, 0);
        assert!(settings.strict_ports && settings.set_current);
        assert_eq!(settings.common.kubeconfig, Path::new("/work/kube/config"));
        assert_eq!(settings.context_prefix, "");
        assert_eq!((settings.timeout, settings.probe_interval), (Duration::from_secs(300), Duration::ZERO));
        assert_eq!(settings.reconnect_timeout, Duration::from_secs(600));
        assert_eq!(settings.reason.as_deref(), Some("INC-42: smoke test"));
        assert_eq!(settings.env_file.as_deref(), Some(Path::new("/home/alice/env")));
        assert_eq!(settings.github_env.as_deref(), Some(Path::new("/gh/env")));
    }

    #[test]
    fn takes_bastions_from_the_environment() {
        let environment = environment([("AUTOHEAL_PA_BASTION", "i-0abcdef1,mi-0dc03fbcae2a87472")]);
        assert_eq!(up(&UpArgs::default(), &environment).unwrap().access[0].bastions.len(), 2);
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
        assert_eq!(settings.log_file, Path::new("/tmp/autoheal-pa-1000/default/log"));
    }

    #[test]
    fn one_problem_is_one_line() {
        assert_eq!(
            up(&UpArgs::default(), &environment([])).unwrap_err(),
            "no bastion is given: add `--bastion` or set `AUTOHEAL_PA_BASTION`"
        );
        let args = UpArgs { timeout: Some("60".into()), ..bastion("i-0abcdef1") };
        assert_eq!(
            up(&args, &environment([])).unwrap_err(),
            "`--timeout`: `60` is not a duration: it has no unit: write `60s`, `5m`, `1h` or `500ms`"
        );
    }

    #[test]
    fn says_everything_that_is_wrong_at_once() {
        let args = UpArgs {
            bastion: vec!["bastion".into(), "i-0abcdef1".into()],
            cluster: vec!["a b".into()],
            base_port: Some("65536".into()),
            context_prefix: Some("a b".into()),
            timeout: Some("0s".into()),
            probe_interval: Some("2h".into()),
            reconnect_timeout: Some("0s".into()),
            reason: Some("two\nlines".into()),
            ..UpArgs::default()
        };
        let flags = GlobalArgs { name: Some("/".into()), duration: Some("1h".into()), ..GlobalArgs::default() };
        let error = UpSettings::load(&flags, &args, &environment([])).unwrap_err();
        assert_eq!(error.problems.len(), 10);
        let text = error.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "there are 10 problems with the settings");
        assert!(lines[1..].iter().all(|line| line.starts_with("  ")), "{text}");
        assert!(text.contains("\n  `--bastion`: `bastion` is not a bastion id: expected"), "{text}");
    }

    #[test]
    fn a_reason_has_at_most_256_characters() {
        let with = |reason: String| up(&UpArgs { reason: Some(reason), ..bastion("i-0abcdef1") }, &environment([]));
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
}
