//! The same load through the program and through others that forward a port through a session, in turns, against the same
//! emulated AWS. What does not get through has no figure.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
};

use tokio::time::timeout;

use super::{
    super::{
        BoxError,
        emulator::{self, World},
        load::{Direction, connects, request_rate, requests, transfer},
        measure::{Usage, percentile},
        processes::{Role, Up, Workshop},
        report::{Figure, Form, Unit, table},
        rivals::{Programs, Rival, Running},
    },
    CONNECTIONS, Plan, count_of,
};

/// How many tunnels there are where there are several.
const SEVERAL: usize = 10;

/// Requests and connections of one measurement: some take 40 ms for each.
const FEW: usize = 200;

/// The program and its rivals, each with a tunnel.
struct Stage {
    aws: Role<emulator::Hello>,
    up: Up,
    others: Vec<Running>,
}

impl Stage {
    async fn start(workshop: &Workshop, world: &World, args: &[&str], rivals: &[Rival]) -> Result<Self, BoxError> {
        let aws = workshop.emulator(&World { unsigned: true, ..world.clone() }).await?;
        let up = workshop.up(&aws.hello, args).await?;
        let mut others = Vec::new();
        for rival in rivals {
            others.push(rival.start(workshop, &aws.hello, &aws.hello.host).await?);
        }
        Ok(Self { aws, up, others })
    }

    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.others.iter().map(|other| other.address)
    }

    fn usages(&self) -> Result<Vec<Usage>, BoxError> {
        std::iter::once(self.up.usage()).chain(self.others.iter().map(Running::usage)).collect()
    }
}

/// All of it, if a rival was named.
pub(crate) async fn measure(workshop: &Workshop, plan: &Plan, programs: &Programs) -> Result<Vec<Figure>, BoxError> {
    let rivals = programs.find(workshop).await?;
    if rivals.is_empty() {
        return Ok(Vec::new());
    }
    let against = |name: String, unit| {
        rivals.iter().fold(Figure::new(format!("rivals, {name}"), unit), |figure, rival| figure.against(&rival.name))
    };
    let near = World::default();
    let mut figures = start(workshop, plan, &rivals, against("ready, 1 tunnel".to_owned(), Unit::Time)).await?;
    let stage = Stage::start(workshop, &near, &["--no-rate-limit"], &rivals).await?;
    let bulk = plan.near.bulk;
    figures.push(all(&stage, plan, against("memory, 1 idle tunnel".to_owned(), Unit::Memory), Load::Resident).await?);
    for (name, direction) in [("download", Direction::Down), ("upload", Direction::Up)] {
        for connections in [1, 8] {
            let name = format!("{name}, {}", count_of(connections, "connection"));
            let load = Load::Transfer(direction, connections, bulk);
            figures.push(all(&stage, plan, against(name, Unit::Throughput), load).await?);
        }
        let figure = against(format!("processor, {name}"), Unit::Cost);
        figures.push(all(&stage, plan, figure, Load::Cost(direction, bulk)).await?);
    }
    for (name, fraction) in [("p50", 0.5), ("p99", 0.99)] {
        let figure = against(format!("request, {name}"), Unit::Time);
        figures.push(all(&stage, plan, figure, Load::Request(plan.near.requests.min(FEW), fraction)).await?);
        let figure = against(format!("connect and first byte, {name}"), Unit::Time);
        figures.push(all(&stage, plan, figure, Load::Connect(plan.near.requests.min(FEW), fraction)).await?);
    }
    for connections in CONNECTIONS {
        let figure = against(format!("requests, {}", count_of(connections, "connection")), Unit::Rate);
        figures.push(all(&stage, plan, figure, Load::Rate(connections, plan.near.rated_requests / 8)).await?);
    }
    drop(stage);
    // As users have it: with the rate limit and one connection at first, at the pace of real agents.
    let paced = World { paced: true, ..World::default() };
    let stage = Stage::start(workshop, &paced, &[], &rivals).await?;
    for connections in [1, 8] {
        let name = format!("download, paced, {}", count_of(connections, "connection"));
        let load = Load::Transfer(Direction::Down, connections, 4 * plan.slow_bulk);
        figures.push(all(&stage, plan, against(name, Unit::Throughput), load).await?);
    }
    for connections in CONNECTIONS {
        let figure = against(format!("requests, paced, {}", count_of(connections, "connection")), Unit::Rate);
        figures.push(all(&stage, plan, figure, Load::Rate(connections, plan.near.rated_requests / 8)).await?);
    }
    drop(stage);
    let troubles = [
        ("1 % loss, 20 ms", World { delay_ms: 10, loss: 0.01, ..World::default() }),
        ("WebSocket cut every 2 s", World { cut_after_ms: 2000, paced: true, ..World::default() }),
        ("line of 500 kB/s, 40 ms", World { delay_ms: 20, line_rate: 500_000, ..World::default() }),
    ];
    for (trouble, world) in troubles {
        for (name, direction) in [("download", Direction::Down), ("upload", Direction::Up)] {
            // What is over by a trouble is started anew for the next.
            let stage = Stage::start(workshop, &world, &[], &rivals).await?;
            let figure = against(format!("{name}, {trouble}"), Unit::Throughput);
            let load = Load::Transfer(direction, 1, 2 * plan.slow_bulk);
            figures.push(all(&stage, plan, figure, load).await?);
        }
    }
    figures.extend(several(workshop, plan, &rivals, &against).await?);
    Ok(figures)
}

/// What is done with each.
#[derive(Debug, Clone, Copy)]
enum Load {
    Resident,
    Transfer(Direction, usize, u64),
    Cost(Direction, u64),
    Request(usize, f64),
    Connect(usize, f64),
    Rate(usize, usize),
}

/// Does the same with each, in turns.
async fn all(stage: &Stage, plan: &Plan, mut figure: Figure, load: Load) -> Result<Figure, BoxError> {
    for _ in 0..plan.runs {
        let mut values = Vec::new();
        for (index, address) in std::iter::once(stage.up.address).chain(stage.addresses()).enumerate() {
            let usage = || stage.usages().map(|usages| usages[index]);
            let done = timeout(plan.patience, one(address, load, usage)).await;
            values.push(done.unwrap_or_else(|_| Err("it takes too long".into())).unwrap_or(f64::NAN));
        }
        figure.push(values[0], &values[1..]);
    }
    let _kept = &stage.aws;
    // Whoever waits sees how far it is: what does not get through takes its time.
    writeln!(
        io::stderr(),
        "{}",
        table(std::slice::from_ref(&figure), Form::Text).lines().skip(1).collect::<Vec<_>>().join("\n")
    )?;
    Ok(figure)
}

async fn one(address: SocketAddr, load: Load, usage: impl Fn() -> Result<Usage, BoxError>) -> Result<f64, BoxError> {
    Ok(match load {
        Load::Resident => usage()?.resident as f64,
        Load::Transfer(direction, connections, bytes) => transfer(address, direction, connections, bytes).await?,
        Load::Cost(direction, bytes) => {
            let before = usage()?.cpu;
            transfer(address, direction, 1, bytes).await?;
            (usage()?.cpu - before).as_secs_f64() * f64::from(1 << 30) / bytes as f64
        }
        Load::Request(count, fraction) => {
            percentile(&requests(address, count, std::time::Duration::ZERO).await?, fraction)
        }
        Load::Connect(count, fraction) => percentile(&connects(address, count).await?, fraction),
        Load::Rate(connections, count) => request_rate(address, connections, count.max(10 * connections)).await?,
    })
}

/// From the start of the process to the first answer through a tunnel.
async fn start(
    workshop: &Workshop,
    plan: &Plan,
    rivals: &[Rival],
    mut figure: Figure,
) -> Result<Vec<Figure>, BoxError> {
    let aws = workshop.emulator(&World { unsigned: true, ..World::default() }).await?;
    for _ in 0..plan.runs {
        let mut values = Vec::new();
        for rival in rivals {
            values.push(rival.start(workshop, &aws.hello, &aws.hello.host).await?.ready_after.as_secs_f64());
        }
        let up = workshop.up(&aws.hello, &[]).await?;
        let took = up.ready_after.as_secs_f64();
        up.stop().await?;
        figure.push(took, &values);
    }
    Ok(vec![figure])
}

/// Memory and start of several tunnels: by one process of the program, and one process each of the others.
async fn several(
    workshop: &Workshop,
    plan: &Plan,
    rivals: &[Rival],
    against: &impl Fn(String, Unit) -> Figure,
) -> Result<Vec<Figure>, BoxError> {
    let name = |what: &str| format!("{what}, {}", count_of(SEVERAL, "tunnel"));
    let (mut memory, mut ready) = (against(name("memory"), Unit::Memory), against(name("ready"), Unit::Time));
    let aws = workshop.emulator(&World { unsigned: true, clusters: SEVERAL, ..World::default() }).await?;
    for _ in 0..plan.runs {
        let (mut resident, mut took) = (Vec::new(), Vec::new());
        for rival in rivals {
            let starts = (0..SEVERAL).map(|_| rival.start(workshop, &aws.hello, &aws.hello.host));
            let running = futures_util::future::try_join_all(starts).await?;
            let slowest = running.iter().map(|one| one.ready_after.as_secs_f64()).fold(0.0, f64::max);
            let all: Result<Vec<f64>, BoxError> = running.iter().map(|one| Ok(one.usage()?.resident as f64)).collect();
            resident.push(all?.iter().sum());
            took.push(slowest);
        }
        let up = workshop.up(&aws.hello, &[]).await?;
        memory.push(up.usage()?.resident as f64, &resident);
        ready.push(up.ready_after.as_secs_f64(), &took);
        up.stop().await?;
    }
    Ok(vec![memory, ready])
}
