//! One link: the part that one tunnel has in the connection to a bastion.
//!
//! A link is there as soon as the connection is; each local connection gets a channel of its own then. When the connection is
//! lost the link is over, with all that it carries: SSH resumes nothing. Another link then has another connection, which all
//! tunnels wait for together.
//!
//! Invariants: a local connection for which there is no channel comes back, but if the server could not reach the destination,
//! or has no room; channels are closed before the link's future returns.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span};

use super::{
    carry::carry,
    client::OpenError,
    dial::{Bastion, Connection},
    fault::SshFault,
    untaken::Untaken,
};
use crate::{
    cluster::Cluster,
    route::{
        Command, End, Fault, Held, LinkState, Mailbox, Meter, PipeEnd, Report, Terms,
        near::{Near, Open, give_back},
    },
    util::peer_text::PeerText,
};

/// How long a server may take to connect to the destination.
const OPEN_LIMIT: Duration = Duration::from_secs(15);

/// How long channels have for being closed, once all local connections are.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// What has come of one local connection.
enum Outcome {
    /// It has ended, one way or the other.
    Ended,
    /// There is no channel for it.
    NotOpened(Held, OpenError),
}

/// Runs a link.
pub(super) async fn run(bastion: Arc<Bastion>, to: Arc<Cluster>, mailbox: Mailbox) {
    let span = info_span!("ssh", bastion = %bastion.spec());
    run_link(bastion, to, mailbox).instrument(span).await;
}

async fn run_link(bastion: Arc<Bastion>, to: Arc<Cluster>, mut mailbox: Mailbox) {
    let stop = mailbox.stop.clone();
    let Some(connection) = stop.run_until_cancelled(connect(&bastion, &mailbox)).await else { return };
    drop(mailbox.permit.take());
    let over = |fault, served, open| mailbox.reports.send(Report::Ended(End { fault, served, open }));
    let connection = match connection {
        Ok(connection) => connection,
        Err(fault) => return over(fault, false, 0),
    };
    let through = format!("{}, {}", connection.place, connection.fingerprint);
    mailbox.reports.send(Report::Started { id: None, through: Some(through) });
    mailbox.reports.send(Report::Established { peer_version: None, message: PeerText::default() });
    mailbox.reports.send(Report::Alive);
    mailbox.state.send_replace(LinkState::Up { carrier: 1 });
    let mut link = Link::new(&bastion, connection, to, &mut mailbox);
    let fault = link.serve(&mut mailbox).await;
    mailbox.state.send_replace(LinkState::Over);
    mailbox.commands.close();
    let meter = Arc::clone(&mailbox.meter);
    let is_stopped = fault.is_none();
    if let Some(fault) = fault {
        let (served, open) = (meter.bytes_received.load(Ordering::Relaxed) > 0, meter.open.load(Ordering::Relaxed));
        mailbox.reports.send(Report::Ended(End { fault, served, open }));
    }
    while let Ok(command) = mailbox.commands.try_recv() {
        match command {
            Command::Connect(held) => {
                meter.taken.fetch_add(u64::from(held.io.is_counted()), Ordering::Relaxed);
                give_back(&mailbox.reports, held);
            }
            Command::Abandon(_) => {}
        }
    }
    link.end(&mailbox, is_stopped).await;
}

/// Waits for the connection, and tells what is being done for it.
async fn connect(bastion: &Bastion, mailbox: &Mailbox) -> Result<Arc<Connection>, Arc<Fault>> {
    let Terms { clock, up_within, .. } = mailbox.terms;
    let mut steps = bastion.steps();
    let waited = timeout(up_within, async {
        let mut connection = std::pin::pin!(bastion.connection(clock));
        loop {
            tokio::select! {
                biased;
                connection = &mut connection => return connection,
                Ok(()) = steps.changed() => {
                    let step = steps.borrow_and_update().clone();
                    mailbox.reports.send(Report::Progress(step));
                }
            }
        }
    });
    waited.await.unwrap_or_else(|_| {
        let fault = SshFault::Timeout { step: "the way to the bastion", seconds: up_within.as_secs() };
        Err(bastion.fault(fault))
    })
}

/// A link that is there.
struct Link {
    bastion: Arc<Bastion>,
    connection: Arc<Connection>,
    to: Arc<Cluster>,
    untaken: Arc<Untaken>,
    connections: JoinSet<Outcome>,
    /// Cuts all connections.
    cut: CancellationToken,
}

impl Link {
    fn new(bastion: &Arc<Bastion>, connection: Arc<Connection>, to: Arc<Cluster>, mailbox: &mut Mailbox) -> Self {
        let share = mailbox.share.hand_over();
        let untaken = Untaken::new(mailbox.terms.clock, Arc::clone(&mailbox.meter), share);
        let bastion = Arc::clone(bastion);
        Self { bastion, connection, to, untaken, connections: JoinSet::new(), cut: CancellationToken::new() }
    }

    /// Serves until the link is over; returns why, or nothing if that was asked for.
    async fn serve(&mut self, mailbox: &mut Mailbox) -> Option<Arc<Fault>> {
        let stop = mailbox.stop.clone();
        let connection = Arc::clone(&self.connection);
        let mut ended = std::pin::pin!(connection.ended());
        let clock = mailbox.terms.clock;
        let leave_at = connection.leave_at;
        let leaving = async {
            match leave_at {
                Some(at) => sleep_until(clock.instant(at)).await,
                None => std::future::pending().await,
            }
        };
        let mut leaving = std::pin::pin!(leaving);
        let mut is_leaving = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                why = &mut ended => return Some(self.bastion.fault(SshFault::Lost(why))),
                command = mailbox.commands.recv() => match command {
                    Some(Command::Connect(held)) => self.take(held, mailbox),
                    Some(Command::Abandon(fault)) => return Some(fault),
                    None => return None,
                },
                Some(outcome) = self.connections.join_next() => match outcome {
                    Ok(Outcome::Ended) => {}
                    Ok(Outcome::NotOpened(held, error)) => {
                        if let Some(fault) = self.not_opened(held, error, mailbox) {
                            return Some(fault);
                        }
                    }
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                () = &mut leaving, if !is_leaving => {
                    is_leaving = true;
                    mailbox.reports.send(Report::Leaving);
                }
            }
        }
    }

    fn take(&mut self, held: Held, mailbox: &Mailbox) {
        mailbox.meter.taken.fetch_add(u64::from(held.io.is_counted()), Ordering::Relaxed);
        let task = serve_one(
            Arc::clone(&self.connection),
            Arc::clone(&self.to),
            held,
            Arc::clone(&self.untaken),
            Arc::clone(&mailbox.meter),
            mailbox.terms.clone(),
            self.cut.child_token(),
        );
        self.connections.spawn(task.in_current_span());
    }

    /// Decides about a connection that has got no channel. Returns what ends the link.
    fn not_opened(&self, held: Held, error: OpenError, mailbox: &Mailbox) -> Option<Arc<Fault>> {
        debug!(%error, "the server opens no channel");
        match error {
            OpenError::Refused => {
                if held.io.is_counted() {
                    mailbox.reports.send(Report::Refused);
                }
                held.io.abort(PipeEnd::Refused);
                None
            }
            OpenError::Short => {
                held.io.abort(PipeEnd::Lost);
                None
            }
            OpenError::Prohibited => {
                give_back(&mailbox.reports, held);
                let destination = self.to.endpoint.to_string();
                Some(self.bastion.fault(SshFault::NotForwarded { destination, source: error }))
            }
            OpenError::Lost => {
                give_back(&mailbox.reports, held);
                None
            }
        }
    }

    /// Ends what is open: when the connection is gone it has ended already, when the link is of no use it is cut, and when a stop
    /// was asked for it has some time to end by itself.
    async fn end(mut self, mailbox: &Mailbox, is_stopped: bool) {
        let reports = mailbox.reports.clone();
        let mut connections = std::mem::take(&mut self.connections);
        let mut ends = std::pin::pin!(async {
            while let Some(ended) = connections.join_next().await {
                match ended {
                    Ok(Outcome::Ended) => {}
                    Ok(Outcome::NotOpened(held, _)) => give_back(&reports, held),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }
        });
        if is_stopped {
            tokio::select! {
                () = &mut ends => return,
                () = sleep(mailbox.terms.grace) => {}
            }
        }
        self.cut.cancel();
        let _late = timeout(CLOSE_LIMIT, ends).await;
    }
}

/// Opens a channel for a local connection, and carries it.
async fn serve_one(
    connection: Arc<Connection>,
    to: Arc<Cluster>,
    held: Held,
    untaken: Arc<Untaken>,
    meter: Arc<Meter>,
    terms: Terms,
    cut: CancellationToken,
) -> Outcome {
    let is_counted = held.io.is_counted();
    let _open = Open::count(&meter, is_counted);
    let left = held.deadline.saturating_sub(terms.clock.now().mono).min(OPEN_LIMIT);
    let mut opening = std::pin::pin!(connection.open(&to.endpoint));
    let opened = tokio::select! {
        biased;
        opened = &mut opening => opened,
        () = sleep(left) => {
            debug!("reset a connection that had waited too long for a channel");
            held.io.abort(PipeEnd::Lost);
            // It may still come, and would stay open for ever.
            let late = tokio::select! {
                biased;
                () = cut.cancelled() => return Outcome::Ended,
                late = opening => late,
            };
            if let Ok((_, sending)) = late {
                sending.close().await;
            }
            return Outcome::Ended;
        }
    };
    let channel = match opened {
        Ok(channel) => channel,
        Err(error) => return Outcome::NotOpened(held, error),
    };
    meter.connections_total.fetch_add(u64::from(is_counted), Ordering::Relaxed);
    let seat = untaken.seat(cut.clone());
    carry(channel, Near::new(held.io, meter, terms.clock), seat, cut).await;
    Outcome::Ended
}
