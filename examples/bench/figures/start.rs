//! How soon the program is of use: tunnels, and tokens for kubectl.

use super::{
    super::{
        BoxError,
        emulator::World,
        processes::Workshop,
        report::{Figure, Unit},
    },
    Plan, Way, count_of,
};

/// From the start of the process to the line that says that every tunnel works, with nothing kept from an earlier start.
pub(crate) async fn ready(workshop: &Workshop, plan: &Plan, way: &Way) -> Result<Vec<Figure>, BoxError> {
    let mut worlds = Vec::new();
    for clusters in plan.started_clusters {
        worlds.push(workshop.emulator(&World { clusters, ..way.world.clone() }).await?);
    }
    let mut figures = [1, 10, 50].map(|clusters| {
        let figure = Figure::new(way.name(format!("ready, {}", count_of(clusters, "cluster"))), Unit::Time);
        if clusters == 1 { figure } else { figure.against("one cluster") }
    });
    for _ in 0..plan.runs {
        let mut first = None;
        for (figure, aws) in figures.iter_mut().zip(&worlds) {
            let up = workshop.up(&aws.hello, &[]).await?;
            let took = up.ready_after.as_secs_f64();
            up.stop().await?;
            figure.push(took, &[*first.get_or_insert(took)]);
        }
    }
    Ok(figures.into())
}

/// A token, start to end of the process: from the running manager, and without one.
pub(crate) async fn token(workshop: &Workshop, plan: &Plan, way: &Way) -> Result<Vec<Figure>, BoxError> {
    let aws = workshop.emulator(&way.world).await?;
    let up = workshop.up(&aws.hello, &[]).await?;
    let home = workshop.home()?;
    let manager = up.home.join("autoheal-pa/default").display().to_string();
    let alone = ["token", "--cluster-name", &aws.hello.cluster];
    let asked = [&alone[..], &["--manager", &manager]].concat();
    let all = &aws.hello.environment;
    // With these alone it would have no other way.
    let region: Vec<_> = all.iter().filter(|(name, _)| name == "AWS_REGION").cloned().collect();
    let mut figures = [("token, from the manager", &asked[..], &region), ("token, without a manager", &alone, all)]
        .map(|(name, args, variables)| (Figure::new(way.name(name), Unit::Time).against("--version"), args, variables));
    for _ in 0..plan.runs {
        for (figure, args, variables) in &mut figures {
            let version = workshop.run(&home, variables, &["--version"]).await?;
            let token = workshop.run(&home, variables, args).await?;
            figure.push(token.as_secs_f64(), &[version.as_secs_f64()]);
        }
    }
    up.stop().await?;
    Ok(figures.into_iter().map(|(figure, ..)| figure).collect())
}
