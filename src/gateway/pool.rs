//! The connections of one worker that wait for their next exchange, newest first.

use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::gateway::body::Outgoing;
use crate::gateway::wire::Wire;

/// Idle connections kept.
const KEPT: usize = 512;
/// How long one is kept; below the 90 s and more that servers keep theirs.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Idle for longer than this, its other side may have closed it and the runtime not have noticed.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

pub struct Connection {
    pub sender: SendRequest<Outgoing>,
    pub wire: Arc<Wire>,
    /// What reads and writes it.
    pub task: AbortHandle,
    made: Instant,
}

impl Connection {
    pub fn new(sender: SendRequest<Outgoing>, wire: Arc<Wire>, task: AbortHandle) -> Self {
        Self {
            sender,
            wire,
            task,
            made: now(),
        }
    }
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection for the next exchange.
pub struct Taken {
    pub connection: Connection,
    /// It was idle for long enough that it may be closed.
    pub distrusted: bool,
}

pub struct Pool {
    idle: Mutex<Vec<Idle>>,
    oldest: Duration,
}

impl Pool {
    /// `oldest`: connections of a higher age are not used again, as their host may have moved.
    pub fn new(oldest: Duration) -> Self {
        Self {
            idle: Mutex::default(),
            oldest,
        }
    }

    /// The connection that was idle for the shortest time. `None`: none is good, or none that is
    /// trusted and no other will do.
    pub fn take(&self, trusted_only: bool) -> Option<Taken> {
        let now = now();
        let mut idle = self.idle.lock();
        while let Some(Idle { connection, since }) = idle.pop() {
            let unused = now.saturating_duration_since(since);
            if unused > KEPT_FOR {
                // Those below are older still.
                idle.clear();
                return None;
            }
            let distrusted = unused > TRUSTED_FOR;
            if distrusted && trusted_only {
                // The same.
                idle.push(Idle { connection, since });
                return None;
            }
            if connection.sender.is_ready() && !self.is_old(&connection, now) {
                return Some(Taken {
                    connection,
                    distrusted,
                });
            }
        }
        None
    }

    pub fn keep(&self, connection: Connection) {
        let now = now();
        let mut idle = self.idle.lock();
        if idle.len() < KEPT && !self.is_old(&connection, now) {
            idle.push(Idle {
                connection,
                since: now,
            });
        }
    }

    fn is_old(&self, connection: &Connection, now: Instant) -> bool {
        now.saturating_duration_since(connection.made) > self.oldest
    }

    pub fn len(&self) -> usize {
        self.idle.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.idle.lock().is_empty()
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
mod tests {
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use tokio::io::DuplexStream;
    use tokio::time::sleep;

    use super::*;

    const OLDEST: Duration = Duration::from_secs(40);

    /// A connection that is ready, and its other side.
    async fn connection() -> (Connection, DuplexStream) {
        let (here, there) = tokio::io::duplex(64);
        let (sender, connection) = http1::handshake(TokioIo::new(here)).await.unwrap();
        let task = tokio::spawn(async move { drop(connection.await) });
        settle().await;
        let wire = Arc::<Wire>::default();
        (Connection::new(sender, wire, task.abort_handle()), there)
    }

    async fn settle() {
        sleep(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_goes_first() {
        let pool = Pool::new(OLDEST);
        let (first, _one) = connection().await;
        let (second, _two) = connection().await;
        let (older, newer) = (first.wire.clone(), second.wire.clone());
        pool.keep(first);
        pool.keep(second);
        let order =
            [pool.take(false), pool.take(false)].map(|taken| taken.unwrap().connection.wire);
        assert!(Arc::ptr_eq(&order[0], &newer) && Arc::ptr_eq(&order[1], &older));
        assert!(pool.take(false).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_idle_for_a_second_is_not_trusted() {
        let pool = Pool::new(OLDEST);
        let (connection, _there) = connection().await;
        pool.keep(connection);
        sleep(TRUSTED_FOR - Duration::from_millis(2)).await;
        let taken = pool.take(true).unwrap();
        assert!(!taken.distrusted);
        pool.keep(taken.connection);
        sleep(TRUSTED_FOR + Duration::from_millis(2)).await;
        assert!(pool.take(true).is_none());
        assert!(
            pool.take(false).unwrap().distrusted,
            "it stays for whoever can try again"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_idle_for_too_long_is_let_go() {
        let pool = Pool::new(KEPT_FOR * 10);
        let (connection, _there) = connection().await;
        pool.keep(connection);
        sleep(KEPT_FOR + Duration::from_millis(2)).await;
        assert!(pool.take(false).is_none() && pool.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_old_is_neither_kept_nor_used_again() {
        let pool = Pool::new(OLDEST);
        let (first, _one) = connection().await;
        let (second, _two) = connection().await;
        pool.keep(first);
        sleep(OLDEST + Duration::from_millis(2)).await;
        assert!(pool.take(false).is_none());
        pool.keep(second);
        assert!(pool.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_closed_is_not_used_again() {
        let pool = Pool::new(OLDEST);
        let (connection, there) = connection().await;
        pool.keep(connection);
        drop(there);
        settle().await;
        assert!(pool.take(false).is_none());
    }
}
