//! What goes wrong while tunnels are open.

use std::time::Duration;

use autoheal_pa::emulator::{
    AbsentClient, AgentConfig, AgentStart, ClusterConfig, Command, Config, Event, Failure, Resume, SessionState,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::support::{Lab, Running, has_ended, within};

async fn lab() -> Lab {
    Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await
}

async fn list_pods(lab: &Lab) -> usize {
    let kubeconfig = Kubeconfig::read_from(lab.kubeconfig()).unwrap();
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    let pods: Api<Pod> = Api::all(Client::try_from(config).unwrap());
    within("the pods", pods.list(&Default::default())).await.unwrap().items.len()
}

/// An echo server behind `forward`, and a connection to it.
async fn echo(lab: &Lab) -> (Running, TcpStream, tokio::task::JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
            });
        }
    });
    let (forward, port) = lab.forward("echo.internal:7", address, &[]).await;
    let connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    (forward, connection, tasks)
}

async fn ask(connection: &mut TcpStream, text: &[u8]) -> std::io::Result<()> {
    connection.write_all(text).await?;
    let mut answer = vec![0; text.len()];
    within("the echo", connection.read_exact(&mut answer)).await?;
    assert_eq!(answer, text);
    Ok(())
}

fn transports(lab: &Lab) -> usize {
    lab.count(|event| matches!(event, Event::TransportOpened { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_survive_every_way_to_lose_a_websocket() {
    let lab = lab().await;
    let (forward, mut connection, _echo) = echo(&lab).await;
    ask(&mut connection, b"before").await.unwrap();
    let bye = Command::CloseTransport { code: 1000, reason: "Bye".to_owned() };
    for command in [Command::CutTransport, bye, Command::CutTransport] {
        let before = transports(&lab);
        lab.emulator.command(&command);
        ask(&mut connection, b"across").await.unwrap();
        assert!(transports(&lab) > before, "{command:?} has cut nothing");
    }
    assert_eq!(lab.emulator.sessions().len(), 1);
    drop(connection);
    forward.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_service_does_while_the_client_is_away_nothing_is_lost() {
    let starts = [AgentStart::WithClient, AgentStart::After(Duration::ZERO)];
    for absent_client in [AbsentClient::Pause, AbsentClient::Drop, AbsentClient::Hold] {
        for start in starts {
            let agent = AgentConfig { start, ..AgentConfig::default() };
            let lab = Lab::start(Config { absent_client, agent, ..Config::default() }).await;
            let (forward, mut connection, _echo) = echo(&lab).await;
            let (mut read, mut write) = connection.split();
            let text: Vec<u8> = (0..200_000_u32).map(|i| (i % 253) as u8).collect();
            let mut answer = vec![0; text.len()];
            let (written, answered) = tokio::join!(
                async {
                    for piece in text.chunks(text.len() / 4) {
                        write.write_all(piece).await?;
                        lab.emulator.command(&Command::CutTransport);
                    }
                    std::io::Result::Ok(())
                },
                within("the echo", read.read_exact(&mut answer))
            );
            written.unwrap();
            answered.unwrap();
            assert!(answer == text, "{absent_client:?}, {start:?}");
            drop(connection);
            forward.stop().await.assert_success();
            lab.assert_clean().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_that_an_old_agent_does_not_repeat_stop_nothing() {
    let lab = lab().await;
    lab.emulator.update(|settings| {
        settings.agent.version = Some("3.2.1040.0".to_owned());
        settings.agent.ignore_duplicates = Some(true);
    });
    let (forward, mut connection, _echo) = echo(&lab).await;
    ask(&mut connection, b"before").await.unwrap();
    // The agent takes this, and what it says of it is lost with the transport.
    lab.emulator.update(|settings| settings.downstream.loss = 1.0);
    let lost = vec![7; 20_000];
    connection.write_all(&lost).await.unwrap();
    let taken = async {
        while lab.emulator.sessions()[0].bytes_to_destination < 6 + 20_000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the agent", taken).await;
    lab.emulator.update(|settings| settings.downstream.loss = 0.0);
    lab.emulator.command(&Command::CutTransport);
    // More than may be sent while an older message is not acknowledged: 4096 messages.
    let (mut read, mut write) = connection.split();
    let text: Vec<u8> = (0..5_000_000_u32).map(|i| (i % 253) as u8).collect();
    let mut answer = vec![0; lost.len() + text.len()];
    let (written, answered) = tokio::join!(write.write_all(&text), within("the echo", read.read_exact(&mut answer)));
    written.unwrap();
    answered.unwrap();
    assert!(answer[..lost.len()] == lost && answer[lost.len()..] == text);
    assert_eq!(lab.emulator.sessions().len(), 1);
    drop(connection);
    forward.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_cannot_be_resumed_is_replaced_behind_the_same_port() {
    for resume in [Resume::Refused, Resume::WithoutToken] {
        let lab = lab().await;
        lab.emulator.update(|settings| settings.resume = resume);
        let (forward, mut connection, _echo) = echo(&lab).await;
        let address = connection.peer_addr().unwrap();
        ask(&mut connection, b"before").await.unwrap();
        lab.emulator.command(&Command::CutTransport);
        let mut rest = Vec::new();
        let end = within("the reset", connection.read_to_end(&mut rest)).await;
        assert!(end.is_err(), "an open connection is reset, not ended: {rest:?}");
        let mut again = TcpStream::connect(address).await.unwrap();
        ask(&mut again, b"after").await.unwrap();
        assert_eq!(lab.emulator.sessions().len(), 2, "{resume:?}");
        drop(again);
        forward.stop().await.assert_success();
        // What the service calls ended needs no further call.
        let live = lab.emulator.sessions().iter().filter(|session| session.state == SessionState::Connected).count();
        assert_eq!((live, lab.emulator.violations()), (0, vec![]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_tried_to_be_resumed_for_as_long_as_the_user_says() {
    let lab = lab().await;
    let up = lab.up(&["--reconnect-timeout", "1s"]).await;
    lab.emulator.update(|settings| {
        settings.failing_actions.insert("ssm:ResumeSession".to_owned(), Failure::internal(u32::MAX));
    });
    lab.emulator.command(&Command::CutTransport);
    let replaced = lab.emulator.wait_until(|emulator| emulator.sessions().len() == 2);
    // Less than the default.
    tokio::time::timeout(Duration::from_secs(60), replaced).await.expect("another session is started");
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_service_ends_is_replaced() {
    let lab = lab().await;
    let up = lab.up(&[]).await;
    assert!(list_pods(&lab).await > 0);
    lab.emulator.command(&Command::CloseChannel { output: Some("the idle timeout has passed".to_owned()) });
    assert!(list_pods(&lab).await > 0, "a new connection waits for the new session");
    assert_eq!(lab.emulator.sessions().len(), 2);
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_destinations_reset_the_local_connection() {
    let lab = lab().await;
    let (forward, connection, _echo) = echo(&lab).await;
    let address = connection.peer_addr().unwrap();
    lab.emulator.update(|settings| {
        settings.destinations.insert("*".to_owned(), autoheal_pa::emulator::Destination::Refused);
    });
    let mut refused = TcpStream::connect(address).await.unwrap();
    refused.write_all(b"hello").await.unwrap();
    let error = within("the reset", refused.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    drop(connection);
    forward.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_frames_of_the_service_change_nothing() {
    let lab = lab().await;
    lab.emulator.update(|settings| {
        settings.text_frames = true;
        settings.fragment_len = Some(100);
        settings.start_publication = true;
        settings.agent.stray_frames = true;
        settings.agent.unknown_messages = true;
        settings.agent.bad_headers = true;
        settings.agent.wrong_digests = 5;
        settings.agent.repeat_handshake = true;
        settings.agent.payload_len = Some(7);
    });
    let (forward, mut connection, _echo) = echo(&lab).await;
    for _ in 0..20 {
        ask(&mut connection, b"is it still the same?").await.unwrap();
    }
    drop(connection);
    forward.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loss_and_duplication_lose_nothing() {
    let lab = lab().await;
    lab.emulator.update(|settings| {
        for link in [&mut settings.upstream, &mut settings.downstream] {
            link.loss = 0.03;
            link.duplicate = 0.05;
            link.reorder = 0.02;
        }
    });
    let (forward, mut connection, _echo) = echo(&lab).await;
    for round in 0..30_u32 {
        let text: Vec<u8> = (0..3000_u32).map(|i| (i * 7 + round) as u8).collect();
        ask(&mut connection, &text).await.unwrap();
    }
    drop(connection);
    lab.emulator.update(|settings| {
        settings.upstream = Default::default();
        settings.downstream = Default::default();
    });
    forward.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_that_is_not_allowed_is_tried_once_a_session_and_said_once() {
    let clusters = ["payments", "search", "orders"].map(ClusterConfig::new).into();
    let lab = Lab::start(Config { clusters, ..Config::default() }).await;
    lab.emulator.update(|settings| {
        settings.denied_actions.insert("ssm:ResumeSession".to_owned());
    });
    let mut up = lab.up(&[]).await;
    let warning = "warning: not allowed to resume sessions: open connections are cut whenever AWS closes a WebSocket, \
                   about hourly\nhint: this identity's IAM policy must allow `ssm:ResumeSession` on its own sessions: \
                   `autoheal-pa policy --bastion TARGET --region us-east-1` prints one that does";
    for sessions in [6, 9] {
        lab.emulator.command(&Command::CutTransport);
        lab.wait_until("new sessions", |emulator| {
            let live = emulator.sessions().iter().filter(|session| session.state == SessionState::Connected).count();
            (live, emulator.sessions().len()) == (3, sessions)
        })
        .await;
    }
    assert!(up.says(warning).await);
    let resumes = lab.count(|event| matches!(event, Event::Api { action, .. } if action == "ssm:ResumeSession"));
    assert_eq!(resumes, 6, "one for each session");
    let ended = up.stop().await;
    assert_eq!(ended.code(), Some(0));
    assert_eq!(ended.stderr.matches("not allowed to resume sessions").count(), 1, "{}", ended.stderr);
    lab.assert_clean().await;
}

/// Ends the only session of a tunnel while its client is away, as overnight, and waits for the next.
async fn end_behind_the_back(lab: &Lab) {
    let known = lab.emulator.sessions().len();
    lab.emulator.command(&Command::HalfOpen);
    lab.wait_until("the end of the idle session", |emulator| emulator.sessions().iter().all(has_ended)).await;
    lab.wait_until("another session", |emulator| emulator.sessions().len() > known).await;
    lab.wait_until("its transport", |emulator| {
        emulator.sessions().iter().any(|session| session.state == SessionState::Connected && session.streams > 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_about_a_session_that_has_ended_is_not_blamed_on_the_policy() {
    let clusters = vec![ClusterConfig::new("payments")];
    let idle_timeout = Duration::from_secs(4);
    let lab = Lab::start(Config { clusters, idle_timeout, ..Config::default() }).await;
    lab.emulator.update(|settings| settings.tag_policy = true);
    let up = lab.up(&["--probe-interval", "1s"]).await;
    end_behind_the_back(&lab).await;
    let denied = |event: &Event| {
        let Event::Api { action, error: Some(error) } = event else { return false };
        action == "ssm:ResumeSession" && error == "AccessDeniedException"
    };
    assert_eq!(lab.count(denied), 1, "the policy denies what is about a session that has ended");
    // The hourly close of the next is survived.
    lab.emulator.command(&Command::CloseTransport { code: 1000, reason: "Bye".to_owned() });
    lab.wait_until("a resume", |emulator| emulator.sessions().iter().any(|session| session.resumes == 1)).await;
    assert_eq!(lab.emulator.sessions().len(), 2);
    let ended = up.stop().await;
    assert_eq!(ended.code(), Some(0));
    assert!(!ended.stderr.contains("not allowed to resume sessions"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("could not be ended"), "{}", ended.stderr);
    lab.assert_clean().await;
}
