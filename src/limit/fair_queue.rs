//! Who is next: flows in round robin, first come first served within a flow, bounded.
//!
//! A flow has a turn; the lowest goes first, and being served moves it one quantum on. That is
//! round robin with a memory of position: a flow that must be passed over (only held calls wait,
//! and their share of the permits is used up) keeps its turn. Weights are another quantum,
//! urgency another queue before this one: both have their place here and no code yet.
//! O(log flows) per event, whatever the number of waiters.

use std::collections::BTreeSet;

use crate::limit::flow::{FlowId, FlowMap};
use crate::limit::ledger::Call;
use crate::limit::lengths::Lengths;
use crate::limit::levels::Levels;
use crate::limit::quota::Timestamp;

/// One waiting request. Stale once it was admitted, shed or left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId {
    /// Its number in order of arrival at this lane.
    arrival: u64,
    /// This wait's own: one that comes back keeps its arrival, and may find the place it had.
    wait: u64,
    place: u32,
}

impl WaiterId {
    /// Its number in order of arrival at this lane: kept by a request that comes back.
    pub fn arrival(self) -> u64 {
        self.arrival
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub flow: FlowId,
    pub call: Call,
    /// It waits no longer than this.
    pub deadline: Timestamp,
}

/// Which waiters may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eligible {
    All,
    /// Held calls are passed over without losing their turn.
    ShortOnly,
}

/// One flow's turn moves this far each time it is served.
const QUANTUM: u64 = 1;
/// No waiter: the end of a list.
const NIL: u32 = u32::MAX;

struct Node {
    waiter: Waiter,
    arrival: u64,
    wait: u64,
    flow: u32,
    prev: u32,
    next: u32,
}

/// A list of waiters in order of arrival, threaded through the nodes.
#[derive(Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
    len: u32,
}

impl List {
    const EMPTY: List = List {
        head: NIL,
        tail: NIL,
        len: 0,
    };
}

struct Flow {
    id: FlowId,
    turn: Turn,
    short: List,
    held: List,
}

impl Flow {
    fn list(&mut self, call: Call) -> &mut List {
        match call {
            Call::Short => &mut self.short,
            Call::Held => &mut self.held,
        }
    }

    fn len(&self) -> u32 {
        self.short.len + self.held.len
    }
}

/// Position among the flows: by turn, then by who took it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    turn: u64,
    since: u64,
    flow: u32,
}

pub struct FairQueue {
    capacity: usize,
    nodes: Vec<Node>,
    free_nodes: Vec<u32>,
    flows: Vec<Flow>,
    free_flows: Vec<u32>,
    by_id: FlowMap<u32>,
    /// Flows with a short waiter, and those with a held one.
    short_turns: BTreeSet<Turn>,
    held_turns: BTreeSet<Turn>,
    lengths: Lengths,
    levels: Levels,
    short_levels: Levels,
    /// The highest turn served.
    round: u64,
    /// Numbers arrivals, waits and turns.
    counter: u64,
    len: usize,
}

impl FairQueue {
    /// At most `capacity` waiters.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            nodes: Vec::new(),
            free_nodes: Vec::new(),
            flows: Vec::new(),
            free_flows: Vec::new(),
            by_id: FlowMap::default(),
            short_turns: BTreeSet::new(),
            held_turns: BTreeSet::new(),
            lengths: Lengths::default(),
            levels: Levels::default(),
            short_levels: Levels::default(),
            round: 0,
            counter: 0,
            len: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn is_full(&self) -> bool {
        self.len >= self.capacity
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// A smaller capacity lets those stay who wait already.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// Waiters of each flow, in no order.
    pub fn flows(&self) -> impl Iterator<Item = (FlowId, u32)> {
        self.by_id
            .iter()
            .map(|(&id, &flow)| (id, self.flows[flow as usize].len()))
    }

    /// Waiters of one flow.
    pub fn waiting(&self, flow: FlowId) -> u32 {
        self.by_id
            .get(&flow)
            .map_or(0, |&flow| self.flows[flow as usize].len())
    }

    /// At least so many of those waiting now go before a newcomer.
    ///
    /// A lower bound: flows after the newcomer's in the ring count one waiter less than they may
    /// have before it, and a short call counts none of the held ones.
    pub fn ahead(&self, flow: FlowId, call: Call) -> u32 {
        let own = self
            .by_id
            .get(&flow)
            .map(|&flow| &self.flows[flow as usize]);
        let (own, levels, flows) = match call {
            Call::Short => (
                own.map(|f| f.short.len),
                &self.short_levels,
                self.short_turns.len(),
            ),
            Call::Held => (own.map(Flow::len), &self.levels, self.by_id.len()),
        };
        match own {
            // At the end of the ring: every flow goes once before.
            None => u32::try_from(flows).unwrap_or(u32::MAX),
            Some(own) => levels.up_to(own),
        }
    }

    /// The waiter that a newcomer of `flow` takes the place of when the queue is full: the newest
    /// of the heaviest flow. `None`: that would be the newcomer itself.
    ///
    /// On a tie it is never the newcomer's flow if that has no other waiter: a small caller is
    /// not locked out by a big one.
    pub fn evictable(&self, flow: FlowId) -> Option<WaiterId> {
        let (index, heaviest) = self.lengths.longest()?;
        let own = self.waiting(flow);
        if own + 1 > heaviest || (own + 1 == heaviest && own > 0) {
            return None;
        }
        let flow = &self.flows[index as usize];
        let newest = [flow.short.tail, flow.held.tail]
            .into_iter()
            .filter(|&place| place != NIL)
            .max_by_key(|&place| self.nodes[place as usize].arrival)?;
        Some(self.id(newest))
    }

    fn id(&self, place: u32) -> WaiterId {
        let Node { arrival, wait, .. } = self.nodes[place as usize];
        WaiterId {
            arrival,
            wait,
            place,
        }
    }

    /// To the end of its flow. The caller has made room.
    pub fn join(&mut self, waiter: Waiter) -> WaiterId {
        self.insert(waiter, self.counter + 1, false)
    }

    /// A request that was admitted and comes back keeps its arrival, at the front of its flow.
    pub fn rejoin(&mut self, waiter: Waiter, arrival: u64) -> WaiterId {
        self.insert(waiter, arrival, true)
    }

    fn insert(&mut self, waiter: Waiter, arrival: u64, front: bool) -> WaiterId {
        self.counter += 1;
        let wait = self.counter;
        let flow = self.flow(waiter.flow);
        let place = match self.free_nodes.pop() {
            Some(place) => place,
            None => {
                self.nodes.push(Node {
                    waiter,
                    arrival,
                    wait,
                    flow,
                    prev: NIL,
                    next: NIL,
                });
                self.nodes.len() as u32 - 1
            }
        };
        let list = *self.flows[flow as usize].list(waiter.call);
        let (prev, next) = if front {
            (NIL, list.head)
        } else {
            (list.tail, NIL)
        };
        self.nodes[place as usize] = Node {
            waiter,
            arrival,
            wait,
            flow,
            prev,
            next,
        };
        self.link(flow, waiter.call, place, prev, next);
        self.resize(flow, waiter.call, 1);
        WaiterId {
            arrival,
            wait,
            place,
        }
    }

    fn link(&mut self, flow: u32, call: Call, place: u32, prev: u32, next: u32) {
        if prev != NIL {
            self.nodes[prev as usize].next = place;
        }
        if next != NIL {
            self.nodes[next as usize].prev = place;
        }
        let list = self.flows[flow as usize].list(call);
        if prev == NIL {
            list.head = place;
        }
        if next == NIL {
            list.tail = place;
        }
    }

    /// The flow's entry; made at the end of the ring if it has none.
    fn flow(&mut self, id: FlowId) -> u32 {
        if let Some(&flow) = self.by_id.get(&id) {
            return flow;
        }
        self.counter += 1;
        let (turn, since) = (self.round + QUANTUM, self.counter);
        let entry = |flow| Flow {
            id,
            turn: Turn { turn, since, flow },
            short: List::EMPTY,
            held: List::EMPTY,
        };
        let flow = match self.free_flows.pop() {
            Some(flow) => {
                self.flows[flow as usize] = entry(flow);
                flow
            }
            None => {
                let flow = self.flows.len() as u32;
                self.flows.push(entry(flow));
                flow
            }
        };
        self.by_id.insert(id, flow);
        flow
    }

    /// Keeps every index in step with a flow that gained (1) or lost (-1) a waiter.
    fn resize(&mut self, flow: u32, call: Call, by: i32) {
        let entry = &mut self.flows[flow as usize];
        let turn = entry.turn;
        let before = entry.len();
        let list = entry.list(call);
        let list_before = list.len;
        list.len = list.len.saturating_add_signed(by);
        let (list_after, after) = (list.len, before.saturating_add_signed(by));

        self.len = self.len.saturating_add_signed(by as isize);
        self.lengths.moved(flow, before, after);
        self.levels.moved(before, after);
        let turns = match call {
            Call::Short => {
                self.short_levels.moved(list_before, list_after);
                &mut self.short_turns
            }
            Call::Held => &mut self.held_turns,
        };
        if list_before == 0 {
            turns.insert(turn);
        } else if list_after == 0 {
            turns.remove(&turn);
        }
    }

    /// The waiter whose turn it is.
    pub fn first(&self, eligible: Eligible) -> Option<WaiterId> {
        let short = self.short_turns.first();
        let turn = match eligible {
            Eligible::All => short.into_iter().chain(self.held_turns.first()).min(),
            Eligible::ShortOnly => short,
        };
        let flow = &self.flows[turn?.flow as usize];
        let held = match eligible {
            Eligible::All => flow.held.head,
            Eligible::ShortOnly => NIL,
        };
        let place = [flow.short.head, held]
            .into_iter()
            .filter(|&place| place != NIL)
            .min_by_key(|&place| self.nodes[place as usize].arrival)?;
        Some(self.id(place))
    }

    pub fn get(&self, id: WaiterId) -> Option<&Waiter> {
        let node = self.nodes.get(id.place as usize)?;
        (node.wait == id.wait && node.flow != NIL).then_some(&node.waiter)
    }

    /// The waiter goes: its flow has had its turn.
    pub fn serve(&mut self, id: WaiterId) -> Option<Waiter> {
        let flow = self.nodes.get(id.place as usize)?.flow;
        let waiter = self.remove(id)?;
        self.counter += 1;
        let entry = &mut self.flows[flow as usize];
        let served = entry.turn;
        self.round = self.round.max(served.turn);
        entry.turn = Turn {
            turn: self.round + QUANTUM,
            since: self.counter,
            flow,
        };
        let turn = entry.turn;
        for turns in [&mut self.short_turns, &mut self.held_turns] {
            if turns.remove(&served) {
                turns.insert(turn);
            }
        }
        Some(waiter)
    }

    /// The waiter leaves, wherever it stands; `None` if it is here no longer.
    pub fn remove(&mut self, id: WaiterId) -> Option<Waiter> {
        let waiter = *self.get(id)?;
        let Node {
            flow, prev, next, ..
        } = self.nodes[id.place as usize];
        if prev != NIL {
            self.nodes[prev as usize].next = next;
        }
        if next != NIL {
            self.nodes[next as usize].prev = prev;
        }
        let list = self.flows[flow as usize].list(waiter.call);
        if prev == NIL {
            list.head = next;
        }
        if next == NIL {
            list.tail = prev;
        }
        self.nodes[id.place as usize].flow = NIL;
        self.free_nodes.push(id.place);
        self.resize(flow, waiter.call, -1);
        let entry = &self.flows[flow as usize];
        if entry.len() == 0 {
            self.by_id.remove(&entry.id);
            self.free_flows.push(flow);
        }
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(flow: u64, call: Call) -> Waiter {
        Waiter {
            flow: FlowId(flow),
            call,
            deadline: Timestamp::EPOCH,
        }
    }

    fn served(queue: &mut FairQueue, eligible: Eligible) -> Option<u64> {
        let id = queue.first(eligible)?;
        queue.serve(id).map(|waiter| waiter.flow.0)
    }

    #[test]
    fn a_single_request_waits_one_round_behind_a_hog() {
        let mut queue = FairQueue::new(100);
        for _ in 0..50 {
            queue.join(waiter(1, Call::Short));
        }
        assert_eq!(served(&mut queue, Eligible::All), Some(1));
        queue.join(waiter(2, Call::Short));
        assert_eq!(queue.ahead(FlowId(3), Call::Short), 2);
        assert_eq!(served(&mut queue, Eligible::All), Some(1));
        assert_eq!(served(&mut queue, Eligible::All), Some(2));
        assert_eq!(served(&mut queue, Eligible::All), Some(1));
    }

    #[test]
    fn a_held_call_is_passed_over_without_losing_its_turn() {
        let mut queue = FairQueue::new(100);
        queue.join(waiter(1, Call::Held));
        queue.join(waiter(2, Call::Short));
        queue.join(waiter(2, Call::Short));
        queue.join(waiter(1, Call::Held));
        assert_eq!(served(&mut queue, Eligible::ShortOnly), Some(2));
        assert_eq!(served(&mut queue, Eligible::All), Some(1));
        assert_eq!(
            served(&mut queue, Eligible::All),
            Some(2),
            "and it saved up no second turn"
        );
        assert_eq!(served(&mut queue, Eligible::ShortOnly), None);
        assert_eq!(served(&mut queue, Eligible::All), Some(1));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_request_that_comes_back_goes_to_the_front_of_its_flow() {
        let mut queue = FairQueue::new(100);
        let first = queue.join(waiter(1, Call::Short));
        let second = queue.join(waiter(1, Call::Short));
        queue.serve(first);
        let again = queue.rejoin(waiter(1, Call::Short), first.arrival());
        assert_eq!(queue.first(Eligible::All), Some(again));
        queue.serve(again);
        assert_eq!(queue.first(Eligible::All), Some(second));
    }

    #[test]
    fn a_request_that_comes_back_is_another_wait_in_the_same_place() {
        let mut queue = FairQueue::new(100);
        let first = queue.join(waiter(1, Call::Short));
        queue.serve(first);
        let again = queue.rejoin(waiter(1, Call::Short), first.arrival());
        assert!(queue.get(first).is_none(), "stale");
        assert_eq!(again.arrival(), first.arrival());
    }

    #[test]
    fn the_middle_can_leave_and_a_stale_id_does_nothing() {
        let mut queue = FairQueue::new(100);
        let ids: Vec<_> = (0..3).map(|_| queue.join(waiter(1, Call::Short))).collect();
        assert!(queue.remove(ids[1]).is_some());
        assert!(queue.remove(ids[1]).is_none());
        let reused = queue.join(waiter(2, Call::Short));
        assert!(
            queue.remove(ids[1]).is_none(),
            "its place is somebody else's now"
        );
        assert!(queue.get(reused).is_some());
        assert_eq!(queue.first(Eligible::All), Some(ids[0]));
    }

    #[test]
    fn a_full_queue_sheds_from_the_heaviest_flow_and_never_a_lone_newcomer() {
        let mut queue = FairQueue::new(3);
        queue.join(waiter(1, Call::Short));
        let newest = queue.join(waiter(1, Call::Held));
        queue.join(waiter(2, Call::Short));
        assert!(queue.is_full());
        assert_eq!(queue.evictable(FlowId(3)), Some(newest));
        assert_eq!(
            queue.evictable(FlowId(1)),
            None,
            "the newcomer is the heaviest's newest"
        );
        assert_eq!(
            queue.evictable(FlowId(2)),
            None,
            "a tie goes against who waits already"
        );
        queue.remove(newest);
        queue.join(waiter(3, Call::Short));
        assert!(
            queue.evictable(FlowId(4)).is_some(),
            "all hold one: the newcomer has none"
        );
    }
}
