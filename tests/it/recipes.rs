//! Examples that bring the program to other places: jobs of GitLab, a feature of a dev container, and packages for others to make.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use autoheal_pa::emulator::Config;
use serde_json::{Value, json};

use super::{
    action::{Answer, Host, release, tool},
    support::{Lab, PROGRAM, Running, kubectl, path_variable},
};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"];

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

fn archive(target: &str) -> String {
    format!("autoheal-pa-{VERSION}-{target}.tar.gz")
}

/// Packs a program that is this one as a release does.
fn packed(lab: &Lab) -> (String, Vec<u8>, String) {
    let script = lab.path("program");
    fs::write(&script, format!("#!/bin/sh\nexec '{PROGRAM}' \"$@\"\n")).unwrap();
    Command::new("chmod").arg("+x").arg(&script).status().unwrap();
    release(lab.home.path(), &script)
}

/// The lines of a job's script, each of which GitLab stops after if it fails.
fn script<'a>(jobs: &'a serde_yaml::Value, job: &str, key: &str) -> Vec<&'a str> {
    let lines = jobs[job][key].as_sequence().unwrap_or_else(|| panic!("{job}: {key}"));
    lines.iter().map(|line| line.as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_gitlab_have_their_tunnels_and_close_them() {
    if kubectl().is_none() || cfg!(not(target_arch = "x86_64")) {
        return;
    }
    let text = fs::read_to_string(example("gitlab-ci.yml")).unwrap();
    let jobs: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
    let template = &jobs[".autoheal-pa"];
    assert_eq!(template["variables"]["AUTOHEAL_PA_VERSION"], VERSION);
    let lab = Lab::start(Config::default()).await;
    let (name, bytes, sum) = packed(&lab);
    let path = format!("/api/v4/projects/42/packages/generic/autoheal-pa/{VERSION}/{name}");
    let registry = Host::start(move |request, _| {
        let known = request.target == path && request.header("job-token") == Some("of-the-job");
        if known { Answer::Whole(bytes.clone()) } else { Answer::Status(404) }
    })
    .await;
    let api = format!("http://{}/api/v4", registry.address);
    let token = lab.emulator.mint_oidc_token(&lab.emulator.oidc_claims(Duration::from_secs(600)));
    let shell = |lines: &[&str], more: &[(&str, &str)]| {
        let mut bash = lab.command("bash");
        let lines = lines.join("\n");
        let lines = lines.replace("autoheal-pa up", "autoheal-pa up --base-port 0");
        let lines = lines.replace("autoheal-pa exec", "autoheal-pa exec --base-port 0");
        bash.args(["-eo", "pipefail", "-c", &lines]).current_dir(lab.home.path());
        for (name, value) in template["variables"].as_mapping().unwrap() {
            bash.env(name.as_str().unwrap(), value.as_str().unwrap());
        }
        bash.env_remove("AWS_WEB_IDENTITY_TOKEN_FILE").env("GITLAB_OIDC_TOKEN", &token);
        bash.envs([("CI_API_V4_URL", api.as_str()), ("CI_PROJECT_ID", "42"), ("CI_JOB_TOKEN", "of-the-job")]);
        bash.envs([("CI_PROJECT_PATH", "acme/shop"), ("CI_JOB_ID", "7"), ("AUTOHEAL_PA_SHA256", &sum)]);
        Running::start(bash.envs(more.iter().copied())).ended()
    };
    for job in ["one-command", "several-commands"] {
        assert_eq!(jobs[job]["extends"], ".autoheal-pa");
        let before = script(&jobs, ".autoheal-pa", "before_script");
        let ended = shell(&[before.clone(), script(&jobs, job, "script")].concat(), &[]).await;
        assert!(ended.assert_success().contains("STATUS"), "{job}: {ended:#?}");
        if !jobs[job]["after_script"].is_null() {
            shell(&script(&jobs, job, "after_script"), &[]).await.assert_success();
        }
        lab.assert_clean().await;

        // Another archive is not unpacked.
        let ended = shell(&before, &[("AUTOHEAL_PA_SHA256", &"0".repeat(64))]).await;
        assert!(!ended.status.success() && ended.stdout.contains("FAILED"), "{ended:#?}");
    }
}

/// The feature of the dev container in a root of its own.
fn install(folder: &Path, variables: &[(&str, &str)]) -> Output {
    let mut script = Command::new("sh");
    script.arg(folder.join("install.sh")).env_clear().env("PATH", path_variable());
    script.env("DESTDIR", folder.join("root")).envs(variables.iter().copied()).output().unwrap()
}

#[track_caller]
fn refused(output: &Output, complaint: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains(complaint), "{output:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feature_of_a_dev_container_installs_what_it_was_given() {
    let lab = Lab::start(Config::default()).await;
    let (name, bytes, sum) = packed(&lab);
    let folder = lab.path("feature");
    fs::create_dir(&folder).unwrap();
    fs::copy(example("devcontainer/autoheal-pa/install.sh"), folder.join("install.sh")).unwrap();
    let program = folder.join("root/usr/local/bin/autoheal-pa");

    refused(&install(&folder, &[]), "beside install.sh, and the option url is not given");
    fs::write(folder.join(&name), &bytes).unwrap();
    refused(&install(&folder, &[("SHA256", &"0".repeat(64))]), "nothing was installed");
    assert!(!program.exists());
    let output = install(&folder, &[]);
    assert!(output.status.success(), "{output:#?}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with(&format!("autoheal-pa {VERSION}")), "{output:#?}");
    let version = Command::new(&program).arg("--version").output().unwrap();
    assert!(version.status.success(), "{version:#?}");
    for completion in ["share/bash-completion/completions/autoheal-pa", "local/share/zsh/site-functions/_autoheal-pa"] {
        let text = fs::read_to_string(folder.join("root/usr").join(completion)).unwrap();
        assert!(text.contains("--bastion"), "{completion}");
    }
    fs::copy(folder.join(&name), folder.join(name.replace(VERSION, "0.0.9"))).unwrap();
    refused(&install(&folder, &[]), "there are several archives beside install.sh");

    // From an address, with a checksum and not without.
    fs::remove_dir_all(folder.join("root")).unwrap();
    let releases = Host::start(move |_, _| Answer::Whole(bytes.clone())).await;
    let url = format!("http://{}/{name}", releases.address);
    refused(&install(&folder, &[("URL", &url)]), "the option sha256 is missing");
    refused(&install(&folder, &[("URL", &url), ("SHA256", &"0".repeat(64))]), "nothing was installed");
    assert!(!program.exists());
    let output = install(&folder, &[("URL", &url), ("SHA256", &sum)]);
    assert!(output.status.success() && program.exists(), "{output:#?}");
    drop(releases);
    refused(&install(&folder, &[("URL", &url), ("SHA256", &sum)]), "cannot be downloaded");
}

#[test]
fn the_feature_of_a_dev_container_says_what_its_script_reads() {
    let read = |name: &str| fs::read_to_string(example("devcontainer").join(name)).unwrap();
    let feature: Value = serde_json::from_str(&read("autoheal-pa/devcontainer-feature.json")).unwrap();
    assert_eq!((&feature["id"], &feature["version"]), (&json!("autoheal-pa"), &json!(VERSION)));
    let script = read("autoheal-pa/install.sh");
    let options = feature["options"].as_object().unwrap();
    for name in options.keys() {
        assert!(script.contains(&format!("${{{}:-}}", name.to_uppercase())), "{name}");
    }
    // Its comments are for people.
    let container = read("devcontainer.json");
    let container: String = container.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let container: Value = serde_json::from_str(&container).unwrap();
    let given = container["features"]["./autoheal-pa"].as_object().unwrap();
    assert!(given.keys().eq(options.keys()), "{given:?}");
    let command: Vec<String> = serde_json::from_value(container["postCreateCommand"].clone()).unwrap();
    <autoheal_pa::cli::Cli as clap::Parser>::try_parse_from(command).unwrap();
}

/// The reference implementation, which looks for a container before it reads anything, and is told of none.
#[test]
fn the_feature_of_a_dev_container_is_read_by_its_own_program() {
    let Some(program) = tool("devcontainer") else { return };
    let folder = tempfile::tempdir().unwrap();
    let project = folder.path().join("project/.devcontainer");
    fs::create_dir_all(project.join("autoheal-pa")).unwrap();
    for name in ["devcontainer.json", "autoheal-pa/devcontainer-feature.json", "autoheal-pa/install.sh"] {
        fs::copy(example("devcontainer").join(name), project.join(name)).unwrap();
    }
    let docker = folder.path().join("docker");
    fs::write(&docker, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&docker, fs::Permissions::from_mode(0o755)).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(args)
            .env("TMPDIR", folder.path())
            .env("HOME", folder.path())
            .current_dir(folder.path())
            .output()
            .unwrap()
    };
    let read = [
        ["read-configuration", "--include-features-configuration"],
        ["--workspace-folder", "project"],
        ["--docker-path", docker.to_str().unwrap()],
    ];
    let output = run(&read.concat());
    assert!(output.status.success(), "{output:#?}");
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    let feature = &read["featuresConfiguration"]["featureSets"][0]["features"][0];
    assert_eq!((&feature["id"], &feature["value"]), (&json!("autoheal-pa"), &json!({"url": "", "sha256": ""})));
    let output = run(&["features", "package", "project/.devcontainer/autoheal-pa", "--output-folder", "packaged"]);
    assert!(output.status.success(), "{output:#?}");
    assert!(folder.path().join("packaged/devcontainer-feature-autoheal-pa.tgz").exists());
}

/// The parts of Homebrew that the formula uses, which print what they are given.
const HOMEBREW: &str = r##"
$machine = ARGV[1]
class Formula
  def self.note(name, value) = puts("#{name} #{value}")
  %w[desc homepage license url sha256].each { |name| define_singleton_method(name) { |value| note(name, value) } }
  def self.version(value = nil) = value ? (@version = value) && note("version", value) : @version
  def self.depends_on(what) = note("depends_on", what)
  def self.on_intel = $machine == "intel" && yield
  def self.on_arm = $machine == "arm" && yield
  def self.test(&) = nil
end
load ARGV[0]
puts AutohealPa.instance_methods(false).inspect
"##;

#[test]
fn the_formula_is_ruby_and_names_the_archive_of_each_machine() {
    let Some(ruby) = tool("ruby-alone") else { return };
    let formula = example("packaging/autoheal-pa.rb");
    let text = fs::read_to_string(&formula).unwrap();
    assert!(text.contains("UNTRIED"));
    let output = Command::new(&ruby).args(["-wc"]).arg(&formula).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:#?}");
    for (machine, target) in ["intel", "arm"].into_iter().zip(TARGETS) {
        let output = Command::new(&ruby).args(["-e", HOMEBREW, "--"]).arg(&formula).arg(machine).output().unwrap();
        assert!(output.status.success(), "{output:#?}");
        let said = String::from_utf8(output.stdout).unwrap();
        let url = format!("url https://github.com/OWNER/REPOSITORY/releases/download/v{VERSION}/{}\n", archive(target));
        assert!(said.contains(&url) && said.contains(&format!("version {VERSION}\n")), "{said}");
        assert!(said.contains("depends_on linux\n") && said.ends_with("[:install]\n"), "{said}");
        assert_eq!(said.matches("\nsha256 ").count(), 1, "{said}");
    }
}

/// What the expression uses of Nixpkgs, as values.
const NIXPKGS: &str = r#"
{ file, system }:
let
  made = import file {
    lib = { licenses.asl20 = "Apache-2.0"; sourceTypes.binaryNativeCode = "binary"; };
    fetchurl = given: given;
    installShellFiles = "install-shell-files";
    releases = "https://example.invalid/releases/download";
    hashes = { x86_64-linux = "of x86_64"; aarch64-linux = "of aarch64"; };
    stdenvNoCC = { hostPlatform = { inherit system; }; mkDerivation = given: given; };
  };
in made
"#;

#[test]
fn the_expression_is_nix_and_names_the_archive_of_each_machine() {
    let Some(nix) = tool("nix-alone") else { return };
    let expression = example("packaging/autoheal-pa.nix");
    assert!(fs::read_to_string(&expression).unwrap().contains("UNTRIED"));
    let parsed = Command::new(&nix).arg("--parse").arg(&expression).output().unwrap();
    assert!(parsed.status.success(), "{parsed:#?}");
    let evaluate = |system: &str| {
        let mut command = Command::new(&nix);
        command.args(["--eval", "--strict", "--json", "--arg", "file"]).arg(&expression);
        command.args(["--argstr", "system", system, "-E", NIXPKGS]).output().unwrap()
    };
    for target in TARGETS {
        let machine = target.split('-').next().unwrap();
        let output = evaluate(&format!("{machine}-linux"));
        assert!(output.status.success(), "{output:#?}");
        let made: Value = serde_json::from_slice(&output.stdout).unwrap();
        let url = format!("https://example.invalid/releases/download/v{VERSION}/{}", archive(target));
        assert_eq!(made["src"], json!({"url": url, "sha256": format!("of {machine}")}));
        assert_eq!(made["pname"], "autoheal-pa");
    }
    let output = evaluate("x86_64-darwin");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no release of autoheal-pa is built for x86_64-darwin"));
}

#[test]
fn cargo_binstall_finds_the_archive_once_there_is_a_repository() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"]);
    let output = cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).output().unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let package = &metadata["packages"][0];
    let binstall = &package["metadata"]["binstall"];
    for target in TARGETS {
        let render = |key: &str| {
            let template = binstall[key].as_str().unwrap().to_owned();
            [("repo", "https://host/o/r"), ("name", "autoheal-pa"), ("version", VERSION), ("target", target)]
                .into_iter()
                .chain([("bin", "autoheal-pa"), ("binary-ext", ""), ("archive-suffix", ".tar.gz")])
                .fold(template, |text, (name, value)| text.replace(&format!("{{ {name} }}"), value))
        };
        assert_eq!(render("pkg-url"), format!("https://host/o/r/releases/download/v{VERSION}/{}", archive(target)));
        assert_eq!(render("bin-dir"), format!("autoheal-pa-{VERSION}-{target}/autoheal-pa"));
    }
    assert_eq!(binstall["pkg-fmt"], "tgz");
    // None may be invented, and the page says so as long as there is none.
    let page = fs::read_to_string(example("packaging/README.md")).unwrap();
    assert_eq!(package["repository"].is_null(), page.contains("| `repository` in `Cargo.toml` |"));
}
