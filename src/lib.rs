//! autoheal-pa: private EKS clusters, reachable for kubectl through SSM Session Manager.

pub mod proto;
