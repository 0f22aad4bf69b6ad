//! Systems Manager: sessions and what is known of bastions.

mod inventory;

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    api::{ApiError, Call},
    approval::{self, SHELL_DOCUMENT},
    config::{BastionConfig, PORT_DOCUMENT, REMOTE_HOST_DOCUMENT},
    ecs::{self, EcsConfig},
    fleet::is_online,
    http::{FullRequest, Response, response},
    journal::Event,
    script::Resume,
    session::{Parameters, Session, SessionStart, SessionState},
    world::{World, lock},
};

/// Bytes of a `cell-number`, chosen so that its base64 form has `+`, `/` and `=`.
const CELL_NUMBER: [u8; 10] = [0, 0, 0, 0xfb, 0xef, 0xbe, 0xff, 0xff, 0xff, 0x01];

/// Most sessions in one answer of `DescribeSessions`.
const MAX_SESSIONS: usize = 200;

pub(super) fn answer(call: &Call<'_>, operation: &str, request: &FullRequest) -> Result<Response, ApiError> {
    let input: Value = serde_json::from_slice(&request.body)
        .ok()
        .filter(Value::is_object)
        .ok_or_else(|| ApiError::new(400, "SerializationException", "the body is not a JSON object"))?;
    let output = output(call, operation, &input)?;
    Ok(response(200, "application/x-amz-json-1.1", output.to_string()))
}

/// Carries an operation out.
pub(super) fn output(call: &Call<'_>, operation: &str, input: &Value) -> Result<Value, ApiError> {
    match operation {
        "StartSession" => start(call, input),
        "StartAccessRequest" => approval::start_access_request(call, input),
        "GetAccessToken" => approval::get_access_token(call, input),
        "ResumeSession" => resume(call, input),
        "TerminateSession" => terminate(call, input),
        "DescribeSessions" => describe_sessions(call, input),
        "DescribeInstanceInformation" => inventory::describe_instances(call, input),
        "GetConnectionStatus" => inventory::connection_status(call, input),
        other => Err(ApiError::new(400, "UnknownOperationException", format!("no operation {other}"))),
    }
}

/// Errors whose shapes in the API model have a member `Message`; so has the one that IAM makes. Those of the front end,
/// which come before the service is asked, have `message`.
const WITH_UPPER_CASE_MESSAGE: [&str; 12] = [
    "AccessDeniedException",
    "DoesNotExistException",
    "InternalServerError",
    "InvalidDocument",
    "InvalidInstanceId",
    "InvalidInstanceInformationFilterValue",
    "InvalidNextToken",
    "InvalidParameters",
    "InvalidTarget",
    "ResourceNotFoundException",
    "ServiceQuotaExceededException",
    "TargetNotConnected",
];

/// The body of an error answer.
pub(super) fn error_document(error: &ApiError) -> Value {
    let mut document = json!({ "__type": error.code });
    match error.code.as_str() {
        // Its shape is empty.
        "InvalidFilterKey" => {}
        code if WITH_UPPER_CASE_MESSAGE.contains(&code) => document["Message"] = error.message.as_str().into(),
        _ => document["message"] = error.message.as_str().into(),
    }
    document
}

pub(super) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(400, "ValidationException", message)
}

pub(super) fn text<'a>(input: &'a Value, name: &str, max_len: usize) -> Result<&'a str, ApiError> {
    match input.get(name).and_then(Value::as_str) {
        Some(value) if !value.is_empty() && value.len() <= max_len => Ok(value),
        Some(_) => {
            Err(invalid(format!("1 validation error detected: '{name}' must have length between 1 and {max_len}")))
        }
        None => Err(invalid(format!("1 validation error detected: Value null at '{name}': Member must not be null"))),
    }
}

pub(super) fn target_arn(call: &Call<'_>, target: &str) -> String {
    let (region, account) = (&call.region, &call.caller.account);
    if target.starts_with("mi-") {
        format!("arn:aws:ssm:{region}:{account}:managed-instance/{target}")
    } else if let Some(task) = target.strip_prefix("ecs:") {
        let mut parts = task.rsplitn(3, '_').skip(1);
        let (task, cluster) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        format!("arn:aws:ecs:{region}:{account}:task/{cluster}/{task}")
    } else {
        format!("arn:aws:ec2:{region}:{account}:instance/{target}")
    }
}

fn start(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    let world = call.world;
    let target = text(input, "Target", 400)?;
    call.authorize(&target_arn(call, target))?;
    let document = input.get("DocumentName").and_then(Value::as_str).unwrap_or(SHELL_DOCUMENT);
    if let Some(resource) = approval::denied_start(call, target, document) {
        return Err(call.denied(&resource));
    }
    if world.settings().denied_bastions.contains(target) {
        return Err(call.denied(&target_arn(call, target)));
    }
    if world.settings().denied_documents.contains(document) {
        let account = if document.starts_with("AWS-") { "" } else { &call.caller.account };
        return Err(call.denied(&format!("arn:aws:ssm:{}:{account}:document/{document}", call.region)));
    }
    let reason = match input.get("Reason") {
        None | Some(Value::Null) => None,
        Some(_) => Some(text(input, "Reason", 256)?.to_owned()),
    };
    if target.starts_with("ecs:") && world.settings().tasks.sessions_denied {
        let message = format!(
            "User: {} is not authorized to perform: ssm:StartSession on resource: {} with an explicit deny in an \
             identity-based policy",
            call.caller.arn,
            target_arn(call, target)
        );
        return Err(ApiError::new(400, "AccessDeniedException", message));
    }
    let Some(node) = node(world, target) else {
        return Err(ApiError::new(400, "TargetNotConnected", format!("{target} is not connected.")));
    };
    let own = world.settings().session_documents.get(document).cloned();
    let is_of_aws = [REMOTE_HOST_DOCUMENT, PORT_DOCUMENT].contains(&document)
        && node.documents.iter().any(|known| known == document);
    if own.is_none() && !is_of_aws {
        return Err(ApiError::new(400, "InvalidDocument", format!("Document with name {document} does not exist.")));
    }
    let mut parameters = parameters(document, own.is_some(), input)?;
    if let Some((host, port)) = own {
        (parameters.host, parameters.port) = (Some(host), port.to_string());
    }
    if target.starts_with("mi-") && world.settings().standard_tier {
        let message = "Enable advanced-instances tier to use Session Manager with your on-premises instances";
        return Err(ApiError::new(400, "BadRequest", message));
    }
    let digits = Uuid::new_v4().simple().to_string();
    let id = format!("{}-{}", call.caller.session_name, &digits[..17]);
    let foreign = world.settings().foreign_stream_host.clone();
    let gateway = foreign.map_or_else(|| world.gateway_url.clone(), |host| format!("wss://{host}"));
    let stream_url =
        format!("{gateway}/v1/data-channel/{id}?role=publish_subscribe&cell-number={}", STANDARD.encode(CELL_NUMBER));
    let token = new_token();
    let session = Session::start(
        world,
        SessionStart {
            id: id.clone(),
            target: target.to_owned(),
            agent_version: node.agent_version,
            document: document.to_owned(),
            region: call.region.clone(),
            owner: call.caller.clone(),
            parameters,
            reason,
            stream_url: stream_url.clone(),
            limit: node.limit,
        },
    );
    session.set_token(token.clone(), world.clock.instant() + world.config.stream_token_lifetime);
    world.journal.record(Event::SessionStarted { session: id.clone() });
    Ok(json!({"SessionId": id, "TokenValue": token, "StreamUrl": stream_url}))
}

fn new_token() -> String {
    STANDARD.encode(
        [
            b"\x00\x02emulated".as_slice(),
            Uuid::new_v4().as_bytes(),
            Uuid::new_v4().as_bytes(),
            Uuid::new_v4().as_bytes(),
        ]
        .concat(),
    )
}

/// What has an agent that is connected.
struct Node {
    agent_version: String,
    documents: Vec<String>,
    /// Sessions that run with it at a time.
    limit: Option<usize>,
}

fn node(world: &World, target: &str) -> Option<Node> {
    if let Some(instance) = world.fleet.find(target) {
        let BastionConfig { agent_version, documents, .. } = instance.config.clone();
        return is_online(world, &instance).then_some(Node { agent_version, documents, limit: None });
    }
    let EcsConfig { session_limit, agent_version, .. } = &world.config.ecs;
    ecs::connected(world, target).then(|| Node {
        agent_version: agent_version.clone(),
        documents: vec![REMOTE_HOST_DOCUMENT.to_owned(), PORT_DOCUMENT.to_owned()],
        limit: Some(world.settings().tasks.session_limit.unwrap_or(*session_limit)),
    })
}

/// Reads `Parameters` as the documents declare them.
fn parameters(document: &str, is_fixed: bool, input: &Value) -> Result<Parameters, ApiError> {
    let wrong = |message: String| ApiError::new(400, "InvalidParameters", message);
    let empty = serde_json::Map::new();
    let given = match input.get("Parameters") {
        None | Some(Value::Null) => &empty,
        Some(value) => value.as_object().ok_or_else(|| wrong("Parameters is not a map".into()))?,
    };
    let mut parameters = Parameters { host: None, port: "80".to_owned(), local_port: "0".to_owned() };
    for (name, value) in given {
        let value = match value.as_array().map(Vec::as_slice) {
            Some([Value::String(value)]) => value.clone(),
            _ => return Err(wrong(format!("Parameter {name} is not a list of one string"))),
        };
        let is_port = value.parse::<u16>().is_ok() && value.bytes().all(|byte| byte.is_ascii_digit());
        match name.as_str() {
            "portNumber" if is_port && value != "0" && !is_fixed => parameters.port = value,
            "localPortNumber" if is_port => parameters.local_port = value,
            "host"
                if document == REMOTE_HOST_DOCUMENT && !value.is_empty() && !value.contains([' ', '/', ';', '$']) =>
            {
                parameters.host = Some(value);
            }
            _ => {
                return Err(wrong(format!(
                    "Parameter {name} with value {value} is not defined in document {document} or not allowed by it"
                )));
            }
        }
    }
    if document == REMOTE_HOST_DOCUMENT && parameters.host.is_none() {
        return Err(wrong("Parameter host is required".into()));
    }
    Ok(parameters)
}

fn session_arn(call: &Call<'_>, id: &str) -> String {
    format!("arn:aws:ssm:{}:{}:session/{id}", call.region, call.caller.account)
}

/// Finds a session and checks that it is the caller's, as the usual policies ask for.
fn own_session(call: &Call<'_>, id: &str) -> Result<Option<Arc<Session>>, ApiError> {
    call.authorize(&session_arn(call, id))?;
    let found = call.world.session(id).filter(|session| session.start.region == call.region);
    let has_tags = found.as_ref().is_some_and(|session| session.state() != SessionState::Ended);
    if !has_tags && call.world.settings().tag_policy {
        return Err(call.denied(&session_arn(call, id)));
    }
    match found {
        Some(session) if session.start.owner.user_id != call.caller.user_id => Err(call.denied(&session_arn(call, id))),
        found => Ok(found),
    }
}

fn resume(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    let id = text(input, "SessionId", 96)?;
    let gone = || ApiError::new(400, "DoesNotExistException", format!("Session {id} does not exist or has ended."));
    let session = own_session(call, id)?.ok_or_else(gone)?;
    let mode = call.world.settings().resume;
    match (mode, session.state()) {
        (Resume::Refused, _) | (_, SessionState::Ended) => Err(gone()),
        (Resume::WithoutToken, _) => Ok(json!({ "SessionId": id })),
        (Resume::Granted, SessionState::Waiting | SessionState::Connected | SessionState::Disconnected) => {
            let token = new_token();
            session.resume(token.clone(), call.world.clock.instant() + call.world.config.stream_token_lifetime);
            call.world.journal.record(Event::SessionResumed { session: id.to_owned() });
            Ok(json!({"SessionId": id, "TokenValue": token, "StreamUrl": session.start.stream_url}))
        }
    }
}

fn terminate(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    let id = text(input, "SessionId", 96)?;
    if let Some(session) = own_session(call, id)? {
        session.terminate();
    }
    Ok(json!({ "SessionId": id }))
}

fn describe_sessions(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    call.authorize("*")?;
    let active = match text(input, "State", 10)? {
        "Active" => true,
        "History" => false,
        _ => return Err(invalid("State must be Active or History")),
    };
    let filters = filters(input, &["SessionId", "Target", "Owner", "Status"], "key", "value")?;
    let limit = match input.get("MaxResults") {
        None | Some(Value::Null) => MAX_SESSIONS,
        Some(value) => match value.as_u64().and_then(|limit| usize::try_from(limit).ok()) {
            Some(limit @ 1..=MAX_SESSIONS) => limit,
            Some(_) | None => return Err(invalid("MaxResults must be between 1 and 200")),
        },
    };
    let first = match input.get("NextToken").and_then(Value::as_str) {
        None => 0,
        Some(token) => token.parse().map_err(|_| ApiError::new(400, "InvalidNextToken", "the token is not valid"))?,
    };
    let mut sessions: Vec<Value> = lock(&call.world.sessions)
        .values()
        .filter(|session| (session.state() != SessionState::Ended) == active)
        .map(|session| {
            let status = match session.state() {
                SessionState::Waiting | SessionState::Connected => "Connected",
                SessionState::Disconnected => "Disconnected",
                SessionState::Ended => "Terminated",
            };
            json!({
                "SessionId": session.start.id,
                "Target": session.start.target,
                "Status": status,
                "Owner": session.start.owner.arn,
                "DocumentName": session.start.document,
                "Reason": session.start.reason,
                "StartDate": session.started.as_secs(),
            })
        })
        .filter(|session| filters.iter().all(|(key, values)| values.iter().any(|value| session[key] == *value)))
        .skip(first)
        .collect();
    let has_more = sessions.len() > limit;
    sessions.truncate(limit);
    let mut output = json!({ "Sessions": sessions });
    if has_more {
        output["NextToken"] = json!((first + limit).to_string());
    }
    Ok(output)
}

/// A filter's key and the values of which one has to match.
type Filter = (String, Vec<String>);

fn filters(input: &Value, known: &[&str], key: &str, value: &str) -> Result<Vec<Filter>, ApiError> {
    let list = input.get("Filters").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .map(|filter| {
            let name = filter.get(key).and_then(Value::as_str).unwrap_or_default();
            let wanted: Vec<String> = match filter.get(value) {
                Some(Value::String(value)) => vec![value.clone()],
                Some(Value::Array(values)) => values.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
                _ => Vec::new(),
            };
            let is_known =
                known.contains(&name) || (known.contains(&"tag-key") && name.len() > 4 && name.starts_with("tag:"));
            if !is_known || wanted.is_empty() {
                return Err(ApiError::new(400, "InvalidFilterKey", format!("the filter {name} is not known")));
            }
            Ok((name.to_owned(), wanted))
        })
        .collect()
}
