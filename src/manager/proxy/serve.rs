//! A proxy that reaches the API servers and other hosts behind the tunnels by their real names, for programs that know no others.
//!
//! Such a program asks for `host:port`, by CONNECT or SOCKS5, and the proxy joins the connection to the local port of the tunnel
//! that leads there. TLS stays end to end.
//!
//! Invariants:
//!
//! * Unless other names are wanted, nothing is dialled but ports on 127.0.0.1, and of those only what the [`Names`] have for the
//!   very endpoint that was asked for. No name is ever looked up.
//! * A page in a browser cannot use the proxy, whatever name its host has resolved to: a page can neither make its browser send
//!   CONNECT nor SOCKS nor a request for a whole URL, and what it can send is for the proxy itself, which answers with an error.
//! * What a client can cost is bounded: its head in bytes and in time, and the number of connections.
//! * The end of one direction is passed on and the other goes on; a reset is passed on as a reset.
//!
//! Leaves out authentication: who gets through is the listeners' matter, as for the tunnels' own ports.
//!
//! [`Names`]: super::names::Names

use std::{io, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    opening::{Form, MAX_HEAD_LEN, Opening, Step},
    plain,
    refusal::Refusal,
    ways::{Counted, LOCAL_LIMIT, Server, Ways},
};
use crate::{cluster::Destination, tunnel::Listeners};

#[cfg(test)]
mod tests;

/// Time for the whole head: a client that sends a byte now and then holds a place for no longer than this.
pub(super) const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// Connections at a time: a client that leaks them takes no more descriptors than this, two each. As many as one tunnel takes.
const MAX_CONNECTIONS: usize = 1024;

/// Bytes that are copied at once, each way. One message of a tunnel has 1 KiB, one record of TLS at most 16.
const COPY_LEN: usize = 16 << 10;

/// Serves until it is told to stop; then every connection is closed.
pub(super) async fn serve(listeners: Listeners, ways: Ways, stop: CancellationToken) {
    serve_up_to(MAX_CONNECTIONS, listeners, ways, stop).await;
}

async fn serve_up_to(max_connections: usize, mut listeners: Listeners, ways: Ways, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection of the proxy has failed");
                }
            }
            client = listeners.accept_tcp() => {
                if connections.len() >= max_connections {
                    turn_away(client, &Refusal::TooMany { limit: max_connections });
                    ways.counts.note_refused();
                    continue;
                }
                let (ways, stop) = (ways.clone().of(&client), stop.clone());
                connections.spawn(async move {
                    let _counted = Counted::new(&ways.counts);
                    let connection = Box::pin(handle(client, &ways));
                    // Dropping it closes both of its sockets.
                    if stop.run_until_cancelled(connection).await.is_none() {
                        debug!("a connection of the proxy was closed by the stop");
                    }
                });
            }
        }
    }
    drop(listeners);
    while connections.join_next().await.is_some() {}
}

/// Answers without waiting for anything.
fn turn_away(client: TcpStream, refusal: &Refusal) {
    debug!(%refusal, "the proxy rejected a client");
    let answer = refusal.answer(Form::Http).unwrap_or_default();
    // Into an empty buffer the answer fits; a client that is gone by now needs none.
    let _outcome = client.into_std().and_then(|mut client| io::Write::write(&mut client, &answer));
}

async fn handle(mut client: TcpStream, ways: &Ways) {
    let (mut opening, mut buffer) = (Opening::default(), BytesMut::with_capacity(1 << 10));
    let opened = timeout(HEAD_LIMIT, open(&mut client, &mut opening, &mut buffer)).await;
    let outcome = match opened.unwrap_or(Err(Refusal::Late { seconds: HEAD_LIMIT.as_secs() })) {
        Ok(Wanted::Plain) => return plain::serve(client, buffer.freeze(), ways).await,
        Ok(Wanted::Connection(to)) => ways.connect(to).await,
        Err(refusal) => Err(refusal),
    };
    match outcome {
        Ok(server) => {
            if let Err(error) = join(&mut client, server, opening.form(), &buffer).await {
                debug!(%error, "a connection through the proxy has broken");
                // Without lingering, closing sends RST: what was lost must not look like an end.
                let _outcome = client.set_zero_linger();
            }
        }
        Err(refusal) => {
            // A client of SOCKS is told a number only.
            tracing::info!(%refusal, "the proxy refused a request");
            ways.counts.note_refused();
            if let Some(answer) = refusal.answer(opening.form()) {
                // A client that does not take the answer has to do without.
                let _outcome = timeout(LOCAL_LIMIT, end_with(&mut client, &answer)).await;
            }
        }
    }
}

/// What a client wants.
enum Wanted {
    Connection(Destination),
    /// Requests of plain HTTP, the first of which is in the buffer.
    Plain,
}

/// Goes through a client's opening. What it has sent ahead is in the buffer then.
async fn open(client: &mut TcpStream, opening: &mut Opening, buffer: &mut BytesMut) -> Result<Wanted, Refusal> {
    loop {
        match opening.handle(buffer)? {
            Step::Wait => {
                if client.read_buf(buffer).await.map_err(|_| Refusal::Gone)? == 0 {
                    return Err(Refusal::Gone);
                }
            }
            Step::Say(bytes) => client.write_all(&bytes).await.map_err(|_| Refusal::Gone)?,
            Step::Connect(to) => return Ok(Wanted::Connection(to)),
            Step::Plain => return Ok(Wanted::Plain),
        }
    }
}

/// Tells the client that it is through, and copies until both directions have ended.
async fn join(client: &mut TcpStream, server: Server, form: Form, early: &[u8]) -> io::Result<()> {
    client.write_all(form.granted()).await?;
    match server {
        Server::Tunnel(mut server) => {
            let outcome = copy(client, &mut server, early).await;
            if outcome.is_err() {
                server.set_zero_linger()?;
            }
            outcome
        }
        Server::Elsewhere(mut server) => copy(client, &mut server, early).await,
    }
}

async fn copy(
    client: &mut TcpStream,
    server: &mut (impl AsyncRead + AsyncWrite + Unpin),
    early: &[u8],
) -> io::Result<()> {
    server.write_all(early).await?;
    server.flush().await?;
    copy_bidirectional_with_sizes(client, server, COPY_LEN, COPY_LEN).await?;
    Ok(())
}

/// Writes an answer so that it arrives: a socket that is closed with something unread resets the connection.
async fn end_with(client: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
    client.write_all(answer).await?;
    client.shutdown().await?;
    let mut rest = [0; 1 << 10];
    let mut left = MAX_HEAD_LEN;
    while left > 0 {
        match client.read(&mut rest).await? {
            0 => break,
            len => left = left.saturating_sub(len),
        }
    }
    Ok(())
}
