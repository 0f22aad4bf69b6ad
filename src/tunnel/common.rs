//! What all tunnels of one identity share: the clock, limits on starts, and what one has found out for all.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::Audit;
use crate::{
    clock::Clock,
    route::{Caution, Class, RetryNow},
};

/// How many links are started at once, over all tunnels: many clusters that come up, or come back,
/// together must not run into a service's throttling.
const CONCURRENT_STARTS: usize = 4;

/// What the user has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Something works for now, and may not for long.
    Caution(Caution),
    /// Something was chosen, made or ended on the user's behalf.
    Notice(String),
}

impl News {
    fn text(&self) -> &str {
        match self {
            Self::Caution(caution) => &caution.message,
            Self::Notice(notice) => notice,
        }
    }
}

/// Most that is kept of what was told: whoever tells it to the user has it at once.
const MAX_NEWS: usize = 64;

/// What the user has been told. What is among it is not told again.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// How much there has been.
    count: usize,
    /// The last of it.
    last: VecDeque<News>,
}

impl Told {
    /// Returns what has come since so much had been told, as far as it is kept, and how much there has been now.
    pub fn since(&self, count: usize) -> (impl Iterator<Item = &News>, usize) {
        let new = self.count.saturating_sub(count).min(self.last.len());
        (self.last.iter().skip(self.last.len() - new), self.count)
    }

    fn add(&mut self, news: News) -> bool {
        if self.last.iter().any(|known| known.text() == news.text()) {
            return false;
        }
        if self.last.len() == MAX_NEWS {
            // What was chosen is old by then; cautions are few, and hold.
            let notice = self.last.iter().position(|news| matches!(news, News::Notice(_)));
            self.last.remove(notice.unwrap_or_default());
        }
        self.last.push_back(news);
        self.count += 1;
        true
    }
}

/// What all tunnels of one identity share.
#[derive(Debug)]
pub struct Common {
    clock: Clock,
    starts: Arc<Semaphore>,
    retry_now: RetryNow,
    news: watch::Sender<Told>,
    audit: Option<Audit>,
    /// Why routes cannot be taken, by their labels.
    troubles: Mutex<BTreeMap<String, Class>>,
}

impl Common {
    /// Creates what the tunnels of one identity share.
    #[must_use]
    pub fn new(clock: Clock) -> Arc<Self> {
        Self::audited(clock, None)
    }

    /// As [`new`](Self::new), with evidence of connections.
    #[must_use]
    pub fn audited(clock: Clock, audit: Option<Audit>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            starts: Arc::new(Semaphore::new(CONCURRENT_STARTS)),
            retry_now: RetryNow::default(),
            news: watch::Sender::default(),
            audit,
            troubles: Mutex::default(),
        })
    }

    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Returns where connections are told.
    pub(super) fn audit(&self) -> Option<&Audit> {
        self.audit.as_ref()
    }

    /// Says that what has failed until now may succeed: the machine has woken up, or there are good credentials
    /// again. Tunnels that wait before another attempt make it at once.
    pub fn retry_now(&self) {
        self.retry_now.retry_now();
    }

    /// Returns what ends pauses between attempts.
    pub(super) fn pauses(&self) -> RetryNow {
        self.retry_now.clone()
    }

    /// Waits for leave to start a link.
    pub(super) async fn start_permit(&self) -> OwnedSemaphorePermit {
        let starts = Arc::clone(&self.starts);
        starts.acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Takes note of what the user has to know.
    pub(super) fn tell(&self, news: News) {
        self.news.send_if_modified(|told| told.add(news));
    }

    /// Returns what the user has to know, now and later.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<Told> {
        self.news.subscribe()
    }

    /// Takes note of why no link could be started on a route. Returns whether that is news.
    pub(super) fn note_trouble(&self, route: &str, class: Class) -> bool {
        let before = self.troubles().insert(route.to_owned(), class);
        before.is_none_or(|before| before.needs_another_route() != class.needs_another_route())
    }

    /// Takes note that a link has been started on a route.
    pub(super) fn note_started(&self, route: &str) {
        self.troubles().remove(route);
    }

    /// Returns the routes that cannot be taken until a human has done something, as the last attempts have shown.
    #[must_use]
    pub fn unusable(&self) -> BTreeSet<String> {
        let troubles = self.troubles();
        troubles.iter().filter(|(_, class)| class.needs_another_route()).map(|(route, _)| route.clone()).collect()
    }

    fn troubles(&self) -> MutexGuard<'_, BTreeMap<String, Class>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trouble_with_a_route_is_news_once_until_it_changes() {
        let common = Common::new(Clock::start());
        let [one, other] = ["one", "other"];
        let news = [one, one, other, one, other].map(|route| common.note_trouble(route, Class::Denied));
        assert_eq!(news, [true, false, true, false, false]);
        assert!(common.note_trouble(one, Class::Away), "it may be used again");
        assert_eq!(common.unusable(), BTreeSet::from([other.to_owned()]));
        common.note_started(other);
        assert!(common.unusable().is_empty());
        assert!(common.note_trouble(other, Class::Gone), "it had been all right");
    }

    #[test]
    fn news_is_told_once() {
        let common = Common::new(Clock::start());
        let caution = |message: &str| Caution { class: Class::Denied, message: message.to_owned(), hints: Vec::new() };
        ["one", "two", "one"].into_iter().for_each(|message| common.tell(News::Caution(caution(message))));
        ["three", "three"].into_iter().for_each(|notice| common.tell(News::Notice(notice.to_owned())));
        assert_eq!(common.news().borrow().since(0).0.count(), 3);
    }

    #[test]
    fn news_is_bounded_and_cautions_stay() {
        let common = Common::new(Clock::start());
        let caution = Caution { class: Class::Denied, message: "caution".to_owned(), hints: Vec::new() };
        common.tell(News::Caution(caution.clone()));
        let mut told = 0;
        for number in 0..1000 {
            common.tell(News::Notice(number.to_string()));
            common.tell(News::Caution(caution.clone()));
            let news = common.news();
            let news = news.borrow();
            let (new, count) = news.since(told);
            assert_eq!(new.count(), if told == 0 { 2 } else { 1 });
            told = count;
        }
        assert_eq!((told, common.news().borrow().last.len()), (1001, MAX_NEWS));
    }
}
