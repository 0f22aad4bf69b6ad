//! What sessions' routes have made for a manager, whichever of them did: it is ended from here.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::join_all;

use super::find::fargate::FargateLook;
use crate::{bastion::Bastion, cluster::Vpc};

/// All that was made. Cheap to clone; all clones are of one manager.
#[derive(Debug, Clone, Default)]
pub struct Made(Arc<Mutex<State>>);

#[derive(Debug, Clone, Default)]
struct State {
    /// What all this is for.
    uses: Vec<Use>,
    /// What starts tasks, and knows them.
    makers: Vec<FargateLook>,
    /// ARNs of tasks of earlier runs that this one has taken over.
    adopted: BTreeSet<String>,
}

/// What a bastion is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    pub at: UsedAt,
    /// The VPC of a cluster that tunnels lead to.
    pub vpc: Vpc,
}

/// Where a bastion is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedAt {
    pub region: String,
    pub account: String,
    pub bastion: Bastion,
}

impl Made {
    /// Takes note of all that bastions are used for, before tunnels use them: what is made for one cluster is made for those
    /// beside it, too.
    pub fn expect(&self, uses: Vec<Use>) {
        self.state().uses = uses;
    }

    /// Ends everything, and lets nothing be made any more. Returns what was done, in words.
    pub async fn close(&self) -> Vec<String> {
        let makers = self.state().makers.clone();
        close(&makers).await
    }

    /// Ends what was made for bastions and clusters that are not [expected](Self::expect) any more. Returns what was done, in
    /// words.
    pub async fn close_unused(&self) -> Vec<String> {
        let State { uses, makers, .. } = self.state().clone();
        let is_used = |maker: &FargateLook| uses.iter().any(|of| of.at == maker.place());
        let (used, unused): (Vec<_>, Vec<_>) = makers.into_iter().partition(is_used);
        let (closed, others) = tokio::join!(close(&unused), join_all(used.iter().map(FargateLook::close_unused)));
        // They are known until they have ended, should somebody stop everything meanwhile.
        self.state().makers.retain(is_used);
        closed.into_iter().chain(others.into_iter().flatten()).collect()
    }

    /// Returns the VPCs of the clusters that a bastion is used for.
    pub(super) fn vpcs(&self, at: &UsedAt) -> Vec<Vpc> {
        self.state().uses.iter().filter(|of| of.at == *at).map(|of| of.vpc.clone()).collect()
    }

    pub(super) fn add(&self, maker: FargateLook) {
        self.state().makers.push(maker);
    }

    pub(super) fn adopt(&self, task: &str) {
        self.state().adopted.insert(task.to_owned());
    }

    pub(super) fn has_adopted(&self, task: &str) -> bool {
        self.state().adopted.contains(task)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn close(makers: &[FargateLook]) -> Vec<String> {
    join_all(makers.iter().map(FargateLook::close)).await.into_iter().flatten().collect()
}
