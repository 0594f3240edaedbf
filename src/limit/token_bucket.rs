//! Token bucket: `burst` at once, then one every W/N. Shapes what the window guard allows.
//!
//! `governor` decides, asked last because it can neither peek nor give back. It runs on the
//! bucket's own time, which this file moves: standing still where tokens must not accrue, set
//! anew where the bucket is rebuilt at another's level. The twin beside it is the same arithmetic
//! in the open, so that the level can be read and the next token foretold.
//! The only file that names governor.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::limit::quota::{Timestamp, nanos};

/// The time governor reads: nanoseconds that pass only when the bucket says so.
#[derive(Clone, Default)]
struct BucketTime(Arc<AtomicU64>);

impl Clock for BucketTime {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        // Relaxed: the lane's lock orders every access.
        Nanos::new(self.0.load(Ordering::Relaxed))
    }
}

pub struct TokenBucket {
    governor: RateLimiter<NotKeyed, InMemoryState, BucketTime, NoOpMiddleware<Nanos>>,
    time: BucketTime,
    depth: NonZeroU32,
    /// Nanoseconds a token takes to accrue.
    interval: u64,
    /// The twin of governor's theoretical arrival time, in bucket time.
    full_at: u64,
    /// When the bucket's time was last moved.
    moved: Timestamp,
    /// Tokens given back, spent before governor is asked.
    credit: u32,
}

impl TokenBucket {
    /// A full bucket of `depth` tokens that refills `requests` per `period`.
    pub fn full(depth: NonZeroU32, requests: u32, period: Duration, now: Timestamp) -> Self {
        let interval = interval(requests, period);
        Self::at_level(
            depth,
            interval,
            u128::from(depth.get()) * u128::from(interval),
            now,
        )
    }

    /// A bucket with `level` nanoseconds' worth of tokens, at most full.
    fn at_level(depth: NonZeroU32, interval: u64, level: u128, now: Timestamp) -> Self {
        let time = BucketTime::default();
        let quota = Quota::with_period(Duration::from_nanos(interval))
            .unwrap_or(Quota::per_second(NonZeroU32::MIN))
            .allow_burst(depth);
        let governor = RateLimiter::direct_with_clock(quota, time.clone());
        // Governor starts full: emptied at time zero, it holds what accrues up to `level`.
        let emptied = governor.check_n(depth);
        debug_assert!(matches!(emptied, Ok(Ok(()))));
        let capacity = interval.saturating_mul(u64::from(depth.get()));
        let level = u64::try_from(level).unwrap_or(u64::MAX).min(capacity);
        time.0.store(level, Ordering::Relaxed);
        Self {
            governor,
            time,
            depth,
            interval,
            full_at: capacity,
            moved: now,
            credit: 0,
        }
    }

    /// A bucket with `tokens` in it, at most full.
    pub fn with_tokens(
        tokens: u32,
        depth: NonZeroU32,
        requests: u32,
        period: Duration,
        now: Timestamp,
    ) -> Self {
        let interval = interval(requests, period);
        Self::at_level(
            depth,
            interval,
            u128::from(tokens) * u128::from(interval),
            now,
        )
    }

    fn bucket_now(&self) -> u64 {
        self.time.0.load(Ordering::Relaxed)
    }

    fn capacity(&self) -> u64 {
        self.interval.saturating_mul(u64::from(self.depth.get()))
    }

    /// Tokens accrued, as nanoseconds' worth.
    fn level(&self) -> u64 {
        self.capacity()
            - self
                .full_at
                .saturating_sub(self.bucket_now())
                .min(self.capacity())
    }

    /// Whole tokens that could go now, credit included. `advance` first.
    pub fn tokens(&self) -> u32 {
        let accrued = u32::try_from(self.level() / self.interval).unwrap_or(u32::MAX);
        accrued.saturating_add(self.credit)
    }

    pub fn depth(&self) -> u32 {
        self.depth.get()
    }

    /// Lets time pass up to `now`. With `ceiling`, tokens do not accrue above it, nor are any lost.
    pub fn advance(&mut self, ceiling: Option<u32>, now: Timestamp) {
        let before = self.bucket_now();
        let mut bucket_now = before.saturating_add(now.nanos_since(self.moved));
        if let Some(ceiling) = ceiling {
            let allowed = self.interval.saturating_mul(u64::from(ceiling));
            let missing = self.capacity().saturating_sub(allowed);
            if missing > 0 {
                let reached = self.full_at.saturating_sub(missing);
                bucket_now = bucket_now.min(reached).max(before);
            }
        }
        self.moved = self.moved.max(now);
        self.time.0.store(bucket_now, Ordering::Relaxed);
    }

    /// Takes one token, or says when the next one comes. `advance` to `now` first.
    pub fn take(&mut self, now: Timestamp) -> Result<(), Timestamp> {
        if self.credit > 0 {
            self.credit -= 1;
            return Ok(());
        }
        match self.governor.check() {
            Ok(()) => {
                self.full_at = self
                    .full_at
                    .max(self.bucket_now())
                    .saturating_add(self.interval);
                Ok(())
            }
            Err(not_until) => {
                let wait = not_until
                    .earliest_possible()
                    .as_u64()
                    .saturating_sub(self.bucket_now());
                Err(now + Duration::from_nanos(wait))
            }
        }
    }

    /// When `nth` (from 1) more tokens can have accrued, if all are taken as they come.
    pub fn nth_token(&self, nth: u32, now: Timestamp) -> Timestamp {
        let owed = u64::from(nth.saturating_sub(self.credit));
        let missing = owed
            .saturating_mul(self.interval)
            .saturating_sub(self.level());
        now + Duration::from_nanos(missing)
    }

    /// A token taken for nothing comes back.
    pub fn put_back(&mut self) {
        self.credit = (self.credit + 1).min(self.depth.get());
    }

    /// Another depth or refill, at the level of before: clipped where it no longer fits, never in
    /// debt. `advance` to `now` first.
    pub fn reshape(&mut self, depth: NonZeroU32, requests: u32, period: Duration, now: Timestamp) {
        let interval = interval(requests, period);
        if (depth, interval) == (self.depth, self.interval) {
            return;
        }
        let level = u128::from(self.level()) * u128::from(interval) / u128::from(self.interval);
        let credit = self.credit.min(depth.get());
        *self = Self {
            credit,
            ..Self::at_level(depth, interval, level, now)
        };
    }
}

/// Nanoseconds between two tokens, at least one.
fn interval(requests: u32, period: Duration) -> u64 {
    (nanos(period) / u64::from(requests.max(1))).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const W: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_epoch(Duration::from_millis(millis))
    }

    fn depth(tokens: u32) -> NonZeroU32 {
        NonZeroU32::new(tokens).unwrap()
    }

    fn drain(bucket: &mut TokenBucket, now: Timestamp) -> u32 {
        (0..).take_while(|_| bucket.take(now).is_ok()).count() as u32
    }

    #[test]
    fn the_burst_goes_at_once_and_the_rest_is_paced() {
        let mut bucket = TokenBucket::full(depth(250), 1000, W, at(0));
        assert_eq!(drain(&mut bucket, at(0)), 250);
        assert_eq!(bucket.take(at(0)), Err(at(10)));
        bucket.advance(None, at(10));
        assert_eq!(drain(&mut bucket, at(10)), 1);
        bucket.advance(None, at(60_000));
        assert_eq!(drain(&mut bucket, at(60_000)), 250);
    }

    #[test]
    fn nothing_accrues_above_the_ceiling_and_nothing_is_lost() {
        let mut bucket = TokenBucket::full(depth(1000), 1000, W, at(0));
        bucket.advance(Some(10), at(5_000));
        assert_eq!(bucket.tokens(), 1000, "a level above the ceiling stays");
        assert_eq!(drain(&mut bucket, at(5_000)), 1000);
        bucket.advance(Some(10), at(15_000));
        assert_eq!(drain(&mut bucket, at(15_000)), 10);
    }

    #[test]
    fn a_token_given_back_is_spent_first() {
        let mut bucket = TokenBucket::full(depth(2), 1000, W, at(0));
        assert_eq!(drain(&mut bucket, at(0)), 2);
        bucket.put_back();
        assert_eq!(drain(&mut bucket, at(0)), 1);
        for _ in 0..5 {
            bucket.put_back();
        }
        assert_eq!(bucket.tokens(), 2, "capped at the burst");
    }

    #[test]
    fn a_rebuilt_bucket_keeps_its_level_and_clips_what_no_longer_fits() {
        let mut bucket = TokenBucket::full(depth(100), 1000, W, at(0));
        for _ in 0..40 {
            bucket.take(at(0)).unwrap();
        }
        bucket.reshape(depth(400), 500, W, at(0));
        assert_eq!(bucket.tokens(), 60);
        bucket.reshape(depth(20), 500, W, at(0));
        assert_eq!(drain(&mut bucket, at(0)), 20);
        assert_eq!(bucket.take(at(0)), Err(at(20)), "empty, not in debt");
    }

    proptest! {
        /// Governor and the twin give the same verdict and the same time, whatever happens.
        #[test]
        fn the_twin_never_disagrees(
            tokens in 1u32..40,
            requests in 1u32..2000,
            steps in prop::collection::vec((0u8..5, 0u64..400), 1..200),
        ) {
            let mut bucket = TokenBucket::full(depth(tokens), requests, W, at(0));
            let mut now = at(0);
            for (step, millis) in steps {
                now = now + Duration::from_millis(millis);
                bucket.advance((step == 4).then_some(1), now);
                let (tokens_before, next) = (bucket.tokens(), bucket.nth_token(1, now));
                match step {
                    0 => bucket.put_back(),
                    1 => bucket.reshape(depth(1 + millis as u32 % 40), requests, W, now),
                    _ => match bucket.take(now) {
                        Ok(()) => {
                            prop_assert!(tokens_before >= 1);
                            prop_assert_eq!(bucket.tokens(), tokens_before - 1);
                        }
                        Err(until) => {
                            prop_assert_eq!(tokens_before, 0);
                            prop_assert_eq!(until, next);
                        }
                    },
                }
            }
        }
    }
}
