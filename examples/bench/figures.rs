//! Which figures there are, and how each is measured.

mod stage;

use clap::ValueEnum;

use self::stage::Stage;
use super::{
    BoxError,
    emulator::World,
    load::{Direction, requests, transfer},
    measure::median,
    processes::Workshop,
    report::{Figure, Unit},
};

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Throughput down
    Download,
    /// Throughput up
    Upload,
    /// Small requests, one at a time
    Latency,
    /// Time on a processor for each byte
    Cpu,
}

/// How much is measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// How often.
    runs: usize,
    /// Bytes of a transfer where nothing slows it down on purpose.
    bulk: u64,
    /// Bytes of a transfer for its cost.
    costly_bulk: u64,
    /// Requests of one measurement.
    requests: usize,
}

impl Plan {
    /// Enough for figures that can be repeated.
    pub(crate) fn full(runs: usize) -> Self {
        Self { runs, bulk: 64 << 20, costly_bulk: 512 << 20, requests: 2000 }
    }

    /// Enough to see that it works.
    pub(crate) fn quick() -> Self {
        Self { runs: 1, bulk: 256 << 10, costly_bulk: 1 << 20, requests: 10 }
    }
}

/// Measures the groups that are asked for, all if none is.
pub(crate) async fn measure(plan: &Plan, only: &[Group]) -> Result<Vec<Figure>, BoxError> {
    let workshop = Workshop::new()?;
    let mut figures = Vec::new();
    for group in Group::value_variants() {
        if !only.is_empty() && !only.contains(group) {
            continue;
        }
        figures.extend(match group {
            Group::Download => throughput(&workshop, plan, Direction::Down).await?,
            Group::Upload => throughput(&workshop, plan, Direction::Up).await?,
            Group::Latency => latency(&workshop, plan).await?,
            Group::Cpu => cost(&workshop, plan).await?,
        });
    }
    Ok(figures)
}

async fn throughput(workshop: &Workshop, plan: &Plan, direction: Direction) -> Result<Vec<Figure>, BoxError> {
    let stage = Stage::start(workshop, &World::default(), &["--no-rate-limit"]).await?;
    let name = match direction {
        Direction::Down => "download",
        Direction::Up => "upload",
    };
    let mut figures = Vec::new();
    for connections in [1, 8, 64] {
        let plural = if connections == 1 { "" } else { "s" };
        let mut figure = Figure::new(format!("{name}, {connections} connection{plural}"), Unit::Throughput)
            .against("bare WebSocket");
        for _ in 0..plan.runs {
            let reference = transfer(stage.bare_client.hello.address, direction, connections, plan.bulk).await?;
            figure.push(transfer(stage.up.address, direction, connections, plan.bulk).await?, reference);
        }
        figures.push(figure);
    }
    Ok(figures)
}

async fn latency(workshop: &Workshop, plan: &Plan) -> Result<Vec<Figure>, BoxError> {
    let stage = Stage::start(workshop, &World::default(), &["--no-rate-limit"]).await?;
    let mut figure = Figure::new("request, p50", Unit::Time).against("direct, by a relay");
    for _ in 0..plan.runs {
        let reference = median(&requests(stage.aws.hello.relay, plan.requests).await?);
        figure.push(median(&requests(stage.up.address, plan.requests).await?), reference);
    }
    let mut bare = Figure::new("request, p50 ", Unit::Time).against("bare WebSocket");
    for _ in 0..plan.runs {
        let reference = median(&requests(stage.bare_client.hello.address, plan.requests).await?);
        bare.push(median(&requests(stage.up.address, plan.requests).await?), reference);
    }
    Ok(vec![figure, bare])
}

async fn cost(workshop: &Workshop, plan: &Plan) -> Result<Vec<Figure>, BoxError> {
    let stage = Stage::start(workshop, &World::default(), &["--no-rate-limit"]).await?;
    let mut figures = Vec::new();
    for (name, direction) in [("download", Direction::Down), ("upload", Direction::Up)] {
        let mut figure = Figure::new(format!("processor, {name}"), Unit::Cost).against("bare WebSocket");
        let mut emulator = Figure::new(format!("processor of the emulated AWS, {name}"), Unit::Cost);
        for _ in 0..plan.runs {
            let per_gib = f64::from(1 << 30) / plan.costly_bulk as f64;
            let before = stage.bare_client.usage()?.cpu;
            transfer(stage.bare_client.hello.address, direction, 1, plan.costly_bulk).await?;
            let reference = (stage.bare_client.usage()?.cpu - before).as_secs_f64() * per_gib;
            let (before, aws) = (stage.up.usage()?.cpu, stage.aws.usage()?.cpu);
            transfer(stage.up.address, direction, 1, plan.costly_bulk).await?;
            figure.push((stage.up.usage()?.cpu - before).as_secs_f64() * per_gib, reference);
            emulator.push((stage.aws.usage()?.cpu - aws).as_secs_f64() * per_gib, f64::NAN);
        }
        figures.extend([figure, emulator]);
    }
    Ok(figures)
}
