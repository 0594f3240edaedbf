//! What the upstream saw: the two promises of a gateway are measured here, not believed.
//!
//! Number the accepted arrivals a_1, a_2, ... and let D_i = a_(i+N) - a_i. Promise 1 is that every
//! D_i is above W; promise 2 is that W over the mean D_i is near one while somebody waits. Whether
//! somebody waited cannot be known here: whoever measures promise 2 keeps the gateway busy and begins
//! with [`Witness::reset`]. Pure: no clock, no lock, no I/O.

use std::collections::VecDeque;
use std::time::Duration;

/// Why an arrival was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// N within W.
    Rate,
    /// C in flight.
    Concurrency,
    /// The queue-full rule (contract, section 4).
    Backlog,
}

/// The memory of one door. At most N stamps, and those of one W up to
/// [`Witness::MOST_STAMPS`].
#[derive(Clone, Debug)]
pub struct Witness {
    /// N; `None` where no rate is limited, and then there is no D_i.
    requests: Option<u32>,
    window: Duration,
    last_n: VecDeque<Duration>,
    last_window: VecDeque<Duration>,
    seen: Seen,
    sum_d: Duration,
    min_d: Option<Duration>,
}

/// The figures, as they are reported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    pub arrived: u64,
    pub accepted: u64,
    pub refused_rate: u64,
    pub refused_concurrency: u64,
    pub refused_backlog: u64,
    /// The most accepted arrivals in any interval of length W, both ends counted.
    pub max_in_window: u64,
    pub max_in_flight: u64,
    /// The least D_i in units of W: above 1 means never over. `None` before N + 1 arrivals.
    pub min_d_over_w: Option<f64>,
    /// How many D_i there are.
    pub intervals: u64,
    /// W over the mean D_i.
    pub w_over_mean_d: Option<f64>,
}

impl Witness {
    /// 2 MiB or 4 MiB of stamps; a door without a policer may see more, and `max_in_window` then
    /// stays at this number.
    pub const MOST_STAMPS: usize = 1 << 18;

    /// `requests` is N, `window` is W.
    pub fn new(requests: Option<u32>, window: Duration) -> Self {
        Self {
            requests,
            window,
            last_n: VecDeque::new(),
            last_window: VecDeque::new(),
            seen: Seen::default(),
            sum_d: Duration::ZERO,
            min_d: None,
        }
    }

    /// Somebody knocked; one of the following says what became of it.
    pub fn arrived(&mut self) {
        self.seen.arrived += 1;
    }

    /// Let in, with `in_flight` inside now, itself included.
    pub fn entered(&mut self, in_flight: u32) {
        self.seen.max_in_flight = self.seen.max_in_flight.max(u64::from(in_flight));
    }

    /// Counted as an arrival at `now`, which must not run backwards.
    pub fn accepted(&mut self, now: Duration) {
        self.seen.accepted += 1;
        let fresh = |&a: &Duration| now.saturating_sub(a) <= self.window;
        while self.last_window.front().is_some_and(|a| !fresh(a))
            || self.last_window.len() >= Self::MOST_STAMPS
        {
            self.last_window.pop_front();
        }
        self.last_window.push_back(now);
        let in_window = self.last_window.len() as u64;
        self.seen.max_in_window = self.seen.max_in_window.max(in_window);
        self.measure(now);
    }

    pub fn refused(&mut self, why: Refusal) {
        match why {
            Refusal::Rate => self.seen.refused_rate += 1,
            Refusal::Concurrency => self.seen.refused_concurrency += 1,
            Refusal::Backlog => self.seen.refused_backlog += 1,
        }
    }

    /// What was seen since the beginning or the last reset.
    pub fn seen(&self) -> Seen {
        let window = self.window.as_secs_f64();
        let over_window = |d: Duration| d.as_secs_f64() / window;
        let mean_d = self.sum_d.as_secs_f64() / self.seen.intervals as f64;
        Seen {
            min_d_over_w: self.min_d.map(over_window),
            w_over_mean_d: (mean_d > 0.0).then(|| window / mean_d),
            ..self.seen
        }
    }

    /// Forgets everything seen; `in_flight` exchanges are still inside.
    pub fn reset(&mut self, in_flight: u32) {
        *self = Self::new(self.requests, self.window);
        self.entered(in_flight);
    }

    /// D_i is known when its arrival i + N comes.
    fn measure(&mut self, now: Duration) {
        let Some(n) = self.requests.filter(|&n| n > 0) else {
            return;
        };
        if self.last_n.len() == n as usize
            && let Some(first) = self.last_n.pop_front()
        {
            let d = now.saturating_sub(first);
            self.seen.intervals += 1;
            self.sum_d += d;
            self.min_d = Some(self.min_d.map_or(d, |least| least.min(d)));
        }
        self.last_n.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const W: Duration = Duration::from_secs(10);

    fn saw(n: u32, stamps: &[u64]) -> Seen {
        let mut witness = Witness::new(Some(n), W);
        for &ms in stamps {
            witness.arrived();
            witness.accepted(Duration::from_millis(ms));
        }
        witness.seen()
    }

    #[test]
    fn before_n_plus_one_arrivals_there_is_no_interval() {
        let seen = saw(3, &[0, 1, 2]);
        assert_eq!((seen.intervals, seen.min_d_over_w), (0, None));
        assert_eq!(seen.w_over_mean_d, None);
        assert_eq!((seen.accepted, seen.max_in_window), (3, 3));
    }

    #[test]
    fn a_window_counts_both_its_ends_and_one_interval_shows_it() {
        let seen = saw(2, &[0, 5_000, 10_000]);
        assert_eq!(seen.max_in_window, 3);
        assert_eq!((seen.intervals, seen.min_d_over_w), (1, Some(1.0)));
        let seen = saw(2, &[0, 5_000, 10_001, 15_002]);
        assert_eq!(seen.max_in_window, 2);
        assert_eq!(seen.min_d_over_w, Some(1.0001));
        assert!(seen.w_over_mean_d.is_some_and(|used| used < 1.0));
    }

    #[test]
    fn everything_at_one_instant_is_no_division_by_zero() {
        let seen = saw(2, &[0, 0, 0, 0]);
        assert_eq!((seen.min_d_over_w, seen.w_over_mean_d), (Some(0.0), None));
    }

    #[test]
    fn reset_restarts_the_measurement() {
        let mut witness = Witness::new(Some(1), W);
        witness.accepted(Duration::ZERO);
        witness.reset(7);
        witness.accepted(Duration::from_secs(1));
        let seen = witness.seen();
        assert_eq!((seen.accepted, seen.intervals), (1, 0));
        assert_eq!(seen.max_in_flight, 7);
    }

    #[test]
    fn without_a_limit_only_the_window_is_counted() {
        let mut witness = Witness::new(None, W);
        (0..5).for_each(|ms| witness.accepted(Duration::from_millis(ms)));
        assert_eq!(
            (witness.seen().max_in_window, witness.seen().intervals),
            (5, 0)
        );
    }

    proptest! {
        /// Against the definition, over the plain list.
        #[test]
        fn the_figures_are_those_of_the_whole_list(
            n in 1_u32..6,
            gaps in proptest::collection::vec(0_u64..6_000, 0..60),
        ) {
            let stamps: Vec<u64> = gaps
                .iter()
                .scan(0, |now, gap| { *now += gap; Some(*now) })
                .collect();
            let seen = saw(n, &stamps);
            let d: Vec<u64> = stamps.iter().zip(stamps.iter().skip(n as usize)).map(|(a, b)| b - a).collect();
            let most = stamps
                .iter()
                .map(|&end| stamps.iter().filter(|&&a| a <= end && end - a <= 10_000).count() as u64)
                .max();
            prop_assert_eq!(seen.max_in_window, most.unwrap_or(0));
            prop_assert_eq!(seen.intervals, d.len() as u64);
            let least = d.iter().min().map(|&d| Duration::from_millis(d).as_secs_f64() / 10.0);
            prop_assert_eq!(seen.min_d_over_w, least);
        }
    }
}
