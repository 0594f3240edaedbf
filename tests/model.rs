//! Every history there is, up to a length, on a lane so small that they can all be tried: two
//! requests in four units of time, two permits. And every history of a small queue against the
//! plainest round robin.

mod plain;

use std::time::Duration;

use plain::world::World;
use plain::{Attempt, Event, MARGIN, PATIENT, hold, most_within, quota, with_period};
use podgate::limit::fair_queue::{Eligible, FairQueue, Waiter, WaiterId};
use podgate::limit::flow::FlowId;
use podgate::limit::ledger::Call;
use podgate::limit::quota::{Quota, Rate, Timestamp};

/// The margin is one unit of time, W four.
const UNIT: Duration = MARGIN;

fn tiny() -> Quota {
    with_period(quota(2, 2), UNIT * 4)
}

fn ask(flow: u64, call: Call, patience: Duration) -> Event {
    Event::Ask {
        flow,
        call,
        patience,
    }
}

/// Whatever can happen next. What would change nothing is left out.
fn everything(world: &World) -> Vec<Event> {
    let mut events = vec![
        Event::Pass(UNIT),
        ask(1, Call::Short, PATIENT),
        ask(2, Call::Held, UNIT * 3 / 2),
    ];
    if world.wakes() {
        events.push(Event::Wake);
    }
    if world.is_waiting() {
        events.push(Event::Leave(0));
    }
    let count = |which: fn(&Attempt) -> bool| world.attempts.iter().filter(|a| which(a)).count();
    let open = count(Attempt::is_open);
    events.extend((0..count(|a| a.is_open() && a.last_byte.is_none())).map(Event::Sent));
    events.extend((0..count(|a| a.is_open() && a.head.is_none())).map(Event::Head));
    events.extend((0..count(Attempt::is_untouched)).map(Event::Unsent));
    events.extend((0..open).map(Event::End));
    events.extend((0..open).map(|pick| Event::Torn(pick, Duration::ZERO)));
    if open < world.attempts.len() {
        events.push(Event::Again(0));
    }
    if !world.attempts.is_empty() {
        events.push(Event::Tie(0, 0));
    }
    events
}

/// What moves slots and permits, always of the oldest exchange: fewer events, longer histories.
fn essentials(world: &World) -> Vec<Event> {
    let mut events = vec![ask(1, Call::Short, PATIENT)];
    if world.wakes() {
        events.push(Event::Wake);
    }
    if world.attempts.iter().any(Attempt::is_open) {
        events.extend([Event::End(0), Event::Torn(0, Duration::ZERO)]);
    }
    if world.attempts.iter().any(Attempt::is_untouched) {
        events.extend([Event::Sent(0), Event::Unsent(0)]);
    }
    if !world.attempts.is_empty() {
        events.push(Event::Tie(0, 0));
    }
    events
}

/// Permits, waits and deadlines are compared with plain lists at every step.
fn play(history: &[Event]) -> World {
    let mut world = World::new(tiny(), 2);
    for event in history {
        world.happen(event);
        world.assert_nobody_is_kept();
    }
    world
}

/// Plays every history that begins like this and is `more` events longer; how many that were.
fn play_all(history: &mut Vec<Event>, more: usize, possible: fn(&World) -> Vec<Event>) -> u64 {
    let world = play(history);
    if more == 0 {
        let n = tiny().rate.map_or(0, Rate::requests) as usize;
        let seen = most_within(&world.arrivals(), hold(UNIT * 4));
        assert!(seen <= n, "{seen} of {n} arrive within W: {history:?}");
        return 1;
    }
    let mut played = 0;
    for event in possible(&world) {
        history.push(event);
        played += play_all(history, more - 1, possible);
        history.pop();
    }
    played
}

#[test]
fn every_history_of_a_tiny_lane_is_never_over_never_idle_and_loses_nothing() {
    let mut history = vec![
        ask(1, Call::Short, PATIENT),
        ask(1, Call::Short, PATIENT),
        ask(2, Call::Short, PATIENT),
    ];
    let played = play_all(&mut history, 5, everything);
    println!("{played} histories of 8 events");
}

#[test]
fn nor_is_a_longer_one_of_what_moves_slots_and_permits() {
    let mut history = vec![ask(1, Call::Short, PATIENT), ask(1, Call::Short, PATIENT)];
    let played = play_all(&mut history, 7, essentials);
    println!("{played} histories of 9 events");
}

/// Round robin as anybody would write it: a ring of flows, each a list in order of arrival.
#[derive(Default)]
struct Ring {
    flows: Vec<(u64, Vec<Plain>)>,
    arrivals: u64,
}

#[derive(Clone, Copy)]
struct Plain {
    id: WaiterId,
    call: Call,
    arrival: u64,
}

impl Ring {
    fn join(&mut self, flow: u64, call: Call, id: WaiterId) {
        self.arrivals += 1;
        let waiter = Plain {
            id,
            call,
            arrival: self.arrivals,
        };
        match self.flows.iter_mut().find(|(known, _)| *known == flow) {
            Some((_, waiters)) => waiters.push(waiter),
            None => self.flows.push((flow, vec![waiter])),
        }
    }

    /// The first flow of the ring with somebody who may go has its turn, and goes to the end.
    fn serve(&mut self, eligible: Eligible) -> Option<WaiterId> {
        let may_go = |waiter: &Plain| eligible == Eligible::All || waiter.call == Call::Short;
        let flow = (self.flows.iter()).position(|(_, waiters)| waiters.iter().any(may_go))?;
        let (id, mut waiters) = self.flows.remove(flow);
        let first = waiters.iter().position(may_go)?;
        let served = waiters.remove(first);
        if !waiters.is_empty() {
            self.flows.push((id, waiters));
        }
        Some(served.id)
    }

    fn remove(&mut self, id: WaiterId) {
        for (_, waiters) in &mut self.flows {
            waiters.retain(|waiter| waiter.id != id);
        }
        self.flows.retain(|(_, waiters)| !waiters.is_empty());
    }

    fn waiters(&self) -> impl Iterator<Item = &Plain> {
        self.flows.iter().flat_map(|(_, waiters)| waiters)
    }

    fn len_of(&self, flow: u64) -> usize {
        let known = self.flows.iter().find(|(known, _)| *known == flow);
        known.map_or(0, |(_, waiters)| waiters.len())
    }

    /// How many go before a newcomer, if nobody but those waiting is served, in this mode.
    fn before(&self, flow: u64, call: Call, eligible: Eligible, newcomer: WaiterId) -> u32 {
        let mut ring = Ring {
            flows: self.flows.clone(),
            arrivals: self.arrivals,
        };
        ring.join(flow, call, newcomer);
        let mut before = 0;
        while let Some(served) = ring.serve(eligible) {
            if served == newcomer {
                break;
            }
            before += 1;
        }
        before
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Join(u64, Call),
    Serve(Eligible),
    /// The one so many places from the front of all.
    Leave(usize),
}

const STEPS: [Step; 9] = [
    Step::Join(1, Call::Short),
    Step::Join(1, Call::Held),
    Step::Join(2, Call::Short),
    Step::Join(2, Call::Held),
    Step::Join(3, Call::Short),
    Step::Serve(Eligible::All),
    Step::Serve(Eligible::ShortOnly),
    Step::Leave(0),
    Step::Leave(1),
];

struct Queues {
    queue: FairQueue,
    ring: Ring,
}

impl Queues {
    fn new() -> Self {
        Self {
            queue: FairQueue::new(4),
            ring: Ring::default(),
        }
    }

    /// `false` if it would change nothing.
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Join(flow, call) => self.join(flow, call),
            Step::Serve(eligible) => {
                let expected = self.ring.serve(eligible);
                let first = self.queue.first(eligible);
                assert_eq!(first, expected, "whose turn it is");
                first.is_some_and(|first| self.queue.serve(first).is_some())
            }
            Step::Leave(place) => {
                let Some(id) = self.ring.waiters().nth(place).map(|waiter| waiter.id) else {
                    return false;
                };
                self.ring.remove(id);
                assert!(self.queue.remove(id).is_some() && self.queue.remove(id).is_none());
                true
            }
        }
    }

    fn join(&mut self, flow: u64, call: Call) -> bool {
        if self.queue.is_full() {
            self.make_room(flow);
        }
        if self.queue.is_full() {
            return true;
        }
        let ahead = self.queue.ahead(FlowId(flow), call);
        let id = self.queue.join(Waiter {
            flow: FlowId(flow),
            call,
            deadline: Timestamp::EPOCH,
        });
        let all = self.ring.before(flow, call, Eligible::All, id);
        let short = match call {
            Call::Short => self.ring.before(flow, call, Eligible::ShortOnly, id),
            Call::Held => all,
        };
        assert!(ahead <= all.min(short), "no fewer than {ahead} go before");
        self.ring.join(flow, call, id);
        true
    }

    /// The newest of the heaviest flow, unless that would be the newcomer.
    fn make_room(&mut self, flow: u64) {
        let heaviest = (self.ring.flows.iter())
            .map(|(_, waiters)| waiters.len())
            .max();
        let (heaviest, own) = (heaviest.unwrap_or(0), self.ring.len_of(flow));
        let newcomer_goes = own + 1 > heaviest || (own + 1 == heaviest && own > 0);
        let victim = self.queue.evictable(FlowId(flow));
        assert_eq!(victim.is_none(), newcomer_goes, "who makes room");
        let Some(victim) = victim else { return };
        let newest_of_a_heaviest = |(_, waiters): &(u64, Vec<Plain>)| {
            let newest = waiters.iter().max_by_key(|waiter| waiter.arrival);
            waiters.len() == heaviest && newest.is_some_and(|waiter| waiter.id == victim)
        };
        assert!(self.ring.flows.iter().any(newest_of_a_heaviest));
        self.ring.remove(victim);
        self.queue.remove(victim);
    }
}

fn serve_all(history: &mut Vec<Step>, more: usize) -> u64 {
    let mut played = 0;
    for step in STEPS {
        let mut queues = Queues::new();
        for &step in history.iter() {
            queues.step(step);
        }
        if queues.step(step) {
            let lens = queues.queue.flows().map(|(_, waiting)| waiting as usize);
            assert_eq!(lens.sum::<usize>(), queues.ring.waiters().count());
            played += 1;
            if more > 1 {
                history.push(step);
                played += serve_all(history, more - 1);
                history.pop();
            }
        }
    }
    played
}

#[test]
fn every_history_of_a_small_queue_is_that_of_a_plain_ring() {
    println!("{} histories", serve_all(&mut Vec::new(), 7));
}
