//! One upstream connection's bytes, and what they tell the permit of the exchange that uses it:
//! whether anything was written, when the last byte was, and that no more will be.
//!
//! hyper has no event for any of these. The permit lives in here while its exchange does, so that
//! the connection's own task can report, and an exchange given up before its first byte can be kept
//! from ever writing one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::admission::permit::Permit;
use crate::limit::ladder::Cause;

/// Shared by a connection's I/O and the exchange that uses it; one exchange at a time.
#[derive(Default)]
pub struct Wire(Mutex<State>);

#[derive(Default)]
struct State {
    permit: Option<Permit>,
    /// Bytes of the current request went out.
    wrote: bool,
    /// The request's last byte was handed to the connection.
    body_ended: bool,
    /// All of it went out, and the permit knows.
    sent: bool,
    /// Given up: nothing more may be written.
    sealed: bool,
}

impl Wire {
    /// An exchange begins. `bodiless`: its head is all there is to send.
    pub fn begin(&self, permit: Permit, bodiless: bool) {
        let mut state = self.0.lock();
        debug_assert!(state.permit.is_none(), "one exchange at a time");
        let sealed = state.sealed;
        *state = State {
            permit: Some(permit),
            body_ended: bodiless,
            sealed,
            ..State::default()
        };
    }

    /// The request's last byte was handed to the connection.
    pub fn body_ended(&self) {
        self.0.lock().body_ended = true;
    }

    /// The final response's head came, and it was no 429.
    pub fn answered(&self) {
        if let Some(permit) = &mut self.0.lock().permit {
            permit.answered();
        }
    }

    /// The final response's head came, and it was a 429.
    pub fn throttled(&self, retry_after: Option<Duration>) -> Option<Cause> {
        self.0.lock().permit.as_mut()?.throttled(retry_after)
    }

    /// The response's last byte was read: the permit goes back. `true` if the request was sent
    /// whole, so that the connection can carry another.
    pub fn complete(&self) -> bool {
        let mut state = self.0.lock();
        let permit = state.permit.take();
        let reusable = state.sent && !state.sealed;
        drop(state);
        if let Some(mut permit) = permit {
            permit.complete();
        }
        reusable
    }

    /// Nothing more is written on this connection. Returns the permit if nothing was, for another
    /// try; else it goes back as what is torn down does.
    pub fn seal(&self) -> Option<Permit> {
        let mut state = self.0.lock();
        state.sealed = true;
        let (permit, wrote) = (state.permit.take(), state.wrote);
        drop(state);
        permit.filter(|_| !wrote)
    }
}

/// The I/O that a connection's `Wire` watches.
pub struct Watched<T> {
    io: T,
    wire: Arc<Wire>,
}

impl<T> Watched<T> {
    pub fn new(io: T, wire: Arc<Wire>) -> Self {
        Self { io, wire }
    }

    fn write(
        &mut self,
        write: impl FnOnce(&mut T) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        // Held over the write: whoever gives the exchange up comes before it or after it.
        let mut state = self.wire.0.lock();
        if state.sealed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let written = write(&mut self.io);
        if matches!(written, Poll::Ready(Ok(1..))) {
            state.wrote = true;
            if let Some(permit) = &mut state.permit {
                permit.wrote(now());
            }
        }
        written
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "when a byte was written is this file's to know"
)]
fn now() -> Instant {
    Instant::now()
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(|io| Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(|io| Pin::new(io).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper flushes once its own buffer is empty: what ended before has then gone out.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            let mut state = self.wire.0.lock();
            if state.wrote && state.body_ended && !state.sent {
                state.sent = true;
                if let Some(permit) = &mut state.permit {
                    permit.sent();
                }
            }
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
