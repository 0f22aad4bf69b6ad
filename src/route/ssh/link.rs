//! One link: the part that one tunnel has in the connection to a bastion.
//!
//! A link is there as soon as the connection is; each local connection gets a channel of its own then. When the connection is
//! lost the link is over, with all that it carries: SSH resumes nothing. Another link then has another connection, which all
//! tunnels wait for together.
//!
//! When a connection is [congested](super::congestion), the link moves to another one: what is open stays where it is, and what comes
//! while that is being made waits for it.
//!
//! Invariants: a local connection for which there is no channel comes back, but if the server could not reach the destination,
//! or has no room; channels are closed before the link's future returns.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

use super::{
    carry::carry,
    client::OpenError,
    dial::{Bastion, Connection},
    fault::SshFault,
    untaken::Untaken,
};
use crate::{
    remote::Remote,
    route::{
        Command, End, Fault, Held, LinkState, Mailbox, Meter, PipeEnd, Report, Terms,
        near::{Near, Open, give_back},
    },
    util::peer_text::{PeerText, sentence},
};

/// How long a server may take to connect to the destination.
const OPEN_LIMIT: Duration = Duration::from_secs(15);

/// How long what comes waits for another connection, when the one that there is is congested.
const MOVE_LIMIT: Duration = Duration::from_secs(10);

/// How long a congested connection is stayed on when no other could be made.
const MOVE_AGAIN: Duration = Duration::from_secs(30);

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
pub(super) async fn run(bastion: Arc<Bastion>, to: Arc<Remote>, mailbox: Mailbox) {
    let span = info_span!("ssh", bastion = %bastion.spec());
    run_link(bastion, to, mailbox).instrument(span).await;
}

async fn run_link(bastion: Arc<Bastion>, to: Arc<Remote>, mut mailbox: Mailbox) {
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
        let mut connection = pin!(bastion.connection(clock));
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
    to: Arc<Remote>,
    untaken: Arc<Untaken>,
    connections: JoinSet<Outcome>,
    /// What waits for another connection.
    waiting: Vec<Held>,
    /// Cuts all connections.
    cut: CancellationToken,
}

impl Link {
    fn new(bastion: &Arc<Bastion>, connection: Arc<Connection>, to: Arc<Remote>, mailbox: &mut Mailbox) -> Self {
        let untaken = account(&connection, mailbox);
        let bastion = Arc::clone(bastion);
        let (connections, waiting) = (JoinSet::new(), Vec::new());
        Self { bastion, connection, to, untaken, connections, waiting, cut: CancellationToken::new() }
    }

    /// Serves until the link is over; returns why, or nothing if that was asked for.
    async fn serve(&mut self, mailbox: &mut Mailbox) -> Option<Arc<Fault>> {
        loop {
            match self.serve_on_one(mailbox).await {
                Turn::Over(fault) => return fault,
                Turn::MoveTo(next) => self.move_to(next, mailbox),
            }
        }
    }

    /// Serves until the link is over, or has another connection to move to.
    async fn serve_on_one(&mut self, mailbox: &mut Mailbox) -> Turn {
        let stop = mailbox.stop.clone();
        let connection = Arc::clone(&self.connection);
        let mut ended = pin!(connection.ended());
        let clock = mailbox.terms.clock;
        let leave_at = connection.leave_at;
        let leaving = async {
            match leave_at {
                Some(at) => sleep_until(clock.instant(at)).await,
                None => std::future::pending().await,
            }
        };
        let mut leaving = pin!(leaving);
        let bastion = Arc::clone(&self.bastion);
        let make_next = || timeout(MOVE_LIMIT, bastion.connection(clock));
        let mut next = pin!(make_next());
        let (mut is_leaving, mut is_moving, mut is_stuck) = (false, false, false);
        let mut again = pin!(sleep(Duration::ZERO));
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Turn::Over(None),
                why = &mut ended => return Turn::Over(Some(self.bastion.fault(SshFault::Lost(why)))),
                () = connection.congestion.congested(), if !is_moving && !is_stuck => {
                    warn!("a program reads more slowly than its connection brings: new connections get another one");
                    next.set(make_next());
                    is_moving = true;
                }
                made = &mut next, if is_moving => match made {
                    Ok(Ok(next)) => return Turn::MoveTo(next),
                    failed => {
                        let why = match failed {
                            Ok(Err(fault)) => sentence(&*fault),
                            Ok(Ok(_)) | Err(_) => format!("no answer within {} s", MOVE_LIMIT.as_secs()),
                        };
                        warn!(why, "cannot make another connection: new ones share the one that there is");
                        (is_moving, is_stuck) = (false, true);
                        again.set(sleep(MOVE_AGAIN));
                        self.take_waiting(mailbox);
                    }
                },
                () = &mut again, if is_stuck => is_stuck = false,
                command = mailbox.commands.recv() => match command {
                    Some(Command::Connect(held)) if is_moving => self.waiting.push(held),
                    Some(Command::Connect(held)) => self.take(held, mailbox),
                    Some(Command::Abandon(fault)) => return Turn::Over(Some(fault)),
                    None => return Turn::Over(None),
                },
                Some(outcome) = self.connections.join_next() => match outcome {
                    Ok(Outcome::Ended) => {}
                    Ok(Outcome::NotOpened(held, error)) => {
                        if let Some(fault) = self.not_opened(held, error, mailbox) {
                            return Turn::Over(Some(fault));
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

    /// Lets another connection take what comes from now on, and what waits for it.
    fn move_to(&mut self, next: Arc<Connection>, mailbox: &mut Mailbox) {
        self.untaken.leave();
        self.untaken = account(&next, mailbox);
        self.connection = next;
        self.take_waiting(mailbox);
    }

    fn take_waiting(&mut self, mailbox: &Mailbox) {
        for held in std::mem::take(&mut self.waiting) {
            self.take(held, mailbox);
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
                let destination = self.to.endpoint().to_string();
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
        for held in std::mem::take(&mut self.waiting) {
            mailbox.meter.taken.fetch_add(u64::from(held.io.is_counted()), Ordering::Relaxed);
            give_back(&reports, held);
        }
        let mut connections = std::mem::take(&mut self.connections);
        let mut ends = pin!(async {
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

/// What became of serving on one connection.
enum Turn {
    /// The link is over, see [`Link::serve`].
    Over(Option<Arc<Fault>>),
    /// It is congested, and there is another.
    MoveTo(Arc<Connection>),
}

/// Opens the link's account for a connection.
fn account(connection: &Connection, mailbox: &mut Mailbox) -> Arc<Untaken> {
    let share = mailbox.share.hand_over();
    Untaken::new(mailbox.terms.clock, Arc::clone(&mailbox.meter), share, Arc::clone(&connection.congestion))
}

/// Opens a channel for a local connection, and carries it.
async fn serve_one(
    connection: Arc<Connection>,
    to: Arc<Remote>,
    held: Held,
    untaken: Arc<Untaken>,
    meter: Arc<Meter>,
    terms: Terms,
    cut: CancellationToken,
) -> Outcome {
    let is_counted = held.io.is_counted();
    let _open = Open::count(&meter, is_counted);
    let left = held.deadline.saturating_sub(terms.clock.now().mono).min(OPEN_LIMIT);
    let mut opening = pin!(connection.open(to.endpoint()));
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
