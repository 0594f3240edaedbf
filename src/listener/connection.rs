//! One client's connection, from its first byte to its last.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::{Service, ServiceBuilder};

use crate::config::process::Timeouts;
use crate::gateway::presence::{Caller, Socket};
use crate::gateway::recorded::Recorded;
use crate::gateway::stack::CatchPanic;
use crate::gateway::stream::{Plain, Stream};
use crate::gateway::{Gateway, linger};
use crate::listener::guarded::Guarded;
use crate::listener::heads::Heads;
use crate::listener::streams::{Streams, paced};
use crate::listener::version::{self, Version};
use crate::metrics::Metrics;
use crate::operation::Operation;
use crate::outcome::Outcome;

/// Bytes of a request's head, its line included, and of what HTTP/1 holds to be written. Larger
/// heads are answered 431.
const HEAD: u32 = 64 * 1024;
/// Requests at once on one HTTP/2 connection, as RFC 9113, section 6.5.2 recommends at least.
const STREAMS: u32 = 100;
/// Bytes an HTTP/2 client may send of one body before they are read.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same of all bodies on one connection: what it can make us hold that no buffer accounts for.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of one stream's answer kept to be sent.
const SEND_BUFFER: usize = 64 * 1024;
/// Once nothing new is to be taken, a connection that nothing is under way on is kept for so long:
/// its client may have sent a request before it could know.
const LAST_CALL: Duration = Duration::from_secs(1);
const TOO_LATE: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What one connection is served with.
pub struct Connection {
    pub gateway: Gateway,
    pub metrics: Metrics,
    pub timeouts: Timeouts,
    /// Turns true when nothing new is to be taken.
    pub closing: watch::Receiver<bool>,
}

impl Connection {
    /// Serves until the client or a timeout ends it, or, once nothing new is to be taken, what is
    /// under way has ended.
    pub async fn serve(
        mut self,
        stream: Plain,
        peer: Option<IpAddr>,
        tls: Option<Arc<ServerConfig>>,
    ) {
        let connected = now();
        let opened = async {
            match tls {
                None => open(stream).await,
                // Few listeners have it, and every connection's task would have room for it.
                Some(tls) => Box::pin(open_tls(stream, tls)).await,
            }
        };
        let opened = tokio::select! {
            opened = timeout(self.timeouts.header, opened) => opened,
            () = last_call(&mut self.closing) => return,
        };
        // It never said anything, or nothing that can be understood.
        let Ok(Ok((version, stream))) = opened else {
            return;
        };
        let says_its_end = stream.is_tls();
        let (caller, socket) = Caller::new(peer, stream, version == Version::Http1);
        let connected_to = says_its_end.then(|| caller.clone());
        let served = match version {
            Version::Http1 => self.http1(caller, socket, connected).await,
            Version::Http2 => self.http2(caller, socket).await,
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a client's connection ended badly");
        }
        if let Some(caller) = connected_to {
            // hyper says it only where all went well. Closed without a word is taken for cut.
            let _ = timeout(LAST_CALL, poll_fn(|cx| caller.poll_end(cx))).await;
        }
    }

    async fn http1(
        self,
        caller: Caller,
        socket: Socket,
        connected: Instant,
    ) -> Result<(), hyper::Error> {
        let Self {
            gateway,
            metrics,
            timeouts,
            mut closing,
        } = self;
        let heads = Heads::new(timeouts.header, timeouts.keep_alive, connected);
        let io = Guarded::new(socket, timeouts.write, Some(heads.clone()));
        let begins = Begins::new(&closing);
        // Each request has the whole for the price of one count.
        let serving = Arc::new((gateway, caller.clone(), begins.clone()));
        let forward = move |request: Request<Incoming>| {
            let serving = serving.clone();
            async move {
                let (gateway, caller, begins) = &*serving;
                let mut response = gateway.forward(request, caller).await;
                if begins.has() {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(response)
            }
        };
        let answered = heads.clone();
        let stack = ServiceBuilder::new()
            .map_response(|response: Response<Recorded>| {
                response.map(|body| UnderWay {
                    body,
                    heads: answered,
                })
            })
            .layer(CatchPanic)
            .service_fn(forward);
        let read = heads.clone();
        let service = service_fn(move |request| {
            read.is_read();
            stack.clone().call(request)
        });
        let ended = {
            let mut served = pin!(
                http1::Builder::new()
                    .half_close(caller.is_asked())
                    .max_header_size(HEAD as usize)
                    .max_buf_size(HEAD as usize)
                    .serve_connection(TokioIo::new(io), service)
            );
            let mut last_call = pin!(last_call_of(&caller, &mut closing));
            let mut watched: Option<Waker> = None;
            let mut ending = false;
            poll_fn(|cx| {
                loop {
                    if let Poll::Ready(ended) = served.as_mut().poll(cx) {
                        return Poll::Ready(Ended::Served(ended));
                    }
                    if heads.poll_late(cx).is_ready() {
                        return Poll::Ready(Ended::Late);
                    }
                    // Until it begins there is nothing to ask: whom it wakes then, it knows.
                    let knows = watched
                        .as_ref()
                        .is_some_and(|who| who.will_wake(cx.waker()));
                    if ending || knows && !begins.has() {
                        return Poll::Pending;
                    }
                    watched = Some(cx.waker().clone());
                    ready!(last_call.as_mut().poll(cx));
                    ending = true;
                    served.as_mut().graceful_shutdown();
                }
            })
            .await
        };
        let ended = match ended {
            Ended::Served(ended) => ended,
            Ended::Late => {
                if heads.are_owed_an_answer() {
                    caller.write_last(TOO_LATE);
                }
                tracing::debug!("a client's next request was waited for in vain");
                Ok(())
            }
        };
        // hyper has answered what it could not read by itself.
        let unreadable = ended.as_ref().is_err_and(hyper::Error::is_parse);
        if unreadable {
            let other = metrics.other();
            other.ended(Operation::Other, Outcome::BadRequest);
        }
        if unreadable || caller.is_left_unread() {
            linger::connection(&caller).await;
        }
        ended
    }

    async fn http2(self, caller: Caller, socket: Socket) -> Result<(), hyper::Error> {
        let Self {
            gateway,
            timeouts,
            mut closing,
            ..
        } = self;
        let streams = Streams::new(timeouts.write);
        let io = Guarded::new(socket, timeouts.write, None);
        let serving = Arc::new((gateway, caller));
        let forward = move |request: Request<Incoming>| {
            let serving = serving.clone();
            async move {
                let (gateway, caller) = &*serving;
                Ok::<_, Infallible>(gateway.forward(request, caller).await)
            }
        };
        let stack = ServiceBuilder::new()
            .map_response(paced::<Recorded>)
            .layer(CatchPanic)
            .service_fn(forward);
        let service = service_fn(move |request| stack.clone().call(request));
        // Both reset limits stay at their defaults.
        let mut served = pin!(
            http2::Builder::new(streams.clone())
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS)
                .max_header_list_size(HEAD)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(SEND_BUFFER)
                .keep_alive_interval(timeouts.keep_alive / 3)
                .keep_alive_timeout(timeouts.header)
                .serve_connection(TokioIo::new(io), service)
        );
        tokio::select! {
            ended = served.as_mut() => return ended,
            () = closed(&mut closing) => {}
            () = streams.idle(timeouts.keep_alive) => {}
            () = streams.flooded() => {}
        }
        // What is under way ends; a client that goes on as before is cut.
        served.as_mut().graceful_shutdown();
        tokio::select! {
            ended = served.as_mut() => ended,
            () = streams.flooded() => Ok(()),
            () = async {
                sleep(timeouts.header).await;
                streams.idle(timeouts.header).await;
            } => Ok(()),
        }
    }
}

/// How an HTTP/1 connection ended.
enum Ended {
    Served(Result<(), hyper::Error>),
    /// The next head did not come in time.
    Late,
}

/// An answer's body. Once it is over, its connection waits for the next head.
struct UnderWay {
    body: Recorded,
    heads: Heads,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let at = self.body.close();
        self.heads.is_answered(at.unwrap_or_else(now));
    }
}

impl Body for UnderWay {
    type Data = <Recorded as Body>::Data;
    type Error = <Recorded as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether the end of a connection has begun, for who asks often: to read a `watch` is to write to
/// what all threads share, to ask whether it has changed is not.
#[derive(Clone)]
struct Begins {
    from_the_start: bool,
    closing: watch::Receiver<bool>,
}

impl Begins {
    fn new(closing: &watch::Receiver<bool>) -> Self {
        let mut closing = closing.clone();
        let from_the_start = *closing.borrow_and_update();
        Self {
            from_the_start,
            closing,
        }
    }

    /// It only ever changes once. If nobody could say so any more, that says it too.
    fn has(&self) -> bool {
        self.from_the_start || self.closing.has_changed().unwrap_or(true)
    }
}

async fn open(stream: Plain) -> io::Result<(Version, Stream)> {
    let version = version::of(&stream).await?;
    Ok((version, Stream::Plain(stream)))
}

async fn open_tls(stream: Plain, tls: Arc<ServerConfig>) -> io::Result<(Version, Stream)> {
    let accepted = TlsAcceptor::from(tls).accept(stream).await;
    let accepted = accepted.inspect_err(|error| {
        tracing::debug!(%error, "a client and podgate could not agree on TLS");
    })?;
    let mut stream = Stream::tls(accepted);
    let version = match &mut stream {
        Stream::Tls(tls) => version::of_tls(tls).await?,
        Stream::Plain(plain) => version::of(plain).await?,
    };
    Ok((version, stream))
}

/// Returns once nothing new is to be taken.
pub async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error means that whoever could say so is gone, which says it as well.
    drop(closing.wait_for(|&closing| closing).await);
}

async fn last_call(closing: &mut watch::Receiver<bool>) {
    closed(closing).await;
    sleep(LAST_CALL).await;
}

/// The same, and what `caller` has sent until then is read.
async fn last_call_of(caller: &Caller, closing: &mut watch::Receiver<bool>) {
    last_call(closing).await;
    let read = async {
        while caller.has_unread() {
            sleep(LAST_CALL / 100).await;
        }
    };
    // What is unread behind a request that is under way may stay so: there is an answer to close with.
    let _ = timeout(LAST_CALL, read).await;
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long heads take is timed here"
)]
fn now() -> Instant {
    Instant::now()
}
