//! The units: time as the core sees it, and what a lane is allowed. Only valid values exist.

use std::num::NonZeroU32;
use std::ops::Add;
use std::time::Duration;

/// A point in time: nanoseconds since an epoch the caller picks. Never read from a clock in here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The caller's epoch.
    pub const EPOCH: Timestamp = Timestamp(0);

    /// Saturates after 584 years.
    pub fn from_epoch(since: Duration) -> Self {
        Timestamp(nanos(since))
    }

    /// Nanoseconds since the epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    pub const fn from_nanos(nanos: u64) -> Self {
        Timestamp(nanos)
    }

    /// Zero if `earlier` is later.
    pub const fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(self.nanos_since(earlier))
    }

    /// The same in nanoseconds.
    pub const fn nanos_since(self, earlier: Timestamp) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// So long ago; no earlier than the epoch.
    pub fn before(self, span: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(nanos(span)))
    }

    /// The first instant strictly after this one.
    pub const fn next(self) -> Timestamp {
        Timestamp(self.0.saturating_add(1))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Timestamp;

    fn add(self, span: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(nanos(span)))
    }
}

/// `span` in nanoseconds, saturating after 584 years.
pub(crate) const fn nanos(span: Duration) -> u64 {
    let whole = span.as_secs().saturating_mul(1_000_000_000);
    whole.saturating_add(span.subsec_nanos() as u64)
}

/// At most `requests` in any span of `period`. Neither part can be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    requests: NonZeroU32,
    period: Duration,
}

impl Rate {
    /// The most requests one window may hold: the guard keeps eight bytes for each.
    pub const MOST_REQUESTS: u32 = 1_000_000;
    /// The longest window: stamps are kept this long.
    pub const LONGEST_PERIOD: Duration = Duration::from_secs(24 * 3600);

    /// `None` if either part is zero or past its bound.
    pub fn new(requests: u32, period: Duration) -> Option<Self> {
        let requests = NonZeroU32::new(requests)?;
        let fits = requests.get() <= Self::MOST_REQUESTS && period <= Self::LONGEST_PERIOD;
        // Below a microsecond a slack of a thousandth is no longer a whole nanosecond.
        (fits && period >= Duration::from_micros(1)).then_some(Self { requests, period })
    }

    /// N.
    pub const fn requests(self) -> u32 {
        self.requests.get()
    }

    /// W.
    pub const fn period(self) -> Duration {
        self.period
    }
}

/// How much of the window may go out at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Burst {
    /// A quarter of N, then as learnt; no shaping at all below N = 100.
    #[default]
    Auto,
    /// This many requests, less after a 429, never more.
    Fixed(NonZeroU32),
}

/// What the upstream is taken to count as the moment of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counts {
    /// Its arrival: no later than its answer's head, or `margin` after its last byte was written.
    #[default]
    Arrival,
    /// The end of the exchange, and nothing earlier.
    Completion,
}

/// What one lane may spend, and how its spending is bounded. Durations not named here follow from
/// [`Rate::period`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// `None`: no rate limit.
    pub rate: Option<Rate>,
    pub burst: Burst,
    /// The most exchanges at the upstream at once; `None`: no limit.
    pub concurrency: Option<NonZeroU32>,
    /// Percent (1 to 100) of `concurrency` that held calls may use together; at least one permit.
    pub hold_share: u8,
    /// The longest time from the last byte written to its arrival upstream.
    pub margin: Duration,
    /// How long a permit outlives its exchange: the upstream has to count down too.
    pub settle: Duration,
    pub counts: Counts,
}

impl Quota {
    /// 250 ms: above any transit between two clouds that still answers (semantics, section 3).
    pub const MARGIN: Duration = Duration::from_millis(250);
    /// 5 ms (semantics, section 4).
    pub const SETTLE: Duration = Duration::from_millis(5);
    /// 90 percent (semantics, section 4).
    pub const HOLD_SHARE: u8 = 90;

    /// A quota with the defaults of everything but the two documented numbers.
    pub fn new(rate: Option<Rate>, concurrency: Option<NonZeroU32>) -> Self {
        Self {
            rate,
            burst: Burst::Auto,
            concurrency,
            hold_share: Self::HOLD_SHARE,
            margin: Self::MARGIN,
            settle: Self::SETTLE,
            counts: Counts::Arrival,
        }
    }

    /// What one of `replicas` podgates may spend of it: its numbers divided and rounded down, but
    /// never to nothing.
    pub fn share(&self, replicas: NonZeroU32) -> Self {
        let part = |number: NonZeroU32| {
            NonZeroU32::new(number.get() / replicas).unwrap_or(NonZeroU32::MIN)
        };
        Self {
            rate: self.rate.map(|rate| Rate {
                requests: part(rate.requests),
                ..rate
            }),
            burst: match self.burst {
                Burst::Auto => Burst::Auto,
                Burst::Fixed(burst) => Burst::Fixed(part(burst)),
            },
            concurrency: self.concurrency.map(part),
            ..*self
        }
    }

    /// Permits that held calls may use together; `None` without a concurrency limit.
    pub fn hold_limit(&self, concurrency: u32) -> u32 {
        let share = u64::from(concurrency) * u64::from(self.hold_share) / 100;
        u32::try_from(share).unwrap_or(u32::MAX).max(1)
    }
}

/// Whether a lane's verdicts bind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    #[default]
    Enforce,
    /// Everything passes and is stamped; what would have been shed is counted.
    Shadow,
    /// Everything passes and is stamped.
    Disabled,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_no_zero_and_no_unbounded_part() {
        let second = Duration::from_secs(1);
        assert!(Rate::new(0, second).is_none());
        assert!(Rate::new(1, Duration::ZERO).is_none());
        assert!(Rate::new(Rate::MOST_REQUESTS + 1, second).is_none());
        assert!(Rate::new(1, Rate::LONGEST_PERIOD + second).is_none());
        assert!(Rate::new(2, second).is_some());
    }

    #[test]
    fn shares_together_are_never_more_than_the_whole_unless_it_is_less_than_one_each() {
        let number = |n| NonZeroU32::new(n).unwrap();
        for whole in 1..=60 {
            let rate = Rate::new(whole, Duration::from_secs(10));
            let mut quota = Quota::new(rate, Some(number(whole)));
            quota.burst = Burst::Fixed(number(whole));
            assert_eq!(quota.share(NonZeroU32::MIN), quota);
            for replicas in 1..=70 {
                let share = quota.share(number(replicas));
                let requests = share.rate.unwrap().requests();
                let most = replicas.max(whole);
                assert!((1..=most).contains(&(requests * replicas)));
                // Nothing is left but what cannot be divided.
                assert!(requests * replicas + replicas > whole);
                assert_eq!(share.concurrency, Some(number(requests)));
                assert_eq!(share.burst, Burst::Fixed(number(requests)));
            }
        }
        let none = Quota::new(None, None);
        assert_eq!(none.share(number(3)), none);
    }

    #[test]
    fn held_calls_always_find_one_permit() {
        let quota = Quota::new(None, NonZeroU32::new(400));
        assert_eq!(quota.hold_limit(400), 360);
        assert_eq!(quota.hold_limit(1), 1);
    }
}
