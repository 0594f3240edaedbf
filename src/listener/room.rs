//! Room for clients: how many may be connected at once, over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Full once, there has to be a part this large of all places free before that is said again.
const CLEARLY_FREE: usize = 8;

/// Shared by all workers.
pub struct Room {
    places: Arc<Semaphore>,
    most: usize,
    full: AtomicBool,
}

/// A client's place, free again when dropped.
pub struct Place(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

impl Room {
    /// Room for `most` clients.
    pub fn new(most: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(most)),
            most,
            full: AtomicBool::new(false),
        }
    }

    /// A place for the next client, once there is one. Whoever has none does not accept: further
    /// clients wait in the kernel's backlog.
    pub async fn place(&self) -> Place {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            if self.places.available_permits() >= self.most / CLEARLY_FREE
                && self.full.load(Ordering::Relaxed)
                && self.full.swap(false, Ordering::Relaxed)
            {
                tracing::info!("there is room for more clients again");
            }
            return Place(place);
        }
        if !self.full.swap(true, Ordering::Relaxed) {
            let most = self.most;
            tracing::warn!("{most} clients are connected, as many as may be: others wait");
        }
        match self.places.clone().acquire_owned().await {
            Ok(place) => Place(place),
            // It is never closed.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn is_ready<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn who_leaves_makes_room_for_one() {
        let room = Room::new(2);
        let first = is_ready(room.place()).expect("free");
        let _second = is_ready(room.place()).expect("free");
        assert!(is_ready(room.place()).is_none());
        drop(first);
        let _third = is_ready(room.place()).expect("free again");
        assert!(is_ready(room.place()).is_none());
    }
}
