//! `env`: lines for a shell to evaluate, which set `KUBECONFIG`. `up --env-file` writes the same to a file.
//!
//! The running manager is asked first, as it knows which kubeconfig it has written.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, ValueEnum};
use rustix::fs::OFlags;

use super::{
    GlobalArgs,
    error::{CommandError, Kind},
    output::Printer,
};
use crate::{
    control::{self, Answer, Request},
    settings::{self, Environment, Settings},
    util::{
        folder::{Missing, Place, is_refusal},
        replace::{check_replaceable, replace},
    },
};

/// Time for the manager to answer.
const MANAGER_DEADLINE: Duration = Duration::from_secs(2);

/// Options of `env`.
#[derive(Debug, Clone, Default, Args)]
pub struct EnvArgs {
    /// Shell to write for [default: that of the variable SHELL]
    #[arg(long, value_enum)]
    pub shell: Option<Shell>,
    /// Kubeconfig that `up` was given [default: the running manager's, else ~/.kube/autoheal-pa.yaml]
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// Writes nothing to stdout, but adds KUBECONFIG to the file of GITHUB_ENV, for later steps of a GitHub Actions job
    #[arg(long, conflicts_with = "shell")]
    pub github_env: bool,
}

/// A shell whose language is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash, and every other shell that reads POSIX's language.
    #[value(alias = "sh")]
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
    /// PowerShell.
    #[value(alias = "pwsh")]
    Powershell,
}

impl Shell {
    /// Guesses the shell of the user.
    #[must_use]
    pub fn detect(environment: &Environment) -> Self {
        let name = environment.get("SHELL").and_then(|path| Path::new(path).file_stem()?.to_str());
        match name {
            Some("zsh") => Self::Zsh,
            Some("fish") => Self::Fish,
            Some("pwsh" | "powershell") => Self::Powershell,
            _ => Self::Bash,
        }
    }

    /// Chooses the shell that a file is for, by its extension.
    #[must_use]
    pub fn of_file(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("fish") => Self::Fish,
            Some("ps1") => Self::Powershell,
            _ => Self::Bash,
        }
    }

    /// Writes a line that exports a variable.
    #[must_use]
    pub fn export(self, name: &str, value: &str) -> String {
        match self {
            Self::Bash | Self::Zsh => format!("export {name}='{}'\n", value.replace('\'', r"'\''")),
            // In fish's single quotes a backslash still protects itself and the quote.
            Self::Fish => format!("set -gx {name} '{}'\n", value.replace('\\', r"\\").replace('\'', r"\'")),
            Self::Powershell => {
                // PowerShell takes typographic quotes for quotes as well. Doubled they stand for themselves.
                let mut quoted = String::with_capacity(value.len());
                for c in value.chars() {
                    quoted.push(c);
                    if matches!(c, '\'' | '\u{2018}' | '\u{2019}' | '\u{201a}' | '\u{201b}') {
                        quoted.push(c);
                    }
                }
                format!("$Env:{name} = '{quoted}'\n")
            }
        }
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
    let manager = match args.kubeconfig {
        Some(_) => None,
        None => of_manager(&Settings::without_file(global, environment)?.control_dir).await,
    };
    let kubeconfig = match manager {
        Some(kubeconfig) => kubeconfig,
        None => of_settings(&Settings::load(global, args.kubeconfig.as_deref(), environment)?, printer)?,
    };
    if !kubeconfig.exists() {
        printer.warning(&format!("`{}` is not there yet: `autoheal-pa up` writes it", kubeconfig.display()));
    }
    if let Some(path) = settings::github_env(args.github_env, environment)? {
        write_github(&path, &kubeconfig)?;
    } else {
        let shell = args.shell.unwrap_or_else(|| Shell::detect(environment));
        printer.result(&lines(shell, &kubeconfig)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the kubeconfig that the settings say. One in the manager's directory is only named if that is this user's own,
/// and it is made for that: as long as it is missing, another user could make it, with programs for kubectl to run.
fn of_settings(settings: &Settings, printer: &Printer) -> Result<PathBuf, CommandError> {
    let path = &settings.kubeconfig;
    if *path == settings.own_kubeconfig() {
        control::open(&settings.control_dir, Missing::Make)?;
        if let Some(folder) = control::open_to_swaps(&settings.control_dir) {
            let folder = folder.display();
            printer.warning(&format!(
                "whoever may write `{folder}` can put another kubeconfig there: set `XDG_RUNTIME_DIR`"
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

/// Asks the running manager which kubeconfig it has written.
async fn of_manager(dir: &Path) -> Option<PathBuf> {
    match control::ask(dir, &Request::Status { follow: false }, MANAGER_DEADLINE).await {
        Ok(Answer::Status(status)) => status.kubeconfig.map(PathBuf::from),
        Ok(Answer::Token(_) | Answer::Reloaded(_) | Answer::Stopping | Answer::Finding(_) | Answer::Done) => None,
        Err(error) => {
            tracing::debug!(%error, "no kubeconfig from the manager");
            None
        }
    }
}

/// Adds the variable to a file by which a step of a GitHub Actions job sets variables of later ones.
///
/// Follows GitHub's documentation of workflow commands, "Setting an environment variable".
///
/// # Errors
/// [`CommandError`] if it cannot be written.
pub fn write_github(path: &Path, kubeconfig: &Path) -> Result<(), CommandError> {
    add_to_github(path, kubeconfig, |mut file, line| file.write_all(line.as_bytes()))
}

/// Finds out whether [`write_github`] will be able to; adds nothing.
///
/// # Errors
/// [`CommandError`] if it will not.
pub fn check_github(path: &Path, kubeconfig: &Path) -> Result<(), CommandError> {
    add_to_github(path, kubeconfig, |_file, _line| Ok(()))
}

fn add_to_github(
    path: &Path,
    kubeconfig: &Path,
    add: impl FnOnce(File, String) -> io::Result<()>,
) -> Result<(), CommandError> {
    let failed = |source: io::Error| {
        let message = format!("cannot add to `{}`, which `GITHUB_ENV` names", path.display());
        CommandError::new(Kind::Usage, message).with_source(source)
    };
    let line = match kubeconfig.to_str() {
        Some(path) if !path.contains(['\n', '\r']) => format!("KUBECONFIG={path}\n"),
        _ => return Err(failed(io::Error::other("no line of it can name the path of the kubeconfig"))),
    };
    let file = Place::behind(path, Missing::Fail).and_then(|place| place.append());
    file.and_then(|file| add(file, line)).map_err(failed)
}

/// Writes the lines to a file that a shell can source; its extension tells which: `.fish`, `.ps1`, else bash and
/// the like. The file is replaced as a whole.
///
/// # Errors
/// [`CommandError`] if it cannot be written.
pub fn write(path: &Path, kubeconfig: &Path) -> Result<(), CommandError> {
    let lines = lines(Shell::of_file(path), kubeconfig)?;
    replace(path, lines.as_bytes()).map_err(|source| unwritable(path, source))
}

/// Finds out whether [`write()`] will be able to; changes nothing.
///
/// # Errors
/// [`CommandError`] if it will not.
pub fn check(path: &Path, kubeconfig: &Path) -> Result<(), CommandError> {
    let lines = lines(Shell::of_file(path), kubeconfig)?;
    check_replaceable(path, lines.len()).map_err(|source| unwritable(path, source))
}

fn unwritable(path: &Path, source: io::Error) -> CommandError {
    CommandError::new(Kind::Usage, format!("cannot write `{}`", path.display()))
        .with_source(source)
        .hint("give another file with `--env-file`")
}

fn lines(shell: Shell, kubeconfig: &Path) -> Result<String, CommandError> {
    // An argument or a variable cannot hold a zero, so no path that gets here has one.
    match kubeconfig.to_str() {
        Some(path) => Ok(shell.export("KUBECONFIG", path)),
        None => {
            let message = format!("the path `{}` is not UTF-8, so no shell line can name it", kubeconfig.display());
            Err(CommandError::new(Kind::Usage, message).hint("give another file with `--kubeconfig`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::cli::output::Captured;

    const AWKWARD: &str = "/tmp/it's a \"$HOME\" `id` \\n \\' ‘x’ !1 *;\n#";

    #[test]
    fn quotes_for_each_shell() {
        assert_eq!(Shell::Bash.export("A", "it's"), "export A='it'\\''s'\n");
        assert_eq!(Shell::Zsh.export("A", "b c"), "export A='b c'\n");
        assert_eq!(Shell::Fish.export("A", r"it's \n"), "set -gx A 'it\\'s \\\\n'\n");
        assert_eq!(Shell::Powershell.export("A", "it's ‘x’"), "$Env:A = 'it''s ‘‘x’’'\n");
    }

    #[test]
    fn a_shell_reads_what_was_meant() {
        // Whatever of these is installed; sh always is.
        for (program, shell) in [("sh", Shell::Bash), ("bash", Shell::Bash), ("zsh", Shell::Zsh), ("fish", Shell::Fish)]
        {
            let script = format!("{}printf %s \"$A\"", shell.export("A", AWKWARD));
            match Command::new(program).arg("-c").arg(script).output() {
                Ok(output) => assert_eq!(String::from_utf8(output.stdout).unwrap(), AWKWARD, "{program}"),
                Err(error) => assert!(program != "sh", "{error}"),
            }
        }
    }

    #[test]
    fn knows_the_shell() {
        let detect = |path: &str| Shell::detect(&Environment::default().with([("SHELL", path)]));
        assert_eq!(detect("/usr/bin/zsh"), Shell::Zsh);
        assert_eq!(detect("/opt/fish"), Shell::Fish);
        assert_eq!(detect("/usr/bin/pwsh"), Shell::Powershell);
        assert_eq!(detect("/bin/dash"), Shell::Bash);
        assert_eq!(detect(""), Shell::Bash);
        assert_eq!(Shell::of_file(Path::new("a/env.fish")), Shell::Fish);
        assert_eq!(Shell::of_file(Path::new("env.ps1")), Shell::Powershell);
        assert_eq!(Shell::of_file(Path::new(".env")), Shell::Bash);
    }

    #[tokio::test]
    async fn prints_and_warns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let args = EnvArgs { shell: Some(Shell::Bash), kubeconfig: Some(path.clone()), github_env: false };
        let (printer, out, err) = Captured::printer();
        print(&args, &GlobalArgs::default(), &Environment::default(), &printer).await.unwrap();
        assert_eq!(out.text(), format!("export KUBECONFIG='{}'\n", path.display()));
        assert_eq!(err.text(), format!("warning: `{}` is not there yet: `autoheal-pa up` writes it\n", path.display()));
        std::fs::write(&path, "").unwrap();
        let (printer, _, err) = Captured::printer();
        print(&args, &GlobalArgs::default(), &Environment::default(), &printer).await.unwrap();
        assert_eq!(err.text(), "");
    }

    #[test]
    fn writes_a_file_to_source() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/env");
        let kubeconfig = Path::new("/home/alice/.kube/autoheal-pa.yaml");
        write(&path, kubeconfig).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "export KUBECONFIG='/home/alice/.kube/autoheal-pa.yaml'\n");
        let error = write(dir.path(), kubeconfig).unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
    }

    #[tokio::test]
    async fn later_steps_of_a_job_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let (path, kubeconfig) = (dir.path().join("env"), dir.path().join("config"));
        std::fs::write(&path, "A=b\n").unwrap();
        std::fs::write(&kubeconfig, "").unwrap();
        let args = EnvArgs { shell: None, kubeconfig: Some(kubeconfig.clone()), github_env: true };
        let (printer, out, err) = Captured::printer();
        let environment = Environment::default().with([("GITHUB_ENV", path.to_str().unwrap())]);
        print(&args, &GlobalArgs::default(), &environment, &printer).await.unwrap();
        assert_eq!((out.text(), err.text()), (String::new(), String::new()));
        let expected = format!("A=b\nKUBECONFIG={}\n", kubeconfig.display());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);

        let error = print(&args, &GlobalArgs::default(), &Environment::default(), &printer).await.unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
        assert!(write_github(&path, Path::new("/a\nb")).is_err());
    }
}
