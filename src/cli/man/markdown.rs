//! The little of Markdown that the chapters of the manual are written in.
//!
//! Headings, paragraphs, items of one level, fenced code, tables, code spans, bold words and links. A test holds the chapters
//! to it: what is not known here would be shown as it is written.

/// One piece of a chapter, from the top to the bottom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Block {
    Heading(usize, Spans),
    Paragraph(Spans),
    /// The mark, `-` or a number, and what follows it.
    Item(String, Spans),
    Code(Vec<String>),
    Table {
        head: Vec<Spans>,
        rows: Vec<Vec<Spans>>,
    },
}

/// A line of text, however long.
pub(super) type Spans = Vec<Span>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Span {
    Text(String),
    Code(String),
    Strong(String),
    /// The text, and the chapter that it leads to.
    Chapter(String, String),
}

pub(super) fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim().is_empty() {
            continue;
        }
        if line.starts_with("```") {
            blocks.push(Block::Code(lines.by_ref().take_while(|line| *line != "```").map(str::to_owned).collect()));
            continue;
        }
        if let Some(level) = heading_level(line) {
            blocks.push(Block::Heading(level, spans(line[level..].trim())));
            continue;
        }
        if line.starts_with('|') {
            let mut table = vec![line];
            while let Some(line) = lines.next_if(|line| line.starts_with('|')) {
                table.push(line);
            }
            // The second line only says that this is a table.
            let mut rows = table.iter().enumerate().filter(|(index, _)| *index != 1).map(|(_, row)| cells(row));
            blocks.push(Block::Table { head: rows.next().unwrap_or_default(), rows: rows.collect() });
            continue;
        }
        let (mark, first) = item_mark(line).map_or((None, line), |(mark, rest)| (Some(mark), rest));
        let mut text = first.trim().to_owned();
        let goes_on = |line: &&str| !(line.trim().is_empty() || starts_block(line));
        while let Some(line) = lines.next_if(goes_on) {
            text.push(' ');
            text.push_str(line.trim());
        }
        blocks.push(match mark {
            Some(mark) => Block::Item(mark.to_owned(), spans(&text)),
            None => Block::Paragraph(spans(&text)),
        });
    }
    blocks
}

fn starts_block(line: &str) -> bool {
    line.starts_with("```") || line.starts_with('|') || heading_level(line).is_some() || item_mark(line).is_some()
}

fn heading_level(line: &str) -> Option<usize> {
    let level = line.bytes().take_while(|byte| *byte == b'#').count();
    (level > 0 && line[level..].starts_with(' ')).then_some(level)
}

/// The mark of an item, and the rest of its line.
fn item_mark(line: &str) -> Option<(&str, &str)> {
    let (mark, rest) = line.split_once(' ')?;
    let is_number = mark.strip_suffix('.').is_some_and(|number| number.parse::<u8>().is_ok());
    (mark == "-" || is_number).then_some((mark, rest))
}

fn cells(row: &str) -> Vec<Spans> {
    // A bar within a cell has a backslash before it.
    let row = row.trim().trim_start_matches('|').trim_end_matches('|').replace("\\|", "\0");
    row.split('|').map(|cell| spans(&cell.trim().replace('\0', "|"))).collect()
}

/// Reads what is within a line.
pub(super) fn spans(mut text: &str) -> Spans {
    let mut spans = Vec::new();
    let mut plain = String::new();
    let mut push = |plain: &mut String, span| {
        if !plain.is_empty() {
            spans.push(Span::Text(std::mem::take(plain)));
        }
        spans.extend(span);
    };
    while let Some(first) = text.chars().next() {
        if let Some((code, rest)) = code_span(text) {
            push(&mut plain, Some(Span::Code(code.to_owned())));
            text = rest;
        } else if let Some((strong, rest)) = text.strip_prefix("**").and_then(|rest| rest.split_once("**")) {
            push(&mut plain, Some(Span::Strong(strong.to_owned())));
            text = rest;
        } else if let Some((label, target, rest)) = link(text) {
            match target.split('#').next().and_then(|path| path.strip_suffix(".md")).filter(|name| !name.contains('/'))
            {
                Some(chapter) => push(&mut plain, Some(Span::Chapter(label.to_owned(), chapter.to_owned()))),
                None => plain.push_str(label.trim_matches('`')),
            }
            text = rest;
        } else {
            plain.push(first);
            text = &text[first.len_utf8()..];
        }
    }
    push(&mut plain, None);
    spans
}

/// Code between backticks, as many after it as before it.
fn code_span(text: &str) -> Option<(&str, &str)> {
    let count = text.bytes().take_while(|byte| *byte == b'`').count();
    let (code, rest) = text[count..].split_once(text.get(..count).filter(|mark| !mark.is_empty())?)?;
    let padded = code.strip_prefix(' ').and_then(|code| code.strip_suffix(' '));
    Some((padded.unwrap_or(code), rest))
}

fn link(text: &str) -> Option<(&str, &str, &str)> {
    let (label, rest) = text.strip_prefix('[')?.split_once("](")?;
    let (target, rest) = rest.split_once(')')?;
    (!label.contains(['[', ']'])).then_some((label, target, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Span {
        Span::Text(text.to_owned())
    }

    #[test]
    fn reads_every_kind_of_block() {
        let page = "# Title: words\n\nOne\ntwo.\n- an item\n  goes on\n- another\n\n1. a step\n\n```console\n$ a | b\n\n# c\n```\n\
                    | a | b |\n|---|---|\n| `x\\|y` | z |\n";
        let code = ["$ a | b", "", "# c"].map(str::to_owned).into();
        let expected = vec![
            Block::Heading(1, vec![text("Title: words")]),
            Block::Paragraph(vec![text("One two.")]),
            Block::Item("-".to_owned(), vec![text("an item goes on")]),
            Block::Item("-".to_owned(), vec![text("another")]),
            Block::Item("1.".to_owned(), vec![text("a step")]),
            Block::Code(code),
            Block::Table {
                head: vec![vec![text("a")], vec![text("b")]],
                rows: vec![vec![vec![Span::Code("x|y".to_owned())], vec![text("z")]]],
            },
        ];
        assert_eq!(blocks(page), expected);
    }

    #[test]
    fn reads_what_is_within_a_line() {
        let found =
            spans("a `b` and ``target `i-…` is`` **not** in [c d](iam.md#x), [`e`](../../examples) or [f](#g) [h]");
        let expected = vec![
            text("a "),
            Span::Code("b".to_owned()),
            text(" and "),
            Span::Code("target `i-…` is".to_owned()),
            text(" "),
            Span::Strong("not".to_owned()),
            text(" in "),
            Span::Chapter("c d".to_owned(), "iam".to_owned()),
            text(", e or f [h]"),
        ];
        assert_eq!(found, expected);
        assert_eq!(spans("a ` b"), [text("a ` b")]);
        assert_eq!(spans("`` `a` ``"), [Span::Code("`a`".to_owned())]);
    }
}
