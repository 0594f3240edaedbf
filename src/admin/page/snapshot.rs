//! What one event tells: the lanes as `/lanes` has them, and the counters beside them.

use std::cmp::Reverse;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::admin;
use crate::admin::Current;
use crate::admin::page::Listen;
use crate::admission::clock::Clock;
use crate::admission::lane::LaneView;
use crate::admission::{Admission, Listed};
use crate::limit::quota::Timestamp;
use crate::metrics::Metrics;
use crate::metrics::endpoint::{CAUSES, CLASSES, Counted};
use crate::operation::Group;
use crate::outcome::Outcome;

/// Lanes an event tells of, the busiest ones: a page is read by people. `/lanes` has all.
const LANES: usize = 200;
/// Flows named for each lane, those that wait with most.
const FLOWS: usize = 8;

/// Where snapshots come from.
pub struct Source {
    metrics: Metrics,
    admission: Admission,
    closing: watch::Receiver<bool>,
    listen: Listen,
    config: Current,
    pub(super) clock: Clock,
    started: Timestamp,
    /// Another one in each process: what was counted before a restart is no beginning of what is now.
    process: String,
}

impl Source {
    pub fn new(
        metrics: Metrics,
        admission: Admission,
        closing: watch::Receiver<bool>,
        listen: Listen,
        config: Current,
    ) -> Self {
        let clock = Clock::start();
        Self {
            metrics,
            admission,
            closing,
            listen,
            config,
            clock,
            started: clock.now(),
            process: format!("{:016x}", RandomState::new().hash_one(())),
        }
    }

    /// Everything as it stands now.
    pub fn snapshot(&self) -> Value {
        // Brings the idle time in the counters up to now.
        self.admission.show();
        let (lanes, of) = self.lanes();
        let (mut counters, mut throttled, mut idle_seconds) = (Vec::new(), 0, 0.0);
        for endpoint in self.metrics.labels() {
            for group in Group::ALL {
                let Some(counted) = endpoint.counted(group) else {
                    continue;
                };
                throttled += counted.throttled.iter().sum::<u64>();
                idle_seconds += counted.idle_seconds;
                if counted != Counted::default() {
                    counters.push(counter(endpoint.label(), group, &counted));
                }
            }
        }
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "process": self.process,
            "uptime_ms": admin::millis(self.clock.now().since(self.started)),
            "listen": (self.listen)(),
            "upstream": (self.config)().upstream.target.to_string(),
            "draining": *self.closing.borrow(),
            "connections": self.metrics.connections().get(),
            "buffered_bytes": self.metrics.buffered().get(),
            "throttled": throttled,
            "idle_seconds": idle_seconds,
            "lanes_total": of,
            "lanes": lanes,
            "counters": counters,
        })
    }

    /// The busiest lanes in the order of `/lanes`, and how many there are in all.
    fn lanes(&self) -> (Vec<Value>, usize) {
        let list = self.admission.list().into_iter();
        let mut lanes: Vec<_> = list.map(|listed| (listed.lane.view(), listed)).collect();
        let of = lanes.len();
        if of > LANES {
            let busy = |(view, _): &(LaneView, Listed)| {
                let snapshot = &view.snapshot;
                Reverse((
                    snapshot.waiting,
                    snapshot.window_used,
                    snapshot.permits_in_use,
                ))
            };
            lanes.select_nth_unstable_by_key(LANES, busy);
            lanes.truncate(LANES);
        }
        lanes.sort_by(|(_, a), (_, b)| admin::order(a, b));
        let lanes = lanes.into_iter().map(|(view, listed)| lane(&listed, view));
        (lanes.collect(), of)
    }
}

/// As `/lanes` has it, with what the page shows beside.
fn lane(listed: &Listed, mut view: LaneView) -> Value {
    let flows = view.flows.len();
    view.flows
        .sort_by_key(|(flow, waiting)| (Reverse(*waiting), flow.0));
    view.flows.truncate(FLOWS);
    let mut lane = admin::lane(listed, &view);
    let per = view.snapshot.quota.rate.map(|rate| rate.period());
    lane["label"] = json!(listed.lane.metrics().label());
    lane["flows_total"] = json!(flows);
    lane["per_ms"] = json!(per.map(admin::millis));
    lane["permits_base"] = json!(view.snapshot.quota.concurrency);
    lane["oldest_ms"] = json!(admin::millis(view.queued.oldest));
    lane
}

fn counter(endpoint: &str, group: Group, counted: &Counted) -> Value {
    let outcomes = Outcome::ALL.map(Outcome::name);
    json!({
        "endpoint": endpoint,
        "group": group.name(),
        "outcomes": named(&outcomes, &counted.outcomes),
        "upstream": named(&CLASSES, &counted.answers),
        "throttled": named(&CAUSES, &counted.throttled),
        "idle_seconds": counted.idle_seconds,
    })
}

/// Those that are not zero.
fn named(names: &[&str], counts: &[u64]) -> Map<String, Value> {
    let all = names.iter().zip(counts);
    all.filter(|(_, count)| **count > 0)
        .map(|(name, count)| ((*name).to_owned(), json!(count)))
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::admission::Account;
    use crate::admission::lane::Ask;
    use crate::config::Config;
    use crate::config::policy::GroupVerdict;
    use crate::limit::flow::FlowId;
    use crate::limit::ladder::Cause;
    use crate::limit::ledger::Call;
    use crate::operation::Operation;

    struct House {
        metrics: Metrics,
        admission: Admission,
        closing: watch::Sender<bool>,
        source: Source,
    }

    impl House {
        fn new() -> Self {
            let metrics = Metrics::new().unwrap();
            let admission = Admission::new(10_000, metrics.clone());
            let (closing, closed) = watch::channel(false);
            let listen: Listen = Arc::new(|| "http://127.0.0.1:8080".into());
            let config: Current = Arc::new(|| Arc::new(Config::preset()));
            let source = Source::new(metrics.clone(), admission.clone(), closed, listen, config);
            Self {
                metrics,
                admission,
                closing,
                source,
            }
        }

        fn lane(&self, endpoint: &str) -> Arc<crate::admission::lane::LaneCell> {
            let config = Config::preset();
            let GroupVerdict::Policy(policy) = config.group(endpoint, Group::Run) else {
                panic!("only `other` can be rejected")
            };
            self.admission
                .lane(Account::default(), endpoint, Group::Run, policy)
        }
    }

    pub fn source() -> Source {
        House::new().source
    }

    fn ask(flow: u64) -> Ask {
        Ask {
            flow: FlowId(flow),
            call: Call::Short,
            patience: Duration::from_secs(8),
            held: 0,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_lanes_the_busiest_are_told_in_their_order() {
        let house = House::new();
        let mut permits = Vec::new();
        for number in 0..1_000 {
            let lane = house.lane(&format!("endpoint{number:04}"));
            if number % 10 == 7 {
                permits.push(lane.admit(ask(1)).await.unwrap());
            }
        }
        let snapshot = house.source.snapshot();
        assert_eq!(snapshot["lanes_total"], 1_000);
        let told = snapshot["lanes"].as_array().unwrap();
        assert_eq!(told.len(), LANES);
        let names: Vec<_> = told.iter().map(|lane| lane["endpoint"].as_str()).collect();
        assert!(names.is_sorted());
        for number in (7..1_000).step_by(10) {
            assert!(names.contains(&Some(&format!("endpoint{number:04}"))));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_callers_those_that_wait_with_most_are_named() {
        let house = House::new();
        let lane = house.lane("ep");
        let mut permits = Vec::new();
        while permits.len() < 200 {
            permits.push(lane.admit(ask(0)).await.unwrap());
        }
        for flow in 0..20 {
            for _ in 0..=flow {
                let lane = lane.clone();
                tokio::spawn(async move { drop(lane.admit(ask(flow)).await) });
            }
        }
        // The runtime looks elsewhere after some tasks.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let told = &house.source.snapshot()["lanes"][0];
        assert_eq!(told["waiting"]["total"], 210);
        assert_eq!(told["flows_total"], 20);
        let flows = told["waiting"]["flows"].as_object().unwrap();
        let counts: Vec<_> = flows.values().filter_map(Value::as_u64).collect();
        assert_eq!(counts, [20, 19, 18, 17, 16, 15, 14, 13]);
    }

    #[test]
    fn counters_are_told_by_endpoint_and_group_and_only_what_was_counted() {
        let house = House::new();
        assert_eq!(house.source.snapshot()["counters"], json!([]));
        let endpoint = house.metrics.endpoint("ep");
        endpoint.ended(Operation::Status, Outcome::Forwarded);
        endpoint.ended(Operation::Stream, Outcome::Forwarded);
        endpoint.ended(Operation::Stream, Outcome::QueueFull);
        endpoint.answered(Operation::Status, 200);
        endpoint.answered(Operation::Stream, 429);
        endpoint.throttled(Group::Status, Cause::Rate);
        let snapshot = house.source.snapshot();
        assert_eq!(snapshot["throttled"], 1);
        let told = json!([{
            "endpoint": "ep",
            "group": "status",
            "outcomes": { "forwarded": 2, "queue_full": 1 },
            "upstream": { "2xx": 1, "4xx": 1 },
            "throttled": { "rate": 1 },
            "idle_seconds": 0.0,
        }]);
        assert_eq!(snapshot["counters"], told);
    }

    #[test]
    fn it_says_when_podgate_drains() {
        let house = House::new();
        assert_eq!(house.source.snapshot()["draining"], false);
        house.closing.send_replace(true);
        assert_eq!(house.source.snapshot()["draining"], true);
    }

    #[test]
    fn a_process_is_told_from_the_one_before() {
        let (one, other) = (House::new(), House::new());
        let first = one.source.snapshot();
        assert_eq!(first["process"], one.source.snapshot()["process"]);
        assert_ne!(first["process"], other.source.snapshot()["process"]);
    }
}
