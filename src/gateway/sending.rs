//! A request on its way out: what of it was written, when, and what that tells its permit.
//!
//! An upstream may answer before it has read the whole request, and close: what is still written
//! then fails while the answer waits to be read. So a write that fails in the middle of a request
//! is no error here; it goes no further, and the reading side tells how the exchange has ended.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use crate::admission::permit::Permit;
use crate::gateway::body::Outgoing;
use crate::gateway::h1::request;
use crate::gateway::payload::BrokenOff;

/// The most slices of one write: a body of a mebibyte in pieces of the usual size.
const MOST_SLICES: usize = 20;

/// I/O that can tell whether its other side is still there.
pub trait Peer {
    /// `false` once it has closed, or has sent what nobody asked for.
    fn is_open(&self) -> bool;
}

/// A request to be written.
pub struct Message {
    pub head: Vec<u8>,
    pub body: Outgoing,
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// What there was to write is written, and more is to come.
    Going,
    /// The other side has taken nothing since then.
    Blocked(Instant),
    /// Its last byte went out then.
    Sent(Instant),
}

/// Why a request can go no further.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// Nothing of it was written.
    #[error(transparent)]
    Unwritten(#[from] io::Error),
    #[error(transparent)]
    BrokenOff(#[from] BrokenOff),
}

/// One request, and how far it has come.
pub struct Sending {
    body: Outgoing,
    /// Bytes of the body that are not taken from it yet; `None`: it goes in chunks.
    left: Option<u64>,
    /// What is to be written next: head or framing, then body, then framing.
    front: Vec<u8>,
    /// How much of that was written.
    at: usize,
    chunk: Bytes,
    tail: &'static [u8],
    /// The other side may have closed meanwhile: to be looked for before the first byte.
    distrusted: bool,
    /// When bytes of it last went out.
    wrote: Option<Instant>,
    /// Since when what there is to write is not taken.
    blocked: Option<Instant>,
    /// It cannot be written any more.
    broken: bool,
    /// All of it went out.
    sent: bool,
}

impl Sending {
    /// `distrusted`: nothing of it is written before the other side was found to be there.
    pub fn new(message: Message, distrusted: bool) -> Self {
        let Message { head, mut body } = message;
        let (mut chunk, mut left) = (Bytes::new(), body.length());
        // In one write with the head. What is streamed stays untouched until that has gone out.
        if let Outgoing::Held(body) = &mut body {
            chunk = body.pop().unwrap_or_default();
            left = Some(body.len());
        }
        Self {
            left,
            body,
            front: head,
            at: 0,
            chunk,
            tail: &[],
            distrusted,
            wrote: None,
            blocked: None,
            broken: false,
            sent: false,
        }
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        match (self.wrote, self.blocked) {
            (Some(last), _) if self.sent => Progress::Sent(last),
            (_, Some(since)) => Progress::Blocked(since),
            _ => Progress::Going,
        }
    }

    /// Whether all of it went out.
    pub fn is_sent(&self) -> bool {
        self.sent
    }

    /// Whether its body is one that comes in while it goes out.
    pub fn is_streamed(&self) -> bool {
        matches!(self.body, Outgoing::Streamed(_))
    }

    /// What its head was written in, or what came last before a piece of its body.
    pub fn into_front(self) -> Vec<u8> {
        self.front
    }

    /// The request again, if nothing of it was written.
    pub fn unwritten(self) -> Option<Message> {
        let Self {
            front: head,
            mut body,
            ..
        } = self;
        if let Outgoing::Held(body) = &mut body {
            body.put_back(self.chunk);
        }
        let unwritten = self.wrote.is_none();
        unwritten.then_some(Message { head, body })
    }

    /// Writes what there is to write; ready once all of it went out. `permit` learns when that was.
    ///
    /// # Errors
    /// [`Stopped`]: it cannot go on, and the reading side has nothing to say of it.
    pub fn poll<T>(
        &mut self,
        io: &mut T,
        permit: &mut Permit,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Stopped>>
    where
        T: AsyncWrite + Peer + Unpin,
    {
        while !self.sent {
            while self.has_more() {
                let written = self.poll_write(io, cx);
                ready!(self.wrote(written, permit))?;
            }
            if self.is_taken() {
                ready!(self.poll_flush(io, permit, cx));
                self.sent = true;
                break;
            }
            let Poll::Ready(next) = self.body.poll_chunk(cx) else {
                // What was written is not to wait for it.
                let _ = ready!(Pin::new(&mut *io).poll_flush(cx));
                return Poll::Pending;
            };
            self.take(next.transpose()?)?;
        }
        Poll::Ready(Ok(()))
    }

    fn has_more(&self) -> bool {
        self.at < self.front.len() || !self.chunk.is_empty() || !self.tail.is_empty()
    }

    /// Whether nothing more comes of its body. In chunks it does: at least the last of them.
    fn is_taken(&self) -> bool {
        self.left == Some(0)
    }

    /// The next of its body is to be written; `None`: that was all.
    fn take(&mut self, chunk: Option<Bytes>) -> Result<(), BrokenOff> {
        (self.front, self.at) = (Vec::new(), 0);
        match (&mut self.left, chunk) {
            (Some(left), Some(chunk)) => {
                *left = left.checked_sub(chunk.len() as u64).ok_or(BrokenOff)?;
                self.chunk = chunk;
            }
            // Fewer bytes than it was declared to have.
            (Some(_), None) => return Err(BrokenOff),
            (None, Some(chunk)) if chunk.is_empty() => {}
            (None, Some(chunk)) => {
                self.front = request::chunk(chunk.len());
                self.chunk = chunk;
                self.tail = request::CHUNK_END;
            }
            (None, None) => {
                self.tail = request::LAST_CHUNK;
                self.left = Some(0);
            }
        }
        Ok(())
    }

    fn poll_write<T>(&mut self, io: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<usize>>
    where
        T: AsyncWrite + Peer + Unpin,
    {
        if self.broken {
            return Poll::Pending;
        }
        if std::mem::take(&mut self.distrusted) && !io.is_open() {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        let front = &self.front[self.at..];
        // Most have no body.
        if self.chunk.is_empty() && self.tail.is_empty() && self.held().next().is_none() {
            return Pin::new(io).poll_write(cx, front);
        }
        let all = [front, &self.chunk].into_iter().chain(self.held());
        let all = all.chain([self.tail]).filter(|slice| !slice.is_empty());
        let mut slices = [IoSlice::new(&[]); MOST_SLICES];
        let mut used = 0;
        for (slice, bytes) in slices.iter_mut().zip(all) {
            *slice = IoSlice::new(bytes);
            used += 1;
        }
        match &slices[..used] {
            [only] => Pin::new(io).poll_write(cx, only),
            several => Pin::new(io).poll_write_vectored(cx, several),
        }
    }

    /// What of a held body comes after the chunk at hand: it goes out with it.
    fn held(&self) -> impl Iterator<Item = &[u8]> {
        let held = match &self.body {
            Outgoing::Held(body) => Some(body.iter()),
            Outgoing::Nothing | Outgoing::Streamed(_) => None,
        };
        held.into_iter().flatten()
    }

    fn wrote(
        &mut self,
        written: Poll<io::Result<usize>>,
        permit: &mut Permit,
    ) -> Poll<io::Result<()>> {
        match written {
            Poll::Ready(Ok(0)) => self.fails(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(bytes)) => {
                self.advance(bytes);
                self.went_out(permit);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => self.fails(error),
            Poll::Pending => self.waits(),
        }
    }

    fn fails(&mut self, error: io::Error) -> Poll<io::Result<()>> {
        if self.wrote.is_none() {
            return Poll::Ready(Err(error));
        }
        self.broken = true;
        self.waits()
    }

    fn waits<R>(&mut self) -> Poll<R> {
        self.blocked.get_or_insert_with(now);
        Poll::Pending
    }

    fn went_out(&mut self, permit: &mut Permit) {
        let now = now();
        self.wrote = Some(now);
        self.blocked = None;
        permit.wrote(now);
    }

    fn advance(&mut self, mut bytes: usize) {
        let front = bytes.min(self.front.len() - self.at);
        self.at += front;
        bytes -= front;
        loop {
            let chunk = bytes.min(self.chunk.len());
            self.chunk.advance(chunk);
            bytes -= chunk;
            let Outgoing::Held(body) = &mut self.body else {
                break;
            };
            if bytes == 0 {
                return;
            }
            let Some(next) = body.pop() else { break };
            self.left = self.left.map(|left| left - next.len() as u64);
            self.chunk = next;
        }
        self.tail = &self.tail[bytes..];
    }

    /// TLS holds some of what was written.
    fn poll_flush<T>(&mut self, io: &mut T, permit: &mut Permit, cx: &mut Context<'_>) -> Poll<()>
    where
        T: AsyncWrite + Unpin,
    {
        if self.broken {
            return Poll::Pending;
        }
        match Pin::new(io).poll_flush(cx) {
            Poll::Ready(Ok(())) => {
                if self.blocked.is_some() {
                    self.went_out(permit);
                }
                Poll::Ready(())
            }
            Poll::Ready(Err(_)) => {
                self.broken = true;
                self.waits()
            }
            Poll::Pending => self.waits(),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "when a byte was written, and since when none is, is this file's to know"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
#[path = "sending_tests.rs"]
pub(super) mod tests;
