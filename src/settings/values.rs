//! The rules of settings that are text: what each may be, wherever it is given.

use crate::{
    bastion::{Bastion, SessionDocument},
    forward::Forward,
    util::arn::Arn,
};

/// Most characters in a session's reason, which is the limit of `StartSession`.
const MAX_REASON_LEN: usize = 256;

/// Most characters in a manager's name: the path of its socket may have 100 bytes or so.
const MAX_NAME_LEN: usize = 32;

/// Most characters in a context prefix; just a guard against a slip of the hand.
const MAX_PREFIX_LEN: usize = 64;

/// Most characters in the name of a context; the ARNs that `aws eks update-kubeconfig` writes have up to 150.
const MAX_CONTEXT_LEN: usize = 300;

/// Most characters in a cluster's name, the limit of EKS.
const MAX_CLUSTER_NAME_LEN: usize = 100;

/// Most characters in the name of a container image, the limit of ECS.
const MAX_IMAGE_LEN: usize = 255;

/// Most characters in an audience.
const MAX_AUDIENCE_LEN: usize = 255;

pub(super) fn is_bastion(text: &str) -> bool {
    text.parse::<Bastion>().is_ok()
}

pub(super) fn is_document(text: &str) -> bool {
    text.parse::<SessionDocument>().is_ok()
}

pub(super) fn is_forward(text: &str) -> bool {
    text.parse::<Forward>().is_ok()
}

/// Tells whether EKS would take this as the name of a cluster.
pub(super) fn is_cluster_name(text: &str) -> bool {
    text.len() <= MAX_CLUSTER_NAME_LEN
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// Tells whether a line can name a context. kubectl takes any name.
pub(super) fn is_context(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= MAX_CONTEXT_LEN && !text.contains(char::is_control)
}

pub(super) fn is_context_prefix(text: &str) -> bool {
    text.len() <= MAX_PREFIX_LEN && !text.contains(|c: char| c.is_control() || c.is_whitespace())
}

pub(super) fn is_reason(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= MAX_REASON_LEN && !text.contains(char::is_control)
}

pub(super) fn is_manager_name(text: &str) -> bool {
    text.len() <= MAX_NAME_LEN
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Tells whether IAM would take this as a role: its ARN, or its name alone.
pub(super) fn is_role(text: &str) -> bool {
    let is_of_names = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    is_role_arn(text) || ((1..=64).contains(&text.len()) && text.bytes().all(is_of_names))
}

pub(super) fn is_image(text: &str) -> bool {
    let is_of_names = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/@-".contains(&byte);
    (1..=MAX_IMAGE_LEN).contains(&text.len()) && text.bytes().all(is_of_names)
}

pub(super) fn is_security_group(text: &str) -> bool {
    is_id(text, "sg-")
}

pub(super) fn is_subnet(text: &str) -> bool {
    is_id(text, "subnet-")
}

/// Tells whether it is an id of EC2: 8 or 17 hexadecimal digits behind its kind.
fn is_id(text: &str, kind: &str) -> bool {
    text.strip_prefix(kind).is_some_and(|id| {
        matches!(id.len(), 8 | 17) && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

pub(super) fn is_profile(text: &str) -> bool {
    !text.is_empty()
}

pub(super) fn is_session_name(text: &str) -> bool {
    !text.is_empty()
}

/// Tells whether STS would take this as an external id.
pub(super) fn is_external_id(text: &str) -> bool {
    (2..=1224).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&byte))
}

/// Longest key and longest value of a session tag, in characters.
const MAX_TAG_LENS: (usize, usize) = (128, 256);

/// Tells whether STS would take this as a session tag.
pub(super) fn is_tag(text: &str) -> bool {
    let Some((key, value)) = text.split_once('=') else { return false };
    is_tag_key(key) && value.chars().count() <= MAX_TAG_LENS.1 && value.chars().all(is_of_tag)
}

/// Tells whether STS would take this as the key of a session tag, that is of one which is not its own.
pub(super) fn is_tag_key(text: &str) -> bool {
    let is_own = text.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("aws:"));
    (1..=MAX_TAG_LENS.0).contains(&text.chars().count()) && text.chars().all(is_of_tag) && !is_own
}

fn is_of_tag(c: char) -> bool {
    c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c)
}

pub(super) fn is_audience(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_AUDIENCE_LEN && text.bytes().all(|byte| byte.is_ascii_graphic())
}

pub(super) fn is_region(text: &str) -> bool {
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.len() <= 32 && text.contains('-') && text.split('-').all(word)
}

pub(super) fn is_role_arn(text: &str) -> bool {
    let Some(Arn { partition, service, region, account, resource }) = Arn::parse(text) else { return false };
    !partition.is_empty()
        && partition.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
        && service == "iam"
        && region.is_empty()
        && account.len() == 12
        && account.bytes().all(|b| b.is_ascii_digit())
        && resource
            .strip_prefix("role/")
            .is_some_and(|name| !name.is_empty() && !name.ends_with('/') && name.bytes().all(|b| b.is_ascii_graphic()))
}
