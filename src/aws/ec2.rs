//! EC2, as far as bastions are looked for there: a few actions of its query protocol, which only read.
//!
//! They go over the SDK's orchestrator, with our HTTP client, and are written out by hand: the SDK's crate for EC2 has
//! thousands of actions, and takes longer to build than everything else here together.
//!
//! Invariants:
//!
//! * Every attempt is signed anew, by the time that AWS has.
//! * No list goes on for ever.
//! * Values of filters are taken as they are: EC2's wildcards are escaped.
//! * What goes into commands and ARNs is plain; all other text is `PeerText`.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_runtime::retries::classifiers::AwsErrorCodeClassifier;
use aws_sdk_ssm::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_smithy_runtime::client::{
    orchestrator::operation::Operation,
    retries::classifiers::{HttpStatusCodeClassifier, TransientErrorClassifier},
};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::BeforeTransmitInterceptorContextMut},
        orchestrator::{HttpRequest, HttpResponse, OrchestratorError},
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{
    DateTime,
    body::SdkBody,
    config_bag::ConfigBag,
    date_time::Format,
    error::metadata::{ErrorMetadata, ProvideErrorMetadata},
    retry::RetryConfig,
    timeout::TimeoutConfig,
};
use aws_types::service_config::ServiceConfigKey;
use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::time::timeout;

use super::{
    Aws,
    error::{AwsError, Call, HostSeen, classify},
    offset::ClockOffset,
    sign,
    values::{is_host, is_plain},
};
use crate::util::peer_text::PeerText;

mod xml;

use xml::Element;

/// The version of the API; the only one that botocore and the SDK have.
const VERSION: &str = "2016-11-15";

const CONSOLE_OUTPUT: &str = "ec2:GetConsoleOutput";

/// A page of instances has some hundred kilobytes.
const INSTANCES: List =
    List { action: "ec2:DescribeInstances", path: &["reservationSet", "instancesSet"], page_len: 100 };

/// EC2 gives no more at a time.
const ENDPOINTS: List =
    List { action: "ec2:DescribeInstanceConnectEndpoints", path: &["instanceConnectEndpointSet"], page_len: 50 };

/// Most pages that are asked for, and the longest that it may take.
const MAX_PAGES: usize = 500;
const LIST_LIMIT: Duration = Duration::from_secs(120);

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
        let answer = self.ec2_call(CONSOLE_OUTPUT, instance, &parameters).await?;
        let Some(output) = answer.text("output") else { return Ok(None) };
        let text: Vec<u8> = output.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let text = Some(text).filter(|text| text.len() <= MAX_CONSOLE_LEN).and_then(|text| STANDARD.decode(text).ok());
        match text {
            Some(text) => Ok(Some(text.into_iter().filter(is_of_console).map(char::from).collect())),
            None => Err(AwsError::malformed(CONSOLE_OUTPUT, "output of a console")),
        }
    }

    /// Reads all pages of a list. What `read` takes for nothing makes the answer one that cannot be.
    async fn ec2_list<T>(
        &self,
        list: &List,
        filters: &[Filter],
        read: impl Fn(&Element) -> Option<T>,
    ) -> Result<Vec<T>, AwsError> {
        let endless = || AwsError::malformed(list.action, "list that comes to an end");
        let pages = async {
            let mut parameters = list.parameters(filters);
            let (mut found, len) = (Vec::new(), parameters.len());
            for _ in 0..MAX_PAGES {
                let answer = self.ec2_call(list.action, "*", &parameters).await?;
                for item in answer.items(list.path) {
                    let item = read(item).ok_or_else(|| AwsError::malformed(list.action, "entry that such a list has"));
                    found.push(item?);
                }
                let Some(token) = answer.text("nextToken") else { return Ok(found) };
                parameters.truncate(len);
                parameters.push(("NextToken".to_owned(), token.to_owned()));
            }
            Err(endless())
        };
        timeout(LIST_LIMIT, pages).await.unwrap_or_else(|_| Err(endless()))
    }

    async fn ec2_call(
        &self,
        action: &'static str,
        resource: &str,
        parameters: &[(String, String)],
    ) -> Result<Element, AwsError> {
        let ec2 = &self.inner.ec2;
        let call = Call { action, resource, region: self.region(), host: &ec2.host };
        let endpoint = match ec2.endpoint(self.region()).await {
            Ok(endpoint) => endpoint,
            Err(source) => return Err(AwsError::Service { action, source: source.into() }),
        };
        let name = action.split_once(':').map_or(action, |(_, name)| name);
        let credentials = self.credentials().await?;
        let signer = Signer { credentials, region: self.region().to_owned(), offset: self.offset().clone() };
        let operation = ec2.operation(name, &endpoint, signer);
        let body = body(name, parameters);
        let known = self.offset().off();
        match operation.invoke(body.clone()).await {
            Err(error) if self.offset().off() != known => {
                // Its clock was wrong, and now it is known by how much.
                let error = classify(call, error);
                if !matches!(error, AwsError::ClockSkew { .. } | AwsError::BadKeys { .. }) {
                    return Err(error);
                }
                operation.invoke(body).await.map_err(|error| self.failed(call, error))
            }
            answer => answer.map_err(|error| self.failed(call, error)),
        }
    }
}

/// An action that lists something.
#[derive(Debug, Clone, Copy)]
struct List {
    action: &'static str,
    /// Where the entries are in an answer.
    path: &'static [&'static str],
    /// Most entries in an answer.
    page_len: u32,
}

impl List {
    fn parameters(&self, filters: &[Filter]) -> Vec<(String, String)> {
        let mut parameters = vec![("MaxResults".to_owned(), self.page_len.to_string())];
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

fn body(action: &str, parameters: &[(String, String)]) -> String {
    let mut body = format!("Action={action}&Version={VERSION}");
    for (name, value) in parameters {
        body.push('&');
        encode(name, &mut body);
        body.push('=');
        encode(value, &mut body);
    }
    body
}

fn encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// What calls of EC2 are made with.
#[derive(Debug)]
pub(super) struct Ec2 {
    sdk: SdkConfig,
    host: HostSeen,
}

impl Ec2 {
    pub(super) fn new(sdk: SdkConfig) -> Self {
        Self { sdk, host: HostSeen::new("EC2") }
    }

    pub(super) fn uses_fips(&self) -> bool {
        self.sdk.use_fips().unwrap_or(false)
    }

    /// Returns the endpoint that the user has given, in the order in which the clients of the SDK look for it.
    pub(super) fn endpoint_given(&self) -> Option<String> {
        let sdk = &self.sdk;
        let of_all = sdk.endpoint_url().map(str::to_owned);
        if of_all.is_some() && sdk.get_origin("endpoint_url").is_client_config() {
            return of_all;
        }
        let key = ServiceConfigKey::builder().service_id("EC2").env("AWS_ENDPOINT_URL").profile("endpoint_url");
        let of_ec2 = sdk.service_config().zip(key.build().ok()).and_then(|(settings, key)| settings.load_config(key));
        of_ec2.or(of_all)
    }

    /// Finds the endpoint, in the order in which the clients of the SDK do.
    async fn endpoint(&self, region: &str) -> Result<String, BoxError> {
        let sdk = &self.sdk;
        match self.endpoint_given() {
            Some(endpoint) => Ok(endpoint),
            None => {
                let flag = |flag: Option<bool>| flag.unwrap_or(false);
                endpoint(region, flag(sdk.use_fips()), flag(sdk.use_dual_stack())).await
            }
        }
    }

    fn operation(&self, action: &str, endpoint: &str, signer: Signer) -> Operation<String, Element, Ec2Error> {
        let sdk = &self.sdk;
        let root = format!("{action}Response");
        let mut builder = Operation::builder()
            .service_name("EC2")
            .operation_name(action.to_owned())
            .endpoint_url(endpoint)
            .no_auth()
            .standard_retry(sdk.retry_config().unwrap_or(&RetryConfig::standard()))
            .timeout_config(sdk.timeout_config().cloned().unwrap_or_else(TimeoutConfig::disabled))
            .retry_classifier(TransientErrorClassifier::<Ec2Error>::new())
            .retry_classifier(AwsErrorCodeClassifier::<Ec2Error>::new())
            .retry_classifier(HttpStatusCodeClassifier::default())
            .interceptor(signer)
            .interceptor(self.host.clone());
        if let Some(http) = sdk.http_client() {
            builder = builder.http_client(http);
        }
        if let Some(sleep) = sdk.sleep_impl() {
            builder = builder.sleep_impl(sleep);
        }
        if let Some(time) = sdk.time_source() {
            builder = builder.time_source(time);
        }
        builder.serializer(request).deserializer(move |answer: &HttpResponse| read(&root, answer)).build()
    }
}

/// Derives the endpoint of EC2 from that of Systems Manager, whose rules are at hand and differ by the first label only.
async fn endpoint(region: &str, fips: bool, dual_stack: bool) -> Result<String, BoxError> {
    let params = Params::builder().region(region).use_fips(fips).use_dual_stack(dual_stack).build()?;
    let endpoint = DefaultResolver::new().resolve_endpoint(&params).await?;
    let host = endpoint.url().strip_prefix("https://").and_then(|host| {
        let (label, rest) = host.split_once('.')?;
        match label {
            "ssm" => Some(format!("ec2.{rest}")),
            "ssm-fips" => Some(format!("ec2-fips.{rest}")),
            _ => None,
        }
    });
    host.map(|host| format!("https://{host}")).ok_or_else(|| "the region has no known endpoint of EC2".into())
}

fn request(body: String) -> Result<HttpRequest, BoxError> {
    let request = http::Request::post("/")
        .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
        .header("user-agent", concat!("autoheal-pa/", env!("CARGO_PKG_VERSION")))
        .body(SdkBody::from(body))?;
    Ok(request.try_into()?)
}

/// Reads an answer, which is named after its action.
fn read(root: &str, answer: &HttpResponse) -> Result<Element, OrchestratorError<Ec2Error>> {
    let document = Element::read(answer.body().bytes().unwrap_or_default()).unwrap_or_default();
    if answer.status().is_success() && document.name() == root {
        return Ok(document);
    }
    let error = document.child("Errors").and_then(|errors| errors.child("Error"));
    let text = |name: &str| error.and_then(|error| error.text(name));
    let header = ["x-amzn-requestid", "x-amz-request-id"].into_iter().find_map(|name| answer.headers().get(name));
    let mut meta = ErrorMetadata::builder();
    if let Some(code) = text("Code") {
        meta = meta.code(code);
    }
    if let Some(message) = text("Message") {
        meta = meta.message(message);
    }
    if let Some(id) = header.or_else(|| document.text("RequestID")) {
        meta = meta.custom("aws_request_id", id);
    }
    Err(OrchestratorError::operation(Ec2Error(meta.build())))
}

/// What EC2 has answered instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Ec2Error(ErrorMetadata);

impl ProvideErrorMetadata for Ec2Error {
    fn meta(&self) -> &ErrorMetadata {
        &self.0
    }
}

/// Signs each attempt.
#[derive(Debug)]
struct Signer {
    credentials: Credentials,
    region: String,
    offset: ClockOffset,
}

impl Intercept for Signer {
    fn name(&self) -> &'static str {
        "Signer"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _settings: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let now = SystemTime::UNIX_EPOCH + self.offset.now();
        sign::call(context.request_mut(), "ec2", &self.region, &self.credentials, now)
            .map_err(|source| AwsError::Signing { source: Arc::from(source) }.into())
    }
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
fn plain(item: &Element, name: &str) -> Option<Option<String>> {
    match item.text(name) {
        Some(text) => is_plain(text).then(|| Some(text.to_owned())),
        None => Some(None),
    }
}

/// Reads tags. One whose key is not what it looks like is as good as none.
fn tags(item: &Element) -> BTreeMap<String, PeerText> {
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
