//! What the fuzz targets in `tests/fuzz` run: a function each, which takes any bytes and panics if something
//! does not hold.
//!
//! The functions live beside what they check and reach into what is private there. All of this is built for
//! the fuzzer (`--cfg fuzzing`) and for unit tests only, so that nothing is public for its sake. The test here
//! runs the seeds of every target, and damaged copies of them, without a fuzzer.

pub use crate::{
    aws::fuzzing::stream_url,
    kubeconfig::fuzzing::kubeconfig,
    manager::{control::fuzzing::control, proxy::fuzzing::proxy},
    route::ssm::proto::fuzzing::{handshake, message, session, smux},
    settings::fuzzing::config,
};

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        panic::catch_unwind,
        path::{Path, PathBuf},
    };

    use super::*;
    use crate::random::SplitMix64;

    /// Damaged copies that are made of each seed.
    const COPIES: u64 = 32;

    /// A target's name and its function.
    type Target = (&'static str, fn(&[u8]));

    const TARGETS: [Target; 9] = [
        ("config", config),
        ("control", control),
        ("handshake", handshake),
        ("kubeconfig", kubeconfig),
        ("message", message),
        ("proxy", proxy),
        ("session", session),
        ("smux", smux),
        ("stream_url", stream_url),
    ];

    fn dir(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(name)
    }

    /// The names in a directory, without what follows a dot.
    fn names(name: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(dir(name)).unwrap();
        let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
        entries.map(|entry| stem(entry.unwrap().path())).collect()
    }

    /// Changes, removes, doubles and moves bytes.
    fn damaged(seed: &[u8], random: &mut SplitMix64) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=random.next_u64() % 4 {
            let mut place = || (random.next_u64() % (bytes.len() as u64 + 1)) as usize;
            let (a, b) = (place(), place());
            let (start, end) = (a.min(b), a.max(b));
            match random.next_u64() % 4 {
                0 => bytes.truncate(end),
                1 if start < bytes.len() => bytes[start] = random.next_u64() as u8,
                2 => drop(bytes.drain(start..end.min(start + 16))),
                _ => {
                    let piece = bytes[start..end.min(start + 64)].to_vec();
                    bytes.splice(end..end, piece);
                }
            }
        }
        bytes
    }

    #[test]
    fn every_target_has_a_program_a_dictionary_and_seeds() {
        let expected: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        for kind in ["fuzz_targets", "dictionaries", "seeds"] {
            assert_eq!(names(kind), expected, "{kind}");
        }
    }

    #[test]
    fn what_is_fuzzed_holds_for_every_seed_and_for_damaged_copies() {
        let mut random = SplitMix64::new(1);
        for (name, check) in TARGETS {
            let mut seeds: Vec<_> =
                fs::read_dir(dir("seeds").join(name)).unwrap().map(|seed| seed.unwrap().path()).collect();
            seeds.sort();
            assert!(!seeds.is_empty(), "{name}");
            for path in seeds {
                let seed = fs::read(&path).unwrap();
                assert!(catch_unwind(|| check(&seed)).is_ok(), "{}", path.display());
                for _ in 0..COPIES {
                    let copy = damaged(&seed, &mut random);
                    assert!(catch_unwind(|| check(&copy)).is_ok(), "{name}: {}", copy.escape_ascii());
                }
            }
        }
    }
}
