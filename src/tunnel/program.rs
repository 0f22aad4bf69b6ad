//! The programs of this machine that have sockets, as far as the system tells.

use std::path::PathBuf;
#[cfg(target_os = "linux")]
use std::{fs, path::Path};

use super::admission::User;
#[cfg(target_os = "macos")]
use super::socket_list::Sockets;
#[cfg(target_os = "linux")]
use super::socket_user::Sockets;
use crate::{route::Ends, util::peer_text::PeerText};

/// A process of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// Its command's name. Linux keeps at most 15 bytes of it.
    pub command: PeerText,
    /// The file that it runs, where that is shown.
    pub executable: Option<PathBuf>,
}

impl Process {
    /// Finds the process that a [`User::Known`] has a key to.
    fn behind(key: u32) -> Option<Self> {
        if key == 0 {
            return None;
        }
        #[cfg(target_os = "linux")]
        {
            Self::with_socket(&[u64::from(key)])
        }
        #[cfg(target_os = "macos")]
        {
            Self::with_id(key)
        }
    }

    /// Describes a process, as far as `ps` does.
    #[cfg(target_os = "macos")]
    pub(super) fn with_id(pid: u32) -> Option<Self> {
        use std::{
            ffi::OsString,
            os::unix::ffi::OsStringExt,
            process::{Command, Stdio},
        };
        // The system call for this is none that safe code can make. `-ww`: nothing of a long path is cut off.
        let mut ps = Command::new("/bin/ps");
        ps.args(["-ww", "-o", "comm=", "-p"]).arg(pid.to_string());
        let output = ps.env_clear().stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        let path = PathBuf::from(OsString::from_vec(output.stdout.trim_ascii_end().to_vec()));
        let command = PeerText::new(&path.file_name()?.to_string_lossy());
        Some(Self { pid, command, executable: path.is_absolute().then_some(path) })
    }

    /// Finds a process that has one of the sockets with these inodes open. The kernel shows this user's, and root all.
    #[cfg(target_os = "linux")]
    pub(super) fn with_socket(inodes: &[u64]) -> Option<Self> {
        if inodes.is_empty() {
            return None;
        }
        let sockets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
        fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let mut descriptors = fs::read_dir(process.path().join("fd")).ok()?.flatten();
            let is_one = |link: &Path| sockets.iter().any(|socket| link == Path::new(socket));
            descriptors.find(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|link| is_one(&link)))?;
            let command = fs::read_to_string(process.path().join("comm")).ok()?;
            let executable = fs::read_link(process.path().join("exe")).ok();
            Some(Self { pid, command: PeerText::from(command.trim_end()), executable })
        })
    }
}

/// Who has made a connection to a local port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Client {
    /// The user's id.
    pub user: Option<u32>,
    pub process: Option<Process>,
}

/// Tells who has made connections to local ports. It reads `/proc` or runs `ps`, so it may block for some milliseconds.
#[derive(Debug, Default)]
pub struct Programs {
    sockets: Sockets,
}

impl Programs {
    /// Finds who has made a connection. Of one that its program has closed, only the user may be known, and of one that has
    /// ended nothing.
    #[must_use]
    pub fn client(&self, ends: Ends) -> Client {
        match self.sockets.user(ends) {
            User::Known { id, key } => Client { user: Some(id), process: Process::behind(key) },
            User::Gone | User::Untold => Client::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn knows_its_own_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let ends = Ends { peer, local: server.local_addr().unwrap() };
        let found = Programs::default().client(ends);
        assert_eq!(found.user, Some(rustix::process::geteuid().as_raw()));
        let process = found.process.unwrap();
        assert_eq!(process.pid, std::process::id());
        assert_eq!(process.executable, std::env::current_exe().ok());
        drop((client, server));
        assert_eq!(Programs::default().client(Ends { peer: listener.local_addr().unwrap(), ..ends }).process, None);
    }
}
