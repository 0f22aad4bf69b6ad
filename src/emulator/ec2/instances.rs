//! `DescribeInstances` and `GetConsoleOutput`.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    super::{
        api::{ApiError, Call},
        clock::extended_date,
        fleet::Instance,
        vpc::private_address,
    },
    Form, element, items,
};

/// Least that a page can have.
const MIN_PAGE: usize = 5;

const FILTERS: [&str; 11] = [
    "vpc-id",
    "subnet-id",
    "instance-state-name",
    "instance-id",
    "ip-address",
    "private-ip-address",
    "dns-name",
    "private-dns-name",
    "availability-zone",
    "tag-key",
    "tag:*",
];

/// An instance with what is derived from it.
struct Seen<'a> {
    instance: &'a Instance,
    region: &'a str,
    subnet: String,
    zone: String,
    group: String,
    private: String,
}

impl<'a> Seen<'a> {
    fn new(call: &'a Call<'_>, instance: &'a Instance) -> Self {
        let vpc = call.world.config.vpcs.iter().find(|vpc| vpc.id == instance.config.vpc);
        let subnet = vpc.and_then(|vpc| vpc.subnets.get(instance.number % vpc.subnets.len().max(1)));
        Self {
            instance,
            region: &call.region,
            subnet: subnet.map(|subnet| subnet.id.clone()).unwrap_or_default(),
            zone: format!("{}{}", call.region, subnet.map_or("a", |subnet| subnet.zone.as_str())),
            group: vpc.and_then(|vpc| vpc.security_groups.first().cloned()).unwrap_or_default(),
            private: instance.config.private_address.clone().unwrap_or_else(|| private_address(instance.number)),
        }
    }

    fn private_name(&self) -> String {
        format!("ip-{}.{}.compute.internal", self.private.replace('.', "-"), self.region)
    }

    fn public_name(&self) -> String {
        let address = self.instance.config.public_address.as_ref();
        address.map_or_else(String::new, |address| {
            format!("ec2-{}.{}.compute.amazonaws.com", address.replace('.', "-"), self.region)
        })
    }

    fn matches(&self, filter: &super::Filter) -> bool {
        let config = &self.instance.config;
        let (_, state) = self.instance.state.names();
        match filter.name.as_str() {
            "vpc-id" => filter.matches(&[&config.vpc]),
            "subnet-id" => filter.matches(&[&self.subnet]),
            "instance-state-name" => filter.matches(&[state]),
            "instance-id" => filter.matches(&[&config.id]),
            "ip-address" => config.public_address.as_ref().is_some_and(|address| filter.matches(&[address])),
            "private-ip-address" => filter.matches(&[&self.private]),
            "dns-name" => filter.matches(&[&self.public_name()]),
            "private-dns-name" => filter.matches(&[&self.private_name()]),
            "availability-zone" => filter.matches(&[&self.zone]),
            "tag-key" => config.tags.keys().any(|key| filter.matches(&[key])),
            name => {
                let value = name.strip_prefix("tag:").and_then(|key| config.tags.get(key));
                value.is_some_and(|value| filter.matches(&[value]))
            }
        }
    }

    fn item(&self) -> String {
        let Instance { config, launched, state, number, .. } = self.instance;
        let (code, name) = state.names();
        let mut item = element("instanceId", &config.id);
        item += &element("imageId", "ami-0abcdef1234567890");
        item += &format!("<instanceState><code>{code}</code><name>{name}</name></instanceState>");
        item += &element("privateDnsName", &self.private_name());
        item += &element("dnsName", &self.public_name());
        item += &element("instanceType", "t4g.nano");
        item += &element("launchTime", &extended_date(*launched).replace('Z', ".000Z"));
        item +=
            &format!("<placement>{}<tenancy>default</tenancy></placement>", element("availabilityZone", &self.zone));
        if config.platform.contains("Windows") {
            item += &element("platform", "windows");
        }
        item += &element("platformDetails", if config.platform.contains("Windows") { "Windows" } else { "Linux/UNIX" });
        // What is terminated has no network any more.
        if name != "terminated" {
            item += &element("subnetId", &self.subnet);
            item += &element("vpcId", &config.vpc);
            if !self.private.is_empty() {
                item += &element("privateIpAddress", &self.private);
            }
            if let Some(address) = &config.public_address {
                item += &element("ipAddress", address);
            }
        }
        item += &items("groupSet", [element("groupId", &self.group) + &element("groupName", "default")]);
        item += &items("tagSet", config.tags.iter().map(|(key, value)| element("key", key) + &element("value", value)));
        item += &format!(
            "<metadataOptions><state>applied</state><httpTokens>required</httpTokens><httpEndpoint>enabled</httpEndpoint>\
             </metadataOptions><amiLaunchIndex>{number}</amiLaunchIndex><architecture>arm64</architecture>"
        );
        item
    }
}

fn not_found(id: &str) -> ApiError {
    ApiError::new(400, "InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist"))
}

fn is_id(id: &str) -> bool {
    id.strip_prefix("i-")
        .is_some_and(|digits| [8, 17].contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

pub(super) fn describe(call: &Call<'_>, form: &Form) -> Result<String, ApiError> {
    call.authorize("*")?;
    let filters = form.filters(&FILTERS)?;
    let ids = form.list("InstanceId");
    if !ids.is_empty() && form.get("MaxResults").is_some() {
        return Err(ApiError::new(
            400,
            "InvalidParameterCombination",
            "The parameter instancesSet cannot be used with the parameter maxResults",
        ));
    }
    let mut all = call.world.fleet.all();
    // Managed nodes elsewhere and containers are none of EC2's.
    all.retain(|instance| instance.config.id.starts_with("i-") && call.region == call.world.config.region);
    for id in &ids {
        if !is_id(id) {
            let message = format!("Invalid id: \"{id}\"");
            return Err(ApiError::new(400, "InvalidInstanceID.Malformed", message));
        }
        if !all.iter().any(|instance| instance.config.id == *id) {
            return Err(not_found(id));
        }
    }
    let seen = all.iter().filter(|instance| ids.is_empty() || ids.contains(&instance.config.id));
    let seen: Vec<Seen<'_>> = seen
        .map(|instance| Seen::new(call, instance))
        .filter(|seen| filters.iter().all(|filter| seen.matches(filter)))
        .collect();
    let (page, next) = form.page(&seen, MIN_PAGE)?;
    let reservations = page.iter().map(|seen| {
        let id = seen.instance.config.id.strip_prefix("i-").unwrap_or_default();
        element("reservationId", &format!("r-{id}"))
            + &element("ownerId", &call.caller.account)
            + "<groupSet/>"
            + &items("instancesSet", [seen.item()])
    });
    Ok(items("reservationSet", reservations) + &next)
}

pub(super) fn console_output(call: &Call<'_>, form: &Form) -> Result<String, ApiError> {
    let id = form
        .get("InstanceId")
        .ok_or_else(|| ApiError::new(400, "MissingParameter", "The request must contain the parameter InstanceId"))?;
    call.authorize(&format!("arn:aws:ec2:{}:{}:instance/{id}", call.region, call.caller.account))?;
    let instance = call.world.fleet.find(id).ok_or_else(|| not_found(id))?;
    let mut output = element("instanceId", id);
    output += &element("timestamp", &extended_date(call.world.clock.wall()).replace('Z', ".000Z"));
    if let Some(console) = &instance.config.console {
        output += &element("output", &STANDARD.encode(console));
    }
    Ok(output)
}
