//! The counters of one endpoint label.

use std::sync::OnceLock;

use prometheus::IntCounter;

use crate::limit::ladder::Cause;
use crate::metrics::Metrics;
use crate::metrics::spread::Counter;
use crate::operation::{Group, Operation};
use crate::outcome::Outcome;

/// Classes of status.
pub const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// Why the upstream answered 429. `backlog`: its queue is full.
pub const CAUSES: [&str; 4] = ["rate", "concurrency", "backlog", "outside"];
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
    groups: [OnceLock<Box<GroupCounters>>; Group::ALL.len()],
}

/// All that can come of one operation: the first of them brings the others, at zero.
struct Counters {
    requests: [Counter; Outcome::ALL.len()],
    responses: [Counter; CLASSES.len()],
}

/// All that a lane can count.
struct GroupCounters {
    throttled: [IntCounter; CAUSES.len()],
    idle: prometheus::Counter,
}

/// What has been counted for one endpoint label and group so far, for those who only look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    /// Requests by how they ended, in the order of [`Outcome::ALL`].
    pub outcomes: [u64; Outcome::ALL.len()],
    /// The upstream's answers by class of status, in the order of [`CLASSES`].
    pub answers: [u64; CLASSES.len()],
    /// The upstream's 429s by cause, in the order of [`CAUSES`].
    pub throttled: [u64; CAUSES.len()],
    /// Time in which somebody waited who could have gone, as of the last [`Metrics::show`].
    pub idle_seconds: f64,
}

impl EndpointMetrics {
    pub(super) fn new(metrics: Metrics, label: Box<str>) -> Self {
        Self {
            metrics,
            label,
            operations: std::array::from_fn(|_| OnceLock::new()),
            groups: std::array::from_fn(|_| OnceLock::new()),
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

    fn group(&self, group: Group) -> &GroupCounters {
        self.groups[group.index()].get_or_init(|| {
            let families = &self.metrics.families;
            let labels = [group.name(), &*self.label];
            let throttled = |cause| {
                let labels = [labels[0], labels[1], cause];
                families.throttled.with_label_values(&labels)
            };
            for shed in SHEDS {
                let labels = [labels[0], labels[1], shed.name()];
                families.shadow.with_label_values(&labels);
            }
            Box::new(GroupCounters {
                throttled: CAUSES.map(throttled),
                idle: families.idle.with_label_values(&labels),
            })
        })
    }

    /// Puts what a lane can count on the page, at zero.
    pub fn expect_lane(&self, group: Group) {
        self.group(group);
    }

    /// What has been counted for one group; `None` if there was nothing to count yet.
    pub fn counted(&self, group: Group) -> Option<Counted> {
        let of_group = self.groups[group.index()].get();
        let operations = Operation::ALL.into_iter().filter(|o| o.group() == group);
        let of_operations = operations.filter_map(|o| self.operations[o as usize].get());
        let mut counted = Counted::default();
        let mut any = of_group.is_some();
        for counters in of_operations {
            any = true;
            for (sum, one) in counted.outcomes.iter_mut().zip(&counters.requests) {
                *sum += one.get();
            }
            for (sum, one) in counted.answers.iter_mut().zip(&counters.responses) {
                *sum += one.get();
            }
        }
        if let Some(counters) = of_group {
            counted.throttled = std::array::from_fn(|cause| counters.throttled[cause].get());
            counted.idle_seconds = counters.idle.get();
        }
        any.then_some(counted)
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
        // Whoever looks reads the handles, and has to find them.
        self.expect_lane(group);
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
