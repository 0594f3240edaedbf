//! The upstream: one exchange on one of its connections, HTTP/1.1 over plain or rustls TLS. Tells
//! the permit when the request has arrived, or that it never left.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep_until};

use crate::admission::permit::Permit;
use crate::config::process::Upstream as Settings;
use crate::gateway::body::Outgoing;
use crate::gateway::connect::{Connector, SetupError};
use crate::gateway::pool::{Connection, Pool, Taken};
use crate::gateway::tls::Complaints;
use crate::gateway::wire::{Sending, Watched, Wire};

/// Tries on connections that turn out closed before a byte was written, the first included.
const TRIES: usize = 4;
/// The largest head of an answer, in bytes; and what is read ahead of whoever takes it.
const LARGEST_HEAD: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("the upstream cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
    #[error("the upstream broke off: {0}")]
    Broke(String),
    #[error(transparent)]
    TooSlow(#[from] TooSlow),
}

/// What the upstream took too long for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooSlow {
    #[error("the upstream did not answer within {0:?}")]
    Head(Duration),
    #[error("the upstream's answer was not whole after {0:?}")]
    Body(Duration),
    #[error("the upstream took nothing more of the request for {0:?}")]
    Request(Duration),
}

/// The connections of one worker. Cheap to clone.
#[derive(Clone)]
pub struct Upstream {
    shared: Arc<Shared>,
}

struct Shared {
    connector: Connector,
    pool: Pool,
    /// The longest it may take nothing of a request.
    stall: Duration,
}

/// One request on one connection. Dropped before it is complete it is torn down, and the permit
/// goes back as that demands.
pub struct Exchange {
    connection: Option<Connection>,
    /// Its request is larger than what is held here, and maybe than what the upstream has read.
    streamed: bool,
    last: bool,
    shared: Arc<Shared>,
}

/// Why there is no head.
enum Failed {
    /// The request, if nothing of it was looked at.
    Connection(Box<TrySendError<Request<Outgoing>>>),
    Late(TooSlow),
}

impl Upstream {
    /// # Errors
    /// [`SetupError`]: it could never be reached as configured.
    pub fn new(settings: &Settings, complaints: Complaints) -> Result<Self, SetupError> {
        Ok(Self {
            shared: Arc::new(Shared {
                connector: Connector::new(settings, complaints)?,
                pool: Pool::new(settings.max_connection_age),
                stall: settings.idle_timeout,
            }),
        })
    }

    /// Sends one request and waits for the head of its answer, `patience` from when it was sent
    /// whole. `request` makes it, once there is a connection for it and anew for each try; there is
    /// another only while nothing was written, and none once it returns `None`. `once`: it can be
    /// made once only.
    ///
    /// # Errors
    /// [`UpstreamError`]: there is no answer. The permit has gone back.
    pub async fn send(
        &self,
        mut permit: Permit,
        mut request: impl FnMut() -> Option<Request<Outgoing>>,
        once: bool,
        patience: Duration,
    ) -> Result<(Response<Incoming>, Exchange), UpstreamError> {
        let mut last = UpstreamError::Broke("no try was left".into());
        let mut unsent = None;
        for attempt in 1..=TRIES {
            // The last try is on a fresh connection: a whole pool may have been closed at once.
            let kept = match attempt < TRIES {
                true => self.shared.pool.take(once),
                false => None,
            };
            let taken = match kept {
                Some(taken) => taken,
                None => self.shared.connect().await?,
            };
            let Some(request) = unsent.take().or_else(&mut request) else {
                return Err(last);
            };
            let mut exchange = Exchange {
                connection: Some(taken.connection),
                streamed: once,
                last: false,
                shared: self.shared.clone(),
            };
            let sent = exchange.send(permit, request, taken.distrusted, patience);
            match sent.await {
                Ok(response) => return Ok((response, exchange)),
                Err(Failed::Late(late)) => return Err(late.into()),
                Err(Failed::Connection(mut failed)) => {
                    unsent = failed.take_message();
                    last = UpstreamError::Broke(describe(failed.error()));
                }
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
        self.shared.pool.len()
    }
}

impl Shared {
    async fn connect(&self) -> io::Result<Taken> {
        let stream = self.connector.connect().await?;
        let wire = Arc::new(Wire::default());
        let io = TokioIo::new(Watched::new(stream, wire.clone()));
        let (sender, connection) = http1::Builder::new()
            .max_header_size(LARGEST_HEAD)
            .max_buf_size(LARGEST_HEAD)
            .handshake(io)
            .await
            .map_err(io::Error::other)?;
        // Its errors reach the exchange that uses it; between exchanges they only end it.
        let task = tokio::spawn(async move { drop(connection.await) });
        Ok(Taken {
            connection: Connection::new(sender, wire, task.abort_handle()),
            distrusted: false,
        })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long the upstream takes is timed here"
)]
fn now() -> Instant {
    Instant::now()
}

/// An error with what lies beneath it: hyper's own words seldom say why.
pub fn describe(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// When to look again whether the head is late, of a request that has come so far; or that it is.
fn due(
    sending: Sending,
    patience: Duration,
    stall: Duration,
    now: Instant,
) -> Result<Instant, TooSlow> {
    let stall = stall.min(patience);
    let (due, late) = match sending {
        // Whoever sends it to us has bounds of its own.
        Sending::Going => return Ok(now + stall),
        Sending::Blocked(since) => (since + stall, TooSlow::Request(stall)),
        Sending::Sent(at) => (at + patience, TooSlow::Head(patience)),
    };
    if due > now { Ok(due) } else { Err(late) }
}

impl Exchange {
    async fn send(
        &mut self,
        permit: Permit,
        request: Request<Outgoing>,
        distrusted: bool,
        patience: Duration,
    ) -> Result<Response<Incoming>, Failed> {
        let Some(Connection { sender, wire, .. }) = &mut self.connection else {
            unreachable!("an exchange has its connection until it is over")
        };
        let bodiless = http_body::Body::is_end_stream(request.body());
        wire.begin(permit, bodiless, distrusted);
        let stall = self.shared.stall;
        let request = request.map(|body| body.on(wire.clone()));
        let head = sender.try_send_request(request);
        let alarm = sleep_until(now() + stall.min(patience));
        tokio::pin!(head, alarm);
        loop {
            tokio::select! {
                biased;
                head = &mut head => {
                    return head.map_err(|failed| Failed::Connection(Box::new(failed)));
                }
                () = &mut alarm => {
                    let due = due(wire.sending(), patience, stall, now());
                    alarm.as_mut().reset(due.map_err(Failed::Late)?);
                }
            }
        }
    }

    /// The final response's head came, and it was no 429.
    pub fn answered(&mut self, status: StatusCode) {
        if let Some(connection) = &self.connection {
            connection.wire.answered();
        }
        // What was refused may lie unread between us, and the next request would lie behind it.
        let unread = self.streamed && !status.is_success();
        self.last |= unread || status == StatusCode::PAYLOAD_TOO_LARGE;
    }

    /// The final response's head came, and it was a 429.
    pub fn throttled(&self, retry_after: Option<Duration>) {
        if let Some(connection) = &self.connection {
            connection.wire.throttled(retry_after);
        }
    }

    /// Its connection carries no other: what the upstream says of the answer's length is in doubt.
    pub fn is_last(&mut self) {
        self.last = true;
    }

    /// The response's last byte was read.
    pub fn complete(mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        let whole = connection.wire.complete();
        if whole && !self.last {
            self.shared.pool.keep(connection);
        } else if !whole {
            // The rest of the request has nobody to read it.
            connection.task.abort();
        }
    }

    /// Torn down; returns the permit if nothing was written.
    fn give_up(mut self) -> Option<Permit> {
        self.tear_down()
    }

    fn tear_down(&mut self) -> Option<Permit> {
        let connection = self.connection.take()?;
        let unused = connection.wire.seal();
        connection.task.abort();
        unused
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        drop(self.tear_down());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_begins_when_the_request_was_sent_whole() {
        let seconds = Duration::from_secs;
        let began = now();
        let at = |second| began + seconds(second);
        let due = |sending, second| due(sending, seconds(30), seconds(60), at(second));
        assert_eq!(due(Sending::Going, 100), Ok(at(130)));
        assert_eq!(due(Sending::Sent(at(100)), 130 - 1), Ok(at(130)));
        let late = Err(TooSlow::Head(seconds(30)));
        assert_eq!(due(Sending::Sent(at(100)), 130), late);
        // Not taking it is not answering it: no more patience than for that.
        assert_eq!(due(Sending::Blocked(at(100)), 110), Ok(at(130)));
        let late = Err(TooSlow::Request(seconds(30)));
        assert_eq!(due(Sending::Blocked(at(100)), 131), late);
    }

    #[test]
    fn a_held_call_that_nobody_takes_is_no_held_call() {
        let seconds = Duration::from_secs;
        let began = now();
        let blocked = Sending::Blocked(began);
        let late = due(blocked, seconds(330), seconds(60), began + seconds(60));
        assert_eq!(late, Err(TooSlow::Request(seconds(60))));
    }
}
