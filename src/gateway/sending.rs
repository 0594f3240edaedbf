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
    /// All of it went out, and the permit knows.
    sent: bool,
}

impl Sending {
    /// `distrusted`: nothing of it is written before the other side was found to be there.
    pub fn new(message: Message, distrusted: bool) -> Self {
        let Message { head, body } = message;
        let mut sending = Self {
            left: body.length(),
            body,
            front: head,
            at: 0,
            chunk: Bytes::new(),
            tail: &[],
            distrusted,
            wrote: None,
            blocked: None,
            broken: false,
            sent: false,
        };
        // In one write with the head. What is streamed stays untouched until that has gone out.
        if let Outgoing::Held(body) = &mut sending.body {
            sending.chunk = body.pop().unwrap_or_default();
            sending.left = Some(body.len());
        }
        sending
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

    /// Writes what there is to write; ready once all of it went out, which `permit` learns.
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
                permit.sent();
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
            Outgoing::Streamed(_) => None,
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
            Poll::Pending => {
                self.blocked.get_or_insert_with(now);
                Poll::Pending
            }
        }
    }

    fn fails(&mut self, error: io::Error) -> Poll<io::Result<()>> {
        if self.wrote.is_none() {
            return Poll::Ready(Err(error));
        }
        self.broken = true;
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
                self.blocked.get_or_insert_with(now);
                Poll::Pending
            }
            Poll::Pending => {
                self.blocked.get_or_insert_with(now);
                Poll::Pending
            }
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
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::task::Waker;
    use std::time::Duration;

    use super::*;
    use crate::admission::lane::{Ask, LaneCell};
    use crate::admission::{Account, Admission};
    use crate::config::Config;
    use crate::config::policy::GroupVerdict;
    use crate::gateway::pieces::Pieces;
    use crate::limit::flow::FlowId;
    use crate::limit::ledger::Call;
    use crate::metrics::Metrics;
    use crate::operation::Group;

    /// I/O whose writes and flushes end as they are told to.
    #[derive(Default)]
    struct Fake {
        open: bool,
        writes: VecDeque<Poll<io::Result<usize>>>,
        flushes: VecDeque<Poll<io::Result<()>>>,
        written: Vec<u8>,
    }

    impl Peer for Fake {
        fn is_open(&self) -> bool {
            self.open
        }
    }

    impl AsyncWrite for Fake {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let told = self.writes.pop_front().expect("nothing more is written");
            if let Poll::Ready(Ok(bytes)) = told {
                let all = slices.iter().flat_map(|slice| slice.iter().copied());
                self.written.extend(all.take(bytes));
            }
            told
        }

        fn poll_flush(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes.pop_front().unwrap_or(Poll::Ready(Ok(())))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    struct Bench {
        lane: Arc<LaneCell>,
        permit: Permit,
        sending: Sending,
        io: Fake,
    }

    impl Bench {
        /// A request with a body in so many bytes begins.
        async fn begin(open: bool, distrusted: bool, body: &'static [u8]) -> Self {
            let config = Config::preset();
            let GroupVerdict::Policy(policy) = config.group("any", Group::Run) else {
                unreachable!("it has one")
            };
            let admission = Admission::new(10, Metrics::new().unwrap());
            let lane = admission.lane(Account::default(), "ep", Group::Run, policy);
            let ask = Ask {
                flow: FlowId(1),
                call: Call::Short,
                patience: Duration::ZERO,
                held: 0,
            };
            let permit = lane.admit(ask).await.unwrap();
            let message = Message {
                head: b"bytes".to_vec(),
                body: Outgoing::Held(Bytes::from_static(body).into()),
            };
            Self {
                lane,
                permit,
                sending: Sending::new(message, distrusted),
                io: Fake {
                    open,
                    ..Fake::default()
                },
            }
        }

        /// Goes on, and the I/O says this of one write after the other, and then of flushing.
        fn poll<const WRITES: usize>(
            &mut self,
            writes: [Poll<io::Result<usize>>; WRITES],
        ) -> Poll<Result<(), Stopped>> {
            self.io.writes = writes.into();
            let mut cx = Context::from_waker(Waker::noop());
            self.sending.poll(&mut self.io, &mut self.permit, &mut cx)
        }

        /// Window slots and permits that are taken.
        fn spent(&self) -> (u32, u32) {
            let lane = self.lane.view().snapshot;
            (lane.window_used, lane.permits_in_use)
        }
    }

    fn broken() -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_written_to_who_is_no_longer_there() {
        let mut bench = Bench::begin(false, true, b"").await;
        let stopped = bench.poll([Poll::Ready(Ok(5))]);
        assert!(matches!(stopped, Poll::Ready(Err(Stopped::Unwritten(_)))));
        assert_eq!(bench.io.writes.len(), 1, "it was not asked");
        let message = bench.sending.unwritten().unwrap();
        assert_eq!(message.head, b"bytes", "for another try");
        drop(bench.permit);
        let lane = bench.lane.view().snapshot;
        assert_eq!((lane.window_used, lane.permits_in_use), (0, 0));
        // Nor is anybody asked who is trusted.
        let mut bench = Bench::begin(false, false, b"").await;
        assert!(matches!(
            bench.poll([Poll::Ready(Ok(5))]),
            Poll::Ready(Ok(()))
        ));
        assert_eq!(bench.spent(), (1, 1));
        assert!(bench.sending.unwritten().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_fails_in_the_middle_leaves_the_end_to_the_reading_side() {
        let mut bench = Bench::begin(true, false, b"body").await;
        assert!(bench.poll([Poll::Ready(Ok(7)), broken()]).is_pending());
        assert!(matches!(bench.sending.progress(), Progress::Blocked(_)));
        let again = bench.poll([Poll::Ready(Ok(2))]);
        assert!(again.is_pending(), "it goes no further");
        assert_eq!(bench.io.writes.len(), 1);
        assert!(bench.sending.unwritten().is_none());
        // Before anything was written another try is safe.
        let mut bench = Bench::begin(true, false, b"body").await;
        let stopped = bench.poll([broken()]);
        assert!(matches!(stopped, Poll::Ready(Err(Stopped::Unwritten(_)))));
        let message = bench.sending.unwritten().unwrap();
        let Outgoing::Held(mut body) = message.body else {
            unreachable!("it was held")
        };
        assert_eq!(body.pop().unwrap(), "body");
    }

    #[tokio::test(start_paused = true)]
    async fn how_far_a_request_has_come_is_known() {
        let mut bench = Bench::begin(true, false, b"body").await;
        assert_eq!(bench.sending.progress(), Progress::Going);
        let began = now();
        assert!(bench.poll([Poll::Pending]).is_pending());
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(bench.poll([Poll::Pending]).is_pending());
        assert_eq!(bench.sending.progress(), Progress::Blocked(began));
        assert!(bench.poll([Poll::Ready(Ok(6)), Poll::Pending]).is_pending());
        let since = began + Duration::from_secs(3);
        assert_eq!(bench.sending.progress(), Progress::Blocked(since));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(bench.poll([Poll::Ready(Ok(3))]).is_ready());
        let sent = began + Duration::from_secs(6);
        assert_eq!(bench.sending.progress(), Progress::Sent(sent));
        assert!(bench.sending.is_sent(), "its connection can carry another");
    }

    /// TLS takes a write into its own memory: it has gone out once that is flushed.
    #[tokio::test(start_paused = true)]
    async fn what_is_not_flushed_was_not_sent() {
        let mut bench = Bench::begin(true, false, b"").await;
        bench.io.flushes = [Poll::Pending, Poll::Ready(Ok(()))].into();
        let began = now();
        assert!(bench.poll([Poll::Ready(Ok(5))]).is_pending());
        assert_eq!(bench.sending.progress(), Progress::Blocked(began));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(bench.poll([]).is_ready());
        let sent = began + Duration::from_secs(3);
        assert_eq!(bench.sending.progress(), Progress::Sent(sent));
    }

    /// Written, an empty chunk would be the end of the body; and without its end nobody answers.
    #[tokio::test(start_paused = true)]
    async fn a_body_in_chunks_ends_with_the_last_and_with_no_other() {
        let mut bench = Bench::begin(true, false, b"").await;
        bench.sending.left = None;
        let mut written = Vec::new();
        for chunk in [&b""[..], b"body", b""] {
            bench.sending.take(Some(chunk.into())).unwrap();
            assert!(!bench.sending.is_taken());
            let slices = [
                &bench.sending.front[..],
                &bench.sending.chunk,
                bench.sending.tail,
            ];
            written.extend(slices.concat());
            bench.sending.advance(slices.concat().len());
        }
        bench.sending.take(None).unwrap();
        assert!(bench.sending.is_taken());
        written.extend(bench.sending.tail);
        assert_eq!(written, b"4\r\nbody\r\n0\r\n\r\n");
    }

    /// A held body in several pieces goes out as far as it is taken, each byte once.
    #[tokio::test(start_paused = true)]
    async fn all_pieces_of_a_held_body_go_out_together() {
        let whole: Vec<u8> = (0u8..5).flat_map(|nth| vec![nth; 20_000]).collect();
        for at_once in [1_000, 20_005, 20_006, 45_000, 100_005] {
            let mut bench = Bench::begin(true, false, b"").await;
            let mut body = Pieces::default();
            for nth in 0u8..5 {
                body.push(vec![nth; 20_000].into());
            }
            let message = Message {
                head: b"bytes".to_vec(),
                body: Outgoing::Held(body),
            };
            bench.sending = Sending::new(message, false);
            let mut left = whole.len() + b"bytes".len();
            while left > 0 {
                assert!(!bench.sending.is_sent());
                let taken = at_once.min(left);
                left -= taken;
                let sent = bench.poll([Poll::Ready(Ok(taken)), Poll::Pending]);
                assert_eq!(sent.is_ready(), left == 0, "{at_once}");
            }
            assert_eq!(&bench.io.written[..5], b"bytes");
            assert_eq!(bench.io.written[5..], whole, "{at_once}");
        }
    }

    /// Head, body and framing go out together; what of them was written is not written again.
    #[tokio::test(start_paused = true)]
    async fn every_byte_goes_out_once() {
        let whole = b"bytesbody";
        for first in 1..whole.len() {
            let mut bench = Bench::begin(true, false, b"body").await;
            let rest = whole.len() - first;
            let writes = [Poll::Ready(Ok(first)), Poll::Pending];
            assert!(bench.poll(writes).is_pending());
            assert!(bench.poll([Poll::Ready(Ok(rest))]).is_ready());
            assert_eq!(bench.io.written, whole, "{first}");
        }
    }
}
