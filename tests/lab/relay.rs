//! The network between the program and an SSH server: connections pass through here, and can be cut, or fall silent.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Bytes that are under way at once, each way.
const BUFFER_LEN: usize = 64 << 10;

/// See the module. Everything ends when it is dropped.
pub(crate) struct Relay {
    address: SocketAddr,
    /// Nothing gets through; what was sent gets through when this is over, as what TCP sends again does.
    silent: watch::Sender<bool>,
    /// Changes when all connections are reset.
    cuts: watch::Sender<u32>,
    /// How many connections there have been.
    connections: watch::Receiver<u64>,
    tasks: JoinSet<()>,
}

impl Relay {
    /// Listens at an address, with port 0 on a free one, and leads to another.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn start(at: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(at).await?;
        let address = listener.local_addr()?;
        let (silent, cuts) = (watch::Sender::new(false), watch::Sender::new(0));
        let (count, connections) = watch::channel(0);
        let mut tasks = JoinSet::new();
        let (mut is_silent, all_cuts) = (silent.subscribe(), cuts.subscribe());
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                if is_silent.wait_for(|silent| !silent).await.is_err() {
                    return;
                }
                let Ok((near, _)) = listener.accept().await else { return };
                count.send_modify(|count| *count += 1);
                while open.try_join_next().is_some() {}
                let (is_silent, mut cuts) = (is_silent.clone(), all_cuts.clone());
                cuts.mark_unchanged();
                open.spawn(carry(near, to, is_silent, cuts));
            }
        });
        Ok(Self { address, silent, cuts, connections, tasks })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> u64 {
        *self.connections.borrow()
    }

    /// Waits until there has been another connection.
    pub(crate) fn next_connection(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut connections = self.connections.clone();
        let before = *connections.borrow();
        async move {
            // It is gone with the relay, and then nobody waits.
            let _count = connections.wait_for(|count| *count > before).await;
        }
    }

    /// Lets nothing through any more, or again.
    pub(crate) fn silence(&self, is_silent: bool) {
        self.silent.send_replace(is_silent);
    }

    /// Resets all connections.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Resets all connections, and takes no others.
    pub(crate) async fn close(mut self) {
        self.cut();
        self.tasks.shutdown().await;
    }
}

async fn carry(mut near: TcpStream, to: SocketAddr, silent: watch::Receiver<bool>, mut cuts: watch::Receiver<u32>) {
    let Ok(mut far) = TcpStream::connect(to).await else { return };
    for stream in [&near, &far] {
        // It is quicker with it, and that is all.
        let _outcome = stream.set_nodelay(true);
    }
    {
        let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
        let both =
            async { tokio::join!(pass(near_read, far_write, silent.clone()), pass(far_read, near_write, silent)) };
        tokio::select! {
            biased;
            _ = cuts.changed() => {}
            _ = both => return,
        }
    }
    for stream in [&near, &far] {
        // Without it the connection ends more gently than it is to.
        let _outcome = stream.set_zero_linger();
    }
}

/// Passes bytes on until their end, or until nobody wants them.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut silent: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        let len = from.read(&mut buffer).await?;
        if silent.wait_for(|silent| !silent).await.is_err() {
            return Ok(());
        }
        if len == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..len]).await?;
    }
}
