//! Many tunnels in one process: what they take when nothing comes to them, and how soon one answers for all.

use std::fs;

use autoheal_pa::clock::Clock;

use super::{
    super::{
        BoxError,
        emulator::{BASTION, World},
        processes::{Up, Workshop},
        report::{Figure, Unit},
    },
    Plan, count_of,
};

/// Start, memory, idle time on a processor, `status`, a `reload` with one change, and `down`.
pub(crate) async fn scale(workshop: &Workshop, plan: &Plan) -> Result<Vec<Figure>, BoxError> {
    let mut figures = Vec::new();
    for (name, tunnels) in [1, 100, 500, 2000].into_iter().zip(plan.many_tunnels) {
        let figure = |what: &str, unit| Figure::new(format!("scale, {what}, {}", count_of(name, "tunnel")), unit);
        let mut ready = figure("ready", Unit::Time);
        let mut memory = figure("memory, idle", Unit::Memory);
        let mut idle = figure("processor, idle", Unit::Share);
        let mut status = figure("status", Unit::Time);
        let mut reload = figure("reload with one more", Unit::Time);
        let mut down = figure("down", Unit::Time);
        let aws = workshop.emulator(&World { clusters: tunnels, rsa: true, ..World::default() }).await?;
        for _ in 0..plan.runs.min(plan.scale_runs) {
            let file = workshop.home()?.join("config.yaml");
            fs::write(&file, config(""))?;
            let path = file.display().to_string();
            let up = workshop.up(&aws.hello, &["--config", &path]).await?;
            ready.push(up.ready_after.as_secs_f64(), &[]);
            tokio::time::sleep(plan.settle).await;
            let (before, clock) = (up.usage()?.cpu, Clock::start());
            tokio::time::sleep(plan.idle).await;
            let usage = up.usage()?;
            idle.push((usage.cpu - before).as_secs_f64() / clock.now().mono.as_secs_f64(), &[]);
            memory.push(usage.resident as f64, &[]);
            let ask = async |up: &Up, args: &[&str]| workshop.run(&up.home, &aws.hello.environment, args).await;
            status.push(ask(&up, &["status", "--json"]).await?.as_secs_f64(), &[]);
            fs::write(&file, config(&format!("forwards: [more={}:443]\n", aws.hello.host)))?;
            reload.push(ask(&up, &["reload"]).await?.as_secs_f64(), &[]);
            down.push(ask(&up, &["down"]).await?.as_secs_f64(), &[]);
        }
        figures.extend([ready, memory, idle, status, reload, down]);
    }
    Ok(figures)
}

/// A configuration for all clusters, and for more.
fn config(more: &str) -> String {
    format!("bastion: {BASTION}\n{more}")
}
