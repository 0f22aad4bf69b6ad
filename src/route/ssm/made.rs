//! What sessions' routes have made for a manager, whichever of them did: it is ended from here.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::join_all;

use super::find::fargate::FargateLook;
use crate::bastion::Bastion;

/// All that was made. Cheap to clone; all clones are of one manager.
#[derive(Debug, Clone, Default)]
pub struct Made(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What starts tasks, and knows them.
    makers: Vec<FargateLook>,
    /// ARNs of tasks of earlier runs that this one has taken over.
    adopted: BTreeSet<String>,
}

/// Where a bastion is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    pub region: String,
    pub account: String,
    pub bastion: Bastion,
}

impl Made {
    /// Ends everything, and lets nothing be made any more. Returns what was done, in words.
    pub async fn close(&self) -> Vec<String> {
        let makers = self.state().makers.clone();
        close(&makers).await
    }

    /// Ends what was made for bastions that are not used any more. Returns what was done, in words.
    pub async fn close_unused(&self, uses: &[Use]) -> Vec<String> {
        let is_used = |maker: &FargateLook| uses.contains(&maker.place());
        let unused: Vec<_> = self.state().makers.iter().filter(|maker| !is_used(maker)).cloned().collect();
        let closed = close(&unused).await;
        // They are known until they have ended, should somebody stop everything meanwhile.
        self.state().makers.retain(is_used);
        closed
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
