//! Whose key a server has shown: what is known of it, and what comes of that.
//!
//! Invariants: a key that is revoked is never taken, nor one of a server that is known by another; what is not known is
//! taken only if somebody has said so. What is decided here depends on nothing but what is given.
//!
//! The format is OpenSSH's, sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"; what entries mean is as in its `hostfile.c`,
//! `check_hostkeys_by_key_or_type`.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use sha2::{Digest, Sha256};

use super::client::KEY_KINDS;

/// A public key of a server, as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostKey {
    /// Such as `ssh-ed25519`.
    pub(super) kind: String,
    pub(super) blob: Vec<u8>,
}

impl HostKey {
    /// Reads a kind and its base64.
    fn read(kind: &str, base64: &str) -> Option<Self> {
        let blob = STANDARD.decode(base64).ok()?;
        // It begins with the length of its kind, and the kind.
        let named = blob.get(4..)?.starts_with(kind.as_bytes());
        let is_key = named && blob.get(..4)? == u32::try_from(kind.len()).ok()?.to_be_bytes();
        is_key.then(|| Self { kind: kind.to_owned(), blob })
    }

    /// Returns its fingerprint in OpenSSH's form.
    pub(super) fn fingerprint(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&self.blob)))
    }

    /// Returns the line by which a server of this name is known.
    pub(super) fn line(&self, name: &str) -> String {
        format!("{name} {} {}\n", self.kind, STANDARD.encode(&self.blob))
    }
}

/// What a server has shown, and proved that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) key: HostKey,
    pub(super) certificate: Option<HostCertificate>,
}

/// What an authority says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostCertificate {
    pub(super) authority: HostKey,
    /// The hosts that it is for; none: for all.
    pub(super) hosts: Vec<String>,
    /// It is one for hosts, signed by the authority, and neither too new nor too old.
    pub(super) is_valid: bool,
}

impl HostCertificate {
    /// Whether it is good for a host, if its authority is.
    fn is_for(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        self.is_valid
            && (self.hosts.is_empty() || self.hosts.iter().any(|pattern| matches(&pattern.to_ascii_lowercase(), &host)))
    }
}

/// A file of keys, and the name by which the server is known there.
#[derive(Debug, Clone)]
pub(super) struct KnownHosts {
    pub(super) path: String,
    pub(super) text: String,
    pub(super) name: String,
}

/// What is known of a server beforehand.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// The fingerprint that the user has given.
    pub(super) pin: Option<String>,
    /// Files, that of this program first.
    pub(super) files: Vec<KnownHosts>,
    /// The host that certificates have to name.
    pub(super) host: String,
}

/// What is to be said of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Known,
    /// The server is known by another key.
    Changed {
        /// Where from.
        place: String,
        /// Fingerprints and kinds of what is known.
        known: Vec<(String, String)>,
    },
    Revoked {
        /// Where it says so.
        place: String,
    },
    /// Nothing is known.
    New,
}

impl Known {
    /// Decides about a key.
    pub(super) fn verdict(&self, shown: &Shown) -> Verdict {
        for (entry, place) in self.entries() {
            let revoked = [Some(&shown.key), shown.certificate.as_ref().map(|certificate| &certificate.authority)];
            if entry.marker == Marker::Revoked && revoked.into_iter().flatten().any(|key| *key == entry.key) {
                return Verdict::Revoked { place };
            }
        }
        if let Some(pin) = &self.pin {
            if *pin == shown.key.fingerprint() {
                return Verdict::Known;
            }
            let known = vec![(pin.clone(), String::new())];
            return Verdict::Changed { place: "the pin".to_owned(), known };
        }
        let mut other: Option<(String, Vec<(String, String)>)> = None;
        for (entry, place) in self.entries() {
            let is_it = match entry.marker {
                Marker::None => entry.key == shown.key,
                Marker::Authority => shown
                    .certificate
                    .as_ref()
                    .is_some_and(|certificate| certificate.authority == entry.key && certificate.is_for(&self.host)),
                Marker::Revoked => false,
            };
            if is_it {
                return Verdict::Known;
            }
            if entry.marker == Marker::None {
                let known = (entry.key.fingerprint(), entry.key.kind);
                other.get_or_insert_with(|| (place, Vec::new())).1.push(known);
            }
        }
        other.map_or(Verdict::New, |(place, known)| Verdict::Changed { place, known })
    }

    /// Returns the kinds of keys to ask a server for: those that it is known by come first.
    pub(super) fn kinds(&self) -> Vec<&'static str> {
        let known: Vec<String> =
            self.entries().filter(|(entry, _)| entry.marker == Marker::None).map(|(e, _)| e.key.kind).collect();
        let mut kinds = KEY_KINDS.to_vec();
        kinds.sort_by_key(|kind| !known.iter().any(|known| known == kind));
        kinds
    }

    /// Whether an authority is known that may have certified the server.
    pub(super) fn has_authority(&self) -> bool {
        self.entries().any(|(entry, _)| entry.marker == Marker::Authority)
    }

    /// Returns what is about the server, and where it stands.
    fn entries(&self) -> impl Iterator<Item = (Entry, String)> {
        self.files.iter().flat_map(|file| {
            let lines = (1..).zip(file.text.lines());
            let entries = lines.filter_map(|(number, line)| Some((number, Entry::read(line, &file.name)?)));
            entries.map(|(number, entry)| (entry, format!("line {number} of `{}`", file.path)))
        })
    }
}

/// What a line is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    None,
    Authority,
    Revoked,
}

/// A line about a server.
#[derive(Debug)]
struct Entry {
    marker: Marker,
    key: HostKey,
}

impl Entry {
    /// Reads a line; `None`: it is not about this server, or is nothing that OpenSSH reads.
    fn read(line: &str, name: &str) -> Option<Self> {
        let line = line.trim_start();
        if line.starts_with('#') {
            return None;
        }
        let mut words = line.split([' ', '\t']).filter(|word| !word.is_empty());
        let first = words.next()?;
        let (marker, hosts) = match first {
            "@cert-authority" => (Marker::Authority, words.next()?),
            "@revoked" => (Marker::Revoked, words.next()?),
            _ if first.starts_with('@') => return None,
            _ => (Marker::None, first),
        };
        let name = name.to_ascii_lowercase();
        let is_about = if hosts.starts_with("|1|") { is_hash_of(hosts, &name) } else { is_in_list(hosts, &name) };
        if !is_about {
            return None;
        }
        Some(Self { marker, key: HostKey::read(words.next()?, words.next()?)? })
    }
}

/// Returns the name by which a host and a port stand in files.
pub(super) fn name_of(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

/// Whether a hash is that of a name: `|1|<salt>|<HMAC-SHA1>`.
fn is_hash_of(hashed: &str, name: &str) -> bool {
    let mut parts = hashed.split('|').skip(2).map(|part| STANDARD.decode(part));
    let (Some(Ok(salt)), Some(Ok(hash)), None) = (parts.next(), parts.next(), parts.next()) else { return false };
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    aws_lc_rs::hmac::verify(&key, name.as_bytes(), &hash).is_ok()
}

/// Whether a name meets a list of patterns, of which none that begins with `!` may be met.
fn is_in_list(patterns: &str, name: &str) -> bool {
    let mut is_met = false;
    for pattern in patterns.split(',') {
        let pattern = pattern.to_ascii_lowercase();
        match pattern.strip_prefix('!') {
            Some(pattern) if matches(pattern, name) => return false,
            Some(_) => {}
            None => is_met |= matches(&pattern, name),
        }
    }
    is_met
}

/// Whether a text meets a pattern with `*` and `?`.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut from, mut star) = (0, 0, None);
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[from] => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((star_at, star_from)) = star else { return false };
                star = Some((star_at, star_from + 1));
                at = star_at + 1;
                from = star_from + 1;
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Puts a key in the place of all that is known of a server by this name.
pub(super) fn remember(text: &str, name: &str, key: &HostKey) -> String {
    let is_kept = |line: &&str| Entry::read(line, name).is_none_or(|entry| entry.marker != Marker::None);
    let mut kept: String = text.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect();
    kept.push_str(&key.line(name));
    kept
}

/// How cloud-init marks the keys in what an instance writes to its console: `write-ssh-key-fingerprints`.
const CONSOLE_BEGIN: &str = "-----BEGIN SSH HOST KEY KEYS-----";
const CONSOLE_END: &str = "-----END SSH HOST KEY KEYS-----";

/// Reads the keys that an instance has written to its console, the last time that it did.
pub(super) fn of_console(output: &str) -> Vec<HostKey> {
    let Some(start) = output.rfind(CONSOLE_BEGIN) else { return Vec::new() };
    let block = &output[start + CONSOLE_BEGIN.len()..];
    // What is cut off in the middle may be cut off in the middle of a key.
    let Some(end) = block.find(CONSOLE_END) else { return Vec::new() };
    let of_line = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| !KEY_KINDS.contains(word));
        HostKey::read(words.next()?, words.next()?)
    };
    block[..end].lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests;
