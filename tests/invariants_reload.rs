//! A reload forgives nothing, nor does a start without memory (semantics, section 11, invariants 6
//! and 7).

mod plain;

use std::time::Duration;

use plain::world::World;
use plain::{
    Attempt, Event, MARGIN, PATIENT, START, W, hold, millis, most_within, quota, with_burst,
    with_period,
};
use podgate::limit::ledger::{Call, End};
use podgate::limit::local::LocalLane;
use podgate::limit::quota::{Mode, Quota, Rate, Timestamp};
use proptest::prelude::*;

const NANO: Duration = Duration::from_nanos(1);

fn window(quota: &Quota) -> Option<Duration> {
    quota.rate.map(Rate::period)
}

fn quotas() -> impl Strategy<Value = Quota> {
    let period = prop_oneof![Just(W / 2), Just(W), Just(W * 2)];
    (1u32..6, 0u32..5, period).prop_map(|(requests, concurrency, period)| {
        with_period(quota(requests, concurrency), period)
    })
}

fn events(reload: impl Strategy<Value = Event> + 'static) -> impl Strategy<Value = Vec<Event>> {
    let pick = 0usize..64;
    let span = prop_oneof![3 => (0u64..80).prop_map(millis), 2 => (0u64..900).prop_map(millis)];
    let call = prop_oneof![3 => Just(Call::Short), 1 => Just(Call::Held)];
    let event = prop_oneof![
        9 => (0u64..3, call).prop_map(|(flow, call)| Event::Ask { flow, call, patience: PATIENT }),
        5 => pick.clone().prop_map(Event::Sent),
        3 => pick.clone().prop_map(Event::Head),
        5 => pick.clone().prop_map(Event::End),
        1 => (pick.clone(), span.clone()).prop_map(|(pick, ago)| Event::Torn(pick, ago)),
        1 => pick.clone().prop_map(Event::Unsent),
        1 => pick.clone().prop_map(Event::Again),
        4 => span.clone().prop_map(Event::Pass),
        4 => Just(Event::Wake),
        2 => (pick, -1i8..=1).prop_map(|(pick, nanos)| Event::Tie(pick, nanos)),
        1 => span.prop_map(Event::SetBack),
        2 => reload,
    ];
    prop::collection::vec(event, 1..160)
}

fn reloads() -> impl Strategy<Value = Event> {
    quotas().prop_map(|quota| Event::Reload(quota, Mode::Enforce))
}

fn switches() -> impl Strategy<Value = Event> {
    let mode =
        prop_oneof![2 => Just(Mode::Enforce), 1 => Just(Mode::Shadow), 1 => Just(Mode::Disabled)];
    let unlimited = |quota| Quota {
        rate: None,
        ..quota
    };
    let quota = prop_oneof![5 => quotas(), 1 => quotas().prop_map(unlimited)];
    (quota, mode).prop_map(|(quota, mode)| Event::Reload(quota, mode))
}

/// Whether a slot with this bound was given up, by the W of its day, before `until`.
fn was_free_by(world: &World, bound: Timestamp, until: Timestamp) -> bool {
    let ends = world
        .reloads
        .iter()
        .skip(1)
        .map(|&(at, _)| at)
        .chain([until]);
    let mut periods = world.reloads.iter().zip(ends);
    periods.any(|((_, quota), end)| {
        window(quota).is_some_and(|window| bound + hold(window) < end.min(until))
    })
}

/// At every admission that was enforced: those before it that may still share a W with it, and it,
/// are at most N, with the N and W of that moment. Only what a shorter W had given up before is
/// not asked back: a longer W holds one new W later.
fn assert_every_admission_found_room(world: &World) {
    for (index, attempt) in world.attempts.iter().enumerate() {
        let limits = attempt.under.and_then(|quota| quota.rate);
        let Some(rate) = limits.filter(|_| !attempt.unsent) else {
            continue;
        };
        let shares = |before: &&Attempt| {
            let bound = before.latest_arrival();
            let near = |bound: Timestamp| {
                bound + hold(rate.period()) >= attempt.admitted
                    && !was_free_by(world, bound, attempt.admitted)
            };
            !before.unsent && bound.is_none_or(near)
        };
        let sharing = world.attempts[..index].iter().filter(shares).count() as u32;
        assert!(
            sharing < rate.requests(),
            "number {index} found {sharing} of {} before it",
            rate.requests()
        );
    }
}

proptest! {
    #![proptest_config(plain::config(1_000))]

    #[test]
    fn a_reload_never_lets_out_more_than_the_larger_n_and_the_new_one_holds_a_window_later(
        quota in quotas(),
        events in events(reloads()),
    ) {
        let mut world = World::new(quota, 100);
        for event in &events {
            world.happen(event);
        }
        world.finish();
        assert_every_admission_found_room(&world);
        let rates = world.reloads.iter().filter_map(|(_, quota)| quota.rate);
        let largest = rates.clone().map(Rate::requests).max().unwrap();
        let shortest = rates.map(Rate::period).min().unwrap();
        prop_assert!(most_within(&world.arrivals(), hold(shortest)) <= largest as usize);
    }

    /// Whatever the lane let pass unasked counts when it is asked again: also what was on its way
    /// while there was no limit at all.
    #[test]
    fn shadow_disabled_and_unlimited_lanes_keep_stamping(
        quota in quotas(),
        events in events(switches()),
    ) {
        let mut world = World::new(quota, 100);
        for event in &events {
            world.happen(event);
            if let Event::Reload(_, Mode::Shadow | Mode::Disabled) = event {
                prop_assert!(!world.is_waiting(), "waits though nothing binds");
            }
        }
        world.finish();
        assert_every_admission_found_room(&world);
    }

    /// Nobody knows what went out before: nothing does for a margin, a W and its slack, whatever
    /// is asked and reloaded meanwhile.
    #[test]
    fn a_lane_that_starts_as_spent_lets_nothing_out_for_one_window(
        requests in 1u32..6,
        reloads in prop::collection::vec((1u32..20, 0u64..250), 0..4),
    ) {
        let first = quota(requests, 0);
        let lane = LocalLane::spent(first, 100, Mode::Enforce, 1, START);
        let mut world = World::with_lane(first, lane);
        for _ in 0..30 {
            world.ask(1, Call::Short, PATIENT);
        }
        for (requests, gap) in reloads {
            world.pass_to(world.now + millis(gap));
            world.reload(quota(requests, 0), Mode::Enforce);
        }
        let spent = START + MARGIN + hold(W);
        world.pass_to(spent.max(world.now));
        prop_assert!(world.attempts.iter().all(|attempt| attempt.admitted > spent));
        world.pass_to(world.now.max(spent) + NANO);
        let n = world.reloads.last().unwrap().1.rate.unwrap().requests();
        prop_assert!(!world.attempts.is_empty() && world.attempts.len() <= n as usize);
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

/// Admissions within this from now.
fn admitted_within(world: &mut World, span: Duration) -> usize {
    let before = world.attempts.len();
    world.pass_to(world.now + span);
    world.attempts.len() - before
}

#[test]
fn a_larger_n_lets_out_only_the_difference_now() {
    let mut world = World::new(quota(2, 0), 100);
    asked(&mut world, 10);
    answered(&mut world);
    world.pass_to(world.now + W / 2);
    world.reload(quota(5, 0), Mode::Enforce);
    assert_eq!(world.attempts.len(), 5);
}

#[test]
fn a_smaller_n_waits_until_its_own_number_is_left() {
    let mut world = World::new(quota(5, 0), 100);
    asked(&mut world, 5);
    answered(&mut world);
    world.reload(quota(2, 0), Mode::Enforce);
    asked(&mut world, 5);
    assert_eq!(admitted_within(&mut world, hold(W)), 0);
    assert_eq!(admitted_within(&mut world, NANO), 2);
}

#[test]
fn a_longer_window_keeps_what_it_still_finds() {
    let mut world = World::new(quota(1, 0), 100);
    asked(&mut world, 2);
    answered(&mut world);
    world.pass_to(world.now + W / 2);
    world.reload(with_period(quota(1, 0), W * 3), Mode::Enforce);
    assert_eq!(admitted_within(&mut world, hold(W * 3) - W / 2), 0);
    assert_eq!(admitted_within(&mut world, NANO), 1);
}

#[test]
fn a_rebuilt_bucket_starts_at_the_old_ones_level() {
    for (burst, goes_now) in [(400, 30), (20, 20), (50, 30)] {
        let mut world = World::new(with_burst(quota(1_000, 0), 50), 1_000);
        asked(&mut world, 20);
        answered(&mut world);
        world.reload(with_burst(quota(900, 0), burst), Mode::Enforce);
        asked(&mut world, 200);
        assert_eq!(world.attempts.len(), 20 + goes_now, "burst {burst}");
    }
}

/// Also during a pause: who turns a lane off does not want it to hold anybody.
#[test]
fn who_waits_goes_at_once_when_the_lane_no_longer_enforces() {
    for mode in [Mode::Shadow, Mode::Disabled] {
        let mut world = World::new(quota(2, 1), 100);
        asked(&mut world, 4);
        world.refused(0, Some(W * 20));
        world.reload(quota(2, 1), mode);
        assert_eq!(world.attempts.len(), 4, "{mode:?}");
    }
}

#[test]
fn the_new_share_of_held_calls_holds_at_once() {
    let mut world = World::new(quota(50, 4), 100);
    for _ in 0..5 {
        world.ask(1, Call::Held, PATIENT);
    }
    assert_eq!(world.attempts.len(), 3, "90 percent of four");
    let all = Quota {
        hold_share: 100,
        ..quota(50, 4)
    };
    world.reload(all, Mode::Enforce);
    assert_eq!(world.attempts.len(), 4);
}

#[test]
fn what_passed_in_shadow_counts_once_the_lane_enforces() {
    let mut world = World::new(quota(2, 1), 100);
    world.reload(quota(2, 1), Mode::Shadow);
    asked(&mut world, 5);
    world.reload(quota(2, 1), Mode::Enforce);
    asked(&mut world, 2);
    assert_eq!(world.attempts.len(), 5);
    answered(&mut world);
    assert_eq!(admitted_within(&mut world, hold(W)), 0);
    assert_eq!(admitted_within(&mut world, NANO), 1);
}
