//! The file that a token is kept in: that of botocore (`SSOTokenLoader`, `SSOTokenProvider`), which all AWS SDKs share.
//!
//! What is not known of it stays in it when a token is renewed.

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest as hash};
use aws_smithy_types::date_time::{DateTime, Format};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{Granted, Validity};
use crate::{
    secret::Secret,
    util::{
        read::{ReadError, read_text},
        replace::replace_private,
        written::rfc3339,
    },
};

/// Largest file that is read, in bytes: a hundred times what is in one.
const MAX_LEN: u64 = 256 << 10;

/// Where the token of a session is kept, by its name, or by the start URL where there is no name.
pub(in crate::aws) fn file(home: &Path, name: &str) -> PathBuf {
    let digest = hash(&SHA1_FOR_LEGACY_USE_ONLY, name.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    home.join(".aws/sso/cache").join(format!("{hex}.json"))
}

/// A digest of what is in the file.
pub(super) fn digest(path: &Path) -> Option<[u8; 32]> {
    let text = Zeroizing::new(read_text(path, MAX_LEN).ok()?);
    Some(Sha256::digest(text.as_bytes()).into())
}

/// A token, with what it takes to renew it.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) access: Secret<String>,
    pub(super) expires: SystemTime,
    pub(super) refresh: Option<Secret<String>>,
    /// The client's id and its secret.
    pub(super) client: Option<(String, Secret<String>)>,
    pub(super) registration_expires: Option<SystemTime>,
    pub(super) start_url: String,
    pub(super) region: String,
    /// What others have written into the file.
    pub(super) others: Map<String, Value>,
}

impl Token {
    /// Reads it; `None` if there is no file.
    ///
    /// # Errors
    /// What is wrong with the file, without anything of what is in it.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, &'static str> {
        let text = match read_text(path, MAX_LEN) {
            Ok(text) => Zeroizing::new(text),
            Err(ReadError::Io(error))
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                return Ok(None);
            }
            Err(ReadError::Io(_)) => return Err("the file cannot be read"),
            Err(ReadError::NotRegular) => return Err("it is not a regular file"),
            Err(ReadError::TooLong(_) | ReadError::NotText) => return Err("it is no such file"),
        };
        Self::parse(&text).map(Some)
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut fields: Map<String, Value> = serde_json::from_str(text).map_err(|_| "it is no JSON object")?;
        let mut take = |key: &str| match fields.remove(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        let time = |text: String| time(&text);
        let access = Secret::new(take("accessToken").ok_or("it has no `accessToken`")?);
        let expires = take("expiresAt").and_then(time).ok_or("it has no `expiresAt` that is a time")?;
        let (id, secret) = (take("clientId"), take("clientSecret").map(Secret::new));
        Ok(Self {
            access,
            expires,
            refresh: take("refreshToken").map(Secret::new),
            client: id.zip(secret),
            registration_expires: take("registrationExpiresAt").and_then(time),
            start_url: take("startUrl").unwrap_or_default(),
            region: take("region").unwrap_or_default(),
            others: fields,
        })
    }

    /// Returns what a renewal takes: the client's id and secret, and the refresh token.
    pub(super) fn renewal(&self, now: SystemTime) -> Option<(&str, &Secret<String>, &Secret<String>)> {
        let (id, secret) = self.client.as_ref()?;
        let is_known = self.registration_expires.is_some_and(|end| end > now);
        is_known.then_some((id, secret, self.refresh.as_ref()?))
    }

    pub(super) fn validity(&self) -> Validity {
        // By then it has to be renewed the next time.
        Validity { expires: self.expires, renewable: self.renewal(self.expires).is_some() }
    }

    /// Makes the one that follows.
    pub(super) fn renewed(self, granted: Granted) -> Self {
        let refresh = granted.refresh.or(self.refresh);
        Self { access: granted.access, expires: granted.expires, refresh, ..self }
    }

    /// Writes it, for its owner only and in one step.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn write(self, path: &Path) -> io::Result<()> {
        let mut fields = self.others;
        let mut put = |key: &str, value: &str| drop(fields.insert(key.to_owned(), Value::from(value)));
        put("startUrl", &self.start_url);
        put("region", &self.region);
        put("accessToken", self.access.expose());
        put("expiresAt", &rfc3339(self.expires));
        if let Some((id, secret)) = &self.client {
            put("clientId", id);
            put("clientSecret", secret.expose());
        }
        if let Some(end) = self.registration_expires {
            put("registrationExpiresAt", &rfc3339(end));
        }
        if let Some(refresh) = &self.refresh {
            put("refreshToken", refresh.expose());
        }
        let text = Zeroizing::new(serde_json::to_string(&fields)?);
        replace_private(path, text.as_bytes())
    }
}

/// Reads a time. Old versions of the AWS CLI have written `UTC` for `Z`.
fn time(text: &str) -> Option<SystemTime> {
    let text = text.strip_suffix("UTC").map_or_else(|| text.to_owned(), |start| format!("{start}Z"));
    DateTime::from_str(&text, Format::DateTimeWithOffset).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn files_have_the_names_that_botocore_gives_them() {
        let name = |name: &str| file(Path::new("/home/ann"), name).display().to_string();
        assert_eq!(name("corp"), "/home/ann/.aws/sso/cache/ee0bfd2552fbd840c02cc48b6e823320543c450f.json");
        let of_url = name("https://corp.example/start");
        assert_eq!(of_url, "/home/ann/.aws/sso/cache/f7c9b39d0b4c7a7d82c79307585f77e1c5e74378.json");
    }

    #[test]
    fn reads_what_the_aws_cli_writes_and_keeps_what_it_does_not_know() {
        // As of `aws sso login` of the AWS CLI 2.
        let text = r#"{"startUrl": "https://corp.example/start", "region": "us-east-1", "accessToken": "a", "expiresAt":
            "2026-11-29T16:00:00Z", "clientId": "c", "clientSecret": "s", "registrationExpiresAt": "2027-02-27T15:00:00Z",
            "refreshToken": "r", "newKey": {"x": 1}}"#;
        let token = Token::parse(text).unwrap();
        let now = at(1_796_000_000);
        let (id, secret, refresh) = token.renewal(now).unwrap();
        assert_eq!((id, secret.expose().as_str(), refresh.expose().as_str()), ("c", "s", "r"));
        assert_eq!(token.validity().ends(), None);
        assert!(token.renewal(at(1_900_000_000)).is_none(), "the registration is over");
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), "corp");
        let granted = Granted { access: Secret::new("b".into()), refresh: None, expires: at(1_796_000_600) };
        token.renewed(granted).write(&path).unwrap();
        let written: Value = serde_json::from_str(&read_text(&path, MAX_LEN).unwrap()).unwrap();
        let expected = serde_json::json!({
            "startUrl": "https://corp.example/start", "region": "us-east-1", "accessToken": "b",
            "expiresAt": rfc3339(at(1_796_000_600)), "clientId": "c", "clientSecret": "s",
            "registrationExpiresAt": "2027-02-27T15:00:00Z", "refreshToken": "r", "newKey": {"x": 1},
        });
        assert_eq!(written, expected);
    }

    #[test]
    fn reads_tokens_that_cannot_be_renewed_and_says_what_is_none() {
        let old = Token::parse(r#"{"accessToken": "a", "expiresAt": "2020-06-17T10:02:08UTC"}"#).unwrap();
        assert_eq!(old.validity().ends(), Some(at(1_592_388_128)));
        for (text, said) in [
            ("", "no JSON"),
            ("[]", "no JSON"),
            (r#"{"expiresAt": "2020-06-17T10:02:08Z"}"#, "accessToken"),
            (r#"{"accessToken": "hunter2", "expiresAt": "soon"}"#, "expiresAt"),
            (r#"{"accessToken": "hunter2", "expiresAt": 1}"#, "expiresAt"),
        ] {
            let what = Token::parse(text).unwrap_err();
            assert!(what.contains(said) && !what.contains("hunter2"), "{what}");
        }
    }

    #[test]
    fn only_the_owner_may_read_it_whoever_might_before() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), "corp");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, r#"{"accessToken": "a", "expiresAt": "2026-11-29T16:00:00Z"}"#).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        Token::read(&path).unwrap().unwrap().write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
