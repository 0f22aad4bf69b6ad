//! EKS: ListClusters and DescribeCluster, and the access entries that a template has made.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    api::{ApiError, Call},
    http::{FullRequest, Response, json},
    sigv4::parse_query,
    vpc::VpcConfig,
    world::{Cluster, lock},
};

/// Most names in one answer, whatever is configured.
const MAX_RESULTS: usize = 100;

/// The operation that a request is for.
pub(super) fn operation(method: &str, path: &str) -> Option<&'static str> {
    let rest = path.strip_prefix("/clusters").filter(|_| method == "GET")?;
    match rest.strip_prefix('/') {
        None if rest.is_empty() => Some("ListClusters"),
        Some("") => Some("ListClusters"),
        Some(name) if !name.contains('/') => Some("DescribeCluster"),
        Some(path) => match path.split('/').collect::<Vec<_>>()[..] {
            [_, "access-entries", _] => Some("DescribeAccessEntry"),
            [_, "access-entries", _, "access-policies"] => Some("ListAssociatedAccessPolicies"),
            _ => None,
        },
        None => None,
    }
}

pub(super) fn answer(call: &Call<'_>, request: &FullRequest) -> Result<Response, ApiError> {
    match request.path().strip_prefix("/clusters/").filter(|name| !name.is_empty()) {
        Some(path) if path.contains('/') => entry(call, &path.split('/').collect::<Vec<_>>()),
        Some(name) => describe(call, name),
        None => list(call, request.query()),
    }
}

fn list(call: &Call<'_>, query: &str) -> Result<Response, ApiError> {
    call.authorize(&format!("arn:aws:eks:{}:{}:cluster/*", call.region, call.caller.account))?;
    let parameters = parse_query(query);
    let parameter = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let all = parameters.iter().any(|(name, value)| name == "include" && value == "all");
    let hidden = call.world.settings().hidden_clusters.clone();
    let names: Vec<&str> = call
        .world
        .clusters
        .iter()
        .filter(|cluster| cluster.region == call.region && (all || !cluster.config.connected))
        .filter(|cluster| !hidden.contains(&cluster.config.name))
        .map(|cluster| cluster.config.name.as_str())
        .collect();
    let invalid = |message: &str| ApiError::new(400, "InvalidParameterException", message);
    let start = match parameter("nextToken") {
        None => 0,
        Some(token) => {
            read_token(token).filter(|start| *start <= names.len()).ok_or_else(|| invalid("Invalid nextToken"))?
        }
    };
    let asked = match parameter("maxResults") {
        None => MAX_RESULTS,
        Some(text) => text
            .parse()
            .ok()
            .filter(|results| (1..=MAX_RESULTS).contains(results))
            .ok_or_else(|| invalid("maxResults needs to be between 1 and 100"))?,
    };
    let end = names.len().min(start + asked.min(call.world.config.list_page_len.max(1)));
    let next = (end < names.len()).then(|| STANDARD.encode(format!("clusters/{end}")));
    Ok(json(200, &json!({"clusters": names[start..end], "nextToken": next})))
}

fn read_token(token: &str) -> Option<usize> {
    String::from_utf8(STANDARD.decode(token).ok()?).ok()?.strip_prefix("clusters/")?.parse().ok()
}

fn describe(call: &Call<'_>, name: &str) -> Result<Response, ApiError> {
    call.authorize(&format!("arn:aws:eks:{}:{}:cluster/{name}", call.region, call.caller.account))?;
    let hidden = call.world.settings().hidden_clusters.contains(name);
    let found = call.world.clusters.iter().find(|c| c.region == call.region && c.config.name == name && !hidden);
    let cluster = found.ok_or_else(|| {
        ApiError::new(404, "ResourceNotFoundException", format!("No cluster found for name: {name}."))
    })?;
    Ok(json(200, &json!({ "cluster": description(cluster, &call.world.config.vpcs) })))
}

/// An access entry, or its policies.
fn entry(call: &Call<'_>, path: &[&str]) -> Result<Response, ApiError> {
    let [cluster, _, principal, what @ ..] = path else {
        return Err(ApiError::new(404, "NotFoundException", "no such path"));
    };
    let principal = parse_query(&format!("p={principal}")).into_iter().next().map(|(_, arn)| arn).unwrap_or_default();
    call.authorize(&format!("arn:aws:eks:{}:{}:access-entry/{cluster}", call.region, call.caller.account))?;
    let stack = lock(&call.world.stack);
    let found = stack
        .of_kind("AWS::EKS::AccessEntry")
        .find(|entry| entry.text("ClusterName") == *cluster && entry.text("PrincipalArn") == principal);
    let found = found.ok_or_else(|| {
        let message = format!("The specified principalArn could not be found. You can view your available access entries with 'list-access-entries'. ({principal})");
        ApiError::new(404, "ResourceNotFoundException", message)
    })?;
    if what.is_empty() {
        return Ok(json(
            200,
            &json!({ "accessEntry": { "clusterName": cluster, "principalArn": principal, "type": "STANDARD" } }),
        ));
    }
    let policies = found.properties["AccessPolicies"].as_array().into_iter().flatten().map(|policy| {
        let scope = &policy["AccessScope"];
        json!({
            "policyArn": policy["PolicyArn"],
            "accessScope": { "type": scope["Type"], "namespaces": scope.get("Namespaces").cloned().unwrap_or_else(|| json!([])) },
        })
    });
    let policies: Vec<Value> = policies.collect();
    Ok(json(200, &json!({ "clusterName": cluster, "principalArn": principal, "associatedAccessPolicies": policies })))
}

fn description(cluster: &Cluster, vpcs: &[VpcConfig]) -> Value {
    let config = &cluster.config;
    let vpc = vpcs.iter().find(|vpc| vpc.id == config.vpc);
    let subnets: Vec<&str> = vpc.into_iter().flat_map(|vpc| &vpc.subnets).map(|subnet| subnet.id.as_str()).collect();
    let mut value = json!({
        "name": config.name,
        "arn": cluster.arn(),
        "createdAt": 1_700_000_000.0,
        "version": config.version,
        "status": config.status,
        "roleArn": format!("arn:aws:iam::{}:role/eks-cluster", cluster.account),
        "platformVersion": "eks.7",
        "kubernetesNetworkConfig": {"serviceIpv4Cidr": "10.100.0.0/16", "ipFamily": "ipv4"},
        "logging": {"clusterLogging": []},
        "certificateAuthority": {},
        "tags": {"emulated": "true"},
        "health": {"issues": []},
        "resourcesVpcConfig": {
            "subnetIds": subnets,
            "securityGroupIds": [],
            "clusterSecurityGroupId": config.group(vpcs),
            "vpcId": Some(&config.vpc).filter(|vpc| !vpc.is_empty()),
            "endpointPublicAccess": config.public_access,
            "endpointPrivateAccess": config.private_access,
            "publicAccessCidrs": if config.public_access { json!(["0.0.0.0/0"]) } else { json!([]) },
        },
    });
    if config.ipv6 {
        value["kubernetesNetworkConfig"] = json!({"serviceIpv6Cidr": "fd12:3456:789a::/108", "ipFamily": "ipv6"});
    }
    if config.has_endpoint {
        value["endpoint"] = cluster.endpoint().into();
        value["certificateAuthority"] = json!({ "data": cluster.authority });
        let issuer = format!("https://oidc.eks.{}.amazonaws.com/id/{}", cluster.region, cluster.id);
        value["identity"] = json!({"oidc": {"issuer": issuer}});
    }
    if let Some(mode) = &config.authentication_mode {
        value["accessConfig"] = json!({ "authenticationMode": mode });
    }
    if config.connected {
        value["connectorConfig"] = json!({"activationId": "e1f2", "provider": "OTHER", "roleArn": value["roleArn"]});
    }
    if config.outpost {
        value["id"] = cluster.id.clone().into();
        value["outpostConfig"] = json!({
            "outpostArns": [format!("arn:aws:outposts:{}:{}:outpost/op-0a1b2c3d4e5f60718", cluster.region, cluster.account)],
            "controlPlaneInstanceType": "m5.large",
        });
    }
    value
}
