//! The command line: what it takes, and which command does it.
//!
//! Each command is a module with one `run`. This layer knows all others and none knows it.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use error::CommandError;
use log::LogFile;
use output::Printer;

pub use crate::settings::{GlobalArgs, LogFormat, PolicyArgs, SetupArgs, UpArgs};
use crate::{
    aws::mfa,
    settings::{Environment, Settings, UpSettings},
};

mod ask;
mod background;
pub mod clusters;
pub mod completions;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod doctor;
pub mod down;
pub mod env;
pub mod error;
mod events;
pub mod exec;
pub mod forward;
pub mod kubeconfig;
pub mod limits;
pub mod log;
pub mod login;
pub mod logs;
pub mod man;
pub mod output;
pub mod policy;
mod progress;
pub mod reload;
mod screen;
pub mod setup;
mod signals;
pub mod status;
mod table;
pub mod token;
pub mod up;
pub mod version;

/// Makes private EKS clusters reachable for kubectl through SSM Session Manager.
///
/// Opens one Session Manager session per cluster through a bastion, and writes a kubeconfig with one
/// context per cluster that leads through it. Needs AWS credentials and nothing else: no VPN, no SSH, no
/// AWS CLI, no session-manager-plugin.
#[derive(Debug, Parser)]
#[command(
    name = "autoheal-pa",
    version = crate::version::long(),
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Example:\n  autoheal-pa up --bastion i-0dc03fbcae2a87472 --region us-east-1\n  \
                  eval \"$(autoheal-pa env)\" && kubectl get nodes"
)]
pub struct Cli {
    /// Options that every command takes.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Opens the tunnels and keeps them open until it is stopped
    ///
    /// Prints `tunnel ready` on a line of its own on stdout once every tunnel is proved to work. Ctrl-C stops it.
    #[command(after_help = "Examples:\n  autoheal-pa up --bastion i-0dc03fbcae2a87472\n  \
                            autoheal-pa up --bastion i-0dc03fbcae2a87472 --cluster payments --cluster search --region us-east-1 \\\n    \
                            --role-arn arn:aws:iam::123456789012:role/AutohealReadOnlyRole --web-identity-token-file /var/run/token")]
    Up(UpArgs),
    /// Stops the running manager, ends its sessions and removes its contexts
    #[command(after_help = "Examples:\n  autoheal-pa down\n  autoheal-pa down --name ci")]
    Down(down::DownArgs),
    /// Shows what the running manager is doing: each tunnel's state, session, traffic and problems
    #[command(after_help = "Examples:\n  autoheal-pa status\n  autoheal-pa status --watch\n  \
                            autoheal-pa status --json | jq -r '.tunnels[] | select(.state != \"active\") | .context'")]
    Status(status::StatusArgs),
    /// Runs a command with tunnels open, and exits with its status
    ///
    /// Uses the running manager if there is one. Otherwise it opens the tunnels, runs the command with KUBECONFIG set
    /// when they are ready, and closes them again.
    #[command(
        // They are refused, with the reason.
        mut_arg("detach", |arg| arg.hide(true)),
        mut_arg("env_file", |arg| arg.hide(true)),
        mut_arg("github_env", |arg| arg.hide(true)),
        after_help = "Examples:\n  autoheal-pa exec --bastion i-0dc03fbcae2a87472 -- kubectl get nodes\n  \
                            autoheal-pa exec --bastion i-0dc03fbcae2a87472 --cluster payments -- sh -c 'kubectl apply -f . && kubectl rollout status deploy/api'")]
    Exec(exec::ExecArgs),
    /// Opens local ports for hosts behind a bastion, such as databases, and asks EKS nothing
    ///
    /// As `up --forward` without clusters: the same manager, which `status`, `doctor` and `down` are about. Prints
    /// `tunnel ready` when the other end takes connections, with `--check tcp` when the hosts have accepted one.
    #[command(
        // They are about clusters, and refused.
        mut_arg("clusters", |arg| arg.hide(true)),
        mut_arg("import_contexts", |arg| arg.hide(true)),
        mut_arg("no_clusters", |arg| arg.hide(true)),
        mut_arg("forwards", |arg| arg.hide(true)),
        mut_arg("kubeconfig", |arg| arg.hide(true)),
        mut_arg("import_kubeconfig", |arg| arg.hide(true)),
        mut_arg("set_current", |arg| arg.hide(true)),
        mut_arg("kubeconfig_mode", |arg| arg.hide(true)),
        mut_arg("context_prefix", |arg| arg.hide(true)),
        mut_arg("env_file", |arg| arg.hide(true)),
        mut_arg("github_env", |arg| arg.hide(true)),
        after_help = "Examples:\n  autoheal-pa forward --bastion i-0dc03fbcae2a87472 db.internal:5432@5432\n  \
                            autoheal-pa forward --bastion i-0dc03fbcae2a87472 db=db.internal:5432@15432 cache=10.0.7.20:6379@16379 --detach")]
    Forward(forward::ForwardArgs),
    /// Signs in to IAM Identity Center, for the profile and for all tools that use it
    ///
    /// Shows a page and a code, and waits until somebody allows it there, in any browser on any machine. The token is kept
    /// where the AWS CLI and the AWS SDKs look for it. Tunnels that are open stay so, and a running manager takes the new
    /// token by itself.
    #[command(
        after_help = "Examples:\n  autoheal-pa login --profile dev\n  autoheal-pa login --profile dev --no-browser"
    )]
    Login(login::LoginArgs),
    /// Shows the log of the manager in the background
    #[command(after_help = "Examples:\n  autoheal-pa logs\n  autoheal-pa logs -f -n 20")]
    Logs(logs::LogsArgs),
    /// Makes the running manager look for clusters again, without touching the tunnels that stay
    #[command(after_help = "Example:\n  autoheal-pa reload")]
    Reload,
    /// Lists the EKS clusters that the credentials can see
    #[command(
        after_help = "Examples:\n  autoheal-pa clusters --region us-east-1\n  autoheal-pa clusters --json | jq -r '.clusters[].name'"
    )]
    Clusters(clusters::ClustersArgs),
    /// Checks the configuration file, or prints its schema
    #[command(after_help = "Examples:\n  autoheal-pa config check ./autoheal-pa.yaml\n  autoheal-pa config schema")]
    Config(config::ConfigArgs),
    /// Prints lines that set KUBECONFIG, for a shell to evaluate
    #[command(after_help = "Examples:\n  eval \"$(autoheal-pa env)\"\n  autoheal-pa env --shell fish | source\n  \
                            autoheal-pa env --shell powershell | Out-String | Invoke-Expression")]
    Env(env::EnvArgs),
    /// Writes contexts by which kubectl starts the tunnels itself, and starts nothing
    ///
    /// As `aws eks update-kubeconfig`, for all clusters: from then on there is nothing to start or stop. The first kubectl
    /// starts the manager in the background, which ends when nobody has used it for `--idle`. Ports stay as they are.
    #[command(
        // It is on demand in any case; what cannot be is refused, with the reason.
        mut_arg("on_demand", |arg| arg.hide(true)),
        mut_arg("detach", |arg| arg.hide(true)),
        mut_arg("no_clusters", |arg| arg.hide(true)),
        after_help = "Examples:\n  autoheal-pa kubeconfig --bastion i-0dc03fbcae2a87472\n  \
                            kubectl --kubeconfig ~/.kube/autoheal-pa.yaml --context pa-payments get pods\n  \
                            autoheal-pa kubeconfig --bastion auto --idle 1h --kubeconfig ~/.kube/config\n  \
                            autoheal-pa kubeconfig --remove"
    )]
    Kubeconfig(kubeconfig::KubeconfigArgs),
    /// Prints a token for a cluster as an ExecCredential; kubectl runs this itself
    #[command(after_help = "Example:\n  autoheal-pa token --cluster-name payments --region us-east-1")]
    Token(token::TokenArgs),
    /// Checks every link from the credentials to the API servers, and says how to fix what is broken
    ///
    /// Starts, resumes and ends a session of its own for each cluster, so that every permission is proved. Exits with
    /// 0 if nothing has failed, and with 6 otherwise.
    #[command(after_help = "Examples:\n  autoheal-pa doctor --bastion i-0dc03fbcae2a87472\n  \
                            autoheal-pa doctor --bastion i-0dc03fbcae2a87472 --cluster payments --json | \
                            jq -r '.checks[] | select(.status == \"failed\") | .fixes[]'")]
    Doctor(doctor::DoctorArgs),
    /// Prints the IAM policy that is needed, or the commands that give the identity access to Kubernetes
    ///
    /// AWS is asked only for what is missing: with a region, an account (or a role) and a bastion it needs no credentials.
    #[command(
        after_help = "Examples:\n  autoheal-pa policy --bastion i-0dc03fbcae2a87472 --region us-east-1 --account-id 123456789012 \\\n    \
                            > autoheal-pa-policy.json\n  \
                            autoheal-pa policy --access-entry --cluster payments --region us-east-1 \\\n    \
                            --role-arn arn:aws:iam::123456789012:role/AutohealReadOnlyRole\n  \
                            autoheal-pa policy --terraform --bastion i-0dc03fbcae2a87472 --region us-east-1 \\\n    \
                            --role-arn arn:aws:iam::123456789012:role/AutohealReadOnlyRole"
    )]
    Policy(PolicyArgs),
    /// Prints all that AWS must have for clusters to be reached, as a document that creates it
    ///
    /// For an account that has only a VPC and a cluster: bastion, roles, security groups, policy and access entries, filled in
    /// from what AWS says of the clusters. It creates nothing itself; stderr says how to deploy it, and which `up` works then.
    /// It is all for the role of `--role-arn`; without one, the document makes a role. With `--check` it looks for every
    /// piece and names the commands for those that are missing: it exits with 0 if none is, and with 6 otherwise.
    #[command(after_help = "Examples:\n  autoheal-pa setup --cluster payments > autoheal-pa.json\n  \
                            autoheal-pa setup --cluster payments --cluster search --private --format terraform > autoheal-pa.tf\n  \
                            autoheal-pa setup --cluster payments --bastion-kind fargate --namespace team-a --format cli \\\n    \
                            --role-arn arn:aws:iam::123456789012:role/AutohealReadOnlyRole > autoheal-pa.sh\n  \
                            autoheal-pa setup --check --cluster payments")]
    Setup(SetupArgs),
    /// Prints a completion script for a shell
    #[command(after_help = "Examples:\n  eval \"$(autoheal-pa completions bash)\"\n  \
                            autoheal-pa completions zsh > ~/.zfunc/_autoheal-pa\n  \
                            autoheal-pa completions fish > ~/.config/fish/completions/autoheal-pa.fish")]
    Completions(completions::CompletionsArgs),
    /// Prints a chapter or a page of the manual, or writes all of them
    #[command(after_help = "Examples:\n  autoheal-pa man\n  autoheal-pa man troubleshooting | less\n  \
                            autoheal-pa man up | man -l -\n  autoheal-pa man --out /usr/local/share/man/man1")]
    Man(man::ManArgs),
    /// Prints the version of this program, and what it was built from
    ///
    /// `--version` prints the same on one line.
    #[command(after_help = "Examples:\n  autoheal-pa version\n  autoheal-pa version --json | jq -r .commit")]
    Version(version::VersionArgs),
    /// Runs everything on this machine, against an emulated AWS
    ///
    /// Starts an AWS of its own on loopback and `up` against it. With a command, runs it with the tunnels open
    /// and exits with its status; without, keeps running until it is stopped.
    #[cfg(feature = "demo")]
    #[command(
        after_help = "Examples:\n  autoheal-pa demo\n  autoheal-pa demo -- kubectl --context pa-payments get pods -A"
    )]
    Demo(demo::DemoArgs),
}

impl Cli {
    /// Tells whether the command keeps more than one processor busy. The others start faster without threads.
    #[must_use]
    pub fn needs_threads(&self) -> bool {
        match self.command {
            Command::Up(_) | Command::Exec(_) | Command::Forward(_) => true,
            #[cfg(feature = "demo")]
            Command::Demo(_) => true,
            Command::Clusters(_)
            | Command::Completions(_)
            | Command::Config(_)
            | Command::Doctor(_)
            | Command::Down(_)
            | Command::Env(_)
            | Command::Kubeconfig(_)
            | Command::Login(_)
            | Command::Logs(_)
            | Command::Man(_)
            | Command::Policy(_)
            | Command::Reload
            | Command::Setup(_)
            | Command::Status(_)
            | Command::Token(_)
            | Command::Version(_) => false,
        }
    }

    /// Tells whether this is the process in the background that `up --detach` has started.
    #[must_use]
    pub fn is_in_background(&self) -> bool {
        match &self.command {
            Command::Up(args) => args.background,
            Command::Forward(args) => args.up.background,
            Command::Down(_)
            | Command::Status(_)
            | Command::Exec(_)
            | Command::Login(_)
            | Command::Logs(_)
            | Command::Reload
            | Command::Clusters(_)
            | Command::Config(_)
            | Command::Env(_)
            | Command::Kubeconfig(_)
            | Command::Token(_)
            | Command::Doctor(_)
            | Command::Policy(_)
            | Command::Setup(_)
            | Command::Completions(_)
            | Command::Man(_)
            | Command::Version(_) => false,
            #[cfg(feature = "demo")]
            Command::Demo(_) => false,
        }
    }

    /// Opens the log of a process in the background, and returns its path as well. Settings that are wrong are the
    /// command's business: there is no log then.
    ///
    /// # Errors
    /// [`CommandError`] if there can be none.
    pub fn open_log(&self, environment: &Environment) -> Result<Option<(LogFile, PathBuf)>, CommandError> {
        let settings = Settings::without_file(&self.global, environment).ok();
        settings.as_ref().map(LogFile::open).transpose()
    }

    /// Runs the command, and returns its exit code. `log` is where this process logs to, if that is a file.
    ///
    /// # Errors
    /// [`CommandError`], to be shown to the user.
    pub async fn run(self, log: Option<PathBuf>, printer: &Printer) -> Result<ExitCode, CommandError> {
        if !self.is_in_background()
            && let Some(ask) = ask::for_codes(printer)
        {
            mfa::ask_by(ask);
        }
        let Self { global, command } = self;
        match command {
            Command::Up(args) => Box::pin(open(args, global, log, printer)).await,
            Command::Forward(args) => Box::pin(open(args.into_up()?, global, log, printer)).await,
            Command::Down(args) => Box::pin(down::run(args, global, printer)).await,
            Command::Status(args) => Box::pin(status::run(args, global, printer)).await,
            Command::Exec(args) => Box::pin(exec::run(args, global, printer)).await,
            Command::Login(args) => Box::pin(login::run(args, global, printer)).await,
            Command::Logs(args) => Box::pin(logs::run(args, global, printer)).await,
            Command::Reload => Box::pin(reload::run(global, printer)).await,
            Command::Clusters(args) => Box::pin(clusters::run(args, global, printer)).await,
            Command::Completions(args) => completions::run(&args, printer),
            Command::Config(args) => config::run(args, global, printer),
            Command::Doctor(args) => Box::pin(doctor::run(args, global, printer)).await,
            Command::Env(args) => Box::pin(env::run(&args, &global, printer)).await,
            Command::Kubeconfig(args) => Box::pin(kubeconfig::run(args, global, printer)).await,
            Command::Man(args) => man::run(&args, printer),
            Command::Policy(args) => Box::pin(policy::run(&args, &global, printer)).await,
            Command::Setup(args) => Box::pin(setup::run(args, global, printer)).await,
            Command::Token(args) => Box::pin(token::run(args, global, printer)).await,
            Command::Version(args) => version::run(&args, printer),
            #[cfg(feature = "demo")]
            Command::Demo(args) => Box::pin(demo::run(args, &global, printer)).await,
        }
    }
}

/// Opens tunnels, here or in the background.
async fn open(
    args: UpArgs,
    global: GlobalArgs,
    log: Option<PathBuf>,
    printer: &Printer,
) -> Result<ExitCode, CommandError> {
    let settings = UpSettings::load(&global, &args, &Environment::read())?;
    if !args.background {
        login::offer(settings.access.iter().map(|access| &access.aws), printer).await?;
    }
    if args.detach {
        return Box::pin(background::launch(&settings, printer)).await;
    }
    let attended = args.background.then(|| background::attended(log)).transpose()?;
    let reread = Box::new(move || UpSettings::load(&global, &args, &Environment::read()));
    Box::pin(up::run(settings, reread, attended, printer)).await
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("autoheal-pa "), "{}", command.get_name());
        }
    }

    #[cfg(feature = "demo")]
    #[test]
    fn every_command_says_what_it_takes() {
        let mut program = Cli::command().term_width(120);
        program.build();
        // The options that all have are shown once.
        let mut pages = vec![program.render_help().to_string()];
        for command in program.get_subcommands_mut() {
            let page = command.render_help().to_string();
            let (own, common) = page.split_once("\nCommon options:").unwrap_or((&page, ""));
            let examples =
                common.split_once("\nExample").map(|(_, rest)| format!("\nExample{rest}")).unwrap_or_default();
            pages.push(format!("{own}{examples}"));
        }
        insta::assert_snapshot!(pages.join("\n--------\n\n"));
    }

    #[test]
    fn global_options_go_anywhere() {
        for line in ["autoheal-pa --region r-1 -vv up --bastion i-1", "autoheal-pa up --bastion i-1 -v --region=r-1 -v"]
        {
            let cli = parse(line).unwrap();
            assert_eq!((cli.global.aws.texts("region"), cli.global.verbose), (vec!["r-1".to_owned()], 2));
        }
    }

    #[test]
    fn values_are_not_judged_here() {
        let cli = parse("autoheal-pa up --base-port x --timeout y --bastion z --duration 1").unwrap();
        let Command::Up(args) = cli.command else { panic!("not up") };
        assert_eq!(
            (args.up.texts("base_port"), args.up.texts("timeout")),
            (vec!["x".to_owned()], vec!["y".to_owned()])
        );
    }

    #[test]
    fn usage_errors_exit_with_2_and_help_with_0() {
        for (line, code) in [
            ("autoheal-pa up --no-such-flag", 2),
            ("autoheal-pa no-such-command", 2),
            ("autoheal-pa", 2),
            ("autoheal-pa token", 2),
            ("autoheal-pa --help", 0),
            ("autoheal-pa up --help", 0),
            ("autoheal-pa --version", 0),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), code, "{line}");
        }
        assert_eq!(parse("autoheal-pa --version").unwrap_err().kind(), ErrorKind::DisplayVersion);
    }

    #[cfg(feature = "demo")]
    #[test]
    fn demo_takes_a_command() {
        let cli = parse("autoheal-pa demo --clusters 3 -- kubectl get pods -v 2").unwrap();
        let Command::Demo(args) = cli.command else { panic!("not demo") };
        assert_eq!((args.clusters, args.command.len(), cli.global.verbose), (3, 5, 0));
    }
}
