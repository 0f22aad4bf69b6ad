//! Where values come from: flags, variables and the configuration file, all read by one mechanism.
//!
//! A [`Layer`] holds what one source gives, still as text, and a [`Stack`] asks the layers in turn. A value knows where it
//! stands, so that what is wrong is named there.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Environment, Problem, Row, rows};

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
    Flag(Cow<'static, str>),
    Variable(&'static str),
    /// The configuration file, under this key.
    File(Place, &'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "`{name}`"),
            Self::Variable(name) => write!(f, "`{name}`"),
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
    pub(super) fn malformed(&self, expected: impl Into<Cow<'static, str>>) -> Problem {
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

/// What one source gives, by the settings' names.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Layer(BTreeMap<&'static str, Vec<Given>>);

impl Layer {
    pub(super) fn of_environment(environment: &Environment) -> Self {
        let mut layer = Self::default();
        for setting in rows::all() {
            let set = setting.variables.iter().find_map(|name| Some((*name, environment.get(name)?)));
            if let Some((name, value)) = set {
                layer.add(setting, Origin::Variable(name), value);
            }
        }
        layer
    }

    pub(super) fn add(&mut self, setting: &Row, origin: Origin, value: impl AsRef<OsStr>) {
        let given = Given { origin, value: value.as_ref().to_owned() };
        self.0.entry(setting.name).or_default().push(given);
    }

    pub(super) fn add_flag<V: AsRef<OsStr>>(&mut self, setting: &Row, values: impl IntoIterator<Item = V>) {
        values.into_iter().for_each(|value| self.add(setting, Origin::Flag(setting.flag().into()), value));
    }

    /// Adds all that another one has.
    pub(super) fn extend(&mut self, other: &Self) {
        for (name, given) in &other.0 {
            self.0.entry(name).or_default().extend_from_slice(given);
        }
    }

    pub(super) fn get(&self, setting: &Row) -> &[Given] {
        self.0.get(setting.name).map_or(&[], Vec::as_slice)
    }
}

/// The layers for one access, the first of which wins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stack<'a> {
    /// The command line.
    pub(super) flags: &'a Layer,
    /// An entry of the configuration file, which is about this access alone.
    pub(super) entry: Option<&'a Layer>,
    /// The environment, which is about everything that is started from a shell.
    pub(super) environment: &'a Layer,
    /// The top level of the configuration file.
    pub(super) top: &'a Layer,
}

impl<'a> Stack<'a> {
    fn first(layers: impl IntoIterator<Item = &'a Layer>, setting: &Row) -> &'a [Given] {
        layers.into_iter().map(|layer| layer.get(setting)).find(|values| !values.is_empty()).unwrap_or_default()
    }

    pub(super) fn all(&self, setting: &Row) -> &'a [Given] {
        Self::first([self.flags].into_iter().chain(self.entry).chain([self.environment, self.top]), setting)
    }

    /// Returns the value of a setting that has one.
    pub(super) fn one(&self, setting: &Row) -> Option<&'a Given> {
        self.all(setting).first()
    }

    /// Returns the value of a setting, if it is from nearer than the environment.
    pub(super) fn near(&self, setting: &Row) -> Option<&'a Given> {
        Self::first([self.flags].into_iter().chain(self.entry), setting).first()
    }

    /// Returns the values of a setting, whatever the environment says.
    pub(super) fn past_environment(&self, setting: &Row) -> &'a [Given] {
        Self::first([self.flags].into_iter().chain(self.entry).chain([self.top]), setting)
    }
}
