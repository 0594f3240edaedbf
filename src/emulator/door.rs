//! The limits at the upstream's door: one per endpoint and operation group.
//!
//! Rate, concurrency and the queue-full rule, each enforced to the letter; what is let in, refused and
//! at most inside is remembered by the [`Witness`]. Pure: time comes in as an argument.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::limits::{Backlog, Limit};
use super::policer::{Policer, RateDoor};
use super::witness::{Refusal, Seen, Witness};

/// When an arrival counts against the rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counts {
    /// When its head has been read.
    #[default]
    Head,
    /// When its body has been read.
    BodyEnd,
    /// When its response has been handed over: let in by what is counted so far.
    Completion,
}

/// One group's door at one endpoint.
#[derive(Clone, Debug)]
pub struct Door {
    rate: Option<RateDoor>,
    concurrency: Option<u32>,
    in_flight: u32,
    /// Exchanges that are over and will be noticed only then.
    leaving: BinaryHeap<Reverse<Duration>>,
    witness: Witness,
    clock: SkewedClock,
}

impl Door {
    /// `policer` is the emulator's own, for a limit that names none.
    pub fn new(limit: Limit, policer: Policer) -> Self {
        let policer = limit.policer.unwrap_or(policer);
        let rate_door = |requests| RateDoor::new(policer, requests, limit.window);
        Self {
            rate: limit.requests.map(rate_door),
            concurrency: limit.concurrency,
            in_flight: 0,
            leaving: BinaryHeap::new(),
            witness: Witness::new(limit.requests, limit.window),
            clock: SkewedClock::default(),
        }
    }

    /// One arrival. `Ok`: it is inside until [`Door::leave`]. Concurrency and backlog are asked first,
    /// because asking the rate spends it.
    pub fn arrive(
        &mut self,
        now: Duration,
        backlog: Option<Backlog>,
        counts: Counts,
    ) -> Result<(), Refusal> {
        self.notice_leavers(now);
        let now = self.clock.read(now);
        self.witness.arrived();
        let verdict = self.judge(now, backlog, counts);
        match verdict {
            Ok(()) => {
                self.in_flight += 1;
                self.witness.entered(self.in_flight);
                if counts != Counts::Completion {
                    self.witness.accepted(now);
                }
            }
            Err(why) => self.witness.refused(why),
        }
        verdict
    }

    fn judge(
        &mut self,
        now: Duration,
        backlog: Option<Backlog>,
        counts: Counts,
    ) -> Result<(), Refusal> {
        if backlog.is_some_and(Backlog::is_full) {
            return Err(Refusal::Backlog);
        }
        if self.concurrency.is_some_and(|most| self.in_flight >= most) {
            return Err(Refusal::Concurrency);
        }
        let has_rate = match &mut self.rate {
            Some(rate) if counts == Counts::Completion => rate.has_room(now),
            Some(rate) => rate.arrive(now),
            None => true,
        };
        has_rate.then_some(()).ok_or(Refusal::Rate)
    }

    /// The exchange is over; it is counted as inside for `late` longer. `counts` is what
    /// [`Door::arrive`] was told.
    pub fn leave(&mut self, now: Duration, late: Duration, counts: Counts) {
        if counts == Counts::Completion {
            let now = self.clock.read(now);
            if let Some(rate) = &mut self.rate {
                rate.count(now);
            }
            self.witness.accepted(now);
        }
        self.leaving.push(Reverse(now + late));
        self.notice_leavers(now);
    }

    fn notice_leavers(&mut self, now: Duration) {
        while self.leaving.peek().is_some_and(|Reverse(at)| *at <= now) {
            self.leaving.pop();
            self.in_flight = self.in_flight.saturating_sub(1);
        }
    }

    /// From `now` on, this door's clock gains `ppm` millionths (loses, below zero).
    pub fn skew(&mut self, now: Duration, ppm: i32) {
        self.clock.skew(now, ppm);
    }

    pub fn seen(&self) -> Seen {
        self.witness.seen()
    }

    /// Restarts what is measured. The limits forget nothing: a fresh window would forgive an excess.
    pub fn reset(&mut self, now: Duration) {
        self.notice_leavers(now);
        self.witness.reset(self.in_flight);
    }
}

/// A clock that gains or loses steadily and never steps.
#[derive(Clone, Copy, Debug, Default)]
struct SkewedClock {
    since: Duration,
    showed: Duration,
    ppm: i32,
}

impl SkewedClock {
    fn read(&self, now: Duration) -> Duration {
        let passed = now.saturating_sub(self.since);
        let nanos = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        let gained = u128::from(nanos) * u128::from(self.ppm.unsigned_abs()) / 1_000_000;
        let gained = Duration::from_nanos(u64::try_from(gained).unwrap_or(u64::MAX));
        if self.ppm < 0 {
            self.showed + passed.saturating_sub(gained)
        } else {
            self.showed + passed + gained
        }
    }

    fn skew(&mut self, now: Duration, ppm: i32) {
        self.showed = self.read(now);
        self.since = now;
        self.ppm = ppm;
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::Group;
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn door(requests: u32, concurrency: u32) -> Door {
        let limit = Limit {
            requests: Some(requests),
            concurrency: Some(concurrency),
            ..Limit::documented(Group::Run)
        };
        Door::new(limit, Policer::SlidingLog)
    }

    fn knock(door: &mut Door, ms: u64) -> Result<(), Refusal> {
        door.arrive(at(ms), None, Counts::Head)
    }

    #[test]
    fn what_concurrency_refuses_spends_no_rate() {
        let mut door = door(2, 1);
        assert_eq!(knock(&mut door, 0), Ok(()));
        assert_eq!(knock(&mut door, 1), Err(Refusal::Concurrency));
        door.leave(at(2), Duration::ZERO, Counts::Head);
        assert_eq!(knock(&mut door, 2), Ok(()));
        door.leave(at(3), Duration::ZERO, Counts::Head);
        assert_eq!(knock(&mut door, 4), Err(Refusal::Rate));
        let seen = door.seen();
        assert_eq!((seen.arrived, seen.accepted), (4, 2));
        assert_eq!((seen.refused_concurrency, seen.refused_rate), (1, 1));
        assert_eq!(seen.max_in_flight, 1);
    }

    #[test]
    fn a_late_decrement_keeps_the_place_taken() {
        let mut door = door(9, 1);
        assert_eq!(knock(&mut door, 0), Ok(()));
        door.leave(at(10), at(50), Counts::Head);
        assert_eq!(knock(&mut door, 59), Err(Refusal::Concurrency));
        assert_eq!(knock(&mut door, 60), Ok(()));
    }

    #[test]
    fn a_full_queue_refuses() {
        let mut door = door(9, 9);
        let backlog = Some(Backlog {
            queued: 501,
            workers_max: 1,
        });
        assert_eq!(
            door.arrive(at(0), backlog, Counts::Head),
            Err(Refusal::Backlog)
        );
        assert_eq!(door.seen().refused_backlog, 1);
    }

    #[test]
    fn counted_at_completion_means_let_in_by_what_is_over() {
        let mut door = door(1, 9);
        let counts = Counts::Completion;
        assert_eq!(door.arrive(at(0), None, counts), Ok(()));
        assert_eq!(door.arrive(at(1), None, counts), Ok(()));
        assert_eq!(door.seen().accepted, 0);
        door.leave(at(5), Duration::ZERO, counts);
        assert_eq!(door.arrive(at(6), None, counts), Err(Refusal::Rate));
        assert_eq!(door.arrive(at(10_005), None, counts), Ok(()));
        assert_eq!(door.seen().accepted, 1);
    }

    #[test]
    fn a_slow_clock_keeps_the_window_longer() {
        let mut door = door(1, 9);
        door.skew(at(1_000), -300);
        assert_eq!(knock(&mut door, 1_000), Ok(()));
        assert_eq!(knock(&mut door, 11_000), Err(Refusal::Rate));
        assert_eq!(knock(&mut door, 11_003), Err(Refusal::Rate));
        assert_eq!(knock(&mut door, 11_004), Ok(()));
        // Back to a true clock, which goes on from what it showed.
        door.skew(at(11_004), 0);
        assert_eq!(knock(&mut door, 21_003), Err(Refusal::Rate));
        assert_eq!(knock(&mut door, 21_004), Ok(()));
    }

    #[test]
    fn reset_forgets_the_figures_and_no_limit() {
        let mut door = door(1, 9);
        assert_eq!(knock(&mut door, 0), Ok(()));
        door.reset(at(1));
        assert_eq!(door.seen().accepted, 0);
        assert_eq!(door.seen().max_in_flight, 1);
        assert_eq!(knock(&mut door, 2), Err(Refusal::Rate));
    }
}
