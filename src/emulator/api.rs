//! The API port: tells the services apart, verifies signatures, applies what a script denies or lets
//! fail, and gives errors the shape that each service's protocol has.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    approval,
    credentials::{Caller, OIDC_ISSUER, OidcClaims},
    ec2, ecs, eks,
    http::{FullRequest, Response, json, response, text},
    iam, instance_connect,
    journal::Event,
    script::Failure,
    sigv4::{SignatureError, Signed, claim_of_headers, parse_query},
    ssm, sso, sts,
    world::{World, lock},
};

/// An error answer of any service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// The error's code.
    pub code: String,
    /// The error's message.
    pub message: String,
    /// What is in the way, if that is said apart: ARNs.
    pub resource_ids: Vec<String>,
}

impl ApiError {
    pub(super) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into(), resource_ids: Vec::new() }
    }
}

/// A service, and with it the protocol that it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    /// Query protocol: forms in, XML out.
    Sts,
    /// REST with JSON.
    Eks,
    /// JSON 1.1.
    Ssm,
    /// JSON 1.1.
    Ecs,
    /// Query protocol, in a form of its own.
    Ec2,
    /// JSON 1.1.
    InstanceConnect,
    /// REST with JSON, unsigned.
    SsoOidc,
    /// REST with JSON, unsigned.
    Sso,
    /// Query protocol.
    Iam,
    /// Query protocol.
    AutoScaling,
}

impl Service {
    /// The name in IAM actions and in credential scopes.
    fn name(self) -> &'static str {
        match self {
            Self::Sts => "sts",
            Self::Eks => "eks",
            Self::Ssm => "ssm",
            Self::Ecs => "ecs",
            Self::Ec2 => "ec2",
            Self::InstanceConnect => "ec2-instance-connect",
            Self::SsoOidc => "sso-oidc",
            Self::Sso => "sso",
            Self::Iam => "iam",
            Self::AutoScaling => "autoscaling",
        }
    }

    fn signature_error(self, error: &SignatureError) -> ApiError {
        let (of_query, of_json) = match error {
            SignatureError::UnknownKey => ("InvalidClientTokenId", "UnrecognizedClientException"),
            SignatureError::ExpiredToken => ("ExpiredToken", "ExpiredTokenException"),
            SignatureError::Missing => ("MissingAuthenticationToken", "MissingAuthenticationTokenException"),
            SignatureError::Incomplete(_) => ("IncompleteSignature", "IncompleteSignatureException"),
            SignatureError::Expired { .. }
            | SignatureError::NotYetCurrent { .. }
            | SignatureError::Scope { .. }
            | SignatureError::Mismatch => ("SignatureDoesNotMatch", "InvalidSignatureException"),
        };
        match self {
            Self::Ec2 => ec2::signature_error(error),
            Self::Sts | Self::Iam | Self::AutoScaling => ApiError::new(403, of_query, error.to_string()),
            Self::Eks | Self::SsoOidc | Self::Sso => ApiError::new(403, of_json, error.to_string()),
            Self::Ssm | Self::Ecs | Self::InstanceConnect => ApiError::new(400, of_json, error.to_string()),
        }
    }

    /// Services with JSON 1.1 answer 400 where others answer 403.
    fn access_denied(self, caller: &Caller, action: &str, resource: &str) -> ApiError {
        let message = denial(&caller.arn, action, resource);
        match self {
            Self::Ec2 => ec2::access_denied(caller, action),
            Self::Sts | Self::Iam | Self::AutoScaling => ApiError::new(403, "AccessDenied", message),
            Self::Eks | Self::SsoOidc | Self::Sso => ApiError::new(403, "AccessDeniedException", message),
            Self::Ssm | Self::Ecs | Self::InstanceConnect => ApiError::new(400, "AccessDeniedException", message),
        }
    }

    fn render(self, error: &ApiError, request_id: &str) -> Response {
        let mut rendered = match self {
            Self::Sts | Self::Iam | Self::AutoScaling => {
                response(error.status, "text/xml", sts::error_document(error, request_id))
            }
            Self::Eks | Self::Sso => json(error.status, &json!({"message": error.message})),
            Self::SsoOidc => json(error.status, &sso::oidc_error_document(error)),
            Self::Ssm => response(error.status, "application/x-amz-json-1.1", ssm::error_document(error).to_string()),
            Self::Ecs => response(error.status, "application/x-amz-json-1.1", ecs::error_document(error).to_string()),
            Self::InstanceConnect => response(
                error.status,
                "application/x-amz-json-1.1",
                instance_connect::error_document(error).to_string(),
            ),
            Self::Ec2 => response(error.status, "text/xml;charset=UTF-8", ec2::error_document(error, request_id)),
        };
        if let (Self::Eks | Self::SsoOidc | Self::Sso, Ok(code)) = (self, error.code.parse()) {
            rendered.headers_mut().insert("x-amzn-errortype", code);
        }
        rendered
    }
}

/// What AWS says when no policy allows an action.
pub(super) fn denial(arn: &str, action: &str, resource: &str) -> String {
    format!(
        "User: {arn} is not authorized to perform: {action} on resource: {resource} because no identity-based policy \
         allows the {action} action"
    )
}

/// A call whose caller is known and whom nothing in the script denies it.
pub(super) struct Call<'a> {
    pub(super) world: &'a Arc<World>,
    pub(super) caller: Caller,
    pub(super) region: String,
    pub(super) action: String,
    service: Service,
}

impl Call<'_> {
    /// Fails if the script denies the action, or if the caller's role was made by a template that does not allow it.
    pub(super) fn authorize(&self, resource: &str) -> Result<(), ApiError> {
        let role = self.caller.arn.split(":assumed-role/").nth(1).and_then(|session| session.split('/').next());
        let allowed = role.and_then(|role| lock(&self.world.stack).allows(role, &self.action));
        let is_beyond = approval::denies(&self.caller, &self.action);
        if is_beyond || allowed == Some(false) || self.world.settings().denied_actions.contains(&self.action) {
            return Err(self.denied(resource));
        }
        Ok(())
    }

    pub(super) fn denied(&self, resource: &str) -> ApiError {
        self.service.access_denied(&self.caller, &self.action, resource)
    }
}

/// Answers one request on the API port.
pub(super) async fn answer(world: &Arc<World>, request: FullRequest) -> Response {
    delay(world).await;
    if request.path() == "/oidc" {
        return ci_token(world, &request);
    }
    if let Some(page) = sso::page(world, &request) {
        return page;
    }
    let Some((service, operation)) = recognize(&request) else {
        return text(404, "no such API here");
    };
    let action = format!("{}:{operation}", service.name());
    hold(world, &action).await;
    let request_id = uuid::Uuid::new_v4().to_string();
    let outcome = dispatch(world, &request, service, &action, &operation);
    let error = outcome.as_ref().err().map(|error| error.code.clone());
    world.journal.record(Event::Api { action, error });
    let mut answer = match outcome {
        Ok(answer) => answer,
        Err(error) => service.render(&error, &request_id),
    };
    if let Ok(id) = request_id.parse() {
        answer.headers_mut().insert("x-amzn-requestid", id);
    }
    answer
}

/// A call of Systems Manager, see [`call_json`].
pub(super) async fn call_ssm(
    world: &Arc<World>,
    access_key: &str,
    operation: &str,
    input: &Value,
) -> Result<Value, ApiError> {
    call_json(world, Service::Ssm, ssm::output, access_key, operation, input).await
}

/// A call of Elastic Container Service, see [`call_json`].
pub(super) async fn call_ecs(
    world: &Arc<World>,
    access_key: &str,
    operation: &str,
    input: &Value,
) -> Result<Value, ApiError> {
    call_json(world, Service::Ecs, ecs::output, access_key, operation, input).await
}

/// Answers a call that comes without HTTP: the operation's input in, its output out. The caller proves itself by the
/// access key alone.
async fn call_json(
    world: &Arc<World>,
    service: Service,
    output: fn(&Call<'_>, &str, &Value) -> Result<Value, ApiError>,
    access_key: &str,
    operation: &str,
    input: &Value,
) -> Result<Value, ApiError> {
    delay(world).await;
    let action = format!("{}:{operation}", service.name());
    hold(world, &action).await;
    let outcome = scripted_failure(world, &action).and_then(|()| {
        let caller = lock(&world.credentials)
            .caller(access_key, world.clock.wall())
            .map_err(|error| service.signature_error(&error))?;
        let region = world.config.region.clone();
        output(&Call { world, caller, region, action: action.clone(), service }, operation, input)
    });
    world.journal.record(Event::Api { action, error: outcome.as_ref().err().map(|error| error.code.clone()) });
    outcome
}

async fn delay(world: &World) {
    let delay = world.settings().api_delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

/// Waits for the call that has to be answered before one of this action.
async fn hold(world: &World, action: &str) {
    let Some(other) = world.settings().held_actions.get(action).cloned() else { return };
    let is_answered = |event: &Event| matches!(event, Event::Api { action, .. } if *action == other);
    let mut changes = world.journal.subscribe();
    // The journal lasts as long as the emulator.
    let _ended = changes.wait_for(|_| world.journal.events().iter().any(is_answered)).await;
}

fn scripted_failure(world: &World, action: &str) -> Result<(), ApiError> {
    match world.take_failure(action) {
        Some(Failure { status, code, message, calls: _ }) => Err(ApiError::new(status, &code, message)),
        None => Ok(()),
    }
}

fn recognize(request: &FullRequest) -> Option<(Service, String)> {
    if let Some(operation) = request.header("x-amz-target").strip_prefix("AmazonSSM.") {
        return Some((Service::Ssm, operation.to_owned()));
    }
    if let Some(operation) = request.header("x-amz-target").strip_prefix(ecs::TARGET_PREFIX) {
        return Some((Service::Ecs, operation.to_owned()));
    }
    if let Some(operation) = request.header("x-amz-target").strip_prefix(instance_connect::TARGET_PREFIX) {
        return Some((Service::InstanceConnect, operation.to_owned()));
    }
    let method = request.head.method.as_str();
    if let Some(operation) = eks::operation(method, request.path()) {
        return Some((Service::Eks, operation.to_owned()));
    }
    if let Some(operation) = sso::oidc_operation(method, request.path()) {
        return Some((Service::SsoOidc, operation.to_owned()));
    }
    if let Some(operation) = sso::portal_operation(method, request.path()) {
        return Some((Service::Sso, operation.to_owned()));
    }
    if request.path() != "/" {
        return None;
    }
    let form =
        if method == "POST" { String::from_utf8_lossy(&request.body).into_owned() } else { request.query().to_owned() };
    let form = parse_query(&form);
    let version = form.iter().find(|(name, _)| name == "Version").map(|(_, version)| version.as_str());
    let service = match version {
        Some(ec2::VERSION) => Service::Ec2,
        Some(iam::VERSION) => Service::Iam,
        Some(iam::AUTO_SCALING_VERSION) => Service::AutoScaling,
        _ => Service::Sts,
    };
    form.into_iter().find(|(name, _)| name == "Action").map(|(_, action)| (service, action))
}

fn dispatch(
    world: &Arc<World>,
    request: &FullRequest,
    service: Service,
    action: &str,
    operation: &str,
) -> Result<Response, ApiError> {
    scripted_failure(world, action)?;
    if service == Service::Sts && operation == "AssumeRoleWithWebIdentity" {
        return sts::assume_role_with_web_identity(world, request);
    }
    // Nobody has credentials yet.
    if service == Service::SsoOidc {
        return sso::answer_oidc(world, operation, request);
    }
    if service == Service::Sso {
        return sso::answer_portal(world, request);
    }
    let (caller, region) = authenticate(world, request, service).map_err(|error| service.signature_error(&error))?;
    let call = Call { world, caller, region, action: action.to_owned(), service };
    match service {
        Service::Sts => sts::answer(&call, operation, request),
        Service::Eks => eks::answer(&call, request),
        Service::Ssm => ssm::answer(&call, operation, request),
        Service::Ecs => ecs::answer(&call, operation, request),
        Service::Ec2 => ec2::answer(&call, operation, request),
        Service::Iam | Service::AutoScaling => iam::answer(&call, operation, request),
        Service::InstanceConnect => instance_connect::answer(&call, operation, request),
        Service::SsoOidc => sso::answer_oidc(world, operation, request),
        Service::Sso => sso::answer_portal(world, request),
    }
}

fn authenticate(world: &World, request: &FullRequest, service: Service) -> Result<(Caller, String), SignatureError> {
    let claim = claim_of_headers(&request.head.headers)?;
    let signed = Signed {
        method: request.head.method.as_str(),
        path: request.path(),
        query: request.query(),
        headers: &request.head.headers,
        body: &request.body,
    };
    let caller = lock(&world.credentials).verify(&claim, &signed, service.name(), world.clock.wall())?;
    Ok((caller, claim.region))
}

/// The endpoint from which a CI job gets its OIDC token: `GET /oidc?…&audience=…` with a bearer token.
fn ci_token(world: &World, request: &FullRequest) -> Response {
    let authorization = request.header("authorization");
    let given = authorization
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token);
    if given != Some(world.ci_request_token.as_str()) {
        return json(401, &json!({"message": "the request token is missing or wrong"}));
    }
    let audience =
        parse_query(request.query()).into_iter().find(|(name, _)| name == "audience").map(|(_, value)| value);
    let now = world.clock.wall();
    let claims = OidcClaims {
        issuer: OIDC_ISSUER.to_owned(),
        audience: audience.unwrap_or_else(|| "https://github.com/example".to_owned()),
        subject: "repo:example/repository:ref:refs/heads/main".to_owned(),
        expires: now + world.config.oidc_token_lifetime,
    };
    json(200, &json!({"count": 1, "value": world.oidc.mint(&claims, now)}))
}
