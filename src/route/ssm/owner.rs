//! Whom sessions and tasks are started for: by this they are found again, and told from those of others.

use std::{fmt, sync::Arc};

use super::made::Made;
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
    /// What routes have made for it.
    pub made: Made,
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, place, run, .. } = self;
        f.debug_struct("Owner").field("name", name).field("place", place).field("run", run).finish_non_exhaustive()
    }
}
