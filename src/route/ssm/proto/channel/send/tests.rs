//! What is sent again, and when.

use super::*;
use crate::random::SplitMix64;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn sender(messages: u8, now: Duration) -> Sender {
    let mut sender = Sender::new(now);
    sender.early = Early::Over;
    for byte in 0..messages {
        sender.sent(Bytes::from(vec![byte]), 1, true, now);
    }
    sender
}

fn resends(sender: &mut Sender, now: Duration) -> Vec<u8> {
    std::iter::from_fn(|| sender.next_resend(now)).map(|message| message[0]).collect()
}

#[test]
fn a_gap_before_three_acknowledged_messages_is_sent_again() {
    let mut sender = sender(10, ms(0));
    for (number, lost) in [(0, None), (3, None), (4, Some(1)), (5, Some(2))] {
        assert!(sender.acknowledged(number, ms(50)).is_some());
        assert_eq!(resends(&mut sender, ms(50)), Vec::from_iter(lost), "after {number}");
    }
    sender.acknowledged(6, ms(51));
    assert!(resends(&mut sender, ms(51)).is_empty(), "the repeats are still under way");
    assert_eq!(sender.in_flight(), 5);
}

#[test]
fn a_lost_repeat_is_sent_again_when_later_ones_arrive() {
    let mut sender = sender(5, ms(0));
    for number in 1..5 {
        sender.acknowledged(number, ms(50));
    }
    assert_eq!(resends(&mut sender, ms(50)), [0]);
    for byte in 5..10 {
        sender.sent(Bytes::from(vec![byte]), 1, true, ms(60));
    }
    for number in 5..9 {
        sender.acknowledged(number, ms(110));
    }
    assert_eq!(resends(&mut sender, ms(110)), [0]);
}

#[test]
fn what_arrives_just_after_its_repeat_says_nothing_of_others() {
    let mut sender = sender(1, ms(0));
    sender.acknowledged(0, ms(50));
    for byte in 1..=10 {
        sender.sent(Bytes::from(vec![byte]), 1, true, ms(50));
    }
    for number in 2..=4 {
        sender.acknowledged(number, ms(100));
    }
    assert_eq!(resends(&mut sender, ms(100)), [1]);
    sender.acknowledged(1, ms(101));
    assert!(resends(&mut sender, ms(101)).is_empty(), "the other six are under way");
}

/// Sends a message each millisecond for 20 s over a path that takes 40 ms and up to `jitter` more each time. Returns the
/// part of the messages that was sent again after the first second, and the longest time to the first arrival.
fn run(jitter: u64, loss: f64) -> (f64, Duration) {
    let mut random = SplitMix64::new(1);
    let mut sender = sender(0, ms(0));
    let mut answers: BTreeSet<(Duration, i64, u64)> = BTreeSet::new();
    let mut first_sent = Vec::new();
    let (mut repeats, mut longest) = (0, ms(0));
    let mut transmit = |answers: &mut BTreeSet<(Duration, i64, u64)>, number: i64, now: Duration| {
        let unique = random.next_u64();
        if unique as f64 / u64::MAX as f64 >= loss {
            let late = random.next_u64() % (1000 * jitter + 1);
            answers.insert((now + ms(40) + Duration::from_micros(late), number, unique));
        }
    };
    let number_of = |message: &Bytes| i64::from_be_bytes(message[..].try_into().expect("a number"));
    for now in (0..20_000).map(ms) {
        while answers.first().is_some_and(|(at, ..)| *at <= now) {
            let (_, number, _) = answers.pop_first().expect("it is not empty");
            if sender.acknowledged(number, now).is_some() {
                longest = longest.max(now - first_sent[number as usize]);
            }
        }
        sender.handle_timeout(now);
        while let Some(message) = sender.next_resend(now) {
            repeats += u32::from(now >= ms(1000));
            transmit(&mut answers, number_of(&message), now);
        }
        let number = sender.next_number();
        sender.sent(Bytes::from(number.to_be_bytes().to_vec()), 1, true, now);
        first_sent.push(now);
        transmit(&mut answers, number, now);
    }
    (f64::from(repeats) / 19_000.0, longest)
}

#[test]
fn messages_that_overtake_each_other_are_hardly_sent_again() {
    for jitter in [0, 10, 30, 60] {
        let (repeats, _) = run(jitter, 0.0);
        assert!(repeats < 0.02, "{repeats} of the messages at {jitter} ms");
    }
}

#[test]
fn lost_messages_are_repeated_soon_even_so() {
    for (jitter, limit) in [(0, 200), (30, 500)] {
        let (repeats, longest) = run(jitter, 0.01);
        assert!((0.009..0.05).contains(&repeats), "{repeats} of the messages at {jitter} ms");
        assert!(longest < ms(limit), "{longest:?} at {jitter} ms");
    }
}

#[test]
fn the_oldest_is_sent_again_after_the_timeout_and_then_ever_more_slowly() {
    let mut sender = sender(3, ms(0));
    let mut times = Vec::new();
    for _ in 0..5 {
        let at = sender.timeout_at().unwrap();
        sender.handle_timeout(at - ms(1));
        assert!(!sender.has_resend());
        sender.handle_timeout(at);
        assert_eq!(resends(&mut sender, at), [0]);
        times.push(at);
    }
    assert_eq!(times, [200, 600, 1400, 2400, 3400].map(ms));
}

#[test]
fn the_first_data_message_is_sent_again_early() {
    let mut sender = Sender::new(ms(0));
    sender.sent(Bytes::from_static(b"h"), 0, false, ms(0));
    sender.acknowledged(0, ms(0));
    sender.sent(Bytes::from_static(b"a"), 1, true, ms(0));
    let mut times = Vec::new();
    for _ in 0..30 {
        let at = sender.timeout_at().unwrap();
        sender.handle_timeout(at);
        assert_eq!(resends(&mut sender, at), b"a");
        times.push(at);
    }
    assert_eq!(times[..10], [10, 20, 30, 40, 60, 80, 100, 120, 160, 200].map(ms));
    assert_eq!(times[29] - times[28], MAX_TIMEOUT);
    let now = times[29] + ms(10);
    sender.acknowledged(1, now);
    sender.sent(Bytes::from_static(b"b"), 1, true, now);
    assert!(sender.timeout_at().unwrap() >= now + ms(90));
}

#[test]
fn only_messages_sent_once_are_sampled() {
    let mut sender = sender(2, ms(0));
    sender.handle_timeout(ms(200));
    assert_eq!(resends(&mut sender, ms(200)), [0]);
    sender.acknowledged(0, ms(5000));
    assert_eq!(sender.smoothed_rtt(), ms(100));
    sender.acknowledged(1, ms(5000));
    assert!(sender.smoothed_rtt() > ms(500));
}

#[test]
fn acknowledgements_of_anything_else_are_ignored() {
    let mut sender = sender(3, ms(0));
    for number in [-1, 3, i64::MIN, i64::MAX] {
        assert!(sender.acknowledged(number, ms(1)).is_none(), "{number}");
    }
    assert!(sender.acknowledged(1, ms(1)).is_some());
    assert!(sender.acknowledged(1, ms(1)).is_none());
    assert_eq!((sender.in_flight(), sender.span(), sender.next_number()), (2, 3, 3));
}

#[test]
fn after_a_new_transport_everything_goes_again_in_order() {
    let mut sender = sender(6, ms(0));
    sender.acknowledged(2, ms(1));
    sender.mark_all(ms(100));
    assert_eq!(sender.next_resend(ms(100)).unwrap()[0], 0);
    sender.acknowledged(3, ms(101));
    assert_eq!(resends(&mut sender, ms(101)), [1, 4, 5]);
}
