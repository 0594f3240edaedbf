//! Where a naive gateway fails, in simulated time, against the real doors and the faults as they are
//! posted. Its failures over sockets: `naive_sockets`.
//!
//! It is a token bucket of depth N, refilled at N per W, with a permit count: what most people would
//! write. Permits are given back with the answer, and what is answered 429 is sent again. Only a token
//! bucket upstream, near by and with a true clock, is content with it.
//!
//! | knob | test |
//! | --- | --- |
//! | policers `sliding-log` `closed-window` `fixed-window` `weighted-counter` `none`, `token-bucket` with its settings | [`a_token_bucket_satisfies_a_token_bucket_and_nobody_else`] |
//! | `latency_ms` | [`a_latency_that_ends_brings_two_streams_at_once`] |
//! | `jitter_ms` | [`jitter_crowds_what_was_sent_evenly`] |
//! | `clock_ppm` | [`a_slow_clock_refills_more_slowly`] |
//! | `counts` | [`what_counts_when_its_body_has_ended_arrives_unevenly`], [`what_counts_at_its_completion_was_let_in_too_early`] |
//! | `decrement_delay_ms` | [`a_permit_given_back_with_the_answer_is_too_early_for_a_late_decrement`] |
//! | `status`, `probability`, `count` | [`a_429_that_is_sent_again_costs_more_than_one`] |
//! | `retry_after` | [`those_who_were_told_the_same_time_come_back_together`] |
//!
//! An exact window in the bucket's place would not be enough either: [`an_exact_window_fails_as_well`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use podgate::emulator::door::{Counts, Door};
use podgate::emulator::faults::{FaultBox, Faults, Plan, RetryAfter};
use podgate::emulator::limits::{Group, Limit};
use podgate::emulator::policer::{Policer, RateDoor};
use podgate::emulator::witness::Seen;

const N: u32 = 100;
const W: Duration = Duration::from_secs(10);
/// Of one request, whatever becomes of it.
const MOST_TRIES: u32 = 4;
const BUCKET: Policer = Policer::TokenBucket {
    depth: 0,
    refill: 0,
};

/// What an upstream does differently from what the gateway believes.
#[derive(Clone, Copy)]
struct World {
    /// N.
    requests: u32,
    policer: Policer,
    /// As posted to `/__emulator/faults`.
    faults: &'static str,
    /// How long the k-th request's body is on its way.
    upload: fn(u64) -> Duration,
    /// From arrival to the end of the exchange.
    service: Duration,
    concurrency: u32,
}

impl Default for World {
    fn default() -> Self {
        Self {
            requests: N,
            policer: BUCKET,
            faults: "{}",
            upload: |_| Duration::ZERO,
            service: Duration::ZERO,
            concurrency: 1_000,
        }
    }
}

impl World {
    fn with(faults: &'static str) -> Self {
        Self {
            faults,
            ..Self::default()
        }
    }
}

/// In the order in which what happens at once is seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Left,
    Arrives,
    SentAgain,
}

/// One sending of one request.
struct Try {
    /// Of the request, from 0.
    number: u64,
    /// Sent so often by now.
    times: u32,
    plan: Plan,
}

impl Try {
    /// The upstream's own answer, where it is 429.
    fn is_struck(&self) -> bool {
        let strike = self.plan.strike.as_deref();
        strike.and_then(|strike| strike.status) == Some(429)
    }

    fn retry_after(&self) -> Duration {
        let strike = self.plan.strike.as_deref();
        match strike.and_then(|strike| strike.retry_after.as_ref()) {
            Some(RetryAfter::Seconds(seconds)) => Duration::from_secs(*seconds),
            _ => Duration::ZERO,
        }
    }
}

/// A naive gateway of some limiter, before one door.
struct Simulation {
    world: World,
    faults: FaultBox,
    door: Door,
    gateway: RateDoor,
    tries: Vec<Try>,
    /// By index of the try.
    events: BinaryHeap<Reverse<(Duration, Event, usize)>>,
    out: u32,
}

impl Simulation {
    fn new(limiter: Policer, world: World) -> Self {
        let limit = Limit {
            requests: Some(world.requests),
            window: W,
            concurrency: Some(world.concurrency),
            ..Limit::documented(Group::Run)
        };
        let faults = FaultBox::new(1);
        faults.set(Faults::parse(world.faults.as_bytes()).unwrap());
        let mut door = Door::new(limit, world.policer);
        door.skew(Duration::ZERO, faults.clock_ppm());
        Self {
            world,
            faults,
            door,
            gateway: RateDoor::new(limiter, world.requests, W),
            tries: Vec::new(),
            events: BinaryHeap::new(),
            out: 0,
        }
    }

    fn send(&mut self, now: Duration, number: u64, times: u32) {
        let plan = self.faults.plan("ep", Group::Run);
        let upload = match plan.counts {
            Counts::BodyEnd => (self.world.upload)(number),
            Counts::Head | Counts::Completion => Duration::ZERO,
        };
        let arrives = now + upload + plan.latency;
        self.push(arrives, Event::Arrives, self.tries.len());
        self.tries.push(Try {
            number,
            times,
            plan,
        });
    }

    fn push(&mut self, at: Duration, event: Event, index: usize) {
        self.events.push(Reverse((at, event, index)));
    }

    fn happens(&mut self, at: Duration, event: Event, index: usize) {
        let this = &self.tries[index];
        match event {
            Event::Left => {
                self.door
                    .leave(at, this.plan.late_decrement, this.plan.counts);
                self.out -= 1;
            }
            Event::Arrives => match self.door.arrive(at, None, this.plan.counts) {
                Ok(()) if this.is_struck() => {
                    self.door
                        .leave(at, this.plan.late_decrement, this.plan.counts);
                    self.throttled(at, index);
                }
                Ok(()) => self.push(at + self.world.service, Event::Left, index),
                Err(_) => self.throttled(at, index),
            },
            Event::SentAgain => self.send(at, this.number, this.times + 1),
        }
    }

    /// It is sent again when it was told to, or at once.
    fn throttled(&mut self, now: Duration, index: usize) {
        let this = &self.tries[index];
        if this.times < MOST_TRIES {
            self.push(now + this.retry_after(), Event::SentAgain, index);
        } else {
            self.out -= 1;
        }
    }

    /// A minute of everybody wanting everything, begun after a pause.
    fn run(mut self) -> Seen {
        let mut number = 0;
        let mut now = W * 3;
        while now < W * 9 {
            while let Some(&Reverse((at, event, index))) = self.events.peek()
                && at <= now
            {
                self.events.pop();
                self.happens(at, event, index);
            }
            while self.out < self.world.concurrency && self.gateway.arrive(now) {
                self.out += 1;
                self.send(now, number, 1);
                number += 1;
            }
            now += Duration::from_micros(500);
        }
        self.door.seen()
    }
}

fn run(limiter: Policer, world: World) -> Seen {
    Simulation::new(limiter, world).run()
}

/// How many the naive gateway had refused for their rate.
fn refused(world: World) -> u64 {
    let seen = run(BUCKET, world);
    assert_eq!(seen.refused_concurrency, 0, "something else than the rate");
    assert!(
        seen.accepted > 5 * u64::from(world.requests),
        "nothing is shown"
    );
    seen.refused_rate
}

#[test]
fn a_token_bucket_satisfies_a_token_bucket_and_nobody_else() {
    assert_eq!(refused(World::default()), 0);
    for policer in [
        "sliding-log",
        "closed-window",
        "fixed-window:phase=3s",
        "weighted-counter:phase=3s",
        "token-bucket:depth=25",
        "token-bucket:refill=97",
    ] {
        let world = World {
            policer: policer.parse().unwrap(),
            ..World::default()
        };
        assert!(refused(world) > 0, "{policer}");
    }
    let unpoliced = World {
        policer: Policer::None,
        ..World::default()
    };
    let unpoliced = run(BUCKET, unpoliced);
    assert_eq!(
        unpoliced.max_in_window,
        u64::from(2 * N),
        "2N - 1, and one at the closed end"
    );
    assert!(unpoliced.min_d_over_w.is_some_and(|least| least < 1.0));
}

#[test]
fn a_latency_that_ends_brings_two_streams_at_once() {
    let steady = World::with(r#"{"latency_ms": 300}"#);
    assert_eq!(refused(steady), 0);
    let ends = World::with(r#"{"latency_ms": 300, "count": 250}"#);
    assert!(refused(ends) > 0);
}

#[test]
fn jitter_crowds_what_was_sent_evenly() {
    // The burst's first arrival is when the upstream's bucket begins to refill; who is on its way for a
    // shorter time than that one comes before its token.
    let near = World {
        requests: 3,
        ..World::with(r#"{"latency_ms": 20}"#)
    };
    assert_eq!(refused(near), 0);
    let jittery = World {
        faults: r#"{"latency_ms": 20, "jitter_ms": 80}"#,
        ..near
    };
    assert!(refused(jittery) > 0);
}

#[test]
fn a_slow_clock_refills_more_slowly() {
    assert_eq!(refused(World::with(r#"{"clock_ppm": 10000}"#)), 0);
    assert!(refused(World::with(r#"{"clock_ppm": -10000}"#)) > 0);
}

#[test]
fn what_counts_when_its_body_has_ended_arrives_unevenly() {
    // Large bodies, and then small ones.
    let uploads = World {
        upload: |k| Duration::from_millis(if k < 250 { 300 } else { 5 }),
        ..World::with(r#"{"counts": "head"}"#)
    };
    assert_eq!(refused(uploads), 0);
    let body_end = World {
        faults: r#"{"counts": "body-end"}"#,
        ..uploads
    };
    assert!(refused(body_end) > 0);
}

#[test]
fn what_counts_at_its_completion_was_let_in_too_early() {
    let slow = World {
        service: Duration::from_millis(900),
        ..World::default()
    };
    assert_eq!(refused(slow), 0);
    let completion = World {
        faults: r#"{"counts": "completion"}"#,
        ..slow
    };
    assert!(refused(completion) > 0);
}

#[test]
fn a_permit_given_back_with_the_answer_is_too_early_for_a_late_decrement() {
    let punctual = World {
        service: Duration::from_millis(1_500),
        concurrency: 10,
        ..World::default()
    };
    assert_eq!(run(BUCKET, punctual).refused_concurrency, 0);
    let late = World {
        faults: r#"{"decrement_delay_ms": 3}"#,
        ..punctual
    };
    assert!(run(BUCKET, late).refused_concurrency > 0);
}

/// A try that was answered 429 has been counted; the next one is beyond what the bucket lets out.
#[test]
fn a_429_that_is_sent_again_costs_more_than_one() {
    let none = World::with(r#"{"status": 429, "probability": 0}"#);
    assert_eq!(refused(none), 0);
    let one = refused(World::with(r#"{"status": 429, "count": 1}"#));
    assert!(one > 0);
    let some = refused(World::with(r#"{"status": 429, "probability": 0.1}"#));
    assert!(some > one, "{some} and {one}");
}

#[test]
fn those_who_were_told_the_same_time_come_back_together() {
    let told = World::with(r#"{"status": 429, "retry_after": 3, "count": 60}"#);
    assert!(refused(told) > 0);
}

#[test]
fn an_exact_window_fails_as_well() {
    let exact = World {
        policer: Policer::SlidingLog,
        service: Duration::from_millis(900),
        upload: |k| Duration::from_millis(k * 37 % 800),
        ..World::default()
    };
    assert_eq!(run(Policer::SlidingLog, exact).refused_rate, 0);
    for faults in [
        r#"{"jitter_ms": 80}"#,
        r#"{"clock_ppm": -300}"#,
        r#"{"counts": "body-end"}"#,
        r#"{"counts": "completion"}"#,
    ] {
        let world = World { faults, ..exact };
        assert!(run(Policer::SlidingLog, world).refused_rate > 0, "{faults}");
    }
}
