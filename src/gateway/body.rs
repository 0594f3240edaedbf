//! Bodies on their way: to the upstream, and back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::gateway::payload::Upload;
use crate::gateway::upstream::Exchange;
use crate::gateway::wire::Wire;

/// A failure in the middle of a body. What was begun cannot be answered otherwise: it is cut.
pub type Cut = Box<dyn std::error::Error + Send + Sync>;

/// A request's body as the upstream connection reads it; tells the wire when it has ended.
pub struct Outgoing {
    source: Source,
    wire: Option<Arc<Wire>>,
}

enum Source {
    Held(Option<Bytes>),
    Streamed(Box<Upload>),
}

impl Outgoing {
    /// Bytes that are all here, and could be sent again.
    pub fn held(bytes: Bytes) -> Self {
        Self {
            source: Source::Held((!bytes.is_empty()).then_some(bytes)),
            wire: None,
        }
    }

    /// A body that is still on its way in.
    pub fn streamed(upload: Upload) -> Self {
        Self {
            source: Source::Streamed(Box::new(upload)),
            wire: None,
        }
    }

    /// Whether it can be sent once only.
    pub fn is_streamed(&self) -> bool {
        matches!(self.source, Source::Streamed(_))
    }

    /// The connection it is sent on.
    pub fn on(mut self, wire: Arc<Wire>) -> Self {
        self.wire = Some(wire);
        self
    }

    fn ended(&mut self) {
        if let Some(wire) = self.wire.take() {
            wire.body_ended();
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let frame = match &mut self.source {
            Source::Held(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Streamed(upload) => {
                ready!(upload.poll_chunk(cx)).map(|chunk| chunk.map(Frame::data).map_err(Cut::from))
            }
        };
        if !matches!(frame, Some(Err(_))) && (frame.is_none() || self.is_end_stream()) {
            self.ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Held(bytes) => bytes.is_none(),
            Source::Streamed(upload) => upload.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Held(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Source::Streamed(upload) => upload
                .left()
                .map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

/// A response's body as the client's connection reads it.
pub enum Answer {
    /// Ours, or the upstream's when it was all here at once.
    Held(Option<Bytes>),
    /// The upstream's, as it comes. The permit comes back when it ends, whatever way.
    Streamed(Box<Streamed>),
}

/// A response on its way from the upstream.
pub struct Streamed {
    incoming: Incoming,
    exchange: Option<Exchange>,
    idle: Duration,
    silence: Pin<Box<Sleep>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the upstream sent nothing for {0:?}")]
struct Silent(Duration);

impl Streamed {
    /// `idle`: the longest silence between two bytes.
    pub fn new(incoming: Incoming, exchange: Exchange, idle: Duration) -> Self {
        let silence = Box::pin(tokio::time::sleep(idle));
        Self {
            incoming,
            exchange: Some(exchange),
            idle,
            silence,
        }
    }

    fn over(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.complete();
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            ready!(self.silence.as_mut().poll(cx));
            self.exchange = None;
            return Poll::Ready(Some(Err(Silent(self.idle).into())));
        };
        match &frame {
            Some(Ok(_)) if !self.incoming.is_end_stream() => {
                let deadline = self.silence.deadline();
                let next = now() + self.idle;
                // Moving a timer costs more than a late alarm: only in steps worth it.
                if next.saturating_duration_since(deadline) > self.idle / 8 {
                    self.silence.as_mut().reset(next);
                }
            }
            Some(Err(_)) => self.exchange = None,
            Some(Ok(_)) | None => self.over(),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Cut::from)))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the silence between two bytes is timed here"
)]
fn now() -> Instant {
    Instant::now()
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Answer::Held(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Answer::Streamed(streamed) => streamed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::Held(bytes) => bytes.is_none(),
            Answer::Streamed(streamed) => streamed.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Held(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Answer::Streamed(streamed) => streamed.incoming.size_hint(),
        }
    }
}
