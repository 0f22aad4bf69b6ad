//! The lines of the control protocol, which the module above describes.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize, de::Error};
use serde_json::Value;

use super::{Answer, ControlError, ManagerStatus, Refusal, Reloaded, Request, TokenAnswer, TokenRequest};
use crate::{secret::Secret, version};

/// The version of the protocol. Another one means that old fields have changed their meaning.
const VERSION: u32 = 1;

/// The names of the requests.
const REQUESTS: [&str; 5] = ["token", "status", "reload", "stop", "doctor"];

/// The codes with which a request is refused that is not understood, whatever it is about.
const NOT_UNDERSTOOD: [&str; 3] = ["unknown-version", "unknown-request", "malformed-request"];

/// A line, either way.
#[derive(Serialize)]
struct Line<T> {
    version: u32,
    /// Which program has written it.
    program: String,
    #[serde(flatten)]
    content: T,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
enum RequestLine {
    Token {
        cluster: String,
        region: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        account: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        starts: Option<String>,
    },
    Status {
        #[serde(default)]
        follow: bool,
    },
    Reload {},
    Stop {},
    Doctor {
        #[serde(default)]
        clusters: Vec<String>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
enum AnswerLine {
    Token {
        #[serde(with = "secret")]
        token: Secret<String>,
        expires: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
    },
    Status {
        status: Box<ManagerStatus>,
    },
    Reloaded(Reloaded),
    Stopping {},
    Finding {
        finding: Value,
    },
    Done {},
    Error {
        code: String,
        message: String,
    },
}

pub(super) fn decode_request(line: &str) -> Result<Request, Refusal> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
        /// Commands did not say so before.
        program: Option<String>,
        request: String,
    }
    let malformed =
        |error: serde_json::Error| Refusal::new("malformed-request", format!("the request is malformed: {error}"));
    let head: Head = serde_json::from_str(line).map_err(malformed)?;
    let program = head.program.as_ref();
    let asks = program.map_or("an older version".to_owned(), |program| format!("version {program}"));
    let manager = format!("this manager, version {},", version::short());
    if head.version != VERSION {
        let message = format!(
            "{manager} speaks version {VERSION} of the protocol, and a command of {asks} speaks {}",
            head.version
        );
        return Err(Refusal::new("unknown-version", message));
    }
    if !REQUESTS.contains(&head.request.as_str()) {
        let message = format!("{manager} does not know the request `{}` of a command of {asks}", head.request);
        return Err(Refusal::new("unknown-request", message));
    }
    Ok(match serde_json::from_str(line).map_err(malformed)? {
        RequestLine::Token { cluster, region, account, starts } => {
            Request::Token(TokenRequest { cluster, region, account, starts })
        }
        RequestLine::Status { follow } => Request::Status { follow },
        RequestLine::Reload {} => Request::Reload,
        RequestLine::Stop {} => Request::Stop,
        RequestLine::Doctor { clusters } => Request::Doctor { clusters },
    })
}

pub(super) fn encode_request(request: &Request) -> String {
    line(match request.clone() {
        Request::Token(TokenRequest { cluster, region, account, starts }) => {
            RequestLine::Token { cluster, region, account, starts }
        }
        Request::Status { follow } => RequestLine::Status { follow },
        Request::Reload => RequestLine::Reload {},
        Request::Stop => RequestLine::Stop {},
        Request::Doctor { clusters } => RequestLine::Doctor { clusters },
    })
}

pub(super) fn encode_answer(answer: &Answer) -> Secret<String> {
    Secret::new(line(match answer {
        Answer::Token(TokenAnswer { token, expires, port }) => {
            let expires = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            AnswerLine::Token { token: token.clone(), expires, port: *port }
        }
        Answer::Status(status) => AnswerLine::Status { status: status.clone() },
        Answer::Reloaded(reloaded) => AnswerLine::Reloaded(reloaded.clone()),
        Answer::Stopping => AnswerLine::Stopping {},
        Answer::Finding(finding) => AnswerLine::Finding { finding: finding.clone() },
        Answer::Done => AnswerLine::Done {},
    }))
}

pub(super) fn encode_refusal(refusal: &Refusal) -> Secret<String> {
    let Refusal { code, message } = refusal.clone();
    Secret::new(line(AnswerLine::Error { code, message }))
}

/// Reads an answer of the manager whose directory this is.
pub(super) fn decode_answer(line: &str, dir: &Path) -> Result<Answer, ControlError> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
        /// Managers did not say so before.
        program: Option<String>,
    }
    let malformed = |source| ControlError::Malformed { source };
    let Head { version, program } = serde_json::from_str(line).map_err(malformed)?;
    let is_other = program.as_deref() != Some(version::short().as_str());
    let other = || ControlError::OtherVersion { dir: dir.to_owned(), program: program.clone() };
    if version != VERSION {
        return Err(other());
    }
    let content = serde_json::from_str(line);
    Ok(match content.map_err(|error| if is_other { other() } else { malformed(error) })? {
        AnswerLine::Token { token, expires, port } => {
            let expires = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(expires));
            let expires = expires.ok_or_else(|| malformed(serde_json::Error::custom("its time is out of range")))?;
            Answer::Token(TokenAnswer { token, expires, port })
        }
        AnswerLine::Status { status } => Answer::Status(status),
        AnswerLine::Reloaded(reloaded) => Answer::Reloaded(reloaded),
        AnswerLine::Stopping {} => Answer::Stopping,
        AnswerLine::Finding { finding } => Answer::Finding(finding),
        AnswerLine::Done {} => Answer::Done,
        AnswerLine::Error { code, .. } if is_other && NOT_UNDERSTOOD.contains(&code.as_str()) => return Err(other()),
        AnswerLine::Error { code, message } => {
            return Err(ControlError::Refused { source: Refusal { code, message } });
        }
    })
}

/// An answer to something else than what was asked.
pub(super) fn unexpected() -> ControlError {
    ControlError::Malformed { source: serde_json::Error::custom("it is not the answer that was expected") }
}

fn line(content: impl Serialize) -> String {
    let line = Line { version: VERSION, program: version::short(), content };
    let mut line = serde_json::to_string(&line).expect("strings and numbers are always JSON");
    line.push('\n');
    line
}

/// A secret on its way.
mod secret {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::secret::Secret;

    pub(super) fn serialize<S: Serializer>(secret: &Secret<String>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(secret.expose())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Secret<String>, D::Error> {
        String::deserialize(from).map(Secret::new)
    }
}
