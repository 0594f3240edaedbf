//! A restart forgives nothing where the next process is told what the last one knew (semantics,
//! sections 3 and 11).

mod plain;

use std::time::Duration;

use plain::world::World;
use plain::{Event, MARGIN, PATIENT, W, hold, millis, most_within, quota, with_burst};
use podgate::limit::ledger::{Call, End};
use podgate::limit::local::{LocalLane, Recalled};
use podgate::limit::memory::{Learnt, Memory, Past};
use podgate::limit::quota::{Mode, Quota, Rate, Timestamp};
use proptest::prelude::*;

const NANO: Duration = Duration::from_nanos(1);

fn events() -> impl Strategy<Value = Vec<Event>> {
    let pick = 0usize..64;
    let ask = (0u64..3).prop_map(|flow| Event::Ask {
        flow,
        call: Call::Short,
        patience: PATIENT,
    });
    let event = prop_oneof![
        9 => ask,
        4 => pick.clone().prop_map(Event::Sent),
        3 => pick.clone().prop_map(Event::Head),
        3 => pick.clone().prop_map(Event::End),
        1 => (pick.clone(), (0u64..80).prop_map(millis)).prop_map(|(pick, ago)| Event::Torn(pick, ago)),
        1 => pick.prop_map(Event::Unsent),
        3 => (0u64..400).prop_map(millis).prop_map(Event::Pass),
        4 => Just(Event::Wake),
    ];
    prop::collection::vec(event, 1..60)
}

proptest! {
    #![proptest_config(plain::config(1_000))]

    /// Whatever happened before, however long nobody ran, whatever N is now: no window of W holds
    /// more than the larger N. A clock that says less time has passed than has errs on that side.
    #[test]
    fn no_window_across_a_restart_holds_more_than_n(
        lives in prop::collection::vec((1u32..6, events(), 0u64..1_500, 0u64..300), 2..4),
    ) {
        let mut world = World::new(quota(lives[0].0, 0), 100);
        for (index, (requests, events, down, set_back)) in lives.iter().enumerate() {
            if index > 0 {
                let down = millis(*down);
                let told = down.saturating_sub(millis(*set_back));
                world.restart(quota(*requests, 0), down, told);
            }
            for event in events {
                world.happen(event);
            }
        }
        world.finish();
        let largest = lives.iter().map(|life| life.0).max().unwrap();
        prop_assert!(most_within(&world.arrivals(), hold(W)) <= largest as usize);
    }

    /// A lane that is told how it stood and that no time has passed stands as it stood.
    #[test]
    fn what_is_remembered_is_what_was_known(requests in 1u32..6, events in events()) {
        let mut world = World::new(quota(requests, 0), 100);
        for event in &events {
            world.happen(event);
        }
        world.restart(quota(requests, 0), Duration::ZERO, Duration::ZERO);
        let now = world.now;
        let first = world.lane().remember(now);
        world.restart(quota(requests, 0), Duration::ZERO, Duration::ZERO);
        prop_assert_eq!(first, world.lane().remember(now));
    }
}

fn asked(world: &mut World, count: usize) {
    for _ in 0..count {
        world.ask(1, Call::Short, PATIENT);
    }
}

fn answered(world: &mut World) {
    for index in 0..world.attempts.len() {
        if world.attempts[index].is_open() {
            world.head(index);
            world.end(index, End::Complete);
        }
    }
}

#[test]
fn what_was_spent_is_spent_until_its_window_is_over_and_no_longer() {
    let mut world = World::new(quota(3, 0), 100);
    asked(&mut world, 2);
    answered(&mut world);
    world.restart(quota(3, 0), W / 2, W / 2);
    asked(&mut world, 3);
    assert_eq!(world.attempts.len(), 3, "one was left");
    world.pass_to(world.now + (hold(W) - W / 2));
    assert_eq!(world.attempts.len(), 3);
    world.pass_to(world.now + NANO);
    assert_eq!(world.attempts.len(), 5);
}

#[test]
fn after_a_long_time_nothing_is_left_of_it() {
    let mut world = World::new(quota(3, 0), 100);
    asked(&mut world, 3);
    world.restart(quota(3, 0), W * 2, W * 2);
    asked(&mut world, 3);
    assert_eq!(world.attempts.len(), 6);
}

#[test]
fn what_was_on_its_way_at_the_end_counts_until_a_margin_later() {
    let mut world = World::new(quota(1, 0), 100);
    asked(&mut world, 1);
    world.restart(quota(1, 0), millis(10), millis(10));
    asked(&mut world, 1);
    world.pass_to(world.now + (MARGIN - millis(10)) + hold(W));
    assert_eq!(world.attempts.len(), 1);
    world.pass_to(world.now + NANO);
    assert_eq!(world.attempts.len(), 2);
}

#[test]
fn tokens_are_where_they_were_and_those_that_came_meanwhile() {
    let burst = with_burst(quota(1_000, 0), 50);
    let mut world = World::new(burst, 1_000);
    asked(&mut world, 40);
    answered(&mut world);
    world.restart(burst, millis(20), millis(20));
    asked(&mut world, 200);
    assert_eq!(world.attempts.len(), 40 + 10 + 20);
}

fn recalled(quota: Quota, memory: &Memory, elapsed: Duration) -> LocalLane {
    let recalled = Recalled { memory, elapsed };
    LocalLane::recall(quota, 100, Mode::Enforce, 1, recalled, plain::START)
}

#[test]
fn what_was_learnt_stays_within_what_is_allowed_now() {
    let learnt = Learnt {
        requests: Some(700),
        burst: Some(800),
        concurrency: Some(90),
        relearn_after: 120,
    };
    let memory = Memory {
        learnt,
        ..Memory::default()
    };
    let mut lane = recalled(quota(1_000, 200), &memory, Duration::ZERO);
    assert_eq!(lane.remember(plain::START).learnt, learnt);
    let effective = recalled(quota(500, 50), &memory, Duration::ZERO)
        .snapshot(plain::START)
        .effective;
    let now = (effective.requests, effective.burst, effective.concurrency);
    assert_eq!(now, (500, 500, 50));
}

#[test]
fn a_pause_goes_on_for_what_was_left_of_it() {
    let memory = Memory {
        paused: millis(500),
        ..Memory::default()
    };
    let mut lane = recalled(quota(5, 5), &memory, millis(200));
    assert_eq!(lane.snapshot(plain::START).paused, millis(300));
    let mut lane = recalled(quota(5, 5), &memory, millis(600));
    assert_eq!(lane.snapshot(plain::START).paused, Duration::ZERO);
}

/// Nobody knows what the last process sent before it died: a window of nothing from its end.
#[test]
fn an_unknown_past_fills_the_window_until_it_is_over() {
    let memory = Memory {
        past: Past::Unknown {
            ahead: MARGIN + millis(200),
        },
        ..Memory::default()
    };
    let free_at = |elapsed: Duration| {
        let mut lane = recalled(quota(3, 0), &memory, elapsed);
        plain::START + lane.snapshot(plain::START).next_free
    };
    let over = plain::START + MARGIN + millis(200) + hold(W);
    assert_eq!(free_at(Duration::ZERO), Timestamp::next(over));
    assert_eq!(
        free_at(millis(500)),
        Timestamp::next(over.before(millis(500)))
    );
    assert_eq!(free_at(W * 3), plain::START);
}

#[test]
fn a_lane_that_had_no_rate_knows_nothing_for_one_that_has() {
    let unlimited = Quota {
        rate: None,
        ..quota(1, 0)
    };
    let mut world = World::new(unlimited, 100);
    asked(&mut world, 50);
    answered(&mut world);
    let limited = Quota {
        rate: Rate::new(3, W),
        ..unlimited
    };
    world.restart(limited, millis(10), millis(10));
    asked(&mut world, 1);
    assert_eq!(world.attempts.len(), 50);
    world.pass_to(world.now + MARGIN + hold(W));
    assert_eq!(world.attempts.len(), 51);
}
