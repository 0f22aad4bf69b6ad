//! IAM Identity Center: the device code flow of SSO OIDC (RegisterClient, StartDeviceAuthorization, CreateToken with its
//! refresh), the page that a person approves on, and the portal's GetRoleCredentials.
//!
//! None of it is signed: clients prove themselves by their secret, and the portal takes an access token.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Emulator,
    api::ApiError,
    credentials::upper_alphanumeric,
    http::{FullRequest, Response, json as json_answer, text},
    sigv4::parse_query,
    world::{World, lock},
};

/// How long a client that has registered is known; 90 days there as well.
const CLIENT_LIFETIME: Duration = Duration::from_secs(90 * 86_400);

/// How long a person has for an approval.
const DEVICE_LIFETIME: Duration = Duration::from_secs(600);

const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// How IAM Identity Center is set up.
#[derive(Debug, Clone)]
pub struct SsoConfig {
    /// The only start URL that there is.
    pub start_url: String,
    /// How long an access token lasts.
    pub token_lifetime: Duration,
    /// How often a client may ask for its token, in whole seconds.
    pub interval: Duration,
}

impl Default for SsoConfig {
    fn default() -> Self {
        Self {
            start_url: "https://corp.awsapps.com/start".to_owned(),
            token_lifetime: Duration::from_secs(3600),
            interval: Duration::from_secs(1),
        }
    }
}

/// What a person has said about a sign-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Approved,
    Denied,
    /// Too late.
    Expired,
}

struct ClientOf {
    secret: String,
    /// It has asked for scopes, so that it gets refresh tokens.
    scoped: bool,
}

struct Device {
    user_code: String,
    client: String,
    verdict: Option<Verdict>,
    expires: Duration,
    /// When its token was asked for last.
    asked: Option<Duration>,
}

/// Clients, sign-ins under way, and tokens.
#[derive(Default)]
pub(super) struct Sso {
    clients: BTreeMap<String, ClientOf>,
    /// By device code.
    devices: BTreeMap<String, Device>,
    /// Access tokens, with their end.
    tokens: BTreeMap<String, Duration>,
    /// Refresh tokens, with their clients.
    refresh: BTreeMap<String, String>,
}

impl Sso {
    /// Lets a person say something about the sign-in with this code; returns whether there is one that waits.
    pub(super) fn judge(&mut self, user_code: &str, verdict: Verdict) -> bool {
        let waiting = |device: &&mut Device| device.user_code == user_code && device.verdict.is_none();
        match self.devices.values_mut().find(waiting) {
            Some(device) => {
                device.verdict = Some(verdict);
                true
            }
            None => false,
        }
    }

    /// The code of the sign-in that waits for a person.
    pub(super) fn waiting(&self) -> Option<String> {
        self.devices.values().find(|device| device.verdict.is_none()).map(|device| device.user_code.clone())
    }

    /// Signs everybody out: no token is taken any more, and none can be refreshed.
    pub(super) fn sign_out(&mut self) {
        self.tokens.clear();
        self.refresh.clear();
    }

    fn grant(&mut self, client: &str, now: Duration, lifetime: Duration) -> Value {
        let access = format!("aoa{}", upper_alphanumeric(32));
        self.tokens.insert(access.clone(), now + lifetime);
        let mut answer = json!({"accessToken": access, "tokenType": "Bearer", "expiresIn": lifetime.as_secs()});
        if self.clients.get(client).is_some_and(|client| client.scoped) {
            let refresh = format!("aor{}", upper_alphanumeric(32));
            self.refresh.insert(refresh.clone(), client.to_owned());
            answer["refreshToken"] = refresh.into();
        }
        answer
    }
}

/// What a person does.
impl Emulator {
    /// The code of the sign-in to IAM Identity Center that waits for a person.
    #[must_use]
    pub fn waiting_sign_in(&self) -> Option<String> {
        lock(&self.world.sso).waiting()
    }

    /// Lets a person say something about the sign-in with this code; returns whether there is one that waits.
    pub fn judge_sign_in(&self, user_code: &str, verdict: Verdict) -> bool {
        lock(&self.world.sso).judge(user_code, verdict)
    }

    /// Ends all sessions of IAM Identity Center: no token is taken any more, and none can be refreshed.
    pub fn sign_out(&self) {
        lock(&self.world.sso).sign_out();
    }
}

/// Returns the operation of SSO OIDC that a request is for.
pub(super) fn oidc_operation(method: &str, path: &str) -> Option<&'static str> {
    match (method, path) {
        ("POST", "/client/register") => Some("RegisterClient"),
        ("POST", "/device_authorization") => Some("StartDeviceAuthorization"),
        ("POST", "/token") => Some("CreateToken"),
        _ => None,
    }
}

/// Returns the operation of the portal that a request is for.
pub(super) fn portal_operation(method: &str, path: &str) -> Option<&'static str> {
    (method == "GET" && path == "/federation/credentials").then_some("GetRoleCredentials")
}

/// The page for persons. Whoever opens it with a code has approved of it.
pub(super) fn page(world: &World, request: &FullRequest) -> Option<Response> {
    if request.path() != "/device" {
        return None;
    }
    let code = parse_query(request.query()).into_iter().find(|(name, _)| name == "user_code").map(|(_, value)| value);
    let approved = code.is_some_and(|code| lock(&world.sso).judge(&code, Verdict::Approved));
    world.journal.touch();
    Some(match approved {
        true => text(200, "Request approved. You can close this page.\n"),
        false => text(404, "There is no such request.\n"),
    })
}

pub(super) fn answer_oidc(world: &World, operation: &str, request: &FullRequest) -> Result<Response, ApiError> {
    let input: Value = serde_json::from_slice(&request.body).map_err(|_| invalid_request("the body is no JSON"))?;
    let field = |name: &str| {
        let value = input[name].as_str().filter(|value| !value.is_empty());
        value.ok_or_else(|| invalid_request(&format!("{name} is missing")))
    };
    let now = world.clock.wall();
    let config = &world.config.sso;
    let mut sso = lock(&world.sso);
    if operation == "RegisterClient" {
        field("clientName")?;
        if field("clientType")? != "public" {
            return Err(ApiError::new(400, "InvalidClientMetadataException", "the type of the client is not public"));
        }
        let (id, secret) = (upper_alphanumeric(22), Uuid::new_v4().to_string());
        let scoped = input["scopes"].as_array().is_some_and(|scopes| !scopes.is_empty());
        sso.clients.insert(id.clone(), ClientOf { secret: secret.clone(), scoped });
        return Ok(json_answer(
            200,
            &json!({
                "clientId": id, "clientSecret": secret, "clientIdIssuedAt": now.as_secs(),
                "clientSecretExpiresAt": (now + CLIENT_LIFETIME).as_secs(),
            }),
        ));
    }
    let client = field("clientId")?.to_owned();
    if sso.clients.get(&client).map(|client| client.secret.as_str()) != Some(field("clientSecret")?) {
        return Err(ApiError::new(401, "InvalidClientException", "the client is not known"));
    }
    if operation == "StartDeviceAuthorization" {
        if field("startUrl")? != config.start_url {
            return Err(invalid_request("the start URL is not known"));
        }
        let device_code = Uuid::new_v4().to_string();
        let (one, other) = (upper_alphanumeric(4), upper_alphanumeric(4));
        let user_code = format!("{one}-{other}");
        let place = format!("http://{}/device", request.header("host"));
        let device =
            Device { user_code: user_code.clone(), client, verdict: None, expires: now + DEVICE_LIFETIME, asked: None };
        sso.devices.insert(device_code.clone(), device);
        drop(sso);
        world.journal.touch();
        return Ok(json_answer(
            200,
            &json!({
                "deviceCode": device_code, "userCode": user_code, "verificationUri": place,
                "verificationUriComplete": format!("{place}?user_code={user_code}"),
                "expiresIn": DEVICE_LIFETIME.as_secs(), "interval": config.interval.as_secs(),
            }),
        ));
    }
    match field("grantType")? {
        "refresh_token" => {
            let token = field("refreshToken")?;
            if sso.refresh.get(token) != Some(&client) {
                return Err(ApiError::new(400, "InvalidGrantException", "Invalid refresh token provided"));
            }
            // It is good once.
            sso.refresh.remove(token);
        }
        DEVICE_GRANT => {
            let code = field("deviceCode")?;
            let device = sso.devices.get_mut(code).filter(|device| device.client == client);
            let device =
                device.ok_or_else(|| ApiError::new(400, "InvalidGrantException", "Invalid device code provided"))?;
            let before = device.asked.replace(now);
            match device.verdict {
                Some(Verdict::Denied) => return Err(ApiError::new(400, "AccessDeniedException", "denied")),
                Some(Verdict::Expired) => return Err(expired_device()),
                _ if device.expires <= now => return Err(expired_device()),
                Some(Verdict::Approved) => drop(sso.devices.remove(code)),
                // Clocks are read at both ends, so that a little less is no haste.
                None if before.is_some_and(|before| now.saturating_sub(before) < config.interval.mul_f64(0.8)) => {
                    return Err(ApiError::new(400, "SlowDownException", "asked too often"));
                }
                None => return Err(ApiError::new(400, "AuthorizationPendingException", "nobody has approved yet")),
            }
        }
        _ => return Err(ApiError::new(400, "UnsupportedGrantTypeException", "the grant type is not known")),
    }
    let granted = sso.grant(&client, now, config.token_lifetime);
    Ok(json_answer(200, &granted))
}

pub(super) fn answer_portal(world: &World, request: &FullRequest) -> Result<Response, ApiError> {
    let parameters: BTreeMap<String, String> = parse_query(request.query()).into_iter().collect();
    let now = world.clock.wall();
    let token = request.header("x-amz-sso_bearer_token");
    if lock(&world.sso).tokens.get(token).is_none_or(|end| *end <= now) {
        return Err(ApiError::new(401, "UnauthorizedException", "Session token not found or invalid"));
    }
    let parameter = |name: &str| parameters.get(name).map(String::as_str).unwrap_or_default();
    let (account, role) = (parameter("account_id"), parameter("role_name"));
    let caller = world.role_caller(&format!("arn:aws:iam::{account}:role/{role}"), "ann");
    let caller = caller.ok_or_else(|| ApiError::new(403, "ForbiddenException", "No access"))?;
    let lifetime = world.config.credential_lifetime.unwrap_or(Duration::from_secs(3600));
    let keys = lock(&world.credentials).issue(caller, Some(now + lifetime));
    let expiration = u64::try_from((now + lifetime).as_millis()).unwrap_or(u64::MAX);
    Ok(json_answer(
        200,
        &json!({"roleCredentials": {
            "accessKeyId": keys.access_key, "secretAccessKey": keys.secret, "sessionToken": keys.session_token,
            "expiration": expiration,
        }}),
    ))
}

/// The body of an error answer of SSO OIDC, whose words are those of OAuth.
pub(super) fn oidc_error_document(error: &ApiError) -> Value {
    let name = error.code.trim_end_matches("Exception");
    let mut words = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !words.is_empty() {
            words.push('_');
        }
        words.push(c.to_ascii_lowercase());
    }
    json!({"error": words, "error_description": error.message})
}

fn invalid_request(message: &str) -> ApiError {
    ApiError::new(400, "InvalidRequestException", message)
}

fn expired_device() -> ApiError {
    ApiError::new(400, "ExpiredTokenException", "Device code expired")
}
