//! Which clusters get tunnels, and what their contexts are called.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Event, Listener, ManagerError, ManagerState, OpenAccess, TunnelEntry, in_thread};
use crate::{
    aws::{Aws, AwsError, ClusterDescription},
    cluster::Cluster,
    kubeconfig::{
        self,
        import::{self, Import},
    },
    settings::{Access, UpSettings},
};

/// What is found when clusters are looked for.
#[derive(Debug)]
pub(super) enum Found {
    /// EKS has this to say of one.
    Described(Box<ClusterDescription>),
    /// A context of the user's leads to one.
    Imported(Import),
    /// EKS may not be asked, which does not matter to the others.
    NothingOfEks(AwsError),
}

/// Reads the contexts of all accesses, each of which has a part of them.
pub(super) async fn imports(settings: &UpSettings) -> Result<Vec<Import>, ManagerError> {
    let names: Vec<_> = settings.access.iter().flat_map(|access| access.import_contexts.clone()).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let files = settings.common.imported_from.clone();
    Ok(in_thread(move || import::import(&files, &names)).await??)
}

/// Returns what a manager has imported before, for when it cannot be read again.
pub(super) fn known_imports(state: &ManagerState) -> Vec<Import> {
    state.tunnels.iter().filter_map(|tunnel| Import::of(&tunnel.cluster)).collect()
}

/// Returns those that are an access's.
pub(super) fn of_access(imports: &[Import], access: &Access) -> Vec<Import> {
    imports.iter().filter(|import| access.import_contexts.contains(&import.name)).cloned().collect()
}

/// Finds the clusters to open tunnels to; says which are skipped and why.
pub(super) async fn clusters(
    access: &OpenAccess,
    imports: Vec<Import>,
    listener: &Listener,
) -> Result<Vec<Cluster>, ManagerError> {
    let (sender, mut found) = mpsc::unbounded_channel();
    search(&access.aws, &access.settings, imports, sender).await?;
    Ok(std::iter::from_fn(|| found.try_recv().ok()).filter_map(|found| usable(found, access, listener)).collect())
}

/// Finds clusters, and sends each as soon as it and those before it are known. Those that were asked for by name are only
/// sent when there can be a tunnel to each. Where contexts are imported, clusters of EKS are welcome and not needed.
pub(super) async fn search(
    aws: &Aws,
    access: &Access,
    imports: Vec<Import>,
    found: mpsc::UnboundedSender<Found>,
) -> Result<(), ManagerError> {
    let wanted = &access.clusters;
    // Whoever does not take them any more has failed, and says so.
    let send = |what: Found| drop(found.send(what));
    let described = |description: &ClusterDescription| send(Found::Described(Box::new(description.clone())));
    if wanted.is_empty() {
        match aws.discover_each(wanted, described).await {
            Ok(_) => {}
            Err(error @ AwsError::AccessDenied { .. }) if !imports.is_empty() => send(Found::NothingOfEks(error)),
            Err(error) => return Err(error.into()),
        }
    } else {
        let clusters = aws.discover(wanted).await?.clusters;
        for description in &clusters {
            if let Err(reason) = &description.access {
                let (name, region) = (description.name.clone(), description.region.clone());
                return Err(ManagerError::ClusterUnusable { name, region, reason: reason.clone() });
            }
        }
        clusters.iter().for_each(described);
    }
    imports.into_iter().map(Found::Imported).for_each(send);
    Ok(())
}

/// Returns the cluster if there can be a tunnel to it; else tells that it is skipped and why.
pub(super) fn usable(found: Found, access: &OpenAccess, listener: &Listener) -> Option<Cluster> {
    match found {
        Found::Described(description) => {
            let ClusterDescription { name, access, .. } = *description;
            access.map_err(|reason| listener.tell(Event::ClusterSkipped { name, reason })).ok()
        }
        Found::Imported(import) => {
            if import.has_proxy {
                listener.tell(Event::ProxyLeftOut { context: import.name.clone() });
            }
            Some(import.cluster(access.aws.region(), &access.caller.account))
        }
        Found::NothingOfEks(error) => {
            listener.tell(Event::NothingOfEks(error));
            None
        }
    }
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
