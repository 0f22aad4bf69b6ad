//! How others find the kubeconfig and the proxy: lines for a shell, and variables of a job of GitHub Actions.
//!
//! Where a proxy is set they take the local ports out of it: there are clients that would ask it for 127.0.0.1.
//!
//! With the proxy of this program, all variables by which programs find one name it. Also `ALL_PROXY` has its HTTP form, as
//! there are programs that fail at once when that is `socks5h://` and they have not been built for it. What was excepted before is
//! not excepted any more, since clusters and forwards may be among it; the proxy has the exceptions of the manager's environment.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::ValueEnum;

use crate::{
    kubeconfig::Files,
    settings::{Environment, OWN_PROXY, PROXY_VARIABLES},
    util::{
        folder::{Missing, Place},
        quote::Language,
        replace::{check_replaceable, replace},
    },
};

/// Where the tunnels are.
const LOCAL: &str = "127.0.0.1";

/// What the proxy of this program is not for: this machine itself, and where it gets metadata and credentials.
const NOT_BY_OWN_PROXY: &str =
    "localhost,127.0.0.1,::1,169.254.169.254,169.254.170.2,169.254.170.23,fd00:ec2::254,fd00:ec2::23";

/// Those by which they find what it is not for. Which of the two counts depends on the client.
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// Why such a file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum EnvFileError {
    /// No line can name the kubeconfig.
    #[error("the path `{}` is not UTF-8, so it cannot be written as a line of shell", .0.display())]
    NotUtf8(PathBuf),
    /// The file to source cannot be written.
    #[error("cannot write `{}`", path.display())]
    Unwritable {
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file of the job cannot be added to.
    #[error("cannot append to `{}`, the file of `GITHUB_ENV`", path.display())]
    Job {
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
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

/// What others are told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Told<'a> {
    pub kubeconfig: Option<&'a Files>,
    /// The address of the proxy, if they are to use it.
    pub proxy: Option<&'a str>,
}

impl<'a> From<&'a Files> for Told<'a> {
    fn from(kubeconfig: &'a Files) -> Self {
        Self { kubeconfig: Some(kubeconfig), proxy: None }
    }
}

type Variables = Vec<(&'static str, String)>;

fn variables(told: Told<'_>, environment: &Environment) -> Result<Variables, EnvFileError> {
    let mut variables = Vec::new();
    if let Some(kubeconfig) = told.kubeconfig {
        // An argument or a variable cannot hold a zero, so no path that gets here has one.
        let value = kubeconfig.variable().into_string().map_err(|value| EnvFileError::NotUtf8(value.into()))?;
        variables.push(("KUBECONFIG", value));
    }
    variables.extend(told.proxy.map_or_else(|| no_proxy(environment), own_proxy));
    Ok(variables)
}

/// Returns the variables that lead programs through the proxy of this program, which listens at this address.
pub fn own_proxy(address: &str) -> Variables {
    let url = format!("http://{address}");
    let proxies = PROXY_VARIABLES.into_iter().chain([OWN_PROXY]).map(|name| (name, url.clone()));
    proxies.chain(NO_PROXY.map(|name| (name, NOT_BY_OWN_PROXY.to_owned()))).collect()
}

/// Returns the variables that take the local ports out of the proxy of an environment, where it has one and they do not
/// yet. kubectl asks no proxy for 127.0.0.1, and other clients do.
pub fn no_proxy(environment: &Environment) -> Variables {
    if !PROXY_VARIABLES.iter().any(|name| environment.get(name).is_some()) {
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

/// Adds the variable to a file by which a step of a GitHub Actions job sets variables of later ones.
///
/// Follows GitHub's documentation of workflow commands, "Setting an environment variable".
///
/// # Errors
/// [`EnvFileError`] if it cannot be written.
pub fn write_github(path: &Path, told: Told<'_>, environment: &Environment) -> Result<(), EnvFileError> {
    add_to_github(path, told, environment, |mut file, lines| file.write_all(lines.as_bytes()))
}

/// Finds out whether [`write_github`] will be able to; adds nothing.
///
/// # Errors
/// [`EnvFileError`] if it will not.
pub fn check_github(path: &Path, told: Told<'_>, environment: &Environment) -> Result<(), EnvFileError> {
    add_to_github(path, told, environment, |_file, _lines| Ok(()))
}

fn add_to_github(
    path: &Path,
    told: Told<'_>,
    environment: &Environment,
    add: impl FnOnce(File, String) -> io::Result<()>,
) -> Result<(), EnvFileError> {
    let failed = |source: io::Error| EnvFileError::Job { path: path.to_owned(), source };
    let variables = variables(told, environment)?;
    if variables.iter().any(|(_, value)| value.contains(['\n', '\r'])) {
        return Err(failed(io::Error::other("the path of the kubeconfig has a line break")));
    }
    let lines = variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    let file = Place::behind(path, Missing::Fail).and_then(|place| place.append());
    file.and_then(|file| add(file, lines)).map_err(failed)
}

/// Writes the lines to a file that a shell can source; its extension tells which: `.fish`, `.csh`, `.ps1`, else bash
/// and the like. The file is replaced as a whole.
///
/// # Errors
/// [`EnvFileError`] if it cannot be written.
pub fn write(path: &Path, kubeconfig: &Files, environment: &Environment) -> Result<(), EnvFileError> {
    let lines = lines(Shell::of_file(path), kubeconfig.into(), environment)?;
    replace(path, lines.as_bytes()).map_err(|source| unwritable(path, source))
}

/// Finds out whether [`write()`] will be able to; changes nothing.
///
/// # Errors
/// [`EnvFileError`] if it will not.
pub fn check(path: &Path, kubeconfig: &Files, environment: &Environment) -> Result<(), EnvFileError> {
    let lines = lines(Shell::of_file(path), kubeconfig.into(), environment)?;
    check_replaceable(path, lines.len()).map_err(|source| unwritable(path, source))
}

fn unwritable(path: &Path, source: io::Error) -> EnvFileError {
    EnvFileError::Unwritable { path: path.to_owned(), source }
}

/// Returns the lines for a shell to evaluate.
///
/// # Errors
/// [`EnvFileError::NotUtf8`].
pub fn lines(shell: Shell, told: Told<'_>, environment: &Environment) -> Result<String, EnvFileError> {
    let variables = variables(told, environment)?;
    Ok(variables.iter().map(|(name, value)| shell.export(name, value)).collect())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn files(path: &str) -> Files {
        Files::new(path.into(), &[])
    }

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
        let lines = lines(Shell::Bash, (&files("/a")).into(), &environment).unwrap();
        assert_eq!(lines, "export KUBECONFIG='/a'\nexport NO_PROXY='127.0.0.1'\nexport no_proxy='127.0.0.1'\n");
    }

    #[test]
    fn every_variable_of_a_proxy_names_that_of_this_program() {
        let environment =
            Environment::default().with([("HTTPS_PROXY", "http://corp:1"), ("no_proxy", ".internal,10.0.0.0/8")]);
        let told = Told { kubeconfig: None, proxy: Some("127.0.0.1:10099") };
        let lines = lines(Shell::Bash, told, &environment).unwrap();
        for name in ["HTTPS_PROXY", "http_proxy", "all_proxy", "AUTOHEAL_PA_OWN_PROXY"] {
            assert!(lines.contains(&format!("export {name}='http://127.0.0.1:10099'\n")), "{lines}");
        }
        // Where clusters and forwards may be is not excepted.
        assert!(lines.contains("export NO_PROXY='localhost,127.0.0.1,::1,") && !lines.contains(".internal"), "{lines}");
        assert_eq!(lines.lines().count(), 9);

        // And this program's own calls take no notice of them.
        let environment = environment.with(own_proxy("127.0.0.1:10099"));
        assert!(PROXY_VARIABLES.iter().all(|name| environment.get(name).is_none()));
        let other = environment.with([("HTTPS_PROXY", "http://corp:1")]);
        assert_eq!(other.get("HTTPS_PROXY"), Some("http://corp:1"));
    }

    #[test]
    fn the_extension_of_a_file_tells_its_shell() {
        assert_eq!(Shell::of_file(Path::new("a/env.fish")), Shell::Fish);
        assert_eq!(Shell::of_file(Path::new("a/env.csh")), Shell::Csh);
        assert_eq!(Shell::of_file(Path::new("env.ps1")), Shell::Powershell);
        assert_eq!(Shell::of_file(Path::new(".env")), Shell::Bash);
    }

    #[test]
    fn writes_a_file_to_source() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/env");
        let kubeconfig = &files("/home/alice/.kube/autoheal-pa.yaml");
        write(&path, kubeconfig, &Environment::default()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "export KUBECONFIG='/home/alice/.kube/autoheal-pa.yaml'\n");
        let error = write(dir.path(), kubeconfig, &Environment::default()).unwrap_err();
        assert!(matches!(error, EnvFileError::Unwritable { .. }), "{error}");
    }

    #[test]
    fn no_path_has_two_lines_in_the_file_of_a_job() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "A=b\n").unwrap();
        assert!(write_github(&path, (&files("/a\nb")).into(), &Environment::default()).is_err());
    }
}
