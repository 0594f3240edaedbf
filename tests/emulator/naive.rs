//! A naive gateway fails where it should: in simulated time, against the real doors.
//!
//! It is a token bucket of depth N, refilled at N per W, with a permit count: what most people would
//! write. Only a token bucket upstream, near by and with a true clock, is content with it.

use std::time::Duration;

use podgate::emulator::door::{Counts, Door};
use podgate::emulator::limits::{Group, Limit};
use podgate::emulator::policer::{Policer, RateDoor};
use podgate::emulator::witness::Seen;

const N: u32 = 100;
const W: Duration = Duration::from_secs(10);

/// What an upstream does differently from what the gateway believes.
#[derive(Clone, Copy)]
struct World {
    policer: Policer,
    /// The k-th request arrives so much later than it was sent.
    transit: fn(u64) -> Duration,
    clock_ppm: i32,
    counts: Counts,
    /// From arrival to the end of the exchange.
    service: Duration,
    late_decrement: Duration,
    concurrency: u32,
}

impl Default for World {
    fn default() -> Self {
        Self {
            policer: Policer::TokenBucket {
                depth: 0,
                refill: 0,
            },
            transit: |_| Duration::ZERO,
            clock_ppm: 0,
            counts: Counts::Head,
            service: Duration::ZERO,
            late_decrement: Duration::ZERO,
            concurrency: 1_000,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Left,
    Arrives,
}

/// A minute of everybody wanting everything, begun after a pause, through a limiter of `policer`.
fn run(limiter: Policer, world: World) -> Seen {
    let limit = Limit {
        requests: Some(N),
        window: W,
        concurrency: Some(world.concurrency),
        ..Limit::documented(Group::Run)
    };
    let mut door = Door::new(limit, world.policer);
    door.skew(Duration::ZERO, world.clock_ppm);
    let mut gateway = RateDoor::new(limiter, N, W);
    let mut events = std::collections::BinaryHeap::new();
    let mut out = 0;
    let mut sent = 0;
    let mut now = W * 3;
    while now < W * 9 {
        while let Some(&std::cmp::Reverse((at, event, k))) = events.peek()
            && at <= now
        {
            events.pop();
            match event {
                Event::Left => {
                    door.leave(at, world.late_decrement, world.counts);
                    out -= 1;
                }
                Event::Arrives => match door.arrive(at, None, world.counts) {
                    Ok(()) => {
                        events.push(std::cmp::Reverse((at + world.service, Event::Left, k)));
                    }
                    Err(_) => out -= 1,
                },
            }
        }
        while out < world.concurrency && gateway.arrive(now) {
            out += 1;
            sent += 1;
            let arrives = now + (world.transit)(sent);
            events.push(std::cmp::Reverse((arrives, Event::Arrives, sent)));
        }
        now += Duration::from_micros(500);
    }
    door.seen()
}

const BUCKET: Policer = Policer::TokenBucket {
    depth: 0,
    refill: 0,
};

#[test]
fn a_token_bucket_satisfies_a_token_bucket_and_nobody_else() {
    assert_eq!(run(BUCKET, World::default()).refused_rate, 0);
    for policer in [
        Policer::SlidingLog,
        Policer::ClosedWindow,
        Policer::FixedWindow {
            phase: Duration::from_secs(3),
        },
        Policer::WeightedCounter {
            phase: Duration::from_secs(3),
        },
    ] {
        let seen = run(
            BUCKET,
            World {
                policer,
                ..World::default()
            },
        );
        assert!(seen.refused_rate > 0, "{policer:?}");
    }
    let unpoliced = run(
        BUCKET,
        World {
            policer: Policer::None,
            ..World::default()
        },
    );
    assert_eq!(
        unpoliced.max_in_window,
        u64::from(2 * N),
        "2N - 1, and one at the closed end"
    );
    assert!(unpoliced.min_d_over_w.is_some_and(|least| least < 1.0));
}

#[test]
fn an_exact_window_is_not_enough_once_transit_varies() {
    let world = World {
        policer: Policer::SlidingLog,
        ..World::default()
    };
    assert_eq!(run(Policer::SlidingLog, world).refused_rate, 0);
    let jittery = World {
        transit: |k| Duration::from_millis(k * 37 % 80),
        ..world
    };
    assert!(run(Policer::SlidingLog, jittery).refused_rate > 0);
}

#[test]
fn an_exact_window_is_not_enough_once_clocks_differ() {
    let slow = World {
        policer: Policer::SlidingLog,
        clock_ppm: -300,
        ..World::default()
    };
    assert!(run(Policer::SlidingLog, slow).refused_rate > 0);
}

#[test]
fn an_exact_window_is_not_enough_once_completion_counts() {
    let late = World {
        policer: Policer::SlidingLog,
        counts: Counts::Completion,
        service: Duration::from_millis(900),
        ..World::default()
    };
    assert!(run(Policer::SlidingLog, late).refused_rate > 0);
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
        late_decrement: Duration::from_millis(3),
        ..punctual
    };
    assert!(run(BUCKET, late).refused_concurrency > 0);
}
