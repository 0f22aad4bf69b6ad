//! Words of commands that are printed to be pasted, quoted for the shell that will read them.
//!
//! Names in such commands come from AWS, from API servers and from users. [`command!`] makes each of them one word,
//! whatever is in it; a word that no command should have is refused: a placeholder takes its place.

use std::{borrow::Cow, fmt, path::Path};

use super::peer_text::{PeerText, is_deceptive};

/// Stands for a word with characters that could make a command another than it looks.
const REFUSED: &str = "NAME_THAT_CANNOT_BE_SHOWN";

/// A language of shells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    /// That of bash, zsh and every other shell that reads POSIX's.
    Posix,
    Fish,
    /// csh and tcsh.
    Csh,
    PowerShell,
}

impl Language {
    /// Writes a text as one word between quotes.
    pub(crate) fn quote(self, text: &str) -> String {
        let mut quoted = String::with_capacity(text.len() + 2);
        quoted.push('\'');
        for c in text.chars() {
            match (self, c) {
                (Self::Posix | Self::Csh, '\'') => quoted.push_str(r"'\''"),
                // It looks back in history and ends at line breaks even between quotes.
                (Self::Csh, '!' | '\n') => quoted.extend(['\\', c]),
                // Between fish's quotes a backslash still protects itself and the quote.
                (Self::Fish, '\'' | '\\') => quoted.extend(['\\', c]),
                // PowerShell takes typographic quotes for quotes as well. Doubled they stand for themselves.
                (Self::PowerShell, '\'' | '\u{2018}' | '\u{2019}' | '\u{201a}' | '\u{201b}') => quoted.extend([c, c]),
                _ => quoted.push(c),
            }
        }
        quoted.push('\'');
        quoted
    }
}

/// One word of a command, or a piece of one that was made of such words already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word(String);

impl Word {
    /// Takes a piece of a command that was written with care, such as the output of another command.
    pub(crate) fn raw(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<T: ToWord + ?Sized> From<&T> for Word {
    fn from(word: &T) -> Self {
        word.to_word()
    }
}

/// What can be a word of a command.
pub(crate) trait ToWord {
    /// Writes it as one word, whatever is in it.
    fn to_word(&self) -> Word;
}

impl ToWord for str {
    fn to_word(&self) -> Word {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@+=,%".contains(&byte);
        if self.contains(|c: char| c.is_control() || is_deceptive(c) || matches!(c, '\u{2028}' | '\u{2029}')) {
            Word::raw(REFUSED)
        } else if !self.is_empty() && self.bytes().all(is_plain) {
            Word::raw(self)
        } else {
            Word(Language::Posix.quote(self))
        }
    }
}

impl ToWord for PeerText {
    fn to_word(&self) -> Word {
        if self.is_altered() { Word::raw(REFUSED) } else { (**self).to_word() }
    }
}

impl ToWord for String {
    fn to_word(&self) -> Word {
        self.as_str().to_word()
    }
}

impl ToWord for Cow<'_, str> {
    fn to_word(&self) -> Word {
        (**self).to_word()
    }
}

impl ToWord for Path {
    fn to_word(&self) -> Word {
        self.to_string_lossy().to_word()
    }
}

impl ToWord for Word {
    fn to_word(&self) -> Word {
        self.clone()
    }
}

impl<T: ToWord + ?Sized> ToWord for &T {
    fn to_word(&self) -> Word {
        (**self).to_word()
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {
        $(impl ToWord for $number {
            fn to_word(&self) -> Word {
                Word(self.to_string())
            }
        })*
    };
}

numbers!(u16, u32, u64);

/// Writes a command, or a sentence with one in it: each `{}` of the literal is one word of the shell.
macro_rules! command {
    ($text:literal $(, $word:expr)* $(,)?) => {
        format!($text $(, $crate::util::quote::Word::from(&$word))*)
    };
}

pub(crate) use command;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn quotes_for_each_shell() {
        for (language, quoted) in [
            (Language::Posix, r"'it'\''s \n! ‘x’'"),
            (Language::Fish, r"'it\'s \\n! ‘x’'"),
            (Language::Csh, r"'it'\''s \n\! ‘x’'"),
            (Language::PowerShell, r"'it''s \n! ‘‘x’’'"),
        ] {
            assert_eq!(language.quote("it's \\n! ‘x’"), quoted);
        }
    }

    #[test]
    fn every_word_of_a_command_stays_one() {
        let name = "x'; touch /tmp/x; echo '$(id)`id`";
        let shown = command!("printf '<%s>' {} {} {}", name, 7_u16, Path::new("a b"));
        let output = Command::new("sh").arg("-c").arg(&shown).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("<{name}><7><a b>"));
        assert_eq!(command!("aws {}", "arn:aws:iam::1:role/a@b"), "aws arn:aws:iam::1:role/a@b");
        assert_eq!(command!("a {} {}", "", Word::raw("\"$(b)\"")), "a '' \"$(b)\"");
    }

    #[test]
    fn words_that_would_make_another_command_are_refused() {
        for name in ["a\nid", "a\rid", "a\x1b[2K", "a\u{202e}b", "a\u{200b}", "a\u{9b}", "a\u{2028}b"] {
            assert_eq!(command!("rm {}", PeerText::new(name)), "rm NAME_THAT_CANNOT_BE_SHOWN", "{name:?}");
            assert_eq!(command!("rm {}", name), "rm NAME_THAT_CANNOT_BE_SHOWN", "{name:?}");
        }
    }
}
