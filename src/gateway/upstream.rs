//! The upstream: a pool of connections, HTTP/1.1 over plain or rustls TLS, and one exchange on one
//! of them. Tells the permit when the request has arrived, or that it never left.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::admission::permit::Permit;
use crate::config::process::{Scheme, Target, Upstream as Settings};
use crate::gateway::body::Outgoing;
use crate::gateway::tls::{self, TlsError};
use crate::gateway::wire::{Watched, Wire};

/// Tries on connections that turn out closed before a byte was written, the first included.
const TRIES: usize = 4;
/// Idle connections kept.
const KEPT: usize = 512;
/// How long one is kept; below the 90 s and more that servers keep theirs.
const KEPT_FOR: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("the upstream cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
    #[error("the upstream broke off: {0}")]
    Broke(String),
    #[error("the upstream did not answer within {0:?}")]
    TooSlow(Duration),
}

/// The connections of one worker. Cheap to clone.
#[derive(Clone)]
pub struct Upstream {
    shared: Arc<Shared>,
}

struct Shared {
    target: Target,
    connect_timeout: Duration,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    idle: Mutex<Vec<Idle>>,
}

struct Connection {
    sender: SendRequest<Outgoing>,
    wire: Arc<Wire>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// One request on one connection. Dropped before it is complete it is torn down, and the permit
/// goes back as that demands.
pub struct Exchange {
    connection: Option<Connection>,
    pool: Arc<Shared>,
}

impl Upstream {
    /// # Errors
    /// [`TlsError`]: a root certificate cannot be read, or the host is no name TLS knows.
    pub fn new(settings: &Settings) -> Result<Self, TlsError> {
        let tls = match settings.target.scheme {
            Scheme::Http => None,
            Scheme::Https => Some(tls::connector(&settings.target.host, &settings.trust_ca)?),
        };
        Ok(Self {
            shared: Arc::new(Shared {
                target: settings.target.clone(),
                connect_timeout: settings.connect_timeout,
                tls,
                idle: Mutex::default(),
            }),
        })
    }

    /// Sends one request and waits for the head of its answer. `request` makes it, anew for each
    /// try; there is another only while nothing was written, and none once it returns `None`.
    ///
    /// # Errors
    /// [`UpstreamError`]: there is no answer. The permit has gone back.
    pub async fn send(
        &self,
        mut permit: Permit,
        mut request: impl FnMut() -> Option<Request<Outgoing>>,
        patience: Duration,
    ) -> Result<(Response<Incoming>, Exchange), UpstreamError> {
        let mut last = UpstreamError::Broke("no try was left".into());
        for attempt in 0..TRIES {
            // The last try is on a fresh connection: a whole pool may have been closed at once.
            let kept = if attempt + 1 < TRIES {
                self.shared.take()
            } else {
                None
            };
            let connection = match kept {
                Some(connection) => connection,
                None => self.shared.connect().await?,
            };
            let Some(request) = request() else {
                return Err(last);
            };
            let mut exchange = Exchange {
                connection: Some(connection),
                pool: self.shared.clone(),
            };
            match timeout(patience, exchange.send(permit, request)).await {
                Ok(Ok(response)) => return Ok((response, exchange)),
                Ok(Err(error)) => last = UpstreamError::Broke(describe(&error)),
                Err(_) => return Err(UpstreamError::TooSlow(patience)),
            }
            match exchange.give_up() {
                Some(unused) => permit = unused,
                None => return Err(last),
            }
        }
        Err(last)
    }

    /// Idle connections now.
    pub fn idle(&self) -> usize {
        self.shared.idle.lock().len()
    }
}

impl Shared {
    /// The connection that was idle for the shortest time, if one is still good.
    fn take(&self) -> Option<Connection> {
        let now = now();
        let mut idle = self.idle.lock();
        while let Some(Idle { connection, since }) = idle.pop() {
            if now.saturating_duration_since(since) > KEPT_FOR {
                // Those below are older still.
                idle.clear();
                return None;
            }
            if connection.sender.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock();
        if idle.len() < KEPT {
            idle.push(Idle {
                connection,
                since: now(),
            });
        }
    }

    async fn connect(&self) -> io::Result<Connection> {
        let stream = timeout(self.connect_timeout, self.stream())
            .await
            .map_err(|_| {
                let what = format!("no connection within {:?}", self.connect_timeout);
                io::Error::new(io::ErrorKind::TimedOut, what)
            })??;
        let wire = Arc::new(Wire::default());
        let io = TokioIo::new(Watched::new(stream, wire.clone()));
        let (sender, connection) = http1::handshake(io).await.map_err(io::Error::other)?;
        // Its errors reach the exchange that uses it; between exchanges they only end it.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Connection { sender, wire })
    }

    async fn stream(&self) -> io::Result<Stream> {
        let tcp = TcpStream::connect((self.target.host.as_str(), self.target.port)).await?;
        tcp.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Stream::Plain(tcp)),
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), tcp).await?;
                Ok(Stream::Tls(Box::new(stream)))
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a connection is idle is timed here"
)]
fn now() -> Instant {
    Instant::now()
}

/// An error with what lies beneath it: hyper's own words seldom say why.
fn describe(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

impl Exchange {
    async fn send(
        &mut self,
        permit: Permit,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let Some(Connection { sender, wire }) = &mut self.connection else {
            unreachable!("an exchange has its connection until it is over")
        };
        wire.begin(permit, http_body::Body::is_end_stream(request.body()));
        let request = request.map(|body| body.on(wire.clone()));
        sender.send_request(request).await
    }

    /// The final response's head came, and it was no 429.
    pub fn answered(&self) {
        if let Some(connection) = &self.connection {
            connection.wire.answered();
        }
    }

    /// The final response's head came, and it was a 429.
    pub fn throttled(&self, retry_after: Option<Duration>) {
        if let Some(connection) = &self.connection {
            connection.wire.throttled(retry_after);
        }
    }

    /// The response's last byte was read.
    pub fn complete(mut self) {
        if let Some(connection) = self.connection.take()
            && connection.wire.complete()
        {
            self.pool.keep(connection);
        }
    }

    /// Torn down; returns the permit if nothing was written.
    fn give_up(mut self) -> Option<Permit> {
        self.connection.take()?.wire.seal()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(connection.wire.seal());
        }
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
