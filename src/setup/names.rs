//! Names that fit: AWS limits their length, and what goes into them may be long.

use sha2::{Digest, Sha256};

/// Longest names, in characters (API references of IAM, EC2, Auto Scaling, ECS and CloudFormation).
pub const ROLE: usize = 64;
pub const INSTANCE_PROFILE: usize = 128;
pub const LAUNCH_TEMPLATE: usize = 128;
pub const STACK: usize = 128;
pub const SECURITY_GROUP: usize = 255;
pub const SCALING_GROUP: usize = 255;
pub const ECS: usize = 255;
/// Longest description of a rule of a security group.
pub const RULE_ABOUT: usize = 255;

/// How much of a digest stands for what was cut off, in characters.
const DIGEST_LEN: usize = 8;

/// Returns the name if it is short enough; else what fits of it, with a digest of the whole, so that two stay two.
#[must_use]
pub fn within(name: &str, limit: usize) -> String {
    if name.chars().count() <= limit {
        return name.to_owned();
    }
    let digest: String = Sha256::digest(name).iter().take(DIGEST_LEN / 2).map(|byte| format!("{byte:02x}")).collect();
    let kept: String = name.chars().take(limit.saturating_sub(DIGEST_LEN + 1)).collect();
    format!("{}-{digest}", kept.trim_end_matches(['-', '_']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_cut_and_stay_apart() {
        for limit in [ROLE, STACK, SECURITY_GROUP] {
            let fits = "a".repeat(limit);
            assert_eq!(within(&fits, limit), fits);
            let (one, other) = (format!("{fits}b"), format!("{fits}c"));
            assert_eq!(within(&one, limit).len(), limit);
            assert_ne!(within(&one, limit), within(&other, limit));
            assert!(within(&one, limit).starts_with("aaa"));
        }
        // What is before the digest does not end with what stands between them.
        let name = format!("{}-{}", "a".repeat(54), "b".repeat(20));
        let cut = within(&name, ROLE);
        assert!(cut.starts_with(&"a".repeat(54)) && !cut.contains("--") && cut.len() <= ROLE, "{cut}");
        assert_eq!(within("ä".repeat(65).as_str(), 64).chars().count(), 64);
    }
}
