//! Real sockets on loopback: what pipes cannot show.

use std::{io::ErrorKind, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::{
    agent::Destination,
    support::{World, pattern},
};
use crate::{
    route::{
        Io, PipeEnd,
        ssm::{
            connection::{Connection, Stage},
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
