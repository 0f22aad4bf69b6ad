//! What a terminal sends when a key is pressed.

/// Longest sequence of one key, in bytes. Real ones have up to eight.
const MAX_SEQUENCE_LEN: usize = 32;

/// Keys that mean something to a screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Escape,
    Char(char),
}

/// Takes bytes as they come, in any pieces.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The beginning of a sequence.
    begun: Vec<u8>,
}

impl Decoder {
    /// Returns the keys that are complete.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Key> {
        self.begun.extend_from_slice(bytes);
        let mut keys = Vec::new();
        let mut rest = &self.begun[..];
        while let Some((key, len)) = first(rest) {
            keys.extend(key);
            rest = &rest[len..];
        }
        self.begun = if rest.len() > MAX_SEQUENCE_LEN { Vec::new() } else { rest.to_vec() };
        keys
    }

    /// Takes note that nothing has come for a while: what has begun as a sequence is none.
    pub(super) fn quiet(&mut self) -> Option<Key> {
        let begun = std::mem::take(&mut self.begun);
        (begun == [ESCAPE]).then_some(Key::Escape)
    }
}

const ESCAPE: u8 = 0x1b;

/// Returns the first key, if it is one that means something, and its length; `None`: there may be more to come.
fn first(bytes: &[u8]) -> Option<(Option<Key>, usize)> {
    match bytes {
        [] | [ESCAPE] => None,
        [ESCAPE, b'[' | b'O', sequence @ ..] => {
            let end = sequence.iter().position(|byte| (0x40..=0x7e).contains(byte))?;
            let key = match (sequence[end], &sequence[..end]) {
                (b'A', _) => Some(Key::Up),
                (b'B', _) => Some(Key::Down),
                (b'H', _) | (b'~', b"1" | b"7") => Some(Key::Home),
                (b'F', _) | (b'~', b"4" | b"8") => Some(Key::End),
                (b'~', b"5") => Some(Key::PageUp),
                (b'~', b"6") => Some(Key::PageDown),
                _ => None,
            };
            Some((key, end + 3))
        }
        [ESCAPE, ..] => Some((Some(Key::Escape), 1)),
        [byte, ..] => Some(((byte.is_ascii_graphic() || *byte == b' ').then(|| Key::Char(char::from(*byte))), 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_keys_in_any_pieces() {
        let all = b"q\x1b[A\x1b[B\x1bOA\x1b[5~\x1b[6~\x1b[H\x1b[4~\x1b[1;5Cd\xc3\xa9\x03";
        let expected = [
            Key::Char('q'),
            Key::Up,
            Key::Down,
            Key::Up,
            Key::PageUp,
            Key::PageDown,
            Key::Home,
            Key::End,
            Key::Char('d'),
        ];
        assert_eq!(Decoder::default().feed(all), expected);
        let mut decoder = Decoder::default();
        let keys: Vec<_> = all.iter().flat_map(|byte| decoder.feed(&[*byte])).collect();
        assert_eq!(keys, expected);
    }

    #[test]
    fn an_escape_is_one_when_nothing_follows() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.feed(b"\x1b"), []);
        assert_eq!(decoder.quiet(), Some(Key::Escape));
        assert_eq!(decoder.feed(b"[A"), [Key::Char('['), Key::Char('A')]);
        assert_eq!(decoder.feed(b"\x1bq"), [Key::Escape, Key::Char('q')]);
        assert_eq!((decoder.feed(b"\x1b["), decoder.quiet()), (Vec::new(), None));
        assert_eq!(decoder.quiet(), None);
    }

    #[test]
    fn what_never_ends_fills_no_memory() {
        let mut decoder = Decoder::default();
        for _ in 0..100 {
            assert_eq!(decoder.feed(b"\x1b[111111111111111111111111111111111111"), []);
        }
        assert!(decoder.begun.len() <= MAX_SEQUENCE_LEN);
    }
}
