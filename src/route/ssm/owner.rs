//! Whom sessions and tasks are started for: by this they are found again, and told from those of others.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{aws::Caller, journal::Journal};

/// The manager that routes work for.
#[derive(Clone)]
pub struct Owner {
    /// The manager's name: letters, digits, `.`, `_`, `-`. No other manager of its place has it while this one lives.
    pub name: String,
    /// The place where names of managers count: hexadecimal digits. Another host has another one, and so may a container.
    pub place: String,
    /// Tells this run from those before it: hexadecimal digits.
    pub run: String,
    /// The name of this machine.
    pub host: String,
    pub caller: Caller,
    /// Where sessions are written down that are to be ended if this process is killed.
    pub journal: Option<Journal>,
    /// Tells whether a manager of this place is running, by its name.
    pub is_running: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// ARNs of tasks of earlier runs that this one has taken over, whichever of its routes did so.
    pub adopted: Arc<Mutex<BTreeSet<String>>>,
}

impl Owner {
    pub(super) fn adopt(&self, task: &str) {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner).insert(task.to_owned());
    }

    pub(super) fn has_adopted(&self, task: &str) -> bool {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner).contains(task)
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, place, run, .. } = self;
        f.debug_struct("Owner").field("name", name).field("place", place).field("run", run).finish_non_exhaustive()
    }
}
