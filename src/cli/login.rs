//! `login`: signs in to IAM Identity Center by a code that a person approves in a browser, on this machine or any other.
//!
//! Nothing secret is printed but that code, which is of no use to whoever cannot sign in. The browser is sent nowhere but to
//! a page that was asked for a moment ago, over HTTPS.

use std::{
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
};

use clap::Args;
use tokio::process::{Child, Command};

use super::{GlobalArgs, ask, error::CommandError, output::Printer};
use crate::{
    aws::{Approval, AwsError, ProfileFault, SignIn},
    settings::{Access, AwsSettings, Environment, UpArgs},
    util::{
        quote::command,
        written::{in_words, rfc3339},
    },
};

#[derive(Debug, Clone, Default, Args)]
pub struct LoginArgs {
    /// Shows the page's address and opens no browser
    #[arg(long)]
    pub no_browser: bool,
}

/// Signs in with the profile, or with each that the configuration file names.
///
/// # Errors
/// [`CommandError`] for a profile that is not of IAM Identity Center, and if nobody approves.
pub async fn run(args: LoginArgs, global: GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    let environment = Environment::read();
    let accesses = Access::load(&global, &UpArgs::default(), &environment)?;
    let mut signed_in: Vec<SignIn> = Vec::new();
    let mut passed_over: Option<AwsError> = None;
    for Access { aws, .. } in &accesses {
        match SignIn::of(aws).await {
            Ok(sign_in) if signed_in.iter().any(|other| other.is_same(&sign_in)) => {}
            Ok(sign_in) => {
                perform(&sign_in, !args.no_browser, &environment, printer).await?;
                signed_in.push(sign_in);
            }
            // Of several profiles some may need none.
            Err(error) if accesses.len() > 1 && has_no_sign_in(&error) => passed_over = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    match passed_over {
        Some(error) if signed_in.is_empty() => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn has_no_sign_in(error: &AwsError) -> bool {
    matches!(error, AwsError::Profile { fault, .. } if matches!(**fault, ProfileFault::NoSignIn { .. }))
}

/// Offers to sign in where somebody has to before there are credentials, and is there to do it. What is wrong with profiles
/// besides is for those to say who need the credentials.
///
/// # Errors
/// [`CommandError`] if somebody has begun to sign in and has not come to an end.
pub(super) async fn offer<'a>(
    accesses: impl IntoIterator<Item = &'a AwsSettings>,
    printer: &Printer,
) -> Result<(), CommandError> {
    if !ask::is_somebody_there() {
        return Ok(());
    }
    let mut asked: Vec<SignIn> = Vec::new();
    for aws in accesses {
        let Ok(Some(sign_in)) = SignIn::used_by(aws).await else { continue };
        if asked.iter().any(|other| other.is_same(&sign_in)) || !sign_in.is_needed().await {
            continue;
        }
        printer.progress(&format!("profile `{}` is not signed in to IAM Identity Center", sign_in.profile()));
        if ask::yes_or_no("sign in now (yes or no)? ", printer).await {
            perform(&sign_in, true, &Environment::read(), printer).await?;
        }
        asked.push(sign_in);
    }
    Ok(())
}

async fn perform(
    sign_in: &SignIn,
    may_open: bool,
    environment: &Environment,
    printer: &Printer,
) -> Result<(), CommandError> {
    let approval = sign_in.start().await?;
    let Approval { code, page, lasts, .. } = &approval;
    printer.progress(&format!(
        "to sign in profile `{}`, open this page, and allow it there if it shows {code}:",
        sign_in.profile()
    ));
    printer.progress(&format!("  {page}"));
    let browser = if may_open { browser(environment).and_then(|browser| open(&browser, page)) } else { None };
    let opened = if browser.is_some() { ", in the browser that was opened" } else { "" };
    printer.progress(&format!("waiting for that{opened}: {} are left", in_words(*lasts)));
    let ends = sign_in.finish(approval).await?;
    let until = match ends {
        Some(end) => format!("until {}", rfc3339(end)),
        None => "and is renewed without asking until IAM Identity Center ends the session".to_owned(),
    };
    printer.result(&format!("profile `{}` is signed in to {} {until}", sign_in.profile(), sign_in.start_url()))
}

/// The program that opens pages in this user's browser, if this is a session in which there is one: not over SSH, where the
/// person looks at another machine.
fn browser(environment: &Environment) -> Option<PathBuf> {
    let is_set = |name: &&str| environment.get(name).is_some();
    if ["SSH_CONNECTION", "CI"].iter().any(is_set) {
        return None;
    }
    if cfg!(target_os = "macos") {
        return Some(PathBuf::from("/usr/bin/open"));
    }
    if !["DISPLAY", "WAYLAND_DISPLAY"].iter().any(is_set) {
        return None;
    }
    let folders = std::env::split_paths(environment.get("PATH")?);
    folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join("xdg-open")).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Starts the browser. It outlives this program, and writes nothing between its lines.
fn open(browser: &Path, page: &str) -> Option<Child> {
    let mut command = Command::new(browser);
    command.arg(page).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn().inspect_err(|error| tracing::info!(%error, "cannot open a browser")).ok()
}

/// The command that signs a profile in.
pub(super) fn command_for(profile: &str) -> String {
    command!("autoheal-pa login --profile {}", profile)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[cfg(not(target_os = "macos"))]
    #[test]
    fn a_browser_is_opened_only_where_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("xdg-open");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        let path = folder.path().to_str().unwrap();
        let found = |variables: &[(&str, &str)]| {
            let variables = [("PATH", path)].into_iter().chain(variables.iter().copied());
            browser(&Environment::default().with(variables))
        };
        assert_eq!(found(&[("DISPLAY", ":0")]), None, "it is no program yet");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(found(&[("DISPLAY", ":0")]), Some(program.clone()));
        assert_eq!(found(&[("WAYLAND_DISPLAY", "wayland-0")]), Some(program));
        for elsewhere in [
            &[][..],
            &[("DISPLAY", "")],
            &[("DISPLAY", "localhost:10.0"), ("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 22")],
            &[("DISPLAY", ":99"), ("CI", "true")],
            &[("DISPLAY", ":0"), ("PATH", "/nowhere")],
        ] {
            assert_eq!(found(elsewhere), None, "{elsewhere:?}");
        }
    }
}
