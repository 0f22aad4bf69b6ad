//! What the system lets this process do: how many files it may have open, and whether its memory may become a file.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many open files are wanted, most first. Each connection takes a descriptor or two, and the usual limit of 1024 is soon
/// used up by a few programs that watch many clusters. macOS may refuse more than the second, whatever its hard limit says.
const WANTED: [u64; 2] = [65_536, 10_240];

/// Sees to it that no crash writes this process's memory, with keys in it, to a disk.
///
/// On Linux the process becomes one that is not dumpable: no core is written, and none is handed to a program that
/// collects them either, which a limit of 0 does not prevent. Other processes of the same user can then neither attach
/// a debugger nor look at its environment or its open files; root can. A program that this one starts is as it would be
/// anyhow, so `exec -- CMD` may dump, where a limit would be inherited. Elsewhere, or if that fails, the limit has to do.
pub fn forbid_core_dumps() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        if set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok() {
            return;
        }
    }
    let limit = getrlimit(Resource::Core);
    // What is left then is to write none by accident.
    let _forbidden = setrlimit(Resource::Core, Rlimit { current: Some(0), ..limit });
}

/// Raises the soft limit of open files as far as is of use and the hard limit allows. Everything works without, up to
/// that many connections.
pub(super) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    for goal in WANTED.into_iter().filter_map(|wanted| goal(&limit, wanted)) {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(goal), ..limit }) {
            Ok(()) => {
                tracing::debug!(from = limit.current, to = goal, "raised the limit on open files");
                return;
            }
            Err(error) => tracing::debug!(%error, goal, "cannot raise the limit on open files"),
        }
    }
}

/// Returns the limit to set, if it is higher than the one in force.
fn goal(limit: &Rlimit, wanted: u64) -> Option<u64> {
    let goal = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    limit.current.filter(|current| *current < goal).map(|_| goal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_as_far_as_is_allowed_and_of_use() {
        for (current, maximum, expected) in [
            (Some(1024), Some(4096), Some(4096)),
            (Some(1024), Some(1_048_576), Some(65_536)),
            (Some(1024), None, Some(65_536)),
            (Some(4096), Some(4096), None),
            (Some(65_536), None, None),
            (Some(1_000_000), None, None),
            (None, None, None),
        ] {
            assert_eq!(goal(&Rlimit { current, maximum }, 65_536), expected, "{current:?} {maximum:?}");
        }
    }
}
