//! Whether tunnels may still come up by themselves.

use tokio::sync::watch;

use super::{ManagerState, supervisor::Board};
use crate::{
    fault::Class,
    tunnel::{State, TunnelStatus},
};

/// Knows which tunnels have a bastion that may come back.
pub(crate) struct Hope {
    state: watch::Receiver<ManagerState>,
}

impl Hope {
    pub(super) fn new(state: watch::Receiver<ManagerState>) -> Self {
        Self { state }
    }

    /// Whether a tunnel works, or one may without a human. A bastion that is away may come back by itself, so it counts
    /// until the `time_is_up`; of one that does not exist or may not be used, only another may.
    pub(crate) fn is_left(&self, board: &Board, time_is_up: bool) -> bool {
        let is_lost = |tunnel: &TunnelStatus| {
            tunnel.state == State::Failed && tunnel.ready_at.is_none() && (time_is_up || !self.may_return(tunnel))
        };
        // That one is idle says nothing of whether there could be a session: another is tried for that.
        let mut tried = board.tunnels.iter().filter(|tunnel| tunnel.state != State::Idle).peekable();
        if tried.peek().is_none() {
            return !board.tunnels.is_empty();
        }
        !tried.all(|tunnel| tunnel.state == State::Stopped || is_lost(tunnel))
    }

    fn may_return(&self, tunnel: &TunnelStatus) -> bool {
        tunnel.last_error.as_ref().is_some_and(|error| {
            let class = error.fault.class;
            matches!(class, Class::Away | Class::Replaced)
                || (class.needs_another_route() && self.has_usable_bastion(tunnel))
        })
    }

    /// Whether a tunnel has a bastion of which it is not known that only a human can help.
    fn has_usable_bastion(&self, tunnel: &TunnelStatus) -> bool {
        let state = self.state.borrow();
        let access = state.tunnel(tunnel.port).map(|tunnel| &tunnel.access);
        access.is_some_and(|access| {
            let unusable = access.common.unusable();
            access.settings.bastion.iter().any(|bastion| !unusable.contains(&bastion.to_string()))
        })
    }
}
