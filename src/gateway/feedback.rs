//! What came back: the upstream's answer, or none; what it tells the lane; and whether the request
//! may be sent again.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use tokio::time::{Instant, timeout};

use crate::gateway::ahead::{self, Ahead, FREE};
use crate::gateway::body::Answer;
use crate::gateway::exchange::Exchange;
use crate::gateway::payload::Held;
use crate::gateway::upstream::{TooSlow, UpstreamError};
use crate::limit::local::Budget;

/// What is to be done about what came back.
pub enum Judged {
    Answer(Response<Answer>),
    /// It was not done: the request may be sent again. If it cannot, this is the answer.
    Again(Response<Answer>),
}

/// Most answers are small and come in one piece with their head, a moment before `at`: then the lane
/// hears of the head and of the end in one event, and says what is left of its rate, if it has one.
///
/// # Errors
/// The head: there is more to be done about this one.
pub fn with_its_head(
    response: Response<()>,
    exchange: &mut Option<Exchange>,
    at: Instant,
    ahead: &Ahead,
) -> Result<(Response<Answer>, Option<Budget>), Response<()>> {
    let status = response.status();
    let bytes = exchange.as_mut().and_then(|exchange| {
        let length = exchange.size_hint().exact()?;
        let is_small = length <= FREE.min(ahead.buffer);
        let length = usize::try_from(length).ok().filter(|_| is_small)?;
        (status != StatusCode::TOO_MANY_REQUESTS).then(|| exchange.at_hand(length))?
    });
    let whole = bytes.and_then(|bytes| Some((bytes, exchange.take()?)));
    let Some((bytes, exchange)) = whole else {
        return Err(response);
    };
    let left = exchange.ended(status, at);
    Ok((response.map(|()| Answer::whole(bytes)), left))
}

/// Tells the lane what came back, and passes it on. The permit comes back with the body's last
/// byte: as far as it can be read ahead whatever the client's speed. `repeats`: the request can be
/// sent again (semantics, section 7).
///
/// # Errors
/// [`UpstreamError`]: there is no answer, or it broke off before anything was passed on.
pub async fn judge(
    response: Response<()>,
    exchange: Box<Exchange>,
    ahead: &Ahead,
    repeats: bool,
) -> Result<Judged, UpstreamError> {
    let answer = pass(response, exchange, ahead).await?;
    Ok(match repeats && is_refusal(&answer) {
        true => Judged::Again(answer),
        false => Judged::Answer(answer),
    })
}

/// A 429 that is small enough to be kept until it is known whether there is another try.
fn is_refusal(answer: &Response<Answer>) -> bool {
    let small = match answer.body() {
        Answer::Held(bytes) => bytes.as_ref().map_or(0, Bytes::len) as u64 <= FREE,
        Answer::Passing(_) => false,
    };
    answer.status() == StatusCode::TOO_MANY_REQUESTS && small
}

async fn pass(
    response: Response<()>,
    mut exchange: Box<Exchange>,
    ahead: &Ahead,
) -> Result<Response<Answer>, UpstreamError> {
    let status = response.status();
    if status == StatusCode::TOO_MANY_REQUESTS {
        exchange.throttled(retry_after(response.headers()));
    } else {
        exchange.answered(status);
    }
    let (mut head, ()) = response.into_parts();
    let length = exchange.size_hint().exact();
    let body = match begin(&mut exchange, length, ahead).await? {
        Begun::Whole(bytes) => {
            exchange.complete();
            if length.is_none() {
                head.headers.insert(CONTENT_LENGTH, bytes.len().into());
            }
            Answer::whole(bytes)
        }
        Begun::Partly(bytes) => Answer::Passing(go_on(exchange, bytes, ahead)),
    };
    Ok(Response::from_parts(head, body))
}

/// As much of an answer as is read before anything of it is passed on.
enum Begun {
    Whole(Bytes),
    Partly(Bytes),
}

async fn begin(
    exchange: &mut Exchange,
    length: Option<u64>,
    ahead: &Ahead,
) -> Result<Begun, UpstreamError> {
    let Some(length) = length else {
        return at_once(exchange).await;
    };
    let mut held = Held::default();
    let fits = length <= FREE || held.grow(length, ahead.total, &ahead.budget);
    let length = match usize::try_from(length) {
        Ok(bytes) if length <= ahead.buffer && fits => bytes,
        _ => return Ok(Begun::Partly(Bytes::new())),
    };
    let bytes = match exchange.at_hand(length) {
        Some(bytes) => bytes,
        // In a box: most are small, and have no use for the room it takes.
        None => Box::pin(timeout(ahead.idle, exchange.whole(length)))
            .await
            .map_err(|_| TooSlow::Body(ahead.idle))??,
    };
    Ok(Begun::Whole(match held.bytes() {
        0 => bytes,
        _ => Bytes::from_owner(Shared { bytes, _held: held }),
    }))
}

/// Bytes with their share of the budget: it goes back when the client's connection lets go of them.
struct Shared {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What is there already of an answer without a length: small ones come in one piece with their
/// head, and for a longer one nobody is kept waiting.
async fn at_once(exchange: &mut Exchange) -> Result<Begun, UpstreamError> {
    let mut read = Vec::new();
    let mut bytes = 0;
    while bytes as u64 <= FREE {
        let next = poll_fn(|cx| match Pin::new(&mut *exchange).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Some(frame)),
            Poll::Pending => Poll::Ready(None),
        });
        let chunk = match next.await {
            None => break,
            Some(None) => return Ok(Begun::Whole(joined(read))),
            Some(Some(frame)) => frame?.into_data().unwrap_or_default(),
        };
        bytes += chunk.len();
        read.push(chunk);
    }
    Ok(Begun::Partly(joined(read)))
}

fn joined(mut parts: Vec<Bytes>) -> Bytes {
    match parts.len() {
        0 | 1 => parts.pop().unwrap_or_default(),
        _ => parts.concat().into(),
    }
}

/// Reads on beside the client, in a task of its own: it must not wait for the client to ask.
fn go_on(exchange: Box<Exchange>, begun: Bytes, ahead: &Ahead) -> ahead::Passing {
    let (passing, reading, ending) = ahead::read(exchange, begun, ahead.clone());
    tokio::spawn(async move {
        let (exchange, ended) = reading.await;
        // The permit first: whoever sees the end can count on it.
        match ended {
            Ok(()) => exchange.complete(),
            Err(_) => drop(exchange),
        }
        ending.with(ended);
    });
    passing
}

/// How long to stay away: whole seconds or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(RETRY_AFTER).iter();
    let text = values.filter_map(|value| value.to_str().ok());
    text.map(str::trim).find_map(|text| {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            // Longer than anybody counts is longer than anybody obeys.
            return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
        }
        let date = httpdate::parse_http_date(text).ok()?;
        Some(date.duration_since(wall_clock()).unwrap_or_default())
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "a date is of the wall clock, and bounded before it is obeyed"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use http::header::HeaderValue;

    use super::*;

    fn fields(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let said = |value: &str| retry_after(&fields(&[("retry-after", value)]));
        assert_eq!(said("7"), Some(Duration::from_secs(7)));
        assert_eq!(said(" 0 "), Some(Duration::ZERO));
        let longest = Some(Duration::from_secs(u64::MAX));
        assert_eq!(said("99999999999999999999999"), longest);
        for nothing in ["", "soon", "1.5", "-1", "+1", "1s", "Mon, 32 Foo"] {
            assert_eq!(said(nothing), None, "{nothing}");
        }
        let ahead = httpdate::fmt_http_date(wall_clock() + Duration::from_secs(20));
        let said_ahead = said(&ahead).unwrap();
        assert!(said_ahead <= Duration::from_secs(20), "{said_ahead:?}");
        assert!(said_ahead > Duration::from_secs(10), "{said_ahead:?}");
        assert_eq!(said("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let twice = fields(&[("retry-after", "x"), ("retry-after", "3")]);
        assert_eq!(retry_after(&twice), Some(Duration::from_secs(3)));
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
