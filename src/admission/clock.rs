//! The one clock of the admission floor: the runtime's own, so that paused time is paused here.

use std::time::Duration;

use tokio::time::Instant;

use crate::limit::quota::Timestamp;

/// The core's time starts here, so that a lane made at start-up already has a past: more than the
/// longest window.
const HEAD_START: Duration = Duration::from_secs(48 * 3600);

#[derive(Clone, Copy, Debug)]
pub struct Clock {
    epoch: Instant,
}

impl Clock {
    /// A clock whose epoch is about now.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one owner of the admission floor's clock"
    )]
    pub fn start() -> Self {
        Self {
            epoch: Instant::now(),
        }
    }

    /// As the runtime counts.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one owner of the admission floor's clock"
    )]
    pub fn read(&self) -> Instant {
        Instant::now()
    }

    pub fn now(&self) -> Timestamp {
        self.at(self.read())
    }

    /// `instant` as the core counts.
    pub fn at(&self, instant: Instant) -> Timestamp {
        let since = instant.saturating_duration_since(self.epoch);
        Timestamp::from_epoch(since.saturating_add(HEAD_START))
    }

    /// `timestamp` as the runtime counts.
    pub fn instant(&self, timestamp: Timestamp) -> Instant {
        let since = timestamp.since(Timestamp::from_epoch(HEAD_START));
        // Past what an instant can hold is past every deadline.
        self.epoch
            .checked_add(since)
            .unwrap_or(self.epoch + Duration::from_secs(86_400 * 365))
    }
}
