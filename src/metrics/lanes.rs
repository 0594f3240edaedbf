//! The gauges of lanes: set when a page is written, from the lanes as they stand.

use std::time::Duration;

use prometheus::{Counter, GaugeVec, IntGaugeVec, Opts, Registry};

use crate::limit::local::Snapshot;
use crate::metrics::endpoint::EndpointMetrics;
use crate::metrics::{Metrics, declared};
use crate::operation::Group;

pub(super) struct LaneGauges {
    queue_depth: IntGaugeVec,
    queue_bytes: IntGaugeVec,
    queue_oldest: GaugeVec,
    permits_in_use: IntGaugeVec,
    permits_limit: IntGaugeVec,
    window_used: IntGaugeVec,
    window_limit: IntGaugeVec,
    window_effective: IntGaugeVec,
    burst_limit: IntGaugeVec,
    paused: IntGaugeVec,
}

impl LaneGauges {
    pub(super) fn declare(registry: &Registry) -> prometheus::Result<Self> {
        const LABELS: [&str; 2] = ["group", "endpoint"];
        let gauges = |name: &str, help: &str| {
            declared(registry, IntGaugeVec::new(Opts::new(name, help), &LABELS))
        };
        Ok(Self {
            queue_depth: gauges("podgate_queue_depth", "Requests that wait now.")?,
            queue_bytes: gauges("podgate_queue_bytes", "Bytes of bodies held by them.")?,
            queue_oldest: declared(
                registry,
                GaugeVec::new(
                    Opts::new(
                        "podgate_queue_oldest_seconds",
                        "How long the one that waits longest has waited.",
                    ),
                    &LABELS,
                ),
            )?,
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
        })
    }
}

/// What waits in one lane.
#[derive(Clone, Copy, Debug, Default)]
pub struct Queued {
    pub bytes: u64,
    /// How long the one that waits longest has waited.
    pub oldest: Duration,
}

/// The sum of the lanes that share one label, as they stand at a scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct LaneTotals {
    queue_depth: i64,
    queued: Queued,
    permits_in_use: i64,
    permits_limit: i64,
    window_used: i64,
    window_limit: i64,
    window_effective: i64,
    burst_limit: i64,
    paused: bool,
    idle: Duration,
}

impl LaneTotals {
    /// Adds one lane. A limit there is none of counts as nothing.
    pub fn add(&mut self, lane: &Snapshot, queued: Queued) {
        let limit = |limit: u32| {
            if limit == u32::MAX {
                0
            } else {
                i64::from(limit)
            }
        };
        self.queue_depth += i64::try_from(lane.waiting).unwrap_or(i64::MAX);
        self.queued.bytes += queued.bytes;
        self.queued.oldest = self.queued.oldest.max(queued.oldest);
        self.permits_in_use += i64::from(lane.permits_in_use);
        self.permits_limit += limit(lane.effective.concurrency);
        self.window_used += i64::from(lane.window_used);
        self.window_limit += lane.quota.rate.map_or(0, |rate| i64::from(rate.requests()));
        self.window_effective += limit(lane.effective.requests);
        self.burst_limit += limit(lane.effective.burst);
        self.paused |= !lane.paused.is_zero();
        self.idle += lane.idle_budget;
    }
}

impl Metrics {
    /// Shows the lanes of one group and endpoint label as they stand now.
    pub fn show(&self, group: Group, endpoint: &EndpointMetrics, totals: &LaneTotals) {
        let labels = [group.name(), endpoint.label()];
        let gauges = &self.families.lanes;
        let bytes = i64::try_from(totals.queued.bytes).unwrap_or(i64::MAX);
        for (family, value) in [
            (&gauges.queue_depth, totals.queue_depth),
            (&gauges.queue_bytes, bytes),
            (&gauges.permits_in_use, totals.permits_in_use),
            (&gauges.permits_limit, totals.permits_limit),
            (&gauges.window_used, totals.window_used),
            (&gauges.window_limit, totals.window_limit),
            (&gauges.window_effective, totals.window_effective),
            (&gauges.burst_limit, totals.burst_limit),
            (&gauges.paused, i64::from(totals.paused)),
        ] {
            family.with_label_values(&labels).set(value);
        }
        let oldest = totals.queued.oldest.as_secs_f64();
        gauges.queue_oldest.with_label_values(&labels).set(oldest);
        let idle: Counter = self.families.idle.with_label_values(&labels);
        // An evicted lane takes its share along; the counter stays where it was.
        idle.inc_by((totals.idle.as_secs_f64() - idle.get()).max(0.0));
    }
}
