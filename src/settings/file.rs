//! The configuration file: YAML text to what it gives, setting by setting.
//!
//! ```yaml
//! base_port: 10100
//! access:
//!   - region: us-east-1
//!     bastion: [i-0dc03fbcae2a87472, i-0fedcba9876543210]
//!     role_arn: arn:aws:iam::123456789012:role/AutohealReadOnlyRole
//!     clusters: [payments, search]
//!   - region: eu-west-1
//!     bastion: ecs:tools_0f9d1c2b3a4e5f60718293a4b5c6d7e8_0f9d1c2b3a4e5f607182-265927825
//! ```
//!
//! Every key is the name of a [row](Row): a flag's with `_` for `-`, but `clusters`, which has them all. Each entry of `access` is one
//! access. What it leaves out comes from flags, from the environment, and last from the same key at the top level.
//!
//! Here only the form of the file is judged: keys, lists and single values. Values stay text, each with its place, and
//! are read by the functions that read flags and variables. Everything that is wrong is collected.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Environment, Problem,
    flags::without_row,
    inputs::shown,
    row::{Kind, Row},
    rows,
    source::{Layer, Origin, Place},
};
use crate::util::{
    read::{ReadError, read_text},
    yaml::{self, Content, Mark, Node, SyntaxError},
};

/// Largest file that is read, in bytes: far more than anybody writes, and nothing that a slip could exhaust.
const MAX_LEN: u64 = 1 << 20;

/// Most problems that are looked for in one file. Whoever has so many has given the wrong file.
const MAX_PROBLEMS: usize = 50;

/// Most nodes that anchors and aliases may copy, against files that grow without end from a few lines.
const MAX_COPIES: usize = 10_000;

/// Most values of a list and most entries; EKS allows 100 clusters in a region, unless asked for more.
pub(super) const MAX_ITEMS: usize = 200;

/// How near a word has to be to a known key to be taken for a slip, from 0 to 1, as Jaro and Winkler measure it.
const NEAR: f64 = 0.8;

/// The key of the list of entries.
pub(super) const ACCESS: &str = "access";

/// What is wrong with a file's form.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    #[error("cannot read the configuration file `{}`", path.display())]
    Unreadable {
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It cannot be a configuration file.
    #[error("`{}` is not a configuration file: {reason}", path.display())]
    NotText {
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// It is not YAML, or more than is needed of it.
    #[error("{place}: {message}")]
    Syntax { place: Place, message: String },
    #[error("{place}: unknown key `{key}`: {advice}")]
    UnknownKey {
        place: Place,
        key: String,
        /// What may have been meant.
        advice: String,
    },
    /// A key that is there already.
    #[error("{place}: `{key}` appears twice: first on line {first}")]
    Twice {
        /// Where it is again.
        place: Place,
        key: &'static str,
        /// The line where it is first.
        first: usize,
    },
    /// A key without a value.
    #[error("{place}: `{key}` has no value: give one, or remove the key")]
    NoValue { place: Place, key: &'static str },
    /// More than there can be any use for.
    #[error("{place}: `{key}` has {count} items, but takes {MAX_ITEMS} at most")]
    TooMany { place: Place, key: &'static str, count: usize },
    /// A value of another form.
    #[error("{place}: {what} is {found}, but takes {expected}")]
    Shape {
        place: Place,
        /// What has the value.
        what: String,
        found: &'static str,
        expected: &'static str,
    },
}

impl FileProblem {
    /// Where it is, if it is at one place.
    pub(super) fn place(&self) -> Option<&Place> {
        match self {
            Self::Unreadable { .. } | Self::NotText { .. } => None,
            Self::Syntax { place, .. }
            | Self::UnknownKey { place, .. }
            | Self::Twice { place, .. }
            | Self::NoValue { place, .. }
            | Self::TooMany { place, .. }
            | Self::Shape { place, .. } => Some(place),
        }
    }
}

/// What a file gives; nothing for one that is empty or not there.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct File {
    /// Where it is, absolute; `None`: there is none.
    pub(super) path: Option<PathBuf>,
    /// The keys of the top level.
    pub(super) top: Layer,
    /// The entries of `access`.
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// Where it starts.
    pub(super) place: Place,
    pub(super) layer: Layer,
}

impl File {
    /// Reads the file that was named, or the one that is read without being named if it is there. What is wrong with
    /// its keys and values is added to `problems`, and then the rest is all that is right.
    ///
    /// # Errors
    /// [`FileProblem`] if there is nothing to read keys from.
    pub(super) fn load(
        named: Option<&Path>,
        environment: &Environment,
        problems: &mut Vec<Problem>,
    ) -> Result<Self, FileProblem> {
        let Some(path) = named.map(Path::to_owned).or_else(|| environment.config_file()) else {
            return Ok(Self::default());
        };
        if path == Path::new("/dev/null") {
            return Ok(Self::default());
        }
        let not_text = |reason| FileProblem::NotText { path: path.clone(), reason };
        let absolute = environment.absolute(&path);
        match read_text(&absolute, MAX_LEN) {
            Ok(text) => Ok(Self { path: Some(absolute), ..Self::parse(&path, &text, problems)? }),
            // Of one in a home that is not this user's nobody knows whether it is there.
            Err(ReadError::Io(_)) if named.is_none() && fs::symlink_metadata(&path).is_err() => Ok(Self::default()),
            Err(ReadError::Io(source)) => Err(FileProblem::Unreadable { path, source }),
            Err(ReadError::NotRegular) => Err(not_text("it is not a regular file")),
            Err(ReadError::TooLong(_)) => Err(not_text("it has more than 1 MiB")),
            Err(ReadError::NotText) => Err(not_text("it is not UTF-8")),
        }
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// [`FileProblem::Syntax`].
    pub(super) fn parse(path: &Path, text: &str, problems: &mut Vec<Problem>) -> Result<Self, FileProblem> {
        let mut reader = Reader { file: Arc::from(path), problems: Vec::new() };
        match parse(text) {
            Ok(root) => {
                let file = root.map(|root| reader.file(&root)).unwrap_or_default();
                problems.append(&mut reader.problems);
                Ok(file)
            }
            Err(error) => Err(FileProblem::Syntax { place: reader.place(error.mark), message: error.message }),
        }
    }
}

/// Reads a document. It has no use of tags.
fn parse(text: &str) -> Result<Option<Node>, SyntaxError> {
    let root = yaml::parse(text, MAX_COPIES)?;
    match root.as_ref().and_then(tagged) {
        Some(mark) => Err(SyntaxError::new(mark, "there is a tag, which has no meaning here: remove it")),
        None => Ok(root),
    }
}

/// Finds the first value that has a tag.
fn tagged(node: &Node) -> Option<Mark> {
    if node.tag.is_some() {
        return Some(node.mark);
    }
    match &node.content {
        Content::Bare(_) | Content::Text(_) => None,
        Content::Sequence(items) => items.iter().find_map(tagged),
        Content::Mapping(entries) => entries.iter().find_map(|(key, value)| tagged(key).or_else(|| tagged(value))),
    }
}

/// Judges the form of a tree.
struct Reader {
    file: Arc<Path>,
    problems: Vec<Problem>,
}

/// What a key of a mapping stands for.
enum Known {
    Setting(&'static Row),
    Access,
}

impl Reader {
    fn place(&self, Mark { line, column }: Mark) -> Place {
        Place { file: Arc::clone(&self.file), line, column }
    }

    fn problem(&mut self, problem: impl Into<Problem>) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem.into());
        }
    }

    fn wrong_shape(&mut self, node: &Node, what: impl Into<String>, expected: &'static str) {
        let found = match &node.content {
            _ if node.content.is_null() => "nothing",
            Content::Bare(_) | Content::Text(_) => "one value",
            Content::Sequence(_) => "a list",
            Content::Mapping(_) => "a mapping",
        };
        self.problem(FileProblem::Shape { place: self.place(node.mark), what: what.into(), found, expected });
    }

    fn file(&mut self, root: &Node) -> File {
        let mut file = File::default();
        if root.content.is_null() {
            return file;
        }
        for (known, mark, value) in self.entries(root, "the file", false) {
            match known {
                Known::Setting(setting) => self.setting(&mut file.top, setting, mark, value),
                Known::Access => match &value.content {
                    Content::Sequence(items) if !items.is_empty() => {
                        file.entries = self.items(ACCESS, value, items).iter().map(|item| self.entry(item)).collect();
                    }
                    _ if is_nothing(value) => self.no_value(mark, ACCESS),
                    Content::Bare(_) | Content::Text(_) | Content::Sequence(_) | Content::Mapping(_) => {
                        self.wrong_shape(value, "`access`", "a list of entries, each with a `-` before it");
                    }
                },
            }
        }
        file
    }

    fn entry(&mut self, node: &Node) -> Entry {
        let mut entry = Entry { place: self.place(node.mark), layer: Layer::default() };
        for (known, mark, value) in self.entries(node, "an entry of `access`", true) {
            match known {
                Known::Setting(setting) => self.setting(&mut entry.layer, setting, mark, value),
                Known::Access => {}
            }
        }
        entry
    }

    /// Returns the keys that are known and their values, each key once, with the keys' places.
    fn entries<'a>(&mut self, node: &'a Node, what: &str, in_entry: bool) -> Vec<(Known, Mark, &'a Node)> {
        let Content::Mapping(entries) = &node.content else {
            self.wrong_shape(node, what, "keys and values, such as `region: us-east-1`");
            return Vec::new();
        };
        let mut found: Vec<(Known, Mark, &Node)> = Vec::new();
        for (key, value) in entries {
            if self.problems.len() >= MAX_PROBLEMS {
                break;
            }
            let Some(text) = key.content.scalar() else {
                self.wrong_shape(key, "a key", "one word");
                continue;
            };
            let known = match rows::all().into_iter().find(|row| row.name == text && (row.in_entry || !in_entry)) {
                Some(setting) => Known::Setting(setting),
                None if text == ACCESS && !in_entry => Known::Access,
                None => {
                    let (place, advice) = (self.place(key.mark), advice(text, in_entry));
                    self.problem(FileProblem::UnknownKey { place, key: shown(text), advice });
                    continue;
                }
            };
            match found.iter().find(|(other, ..)| other.key() == known.key()) {
                Some((_, Mark { line: first, .. }, _)) => {
                    let (place, key, first) = (self.place(key.mark), known.key(), *first);
                    self.problem(FileProblem::Twice { place, key, first });
                }
                None => found.push((known, key.mark, value)),
            }
        }
        found
    }

    fn setting(&mut self, layer: &mut Layer, setting: &'static Row, key: Mark, value: &Node) {
        let what = || format!("`{}`", setting.name);
        match &value.content {
            _ if is_nothing(value) => self.no_value(key, setting.name),
            Content::Bare(text) | Content::Text(text) => self.value(layer, setting, value, text),
            Content::Sequence(items) if setting.is_list => {
                for item in self.items(setting.name, value, items) {
                    match item.content.scalar() {
                        Some(text) => self.value(layer, setting, item, text),
                        None => self.wrong_shape(item, format!("an item of `{}`", setting.name), "one value"),
                    }
                }
            }
            Content::Sequence(_) | Content::Mapping(_) => {
                let expected = match setting.kind {
                    _ if setting.is_list => "a list, such as `[a, b]`, or one value",
                    Kind::Switch => "`true` or `false`",
                    Kind::Number { .. } | Kind::Duration { .. } | Kind::Path | Kind::Choice(_) | Kind::Text { .. } => {
                        "one value"
                    }
                };
                self.wrong_shape(value, what(), expected);
            }
        }
    }

    fn value(&self, layer: &mut Layer, setting: &'static Row, node: &Node, text: &str) {
        layer.add(setting, Origin::File(self.place(node.mark), setting.name), text);
    }

    /// Returns the items of a list, unless there are too many.
    fn items<'a>(&mut self, key: &'static str, list: &Node, items: &'a [Node]) -> &'a [Node] {
        if items.len() <= MAX_ITEMS {
            return items;
        }
        self.problem(FileProblem::TooMany { place: self.place(list.mark), key, count: items.len() });
        &[]
    }

    fn no_value(&mut self, key: Mark, name: &'static str) {
        self.problem(FileProblem::NoValue { place: self.place(key), key: name });
    }
}

impl Known {
    fn key(&self) -> &'static str {
        match self {
            Self::Setting(setting) => setting.name,
            Self::Access => ACCESS,
        }
    }
}

/// Tells whether there is nothing where a value is expected.
fn is_nothing(value: &Node) -> bool {
    value.content.is_null() || value.content == Content::Sequence(Vec::new())
}

/// Says what an unknown key may have been meant for.
fn advice(key: &str, in_entry: bool) -> String {
    let word = key.to_ascii_lowercase().replace('-', "_");
    let word = word.trim_start_matches('_');
    if without_row().iter().any(|name| name == word) {
        return format!("`--{}` exists only on the command line", word.replace('_', "-"));
    }
    if in_entry && (word == ACCESS || rows::all().iter().any(|row| row.name == word && !row.in_entry)) {
        return "it is for all entries: move it to the top level".to_owned();
    }
    let known = || {
        let names = rows::all().into_iter().filter(|row| row.in_entry || !in_entry).map(|row| row.name);
        names.chain((!in_entry).then_some(ACCESS))
    };
    let likeness = |key: &&str| (strsim::jaro_winkler(word, key) * 1000.0) as u32;
    match known().max_by_key(likeness) {
        Some(nearest) if f64::from(likeness(&nearest)) >= NEAR * 1000.0 => format!("did you mean `{nearest}`?"),
        _ => format!("known are {}", known().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests;
