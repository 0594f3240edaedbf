//! What came back: the upstream's answer, and what it tells the lane.

use std::time::Duration;

use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::gateway::body::{Answer, Streamed};
use crate::gateway::fields;
use crate::gateway::upstream::{Exchange, TooSlow, UpstreamError};

/// Passes an answer on. The permit comes back with the body's last byte: at once where all of it
/// can be held, whatever the client's speed.
///
/// # Errors
/// [`UpstreamError`]: the body broke off before anything was passed on.
pub async fn pass(
    response: Response<Incoming>,
    exchange: Exchange,
    held: u64,
    idle: Duration,
) -> Result<Response<Answer>, UpstreamError> {
    let (mut head, incoming) = response.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(UpstreamError::Broke("it switched protocols unasked".into()));
    }
    if head.status == StatusCode::TOO_MANY_REQUESTS {
        exchange.throttled(retry_after(&head.headers));
    } else {
        exchange.answered();
    }
    fields::towards_client(&mut head.headers);
    let length = incoming.size_hint().exact();
    if length.is_none_or(|length| length > held) {
        let body = Answer::Streamed(Box::new(Streamed::new(incoming, exchange, idle)));
        return Ok(Response::from_parts(head, body));
    }
    let bytes = collect(incoming, idle).await?;
    exchange.complete();
    if bytes.is_empty() {
        return Ok(Response::from_parts(head, Answer::Held(None)));
    }
    head.headers.insert(CONTENT_LENGTH, bytes.len().into());
    Ok(Response::from_parts(
        head,
        Answer::Held(Some(bytes.freeze())),
    ))
}

async fn collect(mut incoming: Incoming, idle: Duration) -> Result<BytesMut, UpstreamError> {
    let mut bytes = BytesMut::new();
    while !incoming.is_end_stream() {
        match timeout(idle, incoming.frame()).await {
            Err(_) => return Err(TooSlow::Body(idle).into()),
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(UpstreamError::Broke(error.to_string())),
            Ok(Some(Ok(frame))) => {
                if let Ok(chunk) = frame.into_data() {
                    bytes.extend_from_slice(&chunk);
                }
            }
        }
    }
    Ok(bytes)
}

/// `Retry-After` in seconds; a date is left to the throttle's own judgement.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}
