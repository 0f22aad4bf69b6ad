//! Every fault that can be injected by a name: one row of the `table` each, and all that is to be known of it is there.
//!
//! A row has the form of its fault on a command line, what it does, what help says of it, and what is expected of a tunnel at
//! work: the fault matrix runs its trials. Parser, help, errors, injection and matrix read the rows, so that a fault is
//! added by adding a row. [`Settings`] say what can be wrong, and a [`Command`] what can happen to a session.

mod table;

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use self::Effect::{Acts, Always, Counted, Every, For, Lined, Named, NamedAs, Partly, Timed};
pub use self::table::FAULTS;
use super::{
    Command, Config, Line, Settings,
    script::{parse_duration, parse_fraction},
    world::World,
};

/// A fault as it was written: a row of [`FAULTS`], and its value.
#[derive(Debug, Clone)]
pub struct Fault {
    pub(super) row: &'static Row,
    pub(super) value: Value,
}

/// What stands behind `=`.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Nothing,
    Time(Duration),
    Count(u32),
    Fraction(f64),
    Line(Line),
    Word(String),
}

/// A fault: what it is called, what it does, and what is expected.
#[derive(Debug)]
pub struct Row {
    /// Its form on a command line, with an example of its value.
    pub form: &'static str,
    /// What it does, as help says it.
    pub help: &'static str,
    pub(super) effect: Effect,
    /// Whether and how a tunnel at work has to survive it.
    pub matrix: Matrix,
}

/// What a fault does. The kind of it says which value it takes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Effect {
    /// Is in force from then on.
    Always(fn(&mut Settings)),
    Timed(fn(&mut Settings, Duration)),
    Counted(fn(&mut Settings, u32)),
    Partly(fn(&mut Settings, f64)),
    Lined(fn(&mut Settings, Line)),
    Named(fn(&mut Settings, &str)),
    /// The same for a name of which this is true.
    NamedAs(fn(&str) -> bool, fn(&mut Settings, &str)),
    /// Happens to every session, again and again after this time.
    Every(fn(Duration) -> Command),
    /// Happens to what sessions are with, again and again after this time.
    Acts(fn(&Arc<World>)),
    /// Is in force for so long, and begins with something that happens to every session.
    For {
        begin: fn(&mut Settings, &Config),
        with: fn() -> Command,
        end: fn(&mut Settings),
    },
}

/// What the fault matrix is to find.
#[derive(Debug, Clone, Copy)]
pub enum Matrix {
    /// All of these.
    Trials(&'static [Trial]),
    /// It is looked at in these tests, as it is nothing that happens to a tunnel at work.
    Elsewhere(&'static str),
}

/// One way in which a fault happens to a tunnel at work, and what is expected of the tunnel.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// The name, with hyphens.
    pub name: &'static str,
    /// What happens, in words.
    pub what: &'static str,
    /// The value of the fault; empty for none.
    pub value: &'static str,
    /// For how long; `None`: it happens once.
    pub lasts: Option<Duration>,
    /// The fault that happens then, where the first is about what follows from it; empty for none.
    pub then: &'static str,
    /// Open connections end, and at the latest so long after the fault; `None`: all are kept.
    pub resets: Option<Duration>,
    /// The longest wait that is allowed, of open and of new connections.
    pub bound: Duration,
    /// How long it takes until the fault can have been noticed, if that is long.
    pub noticed: Option<Duration>,
    /// The transport falls silent, and it counts how soon that is found.
    pub is_silence: bool,
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Trial {
    /// Something that happens once, and is survived by all connections in so many seconds.
    const fn new(name: &'static str, what: &'static str, bound: u64) -> Self {
        Self {
            name,
            what,
            value: "",
            lasts: None,
            then: "",
            resets: None,
            bound: secs(bound),
            noticed: None,
            is_silence: false,
        }
    }

    const fn value(self, value: &'static str) -> Self {
        Self { value, ..self }
    }

    const fn lasting(self, seconds: u64) -> Self {
        Self { lasts: Some(secs(seconds)), ..self }
    }

    const fn then(self, fault: &'static str) -> Self {
        Self { then: fault, ..self }
    }

    const fn resets(self, within: u64) -> Self {
        Self { resets: Some(secs(within)), ..self }
    }

    const fn slow(self, seconds: u64) -> Self {
        Self { noticed: Some(secs(seconds)), ..self }
    }

    const fn silence(self) -> Self {
        Self { is_silence: true, ..self }
    }
}

impl Trial {
    /// Returns the faults that happen in it, one after the other.
    #[must_use]
    pub fn faults(&self, row: &Row) -> Vec<String> {
        let own = match (self.value, row.example()) {
            ("", None) => row.name().to_owned(),
            ("", Some(example)) => format!("{}={example}", row.name()),
            (value, _) => format!("{}={value}", row.name()),
        };
        [own].into_iter().chain((!self.then.is_empty()).then(|| self.then.to_owned())).collect()
    }
}

impl Row {
    const fn new(form: &'static str, help: &'static str, effect: Effect, matrix: Matrix) -> Self {
        Self { form, help, effect, matrix }
    }

    /// Returns what stands before the value.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.form.split('=').next().unwrap_or(self.form)
    }

    fn example(&self) -> Option<&'static str> {
        self.form.split_once('=').map(|(_, example)| example)
    }
}

/// A fault that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// There is no fault of this name.
    #[error("there is no fault `{name}`; known are {}", FAULTS.iter().map(|row| row.form).collect::<Vec<_>>().join(", "))]
    Unknown {
        /// The name that was given.
        name: String,
    },
    /// The value is missing, superfluous or of another form.
    #[error("fault `{text}` does not have the form `{form}`")]
    Value {
        /// What was given.
        text: String,
        /// An example of what is right.
        form: &'static str,
    },
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let Some(row) = FAULTS.iter().find(|row| row.name() == name) else {
            return Err(FaultError::Unknown { name: name.to_owned() });
        };
        match row.effect.read(value) {
            Some(value) => Ok(Self { row, value }),
            None => Err(FaultError::Value { text: text.to_owned(), form: row.form }),
        }
    }
}

impl Effect {
    /// Changes the settings, if that is what it does: with a value of the kind that it takes.
    pub(super) fn apply(self, settings: &mut Settings, value: &Value) {
        match (self, value) {
            (Always(change), Value::Nothing) => change(settings),
            (Timed(change), Value::Time(time)) => change(settings, *time),
            (Counted(change), Value::Count(count)) => change(settings, *count),
            (Partly(change), Value::Fraction(fraction)) => change(settings, *fraction),
            (Lined(change), Value::Line(line)) => change(settings, *line),
            (Named(change) | NamedAs(_, change), Value::Word(word)) => change(settings, word),
            _ => {}
        }
    }

    /// Reads the value that it takes.
    fn read(self, text: Option<&str>) -> Option<Value> {
        match (self, text) {
            (Always(_), None) => Some(Value::Nothing),
            (Timed(_) | Every(_) | Acts(_) | For { .. }, Some(text)) => parse_duration(text).map(Value::Time),
            (Counted(_), Some(text)) => text.parse().ok().filter(|count| *count > 0).map(Value::Count),
            (Partly(_), Some(text)) => parse_fraction(text).map(Value::Fraction),
            (Lined(_), Some(text)) => text.parse().ok().map(Value::Line),
            (Named(_), Some(text)) if !text.is_empty() => Some(Value::Word(text.to_owned())),
            (NamedAs(is_right, _), Some(text)) if is_right(text) => Some(Value::Word(text.to_owned())),
            _ => None,
        }
    }
}

impl PartialEq for Fault {
    fn eq(&self, other: &Self) -> bool {
        (self.row.form, &self.value) == (other.row.form, &other.value)
    }
}

/// Writes the form that [`FromStr`] reads.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row.name())?;
        match &self.value {
            Value::Nothing => Ok(()),
            Value::Time(time) => write!(f, "={}ms", time.as_millis()),
            Value::Count(count) => write!(f, "={count}"),
            Value::Fraction(fraction) => write!(f, "={fraction}"),
            Value::Line(line) => write!(f, "={line}"),
            Value::Word(word) => write!(f, "={word}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Matrix::{Elsewhere, Trials},
        *,
    };

    #[test]
    fn every_documented_fault_can_be_read_and_written() {
        for row in FAULTS {
            let fault: Fault = row.form.parse().unwrap();
            assert_eq!(fault.to_string().parse(), Ok(fault));
            assert_eq!(FAULTS.iter().filter(|other| other.name() == row.name()).count(), 1, "{}", row.form);
        }
        let value = |text: &str| text.parse::<Fault>().unwrap().value;
        assert_eq!(value("drop-websocket=30s"), Value::Time(Duration::from_secs(30)));
        assert_eq!(value("drop-websocket=5"), Value::Time(Duration::from_secs(5)));
        assert_eq!(value("loss=1%"), Value::Fraction(0.01));
        assert_eq!(value("loss=0.5"), Value::Fraction(0.5));
    }

    #[test]
    fn every_fault_is_tried_or_looked_at_elsewhere() {
        let mut names = Vec::new();
        for row in FAULTS {
            match row.matrix {
                Trials(trials) => {
                    names.extend(trials.iter().map(|trial| trial.name));
                    assert!(!trials.is_empty(), "{}", row.form);
                    for trial in trials {
                        assert!(trial.faults(row).iter().all(|text| text.parse::<Fault>().is_ok()), "{}", trial.name);
                    }
                }
                Elsewhere(path) => {
                    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
                    assert!(path.is_file(), "{}: {}", row.form, path.display());
                }
            }
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn errors_say_what_would_be_right() {
        let error = |text: &str| text.parse::<Fault>().unwrap_err().to_string();
        assert!(
            error("drop-websockets=3s")
                .starts_with("there is no fault `drop-websockets`; known are drop-websocket=30s, ")
        );
        assert_eq!(error("drop-websocket"), "fault `drop-websocket` does not have the form `drop-websocket=30s`");
        for text in [
            "line=125",
            "line=125kB,1MB",
            "line=0kB/s,1MB",
            "line-up=1kB/s,1MB,20ms,3",
            "delay=fast",
            "delay=0s",
            "loss=2",
            "loss=-1",
            "loss=NaN",
            "refuse-resume=1",
            "fail-start=0",
            "deny=all",
            "delay=",
        ] {
            assert!(error(text).contains("does not have the form"), "{text}");
        }
    }
}
