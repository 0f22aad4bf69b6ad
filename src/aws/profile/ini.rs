//! The form of AWS's profile files, read as botocore reads it (`configloader.py`, on Python's `RawConfigParser`): sections
//! in brackets, keys that end at `=` or `:`, lines that are indented further go on with the value before them, and a `#` is a
//! comment at the start of a line only.
//!
//! Python refuses a whole file for one line that it does not understand. Here such a line is a [`Fault`] of the section that
//! it is in, so that it matters to those who use that section. One that may have been meant to start a section starts a
//! nameless one: what follows belongs to nobody else.

use std::collections::BTreeMap;

/// The name of the section whose keys all others have as well.
const DEFAULTS: &str = "DEFAULT";

/// A section, with its keys in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Section {
    /// What is between the brackets; empty where that cannot be read.
    pub(super) header: String,
    pub(super) keys: BTreeMap<String, Value>,
    pub(super) faults: Vec<Fault>,
}

/// A value, and the line that it starts on, from 1.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) text: String,
    pub(super) line: usize,
}

impl std::fmt::Debug for Value {
    /// Shows no value: it may be a key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}", self.line)
    }
}

/// A line that means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// From 1.
    pub(super) line: usize,
    pub(super) what: &'static str,
}

/// Reads a file: its sections in the order of their first lines, and the faults that are in none.
pub(super) fn parse(bytes: &[u8]) -> (Vec<Section>, Vec<Fault>) {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = Reader::default();
    // As Python does, which knows three kinds of line ends.
    for (index, line) in lines(bytes).enumerate() {
        reader.line(index + 1, line);
    }
    let Reader { mut sections, stray, .. } = reader;
    if let Some(position) = sections.iter().position(|section| section.header == DEFAULTS) {
        let defaults = sections.remove(position);
        for section in sections.iter_mut().filter(|section| !section.header.is_empty()) {
            for (key, value) in &defaults.keys {
                section.keys.entry(key.clone()).or_insert_with(|| value.clone());
            }
            section.faults.extend(defaults.faults.iter().cloned());
        }
    }
    (sections, stray)
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n').flat_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        line.split(|byte| *byte == b'\r')
    })
}

#[derive(Default)]
struct Reader {
    sections: Vec<Section>,
    /// The section of each header.
    by_header: BTreeMap<String, usize>,
    /// The section that lines belong to now.
    current: Option<usize>,
    /// The key that an indented line goes on with.
    key: Option<String>,
    /// How far the line was indented that a value or a section started on.
    indent: usize,
    stray: Vec<Fault>,
}

impl Reader {
    fn line(&mut self, number: usize, line: &[u8]) {
        let is_header = line.trim_ascii_start().starts_with(b"[");
        let Ok(line) = std::str::from_utf8(line) else {
            if is_header && !self.goes_on(line.len() - line.trim_ascii_start().len()) {
                self.start_nameless();
            }
            return self.fault(number, "is not UTF-8");
        };
        let text = line.trim();
        if text.starts_with(['#', ';']) {
            return;
        }
        let indent = line.chars().take_while(|c| c.is_whitespace()).count();
        if (text.is_empty() || self.goes_on(indent))
            && let Some(value) = self.value_so_far()
        {
            value.text.push('\n');
            value.text.push_str(text);
            return;
        }
        if text.is_empty() {
            return;
        }
        self.key = None;
        self.indent = indent;
        let header = text.strip_prefix('[').and_then(|rest| Some(&rest[..rest.rfind(']')?]));
        if let Some(header) = header.filter(|header| !header.is_empty()) {
            return self.start(header);
        }
        if text.starts_with('[') {
            self.start_nameless();
            return self.fault(number, "starts with `[`, but is not a name in brackets");
        }
        self.property(number, text);
    }

    /// Tells whether a line goes on with the value before it.
    fn goes_on(&self, indent: usize) -> bool {
        self.key.is_some() && indent > self.indent
    }

    fn start(&mut self, header: &str) {
        let sections = &mut self.sections;
        let index = *self.by_header.entry(header.to_owned()).or_insert_with(|| {
            sections.push(Section { header: header.to_owned(), ..Section::default() });
            sections.len() - 1
        });
        self.current = Some(index);
    }

    fn start_nameless(&mut self) {
        self.sections.push(Section::default());
        self.current = Some(self.sections.len() - 1);
        self.key = None;
    }

    fn property(&mut self, number: usize, text: &str) {
        let Some((key, value)) = text.split_once(['=', ':']).map(|(key, value)| (key.trim_end(), value.trim())) else {
            return self.fault(number, "is neither a name in brackets nor a key with a value");
        };
        if key.is_empty() {
            return self.fault(number, "has no key before its `=`");
        }
        let key = key.to_lowercase();
        let Some(section) = self.section() else {
            return self.fault(number, "is before the first name in brackets");
        };
        if section.keys.get(&key).is_some_and(|other| other.text != value) {
            return self.fault(number, "repeats a key with another value");
        }
        section.keys.insert(key.clone(), Value { text: value.to_owned(), line: number });
        self.key = Some(key);
    }

    fn section(&mut self) -> Option<&mut Section> {
        self.sections.get_mut(self.current?)
    }

    fn value_so_far(&mut self) -> Option<&mut Value> {
        self.sections.get_mut(self.current?)?.keys.get_mut(self.key.as_ref()?)
    }

    fn fault(&mut self, line: usize, what: &'static str) {
        let fault = Fault { line, what };
        match self.section() {
            Some(section) => section.faults.push(fault),
            None => self.stray.push(fault),
        }
    }
}

impl Value {
    /// The value as one reads it: blank lines behind it do not belong to it.
    pub(super) fn text(&self) -> &str {
        self.text.trim_end()
    }

    /// The keys and values of a value that is a block of its own, such as `s3 =` with indented lines below it.
    pub(super) fn nested(&self) -> BTreeMap<&str, &str> {
        let lines = self.text.lines().filter_map(|line| line.split_once('='));
        lines.map(|(key, value)| (key.trim(), value.trim())).collect()
    }
}

/// Splits a header into words, with quotes and backslashes as a shell has them; `None` where a quote is not closed.
pub(super) fn words(header: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = header.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                let escaped = chars.next()?;
                let word = word.get_or_insert_default();
                if quote.is_some() && !matches!(escaped, '"' | '\\') {
                    word.push('\\');
                }
                word.push(escaped);
            }
            (None, _) if c.is_ascii_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, Vec<(String, String)>)> {
        let (sections, stray) = parse(text.as_bytes());
        assert_eq!(stray, []);
        sections
            .into_iter()
            .map(|section| {
                assert_eq!(section.faults, [], "{}", section.header);
                let keys = section.keys.iter().map(|(key, value)| (key.clone(), value.text().to_owned())).collect();
                (section.header, keys)
            })
            .collect()
    }

    fn one(text: &str) -> Vec<(String, String)> {
        let mut sections = read(&format!("[a]\n{text}"));
        assert_eq!(sections.len(), 1);
        sections.remove(0).1
    }

    /// The expected values are those of `botocore.configloader.raw_config_parse` 1.43.11 on Python 3.11, with
    /// `parse_subsections=False`.
    #[test]
    fn reads_keys_and_values_as_botocore_does() {
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        for (text, expected) in [
            ("b = 1\nc=2\nd : 3\ne:4", &[("b", "1"), ("c", "2"), ("d", "3"), ("e", "4")][..]),
            ("  b = 1\n  c = 2\nd = 3", &[("b", "1"), ("c", "2"), ("d", "3")]),
            ("b = 1\n  c = 2\nd = 3", &[("b", "1\nc = 2"), ("d", "3")]),
            ("B_C = X # y\n# d = 1\n; e = 2\n  # f", &[("b_c", "X # y")]),
            ("s3 =\n  x = 1\n  y = 2\nb = 1", &[("b", "1"), ("s3", "\nx = 1\ny = 2")]),
            ("b = 1\n\n\nc = \r\n", &[("b", "1"), ("c", "")]),
            ("b = 1\r\nc = 2\rd = 3", &[("b", "1"), ("c", "2"), ("d", "3")]),
            ("a b = c d", &[("a b", "c d")]),
            ("b = http://x:1/?y=z", &[("b", "http://x:1/?y=z")]),
        ] {
            assert_eq!(one(text), pairs(expected), "{text:?}");
        }
        let headers: Vec<_> =
            read("[a] # x\n[ b ]\n [c]\n[d] ; [e]\n\u{a0}[f]").into_iter().map(|section| section.0).collect();
        assert_eq!(headers, ["a", " b ", "c", "d] ; [e", "f"]);
        let defaults = read("[DEFAULT]\nregion = x\n[a]\n[b]\nregion = y\n");
        assert_eq!(defaults[0].1, pairs(&[("region", "x")]));
        assert_eq!(defaults[1].1, pairs(&[("region", "y")]));
        assert_eq!(read("\u{feff}[a]\n")[0].0, "a");
    }

    #[test]
    fn a_fault_belongs_to_its_section() {
        let (sections, stray) = parse(b"x = 1\n[a]\nb\n= 2\nc = 1\n\xff = 3\nc = 2\nc = 1\n[b]\nd = 1\n");
        assert_eq!(stray.iter().map(|fault| fault.line).collect::<Vec<_>>(), [1]);
        assert_eq!(sections[0].faults.iter().map(|fault| fault.line).collect::<Vec<_>>(), [3, 4, 6, 7]);
        assert_eq!((sections[0].keys["c"].text(), sections[1].faults.len()), ("1", 0));
    }

    #[test]
    fn what_follows_a_header_that_cannot_be_read_belongs_to_nobody_else() {
        let before = &b"[DEFAULT]\nd = 1\n[a]\n"[..];
        for header in [&b"[b \xfc]"[..], b"  [b \xfc", b"[b", b"[b = c", b"[]"] {
            let text = [before, header, b"\nc = 2\n[e]\nc = 3\n"].concat();
            let (sections, stray) = parse(&text);
            assert_eq!(stray, []);
            let [a, nameless, e] = &sections[..] else { panic!("{sections:?}") };
            assert_eq!((a.header.as_str(), a.faults.len(), e.faults.len()), ("a", 0, 0));
            assert_eq!((nameless.header.as_str(), nameless.faults.len(), nameless.keys.len()), ("", 1, 1));
            assert_eq!((e.header.as_str(), e.keys["c"].text()), ("e", "3"));
        }
        let (sections, _) = parse(b"[a]\nc = 1\n  [x\n  \xfc\nd = 2\n");
        assert_eq!((sections.len(), sections[0].keys["c"].text()), (1, "1\n[x"));
        assert_eq!(sections[0].keys["d"].text(), "2");
    }

    #[test]
    fn splits_headers_as_a_shell_does() {
        for (header, expected) in [
            ("profile dev", &["profile", "dev"][..]),
            ("profile 'Foo Bar'", &["profile", "Foo Bar"]),
            ("profile \"a b\\\"c\"", &["profile", "a b\"c"]),
            ("profile m\u{fc}ller", &["profile", "m\u{fc}ller"]),
            ("profile a\\ b", &["profile", "a b"]),
            ("profile\t a  b", &["profile", "a", "b"]),
            ("profile ''", &["profile", ""]),
            ("profile a'b c'd", &["profile", "ab cd"]),
        ] {
            assert_eq!(words(header).unwrap(), expected);
        }
        assert!(words("profile 'a").is_none() && words("profile a\\").is_none());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _read = parse(&bytes);
            let _words = words(&String::from_utf8_lossy(&bytes));
        }
    }
}
