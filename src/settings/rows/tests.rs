//! Tests of what has to hold for every row, whoever adds one.

use super::*;
use crate::settings::{Environment, Kind, Origin, SettingsError, duration as durations, source::Given};

/// Texts of which every setting takes one.
const SAMPLES: [&str; 13] = [
    "us-east-1",
    "i-0abcdef1",
    "arn:aws:iam::123456789012:role/ReadOnly",
    "alice@example.com",
    "https://vpce-1.ssmmessages.us-east-1.vpce.amazonaws.com",
    "folder/file",
    "sg-0123456789abcdef0",
    "subnet-0123456789abcdef0",
    "db.internal:5432",
    "127.0.0.1:9464",
    "env:TOKEN",
    "us-east-1=payments",
    "auto",
];

/// Returns a value that a setting takes.
pub(crate) fn example(row: &Row) -> &'static str {
    let limit = match row.kind {
        Kind::Number { max, .. } => return max.to_string().leak(),
        Kind::Duration { max, .. } => Some(max),
        Kind::Switch => Some("true"),
        Kind::Path | Kind::Choice(_) | Kind::Text { .. } => row.default,
    };
    let mut candidates = limit.into_iter().chain(SAMPLES);
    candidates.find(|text| problem(row, text).is_none()).expect("one of the samples fits every setting")
}

fn problem(row: &Row, text: &str) -> Option<String> {
    let given = Given { origin: Origin::Flag(row.flag().into()), value: text.into() };
    let mut problems = Vec::new();
    let _value: Vec<String> = row.read(&[given], &Environment::default(), &mut problems);
    SettingsError::unless_empty(problems).err().map(|error| error.to_string())
}

#[test]
fn every_default_is_within_its_range() {
    for row in all() {
        if let Some(default) = row.default {
            assert_eq!(problem(row, default), None, "{}", row.name);
        }
        // What is done without a value would do as one, if it is a number or a duration.
        if let (Kind::Number { .. } | Kind::Duration { .. }, Some(word)) = (row.kind, row.otherwise)
            && word.starts_with(|c: char| c.is_ascii_digit())
        {
            assert_eq!(problem(row, word), None, "{}", row.name);
        }
    }
    let (up, aws) = (UpSettings::read(|_| &[], &Environment::default(), &mut Vec::new()), AwsSettings::default());
    assert_eq!((up.base_port, up.sessions, aws.duration), (10100, Sessions::Auto, None));
}

#[test]
fn every_name_is_there_once() {
    for name_of in [|row: &Row| row.name.to_owned(), Row::flag] {
        let mut names: Vec<_> = all().into_iter().map(name_of).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "{names:?}");
    }
    let mut variables: Vec<_> = all().into_iter().flat_map(|row| row.variables).collect();
    let count = variables.len();
    variables.sort();
    variables.dedup();
    assert_eq!(variables.len(), count, "{variables:?}");
}

#[test]
fn ranges_are_kept_at_both_ends() {
    for row in all() {
        match row.kind {
            Kind::Number { min, max, .. } => {
                assert_eq!((problem(row, &min.to_string()), problem(row, &max.to_string())), (None, None), "{row:?}");
                assert!(problem(row, &(max + 1).to_string()).is_some() && problem(row, "-1").is_some(), "{row:?}");
                assert!(min == 0 || problem(row, &(min - 1).to_string()).is_some(), "{row:?}");
            }
            Kind::Duration { min, max, or_zero } => {
                assert_eq!((problem(row, min), problem(row, max)), (None, None), "{row:?}");
                let past = durations::parse(max).unwrap() + Duration::from_millis(1);
                assert!(problem(row, &format!("{}ms", past.as_millis())).is_some(), "{row:?}");
                assert_eq!(problem(row, "0").is_none(), or_zero, "{row:?}");
            }
            Kind::Switch => assert!(problem(row, "yes").is_some()),
            Kind::Path | Kind::Choice(_) | Kind::Text { .. } => {}
        }
    }
}

#[test]
fn values_can_be_given_again() {
    let given = |row: &'static Row, text: &str| -> &'static [Given] {
        vec![Given { origin: Origin::Flag(row.flag().into()), value: text.into() }].leak()
    };
    let environment = Environment { current_dir: "/work".into(), ..Environment::default() };
    let mut problems = Vec::new();
    let first = UpSettings::read(|row| given(row, example(row)), &environment, &mut problems);
    let written = first.values();
    let again = |row: &'static Row| {
        let values = written.iter().find(|(other, _)| other.name == row.name).map(|(_, values)| values.clone());
        given(row, &values.unwrap()[0])
    };
    let second = UpSettings::read(again, &environment, &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(written.iter().map(|(_, values)| values.len()).min(), Some(1), "{written:?}");
    assert_eq!(second.values().into_iter().map(|(_, values)| values).collect::<Vec<_>>(), {
        written.iter().map(|(_, values)| values.clone()).collect::<Vec<_>>()
    });
}
