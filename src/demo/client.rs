//! One caller's connection: HTTP/1.1, kept alive, made anew when it breaks.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What the official Python SDK allows a call.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Client {
    target: SocketAddr,
    authorization: String,
    sender: Option<SendRequest<Full<Bytes>>>,
}

pub struct Reply {
    pub status: StatusCode,
    pub retry_after: Option<Duration>,
    pub body: Bytes,
}

impl Client {
    pub fn new(target: SocketAddr, key: &str) -> Self {
        Self {
            target,
            authorization: format!("Bearer {key}"),
            sender: None,
        }
    }

    /// One call, on the kept connection if it still is one.
    pub async fn call(&mut self, method: Method, path: &str, body: &str) -> io::Result<Reply> {
        match timeout(PATIENCE, self.attempt(method, path, body)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => {
                self.sender = None;
                Err(error)
            }
            Err(_) => {
                self.sender = None;
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }

    async fn attempt(&mut self, method: Method, path: &str, body: &str) -> io::Result<Reply> {
        let kept = self.sender.take().filter(SendRequest::is_ready);
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.target.to_string())
            .header(AUTHORIZATION, &self.authorization)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_owned()))
            .map_err(io::Error::other)?;
        let response = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let (head, incoming) = response.into_parts();
        let body = incoming
            .collect()
            .await
            .map_err(io::Error::other)?
            .to_bytes();
        self.sender = Some(sender);
        let seconds = head
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Reply {
            status: head.status,
            retry_after: seconds.map(Duration::from_secs),
            body,
        })
    }

    async fn connect(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.target).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}
