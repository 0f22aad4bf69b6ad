//! Requests of plain HTTP, as programs send them to a proxy: with the whole URL in their first line.
//!
//! Each request gets a connection of its own to where it leads, since the next may lead elsewhere. To a host it is sent as that
//! host expects it, and to the proxy of the environment as it came. Headers that concern one connection are not passed on, in
//! either direction; the others keep the way in which they are written. `Via` is not added, as servers answer without compression then.
//!
//! Leaves out `Upgrade`: clients open WebSockets through a proxy by CONNECT.

use std::{
    convert::Infallible,
    io::Cursor,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_TYPE, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE},
    uri::PathAndQuery,
};
use http_body_util::{Either, Full};
use hyper::{
    body::Incoming, client::conn::http1::Builder as Client, server::conn::http1::Builder, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncReadExt, net::TcpStream, task::JoinSet, time::timeout};
use tracing::debug;

use super::{
    opening::{MAX_HEADERS, is_host},
    refusal::Refusal,
    serve::HEAD_LIMIT,
    ways::{LOCAL_LIMIT, Ways},
};
use crate::cluster::Destination;

/// Most bytes of a request's head. Cookies of internal pages are long.
const MAX_HEAD_LEN: usize = 64 << 10;

const HTTP_PORT: u16 = 80;

/// Headers that concern one connection, besides those that `Connection` names. Source: RFC 9110, section 7.6.1.
const OF_CONNECTION: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

type Body = Either<Incoming, Full<Bytes>>;

/// Connections that answers come by.
type Connections = Mutex<JoinSet<()>>;

/// Serves a client whose first request has begun with `early`.
pub(super) async fn serve(client: TcpStream, early: Bytes, ways: &Ways) {
    let (read, write) = client.into_split();
    let io = TokioIo::new(tokio::io::join(Cursor::new(early).chain(read), write));
    let connections = Connections::default();
    let service = service_fn(|request| {
        let connections = &connections;
        async move { Ok::<_, Infallible>(answer(request, ways, connections).await) }
    });
    let mut builder = Builder::new();
    builder
        .timer(TokioTimer::new())
        .preserve_header_case(true)
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(MAX_HEAD_LEN)
        .max_headers(2 * MAX_HEADERS);
    if let Err(error) = builder.serve_connection(io, service).await {
        debug!(%error, "a client of plain HTTP has ended");
    }
}

async fn answer(request: Request<Incoming>, ways: &Ways, connections: &Connections) -> Response<Body> {
    match relay(request, ways, connections).await {
        Ok(answer) => answer.map(Either::Left),
        Err(refusal) => {
            tracing::info!(%refusal, "the proxy refused a request");
            ways.counts.note_refused();
            refused(&refusal)
        }
    }
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let mut answer = Response::new(Either::Right(Full::from(format!("{refusal}\n"))));
    *answer.status_mut() = StatusCode::from_u16(refusal.status().0).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // What follows may be anything.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// Has a request answered by whom it is for.
async fn relay(
    mut request: Request<Incoming>,
    ways: &Ways,
    connections: &Connections,
) -> Result<Response<Incoming>, Refusal> {
    let (to, host) = target(request.uri())?;
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Refusal::Elsewhere { endpoint: to.clone(), source };
    let hop = ways.connect_plain(to.clone()).await?;
    without_connection(request.headers_mut());
    request.headers_mut().insert(HOST, host);
    *request.version_mut() = Version::HTTP_11;
    match &hop.proxy {
        Some(proxy) => {
            let authorization = proxy.authorization.clone().map(|value| (PROXY_AUTHORIZATION, value));
            request.headers_mut().extend(authorization);
        }
        None => {
            let path = request.uri().path_and_query().cloned();
            *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        }
    }
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let shaken =
        timeout(LOCAL_LIMIT, Client::new().preserve_header_case(true).handshake(TokioIo::new(hop.connection))).await;
    let (mut sender, connection) = shaken.map_err(|late| failed(late.into()))?.map_err(|error| failed(error.into()))?;
    {
        let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            // What goes wrong is told to whoever reads the answer.
            if let Err(error) = connection.await {
                debug!(%error, "a connection for plain HTTP has broken");
            }
        });
    }
    let mut answer = sender.send_request(request).await.map_err(|error| failed(error.into()))?;
    if let Some(proxy) = hop.proxy.filter(|_| answer.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED) {
        // The client is not asked for what another proxy wants of this one.
        return Err(failed(proxy.refusal.into()));
    }
    without_connection(answer.headers_mut());
    Ok(answer)
}

/// Reads where a request leads, and what it has to say of its host.
fn target(uri: &Uri) -> Result<(Destination, HeaderValue), Refusal> {
    match uri.scheme_str() {
        Some("http") => {}
        Some(_) => return Err(Refusal::Scheme),
        None => return Err(Refusal::NotForProxy),
    }
    // A user name in it is of no use to whom it is for.
    let host = uri.host().ok_or(Refusal::Target)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let port = uri.port_u16();
    let written = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let port = port.unwrap_or(HTTP_PORT);
    if !is_host(bare) || port == 0 {
        return Err(Refusal::Target);
    }
    let header = HeaderValue::try_from(written).map_err(|_| Refusal::Target)?;
    Ok((Destination { host: bare.to_owned(), port }, header))
}

/// Takes away what concerns the connection that it came by.
fn without_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&OF_CONNECTION) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_urls_of_plain_http_are_taken_and_nothing_else() {
        for (uri, to, host) in [
            ("http://wiki.internal/", "wiki.internal:80", "wiki.internal"),
            ("http://wiki.internal:8080/a?b", "wiki.internal:8080", "wiki.internal:8080"),
            ("http://[fd00::5]:81/", "[fd00::5]:81", "[fd00::5]:81"),
            ("http://ann:pw@wiki.internal/", "wiki.internal:80", "wiki.internal"),
        ] {
            let (found, header) = target(&uri.parse().unwrap()).unwrap();
            assert_eq!((found.to_string().as_str(), header.to_str().unwrap()), (to, host));
        }
        let refused = |uri: &str| target(&uri.parse().unwrap()).unwrap_err();
        assert!(matches!(refused("https://wiki.internal/"), Refusal::Scheme));
        assert!(matches!(refused("/"), Refusal::NotForProxy));
        assert!(matches!(refused("*"), Refusal::NotForProxy));
        assert!(matches!(refused("http://a:0/"), Refusal::Target));
    }

    #[test]
    fn what_concerns_a_connection_stays_there() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "X-One, close"),
            ("connection", "x-two"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("proxy-authorization", "Basic c2VjcmV0"),
            ("proxy-connection", "keep-alive"),
            ("upgrade", "websocket"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        without_connection(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-three"]);
    }
}
