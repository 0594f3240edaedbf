//! What came back: the upstream's answer, or none; what it tells the lane; and whether the request
//! may be sent again.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING};
use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::gateway::ahead::{self, Ahead, FREE};
use crate::gateway::body::Answer;
use crate::gateway::fields;
use crate::gateway::payload::Held;
use crate::gateway::upstream::{Exchange, TooSlow, UpstreamError, describe};

/// What is to be done about what came back.
pub enum Judged {
    Answer(Response<Answer>),
    /// It was not done: the request may be sent again. If it cannot, this is the answer.
    Again(Response<Answer>),
}

/// Tells the lane what came back, and passes it on. The permit comes back with the body's last
/// byte: as far as it can be read ahead whatever the client's speed. `repeats`: the request can be
/// sent again (semantics, section 7).
///
/// # Errors
/// [`UpstreamError`]: there is no answer, or it broke off before anything was passed on.
pub async fn judge(
    (response, exchange): (Response<Incoming>, Exchange),
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
    response: Response<Incoming>,
    mut exchange: Exchange,
    ahead: &Ahead,
) -> Result<Response<Answer>, UpstreamError> {
    let (mut head, mut incoming) = response.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(UpstreamError::Broke("it switched protocols unasked".into()));
    }
    if head.status == StatusCode::TOO_MANY_REQUESTS {
        exchange.throttled(retry_after(&head.headers));
    } else {
        exchange.answered(head.status);
    }
    match framing(&head.headers) {
        Framing::Clear => {}
        Framing::Doubtful => exchange.is_last(),
        Framing::Unknown => {
            let what = "its answer has a transfer coding that nobody asked for";
            return Err(UpstreamError::Broke(what.into()));
        }
    }
    fields::towards_client(&mut head.headers);
    let declared = incoming.size_hint().exact();
    let body = match begin(&mut incoming, ahead).await? {
        Begun::Whole(bytes) => {
            exchange.complete();
            if !bytes.is_empty() {
                head.headers.insert(CONTENT_LENGTH, bytes.len().into());
            }
            Answer::Held(Some(bytes).filter(|bytes| !bytes.is_empty()))
        }
        Begun::Partly(bytes) => {
            if let Some(declared) = declared {
                // Once, though it may have been said twice.
                head.headers.insert(CONTENT_LENGTH, declared.into());
            }
            Answer::Passing(go_on(incoming, bytes, exchange, ahead))
        }
    };
    Ok(Response::from_parts(head, body))
}

/// What the fields say of where an answer ends.
enum Framing {
    Clear,
    /// Two lengths: the one that is gone by need not be what the upstream went by.
    Doubtful,
    /// What is left when the coding goes with its field is not what was sent.
    Unknown,
}

fn framing(headers: &HeaderMap) -> Framing {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    match (codings.next(), codings.next()) {
        (None, _) => Framing::Clear,
        (Some(coding), None) if is_chunked(coding) => match headers.get(CONTENT_LENGTH) {
            None => Framing::Clear,
            Some(_) => Framing::Doubtful,
        },
        _ => Framing::Unknown,
    }
}

/// As much of an answer as is read before anything of it is passed on.
enum Begun {
    Whole(Bytes),
    Partly(Bytes),
}

async fn begin(incoming: &mut Incoming, ahead: &Ahead) -> Result<Begun, UpstreamError> {
    let Some(length) = incoming.size_hint().exact() else {
        return at_once(incoming).await;
    };
    let mut held = Held::nothing(&ahead.budget);
    let fits = length <= FREE || held.grow(length, ahead.total);
    if length > ahead.buffer || !fits {
        return Ok(Begun::Partly(Bytes::new()));
    }
    let whole = timeout(ahead.idle, whole(incoming, length)).await;
    let bytes = whole.map_err(|_| TooSlow::Body(ahead.idle))??;
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

async fn whole(incoming: &mut Incoming, length: u64) -> Result<Bytes, UpstreamError> {
    let mut bytes = BytesMut::with_capacity(usize::try_from(length).unwrap_or_default());
    while !incoming.is_end_stream() {
        match incoming.frame().await {
            None => break,
            Some(Err(error)) => return Err(UpstreamError::Broke(describe(&error))),
            Some(Ok(frame)) => {
                if let Ok(chunk) = frame.into_data() {
                    bytes.extend_from_slice(&chunk);
                }
            }
        }
    }
    Ok(bytes.freeze())
}

/// What is there already of an answer without a length: small ones come in one piece with their
/// head, and for a longer one nobody is kept waiting.
async fn at_once(incoming: &mut Incoming) -> Result<Begun, UpstreamError> {
    let mut bytes = BytesMut::new();
    let mut turn = true;
    while bytes.len() as u64 <= FREE {
        let frame = poll_fn(|cx| match Pin::new(&mut *incoming).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Some(frame)),
            // The connection's own task has what follows, and its turn before ours comes again.
            Poll::Pending if std::mem::take(&mut turn) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Ready(None),
        });
        match frame.await {
            None => break,
            Some(None) => return Ok(Begun::Whole(bytes.freeze())),
            Some(Some(Err(error))) => return Err(UpstreamError::Broke(describe(&error))),
            Some(Some(Ok(frame))) => {
                if let Ok(chunk) = frame.into_data() {
                    bytes.extend_from_slice(&chunk);
                }
                turn = true;
            }
        }
    }
    Ok(Begun::Partly(bytes.freeze()))
}

/// Reads on beside the client, in a task of its own: it must not wait for the client to ask.
fn go_on(incoming: Incoming, begun: Bytes, exchange: Exchange, ahead: &Ahead) -> ahead::Passing {
    let (passing, reading, ending) = ahead::read(incoming, begun, ahead.clone());
    tokio::spawn(async move {
        let ended = reading.await;
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

    #[test]
    fn one_coding_that_is_chunked_is_clear_and_no_other() {
        let of = |all: &[(&'static str, &str)]| framing(&fields(all));
        assert!(matches!(of(&[]), Framing::Clear));
        assert!(matches!(of(&[("content-length", "3")]), Framing::Clear));
        let chunked = ("transfer-encoding", "Chunked");
        assert!(matches!(of(&[chunked]), Framing::Clear));
        let both = of(&[chunked, ("content-length", "3")]);
        assert!(matches!(both, Framing::Doubtful));
        for other in ["gzip, chunked", "gzip", "identity", "chunked, chunked", ""] {
            let of = of(&[("transfer-encoding", other)]);
            assert!(matches!(of, Framing::Unknown), "{other:?}");
        }
        assert!(matches!(of(&[chunked, chunked]), Framing::Unknown));
    }
}
