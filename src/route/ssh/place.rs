//! Where a server is: from what the user has written to an instance, an address, and the way there.

use futures_util::future::join_all;

use super::fault::SshFault;
use crate::{
    aws::{
        Aws,
        ec2::{Filter, Instance, InstanceConnectEndpoint},
    },
    bastion::{KeySource, Search, SshBastion, SshHost, SshInstance, Via},
    cluster::Destination,
};

/// The tag that EC2 puts on the instances of an Auto Scaling group.
pub(super) const GROUP_TAG: &str = "aws:autoscaling:groupName";

/// States in which an endpoint takes tunnels, as awscli has them.
const USABLE: [&str; 4] = ["create-complete", "update-in-progress", "update-complete", "update-failed"];

/// A server that is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The instance, if it is known.
    pub(super) instance: Option<String>,
    /// What is connected to: a name or an address.
    pub(super) host: String,
    pub(super) port: u16,
    /// The endpoint that leads there.
    pub(super) endpoint: Option<InstanceConnectEndpoint>,
}

impl Place {
    /// Returns the name by which the server is known: of an instance its id, as addresses change hands.
    pub(super) fn known_as(&self) -> String {
        self.instance.clone().unwrap_or_else(|| super::host_keys::name_of(&self.host, self.port))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { instance, host, port, endpoint } = self;
        if let Some(instance) = instance {
            write!(f, "{instance}, ")?;
        }
        write!(f, "{}", Destination { host: host.clone(), port: *port })?;
        endpoint.as_ref().map_or(Ok(()), |endpoint| write!(f, " through {}", endpoint.id))
    }
}

/// Finds the server. Where several instances will do, `attempt` tells which of them.
pub(super) async fn find(aws: &Aws, bastion: &SshBastion, attempt: usize) -> Result<Place, SshFault> {
    let (name, wanted) = match &bastion.host {
        SshHost::Instance(wanted) => (None, Some(wanted)),
        SshHost::Name(name) => (Some(name), bastion.instance.as_ref()),
    };
    let needs_instance = bastion.key == KeySource::Pushed || name.is_none() || bastion.via == Via::Endpoint;
    let instance = match (wanted, name) {
        (Some(wanted), _) => Some(instance(aws, wanted, attempt).await?),
        (None, Some(name)) if needs_instance => Some(of_name(aws, name).await?),
        (None, _) => None,
    };
    let Some(instance) = instance else {
        let host = name.cloned().unwrap_or_default();
        return Ok(Place { instance: None, host, port: bastion.port, endpoint: None });
    };
    let id = Some(instance.id.clone());
    // A name that was given is the address, unless the way there is another.
    if let Some(name) = name
        && bastion.via != Via::Endpoint
    {
        return Ok(Place { instance: id, host: name.clone(), port: bastion.port, endpoint: None });
    }
    let (host, endpoint) = address(aws, &instance, bastion.via).await?;
    Ok(Place { instance: id, host, port: bastion.port, endpoint })
}

/// Returns an instance that runs.
async fn instance(aws: &Aws, wanted: &SshInstance, attempt: usize) -> Result<Instance, SshFault> {
    let filter = match wanted {
        SshInstance::Id(id) => Filter::new("instance-id", [id]),
        SshInstance::Found(Search::Tag { key, value }) => Filter::new(format!("tag:{key}"), [value]),
        SshInstance::Found(Search::Name(name)) => Filter::new("tag:Name", [name]),
        SshInstance::Found(Search::Group(group)) => Filter::new(format!("tag:{GROUP_TAG}"), [group]),
        // The grammar has none of these.
        SshInstance::Found(Search::Ecs(_) | Search::Auto { .. }) => Filter::new("instance-id", Vec::<String>::new()),
    };
    let mut found = aws.describe_instances(&[filter]).await.map_err(SshFault::Aws)?;
    // The same order each time, so that the next attempt takes the next one.
    found.sort_by(|one, other| one.id.cmp(&other.id));
    let running: Vec<&Instance> = found.iter().filter(|instance| instance.state == "running").collect();
    let what = || (wanted.to_string(), aws.region().to_owned());
    match running.get(attempt % running.len().max(1)) {
        Some(instance) => Ok((*instance).clone()),
        None => Err(match found.first() {
            Some(instance) => SshFault::NotRunning { id: instance.id.clone(), state: instance.state.clone() },
            None => {
                let (what, region) = what();
                SshFault::NoInstance { what, region, is_group: is_group(wanted) }
            }
        }),
    }
}

fn is_group(wanted: &SshInstance) -> bool {
    matches!(wanted, SshInstance::Found(Search::Group(_)))
}

/// Finds the instance behind a name or an address.
async fn of_name(aws: &Aws, name: &str) -> Result<Instance, SshFault> {
    let addresses: Vec<String> = match name.parse::<std::net::IpAddr>() {
        Ok(address) => vec![address.to_string()],
        // A name that cannot be resolved here may still be one of EC2's own.
        Err(_) => tokio::net::lookup_host((name, 22))
            .await
            .map(|found| found.map(|address| address.ip().to_string()).collect())
            .unwrap_or_default(),
    };
    let mut filters = vec![Filter::new("dns-name", [name]), Filter::new("private-dns-name", [name])];
    if !addresses.is_empty() {
        filters.push(Filter::new("ip-address", addresses.clone()));
        filters.push(Filter::new("private-ip-address", addresses));
    }
    let found = join_all(filters.iter().map(|filter| aws.describe_instances(std::slice::from_ref(filter)))).await;
    for instances in found {
        let running = instances.map_err(SshFault::Aws)?.into_iter().find(|instance| instance.state == "running");
        if let Some(instance) = running {
            return Ok(instance);
        }
    }
    Err(SshFault::UnknownHost { host: name.to_owned(), region: aws.region().to_owned() })
}

/// Decides on an address, and on the way there.
async fn address(
    aws: &Aws,
    instance: &Instance,
    via: Via,
) -> Result<(String, Option<InstanceConnectEndpoint>), SshFault> {
    let Instance { public_ip, private_ip, ipv6, .. } = instance;
    let own = public_ip.as_ref().or(ipv6.as_ref()).or(private_ip.as_ref()).cloned();
    let own = || own.ok_or_else(|| SshFault::NoAddress { id: instance.id.clone() });
    match via {
        Via::Direct => Ok((own()?, None)),
        Via::Auto if public_ip.is_some() => Ok((own()?, None)),
        Via::Auto => match endpoint(aws, instance).await {
            Ok(Some(found)) => Ok(found),
            // Whoever may not look for endpoints has none.
            Ok(None) | Err(SshFault::Aws(_)) => Ok((own()?, None)),
            Err(fault) => Err(fault),
        },
        Via::Endpoint => {
            let vpc = instance.vpc_id.clone().unwrap_or_default();
            let found = endpoint(aws, instance).await?;
            found.map_or_else(|| Err(SshFault::NoEndpoint { id: instance.id.clone(), vpc }), Ok)
        }
    }
}

/// The only port for SSH to which an endpoint leads, whatever a policy says.
pub(super) const ENDPOINT_PORT: u16 = 22;

/// Looks for another way to an instance whose own address does not answer: through an endpoint, unless the user has said which
/// way it is to be.
pub(super) async fn detour(aws: &Aws, bastion: &SshBastion, place: &Place) -> Option<Place> {
    let is_open = bastion.via == Via::Auto && place.endpoint.is_none() && place.port == ENDPOINT_PORT;
    let SshHost::Instance(_) = &bastion.host else { return None };
    let id = place.instance.clone().filter(|_| is_open)?;
    let instance = instance(aws, &SshInstance::Id(id), 0).await.ok()?;
    let (host, endpoint) = endpoint(aws, &instance).await.ok()??;
    Some(Place { instance: Some(instance.id), host, port: place.port, endpoint })
}

/// Looks for an endpoint in the network of an instance, in its own subnet first.
async fn endpoint(
    aws: &Aws,
    instance: &Instance,
) -> Result<Option<(String, Option<InstanceConnectEndpoint>)>, SshFault> {
    let (Some(vpc), Some(address)) = (&instance.vpc_id, &instance.private_ip) else { return Ok(None) };
    let mut found = aws.describe_instance_connect_endpoints(vpc).await.map_err(SshFault::Aws)?;
    found.retain(|endpoint| USABLE.iter().any(|state| endpoint.state == *state));
    found.sort_by_key(|endpoint| endpoint.subnet_id != instance.subnet_id);
    Ok(found.into_iter().next().map(|endpoint| (address.clone(), Some(endpoint))))
}
