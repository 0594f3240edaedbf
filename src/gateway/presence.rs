//! Whether a client is still there, where hyper cannot tell.
//!
//! hyper drops a request's future once it reads the client's end, but it does not read past bytes
//! that nobody has asked for: the rest of a body that is not all here, or a request sent behind this
//! one. The kernel says of a socket that its other side is closed whatever is still unread.

use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// How often whoever waits is looked after. Most are missed by hyper at once; before anything is
/// spent on one, it is looked for in any case.
const TICK: Duration = Duration::from_millis(250);

/// Who has sent a request. Cheap to clone.
#[derive(Clone)]
pub struct Caller {
    pub address: IpAddr,
    stream: Arc<Mutex<TcpStream>>,
}

/// The bytes of a connection whose end its [`Caller`] can see.
pub struct Socket(Arc<Mutex<TcpStream>>);

impl Caller {
    /// The client at the other side of `stream`.
    pub fn new(address: IpAddr, stream: TcpStream) -> (Self, Socket) {
        let stream = Arc::new(Mutex::new(stream));
        let socket = Socket(stream.clone());
        (Self { address, stream }, socket)
    }

    /// Whether it has closed its side. Half closed is closed: an answer would have no reader.
    pub fn is_gone(&self) -> bool {
        let stream = self.stream.lock();
        let ready = pin!(stream.ready(Interest::READABLE));
        match ready.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(ready)) => ready.is_read_closed(),
            // Nothing is unread: hyper listens.
            Poll::Pending | Poll::Ready(Err(_)) => false,
        }
    }

    /// Whether it has sent what nobody has read yet.
    pub fn has_unread(&self) -> bool {
        let stream = self.stream.lock();
        let ready = pin!(stream.ready(Interest::READABLE));
        let ready = ready.poll(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Ok(ready)) if ready.is_readable())
    }

    /// Writes to it past hyper, which has ended; as much as fits.
    pub fn write_last(&self, bytes: &[u8]) {
        // Whoever has gone meanwhile does not read it.
        let _ = self.stream.lock().try_write(bytes);
    }

    /// Returns once it has closed its side, a tick later at most.
    pub async fn gone(&self) {
        while !self.is_gone() {
            tokio::time::sleep(TICK).await;
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.lock().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_shutdown(cx)
    }
}
