//! Webhooks: a post of the ended job, and two more tries (contract, section 1.12).
//!
//! A signature and further fields are documented nowhere, and there are none. `webhookV2` is in two SDKs'
//! types and nobody says what it does: here nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, StatusCode, Uri};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::job::Notice;
use super::shared::Shared;

/// Posts on their way at once.
pub(super) const MOST_AT_ONCE: usize = 64;

/// In all.
const TRIES: u32 = 3;

/// For one try; the service's own is unknown.
const PATIENCE: Duration = Duration::from_secs(10);

/// Anything but 200 is a failure, tried again `webhook_gap` later.
pub(super) async fn deliver(shared: Arc<Shared>, notice: Box<Notice>) {
    for attempt in 1..=TRIES {
        let posted = {
            let place = Arc::clone(&shared.webhooks.places).acquire_owned().await;
            let _place = place.ok();
            // Written anew for every try, so that only so many bodies are in memory.
            let body = Bytes::from(serde_json::to_vec(&notice).unwrap_or_default());
            tokio::time::timeout(PATIENCE, post(&notice.webhook, body)).await
        };
        if matches!(posted, Ok(Some(StatusCode::OK))) {
            shared.webhooks.delivered.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if attempt < TRIES {
            tokio::time::sleep(shared.config.webhook_gap).await;
        }
    }
    shared.webhooks.failed.fetch_add(1, Ordering::Relaxed);
}

/// Plain http only: an emulator's webhooks are on its own machine. `None`: no answer.
async fn post(url: &str, body: Bytes) -> Option<StatusCode> {
    let uri: Uri = url.parse().ok()?;
    if uri.scheme_str() != Some("http") {
        return None;
    }
    let host = uri.host()?.trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80)))
        .await
        .ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::post(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, uri.authority()?.as_str())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .ok()?;
    let answered = async {
        let response = sender.send_request(request).await.ok()?;
        Some(response.status())
    };
    tokio::select! {
        status = answered => status,
        _ = connection => None,
    }
}
