//! YAML text as a tree of which every part knows its place in the text.
//!
//! A scalar is the text that was written, whatever YAML would take it for: a cluster may be named `8814e27`,
//! which is a number to most readers. What values mean is the business of whoever asks for them.
//!
//! Leaves out tags, of which a configuration file has no use, and comments.

use std::collections::BTreeMap;

use granit_parser::{Event, Parser, ScalarStyle, Span, options};

/// Most nodes that anchors and aliases may copy, against files that grow without end from a few lines.
const MAX_COPIES: usize = 10_000;

/// A place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    /// From 1.
    pub(super) line: usize,
    /// From 1, in characters.
    pub(super) column: usize,
}

/// A part of a document.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// Where it starts.
    pub(super) mark: Mark,
    pub(super) content: Content,
}

/// What a [`Node`] is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    /// Nothing at all, `~` or `null`.
    Null,
    /// A scalar, bare or quoted, as text.
    Scalar(String),
    /// A sequence.
    Sequence(Vec<Node>),
    /// A mapping, in its order; a key may be there twice, and may be anything.
    Mapping(Vec<(Node, Node)>),
}

/// Why a text cannot be read, and where.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SyntaxError {
    pub(super) mark: Mark,
    /// A fragment of a sentence.
    pub(super) message: String,
}

impl SyntaxError {
    fn new(mark: Mark, message: &str) -> Self {
        Self { mark, message: message.to_owned() }
    }
}

/// Reads one document. One without any content is [`Content::Null`].
///
/// # Errors
/// [`SyntaxError`] for what is not YAML, for tags, and for a second document.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options! { emit_comments: false }) {
        let (event, span) = event.map_err(|error| syntax_error(text, &error))?;
        builder.take(event, &span)?;
    }
    let nothing = Node { mark: Mark { line: 1, column: 1 }, content: Content::Null };
    Ok(builder.root.unwrap_or(nothing))
}

fn mark(span: &Span) -> Mark {
    Mark { line: span.start.line(), column: span.start.col() + 1 }
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
    /// The document, once it is whole.
    root: Option<Node>,
    /// Sequences and mappings that are not whole yet, the innermost last.
    open: Vec<Open>,
    /// Nodes that have a name.
    anchors: BTreeMap<usize, Node>,
    /// Nodes that have been copied for them.
    copies: usize,
}

/// A sequence, or a mapping with keys and values by turns.
struct Open {
    mark: Mark,
    anchor: usize,
    nodes: Vec<Node>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<(), SyntaxError> {
        let mark = mark(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_tag(tag.is_some(), span)?;
                let bare = style == ScalarStyle::Plain;
                let content = if bare && is_null(&text) { Content::Null } else { Content::Scalar(text.into_owned()) };
                self.add(Node { mark, content }, anchor);
            }
            Event::SequenceStart(_, anchor, tag) | Event::MappingStart(_, anchor, tag) => {
                refuse_tag(tag.is_some(), span)?;
                self.open.push(Open { mark, anchor, nodes: Vec::new() });
            }
            Event::SequenceEnd => self.close(Content::Sequence),
            Event::MappingEnd => self.close(|nodes| {
                let mut nodes = nodes.into_iter();
                Content::Mapping(std::iter::from_fn(|| nodes.next().zip(nodes.next())).collect())
            }),
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(SyntaxError::new(mark, "the alias is a part of what it stands for"));
                };
                self.copies += count(node);
                let content = node.content.clone();
                self.add(Node { mark, content }, 0);
            }
            Event::DocumentStart(..) if self.root.is_some() => {
                return Err(SyntaxError::new(mark, "a second document starts here, but a file has one"));
            }
            Event::DocumentStart(..) | Event::DocumentEnd | Event::StreamStart | Event::StreamEnd => {}
            // Not asked for.
            Event::Anchor(..) | Event::UnresolvedAlias(..) | Event::Comment(..) => {}
            _ => {}
        }
        if self.copies > MAX_COPIES {
            return Err(SyntaxError::new(mark, "the aliases stand for too much"));
        }
        Ok(())
    }

    fn close(&mut self, content: impl FnOnce(Vec<Node>) -> Content) {
        if let Some(Open { mark, anchor, nodes }) = self.open.pop() {
            self.add(Node { mark, content: content(nodes) }, anchor);
        }
    }

    /// Adds a node that is whole to what it belongs to.
    fn add(&mut self, node: Node, anchor: usize) {
        if anchor != 0 {
            self.copies += count(&node);
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            Some(parent) => parent.nodes.push(node),
            None => self.root = Some(node),
        }
    }
}

fn refuse_tag(tagged: bool, span: &Span) -> Result<(), SyntaxError> {
    if !tagged {
        return Ok(());
    }
    let start = span.tag_start.unwrap_or(span.start);
    let mark = Mark { line: start.line(), column: start.col() + 1 };
    Err(SyntaxError::new(mark, "there is a tag, which means nothing here: leave it out"))
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn count(node: &Node) -> usize {
    match &node.content {
        Content::Null | Content::Scalar(_) => 1,
        Content::Sequence(items) => 1 + items.iter().map(count).sum::<usize>(),
        Content::Mapping(entries) => 1 + entries.iter().map(|(key, value)| count(key) + count(value)).sum::<usize>(),
    }
}
