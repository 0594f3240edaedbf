//! The upstream: a request on one of its connections, HTTP/1.1 over plain or rustls TLS, and on
//! another while nothing of it was written.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use tokio::time::Instant;

use crate::admission::permit::Permit;
use crate::config::process::Upstream as Settings;
use crate::gateway::connect::{Connector, SetupError};
use crate::gateway::exchange::{Bounds, Exchange, Failed};
use crate::gateway::h1::head::Malformed;
use crate::gateway::pool::{Connection, Pool, Taken};
use crate::gateway::sending::Message;
use crate::gateway::tls::Complaints;

/// How a request is to be sent.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// It can be made once only: not on a connection that may be closed.
    pub once: bool,
    /// Only a head is asked for.
    pub to_head: bool,
    /// The longest wait for its answer.
    pub patience: Duration,
    /// The longest time from its last byte to its arrival.
    pub margin: Duration,
}

/// Tries on connections that turn out closed before a byte was written, the first included.
const TRIES: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("the upstream cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
    #[error("the upstream broke off: {0}")]
    Broke(Cow<'static, str>),
    #[error(transparent)]
    TooSlow(#[from] TooSlow),
}

impl UpstreamError {
    /// Its connection failed, or what it said cannot be understood.
    pub fn broke(why: &impl ToString) -> Self {
        UpstreamError::Broke(why.to_string().into())
    }
}

impl From<Malformed> for UpstreamError {
    fn from(malformed: Malformed) -> Self {
        UpstreamError::broke(&malformed)
    }
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
    pool: Arc<Pool>,
    /// Connections of a higher age are not used again.
    oldest: Duration,
    /// The longest it may take nothing of a request.
    stall: Duration,
}

impl Upstream {
    /// # Errors
    /// [`SetupError`]: it could never be reached as configured.
    pub fn new(settings: &Settings, complaints: Complaints) -> Result<Self, SetupError> {
        Ok(Self {
            shared: Arc::new(Shared {
                connector: Connector::new(settings, complaints)?,
                pool: Arc::default(),
                oldest: settings.max_connection_age,
                stall: settings.idle_timeout,
            }),
        })
    }

    /// Sends one request, `now` as the clock stands, and waits for the head of its answer, `patience`
    /// from when it was sent whole; what there is to come behind it is in `exchange` then. `request`
    /// makes it in the memory it is given, once there is a connection for it, and none once it returns
    /// `None`; it goes on another connection only while nothing was written. `how`: what else is to be
    /// known of it.
    ///
    /// # Errors
    /// [`UpstreamError`]: there is no answer. The permit has gone back.
    pub async fn send(
        &self,
        exchange: &mut Option<Exchange>,
        mut permit: Permit,
        request: impl FnOnce(Vec<u8>) -> Option<Message>,
        how: How,
        now: Instant,
    ) -> Result<Response<()>, UpstreamError> {
        let mut last = UpstreamError::Broke("no try was left".into());
        let mut request = Some(request);
        let mut unsent = None;
        for attempt in 1..=TRIES {
            // The last try is on a fresh connection: a whole pool may have been closed at once.
            let kept = match attempt < TRIES {
                true => self.shared.pool.take(how.once, now),
                false => None,
            };
            let taken = match kept {
                Some(taken) => taken,
                // In a box: every request's way would have room for it, and few dial.
                None => Box::pin(self.shared.connect()).await?,
            };
            let Taken {
                mut connection,
                distrusted,
            } = taken;
            let message = unsent.take().or_else(|| {
                let spare = std::mem::take(&mut connection.head);
                request.take().and_then(|make| make(spare))
            });
            let Some(message) = message else {
                return Err(last);
            };
            let pool = self.shared.pool.clone();
            // Where it stays: it is large.
            let begun = Exchange::new(connection, permit, message, distrusted, pool);
            let begun = exchange.insert(begun);
            let bounds = Bounds {
                patience: how.patience,
                stall: self.shared.stall,
                margin: how.margin,
            };
            match begun.head(how.to_head, bounds).await {
                Ok(response) => return Ok(response),
                Err(Failed::Late(late)) => {
                    *exchange = None;
                    return Err(late.into());
                }
                Err(Failed::Connection(error)) => last = error,
            }
            match exchange.take().and_then(Exchange::unwritten) {
                Some((unused, message)) => (permit, unsent) = (unused, Some(message)),
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
        Ok(Taken {
            connection: Connection::new(stream, self.oldest),
            distrusted: false,
        })
    }
}
