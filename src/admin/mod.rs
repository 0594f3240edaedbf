//! The operator's door: metrics, health, and every lane as it stands. Read-only, its own listener.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::admission::{Admission, Listed};
use crate::limit::quota::Mode;
use crate::metrics::Metrics;

/// Longer than any scraper or probe takes for a request's head.
const HEADER: Duration = Duration::from_secs(10);

pub struct Admin {
    pub metrics: Metrics,
    pub admission: Admission,
    /// `true` once the process no longer takes requests.
    pub closing: watch::Receiver<bool>,
}

impl Admin {
    /// Serves until the process ends.
    ///
    /// # Errors
    /// The socket cannot be used by this runtime.
    pub async fn serve(self, listener: std::net::TcpListener) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let admin = Arc::new(self);
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "an admin connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let admin = admin.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |request: Request<Incoming>| {
                    let response = admin.answer(request.method(), request.uri().path());
                    async move { Ok::<_, Infallible>(response) }
                });
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(HEADER);
                if let Err(error) = http.serve_connection(TokioIo::new(stream), answer).await {
                    tracing::debug!(%error, "an admin connection ended badly");
                }
            });
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "read-only: GET\n");
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/metrics" => self.metrics_page(),
            "/livez" | "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if *self.closing.borrow() => {
                text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
            }
            "/readyz" => text(StatusCode::OK, "ready\n"),
            "/lanes" => json_page(&self.lanes()),
            _ => text(
                StatusCode::NOT_FOUND,
                "there are /metrics /livez /readyz /lanes\n",
            ),
        }
    }

    fn metrics_page(&self) -> Response<Full<Bytes>> {
        self.admission.show();
        match self.metrics.page() {
            Ok(page) => page_of(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                page,
            ),
            Err(error) => {
                tracing::error!(%error, "the metrics page could not be written");
                text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the metrics page could not be written\n",
                )
            }
        }
    }

    fn lanes(&self) -> Value {
        let mut lanes = self.admission.list();
        lanes.sort_by(|a, b| {
            let key = |lane: &Listed| (lane.account.0, lane.endpoint.clone(), lane.lane.group());
            key(a).cmp(&key(b))
        });
        lanes.iter().map(lane).collect()
    }
}

/// One lane, with the names of `interface`: flows are named by a hash, never by a credential.
fn lane(listed: &Listed) -> Value {
    let view = listed.lane.view();
    let snapshot = view.snapshot;
    let bounded = |limit: u32| (limit != u32::MAX).then_some(limit);
    let flows: Map<String, Value> = view
        .flows
        .iter()
        .map(|(flow, waiting)| (format!("{:016x}", flow.0), json!(waiting)))
        .collect();
    json!({
        "account": listed.account.0.to_string(),
        "endpoint": listed.endpoint.as_deref().unwrap_or("*"),
        "group": listed.lane.group().name(),
        "window": {
            "limit": snapshot.quota.rate.map(|rate| rate.requests()),
            "effective_limit": bounded(snapshot.effective.requests),
            "used": snapshot.window_used,
            "burst": bounded(snapshot.effective.burst),
            "next_free_ms": millis(snapshot.next_free),
        },
        "permits": {
            "limit": bounded(snapshot.effective.concurrency),
            "in_use": snapshot.permits_in_use,
        },
        "waiting": { "total": snapshot.waiting, "flows": flows },
        "paused_ms": millis(snapshot.paused),
        "mode": match snapshot.mode {
            Mode::Enforce => "enforce",
            Mode::Shadow => "shadow",
            Mode::Disabled => "disabled",
        },
    })
}

/// Rounded up, so that nothing is said to be over that is not.
fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn json_page(value: &Value) -> Response<Full<Bytes>> {
    page_of(
        StatusCode::OK,
        "application/json",
        value.to_string().into_bytes(),
    )
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    page_of(status, "text/plain; charset=utf-8", text.into())
}

fn page_of(status: StatusCode, kind: &'static str, page: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(page));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
