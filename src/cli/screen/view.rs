//! A screen as lines of text: what there is room for, and nothing that a terminal could take for a command.

use std::time::{Duration, SystemTime};

use super::model::{Examination, Progress, SAMPLES, Screen};
use crate::{
    cli::{
        doctor,
        output::Paint,
        status::{approved, bytes, is_approved},
    },
    manager::control::TunnelReport,
    util::written::{Timestamp, in_words, rfc3339},
};

/// How much room there is, in columns and lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) width: usize,
    pub(super) height: usize,
}

/// How a text looks where there are colours.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Look {
    Plain,
    Faint,
    /// In the colour of this state.
    State(String),
}

/// A line, of texts that look differently.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Line(Vec<(String, Look)>);

impl Line {
    fn plain(text: impl Into<String>) -> Self {
        Self(vec![(text.into(), Look::Plain)])
    }

    fn faint(text: impl Into<String>) -> Self {
        Self(vec![(text.into(), Look::Faint)])
    }

    fn then(mut self, text: impl Into<String>, look: Look) -> Self {
        self.0.push((text.into(), look));
        self
    }

    /// Writes as much as there is room for.
    fn write(&self, width: usize, paint: Paint) -> String {
        let mut left = width;
        let mut line = String::new();
        for (text, look) in &self.0 {
            let text: String = text.chars().filter(|letter| !letter.is_control()).take(left).collect();
            left -= text.chars().count();
            line.push_str(&match look {
                Look::Plain => text,
                Look::Faint => paint.faint(&text),
                Look::State(state) => paint.state(state, &text),
            });
        }
        line
    }
}

/// Widths of the columns between the name and the picture, with the two blanks before each.
const STATE: usize = 12;
const SINCE: usize = 6;
const TRIP: usize = 8;
const OPEN: usize = 4;
const RATE: usize = 10;

/// What the columns take besides the name and the picture.
const FIXED: usize = 2 + STATE + SINCE + TRIP + OPEN + RATE + 6 * 2;

/// Narrowest picture of traffic.
const MIN_PICTURE: usize = 10;

/// Lines that are kept for what happens, below the table.
const MIN_EVENTS: usize = 4;

/// Draws a screen: at most as many lines as there are, none longer than there is room for.
pub(super) fn draw(screen: &Screen, size: Size, now: SystemTime, paint: Paint) -> Vec<String> {
    let mut lines = head(screen, now);
    let detail = screen.selected().map(|tunnel| detail(tunnel, size.width, now)).unwrap_or_default();
    // The keys and the notice, and blanks around the table and above what happens.
    let taken = lines.len() + detail.len() + 6 + MIN_EVENTS;
    lines.push(Line::default());
    lines.extend(table(screen, size, size.height.saturating_sub(taken).max(3), now));
    lines.push(Line::default());
    lines.extend(detail);
    lines.push(Line::default());
    let left = size.height.saturating_sub(lines.len() + 1);
    match &screen.examination {
        Some(examination) => lines.extend(found(examination, size.width, left)),
        None => lines.extend(events(screen, size.width, left)),
    }
    let room = size.height.saturating_sub(1);
    lines.truncate(room);
    lines.resize(room, Line::default());
    lines.push(foot(screen));
    lines.truncate(size.height);
    lines.iter().map(|line| line.write(size.width, paint)).collect()
}

fn head(screen: &Screen, now: SystemTime) -> Vec<Line> {
    let status = &screen.status;
    let manager = Line::plain(format!("manager {}  ", status.name))
        .then(status.state.clone(), Look::State(status.state.clone()))
        .then(format!("  since {}", age(status.since, now)), Look::Faint);
    let mut lines = vec![manager];
    for access in &status.access {
        let line = Line::faint(format!("{} in {}", access.identity, access.region));
        lines.push(match (access.credentials_expire, &access.credentials_error) {
            (Some(at), Some(error)) => Line(vec![(
                format!("credentials until {at} cannot be renewed: {error}"),
                Look::State("warning".to_owned()),
            )]),
            _ => line,
        });
        let news = access.approvals.iter().filter(|approval| !is_approved(approval, now));
        lines.extend(news.map(|approval| {
            let text = format!("access to {}", approved(approval, now));
            Line(vec![(text, Look::State("warning".to_owned()))])
        }));
    }
    // Many accesses must not leave the tunnels without room.
    lines.truncate(4);
    lines
}

fn table(screen: &Screen, size: Size, room: usize, now: SystemTime) -> Vec<Line> {
    let tunnels = &screen.status.tunnels;
    let longest = tunnels.iter().map(|tunnel| tunnel.context.chars().count()).max().unwrap_or_default();
    let free = size.width.saturating_sub(FIXED);
    let name = longest.clamp(7, free.saturating_sub(MIN_PICTURE).max(12));
    let picture = free.saturating_sub(name).min(SAMPLES);
    let row = |mark: &str, cells: [&str; 6]| {
        let [context, state, since, trip, open, rate] = cells;
        Line::plain(format!("{mark:<2}{:<name$}  ", short(context, name)))
            .then(format!("{state:<STATE$}"), Look::State(state.to_owned()))
            .then(format!("  {since:>SINCE$}  {trip:>TRIP$}  {open:>OPEN$}  {rate:>RATE$}  "), Look::Plain)
    };
    let title = format!(
        "  {:<name$}  {:<STATE$}  {:>SINCE$}  {:>TRIP$}  {:>OPEN$}  {:>RATE$}  TRAFFIC",
        "CONTEXT", "STATE", "SINCE", "RTT", "OPEN", "RATE"
    );
    let mut lines = vec![Line::faint(title)];
    let rows = room.saturating_sub(1).max(1);
    let selected = screen.index().unwrap_or_default();
    let first = selected.saturating_sub(rows.saturating_sub(1));
    for (at, tunnel) in tunnels.iter().enumerate().skip(first).take(rows) {
        let trip = tunnel.probe_rtt_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
        let rates: Vec<u64> = screen.rates(&tunnel.context).collect();
        let rate = rates.last().map_or_else(|| "-".to_owned(), |rate| format!("{}/s", bytes(*rate)));
        let cells = [
            &*tunnel.context,
            &*tunnel.state,
            &age(tunnel.since, now),
            &trip,
            &tunnel.open_connections.to_string(),
            &rate,
        ];
        let mark = if at == selected { ">" } else { "" };
        lines.push(row(mark, cells).then(sparkline(&rates, picture), Look::Plain));
    }
    let hidden = tunnels.len().saturating_sub(rows);
    if hidden > 0 {
        lines[0] =
            std::mem::take(&mut lines[0]).then(format!("  ({} of {})", selected + 1, tunnels.len()), Look::Faint);
    }
    lines
}

/// Draws numbers as a row of bars, the latest at the right end. The highest bar is the largest of them, whatever it is.
fn sparkline(rates: &[u64], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = &rates[rates.len().saturating_sub(width)..];
    let most = shown.iter().copied().max().unwrap_or_default();
    let bar = |rate: &u64| match (*rate, most) {
        (0, _) | (_, 0) => ' ',
        (rate, most) => {
            let step = u128::from(rate) * (BARS.len() as u128 - 1) / u128::from(most);
            BARS[usize::try_from(step).unwrap_or_default()]
        }
    };
    let blank = std::iter::repeat_n(' ', width - shown.len());
    blank.chain(shown.iter().map(bar)).collect()
}

/// Says more of the tunnel whose row is selected.
fn detail(tunnel: &TunnelReport, width: usize, now: SystemTime) -> Vec<Line> {
    let to = tunnel.forward.as_ref().map_or_else(|| format!("`{}`", tunnel.cluster), |to| format!("`{to}`"));
    let mut place = format!("{}  127.0.0.1:{} to {to} in {}", tunnel.context, tunnel.port, tunnel.region);
    if let Some(bastion) = tunnel.bastion.as_ref().or(tunnel.target.as_ref()) {
        place.push_str(&format!(" through {bastion}"));
    }
    let mut lines = wrapped(&place, width, 2, Look::Plain);
    let count = |number: u64, one: &str| format!("{number} {one}{}", if number == 1 { "" } else { "s" });
    let figures = format!(
        "{}, {} sent, {} received, {}, {}",
        count(tunnel.connections_total, "connection"),
        bytes(tunnel.bytes_sent),
        bytes(tunnel.bytes_received),
        count(tunnel.resumes, "resume"),
        count(tunnel.restarts, "restart"),
    );
    lines.push(Line::plain(figures));
    if let Some(id) = &tunnel.session_id {
        let agent = tunnel.agent_version.as_ref().map(|version| format!(", agent {version}")).unwrap_or_default();
        lines.push(Line::plain(format!("session {id}{agent}")));
    } else if let Some(waits) = &tunnel.progress {
        lines.push(Line::plain(waits.clone()));
    }
    if let Some(error) = tunnel.last_error.as_ref().filter(|_| !tunnel.is_ready()) {
        let at = tunnel.last_error_at.map(|at| format!("{} ago: ", age(at, now))).unwrap_or_default();
        lines.extend(wrapped(&format!("{at}{error}"), width, 2, Look::State(tunnel.state.clone())));
        lines.extend(tunnel.hint.iter().flat_map(|hint| wrapped(&format!("hint: {hint}"), width, 3, Look::Plain)));
    }
    lines
}

/// The latest of what has happened, the newest first.
fn events(screen: &Screen, width: usize, room: usize) -> Vec<Line> {
    let mut lines = vec![Line::faint("EVENTS, UTC")];
    for event in screen.events.iter().rev().take(room.saturating_sub(1)) {
        let time = rfc3339(event.at);
        let time = time.get(11..19).unwrap_or(&time).to_owned();
        let look = if event.is_trouble { Look::State("warning".to_owned()) } else { Look::Plain };
        let text = short(&event.text, width.saturating_sub(10));
        lines.push(Line::faint(format!("{time}  ")).then(text, look));
    }
    lines
}

/// What `doctor` has found, as far as there is room.
fn found(examination: &Examination, width: usize, room: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for entry in &examination.found {
        let status = entry.status.as_str();
        for line in doctor::text(entry, Paint::plain()).lines() {
            let rest = line.strip_prefix(status);
            let indent = line.chars().take_while(|letter| *letter == ' ').count();
            let pieces =
                pieces(rest.unwrap_or(line.trim_start()), width, if rest.is_some() { status.len() } else { indent });
            for (at, piece) in pieces.into_iter().enumerate() {
                lines.push(match rest {
                    Some(_) if at == 0 => {
                        Line(vec![(status.to_owned(), Look::State(status.to_owned()))]).then(piece, Look::Plain)
                    }
                    _ => Line::plain(format!("{:9}{piece}", "")),
                });
            }
        }
    }
    let rows = room.saturating_sub(1);
    // While it runs the latest is shown, unless somebody looks elsewhere.
    let last = lines.len().saturating_sub(rows);
    let is_running = examination.progress == Progress::Running;
    let first = if examination.scroll == 0 && is_running { last } else { examination.scroll.min(last) };
    let more = if lines.len() > rows { "  PgUp PgDn scroll" } else { "" };
    let title = format!("DOCTOR {}: {}  Esc closes{more}", examination.of, examination.summary());
    std::iter::once(Line::faint(title)).chain(lines.into_iter().skip(first).take(rows)).collect()
}

fn foot(screen: &Screen) -> Line {
    match &screen.notice {
        Some(notice) => Line::plain(notice.clone()),
        None => Line::faint("↑ ↓ select   d doctor   c copy context   q quit"),
    }
}

/// Cuts a text into lines at blanks, of which there are at most `most`; the last says if there is more.
fn wrapped(text: &str, width: usize, most: usize, look: Look) -> Vec<Line> {
    let all = pieces(text, width, 0);
    let cut = all.len() > most;
    let mut shown: Vec<_> = all.into_iter().take(most).collect();
    if let Some(last) = shown.last_mut().filter(|_| cut) {
        *last = format!("{}…", short(last, width.saturating_sub(2)));
    }
    shown.into_iter().map(|line| Line(vec![(line, look.clone())])).collect()
}

/// Cuts a text into pieces, at blanks where there are any, the first of which comes behind so many columns.
fn pieces(text: &str, width: usize, indent: usize) -> Vec<String> {
    let room = width.saturating_sub(indent.max(9)).max(20);
    let mut pieces = vec![String::new()];
    for word in text.split_inclusive(' ') {
        let last = pieces.last().map_or(0, |piece| piece.chars().count());
        if last > 0 && last + word.trim_end().chars().count() > room {
            pieces.push(String::new());
        }
        // A word that no line has room for is cut where the line ends.
        for letter in word.chars() {
            let is_full = pieces.last().is_none_or(|piece| piece.chars().count() >= room);
            if is_full && letter != ' ' {
                pieces.push(String::new());
            }
            if let Some(piece) = pieces.last_mut() {
                piece.push(letter);
            }
        }
    }
    pieces
}

/// Cuts a text to a width.
fn short(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(std::iter::once('…')).collect()
}

/// How long ago something was, in its largest unit: a screen that stands still is not drawn again each second.
fn age(at: Timestamp, now: SystemTime) -> String {
    let seconds = now.duration_since(at.time()).unwrap_or_default().as_secs();
    let unit = [86400, 3600, 60, 10].into_iter().find(|unit| seconds >= *unit).unwrap_or(1);
    in_words(Duration::from_secs(seconds / unit * unit))
}
