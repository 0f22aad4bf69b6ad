//! Settings: flags over environment over the configuration file over defaults, read once into values that do not change.
//!
//! The only part of the program that reads the environment ([`Environment`], [`INPUTS`]) and the configuration file. Everything
//! that is wrong is collected and said at once, before any call leaves the machine.
//!
//! Leaves out whether things work: no other files are opened and names are not looked up.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

pub use access::Access;
pub use environment::Environment;
pub use file::FileProblem;
pub use flags::{GlobalArgs, KubeconfigMode, LogFormat, UpArgs};
pub use identity::{AwsSettings, CiOidc, ExecIdentity};
pub use inputs::{INPUTS, Input, SdkVariables, Takes};
pub use policy::{PolicyArgs, PolicySettings};
pub use problem::{Problem, SettingsError};
pub use proxies::{Proxies, Proxy};
pub use source::{Origin, Place};
pub use sources::{Chosen, PassedOver, Source};

use file::File;
use source::{Given, Layer, Stack};

mod access;
pub mod duration;
mod environment;
mod file;
mod flags;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod identity;
pub(crate) mod inputs;
mod policy;
mod problem;
mod proxies;
mod source;
mod sources;
mod values;

/// First local port, unless told otherwise.
const DEFAULT_BASE_PORT: u16 = 10100;

/// What context names start with, unless told otherwise.
const DEFAULT_CONTEXT_PREFIX: &str = "pa-";

/// The manager's name, unless told otherwise.
const DEFAULT_NAME: &str = "default";

/// Name of the kubeconfig in a manager's directory.
const OWN_KUBECONFIG: &str = "kubeconfig";

/// Time for all tunnels to become ready, unless told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Times to wait for the tunnels that a user may ask for.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// Time between two probes of a tunnel, unless told otherwise: several in each minute in which a session may idle out.
const DEFAULT_PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// How long a lost session is tried to be resumed, unless told otherwise.
const DEFAULT_RECONNECT_TIMEOUT: Duration = Duration::from_secs(90);

/// Times to try to resume a session that a user may ask for.
const RECONNECT_TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// Sessions of a tunnel, unless told otherwise: one is enough for kubectl, and each costs a call and a line in CloudTrail.
const DEFAULT_SESSIONS: usize = 1;

/// All that settings are read from.
struct Sources {
    flags: Layer,
    environment: Layer,
    file: File,
}

impl Sources {
    /// Reads all, the configuration file included.
    fn read(flags: &GlobalArgs, environment: &Environment, problems: &mut Vec<Problem>) -> Result<Self, SettingsError> {
        let file = File::load(flags.config.as_deref(), environment, problems)?;
        Ok(Self { file, ..Self::without_file(flags, environment, problems) })
    }

    fn without_file(flags: &GlobalArgs, environment: &Environment, problems: &mut Vec<Problem>) -> Self {
        let undecodable = environment.undecodable.iter().filter(|name| inputs::is_aws(name));
        problems.extend(undecodable.map(|variable| Problem::NotUtf8 { variable: variable.clone() }));
        Self { flags: flags.layer(), environment: Layer::of_environment(environment), file: File::default() }
    }

    /// Where to look for what is the same for all ways in.
    fn stack(&self) -> Stack<'_> {
        Stack { flags: &self.flags, entry: None, environment: &self.environment, top: &self.file.top }
    }

    /// Where to look for each way in; at least one.
    fn stacks(&self) -> Vec<Stack<'_>> {
        let stack = self.stack();
        match &self.file.entries[..] {
            [] => vec![stack],
            entries => entries.iter().map(|entry| Stack { entry: Some(&entry.layer), ..stack }).collect(),
        }
    }
}

/// What every command works with.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The manager's name: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// How to reach AWS, and as whom; where there are several ways in, that of the first.
    pub aws: AwsSettings,
    /// How `token` finds the same identity from another shell.
    pub identity: ExecIdentity,
    /// The manager's directory, where its lock and its control socket are; absolute.
    pub control_dir: PathBuf,
    /// The log of this manager in the background, absolute; `None`: it is in the manager's directory.
    pub log_file: Option<PathBuf>,
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
        let mut sources = Sources::read(flags, environment, &mut problems)?;
        sources.flags.add_flag(&source::KUBECONFIG, kubeconfig);
        let access = access::all(&sources, environment, &mut problems);
        let settings = Self::collect(flags, &sources, &access, environment, &mut problems);
        SettingsError::unless_empty(problems)?;
        Ok(settings)
    }

    /// Reads the settings of a command that is about a running manager, or that kubectl runs: of flags and environment
    /// alone, since neither may depend on what the configuration file says by now. Variables that only calls of AWS need may
    /// be anything.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that is wrong.
    pub fn without_file(flags: &GlobalArgs, environment: &Environment) -> Result<Self, SettingsError> {
        Self::with_problems_of_calls(flags, environment).map(|(settings, _)| settings)
    }

    /// As [`without_file`](Self::without_file), with what is to be known before AWS is called.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that is wrong, if it is not the calls alone that it stops.
    pub fn with_problems_of_calls(
        flags: &GlobalArgs,
        environment: &Environment,
    ) -> Result<(Self, Result<(), SettingsError>), SettingsError> {
        let mut problems = Vec::new();
        let sources = Sources::without_file(flags, environment, &mut problems);
        let access = access::all(&sources, environment, &mut problems);
        let settings = Self::collect(flags, &sources, &access, environment, &mut problems);
        let problems = SettingsError::unless_empty(problems);
        match problems {
            Err(error) if !error.problems.iter().all(Problem::is_of_calls) => Err(error),
            problems => Ok((settings, problems)),
        }
    }

    fn collect(
        flags: &GlobalArgs,
        sources: &Sources,
        access: &[Access],
        environment: &Environment,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let name = flags.name.as_deref().unwrap_or(DEFAULT_NAME);
        if !values::is_manager_name(name) {
            let expected = "a name: at most 32 letters, digits, `.`, `_` and `-`, the first a letter or a digit";
            problems.push(Problem::malformed(&Origin::Flag("--name"), name, expected));
        }
        let control_dir = environment.runtime_dir().join(name);
        let given = sources.stack().one(&source::KUBECONFIG);
        let kubeconfig = match (given, &environment.home) {
            (Some(given), _) => given.path(environment),
            (None, Some(home)) if name == DEFAULT_NAME => home.join(".kube/autoheal-pa.yaml"),
            (None, Some(home)) => home.join(format!(".kube/autoheal-pa-{name}.yaml")),
            (None, None) => control_dir.join(OWN_KUBECONFIG),
        };
        let log_file = environment.state_dir().map(|dir| dir.join(format!("{name}.log")));
        let (aws, identity) =
            access.first().map(|access| (access.aws.clone(), access.identity.clone())).unwrap_or_default();
        Self {
            name: name.to_owned(),
            aws,
            identity,
            control_dir,
            log_file,
            kubeconfig,
            kubeconfig_given: given.is_some(),
            executable: environment.executable.clone(),
        }
    }
}

impl Settings {
    /// Returns the path of the kubeconfig in the manager's directory.
    #[must_use]
    pub fn own_kubeconfig(&self) -> PathBuf {
        self.control_dir.join(OWN_KUBECONFIG)
    }

    /// Changes these to settings of a manager of another name beside this one, whose kubeconfig is in its own directory
    /// unless the user has chosen one.
    pub fn rename(&mut self, name: String) {
        self.control_dir.set_file_name(&name);
        if !self.kubeconfig_given {
            self.kubeconfig = self.own_kubeconfig();
        }
        self.name = name;
    }
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
    /// Programs of other users of this machine get through the local ports.
    pub allow_other_users: bool,
    /// The CONNECT proxy that the contexts name; `None`: they lead straight to the tunnels' ports.
    pub proxy: Option<ProxySettings>,
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
    /// How many sessions a tunnel may have at once, 1 to 16.
    pub sessions: usize,
    /// Payload of a message that is sent, in bytes, 256 to 32768; `None`: as the official client.
    pub payload_size: Option<usize>,
    /// Whether to stay below the message rate at which the service pauses a session.
    pub rate_limit: bool,
    /// Where to write shell lines that set `KUBECONFIG`; absolute.
    pub env_file: Option<PathBuf>,
    /// The file by which a step of a GitHub Actions job sets variables of later ones.
    pub github_env: Option<PathBuf>,
}

/// Where the CONNECT proxy listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxySettings {
    /// The port; 0: any free one.
    pub port: u16,
    /// A port that is taken is an error; else the next free one will do.
    pub strict: bool,
}

impl UpSettings {
    /// Reads the settings of `up`.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that is wrong.
    pub fn load(flags: &GlobalArgs, args: &UpArgs, environment: &Environment) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let mut sources = Sources::read(flags, environment, &mut problems)?;
        args.add_to(&mut sources.flags);
        let settings = Self::collect(flags, &sources, environment, &mut problems);
        let github_env = github_env(args.github_env, environment).unwrap_or_else(|error| {
            problems.extend(error.problems);
            None
        });
        SettingsError::unless_empty(problems)?;
        Ok(Self { github_env, ..settings })
    }

    fn collect(flags: &GlobalArgs, sources: &Sources, environment: &Environment, problems: &mut Vec<Problem>) -> Self {
        let access = access::all(sources, environment, problems);
        access::need_bastions(sources, problems);
        let common = Settings::collect(flags, sources, &access, environment, problems);

        let stack = sources.stack();
        let timeout = stack.one(&source::TIMEOUT).and_then(|given| read_timeout(given, problems));
        let reconnect_timeout = stack
            .one(&source::RECONNECT_TIMEOUT)
            .and_then(|given| values::within(given, RECONNECT_TIMEOUTS, "between `1s` and `1h`", problems));
        let probe_interval =
            stack.one(&source::PROBE_INTERVAL).and_then(|given| values::probe_interval(given, problems));
        let sessions = stack.one(&source::SESSIONS).and_then(|given| values::sessions(given, problems));
        let payload_size = stack.one(&source::PAYLOAD_SIZE).and_then(|given| values::payload_size(given, problems));
        let context_prefix = stack.one(&source::CONTEXT_PREFIX).map(|given| values::context_prefix(given, problems));
        let base_port = match stack.one(&source::BASE_PORT) {
            Some(given) => base_port(given, &access, problems),
            None => DEFAULT_BASE_PORT,
        };
        let is_on = |setting| stack.one(setting).is_some_and(|given| given.text() == "true");
        let proxy = proxy(&stack, base_port, is_on(&source::STRICT_PORTS), problems);
        Self {
            common,
            access,
            base_port,
            strict_ports: is_on(&source::STRICT_PORTS),
            allow_other_users: is_on(&source::ALLOW_OTHER_USERS),
            proxy,
            set_current: is_on(&source::SET_CURRENT),
            context_prefix: context_prefix.unwrap_or_else(|| DEFAULT_CONTEXT_PREFIX.to_owned()),
            timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
            probe_interval: probe_interval.unwrap_or(DEFAULT_PROBE_INTERVAL),
            reconnect_timeout: reconnect_timeout.unwrap_or(DEFAULT_RECONNECT_TIMEOUT),
            sessions: sessions.unwrap_or(DEFAULT_SESSIONS),
            payload_size,
            rate_limit: !is_on(&source::NO_RATE_LIMIT),
            env_file: stack.one(&source::ENV_FILE).map(|given| given.path(environment)),
            github_env: None,
        }
    }
}

/// Reads how long tunnels of a manager that runs already may take until all are ready.
///
/// # Errors
/// [`SettingsError`] if it is not such a duration.
pub fn timeout(args: &UpArgs) -> Result<Duration, SettingsError> {
    let (mut layer, mut problems) = (Layer::default(), Vec::new());
    args.add_to(&mut layer);
    let timeout = layer.get(&source::TIMEOUT).first().and_then(|given| read_timeout(given, &mut problems));
    SettingsError::unless_empty(problems)?;
    Ok(timeout.unwrap_or(DEFAULT_TIMEOUT))
}

fn read_timeout(given: &Given, problems: &mut Vec<Problem>) -> Option<Duration> {
    values::within(given, TIMEOUTS, "between `1s` and `24h`", problems)
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

/// Reads the first port. There has to be one for each cluster that is named, and for one of each way in that names none.
fn base_port(given: &Given, access: &[Access], problems: &mut Vec<Problem>) -> u16 {
    let Some(port) = values::port(given, problems) else { return DEFAULT_BASE_PORT };
    let clusters = access.iter().map(|access| access.clusters.len().max(1)).sum();
    let left = usize::from(u16::MAX - port) + 1;
    if port != 0 && clusters > left {
        problems.push(Problem::BasePortTooHigh { origin: given.origin.clone(), port, clusters, left });
    }
    port
}

/// Reads where the CONNECT proxy listens: before the first tunnel, so that it is the same at every start.
fn proxy(stack: &Stack<'_>, base_port: u16, strict: bool, problems: &mut Vec<Problem>) -> Option<ProxySettings> {
    let given = stack.one(&source::PROXY_PORT);
    let mode = stack.one(&source::KUBECONFIG_MODE).and_then(|given| values::kubeconfig_mode(given, problems));
    match mode.unwrap_or_default() {
        KubeconfigMode::Proxy => {
            let port = given.and_then(|given| values::port(given, problems));
            Some(ProxySettings { port: port.unwrap_or(base_port.saturating_sub(1)), strict: given.is_some() || strict })
        }
        KubeconfigMode::Direct => {
            problems.extend(given.map(|given| given.malformed("of use without `--kubeconfig-mode proxy`")));
            None
        }
    }
}

#[cfg(test)]
mod tests;
