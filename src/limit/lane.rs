//! One lane's queue and throttle: who is next, whether anything may go, and for how long it is
//! worth waiting.
//!
//! It never touches a ledger: it names the waiter to ask for and is told the answer, so that the
//! same lane stands in front of a local ledger or a shared store.

use std::time::Duration;

use crate::limit::deadlines::Deadlines;
use crate::limit::estimate::Estimates;
use crate::limit::fair_queue::{Eligible, FairQueue, Waiter, WaiterId};
use crate::limit::flow::FlowId;
use crate::limit::ledger::Call;
use crate::limit::quota::{Quota, Rate, Timestamp};
use crate::limit::throttle::{Gate, ProbeId, Throttle};

/// Why a request was shed. Knows nothing of HTTP; `retry_after` is an estimate without jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shed {
    #[error("the queue is full: {capacity} requests wait already")]
    QueueFull {
        capacity: usize,
        retry_after: Duration,
    },
    #[error("there is no room before the deadline: come back in {:.1} s", retry_after.as_secs_f64())]
    OutOfReach { retry_after: Duration },
    #[error("the lane is paused, after 429s of the upstream or by an operator: come back in {:.1} s", retry_after.as_secs_f64())]
    Paused { retry_after: Duration },
    #[error("its turn did not come before the deadline")]
    WaitExpired { retry_after: Duration },
}

impl Shed {
    /// When coming back is worth it.
    pub fn retry_after(&self) -> Duration {
        match *self {
            Shed::QueueFull { retry_after, .. }
            | Shed::OutOfReach { retry_after }
            | Shed::Paused { retry_after }
            | Shed::WaitExpired { retry_after } => retry_after,
        }
    }
}

/// What the lane wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nobody waits who may go.
    Idle,
    /// Ask the ledger for this waiter.
    Ask { waiter: WaiterId, call: Call },
    /// Nothing goes before this; `None`: not before an event.
    Wait(Option<Timestamp>),
}

pub struct Lane {
    queue: FairQueue,
    deadlines: Deadlines,
    throttle: Throttle,
    estimates: Estimates,
}

/// What stands for W in the memory of a lane without a rate.
fn span(quota: &Quota) -> Duration {
    quota.rate.map_or(Duration::from_secs(10), Rate::period)
}

impl Lane {
    /// `capacity`: the most waiters. `seed` spreads the pauses of many lanes.
    pub fn new(quota: Quota, capacity: usize, seed: u64, now: Timestamp) -> Self {
        Self {
            queue: FairQueue::new(capacity),
            deadlines: Deadlines::default(),
            throttle: Throttle::new(quota, seed, now),
            estimates: Estimates::new(span(&quota)),
        }
    }

    pub fn queue(&self) -> &FairQueue {
        &self.queue
    }

    pub fn throttle(&self) -> &Throttle {
        &self.throttle
    }

    pub fn throttle_mut(&mut self) -> &mut Throttle {
        &mut self.throttle
    }

    pub fn estimates(&self) -> &Estimates {
        &self.estimates
    }

    pub fn estimates_mut(&mut self) -> &mut Estimates {
        &mut self.estimates
    }

    /// Nobody waits and nothing pauses: a newcomer may ask at once.
    pub fn is_clear(&self) -> bool {
        self.queue.is_empty() && self.throttle.gate() == Gate::Open
    }

    /// A newcomer waits. `earliest` is the lower bound of its admission as the ledger sees it, for
    /// the place that [`FairQueue::ahead`] gives it. When full, a waiter of the heaviest flow makes
    /// room and is returned.
    pub fn join(
        &mut self,
        waiter: Waiter,
        earliest: Timestamp,
        now: Timestamp,
    ) -> Result<(WaiterId, Option<WaiterId>), Shed> {
        let evicted = self.place(&waiter, earliest, now)?;
        if let Some(victim) = evicted {
            self.queue.remove(victim);
        }
        let id = self.queue.join(waiter);
        self.watch(waiter.deadline, id);
        Ok((id, evicted))
    }

    /// Whether [`Lane::join`] would take this newcomer, and who would make room for it.
    ///
    /// # Errors
    /// [`Shed`]: it would not.
    pub fn place(
        &self,
        waiter: &Waiter,
        earliest: Timestamp,
        now: Timestamp,
    ) -> Result<Option<WaiterId>, Shed> {
        let retry_after = || self.estimate(waiter.flow, earliest, now);
        let reopens = self.throttle.earliest(now);
        if reopens.max(earliest) > waiter.deadline {
            let retry_after = retry_after();
            return Err(if reopens >= earliest {
                Shed::Paused { retry_after }
            } else {
                Shed::OutOfReach { retry_after }
            });
        }
        if !self.queue.is_full() {
            return Ok(None);
        }
        let victim = self.queue.evictable(waiter.flow);
        victim.map(Some).ok_or_else(|| Shed::QueueFull {
            capacity: self.queue.capacity(),
            retry_after: retry_after(),
        })
    }

    /// An admitted request comes back: it keeps its arrival and goes to the front of its flow.
    pub fn rejoin(&mut self, waiter: Waiter, arrival: u64) -> WaiterId {
        let id = self.queue.rejoin(waiter, arrival);
        self.watch(waiter.deadline, id);
        id
    }

    fn watch(&mut self, deadline: Timestamp, id: WaiterId) {
        let Self {
            queue, deadlines, ..
        } = self;
        deadlines.add(deadline, id, queue.len(), |waiter| {
            queue.get(waiter).is_some()
        });
    }

    /// The waiter's caller is gone. `false` if it does not wait.
    pub fn leave(&mut self, waiter: WaiterId) -> bool {
        self.queue.remove(waiter).is_some()
    }

    /// The earliest deadline of a waiter.
    pub fn first_deadline(&mut self) -> Option<(Timestamp, WaiterId)> {
        let queue = &self.queue;
        self.deadlines.first(|waiter| queue.get(waiter).is_some())
    }

    /// Who should be asked for, of those `eligible`. The throttle is advanced to `now` first.
    pub fn next(&mut self, eligible: Eligible, now: Timestamp) -> Next {
        let eligible = match self.throttle.gate() {
            Gate::Open => eligible,
            _ if self.queue.is_empty() => return Next::Idle,
            Gate::Paused(until) | Gate::Probing(until) => return Next::Wait(Some(until)),
            Gate::Probe => {
                if self.queue.first(Eligible::ShortOnly).is_none()
                    && let Some(opens) = self.throttle.no_probe(now)
                {
                    return Next::Wait(Some(opens));
                }
                match self.throttle.gate() {
                    Gate::Probe => Eligible::ShortOnly,
                    _ => eligible,
                }
            }
        };
        match self.queue.first(eligible) {
            Some(waiter) => {
                let call = self
                    .queue
                    .get(waiter)
                    .map_or(Call::Short, |waiter| waiter.call);
                Next::Ask { waiter, call }
            }
            None => Next::Idle,
        }
    }

    /// The ledger granted what was asked. Says which probe this is, if it is one.
    pub fn granted(&mut self, waiter: WaiterId, now: Timestamp) -> Option<ProbeId> {
        if let Some(waiter) = self.queue.serve(waiter) {
            self.estimates.admitted(waiter.flow, now);
        }
        (self.throttle.gate() == Gate::Probe).then(|| self.throttle.probe_sent(now))
    }

    /// When a request of `flow` that comes now is likely to go: no earlier than `earliest`, than
    /// the pause ends, nor than the flow's late pace lets its last place go.
    pub fn estimate(&self, flow: FlowId, earliest: Timestamp, now: Timestamp) -> Duration {
        let bound = earliest.max(self.throttle.earliest(now)).since(now);
        let place = self.queue.waiting(flow) + 1;
        bound.max(self.estimates.by_pace(flow, place, now).unwrap_or_default())
    }

    /// Another quota or capacity; who waits, waits on.
    pub fn retune(&mut self, quota: Quota, capacity: usize) {
        self.queue.set_capacity(capacity);
        self.throttle.retune(quota);
        self.estimates.set_span(span(&quota));
    }
}
