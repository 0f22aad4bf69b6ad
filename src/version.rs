//! What this program is: its version, and what it was built from.

use serde::Serialize;

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from, in 40 hexadecimal digits, with `-changed` behind it if something in it was; `None`: a build
/// for development, or of sources that do not tell.
pub const COMMIT: Option<&str> = option_env!("AUTOHEAL_PA_COMMIT");

/// The target it was built for, as Rust names it.
pub const TARGET: &str = env!("AUTOHEAL_PA_TARGET");

/// The profile it was built with.
pub const PROFILE: &str = env!("AUTOHEAL_PA_PROFILE");

/// Digits of a commit that are shown to people.
const SHORT_COMMIT: usize = 12;

/// What this program is, as JSON.
#[derive(Debug, Serialize)]
pub struct Program {
    pub version: &'static str,
    pub commit: Option<&'static str>,
    pub target: &'static str,
    pub profile: &'static str,
    /// The emulated AWS is in it.
    pub demo: bool,
}

impl Program {
    #[must_use]
    pub fn this() -> Self {
        Self { version: VERSION, commit: COMMIT, target: TARGET, profile: PROFILE, demo: cfg!(feature = "demo") }
    }
}

/// Returns the version and the commit, as one program tells it to another and to people: `0.1.0 (534c2ea1f00d)`. Two of the
/// same name are the same program.
#[must_use]
pub fn short() -> String {
    name(VERSION, COMMIT)
}

/// Returns all that is known, for `--version`.
#[must_use]
pub fn long() -> String {
    let commit = COMMIT.map_or("no commit".to_owned(), |commit| format!("commit {commit}"));
    format!("{VERSION} ({commit}, {TARGET}, {PROFILE})")
}

fn name(version: &str, commit: Option<&str>) -> String {
    let Some(commit) = commit else { return version.to_owned() };
    let (digits, changed) = commit.split_once('-').map_or((commit, ""), |(digits, _)| (digits, ", changed"));
    format!("{version} ({}{changed})", digits.get(..SHORT_COMMIT).unwrap_or(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_told_in_short() {
        let commit = "534c2ea1f00d0123456789abcdef0123456789ab";
        assert_eq!(name("0.1.0", Some(commit)), "0.1.0 (534c2ea1f00d)");
        assert_eq!(name("0.1.0", Some(&format!("{commit}-changed"))), "0.1.0 (534c2ea1f00d, changed)");
        assert_eq!(name("0.1.0", Some("v1")), "0.1.0 (v1)");
        assert_eq!(name("0.1.0", None), "0.1.0");
    }

    #[test]
    fn all_is_told() {
        let long = long();
        assert!(long.starts_with(&format!("{VERSION} (")) && long.contains(TARGET) && long.contains(PROFILE), "{long}");
        assert!(TARGET.contains('-') && !PROFILE.is_empty());
    }
}
