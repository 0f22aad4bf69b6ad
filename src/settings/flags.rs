//! The flags exactly as they were typed: nothing here is checked or given a default.
//!
//! Values stay text, so that [`Settings`](super::Settings) can name everything that is wrong at once
//! instead of stopping at the first. Environment variables are not clap's business either. The flags of settings are made of
//! their rows; those that are written out here choose the file, or are about one run of the program.

use std::{ffi::OsStr, marker::PhantomData, path::PathBuf};

use clap::{ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueEnum};

use super::{
    Access, AwsSettings, Environment, Given, UpSettings,
    row::{Kind, Row, Table, Value},
    source::Layer,
};

/// What was typed of the settings of a table.
#[derive(Debug, Clone, Default)]
pub struct Flags<T> {
    pub(super) layer: Layer,
    table: PhantomData<T>,
}

impl<T> Flags<T> {
    /// Adds values of a setting, as if they had been typed.
    pub(super) fn add<V: AsRef<OsStr>>(&mut self, row: &Row, values: impl IntoIterator<Item = V>) {
        self.layer.add_flag(row, values);
    }

    /// Returns a flag that was typed, if there is one.
    #[must_use]
    pub fn first(&self) -> Option<String>
    where
        T: Table,
    {
        T::rows().into_iter().find(|row| self.has(row)).map(Row::flag)
    }

    /// Returns what was typed of a setting.
    #[cfg(test)]
    pub(crate) fn texts(&self, name: &str) -> Vec<String>
    where
        T: Table,
    {
        let row = T::rows().into_iter().find(|row| row.name == name).unwrap();
        self.layer.get(row).iter().map(|given| given.text().into_owned()).collect()
    }

    /// Tells whether a setting was typed.
    pub(super) fn has(&self, row: &Row) -> bool {
        !self.layer.get(row).is_empty()
    }
}

impl<T: Table> Args for Flags<T> {
    fn augment_args(command: Command) -> Command {
        T::rows().into_iter().fold(command, |command, row| command.arg(row.arg(T::GLOBAL)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Table> FromArgMatches for Flags<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self { layer: Layer::default(), table: PhantomData };
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for row in T::rows() {
            match row.kind {
                Kind::Switch => self.add(row, matches.get_flag(row.name).then_some("true")),
                Kind::Number { .. } | Kind::Duration { .. } | Kind::Path | Kind::Choice(_) | Kind::Text { .. } => {
                    self.add(row, matches.get_raw(row.name).into_iter().flatten());
                }
            }
        }
        Ok(())
    }
}

/// Options that every command takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Common options")]
pub struct GlobalArgs {
    /// How to reach AWS, and as whom.
    #[command(flatten)]
    pub aws: Flags<AwsSettings>,
    /// Configuration file, for the same settings as the flags and for several regions or accounts; /dev/null for none
    /// [default: ~/.config/autoheal-pa/config.yaml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of the manager, so that several can run side by side [default: default]
    #[arg(long, global = true, value_name = "NAME")]
    pub name: Option<String>,
    /// Logs more to stderr: -v what happens, -vv why, -vvv every message
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Form of the log
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t)]
    pub log_format: LogFormat,
}

/// Returns the names of the options that a configuration file does not have.
pub(super) fn without_row() -> Vec<String> {
    let command = UpArgs::augment_args(GlobalArgs::augment_args(Command::new("up")));
    let is_row = |name: &str| super::rows::all().iter().any(|row| row.name == name);
    let names = command.get_arguments().filter(|arg| !arg.is_hide_set()).map(|arg| arg.get_id().as_str());
    names.filter(|name| !is_row(name)).map(ToOwned::to_owned).collect()
}

/// Form of the log on stderr.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line per event, for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// How the contexts of a kubeconfig lead to the clusters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum KubeconfigMode {
    /// By the local ports of the tunnels, with the clusters' names for TLS.
    #[default]
    Direct,
    /// By the clusters' own addresses, through the proxy of `--proxy`, for clients that ignore `tls-server-name`.
    Proxy,
    /// By the local ports of the tunnels, where TLS ends and begins anew, for clients that ignore `proxy-url` as well.
    LocalTls,
}

impl KubeconfigMode {
    /// The word for contexts that lead through a proxy.
    pub const PROXY: &str = "proxy";
}

impl Value for KubeconfigMode {
    fn read(text: &str, _given: &Given, _environment: &Environment) -> Option<Self> {
        Self::from_str(text, false).ok()
    }

    fn to_text(&self) -> Option<String> {
        self.to_possible_value().map(|value| value.get_name().to_owned())
    }
}

/// What makes a forward ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ForwardCheck {
    /// The other end of its session takes connections; the host is not asked.
    #[default]
    Agent,
    /// The host has accepted a connection, which is closed without a word.
    Tcp,
}

impl Value for ForwardCheck {
    fn read(text: &str, _given: &Given, _environment: &Environment) -> Option<Self> {
        Self::from_str(text, false).ok()
    }

    fn to_text(&self) -> Option<String> {
        self.to_possible_value().map(|value| value.get_name().to_owned())
    }
}

#[derive(Debug, Clone, Default, Args)]
pub struct UpArgs {
    /// Where to, and through what.
    #[command(flatten)]
    pub access: Flags<Access>,
    /// The tunnels, their ports and contexts.
    #[command(flatten)]
    pub up: Flags<UpSettings>,
    /// Makes later steps of this GitHub Actions job use the kubeconfig: adds KUBECONFIG to the GITHUB_ENV file
    #[arg(long)]
    pub github_env: bool,
    /// Runs in the background: returns when the tunnels are ready, or fails; `autoheal-pa down` stops it
    #[arg(long)]
    pub detach: bool,
    /// This is the process in the background that `--detach` has started.
    #[arg(long, hide = true)]
    pub background: bool,
    /// kubectl's plugin has started this: a session begins when it is needed, and all ends when nobody uses it any more.
    #[arg(long, hide = true)]
    pub started_by_plugin: bool,
    /// Directory of the manager, where it need not be the one that the environment leads to.
    #[arg(long, hide = true, value_name = "PATH")]
    pub manager: Option<PathBuf>,
    /// Nothing but contexts is wanted.
    #[arg(skip)]
    pub contexts_only: bool,
}

impl UpArgs {
    /// Returns those that name bastions and clusters, and nothing else.
    #[must_use]
    pub fn of_access(bastion: &[String], clusters: &[String]) -> Self {
        let mut args = Self::default();
        args.access.add(&super::ACCESS.bastion, bastion);
        args.access.add(&super::ACCESS.clusters, clusters);
        args
    }

    /// Adds contexts whose clusters are looked at as well, and where they are.
    #[must_use]
    pub fn with_imports(mut self, contexts: &[String], kubeconfig: Option<&PathBuf>) -> Self {
        self.access.add(&super::ACCESS.import_contexts, contexts);
        self.up.add(&super::UP.import_kubeconfig, kubeconfig);
        self
    }

    /// Adds forwards.
    #[must_use]
    pub fn with_forwards(mut self, forwards: &[String]) -> Self {
        self.access.add(&super::ACCESS.forwards, forwards);
        self
    }

    /// Adds the session document, if one is named.
    #[must_use]
    pub fn with_document(mut self, document: Option<&String>) -> Self {
        self.access.add(&super::ACCESS.document, document);
        self
    }

    /// Has access requested, for this reason.
    #[must_use]
    pub fn with_request(mut self, wanted: bool, reason: Option<&String>) -> Self {
        self.access.add(&super::ACCESS.request_access, wanted.then_some("true"));
        self.access.add(&super::ACCESS.reason, reason);
        self
    }

    /// Leaves all clusters out.
    #[must_use]
    pub fn without_clusters(mut self) -> Self {
        self.access.add(&super::ACCESS.no_clusters, ["true"]);
        self
    }

    /// Returns a flag that was typed and is about clusters or their contexts.
    #[must_use]
    pub fn of_clusters(&self) -> Option<String> {
        let (access, up) = (&super::ACCESS, &super::UP);
        let of_access = [&access.clusters, &access.import_contexts, &access.no_clusters, &access.forwards];
        let of_up = [
            &up.kubeconfig,
            &up.import_kubeconfig,
            &up.set_current,
            &up.kubeconfig_mode,
            &up.context_prefix,
            &up.env_file,
        ];
        let of_access = of_access.into_iter().find(|row| self.access.has(row));
        let given = of_access.or_else(|| of_up.into_iter().find(|row| self.up.has(row)));
        given.map(Row::flag).or_else(|| self.github_env.then(|| "--github-env".to_owned()))
    }

    /// Has contexts written and nothing else, by which kubectl starts the tunnels.
    #[must_use]
    pub fn for_contexts(mut self) -> Self {
        if !self.up.has(&super::UP.on_demand) {
            self.up.add(&super::UP.on_demand, ["true"]);
        }
        Self { contexts_only: true, ..self }
    }

    /// Adds what a task on Fargate runs, and as whom.
    #[must_use]
    pub fn with_task(mut self, definition: Option<&String>, role: Option<&String>) -> Self {
        self.access.add(&super::ACCESS.fargate_task_definition, definition);
        self.access.add(&super::ACCESS.fargate_task_role, role);
        self
    }

    /// Tells whether a proxy was asked for.
    #[must_use]
    pub fn wants_proxy(&self) -> bool {
        let nowhere = super::ProxyPlace::Nowhere.to_string();
        self.up.layer.get(&super::UP.proxy).first().is_some_and(|given| given.text() != nowhere)
    }

    /// Tells whether a kubeconfig was named.
    #[must_use]
    pub fn has_kubeconfig(&self) -> bool {
        self.up.has(&super::UP.kubeconfig)
    }

    /// Tells whether a file for shell lines was named.
    #[must_use]
    pub fn has_env_file(&self) -> bool {
        self.up.has(&super::UP.env_file)
    }

    /// Adds what was typed.
    pub(super) fn add_to(&self, layer: &mut Layer) {
        layer.extend(&self.access.layer);
        layer.extend(&self.up.layer);
    }
}

/// Reads options as they would be typed.
#[cfg(test)]
pub(crate) fn typed<A: Args>(words: &[&str]) -> A {
    let command = A::augment_args(Command::new("test").no_binary_name(true));
    A::from_arg_matches(&command.get_matches_from(words)).unwrap()
}
