//! Answers: the service's bodies, and the body type that keeps a place in flight until it is sent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Sleep;

/// An answer before it is put on the wire.
pub(super) struct Answer {
    status: StatusCode,
    content_type: &'static str,
    content: Content,
    allow: Option<&'static str>,
    retry_after: Option<HeaderValue>,
}

impl Answer {
    fn new(status: StatusCode, content_type: &'static str, content: Content) -> Self {
        Self {
            status,
            content_type,
            content,
            allow: None,
            retry_after: None,
        }
    }

    /// 200, always: any other success breaks a client (contract, section 1.2).
    pub fn json(value: &impl Serialize) -> Self {
        // Room for most answers.
        let mut body = Vec::with_capacity(384);
        match serde_json::to_writer(&mut body, value) {
            Ok(()) => {
                let content = Content::Whole(body.into());
                Self::new(StatusCode::OK, "application/json", content)
            }
            Err(fault) => Self::problem(StatusCode::INTERNAL_SERVER_ERROR, &fault.to_string()),
        }
    }

    /// The service's problem object, `status` a number (contract, section 1.13). Its media type is
    /// unknown; this is the registered one.
    pub fn problem(status: StatusCode, detail: &str) -> Self {
        #[derive(Serialize)]
        struct Problem<'a> {
            status: u16,
            title: &'a str,
            detail: &'a str,
        }
        let problem = Problem {
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or("Unknown"),
            detail,
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        Self::new(
            status,
            "application/problem+json",
            Content::Whole(body.into()),
        )
    }

    /// Any JSON with any status.
    pub fn other(status: StatusCode, value: &impl Serialize) -> Self {
        Self {
            status,
            ..Self::json(value)
        }
    }

    /// Server-sent events, as they come.
    pub fn events(events: mpsc::Receiver<Bytes>) -> Self {
        Self::new(StatusCode::OK, "text/event-stream", Content::Stream(events))
    }

    pub fn allow(self, methods: &'static str) -> Self {
        Self {
            allow: Some(methods),
            ..self
        }
    }

    pub fn retry_after(self, value: Option<HeaderValue>) -> Self {
        Self {
            retry_after: value,
            ..self
        }
    }

    /// On the wire; `keep` lives until the body has been handed over, or cannot be.
    pub fn response<K>(self, keep: K, trouble: Option<Trouble>) -> Response<Reply<K>> {
        let declared = trouble.as_ref().and_then(|trouble| match &self.content {
            Content::Whole(whole) => Some(whole.len() as u64 + trouble.extra_length()),
            Content::Stream(_) => None,
        });
        let mut response = Response::new(Reply {
            content: Some(self.content),
            trouble,
            _keep: keep,
        });
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if let Some(length) = declared {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(retry_after) = self.retry_after {
            headers.insert(RETRY_AFTER, retry_after);
        }
        response
    }
}

enum Content {
    Whole(Bytes),
    Stream(mpsc::Receiver<Bytes>),
}

/// What goes wrong in the middle of a body.
pub(super) struct Trouble {
    kind: TroubleKind,
    /// Lets what was sent get away before the connection goes.
    pause: Option<Pin<Box<Sleep>>>,
}

enum TroubleKind {
    /// Half of it is sent, then the connection is reset.
    Reset(Arc<AtomicBool>),
    /// Half of it is sent, and nothing more comes.
    Stall,
    /// All of it is sent, and so many bytes more were promised.
    Short(u64),
}

impl Trouble {
    /// Long enough on any machine that is not stuck.
    const PAUSE: Duration = Duration::from_millis(50);

    pub fn reset(flag: Arc<AtomicBool>) -> Self {
        TroubleKind::Reset(flag).into()
    }

    pub fn stall() -> Self {
        TroubleKind::Stall.into()
    }

    pub fn short(missing: u64) -> Self {
        TroubleKind::Short(missing).into()
    }

    fn extra_length(&self) -> u64 {
        match self.kind {
            TroubleKind::Short(missing) => missing,
            _ => 0,
        }
    }

    fn sent(&self, whole: &Bytes) -> Bytes {
        match self.kind {
            TroubleKind::Short(_) => whole.clone(),
            _ => whole.slice(..whole.len() / 2),
        }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<Reset>> {
        let pause = self
            .pause
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(Self::PAUSE)));
        ready!(pause.as_mut().poll(cx));
        match &self.kind {
            TroubleKind::Stall => Poll::Pending,
            TroubleKind::Short(_) => Poll::Ready(None),
            TroubleKind::Reset(flag) => {
                flag.store(true, Ordering::Relaxed);
                Poll::Ready(Some(Reset))
            }
        }
    }
}

impl From<TroubleKind> for Trouble {
    fn from(kind: TroubleKind) -> Self {
        Self { kind, pause: None }
    }
}

/// The exchange is to end in a reset.
#[derive(Debug)]
pub(super) struct Reset;

impl std::fmt::Display for Reset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("reset on request")
    }
}

impl std::error::Error for Reset {}

/// A response body that keeps `K` until it is over.
pub(super) struct Reply<K> {
    content: Option<Content>,
    trouble: Option<Trouble>,
    _keep: K,
}

impl<K: Unpin> Body for Reply<K> {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let part = match self.content.take() {
            Some(Content::Whole(whole)) => match &self.trouble {
                Some(trouble) => trouble.sent(&whole),
                None => whole,
            },
            Some(Content::Stream(mut events)) => match events.poll_recv(cx) {
                Poll::Ready(Some(event)) => {
                    // In trouble, one event is the half.
                    if self.trouble.is_none() {
                        self.content = Some(Content::Stream(events));
                    }
                    event
                }
                Poll::Ready(None) => Bytes::new(),
                Poll::Pending => {
                    self.content = Some(Content::Stream(events));
                    return Poll::Pending;
                }
            },
            None => return self.end(cx),
        };
        if part.is_empty() {
            return self.end(cx);
        }
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_none() && self.trouble.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            // In trouble the header has said it.
            _ if self.trouble.is_some() => SizeHint::default(),
            Some(Content::Whole(whole)) => SizeHint::with_exact(whole.len() as u64),
            Some(Content::Stream(_)) => SizeHint::default(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl<K: Unpin> Reply<K> {
    fn end(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        match &mut self.trouble {
            None => Poll::Ready(None),
            Some(trouble) => trouble.poll_end(cx).map(|reset| reset.map(Err)),
        }
    }
}
