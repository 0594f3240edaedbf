//! Bodies on their way: to the upstream, and back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::gateway::ahead::Passing;
use crate::gateway::payload::Upload;
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
    /// The upstream's, as it comes.
    Passing(Passing),
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
            Answer::Passing(passing) => Pin::new(passing).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::Held(bytes) => bytes.is_none(),
            Answer::Passing(passing) => passing.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Held(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Answer::Passing(passing) => passing.size_hint(),
        }
    }
}
