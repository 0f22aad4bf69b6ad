//! Tells the program what it is built from: commit, target, profile.
//!
//! A commit is what was checked out, or what the environment says, as where there is no repository: in an archive. Builds for
//! development have none, as it would have them built anew with each commit.

#![expect(clippy::disallowed_methods, reason = "cargo tells a build script everything by its environment")]

use std::{env, path::Path, process::Command};

/// The commit, and at the same time where a packager says it.
const COMMIT: &str = "AUTOHEAL_PA_COMMIT";

/// What cargo leaves in a package of sources.
const VCS_INFO: &str = ".cargo_vcs_info.json";

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    println!("cargo::rerun-if-env-changed={COMMIT}");
    let target = env::var("TARGET").expect("cargo sets it");
    println!("cargo::rustc-env=AUTOHEAL_PA_TARGET={target}");
    // `target/PROFILE/build/NAME-HASH/out`: cargo tells only which of its two profiles a profile is based on.
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let profile = Path::new(&out).ancestors().nth(3).and_then(Path::file_name).and_then(|name| name.to_str());
    println!("cargo::rustc-env=AUTOHEAL_PA_PROFILE={}", profile.unwrap_or("unknown"));
    let said = env::var(COMMIT).ok().filter(|commit| !commit.is_empty());
    let is_development = env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    if let Some(commit) = said.or_else(|| (!is_development).then(checked_out).flatten()) {
        println!("cargo::rustc-env={COMMIT}={commit}");
    }
}

/// Returns the commit that is checked out here, and whether anything in it has been changed.
fn checked_out() -> Option<String> {
    if let Ok(info) = std::fs::read_to_string(VCS_INFO) {
        println!("cargo::rerun-if-changed={VCS_INFO}");
        let sha = info.split_once("\"sha1\"")?.1.split('"').nth(1)?;
        return Some(sha.to_owned());
    }
    // Not one around it that this is a part of, such as somebody's home or another project.
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    for name in ["HEAD", "logs/HEAD", "index"] {
        println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--git-path", name])?);
    }
    for path in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let commit = git(&["rev-parse", "HEAD"])?;
    let is_changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(if is_changed { format!("{commit}-changed") } else { commit })
}

fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    out.status.success().then(|| text.trim_end().to_owned())
}
