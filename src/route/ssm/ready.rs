//! Which of many things one task waits for have something to do.
//!
//! A task that polls every connection on each wake-up pays for all of them when one has data. Here
//! each gets a waker of its own that puts its key in a queue, so a wake-up costs what is ready.
//!
//! Invariant: a key is in the queue at most once between two calls of [`Ready::begin`].

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::{Context, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// The queue of keys whose wakers have been called. The queue of the standard library takes no lock.
pub(super) struct ReadySet<K> {
    sender: mpsc::Sender<K>,
    receiver: mpsc::Receiver<K>,
    task: Arc<AtomicWaker>,
}

impl<K: Copy + Send + Sync + 'static> ReadySet<K> {
    /// Creates an empty set.
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel();
        Self { sender, receiver, task: Arc::new(AtomicWaker::new()) }
    }

    /// Makes the current task the one that is woken. Call it before [`next`](Self::next).
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.task.register(cx.waker());
    }

    /// Creates the waker of one key. It is ready from the start.
    pub(super) fn insert(&self, key: K) -> Ready<K> {
        let node = Arc::new(Node {
            key,
            queued: AtomicBool::new(false),
            sender: self.sender.clone(),
            task: Arc::clone(&self.task),
        });
        let ready = Ready { waker: Waker::from(Arc::clone(&node)), node };
        ready.mark();
        ready
    }

    /// Returns the next ready key. It may be one whose owner is gone.
    pub(super) fn next(&self) -> Option<K> {
        self.receiver.try_recv().ok()
    }
}

/// One key's place in a [`ReadySet`].
pub(super) struct Ready<K> {
    node: Arc<Node<K>>,
    waker: Waker,
}

impl<K: Copy + Send + Sync + 'static> Ready<K> {
    /// Takes note that the key has been taken from the queue. Call it before polling, or a wake-up
    /// that comes in between is lost.
    pub(super) fn begin(&self) {
        self.node.queued.store(false, Ordering::SeqCst);
    }

    /// Queues the key without waking the task: for use by the task itself.
    pub(super) fn mark(&self) {
        self.node.enqueue();
    }

    pub(super) fn waker(&self) -> &Waker {
        &self.waker
    }
}

impl<K> fmt::Debug for Ready<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ready").field("queued", &self.node.queued).finish_non_exhaustive()
    }
}

struct Node<K> {
    key: K,
    queued: AtomicBool,
    sender: mpsc::Sender<K>,
    task: Arc<AtomicWaker>,
}

impl<K: Copy> Node<K> {
    /// Returns whether the key was not in the queue yet.
    fn enqueue(&self) -> bool {
        // A set that is gone has no task to tell.
        !self.queued.swap(true, Ordering::SeqCst) && self.sender.send(self.key).is_ok()
    }
}

impl<K: Copy + Send + Sync + 'static> Wake for Node<K> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.enqueue() {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_queued_once_until_it_is_taken_up() {
        let set = ReadySet::new();
        let (one, two) = (set.insert(1), set.insert(2));
        assert_eq!([set.next(), set.next(), set.next()], [Some(1), Some(2), None]);
        one.waker().wake_by_ref();
        assert_eq!(set.next(), None, "nobody has begun with it");
        one.begin();
        two.begin();
        two.waker().wake_by_ref();
        one.waker().wake_by_ref();
        one.mark();
        assert_eq!([set.next(), set.next(), set.next()], [Some(2), Some(1), None]);
    }

    #[test]
    fn wakes_the_task_that_registered_last() {
        let set = ReadySet::new();
        let outer = ReadySet::new();
        let task = outer.insert("task");
        assert_eq!(outer.next(), Some("task"));
        task.begin();
        let key = set.insert(7);
        set.register(&Context::from_waker(task.waker()));
        assert_eq!(set.next(), Some(7));
        key.begin();
        key.mark();
        assert_eq!(outer.next(), None, "the task marks without waking itself");
        assert_eq!(set.next(), Some(7));
        key.begin();
        key.waker().wake_by_ref();
        assert_eq!(outer.next(), Some("task"));
    }
}
