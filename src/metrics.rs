//! Every series podgate exports, declared once. Labels come from closed sets, or from a capped one
//! with `other`; handles are resolved once and kept, never looked up per request.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::RwLock;
use prometheus::{
    Counter, CounterVec, Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::limit::ladder::Cause;
use crate::limit::local::Snapshot;
use crate::operation::{Group, Operation};
use crate::outcome::Outcome;

/// Endpoints with a label of their own; those seen later share `other`, or strangers could grow
/// the page without end.
const ENDPOINTS: usize = 50;
/// The label of every endpoint past the cap.
const OTHER: &str = "other";

/// The registry and the families. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    families: Arc<Families>,
}

struct Families {
    registry: Registry,
    requests: IntCounterVec,
    responses: IntCounterVec,
    throttled: IntCounterVec,
    shadow: IntCounterVec,
    queue_depth: IntGaugeVec,
    permits_in_use: IntGaugeVec,
    permits_limit: IntGaugeVec,
    window_used: IntGaugeVec,
    window_limit: IntGaugeVec,
    window_effective: IntGaugeVec,
    burst_limit: IntGaugeVec,
    paused: IntGaugeVec,
    idle: CounterVec,
    connections: IntGauge,
    endpoints: RwLock<HashMap<Box<str>, Arc<EndpointMetrics>>>,
    other: OnceLock<Arc<EndpointMetrics>>,
}

impl Metrics {
    /// # Errors
    /// Only if two series were declared alike, which a test rules out.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let gauges = |name: &str, help: &str| {
            let family = IntGaugeVec::new(Opts::new(name, help), &["group", "endpoint"])?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let idle = CounterVec::new(
            Opts::new(
                "podgate_idle_budget_seconds_total",
                "Time in which somebody waited who could have gone. Flat zero is the promise.",
            ),
            &["group", "endpoint"],
        )?;
        registry.register(Box::new(idle.clone()))?;
        let connections =
            IntGauge::new("podgate_connections", "Connections from clients now open.")?;
        registry.register(Box::new(connections.clone()))?;
        let families = Families {
            requests: counters(
                "podgate_requests_total",
                "Requests by how they ended.",
                &["operation", "endpoint", "outcome"],
            )?,
            responses: counters(
                "podgate_upstream_responses_total",
                "Answers of the upstream by class of status.",
                &["operation", "endpoint", "status"],
            )?,
            throttled: counters(
                "podgate_upstream_throttled_total",
                "429s of the upstream by likely cause. Flat zero is the promise.",
                &["group", "endpoint", "cause"],
            )?,
            shadow: counters(
                "podgate_shadow_shed_total",
                "Requests a lane in shadow mode let pass that enforce would have shed.",
                &["group", "endpoint", "outcome"],
            )?,
            queue_depth: gauges("podgate_queue_depth", "Requests that wait now.")?,
            permits_in_use: gauges("podgate_permits_in_use", "Exchanges at the upstream now.")?,
            permits_limit: gauges("podgate_permits_limit", "The most of them at once.")?,
            window_used: gauges("podgate_window_used", "Requests counted in the window now.")?,
            window_limit: gauges(
                "podgate_window_limit",
                "The most of them a window may hold.",
            )?,
            window_effective: gauges(
                "podgate_window_effective_limit",
                "That limit as the upstream's refusals have taught it.",
            )?,
            burst_limit: gauges("podgate_burst_limit", "The most that go at once from idle.")?,
            paused: gauges("podgate_lane_paused", "1 while a refusal pauses the lane.")?,
            idle,
            connections,
            endpoints: RwLock::default(),
            other: OnceLock::new(),
            registry,
        };
        Ok(Self {
            families: Arc::new(families),
        })
    }

    /// The handles of one endpoint, its own or those of `other`.
    pub fn endpoint(&self, endpoint: &str) -> Arc<EndpointMetrics> {
        if let Some(known) = self.families.endpoints.read().get(endpoint) {
            return known.clone();
        }
        let mut endpoints = self.families.endpoints.write();
        if let Some(known) = endpoints.get(endpoint) {
            return known.clone();
        }
        if endpoints.len() >= ENDPOINTS {
            return self.other();
        }
        let handles = Arc::new(EndpointMetrics::new(self.clone(), endpoint.into()));
        endpoints.insert(endpoint.into(), handles.clone());
        handles
    }

    /// The handles of requests that belong to no endpoint with a label of its own.
    pub fn other(&self) -> Arc<EndpointMetrics> {
        let other = || Arc::new(EndpointMetrics::new(self.clone(), OTHER.into()));
        self.families.other.get_or_init(other).clone()
    }

    /// Connections from clients now open.
    pub fn connections(&self) -> &IntGauge {
        &self.families.connections
    }

    /// The page in the Prometheus text format.
    ///
    /// # Errors
    /// If a series cannot be written as text.
    pub fn page(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut page = Vec::new();
        TextEncoder::new().encode(&self.families.registry.gather(), &mut page)?;
        Ok(page)
    }
}

/// Every handle of one endpoint label.
pub struct EndpointMetrics {
    metrics: Metrics,
    label: Box<str>,
    requests: [[OnceLock<IntCounter>; Outcome::ALL.len()]; Operation::ALL.len()],
    responses: [[OnceLock<IntCounter>; 5]; Operation::ALL.len()],
}

impl EndpointMetrics {
    fn new(metrics: Metrics, label: Box<str>) -> Self {
        let requests = std::array::from_fn(|_| std::array::from_fn(|_| OnceLock::new()));
        let responses = std::array::from_fn(|_| std::array::from_fn(|_| OnceLock::new()));
        Self {
            metrics,
            label,
            requests,
            responses,
        }
    }

    /// A request has ended.
    pub fn ended(&self, operation: Operation, outcome: Outcome) {
        let labels = [operation.name(), &*self.label, outcome.name()];
        let family = &self.metrics.families.requests;
        let handle = &self.requests[operation as usize][outcome as usize];
        handle
            .get_or_init(|| family.with_label_values(&labels))
            .inc();
    }

    /// The upstream has answered with this status.
    pub fn answered(&self, operation: Operation, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5);
        let name = ["1xx", "2xx", "3xx", "4xx", "5xx"][class - 1];
        let labels = [operation.name(), &*self.label, name];
        let family = &self.metrics.families.responses;
        let handle = &self.responses[operation as usize][class - 1];
        handle
            .get_or_init(|| family.with_label_values(&labels))
            .inc();
    }

    /// The upstream has answered 429.
    pub fn throttled(&self, group: Group, cause: Cause) {
        let cause = match cause {
            Cause::Rate => "rate",
            Cause::Concurrency => "concurrency",
            Cause::Outside => "outside",
        };
        let labels = [group.name(), &*self.label, cause];
        self.metrics
            .families
            .throttled
            .with_label_values(&labels)
            .inc();
    }

    /// A lane in shadow mode let a request pass that it would have shed.
    pub fn shadowed(&self, group: Group, outcome: Outcome) {
        let labels = [group.name(), &*self.label, outcome.name()];
        self.metrics
            .families
            .shadow
            .with_label_values(&labels)
            .inc();
    }
}

/// The sum of the lanes that share one label, as they stand at a scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct LaneTotals {
    pub queue_depth: i64,
    pub permits_in_use: i64,
    pub permits_limit: i64,
    pub window_used: i64,
    pub window_limit: i64,
    pub window_effective: i64,
    pub burst_limit: i64,
    pub paused: bool,
    pub idle: Duration,
}

impl LaneTotals {
    /// Adds one lane. A limit there is none of counts as nothing.
    pub fn add(&mut self, lane: &Snapshot) {
        let limit = |limit: u32| {
            if limit == u32::MAX {
                0
            } else {
                i64::from(limit)
            }
        };
        self.queue_depth += i64::try_from(lane.waiting).unwrap_or(i64::MAX);
        self.permits_in_use += i64::from(lane.permits_in_use);
        self.permits_limit += limit(lane.effective.concurrency);
        self.window_used += i64::from(lane.window_used);
        self.window_limit += lane.quota.rate.map_or(0, |rate| i64::from(rate.requests()));
        self.window_effective += limit(lane.effective.requests);
        self.burst_limit += limit(lane.effective.burst);
        self.paused |= !lane.paused.is_zero();
        self.idle += lane.idle;
    }
}

impl Metrics {
    /// Shows the lanes of one group and endpoint label as they stand now.
    pub fn show(&self, group: Group, endpoint: &EndpointMetrics, totals: &LaneTotals) {
        let families = &self.families;
        let labels = [group.name(), &*endpoint.label];
        for (family, value) in [
            (&families.queue_depth, totals.queue_depth),
            (&families.permits_in_use, totals.permits_in_use),
            (&families.permits_limit, totals.permits_limit),
            (&families.window_used, totals.window_used),
            (&families.window_limit, totals.window_limit),
            (&families.window_effective, totals.window_effective),
            (&families.burst_limit, totals.burst_limit),
            (&families.paused, i64::from(totals.paused)),
        ] {
            family.with_label_values(&labels).set(value);
        }
        let idle: Counter = families.idle.with_label_values(&labels);
        // An evicted lane takes its share along; the counter stays where it was.
        idle.inc_by((totals.idle.as_secs_f64() - idle.get()).max(0.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_past_the_cap_share_one_label() {
        let metrics = Metrics::new().unwrap();
        for endpoint in 0..1_000 {
            let handles = metrics.endpoint(&format!("endpoint{endpoint}"));
            handles.ended(Operation::Run, Outcome::Forwarded);
        }
        let page = String::from_utf8(metrics.page().unwrap()).unwrap();
        let series = page
            .lines()
            .filter(|line| line.starts_with("podgate_requests_total{"));
        assert_eq!(series.count(), ENDPOINTS + 1);
        let rest = r#"{endpoint="other",operation="run",outcome="forwarded"} 950"#;
        assert!(page.contains(rest), "{page}");
    }
}
