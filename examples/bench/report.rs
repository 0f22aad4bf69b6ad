//! Tables of figures, and of what they should be.

use std::fmt::Write as _;

use super::measure::median;

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes a second, shown in MB.
    Throughput,
    /// Seconds, shown in the unit that fits.
    Time,
    /// A second.
    Rate,
    /// Seconds of a processor for a GiB.
    Cost,
    /// Bytes, shown in MiB.
    Memory,
    /// Part of a processor.
    Share,
}

impl Unit {
    fn show(self, value: f64) -> String {
        if !value.is_finite() {
            // What took no time that could be measured is no measure of anything, nor is what did not get through.
            return "-".to_owned();
        }
        match self {
            Self::Throughput => format!("{} MB/s", digits(value / 1e6)),
            Self::Time if value < 1e-3 => format!("{} µs", digits(value * 1e6)),
            Self::Time if value < 1.0 => format!("{} ms", digits(value * 1e3)),
            Self::Time => format!("{} s", digits(value)),
            Self::Rate => format!("{value:.0} /s"),
            Self::Cost => format!("{} s/GiB", digits(value)),
            Self::Memory => format!("{} MiB", digits(value / f64::from(1 << 20))),
            Self::Share => format!("{} %", digits(value * 100.0)),
        }
    }
}

/// Three digits, or all before the point.
fn digits(value: f64) -> String {
    if !value.is_finite() {
        // What took no time that could be measured is no measure of anything.
        return "-".to_owned();
    }
    let decimals = match value.abs() {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

/// What a figure is compared with, measured in turn with it.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    /// What it is.
    pub(crate) what: String,
    /// The measured values, in the order of the runs.
    pub(crate) values: Vec<f64>,
}

/// One figure.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    /// What was measured, by which a target finds it.
    pub(crate) name: String,
    /// What it counts.
    pub(crate) unit: Unit,
    /// The measured values, in the order of the runs.
    pub(crate) values: Vec<f64>,
    /// What it is compared with. Targets are ratios to the first.
    pub(crate) references: Vec<Reference>,
}

impl Figure {
    /// A figure without values.
    pub(crate) fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self { name: name.into(), unit, values: Vec::new(), references: Vec::new() }
    }

    /// The same with something more to compare it with.
    pub(crate) fn against(mut self, what: impl Into<String>) -> Self {
        self.references.push(Reference { what: what.into(), values: Vec::new() });
        self
    }

    /// Takes the values of one run, one for each reference.
    pub(crate) fn push(&mut self, value: f64, references: &[f64]) {
        self.values.push(value);
        for (reference, value) in self.references.iter_mut().zip(references) {
            reference.values.push(*value);
        }
    }

    /// The median of the ratios of each run: what disturbs a run disturbs both sides of it.
    fn ratio(&self, reference: &Reference) -> f64 {
        let ratios: Vec<f64> = self.values.iter().zip(&reference.values).map(|(value, of)| value / of).collect();
        median(&ratios)
    }
}

/// How tables are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Columns of text.
    Text,
    /// A table of Markdown.
    Markdown,
}

/// The table of all figures. Each further reference of a figure has a line of its own.
pub(crate) fn table(figures: &[Figure], form: Form) -> String {
    let mut rows = Vec::new();
    for figure in figures {
        let shown = [figure.name.clone(), figure.unit.show(median(&figure.values))];
        let mut references = figure.references.iter().map(|reference| {
            let value = figure.unit.show(median(&reference.values));
            [reference.what.clone(), value, digits(figure.ratio(reference))]
        });
        let first = references.next().unwrap_or_default();
        rows.push(shown.into_iter().chain(first).collect());
        rows.extend(references.map(|further| <[String; 2]>::default().into_iter().chain(further).collect()));
    }
    render(["figure", "autoheal-pa", "reference", "there", "ratio"].map(str::to_owned).to_vec(), rows, form)
}

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
enum Goal {
    /// The ratio, at least.
    AtLeast(f64),
    /// The ratio, at most.
    Within(f64),
    /// The figure itself, less than so much in its unit.
    Under(f64),
}

/// Names of figures, what they are compared with, if that is not the first of their references, and what they should be.
const TARGETS: [(&str, &str, Goal); 29] = [
    ("download, 1 connection", "", Goal::AtLeast(0.7)),
    ("download, 1 connection", "least client", Goal::AtLeast(0.95)),
    ("upload, 1 connection", "", Goal::AtLeast(0.7)),
    ("upload, 1 connection", "least client", Goal::AtLeast(0.95)),
    ("request, p50", "", Goal::Within(1.3)),
    ("request, p50", "TCP by two relays", Goal::Within(1.12)),
    ("connect and first byte, p50", "TCP by two relays", Goal::Within(1.1)),
    ("request during a download, p99", "", Goal::Within(2.0)),
    ("request during a download, paced, p50", "", Goal::Within(3.0)),
    ("request during a download, paced, 2 sessions, p50", "", Goal::Within(3.0)),
    ("requests, 8 connections", "", Goal::AtLeast(0.7)),
    ("requests, 64 connections", "", Goal::AtLeast(0.7)),
    ("processor, download", "", Goal::Under(2.2)),
    ("processor, upload", "", Goal::Under(2.2)),
    ("download, paced, 8 connections, 4 sessions", "", Goal::AtLeast(3.6)),
    ("memory, 10 idle tunnels", "", Goal::Under(24.0 * 1_048_576.0)),
    ("ready, 50 clusters", "", Goal::Within(4.0)),
    ("scale, processor, idle, 2000 tunnels", "", Goal::Under(0.02)),
    ("ssh, download, 1 connection", "", Goal::AtLeast(0.9)),
    ("ssh, upload, 1 connection", "", Goal::AtLeast(0.9)),
    ("ssh, download, 8 connections", "", Goal::AtLeast(1.0)),
    ("ssh, upload, 8 connections", "", Goal::AtLeast(1.0)),
    ("ssh, request, p50", "", Goal::Within(1.1)),
    ("ssh, processor, download", "", Goal::Within(1.2)),
    ("ssh, processor, upload", "", Goal::Within(1.2)),
    ("ssh, request beside a program that has stopped to read, p99", "", Goal::Within(1.5)),
    ("ssh, connect and first byte beside a program that reads 1 MiB/s, p99", "", Goal::Within(1.5)),
    ("far, upload, 8 connections", "", Goal::AtLeast(0.8)),
    ("far, upload, 64 connections", "", Goal::AtLeast(0.8)),
];

/// The table of targets, as far as their figures were measured.
pub(crate) fn targets(figures: &[Figure], form: Form) -> String {
    let mut rows = Vec::new();
    for (name, against, goal) in TARGETS {
        let Some(figure) = figures.iter().find(|figure| figure.name == name) else { continue };
        let reference = figure.references.iter().find(|reference| against.is_empty() || reference.what == against);
        let ratio = reference.map_or(f64::NAN, |reference| figure.ratio(reference));
        let value = median(&figure.values);
        let (measured, target, met) = match goal {
            Goal::AtLeast(least) => (digits(ratio), format!("at least {least}"), ratio >= least),
            Goal::Within(most) => (digits(ratio), format!("at most {most}"), ratio <= most),
            Goal::Under(limit) => {
                (figure.unit.show(value), format!("under {}", figure.unit.show(limit)), value < limit)
            }
        };
        let name = if against.is_empty() { name.to_owned() } else { format!("{name}, of {against}") };
        rows.push(vec![name, measured, target, if met { "yes" } else { "no" }.to_owned()]);
    }
    if rows.is_empty() {
        return String::new();
    }
    let header = ["target", "measured", "wanted", "met"].map(str::to_owned).to_vec();
    format!("\n{}", render(header, rows, form))
}

/// Writes a table.
pub(crate) fn render(header: Vec<String>, rows: Vec<Vec<String>>, form: Form) -> String {
    let mut text = String::new();
    match form {
        Form::Markdown => {
            let rules = vec!["---".to_owned(); header.len()];
            for row in [header, rules].into_iter().chain(rows) {
                let _infallible = writeln!(text, "| {} |", row.join(" | "));
            }
        }
        Form::Text => {
            let all: Vec<_> = std::iter::once(header).chain(rows).collect();
            let columns = all.first().map_or(0, Vec::len);
            let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            let widths: Vec<_> = (0..columns).map(width).collect();
            for row in &all {
                let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
                let line = cells.collect::<Vec<_>>().join("  ");
                let _infallible = writeln!(text, "{}", line.trim_end());
            }
        }
    }
    text
}
