//! The reference for the SSH way: OpenSSH's own client, with one port forwarded through the same server.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use autoheal_pa::emulator::Sshd;
use tokio::{process::Child, time::sleep};

use super::{
    BoxError,
    destination::bind,
    emulator::SshHello,
    load::{REQUEST, open_one, within},
    measure::Usage,
    processes::{command, usage},
};

/// What of OpenSSH has to be there.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) sshd: PathBuf,
    pub(crate) ssh: PathBuf,
}

impl Programs {
    /// Looks for them.
    ///
    /// # Errors
    /// Says which is not there.
    #[expect(clippy::disallowed_methods, reason = "programs are found by it")]
    pub(crate) fn find() -> Result<Self, BoxError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = || std::env::split_paths(&path);
        let missing = |program| format!("there is no `{program}`: the SSH way is not measured");
        let sshd = Sshd::find(folders()).ok_or_else(|| missing("sshd"))?;
        let ssh = folders().map(|folder| folder.join("ssh")).find(|program| program.is_file());
        Ok(Self { sshd, ssh: ssh.ok_or_else(|| missing("ssh"))? })
    }
}

/// What was agreed on with a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) exchange: String,
    pub(crate) cipher: String,
}

/// A running `ssh -L`. It ends when it is dropped.
pub(crate) struct OpenSsh {
    child: Child,
    /// Its end of the forwarded port.
    pub(crate) address: SocketAddr,
    /// What it has agreed on.
    pub(crate) agreed: Agreed,
}

impl OpenSsh {
    /// Starts one in a home of its own, with a cipher, and waits until it leads to the destination.
    pub(crate) async fn start(
        ssh: &Path,
        home: &Path,
        server: &SshHello,
        cipher: &str,
        to: SocketAddr,
    ) -> Result<Self, BoxError> {
        let agreed = agree(ssh, home, server, cipher).await?;
        // It takes no port 0.
        let (_, address) = bind().await?;
        let mut command = client(ssh, home, server, cipher);
        command.args(["-L", &format!("{address}:{to}")]).stdin(Stdio::null()).stdout(Stdio::null());
        let log = home.join("ssh-log");
        let mut child = command.arg(server.address.ip().to_string()).stderr(File::create(&log)?).spawn()?;
        let leads = async {
            while open_one(address, REQUEST).await.is_err() {
                if child.try_wait()?.is_some() {
                    return Err(format!("`ssh` failed: {}", std::fs::read_to_string(&log)?).into());
                }
                sleep(Duration::from_millis(10)).await;
            }
            Ok::<_, BoxError>(())
        };
        within("`ssh -L`", leads).await?;
        Ok(Self { child, address, agreed })
    }

    /// What it has used so far.
    pub(crate) fn usage(&self) -> Result<Usage, BoxError> {
        usage(&self.child)
    }
}

/// The client with the settings that it has by itself, but for its files and the cipher.
fn client(ssh: &Path, home: &Path, server: &SshHello, cipher: &str) -> tokio::process::Command {
    let mut command = command(ssh, home);
    let known_hosts = format!("UserKnownHostsFile={}", server.known_hosts.display());
    let options = ["BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=yes", "ExitOnForwardFailure=yes"];
    command.args(["-F", "none", "-N", "-T", "-c", cipher]);
    command.args(options.into_iter().chain([known_hosts.as_str()]).flat_map(|option| ["-o", option]));
    command.arg("-i").arg(&server.identity).args(["-l", &server.user, "-p", &server.address.port().to_string()]);
    command
}

/// Lets it log in, and returns what it says of that. Another one, as it goes on talking for as long as it runs.
async fn agree(ssh: &Path, home: &Path, server: &SshHello, cipher: &str) -> Result<Agreed, BoxError> {
    let mut command = client(ssh, home, server, cipher);
    let log = home.join("ssh-agreed");
    command.arg("-v").arg(server.address.ip().to_string()).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(File::create(&log)?).spawn()?;
    let said = async {
        loop {
            let text = std::fs::read_to_string(&log)?;
            let after = |what: &str| text.lines().find_map(|line| line.strip_prefix(what)?.split_whitespace().next());
            if let (Some(exchange), Some(cipher)) =
                (after("debug1: kex: algorithm: "), after("debug1: kex: server->client cipher: "))
            {
                return Ok(Agreed { exchange: exchange.to_owned(), cipher: cipher.to_owned() });
            }
            if child.try_wait()?.is_some() {
                return Err(format!("`ssh` failed: {text}").into());
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    within::<_, BoxError>("the login of `ssh`", said).await
}
