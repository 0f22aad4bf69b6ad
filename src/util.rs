//! What every part may use, and what uses no part.

pub mod arn;
pub mod backoff;
pub mod connection;
pub mod folder;
#[cfg(target_os = "macos")]
pub mod kernel;
pub(crate) mod peer_text;
pub(crate) mod quote;
pub mod read;
pub mod replace;
pub mod rotated;
pub mod time;
pub(crate) mod written;
pub(crate) mod yaml;
