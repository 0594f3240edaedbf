//! Reading a request's body, within its limit.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::answer::Answer;
use super::operations;

/// Why there is no body.
pub(super) enum BodyFault {
    /// Above so many bytes.
    TooLarge(usize),
    /// Its framing was broken, or its sender went away.
    Broken,
}

impl BodyFault {
    /// The service's own words, 400 and not 413 (contract, section 1.2).
    pub fn answer(self) -> Answer {
        match self {
            BodyFault::TooLarge(limit) => operations::bad_request(&format!(
                "body: exceeded max body size of {}MiB",
                limit >> 20
            )),
            BodyFault::Broken => operations::bad_request("body: incomplete"),
        }
    }
}

/// Reads a body of at most `limit` bytes. A larger one is read on and thrown away, within bounds,
/// because a client that is cut off may not read its answer (contract, section 5.5).
pub(super) async fn read(mut body: Incoming, limit: usize) -> Result<Bytes, BodyFault> {
    const MOST_DRAINED: usize = 64 << 20;
    const LONGEST_DRAIN: Duration = Duration::from_secs(20);
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    if body.size_hint().lower() <= most {
        match gather(&mut body, limit).await {
            Err(BodyFault::TooLarge(_)) => {}
            read_or_broken => return read_or_broken,
        }
    }
    let drain = async {
        let mut drained = 0_usize;
        while let Some(Ok(frame)) = body.frame().await
            && drained <= MOST_DRAINED
        {
            drained += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    let _ = tokio::time::timeout(LONGEST_DRAIN, drain).await;
    Err(BodyFault::TooLarge(limit))
}

async fn gather(body: &mut Incoming, limit: usize) -> Result<Bytes, BodyFault> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyFault::Broken)?.into_data() else {
            continue;
        };
        if first.len() + rest.len() + data.len() > limit {
            return Err(BodyFault::TooLarge(limit));
        }
        if first.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&data);
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(first.len() + rest.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}
