//! Small requests: how long they take, alone and beside a download, and how many go through.

use std::{net::SocketAddr, time::Duration};

use super::{
    super::{
        BoxError,
        emulator::World,
        load::{Bulk, connects, connects_at_once, request_rate, requests},
        measure::percentile,
        processes::Workshop,
        report::{Figure, Unit},
    },
    CONNECTIONS, Plan, Way, count_of,
    stage::Stage,
};

/// Bytes of a download after which every queue on its way is full.
const FILLED: u64 = 512 << 10;

/// One request after the other is more than the rate that AWS allows, by far.
const UNLIMITED: &str = "--no-rate-limit";

/// Between requests where agents have their pace: an agent that has just sent something pauses, and that is not to count.
const PAUSE: Duration = Duration::from_millis(5);

/// What of many times counts.
pub(super) const PERCENTILES: [(&str, f64); 2] = [("p50", 0.5), ("p99", 0.99)];

/// How often two settings take turns in one run.
const TURNS: usize = 4;

/// Fewest requests of each connection where their rate is measured.
const LEAST_RATED: usize = 10;

/// One at a time, on an open connection and on a new one each.
pub(crate) async fn idle(workshop: &Workshop, plan: &Plan, way: &Way) -> Result<Vec<Figure>, BoxError> {
    let stage = Stage::start(workshop, &way.world, &[UNLIMITED]).await?;
    let figures = |name: &str| {
        PERCENTILES.map(|(percentile, _)| {
            Figure::new(way.name(format!("{name}, {percentile}")), Unit::Time)
                .against("TCP by a relay")
                .against("TCP by two relays")
                .against(way.bare)
        })
    };
    let (mut on_open, mut on_new) = (figures("request"), figures("connect and first byte"));
    for _ in 0..plan.runs {
        let mut references = (Vec::new(), Vec::new());
        for address in [stage.relay(), stage.two_relays(), stage.bare()] {
            references.0.push(requests(address, way.requests, Duration::ZERO).await?);
            references.1.push(connects(address, way.requests).await?);
        }
        push(&mut on_open, &requests(stage.up.address, way.requests, Duration::ZERO).await?, &references.0);
        push(&mut on_new, &connects(stage.up.address, way.requests).await?, &references.1);
    }
    Ok(on_open.into_iter().chain(on_new).collect())
}

/// New connections where it is asked whose each is, and where everybody is let in.
pub(crate) async fn admission(workshop: &Workshop, plan: &Plan) -> Result<Vec<Figure>, BoxError> {
    let asked = Stage::start(workshop, &plan.near.world, &[UNLIMITED]).await?;
    let everybody = Stage::start(workshop, &plan.near.world, &[UNLIMITED, "--allow-other-users"]).await?;
    let [.., connections] = CONNECTIONS;
    let mut figures = PERCENTILES.map(|(percentile, _)| {
        let name = format!("connect and first byte, {}, {percentile}", count_of(connections, "connection"));
        Figure::new(name, Unit::Time).against("the same, nobody asked whose")
    });
    for _ in 0..plan.runs {
        // In turns, as the machine is not equally busy all the time.
        let (mut times, mut reference) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            reference.extend(connects_at_once(everybody.up.address, connections, plan.near.requests).await?);
            times.extend(connects_at_once(asked.up.address, connections, plan.near.requests).await?);
        }
        push(&mut figures, &times, &[reference]);
    }
    Ok(figures.into())
}

/// Beside a download, with agents that do not pause.
pub(crate) async fn busy(workshop: &Workshop, plan: &Plan) -> Result<Vec<Figure>, BoxError> {
    let unpaced = World { short_queues: true, ..World::default() };
    let stage = Stage::start(workshop, &unpaced, &[UNLIMITED]).await?;
    let mut figures = PERCENTILES.map(|(percentile, _)| {
        Figure::new(format!("request during a download, {percentile}"), Unit::Time)
            .against("the same alone")
            .against("TCP by two relays, the same")
    });
    for _ in 0..plan.runs {
        let (count, bulk) = (plan.near.requests, plan.near.bulk);
        let (_, relayed) = beside_a_download(stage.two_relays(), count, Duration::ZERO, bulk).await?;
        let (alone, beside) = beside_a_download(stage.up.address, count, Duration::ZERO, bulk).await?;
        push(&mut figures, &beside, &[alone, relayed]);
    }
    Ok(figures.into())
}

/// Beside a download at the pace of real agents, by one session and by two.
pub(crate) async fn busy_and_paced(workshop: &Workshop, plan: &Plan, way: &Way) -> Result<Vec<Figure>, BoxError> {
    let paced = World { paced: true, ..way.world.clone() };
    let mut figures = Vec::new();
    for (args, kind) in [(&[UNLIMITED][..], "paced"), (&[UNLIMITED, "--sessions", "2"], "paced, 2 sessions")] {
        let stage = Stage::start(workshop, &paced, args).await?;
        let mut pair = PERCENTILES.map(|(percentile, _)| {
            let name = way.name(format!("request during a download, {kind}, {percentile}"));
            Figure::new(name, Unit::Time).against("the same alone")
        });
        for _ in 0..plan.runs {
            let (alone, beside) = beside_a_download(stage.up.address, plan.slow_requests, PAUSE, way.bulk).await?;
            push(&mut pair, &beside, &[alone]);
        }
        figures.extend(pair);
    }
    Ok(figures)
}

/// Returns how long requests take alone, and how long beside a download.
async fn beside_a_download(
    address: SocketAddr,
    count: usize,
    pause: Duration,
    bulk: u64,
) -> Result<(Vec<f64>, Vec<f64>), BoxError> {
    let alone = requests(address, count, pause).await?;
    let _download = Bulk::start(address, FILLED.min(bulk)).await?;
    Ok((alone, requests(address, count, pause).await?))
}

/// How many in a second, when each connection sends the next as soon as it has the answer to the last.
pub(crate) async fn rate(workshop: &Workshop, plan: &Plan, way: &Way) -> Result<Vec<Figure>, BoxError> {
    // The least client repeats nothing.
    let unsigned = way.world.loss == 0.0;
    let stage = Stage::start(workshop, &World { unsigned, ..way.world.clone() }, &[UNLIMITED]).await?;
    let mut references =
        vec![("TCP by a relay", stage.relay()), ("TCP by two relays", stage.two_relays()), (way.bare, stage.bare())];
    let least = if unsigned { Some(workshop.least(&stage.aws.hello).await?) } else { None };
    references.extend(least.iter().map(|least| ("least client", least.hello.address)));
    let mut figures = Vec::new();
    for connections in CONNECTIONS {
        let name = way.name(format!("requests, {}", count_of(connections, "connection")));
        let figure = Figure::new(name, Unit::Rate);
        let mut figure = references.iter().fold(figure, |figure, (what, _)| figure.against(*what));
        let count = way.rated_requests.max(LEAST_RATED * connections);
        for _ in 0..plan.runs {
            let mut values = Vec::new();
            for &(_, address) in &references {
                values.push(request_rate(address, connections, count).await?);
            }
            figure.push(request_rate(stage.up.address, connections, count).await?, &values);
        }
        figures.push(figure);
    }
    Ok(figures)
}

/// Adds a run to the figure of each percentile.
pub(super) fn push(figures: &mut [Figure; 2], times: &[f64], references: &[Vec<f64>]) {
    for (figure, (_, fraction)) in figures.iter_mut().zip(PERCENTILES) {
        let references: Vec<_> = references.iter().map(|times| percentile(times, fraction)).collect();
        figure.push(percentile(times, fraction), &references);
    }
}
