//! How slowly a client may send its body, or take its answer. Counted is the time in which it is
//! waited for, and no other: an upstream that takes its time is not the client's fault.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::process::Timeouts;
use crate::gateway::alarm::Alarm;

/// The least rate of a body that is sent on while it comes in, in bytes a second: it holds a permit
/// meanwhile. At this rate a permit that `buffers.per_request` did not spare is held for a minute.
/// An answer holds one likewise, if it is too large to be held.
pub const LEAST_RATE: u64 = 16 * 1024;

#[derive(Debug)]
pub struct Pace {
    /// The longest silence.
    idle: Duration,
    /// What is left of the time for all of it.
    total: Duration,
    /// What is left at the least rate, if it is held to one.
    rate: Option<Duration>,
    since: Option<Instant>,
    alarm: Alarm,
}

impl Pace {
    pub fn new(timeouts: &Timeouts) -> Self {
        Self {
            idle: timeouts.body_idle,
            total: timeouts.body_total,
            rate: None,
            since: None,
            alarm: Alarm::default(),
        }
    }

    /// Of an answer: at [`LEAST_RATE`] where the client is behind, and `write` to spare.
    pub fn taking(write: Duration) -> Self {
        Self {
            idle: write,
            total: Duration::MAX,
            rate: Some(write),
            since: None,
            alarm: Alarm::default(),
        }
    }

    /// From here on the body must come at [`LEAST_RATE`], with one longest silence to spare.
    pub fn hold_to_rate(&mut self) {
        self.rate = Some(self.idle);
    }

    /// Bytes came, or were taken.
    pub fn came(&mut self, bytes: u64) {
        if let Some(since) = self.since.take() {
            let waited = now().saturating_duration_since(since);
            self.total = self.total.saturating_sub(waited);
            self.rate = self.rate.map(|rate| rate.saturating_sub(waited));
        }
        let earned = Duration::from_millis(bytes.saturating_mul(1_000) / LEAST_RATE);
        // What was sent fast buys no more than one longest silence.
        self.rate = self.rate.map(|rate| (rate + earned).min(self.idle));
    }

    /// The client is waited for; ready once that was for too long.
    pub fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(now);
        let rate = self.rate.unwrap_or(Duration::MAX);
        let deadline = since + self.idle.min(self.total).min(rate);
        self.alarm.poll_until(deadline, cx)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how slowly a client sends is timed here"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::sleep;

    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        header: Duration::from_secs(10),
        body_idle: Duration::from_secs(10),
        body_total: Duration::from_secs(300),
        write: Duration::from_secs(30),
        keep_alive: Duration::from_secs(75),
        drain: Duration::from_secs(30),
        shutdown_delay: Duration::ZERO,
    };

    /// Sends `bytes` every `gap`; returns when it is too slow, if it ever is within an hour.
    async fn late(mut pace: Pace, bytes: u64, gap: Duration) -> Option<Duration> {
        let began = now();
        while began.elapsed() < Duration::from_secs(3_600) {
            tokio::select! {
                biased;
                () = sleep(gap) => pace.came(bytes),
                () = poll_fn(|cx| pace.poll_late(cx)) => return Some(began.elapsed()),
            }
        }
        None
    }

    fn about(seconds: u64, late: Option<Duration>) {
        let seconds = Duration::from_secs(seconds);
        let off = late.map(|late| late.abs_diff(seconds));
        assert!(
            off.is_some_and(|off| off < Duration::from_secs(1)),
            "{late:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_silence_is_bounded_and_so_is_the_whole() {
        let pace = || Pace::new(&TIMEOUTS);
        about(10, late(pace(), 1, Duration::from_secs(3_000)).await);
        about(300, late(pace(), 1, Duration::from_millis(500)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_streamed_is_held_to_a_rate() {
        let pace = || {
            let mut pace = Pace::new(&TIMEOUTS);
            pace.hold_to_rate();
            pace
        };
        about(10, late(pace(), 1, Duration::from_millis(500)).await);
        about(
            20,
            late(pace(), LEAST_RATE / 4, Duration::from_millis(500)).await,
        );
        about(
            300,
            late(pace(), LEAST_RATE, Duration::from_millis(500)).await,
        );
        let mut early = pace();
        early.came(1 << 30);
        about(10, late(early, 1, Duration::from_millis(500)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_takes_its_time_is_not_the_clients_fault() {
        let mut pace = Pace::new(&TIMEOUTS);
        pace.hold_to_rate();
        for _ in 0..100 {
            // Nobody waits for the client here.
            sleep(Duration::from_secs(60)).await;
            pace.came(1);
        }
        about(10, late(pace, 1, Duration::from_secs(3_000)).await);
    }
}
