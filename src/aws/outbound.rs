//! What every HTTP request of the SDK passes, whoever in it makes the request: calls of services, of sources of credentials,
//! of metadata.
//!
//! Invariants:
//!
//! * Whether a proxy is used is decided here (`routes`), for each request.
//! * No answer is longer than [`MAX_ANSWER_LEN`].
//! * Every answer of AWS's tells the time (`offset`).
//! * A proxy that asks for a password is not taken for the service behind it.

use std::{
    error::Error,
    sync::{Arc, OnceLock},
};

use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        http::{
            HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
            SharedHttpConnector,
        },
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::body::SdkBody;
use http::Uri;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::{
    error::chain,
    offset::ClockOffset,
    routes::{Routes, Way},
};

/// Longest answer, in bytes. The longest that is asked for, a page of managed nodes, has some tens of thousands.
const MAX_ANSWER_LEN: usize = 2 << 20;

/// Headers by which AWS names a request that it has answered; the message gateway and S3 have the second.
const REQUEST_IDS: [&str; 2] = ["x-amzn-requestid", "x-amz-request-id"];

/// An answer that goes on and on.
#[derive(Debug, thiserror::Error)]
#[error("the answer is longer than {MAX_ANSWER_LEN} bytes")]
struct TooLong;

/// What makes the clients under a [`Client`], each when it is first used: to load the system's roots takes some ten
/// milliseconds.
type Make = dyn Fn(Option<&Way<'_>>) -> SharedHttpClient + Send + Sync;

/// The HTTP client of the SDK.
///
/// Unlike the SDK's own it is not set up before it is used: the SDK would have each of its clients try one, and a token
/// takes no call.
#[derive(Clone)]
pub(super) struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    routes: Arc<Routes>,
    offset: ClockOffset,
    make: Box<Make>,
    direct: OnceLock<SharedHttpClient>,
    http: OnceLock<SharedHttpClient>,
    https: OnceLock<SharedHttpClient>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// Takes what makes a client that calls everything directly, or everything through one proxy.
    pub(super) fn new(
        routes: Arc<Routes>,
        offset: ClockOffset,
        make: impl Fn(Option<&Way<'_>>) -> SharedHttpClient + Send + Sync + 'static,
    ) -> Self {
        let inner = Inner {
            routes,
            offset,
            make: Box::new(make),
            direct: OnceLock::new(),
            http: OnceLock::new(),
            https: OnceLock::new(),
        };
        Self { inner: Arc::new(inner) }
    }
}

impl HttpClient for Client {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        let (client, settings, components) = (self.clone(), settings.clone(), components.clone());
        SharedHttpConnector::new(Connector { client, settings, components })
    }
}

#[derive(Debug)]
struct Connector {
    client: Client,
    settings: HttpConnectorSettings,
    components: RuntimeComponents,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let inner = Arc::clone(&self.client.inner);
        let (settings, components) = (self.settings.clone(), self.components.clone());
        HttpConnectorFuture::new(async move {
            let destination: Uri = request.uri().parse().map_err(|error| ConnectorError::user(Box::new(error)))?;
            let way = inner.routes.of(&destination);
            let client = match (&way, destination.scheme_str()) {
                (None, _) => &inner.direct,
                (Some(_), Some("https")) => &inner.https,
                (Some(_), _) => &inner.http,
            };
            let connector = client.get_or_init(|| (inner.make)(way.as_ref())).http_connector(&settings, &components);
            let sent = inner.offset.wall();
            let answer = connector.call(request).await.map_err(|error| of_proxy(way.as_ref(), error))?;
            if let Some(date) = date(&answer) {
                inner.offset.learn(date, sent, inner.offset.wall());
            }
            bounded(way.as_ref(), answer)
        })
    }
}

/// Returns the date of an answer of AWS's own.
fn date(answer: &HttpResponse) -> Option<&str> {
    let headers = answer.headers();
    let is_of_aws = REQUEST_IDS.iter().any(|name| headers.contains_key(*name)) && !headers.contains_key("age");
    headers.get("date").filter(|_| is_of_aws)
}

/// Puts a limit on the body of an answer, unless it is that of a proxy that wants to know who calls.
pub(super) fn bounded(way: Option<&Way<'_>>, answer: HttpResponse) -> Result<HttpResponse, ConnectorError> {
    if let Some(way) = way.filter(|_| answer.status().as_u16() == 407) {
        let schemes = answer.headers().get_all("proxy-authenticate").filter_map(scheme).collect();
        return Err(ConnectorError::io(Box::new(way.refusal(schemes))));
    }
    Ok(answer.map(|body| {
        let body = Limited::new(body, MAX_ANSWER_LEN).map_err(|error| -> BoxError {
            if error.is::<LengthLimitError>() { TooLong.into() } else { error }
        });
        SdkBody::from_body_1_x(body)
    }))
}

/// Says what a proxy means that opens no tunnel.
pub(super) fn of_proxy(way: Option<&Way<'_>>, error: ConnectorError) -> ConnectorError {
    match way {
        Some(way) if wants_authorization(&error) => ConnectorError::io(Box::new(way.refusal(Vec::new()))),
        _ => error,
    }
}

/// Tells whether an error is that of a proxy that wants to know who calls: words of hyper, which has no type for it.
pub(super) fn wants_authorization(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|error| error.to_string().contains("proxy authorization required"))
}

/// Reads the name of a scheme of authorization.
fn scheme(header: &str) -> Option<String> {
    let word = header.split_whitespace().next()?;
    word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-').then(|| word.chars().take(20).collect())
}

/// What makes the connector of a [`Plain`].
type MakeOne = dyn Fn(Option<&Way<'_>>) -> SharedHttpConnector + Send + Sync;

/// A connector for requests that the SDK has no part in, all to one host.
pub(super) struct Plain {
    routes: Arc<Routes>,
    make: Box<MakeOne>,
    connector: OnceLock<SharedHttpConnector>,
}

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plain").finish_non_exhaustive()
    }
}

impl Plain {
    /// Takes what makes a connector that goes one way.
    pub(super) fn new(
        routes: Arc<Routes>,
        make: impl Fn(Option<&Way<'_>>) -> SharedHttpConnector + Send + Sync + 'static,
    ) -> Self {
        Self { routes, make: Box::new(make), connector: OnceLock::new() }
    }
}

impl HttpConnector for Plain {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let routes = Arc::clone(&self.routes);
        let Ok(destination) = request.uri().parse::<Uri>() else {
            return HttpConnectorFuture::ready(Err(ConnectorError::user("the URL cannot be read".into())));
        };
        let connector = self.connector.get_or_init(|| (self.make)(routes.of(&destination).as_ref())).clone();
        HttpConnectorFuture::new(async move {
            let way = routes.of(&destination);
            let answer = connector.call(request).await.map_err(|error| of_proxy(way.as_ref(), error))?;
            bounded(way.as_ref(), answer)
        })
    }
}
