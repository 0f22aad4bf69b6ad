//! Text that somebody else has written: agents, gateways, AWS, API servers, proxies.
//!
//! It becomes a [`PeerText`] where it is decoded, so that nobody who prints it has to think of what may be in it. It is
//! one line without anything that a terminal or a log takes for more than text, and not long. Values that are worked
//! with rather than shown are checked by their character set instead.
//!
//! Uses nothing, so that the protocol's core may use it.

use std::{fmt, ops::Deref};

use serde::{Deserialize, Serialize};

/// Most characters that are kept. The longest honest text is a denial with two ARNs in it.
const MAX_LEN: usize = 500;

/// Most characters of one cause of an error, which may name several files.
const MAX_CAUSE_LEN: usize = 2000;

/// Says that there was more.
const ELLIPSIS: char = '…';

/// Text of a peer, as it can be shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct PeerText {
    shown: String,
    /// It is not what came.
    altered: bool,
}

impl PeerText {
    /// Takes text as it came.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let shown = one_line(text, MAX_LEN);
        let altered = shown != text;
        Self { shown, altered }
    }

    /// Tells whether it is not what came, so that it names something else.
    #[must_use]
    pub fn is_altered(&self) -> bool {
        self.altered
    }

    /// Takes bytes that should be UTF-8.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        // A character has four bytes at most, so no more of them can be shown.
        Self::new(&String::from_utf8_lossy(&bytes[..bytes.len().min(4 * (MAX_LEN + 1))]))
    }
}

impl Deref for PeerText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.shown
    }
}

impl fmt::Display for PeerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl From<&str> for PeerText {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for PeerText {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl From<PeerText> for String {
    fn from(text: PeerText) -> Self {
        text.shown
    }
}

impl PartialEq<str> for PeerText {
    fn eq(&self, other: &str) -> bool {
        self.shown == other
    }
}

impl PartialEq<&str> for PeerText {
    fn eq(&self, other: &&str) -> bool {
        self.shown == *other
    }
}

/// Writes an error and its causes in one sentence.
#[must_use]
pub(crate) fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    with_causes(String::new(), error)
}

/// Adds an error and its sources to a sentence. Errors of other crates may quote what a peer has sent.
#[must_use]
pub(crate) fn with_causes(mut text: String, error: &(dyn std::error::Error + 'static)) -> String {
    for cause in std::iter::successors(Some(error), |error| error.source()) {
        let cause = one_line(&cause.to_string(), MAX_CAUSE_LEN);
        // Some errors of other crates repeat their source.
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

/// Brings text onto one line, with single blanks, and cuts it to some characters.
fn one_line(text: &str, max_len: usize) -> String {
    let mut line = String::new();
    let mut len = 0;
    let mut blank = false;
    for c in text.chars() {
        if c.is_whitespace() || c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            blank = !line.is_empty();
            continue;
        }
        if is_deceptive(c) {
            continue;
        }
        if len + 1 + usize::from(blank) > max_len {
            line.push(ELLIPSIS);
            break;
        }
        if std::mem::take(&mut blank) {
            line.push(' ');
            len += 1;
        }
        line.push(c);
        len += 1;
    }
    line
}

/// Tells whether a character shows nothing of itself and changes how others are shown: marks of direction, joiners,
/// tags, and others of no width.
pub(crate) fn is_deceptive(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_of_peers_is_one_harmless_line() {
        for (text, shown) in [
            ("no such host", "no such host"),
            ("a\r\nready: all is well\t!\n", "a ready: all is well !"),
            ("\x1b]0;title\x07\x1b[2Jgone\u{9b}31m", "]0;title [2Jgone 31m"),
            ("user \u{202e}txt.exe\u{2069}\u{200b}", "user txt.exe"),
            ("a\u{2028}b\u{85}c\u{b}d", "a b c d"),
            ("größer 日本 😀", "größer 日本 😀"),
            (" \n ", ""),
        ] {
            assert_eq!(PeerText::new(text), shown);
            assert_eq!(serde_json::from_str::<PeerText>(&serde_json::to_string(text).unwrap()).unwrap(), shown);
        }
        assert_eq!(PeerText::from_bytes(b"a\xff\x00b"), "a\u{fffd} b");
    }

    #[test]
    fn long_text_of_peers_is_cut() {
        let text = PeerText::new(&"x ".repeat(4 << 20));
        assert_eq!(text.chars().count(), MAX_LEN);
        assert!(text.ends_with("x…"), "{text}");
        assert_eq!(PeerText::new(&"x".repeat(MAX_LEN)).chars().count(), MAX_LEN);
        assert_eq!(PeerText::from_bytes(&vec![b'x'; 4 << 20]).chars().count(), MAX_LEN + 1);
    }

    #[test]
    fn causes_are_on_one_line() {
        let error = std::io::Error::other("it said \"\x1b[1m\nerror: forged\"");
        assert_eq!(with_causes("failed".to_owned(), &error), "failed: it said \" [1m error: forged\"");
    }

    proptest! {
        #[test]
        fn whatever_comes_can_be_shown(text in any::<String>()) {
            let text = PeerText::new(&text);
            prop_assert!(!text.contains(|c: char| c.is_control() || is_deceptive(c)));
            prop_assert!(text.chars().count() <= MAX_LEN + 1);
        }
    }
}
