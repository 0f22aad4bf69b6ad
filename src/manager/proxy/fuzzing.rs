//! What has to hold for whatever a client of the proxy begins with: the body of the fuzz target `proxy`.
//!
//! Built for the fuzzer and for unit tests only.

use bytes::BytesMut;

use super::{
    opening::{Form, MAX_HEAD_LEN, Opening, Step, authority},
    refusal::Refusal,
};

/// How an opening has ended.
#[derive(Debug, PartialEq, Eq)]
struct End {
    said: Vec<u8>,
    form: Form,
    /// The step, or the answer to what is refused.
    outcome: Result<Step, Option<Vec<u8>>>,
    /// How many bytes the opening has taken.
    taken: usize,
}

fn open(data: &[u8], piece: usize) -> End {
    let (mut opening, mut buffer, mut said) = (Opening::default(), BytesMut::new(), Vec::new());
    let mut pieces = data.chunks(piece);
    let mut come = 0;
    let outcome = loop {
        match opening.handle(&mut buffer) {
            Ok(Step::Say(bytes)) => said.extend(bytes),
            Ok(Step::Wait) => match pieces.next() {
                Some(piece) => {
                    assert!(buffer.len() < MAX_HEAD_LEN, "it waits for no more than it can hold");
                    come += piece.len();
                    buffer.extend_from_slice(piece);
                }
                None => break Ok(Step::Wait),
            },
            outcome => break outcome,
        }
    };
    let taken = come - buffer.len();
    let answer = |refusal: Refusal| refusal.answer(opening.form());
    End { said, form: opening.form(), outcome: outcome.map_err(answer), taken }
}

/// Opens in one piece, in small ones and in single bytes.
pub fn proxy(data: &[u8]) {
    let whole = open(data, data.len().max(1));
    // A head that is refused may be so before all of it has come.
    for piece in [1, 7] {
        let pieces = open(data, piece);
        assert_eq!((&pieces.said, pieces.form, &pieces.outcome), (&whole.said, whole.form, &whole.outcome));
        assert!(whole.outcome.is_err() || pieces.taken == whole.taken);
    }
    assert!(whole.taken <= MAX_HEAD_LEN && whole.said.len() <= 2);
    match &whole.outcome {
        Ok(Step::Connect(to)) => {
            assert!(to.port > 0 && to.host.is_ascii() && !to.host.contains(|c: char| c.is_control() || c == ' '));
            // Said in the other ways, it is the same.
            assert_eq!(authority(&to.to_string()).as_ref(), Some(to));
            let again = open(format!("CONNECT {to} HTTP/1.1\r\n\r\n").as_bytes(), 1);
            assert_eq!(again.outcome.as_ref(), Ok(&Step::Connect(to.clone())));
        }
        Ok(Step::Plain) => assert_eq!(whole.taken, 0, "it is left as it is"),
        Ok(Step::Wait | Step::Say(_)) => {}
        Err(answer) => {
            let answer = answer.as_deref().expect("nobody has gone");
            match whole.form {
                Form::Http => assert!(answer.starts_with(b"HTTP/1.1 4")),
                Form::SocksMethods => assert_eq!(answer, [5, 0xff]),
                Form::Socks => assert!(answer.len() == 10 && answer[0] == 5 && (1..=8).contains(&answer[1])),
                Form::Socks4 => assert!(answer.len() == 8 && answer[0] == 0),
            }
        }
    }
}
