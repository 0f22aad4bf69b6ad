//! Agents that drop repeats without acknowledging them: what shows that a message has arrived all the same.
//!
//! Agents before 3.2.1041.0 acknowledge a message when they process it, and one that comes early each time it comes.
//! One that they have processed already they drop without a word (`datachannel.go` of amazon-ssm-agent, fixed in
//! 3.2.1041.0). When its acknowledgement is lost with a transport, the message is repeated in vain for ever.
//!
//! The conclusion: such an agent has three answers to a repeat. It acknowledges what it waits for and what is early, and is
//! silent on what it has processed, which is everything below the number that it waits for. So if the latest message in
//! doubt is repeated, the repeat arrives, and no acknowledgement comes, then that message and all before it were processed.
//! What cannot be seen is whether the repeat has arrived, and a wrong guess would leave the agent waiting for ever for a
//! message that never comes again. Hence the conditions:
//!
//! * Only the version of the agent allows the conclusion at all.
//! * Only what was first sent before the last disturbance is in doubt: a new transport, the end of a pause, or a message
//!   that stayed unacknowledged for [`SUSPICION`] (the agent has a transport of its own, and nobody says when it is replaced).
//! * The agent must be known to take data. Before its port session is up it is silent on the message that it waits for, while
//!   it acknowledges later ones. It is up once it has acknowledged the first data message, or sent data itself.
//! * A repeat counts as arrived when a message that was sent well after it, and once, is acknowledged: within a
//!   transport, messages are not lost, and do not overtake each other by more than a few.
//! * Repeats before the last disturbance count for nothing: while the agent is away the service drops what is sent to it.
//! * [`PROOFS`] repeats must have arrived one after another, each [`ROUND`] after the last and each shown by a message of
//!   its own, so that a few lost messages, or an absence of the agent that nobody notices, prove nothing.
//!
//! A trial needs later messages. If nobody sends any, or the window is full of what is in doubt, fillers are sent.

use std::time::Duration;

/// How many repeats of a message must have arrived without an acknowledgement before it counts as delivered.
const PROOFS: u32 = 3;

/// Shortest time between a repeat that has proved something and the next: longer than an agent takes to come back.
const ROUND: Duration = Duration::from_millis(200);

/// When the oldest message has been waited for so long, its acknowledgement may have been lost with a transport of the agent.
const SUSPICION: Duration = Duration::from_secs(10);

/// How long a later message is waited for before another one is sent.
const WITNESS_TIMEOUT: Duration = Duration::from_secs(1);

/// What is known of an agent, and of the messages that it may have processed.
#[derive(Debug, Default)]
pub(super) struct OldAgent {
    /// It drops repeats.
    drops_repeats: bool,
    /// It takes data.
    takes_data: bool,
    /// What is outstanding below this number is in doubt.
    doubted_below: i64,
    /// Position, among all transmissions, of the first one after the last disturbance.
    since_order: u64,
    /// How many repeats of the latest message in doubt have arrived.
    proofs: u32,
    trial: Option<Trial>,
}

/// A repeat of the latest message in doubt.
#[derive(Debug, Clone, Copy)]
struct Trial {
    /// Position of the first transmission that shows that the repeat has arrived.
    witness_order: u64,
    /// When a message was last sent that shows it.
    witness_sent: Option<Duration>,
}

impl OldAgent {
    /// Sets whether the agent is one that drops repeats, and may be sent fillers.
    pub(super) fn set_drops_repeats(&mut self, drops_repeats: bool) {
        self.drops_repeats = drops_repeats;
    }

    pub(super) fn drops_repeats(&self) -> bool {
        self.drops_repeats
    }

    /// Takes note that the agent's port session is up.
    pub(super) fn takes_data(&mut self) {
        self.takes_data = true;
    }

    /// Takes note that acknowledgements may have been lost of every message below `next_number`; the next transmission has
    /// position `next_order`.
    pub(super) fn disturbed(&mut self, next_number: i64, next_order: u64) {
        self.doubted_below = next_number;
        self.since_order = next_order;
        self.restart();
    }

    fn restart(&mut self) {
        self.proofs = 0;
        self.trial = None;
    }

    /// Returns the latest message in doubt; `first_number` is the oldest outstanding one.
    pub(super) fn suspect(&self, first_number: i64) -> Option<i64> {
        let is_in_doubt = self.drops_repeats && self.takes_data && self.doubted_below > first_number;
        is_in_doubt.then(|| self.doubted_below - 1)
    }

    /// Takes note that nothing from `number` on is in doubt any more.
    pub(super) fn cleared_from(&mut self, number: i64) {
        if number < self.doubted_below {
            self.doubted_below = number;
            self.restart();
        }
    }

    /// Whether an outstanding message, last sent at position `order`, has had its repeat, and waits for the trial of the
    /// latest one.
    pub(super) fn is_on_trial(&self, number: i64, order: u64) -> bool {
        self.drops_repeats && self.takes_data && number < self.doubted_below && order >= self.since_order
    }

    /// Takes note that the latest message in doubt was sent again; what has position `witness_order` or a later one was
    /// sent well after it. A trial that is under way goes on: the further repeat only adds to it.
    pub(super) fn repeated(&mut self, witness_order: u64) {
        self.trial.get_or_insert(Trial { witness_order, witness_sent: None });
    }

    /// Returns when the latest message in doubt is to be sent again, if it was last sent then.
    pub(super) fn repeat_at(&self, last_sent: Duration) -> Option<Duration> {
        self.trial.is_none().then(|| last_sent + ROUND)
    }

    /// Takes note that a new message was sent.
    pub(super) fn sent(&mut self, order: u64, now: Duration) {
        if let Some(trial) = self.trial.as_mut().filter(|trial| trial.witness_order <= order) {
            trial.witness_sent = Some(now);
        }
    }

    /// Returns when a filler is to be sent because nothing else shows whether the repeat has arrived.
    pub(super) fn filler_at(&self) -> Option<Duration> {
        let trial = self.trial?;
        Some(trial.witness_sent.map_or(Duration::ZERO, |at| at + WITNESS_TIMEOUT))
    }

    /// Takes note of the first acknowledgement of a message that was sent once, at position `order`. Returns whether
    /// the latest message in doubt, and all before it, have been delivered.
    pub(super) fn acknowledged(&mut self, order: u64) -> bool {
        if self.trial.take_if(|trial| trial.witness_order <= order).is_some() {
            self.proofs += 1;
        }
        self.proofs >= PROOFS
    }

    /// Returns when the oldest message, which is not in doubt, comes to be so.
    pub(super) fn doubt_at(&self, oldest_since: Duration) -> Option<Duration> {
        (self.drops_repeats && self.takes_data).then(|| oldest_since + SUSPICION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// An agent after a disturbance; the messages below 10 are in doubt.
    fn disturbed() -> OldAgent {
        let mut agent = OldAgent::default();
        agent.set_drops_repeats(true);
        agent.takes_data();
        agent.disturbed(10, 100);
        agent
    }

    #[test]
    fn three_repeats_that_have_arrived_are_enough_and_two_are_not() {
        let mut agent = disturbed();
        assert_eq!((agent.suspect(4), agent.suspect(10)), (Some(9), None));
        for (order, is_enough) in [(110, false), (120, false), (130, true)] {
            agent.repeated(order);
            assert!(!agent.acknowledged(order - 1), "it was sent too early");
            assert_eq!(agent.acknowledged(order), is_enough);
            assert_eq!(agent.acknowledged(order + 1), is_enough, "a second message shows nothing more");
        }
    }

    #[test]
    fn a_disturbance_or_another_suspect_starts_anew() {
        for change in [|agent: &mut OldAgent| agent.disturbed(10, 200), |agent: &mut OldAgent| agent.cleared_from(8)] {
            let mut agent = disturbed();
            for order in [110, 120] {
                agent.repeated(order);
                assert!(!agent.acknowledged(order));
            }
            agent.repeated(130);
            change(&mut agent);
            assert!(!agent.acknowledged(300), "repeats of before count for nothing");
            agent.repeated(310);
            assert!(!agent.acknowledged(310));
        }
    }

    #[test]
    fn nothing_is_in_doubt_with_other_agents_or_before_data_is_taken() {
        let mut agent = OldAgent::default();
        agent.takes_data();
        agent.disturbed(10, 100);
        assert_eq!((agent.suspect(4), agent.doubt_at(ms(0)), agent.is_on_trial(9, 100)), (None, None, false));
        let mut agent = OldAgent::default();
        agent.set_drops_repeats(true);
        agent.disturbed(10, 100);
        assert_eq!((agent.suspect(4), agent.doubt_at(ms(0)), agent.is_on_trial(9, 100)), (None, None, false));
    }

    #[test]
    fn fillers_are_asked_for_until_a_later_message_is_under_way() {
        let mut agent = disturbed();
        assert_eq!(agent.filler_at(), None);
        agent.repeated(113);
        agent.sent(112, ms(5));
        assert_eq!(agent.filler_at(), Some(ms(0)));
        agent.sent(113, ms(6));
        assert_eq!(agent.filler_at(), Some(ms(1006)), "it may be lost");
        assert_eq!(agent.repeat_at(ms(3)), None);
        agent.acknowledged(113);
        assert_eq!((agent.filler_at(), agent.repeat_at(ms(3))), (None, Some(ms(203))));
    }
}
