//! Rules of the repository that no compiler checks, read off the sources.

use std::{
    fs,
    path::{Path, PathBuf},
};

mod imports;
mod table;
mod uses;

use uses::without_tests;

/// What reads, writes, makes or replaces files by their paths. All of it goes through `util`, which knows what others may
/// have put there.
const TOUCHES_FILES: &[&str] = &[
    "fs::canonicalize",
    "fs::copy",
    "fs::create_dir",
    "fs::hard_link",
    "fs::metadata",
    "fs::open",
    "fs::read",
    "fs::remove",
    "fs::rename",
    "fs::set_permissions",
    "fs::symlink_metadata",
    "fs::write",
    "tokio::fs",
    "File::create(",
    "File::open(",
    "File::options(",
    "OpenOptions",
    "DirBuilder",
    "tempfile::",
    "temp_dir()",
];

/// Files that may do some of that, and why.
const TOUCH_FILES: &[(&str, &[&str], &str)] = &[
    ("build.rs", &["fs::read"], "no part of the program: what cargo leaves in a package"),
    ("tunnel/listener.rs", &["fs::read"], "the kernel's tables"),
    ("tunnel/program.rs", &["fs::read"], "the kernel's tables"),
    ("tunnel/socket_user.rs", &["fs::read"], "the kernel's tables"),
    ("cli/signals.rs", &["fs::read", "File::open("], "the kernel's tables, and the terminal"),
    ("cli/exec.rs", &["File::open("], "the terminal"),
    ("cli/ask.rs", &["fs::open"], "the terminal"),
    ("manager/background.rs", &["File::options("], "/dev/null"),
    ("settings/file.rs", &["fs::symlink_metadata"], "whether there is a file to complain about"),
    (
        "settings/environment.rs",
        &["temp_dir()", "fs::metadata"],
        "the only reader of the environment, and of what program this is",
    ),
    ("cli/demo.rs", &["tempfile::"], "a folder of its own"),
    ("emulator.rs", &["tempfile::", "fs::write", "fs::rename"], "a folder of its own"),
    ("emulator/instance_connect.rs", &["fs::read", "fs::write", "fs::rename"], "the keys that a server is given"),
    (
        "emulator/sshd.rs",
        &["tempfile::", "fs::create_dir", "fs::set_permissions", "fs::read", "fs::write"],
        "a folder of its own",
    ),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(super) fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The module that a file of `src` belongs to, and its code without comments and tests.
fn modules() -> Vec<(String, PathBuf, String)> {
    let src = root().join("src");
    let files = rust_files(&src);
    assert!(files.len() > 100, "{} files: the sources are not found any more", files.len());
    files
        .into_iter()
        .filter(|path| !path.to_string_lossy().contains("tests"))
        .map(|path| {
            let relative = path.strip_prefix(&src).unwrap().to_path_buf();
            let first = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
            let code = without_tests(&fs::read_to_string(&path).unwrap());
            (first.trim_end_matches(".rs").to_owned(), relative, code)
        })
        .collect()
}

#[test]
fn files_are_touched_in_one_place() {
    let mut wrong = Vec::new();
    for (module, path, code) in modules().into_iter().filter(|(module, ..)| module != "util" && module != "fuzzing") {
        let may = TOUCH_FILES.iter().find(|(file, ..)| path.ends_with(file)).map_or(&[][..], |(_, words, _)| words);
        for line in code.lines() {
            let touches = |word: &&&str| line.contains(**word) && !may.contains(*word);
            if let Some(word) = TOUCHES_FILES.iter().find(touches) {
                wrong.push(format!("{} has {word}, which `util` is for: {}", path.display(), line.trim()));
            }
        }
        // Which folders there are is known to the settings, and what is in a manager's to `control`.
        if module != "settings" && (code.contains("control_dir.join") || code.contains("control_dir.parent")) {
            wrong.push(format!("{} builds paths below a manager's directory", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Where text of peers comes in, and the type that it has to have from there on.
const PEER_TEXT: &[(&str, &str)] = &[
    ("route/ssm/proto/message.rs", "pub output: PeerText"),
    ("route/ssm/proto/handshake.rs", "pub customer_message: PeerText"),
    ("route/ssm/proto/handshake.rs", "UnknownVersion(PeerText)"),
    ("route/ssm/proto/handshake.rs", "UnknownAction(PeerText)"),
    ("route/ssm/transport.rs", "reason: PeerText"),
    ("route/ssm/dial.rs", "detail: PeerText"),
    ("aws/error.rs", "pub message: Option<PeerText>"),
    ("aws/clusters.rs", "pub version: Option<PeerText>"),
    ("route/ssm/targets.rs", "pub agent_version: Option<PeerText>"),
    ("doctor/api.rs", "pub name: PeerText"),
    ("doctor/api.rs", "said: PeerText"),
];

/// Files that make text of bytes of this program's own, or do not show it.
const OWN_BYTES: &[&str] =
    &["util/peer_text.rs", "util/quote.rs", "route/ssm/proto/message.rs", "journal.rs", "cli/logs.rs", "aws/bundle.rs"];

#[test]
fn text_of_peers_has_one_type() {
    let modules = modules();
    for (file, field) in PEER_TEXT {
        let code = modules.iter().find(|(_, path, _)| path == Path::new(file)).map(|(.., code)| code);
        assert!(code.is_some_and(|code| code.contains(field)), "{file} has no `{field}`");
    }
    for (module, path, code) in &modules {
        let is_exempt = OWN_BYTES.iter().any(|own| path == Path::new(own)) || module == "emulator";
        for line in code.lines().filter(|_| !is_exempt) {
            let decodes = line.contains("from_utf8_lossy(") || line.contains("is_control() { ' ' }");
            assert!(!decodes || line.contains("chars().map("), "{}: {line}", path.display());
        }
    }
}

/// Programs whose commands are printed.
const PROGRAMS: [&str; 8] = ["aws", "kubectl", "autoheal-pa", "kill", "rm", "getent", "openssl", "sudo"];

/// The string literals behind a macro's opening parenthesis, without the line breaks within them.
fn literals<'a>(code: &'a str, opening: &'a str) -> impl Iterator<Item = String> + 'a {
    code.match_indices(opening).filter_map(move |(at, _)| {
        let text = code[at + opening.len()..].trim_start().strip_prefix('"')?;
        let mut literal = String::new();
        let mut chars = text.chars();
        loop {
            match chars.next()? {
                '"' => return Some(literal),
                '\\' => match chars.next()? {
                    '\n' => chars = chars.as_str().trim_start().chars(),
                    escaped => literal.extend(['\\', escaped]),
                },
                c => literal.push(c),
            }
        }
    })
}

/// Tells whether a sentence has a command with a value in it.
fn names_a_command(literal: &str) -> bool {
    PROGRAMS.iter().any(|program| {
        literal.match_indices(&format!("{program} ")).any(|(at, _)| {
            let command = literal[at..].split('`').next().unwrap_or_default();
            (at == 0 || literal[..at].ends_with(['`', '('])) && command.replace("{{", "").contains('{')
        })
    })
}

#[test]
fn commands_are_written_by_one_macro() {
    for (module, path, code) in modules() {
        if matches!(module.as_str(), "util" | "emulator") {
            continue;
        }
        for opening in ["format!(", "format_args!(", "print!(", "println!(", "writeln!(text,", "write!(text,"] {
            for literal in literals(&code, opening) {
                assert!(!names_a_command(&literal), "{} writes a command without quoting: {literal}", path.display());
            }
        }
        for literal in literals(&code, "command!(") {
            let plain = literal.replace("{{", "").replace("}}", "");
            let all_are_words = plain.matches('{').count() == plain.matches("{}").count();
            assert!(all_are_words, "{} has a word that is not quoted: {literal}", path.display());
        }
    }
    assert!(names_a_command("look: `aws eks describe-cluster --name {name}`"));
    assert!(
        !names_a_command("`{name}` is not there: `autoheal-pa up` writes it") && !names_a_command("`kubectl get {{}}`")
    );
}

/// Most lines that a file may have, tests and comments included.
const LONGEST: usize = 600;

/// Files that have more, and how many. They may become shorter, and those that are short enough have to go from here.
const LONG: &[(&str, usize)] = &[];

/// What is wrong with the lengths of files, given those that may be long.
fn wrong_lengths(files: &[(String, usize)], long: &[(&str, usize)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (file, lines) in files {
        match long.iter().find(|(name, _)| file == name) {
            Some((_, most)) if lines > most => wrong.push(format!("{file} has grown from {most} lines to {lines}")),
            None if *lines > LONGEST => wrong.push(format!("{file} has {lines} lines, and {LONGEST} are allowed")),
            _ => {}
        }
    }
    for (name, _) in long {
        if files.iter().all(|(file, lines)| file != name || *lines <= LONGEST) {
            wrong.push(format!("{name} is not long any more: take it off the list"));
        }
    }
    wrong
}

#[test]
fn files_are_short_enough_to_read() {
    let mut files = Vec::new();
    for folder in ["src", "tests", "examples"].map(|folder| root().join(folder)) {
        for path in rust_files(&folder) {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
            let name = name.strip_prefix("src/").unwrap_or(name).to_owned();
            files.push((name, fs::read_to_string(&path).unwrap().lines().count()));
        }
    }
    let wrong = wrong_lengths(&files, LONG);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_list_of_long_files_only_shrinks() {
    let files =
        [("a.rs", 700), ("b.rs", 601), ("c.rs", 600), ("d.rs", 650)].map(|(name, lines)| (name.to_owned(), lines));
    assert_eq!(
        wrong_lengths(&files, &[("a.rs", 699), ("c.rs", 610), ("d.rs", 660), ("e.rs", 800)]),
        [
            "a.rs has grown from 699 lines to 700",
            "b.rs has 601 lines, and 600 are allowed",
            "c.rs is not long any more: take it off the list",
            "e.rs is not long any more: take it off the list",
        ]
    );
    // Whoever adds one takes another off.
    assert!(LONG.len() <= 1);
}

#[test]
fn tests_are_left_out_wherever_they_stand() {
    let text = "use a;\n#[cfg(test)]\nuse b;\nfn c() {\n    #[cfg(test)]\n    d();\n    #[cfg(test)]\n    {\n        e();\n    }\n    f();\n}\n\
                #[cfg(test)]\n#[path = \"x.rs\"]\nmod g;\n#[cfg(test)]\nimpl H {\n    fn i() {}\n}\n// j\nfn k() {}\n#[cfg(test)]\n\
                mod tests {\n    fn l() {}\n}\nfn m() {}\n";
    assert_eq!(without_tests(text), "use a;\nfn c() {\n    f();\n}\nfn k() {}\nfn m() {}");
}

/// What only routes know of.
const OF_ROUTES: &[&str] = &["AWS", "SSM", "WebSocket", "session", "Session", "smux", "Systems Manager"];

#[test]
fn the_tunnel_does_not_even_speak_of_what_is_behind_a_route() {
    let src = root().join("src");
    let files: Vec<_> = rust_files(&src.join("tunnel")).into_iter().chain([src.join("tunnel.rs")]).collect();
    assert!(files.len() > 10, "the tunnel is not found any more");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for word in OF_ROUTES {
            // A session of TLS is another matter.
            let line = text.lines().find(|line| line.contains(word) && !line.contains("TLS session"));
            assert!(line.is_none(), "{} has `{word}`: {}", file.display(), line.unwrap_or_default());
        }
    }
}

#[test]
fn nothing_is_left_undone() {
    for file in rust_files(&root().join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        for word in ["todo!", "unimplemented!", "FIXME", "// XXX", "#[ignore"] {
            assert!(!text.contains(word), "{} has {word}", file.display());
        }
    }
}

#[test]
fn nothing_else_stands_at_the_top() {
    const TOP: &[&str] = &[
        ".cargo",
        ".ci",
        ".clippy.toml",
        ".deny.toml",
        ".git",
        ".github",
        ".gitignore",
        ".rustfmt.toml",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "examples",
        "src",
        "target",
        "tests",
    ];
    let there = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let others: Vec<String> = there.filter(|name| !TOP.contains(&name.as_str())).collect();
    assert!(others.is_empty(), "a program has left this behind, or the list is to grow: {others:?}");
}

#[test]
fn the_page_of_pitfalls_names_tests_that_exist() {
    let sources: String = ["src", "tests/it"]
        .iter()
        .flat_map(|dir| rust_files(&root().join(dir)))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let page = fs::read_to_string(root().join("tests/pitfalls.md")).unwrap();
    let names = page.split('`').skip(1).step_by(2).filter(|word| {
        word.matches('_').count() >= 2 && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    });
    let missing: Vec<_> = names.filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
