//! What sessions of Systems Manager have to be allowed.
//!
//! **Whose sessions.** A session's id is the name of the IAM user, or of the role's session, with a suffix. The variable
//! `${aws:username}` is that name for a user and does not exist for a role; `${aws:userid}` is `AROA…:name` for a role, so the
//! pattern `session/${aws:userid}-*` of AWS's quick start matches no id that we have seen of either. What works for a role is
//! the tag that Session Manager puts on each session, whose value is the `aws:userid` of whoever has started it (AWS Systems
//! Manager user guide, "Allow a user to end only sessions they started", both methods). As both are documented, a role gets
//! both: the pattern allows nothing that the tag does not.
//!
//! **The data channel.** `ssmmessages:OpenDataChannel` is allowed on every session, as AWS's own managed policies do: it is no use
//! without the token, good for one time, that only StartSession and ResumeSession give.

pub use super::find::nodes::BASTION_TAG;
use super::{
    approval::{GET_ACCESS_TOKEN, START_ACCESS_REQUEST},
    find::{
        fargate::task::{definition, family, role_arn},
        nodes::{BASTION_NAME_PATTERNS, GROUP_TAG, NODE_TAG},
    },
};
use crate::{
    aws::ecs::NewTaskDefinition,
    bastion::{EcsSearch, EcsWhat, Fargate, Search, Target},
    iam::{Grant, Principal, ServiceRole, Statement, every, partition},
    util::{arn::Arn, quote::command},
};

/// The document whose sessions forward to a host that the target sees.
pub const DOCUMENT: &str = "AWS-StartPortForwardingSessionToRemoteHost";

/// The tag on a session that tells who has started it, as a condition key of ResumeSession and TerminateSession (Service
/// Authorization Reference of AWS Systems Manager).
const SESSION_OWNER: &str = "ssm:resourceTag/aws:ssmmessages:session-id";

/// What is done with a session besides starting it.
const OWN_SESSION_ACTIONS: [&str; 2] = ["ssm:ResumeSession", "ssm:TerminateSession"];

const OPEN_DATA_CHANNEL: &str = "ssmmessages:OpenDataChannel";

/// The most that a session may be: a document that only forwards. A session that names none would be a shell on the bastion.
const FORWARDS_ONLY: (&str, &str, &str) = ("BoolIfExists", "ssm:SessionDocumentAccessCheck", "true");

/// Who tasks of ECS are to IAM.
const TASKS: &str = "ecs-tasks.amazonaws.com";

/// What the agent in a container does (ECS developer guide, "Using ECS Exec").
const AGENT_ACTIONS: [&str; 4] = [
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
];

/// Returns the statements for sessions on targets, on those that are found, and on tasks that are started.
#[must_use]
pub fn statements<'a>(
    grant: &Grant,
    targets: impl Iterator<Item = &'a Target> + Clone,
    searches: impl Iterator<Item = &'a Search> + Clone,
    fargates: impl Iterator<Item = &'a Fargate> + Clone,
) -> Vec<Statement> {
    if grant.requests_access {
        return requests(grant, targets, searches);
    }
    let of_fargate = fargates.clone().map(|fargate| tasks(grant, &fargate.cluster, "*"));
    let resources = resources(grant, targets.clone(), searches.clone(), of_fargate);
    let mut statements = vec![start("StartPortForwarding", resources)];
    for search in searches.clone() {
        statements.extend(found(grant, search));
    }
    let makes_tasks = fargates.clone().next().is_some();
    for fargate in fargates {
        statements.extend(made(grant, fargate));
    }
    statements.push(own_sessions(grant.principal.as_ref(), grant.partition()));
    if !matches!(grant.principal, Some(Principal::User { .. })) {
        let own = format!("arn:{}:ssm:*:*:session/${{aws:userid}}-*", grant.partition());
        statements.push(Statement::allow("OwnSessionsById", OWN_SESSION_ACTIONS, vec![own]));
    }
    statements.push(open_data_channels(grant.partition()));
    let action = ["ssm:DescribeInstanceInformation"];
    if searches.clone().any(|search| !matches!(search, Search::Ecs(_))) {
        statements.push(Statement::allow("FindManagedNodes", action, every()));
    } else if targets.into_iter().any(|target| !matches!(target, Target::EcsTask(_))) {
        // Systems Manager does not list containers.
        statements.push(Statement::allow("OptionalTellsWhyABastionIsAway", action, every()));
    }
    if makes_tasks || searches.clone().any(|search| matches!(search, Search::Ecs(_))) {
        statements.push(Statement::allow("OptionalTellsWhyATaskIsFull", ["ssm:DescribeSessions"], every()));
    }
    statements.extend(find_instances(searches));
    statements
}

/// What it takes besides to find instances, or to find them sooner.
fn find_instances<'a>(searches: impl Iterator<Item = &'a Search> + Clone) -> Option<Statement> {
    let action = ["ec2:DescribeInstances"];
    if searches.clone().any(|search| matches!(search, Search::Auto { .. })) {
        return Some(Statement::allow("FindInstances", action, every()));
    }
    let mut groups = searches.filter(|search| matches!(search, Search::Group(_)));
    groups.next().map(|_| Statement::allow("OptionalFindsInstancesOfGroups", action, every()))
}

/// What it takes to request access to targets, and to find them. Sessions are started, resumed and ended with the credentials
/// that come of it.
///
/// What is behind a request for manual approval is made in the requester's name (AWS Systems Manager user guide, "Setting up
/// just-in-time access with Systems Manager", the policy for those who request access).
fn requests<'a>(
    grant: &Grant,
    targets: impl Iterator<Item = &'a Target>,
    searches: impl Iterator<Item = &'a Search> + Clone,
) -> Vec<Statement> {
    let request = [START_ACCESS_REQUEST];
    let nodes: Vec<String> = targets.filter_map(|target| node(grant, target)).collect();
    let (by_id, by_search) = (!nodes.is_empty(), searches.clone().next().is_some());
    let mut statements = Vec::new();
    if by_id {
        statements.push(Statement::allow("RequestAccess", request, nodes));
    }
    for search in searches.clone() {
        statements.extend(tagged(search).into_iter().map(|tagged| {
            let statement = Statement::allow(tagged.request, request, any_node(grant));
            tagged.limit(statement)
        }));
    }
    let documents = vec![format!("arn:{}:ssm:*:*:document/*", grant.partition())];
    let executions = vec![format!("arn:{}:ssm:*:*:automation-execution/*", grant.partition())];
    let items = vec![format!("arn:{}:ssm:*:*:opsitem/*", grant.partition())];
    let start = ["ssm:StartAutomationExecution"];
    statements.extend([
        Statement::allow("GetApprovedAccess", [GET_ACCESS_TOKEN], every()),
        Statement::allow("KeepAccessRequests", ["ssm:CreateOpsItem", "ssm:GetOpsItem"], items),
        Statement::allow("AskApprovers", start, documents).when(
            "StringEquals",
            "ssm:DocumentType",
            "ManualApprovalPolicy",
        ),
        Statement::allow("AwaitApprovers", start, executions),
    ]);
    if by_search {
        statements.push(Statement::allow("FindManagedNodes", ["ssm:DescribeInstanceInformation"], every()));
    } else if by_id {
        let action = ["ssm:DescribeInstanceInformation"];
        statements.push(Statement::allow("OptionalTellsWhyABastionIsAway", action, every()));
    }
    statements.extend(find_instances(searches));
    statements
}

fn start(sid: &'static str, resources: Vec<String>) -> Statement {
    let (operator, key, value) = FORWARDS_ONLY;
    Statement::allow(sid, ["ssm:StartSession"], resources).when(operator, key, value)
}

/// What it takes to find targets, and to start sessions on them as far as they are known by their tags.
fn found(grant: &Grant, search: &Search) -> Vec<Statement> {
    match search {
        Search::Ecs(EcsSearch { cluster, what: EcsWhat::Service(_), .. }) => {
            vec![
                Statement::allow("ListTasks", ["ecs:ListTasks"], every()).when(
                    "ArnEquals",
                    "ecs:cluster",
                    ecs_cluster(grant, cluster),
                ),
                Statement::allow("DescribeTasks", ["ecs:DescribeTasks"], vec![tasks(grant, cluster, "*")]),
            ]
        }
        Search::Ecs(EcsSearch { cluster, what: EcsWhat::Task(id), .. }) => {
            vec![Statement::allow("DescribeTasks", ["ecs:DescribeTasks"], vec![tasks(grant, cluster, id)])]
        }
        Search::Tag { .. } | Search::Name(_) | Search::Group(_) | Search::Auto { .. } => {
            tagged(search).into_iter().map(|tagged| tagged.limit(start(tagged.start, any_node(grant)))).collect()
        }
    }
}

/// Nodes that are found by a tag.
struct Tagged<'a> {
    /// What the statements are called that are about them: for starting sessions, and for requesting access.
    start: &'static str,
    request: &'static str,
    operator: &'static str,
    key: &'a str,
    values: Vec<&'a str>,
}

impl Tagged<'_> {
    /// Limits a statement to them.
    fn limit(&self, statement: Statement) -> Statement {
        self.values.iter().fold(statement, |statement, value| {
            statement.when(self.operator, format!("ssm:resourceTag/{}", self.key), (*value).to_owned())
        })
    }
}

/// Returns the nodes that a search finds, by the tags that they have.
fn tagged(search: &Search) -> Vec<Tagged<'_>> {
    let equal =
        |start, request, key, value| Tagged { start, request, operator: "StringEquals", key, values: vec![value] };
    let like = |start, request, key, values| Tagged { start, request, operator: "StringLike", key, values };
    match search {
        Search::Ecs(_) => Vec::new(),
        Search::Tag { key, value } => vec![equal("StartOnTagged", "RequestAccessToTagged", key, value)],
        Search::Name(name) => vec![equal("StartOnNamed", "RequestAccessToNamed", "Name", name)],
        Search::Group(group) => vec![equal("StartInGroup", "RequestAccessToGroup", GROUP_TAG, group)],
        Search::Auto { nodes } => {
            let mut all = vec![
                like("StartOnBastions", "RequestAccessToBastions", BASTION_TAG, vec!["*"]),
                like("StartOnNamedBastions", "RequestAccessToNamedBastions", "Name", BASTION_NAME_PATTERNS.to_vec()),
            ];
            if *nodes {
                all.push(like("StartOnWorkerNodes", "RequestAccessToWorkerNodes", NODE_TAG, vec!["*"]));
            }
            all
        }
    }
}

/// The pattern of all nodes.
fn any_node(grant: &Grant) -> Vec<String> {
    vec![grant.arn("ec2", "instance/*"), grant.arn("ssm", "managed-instance/*")]
}

/// Returns the ARN of a target that is a node.
fn node(grant: &Grant, target: &Target) -> Option<String> {
    match target {
        Target::Instance(id) => Some(grant.arn("ec2", &format!("instance/{id}"))),
        Target::ManagedNode(id) => Some(grant.arn("ssm", &format!("managed-instance/{id}"))),
        Target::EcsTask(_) => None,
    }
}

/// What it takes to start a task and to stop it, and to make what it is started from, unless the user has that.
fn made(grant: &Grant, fargate: &Fargate) -> Vec<Statement> {
    let cluster = ecs_cluster(grant, &fargate.cluster);
    let all = vec![tasks(grant, &fargate.cluster, "*")];
    let family = family(fargate);
    let definitions = vec![grant.arn("ecs", &format!("task-definition/{family}:*"))];
    let in_cluster = |statement: Statement| statement.when("ArnEquals", "ecs:cluster", cluster.clone());
    let tag = |sid, on: Vec<String>, action: &str| {
        Statement::allow(sid, ["ecs:TagResource"], on).when("StringEquals", "ecs:CreateAction", action)
    };
    let role = role_arn(&fargate.options.task_role, &grant.region, &grant.account);
    let mut statements = vec![
        in_cluster(Statement::allow("RunBastion", ["ecs:RunTask"], definitions.clone())),
        Statement::allow("StopBastion", ["ecs:StopTask", "ecs:DescribeTasks"], all.clone()),
        in_cluster(Statement::allow("ListTasks", ["ecs:ListTasks"], every())),
        tag("TagBastion", all, "RunTask"),
        Statement::allow("PassTaskRole", ["iam:PassRole"], vec![role]).when(
            "StringEquals",
            "iam:PassedToService",
            TASKS,
        ),
    ];
    if fargate.options.task_definition.is_some() {
        let sid = "OptionalShowsTheTaskDefinition";
        statements.push(Statement::allow(sid, ["ecs:DescribeTaskDefinition"], every()));
    } else {
        let actions = ["ecs:DescribeTaskDefinition", "ecs:RegisterTaskDefinition", "ecs:CreateCluster"];
        statements.push(Statement::allow("MakeTaskDefinition", actions, every()));
        statements.push(tag("TagTaskDefinition", definitions, "RegisterTaskDefinition"));
    }
    statements
}

/// Returns what to say of the role that a task definition of the user's may have besides.
#[must_use]
pub fn execution_role(definition: &str) -> String {
    command!(
        "where the task definition has an execution role, `PassTaskRole` has to name that as well: `aws ecs describe-task-definition \
         --task-definition {} --query taskDefinition.executionRoleArn` shows it",
        definition
    )
}

/// Returns the role that tasks have, which is never made by this program.
#[must_use]
pub fn task_role(fargate: &Fargate) -> ServiceRole {
    let role = &fargate.options.task_role;
    let name = Arn::parse(role).map_or(role.as_str(), |arn| arn.name());
    let statements = vec![Statement::allow("AgentOfEcsExec", AGENT_ACTIONS, every())];
    ServiceRole { name: name.to_owned(), service: TASKS.to_owned(), document: Grant::document_of(statements) }
}

/// Returns the task definition that is registered for a task, unless the user has one.
#[must_use]
pub fn task_definition(fargate: &Fargate, region: &str, account: &str) -> NewTaskDefinition {
    definition(&fargate.options, &role_arn(&fargate.options.task_role, region, account))
}

/// What fetches an image from ECR (Amazon ECS developer guide, "Amazon ECS task execution IAM role").
const FETCH_IMAGE: [&str; 4] =
    ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetAuthorizationToken", "ecr:GetDownloadUrlForLayer"];

/// Returns the role that ECS acts as when it fetches the image of a task from ECR.
#[must_use]
pub fn image_role(name: &str) -> ServiceRole {
    let document = Grant::document_of(vec![Statement::allow("FetchImage", FETCH_IMAGE, every())]);
    ServiceRole { name: name.to_owned(), service: TASKS.to_owned(), document }
}

/// What the agent on an instance does besides: it tells Systems Manager that it is there.
const AGENT_IS_THERE: [&str; 1] = ["ssm:UpdateInstanceInformation"];

/// Returns the role that instances have whose agent takes sessions, and nothing else: less than `AmazonSSMManagedInstanceCore`
/// (AWS Systems Manager user guide, "Create a custom IAM role for Session Manager").
#[must_use]
pub fn instance_role(name: &str, region: &str) -> ServiceRole {
    let statements = vec![
        Statement::allow("AgentOfSessions", AGENT_ACTIONS, every()),
        Statement::allow("AgentIsThere", AGENT_IS_THERE, every()),
    ];
    let document = Grant::document_of(statements);
    ServiceRole { name: name.to_owned(), service: instance_service(region), document }
}

/// Who instances are to IAM, which is not the same in all partitions.
fn instance_service(region: &str) -> String {
    let suffix = match partition(region) {
        "aws-cn" => "amazonaws.com.cn",
        "aws-iso" => "c2s.ic.gov",
        "aws-iso-b" => "sc2s.sgov.gov",
        _ => "amazonaws.com",
    };
    format!("ec2.{suffix}")
}

fn ecs_cluster(grant: &Grant, name: &str) -> String {
    grant.arn("ecs", &format!("cluster/{name}"))
}

fn tasks(grant: &Grant, cluster: &str, id: &str) -> String {
    grant.arn("ecs", &format!("task/{cluster}/{id}"))
}

/// What to know of statements for the tasks of a service.
pub const TASKS_NOTE: &str = "`ecs:ExecuteCommand` is not needed, since sessions are started with Systems Manager itself; AWS's guide \
                              recommends to deny `ssm:StartSession` on tasks, as such sessions are not in the audit log of ECS Exec: a \
                              policy that does so overrules this one";

/// What to know of statements for requests.
pub const REQUESTS_NOTE: &str = "as AWS publishes them, the policies of the credentials that come of an approval \
                                 (`AWSSystemsManagerJustInTimeAccessTokenPolicy`, version 6) allow shells alone: whoever administers Systems \
                                 Manager has to see to it that they allow the document that forwards";

/// Returns what to know of the statements for a target.
#[must_use]
pub fn note(target: &Target) -> Option<String> {
    let (cluster, _) = target.ecs_task()?;
    Some(format!(
        "a task's id changes with the task: `task/{cluster}/*` allows all tasks of the ECS cluster; `ecs:ExecuteCommand` is \
         not needed, since sessions are started with Systems Manager itself"
    ))
}

/// What StartSession is called on: targets, tasks, and the document: one of AWS, which is without an account, or those of the user's. Nodes that
/// are found have statements of their own.
fn resources<'a>(
    grant: &Grant,
    targets: impl Iterator<Item = &'a Target>,
    searches: impl Iterator<Item = &'a Search>,
    of_tasks: impl Iterator<Item = String>,
) -> Vec<String> {
    let targets = targets.map(|target| match target {
        Target::Instance(_) | Target::ManagedNode(_) => node(grant, target).unwrap_or_default(),
        Target::EcsTask(_) => {
            let (cluster, task) = target.ecs_task().unwrap_or(("*", "*"));
            tasks(grant, cluster, task)
        }
    });
    let found = searches.filter_map(|search| match search {
        Search::Ecs(EcsSearch { cluster, what: EcsWhat::Service(_), .. }) => Some(tasks(grant, cluster, "*")),
        Search::Ecs(EcsSearch { cluster, what: EcsWhat::Task(id), .. }) => Some(tasks(grant, cluster, id)),
        Search::Tag { .. } | Search::Name(_) | Search::Group(_) | Search::Auto { .. } => None,
    });
    let mut resources: Vec<String> = targets.chain(found).chain(of_tasks).collect();
    resources.dedup();
    if grant.documents.is_empty() {
        resources.push(format!("arn:{}:ssm:{}::document/{DOCUMENT}", grant.partition(), grant.region));
    }
    resources.extend(grant.documents.iter().map(|name| grant.arn("ssm", &format!("document/{name}"))));
    resources
}

/// Returns the statement that allows an action on the caller's sessions, and what goes with it, as JSON on one line.
#[must_use]
pub fn session_statement(action: &str, principal: Option<&Principal>, region: &str) -> String {
    let partition = partition(region);
    let statement = match action {
        OPEN_DATA_CHANNEL => open_data_channels(partition),
        _ => own_sessions(principal, partition),
    };
    serde_json::to_string(&statement).expect("strings are always JSON")
}

fn own_sessions(principal: Option<&Principal>, partition: &str) -> Statement {
    let action = OWN_SESSION_ACTIONS;
    match principal {
        Some(Principal::User { .. }) => {
            let own = format!("arn:{partition}:ssm:*:*:session/${{aws:username}}-*");
            Statement::allow("OwnSessions", action, vec![own])
        }
        Some(Principal::Role { .. }) | None => {
            Statement::allow("OwnSessions", action, every()).when("StringLike", SESSION_OWNER, "${aws:userid}")
        }
    }
}

fn open_data_channels(partition: &str) -> Statement {
    Statement::allow("OpenDataChannels", [OPEN_DATA_CHANNEL], vec![data_channels(partition)])
}

/// Returns the pattern of all sessions, which a policy has to allow `ssmmessages:OpenDataChannel` on.
#[must_use]
pub fn data_channels(partition: &str) -> String {
    format!("arn:{partition}:ssm:*:*:session/*")
}
