//! Programs that read at a pace of their own, and those beside them.

use tokio::time::sleep;

use super::{
    super::testing::{flood, flood_or_echo},
    *,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_reads_is_reset_and_the_others_go_on() {
    let Some(mut world) = World::start(|_| ()).await else { return };
    let flood = flood(&mut world.tasks).await;
    let servers = world.servers().await;
    let bastion = world.address("?host_key=new");
    let mut stalled = world.tunnel_of(&servers, &bastion, flood);
    let mut other = world.tunnel_of(&servers, &bastion, world.echo);
    stalled.active().await;
    other.active().await;
    let _unread = stalled.connect().await;
    let mut stream = other.connect().await;
    stalled.until(|status| status.open_connections == 1).await;
    in_time(async {
        while stalled.status.borrow().open_connections == 1 {
            echoes(&mut stream).await;
        }
    })
    .await;
    echoes(&mut stream).await;
    stalled.stop().await;
    other.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_program_holds_back_nobody_who_comes_later() {
    let Some(mut world) = World::start(|_| ()).await else { return };
    let port = flood_or_echo(&mut world.tasks).await;
    let servers = world.servers().await;
    let bastion = world.address("?host_key=new");
    let settings = Settings { receive_budget: 1 << 20, ..Settings::default() };
    let mut tunnel = world.tunnel_with(&servers, &bastion, port, settings);
    let mut other = world.tunnel_of(&servers, &bastion, world.echo);
    tunnel.active().await;
    other.active().await;
    let mut slow = tunnel.connect().await;
    in_time(slow.write_all(b"f")).await.unwrap();
    let (stop, stopped) = watch::channel(false);
    let mut reader = JoinSet::new();
    reader.spawn(async move {
        let mut block = vec![0; 4 << 10];
        while !*stopped.borrow() {
            in_time(slow.read_exact(&mut block)).await.unwrap();
            assert!(block.iter().all(|byte| *byte == 7));
            sleep(Duration::from_millis(20)).await;
        }
    });
    in_time(async {
        while world.pushes() == 1 {
            tokio::task::yield_now().await
        }
    })
    .await;
    // What the slow one has not taken would come before each of these answers.
    for _ in 0..20 {
        tunnel.echoes().await;
        other.echoes().await;
    }
    assert_eq!((world.pushes(), reader.try_join_next().is_some()), (2, false), "both share the next, and it goes on");
    stop.send_replace(true);
    in_time(reader.join_next()).await.unwrap().unwrap();
    tunnel.stop().await;
    other.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_byte_is_lost_on_many_channels_whose_programs_read_at_their_own_pace() {
    let Some(world) = World::start(|_| ()).await else { return };
    let servers = world.servers().await;
    let settings = Settings { receive_budget: 256 << 10, ..Settings::default() };
    let mut tunnel = world.tunnel_with(&servers, &world.address("?host_key=new"), world.echo, settings);
    tunnel.active().await;
    let mut programs = JoinSet::new();
    for seed in 1..=24_u64 {
        let (mut read, mut write) = tunnel.connect().await.into_split();
        // Any sequence will do: a different one for each, which repeats late.
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let data: Vec<u8> = (0..100_000 + next() % 200_000).map(|_| next().to_le_bytes()[0]).collect();
        let sent = data.clone();
        programs.spawn(async move {
            for block in sent.chunks(1 + seed as usize * 977) {
                write.write_all(block).await.unwrap();
            }
            write.shutdown().await.unwrap();
        });
        programs.spawn(async move {
            let mut back = Vec::new();
            let mut block = vec![0; 1 + (next() % 20_000) as usize];
            loop {
                let count = read.read(&mut block).await.unwrap();
                if count == 0 {
                    break;
                }
                back.extend_from_slice(&block[..count]);
                if next() % 8 == 0 {
                    sleep(Duration::from_millis(2)).await;
                }
            }
            assert!(back == data, "seed {seed}: {} of {}", back.len(), data.len());
        });
    }
    in_time(async {
        while let Some(ended) = programs.join_next().await {
            ended.unwrap();
        }
    })
    .await;
    tunnel.stop().await;
    world.end().await;
}
