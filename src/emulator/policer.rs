//! Rate policers: the ways an upstream may count to N in a window W.
//!
//! Written as plainly as each can be said, because they are the witness against which a limiter is
//! proven; whole numbers only, so that every edge is exact. Pure: no clock, no lock, no I/O.
//!
//! Which of these the real service uses is unknown (contract, section 8, point 7). Whether it counts
//! what it refuses is unknown too; here a refused arrival is not counted, the plainest reading.

use std::collections::VecDeque;
use std::time::Duration;

/// A way of counting. N and W come from the limit it polices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policer {
    /// Accepts while fewer than N accepted arrivals `a` have `now - a < W`.
    #[default]
    SlidingLog,
    /// The same with `now - a <= W`: a window that includes both its ends.
    ClosedWindow,
    /// Counts in the windows `[phase + kW, phase + (k+1)W)`.
    FixedWindow { phase: Duration },
    /// Starts full at `depth` tokens and gains `refill` tokens per W, steadily. Zero stands for N.
    TokenBucket { depth: u32, refill: u32 },
    /// Counts in fixed windows and adds the previous window's count, weighted by the part of it that
    /// the W before `now` still overlaps.
    WeightedCounter { phase: Duration },
    /// Accepts everything.
    None,
}

impl Policer {
    /// The names it is chosen by.
    pub const NAMES: [&'static str; 6] = [
        "sliding-log",
        "closed-window",
        "fixed-window",
        "token-bucket",
        "weighted-counter",
        "none",
    ];
}

/// One policer at work on one limit.
#[derive(Clone, Debug)]
pub struct RateDoor {
    limit: u128,
    window: u128,
    count: Count,
}

/// Times and weights are nanoseconds, tokens are in parts of `window` to a token: all exact.
#[derive(Clone, Debug)]
enum Count {
    Log {
        accepted: VecDeque<u128>,
        both_ends: bool,
    },
    Fixed {
        phase: u128,
        index: i128,
        count: u128,
    },
    Bucket {
        depth: u128,
        refill: u128,
        /// Below zero only when arrivals are counted later than they are let in.
        level: i128,
        at: u128,
    },
    Weighted {
        phase: u128,
        index: i128,
        current: u128,
        previous: u128,
    },
    Nothing,
}

impl RateDoor {
    /// `limit` is N, `window` is W; a zero window is taken as one nanosecond.
    pub fn new(policer: Policer, limit: u32, window: Duration) -> Self {
        let window = window.as_nanos().max(1);
        let or_limit = |tokens| u128::from(if tokens == 0 { limit } else { tokens });
        let log = |both_ends| Count::Log {
            accepted: VecDeque::new(),
            both_ends,
        };
        let count = match policer {
            Policer::SlidingLog => log(false),
            Policer::ClosedWindow => log(true),
            Policer::FixedWindow { phase } => Count::Fixed {
                phase: phase.as_nanos(),
                index: i128::MIN,
                count: 0,
            },
            Policer::TokenBucket { depth, refill } => Count::Bucket {
                depth: or_limit(depth),
                refill: or_limit(refill),
                level: signed(or_limit(depth) * window),
                at: 0,
            },
            Policer::WeightedCounter { phase } => Count::Weighted {
                phase: phase.as_nanos(),
                index: i128::MIN,
                current: 0,
                previous: 0,
            },
            Policer::None => Count::Nothing,
        };
        Self {
            limit: u128::from(limit),
            window,
            count,
        }
    }

    /// One arrival at `now`, time since an epoch of the caller's choice, never less than before.
    /// True: accepted and counted. False: refused, and not counted.
    pub fn arrive(&mut self, now: Duration) -> bool {
        let accepted = self.has_room(now);
        if accepted {
            self.count(now);
        }
        accepted
    }

    /// Whether an arrival at `now` would be accepted.
    pub fn has_room(&mut self, now: Duration) -> bool {
        self.advance(now.as_nanos());
        let (limit, window, now) = (self.limit, self.window, now.as_nanos());
        match &self.count {
            Count::Log { accepted, .. } => (accepted.len() as u128) < limit,
            Count::Fixed { count, .. } => *count < limit,
            Count::Bucket { level, .. } => *level >= signed(window),
            Count::Weighted {
                phase,
                current,
                previous,
                ..
            } => {
                // current + previous * overlap / W + 1 <= N, without the division.
                let into = into_window(now, *phase, window);
                (current + 1) * window + previous * (window - into) <= limit * window
            }
            Count::Nothing => true,
        }
    }

    /// Counts an arrival whatever the room: for an upstream that lets in now and counts later.
    pub fn count(&mut self, now: Duration) {
        self.advance(now.as_nanos());
        match &mut self.count {
            Count::Log { accepted, .. } => accepted.push_back(now.as_nanos()),
            Count::Fixed { count, .. } => *count += 1,
            Count::Bucket { level, .. } => *level -= signed(self.window),
            Count::Weighted { current, .. } => *current += 1,
            Count::Nothing => {}
        }
    }

    /// Forgets what no longer counts at `now`.
    fn advance(&mut self, now: u128) {
        let window = self.window;
        match &mut self.count {
            Count::Log {
                accepted,
                both_ends,
            } => {
                let counts = |a: u128| {
                    let age = now.saturating_sub(a);
                    age < window || (*both_ends && age == window)
                };
                while accepted.front().is_some_and(|&a| !counts(a)) {
                    accepted.pop_front();
                }
            }
            Count::Fixed {
                phase,
                index,
                count,
            } => {
                let new = window_index(now, *phase, window);
                if new != *index {
                    *count = 0;
                    *index = new;
                }
            }
            Count::Bucket {
                depth,
                refill,
                level,
                at,
            } => {
                // `refill` tokens per W is `refill` parts per nanosecond.
                let gained = now.saturating_sub(*at).saturating_mul(*refill);
                *level = level
                    .saturating_add(signed(gained))
                    .min(signed(*depth * window));
                *at = now.max(*at);
            }
            Count::Weighted {
                phase,
                index,
                current,
                previous,
            } => {
                let new = window_index(now, *phase, window);
                if new != *index {
                    let adjacent = index.checked_add(1) == Some(new);
                    *previous = if adjacent { *current } else { 0 };
                    *current = 0;
                    *index = new;
                }
            }
            Count::Nothing => {}
        }
    }
}

/// k of the window `[phase + kW, phase + (k+1)W)` that holds `now`; below zero before `phase`.
fn window_index(now: u128, phase: u128, window: u128) -> i128 {
    (signed(now) - signed(phase)).div_euclid(signed(window))
}

/// How far `now` is into its window: 0 to W - 1.
fn into_window(now: u128, phase: u128, window: u128) -> u128 {
    let into = (signed(now) - signed(phase)).rem_euclid(signed(window));
    into.unsigned_abs()
}

/// A `Duration` has 94 bits of nanoseconds and a count 32: the sum of both fits.
fn signed(value: u128) -> i128 {
    i128::try_from(value).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: Duration = Duration::from_secs(10);
    const NS: Duration = Duration::from_nanos(1);

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn accepted(door: &mut RateDoor, tries: u32, now: Duration) -> u32 {
        (0..tries).map(|_| u32::from(door.arrive(now))).sum()
    }

    #[test]
    fn a_sliding_log_frees_a_slot_exactly_one_window_later() {
        let mut door = RateDoor::new(Policer::SlidingLog, 2, W);
        assert!(door.arrive(at(0)));
        assert!(door.arrive(at(4_000)));
        assert!(!door.arrive(W - NS));
        assert!(door.arrive(W));
        assert!(!door.arrive(at(14_000) - NS));
        assert!(door.arrive(at(14_000)));
    }

    #[test]
    fn a_closed_window_counts_both_its_ends() {
        let mut door = RateDoor::new(Policer::ClosedWindow, 1, W);
        assert!(door.arrive(at(3)));
        assert!(!door.arrive(at(3) + W));
        assert!(door.arrive(at(3) + W + NS));
    }

    #[test]
    fn refused_arrivals_are_not_counted() {
        for policer in [
            Policer::SlidingLog,
            Policer::ClosedWindow,
            Policer::FixedWindow { phase: at(0) },
        ] {
            let mut door = RateDoor::new(policer, 3, W);
            assert_eq!(accepted(&mut door, 100, at(9_999)), 3, "{policer:?}");
            assert_eq!(accepted(&mut door, 100, at(20_000)), 3, "{policer:?}");
        }
    }

    #[test]
    fn a_fixed_window_lets_two_windows_through_at_its_edge() {
        let phase = at(3_000);
        let mut door = RateDoor::new(Policer::FixedWindow { phase }, 5, W);
        // Before the phase the window is [-7 s, 3 s).
        assert_eq!(accepted(&mut door, 9, at(2_999)), 5);
        assert_eq!(accepted(&mut door, 9, at(3_000)), 5);
        assert_eq!(accepted(&mut door, 9, at(13_000) - NS), 0);
        assert_eq!(accepted(&mut door, 9, at(13_000)), 5);
    }

    #[test]
    fn a_token_bucket_lets_nearly_two_windows_through_after_a_pause() {
        let policer = Policer::TokenBucket {
            depth: 0,
            refill: 0,
        };
        let mut door = RateDoor::new(policer, 1000, W);
        let mut total = accepted(&mut door, 2000, at(60_000));
        assert_eq!(total, 1000);
        for ms in 60_001..70_000 {
            total += accepted(&mut door, 10, at(ms));
        }
        assert_eq!(total, 1999);
    }

    #[test]
    fn a_token_bucket_refills_to_the_nanosecond() {
        let policer = Policer::TokenBucket {
            depth: 2,
            refill: 3,
        };
        let mut door = RateDoor::new(policer, 1000, W);
        assert_eq!(accepted(&mut door, 9, at(0)), 2);
        // A third of ten seconds is no whole number of nanoseconds: the next one is the first.
        let third = Duration::from_nanos(3_333_333_333);
        assert!(!door.arrive(third));
        assert!(door.arrive(third + NS));
        // What was gained beyond the token is kept: three tokens in W, not one nanosecond later.
        assert!(!door.arrive(third * 2));
        assert!(door.arrive(third * 2 + NS));
        assert!(!door.arrive(W - NS));
        assert!(door.arrive(W));
        assert_eq!(accepted(&mut door, 9, W * 50), 2, "never above its depth");
    }

    #[test]
    fn a_weighted_counter_charges_the_end_of_the_last_window_again() {
        let mut door = RateDoor::new(Policer::WeightedCounter { phase: at(0) }, 100, W);
        assert_eq!(accepted(&mut door, 500, at(9_900)), 100);
        assert_eq!(accepted(&mut door, 500, at(10_000)), 0);
        assert_eq!(accepted(&mut door, 500, at(10_100)), 1);
        // Half of the last window still overlaps: 50 of 100 are left, one of them is spent.
        assert_eq!(accepted(&mut door, 500, at(15_000)), 49);
        // A window without arrivals in between: nothing is charged.
        assert_eq!(accepted(&mut door, 500, at(35_000)), 100);
    }

    #[test]
    fn a_limit_of_zero_refuses_and_no_policer_refuses_nothing() {
        for policer in [
            Policer::SlidingLog,
            Policer::ClosedWindow,
            Policer::FixedWindow { phase: at(0) },
            Policer::WeightedCounter { phase: at(0) },
            Policer::TokenBucket {
                depth: 0,
                refill: 0,
            },
        ] {
            assert!(!RateDoor::new(policer, 0, W).arrive(at(1)), "{policer:?}");
        }
        assert_eq!(
            accepted(&mut RateDoor::new(Policer::None, 1, W), 50, at(0)),
            50
        );
    }

    #[test]
    fn what_is_counted_late_is_refused_only_after_it_was_counted() {
        let mut door = RateDoor::new(Policer::SlidingLog, 1, W);
        assert!(door.has_room(at(0)));
        assert!(door.has_room(at(0)));
        door.count(at(5));
        door.count(at(5));
        assert!(!door.has_room(at(6)));
        assert!(door.has_room(at(5) + W));
    }
}
