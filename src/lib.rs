//! autoheal-pa: private EKS clusters, reachable for kubectl through SSM Session Manager.
//!
//! ```text
//! cli ─┬─ settings    flags, environment and configuration file, read once
//!      ├─ manager     what runs while tunnels are open, and the socket at which kubectl's plugin asks it; tells what happens
//!      │    └─ tunnel ── route      listeners and the pool of links; the routes, each in a folder of its own
//!      │                   └─ ssm   sessions, transports, recovery; the protocol as values
//!      ├─ aws         credentials, clients, endpoints, errors, clusters
//!      ├─ remote      what tunnels lead to: clusters, or any other host
//!      ├─ kubeconfig  contexts and exec credentials
//!      ├─ doctor      every link from credentials to the API server, looked at in order
//!      ├─ iam         the IAM policy and the access entries that all this needs
//!      ├─ setup       what else AWS must have: a document that creates it, and whether it is there
//!      ├─ journal     the live sessions, for the next `up` to end if this one is killed
//!      ├─ fault       what went wrong, by class, with what to do about it
//!      ├─ util        folders and files that other users cannot get between
//!      ├─ version     what this program is built from
//!      └─ emulator    AWS, an agent and Kubernetes on loopback, for `demo` and tests
//! ```
//!
//! One `up`: settings → control socket → role → clusters → ports → kubeconfig → a tunnel per cluster, each
//! with a session that is proved by a TLS handshake with the API server → `tunnel ready`.
//!
//! Invariants:
//!
//! * `route::ssm::proto` has no sockets, clocks, tasks or randomness; `tunnel` knows nothing of what is behind a route; nothing but
//!   `cli` prints, and nothing but `settings` reads the environment. `tests/it/tidy.rs` checks who uses whom.
//! * No secret is logged, written to disk or put on a command line.
//! * No input of a peer, a file or a user panics.
//!
//! The library exists so that tests and examples can link it. It is not a public API.

pub mod aws;
pub mod bastion;
pub mod cli;
pub mod clock;
#[cfg(test)]
mod closed_port;
pub mod cluster;
pub mod doctor;
#[cfg(feature = "demo")]
pub mod emulator;
pub mod fault;
pub mod forward;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
pub mod iam;
pub mod journal;
pub mod kubeconfig;
pub mod manager;
pub mod overlap;
pub mod random;
pub mod remote;
pub mod route;
pub mod secret;
pub mod settings;
pub mod setup;
pub mod tunnel;
pub mod util;
pub mod version;
