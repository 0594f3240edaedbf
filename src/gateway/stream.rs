//! A client's connection: TCP or a Unix socket, in the clear or with TLS.
//!
//! Enums, not trait objects: what most callers use costs a branch and no box.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A socket's bytes as they are.
pub enum Plain {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A client's bytes as it means them.
pub enum Stream {
    Plain(Plain),
    Tls(Box<Tls>),
}

/// Behind TLS nobody can look at bytes and leave them where they are: what was looked at is kept.
pub struct Tls {
    stream: TlsStream<Plain>,
    seen: Vec<u8>,
    /// How much of that was read again.
    read: usize,
}

/// Calls the same method of whichever it is.
macro_rules! either {
    ($stream:expr, $name:ident => $act:expr) => {
        match $stream {
            Plain::Tcp($name) => $act,
            Plain::Unix($name) => $act,
        }
    };
}

impl Plain {
    /// Looks at what is there and leaves it, once there is something.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Plain::Tcp(stream) => stream.peek(bytes).await,
            Plain::Unix(stream) => {
                let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
                let look = || Ok(recv(stream, &mut *bytes, flags)?.0);
                stream.async_io(Interest::READABLE, look).await
            }
        }
    }

    /// Returns once there is something to read, or never will be.
    ///
    /// # Errors
    /// The runtime is ending.
    pub async fn readable(&self) -> io::Result<Ready> {
        either!(self, stream => stream.ready(Interest::READABLE).await)
    }

    /// The same as far as the runtime has heard of it; `None`: nothing.
    fn heard(&self) -> Option<Ready> {
        // Most often it has heard of nothing, and can say so without a place among those who wait.
        either!(self, stream => stream.try_io(Interest::READABLE, || Ok(()))).ok()?;
        let ready = pin!(self.readable());
        match ready.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(ready)) => Some(ready),
            Poll::Pending | Poll::Ready(Err(_)) => None,
        }
    }
}

impl Stream {
    pub fn tls(stream: TlsStream<Plain>) -> Self {
        Stream::Tls(Box::new(Tls {
            stream,
            seen: Vec::new(),
            read: 0,
        }))
    }

    pub fn is_tls(&self) -> bool {
        matches!(self, Stream::Tls(_))
    }

    /// Whether its client has closed its side, as far as anybody has heard of it.
    pub fn is_closed(&mut self) -> bool {
        let plain = match self {
            Stream::Plain(plain) => plain,
            Stream::Tls(tls) => {
                let (plain, session) = tls.stream.get_mut();
                // A session that is broken says so for ever.
                let ended = session.process_new_packets();
                if ended.map_or(true, |state| state.peer_has_closed()) {
                    return true;
                }
                plain
            }
        };
        // Nothing is unread where nothing was heard: whoever reads hears of it first.
        plain.heard().is_some_and(|ready| ready.is_read_closed())
    }

    /// Ready once its client has closed its side, or has sent what nobody reads: whether it has closed.
    /// Behind TLS nobody can tell.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Stream::Plain(plain) = self else {
            return Poll::Ready(false);
        };
        let readable = ready!(either!(&*plain, stream => stream.poll_read_ready(cx)));
        let closed = |ready: Ready| ready.is_read_closed();
        Poll::Ready(readable.is_err() || plain.heard().is_some_and(closed))
    }

    /// Whether its client has sent what nobody has read yet.
    pub fn has_unread(&mut self) -> bool {
        let plain = match self {
            Stream::Plain(plain) => plain,
            Stream::Tls(tls) => {
                let (plain, session) = tls.stream.get_mut();
                let held = session.process_new_packets();
                if held.is_ok_and(|state| state.plaintext_bytes_to_read() > 0) {
                    return true;
                }
                plain
            }
        };
        plain.heard().is_some_and(|ready| ready.is_readable())
    }

    /// Writes as much as fits, whether anybody reads it or not.
    pub fn write_now(&mut self, bytes: &[u8]) {
        let mut context = Context::from_waker(Waker::noop());
        // Whoever has gone meanwhile does not read it.
        let _ = Pin::new(&mut *self).poll_write(&mut context, bytes);
        let _ = Pin::new(self).poll_flush(&mut context);
    }
}

impl Tls {
    /// Reads on until there are so many bytes or `enough` of those there are; they are read again.
    ///
    /// # Errors
    /// The connection broke; `UnexpectedEof`: it ended before.
    pub async fn look(&mut self, most: usize, enough: impl Fn(&[u8]) -> bool) -> io::Result<&[u8]> {
        while self.seen.len() < most && !enough(&self.seen) {
            let mut more = (&mut self.stream).take((most - self.seen.len()) as u64);
            if more.read_buf(&mut self.seen).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(&self.seen)
    }

    /// What was agreed on to speak, if anything was.
    pub fn protocol(&self) -> Option<&[u8]> {
        self.stream.get_ref().1.alpn_protocol()
    }

    /// The certificate its client has proved itself with, in DER.
    pub fn client_certificate(&self) -> Option<&[u8]> {
        let chain = self.stream.get_ref().1.peer_certificates()?;
        chain.first().map(|certificate| &**certificate)
    }
}

impl AsyncRead for Tls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = &self.seen[self.read..];
        if left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let some = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..some]);
        self.read += some;
        if self.read == self.seen.len() {
            (self.seen, self.read) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Plain {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Plain {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        either!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(tls) => Pin::new(&mut **tls).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(tls) => Pin::new(&mut tls.stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(tls) => Pin::new(&mut tls.stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(tls) => tls.stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(&mut tls.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(&mut tls.stream).poll_shutdown(cx),
        }
    }
}
