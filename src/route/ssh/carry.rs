//! One local connection on a channel of its own: bytes both ways, and both ends.
//!
//! Invariants: what comes through the channel is read while the link has [room](super::untaken); bytes are neither lost nor
//! reordered; a connection that ends well is shut down after its last byte and then read until the program closes it, so
//! that no reset overtakes that byte. The channel is closed in the end, whatever that is.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    client::{Received, Receiving, Sending},
    untaken::Seat,
};
use crate::route::{
    backlog::{Backlog, MAX_SLICES},
    near::Near,
};

/// Bytes read at once from a local program.
const READ_LEN: usize = 128 << 10;

/// Size of the blocks that local programs are read into, in bytes.
const READ_BLOCK: usize = 256 << 10;

/// Bytes that are collected before they are written to a local program, if as many have come.
const WRITE_LEN: usize = 256 << 10;

/// How long a program has for closing its side after the last byte has been written to it.
const LINGER: Duration = Duration::from_secs(5);

/// Carries a connection until both sides have ended, or `cut` says that it has to.
pub(super) async fn carry((receiving, sending): (Receiving, Sending), near: Near, seat: Seat, cut: CancellationToken) {
    let (mut read, mut write) = tokio::io::split(near);
    let ended = {
        let mut down = pin!(down(receiving, &mut write, &seat));
        let mut up = pin!(up(&mut read, &sending));
        let mut is_sent = false;
        loop {
            tokio::select! {
                biased;
                () = cut.cancelled() => break Err(io::ErrorKind::Interrupted.into()),
                ended = &mut down => break ended,
                sent = &mut up, if !is_sent => match sent {
                    Ok(()) => is_sent = true,
                    Err(error) => break Err(error),
                },
            }
        }
    };
    drop(seat);
    match ended {
        Ok(()) => {
            let _late = timeout(LINGER, discard(&mut read)).await;
            read.unsplit(write).finish();
        }
        Err(error) => {
            debug!(%error, "a connection was cut");
            drop(read.unsplit(write));
        }
    }
    sending.close().await;
}

/// Brings to the program what comes through the channel, until that is over.
async fn down(mut receiving: Receiving, write: &mut WriteHalf<Near>, seat: &Seat) -> io::Result<()> {
    let mut backlog = Backlog::default();
    // Nothing else comes; and then the channel is over.
    let (mut is_at_end, mut is_shut, mut is_closed) = (false, false, false);
    let mut next = None;
    loop {
        let mut has_room = seat.has_room();
        // What came together is written together.
        while let Some(received) = next.take() {
            match received {
                Some(Received::Data(data)) => {
                    seat.take(data.len());
                    backlog.push(data);
                }
                Some(Received::End) => is_at_end = true,
                Some(Received::Closed) => (is_at_end, is_closed) = (true, true),
                None => return Err(io::ErrorKind::ConnectionReset.into()),
            }
            has_room = seat.has_room();
            if has_room && !is_closed && backlog.len() < WRITE_LEN {
                next = receiving.next_if_there();
            }
        }
        if backlog.is_empty() {
            if is_at_end && !is_shut {
                write.shutdown().await?;
                is_shut = true;
            }
            if is_closed {
                return Ok(());
            }
        }
        tokio::select! {
            biased;
            written = write_some(write, &backlog), if !backlog.is_empty() => {
                let written = written?;
                backlog.advance(written);
                seat.give_back(written);
            }
            received = receiving.next(), if has_room && !is_closed => next = Some(received),
            () = seat.room(), if !has_room => {}
        }
    }
}

/// Writes some of what the program has not taken.
async fn write_some(write: &mut WriteHalf<Near>, backlog: &Backlog) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = backlog.slices(&mut slices);
        Pin::new(&mut *write).poll_write_vectored(cx, &slices[..count])
    })
    .await
    .and_then(|len| if len == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(len) })
}

/// Sends what the program writes, until it stops.
async fn up(read: &mut ReadHalf<Near>, sending: &Sending) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        if buffer.capacity() < READ_LEN {
            buffer.reserve(READ_BLOCK);
        }
        if read.read_buf(&mut bytes::BufMut::limit(&mut buffer, READ_LEN)).await? == 0 {
            sending.finish().await;
            return Ok(());
        }
        sending.send(buffer.split().freeze()).await.map_err(io::Error::other)?;
    }
}

/// Reads until the program closes.
async fn discard(read: &mut ReadHalf<Near>) {
    let mut buffer = [0; 4 << 10];
    while let Ok(1..) = read.read(&mut buffer).await {}
}
