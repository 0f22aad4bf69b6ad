//! Verifies Signature Version 4, of API calls, of WebSocket upgrades and of presigned URLs.
//!
//! Written against the rules that AWS publishes, without a line of the SDK, so that an error in how
//! the program signs cannot hide. Knows nothing of services; who may do what is decided elsewhere.
//!
//! Source: AWS, "Create a signed AWS API request" (IAM user guide).

use std::time::Duration;

use hyper::HeaderMap;
use sha2::{Digest, Sha256};

use super::clock::{basic_date, parse_basic_date};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Bytes that SHA-256 takes at once: HMAC's block length.
const BLOCK_LEN: usize = 64;

/// How far a signed request's date may be from the clock.
pub(super) const MAX_SKEW: Duration = Duration::from_secs(300);

/// The parts of a request that a signature covers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signed<'a> {
    pub(super) method: &'a str,
    /// The path as it was on the wire.
    pub(super) path: &'a str,
    /// The query as it was on the wire, without the question mark.
    pub(super) query: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
}

/// What a request says of its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) access_key: String,
    pub(super) region: String,
    pub(super) service: String,
    /// `20150830T123600Z`.
    pub(super) date: String,
    pub(super) signed_headers: Vec<String>,
    pub(super) signature: String,
    pub(super) security_token: Option<String>,
    /// The date of the credential scope, `20150830`.
    scope_date: String,
}

/// Why a signature does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SignatureError {
    /// Nothing is signed.
    #[error("Request is missing Authentication Token")]
    Missing,
    /// The signature's fields cannot be read.
    #[error("{0}")]
    Incomplete(String),
    /// The date is too old.
    #[error("Signature expired: {date} is now earlier than {earliest} ({now} - 5 min.)")]
    Expired { date: String, earliest: String, now: String },
    /// The date is in the future.
    #[error("Signature not yet current: {date} is still later than {latest} ({now} + 5 min.)")]
    NotYetCurrent { date: String, latest: String, now: String },
    /// The key is not one of ours.
    #[error("The security token included in the request is invalid.")]
    UnknownKey,
    /// The session credentials have expired.
    #[error("The security token included in the request is expired")]
    ExpiredToken,
    /// The credential scope names another service.
    #[error("Credential should be scoped to correct service: '{expected}'.")]
    Scope { expected: &'static str },
    /// The signature is another one.
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access \
         Key and signing method. Consult the service documentation for details."
    )]
    Mismatch,
}

/// Reads the `Authorization` header and its companions.
pub(super) fn claim_of_headers(headers: &HeaderMap) -> Result<Claim, SignatureError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = text("authorization").ok_or(SignatureError::Missing)?;
    let fields = authorization
        .strip_prefix(ALGORITHM)
        .ok_or_else(|| SignatureError::Incomplete(format!("Authorization header requires algorithm {ALGORITHM}.")))?;
    let field = |name: &str| {
        fields
            .split(',')
            .filter_map(|part| part.trim().split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .ok_or_else(|| SignatureError::Incomplete(format!("Authorization header requires '{name}' parameter.")))
    };
    let date = text("x-amz-date").ok_or_else(|| {
        SignatureError::Incomplete("Authorization header requires existence of an 'X-Amz-Date' header.".into())
    })?;
    claim(field("Credential")?, date, field("SignedHeaders")?, field("Signature")?, text("x-amz-security-token"))
}

/// Reads the parameters of a presigned query.
pub(super) fn claim_of_query(query: &str) -> Result<Claim, SignatureError> {
    let parameters = parse_query(query);
    let find = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let required =
        |name: &str| find(name).ok_or_else(|| SignatureError::Incomplete(format!("the query has no {name}")));
    if required("X-Amz-Algorithm")? != ALGORITHM {
        return Err(SignatureError::Incomplete(format!("X-Amz-Algorithm is not {ALGORITHM}")));
    }
    claim(
        required("X-Amz-Credential")?,
        required("X-Amz-Date")?,
        required("X-Amz-SignedHeaders")?,
        required("X-Amz-Signature")?,
        find("X-Amz-Security-Token"),
    )
}

fn claim(
    credential: &str,
    date: &str,
    signed_headers: &str,
    signature: &str,
    security_token: Option<&str>,
) -> Result<Claim, SignatureError> {
    let parts: Vec<&str> = credential.split('/').collect();
    let &[access_key, scope_date, region, service, "aws4_request"] = parts.as_slice() else {
        return Err(SignatureError::Incomplete("Credential must have exactly 5 slash-delimited elements.".into()));
    };
    if parse_basic_date(date).is_none() {
        return Err(SignatureError::Incomplete(format!("Date must be in ISO-8601 'basic format'. Got '{date}'.")));
    }
    if !date.starts_with(scope_date) || scope_date.len() != 8 {
        return Err(SignatureError::Incomplete(format!(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{scope_date}' != '{}'.",
            &date[..8]
        )));
    }
    Ok(Claim {
        access_key: access_key.to_owned(),
        region: region.to_owned(),
        service: service.to_owned(),
        date: date.to_owned(),
        signed_headers: signed_headers.split(';').map(str::to_owned).collect(),
        signature: signature.to_owned(),
        security_token: security_token.map(str::to_owned),
        scope_date: scope_date.to_owned(),
    })
}

impl Claim {
    /// Checks that the date is within [`MAX_SKEW`] of the clock.
    pub(super) fn check_date(&self, wall: Duration) -> Result<(), SignatureError> {
        let date = parse_basic_date(&self.date).ok_or(SignatureError::Missing)?;
        let (earliest, latest) = (wall.saturating_sub(MAX_SKEW), wall + MAX_SKEW);
        if date < earliest {
            return Err(SignatureError::Expired {
                date: self.date.clone(),
                earliest: basic_date(earliest),
                now: basic_date(wall),
            });
        }
        if date > latest {
            return Err(SignatureError::NotYetCurrent {
                date: self.date.clone(),
                latest: basic_date(latest),
                now: basic_date(wall),
            });
        }
        Ok(())
    }

    /// Checks the signature of a request that is signed in its headers.
    pub(super) fn check_headers(&self, request: &Signed<'_>, secret: &str) -> Result<(), SignatureError> {
        for required in ["host", "x-amz-date"] {
            if !self.signed_headers.iter().any(|name| name == required) {
                return Err(SignatureError::Incomplete(format!(
                    "'{required}' must be a 'SignedHeader' in the AWS Authorization."
                )));
            }
        }
        let digest = hex(&Sha256::digest(request.body));
        if let Some(stated) = request.headers.get("x-amz-content-sha256")
            && stated.as_bytes() != digest.as_bytes()
        {
            return Err(SignatureError::Mismatch);
        }
        self.check(request, &canonical_query(request.query, None), &digest, secret)
    }

    /// Checks the signature of a presigned GET without a body. `request.headers` are those that the
    /// caller of the URL would send.
    pub(super) fn check_query(&self, request: &Signed<'_>, secret: &str) -> Result<(), SignatureError> {
        let digest = hex(&Sha256::digest(b""));
        self.check(request, &canonical_query(request.query, Some("X-Amz-Signature")), &digest, secret)
    }

    fn check(&self, request: &Signed<'_>, query: &str, digest: &str, secret: &str) -> Result<(), SignatureError> {
        let headers = canonical_headers(request.headers, &self.signed_headers)?;
        let canonical = format!(
            "{}\n{}\n{query}\n{headers}\n{}\n{digest}",
            request.method,
            canonical_path(request.path),
            self.signed_headers.join(";"),
        );
        let scope = format!("{}/{}/{}/aws4_request", self.scope_date, self.region, self.service);
        let to_sign = format!("{ALGORITHM}\n{}\n{scope}\n{}", self.date, hex(&Sha256::digest(canonical.as_bytes())));
        let mut key = hmac(format!("AWS4{secret}").as_bytes(), self.scope_date.as_bytes());
        for part in [self.region.as_str(), self.service.as_str(), "aws4_request"] {
            key = hmac(&key, part.as_bytes());
        }
        let expected = hex(&hmac(&key, to_sign.as_bytes()));
        tracing::trace!(%canonical, "canonical request");
        if expected == self.signature { Ok(()) } else { Err(SignatureError::Mismatch) }
    }
}

/// Each signed header in the order of the claim, which has to be sorted: lower-case name, colon,
/// value without surrounding and repeated spaces.
fn canonical_headers(headers: &HeaderMap, names: &[String]) -> Result<String, SignatureError> {
    if !names.is_sorted() || names.iter().any(|name| name.bytes().any(|byte| byte.is_ascii_uppercase())) {
        return Err(SignatureError::Incomplete("SignedHeaders must be sorted and in lower case.".into()));
    }
    let mut canonical = String::new();
    for name in names {
        let mut values = headers.get_all(name).iter().peekable();
        if values.peek().is_none() {
            return Err(SignatureError::Incomplete(format!("'{name}' is signed but not in the request.")));
        }
        let values: Vec<String> = values
            .map(|value| {
                let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
                text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
            })
            .collect();
        canonical.push_str(&format!("{name}:{}\n", values.join(",")));
    }
    Ok(canonical)
}

/// The path encoded once more, as for every service but S3, without empty and dot segments.
fn canonical_path(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    if segments.is_empty() {
        return "/".to_owned();
    }
    let mut canonical = String::new();
    for segment in &segments {
        canonical.push('/');
        encode_into(&mut canonical, segment.as_bytes());
    }
    if path.ends_with('/') {
        canonical.push('/');
    }
    canonical
}

/// The query decoded as form data, encoded again and sorted. A literal `+` therefore counts as a
/// space, as session-manager-plugin signs the `cell-number` of a stream URL.
fn canonical_query(query: &str, without: Option<&str>) -> String {
    let mut parameters: Vec<(String, String)> = parse_query(query)
        .into_iter()
        .filter(|(name, _)| Some(name.as_str()) != without)
        .map(|(name, value)| (encode(name.as_bytes()), encode(value.as_bytes())))
        .collect();
    parameters.sort();
    parameters.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// Reads form data: names and values in order, `+` as a space.
pub(super) fn parse_query(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let escaped = (bytes[i] == b'%')
            .then(|| text.get(i + 1..i + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok()))
            .flatten();
        match (escaped, bytes[i]) {
            (Some(byte), _) => {
                decoded.push(byte);
                i += 2;
            }
            (None, b'+') => decoded.push(b' '),
            (None, byte) => decoded.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
pub(super) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    encode_into(&mut text, bytes);
    text
}

fn encode_into(text: &mut String, bytes: &[u8]) {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// HMAC with SHA-256 (RFC 2104).
pub(super) fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut block = [0_u8; BLOCK_LEN];
    if key.len() > BLOCK_LEN {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let mut inner = Sha256::new();
    inner.update(block.map(|byte| byte ^ 0x36));
    inner.update(data);
    let mut outer = Sha256::new();
    outer.update(block.map(|byte| byte ^ 0x5c));
    outer.update(inner.finalize());
    outer.finalize().into()
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (hyper::header::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    const DOCUMENTED_SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    /// The example of "Create a signed AWS API request" in the AWS General Reference.
    fn documented() -> HeaderMap {
        headers(&[
            ("host", "iam.amazonaws.com"),
            ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
            ("x-amz-date", "20150830T123600Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date, \
                 Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
            ),
        ])
    }

    #[test]
    fn accepts_the_documented_example() {
        let headers = documented();
        let claim = claim_of_headers(&headers).unwrap();
        assert_eq!((claim.access_key.as_str(), claim.service.as_str()), ("AKIDEXAMPLE", "iam"));
        let request = Signed {
            method: "GET",
            path: "/",
            query: "Action=ListUsers&Version=2010-05-08",
            headers: &headers,
            body: b"",
        };
        assert_eq!(claim.check_headers(&request, DOCUMENTED_SECRET), Ok(()));
        // The order of the parameters does not count, everything else does.
        let reordered = Signed { query: "Version=2010-05-08&Action=ListUsers", ..request };
        assert_eq!(claim.check_headers(&reordered, DOCUMENTED_SECRET), Ok(()));
        for changed in [
            Signed { method: "POST", ..request },
            Signed { path: "/users", ..request },
            Signed { query: "Action=ListRoles&Version=2010-05-08", ..request },
            Signed { body: b"x", ..request },
        ] {
            assert_eq!(claim.check_headers(&changed, DOCUMENTED_SECRET), Err(SignatureError::Mismatch));
        }
        assert_eq!(claim.check_headers(&request, "wrong"), Err(SignatureError::Mismatch));
    }

    #[test]
    fn accepts_a_date_within_five_minutes() {
        let claim = claim_of_headers(&documented()).unwrap();
        let at = parse_basic_date("20150830T123600Z").unwrap();
        for seconds in [0, 300] {
            assert_eq!(claim.check_date(at + Duration::from_secs(seconds)), Ok(()));
            assert_eq!(claim.check_date(at - Duration::from_secs(seconds)), Ok(()));
        }
        assert_eq!(
            claim.check_date(at + Duration::from_secs(301)).unwrap_err().to_string(),
            "Signature expired: 20150830T123600Z is now earlier than 20150830T123601Z (20150830T124101Z - 5 min.)"
        );
        assert!(matches!(claim.check_date(at - Duration::from_secs(301)), Err(SignatureError::NotYetCurrent { .. })));
    }

    #[test]
    fn refuses_what_cannot_be_read() {
        assert_eq!(claim_of_headers(&HeaderMap::new()), Err(SignatureError::Missing));
        for (name, value) in [
            ("authorization", "Basic abc"),
            ("authorization", "AWS4-HMAC-SHA256 Credential=A/20150830/us-east-1/iam, SignedHeaders=host, Signature=00"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=A/20150831/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=00",
            ),
            ("authorization", "AWS4-HMAC-SHA256 SignedHeaders=host, Signature=00"),
            ("x-amz-date", "yesterday"),
        ] {
            let mut headers = documented();
            headers.insert(name, value.parse().unwrap());
            assert!(matches!(claim_of_headers(&headers), Err(SignatureError::Incomplete(_))), "{value}");
        }
    }

    #[test]
    fn a_literal_plus_is_a_space() {
        assert_eq!(canonical_query("cell-number=AA+B/C==&role=x&a", None), "a=&cell-number=AA%20B%2FC%3D%3D&role=x");
        assert_eq!(canonical_query("c=AA%2BB&X-Amz-Signature=1", Some("X-Amz-Signature")), "c=AA%2BB");
        assert_eq!(canonical_path("/v1/data-channel/me@example-1,2"), "/v1/data-channel/me%40example-1%2C2");
        assert_eq!(canonical_path("//a/./b/../c%20d/"), "/a/c%2520d/");
        assert_eq!(decode("%zz%4"), "%zz%4");
    }

    /// RFC 4231, test cases 2 and 6.
    #[test]
    fn hmac_has_its_published_values() {
        assert_eq!(
            hex(&hmac(b"Jefe", b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(&hmac(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First")),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    /// Signs as a client does; the verifier is checked against published examples above.
    pub(in crate::emulator) struct Signer<'a> {
        pub(in crate::emulator) access_key: &'a str,
        pub(in crate::emulator) secret: &'a str,
        pub(in crate::emulator) session_token: Option<&'a str>,
        pub(in crate::emulator) region: &'a str,
        pub(in crate::emulator) service: &'a str,
        pub(in crate::emulator) wall: Duration,
    }

    impl Signer<'_> {
        /// Returns the headers to add to a request.
        pub(in crate::emulator) fn headers(
            &self,
            method: &str,
            host: &str,
            path: &str,
            query: &str,
            body: &[u8],
        ) -> Vec<(String, String)> {
            let date = basic_date(self.wall);
            let mut added = vec![("x-amz-date".to_owned(), date.clone())];
            if let Some(token) = self.session_token {
                added.push(("x-amz-security-token".to_owned(), token.to_owned()));
            }
            let mut all: HeaderMap = headers(&[("host", host)]);
            for (name, value) in &added {
                all.insert(hyper::header::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            }
            let mut names: Vec<String> = all.keys().map(|name| name.as_str().to_owned()).collect();
            names.sort();
            let signed = Signed { method, path, query, headers: &all, body };
            let signature =
                self.signature(&signed, &names, &date, &canonical_query(query, None), &hex(&Sha256::digest(body)));
            added.push((
                "authorization".to_owned(),
                format!(
                    "{ALGORITHM} Credential={}/{}/{}/{}/aws4_request, SignedHeaders={}, Signature={signature}",
                    self.access_key,
                    &date[..8],
                    self.region,
                    self.service,
                    names.join(";")
                ),
            ));
            added
        }

        /// Returns a presigned GetCallerIdentity URL, as a cluster's bearer token holds it.
        pub(in crate::emulator) fn caller_identity_url(&self, cluster: &str) -> String {
            let host = format!("sts.{}.amazonaws.com", self.region);
            let date = basic_date(self.wall);
            let mut query = format!(
                "Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Algorithm={ALGORITHM}&X-Amz-Credential={}&X-Amz-Date={date}\
                 &X-Amz-Expires=60&X-Amz-SignedHeaders=host%3Bx-k8s-aws-id",
                encode(format!("{}/{}/{}/sts/aws4_request", self.access_key, &date[..8], self.region).as_bytes())
            );
            if let Some(token) = self.session_token {
                query.push_str(&format!("&X-Amz-Security-Token={}", encode(token.as_bytes())));
            }
            let headers = headers(&[("host", &host), ("x-k8s-aws-id", cluster)]);
            let signed = Signed { method: "GET", path: "/", query: &query, headers: &headers, body: b"" };
            let names = ["host".to_owned(), "x-k8s-aws-id".to_owned()];
            let signature =
                self.signature(&signed, &names, &date, &canonical_query(&query, None), &hex(&Sha256::digest(b"")));
            format!("https://{host}/?{query}&X-Amz-Signature={signature}")
        }

        fn signature(&self, signed: &Signed<'_>, names: &[String], date: &str, query: &str, digest: &str) -> String {
            let headers = canonical_headers(signed.headers, names).unwrap();
            let path = canonical_path(signed.path);
            let canonical = format!("{}\n{path}\n{query}\n{headers}\n{}\n{digest}", signed.method, names.join(";"));
            let scope = format!("{}/{}/{}/aws4_request", &date[..8], self.region, self.service);
            let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
            let mut key = hmac(format!("AWS4{}", self.secret).as_bytes(), &date.as_bytes()[..8]);
            for part in [self.region, self.service, "aws4_request"] {
                key = hmac(&key, part.as_bytes());
            }
            hex(&hmac(&key, to_sign.as_bytes()))
        }
    }
}
