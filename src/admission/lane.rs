//! One lane as the runtime sees it: the core under its lock, those who wait for it, and the task
//! that wakes it at the time it named.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::admission::clock::Clock;
use crate::admission::permit::Permit;
use crate::config::policy::GroupPolicy;
use crate::limit::fair_queue::{Waiter, WaiterId};
use crate::limit::flow::FlowId;
use crate::limit::ladder::Cause;
use crate::limit::lane::Shed;
use crate::limit::ledger::{Call, End, Slot};
use crate::limit::local::{Budget, LocalLane, Settled, Snapshot, Verdict};
use crate::limit::memory::Memory;
use crate::limit::quota::Timestamp;
use crate::metrics::endpoint::EndpointMetrics;
use crate::metrics::lanes::Queued;
use crate::operation::Group;

/// What one request asks of a lane.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub flow: FlowId,
    pub call: Call,
    /// The longest it waits.
    pub patience: Duration,
    /// Bytes of its body that are held while it waits.
    pub held: u64,
}

impl Ask {
    fn waiter(&self, now: Timestamp) -> Waiter {
        Waiter {
            flow: self.flow,
            call: self.call,
            deadline: now + self.patience,
        }
    }
}

/// What a lane tells those who only look.
#[derive(Clone, Debug)]
pub struct LaneView {
    pub snapshot: Snapshot,
    /// Waiters by flow.
    pub flows: Vec<(FlowId, u32)>,
    pub queued: Queued,
}

/// One lane, shared by every thread.
pub struct LaneCell {
    pub(super) group: Group,
    pub(super) metrics: Arc<EndpointMetrics>,
    clock: Clock,
    state: Mutex<State>,
    /// Tells the driver that it sleeps too long.
    earlier: Notify,
}

struct State {
    lane: LocalLane,
    waiting: HashMap<WaiterId, Waiting>,
    /// When the driver looks again; `None`: there is no driver.
    driver: Option<Timestamp>,
}

struct Waiting {
    asked: Timestamp,
    held: u64,
    told: oneshot::Sender<Fate>,
}

/// It may go, or not: [`Shed`] says why.
pub type Fate = Result<Permit, Shed>;

/// What is to be told once the lock is gone: telling may drop a permit, which takes the lock.
#[derive(Default)]
struct News(Vec<(oneshot::Sender<Fate>, Fate)>);

impl News {
    #[inline]
    fn tell(self) {
        // Most often nobody waits.
        if self.0.is_empty() {
            return;
        }
        for (told, news) in self.0 {
            // Whoever left meanwhile drops the permit here, and it is free again.
            drop(told.send(news));
        }
    }
}

/// One request before its lane, for as many tries as it takes: it keeps its arrival and its
/// deadline.
pub struct Turn<'a> {
    lane: &'a Arc<LaneCell>,
    ask: Ask,
    first: Option<First>,
}

/// What a lane says to who asks.
pub enum Asked {
    /// At once, as the clock then stood.
    Answered(Fate, Instant),
    Waits(Wait),
}

/// What is kept of the first time it asked.
#[derive(Clone, Copy)]
struct First {
    /// Its number in order of arrival; zero if it never waited.
    arrival: u64,
    deadline: Timestamp,
}

impl Turn<'_> {
    /// May it go? The first time as [`LaneCell::admit`]; after that it comes back for another try,
    /// to the front of its flow.
    ///
    /// # Errors
    /// [`Shed`]: it was refused, at once or when its patience was over.
    pub async fn admit(&mut self) -> Result<Permit, Shed> {
        match self.ask() {
            Asked::Answered(answer, _) => answer,
            Asked::Waits(wait) => wait.await,
        }
    }

    /// The same for whoever has to know first whether it waits.
    pub fn ask(&mut self) -> Asked {
        let (asked, first) = self.lane.ask(self.ask, self.first);
        self.first = Some(first);
        asked
    }
}

impl LaneCell {
    pub(super) fn new(
        lane: LocalLane,
        group: Group,
        metrics: Arc<EndpointMetrics>,
        clock: Clock,
    ) -> Self {
        let state = State {
            lane,
            waiting: HashMap::new(),
            driver: None,
        };
        Self {
            group,
            metrics,
            clock,
            state: Mutex::new(state),
            earlier: Notify::new(),
        }
    }

    /// May this request go? Returns when it may, when it is shed, or never if dropped: then it has
    /// left the queue and nothing of it remains.
    ///
    /// # Errors
    /// [`Shed`]: it was refused, at once or when its patience was over.
    pub async fn admit(self: &Arc<Self>, ask: Ask) -> Result<Permit, Shed> {
        self.turn(ask).admit().await
    }

    /// The same for a request that may come back.
    pub fn turn(self: &Arc<Self>, ask: Ask) -> Turn<'_> {
        Turn {
            lane: self,
            ask,
            first: None,
        }
    }

    /// Whether asking now would be in vain: for whoever is to be told before it sends what is large.
    ///
    /// # Errors
    /// [`Shed`]: it would be shed at once.
    pub fn foresee(&self, ask: Ask) -> Result<(), Shed> {
        let mut state = self.state.lock();
        let now = self.clock.now();
        state.lane.foresee(&ask.waiter(now), now)
    }

    fn ask(self: &Arc<Self>, ask: Ask, before: Option<First>) -> (Asked, First) {
        let mut news = News::default();
        let mut state = self.state.lock();
        let at = self.clock.read();
        let now = self.clock.at(at);
        let mut first = before.unwrap_or(First {
            arrival: 0,
            deadline: now + ask.patience,
        });
        let waiter = Waiter {
            deadline: first.deadline,
            ..ask.waiter(now)
        };
        let verdict = match before {
            None => state.lane.ask(waiter, now),
            Some(first) => state.lane.rejoin(waiter, first.arrival, now),
        };
        let asked = match verdict {
            Verdict::Admit { slot, shadow } => {
                if let Some(shed) = shadow {
                    self.metrics.shadowed(self.group, shed.into());
                }
                let permit = Permit::new(self.clone(), slot, Duration::ZERO);
                Asked::Answered(Ok(permit), at)
            }
            Verdict::Shed(shed) => Asked::Answered(Err(shed), at),
            Verdict::Wait { waiter, evicted } => {
                if let Some((victim, shed)) = evicted
                    && let Some(waiting) = state.waiting.remove(&victim)
                {
                    news.0.push((waiting.told, Err(shed)));
                }
                first.arrival = waiter.arrival();
                let (told, news) = oneshot::channel();
                let waiting = Waiting {
                    asked: now,
                    held: ask.held,
                    told,
                };
                state.waiting.insert(waiter, waiting);
                Asked::Waits(Wait {
                    lane: self.clone(),
                    waiter,
                    news,
                    over: false,
                })
            }
        };
        if !state.waiting.is_empty() {
            self.settle(&mut state, now, &mut news);
        }
        drop(state);
        news.tell();
        (asked, first)
    }

    /// Lets everybody go whose turn has come, and sees to it that the next turn is not missed.
    fn settle(self: &Arc<Self>, state: &mut State, now: Timestamp, news: &mut News) {
        let wake = self.poll(state, now, news);
        match (wake, state.driver) {
            (Some(wake), None) => {
                state.driver = Some(wake);
                tokio::spawn(drive(self.clone()));
            }
            (Some(wake), Some(driver)) if wake < driver => self.earlier.notify_one(),
            _ => {}
        }
    }

    fn poll(
        self: &Arc<Self>,
        state: &mut State,
        now: Timestamp,
        news: &mut News,
    ) -> Option<Timestamp> {
        let State { lane, waiting, .. } = state;
        lane.poll(now, |settled| {
            let (waiter, slot) = match settled {
                Settled::Admitted(waiter, slot) => (waiter, Ok(slot)),
                Settled::Shed(waiter, shed) => (waiter, Err(shed)),
            };
            if let Some(Waiting { asked, told, .. }) = waiting.remove(&waiter) {
                let permit = |slot| Permit::new(self.clone(), slot, now.since(asked));
                news.0.push((told, slot.map(permit)));
            }
        })
    }

    /// Something came back or is better known: whoever can go now goes now.
    fn event<R>(self: &Arc<Self>, event: impl FnOnce(&mut LocalLane, Timestamp) -> R) -> R {
        self.event_of(None, event)
    }

    /// The same of what happened `at` a moment just read from the clock. The core takes none that is
    /// older than another before it.
    fn event_of<R>(
        self: &Arc<Self>,
        at: Option<Instant>,
        event: impl FnOnce(&mut LocalLane, Timestamp) -> R,
    ) -> R {
        let mut state = self.state.lock();
        let now = self.clock.at(at.unwrap_or_else(|| self.clock.read()));
        let result = event(&mut state.lane, now);
        if state.waiting.is_empty() {
            return result;
        }
        let mut news = News::default();
        self.settle(&mut state, now, &mut news);
        drop(state);
        news.tell();
        result
    }

    fn leave(self: &Arc<Self>, waiter: WaiterId) {
        let mut state = self.state.lock();
        // Not there: its fate is decided and on its way.
        if state.waiting.remove(&waiter).is_some() {
            let now = self.clock.now();
            state.lane.leave(waiter, now);
        }
    }

    pub(super) fn sent(self: &Arc<Self>, slot: &mut Slot, last_byte: Instant) {
        let last_byte = self.clock.at(last_byte);
        self.event(|lane, now| lane.sent(slot, last_byte, now));
    }

    pub(super) fn answered(self: &Arc<Self>, slot: &mut Slot) {
        self.event(|lane, now| lane.answered(slot, now));
    }

    pub(super) fn throttled(
        self: &Arc<Self>,
        slot: &mut Slot,
        retry_after: Option<Duration>,
    ) -> Cause {
        let cause = self.event(|lane, now| lane.throttled(slot, retry_after, now));
        self.metrics.throttled(self.group, cause);
        cause
    }

    pub(super) fn unsent(self: &Arc<Self>, slot: Slot) {
        self.event(|lane, now| lane.unsent(slot, now));
    }

    pub(super) fn give_back(self: &Arc<Self>, slot: Slot, end: End) {
        self.event(|lane, now| lane.give_back(slot, end, now));
    }

    /// The same of an exchange that was answered and complete at once, `at` a moment after its last byte
    /// was read. Returns what is left of the rate, if there is one.
    pub(super) fn ended(self: &Arc<Self>, slot: Slot, at: Instant) -> Option<Budget> {
        self.event_of(Some(at), |lane, now| lane.ended(slot, now))
    }

    /// Other limits: its past and those who wait stay.
    pub(super) fn retune(self: &Arc<Self>, policy: &GroupPolicy) {
        let GroupPolicy {
            quota, queue, mode, ..
        } = policy;
        self.event(|lane, now| lane.retune(*quota, *queue, *mode, now));
    }

    /// Nothing goes for so long; who waits, waits on. `false`: this lane holds nobody up, by its mode.
    pub fn hold(self: &Arc<Self>, span: Duration) -> bool {
        self.event(|lane, now| lane.hold(now + span, now))
    }

    /// It is let go again. `false`: it was not held.
    pub fn release(self: &Arc<Self>) -> bool {
        self.event(LocalLane::release)
    }

    /// Whether it could be forgotten without anybody noticing.
    pub(super) fn is_idle(&self) -> bool {
        let mut state = self.state.lock();
        let now = self.clock.now();
        state.waiting.is_empty() && state.lane.is_idle(now)
    }

    /// Whether nothing it let out can matter any more, whatever it has learnt.
    pub(super) fn is_spent_free(&self) -> bool {
        let mut state = self.state.lock();
        let now = self.clock.now();
        state.waiting.is_empty() && state.lane.is_spent_free(now)
    }

    /// As it stands now.
    pub fn view(&self) -> LaneView {
        let mut state = self.state.lock();
        let now = self.clock.now();
        let snapshot = state.lane.snapshot(now);
        let waiting = state.waiting.values();
        let queued = waiting.fold(Queued::default(), |sum, waiting| Queued {
            bytes: sum.bytes + waiting.held,
            oldest: sum.oldest.max(now.since(waiting.asked)),
        });
        LaneView {
            snapshot,
            flows: state.lane.flows().collect(),
            queued,
        }
    }

    /// What is left of its rate. `None`: it has none, or does not enforce it.
    pub fn budget(&self) -> Option<Budget> {
        let mut state = self.state.lock();
        let now = self.clock.now();
        state.lane.budget(now)
    }

    /// The group whose limit this is.
    pub fn group(&self) -> Group {
        self.group
    }

    /// The handles its requests are counted by.
    pub fn metrics(&self) -> &Arc<EndpointMetrics> {
        &self.metrics
    }

    /// What the next process has to know of it.
    pub(super) fn remember(&self) -> Memory {
        let mut state = self.state.lock();
        let now = self.clock.now();
        state.lane.remember(now)
    }
}

/// Wakes the lane at the times it names, for as long as somebody waits.
async fn drive(lane: Arc<LaneCell>) {
    loop {
        let mut news = News::default();
        let wake = {
            let mut state = lane.state.lock();
            let now = lane.clock.now();
            let wake = lane.poll(&mut state, now, &mut news);
            state.driver = wake;
            wake
        };
        news.tell();
        let Some(wake) = wake else { return };
        tokio::select! {
            () = sleep_until(lane.clock.instant(wake)) => {}
            () = lane.earlier.notified() => {}
        }
    }
}

/// A place in the queue, given up when dropped.
pub struct Wait {
    lane: Arc<LaneCell>,
    waiter: WaiterId,
    news: oneshot::Receiver<Fate>,
    over: bool,
}

impl Future for Wait {
    type Output = Fate;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let news = std::task::ready!(std::pin::Pin::new(&mut self.news).poll(cx));
        self.over = true;
        // The sender lives in the lane until it has told: it cannot be gone before.
        let lost = Shed::WaitExpired {
            retry_after: Duration::from_secs(1),
        };
        std::task::Poll::Ready(news.unwrap_or(Err(lost)))
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if !self.over {
            self.lane.leave(self.waiter);
        }
    }
}
