//! `RateLimit-Policy` and `RateLimit`, in the form of draft 10 of the IETF's httpapi group; the one
//! place that writes them. Later drafts rename their parameters, so nothing is promised of the form.

use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::admission::lane::{Budget, LaneCell};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Says what is left of a lane's rate, if it has one that binds.
pub fn add(headers: &mut HeaderMap, lane: &LaneCell) {
    let Some(budget) = lane.budget() else { return };
    let (policy, left) = fields(lane.group().name(), &budget);
    for (name, value) in [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, left)] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.append(name, value);
        }
    }
}

fn fields(policy: &str, budget: &Budget) -> (String, String) {
    let (requests, window) = (budget.rate.requests(), seconds(budget.rate.period()));
    let (remaining, reset) = (budget.remaining, seconds(budget.reset));
    (
        format!("\"{policy}\";q={requests};w={window}"),
        format!("\"{policy}\";r={remaining};t={reset}"),
    )
}

/// Whole seconds, rounded up: nothing is there before it is said to be.
fn seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::quota::Rate;

    #[test]
    fn the_draft_s_form_in_whole_seconds() {
        let rate = Rate::new(1_000, Duration::from_millis(9_500)).unwrap();
        let budget = |remaining, reset| Budget {
            rate,
            remaining,
            reset: Duration::from_millis(reset),
        };
        let (policy, left) = fields("run", &budget(12, 9_500));
        assert_eq!(policy, r#""run";q=1000;w=10"#);
        assert_eq!(left, r#""run";r=12;t=10"#);
        let (_, left) = fields("run", &budget(0, 1));
        assert_eq!(left, r#""run";r=0;t=1"#);
    }
}
