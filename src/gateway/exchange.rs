//! One request and its answer on one connection to the upstream, in the request's own task: what
//! there is to write is written while the answer is read.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use crate::admission::permit::Permit;
use crate::gateway::h1::chunks::{Chunks, Piece};
use crate::gateway::h1::head::{self, Final, Length, Read};
use crate::gateway::pool::{Connection, Pool};
use crate::gateway::sending::{Message, Progress, Sending};
use crate::gateway::upstream::{TooSlow, UpstreamError};
use crate::limit::local::Budget;

/// Bytes that are read at once, and room for a head of the usual size.
const USUAL_READ: usize = 8 * 1024;
/// The same of a body that comes faster than that.
const LARGEST_READ: usize = 64 * 1024;
/// Less room than this is not read into: small answers share the memory of one read.
const LEAST_READ: usize = 4 * 1024;
/// What is smaller is copied: else a line of text could keep the whole buffer it was read into.
const WORTH_KEEPING: usize = 2 * 1024;

/// Dropped before it is complete its connection is closed, and the permit goes back as that
/// demands.
pub struct Exchange {
    connection: Connection,
    sending: Sending,
    permit: Permit,
    pool: Arc<Pool>,
    /// Of the answer's body: read, and not taken yet.
    rest: Bytes,
    ends: Ends,
    /// Bytes to be read at once.
    reads: usize,
    /// The connection carries no other.
    last: bool,
}

/// How long a request and the head of its answer are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The longest wait for the head, from when the request was sent whole.
    pub patience: Duration,
    /// The longest time in which the other side may take nothing of the request.
    pub stall: Duration,
    /// So long after its last byte was sent, the request has arrived: its lane is told of it then, if
    /// no answer has said so before.
    pub margin: Duration,
}

/// Where the answer's body ends.
enum Ends {
    After(u64),
    Chunks(Chunks),
    WithConnection,
}

/// Why there is no head.
pub enum Failed {
    /// The connection: on another it may go well, if nothing was written.
    Connection(UpstreamError),
    Late(TooSlow),
}

impl Exchange {
    /// `distrusted`: nothing is written before the other side was found to be there.
    pub fn new(
        connection: Connection,
        permit: Permit,
        message: Message,
        distrusted: bool,
        pool: Arc<Pool>,
    ) -> Self {
        Self {
            connection,
            sending: Sending::new(message, distrusted),
            permit,
            pool,
            rest: Bytes::new(),
            ends: Ends::After(0),
            reads: USUAL_READ,
            last: false,
        }
    }

    /// Writes the request and waits for the head of its answer, within `bounds`. `to_head`: only a
    /// head was asked for.
    ///
    /// # Errors
    /// [`Failed`]: there is none.
    pub async fn head(&mut self, to_head: bool, bounds: Bounds) -> Result<Response<()>, Failed> {
        let (mut armed, mut rang) = (false, false);
        std::future::poll_fn(|cx| {
            let was_sent = self.sending.is_sent();
            if let Err(error) = self.send_on(cx) {
                return Poll::Ready(Err(Failed::Connection(error)));
            }
            // From its last byte on there is something else to wait for.
            armed &= was_sent == self.sending.is_sent();
            if let Poll::Ready(head) = self.poll_head(to_head, cx) {
                return Poll::Ready(head.map_err(Failed::Connection));
            }
            loop {
                if !armed {
                    let due = match self.sending.progress() {
                        // What time it is is asked once the alarm has rung.
                        Progress::Sent(at) if !rang => at + bounds.margin.min(bounds.patience),
                        progress => self.look(progress, bounds, now()).map_err(Failed::Late)?,
                    };
                    self.connection.alarm.by(due);
                    armed = true;
                }
                ready!(self.connection.alarm.poll(cx));
                (armed, rang) = (false, true);
            }
        })
        .await
    }

    /// How a request stands that has come so far: tells its lane once it has arrived. Returns when to
    /// look again.
    fn look(
        &mut self,
        progress: Progress,
        bounds: Bounds,
        now: Instant,
    ) -> Result<Instant, TooSlow> {
        let due = due(progress, bounds.patience, bounds.stall, now)?;
        Ok(match progress {
            Progress::Sent(at) if now < at + bounds.margin => due.min(at + bounds.margin),
            Progress::Sent(_) => {
                self.permit.sent();
                due
            }
            Progress::Going | Progress::Blocked(_) => due,
        })
    }

    fn poll_head(
        &mut self,
        to_head: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<()>, UpstreamError>> {
        loop {
            // Nothing is understood before a line has ended.
            let unread = &mut self.connection.unread;
            let understood = !unread.is_empty() && memchr::memchr(b'\n', unread).is_some();
            if understood || unread.len() >= head::LARGEST {
                // Shared, not copied: the buffer is whole again once the answer has gone out.
                let mut bytes = unread.split().freeze();
                loop {
                    match head::read(&bytes, to_head)? {
                        Read::Final(head) => return Poll::Ready(Ok(self.begins(head, bytes))),
                        Read::Interim(length) => bytes.advance(length),
                        Read::Partly => break,
                    }
                }
                self.connection.unread = bytes.into();
            }
            let read = ready!(self.poll_read(USUAL_READ, cx));
            if read.map_err(|error| UpstreamError::broke(&error))? == 0 {
                let what = "it closed the connection before its answer";
                return Poll::Ready(Err(UpstreamError::Broke(what.into())));
            }
        }
    }

    fn begins(&mut self, head: Final, read: Bytes) -> Response<()> {
        self.rest = read.slice(head.bytes..);
        self.last |= head.last;
        self.ends = match head.length {
            Length::Exact(length) => Ends::After(length),
            Length::Chunked => Ends::Chunks(Chunks::default()),
            Length::UntilClose => Ends::WithConnection,
        };
        head.response
    }

    /// Reads more behind what is unread.
    fn poll_read(&mut self, most: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Connection { stream, unread, .. } = &mut self.connection;
        if unread.capacity() - unread.len() < most.min(LEAST_READ) {
            unread.reserve(most);
        }
        pin!(stream.read_buf(unread)).poll(cx)
    }

    /// Its head came, and it was no 429.
    pub fn answered(&mut self, status: StatusCode) {
        self.permit.answered();
        self.trust_after(status);
    }

    fn trust_after(&mut self, status: StatusCode) {
        // What was refused may lie unread between us, and the next request would lie behind it.
        let unread = self.sending.is_streamed() && !status.is_success();
        self.last |= unread || status == StatusCode::PAYLOAD_TOO_LARGE;
    }

    /// Its head came, and it was a 429.
    pub fn throttled(&mut self, retry_after: Option<Duration>) {
        self.permit.throttled(retry_after);
    }

    /// The answer's last byte was read: the permit goes back, and the connection to its pool if it
    /// can carry another request.
    pub fn complete(self: Box<Self>) {
        (*self).over(now(), |mut permit| permit.complete());
    }

    /// Its head came, which was no 429, and the whole answer with it, a moment before `at`:
    /// [`Exchange::answered`] and [`Exchange::complete`] at once. Returns what is left of its lane's
    /// rate, if it has one.
    pub fn ended(mut self, status: StatusCode, at: Instant) -> Option<Budget> {
        self.trust_after(status);
        self.over(at, |permit| permit.ended(at))
    }

    fn over<R>(self, at: Instant, give_back: impl FnOnce(Permit) -> R) -> R {
        let Self {
            mut connection,
            sending,
            permit,
            pool,
            rest,
            last,
            ..
        } = self;
        // The permit first: whoever sees the end can count on it.
        let given_back = give_back(permit);
        // The rest of a request has nobody to read it, and nobody asked for more of an answer.
        let clean = rest.is_empty() && connection.unread.is_empty();
        if sending.is_sent() && clean && !last {
            connection.head = sending.into_front();
            pool.keep(connection, at);
        }
        given_back
    }

    /// Given up; request and permit for another try, if nothing was written.
    pub fn unwritten(self) -> Option<(Permit, Message)> {
        let Self {
            sending, permit, ..
        } = self;
        Some((permit, sending.unwritten()?))
    }

    /// The whole body of `length` bytes, if it came with its head.
    pub fn at_hand(&mut self, length: usize) -> Option<Bytes> {
        let whole = self.rest.len() >= length;
        whole.then(|| {
            self.ends = Ends::After(0);
            self.rest.split_to(length)
        })
    }

    /// The whole body of `length` bytes, of which some are still to come.
    ///
    /// # Errors
    /// It broke off.
    pub async fn whole(&mut self, length: usize) -> Result<Bytes, UpstreamError> {
        let mut whole = BytesMut::with_capacity(length);
        whole.extend_from_slice(&std::mem::take(&mut self.rest));
        std::future::poll_fn(|cx| {
            self.send_on(cx)?;
            while whole.len() < length {
                let left = length - whole.len();
                let mut read = (&mut self.connection.stream).take(left as u64);
                let read = ready!(pin!(read.read_buf(&mut whole)).poll(cx));
                self.came(read)?;
            }
            Poll::Ready(Ok(()))
        })
        .await
        .map(|()| {
            self.ends = Ends::After(0);
            whole.freeze()
        })
    }

    /// What is left of the request goes out, as far as it is taken.
    fn send_on(&mut self, cx: &mut Context<'_>) -> Result<(), UpstreamError> {
        if self.sending.is_sent() {
            return Ok(());
        }
        let Self {
            sending,
            connection,
            permit,
            ..
        } = self;
        match sending.poll(&mut connection.stream, permit, cx) {
            Poll::Ready(Err(stopped)) => Err(UpstreamError::broke(&stopped)),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Bytes of the body were read, or none will be any more.
    fn came(&self, read: io::Result<usize>) -> Result<(), UpstreamError> {
        match read {
            Ok(0) => {
                let what = "its answer ended before its end";
                Err(UpstreamError::Broke(what.into()))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(UpstreamError::broke(&error)),
        }
    }

    /// Reads more of the body into `rest`; `false`: the connection has ended.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let most = match self.ends {
            Ends::After(left) => {
                usize::try_from(left).map_or(LARGEST_READ, |left| left.min(LARGEST_READ))
            }
            Ends::Chunks(_) | Ends::WithConnection => self.reads,
        };
        let read = ready!(self.poll_read(most, cx))?;
        if read >= self.reads {
            self.reads = LARGEST_READ;
        }
        let unread = &mut self.connection.unread;
        self.rest = match read < WORTH_KEEPING {
            true => {
                let bytes = Bytes::copy_from_slice(unread);
                unread.clear();
                bytes
            }
            false => unread.split().freeze(),
        };
        Poll::Ready(Ok(read > 0))
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        if let Err(error) = self.send_on(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match &mut self.ends {
                Ends::After(0) => return Poll::Ready(None),
                Ends::After(left) if !self.rest.is_empty() => {
                    let here = self.rest.len();
                    let length = usize::try_from(*left).map_or(here, |left| left.min(here));
                    *left -= length as u64;
                    return Poll::Ready(Some(Ok(self.rest.split_to(length))));
                }
                Ends::Chunks(chunks) if !self.rest.is_empty() => {
                    match chunks.next(&self.rest) {
                        Ok(Piece::Data { skip, length }) => {
                            self.rest.advance(skip);
                            return Poll::Ready(Some(Ok(self.rest.split_to(length))));
                        }
                        Ok(Piece::Framing) => self.rest.clear(),
                        Ok(Piece::End { skip }) => {
                            self.rest.advance(skip);
                            self.ends = Ends::After(0);
                            return Poll::Ready(None);
                        }
                        Err(unframed) => {
                            let what = format!("its answer's chunks cannot be read: {unframed}");
                            return Poll::Ready(Some(Err(UpstreamError::Broke(what.into()))));
                        }
                    }
                    continue;
                }
                Ends::WithConnection if !self.rest.is_empty() => {
                    return Poll::Ready(Some(Ok(std::mem::take(&mut self.rest))));
                }
                Ends::After(_) | Ends::Chunks(_) | Ends::WithConnection => {}
            }
            let more = ready!(self.poll_more(cx));
            if let (Ok(false), Ends::WithConnection) = (&more, &self.ends) {
                self.ends = Ends::After(0);
                return Poll::Ready(None);
            }
            let came = self.came(more.map(usize::from));
            if let Err(error) = came {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

impl Body for Exchange {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let chunk = ready!(self.poll_chunk(cx));
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.ends, Ends::After(0))
    }

    fn size_hint(&self) -> SizeHint {
        match self.ends {
            Ends::After(left) => SizeHint::with_exact(left),
            Ends::Chunks(_) | Ends::WithConnection => SizeHint::default(),
        }
    }
}

/// When to look again whether the head is late, of a request that has come so far; or that it is.
fn due(
    progress: Progress,
    patience: Duration,
    stall: Duration,
    now: Instant,
) -> Result<Instant, TooSlow> {
    let stall = stall.min(patience);
    let (due, late) = match progress {
        // Whoever sends it to us has bounds of its own.
        Progress::Going => return Ok(now + stall),
        Progress::Blocked(since) => (since + stall, TooSlow::Request(stall)),
        Progress::Sent(at) => (at + patience, TooSlow::Head(patience)),
    };
    if due > now { Ok(due) } else { Err(late) }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long the upstream takes is timed here"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::gateway::body::Outgoing;
    use crate::gateway::pool::tests::connection_until;
    use crate::gateway::sending::tests::{permit, spent};
    use crate::limit::quota::Quota;

    /// Its lane hears that it was sent, though nothing is heard of it: W after it has arrived at the
    /// latest its slot is another's.
    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_held_upstream_gives_its_slot_back() {
        let window = Duration::from_secs(10);
        let (lane, permit) = permit().await;
        let (connection, _there) = connection_until(window * 10).await;
        let message = Message {
            head: b"bytes".to_vec(),
            body: Outgoing::Nothing,
        };
        let mut exchange = Exchange::new(connection, permit, message, false, Arc::default());
        let bounds = Bounds {
            patience: window * 10,
            stall: window,
            margin: Quota::MARGIN,
        };
        let mut head = pin!(exchange.head(false, bounds));
        assert!(timeout(window, head.as_mut()).await.is_err());
        assert_eq!(spent(&lane), (1, 1), "it may have arrived a margin later");
        assert!(timeout(Quota::MARGIN * 2, head.as_mut()).await.is_err());
        assert_eq!(spent(&lane), (0, 1));
    }

    #[test]
    fn patience_begins_when_the_request_was_sent_whole() {
        let seconds = Duration::from_secs;
        let began = now();
        let at = |second| began + seconds(second);
        let due = |progress, second| due(progress, seconds(30), seconds(60), at(second));
        assert_eq!(due(Progress::Going, 100), Ok(at(130)));
        assert_eq!(due(Progress::Sent(at(100)), 130 - 1), Ok(at(130)));
        let late = Err(TooSlow::Head(seconds(30)));
        assert_eq!(due(Progress::Sent(at(100)), 130), late);
        // Not taking it is not answering it: no more patience than for that.
        assert_eq!(due(Progress::Blocked(at(100)), 110), Ok(at(130)));
        let late = Err(TooSlow::Request(seconds(30)));
        assert_eq!(due(Progress::Blocked(at(100)), 131), late);
    }

    #[test]
    fn a_held_call_that_nobody_takes_is_no_held_call() {
        let seconds = Duration::from_secs;
        let began = now();
        let blocked = Progress::Blocked(began);
        let late = due(blocked, seconds(330), seconds(60), began + seconds(60));
        assert_eq!(late, Err(TooSlow::Request(seconds(60))));
    }
}
