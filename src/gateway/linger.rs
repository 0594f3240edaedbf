//! Listening on where nobody wants to hear: closing a socket with bytes unread resets it, and the
//! client never sees its answer. What a refused client still sends is read and thrown away, within
//! bounds.

use std::future::poll_fn;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::gateway::presence::Caller;

/// In all.
const LINGER: Duration = Duration::from_secs(20);
/// Without progress.
const LINGER_IDLE: Duration = Duration::from_secs(3);
/// Bytes thrown away at a time.
const SCRAP: usize = 8 * 1024;

/// Reads what is left of a body, beside its answer. The connection can carry another request once
/// it has ended.
pub fn body(mut incoming: Incoming) {
    // Without a runtime the process is ending, and every connection with it.
    let Ok(runtime) = Handle::try_current() else {
        return;
    };
    runtime.spawn(timeout(LINGER, async move {
        while let Ok(Some(Ok(_))) = timeout(LINGER_IDLE, incoming.frame()).await {}
    }));
}

/// Reads what comes on a connection whose last answer is out, until its client has read that and
/// closes.
pub async fn connection(caller: &Caller) {
    let mut scrap = vec![0; SCRAP];
    let rest = async {
        // hyper does so too, but not where it was asked for a tunnel. That it is closed is no fault.
        let _ = poll_fn(|cx| caller.poll_end(cx)).await;
        let mut next = async || poll_fn(|cx| caller.poll_discard(cx, &mut scrap)).await;
        while let Ok(Ok(1..)) = timeout(LINGER_IDLE, next()).await {}
    };
    // At the bound whoever still sends is cut.
    let _ = timeout(LINGER, rest).await;
}
