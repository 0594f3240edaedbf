//! Never over, and nothing lost (semantics, section 11, invariants 1 and 3): whatever happens to a
//! lane, in whatever order, judged by plain lists of what really happened.

mod plain;

use std::time::Duration;

use plain::world::World;
use plain::{Event, MARGIN, PATIENT, W, hold, millis, most_within, quota};
use podgate::limit::ledger::{Call, End};
use podgate::limit::quota::{Counts, Quota};
use proptest::prelude::*;

/// Two clocks 300 ppm off either way: what the upstream calls W may be this long to us.
fn their_window() -> Duration {
    W + W * 6 / 10_000
}

/// Times around those that decide: a margin, a W and their ties, to the nanosecond.
fn spans() -> impl Strategy<Value = Duration> {
    let tie = |span: Duration, by: i8| {
        Duration::from_nanos((span.as_nanos() as u64).saturating_add_signed(i64::from(by)))
    };
    prop_oneof![
        4 => (0u64..60).prop_map(millis),
        3 => (0u64..500).prop_map(millis),
        1 => (Just(MARGIN), -1i8..=1).prop_map(move |(span, by)| tie(span, by)),
        1 => (Just(W), -1i8..=1).prop_map(move |(span, by)| tie(span, by)),
        1 => (Just(hold(W)), -1i8..=1).prop_map(move |(span, by)| tie(span, by)),
    ]
}

fn calls() -> impl Strategy<Value = Call> {
    prop_oneof![3 => Just(Call::Short), 1 => Just(Call::Held)]
}

fn patience() -> impl Strategy<Value = Duration> {
    prop_oneof![3 => Just(PATIENT), 2 => (0u64..3_000).prop_map(millis)]
}

/// Everything the shell can report, bodies and aborts as late as you like.
fn events() -> impl Strategy<Value = Event> {
    let pick = 0usize..64;
    prop_oneof![
        9 => (0u64..3, calls(), patience())
            .prop_map(|(flow, call, patience)| Event::Ask { flow, call, patience }),
        6 => pick.clone().prop_map(Event::Sent),
        3 => pick.clone().prop_map(Event::Head),
        5 => pick.clone().prop_map(Event::End),
        2 => (pick.clone(), spans()).prop_map(|(pick, ago)| Event::Torn(pick, ago)),
        1 => pick.clone().prop_map(Event::Unsent),
        2 => pick.clone().prop_map(Event::Again),
        1 => pick.clone().prop_map(Event::Leave),
        4 => spans().prop_map(Event::Pass),
        5 => Just(Event::Wake),
        3 => (pick, -1i8..=1).prop_map(|(pick, nanos)| Event::Tie(pick, nanos)),
    ]
}

fn with_refusals() -> impl Strategy<Value = Event> {
    prop_oneof![15 => events(), 1 => (0usize..64).prop_map(|pick| Event::Refused(pick, None))]
}

fn with_clock_steps() -> impl Strategy<Value = Event> {
    prop_oneof![12 => with_refusals(), 1 => spans().prop_map(Event::SetBack)]
}

fn histories<E: Strategy<Value = Event>>(event: E) -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(event, 1..160)
}

fn limits() -> impl Strategy<Value = Quota> {
    (1u32..6, 0u32..5, 0u32..6).prop_map(|(requests, concurrency, burst)| {
        plain::with_burst(quota(requests, concurrency), burst)
    })
}

/// Lets it all happen; permits and ends of waits are checked at every step of it.
fn play(quota: Quota, events: &[Event]) -> World {
    let mut world = World::new(quota, 6);
    for event in events {
        world.happen(event);
    }
    world
}

fn assert_never_over(world: &World, limit: u32) {
    let arrivals = world.arrivals();
    let limit = limit as usize;
    assert!(
        most_within(&arrivals, their_window()) <= limit,
        "over N in W"
    );
    // The rule itself, one nanosecond sharper than what it is for: strictly after W and slack.
    assert!(
        most_within(&arrivals, hold(W)) <= limit,
        "over N in W + slack"
    );
}

proptest! {
    #![proptest_config(plain::config(1_500))]

    /// Any transit within the margin, any order, refusals, retries, aborts, late bodies, a clock
    /// that runs backwards; and every permit back, every wait ended, once.
    #[test]
    fn at_most_n_arrive_in_any_window_and_at_most_c_are_in_flight(
        quota in limits(),
        events in histories(with_clock_steps()),
    ) {
        let mut world = play(quota, &events);
        assert_never_over(&world, quota.rate.unwrap().requests());
        world.finish();
        assert_never_over(&world, quota.rate.unwrap().requests());
    }

    /// An upstream that counts a request when it is done with it.
    #[test]
    fn at_most_n_complete_in_any_window_where_completions_count(
        quota in limits(),
        events in histories(with_clock_steps()),
    ) {
        let quota = Quota { counts: Counts::Completion, ..quota };
        let mut world = play(quota, &events);
        let limit = quota.rate.unwrap().requests() as usize;
        prop_assert!(most_within(&world.completions(), hold(W)) <= limit);
        world.finish();
        prop_assert!(most_within(&world.completions(), hold(W)) <= limit);
    }

    /// One adversary spelled out: arrivals where the wire puts them, on the upstream's own clock.
    #[test]
    fn no_transit_and_no_clock_shows_the_upstream_more_than_n(
        quota in limits(),
        events in histories(with_refusals()),
        transits in prop::collection::vec(0u64..=1_000, 160),
        ppm in -300i64..=300,
    ) {
        let world = play(quota, &events);
        let theirs = |nanos: u64| i128::from(nanos) * i128::from(1_000_000 + ppm) / 1_000_000;
        let mut arrivals: Vec<i128> = (world.arrivals().iter().zip(transits))
            .map(|(&(first, last), transit)| {
                let last = last.min(first + W * 1_000);
                theirs(first.as_nanos() + last.since(first).as_nanos() as u64 / 1_000 * transit)
            })
            .collect();
        arrivals.sort_unstable();
        let n = quota.rate.unwrap().requests() as usize;
        for (first, last) in arrivals.iter().zip(arrivals.iter().skip(n)) {
            prop_assert!(last - first > W.as_nanos() as i128, "N + 1 within W");
        }
    }
}

fn lane(requests: u32) -> World {
    World::new(quota(requests, 0), 100)
}

fn short(world: &mut World) {
    world.ask(1, Call::Short, PATIENT);
}

/// When the waiting request was admitted, by passing time until it was.
fn admitted_after(world: &mut World, patience: Duration) -> Option<Duration> {
    assert!(world.is_waiting(), "it went at once");
    let (from, seen) = (world.now, world.attempts.len());
    world.pass_to(from + patience);
    (world.attempts.get(seen)).map(|attempt| attempt.admitted.since(from))
}

const NANO: Duration = Duration::from_nanos(1);

#[test]
fn an_answer_bounds_the_arrival_and_a_tie_at_either_end_still_shares_the_window() {
    let mut world = lane(1);
    short(&mut world);
    world.sent(0, world.now);
    world.pass_to(world.now + millis(30));
    world.head(0);
    short(&mut world);
    assert_eq!(admitted_after(&mut world, W * 3), Some(hold(W) + NANO));
}

#[test]
fn without_an_answer_the_margin_after_the_last_byte_bounds_it() {
    let mut world = lane(1);
    short(&mut world);
    world.pass_to(world.now + W * 5);
    world.sent(0, world.now);
    short(&mut world);
    assert_eq!(
        admitted_after(&mut world, W * 3),
        Some(MARGIN + hold(W) + NANO)
    );
}

/// Also a 1xx head comes to nothing: nobody reports it, and the body may still be on its way.
#[test]
fn a_body_that_is_still_written_keeps_its_slot_for_ever() {
    let mut world = lane(1);
    short(&mut world);
    short(&mut world);
    assert_eq!(admitted_after(&mut world, W * 50), None);
}

#[test]
fn an_abort_gives_no_slot_back() {
    let mut world = lane(1);
    short(&mut world);
    world.end(0, End::Torn);
    short(&mut world);
    assert_eq!(
        admitted_after(&mut world, W * 3),
        Some(MARGIN + hold(W) + NANO)
    );
}

#[test]
fn what_was_never_written_gives_all_back_at_once() {
    let mut world = World::new(quota(1, 1), 100);
    short(&mut world);
    short(&mut world);
    world.unsent(0);
    assert_eq!(world.attempts.len(), 2);
}

#[test]
fn every_attempt_is_an_arrival_of_its_own() {
    let mut world = lane(2);
    for attempt in 0..2 {
        match attempt {
            0 => short(&mut world),
            _ => world.again(0),
        }
        world.sent(attempt, world.now);
        world.end(attempt, End::Torn);
    }
    short(&mut world);
    assert_eq!(admitted_after(&mut world, W), None);
}

#[test]
fn a_refused_attempt_keeps_its_slot() {
    let mut world = lane(1);
    short(&mut world);
    world.refused(0, None);
    world.end(0, End::Complete);
    short(&mut world);
    assert_eq!(admitted_after(&mut world, W * 3), Some(hold(W) + NANO));
}

#[test]
fn where_completions_count_the_head_bounds_nothing() {
    let quota = Quota {
        counts: Counts::Completion,
        ..quota(1, 0)
    };
    let mut world = World::new(quota, 100);
    short(&mut world);
    world.sent(0, world.now);
    world.head(0);
    world.pass_to(world.now + W * 5);
    short(&mut world);
    world.end(0, End::Complete);
    assert_eq!(admitted_after(&mut world, W * 3), Some(hold(W) + NANO));
}

#[test]
fn a_permit_outlives_its_exchange_by_settle_and_a_torn_one_by_the_margin() {
    for (end, after) in [(End::Complete, Quota::SETTLE), (End::Torn, MARGIN)] {
        let mut world = World::new(quota(50, 1), 100);
        short(&mut world);
        short(&mut world);
        world.head(0);
        world.end(0, end);
        assert_eq!(admitted_after(&mut world, W), Some(after));
    }
}
