//! What has to hold for any line on the control socket: the body of the fuzz target `control`.
//!
//! Built for the fuzzer and for unit tests only.

use super::{ControlError, MAX_LINE_LEN, wire};

/// Reads a line as a request and as an answer.
pub fn control(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(data) else { return };
    match wire::decode_request(line) {
        Ok(wire::Request::Token(request)) => {
            let encoded = wire::encode_token_request(&request);
            assert_is_line(&encoded);
            assert_eq!(wire::decode_request(&encoded), Ok(wire::Request::Token(request)));
        }
        Err(refusal) => {
            assert!(matches!(refusal.code.as_str(), "malformed-request" | "unknown-version" | "unknown-request"));
            let encoded = wire::encode_refusal(&refusal);
            assert_is_line(encoded.expose());
            let Err(ControlError::Refused { source }) = wire::decode_token(encoded.expose()) else {
                panic!("a refusal is read as one");
            };
            assert_eq!(source, refusal);
            // What the client's words are repeated in has to fit a line as they did.
            assert!(data.len() as u64 > MAX_LINE_LEN / 8 || encoded.expose().len() as u64 <= MAX_LINE_LEN);
        }
    }
    if let Ok(answer) = wire::decode_token(line) {
        let encoded = wire::encode_token(&answer);
        assert_is_line(encoded.expose());
        let again = wire::decode_token(encoded.expose()).expect("what this program writes can be read");
        assert_eq!((again.token.expose(), again.expires), (answer.token.expose(), answer.expires));
        assert!(!format!("{answer:?}").contains(answer.token.expose()) || answer.token.expose().len() < 16);
    }
}

fn assert_is_line(text: &str) {
    assert_eq!(text.find(['\n', '\r']), Some(text.len() - 1), "one line");
    assert!(text.ends_with('\n'));
}
