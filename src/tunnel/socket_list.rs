//! The TCP sockets of this machine with their users and programs, as the kernel of macOS lists them.
//!
//! There is no question about one socket that safe code could ask: the list of all is read, whose cost grows with the
//! number of connections of the machine. `netstat` reads it too, but Apple does not promise that it stays as it is. So
//! it is believed only after it has shown a connection of this very process as what it is.
//!
//! Reading it is for macOS only; understanding it is for tests elsewhere, too.
//!
//! Source of the format: `bsd/netinet/in_pcblist.c`, `in_pcb.h`, `tcp_var.h` and `bsd/sys/socketvar.h` of Apple's XNU.
//! Structures are packed to four bytes, and each begins at a multiple of eight.

use std::net::{IpAddr, SocketAddr};

use super::admission::User;

#[cfg(target_os = "macos")]
pub(super) use self::system::{Sockets, listener_on};

/// Length of `struct xinpgen`, in bytes, which the list begins and ends with.
const BOUND_LEN: usize = 24;

/// Kinds of structures: `XSO_SOCKET` (`struct xsocket_n`), `XSO_INPCB` (`struct xinpcb_n`), `XSO_TCPCB` (`struct xtcpcb_n`).
const SOCKET: u32 = 0x001;
const ENDS: u32 = 0x010;
const TCP: u32 = 0x020;

/// `INP_IPV4` and `INP_IPV6` of `inp_vflag`.
const IPV4: u8 = 0x1;
const IPV6: u8 = 0x2;

/// `SS_NOFDREF` of `so_state`: no program has the socket open any more.
const CLOSED: u16 = 0x0001;

/// `TCPS_LISTEN` of `netinet/tcp_fsm.h`.
const LISTEN: u32 = 1;

/// One socket of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    local: End,
    foreign: End,
    families: u8,
    owner: User,
    /// Its program's process.
    pid: u32,
    listens: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    port: u16,
    /// An address of IPv6, or one of IPv4 in its last bytes.
    address: [u8; 16],
}

impl End {
    fn is(&self, end: SocketAddr, families: u8) -> bool {
        let ip = match end.ip() {
            IpAddr::V4(ip) if families & IPV4 != 0 => {
                return self.port == end.port() && self.address[12..] == ip.octets();
            }
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        families & IPV6 != 0 && self.port == end.port() && self.address == ip.octets()
    }
}

/// Finds the user of a program that has made a connection. `None`: that is no such list.
fn user_in(list: &[u8], peer: SocketAddr, local: SocketAddr) -> Option<User> {
    let entries = read(list)?;
    let is_it = |entry: &&Entry| {
        !entry.listens && entry.local.is(peer, entry.families) && entry.foreign.is(local, entry.families)
    };
    let mut found = entries.iter().filter(is_it).map(|entry| entry.owner);
    // The remains of an earlier connection may be beside it.
    Some(found.find(|owner| *owner != User::Gone).unwrap_or(User::Gone))
}

/// Finds a process that listens on a port.
fn listener_in(list: &[u8], port: u16) -> Option<u32> {
    let entries = read(list)?;
    let found = entries.iter().find(|entry| entry.listens && entry.local.port == port && entry.pid != 0);
    found.map(|entry| entry.pid)
}

/// Returns `None` if that is no such list.
fn read(list: &[u8]) -> Option<Vec<Entry>> {
    let mut rest = list.get(BOUND_LEN..).filter(|_| number(list, 0) == Some(BOUND_LEN as u32))?;
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let len = usize::try_from(number(rest, 0)?).ok()?;
        if len <= BOUND_LEN {
            return (len == BOUND_LEN).then_some(entries);
        }
        let record = rest.get(..len)?;
        match number(record, 4)? {
            ENDS => entries.push(Entry {
                foreign: End { port: port(record, 16)?, address: address(record, 48)? },
                local: End { port: port(record, 18)?, address: address(record, 64)? },
                families: *record.get(44)?,
                owner: User::Gone,
                pid: 0,
                listens: false,
            }),
            SOCKET => {
                let entry = entries.last_mut()?;
                let is_there = record.get(8..16)?.iter().any(|byte| *byte != 0);
                let state = u16::from_ne_bytes(record.get(26..28)?.try_into().ok()?);
                let (id, pid) = (number(record, 64)?, number(record, 68)?);
                // What is left of a connection has no socket, and user 0 without being root's. The same goes for those that
                // are in a program and not in the kernel.
                if is_there {
                    entry.pid = if state & CLOSED == 0 { pid } else { 0 };
                    entry.owner = User::Known { id, key: entry.pid };
                }
            }
            TCP => entries.last_mut()?.listens = number(record, 36)? == LISTEN,
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(8)..)?;
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn port(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn address(bytes: &[u8], at: usize) -> Option<[u8; 16]> {
    bytes.get(at..at + 16)?.try_into().ok()
}

#[cfg(target_os = "macos")]
mod system {
    use std::{
        io,
        net::{Ipv4Addr, TcpListener, TcpStream},
        sync::{Mutex, PoisonError},
    };

    use super::{User, listener_in, user_in};
    use crate::{route::Ends, util::kernel};

    const LIST: &str = "net.inet.tcp.pcblist_n";

    /// How often the list is read: it fails if it has grown by more than an eighth meanwhile.
    const ATTEMPTS: u32 = 3;

    /// What no other attempt changes.
    const CANNOT: [io::ErrorKind; 3] =
        [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied, io::ErrorKind::InvalidData];

    /// What the kernel is asked with, if it tells what is so.
    #[derive(Debug, Default)]
    pub(in crate::tunnel) struct Sockets(Mutex<Option<bool>>);

    impl Sockets {
        /// Finds the user of the program that has made a connection.
        pub(in crate::tunnel) fn user(&self, Ends { peer, local }: Ends) -> User {
            let mut tells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let known = match *tells {
                Some(known) => Ok(known),
                None => knows_its_own(),
            };
            let found = known.and_then(|known| {
                *tells = Some(known);
                if known { read(|list| user_in(list, peer, local)) } else { Ok(User::Untold) }
            });
            found.unwrap_or_else(|error| {
                // What others may have brought about lets nobody in.
                tracing::debug!(%error, "the kernel's list of sockets cannot be read");
                User::Gone
            })
        }
    }

    /// Finds the process that listens on a port.
    pub(in crate::tunnel) fn listener_on(port: u16) -> Option<u32> {
        read(|list| Some(listener_in(list, port))).ok().flatten()
    }

    /// Tells whether the list has a connection of this process, as what it is.
    fn knows_its_own() -> io::Result<bool> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (peer, local) = (client.local_addr()?, client.peer_addr()?);
        let own = User::Known { id: rustix::process::geteuid().as_raw(), key: std::process::id() };
        match read(|list| user_in(list, peer, local)) {
            Ok(found) => Ok(found == own),
            Err(error) if CANNOT.contains(&error.kind()) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read<T>(look: impl FnOnce(&[u8]) -> Option<T>) -> io::Result<T> {
        let mut attempt = 1;
        let list = loop {
            match kernel::structure(LIST) {
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory && attempt < ATTEMPTS => attempt += 1,
                outcome => break outcome?,
            }
        };
        look(&list).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket as the kernel would write it, field by field.
    struct Listed {
        local: &'static str,
        foreign: &'static str,
        vflag: u8,
        handle: u64,
        state: u16,
        user: u32,
        pid: i32,
        tcp_state: i32,
    }

    const ESTABLISHED: i32 = 4;

    impl Default for Listed {
        fn default() -> Self {
            Self {
                local: "127.0.0.1:50001",
                foreign: "127.0.0.1:10100",
                vflag: 1,
                handle: 0xfeed,
                state: 2,
                user: 501,
                pid: 77,
                tcp_state: ESTABLISHED,
            }
        }
    }

    fn address(address: &str, as_ipv4: bool) -> [u8; 16] {
        match address.parse::<SocketAddr>().unwrap().ip() {
            IpAddr::V4(ip) if as_ipv4 => std::array::from_fn(|at| if at < 12 { 0 } else { ip.octets()[at - 12] }),
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        }
    }

    fn padded(record: &mut Vec<u8>) -> Vec<u8> {
        record.resize(record.len().next_multiple_of(8), 0);
        std::mem::take(record)
    }

    impl Listed {
        fn bytes(&self) -> Vec<u8> {
            let mut all = Vec::new();
            let port = |end: &str| end.parse::<SocketAddr>().unwrap().port().to_be_bytes();
            let mut out = Vec::new();
            let mut fields = |parts: &[&[u8]]| {
                out.extend(parts.concat());
                padded(&mut out)
            };
            // struct xinpcb_n
            all.extend(fields(&[
                &104_u32.to_ne_bytes(),
                &0x10_u32.to_ne_bytes(),
                &0xaaaa_u64.to_ne_bytes(), // xi_inpp
                &port(self.foreign),
                &port(self.local),
                &0xbbbb_u64.to_ne_bytes(), // inp_ppcb
                &9_u64.to_ne_bytes(),      // inp_gencnt
                &0x0080_0000_u32.to_ne_bytes(),
                &0_u32.to_ne_bytes(),
                &[self.vflag, 64, 6, 0],
                &address(self.foreign, self.vflag & 1 != 0),
                &address(self.local, self.vflag & 1 != 0),
                &[0; 24], // inp_depend4, inp_depend6, inp_flowhash, inp_flags2
            ]));
            // struct xsocket_n
            all.extend(fields(&[
                &104_u32.to_ne_bytes(),
                &1_u32.to_ne_bytes(),
                &self.handle.to_ne_bytes(),
                &1_u16.to_ne_bytes(), // so_type
                &[0; 2],
                &0_u32.to_ne_bytes(), // so_options
                &0_u16.to_ne_bytes(), // so_linger
                &self.state.to_ne_bytes(),
                &0xaaaa_u64.to_ne_bytes(), // so_pcb
                &6_i32.to_ne_bytes(),
                &2_i32.to_ne_bytes(),
                &[0; 8],              // so_qlen, so_incqlen, so_qlimit, so_timeo
                &[0; 4],              // so_error
                &4_i32.to_ne_bytes(), // so_pgid
                &0_u32.to_ne_bytes(), // so_oobmark
                &self.user.to_ne_bytes(),
                &self.pid.to_ne_bytes(),
                &0_i32.to_ne_bytes(), // so_e_pid
                &[0; 28],
            ]));
            for kind in [2_u32, 4] {
                all.extend(fields(&[&32_u32.to_ne_bytes(), &kind.to_ne_bytes(), &[0; 24]]));
            }
            all.extend(fields(&[&136_u32.to_ne_bytes(), &8_u32.to_ne_bytes(), &[0; 128]]));
            // struct xtcpcb_n, which is no multiple of eight
            all.extend(fields(&[
                &204_u32.to_ne_bytes(),
                &0x20_u32.to_ne_bytes(),
                &0_u64.to_ne_bytes(), // t_segq
                &0_i32.to_ne_bytes(), // t_dupacks
                &[0; 16],             // t_timer
                &self.tcp_state.to_ne_bytes(),
                &[0xee; 164],
            ]));
            all
        }
    }

    fn list(sockets: &[Listed]) -> Vec<u8> {
        let bound = [&24_u32.to_ne_bytes()[..], &[0; 20]].concat();
        let sockets = sockets.iter().flat_map(Listed::bytes).collect();
        [bound.clone(), sockets, bound].concat()
    }

    fn user(sockets: &[Listed]) -> Option<User> {
        user_in(&list(sockets), "127.0.0.1:50001".parse().unwrap(), "127.0.0.1:10100".parse().unwrap())
    }

    #[test]
    fn finds_whose_a_connection_is_and_by_which_program() {
        let accepted =
            || Listed { local: "127.0.0.1:10100", foreign: "127.0.0.1:50001", user: 0, pid: 1, ..Listed::default() };
        let known = Some(User::Known { id: 501, key: 77 });
        assert_eq!(user(&[accepted(), Listed::default()]), known);
        assert_eq!(user(&[Listed::default(), accepted()]), known);
        // Neither its other end, nor one that is like it, nor nothing.
        let others = [
            Listed { foreign: "127.0.0.1:10101", ..Listed::default() },
            Listed { local: "127.0.0.1:50002", ..Listed::default() },
            Listed { foreign: "127.0.0.2:10100", ..Listed::default() },
            Listed { local: "[::1]:50001", foreign: "[::1]:10100", vflag: 2, ..Listed::default() },
            Listed { tcp_state: 1, ..Listed::default() },
            accepted(),
        ];
        assert_eq!(user(&others), Some(User::Gone));
        assert_eq!(user(&[]), Some(User::Gone));
    }

    #[test]
    fn knows_connections_of_ipv6_and_of_ipv4_in_it() {
        let of_ipv6 = Listed { local: "[::1]:50001", foreign: "[::1]:10100", vflag: 2, ..Listed::default() };
        let found = user_in(&list(&[of_ipv6]), "[::1]:50001".parse().unwrap(), "[::1]:10100".parse().unwrap());
        assert_eq!(found, Some(User::Known { id: 501, key: 77 }));
        assert_eq!(user(&[Listed { vflag: 2, ..Listed::default() }]), Some(User::Known { id: 501, key: 77 }));
        assert_eq!(user(&[Listed { vflag: 0, ..Listed::default() }]), Some(User::Gone));
    }

    #[test]
    fn what_has_no_socket_is_not_root_s() {
        let left = || Listed { handle: 0, user: 0, pid: 0, ..Listed::default() };
        assert_eq!(user(&[left()]), Some(User::Gone));
        assert_eq!(user(&[left(), Listed::default()]), Some(User::Known { id: 501, key: 77 }));
        let closed = Listed { state: 1, ..Listed::default() };
        assert_eq!(user(&[closed]), Some(User::Known { id: 501, key: 0 }));
    }

    #[test]
    fn finds_who_listens() {
        let listens =
            Listed { local: "127.0.0.1:10100", foreign: "0.0.0.0:0", tcp_state: 1, pid: 42, ..Listed::default() };
        let list = list(&[Listed { local: "127.0.0.1:10100", ..Listed::default() }, listens]);
        assert_eq!(listener_in(&list, 10100), Some(42));
        assert_eq!(listener_in(&list, 10101), None);
    }

    #[test]
    fn what_is_no_list_says_nothing() {
        let whole = list(&[Listed::default(), Listed::default()]);
        for len in 0..whole.len() {
            let cut = read(&whole[..len]);
            assert!(cut.is_none() || len + BOUND_LEN > whole.len(), "{len} bytes");
        }
        // Structures of kinds that are not known are passed over; one that begins with none is no list.
        let unknown = [&40_u32.to_ne_bytes()[..], &0x400_u32.to_ne_bytes(), &[7; 32]].concat();
        let more = [&whole[..BOUND_LEN], &unknown, &whole[BOUND_LEN..]].concat();
        assert_eq!(read(&more), read(&whole));
        assert_eq!(read(&whole[BOUND_LEN..]), None);
        assert_eq!(read(&[0; 64]), None);
    }

    #[cfg(target_os = "macos")]
    #[test]
    fn the_kernel_tells_of_this_process() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(listener_on(listener.local_addr().unwrap().port()), Some(std::process::id()));
    }
}
