//! `forward`: local ports for hosts behind a bastion, and nothing else. It is `up` without clusters: EKS is asked nothing, and
//! no kubeconfig is written.

use clap::Args;

use super::{
    UpArgs,
    error::{CommandError, Kind},
};

#[derive(Debug, Clone, Default, Args)]
pub struct ForwardArgs {
    /// Host and port as the bastion reaches them, with a name for `status` and a local port if you like; an IPv6 address goes
    /// into brackets
    #[arg(value_name = "[NAME=]HOST:PORT[@LOCAL]", required = true)]
    pub to: Vec<String>,
    /// Options of the tunnels.
    #[command(flatten)]
    pub up: UpArgs,
}

impl ForwardArgs {
    /// Makes it the `up` that it is.
    ///
    /// # Errors
    /// [`Kind::Usage`] for options that are about clusters.
    pub(super) fn into_up(self) -> Result<UpArgs, CommandError> {
        if let Some(flag) = self.up.of_clusters() {
            let message = format!("`{flag}` is about clusters, and `forward` opens no tunnels to any");
            return Err(CommandError::new(Kind::Usage, message)
                .hint("`autoheal-pa up --forward HOST:PORT` opens tunnels to hosts beside those to clusters"));
        }
        Ok(self.up.with_forwards(&self.to).without_clusters())
    }
}
