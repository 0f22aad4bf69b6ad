//! What is kept, to the letter, and what is refused.

use proptest::prelude::*;

use super::*;

/// Words that kubectl does not take for strings when they are bare, and some that it does.
const AWKWARD: [&str; 16] = [
    "no",
    "on",
    "y",
    "true",
    "null",
    "~",
    "123",
    "0777",
    "1e3",
    "0x10",
    "1_000",
    "12:30",
    "2001-12-14",
    "=",
    "<<",
    ".inf",
];

fn emit(root: &Node) -> String {
    super::emit(root).unwrap()
}

fn again(text: &str) -> String {
    emit(&parse(text).unwrap())
}

#[test]
fn quotes_strings_and_nothing_else() {
    for word in AWKWARD {
        let root = Node::mapping([("name", Node::text(word))]);
        assert_eq!(emit(&root), format!("name: \"{word}\"\n"));
        assert_eq!(again(&emit(&root)), emit(&root));
    }
}

#[test]
fn what_was_bare_stays_bare() {
    for word in [
        "no",
        "on",
        "y",
        "Yes",
        "OFF",
        "true",
        "123",
        "0777",
        "1_000",
        "12:30",
        "2001-12-14",
        "=",
        "x y",
        "a#b",
        "it's",
        "a\"b\"",
    ] {
        let text = format!("a: {word}\nb:\n- {word}\nc:\n  {word}: 1\n");
        assert_eq!(again(&text), text);
        assert_eq!(again(&format!("{{a: {word}, b: [{word}], c: {{{word}: 1}}}}")), text, "{word}");
    }
    assert_eq!(again("a: 0x10\nb: ~\nc:\nd: 1.10\ne: -.INF\n"), "a: 0x10\nb: ~\nc: ~\nd: 1.10\ne: -.INF\n");
}

#[test]
fn what_was_quoted_stays_quoted() {
    for word in AWKWARD {
        let expected = format!("a: \"{word}\"\nb:\n- \"{word}\"\n");
        assert_eq!(again(&expected), expected);
        assert_eq!(again(&format!("a: '{word}'\nb: ['{word}']")), expected);
        assert_eq!(
            again(&format!("{{\"a\":\"{word}\",\"b\":[\"{word}\"]}}")).replace("\"a\":", "a:").replace("\"b\":", "b:"),
            expected
        );
        assert_eq!(again(&format!("a: |-\n  {word}\nb:\n- >-\n  {word}")), expected);
    }
    assert_eq!(again(r#"a: "\\no""#), "a: \"\\\\no\"\n");
    assert_eq!(again("a: 'it''s'"), "a: \"it's\"\n");
    assert_eq!(again(r#"a: "n\x6f""#), "a: \"no\"\n");
}

#[test]
fn what_cannot_be_bare_everywhere_is_quoted() {
    let text = "{a: b\u{a0}c, \u{e4}d: ä, e: !!str, f: !!str g, --- h: i, j: [+]}";
    assert_eq!(again(text), "a: \"b\\u00a0c\"\n\"äd\": \"ä\"\ne: !!str \nf: !!str g\n\"--- h\": i\nj:\n- \"+\"\n");
}

#[test]
fn tags_stay_with_what_they_belong_to() {
    let text = "a: !!binary YWJj\nb: !!str no\nc: !mine 012\nd: !<tag:example.com,2026:x> \"y\"\n!!str on: !!float 1\n\
                e: !!map\n  a: b\nf: !!seq\n  - a\n  - !!map\n    b: c\n  - !!seq\n    - d\ng: !!set {}\nh: !!null \ni: j\n";
    assert_eq!(again(text), text);
    assert_eq!(again("a: !!binary |\n  YWJj\n  YWJj\n"), "a: !!binary \"YWJj\\nYWJj\\n\"\n");
    assert_eq!(again("!!map\na: b\n"), "!!map\na: b\n");
    assert_eq!(again("%TAG !y! tag:yaml.org,2002:\n---\na: !y!binary YWJj\n"), "a: !!binary YWJj\n");
    assert_eq!(again("a: &x !!binary YWJj\nb: *x\n"), "a: !!binary YWJj\nb: !!binary YWJj\n");
    // Those that a reader may take in one way or another.
    for text in ["a: ! no", "a: !x%21 b"] {
        assert!(parse(text).unwrap_err().to_string().contains("tag"), "{text}");
    }
}

#[test]
fn keys_that_are_there_twice_stay_and_the_last_counts() {
    let text = "a: 1\nb:\n  c: 1\n  c: 2\na: 3\n";
    assert_eq!(again(text), text);
    assert_eq!(parse(text).unwrap().get("a").and_then(Node::as_str), Some("3"));
}

#[test]
fn a_last_line_without_a_break_gets_none() {
    assert_eq!(again("a: |\n  b"), "a: \"b\"\n");
    assert_eq!(again("a: |\n  b\n"), "a: \"b\\n\"\n");
}

#[test]
fn aliases_are_written_out() {
    let merged = parse("a: &x {b: no}\nc:\n  <<: [{d: 1}, *x]\n  e: 2\n").unwrap();
    let values = ["b", "d", "e", "f"].map(|key| merged.get("c").and_then(|c| c.get(key)?.as_str()));
    assert_eq!(values, [Some("no"), Some("1"), Some("2"), None]);
    assert_eq!(again("a: &x {b: no}\nc: *x\nd:\n  <<: *x\n"), "a:\n  b: no\nc:\n  b: no\nd:\n  <<:\n    b: no\n");
}

#[test]
fn writes_block_style() {
    let text = "a:\n- b: \"1\"\n  c:\n  - - \"2\"\n    - {}\n  - []\nd:\n  e: true\n";
    assert_eq!(again(text), text);
    assert_eq!(again("{}"), "{}\n");
}

#[test]
fn escapes_what_yaml_would_not_take() {
    let text = "\u{0}\t\n\r\"\\\u{7f}\u{85}\u{a0}\u{2028}\u{feff}ä😀";
    let root = Node::mapping([("a", Node::text(text))]);
    assert_eq!(emit(&root), "a: \"\\u0000\\t\\n\\r\\\"\\\\\\u007f\\u0085\\u00a0\\u2028\\ufeffä😀\"\n");
    assert_eq!(parse(&emit(&root)).unwrap(), root);
}

#[test]
fn a_document_without_content_is_null() {
    for text in ["", "\n\n", "# nothing\n", "---\n# nothing\n", "\u{feff}", "null", "~\n", "---\n---\n"] {
        assert!(parse(text).unwrap().is_null(), "{text:?}");
    }
    for text in ["a: b\n---\n", "---\na: b\n...\n---\n# nothing\n", "a: b\n---\n---\n"] {
        assert_eq!(again(text), "a: b\n", "{text:?}");
    }
}

#[test]
fn line_breaks_of_one_yaml_only_are_refused() {
    for line_break in ['\u{85}', '\u{2028}', '\u{2029}'] {
        let error = parse(&format!("# nothing{line_break}a: b")).unwrap_err();
        assert_eq!(error.mark, Mark { line: 1, column: 10 }, "{error}");
    }
    assert_eq!(again("# nothing\ra: b"), "a: b\n");
}

#[test]
fn refuses_what_it_cannot_keep() {
    for (text, message) in [
        ("[a]: b", "key"),
        ("a: [", "line"),
        ("a: 1\n---\nb: 2", "second document"),
        ("a: *nowhere", "anchor"),
        ("{?a: b}", "not every reader"),
        ("- &a0: b", "not every reader"),
        ("{a: b, !mine :x}", "not every reader"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(message), "{text:?}: {error}");
    }
    for key in ["x".repeat(2000), format!("\"{}\"", "\\N".repeat(200))] {
        assert!(parse(&format!("? {key}\n: 1")).is_err());
    }
}

#[test]
fn what_readers_do_not_agree_about_is_named_where_it_is() {
    for (text, line, column) in [
        ("a: 1\nb:\n- c: d\n- {?e: f}\n", 4, 4),
        ("a: 1\nb:\n  c:\n  - &d0: e\n", 4, 10),
        ("a: 1\nb:\n  c: !x\n    d: [e, {f: [{?g: h}]}]\n", 4, 18),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!((error.mark, error.message.as_str()), (Mark { line, column }, READ_OTHERWISE), "{text}");
    }
}

#[test]
fn text_alone_is_read_whoever_agrees_about_it() {
    // A comment to some readers, and a line of the text to others.
    for text in ["|\n# ", "|\n# b\nc", ">-\n#"] {
        let root = parse(text).unwrap();
        assert!(root.as_mapping().is_none() && !root.is_null(), "{text:?}: {root:?}");
    }
}

#[test]
fn what_would_be_written_too_large_to_be_read_is_refused() {
    // Each item is on a line of its own, which is indented.
    let deep = format!("{}[{}]{}", "{a: ".repeat(200), "b,".repeat(200_000), "}".repeat(200));
    let error = parse(&deep).unwrap_err().to_string();
    assert!(error.contains("too large for a kubeconfig"), "{error}");
    // Few nodes, and much text.
    let long = format!("a: &x {}\nb: [{}]\n", "y".repeat(1 << 20), vec!["*x"; 10_000].join(","));
    let error = parse(&long).unwrap_err();
    assert!(error.message.contains("too much") && error.mark.line == 2, "{error}");
}

#[test]
fn refuses_bombs() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    assert!(parse(&bomb).is_err());
    for nested in ["[", "{a: ", "- "] {
        assert!(parse(&nested.repeat(200_000)).is_err(), "{nested}");
    }
    let nested: String = (0..200_000).map(|depth| format!("{}a:\n", " ".repeat(depth % 1000))).collect();
    assert!(parse(&nested).is_err());
}

fn trees() -> impl Strategy<Value = Node> {
    let text = prop_oneof![
        any::<String>().prop_map(Node::text),
        proptest::sample::select(&AWKWARD[..]).prop_map(Node::text),
        proptest::sample::select(&["no", "0777", "1_000", "true", "17", "1.5", "null", "x y", "-"][..])
            .prop_filter("a lone dash is no scalar", |word| *word != "-")
            .prop_map(Node::bare),
    ];
    text.prop_recursive(4, 64, 6, |inner| {
        let entries = proptest::collection::btree_map(any::<String>(), inner.clone(), 0..6);
        prop_oneof![
            proptest::collection::vec(inner, 0..6).prop_map(Node::sequence),
            entries.prop_map(|entries| {
                let entries = entries.into_iter().map(|(key, value)| (Node::text(key), value)).collect();
                Node::of(Content::Mapping(entries))
            }),
        ]
    })
}

/// What YAML 1.2 makes of a tree.
fn value(node: &Node) -> Value {
    match &node.content {
        Content::Bare(text) => serde_yaml::from_str(text).unwrap(),
        Content::Text(text) => text.as_str().into(),
        Content::Sequence(items) => Value::Sequence(items.iter().map(value).collect()),
        Content::Mapping(entries) => {
            Value::Mapping(entries.iter().map(|(key, item)| (value(key), value(item))).collect())
        }
    }
}

proptest! {
    #[test]
    fn round_trip(root in trees()) {
        let text = emit(&root);
        prop_assert_eq!(&parse(&text).unwrap(), &root, "{}", text);
        prop_assert_eq!(serde_yaml::from_str::<Value>(&text).unwrap(), value(&root));
    }

    #[test]
    fn never_panics(text in "[-a-c0-9:{}\\[\\],&*!'\"|>#\\n ]{0,60}") {
        if let Ok(root) = parse(&text) {
            prop_assert_eq!(parse(&emit(&root)).unwrap(), root);
        }
    }
}
