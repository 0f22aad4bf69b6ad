//! The multiplexer: many byte streams over the one byte stream of a data channel.
//!
//! smux version 1 has no window per stream and one close, FIN, which ends both directions. This end
//! makes up for it: it keeps a stream whose local program has stopped writing open for the answer.
//!
//! Invariants: what is queued is bounded per stream; nothing that has come is kept; a FIN
//! follows all data of its stream; ids are odd, rise from 3, and are never used twice.
//!
//! Source: `session.go`, `stream.go` and `frame.go` of xtaci/smux 1.5.15; `port_mux.go` of
//! amazon-ssm-agent 3.3.1142.0 for what the other end does with it.

pub mod frame;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tracing::debug;

use self::frame::{FRAME_HEADER_LEN, Frame, FrameDecoder, FrameError, MAX_FRAME_DATA_LEN, StreamId};
use super::Config;

/// Why a stream cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The handshake is not complete.
    #[error("the session is not established yet")]
    NotEstablished,
    /// Too many streams still wait for their first answer; one of them has to get it first.
    #[error("too many streams wait for the destination")]
    Busy,
    /// The session has used up its stream ids; a new session has to be started.
    #[error("the session has used up its stream ids")]
    Exhausted,
    /// The session has ended.
    #[error("the session has ended")]
    Closed,
}

/// What happened to a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MuxEvent {
    Data { id: StreamId, data: Bytes },
    Finished { id: StreamId },
    Refused { id: StreamId },
    Writable { id: StreamId },
}

/// The first stream id, and the distance to the next, as the official client numbers them.
const FIRST_ID: u32 = 3;
const ID_STEP: u32 = 2;

/// What the local side of a stream has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Local {
    /// Still writing.
    Open,
    /// Done writing; the stream stays open for the answer.
    Finished,
    /// FIN goes out after what is queued.
    Closing,
    /// FIN is out.
    Closed,
}

#[derive(Debug)]
struct Stream {
    local: Local,
    /// The agent's FIN has come, or the stream has been given up: nothing more is handed out.
    discards_input: bool,
    /// The agent's FIN has come.
    remote_closed: bool,
    /// Whether anything has come from the agent.
    answered: bool,
    syn_sent: bool,
    outbox: VecDeque<Bytes>,
    outbox_len: usize,
    /// The writer has been told to wait.
    blocked: bool,
    /// In the queue of streams that have something to send.
    queued: bool,
    last_activity: Duration,
    /// When to look whether a stream that is half-closed has had its time.
    due: Duration,
}

impl Stream {
    fn wants_to_send(&self) -> bool {
        !self.syn_sent || self.outbox_len > 0 || self.local == Local::Closing
    }

    /// Still counts against the number of streams that wait for the destination.
    fn is_silent(&self) -> bool {
        !self.answered && !self.remote_closed
    }
}

/// The client's end of the multiplexer.
#[derive(Debug)]
pub(super) struct Mux {
    decoder: FrameDecoder,
    streams: BTreeMap<StreamId, Stream>,
    next_id: Option<u32>,
    /// Streams that have something to send, each once, in the order of their turns.
    turns: VecDeque<StreamId>,
    /// A keepalive frame is to be sent.
    nop: bool,
    /// Streams whose local side has finished, by the time at which to look at them.
    half_closed: BTreeSet<(Duration, StreamId)>,
    /// Connection errors that the agent has reported and that no FIN has settled yet.
    refusals: usize,
    /// Streams that wait for their first answer.
    silent: usize,
    events: VecDeque<MuxEvent>,
    outbox_limit: usize,
    silent_limit: usize,
    half_close_timeout: Duration,
    /// How long answers wait in queues on their way.
    lag: Duration,
    half_closed_limit: usize,
    bytes_sent: u64,
    bytes_received: u64,
}

impl Mux {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            decoder: FrameDecoder::default(),
            streams: BTreeMap::new(),
            next_id: Some(FIRST_ID),
            turns: VecDeque::new(),
            nop: false,
            half_closed: BTreeSet::new(),
            refusals: 0,
            silent: 0,
            events: VecDeque::new(),
            outbox_limit: config.stream_outbox,
            silent_limit: config.silent_streams,
            half_close_timeout: config.half_close_timeout,
            lag: Duration::ZERO,
            half_closed_limit: config.half_closed_streams,
            bytes_sent: 0,
            bytes_received: 0,
        }
    }

    // Getters.

    /// Streams that a local program may still be using.
    pub(super) fn open_streams(&self) -> usize {
        self.streams.values().filter(|stream| !stream.discards_input).count()
    }

    pub(super) fn writable_len(&self, id: StreamId) -> usize {
        match self.streams.get(&id) {
            Some(stream) if stream.local == Local::Open && !stream.discards_input && !stream.blocked => {
                self.outbox_limit.saturating_sub(stream.outbox_len)
            }
            _ => 0,
        }
    }

    pub(super) fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    pub(super) fn bytes_received(&self) -> u64 {
        self.bytes_received
    }

    pub(super) fn wants_to_send(&self) -> bool {
        self.nop || !self.turns.is_empty()
    }

    // Commands.

    pub(super) fn can_open(&self) -> Result<(), OpenError> {
        if self.next_id.is_none() {
            Err(OpenError::Exhausted)
        } else if self.silent >= self.silent_limit {
            Err(OpenError::Busy)
        } else {
            Ok(())
        }
    }

    pub(super) fn open(&mut self, now: Duration) -> Result<StreamId, OpenError> {
        self.can_open()?;
        let id = StreamId(self.next_id.ok_or(OpenError::Exhausted)?);
        self.next_id = id.0.checked_add(ID_STEP);
        self.silent += 1;
        self.streams.insert(
            id,
            Stream {
                local: Local::Open,
                discards_input: false,
                remote_closed: false,
                answered: false,
                syn_sent: false,
                outbox: VecDeque::new(),
                outbox_len: 0,
                blocked: false,
                queued: false,
                last_activity: now,
                due: now,
            },
        );
        self.queue(id);
        Ok(id)
    }

    pub(super) fn write(&mut self, id: StreamId, data: Bytes) {
        let limit = self.outbox_limit;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.local != Local::Open || stream.remote_closed || data.is_empty() {
            return;
        }
        stream.outbox_len += data.len();
        stream.blocked = stream.outbox_len >= limit;
        stream.outbox.push_back(data);
        self.queue(id);
    }

    /// The local program has stopped writing and may still be reading. If too many have, the one that has been without
    /// an answer for longest is closed.
    pub(super) fn finish(&mut self, id: StreamId, now: Duration) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.local == Local::Open {
            stream.local = Local::Finished;
            stream.last_activity = now;
            self.look_at(id, now + self.half_close_timeout + self.lag);
            if self.half_closed.len() > self.half_closed_limit
                && let Some((_, id)) = self.longest_unanswered()
            {
                self.give_up(id);
            }
        }
    }

    /// The local program is gone: what it wrote is still delivered, what comes for it is discarded.
    pub(super) fn reset(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.discards_input = true;
        self.close(id);
    }

    /// Takes note of how long answers wait in queues on their way: a half-closed stream has that time as well.
    pub(super) fn set_lag(&mut self, lag: Duration) {
        self.lag = lag;
    }

    /// Queues a keepalive frame.
    pub(super) fn send_nop(&mut self) {
        self.nop = true;
    }

    /// Returns the payload of a message that may go between any two and means nothing: frames do not cross messages.
    pub(super) fn nop() -> Bytes {
        let mut payload = BytesMut::new();
        Frame::Nop.encode(&mut payload);
        payload.freeze()
    }

    /// The agent could not connect to the destination; the FIN that follows says for which stream.
    pub(super) fn connection_refused(&mut self) {
        self.refusals += 1;
    }

    // Input.

    /// Takes the next piece of the channel's byte stream.
    pub(super) fn handle_data(&mut self, data: Bytes, now: Duration) -> Result<(), FrameError> {
        self.decoder.push(data);
        while let Some(frame) = self.decoder.next_frame()? {
            match frame {
                Frame::Psh(id, data) => self.handle_psh(id, data, now),
                Frame::Fin(id) => self.handle_fin(id),
                // Agents never open streams; smux ignores what it does not expect here.
                Frame::Syn(_) | Frame::Nop => {}
            }
        }
        Ok(())
    }

    fn handle_psh(&mut self, id: StreamId, data: Bytes, now: Duration) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.remote_closed || data.is_empty() {
            return;
        }
        if !stream.answered {
            stream.answered = true;
            self.silent -= 1;
        }
        if stream.discards_input {
            return;
        }
        stream.last_activity = now;
        self.bytes_received += data.len() as u64;
        self.events.push_back(MuxEvent::Data { id, data });
    }

    fn handle_fin(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.remote_closed {
            return;
        }
        let refused = stream.is_silent() && self.refusals > 0;
        if stream.is_silent() {
            self.silent -= 1;
        }
        if refused {
            self.refusals -= 1;
        }
        stream.remote_closed = true;
        // The agent has closed its side of both directions: what is queued has nowhere to go.
        stream.outbox.clear();
        stream.outbox_len = 0;
        if !std::mem::replace(&mut stream.discards_input, true) {
            self.events.push_back(if refused { MuxEvent::Refused { id } } else { MuxEvent::Finished { id } });
        }
        self.close(id);
    }

    pub(super) fn handle_timeout(&mut self, now: Duration) {
        while self.half_closed.first().is_some_and(|(at, _)| *at <= now) {
            match self.longest_unanswered() {
                Some((due, id)) if due <= now => self.give_up(id),
                Some(_) | None => return,
            }
        }
    }

    fn give_up(&mut self, id: StreamId) {
        debug!(stream = id.0, "closing a half-closed stream without an answer");
        self.close(id);
    }

    /// Returns the half-closed stream to which nothing has come for longest, and when it has had its time.
    fn longest_unanswered(&mut self) -> Option<(Duration, StreamId)> {
        loop {
            let &(at, id) = self.half_closed.first()?;
            let due = self.streams.get(&id)?.last_activity + self.half_close_timeout + self.lag;
            if due == at {
                return Some((due, id));
            }
            self.look_at(id, due);
        }
    }

    /// Sets when to look whether a half-closed stream has had its time.
    fn look_at(&mut self, id: StreamId, due: Duration) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        self.half_closed.remove(&(stream.due, id));
        stream.due = due;
        self.half_closed.insert((due, id));
    }

    // Output.

    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        self.half_closed.first().map(|(at, _)| *at)
    }

    pub(super) fn poll_event(&mut self) -> Option<MuxEvent> {
        self.events.pop_front()
    }

    /// Appends frames to `out`, up to `limit` bytes, taking the streams in turn: a request of a few
    /// bytes waits for one frame of each busy stream, never for a bulk transfer.
    pub(super) fn fill(&mut self, out: &mut BytesMut, limit: usize) {
        let end = out.len() + limit;
        if std::mem::take(&mut self.nop) {
            Frame::Nop.encode(out);
        }
        while let Some(&id) = self.turns.front() {
            if end - out.len() <= FRAME_HEADER_LEN {
                return;
            }
            self.turns.pop_front();
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.queued = false;
            if !stream.syn_sent {
                stream.syn_sent = true;
                Frame::Syn(id).encode(out);
            }
            let room = (end - out.len()).saturating_sub(FRAME_HEADER_LEN).min(MAX_FRAME_DATA_LEN);
            if room > 0 && stream.outbox_len > 0 {
                let len = room.min(stream.outbox_len);
                self.bytes_sent += len as u64;
                stream.take_frame(id, len, out);
                if stream.blocked && stream.outbox_len <= self.outbox_limit / 2 {
                    stream.blocked = false;
                    if stream.local == Local::Open {
                        self.events.push_back(MuxEvent::Writable { id });
                    }
                }
            }
            let fin = stream.local == Local::Closing && stream.outbox_len == 0 && end - out.len() >= FRAME_HEADER_LEN;
            if fin {
                Frame::Fin(id).encode(out);
                stream.local = Local::Closed;
            }
            if stream.wants_to_send() {
                self.queue(id);
            }
            self.forget_if_done(id);
        }
    }

    /// Sends FIN after what is queued.
    pub(super) fn close(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if matches!(stream.local, Local::Open | Local::Finished) {
            self.half_closed.remove(&(stream.due, id));
            stream.local = Local::Closing;
            self.queue(id);
        }
        self.forget_if_done(id);
    }

    fn queue(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !std::mem::replace(&mut stream.queued, true)
        {
            self.turns.push_back(id);
        }
    }

    fn forget_if_done(&mut self, id: StreamId) {
        let done = |stream: &Stream| stream.remote_closed && stream.local == Local::Closed && stream.outbox_len == 0;
        if self.streams.get(&id).is_some_and(done) {
            self.streams.remove(&id);
        }
    }

    /// Checks what has to hold between any two calls.
    #[cfg(any(fuzzing, test))]
    pub(super) fn assert_invariants(&self) {
        assert_eq!(self.silent, self.streams.values().filter(|s| s.is_silent()).count());
        let half_closed = self.streams.iter().filter(|(_, s)| s.local == Local::Finished).map(|(id, s)| (s.due, *id));
        assert_eq!(self.half_closed, half_closed.collect());
        assert!(self.half_closed.len() <= self.half_closed_limit);
        assert_eq!(self.turns.len(), self.streams.values().filter(|s| s.queued).count());
        for stream in self.streams.values() {
            assert_eq!(stream.outbox_len, stream.outbox.iter().map(Bytes::len).sum::<usize>());
            assert!(!stream.wants_to_send() || stream.queued, "a stream with work has a turn");
        }
    }
}

impl Stream {
    /// Moves `len` bytes of the outbox into one frame.
    fn take_frame(&mut self, id: StreamId, len: usize, out: &mut BytesMut) {
        self.outbox_len -= len;
        frame::put_psh_header(out, id, len);
        let mut missing = len;
        while missing > 0 {
            let Some(front) = self.outbox.front_mut() else { break };
            if front.len() <= missing {
                missing -= front.len();
                out.extend_from_slice(front);
                self.outbox.pop_front();
            } else {
                out.extend_from_slice(&front.split_to(missing));
                missing = 0;
            }
        }
    }
}
