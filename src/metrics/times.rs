//! How long requests take, and with what.

use std::sync::OnceLock;
use std::time::Duration;

use prometheus::Registry;

use crate::metrics::spread::{self, Histogram, HistogramVec};
use crate::metrics::{Metrics, declared};
use crate::operation::Operation;
use crate::outcome::Outcome;

/// From a status poll on the same continent to the longest hold there is (contract, section 1.3).
pub(super) const REQUEST: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 90.0, 300.0,
];
/// Up to twice the longest wait of the preset.
pub(super) const WAIT: [f64; 13] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0,
];
/// What podgate itself costs: tens of microseconds, unless the machine is busy.
pub(super) const OVERHEAD: [f64; 11] = [
    0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25,
];
/// How requests end that have waited, mostly: on the page from the start.
const WAITED: [Outcome; 6] = [
    Outcome::Forwarded,
    Outcome::ClientGone,
    Outcome::QueueFull,
    Outcome::OutOfReach,
    Outcome::WaitExpired,
    Outcome::Paused,
];

/// What a request took, in parts that do not overlap. `None`: it did not come so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// From the request's head to the last byte of its answer, or to its end.
    pub total: Duration,
    /// In the lane's queue, all tries together.
    pub queued: Option<Duration>,
    /// From the permit to the head of the upstream's answer, all tries together.
    pub upstream: Option<Duration>,
    /// From the end of the request's body to the answer's head, less what is above.
    pub overhead: Option<Duration>,
}

pub(super) struct Histograms {
    request: [Histogram; Operation::ALL.len()],
    upstream: [Histogram; Operation::ALL.len()],
    overhead: [Histogram; Operation::ALL.len()],
    queue_wait: HistogramVec,
    waited: [[OnceLock<Histogram>; Outcome::ALL.len()]; Operation::ALL.len()],
}

impl Histograms {
    pub(super) fn declare(registry: &Registry) -> prometheus::Result<Self> {
        let family = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            declared(registry, spread::histograms(name, help, buckets, labels))
        };
        let by_operation = |family: HistogramVec| {
            Operation::ALL.map(|operation| family.with_label_values(&[operation.name()]))
        };
        let histograms = Self {
            request: by_operation(family(
                "podgate_request_duration_seconds",
                "From a request's head to the last byte of its answer.",
                &REQUEST,
                &["operation"],
            )?),
            upstream: by_operation(family(
                "podgate_upstream_duration_seconds",
                "From a request's permit to the head of the upstream's answer.",
                &REQUEST,
                &["operation"],
            )?),
            overhead: by_operation(family(
                "podgate_overhead_seconds",
                "What podgate itself added: neither body, queue nor upstream.",
                &OVERHEAD,
                &["operation"],
            )?),
            queue_wait: family(
                "podgate_queue_wait_seconds",
                "How long requests waited for their turn, by how they ended.",
                &WAIT,
                &["operation", "outcome"],
            )?,
            waited: std::array::from_fn(|_| std::array::from_fn(|_| OnceLock::new())),
        };
        for operation in Operation::ALL {
            for outcome in WAITED {
                histograms.waited(operation, outcome);
            }
        }
        Ok(histograms)
    }

    fn waited(&self, operation: Operation, outcome: Outcome) -> &Histogram {
        self.waited[operation as usize][outcome as usize].get_or_init(|| {
            let labels = [operation.name(), outcome.name()];
            self.queue_wait.with_label_values(&labels)
        })
    }
}

impl Metrics {
    /// A request is over, and this is what it took.
    pub fn took(&self, operation: Operation, outcome: Outcome, times: &Times) {
        let histograms = &self.families.times;
        let index = operation as usize;
        histograms.request[index].observe(times.total);
        if let Some(queued) = times.queued {
            histograms.waited(operation, outcome).observe(queued);
        }
        if let Some(upstream) = times.upstream {
            histograms.upstream[index].observe(upstream);
        }
        if let Some(overhead) = times.overhead {
            histograms.overhead[index].observe(overhead);
        }
    }
}
