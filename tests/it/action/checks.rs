//! The action and the workflows, as their judges see them, and the scripts of the release.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use super::{runner::action, tool};

/// Actions of others, by commit, each with the tag that names it in its repository.
const PINNED: &[(&str, &str, &str)] = &[
    ("actions/attest", "1e69f48acb82d1966a394da916b4c1698aa569d6", "v4.2.2"),
    ("actions/checkout", "3d3c42e5aac5ba805825da76410c181273ba90b1", "v7.0.1"),
    ("actions/download-artifact", "3e5f45b2cfb9172054b4087a40e8e0b5a5461e7c", "v8.0.1"),
    ("actions/upload-artifact", "bbbca2ddaa5d8feaa63e36b76fdaad77386f024f", "v7.0.0"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|other| other == extension)).collect();
    files.sort();
    files
}

fn workflows() -> Vec<PathBuf> {
    let mut workflows = files(&root().join(".github/workflows"), "yml");
    assert_eq!(workflows.len(), 2, "{workflows:?}");
    workflows.push(root().join("examples/github-actions.yml"));
    workflows
}

fn yaml(path: &Path) -> serde_yaml::Value {
    serde_yaml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Steps of all jobs, by the jobs' names.
fn steps(workflow: &serde_yaml::Value) -> Vec<(&str, &serde_yaml::Value)> {
    let jobs = workflow["jobs"].as_mapping().unwrap().iter();
    jobs.flat_map(|(name, job)| {
        let steps = job["steps"].as_sequence().unwrap().iter();
        steps.map(move |step| (name.as_str().unwrap(), step))
    })
    .collect()
}

/// The script of a step of the release.
fn script(name: &str) -> String {
    let workflow = yaml(&root().join(".github/workflows/release.yml"));
    let found = steps(&workflow).into_iter().find(|(_, step)| step["name"] == name);
    found.unwrap().1["run"].as_str().unwrap().to_owned()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Makes sure that a judge has nothing to say of files, and that it has of one that is wrong.
#[track_caller]
fn judged(mut judge: impl FnMut(&[PathBuf]) -> Command, files: &[PathBuf], wrong: &str, complaint: &str) {
    let output = judge(files).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(files[0].file_name().unwrap());
    fs::write(&path, wrong).unwrap();
    let output = judge(&[path]).output().unwrap();
    assert!(!output.status.success() && said(&output).contains(complaint), "{}", said(&output));
}

const WRONG: &str = "name: x\non: push\npermissions: {}\njobs:\n  a:\n    runs-on: ubuntu-0.1\n    steps:\n      - uses: actions/checkout@v7\n";

#[test]
fn actionlint_has_nothing_to_say() {
    let Some(program) = tool("actionlint") else { return };
    let judge = |files: &[PathBuf]| {
        let mut command = Command::new(&program);
        // It takes one pattern.
        let names: Vec<_> = files.iter().map(|path| path.to_str().unwrap()).collect();
        let pattern = if let [name] = names[..] { name.to_owned() } else { format!("{{{}}}", names.join(",")) };
        command.arg(pattern);
        command
    };
    let all = workflows();
    let output = judge(&all).output().unwrap();
    assert!(said(&output).contains(&format!("Checking {} workflow file(s)", all.len())), "{}", said(&output));
    judged(judge, &all, WRONG, "ubuntu-0.1");
}

#[test]
fn zizmor_has_nothing_to_say() {
    let Some(program) = tool("zizmor") else { return };
    let judge = |files: &[PathBuf]| {
        let mut command = Command::new(&program);
        command.args(["--offline", "--pedantic", "--no-progress", "--color=never"]).args(files);
        command
    };
    let mut all = workflows();
    all.push(action().join("action.yml"));
    judged(judge, &all, WRONG, "unpinned-uses");
}

#[test]
fn their_schemas_have_nothing_to_say() {
    let Some(program) = tool("check-jsonschema") else { return };
    let wrong_action = "name: x\ndescription: y\nruns:\n  using: node24\n";
    for (schema, all, wrong, complaint) in [
        ("vendor.github-workflows", workflows(), "name: x\non: push\njob: {}\n", "jobs"),
        ("vendor.github-actions", vec![action().join("action.yml")], wrong_action, "main"),
        ("vendor.gitlab-ci", vec![root().join("examples/gitlab-ci.yml")], "a:\n  script: {}\n", "script"),
    ] {
        let judge = |files: &[PathBuf]| {
            let mut command = Command::new(&program);
            command.args(["--builtin-schema", schema]).args(files);
            command
        };
        judged(judge, &all, wrong, complaint);
    }
}

#[test]
fn shellcheck_has_nothing_to_say_of_scripts() {
    let Some(program) = tool("shellcheck") else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut scripts = vec![root().join("examples/devcontainer/autoheal-pa/install.sh")];
    for workflow in workflows() {
        for (index, (_, step)) in steps(&yaml(&workflow)).into_iter().enumerate() {
            if let Some(script) = step["run"].as_str() {
                assert!(!script.contains("${{"), "what a shell reads comes by variables: {script}");
                let name = format!("{}-{index}.sh", workflow.file_stem().unwrap().display());
                fs::write(folder.path().join(&name), format!("#!/bin/bash\nset -e\n{script}")).unwrap();
                scripts.push(folder.path().join(name));
            }
        }
    }
    assert!(scripts.len() > 8, "{scripts:?}");
    let judge = |files: &[PathBuf]| {
        let mut command = Command::new(&program);
        command.args(files);
        command
    };
    judged(judge, &scripts, "#!/bin/sh\necho $1\n", "SC2086");
}

#[test]
fn the_action_is_plain_javascript_without_packages() {
    let Some(node) = tool("node24") else { return };
    let modules = files(&action(), "mjs");
    assert!(modules.len() > 5, "{modules:?}");
    for module in &modules {
        let output = Command::new(&node).arg("--check").arg(module).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let text = fs::read_to_string(module).unwrap();
        assert!(text.lines().count() < 200, "{}", module.display());
        for line in text.lines().filter(|line| line.starts_with("import ")) {
            let from = line.split('"').nth(1).unwrap();
            let here = from.strip_prefix("./").is_some_and(|name| action().join(name).exists());
            assert!(here || from.starts_with("node:"), "{}: {line}", module.display());
        }
    }
    let manifest = yaml(&action().join("action.yml"));
    for entry in ["main", "post"] {
        assert!(action().join(manifest["runs"][entry].as_str().unwrap()).exists(), "{entry}");
    }
    assert_eq!(manifest["runs"]["post-if"], "always()");
}

#[test]
fn every_input_and_output_is_used_and_in_the_manual() {
    let manifest = yaml(&action().join("action.yml"));
    let names = |key: &str| -> BTreeSet<String> {
        manifest[key].as_mapping().unwrap().keys().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    let main = fs::read_to_string(action().join("main.mjs")).unwrap();
    let page = fs::read_to_string(root().join("src/manual/operations.md")).unwrap();
    for name in names("inputs") {
        assert!(main.contains(&format!("\"{name}\"")), "the input `{name}` is not read");
        assert!(page.contains(&format!("`{name}`")), "the input `{name}` is not in the manual");
    }
    let set: BTreeSet<_> =
        main.split("setOutput(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect();
    assert_eq!(names("outputs"), set);
    assert!(set.iter().all(|name| page.contains(&format!("`{name}`"))), "{set:?}");
}

#[test]
fn actions_of_others_are_named_by_the_commit_of_one_version() {
    let mut used = BTreeSet::new();
    for workflow in workflows() {
        let text = fs::read_to_string(&workflow).unwrap();
        for line in text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("uses: ")) {
            let (name, commit) = line.split_once('@').unwrap();
            // This one, whose place is not known.
            if name == "OWNER/REPOSITORY/.github/actions/autoheal-pa" {
                assert_eq!(commit, "0".repeat(40));
                continue;
            }
            let known = PINNED.iter().find(|(known, ..)| *known == name);
            let (_, expected, tag) = known.unwrap_or_else(|| panic!("{}: {line}", workflow.display()));
            assert_eq!(commit, format!("{expected} # {tag}"), "{}", workflow.display());
            used.insert(name.to_owned());
        }
    }
    assert_eq!(used.len(), PINNED.len(), "{used:?}");
}

#[test]
fn what_builds_may_not_write_and_what_may_write_builds_nothing() {
    for path in workflows() {
        let workflow = yaml(&path);
        assert_eq!(workflow["permissions"], serde_yaml::Value::Mapping(Default::default()), "{}", path.display());
        for (name, job) in workflow["jobs"].as_mapping().unwrap() {
            let text = serde_yaml::to_string(job).unwrap();
            let permissions = job["permissions"].as_mapping().unwrap();
            let may_write = permissions.values().any(|value| value == "write");
            let builds = text.contains("cargo ") || text.contains(".ci/");
            assert_ne!(may_write, builds, "{}: {name:?}", path.display());
            assert!(!builds || !text.contains("secrets."), "{}: {name:?}", path.display());
            assert!(!text.contains("actions/cache"), "{}: {name:?}", path.display());
            if text.contains("actions/checkout@") {
                assert!(text.contains("persist-credentials: false"), "{}: {name:?}", path.display());
            }
        }
    }
}

/// Runs a script as GitHub does, in a folder, with the programs in its `bin` before others.
fn run(folder: &Path, script: &str, variables: &[(&str, &str)]) -> Output {
    let path = format!("{}:/usr/bin:/bin", folder.join("bin").display());
    let mut bash = Command::new("bash");
    bash.args(["--noprofile", "--norc", "-eo", "pipefail", "-c", script]).current_dir(folder).env_clear();
    bash.env("PATH", path).envs(variables.iter().copied()).output().unwrap()
}

/// A program that writes down how it was called.
fn note_taker(folder: &Path, name: &str) {
    let path = folder.join("bin").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "#!/bin/sh\nprintf '%s\\n' \"$@\" > \"$CALLS\"\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_release_has_the_version_of_its_tag() {
    let script = script("Compare the tag with the version");
    let tag = concat!("v", env!("CARGO_PKG_VERSION"));
    let output = run(root(), &script, &[("GITHUB_REF_NAME", tag)]);
    assert!(output.status.success(), "{}", said(&output));
    let output = run(root(), &script, &[("GITHUB_REF_NAME", "v99.0.0")]);
    let expected = format!("::error::the tag is v99.0.0, and Cargo.toml has version {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((output.status.code(), said(&output)), (Some(1), expected));
}

#[test]
fn a_release_has_what_was_built_and_signed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let dist = folder.join("dist");
    fs::create_dir_all(dist.join("image")).unwrap();
    fs::write(dist.join("autoheal-pa.tar.gz"), "an archive").unwrap();
    fs::write(dist.join("a b.deb"), "a package").unwrap();
    let sums = run(&dist, "sha256sum autoheal-pa.tar.gz 'a b.deb' > SHA256SUMS", &[]);
    assert!(sums.status.success(), "{}", said(&sums));
    let compare = script("Compare the checksums");
    assert!(run(folder, &compare, &[]).status.success());

    // Without a key nothing is signed; with one the file is, and the key does not stay.
    let sign = script("Sign the checksums");
    let temp = folder.join("temp");
    fs::create_dir(&temp).unwrap();
    let calls = folder.join("calls");
    note_taker(folder, "minisign");
    let mut variables = vec![
        ("RUNNER_TEMP", temp.to_str().unwrap()),
        ("CALLS", calls.to_str().unwrap()),
        ("GITHUB_REF_NAME", "v0.1.0"),
        ("MINISIGN_KEY", ""),
    ];
    let output = run(folder, &sign, &variables);
    assert!(output.status.success() && !calls.exists(), "{}", said(&output));
    variables[3].1 = "untrusted comment: x\nkey";
    let output = run(folder, &sign, &variables);
    assert!(output.status.success() && said(&output).is_empty(), "{}", said(&output));
    let key = temp.join("minisign.key");
    let expected = format!("-S\n-s\n{}\n-m\ndist/SHA256SUMS\n-t\nautoheal-pa v0.1.0\n", key.display());
    assert_eq!(fs::read_to_string(&calls).unwrap(), expected);
    assert!(!key.exists());

    note_taker(folder, "gh");
    let output = run(folder, &script("Draft the release"), &variables);
    assert!(output.status.success(), "{}", said(&output));
    let asked = fs::read_to_string(&calls).unwrap();
    let asked: Vec<_> = asked.lines().collect();
    assert_eq!(asked[..4], ["release", "create", "v0.1.0", "--draft"]);
    assert_eq!(asked[asked.len() - 3..], ["dist/SHA256SUMS", "dist/a b.deb", "dist/autoheal-pa.tar.gz"]);

    // What has changed on the way is not released.
    fs::write(dist.join("a b.deb"), "another package").unwrap();
    let output = run(folder, &compare, &[]);
    assert!(!output.status.success() && said(&output).contains("a b.deb: FAILED"), "{}", said(&output));
}

#[test]
fn a_signature_is_one() {
    if tool("minisign").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir_all(folder.join("dist")).unwrap();
    fs::write(folder.join("dist/SHA256SUMS"), "sums\n").unwrap();
    let made = run(folder, "minisign -G -W -p key.pub -s key.sec >/dev/null", &[]);
    assert!(made.status.success(), "{}", said(&made));
    let key = fs::read_to_string(folder.join("key.sec")).unwrap();
    let variables =
        [("RUNNER_TEMP", folder.to_str().unwrap()), ("GITHUB_REF_NAME", "v0.1.0"), ("MINISIGN_KEY", key.trim_end())];
    let output = run(folder, &script("Sign the checksums"), &variables);
    assert!(output.status.success(), "{}", said(&output));
    let verified = run(folder, "minisign -V -p key.pub -m dist/SHA256SUMS", &[]);
    assert!(verified.status.success(), "{}", said(&verified));
}

/// The one script that no test runs: it installs compilers.
const SETUP: &str = "Install what everything starts from";

/// Names of steps that the tests run, so that none is renamed or added without them.
#[test]
fn every_script_of_the_release_is_run_by_a_test() {
    let workflow = yaml(&root().join(".github/workflows/release.yml"));
    let mut scripts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (job, step) in steps(&workflow).into_iter().filter(|(_, step)| step["run"].is_string()) {
        scripts.entry(job).or_default().push(step["name"].as_str().unwrap());
    }
    let expected = [
        ("build", vec![SETUP, "Build every package"]),
        ("check", vec![SETUP, "Compare the tag with the version", "Run every check"]),
        ("publish", vec!["Compare the checksums", "Sign the checksums", "Draft the release"]),
    ];
    assert_eq!(scripts, BTreeMap::from(expected));
}
