//! The ladder: the limits in force, as 429s and clean windows have taught them. First the burst
//! shrinks, at its floor the limit does (or the permits, where they are what bound), and each comes
//! back by windows in which somebody waited and nothing was refused.
//! Pure: told of events, asked for the limits.

use std::time::Duration;

use crate::limit::ledger::{Effective, is_shaped};
use crate::limit::memory::Learnt;
use crate::limit::quota::{Burst, Quota, Rate, Timestamp, nanos};

/// Clean windows before the burst doubles, doubling at each failure up to `LONGEST_RELEARN`.
const RELEARN_WINDOWS: u32 = 30;
const LONGEST_RELEARN: Duration = Duration::from_secs(3600);
/// The window of a lane without a rate: only its permits can be throttled.
const UNRATED_WINDOW: Duration = Duration::from_secs(10);
/// Percent of N that the first clean window gives back; the next ones double it.
const FIRST_STEP: u32 = 2;
const LAST_STEP: u32 = 16;

/// Why the upstream refused, as far as can be told from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The window or burst it counts is narrower than ours.
    Rate,
    /// Too many at once.
    Concurrency,
    /// Somebody else spends this budget, or the limit has changed.
    Outside,
}

/// One 429, with what the ledger knew when it came.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// When the refused request was admitted.
    pub dispatched: Timestamp,
    pub probe: bool,
    /// What the upstream asked for, unclamped.
    pub retry_after: Option<Duration>,
    /// Arrivals of the last W it did accept.
    pub accepted: u32,
    /// Window slots taken.
    pub used: u32,
    /// Permits out, the refused one included.
    pub in_use: u32,
}

pub struct Ladder {
    quota: Quota,
    base: Effective,
    effective: Effective,
    /// 429s of requests dispatched before this belong to the episode already answered.
    reacted: Option<Timestamp>,
    /// Arrivals accepted in the W before that reaction, if it shrank the limit: answers still
    /// under way then are added as they come.
    accepted: Option<u32>,
    /// The window that is watched for 429s.
    window_start: Timestamp,
    waited: bool,
    step: u32,
    clean_windows: u32,
    relearn_after: u32,
    /// The burst has grown back since it last failed.
    relearnt: bool,
}

impl Ladder {
    pub fn new(quota: Quota, now: Timestamp) -> Self {
        let base = Effective::of(&quota);
        Self {
            quota,
            base,
            effective: base,
            reacted: None,
            accepted: None,
            window_start: now,
            waited: false,
            step: FIRST_STEP,
            clean_windows: 0,
            relearn_after: RELEARN_WINDOWS,
            relearnt: false,
        }
    }

    /// What was learnt, for the next process.
    pub fn learnt(&self) -> Learnt {
        let (now, base) = (self.effective, self.base);
        let learnt = |now: u32, base: u32| (now != base).then_some(now);
        Learnt {
            requests: learnt(now.requests, base.requests),
            burst: learnt(now.burst, base.burst),
            concurrency: learnt(now.concurrency, base.concurrency),
            relearn_after: match self.relearn_after {
                RELEARN_WINDOWS => 0,
                longer => longer,
            },
        }
    }

    /// Goes on from what an earlier process has learnt, within the quota.
    pub fn recall(&mut self, learnt: &Learnt) {
        let within = |learnt: Option<u32>, base: u32, most: u32| match learnt {
            Some(learnt) => learnt.clamp(1, most.max(1)),
            None => base,
        };
        let (base, most_burst) = (self.base, self.most_burst());
        self.effective = Effective {
            requests: within(learnt.requests, base.requests, base.requests),
            burst: within(learnt.burst, base.burst, most_burst),
            concurrency: within(learnt.concurrency, base.concurrency, base.concurrency),
        };
        self.relearn_after = learnt.relearn_after.max(RELEARN_WINDOWS);
    }

    /// W, or what stands for it.
    pub fn window(&self) -> Duration {
        self.quota.rate.map_or(UNRATED_WINDOW, Rate::period)
    }

    /// The limits in force.
    pub fn effective(&self) -> Effective {
        self.effective
    }

    /// They are what the quota says.
    pub fn is_at_rest(&self) -> bool {
        self.effective == self.base
    }

    /// Lets time pass. `tried`: somebody waited since the last call, and was not held up by a pause:
    /// only what was sent can be refused. `true` if a window was clean.
    pub fn advance(&mut self, tried: bool, now: Timestamp) -> bool {
        self.waited |= tried;
        let window = nanos(self.window());
        let mut clean = false;
        loop {
            let since = now.nanos_since(self.window_start);
            if since < window {
                return clean;
            }
            let over = match (since / window, self.waited) {
                (_, true) => 1,
                // Nothing was shown in any of them, nothing is given back.
                (idle, false) => idle,
            };
            self.window_start = self.window_start + Duration::from_nanos(over * window);
            if self.waited {
                self.clean_window();
                clean = true;
            }
            self.waited = tried;
        }
    }

    /// When the limits grow by time alone, if somebody waits until then without a 429.
    pub fn grows_at(&self) -> Option<Timestamp> {
        let learnt = self.effective.requests < self.base.requests
            || self.effective.concurrency < self.base.concurrency;
        learnt.then(|| self.window_start + self.window())
    }

    /// A whole W without a 429 in which somebody waited.
    fn clean_window(&mut self) {
        if self.grows_at().is_some() {
            let give = |now: u32, base: u32| {
                let step = u64::from(base) * u64::from(self.step) / 100;
                let more = u32::try_from(step).unwrap_or(u32::MAX).max(1);
                now.saturating_add(more).min(base)
            };
            self.effective.requests = give(self.effective.requests, self.base.requests);
            self.effective.concurrency = give(self.effective.concurrency, self.base.concurrency);
            self.step = (self.step * 2).min(LAST_STEP);
            self.clean_windows = 0;
            return;
        }
        self.step = FIRST_STEP;
        self.clean_windows += 1;
        if self.clean_windows >= self.relearn_after && self.effective.burst < self.most_burst() {
            self.effective.burst = self
                .effective
                .burst
                .saturating_mul(2)
                .min(self.most_burst());
            self.clean_windows = 0;
            self.relearnt = true;
        }
    }

    /// `burst: auto` may learn up to N; a fixed one never exceeds itself.
    fn most_burst(&self) -> u32 {
        match self.quota.burst {
            Burst::Auto => self.base.requests,
            Burst::Fixed(_) => self.base.burst,
        }
    }

    /// Whether this 429 belongs to the episode that was already answered.
    pub fn is_same_episode(&self, refusal: &Refusal) -> bool {
        self.reacted
            .is_some_and(|reacted| refusal.dispatched <= reacted)
    }

    /// The upstream answered 429: one reaction for each episode, none to a probe's own.
    /// `advance` to `now` first.
    pub fn refused(&mut self, refusal: &Refusal, now: Timestamp) -> Cause {
        self.window_start = now;
        self.waited = false;
        self.clean_windows = 0;
        self.step = FIRST_STEP;

        let cause = self.cause(refusal);
        if !self.is_same_episode(refusal) && !refusal.probe {
            self.reacted = Some(now);
            self.accepted = None;
            match cause {
                Cause::Concurrency => self.shrink_concurrency(refusal),
                Cause::Rate | Cause::Outside => self.shrink_rate(refusal),
            }
        }
        match cause {
            Cause::Concurrency => Cause::Concurrency,
            _ if self.effective.requests < self.base.requests => Cause::Outside,
            other => other,
        }
    }

    fn cause(&self, refusal: &Refusal) -> Cause {
        let tenths = |part: u32, whole: u32| u64::from(part) * 10 >= u64::from(whole) * 9;
        let permits = self.effective.concurrency != u32::MAX
            && tenths(refusal.in_use, self.effective.concurrency);
        let window =
            self.effective.requests != u32::MAX && tenths(refusal.used, self.effective.requests);
        if permits && !window {
            Cause::Concurrency
        } else {
            Cause::Rate
        }
    }

    fn shrink_concurrency(&mut self, refusal: &Refusal) {
        let accepted = refusal.in_use.saturating_sub(1);
        let learnt = percent(accepted, 97).min(self.effective.concurrency);
        self.effective.concurrency = learnt.max(self.base.concurrency / 10).max(1);
    }

    fn shrink_rate(&mut self, refusal: &Refusal) {
        if self.base.requests == u32::MAX {
            return;
        }
        let floor = (self.base.requests / 50).max(1).min(self.base.burst);
        if is_shaped(&self.quota) && self.effective.burst > floor {
            self.effective.burst = (self.effective.burst / 4).max(floor);
            if self.relearnt {
                let windows = LONGEST_RELEARN.as_nanos() / self.window().as_nanos().max(1);
                let most = u32::try_from(windows)
                    .unwrap_or(u32::MAX)
                    .max(RELEARN_WINDOWS);
                self.relearn_after = self.relearn_after.saturating_mul(2).min(most);
                self.relearnt = false;
            }
            return;
        }
        self.accepted = Some(refusal.accepted);
        self.learn_limit(refusal.accepted.min(self.effective.requests));
    }

    fn learn_limit(&mut self, accepted: u32) {
        self.effective.requests = percent(accepted, 97).max(self.base.requests / 10).max(1);
    }

    /// The upstream accepted, during the pause that followed the last reaction, a request that may
    /// have been under way at it: then it counts for what was accepted before.
    pub fn answered(&mut self, dispatched: Timestamp) {
        let under_way = self.reacted.is_some_and(|reacted| dispatched <= reacted);
        if let (true, Some(accepted)) = (under_way, &mut self.accepted) {
            *accepted += 1;
            let accepted = (*accepted).min(self.base.requests);
            self.learn_limit(accepted);
        }
    }

    /// Another quota: what was learnt stays, within it.
    pub fn retune(&mut self, quota: Quota) {
        let (learnt, old) = (self.effective, self.base);
        self.quota = quota;
        self.base = Effective::of(&quota);
        let keep = |learnt: u32, old: u32, new: u32, most: u32| match learnt == old {
            true => new,
            false => learnt.min(most),
        };
        let (base, most_burst) = (self.base, self.most_burst());
        self.effective = Effective {
            requests: keep(learnt.requests, old.requests, base.requests, base.requests),
            burst: keep(learnt.burst, old.burst, base.burst, most_burst),
            concurrency: keep(
                learnt.concurrency,
                old.concurrency,
                base.concurrency,
                base.concurrency,
            ),
        };
    }
}

fn percent(of: u32, percent: u32) -> u32 {
    u32::try_from(u64::from(of) * u64::from(percent) / 100).unwrap_or(u32::MAX)
}
