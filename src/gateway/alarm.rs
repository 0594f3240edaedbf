//! A timer that is used again and again. Setting one costs more than a small request's head: here
//! it is moved only when it would be late, and may ring early.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Made with the first use, and small until then: most that have one never need it.
#[derive(Debug, Default)]
pub struct Alarm(Option<Box<Set>>);

#[derive(Debug)]
struct Set {
    sleep: Pin<Box<Sleep>>,
    /// Whom it wakes, if anybody has asked since it was moved.
    wakes: Option<Waker>,
}

impl Alarm {
    /// One that was set before it is used.
    pub fn set(due: Instant) -> Self {
        let mut alarm = Self::default();
        alarm.by(due);
        alarm
    }

    /// Rings at `due` at the latest. Who hears it looks again at what there is to wait for.
    pub fn by(&mut self, due: Instant) {
        let set = self.0.get_or_insert_with(|| {
            let sleep = Box::pin(sleep(Duration::MAX));
            Box::new(Set { sleep, wakes: None })
        });
        if set.sleep.deadline() > due || set.sleep.is_elapsed() {
            set.sleep.as_mut().reset(due);
            set.wakes = None;
        }
    }

    /// Ready once it rings. It never does before it was set.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(Set { sleep, wakes }) = self.0.as_deref_mut() else {
            return Poll::Pending;
        };
        // Most often the same one asks again, and it has not rung.
        let knows = wakes
            .as_ref()
            .is_some_and(|wakes| wakes.will_wake(cx.waker()));
        if knows && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        let rung = sleep.as_mut().poll(cx);
        *wakes = rung.is_pending().then(|| cx.waker().clone());
        rung
    }

    /// Ready at `due`, and not before.
    pub fn poll_until(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.by(due);
            ready!(self.poll(cx));
            if now() >= due {
                return Poll::Ready(());
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "whether it has rung early is told here"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

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

    #[tokio::test(start_paused = true)]
    async fn whoever_asked_last_is_woken() {
        let began = now();
        let due = began + Duration::from_secs(10);
        let mut alarm = Alarm::default();
        alarm.by(due);
        let mut nobody = Context::from_waker(Waker::noop());
        assert!(alarm.poll(&mut nobody).is_pending());
        poll_fn(|cx| alarm.poll(cx)).await;
        assert!(now() >= due);
    }

    /// Who has it polls it for many reasons.
    #[tokio::test(start_paused = true)]
    async fn whoever_is_woken_meanwhile_is_woken_in_time_all_the_same() {
        let due = now() + Duration::from_secs(75);
        let mut alarm = Alarm::set(due - Duration::from_secs(65));
        let mut ticks = tokio::time::interval(Duration::from_secs(7));
        poll_fn(|cx| {
            while ticks.poll_tick(cx).is_ready() {}
            alarm.poll_until(due, cx)
        })
        .await;
        assert!(now() >= due && now() < due + Duration::from_millis(10));
    }
}
