//! The files of a manager that others read: the kubeconfig, and those by which it is found.
//!
//! They are tried before anything is asked of AWS, and written when the ports are known.

use std::path::Path;

use super::{
    Event, Manager, ManagerError, TunnelEntry,
    contexts::{self, Start},
    env_file, in_thread,
};
use crate::{
    cluster::Cluster,
    kubeconfig::{self, ContextEntry, KubeconfigError, Server, Update, import::Import},
    settings::Environment,
};

impl Manager {
    /// Finds out whether all files can be written that will have to be. Where the default kubeconfig cannot, one in the
    /// manager's own directory will do: there are machines whose home is missing or read-only.
    pub(super) async fn check_files(&mut self, imports: &[Import]) -> Result<(), ManagerError> {
        if !self.settings.wants_clusters() {
            return Ok(());
        }
        let common = &self.settings.common;
        match self.check_kubeconfig(&self.kubeconfig, imports).await? {
            Err(error @ (KubeconfigError::Unreadable { .. } | KubeconfigError::Unwritable { .. }))
                if !common.kubeconfig_given =>
            {
                let own = common.own_kubeconfig();
                if self.check_kubeconfig(&own, imports).await?.is_err() {
                    return Err(error.into());
                }
                self.listener.tell(Event::KubeconfigElsewhere(error));
                self.kubeconfig = own;
            }
            checked => checked?,
        }
        if let Some(path) = &self.settings.env_file {
            env_file::check(path, &self.kubeconfigs(), &Environment::read())?;
        }
        if let Some(path) = &self.settings.github_env {
            env_file::check_github(path, &self.kubeconfigs(), &Environment::read())?;
        }
        Ok(())
    }

    async fn check_kubeconfig(
        &self,
        path: &Path,
        imports: &[Import],
    ) -> Result<Result<(), KubeconfigError>, ManagerError> {
        let (path, manager) = (path.to_owned(), self.settings.common.name.clone());
        let imported_from = if imports.is_empty() { &[][..] } else { &self.settings.common.imported_from };
        let beside = kubeconfig::Files::new(path.clone(), imported_from).others().to_vec();
        in_thread(move || kubeconfig::check(&path, &manager, &beside)).await
    }

    /// Writes the contexts, in the order of the clusters, and leads the proxy to these.
    pub(super) async fn write_kubeconfig(&self, tunnels: &[TunnelEntry]) -> Result<(), ManagerError> {
        if self.proxy.is_some() {
            refuse_alike(tunnels)?;
        }
        let common = &self.settings.common;
        let launch = self.launch();
        let clusters = || tunnels.iter().filter_map(|tunnel| Some((tunnel, tunnel.to.cluster()?)));
        if clusters().next().is_none() && self.state.borrow().kubeconfig.is_none() {
            return Ok(());
        }
        let contexts = clusters()
            .map(|(TunnelEntry { port, name, access, .. }, cluster)| {
                let server = match (&self.proxy, &self.local_tls) {
                    (Some(proxy), _) => proxy.server(),
                    (None, Some(local_tls)) => local_tls.server(cluster, *port),
                    (None, None) => Server::Tunnel(*port),
                };
                let (Server::Tunnel(port) | Server::Proxy(port) | Server::LocalTls { port, .. }) = &server;
                let start = launch.as_ref().map(|launch| Start { launch, port: *port });
                let user = contexts::user(common, &access.settings.identity, cluster, start)?;
                Ok(ContextEntry { name: name.clone(), cluster: cluster.clone(), server, user })
            })
            .collect::<Result<Vec<_>, ManagerError>>()?;
        let path = self.kubeconfig.clone();
        let (manager, set_current) = (common.name.clone(), self.settings.set_current);
        let (beside, keeps_others) = (self.kubeconfigs().others().to_vec(), self.keeps_other_contexts());
        let written = in_thread({
            let path = path.clone();
            move || {
                let update =
                    Update { manager: &manager, contexts: &contexts, keeps_others, set_current, beside: &beside };
                kubeconfig::write(&path, &update)
            }
        });
        let current = written.await??;
        if let Some(local_tls) = &self.local_tls {
            local_tls.tell_of_others(clusters().map(|(tunnel, cluster)| (&*tunnel.name, cluster)), &self.listener);
        }
        if let Some(proxy) = &self.proxy {
            proxy.lead(clusters().map(|(tunnel, cluster)| (cluster, tunnel.port)));
        }
        self.listener.tell(Event::KubeconfigWritten { path: path.clone(), current });
        let imported_from = self.kubeconfigs().others().to_vec();
        self.state.send_modify(|state| (state.kubeconfig, state.imported_from) = (Some(path), imported_from));
        Ok(())
    }

    /// Has others find the kubeconfigs that there are now. The step of a job that has told the others is over.
    pub(super) fn write_environment_again(&self, problems: &mut Vec<String>) {
        let kubeconfigs = self.kubeconfigs();
        self.listener.tell(Event::SeveralKubeconfigs(kubeconfigs.clone()));
        if let Some(path) = &self.settings.env_file {
            match env_file::write(path, &kubeconfigs, &Environment::read()) {
                Ok(()) => self.listener.tell(Event::EnvFileWritten(path.clone())),
                Err(error) => problems.push(ManagerError::from(error).sentence()),
            }
        }
    }

    /// Writes the files by which others find the kubeconfig.
    pub(super) fn write_environment(&self) -> Result<(), ManagerError> {
        if self.state.borrow().kubeconfig.is_none() {
            return Ok(());
        }
        let kubeconfigs = self.kubeconfigs();
        if kubeconfigs.are_several() {
            self.listener.tell(Event::SeveralKubeconfigs(kubeconfigs.clone()));
        }
        if let Some(path) = &self.settings.env_file {
            env_file::write(path, &kubeconfigs, &Environment::read())?;
            self.listener.tell(Event::EnvFileWritten(path.clone()));
        }
        if let Some(path) = &self.settings.github_env {
            env_file::write_github(path, &kubeconfigs, &Environment::read())?;
            self.listener.tell(Event::JobTold);
        }
        Ok(())
    }
}

/// Refuses clusters that a proxy cannot tell apart: one would be shown the credentials of the other's user.
fn refuse_alike(tunnels: &[TunnelEntry]) -> Result<(), ManagerError> {
    let clusters: Vec<_> = tunnels.iter().filter_map(|tunnel| Some((tunnel, tunnel.to.cluster()?))).collect();
    let is_same = |(one, a): &(&TunnelEntry, &Cluster), (other, b): &(&TunnelEntry, &Cluster)| {
        let is_verified_alike =
            (&a.certificate_authority, a.server_name()) == (&b.certificate_authority, b.server_name());
        let is_reached_alike =
            one.access.is_same(&other.access.settings) && one.access.settings.bastion == other.access.settings.bastion;
        is_verified_alike && is_reached_alike
    };
    for (at, one) in clusters.iter().enumerate() {
        let mut before = clusters.iter().take(at);
        if let Some(other) = before.find(|other| other.1.endpoint == one.1.endpoint && !is_same(one, other)) {
            return Err(ManagerError::Alike {
                contexts: [other.0.name.clone(), one.0.name.clone()],
                endpoint: one.1.endpoint.clone(),
            });
        }
    }
    Ok(())
}
