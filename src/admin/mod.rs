//! The operator's door: metrics, health, every lane as it stands, and the configuration; what an
//! operator may do, in [`control`]. Its own listener.
//!
//! Unless the configuration asks for a token it carries no credential check: what it says holds no
//! secret, and who may reach it is a matter of the address it listens on. Web pages may not
//! ([`host`]).

pub mod control;
pub mod health;
mod host;
mod token;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::admin::control::Command;
use crate::admission::{Admission, Listed};
use crate::config::Config;
use crate::levels::Levels;
use crate::limit::quota::Mode;
use crate::metrics::Metrics;
use crate::reload::Reloads;

/// Longer than any scraper or probe takes for a request's head.
const HEADER: Duration = Duration::from_secs(10);
/// For a whole connection, which carries one request: longer than a page takes on a slow way.
const LIFE: Duration = Duration::from_secs(30);
/// Connections at once. The oldest gives way to the next, so that whoever holds them all cannot
/// keep a probe out.
const MOST: usize = 64;

pub struct Admin {
    pub metrics: Metrics,
    pub admission: Admission,
    /// The configuration in effect.
    pub config: Box<dyn Fn() -> Arc<Config> + Send + Sync>,
    /// `true` once callers are to go elsewhere.
    pub leaving: watch::Receiver<bool>,
    pub reloads: Reloads,
    pub levels: Levels,
}

impl Admin {
    /// Serves until the process ends.
    ///
    /// # Errors
    /// The socket cannot be used by this runtime.
    pub async fn serve(self, listener: std::net::TcpListener) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let admin = Arc::new(self);
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "an admin connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            open.retain(|connection| !connection.is_finished());
            if open.len() >= MOST
                && let Some(oldest) = open.pop_front()
            {
                oldest.abort();
            }
            let admin = admin.clone();
            let served = tokio::spawn(async move {
                let answer = service_fn(move |request: Request<Incoming>| {
                    let admin = admin.clone();
                    async move { Ok::<_, Infallible>(admin.answer(request, peer.ip()).await) }
                });
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new())
                    .header_read_timeout(HEADER)
                    .keep_alive(false);
                let served = http.serve_connection(TokioIo::new(stream), answer);
                match timeout(LIFE, served).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "an admin connection ended badly"),
                    Err(_) => tracing::debug!("an admin connection was still open after {LIFE:?}"),
                }
            });
            open.push_back(served.abort_handle());
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let reads = matches!(head.method, Method::GET | Method::HEAD);
        match path {
            // Probes come with any name, without a token, and learn nothing.
            "/livez" | "/healthz" if reads => return text(StatusCode::OK, "ok\n"),
            "/readyz" if reads => {
                return match *self.leaving.borrow() {
                    true => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
                    false => text(StatusCode::OK, "ready\n"),
                };
            }
            _ => {}
        }
        let config = (self.config)();
        if !host::known(&head, &config.admin_hosts) {
            return text(
                StatusCode::MISDIRECTED_REQUEST,
                "not by this name: `admin_hosts` in the configuration has the names that are answered to\n",
            );
        }
        match config.admin_token.as_ref() {
            None => {}
            Some(token) => match token::is_shown(&head, token) {
                Ok(true) => {}
                Ok(false) => return unauthorized(),
                Err(error) => {
                    tracing::error!(%error, "`admin_token` cannot be had: nobody is let in");
                    let why = "the token cannot be had: see the log\n";
                    return text(StatusCode::SERVICE_UNAVAILABLE, why);
                }
            },
        }
        if let Some(command) = Command::of(path) {
            if head.method != Method::POST {
                return not_allowed("POST", "what changes something: POST\n");
            }
            if host::of_another_page(&head) {
                return text(StatusCode::FORBIDDEN, "not from another web page\n");
            }
            if config.admin_token.is_none() && !peer.to_canonical().is_loopback() {
                let why = "from another host this takes an `admin_token` in the configuration\n";
                return text(StatusCode::FORBIDDEN, why);
            }
            return command.run(self, body).await;
        }
        if !reads {
            return not_allowed("GET, HEAD", "read-only: GET\n");
        }
        match path {
            "/metrics" => self.metrics_page(),
            "/lanes" => json_page(&self.lanes()),
            "/config" => json_page(&config.to_json()),
            _ => text(
                StatusCode::NOT_FOUND,
                "there are /metrics /livez /readyz /lanes /config, and to be posted to /reload \
                 /log-level\n",
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

fn text(status: StatusCode, text: impl Into<Vec<u8>>) -> Response<Full<Bytes>> {
    page_of(status, "text/plain; charset=utf-8", text.into())
}

fn unauthorized() -> Response<Full<Bytes>> {
    let why = "show the token: `Authorization: Bearer ...`\n";
    let mut response = text(StatusCode::UNAUTHORIZED, why);
    let scheme = HeaderValue::from_static("Bearer");
    response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    response
}

fn not_allowed(allowed: &'static str, why: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, why);
    let allowed = HeaderValue::from_static(allowed);
    response.headers_mut().insert(ALLOW, allowed);
    response
}

fn page_of(status: StatusCode, kind: &'static str, page: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(page));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
