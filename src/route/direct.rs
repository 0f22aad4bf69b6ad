//! Straight to the endpoint, without a bastion: for clusters that answer here, by a public endpoint, a VPN or peering.
//!
//! A link is there as soon as the endpoint has taken one connection, which shows that it answers from here; each local
//! connection gets one of its own then, through the environment's proxy where there is one. Nothing is shared between
//! them, so a program that reads slowly slows down its own connection only, by TCP's means.
//!
//! Invariants: a connection that could not be made is never reset while another route might take it: it comes back, and the
//! link is over, so that the tunnel turns to the next route. Only where the endpoint's machine itself says no is it reset.
//! Connections that are open when a link is over go on.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{io::copy_bidirectional, task::JoinSet, time::timeout};
use tracing::{Instrument, debug, info, info_span};

use super::{
    BoxError, Class, Command, Connecting, End, Fault, Held, LinkState, Mailbox, Meter, PipeEnd, ProbeError, Report,
    Route,
    near::{Near, Open, give_back},
};
use crate::{
    aws::{Aws, advice, connect::For},
    bastion::Bastion,
    clock::Clock,
    cluster::Origin,
    remote::Remote,
    util::{
        connection::Connection,
        peer_text::{PeerText, sentence},
        quote::command,
    },
};

/// How long one connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Returns the route of whoever connects with the proxies of `aws`.
pub(super) fn route(aws: &Aws) -> Arc<dyn Route> {
    Arc::new(Direct { aws: aws.clone() })
}

#[derive(Debug)]
struct Direct {
    aws: Aws,
}

/// The endpoint does not answer from here.
#[derive(Debug, thiserror::Error)]
#[error("`{endpoint}` does not answer from this machine")]
struct Unreachable {
    endpoint: String,
    #[source]
    source: BoxError,
}

impl Direct {
    /// Opens one connection within `limit`.
    async fn open(&self, to: &Remote, limit: Duration) -> Result<Box<dyn Connection>, BoxError> {
        match timeout(limit, self.aws.connector().reach(to.endpoint(), For::Owner)).await {
            Ok(connected) => Ok(connected?),
            Err(_) => Err(format!("no answer within {} s", limit.as_secs()).into()),
        }
    }

    fn unreachable(to: &Remote, source: BoxError) -> Arc<Fault> {
        let network = advice::network(&to.endpoint().to_string(), &*source);
        let error = Unreachable { endpoint: to.endpoint().to_string(), source };
        Arc::new(Fault::new(Class::Away, error).with_hints(network).with_hints([Self::elsewhere(to)]))
    }

    /// Says what else may lead to a cluster.
    fn elsewhere(to: &Remote) -> String {
        match to.cluster().map(|cluster| &cluster.origin) {
            Some(Origin::Eks { .. }) => command!(
                "`aws eks describe-cluster --name {} --region {} --query cluster.resourcesVpcConfig` shows whether the \
                 endpoint is public, and to which addresses; if it is not, connect through a VPN or another `--bastion`",
                to.name(),
                to.region()
            ),
            Some(Origin::Imported(_)) | None => "connect through a VPN or another `--bastion`".to_owned(),
        }
    }
}

impl Route for Direct {
    fn label(&self) -> String {
        Bastion::Direct.to_string()
    }

    fn run(self: Arc<Self>, to: Arc<Remote>, mailbox: Mailbox) -> BoxFuture<'static, ()> {
        Box::pin(run(self, to, mailbox).instrument(info_span!("direct")))
    }

    fn advise(&self, to: &Remote, error: &ProbeError) -> Vec<String> {
        match error {
            ProbeError::Refused | ProbeError::NoAnswer { .. } | ProbeError::Ended => vec![Self::elsewhere(to)],
            ProbeError::Certificate { host, .. } => vec![format!(
                "what answers here is not the API server of `{}`: check what `{host}` resolves to, and whether a proxy \
                 intercepts TLS",
                to.name()
            )],
            ProbeError::Authority { .. } | ProbeError::Tls { .. } | ProbeError::NotHttp | ProbeError::LinkLost => {
                Vec::new()
            }
        }
    }

    fn connect(&self, to: &Arc<Remote>, limit: Duration) -> Option<Connecting> {
        let (direct, to) = (Self { aws: self.aws.clone() }, Arc::clone(to));
        Some(Box::pin(async move { direct.open(&to, limit).await.map_err(|source| Self::unreachable(&to, source)) }))
    }

    fn advise_silence(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What has come of one local connection.
enum Outcome {
    /// It has ended, one way or the other.
    Ended,
    /// It could not be made.
    NotMade(Held, BoxError),
}

async fn run(route: Arc<Direct>, to: Arc<Remote>, mut mailbox: Mailbox) {
    let (stop, clock, limit) = (mailbox.stop.clone(), mailbox.terms.clock, mailbox.terms.up_within);
    let Some(first) = stop.run_until_cancelled(route.open(&to, limit.min(CONNECT_LIMIT))).await else { return };
    drop(mailbox.permit.take());
    let reports = mailbox.reports.clone();
    let over = |fault, served, open| reports.send(Report::Ended(End { fault, served, open }));
    if let Err(source) = first {
        return over(Direct::unreachable(&to, source), false, 0);
    }
    info!("the endpoint answers from here");
    reports.send(Report::Started { id: None, through: None });
    reports.send(Report::Established { peer_version: None, message: PeerText::default() });
    reports.send(Report::Alive);
    mailbox.state.send_replace(LinkState::Up { carrier: 1 });
    let meter = Arc::clone(&mailbox.meter);
    let mut connections = JoinSet::new();
    let fault = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break None,
            command = mailbox.commands.recv() => match command {
                Some(Command::Connect(held)) => {
                    meter.taken.fetch_add(u64::from(held.io.is_counted()), Ordering::Relaxed);
                    let task = carry(Arc::clone(&route), Arc::clone(&to), held, Arc::clone(&meter), clock);
                    connections.spawn(task.in_current_span());
                }
                Some(Command::Abandon(fault)) => break Some(fault),
                None => break None,
            },
            Some(ended) = connections.join_next() => match ended {
                Ok(Outcome::Ended) => {}
                Ok(Outcome::NotMade(held, error)) => {
                    debug!(error = sentence(&*error), "the endpoint cannot be connected to");
                    if is_refused(&*error) {
                        if held.io.is_counted() {
                            reports.send(Report::Refused);
                        }
                        held.io.abort(PipeEnd::Refused);
                    } else {
                        give_back(&reports, held);
                        break Some(Direct::unreachable(&to, error));
                    }
                }
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
        }
    };
    mailbox.state.send_replace(LinkState::Over);
    mailbox.commands.close();
    if let Some(fault) = fault {
        over(fault, meter.bytes_received.load(Ordering::Relaxed) > 0, meter.open.load(Ordering::Relaxed));
    }
    while let Ok(command) = mailbox.commands.try_recv() {
        match command {
            Command::Connect(held) => {
                meter.taken.fetch_add(u64::from(held.io.is_counted()), Ordering::Relaxed);
                give_back(&reports, held);
            }
            Command::Abandon(_) => {}
        }
    }
    // What is open goes on: nothing says that it does not work.
    let ends = async {
        while let Some(ended) = connections.join_next().await {
            match ended {
                Ok(Outcome::Ended) => {}
                Ok(Outcome::NotMade(held, _)) => give_back(&reports, held),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
    };
    let limit = async {
        stop.cancelled().await;
        tokio::time::sleep(mailbox.terms.grace).await;
    };
    tokio::select! {
        () = ends => {}
        () = limit => {}
    }
    connections.shutdown().await;
}

/// Whether something at the endpoint's address has said no, which another attempt a moment later may not change.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let is_refused = |error: &&(dyn std::error::Error + 'static)| {
        error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    std::iter::successors(Some(error), |error| error.source()).any(|error| is_refused(&error))
}

/// Carries one local connection on a connection of its own.
async fn carry(route: Arc<Direct>, to: Arc<Remote>, held: Held, meter: Arc<Meter>, clock: Clock) -> Outcome {
    let is_counted = held.io.is_counted();
    let _open = Open::count(&meter, is_counted);
    let left = held.deadline.saturating_sub(clock.now().mono);
    let mut far = match route.open(&to, left.min(CONNECT_LIMIT)).await {
        Ok(far) => far,
        Err(error) => return Outcome::NotMade(held, error),
    };
    meter.connections_total.fetch_add(u64::from(is_counted), Ordering::Relaxed);
    let mut near = Near::new(held.io, meter, clock);
    match copy_bidirectional(&mut near, &mut far).await {
        Ok(_) => near.finish(),
        Err(error) => debug!(%error, "a connection broke"),
    }
    Outcome::Ended
}

#[cfg(test)]
mod tests;
