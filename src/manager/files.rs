//! The files of a manager that others read: the kubeconfig, and those by which it is found.
//!
//! They are tried before anything is asked of AWS, and written when the ports are known.

use std::path::Path;

use super::{
    Event, Manager, ManagerError, TunnelEntry,
    contexts::{self, Start},
    env_file, in_thread,
    proxy::refuse_alike,
};
use crate::{
    kubeconfig::{self, ContextEntry, KubeconfigError, Server, Update, import::Import},
    settings::{Environment, KubeconfigMode},
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
            env_file::check_github(path, (&self.kubeconfigs()).into(), &Environment::read())?;
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

    /// Lets others find the tunnels: writes the contexts, in the order of the clusters, and leads the proxy there.
    pub(super) async fn publish(&self, tunnels: &[TunnelEntry]) -> Result<(), ManagerError> {
        let Some(proxy) = &self.proxy else { return self.write_kubeconfig(tunnels).await };
        refuse_alike(tunnels)?;
        self.write_kubeconfig(tunnels).await?;
        proxy.lead(tunnels);
        Ok(())
    }

    async fn write_kubeconfig(&self, tunnels: &[TunnelEntry]) -> Result<(), ManagerError> {
        let common = &self.settings.common;
        let launch = self.launch();
        let clusters = || tunnels.iter().filter_map(|tunnel| Some((tunnel, tunnel.to.cluster()?)));
        if clusters().next().is_none() && self.state.borrow().kubeconfig.is_none() {
            return Ok(());
        }
        let contexts = clusters()
            .map(|(TunnelEntry { port, name, access, .. }, cluster)| {
                let proxy = self.proxy.as_ref().filter(|_| self.settings.kubeconfig_mode == KubeconfigMode::Proxy);
                let server = match (proxy, &self.local_tls) {
                    (Some(proxy), _) => proxy.server(),
                    (None, Some(local_tls)) => local_tls.server(cluster, *port),
                    (None, None) => Server::Tunnel(*port),
                };
                let port = match &server {
                    Server::Tunnel(port) | Server::LocalTls { port, .. } => *port,
                    Server::Proxy(address) => address.port(),
                };
                let start = launch.as_ref().map(|launch| Start { launch, port });
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
            env_file::write_github(path, (&kubeconfigs).into(), &Environment::read())?;
            self.listener.tell(Event::JobTold);
        }
        Ok(())
    }
}
