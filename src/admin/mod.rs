//! The operator's door: metrics, health, every lane as it stands, the configuration, and a page to
//! watch it all; what an operator may do, in [`control`]. Its own listener.
//!
//! Unless the configuration asks for a token it carries no credential check: what it says holds no
//! secret, and who may reach it is a matter of the address it listens on. Web pages may not
//! ([`host`]).

pub mod control;
pub mod health;
mod host;
pub mod page;
mod token;

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
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
use crate::admin::page::events::Streams;
use crate::admin::page::{Body, Page};
use crate::admission::lane::LaneView;
use crate::admission::{Admission, Listed};
use crate::config::Config;
use crate::levels::Levels;
use crate::limit::quota::Mode;
use crate::metrics::Metrics;
use crate::reload::Reloads;

/// Longer than any scraper or probe takes for a request's head.
const HEADER: Duration = Duration::from_secs(10);
/// For a whole connection, which carries one request: longer than a page takes on a slow way. One
/// that carries the page's stream lasts as long as that does.
const LIFE: Duration = Duration::from_secs(30);
/// Connections at once. The oldest gives way to the next, so that whoever holds them all cannot
/// keep a probe out. Streams are counted apart.
const MOST: usize = 64;

/// Says what the configuration in effect is.
pub type Current = Arc<dyn Fn() -> Arc<Config> + Send + Sync>;

pub struct Admin {
    pub metrics: Metrics,
    pub admission: Admission,
    /// The configuration in effect.
    pub config: Current,
    /// `true` once callers are to go elsewhere.
    pub leaving: watch::Receiver<bool>,
    pub page: Page,
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
        let page = self.page.clone();
        tokio::spawn(async move { page.run().await });
        let admin = Arc::new(self);
        let mut open: VecDeque<(AbortHandle, Streams)> = VecDeque::new();
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "an admin connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            open.retain(|(connection, _)| !connection.is_finished());
            let passing = (0..open.len()).filter(|&at| !open[at].1.now());
            let passing: Vec<_> = passing.collect();
            if passing.len() >= MOST
                && let Some((oldest, _)) = open.remove(passing[0])
            {
                oldest.abort();
            }
            let admin = admin.clone();
            let streams = Streams::default();
            let (carries, seen) = (streams.clone(), streams.clone());
            let served = tokio::spawn(async move {
                let answer = service_fn(move |request: Request<Incoming>| {
                    let (admin, carries) = (admin.clone(), carries.clone());
                    async move {
                        let response = admin.answer(request, peer.ip(), &carries).await;
                        Ok::<_, Infallible>(response)
                    }
                });
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new())
                    .header_read_timeout(HEADER)
                    .keep_alive(false);
                let mut served = pin!(http.serve_connection(TokioIo::new(stream), answer));
                loop {
                    match timeout(LIFE, served.as_mut()).await {
                        Err(_) if streams.now() => continue,
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            tracing::debug!(%error, "an admin connection ended badly");
                        }
                        Err(_) => {
                            tracing::debug!("an admin connection was still open after {LIFE:?}");
                        }
                    }
                    break;
                }
            });
            open.push_back((served.abort_handle(), seen));
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: IpAddr,
        streams: &Streams,
    ) -> Response<Body> {
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
            let query = head.uri.query().unwrap_or_default();
            return command.run(self, query, body).await;
        }
        if !reads {
            return not_allowed("GET, HEAD", "read-only: GET\n");
        }
        match path {
            "/" => self.page.document(),
            "/events" => self.page.events(&head.method, streams),
            "/metrics" => self.metrics_page(),
            "/lanes" => json_page(&self.lanes()),
            "/config" => json_page(&config.to_json()),
            _ => text(
                StatusCode::NOT_FOUND,
                "there are / /events /metrics /livez /readyz /lanes /config, and to be posted to \
                 /reload /log-level /pause /resume\n",
            ),
        }
    }

    fn metrics_page(&self) -> Response<Body> {
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
        lanes.sort_by(order);
        let view = |listed: &Listed| lane(listed, &listed.lane.view());
        lanes.iter().map(view).collect()
    }
}

/// By account, endpoint and group.
fn order(a: &Listed, b: &Listed) -> Ordering {
    let by_name = a.endpoint.cmp(&b.endpoint);
    let by_group = a.lane.group().cmp(&b.lane.group());
    a.account.0.cmp(&b.account.0).then(by_name).then(by_group)
}

/// One lane, with the names of `interface`: flows are named by a hash, never by a credential.
fn lane(listed: &Listed, view: &LaneView) -> Value {
    let snapshot = &view.snapshot;
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

fn json_page(value: &Value) -> Response<Body> {
    page_of(
        StatusCode::OK,
        "application/json",
        value.to_string().into_bytes(),
    )
}

fn text(status: StatusCode, text: impl Into<Vec<u8>>) -> Response<Body> {
    page_of(status, "text/plain; charset=utf-8", text.into())
}

fn unauthorized() -> Response<Body> {
    let why = "show the token: `Authorization: Bearer ...`, or as a password\n";
    let mut response = text(StatusCode::UNAUTHORIZED, why);
    for scheme in ["Bearer", "Basic realm=\"podgate\""] {
        let scheme = HeaderValue::from_static(scheme);
        response.headers_mut().append(WWW_AUTHENTICATE, scheme);
    }
    response
}

fn not_allowed(allowed: &'static str, why: &'static str) -> Response<Body> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, why);
    let allowed = HeaderValue::from_static(allowed);
    response.headers_mut().insert(ALLOW, allowed);
    response
}

fn page_of(status: StatusCode, kind: &'static str, page: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::from(page)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
