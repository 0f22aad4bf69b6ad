//! Bytes a second.

use super::{
    super::{
        BoxError,
        emulator::World,
        load::{Direction, transfer},
        processes::Workshop,
        report::{Figure, Unit},
    },
    CONNECTIONS, Plan, count_of,
    stage::Stage,
};

/// Connections that share the sessions of a cluster.
const SHARED: usize = 8;

/// Down: as fast as it goes, then at the pace of real agents, by one session and by several.
pub(crate) async fn download(workshop: &Workshop, plan: &Plan) -> Result<Vec<Figure>, BoxError> {
    let mut figures = unbounded(workshop, plan, Direction::Down).await?;
    let paced = World { paced: true, ..World::default() };
    figures.extend(alone(workshop, plan, &paced, &[], Direction::Down, "download, paced").await?);
    let one = Stage::start(workshop, &paced, &["--sessions", "1"]).await?;
    let four = Stage::start(workshop, &paced, &["--sessions", "4"]).await?;
    let mut figure = Figure::new("download, paced, 8 connections, 4 sessions", Unit::Throughput).against("one session");
    for _ in 0..plan.runs {
        let reference = transfer(one.up.address, Direction::Down, SHARED, plan.slow_bulk).await?;
        // Twice as much, so that its ends weigh less where it is faster.
        let subject = transfer(four.up.address, Direction::Down, SHARED, 2 * plan.slow_bulk).await?;
        figure.push(subject, &[reference]);
    }
    figures.push(figure);
    Ok(figures)
}

/// Up: as fast as it goes, then below the rate that AWS allows.
pub(crate) async fn upload(workshop: &Workshop, plan: &Plan) -> Result<Vec<Figure>, BoxError> {
    let mut figures = unbounded(workshop, plan, Direction::Up).await?;
    figures.extend(alone(workshop, plan, &World::default(), &[], Direction::Up, "upload, rate limit on").await?);
    Ok(figures)
}

/// Both over a long way, as fast as it goes, then as fast as AWS allows.
pub(crate) async fn far(workshop: &Workshop, plan: &Plan) -> Result<Vec<Figure>, BoxError> {
    let mut figures = Vec::new();
    let way = &plan.far;
    let stage = Stage::start(workshop, &way.world, &["--no-rate-limit"]).await?;
    for (name, direction) in [("download", Direction::Down), ("upload", Direction::Up)] {
        for connections in CONNECTIONS {
            let name = way.name(format!("{name}, {}", count_of(connections, "connection")));
            let mut figure = Figure::new(name, Unit::Throughput).against(way.bare);
            for _ in 0..plan.runs {
                let reference = transfer(stage.bare(), direction, connections, way.bulk).await?;
                figure.push(transfer(stage.up.address, direction, connections, way.bulk).await?, &[reference]);
            }
            figures.push(figure);
        }
    }
    drop(stage);
    let paced = World { paced: true, ..way.world.clone() };
    figures.extend(alone(workshop, plan, &paced, &[], Direction::Down, &way.name("download, paced")).await?);
    figures.extend(alone(workshop, plan, &paced, &[], Direction::Up, &way.name("upload, rate limit on")).await?);
    Ok(figures)
}

/// As fast as it goes.
async fn unbounded(workshop: &Workshop, plan: &Plan, direction: Direction) -> Result<Vec<Figure>, BoxError> {
    let world = World { unsigned: true, ..World::default() };
    let stage = Stage::start(workshop, &world, &["--no-rate-limit"]).await?;
    let least = workshop.least(&stage.aws.hello).await?;
    let name = match direction {
        Direction::Down => "download",
        Direction::Up => "upload",
    };
    let mut figures = Vec::new();
    for connections in CONNECTIONS {
        let name = format!("{name}, {}", count_of(connections, "connection"));
        let mut figure = Figure::new(name, Unit::Throughput);
        let references = [
            ("bare WebSocket", stage.bare()),
            ("the same in batches", stage.bare_in_batches()),
            ("direct TCP", stage.aws.hello.destination),
            ("least client", least.hello.address),
        ];
        for &(what, _) in &references {
            figure = figure.against(what);
        }
        for _ in 0..plan.runs {
            let mut values = Vec::new();
            for &(_, address) in &references {
                values.push(transfer(address, direction, connections, plan.near.bulk).await?);
            }
            figure.push(transfer(stage.up.address, direction, connections, plan.near.bulk).await?, &values);
        }
        figures.push(figure);
    }
    Ok(figures)
}

/// Where something else than the program is the bound, and nothing is to be compared.
async fn alone(
    workshop: &Workshop,
    plan: &Plan,
    world: &World,
    args: &[&str],
    direction: Direction,
    name: &str,
) -> Result<Vec<Figure>, BoxError> {
    let stage = Stage::start(workshop, world, args).await?;
    let mut figures = Vec::new();
    for connections in CONNECTIONS {
        let mut figure = Figure::new(format!("{name}, {}", count_of(connections, "connection")), Unit::Throughput);
        for _ in 0..plan.runs {
            figure.push(transfer(stage.up.address, direction, connections, plan.slow_bulk).await?, &[]);
        }
        figures.push(figure);
    }
    Ok(figures)
}
