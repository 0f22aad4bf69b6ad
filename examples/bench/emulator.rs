//! The emulated AWS in a process of its own, with a relay to the destination, which is behind its first cluster.

use std::{io, net::SocketAddr, time::Duration};

use autoheal_pa::emulator::{AgentConfig, Config, Emulator, Link, Place, Settings};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{
    BoxError,
    destination::{self, accept, bind, relay},
    processes::start_destination,
};

/// Messages on their way from an agent with short queues: as many as one with the pace of a real one has on a way that
/// takes 16 ms there and back.
const SHORT_WINDOW: usize = 16;

/// Bytes within an agent with short queues: a frame that is a message, with its header of 8 bytes.
const SHORT_PIPE_LEN: usize = 1024 - 8;

/// What the emulated AWS is like.
#[derive(Debug, Clone, Args)]
pub(crate) struct World {
    /// Number of clusters
    #[arg(long, default_value_t = 1)]
    pub(crate) clusters: usize,
    /// Agents have the pace of real ones
    #[arg(long)]
    pub(crate) paced: bool,
    /// Agents hold hardly more than what is on its way, so that their queues do not hide those of the program
    #[arg(long)]
    pub(crate) short_queues: bool,
    /// Delay of every message and of every call of AWS, each way, in milliseconds
    #[arg(long, default_value_t = 0)]
    pub(crate) delay_ms: u64,
    /// Fraction of the messages that are lost, each way
    #[arg(long, default_value_t = 0.0)]
    pub(crate) loss: f64,
}

/// On this machine, with agents that do not pause.
impl Default for World {
    fn default() -> Self {
        Self { clusters: 1, paced: false, short_queues: false, delay_ms: 0, loss: 0.0 }
    }
}

impl World {
    /// The delay, each way.
    pub(crate) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms)
    }

    /// The arguments that give the same again.
    pub(crate) fn to_args(&self) -> Vec<String> {
        let mut args = vec![
            format!("--clusters={}", self.clusters),
            format!("--delay-ms={}", self.delay_ms),
            format!("--loss={}", self.loss),
        ];
        args.extend(self.paced.then(|| "--paced".to_owned()));
        args.extend(self.short_queues.then(|| "--short-queues".to_owned()));
        args
    }

    fn config(&self) -> Config {
        let link = Link { delay: self.delay(), loss: self.loss, ..Link::default() };
        let agent = if self.paced {
            AgentConfig::paced()
        } else if self.short_queues {
            AgentConfig { window: Some(SHORT_WINDOW), pipe: SHORT_PIPE_LEN, ..AgentConfig::default() }
        } else if self.delay_ms > 0 {
            // The window would be the bound, and a real agent has none.
            AgentConfig { window: None, ..AgentConfig::default() }
        } else {
            AgentConfig::default()
        };
        Config {
            agent,
            pod_churn: None,
            settings: Settings { upstream: link, downstream: link, api_delay: 2 * self.delay(), ..Settings::default() },
            ..Config::with_clusters(self.clusters)
        }
    }
}

/// What the process says when it is there.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The variables that the program needs.
    pub(crate) environment: Vec<(String, String)>,
    /// The first cluster, whose tunnel leads to the destination.
    pub(crate) cluster: String,
    /// The destination, with nothing in between.
    pub(crate) destination: SocketAddr,
    /// A relay to it, with the delay of the messages.
    pub(crate) relay: SocketAddr,
}

/// Serves until it is dropped.
///
/// # Errors
/// If a port cannot be bound, or the emulator does not start.
pub(crate) async fn run(world: World, ready: impl FnOnce(Hello) -> io::Result<()>) -> Result<(), BoxError> {
    let emulator = Emulator::start(world.config()).await?;
    let first = emulator.api_servers().into_iter().next().ok_or("there is no cluster")?;
    let Place::Socket(api_server) = first.place else { return Err("the API server is not at a socket".into()) };
    // It ends with this process.
    let destination = start_destination(api_server).await?;
    let destination::Hello { address } = destination.hello;
    emulator.route(format!("{}:443", first.host), address);
    let (relay_listener, relay_address) = bind().await?;
    let delay = world.delay();
    ready(Hello {
        environment: emulator.environment(),
        cluster: first.cluster,
        destination: address,
        relay: relay_address,
    })?;
    accept(relay_listener, move |stream| relay(stream, address, delay)).await;
    Ok(())
}
