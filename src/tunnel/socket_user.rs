//! The user of a TCP socket of this machine, as the Linux kernel knows it.
//!
//! The kernel is asked for one socket over netlink, which takes some microseconds however many there are. Where it does
//! not answer (gVisor, a kernel without `inet_diag`) the tables in `/proc/net` are read, whose cost grows with the
//! number of connections of the machine.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};

use super::admission::User;
use crate::route::Ends;

/// Length of `struct nlmsghdr`, in bytes. Source of this and what follows: `linux/netlink.h`.
const HEADER_LEN: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
/// Source of this and what follows: `linux/sock_diag.h`, `linux/inet_diag.h`, `sock_diag(7)`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// Lengths of `struct inet_diag_sockid` and `struct inet_diag_msg`, in bytes.
const SOCKET_ID_LEN: usize = 48;
const ANSWER_LEN: usize = 4 + SOCKET_ID_LEN + 20;
/// Longest answer that is read: attributes follow the message.
const MAX_ANSWER_LEN: usize = 4096;
/// `TCP_LISTEN` of `net/tcp_states.h`.
const LISTEN: u8 = 10;

/// What the kernel is asked with, as soon as it can be opened.
#[derive(Debug, Default)]
pub(super) struct Sockets(Mutex<Netlink>);

#[derive(Debug, Default)]
enum Netlink {
    #[default]
    Unopened,
    Open {
        socket: OwnedFd,
        /// Number of the last question.
        sequence: u32,
    },
    /// It does not find what is there.
    Unavailable,
}

impl Sockets {
    /// Finds the user of the program that has made a connection.
    pub(super) fn user(&self, Ends { peer, local }: Ends) -> User {
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner).ask(peer, local);
        match asked {
            // It was reset before it was asked about. The tables would have no more of it, and reading them costs what others
            // make it cost.
            Ok(user) => user.unwrap_or(User::Gone),
            Err(error) => {
                tracing::debug!(%error, "the kernel cannot be asked about one socket: its tables are read");
                from_tables(peer, local)
            }
        }
    }
}

impl Netlink {
    /// Returns `None` if there is no such socket.
    fn ask(&mut self, peer: SocketAddr, local: SocketAddr) -> io::Result<Option<User>> {
        if let Self::Unopened = self {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::SOCK_DIAG))?;
            *self = match knows_its_own(&socket)? {
                true => Self::Open { socket, sequence: 0 },
                false => Self::Unavailable,
            };
        }
        let Self::Open { socket, sequence } = self else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        *sequence = sequence.wrapping_add(1);
        let question = question(*sequence, peer, local);
        let outcome = exchange(socket, &question, *sequence);
        if outcome.is_err() {
            // Another may do better.
            *self = Self::Unopened;
        }
        outcome
    }
}

/// Tells whether the kernel finds a connection that is there: without a module of its, it says of every one that there is none.
fn knows_its_own(socket: &OwnedFd) -> io::Result<bool> {
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let client = std::net::TcpStream::connect(listener.local_addr()?)?;
    let (peer, local) = (client.local_addr()?, client.peer_addr()?);
    Ok(exchange(socket, &question(0, peer, local), 0)?.is_some())
}

/// The kernel answers within the call that asks.
fn exchange(socket: &OwnedFd, question: &[u8], sequence: u32) -> io::Result<Option<User>> {
    rustix::io::write(socket, question)?;
    let mut buffer = [0_u8; MAX_ANSWER_LEN];
    loop {
        let len = rustix::io::read(socket, &mut buffer)?;
        let answer = buffer.get(..len).unwrap_or_default();
        // What is left of a question that was given up.
        if number(answer, 8) == Some(sequence) {
            return read_answer(answer).ok_or_else(|| io::ErrorKind::InvalidData.into());
        }
    }
}

fn question(sequence: u32, peer: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let len = HEADER_LEN + 8 + SOCKET_ID_LEN;
    let mut bytes = Vec::with_capacity(len);
    bytes.extend(u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    let family = if peer.is_ipv4() { AF_INET } else { AF_INET6 };
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    // In all states.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(peer.port().to_be_bytes());
    bytes.extend(local.port().to_be_bytes());
    for end in [peer, local] {
        let mut address = [0; 16];
        match end.ip() {
            IpAddr::V4(ip) => address[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => address = ip.octets(),
        }
        bytes.extend(address);
    }
    // Any interface; INET_DIAG_NOCOOKIE.
    bytes.extend([0; 4]);
    bytes.extend([0xff; 8]);
    bytes
}

/// Returns `Some(None)` if there is no such socket, `None` if that is no answer.
fn read_answer(answer: &[u8]) -> Option<Option<User>> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let body = answer.get(HEADER_LEN..)?;
    if kind == NLMSG_ERROR {
        let error = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
        return (rustix::io::Errno::NOENT.raw_os_error() == -error).then_some(None);
    }
    if kind != SOCK_DIAG_BY_FAMILY || body.len() < ANSWER_LEN {
        return None;
    }
    let user = number(body, ANSWER_LEN - 8)?;
    let inode = number(body, ANSWER_LEN - 4)?;
    let state = *body.get(1)?;
    // Where no connection has this port, somebody may listen on it.
    Some((state != LISTEN).then(|| user_of(user, inode)))
}

/// A socket that its program has closed has no inode, and before Linux 6.17 its user is given as 0.
fn user_of(id: u32, inode: u32) -> User {
    if id == 0 && inode == 0 { User::Gone } else { User::Known { id, key: inode } }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Looks into the kernel's tables.
fn from_tables(peer: SocketAddr, local: SocketAddr) -> User {
    let mut read = false;
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = match fs::read_to_string(table) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => continue,
            // What others may have brought about lets nobody in.
            Err(_) => return User::Gone,
        };
        read = true;
        if let Some(user) = in_table(&text, peer, local) {
            return user;
        }
    }
    if read { User::Gone } else { User::Untold }
}

/// Source of the format: `Documentation/networking/proc_net_tcp.rst` of Linux.
fn in_table(text: &str, peer: SocketAddr, local: SocketAddr) -> Option<User> {
    let plain = (written(peer.ip(), peer.port()), written(local.ip(), local.port()));
    // As a socket of IPv6 that is connected to an address of IPv4 shows it.
    let mapped = |end: SocketAddr| match end.ip() {
        IpAddr::V4(ip) => written(ip.to_ipv6_mapped().into(), end.port()),
        IpAddr::V6(_) => String::new(),
    };
    let mapped = (mapped(peer), mapped(local));
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let ends = (*fields.get(1)?, *fields.get(2)?);
        let found = [&plain, &mapped].iter().any(|(from, to)| ends == (from.as_str(), to.as_str()));
        found.then(|| Some(user_of(fields.get(7)?.parse().ok()?, fields.get(9)?.parse().ok()?)))?
    })
}

/// An address as the tables have it: words of four bytes, each as a number of this machine.
fn written(ip: IpAddr, port: u16) -> String {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    let mut text: String = words.map(|word| format!("{word:08X}")).collect();
    text.push_str(&format!(":{port:04X}"));
    text
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener, TcpStream};

    use super::*;

    fn is_own(user: User) -> bool {
        matches!(user, User::Known { id, key: 1.. } if id == rustix::process::geteuid().as_raw())
    }

    fn connected(listen: &str, connect: impl Fn(u16) -> SocketAddr) -> (TcpStream, TcpStream, SocketAddr, SocketAddr) {
        let listener = TcpListener::bind(listen).unwrap();
        let client = TcpStream::connect(connect(listener.local_addr().unwrap().port())).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let local = server.local_addr().unwrap();
        (client, server, peer, local)
    }

    #[test]
    fn the_kernel_and_its_tables_know_the_user() {
        let v4 = connected("127.0.0.1:0", |port| ([127, 0, 0, 1], port).into());
        let mapped = connected("127.0.0.1:0", |port| SocketAddr::new([127, 0, 0, 1].into(), port));
        let mut all = vec![v4, mapped];
        if TcpListener::bind("[::1]:0").is_ok() {
            all.push(connected("[::1]:0", |port| (Ipv6Addr::LOCALHOST, port).into()));
        }
        for (_client, _server, peer, local) in &all {
            let asked = Netlink::default().ask(*peer, *local).unwrap().unwrap();
            assert!(is_own(asked), "{peer}");
            assert_eq!(from_tables(*peer, *local), asked, "{peer}");
        }
    }

    #[test]
    fn a_socket_of_ipv6_may_connect_to_an_address_of_ipv4() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
        let address: IpAddr = std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().into();
        socket.connect(&SocketAddr::new(address, port).into()).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let local = server.local_addr().unwrap();
        assert!(is_own(Sockets::default().user(Ends { peer, local })));
        assert!(is_own(from_tables(peer, local)));
    }

    #[test]
    fn one_who_listens_on_the_client_s_port_is_not_the_client() {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [peer, local] = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        assert_eq!(Netlink::default().ask(peer, local).unwrap(), None);
        assert_eq!(Sockets::default().user(Ends { peer, local }), User::Gone);
    }

    #[test]
    fn reads_the_tables() {
        let peer = "127.0.0.1:40000".parse().unwrap();
        let local = "127.0.0.1:10100".parse().unwrap();
        let line = |address: &str, to: &str, user: u32, inode: u32| {
            format!("   1: {address} {to} 01 00000000:00000000 00:00000000 00000000  {user}        0 {inode} 1 0\n")
        };
        let loopback = written([127, 0, 0, 1].into(), 40000);
        let port = written([127, 0, 0, 1].into(), 10100);
        #[cfg(target_endian = "little")]
        assert_eq!((loopback.as_str(), port.as_str()), ("0100007F:9C40", "0100007F:2774"));
        // The server's end of the same connection comes first.
        let table = line(&port, &loopback, 7, 7) + &line(&loopback, &port, 1000, 8);
        assert_eq!(in_table(&table, peer, local), Some(User::Known { id: 1000, key: 8 }));
        assert_eq!(in_table(&line(&loopback, &port, 0, 8), peer, local), Some(User::Known { id: 0, key: 8 }));
        assert_eq!(in_table(&line(&loopback, &port, 0, 0), peer, local), Some(User::Gone));
        assert_eq!(in_table("nonsense\n  1: x y\n", peer, local), None);
    }

    #[test]
    fn what_is_no_answer_is_none() {
        for len in 0..HEADER_LEN + ANSWER_LEN {
            let mut answer = vec![0; len];
            if len > 5 {
                answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            }
            assert_eq!(read_answer(&answer), None, "{len}");
        }
    }
}
