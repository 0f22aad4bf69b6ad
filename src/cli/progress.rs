//! What a user sees of the tunnels while they come up and afterwards, and when there is no hope for them.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::timeout};

use super::{
    error::{CommandError, Kind},
    output::{Line, Mark, Printer},
};
use crate::{
    clock,
    fault::Class,
    manager::{Roster, supervisor::Board},
    tunnel::{LinkStatus, State, TunnelStatus},
};

/// How long an agent that does not speak is no news. Most take well below a second.
const SILENCE: Duration = Duration::from_secs(2);

/// How often to look whether an agent has been silent for long.
const SILENCE_INTERVAL: Duration = Duration::from_millis(500);

/// Shows the tunnels until all are ready. Fails with the board when only a human can help any of them.
pub(crate) async fn until_ready(
    mut board: watch::Receiver<Board>,
    hope: &Hopeless,
    printer: &Printer,
) -> Result<(), Board> {
    let mut lines: BTreeMap<u16, Line> = BTreeMap::new();
    let mut shown: BTreeMap<u16, bool> = BTreeMap::new();
    loop {
        let now = board.borrow_and_update().clone();
        for tunnel in &now.tunnels {
            if shown.get(&tunnel.port).copied().unwrap_or_default() {
                continue;
            }
            let text = progress_text(tunnel);
            let label = &tunnel.cluster.name;
            let mut line = lines.remove(&tunnel.port).unwrap_or_else(|| printer.line(label, &text));
            if tunnel.is_ready() {
                shown.insert(tunnel.port, true);
                line.finish(Mark::Done, &text);
            } else {
                line.set(&text);
                lines.insert(tunnel.port, line);
            }
        }
        if now.is_ready() {
            return Ok(());
        }
        if is_hopeless(&now, hope, false) {
            for (_, line) in lines {
                line.finish(Mark::Failed, "failed");
            }
            return Err(now);
        }
        if timeout(SILENCE_INTERVAL, board.changed()).await.is_ok_and(|outcome| outcome.is_err()) {
            return Err(board.borrow().clone());
        }
    }
}

/// The target whose agent a tunnel that does not work is waiting for, if it has been silent for that long.
fn awaited(tunnel: &TunnelStatus, silence: Duration) -> Option<&LinkStatus> {
    let now = SystemTime::UNIX_EPOCH + clock::wall();
    let link = tunnel.link().filter(|link| link.awaits_peer(silence, now))?;
    match tunnel.state {
        State::Starting | State::Reconnecting | State::Failed => Some(link),
        State::Active | State::Degraded | State::Stopped => None,
    }
}

fn progress_text(tunnel: &TunnelStatus) -> String {
    let place = format!("127.0.0.1:{}", tunnel.port);
    if let Some(link) = awaited(tunnel, SILENCE) {
        return format!("{place} {}: waiting for the agent on `{}`", tunnel.state, link.route);
    }
    match tunnel.state {
        State::Active => {
            let through = tunnel.link().map(|link| format!(" through {}", link.route)).unwrap_or_default();
            let probe =
                tunnel.last_probe.map(|probe| format!(", {} ms", probe.round_trip.as_millis())).unwrap_or_default();
            format!("{place} active{through}{probe}")
        }
        State::Starting => format!("{place} starting"),
        State::Reconnecting | State::Degraded | State::Failed | State::Stopped => {
            let error = tunnel.last_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            format!("{place} {}{error}", tunnel.state)
        }
    }
}

/// Knows which tunnels have a bastion that may come back.
pub(crate) struct Hopeless {
    roster: watch::Receiver<Roster>,
}

impl Hopeless {
    pub(crate) fn new(roster: watch::Receiver<Roster>) -> Self {
        Self { roster }
    }

    /// Whether a tunnel has a bastion of which it is not known that only a human can help.
    fn has_usable_bastion(&self, tunnel: &TunnelStatus) -> bool {
        let roster = self.roster.borrow();
        let way = roster.route(tunnel.port).map(|route| &route.way);
        way.is_some_and(|way| {
            let unusable = way.common.unusable();
            way.access.bastion.iter().any(|bastion| !unusable.contains(bastion.as_str()))
        })
    }
}

/// Whether no tunnel works and none will without a human. A bastion that is away may come back by
/// itself, so it counts only when the `time_is_up`; of one that does not exist or may not be used, only another may.
pub(crate) fn is_hopeless(board: &Board, hope: &Hopeless, time_is_up: bool) -> bool {
    let may_return = |tunnel: &TunnelStatus| {
        tunnel.last_error.as_ref().is_some_and(|error| {
            let class = error.fault.class;
            class == Class::Away || (class.needs_another_route() && hope.has_usable_bastion(tunnel))
        })
    };
    board.tunnels.iter().all(|tunnel| {
        tunnel.state == State::Stopped
            || (tunnel.state == State::Failed && tunnel.ready_at.is_none() && (time_is_up || !may_return(tunnel)))
    })
}

/// Says what is wrong with each tunnel that is not ready; the first one's error is what the command ends with.
pub(crate) fn failure(board: &Board, printer: &Printer) -> CommandError {
    let mut errors = board.tunnels.iter().filter(|tunnel| !tunnel.is_ready()).map(|tunnel| match &tunnel.last_error {
        Some(error) => CommandError::tunnel(&tunnel.cluster, &error.fault),
        None => match awaited(tunnel, Duration::ZERO) {
            Some(link) => CommandError::peer_awaited(&tunnel.cluster, link),
            None => CommandError::new(Kind::Tunnel, format!("the tunnel to `{}` is not ready", tunnel.cluster.name)),
        },
    });
    let Some(first) = errors.next() else {
        return CommandError::new(Kind::Tunnel, "no tunnel could be opened");
    };
    for error in errors {
        printer.warning(&error.sentence());
    }
    first
}

/// Says which tunnels are not ready after `seconds`, and why.
pub(crate) fn report_unready(board: &Board, seconds: u64, printer: &Printer) {
    for tunnel in board.tunnels.iter().filter(|tunnel| !tunnel.is_ready()) {
        match &tunnel.last_error {
            Some(error) => printer.error(&CommandError::tunnel(&tunnel.cluster, &error.fault)),
            None => match awaited(tunnel, Duration::ZERO) {
                Some(link) => printer.error(&CommandError::peer_awaited(&tunnel.cluster, link)),
                None => printer.warning(&format!("`{}` is not ready after {seconds} s", tunnel.cluster.name)),
            },
        }
    }
}

/// Waits until all tunnels are ready.
pub(crate) async fn wait_ready(mut board: watch::Receiver<Board>) {
    if board.wait_for(Board::is_ready).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Says what happens to tunnels. Never ends.
pub(crate) async fn show_changes(mut board: watch::Receiver<Board>, printer: &Printer) {
    let state = |tunnel: &TunnelStatus| (tunnel.state, awaited(tunnel, SILENCE).map(|link| link.route.clone()));
    let states =
        |board: &Board| board.tunnels.iter().map(|tunnel| (tunnel.port, state(tunnel))).collect::<BTreeMap<_, _>>();
    let mut known = states(&board.borrow_and_update());
    while timeout(SILENCE_INTERVAL, board.changed()).await.map_or(true, |outcome| outcome.is_ok()) {
        let now = board.borrow_and_update().clone();
        for tunnel in &now.tunnels {
            let is_news = match known.get(&tunnel.port) {
                // That the agent has spoken is seen by what follows.
                Some((known, awaits)) => {
                    *known != tunnel.state || (awaits.is_none() && awaited(tunnel, SILENCE).is_some())
                }
                None => true,
            };
            if is_news {
                printer.progress(&format!("{} {}", tunnel.cluster.name, progress_text(tunnel)));
            }
        }
        known = states(&now);
    }
    std::future::pending::<()>().await;
}
