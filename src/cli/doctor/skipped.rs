//! Why checks were not made, in words.

use super::words::title;
use crate::{
    aws::AwsError,
    bastion::Target,
    doctor::{Place, Reason},
    util::peer_text::sentence,
};

pub(super) fn skipped(reason: &Reason, place: &Place) -> String {
    match reason {
        Reason::Needs(check) => format!("not tried without `{}`", title(*check)),
        Reason::NotListed if matches!(place.target, Some(Target::EcsTask(_))) => {
            "ECS containers are not in the list of managed nodes: `start session` will show".to_owned()
        }
        Reason::NotListed => "Systems Manager does not say: `start session` will show".to_owned(),
        Reason::Unasked(AwsError::AccessDenied { action, .. }) => optional(action, "`start session` will show"),
        Reason::Unread(AwsError::AccessDenied { action, .. }) => {
            optional(action, "whether the role may more than it needs is not known")
        }
        Reason::Unseen(AwsError::AccessDenied { action, .. }) => {
            optional(action, "whether a piece is missing is not known")
        }
        Reason::Unasked(error) | Reason::Unread(error) | Reason::Unseen(error) => sentence(error),
        Reason::Untold { why, .. } => why.clone(),
        Reason::NotServed => "the API server is older than Kubernetes 1.28, which cannot say".to_owned(),
        Reason::SessionOver => "the agent has ended the session".to_owned(),
        Reason::NotNeeded => "does not apply to this route".to_owned(),
        Reason::Imported => "EKS is not asked for what was imported from a kubeconfig".to_owned(),
        Reason::NotAnApiServer => "is for clusters: other hosts are not asked what they speak".to_owned(),
        Reason::TheirUser => "imported, with a user whose credentials are for kubectl alone".to_owned(),
    }
}

/// Says that a call may be denied, and what is then open.
fn optional(action: &str, open: &str) -> String {
    format!("`{action}` is optional and not allowed: {open}")
}
