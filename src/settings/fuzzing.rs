//! What has to hold for any configuration file: the body of the fuzz target `config`.
//!
//! Built for the fuzzer and for unit tests only. Leaves out the reading of files.

use std::{fmt::Write, path::Path};

use super::{
    Environment, File, GlobalArgs, Layer, Origin, Place, Problem, SettingsError, Sources, UpSettings, row::Row, rows,
};

/// Longest line about a problem: no value is repeated at any length.
const MAX_LINE_LEN: usize = 2000;

/// Reads a file's text, and settings from that.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = Path::new("config.yaml");
    let mut problems = Vec::new();
    let file = match File::parse(path, text, &mut problems) {
        Ok(file) => file,
        Err(problem) => return assert_said_well(text, vec![problem.into()]),
    };
    for layer in std::iter::once(&file.top).chain(file.entries.iter().map(|entry| &entry.layer)) {
        for given in rows::all().into_iter().flat_map(|row| layer.get(row)) {
            let Origin::File(place, _) = &given.origin else { panic!("{:?} is not of the file", given.origin) };
            assert_within(text, place);
        }
    }
    // What is right can be written in another way, and is the same again.
    let rendered = rendered(&file);
    let mut none = Vec::new();
    let again = File::parse(path, &rendered, &mut none).expect("what is written can be read");
    assert!(none.is_empty(), "{none:?}\n{rendered}");
    assert!(values(&again) == values(&file), "{rendered}");

    let environment = Environment { home: Some("/home/alice".into()), ..Environment::default() };
    let sources = Sources { flags: Layer::default(), environment: Layer::default(), file };
    let settings = UpSettings::collect(&GlobalArgs::default(), &sources, &environment, &mut problems);
    if problems.is_empty() {
        assert!(settings.access.len() == sources.file.entries.len().max(1));
        assert!(settings.access.iter().all(|access| !access.bastion.is_empty()));
        assert!(settings.common.kubeconfig.is_absolute() || sources.stack().one(&super::UP.kubeconfig).is_some());
    }
    assert_said_well(text, problems);
}

/// Every sentence about a file is one line of bearable length, and names a place that there is.
fn assert_said_well(text: &str, problems: Vec<Problem>) {
    problems.iter().filter_map(Problem::place).for_each(|place| assert_within(text, place));
    let Err(error) = SettingsError::unless_empty(problems) else { return };
    let (said, count) = (error.to_string(), error.problems.len());
    assert_eq!(said.lines().count(), if count == 1 { 1 } else { count + 1 }, "{said}");
    assert!(said.lines().all(|line| line.len() <= MAX_LINE_LEN && !line.contains(char::is_control)), "{said}");
}

fn assert_within(text: &str, place: &Place) {
    // All that may end a line counts, so there are at least as many as the parser finds.
    let lines = text.split(['\n', '\r']).count();
    let longest = text.split(['\n', '\r']).map(|line| line.chars().count()).max().unwrap_or(0);
    assert!(place.line >= 1 && place.line <= lines, "{place}");
    assert!(place.column >= 1 && place.column <= longest + 1, "{place}");
}

/// What a file gives, without places.
fn values(file: &File) -> Vec<Vec<(&'static str, Vec<String>)>> {
    let layers = std::iter::once(&file.top).chain(file.entries.iter().map(|entry| &entry.layer));
    let of = |layer: &Layer| {
        let value =
            |row: &'static Row| (row.name, layer.get(row).iter().map(|given| given.text().into_owned()).collect());
        rows::all().into_iter().map(value).collect()
    };
    layers.map(of).collect()
}

/// Writes a file as JSON, which is YAML.
fn rendered(file: &File) -> String {
    let section = |values: &Vec<(&'static str, Vec<String>)>| {
        let given = values.iter().filter(|(_, values)| !values.is_empty());
        let pair = |(key, values): &(&'static str, Vec<String>)| match &values[..] {
            [value] => format!("{}: {}", quoted(key), quoted(value)),
            values => {
                let items: Vec<_> = values.iter().map(|value| quoted(value)).collect();
                format!("{}: [{}]", quoted(key), items.join(", "))
            }
        };
        given.map(pair).collect::<Vec<_>>()
    };
    let mut sections = values(file).iter().map(section).collect::<Vec<_>>().into_iter();
    let mut top = sections.next().unwrap_or_default();
    let entries: Vec<_> = sections.map(|entry| format!("{{{}}}", entry.join(", "))).collect();
    if !entries.is_empty() {
        top.push(format!("\"access\": [{}]", entries.join(", ")));
    }
    format!("{{{}}}", top.join(", "))
}

fn quoted(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            ' '..='~' => quoted.push(c),
            _ => write!(quoted, "\\U{:08x}", u32::from(c)).expect("a string takes everything"),
        }
    }
    quoted.push('"');
    quoted
}
