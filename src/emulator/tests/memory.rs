//! The emulator without sockets, on paused time, and the ways in which a connection there can fail.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite};

use super::{
    super::{Command, Config, Emulator, Failure, Place, SessionState, Upgrade, Wire},
    support::{opening_frame, quick},
};

async fn start() -> (Emulator, String) {
    let mut config = Config { anonymous_access: true, ..quick() };
    config.settings.upgrade = Upgrade::SignedOrNot;
    let emulator = Emulator::in_memory(config).await.unwrap();
    let key = emulator.new_access_key();
    (emulator, key)
}

fn start_input() -> Value {
    json!({
        "Target": "i-0dc03fbcae2a87472", "DocumentName": "AWS-StartPortForwardingSessionToRemoteHost",
        "Parameters": {"host": ["echo.internal"], "portNumber": ["7"], "localPortNumber": ["0"]},
    })
}

async fn transport(emulator: &Emulator, granted: &Value) -> WebSocketStream<Wire> {
    let connection = emulator.gateway().connect().await.unwrap();
    let url = granted["StreamUrl"].as_str().unwrap();
    let (mut websocket, _) = client_async(url, connection).await.unwrap();
    let opening = opening_frame(granted["TokenValue"].as_str().unwrap());
    websocket.send(tungstenite::Message::text(opening)).await.unwrap();
    // The handshake request: the session has its transport.
    assert!(matches!(websocket.next().await, Some(Ok(tungstenite::Message::Binary(_)))));
    websocket
}

/// Sends a ping and says whether a pong comes soon.
async fn is_answered(websocket: &mut WebSocketStream<Wire>) -> bool {
    websocket.send(tungstenite::Message::Ping("keepalive".into())).await.unwrap();
    // Less than the agent waits for an answer to its handshake request.
    let deadline = tokio::time::sleep(Duration::from_secs(5));
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            () = &mut deadline => return false,
            message = websocket.next() => match message {
                Some(Ok(tungstenite::Message::Pong(_))) => return true,
                Some(Ok(_)) => {}
                Some(Err(_)) | None => panic!("the connection has ended"),
            },
        }
    }
}

fn state(emulator: &Emulator) -> SessionState {
    emulator.sessions()[0].state
}

#[tokio::test(start_paused = true)]
async fn calls_without_http_fail_as_those_with_it() {
    let (emulator, key) = start().await;
    let call = async |operation: &str, input: &Value| {
        emulator.call(&key, operation, input).await.map_err(|error| error.to_string())
    };
    emulator.update(|settings| {
        settings.failing_actions.insert("ssm:StartSession".to_owned(), Failure::throttled(1));
        settings.api_delay = Duration::from_secs(3);
    });
    assert_eq!(call("StartSession", &start_input()).await.unwrap_err(), "ThrottlingException: Rate exceeded");
    let granted = call("StartSession", &start_input()).await.unwrap();
    assert!(granted["SessionId"].is_string());
    emulator.update(|settings| {
        settings.denied_actions.insert("ssm:ResumeSession".to_owned());
    });
    let denied = call("ResumeSession", &granted).await.unwrap_err();
    assert!(denied.starts_with("AccessDeniedException: User: "), "{denied}");
    assert!(call("Nothing", &json!({})).await.unwrap_err().starts_with("UnknownOperationException"));
    emulator.expire_credentials();
    assert!(call("StartSession", &start_input()).await.unwrap_err().starts_with("ExpiredTokenException"));
    let renewed = emulator.new_access_key();
    assert!(emulator.call(&renewed, "StartSession", &start_input()).await.is_ok());
    emulator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn silence_loses_the_pings_or_the_pongs() {
    for (command, arrives) in [(Command::SilenceUpstream, 1), (Command::SilenceDownstream, 2), (Command::HalfOpen, 1)] {
        let (emulator, key) = start().await;
        let granted = emulator.call(&key, "StartSession", &start_input()).await.unwrap();
        let mut websocket = transport(&emulator, &granted).await;
        assert!(is_answered(&mut websocket).await);
        emulator.command(&command);
        tokio::task::yield_now().await;
        assert!(!is_answered(&mut websocket).await, "{command:?}");
        assert_eq!(emulator.sessions()[0].pings, arrives, "{command:?}");
        let half_open = command == Command::HalfOpen;
        assert_eq!(state(&emulator) == SessionState::Disconnected, half_open, "{command:?}");

        // The session can be resumed, and the old connection is in nobody's way.
        let again = emulator.call(&key, "ResumeSession", &granted).await.unwrap();
        let mut second = transport(&emulator, &again).await;
        assert!(is_answered(&mut second).await);
        assert_eq!(emulator.violations(), Vec::<String>::new());
        emulator.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn api_servers_answer_in_memory() {
    use tokio::io::AsyncReadExt as _;
    let (emulator, _) = start().await;
    let place = emulator.api_servers().swap_remove(0).place;
    assert!(matches!(place, Place::Memory(_)));
    let mut plain = place.connect().await.unwrap();
    // No client begins like this: the server says so in an alert, and closes.
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer.first(), Some(&0x15));
    emulator.stop().await;
    assert!(place.connect().await.is_err());
}
