//! Tests of what a file's form may be, and of what is said of every other.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;
use crate::settings::{ACCESS, AWS, GlobalArgs, SettingsError, UP, UpArgs, UpSettings, flags::typed, source::Given};

fn parse(text: &str) -> Result<File, String> {
    let mut problems = Vec::new();
    let file = File::parse(Path::new("config.yaml"), text, &mut problems).map_err(|problem| problem.to_string())?;
    SettingsError::unless_empty(problems).map_err(|error| error.to_string())?;
    Ok(file)
}

/// The values of a setting, with their places.
fn values(layer: &Layer, setting: &Row) -> Vec<(String, usize, usize)> {
    let value = |given: &Given| match &given.origin {
        Origin::File(Place { line, column, .. }, key) if *key == setting.name => {
            (given.text().into_owned(), *line, *column)
        }
        other @ (Origin::Flag(_) | Origin::Variable(_) | Origin::File(..)) => panic!("{other}"),
    };
    layer.get(setting).iter().map(value).collect()
}

#[test]
fn reads_values_as_they_are_written_and_where() {
    let file = parse(
        "# A comment.\n\
         base_port: 0x10\n\
         'strict_ports': true\n\
         duration: \"1h\"\n\
         reason: >-\n  two\n  lines\n\
         access:\n\
         - bastion: [ i-1, 'i-2' ]   # two\n  \
           region: &here ä-1\n  \
           clusters:\n  - 8814e27\n  - no\n  - 0777\n\
         - region: *here\n  bastion: i-1\n",
    )
    .unwrap();
    let one = |text: &str, line, column| vec![(text.to_owned(), line, column)];
    assert_eq!(values(&file.top, &UP.base_port), one("0x10", 2, 12));
    assert_eq!(values(&file.top, &UP.strict_ports), one("true", 3, 17));
    assert_eq!(values(&file.top, &AWS.duration), one("1h", 4, 11));
    assert_eq!(values(&file.top, &ACCESS.reason), one("two lines", 6, 3));
    let [first, second] = &file.entries[..] else { panic!("{file:?}") };
    assert_eq!((first.place.line, first.place.column), (9, 3));
    assert_eq!(values(&first.layer, &ACCESS.bastion), [("i-1".into(), 9, 14), ("i-2".into(), 9, 19)]);
    assert_eq!(values(&first.layer, &AWS.region), one("ä-1", 10, 17));
    let clusters = values(&first.layer, &ACCESS.clusters);
    assert_eq!(clusters, [("8814e27".into(), 12, 5), ("no".into(), 13, 5), ("0777".into(), 14, 5)]);
    assert_eq!(values(&second.layer, &AWS.region), one("ä-1", 15, 11));
    assert_eq!(values(&second.layer, &ACCESS.bastion), one("i-1", 16, 12));
}

#[test]
fn every_setting_is_a_key() {
    for setting in rows::all() {
        let value = if matches!(setting.kind, Kind::Switch) { "true" } else { "x" };
        let file = parse(&format!("{}: {value}", setting.name)).unwrap();
        assert_eq!(file.top.get(setting).len(), 1);
        let entry = parse(&format!("access: [{{{}: {value}}}]", setting.name));
        assert_eq!(entry.is_ok(), setting.in_entry, "{entry:?}");
    }
}

#[test]
fn an_empty_file_gives_nothing() {
    for text in ["", "\n", "# nothing\n", "---\n", "\u{feff}", "~", "--- # nothing\n...\n"] {
        assert_eq!(parse(text), Ok(File::default()), "{text:?}");
    }
    for text in ["\u{feff}region: a-1", "---\nregion: a-1\n...\n", "{\"region\": \"a-1\"}", "region: a-1\r\n"] {
        assert_eq!(parse(text).unwrap().top.get(&AWS.region)[0].text(), "a-1", "{text:?}");
    }
}

/// Files that are wrong, each in its own way.
const WRONG: &[&str] = &[
    "rol_arn: x",
    "role-arn: x",
    "Region: x",
    "cluster: x",
    "color: red",
    "name: x\nconfig: y\nlog-format: json\n--verbose: 1",
    "<<: {region: a-1}",
    "? [a, b]\n: c",
    "? - a\n: b\n~: c\n\"new\\nline\": d",
    "access:\n- colour: red\n- base_port: 1\n  access: []",
    "region: a-1\nprofile: x\nregion: a-1",
    "access:\n- {region: a-1, region: b-1}",
    "region:\nclusters: []\nbastion: ~\naccess:",
    "access: []",
    "base_port: [1]\nregion: {a: b}\nstrict_ports: {}\nclusters: {a: b}",
    "clusters: [a, [b], {c: d}, ~]",
    "access: us-east-1",
    "access: {region: us-east-1}",
    "access:\n- us-east-1\n-\n- [region]",
    "- region: us-east-1",
    "region us-east-1",
    "region: us-east-1\n\tprofile: x",
    "access:\n\t- region: us-east-1",
    "region: [a, b",
    "region: \"a",
    "region: a-1\n---\nregion: b-1",
    "region: !!str a-1",
    "region: !mine a-1",
    "region: *nowhere",
    "clusters: &a [x, *a]",
    "@region: a",
    "region: a: b",
];

#[test]
fn says_what_is_wrong_and_where() {
    let mut said = String::new();
    for text in WRONG {
        let error = parse(text).expect_err(text);
        writeln!(said, "{}\n=> {error}\n", text.replace('\t', "<tab>")).unwrap();
    }
    insta::assert_snapshot!(said.trim_end());
}

/// A file whose form is right and whose values are not.
const WRONG_VALUES: &str = "\
region: US East
duration: 13h
base_port: 65536
context_prefix: a b
timeout: 60
probe_interval: 1ms
reconnect_timeout: 2h
sessions: 0
set_current: yes
web_identity_token_file: token
access:
- role_session_name: ' '
  bastion: [i-0abcdef1, bastion, \"\\e[31m\"]
- region: us-east-1
  profile: ''
  bastion: i-0abcdef1
  duration: 1h
- region: eu-west-1
  clusters: [a b, \"a\\nb\"]
  role_arn: ReadOnly
  reason: ''
- region: us-east-1
  profile: ''
  bastion: i-0abcdef1
  clusters: [payments]
";

/// A folder with a configuration file.
fn folder(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.yaml"), text).unwrap();
    dir
}

/// What a file makes of the settings of `up`.
fn up(text: &str, flags: &GlobalArgs, variables: &[(&str, &str)]) -> Result<UpSettings, String> {
    let dir = folder(text);
    let environment =
        Environment { current_dir: dir.path().into(), home: Some("/home/alice".into()), ..Default::default() };
    let flags = GlobalArgs { config: Some("config.yaml".into()), ..flags.clone() };
    let environment = environment.with(variables.iter().copied());
    UpSettings::load(&flags, &UpArgs::default(), &environment).map_err(|error| error.to_string())
}

#[test]
fn says_which_values_are_wrong_and_where() {
    let flags = GlobalArgs { name: Some("/".into()), ..typed(&["--profile", "dev"]) };
    insta::assert_snapshot!(up(WRONG_VALUES, &flags, &[]).unwrap_err());
}

#[test]
fn says_what_contradicts_itself() {
    let mut said = String::new();
    for text in [
        "web_identity_token_file: token\nrole_session_name: x\nbastion: i-0abcdef1",
        "base_port: 65530\nbastion: i-0abcdef1\nclusters: [a, b, c, d, e, f, g]",
        "bastion: i-0abcdef1\naccess:\n- {region: a-1}\n- {region: a-1}",
        "bastion: i-0abcdef1\naccess:\n- {region: a-1, clusters: [x, y]}\n- {region: b-1}\n- {region: a-1, clusters: [z, y]}",
        "access:\n- {region: a-1, bastion: i-0abcdef1}\n- {region: b-1}",
        "base_port: 65535\nbastion: i-0abcdef1\naccess:\n- {region: a-1, clusters: [x]}\n- {region: b-1}",
        "region: a-1",
    ] {
        let error = up(text, &GlobalArgs::default(), &[]).expect_err(text);
        writeln!(said, "{text}\n=> {error}\n").unwrap();
    }
    insta::assert_snapshot!(said.trim_end());
    for right in [
        "base_port: 65530\nbastion: i-0abcdef1\nclusters: [a, b, c, d, e, f]",
        "base_port: 0\nbastion: i-0abcdef1\nclusters: [a, b, c, d, e, f]",
        "bastion: i-0abcdef1\naccess:\n- {region: a-1, clusters: [x]}\n- {region: a-1, clusters: [y]}",
        "bastion: i-0abcdef1\naccess:\n- {region: a-1, profile: x}\n- {region: a-1, profile: y}",
        "bastion: i-0abcdef1\nweb_identity_token_file: t\naccess:\n- {region: a-1, role_arn: 'arn:aws:iam::123456789012:role/x'}\n- {region: b-1}",
    ] {
        up(right, &GlobalArgs::default(), &[]).expect(right);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_the_only_problem() {
    let dir = tempfile::tempdir().unwrap();
    let environment = Environment { current_dir: dir.path().into(), ..Default::default() };
    fs::write(dir.path().join("latin"), b"reason: \xe4").unwrap();
    fs::write(dir.path().join("large"), vec![b'#'; 1 << 20 | 1]).unwrap();
    fs::write(dir.path().join("just"), vec![b'#'; 1 << 20]).unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("pipe"), rustix::fs::Mode::RWXU).unwrap();
    let load = |name: &str| File::load(Some(Path::new(name)), &environment, &mut Vec::new());
    for (name, expected) in [
        ("latin", "`latin` is not a configuration file: it is not UTF-8"),
        ("large", "`large` is not a configuration file: it has more than 1 MiB"),
        ("folder", "`folder` is not a configuration file: it is not a regular file"),
        ("pipe", "`pipe` is not a configuration file: it is not a regular file"),
        ("missing", "cannot read the configuration file `missing`"),
        ("latin/x", "cannot read the configuration file `latin/x`"),
        ("", "`` is not a configuration file: it is not a regular file"),
    ] {
        assert_eq!(load(name).unwrap_err().to_string(), expected);
    }
    let File { path, top, entries } = load("just").unwrap();
    assert!(path.is_some_and(|path| path.is_absolute() && path.ends_with("just")));
    assert_eq!(File { path: None, top, entries }, File::default());
    assert_eq!(load("/dev/null").unwrap(), File::default());
    let error = up("region: [", &GlobalArgs::default(), &[("AWS_REGION", "nowhere")]).unwrap_err();
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn the_default_file_may_be_missing_but_not_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let environment = Environment { home: Some(dir.path().into()), ..Default::default() };
    let load = |environment: &Environment| File::load(None, environment, &mut Vec::new());
    assert_eq!(load(&environment).unwrap(), File::default());
    assert_eq!(load(&Environment::default()).unwrap(), File::default());
    let folder = dir.path().join(".config/autoheal-pa");
    fs::create_dir_all(&folder).unwrap();
    assert_eq!(load(&environment).unwrap(), File::default());
    fs::write(folder.join("config.yaml"), "region: a-1").unwrap();
    assert_eq!(load(&environment).unwrap().top.get(&AWS.region).len(), 1);
    let elsewhere = environment.clone().with([("XDG_CONFIG_HOME", "/does/not/exist")]);
    assert_eq!(load(&elsewhere).unwrap(), File::default());
    let relative = environment.clone().with([("XDG_CONFIG_HOME", "does/not/exist")]);
    assert_eq!(load(&relative).unwrap().top.get(&AWS.region).len(), 1);
    fs::write(folder.join("config.yaml"), "region: [").unwrap();
    assert!(load(&environment).is_err());
}

#[test]
fn problems_and_aliases_have_an_end() {
    let many: String = (0..1000).map(|n| format!("key{n}: x\n")).collect();
    assert_eq!(parse(&many).unwrap_err().lines().count(), MAX_PROBLEMS + 1);
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
        writeln!(bomb, "a{level}: &a{level} [{aliases}]").unwrap();
    }
    let list = |count| format!("clusters: [{}]", vec!["a"; count].join(", "));
    assert!(parse(&list(200)).is_ok());
    assert_eq!(parse(&list(201)).unwrap_err(), "config.yaml:1:11: `clusters` has 201 items, but takes 200 at most");
    assert!(parse(&format!("access: [{}]", vec!["{region: a-1}"; 201].join(", "))).is_err());
    assert!(parse(&bomb).unwrap_err().contains("the aliases expand to too much"));
    assert!(parse(&"[".repeat(100_000)).is_err());
    assert!(parse(&"{a: ".repeat(100_000)).is_err());
    let long = parse(&format!("region: {}", "x".repeat(100_000)));
    assert!(long.is_ok());
    let shown = parse(&"x".repeat(100_000)).unwrap_err();
    assert!(shown.len() < 300, "{shown}");
}

/// A scalar as somebody may write it.
fn written(text: &str, style: u8) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_/.".contains(c))
        && text != "null";
    match style {
        0 if is_plain => text.to_owned(),
        1 if !text.contains(['\n', '\r', '\t', '\0']) && !text.chars().any(char::is_control) => {
            format!("'{}'", text.replace('\'', "''"))
        }
        _ => serde_json::to_string(text).unwrap().replace('\u{7f}', "\\u007f"),
    }
}

/// A section: settings, their values, and how each is written.
type Section = Vec<(&'static Row, Vec<(String, u8)>)>;

fn sections(in_entry: bool) -> impl Strategy<Value = Section> {
    let text = prop_oneof!["[a-z0-9][a-z0-9/._-]{0,12}", "[^\\p{C}\u{2028}\u{2029}]{1,12}", Just("null".to_owned())];
    let values = proptest::collection::vec((text, 0..3u8), 1..4);
    let settings: Vec<_> = rows::all().into_iter().filter(|setting| setting.in_entry || !in_entry).collect();
    let one = (proptest::sample::select(settings), values);
    proptest::collection::vec(one, 1..6).prop_map(|mut section| {
        section.sort_by_key(|(setting, _)| setting.name);
        section.dedup_by_key(|(setting, _)| setting.name);
        for (setting, values) in &mut section {
            if !setting.is_list {
                values.truncate(1);
            }
        }
        section
    })
}

/// Writes a section, and says where each value starts.
fn write(out: &mut String, section: &Section, dash: bool) -> Vec<(String, usize, usize)> {
    let mut places = Vec::new();
    let mut put = |out: &mut String, value: &(String, u8)| {
        let line = out.matches('\n').count() + 1;
        let column = out.chars().rev().take_while(|c| *c != '\n').count() + 1;
        out.push_str(&written(&value.0, value.1));
        places.push((value.0.clone(), line, column));
    };
    for (index, (setting, values)) in section.iter().enumerate() {
        out.push_str(if !dash {
            ""
        } else if index == 0 {
            "  - "
        } else {
            "    "
        });
        out.push_str(setting.name);
        out.push(':');
        match &values[..] {
            [value] => {
                out.push(' ');
                put(out, value);
            }
            // In flow style or in block style.
            [first, ..] if first.1 == 0 => {
                out.push_str(" [");
                for value in values {
                    put(out, value);
                    out.push_str(" , ");
                }
                out.push_str("] # ü");
            }
            _ => {
                for value in values {
                    out.push_str("\n      - ");
                    put(out, value);
                }
            }
        }
        out.push('\n');
    }
    places
}

proptest! {
    #[test]
    fn what_is_written_is_read_and_found(top in sections(false), entries in proptest::collection::vec(sections(true), 0..4)) {
        let mut text = "# A file.\n".to_owned();
        let mut expected = vec![write(&mut text, &top, false)];
        if !entries.is_empty() {
            text.push_str("access:\n");
        }
        expected.extend(entries.iter().map(|entry| write(&mut text, entry, true)));
        let file = parse(&text).map_err(|error| TestCaseError::fail(format!("{text}\n{error}")))?;
        let layers = std::iter::once(&file.top).chain(file.entries.iter().map(|entry| &entry.layer));
        let sections = std::iter::once(&top).chain(&entries);
        let read: Vec<_> = layers
            .zip(sections)
            .map(|(layer, section)| section.iter().flat_map(|(setting, _)| values(layer, setting)).collect::<Vec<_>>())
            .collect();
        prop_assert_eq!(read, expected, "{}", text);
    }

    #[test]
    fn never_panics(text in "([a-c0-9:{}\\[\\],&*!'\"|>#%@?\\n\\t -]|region: |access:\\n|- ){0,60}") {
        let _outcome = parse(&text);
    }
}
