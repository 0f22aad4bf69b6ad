//! Settings: flags over environment over the configuration file over defaults, read once into values that do not change.
//!
//! The only part of the program that reads the environment ([`Environment`], [`INPUTS`]) and the configuration file. Everything
//! that is wrong is collected and said at once, before any call leaves the machine.
//!
//! Leaves out whether things work: no other files are opened and names are not looked up.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub use ci::{CiOidc, CiSystem, Oidc, TokenFrom};
pub use environment::{Environment, OWN_PROXY, PROXY_VARIABLES};
pub use file::FileProblem;
pub use flags::{Flags, ForwardCheck, GlobalArgs, KubeconfigMode, LogFormat, UpArgs};
pub use identity::ExecIdentity;
pub use inputs::{INPUTS, Input, SdkVariables, Takes, variables};
pub use launch::{KUBECONFIG_FLAG, Launch};
pub use policy::{PolicyArgs, PolicySettings};
pub use problem::{Problem, SettingsError};
pub use proxies::{Proxies, Proxy};
pub use proxy::{MetricsAddress, ProxyAddress, ProxyOthers, ProxyPlace, ProxySettings};
pub use row::{Kind, Row, Table};
pub use rows::{Access, AwsSettings, UpSettings};
pub use schema::schema;
pub use sessions::Sessions;
pub use setup::{BastionKind, SetupArgs, SetupFormat, SetupSettings};
pub use source::{Origin, Place};
pub use sources::{Chosen, PassedOver, Source};

use crate::forward::Forward;
use file::File;
use rows::{ACCESS, AWS, UP};
use source::{Given, Layer, Stack};

mod access;
mod ci;
pub mod duration;
mod environment;
mod file;
pub(crate) mod flags;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod identity;
pub(crate) mod inputs;
mod launch;
mod policy;
mod problem;
mod proxies;
mod proxy;
mod row;
pub mod rows;
mod schema;
mod sessions;
mod setup;
mod source;
mod sources;
mod values;

/// The manager's name, unless told otherwise.
const DEFAULT_NAME: &str = "default";

/// How long to wait until all tunnels are ready where a task may have to be started, unless told otherwise.
const FARGATE_TIMEOUT: Duration = Duration::from_secs(180);

/// Name of the kubeconfig in a manager's directory.
const OWN_KUBECONFIG: &str = "kubeconfig";

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
        Self { flags: flags.aws.layer.clone(), environment: Layer::of_environment(environment), file: File::default() }
    }

    /// Where to look for what is the same for all accesses.
    fn stack(&self) -> Stack<'_> {
        Stack { flags: &self.flags, entry: None, environment: &self.environment, top: &self.file.top }
    }

    /// Where to look for each access; at least one.
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
    /// How to reach AWS, and as whom; where there are several accesses, that of the first.
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
    /// The kubeconfigs that contexts are imported from, in kubectl's order; absolute, and empty where none are. They have the
    /// users of those contexts.
    pub imported_from: Vec<PathBuf>,
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
        let mut args = UpArgs::default();
        args.up.add(&UP.kubeconfig, kubeconfig);
        Self::load_with(flags, &args, environment)
    }

    /// Reads them with some of the options of `up`.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that is wrong.
    pub fn load_with(flags: &GlobalArgs, args: &UpArgs, environment: &Environment) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let mut sources = Sources::read(flags, environment, &mut problems)?;
        args.add_to(&mut sources.flags);
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
            problems.push(Problem::malformed(&Origin::Flag("--name".into()), name, expected));
        }
        let control_dir = environment.runtime_dir().join(name);
        let given = sources.stack().one(&UP.kubeconfig);
        let kubeconfig = match (given, &environment.home) {
            (Some(given), _) => given.path(environment),
            (None, Some(home)) if name == DEFAULT_NAME => home.join(".kube/autoheal-pa.yaml"),
            (None, Some(home)) => home.join(format!(".kube/autoheal-pa-{name}.yaml")),
            (None, None) => control_dir.join(OWN_KUBECONFIG),
        };
        let log_file = environment.state_dir().map(|dir| dir.join(format!("{name}.log")));
        let imports = access.iter().any(|access| !access.import_contexts.is_empty());
        let imported_from = if imports { imported_from(sources, environment, problems) } else { Vec::new() };
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
            imported_from,
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

/// Finds the kubeconfigs that contexts are imported from: the one that is given, else those that kubectl reads.
fn imported_from(sources: &Sources, environment: &Environment, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    if let Some(given) = sources.stack().one(&UP.import_kubeconfig) {
        let path = given.path(environment);
        // It has to be in a list of paths.
        let is_listed = path.to_str().is_none_or(|path| !path.contains(':'));
        problems.extend((!is_listed).then(|| given.malformed("a path that `KUBECONFIG` can name: it has a `:`")));
        return vec![path];
    }
    match environment.get("KUBECONFIG") {
        Some(list) => {
            let paths = std::env::split_paths(list).filter(|path| !path.as_os_str().is_empty());
            paths.map(|path| environment.current_dir.join(path)).collect()
        }
        None => environment.home.iter().map(|home| home.join(".kube/config")).collect(),
    }
}

impl UpSettings {
    /// The flag of how contexts lead to clusters.
    pub const MODE_FLAG: &str = "--kubeconfig-mode";

    /// Reads the settings of `up`.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that is wrong.
    pub fn load(flags: &GlobalArgs, args: &UpArgs, environment: &Environment) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let mut sources = Sources::read(flags, environment, &mut problems)?;
        args.add_to(&mut sources.flags);
        let mut settings = Self::collect(flags, &sources, environment, &mut problems);
        settings.launch = Launch::of(flags, &sources, &settings, environment);
        settings.contexts_only = args.contexts_only;
        settings.ends_unused = args.started_by_plugin;
        if let Some(dir) = &args.manager {
            settings.common.control_dir.clone_from(dir);
        }
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
        access::refuse_requests(sources, &access, true, problems);
        let common = Settings::collect(flags, sources, &access, environment, problems);

        let stack = sources.stack();
        let settings = Self::read(|row| stack.all(row), environment, problems);
        let mut settings = Self { common, access, ..settings };
        let mut bastions = settings.access.iter().flat_map(|access| &access.bastion);
        if stack.one(&UP.timeout).is_none() && bastions.any(|bastion| bastion.fargate().is_some()) {
            settings.timeout = FARGATE_TIMEOUT;
        }
        settings.waits_for_people =
            stack.one(&UP.timeout).is_none() && settings.access.iter().any(|access| access.request_access);
        let given = stack.one(&UP.base_port);
        problems.extend(given.and_then(|given| settings.too_few_ports(given)));
        if !settings.wants_clusters() {
            let useless = sources.flags.get(&UP.env_file).first();
            problems.extend(useless.map(|given| given.malformed("of use where no clusters are wanted")));
        }
        problems.extend(settings.problems_of_proxy(&stack));
        if !settings.on_demand {
            let useless = stack.one(&UP.idle);
            problems.extend(useless.map(|given| given.malformed("of use without `--on-demand`")));
        }
        settings
    }

    /// Says whether there are too few ports: one is needed for each cluster that is named, and one for each access that names
    /// none.
    fn too_few_ports(&self, given: &Given) -> Option<Problem> {
        let of = |access: &Access| {
            let clusters = match (access.clusters.len(), access.import_contexts.len()) {
                (0, 0) => usize::from(!access.no_clusters),
                (clusters, contexts) => clusters + contexts,
            };
            clusters + access.forwards.iter().filter(|forward| forward.local_port.is_none()).count()
        };
        let (port, clusters) = (self.base_port, self.access.iter().map(of).sum());
        let left = usize::from(u16::MAX - port) + 1;
        let origin = given.origin.clone();
        (port != 0 && clusters > left).then_some(Problem::BasePortTooHigh { origin, port, clusters, left })
    }

    /// Whether there are to be tunnels to clusters.
    #[must_use]
    pub fn wants_clusters(&self) -> bool {
        self.access.iter().any(|access| !access.no_clusters)
    }
}

/// What is wanted of a manager that runs already, which has settings of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Names of clusters of EKS.
    pub clusters: Vec<String>,
    /// Names of contexts that clusters were imported from.
    pub contexts: Vec<String>,
    /// Names of forwards. Without any of the three it is all that the manager has.
    pub forwards: Vec<String>,
    /// How long they may take until all are ready.
    pub timeout: Duration,
}

impl Wanted {
    /// Reads it from flags alone.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that is wrong.
    pub fn load(args: &UpArgs) -> Result<Self, SettingsError> {
        let (mut layer, mut problems, nowhere) = (Layer::default(), Vec::new(), Environment::default());
        args.add_to(&mut layer);
        let clusters = ACCESS.clusters.read(layer.get(&ACCESS.clusters), &nowhere, &mut problems);
        let contexts = ACCESS.import_contexts.read(layer.get(&ACCESS.import_contexts), &nowhere, &mut problems);
        let forwards: Vec<Forward> = ACCESS.forwards.read(layer.get(&ACCESS.forwards), &nowhere, &mut problems);
        let forwards = forwards.into_iter().map(|forward| forward.name).collect();
        let timeout = UP.timeout.read(layer.get(&UP.timeout), &nowhere, &mut problems);
        SettingsError::unless_empty(problems)?;
        Ok(Self { clusters, contexts, forwards, timeout })
    }
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

#[cfg(test)]
mod tests;
