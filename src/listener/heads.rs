//! How long an HTTP/1 connection may wait for its next head.
//!
//! hyper can time that by itself, but knows one time only and asks for a timer with each head. Here an
//! idle connection has longer than a head that has begun, and the one timer there is is moved only when
//! it would be late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::gateway::alarm::Alarm;

/// One connection's. Cheap to clone.
#[derive(Clone)]
pub struct Heads(Arc<Shared>);

struct Shared {
    /// For a head, from its first byte to its last.
    header: Duration,
    /// For a connection on which nothing is under way, until the first byte of a head.
    idle: Duration,
    /// Bytes came since a head is waited for.
    came: AtomicBool,
    /// Its client has not taken all that was written to it.
    behind: AtomicBool,
    state: Mutex<State>,
}

struct State {
    /// A request has been read and its answer is not over yet: no head is waited for.
    under_way: bool,
    /// From when on a head is waited for.
    since: Instant,
    /// When the head that is waited for began. A connection's first has begun with the connection.
    begun: Option<Instant>,
    alarm: Alarm,
}

impl Heads {
    /// `connected`: from when on its first head is waited for.
    pub fn new(header: Duration, idle: Duration, connected: Instant) -> Self {
        let state = State {
            under_way: false,
            since: connected,
            begun: Some(connected),
            alarm: Alarm::default(),
        };
        Self(Arc::new(Shared {
            header,
            idle,
            came: AtomicBool::new(false),
            behind: AtomicBool::new(false),
            state: Mutex::new(state),
        }))
    }

    /// Bytes came. What came before a head is waited for is not counted as its beginning, as it may be
    /// a body's end: such a head may take as long as an idle connection.
    pub fn bytes_came(&self) {
        self.0.came.store(true, Ordering::Relaxed);
    }

    /// Its client is behind with what was written to it, or has caught up.
    pub fn set_behind(&self, behind: bool) {
        self.0.behind.store(behind, Ordering::Relaxed);
    }

    /// The head that was waited for is here.
    pub fn is_read(&self) {
        self.0.state.lock().under_way = true;
    }

    /// The answer to it is over, `at` about now: the next head is waited for.
    pub fn is_answered(&self, at: Instant) {
        let mut state = self.0.state.lock();
        state.under_way = false;
        state.since = at;
        state.begun = None;
        self.0.came.store(false, Ordering::Relaxed);
    }

    /// Whether whoever sent the head that is late can be told: it has begun one, and nothing else is
    /// on its way.
    pub fn are_owed_an_answer(&self) -> bool {
        self.0.state.lock().begun.is_some() && !self.0.behind.load(Ordering::Relaxed)
    }

    /// Ready once the head that is waited for is late.
    pub fn poll_late(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Shared {
            header,
            idle,
            came,
            state,
            ..
        } = &*self.0;
        let mut state = state.lock();
        let State {
            under_way,
            since,
            begun,
            alarm,
        } = &mut *state;
        if *under_way {
            return Poll::Pending;
        }
        if begun.is_none() && came.load(Ordering::Relaxed) {
            *begun = Some(now());
        }
        let late = begun.map_or(*since + *idle, |begun| begun + *header);
        alarm.poll_until(late, cx)
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
    use std::future::poll_fn;

    use tokio::time::sleep_until;

    use super::*;

    const HEADER: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(75);

    /// How long the head that is waited for is waited for if its bytes come at these times, and then
    /// it is there after all.
    async fn waits(heads: &Heads, bytes: &[u64]) -> Duration {
        let began = now();
        let late = poll_fn(|cx| heads.poll_late(cx));
        let mut late = std::pin::pin!(late);
        let mut bytes = bytes.iter();
        let waited = loop {
            let next = bytes.next().map(|at| began + Duration::from_secs(*at));
            let comes = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = late.as_mut() => break began.elapsed(),
                () = comes => heads.bytes_came(),
            }
        };
        heads.is_read();
        heads.is_answered(now());
        waited
    }

    fn about(seconds: u64, waited: Duration) {
        let off = waited.abs_diff(Duration::from_secs(seconds));
        assert!(off < Duration::from_millis(10), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_has_longer_than_a_head() {
        let heads = Heads::new(HEADER, IDLE, now());
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
        let heads = Heads::new(HEADER, IDLE, connected);
        about(4, waits(&heads, &[1, 2, 3]).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_before_is_no_beginning() {
        let heads = Heads::new(HEADER, IDLE, now());
        heads.is_read();
        heads.bytes_came();
        heads.is_answered(now());
        about(75, waits(&heads, &[]).await);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_late_while_a_request_is_under_way() {
        let heads = Heads::new(HEADER, IDLE, now());
        heads.is_read();
        let late = poll_fn(|cx| heads.poll_late(cx));
        let waited = tokio::time::timeout(IDLE * 10, late).await;
        assert!(waited.is_err());
        heads.is_answered(now());
        about(75, waits(&heads, &[]).await);
    }

    /// A connection is polled for many reasons.
    #[tokio::test(start_paused = true)]
    async fn whoever_is_woken_meanwhile_is_woken_in_time_all_the_same() {
        let heads = Heads::new(HEADER, IDLE, now());
        heads.is_read();
        heads.is_answered(now());
        let began = now();
        let mut ticks = tokio::time::interval(Duration::from_secs(7));
        poll_fn(|cx| {
            while ticks.poll_tick(cx).is_ready() {}
            heads.poll_late(cx)
        })
        .await;
        about(75, began.elapsed());
    }
}
