//! The request's body: refused before a byte is read where its size is declared, held up to a
//! bound before a permit is asked for, streamed beyond it and cut where it passes its limit.

use std::error::Error;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus::IntGauge;

use crate::config::process::{Buffers, Timeouts};
use crate::gateway::body::Outgoing;
use crate::gateway::inbound::Inbound;
use crate::gateway::pace::Pace;
use crate::gateway::pieces::Pieces;

#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    #[error("the body is larger than the {limit} bytes this operation takes")]
    TooLarge { limit: u64 },
    #[error("the body did not come in time")]
    TooSlow,
    #[error("the body breaks its framing: {0}")]
    Malformed(String),
    #[error("the client has left in the middle of its body")]
    ClientGone,
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
pub struct Budget(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    held: AtomicU64,
    shown: IntGauge,
}

impl Budget {
    /// Nothing is held yet.
    pub fn new(shown: IntGauge) -> Self {
        Self(Arc::new(Counted {
            held: AtomicU64::new(0),
            shown,
        }))
    }

    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.0.held.load(Ordering::Relaxed)
    }
}

fn gauged(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A share of the budget, given back when dropped. The default is none.
#[derive(Debug, Default)]
pub struct Held {
    /// `None` as long as nothing is taken: most requests take nothing, and all threads count here.
    budget: Option<Budget>,
    bytes: u64,
}

impl Held {
    /// Takes `bytes` more of `budget`, always the same one, if not more than `total` are held then.
    pub fn grow(&mut self, bytes: u64, total: u64, budget: &Budget) -> bool {
        let room = |held: u64| held.checked_add(bytes).filter(|&held| held <= total);
        let Counted { held, shown } = &*self.budget.get_or_insert_with(|| budget.clone()).0;
        let grown = held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room);
        if grown.is_err() {
            return false;
        }
        shown.add(gauged(bytes));
        self.bytes += bytes;
        true
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(Budget(counted)) = &self.budget {
            counted.held.fetch_sub(self.bytes, Ordering::Relaxed);
            counted.shown.sub(gauged(self.bytes));
        }
    }
}

/// Where a body that is being sent on leaves word of what was wrong with it.
#[derive(Clone, Default)]
pub struct Fault(Arc<Mutex<Option<PayloadError>>>);

/// A body as far as it was read before anything else happened.
pub enum Payload {
    /// There is no body.
    Nothing,
    /// All of it. Can be sent as often as needed.
    Held { body: Pieces, _held: Held },
    /// More is on its way. Can be sent once.
    Streamed {
        upload: Option<Box<Upload>>,
        fault: Fault,
    },
}

impl Payload {
    /// The body to send; `None` if it was streamed already.
    pub fn outgoing(&mut self) -> Option<Outgoing> {
        match self {
            Payload::Nothing => Some(Outgoing::Nothing),
            Payload::Held { body, .. } => Some(Outgoing::Held(body.clone())),
            Payload::Streamed { upload, .. } => upload.take().map(Outgoing::Streamed),
        }
    }

    /// Whether it can be sent once only.
    pub fn is_streamed(&self) -> bool {
        matches!(self, Payload::Streamed { .. })
    }

    /// Bytes of it that are held here.
    pub fn held(&self) -> u64 {
        match self {
            Payload::Nothing => 0,
            Payload::Held { body, .. } => body.len(),
            Payload::Streamed { upload, .. } => {
                upload.as_ref().map_or(0, |upload| upload.first.len())
            }
        }
    }

    /// What was wrong with a body that was being sent on: the upstream is not to blame for it.
    pub fn fault(&self) -> Option<PayloadError> {
        match self {
            Payload::Nothing | Payload::Held { .. } => None,
            Payload::Streamed { fault, .. } => fault.0.lock().take(),
        }
    }
}

/// Before a byte is read, or asked for.
///
/// # Errors
/// [`PayloadError::TooLarge`]: more is declared than may be sent.
pub fn fits(inbound: &Inbound, terms: &Terms) -> Result<(), PayloadError> {
    let limit = terms.max_body;
    match inbound.declared() {
        Some(length) if length > limit => Err(PayloadError::TooLarge { limit }),
        _ => Ok(()),
    }
}

/// Reads a body as far as it is held: up to `buffers.per_request`, or to its end where its length is
/// not declared, so that it can be declared upstream; in either case while the budget has room.
///
/// # Errors
/// [`PayloadError`]: as it says.
pub async fn receive(
    inbound: Inbound,
    terms: &Terms,
    budget: &Budget,
) -> Result<Payload, PayloadError> {
    fits(&inbound, terms)?;
    let (declared, limit) = (inbound.declared(), terms.max_body);
    let enough = match declared {
        Some(_) => terms.buffers.per_request,
        None => u64::MAX,
    };
    let mut reader = Reader {
        inbound,
        pace: Pace::new(&terms.timeouts),
        left: limit,
        limit,
    };
    let mut held = Held::default();
    let mut read = Pieces::default();
    let mut room = true;
    while room && !reader.inbound.is_over() && read.len() < enough {
        let Some(chunk) = poll_fn(|cx| reader.poll_chunk(cx)).await else {
            break;
        };
        let chunk = chunk?;
        // What does not fit was read all the same: it goes first when the rest is streamed.
        room = held.grow(chunk.len() as u64, terms.buffers.total, budget);
        read.push(chunk);
    }
    if reader.inbound.is_over() {
        return Ok(Payload::Held {
            body: read,
            _held: held,
        });
    }
    let fault = Fault::default();
    reader.pace.hold_to_rate();
    let upload = Upload {
        first: read,
        length: declared,
        reader,
        fault: fault.clone(),
        _held: held,
    };
    Ok(Payload::Streamed {
        upload: Some(Box::new(upload)),
        fault,
    })
}

/// Why a body ends before its end.
fn broken(error: &hyper::Error) -> PayloadError {
    let source = error
        .source()
        .and_then(|source| source.downcast_ref::<h2::Error>());
    let left = match source {
        // What we find wrong ourselves is not remote.
        Some(error) => error.is_remote() || error.is_io(),
        None => error.is_incomplete_message(),
    };
    match left {
        true => PayloadError::ClientGone,
        false => PayloadError::Malformed(error.to_string()),
    }
}

/// A body as it is read, within its bounds.
struct Reader {
    inbound: Inbound,
    pace: Pace,
    /// Bytes that may still come.
    left: u64,
    limit: u64,
}

impl Reader {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, PayloadError>>> {
        let Poll::Ready(chunk) = self.inbound.poll_chunk(cx) else {
            ready!(self.pace.poll_late(cx));
            // Whoever is this late is not waited for.
            self.inbound.abandon();
            return Poll::Ready(Some(Err(PayloadError::TooSlow)));
        };
        let chunk = chunk.map(|chunk| {
            let chunk = chunk.map_err(|error| broken(&error))?;
            let length = chunk.len() as u64;
            self.pace.came(length);
            let left = self.left.checked_sub(length);
            self.left = left.ok_or(PayloadError::TooLarge { limit: self.limit })?;
            Ok(chunk)
        });
        Poll::Ready(chunk)
    }
}

/// A body that is sent on while it comes in.
pub struct Upload {
    first: Pieces,
    reader: Reader,
    length: Option<u64>,
    fault: Fault,
    _held: Held,
}

/// The request cannot be sent whole; [`Payload::fault`] says why.
#[derive(Debug, thiserror::Error)]
#[error("the client's body broke off")]
pub struct BrokenOff;

impl Upload {
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        if let Some(first) = self.first.pop() {
            return Poll::Ready(Some(Ok(first)));
        }
        let chunk = ready!(self.reader.poll_chunk(cx));
        Poll::Ready(chunk.map(|chunk| {
            chunk.map_err(|error| {
                *self.fault.0.lock() = Some(error);
                BrokenOff
            })
        }))
    }

    /// Its declared length, for the framing upstream.
    pub fn left(&self) -> Option<u64> {
        self.length
    }
}
