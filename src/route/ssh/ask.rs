//! The question whether the key of a server that nobody knows is its own, which only a person can answer.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;

/// A key that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// By what the server is known once it is: the instance's id, or its name.
    pub known_as: String,
    /// Where it was found.
    pub place: String,
    /// Such as `ssh-ed25519`.
    pub kind: String,
    pub fingerprint: String,
    /// What to compare it with.
    pub hint: String,
}

/// Asks a person, and returns whether the key is to be taken. The question is withdrawn with the future.
#[derive(Clone)]
pub struct Ask(Arc<dyn Fn(Question) -> BoxFuture<'static, bool> + Send + Sync>);

impl Ask {
    pub fn new(ask: impl Fn(Question) -> BoxFuture<'static, bool> + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    pub(super) async fn ask(&self, question: Question) -> bool {
        (self.0)(question).await
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ask")
    }
}
