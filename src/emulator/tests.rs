//! Tests of the emulator by itself, with a client of its own: what is right goes through, what is
//! wrong is noticed.

mod agent;
mod api;
mod approval;
mod bastions;
mod channel;
mod ecs;
mod kube;
mod memory;
mod support;
mod trouble;
