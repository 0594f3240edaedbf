//! What each operation does and answers (contract, section 1).
//!
//! An operation begins at once and cannot be taken back by a client that leaves; only the wait that may
//! follow is cut short.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::answer::Answer;
use super::id::JobId;
use super::job::{Order, State, View};
use super::jobs::Jobs;
use super::openai;
use super::routes::Operation;
use super::shared::{Endpoint, Shared};

/// `/requests` has no documented answer, so no documented length.
const MOST_LISTED: usize = 1000;

/// What came of beginning an operation.
pub(super) enum Begun {
    Done(Answer),
    /// To be answered when the job has ended, with the job as it is at `until`.
    Finish {
        job: JobId,
        until: Duration,
    },
    /// To be answered when there are chunks, or at `until` without.
    Chunks {
        job: JobId,
        until: Duration,
    },
    OpenAi(openai::Call),
}

pub(super) fn begin(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    operation: Operation,
    body: &Bytes,
) -> Begun {
    let id = endpoint.id;
    let until = |wait| shared.clock.now() + wait;
    let answer = match operation {
        Operation::Run => match submit(shared, endpoint, body, false) {
            Ok(job) => Answer::json(&Brief::new(job, State::InQueue)),
            Err(refusal) => refusal,
        },
        Operation::RunSync { wait } => match submit(shared, endpoint, body, true) {
            Ok(job) => {
                let until = until(wait);
                return Begun::Finish { job, until };
            }
            Err(refusal) => refusal,
        },
        Operation::Status { job, ttl } => about(job, |job| {
            let view = shared.jobs(|jobs, now| {
                if let Some(ttl) = ttl {
                    jobs.shorten(id, job, ttl, now);
                }
                jobs.status(id, job)
            })?;
            Some(Answer::json(&view))
        }),
        Operation::StatusSync { job, wait } => match job {
            Some(job) => {
                let until = until(wait);
                return Begun::Finish { job, until };
            }
            None => no_such_job(),
        },
        Operation::Stream { job, wait } => match job {
            Some(job) => {
                let until = until(wait);
                return Begun::Chunks { job, until };
            }
            None => no_such_job(),
        },
        Operation::Cancel(job) => about(job, |job| {
            let view = shared.jobs(|jobs, now| jobs.cancel(id, job, now))?;
            Some(Answer::json(&cancelled(view)))
        }),
        Operation::Retry(job) => about(job, |job| {
            let requeued = shared.jobs(|jobs, now| jobs.retry(id, job, now))?;
            Some(if requeued {
                Answer::json(&Brief::new(job, State::InQueue))
            } else {
                // What the service answers is unknown.
                bad_request("only FAILED and TIMED_OUT jobs can be retried")
            })
        }),
        Operation::PurgeQueue => Answer::json(&Purged {
            removed: shared.jobs(|jobs, _| jobs.purge(id)),
            status: "completed",
        }),
        Operation::Health => Answer::json(&shared.jobs(|jobs, _| jobs.health(id))),
        Operation::Requests => Answer::json(&Requests {
            requests: shared.jobs(|jobs, _| jobs.open(id, MOST_LISTED)),
        }),
        Operation::OpenAi(route) => return openai::begin(shared, endpoint, route, body),
    };
    Begun::Done(answer)
}

/// Waits as long as there is something to wait for.
pub(super) async fn finish(shared: &Arc<Shared>, endpoint: &Endpoint, begun: Begun) -> Answer {
    let id = endpoint.id;
    match begun {
        Begun::Done(answer) => answer,
        Begun::Finish { job, until } => {
            hold(shared, job, until, |jobs, over| {
                match jobs.status(id, job) {
                    None => Some(no_such_job()),
                    Some(view) if over || view.status.is_final() => Some(Answer::json(&view)),
                    Some(_) => None,
                }
            })
            .await
        }
        Begun::Chunks { job, until } => {
            hold(shared, job, until, |jobs, over| {
                let Some((status, chunks)) = jobs.drain(id, job) else {
                    return Some(no_such_job());
                };
                let due = over || status.is_final() || !chunks.is_empty();
                due.then(|| {
                    let stream = chunks.map(|output| Chunk { output }).collect();
                    Answer::json(&Chunks { status, stream })
                })
            })
            .await
        }
        Begun::OpenAi(call) => call.answer(shared, endpoint).await,
    }
}

/// Looks whenever the job changes, and for the last time at `until`.
async fn hold(
    shared: &Arc<Shared>,
    job: JobId,
    until: Duration,
    look: impl Fn(&mut Jobs, bool) -> Option<Answer>,
) -> Answer {
    loop {
        let changed = match shared.look(job, |jobs, now| look(jobs, now >= until)) {
            Ok(answer) => return answer,
            Err(changed) => changed,
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep_until(shared.clock.instant(until)) => {}
        }
    }
}

fn about(job: Option<JobId>, act: impl FnOnce(JobId) -> Option<Answer>) -> Answer {
    job.and_then(act).unwrap_or_else(no_such_job)
}

fn no_such_job() -> Answer {
    Answer::problem(StatusCode::NOT_FOUND, "job not found")
}

pub(super) fn bad_request(detail: &str) -> Answer {
    Answer::problem(StatusCode::BAD_REQUEST, &format!("bad request: {detail}"))
}

/// The answer of `/cancel`: no output, the rest as in `/status` (contract, section 1.7).
fn cancelled(view: View) -> View {
    View {
        output: None,
        worker_id: None,
        ..view
    }
}

#[derive(Serialize)]
struct Brief {
    id: JobId,
    status: State,
}

impl Brief {
    fn new(id: JobId, status: State) -> Self {
        Self { id, status }
    }
}

#[derive(Serialize)]
struct Purged {
    removed: u64,
    status: &'static str,
}

/// The answer of `/requests` is documented nowhere (contract, section 1.11): the plainest list.
#[derive(Serialize)]
struct Requests {
    requests: Vec<View>,
}

/// The docs show the inner array alone, four clients need the object (contract, section 1.6).
#[derive(Serialize)]
struct Chunks {
    status: State,
    /// Present even if empty: its absence crashes two SDKs (contract, section 1.6).
    stream: Vec<Chunk>,
}

#[derive(Serialize)]
struct Chunk {
    output: u32,
}

/// The body of a submission (contract, section 1.2); what is not named is for the worker.
#[derive(Deserialize)]
struct Submission {
    /// Anything, `null` included; its absence is a fault.
    input: Box<RawValue>,
    #[serde(default)]
    webhook: Option<Box<str>>,
    #[serde(default)]
    policy: Policy,
}

/// Milliseconds.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Policy {
    execution_timeout: Option<u64>,
    ttl: Option<u64>,
}

impl Submission {
    fn order(self, sync: bool) -> Order {
        let millis = |millis: Option<u64>, default| {
            millis
                .map_or(default, Duration::from_millis)
                .min(Order::LONGEST)
        };
        Order {
            webhook: self.webhook.map(Arc::from),
            execution_timeout: millis(self.policy.execution_timeout, Order::EXECUTION_TIMEOUT),
            ttl: millis(self.policy.ttl, Order::TTL),
            ..Order::new(Arc::from(self.input), sync)
        }
    }
}

fn submit(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    body: &Bytes,
    sync: bool,
) -> Result<JobId, Answer> {
    let submission: Submission =
        serde_json::from_slice(body).map_err(|fault| bad_request(&format!("body: {fault}")))?;
    let job = enqueue(shared, endpoint, submission.order(sync))?;
    shared.record_submission(endpoint, body);
    Ok(job)
}

/// The job can be seen at once. One client takes a 404 right after `/run` for "not yet" (contract, section
/// 8, point 23); nobody documents it, and a fault of `{"status": 404, "count": 1}` is the same.
pub(super) fn enqueue(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    order: Order,
) -> Result<JobId, Answer> {
    shared
        .jobs(|jobs, now| jobs.submit(endpoint.id, order, now))
        .map_err(|_full| {
            let detail = "the emulator holds as many open jobs as it can";
            Answer::problem(StatusCode::INTERNAL_SERVER_ERROR, detail)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(body: &str) -> (u64, u64) {
        let submission: Submission = serde_json::from_str(body).unwrap();
        let order = submission.order(false);
        (order.execution_timeout.as_secs(), order.ttl.as_secs())
    }

    #[test]
    fn a_policys_spans_have_their_defaults_and_are_a_week_at_most() {
        const WEEK: u64 = 7 * 86_400;
        assert_eq!(spans(r#"{"input":1}"#), (600, 86_400));
        assert_eq!(
            spans(r#"{"input":1,"policy":{"executionTimeout":5000,"ttl":10000}}"#),
            (5, 10)
        );
        let longer = r#"{"input":1,"policy":{"executionTimeout":604800001,"ttl":99999999999}}"#;
        assert_eq!(spans(longer), (WEEK, WEEK));
    }
}
