//! What there is in the networks: subnets, endpoints and security groups.

use super::{
    super::{
        api::{ApiError, Call},
        stack::{Resource, Stack},
        vpc::VpcConfig,
        world::lock,
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
    let all = call.world.connect_endpoints();
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

pub(super) fn route_tables(call: &Call<'_>, form: &Form) -> Result<String, ApiError> {
    call.authorize("*")?;
    let filters = form.filters(&["vpc-id", "route-table-id"])?;
    let mut tables = Vec::new();
    for (number, vpc) in call.world.config.vpcs.iter().enumerate() {
        let route = |to: &str, target: &str, id: &str| {
            element("destinationCidrBlock", to) + &element(target, id) + &element("state", "active")
        };
        let local = || route("10.0.0.0/16", "gatewayId", "local");
        // The main one, for all that is private, and one for what is public.
        let out = vpc.nat.then(|| route("0.0.0.0/0", "natGatewayId", &format!("nat-{number:017x}")));
        let main = element("main", "true");
        let mut add = |letter: &str, routes: Vec<String>, associations: Vec<String>| {
            let id = format!("rtb-{letter}{number:016x}");
            if all_match(&filters, |name| Some(if name == "vpc-id" { vpc.id.clone() } else { id.clone() })) {
                tables.push(
                    element("routeTableId", &id)
                        + &element("vpcId", &vpc.id)
                        + &items("routeSet", routes)
                        + &items("associationSet", associations),
                );
            }
        };
        add("0", [local()].into_iter().chain(out).collect(), vec![main]);
        let public = vpc.subnets.iter().filter(|subnet| subnet.public);
        let public: Vec<String> =
            public.map(|subnet| element("subnetId", &subnet.id) + &element("main", "false")).collect();
        if !public.is_empty() {
            add("1", vec![local(), route("0.0.0.0/0", "gatewayId", &format!("igw-{number:017x}"))], public);
        }
    }
    Ok(items("routeTableSet", tables))
}

pub(super) fn launch_templates(call: &Call<'_>, form: &Form) -> Result<String, ApiError> {
    call.authorize("*")?;
    let filters = form.filters(&["launch-template-name"])?;
    let stack = lock(&call.world.stack);
    let found = stack
        .of_kind("AWS::EC2::LaunchTemplate")
        .filter(|template| all_match(&filters, |_| Some(template.text("LaunchTemplateName").to_owned())));
    let list = found.map(|template| {
        element("launchTemplateId", &template.physical)
            + &element("launchTemplateName", template.text("LaunchTemplateName"))
    });
    Ok(items("launchTemplates", list))
}

fn tags_of(resource: &Resource) -> Vec<String> {
    let tags = resource.properties["Tags"].as_array().into_iter().flatten();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    tags.map(|tag| element("key", &text(&tag["Key"])) + &element("value", &text(&tag["Value"]))).collect()
}

/// What a template has let into a group.
fn rules_of(stack: &Stack, account: &str, group: &str) -> Vec<String> {
    let rules = stack.of_kind("AWS::EC2::SecurityGroupIngress").filter(|rule| rule.text("GroupId") == group);
    rules
        .map(|rule| {
            let port = |name: &str| {
                element(name, &rule.properties[if name == "fromPort" { "FromPort" } else { "ToPort" }].to_string())
            };
            let from = element("userId", account) + &element("groupId", rule.text("SourceSecurityGroupId"));
            element("ipProtocol", rule.text("IpProtocol"))
                + &port("fromPort")
                + &port("toPort")
                + &items("groups", [from])
                + "<ipRanges/>"
        })
        .collect()
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
    let stack = lock(&call.world.stack);
    let made = stack.of_kind("AWS::EC2::VPCEndpoint").filter(|endpoint| {
        all_match(&filters, |filter| match filter {
            "vpc-id" => Some(endpoint.text("VpcId").to_owned()),
            "service-name" => Some(endpoint.text("ServiceName").to_owned()),
            "vpc-endpoint-state" => Some("available".to_owned()),
            _ => Some(endpoint.text("VpcEndpointType").to_owned()),
        })
    });
    let made = made.map(|endpoint| {
        let texts = |name: &str| {
            let list = endpoint.properties[name].as_array().cloned().unwrap_or_default();
            list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect::<Vec<_>>()
        };
        element("vpcEndpointId", &endpoint.physical)
            + &element("vpcEndpointType", endpoint.text("VpcEndpointType"))
            + &element("vpcId", endpoint.text("VpcId"))
            + &element("serviceName", endpoint.text("ServiceName"))
            + &element("state", "available")
            + &element("privateDnsEnabled", &endpoint.properties["PrivateDnsEnabled"].to_string())
            + &items("groupSet", texts("SecurityGroupIds").iter().map(|group| element("groupId", group)))
            + &items("tagSet", tags_of(endpoint))
    });
    Ok(items("vpcEndpointSet", list.chain(made)))
}

pub(super) fn security_groups(call: &Call<'_>, form: &Form) -> Result<String, ApiError> {
    call.authorize("*")?;
    let filters = form.filters(&["vpc-id", "group-id", "group-name"])?;
    let ids = form.list("GroupId");
    let vpcs: &[VpcConfig] = &call.world.config.vpcs;
    let stack = lock(&call.world.stack);
    let of_vpcs = vpcs.iter().flat_map(|vpc| {
        vpc.security_groups.iter().map(move |group| (vpc.id.clone(), group.clone(), format!("group-{group}")))
    });
    let made = stack
        .of_kind("AWS::EC2::SecurityGroup")
        .map(|group| (group.text("VpcId").to_owned(), group.physical.clone(), group.text("GroupName").to_owned()));
    let all: Vec<(String, String, String)> = of_vpcs.chain(made).collect();
    if let Some(id) = ids.iter().find(|id| !all.iter().any(|(_, group, _)| group == *id)) {
        let message = format!("The security group '{id}' does not exist");
        return Err(ApiError::new(400, "InvalidGroup.NotFound", message));
    }
    let found = all.iter().filter(|(vpc, group, group_name)| {
        (ids.is_empty() || ids.contains(group))
            && all_match(&filters, |name| match name {
                "vpc-id" => Some(vpc.clone()),
                "group-name" => Some(group_name.clone()),
                _ => Some(group.clone()),
            })
    });
    let account = &call.caller.account;
    let list = found.map(|(vpc, group, name)| {
        // Everything from itself, and everything out: as EKS makes it for a cluster.
        let own = element("userId", account) + &element("groupId", group);
        let of_eks = vpcs.iter().any(|vpc| vpc.security_groups.contains(group));
        let own = of_eks.then(|| element("ipProtocol", "-1") + &items("groups", [own]) + "<ipRanges/>");
        let inward: Vec<String> = own.into_iter().chain(rules_of(&stack, account, group)).collect();
        let outward = element("ipProtocol", "-1") + "<groups/>" + &items("ipRanges", [element("cidrIp", "0.0.0.0/0")]);
        element("ownerId", account)
            + &element("groupId", group)
            + &element("groupName", name)
            + &element("groupDescription", "emulated")
            + &element("vpcId", vpc)
            + &items("ipPermissions", inward)
            + &items("ipPermissionsEgress", [outward])
    });
    Ok(items("securityGroupInfo", list))
}
