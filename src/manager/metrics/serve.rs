//! The page of metrics, for Prometheus to fetch: `GET /metrics`, and nothing else.
//!
//! Invariants: nothing can be changed by it, and no secret is in it, so that it answers programs of all users: Prometheus seldom
//! runs as the one whose clusters these are. On loopback it answers to no name but those of this machine, so that a page in a
//! browser cannot read it by a name that has been made to lead here. What a client can cost is bounded in connections, bytes
//! and time.

use std::{convert::Infallible, future::Future, net::IpAddr, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HOST},
};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1::Builder, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Format, text};
use crate::{manager::control::ManagerStatus, tunnel::Listeners};

/// Clients at a time. One Prometheus has one connection.
const MAX_CONNECTIONS: usize = 16;

/// Time for a request's head, and so how long a connection may say nothing.
const HEAD_LIMIT: Duration = Duration::from_secs(30);

/// Most bytes of a request's head.
const MAX_HEAD_LEN: usize = 16 << 10;

const PATH: &str = "/metrics";

/// Serves until it is told to stop.
pub(in crate::manager) async fn serve(
    mut listeners: Listeners,
    is_local: bool,
    status: impl Fn() -> ManagerStatus + Clone + Send + Sync + 'static,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next() => {}
            client = listeners.accept_tcp(), if connections.len() < MAX_CONNECTIONS => {
                let (status, stop) = (status.clone(), stop.clone());
                connections.spawn(async move { stop.run_until_cancelled(one(client, is_local, status)).await });
            }
        }
    }
    drop(listeners);
    while connections.join_next().await.is_some() {}
}

fn one(client: TcpStream, is_local: bool, status: impl Fn() -> ManagerStatus) -> impl Future<Output = ()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&request, is_local, &status);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut builder = Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(MAX_HEAD_LEN);
    let connection = builder.serve_connection(TokioIo::new(client), service);
    async move {
        if let Err(error) = connection.await {
            debug!(%error, "a client of the metrics has ended");
        }
    }
}

fn answer<B>(request: &Request<B>, is_local: bool, status: &impl Fn() -> ManagerStatus) -> Response<Full<Bytes>> {
    let header =
        |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let plain = |code, words: &str| {
        let mut answer = Response::new(Full::from(format!("{words}\n")));
        *answer.status_mut() = code;
        answer
    };
    if is_local && !is_this_machine(header(HOST)) {
        return plain(StatusCode::MISDIRECTED_REQUEST, "ask for `http://127.0.0.1:PORT/metrics`, or by `localhost`");
    }
    if request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND, "there is only `/metrics` here");
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "there is only GET here");
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    let format = Format::accepted(header(ACCEPT));
    let mut answer = Response::new(Full::from(text(&status(), format)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    answer
}

/// Tells whether the value of `Host` names this machine and nothing that could be another's.
fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
