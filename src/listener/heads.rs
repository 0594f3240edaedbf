//! How long an HTTP/1 connection may wait for its next head: hyper's timer for it.
//!
//! hyper starts it when it begins to wait and knows one time only. Here an idle connection has
//! longer than a head that has begun, and starting costs no timer: the one there is is moved only
//! when it would be late.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant as Moment};

use hyper::rt;
use hyper_util::rt::TokioTimer;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

/// One connection's. Cheap to clone.
#[derive(Clone)]
pub struct Heads(Arc<Shared>);

struct Shared {
    /// For a head, from its first byte to its last.
    header: Duration,
    /// Bytes came since hyper began to wait.
    came: AtomicBool,
    /// Its client has not taken all that was written to it.
    behind: AtomicBool,
    waiting: Mutex<Waiting>,
}

struct Waiting {
    /// The head that is waited for is a connection's first, which has begun with the connection.
    first: bool,
    /// When the head that is waited for began.
    begun: Option<Instant>,
    alarm: Pin<Box<Sleep>>,
}

impl Heads {
    /// `connected`: from when on its first head is waited for.
    pub fn new(header: Duration, connected: Instant) -> Self {
        let waiting = Waiting {
            first: true,
            begun: Some(connected),
            alarm: Box::pin(sleep_until(connected + header)),
        };
        Self(Arc::new(Shared {
            header,
            came: AtomicBool::new(false),
            behind: AtomicBool::new(false),
            waiting: Mutex::new(waiting),
        }))
    }

    /// Bytes came. What came before hyper waits for a head is not counted as its beginning, as it
    /// may be a body's end: such a head may take as long as an idle connection.
    pub fn bytes_came(&self) {
        self.0.came.store(true, Ordering::Relaxed);
    }

    /// Its client is behind with what was written to it, or has caught up.
    pub fn set_behind(&self, behind: bool) {
        self.0.behind.store(behind, Ordering::Relaxed);
    }

    /// Whether whoever sent the head that is late can be told: it has begun one, and nothing else is
    /// on its way.
    pub fn are_owed_an_answer(&self) -> bool {
        self.0.waiting.lock().begun.is_some() && !self.0.behind.load(Ordering::Relaxed)
    }
}

impl rt::Timer for Heads {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        TokioTimer::new().sleep(duration)
    }

    /// hyper begins to wait for a head, until `idle` if nothing of it comes.
    fn sleep_until(&self, idle: Moment) -> Pin<Box<dyn rt::Sleep>> {
        let mut waiting = self.0.waiting.lock();
        if !std::mem::take(&mut waiting.first) {
            self.0.came.store(false, Ordering::Relaxed);
            waiting.begun = None;
        }
        drop(waiting);
        Box::pin(Wait {
            heads: self.0.clone(),
            idle: idle.into(),
        })
    }

    fn now(&self) -> Moment {
        TokioTimer::new().now()
    }
}

/// Ready once the head is late.
struct Wait {
    heads: Arc<Shared>,
    idle: Instant,
}

impl rt::Sleep for Wait {}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiting = self.heads.waiting.lock();
        let Waiting { begun, alarm, .. } = &mut *waiting;
        if begun.is_none() && self.heads.came.load(Ordering::Relaxed) {
            *begun = Some(now());
        }
        let until = begun.map_or(self.idle, |begun| begun + self.heads.header);
        if until < alarm.deadline() {
            alarm.as_mut().reset(until);
        }
        ready!(alarm.as_mut().poll(cx));
        if alarm.deadline() < until {
            // It was set for a head before this one.
            alarm.as_mut().reset(until);
            ready!(alarm.as_mut().poll(cx));
        }
        Poll::Ready(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a head takes is timed here"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use hyper::rt::Timer;

    use super::*;

    const HEADER: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(75);

    /// How long a head is waited for of which the bytes come at these times.
    async fn waits(heads: &Heads, bytes: &[u64]) -> Duration {
        let began = now();
        let mut wait = heads.sleep_until((began + IDLE).into());
        let mut bytes = bytes.iter();
        loop {
            let next = bytes.next().map(|at| began + Duration::from_secs(*at));
            let comes = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait.as_mut() => return began.elapsed(),
                () = comes => heads.bytes_came(),
            }
        }
    }

    fn about(seconds: u64, waited: Duration) {
        let off = waited.abs_diff(Duration::from_secs(seconds));
        assert!(off < Duration::from_millis(10), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_has_longer_than_a_head() {
        let heads = Heads::new(HEADER, now());
        about(10, waits(&heads, &[]).await);
        about(75, waits(&heads, &[]).await);
        about(13, waits(&heads, &[3, 4, 12]).await);
        about(84, waits(&heads, &[74, 80]).await);
        about(75, waits(&heads, &[]).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_head_begins_with_its_connection() {
        let connected = now();
        tokio::time::sleep(Duration::from_secs(6)).await;
        let heads = Heads::new(HEADER, connected);
        about(4, waits(&heads, &[1, 2, 3]).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_before_is_no_beginning() {
        let heads = Heads::new(HEADER, now());
        drop(heads.sleep_until((now() + IDLE).into()));
        heads.bytes_came();
        about(75, waits(&heads, &[]).await);
    }
}
