//! Whose credentials contexts name, and what they have kubectl run for a token.

use std::path::Path;

use super::error::ManagerError;
use crate::{
    cluster::{Cluster, Origin},
    kubeconfig::{Exec, MANAGER_FLAG, User},
    settings::{ExecIdentity, Launch, Settings},
};

/// The flags by which the plugin is told what cluster it is asked a token for.
pub(crate) const CLUSTER_FLAG: &str = "--cluster-name";
pub(crate) const REGION_FLAG: &str = "--region";
pub(crate) const ACCOUNT_FLAG: &str = "--account-id";

/// The flag by which the plugin is told the port that its context leads to.
pub(crate) const PORT_FLAG: &str = "--port";

/// How a context has kubectl start a manager.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start<'a> {
    pub(crate) launch: &'a Launch,
    /// The port that the context leads to.
    pub(crate) port: u16,
}

/// Says whose credentials kubectl shows to a cluster.
///
/// # Errors
/// If a path is not UTF-8, which kubeconfigs are, or that of the binary is not known.
pub(crate) fn user(
    settings: &Settings,
    identity: &ExecIdentity,
    cluster: &Cluster,
    start: Option<Start<'_>>,
) -> Result<User, ManagerError> {
    match &cluster.origin {
        Origin::Eks { token_name } => exec_entry(settings, identity, cluster, token_name, start).map(User::Own),
        Origin::Imported(imported) => Ok(User::Theirs(imported.user.clone())),
    }
}

/// Says what kubectl has to run for a token of a cluster: this binary, with all that leads to the manager
/// and to the same identity.
fn exec_entry(
    settings: &Settings,
    identity: &ExecIdentity,
    cluster: &Cluster,
    token_name: &str,
    start: Option<Start<'_>>,
) -> Result<Exec, ManagerError> {
    let Some(executable) = &settings.executable else {
        return Err(ManagerError::NoExecutable);
    };
    let mut args = vec![
        "token".to_owned(),
        format!("{CLUSTER_FLAG}={token_name}"),
        format!("{REGION_FLAG}={}", cluster.region),
        format!("{ACCOUNT_FLAG}={}", cluster.account),
        format!("{MANAGER_FLAG}={}", utf8(&settings.control_dir)?),
    ];
    args.extend(start.map(|start| format!("{PORT_FLAG}={}", start.port)));
    args.extend(identity.args.iter().cloned());
    let mut exec = Exec { command: utf8(executable)?.to_owned(), args, env: identity.env.clone() };
    if let Some(Start { launch, .. }) = start {
        for (name, value) in &launch.env {
            exec.env.retain(|(other, _)| other != name);
            exec.env.push((name.clone(), utf8(Path::new(value))?.to_owned()));
        }
        let words = launch.args.iter().map(|word| utf8(Path::new(word)).map(ToOwned::to_owned));
        exec = exec.starting(words.collect::<Result<Vec<_>, _>>()?);
    }
    Ok(exec)
}

fn utf8(path: &Path) -> Result<&str, ManagerError> {
    path.to_str().ok_or_else(|| ManagerError::PathNotUtf8(path.to_owned()))
}
