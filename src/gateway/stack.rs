//! What is orthogonal to a request's way: a panic costs one answer, never a connection's silence.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

use http::Response;

use crate::gateway::answer::Rejection;
use crate::gateway::record::Recorded;

/// What comes of `way`; 500 where it panics.
pub fn catch_panic(
    way: impl Future<Output = Response<Recorded>>,
) -> impl Future<Output = Response<Recorded>> {
    // In a box: an idle connection has no room for a request's whole way.
    let mut way = Some(Box::pin(way));
    poll_fn(move |cx| {
        let Some(inner) = &mut way else {
            return Poll::Ready(failed());
        };
        // Nothing the future borrows outlives it; what it shares is behind locks that unwind well.
        match catch_unwind(AssertUnwindSafe(|| inner.as_mut().poll(cx))) {
            Ok(polled) => polled,
            Err(_panic) => {
                tracing::error!("a request's way panicked; its client was answered 500");
                // What is left of it is not to be touched again.
                way = None;
                Poll::Ready(failed())
            }
        }
    })
}

fn failed() -> Response<Recorded> {
    let answer = Rejection::Internal.answer(None, None);
    answer.map(Recorded::from)
}
