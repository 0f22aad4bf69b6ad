//! Who calls: access keys, session tokens and OIDC tokens that the emulator gives out and knows again.
//!
//! Nothing here is printed: neither type has a `Debug` form.

use std::{collections::BTreeMap, time::Duration};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    clock::extended_date,
    sigv4::{Claim, SignatureError, Signed, hmac},
};

/// Issuer of the emulator's OIDC tokens.
pub const OIDC_ISSUER: &str = "https://token.actions.emulator.example.com";

/// Audience that STS asks for in an OIDC token.
pub const OIDC_AUDIENCE: &str = "sts.amazonaws.com";

/// Bytes of randomness in a session token, for one of a realistic length.
const SESSION_TOKEN_LEN: usize = 288;

/// An identity that has proved itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) account: String,
    pub(super) arn: String,
    /// `AROA…:session-name`, or `AIDA…` for a user.
    pub(super) user_id: String,
    /// Role session name, or user name: the start of session ids.
    pub(super) session_name: String,
    /// Whether the credentials are those of an assumed role.
    pub(super) assumed_role: bool,
    /// The request for access to a node that the credentials were given for.
    pub(super) access_request: Option<String>,
}

/// Keys as they are handed out.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) access_key: String,
    pub(super) secret: String,
    pub(super) session_token: String,
    /// Since the Unix epoch.
    pub(super) expires: Option<Duration>,
}

impl Keys {
    /// The expiry as AWS writes it.
    pub(super) fn expiration(&self) -> String {
        extended_date(self.expires.unwrap_or(Duration::from_secs(4_102_444_800)))
    }
}

/// All keys that have been handed out.
#[derive(Default)]
pub(super) struct Credentials {
    by_access_key: BTreeMap<String, (Keys, Caller)>,
}

impl Credentials {
    /// Makes keys for a caller.
    pub(super) fn issue(&mut self, caller: Caller, expires: Option<Duration>) -> Keys {
        let random = || Uuid::new_v4().into_bytes();
        let mut token = Vec::with_capacity(SESSION_TOKEN_LEN);
        while token.len() < SESSION_TOKEN_LEN {
            token.extend_from_slice(&random());
        }
        let keys = Keys {
            access_key: format!("ASIA{}", upper_alphanumeric(16)),
            secret: STANDARD.encode([random(), random()].concat())[..40].to_owned(),
            session_token: format!("IQoJb3JpZ2luX2Vj{}", STANDARD.encode(&token)),
            expires,
        };
        self.by_access_key.insert(keys.access_key.clone(), (keys.clone(), caller));
        keys
    }

    /// Makes all keys expire at once.
    pub(super) fn expire_all(&mut self, wall: Duration) {
        for (keys, _) in self.by_access_key.values_mut() {
            keys.expires = Some(wall);
        }
    }

    /// Verifies a request that is signed in its headers.
    pub(super) fn verify(
        &self,
        claim: &Claim,
        request: &Signed<'_>,
        service: &'static str,
        wall: Duration,
    ) -> Result<Caller, SignatureError> {
        if claim.service != service {
            return Err(SignatureError::Scope { expected: service });
        }
        claim.check_date(wall)?;
        let (keys, caller) = self.find(claim, wall)?;
        claim.check_headers(request, &keys.secret)?;
        Ok(caller.clone())
    }

    /// Verifies a presigned request, whatever its date.
    pub(super) fn verify_presigned(
        &self,
        claim: &Claim,
        request: &Signed<'_>,
        wall: Duration,
    ) -> Result<Caller, SignatureError> {
        let (keys, caller) = self.find(claim, wall)?;
        claim.check_query(request, &keys.secret)?;
        Ok(caller.clone())
    }

    /// Returns whose an access key is, without a proof.
    pub(super) fn caller(&self, access_key: &str, wall: Duration) -> Result<Caller, SignatureError> {
        let found = self.by_access_key.get(access_key).ok_or(SignatureError::UnknownKey)?;
        Self::check_expiry(&found.0, wall)?;
        Ok(found.1.clone())
    }

    fn find(&self, claim: &Claim, wall: Duration) -> Result<&(Keys, Caller), SignatureError> {
        let found = self.by_access_key.get(&claim.access_key).ok_or(SignatureError::UnknownKey)?;
        if claim.security_token.as_deref() != Some(found.0.session_token.as_str()) {
            return Err(SignatureError::UnknownKey);
        }
        Self::check_expiry(&found.0, wall)?;
        Ok(found)
    }

    fn check_expiry(keys: &Keys, wall: Duration) -> Result<(), SignatureError> {
        if keys.expires.is_some_and(|expires| expires <= wall) {
            return Err(SignatureError::ExpiredToken);
        }
        Ok(())
    }
}

/// So many random characters of those that AWS makes ids of.
pub(super) fn upper_alphanumeric(len: usize) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bytes = [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()].concat();
    bytes.iter().take(len).map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()
}

/// What an OIDC token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcClaims {
    /// Who made the token.
    pub issuer: String,
    /// Whom it is for.
    pub audience: String,
    /// Whose it is.
    pub subject: String,
    /// When it ends, since the Unix epoch.
    pub expires: Duration,
}

/// Why an OIDC token is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum OidcError {
    #[error("The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)")]
    Malformed,
    #[error("No OpenIDConnect provider found in your account for {0}")]
    Issuer(String),
    #[error("The web identity token's signature could not be verified")]
    Signature,
    #[error("Incorrect token audience")]
    Audience,
    #[error("Token expired: current date/time {now} must be before the expiration date/time {expires}")]
    Expired { now: u64, expires: u64 },
}

/// Makes and verifies OIDC tokens, with a secret of its own in place of a key pair.
pub(super) struct Oidc {
    secret: [u8; 16],
}

impl Oidc {
    pub(super) fn new() -> Self {
        Self { secret: Uuid::new_v4().into_bytes() }
    }

    pub(super) fn mint(&self, claims: &OidcClaims, issued: Duration) -> String {
        let header = json!({"typ": "JWT", "alg": "HS256", "kid": "emulator"});
        let body = json!({
            "iss": claims.issuer, "aud": claims.audience, "sub": claims.subject,
            "exp": claims.expires.as_secs(), "iat": issued.as_secs(), "nbf": issued.as_secs(),
            "jti": Uuid::new_v4().to_string(),
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&body));
        let signature = URL_SAFE_NO_PAD.encode(hmac(&self.secret, signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    pub(super) fn verify(&self, token: &str, wall: Duration) -> Result<OidcClaims, OidcError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(OidcError::Malformed)?;
        let (header, body) = signed.split_once('.').ok_or(OidcError::Malformed)?;
        let object = |part: &str| -> Option<Value> {
            let value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()?;
            value.is_object().then_some(value)
        };
        let header = object(header).ok_or(OidcError::Malformed)?;
        let body = object(body).ok_or(OidcError::Malformed)?;
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let claims = OidcClaims {
            issuer: text(&body, "iss").ok_or(OidcError::Malformed)?,
            audience: text(&body, "aud").ok_or(OidcError::Audience)?,
            subject: text(&body, "sub").ok_or(OidcError::Malformed)?,
            expires: Duration::from_secs(body.get("exp").and_then(Value::as_u64).ok_or(OidcError::Malformed)?),
        };
        if claims.issuer != OIDC_ISSUER {
            return Err(OidcError::Issuer(claims.issuer));
        }
        let expected = hmac(&self.secret, signed.as_bytes());
        let algorithm = text(&header, "alg");
        if algorithm.as_deref() != Some("HS256") || URL_SAFE_NO_PAD.decode(signature).ok().as_deref() != Some(&expected)
        {
            return Err(OidcError::Signature);
        }
        if claims.audience != OIDC_AUDIENCE {
            return Err(OidcError::Audience);
        }
        if claims.expires <= wall {
            return Err(OidcError::Expired { now: wall.as_secs(), expires: claims.expires.as_secs() });
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> OidcClaims {
        OidcClaims {
            issuer: OIDC_ISSUER.into(),
            audience: OIDC_AUDIENCE.into(),
            subject: "repo:o/r:ref:refs/heads/main".into(),
            expires: Duration::from_secs(2000),
        }
    }

    #[test]
    fn tells_good_tokens_from_bad_ones() {
        let (oidc, now) = (Oidc::new(), Duration::from_secs(1000));
        let good = oidc.mint(&claims(), now);
        assert_eq!(oidc.verify(&good, now), Ok(claims()));
        assert!(matches!(oidc.verify(&good, Duration::from_secs(2000)), Err(OidcError::Expired { .. })));
        assert_eq!(Oidc::new().verify(&good, now), Err(OidcError::Signature));
        let other = |change: fn(&mut OidcClaims)| {
            let mut claims = claims();
            change(&mut claims);
            oidc.verify(&oidc.mint(&claims, now), now)
        };
        assert_eq!(other(|claims| claims.audience = "x".into()), Err(OidcError::Audience));
        assert_eq!(other(|claims| claims.issuer = "https://x".into()), Err(OidcError::Issuer("https://x".into())));
        for junk in ["", "abc", "a.b.c", "e30.e30.", &good[1..]] {
            assert!(oidc.verify(junk, now).is_err(), "{junk}");
        }
    }
}
