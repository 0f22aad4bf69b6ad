//! Values as they are written, to values that can be worked with: the same for flags, variables and the file.
//!
//! Each function takes what was given, and adds to `problems` what is wrong with it.

use std::{ops::RangeInclusive, time::Duration};

use clap::ValueEnum;

use super::{KubeconfigMode, Problem, duration, source::Given};
use crate::cluster::Target;

/// Most characters in a session's reason, which is the limit of `StartSession`.
const MAX_REASON_LEN: usize = 256;

/// Most characters in a manager's name: the path of its socket may have 100 bytes or so.
const MAX_NAME_LEN: usize = 32;

/// Most characters in a context prefix; just a guard against a slip of the hand.
const MAX_PREFIX_LEN: usize = 64;

/// Most characters in a cluster's name, the limit of EKS.
const MAX_CLUSTER_NAME_LEN: usize = 100;

/// Times between two probes that a user may ask for, besides none at all.
const PROBE_INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// Payloads of messages that a user may ask for, in bytes. Agents took 32 KiB in one message (`StreamDataPayloadSize` of
/// the official client is 1024, and agents have no limit of their own); less than 256 would be mostly headers.
const PAYLOAD_SIZES: RangeInclusive<usize> = 256..=32 << 10;

/// Sessions of a tunnel that a user may ask for. Sessions in parallel were observed to carry up to about 10 MB/s together,
/// which eleven reach.
const SESSIONS: RangeInclusive<usize> = 1..=16;

/// Reads bastions, each once. One value may have several, separated by commas.
pub(super) fn bastions(given: &[Given], problems: &mut Vec<Problem>) -> Vec<Target> {
    let mut bastions = Vec::with_capacity(given.len());
    for given in given {
        for text in given.text().split(',') {
            match text.trim().parse() {
                Ok(target) if bastions.contains(&target) => {}
                Ok(target) => bastions.push(target),
                Err(_) => problems.push(Problem::malformed(&given.origin, text.trim(), Target::EXPECTED)),
            }
        }
    }
    bastions
}

/// Reads the names of clusters, each once.
pub(super) fn clusters(given: &[Given], problems: &mut Vec<Problem>) -> Vec<String> {
    let mut clusters: Vec<String> = Vec::with_capacity(given.len());
    for given in given {
        let name = given.text();
        if !is_cluster_name(&name) {
            problems.push(given.malformed("the name of a cluster: at most 100 letters, digits, `-` and `_`"));
        } else if !clusters.iter().any(|other| *other == name) {
            clusters.push(name.into_owned());
        }
    }
    clusters
}

/// Reads a port, or 0.
pub(super) fn port(given: &Given, problems: &mut Vec<Problem>) -> Option<u16> {
    let port = given.text().parse().ok();
    if port.is_none() {
        problems.push(given.malformed("a port: a number from 0 to 65535"));
    }
    port
}

/// Reads how contexts lead to the clusters.
pub(super) fn kubeconfig_mode(given: &Given, problems: &mut Vec<Problem>) -> Option<KubeconfigMode> {
    let mode = KubeconfigMode::from_str(&given.text(), false).ok();
    if mode.is_none() {
        problems.push(given.malformed("`direct` or `proxy`"));
    }
    mode
}

/// Reads what context names start with.
pub(super) fn context_prefix(given: &Given, problems: &mut Vec<Problem>) -> String {
    let prefix = given.text();
    if prefix.len() > MAX_PREFIX_LEN || prefix.chars().any(|c| c.is_control() || c.is_whitespace()) {
        problems.push(given.malformed("a prefix: at most 64 characters without spaces"));
    }
    prefix.into_owned()
}

/// Reads a reason for sessions.
pub(super) fn reason(given: &Given, problems: &mut Vec<Problem>) -> String {
    let reason = given.text();
    let fits = reason.chars().count() <= MAX_REASON_LEN && !reason.chars().any(char::is_control);
    if !fits || reason.trim().is_empty() {
        problems.push(given.malformed("a reason that Session Manager takes: 1 to 256 characters on one line"));
    }
    reason.into_owned()
}

/// Reads the time between two probes, or none.
pub(super) fn probe_interval(given: &Given, problems: &mut Vec<Problem>) -> Option<Duration> {
    // Nothing is nothing in every unit.
    if matches!(&*given.text(), "0" | "0s") {
        return Some(Duration::ZERO);
    }
    within(given, PROBE_INTERVALS, "`0` or between `1s` and `1h`", problems)
}

/// Reads how many sessions a tunnel may have.
pub(super) fn sessions(given: &Given, problems: &mut Vec<Problem>) -> Option<usize> {
    let sessions = given.text().parse().ok().filter(|sessions| SESSIONS.contains(sessions));
    if sessions.is_none() {
        problems.push(given.malformed("a number of sessions from 1 to 16"));
    }
    sessions
}

/// Reads the payload of a message.
pub(super) fn payload_size(given: &Given, problems: &mut Vec<Problem>) -> Option<usize> {
    let size = given.text().parse().ok().filter(|size| PAYLOAD_SIZES.contains(size));
    if size.is_none() {
        problems.push(given.malformed("a number of bytes from 256 to 32768"));
    }
    size
}

/// Reads a duration that has limits.
pub(super) fn within(
    given: &Given,
    limits: RangeInclusive<Duration>,
    expected: &'static str,
    problems: &mut Vec<Problem>,
) -> Option<Duration> {
    match duration::parse(&given.text()) {
        Ok(duration) if limits.contains(&duration) => return Some(duration),
        Ok(_) => problems.push(given.malformed(expected)),
        Err(source) => {
            let value = super::inputs::shown(&given.text());
            problems.push(Problem::Duration { origin: given.origin.clone(), value, source });
        }
    }
    None
}

/// Tells whether a manager may have this name.
pub(super) fn is_manager_name(text: &str) -> bool {
    text.len() <= MAX_NAME_LEN
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Tells whether EKS would take this as the name of a cluster.
fn is_cluster_name(text: &str) -> bool {
    text.len() <= MAX_CLUSTER_NAME_LEN
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}
