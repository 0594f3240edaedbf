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
/// How old one may get: its host may have moved, and only a new one looks where to.
pub const OLDEST: Duration = Duration::from_secs(300);
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
    /// `oldest`: connections of a higher age are not used again.
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
