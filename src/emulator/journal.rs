//! What has happened, for tests and for the eyes of whoever runs a demo.
//!
//! Every entry wakes those who wait on the journal, so no test needs to sleep for a condition.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use tokio::sync::watch;

/// Most entries that are kept; the oldest go first.
const MAX_EVENTS: usize = 10_000;

/// Most violations that are kept: one broken client makes one for each message.
const MAX_VIOLATIONS: usize = 1000;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An API call was answered.
    Api {
        /// The IAM action, `ssm:StartSession` and the like.
        action: String,
        /// The error code of the answer, if it was an error.
        error: Option<String>,
    },
    /// `StartSession` made a session.
    SessionStarted {
        /// The session's id.
        session: String,
    },
    /// `ResumeSession` gave a new token.
    SessionResumed {
        /// The session's id.
        session: String,
    },
    /// A WebSocket upgrade was refused.
    UpgradeRefused {
        /// The session's id, as far as the request named one.
        session: String,
        /// The HTTP status.
        status: u16,
        /// Why.
        reason: String,
    },
    /// A WebSocket was upgraded and opened with a good token.
    TransportOpened {
        /// The session's id.
        session: String,
        /// Whether the upgrade was signed.
        signed: bool,
    },
    /// A WebSocket is gone.
    TransportClosed {
        /// The session's id.
        session: String,
        /// Who ended it, and how.
        reason: String,
    },
    /// The handshake of a session is complete.
    HandshakeComplete {
        /// The session's id.
        session: String,
    },
    /// The agent tried to connect to a destination.
    Dialled {
        /// The session's id.
        session: String,
        /// `host:port` as the session's parameters name it.
        destination: String,
        /// Whether the connection was made.
        connected: bool,
    },
    /// A key was pushed to an instance.
    KeyPushed {
        /// The instance's id.
        instance: String,
        user: String,
    },
    /// An endpoint of EC2 Instance Connect has opened a tunnel.
    TunnelOpened {
        /// The endpoint's id.
        endpoint: String,
        /// The private address that it leads to.
        address: String,
    },
    /// A session is over.
    SessionEnded {
        /// The session's id.
        session: String,
        /// What ended it.
        reason: String,
    },
    /// A client broke the rules.
    Violation {
        /// The session's id; empty outside of sessions.
        session: String,
        /// What it did.
        what: String,
    },
}

/// The record of events.
#[derive(Debug)]
pub(super) struct Journal {
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Event>,
    violations: Vec<String>,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self { inner: Mutex::default(), version: watch::Sender::new(0) }
    }

    pub(super) fn record(&self, event: Event) {
        {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            if let Event::Violation { session, what } = &event {
                tracing::error!(%session, "the client broke the protocol: {what}");
                if inner.violations.len() < MAX_VIOLATIONS {
                    inner.violations.push(if session.is_empty() { what.clone() } else { format!("{session}: {what}") });
                }
            } else {
                tracing::debug!(?event, "emulated");
            }
            if inner.events.len() == MAX_EVENTS {
                inner.events.pop_front();
            }
            inner.events.push_back(event);
        }
        self.touch();
    }

    pub(super) fn violation(&self, session: &str, what: impl Into<String>) {
        self.record(Event::Violation { session: session.to_owned(), what: what.into() });
    }

    /// Wakes those who wait, when something that is not an event has changed.
    pub(super) fn touch(&self) {
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).events.iter().cloned().collect()
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).violations.clone()
    }
}
