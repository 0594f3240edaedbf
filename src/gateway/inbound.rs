//! A request's body as it comes in from the client.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;

use crate::gateway::linger;

/// Whether the client was asked for a body that it does not send unasked.
#[derive(Clone, Debug)]
pub struct Asked(Option<Arc<AtomicBool>>);

impl Asked {
    /// It still waits. What it sends next is its body or, as it was never asked, another request:
    /// nobody can tell, so the connection has to end.
    pub fn waits(&self) -> bool {
        let asked = self.0.as_ref();
        asked.is_some_and(|asked| !asked.load(Ordering::Relaxed))
    }

    fn ask(&self) {
        if let Some(asked) = &self.0 {
            asked.store(true, Ordering::Relaxed);
        }
    }
}

/// A body on its way in. Dropped before its end the rest of it is read and thrown away, so that the
/// client can read its answer, whichever stage it came from.
pub struct Inbound {
    /// `None` once nothing more comes of it.
    incoming: Option<Incoming>,
    asked: Asked,
}

impl Inbound {
    /// `waits`: the client sends nothing before it is asked to.
    pub fn new(incoming: Incoming, waits: bool) -> Self {
        let waits = waits && !incoming.is_end_stream();
        Self {
            incoming: Some(incoming).filter(|incoming| !incoming.is_end_stream()),
            asked: Asked(waits.then(Arc::default)),
        }
    }

    pub fn asked(&self) -> Asked {
        self.asked.clone()
    }

    /// How many bytes there are still, where that was declared.
    pub fn declared(&self) -> Option<u64> {
        match &self.incoming {
            Some(incoming) => incoming.size_hint().exact(),
            None => Some(0),
        }
    }

    /// Whether its end was read.
    pub fn is_over(&self) -> bool {
        match &self.incoming {
            Some(incoming) => incoming.is_end_stream(),
            None => true,
        }
    }

    /// The next bytes. Trailers end with the hop. The first call asks the client for its body.
    pub fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        self.asked.ask();
        while let Some(incoming) = &mut self.incoming {
            match ready!(Pin::new(incoming).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(chunk) = frame.into_data() {
                        return Poll::Ready(Some(Ok(chunk)));
                    }
                }
                Some(Err(error)) => {
                    self.incoming = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => self.incoming = None,
            }
        }
        Poll::Ready(None)
    }

    /// Nothing more of it is read: the connection ends here.
    pub fn abandon(&mut self) {
        self.incoming = None;
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take()
            && !incoming.is_end_stream()
            && !self.asked.waits()
        {
            linger::body(incoming);
        }
    }
}
