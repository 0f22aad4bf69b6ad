//! What every part may use, and what uses no part.

pub(crate) mod yaml;
