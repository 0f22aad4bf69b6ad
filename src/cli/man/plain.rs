//! A chapter as plain text, for any terminal.

use super::markdown::{Block, Span, Spans, blocks};
use crate::util::quote::command;

/// Longest line of text, in columns; code keeps its own lines.
const WIDTH: usize = 80;

/// How far what belongs to something is moved in.
const INDENT: &str = "    ";

/// Widest first column that has the second one beside it.
const NARROW: usize = 18;

pub(super) fn render(page: &str) -> String {
    let mut text = String::new();
    let mut after_item = false;
    for block in blocks(page) {
        let is_item = matches!(block, Block::Item(..));
        // Items of one list stand together.
        if !(text.is_empty() || is_item && after_item) {
            text.push('\n');
        }
        after_item = is_item;
        match block {
            Block::Heading(level, title) => {
                let title = words(&title);
                let rule = if level == 1 { "=" } else { "-" };
                text.push_str(&format!("{title}\n{}\n", rule.repeat(title.chars().count())));
            }
            Block::Paragraph(spans) => wrap(&mut text, "", "", &words(&spans)),
            Block::Item(mark, spans) => {
                let mark = format!("{mark} ");
                wrap(&mut text, &mark, &" ".repeat(mark.len()), &words(&spans));
            }
            Block::Code(lines) => {
                for line in lines {
                    text.push_str(format!("{INDENT}{line}").trim_end());
                    text.push('\n');
                }
            }
            Block::Table { head, rows } => table(&mut text, &head, &rows),
        }
    }
    text
}

/// Writes a table row by row: beside its first cell if all of these are narrow, else below it.
fn table(text: &mut String, head: &[Spans], rows: &[Vec<Spans>]) {
    let names: Vec<_> = rows.iter().map(|row| row.first().map(words).unwrap_or_default()).collect();
    let widest = names.iter().map(|name| name.chars().count()).max().unwrap_or_default();
    for (row, name) in rows.iter().zip(&names) {
        for (index, cell) in row.iter().enumerate().skip(1) {
            // Of several cells each says what it is.
            let label = if row.len() > 2 { format!("{}: ", words(&head[index])) } else { String::new() };
            let cell = format!("{label}{}", words(cell));
            if widest <= NARROW {
                let indent = " ".repeat(widest + 4);
                let first = if index == 1 { format!("  {name:widest$}  ") } else { indent.clone() };
                wrap(text, &first, &indent, &cell);
            } else {
                if index == 1 {
                    wrap(text, "  ", "  ", name);
                }
                wrap(text, &format!("  {INDENT}"), &format!("  {INDENT}"), &cell);
            }
        }
    }
}

fn words(spans: &Spans) -> String {
    spans
        .iter()
        .map(|span| match span {
            Span::Text(text) | Span::Strong(text) => text.clone(),
            // What is code by its looks needs no mark.
            Span::Code(code) if !code.contains(' ') && !code.bytes().all(|byte| byte.is_ascii_lowercase()) => {
                code.clone()
            }
            Span::Code(code) if code.contains('`') => format!("\"{code}\""),
            Span::Code(code) => format!("`{code}`"),
            Span::Chapter(text, chapter) => format!("{text} ({})", command!("`autoheal-pa man {}`", chapter)),
        })
        .collect()
}

/// Appends text in lines of at most [`WIDTH`], the first after `first`, the others after `rest`. A word that is longer has a
/// line of its own.
fn wrap(out: &mut String, first: &str, rest: &str, text: &str) {
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in text.split(' ') {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            out.push_str(line.trim_end());
            out.push('\n');
            rest.clone_into(&mut line);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_for_eighty_columns() {
        let page = "# Bastions: what they need\n\nWhatever `i-0` is, `aws ssm start-session` and a [policy](iam.md) have to do with it, \
                    on **one** line or more.\n\n- first item\n- second\n\n```console\n$ autoheal-pa up\n```\n\n## Codes\n\n\
                    | code | means |\n|---|---|\n| 0 | done |\n| 143 | ended by SIGTERM before the tunnels were ready, \
                    and that is a long line |\n\n| event | then |\n|---|---|\n| a first cell that is rather wide | it has \
                    a line of its own |\n\n| a | b | c |\n|---|---|---|\n| x | y | z |\n";
        let expected = "\
Bastions: what they need
========================

Whatever i-0 is, `aws ssm start-session` and a policy (`autoheal-pa man iam`)
have to do with it, on one line or more.

- first item
- second

    $ autoheal-pa up

Codes
-----

  0    done
  143  ended by SIGTERM before the tunnels were ready, and that is a long line

  a first cell that is rather wide
      it has a line of its own

  x  b: y
     c: z
";
        assert_eq!(render(page), expected);
    }
}
