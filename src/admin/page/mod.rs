//! The live page: one document that needs nothing from anywhere else, and the stream it draws from.
//!
//! What the page may do is said by its own policy: only the script and the style that are part of
//! it run, by their hashes, and nothing is asked for but the stream.

pub mod events;
mod snapshot;

use std::sync::{Arc, LazyLock};

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{Method, Response, StatusCode};
use http_body_util::{Either, Full};
use ring::digest::{SHA256, digest};
use tokio::sync::watch;

use crate::admin::Current;
use crate::admin::page::events::{Events, Stream, Streams};
use crate::admin::page::snapshot::Source;
use crate::admission::Admission;
use crate::metrics::Metrics;

const MARKUP: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Where the style and the script go; the markup holds each once.
const STYLE_GOES: &str = "<style></style>";
const SCRIPT_GOES: &str = "<script type=\"module\"></script>";

/// Says where clients come in first.
pub type Listen = Arc<dyn Fn() -> String + Send + Sync>;

/// An answer of the admin port: at once, or as it happens.
pub type Body = Either<Full<Bytes>, Stream>;

/// The document and the policy that goes with it.
struct Document {
    html: Bytes,
    policy: Option<HeaderValue>,
}

static DOCUMENT: LazyLock<Document> = LazyLock::new(|| {
    let html = MARKUP
        .replacen(STYLE_GOES, &format!("<style>{STYLE}</style>"), 1)
        .replacen(
            SCRIPT_GOES,
            &format!("<script type=\"module\">{SCRIPT}</script>"),
            1,
        );
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        hash(SCRIPT),
        hash(STYLE)
    );
    Document {
        html: html.into(),
        policy: HeaderValue::try_from(policy).ok(),
    }
});

/// As a content security policy names what it allows.
fn hash(text: &str) -> String {
    let sum = digest(&SHA256, text.as_bytes());
    format!("sha256-{}", BASE64_STANDARD.encode(sum))
}

/// The page and its stream. Cheap to clone.
#[derive(Clone)]
pub struct Page {
    events: Arc<Events>,
}

impl Page {
    /// `listen` and `config`'s upstream are shown, so that who opens the page knows which podgate it is.
    pub fn new(
        metrics: Metrics,
        admission: Admission,
        closing: watch::Receiver<bool>,
        listen: Listen,
        config: Current,
    ) -> Self {
        let source = Source::new(metrics, admission, closing, listen, config);
        Self {
            events: Arc::new(Events::new(source)),
        }
    }

    /// Takes a snapshot a second for as long as somebody listens; never returns.
    pub async fn run(&self) {
        self.events.run().await;
    }

    /// The document.
    pub fn document(&self) -> Response<Body> {
        let mut response = Response::new(Either::Left(Full::from(DOCUMENT.html.clone())));
        let headers = response.headers_mut();
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        headers.insert(CONTENT_TYPE, html);
        // After an update the old script must not meet the new stream.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(policy) = &DOCUMENT.policy {
            headers.insert(CONTENT_SECURITY_POLICY, policy.clone());
        }
        headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        harden(&mut response);
        response
    }

    /// The stream of server-sent events: a snapshot at once, then one a second.
    /// `streams` is told for as long as it goes on.
    pub fn events(&self, method: &Method, streams: &Streams) -> Response<Body> {
        let mut response = if *method == Method::HEAD {
            Response::new(Either::Left(Full::default()))
        } else if let Some(stream) = self.events.listen(streams) {
            Response::new(Either::Right(stream))
        } else {
            return full();
        };
        let headers = response.headers_mut();
        let events = HeaderValue::from_static("text/event-stream");
        headers.insert(CONTENT_TYPE, events);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // Proxies that collect answers would make one lump of it.
        let unbuffered = HeaderName::from_static("x-accel-buffering");
        headers.insert(unbuffered, HeaderValue::from_static("no"));
        harden(&mut response);
        response
    }
}

/// As many listen as there may.
fn full() -> Response<Body> {
    let text = "as many pages are open as are served at once\n";
    let mut response = Response::new(Either::Left(Full::from(text)));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    harden(&mut response);
    response
}

fn harden(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    for name in ["cross-origin-opener-policy", "cross-origin-resource-policy"] {
        let name = HeaderName::from_static(name);
        headers.insert(name, HeaderValue::from_static("same-origin"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_holds_its_style_and_script_and_allows_only_them() {
        let html = std::str::from_utf8(&DOCUMENT.html).unwrap();
        assert!(html.contains(STYLE) && html.contains(SCRIPT));
        // Either would end the element early, and with it what the hash is of.
        assert!(!STYLE.contains("</style") && !SCRIPT.contains("</script"));
        assert!(!STYLE.contains('\r') && !SCRIPT.contains('\r'));
        assert!(DOCUMENT.policy.is_some());
        assert!(html.len() < 41 << 10, "{} bytes", html.len());
    }

    #[test]
    fn nothing_in_the_document_points_outside() {
        let html = std::str::from_utf8(&DOCUMENT.html).unwrap();
        // The name of a namespace, and a host for curl to name where a Unix socket is the way.
        let named = ["http://www.w3.org/2000/svg", "http://podgate"];
        let rest = named
            .iter()
            .fold(html.to_owned(), |html, name| html.replace(name, ""));
        for outside in [
            "http:", "https:", "\"//", "'//", "url(", "@import", "import(",
        ] {
            assert!(!rest.contains(outside), "{outside}");
        }
    }

    #[test]
    fn what_is_told_goes_into_the_page_as_text_only() {
        for way in [
            "HTML",
            "document.write",
            "eval(",
            "Function(",
            "createContextualFragment",
        ] {
            assert!(!SCRIPT.contains(way), "{way}");
        }
    }
}
