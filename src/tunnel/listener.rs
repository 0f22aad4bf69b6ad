//! The local ports: bound on loopback, one after the other, before any link is started.
//!
//! Invariants: a tunnel's port is bound from before its first link to its stop, so that a client
//! may try again on the same port at any time; nothing is ever bound but loopback addresses; nobody gets through whom
//! the [`Admission`] does not let in.

use std::{
    collections::BTreeSet,
    fmt,
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    task::{Context, Poll, ready},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::{
    admission::Admission,
    local_tls::{Connections, Termination, Terminator},
    memory::MemoryPort,
    program::Process,
};
use crate::route::{Ends, Io};

/// Connections that the system keeps until they are accepted.
const BACKLOG: i32 = 1024;

/// How often a port that the system chose for IPv4 is tried for IPv6 before another is asked for.
const CHOICES: u32 = 16;

/// The sockets of one tunnel, all on one port.
#[derive(Debug)]
pub struct Listeners {
    port: u16,
    admission: Admission,
    source: Source,
    /// TLS ends here; `None`: it is for whoever is at the other end.
    terminator: Option<Terminator>,
}

/// Where connections come from.
#[derive(Debug)]
enum Source {
    Tcp(Vec<TcpListener>),
    Memory(mpsc::UnboundedReceiver<Io>),
}

/// What [`Listeners::bind`] has bound.
#[derive(Debug)]
pub struct Bound {
    /// As many as were asked for, ports rising.
    pub listeners: Vec<Listeners>,
    pub skipped: Vec<PortTaken>,
}

/// A port that another process, or this one, has already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortTaken {
    pub port: u16,
    /// Who has it, where the system tells.
    pub owner: Option<Process>,
}

impl fmt::Display for PortTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Some(owner) => write!(f, "port {} is taken by `{}` (process {})", self.port, owner.command, owner.pid),
            None => write!(f, "port {} is taken by another process", self.port),
        }
    }
}

/// Why not all ports could be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A port is taken, and none may be skipped.
    #[error("{0}")]
    Taken(PortTaken),
    /// There are not enough free ports above the first.
    #[error("there are not {count} free ports from {base_port} on")]
    Exhausted {
        /// The first port.
        base_port: u16,
        count: usize,
    },
    /// The system does not let this process listen there.
    #[error("cannot listen on port {port}")]
    Io {
        port: u16,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Ports that are bound one after another, from a first one on.
#[derive(Debug)]
pub struct Ports {
    base_port: u16,
    strict: bool,
    admission: Admission,
    /// Ports that are for somebody else: passed over without a word.
    reserved: BTreeSet<u16>,
    /// The next to try; `None` when there are no more.
    next: Option<u16>,
    bound: usize,
    /// Ports that were taken, and have not been asked for with [`skipped`](Self::skipped).
    skipped: Vec<PortTaken>,
}

impl Ports {
    /// Begins with `base_port`; with 0 the system chooses each port. With `strict` a port that is taken is an error
    /// instead of being skipped.
    #[must_use]
    pub fn new(base_port: u16, strict: bool, admission: Admission) -> Self {
        let reserved = BTreeSet::new();
        Self { base_port, strict, admission, reserved, next: Some(base_port), bound: 0, skipped: Vec::new() }
    }

    /// Returns the same without these ports.
    #[must_use]
    pub fn without(self, reserved: impl IntoIterator<Item = u16>) -> Self {
        Self { reserved: reserved.into_iter().collect(), ..self }
    }

    /// Binds the next free port, on 127.0.0.1, and on ::1 where the machine has it.
    ///
    /// # Errors
    /// See [`BindError`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with IO enabled.
    pub fn bind_next(&mut self) -> Result<Listeners, BindError> {
        loop {
            let exhausted = BindError::Exhausted { base_port: self.base_port, count: self.bound + 1 };
            let port = self.next.ok_or(exhausted)?;
            if port != 0 {
                self.next = port.checked_add(1);
            }
            if self.reserved.contains(&port) {
                continue;
            }
            match Listeners::bind_port(port, &self.admission) {
                Ok(listeners) => {
                    self.bound += 1;
                    return Ok(listeners);
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && port != 0 => {
                    let taken = PortTaken { port, owner: owner_of(port) };
                    if self.strict {
                        return Err(BindError::Taken(taken));
                    }
                    self.skipped.push(taken);
                }
                Err(source) => return Err(BindError::Io { port, source }),
            }
        }
    }

    /// Returns the ports that have been skipped since the last call.
    pub fn skipped(&mut self) -> Vec<PortTaken> {
        std::mem::take(&mut self.skipped)
    }
}

impl Listeners {
    /// Binds `count` ports from `base_port` on, on 127.0.0.1, and on ::1 where the machine has it.
    /// With `strict` a port that is taken is an error instead of being skipped. With a `base_port`
    /// of 0 the system chooses each port.
    ///
    /// # Errors
    /// See [`BindError`]. What has been bound by then is closed again.
    ///
    /// # Panics
    /// Outside of a tokio runtime with IO enabled.
    pub fn bind(base_port: u16, count: usize, strict: bool, admission: Admission) -> Result<Bound, BindError> {
        let mut ports = Ports::new(base_port, strict, admission);
        let listeners = (0..count).map(|_| ports.bind_next()).collect::<Result<_, _>>()?;
        Ok(Bound { listeners, skipped: ports.skipped })
    }

    /// Binds this port and no other, on 127.0.0.1, and on ::1 where the machine has it.
    ///
    /// # Errors
    /// [`BindError::Taken`], [`BindError::Io`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with IO enabled.
    pub fn on(port: u16, admission: Admission) -> Result<Self, BindError> {
        Ports::new(port, true, admission).bind_next()
    }

    /// Binds one address as it is; port 0: the system chooses one.
    ///
    /// # Errors
    /// [`BindError::Taken`], [`BindError::Io`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with IO enabled.
    pub fn at(address: SocketAddr, admission: Admission) -> Result<Self, BindError> {
        let port = address.port();
        let bound = listen(address.ip(), port).and_then(|socket| Ok((socket.local_addr()?.port(), socket)));
        match bound {
            Ok((chosen, socket)) => Ok(Self::of(chosen, admission, Source::Tcp(vec![socket]))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(BindError::Taken(PortTaken { port, owner: owner_of(port) }))
            }
            Err(source) => Err(BindError::Io { port, source }),
        }
    }

    fn bind_port(port: u16, admission: &Admission) -> io::Result<Self> {
        let bound = |port, sockets| Self::of(port, admission.clone(), Source::Tcp(sockets));
        let mut choices = 0;
        loop {
            let v4 = listen(IpAddr::V4(Ipv4Addr::LOCALHOST), port)?;
            let chosen = v4.local_addr()?.port();
            match listen(IpAddr::V6(Ipv6Addr::LOCALHOST), chosen) {
                Ok(v6) => return Ok(bound(chosen, vec![v4, v6])),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    choices += 1;
                    if port != 0 || choices == CHOICES {
                        return Err(error);
                    }
                }
                // No IPv6 on this machine, or none on its loopback interface.
                Err(_) => return Ok(bound(chosen, vec![v4])),
            }
        }
    }

    /// Listens within this process, under a port number that means nothing.
    #[must_use]
    pub fn in_memory(port: u16) -> (Self, MemoryPort) {
        let (way, connections) = MemoryPort::new();
        (Self::of(port, Admission::everyone(), Source::Memory(connections)), way)
    }

    fn of(port: u16, admission: Admission, source: Source) -> Self {
        Self { port, admission, source, terminator: None }
    }

    /// Returns the same with TLS that ends at their port.
    #[must_use]
    pub fn with_tls(self, termination: Termination) -> Self {
        Self { terminator: Some(Terminator::new(termination)), ..self }
    }

    /// Gives up the port, and returns the connections whose TLS ends here.
    pub(super) fn close(self) -> Connections {
        self.terminator.map(Terminator::close).unwrap_or_default()
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Accepts the next TCP connection; whatever keeps it from that is logged, and passes.
    ///
    /// # Cancel safety
    /// No connection is lost.
    pub async fn accept_tcp(&mut self) -> TcpStream {
        loop {
            match self.accept().await {
                // The other end of what is no socket sees that nobody takes it.
                Ok(io) => {
                    if let Some(stream) = io.into_tcp() {
                        return stream;
                    }
                }
                Err(error) => tokio::time::sleep(super::accept_pause(&error)).await,
            }
        }
    }

    /// Accepts the next connection.
    ///
    /// # Errors
    /// What the system says; most of it concerns one connection, or passes.
    ///
    /// # Cancel safety
    /// No connection is lost.
    pub(crate) async fn accept(&mut self) -> io::Result<Io> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Io>> {
        loop {
            if let Some(terminator) = &mut self.terminator
                && let Poll::Ready(io) = terminator.poll_next(cx)
            {
                return Poll::Ready(Ok(io));
            }
            let io = ready!(self.source.poll_accept(&self.admission, cx))?;
            let Some(terminator) = &mut self.terminator else { return Poll::Ready(Ok(io)) };
            let ends = io.ends();
            // What is no socket has nobody behind it who speaks TLS.
            if let Some(client) = io.into_tcp() {
                terminator.take(client, ends);
            }
        }
    }
}

impl Source {
    fn poll_accept(&mut self, admission: &Admission, cx: &mut Context<'_>) -> Poll<io::Result<Io>> {
        match self {
            Self::Tcp(sockets) => {
                for socket in sockets {
                    // Ends however many are turned away: tokio's budget makes it pend now and then.
                    while let Poll::Ready(outcome) = socket.poll_accept(cx) {
                        let (stream, peer) = outcome?;
                        let ends = Ends { peer, local: stream.local_addr()? };
                        if admission.admits(ends) {
                            stream.set_nodelay(true)?;
                            return Poll::Ready(Ok(Io::tcp(stream, Some(ends))));
                        }
                        // Closing sends RST.
                        stream.set_zero_linger()?;
                    }
                }
                Poll::Pending
            }
            Self::Memory(connections) => match ready!(connections.poll_recv(cx)) {
                Some(io) => Poll::Ready(Ok(io)),
                None => Poll::Pending,
            },
        }
    }
}

fn listen(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    let address = SocketAddr::new(address, port);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Elsewhere than on Unix this option would let two processes share the port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Finds the process that listens on a port, as far as the kernel's list of sockets shows it.
#[cfg(target_os = "macos")]
fn owner_of(port: u16) -> Option<Process> {
    Process::with_id(super::socket_list::listener_on(port)?)
}

/// Finds the process that listens on a port, as far as `/proc` shows it.
#[cfg(target_os = "linux")]
fn owner_of(port: u16) -> Option<Process> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(std::fs::read_to_string);
    let inodes: Vec<u64> = tables.iter().flatten().flat_map(|table| listening_inodes(table, port)).collect();
    Process::with_socket(&inodes)
}

/// Returns the inodes of the sockets that listen on a port, from the text of `/proc/net/tcp`.
///
/// Source of the format: `Documentation/networking/proc_net_tcp.rst` of Linux; state 0A is `LISTEN`.
#[cfg(target_os = "linux")]
fn listening_inodes(table: &str, port: u16) -> Vec<u64> {
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        let listens = u16::from_str_radix(local_port, 16) == Ok(port) && *fields.get(3)? == "0A";
        fields.get(9).filter(|_| listens)?.parse().ok()
    };
    table.lines().filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn reads_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2774 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 53201 1 0000000000000000 100 0 0 10 0
   1: 0100007F:2774 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000        0 53202 1 0000000000000000 20 4 30 10 -1
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21876 1 0000000000000000 100 0 0 10 0
   garbage";
        assert_eq!(listening_inodes(table, 10100), [53201]);
        assert_eq!(listening_inodes(table, 22), [21876]);
        assert!(listening_inodes(table, 443).is_empty());
        assert!(listening_inodes("", 443).is_empty());
    }

    #[tokio::test]
    async fn skips_a_taken_port_and_names_it() {
        let first = Listeners::bind(0, 1, false, Admission::owner()).unwrap().listeners.remove(0);
        let bound = Listeners::bind(first.port(), 2, false, Admission::owner()).unwrap();
        assert!(bound.listeners.iter().all(|listeners| listeners.port() > first.port()));
        assert_eq!(bound.skipped[0].port, first.port());
        assert_eq!(bound.skipped[0].owner.as_ref().map(|owner| owner.pid), Some(std::process::id()));
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_when_none_may_be_skipped() {
        let first = Listeners::bind(0, 1, false, Admission::owner()).unwrap().listeners.remove(0);
        let error = Listeners::bind(first.port(), 1, true, Admission::owner()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("port {} is taken by ", first.port())), "{error}");
    }

    #[tokio::test]
    async fn ends_with_the_last_port() {
        let error = Listeners::bind(65535, 2, false, Admission::owner()).unwrap_err();
        assert!(matches!(error, BindError::Exhausted { base_port: 65535, count: 2 }), "{error}");
    }

    #[tokio::test]
    async fn accepts_on_both_addresses_without_delay() {
        let mut listeners = Listeners::bind(0, 1, false, Admission::owner()).unwrap().listeners.remove(0);
        for address in ["127.0.0.1", "::1"] {
            let Ok(client) = std::net::TcpStream::connect((address, listeners.port())) else {
                assert_eq!(address, "::1", "IPv4 is always there");
                continue;
            };
            let stream = listeners.accept().await.unwrap().into_tcp().expect("a TCP connection");
            assert_eq!(stream.peer_addr().unwrap(), client.local_addr().unwrap());
            assert!(stream.nodelay().unwrap());
        }
    }
}
