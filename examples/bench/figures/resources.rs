//! What the program takes from its machine: time on a processor, and memory.

use super::{
    super::{
        BoxError,
        emulator::World,
        load::{Direction, transfer},
        processes::Workshop,
        report::{Figure, Unit},
    },
    Plan, Way, count_of,
    stage::Stage,
};

/// Connections that make the load under which memory is looked at.
const LOADED: usize = 64;

/// Time on a processor for each GiB: of the program alone, and of the emulated AWS, which is the bound where it is more.
pub(crate) async fn cpu(workshop: &Workshop, plan: &Plan, way: &Way) -> Result<Vec<Figure>, BoxError> {
    let stage = Stage::start(workshop, &way.world, &["--no-rate-limit"]).await?;
    let mut figures = Vec::new();
    let per_gib = f64::from(1 << 30) / way.costly_bulk as f64;
    for (name, direction) in [("download", Direction::Down), ("upload", Direction::Up)] {
        let mut program = Figure::new(way.name(format!("processor, {name}")), Unit::Cost)
            .against(way.bare)
            .against("the same in batches");
        let mut emulator = Figure::new(way.name(format!("processor of the emulated AWS, {name}")), Unit::Cost);
        for _ in 0..plan.runs {
            let mut bare = Vec::new();
            for address in [stage.bare(), stage.bare_in_batches()] {
                let before = stage.bare_client.usage()?.cpu;
                transfer(address, direction, 1, way.costly_bulk).await?;
                bare.push((stage.bare_client.usage()?.cpu - before).as_secs_f64() * per_gib);
            }
            let before = (stage.up.usage()?.cpu, stage.aws.usage()?.cpu);
            transfer(stage.up.address, direction, 1, way.costly_bulk).await?;
            let (up, aws) = (stage.up.usage()?.cpu - before.0, stage.aws.usage()?.cpu - before.1);
            program.push(up.as_secs_f64() * per_gib, &bare);
            emulator.push(aws.as_secs_f64() * per_gib, &[]);
        }
        figures.extend([program, emulator]);
    }
    Ok(figures)
}

/// Resident memory with idle tunnels, which nothing comes to from any distance.
pub(crate) async fn idle_memory(workshop: &Workshop, plan: &Plan) -> Result<Vec<Figure>, BoxError> {
    let mut figures = Vec::new();
    for (name, tunnels) in [1, 10, 100].into_iter().zip(plan.idle_tunnels) {
        let mut figure = Figure::new(format!("memory, {}", count_of(name, "idle tunnel")), Unit::Memory);
        let aws = workshop.emulator(&World { clusters: tunnels, ..World::default() }).await?;
        for _ in 0..plan.runs {
            let up = workshop.up(&aws.hello, &[]).await?;
            tokio::time::sleep(plan.settle).await;
            figure.push(up.usage()?.resident as f64, &[]);
            up.stop().await?;
        }
        figures.push(figure);
    }
    Ok(figures)
}

/// The most resident memory under a load both ways.
pub(crate) async fn loaded_memory(workshop: &Workshop, plan: &Plan, way: &Way) -> Result<Vec<Figure>, BoxError> {
    let mut figure = Figure::new(way.name("memory, 64 downloads and uploads"), Unit::Memory).against(way.bare);
    for _ in 0..plan.runs {
        let stage = Stage::start(workshop, &way.world, &["--no-rate-limit"]).await?;
        for address in [stage.bare(), stage.up.address] {
            for direction in [Direction::Down, Direction::Up] {
                transfer(address, direction, LOADED, way.bulk).await?;
            }
        }
        figure.push(stage.up.usage()?.peak as f64, &[stage.bare_client.usage()?.peak as f64]);
    }
    Ok(vec![figure])
}
