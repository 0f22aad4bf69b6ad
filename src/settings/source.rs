//! Where values come from: flags, variables and the configuration file, all read by one mechanism.
//!
//! A [`Setting`] knows its names at every source, a [`Layer`] holds what one source gives, still as text, and a
//! [`Stack`] asks the layers in turn. So a new setting is one constant, listed in [`ALL`], and one line in `flags`; and a
//! value that is wrong is named where it stands.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Environment, Problem};

/// A setting, and what it is called.
#[derive(Debug)]
pub(super) struct Setting {
    /// On the command line.
    pub(super) flag: &'static str,
    /// In the environment; the first that is set counts.
    pub(super) variables: &'static [&'static str],
    /// In the configuration file.
    pub(super) key: &'static str,
    /// What is expected there.
    pub(super) shape: Shape,
    /// It may differ from one entry of `access` to the next.
    pub(super) in_entry: bool,
}

/// The form of a value in the configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// One scalar.
    Value,
    /// `true` or `false`.
    Switch,
    /// A list of scalars, or one of them.
    List,
}

impl Setting {
    const fn new(key: &'static str, flag: &'static str) -> Self {
        Self { flag, variables: &[], key, shape: Shape::Value, in_entry: false }
    }

    const fn variables(self, variables: &'static [&'static str]) -> Self {
        Self { variables, ..self }
    }

    const fn shape(self, shape: Shape) -> Self {
        Self { shape, ..self }
    }

    const fn in_entry(self) -> Self {
        Self { in_entry: true, ..self }
    }
}

pub(super) static REGION: Setting =
    Setting::new("region", "--region").variables(&["AWS_REGION", "AWS_DEFAULT_REGION"]).in_entry();
// In the order of botocore.
pub(super) static PROFILE: Setting =
    Setting::new("profile", "--profile").variables(&["AWS_DEFAULT_PROFILE", "AWS_PROFILE"]).in_entry();
pub(super) static ROLE_ARN: Setting = Setting::new("role_arn", "--role-arn").variables(&["AWS_ROLE_ARN"]).in_entry();
pub(super) static ROLE_SESSION_NAME: Setting =
    Setting::new("role_session_name", "--role-session-name").variables(&["AWS_ROLE_SESSION_NAME"]).in_entry();
pub(super) static WEB_IDENTITY_TOKEN_FILE: Setting =
    Setting::new("web_identity_token_file", "--web-identity-token-file")
        .variables(&["AWS_WEB_IDENTITY_TOKEN_FILE"])
        .in_entry();
pub(super) static OIDC_AUDIENCE: Setting =
    Setting::new("oidc_audience", "--oidc-audience").variables(&["AUTOHEAL_PA_OIDC_AUDIENCE"]).in_entry();
pub(super) static DURATION: Setting = Setting::new("duration", "--duration").in_entry();
pub(super) static BASTION: Setting =
    Setting::new("bastion", "--bastion").variables(&["AUTOHEAL_PA_BASTION"]).shape(Shape::List).in_entry();
pub(super) static CLUSTERS: Setting = Setting::new("clusters", "--cluster").shape(Shape::List).in_entry();
pub(super) static REASON: Setting = Setting::new("reason", "--reason").in_entry();
pub(super) static CA_BUNDLE: Setting = Setting::new("ca_bundle", "--ca-bundle").variables(&["AWS_CA_BUNDLE"]);
pub(super) static ENDPOINT_SSMMESSAGES: Setting = Setting::new("endpoint_ssmmessages", "--endpoint-ssmmessages")
    .variables(&["AWS_ENDPOINT_URL_SSMMESSAGES"])
    .in_entry();
pub(super) static BASE_PORT: Setting = Setting::new("base_port", "--base-port");
pub(super) static STRICT_PORTS: Setting = Setting::new("strict_ports", "--strict-ports").shape(Shape::Switch);
pub(super) static ALLOW_OTHER_USERS: Setting =
    Setting::new("allow_other_users", "--allow-other-users").shape(Shape::Switch);
pub(super) static KUBECONFIG: Setting = Setting::new("kubeconfig", "--kubeconfig");
pub(super) static SET_CURRENT: Setting = Setting::new("set_current", "--set-current").shape(Shape::Switch);
pub(super) static KUBECONFIG_MODE: Setting = Setting::new("kubeconfig_mode", "--kubeconfig-mode");
pub(super) static PROXY_PORT: Setting = Setting::new("proxy_port", "--proxy-port");
pub(super) static CONTEXT_PREFIX: Setting = Setting::new("context_prefix", "--context-prefix");
pub(super) static TIMEOUT: Setting = Setting::new("timeout", "--timeout");
pub(super) static PROBE_INTERVAL: Setting = Setting::new("probe_interval", "--probe-interval");
pub(super) static RECONNECT_TIMEOUT: Setting = Setting::new("reconnect_timeout", "--reconnect-timeout");
pub(super) static SESSIONS: Setting = Setting::new("sessions", "--sessions");
pub(super) static PAYLOAD_SIZE: Setting = Setting::new("payload_size", "--payload-size");
pub(super) static NO_RATE_LIMIT: Setting = Setting::new("no_rate_limit", "--no-rate-limit").shape(Shape::Switch);
pub(super) static ENV_FILE: Setting = Setting::new("env_file", "--env-file");

/// All settings that a configuration file may give, in the order of its documentation.
pub(super) static ALL: [&Setting; 27] = [
    &REGION,
    &PROFILE,
    &ROLE_ARN,
    &ROLE_SESSION_NAME,
    &WEB_IDENTITY_TOKEN_FILE,
    &OIDC_AUDIENCE,
    &DURATION,
    &BASTION,
    &CLUSTERS,
    &REASON,
    &CA_BUNDLE,
    &ENDPOINT_SSMMESSAGES,
    &BASE_PORT,
    &STRICT_PORTS,
    &ALLOW_OTHER_USERS,
    &KUBECONFIG,
    &SET_CURRENT,
    &KUBECONFIG_MODE,
    &PROXY_PORT,
    &CONTEXT_PREFIX,
    &TIMEOUT,
    &PROBE_INTERVAL,
    &RECONNECT_TIMEOUT,
    &SESSIONS,
    &PAYLOAD_SIZE,
    &NO_RATE_LIMIT,
    &ENV_FILE,
];

/// A place in the configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, as it was named.
    pub file: Arc<Path>,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// Who gave a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A flag.
    Flag(&'static str),
    /// An environment variable.
    Variable(&'static str),
    /// The configuration file, under this key.
    File(Place, &'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) | Self::Variable(name) => write!(f, "`{name}`"),
            Self::File(place, key) => write!(f, "{place}: `{key}`"),
        }
    }
}

/// A value as it was given, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) origin: Origin,
    pub(super) value: OsString,
}

impl Given {
    /// The value as text. Only paths may be anything else, and they are read by [`Given::path`].
    pub(super) fn text(&self) -> Cow<'_, str> {
        self.value.to_string_lossy()
    }

    /// Tells whether it was given to this program, and not to everything that is started from a shell.
    pub(super) fn is_chosen(&self) -> bool {
        match self.origin {
            Origin::Flag(_) | Origin::File(..) => true,
            Origin::Variable(_) => false,
        }
    }

    /// Says that the value is not what is expected.
    pub(super) fn malformed(&self, expected: &'static str) -> Problem {
        Problem::malformed(&self.origin, &self.text(), expected)
    }

    /// The value as an absolute path. One in the configuration file is relative to the file's directory.
    pub(super) fn path(&self, environment: &Environment) -> PathBuf {
        let path = Path::new(&self.value);
        match &self.origin {
            Origin::Flag(_) | Origin::Variable(_) => environment.absolute(path),
            Origin::File(place, _) => {
                let directory = environment.absolute(&place.file).parent().map(Path::to_owned);
                environment.absolute_in(&directory.unwrap_or_default(), path)
            }
        }
    }
}

/// What one source gives, by the settings' keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Layer(BTreeMap<&'static str, Vec<Given>>);

impl Layer {
    /// Reads the environment.
    pub(super) fn of_environment(environment: &Environment) -> Self {
        let mut layer = Self::default();
        for setting in ALL {
            let set = setting.variables.iter().find_map(|name| Some((*name, environment.get(name)?)));
            if let Some((name, value)) = set {
                layer.add(setting, Origin::Variable(name), value);
            }
        }
        layer
    }

    /// Adds a value of a setting.
    pub(super) fn add(&mut self, setting: &Setting, origin: Origin, value: impl AsRef<OsStr>) {
        let given = Given { origin, value: value.as_ref().to_owned() };
        self.0.entry(setting.key).or_default().push(given);
    }

    /// Adds the values of a flag.
    pub(super) fn add_flag<V: AsRef<OsStr>>(&mut self, setting: &Setting, values: impl IntoIterator<Item = V>) {
        values.into_iter().for_each(|value| self.add(setting, Origin::Flag(setting.flag), value));
    }

    /// Returns the values of a setting.
    pub(super) fn get(&self, setting: &Setting) -> &[Given] {
        self.0.get(setting.key).map_or(&[], Vec::as_slice)
    }
}

/// The layers for one way in, the first of which wins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stack<'a> {
    /// The command line.
    pub(super) flags: &'a Layer,
    /// An entry of the configuration file, which is about this way in alone.
    pub(super) entry: Option<&'a Layer>,
    /// The environment, which is about everything that is started from a shell.
    pub(super) environment: &'a Layer,
    /// The top level of the configuration file.
    pub(super) top: &'a Layer,
}

impl<'a> Stack<'a> {
    fn first(layers: impl IntoIterator<Item = &'a Layer>, setting: &Setting) -> &'a [Given] {
        layers.into_iter().map(|layer| layer.get(setting)).find(|values| !values.is_empty()).unwrap_or_default()
    }

    /// Returns the values of a setting.
    pub(super) fn all(&self, setting: &Setting) -> &'a [Given] {
        Self::first([self.flags].into_iter().chain(self.entry).chain([self.environment, self.top]), setting)
    }

    /// Returns the value of a setting that has one.
    pub(super) fn one(&self, setting: &Setting) -> Option<&'a Given> {
        self.all(setting).first()
    }

    /// Returns the value of a setting, if it is from nearer than the environment.
    pub(super) fn near(&self, setting: &Setting) -> Option<&'a Given> {
        Self::first([self.flags].into_iter().chain(self.entry), setting).first()
    }

    /// Returns the value of a setting, whatever the environment says.
    pub(super) fn past_environment(&self, setting: &Setting) -> Option<&'a Given> {
        self.near(setting).or_else(|| self.top.get(setting).first())
    }
}
