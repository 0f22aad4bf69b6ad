//! As whom a manager calls AWS: finds out who that is, and keeps its credentials good.

use std::sync::Arc;

use super::{Event, Listener, Manager, ManagerError, OpenAccess, control, credentials};
use crate::{
    aws::{Aws, Caller},
    route::{Routes, ssm},
    settings::Access,
    tunnel::{Common, News},
};

/// Told to whoever approves access, if nothing else is. The service wants a reason.
const DEFAULT_REASON: &str = "autoheal-pa";

impl Manager {
    /// Finds out who an access is to AWS.
    pub(super) async fn enter(&self, settings: Access, aws: Aws) -> Result<OpenAccess, ManagerError> {
        let caller = aws.caller().await?;
        let reason = settings.reason.as_deref();
        let approvals =
            settings.request_access.then(|| ssm::Approvals::new(aws.clone(), reason.unwrap_or(DEFAULT_REASON)));
        let routes = Routes::new(&aws, reason, Some(self.owner(&caller)), approvals)
            .with_ssh(&settings.ssh, self.listener.ask());
        let common = Common::audited(self.supervisor.clock(), self.audit.as_ref().map(|file| file.audit().clone()));
        Ok(OpenAccess { settings, aws, caller, routes, common, stop: self.stop.child_token() })
    }

    /// Returns by what it is found again what routes make for this manager.
    fn owner(&self, caller: &Caller) -> ssm::Owner {
        let common = &self.settings.common;
        let dir = common.control_dir.clone();
        ssm::Owner {
            name: common.name.clone(),
            place: self.place.clone(),
            run: self.run.clone(),
            host: common.aws.host_name.clone().unwrap_or_default(),
            caller: caller.clone(),
            journal: self.journal.clone(),
            // What cannot be looked at is left alone.
            is_running: Arc::new(move |name| !matches!(control::holder(&dir.with_file_name(name)), Ok(None))),
            made: self.made.clone(),
        }
    }

    /// As [`enter`](Self::enter), with the credentials and clients of a known access if there is one like it.
    pub(super) async fn enter_again(
        &self,
        settings: Access,
        known: &[Arc<OpenAccess>],
    ) -> Result<Arc<OpenAccess>, ManagerError> {
        match known.iter().find(|access| access.is_same(&settings)) {
            Some(access)
                if access.settings.bastion == settings.bastion
                    && access.settings.clusters == settings.clusters
                    && access.settings.import_contexts == settings.import_contexts
                    && access.settings.no_clusters == settings.no_clusters
                    && access.settings.document == settings.document
                    && access.settings.forwards == settings.forwards =>
            {
                Ok(Arc::clone(access))
            }
            Some(access) => Ok(Arc::new(access.with(settings))),
            None => {
                let aws = Aws::new(&settings.aws).await?;
                self.enter(settings, aws).await.map(Arc::new)
            }
        }
    }

    /// Tells who the identities are that are not known yet, and looks after each.
    pub(super) fn welcome(&mut self, accesses: &[Arc<OpenAccess>], known: &[Arc<OpenAccess>]) {
        for (at, access) in accesses.iter().enumerate() {
            let mut before = known.iter().chain(accesses.iter().take(at));
            if !before.any(|other| other.is_same(&access.settings)) {
                self.listener.tell(Event::Identified(access.caller.clone()));
                self.look_after(access);
            }
        }
    }

    /// Keeps the credentials of an access fresh, and tells what the user has to know of them.
    fn look_after(&mut self, access: &Arc<OpenAccess>) {
        self.tasks.spawn({
            let (aws, stop) = (access.aws.clone(), access.stop.clone());
            async move { stop.run_until_cancelled(aws.keep_credentials()).await.unwrap_or_default() }
        });
        self.tasks.spawn({
            let (listener, access) = (self.listener.clone(), Arc::clone(access));
            async move {
                let status = access.aws.credential_status();
                let watched = credentials::watch(status, &listener, || access.common.retry_now());
                access.stop.run_until_cancelled(watched).await.unwrap_or_default();
            }
        });
        if let Some(approvals) = access.routes.approvals().cloned() {
            let (listener, stop) = (self.listener.clone(), access.stop.clone());
            self.tasks.spawn(async move {
                let kept = approvals.keep(|approval| listener.tell(Event::ApprovalEnds(approval)));
                stop.run_until_cancelled(kept).await.unwrap_or_default();
            });
        }
        let (listener, access) = (self.listener.clone(), Arc::clone(access));
        self.tasks.spawn(async move {
            access.stop.run_until_cancelled(tell_news(&access.common, &listener)).await.unwrap_or_default();
        });
    }
}

/// Has accesses of one identity in one region share what they have: credentials, routes, and what these make.
pub(super) fn shared(accesses: impl Iterator<Item = Arc<OpenAccess>>) -> Vec<Arc<OpenAccess>> {
    let mut all: Vec<Arc<OpenAccess>> = Vec::new();
    for access in accesses {
        let shared = all.iter().find(|known| known.is_same(&access.settings));
        let access = shared.map_or_else(|| Arc::clone(&access), |known| Arc::new(known.with(access.settings.clone())));
        all.push(access);
    }
    all
}

/// Tells what tunnels have found that the user has to know. Never ends.
async fn tell_news(common: &Common, listener: &Listener) {
    let mut news = common.news();
    let mut told = 0;
    loop {
        let new: Vec<News> = {
            let all = news.borrow_and_update();
            let (new, count) = all.since(told);
            told = count;
            new.cloned().collect()
        };
        for news in new {
            listener.tell(match news {
                News::Caution(caution) => Event::Caution(caution),
                News::Notice(notice) => Event::Notice(notice),
            });
        }
        if news.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
