//! The ways in: what carries connections from here to a cluster.

pub mod ssm;
