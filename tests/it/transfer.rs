//! Bytes through one tunnel to a destination of the test's own: many at once, across cuts, and in bulk.

use std::{net::SocketAddr, sync::Arc};

use autoheal_pa::emulator::{AgentConfig, Command, Config, Event};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::support::{Lab, Running, within};

/// A destination. The first byte of a connection is a command, the next eight are a length: `d` sends so many
/// bytes down, `u` takes so many and answers with how many were as they should be, `k` sends so many down and keeps
/// the connection for more.
struct Destination {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Destination {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                // A connection that the tunnel's end cuts is no business of the others.
                connections.spawn(async move { drop(serve(stream).await) });
            }
        });
        Self { address, _tasks: tasks }
    }
}

/// The byte at a position of every transfer: a pattern that no block size divides.
fn pattern(position: u64) -> u8 {
    (position % 251) as u8 ^ (position / 65_521) as u8
}

fn block(start: u64, len: usize) -> Vec<u8> {
    (start..).take(len).map(pattern).collect()
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let (command, len) = (stream.read_u8().await?, stream.read_u64().await?);
    if matches!(command, b'd' | b'k') {
        send(&mut stream, len).await?;
        if command == b'k' {
            stream.read_to_end(&mut Vec::new()).await?;
        }
    } else {
        let good = receive(&mut stream, len).await?;
        stream.write_u64(good).await?;
    }
    stream.shutdown().await
}

async fn send(stream: &mut (impl AsyncWriteExt + Unpin), len: u64) -> std::io::Result<()> {
    let mut sent = 0;
    while sent < len {
        let block = block(sent, usize::try_from((len - sent).min(64 << 10)).unwrap());
        within("a block to be taken", stream.write_all(&block)).await?;
        sent += block.len() as u64;
    }
    Ok(())
}

/// Returns how many bytes were as they should be, up to the first that is not.
async fn receive(stream: &mut (impl AsyncReadExt + Unpin), len: u64) -> std::io::Result<u64> {
    let mut received = 0;
    let mut buffer = vec![0; 64 << 10];
    while received < len {
        let room = usize::try_from((len - received).min(buffer.len() as u64)).unwrap();
        let count = within("a block to arrive", stream.read(&mut buffer[..room])).await?;
        if count == 0 || buffer[..count] != block(received, count) {
            break;
        }
        received += count as u64;
    }
    Ok(received)
}

async fn download(port: u16, len: u64) -> u64 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_u8(b'd').await.unwrap();
    stream.write_u64(len).await.unwrap();
    let received = receive(&mut stream, len).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "nothing follows");
    received
}

async fn upload(port: u16, len: u64) -> u64 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_u8(b'u').await.unwrap();
    stream.write_u64(len).await.unwrap();
    send(&mut stream, len).await.unwrap();
    stream.shutdown().await.unwrap();
    within("the answer", stream.read_u64()).await.unwrap()
}

/// Starts `forward` to a destination; returns its local port.
async fn forward(lab: &Lab, destination: &Destination, args: &[&str]) -> (Running, u16) {
    lab.forward("files.internal:80", destination.address, args).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_downloads_survive_ten_cuts_bit_exact() {
    let lab = Lab::start(Config::default()).await;
    let destination = Destination::start().await;
    let (forward, port) = forward(&lab, &destination, &[]).await;
    let mut downloads = JoinSet::new();
    for _ in 0..64 {
        downloads.spawn(download(port, 1 << 20));
    }
    let mut cuts = 0;
    let mut done = 0;
    // A cut for each few MiB that have arrived, so that all ten fall into the transfer.
    while done < 64 {
        let arrived = lab.emulator.sessions()[0].bytes_from_destination;
        if cuts < 10 && arrived > (cuts + 1) * (5 << 20) {
            cuts += 1;
            lab.emulator.command(&Command::CutTransport);
            let resumed = |event: &Event| matches!(event, Event::TransportOpened { .. });
            lab.wait_until("the resume", |emulator| {
                emulator.events().iter().filter(|event| resumed(event)).count() as u64 == cuts + 1
            })
            .await;
        }
        tokio::select! {
            ended = downloads.join_next() => {
                assert_eq!(ended.unwrap().unwrap(), 1 << 20);
                done += 1;
            }
            () = within("progress", lab.emulator.wait_until(|emulator| {
                emulator.sessions()[0].bytes_from_destination > arrived
            })), if cuts < 10 => {}
        }
    }
    assert_eq!(cuts, 10);
    assert_eq!(lab.emulator.sessions().len(), 1, "one session all the way");
    forward.stop().await.assert_success();
    lab.assert_clean().await;
}

/// Resident memory of a process in KiB, now and at most so far.
fn resident(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (field("VmRSS:"), field("VmHWM:"))
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_transfers_each_way_hold_memory_flat() {
    const BULK: u64 = 256 << 20;
    let agent = AgentConfig { pace: None, ..AgentConfig::default() };
    let lab = Lab::start(Config { agent, ..Config::default() }).await;
    let destination = Destination::start().await;
    let (forward, port) = forward(&lab, &destination, &["--no-rate-limit"]).await;
    assert_eq!(within("a first transfer", download(port, 1 << 20)).await, 1 << 20);
    let (before, _) = resident(forward.pid());
    let (down, up) = tokio::join!(download(port, BULK), upload(port, BULK));
    assert_eq!((down, up), (BULK, BULK));
    let (_, peak) = resident(forward.pid());
    // What the program has not taken yet is kept, up to 64 MiB: on a busy machine that is all of it.
    assert!(peak < before + ((64 + 16) << 10), "{before} KiB before, {peak} KiB at most");
    forward.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_close_does_not_truncate_the_answer() {
    let lab = Lab::start(Config::default()).await;
    let destination = Destination::start().await;
    let (forward, port) = forward(&lab, &destination, &[]).await;
    let mut uploads = JoinSet::new();
    for len in [1, 1000, 100_000] {
        uploads.spawn(async move { (len, upload(port, len).await) });
    }
    for (len, answer) in Arc::new(uploads.join_all().await).iter() {
        assert_eq!(len, answer);
    }
    forward.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_may_be_open_come_and_go() {
    let lab = Lab::start(Config::default()).await;
    let destination = Destination::start().await;
    let (forward, port) = forward(&lab, &destination, &["--no-rate-limit"]).await;
    // That a program has closed its connection looks as if it had stopped writing, and the destination waits for more.
    for number in 0..1300 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let answer = async {
            stream.write_u8(b'k').await?;
            stream.write_u64(1).await?;
            stream.read_u8().await
        };
        assert_eq!(within("an answer", answer).await.ok(), Some(pattern(0)), "connection {number}");
    }
    assert_eq!(forward.stop().await.code(), Some(0));
    lab.assert_clean().await;
}
