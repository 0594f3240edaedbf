//! Counters and histograms that every request touches: each thread counts in cells of its own, so that
//! no core waits for a cache line that another has written. They are added up when a page is written.
//!
//! The page is what the crate's own kinds would show. What is seen of a histogram while it is counted
//! in may lack the last value's share of the sum; its buckets and its count always agree.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::core::{Metric, MetricVec, MetricVecBuilder};
use prometheus::proto::{self, LabelPair, MetricType};
use prometheus::{Error, Opts};

/// Threads past it share their cells with an earlier one.
const SHARDS: usize = 8;
/// As many as fill two cache lines, with what is beyond them and their sum.
const BOUNDS: usize = 14;
const NANOS: f64 = 1e9;

static TURNS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static TURN: usize = TURNS.fetch_add(1, Relaxed);
}

/// Which thread this is, in the order in which they first asked.
pub fn turn() -> usize {
    // Nothing has to be dropped, so it is there to the thread's end.
    TURN.with(|&turn| turn)
}

/// A thing for each shard, made by the first who needs it: most series are never counted in.
struct Spread<T>([OnceLock<Box<Own<T>>>; SHARDS]);

/// What one thread writes, on lines of its own: two, as some processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
pub struct Own<T>(pub T);

impl<T: Default> Spread<T> {
    fn new() -> Self {
        Self(std::array::from_fn(|_| OnceLock::new()))
    }

    fn own(&self) -> &T {
        &self.0[turn() % SHARDS].get_or_init(Box::default).0
    }

    fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().filter_map(OnceLock::get).map(|own| &own.0)
    }
}

/// Counters by their labels; a series is on the page from when it was first asked for.
pub type CounterVec = MetricVec<CounterBuilder>;
/// Histograms of seconds by their labels, likewise.
pub type HistogramVec = MetricVec<HistogramBuilder>;

/// # Errors
/// A name that cannot be one.
pub fn counters(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<CounterVec> {
    let options = options(name, help, labels);
    MetricVec::create(MetricType::COUNTER, CounterBuilder, options)
}

/// `bounds`: in seconds, rising. What equals one belongs below it.
///
/// # Errors
/// A name that cannot be one; bounds that are too many, or that no duration can be.
pub fn histograms(
    name: &str,
    help: &str,
    bounds: &[f64],
    labels: &[&str],
) -> prometheus::Result<HistogramVec> {
    let nanos = |&bound| {
        let bound = Duration::try_from_secs_f64(bound);
        bound.map(nanos).map_err(|error| fault(name, &error))
    };
    let bounds = bounds
        .iter()
        .map(nanos)
        .collect::<Result<Arc<[u64]>, _>>()?;
    if bounds.len() > BOUNDS || !bounds.is_sorted_by(|a, b| a < b) {
        return Err(fault(name, &"too many bounds, or they do not rise"));
    }
    let options = options(name, help, labels);
    MetricVec::create(MetricType::HISTOGRAM, HistogramBuilder(bounds), options)
}

fn options(name: &str, help: &str, labels: &[&str]) -> Opts {
    let labels = labels.iter().map(|&label| label.into()).collect();
    Opts::new(name, help).variable_labels(labels)
}

fn fault(name: &str, what: &dyn std::fmt::Display) -> Error {
    Error::Msg(format!("{name}: {what}"))
}

/// Their number is right: whoever asks for a series is told so before this.
fn pairs<V: AsRef<str>>(options: &Opts, values: &[V]) -> Box<[LabelPair]> {
    let pair = |(name, value): (&String, &V)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.clone());
        pair.set_value(value.as_ref().into());
        pair
    };
    let mut pairs: Box<[_]> = options
        .variable_labels
        .iter()
        .zip(values)
        .map(pair)
        .collect();
    pairs.sort();
    pairs
}

/// One series that only rises. Cheap to clone.
#[derive(Clone)]
pub struct Counter(Arc<CounterCells>);

struct CounterCells {
    labels: Box<[LabelPair]>,
    counts: Spread<AtomicU64>,
}

impl Counter {
    pub fn inc(&self) {
        self.0.counts.own().fetch_add(1, Relaxed);
    }

    /// All threads' together.
    pub fn get(&self) -> u64 {
        self.0.counts.all().map(|count| count.load(Relaxed)).sum()
    }
}

impl Metric for Counter {
    fn metric(&self) -> proto::Metric {
        let mut counter = proto::Counter::default();
        counter.set_value(self.get() as f64);
        let mut metric = proto::Metric::from_label(self.0.labels.to_vec());
        metric.set_counter(counter);
        metric
    }
}

/// Makes the series of a [`CounterVec`].
#[derive(Clone)]
pub struct CounterBuilder;

impl MetricVecBuilder for CounterBuilder {
    type M = Counter;
    type P = Opts;

    fn build<V: AsRef<str>>(&self, options: &Opts, values: &[V]) -> prometheus::Result<Counter> {
        Ok(Counter(Arc::new(CounterCells {
            labels: pairs(options, values),
            counts: Spread::new(),
        })))
    }
}

/// One series of durations. Cheap to clone.
#[derive(Clone)]
pub struct Histogram(Arc<HistogramCells>);

struct HistogramCells {
    labels: Box<[LabelPair]>,
    /// In nanoseconds, the same for the whole family.
    bounds: Arc<[u64]>,
    spread: Spread<Cells>,
    /// How often a sum has passed what it can hold: 10,000 requests at once do it in three weeks.
    wraps: AtomicU64,
}

#[derive(Default)]
struct Cells {
    buckets: [AtomicU64; BOUNDS],
    beyond: AtomicU64,
    /// In nanoseconds.
    sum: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let HistogramCells {
            bounds,
            spread,
            wraps,
            ..
        } = &*self.0;
        let nanos = nanos(took);
        let cells = spread.own();
        let below = bounds.iter().position(|&bound| nanos <= bound);
        let bucket = below.and_then(|at| cells.buckets.get(at));
        bucket.unwrap_or(&cells.beyond).fetch_add(1, Relaxed);
        let sum = cells.sum.fetch_add(nanos, Relaxed);
        if sum.checked_add(nanos).is_none() {
            wraps.fetch_add(1, Relaxed);
        }
    }

    fn sum_seconds(&self) -> f64 {
        let sums = self.0.spread.all();
        let rest: u128 = sums.map(|cells| u128::from(cells.sum.load(Relaxed))).sum();
        let wrapped = u128::from(self.0.wraps.load(Relaxed)) << u64::BITS;
        (wrapped + rest) as f64 / NANOS
    }
}

impl Metric for Histogram {
    fn metric(&self) -> proto::Metric {
        let all = |cell: &dyn Fn(&Cells) -> &AtomicU64| {
            let cells = self.0.spread.all();
            cells.map(|cells| cell(cells).load(Relaxed)).sum::<u64>()
        };
        let mut count = 0;
        let bucket = |(at, &bound): (usize, &u64)| {
            count += all(&|cells| &cells.buckets[at]);
            let mut bucket = proto::Bucket::default();
            bucket.set_cumulative_count(count);
            // Both are whole, and a quotient is rounded once: the number that was written.
            bucket.set_upper_bound(bound as f64 / NANOS);
            bucket
        };
        let buckets = self.0.bounds.iter().enumerate().map(bucket).collect();
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(count + all(&|cells| &cells.beyond));
        histogram.set_sample_sum(self.sum_seconds());
        let mut metric = proto::Metric::from_label(self.0.labels.to_vec());
        metric.set_histogram(histogram);
        metric
    }
}

/// Makes the series of a [`HistogramVec`].
#[derive(Clone)]
pub struct HistogramBuilder(Arc<[u64]>);

impl MetricVecBuilder for HistogramBuilder {
    type M = Histogram;
    type P = Opts;

    fn build<V: AsRef<str>>(&self, options: &Opts, values: &[V]) -> prometheus::Result<Histogram> {
        Ok(Histogram(Arc::new(HistogramCells {
            labels: pairs(options, values),
            bounds: self.0.clone(),
            spread: Spread::new(),
            wraps: AtomicU64::new(0),
        })))
    }
}

/// What is too long for the number counts as the longest there is: five centuries.
fn nanos(span: Duration) -> u64 {
    let whole = span.as_secs().saturating_mul(1_000_000_000);
    whole.saturating_add(span.subsec_nanos().into())
}

#[cfg(test)]
mod tests {
    use prometheus::core::Collector;
    use prometheus::{Encoder, HistogramOpts, TextEncoder};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::metrics::times::{OVERHEAD, REQUEST, WAIT};

    const LABELS: [&str; 2] = ["outcome", "cause"];
    const VALUES: [[&str; 2]; 3] = [["b", "x\"y"], ["a", "z"], ["c", ""]];

    fn page(collector: impl Collector + 'static) -> String {
        let registry = prometheus::Registry::new();
        registry.register(Box::new(collector)).unwrap();
        let mut page = Vec::new();
        let encoder = TextEncoder::new();
        encoder.encode(&registry.gather(), &mut page).unwrap();
        String::from_utf8(page).unwrap()
    }

    /// Its lines but for those of sums, and the sums: those are rounded in another order.
    fn parted(page: &str) -> (Vec<&str>, Vec<f64>) {
        let (sums, lines): (Vec<_>, Vec<_>) =
            page.lines().partition(|l| l.starts_with("took_sum{"));
        let sum = |line: &str| line.rsplit(' ').next().unwrap().parse().unwrap();
        (lines, sums.into_iter().map(sum).collect())
    }

    fn durations() -> impl Strategy<Value = Duration> {
        let bounds = [&REQUEST[..], &WAIT, &OVERHEAD].concat();
        let beside = (select(bounds), -1..=1i64).prop_map(|(bound, nanos)| {
            let bound = Duration::from_secs_f64(bound);
            Duration::from_nanos((bound.as_nanos() as u64).saturating_add_signed(nanos))
        });
        prop_oneof![
            4 => beside,
            3 => (0..400_000_000_000u64).prop_map(Duration::from_nanos),
            3 => (0..1_000_000u64).prop_map(Duration::from_nanos),
            // Sums of these do not fit in 64 bits of nanoseconds.
            1 => (1u64 << 33..1 << 34).prop_map(Duration::from_secs),
        ]
    }

    proptest! {
        #[test]
        fn the_page_is_that_of_the_crates_own_histogram(
            family in select(vec![&REQUEST[..], &WAIT, &OVERHEAD]),
            took in vec((select(VALUES.to_vec()), durations()), 0..40),
        ) {
            let options = HistogramOpts::new("took", "How long.").buckets(family.to_vec());
            let theirs = prometheus::HistogramVec::new(options, &LABELS).unwrap();
            let ours = histograms("took", "How long.", family, &LABELS).unwrap();
            theirs.with_label_values(&VALUES[0]);
            ours.with_label_values(&VALUES[0]);
            for (values, took) in took {
                theirs.with_label_values(&values).observe(took.as_secs_f64());
                ours.with_label_values(&values).observe(took);
            }
            let (theirs, ours) = (page(theirs), page(ours));
            let ((lines, sums), (our_lines, our_sums)) = (parted(&theirs), parted(&ours));
            prop_assert_eq!(our_lines, lines);
            prop_assert_eq!(our_sums.len(), sums.len());
            for (ours, theirs) in our_sums.into_iter().zip(sums) {
                prop_assert!((ours - theirs).abs() <= theirs * 1e-12, "{} {}", ours, theirs);
            }
        }

        #[test]
        fn the_page_is_that_of_the_crates_own_counter(
            events in vec(select(VALUES.to_vec()), 0..40),
        ) {
            let options = Opts::new("events_total", "How many.");
            let theirs = prometheus::IntCounterVec::new(options, &LABELS).unwrap();
            let ours = counters("events_total", "How many.", &LABELS).unwrap();
            theirs.with_label_values(&VALUES[0]);
            ours.with_label_values(&VALUES[0]);
            for values in events {
                theirs.with_label_values(&values).inc();
                ours.with_label_values(&values).inc();
            }
            prop_assert_eq!(page(ours), page(theirs));
        }
    }

    #[test]
    fn many_threads_lose_nothing() {
        const THREADS: u64 = 3 * SHARDS as u64;
        const EACH: u64 = 1_000;
        let events = counters("events_total", "How many.", &["kind"]).unwrap();
        let took = histograms("took", "How long.", &REQUEST, &["kind"]).unwrap();
        let event = events.with_label_values(&["one"]);
        let histogram = took.with_label_values(&["one"]);
        std::thread::scope(|threads| {
            for _ in 0..THREADS {
                threads.spawn(|| {
                    for nth in 0..EACH {
                        event.inc();
                        histogram.observe(Duration::from_millis(if nth % 2 == 0 { 5 } else { 6 }));
                    }
                });
            }
        });
        assert_eq!(event.get(), THREADS * EACH);
        let page = page(took);
        for line in [
            r#"took_bucket{kind="one",le="0.005"} 12000"#,
            r#"took_bucket{kind="one",le="0.01"} 24000"#,
            r#"took_count{kind="one"} 24000"#,
            r#"took_sum{kind="one"} 132"#,
        ] {
            assert!(page.lines().any(|shown| shown == line), "{line}\n{page}");
        }
    }

    #[test]
    fn bounds_that_cannot_be_are_refused() {
        for bounds in [&[1.0; BOUNDS + 1][..], &[2.0, 1.0], &[-1.0], &[f64::NAN]] {
            assert!(histograms("took", "How long.", bounds, &["kind"]).is_err());
        }
        assert_eq!(size_of::<Own<Cells>>(), 128);
    }
}
