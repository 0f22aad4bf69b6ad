//! A real server for tests, and what they ask of it.

#![cfg(feature = "demo")]

use std::io::Write;

use futures_util::future::BoxFuture;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{
    client::{Client, Judge, Options, OwnKey, Stranger},
    host_keys::Shown,
};
use crate::{
    aws::testing::in_time,
    emulator::{Sshd, SshdConfig},
    fault::BoxError,
    util::connection::Connection,
};

/// OpenSSH's server, if there is one. In the gate there has to be.
#[expect(clippy::disallowed_methods, reason = "programs are found by it, and the gate asks for this one by a variable")]
pub(super) fn sshd(config: SshdConfig) -> Option<Sshd> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = Sshd::find(std::env::split_paths(&path));
    let required = std::env::var_os("AUTOHEAL_PA_TEST_REQUIRES_SSHD").is_some();
    assert!(found.is_some() || !required, "sshd is not on the PATH");
    if found.is_none() {
        // Past the test runner, which keeps back what passing tests print.
        let _written = writeln!(std::io::stderr(), "SKIPPED: there is no sshd to connect to");
    }
    found.map(|program| Sshd::start(&program, config).unwrap())
}

/// Takes every key, or none.
#[derive(Debug)]
pub(super) struct Takes(pub(super) bool);

impl Judge for Takes {
    fn judge(&mut self, _shown: Shown) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(std::future::ready(if self.0 { Ok(()) } else { Err("never seen".into()) }))
    }
}

pub(super) async fn stream(sshd: &Sshd) -> Box<dyn Connection> {
    let stream = in_time(TcpStream::connect(sshd.address())).await.unwrap();
    stream.set_nodelay(true).unwrap();
    Box::new(stream)
}

/// Connects and comes in.
pub(super) async fn client(sshd: &Sshd, options: &Options) -> Client {
    let key = OwnKey::new().unwrap();
    sshd.admit(&key.public().unwrap()).unwrap();
    let stranger =
        in_time(Stranger::connect(stream(sshd).await, options.clone(), Box::new(Takes(true)))).await.unwrap();
    in_time(stranger.log_in(sshd.user(), &key)).await.unwrap()
}

/// A server that gives back what it gets, and then ends.
pub(super) async fn echo(tasks: &mut JoinSet<()>) -> u16 {
    serve(tasks, |mut stream| async move {
        let (mut read, mut write) = stream.split();
        // Whoever has gone does not need the rest.
        let _copied = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

/// A server that writes without end.
pub(super) async fn flood(tasks: &mut JoinSet<()>) -> u16 {
    serve(tasks, |mut stream| async move {
        let _copied = tokio::io::copy(&mut tokio::io::repeat(7), &mut stream).await;
    })
    .await
}

/// A server that writes without end on a connection that begins with `f`, and gives back what it gets on any other.
pub(super) async fn flood_or_echo(tasks: &mut JoinSet<()>) -> u16 {
    serve(tasks, |mut stream| async move {
        let mut first = [0];
        let is_flood = stream.peek(&mut first).await.is_ok() && first == *b"f";
        let (mut read, mut write) = stream.split();
        let _copied = match is_flood {
            true => tokio::io::copy(&mut tokio::io::repeat(7), &mut write).await,
            false => tokio::io::copy(&mut read, &mut write).await,
        };
    })
    .await
}

/// Serves each connection; returns the port.
async fn serve<F: Future<Output = ()> + Send + 'static>(
    tasks: &mut JoinSet<()>,
    each: impl Fn(TcpStream) -> F + Send + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(each(stream));
        }
    });
    port
}
