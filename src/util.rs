//! What every part may use, and what uses no part.

pub mod folder;
pub mod read;
pub mod replace;
pub(crate) mod yaml;
