//! Leave to have one session on one target, as long as it is kept.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{AGAIN, Candidate, Fate, Finder};
use crate::{bastion::Target, remote::Remote};

/// How many looks for a fate are [`AGAIN`] apart at most, before they are as seldom as usual.
const CLOSE_LOOKS: u32 = 150;

/// Leave to have one session on one target.
#[derive(Debug)]
pub(in crate::route::ssm) struct Seat {
    pub(super) finder: Arc<Finder>,
    pub(super) target: Target,
    /// The ARN of the cluster that it is for.
    cluster: String,
    fresh: bool,
    capped: bool,
    found: usize,
    /// The session has come up.
    up: AtomicBool,
}

impl Seat {
    pub(super) fn new(finder: Arc<Finder>, to: &Remote, candidate: &Candidate, found: usize) -> Self {
        let Candidate { target, fresh, capped } = candidate.clone();
        Self { finder, target, cluster: to.id(), fresh, capped, found, up: AtomicBool::new(false) }
    }

    pub(in crate::route::ssm) fn target(&self) -> &Target {
        &self.target
    }

    /// Whether the target has come up a moment ago.
    pub(in crate::route::ssm) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Whether the target takes a few sessions only, and drops others in silence.
    pub(in crate::route::ssm) fn is_capped(&self) -> bool {
        self.capped
    }

    /// Says what was chosen.
    pub(in crate::route::ssm) fn notice(&self) -> String {
        let Self { finder, target, found, .. } = self;
        match found {
            1 => format!("`{}` is `{target}`", finder.asked),
            _ => format!("`{}` is `{target}`, one of {found}", finder.asked),
        }
    }

    /// Takes note that the target does not take a session now.
    pub(in crate::route::ssm) fn failed(&self) {
        self.finder.with_seats(&self.target, |seats, now| seats.spoiled_at = Some((now, false)));
    }

    /// Takes note that the session came up.
    pub(in crate::route::ssm) fn established(&self) {
        if self.up.swap(true, Ordering::Relaxed) {
            return;
        }
        self.finder.with_seats(&self.target, |seats, _| {
            seats.spoiled_at = None;
            seats.up += 1;
            seats.proven = seats.proven.max(seats.up);
            if seats.limit.is_some_and(|(limit, _)| limit < seats.up) {
                seats.limit = None;
            }
        });
        let now = self.finder.clock.now().mono;
        self.finder.state().useful_at = Some(now);
        self.finder.changed.notify_waiters();
    }

    /// Takes note that nothing came of the session, in silence. Returns how many others of this program the target carries.
    pub(in crate::route::ssm) fn dropped(&self) -> usize {
        let mut others = 0;
        self.finder.with_seats(&self.target, |seats, now| {
            others = seats.up;
            // With none of ours there, others have all the places: it is passed over as one that does not work.
            seats.limit = (others > 0).then_some((others, now)).or(seats.limit);
            seats.spoiled_at = Some((now, true));
        });
        others
    }

    /// Waits until the target's fate is worse than the one that is known, and looks for it every so often.
    ///
    /// # Cancel safety
    /// Safe: the next look is put off.
    pub(in crate::route::ssm) async fn fate_after(&self, to: &Remote, known: Fate) -> Fate {
        let usual = self.finder.look.watch();
        let (mut pause, mut looks) = (usual, 0);
        loop {
            tokio::time::sleep(pause).await;
            // Of a look that fails nothing is known.
            let Ok(sight) = self.finder.sight(to, pause, None).await else { continue };
            let fate = sight.fate(&self.target);
            if fate > known {
                return fate;
            }
            looks += 1;
            // A deployment takes minutes. What goes on for longer does not have to be noticed at once.
            let is_near = (sight.changing || known > Fate::Stays) && looks < CLOSE_LOOKS;
            pause = if is_near { AGAIN.min(usual) } else { usual };
        }
    }

    /// Whether the target has gone, by a look that is new.
    pub(in crate::route::ssm) async fn has_gone(&self, to: &Remote) -> bool {
        self.finder.sight(to, AGAIN, None).await.is_ok_and(|sight| sight.fate(&self.target) == Fate::Gone)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.finder.state();
        if let Some(held) = state.held.get_mut(&self.cluster) {
            *held = held.saturating_sub(1);
        }
        let Some(seats) = state.seats.get_mut(self.target.as_str()) else { return };
        seats.taken = seats.taken.saturating_sub(1);
        seats.up = seats.up.saturating_sub(usize::from(self.up.load(Ordering::Relaxed)));
        drop(state);
        self.finder.changed.notify_waiters();
    }
}
