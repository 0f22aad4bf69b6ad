//! One SSH connection. Nobody else here knows the library that speaks the protocol.
//!
//! Invariants: no key of a server is taken that a [`Judge`] has not taken, and after a rekey it is the same one; a channel
//! that is read by nobody stops all of them, so that whoever opens one reads it to its end or closes it.
//!
//! Leaves out where connections come from, which keys are known, and what channels carry.

use std::{fmt, io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use russh::{
    AlgorithmKind, Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf, Limits, Names,
    Preferred, SshId, cipher,
    client::{self, DisconnectReason, Handle, Msg},
    keys::{
        Algorithm, Certificate, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate,
        agent::{AgentIdentity, client::AgentClient},
        ssh_key::private::{Ed25519Keypair, KeypairData},
    },
};
use tokio::{io::BufReader, sync::watch};
use tracing::debug;

use super::host_keys::{HostCertificate, HostKey, Shown};
use crate::{
    fault::BoxError,
    util::{connection::Connection, peer_text::PeerText},
};

/// What the protocol is spoken with.
const CLIENT_ID: &str = concat!("SSH-2.0-autoheal-pa_", env!("CARGO_PKG_VERSION"));

/// Kinds of host keys, the best first. SHA-1 is not among them, and neither is RSA: the only code for it has
/// RUSTSEC-2023-0071.
pub(super) const KEY_KINDS: [&str; 4] =
    ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"];

/// Ciphers, the quickest first: most processors help with AES.
const CIPHERS: &[cipher::Name] =
    &[cipher::AES_256_GCM, cipher::CHACHA20_POLY1305, cipher::AES_256_CTR, cipher::AES_192_CTR, cipher::AES_128_CTR];

/// How often nothing may come back before a connection is lost.
const MISSED_KEEPALIVES: usize = 3;

/// Keys of an agent that are offered. Servers close a connection after six by default; `MaxAuthTries` of sshd_config(5).
const MAX_OFFERED: usize = 5;

/// Bytes that are read ahead. The library asks for the length of a message and then for the message: small ones come with their
/// lengths, several at once, and most of a large one goes where it is wanted.
const READ_AHEAD: usize = 16 << 10;

/// Most bytes in a message of a channel that is asked for: as many as the library takes. OpenSSH's server sends 32 KiB to its
/// own client, and more to whoever asks for it.
const MAX_MESSAGE: u32 = u16::MAX as u32;

/// Bytes that a server may send through a channel before it hears that half of them have been read off the connection. It bounds
/// nothing here, as the library says so on receipt: what is [not taken](super::untaken) is bounded by the tunnel's budget. Less
/// holds up a server while this program waits for a processor, or for a far one to answer.
const WINDOW: u32 = 16 << 20;

/// Messages of a channel that wait for their connection: 3.2 MB at most, beside the tunnel's budget.
const CHANNEL_QUEUE: usize = 50;

/// Longest time between two exchanges of keys.
const REKEY_EVERY: Duration = Duration::from_secs(3600);

/// Settings of a connection.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// How long nothing may come before the other end is asked whether it is there.
    pub(super) keepalive: Duration,
    /// Bytes after which keys are exchanged anew.
    pub(super) rekey_after: usize,
    /// Kinds of keys to ask for, the best first.
    pub(super) kinds: Vec<&'static str>,
    /// Certificates of hosts are of use.
    pub(super) certificates: bool,
    /// The time since the Unix epoch, by which certificates are valid.
    pub(super) wall: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keepalive: Duration::from_secs(15),
            rekey_after: 1 << 30,
            kinds: KEY_KINDS.to_vec(),
            certificates: false,
            wall: Duration::ZERO,
        }
    }
}

impl Options {
    fn config(&self) -> client::Config {
        let kinds: Vec<Algorithm> = self.kinds.iter().filter_map(|kind| Algorithm::new(kind).ok()).collect();
        let certified = if self.certificates { kinds.clone() } else { Vec::new() };
        client::Config {
            client_id: SshId::Standard(CLIENT_ID.into()),
            limits: Limits::new(self.rekey_after, self.rekey_after, REKEY_EVERY),
            preferred: Preferred {
                key: kinds.into(),
                host_key_certificates: certified.into(),
                cipher: CIPHERS.into(),
                ..Preferred::default()
            },
            keepalive_interval: Some(self.keepalive),
            keepalive_max: MISSED_KEEPALIVES,
            maximum_packet_size: MAX_MESSAGE,
            window_size: WINDOW,
            channel_buffer_size: CHANNEL_QUEUE,
            nodelay: true,
            ..client::Config::default()
        }
    }
}

/// Decides whether the key that a server shows is its own.
pub(super) trait Judge: Send + 'static {
    /// # Errors
    /// Why it is not taken.
    fn judge(&mut self, shown: Shown) -> BoxFuture<'_, Result<(), BoxError>>;
}

/// What goes wrong with a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The judge has said no.
    #[error("the host key is not taken")]
    HostKey(#[source] BoxError),
    /// The server has no key of the kinds that were asked for.
    #[error("the server has no host key of a kind that is taken here: it has {theirs}")]
    NoHostKey { theirs: PeerText },
    /// There is nothing else that both know.
    #[error("the server and this program have no algorithm in common for {kind}: it knows {theirs}")]
    NoCommon { kind: String, theirs: PeerText },
    #[error("what answers does not speak SSH")]
    NotSsh,
    /// The server has ended the connection, with words.
    #[error("the server has ended the connection: {words}")]
    Ended { words: PeerText },
    #[error("the connection was closed")]
    Closed,
    /// The server does not answer.
    #[error("the server does not answer")]
    Silent,
    #[error(transparent)]
    Io(io::Error),
    /// Anything else that the library finds wrong.
    #[error("the connection has broken")]
    Broken(#[source] russh::Error),
}

impl From<russh::Error> for ClientError {
    fn from(error: russh::Error) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "all others mean that the protocol was broken")]
        match error {
            russh::Error::NoCommonAlgo { kind: AlgorithmKind::Key, theirs, .. } => {
                Self::NoHostKey { theirs: PeerText::new(&theirs.join(", ")) }
            }
            russh::Error::NoCommonAlgo { kind, theirs, .. } => {
                Self::NoCommon { kind: format!("{kind:?}").to_lowercase(), theirs: PeerText::new(&theirs.join(", ")) }
            }
            russh::Error::Version => Self::NotSsh,
            russh::Error::KeepaliveTimeout | russh::Error::InactivityTimeout => Self::Silent,
            russh::Error::Disconnect | russh::Error::HUP | russh::Error::SendError | russh::Error::RecvError => {
                Self::Closed
            }
            russh::Error::IO(error) if error.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            russh::Error::IO(error) => Self::Io(error),
            error => Self::Broken(error),
        }
    }
}

/// Why nobody is let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoginError {
    /// The server takes none of the keys.
    #[error("the server does not let `{user}` in with {keys}")]
    Refused { user: String, keys: String },
    #[error("there is no SSH agent at `{}`", path.display())]
    NoAgent {
        path: std::path::PathBuf,
        #[source]
        source: BoxError,
    },
    /// The agent has nothing that can be used.
    #[error("the SSH agent has no Ed25519 or ECDSA key, of {count}")]
    NoKey { count: usize },
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// A key pair that is in memory only.
#[derive(Clone)]
pub(super) struct OwnKey(Arc<PrivateKey>);

impl fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnKey")
    }
}

impl OwnKey {
    /// Makes a new one.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn new() -> Result<Self, BoxError> {
        let mut seed = zeroize::Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut *seed).map_err(|_| "there are no random numbers")?;
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
        Ok(Self(Arc::new(PrivateKey::new(pair, "")?)))
    }

    /// Returns the public half, as a line of its kind and its base64.
    pub(super) fn public(&self) -> Result<String, BoxError> {
        Ok(self.0.public_key().to_openssh()?.trim().to_owned())
    }
}

/// A connection whose server is known, before anybody has been let in.
pub(super) struct Stranger {
    handle: Handle<Handler>,
    end: watch::Receiver<Option<Arc<ClientError>>>,
}

impl fmt::Debug for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stranger")
    }
}

impl Stranger {
    /// Exchanges keys with the server at the other end of a stream.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(super) async fn connect(
        stream: Box<dyn Connection>,
        options: Options,
        judge: Box<dyn Judge>,
    ) -> Result<Self, ClientError> {
        let (ended, end) = watch::channel(None);
        let handler = Handler { judge, taken: None, wall: options.wall, ended };
        let stream = BufReader::with_capacity(READ_AHEAD, stream);
        let handle = client::connect_stream(Arc::new(options.config()), stream, handler).await?;
        Ok(Self { handle, end })
    }

    /// Comes in with a key of our own.
    ///
    /// # Errors
    /// See [`LoginError`].
    pub(super) async fn log_in(mut self, user: &str, key: &OwnKey) -> Result<Client, LoginError> {
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&key.0), None);
        let answer = self.handle.authenticate_publickey(user, key).await.map_err(ClientError::from)?;
        self.finish(user, answer.success(), "the key of this program")
    }

    /// Comes in with one of the keys of an agent.
    ///
    /// # Errors
    /// See [`LoginError`].
    pub(super) async fn log_in_with_agent(mut self, user: &str, socket: &Path) -> Result<Client, LoginError> {
        let no_agent = |source: BoxError| LoginError::NoAgent { path: socket.to_owned(), source };
        let mut agent = AgentClient::connect_uds(socket).await.map_err(|error| no_agent(error.into()))?;
        let known = agent.request_identities().await.map_err(|error| no_agent(error.into()))?;
        let count = known.len();
        let keys: Vec<PublicKey> = known.into_iter().filter_map(usable).take(MAX_OFFERED).collect();
        if keys.is_empty() {
            return Err(LoginError::NoKey { count });
        }
        let offered = keys.len();
        for key in keys {
            let answer = self.handle.authenticate_publickey_with(user, key, None, &mut agent).await;
            let is_in = match answer {
                Ok(answer) => answer.success(),
                Err(error) => {
                    debug!(%error, "the agent does not sign");
                    false
                }
            };
            if is_in || self.handle.is_closed() {
                return self.finish(user, is_in, "the keys of the SSH agent");
            }
        }
        self.finish(user, false, &format!("any of {offered} keys of the SSH agent"))
    }

    fn finish(self, user: &str, is_in: bool, keys: &str) -> Result<Client, LoginError> {
        let Self { handle, end } = self;
        if is_in {
            return Ok(Client { handle, end });
        }
        if handle.is_closed() {
            let error = Arc::into_inner(end.borrow().clone().unwrap_or_else(|| Arc::new(ClientError::Closed)));
            return Err(LoginError::Client(error.unwrap_or(ClientError::Closed)));
        }
        Err(LoginError::Refused { user: user.to_owned(), keys: keys.to_owned() })
    }
}

fn usable(identity: AgentIdentity) -> Option<PublicKey> {
    match identity {
        AgentIdentity::PublicKey { key, .. } => KEY_KINDS.contains(&key.algorithm().as_str()).then_some(key),
        AgentIdentity::Certificate { .. } => None,
    }
}

/// A connection that opens channels.
pub(super) struct Client {
    handle: Handle<Handler>,
    end: watch::Receiver<Option<Arc<ClientError>>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("open", &self.is_open()).finish()
    }
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The server could not connect to the destination, or not resolve its name.
    #[error("the server could not connect to the destination")]
    Refused,
    /// The server does not forward, or not to this destination.
    #[error("the server does not allow to forward there")]
    Prohibited,
    #[error("the server has no room for another connection")]
    Short,
    #[error("the connection is lost")]
    Lost,
}

impl Client {
    pub(super) fn is_open(&self) -> bool {
        !self.handle.is_closed()
    }

    /// Waits for the end of the connection, and returns why it is over.
    pub(super) async fn ended(&self) -> Arc<ClientError> {
        let mut end = self.end.clone();
        let end = end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        end.unwrap_or_else(|| Arc::new(ClientError::Closed))
    }

    /// Has the server connect to a host and a port, as it sees them.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(super) async fn open(&self, host: &str, port: u16) -> Result<(Receiving, Sending), OpenError> {
        let (read, write) = self.channel(host, port).await?.split();
        Ok((Receiving(read), Sending(write)))
    }

    /// The same as one stream, which its owner has to read to its end, see the module's documentation.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(super) async fn stream(&self, host: &str, port: u16) -> Result<Box<dyn Connection>, OpenError> {
        Ok(Box::new(self.channel(host, port).await?.into_stream()))
    }

    async fn channel(&self, host: &str, port: u16) -> Result<Channel<Msg>, OpenError> {
        let opened = self.handle.channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0).await;
        match opened {
            Ok(channel) => Ok(channel),
            Err(russh::Error::ChannelOpenFailure(why)) => Err(match why {
                ChannelOpenFailure::ConnectFailed => OpenError::Refused,
                ChannelOpenFailure::AdministrativelyProhibited | ChannelOpenFailure::UnknownChannelType => {
                    OpenError::Prohibited
                }
                ChannelOpenFailure::ResourceShortage | ChannelOpenFailure::Other { .. } => OpenError::Short,
            }),
            Err(_) => Err(OpenError::Lost),
        }
    }
}

/// What comes through a channel.
#[derive(Debug)]
pub(super) enum Received {
    Data(Bytes),
    /// Nothing else comes.
    End,
    /// The channel is over, both ways.
    Closed,
}

/// What comes through a channel, in order.
pub(super) struct Receiving(ChannelReadHalf);

impl Receiving {
    /// Returns what has come next; `None`: the connection is lost.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn next(&mut self) -> Option<Received> {
        loop {
            #[expect(clippy::wildcard_enum_match_arm, reason = "all others mean nothing to a connection")]
            match self.0.wait().await? {
                ChannelMsg::Data { data } => return Some(Received::Data(data)),
                ChannelMsg::Eof => return Some(Received::End),
                ChannelMsg::Close => return Some(Received::Closed),
                _ => {}
            }
        }
    }

    /// Returns what has come already, as [`next`](Self::next) does; `None`: nothing has.
    pub(super) fn next_if_there(&mut self) -> Option<Option<Received>> {
        self.next().now_or_never()
    }
}

/// What goes through a channel.
pub(super) struct Sending(ChannelWriteHalf<Msg>);

impl Sending {
    /// Sends bytes, as the other end has room for them. Where the connection is lost this may never end, see
    /// [`Receiving::next`].
    pub(super) async fn send(&self, data: Bytes) -> Result<(), ClientError> {
        Ok(self.0.data_bytes(data).await?)
    }

    /// Says that nothing else comes.
    pub(super) async fn finish(&self) {
        // A connection that is lost does not need it.
        let _outcome = self.0.eof().await;
    }

    /// Closes the channel, both ways.
    pub(super) async fn close(&self) {
        let _outcome = self.0.close().await;
    }
}

/// What the library asks and tells.
struct Handler {
    judge: Box<dyn Judge>,
    /// The key that was taken.
    taken: Option<HostKey>,
    wall: Duration,
    ended: watch::Sender<Option<Arc<ClientError>>>,
}

impl client::Handler for Handler {
    type Error = ClientError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, ClientError> {
        let shown = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => Shown { key: host_key(key)?, certificate: None },
            PublicKeyOrCertificate::Certificate(certificate) => certified(certificate, self.wall)?,
        };
        if let Some(taken) = &self.taken {
            return Ok(*taken == shown.key);
        }
        let key = shown.key.clone();
        self.judge.judge(shown).await.map_err(ClientError::HostKey)?;
        self.taken = Some(key);
        Ok(true)
    }

    async fn kex_done(
        &mut self,
        _secret: Option<&[u8]>,
        names: &Names,
        _session: &mut client::Session,
    ) -> Result<(), ClientError> {
        let (exchange, cipher) = (names.kex.as_ref(), names.cipher.as_ref());
        debug!(exchange, cipher, "exchanged keys with the server");
        Ok(())
    }

    async fn channel_open_failure(
        &mut self,
        _channel: russh::ChannelId,
        reason: ChannelOpenFailure,
        description: &str,
        _language: &str,
        _session: &mut client::Session,
    ) -> Result<(), ClientError> {
        debug!(?reason, description = %PeerText::new(description), "the server opens no channel");
        Ok(())
    }

    async fn auth_banner(&mut self, banner: &str, _session: &mut client::Session) -> Result<(), ClientError> {
        debug!(banner = %PeerText::new(banner), "the server greets");
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<ClientError>) -> Result<(), ClientError> {
        let error = match reason {
            DisconnectReason::ReceivedDisconnect(info) => ClientError::Ended { words: PeerText::new(&info.message) },
            DisconnectReason::Error(error) => error,
        };
        debug!(%error, "the connection has ended");
        self.ended.send_replace(Some(Arc::new(error)));
        Ok(())
    }
}

fn host_key(key: &PublicKey) -> Result<HostKey, ClientError> {
    let blob = key.to_bytes().map_err(|error| ClientError::Broken(russh::Error::SshKey(error)))?;
    Ok(HostKey { kind: key.algorithm().as_str().to_owned(), blob })
}

/// Reads a certificate, and checks all of it but whether its authority is known.
fn certified(certificate: &Certificate, wall: Duration) -> Result<Shown, ClientError> {
    let key = host_key(&PublicKey::from(certificate.public_key().clone()))?;
    let authority = host_key(&PublicKey::from(certificate.signature_key().clone()))?;
    let is_signed =
        certificate.validate_at(wall.as_secs(), [&certificate.signature_key().fingerprint(HashAlg::Sha256)]).is_ok();
    let is_valid = certificate.cert_type().is_host() && is_signed && certificate.critical_options().is_empty();
    let hosts = certificate.valid_principals().to_vec();
    Ok(Shown { key, certificate: Some(HostCertificate { authority, hosts, is_valid }) })
}

#[cfg(test)]
mod tests;
