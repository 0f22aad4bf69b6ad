//! `env`: lines for a shell to evaluate, which set `KUBECONFIG`. `up --env-file` writes the same to a file.
//!
//! Where a proxy is set they take the local ports out of it: there are clients that would ask it for 127.0.0.1.
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
    manager::control::{self, Answer, Request},
    settings::{self, Environment, Settings},
    util::{
        folder::{Missing, Place, is_refusal},
        quote::Language,
        replace::{check_replaceable, replace},
    },
};

/// Time for the manager to answer.
const MANAGER_DEADLINE: Duration = Duration::from_secs(2);

/// Where the tunnels are.
const LOCAL: &str = "127.0.0.1";

/// The variables by which clients find a proxy.
const PROXIES: [&str; 6] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// Those by which they find what it is not for. Which of the two counts depends on the client.
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// Shells that read POSIX's language, zsh apart.
const POSIX_SHELLS: [&str; 11] =
    ["sh", "bash", "rbash", "dash", "ash", "busybox", "ksh", "ksh93", "mksh", "oksh", "yash"];

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
    /// csh and tcsh.
    #[value(alias = "tcsh")]
    Csh,
    /// PowerShell.
    #[value(alias = "pwsh")]
    Powershell,
}

impl Shell {
    /// Guesses the shell of the user.
    ///
    /// # Errors
    /// [`Kind::Usage`] for one whose language is not known.
    pub fn detect(environment: &Environment) -> Result<Self, CommandError> {
        let name = environment.get("SHELL").and_then(|path| Path::new(path).file_name()?.to_str());
        match name.map(without_version) {
            Some("zsh") => Ok(Self::Zsh),
            Some("fish") => Ok(Self::Fish),
            Some("csh" | "tcsh") => Ok(Self::Csh),
            Some("pwsh" | "powershell") => Ok(Self::Powershell),
            Some(name) if !POSIX_SHELLS.contains(&name) => {
                let message = format!("the variable `SHELL` names `{name}`, whose language is not known here");
                Err(CommandError::new(Kind::Usage, message)
                    .hint("name a language that it can read, such as `--shell bash`; or set `KUBECONFIG` by hand"))
            }
            _ => Ok(Self::Bash),
        }
    }

    /// Chooses the shell that a file is for, by its extension.
    #[must_use]
    pub fn of_file(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("fish") => Self::Fish,
            Some("csh" | "tcsh") => Self::Csh,
            Some("ps1") => Self::Powershell,
            _ => Self::Bash,
        }
    }

    /// Writes a line that exports a variable.
    #[must_use]
    pub fn export(self, name: &str, value: &str) -> String {
        match self {
            Self::Bash | Self::Zsh => format!("export {name}={}\n", Language::Posix.quote(value)),
            Self::Fish => format!("set -gx {name} {}\n", Language::Fish.quote(value)),
            // With an end of its own: between backquotes csh makes blanks of line breaks.
            Self::Csh => format!("setenv {name} {};\n", Language::Csh.quote(value)),
            Self::Powershell => format!("$Env:{name} = {}\n", Language::PowerShell.quote(value)),
        }
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

/// The variables that are set.
fn variables(kubeconfig: &Path, environment: &Environment) -> Result<Vec<(&'static str, String)>, CommandError> {
    // An argument or a variable cannot hold a zero, so no path that gets here has one.
    let Some(path) = kubeconfig.to_str() else {
        let message = format!("the path `{}` is not UTF-8, so no shell line can name it", kubeconfig.display());
        return Err(CommandError::new(Kind::Usage, message).hint("give another file with `--kubeconfig`"));
    };
    let mut variables = vec![("KUBECONFIG", path.to_owned())];
    variables.extend(no_proxy(environment));
    Ok(variables)
}

/// Returns the variables that take the local ports out of the proxy of an environment, where it has one and they do not
/// yet. kubectl asks no proxy for 127.0.0.1, and other clients do.
pub(super) fn no_proxy(environment: &Environment) -> Vec<(&'static str, String)> {
    if !PROXIES.iter().any(|name| environment.get(name).is_some()) {
        return Vec::new();
    }
    let old = NO_PROXY.map(|name| environment.get(name));
    let either = old[0].or(old[1]).unwrap_or_default();
    let new = |name, old: Option<&str>| {
        let hosts = old.unwrap_or(either).trim_end_matches([',', ' ']);
        let has = |wanted| hosts.split(',').any(|host| host.trim() == wanted);
        // Besides others the star is the name of a host to some clients.
        let has_it = has("*") || (old.is_some() && has(LOCAL));
        let separator = if hosts.is_empty() { "" } else { "," };
        (!has_it).then(|| (name, format!("{hosts}{separator}{LOCAL}")))
    };
    NO_PROXY.into_iter().zip(old).filter_map(|(name, old)| new(name, old)).collect()
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
        write_github(&path, &kubeconfig, environment)?;
    } else {
        let shell = args.shell.map_or_else(|| Shell::detect(environment), Ok)?;
        printer.result(&lines(shell, &kubeconfig, environment)?)?;
    }
    Ok(ExitCode::SUCCESS)
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
pub(super) async fn of_manager(dir: &Path) -> Option<PathBuf> {
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
pub fn write_github(path: &Path, kubeconfig: &Path, environment: &Environment) -> Result<(), CommandError> {
    add_to_github(path, kubeconfig, environment, |mut file, lines| file.write_all(lines.as_bytes()))
}

/// Finds out whether [`write_github`] will be able to; adds nothing.
///
/// # Errors
/// [`CommandError`] if it will not.
pub fn check_github(path: &Path, kubeconfig: &Path, environment: &Environment) -> Result<(), CommandError> {
    add_to_github(path, kubeconfig, environment, |_file, _lines| Ok(()))
}

fn add_to_github(
    path: &Path,
    kubeconfig: &Path,
    environment: &Environment,
    add: impl FnOnce(File, String) -> io::Result<()>,
) -> Result<(), CommandError> {
    let failed = |source: io::Error| {
        let message = format!("cannot add to `{}`, which `GITHUB_ENV` names", path.display());
        CommandError::new(Kind::Usage, message).with_source(source)
    };
    let variables = variables(kubeconfig, environment)?;
    if variables.iter().any(|(_, value)| value.contains(['\n', '\r'])) {
        return Err(failed(io::Error::other("no line of it can name the path of the kubeconfig")));
    }
    let lines = variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    let file = Place::behind(path, Missing::Fail).and_then(|place| place.append());
    file.and_then(|file| add(file, lines)).map_err(failed)
}

/// Writes the lines to a file that a shell can source; its extension tells which: `.fish`, `.csh`, `.ps1`, else bash
/// and the like. The file is replaced as a whole.
///
/// # Errors
/// [`CommandError`] if it cannot be written.
pub fn write(path: &Path, kubeconfig: &Path, environment: &Environment) -> Result<(), CommandError> {
    let lines = lines(Shell::of_file(path), kubeconfig, environment)?;
    replace(path, lines.as_bytes()).map_err(|source| unwritable(path, source))
}

/// Finds out whether [`write()`] will be able to; changes nothing.
///
/// # Errors
/// [`CommandError`] if it will not.
pub fn check(path: &Path, kubeconfig: &Path, environment: &Environment) -> Result<(), CommandError> {
    let lines = lines(Shell::of_file(path), kubeconfig, environment)?;
    check_replaceable(path, lines.len()).map_err(|source| unwritable(path, source))
}

fn unwritable(path: &Path, source: io::Error) -> CommandError {
    CommandError::new(Kind::Usage, format!("cannot write `{}`", path.display()))
        .with_source(source)
        .hint("give another file with `--env-file`")
}

fn lines(shell: Shell, kubeconfig: &Path, environment: &Environment) -> Result<String, CommandError> {
    let variables = variables(kubeconfig, environment)?;
    Ok(variables.iter().map(|(name, value)| shell.export(name, value)).collect())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::cli::output::Captured;

    #[test]
    fn every_shell_reads_what_was_meant() {
        let awkward = "/tmp/it's a \"$HOME\" `id` \\n \\' ‘x’ !1 *;\n#";
        // Whatever of these is installed; sh always is, and in the gate all but PowerShell.
        #[expect(clippy::disallowed_methods, reason = "the gate asks for them by a variable")]
        let required = std::env::var_os("AUTOHEAL_PA_TEST_REQUIRES_SHELLS").is_some();
        for (program, shell) in [
            ("sh", Shell::Bash),
            ("bash", Shell::Bash),
            ("zsh", Shell::Zsh),
            ("fish", Shell::Fish),
            ("tcsh", Shell::Csh),
            ("pwsh", Shell::Powershell),
        ] {
            let script = format!("{}printenv A", shell.export("A", awkward));
            match Command::new(program).arg("-c").arg(script).output() {
                Ok(output) => {
                    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{awkward}\n"), "{program}")
                }
                Err(error) => {
                    assert!(program != "sh" && (!required || program == "pwsh"), "{program}: {error}");
                    let mut stderr = io::stderr();
                    let _written = writeln!(stderr, "SKIPPED: {program} is not there to read what is meant for it");
                }
            }
        }
    }

    #[test]
    fn local_ports_are_taken_out_of_the_proxy() {
        let added = |variables: &[(&str, &str)]| no_proxy(&Environment::default().with(variables.iter().copied()));
        let both = |value: &str| vec![("NO_PROXY", value.to_owned()), ("no_proxy", value.to_owned())];
        assert_eq!(added(&[]), []);
        assert_eq!(added(&[("NO_PROXY", "a")]), []);
        assert_eq!(added(&[("https_proxy", "http://p:1")]), both("127.0.0.1"));
        assert_eq!(added(&[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", "a,.b,")]), both("a,.b,127.0.0.1"));
        let other = added(&[("ALL_PROXY", "http://p:1"), ("NO_PROXY", "*"), ("no_proxy", "a")]);
        assert_eq!(other, [("no_proxy", "a,127.0.0.1".to_owned())]);
        assert_eq!(added(&[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", "*")]), []);
        assert_eq!(added(&[("HTTPS_PROXY", "http://p:1"), ("no_proxy", " * ")]), []);
        let all = [("HTTP_PROXY", "http://p:1"), ("NO_PROXY", "a, 127.0.0.1"), ("no_proxy", "127.0.0.1")];
        assert_eq!(added(&all), []);
        let environment = Environment::default().with([("HTTPS_PROXY", "http://p:1")]);
        let lines = lines(Shell::Bash, Path::new("/a"), &environment).unwrap();
        assert_eq!(lines, "export KUBECONFIG='/a'\nexport NO_PROXY='127.0.0.1'\nexport no_proxy='127.0.0.1'\n");
    }

    #[test]
    fn knows_the_shell() {
        let detect = |path: &str| Shell::detect(&Environment::default().with([("SHELL", path)])).unwrap();
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
        assert_eq!(Shell::of_file(Path::new("a/env.fish")), Shell::Fish);
        assert_eq!(Shell::of_file(Path::new("a/env.csh")), Shell::Csh);
        assert_eq!(Shell::of_file(Path::new("env.ps1")), Shell::Powershell);
        assert_eq!(Shell::of_file(Path::new(".env")), Shell::Bash);
    }

    #[test]
    fn a_shell_whose_language_is_not_known_is_an_error_that_names_the_option() {
        for path in ["/usr/bin/nu", "/opt/elvish", "/usr/bin/xonsh", "/opt/not-bash", "/opt/bash-it"] {
            let error = Shell::detect(&Environment::default().with([("SHELL", path)])).unwrap_err();
            assert_eq!(error.kind, Kind::Usage);
            assert!(error.next_steps()[0].contains("`--shell bash`"), "{:?}", error.next_steps());
        }
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
        write(&path, kubeconfig, &Environment::default()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "export KUBECONFIG='/home/alice/.kube/autoheal-pa.yaml'\n");
        let error = write(dir.path(), kubeconfig, &Environment::default()).unwrap_err();
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
        assert!(write_github(&path, Path::new("/a\nb"), &Environment::default()).is_err());
    }
}
