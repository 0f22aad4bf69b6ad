//! What a screen shows, and what keys do to it. Values only: the clock and the terminal are elsewhere.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use super::keys::Key;
use crate::{
    doctor::{Entry, Status},
    manager::control::{ManagerStatus, TunnelReport},
};

/// How many seconds of traffic are kept of each tunnel: what the widest screen shows.
pub(super) const SAMPLES: usize = 60;

/// How many events are kept.
const EVENTS: usize = 200;

/// Rows that a page has.
const PAGE: usize = 10;

/// All that a screen shows.
#[derive(Debug)]
pub(super) struct Screen {
    pub(super) status: ManagerStatus,
    /// By the tunnels' names.
    traffic: BTreeMap<String, Traffic>,
    /// What has happened, the latest last.
    pub(super) events: VecDeque<Event>,
    /// The name of the tunnel whose row is selected.
    selected: Option<String>,
    pub(super) examination: Option<Examination>,
    /// What the last key has done.
    pub(super) notice: Option<String>,
}

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) at: SystemTime,
    pub(super) text: String,
    /// Something has gone wrong.
    pub(super) is_trouble: bool,
}

/// What `doctor` has found of one tunnel.
#[derive(Debug)]
pub(super) struct Examination {
    /// The tunnel's name.
    pub(super) of: String,
    pub(super) found: Vec<Entry>,
    pub(super) progress: Progress,
    /// Lines that are above what is shown.
    pub(super) scroll: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Running,
    Done,
    /// It could not be made, or not to the end.
    Failed(String),
}

/// What a key asks for that is not the screen's own.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Act {
    Quit,
    /// Runs `doctor` for a cluster or forward of this name.
    Examine(String),
    /// Nobody looks at what is being found any more.
    Leave,
    /// Puts a text into the clipboard.
    Copy(String),
}

/// How much passes, second by second.
#[derive(Debug, Default)]
struct Traffic {
    total: u64,
    /// Bytes per second, the latest last.
    rates: VecDeque<u64>,
}

impl Screen {
    /// Begins with a status.
    pub(super) fn new(status: ManagerStatus) -> Self {
        let mut events: Vec<Event> = status.tunnels.iter().filter_map(trouble).collect();
        events.sort_by_key(|event| event.at);
        let traffic = status.tunnels.iter().map(|tunnel| {
            let traffic = Traffic { total: total(tunnel), rates: VecDeque::new() };
            (tunnel.context.clone(), traffic)
        });
        Self {
            traffic: traffic.collect(),
            events: events.into(),
            selected: status.tunnels.first().map(|tunnel| tunnel.context.clone()),
            examination: None,
            notice: None,
            status,
        }
    }

    /// Takes a new status, and makes events of what has changed.
    pub(super) fn tell(&mut self, status: ManagerStatus, now: SystemTime) {
        let event = |text, is_trouble| Event { at: now, text, is_trouble };
        let mut events = Vec::new();
        if status.state != self.status.state {
            let text = format!("the manager is {}", status.state);
            events.push(event(text, !matches!(&*status.state, "active" | "starting")));
        }
        let old: BTreeMap<&str, &TunnelReport> =
            self.status.tunnels.iter().map(|tunnel| (&*tunnel.context, tunnel)).collect();
        for tunnel in &status.tunnels {
            let name = &tunnel.context;
            let Some(before) = old.get(&**name) else {
                events.push(event(format!("{name} is new, {}", tunnel.state), false));
                self.traffic.insert(name.clone(), Traffic { total: total(tunnel), rates: VecDeque::new() });
                continue;
            };
            if tunnel.last_error_at != before.last_error_at || tunnel.last_error != before.last_error {
                events.extend(trouble(tunnel));
            }
            if tunnel.resumes > before.resumes {
                events.push(event(format!("{name}: resumed, open connections go on"), false));
            }
            if tunnel.restarts > before.restarts {
                events.push(event(format!("{name}: another session takes the place of the one that ended"), false));
            }
            if tunnel.state != before.state {
                events.push(event(format!("{name} is {}", tunnel.state), !tunnel.is_ready()));
            }
        }
        let is_there = |name: &str| status.tunnels.iter().any(|tunnel| tunnel.context == name);
        let gone = self.status.tunnels.iter().filter(|tunnel| !is_there(&tunnel.context));
        events.extend(gone.map(|tunnel| event(format!("{} is closed", tunnel.context), false)));
        self.traffic.retain(|name, _| is_there(name));
        self.events.extend(events);
        let surplus = self.events.len().saturating_sub(EVENTS);
        self.events.drain(..surplus);
        self.status = status;
        if self.index().is_none() {
            self.selected = self.status.tunnels.first().map(|tunnel| tunnel.context.clone());
        }
    }

    /// Takes note of what has passed since the last time.
    pub(super) fn sample(&mut self, since: Duration) {
        for tunnel in &self.status.tunnels {
            let Some(traffic) = self.traffic.get_mut(&tunnel.context) else { continue };
            let passed = total(tunnel).saturating_sub(std::mem::replace(&mut traffic.total, total(tunnel)));
            let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).max(1);
            traffic.rates.push_back(passed.saturating_mul(1000) / millis);
            let surplus = traffic.rates.len().saturating_sub(SAMPLES);
            traffic.rates.drain(..surplus);
        }
    }

    /// Returns how many bytes passed through a tunnel in each of the last seconds.
    pub(super) fn rates(&self, tunnel: &str) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator {
        let rates = self.traffic.get(tunnel).map(|traffic| &traffic.rates);
        rates.into_iter().flatten().copied().collect::<Vec<_>>().into_iter()
    }

    /// Returns which row is selected.
    pub(super) fn index(&self) -> Option<usize> {
        let selected = self.selected.as_deref()?;
        self.status.tunnels.iter().position(|tunnel| tunnel.context == selected)
    }

    /// Returns the tunnel whose row is selected.
    pub(super) fn selected(&self) -> Option<&TunnelReport> {
        self.status.tunnels.get(self.index()?)
    }

    /// Does what a key asks for, and returns what is left to do.
    pub(super) fn press(&mut self, key: Key) -> Option<Act> {
        self.notice = None;
        match key {
            Key::Char('q') => return Some(Act::Quit),
            Key::Char('c') => {
                let tunnel = self.selected()?;
                let text = match tunnel.forward {
                    None => tunnel.context.clone(),
                    Some(_) => format!("127.0.0.1:{}", tunnel.port),
                };
                self.notice = Some(format!("`{text}` is in the clipboard, if the terminal allows it"));
                return Some(Act::Copy(text));
            }
            Key::Char('d') => {
                let tunnel = self.selected()?;
                let (of, name) = (tunnel.context.clone(), tunnel.cluster.clone());
                self.examination = Some(Examination { of, found: Vec::new(), progress: Progress::Running, scroll: 0 });
                return Some(Act::Examine(name));
            }
            Key::Escape => return self.examination.take().map(|_| Act::Leave),
            Key::Up | Key::Char('k') => self.select(|at, _| at.saturating_sub(1)),
            Key::Down | Key::Char('j') => self.select(|at, _| at + 1),
            Key::Home | Key::Char('g') => self.select(|_, _| 0),
            Key::End | Key::Char('G') => self.select(|_, len| len),
            Key::PageUp | Key::PageDown => {
                let on = key == Key::PageDown;
                match &mut self.examination {
                    Some(examination) if on => examination.scroll = examination.scroll.saturating_add(PAGE),
                    Some(examination) => examination.scroll = examination.scroll.saturating_sub(PAGE),
                    None if on => self.select(|at, _| at + PAGE),
                    None => self.select(|at, _| at.saturating_sub(PAGE)),
                }
            }
            Key::Char(_) => {}
        }
        None
    }

    fn select(&mut self, to: impl FnOnce(usize, usize) -> usize) {
        let len = self.status.tunnels.len();
        let at = to(self.index().unwrap_or_default(), len).min(len.saturating_sub(1));
        self.selected = self.status.tunnels.get(at).map(|tunnel| tunnel.context.clone());
    }

    /// Takes what `doctor` has found.
    pub(super) fn found(&mut self, entry: Entry) {
        if let Some(examination) = &mut self.examination {
            examination.found.push(entry);
        }
    }

    /// Takes note that `doctor` has ended.
    pub(super) fn examined(&mut self, progress: Progress) {
        if let Some(examination) = &mut self.examination {
            examination.progress = progress;
        }
    }
}

impl Examination {
    /// Says how it stands.
    pub(super) fn summary(&self) -> String {
        let failed = self.found.iter().filter(|entry| entry.status == Status::Failed).count();
        match &self.progress {
            Progress::Running => "checks…".to_owned(),
            Progress::Failed(why) => why.clone(),
            Progress::Done if failed == 0 => "no check has failed".to_owned(),
            Progress::Done if failed == 1 => "1 check has failed".to_owned(),
            Progress::Done => format!("{failed} checks have failed"),
        }
    }
}

/// The last thing that went wrong with a tunnel.
fn trouble(tunnel: &TunnelReport) -> Option<Event> {
    let (error, at) = (tunnel.last_error.as_ref()?, tunnel.last_error_at?);
    Some(Event { at: at.time(), text: format!("{}: {error}", tunnel.context), is_trouble: true })
}

fn total(tunnel: &TunnelReport) -> u64 {
    tunnel.bytes_sent.saturating_add(tunnel.bytes_received)
}
