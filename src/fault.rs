//! What went wrong, in one form for all parts: its class, its cause, and what to do about it.
//!
//! Whoever finds a fault knows what it means and what would help; whoever has to go on, or to say it, goes by the
//! class alone.

use std::{error::Error, fmt};

/// An error of any type, kept as a source.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// What a fault means for whoever has to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It passes by itself.
    Transient,
    /// The other side asks for fewer calls.
    Throttled,
    /// The route leads nowhere at present, which may change by itself.
    Away,
    /// What the route led through is gone, and is usually replaced within minutes.
    Replaced,
    /// What the route leads through does not exist.
    Gone,
    /// This identity may not take this route. Another it may.
    Denied,
    /// The route is refused for another reason than permission, and would be again.
    Refused,
    /// The link was there and did not lead to the destination. Another route may.
    Useless,
    /// Whatever the link leads through is not fit for it, or answers as a stranger would.
    Unfit,
    /// The identity is of no use on any route.
    Identity,
    /// The link has ended, as links do.
    Over,
    Bug,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 12] = [
        Self::Transient,
        Self::Throttled,
        Self::Away,
        Self::Replaced,
        Self::Gone,
        Self::Denied,
        Self::Refused,
        Self::Useless,
        Self::Unfit,
        Self::Identity,
        Self::Over,
        Self::Bug,
    ];

    /// Whether it says that a route cannot be taken, and that another one should be at once.
    #[must_use]
    pub fn is_of_route(self) -> bool {
        matches!(self, Self::Away | Self::Replaced) || self.needs_another_route()
    }

    /// Whether it says that a route cannot be taken until a human has done something.
    #[must_use]
    pub fn needs_another_route(self) -> bool {
        matches!(self, Self::Gone | Self::Denied | Self::Refused)
    }
}

/// Something that went wrong.
#[derive(Debug)]
pub struct Fault {
    pub class: Class,
    /// What to do about it: sentences without full stop, commands in backticks.
    pub hints: Vec<String>,
    source: BoxError,
}

impl Fault {
    /// Makes a fault of its cause, whose words are its own.
    #[must_use]
    pub fn new(class: Class, source: impl Into<BoxError>) -> Self {
        Self { class, hints: Vec::new(), source: source.into() }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hints(mut self, hints: impl IntoIterator<Item = String>) -> Self {
        self.hints.extend(hints);
        self
    }

    /// Returns the cause, if it is of this type.
    #[must_use]
    pub fn cause<E: Error + 'static>(&self) -> Option<&E> {
        self.source.downcast_ref()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}
