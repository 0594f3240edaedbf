//! Bodies on their way: to the upstream, and back.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::gateway::ahead::Passing;
use crate::gateway::payload::{BrokenOff, Upload};
use crate::gateway::pieces::Pieces;

/// A failure in the middle of a body. What was begun cannot be answered otherwise: it is cut.
pub type Cut = Box<dyn std::error::Error + Send + Sync>;

/// A request's body as it goes to the upstream.
pub enum Outgoing {
    Nothing,
    /// All here, and could be sent again.
    Held(Pieces),
    /// Still on its way in.
    Streamed(Box<Upload>),
}

impl Outgoing {
    /// How many bytes there are, where that was declared.
    pub fn length(&self) -> Option<u64> {
        match self {
            Outgoing::Nothing => Some(0),
            Outgoing::Held(body) => Some(body.len()),
            Outgoing::Streamed(upload) => upload.left(),
        }
    }

    /// The next bytes; `None` at its end.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        match self {
            Outgoing::Nothing => Poll::Ready(None),
            Outgoing::Held(body) => Poll::Ready(body.pop().map(Ok)),
            Outgoing::Streamed(upload) => upload.poll_chunk(cx),
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

impl Answer {
    /// All of it, which may be nothing.
    pub fn whole(bytes: Bytes) -> Self {
        Answer::Held(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
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
