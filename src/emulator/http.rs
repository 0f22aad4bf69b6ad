//! HTTP/1.1 serving, and the shapes of answers.

use std::{convert::Infallible, future::Future};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{Request, body::Incoming, http::request, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::clock::Clock;

/// Largest request body, in bytes.
const MAX_BODY_LEN: usize = 1 << 20;

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;
pub(super) type Response = hyper::Response<Body>;

/// A request with its whole body.
pub(super) struct FullRequest {
    pub(super) head: request::Parts,
    pub(super) body: Bytes,
}

impl FullRequest {
    pub(super) fn path(&self) -> &str {
        self.head.uri.path()
    }

    pub(super) fn query(&self) -> &str {
        self.head.uri.query().unwrap_or_default()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Serves one connection until it ends or `stop` is cancelled. Answers have the date of `clock`.
pub(super) async fn serve<S, F, A>(connection: S, stop: CancellationToken, clock: &Clock, answer: F)
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
    F: Fn(FullRequest) -> A,
    A: Future<Output = Response>,
{
    let answer = &answer;
    let service = service_fn(move |request: Request<Incoming>| async move {
        let (head, body) = request.into_parts();
        let mut response = match Limited::new(body, MAX_BODY_LEN).collect().await {
            Ok(body) => answer(FullRequest { head, body: body.to_bytes() }).await,
            Err(error) => text(413, format!("the body cannot be read: {error}")),
        };
        clock.stamp(response.headers_mut());
        Ok::<_, Infallible>(response)
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(connection), service);
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        outcome = connection => {
            if let Err(error) = outcome {
                tracing::debug!(%error, "an HTTP connection ended early");
            }
        }
    }
}

/// An answer with a body that is known.
pub(super) fn response(status: u16, content_type: &str, body: impl Into<Bytes>) -> Response {
    with_body(status, content_type, Full::new(body.into()).boxed_unsync())
}

/// An answer with any body.
pub(super) fn with_body(status: u16, content_type: &str, body: Body) -> Response {
    let mut response = hyper::Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert(hyper::header::CONTENT_TYPE, value);
    }
    response
}

pub(super) fn json(status: u16, value: &Value) -> Response {
    response(status, "application/json", value.to_string())
}

pub(super) fn text(status: u16, text: impl Into<Bytes>) -> Response {
    response(status, "text/plain; charset=utf-8", text)
}
