//! Who has waited long enough: a heap that forgets lazily those who went another way.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::limit::fair_queue::WaiterId;
use crate::limit::quota::Timestamp;

/// Stale entries tolerated beyond as many as there are live ones.
const SLACK: usize = 64;

#[derive(Default)]
pub struct Deadlines {
    heap: BinaryHeap<Reverse<(Timestamp, WaiterId)>>,
}

impl Deadlines {
    /// `waiting` is the number of live waiters, `is_waiting` tells them apart: callers that join
    /// and leave at will must not grow the heap.
    pub fn add(
        &mut self,
        deadline: Timestamp,
        waiter: WaiterId,
        waiting: usize,
        is_waiting: impl Fn(WaiterId) -> bool,
    ) {
        self.heap.push(Reverse((deadline, waiter)));
        if self.heap.len() > 2 * waiting + SLACK {
            self.heap.retain(|&Reverse((_, waiter))| is_waiting(waiter));
        }
    }

    /// The live waiter with the earliest deadline.
    pub fn first(
        &mut self,
        is_waiting: impl Fn(WaiterId) -> bool,
    ) -> Option<(Timestamp, WaiterId)> {
        while let Some(&Reverse((deadline, waiter))) = self.heap.peek() {
            if is_waiting(waiter) {
                return Some((deadline, waiter));
            }
            self.heap.pop();
        }
        None
    }
}
