//! One tunnel through the library: a local address that leads to a host and port behind a bastion.
//!
//! ```text
//! cargo run --example forward -- --target i-0dc03fbcae2a87472 --host db.internal --port 5432 --listen 127.0.0.1:5432
//! ```
//!
//! Credentials, region and endpoints come from the AWS environment variables and profile files. It knows
//! nothing of EKS: the destination may speak any protocol. Prints `tunnel ready` when the agent has
//! answered, and runs until Ctrl-C or SIGTERM.

use std::{
    error::Error,
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use autoheal_pa::{
    aws::Aws,
    bastion::Target,
    cluster::Destination,
    manager::supervisor::Supervisor,
    remote::Host,
    route::ssm,
    settings::{Environment, GlobalArgs, Settings},
    tunnel::{self, Admission, Listeners, Readiness, Tunnel},
};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// How long calls that clean up may take at the end.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// Forwards a local address to a host and port behind a bastion.
#[derive(Debug, Parser)]
struct Args {
    /// Bastion: an instance, managed node or ECS container
    #[arg(long)]
    target: Target,
    /// Host to connect to, as the bastion names it
    #[arg(long)]
    host: String,
    /// Port of the host
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Local address to listen on; with port 0 the system chooses one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// How long the tunnel may take to become ready, in seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// Sends as fast as the agent takes it. The service pauses and closes sessions with more than about
    /// 1000 messages a second: for endpoints of your own only
    #[arg(long)]
    no_rate_limit: bool,
    #[command(flatten)]
    global: GlobalArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(tracing::Level::WARN).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error),
    }
}

fn fail(error: &dyn Error) -> ExitCode {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let text: Vec<_> = causes.map(ToString::to_string).collect();
    let _written = writeln!(io::stderr(), "error: {}", text.join(": "));
    ExitCode::FAILURE
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let settings = Settings::load(&args.global, None, &Environment::read())?;
    let aws = Aws::new(&settings.aws).await?;
    // An address that other machines reach is meant for others.
    let admission = if args.listen.ip().is_loopback() { Admission::owner() } else { Admission::everyone() };
    let listeners = Listeners::at(args.listen, admission)?;
    writeln!(io::stderr(), "listening on {}", SocketAddr::new(args.listen.ip(), listeners.port()))?;

    let config = tunnel::Config { readiness: Readiness::Established, ..tunnel::Config::default() };
    let mut sessions = ssm::Config::default();
    if args.no_rate_limit {
        sessions.session.messages_per_second = None;
    }
    let service = ssm::Service::new(aws.clone(), None);
    let route = ssm::Targets::new(Arc::new(service), sessions).route(args.target.clone());
    let mut supervisor = Supervisor::new();
    let destination = destination(&args, aws.region());
    let common = supervisor.common();
    supervisor.start(Tunnel::new(destination, vec![route], listeners, config, common));

    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        outcome = serve(&supervisor, Duration::from_secs(args.timeout)) => outcome,
    };
    supervisor.stop().await;
    // Sessions that are still being ended get a moment for it.
    let _settled = tokio::time::timeout(SETTLE_LIMIT, aws.settle()).await;
    outcome
}

/// Runs until it is dropped, unless the tunnel does not become ready.
async fn serve(supervisor: &Supervisor, limit: Duration) -> Result<(), Box<dyn Error>> {
    if let Err(not_ready) = supervisor.wait_ready(limit).await {
        let last = not_ready.board.tunnels.into_iter().find_map(|tunnel| tunnel.last_error);
        return Err(match last {
            Some(error) => error.to_string().into(),
            None => "the tunnel is not ready in time".into(),
        });
    }
    writeln!(io::stdout(), "tunnel ready")?;
    std::future::pending().await
}

fn destination(args: &Args, region: &str) -> Host {
    Host {
        name: args.host.clone(),
        region: region.to_owned(),
        account: String::new(),
        endpoint: Destination { host: args.host.clone(), port: args.port },
        vpc: None,
    }
}
