//! An answer that is read ahead of its client: the permit comes back when the upstream has ended,
//! though the client still reads.
//!
//! What comes is passed on at once; what the client does not take waits here, up to a bound and
//! within the process's budget of bytes. Beyond that the upstream waits for the client, and the
//! client has to take a least amount a time, or it is cut: a slow reader must not hold a permit.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::gateway::body::Cut;
use crate::gateway::payload::{Budget, Held};
use crate::gateway::pieces::Pieces;

/// What may wait without a share of the budget: no more than a connection's own buffers hold.
pub const FREE: u64 = 16 * 1024;

/// How far an answer is read ahead, and how long anybody may take.
#[derive(Clone, Debug)]
pub struct Ahead {
    /// Bytes of one answer.
    pub buffer: u64,
    /// Bytes of everything that is held in the process.
    pub total: u64,
    pub budget: Budget,
    /// The longest silence of the upstream.
    pub idle: Duration,
    /// A client that is behind takes `buffer` bytes in this, or is cut.
    pub least_in: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum Cutoff {
    #[error("the upstream sent nothing for {0:?}")]
    Silent(Duration),
    #[error("the client took less than {bytes} bytes in {within:?}")]
    TooSlow { bytes: u64, within: Duration },
    #[error("the client has gone")]
    Gone,
    #[error("nobody reads the upstream's answer any more")]
    Lost,
}

/// The client's end of it.
pub struct Passing {
    shared: Arc<Shared>,
    /// Bytes still to come, where that was declared.
    left: Option<u64>,
}

#[derive(Default)]
struct Shared(Mutex<State>);

#[derive(Default)]
struct State {
    /// Bytes that wait for the client.
    waiting: Pieces,
    held: Option<Held>,
    /// Bytes the client has taken.
    taken: u64,
    /// The client has taken all there was since the reader last looked.
    caught_up: bool,
    end: Option<Result<(), Cut>>,
    client: Option<Waker>,
    reader: Option<Waker>,
    /// The reader waits for room.
    full: bool,
    gone: bool,
}

impl State {
    fn has_room(&mut self, ahead: &Ahead) -> bool {
        let waits = self.waiting.len();
        if waits == 0 {
            return true;
        }
        if waits >= ahead.buffer {
            return false;
        }
        let held = self.held.get_or_insert_default();
        waits < FREE + held.bytes() || held.grow(FREE, ahead.total, &ahead.budget)
    }
}

/// Both ends of an answer that begins with `begun`: what the client reads, and the work of reading
/// `incoming`, to be done beside. It ends once all is read, or with an error; whoever does it then
/// lets go of `incoming` and calls [`Ending::with`].
pub fn read<B>(
    incoming: B,
    begun: Bytes,
    ahead: Ahead,
) -> (
    Passing,
    impl Future<Output = (B, Result<(), Cut>)> + Send,
    Ending,
)
where
    B: Body<Data = Bytes> + Send + Unpin,
    B::Error: Into<Cut>,
{
    let left = incoming.size_hint().exact();
    let left = left.map(|left| left + begun.len() as u64);
    let shared = Arc::<Shared>::default();
    shared.0.lock().waiting.push(begun);
    let passing = Passing {
        shared: shared.clone(),
        left,
    };
    let work = work(incoming, shared.clone(), ahead);
    (passing, work, Ending(shared))
}

/// Tells the client's end how it ended; that it broke off, if dropped.
pub struct Ending(Arc<Shared>);

impl Ending {
    pub fn with(self, end: Result<(), Cut>) {
        self.0.end(end);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end(Err(Cutoff::Lost.into()));
    }
}

impl Shared {
    fn end(&self, end: Result<(), Cut>) {
        let client = {
            let mut state = self.0.lock();
            state.end.get_or_insert(end);
            state.client.take()
        };
        if let Some(client) = client {
            client.wake();
        }
    }

    fn push(&self, chunk: Bytes) {
        let client = {
            let mut state = self.0.lock();
            state.waiting.push(chunk);
            state.client.take()
        };
        if let Some(client) = client {
            client.wake();
        }
    }
}

async fn work<B>(incoming: B, shared: Arc<Shared>, ahead: Ahead) -> (B, Result<(), Cut>)
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Cut>,
{
    let mut incoming = incoming;
    let ended = pass(&mut incoming, &shared, &ahead).await;
    (incoming, ended)
}

async fn pass<B>(incoming: &mut B, shared: &Shared, ahead: &Ahead) -> Result<(), Cut>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Cut>,
{
    let mut silence = pin!(sleep(ahead.idle));
    let mut behind = None::<Behind>;
    while !incoming.is_end_stream() {
        let next = std::future::poll_fn(|cx| {
            let (waits, taken) = {
                let mut state = shared.0.lock();
                if state.gone {
                    return Poll::Ready(Err(Cutoff::Gone));
                }
                if std::mem::take(&mut state.caught_up) {
                    behind = None;
                }
                let waker = cx.waker();
                if !state
                    .reader
                    .as_ref()
                    .is_some_and(|known| known.will_wake(waker))
                {
                    state.reader = Some(waker.clone());
                }
                let was_full = state.full;
                state.full = !state.has_room(ahead);
                if was_full && !state.full {
                    // The silence was ours.
                    silence.as_mut().reset(now() + ahead.idle);
                }
                (state.full, state.taken)
            };
            if waits {
                let behind = behind.get_or_insert_with(|| Behind::since(taken, ahead));
                return behind.poll(taken, ahead, cx).map(Err);
            }
            if let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(cx) {
                return Poll::Ready(Ok(frame));
            }
            let silent = silence.as_mut().poll(cx);
            silent.map(|()| Err(Cutoff::Silent(ahead.idle)))
        });
        match next.await? {
            // Trailers end with the hop.
            Some(Ok(frame)) => {
                if let Ok(chunk) = frame.into_data() {
                    shared.push(chunk);
                }
            }
            Some(Err(error)) => return Err(error.into()),
            None => break,
        }
        let next = now() + ahead.idle;
        // Moving a timer costs more than a late alarm: only in steps worth it.
        if next.saturating_duration_since(silence.deadline()) > ahead.idle / 8 {
            silence.as_mut().reset(next);
        }
    }
    Ok(())
}

/// A client that has not caught up since the buffer was first full.
struct Behind {
    taken: u64,
    until: Pin<Box<Sleep>>,
}

impl Behind {
    fn since(taken: u64, ahead: &Ahead) -> Self {
        Self {
            taken,
            until: Box::pin(sleep_until(now() + ahead.least_in)),
        }
    }

    /// Ready once it took too little.
    fn poll(&mut self, taken: u64, ahead: &Ahead, cx: &mut Context<'_>) -> Poll<Cutoff> {
        let bytes = ahead.buffer.max(FREE);
        while self.until.as_mut().poll(cx).is_ready() {
            if taken - self.taken < bytes {
                let within = ahead.least_in;
                return Poll::Ready(Cutoff::TooSlow { bytes, within });
            }
            *self = Self::since(taken, ahead);
        }
        Poll::Pending
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long both sides take is timed here"
)]
fn now() -> Instant {
    Instant::now()
}

impl Body for Passing {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let mut state = self.shared.0.lock();
        if let Some(chunk) = state.waiting.pop() {
            state.taken += chunk.len() as u64;
            if state.waiting.is_empty() {
                state.held = None;
                state.caught_up = true;
            }
            let reader = state.reader.clone().filter(|_| state.full);
            drop(state);
            if let Some(reader) = reader {
                reader.wake();
            }
            let length = chunk.len() as u64;
            self.left = self.left.map(|left| left.saturating_sub(length));
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        match state.end.take() {
            Some(Ok(())) => {
                state.end = Some(Ok(()));
                Poll::Ready(None)
            }
            Some(Err(cut)) => Poll::Ready(Some(Err(cut))),
            None => {
                state.client = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.shared.0.lock();
        state.waiting.is_empty() && matches!(state.end, Some(Ok(())))
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        let reader = {
            let mut state = self.shared.0.lock();
            state.gone = true;
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
