//! The end of a run, with a peer that has turned honest.

use std::time::Duration;

use super::{MAX_TURNS, MessageType, PayloadType, World};

/// Most missing messages that an honest peer sends in the end. Far more fit, and take the fuzzer's time.
const MAX_GAP: i64 = 500;

impl World {
    /// Goes on with an honest peer until nothing is outstanding.
    pub(super) fn settle_honestly(&mut self) {
        self.blocked = false;
        self.session.set_reading(self.now, true);
        self.reattach();
        self.drain();
        let resume = self.message(MessageType::StartPublication, 0, PayloadType::None, b"");
        self.deliver(&resume);
        while let Some((&last, _)) = self.kept.last_key_value() {
            if last - self.expected > MAX_GAP {
                return;
            }
            for number in self.expected..last {
                if !self.kept.contains_key(&number) {
                    let filler = self.message(MessageType::OutputStreamData, number, PayloadType::None, b"");
                    self.deliver(&filler);
                }
                if self.is_over() {
                    return;
                }
            }
        }
        let mut turns = 0;
        while !self.is_over() && !self.is_settled() {
            turns += 1;
            assert!(turns < MAX_TURNS, "the session does not come to rest");
            self.acknowledge_all();
            let until = self.session.poll_timeout().unwrap_or_default();
            self.pass(until.saturating_sub(self.now.mono).min(Duration::from_millis(100)));
        }
    }

    fn is_settled(&self) -> bool {
        let stats = self.session.stats();
        let all_arrived = if self.terminated {
            self.session.terminate_acknowledged()
        } else {
            self.streams.values().all(|stream| stream.peer_closed || stream.arrived == stream.written)
        };
        // An agent that was paused while the client was away waits for a sign of life.
        let is_greeted = self.greeted || self.settled.is_empty();
        all_arrived
            && is_greeted
            && (stats.bytes_in_flight, stats.messages_early) == (0, 0)
            && self.unacknowledged().next().is_none()
    }
}
