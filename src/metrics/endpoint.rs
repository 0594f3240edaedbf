//! The counters of one endpoint label.

use std::sync::OnceLock;

use prometheus::IntCounter;

use crate::limit::ladder::Cause;
use crate::metrics::Metrics;
use crate::operation::{Group, Operation};
use crate::outcome::Outcome;

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// Why the upstream answered 429. `backlog`: its queue is full.
const CAUSES: [&str; 4] = ["rate", "concurrency", "backlog", "outside"];
/// What a lane may refuse by.
const SHEDS: [Outcome; 4] = [
    Outcome::QueueFull,
    Outcome::OutOfReach,
    Outcome::WaitExpired,
    Outcome::Paused,
];

/// Every handle of one endpoint label.
pub struct EndpointMetrics {
    metrics: Metrics,
    label: Box<str>,
    operations: [OnceLock<Box<Counters>>; Operation::ALL.len()],
}

/// All that can come of one operation: the first of them brings the others, at zero.
struct Counters {
    requests: [IntCounter; Outcome::ALL.len()],
    responses: [IntCounter; CLASSES.len()],
}

impl EndpointMetrics {
    pub(super) fn new(metrics: Metrics, label: Box<str>) -> Self {
        Self {
            metrics,
            label,
            operations: std::array::from_fn(|_| OnceLock::new()),
        }
    }

    /// What it is called on the page.
    pub fn label(&self) -> &str {
        &self.label
    }

    fn counters(&self, operation: Operation) -> &Counters {
        self.operations[operation as usize].get_or_init(|| {
            let families = &self.metrics.families;
            let requests = |outcome: Outcome| {
                let labels = [operation.name(), &*self.label, outcome.name()];
                families.requests.with_label_values(&labels)
            };
            let responses = |class| {
                let labels = [operation.name(), &*self.label, class];
                families.responses.with_label_values(&labels)
            };
            Box::new(Counters {
                requests: Outcome::ALL.map(requests),
                responses: CLASSES.map(responses),
            })
        })
    }

    pub(super) fn expect(&self, operation: Operation) {
        self.counters(operation);
    }

    /// Puts what a lane can count on the page, at zero.
    pub fn expect_lane(&self, group: Group) {
        let families = &self.metrics.families;
        let (group, label) = (group.name(), &*self.label);
        for cause in CAUSES {
            families.throttled.with_label_values(&[group, label, cause]);
        }
        for shed in SHEDS {
            let labels = [group, label, shed.name()];
            families.shadow.with_label_values(&labels);
        }
        families.idle.with_label_values(&[group, label]);
    }

    /// A request has ended.
    pub fn ended(&self, operation: Operation, outcome: Outcome) {
        self.counters(operation).requests[outcome as usize].inc();
    }

    /// The upstream has answered with this status.
    pub fn answered(&self, operation: Operation, status: u16) {
        let class = usize::from(status / 100).clamp(1, CLASSES.len());
        self.counters(operation).responses[class - 1].inc();
    }

    /// The upstream has answered 429.
    pub fn throttled(&self, group: Group, cause: Cause) {
        let cause = match cause {
            Cause::Rate => "rate",
            Cause::Concurrency => "concurrency",
            Cause::Outside => "outside",
        };
        let labels = [group.name(), &*self.label, cause];
        let family = &self.metrics.families.throttled;
        family.with_label_values(&labels).inc();
    }

    /// A lane in shadow mode let a request pass that it would have shed.
    pub fn shadowed(&self, group: Group, outcome: Outcome) {
        let labels = [group.name(), &*self.label, outcome.name()];
        let family = &self.metrics.families.shadow;
        family.with_label_values(&labels).inc();
    }
}
