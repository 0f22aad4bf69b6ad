//! `env`: lines for a shell to evaluate, which set `KUBECONFIG`, and with `--proxy` the variables by which programs find the
//! manager's proxy. `up --env-file` writes those for the kubeconfig to a file.
//!
//! The running manager is asked first, as it knows which kubeconfig it has written.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use rustix::fs::OFlags;

use super::{
    GlobalArgs,
    error::{CommandError, Kind, name_option},
    output::Printer,
};
use crate::{
    kubeconfig::Files,
    manager::{
        control::{self, Answer, ManagerStatus, ProxyStatus, Request},
        env_file::{Shell, Told, lines, write_github},
    },
    settings::{self, Environment, Settings},
    util::{
        folder::{Missing, Place, is_refusal},
        quote::command,
    },
};

/// Time for the manager to answer.
const MANAGER_DEADLINE: Duration = Duration::from_secs(2);

/// Shells that read POSIX's language, zsh apart.
const POSIX_SHELLS: [&str; 11] =
    ["sh", "bash", "rbash", "dash", "ash", "busybox", "ksh", "ksh93", "mksh", "oksh", "yash"];

#[derive(Debug, Clone, Default, Args)]
pub struct EnvArgs {
    /// Shell to write for [default: that of the variable SHELL]
    #[arg(long, value_enum)]
    pub shell: Option<Shell>,
    /// Kubeconfig that `up` was given [default: the running manager's, else ~/.kube/autoheal-pa.yaml]
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// Sets the variables by which programs find a proxy as well, to that of the running manager, which `up --proxy` opens
    #[arg(long)]
    pub proxy: bool,
    /// Writes nothing to stdout, but adds the variables to the GITHUB_ENV file, for later steps of a GitHub Actions job
    #[arg(long, conflicts_with = "shell")]
    pub github_env: bool,
}

/// Guesses the shell of the user.
///
/// # Errors
/// [`Kind::Usage`] for one whose language is not known.
pub(super) fn shell_of(environment: &Environment) -> Result<Shell, CommandError> {
    let name = environment.get("SHELL").and_then(|path| Path::new(path).file_name()?.to_str());
    match name.map(without_version) {
        Some("zsh") => Ok(Shell::Zsh),
        Some("fish") => Ok(Shell::Fish),
        Some("csh" | "tcsh") => Ok(Shell::Csh),
        Some("pwsh" | "powershell") => Ok(Shell::Powershell),
        Some(name) if !POSIX_SHELLS.contains(&name) => {
            let message = format!("`SHELL` is `{name}`, which is not a supported shell");
            Err(CommandError::new(Kind::Usage, message)
                .hint("choose a syntax that it can read, such as `--shell bash`, or set `KUBECONFIG` by hand"))
        }
        _ => Ok(Shell::Bash),
    }
}

/// Takes the version from the name of a shell's file, such as `bash-5.2`, and an extension.
fn without_version(name: &str) -> &str {
    let name = name.strip_suffix(".exe").unwrap_or(name);
    let is_version = |rest: &str| rest.starts_with(|first: char| first.is_ascii_digit());
    match name.split_once('-') {
        Some((shell, rest)) if is_version(rest) => shell,
        _ => name,
    }
}

/// Prints the lines.
///
/// # Errors
/// [`CommandError`] if the settings are wrong.
pub async fn run(args: &EnvArgs, global: &GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    print(args, global, &Environment::read(), printer).await
}

async fn print(
    args: &EnvArgs,
    global: &GlobalArgs,
    environment: &Environment,
    printer: &Printer,
) -> Result<ExitCode, CommandError> {
    let common = Settings::without_file(global, environment)?;
    let manager = if args.kubeconfig.is_none() || args.proxy { ask_manager(&common.control_dir).await } else { None };
    let proxy = if args.proxy { Some(proxy_of(manager.as_deref(), &common.name)?) } else { None };
    if proxy.is_some_and(|proxy| proxy.others == "refuse") {
        printer.warning(
            "the proxy refuses all names but those of the tunnels, and programs of this shell use it for everything: \
             `up --proxy-others direct` lets them",
        );
    }
    let written = manager.as_ref().filter(|_| args.kubeconfig.is_none());
    let kubeconfigs = match written.and_then(|status| Some(files(PathBuf::from(status.kubeconfig.as_ref()?), status))) {
        Some(kubeconfigs) => Some(kubeconfigs),
        // A manager that is there has none where it has forwards alone.
        None if written.is_some_and(|status| args.proxy && status.opened) => None,
        None => {
            let settings = Settings::load(global, args.kubeconfig.as_deref(), environment)?;
            Some(Files::new(of_settings(&settings, printer)?, &settings.imported_from))
        }
    };
    if let Some(own) = kubeconfigs.as_ref().map(Files::own).filter(|own| !own.exists()) {
        printer.warning(&format!("`{}` does not exist yet: `autoheal-pa up` writes it", own.display()));
    }
    let told = Told { kubeconfig: kubeconfigs.as_ref(), proxy: proxy.map(|proxy| proxy.address.as_str()) };
    if let Some(path) = settings::github_env(args.github_env, environment)? {
        write_github(&path, told, environment)?;
    } else {
        let shell = args.shell.map_or_else(|| shell_of(environment), Ok)?;
        printer.result(&lines(shell, told, environment)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the proxy of a manager, of which there may be none.
///
/// # Errors
/// [`Kind::NotFound`] if it has no proxy, or is not there.
pub(super) fn proxy_of<'a>(manager: Option<&'a ManagerStatus>, name: &str) -> Result<&'a ProxyStatus, CommandError> {
    let option = name_option(name);
    match manager.map(|manager| &manager.proxy) {
        Some(Some(proxy)) => Ok(proxy),
        Some(None) => Err(CommandError::new(Kind::NotFound, format!("the running manager `{name}` has no proxy"))
            .hint(command!("stop it with `autoheal-pa down{}`, and start it with `--proxy`", option))),
        None => {
            Err(CommandError::new(Kind::NotFound, format!("the manager `{name}` is not running, and the proxy is its"))
                .hint(command!("start it with `autoheal-pa up --detach --proxy{}`", option)))
        }
    }
}

/// Returns the kubeconfig that the settings say. One in the manager's directory is only named if that is this user's own,
/// and it is made for that: as long as it is missing, another user could make it, with programs for kubectl to run.
pub(super) fn of_settings(settings: &Settings, printer: &Printer) -> Result<PathBuf, CommandError> {
    let path = &settings.kubeconfig;
    if *path == settings.own_kubeconfig() {
        control::open(&settings.control_dir, Missing::Make)?;
        if let Some(folder) = control::open_to_swaps(&settings.control_dir) {
            let folder = folder.display();
            printer.warning(&format!(
                "anyone who can write to `{folder}` can put another kubeconfig there: set `XDG_RUNTIME_DIR`"
            ));
        }
    }
    match Place::behind(path, Missing::Fail).and_then(|place| place.open(OFlags::RDONLY)) {
        Err(source) if is_refusal(&source) => {
            let message = format!("cannot use the kubeconfig `{}`", path.display());
            Err(CommandError::new(Kind::Usage, message)
                .with_source(source)
                .hint("give another file with `--kubeconfig`"))
        }
        // Whoever reads it says what else is wrong with it.
        _ => Ok(path.clone()),
    }
}

/// Asks the running manager which kubeconfig it has written, and where it has imported contexts from.
pub(super) async fn of_manager(dir: &Path) -> Option<Files> {
    let status = ask_manager(dir).await?;
    Some(files(PathBuf::from(status.kubeconfig.as_ref()?), &status))
}

/// Asks the running manager, if there is one.
async fn ask_manager(dir: &Path) -> Option<Box<ManagerStatus>> {
    match control::ask(dir, &Request::Status { follow: false }, MANAGER_DEADLINE).await {
        Ok(Answer::Status(status)) => Some(status),
        Ok(Answer::Token(_) | Answer::Reloaded(_) | Answer::Stopping | Answer::Finding(_) | Answer::Done) => None,
        Err(error) => {
            tracing::debug!(%error, "no status from the manager");
            None
        }
    }
}

/// Returns what `KUBECONFIG` has to name for the contexts of a manager, whose kubeconfig is `own`.
pub(super) fn files(own: PathBuf, status: &ManagerStatus) -> Files {
    let imported_from: Vec<_> = status.imported_from.iter().map(PathBuf::from).collect();
    Files::new(own, &imported_from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::Captured;

    #[test]
    fn knows_the_shell() {
        let detect = |path: &str| shell_of(&Environment::default().with([("SHELL", path)])).unwrap();
        assert_eq!(detect("/usr/bin/zsh"), Shell::Zsh);
        assert_eq!(detect("/opt/fish"), Shell::Fish);
        assert_eq!(detect("/usr/bin/pwsh"), Shell::Powershell);
        assert_eq!(detect("/bin/dash"), Shell::Bash);
        assert_eq!(detect("/opt/bin/bash-5.2"), Shell::Bash);
        assert_eq!(detect("/opt/bin/zsh-5.9"), Shell::Zsh);
        assert_eq!(detect("/usr/bin/ksh93"), Shell::Bash);
        assert_eq!(detect("/c/pwsh.exe"), Shell::Powershell);
        assert_eq!(detect(""), Shell::Bash);
        assert_eq!(detect("/bin/tcsh"), Shell::Csh);
    }

    #[test]
    fn a_shell_whose_language_is_not_known_is_an_error_that_names_the_option() {
        for path in ["/usr/bin/nu", "/opt/elvish", "/usr/bin/xonsh", "/opt/not-bash", "/opt/bash-it"] {
            let error = shell_of(&Environment::default().with([("SHELL", path)])).unwrap_err();
            assert_eq!(error.kind, Kind::Usage);
            assert!(error.next_steps()[0].contains("`--shell bash`"), "{:?}", error.next_steps());
        }
    }

    #[tokio::test]
    async fn prints_and_warns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let args = EnvArgs { shell: Some(Shell::Bash), kubeconfig: Some(path.clone()), ..EnvArgs::default() };
        let (printer, out, err) = Captured::printer();
        print(&args, &GlobalArgs::default(), &Environment::default(), &printer).await.unwrap();
        assert_eq!(out.text(), format!("export KUBECONFIG='{}'\n", path.display()));
        assert_eq!(
            err.text(),
            format!("warning: `{}` does not exist yet: `autoheal-pa up` writes it\n", path.display())
        );
        std::fs::write(&path, "").unwrap();
        let (printer, _, err) = Captured::printer();
        print(&args, &GlobalArgs::default(), &Environment::default(), &printer).await.unwrap();
        assert_eq!(err.text(), "");
    }

    #[tokio::test]
    async fn later_steps_of_a_job_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let (path, kubeconfig) = (dir.path().join("env"), dir.path().join("config"));
        std::fs::write(&path, "A=b\n").unwrap();
        std::fs::write(&kubeconfig, "").unwrap();
        let args = EnvArgs { kubeconfig: Some(kubeconfig.clone()), github_env: true, ..EnvArgs::default() };
        let (printer, out, err) = Captured::printer();
        let environment = Environment::default().with([("GITHUB_ENV", path.to_str().unwrap())]);
        print(&args, &GlobalArgs::default(), &environment, &printer).await.unwrap();
        assert_eq!((out.text(), err.text()), (String::new(), String::new()));
        let expected = format!("A=b\nKUBECONFIG={}\n", kubeconfig.display());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);

        let error = print(&args, &GlobalArgs::default(), &Environment::default(), &printer).await.unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
    }
}
