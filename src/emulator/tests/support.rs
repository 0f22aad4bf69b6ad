//! A minimal client: HTTP and WebSocket by hand, no retries, no cleverness.

use std::{collections::BTreeMap, future::Future, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite};

use super::super::{
    Config, Emulator,
    clock::Clock,
    sigv4::{encode, tests::Signer},
};
use crate::route::ssm::proto::{
    handshake::{self, HandshakeRequest},
    message::{Acknowledgement, ChannelClosed, Flags, Header, Message, MessageIds, MessageType, PayloadType},
    smux::frame::{Frame, FrameDecoder, StreamId},
};

/// Fails a test that waits for too long.
pub(super) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("this takes too long")
}

/// A configuration for quick tests: a quick agent and nothing that changes by itself.
pub(super) fn quick() -> Config {
    let mut config = Config { pod_churn: None, ..Config::default() };
    config.agent.tick = Duration::from_millis(10);
    config.agent.not_ready = Duration::ZERO;
    config
}

pub(super) async fn start(config: Config) -> Emulator {
    within(Emulator::start(config)).await.unwrap()
}

/// An answer of an API.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The text of an XML element.
    pub(super) fn element(&self, name: &str) -> String {
        let start =
            self.body.find(&format!("<{name}>")).unwrap_or_else(|| panic!("no {name} in {self:?}")) + name.len() + 2;
        let len = self.body[start..].find("</").unwrap();
        self.body[start..start + len].to_owned()
    }
}

/// Sends one request over a connection and reads the answer to its end.
pub(super) async fn exchange<S>(
    mut connection: S,
    method: &str,
    target: &str,
    headers: &[(String, String)],
    body: &str,
) -> Answer
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = format!("{method} {target} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str(&format!("\r\n{body}"));
    let mut answer = Vec::new();
    within(async {
        connection.write_all(request.as_bytes()).await.unwrap();
        connection.read_to_end(&mut answer).await.unwrap();
    })
    .await;
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

/// Keys, as a client holds them.
#[derive(Debug, Clone)]
pub(super) struct TestKeys {
    pub(super) access_key: String,
    pub(super) secret: String,
    pub(super) session_token: String,
}

impl TestKeys {
    pub(super) fn of(emulator: &Emulator) -> Self {
        let variables: BTreeMap<String, String> = emulator.static_environment().into_iter().collect();
        Self {
            access_key: variables["AWS_ACCESS_KEY_ID"].clone(),
            secret: variables["AWS_SECRET_ACCESS_KEY"].clone(),
            session_token: variables["AWS_SESSION_TOKEN"].clone(),
        }
    }

    pub(super) fn signer<'a>(&'a self, service: &'a str) -> Signer<'a> {
        Signer {
            access_key: &self.access_key,
            secret: &self.secret,
            session_token: Some(&self.session_token),
            region: "us-east-1",
            service,
            wall: Clock::default().wall(),
        }
    }
}

/// Calls an API with a signature by `signer`.
pub(super) async fn call(
    emulator: &Emulator,
    signer: &Signer<'_>,
    method: &str,
    target: &str,
    extra: &[(&str, &str)],
    body: &str,
) -> Answer {
    let host = emulator.endpoint().replace("http://", "");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = signer.headers(method, &host, path, query, body.as_bytes());
    headers.push(("host".to_owned(), host.clone()));
    headers.extend(extra.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    exchange(within(TcpStream::connect(host)).await.unwrap(), method, target, &headers, body).await
}

pub(super) async fn ssm(emulator: &Emulator, operation: &str, input: Value) -> Answer {
    let keys = TestKeys::of(emulator);
    let target = format!("AmazonSSM.{operation}");
    call(emulator, &keys.signer("ssm"), "POST", "/", &[("x-amz-target", &target)], &input.to_string()).await
}

/// What `StartSession` and `ResumeSession` answer.
#[derive(Debug, Clone)]
pub(super) struct Granted {
    pub(super) id: String,
    pub(super) token: String,
    pub(super) url: String,
}

impl From<&Answer> for Granted {
    fn from(answer: &Answer) -> Self {
        let value = answer.json();
        let text = |name: &str| value[name].as_str().unwrap_or_else(|| panic!("no {name} in {answer:?}")).to_owned();
        Self { id: text("SessionId"), token: text("TokenValue"), url: text("StreamUrl") }
    }
}

pub(super) async fn ecs(emulator: &Emulator, operation: &str, input: Value) -> Answer {
    let keys = TestKeys::of(emulator);
    let target = format!("AmazonEC2ContainerServiceV20141113.{operation}");
    call(emulator, &keys.signer("ecs"), "POST", "/", &[("x-amz-target", &target)], &input.to_string()).await
}

/// Calls EC2 with these parameters besides the version.
pub(super) async fn ec2(emulator: &Emulator, action: &str, parameters: &[(&str, &str)]) -> Answer {
    let keys = TestKeys::of(emulator);
    let mut form = format!("Action={action}&Version=2016-11-15");
    for (name, value) in parameters {
        form.push_str(&format!("&{name}={}", encode(value.as_bytes())));
    }
    call(emulator, &keys.signer("ec2"), "POST", "/", &[], &form).await
}

pub(super) async fn start_session(emulator: &Emulator, host: &str, port: u16) -> Granted {
    let answer = start_session_with(emulator, "i-0dc03fbcae2a87472", host, port).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    (&answer).into()
}

pub(super) async fn start_session_with(emulator: &Emulator, target: &str, host: &str, port: u16) -> Answer {
    let input = json!({
        "Target": target, "DocumentName": "AWS-StartPortForwardingSessionToRemoteHost",
        "Parameters": {"host": [host], "portNumber": [port.to_string()], "localPortNumber": ["0"]},
    });
    ssm(emulator, "StartSession", input).await
}

pub(super) async fn resume_session(emulator: &Emulator, id: &str) -> Granted {
    let answer = ssm(emulator, "ResumeSession", json!({ "SessionId": id })).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    (&answer).into()
}

/// What is behind a host that the configuration routes: a server that sends everything back.
pub(super) struct Echo {
    pub(super) address: std::net::SocketAddr,
    _tasks: JoinSet<()>,
}

impl Echo {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut tcp, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut reader, mut writer) = tcp.split();
                    let _bytes = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        Self { address, _tasks: tasks }
    }
}

/// Opens a WebSocket with a signed upgrade; the error is the status.
pub(super) async fn upgrade(granted: &Granted, signer: Option<Signer<'_>>) -> Result<WebSocketStream<TcpStream>, u16> {
    let (host, target) = granted.url.strip_prefix("ws://").unwrap().split_once('/').unwrap();
    let (path, query) = target.split_once('?').unwrap();
    let mut request = tungstenite::ClientRequestBuilder::new(granted.url.parse().unwrap());
    if let Some(signer) = signer {
        for (name, value) in signer.headers("GET", host, &format!("/{path}"), query, b"") {
            request = request.with_header(name, value);
        }
    }
    let tcp = within(TcpStream::connect(host)).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    match within(client_async(request, tcp)).await {
        Ok((websocket, _)) => Ok(websocket),
        Err(tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// Asks for an upgrade by hand, and returns the head of the answer in lower case.
pub(super) async fn upgrade_head(host: &str, target: &str, headers: &[(String, String)]) -> String {
    let mut request = format!("GET {target} HTTP/1.1\r\nconnection: upgrade\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let mut tcp = within(TcpStream::connect(host)).await.unwrap();
    let mut head = Vec::new();
    within(async {
        tcp.write_all(request.as_bytes()).await.unwrap();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await.unwrap());
        }
    })
    .await;
    String::from_utf8(head).unwrap().to_lowercase()
}

/// What [`Client::step`] came to.
enum Received {
    Message(Message),
    /// An acknowledgement, or a message whose turn has not come.
    Handled,
}

/// A client of one data channel.
pub(super) struct Client {
    pub(super) websocket: WebSocketStream<TcpStream>,
    ids: MessageIds,
    next_number: i64,
    /// Numbers of the agent's messages that have been handled.
    expected: i64,
    early: BTreeMap<i64, Message>,
    decoder: FrameDecoder,
    pub(super) acknowledged: Vec<i64>,
}

pub(super) const CLIENT_ID: &str = "7f0f4a4e-4c2c-4b64-9d6c-3f6f0e0a7b11";

pub(super) fn opening_frame(token: &str) -> String {
    let request = uuid::Uuid::new_v4().to_string();
    json!({"MessageSchemaVersion": "1.0", "RequestId": request, "TokenValue": token, "ClientId": CLIENT_ID, "ClientVersion": "1.2.764.0"})
        .to_string()
}

impl Client {
    /// Opens the first transport of a session.
    pub(super) async fn open(emulator: &Emulator, granted: &Granted) -> Self {
        let websocket = Self::transport(emulator, granted).await;
        Self {
            websocket,
            ids: MessageIds::new(99),
            next_number: 0,
            expected: 0,
            early: BTreeMap::new(),
            decoder: FrameDecoder::default(),
            acknowledged: Vec::new(),
        }
    }

    async fn transport(emulator: &Emulator, granted: &Granted) -> WebSocketStream<TcpStream> {
        let keys = TestKeys::of(emulator);
        let mut websocket = upgrade(granted, Some(keys.signer("ssmmessages"))).await.unwrap();
        within(websocket.send(tungstenite::Message::text(opening_frame(&granted.token)))).await.unwrap();
        websocket
    }

    /// Goes on with another transport.
    pub(super) async fn reopen(&mut self, emulator: &Emulator, granted: &Granted) {
        self.websocket = Self::transport(emulator, granted).await;
    }

    /// Receives one message as it is; `None` when the transport has ended.
    pub(super) async fn receive_raw(&mut self) -> Option<Bytes> {
        loop {
            match within(self.websocket.next()).await {
                Some(Ok(tungstenite::Message::Binary(bytes))) => return Some(bytes),
                Some(Ok(tungstenite::Message::Text(text))) => return Some(text.into()),
                Some(Ok(tungstenite::Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// Receives the next message that is not an acknowledgement, in sequence, and acknowledges
    /// everything; `None` when the transport has ended.
    pub(super) async fn receive(&mut self) -> Option<Message> {
        loop {
            if let Received::Message(message) = self.step().await? {
                return Some(message);
            }
        }
    }

    /// Receives one message, or takes one that came early. Loses nothing when it is cancelled.
    async fn step(&mut self) -> Option<Received> {
        if let Some(message) = self.early.remove(&self.expected) {
            self.expected += 1;
            return Some(Received::Message(message));
        }
        let message = Message::decode(self.receive_raw().await?).unwrap();
        match message.header.message_type {
            MessageType::Acknowledge => {
                let acknowledgement = Acknowledgement::decode(&message.payload).unwrap();
                self.acknowledged.push(acknowledgement.acknowledged_message_sequence_number);
            }
            MessageType::OutputStreamData => {
                let acknowledgement = Acknowledgement::encode(&message.header, self.ids.next_id(), 1_700_000_000_000);
                if message.header.sequence_number >= self.expected {
                    self.early.insert(message.header.sequence_number, message);
                }
                // A transport that has just been lost is noticed by the next read.
                let _lost = self.websocket.send(tungstenite::Message::Binary(acknowledgement)).await;
            }
            MessageType::InputStreamData
            | MessageType::ChannelClosed
            | MessageType::StartPublication
            | MessageType::PausePublication
            | MessageType::Other(_) => return Some(Received::Message(message)),
        }
        Some(Received::Handled)
    }

    /// Makes the next message.
    pub(super) fn make(&mut self, payload_type: PayloadType, payload: &[u8]) -> Bytes {
        let header = Header {
            message_type: MessageType::InputStreamData,
            created_ms: 1_700_000_000_000,
            sequence_number: self.next_number,
            flags: Flags::NONE,
            id: self.ids.next_id(),
            payload_type,
        };
        self.next_number += 1;
        header.encode(payload)
    }

    pub(super) async fn send_raw(&mut self, message: Bytes) {
        within(self.websocket.send(tungstenite::Message::Binary(message))).await.unwrap();
    }

    pub(super) async fn send(&mut self, payload_type: PayloadType, payload: &[u8]) {
        let message = self.make(payload_type, payload);
        self.send_raw(message).await;
    }

    /// Sends frames in one message and repeats it until it is acknowledged; returns what came meanwhile.
    pub(super) async fn send_frames(&mut self, frames: &[Frame]) -> Vec<Message> {
        let mut bytes = BytesMut::new();
        for frame in frames {
            frame.encode(&mut bytes);
        }
        let number = self.next_number;
        let message = self.make(PayloadType::Output, &bytes);
        let mut received = Vec::new();
        while !self.acknowledged.contains(&number) {
            self.send_raw(message.clone()).await;
            // Only the acknowledgement ends this early; the pause spaces the repeats.
            let pause = tokio::time::timeout(Duration::from_millis(20), async {
                while !self.acknowledged.contains(&number) {
                    match self.step().await.expect("the transport has ended") {
                        Received::Message(message) => received.push(message),
                        Received::Handled => {}
                    }
                }
            });
            let _repeat = pause.await;
        }
        received
    }

    /// Answers the handshake and waits for its end.
    pub(super) async fn handshake(&mut self) -> HandshakeRequest {
        let request = self.receive().await.unwrap();
        assert_eq!(request.header.payload_type, PayloadType::HandshakeRequest);
        assert_eq!(request.header.flags, Flags::SYN);
        let (response, agreement) = handshake::respond(&request.payload);
        agreement.unwrap();
        self.send(PayloadType::HandshakeResponse, &serde_json::to_vec(&response).unwrap()).await;
        let complete = self.receive().await.unwrap();
        assert_eq!(complete.header.payload_type, PayloadType::HandshakeComplete);
        serde_json::from_slice(&request.payload).unwrap()
    }

    /// Reads the smux frames of a message.
    pub(super) fn frames(&mut self, message: &Message) -> Vec<Frame> {
        assert_eq!(message.header.payload_type, PayloadType::Output);
        self.decoder.push(message.payload.clone());
        std::iter::from_fn(|| self.decoder.next_frame().unwrap()).collect()
    }

    /// Sends frames until they are acknowledged, then receives until `done` says that there are enough
    /// frames from the agent.
    pub(super) async fn talk(&mut self, frames: &[Frame], done: impl Fn(&[Frame]) -> bool) -> Vec<Frame> {
        let mut answers = Vec::new();
        for message in self.send_frames(frames).await {
            answers.extend(self.frames(&message));
        }
        while !done(&answers) {
            let message = self.receive().await.expect("the transport has ended");
            answers.extend(self.frames(&message));
        }
        answers
    }

    /// Receives the frames of the next message.
    pub(super) async fn receive_frames(&mut self) -> Vec<Frame> {
        let message = self.receive().await.expect("the transport has ended");
        self.frames(&message)
    }

    /// Waits for the end of the session and returns its text.
    pub(super) async fn receive_closed(&mut self) -> String {
        loop {
            let message = self.receive().await.expect("the transport has ended without channel_closed");
            if message.header.message_type == MessageType::ChannelClosed {
                return ChannelClosed::decode(&message.payload).output.into();
            }
        }
    }
}

/// The data in frames of one stream.
pub(super) fn data_of(frames: &[Frame], id: StreamId) -> Vec<u8> {
    let of_stream = frames.iter().filter_map(|frame| match frame {
        Frame::Psh(stream, data) if *stream == id => Some(data.to_vec()),
        Frame::Psh(..) | Frame::Syn(_) | Frame::Fin(_) | Frame::Nop => None,
    });
    of_stream.flatten().collect()
}
