//! Questions to an API server over a connection that is there already: is it well, who am I, may I list pods.
//!
//! Leaves out everything else of HTTP and Kubernetes: one connection, one request at a time, small answers.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use crate::{cluster::Cluster, secret::Secret, util::peer_text::PeerText};

/// Longest answer that is read, in bytes. Those to these questions have a few hundred.
const MAX_ANSWER_LEN: usize = 64 << 10;

/// Why there is no answer, or none that says what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The connection broke, or what came is not HTTP.
    #[error("the connection to the API server broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There was no answer in time.
    #[error("the API server did not answer within {seconds} s")]
    NoAnswer {
        /// The limit, in seconds.
        seconds: u64,
    },
    /// It does not answer the question.
    #[error("the API server answered with status {status}: {said}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words, or the start of its answer.
        said: PeerText,
    },
}

/// Who the caller is to the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: PeerText,
    /// The groups, in the server's order.
    pub groups: Vec<PeerText>,
}

/// A connection to an API server.
pub(super) struct Api<S: AsyncRead + AsyncWrite + Unpin> {
    sender: SendRequest<Full<Bytes>>,
    connection: Connection<TokioIo<TlsStream<S>>, Full<Bytes>>,
    /// The connection has ended.
    ended: bool,
    host: String,
    /// `None`: questions are asked as nobody.
    authorization: Option<HeaderValue>,
    limit: Duration,
}

struct Answer {
    status: u16,
    body: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Api<S> {
    /// Takes a connection that is verified. Without a token questions are asked as nobody. `limit` is for each of them.
    pub(super) async fn over(
        tls: TlsStream<S>,
        cluster: &Cluster,
        token: Option<&Secret<String>>,
        limit: Duration,
    ) -> Result<Self, ApiError> {
        let broken = |error: header::InvalidHeaderValue| ApiError::Broken(error.into());
        let authorization = token.map(|token| HeaderValue::try_from(format!("Bearer {}", token.expose())));
        let mut authorization = authorization.transpose().map_err(broken)?;
        if let Some(authorization) = &mut authorization {
            authorization.set_sensitive(true);
        }
        let (sender, connection) =
            handshake(TokioIo::new(tls)).await.map_err(|error| ApiError::Broken(error.into()))?;
        Ok(Self { sender, connection, ended: false, host: cluster.endpoint.host.clone(), authorization, limit })
    }

    /// Asks whether the server is well, with the token if there is one: returns the HTTP status.
    pub(super) async fn livez(&mut self) -> Result<u16, ApiError> {
        Ok(self.request(Method::GET, "/livez", None).await?.status)
    }

    /// Asks who the caller is; `None`: the server is too old for the question.
    pub(super) async fn who_am_i(&mut self) -> Result<Option<User>, ApiError> {
        let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
        let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let answer = self.request(Method::POST, path, Some(&review)).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        let status = answer.review_status()?;
        let user = &status["userInfo"];
        let text = |value: &Value| value.as_str().map(PeerText::new).unwrap_or_default();
        let groups = user["groups"].as_array().map(|groups| groups.iter().map(text).collect()).unwrap_or_default();
        Ok(Some(User { name: text(&user["username"]), groups }))
    }

    /// Asks whether the caller may list pods in all namespaces.
    pub(super) async fn may_list_pods(&mut self) -> Result<bool, ApiError> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": { "verb": "list", "resource": "pods" } },
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = self.request(Method::POST, path, Some(&review)).await?;
        let status = answer.review_status()?;
        Ok(status["allowed"] == true)
    }

    async fn request(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, ApiError> {
        let limit = self.limit;
        match timeout(limit, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ApiError::NoAnswer { seconds: limit.as_secs() }),
        }
    }

    async fn exchange(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, ApiError> {
        if self.ended {
            return Err(ApiError::Broken("it has been closed".into()));
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(header::USER_AGENT, concat!("autoheal-pa/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "application/json, */*")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body.into())).map_err(|error| ApiError::Broken(error.into()))?;
        let sender = &mut self.sender;
        let mut answer = pin!(async move {
            let (head, body) = sender.send_request(request).await.map_err(|e| ApiError::Broken(e.into()))?.into_parts();
            let body = Limited::new(body, MAX_ANSWER_LEN).collect().await.map_err(ApiError::Broken)?.to_bytes();
            Ok(Answer { status: head.status.as_u16(), body })
        });
        // The connection moves nothing unless it is polled.
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            _outcome = &mut self.connection => self.ended = true,
        }
        // An error of the connection is that of the request as well.
        answer.await
    }
}

impl Answer {
    /// Returns the `status` of a review that was carried out.
    fn review_status(&self) -> Result<Value, ApiError> {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        if matches!(self.status, 200 | 201) && body["status"].is_object() {
            return Ok(body["status"].clone());
        }
        let said = body["message"].as_str().map_or_else(|| PeerText::from_bytes(&self.body), PeerText::new);
        Err(ApiError::Refused { status: self.status, said })
    }
}
