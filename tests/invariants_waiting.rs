//! Never idle, and nobody waits in vain by our doing (semantics, section 11, invariants 2 and 4).

mod plain;

use std::time::Duration;

use plain::{Event, Fate, MARGIN, PATIENT, START, W, World, hold, millis, quota, with_burst};
use podgate::limit::ledger::{Call, End, Ledger, Slot};
use podgate::limit::quota::{Quota, Timestamp};
use proptest::prelude::*;

fn calls() -> impl Strategy<Value = Call> {
    prop_oneof![2 => Just(Call::Short), 1 => Just(Call::Held)]
}

fn spans() -> impl Strategy<Value = Duration> {
    prop_oneof![3 => (0u64..60).prop_map(millis), 2 => (0u64..700).prop_map(millis)]
}

/// What a shell reports, as it happens: a report that comes late costs budget, and is no fault of
/// the lane's.
fn reported_at_once() -> impl Strategy<Value = Event> {
    let pick = 0usize..64;
    let patience = prop_oneof![3 => Just(PATIENT), 2 => (0u64..3_000).prop_map(millis)];
    prop_oneof![
        9 => (0u64..3, calls(), patience)
            .prop_map(|(flow, call, patience)| Event::Ask { flow, call, patience }),
        6 => pick.clone().prop_map(Event::Sent),
        3 => pick.clone().prop_map(Event::Head),
        5 => pick.clone().prop_map(Event::End),
        2 => pick.clone().prop_map(|pick| Event::Torn(pick, Duration::ZERO)),
        1 => pick.clone().prop_map(Event::Unsent),
        2 => pick.clone().prop_map(Event::Again),
        1 => pick.clone().prop_map(Event::Leave),
        5 => spans().prop_map(Event::Pass),
        4 => Just(Event::Wake),
        2 => (pick, -1i8..=1).prop_map(|(pick, nanos)| Event::Tie(pick, nanos)),
    ]
}

/// Nothing that depends on when the lane asks to be polled.
fn with_refusals() -> impl Strategy<Value = Event> {
    let elsewhen = reported_at_once().prop_map(|event| match event {
        Event::Wake => Event::Pass(W / 3),
        event => event,
    });
    prop_oneof![12 => elsewhen, 1 => (0usize..64).prop_map(Event::Refused)]
}

fn histories<E: Strategy<Value = Event>>(event: E) -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(event, 1..140)
}

proptest! {
    #![proptest_config(plain::config(20_000))]

    /// By the lists: no free slot, permit and share of the held while somebody waits for them,
    /// and no sleep past the instant at which one comes free. Deadlines are kept to the nanosecond.
    #[test]
    fn nobody_waits_who_may_go(
        (requests, concurrency) in (1u32..6, 0u32..5),
        hold_share in prop_oneof![Just(50u8), Just(90), Just(100)],
        events in histories(reported_at_once()),
    ) {
        let quota = Quota { hold_share, ..quota(requests, concurrency) };
        let mut world = World::new(quota, 6);
        for event in &events {
            world.happen(event);
            world.assert_nobody_is_kept();
        }
        world.finish();
    }

    /// By brute force, with bucket, pause, probe and ladder: a lane that is polled all the time
    /// does the same at the same instants as one that is polled when it asked to be.
    #[test]
    fn a_lane_asks_to_be_polled_at_every_instant_that_matters(
        (requests, concurrency, burst) in (1u32..12, 0u32..5, 0u32..12),
        events in histories(with_refusals()),
    ) {
        let quota = with_burst(quota(requests, concurrency), burst);
        let [asked, all_the_time] = [None, Some(millis(7))].map(|grid| {
            let mut world = World::new(quota, 6);
            world.grid = grid;
            for event in &events {
                world.happen(event);
            }
            world.waits.iter().map(|wait| wait.ended).collect::<Vec<_>>()
        });
        prop_assert_eq!(asked, all_the_time);
    }
}
