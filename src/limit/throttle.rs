//! Learning from the upstream's 429s: what differs from what we were told, and by how much.
//!
//! The window guard never explains a 429, so somebody counts differently or spends beside us.
//! One reaction per episode: first the burst shrinks, at its floor the limit does, and both come
//! back by clean windows. Meanwhile the lane pauses, and one probe opens it again.
//! Pure: told of events, asked for the limits in force.

use std::time::Duration;

use crate::limit::ledger::{Effective, is_shaped};
use crate::limit::quota::{Burst, Quota, Rate, Timestamp, nanos};

/// `Retry-After` is obeyed within these bounds (semantics, section 8).
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_OBEYED: Duration = Duration::from_secs(60);
/// The longest pause we choose ourselves.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A probe without an answer counts as settled after this.
const PROBE_SETTLES: Duration = Duration::from_secs(1);
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
    quota: Quota,
    base: Effective,
    effective: Effective,
    gate: Gate,
    probes: u64,
    /// Since when a probe was wanted and only held calls waited.
    probe_missed: Option<Timestamp>,
    /// 429s of requests dispatched before this belong to the episode already answered.
    reacted: Option<Timestamp>,
    /// Arrivals accepted in the W before that reaction, if it shrank the limit: answers still
    /// under way then are added as they come.
    accepted: Option<u32>,
    pause: Duration,
    /// The window that is watched for 429s.
    window_start: Timestamp,
    waited: bool,
    step: u32,
    clean_windows: u32,
    relearn_after: u32,
    /// The burst has grown back since it last failed.
    relearnt: bool,
    random: u64,
}

impl Throttle {
    /// `seed` spreads the pauses of many lanes.
    pub fn new(quota: Quota, seed: u64, now: Timestamp) -> Self {
        let base = Effective::of(&quota);
        Self {
            quota,
            base,
            effective: base,
            gate: Gate::Open,
            probes: 0,
            probe_missed: None,
            reacted: None,
            accepted: None,
            pause: Duration::ZERO,
            window_start: now,
            waited: false,
            step: FIRST_STEP,
            clean_windows: 0,
            relearn_after: RELEARN_WINDOWS,
            relearnt: false,
            random: seed,
        }
    }

    fn window(&self) -> Duration {
        self.quota.rate.map_or(UNRATED_WINDOW, Rate::period)
    }

    /// The limits in force.
    pub fn effective(&self) -> Effective {
        self.effective
    }

    /// Nothing is paused and nothing is below what the quota says: there is nothing to remember.
    pub fn is_at_rest(&self) -> bool {
        self.gate == Gate::Open && self.effective == self.base
    }

    /// Lets time pass. `waiting`: somebody waited since the last call.
    pub fn advance(&mut self, waiting: bool, now: Timestamp) {
        // Who waits for the end of a pause shows nothing: only what was sent can be refused.
        let waiting = waiting && self.gate == Gate::Open;
        match self.gate {
            Gate::Paused(until) if now >= until => self.gate = Gate::Probe,
            Gate::Probing(until) if now >= until => self.open(),
            _ => {}
        }
        self.waited |= waiting;
        let window = nanos(self.window());
        loop {
            let passed = nanos(now.since(self.window_start)) / window;
            let over = match (passed, self.waited) {
                (0, _) => return,
                (_, true) => 1,
                // Nothing was shown in any of them, nothing is given back.
                (idle, false) => idle,
            };
            self.window_start = self.window_start + Duration::from_nanos(over * window);
            if self.waited {
                self.clean_window();
            }
            self.waited = waiting;
        }
    }

    /// When the limits in force grow by time alone, if somebody waits until then without a 429.
    pub fn grows_at(&self) -> Option<Timestamp> {
        let learnt = self.effective.requests < self.base.requests
            || self.effective.concurrency < self.base.concurrency;
        learnt.then(|| self.window_start + self.window())
    }

    /// Any pause is over: the probe has been answered, or nobody is held up any more.
    pub fn open(&mut self) {
        self.gate = Gate::Open;
        self.probe_missed = None;
    }

    /// A whole W without a 429 in which somebody waited.
    fn clean_window(&mut self) {
        self.pause = Duration::ZERO;
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

    /// The upstream answered 429. `advance` to `now` first.
    pub fn refused(&mut self, refusal: Refusal, now: Timestamp) -> Cause {
        self.window_start = now;
        self.waited = false;
        self.clean_windows = 0;
        self.step = FIRST_STEP;

        let same_episode = self
            .reacted
            .is_some_and(|reacted| refusal.dispatched <= reacted);
        let cause = self.cause(&refusal);
        if !same_episode && !refusal.probe {
            self.reacted = Some(now);
            self.accepted = None;
            match cause {
                Cause::Concurrency => self.shrink_concurrency(&refusal),
                Cause::Rate | Cause::Outside => self.shrink_rate(&refusal),
            }
        }
        self.pause(&refusal, same_episode, now);
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

    /// The upstream accepted a request. One that was under way at the last reaction counts for
    /// what was accepted before it.
    pub fn answered(&mut self, dispatched: Timestamp) {
        let under_way = self.reacted.is_some_and(|reacted| dispatched <= reacted);
        if let (true, Gate::Paused(_), Some(accepted)) = (under_way, self.gate, &mut self.accepted)
        {
            *accepted += 1;
            let accepted = (*accepted).min(self.base.requests);
            self.learn_limit(accepted);
        }
    }

    fn pause(&mut self, refusal: &Refusal, same_episode: bool, now: Timestamp) {
        let shortest = (self.window() / 20).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
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
        self.gate
    }

    /// Earliest time at which anything can go, as far as a pause decides it.
    pub fn earliest(&self, now: Timestamp) -> Timestamp {
        match self.gate {
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

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

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
