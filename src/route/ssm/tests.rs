//! Whole tunnels on paused time, over in-memory transports, against a scripted agent.

mod agent;
mod demand;
mod found;
mod hosts;
mod leave;
#[cfg(feature = "demo")]
mod proof;
mod recovery;
mod sessions;
mod share;
mod sockets;
mod streams;
pub(super) mod support;
