//! When it is worth coming back: what a lane remembers of its last W to answer that.
//!
//! Estimates only. Nothing here admits or refuses.

use std::time::Duration;

use crate::limit::flow::{FlowId, FlowMap};
use crate::limit::quota::Timestamp;

/// Flows remembered at most.
const FLOWS: usize = 1024;
/// Exchanges whose length is remembered.
const HOLDS: usize = 31;

/// Admissions of one flow in the current and the last span.
#[derive(Clone, Copy)]
struct Pace {
    start: Timestamp,
    last: u32,
    current: u32,
}

pub struct Estimates {
    span: Duration,
    paces: FlowMap<Pace>,
    /// When flows were last looked through for some to forget.
    swept: Timestamp,
    holds: [Duration; HOLDS],
    seen: usize,
}

impl Estimates {
    /// `span`: W, or what stands for it. Above zero.
    pub fn new(span: Duration) -> Self {
        Self {
            span,
            paces: FlowMap::default(),
            swept: Timestamp::EPOCH,
            holds: [Duration::ZERO; HOLDS],
            seen: 0,
        }
    }

    pub fn set_span(&mut self, span: Duration) {
        self.span = span;
    }

    /// A waiter of `flow` was admitted.
    pub fn admitted(&mut self, flow: FlowId, now: Timestamp) {
        let span = self.span;
        if self.paces.len() >= FLOWS && !self.paces.contains_key(&flow) {
            // Looking at all of them is worth it now and then only.
            if now.since(self.swept) < span {
                return;
            }
            self.swept = now;
            self.paces
                .retain(|_, pace| now.since(pace.start) < span * 2);
            if self.paces.len() >= FLOWS {
                return;
            }
        }
        let pace = self.paces.entry(flow).or_insert(Pace {
            start: now,
            last: 0,
            current: 0,
        });
        let age = now.since(pace.start);
        if age >= span {
            let last = if age < span * 2 { pace.current } else { 0 };
            *pace = Pace {
                start: now,
                last,
                current: 0,
            };
        }
        pace.current += 1;
    }

    /// An exchange held its permit this long.
    pub fn held(&mut self, hold: Duration) {
        self.holds[self.seen % HOLDS] = hold;
        self.seen = self.seen.wrapping_add(1);
    }

    /// How long until a request at `place` (from 1) of its flow goes, at the flow's late pace.
    /// `None` if the flow was never seen waiting.
    pub fn by_pace(&self, flow: FlowId, place: u32, now: Timestamp) -> Option<Duration> {
        let pace = self.paces.get(&flow)?;
        let age = now.since(pace.start);
        if age >= self.span * 2 {
            return None;
        }
        let (admitted, over) = match pace.last {
            // What was seen so far took no whole span: told one for each place, the first to be
            // refused would come back in an hour.
            0 => (pace.current.max(1), age.min(self.span)),
            last => (last.max(pace.current), self.span),
        };
        Some(over.saturating_mul(place) / admitted)
    }

    /// The median time a permit is out; zero before any came back.
    pub fn median_hold(&self) -> Duration {
        let seen = self.seen.min(HOLDS);
        let mut holds = self.holds;
        let known = &mut holds[..seen];
        known.sort_unstable();
        known.get(seen / 2).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_epoch(Duration::from_millis(millis))
    }

    #[test]
    fn a_flow_with_ten_admissions_a_window_waits_a_tenth_of_it_per_place() {
        let mut estimates = Estimates::new(Duration::from_secs(10));
        for step in 0..15 {
            estimates.admitted(FlowId(1), at(step * 1_000));
        }
        let wait = estimates.by_pace(FlowId(1), 3, at(15_000));
        assert_eq!(wait, Some(Duration::from_secs(3)));
        assert_eq!(estimates.by_pace(FlowId(2), 3, at(15_000)), None);
    }

    #[test]
    fn a_flow_that_has_just_come_is_judged_by_the_time_it_is_here() {
        let mut estimates = Estimates::new(Duration::from_secs(10));
        for step in 0..20 {
            estimates.admitted(FlowId(1), at(step * 10));
        }
        let wait = estimates.by_pace(FlowId(1), 200, at(200));
        assert_eq!(wait, Some(Duration::from_secs(2)));
    }

    #[test]
    fn flows_remembered_are_bounded() {
        let mut estimates = Estimates::new(Duration::from_secs(10));
        for flow in 0..10_000 {
            estimates.admitted(FlowId(flow), at(flow));
        }
        assert!(estimates.paces.len() <= FLOWS);
    }

    #[test]
    fn the_median_is_of_what_was_seen() {
        let mut estimates = Estimates::new(Duration::from_secs(10));
        assert_eq!(estimates.median_hold(), Duration::ZERO);
        for millis in [5, 900, 7] {
            estimates.held(Duration::from_millis(millis));
        }
        assert_eq!(estimates.median_hold(), Duration::from_millis(7));
    }
}
