//! Which clusters get tunnels, and what their contexts are called.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::mpsc;

use super::{Event, Listener, ManagerError, ManagerState, OpenAccess, TunnelEntry, in_thread};
use crate::{
    aws::{Aws, AwsError, ClusterDescription},
    bastion::Bastion,
    cluster::{Cluster, Vpc},
    forward::Forward,
    kubeconfig::{
        self,
        import::{self, Import},
    },
    remote::{Host, Remote},
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
    state.tunnels.iter().filter_map(|tunnel| Import::of(tunnel.to.cluster()?)).collect()
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
/// sent when there can be a tunnel to each. Where contexts are imported, or there are forwards, clusters of EKS
/// are welcome and not needed.
pub(super) async fn search(
    aws: &Aws,
    access: &Access,
    imports: Vec<Import>,
    found: mpsc::UnboundedSender<Found>,
) -> Result<(), ManagerError> {
    if access.no_clusters {
        return Ok(());
    }
    let wanted = &access.clusters;
    let is_enough = !imports.is_empty() || !access.forwards.is_empty();
    // Whoever does not take them any more has failed, and says so.
    let send = |what: Found| drop(found.send(what));
    let described = |description: &ClusterDescription| send(Found::Described(Box::new(description.clone())));
    if wanted.is_empty() {
        match aws.discover_each(wanted, described).await {
            Ok(_) => {}
            Err(error @ AwsError::AccessDenied { .. }) if is_enough => send(Found::NothingOfEks(error)),
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

/// A tunnel that is wanted: its port, and what it leads to as whom.
pub(super) type Wanted = (u16, (Arc<OpenAccess>, Remote));

/// Returns the hosts that an access forwards to, beside these clusters.
pub(super) fn hosts<'a>(
    access: &OpenAccess,
    clusters: impl Iterator<Item = &'a Cluster>,
) -> Vec<(Option<u16>, Remote)> {
    let needs_vpc = access.settings.bastion.iter().any(Bastion::needs_vpc);
    let mut vpcs: Vec<&Vpc> = clusters.filter_map(|cluster| cluster.vpc.as_ref()).filter(|_| needs_vpc).collect();
    vpcs.dedup_by(|one, other| one.id == other.id);
    let vpc = if let [vpc] = vpcs[..] { Some(vpc) } else { None };
    let host = |forward: &Forward| {
        let host = Host {
            name: forward.name.clone(),
            region: access.aws.region().to_owned(),
            account: access.caller.account.clone(),
            endpoint: forward.to.clone(),
            vpc: vpc.cloned(),
        };
        (forward.local_port, host.into())
    };
    access.settings.forwards.iter().map(host).collect()
}

/// Gives the tunnels their names: of their contexts, or of forwards.
///
/// # Errors
/// [`ManagerError::NameTaken`] for a forward with the name of a cluster; [`ManagerError::OneDocument`] for a session document that
/// would be for several tunnels.
pub(super) fn named(
    settings: &UpSettings,
    tunnels: impl Iterator<Item = Wanted>,
) -> Result<Vec<TunnelEntry>, ManagerError> {
    let tunnels: Vec<_> = tunnels.collect();
    for access in settings.access.iter().filter(|access| access.document.as_ref().is_some_and(|one| !one.is_for_each()))
    {
        let count = tunnels.iter().filter(|(_, (of, _))| of.settings.document == access.document).count();
        if let Some(document) = access.document.as_ref().filter(|_| count > 1) {
            return Err(ManagerError::OneDocument { document: document.to_string(), count });
        }
    }
    let clusters: Vec<Cluster> = tunnels.iter().filter_map(|(_, (_, to))| to.cluster().cloned()).collect();
    let contexts = kubeconfig::context_names(&settings.context_prefix, &clusters);
    let known: BTreeSet<&str> =
        contexts.iter().map(String::as_str).chain(clusters.iter().map(|cluster| cluster.name.as_str())).collect();
    let mut names = contexts.iter();
    let tunnels = tunnels.into_iter().map(|(port, (access, to))| {
        let name = match &to {
            Remote::Cluster(_) => names.next().cloned().unwrap_or_default(),
            Remote::Host(host) if known.contains(host.name.as_str()) => {
                return Err(ManagerError::NameTaken { name: host.name.clone(), endpoint: host.endpoint.clone() });
            }
            Remote::Host(host) => host.name.clone(),
        };
        Ok(TunnelEntry { port, name, to, access })
    });
    tunnels.collect()
}
