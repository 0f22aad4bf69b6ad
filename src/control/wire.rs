//! The lines of the control protocol, which the module above describes.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize, de::Error};

use super::{ControlError, Refusal, TokenAnswer, TokenRequest};
use crate::secret::Secret;

/// The version of the protocol. Another one means that old fields have changed their meaning.
const VERSION: u32 = 1;

/// A request that is understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Token(TokenRequest),
}

#[derive(Serialize, Deserialize)]
struct TokenRequestLine<'a> {
    version: u32,
    request: &'a str,
    cluster: &'a str,
    region: &'a str,
}

#[derive(Serialize)]
struct TokenLine<'a> {
    version: u32,
    answer: &'static str,
    token: &'a str,
    expires: u64,
}

#[derive(Serialize)]
struct ErrorLine<'a> {
    version: u32,
    answer: &'static str,
    code: &'a str,
    message: &'a str,
}

/// Reads a request.
pub(super) fn decode_request(line: &str) -> Result<Request, Refusal> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
        request: String,
    }
    #[derive(Deserialize)]
    struct Token {
        cluster: String,
        region: String,
    }
    let malformed =
        |error: serde_json::Error| Refusal::new("malformed-request", format!("the request is malformed: {error}"));
    let head: Head = serde_json::from_str(line).map_err(malformed)?;
    if head.version != VERSION {
        let message = format!("this manager speaks version {VERSION} of the protocol, not {}", head.version);
        return Err(Refusal::new("unknown-version", message));
    }
    match head.request.as_str() {
        "token" => {
            let Token { cluster, region } = serde_json::from_str(line).map_err(malformed)?;
            Ok(Request::Token(TokenRequest { cluster, region }))
        }
        other => Err(Refusal::new("unknown-request", format!("this manager does not know the request `{other}`"))),
    }
}

/// Writes a request for a token.
pub(super) fn encode_token_request(request: &TokenRequest) -> String {
    let TokenRequest { cluster, region } = request;
    line(&TokenRequestLine { version: VERSION, request: "token", cluster, region })
}

/// Writes a token.
pub(super) fn encode_token(answer: &TokenAnswer) -> Secret<String> {
    let expires = answer.expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    Secret::new(line(&TokenLine { version: VERSION, answer: "token", token: answer.token.expose(), expires }))
}

/// Writes a refusal.
pub(super) fn encode_refusal(refusal: &Refusal) -> Secret<String> {
    let Refusal { code, message } = refusal;
    Secret::new(line(&ErrorLine { version: VERSION, answer: "error", code, message }))
}

/// Reads the answer to a request for a token.
pub(super) fn decode_token(line: &str) -> Result<TokenAnswer, ControlError> {
    #[derive(Deserialize)]
    #[serde(tag = "answer", rename_all = "kebab-case")]
    enum Answer {
        Token { token: String, expires: u64 },
        Error { code: String, message: String },
    }
    #[derive(Deserialize)]
    struct Line {
        version: u32,
        #[serde(flatten)]
        answer: Answer,
    }
    let malformed = |source| ControlError::Malformed { source };
    let Line { version, answer } = serde_json::from_str(line).map_err(malformed)?;
    if version != VERSION {
        return Err(malformed(serde_json::Error::custom(format_args!("its version is {version}, not {VERSION}"))));
    }
    match answer {
        Answer::Token { token, expires } => {
            let expires = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(expires));
            let expires = expires.ok_or_else(|| malformed(serde_json::Error::custom("its time is out of range")))?;
            Ok(TokenAnswer { token: Secret::new(token), expires })
        }
        Answer::Error { code, message } => Err(ControlError::Refused { source: Refusal { code, message } }),
    }
}

fn line(value: &impl Serialize) -> String {
    let mut line = serde_json::to_string(value).expect("strings and numbers are always JSON");
    line.push('\n');
    line
}
