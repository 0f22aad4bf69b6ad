//! Discovery: which EKS clusters there are, and which of them a tunnel can lead to.
//!
//! A cluster that cannot be used is reported with its reason and is not an error, unless it was asked for
//! by name and does not exist or may not be described.

use std::{collections::BTreeSet, time::Duration};

use aws_sdk_eks::types::ClusterStatus;
use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::{
    Aws,
    endpoint::port,
    error::{AwsError, Call, Refusal},
    values::{is_base64, is_host, is_plain},
};
use crate::{
    cluster::{Cluster, Destination, Origin, Vpc},
    util::{arn::Arn, peer_text::PeerText},
};

/// Clusters that are described at a time; the rate that EKS allows is not published.
const CONCURRENT_DESCRIPTIONS: usize = 6;

const LIST_CLUSTERS: &str = "eks:ListClusters";

/// Most pages of names that are asked for, most names, and the longest that it may take. An account has 100 clusters in a
/// region unless it asks for more.
const MAX_PAGES: usize = 1000;
const MAX_CLUSTERS: usize = 20_000;
const LIST_LIMIT: Duration = Duration::from_secs(120);

/// Longest name of a cluster, in characters.
const MAX_NAME_LEN: usize = 100;

#[derive(Debug, Clone, Default)]
pub struct Discovery {
    /// In the order in which EKS lists them, or in which they were asked for.
    pub clusters: Vec<ClusterDescription>,
}

/// What EKS says of a cluster.
#[derive(Debug, Clone)]
pub struct ClusterDescription {
    pub name: String,
    pub region: String,
    /// The ARN; empty if the cluster may not be described.
    pub arn: String,
    /// The status in EKS's words, such as `ACTIVE`; empty if the cluster may not be described.
    pub status: PeerText,
    /// The Kubernetes version, such as `1.33`.
    pub version: Option<PeerText>,
    /// Whether the API server has a public endpoint.
    pub endpoint_public: bool,
    /// Whether the API server has an endpoint in the VPC.
    pub endpoint_private: bool,
    /// How IAM identities are admitted: `API`, `API_AND_CONFIG_MAP` or `CONFIG_MAP`.
    pub authentication_mode: Option<PeerText>,
    pub vpc_id: Option<String>,
    /// The security group that must admit the bastion on port 443.
    pub security_group: Option<String>,
    /// What a tunnel needs, or why there can be none.
    pub access: Result<Cluster, SkipReason>,
}

/// Why there can be no tunnel to a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// It runs elsewhere and is only registered with EKS.
    #[error("it is a connected cluster, for which EKS has no endpoint")]
    Connected,
    /// It is being made, being deleted, or has failed.
    #[error("its status is {0}")]
    Status(PeerText),
    /// It has no endpoint yet.
    #[error("it has no endpoint")]
    NoEndpoint,
    /// Its endpoint is not what endpoints are. It is not shown, as it may be anything.
    #[error("its endpoint is not an https URL with a host name")]
    Endpoint,
    /// It has no certificate authority yet.
    #[error("it has no certificate authority")]
    NoCertificateAuthority,
    /// The identity may list it but not describe it.
    #[error("not authorized to perform `{action}` on `{resource}`")]
    AccessDenied { action: String, resource: String },
}

impl Aws {
    /// Finds the clusters of the account and region.
    ///
    /// With names in `wanted`, only these are looked at, and listing need not be allowed.
    ///
    /// # Errors
    /// [`AwsError::ClusterNotFound`] for a name in `wanted`; [`AwsError::AccessDenied`] when clusters may not be
    /// listed, when one in `wanted` may not be described, or when none may be; else see [`AwsError`].
    pub async fn discover(&self, wanted: &[String]) -> Result<Discovery, AwsError> {
        self.discover_each(wanted, |_| {}).await
    }

    /// As [`discover`](Self::discover), and hands out each cluster as soon as it and those before it are known.
    ///
    /// # Errors
    /// As of [`discover`](Self::discover), perhaps after some have been handed out.
    pub async fn discover_each(
        &self,
        wanted: &[String],
        mut found: impl FnMut(&ClusterDescription),
    ) -> Result<Discovery, AwsError> {
        self.credentials().await?;
        let names = if wanted.is_empty() { self.list_clusters().await? } else { distinct(wanted) };
        let mut descriptions = stream::iter(names)
            .map(|name| async move { (self.describe_cluster(&name).await, name) })
            .buffered(CONCURRENT_DESCRIPTIONS);
        let mut clusters = Vec::new();
        let mut denied = None;
        while let Some((description, name)) = descriptions.next().await {
            let description = match description {
                Ok(Some(description)) => description,
                // It was deleted since it was listed.
                Ok(None) if wanted.is_empty() => {
                    tracing::debug!(cluster = name, "cluster is gone");
                    continue;
                }
                Ok(None) => {
                    let known = self.list_clusters().await.unwrap_or_default();
                    return Err(AwsError::ClusterNotFound { name, region: self.region().to_owned(), known });
                }
                Err(AwsError::AccessDenied { action, resource, source }) if wanted.is_empty() => {
                    let reason = SkipReason::AccessDenied { action: action.clone(), resource: resource.clone() };
                    denied = Some(AwsError::AccessDenied { action, resource, source });
                    self.undescribed(name, reason)
                }
                Err(error) => return Err(error),
            };
            found(&description);
            clusters.push(description);
        }
        let all_denied = clusters.iter().all(|cluster| matches!(cluster.access, Err(SkipReason::AccessDenied { .. })));
        match denied {
            Some(error) if all_denied => Err(error),
            _ => Ok(Discovery { clusters }),
        }
    }

    /// Returns the names of all clusters, all pages of them.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn list_clusters(&self) -> Result<Vec<String>, AwsError> {
        match timeout(LIST_LIMIT, self.all_pages()).await {
            Ok(names) => names,
            Err(_) => Err(AwsError::malformed(LIST_CLUSTERS, "last page")),
        }
    }

    async fn all_pages(&self) -> Result<Vec<String>, AwsError> {
        let eks = self.eks();
        let call = Call { action: LIST_CLUSTERS, resource: "*", region: self.region(), host: &eks.host };
        let mut names = Vec::new();
        let mut pages = eks.client.list_clusters().into_paginator().send();
        let mut count = 0;
        while let Some(page) = pages.next().await {
            count += 1;
            let page = page.map_err(|error| self.failed(call, error))?.clusters.unwrap_or_default();
            if count > MAX_PAGES || names.len() + page.len() > MAX_CLUSTERS {
                return Err(AwsError::malformed(LIST_CLUSTERS, "last page"));
            }
            if !page.iter().all(|name| is_cluster_name(name)) {
                return Err(AwsError::malformed(LIST_CLUSTERS, "valid cluster name"));
            }
            names.extend(page);
        }
        // One that comes and goes while pages are read may be on two of them.
        Ok(distinct(&names))
    }

    /// Describes a cluster; `None` if there is none of this name.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn describe_cluster(&self, name: &str) -> Result<Option<ClusterDescription>, AwsError> {
        if !is_cluster_name(name) {
            return Ok(None);
        }
        let eks = self.eks();
        let call = Call { action: "eks:DescribeCluster", resource: name, region: self.region(), host: &eks.host };
        let answer = eks.client.describe_cluster().name(name).send().await;
        match answer.map_err(|error| self.failed(call, error)) {
            Ok(answer) => {
                let cluster = answer.cluster.map(|cluster| believable(cluster).ok_or_else(cluster_is_odd));
                Ok(cluster.transpose()?.map(|cluster| self.description(name, cluster)))
            }
            Err(AwsError::Refused { refusal: Refusal::Absent, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn description(&self, name: &str, cluster: aws_sdk_eks::types::Cluster) -> ClusterDescription {
        let access = access(name, self.region(), &cluster);
        let vpc = cluster.resources_vpc_config;
        ClusterDescription {
            name: name.to_owned(),
            region: self.region().to_owned(),
            arn: cluster.arn.unwrap_or_default(),
            status: cluster.status.map(|status| status.as_str().into()).unwrap_or_default(),
            version: cluster.version.map(PeerText::from),
            endpoint_public: vpc.as_ref().is_some_and(|vpc| vpc.endpoint_public_access),
            endpoint_private: vpc.as_ref().is_some_and(|vpc| vpc.endpoint_private_access),
            authentication_mode: cluster
                .access_config
                .and_then(|config| config.authentication_mode)
                .map(|mode| mode.as_str().into()),
            vpc_id: vpc.as_ref().and_then(|vpc| vpc.vpc_id.clone()),
            security_group: vpc.and_then(|vpc| vpc.cluster_security_group_id),
            access,
        }
    }

    fn undescribed(&self, name: String, reason: SkipReason) -> ClusterDescription {
        ClusterDescription {
            name,
            region: self.region().to_owned(),
            arn: String::new(),
            status: PeerText::default(),
            version: None,
            endpoint_public: false,
            endpoint_private: false,
            authentication_mode: None,
            vpc_id: None,
            security_group: None,
            access: Err(reason),
        }
    }
}

/// Finds out what a tunnel needs, or why there can be none.
fn access(name: &str, region: &str, cluster: &aws_sdk_eks::types::Cluster) -> Result<Cluster, SkipReason> {
    if cluster.connector_config.is_some() {
        return Err(SkipReason::Connected);
    }
    match &cluster.status {
        Some(ClusterStatus::Active | ClusterStatus::Updating) => {}
        Some(status) => return Err(SkipReason::Status(status.as_str().into())),
        None => return Err(SkipReason::Status("unknown".into())),
    }
    let endpoint = cluster.endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()).ok_or(SkipReason::NoEndpoint)?;
    let endpoint = destination(endpoint).ok_or(SkipReason::Endpoint)?;
    let authority = cluster.certificate_authority.as_ref().and_then(|authority| authority.data.clone());
    let authority = authority.filter(|data| !data.is_empty()).ok_or(SkipReason::NoCertificateAuthority)?;
    let arn = cluster.arn.clone().unwrap_or_default();
    // A local cluster on an Outpost knows its callers by its id.
    let token_name = cluster.id.clone().filter(|id| cluster.outpost_config.is_some() && !id.is_empty());
    Ok(Cluster {
        name: name.to_owned(),
        region: region.to_owned(),
        account: Arn::parse(&arn).map_or("", |arn| arn.account).to_owned(),
        id: arn,
        endpoint,
        certificate_authority: Some(authority),
        origin: Origin::Eks { token_name: token_name.unwrap_or_else(|| name.to_owned()) },
        vpc: vpc(cluster),
    })
}

fn vpc(cluster: &aws_sdk_eks::types::Cluster) -> Option<Vpc> {
    let vpc = cluster.resources_vpc_config.as_ref()?;
    let groups = vpc.cluster_security_group_id.iter();
    let security_groups = match groups.len() {
        0 => vpc.security_group_ids().to_vec(),
        _ => groups.cloned().collect(),
    };
    Some(Vpc { id: vpc.vpc_id.clone()?, subnets: vpc.subnet_ids().to_vec(), security_groups })
}

/// Reads an endpoint; names are never made up, as their forms differ.
fn destination(endpoint: &str) -> Option<Destination> {
    let uri: http::Uri = endpoint.parse().ok()?;
    let authority = uri.authority()?;
    if uri.scheme_str() != Some("https") || authority.as_str().contains('@') {
        return None;
    }
    let host = authority.host().trim_matches(['[', ']']);
    let port = port(authority, 443)?;
    is_host(host).then(|| Destination { host: host.to_owned(), port })
}

/// Takes a cluster whose values are of the characters that such values have: they go into commands that are printed, into
/// files and onto terminals.
fn believable(cluster: aws_sdk_eks::types::Cluster) -> Option<aws_sdk_eks::types::Cluster> {
    let vpc = cluster.resources_vpc_config.as_ref();
    let mode = cluster.access_config.as_ref().and_then(|config| config.authentication_mode.as_ref());
    let values = [
        cluster.arn.as_deref(),
        cluster.id.as_deref(),
        cluster.version.as_deref(),
        cluster.status.as_ref().map(ClusterStatus::as_str),
        mode.map(|mode| mode.as_str()),
        vpc.and_then(|vpc| vpc.vpc_id.as_deref()),
        vpc.and_then(|vpc| vpc.cluster_security_group_id.as_deref()),
    ];
    let lists = vpc.map(|vpc| [vpc.subnet_ids(), vpc.security_group_ids()]);
    let values = values.into_iter().chain(lists.into_iter().flatten().flatten().map(|id| Some(id.as_str())));
    let authority = cluster.certificate_authority.as_ref().and_then(|authority| authority.data.as_deref());
    let are_plain = values.into_iter().flatten().all(|value| value.is_empty() || is_plain(value));
    (are_plain && authority.is_none_or(is_base64)).then_some(cluster)
}

fn cluster_is_odd() -> AwsError {
    AwsError::malformed("eks:DescribeCluster", "valid description of a cluster")
}

fn is_cluster_name(name: &str) -> bool {
    name.len() <= MAX_NAME_LEN
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Returns the names in their order, each once.
fn distinct(names: &[String]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names.iter().filter(|name| seen.insert(name.as_str())).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::testing::{Answer, Fake, Request, aws, in_time};

    fn described(name: &str, more: &str) -> String {
        format!(
            r#"{{"cluster":{{"name":"{name}","arn":"arn:aws:eks:us-east-1:123456789012:cluster/{name}","status":"ACTIVE","version":"1.33",
            "endpoint":"https://ABC.gr7.us-east-1.eks.amazonaws.com","certificateAuthority":{{"data":"Q0E="}},
            "resourcesVpcConfig":{{"vpcId":"vpc-1","clusterSecurityGroupId":"sg-1","endpointPublicAccess":false,"endpointPrivateAccess":true}},
            "accessConfig":{{"authenticationMode":"API"}}{more}}}}}"#
        )
    }

    fn error(status: u16, code: &str, message: &str) -> Answer {
        Answer::json(status, &format!(r#"{{"message":"{message}"}}"#)).with("x-amzn-errortype", code)
    }

    /// Answers as EKS with `count` clusters in pages of 100.
    fn pages(request: &Request, count: usize) -> Answer {
        let start: usize = request.target.split("nextToken=").nth(1).map_or(0, |token| token.parse().unwrap());
        let end = count.min(start + 100);
        let names: Vec<_> = (start..end).map(|index| format!("\"c{index}\"")).collect();
        let next = if end < count { format!("\"{end}\"") } else { "null".to_owned() };
        Answer::json(200, &format!(r#"{{"clusters":[{}],"nextToken":{next}}}"#, names.join(",")))
    }

    #[tokio::test]
    async fn finds_all_pages_in_order() {
        let fake = Fake::start(|request: &Request| match request.target.strip_prefix("/clusters/") {
            Some(name) => Answer::json(200, &described(name, "")),
            None => pages(request, 230),
        })
        .await;
        let found = in_time(aws(&fake).await.discover(&[])).await.unwrap();
        let names: Vec<_> = found.clusters.iter().map(|cluster| cluster.name.clone()).collect();
        assert_eq!(names, (0..230).map(|index| format!("c{index}")).collect::<Vec<_>>());
        let first = &found.clusters[0];
        assert_eq!(
            *first.access.as_ref().unwrap(),
            Cluster {
                name: "c0".into(),
                region: "us-east-1".into(),
                account: "123456789012".into(),
                id: "arn:aws:eks:us-east-1:123456789012:cluster/c0".into(),
                endpoint: Destination { host: "ABC.gr7.us-east-1.eks.amazonaws.com".into(), port: 443 },
                certificate_authority: Some("Q0E=".into()),
                origin: Origin::Eks { token_name: "c0".into() },
                vpc: Some(Vpc { id: "vpc-1".into(), subnets: Vec::new(), security_groups: vec!["sg-1".into()] }),
            }
        );
        assert_eq!((first.endpoint_public, first.endpoint_private), (false, true));
        assert_eq!(first.vpc_id.as_deref(), Some("vpc-1"));
        assert_eq!(first.security_group.as_deref(), Some("sg-1"));
        assert_eq!(first.authentication_mode.as_deref(), Some("API"));
        assert_eq!((&*first.status, first.version.as_deref()), ("ACTIVE", Some("1.33")));
    }

    #[tokio::test]
    async fn a_cluster_that_is_listed_twice_is_there_once() {
        let fake = Fake::start(|request: &Request| match request.target.strip_prefix("/clusters/") {
            Some(name) => Answer::json(200, &described(name, "")),
            None if request.target.contains("nextToken") => Answer::json(200, r#"{"clusters":["b","c","a"]}"#),
            None => Answer::json(200, r#"{"clusters":["a","b","a"],"nextToken":"t"}"#),
        })
        .await;
        let found = in_time(aws(&fake).await.discover(&[])).await.unwrap();
        let names: Vec<_> = found.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn endpoints_of_every_ip_family_and_partition_are_read() {
        for host in [
            "ABC.gr7.us-east-1.eks.amazonaws.com",
            "ABC.sk1.us-gov-west-1.eks.amazonaws.com",
            "ABC.gr7.cn-north-1.eks.amazonaws.com.cn",
            "ABC.gr7.us-iso-east-1.eks.c2s.ic.gov",
            "ABC.us-east-1.api.aws",
            "ABC.gr7.us-gov-west-1.api.aws",
            "ABC.cn-northwest-1.api.amazonwebservices.com.cn",
        ] {
            let read = Some(Destination { host: host.to_owned(), port: 443 });
            assert_eq!(destination(&format!("https://{host}")), read);
        }
    }

    #[tokio::test]
    async fn says_why_a_cluster_is_skipped() {
        let cases = [
            ("ok", r#","status":"UPDATING""#, None),
            ("new", r#","status":"CREATING""#, Some("its status is CREATING")),
            ("odd", r#","status":"RESTING""#, Some("its status is RESTING")),
            (
                "far",
                r#","connectorConfig":{"provider":"OTHER"}"#,
                Some("it is a connected cluster, for which EKS has no endpoint"),
            ),
            ("bare", r#","endpoint":null"#, Some("it has no endpoint")),
            ("void", r#","endpoint":"""#, Some("it has no endpoint")),
            ("plain", r#","endpoint":"http://h""#, Some("its endpoint is not an https URL with a host name")),
            ("anon", r#","certificateAuthority":{}"#, Some("it has no certificate authority")),
        ];
        let fake = Fake::start(move |request: &Request| match request.target.strip_prefix("/clusters/") {
            // The later of two equal keys counts.
            Some("mine") => error(
                403,
                "AccessDeniedException",
                "User: u is not authorized to perform: eks:DescribeCluster on resource: arn:c",
            ),
            Some("gone") => error(404, "ResourceNotFoundException", "No cluster found for name: gone."),
            Some(name) => Answer::json(200, &described(name, cases.iter().find(|case| case.0 == name).unwrap().1)),
            None => {
                let names: Vec<_> = cases.iter().map(|case| case.0).chain(["mine", "gone"]).collect();
                Answer::json(200, &serde_json::json!({ "clusters": names }).to_string())
            }
        })
        .await;
        let found = in_time(aws(&fake).await.discover(&[])).await.unwrap();
        let reasons: Vec<_> = found
            .clusters
            .iter()
            .map(|cluster| (cluster.name.as_str(), cluster.access.as_ref().err().map(ToString::to_string)))
            .collect();
        let mut expected: Vec<_> = cases.iter().map(|case| (case.0, case.2.map(str::to_owned))).collect();
        expected.push(("mine", Some("not authorized to perform `eks:DescribeCluster` on `arn:c`".to_owned())));
        assert_eq!(reasons, expected);
    }

    #[tokio::test]
    async fn describes_only_what_is_asked_for() {
        let fake = Fake::start(|request: &Request| match request.target.strip_prefix("/clusters/") {
            Some(name) => Answer::json(200, &described(name, "")),
            None => error(403, "AccessDeniedException", "no"),
        })
        .await;
        let wanted = ["b".to_owned(), "a".to_owned(), "b".to_owned()];
        let found = in_time(aws(&fake).await.discover(&wanted)).await.unwrap();
        assert_eq!(found.clusters.iter().map(|cluster| cluster.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(fake.requests().len(), 2);
    }

    #[tokio::test]
    async fn names_the_clusters_that_there_are() {
        let fake = Fake::start(|request: &Request| match request.target.strip_prefix("/clusters/") {
            Some(_) => error(404, "ResourceNotFoundException", "No cluster found for name: x."),
            None => Answer::json(200, r#"{"clusters":["prod","test"]}"#),
        })
        .await;
        for name in ["x", "not/a/name", ""] {
            let error = in_time(aws(&fake).await.discover(&[name.to_owned()])).await.unwrap_err();
            assert_eq!(error.to_string(), format!("there is no cluster `{name}` in us-east-1"));
            assert!(matches!(error, AwsError::ClusterNotFound { known, .. } if known == ["prod", "test"]));
        }
    }

    #[tokio::test]
    async fn denials_are_errors_when_nothing_is_left() {
        let denied = "User: u is not authorized to perform: eks:DescribeCluster on resource: arn:c";
        let fake = Fake::start(move |request: &Request| match request.target.strip_prefix("/clusters/") {
            Some(_) => error(403, "AccessDeniedException", denied),
            None => Answer::json(200, r#"{"clusters":["a","b"]}"#),
        })
        .await;
        for wanted in [vec![], vec!["a".to_owned()]] {
            let error = in_time(aws(&fake).await.discover(&wanted)).await.unwrap_err();
            assert!(
                matches!(error, AwsError::AccessDenied { action, resource, .. } if action == "eks:DescribeCluster" && resource == "arn:c")
            );
        }
        let fake = Fake::start(|_| {
            error(403, "AccessDeniedException", "not authorized to perform: eks:ListClusters on resource: *")
        })
        .await;
        let error = in_time(aws(&fake).await.discover(&[])).await.unwrap_err();
        assert_eq!(error.to_string(), "not authorized to perform `eks:ListClusters` on `*`");
    }

    #[test]
    fn reads_endpoints() {
        let read = |text| destination(text).map(|destination| destination.to_string());
        assert_eq!(read("https://a.b").as_deref(), Some("a.b:443"));
        assert_eq!(read("https://a.b/").as_deref(), Some("a.b:443"));
        assert_eq!(read("https://localhost:6443/").as_deref(), Some("localhost:6443"));
        assert_eq!(read("https://[2001:db8::1]:6443").as_deref(), Some("[2001:db8::1]:6443"));
        for text in
            ["", "a.b", "http://a.b", "https://", "https://u@a.b", "https://a.b:0", "https://a.b:99999", "https://a b"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn local_clusters_are_named_by_their_id() {
        let cluster = |outpost: bool| {
            let outpost = outpost.then(|| {
                aws_sdk_eks::types::OutpostConfigResponse::builder()
                    .outpost_arns("arn:o")
                    .control_plane_instance_type("m5.large")
                    .build()
                    .unwrap()
            });
            let cluster = aws_sdk_eks::types::Cluster::builder()
                .status(ClusterStatus::Active)
                .endpoint("https://e")
                .certificate_authority(aws_sdk_eks::types::Certificate::builder().data("Q0E=").build())
                .id("0b1c")
                .set_outpost_config(outpost)
                .build();
            access("local", "us-east-1", &cluster).unwrap().token_name().map(ToOwned::to_owned)
        };
        assert_eq!(cluster(true).as_deref(), Some("0b1c"));
        assert_eq!(cluster(false).as_deref(), Some("local"));
    }
}
