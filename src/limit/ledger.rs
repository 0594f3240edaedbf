//! The ledger: what a lane has spent. Window slot, token and permit are taken together or not at
//! all, and each comes back by its own rule.
//!
//! A store shared by replicas is its twin: same questions, same answers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::limit::memory::{Memory, Out};
use crate::limit::quota::{Burst, Counts, Quota, Rate, Timestamp};
use crate::limit::throttle::ProbeId;
use crate::limit::token_bucket::TokenBucket;
use crate::limit::window_guard::{Arrival, WindowGuard, hold};

/// Groups with fewer requests a window than this have no shaper: pacing two purges over ten
/// seconds would only make the second wait in vain (semantics, section 3).
const SHAPED_FROM: u32 = 100;

/// How long the upstream keeps the call open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    Short,
    /// Kept open on purpose; at most `hold_share` of the permits.
    Held,
}

/// What an admitted request has taken. Comes back through [`Ledger::unsent`] or
/// [`Ledger::give_back`], exactly once.
#[must_use = "what was taken must come back"]
#[derive(Debug)]
pub struct Slot {
    arrival: Arrival,
    token: bool,
    call: Call,
    taken: Timestamp,
    /// Set while this exchange alone decides whether a paused lane opens.
    pub(super) probe: Option<ProbeId>,
}

impl Slot {
    /// When it was admitted.
    pub fn taken(&self) -> Timestamp {
        self.taken
    }
}

/// How an exchange that was written to ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its last byte was read.
    Complete,
    /// It was torn down; the upstream hears of it `margin` later at the latest.
    Torn,
}

/// Which limit stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    Window,
    Tokens,
    Permits,
    /// Only the share of held calls is used up: a short call could still go.
    HoldShare,
}

/// Nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    pub by: Limit,
    /// Not before this; `None`: not before something comes back.
    pub until: Option<Timestamp>,
}

/// The limits in force, at most those of the quota: what the throttle has learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effective {
    pub requests: u32,
    pub burst: u32,
    pub concurrency: u32,
}

impl Effective {
    /// What `quota` allows before anything was learnt. `u32::MAX` stands for no limit.
    pub fn of(quota: &Quota) -> Self {
        let requests = quota.rate.map_or(u32::MAX, Rate::requests);
        Self {
            requests,
            burst: match quota.burst {
                Burst::Fixed(burst) => burst.get().min(requests),
                // Without a shaper all of it may go at once.
                Burst::Auto if requests < SHAPED_FROM => requests,
                Burst::Auto => requests / 4,
            },
            concurrency: quota.concurrency.map_or(u32::MAX, NonZeroU32::get),
        }
    }
}

/// Whether the bucket shapes this quota at all.
pub fn is_shaped(quota: &Quota) -> bool {
    match (quota.rate, quota.burst) {
        (None, _) => false,
        (Some(rate), Burst::Auto) => rate.requests() >= SHAPED_FROM,
        // A bucket as deep as the window lets it all out: below the shaper's reach it only adds
        // its refill to a wait the window already explains.
        (Some(rate), Burst::Fixed(burst)) => {
            rate.requests() >= SHAPED_FROM || burst.get() < rate.requests()
        }
    }
}

pub struct Ledger {
    quota: Quota,
    effective: Effective,
    window: WindowGuard,
    bucket: Option<TokenBucket>,
    in_use: u32,
    held_in_use: u32,
    /// Permits whose exchange is over, and when they are free.
    settling: BinaryHeap<Reverse<(Timestamp, bool)>>,
}

impl Ledger {
    pub fn new(quota: Quota, now: Timestamp) -> Self {
        Self::with_window(quota, WindowGuard::new(quota.rate), now)
    }

    /// A ledger that cannot know what its lane spent before: one W without a free slot.
    pub fn spent(quota: Quota, now: Timestamp) -> Self {
        let latest_arrival = now + quota.margin;
        Self::with_window(quota, WindowGuard::spent(quota.rate, latest_arrival), now)
    }

    /// A ledger that goes on from what another has known, `elapsed` before `now`.
    pub fn recall(quota: Quota, memory: &Memory, elapsed: Duration, now: Timestamp) -> Self {
        let window = WindowGuard::recall(quota.rate, &memory.past, elapsed, now);
        let mut ledger = Self::with_window(quota, window, now);
        if let (Some(bucket), Some(rate), Some(tokens)) =
            (&mut ledger.bucket, quota.rate, memory.tokens)
            && let Some(depth) = NonZeroU32::new(ledger.effective.burst)
        {
            let then = now.before(elapsed);
            let requests = ledger.effective.requests;
            *bucket = TokenBucket::with_tokens(tokens, depth, requests, rate.period(), then);
            bucket.advance(None, now);
        }
        for out in &memory.permits {
            let held = out.call == Call::Held;
            ledger.in_use += 1;
            ledger.held_in_use += u32::from(held);
            let free = (now + out.free_in).before(elapsed);
            ledger.settling.push(Reverse((free, held)));
        }
        ledger.advance(false, now);
        ledger
    }

    /// What the next process has to know of what was spent; of what was learnt nothing.
    /// `advance` to `now` first.
    pub fn remember(&self, now: Timestamp) -> Memory {
        let call = |held| if held { Call::Held } else { Call::Short };
        let settling = self.settling.iter().map(|&Reverse((free, held))| Out {
            free_in: free.since(now),
            call: call(held),
        });
        // Whatever else is out ends with this process.
        let mut settling: Vec<_> = settling.collect();
        settling.sort_unstable();
        let held = settling.iter().filter(|out| out.call == Call::Held).count();
        let open = self.in_use as usize - settling.len();
        let open_held = self.held_in_use as usize - held;
        let torn = |number| Out {
            free_in: self.quota.margin.max(self.quota.settle),
            call: call(number < open_held),
        };
        Memory {
            past: self.window.remember(self.quota.margin, now),
            permits: settling.into_iter().chain((0..open).map(torn)).collect(),
            tokens: self.bucket.as_ref().map(TokenBucket::tokens),
            ..Memory::default()
        }
    }

    fn with_window(quota: Quota, window: WindowGuard, now: Timestamp) -> Self {
        let effective = Effective::of(&quota);
        let bucket = Self::shaper(&quota, &effective, now);
        Self {
            quota,
            effective,
            window,
            bucket,
            in_use: 0,
            held_in_use: 0,
            settling: BinaryHeap::new(),
        }
    }

    fn shaper(quota: &Quota, effective: &Effective, now: Timestamp) -> Option<TokenBucket> {
        let rate = quota.rate.filter(|_| is_shaped(quota))?;
        let depth = NonZeroU32::new(effective.burst)?;
        Some(TokenBucket::full(
            depth,
            effective.requests,
            rate.period(),
            now,
        ))
    }

    /// Lets time pass. `waiting`: somebody waited since the last call; then tokens do not accrue
    /// more than N/100 above the one that is due, or a stall of the window would save up the next
    /// burst, for ever. Nothing above that one, and a timer's lateness would be lost each time.
    pub fn advance(&mut self, waiting: bool, now: Timestamp) {
        self.window.advance(now);
        if let Some(bucket) = &mut self.bucket {
            let ceiling = waiting.then_some(self.effective.requests / 100 + 1);
            bucket.advance(ceiling, now);
        }
        while let Some(&Reverse((free, held))) = self.settling.peek() {
            if free > now {
                break;
            }
            self.settling.pop();
            self.release(held);
        }
    }

    fn release(&mut self, held: bool) {
        self.in_use -= 1;
        self.held_in_use -= u32::from(held);
    }

    /// Whether there is a permit for one more of these.
    ///
    /// # Errors
    /// [`Denied`]: all that this call may use are out.
    pub fn permits(&self, call: Call) -> Result<(), Denied> {
        let settled = self.settling.peek().map(|&Reverse((free, _))| free);
        if self.in_use >= self.effective.concurrency {
            return Err(Denied {
                by: Limit::Permits,
                until: settled,
            });
        }
        let hold_limit = self.quota.hold_limit(self.effective.concurrency);
        if call == Call::Held && self.held_in_use >= hold_limit {
            return Err(Denied {
                by: Limit::HoldShare,
                until: settled,
            });
        }
        Ok(())
    }

    /// All or nothing. `advance` to `now` first.
    pub fn take(&mut self, call: Call, now: Timestamp) -> Result<Slot, Denied> {
        self.permits(call)?;
        if self.window.used() >= self.window.limit() {
            return Err(Denied {
                by: Limit::Window,
                until: Some(self.window.nth_free(1, now)),
            });
        }
        if let Some(bucket) = &mut self.bucket {
            let denied = |until| Denied {
                by: Limit::Tokens,
                until: Some(until),
            };
            bucket.take(now).map_err(denied)?;
        }
        Ok(self.slot(self.bucket.is_some(), call, now))
    }

    /// Takes what is asked whether or not it is free: `shadow` and `disabled` keep stamping.
    pub fn force(&mut self, call: Call, now: Timestamp) -> Slot {
        let token = self
            .bucket
            .as_mut()
            .is_some_and(|bucket| bucket.take(now).is_ok());
        self.slot(token, call, now)
    }

    fn slot(&mut self, token: bool, call: Call, now: Timestamp) -> Slot {
        self.in_use += 1;
        self.held_in_use += u32::from(call == Call::Held);
        Slot {
            arrival: self.window.take(),
            token,
            call,
            taken: now,
            probe: None,
        }
    }

    /// The earliest time at which `nth` (from 1) more requests can have been admitted; a permit
    /// counts as free now. `advance` to `now` first.
    pub fn nth_admission(&self, nth: u32, now: Timestamp) -> Timestamp {
        let slot = self.window.nth_free(nth, now);
        let token = self
            .bucket
            .as_ref()
            .map_or(now, |bucket| bucket.nth_token(nth, now));
        slot.max(token)
    }

    /// No more of the request will be written: it was sent whole, or aborted. `last_byte` is when
    /// its last byte went out.
    pub fn sent(&mut self, slot: &mut Slot, last_byte: Timestamp) {
        let bound = last_byte + self.quota.margin;
        if self.quota.counts == Counts::Arrival {
            self.window.sent(&mut slot.arrival, bound);
        }
    }

    /// The head of the final response is here (a 1xx is none). `advance` to `now` first.
    pub fn arrived(&mut self, slot: &mut Slot, now: Timestamp) {
        if self.quota.counts == Counts::Arrival {
            self.window.arrived(&mut slot.arrival, now);
        }
    }

    /// That response refused the request for its number: it keeps its slot.
    pub fn refused(&mut self, now: Timestamp) {
        self.window.refused(now);
    }

    /// Nothing was written: slot, permit and token are free at once.
    pub fn unsent(&mut self, slot: Slot) {
        self.release(slot.call == Call::Held);
        self.window.unsent(slot.arrival);
        if let Some(bucket) = self.bucket.as_mut().filter(|_| slot.token) {
            bucket.put_back();
        }
    }

    /// The exchange is over: its permit is free once the upstream has counted down too.
    /// `advance` to `now` first. Returns how long the permit was out.
    pub fn give_back(&mut self, mut slot: Slot, end: End, now: Timestamp) -> Duration {
        let bound = now + self.quota.margin;
        match end {
            // A complete exchange had a head: without `arrived` before it, this is its bound.
            End::Complete => self.window.arrived(&mut slot.arrival, now),
            // With nothing known of its last byte: none can follow now.
            End::Torn => self.window.sent(&mut slot.arrival, bound),
        }
        let after = match end {
            End::Complete => self.quota.settle,
            End::Torn => self.quota.margin.max(self.quota.settle),
        };
        self.settling
            .push(Reverse((now + after, slot.call == Call::Held)));
        now.since(slot.taken)
    }

    /// What the throttle allows from now on. `advance` to `now` first.
    pub fn set_effective(&mut self, effective: Effective, now: Timestamp) {
        if effective == self.effective {
            return;
        }
        self.effective = effective;
        self.window.set_limit(effective.requests);
        if let (Some(bucket), Some(rate)) = (&mut self.bucket, self.quota.rate)
            && let Some(depth) = NonZeroU32::new(effective.burst)
        {
            bucket.reshape(depth, effective.requests, rate.period(), now);
        }
    }

    /// Another quota from now on. The history stays: nothing is forgiven. `advance` first.
    pub fn retune(&mut self, quota: Quota, effective: Effective, now: Timestamp) {
        self.window.retune(quota.rate, now + quota.margin);
        if !is_shaped(&quota) {
            self.bucket = None;
        } else if self.bucket.is_none() {
            self.bucket = Self::shaper(&quota, &effective, now);
        }
        self.quota = quota;
        // Also where nothing was learnt: a new rate or depth reaches guard and bucket by here.
        self.effective = Effective {
            requests: 0,
            burst: 0,
            concurrency: 0,
        };
        self.set_effective(effective, now);
    }

    pub fn quota(&self) -> &Quota {
        &self.quota
    }

    pub fn effective(&self) -> Effective {
        self.effective
    }

    /// Window slots taken; none where no window is kept. `advance` first.
    pub fn window_used(&self) -> u32 {
        self.quota.rate.map_or(0, |_| self.window.used())
    }

    /// Arrivals of the last W not refused. `advance` first.
    pub fn accepted(&self) -> u32 {
        self.window.accepted()
    }

    /// Permits out, those that settle included.
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    /// Nothing is out and the window has emptied: this ledger could be forgotten and made anew.
    pub fn is_idle(&self) -> bool {
        self.in_use == 0 && self.window.is_empty()
    }

    /// How long a window slot is kept past its bound; zero without a rate.
    pub fn window_hold(&self) -> Duration {
        self.quota.rate.map_or(Duration::ZERO, hold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One millisecond is what timers resolve: a tenth of what a token takes here.
    #[test]
    fn a_timer_that_is_late_each_time_costs_no_token() {
        let millis = Duration::from_millis;
        let quota = Quota::new(Rate::new(100, millis(1_000)), None);
        let mut now = Timestamp::from_epoch(millis(1_000));
        let ends = now + millis(20_000);
        let mut ledger = Ledger::new(quota, now);
        let mut taken = 0;
        while now < ends {
            ledger.advance(true, now);
            match ledger.take(Call::Short, now) {
                Ok(mut slot) => {
                    taken += 1;
                    ledger.arrived(&mut slot, now);
                    ledger.give_back(slot, End::Complete, now);
                }
                Err(Denied { until, .. }) => now = until.expect("time decides") + millis(1),
            }
        }
        assert!(taken >= 1_980, "{taken} of 2000");
    }

    #[test]
    fn a_denial_takes_nothing() {
        let now = Timestamp::from_nanos(1);
        let rate = Rate::new(100, Duration::from_secs(10));
        let burst = Burst::Fixed(NonZeroU32::MIN);
        let quota = Quota {
            burst,
            ..Quota::new(rate, NonZeroU32::new(2))
        };
        let mut ledger = Ledger::new(quota, now);
        let slot = ledger.take(Call::Short, now).expect("there is room");
        for _ in 0..10 {
            let denied = ledger.take(Call::Short, now).err().map(|denied| denied.by);
            assert_eq!(denied, Some(Limit::Tokens));
        }
        assert_eq!((ledger.in_use(), ledger.window_used()), (1, 1));
        ledger.unsent(slot);
        assert_eq!((ledger.in_use(), ledger.window_used()), (0, 0));
    }
}
