//! The message gateway: WebSocket upgrades, opening frames, and the way between a transport and its
//! session.

use std::{
    future::pending,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _, SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async_with_config,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
        protocol::{
            CloseFrame, WebSocketConfig,
            frame::{
                Frame,
                coding::{Data, OpCode},
            },
        },
    },
};

use super::{
    api::denial,
    journal::Event,
    line::Lined,
    link::{Flight, MAX_IN_FLIGHT},
    script::{Link, Upgrade},
    session::{Control, Opening, OpeningError, QUEUE_LEN, Session, SessionState, TransportCommand, TransportHandle},
    sigv4::{SignatureError, Signed, claim_of_headers},
    silence::{Silence, Silenceable},
    world::{World, lock},
};

/// How long a client may take for its upgrade and its opening frame.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a Close frame is waited for.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a connection that the service has forgotten stays open: about as long as TCP tries to reach a peer.
const HALF_OPEN_TIME: Duration = Duration::from_secs(15 * 60);

/// Largest message of a client, in bytes.
const MAX_MESSAGE_LEN: usize = 1 << 20;

/// A connection that a script can break.
pub(super) trait Breakable {
    /// Makes the end of the connection a reset.
    fn reset_on_drop(&self);
}

impl<S: Breakable> Breakable for tokio_rustls::server::TlsStream<S> {
    fn reset_on_drop(&self) {
        self.get_ref().0.reset_on_drop();
    }
}

/// An upgrade that was accepted.
struct Admitted {
    session: Arc<Session>,
    signed: bool,
}

/// Serves one connection to the gateway.
pub(super) async fn serve<S>(world: Arc<World>, connection: S)
where
    S: AsyncRead + AsyncWrite + Breakable + Unpin + Send + 'static,
{
    let silence = Arc::new(Silence::default());
    let connection = Silenceable::new(connection, silence.clone());
    let seed = world.config.seed ^ world.transports.fetch_add(1, Ordering::Relaxed);
    let connection = Lined::new(connection, &world, seed);
    let mut admitted = None;
    #[expect(clippy::result_large_err, reason = "the WebSocket library asks for this signature")]
    let callback = |request: &Request, mut response: Response| {
        world.clock.stamp(response.headers_mut());
        admit(&world, request).map(|admission| {
            admitted = Some(admission);
            response
        })
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .max_message_size(Some(MAX_MESSAGE_LEN))
        .max_frame_size(Some(MAX_MESSAGE_LEN));
    let upgrade = timeout(OPENING_TIMEOUT, accept_hdr_async_with_config(connection, callback, Some(config)));
    let Ok(Ok(websocket)) = upgrade.await else { return };
    let Some(Admitted { session, signed }) = admitted else { return };
    open(world, websocket, silence, session, signed).await;
}

/// Decides on an upgrade.
#[expect(clippy::result_large_err, reason = "the WebSocket library asks for this signature")]
fn admit(world: &World, request: &Request) -> Result<Admitted, ErrorResponse> {
    let id = request.uri().path().strip_prefix("/v1/data-channel/").unwrap_or_default();
    let refuse = |status: u16, reason: String| {
        world.journal.record(Event::UpgradeRefused { session: id.to_owned(), status, reason: reason.clone() });
        let mut response = ErrorResponse::new(Some(reason));
        world.clock.stamp(response.headers_mut());
        *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::BAD_REQUEST);
        response
    };
    let session = world.session(id).ok_or_else(|| refuse(404, format!("there is no session {id}")))?;
    let signed = match check_signature(world, request) {
        Ok(signed) => signed,
        Err(error) => return Err(refuse(403, error)),
    };
    if session.state() == SessionState::Ended {
        return Err(refuse(410, format!("session {id} has ended")));
    }
    Ok(Admitted { session, signed })
}

/// Returns whether the request is signed; the error is the text of the answer.
fn check_signature(world: &World, request: &Request) -> Result<bool, String> {
    let upgrade = world.settings().upgrade;
    let claim = match claim_of_headers(request.headers()) {
        Ok(claim) => claim,
        Err(SignatureError::Missing) => {
            return match upgrade {
                Upgrade::Signed => Err(SignatureError::Missing.to_string()),
                Upgrade::SignedOrNot | Upgrade::Unsigned => Ok(false),
            };
        }
        Err(error) => return Err(error.to_string()),
    };
    let signed = Signed {
        method: request.method().as_str(),
        path: request.uri().path(),
        query: request.uri().query().unwrap_or_default(),
        headers: request.headers(),
        body: b"",
    };
    let caller = lock(&world.credentials)
        .verify(&claim, &signed, "ssmmessages", world.clock.wall())
        .inspect_err(|error| {
            if matches!(error, SignatureError::Mismatch | SignatureError::Scope { .. } | SignatureError::Incomplete(_))
            {
                world.journal.violation("", format!("signed a WebSocket upgrade wrongly: {error}"));
            }
        })
        .map_err(|error| error.to_string())?;
    let action = "ssmmessages:OpenDataChannel";
    if upgrade == Upgrade::Unsigned || world.settings().denied_actions.contains(action) {
        let id = request.uri().path().rsplit('/').next().unwrap_or_default();
        return Err(denial(
            &caller.arn,
            action,
            &format!("arn:aws:ssm:{}:{}:session/{id}", claim.region, caller.account),
        ));
    }
    Ok(true)
}

/// Reads the opening frame and joins the transport with its session.
async fn open<S>(
    world: Arc<World>,
    mut websocket: WebSocketStream<S>,
    silence: Arc<Silence>,
    session: Arc<Session>,
    signed: bool,
) where
    S: AsyncRead + AsyncWrite + Breakable + Unpin,
{
    let id = session.start.id.clone();
    let first = timeout(OPENING_TIMEOUT, opening_frame(&world, &id, &mut websocket));
    let Ok(Some(opening)) = first.await else { return };
    if take_rejection(&world) {
        session.reject_token(&opening.token);
        world.journal.record(Event::TransportClosed { session: id, reason: "token rejected by the script".to_owned() });
        return close(websocket, 1008, "token").await;
    }
    let number = match session.open(&opening, world.clock.instant()) {
        Ok(number) => number,
        Err(OpeningError::Late(reason)) => {
            world.journal.record(Event::TransportClosed { session: id, reason: reason.to_owned() });
            return close(websocket, 1008, reason).await;
        }
        Err(OpeningError::Broken(reason)) => {
            world.journal.violation(&id, format!("opened a transport wrongly: {reason}"));
            return close(websocket, 1008, reason).await;
        }
    };
    let (messages, message_receiver) = mpsc::channel(QUEUE_LEN);
    let (commands, command_receiver) = mpsc::unbounded_channel();
    session.control(Control::Attach(TransportHandle { number, messages, commands }));
    world.journal.record(Event::TransportOpened { session: id.clone(), signed });
    let transport = Transport { world: world.clone(), session: session.clone(), silence, number };
    let reason = transport.run(websocket, message_receiver, command_receiver).await;
    session.control(Control::Detached { number });
    world.journal.record(Event::TransportClosed { session: id, reason: reason.to_owned() });
}

fn take_rejection(world: &World) -> bool {
    let mut settings = world.settings();
    let rejected = settings.rejected_tokens > 0;
    settings.rejected_tokens = settings.rejected_tokens.saturating_sub(1);
    rejected
}

async fn opening_frame<S>(world: &World, session: &str, websocket: &mut WebSocketStream<S>) -> Option<Opening>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match websocket.next().await {
            Some(Ok(Message::Text(text))) => {
                return match parse_opening(&text) {
                    Ok(opening) => Some(opening),
                    Err(fault) => {
                        world.journal.violation(session, format!("sent an opening frame {fault}"));
                        None
                    }
                };
            }
            // The first ping may be on the wire before the opening frame.
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Binary(_) | Message::Frame(_))) => {
                world.journal.violation(session, "did not begin with a text frame");
                return None;
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
        }
    }
}

/// Other clients than the official ones have other ids, such as that of the session.
fn parse_opening(text: &str) -> Result<Opening, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("that is not JSON: {error}"))?;
    let field = |name: &str| {
        let text = value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        text.map(str::to_owned).ok_or_else(|| format!("without {name}"))
    };
    let uuid = |name: &str| match field(name)?.parse::<uuid::Uuid>() {
        Ok(_) => field(name),
        Err(_) => Err(format!("whose {name} is not a UUID")),
    };
    if field("MessageSchemaVersion")? != "1.0" {
        return Err("of another schema version than 1.0".to_owned());
    }
    uuid("RequestId")?;
    Ok(Opening { token: field("TokenValue")?, client_id: field("ClientId")?, client_version: field("ClientVersion")? })
}

async fn close<S: AsyncRead + AsyncWrite + Unpin>(mut websocket: WebSocketStream<S>, code: u16, reason: &str) {
    let frame = CloseFrame { code: code.into(), reason: reason.into() };
    let goodbye = async {
        if websocket.close(Some(frame)).await.is_ok() {
            while let Some(Ok(_)) = websocket.next().await {}
        }
    };
    // A client that does not answer is left behind.
    let _outcome = timeout(CLOSE_TIMEOUT, goodbye).await;
}

/// What ends a transport.
enum End {
    /// Close the WebSocket.
    Close {
        code: u16,
        reason: String,
    },
    /// Break the connection.
    Cut,
    /// Leave the connection to itself.
    HalfOpen,
    /// The client closed, or its connection broke.
    Client,
    /// The session has ended or has got another transport.
    Session,
    Stopped,
    TooOld,
}

/// One transport with its session.
struct Transport {
    world: Arc<World>,
    session: Arc<Session>,
    silence: Arc<Silence>,
    number: u32,
}

impl Transport {
    /// Carries messages until either side ends; returns why it ended.
    async fn run<S>(
        &self,
        websocket: WebSocketStream<S>,
        mut messages: mpsc::Receiver<Bytes>,
        mut commands: mpsc::UnboundedReceiver<TransportCommand>,
    ) -> &'static str
    where
        S: AsyncRead + AsyncWrite + Breakable + Unpin,
    {
        let opened = self.world.clock.instant();
        let stop = self.world.stop.clone();
        let (mut sink, mut stream) = websocket.split();
        let end = tokio::select! {
            biased;
            () = stop.cancelled() => End::Stopped,
            end = self.obey(&mut commands) => end,
            end = self.downstream(&mut sink, &mut messages) => end,
            () = self.upstream(&mut stream) => End::Client,
            () = self.lifetime(opened) => End::TooOld,
        };
        let Ok(websocket) = sink.reunite(stream) else { return "torn apart" };
        match end {
            End::Stopped => "the emulator stops",
            End::Client => "ended by the client",
            End::Session => {
                close(websocket, 1000, "").await;
                "ended with its session or replaced"
            }
            End::TooOld => {
                close(websocket, 1000, "Bye").await;
                "closed for its age"
            }
            End::Close { code, reason } => {
                close(websocket, code, &reason).await;
                "closed by the script"
            }
            End::Cut => {
                websocket.get_ref().reset_on_drop();
                "cut by the script"
            }
            End::HalfOpen => {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(HALF_OPEN_TIME) => {}
                }
                websocket.get_ref().reset_on_drop();
                "half-open by the script"
            }
        }
    }

    /// Does what the session says, until that is the transport's end.
    async fn obey(&self, commands: &mut mpsc::UnboundedReceiver<TransportCommand>) -> End {
        loop {
            match commands.recv().await {
                Some(TransportCommand::Close { code, reason }) => return End::Close { code, reason },
                Some(TransportCommand::Cut) => return End::Cut,
                Some(TransportCommand::HalfOpen) => return End::HalfOpen,
                Some(TransportCommand::Silence { upstream, downstream }) => {
                    if upstream {
                        self.silence.lose_upstream();
                    }
                    if downstream {
                        self.silence.lose_downstream();
                    }
                }
                // The session has let go of the transport: its last messages are the end.
                None => return pending().await,
            }
        }
    }

    /// Waits until a transport that was opened at `opened` is as old as it may get.
    async fn lifetime(&self, opened: Instant) {
        let mut changes = self.world.settings_version.subscribe();
        loop {
            let lifetime = self.world.settings().transport_lifetime;
            let due = async {
                match lifetime {
                    Some(lifetime) => sleep_until(opened + lifetime).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = due => return,
                changed = changes.changed() => if changed.is_err() { return pending().await },
            }
        }
    }

    fn flight(&self, direction: u64) -> Flight {
        Flight::new(self.session.seed.wrapping_add((u64::from(self.number) << 40) | (direction << 56)))
    }

    /// Client to agent.
    async fn upstream<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut SplitStream<WebSocketStream<S>>) {
        let mut flight = self.flight(1);
        loop {
            while let Some(message) = flight.arrived(self.world.clock.instant()) {
                self.pass_on(message).await;
            }
            tokio::select! {
                biased;
                () = arrival(&flight) => {}
                incoming = stream.next(), if flight.len() < MAX_IN_FLIGHT => {
                    let link = self.world.settings().upstream;
                    if link.is_lossy() {
                        self.session.control(Control::Gaps);
                    }
                    let mut next = Some(incoming);
                    let mut taken = 0;
                    while let Some(incoming) = next {
                        let Some(Ok(message)) = incoming else { return };
                        if let Some(message) = self.incoming(message)
                            && let Some(message) = flight.send(&link, self.world.clock.instant(), message)
                        {
                            self.pass_on(message).await;
                        }
                        taken += 1;
                        // What has come with it needs no turn of its own.
                        next = if taken < QUEUE_LEN { stream.next().now_or_never() } else { None };
                    }
                }
            }
        }
    }

    /// Hands a message to the session. When the session is over, the other direction has the last word.
    async fn pass_on(&self, message: Bytes) {
        if self.session.messages.send(message).await.is_err() {
            pending().await
        }
    }

    fn incoming(&self, message: Message) -> Option<Bytes> {
        match message {
            Message::Binary(bytes) => Some(bytes),
            Message::Text(text) => {
                self.world.journal.violation(&self.session.start.id, "sent a text frame after the first");
                Some(text.into())
            }
            Message::Ping(_) => {
                self.session.counters.pings.fetch_add(1, Ordering::Relaxed);
                self.world.journal.touch();
                None
            }
            Message::Pong(_) | Message::Close(_) | Message::Frame(_) => None,
        }
    }

    /// Agent to client. Returns when the session gives the transport up or the connection breaks.
    async fn downstream<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        sink: &mut SplitSink<WebSocketStream<S>, Message>,
        messages: &mut mpsc::Receiver<Bytes>,
    ) -> End {
        let mut flight = self.flight(2);
        let mut open = true;
        let mut ready = Vec::new();
        loop {
            while let Some(message) = flight.arrived(self.world.clock.instant()) {
                if self.deliver(sink, message, self.form()).await.is_err() {
                    return End::Client;
                }
            }
            if messages.is_empty() && sink.flush().await.is_err() {
                return End::Client;
            }
            if !open && flight.len() == 0 {
                return End::Session;
            }
            tokio::select! {
                biased;
                () = arrival(&flight) => {}
                count = messages.recv_many(&mut ready, QUEUE_LEN), if open && flight.len() < MAX_IN_FLIGHT => {
                    open = count > 0;
                    let link: Link = self.world.settings().downstream;
                    let (form, now) = (self.form(), self.world.clock.instant());
                    for message in ready.drain(..) {
                        if let Some(message) = flight.send(&link, now, message)
                            && self.deliver(sink, message, form).await.is_err()
                        {
                            return End::Client;
                        }
                    }
                }
            }
        }
    }

    fn form(&self) -> Form {
        let settings = self.world.settings();
        Form { text_frames: settings.text_frames, fragment_len: settings.fragment_len }
    }

    /// Writes one message; the caller flushes.
    async fn deliver<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        sink: &mut SplitSink<WebSocketStream<S>, Message>,
        message: Bytes,
        form: Form,
    ) -> Result<(), tokio_tungstenite::tungstenite::Error> {
        self.session.counters.messages_to_client.fetch_add(1, Ordering::Relaxed);
        // A text frame has to be UTF-8, which few messages are.
        let as_text = form.text_frames && std::str::from_utf8(&message).is_ok();
        let data = if as_text { Data::Text } else { Data::Binary };
        match form.fragment_len {
            Some(len) if message.len() > len => {
                let count = message.len().div_ceil(len.max(1));
                for (i, piece) in message.chunks(len.max(1)).enumerate() {
                    let data = if i == 0 { data } else { Data::Continue };
                    let frame = Frame::message(Bytes::copy_from_slice(piece), OpCode::Data(data), i + 1 == count);
                    sink.feed(Message::Frame(frame)).await?;
                }
                Ok(())
            }
            _ if as_text => sink.feed(Message::Frame(Frame::message(message, OpCode::Data(Data::Text), true))).await,
            _ => sink.feed(Message::Binary(message)).await,
        }
    }
}

/// The form that the script asks for.
#[derive(Debug, Clone, Copy)]
struct Form {
    text_frames: bool,
    fragment_len: Option<usize>,
}

async fn arrival(flight: &Flight) {
    match flight.next_arrival() {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
