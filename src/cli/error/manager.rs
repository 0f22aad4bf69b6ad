//! What a manager fails for, as a command's error.

use super::{CommandError, Kind};
use crate::{
    aws::SkipReason,
    manager::{ManagerError, env_file::EnvFileError},
    util::quote::command,
};

impl From<ManagerError> for CommandError {
    fn from(error: ManagerError) -> Self {
        match error {
            ManagerError::Control(error) => error.into(),
            ManagerError::Aws(error) => error.into(),
            ManagerError::Ports(error) => error.into(),
            ManagerError::Kubeconfig(error) => error.into(),
            ManagerError::EnvFile(error) => error.into(),
            error @ ManagerError::ProxyPort(_) => Self::of(Kind::Tunnel, error)
                .hint("choose another port with `--proxy-port`, or any free one with `--proxy-port 0`"),
            error @ ManagerError::NoClusters { .. } => Self::of(Kind::NotFound, error).hint(
                "`autoheal-pa clusters` shows what these credentials can see; choose another region with `--region`",
            ),
            ManagerError::ClusterUnusable { ref name, ref region, ref reason } => {
                let kind = match reason {
                    SkipReason::AccessDenied { .. } => Kind::Credentials,
                    SkipReason::Connected
                    | SkipReason::Status(_)
                    | SkipReason::NoEndpoint
                    | SkipReason::Endpoint
                    | SkipReason::NoCertificateAuthority => Kind::NotFound,
                };
                let hint = command!("`aws eks describe-cluster --name {} --region {}` shows its status", name, region);
                Self::of(kind, error).hint(hint)
            }
            error @ ManagerError::PathNotUtf8(_) => Self::of(Kind::Usage, error),
            error @ (ManagerError::NoExecutable | ManagerError::Task(_)) => Self::of(Kind::Unexpected, error),
        }
    }
}

impl From<EnvFileError> for CommandError {
    fn from(error: EnvFileError) -> Self {
        let hint = match &error {
            EnvFileError::NotUtf8(_) => Some("give another file with `--kubeconfig`"),
            EnvFileError::Unwritable { .. } => Some("give another file with `--env-file`"),
            EnvFileError::Job { .. } => None,
        };
        Self::of(Kind::Usage, error).hints(hint.map(ToOwned::to_owned))
    }
}
