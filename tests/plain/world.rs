//! A lane driven event by event, and beside it plain lists of what really happened, in true time.
//! The lane's own state is read only to be compared with them.

use std::num::NonZeroU32;
use std::time::Duration;

use podgate::limit::fair_queue::{Waiter, WaiterId};
use podgate::limit::flow::FlowId;
use podgate::limit::ledger::{Call, Effective, End, Slot};
use podgate::limit::local::{LocalLane, Recalled, Settled, Verdict};
use podgate::limit::quota::{Mode, Quota, Rate, Timestamp};

use super::{Ask, Attempt, Event, Fate, MARGIN, START, W, Wait, Wire, hold, millis};

pub struct World {
    lane: LocalLane,
    pub now: Timestamp,
    /// How far the clock that the lane is told has been set back.
    behind: Duration,
    quota: Quota,
    mode: Mode,
    pub reloads: Vec<(Timestamp, Quota)>,
    pub waits: Vec<Wait>,
    pub attempts: Vec<Attempt>,
    waiting: Vec<(WaiterId, usize)>,
    /// Arrival numbers of the waits that had one, for those who come back.
    numbers: Vec<u64>,
    wake: Option<Timestamp>,
    /// `None`: nothing happens by itself.
    pub wire: Option<Wire>,
    /// The timer fires so much too late.
    pub late: Duration,
    /// By the lists: how long somebody waited who could have gone.
    pub could_have_gone: Duration,
    scheduled: Vec<(Timestamp, usize)>,
    /// While somebody waits, the lane is polled this often beyond the instants it asked for.
    pub grid: Option<Duration>,
}

impl World {
    pub fn new(quota: Quota, capacity: usize) -> Self {
        Self::with_lane(
            quota,
            LocalLane::new(quota, capacity, Mode::Enforce, 1, START),
        )
    }

    pub fn with_lane(quota: Quota, lane: LocalLane) -> Self {
        Self {
            lane,
            now: START,
            behind: Duration::ZERO,
            quota,
            mode: Mode::Enforce,
            reloads: vec![(START, quota)],
            waits: Vec::new(),
            attempts: Vec::new(),
            waiting: Vec::new(),
            numbers: Vec::new(),
            wake: None,
            wire: None,
            late: Duration::ZERO,
            could_have_gone: Duration::ZERO,
            scheduled: Vec::new(),
            grid: None,
        }
    }

    pub fn lane(&mut self) -> &mut LocalLane {
        &mut self.lane
    }

    /// By the lane's own clock.
    pub fn idle(&mut self) -> Duration {
        self.lane.snapshot(self.told()).idle
    }

    /// The limits the lane has learnt.
    pub fn effective(&mut self) -> Effective {
        self.lane.snapshot(self.told()).effective
    }

    /// What the lane is told the time is.
    fn told(&self) -> Timestamp {
        self.now.before(self.behind)
    }

    fn told_of(&self, instant: Timestamp) -> Timestamp {
        instant.before(self.behind)
    }

    /// One of the open attempts that are `wanted`.
    pub fn open(&self, pick: usize, wanted: impl Fn(&Attempt) -> bool) -> Option<usize> {
        let open: Vec<_> = (0..self.attempts.len())
            .filter(|&index| self.attempts[index].is_open() && wanted(&self.attempts[index]))
            .collect();
        (!open.is_empty()).then(|| open[pick % open.len()])
    }

    pub fn happen(&mut self, event: &Event) {
        match *event {
            Event::Ask {
                flow,
                call,
                patience,
            } => self.ask(flow, call, patience),
            Event::Sent(pick) => {
                if let Some(index) = self.open(pick, |attempt| attempt.last_byte.is_none()) {
                    self.sent(index, self.now);
                }
            }
            Event::Head(pick) => {
                if let Some(index) = self.open(pick, |attempt| attempt.head.is_none()) {
                    self.head(index);
                }
            }
            Event::Refused(pick, retry_after) => {
                if let Some(index) = self.open(pick, |attempt| attempt.head.is_none()) {
                    self.refused(index, retry_after);
                }
            }
            Event::End(pick) => {
                if let Some(index) = self.open(pick, |_| true) {
                    if self.attempts[index].head.is_none() {
                        self.head(index);
                    }
                    self.end(index, End::Complete);
                }
            }
            Event::Torn(pick, ago) => {
                if let Some(index) = self.open(pick, |_| true) {
                    let last_byte = self.now.before(ago).max(self.attempts[index].admitted);
                    if ago > Duration::ZERO {
                        self.sent(index, last_byte);
                    }
                    self.end(index, End::Torn);
                }
            }
            Event::Unsent(pick) => {
                if let Some(index) = self.open(pick, Attempt::is_untouched) {
                    self.unsent(index);
                }
            }
            Event::Again(pick) => {
                let over: Vec<_> = (0..self.attempts.len())
                    .filter(|&index| !self.attempts[index].is_open())
                    .collect();
                if !over.is_empty() {
                    self.again(over[pick % over.len()]);
                }
            }
            Event::Leave(pick) => {
                if !self.waiting.is_empty() {
                    self.leave(pick % self.waiting.len());
                }
            }
            Event::Pass(span) => self.pass_to(self.now + span),
            Event::Wake => {
                // Not to the end of somebody's endless patience.
                let wake = self.wake.map(|wake| wake + self.behind);
                if let Some(wake) = wake.filter(|wake| wake.since(self.now) < W * 4) {
                    self.pass_to(wake);
                }
            }
            Event::Tie(pick, nanos) => {
                let Some(rate) = self.quota.rate else { return };
                let to_come: Vec<_> = (self.attempts.iter())
                    .filter(|attempt| !attempt.unsent)
                    .filter_map(Attempt::latest_arrival)
                    .map(|bound| bound + hold(rate.period()))
                    .filter(|&free| free >= self.now)
                    .collect();
                if !to_come.is_empty() {
                    let nanos = to_come[pick % to_come.len()]
                        .as_nanos()
                        .saturating_add_signed(i64::from(nanos));
                    self.pass_to(Timestamp::from_nanos(nanos));
                }
            }
            Event::SetBack(span) => {
                self.behind += span;
                self.settle();
            }
            Event::Reload(quota, mode) => self.reload(quota, mode),
        }
    }

    pub fn ask(&mut self, flow: u64, call: Call, patience: Duration) {
        let wait = self.wait_begins(flow, call, self.now + patience, 0);
        let waiter = Waiter {
            flow: FlowId(flow),
            call,
            deadline: self.told_of(self.now + patience),
        };
        let foreseen = self.lane.foresee(&waiter, self.told()).err();
        let verdict = self.lane.ask(waiter, self.told());
        let shed = match &verdict {
            Verdict::Shed(shed) => Some(*shed),
            _ => None,
        };
        assert_eq!(foreseen, shed, "what is foreseen is what happens");
        self.answered(wait, verdict);
    }

    fn answered(&mut self, wait: usize, verdict: Verdict) {
        match verdict {
            Verdict::Admit { slot, .. } => self.admitted(wait, slot),
            Verdict::Wait { waiter, evicted } => {
                assert!(
                    self.waits[wait].deadline >= self.now,
                    "waits past its deadline"
                );
                self.numbers[wait] = waiter.arrival();
                self.waiting.push((waiter, wait));
                if let Some((victim, _)) = evicted {
                    let wait = self.no_longer_waits(victim);
                    self.wait_ends(wait, Fate::Evicted);
                }
            }
            Verdict::Shed(_) => self.wait_ends(wait, Fate::Shed),
        }
        self.settle();
    }

    fn wait_begins(&mut self, flow: u64, call: Call, deadline: Timestamp, number: u64) -> usize {
        self.waits.push(Wait {
            flow,
            call,
            deadline,
            began: self.now,
            ended: None,
        });
        self.numbers.push(number);
        self.waits.len() - 1
    }

    fn wait_ends(&mut self, wait: usize, fate: Fate) {
        let ended = &mut self.waits[wait].ended;
        assert_eq!(*ended, None, "a wait ends once");
        *ended = Some((self.now, fate));
    }

    fn no_longer_waits(&mut self, waiter: WaiterId) -> usize {
        let place = self.waiting.iter().position(|&(id, _)| id == waiter);
        self.waiting
            .remove(place.expect("who ends its wait waited"))
            .1
    }

    fn admitted(&mut self, wait: usize, slot: Slot) {
        self.wait_ends(wait, Fate::Admitted);
        let call = self.waits[wait].call;
        self.attempts.push(Attempt {
            request: wait,
            call,
            admitted: self.now,
            under: (self.mode == Mode::Enforce).then_some(self.quota),
            last_byte: None,
            head: None,
            over: None,
            unsent: false,
            gone: None,
            slot: Some(slot),
        });
        if self.mode == Mode::Enforce
            && let Some(concurrency) = self.quota.concurrency
        {
            let (most, held) = (concurrency.get(), self.quota.hold_limit(concurrency.get()));
            assert!(self.out(|_| true) <= most, "more than C in flight");
            if call == Call::Held {
                assert!(
                    self.out(|attempt| attempt.call == Call::Held) <= held,
                    "more held calls than their share"
                );
            }
        }
        self.leaves_by_wire(self.attempts.len() - 1);
    }

    /// With a wire, the rest of its way is set.
    fn leaves_by_wire(&mut self, index: usize) {
        let Some(wire) = &self.wire else { return };
        let (head, end) = wire(&self.waits[self.attempts[index].request]);
        self.scheduled.push((self.now + head, index));
        self.scheduled.push((self.now + head + end, index));
        let now = self.told();
        let attempt = &mut self.attempts[index];
        attempt.last_byte = Some(self.now);
        if let Some(slot) = &mut attempt.slot {
            self.lane.sent(slot, now, now);
        }
    }

    /// What the wire brings now.
    fn arrives_by_wire(&mut self) {
        while let Some(place) = self.scheduled.iter().position(|&(at, _)| at <= self.now) {
            let (_, index) = self.scheduled.remove(place);
            match self.attempts[index].head {
                None => self.head(index),
                Some(_) => self.end(index, End::Complete),
            }
        }
    }

    /// Exchanges the upstream may still count.
    pub fn out(&self, which: impl Fn(&Attempt) -> bool) -> u32 {
        let out = |attempt: &&Attempt| attempt.is_out(self.now) && which(attempt);
        self.attempts.iter().filter(out).count() as u32
    }

    fn slot(&mut self, index: usize) -> Slot {
        self.attempts[index].gone = Some(self.now);
        self.attempts[index].slot.take().expect("it is open")
    }

    pub fn sent(&mut self, index: usize, last_byte: Timestamp) {
        let (told, told_last) = (self.told(), self.told_of(last_byte));
        let attempt = &mut self.attempts[index];
        attempt.last_byte.get_or_insert(last_byte);
        if let Some(slot) = &mut attempt.slot {
            self.lane.sent(slot, told_last, told);
        }
        self.settle();
    }

    pub fn head(&mut self, index: usize) {
        let told = self.told();
        let attempt = &mut self.attempts[index];
        attempt.head = Some(self.now);
        if let Some(slot) = &mut attempt.slot {
            self.lane.answered(slot, told);
        }
        self.settle();
    }

    pub fn refused(&mut self, index: usize, retry_after: Option<Duration>) {
        let told = self.told();
        let attempt = &mut self.attempts[index];
        attempt.head = Some(self.now);
        if let Some(slot) = &mut attempt.slot {
            self.lane.throttled(slot, retry_after, told);
        }
        self.settle();
    }

    pub fn end(&mut self, index: usize, end: End) {
        let slot = self.slot(index);
        let attempt = &mut self.attempts[index];
        attempt.over = Some((self.now, end));
        attempt.last_byte.get_or_insert(self.now);
        self.lane.give_back(slot, end, self.told());
        self.settle();
    }

    pub fn unsent(&mut self, index: usize) {
        let slot = self.slot(index);
        self.attempts[index].unsent = true;
        self.lane.unsent(slot, self.told());
        self.settle();
    }

    /// The request of a finished attempt comes back.
    pub fn again(&mut self, index: usize) {
        let request = self.attempts[index].request;
        let (Wait { flow, call, .. }, number) = (self.waits[request], self.numbers[request]);
        let deadline = self.now + W * 3;
        let wait = self.wait_begins(flow, call, deadline, number);
        let waiter = Waiter {
            flow: FlowId(flow),
            call,
            deadline: self.told_of(deadline),
        };
        let verdict = self.lane.rejoin(waiter, number, self.told());
        self.answered(wait, verdict);
    }

    fn leave(&mut self, place: usize) {
        let (waiter, wait) = self.waiting.remove(place);
        self.wait_ends(wait, Fate::Left);
        self.lane.leave(waiter, self.told());
        // A stale number does no harm: its caller may be slow to hear.
        self.lane.leave(waiter, self.told());
        self.settle();
    }

    pub fn reload(&mut self, quota: Quota, mode: Mode) {
        (self.quota, self.mode) = (quota, mode);
        self.reloads.push((self.now, quota));
        self.lane.retune(quota, 100, mode, self.told());
        self.settle();
    }

    /// The process ends and another one takes over after `down`, which its clock says were `told`: it
    /// has been set back by the rest.
    pub fn restart(&mut self, quota: Quota, down: Duration, told: Duration) {
        for index in 0..self.attempts.len() {
            if self.attempts[index].is_open() {
                self.end(index, End::Torn);
            }
        }
        while !self.waiting.is_empty() {
            self.leave(0);
        }
        let memory = self.lane.remember(self.told());
        self.now = self.now + down;
        (self.quota, self.mode) = (quota, Mode::Enforce);
        self.reloads.push((self.now, quota));
        let recalled = Recalled {
            memory: &memory,
            elapsed: told,
        };
        self.behind += down - told;
        self.lane = LocalLane::recall(quota, 100, Mode::Enforce, 2, recalled, self.told());
        self.wake = None;
        self.settle();
    }

    /// To `until`, stopping wherever the lane asked to be polled, on the grid, and where the wire
    /// brings something.
    pub fn pass_to(&mut self, until: Timestamp) {
        loop {
            let wake = self.wake.map(|wake| wake + self.behind + self.late);
            let tick = self.grid.filter(|_| self.is_waiting()).map(|step| {
                let steps = self.now.since(START).as_nanos() / step.as_nanos() + 1;
                START + step * steps as u32
            });
            let wire = self.scheduled.iter().map(|&(at, _)| at).min();
            let next = [wake, tick].into_iter().flatten();
            let next = next.filter(|&next| next > self.now).chain(wire).min();
            let Some(next) = next.filter(|&next| next <= until) else {
                break;
            };
            self.advance_to(next);
            if wire.is_some_and(|wire| wire <= self.now) {
                self.arrives_by_wire();
            } else {
                self.settle();
            }
        }
        self.advance_to(until);
    }

    fn advance_to(&mut self, until: Timestamp) {
        if !self.late.is_zero() && self.is_waiting() {
            let first = self.next_change(|at| self.kept(at).is_some());
            let since = first.filter(|&first| first < until);
            self.could_have_gone += since.map_or(Duration::ZERO, |first| until.since(first));
        }
        self.now = self.now.max(until);
    }

    /// The first instant at which a slot or permit comes free by time alone and `wanted` holds.
    fn next_change(&self, wanted: impl Fn(Timestamp) -> bool) -> Option<Timestamp> {
        let window = self.quota.rate.map_or(W, Rate::period);
        let slots = (self.attempts.iter())
            .filter_map(Attempt::latest_arrival)
            .map(|bound| (bound + hold(window)).next());
        let permits = self.attempts.iter().filter_map(Attempt::leaves);
        let instants = slots.chain(permits).filter(|&instant| instant > self.now);
        instants.filter(|&at| wanted(at)).min()
    }

    /// One ask after the other, each so long after the one before.
    pub fn play(&mut self, asks: &[Ask]) {
        for ask in asks {
            self.pass_to(self.now + ask.gap);
            self.ask(ask.flow, ask.call, ask.patience);
        }
    }

    fn settle(&mut self) {
        let mut settled = Vec::new();
        self.wake = self.lane.poll(self.told(), |one| settled.push(one));
        // Who is told to look again at once would never stop looking.
        assert!(self.wake.is_none_or(|wake| wake > self.told()), "spins");
        for one in settled {
            match one {
                Settled::Admitted(waiter, slot) => {
                    let wait = self.no_longer_waits(waiter);
                    self.admitted(wait, slot);
                }
                Settled::Shed(waiter, _) => {
                    let wait = self.no_longer_waits(waiter);
                    if self.behind.is_zero() {
                        assert_eq!(self.now, self.waits[wait].deadline, "sheds before its time");
                    }
                    self.wait_ends(wait, Fate::Expired);
                }
            }
        }
        self.compare();
    }

    /// What the lane counts is what the lists say, as long as it is told the true time.
    fn compare(&mut self) {
        let snapshot = self.lane.snapshot(self.told());
        assert_eq!(snapshot.waiting, self.waiting.len());
        let out = self.out(|_| true);
        if self.behind.is_zero() {
            assert_eq!(snapshot.permits_in_use, out, "permits out");
        } else {
            assert!(snapshot.permits_in_use >= out, "permits out");
        }
        let late = |&(_, wait): &(WaiterId, usize)| self.waits[wait].deadline <= self.now;
        if self.behind.is_zero() {
            assert!(!self.waiting.iter().any(late), "waits past its deadline");
        }
    }

    /// Window slots taken at `at` by the rule, as far as is known now.
    fn slots_taken(&self, at: Timestamp) -> usize {
        let Some(rate) = self.quota.rate else {
            return 0;
        };
        let free = |bound: Timestamp| bound + hold(rate.period()) < at;
        let taken =
            |attempt: &&Attempt| !attempt.unsent && !attempt.latest_arrival().is_some_and(free);
        self.attempts.iter().filter(taken).count()
    }

    /// Who waits though window, permits and hold share let it go at `at`, if nothing happens until
    /// then. For lanes without a bucket that were never refused.
    fn kept(&self, at: Timestamp) -> Option<&Wait> {
        let limit = (self.quota.rate).map_or(usize::MAX, |rate| rate.requests() as usize);
        let most = self.quota.concurrency.map_or(u32::MAX, NonZeroU32::get);
        let out = |held: bool| {
            let counts = |a: &&Attempt| a.is_out(at) && (!held || a.call == Call::Held);
            self.attempts.iter().filter(counts).count() as u32
        };
        if self.slots_taken(at) >= limit || out(false) >= most {
            return None;
        }
        let share_is_left = out(true) < self.quota.hold_limit(most);
        let may_go = |wait: &&Wait| wait.call == Call::Short || share_is_left;
        let waits = |&(_, wait): &(WaiterId, usize)| &self.waits[wait];
        self.waiting.iter().map(waits).find(may_go)
    }

    /// Nobody waits who may go; and the lane asks to be polled before that changes by itself.
    pub fn assert_nobody_is_kept(&self) {
        assert!(
            self.kept(self.now).is_none(),
            "may go: {:?}",
            self.kept(self.now)
        );
        if self.waiting.is_empty() {
            return;
        }
        if let Some(first) = self.next_change(|at| self.kept(at).is_some()) {
            assert!(
                self.wake.is_some_and(|wake| wake <= first),
                "somebody may go at {first:?}, but it sleeps until {:?}",
                self.wake
            );
        }
    }

    pub fn wakes(&self) -> bool {
        self.wake.is_some()
    }

    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// When each attempt can have arrived, first to last.
    pub fn arrivals(&self) -> Vec<(Timestamp, Timestamp)> {
        self.moments(Attempt::latest_arrival)
    }

    pub fn completions(&self) -> Vec<(Timestamp, Timestamp)> {
        self.moments(Attempt::latest_completion)
    }

    fn moments(
        &self,
        latest: impl Fn(&Attempt) -> Option<Timestamp>,
    ) -> Vec<(Timestamp, Timestamp)> {
        let for_ever = Timestamp::from_nanos(u64::MAX);
        let sent = self.attempts.iter().filter(|attempt| !attempt.unsent);
        sent.map(|attempt| (attempt.admitted, latest(attempt).unwrap_or(for_ever)))
            .collect()
    }

    /// Everybody goes home: what is out ends, who waits leaves, and nothing is left behind.
    pub fn finish(&mut self) {
        while !self.waiting.is_empty() {
            self.leave(0);
        }
        while let Some(index) = self.open(0, |_| true) {
            self.end(index, End::Torn);
        }
        self.scheduled.clear();
        assert!(self.waits.iter().all(|wait| wait.ended.is_some()));
        self.pass_to(self.now + self.behind + MARGIN.max(Quota::SETTLE));
        assert_eq!(self.lane.snapshot(self.told()).permits_in_use, 0);
        let longest = self.quota.rate.map_or(W, Rate::period);
        self.pass_to(self.now + hold(longest) + millis(1));
        assert_eq!(self.lane.snapshot(self.told()).window_used, 0);
    }
}
