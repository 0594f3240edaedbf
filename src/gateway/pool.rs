//! The connections of one worker that wait for their next exchange, newest first.

use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, Interest};
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep};

use crate::gateway::alarm::Alarm;
use crate::gateway::connect::Stream;

/// Idle connections kept.
const KEPT: usize = 512;
/// How long one is kept; below the 90 s and more that servers keep theirs.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Idle for longer than this, its other side may have closed it and the runtime not have noticed.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// How often those that wait are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The largest buffers that one keeps while it waits, in bytes.
const LARGEST_KEPT: usize = 16 * 1024;

/// One connection, and what is kept with it between two exchanges.
pub struct Connection {
    pub stream: Stream,
    /// Bytes that were read and not understood yet.
    pub unread: BytesMut,
    /// Memory for the head of a request.
    pub head: Vec<u8>,
    pub alarm: Alarm,
    /// From when on it is used no more.
    retires: Instant,
}

impl Connection {
    /// `oldest`: at a higher age it is not used again, as its host may have moved.
    pub fn new(stream: Stream, oldest: Duration) -> Self {
        Self {
            stream,
            unread: BytesMut::new(),
            head: Vec::new(),
            alarm: Alarm::default(),
            retires: now() + oldest,
        }
    }

    /// Whether its other side is there and has said nothing unasked, as far as the runtime has heard.
    fn is_quiet(&mut self) -> bool {
        // Most often it has heard of nothing, and can say so without a read.
        if let Stream::Plain(stream) = &self.stream
            && stream.try_io(Interest::READABLE, || Ok(())).is_err()
        {
            return true;
        }
        let mut byte = [0];
        // TLS has words of its own, which are taken on the way. Unconstrained: a task that has had
        // its turn would be told that there is nothing.
        let read = pin!(unconstrained(self.stream.read(&mut byte)));
        read.poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    }
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Idle {
    fn is_good(&mut self, now: Instant) -> bool {
        now <= self.connection.retires && self.connection.is_quiet()
    }
}

/// A connection for the next exchange.
pub struct Taken {
    pub connection: Connection,
    /// It was idle for long enough that it may be closed.
    pub distrusted: bool,
}

#[derive(Default)]
pub struct Pool {
    idle: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    all: Vec<Idle>,
    /// Somebody looks after them.
    watched: bool,
}

impl Pool {
    /// The connection that was idle for the shortest time, as of `now`. `None`: none is good, or none
    /// that is trusted and no other will do.
    pub fn take(&self, trusted_only: bool, now: Instant) -> Option<Taken> {
        let idle = &mut self.idle.lock().all;
        while let Some(mut newest) = idle.pop() {
            if now > newest.since + KEPT_FOR {
                // Those below are older still.
                idle.clear();
                return None;
            }
            let distrusted = now > newest.since + TRUSTED_FOR;
            if distrusted && trusted_only {
                // The same.
                idle.push(newest);
                return None;
            }
            if newest.is_good(now) {
                return Some(Taken {
                    connection: newest.connection,
                    distrusted,
                });
            }
        }
        None
    }

    /// One more that waits, from `now` on. Called inside a runtime, which looks after it.
    pub fn keep(self: &Arc<Self>, mut connection: Connection, now: Instant) {
        if connection.unread.capacity() > LARGEST_KEPT {
            connection.unread = BytesMut::new();
        }
        if connection.head.capacity() > LARGEST_KEPT {
            connection.head = Vec::new();
        }
        let mut idle = self.idle.lock();
        if idle.all.len() >= KEPT || now > connection.retires {
            return;
        }
        idle.all.push(Idle {
            connection,
            since: now,
        });
        if !std::mem::replace(&mut idle.watched, true) {
            tokio::spawn(watch(Arc::downgrade(self)));
        }
    }

    /// Lets go of those that are of no use any more; `false` once there are none.
    fn sweep(&self) -> bool {
        let now = now();
        let mut idle = self.idle.lock();
        idle.all
            .retain_mut(|one| now <= one.since + KEPT_FOR && one.is_good(now));
        idle.watched = !idle.all.is_empty();
        idle.watched
    }

    pub fn len(&self) -> usize {
        self.idle.lock().all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.idle.lock().all.is_empty()
    }
}

/// Nobody reads a connection that waits: what its other side has closed would stay open here.
async fn watch(pool: Weak<Pool>) {
    loop {
        sleep(LOOK_EVERY).await;
        let Some(pool) = pool.upgrade() else { return };
        if !pool.sweep() {
            return;
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a connection is idle is timed here"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const OLDEST: Duration = Duration::from_secs(40);

    /// A connection, and its other side.
    async fn connection() -> (Connection, TcpStream) {
        connection_until(OLDEST).await
    }

    /// The same, which is used up to this age.
    pub async fn connection_until(oldest: Duration) -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (here, there) = tokio::join!(TcpStream::connect(address), listener.accept());
        let connection = Connection::new(Stream::Plain(here.unwrap()), oldest);
        (connection, there.unwrap().0)
    }

    fn port(connection: &Connection) -> u16 {
        let Stream::Plain(stream) = &connection.stream else {
            unreachable!("it is plain")
        };
        stream.local_addr().unwrap().port()
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_goes_first() {
        let pool = Arc::<Pool>::default();
        let (first, _one) = connection().await;
        let (second, _two) = connection().await;
        let (older, newer) = (port(&first), port(&second));
        pool.keep(first, now());
        pool.keep(second, now());
        let order = [pool.take(false, now()), pool.take(false, now())];
        let order = order.map(|taken| port(&taken.unwrap().connection));
        assert_eq!(order, [newer, older]);
        assert!(pool.take(false, now()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_idle_for_a_second_is_not_trusted() {
        let pool = Arc::<Pool>::default();
        let (connection, _there) = connection().await;
        pool.keep(connection, now());
        sleep(TRUSTED_FOR - Duration::from_millis(2)).await;
        let taken = pool.take(true, now()).unwrap();
        assert!(!taken.distrusted);
        pool.keep(taken.connection, now());
        sleep(TRUSTED_FOR + Duration::from_millis(2)).await;
        assert!(pool.take(true, now()).is_none());
        assert!(
            pool.take(false, now()).unwrap().distrusted,
            "it stays for whoever can try again"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_idle_for_too_long_is_let_go() {
        let pool = Arc::<Pool>::default();
        let (connection, _there) = connection_until(KEPT_FOR * 10).await;
        pool.keep(connection, now());
        sleep(KEPT_FOR + Duration::from_millis(2)).await;
        assert!(pool.take(false, now()).is_none() && pool.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_old_is_neither_kept_nor_used_again() {
        let pool = Arc::<Pool>::default();
        let (first, _one) = connection().await;
        let (second, _two) = connection().await;
        pool.keep(first, now());
        sleep(OLDEST + Duration::from_millis(2)).await;
        assert!(pool.take(false, now()).is_none());
        pool.keep(second, now());
        assert!(pool.is_empty());
    }

    /// The kernel has to be heard first, and nobody says when that was: it is asked until then.
    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..10_000 {
            if holds() {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("never: {what}");
    }

    #[tokio::test]
    async fn what_is_closed_or_said_something_is_not_used_again() {
        for says in [&b""[..], b"HTTP/1.1 200 OK\r\n"] {
            let pool = Arc::<Pool>::default();
            let (connection, mut there) = connection().await;
            pool.keep(connection, now());
            there.write_all(says).await.unwrap();
            let held = (!says.is_empty()).then_some(there);
            until("it is seen", || {
                pool.take(false, now())
                    .map(|taken| pool.keep(taken.connection, now()))
                    .is_none()
            })
            .await;
            drop(held);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_is_let_go_too() {
        let pool = Arc::<Pool>::default();
        let (first, there) = connection_until(KEPT_FOR * 10).await;
        let (second, _there) = connection_until(KEPT_FOR * 10).await;
        pool.keep(first, now());
        pool.keep(second, now());
        drop(there);
        sleep(LOOK_EVERY * 2).await;
        assert_eq!(pool.len(), 1, "the one that was closed");
        sleep(KEPT_FOR).await;
        assert!(pool.is_empty(), "the one that nobody asked for");
        // And again, after the one who looked has gone.
        let (third, _there) = connection_until(KEPT_FOR * 10).await;
        pool.keep(third, now());
        sleep(KEPT_FOR + LOOK_EVERY * 2).await;
        assert!(pool.is_empty());
    }
}
