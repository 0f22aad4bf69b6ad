//! Which figures there are, and how much is measured for each. How is in the modules.

mod latency;
mod resources;
mod stage;
mod start;
mod throughput;

use std::{
    io::{self, Write as _},
    time::Duration,
};

use clap::ValueEnum;

use super::{BoxError, emulator::World, processes::Workshop, report::Figure};

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Throughput down
    Download,
    /// Throughput up
    Upload,
    /// Small requests, one at a time
    Latency,
    /// Small requests during a download
    Busy,
    /// Requests a second
    Rate,
    /// Time on a processor for each GiB
    Cpu,
    /// Resident memory
    Memory,
    /// From the start of the process to tunnels that are ready
    Start,
    /// A token for kubectl
    Token,
    /// Throughput and latency at 80 ms round trip and 0.1 % loss
    Far,
}

/// How much is measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// How often.
    pub(crate) runs: usize,
    /// Bytes of a transfer where nothing slows it down on purpose.
    pub(crate) bulk: u64,
    /// Bytes of a transfer at the pace of a real agent, or below the rate that AWS allows.
    pub(crate) slow_bulk: u64,
    /// Bytes of a transfer for its cost.
    pub(crate) costly_bulk: u64,
    /// Bytes of a transfer over a long way.
    pub(crate) far_bulk: u64,
    /// How long such a way is, and how much is lost on it.
    pub(crate) far: World,
    /// Requests of one measurement.
    pub(crate) requests: usize,
    /// The same where each takes long.
    pub(crate) slow_requests: usize,
    /// Numbers of clusters: one, some, and many. The middle one is not changed, as a target names it.
    pub(crate) idle_tunnels: [usize; 3],
    /// The same for the start.
    pub(crate) started_clusters: [usize; 3],
    /// How long a process is left alone before its memory counts.
    pub(crate) settle: Duration,
}

impl Plan {
    /// Enough for figures that can be repeated.
    pub(crate) fn full(runs: usize) -> Self {
        Self {
            runs,
            bulk: 64 << 20,
            slow_bulk: 2 << 20,
            costly_bulk: 512 << 20,
            far_bulk: 16 << 20,
            far: World { delay_ms: 40, loss: 0.001, ..World::default() },
            requests: 2000,
            slow_requests: 40,
            idle_tunnels: [1, 10, 100],
            started_clusters: [1, 10, 50],
            settle: Duration::from_secs(2),
        }
    }

    /// Enough to see that it works.
    pub(crate) fn quick() -> Self {
        Self {
            runs: 1,
            bulk: 256 << 10,
            slow_bulk: 64 << 10,
            costly_bulk: 1 << 20,
            far_bulk: 64 << 10,
            far: World { delay_ms: 1, loss: 0.001, ..World::default() },
            requests: 10,
            slow_requests: 2,
            idle_tunnels: [1, 2, 3],
            started_clusters: [1, 2, 3],
            settle: Duration::ZERO,
        }
    }
}

/// How many connections share a load.
const CONNECTIONS: [usize; 3] = [1, 8, 64];

/// Measures the groups that are asked for, all if none is.
pub(crate) async fn measure(plan: &Plan, only: &[Group]) -> Result<Vec<Figure>, BoxError> {
    let workshop = Workshop::new()?;
    let mut figures = Vec::new();
    for group in Group::value_variants().iter().filter(|group| only.is_empty() || only.contains(group)) {
        let name = group.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        writeln!(io::stderr(), "measuring {name}")?;
        figures.extend(match group {
            Group::Download => throughput::download(&workshop, plan).await?,
            Group::Upload => throughput::upload(&workshop, plan).await?,
            Group::Latency => latency::idle(&workshop, plan).await?,
            Group::Busy => latency::busy(&workshop, plan).await?,
            Group::Rate => latency::rate(&workshop, plan).await?,
            Group::Cpu => resources::cpu(&workshop, plan).await?,
            Group::Memory => resources::memory(&workshop, plan).await?,
            Group::Start => start::ready(&workshop, plan).await?,
            Group::Token => start::token(&workshop, plan).await?,
            Group::Far => {
                let mut far = throughput::far(&workshop, plan).await?;
                far.extend(latency::far(&workshop, plan).await?);
                far
            }
        });
    }
    Ok(figures)
}

/// A number of things.
fn count_of(count: usize, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}
