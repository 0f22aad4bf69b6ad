//! Which figures there are, and how much is measured for each. How is in the modules.

mod latency;
mod resources;
mod rivals;
mod scale;
mod ssh;
mod stage;
mod start;
mod throughput;

use std::{
    fmt,
    io::{self, Write as _},
    time::Duration,
};

use clap::ValueEnum;

use super::{BoxError, emulator::World, processes::Workshop, report::Figure, rivals::Programs};

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
    /// What it costs to ask whose each connection is, with 64 of them at a time
    Admission,
    /// Requests a second
    Rate,
    /// Time on a processor for each GiB
    Cpu,
    /// Resident memory
    Memory,
    /// From the start of the process to tunnels that are ready
    Start,
    /// Many tunnels in one process
    Scale,
    /// A token for kubectl
    Token,
    /// The way through an SSH server, beside OpenSSH's client
    Ssh,
    /// Beside other programs that forward a port through a session, which have to be named
    Rivals,
    /// What the distance matters for, at 80 ms round trip and 0.1 % loss
    Far,
    /// Slow lines with a buffer before them, on virtual time
    Line,
}

/// How much is measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// How often.
    pub(crate) runs: usize,
    /// What is measured on this machine.
    pub(crate) near: Way,
    /// What is measured over a long way.
    pub(crate) far: Way,
    /// Bytes of a transfer at the pace of a real agent, or below the rate that AWS allows.
    pub(crate) slow_bulk: u64,
    /// Requests of one measurement where each takes long.
    pub(crate) slow_requests: usize,
    /// Numbers of clusters: one, some, and many. The middle one is not changed, as a target names it.
    pub(crate) idle_tunnels: [usize; 3],
    /// The same for the start.
    pub(crate) started_clusters: [usize; 3],
    /// Numbers of tunnels for what many of them take: one, and many. How long they are idle for it, and how often that is looked at.
    pub(crate) many_tunnels: [usize; 4],
    pub(crate) idle: Duration,
    pub(crate) scale_runs: usize,
    /// How long anything may take through a rival.
    pub(crate) patience: Duration,
    /// How long a process is left alone before its memory counts.
    pub(crate) settle: Duration,
    /// How many connections there are at once where there are many.
    pub(crate) many: usize,
    /// How long a program that reads slowly is left alone, and how long requests beside it are measured.
    pub(crate) beside_slow: Duration,
}

/// How far away the agents are, and how much is measured over that way where nothing else slows it down.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    /// What names of figures begin with.
    prefix: &'static str,
    /// What the bare WebSocket is called, which loses nothing.
    bare: &'static str,
    /// The emulated AWS.
    pub(crate) world: World,
    /// Bytes of a transfer.
    pub(crate) bulk: u64,
    /// Bytes of a transfer for its cost.
    pub(crate) costly_bulk: u64,
    /// Requests of one measurement.
    pub(crate) requests: usize,
    /// Requests for their rate, if there are few connections.
    pub(crate) rated_requests: usize,
}

impl Way {
    fn near() -> Self {
        Self {
            prefix: "",
            bare: "bare WebSocket",
            world: World::default(),
            bulk: 64 << 20,
            costly_bulk: 512 << 20,
            requests: 2000,
            rated_requests: 8000,
        }
    }

    fn far() -> Self {
        Self {
            prefix: "far, ",
            bare: "bare WebSocket, no loss",
            world: World { delay_ms: 40, loss: 0.001, ..World::default() },
            bulk: 16 << 20,
            costly_bulk: 32 << 20,
            requests: 40,
            rated_requests: 40,
        }
    }

    /// The name of a figure.
    fn name(&self, name: impl fmt::Display) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl Plan {
    /// Enough for figures that can be repeated.
    pub(crate) fn full(runs: usize) -> Self {
        Self {
            runs,
            near: Way::near(),
            far: Way::far(),
            slow_bulk: 2 << 20,
            slow_requests: 40,
            idle_tunnels: [1, 10, 100],
            started_clusters: [1, 10, 50],
            many_tunnels: [1, 100, 500, 2000],
            idle: Duration::from_secs(60),
            scale_runs: 3,
            patience: Duration::from_secs(15),
            settle: Duration::from_secs(2),
            many: 300,
            beside_slow: Duration::from_secs(3),
        }
    }

    /// Enough to see that it works.
    pub(crate) fn quick() -> Self {
        let quick = |way: Way| Way {
            bulk: 64 << 10,
            costly_bulk: 64 << 10,
            requests: 2,
            rated_requests: 2,
            world: World { delay_ms: way.world.delay_ms.min(1), ..way.world },
            ..way
        };
        Self {
            runs: 1,
            near: quick(Way::near()),
            far: quick(Way::far()),
            slow_bulk: 64 << 10,
            slow_requests: 2,
            idle_tunnels: [1, 2, 3],
            started_clusters: [1, 2, 3],
            many_tunnels: [1, 2, 2, 3],
            idle: Duration::from_millis(100),
            scale_runs: 1,
            patience: Duration::from_secs(10),
            settle: Duration::ZERO,
            many: 3,
            beside_slow: Duration::from_millis(20),
        }
    }
}

/// How many connections share a load.
const CONNECTIONS: [usize; 3] = [1, 8, 64];

/// Measures the groups that are asked for, all if none is.
pub(crate) async fn measure(plan: &Plan, only: &[Group], programs: &Programs) -> Result<Vec<Figure>, BoxError> {
    let workshop = Workshop::new()?;
    let mut figures = Vec::new();
    for group in Group::value_variants().iter().filter(|group| only.is_empty() || only.contains(group)) {
        let name = group.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        writeln!(io::stderr(), "measuring {name}")?;
        figures.extend(match group {
            Group::Download => throughput::download(&workshop, plan).await?,
            Group::Upload => throughput::upload(&workshop, plan).await?,
            Group::Latency => latency::idle(&workshop, plan, &plan.near).await?,
            Group::Busy => {
                let unpaced = latency::busy(&workshop, plan).await?;
                [unpaced, latency::busy_and_paced(&workshop, plan, &plan.near).await?].concat()
            }
            Group::Admission => latency::admission(&workshop, plan).await?,
            Group::Rate => latency::rate(&workshop, plan, &plan.near).await?,
            Group::Cpu => resources::cpu(&workshop, plan, &plan.near).await?,
            Group::Memory => {
                let idle = resources::idle_memory(&workshop, plan).await?;
                [idle, resources::loaded_memory(&workshop, plan, &plan.near).await?].concat()
            }
            Group::Start => start::ready(&workshop, plan, &plan.near).await?,
            Group::Scale => scale::scale(&workshop, plan).await?,
            Group::Token => start::token(&workshop, plan, &plan.near).await?,
            Group::Rivals => rivals::measure(&workshop, plan, programs).await?,
            Group::Ssh => ssh::measure(&workshop, plan).await?,
            // It is a table of its own, see `line`.
            Group::Line => Vec::new(),
            Group::Far => [
                throughput::far(&workshop, plan).await?,
                latency::idle(&workshop, plan, &plan.far).await?,
                latency::busy_and_paced(&workshop, plan, &plan.far).await?,
                latency::rate(&workshop, plan, &plan.far).await?,
                resources::cpu(&workshop, plan, &plan.far).await?,
                resources::loaded_memory(&workshop, plan, &plan.far).await?,
                start::ready(&workshop, plan, &plan.far).await?,
                start::token(&workshop, plan, &plan.far).await?,
            ]
            .concat(),
        });
    }
    Ok(figures)
}

/// A number of things.
fn count_of(count: usize, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}
