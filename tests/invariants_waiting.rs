//! Never idle, and nobody waits in vain by our doing (semantics, section 11, invariants 2 and 4).

mod plain;

use std::time::Duration;

use plain::world::World;
use plain::{Ask, Event, Fate, MARGIN, PATIENT, START, W, hold, millis, quota, with_burst};
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
    prop_oneof![12 => elsewhen, 1 => (0usize..64).prop_map(|pick| Event::Refused(pick, None))]
}

fn histories<E: Strategy<Value = Event>>(event: E) -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(event, 1..140)
}

proptest! {
    #![proptest_config(plain::config(1_500))]

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

/// Requests as they come, their waits short, long or endless.
fn asks(patience: impl Strategy<Value = Duration>) -> impl Strategy<Value = Vec<Ask>> {
    let gap = prop_oneof![4 => (0u64..30).prop_map(millis), 1 => (0u64..900).prop_map(millis)];
    let ask = (gap, 0u64..3, calls(), patience).prop_map(|(gap, flow, call, patience)| Ask {
        gap,
        flow,
        call,
        patience,
    });
    prop::collection::vec(ask, 1..60)
}

/// The same request goes the same way whenever it goes: answered within the margin, or later.
fn wire(seed: u64) -> Option<plain::Wire> {
    Some(Box::new(move |wait| {
        let mixed = (wait.began.as_nanos() ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        (millis(mixed % 130), millis(mixed / 130 % 90))
    }))
}

proptest! {
    #![proptest_config(plain::config(400))]

    /// Shed on arrival means: it would not have made it. The same schedule again, but this one
    /// request with endless patience, never admits it by the deadline it had; unless somebody
    /// before it gave up meanwhile, which nobody could know.
    #[test]
    fn nobody_is_shed_who_would_certainly_have_made_it(
        (requests, concurrency, burst) in (1u32..8, 0u32..4, 0u32..8),
        asks in asks(prop_oneof![2 => Just(PATIENT), 3 => (0u64..3_000).prop_map(millis)]),
        seed: u64,
    ) {
        let quota = with_burst(quota(requests, concurrency), burst);
        let run = |asks: &[Ask]| {
            let mut world = World::new(quota, 1_000);
            world.wire = wire(seed);
            world.play(asks);
            world.pass_to(world.now + W * 60);
            world.waits
        };
        let waits = run(&asks);
        let shed = (0..asks.len()).filter(|&index| {
            waits[index].ended.is_some_and(|(_, fate)| fate == Fate::Shed)
        });
        for index in shed {
            let mut patient = asks.clone();
            patient[index].patience = PATIENT;
            let again = run(&patient);
            let (asked, ended) = (again[index].began, again[index].ended);
            let Some((ended, Fate::Admitted)) = ended else { continue };
            let gave_up = again[..index].iter().any(|wait| wait.ended.is_some_and(|(at, fate)| {
                at >= asked && at <= ended && fate != Fate::Admitted
            }));
            prop_assert!(
                gave_up || ended > waits[index].deadline,
                "request {} was shed, but goes {:?} before its deadline",
                index,
                waits[index].deadline.since(ended)
            );
        }
    }

    /// Polled late, by a timer or not before the next event, the lane owns up to it: at least the
    /// time in which by the lists somebody could have gone, at most the time it was not polled.
    #[test]
    fn idle_time_is_counted_whoever_ends_it(
        (requests, concurrency) in (1u32..5, 0u32..4),
        asks in asks(Just(PATIENT)),
        late in (0u64..20).prop_map(millis),
        seed: u64,
    ) {
        let mut world = World::new(quota(requests, concurrency), 1_000);
        world.wire = wire(seed);
        world.late = late;
        world.play(&asks);
        world.pass_to(world.now + W * 60);
        let idle = world.idle();
        prop_assert!(idle >= world.could_have_gone, "{:?} < {:?}", idle, world.could_have_gone);
        prop_assert!(idle <= late * asks.len() as u32, "{:?}", idle);
    }
}

/// A ledger and a plain line before it, nothing else: what it foretells of each place in line.
struct Line {
    ledger: Ledger,
    now: Timestamp,
    waiting: Vec<Foretold>,
    /// Answers on their way.
    answers: Vec<(Timestamp, Slot)>,
    transits: Vec<u64>,
    admitted: Vec<(Foretold, Timestamp)>,
}

#[derive(Clone, Copy, Debug)]
struct Foretold {
    /// From 1.
    place: u32,
    earliest: Timestamp,
}

impl Line {
    fn new(quota: Quota, transits: Vec<u64>) -> Self {
        Self {
            ledger: Ledger::new(quota, START),
            now: START,
            waiting: Vec::new(),
            answers: Vec::new(),
            transits,
            admitted: Vec::new(),
        }
    }

    fn ask(&mut self) {
        let place = self.waiting.len() as u32 + 1;
        let earliest = self.ledger.nth_admission(place, self.now);
        self.waiting.push(Foretold { place, earliest });
        self.settle();
    }

    /// Lets whoever may go; says when the next one could.
    fn settle(&mut self) -> Option<Timestamp> {
        self.ledger.advance(!self.waiting.is_empty(), self.now);
        while !self.waiting.is_empty() {
            match self.ledger.take(Call::Short, self.now) {
                Ok(mut slot) => {
                    self.ledger.sent(&mut slot, self.now);
                    let transit = self.transits[self.admitted.len() % self.transits.len()];
                    self.answers.push((self.now + millis(transit), slot));
                    self.admitted.push((self.waiting.remove(0), self.now));
                }
                Err(denied) => return denied.until,
            }
        }
        None
    }

    fn pass_to(&mut self, until: Timestamp) {
        loop {
            let answer = self.answers.iter().map(|&(at, _)| at).min();
            let next = [self.settle(), answer].into_iter().flatten().min();
            let Some(next) = next.filter(|&next| next <= until) else {
                break;
            };
            self.now = self.now.max(next);
            self.ledger.advance(!self.waiting.is_empty(), self.now);
            while let Some(place) = self.answers.iter().position(|&(at, _)| at <= self.now) {
                let (_, mut slot) = self.answers.swap_remove(place);
                self.ledger.arrived(&mut slot, self.now);
                self.ledger.give_back(slot, End::Complete, self.now);
            }
        }
        self.now = until;
        self.settle();
    }
}

proptest! {
    #![proptest_config(plain::config(400))]

    /// Only the rate binds, bodies go out at once, nobody leaves or overtakes. Late by one margin
    /// within the first W, the time in which what is out is still to be bounded; each further W
    /// that a place in line is away may add another.
    #[test]
    fn what_is_foretold_is_never_early_and_late_by_at_most_a_margin(
        requests in 1u32..8,
        gaps in prop::collection::vec(0u64..200, 1..80),
        transits in prop::collection::vec(0u64..300, 1..20),
    ) {
        let mut line = Line::new(quota(requests, 0), transits);
        for gap in gaps {
            line.pass_to(line.now + millis(gap));
            line.ask();
        }
        line.pass_to(line.now + W * 200);
        for &(Foretold { place, earliest }, admitted) in &line.admitted {
            let windows = (place - 1) / requests + 1;
            let late = (MARGIN + Duration::from_nanos(1)) * windows;
            prop_assert!(admitted >= earliest, "goes {:?} early", earliest.since(admitted));
            prop_assert!(admitted <= earliest + late, "late {:?}", admitted.since(earliest));
        }
    }

    /// A bucket that is held down while the window stalls makes it later, never earlier.
    #[test]
    fn what_is_foretold_is_never_early_where_a_bucket_shapes(
        (requests, burst) in (1u32..300, 1u32..300),
        gaps in prop::collection::vec(prop_oneof![9 => 0u64..10, 1 => 0u64..2_000], 1..300),
        transits in prop::collection::vec(0u64..300, 1..20),
    ) {
        let mut line = Line::new(with_burst(quota(requests, 0), burst), transits);
        for gap in gaps {
            line.pass_to(line.now + millis(gap));
            line.ask();
        }
        line.pass_to(line.now + W * 400);
        for &(Foretold { earliest, .. }, admitted) in &line.admitted {
            prop_assert!(admitted >= earliest, "goes {:?} early", earliest.since(admitted));
        }
    }
}

#[test]
fn where_only_tokens_bind_what_is_foretold_is_exact() {
    let mut line = Line::new(with_burst(quota(500, 0), 10), vec![20]);
    for _ in 0..200 {
        line.ask();
    }
    line.pass_to(line.now + W);
    assert_eq!(line.admitted.len(), 200);
    for (foretold, admitted) in line.admitted {
        assert_eq!(admitted, foretold.earliest);
    }
}

/// With the last slot of the window gone, patience up to the nanosecond decides.
#[test]
fn who_can_just_make_it_waits_and_who_cannot_is_told_at_once() {
    let free = hold(W) + Duration::from_nanos(1);
    for (patience, fate) in [(free, None), (hold(W), Some(Fate::Shed))] {
        let mut world = World::new(quota(1, 0), 10);
        world.ask(1, Call::Short, PATIENT);
        world.head(0);
        world.ask(1, Call::Short, patience);
        assert_eq!(world.waits[1].ended.map(|(_, fate)| fate), fate);
        world.pass_to(world.now + W * 2);
        let fate = fate.unwrap_or(Fate::Admitted);
        assert_eq!(world.waits[1].ended.map(|(_, fate)| fate), Some(fate));
    }
}

/// One slot a window: the third in line is two windows away.
#[test]
fn who_has_others_before_it_is_told_so() {
    let mut world = World::new(quota(1, 0), 10);
    world.ask(1, Call::Short, PATIENT);
    world.head(0);
    for (wait, patience, fate) in [
        (1, hold(W) * 2, None),
        (2, hold(W) * 2, Some(Fate::Shed)),
        (3, hold(W) * 2 + Duration::from_nanos(1), None),
    ] {
        world.ask(1, Call::Short, patience);
        assert_eq!(
            world.waits[wait].ended.map(|(_, fate)| fate),
            fate,
            "{wait}"
        );
    }
}

#[test]
fn a_newcomer_does_not_overtake_who_waits_for_a_late_timer() {
    let mut world = World::new(quota(1, 0), 10);
    world.late = millis(20);
    world.ask(1, Call::Short, PATIENT);
    world.head(0);
    world.ask(1, Call::Short, PATIENT);
    world.pass_to(world.now + hold(W) + millis(10));
    world.ask(2, Call::Short, PATIENT);
    let admitted = |wait: &plain::Wait| wait.ended.is_some();
    assert_eq!(
        world.waits.iter().map(admitted).collect::<Vec<_>>(),
        [true, true, false]
    );
}

/// Its bound held, but the body before it was late.
#[test]
fn nobody_waits_past_its_deadline() {
    let mut world = World::new(quota(1, 0), 10);
    world.ask(1, Call::Short, PATIENT);
    world.ask(1, Call::Short, W * 2);
    world.pass_to(world.now + W * 3);
    assert_eq!(world.waits[1].ended, Some((START + W * 2, Fate::Expired)));
}
