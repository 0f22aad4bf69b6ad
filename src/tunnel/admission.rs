//! Who may connect to a local port: by default only programs of this process's user and of root.
//!
//! A port on loopback is open to everybody on the machine. What waits behind a tunnel trusts whoever comes out of the
//! cluster, so the port must not be a door for other users.
//!
//! Invariants:
//!
//! * Each connection is judged once, when it is accepted and before a byte of it is read.
//! * Whoever is not shown to be allowed is turned away with a reset. Only where the system tells nothing about any
//!   connection (Linux with no `/proc`, a macOS whose list of sockets cannot be read) everybody is let in.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{debug, warn};

#[cfg(target_os = "macos")]
use super::socket_list::Sockets;
#[cfg(target_os = "linux")]
use super::socket_user::Sockets;
use crate::route::Ends;

/// How many users are named in the log, each once: what another user can write into it is bounded.
const MAX_NAMED: usize = 16;

/// Who gets through a local port. Clones share what they know.
#[derive(Debug, Clone)]
pub struct Admission(Option<Arc<Users>>);

/// The user of the program at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum User {
    /// It has this user id. By the other number its program is found: on Linux it is the inode of the socket, on macOS
    /// the id of the process; 0: the program has closed it.
    Known { id: u32, key: u32 },
    /// The program has closed the connection, and the system has forgotten whose it was.
    Gone,
    /// The system does not tell.
    Untold,
}

#[derive(Debug)]
struct Users {
    /// The user that this process acts as.
    own: u32,
    sockets: Sockets,
    /// Users that have been named in the log.
    named: Mutex<BTreeSet<u32>>,
    /// It has been said that the system does not tell.
    untold: std::sync::atomic::AtomicBool,
}

impl Admission {
    /// Lets in programs of this process's user and of root, as far as the system tells whose they are.
    #[must_use]
    pub fn owner() -> Self {
        Self::of(rustix::process::geteuid().as_raw())
    }

    /// Lets in programs of all users of this machine.
    #[must_use]
    pub fn everyone() -> Self {
        Self(None)
    }

    fn of(own: u32) -> Self {
        Self(Some(Arc::new(Users { own, sockets: Sockets::default(), named: Mutex::default(), untold: false.into() })))
    }

    /// Returns whether the program that has made a connection, on this machine, may go on.
    pub(super) fn admits(&self, ends: Ends) -> bool {
        self.0.as_ref().is_none_or(|users| users.admits(ends))
    }
}

impl Users {
    fn admits(&self, ends: Ends) -> bool {
        match self.sockets.user(ends) {
            User::Known { id, .. } if id == self.own || id == 0 => true,
            User::Known { id: user, .. } => {
                let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
                if named.len() < MAX_NAMED && named.insert(user) {
                    warn!(
                        port = ends.local.port(),
                        user, "rejected a connection from another user's program; `--allow-other-users` would allow it"
                    );
                } else {
                    debug!(port = ends.local.port(), user, "rejected a connection from another user's program");
                }
                false
            }
            User::Gone => {
                debug!(port = ends.local.port(), "a connection was closed before its user was known");
                false
            }
            User::Untold => {
                if !self.untold.swap(true, std::sync::atomic::Ordering::Relaxed) {
                    warn!(
                        "this system does not tell which user a connection is from: other users can use the local ports"
                    );
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    fn pair(address: &str) -> (TcpStream, Ends) {
        let listener = TcpListener::bind(address).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_server, peer) = listener.accept().unwrap();
        (client, Ends { peer, local: listener.local_addr().unwrap() })
    }

    #[test]
    fn lets_in_its_own_user_and_root_and_nobody_else() {
        let own = rustix::process::geteuid().as_raw();
        let (_client, ends) = pair("127.0.0.1:0");
        assert!(Admission::owner().admits(ends));
        assert!(Admission::everyone().admits(ends));
        // Seen by somebody else, this process is root or another user.
        assert_eq!(Admission::of(own + 1).admits(ends), own == 0);
    }

    #[test]
    fn a_connection_that_is_not_there_is_nobody_s() {
        let (client, ends) = pair("127.0.0.1:0");
        drop(client);
        let never = Ends { peer: SocketAddr::new(ends.peer.ip(), 1), ..ends };
        assert!(!Admission::owner().admits(never));
    }
}
