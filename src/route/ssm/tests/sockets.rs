//! Real sockets on loopback: what pipes cannot show.

use std::{
    io::ErrorKind,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};

use super::{
    agent::Destination,
    support::{World, pattern},
};
use crate::{
    clock::Clock,
    route::{
        Budget, Command, Held, Io, LinkState, Meter, PipeEnd, Report, Reporter, Share,
        ssm::{
            connection::{Connection, Stage},
            driver::{Driver, DriverParts},
            proto::{Config, MessageIds, PortSession},
            ready::ReadySet,
        },
    },
    tunnel::{Admission, Listeners, State},
};

const LIMIT: Duration = Duration::from_secs(10);

async fn pair() -> (TcpStream, Io) {
    let mut listeners = Listeners::bind(0, 1, false, Admission::owner()).unwrap().listeners.remove(0);
    let client = timeout(LIMIT, TcpStream::connect(("127.0.0.1", listeners.port()))).await.unwrap().unwrap();
    (client, timeout(LIMIT, listeners.accept()).await.unwrap().unwrap())
}

#[tokio::test]
async fn an_aborted_connection_is_reset() {
    let (mut client, io) = pair().await;
    io.abort(PipeEnd::Refused);
    let error = timeout(LIMIT, client.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn the_last_bytes_arrive_though_the_program_still_writes() {
    let (mut client, io) = pair().await;
    let set = ReadySet::new();
    let mut connection = Connection::new(io, set.insert(1));
    let data = pattern(3 << 20);
    for piece in data.chunks(1000) {
        connection.push(bytes::Bytes::copy_from_slice(piece), Duration::ZERO);
    }
    connection.drain();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut scratch = bytes::BytesMut::new();
        std::future::poll_fn(move |cx| {
            set.register(cx);
            while set.next().is_some() {
                connection.ready.begin();
                connection.write_backlog(Duration::ZERO).unwrap();
                if connection.poll_close(&mut scratch).is_ready() {
                    assert_eq!(connection.stage, Stage::Lingering);
                    return std::task::Poll::Ready(());
                }
            }
            std::task::Poll::Pending
        })
        .await;
    });
    // What the program writes is not read by anybody: closing at once would reset the connection.
    timeout(LIMIT, client.write_all(&[7; 5000])).await.unwrap().unwrap();
    let mut got = Vec::new();
    timeout(LIMIT, client.read_to_end(&mut got)).await.unwrap().unwrap();
    assert!(got == data);
    drop(client);
    timeout(LIMIT, tasks.join_next()).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_session_that_is_over_gives_connections_back_and_counts_programs_alone() {
    let (client, io) = pair().await;
    let (commands, inbox) = mpsc::unbounded_channel();
    let (reports, mut reported) = mpsc::unbounded_channel();
    let (clock, meter) = (Clock::start(), Arc::new(Meter::default()));
    let parts = DriverParts {
        clock,
        inbox,
        reports: Reporter::new(0, reports),
        meter: Arc::clone(&meter),
        state: watch::Sender::new(LinkState::Down),
        share: Share::new(Budget::new(1 << 20, 1)),
        is_unprobed: false,
        keeps_warm: false,
    };
    let mut driver = Driver::new(parts, PortSession::new(Config::default(), MessageIds::new(1), clock.now()));
    driver.end();
    let deadline = clock.now().mono + LIMIT;
    let (end, ended) = oneshot::channel();
    let probe = Io::probe(tokio::io::duplex(1).0, end);
    for io in [probe, io] {
        commands.send(Command::Connect(Held { io, deadline })).unwrap();
    }
    let returned = async { reported.recv().await };
    let report = timeout(LIMIT, driver.drive(None, returned)).await.unwrap().unwrap();
    assert!(matches!(report, Some((0, Report::Returned(_)))), "{report:?}");
    assert_eq!(ended.await, Ok(PipeEnd::Lost), "a probe is told");
    driver.close();
    assert_eq!((driver.open_connections(), meter.taken.load(Ordering::Relaxed)), (0, 1));
    drop(client);
}

#[tokio::test]
async fn programs_are_served_through_a_real_port() {
    let mut world = World::listening(Destination::Echo);
    let port = world.until_state(State::Active).await.port;
    let mut client = timeout(LIMIT, TcpStream::connect(("127.0.0.1", port))).await.unwrap().unwrap();
    let data = pattern(8 << 20);
    let mut echoed = vec![0; data.len()];
    let (mut read, mut write) = client.split();
    let all = async { tokio::try_join!(write.write_all(&data), read.read_exact(&mut echoed)) };
    timeout(6 * LIMIT, all).await.unwrap().unwrap();
    assert!(echoed == data);
    world.stop().await;
    let error = timeout(LIMIT, client.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_refusal_is_a_reset_on_a_real_port() {
    let mut world = World::listening(Destination::Refuse);
    let port = world.until_state(State::Active).await.port;
    let mut client = timeout(LIMIT, TcpStream::connect(("127.0.0.1", port))).await.unwrap().unwrap();
    let error = timeout(LIMIT, client.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    world.stop().await;
}
