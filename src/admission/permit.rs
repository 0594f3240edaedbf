//! The right to have one request at the upstream now. It comes back by `Drop`, on every path.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::admission::lane::LaneCell;
use crate::limit::ladder::Cause;
use crate::limit::ledger::{End, Slot};
use crate::limit::local::Budget;

/// Given back when dropped: at once if nothing was written, `settle` later if the exchange ended
/// well, `margin` later if it was torn down.
#[must_use = "dropping a permit gives it back"]
pub struct Permit {
    lane: Arc<LaneCell>,
    slot: Option<Slot>,
    progress: Progress,
    waited: Duration,
}

/// How far the exchange has come, for what dropping means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Unsent,
    Written { last: Instant },
    Complete,
}

impl Permit {
    pub(super) fn new(lane: Arc<LaneCell>, slot: Slot, waited: Duration) -> Self {
        Self {
            lane,
            slot: Some(slot),
            progress: Progress::Unsent,
            waited,
        }
    }

    /// How long the request waited for it.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    pub fn lane(&self) -> &Arc<LaneCell> {
        &self.lane
    }

    /// Bytes of the request went out, the last of them at `last`.
    pub fn wrote(&mut self, last: Instant) {
        if self.progress != Progress::Complete {
            self.progress = Progress::Written { last };
        }
    }

    /// The whole request went out: no more will be written. An answer tells its lane as much, so this
    /// can wait for one until the last byte has arrived in any case: `margin` later.
    pub fn sent(&mut self) {
        if let (Progress::Written { last }, Some(slot)) = (self.progress, &mut self.slot) {
            self.lane.sent(slot, last);
        }
    }

    /// The head of the final response came (a 1xx is none), and it was no 429.
    pub fn answered(&mut self) {
        if let Some(slot) = &mut self.slot {
            self.lane.answered(slot);
        }
    }

    /// The upstream answered 429, with the `Retry-After` it sent.
    pub fn throttled(&mut self, retry_after: Option<Duration>) -> Option<Cause> {
        let slot = self.slot.as_mut()?;
        Some(self.lane.throttled(slot, retry_after))
    }

    /// The last byte of the response was read.
    pub fn complete(&mut self) {
        self.progress = Progress::Complete;
    }

    /// [`Permit::answered`] and [`Permit::complete`] in one step, `at` a moment after the last byte of
    /// the response was read. Returns what is left of the lane's rate, if it has one.
    pub fn ended(mut self, at: Instant) -> Option<Budget> {
        self.lane.ended(self.slot.take()?, at)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(mut slot) = self.slot.take() else {
            return;
        };
        match self.progress {
            Progress::Unsent => self.lane.unsent(slot),
            Progress::Complete => self.lane.give_back(slot, End::Complete),
            Progress::Written { last } => {
                self.lane.sent(&mut slot, last);
                self.lane.give_back(slot, End::Torn);
            }
        }
    }
}
