//! `config check`: whether a configuration file is right, and what `up` would do with it; `config schema`: what one may be.
//!
//! The first reads what `up` reads, the environment included, and makes no call. Whether the bastions and clusters exist is the
//! business of `doctor`.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};

use super::{
    GlobalArgs,
    error::{CommandError, Kind},
    output::Printer,
};
use crate::{
    bastion::{Bastion, Fargate, FargateOptions},
    settings::{Access, AwsSettings, Chosen, Environment, Source, UpArgs, UpSettings, schema},
    util::written::in_words,
};

#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// What to do with the file.
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// What to do with the configuration file.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Checks the configuration file, and says what `up` would do with it
    ///
    /// Says everything that is wrong at once, each with line and column, and exits with 2 then.
    #[command(after_help = "Examples:\n  autoheal-pa config check\n  autoheal-pa config check ./autoheal-pa.yaml")]
    Check(CheckArgs),
    /// Prints the JSON schema of the configuration file, which editors use to complete and check it
    #[command(after_help = "Example:\n  autoheal-pa config schema > autoheal-pa.schema.json")]
    Schema,
}

/// Options of `config check`.
#[derive(Debug, Clone, Default, Args)]
pub struct CheckArgs {
    /// File to check [default: ~/.config/autoheal-pa/config.yaml]
    #[arg(value_name = "FILE", conflicts_with = "config")]
    pub file: Option<PathBuf>,
}

/// Checks a file, or prints the schema of all.
///
/// # Errors
/// [`CommandError`] with everything that is wrong.
pub fn run(args: ConfigArgs, global: GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    match args.command {
        ConfigCommand::Check(args) => check(args, global, &Environment::read(), printer),
        ConfigCommand::Schema => {
            printer.result(&format!("{:#}\n", schema()))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn check(
    args: CheckArgs,
    mut global: GlobalArgs,
    environment: &Environment,
    printer: &Printer,
) -> Result<ExitCode, CommandError> {
    let Some(path) = args.file.or(global.config).or_else(|| environment.config_file()) else {
        let message = "there is no home directory to find the configuration file in";
        return Err(CommandError::new(Kind::Usage, message).hint("give its path: `autoheal-pa config check FILE`"));
    };
    // A file that is named has to be there.
    global.config = Some(path.clone());
    let settings = UpSettings::load(&global, &UpArgs::default(), environment)?;
    printer.result(&summary(&path, &settings))?;
    Ok(ExitCode::SUCCESS)
}

fn summary(path: &Path, settings: &UpSettings) -> String {
    let mut text = format!("`{}` is valid; `up` would open tunnels\n", path.display());
    for Access { aws, bastion, clusters, import_contexts, no_clusters, forwards, reason, .. } in &settings.access {
        let bastions: Vec<_> = bastion.iter().map(ToString::to_string).collect();
        let clusters = match &clusters[..] {
            [] if *no_clusters => "none".to_owned(),
            [] => "all active ones".to_owned(),
            some => some.join(", "),
        };
        let mut line = |name: &str, value: &str| write_line(&mut text, "  ", name, value);
        line("region", aws.region.as_deref().unwrap_or("that of the profile"));
        line("identity", &identity(aws));
        line("bastion", &bastions.join(", else "));
        line("clusters", &clusters);
        if !import_contexts.is_empty() {
            line("imported", &format!("{}, from {}", import_contexts.join(", "), list(&settings.common.imported_from)));
        }
        if !forwards.is_empty() {
            line("forwards", &forwards.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
        }
        if let Some(reason) = reason {
            line("reason", reason);
        }
        if let Some(fargate) = bastion.iter().find_map(Bastion::fargate) {
            line("fargate", &task(fargate));
        }
        text.push('\n');
    }
    let ports = match settings.base_port {
        0 => "any free ones".to_owned(),
        port if settings.strict_ports => format!("from {port}, or fails if one is taken"),
        port => format!("from {port}, skipping taken ones"),
    };
    write_line(&mut text, "", "manager", &settings.common.name);
    write_line(&mut text, "", "ports", &ports);
    write_line(&mut text, "", "contexts", &format!("{}CLUSTER", settings.context_prefix));
    write_line(&mut text, "", "kubeconfig", &settings.common.kubeconfig.display().to_string());
    text
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Says what task would be run.
fn task(fargate: &Fargate) -> String {
    let FargateOptions { task_definition, task_role, image, ttl, .. } = &fargate.options;
    let what = match task_definition {
        Some(definition) => format!("task definition `{definition}`"),
        None => format!("`{image}` as `{task_role}`"),
    };
    format!("{what} in the ECS cluster `{}`, for {} at most", fargate.cluster, in_words(*ttl))
}

fn write_line(text: &mut String, indent: &str, name: &str, value: &str) {
    writeln!(text, "{indent}{name:<10}  {value}").expect("a string takes everything");
}

/// Says who the program would be to AWS.
fn identity(aws: &AwsSettings) -> String {
    // Whether a profile assumes a role by itself is not known before its file is read.
    let Chosen { role, source, passed_over: _ } = aws.choose(false);
    let (is_token, source) = match source {
        Source::TokenFile(file) => (true, format!("the token in `{}`", file.display())),
        Source::CiJob => (true, "the CI job's token".to_owned()),
        Source::Keys => (false, "the keys in the environment".to_owned()),
        Source::Profile(name) => (false, format!("profile `{name}`")),
        Source::Chain => (false, "what the AWS SDK finds".to_owned()),
    };
    match role {
        None => source,
        Some(role) => format!("role {role}, {} {source}", if is_token { "with" } else { "assumed by" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::output::Captured,
        settings::rows::{self, tests::example},
    };

    const ROLE: &str = "arn:aws:iam::123456789012:role/ReadOnly";

    fn folder(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.yaml"), text).unwrap();
        dir
    }

    /// Checks a text, and returns what is printed.
    fn checked(text: &str, variables: &[(&str, &str)]) -> Result<String, CommandError> {
        let dir = folder(text);
        let mut environment = Environment::default().with(variables.iter().copied());
        environment.current_dir = dir.path().to_owned();
        environment.home = Some("/home/alice".into());
        let (printer, out, _) = Captured::printer();
        let args = CheckArgs { file: Some("config.yaml".into()) };
        check(args, GlobalArgs::default(), &environment, &printer)?;
        Ok(out.text().replace(&dir.path().display().to_string(), "/work"))
    }

    #[test]
    fn says_what_up_would_do() {
        let several = format!(
            "strict_ports: true\nduration: 2h\naccess:\n\
             - {{region: us-east-1, bastion: [i-0abcdef1, i-0abcdef2], role_arn: '{ROLE}', clusters: [payments, search]}}\n\
             - {{region: eu-west-1, bastion: i-0abcdef3, role_arn: '{ROLE}', web_identity_token_file: token, reason: INC-42}}\n\
             - {{profile: dev, bastion: i-0abcdef4}}\n"
        );
        insta::assert_snapshot!(checked(&several, &[]).unwrap());
        let one = "base_port: 0\nkubeconfig: kube/config\ncontext_prefix: ''\n";
        let variables = [("AUTOHEAL_PA_BASTION", "i-0abcdef1"), ("AWS_ACCESS_KEY_ID", "x"), ("AWS_PROFILE", "x")];
        insta::assert_snapshot!(checked(one, &variables).unwrap());
    }

    #[test]
    fn says_where_contexts_are_imported_from() {
        let text = "bastion: i-0abcdef1\nimport_contexts: [kops, k3s]\n";
        let said = checked(text, &[]).unwrap();
        assert!(said.contains("  imported    kops, k3s, from /home/alice/.kube/config\n"), "{said}");
        let said = checked(&format!("{text}import_kubeconfig: own.yaml\n"), &[("KUBECONFIG", "/a:/b")]).unwrap();
        assert!(said.contains("  imported    kops, k3s, from /work/own.yaml\n"), "{said}");
    }

    #[test]
    fn says_what_is_forwarded_to() {
        let said =
            checked("bastion: i-0abcdef1\nno_clusters: true\nforwards: ['db=db:5432@15432', 'x:1']\n", &[]).unwrap();
        assert!(said.contains("  clusters    none\n  forwards    db=db:5432@15432, x:1\n"), "{said}");
        let twice =
            "forwards: [x:1]\naccess:\n- {region: a-1, bastion: i-0abcdef1}\n- {region: b-1, bastion: i-0abcdef1}\n";
        let error = checked(twice, &[]).unwrap_err().sentence();
        assert!(error.contains("`x:1` is not the only one with its name and local port in all entries"), "{error}");
    }

    #[test]
    fn every_setting_may_be_in_the_file() {
        let others = [
            "bastion: i-0abcdef1".to_owned(),
            format!("role_arn: {ROLE}"),
            "kubeconfig_mode: proxy".to_owned(),
            "on_demand: true".to_owned(),
            "tags: us-east-1=payments".to_owned(),
            "reason: payments are down".to_owned(),
        ];
        for row in rows::all() {
            let line = format!("{}: {}", row.name, example(row));
            let own = format!("{}:", row.name);
            let rest: String =
                others.iter().filter(|other| !other.starts_with(&own)).map(|other| format!("{other}\n")).collect();
            checked(&format!("{rest}{line}"), &[]).unwrap_or_else(|error| panic!("{line}: {error}"));
            let in_entry = checked(&format!("{rest}access: [{{{line}}}]"), &[]);
            assert_eq!(in_entry.is_ok(), row.in_entry, "{line}");
        }
    }

    #[test]
    fn a_wrong_file_is_a_wrong_usage() {
        let error = checked("regin: us-east-1\nbastion: bastion\n", &[]).unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
        let text = error.sentence();
        assert!(text.contains("config.yaml:1:1: ") && text.contains("config.yaml:2:10: "), "{text}");
    }

    #[test]
    fn the_file_has_to_be_there() {
        let home = tempfile::tempdir().unwrap();
        let mut environment = Environment::default();
        environment.home = Some(home.path().to_owned());
        let run = |global, environment: &Environment| {
            check(CheckArgs::default(), global, environment, &Captured::printer().0).unwrap_err().sentence()
        };
        let path = home.path().join(".config/autoheal-pa/config.yaml");
        let expected = format!("cannot read the configuration file `{}`: ", path.display());
        assert!(run(GlobalArgs::default(), &environment).starts_with(&expected));
        let named = GlobalArgs { config: Some("/does/not/exist".into()), ..GlobalArgs::default() };
        assert!(run(named, &environment).contains("`/does/not/exist`"));
        environment.home = None;
        assert!(run(GlobalArgs::default(), &environment).starts_with("there is no home directory"));
    }
}
