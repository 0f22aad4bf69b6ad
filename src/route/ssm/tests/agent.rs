//! An agent with the service in front of it, written from the codecs alone: one task per session,
//! which keeps its state while transports come and go, as the real one does.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::mpsc,
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, protocol::CloseFrame},
};

use crate::{
    route::ssm::proto::{
        MessageIds, StreamId,
        handshake::{Flag, HandshakeResponse},
        message::{Acknowledgement, Flags, Header, Message, MessageType, PayloadType},
        smux::frame::{Frame, FrameDecoder},
    },
    util::connection::Connection,
};

pub(super) type ServerSocket = WebSocketStream<Box<dyn Connection>>;

const REQUEST: &str = r#"{"AgentVersion":"3.3.1142.0","RequestedClientActions":[{"ActionType":"SessionType",
    "ActionParameters":{"SessionType":"Port","Properties":{"host":"h","portNumber":"443","type":"LocalPortForwarding"}}}]}"#;

/// How often an agent looks at its oldest unacknowledged message.
const RESEND_INTERVAL: Duration = Duration::from_millis(100);

/// What the destination does with connections.
#[derive(Clone)]
pub(super) enum Destination {
    /// Sends back what it gets, and closes when told to.
    Echo,
    /// Cannot be connected to.
    Refuse,
    /// Never answers.
    Silent,
    /// Hands the other end of each connection to the test.
    Manual(mpsc::UnboundedSender<DuplexStream>),
}

/// What a test makes an agent, or the service in front of it, do.
#[derive(Debug)]
pub(super) enum Order {
    /// Drop the transport without a word; what is on the way to the agent is lost.
    Cut,
    /// Close the transport as the service does every hour.
    Bye,
    /// Say that the session is over, and end it.
    CloseChannel(&'static str),
    /// Lose this many messages to the client; it gets them when the next transport comes.
    Lose(usize),
    /// Read and write nothing any more, on this transport and later ones.
    Freeze,
    /// Acknowledge what comes and answer pings, but do nothing else any more.
    Wedge,
    /// Read nothing from this transport and answer no ping, until it is replaced.
    Hang,
    /// On later transports, repeat what is lost one message every 100 ms, as real agents do, and not at once.
    RepeatSlowly,
    /// Be gone for good: the service answers pings and says nothing.
    Dead,
    /// Be away from the service, or back again: it drops what comes, and answers with a pause each time.
    Away(bool),
    /// Send these bytes as a message, so many times.
    Flood(Bytes, usize),
    /// Say when so many acknowledgements have come, from the first one on.
    SayAcknowledged(usize),
    /// Answer the flag that ends the session with its end and not with an acknowledgement.
    CloseOnFlag,
}

/// What an agent tells the test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Note {
    /// The client asked for the end of the session by flag.
    Terminated,
    /// The WebSocket ended with a close frame.
    Goodbye,
    Opened,
    /// A stream was closed by the client.
    Closed,
    /// As many acknowledgements have come as the test waits for.
    Acknowledged,
}

pub(super) struct Agent {
    pub(super) sockets: mpsc::UnboundedReceiver<ServerSocket>,
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
    pub(super) notes: mpsc::UnboundedSender<Note>,
    pub(super) destination: Destination,
    /// How long it takes to begin the handshake; `None`: for ever.
    pub(super) speaks: Option<Duration>,
}

struct State {
    ids: MessageIds,
    next_out: i64,
    unacked: BTreeMap<i64, Bytes>,
    expected: i64,
    early: BTreeMap<i64, Message>,
    decoder: FrameDecoder,
    streams: BTreeMap<StreamId, WriteHalf<DuplexStream>>,
    closed: BTreeSet<StreamId>,
    lose: usize,
    wedged: bool,
    close_on_flag: bool,
    /// Acknowledgements that have come, and how many the test waits for.
    acknowledgements: usize,
    awaited: Option<usize>,
    slow: bool,
    away: bool,
    dead: bool,
    outbox: Vec<Bytes>,
}

/// What a connection's reader has: bytes, or the end.
type Output = (StreamId, Bytes);

impl Agent {
    pub(super) async fn run(mut self) {
        let mut tasks = JoinSet::new();
        let (outputs, mut output) = mpsc::channel::<Output>(4);
        let mut state = State {
            ids: MessageIds::new(99),
            next_out: 0,
            unacked: BTreeMap::new(),
            expected: 0,
            early: BTreeMap::new(),
            decoder: FrameDecoder::default(),
            streams: BTreeMap::new(),
            closed: BTreeSet::new(),
            lose: 0,
            wedged: false,
            close_on_flag: false,
            acknowledgements: 0,
            awaited: None,
            slow: false,
            away: false,
            dead: false,
            outbox: Vec::new(),
        };
        let mut begin = self.speaks.map(|after| Box::pin(tokio::time::sleep(after)));
        if self.speaks.is_some_and(|after| after.is_zero()) {
            begin = None;
            state.send(PayloadType::HandshakeRequest, REQUEST.as_bytes());
        }
        let mut frozen = false;
        while let Some(mut socket) = self.sockets.recv().await {
            // Everything unacknowledged goes again, and nothing is lost on purpose.
            state.outbox = if state.slow { Vec::new() } else { state.unacked.values().cloned().collect() };
            let mut tick = tokio::time::interval(RESEND_INTERVAL);
            state.lose = 0;
            let mut hung = false;
            loop {
                if state.awaited.take_if(|count| *count <= state.acknowledgements).is_some() {
                    let _outcome = self.notes.send(Note::Acknowledged);
                }
                if !hung && !frozen && state.flush(&mut socket).await.is_err() {
                    break;
                }
                tokio::select! {
                    biased;
                    order = self.orders.recv() => match order {
                        Some(Order::Cut) => break,
                        Some(Order::Bye) => {
                            let frame = CloseFrame { code: 1000.into(), reason: "Bye".into() };
                            let _outcome = socket.close(Some(frame)).await;
                            break;
                        }
                        Some(Order::CloseChannel(text)) => {
                            let _outcome = socket.send(tungstenite::Message::Binary(channel_closed(text))).await;
                            return;
                        }
                        Some(Order::Lose(count)) => state.lose = count,
                        Some(Order::Freeze) => frozen = true,
                        Some(Order::Wedge) => state.wedged = true,
                        Some(Order::Hang) => hung = true,
                        Some(Order::SayAcknowledged(count)) => state.awaited = Some(count),
                        Some(Order::CloseOnFlag) => state.close_on_flag = true,
                        Some(Order::Dead) => state.dead = true,
                        Some(Order::Away(away)) => state.away = away,
                        Some(Order::RepeatSlowly) => state.slow = true,
                        Some(Order::Flood(bytes, count)) => state.outbox.extend(std::iter::repeat_n(bytes, count)),
                        None => std::future::pending().await,
                    },
                    // A replaced transport is given up.
                    next = self.sockets.recv(), if hung => match next {
                        Some(next) => { socket = next; hung = false; state.outbox = state.unacked.values().cloned().collect(); }
                        None => return,
                    },
                    _ = tick.tick(), if state.slow && !frozen => state.outbox.extend(state.unacked.values().next().cloned()),
                    () = async { if let Some(begin) = &mut begin { begin.await } }, if begin.is_some() => {
                        begin = None;
                        state.send(PayloadType::HandshakeRequest, REQUEST.as_bytes());
                    }
                    Some((id, data)) = output.recv(), if !frozen => state.handle_output(id, data),
                    message = socket.next(), if !hung && !frozen => match message {
                        Some(Ok(tungstenite::Message::Binary(bytes))) => {
                            state.handle(bytes, &self, &outputs, &mut tasks).await;
                        }
                        Some(Ok(tungstenite::Message::Close(_))) => {
                            let _outcome = self.notes.send(Note::Goodbye);
                            break;
                        }
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => break,
                    },
                }
            }
        }
    }
}

impl State {
    fn send(&mut self, payload_type: PayloadType, payload: &[u8]) {
        let header = Header {
            message_type: MessageType::OutputStreamData,
            created_ms: 1,
            sequence_number: self.next_out,
            flags: Flags::NONE,
            id: self.ids.next_id(),
            payload_type,
        };
        let message = header.encode(payload);
        self.unacked.insert(self.next_out, message.clone());
        self.next_out += 1;
        if self.lose > 0 {
            self.lose -= 1;
        } else {
            self.outbox.push(message);
        }
    }

    fn send_frame(&mut self, frame: &Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        for chunk in bytes.chunks(1024) {
            self.send(PayloadType::Output, chunk);
        }
    }

    async fn flush(&mut self, socket: &mut ServerSocket) -> Result<(), tungstenite::Error> {
        for message in std::mem::take(&mut self.outbox) {
            socket.feed(tungstenite::Message::Binary(message)).await?;
        }
        socket.flush().await
    }

    fn handle_output(&mut self, id: StreamId, data: Bytes) {
        if self.closed.contains(&id) {
            return;
        }
        if data.is_empty() {
            self.closed.insert(id);
            self.streams.remove(&id);
            self.send_frame(&Frame::Fin(id));
        } else {
            self.send_frame(&Frame::Psh(id, data));
        }
    }

    async fn handle(&mut self, bytes: Bytes, agent: &Agent, outputs: &mpsc::Sender<Output>, tasks: &mut JoinSet<()>) {
        let message = Message::decode(bytes).expect("a client's message is sound");
        if self.dead {
            return;
        }
        if self.away {
            self.outbox = vec![service_message(MessageType::PausePublication, b"")];
            return;
        }
        if message.header.message_type == MessageType::Acknowledge {
            let ack = Acknowledgement::decode(&message.payload).unwrap();
            self.acknowledgements += 1;
            self.unacked.remove(&ack.acknowledged_message_sequence_number);
            return;
        }
        assert_eq!(message.header.message_type, MessageType::InputStreamData);
        let id = self.ids.next_id();
        self.outbox.push(Acknowledgement::encode(&message.header, id, 1));
        if self.wedged {
            return;
        }
        if message.header.sequence_number >= self.expected {
            self.early.insert(message.header.sequence_number, message);
        }
        while let Some(message) = self.early.remove(&self.expected) {
            self.expected += 1;
            match message.header.payload_type {
                PayloadType::HandshakeResponse => {
                    let response: HandshakeResponse = serde_json::from_slice(&message.payload).unwrap();
                    assert!(response.processed_client_actions.iter().all(|action| action.action_status == 1));
                    self.send(PayloadType::HandshakeComplete, b"{}");
                }
                PayloadType::Flag => {
                    assert_eq!(Flag::decode(&message.payload), Some(Flag::TerminateSession));
                    if self.close_on_flag {
                        self.outbox = vec![channel_closed("")];
                    }
                    let _outcome = agent.notes.send(Note::Terminated);
                }
                PayloadType::None
                | PayloadType::Output
                | PayloadType::HandshakeRequest
                | PayloadType::HandshakeComplete
                | PayloadType::EncChallengeRequest
                | PayloadType::EncChallengeResponse
                | PayloadType::Other(_) => {
                    self.decoder.push(message.payload);
                    while let Some(frame) = self.decoder.next_frame().unwrap() {
                        self.handle_frame(frame, agent, outputs, tasks).await;
                    }
                }
            }
        }
    }

    async fn handle_frame(
        &mut self,
        frame: Frame,
        agent: &Agent,
        outputs: &mpsc::Sender<Output>,
        tasks: &mut JoinSet<()>,
    ) {
        match frame {
            Frame::Syn(id) => {
                let _outcome = agent.notes.send(Note::Opened);
                let (near, far) = tokio::io::duplex(1 << 20);
                match &agent.destination {
                    Destination::Refuse => {
                        self.send(PayloadType::Flag, &Flag::ConnectToPortError.encode());
                        self.send_frame(&Frame::Fin(id));
                        self.closed.insert(id);
                        return;
                    }
                    Destination::Echo => {
                        tasks.spawn(async move {
                            let (mut read, mut write) = tokio::io::split(far);
                            let _outcome = tokio::io::copy(&mut read, &mut write).await;
                            let _outcome = write.shutdown().await;
                        });
                    }
                    Destination::Silent => {
                        tasks.spawn(async move {
                            let _held = far;
                            std::future::pending::<()>().await;
                        });
                    }
                    Destination::Manual(connections) => {
                        let _outcome = connections.send(far);
                    }
                }
                let (read, write) = tokio::io::split(near);
                self.streams.insert(id, write);
                tasks.spawn(read_connection(id, read, outputs.clone()));
            }
            Frame::Psh(id, data) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    // A destination that has gone shows by its end of output.
                    let _outcome = stream.write_all(&data).await;
                }
            }
            Frame::Fin(id) => {
                let _outcome = agent.notes.send(Note::Closed);
                if let Some(mut stream) = self.streams.remove(&id) {
                    let _outcome = stream.shutdown().await;
                }
                if self.closed.insert(id) {
                    self.send_frame(&Frame::Fin(id));
                }
            }
            Frame::Nop => {}
        }
    }
}

async fn read_connection(id: StreamId, mut read: ReadHalf<DuplexStream>, outputs: mpsc::Sender<Output>) {
    loop {
        let mut data = BytesMut::with_capacity(8 << 10);
        let len = read.read_buf(&mut data).await.unwrap_or(0);
        if outputs.send((id, data.freeze())).await.is_err() || len == 0 {
            return;
        }
    }
}

/// The first message of every agent, which comes again as a repeat.
pub(super) fn handshake_request() -> Bytes {
    let header = Header {
        message_type: MessageType::OutputStreamData,
        created_ms: 1,
        sequence_number: 0,
        flags: Flags::NONE,
        id: MessageIds::new(99).next_id(),
        payload_type: PayloadType::HandshakeRequest,
    };
    header.encode(REQUEST.as_bytes())
}

fn channel_closed(output: &str) -> Bytes {
    service_message(MessageType::ChannelClosed, format!(r#"{{"SessionId":"s","Output":"{output}"}}"#).as_bytes())
}

fn service_message(message_type: MessageType, payload: &[u8]) -> Bytes {
    let header = Header {
        message_type,
        created_ms: 1,
        sequence_number: 0,
        flags: Flags::NONE,
        id: MessageIds::new(5).next_id(),
        payload_type: PayloadType::None,
    };
    header.encode(payload)
}
