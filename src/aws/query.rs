//! Services with the query protocol that have no client here: forms in, XML out.
//!
//! They go over the SDK's orchestrator, with our HTTP client, and are written out by hand: the SDK's crate for EC2 has
//! thousands of actions, and takes longer to build than everything else here together; of IAM and Auto Scaling a few actions
//! are needed, which only read.
//!
//! Invariants:
//!
//! * Every attempt is signed anew, by the time that AWS has.
//! * No list goes on for ever.

use std::{
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
    body::SdkBody,
    config_bag::ConfigBag,
    error::metadata::{ErrorMetadata, ProvideErrorMetadata},
    retry::RetryConfig,
    timeout::TimeoutConfig,
};
use aws_types::service_config::ServiceConfigKey;
use tokio::time::timeout;

use super::{
    Aws,
    error::{AwsError, Call, HostSeen, classify},
    offset::ClockOffset,
    sign,
    xml::Element,
};
use crate::iam;

/// Most pages that are asked for, and the longest that it may take.
const MAX_PAGES: usize = 500;
const LIST_LIMIT: Duration = Duration::from_secs(120);

/// A service, as far as they differ.
#[derive(Debug)]
pub(super) struct Service {
    /// As errors name it.
    name: &'static str,
    /// Its id in settings of endpoints: `AWS_ENDPOINT_URL_` and this with underscores.
    id: &'static str,
    /// In credential scopes, and the first label of its hosts.
    label: &'static str,
    /// The version of the API; the only one that botocore has.
    version: &'static str,
    /// Answers are in an element of their own within the answer, and pages have this for their token.
    wraps: Option<Token>,
    /// There is one for a whole partition.
    is_global: bool,
}

/// What the token of the next page is called in a question and in an answer.
#[derive(Debug, Clone, Copy)]
struct Token {
    asked: &'static str,
    told: &'static str,
}

pub(super) const EC2: Service =
    Service { name: "EC2", id: "EC2", label: "ec2", version: "2016-11-15", wraps: None, is_global: false };

pub(super) const IAM: Service = Service {
    name: "IAM",
    id: "IAM",
    label: "iam",
    version: "2010-05-08",
    wraps: Some(Token { asked: "Marker", told: "Marker" }),
    is_global: true,
};

pub(super) const AUTO_SCALING: Service = Service {
    name: "Auto Scaling",
    id: "Auto Scaling",
    label: "autoscaling",
    version: "2011-01-01",
    wraps: Some(Token { asked: "NextToken", told: "NextToken" }),
    is_global: false,
};

/// Parameters of a call, by name.
pub(super) type Parameters = Vec<(String, String)>;

/// An action that lists something, and where the entries are in an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    pub(super) action: &'static str,
    pub(super) path: &'static [&'static str],
}

impl Aws {
    /// Reads all pages of a list. What `read` takes for nothing makes the answer one that cannot be.
    pub(super) async fn query_list<T>(
        &self,
        query: &Query,
        list: Listed,
        resource: &str,
        mut parameters: Parameters,
        read: impl Fn(&Element) -> Option<T>,
    ) -> Result<Vec<T>, AwsError> {
        let endless = || AwsError::malformed(list.action, "list that comes to an end");
        let token = query.service.wraps.unwrap_or(Token { asked: "NextToken", told: "nextToken" });
        let pages = async {
            let (mut found, len) = (Vec::new(), parameters.len());
            for _ in 0..MAX_PAGES {
                let answer = self.query(query, list.action, resource, &parameters).await?;
                for item in answer.items(list.path) {
                    let item = read(item).ok_or_else(|| AwsError::malformed(list.action, "entry that such a list has"));
                    found.push(item?);
                }
                let Some(next) = answer.text(token.told) else { return Ok(found) };
                parameters.truncate(len);
                parameters.push((token.asked.to_owned(), next.to_owned()));
            }
            Err(endless())
        };
        timeout(LIST_LIMIT, pages).await.unwrap_or_else(|_| Err(endless()))
    }

    /// Makes a call.
    pub(super) async fn query(
        &self,
        query: &Query,
        action: &'static str,
        resource: &str,
        parameters: &[(String, String)],
    ) -> Result<Element, AwsError> {
        let call = Call { action, resource, region: self.region(), host: &query.host };
        let place = match query.place(self.region()).await {
            Ok(place) => place,
            Err(source) => return Err(AwsError::Service { action, source: source.into() }),
        };
        let name = action.split_once(':').map_or(action, |(_, name)| name);
        let credentials = self.credentials().await?;
        let signer =
            Signer { service: query.service.label, credentials, region: place.region, offset: self.offset().clone() };
        let operation = query.operation(name, &place.endpoint, signer);
        let body = body(query.service.version, name, parameters);
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

fn body(version: &str, action: &str, parameters: &[(String, String)]) -> String {
    let mut body = format!("Action={action}&Version={version}");
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

/// What calls of a service are made with.
#[derive(Debug)]
pub(super) struct Query {
    service: &'static Service,
    sdk: SdkConfig,
    host: HostSeen,
}

/// Where a service is called, and the region that signatures are for.
#[derive(Debug, PartialEq, Eq)]
struct Called {
    endpoint: String,
    region: String,
}

impl Query {
    pub(super) fn new(service: &'static Service, sdk: SdkConfig) -> Self {
        Self { service, sdk, host: HostSeen::new(service.name) }
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
        let key =
            ServiceConfigKey::builder().service_id(self.service.id).env("AWS_ENDPOINT_URL").profile("endpoint_url");
        let own = sdk.service_config().zip(key.build().ok()).and_then(|(settings, key)| settings.load_config(key));
        own.or(of_all)
    }

    /// Finds the endpoint, in the order in which the clients of the SDK do.
    async fn place(&self, region: &str) -> Result<Called, BoxError> {
        let flag = |flag: Option<bool>| flag.unwrap_or(false);
        let (fips, dual_stack) = (flag(self.sdk.use_fips()), flag(self.sdk.use_dual_stack()));
        let place = if self.service.is_global {
            global_endpoint(self.service.label, region, fips, dual_stack).await
        } else {
            endpoint(self.service.label, region, fips, dual_stack)
                .await
                .map(|endpoint| Called { endpoint, region: region.to_owned() })
        };
        match (self.endpoint_given(), place) {
            (Some(endpoint), Ok(place)) => Ok(Called { endpoint, ..place }),
            (Some(endpoint), Err(_)) => Ok(Called { endpoint, region: region.to_owned() }),
            (None, place) => place,
        }
    }

    fn operation(&self, action: &str, endpoint: &str, signer: Signer) -> Operation<String, Element, QueryError> {
        let sdk = &self.sdk;
        let action = action.to_owned();
        let wraps = self.service.wraps.is_some();
        let mut builder = Operation::builder()
            .service_name(self.service.name)
            .operation_name(action.clone())
            .endpoint_url(endpoint)
            .no_auth()
            .standard_retry(sdk.retry_config().unwrap_or(&RetryConfig::standard()))
            .timeout_config(sdk.timeout_config().cloned().unwrap_or_else(TimeoutConfig::disabled))
            .retry_classifier(TransientErrorClassifier::<QueryError>::new())
            .retry_classifier(AwsErrorCodeClassifier::<QueryError>::new())
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
        builder.serializer(request).deserializer(move |answer: &HttpResponse| read(&action, wraps, answer)).build()
    }
}

/// Derives the endpoint of a service from that of Systems Manager, whose rules are at hand and differ by the first label only.
pub(super) async fn endpoint(label: &str, region: &str, fips: bool, dual_stack: bool) -> Result<String, BoxError> {
    let params = Params::builder().region(region).use_fips(fips).use_dual_stack(dual_stack).build()?;
    let endpoint = DefaultResolver::new().resolve_endpoint(&params).await?;
    let host = endpoint.url().strip_prefix("https://").and_then(|host| {
        let (first, rest) = host.split_once('.')?;
        match first {
            "ssm" => Some(format!("{label}.{rest}")),
            "ssm-fips" => Some(format!("{label}-fips.{rest}")),
            _ => None,
        }
    });
    host.map(|host| format!("https://{host}"))
        .ok_or_else(|| format!("the region has no known endpoint of `{label}`").into())
}

/// Finds the endpoint of a service that a partition has once; in the smaller partitions it is where the partition began.
async fn global_endpoint(label: &str, region: &str, fips: bool, dual_stack: bool) -> Result<Called, BoxError> {
    let called = |host: String, region: &str| Called { endpoint: format!("https://{host}"), region: region.to_owned() };
    let home = match iam::partition(region) {
        "aws" if fips => return Ok(called(format!("{label}-fips.amazonaws.com"), "us-east-1")),
        "aws" if dual_stack => return Ok(called(format!("{label}.global.api.aws"), "us-east-1")),
        "aws" => return Ok(called(format!("{label}.amazonaws.com"), "us-east-1")),
        "aws-us-gov" => return Ok(called(format!("{label}.us-gov.amazonaws.com"), "us-gov-west-1")),
        "aws-cn" => "cn-north-1",
        "aws-iso" => "us-iso-east-1",
        "aws-iso-b" => "us-isob-east-1",
        "aws-iso-e" => "eu-isoe-west-1",
        "aws-iso-f" => "us-isof-south-1",
        "aws-eusc" => "eusc-de-east-1",
        _ => region,
    };
    let endpoint = endpoint(label, home, false, false).await?;
    Ok(Called { endpoint, region: home.to_owned() })
}

fn request(body: String) -> Result<HttpRequest, BoxError> {
    let request = http::Request::post("/")
        .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
        .header("user-agent", concat!("autoheal-pa/", env!("CARGO_PKG_VERSION")))
        .body(SdkBody::from(body))?;
    Ok(request.try_into()?)
}

/// Reads an answer, which is named after its action.
fn read(action: &str, wraps: bool, answer: &HttpResponse) -> Result<Element, OrchestratorError<QueryError>> {
    let mut document = Element::read(answer.body().bytes().unwrap_or_default()).unwrap_or_default();
    if answer.status().is_success() && document.name().strip_suffix("Response") == Some(action) {
        return Ok(if wraps { document.take(&format!("{action}Result")).unwrap_or_default() } else { document });
    }
    let error = document.child("Errors").unwrap_or(&document).child("Error");
    let text = |name: &str| error.and_then(|error| error.text(name));
    let header = ["x-amzn-requestid", "x-amz-request-id"].into_iter().find_map(|name| answer.headers().get(name));
    let mut meta = ErrorMetadata::builder();
    if let Some(code) = text("Code") {
        meta = meta.code(code);
    }
    if let Some(message) = text("Message") {
        meta = meta.message(message);
    }
    let id = ["RequestID", "RequestId"].into_iter().find_map(|name| document.text(name));
    if let Some(id) = header.or(id) {
        meta = meta.custom("aws_request_id", id);
    }
    Err(OrchestratorError::operation(QueryError(meta.build())))
}

/// What a service has answered instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct QueryError(ErrorMetadata);

impl ProvideErrorMetadata for QueryError {
    fn meta(&self) -> &ErrorMetadata {
        &self.0
    }
}

/// Signs each attempt.
#[derive(Debug)]
struct Signer {
    service: &'static str,
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
        sign::call(context.request_mut(), self.service, &self.region, &self.credentials, now)
            .map_err(|source| AwsError::Signing { source: Arc::from(source) }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn iam_is_called_where_botocore_calls_it() {
        for (region, fips, dual_stack, host, signed_for) in [
            ("eu-west-1", false, false, "iam.amazonaws.com", "us-east-1"),
            ("us-east-1", true, false, "iam-fips.amazonaws.com", "us-east-1"),
            ("us-east-1", false, true, "iam.global.api.aws", "us-east-1"),
            ("cn-northwest-1", false, false, "iam.cn-north-1.amazonaws.com.cn", "cn-north-1"),
            ("us-gov-east-1", false, false, "iam.us-gov.amazonaws.com", "us-gov-west-1"),
            ("us-gov-east-1", true, false, "iam.us-gov.amazonaws.com", "us-gov-west-1"),
            ("us-iso-west-1", false, false, "iam.us-iso-east-1.c2s.ic.gov", "us-iso-east-1"),
            ("us-isob-east-1", false, false, "iam.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1"),
            ("eusc-de-east-1", false, false, "iam.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
        ] {
            let place = global_endpoint("iam", region, fips, dual_stack).await.unwrap();
            let expected = Called { endpoint: format!("https://{host}"), region: signed_for.to_owned() };
            assert_eq!(place, expected, "{region} {fips} {dual_stack}");
        }
        let endpoint = endpoint("autoscaling", "us-gov-west-1", false, false).await.unwrap();
        assert_eq!(endpoint, "https://autoscaling.us-gov-west-1.amazonaws.com");
    }

    #[test]
    fn errors_of_both_forms_are_read() {
        let answer = |status: u16, body: &str| {
            let answer = http::Response::builder().status(status).body(SdkBody::from(body)).unwrap();
            HttpResponse::try_from(answer).unwrap()
        };
        let text = "<ErrorResponse><Error><Type>Sender</Type><Code>NoSuchEntity</Code><Message>no</Message></Error>\
                    <RequestId>r-3</RequestId></ErrorResponse>";
        let error = read("GetRole", true, &answer(404, text)).unwrap_err();
        let error = error.as_operation_error().unwrap();
        assert_eq!((error.0.code(), error.0.extra("aws_request_id")), (Some("NoSuchEntity"), Some("r-3")));
        let text = "<GetRoleResponse><GetRoleResult><Role><Arn>a</Arn></Role></GetRoleResult></GetRoleResponse>";
        let role = read("GetRole", true, &answer(200, text)).unwrap();
        assert_eq!(role.child("Role").and_then(|role| role.text("Arn")), Some("a"));
        read("GetUser", true, &answer(200, text)).unwrap_err();
    }
}
