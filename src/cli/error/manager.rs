//! What a manager fails for, as a command's error.

use super::{CommandError, Kind};
use crate::{
    aws::SkipReason,
    kubeconfig::{
        KubeconfigError,
        import::{ImportError, Unusable},
    },
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
            ManagerError::Import(error) => error.into(),
            ManagerError::EnvFile(error) => error.into(),
            error @ ManagerError::ProxyPort(_) => Self::of(Kind::Tunnel, error)
                .hint("choose another with `--proxy PORT`, or any free one with `--proxy 0`"),
            error @ ManagerError::MetricsPort(_) => Self::of(Kind::Tunnel, error)
                .hint("choose another with `--metrics PORT`, or any free one with `--metrics 0`"),
            error @ ManagerError::Audit { .. } => {
                Self::of(Kind::Usage, error).hint("give another file with `--audit`, or leave that out")
            }
            error @ ManagerError::Alike { .. } => Self::of(Kind::Usage, error)
                .hint("leave the proxy out, with `--kubeconfig-mode direct`, or start a manager for each: `--name`"),
            error @ ManagerError::OneDocument { .. } => Self::of(Kind::Usage, error)
                .hint("put `{cluster}` into the name of `--document`, or name one cluster with `--cluster`"),
            error @ ManagerError::AuthorityStays => Self::of(Kind::Usage, error).hint(
                "use `--kubeconfig-mode direct` or `proxy`, or beside such contexts a manager of another `--name`",
            ),
            error @ ManagerError::ForwardPort { .. } => Self::of(Kind::Tunnel, error)
                .hint("name another port behind its `@`, or none, for the first that is free"),
            ManagerError::NameTaken { ref endpoint, .. } => {
                let hint = format!("give it another name: `NAME={endpoint}`");
                Self::of(Kind::Usage, error).hint(hint)
            }
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
            error @ (ManagerError::Authority(_) | ManagerError::NoExecutable | ManagerError::Task(_)) => {
                Self::of(Kind::Unexpected, error)
            }
        }
    }
}

/// How alike a name has to be to what was given to be meant, from 0 to 1.
const NEAR: f64 = 0.8;

/// Most contexts that are listed.
const MAX_CONTEXTS: usize = 20;

impl From<ImportError> for CommandError {
    fn from(error: ImportError) -> Self {
        let another = "give the kubeconfig with `--import-kubeconfig`, or set `KUBECONFIG` as for kubectl";
        let (kind, hint) = match &error {
            ImportError::NoContext { name, known, .. } => (Kind::NotFound, contexts_there(name, known)),
            ImportError::NoFile { .. } => (Kind::Usage, another.to_owned()),
            ImportError::File(KubeconfigError::Syntax { path, .. }) => {
                (Kind::Usage, format!("fix `{}`, or {another}", path.display()))
            }
            ImportError::File(_) => (Kind::Usage, another.to_owned()),
            ImportError::Unusable { name, reason: Unusable::Ours(_) } => {
                let hint = command!("import the context that it was made of, and not {}", name.as_str());
                (Kind::Usage, hint)
            }
            ImportError::Unusable { name, .. } => {
                let hint = command!("`kubectl config view --context={} --minify` shows what is in it", name.as_str());
                (Kind::Usage, hint)
            }
        };
        Self::of(kind, error).hint(hint)
    }
}

/// Says which contexts there are, and which of them may be meant.
fn contexts_there(name: &str, known: &[String]) -> String {
    let likeness = |known: &&String| strsim::jaro_winkler(name, known);
    let near = known.iter().filter(|known| likeness(known) >= NEAR);
    if let Some(near) = near.max_by(|one, other| likeness(one).total_cmp(&likeness(other))) {
        return format!("did you mean `{near}`?");
    }
    let shown: Vec<_> = known.iter().take(MAX_CONTEXTS).map(|name| format!("`{name}`")).collect();
    match known.len() {
        0 => "there are no contexts: give another kubeconfig with `--import-kubeconfig`".to_owned(),
        count if count > MAX_CONTEXTS => format!("there are {} and {} more", shown.join(", "), count - MAX_CONTEXTS),
        _ => format!("there are {}", shown.join(", ")),
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
