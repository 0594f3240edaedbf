//! Faults and disagreements on request: what `POST /__emulator/faults` may ask for.
//!
//! A posted set replaces the one before; `{}` ends all of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;
use serde::Deserialize;

use super::door::Counts;
use super::id::Random;
use super::limits::Group;

/// A set of faults. Those that strike single requests do so with `probability`, `count` times, at
/// `endpoint` and `group`; `clock_ppm`, `decrement_delay_ms` and `counts` stand for every request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Transit: passes before the request reaches the door, and is counted.
    pub latency_ms: u64,
    /// Up to so much more, evenly spread.
    pub jitter_ms: u64,
    /// The connection is reset; nothing is counted, nothing is done. (A closed port is the plainer way
    /// to be refused, and needs no emulator.)
    pub refuse: bool,
    /// Counted and done, then reset instead of answered.
    pub reset_before_head: bool,
    /// Reset after the head and half of the body.
    pub reset_mid_body: bool,
    /// Counted and done, then silence: `true` or `"head"` instead of the head, `"body"` after half of
    /// the body.
    pub stall: Stall,
    /// `Content-Length` says so many bytes more than are sent; then the connection is closed.
    pub wrong_length: u64,
    /// Counted, not done, and answered with this status.
    pub status: Option<u16>,
    /// The `Retry-After` of that answer, or of a refusal of the limits: text, or whole seconds.
    pub retry_after: Option<RetryAfter>,
    /// From 0 to 1; 1 if absent.
    pub probability: Option<f64>,
    /// Requests to strike; any number if absent.
    pub count: Option<u64>,
    /// Strike only here.
    pub endpoint: Option<String>,
    /// Strike only this operation group.
    pub group: Option<String>,
    /// The door's clock gains so many millionths; below zero it loses them.
    pub clock_ppm: i32,
    /// A place in flight is free so much later than its exchange is over.
    pub decrement_delay_ms: u64,
    /// When an arrival counts against the rate.
    pub counts: CountsName,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "StallName")]
pub enum Stall {
    #[default]
    No,
    Head,
    Body,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum StallName {
    Switch(bool),
    Where(StallWhere),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum StallWhere {
    Head,
    Body,
}

impl From<StallName> for Stall {
    fn from(name: StallName) -> Self {
        match name {
            StallName::Switch(false) => Stall::No,
            StallName::Switch(true) | StallName::Where(StallWhere::Head) => Stall::Head,
            StallName::Where(StallWhere::Body) => Stall::Body,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CountsName {
    #[default]
    Head,
    BodyEnd,
    Completion,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum RetryAfter {
    Seconds(u64),
    Text(String),
}

impl Faults {
    /// An hour: the longest of all delays.
    const LONGEST_MS: u64 = 3_600_000;

    /// The faults of a JSON body, or what is wrong with it.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let body = if body.is_empty() { b"{}" } else { body };
        let faults: Faults = serde_json::from_slice(body).map_err(|fault| fault.to_string())?;
        faults.check()?;
        Ok(faults)
    }

    fn check(&self) -> Result<(), String> {
        if let Some(group) = &self.group
            && Group::named(group).is_none()
        {
            let known = Group::ALL.map(Group::name).join(", ");
            return Err(format!("`group`: no group `{group}`; known are {known}"));
        }
        if self.status.is_some_and(|s| !(200..=599).contains(&s)) {
            return Err("`status` is from 200 to 599".to_owned());
        }
        if self.probability.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
            return Err("`probability` is from 0 to 1".to_owned());
        }
        let delays = [self.latency_ms, self.jitter_ms, self.decrement_delay_ms];
        if delays.iter().any(|&ms| ms > Self::LONGEST_MS) {
            return Err("a delay is at most an hour".to_owned());
        }
        if self.clock_ppm.unsigned_abs() > 500_000 {
            return Err("`clock_ppm` is at most 500000 either way".to_owned());
        }
        if self.retry_after.is_some() && self.retry_after_value().is_none() {
            return Err("`retry_after` is no header value".to_owned());
        }
        Ok(())
    }

    pub(super) fn retry_after_value(&self) -> Option<HeaderValue> {
        match self.retry_after.as_ref()? {
            RetryAfter::Seconds(seconds) => Some(HeaderValue::from(*seconds)),
            RetryAfter::Text(text) => HeaderValue::from_str(text).ok(),
        }
    }

    /// When arrivals count.
    pub(super) fn counts(&self) -> Counts {
        match self.counts {
            CountsName::Head => Counts::Head,
            CountsName::BodyEnd => Counts::BodyEnd,
            CountsName::Completion => Counts::Completion,
        }
    }

    fn strikes_at(&self, endpoint: &str, group: Group) -> bool {
        self.endpoint.as_ref().is_none_or(|name| name == endpoint)
            && self.group.as_ref().is_none_or(|name| name == group.name())
    }
}

/// What one request is in for. Serves simulated time as well.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub latency: Duration,
    pub counts: Counts,
    pub late_decrement: Duration,
    /// The faults that strike it.
    pub strike: Option<Arc<Faults>>,
}

/// The faults in force. Costs one atomic read while there are none.
#[derive(Debug)]
pub struct FaultBox {
    any: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    faults: Arc<Faults>,
    left: Option<u64>,
    random: Random,
}

impl FaultBox {
    /// No faults; chance follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            any: AtomicBool::new(false),
            inner: Mutex::new(Inner {
                faults: Arc::default(),
                left: None,
                random: Random::new(seed),
            }),
        }
    }

    pub fn set(&self, faults: Faults) {
        let mut inner = self.inner.lock();
        inner.left = faults.count;
        inner.faults = Arc::new(faults);
        self.any.store(true, Ordering::Relaxed);
    }

    pub fn clock_ppm(&self) -> i32 {
        self.inner.lock().faults.clock_ppm
    }

    /// For the next request: a `count` runs down, chance goes on.
    pub fn plan(&self, endpoint: &str, group: Group) -> Plan {
        if !self.any.load(Ordering::Relaxed) {
            return Plan::default();
        }
        self.inner.lock().plan(endpoint, group)
    }
}

impl Inner {
    fn plan(&mut self, endpoint: &str, group: Group) -> Plan {
        let faults = Arc::clone(&self.faults);
        let mut plan = Plan {
            counts: faults.counts(),
            late_decrement: Duration::from_millis(faults.decrement_delay_ms),
            ..Plan::default()
        };
        let likely = faults.probability.unwrap_or(1.0);
        if !faults.strikes_at(endpoint, group)
            || self.left == Some(0)
            || (likely < 1.0 && self.random.unit() >= likely)
        {
            return plan;
        }
        self.left = self.left.map(|left| left - 1);
        let jitter = faults.jitter_ms as f64 * self.random.unit();
        plan.latency =
            Duration::from_millis(faults.latency_ms) + Duration::from_secs_f64(jitter / 1000.0);
        plan.strike = Some(faults);
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: &str) -> Faults {
        Faults::parse(json.as_bytes()).unwrap()
    }

    fn strikes(faults_in_force: &FaultBox, tries: u32) -> u32 {
        let plan = || faults_in_force.plan("ep", Group::Run);
        (0..tries).map(|_| u32::from(plan().strike.is_some())).sum()
    }

    #[test]
    fn an_unknown_key_is_named() {
        let fault = Faults::parse(br#"{"latency": 3}"#).unwrap_err();
        assert!(fault.contains("`latency`"), "{fault}");
    }

    #[test]
    fn values_out_of_range_are_faults() {
        for wrong in [
            r#"{"status": 100}"#,
            r#"{"probability": 1.5}"#,
            r#"{"latency_ms": 3600001}"#,
            r#"{"group": "walk"}"#,
            r#"{"clock_ppm": 600000}"#,
            r#"{"retry_after": "a\nb"}"#,
            r#"{"counts": "tail"}"#,
            r#"{"stall": "foot"}"#,
            "[]x",
        ] {
            assert!(Faults::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_documented_key_is_known() {
        let all = r#"{"latency_ms":1,"jitter_ms":2,"refuse":true,"reset_before_head":true,
            "reset_mid_body":true,"stall":true,"status":503,"retry_after":"0.5","probability":0.5,
            "count":3,"clock_ppm":-300,"decrement_delay_ms":5,"wrong_length":9,
            "counts":"body-end","endpoint":"ep","group":"run"}"#;
        let all = faults(all);
        assert_eq!((all.stall, all.counts()), (Stall::Head, Counts::BodyEnd));
        assert_eq!(all.retry_after_value().unwrap(), "0.5");
        assert_eq!(faults(r#"{"stall":"body"}"#).stall, Stall::Body);
        assert_eq!(faults("").latency_ms, 0);
    }

    #[test]
    fn a_count_runs_out_and_what_stands_goes_on() {
        let in_force = FaultBox::new(1);
        assert_eq!(strikes(&in_force, 5), 0);
        in_force.set(faults(
            r#"{"status": 500, "count": 2, "counts": "completion"}"#,
        ));
        assert_eq!(strikes(&in_force, 5), 2);
        let plan = in_force.plan("ep", Group::Run);
        assert_eq!(plan.counts, Counts::Completion);
        in_force.set(Faults::default());
        assert_eq!(in_force.plan("ep", Group::Run).counts, Counts::Head);
    }

    #[test]
    fn probability_and_place_choose_the_requests() {
        let in_force = FaultBox::new(1);
        in_force.set(faults(r#"{"status": 500, "probability": 0.25}"#));
        assert!((150..350).contains(&strikes(&in_force, 1000)));
        in_force.set(faults(r#"{"status": 500, "group": "status"}"#));
        assert_eq!(strikes(&in_force, 9), 0);
        assert!(in_force.plan("ep", Group::Status).strike.is_some());
        in_force.set(faults(r#"{"status": 500, "endpoint": "other"}"#));
        assert_eq!(strikes(&in_force, 9), 0);
    }

    #[test]
    fn latency_lies_between_itself_and_its_jitter() {
        let in_force = FaultBox::new(1);
        in_force.set(faults(r#"{"latency_ms": 20, "jitter_ms": 10}"#));
        for _ in 0..100 {
            let latency = in_force.plan("ep", Group::Run).latency;
            assert!((20..=30).contains(&latency.as_millis()), "{latency:?}");
        }
    }
}
