//! How a link and whoever runs it talk: commands in, reports out.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Answer, Class, Fault, Held, LinkState, Meter, ProbeError, Share};
use crate::{
    clock::Clock,
    util::peer_text::{PeerText, sentence},
};

/// What a link is told.
#[derive(Debug)]
pub enum Command {
    /// Carry a connection.
    Connect(Held),
    /// End: the link has been found to be of no use.
    Abandon(Arc<Fault>),
}

/// Something that happened to a link.
#[derive(Debug)]
pub enum Report {
    /// It is being started: the pause before it is over.
    Connecting,
    /// What it waits for before it is there, in words.
    Progress(String),
    /// The same where that is a person, who may take any time.
    Asked(String),
    /// It is there. What carries it may still have to answer.
    Started {
        /// What audit trails call it, if they do.
        id: Option<String>,
        /// What the route has chosen to lead through, where it has a choice.
        through: Option<String>,
    },
    /// It takes connections.
    Established {
        /// The version of what answers at the other end, if it says.
        peer_version: Option<String>,
        /// Words of the other end for the user, perhaps empty.
        message: PeerText,
    },
    /// It has proved itself since it was started or resumed.
    Alive,
    /// About how long what was lost holds up a new connection, when that has changed.
    Backlog(Duration),
    /// Something is heard, and an answer stays away.
    Suspect,
    Slept,
    /// What it leads through is about to go: another link should take new connections.
    Leaving,
    /// It carries nothing for now, and is being resumed; connections stay open.
    Lost(Arc<Fault>),
    /// It carries again.
    Resumed,
    /// The destination refused a connection of a local program.
    Refused,
    /// A connection was not taken to the destination: it has to wait for a link again.
    Returned(Held),
    /// There is something that the user has to know.
    Caution(Caution),
    /// Something was chosen, made or ended on the user's behalf: one sentence without full stop. The same is said once.
    Notice(String),
    /// A probe through it has ended.
    Probed(Result<Answer, ProbeError>),
    /// It is over, or could not be had.
    Ended(End),
}

#[derive(Debug)]
pub struct End {
    pub fault: Arc<Fault>,
    /// Something had come from the destination.
    pub served: bool,
    /// How many connections of local programs were open.
    pub open: usize,
}

/// Something that works for now and that the user has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caution {
    pub class: Class,
    /// One sentence without full stop. The same is said once.
    pub message: String,
    /// What to do about it.
    pub hints: Vec<String>,
}

impl Caution {
    /// Says what stands in the way for now.
    #[must_use]
    pub fn of(fault: &Fault) -> Self {
        Self { class: fault.class, message: sentence(fault), hints: fault.hints.clone() }
    }
}

/// Sends the reports of one link.
#[derive(Debug, Clone)]
pub struct Reporter {
    link: u64,
    sender: mpsc::UnboundedSender<(u64, Report)>,
}

impl Reporter {
    /// Creates the sender of the link with this number.
    #[must_use]
    pub fn new(link: u64, sender: mpsc::UnboundedSender<(u64, Report)>) -> Self {
        Self { link, sender }
    }

    pub fn send(&self, report: Report) {
        // A tunnel that is gone does not need it.
        let _outcome = self.sender.send((self.link, report));
    }
}

/// Ends the pauses between attempts: what has failed until now may succeed.
#[derive(Debug, Clone, Default)]
pub struct RetryNow(Arc<Notify>);

impl RetryNow {
    /// Ends the pauses that there are.
    pub fn retry_now(&self) {
        self.0.notify_waiters();
    }

    /// Waits before another attempt, unless there is reason to make it at once.
    pub async fn pause(&self, time: Duration) {
        // Whoever is told wants to hear about it, not to be early.
        let _outcome = tokio::time::timeout(time, self.0.notified()).await;
    }
}

/// What a link has to go by.
#[derive(Debug, Clone)]
pub struct Terms {
    pub clock: Clock,
    /// Seed of delays and ids.
    pub seed: u64,
    /// How long it may take from its start to [`Report::Established`].
    pub up_within: Duration,
    /// How long open connections have for ending by themselves when a stop is asked for.
    pub grace: Duration,
    /// Nobody probes what is at the other end, so the link has to find out by itself whether that is there.
    pub is_unprobed: bool,
    /// It is kept from idling out, and what is at the other end from going unnoticed.
    pub keeps_warm: bool,
}

/// What a link is given to talk through. It is dropped with the link's future.
#[derive(Debug)]
pub struct Mailbox {
    /// What it is told. A link that takes no more connections closes this and returns what is in it.
    pub commands: mpsc::UnboundedReceiver<Command>,
    pub reports: Reporter,
    /// What others may read of it at any time; the link is the only writer.
    pub meter: Arc<Meter>,
    /// Whether connections can be carried. The link is the only writer.
    pub state: watch::Sender<LinkState>,
    /// What local programs may leave untaken.
    pub share: Share,
    /// Asks for the end, in good order and in a few seconds.
    pub stop: CancellationToken,
    /// Ends pauses.
    pub retry_now: RetryNow,
    pub terms: Terms,
    /// Leave to start a link, which few have at a time: dropped when the link is there, or is not to be had.
    pub permit: Option<OwnedSemaphorePermit>,
}
