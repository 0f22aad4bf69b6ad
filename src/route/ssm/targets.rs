//! What Systems Manager knows of a target that it is not connected to.
//!
//! StartSession has one answer for a bastion that is switched off and for one that was never there. The list of
//! managed nodes tells them apart.
//!
//! Invariants:
//!
//! * To know more is a courtesy: the permission for it is optional, and whatever goes wrong here means that nothing
//!   is known.
//! * However many tunnels ask about a target, one call is made for it in `GOOD_FOR`, and nobody waits longer for
//!   it than `ASK_LIMIT`.
//!
//! Leaves out ECS containers, which that list does not have.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::time::timeout;

use crate::{
    aws::{
        Aws,
        error::AwsError,
        nodes::{ManagedNode, NodeFilter},
    },
    bastion::Target,
    clock::Clock,
    fault::BoxError,
    util::{
        peer_text::{PeerText, sentence},
        written::rfc3339,
    },
};

/// Limit of the call: the next bastion waits meanwhile.
const ASK_LIMIT: Duration = Duration::from_secs(3);

/// How long an answer is good for, also one that could not be had. Tunnels ask at every attempt to start a session.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// What is known of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Knowledge {
    /// Nothing: the list cannot be had, or does not have targets of this kind.
    Unknown,
    /// It is not a managed node of this account in this region.
    Absent,
    Seen(Sighting),
}

/// What Systems Manager knows of the agent on a managed node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Whether the agent is in contact with Systems Manager, sessions apart.
    pub in_contact: bool,
    pub last_contact: Option<SystemTime>,
    pub agent_version: Option<PeerText>,
}

impl From<ManagedNode> for Sighting {
    fn from(node: ManagedNode) -> Self {
        Self { in_contact: node.is_online(), last_contact: node.last_ping, agent_version: node.agent_version }
    }
}

impl fmt::Display for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its agent")?;
        if let Some(version) = &self.agent_version {
            write!(f, ", version {version},")?;
        }
        if self.in_contact {
            return f.write_str(" is in contact with Systems Manager, but takes no sessions");
        }
        f.write_str(" has lost contact")?;
        match self.last_contact {
            Some(at) => write!(f, ", the last was at {}", rfc3339(at)),
            None => Ok(()),
        }
    }
}

/// An answer of StartSession with what else is known of the target.
#[derive(Debug, thiserror::Error)]
#[error("{sighting}")]
pub struct NotConnected {
    /// What is known.
    pub sighting: Sighting,
    /// What StartSession answered.
    #[source]
    pub source: BoxError,
}

/// Remembers what is known of targets.
#[derive(Debug)]
pub(super) struct Targets {
    clock: Clock,
    /// Whoever finds no good answer asks while the others wait at the lock for it.
    answers: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Option<Answer>>>>>,
}

#[derive(Debug)]
struct Answer {
    /// Monotonic.
    at: Duration,
    knowledge: Knowledge,
}

impl Targets {
    pub(super) fn new() -> Self {
        Self { clock: Clock::start(), answers: Mutex::default() }
    }

    /// Tells what is known of a target, by a call if need be.
    pub(super) async fn look_up(&self, aws: &Aws, target: &Target) -> Knowledge {
        let id = match target {
            Target::Instance(id) | Target::ManagedNode(id) => id,
            Target::EcsTask(_) => return Knowledge::Unknown,
        };
        let answer = {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(answers.entry(id.clone()).or_default())
        };
        let mut answer = answer.lock().await;
        if let Some(answer) = &*answer
            && self.clock.now().mono.saturating_sub(answer.at) < GOOD_FOR
        {
            return answer.knowledge.clone();
        }
        let knowledge = match timeout(ASK_LIMIT, ask(aws, id)).await {
            Ok(Ok(knowledge)) => knowledge,
            Ok(Err(error)) => {
                tracing::debug!(id, error = %sentence(&error), "cannot look up the target");
                Knowledge::Unknown
            }
            Err(_) => {
                tracing::debug!(id, "looking up the target took too long");
                Knowledge::Unknown
            }
        };
        *answer = Some(Answer { at: self.clock.now().mono, knowledge: knowledge.clone() });
        knowledge
    }
}

/// Asks Systems Manager what it knows of a target, afresh each time. Containers are not in its list.
///
/// # Errors
/// See [`AwsError`]. The permission for this call is optional, so it says nothing about sessions if it is denied.
pub async fn managed_node(aws: &Aws, target: &Target) -> Result<Knowledge, AwsError> {
    match target {
        Target::Instance(id) | Target::ManagedNode(id) => {
            aws.credentials().await?;
            ask(aws, id).await
        }
        Target::EcsTask(_) => Ok(Knowledge::Unknown),
    }
}

async fn ask(aws: &Aws, id: &str) -> Result<Knowledge, AwsError> {
    let nodes = aws.managed_nodes(&NodeFilter::Ids(vec![id.to_owned()])).await?;
    Ok(nodes.into_iter().find(|node| node.id == id).map_or(Knowledge::Absent, |node| Knowledge::Seen(node.into())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::testing::{Answer as Response, Fake, aws, in_time};

    const ID: &str = "i-0dc03fbcae2a87472";

    async fn known(answer: Response) -> Knowledge {
        let fake = Fake::start(move |_| answer.clone()).await;
        let aws = aws(&fake).await;
        in_time(Targets::new().look_up(&aws, &ID.parse().unwrap())).await
    }

    fn node(status: &str) -> Response {
        Response::json(
            200,
            &serde_json::json!({ "InstanceInformationList": [{
                "InstanceId": ID, "PingStatus": status, "LastPingDateTime": 1_795_317_508, "AgentVersion": "3.3.1142.0"
            }] })
            .to_string(),
        )
    }

    #[tokio::test]
    async fn tells_what_is_there_from_what_is_not() {
        for (status, in_contact) in [("Online", true), ("ConnectionLost", false), ("Inactive", false)] {
            let Knowledge::Seen(sighting) = known(node(status)).await else { panic!("{status}") };
            assert_eq!(sighting.in_contact, in_contact);
        }
        assert_eq!(known(Response::json(200, r#"{"InstanceInformationList":[]}"#)).await, Knowledge::Absent);
        for error in ["AccessDeniedException", "InvalidInstanceId", "InternalServerError", "ThrottlingException"] {
            assert_eq!(known(Response::json_error(400, error, "no")).await, Knowledge::Unknown, "{error}");
        }
    }

    #[test]
    fn a_sighting_is_a_clause() {
        let sighting = |in_contact, at: Option<u64>, version: Option<&str>| Sighting {
            in_contact,
            last_contact: at.map(|at| SystemTime::UNIX_EPOCH + Duration::from_secs(at)),
            agent_version: version.map(PeerText::from),
        };
        assert_eq!(
            sighting(false, Some(1_795_317_508), Some("3.3.1142.0")).to_string(),
            "its agent, version 3.3.1142.0, has lost contact, the last was at 2026-11-22T03:18:28Z"
        );
        assert_eq!(sighting(false, None, None).to_string(), "its agent has lost contact");
        assert_eq!(
            sighting(true, Some(1), None).to_string(),
            "its agent is in contact with Systems Manager, but takes no sessions"
        );
    }

    #[tokio::test]
    async fn asks_about_a_target_once_a_minute_for_everybody() {
        let fake = Fake::start(|_| node("ConnectionLost")).await;
        let (aws, targets) = (aws(&fake).await, Targets::new());
        let target: Target = ID.parse().unwrap();
        let all = (0..50).map(|_| targets.look_up(&aws, &target));
        let known = in_time(futures_util::future::join_all(all)).await;
        assert!(known.iter().all(|known| matches!(known, Knowledge::Seen(_))));
        assert_eq!(fake.requests().len(), 1);
        let body: serde_json::Value = serde_json::from_str(&fake.requests()[0].body).unwrap();
        let filters = serde_json::json!([{ "Key": "InstanceIds", "Values": [ID] }]);
        assert_eq!(body, serde_json::json!({ "Filters": filters, "MaxResults": 50 }));

        // Another one is another matter, and an answer does not last for ever.
        in_time(targets.look_up(&aws, &"i-00000001".parse().unwrap())).await;
        assert_eq!(fake.requests().len(), 2);
        tokio::time::pause();
        tokio::time::advance(GOOD_FOR).await;
        tokio::time::resume();
        in_time(targets.look_up(&aws, &target)).await;
        assert_eq!(fake.requests().len(), 3);
    }

    #[tokio::test]
    async fn does_not_wait_for_long_and_asks_not_again_at_once() {
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let held = Arc::clone(&gate);
        let fake = Fake::start(move |_| node("Online").held_by(&held)).await;
        let (aws, targets) = (aws(&fake).await, Targets::new());
        let target: Target = ID.parse().unwrap();
        assert_eq!(in_time(targets.look_up(&aws, &target)).await, Knowledge::Unknown);
        assert_eq!(in_time(targets.look_up(&aws, &target)).await, Knowledge::Unknown);
        assert_eq!(fake.requests().len(), 1);
    }

    #[tokio::test]
    async fn containers_are_not_looked_up() {
        let fake = Fake::start(|_| Response::json(200, "{}")).await;
        let (aws, targets) = (aws(&fake).await, Targets::new());
        let target = "ecs:tools_0123_4567".parse().unwrap();
        assert_eq!(targets.look_up(&aws, &target).await, Knowledge::Unknown);
        assert!(fake.requests().is_empty());
    }
}
