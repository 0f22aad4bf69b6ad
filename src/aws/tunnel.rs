//! Tunnels of EC2 Instance Connect Endpoints: a WebSocket that carries the bytes of one TCP connection to a private address.
//!
//! As awscli opens them, `customizations/ec2instanceconnect/`: the URL is signed anew for each, and bytes go in binary
//! messages of any length. Proxies and authorities are those of all other connections.

mod stream;

use std::time::{Duration, SystemTime};

use http::{HeaderMap, Uri, header};
use serde::Deserialize;
use tokio::time::timeout;
use tokio_tungstenite::{
    client_async_with_config,
    tungstenite::{self, client::IntoClientRequest, handshake::client::Response},
};

use self::stream::ByteStream;
use super::{Aws, connect::ConnectError, ec2::InstanceConnectEndpoint, endpoint::Gateway, error::AwsError, sign};
use crate::{
    fault::BoxError,
    util::{connection::Connection, peer_text::PeerText},
};

/// The longest that the service lets a tunnel be.
pub const MAX_TUNNEL_LIFE: Duration = Duration::from_secs(3600);

/// Limit of the connection and of the WebSocket upgrade, each.
const LIMIT: Duration = Duration::from_secs(15);

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error(transparent)]
    Aws(AwsError),
    /// The endpoint has no name, or one that is none of this region's. Nothing was sent there.
    #[error("`{host}` is not the name of an EC2 Instance Connect Endpoint of this region")]
    Foreign { host: PeerText },
    #[error("cannot reach `{host}`")]
    Unreachable {
        host: String,
        #[source]
        source: BoxError,
    },
    /// The endpoint has answered something else.
    #[error("`{host}` has refused the tunnel with status {status}{words}")]
    Refused {
        host: String,
        status: u16,
        /// What it says, with a colon before it, or nothing.
        words: PeerText,
    },
    #[error("`{host}` did not answer within {seconds} s")]
    Late { host: String, seconds: u64 },
}

/// The body of a refusal.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Refusal {
    error_code: String,
    message: String,
}

impl Aws {
    /// Opens a tunnel to a port of a private address.
    ///
    /// # Errors
    /// See [`TunnelError`].
    pub async fn open_tunnel(
        &self,
        endpoint: &InstanceConnectEndpoint,
        address: &str,
        port: u16,
    ) -> Result<Box<dyn Connection>, TunnelError> {
        let ec2 = &self.inner.ec2;
        let name = if ec2.uses_fips() { &endpoint.fips_dns_name } else { &endpoint.dns_name };
        let name = name.as_deref().unwrap_or_default();
        let gateway = self.gateway_policy().check_tunnel(name, ec2.endpoint_given().as_deref());
        let gateway = gateway.map_err(|foreign| TunnelError::Foreign { host: PeerText::new(&foreign.host) })?;
        let off = self.clock_off();
        match self.try_tunnel(&gateway, endpoint, address, port).await {
            // Its answer may have told by how much the clock is off.
            Err(TunnelError::Refused { status: 403, .. }) if self.clock_off() != off => {
                self.try_tunnel(&gateway, endpoint, address, port).await
            }
            Err(refused @ TunnelError::Refused { status: 403, .. }) => {
                self.note_refused_signature(&refused.to_string());
                Err(refused)
            }
            outcome => outcome,
        }
    }

    async fn try_tunnel(
        &self,
        gateway: &Gateway,
        endpoint: &InstanceConnectEndpoint,
        address: &str,
        port: u16,
    ) -> Result<Box<dyn Connection>, TunnelError> {
        let host = gateway.host().to_owned();
        let late = || TunnelError::Late { host: host.clone(), seconds: LIMIT.as_secs() };
        let unreachable = |source: BoxError| TunnelError::Unreachable { host: host.clone(), source };
        let connected = timeout(LIMIT, self.connector().connect(gateway)).await.map_err(|_| late())?;
        let connection = connected.map_err(|error: ConnectError| unreachable(error.into()))?;
        let credentials = self.credentials().await.map_err(TunnelError::Aws)?;
        // Signed last: a signature is good for a minute.
        let time = SystemTime::UNIX_EPOCH + self.offset().now();
        let tunnel = sign::Tunnel { endpoint: &endpoint.id, address, port, life: MAX_TUNNEL_LIFE };
        let url = sign::tunnel_url(gateway.authority(), &tunnel, self.region(), &credentials, time);
        let url = url.map_err(|source| TunnelError::Aws(AwsError::Signing { source: source.into() }))?;
        let uri: Uri = url.expose().parse().map_err(|error: http::uri::InvalidUri| unreachable(error.into()))?;
        let uri = with_scheme(uri, gateway.is_secure()).map_err(unreachable)?;
        let request = uri.into_client_request().map_err(|error| unreachable(error.into()))?;
        let sent = self.offset().wall();
        let upgrade = client_async_with_config(request, connection, Some(ByteStream::config()));
        match timeout(LIMIT, upgrade).await.map_err(|_| late())? {
            Ok((websocket, answer)) => {
                self.learn(answer.headers(), sent);
                Ok(Box::new(ByteStream::new(websocket)))
            }
            Err(tungstenite::Error::Http(answer)) => {
                self.learn(answer.headers(), sent);
                Err(refused(host, &answer))
            }
            Err(error) => Err(unreachable(error.into())),
        }
    }

    fn learn(&self, headers: &HeaderMap, sent: Duration) {
        if let Some(date) = headers.get(header::DATE).and_then(|date| date.to_str().ok()) {
            self.offset().learn(date, sent, self.offset().wall());
        }
    }
}

fn with_scheme(uri: Uri, is_secure: bool) -> Result<Uri, BoxError> {
    let mut parts = uri.into_parts();
    parts.scheme = Some(if is_secure { "wss" } else { "ws" }.parse()?);
    Ok(Uri::from_parts(parts)?)
}

fn refused(host: String, answer: &Response) -> TunnelError {
    let status = answer.status().as_u16();
    let body = answer.body().as_deref().unwrap_or_default();
    let words = match serde_json::from_slice(body) {
        Ok(Refusal { error_code, message }) if !error_code.is_empty() || !message.is_empty() => {
            format!(": {error_code}: {message}")
        }
        _ if body.is_empty() => String::new(),
        _ => format!(": {}", PeerText::from_bytes(body)),
    };
    let id = answer.headers().get("x-amzn-requestid").and_then(|id| id.to_str().ok());
    let words = words + &id.map(|id| format!(" (request {id})")).unwrap_or_default();
    tracing::debug!(host, status, words = %PeerText::new(&words), "the endpoint refuses a tunnel");
    TunnelError::Refused { host, status, words: PeerText::new(&words) }
}
