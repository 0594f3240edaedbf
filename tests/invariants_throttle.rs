//! What a 429 does (semantics, section 8): one reaction an episode, a pause that holds, one short
//! call to end it; judged by plain lists of who was refused when and who went.

mod plain;

use std::time::Duration;

use plain::world::World;
use plain::{Attempt, Event, Fate, PATIENT, START, W, millis, quota, with_burst};
use podgate::limit::ledger::{Call, End};
use podgate::limit::quota::{Quota, Timestamp};
use proptest::prelude::*;

const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST_OBEYED: Duration = Duration::from_secs(60);
/// A probe without an answer counts as settled after this; a lane where only held calls wait opens
/// as long after its pause.
const PROBE: Duration = Duration::from_secs(1);

fn events() -> impl Strategy<Value = Vec<Event>> {
    let pick = 0usize..64;
    let span = prop_oneof![3 => (0u64..80).prop_map(millis), 2 => (0u64..900).prop_map(millis)];
    let call = prop_oneof![3 => Just(Call::Short), 1 => Just(Call::Held)];
    let patience = prop_oneof![3 => Just(PATIENT), 1 => (0u64..3_000).prop_map(millis)];
    let retry_after =
        prop_oneof![2 => Just(None), 1 => (0u64..900).prop_map(|ms| Some(millis(ms)))];
    let event = prop_oneof![
        9 => (0u64..3, call, patience)
            .prop_map(|(flow, call, patience)| Event::Ask { flow, call, patience }),
        4 => pick.clone().prop_map(Event::Sent),
        4 => pick.clone().prop_map(Event::Head),
        5 => pick.clone().prop_map(Event::End),
        1 => pick.clone().prop_map(|pick| Event::Torn(pick, Duration::ZERO)),
        1 => pick.clone().prop_map(Event::Unsent),
        1 => pick.clone().prop_map(Event::Leave),
        1 => pick.clone().prop_map(Event::Again),
        5 => span.prop_map(Event::Pass),
        5 => Just(Event::Wake),
        2 => (pick, retry_after).prop_map(|(pick, after)| Event::Refused(pick, after)),
    ];
    prop::collection::vec(event, 1..200)
}

/// When a refusal came, and until when nothing goes at least.
struct Pause {
    from: Timestamp,
    until: Timestamp,
    /// Attempts made by then.
    seen: usize,
}

/// When a probe says that the lane may open: a final head, its own end, or a second.
fn settled(probe: &Attempt) -> Timestamp {
    let second = Some(probe.admitted + PROBE);
    [probe.head, probe.gone, second]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(START)
}

fn assert_pauses_hold(world: &World, pauses: &[Pause]) {
    for &Pause { from, until, seen } in pauses {
        let mut after = world.attempts[seen..].iter();
        let Some(probe) = after.next() else { continue };
        assert!(
            probe.admitted >= until,
            "{:?} into a pause",
            probe.admitted.since(from)
        );
        if probe.admitted >= until + PROBE {
            // Perhaps only held calls waited, and the lane has opened without one.
            continue;
        }
        assert_eq!(
            probe.call,
            Call::Short,
            "a probe the upstream keeps open tells nothing"
        );
        if let Some(next) = after.next() {
            // Refused anew meanwhile, it has a new pause, and a new probe.
            let anew = |other: &Pause| other.from >= probe.admitted && other.from <= next.admitted;
            assert!(
                next.admitted >= settled(probe) || pauses.iter().any(anew),
                "goes beside the probe"
            );
        }
    }
}

proptest! {
    #![proptest_config(plain::config(1_500))]

    #[test]
    fn nothing_goes_in_a_pause_and_one_short_call_ends_it(
        (requests, concurrency, burst) in (1u32..30, 0u32..6, 0u32..30),
        events in events(),
    ) {
        let mut world = World::new(with_burst(quota(requests, concurrency), burst), 10);
        let base = world.effective();
        let mut pauses = Vec::new();
        let mut reacted = START;
        for event in &events {
            let refused = match *event {
                Event::Refused(pick, after) => {
                    world.open(pick, |a| a.head.is_none()).map(|index| (index, after))
                }
                _ => None,
            };
            let before = world.effective();
            if let Some((_, after)) = refused {
                let pause = after.unwrap_or(SHORTEST).clamp(SHORTEST, LONGEST_OBEYED);
                let seen = world.attempts.len();
                pauses.push(Pause { from: world.now, until: world.now + pause, seen });
            }
            world.happen(event);
            let after = world.effective();
            if let Some((index, _)) = refused
                && (after.requests, after.burst, after.concurrency)
                    != (before.requests, before.burst, before.concurrency)
            {
                prop_assert!(
                    world.attempts[index].admitted > reacted || reacted == START,
                    "a second reaction in one episode"
                );
                reacted = world.now;
            }
            prop_assert!(after.requests <= base.requests && after.concurrency <= base.concurrency);
            prop_assert!(after.requests >= (base.requests / 10).max(1));
            prop_assert!(after.burst >= (base.requests / 50).max(1).min(base.burst));
            prop_assert!(after.concurrency >= (base.concurrency.min(10_000) / 10).max(1));
        }
        assert_pauses_hold(&world, &pauses);
        world.finish();
    }
}

fn asked(world: &mut World, count: usize, call: Call) {
    for _ in 0..count {
        world.ask(1, call, PATIENT);
    }
}

/// Passes time until somebody goes; how long that took.
fn next_goes_after(world: &mut World, most: Duration) -> Option<Duration> {
    let (from, seen) = (world.now, world.attempts.len());
    while world.attempts.len() == seen && world.now < from + most {
        world.pass_to(world.now + millis(1));
    }
    (world.attempts.get(seen)).map(|attempt| attempt.admitted.since(from))
}

fn within_a_tenth(took: Option<Duration>, pause: Duration) -> bool {
    took.is_some_and(|took| took >= pause && took <= pause + pause / 10)
}

#[test]
fn retry_after_is_obeyed_between_a_tenth_of_a_second_and_a_minute() {
    for (asked_for, pause) in [(0, 100), (700, 700), (7_000, 7_000), (90_000, 60_000)] {
        let mut world = World::new(quota(50, 0), 100);
        asked(&mut world, 51, Call::Short);
        world.refused(0, Some(millis(asked_for)));
        asked(&mut world, 1, Call::Short);
        for index in 1..50 {
            world.unsent(index);
        }
        let took = next_goes_after(&mut world, W * 100);
        assert!(
            within_a_tenth(took, millis(pause)),
            "{asked_for} ms: {took:?}"
        );
    }
}

/// A twentieth of W, then twice as long each time the probe is refused, up to half a minute.
#[test]
fn pauses_double_and_begin_anew_after_a_clean_window() {
    let mut world = World::new(quota(50, 0), 1_000);
    asked(&mut world, 1, Call::Short);
    world.refused(0, None);
    asked(&mut world, 500, Call::Short);
    let mut pause = SHORTEST;
    for probe in 1..=12 {
        let took = next_goes_after(&mut world, W * 40);
        assert!(within_a_tenth(took, pause), "pause {probe}: {took:?}");
        world.refused(probe, None);
        pause = (pause * 2).min(Duration::from_secs(30));
    }
    next_goes_after(&mut world, W * 40);
    world.wire = Some(Box::new(|_| (millis(10), millis(1))));
    world.head(13);
    world.pass_to(world.now + W * 2);
    world.wire = None;
    next_goes_after(&mut world, W * 40);
    let latest = world.attempts.len() - 1;
    world.refused(latest, None);
    let took = next_goes_after(&mut world, W * 40);
    assert!(within_a_tenth(took, SHORTEST), "{took:?}");
}

/// Of an episode long answered, after a clean window has taken the pause back to none.
#[test]
fn a_429_that_comes_late_pauses_too() {
    let mut world = World::new(quota(50, 0), 100);
    asked(&mut world, 2, Call::Short);
    world.refused(0, Some(SHORTEST));
    asked(&mut world, 20, Call::Short);
    next_goes_after(&mut world, W);
    world.head(2);
    world.pass_to(START + W * 3 / 2);
    let latest = world.attempts.len() - 1;
    world.refused(1, None);
    world.unsent(latest);
    let took = next_goes_after(&mut world, W);
    assert!(within_a_tenth(took, SHORTEST), "{took:?}");
}

#[test]
fn held_calls_are_no_probe_and_no_reason_to_stay_closed() {
    let mut world = World::new(quota(50, 0), 100);
    asked(&mut world, 1, Call::Short);
    world.refused(0, Some(SHORTEST));
    asked(&mut world, 2, Call::Held);
    let took = next_goes_after(&mut world, W * 3).unwrap();
    assert!(
        took >= SHORTEST + PROBE && took <= SHORTEST * 11 / 10 + PROBE,
        "{took:?}"
    );
    assert_eq!(world.attempts.len(), 3);

    let mut world = World::new(quota(50, 0), 100);
    asked(&mut world, 1, Call::Short);
    world.refused(0, Some(SHORTEST));
    asked(&mut world, 2, Call::Held);
    asked(&mut world, 2, Call::Short);
    let took = next_goes_after(&mut world, W * 3);
    assert!(
        within_a_tenth(took, SHORTEST),
        "the short one behind them: {took:?}"
    );
    assert_eq!(
        (world.attempts.len(), world.attempts[1].call),
        (2, Call::Short)
    );
}

#[test]
fn a_probe_is_settled_by_any_head_its_end_or_a_second() {
    let ends: [fn(&mut World); 3] = [
        |world| world.head(1),
        |world| world.end(1, End::Torn),
        |_| {},
    ];
    for (kind, end) in ends.into_iter().enumerate() {
        let mut world = World::new(quota(50, 0), 100);
        asked(&mut world, 1, Call::Short);
        world.refused(0, Some(SHORTEST));
        asked(&mut world, 5, Call::Short);
        next_goes_after(&mut world, W);
        world.pass_to(world.attempts[1].admitted + PROBE * 9 / 10);
        assert_eq!(world.attempts.len(), 2, "one probe and no more");
        end(&mut world);
        if kind == 2 {
            world.pass_to(world.attempts[1].admitted + PROBE);
        }
        assert_eq!(world.attempts.len(), 6);
    }
}

#[test]
fn a_probe_that_never_left_is_followed_by_another() {
    let mut world = World::new(quota(50, 0), 100);
    asked(&mut world, 1, Call::Short);
    world.refused(0, Some(SHORTEST));
    asked(&mut world, 5, Call::Short);
    next_goes_after(&mut world, W);
    world.unsent(1);
    assert_eq!(world.attempts.len(), 3);
}

/// The only short call waits for a permit until its deadline: from then on only held ones wait.
#[test]
fn who_is_shed_no_longer_stands_for_a_probe() {
    let mut world = World::new(quota(50, 2), 100);
    asked(&mut world, 2, Call::Short);
    world.refused(0, Some(SHORTEST));
    world.ask(1, Call::Held, PATIENT);
    world.ask(1, Call::Short, W / 2);
    world.pass_to(START + W * 7 / 10);
    world.end(0, End::Complete);
    world.end(1, End::Torn);
    world.pass_to(START + W * 2);
    assert_eq!(world.attempts[2].admitted, START + W / 2 + PROBE);
}

#[test]
fn who_cannot_outwait_the_pause_is_told_so() {
    let mut world = World::new(quota(50, 0), 100);
    asked(&mut world, 1, Call::Short);
    world.refused(0, Some(W * 2));
    world.ask(1, Call::Short, W * 19 / 10);
    world.ask(1, Call::Short, W * 23 / 10);
    let fates = [1, 2].map(|wait: usize| world.waits[wait].ended.map(|(_, fate)| fate));
    assert_eq!(fates, [Some(Fate::Shed), None]);
}

/// Refused one after the other, but all were on their way before the lane had reacted.
#[test]
fn one_episode_is_one_reaction() {
    let mut world = World::new(quota(1_000, 0), 1_000);
    asked(&mut world, 100, Call::Short);
    for index in 0..100 {
        world.refused(index, None);
        world.pass_to(world.now + millis(1));
    }
    assert_eq!(world.effective().burst, 62, "a quarter of 250");
}

/// The burst first, a quarter at a time to a fiftieth of N; then 97% of what was accepted.
#[test]
fn the_ladder_takes_the_burst_before_the_limit() {
    let mut world = World::new(quota(1_000, 0), 2_000);
    let mut seen = Vec::new();
    for step in 0..3 {
        let first = world.attempts.len();
        asked(&mut world, 10, Call::Short);
        for index in first..first + 9 {
            world.head(index);
        }
        world.refused(first + 9, Some(SHORTEST));
        seen.push((world.effective().burst, world.effective().requests));
        // The pause passes with nobody waiting; a probe opens the lane.
        world.pass_to(world.now + SHORTEST * 2);
        asked(&mut world, 1, Call::Short);
        world.head(world.attempts.len() - 1);
        world.pass_to(world.now + millis(50 + step));
    }
    // Of thirty-two asked three were refused: 97% of the rest is less than the floor.
    assert_eq!(seen, [(62, 1_000), (20, 1_000), (20, 100)]);
}

#[test]
fn the_limit_falls_to_ninety_seven_percent_of_what_was_accepted() {
    let mut world = World::new(quota(50, 0), 100);
    asked(&mut world, 41, Call::Short);
    for index in 0..30 {
        world.head(index);
    }
    world.refused(40, None);
    assert_eq!(world.effective().requests, 29, "97% of 30");
    // Ten more were on their way when it reacted; they count as they come.
    for index in 30..40 {
        world.head(index);
    }
    assert_eq!(world.effective().requests, 38, "97% of 40");
}

/// All permits out and the window half empty: it is too many at once, and no other limit's fault.
#[test]
fn where_permits_bind_only_they_shrink() {
    let mut world = World::new(quota(50, 20), 100);
    asked(&mut world, 20, Call::Short);
    world.refused(19, None);
    let effective = world.effective();
    assert_eq!(
        (effective.concurrency, effective.requests),
        (18, 50),
        "97% of 19"
    );
}

/// Limits come back by windows in which somebody waited and nobody was refused: 2% of N, then 4.
#[test]
fn clean_windows_give_back_more_each_time() {
    let quota = Quota {
        burst: plain::with_burst(quota(100, 0), 100).burst,
        ..quota(100, 0)
    };
    let mut world = World::new(quota, 10_000);
    asked(&mut world, 1, Call::Short);
    // A bucket of a hundred stands before the limit: three refusals take it to its floor.
    for _ in 0..5 {
        let latest = world.attempts.len() - 1;
        world.refused(latest, Some(SHORTEST));
        world.pass_to(world.now + SHORTEST * 2);
        asked(&mut world, 2, Call::Short);
        world.head(world.attempts.len() - 1);
    }
    let learnt = world.effective().requests;
    assert!(learnt < 100, "{learnt}");
    asked(&mut world, 2_000, Call::Short);
    world.wire = Some(Box::new(|_| (millis(1), millis(1))));
    let mut steps = Vec::new();
    let mut last = learnt;
    while world.effective().requests < 60 {
        world.pass_to(world.now + millis(10));
        let now = world.effective().requests;
        if now != last {
            steps.push(now - last);
            last = now;
        }
    }
    assert_eq!(steps[..4], [2, 4, 8, 16]);
}
