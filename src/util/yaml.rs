//! YAML text as a tree of which every part knows its place in the text: the only reader of YAML there is.
//!
//! A scalar is the text that was written, and whether it was bare, whatever a reader would take it for: to some `no`,
//! `0777` and `8814e27` are no strings. What values mean is the business of whoever asks for them.
//!
//! What is read is bounded: the parser lets collections nest 255 deep, and aliases stand for no more nodes than the
//! caller allows, and for no more text than [`MAX_COPIED_LEN`]. Comments are left out.

use std::{collections::BTreeMap, fmt};

use granit_parser::{Event, Parser, ScalarStyle, Span, Tag, options};

/// Where tags such as `!!str` belong.
const STANDARD_TAGS: &str = "tag:yaml.org,2002:";

/// Most text that anchors and aliases may copy, in bytes: as much as the largest file has that is read.
const MAX_COPIED_LEN: usize = 32 << 20;

/// A place in a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    /// From 1.
    pub(crate) line: usize,
    /// From 1, in characters.
    pub(crate) column: usize,
}

/// A part of a document. Two are the same if they say the same, wherever they stand.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Where it starts.
    pub(crate) mark: Mark,
    /// Its tag, if it has one, as it can be written in any document: `!!binary`, `!mine`, `!<tag:example.com,2026:x>`.
    pub(crate) tag: Option<String>,
    pub(crate) content: Content,
}

/// What a [`Node`] is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    /// A bare scalar: a word, a number, a Boolean, a null.
    Bare(String),
    /// A quoted scalar or a block of text: always a string, unless it has a tag.
    Text(String),
    Sequence(Vec<Node>),
    /// A mapping, in its order; a key may be there twice, and may be anything.
    Mapping(Vec<(Node, Node)>),
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        (&self.tag, &self.content) == (&other.tag, &other.content)
    }
}

impl Content {
    /// Returns the text of a scalar that is not null.
    pub(crate) fn scalar(&self) -> Option<&str> {
        match self {
            Self::Bare(text) if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL") => None,
            Self::Bare(text) | Self::Text(text) => Some(text),
            Self::Sequence(_) | Self::Mapping(_) => None,
        }
    }

    /// Tells whether this is nothing at all, `~` or `null`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(self, Self::Bare(_)) && self.scalar().is_none()
    }
}

/// Why a text cannot be read, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct SyntaxError {
    pub(crate) mark: Mark,
    /// A fragment of a sentence.
    pub(crate) message: String,
}

impl SyntaxError {
    pub(crate) fn new(mark: Mark, message: impl Into<String>) -> Self {
        Self { mark, message: message.into() }
    }
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.mark.line, self.mark.column, self.message)
    }
}

impl std::error::Error for SyntaxError {}

/// Reads one document; `None` if there is none. Further ones may only be empty. Anchors and aliases together may copy
/// `max_copies` nodes.
///
/// # Errors
/// [`SyntaxError`] for what is not YAML, for a second document, and for tags that could not be written again.
pub(crate) fn parse(text: &str, max_copies: usize) -> Result<Option<Node>, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder { max_copies, ..Builder::default() };
    // The last line of a block of text may lack its line break, which most readers do not invent.
    let options = options! { emit_comments: false, block_scalar_eof_without_line_feed: true };
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| syntax_error(text, &error))?;
        builder.take(event, &span)?;
    }
    Ok(builder.root)
}

/// Returns where a node starts: with its tag, if it has one.
fn mark(span: &Span) -> Mark {
    let start = span.tag_start.unwrap_or(span.start);
    Mark { line: start.line(), column: start.col() + 1 }
}

fn syntax_error(text: &str, error: &granit_parser::ScanError) -> SyntaxError {
    let mark = Mark { line: error.marker().line(), column: error.marker().col() + 1 };
    // Whatever the parser makes of a tab in the indentation, that is what is wrong. It may see it a line early.
    let lines = text.lines().enumerate().skip(mark.line.saturating_sub(1)).take(2);
    let mut tabs = lines.filter_map(|(index, line)| {
        let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
        Some(Mark { line: index + 1, column: line[..indent].find('\t')? + 1 })
    });
    match tabs.next() {
        Some(mark) => {
            SyntaxError::new(mark, "there is a tab in the indentation, which YAML does not allow: use spaces")
        }
        None => SyntaxError { mark, message: format!("it is not YAML: {}", error.info()) },
    }
}

/// Puts the parser's events together.
#[derive(Default)]
struct Builder {
    max_copies: usize,
    /// The document, once it is whole.
    root: Option<Node>,
    /// Sequences and mappings that are not whole yet, the innermost last.
    open: Vec<Open>,
    /// Nodes that have a name.
    anchors: BTreeMap<usize, Node>,
    /// What has been copied for them.
    copies: Size,
    /// Where a document began behind the first.
    second: Option<Mark>,
}

/// A sequence, or a mapping with keys and values by turns.
struct Open {
    mark: Mark,
    anchor: usize,
    tag: Option<String>,
    nodes: Vec<Node>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<(), SyntaxError> {
        let mark = mark(span);
        match event {
            // A document without anything.
            Event::Scalar(text, ScalarStyle::Plain, 0, None) if self.second.is_some() && text == "~" => {}
            Event::Scalar(text, style, anchor, tag) => {
                self.check_first()?;
                let tag = written_tag(tag.as_deref(), span)?;
                let text = text.into_owned();
                let content = if style == ScalarStyle::Plain { Content::Bare(text) } else { Content::Text(text) };
                self.add(Node { mark, tag, content }, anchor);
            }
            Event::SequenceStart(_, anchor, tag) | Event::MappingStart(_, anchor, tag) => {
                self.check_first()?;
                let tag = written_tag(tag.as_deref(), span)?;
                self.open.push(Open { mark, anchor, tag, nodes: Vec::new() });
            }
            Event::SequenceEnd => self.close(Content::Sequence),
            Event::MappingEnd => self.close(|nodes| {
                let mut nodes = nodes.into_iter();
                Content::Mapping(std::iter::from_fn(|| nodes.next().zip(nodes.next())).collect())
            }),
            Event::Alias(anchor) => {
                self.check_first()?;
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(SyntaxError::new(mark, "the alias is part of what it refers to"));
                };
                // First, as a copy may be too large already.
                self.copies.add(node);
                self.copies.check(self.max_copies, mark)?;
                let node = Node { mark, ..self.anchors[&anchor].clone() };
                self.add(node, 0);
            }
            Event::DocumentStart(..) if self.root.is_some() => self.second = self.second.or(Some(mark)),
            Event::DocumentStart(..) | Event::DocumentEnd | Event::StreamStart | Event::StreamEnd => {}
            // Not asked for.
            Event::Anchor(..) | Event::UnresolvedAlias(..) | Event::Comment(..) => {}
            _ => {}
        }
        self.copies.check(self.max_copies, mark)
    }

    /// Makes sure that what comes is of the first document.
    fn check_first(&self) -> Result<(), SyntaxError> {
        let message = "a second document starts here, but only one is allowed";
        self.second.map_or(Ok(()), |mark| Err(SyntaxError::new(mark, message)))
    }

    fn close(&mut self, content: impl FnOnce(Vec<Node>) -> Content) {
        if let Some(Open { mark, anchor, tag, nodes }) = self.open.pop() {
            self.add(Node { mark, tag, content: content(nodes) }, anchor);
        }
    }

    /// Adds a node that is whole to what it belongs to.
    fn add(&mut self, node: Node, anchor: usize) {
        if anchor != 0 {
            self.copies.add(&node);
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            Some(parent) => parent.nodes.push(node),
            None => self.root = Some(node),
        }
    }
}

/// Writes a tag as it means the same in any document, whatever `%TAG` said in that where it was found.
fn written_tag(tag: Option<&Tag>, span: &Span) -> Result<Option<String>, SyntaxError> {
    let Some(tag) = tag else { return Ok(None) };
    let name = format!("{}{}", tag.handle(), tag.suffix());
    let is_plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:,@+".contains(&byte));
    let is_word = |name: &str| !name.is_empty() && is_plain(name) && !name.contains(',');
    let written = match (name.strip_prefix(STANDARD_TAGS), name.strip_prefix('!')) {
        (Some(name), _) if is_word(name) => format!("!!{name}"),
        (_, Some(name)) if is_word(name) => format!("!{name}"),
        (None, None) if !name.is_empty() && is_plain(&name) => format!("!<{name}>"),
        _ => {
            return Err(SyntaxError::new(
                mark(span),
                "there is a tag that not every reader understands in the same way",
            ));
        }
    };
    Ok(Some(written))
}

/// How much there is: nodes, and text in them.
#[derive(Default)]
struct Size {
    nodes: usize,
    len: usize,
}

impl Size {
    fn add(&mut self, node: &Node) {
        self.nodes += 1;
        match &node.content {
            Content::Bare(text) | Content::Text(text) => self.len += text.len(),
            Content::Sequence(items) => items.iter().for_each(|item| self.add(item)),
            Content::Mapping(entries) => entries.iter().for_each(|(key, value)| {
                self.add(key);
                self.add(value);
            }),
        }
    }

    fn check(&self, max_nodes: usize, mark: Mark) -> Result<(), SyntaxError> {
        if self.nodes > max_nodes || self.len > MAX_COPIED_LEN {
            return Err(SyntaxError::new(mark, "the aliases expand to too much"));
        }
        Ok(())
    }
}
