//! An endpoint of EC2 Instance Connect: a WebSocket that carries what goes to the SSH server of an instance.

use std::{collections::BTreeMap, future::pending, net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
        protocol::CloseFrame,
    },
};

use super::super::{
    api::denial,
    journal::Event,
    sigv4::{Signed, claim_of_query, parse_query},
    vpc::private_address,
    world::{World, lock},
};

/// What is signed for.
const SERVICE: &str = "ec2-instance-connect";

const ACTION: &str = "ec2-instance-connect:OpenTunnel";

/// How long a client may take for its upgrade.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest validity of a signature, in seconds.
const MAX_EXPIRES: u64 = 60;

/// The ports that are let through, whatever a policy says.
const PORTS: [&str; 2] = ["22", "3389"];

/// The longest that a tunnel may be, in seconds.
const MAX_LIFE: u64 = 3600;

/// Bytes in one message.
const MESSAGE_LEN: usize = 64 << 10;

/// A tunnel that was let in.
struct Admitted {
    to: SocketAddr,
    /// How long it is to be.
    life: Duration,
}

/// Serves one connection to the endpoints.
pub(in super::super) async fn serve<S>(world: Arc<World>, connection: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut admitted = None;
    #[expect(clippy::result_large_err, reason = "the WebSocket library asks for this signature")]
    let callback = |request: &Request, mut response: Response| {
        world.clock.stamp(response.headers_mut());
        match admit(&world, request) {
            Ok(admission) => {
                admitted = Some(admission);
                Ok(response)
            }
            Err((status, code, message)) => Err(refusal(&world, status, code, &message)),
        }
    };
    let upgrade = timeout(OPENING_TIMEOUT, accept_hdr_async(connection, callback));
    let Ok(Ok(websocket)) = upgrade.await else { return };
    let Some(Admitted { to, life }) = admitted else { return };
    let opened = world.clock.instant();
    let Ok(server) = TcpStream::connect(to).await else {
        return close(websocket, 1011, "Unable to connect to target").await;
    };
    carry(websocket, server, lifetime(&world, opened, life)).await;
}

fn refusal(world: &World, status: u16, code: &str, message: &str) -> ErrorResponse {
    let reason = format!("{code}: {message}");
    world.journal.record(Event::UpgradeRefused { session: String::new(), status, reason });
    let mut response = ErrorResponse::new(Some(json!({ "ErrorCode": code, "Message": message }).to_string()));
    world.clock.stamp(response.headers_mut());
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::BAD_REQUEST);
    if let Ok(id) = uuid::Uuid::new_v4().to_string().parse() {
        response.headers_mut().insert("x-amzn-requestid", id);
    }
    response
}

/// Decides on a tunnel.
fn admit(world: &World, request: &Request) -> Result<Admitted, (u16, &'static str, String)> {
    let query = request.uri().query().unwrap_or_default();
    if request.uri().path() != "/openTunnel" {
        return Err((404, "NotFound", "no such path".to_owned()));
    }
    let given: BTreeMap<String, String> = parse_query(query).into_iter().collect();
    let value = |name: &str| given.get(name).map(String::as_str).unwrap_or_default();
    let signed = Signed {
        method: request.method().as_str(),
        path: request.uri().path(),
        query,
        headers: request.headers(),
        body: b"",
    };
    let wall = world.clock.wall();
    let caller = claim_of_query(query)
        .and_then(|claim| {
            claim.check_date(wall)?;
            lock(&world.credentials).verify_presigned(&claim, &signed, wall).map(|caller| (caller, claim))
        })
        .inspect_err(|error| world.journal.violation("", format!("signed a tunnel wrongly: {error}")));
    let (caller, claim) = caller.map_err(|error| (403, "AccessDenied", error.to_string()))?;
    let is_short = value("X-Amz-Expires").parse().is_ok_and(|seconds: u64| seconds <= MAX_EXPIRES);
    if claim.service != SERVICE || claim.signed_headers != ["host"] || !is_short {
        world.journal.violation("", "signed a tunnel for something else");
        return Err((403, "AccessDenied", "Invalid signature".to_owned()));
    }
    let id = value("instanceConnectEndpointId");
    let settings = world.settings();
    if settings.denied_actions.contains(ACTION) {
        let resource = format!("arn:aws:ec2:{}:{}:instance-connect-endpoint/{id}", claim.region, caller.account);
        return Err((403, "AccessDenied", denial(&caller.arn, ACTION, &resource)));
    }
    let invalid = |message: &str| (400, "InvalidParameter", message.to_owned());
    if !PORTS.contains(&value("remotePort")) {
        return Err(invalid(
            "The specified RemotePort is not valid. Specify either 22 or 3389 as the RemotePort and retry your request.",
        ));
    }
    let endpoint = world.connect_endpoints().into_iter().find(|endpoint| endpoint.id == id);
    let endpoint = endpoint.ok_or_else(|| invalid("The specified InstanceConnectEndpointId is not valid."))?;
    let life = match given.get("maxTunnelDuration") {
        None => MAX_LIFE,
        Some(text) => match text.parse() {
            Ok(life @ 1..=MAX_LIFE) => life,
            _ => return Err(invalid("The specified MaxTunnelDuration is not valid.")),
        },
    };
    let address = value("privateIpAddress");
    let has_address = |number: usize, private: &Option<String>| {
        private.as_deref().map_or_else(|| private_address(number) == address, |private| private == address)
    };
    let instances = world.fleet.all();
    let instance = instances.iter().find(|instance| {
        instance.config.vpc == endpoint.vpc && has_address(instance.number, &instance.config.private_address)
    });
    let server = instance.and_then(|instance| instance.config.ssh.as_ref());
    let server = server.ok_or_else(|| invalid("The specified PrivateIpAddress is not valid."))?;
    world.journal.record(Event::TunnelOpened { endpoint: id.to_owned(), address: address.to_owned() });
    Ok(Admitted { to: server.address, life: Duration::from_secs(life) })
}

/// Waits until a tunnel that was opened at `opened` is as old as it may get.
async fn lifetime(world: &World, opened: Instant, wanted: Duration) {
    let mut changes = world.settings_version.subscribe();
    loop {
        let life = world.settings().tunnel_lifetime.unwrap_or(wanted);
        tokio::select! {
            () = sleep_until(opened + life) => return,
            changed = changes.changed() => if changed.is_err() { return pending().await },
        }
    }
}

/// Carries bytes until either side ends, or the tunnel is too old.
async fn carry<S: AsyncRead + AsyncWrite + Unpin>(
    websocket: WebSocketStream<S>,
    server: TcpStream,
    lifetime: impl Future<Output = ()>,
) {
    let (mut read, mut write) = server.into_split();
    let (mut sink, mut stream) = websocket.split();
    let up = async {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(data) => write.write_all(&data).await.is_ok().then_some(())?,
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Text(_) | Message::Close(_) | Message::Frame(_) => break,
            }
        }
        Some(())
    };
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(MESSAGE_LEN);
            match read.read_buf(&mut buffer).await {
                Ok(1..) => sink.send(Message::Binary(buffer.split().freeze())).await.ok()?,
                Ok(0) | Err(_) => return Some(()),
            }
        }
    };
    let reason = tokio::select! {
        biased;
        () = lifetime => "Tunnel duration exceeded",
        _ = up => "",
        _ = down => "",
    };
    if let Ok(websocket) = sink.reunite(stream) {
        close(websocket, if reason.is_empty() { 1000 } else { 1008 }, reason).await;
    }
}

async fn close<S: AsyncRead + AsyncWrite + Unpin>(mut websocket: WebSocketStream<S>, code: u16, reason: &'static str) {
    let frame = CloseFrame { code: code.into(), reason: reason.into() };
    // A client that does not answer is left behind.
    let _outcome = timeout(Duration::from_secs(1), websocket.close(Some(frame))).await;
}
