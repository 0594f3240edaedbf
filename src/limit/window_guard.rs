//! Window guard: over any span of W, both ends counted, at most N requests arrive upstream,
//! whatever the transit up to `margin`.
//!
//! A slot is taken at admission. What counts is the arrival upstream, which can only be bounded
//! from here: the slot is free again strictly after that bound + W + slack. If every arrival lies
//! between its admission and its bound, the last-admitted of N + 1 arrivals in one W would have
//! found N slots taken. O(1) per event, eight bytes a stamp.
//! Pure: no clock, no lock, no I/O. Whoever calls passes `now`, which must not run backwards.

use std::collections::VecDeque;
use std::time::Duration;

use crate::limit::memory::Past;
use crate::limit::quota::{Rate, Timestamp};

/// Stamps kept at least, also past N: `shadow` and `disabled` lanes stamp without a bound, and a
/// window that grows later must still find what they let out.
const STAMPS_KEPT: usize = 1 << 16;

/// Where one admitted request stands in the window. Handed back with every event about it.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Nothing is known yet.
    Open,
    /// No more will be written; `ticket` finds the pending bound.
    Sent { ticket: u64 },
    /// The bound stands, the slot is on its way to freedom.
    Bounded,
}

/// A request that will have arrived at `bound` at the latest, unless its answer comes first.
struct Pending {
    bound: Timestamp,
    answered: bool,
}

pub struct WindowGuard {
    /// `None`: no limit. What is on its way is known all the same, should there be one later.
    rate: Option<Rate>,
    /// How long past its bound a slot stays taken, by `rate`: W and a thousandth of it, as clocks
    /// differ. Kept, as every event asks for it.
    hold: Duration,
    /// At most this many slots, those of `rate` unless the throttle shrank it.
    limit: u32,
    open: u32,
    pending: VecDeque<Pending>,
    /// The ticket of `pending`'s front.
    first_ticket: u64,
    /// Entries of `pending` not answered yet.
    unanswered: u32,
    /// Bounds of arrivals, ascending.
    bounded: VecDeque<Timestamp>,
    /// Bounds of arrivals the upstream refused, ascending: they keep their slots too.
    refused: VecDeque<Timestamp>,
    /// Slots at the front of `bounded` that stand for a past nobody knows, and their bound.
    unknown: Option<(u32, Timestamp)>,
}

impl WindowGuard {
    pub fn new(rate: Option<Rate>) -> Self {
        Self {
            rate,
            hold: rate.map_or(Duration::ZERO, hold),
            limit: slots(rate),
            open: 0,
            pending: VecDeque::new(),
            first_ticket: 0,
            unanswered: 0,
            bounded: VecDeque::new(),
            refused: VecDeque::new(),
            unknown: None,
        }
    }

    /// A guard that knows nothing of the past, in which all has arrived by `latest`.
    pub fn spent(rate: Option<Rate>, latest: Timestamp) -> Self {
        let mut guard = Self::new(rate);
        guard.spend(latest);
        guard
    }

    /// Nothing is known of the past but that all of it has arrived by `latest`: it fills the
    /// window, however many slots that has.
    fn spend(&mut self, latest: Timestamp) {
        self.bounded.clear();
        self.unknown = Some((0, latest));
        self.fill();
    }

    fn fill(&mut self) {
        if let (Some((filled, bound)), Some(rate)) = (&mut self.unknown, self.rate) {
            for _ in *filled..rate.requests() {
                self.bounded.push_front(*bound);
            }
            *filled = rate.requests().max(*filled);
        }
    }

    /// Forgets what can no longer share a window with an arrival at or after `now`.
    pub fn advance(&mut self, now: Timestamp) {
        while let Some(pending) = self.pending.front() {
            if !pending.answered {
                if pending.bound > now {
                    break;
                }
                let bound = pending.bound;
                self.unanswered -= 1;
                self.stamp(bound);
            }
            self.pending.pop_front();
            self.first_ticket += 1;
        }
        let hold = self.hold;
        while self
            .bounded
            .front()
            .is_some_and(|&bound| bound + hold < now)
        {
            self.bounded.pop_front();
            // They all go at once.
            self.unknown = None;
        }
        while self
            .refused
            .front()
            .is_some_and(|&bound| bound + hold < now)
        {
            self.refused.pop_front();
        }
        if self.bounded.is_empty() && self.bounded.capacity() > 64 {
            self.bounded.shrink_to(64);
        }
    }

    fn stamp(&mut self, bound: Timestamp) {
        // Late reports and a shrunken margin may name an earlier bound; a later one is as safe.
        let bound = self.bounded.back().map_or(bound, |&last| last.max(bound));
        self.bounded.push_back(bound);
        if self.bounded.len() > self.most_stamps() {
            self.bounded.pop_front();
        }
    }

    fn most_stamps(&self) -> usize {
        STAMPS_KEPT.max(self.rate.map_or(0, Rate::requests) as usize)
    }

    /// Slots taken: admitted and not yet free. `advance` first.
    pub fn used(&self) -> u32 {
        self.unbounded() + u32::try_from(self.bounded.len()).unwrap_or(u32::MAX)
    }

    /// Slots taken by requests whose arrival is not bounded yet.
    fn unbounded(&self) -> u32 {
        self.open + self.unanswered
    }

    /// Arrivals of the last W that the upstream did not refuse. `advance` first.
    pub fn accepted(&self) -> u32 {
        u32::try_from(self.bounded.len().saturating_sub(self.refused.len())).unwrap_or(u32::MAX)
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Sets the most slots at once; those taken beyond it stay taken until their time.
    pub fn set_limit(&mut self, limit: u32) {
        self.limit = limit.clamp(1, slots(self.rate));
    }

    /// The earliest time at which `nth` (from 1) more slots can have become free. `advance` first.
    ///
    /// A lower bound: an unbounded slot counts as free W from now, and every slot taken meanwhile
    /// as bounded the moment it was taken.
    pub fn nth_free(&self, nth: u32, now: Timestamp) -> Timestamp {
        let rounds = (nth.max(1) - 1) / self.limit;
        let nth = nth.max(1) - rounds * self.limit;
        let first_round = match (self.used() + nth).saturating_sub(self.limit) {
            0 => now,
            needed => match self.bounded.get(needed as usize - 1) {
                Some(&bound) => (bound + self.hold).next(),
                None => (now + self.hold).next(),
            },
        };
        first_round + self.hold * rounds
    }

    /// Takes a slot whether or not one is free: asking first is the ledger's business.
    pub fn take(&mut self) -> Arrival {
        self.open += 1;
        Arrival::Open
    }

    /// Nothing was written: the slot is free at once. No effect once something was.
    pub fn unsent(&mut self, arrival: Arrival) {
        if arrival == Arrival::Open {
            self.open -= 1;
        }
    }

    /// No more of the request will be written, the last byte went out before `bound - margin`.
    pub fn sent(&mut self, arrival: &mut Arrival, bound: Timestamp) {
        if *arrival != Arrival::Open {
            return;
        }
        self.open -= 1;
        self.unanswered += 1;
        let bound = self
            .pending
            .back()
            .map_or(bound, |last| last.bound.max(bound));
        self.pending.push_back(Pending {
            bound,
            answered: false,
        });
        let ticket = self.first_ticket + self.pending.len() as u64 - 1;
        *arrival = Arrival::Sent { ticket };
    }

    /// The request has arrived, at `now` at the latest. `advance` to `now` first.
    pub fn arrived(&mut self, arrival: &mut Arrival, now: Timestamp) {
        match *arrival {
            Arrival::Open => {
                self.open -= 1;
                self.stamp(now);
            }
            Arrival::Sent { ticket } => {
                let index = ticket.checked_sub(self.first_ticket);
                let pending = index.and_then(|index| self.pending.get_mut(index as usize));
                if let Some(pending) = pending.filter(|pending| !pending.answered) {
                    pending.answered = true;
                    self.unanswered -= 1;
                    self.stamp(now);
                }
            }
            Arrival::Bounded => {}
        }
        *arrival = Arrival::Bounded;
    }

    /// The upstream refused an arrival just bounded: it keeps its slot, and is no budget used.
    pub fn refused(&mut self, now: Timestamp) {
        self.refused.push_back(now);
        if self.refused.len() > self.most_stamps() {
            self.refused.pop_front();
        }
    }

    /// A new N or W from now on; nothing taken is forgiven. Where there was no limit, no arrivals
    /// were kept: the past has arrived by `latest`, and what is still written is known.
    pub fn retune(&mut self, rate: Option<Rate>, latest: Timestamp) {
        let unlimited = self.rate.is_none();
        self.rate = rate;
        self.limit = self.limit.clamp(1, slots(rate));
        self.hold = rate.map_or(Duration::ZERO, hold);
        if unlimited && rate.is_some() {
            self.spend(latest);
        }
        self.fill();
    }

    /// What the next process has to know. What is on its way has arrived `ahead` from `now` at the
    /// latest. `advance` to `now` first.
    pub fn remember(&self, ahead: Duration, now: Timestamp) -> Past {
        let latest = now + ahead;
        if self.rate.is_none() || self.unknown.is_some() {
            return Past::Unknown { ahead };
        }
        let before = |bound: &Timestamp| latest.since(*bound);
        let on_their_way = self.unbounded() as usize;
        let arrivals = self.bounded.iter().map(before);
        let arrivals = arrivals.chain(std::iter::repeat_n(Duration::ZERO, on_their_way));
        Past::Known {
            ahead,
            arrivals: arrivals.collect(),
        }
    }

    /// A guard that goes on from what another has known, `elapsed` before `now`.
    pub fn recall(rate: Option<Rate>, past: &Past, elapsed: Duration, now: Timestamp) -> Self {
        let latest = |ahead: Duration| (now + ahead).before(elapsed);
        match past {
            Past::Unknown { ahead } => Self::spent(rate, latest(*ahead)),
            Past::Known { ahead, arrivals } => {
                let mut guard = Self::new(rate);
                for &before in arrivals {
                    guard.stamp(latest(*ahead).before(before));
                }
                guard
            }
        }
    }

    /// Nothing is taken: the guard could be forgotten. `advance` first.
    pub fn is_empty(&self) -> bool {
        self.used() == 0
    }
}

fn slots(rate: Option<Rate>) -> u32 {
    rate.map_or(u32::MAX, Rate::requests)
}

/// How long past its bound a slot of `rate` stays taken.
pub fn hold(rate: Rate) -> Duration {
    rate.period() + rate.period() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: Duration = Duration::from_secs(10);
    const SLACK: Duration = Duration::from_millis(10);
    const MARGIN: Duration = Duration::from_millis(250);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_epoch(Duration::from_millis(millis))
    }

    fn guard(requests: u32) -> WindowGuard {
        WindowGuard::new(Rate::new(requests, W))
    }

    #[test]
    fn a_slot_is_free_strictly_after_bound_and_window_and_slack() {
        let mut guard = guard(1);
        let mut slot = guard.take();
        guard.arrived(&mut slot, at(100));
        let free = guard.nth_free(1, at(100));
        assert_eq!(free, (at(100) + W + SLACK).next());
        guard.advance(at(100) + W + SLACK);
        assert_eq!(guard.used(), 1, "a tie still shares the window");
        guard.advance(free);
        assert_eq!(guard.used(), 0);
    }

    #[test]
    fn a_late_answer_is_bounded_by_the_last_byte_and_margin() {
        let mut guard = guard(1);
        let mut slot = guard.take();
        guard.sent(&mut slot, at(0) + MARGIN);
        guard.advance(at(90_000));
        assert!(
            guard.is_empty(),
            "a call held for 90 s spends its slot for one W only"
        );
        guard.arrived(&mut slot, at(90_000));
        assert!(guard.is_empty());
    }

    #[test]
    fn an_early_answer_bounds_before_the_margin() {
        let mut guard = guard(1);
        let mut slot = guard.take();
        guard.sent(&mut slot, at(0) + MARGIN);
        guard.arrived(&mut slot, at(40));
        assert_eq!(guard.nth_free(1, at(40)), (at(40) + W + SLACK).next());
        guard.advance(at(300));
        assert_eq!(guard.used(), 1, "stamped once");
    }

    #[test]
    fn a_body_that_is_still_written_stays_unbounded() {
        let mut guard = guard(1);
        let _slot = guard.take();
        guard.advance(at(3_600_000));
        assert_eq!(guard.used(), 1);
    }

    #[test]
    fn unsent_frees_at_once_and_only_what_was_never_written() {
        let mut guard = guard(2);
        let first = guard.take();
        guard.unsent(first);
        assert!(guard.is_empty());
        let mut second = guard.take();
        guard.sent(&mut second, at(10));
        guard.unsent(second);
        assert_eq!(guard.used(), 1);
    }

    #[test]
    fn the_forecast_counts_rounds_beyond_the_first() {
        let mut guard = guard(2);
        let mut slots = [guard.take(), guard.take()];
        guard.arrived(&mut slots[0], at(0));
        guard.arrived(&mut slots[1], at(1_000));
        let hold = W + SLACK;
        assert_eq!(guard.nth_free(1, at(2_000)), (at(0) + hold).next());
        assert_eq!(guard.nth_free(2, at(2_000)), (at(1_000) + hold).next());
        assert_eq!(guard.nth_free(3, at(2_000)), (at(0) + hold + hold).next());
    }

    #[test]
    fn a_shrunken_limit_keeps_the_stamps_it_has() {
        let mut guard = guard(4);
        for millis in 0..4 {
            let mut slot = guard.take();
            guard.arrived(&mut slot, at(millis));
        }
        guard.retune(Rate::new(2, W), at(10));
        assert_eq!(guard.used(), 4);
        assert_eq!(guard.nth_free(1, at(10)), (at(2) + W + SLACK).next());
    }

    #[test]
    fn spent_is_one_window_of_nothing() {
        let guard = WindowGuard::spent(Rate::new(3, W), at(5));
        assert_eq!(guard.used(), 3);
        assert_eq!(guard.nth_free(1, at(5)), (at(5) + W + SLACK).next());
    }

    #[test]
    fn what_was_on_its_way_without_a_limit_counts_under_one() {
        let mut guard = WindowGuard::new(None);
        let mut slots = [guard.take(), guard.take()];
        guard.sent(&mut slots[0], at(0) + MARGIN);
        guard.advance(at(5_000));
        assert_eq!(guard.used(), 1, "and who has arrived is forgotten");
        guard.retune(Rate::new(3, W), at(5_000));
        guard.advance((at(5_000) + W + SLACK).next());
        assert_eq!(guard.used(), 1);
    }

    #[test]
    fn a_larger_window_is_spent_as_well() {
        let mut guard = WindowGuard::spent(Rate::new(3, W), at(5));
        guard.retune(Rate::new(9, W), at(5));
        assert_eq!(guard.used(), 9);
        guard.advance((at(5) + W + SLACK).next());
        guard.retune(Rate::new(20, W), at(90_000));
        assert!(guard.is_empty());
    }
}
