//! A lane before its own ledger: the whole admission core in one piece. Events and `now` go in,
//! decisions come out; whoever holds it calls [`LocalLane::poll`] after each event and at the time
//! it names.

use std::time::Duration;

use crate::limit::fair_queue::{Eligible, Waiter, WaiterId};
use crate::limit::flow::FlowId;
use crate::limit::ladder::{Cause, Refusal};
use crate::limit::lane::{Lane, Next, Shed};
use crate::limit::ledger::{Call, Denied, Effective, End, Ledger, Limit, Slot};
use crate::limit::memory::Memory;
use crate::limit::quota::{Mode, Quota, Rate, Timestamp};
use crate::limit::throttle::Gate;

/// The answer to [`LocalLane::ask`].
#[derive(Debug)]
pub enum Verdict {
    Admit {
        slot: Slot,
        /// What `enforce` would have said, on a lane in `shadow`.
        shadow: Option<Shed>,
    },
    /// It waits; its fate comes by [`LocalLane::poll`]. In a full queue `evicted` made room.
    Wait {
        waiter: WaiterId,
        evicted: Option<(WaiterId, Shed)>,
    },
    Shed(Shed),
}

/// The end of one waiter's wait.
#[derive(Debug)]
pub enum Settled {
    Admitted(WaiterId, Slot),
    Shed(WaiterId, Shed),
}

/// What a lane looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub quota: Quota,
    pub effective: Effective,
    pub mode: Mode,
    pub window_used: u32,
    /// How long until a newcomer could find a slot and a token.
    pub next_free: Duration,
    pub permits_in_use: u32,
    pub waiting: usize,
    /// Zero unless paused.
    pub paused: Duration,
    /// Time in which somebody waited who could have gone: promise 2 by our own clock.
    pub idle: Duration,
    /// The share of the budget that was lost by it, but for what a timer is always late by
    /// ([`LATE`]): a second is all of it for a second. Of N slots
    /// one that is handed out late is the N-th part; of those that come to light in one poll each
    /// counts as late as the first, so this is never too little.
    pub idle_budget: Duration,
}

/// What is left of a rate, for who asks how much more it may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub rate: Rate,
    /// Requests that could go now, one after the other.
    pub remaining: u32,
    /// How long that stands: the window, or where nothing remains until one more can go.
    pub reset: Duration,
}

/// A timer counts in milliseconds, and whoever it wakes takes a moment.
const LATE: Duration = Duration::from_millis(2);

/// What an earlier process has remembered, and how long ago that was.
#[derive(Clone, Copy, Debug)]
pub struct Recalled<'a> {
    pub memory: &'a Memory,
    pub elapsed: Duration,
}

pub struct LocalLane {
    lane: Lane,
    ledger: Ledger,
    mode: Mode,
    /// No event is older than this: clocks of several threads are clamped here.
    now: Timestamp,
    /// When a waiter could go next though nothing happens, as of the last poll.
    due: Option<Timestamp>,
    idle: Duration,
    idle_budget: Duration,
}

impl LocalLane {
    /// `capacity`: the most waiters. `seed` spreads the pauses of many lanes.
    pub fn new(quota: Quota, capacity: usize, mode: Mode, seed: u64, now: Timestamp) -> Self {
        Self::with_ledger(Ledger::new(quota, now), quota, capacity, mode, seed, now)
    }

    /// A lane whose last W is unknown: its window starts as spent.
    pub fn spent(quota: Quota, capacity: usize, mode: Mode, seed: u64, now: Timestamp) -> Self {
        Self::with_ledger(Ledger::spent(quota, now), quota, capacity, mode, seed, now)
    }

    /// A lane that goes on from what an earlier process has remembered, `elapsed` before `now`.
    pub fn recall(
        quota: Quota,
        capacity: usize,
        mode: Mode,
        seed: u64,
        recalled: Recalled<'_>,
        now: Timestamp,
    ) -> Self {
        let Recalled { memory, elapsed } = recalled;
        let ledger = Ledger::recall(quota, memory, elapsed, now);
        let mut lane = Self::with_ledger(ledger, quota, capacity, mode, seed, now);
        let paused = match mode {
            Mode::Enforce => memory.paused.saturating_sub(elapsed),
            // Nobody is to be held up.
            Mode::Shadow | Mode::Disabled => Duration::ZERO,
        };
        let throttle = lane.lane.throttle_mut();
        throttle.recall(&memory.learnt, paused, now);
        lane.apply();
        lane
    }

    /// What the next process has to know, as of `now`.
    pub fn remember(&mut self, now: Timestamp) -> Memory {
        let now = self.advance(now);
        Memory {
            learnt: self.lane.throttle().learnt(),
            paused: self.lane.throttle().pause_left(now),
            ..self.ledger.remember(now)
        }
    }

    fn with_ledger(
        ledger: Ledger,
        quota: Quota,
        capacity: usize,
        mode: Mode,
        seed: u64,
        now: Timestamp,
    ) -> Self {
        let lane = Lane::new(quota, capacity, seed, now);
        Self {
            lane,
            ledger,
            mode,
            now,
            due: None,
            idle: Duration::ZERO,
            idle_budget: Duration::ZERO,
        }
    }

    /// Lets time pass, with the queue as it was since the last event. Returns `now`, clamped.
    fn advance(&mut self, now: Timestamp) -> Timestamp {
        self.clamp(now);
        let waiting = !self.lane.queue().is_empty();
        // A pause is no wait for tokens: its end may spend what accrued, within the burst that the
        // ladder has already cut to what the upstream bears.
        let paused = matches!(
            self.lane.throttle().gate(),
            Gate::Paused(_) | Gate::Probing(_)
        );
        self.ledger.advance(waiting && !paused, self.now);
        self.lane.throttle_mut().advance(waiting, self.now);
        self.apply();
        self.now
    }

    /// No event is older than another before it.
    fn clamp(&mut self, now: Timestamp) -> Timestamp {
        self.now = self.now.max(now);
        self.now
    }

    /// What the throttle has learnt reaches the ledger.
    fn apply(&mut self) {
        self.ledger
            .set_effective(self.lane.throttle().effective(), self.now);
    }

    /// May this request go? It waits no longer than `waiter.deadline`.
    pub fn ask(&mut self, waiter: Waiter, now: Timestamp) -> Verdict {
        let now = self.advance(now);
        if self.mode != Mode::Enforce {
            return self.pass(waiter, now);
        }
        if self.lane.is_clear()
            && let Ok(slot) = self.ledger.take(waiter.call, now)
        {
            return Verdict::Admit { slot, shadow: None };
        }
        let earliest = self.earliest(&waiter, now);
        match self.lane.join(waiter, earliest, now) {
            Ok((waiter, evicted)) => {
                let capacity = self.lane.queue().capacity();
                let full = |victim| {
                    (
                        victim,
                        Shed::QueueFull {
                            capacity,
                            retry_after: earliest.since(now),
                        },
                    )
                };
                Verdict::Wait {
                    waiter,
                    evicted: evicted.map(full),
                }
            }
            Err(shed) => Verdict::Shed(self.with_hold(shed)),
        }
    }

    /// Whether [`LocalLane::ask`] would shed this newcomer at once. Nothing is taken and nobody joins.
    ///
    /// # Errors
    /// [`Shed`]: it would.
    pub fn foresee(&mut self, waiter: &Waiter, now: Timestamp) -> Result<(), Shed> {
        let now = self.advance(now);
        if self.mode != Mode::Enforce {
            return Ok(());
        }
        let earliest = self.earliest(waiter, now);
        let permits = self.ledger.permits(waiter.call).is_ok();
        if self.lane.is_clear() && earliest <= now && permits {
            return Ok(());
        }
        match self.lane.place(waiter, earliest, now) {
            Ok(_) => Ok(()),
            Err(shed) => Err(self.with_hold(shed)),
        }
    }

    /// Lets a request pass whatever the limits say; they are counted all the same.
    fn pass(&mut self, waiter: Waiter, now: Timestamp) -> Verdict {
        let earliest = self.earliest(&waiter, now);
        let shadow =
            (self.mode == Mode::Shadow && earliest > waiter.deadline).then(|| Shed::OutOfReach {
                retry_after: earliest.since(now),
            });
        Verdict::Admit {
            slot: self.ledger.force(waiter.call, now),
            shadow,
        }
    }

    /// A lower bound of when a newcomer can go, the pause aside.
    fn earliest(&self, waiter: &Waiter, now: Timestamp) -> Timestamp {
        let nth = self
            .lane
            .queue()
            .ahead(waiter.flow, waiter.call)
            .saturating_add(1);
        self.ledger.nth_admission(nth, now)
    }

    /// While permits bind, coming back before the median exchange is over is in vain.
    fn with_hold(&self, shed: Shed) -> Shed {
        if self.ledger.in_use() < self.ledger.effective().concurrency {
            return shed;
        }
        let retry_after = shed.retry_after().max(self.lane.estimates().median_hold());
        match shed {
            Shed::QueueFull { capacity, .. } => Shed::QueueFull {
                capacity,
                retry_after,
            },
            Shed::OutOfReach { .. } => Shed::OutOfReach { retry_after },
            Shed::Paused { .. } => Shed::Paused { retry_after },
            Shed::WaitExpired { .. } => Shed::WaitExpired { retry_after },
        }
    }

    /// An admitted request comes back for another try, at the front of its flow. `arrival` is its
    /// number from when it first waited, zero if it never did.
    pub fn rejoin(&mut self, waiter: Waiter, arrival: u64, now: Timestamp) -> Verdict {
        let now = self.advance(now);
        if self.mode != Mode::Enforce {
            let slot = self.ledger.force(waiter.call, now);
            return Verdict::Admit { slot, shadow: None };
        }
        let reopens = self
            .lane
            .throttle()
            .earliest(now)
            .max(self.ledger.nth_admission(1, now));
        if reopens > waiter.deadline {
            return Verdict::Shed(Shed::Paused {
                retry_after: reopens.since(now),
            });
        }
        Verdict::Wait {
            waiter: self.lane.rejoin(waiter, arrival),
            evicted: None,
        }
    }

    /// A waiter's caller is gone.
    pub fn leave(&mut self, waiter: WaiterId, now: Timestamp) {
        self.advance(now);
        self.lane.leave(waiter);
    }

    /// No more of the request will be written; its last byte went out at `last_byte`.
    pub fn sent(&mut self, slot: &mut Slot, last_byte: Timestamp, now: Timestamp) {
        // Its age counts: on a clock that was set back, the instant itself may be a W ago here.
        let age = now.since(last_byte);
        // Nothing comes or goes by it: what time does can wait for an event that asks for it.
        let now = self.clamp(now);
        self.ledger.sent(slot, now.before(age));
    }

    /// The head of the final response came, and it was no 429.
    pub fn answered(&mut self, slot: &mut Slot, now: Timestamp) {
        let now = self.advance(now);
        self.has_answer(slot, now);
    }

    fn has_answer(&mut self, slot: &mut Slot, now: Timestamp) {
        self.ledger.arrived(slot, now);
        self.lane.throttle_mut().answered(slot.taken());
        if let Some(probe) = slot.probe.take() {
            self.lane.throttle_mut().probe_settled(probe);
        }
        self.apply();
    }

    /// The upstream answered 429.
    pub fn throttled(
        &mut self,
        slot: &mut Slot,
        retry_after: Option<Duration>,
        now: Timestamp,
    ) -> Cause {
        let now = self.advance(now);
        self.ledger.arrived(slot, now);
        self.ledger.refused(now);
        let refusal = Refusal {
            dispatched: slot.taken(),
            probe: slot.probe.take().is_some(),
            retry_after,
            accepted: self.ledger.accepted(),
            used: self.ledger.window_used(),
            in_use: self.ledger.in_use(),
        };
        let cause = self.lane.throttle_mut().refused(refusal, now);
        self.apply();
        cause
    }

    /// Nothing of the request was written: everything it took is free at once.
    pub fn unsent(&mut self, mut slot: Slot, now: Timestamp) {
        self.advance(now);
        if let Some(probe) = slot.probe.take() {
            self.lane.throttle_mut().probe_unsent(probe);
        }
        self.ledger.unsent(slot);
    }

    /// The exchange is over; its permit is free once the upstream has counted down too.
    pub fn give_back(&mut self, slot: Slot, end: End, now: Timestamp) {
        let now = self.advance(now);
        self.is_over(slot, end, now);
    }

    fn is_over(&mut self, mut slot: Slot, end: End, now: Timestamp) {
        if let Some(probe) = slot.probe.take() {
            self.lane.throttle_mut().probe_settled(probe);
        }
        let hold = self.ledger.give_back(slot, end, now);
        self.lane.estimates_mut().held(hold);
    }

    /// [`LocalLane::answered`], then [`LocalLane::give_back`] of an exchange that is complete, then
    /// [`LocalLane::budget`], all at `now`: most answers come in one piece.
    pub fn ended(&mut self, mut slot: Slot, now: Timestamp) -> Option<Budget> {
        let now = self.advance(now);
        self.has_answer(&mut slot, now);
        self.is_over(slot, End::Complete, now);
        self.left(now)
    }

    /// Another quota, capacity or mode. History, waiters and what was learnt stay.
    pub fn retune(&mut self, quota: Quota, capacity: usize, mode: Mode, now: Timestamp) {
        let now = self.advance(now);
        self.mode = mode;
        self.lane.retune(quota, capacity);
        if mode != Mode::Enforce {
            // Nobody is to be held up, also who waits already.
            self.lane.throttle_mut().open();
            self.lane.throttle_mut().release();
        }
        self.ledger
            .retune(quota, self.lane.throttle().effective(), now);
    }

    /// An operator lets nothing go until then; who waits, waits on. `false`: this lane holds nobody up,
    /// by its mode.
    pub fn hold(&mut self, until: Timestamp, now: Timestamp) -> bool {
        self.advance(now);
        let enforces = self.mode == Mode::Enforce;
        if enforces {
            self.lane.throttle_mut().hold(until);
        }
        enforces
    }

    /// The operator lets go. `false`: nothing was held.
    pub fn release(&mut self, now: Timestamp) -> bool {
        self.advance(now);
        self.lane.throttle_mut().release()
    }

    /// Settles every waiter whose turn or deadline has come, and says when to be called again
    /// though nothing happens. `None`: not before an event.
    pub fn poll(&mut self, now: Timestamp, mut settled: impl FnMut(Settled)) -> Option<Timestamp> {
        let now = self.advance(now);
        self.expire(now.before(Duration::from_nanos(1)), now, &mut settled);
        let mut wake = self.grant(now, &mut settled);
        // Who goes may have been the last short call: then the probe is no longer waited for.
        if self.expire(now, now, &mut settled) {
            wake = self.grant(now, &mut settled);
        }
        self.due = wake.filter(|_| !self.lane.queue().is_empty());
        let deadline = self.lane.first_deadline().map(|(deadline, _)| deadline);
        [self.due, deadline].into_iter().flatten().min()
    }

    /// Sheds whoever's deadline is at or before `until`. `true` if there was anybody.
    fn expire(
        &mut self,
        until: Timestamp,
        now: Timestamp,
        settled: &mut impl FnMut(Settled),
    ) -> bool {
        let mut expired = false;
        while let Some((deadline, waiter)) = self.lane.first_deadline() {
            if deadline > until {
                break;
            }
            expired = true;
            let flow = self.lane.queue().get(waiter).map(|waiter| waiter.flow);
            self.lane.leave(waiter);
            let earliest = self.ledger.nth_admission(1, now);
            let retry_after = flow
                .map(|flow| self.lane.estimate(flow, earliest, now))
                .unwrap_or_default();
            let shed = self.with_hold(Shed::WaitExpired { retry_after });
            settled(Settled::Shed(waiter, shed));
        }
        expired
    }

    /// Admits while anything may go. Returns when the next one could though nothing happens.
    fn grant(&mut self, now: Timestamp, settled: &mut impl FnMut(Settled)) -> Option<Timestamp> {
        let mut eligible = Eligible::All;
        let (mut held_until, mut grows) = (None, None);
        let mut late = Duration::ZERO;
        loop {
            let until = match self.lane.next(eligible, now) {
                Next::Idle => None,
                Next::Wait(until) => until,
                Next::Ask { waiter, call } => match self.take(call, now) {
                    Ok(mut slot) => {
                        if let Some(due) = self.due.take() {
                            self.idle += now.since(due);
                            late = now.since(due).saturating_sub(LATE);
                        }
                        self.idle_budget += late / self.slots();
                        slot.probe = self.lane.granted(waiter, now);
                        settled(Settled::Admitted(waiter, slot));
                        continue;
                    }
                    Err(Denied {
                        by: Limit::HoldShare,
                        until,
                    }) => {
                        held_until = until;
                        grows = self.lane.throttle().grows_at();
                        eligible = Eligible::ShortOnly;
                        continue;
                    }
                    Err(Denied { until, .. }) => {
                        grows = self.lane.throttle().grows_at();
                        until
                    }
                },
            };
            return [until, held_until, grows].into_iter().flatten().min();
        }
    }

    /// What the budget is divided into: requests of a window, or permits where no rate is set.
    fn slots(&self) -> u32 {
        let effective = self.ledger.effective();
        let rated = effective.requests != u32::MAX;
        let slots = if rated {
            effective.requests
        } else {
            effective.concurrency
        };
        slots.max(1)
    }

    /// Waiters of a lane that no longer enforces go at once.
    fn take(&mut self, call: Call, now: Timestamp) -> Result<Slot, Denied> {
        match self.mode {
            Mode::Enforce => self.ledger.take(call, now),
            Mode::Shadow | Mode::Disabled => Ok(self.ledger.force(call, now)),
        }
    }

    /// Nobody waits, nothing is out, the window has emptied and nothing was learnt: the lane could
    /// be forgotten and made anew without anybody noticing.
    pub fn is_idle(&mut self, now: Timestamp) -> bool {
        self.advance(now);
        self.lane.queue().is_empty() && self.ledger.is_idle() && self.lane.throttle().is_at_rest()
    }

    /// Nothing is out and nothing is left in the window.
    pub fn is_spent_free(&mut self, now: Timestamp) -> bool {
        self.advance(now);
        self.ledger.is_idle() && self.lane.queue().is_empty()
    }

    fn paused(&self, now: Timestamp) -> Duration {
        match self.lane.throttle().gate() {
            Gate::Paused(until) => until.since(now),
            Gate::Open | Gate::Probe | Gate::Probing(_) => Duration::ZERO,
        }
    }

    /// What is left of its rate. `None`: it has none, or does not enforce it.
    pub fn budget(&mut self, now: Timestamp) -> Option<Budget> {
        let now = self.advance(now);
        self.left(now)
    }

    fn left(&self, now: Timestamp) -> Option<Budget> {
        let enforced = self.mode == Mode::Enforce;
        let rate = self.ledger.quota().rate.filter(|_| enforced)?;
        let paused = self.paused(now);
        let remaining = match paused.is_zero() {
            true => {
                let requests = self.ledger.effective().requests;
                requests.saturating_sub(self.ledger.window_used())
            }
            false => 0,
        };
        let reset = match remaining {
            0 => paused.max(self.ledger.nth_admission(1, now).since(now)),
            _ => rate.period(),
        };
        Some(Budget {
            rate,
            remaining,
            reset,
        })
    }

    pub fn snapshot(&mut self, now: Timestamp) -> Snapshot {
        let now = self.advance(now);
        let paused = self.paused(now);
        Snapshot {
            quota: *self.ledger.quota(),
            effective: self.ledger.effective(),
            mode: self.mode,
            window_used: self.ledger.window_used(),
            next_free: self.ledger.nth_admission(1, now).since(now),
            permits_in_use: self.ledger.in_use(),
            waiting: self.lane.queue().len(),
            paused,
            idle: self.idle,
            idle_budget: self.idle_budget,
        }
    }

    /// Waiters of each flow, in no order.
    pub fn flows(&self) -> impl Iterator<Item = (FlowId, u32)> {
        self.lane.queue().flows()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_epoch(Duration::from_millis(millis))
    }

    fn waiter(flow: u64) -> Waiter {
        Waiter {
            flow: FlowId(flow),
            call: Call::Short,
            deadline: at(100_000),
        }
    }

    fn admitted(verdict: Verdict) -> Option<Slot> {
        match verdict {
            Verdict::Admit { slot, .. } => Some(slot),
            Verdict::Wait { .. } | Verdict::Shed(_) => None,
        }
    }

    /// Neither the pause that its 429 began nor anything else.
    #[test]
    fn nothing_holds_up_who_comes_back_where_nothing_is_enforced() {
        let quota = Quota::new(Rate::new(1, Duration::from_secs(10)), NonZeroU32::new(1));
        let mut lane = LocalLane::new(quota, 10, Mode::Shadow, 1, at(0));
        let mut slot = admitted(lane.ask(waiter(1), at(0))).expect("it passes");
        lane.throttled(&mut slot, Some(Duration::from_secs(60)), at(1));
        let again = lane.rejoin(waiter(1), 0, at(1));
        assert!(admitted(again).is_some());
    }

    /// Between the instant a slot frees and the poll that hands it out, it is not up for grabs.
    #[test]
    fn a_newcomer_does_not_take_what_a_waiter_waits_for() {
        let quota = Quota::new(Rate::new(1, Duration::from_secs(10)), NonZeroU32::new(5));
        let mut lane = LocalLane::new(quota, 10, Mode::Enforce, 1, at(0));
        let mut slot = admitted(lane.ask(waiter(1), at(0))).expect("there is room");
        lane.answered(&mut slot, at(0));
        lane.give_back(slot, End::Complete, at(0));
        let Verdict::Wait { waiter: first, .. } = lane.ask(waiter(1), at(1)) else {
            panic!("the window is spent")
        };
        assert!(admitted(lane.ask(waiter(2), at(10_020))).is_none());
        let mut went = None;
        lane.poll(at(10_020), |settled| went = Some(settled));
        assert!(matches!(went, Some(Settled::Admitted(waiter, _)) if waiter == first));
    }

    /// Nobody could tell which of the two was called.
    #[test]
    fn an_answer_in_one_piece_is_an_answer_and_its_end() {
        let quota = Quota::new(Rate::new(3, Duration::from_secs(10)), NonZeroU32::new(2));
        let lane = || LocalLane::new(quota, 10, Mode::Enforce, 1, at(0));
        let (mut one, mut two) = (lane(), lane());
        for now in (0..200).map(|step| at(step * 700)) {
            let slots = [&mut one, &mut two].map(|lane| admitted(lane.ask(waiter(1), now)));
            if let [Some(mut first), Some(second)] = slots {
                one.sent(&mut first, now, now);
                one.answered(&mut first, now);
                one.give_back(first, End::Complete, now);
                assert_eq!(two.ended(second, now), one.budget(now));
            }
            for lane in [&mut one, &mut two] {
                lane.poll(now, |_| {});
            }
            assert_eq!(one.snapshot(now), two.snapshot(now));
        }
    }

    fn went(lane: &mut LocalLane, now: Timestamp) -> usize {
        let mut went = 0;
        lane.poll(now, |settled| {
            went += usize::from(matches!(settled, Settled::Admitted(..)));
        });
        went
    }

    #[test]
    fn an_operator_holds_a_lane_and_lets_it_go() {
        let quota = Quota::new(Rate::new(100, Duration::from_secs(10)), NonZeroU32::new(50));
        let mut lane = LocalLane::new(quota, 10, Mode::Enforce, 1, at(0));
        assert!(lane.hold(at(5_000), at(0)));
        for _ in 0..2 {
            assert!(admitted(lane.ask(waiter(1), at(1))).is_none());
        }
        let hurried = Waiter {
            deadline: at(4_000),
            ..waiter(2)
        };
        let asked = lane.ask(hurried, at(2));
        assert!(matches!(asked, Verdict::Shed(Shed::Paused { .. })));
        assert_eq!(lane.snapshot(at(3)).paused, at(5_000).since(at(3)));
        assert_eq!(went(&mut lane, at(4_999)), 0);
        // All at once: nobody is asked whether the upstream would.
        assert_eq!(went(&mut lane, at(5_000)), 2);
        assert!(lane.hold(at(60_000), at(5_001)));
        assert!(admitted(lane.ask(waiter(1), at(5_001))).is_none());
        assert!(lane.release(at(6_000)));
        assert!(!lane.release(at(6_000)));
        assert_eq!(went(&mut lane, at(6_000)), 1);
    }

    #[test]
    fn neither_hold_nor_pause_ends_the_other() {
        let quota = Quota::new(Rate::new(100, Duration::from_secs(10)), NonZeroU32::new(50));
        for (hold, retry_after, over) in [(2_000, 10, 11_000), (20_000, 1, 20_000)] {
            let mut lane = LocalLane::new(quota, 10, Mode::Enforce, 1, at(0));
            let mut slot = admitted(lane.ask(waiter(1), at(0))).expect("there is room");
            assert!(lane.hold(at(hold), at(0)));
            lane.throttled(&mut slot, Some(Duration::from_secs(retry_after)), at(0));
            lane.give_back(slot, End::Complete, at(0));
            assert!(admitted(lane.ask(waiter(1), at(1))).is_none());
            let longest = hold.max(retry_after * 1_000);
            assert!(lane.snapshot(at(1)).paused >= at(longest).since(at(1)));
            assert_eq!(went(&mut lane, at(longest - 1)), 0, "{hold} {retry_after}");
            assert_eq!(went(&mut lane, at(over)), 1, "{hold} {retry_after}");
        }
    }

    #[test]
    fn where_nothing_is_enforced_nobody_is_held() {
        let quota = Quota::new(Rate::new(1, Duration::from_secs(10)), NonZeroU32::new(1));
        let mut lane = LocalLane::new(quota, 10, Mode::Shadow, 1, at(0));
        assert!(!lane.hold(at(5_000), at(0)));
        assert_eq!(lane.snapshot(at(0)).paused, Duration::ZERO);
        assert!(admitted(lane.ask(waiter(1), at(1))).is_some());
        let mut lane = LocalLane::new(quota, 10, Mode::Enforce, 1, at(0));
        assert!(lane.hold(at(5_000), at(0)));
        assert!(admitted(lane.ask(waiter(1), at(1))).is_none());
        lane.retune(quota, 10, Mode::Disabled, at(2));
        assert_eq!(went(&mut lane, at(2)), 1);
    }

    /// Two of four slots, each a second late, are half of the budget for a second.
    #[test]
    fn what_is_handed_out_late_counts_by_its_share_of_the_budget() {
        let quota = Quota::new(Rate::new(4, Duration::from_secs(10)), NonZeroU32::new(5));
        let mut lane = LocalLane::new(quota, 10, Mode::Enforce, 1, at(0));
        for _ in 0..4 {
            let mut slot = admitted(lane.ask(waiter(1), at(0))).expect("there is room");
            lane.answered(&mut slot, at(0));
            lane.give_back(slot, End::Complete, at(0));
        }
        for _ in 0..2 {
            assert!(admitted(lane.ask(waiter(1), at(1))).is_none());
        }
        let due = lane.poll(at(1), |_| {}).expect("a slot frees");
        let mut went = 0;
        lane.poll(due + Duration::from_secs(1), |_| went += 1);
        assert_eq!(went, 2);
        let snapshot = lane.snapshot(due + Duration::from_secs(1));
        assert_eq!(snapshot.idle, Duration::from_secs(1));
        assert_eq!(snapshot.idle_budget, (Duration::from_secs(1) - LATE) / 2);
    }
}
