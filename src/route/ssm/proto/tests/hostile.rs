//! Peers that flood, or say what cannot be.

use bytes::Bytes;

use super::{
    super::{
        CloseReason, StreamId,
        message::{Flags, Header, Message, MessageId, MessageType, PayloadType},
        smux::frame::Frame,
    },
    agent::Destination,
    scenarios::{agent_message, answer, service_message},
    world::World,
};

#[test]
fn acks_of_the_future_and_absurd_numbers_do_no_harm() {
    let mut world = World::established(1, vec![answer(1, b"ok")]);
    for number in [-5, 1, 2, i64::MAX, i64::MIN] {
        let header = Header {
            message_type: MessageType::InputStreamData,
            created_ms: 1,
            sequence_number: number,
            flags: Flags::NONE,
            id: MessageId([1; 16]),
            payload_type: PayloadType::Output,
        };
        let ack = super::super::message::Acknowledgement::encode(&header, MessageId([2; 16]), 1);
        world.client.handle_message(world.now, ack);
        if number != 1 && number != 2 {
            world.client.handle_message(world.now, agent_message(number, PayloadType::Output, b"x"));
        }
    }
    world.open(Bytes::from_static(b"x"), false);
    world.run_until(World::all_ended);
}

/// Sends the client the same thing until it has had enough; returns why, and how often it was sent.
fn flood(mut message: impl FnMut(i64) -> Bytes) -> (CloseReason, i64) {
    let mut world = World::established(1, vec![Destination::Sink]);
    for i in 0..100_000 {
        let bytes = message(i);
        world.client.handle_message(world.now, bytes);
        world.settle();
        if let Some(reason) = &world.closed {
            return (reason.clone(), i + 1);
        }
    }
    panic!("it takes anything");
}

#[test]
fn a_peer_that_floods_with_nonsense_is_given_up_by_name() {
    let acknowledge = |number| {
        let mut header = Message::decode(agent_message(number, PayloadType::Output, b"x")).unwrap().header;
        header.message_type = MessageType::InputStreamData;
        super::super::message::Acknowledgement::encode(&header, MessageId([2; 16]), 1)
    };
    let last = |flood: (CloseReason, i64)| match flood {
        (CloseReason::Misbehaved { count, last }, sent) => {
            assert_eq!((count, sent), (257, 257));
            last.to_string()
        }
        (other, _) => panic!("{other}"),
    };
    assert_eq!(last(flood(|_| Bytes::from_static(b"GET / HTTP/1.1"))), "it sent a message that cannot be read");
    assert_eq!(
        last(flood(|i| agent_message(1_000_000 + i, PayloadType::Output, b"x"))),
        "it sent a message with number 1000256 when 2 was the next"
    );
    assert_eq!(last(flood(|i| acknowledge(1 + i))), "it acknowledged message 257 when the last one sent was 0");
    assert_eq!(
        last(flood(|_| service_message("acknowledge", b"{}"))),
        "it sent an acknowledgement that cannot be read"
    );
}

#[test]
fn a_flood_of_streams_costs_no_memory() {
    let mut world = World::established(1, vec![answer(4, b"pong")]);
    let before = world.client.open_streams();
    for number in 2..2000 {
        let mut frames = bytes::BytesMut::new();
        for stream in 0..100 {
            Frame::Syn(StreamId(number as u32 * 100 + stream)).encode(&mut frames);
        }
        let message = agent_message(number, PayloadType::Output, &frames);
        world.client.handle_message(world.now, message);
        while world.client.poll_transmit(world.now).is_some() {}
    }
    assert_eq!(world.client.open_streams(), before);
    assert_eq!(world.client.poll_event(), None);
}
