//! IAM and Auto Scaling, as far as somebody looks at what a template has created. The query protocol: forms in, XML out.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    api::{ApiError, Call},
    http::{FullRequest, Response, response},
    sigv4::parse_query,
    stack::{Resource, instance_of},
    world::lock,
};

/// The versions of the APIs, which tell their calls from those of other services with this protocol.
pub(super) const VERSION: &str = "2010-05-08";
pub(super) const AUTO_SCALING_VERSION: &str = "2011-01-01";

type Form = BTreeMap<String, String>;

pub(super) fn answer(call: &Call<'_>, operation: &str, request: &FullRequest) -> Result<Response, ApiError> {
    call.authorize("*")?;
    let body = String::from_utf8_lossy(&request.body);
    let form: Form = parse_query(if body.is_empty() { request.query() } else { &body }).into_iter().collect();
    let text = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let result = match operation {
        "GetRole" => role(call, text("RoleName"))?,
        "GetInstanceProfile" => profile(call, text("InstanceProfileName"))?,
        "ListRolePolicies" => {
            let names = policies(call, text("RoleName"))?.into_iter().map(|(name, _)| name);
            list("PolicyNames", names) + "<IsTruncated>false</IsTruncated>"
        }
        "ListAttachedRolePolicies" => {
            policies(call, text("RoleName"))?;
            "<AttachedPolicies/><IsTruncated>false</IsTruncated>".to_owned()
        }
        "GetRolePolicy" => {
            let (role, name) = (text("RoleName"), text("PolicyName"));
            let found = policies(call, role)?.into_iter().find(|(known, _)| known == name);
            let (_, document) = found.ok_or_else(|| absent(&format!("The role policy with name {name}")))?;
            element("RoleName", role) + &element("PolicyName", name) + &element("PolicyDocument", &encoded(&document))
        }
        "DescribeAutoScalingGroups" => scaling_groups(call, &form),
        other => {
            let message = format!("The action {other} is not valid for this web service.");
            return Err(ApiError::new(400, "InvalidAction", message));
        }
    };
    let id = uuid::Uuid::new_v4();
    let document = format!(
        "<{operation}Response><{operation}Result>{result}</{operation}Result><ResponseMetadata><RequestId>{id}</RequestId>\
         </ResponseMetadata></{operation}Response>"
    );
    Ok(response(200, "text/xml", document))
}

fn role(call: &Call<'_>, name: &str) -> Result<String, ApiError> {
    let world = call.world;
    let stack = lock(&world.stack);
    let trust = match stack.find("AWS::IAM::Role", name) {
        Some(role) => role.properties["AssumeRolePolicyDocument"].clone(),
        None if world.config.roles.iter().any(|known| known == name) => Value::Object(serde_json::Map::new()),
        None => return Err(absent(&format!("The role with name {name}"))),
    };
    let arn = format!("arn:aws:iam::{}:role/{name}", world.config.account);
    let content = element("Path", "/")
        + &element("RoleName", name)
        + &element("Arn", &arn)
        + &element("AssumeRolePolicyDocument", &encoded(&trust));
    Ok(format!("<Role>{content}</Role>"))
}

/// The policies of a role: those that its resource has, and those that name it.
fn policies(call: &Call<'_>, role: &str) -> Result<Vec<(String, Value)>, ApiError> {
    let world = call.world;
    let stack = lock(&world.stack);
    let found = stack.find("AWS::IAM::Role", role);
    if found.is_none() && !world.config.roles.iter().any(|known| known == role) {
        return Err(absent(&format!("The role with name {role}")));
    }
    let of = |policy: &Value| {
        let name = policy["PolicyName"].as_str().unwrap_or_default().to_owned();
        (name, policy["PolicyDocument"].clone())
    };
    let own = found.and_then(|found| found.properties["Policies"].as_array()).into_iter().flatten().map(of);
    let names =
        |policy: &&Resource| policy.properties["Roles"].as_array().into_iter().flatten().any(|name| name == role);
    let others = stack.of_kind("AWS::IAM::Policy").filter(names).map(|policy| of(&policy.properties));
    let is_assumed = world.config.roles.iter().any(|known| known == role);
    let of_settings = world.settings().role_policies.clone().into_iter().filter(|_| is_assumed);
    Ok(own.chain(others).chain(of_settings).collect())
}

fn profile(call: &Call<'_>, name: &str) -> Result<String, ApiError> {
    let stack = lock(&call.world.stack);
    let found = stack.find("AWS::IAM::InstanceProfile", name);
    let profile = found.ok_or_else(|| absent(&format!("Instance Profile {name}")))?;
    // A role that is deleted is in no profile any more.
    let roles = profile.properties["Roles"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let roles = roles.filter(|role| stack.find("AWS::IAM::Role", role).is_some());
    let roles: String = roles.map(|role| format!("<member>{}</member>", element("RoleName", role))).collect();
    Ok(format!("<InstanceProfile>{}<Roles>{roles}</Roles></InstanceProfile>", element("InstanceProfileName", name)))
}

fn scaling_groups(call: &Call<'_>, form: &Form) -> String {
    let wanted: Vec<&String> =
        (1..).map_while(|number| form.get(&format!("AutoScalingGroupNames.member.{number}"))).collect();
    let stack = lock(&call.world.stack);
    let groups = stack
        .of_kind("AWS::AutoScaling::AutoScalingGroup")
        .filter(|group| wanted.is_empty() || wanted.contains(&&group.physical));
    let groups: String = groups
        .map(|group| {
            let instance =
                element("InstanceId", &instance_of(&group.physical)) + &element("LifecycleState", "InService");
            let content = element("AutoScalingGroupName", &group.physical)
                + &element("DesiredCapacity", group.text("DesiredCapacity"))
                + &format!("<Instances><member>{instance}</member></Instances>");
            format!("<member>{content}</member>")
        })
        .collect();
    format!("<AutoScalingGroups>{groups}</AutoScalingGroups>")
}

fn absent(what: &str) -> ApiError {
    ApiError::new(404, "NoSuchEntity", format!("{what} cannot be found."))
}

fn list(name: &str, items: impl Iterator<Item = String>) -> String {
    let items: String = items.map(|item| element("member", &item)).collect();
    format!("<{name}>{items}</{name}>")
}

fn element(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"))
}

/// IAM writes documents as parts of a URL.
fn encoded(document: &Value) -> String {
    let encode = |byte: u8| {
        let is_plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if is_plain { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    document.to_string().bytes().map(encode).collect()
}
