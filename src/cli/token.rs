//! `token`: an ExecCredential on stdout, for kubectl.
//!
//! Asks the running manager first, which has credentials at hand, and finds them itself if there is none; a context of
//! `kubeconfig` has a manager started instead (the private module `start`). The kubeconfig calls it with what `manager::contexts` says, so that
//! it needs no variable of any shell.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Args;

use super::{
    GlobalArgs,
    error::{CommandError, Kind},
    output::Printer,
};
use crate::{
    aws::{Aws, BearerToken},
    clock,
    kubeconfig::exec::{self, ApiVersion},
    manager::control::{self, ControlError, TokenRequest},
    settings::{Environment, KUBECONFIG_FLAG, Settings},
};

mod start;

use start::{Start, Started};

/// Time for the manager to answer. It has the token at hand, unless it is just renewing its credentials.
const MANAGER_DEADLINE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    /// Name of the cluster; for a local cluster on Outposts its id
    #[arg(long, value_name = "NAME")]
    pub cluster_name: String,
    /// Account of the cluster, where the manager has clusters of the same name in several
    #[arg(long, value_name = "ID")]
    pub account_id: Option<String>,
    /// Directory of the manager to ask first
    #[arg(long, value_name = "PATH")]
    pub manager: Option<PathBuf>,
    /// The local port that the context leads to.
    #[arg(long, hide = true, value_name = "PORT", requires = "manager")]
    pub port: Option<u16>,
    /// Options of `up`, with which the manager is started if it does not run
    #[arg(last = true, value_name = "OPTION", requires = "manager")]
    pub start: Vec<OsString>,
}

impl TokenArgs {
    fn request(&self, region: String, starts: Option<String>) -> TokenRequest {
        TokenRequest { cluster: self.cluster_name.clone(), region, account: self.account_id.clone(), starts }
    }
}

/// Prints a token.
///
/// # Errors
/// [`CommandError`] if neither the manager nor this identity has one.
pub async fn run(args: TokenArgs, global: GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    let environment = Environment::read();
    let version = ApiVersion::asked_for(environment.get("KUBERNETES_EXEC_INFO"));
    let BearerToken { token, expires } = match &args.manager {
        Some(dir) if !args.start.is_empty() => {
            let settings = Settings::without_file(&global, &environment)?;
            let Some(region) = settings.aws.region.clone() else {
                return Err(CommandError::new(Kind::Usage, "`--region` is missing"));
            };
            let mut options = args.start.iter().filter_map(|option| option.to_str());
            let kubeconfig = options.find_map(|option| option.strip_prefix(KUBECONFIG_FLAG)?.strip_prefix('='));
            let request = args.request(region, Some(kubeconfig.unwrap_or_default().to_owned()));
            let start = Start { dir, request, port: args.port, options: &args.start, environment: &environment };
            match start.token(printer).await? {
                Started::Token(token) => token,
                Started::Failed(code) => return Ok(code),
            }
        }
        _ => token(&args, &global, &environment).await?,
    };
    let now = SystemTime::UNIX_EPOCH + clock::wall();
    printer.result(exec::credential(version, &token, expires, now).expose())?;
    Ok(ExitCode::SUCCESS)
}

async fn token(args: &TokenArgs, global: &GlobalArgs, environment: &Environment) -> Result<BearerToken, CommandError> {
    let (settings, fit_for_calls) = Settings::with_problems_of_calls(global, environment)?;
    let refused = match (&args.manager, &settings.aws.region) {
        (Some(dir), Some(region)) => {
            let request = args.request(region.clone(), None);
            match control::request_token(dir, &request, MANAGER_DEADLINE).await {
                Ok(answer) => return Ok(BearerToken { token: answer.token, expires: answer.expires }),
                Err(error) => Some(error),
            }
        }
        _ => None,
    };
    if let Some(error) = &refused {
        tracing::debug!(%error, "no token from the manager");
    }
    let own = async {
        fit_for_calls?;
        Ok(Aws::new(&settings.aws).await?.bearer_token(&args.cluster_name).await?)
    };
    own.await.map_err(|error: CommandError| match refused {
        Some(reason) => error.hint(manager_hint(reason)),
        None => error,
    })
}

/// Says why the manager was no help.
fn manager_hint(error: ControlError) -> String {
    let no_manager = matches!(error, ControlError::NotRunning { .. });
    let reason = CommandError::from(error).sentence();
    if no_manager { format!("{reason}; start it again with `autoheal-pa up`") } else { reason }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use clap::Parser;
    use futures_util::{StreamExt, stream, stream::BoxStream};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        cli::{Cli, Command, error::Kind},
        cluster::{Cluster, Destination, Origin},
        kubeconfig::User,
        manager::{
            contexts,
            control::{Answer, Handler, Refusal, Request, Server, TokenAnswer},
        },
        secret::Secret,
        settings::{Flags, flags::typed},
    };

    const ROLE: &str = "arn:aws:iam::123456789012:role/ReadOnly";

    fn cluster(name: &str, token_name: &str) -> Cluster {
        Cluster {
            name: name.to_owned(),
            region: "eu-west-1".to_owned(),
            account: "123456789012".to_owned(),
            id: format!("arn:aws:eks:eu-west-1:123456789012:cluster/{name}"),
            endpoint: Destination { host: "x.eks.amazonaws.com".to_owned(), port: 443 },
            certificate_authority: Some(String::new()),
            origin: Origin::Eks { token_name: token_name.to_owned() },
            vpc: None,
        }
    }

    fn surroundings(executable: &str) -> Environment {
        let mut environment = Environment::default();
        environment.current_dir = "/work".into();
        environment.home = Some("/home/alice".into());
        environment.temp_dir = "/tmp".into();
        environment.uid = 1000;
        environment.executable = Some(executable.into());
        environment
    }

    #[test]
    fn the_entry_leads_back_to_the_same_identity() {
        let environment = surroundings("/opt/bin/autoheal-pa").with([
            ("AWS_ROLE_ARN", ROLE),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token"),
            ("AWS_ROLE_SESSION_NAME", "alice@example.com"),
            ("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:5000"),
            ("AWS_REGION", "us-east-1"),
        ]);
        let settings = Settings::load(&GlobalArgs::default(), None, &environment).unwrap();
        let user = contexts::user(&settings, &settings.identity, &cluster("no", "0f-id"), None).unwrap();
        let User::Own(entry) = user else { panic!("{user:?}") };
        assert_eq!(entry.command, "/opt/bin/autoheal-pa");
        assert_eq!(
            entry.args,
            [
                "token",
                "--cluster-name=0f-id",
                "--region=eu-west-1",
                "--account-id=123456789012",
                "--manager=/tmp/autoheal-pa-1000/default",
                &format!("--role-arn={ROLE}"),
                "--role-session-name=alice@example.com",
                "--web-identity-token-file=/var/run/token",
            ]
        );
        assert_eq!(entry.env, [("AWS_ENDPOINT_URL_STS".to_owned(), "http://127.0.0.1:5000".to_owned())]);

        let cli = Cli::try_parse_from([entry.command].into_iter().chain(entry.args)).unwrap();
        let Command::Token(args) = cli.command else { panic!("not token") };
        assert_eq!(args.cluster_name, "0f-id");
        let bare = surroundings("/opt/bin/autoheal-pa").with(entry.env);
        let again = Settings::load(&cli.global, None, &bare).unwrap();
        assert_eq!(again.aws.region.as_deref(), Some("eu-west-1"));
        assert_eq!(again.aws.role_arn, settings.aws.role_arn);
        assert_eq!(again.aws.role_session_name, settings.aws.role_session_name);
        assert_eq!(again.aws.web_identity_token_file, settings.aws.web_identity_token_file);
        assert_eq!(again.identity, settings.identity);
    }

    #[test]
    fn a_path_that_is_not_utf8_is_an_error() {
        use std::os::unix::ffi::OsStrExt;
        let mut environment = surroundings("");
        environment.executable = Some(std::ffi::OsStr::from_bytes(b"/opt/\xff").into());
        let settings = Settings::load(&GlobalArgs::default(), None, &environment).unwrap();
        let error = contexts::user(&settings, &settings.identity, &cluster("a", "a"), None).unwrap_err();
        assert_eq!(CommandError::from(error).kind, Kind::Usage);
    }

    /// Has a token for `no` only.
    struct OneCluster;

    impl Handler for OneCluster {
        fn answer(&self, request: Request) -> BoxStream<'static, Result<Answer, Refusal>> {
            let Request::Token(TokenRequest { cluster, region, account, .. }) = request else { panic!("{request:?}") };
            let answer = match (cluster.as_str(), region.as_str(), account.as_deref()) {
                ("no", "eu-west-1", None) => {
                    let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_317_508);
                    Ok(Answer::Token(TokenAnswer { token: Secret::new("t".to_owned()), expires, port: None }))
                }
                _ => Err(Refusal::new("unknown-cluster", "there is no tunnel to it")),
            };
            stream::iter([answer]).boxed()
        }
    }

    fn args(name: &str, manager: &Path) -> (TokenArgs, GlobalArgs) {
        let manager = Some(manager.to_owned());
        let args =
            TokenArgs { cluster_name: name.to_owned(), account_id: None, manager, port: None, start: Vec::new() };
        // A CA bundle that is not there keeps the fallback from going anywhere.
        let global = typed(&["--region=eu-west-1", "--ca-bundle=/does/not/exist"]);
        (args, global)
    }

    #[tokio::test]
    async fn asks_the_manager_first() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run/default");
        let server = Server::bind(&dir).unwrap();
        let stop = CancellationToken::new();
        let client = async {
            let environment = surroundings("/opt/bin/autoheal-pa");
            let (known, global) = args("no", &dir);
            let token = token(&known, &global, &environment).await.unwrap();
            assert_eq!(token.token.expose(), "t");
            let (unknown, global) = args("yes", &dir);
            let error = super::token(&unknown, &global, &environment).await.unwrap_err();
            assert!(error.sentence().starts_with("the CA bundle `/does/not/exist` cannot be used"), "{error}");
            assert_eq!(error.next_steps().last().unwrap(), "the manager refused: there is no tunnel to it");
            stop.cancel();
        };
        let both = async { tokio::join!(server.serve(Arc::new(OneCluster), stop.clone()), client) };
        tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
    }

    #[tokio::test]
    async fn a_variable_that_only_calls_need_is_no_matter_where_the_manager_answers() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run/default");
        let server = Server::bind(&dir).unwrap();
        let stop = CancellationToken::new();
        let client = async {
            for (variable, value) in [
                ("ALL_PROXY", "socks5://127.0.0.1:1080"),
                ("AWS_MAX_ATTEMPTS", "0"),
                ("AWS_DEFAULT_REGION", "us east"),
                ("AWS_ROLE_ARN", "none"),
            ] {
                let environment = surroundings("/opt/bin/autoheal-pa").with([(variable, value)]);
                let (known, global) = args("no", &dir);
                let answer = token(&known, &global, &environment).await;
                assert_eq!(answer.unwrap().token.expose(), "t", "{variable}");
                let (unknown, mut global) = args("yes", &dir);
                if variable == "AWS_DEFAULT_REGION" {
                    global.aws = Flags::default();
                }
                let error = token(&unknown, &global, &environment).await.unwrap_err();
                assert_eq!((error.kind, error.to_string().contains(variable)), (Kind::Usage, true), "{error}");
                assert_eq!(error.next_steps().last().unwrap(), "the manager refused: there is no tunnel to it");
            }
            stop.cancel();
        };
        let both = async { tokio::join!(server.serve(Arc::new(OneCluster), stop.clone()), client) };
        tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
    }

    #[tokio::test]
    async fn says_that_there_is_no_manager() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run/default");
        let (args, global) = args("no", &dir);
        let error = token(&args, &global, &surroundings("/opt/bin/autoheal-pa")).await.unwrap_err();
        let expected = format!("no manager is running in `{}`; start it again with `autoheal-pa up`", dir.display());
        assert_eq!(error.next_steps().last(), Some(&expected));
    }
}
