//! A YAML tree that is written back with the meaning that it was read with.
//!
//! kubectl reads YAML 1.1, in which a bare `no`, `on`, `y`, `0777` or `1_000` is not a string; our parser
//! reads YAML 1.2, in which it is. So a tree remembers which scalars were bare: what was bare is written
//! bare, what was quoted is written quoted, and whoever reads the file sees what it saw before. All that
//! this program adds is quoted: a JSON string literal is a double-quoted scalar in both versions.
//!
//! Comments, anchors and layout are lost. Tags of one's own and keys that are not scalars are refused, and so
//! is a bare word that may be made a string by a tag; kubectl has no use for them.

use std::{collections::BTreeSet, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Longest key as it is written, in bytes. YAML wants one that is written without `?` to be shorter than 1024.
const MAX_KEY_LEN: usize = 1000;

/// What ends a line in YAML 1.1, and with it a comment.
const LINE_BREAKS: [char; 5] = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'];

/// What YAML takes for space within a line.
const SPACES: [char; 2] = [' ', '\t'];

/// What a tag comes after, if it is not the first thing in a document.
const BEFORE_TAG: [char; 11] = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}', ' ', '\t', '[', '{', ',', ':'];

/// Words that are Booleans, nulls or keys with a meaning in YAML 1.1 or 1.2, in any case.
const AMBIGUOUS: [&str; 12] = ["y", "yes", "true", "on", "n", "no", "false", "off", "null", "~", "=", "<<"];

/// A value in a YAML document.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// A bare scalar, written exactly as it was: a word, a number, a Boolean, a null.
    Bare(String),
    /// A quoted scalar: always a string.
    Text(String),
    /// A sequence.
    Sequence(Vec<Self>),
    /// A mapping, in its order; keys are [`Node::Bare`] or [`Node::Text`].
    Mapping(Mapping),
}

/// A mapping, in its order, with every key once.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Mapping(pub(super) Vec<(Node, Node)>);

impl Node {
    /// A null.
    pub(super) fn null() -> Self {
        Self::Bare("null".to_owned())
    }

    /// A quoted string.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A mapping with plain words as keys.
    pub(super) fn mapping<const N: usize>(entries: [(&str, Self); N]) -> Self {
        Self::Mapping(Mapping(entries.into_iter().map(|(key, value)| (Self::Bare(key.to_owned()), value)).collect()))
    }

    /// Returns the text of a scalar, bare or quoted, that is not null.
    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Bare(text) if matches!(text.as_str(), "null" | "Null" | "NULL" | "~" | "") => None,
            Self::Bare(text) | Self::Text(text) => Some(text),
            Self::Sequence(_) | Self::Mapping(_) => None,
        }
    }

    /// Tells whether this is a null.
    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Bare(_)) && self.as_str().is_none()
    }

    /// Returns the mapping, if this is one.
    pub(super) fn as_mapping(&self) -> Option<&Mapping> {
        match self {
            Self::Mapping(mapping) => Some(mapping),
            Self::Bare(_) | Self::Text(_) | Self::Sequence(_) => None,
        }
    }

    /// Returns the items, if this is a sequence.
    pub(super) fn as_sequence(&self) -> Option<&[Self]> {
        match self {
            Self::Sequence(items) => Some(items),
            Self::Bare(_) | Self::Text(_) | Self::Mapping(_) => None,
        }
    }

    /// Returns the value under a key, if this is a mapping that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        self.as_mapping()?.get(key)
    }
}

impl Mapping {
    /// Returns the value under a key.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.0.iter().find(|(k, _)| k.as_str() == Some(key)).map(|(_, value)| value)
    }

    /// Sets the value under a key, at its old place or at the end.
    pub(super) fn set(&mut self, key: &str, value: Node) {
        match self.0.iter_mut().find(|(k, _)| k.as_str() == Some(key)) {
            Some((_, old)) => *old = value,
            None => self.0.push((Node::Bare(key.to_owned()), value)),
        }
    }
}

/// Reads one document. One without any content is a null.
///
/// # Errors
/// What the parser says, with line and column.
pub(super) fn parse(text: &str) -> Result<Node, serde_yaml::Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let is_blank = |line: &str| {
        let line = line.trim_end_matches(SPACES);
        line.is_empty() || line.trim_start_matches(SPACES).starts_with('#') || line == "---"
    };
    if text.split(LINE_BREAKS).all(is_blank) {
        return Ok(Node::null());
    }
    Seed { input: text, has_tags: has_tags(text) }.deserialize(serde_yaml::Deserializer::from_str(text))
}

/// Writes a document in block style.
pub(super) fn emit(root: &Node) -> String {
    let mut out = String::new();
    match root {
        Node::Mapping(mapping) if !mapping.0.is_empty() => emit_mapping(&mut out, mapping, 0),
        Node::Sequence(items) if !items.is_empty() => emit_sequence(&mut out, items, 0),
        Node::Bare(_) | Node::Text(_) | Node::Mapping(_) | Node::Sequence(_) => {
            emit_scalar(&mut out, root);
            out.push('\n');
        }
    }
    out
}

fn emit_mapping(out: &mut String, mapping: &Mapping, indent: usize) {
    for (index, (key, value)) in mapping.0.iter().enumerate() {
        // The first key goes on the line of the dash or at the start of the document.
        if index > 0 {
            push_indent(out, indent);
        }
        emit_scalar(out, key);
        out.push(':');
        match value {
            Node::Mapping(inner) if !inner.0.is_empty() => {
                out.push('\n');
                push_indent(out, indent + 2);
                emit_mapping(out, inner, indent + 2);
            }
            Node::Sequence(items) if !items.is_empty() => {
                out.push('\n');
                push_indent(out, indent);
                emit_sequence(out, items, indent);
            }
            Node::Bare(_) | Node::Text(_) | Node::Mapping(_) | Node::Sequence(_) => {
                out.push(' ');
                emit_scalar(out, value);
                out.push('\n');
            }
        }
    }
}

fn emit_sequence(out: &mut String, items: &[Node], indent: usize) {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            push_indent(out, indent);
        }
        out.push_str("- ");
        match item {
            Node::Mapping(inner) if !inner.0.is_empty() => emit_mapping(out, inner, indent + 2),
            Node::Sequence(inner) if !inner.is_empty() => emit_sequence(out, inner, indent + 2),
            Node::Bare(_) | Node::Text(_) | Node::Mapping(_) | Node::Sequence(_) => {
                emit_scalar(out, item);
                out.push('\n');
            }
        }
    }
}

/// Writes a scalar or an empty collection.
fn emit_scalar(out: &mut String, node: &Node) {
    match node {
        Node::Bare(text) => out.push_str(text),
        Node::Text(text) => emit_text(out, text),
        Node::Sequence(_) => out.push_str("[]"),
        Node::Mapping(_) => out.push_str("{}"),
    }
}

/// Returns the length of a scalar as it is written, in bytes.
fn written_len(node: &Node) -> usize {
    let mut written = String::new();
    emit_scalar(&mut written, node);
    written.len()
}

/// Writes a string as a JSON literal in which everything is escaped that YAML does not take as it is:
/// besides what JSON escapes, the other control characters, byte order marks and Unicode's line breaks.
fn emit_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // It must not look like a tag.
            '!' if out.ends_with(BEFORE_TAG) => out.push_str("\\u0021"),
            '\0'..='\x1f' | '\x7f'..='\u{a0}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}

fn push_indent(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// Builds a [`Node`] from a document whose text is at hand.
#[derive(Clone, Copy)]
struct Seed<'de> {
    input: &'de str,
    /// Scalars may have tags that the parser takes, but does not tell about.
    has_tags: bool,
}

impl Seed<'_> {
    /// Tells whether a string that the parser found in the input, without a change, was bare there.
    ///
    /// Right behind a quoted one is its closing quote; right behind a bare one is never a quote, as that
    /// would belong to it.
    fn is_bare(self, found: &str) -> bool {
        // Both point into the same text, so this is where the string starts in it.
        let Some(start) = (found.as_ptr() as usize).checked_sub(self.input.as_ptr() as usize) else { return false };
        let Some(after) = self.input.get(start + found.len()..) else { return false };
        !after.starts_with(['"', '\'']) && can_be_bare(found)
    }
}

/// Tells whether there may be tags in a document, other than those that the parser refuses.
fn has_tags(text: &str) -> bool {
    let is_tag = |at: usize| at == 0 || text[..at].ends_with(BEFORE_TAG);
    ["!!", "!<"].iter().any(|sign| text.match_indices(sign).any(|(at, _)| is_tag(at)))
        || text.split(LINE_BREAKS).any(|line| line.starts_with("%TAG"))
}

/// Tells whether a string can be written bare at any place of a document. One that cannot is a string to every
/// reader, so that it means the same in quotes.
fn can_be_bare(text: &str) -> bool {
    let is_plain = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    let starts_plainly = text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '/');
    text.bytes().all(is_plain) && (starts_plainly || is_ambiguous(text))
}

/// Tells whether a bare scalar may be something else than a string to a reader of YAML 1.1 or 1.2: a number,
/// a date, or one of a few words.
fn is_ambiguous(text: &str) -> bool {
    let number = text.trim_start_matches(['+', '-']);
    let number = number.strip_prefix('.').unwrap_or(number);
    number.starts_with(|first: char| first.is_ascii_digit() || first == '_')
        || AMBIGUOUS.iter().any(|word| word.eq_ignore_ascii_case(text))
        || ["inf", "nan"].iter().any(|word| word.eq_ignore_ascii_case(number))
}

impl<'de> DeserializeSeed<'de> for Seed<'de> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'de> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without tags of its own")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::null())
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::null())
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bare(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Bare(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Bare(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        Ok(Node::Bare(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
        Ok(Node::Bare(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Bare(if value.is_nan() {
            ".nan".to_owned()
        } else if value.is_infinite() {
            if value > 0.0 { ".inf" } else { "-.inf" }.to_owned()
        } else {
            // Keeps a point or an exponent, so that it stays a float.
            format!("{value:?}")
        }))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::text(text))
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Node, E> {
        if !self.is_bare(text) {
            return Ok(Node::text(text));
        }
        if self.has_tags && is_ambiguous(text) {
            return Err(E::custom(format_args!("`{text}` may have a tag, and means something else without: quote it")));
        }
        Ok(Node::Bare(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Node::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        let mut keys = BTreeSet::new();
        while let Some(key) = access.next_key_seed(self)? {
            let text = match &key {
                Node::Bare(text) | Node::Text(text) if written_len(&key) <= MAX_KEY_LEN => text,
                Node::Bare(_) | Node::Text(_) | Node::Sequence(_) | Node::Mapping(_) => {
                    return Err(de::Error::custom("a key is not a short scalar"));
                }
            };
            if !keys.insert(text.clone()) {
                return Err(de::Error::custom(format_args!("the key `{text}` is there twice")));
            }
            entries.push((key, access.next_value_seed(self)?));
        }
        Ok(Node::Mapping(Mapping(entries)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Words that kubectl does not take for strings when they are bare, and some that it does.
    const AWKWARD: [&str; 16] = [
        "no",
        "on",
        "y",
        "true",
        "null",
        "~",
        "123",
        "0777",
        "1e3",
        "0x10",
        "1_000",
        "12:30",
        "2001-12-14",
        "=",
        "<<",
        ".inf",
    ];

    fn again(text: &str) -> String {
        emit(&parse(text).unwrap())
    }

    #[test]
    fn quotes_strings_and_nothing_else() {
        for word in AWKWARD {
            let root = Node::mapping([("name", Node::text(word))]);
            assert_eq!(emit(&root), format!("name: \"{word}\"\n"));
            assert_eq!(again(&emit(&root)), emit(&root));
        }
    }

    #[test]
    fn what_was_bare_stays_bare() {
        // Floats may change their spelling, but not their value.
        for word in [
            "no",
            "on",
            "y",
            "Yes",
            "OFF",
            "true",
            "123",
            "0777",
            "1_000",
            "12:30",
            "2001-12-14",
            "=",
            "x y",
            "a#b",
            "it's",
            "a\"b\"",
        ] {
            let text = format!("a: {word}\nb:\n- {word}\nc:\n  {word}: 1\n");
            assert_eq!(again(&text), text);
            assert_eq!(again(&format!("{{a: {word}, b: [{word}], c: {{{word}: 1}}}}")), text, "{word}");
        }
        assert_eq!(again("a: 0x10\nb: ~\nc:\nd: 1e3\ne: -.INF\n"), "a: 16\nb: null\nc: null\nd: 1000.0\ne: -.inf\n");
    }

    #[test]
    fn what_was_quoted_stays_quoted() {
        for word in AWKWARD {
            let expected = format!("a: \"{word}\"\nb:\n- \"{word}\"\n");
            assert_eq!(again(&expected), expected);
            assert_eq!(again(&format!("a: '{word}'\nb: ['{word}']")), expected);
            assert_eq!(
                again(&format!("{{\"a\":\"{word}\",\"b\":[\"{word}\"]}}"))
                    .replace("\"a\":", "a:")
                    .replace("\"b\":", "b:"),
                expected
            );
            let tagged = parse(&format!("a: !!str {word}"));
            assert!(tagged.unwrap_err().to_string().contains("quote it"), "{word}");
            assert_eq!(again(&format!("a: |-\n  {word}\nb:\n- >-\n  {word}")), expected);
        }
        assert_eq!(again(r#"a: "\\no""#), "a: \"\\\\no\"\n");
        assert_eq!(again("a: 'it''s'"), "a: \"it's\"\n");
        assert_eq!(again(r#"a: "n\x6f""#), "a: \"no\"\n");
    }

    #[test]
    fn what_cannot_be_bare_everywhere_is_quoted() {
        let text = "{a: b\u{2028}c, \u{feff}d: ä, e: !!str, f: !!str g, --- h: i, j: [-]}";
        assert_eq!(again(text), "a: \"b\\u2028c\"\n\"\\ufeffd\": \"ä\"\ne: \"\"\nf: g\n\"--- h\": i\nj:\n- \"-\"\n");
    }

    #[test]
    fn a_word_that_may_have_a_tag_is_refused() {
        for text in [
            "a: !!str &x no",
            "[!!str no]",
            "{'a':!!str no}",
            "a: !!str\n  no",
            "a: !<tag:yaml.org,2002:str> 12:30",
            "%TAG !y! tag:yaml.org,2002:\n---\na: !y!str 0777",
            "a: \"b !!\"\nc: no",
        ] {
            assert!(parse(text).unwrap_err().to_string().contains("quote it"), "{text}");
        }
        assert_eq!(again("a: b !!\nc: 'no'\nd: north\n"), "a: b !!\nc: \"no\"\nd: north\n");
        assert_eq!(again("a: \"!!\\t!!\"\nb: no\n"), "a: \"!!\\t!!\"\nb: no\n");
        assert_eq!(again("a: \"b \\x21!\"\nc: no\n"), "a: \"b \\u0021!\"\nc: no\n");
    }

    #[test]
    fn aliases_are_written_out() {
        assert_eq!(again("a: &x {b: no}\nc: *x\nd:\n  <<: *x\n"), "a:\n  b: no\nc:\n  b: no\nd:\n  <<:\n    b: no\n");
    }

    #[test]
    fn writes_block_style() {
        let text = "a:\n- b: \"1\"\n  c:\n  - - \"2\"\n    - {}\n  - []\nd:\n  e: true\n";
        assert_eq!(again(text), text);
        assert_eq!(again("{}"), "{}\n");
    }

    #[test]
    fn escapes_what_yaml_would_not_take() {
        let text = "\u{0}\t\n\r\"\\\u{7f}\u{85}\u{a0}\u{2028}\u{feff}ä😀";
        let root = Node::mapping([("a", Node::text(text))]);
        assert_eq!(emit(&root), "a: \"\\u0000\\t\\n\\r\\\"\\\\\\u007f\\u0085\\u00a0\\u2028\\ufeffä😀\"\n");
        assert_eq!(parse(&emit(&root)).unwrap(), root);
    }

    #[test]
    fn a_document_without_content_is_null() {
        for text in ["", "\n\n", "# nothing\n", "---\n# nothing\n", "\u{feff}", "null", "~\n"] {
            assert!(parse(text).unwrap().is_null(), "{text:?}");
        }
    }

    #[test]
    fn a_comment_ends_where_yaml_says() {
        for line_break in LINE_BREAKS {
            let text = format!("# nothing{line_break}a: b");
            assert_eq!(again(&text), "a: b\n", "{text:?}");
        }
        for text in ["\u{a0}", " ---", "\u{2003}# no"] {
            assert!(!parse(text).is_ok_and(|root| root.is_null()), "{text:?}");
        }
    }

    #[test]
    fn refuses_what_it_cannot_keep() {
        for (text, message) in [
            ("a: !mine 1", "tag"),
            ("[a]: b", "key"),
            ("a: 1\na: 2", "twice"),
            ("a: [", "line"),
            ("a: 1\n---\nb: 2", "more than one document"),
            ("a: *nowhere", "anchor"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text:?}: {error}");
        }
        for key in ["x".repeat(2000), format!("\"{}\"", "\\N".repeat(200))] {
            assert!(parse(&format!("? {key}\n: 1")).is_err());
        }
    }

    #[test]
    fn refuses_bombs() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert!(parse(&bomb).is_err());
        assert!(parse(&"[".repeat(500)).is_err());
    }

    fn trees() -> impl Strategy<Value = Node> {
        let text = prop_oneof![
            any::<String>().prop_map(Node::Text),
            proptest::sample::select(&AWKWARD[..]).prop_map(Node::text),
            proptest::sample::select(&["no", "0777", "1_000", "true", "17", "1.5", "null", "x y", "-"][..])
                .prop_filter("a lone dash is no scalar", |word| *word != "-")
                .prop_map(|word| Node::Bare(word.to_owned())),
        ];
        text.prop_recursive(4, 64, 6, |inner| {
            let entries = proptest::collection::btree_map(any::<String>(), inner.clone(), 0..6);
            prop_oneof![
                proptest::collection::vec(inner, 0..6).prop_map(Node::Sequence),
                entries.prop_map(|entries| {
                    Node::Mapping(Mapping(entries.into_iter().map(|(key, value)| (Node::Text(key), value)).collect()))
                }),
            ]
        })
    }

    /// What YAML 1.2 makes of a tree.
    fn value(node: &Node) -> serde_yaml::Value {
        match node {
            Node::Bare(text) => serde_yaml::from_str(text).unwrap(),
            Node::Text(text) => text.as_str().into(),
            Node::Sequence(items) => serde_yaml::Value::Sequence(items.iter().map(value).collect()),
            Node::Mapping(mapping) => {
                serde_yaml::Value::Mapping(mapping.0.iter().map(|(key, item)| (value(key), value(item))).collect())
            }
        }
    }

    proptest! {
        #[test]
        fn round_trip(root in trees()) {
            let text = emit(&root);
            prop_assert_eq!(&parse(&text).unwrap(), &root, "{}", text);
            prop_assert_eq!(serde_yaml::from_str::<serde_yaml::Value>(&text).unwrap(), value(&root));
        }

        #[test]
        fn never_panics(text in "[-a-c0-9:{}\\[\\],&*!'\"|>#\\n ]{0,60}") {
            if let Ok(root) = parse(&text) {
                prop_assert_eq!(parse(&emit(&root)).unwrap(), root);
            }
        }
    }
}
