//! An answer's body, which its request's record goes with.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::gateway::ahead::Cutoff;
use crate::gateway::body::{Answer, Cut};
use crate::gateway::presence::Caller;
use crate::gateway::record::Record;
use crate::gateway::shelf::Boxed;

/// An answer's body; the record closes with it.
pub struct Recorded {
    answer: Answer,
    /// Whose end ends it while there is nothing of it to be written.
    client: Option<Caller>,
    record: Option<Boxed<Record>>,
}

impl From<Answer> for Recorded {
    /// An answer of which there is no record.
    fn from(answer: Answer) -> Self {
        Self {
            answer,
            client: None,
            record: None,
        }
    }
}

impl Recorded {
    /// An answer with its record. Its client is looked after while it is waited for, where hyper does
    /// not.
    pub(super) fn new(answer: Answer, record: Boxed<Record>, caller: &Caller) -> Self {
        let waits = caller.is_asked() && matches!(answer, Answer::Passing(_));
        Self {
            answer,
            client: waits.then(|| caller.clone()),
            record: Some(record),
        }
    }

    /// Closes its record, if that is still open: nothing more of it goes out. Returns when that was.
    pub fn close(&mut self) -> Option<Instant> {
        let mut record = self.record.take()?;
        let record = record.get_mut()?;
        if self.answer.is_end_stream() {
            record.completes();
        }
        Some(record.close())
    }
}

impl Body for Recorded {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.answer).poll_frame(cx) else {
            let client = self.client.as_ref();
            ready!(client.map_or(Poll::Pending, |client| client.poll_gone(cx)));
            return Poll::Ready(Some(Err(Cutoff::Gone.into())));
        };
        if let Some(record) = self.record.as_mut().and_then(Boxed::get_mut) {
            match &frame {
                Some(Ok(frame)) => record.went_out(frame.data_ref().map_or(0, Bytes::len)),
                Some(Err(_)) => {}
                None => record.completes(),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.close();
    }
}
