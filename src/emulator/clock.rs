//! The emulator's one clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Time since the emulator was made. Everything pure is told what it shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the emulator's clock; tokio's, so that tests may pause it"
    )]
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    pub fn now(self) -> Duration {
        self.start.elapsed()
    }

    /// What a calendar shows, for those answers that carry it.
    #[expect(
        clippy::disallowed_methods,
        reason = "shown to people, decides nothing"
    )]
    pub fn unix_seconds(self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    }

    /// For a timer that ends when the clock shows `time`.
    pub fn instant(self, time: Duration) -> Instant {
        self.start + time
    }
}
