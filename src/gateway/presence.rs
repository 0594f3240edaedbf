//! Whether a client is still there.
//!
//! To find that out hyper reads on while a request is under way, into memory that it asks for with each
//! request, and past bytes that nobody has asked for it does not read: the rest of a body that is not
//! all here, or a request sent behind this one. The kernel says of a socket that its other side is
//! closed without a read, and whatever is still unread. So of HTTP/1 in the clear it is asked here,
//! wherever something is waited for; TLS hides its end in its bytes, and HTTP/2 always reads on.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::admission::Origin;
use crate::gateway::alarm::Alarm;
use crate::gateway::framing::Framing;
use crate::gateway::stream::Stream;
use crate::limit::flow::FlowId;
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
    /// The credential of the last request, and its flow.
    flow: Mutex<Option<(Option<u64>, FlowId)>>,
    /// Whether it is asked here, and not by hyper.
    asked: bool,
    /// It has closed its side: an answer would have no reader.
    gone: AtomicBool,
    unread: AtomicBool,
    /// Of those who looked after it before, as many as ever did at once, and still set: most requests
    /// end within a tick, and to set a timer may cost a system call.
    alarms: Mutex<Vec<Alarm>>,
}

impl Caller {
    /// The client at the other side of `stream`. `http1`: by which it speaks.
    pub fn new(address: Option<IpAddr>, stream: Stream, http1: bool) -> (Self, Socket) {
        let name = match &stream {
            Stream::Plain(_) => None,
            Stream::Tls(tls) => tls.client_certificate().and_then(name),
        };
        let asked = http1 && !stream.is_tls();
        let shared = Arc::new(Shared {
            stream: Mutex::new(stream),
            framing: Framing::default(),
            flow: Mutex::default(),
            asked,
            gone: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            alarms: Mutex::default(),
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

    /// The flow of its requests that carry this `credential`, made by where it comes from and kept: most
    /// of one connection carry the same.
    pub fn flow(&self, credential: Option<u64>, make: impl FnOnce(Origin<'_>) -> FlowId) -> FlowId {
        let mut last = self.shared.flow.lock();
        match *last {
            Some((known, flow)) if known == credential => flow,
            _ => last.insert((credential, make(self.origin()))).1,
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

    /// Whether hyper need not find out by reading that it has closed its side.
    pub fn is_asked(&self) -> bool {
        self.shared.asked
    }

    /// Ready once it has closed its side, where that is to be asked.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.shared.poll_closed(&mut self.shared.stream.lock(), cx) {
            Poll::Ready(true) => Poll::Ready(()),
            Poll::Ready(false) | Poll::Pending => Poll::Pending,
        }
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
    pub fn gone(&self) -> impl Future<Output = ()> {
        Gone {
            caller: self,
            alarm: None,
        }
    }
}

/// Looks at once and each time its alarm goes off.
struct Gone<'a> {
    caller: &'a Caller,
    /// Goes off within a tick. Of several requests on one connection each has its own.
    alarm: Option<Alarm>,
}

impl Future for Gone<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { caller, alarm } = &mut *self;
        let shared = &caller.shared;
        if ready!(shared.poll_closed(&mut shared.stream.lock(), cx)) {
            return Poll::Ready(());
        }
        // Nobody is told of it: hyper reads, or something is unread and hides what comes behind it.
        let alarm = match alarm {
            Some(alarm) => alarm,
            None if caller.is_gone() => return Poll::Ready(()),
            None => {
                let spare = caller.shared.alarms.lock().pop();
                alarm.insert(spare.unwrap_or_else(|| Alarm::set(now() + TICK)))
            }
        };
        loop {
            ready!(alarm.poll(cx));
            if caller.is_gone() {
                return Poll::Ready(());
            }
            alarm.by(now() + TICK);
        }
    }
}

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        if let Some(alarm) = self.alarm.take() {
            self.caller.shared.alarms.lock().push(alarm);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the next look is timed here")]
fn now() -> Instant {
    Instant::now()
}

/// What stays the same when a certificate is renewed: whom it is for, by all names it has.
fn name(certificate: &[u8]) -> Option<Arc<[u8]>> {
    let facts = der::read(certificate)?;
    let name = [facts.subject, facts.names].concat();
    (!name.is_empty()).then(|| name.into())
}

impl Shared {
    /// As [`Stream::poll_closed`], where it is asked here, and kept in mind; elsewhere nobody can tell.
    fn poll_closed(&self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.asked {
            return Poll::Ready(false);
        }
        let closed = ready!(stream.poll_closed(cx));
        if closed {
            self.gone.store(true, Ordering::Relaxed);
        }
        Poll::Ready(closed)
    }

    /// Writes, if there is anybody to write to: hyper waits for whoever does not read.
    fn poll_write<R>(
        &self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Stream>, &mut Context<'_>) -> Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        let gone = || Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        if self.gone.load(Ordering::Relaxed) {
            return gone();
        }
        let mut stream = self.stream.lock();
        let written = write(Pin::new(&mut *stream), cx);
        if written.is_pending() && self.poll_closed(&mut stream, cx) == Poll::Ready(true) {
            return gone();
        }
        written
    }
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
        self.0
            .poll_write(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0
            .poll_write(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.stream.lock().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.lock()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::gateway::stream::Plain;

    async fn caller() -> (Caller, Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let stream = Stream::Plain(Plain::Tcp(accepted.unwrap().0));
        let (caller, socket) = Caller::new(None, stream, false);
        (caller, socket, client.unwrap())
    }

    /// Each looked after by a task of its own, as over HTTP/2.
    #[tokio::test]
    async fn all_who_look_after_one_client_hear_of_its_end() {
        let (caller, _socket, client) = caller().await;
        let look = |caller: Caller| tokio::spawn(async move { caller.gone().await });
        let long: Vec<_> = (0..3).map(|_| look(caller.clone())).collect();
        // Those that end before leave theirs to those who come.
        for _ in 0..3 {
            let brief = look(caller.clone());
            tokio::time::sleep(TICK / 10).await;
            brief.abort();
        }
        let late: Vec<_> = (0..3).map(|_| look(caller.clone())).collect();
        tokio::time::sleep(TICK * 2).await;
        assert!(late.iter().chain(&long).all(|look| !look.is_finished()));
        drop(client);
        let all = async {
            for look in late.into_iter().chain(long) {
                look.await.unwrap();
            }
        };
        tokio::time::timeout(TICK * 8, all).await.unwrap();
        assert!(caller.shared.alarms.lock().len() <= 7);
    }
}
