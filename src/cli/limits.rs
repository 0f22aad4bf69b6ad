//! How many files this process may have open: each connection takes a descriptor or two, and the usual limit of 1024
//! is soon used up by a few programs that watch many clusters.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many are wanted, most first. macOS may refuse more than the second, whatever its hard limit says.
const WANTED: [u64; 2] = [65_536, 10_240];

/// Raises the soft limit of open files as far as is of use and the hard limit allows. Everything works without, up to
/// that many connections.
pub(super) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    for goal in WANTED.into_iter().filter_map(|wanted| goal(&limit, wanted)) {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(goal), ..limit }) {
            Ok(()) => {
                tracing::debug!(from = limit.current, to = goal, "raised the limit of open files");
                return;
            }
            Err(error) => tracing::debug!(%error, goal, "cannot raise the limit of open files"),
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
