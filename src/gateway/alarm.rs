//! A timer that is used again and again. Setting one costs more than a small request's head: here
//! it is moved only when it would be late, and may ring early.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Made with the first use: most that have one never need it.
#[derive(Debug, Default)]
pub struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// One that was set before it is used.
    pub fn set(due: Instant) -> Self {
        let mut alarm = Self::default();
        alarm.by(due);
        alarm
    }

    /// Rings at `due` at the latest. Who hears it looks again at what there is to wait for.
    pub fn by(&mut self, due: Instant) {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep(Duration::MAX)));
        if sleep.deadline() > due || sleep.is_elapsed() {
            sleep.as_mut().reset(due);
        }
    }

    /// Ready once it rings. It never does before it was set.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Some(sleep) => sleep.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "paused time is read here")]
    fn now() -> Instant {
        Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn it_rings_in_time_and_then_again() {
        let began = now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut alarm = Alarm::default();
        alarm.by(at(10));
        alarm.by(at(20));
        poll_fn(|cx| alarm.poll(cx)).await;
        assert!(now() >= at(10) && now() < at(11), "not moved to later");
        alarm.by(at(20));
        alarm.by(at(15));
        poll_fn(|cx| alarm.poll(cx)).await;
        assert!(now() >= at(15) && now() < at(16), "moved to earlier");
    }
}
