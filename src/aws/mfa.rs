//! Codes of MFA devices, which only a person can read.
//!
//! Where there is one, the command line says so once, at its start. A code is good for one call, so none is kept.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

use futures_util::future::BoxFuture;

use crate::secret::Secret;

/// How many questions in a row may go without an answer: whoever has left the terminal is not asked for ever.
const MAX_UNANSWERED: u32 = 3;

/// Asks for the code of a device, for a role; `None`: there is no answer.
type Ask = Box<dyn Fn(Wanted) -> BoxFuture<'static, Option<Secret<String>>> + Send + Sync>;

static ASK: OnceLock<Ask> = OnceLock::new();

static UNANSWERED: AtomicU32 = AtomicU32::new(0);

/// A code that is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The device.
    pub serial: String,
    /// The role that it is wanted for.
    pub role: String,
    /// The one before was not taken.
    pub again: bool,
}

/// Has this asked for all codes that are wanted from now on.
pub fn ask_by(ask: impl Fn(Wanted) -> BoxFuture<'static, Option<Secret<String>>> + Send + Sync + 'static) {
    let _set_before = ASK.set(Box::new(ask));
}

/// Asks for a code; `None` where there is nobody to ask.
pub(super) async fn ask(wanted: Wanted) -> Option<Secret<String>> {
    let ask = ASK.get()?;
    // It counts as unanswered until there is an answer, as whoever waits for it may give up.
    if UNANSWERED.fetch_add(1, Ordering::Relaxed) >= MAX_UNANSWERED {
        return None;
    }
    let code = ask(wanted).await?;
    UNANSWERED.store(0, Ordering::Relaxed);
    Some(code)
}
