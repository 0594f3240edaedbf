//! A simulated afternoon: callers, one lane, a wire with transit times, and an upstream that
//! polices by its own rules. Time is a number; thousands of seconds take milliseconds.
//!
//! What is reported is what the upstream saw, kept in plain lists, not the lane's own state.

#![allow(dead_code, reason = "each test file uses its part")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::num::NonZeroU32;
use std::ops::Range;
use std::time::Duration;

use podgate::emulator::policer::{Policer, RateDoor};
use podgate::limit::fair_queue::{Waiter, WaiterId};
use podgate::limit::flow::FlowId;
use podgate::limit::ledger::{Call, End, Slot};
use podgate::limit::local::{LocalLane, Settled, Verdict};
use podgate::limit::quota::{Burst, Mode, Quota, Rate, Timestamp};

pub const W: Duration = Duration::from_secs(10);

pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn at(millis: u64) -> Timestamp {
    Timestamp::from_epoch(Duration::from_millis(millis))
}

pub fn quota(requests: u32, concurrency: u32) -> Quota {
    Quota::new(Rate::new(requests, W), NonZeroU32::new(concurrency))
}

pub fn with_burst(quota: Quota, burst: u32) -> Quota {
    Quota {
        burst: NonZeroU32::new(burst).map_or(Burst::Auto, Burst::Fixed),
        ..quota
    }
}

/// SplitMix64, so that a failing seed can be named.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    fn between(&mut self, range: &Range<Duration>) -> Duration {
        let span = range.end.saturating_sub(range.start).as_nanos() as u64;
        range.start + Duration::from_nanos(self.below(span + 1))
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Appetite {
    /// Keeps this many waiting.
    Saturating(usize),
    /// This many at once, then silence.
    Bursty { size: usize, every: Duration },
    /// One each so often.
    Steady { every: Duration },
}

#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub flow: u64,
    pub appetite: Appetite,
    pub call: Call,
    /// It gives up waiting after this.
    pub patience: Duration,
}

pub fn caller(flow: u64, appetite: Appetite) -> Caller {
    Caller {
        flow,
        appetite,
        call: Call::Short,
        patience: Duration::from_secs(8),
    }
}

/// Somebody who spends the same budget beside us, evenly.
#[derive(Clone, Copy, Debug)]
pub struct Outsider {
    pub every: Duration,
    pub until: Duration,
}

#[derive(Clone)]
pub struct Scenario {
    pub seed: u64,
    pub length: Duration,
    pub quota: Quota,
    pub queue: usize,
    pub policer: Policer,
    /// The upstream's real limits; the quota's unless they differ.
    pub real_requests: u32,
    pub real_concurrency: u32,
    pub there: Range<Duration>,
    pub service: Range<Duration>,
    pub back: Range<Duration>,
    /// How much faster the upstream's clock runs, in millionths.
    pub ppm: i64,
    /// In a hundred: exchanges torn down at a random moment.
    pub aborts: u64,
    pub callers: Vec<Caller>,
    pub outsider: Option<Outsider>,
}

impl Scenario {
    pub fn new(quota: Quota, policer: Policer) -> Self {
        Self {
            seed: 1,
            length: Duration::from_secs(60),
            queue: 5_000,
            policer,
            real_requests: quota.rate.map_or(u32::MAX, Rate::requests),
            real_concurrency: quota.concurrency.map_or(u32::MAX, NonZeroU32::get),
            quota,
            there: millis(5)..millis(20),
            service: millis(2)..millis(20),
            back: millis(5)..millis(20),
            ppm: 0,
            aborts: 0,
            callers: vec![caller(1, Appetite::Saturating(300))],
            outsider: None,
        }
    }

    pub fn run(self) -> Report {
        Simulation::new(self).run()
    }
}

/// How one wait ended.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    pub flow: u64,
    pub asked: Timestamp,
    pub ended: Timestamp,
    pub admitted: bool,
}

impl Wait {
    pub fn length(&self) -> Duration {
        self.ended.since(self.asked)
    }
}

#[derive(Default)]
pub struct Report {
    /// Arrivals the upstream accepted, on its own clock, with the last moment before each at which
    /// somebody could have been missing: nobody waited, permits bound, paused or shrunk.
    pub accepted: Vec<(Timestamp, Timestamp)>,
    /// Arrivals it refused.
    pub refused: Vec<Timestamp>,
    pub most_in_flight: u32,
    pub waits: Vec<Wait>,
    /// Permit-seconds out over the permit-seconds there were while permits were what bound.
    pub permits_out: Duration,
    pub permits_bound: Duration,
    /// By the lane's own clock.
    pub idle: Duration,
    pub in_use_at_end: u32,
    pub effective_at_end: u32,
    pub burst_at_end: u32,
}

impl Report {
    /// The most accepted arrivals in any closed interval of length `window`.
    pub fn most_in(&self, window: Duration) -> usize {
        let mut first = 0;
        (0..self.accepted.len())
            .map(|last| {
                while self.accepted[last].0.since(self.accepted[first].0) > window {
                    first += 1;
                }
                last - first + 1
            })
            .max()
            .unwrap_or(0)
    }

    /// Promise 2: W over the mean D_i, over all i that count. `None`: fewer than 2N of them.
    ///
    /// Those of the first W do not: a burst out of idleness goes early, so its D_i are long though
    /// no budget is lost, and stretching them is how the convoy is taken apart (section 3).
    pub fn use_of_budget(&self, requests: u32, window: Duration) -> Option<f64> {
        let n = requests as usize;
        let spans: Vec<f64> = self
            .accepted
            .iter()
            .zip(self.accepted.iter().skip(n))
            .filter(|((first, _), (_, broken))| {
                *first >= Timestamp::EPOCH + window && broken < first
            })
            .map(|((first, _), (last, _))| last.since(*first).as_secs_f64())
            .collect();
        let mean = spans.iter().sum::<f64>() / spans.len() as f64;
        (spans.len() >= 2 * n).then(|| window.as_secs_f64() / mean)
    }

    pub fn accepted_between(&self, from: Timestamp, to: Timestamp) -> usize {
        self.accepted
            .iter()
            .filter(|(at, _)| *at >= from && *at < to)
            .count()
    }

    pub fn refused_between(&self, from: Timestamp, to: Timestamp) -> usize {
        self.refused
            .iter()
            .filter(|at| **at >= from && **at < to)
            .count()
    }

    pub fn permit_use(&self, concurrency: u32) -> f64 {
        self.permits_out.as_secs_f64() / (self.permits_bound.as_secs_f64() * f64::from(concurrency))
    }

    /// Waits of `flows` that ended after `from`.
    pub fn waits_of(&self, flows: Range<u64>, from: Timestamp) -> Vec<Wait> {
        let here = |wait: &&Wait| flows.contains(&wait.flow) && wait.asked >= from;
        self.waits.iter().filter(here).copied().collect()
    }
}

pub fn percentile(waits: &[Wait], percent: usize) -> Duration {
    let mut lengths: Vec<_> = waits.iter().map(Wait::length).collect();
    lengths.sort_unstable();
    lengths[(lengths.len() * percent / 100).min(lengths.len() - 1)]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A caller asks, if it wants to now.
    Ask(usize),
    Arrive(usize),
    Head(usize, bool),
    End(usize),
    Abort(usize),
    /// The upstream has handed over the last byte of its answer.
    Left(usize),
    Outside,
    Wake,
}

struct Exchange {
    caller: usize,
    asked: Timestamp,
    slot: Option<Slot>,
    aborted: bool,
    accepted: bool,
}

struct Simulation {
    scenario: Scenario,
    random: Random,
    lane: LocalLane,
    door: RateDoor,
    in_flight: u32,
    now: Timestamp,
    events: BinaryHeap<Reverse<(Timestamp, u64, Event)>>,
    counter: u64,
    exchanges: Vec<Exchange>,
    waiting: BTreeMap<WaiterId, usize>,
    waiting_of: Vec<usize>,
    broken: Timestamp,
    whole: bool,
    bound: bool,
    report: Report,
    wake: Option<Timestamp>,
}

impl Simulation {
    fn new(scenario: Scenario) -> Self {
        let lane = LocalLane::new(
            scenario.quota,
            scenario.queue,
            Mode::Enforce,
            scenario.seed,
            Timestamp::EPOCH,
        );
        let window = scenario.quota.rate.map_or(W, Rate::period);
        Self {
            random: Random(scenario.seed),
            lane,
            door: RateDoor::new(scenario.policer, scenario.real_requests, window),
            in_flight: 0,
            now: Timestamp::EPOCH,
            events: BinaryHeap::new(),
            counter: 0,
            exchanges: Vec::new(),
            waiting: BTreeMap::new(),
            waiting_of: vec![0; scenario.callers.len()],
            broken: Timestamp::EPOCH,
            whole: false,
            bound: false,
            report: Report::default(),
            wake: None,
            scenario,
        }
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.counter += 1;
        self.events
            .push(Reverse((self.now + after, self.counter, event)));
    }

    fn run(mut self) -> Report {
        for index in 0..self.scenario.callers.len() {
            self.at(Duration::ZERO, Event::Ask(index));
        }
        if let Some(outsider) = self.scenario.outsider {
            self.at(outsider.every, Event::Outside);
        }
        let end = Timestamp::EPOCH + self.scenario.length;
        while self
            .events
            .peek()
            .is_some_and(|&Reverse((when, ..))| when <= end)
        {
            let Some(Reverse((when, _, event))) = self.events.pop() else {
                break;
            };
            self.spend(when);
            self.now = when;
            self.happen(event);
            self.settle();
        }
        self.drain();
        let snapshot = self.lane.snapshot(self.now);
        self.report.idle = snapshot.idle;
        self.report.in_use_at_end = snapshot.permits_in_use;
        self.report.effective_at_end = snapshot.effective.requests;
        self.report.burst_at_end = snapshot.effective.burst;
        self.report
    }

    /// What held between the last event and this one.
    fn spend(&mut self, until: Timestamp) {
        if !self.whole {
            self.broken = until;
        }
        if self.bound {
            let span = until.since(self.now);
            self.report.permits_bound += span;
            self.report.permits_out += span * self.lane.snapshot(self.now).permits_in_use;
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake => {}
            Event::Ask(caller) => self.appetite(caller),
            Event::Arrive(exchange) => self.arrive(exchange),
            Event::Left(_) => self.in_flight -= 1,
            Event::Head(exchange, accepted) => {
                let now = self.now;
                let Some(slot) = &mut self.exchanges[exchange].slot else {
                    return;
                };
                if accepted {
                    self.lane.answered(slot, now);
                } else {
                    self.lane.throttled(slot, None, now);
                }
            }
            Event::End(exchange) => {
                if let Some(slot) = self.exchanges[exchange].slot.take() {
                    self.lane.give_back(slot, End::Complete, self.now);
                }
            }
            Event::Abort(exchange) => {
                if let Some(slot) = self.exchanges[exchange].slot.take() {
                    self.exchanges[exchange].aborted = true;
                    self.lane.give_back(slot, End::Torn, self.now);
                }
            }
            Event::Outside => {
                let Some(outsider) = self.scenario.outsider else {
                    return;
                };
                self.door.arrive(self.theirs());
                if self.now.since(Timestamp::EPOCH) < outsider.until {
                    self.at(outsider.every, Event::Outside);
                }
            }
        }
    }

    /// Now, on the upstream's clock.
    fn theirs(&self) -> Duration {
        let nanos = i128::from(self.now.as_nanos());
        let skewed = nanos + nanos * i128::from(self.scenario.ppm) / 1_000_000;
        Duration::from_nanos(skewed as u64)
    }

    fn arrive(&mut self, exchange: usize) {
        let theirs = self.theirs();
        // Refused for its number at once, whatever the permits.
        let accepted = self.in_flight < self.scenario.real_concurrency && self.door.arrive(theirs);
        let service = match accepted {
            true => self.random.between(&self.scenario.service.clone()),
            false => Duration::ZERO,
        };
        let back = self.random.between(&self.scenario.back.clone());
        if accepted {
            self.in_flight += 1;
            self.report.most_in_flight = self.report.most_in_flight.max(self.in_flight);
            self.report
                .accepted
                .push((Timestamp::from_epoch(theirs), self.broken));
            self.at(service, Event::Left(exchange));
        } else {
            self.report.refused.push(self.now);
        }
        self.exchanges[exchange].accepted = accepted;
        self.at(service + back, Event::Head(exchange, accepted));
        self.at(service + back, Event::End(exchange));
    }

    fn appetite(&mut self, caller: usize) {
        match self.scenario.callers[caller].appetite {
            Appetite::Saturating(depth) => {
                while self.waiting_of[caller] < depth {
                    if !self.ask(caller) {
                        self.at(millis(50), Event::Ask(caller));
                        break;
                    }
                }
            }
            Appetite::Bursty { size, every } => {
                for _ in 0..size {
                    self.ask(caller);
                }
                self.at(every, Event::Ask(caller));
            }
            Appetite::Steady { every } => {
                self.ask(caller);
                self.at(every, Event::Ask(caller));
            }
        }
    }

    /// `false` if it was shed on arrival.
    fn ask(&mut self, caller: usize) -> bool {
        let Caller {
            flow,
            call,
            patience,
            ..
        } = self.scenario.callers[caller];
        let exchange = self.exchanges.len();
        let (asked, slot) = (self.now, None);
        self.exchanges.push(Exchange {
            caller,
            asked,
            slot,
            aborted: false,
            accepted: false,
        });
        let waiter = Waiter {
            flow: FlowId(flow),
            call,
            deadline: self.now + patience,
        };
        match self.lane.ask(waiter, self.now) {
            Verdict::Admit { slot, .. } => self.dispatch(exchange, slot),
            Verdict::Wait { waiter, evicted } => {
                self.waiting.insert(waiter, exchange);
                self.waiting_of[caller] += 1;
                if let Some((victim, _)) = evicted {
                    self.shed(victim);
                }
            }
            Verdict::Shed(_) => {
                self.wait_ended(exchange, false);
                return false;
            }
        }
        true
    }

    fn wait_ended(&mut self, exchange: usize, admitted: bool) {
        let Exchange { caller, asked, .. } = self.exchanges[exchange];
        let flow = self.scenario.callers[caller].flow;
        self.report.waits.push(Wait {
            flow,
            asked,
            ended: self.now,
            admitted,
        });
    }

    fn dispatch(&mut self, exchange: usize, mut slot: Slot) {
        self.wait_ended(exchange, true);
        self.lane.sent(&mut slot, self.now, self.now);
        self.exchanges[exchange].slot = Some(slot);
        let there = self.random.between(&self.scenario.there.clone());
        self.at(there, Event::Arrive(exchange));
        if self.random.below(100) < self.scenario.aborts {
            let after = self.random.between(&(Duration::ZERO..there * 3));
            self.at(after, Event::Abort(exchange));
        }
    }

    fn shed(&mut self, waiter: WaiterId) {
        if let Some(exchange) = self.waiting.remove(&waiter) {
            let caller = self.exchanges[exchange].caller;
            self.waiting_of[caller] -= 1;
            self.wait_ended(exchange, false);
            if matches!(
                self.scenario.callers[caller].appetite,
                Appetite::Saturating(_)
            ) {
                self.at(Duration::ZERO, Event::Ask(caller));
            }
        }
    }

    /// Polls until nothing more comes of it, and notes what binds.
    fn settle(&mut self) {
        let mut settled = Vec::new();
        let wake = self.lane.poll(self.now, |one| settled.push(one));
        for one in settled {
            match one {
                Settled::Admitted(waiter, slot) => {
                    let exchange = self.waiting.remove(&waiter).expect("it waited");
                    let caller = self.exchanges[exchange].caller;
                    self.waiting_of[caller] -= 1;
                    self.dispatch(exchange, slot);
                    if matches!(
                        self.scenario.callers[caller].appetite,
                        Appetite::Saturating(_)
                    ) {
                        self.at(Duration::ZERO, Event::Ask(caller));
                    }
                }
                Settled::Shed(waiter, _) => self.shed(waiter),
            }
        }
        if wake != self.wake
            && let Some(wake) = wake
        {
            self.at(wake.since(self.now), Event::Wake);
        }
        self.wake = wake;
        let snapshot = self.lane.snapshot(self.now);
        let effective = snapshot.effective;
        self.bound = snapshot.waiting > 0 && snapshot.permits_in_use + 1 >= effective.concurrency;
        self.whole = snapshot.waiting > 0
            && snapshot.permits_in_use < effective.concurrency
            && snapshot.paused.is_zero()
            && snapshot
                .quota
                .rate
                .is_some_and(|rate| effective.requests == rate.requests());
    }

    /// Nobody asks any more: what is out ends.
    fn drain(&mut self) {
        while let Some(Reverse((when, _, event))) = self.events.pop() {
            self.now = self.now.max(when);
            match event {
                Event::Ask(_) | Event::Outside => {}
                event => self.happen(event),
            }
        }
        let waiting: Vec<_> = self.waiting.keys().copied().collect();
        for waiter in waiting {
            self.lane.leave(waiter, self.now);
        }
        self.now = self.now + self.scenario.quota.margin + self.scenario.quota.settle;
        self.lane.poll(self.now, |_| panic!("nobody waits"));
    }
}
