//! The managed nodes of Systems Manager: instances, and other machines, on which an agent has registered.
//!
//! Invariants:
//!
//! * A filter by tag stands alone: Systems Manager takes no other beside it.
//! * No list of nothing is asked for, which would be answered with all nodes.
//!
//! Leaves out containers, which are not in that list.

use std::time::{Duration, SystemTime};

use aws_sdk_ssm::types::{InstanceInformation, InstanceInformationStringFilter};
use tokio::time::timeout;

use super::{
    Aws,
    error::{AwsError, Call},
    values::is_plain,
};
use crate::util::peer_text::PeerText;

const DESCRIBE: &str = "ssm:DescribeInstanceInformation";

/// Nodes on a page, and ids in a filter: as many as Systems Manager allows.
const PAGE_LEN: i32 = 50;
const MAX_IDS: usize = 50;

/// Most pages that are asked for, and the longest that it may take.
const MAX_PAGES: usize = 400;
const LIST_LIMIT: Duration = Duration::from_secs(120);

/// Which nodes are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeFilter {
    /// Those with this tag.
    Tag { key: String, value: String },
    /// Those with one of these ids, as far as they are managed nodes.
    Ids(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedNode {
    /// Such as `i-0abc` or `mi-0abc`.
    pub id: String,
    /// `Online`, `ConnectionLost` or `Inactive`; late by minutes.
    pub ping_status: PeerText,
    /// When the agent last was in contact.
    pub last_ping: Option<SystemTime>,
    pub agent_version: Option<PeerText>,
    /// `Linux`, `Windows` or `MacOS`.
    pub platform: Option<PeerText>,
    /// Given when it was registered, else that of the machine.
    pub name: Option<PeerText>,
}

impl ManagedNode {
    /// Tells whether its agent is in contact, as far as Systems Manager knows.
    #[must_use]
    pub fn is_online(&self) -> bool {
        self.ping_status == "Online"
    }
}

impl Aws {
    /// Lists managed nodes.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn managed_nodes(&self, filter: &NodeFilter) -> Result<Vec<ManagedNode>, AwsError> {
        let filters: Vec<_> = match filter {
            NodeFilter::Tag { key, value } => vec![(format!("tag:{key}"), vec![value.clone()])],
            NodeFilter::Ids(ids) => ids.chunks(MAX_IDS).map(|ids| ("InstanceIds".to_owned(), ids.to_vec())).collect(),
        };
        let lists = async {
            let mut nodes = Vec::new();
            for (key, values) in filters {
                let filter = InstanceInformationStringFilter::builder().key(key).set_values(Some(values)).build();
                let filter = filter.map_err(|_| AwsError::malformed(DESCRIBE, "filter that it can have"))?;
                self.nodes_of(filter, &mut nodes).await?;
            }
            Ok(nodes)
        };
        timeout(LIST_LIMIT, lists).await.unwrap_or_else(|_| Err(endless()))
    }

    async fn nodes_of(
        &self,
        filter: InstanceInformationStringFilter,
        nodes: &mut Vec<ManagedNode>,
    ) -> Result<(), AwsError> {
        let ssm = self.ssm();
        let call = Call { action: DESCRIBE, resource: "*", region: self.region(), host: &ssm.host };
        let request = ssm.client.describe_instance_information().filters(filter).max_results(PAGE_LEN);
        let mut token = None;
        for _ in 0..MAX_PAGES {
            let answer = request.clone().set_next_token(token.take()).send().await;
            let answer = answer.map_err(|error| self.failed(call, error))?;
            for node in answer.instance_information_list.unwrap_or_default() {
                nodes.push(read(node).ok_or_else(|| AwsError::malformed(DESCRIBE, "id that a node can have"))?);
            }
            token = answer.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(());
            }
        }
        Err(endless())
    }
}

fn endless() -> AwsError {
    AwsError::malformed(DESCRIBE, "list that comes to an end")
}

fn read(node: InstanceInformation) -> Option<ManagedNode> {
    let text = |text: Option<String>| text.filter(|text| !text.is_empty()).map(PeerText::from);
    Some(ManagedNode {
        id: node.instance_id.filter(|id| is_plain(id))?,
        ping_status: node.ping_status.map(|status| status.as_str().into()).unwrap_or_default(),
        last_ping: node.last_ping_date_time.and_then(|time| time.try_into().ok()),
        agent_version: node.agent_version.filter(|version| is_plain(version)).map(PeerText::from),
        platform: node.platform_type.map(|kind| kind.as_str().into()),
        name: text(node.name).or_else(|| text(node.computer_name)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::aws::testing::{Answer, Fake, aws, in_time};

    fn bodies(fake: &Fake) -> Vec<Value> {
        fake.requests().iter().map(|request| serde_json::from_str(&request.body).unwrap()).collect()
    }

    #[tokio::test]
    async fn all_pages_of_a_tag_are_read() {
        let fake = Fake::start(|request| {
            let body: Value = serde_json::from_str(&request.body).unwrap();
            let (id, next) = if body["NextToken"] == "t" { ("mi-2", Value::Null) } else { ("i-1", json!("t")) };
            let node = json!({ "InstanceId": id, "PingStatus": "Online", "LastPingDateTime": 1_795_317_508,
                "AgentVersion": "3.3.1142.0", "PlatformType": "Linux", "ComputerName": "jump\u{1b}[2J" });
            Answer::json(200, &json!({ "InstanceInformationList": [node], "NextToken": next }).to_string())
        })
        .await;
        let filter = NodeFilter::Tag { key: "role".into(), value: "bastion".into() };
        let nodes = in_time(aws(&fake).await.managed_nodes(&filter)).await.unwrap();
        assert_eq!(nodes.iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), ["i-1", "mi-2"]);
        assert!(nodes[0].is_online());
        assert_eq!(nodes[0].last_ping, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_317_508)));
        assert_eq!(nodes[0].name.as_ref().unwrap(), "jump [2J");
        let filters = json!([{ "Key": "tag:role", "Values": ["bastion"] }]);
        let first = json!({ "Filters": filters, "MaxResults": 50 });
        let second = json!({ "Filters": filters, "MaxResults": 50, "NextToken": "t" });
        assert_eq!(bodies(&fake), [first, second]);
    }

    #[tokio::test]
    async fn ids_are_asked_for_in_parts_and_none_is_not_asked_for() {
        let fake = Fake::start(|_| Answer::json(200, r#"{"InstanceInformationList":[]}"#)).await;
        let aws = aws(&fake).await;
        assert_eq!(in_time(aws.managed_nodes(&NodeFilter::Ids(Vec::new()))).await.unwrap(), []);
        assert!(fake.requests().is_empty());
        let ids = (0..120).map(|n| format!("i-{n:08x}")).collect();
        assert_eq!(in_time(aws.managed_nodes(&NodeFilter::Ids(ids))).await.unwrap(), []);
        let lens: Vec<_> =
            bodies(&fake).iter().map(|body| body["Filters"][0]["Values"].as_array().unwrap().len()).collect();
        assert_eq!(lens, [50, 50, 20]);
        assert!(bodies(&fake).iter().all(|body| body["Filters"][0]["Key"] == "InstanceIds"));
    }

    #[tokio::test]
    async fn what_cannot_be_is_an_error() {
        for (answer, is_malformed) in [
            (Answer::json(200, r#"{"InstanceInformationList":[{"InstanceId":"i-1; id"}]}"#), true),
            (Answer::json(200, r#"{"InstanceInformationList":[],"NextToken":"t"}"#), true),
            (Answer::json_error(400, "AccessDeniedException", "no"), false),
        ] {
            let fake = Fake::start(move |_| answer.clone()).await;
            let filter = NodeFilter::Ids(vec!["i-1".into()]);
            let error = in_time(aws(&fake).await.managed_nodes(&filter)).await.unwrap_err();
            assert_eq!(matches!(error, AwsError::Malformed { .. }), is_malformed, "{error:?}");
            assert!(is_malformed || matches!(error, AwsError::AccessDenied { .. }), "{error:?}");
        }
    }
}
