//! The sources against the table of who may use whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::{
    root, rust_files,
    table::{CIRCLES_YET, Crates, Row, TABLE, YET},
    uses::{Of, Use, uses_below},
};

/// What of the sources the table does not allow.
fn wrong_uses(uses: &[Use], table: &[Row], yet: &[(&str, &str)]) -> Vec<String> {
    let mut wrong = BTreeSet::new();
    let mut needed = BTreeSet::new();
    for used in uses {
        let by = used.by.join("::");
        let at = used.file.display();
        match &used.of {
            Of::Own(path) => {
                let other = path.join("::");
                let is_main = used.by.first().is_some_and(|first| first == "main");
                let debt = yet.iter().find(|(module, of)| is_below(&by, module) && is_below(&other, of));
                if is_below(&other, "cli") && !is_below(&by, "cli") && !is_main {
                    match debt {
                        Some(debt) => drop(needed.insert(debt)),
                        None => drop(
                            wrong.insert(format!("{at}: `{by}` uses `{other}`, and nothing but `main` uses `cli`")),
                        ),
                    }
                }
                // Tests may look at everything below them and beside them.
                let Some(row) = row_of(&by, table).filter(|_| !used.in_tests) else { continue };
                if may_use(row, &other) {
                    continue;
                }
                match debt {
                    Some(debt) => drop(needed.insert(debt)),
                    None => drop(wrong.insert(format!("{at}: `{by}` may not use `{other}`"))),
                }
            }
            Of::Other(path) => {
                let name = path.join("::");
                let among = |list: &[&str]| list.iter().any(|module| is_below(&name, module));
                let may = match row_of(&by, table).map_or(Crates::Any, |row| row.crates) {
                    Crates::Any => true,
                    Crates::Not(never) => !among(never),
                    Crates::Only(only, never) => among(only) && !among(never),
                };
                let may = may || used.in_tests;
                if !may {
                    wrong.insert(format!("{at}: `{by}` may not use `{name}`"));
                }
            }
        }
    }
    wrong.extend(
        yet.iter()
            .filter(|debt| !needed.contains(debt))
            .map(|(module, of)| format!("`{module}` does not use `{of}` any more: take it off the list")),
    );
    wrong.into_iter().collect()
}

/// Tells what the nearest module around says that a row names.
fn may_use(row: &Row, other: &str) -> bool {
    let own = Some((row.module, true)).into_iter();
    let named = row.may.iter().map(|module| module.strip_prefix('!').map_or((*module, true), |never| (never, false)));
    let around = own.chain(named).filter(|(module, _)| is_below(other, module));
    around.max_by_key(|(module, _)| module.len()).is_some_and(|(_, may)| may)
}

fn is_below(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The row of the nearest module around.
fn row_of<'a>(module: &str, table: &'a [Row]) -> Option<&'a Row> {
    table.iter().filter(|row| is_below(module, row.module)).max_by_key(|row| row.module.len())
}

/// Every circle of top-level modules, by one that is in it and the way round, apart from uses that are known.
fn circles(uses: &[Use], known: &[(&str, &str)]) -> Vec<String> {
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for used in uses.iter().filter(|used| !used.in_tests) {
        let Of::Own(other) = &used.of else { continue };
        if let (Some(by), Some(other)) = (used.by.first(), other.first())
            && by != other
        {
            edges.entry(by).or_default().insert(other);
        }
    }
    let mut found = Vec::new();
    for (by, of) in known {
        if !edges.get_mut(by).is_some_and(|others| others.remove(of)) {
            found.push(format!("`{by}` does not use `{of}` any more: take it off the list"));
        }
    }
    let mut seen = BTreeSet::new();
    for start in edges.keys() {
        let mut ways = vec![vec![*start]];
        let mut reached = BTreeSet::new();
        while let Some(way) = ways.pop() {
            for next in edges.get(way[way.len() - 1]).into_iter().flatten() {
                if next == start {
                    let members: BTreeSet<_> = way.iter().copied().collect();
                    if seen.insert(members) {
                        found.push(format!("{} -> {start}", way.join(" -> ")));
                    }
                } else if reached.insert(*next) {
                    ways.push([way.as_slice(), &[*next]].concat());
                }
            }
        }
    }
    found
}

fn uses_of(src: &Path) -> Vec<Use> {
    let files = rust_files(src);
    assert!(!files.is_empty(), "{} has no sources", src.display());
    uses_below(src, &files, "autoheal_pa")
}

#[test]
fn modules_use_only_what_they_may() {
    let src = root().join("src");
    let uses = uses_of(&src);
    // Every file has something to say: one that does not has not been read.
    let read: BTreeSet<_> = uses.iter().map(|used| &used.file).collect();
    let files = rust_files(&src);
    let silent: Vec<_> =
        files.iter().filter(|file| !read.contains(&file.strip_prefix(&src).unwrap().to_path_buf())).collect();
    assert!(silent.len() * 20 < files.len() && files.len() > 100, "{silent:?} of {}", files.len());
    let wrong = wrong_uses(&uses, TABLE, YET);
    assert!(wrong.is_empty(), "{wrong:#?}");
    let circles = circles(&uses, CIRCLES_YET);
    assert!(circles.is_empty(), "{circles:#?}");
    for row in TABLE {
        let is_there = uses.iter().any(|used| is_below(&used.by.join("::"), row.module));
        assert!(is_there, "there is no module `{}`", row.module);
    }
}

/// What is wrong with sources that are given as files.
fn wrong_with(files: &[(&str, &str)], table: &[Row]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let uses = uses_of(dir.path());
    [wrong_uses(&uses, table, &[]), circles(&uses, &[])].concat()
}

const PLANTED: &[Row] = &[
    Row { module: "a", may: &["b", "!b::y"], crates: Crates::Any },
    Row { module: "a::core", may: &[], crates: Crates::Only(&["std", "serde"], &["std::fs"]) },
    Row { module: "b", may: &[], crates: Crates::Not(&["tokio"]) },
];

#[test]
fn a_use_is_seen_in_every_form() {
    let root = ("lib.rs", "pub mod a;\npub mod b;\npub mod c;\npub mod cli;\n");
    let others = [
        ("a/core.rs", "use serde::Serialize;\n"),
        ("b.rs", "pub mod x { pub struct Y; }\npub mod y {}\n"),
        ("c.rs", "pub struct D;\npub mod deep { pub struct E; pub fn f() {} }\n"),
        ("cli.rs", "use crate::{a, c::D};\n"),
    ];
    let wrong = |text: &str| {
        let text = format!("mod core;\n{text}");
        wrong_with(&[&[root, ("a.rs", text.as_str())][..], &others].concat(), PLANTED)
    };
    assert_eq!(wrong("use crate::b::x::Y;\nuse std::fs;\n"), [""; 0]);
    for planted in [
        "use crate::c::D;",
        "use crate::c::D as Other;",
        "use crate::c as other;",
        "use crate::c;",
        "use crate::c::*;",
        "use crate::c::{self, D};",
        "use crate::{b::x::{self, Y}, c::{deep::{E as F}}};",
        "use crate::{b, c};",
        "use {crate::b, crate::c};",
        "use super::c::D;",
        "use self::super::c::D;",
        "use super::{b, c::D};",
        "pub use crate::c::D;",
        "pub(crate) use crate::{c::deep};",
        "extern crate self as me;\npub(in crate::c) fn f() {}",
        "mod inner {\n    use super::super::c::D;\n}",
        "mod inner {\n    mod more {\n        use crate::c::D;\n    }\n}",
        "mod inner {\n    fn f() {\n        use super::super::c as y;\n    }\n}",
        "fn f() {\n    use crate::c::D;\n}",
        "fn f() -> crate::c::D {\n    todo!()\n}",
        "fn f(_: Vec<crate::c::D>) {}",
        "fn f() {\n    crate::c::deep::f();\n}",
        "fn f() {\n    super::c::deep::f();\n}",
        "fn f() {\n    autoheal_pa::c::deep::f();\n}",
        "impl crate::c::T for S {}",
        "impl S {\n    fn f(&self) -> <crate::c::D as Clone>::X {}\n}",
        "trait T: crate::c::U {\n    const C: crate::c::D;\n}",
        "struct S {\n    f: crate::c::D,\n}",
        "enum S {\n    V(crate::c::D),\n}",
        "static S: crate::c::D = 1;",
        "type S = dyn crate::c::T;",
        "fn f() where S: crate::c::T {}",
        "fn f() {\n    match x {\n        crate::c::D::V => {}\n        _ => {}\n    }\n}",
        "fn f() {\n    let _ = |x: crate::c::D| x;\n}",
        "fn f() {\n    println!(\"{}\", crate::c::deep::f());\n}",
        "fn f() {\n    select! {\n        x = async { [super::c::deep::f()] } => {}\n    }\n}",
        "make! {\n    use crate::{b, c::{self, D}};\n}",
        "macro_rules! m {\n    () => { $crate::c::deep::f() };\n}",
        "#[serde(with = \"crate::c::deep\")]\nstruct S;",
        "#[derive(crate::c::Derive)]\nstruct S;",
        "#[cfg(not(test))]\nuse crate::c::D;",
        "#[cfg(feature = \"x\")]\nuse crate::c::D;",
        "#[cfg(test)]\nmod tests {}\nuse crate::c::D;",
        "use super as up;\nfn f() {\n    up::c::deep::f();\n}",
        "use crate as up;\nfn f() {\n    up::c::deep::f();\n}",
        "mod inner {\n    use super::*;\n    fn f() {\n        up::deep::f();\n    }\n}\nuse super as top;\nuse top::c as up;",
    ] {
        let found = wrong(planted);
        assert!(found.iter().any(|line| line.contains("may not use `c")), "{planted}\n{found:#?}");
    }
    for (planted, said) in [
        ("use crate::cli;", "nothing but `main` uses `cli`"),
        ("use crate::b::y;", "`a` may not use `b::y`"),
        ("#[cfg(test)]\nmod tests {\n    use crate::cli;\n}", "nothing but `main` uses `cli`"),
        ("#[test]\nfn f() {\n    super::cli::g();\n}", "nothing but `main` uses `cli`"),
    ] {
        let found = wrong(planted);
        assert!(found.iter().any(|line| line.contains(said)), "{planted}\n{found:#?}");
    }
    for allowed in [
        "use crate::b;",
        "use super::b::x;",
        "mod inner {\n    use super::super::b;\n}",
        "mod c {}\nuse self::c::D;\nuse c::E;",
        "use other::c;\nfn f() {\n    c::g();\n}",
        "/// [`D`](crate::c::D)\nfn f() {}",
        "fn f() {\n    println!(\"crate::c::D\");\n    x.c::<u8>();\n}",
        "#[cfg(test)]\nuse crate::c::D;",
        "#[cfg(any(fuzzing, test))]\nmod fuzz {\n    use crate::c::D;\n}",
        "#[cfg(test)]\nmod tests {\n    use super::super::c;\n    fn f() {\n        c::deep::f();\n    }\n}",
        "impl S {\n    #[cfg(test)]\n    fn f() -> crate::c::D {}\n}",
        "fn f() {\n    #[cfg(test)]\n    crate::c::deep::f();\n}",
    ] {
        assert_eq!(wrong(allowed), [""; 0], "{allowed}");
    }
}

#[test]
fn the_nearest_row_holds_and_crates_are_seen() {
    let root = ("lib.rs", "mod a;\nmod b;\n");
    let wrong = |core: &str| {
        let files = [root, ("a.rs", "mod core;\nmod tests;\n"), ("a/core.rs", core), ("b.rs", "use std::fs;\n")];
        wrong_with(&[&files[..], &[("a/tests.rs", "use crate::b;\n")]].concat(), PLANTED)
    };
    assert_eq!(wrong("use std::io;\nuse serde::Serialize;\n"), [""; 0]);
    for planted in [
        "use std::fs;",
        "use std::{io, fs::File};",
        "fn f() {\n    std::fs::read(x);\n}",
        "use std as s;\nfn f() {\n    s::fs::read(x);\n}",
        "use tokio::time;",
        "use ::tokio::time;",
        "fn f() {\n    tokio::spawn(x);\n}",
        "fn f() {\n    tokio::select! {}\n}",
        "extern crate tokio;",
        "use crate::b;",
        "use super::super::b;",
    ] {
        let found = wrong(planted);
        assert!(
            found.iter().any(|line| line.starts_with("a/core.rs: `a::core` may not use `")),
            "{planted}\n{found:#?}"
        );
    }
}

#[test]
fn circles_are_found_and_lists_only_shrink() {
    let files = [
        ("lib.rs", "mod x;\nmod y;\nmod z;\n"),
        ("x.rs", "use crate::y;\n"),
        ("y/inner.rs", "use super::super::z;\n"),
        ("y.rs", "mod inner;\n#[cfg(test)]\nuse crate::x;\n"),
        ("z.rs", "fn f() {\n    crate::x::g();\n}\n"),
    ];
    let found = wrong_with(&files, &[]);
    assert_eq!(found, ["x -> y -> z -> x"]);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("lib.rs"), "mod x {\n    use crate::y;\n}\nmod y {\n    use crate::x;\n}\n").unwrap();
    let uses = uses_of(dir.path());
    assert_eq!(circles(&uses, &[("y", "x")]), [""; 0]);
    assert_eq!(circles(&uses, &[("y", "x"), ("x", "z")]), ["`x` does not use `z` any more: take it off the list"]);
    let table = [Row { module: "x", may: &[], crates: Crates::Any }];
    assert_eq!(wrong_uses(&uses, &table, &[("x", "y")]), [""; 0]);
    assert_eq!(
        wrong_uses(&uses, &table, &[("x", "y"), ("x", "z")]),
        ["`x` does not use `z` any more: take it off the list"]
    );
}

#[test]
#[should_panic(expected = "has no sources")]
fn a_folder_without_sources_is_not_passed_over() {
    uses_of(tempfile::tempdir().unwrap().path());
}
