//! Whose credentials contexts name, and what they have kubectl run for a token.

use std::path::Path;

use super::error::ManagerError;
use crate::{
    cluster::{Cluster, Origin},
    kubeconfig::{Exec, MANAGER_FLAG, User},
    settings::{ExecIdentity, Settings},
};

/// Says whose credentials kubectl shows to a cluster.
///
/// # Errors
/// If a path is not UTF-8, which kubeconfigs are, or that of the binary is not known.
pub(crate) fn user(settings: &Settings, identity: &ExecIdentity, cluster: &Cluster) -> Result<User, ManagerError> {
    match &cluster.origin {
        Origin::Eks { token_name } => exec_entry(settings, identity, cluster, token_name).map(User::Own),
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
) -> Result<Exec, ManagerError> {
    let Some(executable) = &settings.executable else {
        return Err(ManagerError::NoExecutable);
    };
    let mut args = vec![
        "token".to_owned(),
        format!("--cluster-name={token_name}"),
        format!("--region={}", cluster.region),
        format!("--account-id={}", cluster.account),
        format!("{MANAGER_FLAG}={}", utf8(&settings.control_dir)?),
    ];
    args.extend(identity.args.iter().cloned());
    Ok(Exec { command: utf8(executable)?.to_owned(), args, env: identity.env.clone() })
}

fn utf8(path: &Path) -> Result<&str, ManagerError> {
    path.to_str().ok_or_else(|| ManagerError::PathNotUtf8(path.to_owned()))
}
