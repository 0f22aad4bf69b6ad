//! Habits that agents have given up, by their version.

use crate::route::ssm::proto::handshake::Version;

/// The first agent that acknowledges duplicates, and that resolves the destination's host once for the session instead of
/// anew for each connection.
const FIRST_WITHOUT_OLD_HABITS: Version = Version([3, 2, 1041, 0]);

/// Whether an agent drops duplicates without a word, and resolves the destination's host for each connection. One whose
/// version cannot be read counts as new.
pub(in crate::emulator) fn are_old(version: &str) -> bool {
    Version::parse(version).is_some_and(|version| version < FIRST_WITHOUT_OLD_HABITS)
}
