//! The binary and the examples against the emulated AWS, with real Kubernetes clients.
//!
//! One binary for all, since the AWS SDK makes each link slow. Nothing here sleeps for a condition or uses a
//! fixed port: conditions are awaited under a deadline, ports are chosen by the system.

#![expect(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod action;
mod audit;
mod ci_jobs;
mod clients;
mod config;
mod crash;
mod credentials;
mod databases;
mod demand;
mod direct;
mod doctor;
mod documents;
mod environments;
mod examples;
mod exec;
mod fargate;
mod faults;
mod forwards;
mod found;
mod imports;
mod just_in_time;
mod kubeconfigs;
mod kubernetes;
#[expect(dead_code, reason = "the examples use the rest")]
#[path = "../lab/lab.rs"]
mod lab;
mod line;
mod local_tls;
mod login;
mod manager;
mod matrix;
mod metrics;
mod moto;
mod neighbours;
mod not_found;
mod odd_files;
mod other_users;
mod policy;
mod privilege;
mod profiles;
mod proxy;
mod recipes;
mod refusals;
mod screen;
mod session_documents;
mod sessions;
mod setup;
mod ssh;
mod started_by_kubectl;
mod support;
mod tidy;
mod transfer;
mod up;
mod versions;
mod watch;
mod wrong_input;
