//! What a 429 does: the lane pauses, one probe opens it again, and the ladder learns what differs from
//! what we were told.
//!
//! The window guard never explains a 429, so somebody counts differently or spends beside us.
//! Pure: told of events, asked whether anything may go.

use std::time::Duration;

use crate::limit::ladder::{Cause, Ladder, Refusal};
use crate::limit::ledger::Effective;
use crate::limit::memory::Learnt;
use crate::limit::quota::{Quota, Timestamp};

/// `Retry-After` is obeyed within these bounds (semantics, section 8).
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_OBEYED: Duration = Duration::from_secs(60);
/// The longest pause we choose ourselves.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A probe without an answer counts as settled after this.
const PROBE_SETTLES: Duration = Duration::from_secs(1);

/// One of a lane's probes: a late end of an older one says nothing of a newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeId(u64);

/// Whether requests may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// Nothing goes before this.
    Paused(Timestamp),
    /// One short call may go.
    Probe,
    /// The probe is out; without an answer the gate opens at this time.
    Probing(Timestamp),
}

pub struct Throttle {
    ladder: Ladder,
    gate: Gate,
    probes: u64,
    /// Since when a probe was wanted and only held calls waited.
    probe_missed: Option<Timestamp>,
    pause: Duration,
    /// Until when an operator holds the lane.
    held: Option<Timestamp>,
    random: u64,
}

impl Throttle {
    /// `seed` spreads the pauses of many lanes.
    pub fn new(quota: Quota, seed: u64, now: Timestamp) -> Self {
        Self {
            ladder: Ladder::new(quota, now),
            gate: Gate::Open,
            probes: 0,
            probe_missed: None,
            pause: Duration::ZERO,
            held: None,
            random: seed,
        }
    }

    /// What was learnt, for the next process.
    pub fn learnt(&self) -> Learnt {
        self.ladder.learnt()
    }

    /// Goes on from what an earlier process has learnt, and from what is left of its pause.
    pub fn recall(&mut self, learnt: &Learnt, paused: Duration, now: Timestamp) {
        self.ladder.recall(learnt);
        if !paused.is_zero() {
            self.gate = Gate::Paused(now + paused.min(LONGEST_OBEYED + LONGEST_OBEYED / 10));
        }
    }

    /// The limits in force.
    pub fn effective(&self) -> Effective {
        self.ladder.effective()
    }

    /// When they grow by time alone, if somebody waits until then without a 429.
    pub fn grows_at(&self) -> Option<Timestamp> {
        self.ladder.grows_at()
    }

    /// Nothing is paused and nothing is other than what the quota says: there is nothing to remember.
    pub fn is_at_rest(&self) -> bool {
        self.gate() == Gate::Open && self.ladder.is_at_rest()
    }

    /// Lets time pass. `waiting`: somebody waited since the last call.
    pub fn advance(&mut self, waiting: bool, now: Timestamp) {
        self.held = self.held.filter(|until| now < *until);
        let tried = waiting && self.gate() == Gate::Open;
        match self.gate {
            Gate::Paused(until) if now >= until => self.gate = Gate::Probe,
            Gate::Probing(until) if now >= until => self.open(),
            _ => {}
        }
        if self.ladder.advance(tried, now) {
            self.pause = Duration::ZERO;
        }
    }

    /// Any pause is over: the probe has been answered, or nobody is held up any more.
    pub fn open(&mut self) {
        self.gate = Gate::Open;
        self.probe_missed = None;
    }

    /// The upstream answered 429. `advance` to `now` first.
    pub fn refused(&mut self, refusal: Refusal, now: Timestamp) -> Cause {
        let same_episode = self.ladder.is_same_episode(&refusal);
        let cause = self.ladder.refused(&refusal, now);
        self.pause(&refusal, same_episode, now);
        cause
    }

    /// The upstream accepted a request.
    pub fn answered(&mut self, dispatched: Timestamp) {
        if matches!(self.gate, Gate::Paused(_)) {
            self.ladder.answered(dispatched);
        }
    }

    fn pause(&mut self, refusal: &Refusal, same_episode: bool, now: Timestamp) {
        let shortest = (self.ladder.window() / 20).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        let longer = match same_episode && !refusal.probe {
            true => self.pause,
            false => self.pause * 2,
        };
        self.pause = longer.clamp(shortest, LONGEST_PAUSE);
        let asked = refusal
            .retry_after
            .map(|asked| asked.clamp(SHORTEST_PAUSE, LONGEST_OBEYED));
        let pause = asked.unwrap_or(self.pause);
        let until = now + pause + self.jitter(pause / 10);
        self.gate = match self.gate {
            Gate::Paused(already) => Gate::Paused(already.max(until)),
            _ => Gate::Paused(until),
        };
        self.probe_missed = None;
    }

    /// Between nothing and `most`: lanes that paused together do not come back together.
    fn jitter(&mut self, most: Duration) -> Duration {
        // SplitMix64: spread, not secrecy.
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        most * u32::from((mixed >> 48) as u16) / u32::from(u16::MAX)
    }

    /// Whether requests may go. `advance` to `now` first.
    pub fn gate(&self) -> Gate {
        match (self.held, self.gate) {
            (None, gate) => gate,
            (Some(held), Gate::Paused(until)) => Gate::Paused(held.max(until)),
            (Some(held), _) => Gate::Paused(held),
        }
    }

    /// An operator lets nothing go until then. Apart from the pauses after 429s: those go on beneath
    /// it, and no probe is needed at its end.
    pub fn hold(&mut self, until: Timestamp) {
        self.held = Some(until);
    }

    /// The operator lets go. `false`: nothing was held.
    pub fn release(&mut self) -> bool {
        self.held.take().is_some()
    }

    /// What is left of a pause after a 429.
    pub fn pause_left(&self, now: Timestamp) -> Duration {
        match self.gate {
            Gate::Paused(until) => until.since(now),
            Gate::Open | Gate::Probe | Gate::Probing(_) => Duration::ZERO,
        }
    }

    /// Earliest time at which anything can go, as far as a pause decides it.
    pub fn earliest(&self, now: Timestamp) -> Timestamp {
        match self.gate() {
            Gate::Paused(until) => until.max(now),
            Gate::Open | Gate::Probe | Gate::Probing(_) => now,
        }
    }

    /// A short call was admitted to find out whether the pause can end.
    pub fn probe_sent(&mut self, now: Timestamp) -> ProbeId {
        self.gate = Gate::Probing(now + PROBE_SETTLES);
        self.probe_missed = None;
        self.probes += 1;
        ProbeId(self.probes)
    }

    fn is_out(&self, probe: ProbeId) -> bool {
        matches!(self.gate, Gate::Probing(_)) && probe == ProbeId(self.probes)
    }

    /// The probe has an answer that is no 429, or its exchange ended without one.
    pub fn probe_settled(&mut self, probe: ProbeId) {
        if self.is_out(probe) {
            self.open();
        }
    }

    /// The probe never reached the upstream: another one is needed.
    pub fn probe_unsent(&mut self, probe: ProbeId) {
        if self.is_out(probe) {
            self.gate = Gate::Probe;
        }
    }

    /// A probe is wanted and only held calls wait, which are none: without a short call within a
    /// probe's own time the gate opens. Says when.
    pub fn no_probe(&mut self, now: Timestamp) -> Option<Timestamp> {
        let since = *self.probe_missed.get_or_insert(now);
        let opens = since + PROBE_SETTLES;
        if now >= opens {
            self.open();
            return None;
        }
        Some(opens)
    }

    /// Another quota: what was learnt stays, within it.
    pub fn retune(&mut self, quota: Quota) {
        self.ladder.retune(quota);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::limit::quota::Rate;

    const W: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_epoch(Duration::from_millis(millis))
    }

    fn throttle() -> Throttle {
        let quota = Quota::new(Rate::new(1000, W), NonZeroU32::new(200));
        Throttle::new(quota, 7, at(0))
    }

    fn refusal(dispatched: Timestamp) -> Refusal {
        Refusal {
            dispatched,
            probe: false,
            retry_after: None,
            accepted: 900,
            used: 950,
            in_use: 20,
        }
    }

    fn refuse_at(throttle: &mut Throttle, millis: u64) -> Cause {
        throttle.advance(true, at(millis));
        throttle.refused(refusal(at(millis)), at(millis))
    }

    #[test]
    fn first_the_burst_shrinks_to_its_floor_then_the_limit_to_what_was_accepted() {
        let mut throttle = throttle();
        assert_eq!(refuse_at(&mut throttle, 1_000), Cause::Rate);
        assert_eq!(throttle.effective().burst, 62);
        refuse_at(&mut throttle, 3_000);
        assert_eq!(throttle.effective().burst, 20);
        assert_eq!(throttle.effective().requests, 1000);
        assert_eq!(refuse_at(&mut throttle, 5_000), Cause::Outside);
        assert_eq!(throttle.effective().requests, 873);
    }

    #[test]
    fn one_episode_is_one_reaction() {
        let mut throttle = throttle();
        throttle.advance(true, at(1_000));
        for _ in 0..30 {
            throttle.refused(refusal(at(900)), at(1_000));
        }
        assert_eq!(throttle.effective().burst, 62);
        let Gate::Paused(until) = throttle.gate() else {
            panic!("not paused")
        };
        assert!(
            until >= at(1_500) && until <= at(1_550),
            "W/20 and at most a tenth more"
        );
    }

    #[test]
    fn the_probes_own_429_lengthens_the_pause_and_shrinks_nothing() {
        let mut throttle = throttle();
        refuse_at(&mut throttle, 1_000);
        let before = throttle.effective();
        throttle.advance(true, at(1_600));
        assert_eq!(throttle.gate(), Gate::Probe);
        throttle.probe_sent(at(1_600));
        throttle.refused(
            Refusal {
                probe: true,
                ..refusal(at(1_600))
            },
            at(1_700),
        );
        assert_eq!(throttle.effective(), before);
        let Gate::Paused(until) = throttle.gate() else {
            panic!("not paused")
        };
        assert!(until >= at(2_700), "twice W/20");
    }

    #[test]
    fn a_probe_settles_by_an_answer_or_in_a_second() {
        let mut throttle = throttle();
        refuse_at(&mut throttle, 0);
        throttle.advance(true, at(600));
        throttle.probe_sent(at(600));
        assert_eq!(throttle.gate(), Gate::Probing(at(1_600)));
        throttle.advance(true, at(1_600));
        assert_eq!(throttle.gate(), Gate::Open);
    }

    #[test]
    fn held_calls_alone_are_no_probe_and_no_deadlock() {
        let mut throttle = throttle();
        refuse_at(&mut throttle, 0);
        throttle.advance(true, at(600));
        assert_eq!(throttle.no_probe(at(600)), Some(at(1_600)));
        assert_eq!(throttle.no_probe(at(900)), Some(at(1_600)));
        assert_eq!(throttle.no_probe(at(1_600)), None);
        assert_eq!(throttle.gate(), Gate::Open);
    }

    #[test]
    fn retry_after_is_obeyed_within_bounds() {
        for (asked, least, most) in [
            (0, 100, 110),
            (7_000, 7_000, 7_700),
            (999_000, 60_000, 66_000),
        ] {
            let mut throttle = throttle();
            let retry_after = Some(Duration::from_millis(asked));
            throttle.refused(
                Refusal {
                    retry_after,
                    ..refusal(at(0))
                },
                at(0),
            );
            let Gate::Paused(until) = throttle.gate() else {
                panic!("not paused")
            };
            assert!(
                until >= at(least) && until <= at(most),
                "{asked} ms gave {until:?}"
            );
        }
    }

    #[test]
    fn clean_windows_give_the_limit_back_in_growing_steps() {
        let mut throttle = throttle();
        for millis in [0, 2_000, 4_000] {
            refuse_at(&mut throttle, millis);
        }
        assert_eq!(throttle.effective().requests, 873);
        throttle.open();
        let mut seen = Vec::new();
        for window in 1..=4 {
            throttle.advance(true, at(4_000 + window * 10_000));
            seen.push(throttle.effective().requests);
        }
        assert_eq!(seen, [893, 933, 1000, 1000]);
    }

    #[test]
    fn a_window_in_which_nobody_waited_proves_nothing() {
        let mut throttle = throttle();
        for millis in [0, 2_000, 4_000] {
            refuse_at(&mut throttle, millis);
        }
        throttle.advance(false, at(600_000));
        assert_eq!(throttle.effective().requests, 873);
    }

    #[test]
    fn nor_does_a_window_spent_in_a_pause() {
        let mut throttle = throttle();
        for millis in [0, 2_000, 4_000] {
            refuse_at(&mut throttle, millis);
        }
        let asked = Refusal {
            retry_after: Some(W * 3),
            ..refusal(at(0))
        };
        throttle.refused(asked, at(5_000));
        for seconds in 5..35 {
            throttle.advance(true, at(seconds * 1_000));
        }
        assert_eq!(throttle.effective().requests, 873);
        let until = |throttle: &Throttle| match throttle.gate() {
            Gate::Paused(until) => until,
            gate => panic!("{gate:?}"),
        };
        assert!(until(&throttle) >= at(35_000));
        throttle.advance(true, at(39_000));
        throttle.refused(refusal(at(39_000)), at(39_000));
        assert!(until(&throttle) >= at(43_000), "the pauses still double");
    }

    #[test]
    fn the_burst_doubles_after_thirty_clean_windows_and_twice_that_after_a_failure() {
        let mut throttle = throttle();
        refuse_at(&mut throttle, 0);
        throttle.open();
        let mut now = 0;
        let windows_until_growth = |throttle: &mut Throttle, now: &mut u64| {
            let before = throttle.effective().burst;
            (1..)
                .find(|_| {
                    *now += 10_000;
                    throttle.advance(true, at(*now));
                    throttle.effective().burst > before
                })
                .unwrap()
        };
        assert_eq!(windows_until_growth(&mut throttle, &mut now), 30);
        now += 1;
        refuse_at(&mut throttle, now);
        throttle.open();
        assert_eq!(windows_until_growth(&mut throttle, &mut now), 60);
    }

    #[test]
    fn another_quota_keeps_what_was_learnt_within_it() {
        let mut throttle = throttle();
        refuse_at(&mut throttle, 0);
        throttle.open();
        for window in 1..=130 {
            throttle.advance(true, at(window * 10_000));
        }
        assert_eq!(throttle.effective().burst, 992, "62, doubled four times");
        throttle.retune(Quota::new(Rate::new(1000, W), NonZeroU32::new(300)));
        let effective = throttle.effective();
        assert_eq!((effective.burst, effective.concurrency), (992, 300));
        throttle.retune(Quota::new(Rate::new(500, W), NonZeroU32::new(300)));
        assert_eq!(throttle.effective().burst, 500);
    }

    #[test]
    fn an_older_probes_end_does_not_settle_a_newer_one() {
        let mut throttle = throttle();
        refuse_at(&mut throttle, 0);
        throttle.advance(true, at(600));
        let older = throttle.probe_sent(at(600));
        throttle.advance(true, at(1_700));
        refuse_at(&mut throttle, 2_000);
        throttle.advance(true, at(4_000));
        let newer = throttle.probe_sent(at(4_000));
        throttle.probe_settled(older);
        assert!(matches!(throttle.gate(), Gate::Probing(_)));
        throttle.probe_settled(newer);
        assert_eq!(throttle.gate(), Gate::Open);
    }

    #[test]
    fn permits_bind_before_the_window_does_shrinks_only_the_permits() {
        let mut throttle = throttle();
        throttle.advance(true, at(0));
        let refusal = Refusal {
            used: 300,
            in_use: 190,
            ..refusal(at(0))
        };
        assert_eq!(throttle.refused(refusal, at(0)), Cause::Concurrency);
        let effective = throttle.effective();
        assert_eq!(
            (effective.concurrency, effective.burst, effective.requests),
            (183, 250, 1000)
        );
    }
}
