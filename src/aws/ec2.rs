//! EC2, as far as bastions are looked for there: a few actions of its query protocol, which only read.
//!
//! How they are called is said in the module `query`. Those that `setup` looks at networks with are in `inventory`.
//!
//! Invariants:
//!
//! * Values of filters are taken as they are: EC2's wildcards are escaped.
//! * What goes into commands and ARNs is plain; all other text is `PeerText`.

use std::{collections::BTreeMap, time::SystemTime};

use aws_smithy_types::{DateTime, date_time::Format};
use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    Aws,
    error::AwsError,
    query::{Listed, Parameters},
    values::{is_host, is_plain},
    xml::Element,
};
use crate::util::peer_text::PeerText;

const CONSOLE_OUTPUT: &str = "ec2:GetConsoleOutput";

/// A page of instances has some hundred kilobytes.
const INSTANCES: List =
    List { action: "ec2:DescribeInstances", path: &["reservationSet", "instancesSet"], page_len: Some(100) };

/// EC2 gives no more at a time.
const ENDPOINTS: List =
    List { action: "ec2:DescribeInstanceConnectEndpoints", path: &["instanceConnectEndpointSet"], page_len: Some(50) };

/// Longest console output, in bytes of base64; EC2 keeps 64 KB of text.
const MAX_CONSOLE_LEN: usize = 256 << 10;

/// A condition on what is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    name: String,
    values: Vec<String>,
}

impl Filter {
    /// Asks for what has one of these values, such as `vpc-id` or `tag:Name`.
    pub fn new<T: Into<String>>(name: impl Into<String>, values: impl IntoIterator<Item = T>) -> Self {
        Self { name: name.into(), values: values.into_iter().map(Into::into).collect() }
    }
}

/// An instance, as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Such as `i-0abc`.
    pub id: String,
    /// Such as `running`.
    pub state: PeerText,
    /// The tag `Name`.
    pub name: Option<PeerText>,
    /// All tags, by key.
    pub tags: BTreeMap<String, PeerText>,
    pub vpc_id: Option<String>,
    pub subnet_id: Option<String>,
    /// Its first private IPv4 address.
    pub private_ip: Option<String>,
    pub public_ip: Option<String>,
    /// The first one of its first interface.
    pub ipv6: Option<String>,
    /// `windows`, or nothing for all else.
    pub platform: Option<PeerText>,
    pub availability_zone: Option<String>,
    /// When it was last started.
    pub launch_time: Option<SystemTime>,
}

/// An EC2 Instance Connect Endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceConnectEndpoint {
    /// Such as `eice-0abc`.
    pub id: String,
    /// Where it is connected to.
    pub dns_name: Option<String>,
    /// The same with FIPS.
    pub fips_dns_name: Option<String>,
    /// Such as `create-complete`.
    pub state: PeerText,
    pub subnet_id: Option<String>,
    pub vpc_id: Option<String>,
    /// Whether instances see the address of the caller rather than that of the endpoint.
    pub preserve_client_ip: bool,
}

impl Aws {
    /// Lists the instances that meet all filters.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn describe_instances(&self, filters: &[Filter]) -> Result<Vec<Instance>, AwsError> {
        self.ec2_list(&INSTANCES, filters, instance).await
    }

    /// Lists the EC2 Instance Connect Endpoints of a VPC.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn describe_instance_connect_endpoints(
        &self,
        vpc: &str,
    ) -> Result<Vec<InstanceConnectEndpoint>, AwsError> {
        self.ec2_list(&ENDPOINTS, &[Filter::new("vpc-id", [vpc])], instance_connect_endpoint).await
    }

    /// Returns what an instance has written to its console, as far as EC2 has it: lines of printable ASCII, all else is left
    /// out. `None` if there is none yet.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn console_output(&self, instance: &str) -> Result<Option<String>, AwsError> {
        let parameters = [("InstanceId".to_owned(), instance.to_owned())];
        let answer = self.query(&self.inner.ec2, CONSOLE_OUTPUT, instance, &parameters).await?;
        let Some(output) = answer.text("output") else { return Ok(None) };
        let text: Vec<u8> = output.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let text = Some(text).filter(|text| text.len() <= MAX_CONSOLE_LEN).and_then(|text| STANDARD.decode(text).ok());
        match text {
            Some(text) => Ok(Some(text.into_iter().filter(is_of_console).map(char::from).collect())),
            None => Err(AwsError::malformed(CONSOLE_OUTPUT, "output of a console")),
        }
    }

    /// Reads all pages of a list. What `read` takes for nothing makes the answer one that cannot be.
    pub(super) async fn ec2_list<T>(
        &self,
        list: &List,
        filters: &[Filter],
        read: impl Fn(&Element) -> Option<T>,
    ) -> Result<Vec<T>, AwsError> {
        let listed = Listed { action: list.action, path: list.path };
        self.query_list(&self.inner.ec2, listed, "*", list.parameters(filters), read).await
    }
}

/// An action that lists something.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    pub(super) action: &'static str,
    /// Where the entries are in an answer.
    pub(super) path: &'static [&'static str],
    /// Most entries in an answer; `None`: as many as EC2 gives.
    pub(super) page_len: Option<u32>,
}

impl List {
    fn parameters(&self, filters: &[Filter]) -> Parameters {
        let page_len = self.page_len.map(|len| ("MaxResults".to_owned(), len.to_string()));
        let mut parameters: Parameters = page_len.into_iter().collect();
        for (at, filter) in (1..).zip(filters) {
            parameters.push((format!("Filter.{at}.Name"), filter.name.clone()));
            let values = (1..).zip(&filter.values);
            parameters.extend(values.map(|(n, value)| (format!("Filter.{at}.Value.{n}"), literal(value))));
        }
        parameters
    }
}

/// Escapes what is a wildcard in a filter.
fn literal(value: &str) -> String {
    value.chars().flat_map(|c| matches!(c, '*' | '?' | '\\').then_some('\\').into_iter().chain([c])).collect()
}

fn instance(item: &Element) -> Option<Instance> {
    let tags = tags(item);
    let ipv6 =
        item.items(&["networkInterfaceSet", "ipv6AddressesSet"]).into_iter().find_map(|item| item.text("ipv6Address"));
    Some(Instance {
        id: plain(item, "instanceId")??,
        state: item.child("instanceState").and_then(|state| state.text("name")).map(PeerText::new).unwrap_or_default(),
        name: tags.get("Name").cloned(),
        tags,
        vpc_id: plain(item, "vpcId")?,
        subnet_id: plain(item, "subnetId")?,
        private_ip: plain(item, "privateIpAddress")?,
        public_ip: plain(item, "ipAddress")?,
        ipv6: item.text("ipv6Address").or(ipv6).filter(|text| is_plain(text)).map(str::to_owned),
        platform: item.text("platform").map(PeerText::new),
        availability_zone: item.child("placement").map_or(Some(None), |place| plain(place, "availabilityZone"))?,
        launch_time: item.text("launchTime").and_then(time),
    })
}

fn instance_connect_endpoint(item: &Element) -> Option<InstanceConnectEndpoint> {
    // What stands for an endpoint on this machine has a port.
    let is_place =
        |text: &str| is_host(text) || text.split_once(':').is_some_and(|(host, _)| is_host(host) && is_plain(text));
    let host = |name: &str| match item.text(name) {
        Some(host) => is_place(host).then(|| Some(host.to_owned())),
        None => Some(None),
    };
    Some(InstanceConnectEndpoint {
        id: plain(item, "instanceConnectEndpointId")??,
        dns_name: host("dnsName")?,
        fips_dns_name: host("fipsDnsName")?,
        state: item.text("state").map(PeerText::new).unwrap_or_default(),
        subnet_id: plain(item, "subnetId")?,
        vpc_id: plain(item, "vpcId")?,
        preserve_client_ip: item.text("preserveClientIp") == Some("true"),
    })
}

/// Reads a value that goes into commands; `None` if it is not one of those.
pub(super) fn plain(item: &Element, name: &str) -> Option<Option<String>> {
    match item.text(name) {
        Some(text) => is_plain(text).then(|| Some(text.to_owned())),
        None => Some(None),
    }
}

/// Reads tags. One whose key is not what it looks like is as good as none.
pub(super) fn tags(item: &Element) -> BTreeMap<String, PeerText> {
    let tags = item.items(&["tagSet"]).into_iter().filter_map(|tag| Some((tag.text("key")?, tag.text("value"))));
    let tags = tags.map(|(key, value)| (PeerText::new(key), PeerText::new(value.unwrap_or_default())));
    tags.filter(|(key, _)| !key.is_altered()).map(|(key, value)| (key.into(), value)).collect()
}

fn is_of_console(byte: &u8) -> bool {
    *byte == b'\n' || *byte == b' ' || byte.is_ascii_graphic()
}

fn time(text: &str) -> Option<SystemTime> {
    DateTime::from_str(text, Format::DateTime).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests;
