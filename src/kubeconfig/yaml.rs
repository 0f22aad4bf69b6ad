//! A YAML tree that is written back with the meaning that it was read with.
//!
//! kubectl reads YAML 1.1, in which a bare `no`, `on`, `y`, `0777` or `1_000` is not a string; others read YAML 1.2, in
//! which it is. So a tree remembers which scalars were bare: what was bare is written bare and to the letter, what was
//! quoted is written quoted, tags stay, keys that are there twice stay, and whoever reads the file sees what it saw
//! before. All that this program adds is quoted: a JSON string literal is a double-quoted scalar in both versions.
//!
//! Comments, anchors and layout are lost. Refused is what readers do not agree about: keys that are not short scalars,
//! line breaks of Unicode, which end a line in YAML 1.1 only, the tag `!`, and whatever
//! else two readers find different meanings in. So is what would be written larger than it could be read.

use serde_yaml::Value;

use super::MAX_LEN;
use crate::util::yaml::{self, Content, Mark, Node, SyntaxError};

/// Longest key as it is written, in bytes. YAML wants one that is written without `?` to be shorter than 1024.
const MAX_KEY_LEN: usize = 1000;

/// Most nodes that anchors and aliases may copy: far more than thousands of contexts with one user have.
const MAX_COPIES: usize = 200_000;

/// The key under which a mapping has what others are to be merged into it.
const MERGE: &str = "<<";

/// Words that are Booleans, nulls or keys with a meaning in YAML 1.1 or 1.2, in any case.
const AMBIGUOUS: [&str; 12] = ["y", "yes", "true", "on", "n", "no", "false", "off", "null", "~", "=", MERGE];

impl Node {
    pub(super) fn null() -> Self {
        Self::bare("null")
    }

    pub(super) fn bare(text: &str) -> Self {
        Self::of(Content::Bare(text.to_owned()))
    }

    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::of(Content::Text(text.into()))
    }

    pub(super) fn sequence(items: impl IntoIterator<Item = Self>) -> Self {
        Self::of(Content::Sequence(items.into_iter().collect()))
    }

    /// A mapping with plain words as keys.
    pub(super) fn mapping<'a>(entries: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        Self::of(Content::Mapping(entries.into_iter().map(|(key, value)| (Self::bare(key), value)).collect()))
    }

    fn of(content: Content) -> Self {
        Self { mark: Mark::default(), tag: None, content }
    }

    /// Returns the text of a scalar, bare or quoted, that is not null. One with a tag other than `!!str` has none.
    pub(super) fn as_str(&self) -> Option<&str> {
        match self.tag.as_deref() {
            None => self.content.scalar(),
            Some("!!str") => match &self.content {
                Content::Bare(text) | Content::Text(text) => Some(text),
                Content::Sequence(_) | Content::Mapping(_) => None,
            },
            Some(_) => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        self.tag.is_none() && self.content.is_null()
    }

    /// Returns the entries, if this is a mapping.
    pub(super) fn as_mapping(&self) -> Option<&[(Self, Self)]> {
        match &self.content {
            Content::Mapping(entries) => Some(entries),
            Content::Bare(_) | Content::Text(_) | Content::Sequence(_) => None,
        }
    }

    /// Returns the items, if this is a sequence.
    pub(super) fn as_sequence(&self) -> Option<&[Self]> {
        match &self.content {
            Content::Sequence(items) => Some(items),
            Content::Bare(_) | Content::Text(_) | Content::Mapping(_) => None,
        }
    }

    /// Returns the value under a key, if this is a mapping that has it: the last that is there, else one that is merged
    /// into it.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let entries = self.as_mapping()?;
        let own = entries.iter().rev().find(|(other, _)| other.as_str() == Some(key));
        own.map(|(_, value)| value).or_else(|| {
            self.merged().find_map(|other| match other.as_sequence() {
                Some(items) => items.iter().find_map(|item| item.get(key)),
                None => other.get(key),
            })
        })
    }

    /// Returns what is to be merged into a mapping.
    pub(super) fn merged(&self) -> impl Iterator<Item = &Self> {
        let is_merge = |key: &Self| key.content == Content::Bare(MERGE.to_owned());
        self.as_mapping().unwrap_or_default().iter().filter(move |(key, _)| is_merge(key)).map(|(_, value)| value)
    }

    /// Sets the value under a key of a mapping, at its old place or at the end.
    pub(super) fn set(&mut self, key: &str, value: Self) {
        let Content::Mapping(entries) = &mut self.content else { return };
        match entries.iter_mut().rev().find(|(other, _)| other.as_str() == Some(key)) {
            Some((_, old)) => *old = value,
            None => entries.push((Self::bare(key), value)),
        }
    }
}

/// Reads one document. One without any content is a null.
///
/// # Errors
/// What is wrong, with line and column.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    if let Some(mark) = odd_line_break(text) {
        let message = "it has a Unicode line break, which not every reader takes as one: write `\\u2028` or the like";
        return Err(SyntaxError::new(mark, message));
    }
    let mut root = yaml::parse(text, MAX_COPIES)?.unwrap_or_else(Node::null);
    settle(&mut root)?;
    let Some(written) = emit(&root) else {
        let message = "with its aliases written out it would be too large for a kubeconfig";
        return Err(SyntaxError::new(root.mark, message));
    };
    // Text alone, which is no kubeconfig to anybody, may be another text to another reader.
    let is_text = root.content.scalar().is_some();
    match difference(text, &written, &root) {
        Some(mark) if !is_text => Err(SyntaxError::new(mark, READ_OTHERWISE)),
        _ => Ok(root),
    }
}

/// What is said of a place that is not the same to all.
pub(super) const READ_OTHERWISE: &str = "not every reader understands this in the same way: write anchors with letters \
                                         and digits only, and quote values with unusual characters";

/// Finds where a reader that goes back to the same library as kubectl's, libyaml, would find another meaning in what is
/// written than in what was read. What it cannot read at all is no evidence: it takes fewer numbers, and no keys twice.
fn difference(text: &str, written: &str, root: &Node) -> Option<Mark> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let value: Value = serde_yaml::from_str(text).ok()?;
    match serde_yaml::from_str::<Value>(written) {
        Ok(other) if other == value => None,
        Ok(other) => Some(first_difference(&value, &other, root)),
        Err(_) => Some(root.mark),
    }
}

/// Finds the first part of a node that is the one to a reader in what was read, and another in what was written.
fn first_difference(read: &Value, written: &Value, node: &Node) -> Mark {
    match (read, written, &node.content) {
        (Value::Mapping(read), Value::Mapping(written), Content::Mapping(entries)) => {
            for ((read, written), (key, value)) in read.iter().zip(written).zip(entries) {
                if read.0 != written.0 {
                    return key.mark;
                }
                if read.1 != written.1 {
                    return first_difference(read.1, written.1, value);
                }
            }
            node.mark
        }
        (Value::Sequence(read), Value::Sequence(written), Content::Sequence(items)) => {
            let mut parts = read.iter().zip(written).zip(items);
            let differs = parts.find(|((read, written), _)| read != written);
            differs.map_or(node.mark, |((read, written), item)| first_difference(read, written, item))
        }
        (Value::Tagged(read), Value::Tagged(written), _) if read.tag == written.tag => {
            first_difference(&read.value, &written.value, node)
        }
        _ => node.mark,
    }
}

/// Finds a character that ends a line, and with it a comment, in YAML 1.1 only.
fn odd_line_break(text: &str) -> Option<Mark> {
    let at = text.find(['\u{85}', '\u{2028}', '\u{2029}'])?;
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Some(Mark { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 })
}

/// Makes every scalar one that can be written as it is, and makes sure that every key can.
fn settle(node: &mut Node) -> Result<(), SyntaxError> {
    match &mut node.content {
        // Nothing but a tag stays so.
        Content::Bare(text) if !text.is_empty() && !can_be_bare(text) => {
            node.content = Content::Text(std::mem::take(text))
        }
        Content::Bare(_) | Content::Text(_) => {}
        Content::Sequence(items) => items.iter_mut().try_for_each(settle)?,
        Content::Mapping(entries) => {
            for (key, value) in entries {
                settle(key)?;
                if key.as_mapping().is_some() || key.as_sequence().is_some() || written_len(key) > MAX_KEY_LEN {
                    return Err(SyntaxError::new(key.mark, "a key is not a short scalar"));
                }
                settle(value)?;
            }
        }
    }
    Ok(())
}

/// Writes a document in block style; `None` if it would be larger than what is read.
pub(super) fn emit(root: &Node) -> Option<String> {
    let mut out = String::new();
    if is_block(root) {
        emit_tag(&mut out, root, "\n");
        emit_block(&mut out, root, 0);
    } else {
        emit_inline(&mut out, root);
        out.push('\n');
    }
    (!is_too_large(&out)).then_some(out)
}

fn is_too_large(out: &str) -> bool {
    out.len() as u64 > MAX_LEN
}

/// Tells whether a node is written on lines of its own.
fn is_block(node: &Node) -> bool {
    match &node.content {
        Content::Mapping(entries) => !entries.is_empty(),
        Content::Sequence(items) => !items.is_empty(),
        Content::Bare(_) | Content::Text(_) => false,
    }
}

/// Writes a collection that is not empty, or leaves off when that is too large. The first line has been indented.
fn emit_block(out: &mut String, node: &Node, indent: usize) {
    match &node.content {
        Content::Mapping(entries) => {
            for (index, (key, value)) in entries.iter().enumerate() {
                if is_too_large(out) {
                    return;
                }
                if index > 0 {
                    push_indent(out, indent);
                }
                emit_inline(out, key);
                out.push(':');
                if is_block(value) {
                    if let Some(tag) = &value.tag {
                        out.push(' ');
                        out.push_str(tag);
                    }
                    out.push('\n');
                    // The dashes of a sequence need no indentation, unless its tag would be in doubt.
                    let inner = if value.as_sequence().is_some() && value.tag.is_none() { indent } else { indent + 2 };
                    push_indent(out, inner);
                    emit_block(out, value, inner);
                } else {
                    out.push(' ');
                    emit_inline(out, value);
                    out.push('\n');
                }
            }
        }
        Content::Sequence(items) => {
            for (index, item) in items.iter().enumerate() {
                if is_too_large(out) {
                    return;
                }
                if index > 0 {
                    push_indent(out, indent);
                }
                out.push_str("- ");
                if is_block(item) {
                    if item.tag.is_some() {
                        emit_tag(out, item, "\n");
                        push_indent(out, indent + 2);
                    }
                    emit_block(out, item, indent + 2);
                } else {
                    emit_inline(out, item);
                    out.push('\n');
                }
            }
        }
        Content::Bare(_) | Content::Text(_) => {}
    }
}

/// Writes a scalar or an empty collection.
fn emit_inline(out: &mut String, node: &Node) {
    emit_tag(out, node, " ");
    match &node.content {
        Content::Bare(text) => out.push_str(text),
        Content::Text(text) => emit_text(out, text),
        Content::Sequence(_) => out.push_str("[]"),
        Content::Mapping(_) => out.push_str("{}"),
    }
}

fn emit_tag(out: &mut String, node: &Node, end: &str) {
    if let Some(tag) = &node.tag {
        out.push_str(tag);
        out.push_str(end);
    }
}

/// Returns the length of a scalar as it is written, in bytes.
fn written_len(node: &Node) -> usize {
    let mut written = String::new();
    emit_inline(&mut written, node);
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

/// Tells whether a string can be written bare at any place of a document. One that cannot is a string to every
/// reader, so that it means the same in quotes.
fn can_be_bare(text: &str) -> bool {
    let is_plain = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    let starts_plainly = text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '/');
    let ends_plainly = !text.ends_with([':', ' ']) && !text.contains(": ") && !text.contains(" #");
    text.bytes().all(is_plain) && (starts_plainly && ends_plainly || is_ambiguous(text))
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

#[cfg(test)]
mod tests;
