//! What has to hold for any line on the control socket: the body of the fuzz target `control`.
//!
//! Built for the fuzzer and for unit tests only.

use std::path::Path;

use super::{Answer, ControlError, MAX_REQUEST_LEN, wire};

/// Reads a line as a request and as an answer.
pub fn control(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(data) else { return };
    match wire::decode_request(line) {
        Ok(request) => {
            let encoded = wire::encode_request(&request);
            assert_is_line(&encoded);
            assert_eq!(wire::decode_request(&encoded), Ok(request));
        }
        Err(refusal) => {
            assert!(matches!(refusal.code.as_str(), "malformed-request" | "unknown-version" | "unknown-request"));
            let encoded = wire::encode_refusal(&refusal);
            assert_is_line(encoded.expose());
            let Err(ControlError::Refused { source }) = wire::decode_answer(encoded.expose(), Path::new("/")) else {
                panic!("a refusal is read as one");
            };
            assert_eq!(source, refusal);
            // What the client's words are repeated in has to fit a line as they did.
            assert!(data.len() as u64 > MAX_REQUEST_LEN / 8 || encoded.expose().len() as u64 <= MAX_REQUEST_LEN);
        }
    }
    if let Ok(answer) = wire::decode_answer(line, Path::new("/")) {
        let encoded = wire::encode_answer(&answer);
        assert_is_line(encoded.expose());
        let again =
            wire::decode_answer(encoded.expose(), Path::new("/")).expect("what this program writes can be read");
        assert_eq!(wire::encode_answer(&again).expose(), encoded.expose());
        if let Answer::Token(token) = &answer {
            assert!(!format!("{answer:?}").contains(token.token.expose()) || token.token.expose().len() < 16);
        }
    }
}

fn assert_is_line(text: &str) {
    assert_eq!(text.find(['\n', '\r']), Some(text.len() - 1), "one line");
    assert!(text.ends_with('\n'));
}
