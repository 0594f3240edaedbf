//! One job: its state machine (contract, section 2), and what `/status` says of it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::id::JobId;
use super::script::{Json, Script};

/// RUNNING is documented too and was never seen (contract, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    InQueue,
    InProgress,
    Completed,
    Failed,
    Cancelled,
    TimedOut,
}

impl State {
    pub const fn is_final(self) -> bool {
        !matches!(self, State::InQueue | State::InProgress)
    }
}

/// What a submission asks for, once its body is understood.
#[derive(Clone, Debug)]
pub struct Order {
    pub input: Json,
    pub script: Script,
    pub webhook: Option<Arc<str>>,
    /// Of running time.
    pub execution_timeout: Duration,
    /// From submission to deletion, whatever the state. It was the time in the queue in older
    /// documentation; here it is what the newest says (contract, section 8, point 17).
    pub ttl: Duration,
    /// By `/runsync`: kept shorter, may return more.
    pub sync: bool,
}

impl Order {
    /// 600 s (contract, section 1.2).
    pub const EXECUTION_TIMEOUT: Duration = Duration::from_secs(600);
    /// 24 h (contract, section 1.2).
    pub const TTL: Duration = Duration::from_secs(24 * 3600);
    /// 7 days (contract, section 1.2): the most of both; more is taken as that. Their documented least
    /// (5 s and 10 s) is not enforced: what the service does outside is unknown, and tests are short.
    pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

    /// An order for `input` with every other thing at its default.
    pub fn new(input: Json, sync: bool) -> Self {
        Self {
            script: Script::read(&input),
            input,
            webhook: None,
            execution_timeout: Self::EXECUTION_TIMEOUT,
            ttl: Self::TTL,
            sync,
        }
    }
}

/// A job in the store. Times are since the store's epoch.
#[derive(Debug)]
pub(super) struct Job {
    pub endpoint: usize,
    pub order: Order,
    pub state: State,
    /// Its place in the queue.
    pub ticket: u64,
    pub submitted: Duration,
    pub expires: Duration,
    pub started: Option<Duration>,
    pub ended: Option<Duration>,
    pub worker: Option<u32>,
    pub yielded: u32,
    pub drained: u32,
    pub output: Option<Json>,
    pub error: Option<Arc<str>>,
    pub retries: u32,
    /// When its one timer is set to.
    pub due: Option<Duration>,
}

impl Job {
    /// Requeued so often a job whose workers are lost is given up. The real number is unknown.
    const MOST_RETRIES: u32 = 2;

    pub fn new(endpoint: usize, order: Order, ticket: u64, now: Duration) -> Self {
        Self {
            endpoint,
            expires: now + order.ttl,
            order,
            state: State::InQueue,
            ticket,
            submitted: now,
            started: None,
            ended: None,
            worker: None,
            yielded: 0,
            drained: 0,
            output: None,
            error: None,
            retries: 0,
            due: None,
        }
    }

    /// What it keeps: its input, and an output that is not the same.
    pub fn bytes(&self) -> usize {
        let output = match &self.output {
            Some(output) if self.state.is_final() && !Arc::ptr_eq(output, &self.order.input) => {
                output.get().len()
            }
            _ => 0,
        };
        self.order.input.get().len() + output
    }

    pub fn start(&mut self, worker: u32, now: Duration) {
        self.state = State::InProgress;
        self.started = Some(now);
        self.worker = Some(worker);
        self.output = self.order.script.progress.clone();
    }

    /// Back to the queue, as new but for its age and name.
    pub fn requeue(&mut self, ticket: u64) {
        self.state = State::InQueue;
        self.ticket = ticket;
        self.started = None;
        self.ended = None;
        self.worker = None;
        self.yielded = 0;
        self.drained = 0;
        self.output = None;
        self.error = None;
    }

    pub fn end(&mut self, state: State, now: Duration) {
        self.state = state;
        self.ended = Some(now);
        self.output = None;
        match state {
            State::Completed => self.output = self.result(),
            State::Failed if self.error.is_none() => self.error = self.order.script.fail.clone(),
            _ => {}
        }
    }

    /// An output above the payload limit is dropped and the job is COMPLETED without one (contract,
    /// section 2). The input `{}` is given back like any other; the real service drops it on the way to
    /// the worker (section 1.2), and a user's first try would hang.
    fn result(&self) -> Option<Json> {
        let most = if self.order.sync { 20 << 20 } else { 10 << 20 };
        let Some(bytes) = self.order.script.bytes else {
            return Some(Arc::clone(&self.order.input));
        };
        if bytes > most {
            return None;
        }
        let text = format!("\"{}\"", "x".repeat(bytes.saturating_sub(2)));
        RawValue::from_string(text).ok().map(Arc::from)
    }

    /// What the running job does at `now`.
    pub fn step(&mut self, now: Duration) -> Step {
        let elapsed = now.saturating_sub(self.started.unwrap_or(now));
        let script = &self.order.script;
        if self.retries < script.lost {
            if elapsed < script.sleep {
                return self.run_out(elapsed);
            }
            return if self.retries < Self::MOST_RETRIES {
                Step::Lost
            } else {
                Step::End(State::TimedOut)
            };
        }
        let yielded = script.yielded(elapsed);
        if elapsed >= script.duration() {
            self.yielded = yielded;
            let failed = script.fail.is_some();
            return Step::End(if failed {
                State::Failed
            } else {
                State::Completed
            });
        }
        if yielded > self.yielded {
            self.yielded = yielded;
            return Step::Yielded;
        }
        self.run_out(elapsed)
    }

    /// FAILED, in every report seen; the docs suggest TIMED_OUT (contract, section 2). The real
    /// service enforces some seconds late, this one at once.
    fn run_out(&mut self, elapsed: Duration) -> Step {
        if elapsed < self.order.execution_timeout {
            return Step::Nothing;
        }
        self.error = Some(Arc::from("executionTimeout exceeded"));
        Step::End(State::Failed)
    }

    /// When something happens to it by itself.
    pub fn next_due(&self, retention: Duration) -> Duration {
        let next = match (self.state, self.started, self.ended) {
            (State::InProgress, Some(started), _) => {
                let script = &self.order.script;
                let step = if self.retries < script.lost {
                    script.sleep
                } else {
                    script.next_step(self.yielded)
                };
                started + step.min(self.order.execution_timeout)
            }
            (_, _, Some(ended)) => ended.saturating_add(retention),
            _ => self.expires,
        };
        next.min(self.expires)
    }

    pub fn view(&self, id: JobId) -> View {
        View {
            delay_time: self.started.map(|at| millis(at, self.submitted)),
            error: self.error.clone(),
            execution_time: self
                .ended
                .and_then(|ended| Some(millis(ended, self.started?))),
            id,
            output: self.output.clone(),
            retries: self.retries,
            status: self.state,
            worker_id: self.worker.map(WorkerName),
        }
    }
}

pub(super) enum Step {
    Nothing,
    Yielded,
    /// Its worker is gone.
    Lost,
    End(State),
}

fn millis(later: Duration, earlier: Duration) -> u64 {
    let millis = later.saturating_sub(earlier).as_millis();
    u64::try_from(millis).unwrap_or(u64::MAX)
}

/// The answer of `/status` (contract, section 1.4).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// In the queue, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Arc<str>>,
    /// Running, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_time: Option<u64>,
    pub id: JobId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Json>,
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: u32,
    pub status: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<WorkerName>,
}

fn is_zero(retries: &u32) -> bool {
    *retries == 0
}

/// The name of an endpoint's k-th worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerName(u32);

impl Serialize for WorkerName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("emulated{}", self.0))
    }
}

/// What a webhook is told: the object `/status` gives, plus `input` and `webhook` (contract,
/// section 1.12).
#[derive(Clone, Debug, Serialize)]
pub struct Notice {
    #[serde(flatten)]
    pub view: View,
    pub input: Json,
    pub webhook: Arc<str>,
}
