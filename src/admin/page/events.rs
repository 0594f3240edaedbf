//! Server-sent events: one snapshot a second, taken once and sent to everybody who listens. Nothing
//! is taken while nobody does.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::admin::page::snapshot::Source;

/// Pages that may listen at once: a team's, and a screen on the wall.
pub const LISTENERS: usize = 16;
/// Between two snapshots.
const TICK: Duration = Duration::from_secs(1);
/// Who has not taken a snapshot for so long, while its connection was full, is not there any more.
const STUCK: Duration = Duration::from_secs(30);

/// Whether a connection carries a stream now. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Streams(Arc<AtomicBool>);

impl Streams {
    pub fn now(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One of the places there are, for as long as its stream goes on.
struct Place {
    streams: Streams,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.streams.0.store(false, Ordering::Relaxed);
    }
}

pub struct Events {
    source: Source,
    /// The latest snapshot as an event; empty while nobody listens.
    latest: watch::Sender<Bytes>,
    /// Somebody has begun to listen.
    wanted: Notify,
    room: Arc<Semaphore>,
}

impl Events {
    pub fn new(source: Source) -> Self {
        Self {
            source,
            latest: watch::Sender::new(Bytes::new()),
            wanted: Notify::new(),
            room: Arc::new(Semaphore::new(LISTENERS)),
        }
    }

    /// Takes the snapshots; never returns.
    pub async fn run(&self) {
        loop {
            self.wanted.notified().await;
            let mut ticks = interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if self.latest.receiver_count() == 0 {
                    break;
                }
                let event = format!("data: {}\n\n", self.source.snapshot());
                self.latest.send_replace(event.into());
            }
            // Whoever comes next is not told what was true then.
            self.latest.send_replace(Bytes::new());
        }
    }

    /// A stream of them; `None` if as many listen as may.
    pub fn listen(&self, streams: &Streams) -> Option<Stream> {
        let permit = self.room.clone().try_acquire_owned().ok()?;
        streams.0.store(true, Ordering::Relaxed);
        let place = Place {
            streams: streams.clone(),
            _permit: permit,
        };
        // One that is on its way, and no more: who reads slowly misses some and sees the latest.
        let (sender, events) = mpsc::channel(1);
        let mut latest = self.latest.subscribe();
        latest.mark_changed();
        self.wanted.notify_one();
        tokio::spawn(tell(sender, latest, place));
        Some(Stream(events))
    }
}

/// Tells one listener, until it leaves or is stuck.
async fn tell(sender: mpsc::Sender<Bytes>, mut latest: watch::Receiver<Bytes>, _place: Place) {
    loop {
        tokio::select! {
            changed = latest.changed() => if changed.is_err() { break },
            () = sender.closed() => break,
        }
        let event = latest.borrow_and_update().clone();
        if !event.is_empty() && sender.send_timeout(event, STUCK).await.is_err() {
            break;
        }
    }
}

/// The body of an answer that goes on.
pub struct Stream(mpsc::Receiver<Bytes>);

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let event = self.0.poll_recv(context);
        event.map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::admin::page::snapshot::tests::source;

    fn running() -> Arc<Events> {
        let events = Arc::new(Events::new(source()));
        let run = events.clone();
        tokio::spawn(async move { run.run().await });
        events
    }

    async fn next(stream: &mut Stream) -> Bytes {
        let frame = stream.frame().await.unwrap().unwrap();
        frame.into_data().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_is_told_the_same_once_a_second() {
        let events = running();
        let mut first = events.listen(&Streams::default()).unwrap();
        let early = next(&mut first).await;
        let mut second = events.listen(&Streams::default()).unwrap();
        // Not when it comes to the next one: at once.
        assert_eq!(next(&mut second).await, early);
        let started = events.source.clock.now();
        for _ in 0..5 {
            let told = next(&mut first).await;
            assert_ne!(told, early);
            assert_eq!(next(&mut second).await, told);
        }
        assert_eq!(events.source.clock.now().since(started), 5 * TICK);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_taken_while_nobody_listens() {
        let events = running();
        let mut stream = events.listen(&Streams::default()).unwrap();
        next(&mut stream).await;
        assert!(!events.latest.borrow().is_empty());
        drop(stream);
        tokio::time::sleep(5 * TICK).await;
        assert!(events.latest.borrow().is_empty());
        let mut stream = events.listen(&Streams::default()).unwrap();
        assert!(!next(&mut stream).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_nobody_reads_gives_its_place_back() {
        let events = running();
        let streams = Streams::default();
        let stuck: Vec<_> = std::iter::from_fn(|| events.listen(&streams)).collect();
        assert_eq!(stuck.len(), LISTENERS);
        assert!(streams.now());
        tokio::time::sleep(STUCK + 5 * TICK).await;
        assert_eq!(events.room.available_permits(), LISTENERS);
        assert!(!streams.now());
        drop(stuck);
    }
}
