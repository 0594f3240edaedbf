//! Shared fairly (semantics, section 11, invariant 5): whoever always waits gets as much as anybody
//! else who always does, however loud, and whatever comes and goes beside them.

mod plain;

use std::time::Duration;

use plain::world::World;
use plain::{Ask, Event, Fate, PATIENT, W, millis, quota};
use podgate::limit::fair_queue::{Eligible, FairQueue, Waiter, WaiterId};
use podgate::limit::flow::FlowId;
use podgate::limit::ledger::{Call, End};
use podgate::limit::quota::{Quota, Timestamp};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Serve(Eligible),
    /// Somebody else comes.
    Join(u64, Call),
    /// Somebody of this flow leaves, the busy ones to be followed by another.
    Leave(u64),
    /// Somebody of a busy flow comes back.
    Again(u64, Call),
}

const BUSY: [u64; 2] = [1, 2];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let call = prop_oneof![Just(Call::Short), Just(Call::Held)];
    let step = prop_oneof![
        4 => Just(Step::Serve(Eligible::All)),
        4 => Just(Step::Serve(Eligible::ShortOnly)),
        3 => (3u64..7, call.clone()).prop_map(|(flow, call)| Step::Join(flow, call)),
        2 => (1u64..7).prop_map(Step::Leave),
        1 => (1u64..3, call).prop_map(|(flow, call)| Step::Again(flow, call)),
    ];
    prop::collection::vec(step, 1..300)
}

/// The most that the two got apart in any stretch of the whole.
fn widest_gap(served: impl IntoIterator<Item = u64>) -> i64 {
    let mut lead = 0i64;
    let leads = served.into_iter().map(|flow| {
        lead += i64::from(flow == BUSY[0]) - i64::from(flow == BUSY[1]);
        lead
    });
    let (least, most) = leads.fold((0, 0), |(least, most), lead| {
        (lead.min(least), lead.max(most))
    });
    most - least
}

struct Queue {
    queue: FairQueue,
    waiting: Vec<(WaiterId, u64, Call)>,
}

impl Queue {
    fn join(&mut self, flow: u64, call: Call, again: bool) {
        let waiter = Waiter {
            flow: FlowId(flow),
            call,
            deadline: Timestamp::EPOCH,
        };
        let id = match again {
            true => self.queue.rejoin(waiter, 0),
            false => self.queue.join(waiter),
        };
        self.waiting.push((id, flow, call));
    }

    /// The busy ones always have a short and a held call waiting.
    fn keep_busy(&mut self) {
        for flow in BUSY {
            for call in [Call::Short, Call::Held] {
                if !self
                    .waiting
                    .iter()
                    .any(|&(_, of, what)| (of, what) == (flow, call))
                {
                    self.join(flow, call, false);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(plain::config(1_000))]

    #[test]
    fn two_flows_that_always_wait_differ_by_at_most_one(steps in steps()) {
        let mut queue = Queue { queue: FairQueue::new(usize::MAX), waiting: Vec::new() };
        let mut served = Vec::new();
        for step in steps {
            queue.keep_busy();
            match step {
                Step::Join(flow, call) => queue.join(flow, call, false),
                Step::Again(flow, call) => queue.join(flow, call, true),
                Step::Leave(flow) => {
                    let place = queue.waiting.iter().position(|&(_, of, _)| of == flow);
                    if let Some(place) = place {
                        let (id, ..) = queue.waiting.remove(place);
                        prop_assert!(queue.queue.remove(id).is_some());
                    }
                }
                Step::Serve(eligible) => {
                    let first = queue.queue.first(eligible).expect("the busy ones wait");
                    prop_assert!(queue.queue.serve(first).is_some());
                    let place = queue.waiting.iter().position(|&(id, ..)| id == first);
                    let (_, flow, call) = queue.waiting.remove(place.expect("it waited"));
                    prop_assert!(eligible == Eligible::All || call == Call::Short);
                    served.push(flow);
                }
            }
        }
        prop_assert!(widest_gap(served) <= 1);
    }

    /// The same of a whole lane, with window, permits, held calls and their share.
    #[test]
    fn two_flows_that_always_wait_at_a_lane_differ_by_at_most_one(
        (requests, concurrency) in (2u32..8, 0u32..6),
        hold_share in prop_oneof![Just(50u8), Just(90)],
        calls in prop::collection::vec(any::<bool>(), 120),
        others in prop::collection::vec((0u64..400, 3u64..6, any::<bool>(), 1u64..2_000), 0..40),
        service in 0u64..400,
    ) {
        let quota = Quota { hold_share, ..quota(requests, concurrency) };
        let mut world = World::new(quota, 1_000);
        let call = |held: bool| if held { Call::Held } else { Call::Short };
        world.wire = Some(Box::new(move |wait| match wait.call {
            Call::Short => (millis(20), millis(5)),
            Call::Held => (millis(20), millis(service)),
        }));
        // Somebody is out before, so that neither goes unasked.
        for _ in 0..requests {
            world.ask(9, Call::Short, PATIENT);
        }
        for held in calls {
            for flow in BUSY {
                world.ask(flow, call(held), PATIENT);
            }
        }
        let others: Vec<_> = (others.iter())
            .map(|&(gap, flow, held, patience)| Ask {
                gap: millis(gap),
                flow,
                call: call(held),
                patience: millis(patience),
            })
            .collect();
        world.play(&others);
        world.pass_to(world.now + W * 5);
        // As long as both have a short call left, both may always go.
        let mut left = BUSY.map(|flow| {
            let short = |wait: &&plain::Wait| wait.flow == flow && wait.call == Call::Short;
            world.waits.iter().filter(short).count()
        });
        let mut served = Vec::new();
        for attempt in &world.attempts {
            let wait = &world.waits[attempt.request];
            if let Some(busy) = BUSY.iter().position(|&flow| flow == wait.flow) {
                left[busy] -= usize::from(wait.call == Call::Short);
                served.push(wait.flow);
            }
            if left.contains(&0) {
                break;
            }
        }
        prop_assert!(widest_gap(served) <= 1);
    }
}

fn admitted(world: &World, wait: usize) -> bool {
    matches!(world.waits[wait].ended, Some((_, Fate::Admitted)))
}

#[test]
fn one_request_waits_one_turn_behind_ten_thousand() {
    let mut world = World::new(quota(1, 0), 20_000);
    for _ in 0..10_000 {
        world.ask(1, Call::Short, PATIENT);
    }
    world.ask(2, Call::Short, W * 4);
    let small = world.waits.len() - 1;
    for turn in 0..2 {
        assert!(!admitted(&world, small), "turn {turn}");
        world.head(turn);
        world.end(turn, End::Complete);
        world.pass_to(world.now + W * 11 / 10);
    }
    assert!(admitted(&world, small));
}

/// Nine of ten permits for calls that are held open: the tenth always finds a short one to go.
#[test]
fn held_calls_leave_permits_for_short_ones_and_keep_their_turn() {
    let mut world = World::new(quota(50, 4), 100);
    for _ in 0..6 {
        world.ask(1, Call::Held, PATIENT);
    }
    let out = |world: &World, call| world.out(|attempt| attempt.call == call);
    assert_eq!(out(&world, Call::Held), 3, "90 percent of four");
    for _ in 0..2 {
        world.ask(2, Call::Short, PATIENT);
    }
    assert_eq!(
        out(&world, Call::Short),
        1,
        "passes those who wait for their share"
    );
    // A held one ends: the held flow was passed over, so it is first now.
    world.happen(&Event::End(0));
    world.pass_to(world.now + Quota::SETTLE);
    assert_eq!((out(&world, Call::Held), out(&world, Call::Short)), (3, 1));
}

/// The loudest makes room, not whoever comes with its only request.
#[test]
fn a_full_queue_sheds_the_newest_of_the_heaviest_flow() {
    let mut world = World::new(quota(1, 0), 4);
    for (flow, wait) in [(9, 0), (1, 1), (1, 2), (1, 3), (2, 4)] {
        world.ask(flow, Call::Short, PATIENT);
        assert_eq!(world.waits.len(), wait + 1);
    }
    let fate = |world: &World, wait: usize| world.waits[wait].ended.map(|(_, fate)| fate);
    world.ask(3, Call::Short, PATIENT);
    assert_eq!(fate(&world, 3), Some(Fate::Evicted), "the third of flow 1");
    world.ask(1, Call::Short, PATIENT);
    assert_eq!(
        fate(&world, 6),
        Some(Fate::Shed),
        "its own flow is the heaviest"
    );
    world.ask(4, Call::Short, PATIENT);
    assert_eq!(fate(&world, 2), Some(Fate::Evicted));
    world.ask(5, Call::Short, PATIENT);
    assert_eq!(fate(&world, 8), None, "on a tie a lone newcomer gets in");
    world.ask(5, Call::Short, Duration::from_secs(900));
    assert_eq!(fate(&world, 9), Some(Fate::Shed), "its second does not");
}
