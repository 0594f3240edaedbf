//! What is orthogonal to a request's way, as tower layers: a panic costs one answer, never a
//! connection's silence.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Response;
use tower::{Layer, Service};

use crate::gateway::answer::Rejection;
use crate::gateway::recorded::Recorded;
use crate::gateway::shelf::Boxed;

/// Answers 500 where the service beneath panics.
#[derive(Clone, Copy, Debug)]
pub struct CatchPanic;

impl<S> Layer<S> for CatchPanic {
    type Service = Caught<S>;

    fn layer(&self, inner: S) -> Caught<S> {
        Caught { inner }
    }
}

#[derive(Clone, Debug)]
pub struct Caught<S> {
    inner: S,
}

impl<S, R> Service<R> for Caught<S>
where
    S: Service<R, Response = Response<Recorded>>,
    S::Future: Send + 'static,
{
    type Response = Response<Recorded>;
    type Error = S::Error;
    type Future = Catching<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // In a box: an idle connection has no room for a request's whole way.
        Catching {
            inner: Some(Boxed::with(|| self.inner.call(request))),
        }
    }
}

pub struct Catching<F: Send + 'static> {
    /// `None` once it has panicked: what is left of it is not to be touched again.
    inner: Option<Boxed<F>>,
}

impl<F, E> Future for Catching<F>
where
    F: Future<Output = Result<Response<Recorded>, E>> + Send + 'static,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(inner) = self.inner.as_mut().and_then(Boxed::as_pin_mut) else {
            return Poll::Ready(Ok(Rejection::Internal
                .answer(None, None)
                .map(Recorded::from)));
        };
        // Nothing the future borrows outlives it; what it shares is behind locks that unwind well.
        match catch_unwind(AssertUnwindSafe(|| inner.poll(cx))) {
            Ok(polled) => polled,
            Err(_panic) => {
                tracing::error!("a request's way panicked; its client was answered 500");
                self.inner = None;
                Poll::Ready(Ok(Rejection::Internal
                    .answer(None, None)
                    .map(Recorded::from)))
            }
        }
    }
}
