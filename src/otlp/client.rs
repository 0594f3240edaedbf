//! What carries a batch to the collector: one exchange on a connection of its own, in the clear.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use parking_lot::Mutex;
use tokio::net::TcpStream;

/// Bytes of an answer that are read.
const ANSWER: usize = 64 << 10;

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    /// Why the last exchange failed: the exporter's own error does not say.
    why: Arc<Mutex<Option<String>>>,
}

impl Client {
    pub fn why(&self) -> Option<String> {
        self.why.lock().take()
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answered = exchange(request).await;
        *self.why.lock() = answered.as_ref().err().map(ToString::to_string);
        answered
    }
}

async fn exchange(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut head, body) = request.into_parts();
    let host = head.uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, head.uri.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the sender and the answer, and tells them what is wrong.
    tokio::spawn(connection);
    if let Some(authority) = head.uri.authority() {
        head.headers
            .insert(HOST, HeaderValue::try_from(authority.as_str())?);
    }
    let root = PathAndQuery::from_static("/");
    head.uri = Uri::from(head.uri.path_and_query().cloned().unwrap_or(root));
    let request = Request::from_parts(head, Full::new(body));
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
    Ok(Response::from_parts(head, body))
}
