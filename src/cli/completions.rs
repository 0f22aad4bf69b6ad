//! `completions`: a script that makes a shell complete commands, options and values.

use std::process::ExitCode;

use clap::{Arg, Args, Command, CommandFactory};
use clap_complete::Shell;

use super::{Cli, error::CommandError, output::Printer};

#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// Shell to write for
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// [`CommandError`] if stdout takes nothing.
pub fn run(args: &CompletionsArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    printer.result(&script(args.shell))?;
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell) -> String {
    let mut command = Cli::command().mut_subcommands(without_hidden);
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    let script = String::from_utf8(script).expect("names and help are UTF-8");
    // The generator for bash writes the dash of the program's name in two ways, and so finds no command's options.
    if shell == Shell::Bash { script.replace("autoheal__subcmd__pa", "autoheal__pa") } else { script }
}

/// Leaves out what nobody is to type: the generators offer hidden options as well.
fn without_hidden(command: Command) -> Command {
    if !command.get_arguments().any(Arg::is_hide_set) {
        return command;
    }
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set()).cloned();
    let about = command.get_about().cloned().unwrap_or_default();
    Command::new(command.get_name().to_owned()).about(about).args(shown)
}

#[cfg(test)]
mod tests {
    use std::process;

    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_gets_every_command() {
        for shell in Shell::value_variants() {
            let script = script(*shell);
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
            assert!(script.contains("detach") && !script.contains("-background"), "{shell}");
        }
    }

    /// Asks bash to complete the last of the words, as it does for a Tab.
    fn completed(words: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("completions.bash");
        std::fs::write(&path, script(Shell::Bash)).unwrap();
        let list = words.join(" ");
        let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
        let ask = format!(
            "set -eu; . '{}'; [[ $(complete -p autoheal-pa) =~ -F\\ ([^ ]+) ]]; \
             COMP_WORDS=({list}); COMP_CWORD={}; \"${{BASH_REMATCH[1]}}\" autoheal-pa '{last}' '{before}'; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            path.display(),
            words.len() - 1,
        );
        let output = process::Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn bash_completes_commands_options_and_values() {
        let check = process::Command::new("bash").args(["-n", "/dev/stdin"]).stdin(process::Stdio::piped()).spawn();
        let mut check = check.expect("the gate has bash");
        std::io::Write::write_all(&mut check.stdin.take().unwrap(), script(Shell::Bash).as_bytes()).unwrap();
        assert!(check.wait().unwrap().success());

        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert!(completed(&["autoheal-pa", &name[..1]]).iter().any(|word| word == name), "{name}");
        }
        assert_eq!(completed(&["autoheal-pa", "policy", "--acco"]), ["--account-id"]);
        assert_eq!(completed(&["autoheal-pa", "completions", "z"]), ["zsh"]);
        assert_eq!(completed(&["autoheal-pa", "env", "--shell", "f"]), ["fish"]);
        assert_eq!(completed(&["autoheal-pa", "man", "tr"]), ["troubleshooting"]);
        assert_eq!(completed(&["autoheal-pa", "man", "co"]), ["configuration", "config", "completions"]);
    }
}
