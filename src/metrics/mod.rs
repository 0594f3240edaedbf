//! Every series podgate exports, declared once. Labels come from closed sets, or from a capped one
//! with `other`; handles are resolved once and kept, never looked up per request.
//!
//! What can be known beforehand is there from the start, at zero: a rate over a series that appears
//! with its first event misses that event.

pub mod endpoint;
pub mod lanes;
pub mod spread;
pub mod times;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    CounterVec, Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::metrics::endpoint::EndpointMetrics;
use crate::metrics::lanes::LaneGauges;
use crate::metrics::times::Histograms;
use crate::operation::{Group, Operation};

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
    requests: spread::CounterVec,
    responses: spread::CounterVec,
    throttled: IntCounterVec,
    shadow: IntCounterVec,
    idle: CounterVec,
    lanes: LaneGauges,
    times: Histograms,
    connections: IntGauge,
    connections_total: IntCounter,
    buffered: IntGauge,
    log_dropped: IntCounter,
    #[cfg(feature = "otlp")]
    spans_dropped: IntCounter,
    /// Taken, refused.
    reloads: [IntCounter; 2],
    certificates: IntGaugeVec,
    endpoints: RwLock<HashMap<Box<str>, Arc<EndpointMetrics>>>,
    other: OnceLock<Arc<EndpointMetrics>>,
}

/// Declares a series: it is on the page from here on.
fn declared<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let collector = collector?;
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

impl Metrics {
    /// # Errors
    /// Only if two series were declared alike, which a test rules out.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let counters = |name: &str, help: &str, labels: &[&str]| {
            declared(r, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let spread_counters = |name: &str, help: &str, labels: &[&str]| {
            declared(r, spread::counters(name, help, labels))
        };
        r.register(Box::new(ProcessCollector::for_self()))?;
        let build = IntGaugeVec::new(
            Opts::new("podgate_build_info", "Always 1; which podgate this is."),
            &["version"],
        );
        declared(r, build)?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let reloads = counters(
            "podgate_config_reload_total",
            "Configurations read again, by whether they were taken.",
            &["result"],
        )?;
        let reloads = ["taken", "refused"].map(|result| reloads.with_label_values(&[result]));
        let families = Families {
            requests: spread_counters(
                "podgate_requests_total",
                "Requests by how they ended.",
                &["operation", "endpoint", "outcome"],
            )?,
            responses: spread_counters(
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
            idle: declared(
                r,
                CounterVec::new(
                    Opts::new(
                        "podgate_idle_budget_seconds_total",
                        "Budget left idle while somebody waited, but for timers' ticks: 1 is all of it for a second. Flat zero is the promise.",
                    ),
                    &["group", "endpoint"],
                ),
            )?,
            lanes: LaneGauges::declare(r)?,
            times: Histograms::declare(r)?,
            connections: declared(
                r,
                IntGauge::new("podgate_connections", "Connections from clients now open."),
            )?,
            connections_total: declared(
                r,
                IntCounter::new(
                    "podgate_connections_total",
                    "Connections from clients accepted.",
                ),
            )?,
            buffered: declared(
                r,
                IntGauge::new(
                    "podgate_buffered_bytes",
                    "Bytes of bodies held now, against buffers.total.",
                ),
            )?,
            log_dropped: declared(
                r,
                IntCounter::new(
                    "podgate_access_log_dropped_total",
                    "Lines of the access log thrown away because nobody read it fast enough.",
                ),
            )?,
            #[cfg(feature = "otlp")]
            spans_dropped: declared(
                r,
                IntCounter::new(
                    "podgate_spans_dropped_total",
                    "Spans thrown away because the collector did not take them, or not fast enough.",
                ),
            )?,
            reloads,
            certificates: declared(
                r,
                IntGaugeVec::new(
                    Opts::new(
                        "podgate_certificate_expiry_timestamp_seconds",
                        "When the first certificate of a listener's chain is over.",
                    ),
                    &["listener"],
                ),
            )?,
            endpoints: RwLock::default(),
            other: OnceLock::new(),
            registry,
        };
        let metrics = Self {
            families: Arc::new(families),
        };
        metrics.expect(&metrics.other());
        Ok(metrics)
    }

    /// Puts everything that can happen at an endpoint on the page, at zero.
    pub fn expect(&self, endpoint: &EndpointMetrics) {
        for operation in Operation::ALL {
            endpoint.expect(operation);
        }
        for group in Group::ALL {
            endpoint.expect_lane(group);
        }
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

    /// The handles of every endpoint label, in order, `other` last.
    pub fn labels(&self) -> Vec<Arc<EndpointMetrics>> {
        let mut labels: Vec<_> = self.families.endpoints.read().values().cloned().collect();
        labels.sort_by(|a, b| a.label().cmp(b.label()));
        labels.push(self.other());
        labels
    }

    /// Connections from clients now open.
    pub fn connections(&self) -> &IntGauge {
        &self.families.connections
    }

    /// Connections from clients accepted so far.
    pub fn connections_total(&self) -> &IntCounter {
        &self.families.connections_total
    }

    /// Bytes of bodies held now; set when a page is written.
    pub fn buffered(&self) -> &IntGauge {
        &self.families.buffered
    }

    /// Lines of the access log that were thrown away.
    pub fn log_dropped(&self) -> &IntCounter {
        &self.families.log_dropped
    }

    /// Spans that were thrown away.
    #[cfg(feature = "otlp")]
    pub fn spans_dropped(&self) -> &IntCounter {
        &self.families.spans_dropped
    }

    /// A configuration was read again, and taken or not.
    pub fn reloaded(&self, taken: bool) {
        let [ok, refused] = &self.families.reloads;
        if taken { ok } else { refused }.inc();
    }

    /// When a listener's certificates are over, in seconds since 1970; `None`: it has none any more.
    pub fn certificate_expires(&self, listener: &str, at: Option<i64>) {
        let series = &self.families.certificates;
        match at {
            Some(at) => series.with_label_values(&[listener]).set(at),
            // That there was none is as well.
            None => drop(series.remove_label_values(&[listener])),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;

    #[test]
    fn endpoints_past_the_cap_share_one_label() {
        let metrics = Metrics::new().unwrap();
        for endpoint in 0..1_000 {
            let handles = metrics.endpoint(&format!("endpoint{endpoint}"));
            handles.ended(Operation::Run, Outcome::Forwarded);
        }
        let page = String::from_utf8(metrics.page().unwrap()).unwrap();
        let series = page.lines().filter(|line| {
            line.starts_with("podgate_requests_total{")
                && line.contains(r#"operation="run",outcome="forwarded""#)
        });
        assert_eq!(series.count(), ENDPOINTS + 1);
        let rest = r#"{endpoint="other",operation="run",outcome="forwarded"} 950"#;
        assert!(page.contains(rest), "{page}");
    }

    #[test]
    fn what_can_happen_is_on_the_page_before_it_does() {
        let page = String::from_utf8(Metrics::new().unwrap().page().unwrap()).unwrap();
        for series in [
            r#"podgate_requests_total{endpoint="other",operation="purge-queue",outcome="quota"} 0"#,
            r#"podgate_upstream_responses_total{endpoint="other",operation="openai",status="5xx"} 0"#,
            r#"podgate_upstream_throttled_total{cause="backlog",endpoint="other",group="run"} 0"#,
            r#"podgate_shadow_shed_total{endpoint="other",group="run",outcome="queue_full"} 0"#,
            r#"podgate_idle_budget_seconds_total{endpoint="other",group="status"} 0"#,
            r#"podgate_queue_wait_seconds_count{operation="run",outcome="wait_expired"} 0"#,
            r#"podgate_overhead_seconds_count{operation="run"} 0"#,
            r#"podgate_config_reload_total{result="refused"} 0"#,
            "podgate_connections_total 0",
            "process_resident_memory_bytes ",
        ] {
            assert!(page.contains(series), "{series}\n{page}");
        }
    }
}
