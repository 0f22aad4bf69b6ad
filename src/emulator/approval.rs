//! Just-in-time node access: requests for access to a node, what is decided about them, and the credentials of those that are
//! approved.
//!
//! Follows `StartAccessRequest` and `GetAccessToken` of the API model, and the guide of AWS Systems Manager, "Just-in-time node
//! access". Sessions that run go on when an approval is over, as there. A guess: that credentials end with their window, and
//! that those which were given before an approval was revoked are denied.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Emulator,
    api::{ApiError, Call},
    credentials::Caller,
    script::Settings,
    ssm::{invalid, target_arn, text},
    world::{World, lock},
};

/// What approved credentials are those of.
const ROLE: &str = "SSM-JustInTimeAccessTokenRole";

/// The actions that they allow (`AWSSystemsManagerJustInTimeAccessTokenPolicy`).
const ALLOWED: [&str; 3] = ["ssm:StartSession", "ssm:ResumeSession", "ssm:TerminateSession"];

/// The document that they allow as AWS publishes the policy, in its version 6.
pub(super) const SHELL_DOCUMENT: &str = "SSM-SessionManagerRunShell";

/// Just-in-time node access of the account.
#[derive(Debug, Clone)]
pub struct JustInTime {
    /// Access can be requested.
    pub enabled: bool,
    /// No session can be started without an approval.
    pub required: bool,
    /// What is decided about each request.
    pub decision: AccessStatus,
    /// How long after the request that is decided.
    pub after: Duration,
    /// How long sessions can be started after an approval: an hour where a policy approves, up to 14 days where people do.
    pub window: Duration,
    /// How long credentials last, as long as the window does.
    pub credentials: Duration,
    /// Approved credentials allow shells alone, as the policies do that AWS publishes.
    pub shells_only: bool,
}

impl Default for JustInTime {
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self {
            enabled: false,
            required: false,
            decision: AccessStatus::Approved,
            after: Duration::ZERO,
            window: hour,
            credentials: hour,
            shells_only: false,
        }
    }
}

impl JustInTime {
    /// Turns it on in an account that takes `ssm:StartSession` away, with this decision about each request.
    #[must_use]
    pub fn deciding(decision: AccessStatus) -> Self {
        Self { enabled: true, required: true, decision, ..Self::default() }
    }
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessStatus {
    Pending,
    Approved,
    Rejected,
    Revoked,
    Expired,
}

impl AccessStatus {
    const ALL: [Self; 5] = [Self::Pending, Self::Approved, Self::Rejected, Self::Revoked, Self::Expired];

    /// The name that the API has for it.
    fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Approved => "Approved",
            Self::Rejected => "Rejected",
            Self::Revoked => "Revoked",
            Self::Expired => "Expired",
        }
    }

    /// Reads the name in small letters.
    pub(super) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name().to_lowercase() == word)
    }
}

/// A request for access to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRequest {
    pub id: String,
    /// The node.
    pub target: String,
    /// Why access is wanted.
    pub reason: String,
    pub status: AccessStatus,
    /// Since when it is so, in time since the Unix epoch.
    since: Duration,
}

impl AccessRequest {
    /// Lets time have its effect.
    fn settle(&mut self, settings: &JustInTime, now: Duration) {
        let decided = self.since + settings.after;
        if self.status == AccessStatus::Pending && settings.decision != AccessStatus::Pending && decided <= now {
            (self.status, self.since) = (settings.decision, decided);
        }
        let end = self.since + settings.window;
        if self.status == AccessStatus::Approved && end <= now {
            (self.status, self.since) = (AccessStatus::Expired, end);
        }
    }
}

impl Emulator {
    /// Returns the requests for access to nodes, in their order.
    #[must_use]
    pub fn access_requests(&self) -> Vec<AccessRequest> {
        let (settings, now) = (self.settings().just_in_time, self.world.clock.wall());
        let mut requests = lock(&self.world.access_requests);
        requests.iter_mut().for_each(|request| request.settle(&settings, now));
        requests.clone()
    }

    /// Decides about all requests that there are.
    pub fn decide_access(&self, status: AccessStatus) {
        decide(&self.world, status);
    }
}

/// Decides about all requests that there are.
pub(super) fn decide(world: &World, status: AccessStatus) {
    let now = world.clock.wall();
    for request in lock(&world.access_requests).iter_mut() {
        (request.status, request.since) = (status, now);
    }
}

pub(super) fn start_access_request(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    let world = call.world;
    let reason = text(input, "Reason", 256)?.to_owned();
    let targets = input.get("Targets").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let [target] = targets else { return Err(invalid("Targets must name one node")) };
    let values = target.get("Values").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let (Some("InstanceIds"), [Value::String(node)]) = (target.get("Key").and_then(Value::as_str), values) else {
        return Err(invalid("Targets must name one node by the key InstanceIds"));
    };
    call.authorize(&target_arn(call, node))?;
    if !world.settings().just_in_time.enabled {
        return Err(invalid("Just-In-Time Node Access service is not enabled in this account."));
    }
    if world.fleet.find(node).is_none() {
        return Err(ApiError::new(400, "ResourceNotFoundException", format!("Node {node} was not found.")));
    }
    let id = format!("oi-{}", &Uuid::new_v4().simple().to_string()[..12]);
    lock(&world.access_requests).push(AccessRequest {
        id: id.clone(),
        target: node.clone(),
        reason,
        status: AccessStatus::Pending,
        since: world.clock.wall(),
    });
    world.journal.touch();
    Ok(json!({ "AccessRequestId": id }))
}

pub(super) fn get_access_token(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    let world = call.world;
    call.authorize("*")?;
    let id = text(input, "AccessRequestId", 15)?;
    let (settings, now) = (world.settings().just_in_time.clone(), world.clock.wall());
    let mut requests = lock(&world.access_requests);
    let Some(request) = requests.iter_mut().find(|request| request.id == id) else {
        let message = format!("Access request {id} was not found.");
        return Err(ApiError::new(400, "ResourceNotFoundException", message));
    };
    request.settle(&settings, now);
    let mut output = json!({ "AccessRequestStatus": request.status.name() });
    if request.status == AccessStatus::Approved {
        let Caller { account, session_name, .. } = &call.caller;
        let caller = Caller {
            account: account.clone(),
            arn: format!("arn:aws:sts::{account}:assumed-role/{ROLE}/{session_name}"),
            user_id: format!("AROAJUSTINTIMEACCESS0:{session_name}"),
            session_name: session_name.clone(),
            assumed_role: true,
            access_request: Some(id.to_owned()),
        };
        let expires = (request.since + settings.window).min(now + settings.credentials);
        let keys = lock(&world.credentials).issue(caller, Some(expires));
        output["Credentials"] = json!({
            "AccessKeyId": keys.access_key,
            "SecretAccessKey": keys.secret,
            "SessionToken": keys.session_token,
            "ExpirationTime": expires.as_secs(),
        });
    }
    Ok(output)
}

/// Whether the caller's credentials are for sessions with one node, and this action is none that they allow.
pub(super) fn denies(caller: &Caller, action: &str) -> bool {
    caller.access_request.is_some() && !ALLOWED.contains(&action)
}

/// Says on what a session may not be started, if it may not.
pub(super) fn denied_start(call: &Call<'_>, target: &str, document: &str) -> Option<String> {
    let world = call.world;
    let (settings, now): (JustInTime, _) = (world.settings().just_in_time.clone(), world.clock.wall());
    let node = || target_arn(call, target);
    let Some(id) = &call.caller.access_request else { return settings.required.then(node) };
    let mut requests = lock(&world.access_requests);
    let request = requests.iter_mut().find(|request| request.id == *id && request.target == target);
    let is_approved = request.is_some_and(|request| {
        request.settle(&settings, now);
        request.status == AccessStatus::Approved
    });
    if !is_approved {
        return Some(node());
    }
    let is_allowed = !settings.shells_only || document == SHELL_DOCUMENT;
    (!is_allowed).then(|| format!("arn:aws:ssm:{}::document/{document}", call.region))
}

/// Puts the fault in force that is called after what is decided.
pub(super) fn decide_from_now_on(settings: &mut Settings, word: &str) {
    if let Some(decision) = AccessStatus::parse(word) {
        let just_in_time = &mut settings.just_in_time;
        (just_in_time.enabled, just_in_time.required, just_in_time.decision) = (true, true, decision);
    }
}
