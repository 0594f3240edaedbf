//! Whether a client is still there, where hyper cannot tell.
//!
//! hyper drops a request's future once it reads the client's end, but it does not read past bytes
//! that nobody has asked for: the rest of a body that is not all here, or a request sent behind this
//! one. The kernel says of a socket that its other side is closed whatever is still unread.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::admission::Origin;
use crate::gateway::framing::Framing;
use crate::gateway::stream::Stream;
use crate::tls::der;

/// How often whoever waits is looked after. Most are missed by hyper at once; before anything is
/// spent on one, it is looked for in any case.
const TICK: Duration = Duration::from_millis(250);

/// Who has sent a request. Cheap to clone.
#[derive(Clone)]
pub struct Caller {
    /// `None`: it came by a Unix socket.
    pub address: Option<IpAddr>,
    /// Whom it has proved to be by a certificate.
    name: Option<Arc<[u8]>>,
    shared: Arc<Shared>,
}

/// The bytes of a connection whose end its [`Caller`] can see.
pub struct Socket(Arc<Shared>);

struct Shared {
    stream: Mutex<Stream>,
    framing: Framing,
    unread: AtomicBool,
}

impl Caller {
    /// The client at the other side of `stream`.
    pub fn new(address: Option<IpAddr>, stream: Stream) -> (Self, Socket) {
        let name = match &stream {
            Stream::Plain(_) => None,
            Stream::Tls(tls) => tls.client_certificate().and_then(name),
        };
        let shared = Arc::new(Shared {
            stream: Mutex::new(stream),
            framing: Framing::default(),
            unread: AtomicBool::new(false),
        });
        let socket = Socket(shared.clone());
        let caller = Self {
            address,
            name,
            shared,
        };
        (caller, socket)
    }

    /// By what it is told apart from others.
    pub fn origin(&self) -> Origin<'_> {
        match (&self.name, self.address) {
            (Some(name), _) => Origin::Certificate(name),
            (None, Some(address)) => Origin::Address(address),
            (None, None) => Origin::Unix,
        }
    }

    /// What hyper does not tell of the heads that come from it.
    pub fn framing(&self) -> &Framing {
        &self.shared.framing
    }

    /// Its connection ends with the answer to come, though it may still be sending.
    pub fn leave_unread(&self) {
        self.shared.unread.store(true, Ordering::Relaxed);
    }

    /// Whether [`Caller::leave_unread`] was called.
    pub fn is_left_unread(&self) -> bool {
        self.shared.unread.load(Ordering::Relaxed)
    }

    /// Nothing more is written to it.
    pub fn poll_end(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.shared.stream.lock()).poll_shutdown(cx)
    }

    /// Reads what it sends past everybody else.
    pub fn poll_discard(&self, cx: &mut Context<'_>, scrap: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(scrap);
        let mut stream = self.shared.stream.lock();
        let read = Pin::new(&mut *stream).poll_read(cx, &mut buffer);
        read.map_ok(|()| buffer.filled().len())
    }

    /// Whether it has closed its side. Half closed is closed: an answer would have no reader.
    pub fn is_gone(&self) -> bool {
        self.shared.stream.lock().is_closed()
    }

    /// Whether it has sent what nobody has read yet.
    pub fn has_unread(&self) -> bool {
        self.shared.stream.lock().has_unread()
    }

    /// Writes to it past hyper, which has ended; as much as fits.
    pub fn write_last(&self, bytes: &[u8]) {
        self.shared.stream.lock().write_now(bytes);
    }

    /// Returns once it has closed its side, a tick later at most.
    pub async fn gone(&self) {
        while !self.is_gone() {
            tokio::time::sleep(TICK).await;
        }
    }
}

/// What stays the same when a certificate is renewed: whom it is for, by all names it has.
fn name(certificate: &[u8]) -> Option<Arc<[u8]>> {
    let facts = der::read(certificate)?;
    let name = [facts.subject, facts.names].concat();
    (!name.is_empty()).then(|| name.into())
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut *self.0.stream.lock()).poll_read(cx, buffer);
        let came = &buffer.filled()[before..];
        if !came.is_empty() {
            self.0.framing.saw(came);
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.stream.lock()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.stream.lock()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.stream.lock().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.lock()).poll_shutdown(cx)
    }
}
