//! Traces for an OpenTelemetry collector, by OTLP/HTTP: one request is a span, each of its waits and
//! each of its tries another one below it.
//!
//! Behind the feature `otlp`. Without it there is a stand-in of which no span can be made, so that
//! what is asked of one costs nothing.
//!
//! The SDK makes spans and batches of them, but its batches are sent by a client of its own (reqwest,
//! and a TLS stack with it) or by an experimental path, and what it drops it does not count. So the
//! queue and the client are ours (`export`, `client`); what a span is and how it is written are the
//! SDK's and the exporter's.

#[cfg(feature = "otlp")]
mod client;
#[cfg(feature = "otlp")]
mod export;
#[cfg(feature = "otlp")]
mod span;
#[cfg(not(feature = "otlp"))]
mod off;

use std::net::IpAddr;
use std::time::Duration;

use crate::operation::Operation;
use crate::outcome::Outcome;

#[cfg(feature = "otlp")]
pub use export::Spans;
#[cfg(not(feature = "otlp"))]
pub use off::{Span, Spans};
#[cfg(feature = "otlp")]
pub use span::Span;

/// What of a request has a span of its own, below the request's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for its turn.
    Queue,
    /// A try: from the permit to the head of the upstream's answer.
    Upstream,
}

/// What became of a request.
pub struct Ended<'a> {
    pub operation: Operation,
    /// `None`: it belongs to no endpoint, and so to no group.
    pub endpoint: Option<&'a str>,
    pub request_id: &'a str,
    pub method: &'a str,
    /// Without the query, which may be secret.
    pub path: &'a str,
    pub client: Option<IpAddr>,
    /// The upstream's host and port.
    pub upstream: (&'a str, u16),
    pub outcome: Outcome,
    /// `None`: the client left before there was an answer.
    pub status: Option<u16>,
    /// Whether the answer went out whole.
    pub complete: bool,
    /// Times it was sent upstream.
    pub tries: u32,
    pub took: Duration,
}
