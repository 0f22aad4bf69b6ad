//! The manager's end of the control socket.

use std::{fs::File, io, path::Path, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    ControlError, Handler, MAX_REQUEST_LEN, Request,
    directory::{SOCKET, is_peer, socket_path, take},
    wire,
};
use crate::{
    secret::Secret,
    util::folder::{Folder, Place, own_uid},
};

/// Most connections at once; one more waits. It keeps a program gone wild from taking all file descriptors.
const MAX_CONNECTIONS: usize = 64;

/// Time for a client to send its next request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a client to take a line of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after the system refuses a connection, most likely for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The manager's end: holds the lock and listens. Dropping it removes the socket and gives up the lock.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    folder: Folder,
    socket: Place,
    uid: u32,
    /// Locked until it is closed.
    _lock: File,
}

impl Server {
    /// Takes possession of a directory, which is made if it is missing, and listens in it. What a manager
    /// that was killed has left there is replaced.
    ///
    /// Has to be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ControlError::Running`] if another manager has it, [`ControlError::NotPrivate`] if others could get
    /// at it, [`ControlError::PathTooLong`], [`ControlError::Directory`].
    pub fn bind(dir: &Path) -> Result<Self, ControlError> {
        let path = socket_path(dir)?;
        let failed = |source| ControlError::Directory { dir: dir.to_owned(), source };
        let (folder, lock) = take(dir)?;
        let socket = folder.place(SOCKET);
        match socket.remove() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        // It has to be bound by its path. That it has then appeared in the folder that is open shows that this was the
        // path to it; a socket elsewhere would be of no use to anybody, as clients look for it in the same way.
        let listener = UnixListener::bind(&path).map_err(failed)?;
        socket.close_socket_to_others().map_err(failed)?;
        Ok(Self { listener, folder, socket, uid: own_uid(), _lock: lock })
    }

    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Answers requests until `stop`. Requests that are being answered then are dropped.
    pub async fn serve(&self, handler: Arc<dyn Handler>, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a connection to the control socket panicked");
                    }
                }
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) if is_peer(&stream, self.uid) => {
                        connections.spawn(converse(stream, Arc::clone(&handler)));
                    }
                    Ok(_) => tracing::warn!("refused a process of another user at the control socket"),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection to the control socket");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        connections.shutdown().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The lock file stays: were it removed, two managers could each hold the lock of a file of this name.
        if let Err(error) = self.socket.remove() {
            tracing::debug!(%error, "cannot remove the control socket");
        }
    }
}

/// Answers one client, request by request.
async fn converse(stream: UnixStream, handler: Arc<dyn Handler>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let line = match timeout(REQUEST_TIMEOUT, read_line(&mut reader)).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a client of the control socket is gone");
                return;
            }
        };
        let answered = match wire::decode_request(&line) {
            Ok(request) => answer(request, &*handler, &mut reader, &mut writer).await,
            Err(refusal) => write(&mut writer, &wire::encode_refusal(&refusal)).await,
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "a client of the control socket did not get its answer");
            return;
        }
    }
}

/// Writes the lines of an answer, as they come.
async fn answer(
    request: Request,
    handler: &dyn Handler,
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
) -> io::Result<()> {
    // There may be nothing to write for hours by which to notice that nobody listens any more. Others may end
    // their side after the request and still want the answer.
    let goes_on = match request {
        Request::Status { follow } => follow,
        Request::Doctor { .. } | Request::Stop => true,
        Request::Token(_) | Request::Reload => false,
    };
    let mut lines = handler.answer(request);
    loop {
        let line = tokio::select! {
            biased;
            line = lines.next() => line,
            ended = reader.fill_buf(), if goes_on => match ended?.is_empty() {
                true => return Err(io::ErrorKind::UnexpectedEof.into()),
                // It has asked for something else.
                false => return Ok(()),
            },
        };
        match line {
            Some(Ok(answer)) => write(writer, &wire::encode_answer(&answer)).await?,
            Some(Err(refusal)) => write(writer, &wire::encode_refusal(&refusal)).await?,
            None => return Ok(()),
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, line: &Secret<String>) -> io::Result<()> {
    match timeout(WRITE_TIMEOUT, writer.write_all(line.expose().as_bytes())).await {
        Ok(written) => written,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Reads a request; `None` at the end of the stream.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<String>> {
    let mut line = String::new();
    reader.take(MAX_REQUEST_LEN).read_line(&mut line).await?;
    match line.len() as u64 {
        0 => Ok(None),
        _ if line.ends_with('\n') => Ok(Some(line)),
        MAX_REQUEST_LEN => Err(io::Error::other("a request is too long")),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
