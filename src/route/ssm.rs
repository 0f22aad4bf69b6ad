//! The way through Systems Manager: a session with an agent, whose data channel a WebSocket carries.

pub mod proto;
