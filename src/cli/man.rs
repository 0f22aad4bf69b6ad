//! `man`: the pages of the commands, made of what these say of themselves, and the chapters about everything else.
//!
//! Chapters are shown as plain text, pages for `man -l`; among the files of `--out` both are pages.
//!
//! Options come from the command line's own definition, settings and their variables from their [rows], and exit codes from
//! [`exit_codes`]; only the files and the words for other variables are here, and a test compares these with all of them.
//!
//! [variables]: crate::settings::variables

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{
    Arg, Args, Command, CommandFactory,
    builder::{PossibleValue, StringValueParser, TypedValueParser},
};
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, roman},
};

use chapters::{CHAPTERS, Chapter};

use super::{
    Cli,
    error::{CommandError, Kind, exit_codes},
    output::Printer,
};
use crate::{
    settings::rows,
    util::{quote::command, replace::replace},
};

mod chapters;
mod markdown;
mod plain;

#[derive(Debug, Clone, Default, Args)]
pub struct ManArgs {
    /// Chapter, shown as text, or command, whose page is for `man -l` [default: a list on a terminal, else the program's page]
    #[arg(value_name = "TOPIC", conflicts_with = "out", value_parser = AnyTopic)]
    pub page: Option<String>,
    /// Folder to write all pages to
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Variables that are read besides those of settings, and what for. Those that share a meaning share an entry.
const ENVIRONMENT: &[(&[&str], &str)] = &[
    (&["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"], "Where the AWS configuration files are."),
    (
        &["ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"],
        "Where a GitHub Actions job with `id-token: write` gets an OIDC token; set by GitHub. It is used when a role is \
         given, but no profile and no keys.",
    ),
    (
        &["GITLAB_OIDC_TOKEN", "BITBUCKET_STEP_OIDC_TOKEN"],
        "The OIDC token of a job of GitLab (`id_tokens`) or of a step of Bitbucket (`oidc: true`), used in the same way.",
    ),
    (
        &[
            "CIRCLECI",
            "CIRCLE_OIDC_TOKEN_V2",
            "CIRCLE_OIDC_TOKEN",
            "BUILDKITE_JOB_ID",
            "SYSTEM_OIDCREQUESTURI",
            "SYSTEM_ACCESSTOKEN",
        ],
        "Where jobs of CircleCI, Buildkite and Azure DevOps get their OIDC tokens, with `--oidc` and their name.",
    ),
    (
        &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"],
        "Access keys, as for every AWS tool.",
    ),
    (&["AWS_CREDENTIAL_EXPIRATION"], "When these keys expire; `up` warns in advance."),
    (&["SSL_CERT_FILE"], "Certificate authorities to trust instead of the system's."),
    (
        &["HTTPS_PROXY", "NO_PROXY"],
        "The HTTP proxy for API calls and WebSockets, with user name and password if needed, and the hosts that are \
         reached without it. Loopback and instance metadata are never reached through it. Clients other than kubectl may \
         ask the proxy for the local ports unless NO_PROXY has 127.0.0.1: `env`, `exec` and `up --env-file` add that.",
    ),
    (
        &["AUTOHEAL_PA_OWN_PROXY"],
        "The proxy that `env --proxy` has put into the variables above. This program's own calls do not go through it, \
         but as if those were not set.",
    ),
    (
        &[
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_STS",
            "AWS_ENDPOINT_URL_AUTO_SCALING",
            "AWS_ENDPOINT_URL_EC2",
            "AWS_ENDPOINT_URL_EC2_INSTANCE_CONNECT",
            "AWS_ENDPOINT_URL_ECS",
            "AWS_ENDPOINT_URL_EKS",
            "AWS_ENDPOINT_URL_IAM",
            "AWS_ENDPOINT_URL_SSM",
            "AWS_ENDPOINT_URL_SSO",
            "AWS_ENDPOINT_URL_SSO_OIDC",
            "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
        ],
        "Endpoints of your own; a message gateway on the host of the SSM endpoint is then trusted.",
    ),
    (&["AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"], "`true` selects endpoints of this kind."),
    (&["AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"], "How and how often calls are retried, as in the AWS CLI."),
    (
        &["AWS_EC2_METADATA_DISABLED", "AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"],
        "Whether and where to ask for an instance's credentials.",
    ),
    (
        &[
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        ],
        "Where a container gets credentials; set by ECS and EKS.",
    ),
    (&["GITHUB_ENV"], "The file that `--github-env` adds KUBECONFIG to; set by GitHub."),
    (&["KUBERNETES_EXEC_INFO"], "What kubectl asks `token` for; set by kubectl."),
    (
        &["NOTIFY_SOCKET"],
        "Where to tell systemd when the tunnels are ready and what state they are in; set by systemd.",
    ),
    (&["HOME"], "Where `~/.kube` is; otherwise taken from the user database."),
    (
        &["XDG_RUNTIME_DIR"],
        "Where the manager's lock and control socket are; otherwise in a private folder below the temporary directory, on \
         macOS in `~/Library/Application Support/autoheal-pa`.",
    ),
    (
        &["XDG_STATE_HOME"],
        "Where the log of a manager in the background is, and the known keys of SSH servers; otherwise `~/.local/state`.",
    ),
    (&["SSH_AUTH_SOCK"], "The SSH agent, for `ssh://HOST?key=agent`."),
    (&["XDG_CONFIG_HOME"], "Where to look for the configuration file; otherwise `~/.config`."),
    (&["USER", "LOGNAME"], "The name of the user, for the name of the role's session."),
    (&["PATH"], "Where to find this program if it was started by name: kubeconfigs refer to it by its path."),
    (
        &["DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION", "CI"],
        "Whether `login` can open a browser here, by `xdg-open`, and whether there is somebody to ask.",
    ),
    (&["SHELL"], "The shell that `env` writes for without `--shell`."),
    (&["NO_COLOR", "TERM"], "With `NO_COLOR`, or on a `dumb` terminal, there are no colours and no animation."),
];

/// Files, and what is in them. `<name>` is the manager's, `default` unless `--name` says another.
const FILES: &[(&str, &str)] = &[
    ("~/.kube/autoheal-pa.yaml", "The kubeconfig of the manager `default`."),
    ("~/.kube/autoheal-pa-<name>.yaml", "The kubeconfig of another manager."),
    ("$XDG_RUNTIME_DIR/autoheal-pa/<name>/", "Lock, control socket, and the journal of live sessions."),
    ("$XDG_STATE_HOME/autoheal-pa/<name>.log", "The log of a manager in the background."),
    ("$XDG_STATE_HOME/autoheal-pa/known_hosts", "The keys of SSH servers, by the ids of their instances."),
    ("$XDG_CONFIG_HOME/autoheal-pa/config.yaml", "The configuration file, unless `--config` gives another."),
];

/// Prints a page, or writes all.
///
/// # Errors
/// [`CommandError`] if there is no such page or the pages cannot be written.
pub fn run(args: &ManArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    match (&args.out, &args.page) {
        (Some(folder), _) => {
            for (name, page) in pages() {
                write(&folder.join(format!("{name}.1")), &page)?;
            }
            printer.progress(&format!("wrote the manual pages to `{}`", folder.display()));
        }
        // The source of a page is of no use to whoever looks at a terminal.
        (None, None) if printer.redraws() => printer.result(&topics())?,
        (None, None) => printer.result(&page(&program()))?,
        (None, Some(name)) => match (Chapter::find(name), program().find_subcommand(name)) {
            (Some(chapter), _) => printer.result(&plain::render(chapter.page))?,
            (None, Some(command)) => printer.result(&page(command))?,
            (None, None) => {
                let chapters: Vec<_> = CHAPTERS.iter().map(|chapter| format!("`{}`", chapter.name)).collect();
                let message = format!("there is neither a chapter nor a command `{name}`");
                let hint = format!("the chapters are {}; `autoheal-pa --help` lists the commands", chapters.join(", "));
                return Err(CommandError::new(Kind::Usage, message).hint(hint));
            }
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes every name, as what is unknown is said like everything else that is wrong; help and completions are told the known ones.
#[derive(Debug, Clone)]
struct AnyTopic;

impl TypedValueParser for AnyTopic {
    type Value = String;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let known = known_topics().into_iter();
        Some(Box::new(known.map(|(name, about)| PossibleValue::new(name).help(about))))
    }
}

/// Chapters and commands, each with what it is about.
fn known_topics() -> Vec<(String, String)> {
    let program = Cli::command();
    let about = |command: &Command| command.get_about().map(ToString::to_string).unwrap_or_default();
    let commands = program.get_subcommands().map(|command| (command.get_name().to_owned(), about(command)));
    CHAPTERS.iter().map(|chapter| (chapter.name.to_owned(), chapter.about().to_owned())).chain(commands).collect()
}

/// What there is to read, for a terminal.
fn topics() -> String {
    let known = known_topics();
    let lines = |topics: &[(String, String)]| -> String {
        topics.iter().map(|(name, about)| format!("  {name:18}{about}\n")).collect()
    };
    let (chapters, commands) = known.split_at(CHAPTERS.len());
    let how = command!("Chapters, as in `autoheal-pa man {}`:", CHAPTERS[0].name);
    let pages = "Commands, as in `autoheal-pa man up | man -l -`:";
    format!("{how}\n{}\n{pages}\n{}", lines(chapters), lines(commands))
}

fn write(path: &Path, page: &str) -> Result<(), CommandError> {
    replace(path, page.as_bytes()).map_err(|source| {
        CommandError::new(Kind::Usage, format!("cannot write `{}`", path.display()))
            .with_source(source)
            .hint("give another folder with `--out`")
    })
}

/// The command line with everything that is inherited filled in.
fn program() -> Command {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    program
}

/// All pages with their names, such as `autoheal-pa-up`.
fn pages() -> Vec<(String, String)> {
    let program = program();
    let commands = std::iter::once(&program).chain(program.get_subcommands());
    let chapters = CHAPTERS.iter().map(|chapter| (format!("autoheal-pa-{}", chapter.name), chapter_page(chapter)));
    commands.map(|command| (title(command), page(command))).chain(chapters).collect()
}

fn chapter_page(chapter: &Chapter) -> String {
    let mut roff = Roff::new();
    let title = format!("autoheal-pa-{}", chapter.name);
    let source = ["autoheal-pa", env!("CARGO_PKG_VERSION")].join(" ");
    roff.control("TH", [title.as_str(), "1", "", source.as_str(), "autoheal-pa manual"]);
    chapter.roff(&mut roff);
    see_also(&mut roff);
    let mut text = Vec::new();
    roff.to_writer(&mut text).expect("a vector takes everything");
    // Not every groff reads UTF-8, and all know characters by their numbers.
    let text = String::from_utf8(text).expect("chapters are UTF-8");
    text.chars().map(|c| if c.is_ascii() { c.to_string() } else { format!("\\[u{:04X}]", u32::from(c)) }).collect()
}

fn title(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn page(command: &Command) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let man = Man::new(command.clone()).source(["autoheal-pa", version].join(" ")).manual("autoheal-pa manual");
    let mut text = Vec::new();
    let is_program = command.has_subcommands();
    let sections = [
        man.render_title(&mut text),
        man.render_name_section(&mut text),
        synopsis(command).to_writer(&mut text),
        man.render_description_section(&mut text),
        if is_program { man.render_subcommands_section(&mut text) } else { Ok(()) },
        man.render_options_section(&mut text),
    ];
    sections.into_iter().collect::<Result<(), _>>().expect("a vector takes everything");

    let mut roff = Roff::new();
    examples(command, &mut roff);
    if is_program {
        exit_status(&mut roff);
        configuration(&mut roff);
        environment(&mut roff);
        files(&mut roff);
        chapters(&mut roff);
    } else {
        see_also(&mut roff);
    }
    roff.to_writer(&mut text).expect("a vector takes everything");
    String::from_utf8(text).expect("names and help are UTF-8")
}

/// The usage line; one with all options is not read by anybody.
fn synopsis(command: &Command) -> Roff {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage);
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold(usage)]);
    roff
}

fn examples(command: &Command, roff: &mut Roff) {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    roff.control("SH", ["EXAMPLES"]);
    roff.control("nf", []);
    for line in help.lines().skip(1) {
        roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
    }
    roff.control("fi", []);
}

fn exit_status(roff: &mut Roff) {
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in exit_codes() {
        entry(roff, vec![bold(code.to_string())], &sentence(meaning));
    }
    roff.control("PP", []);
    roff.text([roman("With a command to run, the status is the command's own.")]);
}

fn configuration(roff: &mut Roff) {
    roff.control("SH", ["CONFIGURATION FILE"]);
    let keys = "A YAML file with these keys. Flags override variables, and variables override the file.";
    roff.text([roman(keys)]);
    for row in rows::all() {
        let in_entry = if row.in_entry { " Allowed in an entry of `access`." } else { "" };
        entry(roff, vec![bold(row.name)], &format!("{}{in_entry}", row.summary()));
    }
    let access = "A list of entries, one for each identity in a region, with its bastions and clusters. An entry \
                  overrides variables; what it leaves out comes from the top level.";
    entry(roff, vec![bold("access")], access);
}

fn environment(roff: &mut Roff) {
    roff.control("SH", ["ENVIRONMENT"]);
    for row in rows::all().into_iter().filter(|row| !row.variables.is_empty()) {
        let several = if row.is_list { ", separated by commas" } else { "" };
        entry(roff, names(row.variables), &format!("As `{}`{several}: {}.", row.flag(), row.help()));
    }
    for (variables, meaning) in ENVIRONMENT {
        entry(roff, names(variables), meaning);
    }
}

fn names(names: &[&str]) -> Vec<Inline> {
    let mut title = Vec::new();
    for name in names {
        if !title.is_empty() {
            title.push(roman(", "));
        }
        title.push(bold(*name));
    }
    title
}

fn files(roff: &mut Roff) {
    roff.control("SH", ["FILES"]);
    for (path, meaning) in FILES {
        entry(roff, vec![bold(*path)], meaning);
    }
}

fn chapters(roff: &mut Roff) {
    roff.control("SH", ["CHAPTERS"]);
    for chapter in CHAPTERS {
        entry(roff, vec![bold(command!("autoheal-pa man {}", chapter.name))], &sentence(chapter.about()));
    }
}

fn see_also(roff: &mut Roff) {
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("autoheal-pa"), roman("(1) for exit codes, variables, files and chapters")]);
}

fn entry(roff: &mut Roff, title: Vec<Inline>, meaning: &str) {
    roff.control("TP", []);
    roff.text(title);
    // What is in backticks elsewhere is bold in a manual.
    let parts = meaning.split('`').enumerate();
    roff.text(parts.map(|(index, part)| if index % 2 == 1 { bold(part) } else { roman(part) }).collect::<Vec<_>>());
}

/// Makes a sentence of a fragment.
fn sentence(fragment: &str) -> String {
    let mut chars = fragment.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{first}{}.", chars.as_str())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, process};

    use super::*;
    use crate::{cli::output::Captured, settings::variables};

    fn known() -> BTreeSet<&'static str> {
        let of_rows = rows::all().into_iter().flat_map(|row| row.variables);
        of_rows.chain(ENVIRONMENT.iter().flat_map(|(names, _)| names.iter())).copied().collect()
    }

    fn is_variable(word: &str) -> bool {
        word.len() > 3 && word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    }

    #[test]
    fn the_help_names_only_known_variables() {
        for (name, page) in pages() {
            for part in page.split("[env: ").skip(1) {
                let list = part.split(']').next().unwrap();
                let words = list.split([',', ' ']).map(|word| word.replace('\\', ""));
                for word in words.filter(|word| is_variable(word)) {
                    assert!(known().contains(word.as_str()), "{name}: {word}");
                }
            }
        }
    }

    fn sources(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(sources(&path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(path).unwrap();
                found.push(text.split("#[cfg(test)]").next().unwrap().to_owned());
            }
        }
        found
    }

    #[test]
    fn every_variable_that_is_read_is_in_the_table_and_in_the_manual() {
        let table: BTreeSet<_> = variables().map(|(name, _)| name).collect();
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let code: Vec<_> = ["settings", "cli", "aws"].iter().flat_map(|module| sources(&src.join(module))).collect();
        let mut read = known();
        for call in ["get(\"", "is_true(\"", "variables(&[\""] {
            let words =
                code.iter().flat_map(|code| code.split(call).skip(1)).map(|rest| rest.split('"').next().unwrap());
            read.extend(words.filter(|word| is_variable(word)));
        }
        assert!(read.len() > 40, "{read:?}");
        let unknown: Vec<_> = read.iter().filter(|word| !table.contains(*word)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        // What the SDK says of itself is nobody's concern.
        let unsaid = |name: &&&str| name.starts_with("AWS_") && !known().contains(**name);
        let unsaid: Vec<_> = table.iter().filter(unsaid).collect();
        assert_eq!(unsaid, [&"AWS_EXECUTION_ENV", &"AWS_LAMBDA_FUNCTION_NAME"]);
    }

    #[test]
    fn every_setting_is_in_the_help_and_in_the_manual() {
        let plain = |page: String| {
            let escapes = [("\\-", "-"), ("\\*(Aq", "'"), ("\\fB", ""), ("\\fR", "")];
            escapes.iter().fold(page, |page, (escape, text)| page.replace(escape, text))
        };
        let (up, all) = (plain(page(program().find_subcommand("up").unwrap())), plain(page(&program())));
        let mut command = Cli::command();
        command.build();
        let help = command.find_subcommand_mut("up").unwrap().render_help().to_string();
        for row in rows::all() {
            let flag = row.flag();
            assert!(["<", "[<", " "].iter().any(|next| help.contains(&format!("{flag} {next}"))), "{flag}");
            assert!(up.contains(&flag), "{flag}");
            assert!(all.contains(&format!(".TP\n{}\n", row.name)), "{}", row.name);
            for words in [row.without().map(ToOwned::to_owned), row.range()].into_iter().flatten() {
                assert!(all.contains(&format!(": {words}.")), "{words}");
            }
            assert!(row.variables.iter().all(|name| all.contains(name)), "{:?}", row.variables);
        }
    }

    #[test]
    fn the_page_of_the_program() {
        let page = page(&program());
        let sections =
            "NAME SYNOPSIS DESCRIPTION EXAMPLES \"EXIT_STATUS\" \"CONFIGURATION_FILE\" ENVIRONMENT FILES CHAPTERS";
        for section in sections.split(' ').map(|section| section.replace('_', " ")) {
            assert_eq!(page.matches(&format!(".SH {section}\n")).count(), 1, "{section}\n{page}");
        }
        for (code, meaning) in exit_codes() {
            let meaning = sentence(meaning).replace('`', "");
            let page = page.replace("\\fB", "").replace("\\fR", "");
            assert!(page.contains(&format!(".TP\n{code}\n{meaning}\n")), "{code} {meaning}");
        }
    }

    #[test]
    fn groff_takes_every_page() {
        for (name, page) in pages() {
            let groff = process::Command::new("groff")
                .args(["-man", "-Tutf8", "-ww", "-z"])
                .stdin(process::Stdio::piped())
                .stderr(process::Stdio::piped())
                .spawn();
            // Where there is none, `the_page_of_the_program` has to do.
            let Ok(mut groff) = groff else { return };
            std::io::Write::write_all(&mut groff.stdin.take().unwrap(), page.as_bytes()).unwrap();
            let output = groff.wait_with_output().unwrap();
            let warnings = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success() && warnings.is_empty(), "{name}: {warnings}");
        }
    }

    #[test]
    fn writes_all_pages_and_refuses_unknown_ones() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("man1");
        let (printer, out, err) = Captured::printer();
        run(&ManArgs { page: None, out: Some(folder.clone()) }, &printer).unwrap();
        assert_eq!(
            (out.text(), err.text()),
            (String::new(), format!("wrote the manual pages to `{}`\n", folder.display()))
        );
        let mut names: Vec<_> =
            folder.read_dir().unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let mut expected: Vec<_> =
            program().get_subcommands().map(|command| format!("autoheal-pa-{}.1", command.get_name())).collect();
        expected.push("autoheal-pa.1".to_owned());
        expected.extend(CHAPTERS.iter().map(|chapter| format!("autoheal-pa-{}.1", chapter.name)));
        expected.sort();
        assert_eq!(names, expected);

        let (printer, out, _) = Captured::printer();
        run(&ManArgs { page: Some("up".to_owned()), out: None }, &printer).unwrap();
        assert!(
            out.text().contains("autoheal\\-pa\\-up") && out.text().contains("\\-\\-base\\-port"),
            "{}",
            out.text()
        );
        let error = run(&ManArgs { page: Some("upp".to_owned()), out: None }, &printer).unwrap_err();
        assert_eq!(
            (error.kind, error.sentence().as_str()),
            (Kind::Usage, "there is neither a chapter nor a command `upp`")
        );
        let hints = error.next_steps().concat();
        assert!(CHAPTERS.iter().all(|chapter| hints.contains(&format!("`{}`", chapter.name))), "{hints}");
    }

    #[test]
    fn chapters_are_shown_as_text_and_written_as_pages() {
        for chapter in CHAPTERS {
            let (printer, out, _) = Captured::printer();
            run(&ManArgs { page: Some(chapter.name.to_owned()), out: None }, &printer).unwrap();
            let text = out.text();
            assert!(text.to_lowercase().starts_with(&format!("{}: ", chapter.name)), "{text}");
            let marks = ["```", "](", "**", "\n|", "\n#"];
            assert!(marks.iter().all(|mark| !text.contains(mark)), "{text}");

            let page = chapter_page(chapter);
            assert!(
                page.contains("\n.SH NAME\n") && page.contains(&format!("\n.TH autoheal-pa-{} 1", chapter.name)),
                "{page}"
            );
            assert!(program().find_subcommand(chapter.name).is_none(), "which of the two {} is", chapter.name);
        }
    }

    #[test]
    fn a_terminal_gets_a_list() {
        let list = topics();
        for (name, about) in known_topics() {
            assert!(list.contains(&format!("  {name:18}{about}\n")), "{list}");
        }
    }
}
