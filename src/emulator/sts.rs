//! STS: AssumeRoleWithWebIdentity, AssumeRole and GetCallerIdentity.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    api::{ApiError, Call, denial},
    credentials::{Caller, Keys, OidcClaims, OidcError},
    http::{FullRequest, Response, response},
    sigv4::parse_query,
    world::{World, lock},
};

/// Longest session of a role that is assumed with the credentials of a role.
const MAX_CHAINED_DURATION: u64 = 3600;

const DEFAULT_DURATION: u64 = 3600;

type Form = BTreeMap<String, String>;

fn form(request: &FullRequest) -> Form {
    let body = String::from_utf8_lossy(&request.body);
    parse_query(if body.is_empty() { request.query() } else { &body }).into_iter().collect()
}

pub(super) fn answer(call: &Call<'_>, operation: &str, request: &FullRequest) -> Result<Response, ApiError> {
    match operation {
        // Needs no permission, so there is nothing that a script could deny.
        "GetCallerIdentity" => {
            let Caller { arn, user_id, account, .. } = &call.caller;
            let (arn, user_id) = (escape(arn), escape(user_id));
            Ok(document(operation, &format!("<Arn>{arn}</Arn><UserId>{user_id}</UserId><Account>{account}</Account>")))
        }
        "AssumeRole" => assume_role(call, &form(request)),
        other => {
            Err(ApiError::new(400, "InvalidAction", format!("Could not find operation {other} for version 2011-06-15")))
        }
    }
}

fn assume_role(call: &Call<'_>, form: &Form) -> Result<Response, ApiError> {
    let world = call.world;
    let role_arn = required(form, "RoleArn")?;
    call.authorize(role_arn)?;
    tags(call, form, role_arn)?;
    let session_name = session_name(form)?;
    let duration = duration(world, form)?;
    if call.caller.assumed_role && duration > MAX_CHAINED_DURATION {
        return Err(validation(
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining",
        ));
    }
    let caller = world.role_caller(role_arn, session_name).ok_or_else(|| call.denied(role_arn))?;
    let keys = issue(world, caller.clone(), duration);
    Ok(document("AssumeRole", &format!("{}<PackedPolicySize>0</PackedPolicySize>", granted(&caller, &keys))))
}

/// Tags want a permission of their own, and each key is there once.
fn tags(call: &Call<'_>, form: &Form, role_arn: &str) -> Result<(), ApiError> {
    let mut keys = Vec::new();
    for at in 1.. {
        let Some(key) = form.get(&format!("Tags.member.{at}.Key")) else { break };
        let key = key.to_lowercase();
        if keys.contains(&key) || key.starts_with("aws:") || !form.contains_key(&format!("Tags.member.{at}.Value")) {
            return Err(ApiError::new(400, "InvalidParameterValue", "Duplicate, reserved or incomplete tag"));
        }
        keys.push(key);
    }
    for at in 1.. {
        let Some(key) = form.get(&format!("TransitiveTagKeys.member.{at}")) else { break };
        if !keys.contains(&key.to_lowercase()) {
            return Err(ApiError::new(400, "InvalidParameterValue", "A transitive tag key has no tag"));
        }
    }
    if !keys.is_empty() && call.world.settings().denied_actions.contains(TAG_SESSION) {
        let arn = &call.caller.arn;
        return Err(ApiError::new(403, "AccessDenied", denial(arn, TAG_SESSION, role_arn)));
    }
    Ok(())
}

/// The permission that tags want besides.
const TAG_SESSION: &str = "sts:TagSession";

/// Needs no signature: the token is the proof.
pub(super) fn assume_role_with_web_identity(world: &Arc<World>, request: &FullRequest) -> Result<Response, ApiError> {
    let form = form(request);
    let role_arn = required(&form, "RoleArn")?;
    let session_name = session_name(&form)?;
    let token = required(&form, "WebIdentityToken")?;
    if !(4..=20_000).contains(&token.len()) {
        return Err(validation(
            "1 validation error detected: Value at 'webIdentityToken' failed to satisfy constraint: Member must have length between 4 and 20000",
        ));
    }
    let duration = duration(world, &form)?;
    let OidcClaims { issuer, audience, subject, .. } =
        world.oidc.verify(token, world.clock.wall()).map_err(|error| {
            let code = match error {
                OidcError::Expired { .. } => "ExpiredTokenException",
                OidcError::Malformed | OidcError::Issuer(_) | OidcError::Signature | OidcError::Audience => {
                    "InvalidIdentityToken"
                }
            };
            ApiError::new(400, code, error.to_string())
        })?;
    let denied = || ApiError::new(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity");
    if world.settings().denied_actions.contains("sts:AssumeRoleWithWebIdentity") {
        return Err(denied());
    }
    let caller = world.role_caller(role_arn, session_name).ok_or_else(denied)?;
    let keys = issue(world, caller.clone(), duration);
    let provider = issuer.trim_start_matches("https://");
    Ok(document(
        "AssumeRoleWithWebIdentity",
        &format!(
            "{}<SubjectFromWebIdentityToken>{}</SubjectFromWebIdentityToken><Audience>{}</Audience>\
             <Provider>arn:aws:iam::{}:oidc-provider/{provider}</Provider>",
            granted(&caller, &keys),
            escape(&subject),
            escape(&audience),
            caller.account,
        ),
    ))
}

fn issue(world: &World, caller: Caller, duration: u64) -> Keys {
    let lifetime = world.config.credential_lifetime.unwrap_or(Duration::from_secs(duration));
    lock(&world.credentials).issue(caller, Some(world.clock.wall() + lifetime))
}

fn granted(caller: &Caller, keys: &Keys) -> String {
    format!(
        "<AssumedRoleUser><Arn>{}</Arn><AssumedRoleId>{}</AssumedRoleId></AssumedRoleUser><Credentials>\
         <AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
         <Expiration>{}</Expiration></Credentials>",
        escape(&caller.arn),
        escape(&caller.user_id),
        keys.access_key,
        keys.secret,
        keys.session_token,
        keys.expiration(),
    )
}

fn required<'a>(form: &'a Form, name: &str) -> Result<&'a str, ApiError> {
    form.get(name).map(String::as_str).filter(|value| !value.is_empty()).ok_or_else(|| {
        let field = format!("{}{}", name[..1].to_lowercase(), &name[1..]);
        validation(&format!(
            "1 validation error detected: Value null at '{field}' failed to satisfy constraint: Member must not be null"
        ))
    })
}

fn session_name(form: &Form) -> Result<&str, ApiError> {
    let name = required(form, "RoleSessionName")?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    if !(2..=64).contains(&name.len()) || !name.bytes().all(allowed) {
        return Err(validation(&format!(
            "1 validation error detected: Value '{name}' at 'roleSessionName' failed to satisfy constraint: Member must \
             satisfy regular expression pattern: [\\w+=,.@-]*, with length between 2 and 64"
        )));
    }
    Ok(name)
}

fn duration(world: &World, form: &Form) -> Result<u64, ApiError> {
    let Some(text) = form.get("DurationSeconds") else {
        return Ok(DEFAULT_DURATION);
    };
    let seconds: u64 = text.parse().map_err(|_| validation("DurationSeconds is not a number"))?;
    let bound = |word: &str, bound: u64| {
        validation(&format!(
            "1 validation error detected: Value '{seconds}' at 'durationSeconds' failed to satisfy constraint: Member must \
             have value {word} than or equal to {bound}"
        ))
    };
    match seconds {
        0..900 => Err(bound("greater", 900)),
        43_201.. => Err(bound("less", 43_200)),
        _ if seconds > world.config.role_max_duration.as_secs() => {
            Err(validation("The requested DurationSeconds exceeds the MaxSessionDuration set for this role."))
        }
        _ => Ok(seconds),
    }
}

fn validation(message: &str) -> ApiError {
    ApiError::new(400, "ValidationError", message)
}

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

fn document(operation: &str, result: &str) -> Response {
    let id = uuid::Uuid::new_v4();
    response(
        200,
        "text/xml",
        format!(
            "<{operation}Response xmlns=\"{NAMESPACE}\"><{operation}Result>{result}</{operation}Result>\
             <ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata></{operation}Response>"
        ),
    )
}

/// The body of an error answer.
pub(super) fn error_document(error: &ApiError, request_id: &str) -> String {
    let side = if error.status >= 500 { "Receiver" } else { "Sender" };
    format!(
        "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>{side}</Type><Code>{}</Code><Message>{}</Message></Error>\
         <RequestId>{request_id}</RequestId></ErrorResponse>",
        escape(&error.code),
        escape(&error.message),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
