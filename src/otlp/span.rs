//! One request's span: what it gathers on its way, and what is made of it at its end. Attributes go
//! by OpenTelemetry's conventions for HTTP where there is one, else they begin with `podgate.`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::time::Instant;

use super::export::Queue;
use super::{Ended, Stage};
use crate::outcome::Outcome;

/// Waits and tries that are told of one request: an upstream that refuses for long makes many.
const PARTS: usize = 64;
/// Of a path no more is told: strangers choose it.
const PATH: usize = 256;
const SAMPLED: u8 = 1;
/// Says that the trace's id was drawn at random: as true behind podgate as before it.
const RANDOM: u8 = 2;

/// A span under way. Dropped without [`Span::end`] it is not told.
pub struct Span(Box<Inner>);

struct Inner {
    queue: Arc<Queue>,
    trace: TraceId,
    flags: TraceFlags,
    /// [`SpanId::INVALID`]: nobody above it is recorded.
    parent: SpanId,
    own: SpanId,
    started: Instant,
    /// The same, on the wall.
    at: SystemTime,
    parts: Vec<Part>,
    /// The try under way.
    trying: Option<SpanId>,
}

struct Part {
    stage: Stage,
    id: SpanId,
    since: Duration,
    until: Duration,
    status: Option<u16>,
}

/// What a sound `traceparent` says.
pub(super) struct Given {
    trace: TraceId,
    span: SpanId,
    flags: u8,
}

impl Given {
    pub fn read(field: &[u8]) -> Option<Self> {
        let field = std::str::from_utf8(field).ok()?;
        Some(Self {
            trace: TraceId::from_hex(field.get(3..35)?).ok()?,
            span: SpanId::from_hex(field.get(36..52)?).ok()?,
            flags: u8::from_str_radix(field.get(53..55)?, 16).ok()?,
        })
    }

    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

impl Span {
    pub(super) fn new(queue: Arc<Queue>, given: &Given, started: Instant, at: SystemTime) -> Self {
        let parent = match given.is_sampled() {
            true => given.span,
            // Nobody recorded it: the collector would look for it in vain.
            false => SpanId::INVALID,
        };
        Self(Box::new(Inner {
            trace: given.trace,
            flags: TraceFlags::new(SAMPLED | given.flags & RANDOM),
            parent,
            own: queue.id(),
            queue,
            started,
            at,
            parts: Vec::new(),
            trying: None,
        }))
    }

    /// It is tried, once more perhaps. The `traceparent` by which the upstream is told of the try.
    pub fn tries(&mut self) -> HeaderValue {
        let span = &mut *self.0;
        let id = span.queue.id();
        span.trying = Some(id);
        let field = format!("00-{}-{id}-{:02x}", span.trace, span.flags.to_u8());
        // Hexadecimal digits and dashes can stand in a field.
        HeaderValue::try_from(field).unwrap_or(HeaderValue::from_static(""))
    }

    /// A part of its way is over.
    pub fn passed(&mut self, stage: Stage, since: Instant, until: Instant) {
        let span = &mut *self.0;
        let id = match stage {
            Stage::Queue => None,
            Stage::Upstream => span.trying.take(),
        };
        if span.parts.len() < PARTS {
            span.parts.push(Part {
                stage,
                id: id.unwrap_or_else(|| span.queue.id()),
                since: since.saturating_duration_since(span.started),
                until: until.saturating_duration_since(span.started),
                status: None,
            });
        }
    }

    /// The status with which the upstream answered the last try.
    pub fn answered(&mut self, status: u16) {
        if let Some(part) = self.0.parts.last_mut()
            && part.stage == Stage::Upstream
        {
            part.status = Some(status);
        }
    }

    /// It is over: whoever exports it has it from here on, or it is counted.
    pub fn end(self, ended: &Ended<'_>) {
        let span = &*self.0;
        let mut tries = 0;
        let parts = span.parts.iter().map(|part| match part.stage {
            Stage::Queue => span.part(part, "queue", SpanKind::Internal),
            Stage::Upstream => {
                let mut told = span.part(part, "upstream", SpanKind::Client);
                told.attributes = of_try(part, tries, ended);
                let failed = has_failed(part, ended);
                if failed {
                    told.attributes.push(what_failed(part.status, ended));
                }
                told.status = of_status(failed);
                tries += 1;
                told
            }
        });
        let mut all: Vec<_> = parts.collect();
        let failed = is_failure(ended);
        let mut attributes = of_request(ended);
        if failed {
            let status = ended.status.filter(|_| ended.outcome == Outcome::Forwarded);
            attributes.push(what_failed(status, ended));
        }
        all.push(SpanData {
            parent_span_id: span.parent,
            parent_span_is_remote: span.parent != SpanId::INVALID,
            attributes,
            status: of_status(failed),
            ..span.data(
                span.own,
                ended.operation.name(),
                SpanKind::Server,
                (Duration::ZERO, ended.took),
            )
        });
        span.queue.push(all);
    }
}

impl Inner {
    fn part(&self, part: &Part, name: &'static str, kind: SpanKind) -> SpanData {
        self.data(part.id, name, kind, (part.since, part.until))
    }

    /// A span below the request's own.
    fn data(
        &self,
        id: SpanId,
        name: &'static str,
        span_kind: SpanKind,
        (since, until): (Duration, Duration),
    ) -> SpanData {
        let state = TraceState::NONE;
        SpanData {
            span_context: SpanContext::new(self.trace, id, self.flags, false, state),
            parent_span_id: self.own,
            parent_span_is_remote: false,
            span_kind,
            name: name.into(),
            start_time: self.at + since,
            end_time: self.at + until,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.queue.scope.clone(),
        }
    }
}

fn of_request(ended: &Ended<'_>) -> Vec<KeyValue> {
    let mut end = ended.path.len().min(PATH);
    while !ended.path.is_char_boundary(end) {
        end -= 1;
    }
    let mut attributes = vec![
        method(ended.method),
        KeyValue::new("url.path", ended.path[..end].to_owned()),
        KeyValue::new("podgate.outcome", ended.outcome.name()),
        KeyValue::new("podgate.tries", i64::from(ended.tries)),
        KeyValue::new("podgate.complete", ended.complete),
        KeyValue::new("podgate.request_id", ended.request_id.to_owned()),
    ];
    if let Some(endpoint) = ended.endpoint {
        let group = ended.operation.group().name();
        attributes.push(KeyValue::new("podgate.endpoint", endpoint.to_owned()));
        attributes.push(KeyValue::new("podgate.group", group));
    }
    attributes.extend(ended.status.map(status_code));
    let client = ended.client.map(|client| client.to_string());
    attributes.extend(client.map(|client| KeyValue::new("client.address", client)));
    attributes
}

fn of_try(part: &Part, before: i64, ended: &Ended<'_>) -> Vec<KeyValue> {
    let (host, port) = ended.upstream;
    let mut attributes = vec![
        method(ended.method),
        KeyValue::new("server.address", host.to_owned()),
        KeyValue::new("server.port", i64::from(port)),
    ];
    attributes.extend(part.status.map(status_code));
    if before > 0 {
        attributes.push(KeyValue::new("http.request.resend_count", before));
    }
    attributes
}

fn status_code(status: u16) -> KeyValue {
    KeyValue::new("http.response.status_code", i64::from(status))
}

/// One of those there are, or the word for any other: strangers may write what they like.
fn method(method: &str) -> KeyValue {
    const KNOWN: [&str; 9] = [
        "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE",
    ];
    let known = KNOWN.into_iter().find(|known| *known == method);
    KeyValue::new("http.request.method", known.unwrap_or("_OTHER"))
}

/// Whether it is a server's fault: of the upstream's, or of podgate's own doing.
fn is_failure(ended: &Ended<'_>) -> bool {
    ended
        .status
        .map_or(ended.outcome == Outcome::Internal, |status| status >= 500)
}

/// Whether a try came to nothing. One that was given up because its client left is nobody's failure.
fn has_failed(part: &Part, ended: &Ended<'_>) -> bool {
    let broke = ended.outcome != Outcome::ClientGone;
    part.status.map_or(broke, |status| status >= 400)
}

/// The upstream's status if it has said one, else how it ended.
fn what_failed(status: Option<u16>, ended: &Ended<'_>) -> KeyValue {
    let kind: Value = match status {
        Some(status) => status.to_string().into(),
        None => ended.outcome.name().into(),
    };
    KeyValue::new("error.type", kind)
}

fn of_status(failed: bool) -> Status {
    match failed {
        true => Status::error(""),
        false => Status::Unset,
    }
}
