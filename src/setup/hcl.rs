//! HCL, the language of Terraform, written as `terraform fmt` would leave it.
//!
//! Invariant: attributes of one line that follow each other have their signs in one column, and nothing else has.

use serde_json::Value as Json;

const INDENT: &str = "  ";

/// A block: its kind, its labels and what is in it.
pub(super) struct Block {
    kind: &'static str,
    labels: Vec<String>,
    body: Vec<Line>,
}

enum Line {
    Set(String, Value),
    Block(Block),
    Gap,
}

/// A value.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    /// An expression, as it is.
    Raw(String),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
    /// A value as JSON in a string.
    Encoded(Box<Self>),
}

impl Block {
    pub(super) fn new(kind: &'static str, labels: &[&str]) -> Self {
        Self { kind, labels: labels.iter().map(|label| (*label).to_owned()).collect(), body: Vec::new() }
    }

    pub(super) fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.body.push(Line::Set(name.to_owned(), value.into()));
        self
    }

    pub(super) fn set_some(self, name: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.set(name, value),
            None => self,
        }
    }

    /// Adds a block, with a line between it and what is before.
    pub(super) fn block(mut self, block: Self) -> Self {
        if !self.body.is_empty() {
            self.body.push(Line::Gap);
        }
        self.body.push(Line::Block(block));
        self
    }

    /// Adds an empty line.
    pub(super) fn gap(mut self) -> Self {
        self.body.push(Line::Gap);
        self
    }

    /// Writes it with a line break at the end.
    pub(super) fn write(&self, depth: usize, into: &mut String) {
        let indent = INDENT.repeat(depth);
        into.push_str(&indent);
        into.push_str(self.kind);
        for label in &self.labels {
            into.push(' ');
            into.push_str(&quoted(label));
        }
        into.push_str(" {\n");
        let mut run: Vec<(&str, String)> = Vec::new();
        for line in &self.body {
            match line {
                Line::Set(name, value) if value.is_long() => {
                    aligned(&mut run, depth + 1, into);
                    let text = value.write(depth + 1);
                    into.push_str(&format!("{indent}{INDENT}{name} = {text}\n"));
                }
                Line::Set(name, value) => run.push((name, value.write(depth + 1))),
                Line::Block(block) => {
                    aligned(&mut run, depth + 1, into);
                    block.write(depth + 1, into);
                }
                Line::Gap => {
                    aligned(&mut run, depth + 1, into);
                    into.push('\n');
                }
            }
        }
        aligned(&mut run, depth + 1, into);
        into.push_str(&format!("{indent}}}\n"));
    }
}

/// Writes attributes of one line each, and forgets them.
fn aligned(run: &mut Vec<(&str, String)>, depth: usize, into: &mut String) {
    let width = run.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    let indent = INDENT.repeat(depth);
    for (name, value) in run.drain(..) {
        into.push_str(&format!("{indent}{name:width$} = {value}\n"));
    }
}

impl Value {
    pub(super) fn raw(expression: impl Into<String>) -> Self {
        Self::Raw(expression.into())
    }

    /// A value of JSON, as text that holds it.
    pub(super) fn encoded(value: &Json) -> Self {
        Self::Encoded(Box::new(Self::of_json(value)))
    }

    fn of_json(value: &Json) -> Self {
        match value {
            Json::String(text) => Self::Text(text.clone()),
            Json::Array(items) => Self::List(items.iter().map(Self::of_json).collect()),
            Json::Object(fields) => {
                Self::Map(fields.iter().map(|(name, value)| (name.clone(), Self::of_json(value))).collect())
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => Self::Raw(value.to_string()),
        }
    }

    /// Whether it takes several lines.
    fn is_long(&self) -> bool {
        match self {
            Self::Text(_) | Self::Raw(_) => false,
            Self::List(items) => items.iter().any(Self::is_long),
            Self::Map(fields) => !fields.is_empty(),
            Self::Encoded(value) => value.is_long(),
        }
    }

    fn write(&self, depth: usize) -> String {
        let (outer, inner) = (INDENT.repeat(depth), INDENT.repeat(depth + 1));
        match self {
            Self::Text(text) => quoted(text),
            Self::Raw(text) => text.clone(),
            Self::Encoded(value) => format!("jsonencode({})", value.write(depth)),
            Self::List(items) if self.is_long() => {
                let items = items.iter().map(|item| format!("{inner}{},\n", item.write(depth + 1)));
                format!("[\n{}{outer}]", items.collect::<String>())
            }
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(|item| item.write(depth)).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Map(fields) if fields.is_empty() => "{}".to_owned(),
            Self::Map(fields) => {
                let mut text = "{\n".to_owned();
                let keys: Vec<String> = fields.iter().map(|(name, _)| key(name)).collect();
                let mut run = Vec::new();
                for (name, (_, value)) in keys.iter().zip(fields) {
                    if value.is_long() {
                        aligned(&mut run, depth + 1, &mut text);
                        text.push_str(&format!("{inner}{name} = {}\n", value.write(depth + 1)));
                    } else {
                        run.push((name, value.write(depth + 1)));
                    }
                }
                aligned(&mut run, depth + 1, &mut text);
                format!("{text}{outer}}}")
            }
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Raw(value.to_string())
    }
}

impl From<u16> for Value {
    fn from(value: u16) -> Self {
        Self::Raw(value.to_string())
    }
}

impl From<&[String]> for Value {
    fn from(items: &[String]) -> Self {
        Self::List(items.iter().map(Self::from).collect())
    }
}

impl From<Vec<Self>> for Value {
    fn from(items: Vec<Self>) -> Self {
        Self::List(items)
    }
}

/// Writes a key of a map: as a word, if it is one.
fn key(name: &str) -> String {
    let is_of_words = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let is_word = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(is_of_words);
    if is_word { name.to_owned() } else { quoted(name) }
}

/// Writes a string: quoted as in JSON, and what would start a template doubled.
pub(super) fn quoted(text: &str) -> String {
    Json::String(text.to_owned()).to_string().replace("${", "$${").replace("%{", "%%{")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn is_written_as_it_is_formatted() {
        let block = Block::new("resource", &["a", "b"])
            .set("name", "x ${y} %{z} \"q\"")
            .set("longer_name", &["one".to_owned(), "two".to_owned()][..])
            .set("tags", Value::Map(vec![("Name".to_owned(), "n".into()), ("autoheal-pa:x".to_owned(), "true".into())]))
            .set("on", true)
            .block(Block::new("inner", &[]).set("port", 443_u16))
            .gap()
            .set("policy", Value::encoded(&json!({ "A": [], "Statement": [{ "Sid": "S", "Action": ["a", "b"] }] })));
        let mut text = String::new();
        block.write(0, &mut text);
        assert_eq!(
            text,
            r#"resource "a" "b" {
  name        = "x $${y} %%{z} \"q\""
  longer_name = ["one", "two"]
  tags = {
    Name            = "n"
    "autoheal-pa:x" = "true"
  }
  on = true

  inner {
    port = 443
  }

  policy = jsonencode({
    A = []
    Statement = [
      {
        Action = ["a", "b"]
        Sid    = "S"
      },
    ]
  })
}
"#
        );
    }
}
