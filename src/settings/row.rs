//! What a setting is: one row, and everything that is made of it.
//!
//! A [`Row`] has a setting's name, help, variables, range and default, each of them once. Flags, what the configuration file
//! takes, the manual's tables, the schema and what is said of wrong values are made of it. [`table!`] makes a struct of rows,
//! with a field for each of them. So a new setting is one row in [`rows`](super::rows), and its use.
//!
//! Leaves out where values come from, which is [`source`](super::source)'s, and which of several counts.

use std::{borrow::Cow, fmt::Write, path::PathBuf, time::Duration};

use clap::{
    Arg, ArgAction, ValueEnum, ValueHint,
    builder::{PossibleValue, PossibleValuesParser},
    value_parser,
};

use super::{
    Environment, MetricsAddress, Oidc, Problem, ProxyPlace, Sessions, duration,
    source::{Given, Origin},
};
use crate::{
    bastion::{Bastion, SessionDocument},
    forward::Forward,
};

/// A setting, and all that is said of it anywhere.
#[derive(Debug)]
pub struct Row {
    /// What it is called in the code and in the configuration file. Its flag has `-` for `_`.
    pub name: &'static str,
    /// In the environment; the first that is set counts.
    pub variables: &'static [&'static str],
    pub kind: Kind,
    /// It has several values; one text may have more than one, separated by commas.
    pub is_list: bool,
    /// It may differ from one entry of `access` to the next.
    pub in_entry: bool,
    /// It means nothing where no role is assumed.
    pub needs_role: bool,
    /// The value that it has unless told otherwise, as a user would write it.
    pub default: Option<&'static str>,
    /// In words, what is done without a value.
    pub otherwise: Option<&'static str>,
    /// A text that may be a number, or a word such as `true`, to YAML.
    pub is_bare: bool,
    /// What its flag means without a value; `None`: it has to have one.
    pub alone: Option<&'static str>,
    flag: Option<&'static str>,
    value_name: &'static str,
    /// Says what a wrong value may have been meant for.
    guess: Option<fn(&str) -> Option<String>>,
    /// Says what is wrong with a text, to follow "is not".
    explain: Option<fn(&str) -> Option<String>>,
    help: &'static str,
}

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// `true` or `false`; on the command line it takes no value.
    Switch,
    Number {
        /// What it is a number of, with an article.
        what: &'static str,
        min: u64,
        max: u64,
    },
    Duration {
        min: &'static str,
        max: &'static str,
        /// None at all will do as well.
        or_zero: bool,
    },
    Path,
    /// One of a few words.
    Choice(fn() -> Vec<PossibleValue>),
    /// A text for which a rule holds. Blanks around it do not belong to it.
    Text {
        is_right: fn(&str) -> bool,
        /// What it asks for, with an article.
        expected: &'static str,
    },
}

/// A setting that is on or off.
pub(super) const fn switch() -> Row {
    Row { default: Some("false"), ..row("", Kind::Switch) }
}

/// A setting that is a number of `what`, which has an article.
pub(super) const fn number(value_name: &'static str, what: &'static str, min: u64, max: u64) -> Row {
    row(value_name, Kind::Number { what, min, max })
}

/// A setting that is a port, or 0.
pub(super) const fn port() -> Row {
    number("PORT", "a port: a number", 0, 65535)
}

/// A setting that is a duration.
pub(super) const fn duration(min: &'static str, max: &'static str) -> Row {
    row("DURATION", Kind::Duration { min, max, or_zero: false })
}

/// A setting that is a duration, or none at all.
pub(super) const fn duration_or_zero(min: &'static str, max: &'static str) -> Row {
    row("DURATION", Kind::Duration { min, max, or_zero: true })
}

/// A setting that is the path of a file.
pub(super) const fn path() -> Row {
    row("PATH", Kind::Path)
}

/// A setting that is one of a few words.
pub(super) const fn choice<T: ValueEnum>(value_name: &'static str) -> Row {
    row(value_name, Kind::Choice(possible_values::<T>))
}

/// A setting that is a text, of which a rule asks for what is `expected`.
pub(super) const fn text(value_name: &'static str, is_right: fn(&str) -> bool, expected: &'static str) -> Row {
    row(value_name, Kind::Text { is_right, expected })
}

const fn row(value_name: &'static str, kind: Kind) -> Row {
    Row {
        name: "",
        variables: &[],
        kind,
        is_list: false,
        in_entry: false,
        needs_role: false,
        default: None,
        otherwise: None,
        is_bare: false,
        alone: None,
        flag: None,
        value_name,
        guess: None,
        explain: None,
        help: "",
    }
}

fn possible_values<T: ValueEnum>() -> Vec<PossibleValue> {
    T::value_variants().iter().filter_map(T::to_possible_value).collect()
}

impl Row {
    /// Gives it the name of its field, and what a doc comment says of it, which begins with a blank.
    pub(super) const fn named(self, name: &'static str, help: &'static str) -> Self {
        Self { name, help, ..self }
    }

    pub(super) const fn variables(self, variables: &'static [&'static str]) -> Self {
        Self { variables, ..self }
    }

    pub(super) const fn default(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    pub(super) const fn otherwise(self, otherwise: &'static str) -> Self {
        Self { otherwise: Some(otherwise), ..self }
    }

    /// Lets its flag stand without a value, which means this one. The configuration file may have it as a word of YAML.
    pub(super) const fn alone(self, alone: &'static str) -> Self {
        Self { alone: Some(alone), is_bare: true, ..self }
    }

    /// Lets the configuration file have a text that is a number to YAML.
    pub(super) const fn bare(self) -> Self {
        Self { is_bare: true, ..self }
    }

    /// Lets wrong values be told from what they may have been meant for.
    pub(super) const fn guessed_by(self, guess: fn(&str) -> Option<String>) -> Self {
        Self { guess: Some(guess), ..self }
    }

    /// Has this say what is wrong with a text, to follow "is not".
    pub(super) const fn explained_by(self, explain: fn(&str) -> Option<String>) -> Self {
        Self { explain: Some(explain), ..self }
    }

    pub(super) const fn list(self) -> Self {
        Self { is_list: true, ..self }
    }

    /// Makes it one that entries of `access` may have.
    pub(super) const fn in_entry(self) -> Self {
        Self { in_entry: true, ..self }
    }

    /// Makes it one that means nothing where no role is assumed.
    pub(super) const fn of_role(self) -> Self {
        Self { needs_role: true, ..self }
    }

    /// Gives it a flag of another name, which is for a list whose flag adds one to it.
    pub(super) const fn flag_for_one(self, flag: &'static str) -> Self {
        Self { flag: Some(flag), ..self }
    }

    /// What it is called on the command line, such as `--base-port`.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--{}", self.flag.unwrap_or(self.name).replace('_', "-"))
    }

    /// What it does, as a fragment or as sentences without the last full stop.
    #[must_use]
    pub fn help(&self) -> &'static str {
        self.help.trim_start()
    }

    /// Says it all in sentences, for the manual and the schema.
    #[must_use]
    pub fn summary(&self) -> String {
        let range = self.range().map(|range| format!(" Range: {range}.")).unwrap_or_default();
        let without = self.without().map(|without| format!(" Default: {without}.")).unwrap_or_default();
        format!("{}.{range}{without} As `{}`.", self.help(), self.flag())
    }

    /// The values that it may have, if they have limits.
    #[must_use]
    pub fn range(&self) -> Option<String> {
        match self.kind {
            Kind::Number { min, max, .. } => Some(format!("{min} to {max}")),
            Kind::Duration { min, max, or_zero: false } => Some(format!("{min} to {max}")),
            Kind::Duration { min, max, or_zero: true } => Some(format!("0, or {min} to {max}")),
            Kind::Switch | Kind::Path | Kind::Choice(_) | Kind::Text { .. } => None,
        }
    }

    /// What holds without a value, for people.
    #[must_use]
    pub fn without(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Switch => None,
            Kind::Number { .. } | Kind::Duration { .. } | Kind::Path | Kind::Choice(_) | Kind::Text { .. } => {
                self.otherwise.or(self.default)
            }
        }
    }

    /// What a value has to be, with an article, to follow "is not".
    #[must_use]
    pub fn expected(&self) -> Cow<'static, str> {
        match self.kind {
            Kind::Switch => "`true` or `false`".into(),
            Kind::Number { what, min, max } => format!("{what} from {min} to {max}").into(),
            Kind::Duration { min, max, or_zero: false } => format!("between `{min}` and `{max}`").into(),
            Kind::Duration { min, max, or_zero: true } => format!("`0` or between `{min}` and `{max}`").into(),
            Kind::Path => "the path of a file".into(),
            Kind::Choice(values) => {
                let words: Vec<_> = values().iter().map(|value| format!("`{}`", value.get_name())).collect();
                words.join(" or ").into()
            }
            Kind::Text { expected, .. } => expected.into(),
        }
    }

    /// The option of the command line.
    pub(super) fn arg(&self, global: bool) -> Arg {
        let mut help = self.help().to_owned();
        let mut add = |name: &str, text: &str| write!(help, " [{name}: {text}]").expect("a string takes everything");
        if let Some(range) = self.range() {
            add("range", &range);
        }
        if !self.variables.is_empty() {
            let separated = if self.is_list { ", separated by commas" } else { "" };
            add("env", &format!("{}{separated}", self.variables.join(", ")));
        }
        if let Some(without) = self.without() {
            add("default", without);
        }
        let flag = self.flag().trim_start_matches('-').to_owned();
        let arg = Arg::new(self.name).long(flag).help(help).global(global);
        let action = if self.is_list { ArgAction::Append } else { ArgAction::Set };
        match self.kind {
            Kind::Switch => arg.action(ArgAction::SetTrue),
            Kind::Path => {
                let arg = arg.value_parser(value_parser!(PathBuf)).value_hint(ValueHint::AnyPath);
                arg.value_name(self.value_name).action(action)
            }
            Kind::Choice(values) => {
                arg.value_parser(PossibleValuesParser::new(values())).value_name(self.value_name).action(action)
            }
            Kind::Number { .. } | Kind::Duration { .. } | Kind::Text { .. } => {
                let arg = arg.value_name(self.value_name).action(action);
                match self.alone {
                    Some(alone) => arg.num_args(0..=1).default_missing_value(alone),
                    None => arg,
                }
            }
        }
    }

    /// Reads what was given, as a field of a table; adds to `problems` what is wrong with it.
    pub(super) fn read<F: Field>(&self, given: &[Given], environment: &Environment, problems: &mut Vec<Problem>) -> F {
        F::read(self, given, environment, problems)
    }

    /// Reads one value. Where something is wrong with it, there is a value all the same if its type can have it.
    fn value<T: Value>(
        &self,
        given: &Given,
        text: &str,
        environment: &Environment,
        problems: &mut Vec<Problem>,
    ) -> Option<T> {
        let text = if matches!(self.kind, Kind::Text { .. }) { text.trim() } else { text };
        problems.extend(self.problem(given, text));
        T::read(text, given, environment)
    }

    /// Says what is wrong with a value.
    fn problem(&self, given: &Given, text: &str) -> Option<Problem> {
        let is_right = match self.kind {
            Kind::Switch => matches!(text, "true" | "false"),
            Kind::Number { min, max, .. } => text.parse().is_ok_and(|number: u64| (min..=max).contains(&number)),
            // Nothing is nothing in every unit.
            Kind::Duration { or_zero: true, .. } if matches!(text, "0" | "0s") => true,
            Kind::Duration { min, max, .. } => match duration::parse(text) {
                Ok(length) => {
                    let limit = |text| duration::parse(text).expect("rows have durations as limits");
                    (limit(min)..=limit(max)).contains(&length)
                }
                Err(source) => {
                    let (origin, value) = (given.origin.clone(), super::inputs::shown(text));
                    return Some(Problem::Duration { origin, value, source });
                }
            },
            Kind::Path => true,
            Kind::Choice(values) => values().iter().any(|value| value.get_name() == text),
            Kind::Text { is_right, .. } => is_right(text),
        };
        (!is_right).then(|| {
            let meant = self.guess.and_then(|guess| guess(text));
            let expected = self.explain.and_then(|explain| explain(text)).map_or_else(|| self.expected(), Cow::from);
            let expected = match meant {
                Some(meant) => format!("{expected}; did you mean `{meant}`?").into(),
                None => expected,
            };
            Problem::malformed(&given.origin, text, expected)
        })
    }

    fn default_value<T: Value>(&self) -> T {
        let default = self.default.expect("a setting that always has a value has a default");
        let given = Given { origin: Origin::Flag(self.flag().into()), value: default.into() };
        T::read(default, &given, &Environment::default()).expect("defaults are what a user may write")
    }
}

/// What a field of a table may be: a value, which has a default, an optional one, or several, each once.
pub(super) trait Field {
    fn read(row: &Row, given: &[Given], environment: &Environment, problems: &mut Vec<Problem>) -> Self;

    /// Writes the values as they can be given again, if they are text.
    fn write(&self) -> Vec<String>;
}

impl<T: Value> Field for T {
    fn read(row: &Row, given: &[Given], environment: &Environment, problems: &mut Vec<Problem>) -> Self {
        Option::read(row, given, environment, problems).unwrap_or_else(|| row.default_value())
    }

    fn write(&self) -> Vec<String> {
        self.to_text().into_iter().collect()
    }
}

impl<T: Value> Field for Option<T> {
    fn read(row: &Row, given: &[Given], environment: &Environment, problems: &mut Vec<Problem>) -> Self {
        given.first().and_then(|given| row.value(given, &given.text(), environment, problems))
    }

    fn write(&self) -> Vec<String> {
        self.iter().filter_map(Value::to_text).collect()
    }
}

impl<T: Value + PartialEq> Field for Vec<T> {
    fn read(row: &Row, given: &[Given], environment: &Environment, problems: &mut Vec<Problem>) -> Self {
        let mut values = Self::new();
        for given in given {
            for text in given.text().split(',') {
                let value = row.value(given, text, environment, problems);
                values.extend(value.filter(|value| !values.contains(value)));
            }
        }
        values
    }

    fn write(&self) -> Vec<String> {
        self.iter().filter_map(Value::to_text).collect()
    }
}

pub(super) trait Value: Sized {
    /// Reads a text; `None` if there is no such value.
    fn read(text: &str, given: &Given, environment: &Environment) -> Option<Self>;

    /// Writes it as it can be given again, if it is text.
    fn to_text(&self) -> Option<String>;
}

/// Types whose own way to read and write is what users write.
macro_rules! values {
    ($($type:ty),*) => {
        $(impl Value for $type {
            fn read(text: &str, _given: &Given, _environment: &Environment) -> Option<Self> {
                text.parse().ok()
            }

            fn to_text(&self) -> Option<String> {
                Some(self.to_string())
            }
        })*
    };
}

values!(bool, u16, usize, String, Bastion, Forward, MetricsAddress, Oidc, ProxyPlace, SessionDocument, Sessions);

impl Value for Duration {
    fn read(text: &str, _given: &Given, _environment: &Environment) -> Option<Self> {
        if text == "0" { Some(Self::ZERO) } else { duration::parse(text).ok() }
    }

    fn to_text(&self) -> Option<String> {
        Some(if self.subsec_millis() == 0 { format!("{}s", self.as_secs()) } else { format!("{}ms", self.as_millis()) })
    }
}

impl Value for PathBuf {
    fn read(_text: &str, given: &Given, environment: &Environment) -> Option<Self> {
        Some(given.path(environment))
    }

    fn to_text(&self) -> Option<String> {
        self.to_str().map(ToOwned::to_owned)
    }
}

/// A struct with a field for each of its rows.
pub trait Table {
    /// Every command takes its flags.
    const GLOBAL: bool;

    fn rows() -> Vec<&'static Row>;

    /// The values of its fields, as they can be given again.
    fn values(&self) -> Vec<(&'static Row, Vec<String>)>;
}

/// Makes a struct of rows, and a static that has these by the same names. A row is the doc comment that is its help, its name,
/// its type, and what [`Row`] has besides. One without a type gets no field: what becomes of it is a field of another name.
/// What is found out otherwise follows after the rows.
macro_rules! table {
    (
        $(#[$meta:meta])*
        pub struct $table:ident, global: $global:literal, rows $rows:ident: $Rows:ident {
            $( $(#[doc = $help:literal])+ $name:ident $(: $type:ty)? = $row:expr, )*
        } {
            $( $(#[$field_meta:meta])+ pub $field:ident: $field_type:ty, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default)]
        pub struct $table {
            $( $(
                #[doc = concat!("The setting `", stringify!($name), "`.")]
                pub $name: $type,
            )? )*
            $( $(#[$field_meta])+ pub $field: $field_type, )*
        }

        #[derive(Debug)]
        pub(super) struct $Rows {
            $( pub(super) $name: $crate::settings::row::Row, )*
        }

        pub(super) static $rows: $Rows = $Rows { $( $name: $row.named(stringify!($name), concat!($($help),+)), )* };

        impl $crate::settings::row::Table for $table {
            const GLOBAL: bool = $global;

            fn rows() -> Vec<&'static $crate::settings::row::Row> {
                vec![$(&$rows.$name),*]
            }

            fn values(&self) -> Vec<(&'static $crate::settings::row::Row, Vec<String>)> {
                vec![$( $( (&$rows.$name, <$type as $crate::settings::row::Field>::write(&self.$name)), )? )*]
            }
        }

        impl $table {
            /// Reads the fields of its rows from what `find` finds of each.
            pub(super) fn read<'a>(
                find: impl Fn(&'static $crate::settings::row::Row) -> &'a [$crate::settings::source::Given],
                environment: &$crate::settings::Environment,
                problems: &mut Vec<$crate::settings::Problem>,
            ) -> Self {
                Self {
                    $( $( $name: $rows.$name.read::<$type>(find(&$rows.$name), environment, problems), )? )*
                    ..Self::default()
                }
            }
        }
    };
}

pub(super) use table;
