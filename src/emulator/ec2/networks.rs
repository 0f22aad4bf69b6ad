//! What there is in the networks: subnets, endpoints and security groups.

use super::{
    super::{
        api::{ApiError, Call},
        vpc::VpcConfig,
    },
    Filter, Form, element, items,
};

/// Whether all filters match, by what `value` says of their names.
fn all_match(filters: &[Filter], value: impl Fn(&str) -> Option<String>) -> bool {
    filters.iter().all(|filter| value(&filter.name).is_some_and(|value| filter.matches(&[&value])))
}

pub(super) fn connect_endpoints(call: &Call<'_>, form: &Form) -> Result<String, ApiError> {
    call.authorize("*")?;
    let filters = form.filters(&["vpc-id", "state", "subnet-id", "instance-connect-endpoint-id"])?;
    let ids = form.list("InstanceConnectEndpointId");
    let all = &call.world.config.connect_endpoints;
    if let Some(id) = ids.iter().find(|id| !all.iter().any(|endpoint| endpoint.id == **id)) {
        let message = format!("The instance connect endpoint ID '{id}' does not exist");
        return Err(ApiError::new(400, "InvalidInstanceConnectEndpointId.NotFound", message));
    }
    let found = all.iter().filter(|endpoint| {
        (ids.is_empty() || ids.contains(&endpoint.id))
            && all_match(&filters, |name| match name {
                "vpc-id" => Some(endpoint.vpc.clone()),
                "state" => Some(endpoint.state.clone()),
                "subnet-id" => Some(endpoint.subnet.clone()),
                _ => Some(endpoint.id.clone()),
            })
    });
    let found: Vec<_> = found.collect();
    let (page, next) = form.page(&found, 1)?;
    let list = page.iter().map(|endpoint| {
        let (region, account) = (&call.region, &call.caller.account);
        let arn = format!("arn:aws:ec2:{region}:{account}:instance-connect-endpoint/{}", endpoint.id);
        element("ownerId", account)
            + &element("instanceConnectEndpointId", &endpoint.id)
            + &element("instanceConnectEndpointArn", &arn)
            + &element("state", &endpoint.state)
            + &element("dnsName", endpoint.dns_name.as_deref().unwrap_or(&call.world.tunnels))
            + &element("subnetId", &endpoint.subnet)
            + &element("vpcId", &endpoint.vpc)
            + &element("availabilityZone", &format!("{region}a"))
            + &element("preserveClientIp", "false")
            + &element("ipAddressType", "ipv4")
            + "<networkInterfaceIdSet/><securityGroupIdSet/><tagSet/>"
    });
    Ok(items("instanceConnectEndpointSet", list) + &next)
}

pub(super) fn subnets(call: &Call<'_>, form: &Form) -> Result<String, ApiError> {
    call.authorize("*")?;
    let filters = form.filters(&["vpc-id", "subnet-id", "availability-zone"])?;
    let ids = form.list("SubnetId");
    let all = || {
        call.world
            .config
            .vpcs
            .iter()
            .flat_map(|vpc| vpc.subnets.iter().enumerate().map(move |(number, subnet)| (vpc, number, subnet)))
    };
    if let Some(id) = ids.iter().find(|id| !all().any(|(_, _, subnet)| subnet.id == **id)) {
        let message = format!("The subnet ID '{id}' does not exist");
        return Err(ApiError::new(400, "InvalidSubnetID.NotFound", message));
    }
    let zone = |letter: &str| format!("{}{letter}", call.region);
    let found = all().filter(|(vpc, _, subnet)| {
        (ids.is_empty() || ids.contains(&subnet.id))
            && all_match(&filters, |name| match name {
                "vpc-id" => Some(vpc.id.clone()),
                "availability-zone" => Some(zone(&subnet.zone)),
                _ => Some(subnet.id.clone()),
            })
    });
    let list = found.map(|(vpc, number, subnet)| {
        element("subnetId", &subnet.id)
            + &element("vpcId", &vpc.id)
            + &element("state", "available")
            + &element("cidrBlock", &format!("10.0.{}.0/20", 16 * number))
            + &element("availableIpAddressCount", &subnet.free_addresses.to_string())
            + &element("availabilityZone", &zone(&subnet.zone))
            + &element("mapPublicIpOnLaunch", if subnet.public { "true" } else { "false" })
            + &element("ownerId", &call.caller.account)
            + "<tagSet/>"
    });
    Ok(items("subnetSet", list))
}

pub(super) fn vpc_endpoints(call: &Call<'_>, form: &Form) -> Result<String, ApiError> {
    call.authorize("*")?;
    let filters = form.filters(&["vpc-id", "service-name", "vpc-endpoint-state", "vpc-endpoint-type"])?;
    let all = call
        .world
        .config
        .vpcs
        .iter()
        .flat_map(|vpc| vpc.endpoints.iter().enumerate().map(move |(number, service)| (vpc, number, service)));
    let name = |service: &str| format!("com.amazonaws.{}.{service}", call.region);
    let kind = |service: &str| if service == "s3" { "Gateway" } else { "Interface" };
    let found = all.filter(|(vpc, _, service)| {
        all_match(&filters, |filter| match filter {
            "vpc-id" => Some(vpc.id.clone()),
            "service-name" => Some(name(service)),
            "vpc-endpoint-state" => Some("available".to_owned()),
            _ => Some(kind(service).to_owned()),
        })
    });
    let list = found.map(|(vpc, number, service)| {
        element("vpcEndpointId", &format!("vpce-{number:017x}"))
            + &element("vpcEndpointType", kind(service))
            + &element("vpcId", &vpc.id)
            + &element("serviceName", &name(service))
            + &element("state", "available")
            + &element("privateDnsEnabled", if service == "s3" { "false" } else { "true" })
            + &items("subnetIdSet", vpc.subnets.iter().map(|subnet| super::escape(&subnet.id)))
            + &items("groupSet", vpc.security_groups.iter().map(|group| element("groupId", group)))
    });
    Ok(items("vpcEndpointSet", list))
}

pub(super) fn security_groups(call: &Call<'_>, form: &Form) -> Result<String, ApiError> {
    call.authorize("*")?;
    let filters = form.filters(&["vpc-id", "group-id"])?;
    let ids = form.list("GroupId");
    let vpcs: &[VpcConfig] = &call.world.config.vpcs;
    let all = || vpcs.iter().flat_map(|vpc| vpc.security_groups.iter().map(move |group| (vpc, group)));
    if let Some(id) = ids.iter().find(|id| !all().any(|(_, group)| group == *id)) {
        let message = format!("The security group '{id}' does not exist");
        return Err(ApiError::new(400, "InvalidGroup.NotFound", message));
    }
    let found = all().filter(|(vpc, group)| {
        (ids.is_empty() || ids.contains(group))
            && all_match(&filters, |name| match name {
                "vpc-id" => Some(vpc.id.clone()),
                _ => Some((*group).clone()),
            })
    });
    let list = found.map(|(vpc, group)| {
        // Everything from itself, and everything out: as EKS makes it for a cluster.
        let own = element("userId", &call.caller.account) + &element("groupId", group);
        let inward = element("ipProtocol", "-1") + &items("groups", [own]) + "<ipRanges/>";
        let outward = element("ipProtocol", "-1") + "<groups/>" + &items("ipRanges", [element("cidrIp", "0.0.0.0/0")]);
        element("ownerId", &call.caller.account)
            + &element("groupId", group)
            + &element("groupName", &format!("group-{group}"))
            + &element("groupDescription", "emulated")
            + &element("vpcId", &vpc.id)
            + &items("ipPermissions", [inward])
            + &items("ipPermissionsEgress", [outward])
    });
    Ok(items("securityGroupInfo", list))
}
