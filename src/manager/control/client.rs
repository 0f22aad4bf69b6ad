//! The end of the control socket that asks.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

use super::{
    Answer, ControlError, MAX_ANSWER_LEN, Request, TokenAnswer, TokenRequest,
    directory::{holder, is_peer, open, socket_path},
    wire,
};
use crate::{
    secret::Secret,
    util::folder::{Missing, own_uid},
};

/// Time for a manager to say anything at all: longer than it takes on a busy machine, and short for somebody who waits to
/// learn that it hangs.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A connection to a running manager.
#[derive(Debug)]
pub struct Client {
    dir: PathBuf,
    stream: BufReader<UnixStream>,
    /// The beginning of an answer. It may be one with a token.
    begun: Secret<Vec<u8>>,
}

impl Client {
    /// Connects to the manager whose directory this is.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`] if nobody listens there, [`ControlError::NotPrivate`], [`ControlError::OtherUser`],
    /// [`ControlError::Directory`], [`ControlError::Connection`], [`ControlError::PathTooLong`].
    pub async fn connect(dir: &Path) -> Result<Self, ControlError> {
        if open(dir, Missing::Fail)?.is_none() {
            return Err(ControlError::NotRunning { dir: dir.to_owned() });
        }
        // The folder may have been another one by its path, but not the process at the other end.
        let stream = UnixStream::connect(socket_path(dir)?).await.map_err(|source| failed(dir, source))?;
        if !is_peer(&stream, own_uid()) {
            return Err(ControlError::OtherUser { dir: dir.to_owned() });
        }
        Ok(Self { dir: dir.to_owned(), stream: BufReader::new(stream), begun: Secret::new(Vec::new()) })
    }

    /// Connects as [`connect`](Self::connect) does, and makes sure that the manager answers: one that is stopped or stuck is
    /// found by this, and not by waiting for what may take long.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); [`ControlError::Timeout`], [`ControlError::Refused`], [`ControlError::Malformed`].
    pub async fn connect_if_it_answers(dir: &Path) -> Result<Self, ControlError> {
        let connecting = async {
            let mut client = Self::connect(dir).await?;
            client.send(&Request::Status { follow: false }).await?;
            match client.next().await? {
                Some(_status) => Ok(client),
                None => Err(failed(dir, io::ErrorKind::UnexpectedEof.into())),
            }
        };
        match timeout(ANSWER_LIMIT, connecting).await {
            Ok(client) => client,
            Err(_) => Err(late(dir, ANSWER_LIMIT)),
        }
    }

    /// Returns the manager's process, as the system tells it of the other end of the socket.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.stream.get_ref().peer_cred().ok()?.pid()?.try_into().ok()
    }

    /// Sends a request.
    ///
    /// # Errors
    /// [`ControlError::Connection`], [`ControlError::NotRunning`].
    pub async fn send(&mut self, request: &Request) -> Result<(), ControlError> {
        let line = wire::encode_request(request);
        self.stream.write_all(line.as_bytes()).await.map_err(|source| failed(&self.dir, source))
    }

    /// Waits for the next answer; `None`: the manager has closed the connection.
    ///
    /// # Errors
    /// [`ControlError::Refused`] with the manager's words, [`ControlError::Connection`], [`ControlError::Malformed`],
    /// [`ControlError::OtherVersion`].
    ///
    /// # Cancel safety
    /// Nothing is lost: what has been read of an answer is kept.
    pub async fn next(&mut self) -> Result<Option<Answer>, ControlError> {
        let begun = self.begun.expose_mut();
        let left = MAX_ANSWER_LEN.saturating_sub(begun.len() as u64);
        match (&mut self.stream).take(left).read_until(b'\n', begun).await {
            // It has ended, or been killed.
            Ok(_) if begun.is_empty() => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Ok(_) => {}
            Err(source) => return Err(failed(&self.dir, source)),
        }
        let line = std::mem::replace(&mut self.begun, Secret::new(Vec::new()));
        match std::str::from_utf8(line.expose()) {
            Ok(text) if text.ends_with('\n') => wire::decode_answer(text, &self.dir).map(Some),
            Ok(text) if text.len() as u64 == MAX_ANSWER_LEN => {
                Err(failed(&self.dir, io::Error::other("an answer is too long")))
            }
            Ok(_) => Err(failed(&self.dir, io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(failed(&self.dir, io::Error::other(error))),
        }
    }
}

/// Asks the manager whose directory this is for one answer, within a deadline. One that is far away is kept for a manager
/// that answers other questions at once.
///
/// # Errors
/// [`ControlError::NotRunning`] if nobody listens there, [`ControlError::NotPrivate`], [`ControlError::OtherUser`],
/// [`ControlError::Directory`], [`ControlError::Timeout`], [`ControlError::Refused`] with the manager's words,
/// [`ControlError::Connection`], [`ControlError::Malformed`], [`ControlError::PathTooLong`].
pub async fn ask(dir: &Path, request: &Request, deadline: Duration) -> Result<Answer, ControlError> {
    let exchange = async {
        let mut client = match deadline > ANSWER_LIMIT {
            true => Client::connect_if_it_answers(dir).await?,
            false => Client::connect(dir).await?,
        };
        client.send(request).await?;
        let answer = client.next().await?;
        answer.ok_or_else(|| failed(dir, io::ErrorKind::UnexpectedEof.into()))
    };
    match timeout(deadline, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(late(dir, deadline)),
    }
}

/// Says that a manager has not answered, and which process it is as far as its directory tells.
pub fn late(dir: &Path, deadline: Duration) -> ControlError {
    let pid = holder(dir).ok().flatten().and_then(|holder| holder.pid);
    ControlError::Timeout { dir: dir.to_owned(), deadline, pid }
}

/// Asks the manager whose directory this is for a token, within a deadline.
///
/// # Errors
/// As [`ask`].
pub async fn request_token(
    dir: &Path,
    request: &TokenRequest,
    deadline: Duration,
) -> Result<TokenAnswer, ControlError> {
    match ask(dir, &Request::Token(request.clone()), deadline).await? {
        Answer::Token(answer) => Ok(answer),
        Answer::Status(_) | Answer::Reloaded(_) | Answer::Stopping | Answer::Finding(_) | Answer::Done => {
            Err(wire::unexpected())
        }
    }
}

fn failed(dir: &Path, source: io::Error) -> ControlError {
    let dir = dir.to_owned();
    if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        ControlError::NotRunning { dir }
    } else {
        ControlError::Connection { dir, source }
    }
}
