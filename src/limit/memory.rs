//! What a lane has to tell the process that comes after it, so that a restart does not spend a
//! window twice. Spans instead of instants: the next process counts from another epoch.

use std::time::Duration;

use crate::limit::ledger::Call;

/// A lane as it stood at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub past: Past,
    pub permits: Vec<Out>,
    /// Whole tokens left in the bucket; `None`: there was none.
    pub tokens: Option<u32>,
    pub learnt: Learnt,
    /// What was left of a pause.
    pub paused: Duration,
}

/// A permit that was out: the upstream may count its exchange still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Out {
    /// How long until it has certainly counted down.
    pub free_in: Duration,
    pub call: Call,
}

/// What a window guard has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Past {
    /// Nobody knows, but all of it has arrived by then: `ahead` from that moment at the latest.
    Unknown { ahead: Duration },
    /// Every arrival that still counted, the earliest bound first: how long before `ahead` from that
    /// moment it was. What was still on its way is bounded by `ahead`.
    Known {
        ahead: Duration,
        arrivals: Vec<Duration>,
    },
}

impl Default for Past {
    /// Nothing was ever sent.
    fn default() -> Self {
        Past::Known {
            ahead: Duration::ZERO,
            arrivals: Vec::new(),
        }
    }
}

/// What 429s have taught; `None` where it is what the configuration says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learnt {
    pub requests: Option<u32>,
    pub burst: Option<u32>,
    pub concurrency: Option<u32>,
    /// Clean windows before the burst is tried larger; zero: as ever.
    pub relearn_after: u32,
}

impl Learnt {
    /// Nothing was learnt.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}
