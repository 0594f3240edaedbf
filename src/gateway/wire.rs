//! One upstream connection's bytes, and what they tell the permit of the exchange that uses it:
//! whether anything was written, when the last byte was, and that no more will be.
//!
//! hyper has no event for any of these. The permit lives in here while its exchange does, so that
//! the connection's own task can report, and an exchange given up before its first byte can be kept
//! from ever writing one.
//!
//! An upstream may answer before it has read the whole request, and close: what is still written
//! then fails while the answer waits to be read. So a write that fails in the middle of a request
//! is no error here; it goes no further, and the reading side tells how the exchange has ended.

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
    /// When bytes of the current request last went out.
    wrote: Option<Instant>,
    /// The request's last byte was handed to the connection.
    body_ended: bool,
    /// All of it went out, and the permit knows.
    sent: bool,
    /// Since when what there is to write is not taken.
    blocked: Option<Instant>,
    /// The other side may have closed meanwhile: to be looked for before the first byte.
    distrusted: bool,
    /// Given up: nothing more may be written.
    sealed: bool,
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// What there was to write is written, and more is to come.
    Going,
    /// The other side has taken nothing since then.
    Blocked(Instant),
    /// Its last byte went out then.
    Sent(Instant),
}

/// I/O that can tell whether its other side is still there.
pub trait Peer {
    /// `false` once it has closed, or has sent what nobody asked for.
    fn is_open(&self) -> bool;
}

impl Wire {
    /// An exchange begins. `bodiless`: its head is all there is to send. `distrusted`: nothing of it
    /// is written before the other side was found to be there.
    pub fn begin(&self, permit: Permit, bodiless: bool, distrusted: bool) {
        let mut state = self.0.lock();
        debug_assert!(state.permit.is_none(), "one exchange at a time");
        let sealed = state.sealed;
        *state = State {
            permit: Some(permit),
            body_ended: bodiless,
            distrusted,
            sealed,
            ..State::default()
        };
    }

    /// How far the request has come.
    pub fn sending(&self) -> Sending {
        let state = self.0.lock();
        match (state.wrote, state.blocked) {
            (Some(last), _) if state.sent => Sending::Sent(last),
            (_, Some(since)) => Sending::Blocked(since),
            _ => Sending::Going,
        }
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
    /// whole, so that the connection can carry another; else nothing more is written on it.
    pub fn complete(&self) -> bool {
        let mut state = self.0.lock();
        let permit = state.permit.take();
        let reusable = state.sent && !state.sealed;
        state.sealed = !reusable;
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
        permit.filter(|_| wrote.is_none())
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
}

impl<T: Peer> Watched<T> {
    fn write(
        &mut self,
        write: impl FnOnce(&mut T) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        // Held over the write: whoever gives the exchange up comes before it or after it.
        let mut state = self.wire.0.lock();
        if state.sealed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if std::mem::take(&mut state.distrusted) && !self.io.is_open() {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        let written = write(&mut self.io);
        match &written {
            Poll::Ready(Ok(1..)) => {
                let now = now();
                state.wrote = Some(now);
                state.blocked = None;
                if let Some(permit) = &mut state.permit {
                    permit.wrote(now);
                }
                written
            }
            Poll::Ready(Err(_)) if state.wrote.is_some() => {
                state.blocked.get_or_insert_with(now);
                Poll::Pending
            }
            Poll::Pending => {
                state.blocked.get_or_insert_with(now);
                written
            }
            Poll::Ready(_) => written,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "when a byte was written, and since when none is, is this file's to know"
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

impl<T: AsyncWrite + Peer + Unpin> AsyncWrite for Watched<T> {
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
            if state.wrote.is_some() && state.body_ended && !state.sent {
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
