//! Answers podgate makes itself: every stage's error becomes one here, and nowhere else.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::admission::lane::LaneCell;
use crate::gateway::body::Answer;
use crate::gateway::classify::{METHODS, Unclassified};
use crate::gateway::head::BadHead;
use crate::gateway::payload::PayloadError;
use crate::gateway::upstream::UpstreamError;
use crate::limit::lane::Shed;
use crate::outcome::Outcome;

/// The draft's registered types (IETF httpapi rate limit headers, draft -10).
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";
const REDUCED_CAPACITY: &str =
    "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity";

/// Why a request was not answered by the upstream.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    #[error(transparent)]
    Head(#[from] BadHead),
    #[error(transparent)]
    Unclassified(#[from] Unclassified),
    #[error("requests of this kind are not forwarded here (`other: reject`)")]
    OtherRejected,
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error(transparent)]
    Shed(#[from] Shed),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("podgate is being stopped, and this request's turn did not come before")]
    Draining,
    #[error("the client has left")]
    ClientGone,
    #[error("podgate failed; its log says how")]
    Internal,
}

impl Rejection {
    pub fn outcome(&self) -> Outcome {
        match self {
            Rejection::Unclassified(Unclassified::NoRoute(_)) => Outcome::NoRoute,
            Rejection::Unclassified(Unclassified::Method { .. } | Unclassified::Unserved) => {
                Outcome::MethodNotAllowed
            }
            Rejection::Unclassified(_) | Rejection::Head(_) => Outcome::BadRequest,
            Rejection::OtherRejected => Outcome::NoRoute,
            Rejection::Payload(PayloadError::TooLarge { .. }) => Outcome::PayloadTooLarge,
            Rejection::Payload(PayloadError::TooSlow) => Outcome::ClientTimeout,
            Rejection::Payload(PayloadError::Malformed(_)) => Outcome::BadRequest,
            Rejection::Payload(PayloadError::ClientGone) => Outcome::ClientGone,
            Rejection::Shed(shed) => (*shed).into(),
            Rejection::Upstream(UpstreamError::Unreachable(_)) => Outcome::UpstreamUnreachable,
            Rejection::Upstream(UpstreamError::Broke(_)) => Outcome::UpstreamBroke,
            Rejection::Upstream(UpstreamError::TooSlow(_)) => Outcome::UpstreamTimeout,
            Rejection::Draining => Outcome::Draining,
            Rejection::ClientGone => Outcome::ClientGone,
            Rejection::Internal => Outcome::Internal,
        }
    }

    /// Whether its client cannot go on with this connection: it has left, or what it sends next may
    /// not be what it means.
    pub fn ends_the_connection(&self) -> bool {
        matches!(
            self,
            Rejection::Head(_)
                | Rejection::Unclassified(Unclassified::Unserved)
                | Rejection::Payload(
                    PayloadError::TooSlow | PayloadError::Malformed(_) | PayloadError::ClientGone
                )
                | Rejection::ClientGone
        )
    }

    fn status(&self) -> StatusCode {
        match self {
            Rejection::Head(bad) => return bad.status(),
            Rejection::Unclassified(Unclassified::TooLong) => return StatusCode::URI_TOO_LONG,
            _ => {}
        }
        match self.outcome() {
            Outcome::BadRequest => StatusCode::BAD_REQUEST,
            Outcome::NoRoute => StatusCode::NOT_FOUND,
            Outcome::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Outcome::Unauthorized => StatusCode::UNAUTHORIZED,
            Outcome::Forbidden => StatusCode::FORBIDDEN,
            Outcome::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Outcome::ClientTimeout | Outcome::ClientGone => StatusCode::REQUEST_TIMEOUT,
            Outcome::QueueFull
            | Outcome::OutOfReach
            | Outcome::WaitExpired
            | Outcome::Paused
            | Outcome::Quota => StatusCode::TOO_MANY_REQUESTS,
            Outcome::UpstreamUnreachable | Outcome::UpstreamBroke => StatusCode::BAD_GATEWAY,
            Outcome::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Outcome::Draining | Outcome::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Outcome::Forwarded | Outcome::Merged | Outcome::Cached | Outcome::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// When coming back is worth it, before it is spread.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Rejection::Shed(shed) => Some(shed.retry_after()),
            _ => None,
        }
    }

    /// What RFC 9209 calls it.
    fn error(&self) -> &'static str {
        if let Rejection::Head(BadHead::Loop) = self {
            return "proxy_loop_detected";
        }
        match self.outcome() {
            Outcome::UpstreamUnreachable => "destination_unavailable",
            Outcome::UpstreamBroke => "http_protocol_error",
            Outcome::UpstreamTimeout => "http_response_timeout",
            Outcome::Draining | Outcome::Overloaded => "connection_limit_reached",
            Outcome::Internal => "proxy_internal_error",
            Outcome::BadRequest | Outcome::ClientTimeout | Outcome::ClientGone => {
                "http_request_error"
            }
            _ => "http_request_denied",
        }
    }

    /// The answer, as the SDKs can read it: a problem object (RFC 9457) whose `status` is a number.
    /// `lane` is the one that decided, if it came so far.
    pub fn answer(&self, request_id: Option<&str>, lane: Option<Lane<'_>>) -> Response<Answer> {
        let status = self.status();
        let outcome = self.outcome().name();
        let mut problem = json!({
            "type": match status {
                StatusCode::TOO_MANY_REQUESTS => QUOTA_EXCEEDED,
                StatusCode::SERVICE_UNAVAILABLE => REDUCED_CAPACITY,
                _ => "about:blank",
            },
            "title": status.canonical_reason().unwrap_or("Error"),
            "status": status.as_u16(),
            "detail": self.to_string(),
            "outcome": outcome,
        });
        let wait = match self.retry_after() {
            None if status == StatusCode::SERVICE_UNAVAILABLE => Some(Duration::from_secs(1)),
            wait => wait,
        };
        let wait = wait.map(spread);
        if let Some(wait) = wait {
            problem["retry_after"] = wait.into();
        }
        if let Some(request_id) = request_id {
            problem["request_id"] = request_id.into();
        }
        if let (Rejection::Shed(_), Some(lane)) = (self, lane) {
            problem["violated-policies"] = json!([lane.lane.group().name()]);
            problem["lane"] = lane.figures();
        }
        let mut response = Response::new(Answer::Held(Some(Bytes::from(problem.to_string()))));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(wait) = wait {
            headers.insert(RETRY_AFTER, HeaderValue::from(wait));
        }
        let allow = match self {
            Rejection::Unclassified(Unclassified::Method { allow }) => Some(*allow),
            Rejection::Unclassified(Unclassified::Unserved) => Some(METHODS),
            _ => None,
        };
        if let Some(allow) = allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        let said = format!("podgate; error={}; details=\"{outcome}\"", self.error());
        if let Ok(said) = HeaderValue::try_from(said) {
            headers.insert(HeaderName::from_static("proxy-status"), said);
        }
        response
    }
}

/// The lane that refused, and whose it is.
#[derive(Clone, Copy)]
pub struct Lane<'a> {
    pub lane: &'a LaneCell,
    pub endpoint: &'a str,
}

impl Lane<'_> {
    fn figures(&self) -> Value {
        let snapshot = self.lane.view().snapshot;
        let rate = snapshot.quota.rate;
        let concurrency = snapshot.quota.concurrency;
        json!({
            "endpoint": self.endpoint,
            "group": self.lane.group().name(),
            "requests": rate.map(|rate| rate.requests()),
            "window_seconds": rate.map(|rate| rate.period().as_secs_f64()),
            "used": snapshot.window_used,
            "concurrency": concurrency,
            "in_use": snapshot.permits_in_use,
            "waiting": snapshot.waiting,
        })
    }
}

/// Whole seconds, rounded up, at least one (a fraction crashes a caller), and up to a quarter
/// later, so that callers refused together do not come back together.
fn spread(wait: Duration) -> u64 {
    // A fresh key each time is all the chance this needs.
    let chance = RandomState::new().hash_one(0u8) % 256;
    let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX / 512);
    let late = millis.saturating_add(millis.saturating_mul(chance) / 1024);
    late.div_ceil(1000).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_whole_seconds_never_early_and_spread() {
        assert_eq!(spread(Duration::ZERO), 1);
        let seen: std::collections::BTreeSet<_> = (0..200)
            .map(|_| spread(Duration::from_millis(7_500)))
            .collect();
        assert!(
            seen.iter().all(|&seconds| (8..=10).contains(&seconds)),
            "{seen:?}"
        );
        assert!(seen.len() > 1, "all come back together");
    }

    #[test]
    fn no_retry_after_on_a_413() {
        let rejection = Rejection::Payload(PayloadError::TooLarge { limit: 5 });
        let response = rejection.answer(None, None);
        assert_eq!(response.status(), 413);
        assert!(!response.headers().contains_key(RETRY_AFTER));
    }
}
