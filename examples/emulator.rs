//! Serves an emulated AWS with private EKS clusters until it is stopped, and prints the variables with
//! which `autoheal-pa up` uses it:
//!
//! ```text
//! cargo run --example emulator -- --clusters 3 > environment &
//! . ./environment; autoheal-pa up
//! ```

use std::{
    error::Error,
    io::{self, Write as _},
    time::Duration,
};

use autoheal_pa::emulator::{Config, Emulator, FAULTS, Fault, Identity, ServiceConfig, Upgrade};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// Serves an emulated AWS until SIGINT or SIGTERM.
///
/// Prints `export NAME=value` lines for every variable that `autoheal-pa up` needs to use it, the
/// bastion as AUTOHEAL_PA_BASTION.
#[derive(Debug, Parser)]
#[command(name = "emulator", after_help = faults())]
struct Args {
    /// Number of EKS clusters
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=2000))]
    clusters: u16,
    /// Port of the AWS APIs on 127.0.0.1; 0 takes a free one
    #[arg(long, value_name = "P", default_value_t = 0)]
    port: u16,
    /// Give access keys instead of a role and an OIDC token file
    #[arg(long)]
    static_keys: bool,
    /// Take WebSocket upgrades without a signature, too, as those of a session-manager-plugin before 1.2.688.0
    #[arg(long)]
    unsigned: bool,
    /// Pause of the agents after each message of 1 KiB; real ones ask for 1 ms and sleep 1.4 ms on average
    #[arg(long, value_name = "MS")]
    pace_ms: Option<u64>,
    /// A service of ECS with one task, as bastion; can be repeated
    #[arg(long, value_name = "CLUSTER/SERVICE")]
    service: Vec<String>,
    /// Something that goes wrong, from the list below; can be repeated
    #[arg(long, value_name = "FAULT")]
    fault: Vec<Fault>,
}

fn faults() -> String {
    let mut text = "Faults:\n".to_owned();
    for row in FAULTS {
        text.push_str(&format!("  {:<26} {}\n", row.form, row.help));
    }
    text
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    // From here on a signal stops the emulator in good order, however early it comes.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut config = Config { port: args.port, ..Config::with_clusters(args.clusters.into()) };
    if args.static_keys {
        config.identity = Identity::StaticKeys;
    }
    config.ecs.services = args.service.iter().map(|service| named(service)).collect::<Result<_, _>>()?;
    config.named_bastion = args.service.first().map(|service| format!("ecs:{service}"));
    config.agent.pace = args.pace_ms.map(Duration::from_millis);
    let emulator = Emulator::start(config).await?;
    if args.unsigned {
        emulator.update(|settings| settings.upgrade = Upgrade::SignedOrNot);
    }
    for fault in &args.fault {
        emulator.inject(fault);
    }
    let mut stdout = io::stdout().lock();
    for (name, value) in emulator.environment() {
        writeln!(stdout, "export {name}={}", quoted(&value))?;
    }
    stdout.flush()?;
    drop(stdout);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    emulator.stop().await;
    Ok(())
}

/// Reads `CLUSTER/SERVICE`.
fn named(service: &str) -> Result<ServiceConfig, String> {
    let (cluster, name) = service.split_once('/').ok_or_else(|| format!("`{service}` is not `CLUSTER/SERVICE`"))?;
    Ok(ServiceConfig::new(cluster, name))
}

/// A word that a POSIX shell reads as it is.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
