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
use std::task::{Context, Poll, Waker};
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
        waker: &Waker,
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
                // The reading side has something to say, an answer or the end, and may have been
                // asked before it came: nobody else would ask again.
                waker.wake_by_ref();
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
        let waker = cx.waker().clone();
        self.write(&waker, |io| Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let waker = cx.waker().clone();
        self.write(&waker, |io| Pin::new(io).poll_write_vectored(cx, slices))
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use super::*;
    use crate::admission::lane::{Ask, LaneCell};
    use crate::admission::{Account, Admission};
    use crate::config::Config;
    use crate::config::policy::GroupVerdict;
    use crate::limit::flow::FlowId;
    use crate::limit::ledger::Call;
    use crate::metrics::Metrics;
    use crate::operation::Group;

    /// I/O whose writes end as they are told to.
    struct Fake {
        open: bool,
        writes: VecDeque<Poll<io::Result<usize>>>,
    }

    impl Peer for Fake {
        fn is_open(&self) -> bool {
            self.open
        }
    }

    impl AsyncWrite for Fake {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let next = self.writes.pop_front();
            next.unwrap_or(Poll::Ready(Ok(bytes.len())))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    struct Bench {
        lane: Arc<LaneCell>,
        wire: Arc<Wire>,
        watched: Watched<Fake>,
    }

    impl Bench {
        /// A request whose head is `bodiless` or not begins.
        async fn begin(open: bool, distrusted: bool, bodiless: bool) -> Self {
            let config = Config::preset();
            let GroupVerdict::Policy(policy) = config.group("any", Group::Run) else {
                unreachable!("it has one")
            };
            let admission = Admission::new(10, Metrics::new().unwrap());
            let lane = admission.lane(Account::default(), "ep", Group::Run, policy);
            let ask = Ask {
                flow: FlowId(1),
                call: Call::Short,
                patience: Duration::ZERO,
                held: 0,
            };
            let permit = lane.admit(ask).await.unwrap();
            let wire = Arc::<Wire>::default();
            wire.begin(permit, bodiless, distrusted);
            let writes = VecDeque::new();
            let watched = Watched::new(Fake { open, writes }, wire.clone());
            Self {
                lane,
                wire,
                watched,
            }
        }

        /// Writes, and the underlying I/O says this.
        fn write(&mut self, says: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
            self.watched.io.writes.push_back(says);
            let mut cx = Context::from_waker(Waker::noop());
            Pin::new(&mut self.watched).poll_write(&mut cx, b"bytes")
        }

        fn flush(&mut self) {
            let mut cx = Context::from_waker(Waker::noop());
            let flushed = Pin::new(&mut self.watched).poll_flush(&mut cx);
            assert!(matches!(flushed, Poll::Ready(Ok(()))));
        }

        /// Window slots and permits that are taken.
        fn spent(&self) -> (u32, u32) {
            let lane = self.lane.view().snapshot;
            (lane.window_used, lane.permits_in_use)
        }
    }

    fn broken() -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_written_to_who_is_no_longer_there() {
        let mut bench = Bench::begin(false, true, true).await;
        assert!(matches!(
            bench.write(Poll::Ready(Ok(5))),
            Poll::Ready(Err(_))
        ));
        assert_eq!(bench.watched.io.writes.len(), 1, "it was not asked");
        let permit = bench.wire.seal();
        assert!(permit.is_some(), "for another try");
        drop(permit);
        assert_eq!(bench.spent(), (0, 0));
        // Nor is anybody asked who is trusted.
        let mut bench = Bench::begin(false, false, true).await;
        assert!(matches!(
            bench.write(Poll::Ready(Ok(5))),
            Poll::Ready(Ok(5))
        ));
        assert!(bench.wire.seal().is_none());
        assert_eq!(bench.spent(), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_fails_in_the_middle_leaves_the_end_to_the_reading_side() {
        let mut bench = Bench::begin(true, false, false).await;
        assert!(matches!(
            bench.write(Poll::Ready(Ok(5))),
            Poll::Ready(Ok(5))
        ));
        assert!(bench.write(broken()).is_pending());
        assert!(matches!(bench.wire.sending(), Sending::Blocked(_)));
        // Before anything was written it is an error like any other: another try is safe.
        let mut bench = Bench::begin(true, false, false).await;
        assert!(matches!(bench.write(broken()), Poll::Ready(Err(_))));
        assert!(bench.wire.seal().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn how_far_a_request_has_come_is_known() {
        let mut bench = Bench::begin(true, false, false).await;
        assert_eq!(bench.wire.sending(), Sending::Going);
        let began = now();
        assert!(bench.write(Poll::Pending).is_pending());
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(bench.write(Poll::Pending).is_pending());
        assert_eq!(bench.wire.sending(), Sending::Blocked(began));
        assert!(bench.write(Poll::Ready(Ok(5))).is_ready());
        bench.flush();
        assert_eq!(
            bench.wire.sending(),
            Sending::Going,
            "its body has not ended"
        );
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(bench.write(Poll::Ready(Ok(5))).is_ready());
        bench.wire.body_ended();
        bench.flush();
        assert_eq!(
            bench.wire.sending(),
            Sending::Sent(began + Duration::from_secs(6))
        );
        assert!(bench.wire.complete(), "it can carry another");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_answered_before_it_was_sent_is_not_sent_on() {
        let mut bench = Bench::begin(true, false, false).await;
        assert!(bench.write(Poll::Ready(Ok(5))).is_ready());
        assert!(!bench.wire.complete());
        assert!(matches!(
            bench.write(Poll::Ready(Ok(5))),
            Poll::Ready(Err(_))
        ));
    }
}
