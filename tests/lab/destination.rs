//! What is behind the agents: one endpoint that is the API server for those who speak TLS, and serves files and
//! questions to the others.
//!
//! A request is a header of [`HEADER_LEN`] bytes and perhaps content; one connection carries any number of them, one
//! after the other. All content follows from a seed, so that either end can check every byte.

use std::{io, sync::Arc};

use autoheal_pa::emulator::{MemoryListener, Place};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

use super::workload::Ledger;

/// First byte of a TLS connection: a handshake record.
const TLS: u8 = 0x16;

/// Bytes of a header: what to do, for which activity, seed, length.
pub(crate) const HEADER_LEN: usize = 1 + 4 + 8 + 8;

/// Bytes that are read or made at once.
pub(crate) const CHUNK: usize = 32 << 10;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// So many bytes, please.
    Download,
    /// So many bytes follow; the answer says how many were right.
    Upload,
    /// So many bytes follow; the answer is as long.
    Question,
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) ask: Ask,
    pub(crate) activity: u32,
    pub(crate) seed: u64,
    pub(crate) len: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = match self.ask {
            Ask::Download => b'D',
            Ask::Upload => b'U',
            Ask::Question => b'Q',
        };
        bytes[1..5].copy_from_slice(&self.activity.to_be_bytes());
        bytes[5..13].copy_from_slice(&self.seed.to_be_bytes());
        bytes[13..21].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let ask = match bytes[0] {
            b'D' => Ask::Download,
            b'U' => Ask::Upload,
            b'Q' => Ask::Question,
            _ => return None,
        };
        Some(Self {
            ask,
            activity: u32::from_be_bytes(bytes[1..5].try_into().ok()?),
            seed: u64::from_be_bytes(bytes[5..13].try_into().ok()?),
            len: u64::from_be_bytes(bytes[13..21].try_into().ok()?),
        })
    }
}

/// Fills a buffer with the content of `seed` from `start` on.
pub(crate) fn content(seed: u64, start: u64, buffer: &mut [u8]) {
    let mut done = 0;
    while done < buffer.len() {
        let at = start + done as u64;
        // A round of SplitMix64 for each word, so that any part can be made by itself.
        let mut word = seed.wrapping_add((at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word ^= word >> 29;
        let skip = (at % 8) as usize;
        let len = (8 - skip).min(buffer.len() - done);
        buffer[done..done + len].copy_from_slice(&word.to_le_bytes()[skip..skip + len]);
        done += len;
    }
}

/// How many bytes are not the content of `seed` from `start` on.
pub(crate) fn wrong_bytes(seed: u64, start: u64, bytes: &[u8]) -> u64 {
    let mut expected = vec![0; bytes.len()];
    content(seed, start, &mut expected);
    if expected == bytes {
        return 0;
    }
    expected.iter().zip(bytes).filter(|(a, b)| a != b).count() as u64
}

/// The endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Grounds {
    api_server: Place,
    ledger: Arc<Ledger>,
}

impl Grounds {
    pub(crate) fn new(api_server: Place, ledger: Arc<Ledger>) -> Self {
        Self { api_server, ledger }
    }

    /// Serves until the listener's places are gone.
    pub(crate) async fn serve(self, mut listener: MemoryListener) {
        let mut connections = JoinSet::new();
        while let Some(wire) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            let grounds = self.clone();
            connections.spawn(async move {
                // A connection that ends early is the client's to complain of.
                let _outcome = grounds.connection(wire).await;
            });
        }
    }

    /// The same on a socket, until it is dropped.
    pub(crate) async fn serve_sockets(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            let grounds = self.clone();
            connections.spawn(async move {
                // As above.
                let _outcome = stream.set_nodelay(true);
                let _outcome = grounds.connection(stream).await;
            });
        }
    }

    async fn connection(&self, mut wire: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let mut header = [0; HEADER_LEN];
        loop {
            if wire.read(&mut header[..1]).await? == 0 {
                return Ok(());
            }
            if header[0] == TLS {
                let mut server = self.api_server.connect().await?;
                server.write_all(&header[..1]).await?;
                tokio::io::copy_bidirectional(&mut wire, &mut server).await?;
                return Ok(());
            }
            wire.read_exact(&mut header[1..]).await?;
            let header = Header::decode(&header).ok_or(io::ErrorKind::InvalidData)?;
            match header.ask {
                Ask::Download => send(&mut wire, header.seed, header.len).await?,
                Ask::Upload => {
                    let good = self.receive(&mut wire, &header).await?;
                    wire.write_all(&good.to_be_bytes()).await?;
                }
                Ask::Question => {
                    self.receive(&mut wire, &header).await?;
                    send(&mut wire, !header.seed, header.len).await?;
                }
            }
            wire.flush().await?;
        }
    }

    /// Reads content; returns how many bytes of it were right.
    async fn receive(&self, wire: &mut (impl AsyncRead + Unpin), header: &Header) -> io::Result<u64> {
        let (mut at, mut wrong) = (0, 0);
        let mut buffer = vec![0; CHUNK];
        while at < header.len {
            let len = usize::try_from(header.len - at).unwrap_or(CHUNK).min(CHUNK);
            let len = wire.read(&mut buffer[..len]).await?;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            wrong += self.ledger.check(header.activity, header.seed, at, &buffer[..len]);
            at += len as u64;
            if header.ask == Ask::Upload {
                self.ledger.arrived(header.activity, true);
            }
        }
        Ok(header.len - wrong)
    }
}

/// Writes content.
pub(crate) async fn send(wire: &mut (impl AsyncWrite + Unpin), seed: u64, len: u64) -> io::Result<()> {
    let mut at = 0;
    let mut buffer = vec![0; CHUNK];
    while at < len {
        let part = usize::try_from(len - at).unwrap_or(CHUNK).min(CHUNK);
        content(seed, at, &mut buffer[..part]);
        wire.write_all(&buffer[..part]).await?;
        at += part as u64;
    }
    Ok(())
}
