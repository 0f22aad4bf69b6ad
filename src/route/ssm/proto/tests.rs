//! Two ends of a session on a virtual network: the real client against a model of the agent.
//!
//! Time is a number, the network has a seed, and every byte is compared with a reference. A failing
//! run prints its seed; the same seed gives the same run.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test that meets a new variant fails")]

mod agent;
mod faults;
mod hostile;
mod old_agents;
mod pauses;
mod scenarios;
mod traces;
mod world;
