//! The streams of an HTTP/2 connection: how many are open, which of them their client starves, and
//! how many it gave up before they were answered.
//!
//! A client that grants a stream no window stops its answer's body from being read, and whatever
//! that body holds is held; the connection meanwhile is well. Nothing in hyper ends this. Each
//! stream is a task of its own, so the task is given a time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::gateway::body::Cut;
use crate::gateway::pace::Pace;

/// Bytes handed to h2 at a time: it takes a chunk of any size for a window of one byte, and keeps
/// what is left of the last one for as long as the connection lives. One frame of the usual size.
const CHUNK: usize = 16 * 1024;
/// Requests given up before they were answered, at which a connection is looked at.
const GIVEN_UP: u64 = 500;

tokio::task_local! {
    /// The stream whose task this is.
    static STREAM: Arc<Mutex<Taking>>;
}

/// Of one connection. Cheap to clone.
#[derive(Clone)]
pub struct Streams(Arc<Shared>);

struct Shared {
    write: Duration,
    tally: Mutex<Tally>,
    /// Told once too many were given up.
    flooded: Notify,
}

struct Tally {
    open: usize,
    /// Since when none is open.
    idle: Instant,
    answered: u64,
    given_up: u64,
}

impl Streams {
    /// `write`: the longest time in which a client may take nothing of an answer.
    pub fn new(write: Duration) -> Self {
        Self(Arc::new(Shared {
            write,
            tally: Mutex::new(Tally {
                open: 0,
                idle: now(),
                answered: 0,
                given_up: 0,
            }),
            flooded: Notify::new(),
        }))
    }

    /// Returns once no stream has been open for so long.
    pub async fn idle(&self, keep_alive: Duration) {
        loop {
            let ends = match &*self.0.tally.lock() {
                Tally { open: 0, idle, .. } => *idle + keep_alive,
                // Whatever closes last closes after now.
                _ => now() + keep_alive,
            };
            if ends <= now() {
                return;
            }
            tokio::time::sleep_until(ends).await;
        }
    }

    /// Returns each time another [`GIVEN_UP`] requests have been given up, and more were than were
    /// answered: opening streams to reset them costs a client next to nothing.
    pub async fn flooded(&self) {
        self.0.flooded.notified().await;
    }

    fn closed(&self, answered: bool) {
        let mut tally = self.0.tally.lock();
        tally.open -= 1;
        if tally.open == 0 {
            tally.idle = now();
        }
        match answered {
            true => tally.answered += 1,
            false => tally.given_up += 1,
        }
        let flooded =
            !answered && tally.given_up > tally.answered && tally.given_up.is_multiple_of(GIVEN_UP);
        drop(tally);
        if flooded {
            self.0.flooded.notify_one();
        }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.tally.lock().open += 1;
        let taking = Arc::new(Mutex::new(Taking::new(self.0.write)));
        let open = Open {
            streams: self.clone(),
            taking: taking.clone(),
        };
        let stream = STREAM.scope(taking.clone(), stream);
        tokio::spawn(async move {
            let _open = open;
            tokio::select! {
                biased;
                () = stream => {}
                () = std::future::poll_fn(|cx| taking.lock().poll_starved(cx)) => {
                    tracing::debug!("a client takes nothing of an answer: its stream was reset");
                }
            }
        });
    }
}

/// One open stream; closed when dropped, by whatever way.
struct Open {
    streams: Streams,
    taking: Arc<Mutex<Taking>>,
}

impl Drop for Open {
    fn drop(&mut self) {
        let answered = self.taking.lock().answered;
        self.streams.closed(answered);
    }
}

/// How one stream's client takes its answer.
struct Taking {
    pace: Pace,
    answered: bool,
    /// Bytes of the chunk that is being taken; `None`: the client waits for us.
    chunk: Option<u64>,
}

impl Taking {
    fn new(write: Duration) -> Self {
        Self {
            pace: Pace::taking(write),
            answered: false,
            chunk: None,
        }
    }

    /// The next chunk is asked for: the last one was taken.
    fn taken(&mut self) {
        if let Some(bytes) = self.chunk.take() {
            self.pace.came(bytes);
        }
    }

    fn poll_starved(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.chunk {
            Some(_) => self.pace.poll_late(cx),
            None => Poll::Pending,
        }
    }
}

fn here(act: impl FnOnce(&mut Taking)) {
    // Outside of a stream's task there is nobody to tell.
    let _ = STREAM.try_with(|taking| act(&mut taking.lock()));
}

/// An answer on its way, in chunks, each of which has to be taken in time.
pub struct Paced<B> {
    body: B,
    /// What of the last frame was not handed on yet.
    rest: Bytes,
    /// Some of it was.
    parted: bool,
}

/// Makes an answer one of a stream.
pub fn paced<B>(response: Response<B>) -> Response<Paced<B>> {
    here(|taking| taking.answered = true);
    response.map(|body| Paced {
        body,
        rest: Bytes::new(),
        parted: false,
    })
}

impl<B: Body<Data = Bytes, Error = Cut> + Unpin> Body for Paced<B> {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        here(Taking::taken);
        let me = &mut *self;
        if me.rest.is_empty() {
            match ready!(Pin::new(&mut me.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => me.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let mut chunk = me.rest.split_to(me.rest.len().min(CHUNK));
        if me.parted && me.rest.is_empty() {
            // A part keeps the whole in memory, and this one may lie in h2 for long.
            chunk = Bytes::copy_from_slice(&chunk);
        }
        me.parted = !me.rest.is_empty();
        here(|taking| taking.chunk = Some(chunk.len() as u64));
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let hint = self.body.size_hint();
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a connection has no stream is timed here"
)]
fn now() -> Instant {
    Instant::now()
}
