//! What a user sees of the tunnels while they come up and afterwards.

use std::{
    collections::BTreeMap,
    pin::pin,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    error::{CommandError, Kind},
    output::{Line, Mark, Printer},
};
use crate::{
    clock::{self, Clock},
    manager::{Hope, supervisor::Board},
    settings::UpSettings,
    tunnel::{LinkStatus, State, TunnelStatus},
};

/// How long an agent that does not speak is no news. Most take well below a second.
const SILENCE: Duration = Duration::from_secs(2);

/// How often to look whether an agent has been silent for long.
const SILENCE_INTERVAL: Duration = Duration::from_millis(500);

/// Pause between two looks at tunnels that come up, for each so many of them: a thousand change all the time.
const PAUSE: Duration = Duration::from_millis(1);
const MANY: usize = 100;

/// Shows the tunnels until all are ready. Fails with the board when only a human can help any of them.
pub(super) async fn until_ready(
    mut board: watch::Receiver<Board>,
    hope: &Hope,
    printer: &Printer,
) -> Result<(), Board> {
    let mut lines: BTreeMap<u16, Line> = BTreeMap::new();
    let mut shown: BTreeMap<u16, bool> = BTreeMap::new();
    loop {
        let now = board.borrow().clone();
        for tunnel in &now.tunnels {
            if shown.get(&tunnel.port).copied().unwrap_or_default() {
                continue;
            }
            let text = progress_text(tunnel);
            let label = &tunnel.to.name();
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
        if !hope.is_left(&now, false) {
            for (_, line) in lines {
                line.finish(Mark::Failed, "failed");
            }
            return Err(now);
        }
        sleep(PAUSE * u32::try_from(now.tunnels.len() / MANY).unwrap_or(u32::MAX)).await;
        let news = timeout(SILENCE_INTERVAL, board.wait_for(|board| board.news != now.news)).await;
        if news.is_ok_and(|outcome| outcome.is_err()) {
            return Err(board.borrow().clone());
        }
    }
}

/// Waits for tunnels at most as long as the settings say; the time in which they wait for a person counts only where somebody
/// has said how long that may take.
///
/// # Errors
/// The time is up.
pub(super) async fn in_time<T>(
    settings: &UpSettings,
    board: &watch::Receiver<Board>,
    ready: impl Future<Output = T>,
) -> Result<T, TimeIsUp> {
    let awaits_person = |board: &Board| {
        let mut unready = board.tunnels.iter().filter(|tunnel| !tunnel.is_ready());
        unready.any(|tunnel| tunnel.link().is_some_and(|link| link.awaits_person))
    };
    let (clock, mut ready, mut left) = (Clock::start(), pin!(ready), settings.timeout);
    loop {
        let since = clock.now().mono;
        if let Ok(outcome) = timeout(left.min(SILENCE_INTERVAL), ready.as_mut()).await {
            return Ok(outcome);
        }
        if !(settings.waits_for_people && awaits_person(&board.borrow())) {
            left = left.saturating_sub(clock.now().mono.saturating_sub(since));
        }
        if left.is_zero() {
            return Err(TimeIsUp);
        }
    }
}

/// Not all tunnels are ready in time.
#[derive(Debug)]
pub(super) struct TimeIsUp;

/// The target whose agent a tunnel that does not work is waiting for, if it has been silent for that long.
fn awaited(tunnel: &TunnelStatus, silence: Duration) -> Option<&LinkStatus> {
    match tunnel.state {
        State::Starting | State::Reconnecting | State::Failed => {
            let now = SystemTime::UNIX_EPOCH + clock::wall();
            tunnel.link().filter(|link| link.awaits_peer(silence, now))
        }
        State::Active | State::Degraded | State::Idle | State::Stopped => None,
    }
}

fn progress_text(tunnel: &TunnelStatus) -> String {
    let place = format!("127.0.0.1:{}", tunnel.port);
    if let Some(link) = awaited(tunnel, SILENCE) {
        return format!("{place} {}: waiting for the agent on `{}`", tunnel.state, link.place());
    }
    let waits = tunnel.link().and_then(|link| link.progress.as_ref());
    if let (Some(waits), State::Starting | State::Reconnecting) = (waits, tunnel.state) {
        return format!("{place} {}: {waits}", tunnel.state);
    }
    match tunnel.state {
        State::Active => {
            let through = tunnel.link().map(|link| format!(" through {}", link.route)).unwrap_or_default();
            let probe =
                tunnel.last_probe.map(|probe| format!(", {} ms", probe.round_trip.as_millis())).unwrap_or_default();
            format!("{place} active{through}{probe}")
        }
        State::Idle => format!("{place} idle, until a connection comes"),
        State::Starting => format!("{place} starting"),
        State::Reconnecting | State::Degraded | State::Failed | State::Stopped => {
            let error = tunnel.last_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            format!("{place} {}{error}", tunnel.state)
        }
    }
}

/// Says what is wrong with each tunnel that is not ready; the first one's error is what the command ends with.
pub(super) fn failure(board: &Board, printer: &Printer) -> CommandError {
    let mut errors = board.tunnels.iter().filter(|tunnel| !tunnel.is_ready()).map(|tunnel| match &tunnel.last_error {
        Some(error) => CommandError::tunnel(&tunnel.to, &error.fault),
        None => match awaited(tunnel, Duration::ZERO) {
            Some(link) => CommandError::peer_awaited(&tunnel.to, link),
            None => not_ready(tunnel),
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

/// Says what a tunnel was waiting for, if it is known.
fn not_ready(tunnel: &TunnelStatus) -> CommandError {
    let message = format!("the tunnel to `{}` is not ready", tunnel.to.name());
    match tunnel.link().and_then(|link| link.progress.as_ref()) {
        Some(progress) => {
            CommandError::new(Kind::Tunnel, format!("{message}: {progress}")).hint("give it more time with `--timeout`")
        }
        None => CommandError::new(Kind::Tunnel, message),
    }
}

/// Says which tunnels are not ready after `seconds`, and why.
pub(super) fn report_unready(board: &Board, seconds: u64, printer: &Printer) {
    for tunnel in board.tunnels.iter().filter(|tunnel| !tunnel.is_ready()) {
        match &tunnel.last_error {
            Some(error) => printer.error(&CommandError::tunnel(&tunnel.to, &error.fault)),
            None => match awaited(tunnel, Duration::ZERO) {
                Some(link) => printer.error(&CommandError::peer_awaited(&tunnel.to, link)),
                None => printer.warning(&format!("`{}` is not ready after {seconds} s", tunnel.to.name())),
            },
        }
    }
}

/// Says what happens to tunnels. Never ends.
pub(super) async fn show_changes(mut board: watch::Receiver<Board>, printer: &Printer) {
    let state = |tunnel: &TunnelStatus| (tunnel.state, awaited(tunnel, SILENCE).is_some());
    let states =
        |board: &Board| board.tunnels.iter().map(|tunnel| (tunnel.port, state(tunnel))).collect::<BTreeMap<_, _>>();
    let (mut known, mut seen) = {
        let now = board.borrow();
        (states(&now), now.news)
    };
    loop {
        let news = timeout(SILENCE_INTERVAL, board.wait_for(|board| board.news != seen)).await;
        if news.is_ok_and(|outcome| outcome.is_err()) {
            return std::future::pending().await;
        }
        let mut lines = Vec::new();
        {
            let now = board.borrow();
            seen = now.news;
            for tunnel in &now.tunnels {
                let is_news = match known.get(&tunnel.port) {
                    // That the agent has spoken is seen by what follows.
                    Some((known, awaits)) => *known != tunnel.state || (!awaits && awaited(tunnel, SILENCE).is_some()),
                    None => true,
                };
                lines.extend(is_news.then(|| format!("{} {}", tunnel.to.name(), progress_text(tunnel))));
            }
            known = states(&now);
        }
        // A terminal may take its time, and the board is not to wait for it.
        for line in lines {
            printer.progress(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(state: State, awaits_person: bool) -> Board {
        let mut tunnel = TunnelStatus::of_a_host(state);
        let since = tunnel.since;
        tunnel.links[0].progress = Some("it waits".to_owned());
        tunnel.links[0].awaits_person = awaits_person;
        Board { tunnels: vec![tunnel], stopping: false, since, news: 0 }
    }

    /// How many seconds it takes until the time is up; a person takes the first `hours`.
    async fn up_after(waits_for_people: bool, hours: u64) -> u64 {
        let settings = UpSettings { timeout: Duration::from_secs(60), waits_for_people, ..UpSettings::default() };
        let (sender, board_now) = watch::channel(board(State::Starting, true));
        let clock = Clock::start();
        let decides = async {
            sleep(Duration::from_secs(hours * 3600)).await;
            sender.send_replace(board(State::Starting, false));
            std::future::pending::<()>().await;
        };
        tokio::select! {
            outcome = in_time(&settings, &board_now, std::future::pending::<()>()) => outcome.unwrap_err(),
            () = decides => unreachable!("it never ends"),
        };
        clock.now().mono.as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_that_a_person_takes_counts_only_where_a_limit_was_given() {
        assert_eq!(up_after(false, 5).await, 60);
        let patient = up_after(true, 5).await;
        assert!((5 * 3600 + 59..=5 * 3600 + 61).contains(&patient), "{patient}");
        assert_eq!(
            in_time(&UpSettings::default(), &watch::channel(board(State::Active, false)).1, async { 7 }).await.unwrap(),
            7
        );
    }
}
