//! The chapters of the manual that are about no single command.

use clap_mangen::roff::{Inline, Roff, bold, roman};

use super::markdown::{Block, Span, Spans, blocks};

/// A chapter, as it is in the repository.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chapter {
    pub(super) name: &'static str,
    pub(super) page: &'static str,
}

pub(super) const CHAPTERS: &[Chapter] = &[
    Chapter { name: "operations", page: include_str!("../../manual/operations.md") },
    Chapter { name: "configuration", page: include_str!("../../manual/configuration.md") },
    Chapter { name: "iam", page: include_str!("../../manual/iam.md") },
    Chapter { name: "bastions", page: include_str!("../../manual/bastions.md") },
    Chapter { name: "aws", page: include_str!("../../manual/aws.md") },
    Chapter { name: "troubleshooting", page: include_str!("../../manual/troubleshooting.md") },
    Chapter { name: "changes", page: include_str!("../../manual/changes.md") },
];

impl Chapter {
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        CHAPTERS.iter().find(|chapter| chapter.name == name)
    }

    /// What the chapter is about: its title has the name, a colon and this.
    pub(super) fn about(&self) -> &'static str {
        let title = self.page.lines().next().unwrap_or_default();
        title.split_once(": ").map_or(title, |(_, about)| about)
    }

    /// The chapter as a manual page.
    pub(super) fn roff(&self, roff: &mut Roff) {
        roff.control("SH", ["NAME"]);
        roff.text([roman(format!("autoheal-pa-{} - {}", self.name, self.about()))]);
        roff.control("SH", ["DESCRIPTION"]);
        for block in blocks(self.page).into_iter().skip(1) {
            match block {
                Block::Heading(level, title) => {
                    let title: String = title.iter().map(word).collect();
                    // groff takes the rest of the line as more arguments.
                    roff.control(if level <= 2 { "SH" } else { "SS" }, [title.to_uppercase().as_str()]);
                }
                Block::Paragraph(spans) => {
                    roff.control("PP", []);
                    roff.text(inlines(&spans));
                }
                Block::Item(mark, spans) => {
                    let mark = if mark == "-" { "\\(bu" } else { mark.as_str() };
                    roff.control("IP", [mark, "3"]);
                    roff.text(inlines(&spans));
                }
                Block::Code(lines) => {
                    for control in ["PP", "RS", "nf"] {
                        roff.control(control, if control == "RS" { vec!["4"] } else { vec![] });
                    }
                    for line in lines {
                        roff.text([roman(line)]);
                    }
                    roff.control("fi", []);
                    roff.control("RE", []);
                }
                Block::Table { head, rows } => table(roff, &head, &rows),
            }
        }
    }
}

fn table(roff: &mut Roff, head: &[Spans], rows: &[Vec<Spans>]) {
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            match index {
                0 => {
                    roff.control("TP", []);
                }
                1 => {}
                _ => {
                    roff.control("br", []);
                }
            }
            let label = (index > 0 && row.len() > 2).then(|| head[index].iter().map(word).collect::<String>());
            let label = label.map(|label| roman(format!("{label}: ")));
            roff.text(label.into_iter().chain(inlines(cell)).collect::<Vec<_>>());
        }
    }
    roff.control("PP", []);
}

fn word(span: &Span) -> &str {
    match span {
        Span::Text(text) | Span::Code(text) | Span::Strong(text) | Span::Chapter(text, _) => text,
    }
}

fn inlines(spans: &Spans) -> Vec<Inline> {
    let mut inlines = Vec::new();
    for span in spans {
        match span {
            Span::Text(text) => inlines.push(roman(text.as_str())),
            Span::Code(text) | Span::Strong(text) => inlines.push(bold(text.as_str())),
            Span::Chapter(text, chapter) => {
                let page = format!("autoheal-pa-{chapter}");
                inlines.extend([roman(format!("{text} (")), bold(page), roman("(1))")]);
            }
        }
    }
    inlines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a heading can be linked by.
    fn anchors(page: &str) -> Vec<String> {
        let headings = blocks(page).into_iter().filter_map(|block| {
            let Block::Heading(_, title) = block else { return None };
            Some(title.iter().map(word).collect::<String>())
        });
        let anchor = |title: String| {
            let kept = title.to_lowercase().replace(' ', "-");
            kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
        };
        headings.map(anchor).collect()
    }

    #[test]
    fn every_chapter_is_written_in_what_is_read() {
        for Chapter { name, page } in CHAPTERS {
            let title = page.lines().next().unwrap();
            assert_eq!(title.to_lowercase().split(": ").next().unwrap(), format!("# {name}"), "{title}");
            for (number, block) in blocks(page).iter().enumerate() {
                let texts: Vec<&Spans> = match block {
                    Block::Heading(level, title) => {
                        assert!(*level <= 3 && (*level == 1) == (number == 0), "{name}: {title:?}");
                        vec![title]
                    }
                    Block::Paragraph(spans) | Block::Item(_, spans) => vec![spans],
                    Block::Code(lines) => {
                        assert!(lines.iter().all(|line| line.chars().count() <= 160), "{name}: {lines:?}");
                        vec![]
                    }
                    Block::Table { head, rows } => {
                        assert!(head.len() > 1 && rows.iter().all(|row| row.len() == head.len()), "{name}: {rows:?}");
                        rows.iter().flatten().chain(head).collect()
                    }
                };
                for span in texts.into_iter().flatten() {
                    if let Span::Chapter(text, chapter) = span {
                        assert!(Chapter::find(chapter).is_some(), "{name}: [{text}] leads to {chapter}");
                    }
                    let Span::Text(text) = span else { continue };
                    let left = ["**", "](", "`", "    ", "<", "\\"].iter().find(|mark| text.contains(**mark));
                    assert!(left.is_none(), "{name} has {left:?}, which nothing here reads: {text}");
                }
            }
        }
    }

    #[test]
    fn every_link_leads_somewhere() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manual");
        for Chapter { name, page } in CHAPTERS {
            for link in page.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
                let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
                let target = if path.is_empty() { format!("{name}.md") } else { path.to_owned() };
                if target.starts_with("https://") {
                    continue;
                }
                let path = folder.join(&target);
                assert!(path.exists(), "{name}: {link}");
                if !anchor.is_empty() {
                    let page = std::fs::read_to_string(path).unwrap();
                    assert!(anchors(&page).iter().any(|known| known == anchor), "{name}: {link} {:?}", anchors(&page));
                }
            }
        }
    }
}
