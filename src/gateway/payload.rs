//! The request's body: refused before a byte is read where its size is declared, held up to a
//! bound before a permit is asked for, streamed beyond it and cut where it passes its limit.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::process::{Buffers, Timeouts};
use crate::gateway::body::Outgoing;

/// The rest of a refused upload is read and thrown away for this long at most, or a reset would
/// swallow the answer.
const LINGER: Duration = Duration::from_secs(20);
/// And no longer than this without progress.
const LINGER_IDLE: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    #[error("the body is larger than the {limit} bytes this operation takes")]
    TooLarge { limit: u64 },
    #[error("the body did not come in time")]
    TooSlow,
    #[error("the body breaks its framing: {0}")]
    Malformed(String),
}

/// What one request may send, and how long it may take.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub max_body: u64,
    pub buffers: Buffers,
    pub timeouts: Timeouts,
}

/// Bytes held in the whole process, and the gauge that shows them.
#[derive(Clone, Debug)]
pub struct Budget {
    held: Arc<AtomicU64>,
    shown: IntGauge,
}

impl Budget {
    /// Nothing is held yet.
    pub fn new(shown: IntGauge) -> Self {
        Self {
            held: Arc::default(),
            shown,
        }
    }

    fn hold(&self, bytes: u64, total: u64) -> Option<Held> {
        let room = |held: u64| held.checked_add(bytes).filter(|&held| held <= total);
        self.held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, room)
            .ok()?;
        self.shown.add(gauged(bytes));
        Some(Held {
            budget: self.clone(),
            bytes,
        })
    }

    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

fn gauged(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
pub struct Held {
    budget: Budget,
    bytes: u64,
}

impl Held {
    /// No share yet.
    pub fn nothing(budget: &Budget) -> Self {
        Self {
            budget: budget.clone(),
            bytes: 0,
        }
    }

    /// Takes `bytes` more, if not more than `total` are held then.
    pub fn grow(&mut self, bytes: u64, total: u64) -> bool {
        let more = self.budget.hold(bytes, total);
        more.is_some_and(|mut more| {
            self.bytes += std::mem::take(&mut more.bytes);
            true
        })
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.shown.sub(gauged(self.bytes));
    }
}

/// Where a body that is being sent on leaves word of what was wrong with it.
#[derive(Clone, Default)]
pub struct Fault(Arc<Mutex<Option<PayloadError>>>);

/// A body as far as it was read before anything else happened.
pub enum Payload {
    /// All of it. Can be sent as often as needed.
    Held { bytes: Bytes, _held: Option<Held> },
    /// More is on its way. Can be sent once.
    Streamed {
        upload: Option<Upload>,
        fault: Fault,
    },
}

impl Payload {
    /// The body to send; `None` if it was streamed already.
    pub fn outgoing(&mut self) -> Option<Outgoing> {
        match self {
            Payload::Held { bytes, .. } => Some(Outgoing::held(bytes.clone())),
            Payload::Streamed { upload, .. } => upload.take().map(Outgoing::streamed),
        }
    }

    /// Whether it can be sent once only.
    pub fn is_streamed(&self) -> bool {
        matches!(self, Payload::Streamed { .. })
    }

    /// Bytes of it that are held here.
    pub fn held(&self) -> u64 {
        match self {
            Payload::Held { bytes, .. } => bytes.len() as u64,
            Payload::Streamed { upload, .. } => upload
                .as_ref()
                .and_then(|upload| upload.first.as_ref())
                .map_or(0, |first| first.len() as u64),
        }
    }

    /// What was wrong with a body that was being sent on: the upstream is not to blame for it.
    pub fn fault(&self) -> Option<PayloadError> {
        match self {
            Payload::Held { .. } => None,
            Payload::Streamed { fault, .. } => fault.0.lock().take(),
        }
    }
}

/// Reads a body as far as it is held.
///
/// # Errors
/// [`PayloadError`]: then the rest is read and thrown away within bounds.
pub async fn receive(
    mut incoming: Incoming,
    terms: &Terms,
    budget: &Budget,
) -> Result<Payload, PayloadError> {
    let declared = incoming.size_hint().exact();
    if declared.is_some_and(|length| length > terms.max_body) {
        linger(incoming);
        return Err(PayloadError::TooLarge {
            limit: terms.max_body,
        });
    }
    if incoming.is_end_stream() {
        return Ok(Payload::Held {
            bytes: Bytes::new(),
            _held: None,
        });
    }
    // A body of unknown length is held to its end, so that it can be declared upstream.
    let wanted = declared.map_or(terms.max_body, |length| {
        length.min(terms.buffers.per_request)
    });
    let held = budget.hold(wanted, terms.buffers.total);
    let enough = match (declared, &held) {
        (_, None) => 0,
        (Some(_), Some(_)) => wanted,
        (None, Some(_)) => u64::MAX,
    };

    let mut read = BytesMut::new();
    let ends = now() + terms.timeouts.body_total;
    while (read.len() as u64) < enough {
        match next(&mut incoming, terms, ends).await {
            Some(Ok(chunk)) => read.extend_from_slice(&chunk),
            Some(Err(error)) => {
                linger(incoming);
                return Err(error);
            }
            None => {
                return Ok(Payload::Held {
                    bytes: read.freeze(),
                    _held: held,
                });
            }
        }
        if read.len() as u64 > terms.max_body {
            linger(incoming);
            return Err(PayloadError::TooLarge {
                limit: terms.max_body,
            });
        }
    }
    if incoming.is_end_stream() {
        return Ok(Payload::Held {
            bytes: read.freeze(),
            _held: held,
        });
    }
    let fault = Fault::default();
    let upload = Upload {
        left: terms.max_body - read.len() as u64,
        limit: terms.max_body,
        length: declared,
        first: Some(read.freeze()).filter(|first| !first.is_empty()),
        incoming,
        fault: fault.clone(),
        _held: held,
    };
    Ok(Payload::Streamed {
        upload: Some(upload),
        fault,
    })
}

async fn next(
    incoming: &mut Incoming,
    terms: &Terms,
    ends: Instant,
) -> Option<Result<Bytes, PayloadError>> {
    let idle = now() + terms.timeouts.body_idle;
    loop {
        return match timeout_at(idle.min(ends), incoming.frame()).await {
            Err(_) => Some(Err(PayloadError::TooSlow)),
            Ok(None) => None,
            Ok(Some(Err(error))) => Some(Err(PayloadError::Malformed(error.to_string()))),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(chunk) => Some(Ok(chunk)),
                // Trailers end with the hop.
                Err(_) => continue,
            },
        };
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how slowly a client sends is timed here"
)]
fn now() -> Instant {
    Instant::now()
}

/// Reads and throws away what a refused client still sends: closing with bytes unread resets the
/// connection, and the client never sees its answer.
fn linger(mut incoming: Incoming) {
    tokio::spawn(timeout(LINGER, async move {
        while let Ok(Some(Ok(_))) = timeout(LINGER_IDLE, incoming.frame()).await {}
    }));
}

/// A body that is sent on while it comes in.
pub struct Upload {
    first: Option<Bytes>,
    incoming: Incoming,
    /// Bytes that may still come, `first` not counted.
    left: u64,
    limit: u64,
    length: Option<u64>,
    fault: Fault,
    _held: Option<Held>,
}

/// The request cannot be sent whole; [`Payload::fault`] says why.
#[derive(Debug, thiserror::Error)]
#[error("the client's body broke off")]
pub struct BrokenOff;

impl Upload {
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        let chunk = ready!(self.poll_data(cx));
        Poll::Ready(chunk.map(|chunk| {
            chunk.map_err(|error| {
                *self.fault.0.lock() = Some(error);
                BrokenOff
            })
        }))
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, PayloadError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            let Some(frame) = ready!(Pin::new(&mut self.incoming).poll_frame(cx)) else {
                return Poll::Ready(None);
            };
            let frame = frame.map_err(|error| PayloadError::Malformed(error.to_string()));
            let chunk = match frame.map(http_body::Frame::into_data) {
                Ok(Ok(chunk)) => chunk,
                Ok(Err(_trailers)) => continue,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            let length = chunk.len() as u64;
            if length > self.left {
                return Poll::Ready(Some(Err(PayloadError::TooLarge { limit: self.limit })));
            }
            self.left -= length;
            return Poll::Ready(Some(Ok(chunk)));
        }
    }

    pub fn is_over(&self) -> bool {
        self.first.is_none() && self.incoming.is_end_stream()
    }

    /// Its declared length, for the framing upstream.
    pub fn left(&self) -> Option<u64> {
        self.length
    }
}
