//! The words of the tests of the core: what happens to a lane, and what is written down of it in
//! plain lists, by which the tests judge.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod world;

use std::num::NonZeroU32;
use std::time::Duration;

use podgate::limit::ledger::{Call, End, Slot};
use podgate::limit::quota::{Burst, Mode, Quota, Rate, Timestamp};
use proptest::prelude::*;

pub const W: Duration = Duration::from_secs(1);
pub const MARGIN: Duration = Duration::from_millis(100);
/// Far enough from zero that a clock can be set back.
pub const START: Timestamp = Timestamp::from_nanos(1_000_000_000_000);
/// Longer than any test: waits until its turn comes.
pub const PATIENT: Duration = Duration::from_secs(1_000);

pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// N in W of a second, C permits; zero: no limit. Unshaped as long as N < 100.
pub fn quota(requests: u32, concurrency: u32) -> Quota {
    Quota {
        margin: MARGIN,
        ..Quota::new(Rate::new(requests, W), NonZeroU32::new(concurrency))
    }
}

pub fn with_period(quota: Quota, period: Duration) -> Quota {
    let requests = quota.rate.map_or(0, Rate::requests);
    Quota {
        rate: Rate::new(requests, period),
        ..quota
    }
}

pub fn with_burst(quota: Quota, burst: u32) -> Quota {
    Quota {
        burst: NonZeroU32::new(burst).map_or(Burst::Auto, Burst::Fixed),
        ..quota
    }
}

/// How long the rule keeps a slot past its bound (semantics, section 3).
pub fn hold(period: Duration) -> Duration {
    period + period / 1000
}

pub fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

/// The most of these that a closed interval of length `span` can hold, when each may fall anywhere
/// between its first and its last moment: the worst that any transit can do.
pub fn most_within(moments: &[(Timestamp, Timestamp)], span: Duration) -> usize {
    let starting_with = |&(_, from): &(Timestamp, Timestamp)| {
        let in_reach =
            |&&(first, last): &&(Timestamp, Timestamp)| last >= from && first <= from + span;
        moments.iter().filter(in_reach).count()
    };
    moments.iter().map(starting_with).max().unwrap_or(0)
}

/// One attempt at the upstream, as it really went.
pub struct Attempt {
    pub request: usize,
    pub call: Call,
    pub admitted: Timestamp,
    /// The limits that let it go; `None` where nothing was enforced.
    pub under: Option<Quota>,
    /// When its last byte went out, once no more will.
    pub last_byte: Option<Timestamp>,
    /// The head of its final response.
    pub head: Option<Timestamp>,
    pub over: Option<(Timestamp, End)>,
    /// Nothing of it was ever written.
    pub unsent: bool,
    /// When it ended, whichever way.
    pub gone: Option<Timestamp>,
    pub slot: Option<Slot>,
}

impl Attempt {
    /// The latest it can have reached the upstream. Nobody knows while it is still written.
    pub fn latest_arrival(&self) -> Option<Timestamp> {
        let written = self.last_byte.map(|last_byte| last_byte + MARGIN);
        [written, self.head].into_iter().flatten().min()
    }

    /// The latest the upstream can have finished it.
    pub fn latest_completion(&self) -> Option<Timestamp> {
        self.over.map(|(over, end)| match end {
            End::Complete => over,
            End::Torn => over + MARGIN,
        })
    }

    /// From when on the upstream has certainly counted down.
    pub fn leaves(&self) -> Option<Timestamp> {
        self.over.map(|(over, end)| match end {
            End::Complete => over + Quota::SETTLE,
            End::Torn => over + MARGIN,
        })
    }

    pub fn is_out(&self, now: Timestamp) -> bool {
        !self.unsent && self.leaves().is_none_or(|leaves| leaves > now)
    }

    pub fn is_open(&self) -> bool {
        self.slot.is_some()
    }

    /// Open, and nothing is known of it yet.
    pub fn is_untouched(&self) -> bool {
        self.is_open() && self.last_byte.is_none() && self.head.is_none()
    }
}

/// One wait for a turn: a request has another one each time it comes back.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    pub flow: u64,
    pub call: Call,
    pub deadline: Timestamp,
    pub began: Timestamp,
    pub ended: Option<(Timestamp, Fate)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Admitted,
    /// On arrival.
    Shed,
    /// By a newcomer to a full queue.
    Evicted,
    Expired,
    Left,
}

/// How long after its last byte, which goes out at once, the attempts of a wait are answered, and
/// how long after that they are over.
pub type Wire = Box<dyn Fn(&Wait) -> (Duration, Duration)>;

#[derive(Clone, Debug)]
pub struct Ask {
    pub gap: Duration,
    pub flow: u64,
    pub call: Call,
    pub patience: Duration,
}

/// What happens to a lane. Numbers pick among those it can happen to.
#[derive(Clone, Debug)]
pub enum Event {
    Ask {
        flow: u64,
        call: Call,
        patience: Duration,
    },
    /// The last byte is out.
    Sent(usize),
    /// The final head is here, and no 429.
    Head(usize),
    /// The final head is a 429.
    Refused(usize, Option<Duration>),
    End(usize),
    /// Torn down; its last byte went out so long ago, if more than one was written at all.
    Torn(usize, Duration),
    Unsent(usize),
    /// One whose exchange is over wants to go again.
    Again(usize),
    Leave(usize),
    Pass(Duration),
    /// To the instant at which the lane asked to be polled.
    Wake,
    /// To the instant at which this one's slot is free by the rule, and so many nanoseconds on.
    Tie(usize, i8),
    /// The clock the lane is told runs backwards by this.
    SetBack(Duration),
    Reload(Quota, Mode),
}
