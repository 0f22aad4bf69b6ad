//! Which clusters get tunnels, and what their contexts are called.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Event, Listener, ManagerError, OpenAccess, TunnelEntry};
use crate::{
    aws::{Aws, ClusterDescription},
    cluster::Cluster,
    kubeconfig,
    settings::UpSettings,
};

/// Finds the clusters to open tunnels to; says which are skipped and why.
pub(super) async fn clusters(access: &OpenAccess, listener: &Listener) -> Result<Vec<Cluster>, ManagerError> {
    let (sender, mut found) = mpsc::unbounded_channel();
    search(&access.aws, &access.settings.clusters, sender).await?;
    Ok(std::iter::from_fn(|| found.try_recv().ok()).filter_map(|description| usable(description, listener)).collect())
}

/// Finds clusters, and sends each as soon as it and those before it are known. Those that were asked for by name are only
/// sent when there can be a tunnel to each.
pub(super) async fn search(
    aws: &Aws,
    wanted: &[String],
    found: mpsc::UnboundedSender<ClusterDescription>,
) -> Result<(), ManagerError> {
    // Whoever does not take them any more has failed, and says so.
    let send = |description: &ClusterDescription| drop(found.send(description.clone()));
    if wanted.is_empty() {
        aws.discover_each(wanted, send).await?;
        return Ok(());
    }
    let clusters = aws.discover(wanted).await?.clusters;
    for description in &clusters {
        if let Err(reason) = &description.access {
            let (name, region) = (description.name.clone(), description.region.clone());
            return Err(ManagerError::ClusterUnusable { name, region, reason: reason.clone() });
        }
    }
    clusters.iter().for_each(send);
    Ok(())
}

/// Returns the cluster if there can be a tunnel to it; else tells that it is skipped and why.
pub(super) fn usable(description: ClusterDescription, listener: &Listener) -> Option<Cluster> {
    let ClusterDescription { name, access, .. } = description;
    access.map_err(|reason| listener.tell(Event::ClusterSkipped { name, reason })).ok()
}

pub(super) fn no_clusters(accesses: &[Arc<OpenAccess>]) -> ManagerError {
    let place = |access: &Arc<OpenAccess>| format!("{} of account {}", access.aws.region(), access.caller.account);
    ManagerError::NoClusters { places: accesses.iter().map(place).collect() }
}

/// Gives the tunnels the names of their contexts.
pub(super) fn named(
    settings: &UpSettings,
    tunnels: impl Iterator<Item = (u16, (Arc<OpenAccess>, Cluster))>,
) -> Vec<TunnelEntry> {
    let tunnels: Vec<_> = tunnels.collect();
    let clusters: Vec<Cluster> = tunnels.iter().map(|(_, (_, cluster))| cluster.clone()).collect();
    let names = kubeconfig::context_names(&settings.context_prefix, &clusters);
    let tunnels = tunnels.into_iter().zip(names);
    tunnels.map(|((port, (access, cluster)), context)| TunnelEntry { port, context, cluster, access }).collect()
}
