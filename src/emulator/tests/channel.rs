//! Sessions over real WebSockets: the gateway, the agent and its connections.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{client_async, tungstenite};

use super::{
    super::{Command, Config, Destination, Emulator, Event, Link, Resume, SessionState, StreamScheme, Upgrade},
    support::{
        Client, Echo, TestKeys, data_of, opening_frame, quick, resume_session, ssm, start, start_session, upgrade,
        within,
    },
};
use crate::{
    closed_port::ClosedPort,
    route::ssm::proto::{
        handshake::Flag,
        message::{MessageType, PayloadType},
        smux::frame::{Frame, StreamId},
    },
};

const STREAM: StreamId = StreamId(3);

async fn with_echo(config: Config) -> (Emulator, Echo) {
    let echo = Echo::start().await;
    let emulator = start(config).await;
    emulator.route("echo.internal:7", echo.address);
    (emulator, echo)
}

async fn connected(emulator: &Emulator) -> (Client, super::support::Granted) {
    let granted = start_session(emulator, "echo.internal", 7).await;
    let mut client = Client::open(emulator, &granted).await;
    let request = client.handshake().await;
    assert_eq!(request.agent_version, "3.3.1142.0");
    let properties = &request.requested_client_actions[0].action_parameters["Properties"];
    assert_eq!(
        *properties,
        json!({"host": "echo.internal", "portNumber": "7", "localPortNumber": "0", "type": "LocalPortForwarding"})
    );
    (client, granted)
}

fn no_violations(emulator: &Emulator) {
    assert_eq!(emulator.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn carries_bytes_and_ends_in_good_order() {
    let (emulator, _echo) = with_echo(quick()).await;
    let (mut client, granted) = connected(&emulator).await;
    assert!(granted.url.contains("cell-number=AAAA++++////AQ=="));
    let frames =
        client.talk(&[Frame::Syn(STREAM), Frame::Psh(STREAM, "hello".into())], |frames| !frames.is_empty()).await;
    assert_eq!(data_of(&frames, STREAM), b"hello");
    client.talk(&[Frame::Fin(STREAM)], |frames| frames.contains(&Frame::Fin(STREAM))).await;
    client.send(PayloadType::Flag, &Flag::TerminateSession.encode()).await;
    assert_eq!(client.receive_closed().await, "");
    assert!(client.receive().await.is_none());
    within(emulator.wait_until(|emulator| emulator.sessions()[0].state == SessionState::Ended)).await;
    let info = &emulator.sessions()[0];
    assert_eq!((info.streams, info.bytes_to_destination, info.bytes_from_destination), (1, 5, 5));
    assert_eq!(ssm(&emulator, "ResumeSession", json!({"SessionId": granted.id})).await.status, 400);
    no_violations(&emulator);
    emulator.stop().await;
}

#[tokio::test]
async fn destinations_are_dialled_while_a_download_fills_the_pipe() {
    let mut config = quick();
    config.agent.window = Some(1);
    let (emulator, _echo) = with_echo(config).await;
    let (mut client, _) = connected(&emulator).await;
    client.talk(&[Frame::Syn(STREAM), Frame::Psh(STREAM, "hello".into())], |frames| !frames.is_empty()).await;
    // What comes back is not acknowledged, so it stays in the agent's pipe until that is full.
    for _ in 0..40 {
        let mut bytes = BytesMut::new();
        Frame::Psh(STREAM, vec![7; 16 << 10].into()).encode(&mut bytes);
        client.send(PayloadType::Output, &bytes).await;
    }
    within(emulator.wait_until(|emulator| emulator.sessions()[0].bytes_from_destination > 255 << 10)).await;
    let mut bytes = BytesMut::new();
    Frame::Syn(StreamId(5)).encode(&mut bytes);
    client.send(PayloadType::Output, &bytes).await;
    let dialled = |event: &Event| matches!(event, Event::Dialled { connected: true, .. });
    within(emulator.wait_until(|emulator| emulator.events().iter().filter(|event| dialled(event)).count() == 2)).await;
    emulator.stop().await;
}

#[tokio::test]
async fn a_large_answer_comes_in_messages_of_one_kibibyte() {
    let (emulator, _echo) = with_echo(quick()).await;
    let (mut client, _) = connected(&emulator).await;
    let sent: Vec<u8> = (0..300_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let mut frames = vec![Frame::Syn(STREAM)];
    let mut received = Vec::new();
    for piece in sent.chunks(30_000) {
        frames.push(Frame::Psh(STREAM, piece.to_vec().into()));
        for message in client.send_frames(&std::mem::take(&mut frames)).await {
            assert!(message.payload.len() <= 1024);
            let frames = client.frames(&message);
            received.extend(data_of(&frames, STREAM));
        }
    }
    while received.len() < sent.len() {
        let frames = client.receive_frames().await;
        received.extend(data_of(&frames, STREAM));
    }
    assert!(received == sent, "the bytes differ");
    no_violations(&emulator);
    emulator.stop().await;
}

#[tokio::test]
async fn a_token_opens_one_transport() {
    let (emulator, _echo) = with_echo(quick()).await;
    let (_client, granted) = connected(&emulator).await;
    let keys = TestKeys::of(&emulator);
    let mut second = upgrade(&granted, Some(keys.signer("ssmmessages"))).await.unwrap();
    within(second.send(tungstenite::Message::text(opening_frame(&granted.token)))).await.unwrap();
    assert!(matches!(within(second.next()).await, Some(Ok(tungstenite::Message::Close(_)))));
    assert_eq!(
        emulator.violations(),
        [format!("{}: opened a transport wrongly: the token has been used before", granted.id)]
    );
    emulator.stop().await;
}

#[tokio::test]
async fn upgrades_need_a_signature_and_the_permission() {
    let (emulator, _echo) = with_echo(quick()).await;
    let granted = start_session(&emulator, "echo.internal", 7).await;
    let keys = TestKeys::of(&emulator);
    assert_eq!(upgrade(&granted, None).await.unwrap_err(), 403);
    emulator.update(|settings| settings.upgrade = Upgrade::SignedOrNot);
    assert!(upgrade(&granted, None).await.is_ok());
    emulator.update(|settings| {
        settings.denied_actions.insert("ssmmessages:OpenDataChannel".to_owned());
    });
    assert_eq!(upgrade(&granted, Some(keys.signer("ssmmessages"))).await.unwrap_err(), 403);
    no_violations(&emulator);
    assert_eq!(upgrade(&granted, Some(keys.signer("ssm"))).await.unwrap_err(), 403);
    assert_eq!(emulator.violations().len(), 1);
    let mut elsewhere = granted.clone();
    elsewhere.url = granted.url.replace(&granted.id, "nobody-0");
    assert_eq!(upgrade(&elsewhere, Some(keys.signer("ssmmessages"))).await.unwrap_err(), 404);
    emulator.stop().await;
}

#[tokio::test]
async fn a_session_survives_its_transport() {
    let (emulator, _echo) = with_echo(quick()).await;
    let (mut client, granted) = connected(&emulator).await;
    client.send_frames(&[Frame::Syn(STREAM)]).await;
    assert_eq!(emulator.command(&Command::CutTransport), 1);
    while client.receive_raw().await.is_some() {}
    within(emulator.wait_until(|emulator| emulator.sessions()[0].state == SessionState::Disconnected)).await;
    let resumed = resume_session(&emulator, &granted.id).await;
    assert_eq!(resumed.id, granted.id);
    assert_ne!(resumed.token, granted.token);
    client.reopen(&emulator, &resumed).await;
    let frames = client.talk(&[Frame::Psh(STREAM, "again".into())], |frames| !frames.is_empty()).await;
    assert_eq!(data_of(&frames, STREAM), b"again");
    let info = &emulator.sessions()[0];
    assert_eq!((info.resumes, info.transports), (1, 2));
    no_violations(&emulator);
    emulator.stop().await;
}

#[tokio::test]
async fn what_was_lost_with_a_transport_is_sent_again_oldest_first() {
    let (emulator, _echo) = with_echo(quick()).await;
    let granted = start_session(&emulator, "echo.internal", 7).await;
    let mut client = Client::open(&emulator, &granted).await;
    let first = client.receive_raw().await.unwrap();
    emulator.command(&Command::CloseTransport { code: 1000, reason: "Bye".to_owned() });
    while client.receive_raw().await.is_some() {}
    let resumed = resume_session(&emulator, &granted.id).await;
    client.reopen(&emulator, &resumed).await;
    // The same bytes: the handshake request has not been acknowledged.
    assert_eq!(client.receive_raw().await.unwrap(), first);
    client.handshake().await;
    no_violations(&emulator);
    emulator.stop().await;
}

#[tokio::test]
async fn resuming_can_be_refused() {
    let (emulator, _echo) = with_echo(quick()).await;
    let granted = start_session(&emulator, "echo.internal", 7).await;
    emulator.update(|settings| settings.resume = Resume::WithoutToken);
    let answer = ssm(&emulator, "ResumeSession", json!({"SessionId": granted.id})).await;
    assert_eq!(answer.json(), json!({"SessionId": granted.id}));
    emulator.update(|settings| settings.resume = Resume::Refused);
    let answer = ssm(&emulator, "ResumeSession", json!({"SessionId": granted.id})).await;
    assert_eq!(answer.json()["__type"], "DoesNotExistException");
    emulator.stop().await;
}

#[tokio::test]
async fn a_refused_destination_is_told_by_flag_and_fin() {
    let closed = ClosedPort::new();
    let emulator = start(quick()).await;
    emulator.route("closed.internal:1", closed.address());
    let granted = start_session(&emulator, "closed.internal", 1).await;
    let mut client = Client::open(&emulator, &granted).await;
    client.handshake().await;
    let mut received = client.send_frames(&[Frame::Syn(STREAM)]).await;
    while received.len() < 2 {
        received.push(client.receive().await.unwrap());
    }
    assert_eq!(received[0].header.payload_type, PayloadType::Flag);
    assert_eq!(Flag::decode(&received[0].payload), Some(Flag::ConnectToPortError));
    assert_eq!(client.frames(&received[1]), [Frame::Fin(STREAM)]);
    let dialled = Event::Dialled { session: granted.id, destination: "closed.internal:1".to_owned(), connected: false };
    assert!(emulator.events().contains(&dialled));
    no_violations(&emulator);
    emulator.stop().await;
}

#[tokio::test]
async fn an_unknown_host_ends_the_session_after_the_handshake() {
    let emulator = start(quick()).await;
    for (host, text) in [
        ("nowhere.internal", "lookup nowhere.internal on 10.0.0.2:53: no such host"),
        ("169.254.169.254", "Forwarding to IP address 169.254.169.254 is forbidden."),
    ] {
        let granted = start_session(&emulator, host, 443).await;
        let mut client = Client::open(&emulator, &granted).await;
        client.handshake().await;
        assert_eq!(client.receive_closed().await, text);
    }
    emulator.update(|settings| {
        settings.destinations.insert("*".to_owned(), Destination::Unresolvable);
    });
    let host = emulator.api_servers()[0].host.clone();
    let granted = start_session(&emulator, &host, 443).await;
    let mut client = Client::open(&emulator, &granted).await;
    client.handshake().await;
    assert_eq!(client.receive_closed().await, format!("lookup {host} on 10.0.0.2:53: no such host"));
    no_violations(&emulator);
    emulator.stop().await;
}

#[tokio::test]
async fn recent_agents_refuse_loopback_and_credentials() {
    let echo = Echo::start().await;
    let emulator = start(quick()).await;
    for host in ["127.0.0.1", "localhost", "creds.internal"] {
        emulator.route(format!("{host}:7"), echo.address);
    }
    emulator.update(|settings| {
        settings.addresses.insert("creds.internal".to_owned(), [169, 254, 170, 2].into());
        settings.agent.version = Some("3.3.4851.0".to_owned());
    });
    for host in ["127.0.0.1", "localhost", "creds.internal"] {
        let granted = start_session(&emulator, host, 7).await;
        let mut client = Client::open(&emulator, &granted).await;
        client.handshake().await;
        // The host is said as it was given.
        assert_eq!(client.receive_closed().await, format!("Forwarding to IP address {host} is forbidden."));
    }
    // What the other document is for.
    let input = json!({
        "Target": "i-0dc03fbcae2a87472", "DocumentName": "AWS-StartPortForwardingSession",
        "Parameters": {"portNumber": ["7"], "localPortNumber": ["0"]},
    });
    let granted = (&ssm(&emulator, "StartSession", input).await).into();
    emulator.update(|settings| settings.agent.version = None);
    let mut clients = vec![Client::open(&emulator, &granted).await];
    // Agents before that let it pass.
    clients.push(Client::open(&emulator, &start_session(&emulator, "127.0.0.1", 7).await).await);
    for mut client in clients {
        client.handshake().await;
        let frames =
            client.talk(&[Frame::Syn(STREAM), Frame::Psh(STREAM, "hello".into())], |frames| !frames.is_empty()).await;
        assert_eq!(data_of(&frames, STREAM), b"hello");
    }
    no_violations(&emulator);
    emulator.stop().await;
}

#[tokio::test]
async fn old_agents_look_the_host_up_for_each_dial() {
    let closed = ClosedPort::new();
    for (version, follows) in [("3.2.985.0", true), ("3.2.1041.0", false)] {
        let (emulator, _echo) = with_echo(quick()).await;
        emulator.update(|settings| settings.agent.version = Some(version.to_owned()));
        let granted = start_session(&emulator, "echo.internal", 7).await;
        let mut client = Client::open(&emulator, &granted).await;
        client.handshake().await;
        client.send_frames(&[Frame::Syn(STREAM)]).await;
        // The name leads elsewhere.
        emulator.route("echo.internal:7", closed.address());
        let mut bytes = BytesMut::new();
        Frame::Syn(StreamId(5)).encode(&mut bytes);
        client.send(PayloadType::Output, &bytes).await;
        let dials = |emulator: &Emulator| -> Vec<bool> {
            let dialled = |event| if let Event::Dialled { connected, .. } = event { Some(connected) } else { None };
            emulator.events().into_iter().filter_map(dialled).collect()
        };
        within(emulator.wait_until(|emulator| dials(emulator).len() == 2)).await;
        assert_eq!(dials(&emulator), [true, !follows], "agent {version}");
        emulator.stop().await;
    }
}

#[tokio::test]
async fn a_destination_that_does_not_read_stops_the_agent_at_four_mebibytes() {
    let (emulator, _echo) = with_echo(quick()).await;
    emulator.update(|settings| {
        settings.destinations.insert("echo.internal:7".to_owned(), Destination::NeverReads);
    });
    let (mut client, _) = connected(&emulator).await;
    client.send_frames(&[Frame::Syn(STREAM)]).await;
    let piece = vec![7; 60_000];
    for _ in 0..(4 << 20) / piece.len() {
        client.send_frames(&[Frame::Psh(STREAM, piece.clone().into())]).await;
    }
    client.send_frames(&[Frame::Psh(STREAM, piece.clone().into())]).await;
    // Nothing is acknowledged any more.
    let mut frame = BytesMut::new();
    Frame::Psh(STREAM, piece.into()).encode(&mut frame);
    let acknowledged = client.acknowledged.len();
    client.send(PayloadType::Output, &frame).await;
    let silence = tokio::time::timeout(Duration::from_millis(200), client.receive()).await;
    assert!(silence.is_err());
    assert_eq!(client.acknowledged.len(), acknowledged);
    emulator.stop().await;
}

#[tokio::test]
async fn a_hanging_dial_holds_up_the_next() {
    let (emulator, _echo) = with_echo(quick()).await;
    emulator.update(|settings| {
        settings.destinations.insert("*".to_owned(), Destination::BlackHole);
    });
    let (mut client, _) = connected(&emulator).await;
    client.send_frames(&[Frame::Syn(STREAM), Frame::Syn(StreamId(5)), Frame::Psh(StreamId(5), "x".into())]).await;
    emulator.update(|settings| settings.destinations.clear());
    assert!(tokio::time::timeout(Duration::from_millis(200), client.receive()).await.is_err());
    assert!(!emulator.events().iter().any(|event| matches!(event, Event::Dialled { .. })));
    emulator.stop().await;
}

#[tokio::test]
async fn the_service_can_pause_start_and_close() {
    let (emulator, _echo) = with_echo(quick()).await;
    let (mut client, granted) = connected(&emulator).await;
    emulator.command(&Command::Pause { messages: 2, start_after: Some(Duration::from_millis(10)) });
    for expected in [MessageType::PausePublication, MessageType::PausePublication, MessageType::StartPublication] {
        assert_eq!(client.receive().await.unwrap().header.message_type, expected);
    }
    emulator.command_session(&granted.id, Command::DetachAgent(Duration::from_secs(3600)));
    client.send(PayloadType::Output, b"lost").await;
    assert_eq!(client.receive().await.unwrap().header.message_type, MessageType::PausePublication);
    emulator.command(&Command::CloseChannel { output: None });
    assert_eq!(client.receive_closed().await, "");
    no_violations(&emulator);
    emulator.stop().await;
}

#[tokio::test]
async fn text_frames_and_fragments_hold_the_same_messages() {
    let mut config = quick();
    config.settings.fragment_len = Some(7);
    config.settings.text_frames = true;
    config.settings.start_publication = true;
    let (emulator, _echo) = with_echo(config).await;
    let granted = start_session(&emulator, "echo.internal", 7).await;
    let mut client = Client::open(&emulator, &granted).await;
    assert_eq!(client.receive().await.unwrap().header.message_type, MessageType::StartPublication);
    client.handshake().await;
    no_violations(&emulator);
    emulator.stop().await;
}

#[tokio::test]
async fn silence_leaves_pings_unanswered() {
    let (emulator, _echo) = with_echo(quick()).await;
    let (mut client, _) = connected(&emulator).await;
    within(client.websocket.send(tungstenite::Message::Ping("keepalive".into()))).await.unwrap();
    while !matches!(within(client.websocket.next()).await, Some(Ok(tungstenite::Message::Pong(_)))) {}
    assert_eq!(emulator.sessions()[0].pings, 1);
    emulator.command(&Command::SilenceTransport);
    // The command overtakes nothing that the client sends later than this.
    tokio::task::yield_now().await;
    let silent = async {
        loop {
            within(client.websocket.send(tungstenite::Message::Ping("keepalive".into()))).await.unwrap();
            let answer = tokio::time::timeout(Duration::from_millis(100), client.websocket.next()).await;
            if answer.is_err() {
                return;
            }
        }
    };
    within(silent).await;
    emulator.stop().await;
}

#[tokio::test]
async fn lossy_links_deliver_in_the_end() {
    let (emulator, _echo) = with_echo(quick()).await;
    let (mut client, _) = connected(&emulator).await;
    emulator.update(|settings| {
        let link = Link { delay: Duration::from_millis(1), loss: 0.2, duplicate: 0.2, reorder: 0.2 };
        settings.upstream = link;
        settings.downstream = link;
    });
    let mut received = Vec::new();
    let mut frames = vec![Frame::Syn(STREAM)];
    for _ in 0..20 {
        frames.push(Frame::Psh(STREAM, vec![b'x'; 100].into()));
        let answers = client.talk(&std::mem::take(&mut frames), |_| true).await;
        received.extend(data_of(&answers, STREAM));
    }
    while received.len() < 2000 {
        let frames = client.receive_frames().await;
        received.extend(data_of(&frames, STREAM));
    }
    assert_eq!(received, vec![b'x'; 2000]);
    assert!(emulator.sessions()[0].retransmissions > 0);
    no_violations(&emulator);
    emulator.stop().await;
}

#[tokio::test]
async fn terminating_ends_both_sides() {
    let (emulator, _echo) = with_echo(quick()).await;
    let (mut client, granted) = connected(&emulator).await;
    assert_eq!(ssm(&emulator, "TerminateSession", json!({"SessionId": granted.id})).await.status, 200);
    client.receive_closed().await;
    let history = ssm(&emulator, "DescribeSessions", json!({"State": "History"})).await.json();
    assert_eq!(history["Sessions"][0]["SessionId"], granted.id.as_str());
    no_violations(&emulator);
    emulator.stop().await;
}

#[tokio::test]
async fn sessions_are_listed_by_state_and_id_and_in_pages() {
    let (emulator, _echo) = with_echo(quick()).await;
    let (_first, one) = connected(&emulator).await;
    let (_second, other) = connected(&emulator).await;
    let list = async |input: serde_json::Value| ssm(&emulator, "DescribeSessions", input).await;
    let filters = json!([{"key": "SessionId", "value": one.id}]);
    let found = list(json!({"State": "Active", "Filters": filters})).await.json();
    assert_eq!(found["Sessions"].as_array().unwrap().len(), 1);
    assert_eq!(found["Sessions"][0]["SessionId"], one.id.as_str());
    let page = list(json!({"State": "Active", "MaxResults": 1})).await.json();
    let next = list(json!({"State": "Active", "MaxResults": 1, "NextToken": page["NextToken"]})).await.json();
    let ids: std::collections::BTreeSet<_> =
        [&page, &next].map(|page| page["Sessions"][0]["SessionId"].as_str().unwrap().to_owned()).into();
    assert_eq!(ids, [one.id.clone(), other.id].into());
    assert!(next.get("NextToken").is_none());
    for (input, code) in [
        (json!({"State": "Active", "MaxResults": 201}), "ValidationException"),
        (json!({"State": "Active", "NextToken": "x"}), "InvalidNextToken"),
        (json!({"State": "Active", "Filters": [{"key": "Nobody", "value": "x"}]}), "InvalidFilterKey"),
        (json!({"State": "Ended"}), "ValidationException"),
    ] {
        assert_eq!(list(input).await.json()["__type"], code);
    }

    // A policy by tags: what has ended, or never was, is denied.
    emulator.update(|settings| settings.tag_policy = true);
    assert_eq!(ssm(&emulator, "ResumeSession", json!({"SessionId": one.id})).await.status, 200);
    let unknown = ssm(&emulator, "ResumeSession", json!({"SessionId": "nobody-1"})).await.json();
    assert_eq!(unknown["__type"], "AccessDeniedException");
    emulator.update(|settings| {
        settings.denied_actions.insert("ssm:DescribeSessions".to_owned());
    });
    assert_eq!(list(json!({"State": "Active"})).await.json()["__type"], "AccessDeniedException");
    emulator.stop().await;
}

#[tokio::test]
async fn an_idle_session_ends() {
    let config = Config { idle_timeout: Duration::from_millis(200), ..quick() };
    let (emulator, _echo) = with_echo(config).await;
    let (mut client, _) = connected(&emulator).await;
    assert_eq!(client.receive_closed().await, "Your session timed out due to inactivity.");
    emulator.stop().await;
}

#[tokio::test]
async fn stream_urls_can_be_wss() {
    let echo = Echo::start().await;
    let emulator = start(Config { stream_scheme: StreamScheme::Wss, ..quick() }).await;
    emulator.route("echo.internal:7", echo.address);
    let granted = start_session(&emulator, "echo.internal", 7).await;
    let (host, target) = granted.url.strip_prefix("wss://").unwrap().split_once('/').unwrap();
    let (path, query) = target.split_once('?').unwrap();
    let pem = std::fs::read(emulator.gateway_authority().unwrap()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let tcp = within(TcpStream::connect(host)).await.unwrap();
    let tls = within(connector.connect("127.0.0.1".try_into().unwrap(), tcp)).await.unwrap();
    let keys = TestKeys::of(&emulator);
    let mut request = tungstenite::ClientRequestBuilder::new(granted.url.parse().unwrap());
    for (name, value) in keys.signer("ssmmessages").headers("GET", host, &format!("/{path}"), query, b"") {
        request = request.with_header(name, value);
    }
    let (mut websocket, _) = within(Box::pin(client_async(request, tls))).await.unwrap();
    within(websocket.send(tungstenite::Message::text(opening_frame(&granted.token)))).await.unwrap();
    within(emulator.wait_until(|emulator| emulator.sessions()[0].transports == 1)).await;
    assert!(emulator.environment().iter().any(|(name, _)| name == "AWS_CA_BUNDLE"));
    no_violations(&emulator);
    emulator.stop().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = Emulator::start(Config { port, ..quick() }).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on 127.0.0.1, port {port}"));
}

#[tokio::test]
async fn odd_agents_are_still_understood() {
    let mut config = quick();
    config.settings.agent.payload_len = Some(3);
    config.settings.agent.stray_frames = true;
    config.settings.agent.unknown_messages = true;
    config.settings.agent.repeat_handshake = true;
    config.settings.agent.customer_message = "hello".to_owned();
    let (emulator, _echo) = with_echo(config).await;
    let (mut client, _) = connected(&emulator).await;
    // Unknown payload types and types of message are skipped by hand here.
    client.send_frames(&[Frame::Syn(STREAM)]).await;
    let mut payloads = Vec::new();
    let mut bytes = BytesMut::new();
    Frame::Psh(STREAM, "x".into()).encode(&mut bytes);
    client.send(PayloadType::Output, &bytes).await;
    let wanted = {
        let mut wanted = BytesMut::new();
        for frame in [Frame::Nop, Frame::Psh(StreamId(4), "stray".into()), Frame::Psh(STREAM, "x".into())] {
            frame.encode(&mut wanted);
        }
        wanted
    };
    while payloads.len() < wanted.len() {
        let message = client.receive().await.unwrap();
        if message.header.payload_type == PayloadType::Output
            && message.header.message_type == MessageType::OutputStreamData
        {
            assert!(message.payload.len() <= 3);
            payloads.extend_from_slice(&message.payload);
        }
    }
    assert_eq!(payloads, wanted);
    no_violations(&emulator);
    emulator.stop().await;
}
