//! A request on its way out, over I/O whose every write ends as it is told to.

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

/// The preset's lane for `run`, and a permit of it.
pub async fn permit() -> (Arc<LaneCell>, Permit) {
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
    (lane, permit)
}

/// Window slots and permits of a lane that are taken.
pub fn spent(lane: &LaneCell) -> (u32, u32) {
    let lane = lane.view().snapshot;
    (lane.window_used, lane.permits_in_use)
}

impl Bench {
    /// A request with a body in so many bytes begins.
    async fn begin(open: bool, distrusted: bool, body: &'static [u8]) -> Self {
        let (lane, permit) = permit().await;
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
    assert_eq!(spent(&bench.lane), (0, 0));
    // Nor is anybody asked who is trusted.
    let mut bench = Bench::begin(false, false, b"").await;
    assert!(matches!(
        bench.poll([Poll::Ready(Ok(5))]),
        Poll::Ready(Ok(()))
    ));
    assert_eq!(spent(&bench.lane), (1, 1));
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
