//! What became of a request: gathered on its way, told once at its end, to the metrics, the access
//! log and, in the answer's own fields, the client.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use http::header::{HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue};
use http::{Method, Response, StatusCode, Uri, request};
use tokio::time::Instant;

use crate::access_log::entry::{Entry, Id};
use crate::admission::lane::LaneCell;
use crate::config::Config;
use crate::config::process::Answers;
use crate::gateway::answer::{Lane, Rejection};
use crate::gateway::body::Answer;
use crate::gateway::classify::PREFIX;
use crate::gateway::desk::{Desk, View};
use crate::gateway::head::Noted;
use crate::gateway::limit_fields;
use crate::gateway::named::Named;
use crate::gateway::request_id::X_REQUEST_ID;
use crate::gateway::shelf::Boxed;
use crate::gateway::trace;
use crate::limit::local::Budget;
use crate::metrics::endpoint::EndpointMetrics;
use crate::metrics::times::Times;
use crate::operation::{Group, Operation};
use crate::otlp::{Ended, Span, Stage};
use crate::outcome::Outcome;
use crate::text::{self, Millis, Short, Sink, number};

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// By what a request is found in logs, here and upstream.
#[derive(Debug)]
pub struct Names {
    pub request_id: Named,
    pub trace: Named,
}

/// One request's record. Dropped, it is closed: without an answer the client is gone.
pub struct Record {
    view: Arc<View>,
    started: Instant,
    client: Option<IpAddr>,
    method: Method,
    target: Uri,
    names: Names,
    span: Option<Span>,
    /// Of requests that went well, one in so many has its line.
    log_sample: u64,
    operation: Option<Operation>,
    /// Bytes of its endpoint's id.
    endpoint: usize,
    lane: Option<Arc<LaneCell>>,
    received: u64,
    body_read: Option<Instant>,
    /// The clock as it was last read, for what follows at once.
    last: Instant,
    tries: u32,
    queued: Option<Duration>,
    upstream: Option<Duration>,
    overhead: Option<Duration>,
    /// What is left of its lane's rate, if the lane has said so.
    left: Option<Option<Budget>>,
    answered: Option<(Outcome, u16)>,
    complete: bool,
    sent: u64,
    /// All of this has been told.
    closed: bool,
}

impl Record {
    pub(super) fn begin(
        desk: &Desk,
        view: &Arc<View>,
        head: &request::Parts,
        noted: &Noted<'_>,
        client: Option<IpAddr>,
    ) -> Boxed<Self> {
        let started = now();
        let trace = desk.traces.of(noted);
        let Config { log, tracing, .. } = &*view.live.config;
        // In a box from the start: it goes on with the answer's body and is never moved.
        Boxed::with(|| Self {
            view: view.clone(),
            span: desk
                .shared
                .spans
                .begin(trace.as_bytes(), tracing.sample, started, wall_clock),
            log_sample: log.sample,
            started,
            client,
            method: head.method.clone(),
            target: head.uri.clone(),
            names: Names {
                request_id: desk.request_ids.of(noted.request_id),
                trace,
            },
            operation: None,
            endpoint: 0,
            lane: None,
            received: 0,
            body_read: None,
            last: started,
            tries: 0,
            queued: None,
            upstream: None,
            overhead: None,
            left: None,
            answered: None,
            complete: false,
            sent: 0,
            closed: false,
        })
    }

    /// It is forwarded if it may be.
    pub fn classified(&mut self, operation: Operation, endpoint: &str) {
        self.operation = Some(operation);
        self.endpoint = endpoint.len();
    }

    /// The lane that says whether it may go.
    pub fn decided_by(&mut self, lane: &Arc<LaneCell>) {
        self.lane = Some(lane.clone());
    }

    /// Its body is here, or `held` bytes of it. `came`: it has one, which was waited for.
    pub fn received(&mut self, held: u64, came: bool) {
        self.received = held;
        if came {
            self.last = now();
        }
        self.body_read = Some(self.last);
    }

    /// Its lane has answered at once, as the clock stood `at`: it did not wait.
    pub fn is_decided(&mut self, at: Instant) {
        self.last = at;
        self.queued.get_or_insert_default();
        if let Some(span) = &mut self.span {
            span.passed(Stage::Queue, at, at);
        }
    }

    /// It waits for its turn from here on.
    pub fn waits(&mut self) -> Waits<'_> {
        Waits {
            since: now(),
            last: &mut self.last,
            sum: self.queued.get_or_insert_default(),
            span: self.span.as_mut(),
            stage: Stage::Queue,
        }
    }

    /// It is tried, once more perhaps: where it is recorded, the upstream is told of each try.
    pub fn tries(&mut self) {
        self.tries += 1;
        if let Some(span) = &mut self.span {
            self.names.trace = Named::Given(span.tries());
        }
    }

    /// It goes upstream since its turn came. And what it is called there.
    pub fn goes(&mut self) -> (Waits<'_>, &Names) {
        let waits = Waits {
            since: self.last,
            last: &mut self.last,
            sum: self.upstream.get_or_insert_default(),
            span: self.span.as_mut(),
            stage: Stage::Upstream,
        };
        (waits, &self.names)
    }

    /// The clock as it was last read: when its turn came, or the upstream has answered.
    pub fn last(&self) -> Instant {
        self.last
    }

    /// The upstream has answered with this status.
    pub fn upstream_answered(&mut self, status: u16) {
        if let Some(span) = &mut self.span {
            span.answered(status);
        }
        self.count(|metrics| metrics.answered(self.operation(), status));
    }

    /// What its lane has said is left of its rate, if it has one.
    pub fn leaves(&mut self, left: Option<Budget>) {
        self.left = Some(left);
    }

    /// Bytes of its answer went out.
    pub fn went_out(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// All of its answer went out.
    pub fn completes(&mut self) {
        self.complete = true;
    }

    fn operation(&self) -> Operation {
        self.operation.unwrap_or(Operation::Other)
    }

    fn count(&self, count: impl FnOnce(&EndpointMetrics)) {
        match &self.lane {
            Some(lane) => count(lane.metrics()),
            None => count(&self.view.shared.metrics.other()),
        }
    }

    /// The second segment of the path, where that is an endpoint's id.
    fn endpoint(&self) -> Option<&str> {
        self.operation?;
        let rest = self.target.path().get(PREFIX.len()..)?;
        rest.get(..self.endpoint)
    }

    /// The answer to a request that nobody upstream has answered.
    pub fn refusal(&self, rejection: &Rejection) -> Response<Answer> {
        // Nobody is there to read one.
        if matches!(rejection, Rejection::ClientGone) {
            let mut none = Response::new(Answer::Held(None));
            *none.status_mut() = StatusCode::REQUEST_TIMEOUT;
            return none;
        }
        let lane = self.lane.as_deref().zip(self.endpoint());
        let lane = lane.map(|(lane, endpoint)| Lane { lane, endpoint });
        let mut response = rejection.answer(Some(self.names.request_id.as_str()), lane);
        let headers = response.headers_mut();
        headers.insert(X_REQUEST_ID, self.names.request_id.field());
        response
    }

    /// Finishes the answer: its fields say who spoke, what it took and what is left. `outcome`: how its
    /// request has ended.
    pub fn finish(&mut self, response: &mut Response<Answer>, outcome: Outcome, answers: &Answers) {
        if outcome == Outcome::Forwarded {
            let said = received(response.status());
            // Room for what is said here, and for a `Connection`, at once.
            response.headers_mut().reserve(5);
            append(response.headers_mut(), PROXY_STATUS, said);
        }
        if let Some(lane) = &self.lane {
            let left = match answers.rate_limit_headers {
                true => self.left.unwrap_or_else(|| lane.budget()),
                false => None,
            };
            self.tell_client(response.headers_mut(), lane.group(), left);
        }
        self.overhead = self.body_read.map(|read| {
            let known = self.queued.unwrap_or_default() + self.upstream.unwrap_or_default();
            now().saturating_duration_since(read).saturating_sub(known)
        });
        self.answered = Some((outcome, response.status().as_u16()));
        self.count(|metrics| metrics.ended(self.operation(), outcome));
    }

    /// Whether its line is one of those that are not written (`log.sample`): of what went well only
    /// some are.
    fn is_left_out(&self, outcome: Outcome, status: Option<u16>) -> bool {
        let well = outcome == Outcome::Forwarded && self.complete && status < Some(400);
        let counted = || self.view.shared.went_well.fetch_add(1, Ordering::Relaxed);
        well && self.log_sample > 1 && !counted().is_multiple_of(self.log_sample)
    }

    fn tell(&self, span: Span, outcome: Outcome, status: Option<u16>, took: Duration) {
        let target = &self.view.live.config.upstream.target;
        span.end(&Ended {
            operation: self.operation(),
            endpoint: self.endpoint(),
            request_id: self.names.request_id.as_str(),
            method: self.method.as_str(),
            path: self.target.path(),
            client: self.client,
            upstream: (&target.host, target.port),
            outcome,
            status,
            complete: self.complete,
            tries: self.tries,
            took,
        });
    }

    /// `Server-Timing`, milliseconds in the queue and upstream, and what is `left` of the lane's rate.
    fn tell_client(&self, headers: &mut HeaderMap, group: Group, left: Option<Budget>) {
        // One after the other in the same memory.
        let mut said = Short::<{ 96 + limit_fields::LONGEST }>::new();
        said.put(b"queue;dur=");
        Millis(self.queued.unwrap_or_default()).put(&mut said);
        if let Some(upstream) = self.upstream {
            said.put(b", upstream;dur=");
            Millis(upstream).put(&mut said);
        }
        let timing = said.as_bytes().len();
        if let Some(budget) = &left {
            limit_fields::left(group, budget, &mut said);
        }
        let mut left_field = text::shared(said.as_bytes());
        let timing = left_field.split_to(timing);
        append(
            headers,
            SERVER_TIMING,
            HeaderValue::from_maybe_shared(timing),
        );
        if let Some(budget) = left
            && let Ok(left) = HeaderValue::from_maybe_shared(left_field)
        {
            limit_fields::add(headers, group, budget.rate, left);
        }
    }
}

/// `Proxy-Status` of what the upstream has answered; most often it is the same.
fn received(status: StatusCode) -> Result<HeaderValue, InvalidHeaderValue> {
    if status == StatusCode::OK {
        return Ok(HeaderValue::from_static("podgate; received-status=200"));
    }
    let mut said = Short::<32>::new();
    said.put(b"podgate; received-status=");
    number(status.as_u16(), &mut said);
    HeaderValue::from_bytes(said.as_bytes())
}

fn append(
    headers: &mut HeaderMap,
    name: HeaderName,
    value: Result<HeaderValue, InvalidHeaderValue>,
) {
    if let Ok(value) = value {
        headers.append(name, value);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.closed {
            self.close();
        }
    }
}

impl Record {
    /// Tells what became of it, as of now: to be called once. Returns when that was.
    pub fn close(&mut self) -> Instant {
        self.closed = true;
        let operation = self.operation();
        let (outcome, status) = match self.answered {
            Some((outcome, status)) => (outcome, Some(status)),
            None => {
                // Dropped on the way: by a panic, or because the client is gone.
                let outcome = match std::thread::panicking() {
                    true => Outcome::Internal,
                    false => Outcome::ClientGone,
                };
                self.count(|metrics| metrics.ended(operation, outcome));
                (outcome, None)
            }
        };
        let ended = now();
        let times = Times {
            total: ended.saturating_duration_since(self.started),
            queued: self.queued,
            upstream: self.upstream,
            overhead: self.overhead,
        };
        self.view.shared.metrics.took(operation, outcome, &times);
        if let Some(span) = self.span.take() {
            self.tell(span, outcome, status, times.total);
        }
        if !self.view.shared.access_log.is_on() || self.is_left_out(outcome, status) {
            return ended;
        }
        self.view.shared.access_log.write(&Entry {
            ended,
            wall_clock: &wall_clock,
            request_id: match &self.names.request_id {
                Named::Made(made) => Id::Made(made.as_bytes()),
                Named::Given(given) => Id::Given(given.as_bytes()),
            },
            trace_id: trace::id(&self.names.trace),
            client: self.client,
            method: self.method.as_str(),
            path: self.target.path(),
            operation: operation.name(),
            endpoint: self.endpoint(),
            status,
            outcome: outcome.name(),
            complete: self.complete,
            tries: self.tries,
            received: self.received,
            sent: self.sent,
            queued: times.queued.unwrap_or_default(),
            upstream: times.upstream.unwrap_or_default(),
            total: times.total,
        });
        ended
    }
}

/// A span under way, added to what it belongs to when it ends, also by being dropped.
pub struct Waits<'a> {
    since: Instant,
    last: &'a mut Instant,
    sum: &'a mut Duration,
    span: Option<&'a mut Span>,
    stage: Stage,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let until = now();
        *self.last = until;
        *self.sum += until.saturating_duration_since(self.since);
        if let Some(span) = &mut self.span {
            span.passed(self.stage, self.since, until);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "what a request takes is measured here, and nothing is decided by it"
)]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "for people to read")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
